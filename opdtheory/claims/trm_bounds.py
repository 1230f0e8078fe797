"""Trust Region Masking, sections 2.5 and 4.4: bounds on the surrogate's error."""

from __future__ import annotations

from typing import Any

from opdtheory import bounds
from opdtheory.claims.sources import TRM
from opdtheory.claims.trm_common import (
    ANY_SUPPORT,
    DELTA,
    FINITE,
    FINITE_LAWS,
    INTERIOR,
    LAWS,
    LONG,
    MULTI_STEP,
    PROOFS,
    UNIT,
    WORST,
    sized,
    vacuous,
)
from opdtheory.elementary import absolute, exact, sqrt
from opdtheory.spaces import policy_pairs, single_states
from opdtheory.verification.claim import Mutant
from opdtheory.verification.registry import claim

_ACTIONS = single_states(values=(0.0, 1.0))
_TWO_STEPS = WORST.with_sizes(*MULTI_STEP)


def _wider_rewards(top: int) -> Mutant:
    space = policy_pairs(reward=(0.0, float(top)), full_support=True, sizes=MULTI_STEP)
    return Mutant(f"reward-range-{top}", "dies", "the bound scales with the range of R", {"space": space})


# ------------------------------------------------------------ 2.5.1 to 2.5.5 the three bounds


@claim(
    "trm.2.5.1",
    TRM,
    "slide 2.5.1",
    "Quadratic bound, TV",
    sketch="Largest |g| ≤ 2ε times 2·TV of the context laws ≤ 2(t−1)ε, summed over t.",
    space=WORST,
    sharpness="loose",
    hypotheses=(UNIT, ANY_SUPPORT),
    depends_on=("trm.2.4", "trm.2.5.1/simulation"),
    proof=f"{PROOFS}#error",
    corrected_by=("ours.s4",),
    latex=r"|\mathrm{Error}|\le2T(T-1)\varepsilon^2",
    useful_when="ε < 1/(√2·T), say; ours.s4 is the exact supremum",
    mutants=(
        _wider_rewards(3),
        Mutant(
            "half",
            "survives",
            "the largest error at ε is Tε(1 − (1−ε)^{T−1}) ≤ T(T−1)ε²",
            {"factor": exact("1/2")},
        ),
        Mutant(
            "linear",
            "dies",
            "T(T−1)ε²/T loses a factor of the horizon",
            {"sides": lambda x: (absolute(x.error), (x.horizon - 1) * x.tv_max * x.tv_max)},
        ),
        Mutant(
            "one-step-fewer",
            "dies",
            "(T−1)(T−2) vanishes at T = 2",
            {"sides": lambda x: (absolute(x.error), bounds.trpo_tv(x.horizon - 1, x.tv_max))},
        ),
    ),
)
def quadratic_tv(x: Any) -> Any:
    """|J(π) − J(μ) − L| ≤ 2T(T−1)ε², ε the largest token TV of any context."""
    return absolute(x.error), bounds.trpo_tv(x.horizon, x.tv_max)


@claim(
    "trm.2.5.1/kl",
    TRM,
    "slide 2.5.1",
    "Quadratic bound, KL",
    sketch="2ε² ≤ δ by Pinsker in the quadratic bound.",
    space=_TWO_STEPS,
    sharpness="loose",
    hypotheses=(UNIT, ANY_SUPPORT),
    depends_on=("trm.2.5.1", "trm.2.5.0/pinsker"),
    proof=f"{PROOFS}#error",
    corrected_by=("ours.s1",),
    latex=r"|\mathrm{Error}|\le T(T-1)\delta",
    vacuous_as_quoted=lambda: vacuous(bounds.trpo_kl(LONG, DELTA)),
    useful_when="δ < 1/(T(T−1)): 6·10⁻⁸ at T = 4096",
    mutants=(
        _wider_rewards(3),
        Mutant(
            "mean-for-max",
            "dies",
            "KL at the first step does not bound later ones",
            {"sides": lambda x: (absolute(x.error), bounds.trpo_kl(x.horizon, x.kl_step(0)))},
        ),
        Mutant(
            "one-step-fewer",
            "dies",
            "(T−1)(T−2) vanishes at T = 2",
            {
                "sides": lambda x: (absolute(x.error), bounds.trpo_kl(x.horizon - 1, x.kl_max)),
                "space": INTERIOR,
            },
        ),
    ),
)
def quadratic_kl(x: Any) -> Any:
    """|J(π) − J(μ) − L| ≤ T(T−1)δ, δ the largest KL(μ‖π) of any context."""
    return absolute(x.error), bounds.trpo_kl(x.horizon, x.kl_max)


