"""DPPO, section 4 and the appendices: group baselines, masks, partition divergences, one formula for the methods."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from opdtheory import divergences, gradients, masks, spaces
from opdtheory.claims.dppo import COVERED, PROOFS, SEED, UNCOVERED
from opdtheory.claims.sources import DPPO
from opdtheory.elementary import absolute, asum, exact, maximum, minimum, where
from opdtheory.tabular import PolicyPair, SingleState
from opdtheory.verification.arithmetic import compare
from opdtheory.verification.claim import Mutant
from opdtheory.verification.evidence import Evidence
from opdtheory.verification.registry import claim, entry

STATES = spaces.single_states()
INTERIOR = spaces.single_states(full_support=True)
REWARDED = spaces.single_states(vocab=(2, 3, 4), full_support=True, values=(0.0, 1.0))


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
    hypotheses=("G independent responses to one prompt",),
    latex=r"\mathbb{E}\Big[\tfrac1G\sum_i\big(R_i-\tfrac1G\sum_jR_j\big)\nabla\log p(y_i)\Big]=\big(1-\tfrac1G\big)\nabla J",
    statement="Â = R(y) − mean of the group's rewards, y included: the policy gradient estimate is shrunk by exactly 1 − 1/G, its direction is unbiased.",
    sketch="The baseline's own term correlates with the score: E[R̄ ∇log p(y)] = ∇J/G.",
)  # fmt: skip


@claim(
    "dppo.eq10", DPPO, "Eq 10", "TV as half the mean distance of the ratio from one",
    space=INTERIOR, relation="==", sharpness="identity",
    assumption="supp π ⊆ supp μ", unassumed={"space": STATES}, corrected_by=("dppo.eq10/exact",),
    proof=f"{PROOFS}#eq10",
    mutants=(
        Mutant("factor forgotten", "dies", "TV is half the distance", {"sides": lambda x: (x.tv, x.mean_ratio_distance)}),
        Mutant("root mean square", "dies", "√χ² is another distance", {"sides": lambda x: (4 * x.tv * x.tv, x.chi2_qp)}),
    ),
    sketch="Σ|π − μ| over supp μ is E_μ|ρ − 1|; tokens that only π can produce are never sampled and their mass is missed.",
    latex=r"\mathrm{TV}(\mu,\pi)=\tfrac12\,\mathbb{E}_\mu|r-1|",
)  # fmt: skip
def eq10(x: Any) -> tuple[Any, Any]:
    """TV(μ, π) is half the mean of |π/μ − 1| under μ."""
    return 2 * x.tv, x.mean_ratio_distance


@claim(
    "dppo.eq10/exact", DPPO, "Eq 10, without a support assumption", "TV with the unsampled mass",
    nature="ours", space=STATES, relation="==", sharpness="identity",
    hypotheses=("no condition on supports",),
    proof=f"{PROOFS}#eq10",
    sketch="Split Σ|π − μ| at the support of μ.",
    mutants=(
        Mutant("unsampled mass forgotten", "dies", "see dppo.eq10", {"sides": lambda x: (2 * x.tv, _ratio_distance(x))}),
        Mutant("unsampled mass twice", "dies", "it counts once", {"sides": lambda x: (2 * x.tv, _ratio_distance(x) + 2 * (1 - x.covered_mass))}),
    ),
    latex=r"\mathrm{TV}(\mu,\pi)=\tfrac12\big(\mathbb{E}_\mu|r-1|+\pi(\mu=0)\big)",
)  # fmt: skip
def eq10_exact(x: Any) -> tuple[Any, Any]:
    """TV(μ, π) is half of E_μ|π/μ − 1| plus half of π's mass where μ vanishes."""
    return 2 * x.tv, _ratio_distance(x) + 1 - x.covered_mass


def _ratio_distance(x: Any) -> Any:
    """E_μ|π/μ − 1|, as a sample mean would have it: ratios of the tokens that μ draws."""
    return x.expect_p(absolute(where(x.p > 0, x.ratio, 0 * x.p) - 1))


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
    hypotheses=("the probabilities as printed",),
    latex=r"\tfrac{10^{-2}}{10^{-4}}=100,\quad \tfrac{0.80}{0.99}\approx0.808,\quad 0.99-0.80=0.19",
    sketch="Arithmetic: the ratio clips the rare token, which moves 0.0099 of mass, and lets the common one pass, which moves 0.19.",
    statement="A token going from 10⁻⁴ to 10⁻² has ratio 100; one going from 0.99 to 0.80 has ratio ≈ 0.808 and moves 0.19 of mass, inside PPO's clip range.",
    note="At the threshold δ = 0.2 of the paper's scaling runs, DPPO's own mask does not catch the 0.99 → 0.80 move either.",
)  # fmt: skip


