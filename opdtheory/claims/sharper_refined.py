"""A refinement of the total-variation bound: what the overlap of the policies saves."""

from __future__ import annotations

from typing import Any

from opdtheory.claims.sharper import ANY_SUPPORT, DOC, UNIT, WORST
from opdtheory.claims.sharper_steps import leak, offer, weierstrass
from opdtheory.claims.sources import OURS
from opdtheory.elementary import absolute, asum, minimum
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
