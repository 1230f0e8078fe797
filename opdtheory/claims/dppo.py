"""Rethinking the Trust Region in LLM Reinforcement Learning (DPPO): bounds, masks and partition divergences."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from opdtheory import bounds, divergences, gradients, masks, spaces
from opdtheory.claims.sources import DPPO
from opdtheory.elementary import asum, exact, maximum, minimum, where
from opdtheory.tabular import PolicyPair, SingleState
from opdtheory.verification import blocks as bl
from opdtheory.verification import identities
from opdtheory.verification.arithmetic import compare
from opdtheory.verification.claim import Claim, Mutant
from opdtheory.verification.evidence import Evidence
from opdtheory.verification.registry import claim, entry

PROCESSES = spaces.discounted_mdps()
PAIRS = spaces.policy_pairs()
SIGNED = spaces.policy_pairs(reward=(-1.0, 1.0))
ANY_LENGTH = spaces.SMALL + spaces.WITH_EOS
COVERED = spaces.policy_pairs(reward=(-1.0, 1.0), sizes=ANY_LENGTH, absolutely_continuous=True)
UNCOVERED = spaces.policy_pairs(reward=(-1.0, 1.0), sizes=ANY_LENGTH)
STATES = spaces.single_states()
INTERIOR = spaces.single_states(full_support=True)
REWARDED = spaces.single_states(vocab=(2, 3, 4), full_support=True, values=(0.0, 1.0))
_SEED = 7


def reward_bound(x: Any) -> Any:
    """ξ = max |R(y)|."""
    return maximum(abs(x.reward_min), abs(x.reward_max))


# ------------------------------------------------------------------------------------------- section 2


@claim(
    "dppo.thm2.1", DPPO, "Theorem 2.1, Eq 2", "Discounted improvement bound with factor 2",
    space=PROCESSES, signed=True, corrected_by=("dppo.thm2.1/trpo", "dppo.thm2.1-sharp"),
    hypotheses=("ξ = max |A^μ(s, a)|", "ε the largest TV of any state"),
    sketch="With ξ the largest |A^μ(s, a)|, |E_π A^μ(s, ·)| ≤ 2ξ TV and the occupancies differ by up to 2γε/(1 − γ) in L1: the product is 4ξγε²/(1 − γ)², TRPO's constant. "
    "The factor 2 belongs to ξ = max_s |E_π A^μ(s, ·)|.",
    latex=r"J(\pi)-J(\mu)\ \ge\ L_\mu(\pi)-\frac{2\xi\gamma}{(1-\gamma)^2}\,\varepsilon^2",
)  # fmt: skip
def thm21(x: Any) -> tuple[Any, Any]:
    """The return falls short of the surrogate by at most 2ξγε²/(1 − γ)²."""
    return -x.error * (1 - x.gamma) ** 2, 2 * x.adv_max * x.gamma * x.tv_max**2


@claim(
    "dppo.thm2.1/trpo", DPPO, "Theorem 2.1, with TRPO's constant", "Discounted improvement bound with factor 4",
    space=PROCESSES, sharpness="loose",
    sketch="Error = Σ_s (visits^π − visits^μ)(s) E_π A^μ(s, ·); |E_π A^μ| ≤ 2ξε and the visits differ by at most 2γε/(1 − γ)² in L1, because "
    "visits^π − visits^μ = γ visits^μ (P_π − P_μ)(I − γP_π)⁻¹.",
    latex=r"|J(\pi)-J(\mu)-L|\le\frac{4\xi\gamma}{(1-\gamma)^2}\varepsilon^2",
)  # fmt: skip
def thm21_trpo(x: Any) -> tuple[Any, Any]:
    """|J(π) − J(μ) − L| ≤ 4ξγε²/(1 − γ)², ξ the largest |A^μ(s, a)|."""
    return abs(x.error), bounds.discounted_trpo(x.gamma, x.tv_max, x.adv_max)


# ------------------------------------------------------------------------------------------- section 3


def _shift_invariance() -> Evidence:
    """Adding a constant to R moves neither L′ nor Δ, for variable lengths too."""
    rng = np.random.default_rng(_SEED)
    worst = 0.0
    for size in ANY_LENGTH:
        tree_blocks = COVERED.blocks(**size)
        values = bl.decode(tree_blocks, bl.sample(tree_blocks, rng, 200, COVERED.pairs))
        moved = values | {k: v + 3.0 for k, v in values.items() if k.startswith("reward")}
        a, b = (COVERED.build(v, **size) for v in (values, moved))
        scale = 1 + np.abs(a.delta) + np.abs(a.surrogate_reward) + np.asarray(a.w_second_moment)
        worst = max(worst, float(np.max(np.abs(a.delta - b.delta) / scale)), float(np.max(np.abs(a.surrogate_reward - b.surrogate_reward) / scale)))
    return Evidence("check", worst < 1e-9, f"R + 3 instead of R: largest relative change of L′ and Δ {worst:.1e}")


def _identity(x: Any) -> tuple[Any, Any]:
    return x.improvement, x.surrogate_reward - x.delta


_THM31 = Claim(id="dppo.thm3.1", space=spaces.policy_pairs(reward=(-1.0, 1.0)), sides=_identity, relation="identity")


def _exact_points() -> Evidence:
    sizes = [dict(s) for s in spaces.SMALL[1:]] + [{"vocab": 3, "horizon": 4, "eos": None, "prompts": 1}]
    return identities.random_points(_THM31, *sizes, degree=24)


@claim(
    "dppo.thm3.1", DPPO, "Theorem 3.1, Eq 5–6", "Exact decomposition of the improvement",
    space=COVERED, relation="==", sharpness="identity", proofs=(), lemmas=(_exact_points,), checks=(_shift_invariance,),
    assumption="supp π ⊆ supp μ at every context",
    unassumed={"space": UNCOVERED},
    sketch="∏ρ_t − 1 = Σ_t (ρ_t − 1) ∏_{j>t} ρ_j telescopes; weigh by R and take E_μ. E_μ[∏ρ_t R] = J(π) needs μ to cover π: sequences that only π can produce "
    "are missing from every expectation under μ.",
    latex=r"J(\pi)-J(\mu)=\mathbb{E}_\mu\Big[R\sum_t(\rho_t-1)\Big]-\mathbb{E}_\mu\Big[R\sum_t(\rho_t-1)\Big(1-\prod_{j>t}\rho_j\Big)\Big]",
)  # fmt: skip
def thm31(x: Any) -> tuple[Any, Any]:
    """The improvement is L′ − Δ with L′ = E_μ[R Σ(ρ_t − 1)] and Δ the second-order remainder; sequences may have any length."""
    return _identity(x)


def _quoted_regime() -> tuple[bool, str]:
    """The paper's scaling setting: responses up to 16384 tokens, threshold 0.2, rewards in [0, 1]."""
    value = bounds.dppo_quadratic(16384, 0.2, 1)
    return bool(value >= 1), f"at T = 16384, δ = 0.2 the penalty is {value:.3g}, against an improvement of at most 1"


