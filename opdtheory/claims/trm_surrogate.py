"""Trust Region Masking, sections 2.2 and 2.3: the surrogate at the reference, performance differences."""

from __future__ import annotations

from math import comb
from typing import Any

from opdtheory.claims.sources import TRM
from opdtheory.claims.trm_common import (
    ANY_SUPPORT,
    ENDING,
    FIXED,
    FREE,
    NESTED,
    PROOFS,
    TWO_PROMPTS,
    on_policy,
    sized,
)
from opdtheory.elementary import exact
from opdtheory.spaces import SMALL, policy_pairs
from opdtheory.tabular import PolicyPair
from opdtheory.verification.claim import Mutant
from opdtheory.verification.identities import random_points, symbolic
from opdtheory.verification.registry import CATALOGUE, claim

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
    "trm.2.2.5/grad",
    TRM,
    "slide 2.2.5",
    "The surrogate is tangent to J",
    space=FREE,
    relation="==",
    sharpness="identity",
    hypotheses=(ANY_SUPPORT,),
    latex=r"\nabla L|_{\pi=\mu}=\nabla J|_{\pi=\mu}",
    proof=f"{PROOFS}#tangent",
    sketch="L is linear in π; the derivative of the polynomial s ↦ J(μ + s(π − μ)) at 0 is L(π), in every "
    "direction and so for every parametrisation.",
    proofs=(lambda: symbolic(CATALOGUE.get("trm.2.2.5/grad"), *sized((2, 2), (3, 2), (2, 3))),),
    mutants=(
        Mutant(
            "improvement",
            "dies",
            "away from μ the improvement is not the surrogate",
            {"sides": lambda x: (x.improvement, x.surrogate)},
        ),
        Mutant(
            "target-contexts",
            "dies",
            "the gradient is taken where μ goes",
            {"sides": lambda x: (x.gap_sum_target, x.surrogate)},
        ),
    ),
)
def tangent(x: Any) -> Any:
    """The derivative of J at μ in the direction of any π equals L(π): ∇L = ∇J at π = μ."""
    weights = _derivative_weights(x.horizon)
    if x.behavior.is_exact:
        slope = sum(int(w.p) * _return_between(x, k) / int(w.q) for k, w in enumerate(weights))
    else:
        slope = sum(float(w.p) / float(w.q) * _return_between(x, k) for k, w in enumerate(weights))
    return slope, x.surrogate


@claim(
    "trm.2.2.5",
    TRM,
    "slide 2.2.5",
    "The surrogate vanishes at the reference",
    space=on_policy(sized((2, 2), (3, 3))),
    relation="==",
    sharpness="identity",
    hypotheses=("b = E_μ R",),
    assumption=FIXED,
    unassumed={"space": on_policy(ENDING)},
    corrected_by=("trm.2.2.5-length",),
    latex=r"L(\mu)=E_\mu[A\cdot T]=0",
    proof=f"{PROOFS}#tangent",
    sketch="At π = μ the surrogate is E[(R − b)·|y|], which is b-free only for one length.",
    lemmas=(lambda: random_points(CATALOGUE.get("trm.2.2.5"), *sized((2, 2), (3, 2), (2, 3)), degree=8),),
    mutants=(
        Mutant(
            "no-baseline",
            "dies",
            "L with b = 0 is T·J(μ)",
            {"sides": lambda x: (x.surrogate_ratio + x.J_behavior, 0)},
        ),
        Mutant(
            "any-length",
            "dies",
            "see trm.2.2.5-length",
            {"space": on_policy(ENDING)},
        ),
    ),
)
def reference_value(x: Any) -> Any:
    """E_μ[(R − E_μ R)·Σ_t ρ_t] = 0 at π = μ."""
    return x.surrogate_ratio, 0