@claim(
    "dppo.eq12", DPPO, "Eq 12", "The mask keeps the policy from leaving the trust region further",
    space=REWARDED, signed=True, given=lambda x: [(5 * x.tv, ">", 1)], corrected_by=("ours.s8", "dppo.eq13/union"),
    hypotheses=("one state, free logits", "exact expectation over tokens drawn from μ"),
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
    hypotheses=("no condition on supports",), proof=f"{PROOFS}#partition",
    sketch="Merging all other tokens is a partition; the triangle inequality.",
    latex=r"|\mu(a)-\pi(a)|\le\mathrm{TV}(\mu,\pi)",
    mutants=(
        Mutant("upper bound", "dies", "the wrong side for a safety test", {"sides": lambda x: (x.tv, x.binary_tv(0))}),
        Mutant("half of it", "dies", "equality when one token gives what one other takes", {"sides": lambda x: (2 * x.binary_tv(0), x.tv)}),
    ),
)  # fmt: skip
def eq13(x: Any) -> tuple[Any, Any]:
    """|μ(a) − π(a)| for any one token is at most TV(μ, π)."""
    return x.binary_tv(0), x.tv


@claim(
    "dppo.eq13/safety", DPPO, "Eq 13 used as a trust-region test", "Small binary TV for every token means small TV",
    space=spaces.single_states(vocab=(4,)), signed=True, corrected_by=("dppo.eq13/union",),
    hypotheses=("V = 4", "every token of the vocabulary passes"),
    latex=r"\max_a|\mu(a)-\pi(a)|\le\delta\ \overset{?}{\Rightarrow}\ \mathrm{TV}(\mu,\pi)\le\delta",
    given=lambda x: [(10 * x.binary_tv(a), "<=", 1) for a in range(4)],
    sketch="A lower bound under a threshold certifies nothing: many tokens may each move a little.",
    note="A reading of how the masks use the binary divergence: if every token that can be sampled passes the test, the policy is inside the region. With V tokens TV "
    "can be V/2 times the threshold.",
)  # fmt: skip
def eq13_safety(x: Any) -> tuple[Any, Any]:
    """If |μ(a) − π(a)| ≤ 1/10 for every token a, then TV(μ, π) ≤ 1/10."""
    return 10 * x.tv, 1


@claim(
    "dppo.eq13/union", DPPO, "Eq 13 for every token", "What binary TVs of all tokens do bound",
    space=STATES, nature="ours", sharpness="tight",
    hypotheses=("every token of the vocabulary, sampled or not",), proof=f"{PROOFS}#partition",
    sketch="2 TV = Σ_a |μ(a) − π(a)| ≤ V · max_a |μ(a) − π(a)|.",
    latex=r"\mathrm{TV}(\mu,\pi)\le\tfrac V2\max_a|\mu(a)-\pi(a)|",
    useful_when="V·δ < 2: never at the vocabulary of a language model",
    mutants=(
        Mutant("no vocabulary", "dies", "see dppo.eq13/safety", {"sides": lambda x: (x.tv, _largest_binary(x))}),
        Mutant("a hundredth to spare", "dies", "half of an even vocabulary may gain what the other half loses", {"factor": exact("99/100")}),
    ),
)  # fmt: skip
def eq13_union(x: Any) -> tuple[Any, Any]:
    """TV(μ, π) is at most V/2 times the largest |μ(a) − π(a)|: a test of every token bounds TV, at the price of the vocabulary."""
    return x.tv, x.vocab * _largest_binary(x) / 2


def _largest_binary(x: Any) -> Any:
    largest = x.binary_tv(0)
    for a in range(1, x.vocab):
        largest = maximum(largest, x.binary_tv(a))
    return largest


@claim(
    "dppo.eq14", DPPO, "Eq 14", "Binary KL is a lower bound", space=STATES, sharpness="tight",
    hypotheses=("KL(μ‖π)",), proof=f"{PROOFS}#partition",
    sketch="Data processing: merging tokens cannot raise a KL.",
    latex=r"\mathrm{KL}^{\mathrm{Bin}}_a(\mu\|\pi)\le\mathrm{KL}(\mu\|\pi)",
    mutants=(
        Mutant("other direction", "dies", "KL(π‖μ) does not bound it", {"sides": lambda x: (x.binary_kl(0), x.kl_qp)}),
        Mutant("a tenth to spare", "dies", "equality at V = 2", {"factor": exact("9/10")}),
    ),
)  # fmt: skip
def eq14(x: Any) -> tuple[Any, Any]:
    """The KL(μ‖π) of the partition into one token and the rest is at most KL(μ‖π)."""
    return x.binary_kl(0), x.kl_pq


