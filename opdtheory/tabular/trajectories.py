"""Sampled trajectories of a policy on a token tree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from opdtheory.tabular.policy import Policy
from opdtheory.tabular.table import Table
from opdtheory.tabular.tree import TokenTree

__all__ = ["Trajectories", "sample_trajectories"]


@dataclass(frozen=True)
class Trajectories:
    """Sampled sequences: ``tokens`` (batch..., count, horizon), -1 after the end, and ``prompts``.

    ``pairs`` (same shape as ``tokens``) numbers each step's context-action pair in a flattened inner table of
    one instance, 0 after the end.
    """

    tree: TokenTree
    prompts: np.ndarray
    tokens: np.ndarray
    pairs: np.ndarray

    @property
    def alive(self) -> np.ndarray:
        """True at generated tokens, EOS included."""
        return self.tokens >= 0

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens, EOS counted, (batch..., count)."""
        return self.alive.sum(axis=-1)

    def along(self, table: Table) -> np.ndarray:
        """Entries of ``table`` (one instance, or the batch shape) at every step, 0 after the end.

        Of a policy: the probabilities of the sampled tokens; of a reward: the rewards they earn.
        """
        flat = table.as_float().flat.reshape(self.tree.pairs_total, -1)
        pairs = self.pairs.reshape((-1, *self.pairs.shape[-2:]))
        instance = np.arange(len(pairs)) if flat.shape[1] > 1 else np.zeros(len(pairs), dtype=int)
        if flat.shape[1] not in (1, len(pairs)):
            want = self.prompts.shape[:-1]
            raise ValueError(f"table has batch shape {table.batch_shape}: expected () or {want}")
        values = flat[pairs, instance[:, None, None]].reshape(self.pairs.shape)
        return np.where(self.alive, values, 0.0)


def sample_trajectories(policy: Policy, count: int, *, seed: Any = 0, group: int = 1) -> Trajectories:
    """Draw ``count`` sequences from every instance of ``policy``, each ``group`` in a row on one drawn prompt.

    ``seed`` is what ``numpy.random.default_rng`` takes.  Raises ``ValueError`` unless ``count`` is a positive
    multiple of ``group``.

    >>> tree = TokenTree(vocab=2, horizon=3, eos=1)
    >>> drawn = sample_trajectories(Policy.deterministic(tree, [[0], [1], [0]]), 2)
    >>> drawn.tokens.tolist(), drawn.lengths.tolist()
    ([[0, 1, -1], [0, 1, -1]], [2, 2])
    """
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
        raise ValueError(f"count = {count!r}: expected a positive integer")
    if group < 1 or count % group:
        raise ValueError(f"group = {group!r}: expected a divisor of count = {count}")
    tree, rng = policy.tree, np.random.default_rng(seed)
    probs = policy.as_float().flat.reshape(tree.vocab, tree.contexts_total, -1)
    instances = probs.shape[2]
    instance = np.arange(instances)[:, None]
    shape = (instances, int(count))
    prompts = rng.choice(tree.prompts, size=(instances, count // group), p=tree.weights(False))
    prompts = np.repeat(prompts, group, axis=1)
    rank, running = prompts.copy(), np.ones(shape, dtype=bool)
    tokens = np.full((*shape, tree.horizon), -1, dtype=np.int64)
    pairs = np.zeros((*shape, tree.horizon), dtype=np.int64)
    order = np.array(tree.action_order)
    for t in range(tree.horizon):
        # ended sequences look at some valid row and are masked; with EOS only, later levels are empty
        row = np.minimum(tree.offsets[t] + rank, tree.contexts_total - 1)
        cumulative = np.cumsum(probs[:, row, instance], axis=0)
        # scaled by the last sum, so that rounding cannot select an action of probability zero
        action = (cumulative <= rng.random(shape) * cumulative[-1]).sum(axis=0)
        tokens[..., t] = np.where(running, order[action], -1)
        pairs[..., t] = np.where(running, action * tree.contexts_total + row, 0)
        running = running & (action < tree.branching)
        rank = np.where(running, action * (tree.offsets[t + 1] - tree.offsets[t]) + rank, 0)
    lead = policy.batch_shape
    return Trajectories(
        tree,
        prompts.reshape((*lead, count)),
        tokens.reshape((*lead, count, tree.horizon)),
        pairs.reshape((*lead, count, tree.horizon)),
    )