@claim(
    "trm.2.2.5-length",
    TRM,
    "slide 2.2.5",
    "The surrogate at the reference, any length",
    sketch="At π = μ every ratio is 1 and the sum counts tokens: E[(R − b)·|y|].",
    space=on_policy(ENDING),
    nature="ours",
    relation="==",
    sharpness="identity",
    hypotheses=("b = E_μ R",),
    proof=f"{PROOFS}#tangent",
    latex=r"L(\mu)=\mathrm{Cov}_\mu(R,|y|)+(E_\mu R-b)\,E_\mu|y|",
    lemmas=(lambda: random_points(CATALOGUE.get("trm.2.2.5-length"), *sized((2, 2), (2, 3), eos=True), degree=8),),
    note="Written with the baseline b = E_μ R; another baseline adds (E_μ R − b)·E_μ|y|. Rewarding long "
    "correct responses biases L upwards, whatever the policy; Σ_t(ρ_t − 1) in place of Σ_t ρ_t removes the "
    "term.",
    mutants=(
        Mutant(
            "length-ignored",
            "dies",
            "reward and length are correlated",
            {"sides": lambda x: (x.surrogate_ratio, 0)},
        ),
        Mutant(
            "off-policy", "dies", "away from π = μ the ratios matter", {"space": policy_pairs(sizes=ENDING)}
        ),
    ),
)
def reference_length(x: Any) -> Any:
    """E_μ[(R − E_μ R)·Σ_t ρ_t] at π = μ equals Cov_μ(R, |y|): reward against length."""
    return x.surrogate_ratio, x.reward_length_covariance


@claim(
    "trm.2.2.6",
    TRM,
    "slide 2.2.6",
    "Does a positive surrogate promise improvement?",
    hypotheses=("R in [0, 1]",),
    space=FREE,
    nature="question",
    relation=">",
    signed=True,
    given=lambda x: [(x.surrogate, ">", 0)],
    corrected_by=("trm.2.6.1", "ours.s1"),
    latex=r"L(\pi)>0\overset{?}{\implies}J(\pi)>J(\mu)",
    sketch="No: two changes that each help alone can hurt together, already with two tokens and two steps.",
)
def positive_surrogate(x: Any) -> Any:
    """L(π) > 0 implies J(π) > J(μ)."""
    return x.improvement, 0


# ------------------------------------------------------------ 2.3 the identity

_PDI_SIZES = (*sized((2, 2), (3, 3)), *ENDING[1:2], *TWO_PROMPTS[1:])


@claim(
    "trm.pdi",
    TRM,
    "slide 2.3.1 and A.3",
    "Performance difference identity",
    space=FREE.with_sizes(*_PDI_SIZES),
    relation="==",
    sharpness="identity",
    hypotheses=(ANY_SUPPORT,),
    latex=r"J(\pi)-J(\mu)=\sum_tE_{d_t^\pi}[g_t]",
    proof=f"{PROOFS}#pdi",
    sketch="Telescope V^μ along a response of π.",
    proofs=(
        lambda: symbolic(
            CATALOGUE.get("trm.pdi"),
            *sized((2, 2), (3, 2), (2, 3)),
            *sized((2, 2), (3, 2), eos=True),
            *sized((2, 2), prompts=2),
        ),
    ),
    lemmas=(lambda: random_points(CATALOGUE.get("trm.pdi"), *sized((3, 3), (2, 5)), degree=16),),
    mutants=(
        Mutant(
            "contexts-of-mu",
            "dies",
            "under d^μ it is the surrogate",
            {"sides": lambda x: (x.J_target - x.J_behavior, x.surrogate)},
        ),
        Mutant(
            "minus-sign",
            "dies",
            "the other direction has the advantages of π",
            {"sides": lambda x: (x.J_behavior - x.J_target, x.gap_sum_target)},
        ),
    ),
)
def performance_difference(x: Any) -> Any:
    """J(π) − J(μ) = Σ_t E_{d_t^π}[g_t], g_t(c) the advantage of μ averaged over π's next token."""
    return x.J_target - x.J_behavior, x.gap_sum_target