@claim(
    "dppo.thm3.2", DPPO, "Theorem 3.2, Eq 7", "Quadratic improvement bound",
    space=SIGNED, sharpness="tight", vacuous_as_quoted=_quoted_regime, depends_on=("dppo.b1",),
    useful_when="2T(T−1)ε² < the reward's span over 2ξ, that is ε of order 1/T",
    hypotheses=("ξ = max |R|; by shift invariance ξ may be half the reward's span",),
    corrected_by=("ours.s4",),
    sketch="|Error| ≤ ξ Σ_t E|ρ_t − 1| · 2TV(future) and TV(future) ≤ (T − t)ε. At T = 2 with R ∈ [−ξ, ξ] it is attained; for larger T the supremum is "
    "2ξTε(1 − (1 − ε)^{T−1}).",
    latex=r"J(\pi)-J(\mu)\ge L'_\mu(\pi)-2\xi T(T-1)\varepsilon^2",
    mutants=(
        Mutant("off by one horizon", "dies", "T(T−1) is what Σ(T−t) gives", {"sides": lambda x: (abs(x.error), 2 * reward_bound(x) * (x.horizon - 1) ** 2 * x.tv_max**2)}),
        Mutant("mean for maximum", "dies", "the mean TV misses the contexts that only π visits", {"sides": lambda x: (abs(x.error), 2 * reward_bound(x) * x.tv_sum**2)}),
    ),
)  # fmt: skip
def thm32(x: Any) -> tuple[Any, Any]:
    """|J(π) − J(μ) − L′| ≤ 2ξT(T − 1)ε², ξ the largest |R| and ε the largest TV of any context."""
    return abs(x.error), bounds.dppo_quadratic(x.horizon, x.tv_max, reward_bound(x))


