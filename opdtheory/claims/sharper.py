"""Sharper bounds on the surrogate's error |J(π) − J(μ) − L|.

Every entry has a complete proof in docs/sharper-results.md; its scalar and polynomial steps are the lemmas
listed here, checked by machine.  μ generates, π is trained, W is the likelihood ratio of a whole response,
D = KL(μ‖π) of whole responses.
"""

from __future__ import annotations

from typing import Any

from opdtheory import bounds
from opdtheory.claims.sharper_steps import (
    SPLIT,
    STEP,
    aligned_reward,
    k3_nonnegative,
    leak,
    leak_then_leave,
    offer,
    remainder_forms,
    split_then_part,
    weierstrass,
)
from opdtheory.claims.sources import OURS
from opdtheory.elementary import absolute
from opdtheory.spaces import policy_pairs
from opdtheory.verification.claim import Mutant
from opdtheory.verification.registry import claim

DOC = "docs/sharper-results.md"
WORST = policy_pairs(reward="extremal")
COVERED = policy_pairs(absolutely_continuous=True)
FREE = policy_pairs()
DOUBLED = policy_pairs(reward=(0.0, 2.0))
UNIT = "R in [0, 1]"
NESTED = "supp π ⊆ supp μ at every context"
ANY_SUPPORT = "no condition on supports"


# ------------------------------------------------------------ the error itself


@claim(
    "ours.s0",
    OURS,
    "s0",
    "The error is a signed measure",
    sketch="Error = Σ_y R(y)n(y) and n sums to zero: a linear functional of R in [0, 1] is extremal at R = 1 where n > 0.",
    space=FREE,
    nature="ours",
    sharpness="tight",
    hypotheses=(UNIT, ANY_SUPPORT),
    proof=f"{DOC}#ours-s0",
    lemmas=(remainder_forms,),
    latex=r"\mathrm{Error}=\sum_yR(y)n(y),\quad \sup_{R\in[0,1]}|\mathrm{Error}|=\tfrac12\sum_y|n(y)|",
    mutants=(
        Mutant(
            "ratios-without-support",
            "dies",
            "E_μ[R Σ(ρ−1)] misses what π plays outside supp μ",
            {"sides": lambda x: (absolute(x.improvement - x.surrogate_reward), x.error_sup)},
        ),
        Mutant("reward-range-2", "dies", "rewards in [0, 2] double the error", {"space": DOUBLED}),
    ),
)
def signed_measure(x: Any) -> Any:
    """For every reward in [0, 1], |J(π) − J(μ) − L| is at most ½ Σ_y |n(y)|, n(y) = π(y) − μ(y) − Σ_t
    μ_{<t}(π_t − μ_t)μ_{>t}, with equality for R = 1 where n > 0."""
    return absolute(x.error), x.error_sup


@claim(
    "ours.s0/attained",
    OURS,
    "s0",
    "The worst reward attains the measure",
    sketch="With R = 1 where n > 0 the sum is the positive part of n, half of Σ|n|.",
    latex=r"\textstyle\sum_yn(y)^+=\tfrac12\sum_y|n(y)|",
    space=WORST,
    nature="ours",
    relation="==",
    sharpness="identity",
    hypotheses=(ANY_SUPPORT,),
    proof=f"{DOC}#ours-s0",
    depends_on=("ours.s0",),
    mutants=(
        Mutant(
            "first-order-only", "dies", "L is not the error", {"sides": lambda x: (x.surrogate, x.error_sup)}
        ),
        Mutant(
            "sequence-tv", "dies", "½Σ|π − μ| is another measure", {"sides": lambda x: (x.error, x.tv_seq)}
        ),
    ),
)
def attained(x: Any) -> Any:
    """With R = 1 where n(y) > 0 and 0 elsewhere the error equals ½ Σ_y |n(y)|."""
    return x.error, x.error_sup


# ------------------------------------------------------------ sequence KL


