"""Trust Region Masking, sections 2.1 to 2.3: context laws, importance weights, the surrogate and its identity."""

from __future__ import annotations

from math import comb
from typing import Any


from opdtheory import bounds
from opdtheory.claims.sources import TRM
from opdtheory.claims.trm_common import (
    ANY_SUPPORT, COVERED, FIXED, FREE, LAWS, MULTI_STEP, NESTED, PROOFS, TWO_PROMPTS, UNIT, WITH_EOS, memoryless, on_policy, sized,
)  # fmt: skip
from opdtheory.elementary import exact, maximum
from opdtheory.spaces import SMALL, policy_pairs, single_states
from opdtheory.tabular import PolicyPair
from opdtheory.verification.claim import Mutant
from opdtheory.verification.identities import random_points, symbolic
from opdtheory.verification.registry import claim

# ------------------------------------------------------------ 2.1 context laws


@claim(
    "trm.2.1.2", TRM, "slide 2.1.2", "Different policies visit different contexts", space=LAWS.with_sizes(*MULTI_STEP),
    corrected_by=("trm.2.1.2-reachable",), latex=r"\pi\ne\mu\implies d_t^\pi\ne d_t^\mu\ (t\ge2)",
    sketch="A difference at the last step, or at a context that neither policy reaches, moves no context law.",
    note="Stated with a modulus so that a search can measure it; where the right side is exactly zero no modulus helps.",
)  # fmt: skip
def laws_differ(x: Any) -> Any:
    """Policies that differ at some context have different laws of contexts at some later step: max_c TV(c) is at most a
    thousand times Σ_{t≥2} TV(d_t^μ, d_t^π)."""
    return x.tv_max, 1000 * sum(x.marginal_tv(t) for t in range(1, x.horizon))


@claim(
    "trm.2.1.2-reachable", TRM, "slide 2.1.2", "A visited difference shows in every later context law",
    space=LAWS.with_sizes(*MULTI_STEP), nature="ours", sharpness="tight", hypotheses=(FIXED,), proof=f"{PROOFS}#context-laws",
    latex=r"E_{d_s^\mu}\mathrm{TV}(c_s)\le 2\,\mathrm{TV}(d_t^\mu,d_t^\pi)\quad(s<t)",
    sketch="d_s^μ(π − μ) = (d_{s+1}^π − d_{s+1}^μ) − (d_s^π − d_s^μ)π, and TV of prefixes only grows with their length.",
    mutants=(
        Mutant("constant-one", "dies", "the difference may be halved by the shift of earlier contexts",
               {"sides": lambda x: (x.tv_step(x.horizon - 2), x.marginal_tv(x.horizon - 1))}),
        Mutant("last-step", "dies", "the last step comes before no context",
               {"sides": lambda x: (x.tv_step(x.horizon - 1), 2 * x.marginal_tv(x.horizon - 1))}),
        Mutant("unvisited", "dies", "contexts that nobody visits do not count", {"sides": lambda x: (x.tv_max, 2 * x.marginal_tv(x.horizon - 1))}),
        Mutant("early-eos", "dies", "ended responses leave the context laws", {"space": policy_pairs(reward=None, sizes=WITH_EOS)}),
    ),
)  # fmt: skip
def visited_difference(x: Any) -> Any:
    """On responses of fixed length, E_{d_s^μ} TV(c_s) ≤ 2·TV(d_t^μ, d_t^π) for every s < t: a difference at a visited context
    shows in every later context law."""
    worst = x.tv_step(0)
    for s in range(1, x.horizon - 1):
        worst = maximum(worst, x.tv_step(s))
    return worst, 2 * x.marginal_tv(x.horizon - 1)


# ------------------------------------------------------------ 2.2 importance weights


