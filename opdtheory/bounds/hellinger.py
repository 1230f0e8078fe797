"""Bounds on the surrogate's error through Hellinger distances, finite whatever the supports, and what follows
from them for the reverse KL.

h²(c) = ½Σ(√μ − √π)² at a context, H² the same for whole responses.
"""

from __future__ import annotations

from typing import Any

from opdtheory.bounds.registry import bound, error_bound, scaled
from opdtheory.elementary import sqrt


@error_bound("ours.s9", "Hellinger and midpoint", "H² + KL to the midpoint")
def hellinger_midpoint(hellinger2_seq: Any, midpoint_kl_sum: Any, *, span: Any = 1) -> Any:
    """2H²(μ, π) + 2Σ_t E_{d_t^μ} KL(μ‖(μ+π)/2)(c_t): L is linear towards the midpoint policy, and s1
    holds there.
    """
    return scaled(2 * hellinger2_seq + 2 * midpoint_kl_sum, span)


@error_bound("ours.s9/tokens", "Expected token Hellinger", "Σ h²")
def hellinger_tokens(hellinger2_sum: Any, *, span: Any = 1) -> Any:
    """(21/2) Σ_t E_{d_t^μ} h²(c_t): horizon-free and finite whatever the supports."""
    return scaled(21 * hellinger2_sum / 2, span)


@error_bound("ours.s9/reverse", "Reverse KL on visited contexts", "Σ KL(π‖μ)")
def reverse_kl_tokens(reverse_kl_sum: Any, *, span: Any = 1) -> Any:
    """(7/2) Σ_t E_{d_t^μ} KL(π‖μ)(c_t): order T at a fixed reverse KL a token."""
    return scaled(7 * reverse_kl_sum / 2, span)


@error_bound("ours.s13/reverse", "Reverse KL on visited contexts, interpolated", "Σ KL(π‖μ)")
def reverse_kl_interpolated(reverse_kl_sum: Any, *, span: Any = 1) -> Any:
    """(11/4) Σ_t E_{d_t^μ} KL(π‖μ)(c_t): ``reverse_kl_tokens`` with the best constant proved so far."""
    return scaled(11 * reverse_kl_sum / 4, span)


@bound("ours.s9/chain", "Hellinger distance of responses", "Σ h²", target="step")
def hellinger_chain(hellinger2_sum: Any) -> Any:
    """H²(μ, π) ≤ 4 Σ_t E_{d_t^μ} h²(c_t)."""
    return 4 * hellinger2_sum


@error_bound("trm.a7/hellinger", "Hellinger-marginal", "T^{3/2} h")
def hellinger_marginal(horizon: Any, hellinger2_max: Any, *, span: Any = 1) -> Any:
    """(8/3) T^{3/2} h, h the largest squared Hellinger distance ½Σ(√μ−√π)² of any context.

    Affinities multiply along a response, so the contexts at step t have TV ≤ √(2(t−1)h), and |g| ≤ TV·span
    ≤ √(2h)·span.
    """
    return scaled(8 * horizon * sqrt(horizon * hellinger2_max) * sqrt(hellinger2_max) / 3, span)
