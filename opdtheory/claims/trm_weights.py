"""Trust Region Masking, sections 2.1 and 2.2: laws of contexts and the spread of importance weights."""

from __future__ import annotations

from typing import Any

from opdtheory import bounds
from opdtheory.claims.sources import TRM
from opdtheory.claims.trm_common import (
    COVERED,
    ENDING,
    FIXED,
    LAWS,
    MULTI_STEP,
    NESTED,
    PROOFS,
    UNIT,
    memoryless,
    on_policy,
    sized,
)
from opdtheory.elementary import exact, maximum
from opdtheory.spaces import policy_pairs, single_states
from opdtheory.verification.claim import Mutant
from opdtheory.verification.identities import symbolic
from opdtheory.verification.registry import CATALOGUE, claim

# ------------------------------------------------------------ 2.1 context laws


@claim(
    "trm.2.1.2",
    TRM,
    "slide 2.1.2",
    "Different policies visit different contexts",
    hypotheses=("responses of fixed length", "t ≥ 2"),
    space=LAWS.with_sizes(*MULTI_STEP),
    corrected_by=("trm.2.1.2-reachable",),
    latex=r"\pi\ne\mu\implies d_t^\pi\ne d_t^\mu\ (t\ge2)",
    sketch="A difference at the last step, or at a context that neither policy reaches, moves no context "
    "law.",
    note="Stated with a modulus so that a search can measure it; where the right side is exactly zero no "
    "modulus helps.",
)
def laws_differ(x: Any) -> Any:
    """Policies that differ at some context have different laws of contexts at some later step: max_c TV(c) is
    at most a thousand times Σ_{t≥2} TV(d_t^μ, d_t^π)."""
    return x.tv_max, 1000 * sum(x.marginal_tv(t) for t in range(1, x.horizon))


@claim(
    "trm.2.1.2-reachable",
    TRM,
    "slide 2.1.2",
    "A visited difference shows in every later context law",
    space=LAWS.with_sizes(*MULTI_STEP),
    nature="ours",
    sharpness="tight",
    hypotheses=(FIXED,),
    proof=f"{PROOFS}#context-laws",
    latex=r"E_{d_s^\mu}\mathrm{TV}(c_s)\le 2\,\mathrm{TV}(d_t^\mu,d_t^\pi)\quad(s<t)",
    sketch="d_s^μ(π − μ) = (d_{s+1}^π − d_{s+1}^μ) − (d_s^π − d_s^μ)π, and TV of prefixes only grows with "
    "their length.",
    mutants=(
        Mutant(
            "constant-one",
            "dies",
            "the difference may be halved by the shift of earlier contexts",
            {"sides": lambda x: (x.tv_step(x.horizon - 2), x.marginal_tv(x.horizon - 1))},
        ),
        Mutant(
            "last-step",
            "dies",
            "the last step comes before no context",
            {"sides": lambda x: (x.tv_step(x.horizon - 1), 2 * x.marginal_tv(x.horizon - 1))},
        ),
        Mutant(
            "unvisited",
            "dies",
            "contexts that nobody visits do not count",
            {"sides": lambda x: (x.tv_max, 2 * x.marginal_tv(x.horizon - 1))},
        ),
        Mutant(
            "early-eos",
            "dies",
            "ended responses leave the context laws",
            {"space": policy_pairs(reward=None, sizes=ENDING)},
        ),
    ),
)
def visited_difference(x: Any) -> Any:
    """On responses of fixed length, E_{d_s^μ} TV(c_s) ≤ 2·TV(d_t^μ, d_t^π) for every s < t: a difference at a
    visited context shows in every later context law."""
    worst = x.tv_step(0)
    for s in range(1, x.horizon - 1):
        worst = maximum(worst, x.tv_step(s))
    return worst, 2 * x.marginal_tv(x.horizon - 1)


# ------------------------------------------------------------ 2.2 importance weights


@claim(
    "trm.2.2.2",
    TRM,
    "slide 2.2.2",
    "The weight of a response is useless at T = 1000",
    hypotheses=("independent tokens, T = 1000",),
    space=single_states(vocab=(2, 3), full_support=True),
    relation=">=",
    signed=True,
    given=lambda x: [(10000 * x.kl_pq, ">", 1)],
    corrected_by=("trm.2.2.2-exact", "trm.2.2.2-bound"),
    latex=r"\mathrm{Var}\prod_{t\le T}\rho_t=O(e^T)",
    sketch="With independent tokens the variance is (1 + χ²)^T − 1 exactly; at χ² = 2·10⁻⁴ it is 0.22 at T "
    "= 1000 and 1.27 at 4096.",
    note="“Useless” is read as a standard deviation at least as large as the mean, which is one, for "
    "independent tokens whose divergence KL(μ‖π) is at least the 10⁻⁴ of the source's own examples.",
)
def weight_useless(x: Any) -> Any:
    """For a thousand independent tokens with token divergence above 10⁻⁴ the importance weight of a response
    has variance at least 1, its squared mean."""
    return (1 + x.chi2_qp) ** 1000 - 1, 1


@claim(
    "trm.2.2.2/order",
    TRM,
    "slide 2.2.2",
    "The variance grows at most by e a token",
    hypotheses=("independent tokens",),
    latex=r"E_\mu W_{t+1}^2\le e\,E_\mu W_t^2",
    space=single_states(vocab=(2, 3), full_support=True),
    relation="<=",
    corrected_by=("trm.2.2.2-exact",),
    sketch="The growth factor a token is 1 + χ², any number above 1.",
    note="The printed order read as an upper bound: each further independent token multiplies E[W²] by at "
    "most e.",
)
def weight_growth(x: Any) -> Any:
    """Each further independent token multiplies the second moment of the importance weight by at most e, that
    is E[W²] = 1 + χ² ≤ 2.7183 for one token."""
    return 1 + x.chi2_qp, exact("27183/10000")