@claim(
    "dppo.b1", DPPO, "Lemma B.1", "Sequence TV is at most the expected token TVs",
    space=PAIRS, sharpness="tight",
    sketch="Telescope μ(y) − π(y) over the position of the first replaced factor; the factors behind it sum to one.",
    latex=r"\mathrm{TV}(\mu_T,\pi_T)\le\sum_t\mathbb{E}_{s_t\sim\mu}[\mathrm{TV}(s_t)]",
    mutants=(Mutant("largest token only", "dies", "deviations add up over steps", {"sides": lambda x: (x.tv_seq, x.tv_max)}),),
)  # fmt: skip
def b1(x: Any) -> tuple[Any, Any]:
    """TV between the sequence laws is at most the sum over steps of the expected TV at contexts drawn from μ."""
    return x.tv_seq, x.tv_sum


@claim(
    "dppo.b3", DPPO, "Appendix B.3, Eq 19–20", "Linear improvement bound",
    space=SIGNED, sharpness="loose", corrected_by=("ours.s3",), depends_on=("dppo.b1",),
    sketch="As Theorem 3.2 with TV(future) ≤ 1. For R ∈ [0, 1] the sharp constant is 1 instead of 4: half for centring the reward, half because μ and π "
    "cannot both be far behind the same deviation.",
    latex=r"|\Delta(\mu,\pi)|\le 4\xi\,\mathbb{E}_\mu\Big[\sum_t \mathrm{TV}(s_t)\Big]",
    mutants=(Mutant("a quarter of the constant", "dies", "with R ∈ [−ξ, ξ] half of it is needed", {"sides": lambda x: (abs(x.error), reward_bound(x) * x.tv_sum)}),),
)  # fmt: skip
def b3(x: Any) -> tuple[Any, Any]:
    """|J(π) − J(μ) − L′| ≤ 4ξ times the sum of expected token TVs under μ."""
    return abs(x.error), bounds.dppo_linear(x.tv_sum, reward_bound(x))


@claim(
    "dppo.b3/composite", DPPO, "end of Appendix B.3", "The smaller of the quadratic and the linear bound",
    space=SIGNED, sharpness="tight", depends_on=("dppo.thm3.2", "dppo.b3"),
    sketch="Both hold, so their minimum does.",
)  # fmt: skip
def composite(x: Any) -> tuple[Any, Any]:
    """|J(π) − J(μ) − L′| is at most the smaller of the quadratic and the linear bound."""
    return abs(x.error), bounds.dppo_composite(x.horizon, x.tv_max, x.tv_sum, reward_bound(x))


@claim(
    "dppo.eq8", DPPO, "Eq 8", "A feasible policy with positive surrogate improves",
    space=PAIRS.with_sizes(*spaces.SMALL[1:]), signed=True,
    given=lambda x: [(x.surrogate, ">", 0), (5 * x.tv_max, "<=", 1)],
    corrected_by=("ours.s8",),
    sketch="Within the trust region the remainder Δ can exceed L′: the constraint bounds ε, but Theorem 3.2 needs 2ξT(T−1)ε² < L′, and maximising L′ under the "
    "constraint does not ensure that.",
    note="Read as: solving the constrained problem guarantees stable learning, so a feasible policy with L′ > 0 does not lose return. δ = 1/5 as in the paper's scaling runs.",
    latex=r"L'_\mu(\pi)>0,\ \max_s\mathrm{TV}(s)\le\delta\ \Rightarrow\ J(\pi)\ge J(\mu)",
)  # fmt: skip
def eq8(x: Any) -> tuple[Any, Any]:
    """Where every TV is at most 1/5 and the surrogate is positive, the return does not fall."""
    return -x.improvement, 0