@claim(
    "dppo.eq15", DPPO, "Eq 15", "Top-k TV as printed, summed over the kept tokens only",
    space=STATES, relation="==", misprint=True, corrected_by=("dppo.c1",),
    hypotheses=("K = 1: the top token and the rest",),
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
    rng = np.random.default_rng(SEED)
    p, q = (rng.dirichlet(np.full(6, c), size=20000) for c in (0.5, 0.5))
    x = SingleState(p, q)
    tail = ~np.asarray(divergences.topk_members(p, 1))
    mass = (np.where(tail, p + q, 0).sum(-1)) / 2
    gap = np.asarray(x.tv) - np.asarray(x.topk_tv(1))
    return Evidence("check", bool((gap <= mass + 1e-12).all()), f"gap ≤ half the tail's mass of μ and π on {len(p)} states; largest share {float((gap / mass).max()):.3f}")


@claim(
    "dppo.c1", DPPO, "Appendix C.1", "Partition TV is a lower bound, with an exact gap",
    space=STATES, relation="==", sharpness="identity", checks=(_printed_gap,),
    hypotheses=("no condition on supports",), proof=f"{PROOFS}#partition",
    mutants=(
        Mutant("gap forgotten", "dies", "the bucket hides what its tokens exchange", {"sides": lambda x: (x.tv, x.topk_tv(1))}),
        Mutant("gap twice", "dies", "what is lost inside a cell counts once", {"sides": lambda x: (x.tv, x.topk_tv(1) + 2 * _tail_gap(x))}),
    ),
    sketch="Inside a cell, Σ|d| − |Σd| = 2 min(Σd₊, Σd₋); cells that are single tokens have no gap. The printed gap bound, half the cell's mass under both, follows.",
    latex=r"\mathrm{TV}-\mathrm{TV}^{\mathcal C}=\sum_j\min\Big(\sum_{C_j}(\mu-\pi)_+,\sum_{C_j}(\pi-\mu)_+\Big)",
)  # fmt: skip
def c1(x: Any) -> tuple[Any, Any]:
    """TV(μ, π) exceeds the TV of the partition {top token, rest} by min(Σ(μ−π)₊, Σ(π−μ)₊) over the rest, hence never falls below it."""
    return x.tv, x.topk_tv(1) + _tail_gap(x)


@claim(
    "dppo.c2", DPPO, "Appendix C.2", "Partition KL is a lower bound, with equality for proportional tails",
    space=STATES, sharpness="tight",
    hypotheses=("KL(μ‖π)",), proof=f"{PROOFS}#partition",
    sketch="Log-sum inequality in each cell; equality iff π/μ is constant on it.",
    latex=r"\mathrm{KL}^{\mathcal C}(\mu\|\pi)\le\mathrm{KL}(\mu\|\pi)",
    mutants=(
        Mutant("other direction", "dies", "KL(π‖μ) does not bound it", {"sides": lambda x: (x.topk_kl(1), x.kl_qp)}),
        Mutant("a tenth to spare", "dies", "equality for proportional tails", {"factor": exact("9/10")}),
    ),
)  # fmt: skip
def c2(x: Any) -> tuple[Any, Any]:
    """KL(μ‖π) of the partition {top token, rest} is at most KL(μ‖π)."""
    return x.topk_kl(1), x.kl_pq


# ------------------------------------------------------------------------------------- appendices B.4 and D


def _gradients_agree() -> Evidence:
    """∇L′ by central differences of E_μ[RΣ(ρ−1)] against the closed form of the classical surrogate, and against ∇J at π = μ."""
    rng = np.random.default_rng(SEED)
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
    proof=f"{PROOFS}#b4",
    mutants=(
        Mutant("support dropped", "dies", "ratios do not see what μ never plays", {"space": UNCOVERED}),
        Mutant("improvement", "dies", "the surrogate is not the improvement", {"sides": lambda x: (x.surrogate_reward, x.improvement)}),
    ),
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
    hypotheses=("masks, caps and thresholds as in appendix D",),
    latex=r"\nabla J\approx\mathbb{E}_\mu\Big[\sum_tM_t\min(r_t,C)\hat A_t\nabla\log\pi(y_t|s_t)\Big]",
    sketch="A table of methods, each weight written out a second time and compared on a grid of ratios and both signs of the advantage.",
    statement="Every method of the stability study multiplies ∇log π(y_t) by M_t · min(r_t, C) · Â_t with its own mask M_t and cap C.",
)  # fmt: skip