@claim(
    "trm.2.5.1/simulation",
    TRM,
    "slide 2.5.1 and A.6",
    "Simulation lemma",
    sketch="d^π π − d^μ μ = (d^π − d^μ)π + d^μ(π − μ): each step adds at most ε.",
    space=LAWS.with_sizes(*MULTI_STEP),
    sharpness="tight",
    hypotheses=(ANY_SUPPORT,),
    proof=f"{PROOFS}#context-laws",
    latex=r"\mathrm{TV}(d_t^\mu,d_t^\pi)\le(t-1)\varepsilon",
    mutants=(
        Mutant(
            "one-step-fewer",
            "dies",
            "t − 1 tokens were drawn",
            {
                "sides": lambda x: (
                    x.marginal_tv(x.horizon - 1),
                    bounds.marginal_tv_simulation(x.horizon - 2, x.tv_max),
                )
            },
        ),
        Mutant(
            "no-growth",
            "dies",
            "differences accumulate",
            {"sides": lambda x: (x.marginal_tv(x.horizon - 1), x.tv_max)},
        ),
    ),
)
def simulation(x: Any) -> Any:
    """The laws of contexts after T − 1 tokens have TV at most (T−1)ε."""
    return x.marginal_tv(x.horizon - 1), bounds.marginal_tv_simulation(x.horizon - 1, x.tv_max)


@claim(
    "trm.2.5.3",
    TRM,
    "slide 2.5.3 and A.7",
    "Context laws by Pinsker",
    sketch="KL of context laws adds up to at most (t−1)δ; Pinsker.",
    space=LAWS.with_sizes(*MULTI_STEP),
    sharpness="asymptotic",
    hypotheses=(ANY_SUPPORT,),
    proof=f"{PROOFS}#context-laws",
    depends_on=("trm.2.5.3/chain", "trm.2.5.0/pinsker"),
    latex=r"\mathrm{TV}(d_t^\mu,d_t^\pi)\le\sqrt{(t-1)\delta/2}",
    mutants=(
        Mutant(
            "pinsker-constant",
            "dies",
            "√(tδ)/2 misreads √(tδ/2)",
            {"sides": lambda x: (x.marginal_tv(x.horizon - 1), sqrt((x.horizon - 1) * x.kl_max) / 2)},
        ),
        Mutant(
            "one-step-fewer",
            "dies",
            "t − 1 tokens were drawn",
            {
                "sides": lambda x: (
                    x.marginal_tv(x.horizon - 1),
                    bounds.marginal_tv_pinsker(x.horizon - 2, x.kl_max),
                ),
                "space": FINITE_LAWS.with_sizes(*MULTI_STEP),
            },
        ),
        Mutant(
            "direction",
            "survives",
            "Pinsker and the chain hold for KL(π‖μ) with contexts of π",
            {
                "sides": lambda x: (
                    x.marginal_tv(x.horizon - 1),
                    bounds.marginal_tv_pinsker(x.horizon - 1, x.reverse_kl_max),
                )
            },
        ),
    ),
)
def marginal_pinsker(x: Any) -> Any:
    """The laws of contexts after T − 1 tokens have TV at most √((T−1)δ/2)."""
    return x.marginal_tv(x.horizon - 1), bounds.marginal_tv_pinsker(x.horizon - 1, x.kl_max)