# ------------------------------------------------------------------------------------------- section 4


def _group_baseline() -> Evidence:
    """Enumerate every group of G draws at one state: the estimator's mean against (1 − 1/G) times the gradient."""
    p = np.array([0.5, 0.3, 0.2])
    reward = np.array([1.0, 0.25, -0.5])
    score = np.eye(3) - p
    gradient = p @ (reward[:, None] * score)
    worst = 0.0
    for group in (2, 3, 4):
        mean = np.zeros(3)
        for draws in product(range(3), repeat=group):
            r = reward[list(draws)]
            mean += np.prod(p[list(draws)]) * ((r - r.mean())[:, None] * score[list(draws)]).mean(0)
        worst = max(worst, float(np.abs(mean - (1 - 1 / group) * gradient).max()))
    return Evidence("check", worst < 1e-12, f"mean over all groups of 2, 3, 4 draws = (1 − 1/G)·gradient within {worst:.0e}")


entry(
    "dppo.eq9", DPPO, "Eq 9 and the advantage below it", "The group mean baseline includes the sample itself",
    nature="definition", checks=(_group_baseline,),
    statement="Â = R(y) − mean of the group's rewards, y included: the policy gradient estimate is shrunk by exactly 1 − 1/G, its direction is unbiased.",
    sketch="The baseline's own term correlates with the score: E[R̄ ∇log p(y)] = ∇J/G.",
)  # fmt: skip


@claim(
    "dppo.eq10", DPPO, "Eq 10", "TV as half the mean distance of the ratio from one",
    space=INTERIOR, relation="==", sharpness="identity",
    assumption="supp π ⊆ supp μ", unassumed={"space": STATES}, corrected_by=("dppo.eq10/exact",),
    sketch="Σ|π − μ| over supp μ is E_μ|ρ − 1|; tokens that only π can produce are never sampled and their mass is missed.",
    latex=r"\mathrm{TV}(\mu,\pi)=\tfrac12\,\mathbb{E}_\mu|r-1|",
)  # fmt: skip
def eq10(x: Any) -> tuple[Any, Any]:
    """TV(μ, π) is half the mean of |π/μ − 1| under μ."""
    return 2 * x.tv, x.mean_ratio_distance


@claim(
    "dppo.eq10/exact", DPPO, "Eq 10, without a support assumption", "TV with the unsampled mass",
    nature="ours", space=STATES, relation="==", sharpness="identity",
    sketch="Split Σ|π − μ| at the support of μ.",
    latex=r"\mathrm{TV}(\mu,\pi)=\tfrac12\big(\mathbb{E}_\mu|r-1|+\pi(\mu=0)\big)",
)  # fmt: skip
def eq10_exact(x: Any) -> tuple[Any, Any]:
    """TV(μ, π) is half of E_μ|π/μ − 1| plus half of π's mass where μ vanishes."""
    return 2 * x.tv, x.mean_ratio_distance + 1 - x.covered_mass


def _section_42() -> Evidence:
    mu_low, pi_low, mu_high, pi_high = (exact(q) for q in ("1/10000", "1/100", "99/100", "4/5"))
    moved = mu_high - pi_high
    statements = (
        pi_low / mu_low == 100,
        round(float((pi_high / mu_high).p) / float((pi_high / mu_high).q), 3) == 0.808,
        moved == exact("19/100"),
        compare(exact("4/5"), "<=", pi_high / mu_high) is True,
    )
    unmasked = compare(moved, "<=", exact("1/5"))
    masked = compare(moved, ">", exact("3/20"))
    detail = "ratios 100 and 0.808, mass 0.19 moved; PPO at ε = 0.2 lets it pass, and so does DPPO at δ = 0.2 (binary TV 0.19), not at δ = 0.15"
    return Evidence("computed", all(statements) and unmasked is True and masked is True, detail)


entry(
    "dppo.4.2", DPPO, "section 4.2, worked example", "Numbers of the two-token example",
    proofs=(_section_42,),
    statement="A token going from 10⁻⁴ to 10⁻² has ratio 100; one going from 0.99 to 0.80 has ratio ≈ 0.808 and moves 0.19 of mass, inside PPO's clip range.",
    note="At the threshold δ = 0.2 of the paper's scaling runs, DPPO's own mask does not catch the 0.99 → 0.80 move either.",
)  # fmt: skip