@claim(
    "trm.2.2.2", TRM, "slide 2.2.2", "The weight of a response is useless at T = 1000",
    space=single_states(vocab=(2, 3), full_support=True), relation=">=", signed=True,
    given=lambda x: [(10000 * x.kl_pq, ">", 1)], corrected_by=("trm.2.2.2-exact", "trm.2.2.2-bound"),
    latex=r"\mathrm{Var}\prod_{t\le T}\rho_t=O(e^T)",
    sketch="With independent tokens the variance is (1 + χ²)^T − 1 exactly; at χ² = 2·10⁻⁴ it is 0.22 at T = 1000 and 1.27 at 4096.",
    note="“Useless” is read as a standard deviation at least as large as the mean, which is one, for independent tokens whose "
         "divergence KL(μ‖π) is at least the 10⁻⁴ of the source's own examples.",
)  # fmt: skip
def weight_useless(x: Any) -> Any:
    """For a thousand independent tokens with token divergence above 10⁻⁴ the importance weight of a response has variance at
    least 1, its squared mean."""
    return (1 + x.chi2_qp) ** 1000 - 1, 1


@claim(
    "trm.2.2.2/order", TRM, "slide 2.2.2", "The variance grows at most by e a token",
    space=single_states(vocab=(2, 3), full_support=True), relation="<=",
    corrected_by=("trm.2.2.2-exact",), sketch="The growth factor a token is 1 + χ², any number above 1.",
    note="The printed order read as an upper bound: each further independent token multiplies E[W²] by at most e.",
)  # fmt: skip
def weight_growth(x: Any) -> Any:
    """Each further independent token multiplies the second moment of the importance weight by at most e, that is
    E[W²] = 1 + χ² ≤ 2.7183 for one token."""
    return 1 + x.chi2_qp, exact("27183/10000")


_IID = memoryless((2, 1), (2, 2), (3, 2), (2, 4), (3, 4))


@claim(
    "trm.2.2.2-exact", TRM, "slide 2.2.2", "Variance of the weight for independent tokens", space=_IID, nature="ours",
    relation="==", sharpness="identity", hypotheses=("independent, identically distributed tokens",), proof=f"{PROOFS}#weights",
    latex=r"\mathrm{Var}_\mu\prod_t\rho_t=(1+\chi^2)^T-1",
    sketch="Second moments of independent factors multiply.",
    proofs=(lambda: symbolic(weight_exact, *sized((2, 3), (3, 2))),),
    mutants=(
        Mutant("one-token-fewer", "dies", "T factors, not T − 1",
               {"sides": lambda x: (x.chi2_seq, (1 + x.chi2_max) ** (x.horizon - 1) - 1)}),
        Mutant("additive", "dies", "variances of a product do not add", {"sides": lambda x: (x.chi2_seq, x.horizon * x.chi2_max)}),
        Mutant("not-independent", "dies", "with a past that matters the largest χ² is only an upper bound", {"space": COVERED}),
    ),
)  # fmt: skip
def weight_exact(x: Any) -> Any:
    """For independent tokens the variance of ∏ρ_t is exactly (1 + χ²)^T − 1, χ² = χ²(π‖μ) of one token."""
    return x.chi2_seq, (1 + x.chi2_max) ** x.horizon - 1


@claim(
    "trm.2.2.2-bound", TRM, "slide 2.2.2", "Variance of the weight, any policies", space=COVERED, nature="ours", sharpness="tight",
    hypotheses=(NESTED,), proof=f"{PROOFS}#weights", latex=r"\mathrm{Var}_\mu W\le(1+\max_c\chi^2(c))^T-1",
    useful_when="T·max χ² of order one or less",
    mutants=(
        Mutant("mean-for-max", "dies", "the average over visited contexts does not bound a product",
               {"sides": lambda x: (x.chi2_seq, x.horizon * x.chi2_max)}),
        Mutant("one-token-fewer", "dies", "T factors, not T − 1",
               {"sides": lambda x: (x.chi2_seq, (1 + x.chi2_max) ** (x.horizon - 1) - 1)}),
    ),
)  # fmt: skip
def weight_bound(x: Any) -> Any:
    """Var_μ(W) ≤ (1 + x)^T − 1 with x the largest χ²(π‖μ) of any context."""
    return x.chi2_seq, bounds.trajectory_weight_variance(x.horizon, x.chi2_max)


