"""Rethinking the Trust Region in LLM Reinforcement Learning (DPPO), sections 2 and 3: bounds."""

from __future__ import annotations

from typing import Any

import numpy as np

from opdtheory import bounds, spaces
from opdtheory.claims.sources import DPPO
from opdtheory.elementary import exact, maximum
from opdtheory.verification import blocks as bl
from opdtheory.verification import identities
from opdtheory.verification.claim import Claim, Mutant
from opdtheory.verification.evidence import Evidence
from opdtheory.verification.registry import claim

PROCESSES = spaces.discounted_mdps()
PAIRS = spaces.policy_pairs()
SIGNED = spaces.policy_pairs(reward=(-1.0, 1.0))
ANY_LENGTH = spaces.SMALL + spaces.WITH_EOS
COVERED = spaces.policy_pairs(reward=(-1.0, 1.0), sizes=ANY_LENGTH, absolutely_continuous=True)
UNCOVERED = spaces.policy_pairs(reward=(-1.0, 1.0), sizes=ANY_LENGTH)
PROOFS = "docs/proofs/dppo.md"
BOUNDED = "ξ = max |R|"
SURROGATE = "L = Σ_t E_{d_t^μ} E_π A^μ, which is the printed E_μ[R Σ(ρ_t − 1)] where supp π ⊆ supp μ"
SEED = 7


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
    return -x.error, bounds.discounted_printed(x.gamma, x.tv_max, x.adv_max)