@claim(
    "dppo.eq12", DPPO, "Eq 12", "The mask keeps the policy from leaving the trust region further",
    space=REWARDED, signed=True, given=lambda x: [(5 * x.tv, ">", 1)],
    sketch="The mask drops the outward updates of the tokens that drew them. The others still move: softmax couples all tokens, and raising one that is below its rollout "
    "probability takes mass from others that are below it as well.",
    note="Read as: once TV(μ, π) > δ = 1/5, following the masked gradient does not increase TV(μ, π).",
    latex=r"\mathrm{TV}(\mu,\pi)>\delta\ \Rightarrow\ \tfrac{d}{d\tau}\mathrm{TV}(\mu,\pi_\tau)\le0",
)  # fmt: skip
def eq12(x: Any) -> tuple[Any, Any]:
    """Outside the trust region (TV > 1/5) the exact masked policy gradient does not increase TV to the rollout policy."""
    delta = exact("1/5") if not isinstance(x, SingleState) or x.is_exact else 0.2
    return x.dppo_tv_drift(delta), 0


# ------------------------------------------------------------------------------------- section 4.4, appendix C


@claim(
    "dppo.eq13", DPPO, "Eq 13", "Binary TV is a lower bound", space=STATES, sharpness="tight",
    sketch="Merging all other tokens is a partition; the triangle inequality.",
    latex=r"|\mu(a)-\pi(a)|\le\mathrm{TV}(\mu,\pi)",
    mutants=(Mutant("upper bound", "dies", "the wrong side for a safety test", {"sides": lambda x: (x.tv, x.binary_tv(0))}),),
)  # fmt: skip
def eq13(x: Any) -> tuple[Any, Any]:
    """|μ(a) − π(a)| for any one token is at most TV(μ, π)."""
    return x.binary_tv(0), x.tv


@claim(
    "dppo.eq13/safety", DPPO, "Eq 13 used as a trust-region test", "Small binary TV for every token means small TV",
    space=spaces.single_states(vocab=(4,)), signed=True,
    given=lambda x: [(10 * x.binary_tv(a), "<=", 1) for a in range(4)],
    sketch="A lower bound under a threshold certifies nothing: many tokens may each move a little.",
    note="A reading of how the masks use the binary divergence: if every token that can be sampled passes the test, the policy is inside the region. With V tokens TV "
    "can be V/2 times the threshold.",
)  # fmt: skip
def eq13_safety(x: Any) -> tuple[Any, Any]:
    """If |μ(a) − π(a)| ≤ 1/10 for every token a, then TV(μ, π) ≤ 1/10."""
    return 10 * x.tv, 1


@claim(
    "dppo.eq14", DPPO, "Eq 14", "Binary KL is a lower bound", space=STATES, sharpness="tight",
    sketch="Data processing: merging tokens cannot raise a KL.",
    latex=r"\mathrm{KL}^{\mathrm{Bin}}_a(\mu\|\pi)\le\mathrm{KL}(\mu\|\pi)",
    mutants=(Mutant("other direction", "dies", "KL(π‖μ) does not bound it", {"sides": lambda x: (x.binary_kl(0), x.kl_qp)}),),
)  # fmt: skip
def eq14(x: Any) -> tuple[Any, Any]:
    """The KL(μ‖π) of the partition into one token and the rest is at most KL(μ‖π)."""
    return x.binary_kl(0), x.kl_pq


@claim(
    "dppo.eq15", DPPO, "Eq 15", "Top-k TV as printed, summed over the kept tokens only",
    space=STATES, relation="==", misprint=True, corrected_by=("dppo.c1",),
    sketch="The sum runs over A′ and leaves the bucket of the other tokens out; for a single kept token it is half of Eq 13. Appendix C and Eq 16 sum over A″, bucket included.",
    note="Evidently a slip of one prime: Eq 16 beside it has the bucket.",
    latex=r"\tfrac12\sum_{a\in\mathcal A'}|\mu(a)-\pi(a)| \overset{?}{=} \mathrm{TV}^{\mathcal A''}(\mu,\pi)",
)  # fmt: skip
def eq15(x: Any) -> tuple[Any, Any]:
    """½Σ|μ − π| over the kept tokens is the TV of the reduced distributions (here: the top token and the rest)."""
    return x.topk_tv_head(1), x.topk_tv(1)