@claim(
    "trm.2.5.3/chain",
    TRM,
    "slide 2.5.3 and A.7",
    "KL of context laws adds up",
    sketch="The log ratio of two prefixes is the sum of the token log ratios; take means under μ.",
    space=policy_pairs(reward=None, full_support=True).with_sizes(*MULTI_STEP),
    relation="==",
    sharpness="identity",
    hypotheses=("fixed length", FINITE),
    proof=f"{PROOFS}#context-laws",
    latex=r"\mathrm{KL}(d_t^\mu\|d_t^\pi)=\sum_{s<t}E_{d_s^\mu}\mathrm{KL}(c_s)",
    mutants=(
        Mutant(
            "one-step-more",
            "dies",
            "the last step is not in the context",
            {"sides": lambda x: (x.marginal_kl(x.horizon - 1), x.kl_seq)},
        ),
        Mutant(
            "reverse",
            "dies",
            "the reverse divergence chains under π",
            {"sides": lambda x: (x.marginal_kl(x.horizon - 1), x.reverse_kl_seq)},
        ),
    ),
)
def kl_chain(x: Any) -> Any:
    """KL(d_t^μ‖d_t^π) is the sum over s < t of the mean token KL(μ‖π) under μ; here t = T."""
    return x.marginal_kl(x.horizon - 1), sum(x.kl_step(t) for t in range(x.horizon - 1))


@claim(
    "trm.2.5.4",
    TRM,
    "slide 2.5.4",
    "Pinsker-marginal bound",
    sketch="2·max|g|·Σ_t TV(d_t) with max|g| ≤ √(2δ), TV(d_t) ≤ √((t−1)δ/2) and Σ_{k<T} √k ≤ ⅔T^{3/2}.",
    space=WORST,
    sharpness="loose",
    hypotheses=(UNIT, ANY_SUPPORT),
    depends_on=("trm.2.4", "trm.2.5.3"),
    proof=f"{PROOFS}#error",
    corrected_by=("ours.s1",),
    latex=r"|\mathrm{Error}|\le\tfrac43T^{3/2}\delta",
    vacuous_as_quoted=lambda: vacuous(bounds.pinsker_marginal(LONG, DELTA)),
    useful_when="δ < ¾·T^{−3/2}: 2.9·10⁻⁶ at T = 4096",
    note="The order T^{3/2} is an artefact of Pinsker's inequality: |Error| ≤ D ≤ Tδ for every pair of "
    "policies.",
    mutants=(
        _wider_rewards(5),
        Mutant(
            "visited-maximum",
            "survives",
            "the error obeys D, which sees visited contexts only; the proof, not the bound, needs the others",
            {"sides": lambda x: (absolute(x.error), bounds.pinsker_marginal(x.horizon, x.reachable_kl_max))},
        ),
        Mutant(
            "mean-for-max",
            "dies",
            "KL at the first step does not bound later ones",
            {"sides": lambda x: (absolute(x.error), bounds.pinsker_marginal(x.horizon, x.kl_step(0)))},
        ),
        Mutant("constant-cut", "dies", "an eighth of the constant", {"factor": exact("1/8")}),
    ),
)
def pinsker_marginal(x: Any) -> Any:
    """|J(π) − J(μ) − L| ≤ (4/3)T^{3/2}δ, δ the largest KL(μ‖π) of any context, visited or not."""
    return absolute(x.error), bounds.pinsker_marginal(x.horizon, x.kl_max)


