"""The error through Hellinger distances, and the reverse KL with a universal constant."""

from __future__ import annotations

from typing import Any

from opdtheory import bounds
from opdtheory.claims.sharper import ANY_SUPPORT, DOC, UNIT, WORST
from opdtheory.claims.sharper_steps import (
    CASES,
    MIDPOINT,
    REVERSE_CASES,
    leak,
    offer,
    plain_sizes,
    reverse_hellinger,
    reverse_midpoint,
    split_then_part,
)
from opdtheory.claims.sources import OURS
from opdtheory.elementary import absolute
from opdtheory.spaces import policy_pairs
from opdtheory.verification.claim import Mutant
from opdtheory.verification.registry import claim

SIX_STEPS = WORST.with_sizes(*plain_sizes((2, 6)))


@claim(
    "ours.s9",
    OURS,
    "s9",
    "Hellinger and midpoint form",
    space=WORST,
    nature="ours",
    sharpness="loose",
    hypotheses=(UNIT, ANY_SUPPORT),
    proof=f"{DOC}#ours-s9",
    depends_on=("ours.s1",),
    latex=r"|J(\pi)-J(\mu)-L|\le 2H^2(\mu,\pi)+2\,\mathrm{KL}(\mu\|\bar\pi)_{\mathrm{seq}}",
    useful_when="supports differ: every term is finite",
    sketch=(
        "L is linear on the segment to the midpoint policy; s1 there, and the midpoint dominates √(πμ) "
        "step by step."
    ),
    mutants=(
        Mutant(
            "midpoint-only",
            "dies",
            "the curvature between π and its midpoint needs the Hellinger term",
            {"sides": lambda x: (absolute(x.error), 2 * x.midpoint_kl_sum)},
        ),
        Mutant(
            "hellinger-only",
            "dies",
            "and the midpoint's own error the other",
            {"sides": lambda x: (absolute(x.error), x.hellinger2_seq)},
        ),
    ),
)
def hellinger(x: Any) -> Any:
    """|J(π) − J(μ) − L| ≤ 2H²(μ, π) + 2 Σ_t E_{d_t^μ} KL(μ‖(μ+π)/2)(c_t), H² the squared Hellinger distance
    of responses."""
    return absolute(x.error), bounds.hellinger_midpoint(x.hellinger2_seq, x.midpoint_kl_sum)


@claim(
    "ours.s9/chain",
    OURS,
    "s9",
    "Hellinger distance along visited contexts",
    space=policy_pairs(reward=None),
    nature="ours",
    sharpness="loose",
    hypotheses=(ANY_SUPPORT,),
    proof=f"{DOC}#ours-s9",
    lemmas=CASES,
    latex=r"H^2(\mu,\pi)\le4\sum_tE_{d_t^\mu}h^2(c_t)",
    sketch="A supersolution of the control problem for √W, four elementary cases.",
    mutants=(
        Mutant(
            "as-for-products",
            "dies",
            "the constant 1 of product laws fails when the steps depend on the past",
            {"sides": lambda x: (x.hellinger2_seq, x.hellinger2_sum)},
        ),
        Mutant(
            "mean-over-steps",
            "dies",
            "a mean over steps is not their sum",
            {"sides": lambda x: (x.hellinger2_seq, 4 * x.hellinger2_sum / x.horizon)},
        ),
    ),
)
def hellinger_chain(x: Any) -> Any:
    """H²(μ, π) ≤ 4 Σ_t E_{d_t^μ} h²(c_t), h² the squared Hellinger distance at a context."""
    return x.hellinger2_seq, bounds.hellinger_chain(x.hellinger2_sum)