def _tail_gap(x: SingleState) -> Any:
    """min(Σ_tail (μ−π)₊, Σ_tail (π−μ)₊): what the bucket of the tail hides."""
    tail = ~np.asarray(divergences.topk_members(x.p, 1))
    difference = x.p - x.q
    over, under = (asum(where(tail & (s * difference > 0), s * difference, 0 * difference)) for s in (1, -1))
    return minimum(over, under)


def _printed_gap() -> Evidence:
    rng = np.random.default_rng(_SEED)
    p, q = (rng.dirichlet(np.full(6, c), size=20000) for c in (0.5, 0.5))
    x = SingleState(p, q)
    tail = ~np.asarray(divergences.topk_members(p, 1))
    mass = (np.where(tail, p + q, 0).sum(-1)) / 2
    gap = np.asarray(x.tv) - np.asarray(x.topk_tv(1))
    return Evidence("check", bool((gap <= mass + 1e-12).all()), f"gap ≤ half the tail's mass of μ and π on {len(p)} states; largest share {float((gap / mass).max()):.3f}")


@claim(
    "dppo.c1", DPPO, "Appendix C.1", "Partition TV is a lower bound, with an exact gap",
    space=STATES, relation="==", sharpness="identity", checks=(_printed_gap,),
    sketch="Inside a cell, Σ|d| − |Σd| = 2 min(Σd₊, Σd₋); cells that are single tokens have no gap. The printed gap bound, half the cell's mass under both, follows.",
    latex=r"\mathrm{TV}-\mathrm{TV}^{\mathcal C}=\sum_j\min\Big(\sum_{C_j}(\mu-\pi)_+,\sum_{C_j}(\pi-\mu)_+\Big)",
)  # fmt: skip
def c1(x: Any) -> tuple[Any, Any]:
    """TV(μ, π) exceeds the TV of the partition {top token, rest} by min(Σ(μ−π)₊, Σ(π−μ)₊) over the rest, hence never falls below it."""
    return x.tv, x.topk_tv(1) + _tail_gap(x)


@claim(
    "dppo.c2", DPPO, "Appendix C.2", "Partition KL is a lower bound, with equality for proportional tails",
    space=STATES, sharpness="tight",
    sketch="Log-sum inequality in each cell; equality iff π/μ is constant on it.",
    latex=r"\mathrm{KL}^{\mathcal C}(\mu\|\pi)\le\mathrm{KL}(\mu\|\pi)",
    mutants=(Mutant("other direction", "dies", "KL(π‖μ) does not bound it", {"sides": lambda x: (x.topk_kl(1), x.kl_qp)}),),
)  # fmt: skip
def c2(x: Any) -> tuple[Any, Any]:
    """KL(μ‖π) of the partition {top token, rest} is at most KL(μ‖π)."""
    return x.topk_kl(1), x.kl_pq


# ------------------------------------------------------------------------------------- appendices B.4 and D


