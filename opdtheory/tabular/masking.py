"""Surrogates under any mask: weights in [0, 1] on tokens or on whole responses.

A token mask is a list of level arrays ``(batch..., contexts(t), vocab)``: it may depend on the context and
the token (and so on ratios, divergences and advantages).  A response mask has the same shapes and lives on
ending actions, as rewards do; ``kept_responses`` turns "every token is kept" into one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from opdtheory.tabular import flow
from opdtheory.tabular.contrast import aligned
from opdtheory.tabular.pair import PolicyPair
from opdtheory.tabular.reward import Reward
from opdtheory.tabular.table import Table
from opdtheory.tabular.tree import TokenTree

__all__ = ["kept_responses", "masked_lower_bound", "response_masked_surrogate", "token_masked_surrogate"]


def token_masked_surrogate(
    pair: PolicyPair, mask: Sequence[Any], *, baseline: Any = 0, centred: bool = True
) -> Any:
    """E_μ[(R - b) Σ_t M_t (ρ_t - 1)], or with ρ_t in place of ρ_t - 1 unless ``centred``, per instance.

    Source: *Rethinking the Trust Region in LLM Reinforcement Learning*, Eq. 11 (R - b as advantage).

    >>> tree = TokenTree(vocab=2, horizon=1)
    >>> pair = PolicyPair.from_levels(tree, [[["1/2", "1/2"]]], [[["1/4", "3/4"]]], [[["0", "1"]]])
    >>> token_masked_surrogate(pair, [[[1, 1]]]), token_masked_surrogate(pair, [[[1, 0]]])
    (1/4, 0)
    """
    table = _aligned_mask(pair, mask).flat
    reach = pair._pi - pair._mu if centred else pair._pi
    reach = np.where(pair._mu > 0, reach, reach * 0)
    return pair._sum(pair._d * flow.contract(table * reach, pair._q_v[0] - pair._inner(baseline)))


def kept_responses(tree: TokenTree, mask: Sequence[Any]) -> list[np.ndarray]:
    """Response mask of a token mask: the product of its weights along each response, on ending actions."""
    table = Table.from_levels(tree, mask)
    passed = flow.forward(tree, table.flat, np.ones((tree.prompts, *(1,) * table.batch_axes), dtype=int))
    flat = flow.place_on_endings(tree, flow.ending(tree, passed, table.flat))
    return Reward(tree, flat, table.batch_shape).levels


def _masked(pair: PolicyPair, mask: Sequence[Any], baseline: Any = 0) -> PolicyPair:
    """The pair with reward M (R - b)."""
    table = _aligned_mask(pair, mask)
    gain = pair._returns - pair._inner(baseline)
    values = flow.sequence_entries(pair.tree, table.flat) * gain
    return pair.with_reward(Reward(pair.tree, flow.place_on_endings(pair.tree, values), pair.batch_shape))


def response_masked_surrogate(
    pair: PolicyPair, mask: Sequence[Any], *, baseline: Any = 0, centred: bool = True
) -> Any:
    """E_μ[M (R - b) Σ_t (ρ_t - 1)], or with ρ_t in place of ρ_t - 1 unless ``centred``; shape = batch axes.

    Source: *Trust Region Masking for Long-Horizon LLM Reinforcement Learning*, slide 4.1.1.
    """
    masked = _masked(pair, mask, baseline)
    if centred:
        return masked.surrogate_reward
    reach = np.where(pair._mu > 0, pair._pi, pair._pi * 0)
    return pair._sum(pair._d * flow.contract(reach, masked._q_v[0]))


def masked_lower_bound(pair: PolicyPair, mask: Sequence[Any]) -> Any:
    """E_μ[M R Σ(ρ_t - 1)] - E_μ[M R Σ k3(ρ_t)] - E_μ[(1 - M) R]: at most J(π) - J(μ) if R ≥ 0."""
    masked = _masked(pair, mask)
    return masked.surrogate_reward - masked.reward_k3_sum - (pair.J_behavior - masked.J_behavior)


def _aligned_mask(pair: PolicyPair, mask: Sequence[Any]) -> Table:
    table = Table.from_levels(pair.tree, mask)
    outside = (table.flat < 0) | (table.flat > 1)
    table._refuse(np.asarray(outside, dtype=bool), "a mask in [0, 1]")
    table = aligned(pair.tree, pair.behavior, table)[1]
    if table.batch_shape != pair.batch_shape:
        raise ValueError(f"mask has batch shape {table.batch_shape}: expected {pair.batch_shape} or ()")
    return table