@claim(
    "dppo.thm2.1/trpo", DPPO, "Theorem 2.1, with TRPO's constant", "Discounted improvement bound with factor 4",
    space=PROCESSES, sharpness="loose",
    hypotheses=("ξ = max |A^μ(s, a)|", "ε the largest TV of any state"),
    depends_on=("dppo.thm2.1-sharp",), corrected_by=("dppo.thm2.1-sharp",),
    proof=f"{PROOFS}#thm2-1-trpo",
    mutants=(
        Mutant("factor two", "dies", "see dppo.thm2.1", {"factor": exact("1/2")}),
        Mutant("no discount", "dies", "the horizon enters twice",
               {"sides": lambda x: (abs(x.error), 4 * x.adv_max * x.gamma * x.tv_max**2)}),
    ),
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
    rng = np.random.default_rng(SEED)
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
    space=COVERED, relation="==", sharpness="identity", lemmas=(_exact_points,), checks=(_shift_invariance,),
    proof=f"{PROOFS}#thm3-1",
    mutants=(
        Mutant("remainder forgotten", "dies", "the surrogate is the first order only", {"sides": lambda x: (x.improvement, x.surrogate_reward)}),
        Mutant("remainder with the other sign", "dies", "it is subtracted", {"sides": lambda x: (x.improvement, x.surrogate_reward + x.delta)}),
    ),
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
    space=SIGNED, sharpness="tight", vacuous_as_quoted=_quoted_regime, depends_on=("ours.s4",),
    proof=f"{PROOFS}#bounds",
    useful_when="2T(T−1)ε² < the reward's span over 2ξ, that is ε of order 1/T",
    hypotheses=("ξ = max |R|; by shift invariance ξ may be half the reward's span", SURROGATE),
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
    """|J(π) − J(μ) − L| ≤ 2ξT(T − 1)ε², ξ the largest |R| and ε the largest TV of any context."""
    return abs(x.error), bounds.dppo_quadratic(x.horizon, x.tv_max, reward_bound(x))


@claim(
    "dppo.thm3.2/printed", DPPO, "Theorem 3.2 with the surrogate of Eq 5", "Quadratic improvement bound, expectations under the behaviour",
    space=COVERED, sharpness="tight", depends_on=("dppo.thm3.2", "dppo.b4"),
    hypotheses=("ξ = max |R|",),
    proof=f"{PROOFS}#bounds",
    assumption="supp π ⊆ supp μ at every context",
    unassumed={"space": UNCOVERED},
    sketch="Where μ covers π the two surrogates agree. Elsewhere E_μ[R Σ(ρ_t − 1)] does not see the tokens that only π plays.",
    latex=r"J(\pi)-J(\mu)\ge \mathbb{E}_\mu\Big[R\sum_t(\rho_t-1)\Big]-2\xi T(T-1)\varepsilon^2",
    mutants=(
        Mutant("off by one horizon", "dies", "T(T−1) is what Σ(T−t) gives", {"sides": lambda x: (_missed(x), 2 * reward_bound(x) * (x.horizon - 1) ** 2 * x.tv_max**2)}),
        Mutant("mean for maximum", "dies", "the mean TV misses the contexts that only π visits", {"sides": lambda x: (_missed(x), 2 * reward_bound(x) * x.tv_sum**2)}),
    ),
)  # fmt: skip
def thm32_printed(x: Any) -> tuple[Any, Any]:
    """|J(π) − J(μ) − E_μ[R Σ(ρ_t − 1)]| ≤ 2ξT(T − 1)ε²."""
    return _missed(x), bounds.dppo_quadratic(x.horizon, x.tv_max, reward_bound(x))


def _missed(x: Any) -> Any:
    return abs(x.improvement - x.surrogate_reward)


@claim(
    "dppo.b1", DPPO, "Lemma B.1", "Sequence TV is at most the expected token TVs",
    space=PAIRS, sharpness="tight",
    hypotheses=("no condition on supports",),
    proof=f"{PROOFS}#b1",
    sketch="Telescope μ(y) − π(y) over the position of the first replaced factor; the factors behind it sum to one.",
    latex=r"\mathrm{TV}(\mu_T,\pi_T)\le\sum_t\mathbb{E}_{s_t\sim\mu}[\mathrm{TV}(s_t)]",
    mutants=(
        Mutant("largest token only", "dies", "deviations add up over steps", {"sides": lambda x: (x.tv_seq, x.tv_max)}),
        Mutant("first step only", "dies", "later steps differ as well", {"sides": lambda x: (x.tv_seq, x.tv_step(0))}),
    ),
)  # fmt: skip
def b1(x: Any) -> tuple[Any, Any]:
    """TV between the sequence laws is at most the sum over steps of the expected TV at contexts drawn from μ."""
    return x.tv_seq, bounds.sequence_tv_sum(x.tv_sum)


@claim(
    "dppo.b3", DPPO, "Appendix B.3, Eq 19–20", "Linear improvement bound",
    space=SIGNED, sharpness="loose", corrected_by=("ours.s3",), depends_on=("ours.s3",),
    hypotheses=(BOUNDED, SURROGATE),
    proof=f"{PROOFS}#bounds",
    sketch="As Theorem 3.2 with TV(future) ≤ 1. For R ∈ [0, 1] the sharp constant is 1 instead of 4: half for centring the reward, half because μ and π "
    "cannot both be far behind the same deviation.",
    latex=r"|\Delta(\mu,\pi)|\le 4\xi\,\mathbb{E}_\mu\Big[\sum_t \mathrm{TV}(s_t)\Big]",
    mutants=(
        Mutant("a quarter of the constant", "dies", "with R ∈ [−ξ, ξ] half of it is needed", {"sides": lambda x: (abs(x.error), reward_bound(x) * x.tv_sum)}),
        Mutant("largest token only", "dies", "deviations add up over steps", {"sides": lambda x: (abs(x.error), reward_bound(x) * x.tv_max)}),
    ),
)  # fmt: skip
def b3(x: Any) -> tuple[Any, Any]:
    """|J(π) − J(μ) − L| ≤ 4ξ times the sum of expected token TVs under μ."""
    return abs(x.error), bounds.dppo_linear(x.tv_sum, reward_bound(x))


@claim(
    "dppo.b3/composite", DPPO, "end of Appendix B.3", "The smaller of the quadratic and the linear bound",
    space=SIGNED, sharpness="tight", depends_on=("dppo.thm3.2", "dppo.b3"),
    hypotheses=(BOUNDED, SURROGATE),
    proof=f"{PROOFS}#bounds",
    sketch="Both hold, so their minimum does.",
    latex=r"|\Delta|\le\min\Big\{2\xi T(T-1)\varepsilon^2,\ 4\xi\,\mathbb{E}_\mu\Big[\sum_t\mathrm{TV}(s_t)\Big]\Big\}",
    mutants=(
        Mutant("half of both", "dies", "the quadratic bound is attained at T = 2", {"factor": exact("1/2")}),
        Mutant("horizon short by one", "dies", "T(T−1) is what Σ(T−t) gives",
               {"sides": lambda x: (abs(x.error), bounds.dppo_composite(x.horizon - 1, x.tv_max, x.tv_sum, reward_bound(x)))}),
    ),
)  # fmt: skip
def composite(x: Any) -> tuple[Any, Any]:
    """|J(π) − J(μ) − L| is at most the smaller of the quadratic and the linear bound."""
    return abs(x.error), bounds.dppo_composite(x.horizon, x.tv_max, x.tv_sum, reward_bound(x))


@claim(
    "dppo.eq8", DPPO, "Eq 8", "A feasible policy with positive surrogate improves",
    space=PAIRS.with_sizes(*spaces.SMALL[1:]), signed=True,
    given=lambda x: [(x.surrogate, ">", 0), (5 * x.tv_max, "<=", 1)],
    corrected_by=("ours.s8",),
    hypotheses=("R in [0, 1]", "δ = 1/5, every context of the tree"),
    sketch="Within the trust region the remainder Δ can exceed L′: the constraint bounds ε, but Theorem 3.2 needs 2ξT(T−1)ε² < L′, and maximising L′ under the "
    "constraint does not ensure that.",
    note="Read as: solving the constrained problem guarantees stable learning, so a feasible policy with L′ > 0 does not lose return. δ = 1/5 as in the paper's scaling runs.",
    latex=r"L'_\mu(\pi)>0,\ \max_s\mathrm{TV}(s)\le\delta\ \Rightarrow\ J(\pi)\ge J(\mu)",
)  # fmt: skip
def eq8(x: Any) -> tuple[Any, Any]:
    """Where every TV is at most 1/5 and the surrogate is positive, the return does not fall."""
    return -x.improvement, 0
