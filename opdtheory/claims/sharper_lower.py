"""Two-sided and masked lower bounds on the improvement, and the certificates that samples give."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import sympy as sp

from opdtheory import bounds
from opdtheory.claims.sharper import ANY_SUPPORT, COVERED, DOC, DOUBLED, FREE, NESTED, UNIT
from opdtheory.claims.sharper_steps import SPLIT, k3_nonnegative
from opdtheory.claims.sources import OURS
from opdtheory.confidence import METHODS, interval, log_change_values, truncated_values, tv_values
from opdtheory.elementary import absolute, exp, log, maximum, sqrt
from opdtheory.spaces import Box, LogBox, policy_pairs, scalars
from opdtheory.verification.claim import Mutant, Proof
from opdtheory.verification.evidence import Evidence
from opdtheory.verification.registry import claim

SIGNED = policy_pairs(reward=(-1.0, 1.0))


@claim(
    "ours.s2",
    OURS,
    "s2",
    "Tangent bounds from both sides",
    space=FREE,
    nature="ours",
    signed=True,
    sharpness="tight",
    hypotheses=(UNIT, ANY_SUPPORT),
    proof=f"{DOC}#ours-s2",
    lemmas=(k3_nonnegative,),
    latex=r"E_\mu[R\log W]\le J(\pi)-J(\mu)\le-E_\mu[(1-R)\log W]",
    sketch="W − 1 ≥ log W, weighted with R and with 1 − R.",
    note="The left side is the bound of expectation-maximisation and reward-weighted methods.",
    mutants=(
        Mutant("negative-reward", "dies", "W − 1 ≥ log W needs a non-negative weight", {"space": SIGNED}),
        Mutant(
            "same-weight-above",
            "dies",
            "the upper bound weighs with 1 − R",
            {"sides": lambda x: (x.improvement + x.reward_log_w, 0)},
        ),
    ),
)
def tangent(x: Any) -> Any:
    """E_μ[R log W] ≤ J(π) − J(μ) ≤ −E_μ[(1−R) log W]: the larger of the two violations is never positive."""
    return maximum(x.reward_log_w - x.improvement, x.improvement + x.cost_log_w), 0


@claim(
    "ours.s2/width",
    OURS,
    "s2",
    "The interval has width D",
    sketch="R and 1 − R add up to 1, and −E_μ log W = D.",
    latex=r"-E_\mu[(1-R)\log W]-E_\mu[R\log W]=D_{\mathrm{seq}}",
    space=FREE,
    nature="ours",
    relation="==",
    sharpness="identity",
    hypotheses=(ANY_SUPPORT,),
    proof=f"{DOC}#ours-s2",
    mutants=(
        Mutant(
            "reverse",
            "dies",
            "the width is the forward KL",
            {"sides": lambda x: (-x.reward_log_w - x.cost_log_w, x.reverse_kl_seq)},
        ),
        Mutant(
            "half",
            "dies",
            "not half of it",
            {"sides": lambda x: (-x.reward_log_w - x.cost_log_w, x.kl_seq / 2)},
        ),
    ),
)
def width(x: Any) -> Any:
    """−E_μ[(1−R) log W] − E_μ[R log W] = D."""
    return -x.reward_log_w - x.cost_log_w, x.kl_seq


@claim(
    "ours.s2/exp",
    OURS,
    "s2",
    "Exponential form of the tangent bound",
    nature="ours",
    sharpness="tight",
    space=policy_pairs(reward=(0.05, 0.95)),
    hypotheses=("R ≥ 0", "0 < J(μ)"),
    proof=f"{DOC}#ours-s2-exp",
    latex=r"J(\mu)\exp\frac{E_\mu[R\log W]}{J(\mu)}\le J(\pi)",
    sketch="Jensen's inequality for exp under μ reweighted by R; with 1 − R for R it bounds J(π) from above.",
    mutants=(
        Mutant(
            "unweighted",
            "dies",
            "the exponent must be divided by J(μ) < 1 only because it is an R-weighted mean",
            {"sides": lambda x: (x.J_behavior * exp(x.reward_log_w), x.J_target)},
        ),
        Mutant(
            "doubled",
            "dies",
            "half the exponent",
            {"sides": lambda x: (x.J_behavior * exp(x.reward_log_w / x.J_behavior / 2), x.J_target)},
        ),
    ),
)
def exponential(x: Any) -> Any:
    """J(μ)·exp(E_μ[R log W]/J(μ)) ≤ J(π), never below the linear form of s2."""
    return x.J_behavior * exp(x.reward_log_w / x.J_behavior), x.J_target


@claim(
    "ours.s7",
    OURS,
    "s7",
    "How large a surrogate can be",
    space=FREE,
    nature="ours",
    sharpness="asymptotic",
    hypotheses=(UNIT, ANY_SUPPORT),
    proof=f"{DOC}#ours-s7",
    depends_on=("ours.s1",),
    latex=r"|L|\le\sqrt{D/2}+D",
    useful_when="deciding whether L minus a published penalty can be positive at all",
    sketch="|L| ≤ |J(π) − J(μ)| + |Error| ≤ TV_seq + D, Pinsker.",
    mutants=(
        Mutant(
            "pinsker-only",
            "dies",
            "L is not a difference of returns: √(D/2) alone is exceeded at T ≥ 2",
            {"sides": lambda x: (absolute(x.surrogate), sqrt(x.kl_seq / 2))},
        ),
        Mutant(
            "pinsker-misread",
            "dies",
            "√D/2 is not √(D/2)",
            {"sides": lambda x: (absolute(x.surrogate), sqrt(x.kl_seq) / 2)},
        ),
    ),
)
def surrogate_limit(x: Any) -> Any:
    """|L| ≤ √(D/2) + D."""
    return absolute(x.surrogate), bounds.surrogate_limit(x.kl_seq)


@claim(
    "ours.s7/first",
    OURS,
    "s7",
    "The surrogate over the improvement",
    sketch="L = J(π) − J(μ) − E_μ[R·N] and −N = Σk3(ρ_t) − k3(W) ≤ Σk3(ρ_t).",
    latex=r"L\le J(\pi)-J(\mu)+E_\mu\bigl[R\textstyle\sum_tk_3(\rho_t)\bigr]",
    space=COVERED,
    nature="ours",
    signed=True,
    sharpness="tight",
    hypotheses=("R ≥ 0", NESTED),
    proof=f"{DOC}#ours-s7",
    lemmas=(SPLIT, k3_nonnegative),
    mutants=(
        Mutant(
            "no-penalty",
            "dies",
            "L can exceed the improvement",
            {"sides": lambda x: (x.surrogate, x.improvement)},
        ),
        Mutant(
            "half-penalty",
            "dies",
            "half the penalty",
            {"sides": lambda x: (x.surrogate, x.improvement + x.reward_k3_sum / 2)},
        ),
        Mutant(
            "negative-reward",
            "dies",
            "k3(W) ≥ 0 is weighted with R",
            {"space": policy_pairs(reward=(-1.0, 1.0), absolutely_continuous=True)},
        ),
    ),
)
def surrogate_first(x: Any) -> Any:
    """L ≤ J(π) − J(μ) + E_μ[R Σ_t k3(ρ_t)]: a lower bound on the improvement from samples of μ."""
    return x.surrogate, x.improvement + x.reward_k3_sum


@claim(
    "ours.s8",
    OURS,
    "s8",
    "The best mask",
    space=FREE,
    nature="ours",
    signed=True,
    sharpness="tight",
    hypotheses=("R ≥ 0", ANY_SUPPORT),
    proof=f"{DOC}#ours-s8",
    depends_on=("ours.s8/mask",),
    lemmas=(k3_nonnegative,),
    latex=r"J(\pi)-J(\mu)\ge E_\mu[R\max(\log W,-1)]",
    sketch="W − 1 ≥ M log W − (1 − M) for M in [0, 1]; M = 1 where log W ≥ −1 is best.",
    mutants=(
        Mutant("negative-reward", "dies", "the weights must be non-negative", {"space": SIGNED}),
        Mutant(
            "higher-floor",
            "dies",
            "0.9 of the bound is above −1 times the mass that π gave up",
            {"sides": lambda x: (9 * x.reward_floor_log_w / 10, x.improvement)},
        ),
    ),
)
def floor(x: Any) -> Any:
    """E_μ[R max(log W, −1)] ≤ J(π) − J(μ): samples of μ only, no unseen context, no maximum."""
    return bounds.floored_log_ratio_lower(x.reward_floor_log_w), x.improvement


def _mask_identity() -> Evidence:
    """W − 1 − (M log W − (1−M)) = M·k3(W) + (1−M)·W, both terms non-negative for M in [0, 1], W > 0."""
    w, m, lw = sp.symbols("w m logw")
    ok = sp.expand(w - 1 - (m * lw - (1 - m)) - m * (w - 1 - lw) - (1 - m) * w) == 0
    return Evidence("symbolic", ok, "W − 1 − M log W + 1 − M = M·k3(W) + (1−M)·W for all W > 0, M in [0, 1]")


@claim(
    "ours.s8/mask",
    OURS,
    "s8",
    "Every mask, response by response",
    nature="ours",
    signed=True,
    sharpness="tight",
    sketch="W − 1 = M(W − 1) + (1−M)(W − 1) ≥ M log W − (1−M).",
    latex=r"M\log W-(1-M)\le W-1",
    space=scalars(w=LogBox((), 1e-4, 1e4), m=Box((), 0.0, 1.0)),
    hypotheses=("0 ≤ M ≤ 1", "W > 0"),
    proof=f"{DOC}#ours-s8",
    proofs=(_mask_identity,),
    lemmas=(k3_nonnegative,),
    note=(
        "Multiplied with R ≥ 0 and averaged: J(π) − J(μ) ≥ E_μ[M R Σ(ρ_t−1)] − E_μ[M R Σk3(ρ_t)] − "
        "E_μ[(1−M)R]."
    ),
    mutants=(
        Mutant(
            "reward-lost-forgotten",
            "dies",
            "masked responses may have been worth something",
            {"sides": lambda x: (x.m * log(x.w), x.w - 1)},
        ),
        Mutant(
            "mask-above-one",
            "dies",
            "up-weighting is not masking",
            {"space": scalars(w=LogBox((), 1e-4, 1e4), m=Box((), 0.0, 3.0))},
        ),
    ),
)
def mask(x: Any) -> Any:
    """M·log W − (1 − M) ≤ W − 1 for every likelihood ratio W > 0 and every mask M in [0, 1]."""
    return x.m * log(x.w) - (1 - x.m), x.w - 1


_INSTANCES = (
    # (μ, π, R) of four responses: near, far, one response given up, one hardly sampled
    ((0.4, 0.3, 0.2, 0.1), (0.35, 0.3, 0.2, 0.15), (0.0, 1.0, 0.0, 1.0)),
    ((0.25, 0.25, 0.25, 0.25), (0.7, 0.1, 0.1, 0.1), (1.0, 0.0, 1.0, 0.0)),
    ((0.5, 0.3, 0.1, 0.1), (0.5, 0.5, 0.0, 0.0), (0.0, 0.5, 1.0, 1.0)),
    ((0.9, 0.05, 0.03, 0.02), (0.1, 0.3, 0.3, 0.3), (0.0, 1.0, 1.0, 1.0)),
)
_DRAWS, _CONFIDENCE = 6, 0.8


def covered(
    name: str, values: Callable[..., Any], target: Callable[..., Any], bounds_: tuple[float, float]
) -> Proof:
    """Every sample of six independent responses, weighted with its exact probability: how often does the
    lower confidence bound of a statistic stay below what it certifies?"""

    def run() -> Evidence:
        draws = np.array(list(product(range(4), repeat=_DRAWS)))
        worst = 1.0
        for mu, pi, reward in (np.array(rows) for rows in _INSTANCES):
            with np.errstate(divide="ignore"):
                statistic = values(np.log(pi / mu), reward)
            probability = mu[draws].prod(axis=1)
            truth = target(mu, pi, reward)
            for method in METHODS:
                lower = interval(
                    statistic[draws], method, confidence=_CONFIDENCE, bounds=bounds_, side="lower"
                ).lower
                worst = min(worst, float(probability[np.asarray(lower) <= truth + 1e-12].sum()))
        detail = f"{name}: coverage at least {worst:.4f} (asked {_CONFIDENCE}) over all samples of {_DRAWS}, "
        detail += f"{len(_INSTANCES)} laws on four responses, {', '.join(METHODS)}"
        return Evidence("lemma", worst >= _CONFIDENCE, detail)

    run.__name__ = name
    return run


def _change(mu: Any, pi: Any, reward: Any) -> float:
    return float(((pi - mu) * reward).sum())


_SAMPLES = (
    "independent prompts, averaged inside a group",
    "π independent of the evaluation sample",
    "true sampler probabilities",
    "known reward range",
)


@claim(
    "ours.cert/tvseq",
    OURS,
    "cert",
    "Certified sequence TV",
    sketch="The positive part of μ − π is μ(1 − W)⁺, whatever the supports; its mean is bounded from samples in [0, 1].",
    space=FREE,
    nature="ours",
    sharpness="tight",
    hypotheses=(UNIT, *_SAMPLES),
    proof=f"{DOC}#ours-cert-tvseq",
    latex=r"|J(\pi)-J(\mu)|\le\mathrm{TV}_{\mathrm{seq}}=E_\mu(1-W)^+",
    lemmas=(
        covered(
            "TV from above",
            lambda w, r: 1 - tv_values(w),
            lambda m, p, r: 1 - abs(m - p).sum() / 2,
            (0.0, 1.0),
        ),
    ),
    mutants=(
        Mutant(
            "largest-context",
            "dies",
            "token TV is not sequence TV",
            {"sides": lambda x: (absolute(x.improvement), x.tv_max)},
        ),
        Mutant("reward-range-2", "dies", "the span of R multiplies", {"space": DOUBLED}),
    ),
)
def certified_tv(x: Any) -> Any:
    """|J(π) − J(μ)| ≤ TV_seq = E_μ(1 − W)⁺, the mean of a statistic in [0, 1]."""
    return absolute(x.improvement), bounds.improvement_limit(x.tv_seq)


@claim(
    "ours.cert/truncated",
    OURS,
    "cert",
    "Truncated importance sampling",
    sketch="min(W, c) ≤ W and E_μ[W R] ≤ J(π) for R ≥ 0.",
    space=FREE,
    nature="ours",
    sharpness="tight",
    hypotheses=("R ≥ 0", *_SAMPLES),
    proof=f"{DOC}#ours-cert-truncated",
    latex=r"E_\mu[\min(W,c)R]\le J(\pi)",
    lemmas=(
        covered(
            "truncated return",
            lambda w, r: truncated_values(w, r, 2.0),
            lambda m, p, r: float((p * r).sum()),
            (0.0, 2.0),
        ),
    ),
    mutants=(
        Mutant(
            "negative-reward",
            "dies",
            "truncation lowers only non-negative rewards",
            {"space": SIGNED, "signed": True},
        ),
        Mutant(
            "baseline",
            "dies",
            "J(μ) is not what it bounds",
            {"sides": lambda x: (x.reward_truncated(2), x.J_behavior)},
        ),
    ),
)
def truncated(x: Any) -> Any:
    """E_μ[min(W, c)R] ≤ J(π), here with c = 2: the mean of a statistic in [0, c]."""
    return x.reward_truncated(2), x.J_target


@claim(
    "ours.cert/logw",
    OURS,
    "cert",
    "Improvement between two means of log ratios",
    sketch="ours.s2, both sides as sample means.",
    latex=r"E_\mu[R\log W]\le J(\pi)-J(\mu)\le-E_\mu[(1-R)\log W]",
    space=FREE,
    nature="ours",
    signed=True,
    sharpness="tight",
    hypotheses=(UNIT, *_SAMPLES),
    proof=f"{DOC}#ours-cert-logw",
    depends_on=("ours.s2",),
    lemmas=(
        k3_nonnegative,
        covered(
            "improvement from above",
            lambda w, r: log_change_values(w, 1 - r, np.e),
            lambda m, p, r: -_change(m, p, r),
            (-1.0, 1.0),
        ),
    ),
    mutants=(
        Mutant("negative-reward", "dies", "W − 1 ≥ log W needs a non-negative weight", {"space": SIGNED}),
        Mutant(
            "upper-alone",
            "dies",
            "−E[log W]/2 is no upper bound",
            {"sides": lambda x: (x.improvement, (-x.reward_log_w - x.cost_log_w) / 2)},
        ),
    ),
)
def certified_log_ratio(x: Any) -> Any:
    """E_μ[R log W] ≤ J(π) − J(μ) ≤ −E_μ[(1−R) log W]: two sample means bracket the improvement; a bounded
    certificate floors log W at −1 and caps it."""
    return maximum(
        bounds.log_ratio_lower(x.reward_log_w) - x.improvement,
        x.improvement - bounds.log_ratio_upper(x.cost_log_w),
    ), 0


@claim(
    "ours.cert/masked",
    OURS,
    "cert",
    "Floored and capped log ratios",
    sketch="ours.s8, cut from above: a smaller statistic of bounded range.",
    space=FREE,
    nature="ours",
    signed=True,
    sharpness="tight",
    hypotheses=("R ≥ 0", *_SAMPLES),
    proof=f"{DOC}#ours-cert-masked",
    depends_on=("ours.s8",),
    lemmas=(
        k3_nonnegative,
        covered("floored log ratio", lambda w, r: log_change_values(w, r, np.e), _change, (-1.0, 1.0)),
    ),
    latex=r"E_\mu[R\min(\max(\log W,-1),c)]\le J(\pi)-J(\mu)",
    mutants=(
        Mutant("negative-reward", "dies", "the weights must be non-negative", {"space": SIGNED}),
        Mutant(
            "shifted",
            "dies",
            "the floor is the whole of what a response can lose",
            {"sides": lambda x: (9 * x.reward_capped_log_w(1) / 10, x.improvement)},
        ),
    ),
)
def certified_masked(x: Any) -> Any:
    """E_μ[R min(max(log W, −1), c)] ≤ J(π) − J(μ), here with c = 1: the mean of a statistic in [−1, c]."""
    return x.reward_capped_log_w(1), x.improvement