@claim(
    "trm.2.2.4", TRM, "slide 2.2.4", "The surrogate's samples have variance of order T",
    space=on_policy(sized((2, 2), (3, 2), (2, 3))),
    corrected_by=("trm.2.2.4-centred",), latex=r"\mathrm{Var}\Bigl(A\sum_t\rho_t\Bigr)=O(T)",
    sketch="At π = μ every term is A itself: the terms are fully correlated and the variance is T²·Var(A).",
    note="Order T is read as what it would follow from, terms that do not add up coherently: the variance of the sum is at most "
         "the sum of the T variances.",
)  # fmt: skip
def surrogate_variance(x: Any) -> Any:
    """The variance of A·Σ_t ρ_t, A = R − E_μ R, is at most the sum of the variances of its T terms A·ρ_t; tested at π = μ."""
    return x.surrogate_variance, x.surrogate_term_variance


@claim(
    "trm.2.2.4-centred", TRM, "slide 2.2.4", "The centred surrogate's samples have variance of order T", space=COVERED, nature="ours",
    sharpness="tight", hypotheses=(UNIT, NESTED), proof=f"{PROOFS}#weights",
    latex=r"\mathrm{Var}_\mu\Bigl(A\sum_t(\rho_t-1)\Bigr)\le T\max_c\chi^2(c)",
    sketch="ρ_t − 1 are martingale differences with conditional second moment χ²(c_t), and |A| ≤ 1.",
    mutants=(
        Mutant("not-centred", "dies", "without the −1 the variance does not even vanish at π = μ",
               {"sides": lambda x: (x.surrogate_variance, bounds.token_weight_variance(x.horizon, x.chi2_max, 1))}),
        Mutant("no-horizon", "dies", "T terms", {"sides": lambda x: (x.centred_surrogate_variance, bounds.token_weight_variance(1, x.chi2_max, 1))}),
        Mutant("reward-range-2", "dies", "|A| may then be 2", {"space": policy_pairs(reward=(0.0, 2.0), absolutely_continuous=True)}),
    ),
)  # fmt: skip
def centred_variance(x: Any) -> Any:
    """Var_μ[A·Σ_t(ρ_t − 1)] ≤ T·max_c χ²(π‖μ)(c) for rewards in [0, 1] and the baseline E_μ R."""
    return x.centred_surrogate_variance, bounds.token_weight_variance(x.horizon, x.chi2_max, 1)


# ------------------------------------------------------------ 2.2 the surrogate at the reference


def _derivative_weights(degree: int) -> list[Any]:
    """Weights w_k with p′(0) = Σ_k w_k p(k/n) for every polynomial p of this degree n."""
    n = degree
    weights = [exact((-1) ** (k + 1) * comb(n, k)) * n / k for k in range(1, n + 1)]
    return [-sum(weights, exact(0)), *weights]


def _return_between(x: PolicyPair, k: int) -> Any:
    """J of the policy that is k/T of the way from μ to π at every context."""
    n = x.horizon
    levels = [(k * b + (n - k) * a) / n for a, b in zip(x.behavior.levels, x.target.levels, strict=True)]
    return PolicyPair.from_levels(x.tree, levels, levels, x.reward, validate=False).J_behavior


@claim(
    "trm.2.2.5/grad", TRM, "slide 2.2.5", "The surrogate is tangent to J", space=FREE, relation="==", sharpness="identity",
    hypotheses=(ANY_SUPPORT,), latex=r"\nabla L|_{\pi=\mu}=\nabla J|_{\pi=\mu}", proof=f"{PROOFS}#tangent",
    sketch="L is linear in π; the derivative of the polynomial s ↦ J(μ + s(π − μ)) at 0 is L(π), in every direction and so for every parametrisation.",
    proofs=(lambda: symbolic(tangent, *sized((2, 2), (3, 2), (2, 3))),),
    mutants=(
        Mutant("improvement", "dies", "away from μ the improvement is not the surrogate", {"sides": lambda x: (x.improvement, x.surrogate)}),
        Mutant("target-contexts", "dies", "the gradient is taken where μ goes", {"sides": lambda x: (x.gap_sum_target, x.surrogate)}),
    ),
)  # fmt: skip
def tangent(x: Any) -> Any:
    """The derivative of J at μ in the direction of any π equals L(π): ∇L = ∇J at π = μ."""
    weights = _derivative_weights(x.horizon)
    if x.behavior.is_exact:
        slope = sum(int(w.p) * _return_between(x, k) / int(w.q) for k, w in enumerate(weights))
    else:
        slope = sum(float(w.p) / float(w.q) * _return_between(x, k) for k, w in enumerate(weights))
    return slope, x.surrogate


