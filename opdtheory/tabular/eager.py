"""The usual quantities of a policy pair, all at once: compiled, or in buffers block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opdtheory.tabular import buffered

if TYPE_CHECKING:
    from opdtheory.tabular.pair import PolicyPair

__all__ = ["USUAL", "usual_quantities"]

USUAL = (
    "J_behavior", "J_target", "improvement", "surrogate", "error", "error_sup", "reward_sd", "tv_max",
    "tv_sum", "tv_seq", "kl_max", "kl_seq", "reverse_kl_max", "reverse_kl_sum", "reverse_kl_seq",
    "chi2_max", "chi2_seq", "hellinger2_max", "hellinger2_seq", "ratio_martingale", "adv_max",
    "adv_target_max", "expected_length_behavior", "expected_length_target", "delta", "surrogate_reward",
    "k3_sum", "w_second_moment",
)  # fmt: skip
"""What is computed at once."""


def usual_quantities(pair: PolicyPair, gradient: bool) -> dict[str, Any]:
    """The quantities ``USUAL`` in the inner layout, with ``flat_target_gradient`` if ``gradient``.

    Empty if neither way takes the pair: exact numbers, probabilities of zero, or, without the compiled pass,
    a single instance.
    """
    if pair.is_exact:
        return {}
    tables = (pair.behavior.flat, pair.target.flat, pair.reward.flat)
    try:
        from opdtheory.tabular import compiled
    except ImportError:  # the extra "fast" is not installed
        result = buffered.summarise(pair.tree, *tables, gradient=gradient) if pair.batch_shape else None
    else:
        result = compiled.summarise(pair.tree, *tables, gradient=gradient)
    if result is None:
        return {}
    found, slope = result
    # every probability is positive, so that the forms of these that differ at zeros agree
    found |= {
        "delta": -found["error"],
        "surrogate_reward": found["surrogate"],
        "k3_sum": found["kl_seq"],
        "w_second_moment": 1 + found["chi2_seq"],
    }
    return found if slope is None else found | {"flat_target_gradient": slope}
