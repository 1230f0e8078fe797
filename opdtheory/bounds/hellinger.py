"""Bounds on the surrogate's error through Hellinger distances, finite whatever the supports, and what follows
from them for the reverse KL.

h²(c) = ½Σ(√μ − √π)² at a context, H² the same for whole responses.
"""

from __future__ import annotations

from typing import Any

from opdtheory.bounds.registry import OURS, bound, scaled
from opdtheory.elementary import sqrt


@bound(
    "ours.s9",
    name="Hellinger and midpoint",
    target="surrogate_error",
    source=OURS,
    scaling="H² + KL to the midpoint",
    sharpness="loose",
)
def hellinger_midpoint(hellinger2_seq: Any, midpoint_kl_sum: Any, *, span: Any = 1) -> Any:
    """2H²(μ, π) + 2Σ_t E_{d_t^μ} KL(μ‖(μ+π)/2)(c_t): L is linear towards the midpoint policy, and s1
    holds there.
    """
    return scaled(2 * hellinger2_seq + 2 * midpoint_kl_sum, span)


@bound(
    "ours.s9/tokens",
    name="Expected token Hellinger",
    target="surrogate_error",
    source=OURS,
    scaling="Σ h²",
    sharpness="loose",
)
def hellinger_tokens(hellinger2_sum: Any, *, span: Any = 1) -> Any:
    """(21/2) Σ_t E_{d_t^μ} h²(c_t): horizon-free and finite whatever the supports."""
    return scaled(21 * hellinger2_sum / 2, span)


@bound(
    "ours.s9/reverse",
    name="Reverse KL on visited contexts",
    target="surrogate_error",
    source=OURS,
    scaling="Σ KL(π‖μ)",
    sharpness="loose",
)
def reverse_kl_tokens(reverse_kl_sum: Any, *, span: Any = 1) -> Any:
    """(7/2) Σ_t E_{d_t^μ} KL(π‖μ)(c_t): order T at a fixed reverse KL a token."""
    return scaled(7 * reverse_kl_sum / 2, span)


@bound(
    "ours.s9/chain",
    name="Hellinger distance of responses",
    target="step",
    source=OURS,
    scaling="Σ h²",
    sharpness="loose",
)
def hellinger_chain(hellinger2_sum: Any) -> Any:
    """H²(μ, π) ≤ 4 Σ_t E_{d_t^μ} h²(c_t)."""
    return 4 * hellinger2_sum


@bound(
    "trm.a7/hellinger",
    claim="trm.a7",
    name="Hellinger-marginal",
    target="surrogate_error",
    source=OURS,
    scaling="T^{3/2} h",
    sharpness="loose",
)
def hellinger_marginal(horizon: Any, hellinger2_max: Any, *, span: Any = 1) -> Any:
    """(8/3) T^{3/2} h, h the largest squared Hellinger distance ½Σ(√μ−√π)² of any context.

    Affinities multiply along a response, so the contexts at step t have TV ≤ √(2(t−1)h), and |g| ≤ TV·span
    ≤ √(2h)·span.
    """
    return scaled(8 * horizon * sqrt(horizon * hellinger2_max) * sqrt(hellinger2_max) / 3, span)