def _gradients_agree() -> Evidence:
    """∇L′ by central differences of E_μ[RΣ(ρ−1)] against the closed form of the classical surrogate, and against ∇J at π = μ."""
    rng = np.random.default_rng(_SEED)
    size = {"vocab": 3, "horizon": 3, "eos": 2, "prompts": 1}
    space = spaces.policy_pairs(reward=(-1.0, 1.0), full_support=True)
    layout = space.blocks(**size)
    values = {k: (rng.dirichlet(np.ones(b.shape[-1]), size=b.shape[:-1]) if k[:2] in ("mu", "pi") else rng.uniform(-1, 1, b.shape))[None] for k, b in layout.items()}
    closed = [np.asarray(g)[0] for g in gradients.surrogate_gradient(space.build(values, **size))]
    h, worst = 1e-5, 0.0
    for t, level in enumerate(closed):
        for c, a in np.ndindex(level.shape):
            shifted = []
            for sign in (1, -1):
                logits = np.log(values[f"pi.{t}"]).copy()
                logits[0, c, a] += sign * h
                moved = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
                shifted.append(float(np.asarray(space.build(values | {f"pi.{t}": moved}, **size).surrogate_reward)[0]))
            worst = max(worst, abs((shifted[0] - shifted[1]) / (2 * h) - level[c, a]))
    same = values | {k.replace("pi", "mu"): v for k, v in values.items() if k.startswith("pi")}
    at_mu: PolicyPair = space.build(same, **size)
    first = gradients.surrogate_gradient(at_mu)
    second = gradients.return_gradient(at_mu.target, at_mu.reward)
    gap = max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in zip(first, second, strict=True))
    ok = worst < 1e-8 and gap < 1e-12
    return Evidence("check", ok, f"∇L′ by differences vs classical form: {worst:.0e}; ∇L at π = μ vs ∇J: {gap:.0e}")


@claim(
    "dppo.b4", DPPO, "Appendix B.4, Eq 21–22", "Classical and sequence-reward surrogate are one function",
    space=COVERED, relation="==", sharpness="identity", checks=(_gradients_agree,),
    hypotheses=("supp π ⊆ supp μ",),
    sketch="E_μ[R Σ(ρ_t − 1)] = Σ_t E_{d_t^μ} Σ_a (π − μ) Q^μ = Σ_t E_{d_t^μ}[E_π A^μ]: the same function of π, so the same gradient everywhere, not only at μ.",
    latex=r"\mathbb{E}_\mu\Big[R\sum_t(\rho_t-1)\Big]=\sum_t\mathbb{E}_{d^\mu_t}\mathbb{E}_{\pi}[A^\mu]",
)  # fmt: skip
def b4(x: Any) -> tuple[Any, Any]:
    """The reward-weighted surrogate equals the sum of expected advantages, so their gradients agree."""
    return x.surrogate_reward, x.surrogate


def _table_of_methods() -> Evidence:
    """Eq 23's weight on a grid of ratios against the definitions of appendix D, written out again."""
    ratio = np.array([0.05, 0.5, 0.79, 0.9, 1.0, 1.1, 1.29, 2.9, 3.5, 40.0])
    old_ratio = ratio[::-1]
    mu = np.full_like(ratio, 0.02)
    pi = mu * ratio
    checked = 0
    for sign in (1.0, -1.0):
        a = np.full((1, ratio.size), sign)
        lp, rlp = np.log(pi)[None], np.log(mu)[None]
        olp = lp - np.log(old_ratio)[None]

        def clip(r: np.ndarray, sign: float = sign) -> np.ndarray:
            return ~((r > 1.28) if sign > 0 else (r < 0.8))

        outward = (ratio > 1) if sign > 0 else (ratio < 1)
        kl = mu * np.log(mu / pi) + (1 - mu) * np.log((1 - mu) / (1 - pi))
        expected = {
            "pg_is": ratio, "pg_tis": np.minimum(ratio, 3), "grpo_clip_higher": ratio * clip(ratio),
            "minirl": ratio * clip(old_ratio), "minirl_tis": np.minimum(ratio, 3) * clip(old_ratio),
            "dppo_binary_tv": ratio * ~(outward & (np.abs(mu - pi) > 0.15)), "dppo_binary_kl": ratio * ~(outward & (kl > 0.05)),
        }  # fmt: skip
        for name, weight in expected.items():
            got = masks.unified_weight(name, lp, rlp, a, old_log_probs=olp)
            if not np.allclose(got, sign * weight[None], rtol=1e-12, atol=0):
                return Evidence("check", False, f"{name} differs from its definition at advantage {sign:+.0f}")
            checked += weight.size
    return Evidence("check", True, f"{checked} weights of seven methods equal their definitions with the printed thresholds")


entry(
    "dppo.eq23", DPPO, "Eq 23, appendix D.1", "One formula for seven policy gradients", nature="definition", checks=(_table_of_methods,),
    statement="Every method of the stability study multiplies ∇log π(y_t) by M_t · min(r_t, C) · Â_t with its own mask M_t and cap C.",
)  # fmt: skip
