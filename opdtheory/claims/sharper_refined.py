"""Refinements of the total-variation bounds: what the overlap of the policies saves, and step-wise maxima."""

from __future__ import annotations

from typing import Any

import numpy as np

from opdtheory.claims.sharper import ANY_SUPPORT, DOC, UNIT, WORST
from opdtheory.claims.sharper_steps import Rows, Rule, leak, leak_then_leave, offer, weierstrass
from opdtheory.claims.sources import OURS
from opdtheory.elementary import absolute, amax, asum, exact, minimum
from opdtheory.tabular import PolicyPair
from opdtheory.verification.claim import Mutant
from opdtheory.verification.registry import claim


def left_once(x: PolicyPair) -> Any:
    """Mass of the responses of π that leave min(μ, π) at exactly one step: Σ_y Σ_t m_{<t}(π_t − μ_t)⁺m_{>t}, one prompt."""
    tree = x.tree
    keep = [a for a in range(tree.vocab) if a != tree.eos]
    inside: Any = None
    outside: Any = None
    for mu, pi in zip(reversed(x.behavior.levels), reversed(x.target.levels), strict=True):
        shared = minimum(mu, pi)
        later_in, later_out = 0 * shared + 1, 0 * shared
        if inside is not None:
            shape = (*shared.shape[:-1], tree.branching)
            later_in, later_out = later_in.copy(), later_out.copy()
            later_in[..., keep], later_out[..., keep] = inside.reshape(shape), outside.reshape(shape)
        inside, outside = asum(shared * later_in), asum(shared * later_out + (pi - shared) * later_in)
    return outside[..., 0]


@claim(
    "ours.s3/overlap",
    OURS,
    "s3",
    "Expected token TV less what overlaps",
    space=WORST,
    nature="ours",
    sharpness="tight",
    hypotheses=(UNIT, ANY_SUPPORT),
    proof=f"{DOC}#ours-s3-overlap",
    lemmas=(weierstrass,),
    depends_on=("ours.s0",),
    structured=offer(leak(1), leak("1/4")),
    latex=r"|J(\pi)-J(\mu)-L|\le\sum_tE_{d_t^\mu}\mathrm{TV}(c_t)-\sum_y\sum_tm_{<t}(\pi_t-\mu_t)^+m_{>t},\quad m=\min(\mu,\pi)",
    useful_when="policies close to each other: the bound is of second order where the plain sum of TVs is of first",
    sketch="π ≥ ∏m_t + Σ_t m_{<t}(π_t−μ_t)⁺m_{>t} and μ − Σμ_{<t}(μ_t−π_t)⁺μ_{>t} ≤ ∏m_t; subtract.",
    mutants=(
        Mutant(
            "saved-twice",
            "dies",
            "the overlap is saved once",
            {"sides": lambda x: (absolute(x.error), x.tv_sum - 2 * left_once(x))},
        ),
        Mutant(
            "first-step-only",
            "dies",
            "every step prices",
            {"sides": lambda x: (absolute(x.error), x.tv_step(0) - left_once(x) / x.horizon)},
        ),
    ),
)
def overlap(x: Any) -> Any:
    """|J(π) − J(μ) − L| ≤ Σ_t E_{d_t^μ}[TV(c_t)] − P₁, P₁ the mass of the responses of π that leave min(μ, π) at exactly one
    step."""
    return absolute(x.error), x.tv_sum - left_once(x)


def _largest_by_step(x: PolicyPair) -> list[Any]:
    """ε_t, the largest TV of any context of level t."""
    pairs = zip(x.behavior.levels, x.target.levels, strict=True)
    return [amax(asum(absolute(pi - mu)), -1) / 2 for mu, pi in pairs]


def profile_bound(steps: list[Any]) -> Any:
    """Σ_t ε_t (1 − ∏_{s≠t}(1 − ε_s))."""
    total: Any = 0
    for t, eps in enumerate(steps):
        stay: Any = 1
        for s, other in enumerate(steps):
            if s != t:
                stay = stay * (1 - other)
        total = total + eps * (1 - stay)
    return total


def _leak_by_step(*leaks: str) -> Rule:
    """As ``leak``, with another ε at every step (the last one from then on)."""

    def rows(prefix: tuple[int, ...]) -> Rows:
        eps = exact(leaks[min(len(prefix), len(leaks) - 1)])
        return (1, 0), ((1 - eps, eps) if sum(prefix) <= 1 else (1, 0))

    return rows


@claim(
    "ours.s4/profile",
    OURS,
    "s4",
    "Exact supremum at step-wise maximal TVs",
    space=WORST,
    nature="ours",
    sharpness="tight",
    hypotheses=(UNIT, ANY_SUPPORT),
    proof=f"{DOC}#ours-s4-profile",
    lemmas=(weierstrass,),
    depends_on=("ours.s0",),
    structured=offer(_leak_by_step("1/2", "1/5", "1/10"), _leak_by_step("1/10", "1/3", "3/4")),
    latex=r"|J(\pi)-J(\mu)-L|\le\sum_t\varepsilon_t\Bigl(1-\prod_{s\ne t}(1-\varepsilon_s)\Bigr)",
    sketch="The proof of s4 with the maximum of each step kept apart.",
    mutants=(
        Mutant(
            "own-step-for-others",
            "dies",
            "pairs of different steps count",
            {"sides": lambda x: (absolute(x.error), asum(np.stack([e * e for e in _largest_by_step(x)], -1)))},
        ),
        Mutant(
            "last-step-left-out",
            "dies",
            "the last step's change meets those before it",
            {"sides": lambda x: (absolute(x.error), profile_bound(_largest_by_step(x)[:-1]))},
        ),
        Mutant(
            "visited-maxima",
            "dies",
            "contexts that only π reaches count, too",
            {
                "sides": lambda x: (absolute(x.error), profile_bound([x.tv_step(t) for t in range(x.horizon)])),
                "structured": offer(leak_then_leave("1/4")),
            },
        ),
    ),
)
def profile(x: Any) -> Any:
    """|J(π) − J(μ) − L| ≤ Σ_t ε_t(1 − ∏_{s≠t}(1 − ε_s)), ε_t the largest token TV of any context at step t."""
    return absolute(x.error), profile_bound(_largest_by_step(x))