@claim(
    "trm.2.5.5",
    TRM,
    "slide 2.5.5",
    "Mixed bound",
    sketch="2·max|g|·Σ_t TV(d_t) with max|g| ≤ √(2δ) and TV(d_t) ≤ √(D/2).",
    space=INTERIOR,
    sharpness="loose",
    hypotheses=(UNIT, FINITE),
    depends_on=("trm.2.4", "trm.2.5.3/chain"),
    proof=f"{PROOFS}#error",
    corrected_by=("ours.s1", "ours.s6"),
    latex=r"|\mathrm{Error}|\le2T\sqrt{\delta D}",
    vacuous_as_quoted=lambda: vacuous(bounds.mixed(LONG, DELTA, exact("1/100"))),
    useful_when="δD < 1/(4T²): D < 1.5·10⁻⁴ at T = 4096, δ = 10⁻⁴",
    note="Linear in T only while D stays of order one; in general D grows like Tδ and the bound like "
    "T^{3/2}.",
    mutants=(
        _wider_rewards(8),
        Mutant(
            "no-horizon",
            "survives",
            "|Error| ≤ D and |Error| ≤ T(T−1)δ/2 already give 2√(δD) at these sizes",
            {"sides": lambda x: (absolute(x.error), 2 * sqrt(x.kl_max * x.kl_seq))},
        ),
        Mutant(
            "no-horizon-no-two",
            "dies",
            "at T ≥ 2 the steps add up",
            {"sides": lambda x: (absolute(x.error), sqrt(x.kl_max * x.kl_seq) / 2)},
        ),
        Mutant(
            "mean-for-max",
            "dies",
            "the geometric mean needs the largest KL",
            {"sides": lambda x: (absolute(x.error), bounds.mixed(x.horizon, x.kl_step(0), x.kl_seq))},
        ),
    ),
)
def mixed(x: Any) -> Any:
    """|J(π) − J(μ) − L| ≤ 2T√(δD), D the KL(μ‖π) of whole responses."""
    return absolute(x.error), bounds.mixed(x.horizon, x.kl_max, x.kl_seq)


# ------------------------------------------------------------ 4.4.1 and later versions

_THREE_STEPS = policy_pairs(reward=None, full_support=True).with_sizes(*sized((2, 3), (3, 3)))


@claim(
    "trm.reverse",
    TRM,
    "slide 4.4.1",
    "The bounds hold for the reverse KL",
    space=_THREE_STEPS,
    sharpness="asymptotic",
    hypotheses=(FINITE,),
    assumption="the sequence divergence is taken over the contexts of π, not of μ",
    unassumed={"sides": lambda x: (x.marginal_tv(x.horizon - 1), sqrt(x.reverse_kl_sum / 2))},
    proof=f"{PROOFS}#error",
    corrected_by=("ours.s6",),
    latex=r"\mathrm{TV}(d_t^\mu,d_t^\pi)\le\sqrt{\tfrac12\textstyle\sum_sE_{d_s^\pi}\mathrm{KL}(\pi\|\mu)(c_s)}",
    sketch="The chain for KL(π‖μ) runs over contexts of π. With the source's D, contexts of μ, the marginal "
    "step fails; the conclusion of the mixed bound survives (ours.s6).",
    mutants=(
        Mutant(
            "half-the-divergence",
            "dies",
            "Pinsker is sharp",
            {"sides": lambda x: (x.marginal_tv(x.horizon - 1), sqrt(x.reverse_kl_seq / 4))},
        ),
        Mutant(
            "forward-contexts",
            "dies",
            "the definition of D in the source",
            {"sides": lambda x: (x.marginal_tv(x.horizon - 1), sqrt(x.reverse_kl_sum / 2))},
        ),
    ),
)
def reverse(x: Any) -> Any:
    """The laws of contexts have TV at most √(D′/2), D′ = Σ_t E KL(π‖μ)(c_t): the marginal step of the mixed
    bound with the reverse divergence."""
    return x.marginal_tv(x.horizon - 1), sqrt(x.reverse_kl_seq / 2)


