"""Trust Region Masking, section 3, A.1 and A.2: clipping, sampled ratios and what they say of divergences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import flint
import numpy as np

from opdtheory.claims.sources import TRM
from opdtheory.claims.trm_common import (
    ANY_SUPPORT,
    FREE,
    MULTI_STEP,
    PROOFS,
    memoryless,
    sized,
    table,
)
from opdtheory.elementary import absolute, exact, log, maximum, minimum
from opdtheory.spaces import Box, LogBox, Space, policy_pairs, scalars, single_states
from opdtheory.tabular import SingleState
from opdtheory.verification.claim import Mutant
from opdtheory.verification.evidence import Evidence
from opdtheory.verification.registry import claim, entry

# ------------------------------------------------------------ 3.2 clipping

_RATIO = {"rho": LogBox((), 1e-2, 1e2), "eps": Box((), 0.01, 0.5)}
_NEGATIVE = scalars(**_RATIO, advantage=(-1.0, 0.0))


def _clip(x: Any) -> Any:
    return minimum(maximum(x.rho, 1 - x.eps), 1 + x.eps)


@claim(
    "trm.3.2.1",
    TRM,
    "slide 3.2.1, row 2",
    "The clipped term is the less negative one",
    hypotheses=("one token", "ε = 1/5",),
    space=_NEGATIVE,
    relation=">=",
    signed=True,
    misprint=True,
    corrected_by=("trm.3.2.1/selected",),
    given=lambda x: [(x.rho, "<", 1 - x.eps), (x.advantage, "<", 0)],
    latex=r"\rho<1-\epsilon,\ A<0:\ (1-\epsilon)A\ge\rho A",
    sketch="ρ < 1 − ε and A < 0 give ρA > (1−ε)A: the minimum picks the clipped term because it is the more "
    "negative one.",
    note="The selection in the table is right; only the reason in brackets is reversed.",
)
def less_negative(x: Any) -> Any:
    """For ρ < 1 − ε and A < 0 the clipped term (1−ε)A is at least the unclipped ρA."""
    return (1 - x.eps) * x.advantage, x.rho * x.advantage


@claim(
    "trm.3.2.1/selected",
    TRM,
    "slide 3.2.1",
    "Which term the clipped objective selects",
    hypotheses=("one token", "A ≠ 0",),
    space=scalars(**_RATIO, advantage=(-1.0, 1.0)),
    relation="==",
    sharpness="identity",
    latex=r"\min(\rho A,\mathrm{clip}(\rho)A)",
    sketch="For A > 0 the minimum is A·min(ρ, 1+ε), for A < 0 it is A·max(ρ, 1−ε): large ratios with A < 0 "
    "are never cut.",
    proof=f"{PROOFS}#sampled",
    mutants=(
        Mutant(
            "always-clipped",
            "dies",
            "the pessimistic minimum does not cut ρ above 1 + ε when A < 0",
            {
                "sides": lambda x: (
                    minimum(x.rho * x.advantage, _clip(x) * x.advantage),
                    _clip(x) * x.advantage,
                )
            },
        ),
        Mutant(
            "never-clipped",
            "dies",
            "it cuts ρ above 1 + ε when A > 0",
            {"sides": lambda x: (minimum(x.rho * x.advantage, _clip(x) * x.advantage), x.rho * x.advantage)},
        ),
    ),
)
def selected(x: Any) -> Any:
    """min(ρA, clip(ρ, 1−ε, 1+ε)A) equals A⁺·min(ρ, 1+ε) − A⁻·max(ρ, 1−ε), the four rows of the table."""
    up, down = maximum(x.advantage, 0), maximum(-x.advantage, 0)
    chosen = up * minimum(x.rho, 1 + x.eps) - down * maximum(x.rho, 1 - x.eps)
    return minimum(x.rho * x.advantage, _clip(x) * x.advantage), chosen


def _leak() -> list[tuple[str, Any, str]]:
    rho, advantage, eps = exact(100), exact(-1), exact("1/5")
    plain, clipped = rho * advantage, min(max(rho, 1 - eps), 1 + eps) * advantage
    return [("ρA", plain, "-100"), ("clipped", clipped, "-1.2"), ("selected", min(plain, clipped), "-100")]


entry(
    "trm.3.2.2",
    TRM,
    "slide 3.2.2",
    "Gradient leakage example",
    sharpness="identity",
    statement="With ρ = 100, A = −1 and ε = 0.2 the clipped objective keeps the unclipped term −100.",
    proofs=(table("leakage", _leak),),
    hypotheses=("ε = 0.2",),
    latex=r"\min(\rho A,\mathrm{clip}(\rho)A)=-100\quad(\rho=100,\ A=-1)",
    sketch="For A < 0 the minimum is A·max(ρ, 1 − ε): large ratios pass unclipped.",
    depends_on=("trm.3.2.1/selected",),
)


# ------------------------------------------------------------ 3.3 and A.2 one ratio and the divergence

_STATES = single_states(full_support=True)


def _visible(x: Any) -> list[tuple[Any, str, Any]]:
    """Every token has probability above 1/5000 under both policies: no ratio is due to a token never seen."""
    return [(5000 * x.min_p, ">", 1), (5000 * x.min_q, ">", 1)]


@claim(
    "trm.3.3.2",
    TRM,
    "slide 3.3.2",
    "A large sampled ratio means a large divergence",
    hypotheses=("one state",),
    space=_STATES,
    relation=">=",
    signed=True,
    given=lambda x: [(x.max_ratio, ">", 100), *_visible(x)],
    corrected_by=("dppo.eq14",),
    latex=r"|\log\rho_k|\gg\delta\implies D_{\mathrm{KL}}(c_k)\text{ large}",
    sketch="A token that both policies find rare can have any ratio; its weight in KL(μ‖π) is μ(a)·log(μ/π).",
    note="“Large” is read as 1/20 of a nat for a ratio of one hundred. The slide's other point, that "
    "masking a token leaves the largest KL of the policies as it was, is right and applies to masking whole "
    "responses too: the divergence of two policies is no function of which samples one keeps.",
)
def large_ratio(x: Any) -> Any:
    """Where some token has ρ above 100, KL(μ‖π) at that context is at least 1/20; all tokens
    having probability above 1/5000."""
    return 20 * x.kl_pq, 1


@claim(
    "trm.a2/both",
    TRM,
    "A.2",
    "Both tails indicate a large divergence",
    hypotheses=("one state",),
    space=single_states(vocab=(3, 4), full_support=True),
    relation=">=",
    signed=True,
    given=lambda x: [(x.max_ratio, ">", 100), (1, ">", 100 * x.min_ratio), *_visible(x)],
    corrected_by=("dppo.eq14",),
    latex=r"\rho\ll1\text{ and }\rho\gg1\implies D_{\mathrm{KL}}\text{ large}",
    sketch="Both may happen on tokens of small probability under either policy.",
    note="“Large” is read as 1/4 of a nat for one ratio above 100 and one below 1/100 at the same context.",
)
def both_tails(x: Any) -> Any:
    """Where one token has ρ > 100 and another ρ < 1/100, KL(μ‖π) at that
    context is at least 1/4; all tokens having probability above 1/5000."""
    return 4 * x.kl_pq, 1


def _k3(r: Any) -> Any:
    return r - 1 - log(r)


def _tails() -> list[tuple[str, Any, str]]:
    low, high = exact("1/100"), exact(100)
    return [
        ("k3(0.01)", _k3(low), "3.6"),
        ("k3(100)", _k3(high), "94.4"),
        ("|log 0.01|", absolute(log(low)), "4.61"),
        ("|log 100|", absolute(log(high)), "4.61"),
    ]


entry(
    "trm.a2",
    TRM,
    "A.2",
    "Table of k3 and |log ρ|",
    sharpness="identity",
    statement="k3(0.01) = 3.6, k3(100) = 94.4 and |log ρ| = 4.61 at both.",
    proofs=(table("tails", _tails),),
    hypotheses=("ρ = 1/100 and ρ = 100",),
    latex=r"k_3(0.01)\approx3.6,\ k_3(100)\approx94.4,\ |\log\rho|\approx4.61",
    sketch="k3(ρ) = ρ − 1 − log ρ; |log ρ| is symmetric under ρ → 1/ρ, k3 is not.",
)


# ------------------------------------------------------------ A.1 the k3 estimator


def _covered(p: Any, q: Any) -> Any:
    kept = np.where(p > 0, q, 0 * q)
    total = kept.sum(axis=-1, keepdims=True)
    kept = np.where(total == 0, p, kept)
    return kept / kept.sum(axis=-1, keepdims=True)


def _nested_states() -> Space:
    """Pairs with supp q ⊆ supp p: the target plays nothing that the behaviour policy cannot sample."""
    base = single_states()
    build = lambda b, vocab: SingleState(b["p"], _covered(b["p"], b["q"]))  # noqa: E731
    return replace(
        base,
        build=build,
        conditions=lambda x: [(x.support_ok, "==", 1)],
        description="pairs of distributions with supp q ⊆ supp p",
    )


def _truncation() -> Evidence:
    """μ = π cut to its two likeliest tokens of three and renormalised: ρ = 4/5 on every sample."""
    x = SingleState(["5/8", "3/8", "0"], ["1/2", "3/10", "1/5"])
    constant = all(r == exact("4/5") for r in x.ratio[:2])
    k3, kl = flint.arb(x.k3_pq), flint.arb(x.kl_pq)
    said = f"k3 = {float(k3.mid()):.4f} on every sample, KL(μ‖π) = {float(kl.mid()):.4f}"
    return Evidence("lemma", constant and bool(k3 < kl), f"a sampler that keeps 4/5 of π: {said}")


@claim(
    "trm.k3",
    TRM,
    "A.1",
    "k3 is unbiased for KL",
    space=_nested_states(),
    relation="==",
    sharpness="identity",
    assumption="supp π ⊆ supp μ",
    unassumed={"space": single_states()},
    corrected_by=("trm.k3-bias",),
    lemmas=(_truncation,),
    latex=r"E_\mu[k_3(\rho)]=\mathrm{KL}(\mu\|\pi)",
    proof=f"{PROOFS}#sampled",
    sketch="E_μ ρ = π(supp μ): one only if nothing is cut off. Truncated sampling (top-p, top-k) cuts.",
    useful_when="the recorded probabilities are those of the distribution that was sampled, and it has the "
    "support of π",
    mutants=(
        Mutant("other-direction", "dies", "tokens of μ see KL(μ‖π)", {"sides": lambda x: (x.k3_pq, x.kl_qp)}),
        Mutant("truncated-sampler", "dies", "see trm.k3-bias", {"space": single_states()}),
    ),
)
def k3_unbiased(x: Any) -> Any:
    """E_μ[ρ − 1 − log ρ] = KL(μ‖π)."""
    return x.k3_pq, x.kl_pq


@claim(
    "trm.k3-bias",
    TRM,
    "A.1",
    "Bias of k3 under truncated sampling",
    sketch="Σ_{μ>0} μ(ρ − 1 − log ρ) = π(supp μ) − 1 + KL(μ‖π).",
    space=single_states(),
    nature="ours",
    relation="==",
    sharpness="identity",
    hypotheses=(ANY_SUPPORT,),
    proof=f"{PROOFS}#sampled",
    latex=r"E_\mu[k_3(\rho)]=\mathrm{KL}(\mu\|\pi)-\pi(\mathrm{supp}\,\mu^c)",
    mutants=(
        Mutant(
            "no-bias",
            "dies",
            "mass outside the support of μ is not seen",
            {"sides": lambda x: (x.k3_pq, x.kl_pq)},
        ),
        Mutant(
            "sign",
            "dies",
            "k3 is too small, not too large",
            {"sides": lambda x: (x.k3_pq, x.kl_pq + 1 - x.covered_mass)},
        ),
    ),
)
def k3_bias(x: Any) -> Any:
    """E_μ[k3(ρ)] = KL(μ‖π) − π(outside supp μ)."""
    return x.k3_pq, x.kl_pq - (1 - x.covered_mass)


@claim(
    "trm.k3/nonnegative",
    TRM,
    "A.1",
    "k3 is not negative",
    hypotheses=("ρ > 0",),
    sketch="k3′(ρ) = 1 − 1/ρ changes sign at 1 only, where k3 = 0.",
    space=scalars(rho=LogBox((), 1e-6, 1e6)),
    relation=">=",
    signed=True,
    sharpness="tight",
    proof=f"{PROOFS}#sampled",
    latex=r"\rho-1-\log\rho\ge0",
    mutants=(
        Mutant("k1", "dies", "−log ρ is negative for ρ > 1", {"sides": lambda x: (-log(x.rho), 0)}),
        Mutant("larger-log", "dies", "1 is the only factor that touches at ρ = 1", {"sides": lambda x: (x.rho - 1 - 11 * log(x.rho) / 10, 0)}),
    ),
)
def k3_nonnegative(x: Any) -> Any:
    """ρ − 1 − log ρ ≥ 0."""
    return _k3(x.rho), 0


@claim(
    "trm.k3/average",
    TRM,
    "A.1, result",
    "The average of k3 along a response converges",
    hypotheses=("one response, any dependence between tokens",),
    space=policy_pairs(reward=None, full_support=True, sizes=MULTI_STEP),
    latex=r"\frac1T\sum_tk_3(\rho_t)\to\frac{D_{\mathrm{seq}}}T",
    corrected_by=("trm.k3-average",),
    sketch="The tokens of one response are neither independent nor ergodic: a first token that decides "
    "between agreement and disagreement decides the average as well.",
    note="Read as what the law of large numbers rests on, terms that are not positively correlated: the "
    "variance of the sum is at most the sum of the variances. The average over many responses does converge.",
)
def k3_average(x: Any) -> Any:
    """Var_μ Σ_t k3(ρ_t) is at most Σ_t Var_μ k3(ρ_t), so that the average along a response tends to D/T."""
    return x.k3_sum_variance, x.k3_term_variance


@claim(
    "trm.k3-average",
    TRM,
    "A.1, result",
    "The average of k3 for independent tokens",
    nature="ours",
    sketch="The k3(ρ_t) of independent tokens are independent and their variances add.",
    relation="==",
    sharpness="identity",
    space=memoryless((2, 2), (3, 2), (2, 4), full_support=True),
    hypotheses=("independent, identically distributed tokens",),
    proof=f"{PROOFS}#sampled",
    latex=r"\mathrm{Var}\sum_tk_3(\rho_t)=T\,\mathrm{Var}\,k_3(\rho)",
    mutants=(
        Mutant(
            "past-matters",
            "dies",
            "with a past that matters the terms are correlated",
            {"space": policy_pairs(reward=None, full_support=True, sizes=MULTI_STEP)},
        ),
        Mutant(
            "spread-for-variance",
            "dies",
            "fully correlated terms would give T times as much",
            {"sides": lambda x: (x.k3_sum_variance, x.horizon * x.k3_term_variance)},
        ),
    ),
)
def k3_average_independent(x: Any) -> Any:
    """For independent tokens the variances of the k3(ρ_t) add up, and the average along a response has
    variance of order 1/T."""
    return x.k3_sum_variance, x.k3_term_variance


# ------------------------------------------------------------ 3.4 the only solution?


@claim(
    "trm.3.4",
    TRM,
    "slides 3.4.1 and 3.4.2",
    "Only rejecting whole responses can give a guarantee",
    hypotheses=("R in [0, 1], R ≥ 0", "supp π ⊆ supp μ",),
    space=policy_pairs(absolutely_continuous=True, sizes=sized((2, 2), (3, 2))),
    relation="<=",
    signed=True,
    given=lambda x: [(x.ratio_max, ">", 10)],
    corrected_by=("trm.3.4-token", "ours.s8"),
    latex=r"\text{any token beyond }\delta\implies\text{reject the response}",
    sketch="Cutting each token's log ratio from above is a token-level operation, rejects nothing, and its "
    "mean is a lower bound on the improvement.",
    note="Read as: where a token can exceed the trust region (ρ > 10), the guarantees that keep every "
    "response promise nothing. The certificate is a pair of policies with such a token and a promised "
    "improvement of the kind of trm.3.4-token, which is a theorem.",
)
def only_solution(x: Any) -> Any:
    """Where μ can sample a token with ρ above 10, the lower bound E_μ[R Σ_t min(log ρ_t, 1)], which keeps
    every response, is not positive."""
    return x.reward_token_capped(1), 0


@claim(
    "trm.3.4-token",
    TRM,
    "slides 3.4.1 and 3.4.2",
    "A guarantee from token-level cuts",
    space=FREE,
    nature="ours",
    relation=">=",
    signed=True,
    sharpness="tight",
    hypotheses=("R ≥ 0", ANY_SUPPORT),
    proof=f"{PROOFS}#token-cut",
    latex=r"J(\pi)-J(\mu)\ge E_\mu\Bigl[R\sum_t\min(\log\rho_t,c)\Bigr]",
    sketch="W − 1 ≥ log W, and cutting the terms of log W from above lowers it.",
    mutants=(
        Mutant(
            "ratios-for-logs",
            "dies",
            "Σ(ρ_t − 1) is the surrogate, not a lower bound",
            {"sides": lambda x: (x.improvement, x.surrogate_reward)},
        ),
        Mutant(
            "signed-rewards",
            "dies",
            "the weights must be non-negative",
            {"space": policy_pairs(reward=(-1.0, 1.0))},
        ),
        Mutant(
            "higher-cut",
            "survives",
            "any cut is valid",
            {"sides": lambda x: (x.improvement, x.reward_token_capped(5))},
        ),
    ),
)
def token_cut(x: Any) -> Any:
    """J(π) − J(μ) ≥ E_μ[R Σ_t min(log ρ_t, c)], here c = 1: every token is cut on its own and no response
    rejected."""
    return x.improvement, x.reward_token_capped(1)