@claim(
    "trm.2.2.5", TRM, "slide 2.2.5", "The surrogate vanishes at the reference", space=on_policy(sized((2, 2), (3, 3))), relation="==", sharpness="identity",
    hypotheses=("b = E_μ R",), assumption=FIXED, unassumed={"space": on_policy(WITH_EOS)}, corrected_by=("trm.2.2.5-length",),
    latex=r"L(\mu)=E_\mu[A\cdot T]=0", proof=f"{PROOFS}#tangent",
    sketch="At π = μ the surrogate is E[(R − b)·|y|], which is b-free only for one length.",
    lemmas=(lambda: random_points(reference_value, *sized((2, 2), (3, 2), (2, 3)), degree=8),),
)  # fmt: skip
def reference_value(x: Any) -> Any:
    """E_μ[(R − E_μ R)·Σ_t ρ_t] = 0 at π = μ."""
    return x.surrogate_ratio, 0


@claim(
    "trm.2.2.5-length", TRM, "slide 2.2.5", "The surrogate at the reference, any length", space=on_policy(WITH_EOS), nature="ours",
    relation="==", sharpness="identity", hypotheses=("b = E_μ R",), proof=f"{PROOFS}#tangent",
    latex=r"L(\mu)=\mathrm{Cov}_\mu(R,|y|)+(E_\mu R-b)\,E_\mu|y|",
    lemmas=(lambda: random_points(reference_length, *sized((2, 2), (2, 3), eos=True), degree=8),),
    note="Written with the baseline b = E_μ R; another baseline adds (E_μ R − b)·E_μ|y|. Rewarding long correct responses biases L "
         "upwards, whatever the policy; Σ_t(ρ_t − 1) in place of Σ_t ρ_t removes the term.",
    mutants=(
        Mutant("length-ignored", "dies", "reward and length are correlated", {"sides": lambda x: (x.surrogate_ratio, 0)}),
        Mutant("off-policy", "dies", "away from π = μ the ratios matter", {"space": policy_pairs(sizes=WITH_EOS)}),
    ),
)  # fmt: skip
def reference_length(x: Any) -> Any:
    """E_μ[(R − E_μ R)·Σ_t ρ_t] at π = μ equals Cov_μ(R, |y|), the covariance of reward and response length."""
    return x.surrogate_ratio, x.reward_length_covariance


@claim(
    "trm.2.2.6", TRM, "slide 2.2.6", "Does a positive surrogate promise improvement?", space=FREE, nature="question", relation=">", signed=True,
    given=lambda x: [(x.surrogate, ">", 0)], corrected_by=("trm.2.6.1", "ours.s1"), latex=r"L(\pi)>0\overset{?}{\implies}J(\pi)>J(\mu)",
    sketch="No: two changes that each help alone can hurt together, already with two tokens and two steps.",
)  # fmt: skip
def positive_surrogate(x: Any) -> Any:
    """L(π) > 0 implies J(π) > J(μ)."""
    return x.improvement, 0


# ------------------------------------------------------------ 2.3 the identity

_PDI_SIZES = (*sized((2, 2), (3, 3)), *WITH_EOS[1:2], *TWO_PROMPTS[1:])