@claim(
    "ours.s1",
    OURS,
    "s1",
    "Horizon-free bound by the sequence KL",
    space=WORST,
    nature="ours",
    sharpness="asymptotic",
    hypotheses=(UNIT, ANY_SUPPORT),
    proof=f"{DOC}#ours-s1",
    lemmas=(SPLIT, k3_nonnegative),
    depends_on=("ours.s0",),
    structured=offer(leak_then_leave("1/1000"), leak_then_leave("1/10")),
    latex=r"|J(\pi)-J(\mu)-L|\le D_{\mathrm{seq}}=\mathrm{KL}(\mu\|\pi)",
    useful_when=(
        "D_seq < 1; at T = 4096 and token KL 1e-4 it reads 0.41 where the printed bounds read 1677, 35 and 52"
    ),
    sketch="N = W − 1 − Σ(ρ_t − 1) = k3(W) − Σk3(ρ_t); both terms are non-negative with mean D under μ.",
    note=(
        "The best constant is 1 for every value of D: on the leak-then-leave instances the error tends "
        "to D as T → ∞."
    ),
    mutants=(
        Mutant(
            "reverse-kl",
            "dies",
            "KL(π‖μ) ignores contexts that only μ visits",
            {
                "sides": lambda x: (absolute(x.error), x.reverse_kl_seq),
                "structured": offer(split_then_part("1/2")),
            },
        ),
        Mutant(
            "largest-context",
            "dies",
            "the largest token KL does not grow with T, the error does",
            {"sides": lambda x: (absolute(x.error), x.kl_max), "structured": offer(leak("1/2"))},
        ),
        Mutant(
            "reward-range-2",
            "dies",
            "rewards in [0, 2] double the error",
            {"space": DOUBLED, "structured": None},
        ),
    ),
)
def sequence_kl(x: Any) -> Any:
    """|J(π) − J(μ) − L| ≤ D, the KL(μ‖π) of whole responses: no factor of the horizon, no maximum over
    contexts."""
    return absolute(x.error), bounds.sequence_kl(x.kl_seq)


@claim(
    "ours.s1/mean",
    OURS,
    "s1",
    "Both parts of the error have mean D",
    sketch="E_μ W = 1 under nested supports, so E_μ[W − 1 − log W] = −E_μ log W = D.",
    latex=r"E_\mu[k_3(W)]=D_{\mathrm{seq}}",
    space=COVERED,
    nature="ours",
    relation="==",
    sharpness="identity",
    hypotheses=(NESTED,),
    proof=f"{DOC}#ours-s1",
    lemmas=(SPLIT,),
    mutants=(
        Mutant("support-dropped", "dies", "k3 misses what π plays outside supp μ", {"space": FREE}),
        Mutant(
            "token-sum",
            "dies",
            "KL(μ‖π) and its reverse differ",
            {"sides": lambda x: (x.k3_seq, x.reverse_kl_seq)},
        ),
    ),
)
def parts(x: Any) -> Any:
    """E_μ k3(W) = D under nested supports: the response-level part of the error has the same mean as the
    token-level part."""
    return x.k3_seq, x.kl_seq


@claim(
    "ours.s1/mean-tokens",
    OURS,
    "s1",
    "The token part has mean D",
    sketch="E_μ[ρ_t | c_t] = 1 under nested supports; sum −E_μ log ρ_t over the steps.",
    latex=r"E_\mu\textstyle\sum_tk_3(\rho_t)=D_{\mathrm{seq}}",
    space=COVERED,
    nature="ours",
    relation="==",
    sharpness="identity",
    hypotheses=(NESTED,),
    proof=f"{DOC}#ours-s1",
    mutants=(
        Mutant("support-dropped", "dies", "k3 misses what π plays outside supp μ", {"space": FREE}),
        Mutant(
            "reverse",
            "dies",
            "k3 of π/μ under μ estimates KL(μ‖π), not the reverse",
            {"sides": lambda x: (x.k3_sum, x.reverse_kl_sum)},
        ),
    ),
)
def token_part(x: Any) -> Any:
    """E_μ Σ_t k3(ρ_t) = D under nested supports."""
    return x.k3_sum, x.kl_seq