_IID = memoryless((2, 1), (2, 2), (3, 2), (2, 4), (3, 4))


@claim(
    "trm.2.2.2-exact",
    TRM,
    "slide 2.2.2",
    "Variance of the weight for independent tokens",
    space=_IID,
    nature="ours",
    relation="==",
    sharpness="identity",
    hypotheses=("independent, identically distributed tokens",),
    proof=f"{PROOFS}#weights",
    latex=r"\mathrm{Var}_\mu\prod_t\rho_t=(1+\chi^2)^T-1",
    sketch="Second moments of independent factors multiply.",
    proofs=(lambda: symbolic(CATALOGUE.get("trm.2.2.2-exact"), *sized((2, 3), (3, 2))),),
    mutants=(
        Mutant(
            "one-token-fewer",
            "dies",
            "T factors, not T − 1",
            {"sides": lambda x: (x.chi2_seq, (1 + x.chi2_max) ** (x.horizon - 1) - 1)},
        ),
        Mutant(
            "additive",
            "dies",
            "variances of a product do not add",
            {"sides": lambda x: (x.chi2_seq, x.horizon * x.chi2_max)},
        ),
        Mutant(
            "not-independent",
            "dies",
            "with a past that matters the largest χ² is only an upper bound",
            {"space": COVERED},
        ),
    ),
)
def weight_exact(x: Any) -> Any:
    """For independent tokens the variance of ∏ρ_t is exactly (1 + χ²)^T − 1, χ² = χ²(π‖μ) of one token."""
    return x.chi2_seq, (1 + x.chi2_max) ** x.horizon - 1


@claim(
    "trm.2.2.2-bound",
    TRM,
    "slide 2.2.2",
    "Variance of the weight, any policies",
    sketch="E[W_t² | c_t] = W_{t−1}²(1 + χ²(c_t)) ≤ W_{t−1}²(1 + x); T steps.",
    space=COVERED,
    nature="ours",
    sharpness="tight",
    hypotheses=(NESTED,),
    proof=f"{PROOFS}#weights",
    latex=r"\mathrm{Var}_\mu W\le(1+\max_c\chi^2(c))^T-1",
    useful_when="T·max χ² of order one or less",
    mutants=(
        Mutant(
            "mean-for-max",
            "dies",
            "the average over visited contexts does not bound a product",
            {"sides": lambda x: (x.chi2_seq, x.horizon * x.chi2_max)},
        ),
        Mutant(
            "one-token-fewer",
            "dies",
            "T factors, not T − 1",
            {"sides": lambda x: (x.chi2_seq, (1 + x.chi2_max) ** (x.horizon - 1) - 1)},
        ),
    ),
)
def weight_bound(x: Any) -> Any:
    """Var_μ(W) ≤ (1 + x)^T − 1 with x the largest χ²(π‖μ) of any context."""
    return x.chi2_seq, bounds.trajectory_weight_variance(x.horizon, x.chi2_max)


@claim(
    "trm.2.2.4",
    TRM,
    "slide 2.2.4",
    "The surrogate's samples have variance of order T",
    hypotheses=("π = μ, responses of fixed length", "b = E_μ R"),
    space=on_policy(sized((2, 2), (3, 2), (2, 3))),
    corrected_by=("trm.2.2.4-centred",),
    latex=r"\mathrm{Var}\Bigl(A\sum_t\rho_t\Bigr)=O(T)",
    sketch="At π = μ every term is A itself: the terms are fully correlated and the variance is T²·Var(A).",
    note="Order T is read as what it would follow from, terms that do not add up coherently: the variance "
    "of the sum is at most the sum of the T variances.",
)
def surrogate_variance(x: Any) -> Any:
    """The variance of A·Σ_t ρ_t, A = R − E_μ R, is at most the sum of the variances of its T terms A·ρ_t;
    tested at π = μ."""
    return x.surrogate_variance, x.surrogate_term_variance


@claim(
    "trm.2.2.4-centred",
    TRM,
    "slide 2.2.4",
    "The centred surrogate's samples have variance of order T",
    space=COVERED,
    nature="ours",
    sharpness="tight",
    hypotheses=(UNIT, NESTED),
    proof=f"{PROOFS}#weights",
    latex=r"\mathrm{Var}_\mu\Bigl(A\sum_t(\rho_t-1)\Bigr)\le T\max_c\chi^2(c)",
    sketch="ρ_t − 1 are martingale differences with conditional second moment χ²(c_t), and |A| ≤ 1.",
    mutants=(
        Mutant(
            "not-centred",
            "dies",
            "without the −1 the variance does not even vanish at π = μ",
            {
                "sides": lambda x: (
                    x.surrogate_variance,
                    bounds.token_weight_variance(x.horizon, x.chi2_max, 1),
                )
            },
        ),
        Mutant(
            "no-horizon",
            "dies",
            "T terms",
            {
                "sides": lambda x: (
                    x.centred_surrogate_variance,
                    bounds.token_weight_variance(1, x.chi2_max, 1),
                )
            },
        ),
        Mutant(
            "reward-range-2",
            "dies",
            "|A| may then be 2",
            {"space": policy_pairs(reward=(0.0, 2.0), absolutely_continuous=True)},
        ),
    ),
)
def centred_variance(x: Any) -> Any:
    """Var_μ[A·Σ_t(ρ_t − 1)] ≤ T·max_c χ²(π‖μ)(c) for rewards in [0, 1] and the baseline E_μ R."""
    return x.centred_surrogate_variance, bounds.token_weight_variance(x.horizon, x.chi2_max, 1)