@claim(
    "trm.pdi", TRM, "slide 2.3.1 and A.3", "Performance difference identity", space=FREE.with_sizes(*_PDI_SIZES), relation="==",
    sharpness="identity", hypotheses=(ANY_SUPPORT,), latex=r"J(\pi)-J(\mu)=\sum_tE_{d_t^\pi}[g_t]", proof=f"{PROOFS}#pdi",
    sketch="Telescope V^μ along a response of π.",
    proofs=(
        lambda: symbolic(performance_difference, *sized((2, 2), (3, 2), (2, 3)), *sized((2, 2), (3, 2), eos=True), *sized((2, 2), prompts=2)),
    ),
    lemmas=(lambda: random_points(performance_difference, *sized((3, 3), (2, 5)), degree=16),),
    mutants=(
        Mutant("contexts-of-mu", "dies", "under d^μ it is the surrogate", {"sides": lambda x: (x.J_target - x.J_behavior, x.surrogate)}),
        Mutant("minus-sign", "dies", "the other direction has the advantages of π",
               {"sides": lambda x: (x.J_behavior - x.J_target, x.gap_sum_target)}),
    ),
)  # fmt: skip
def performance_difference(x: Any) -> Any:
    """J(π) − J(μ) = Σ_t E_{d_t^π}[g_t], g_t(c) the advantage of μ averaged over π's next token."""
    return x.J_target - x.J_behavior, x.gap_sum_target


_COVERED_PLAIN = policy_pairs(absolutely_continuous=True, sizes=(*sized((2, 2), (3, 3)), *TWO_PROMPTS[1:]))


@claim(
    "trm.a4", TRM, "A.4", "Trajectory and token advantages give one surrogate", space=_COVERED_PLAIN, relation="==", sharpness="identity",
    hypotheses=("b = E_μ R (or any b(x) with mean zero error over prompts)", NESTED), assumption=FIXED,
    unassumed={"space": policy_pairs(absolutely_continuous=True, sizes=WITH_EOS)}, proof=f"{PROOFS}#pdi",
    latex=r"E_\mu\Bigl[(R-b)\sum_t\rho_t\Bigr]=\sum_tE_{d_t^\mu}[g_t]",
    lemmas=(lambda: random_points(surrogate_forms, *sized((2, 2), (3, 2), (2, 3)), degree=12),),
    sketch="The difference is Σ_t E_{d_t^μ}[V(c_t) − b]: zero if every response has T tokens, Cov(R, length) if not.",
    mutants=(
        Mutant("support-dropped", "dies", "ratios do not see what μ never plays", {"space": policy_pairs(sizes=SMALL)}),
        Mutant("without-ratios", "dies", "the surrogate is not the error", {"sides": lambda x: (x.surrogate_ratio, x.improvement)}),
    ),
)  # fmt: skip
def surrogate_forms(x: Any) -> Any:
    """E_μ[(R − E_μ R)·Σ_t ρ_t] = Σ_t E_{d_t^μ}[g_t]."""
    return x.surrogate_ratio, x.surrogate


@claim(
    "trm.a4/telescope", TRM, "A.4, key identity", "Token advantages add up to R − E R", space=policy_pairs(sizes=TWO_PROMPTS), relation="==",
    misprint=True, corrected_by=("trm.a4-telescope",), latex=r"\sum_tA_t=R-E_\mu[R]",
    sketch="The telescope starts at V(x), the value of the prompt at hand.",
    note="A misprint if E_μ[R] was meant given the prompt; with the expectation over prompts used elsewhere in the source it fails.",
)  # fmt: skip
def telescope(x: Any) -> Any:
    """On every response Σ_t A_t = R − E_μ[R], the mean over prompts included."""
    return x.telescope_gap, 0


@claim(
    "trm.a4-telescope", TRM, "A.4, key identity", "Token advantages add up to R − V(x)", space=policy_pairs(sizes=(*sized((2, 2)), *WITH_EOS[1:3])), nature="ours",
    relation="==", sharpness="identity", hypotheses=("one prompt (or E_μ[R] given the prompt)",), proof=f"{PROOFS}#pdi",
    latex=r"\sum_tA_t=R-V^\mu(x)", lemmas=(lambda: random_points(telescope_prompt, *sized((2, 2), (3, 3)), degree=8),),
    mutants=(Mutant("two-prompts", "dies", "with the mean over prompts", {"space": policy_pairs(sizes=TWO_PROMPTS)}),),
)  # fmt: skip
def telescope_prompt(x: Any) -> Any:
    """For one prompt Σ_t A_t = R − E_μ[R | x] on every response, whatever its length."""
    return x.telescope_gap, 0