# ------------------------------------------------------------ TV, chi-square, mixed KL


@claim(
    "ours.s3",
    OURS,
    "s3",
    "Expected token TV, constant one",
    space=WORST,
    nature="ours",
    sharpness="tight",
    hypotheses=(UNIT, ANY_SUPPORT),
    proof=f"{DOC}#ours-s3",
    lemmas=(weierstrass,),
    depends_on=("ours.s0",),
    structured=offer(leak(1)),
    latex=r"|J(\pi)-J(\mu)-L|\le\sum_tE_{d_t^\mu}\mathrm{TV}(c_t)",
    sketch="∏min(π_t, μ_t) ≥ μ − Σμ_{<t}(μ_t − π_t)⁺μ_{>t}, so n⁻ ≤ Σμ_{<t}(π_t − μ_t)⁺μ_{>t}.",
    mutants=(
        Mutant(
            "sequence-tv",
            "dies",
            "TV of responses is at most 1, the error is not",
            {"sides": lambda x: (absolute(x.error), x.tv_seq)},
        ),
        Mutant(
            "largest-context",
            "dies",
            "one step's TV does not pay for all",
            {"sides": lambda x: (absolute(x.error), x.tv_max)},
        ),
        Mutant(
            "reward-range-2",
            "dies",
            "rewards in [0, 2] double the error",
            {"space": DOUBLED, "structured": None},
        ),
    ),
)
def expected_tv(x: Any) -> Any:
    """|J(π) − J(μ) − L| ≤ Σ_t E_{d_t^μ}[TV(c_t)]."""
    return absolute(x.error), bounds.expected_tv(x.tv_sum)


@claim(
    "ours.s4",
    OURS,
    "s4",
    "Exact supremum at a maximal TV",
    space=WORST,
    nature="ours",
    sharpness="tight",
    hypotheses=(UNIT, ANY_SUPPORT),
    proof=f"{DOC}#ours-s4",
    lemmas=(weierstrass,),
    depends_on=("ours.s0",),
    structured=offer(leak("1/4"), leak("1/2")),
    latex=r"|J(\pi)-J(\mu)-L|\le T\varepsilon\bigl(1-(1-\varepsilon)^{T-1}\bigr)",
    sketch="s3 less the mass of the coupled runs that deviate exactly once, bounded step by step.",
    mutants=(
        Mutant(
            "exponent-short",
            "dies",
            "T − 2 in the exponent forgets a step",
            {
                "sides": lambda x: (
                    absolute(x.error),
                    x.horizon * x.tv_max * (1 - (1 - x.tv_max) ** max(x.horizon - 2, 0)),
                )
            },
        ),
        Mutant(
            "one-step-fewer",
            "dies",
            "(T − 1) in front forgets a step",
            {
                "sides": lambda x: (
                    absolute(x.error),
                    (x.horizon - 1) * x.tv_max * (1 - (1 - x.tv_max) ** (x.horizon - 1)),
                )
            },
        ),
        Mutant(
            "visited-maximum",
            "dies",
            "the maximum must run over contexts that only π reaches, too",
            {
                "sides": lambda x: (absolute(x.error), bounds.sharp_tv(x.horizon, x.reachable_tv_max)),
                "structured": offer(leak_then_leave("1/4")),
            },
        ),
    ),
)
def sharp_tv(x: Any) -> Any:
    """|J(π) − J(μ) − L| ≤ Tε(1 − (1−ε)^{T−1}), ε the largest token TV of any context."""
    return absolute(x.error), bounds.sharp_tv(x.horizon, x.tv_max)