@claim(
    "ours.s9/tokens",
    OURS,
    "s9",
    "Error from token Hellinger distances",
    sketch="s9, its chain inequality (2·4) and KL(μ‖midpoint) ≤ (5/4)h² at each context (2·5/4).",
    space=WORST,
    nature="ours",
    sharpness="loose",
    hypotheses=(UNIT, ANY_SUPPORT),
    proof=f"{DOC}#ours-s9",
    lemmas=MIDPOINT,
    depends_on=("ours.s9", "ours.s9/chain"),
    latex=r"|J(\pi)-J(\mu)-L|\le\tfrac{21}2\sum_tE_{d_t^\mu}h^2(c_t)",
    mutants=(
        Mutant(
            "constant-two",
            "dies",
            "2 would unite both KL directions with s1",
            {"sides": lambda x: (absolute(x.error), 2 * x.hellinger2_sum)},
        ),
        Mutant(
            "largest-context",
            "dies",
            "one context does not pay for all",
            {"sides": lambda x: (absolute(x.error), 3 * x.hellinger2_max / 2), "structured": offer(leak(1))},
        ),
    ),
)
def hellinger_tokens(x: Any) -> Any:
    """|J(π) − J(μ) − L| ≤ (21/2) Σ_t E_{d_t^μ} h²(c_t): horizon-free, finite whatever the supports."""
    return absolute(x.error), bounds.hellinger_tokens(x.hellinger2_sum)


@claim(
    "ours.s9/reverse",
    OURS,
    "s9",
    "Reverse KL with a universal constant",
    sketch="s9, H² ≤ (3/2)ΣKL(π‖μ) (2·3/2) and KL(μ‖midpoint) ≤ ¼KL(π‖μ) at each context (2·¼).",
    space=WORST,
    nature="ours",
    sharpness="loose",
    hypotheses=(UNIT, "finite only if supp π ⊆ supp μ on visited contexts"),
    proof=f"{DOC}#ours-s9",
    lemmas=(reverse_midpoint, reverse_hellinger, *REVERSE_CASES),
    depends_on=("ours.s9", "ours.s9/chain"),
    latex=r"|J(\pi)-J(\mu)-L|\le\tfrac72\sum_tE_{d_t^\mu}\mathrm{KL}(\pi\|\mu)(c_t)",
    note=(
        "At a fixed largest reverse KL δ′ the error is Θ(Tδ′): the T^{3/2} of Pinsker-type arguments is "
        "not real."
    ),
    mutants=(
        Mutant(
            "contexts-of-the-target",
            "dies",
            "KL(π‖μ) of responses does not see what only μ visits; no constant helps",
            {
                "space": SIX_STEPS,
                "sides": lambda x: (absolute(x.error), 7 * x.reverse_kl_seq / 2),
                "structured": offer(split_then_part("1/10")),
            },
        ),
        Mutant(
            "constant-half",
            "dies",
            "the second-order value alone",
            {"sides": lambda x: (absolute(x.error), x.reverse_kl_sum / 2)},
        ),
    ),
)
def reverse(x: Any) -> Any:
    """|J(π) − J(μ) − L| ≤ (7/2) Σ_t E_{d_t^μ} KL(π‖μ)(c_t): the reverse divergence on contexts that μ
    visits also bounds the error without the horizon, with a constant that cannot be 1."""
    return absolute(x.error), bounds.reverse_kl_tokens(x.reverse_kl_sum)


@claim(
    "ours.s9/chain-reverse",
    OURS,
    "s9",
    "Hellinger distance of responses from token reverse KL",
    space=policy_pairs(reward=None, absolutely_continuous=True),
    nature="ours",
    sharpness="loose",
    hypotheses=("supp π ⊆ supp μ on visited contexts (else infinite)",),
    proof=f"{DOC}#ours-s9",
    lemmas=(reverse_hellinger, *REVERSE_CASES),
    latex=r"H^2(\mu,\pi)\le\tfrac32\sum_tE_{d_t^\mu}\mathrm{KL}(\pi\|\mu)(c_t)",
    sketch="The supersolution −y, −3/2 + 1/(2y²) for √W: contexts of μ, divergence reversed.",
    mutants=(
        Mutant(
            "half-as-for-products",
            "dies",
            "the constant ½ of product laws fails when the steps depend on the past",
            {"sides": lambda x: (x.hellinger2_seq, x.reverse_kl_sum / 2)},
        ),
        Mutant(
            "mean-over-steps",
            "dies",
            "a mean over steps is not their sum",
            {"sides": lambda x: (x.hellinger2_seq, x.reverse_kl_sum / x.horizon)},
        ),
    ),
)
def hellinger_chain_reverse(x: Any) -> Any:
    """H²(μ, π) ≤ (3/2) Σ_t E_{d_t^μ} KL(π‖μ)(c_t)."""
    return x.hellinger2_seq, 3 * x.reverse_kl_sum / 2