@claim(
    "trm.reverse/marginal",
    TRM,
    "slide 4.4.1",
    "Pinsker-marginal bound, reverse KL",
    sketch="Pinsker is symmetric in TV, and KL(π‖μ) of the context laws chains under π with every term at most δ′.",
    space=WORST,
    sharpness="loose",
    hypotheses=(UNIT, ANY_SUPPORT),
    depends_on=("trm.2.4",),
    proof=f"{PROOFS}#error",
    latex=r"|\mathrm{Error}|\le\tfrac43T^{3/2}\max_c\mathrm{KL}(\pi\|\mu)(c)",
    mutants=(
        Mutant(
            "one-context", "dies", "T steps", {"sides": lambda x: (absolute(x.error), x.reverse_kl_max / 4)}
        ),
        Mutant(
            "first-step", "dies", "the largest divergence may come later",
            {"sides": lambda x: (absolute(x.error), bounds.pinsker_marginal(x.horizon, x.tv_step(0) ** 2))},
        ),
    ),
)
def reverse_marginal(x: Any) -> Any:
    """|J(π) − J(μ) − L| ≤ (4/3)T^{3/2}δ′, δ′ the largest KL(π‖μ) of any context."""
    return absolute(x.error), bounds.pinsker_marginal_reverse(x.horizon, x.reverse_kl_max)


def _steps(x: Any) -> list[Any]:
    return [x.tv_step(t) for t in range(x.horizon)]


@claim(
    "trm.adaptive",
    TRM,
    "later versions, second-hand",
    "Adaptive bound",
    sketch="Error = Σ_t E_{d_t^μ} Σ_a (π−μ)(a)(V^π − V^μ)(ca), and the difference of values is at most the TV of what follows.",
    space=WORST,
    sharpness="loose",
    hypotheses=(UNIT, ANY_SUPPORT),
    proof=f"{PROOFS}#adaptive",
    corrected_by=("trm.adaptive-centred", "ours.s3"),
    latex=r"|\mathrm{Error}|\le4\sum_tE_{d_t^\mu}[\mathrm{TV}(c_t)]\min\{1,(T-t)\varepsilon,\sqrt{(T-t)\delta/2}\}",
    note="From later versions of the source (arXiv 2512.23075, v2 to v5), known here second-hand. They "
    "still say that every bound needs a maximum over contexts; ours.s1 and ours.s3 need none.",
    mutants=(
        _wider_rewards(3),
        Mutant(
            "one-step-fewer",
            "dies",
            "T − t tokens follow step t",
            {"sides": lambda x: (absolute(x.error), bounds.adaptive([*_steps(x)[1:]], x.tv_max, x.kl_max))},
        ),
        Mutant("eighth", "dies", "an eighth of the constant", {"factor": exact("1/8")}),
    ),
)
def adaptive(x: Any) -> Any:
    """|J(π) − J(μ) − L| ≤ 4 Σ_t E[TV(c_t)]·min(1, (T−t)ε, √((T−t)δ/2))."""
    return absolute(x.error), bounds.adaptive(_steps(x), x.tv_max, x.kl_max)


@claim(
    "trm.adaptive-centred",
    TRM,
    "later versions, second-hand",
    "Adaptive bound, centred",
    sketch="Σ_a |π − μ| = 2·TV and |V^π − V^μ| ≤ min(1, (T−t)ε, √((T−t)δ/2)) for R in [0, 1].",
    space=WORST,
    nature="ours",
    sharpness="tight",
    hypotheses=(UNIT, ANY_SUPPORT),
    proof=f"{PROOFS}#adaptive",
    latex=r"|\mathrm{Error}|\le2\sum_tE_{d_t^\mu}[\mathrm{TV}(c_t)]\min\{1,(T-t)\varepsilon,\sqrt{(T-t)\delta/2}\}",
    mutants=(
        _wider_rewards(2),
        Mutant(
            "one-step-fewer",
            "dies",
            "T − t tokens follow step t",
            {
                "sides": lambda x: (
                    absolute(x.error),
                    bounds.adaptive_centred([*_steps(x)[1:]], x.tv_max, x.kl_max),
                )
            },
        ),
        Mutant("constant-one", "dies", "two is best possible", {"factor": exact("1/2")}),
    ),
)
def adaptive_centred(x: Any) -> Any:
    """The adaptive bound with the constant 2, from differences of mean rewards in [0, 1]."""
    return absolute(x.error), bounds.adaptive_centred(_steps(x), x.tv_max, x.kl_max)