@claim(
    "ours.s5",
    OURS,
    "s5",
    "χ² and the spread of the reward",
    space=COVERED,
    nature="ours",
    sharpness="tight",
    hypotheses=("any real reward", NESTED),
    proof=f"{DOC}#ours-s5",
    lemmas=(STEP,),
    structured=aligned_reward,
    latex=r"|J(\pi)-J(\mu)-L|\le\mathrm{sd}_\mu(R)\sqrt{E_\mu\textstyle\sum_t(W_{t-1}-1)^2\chi^2(c_t)}",
    sketch="N = Σ(W_{t−1} − 1)(ρ_t − 1) is a sum of martingale differences; Cauchy–Schwarz.",
    mutants=(
        Mutant(
            "variance-for-sd",
            "dies",
            "the variance of a reward in [0, 1] is below its standard deviation",
            {
                "sides": lambda x: (
                    absolute(x.error),
                    x.reward_sd * bounds.chi2_martingale(x.ratio_martingale, x.reward_sd),
                )
            },
        ),
        Mutant(
            "no-root",
            "dies",
            "the second moment of N is not its root",
            {"sides": lambda x: (absolute(x.error), x.reward_sd * x.ratio_martingale)},
        ),
    ),
)
def chi2(x: Any) -> Any:
    """|J(π) − J(μ) − L| ≤ sd_μ(R)·√(E_μ Σ_t (W_{t−1} − 1)² χ²(π‖μ)(c_t))."""
    return absolute(x.error), bounds.chi2_martingale(x.ratio_martingale, x.reward_sd)


@claim(
    "ours.s5/uniform",
    OURS,
    "s5",
    "χ², largest over contexts",
    sketch="E_μ(W_{t−1} − 1)² ≤ (1+x)^{t−1} − 1 by induction; the sum over t telescopes.",
    space=COVERED,
    nature="ours",
    sharpness="tight",
    hypotheses=("any real reward", NESTED),
    proof=f"{DOC}#ours-s5",
    lemmas=(STEP,),
    depends_on=("ours.s5",),
    structured=aligned_reward,
    latex=r"|J(\pi)-J(\mu)-L|\le\mathrm{sd}_\mu(R)\sqrt{(1+x)^T-1-Tx}",
    mutants=(
        Mutant(
            "one-step-fewer",
            "dies",
            "T − 1 in the exponent",
            {
                "sides": lambda x: (
                    absolute(x.error),
                    bounds.chi2_uniform(x.horizon - 1, x.chi2_max, x.reward_sd),
                )
            },
        ),
        Mutant(
            "half-chi2",
            "dies",
            "half the divergence",
            {
                "sides": lambda x: (
                    absolute(x.error),
                    bounds.chi2_uniform(x.horizon, x.chi2_max / 2, x.reward_sd),
                )
            },
        ),
    ),
)
def chi2_uniform(x: Any) -> Any:
    """|J(π) − J(μ) − L| ≤ sd_μ(R)·√((1+x)^T − 1 − Tx), x the largest χ²(π‖μ) of any context."""
    return absolute(x.error), bounds.chi2_uniform(x.horizon, x.chi2_max, x.reward_sd)


_INTERIOR = policy_pairs(reward="extremal", full_support=True)


@claim(
    "ours.s6",
    OURS,
    "s6",
    "Geometric mean of largest and summed KL",
    space=_INTERIOR,
    nature="ours",
    sharpness="loose",
    hypotheses=(UNIT, "full support (for finite values)"),
    proof=f"{DOC}#ours-s6",
    lemmas=(remainder_forms,),
    latex=r"|J(\pi)-J(\mu)-L|\le\sqrt{\tfrac{T(T-1)}2D_{\max}D_{\mathrm{seq}}}",
    sketch=(
        "Error = Σ_t E_{d_t^μ} Σ_a (π−μ)(a)·(V^π − V^μ)(ca); Pinsker on both factors, Cauchy–Schwarz "
        "over steps."
    ),
    note="For T ≥ 3 the forward direction follows from s1; the reverse direction and mixed ones do not.",
    mutants=(
        Mutant(
            "one-step-fewer",
            "dies",
            "T − 1 for T makes it zero at T = 2",
            {"sides": lambda x: (absolute(x.error), bounds.sharp_mixed(x.horizon - 1, x.kl_max, x.kl_seq))},
        ),
        Mutant(
            "product-for-root",
            "dies",
            "the product of the divergences is of second order in both",
            {"sides": lambda x: (absolute(x.error), x.horizon * x.kl_max * x.kl_seq)},
        ),
    ),
)
def sharp_mixed(x: Any) -> Any:
    """|J(π) − J(μ) − L| ≤ √(T(T−1)/2·δD), δ the largest KL(μ‖π) of a context, D their sum over contexts
    that μ visits."""
    return absolute(x.error), bounds.sharp_mixed(x.horizon, x.kl_max, x.kl_seq)