_COVERED_PLAIN = policy_pairs(absolutely_continuous=True, sizes=(*sized((2, 2), (3, 3)), *TWO_PROMPTS[1:]))


@claim(
    "trm.a4",
    TRM,
    "A.4",
    "Trajectory and token advantages give one surrogate",
    space=_COVERED_PLAIN,
    relation="==",
    sharpness="identity",
    hypotheses=("b = E_μ R (or any b(x) with mean zero error over prompts)", NESTED),
    assumption=FIXED,
    unassumed={"space": policy_pairs(absolutely_continuous=True, sizes=ENDING)},
    proof=f"{PROOFS}#pdi",
    latex=r"E_\mu\Bigl[(R-b)\sum_t\rho_t\Bigr]=\sum_tE_{d_t^\mu}[g_t]",
    lemmas=(lambda: random_points(CATALOGUE.get("trm.a4"), *sized((2, 2), (3, 2), (2, 3)), degree=12),),
    sketch="The difference is Σ_t E_{d_t^μ}[V(c_t) − b]: zero if every response has T tokens, Cov(R, "
    "length) if not.",
    mutants=(
        Mutant(
            "support-dropped",
            "dies",
            "ratios do not see what μ never plays",
            {"space": policy_pairs(sizes=SMALL)},
        ),
        Mutant(
            "without-ratios",
            "dies",
            "the surrogate is not the error",
            {"sides": lambda x: (x.surrogate_ratio, x.improvement)},
        ),
    ),
)
def surrogate_forms(x: Any) -> Any:
    """E_μ[(R − E_μ R)·Σ_t ρ_t] = Σ_t E_{d_t^μ}[g_t]."""
    return x.surrogate_ratio, x.surrogate


@claim(
    "trm.a4/telescope",
    TRM,
    "A.4, key identity",
    "Token advantages add up to R − E R",
    hypotheses=("two prompts", "E_μ[R] over prompts and responses"),
    space=policy_pairs(sizes=TWO_PROMPTS),
    relation="==",
    misprint=True,
    corrected_by=("trm.a4-telescope",),
    latex=r"\sum_tA_t=R-E_\mu[R]",
    sketch="The telescope starts at V(x), the value of the prompt at hand.",
    note="A misprint if E_μ[R] was meant given the prompt; with the expectation over prompts used elsewhere "
    "in the source it fails.",
)
def telescope(x: Any) -> Any:
    """On every response Σ_t A_t = R − E_μ[R], the mean over prompts included."""
    return x.telescope_gap, 0


@claim(
    "trm.a4-telescope",
    TRM,
    "A.4, key identity",
    "Token advantages add up to R − V(x)",
    sketch="A_t = Q(c_t, a_t) − V(c_t) and Q(c_t, a_t) = V(c_{t+1}): the sum telescopes from V(x) to R.",
    space=policy_pairs(sizes=(*sized((2, 2)), *ENDING[1:3])),
    nature="ours",
    relation="==",
    sharpness="identity",
    hypotheses=("one prompt (or E_μ[R] given the prompt)",),
    proof=f"{PROOFS}#pdi",
    latex=r"\sum_tA_t=R-V^\mu(x)",
    lemmas=(lambda: random_points(CATALOGUE.get("trm.a4-telescope"), *sized((2, 2), (3, 3)), degree=8),),
    mutants=(
        Mutant(
            "other-policy",
            "dies",
            "the advantages are those of μ",
            {"sides": lambda x: (x.telescope_gap + x.improvement, 0)},
        ),
        Mutant(
            "two-prompts", "dies", "with the mean over prompts", {"space": policy_pairs(sizes=TWO_PROMPTS)}
        ),
    ),
)
def telescope_prompt(x: Any) -> Any:
    """For one prompt Σ_t A_t = R − E_μ[R | x] on every response, whatever its length."""
    return x.telescope_gap, 0