@claim(
    "ours.s6/reverse",
    OURS,
    "s6",
    "The same in reverse KL",
    sketch="As s6: Pinsker holds for either direction, and KL(π‖μ) of what follows chains with every term at most δ′.",
    latex=r"|J(\pi)-J(\mu)-L|\le\sqrt{\tfrac{T(T-1)}2\max_c\mathrm{KL}(\pi\|\mu)(c)\,\sum_tE_{d_t^\mu}\mathrm{KL}(\pi\|\mu)(c_t)}",
    space=_INTERIOR,
    nature="ours",
    sharpness="loose",
    hypotheses=(UNIT, "full support (for finite values)"),
    proof=f"{DOC}#ours-s6",
    lemmas=(remainder_forms,),
    mutants=(
        Mutant(
            "one-step-fewer",
            "dies",
            "T − 1 for T makes it zero at T = 2",
            {
                "sides": lambda x: (
                    absolute(x.error),
                    bounds.sharp_mixed_reverse(x.horizon - 1, x.reverse_kl_max, x.reverse_kl_sum),
                )
            },
        ),
        Mutant(
            "product-for-root",
            "dies",
            "the product of the divergences is of second order in both",
            {"sides": lambda x: (absolute(x.error), x.horizon * x.reverse_kl_max * x.reverse_kl_sum)},
        ),
    ),
)
def sharp_mixed_reverse(x: Any) -> Any:
    """|J(π) − J(μ) − L| ≤ √(T(T−1)/2·δ′D′) with KL(π‖μ) in both places, D′ averaged over contexts that μ
    visits."""
    return absolute(x.error), bounds.sharp_mixed_reverse(x.horizon, x.reverse_kl_max, x.reverse_kl_sum)


@claim(
    "ours.s6/crossed",
    OURS,
    "s6",
    "Largest reverse KL with summed forward KL",
    sketch="As s6: the largest divergence bounds what follows, the summed one the step itself, and each may take its own direction.",
    latex=r"|J(\pi)-J(\mu)-L|\le\sqrt{\tfrac{T(T-1)}2\max_c\mathrm{KL}(\pi\|\mu)(c)\,D_{\mathrm{seq}}}",
    space=_INTERIOR,
    nature="ours",
    sharpness="loose",
    hypotheses=(UNIT, "full support (for finite values)"),
    proof=f"{DOC}#ours-s6",
    lemmas=(remainder_forms,),
    mutants=(
        Mutant(
            "one-step-fewer",
            "dies",
            "T − 1 for T makes it zero at T = 2",
            {
                "sides": lambda x: (
                    absolute(x.error),
                    bounds.sharp_mixed(x.horizon - 1, x.reverse_kl_max, x.kl_seq),
                )
            },
        ),
        Mutant(
            "product-for-root",
            "dies",
            "the product of the divergences is of second order in both",
            {"sides": lambda x: (absolute(x.error), x.horizon * x.reverse_kl_max * x.kl_seq)},
        ),
    ),
)
def sharp_mixed_crossed(x: Any) -> Any:
    """|J(π) − J(μ) − L| ≤ √(T(T−1)/2·δ′D), δ′ the largest KL(π‖μ), D the summed KL(μ‖π)."""
    return absolute(x.error), bounds.sharp_mixed_crossed(x.horizon, x.reverse_kl_max, x.kl_seq)
