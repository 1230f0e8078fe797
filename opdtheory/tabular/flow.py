"""Forward and backward recursions over a token tree, one multiplication per level.

All arrays are in the inner layout of ``table.py``: ``(actions, contexts[, batch])`` for tables, ``(contexts[,
batch])`` for quantities of contexts.  The same lines run on float64 and on object arrays of rationals or
balls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from opdtheory.tabular.tree import TokenTree

__all__ = [
    "accumulate",
    "backward",
    "contract",
    "ending",
    "forward",
    "level",
    "place_on_endings",
    "sequence_entries",
    "values",
]


def level(tree: TokenTree, x: np.ndarray, t: int) -> np.ndarray:
    """Level ``t`` of a quantity of contexts ``(contexts[, batch])``."""
    return x[tree.level_slice(t)]


def contract(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sum over actions of ``a * b``, both ``(actions, contexts[, batch])``."""
    total = a[0] * b[0]
    for i in range(1, len(a)):
        total += a[i] * b[i]
    return total


def accumulate(tree: TokenTree, table: np.ndarray) -> np.ndarray:
    """Sums of ``table`` along prefixes: what was collected before each context, ``(contexts[, batch])``."""
    out = np.empty(table.shape[1:], dtype=table.dtype)
    out[: tree.prompts] = 0
    b = tree.branching
    for t in range(tree.horizon - 1):
        here, below = tree.level_slice(t), tree.level_slice(t + 1)
        out[below] = (table[:b, here] + out[here]).reshape((-1, *table.shape[2:]))
    return out


def forward(tree: TokenTree, table: np.ndarray, root: Any) -> np.ndarray:
    """Products of ``table`` along prefixes times ``root``: occupancy of every context if a policy."""
    return products(tree, lambda here: table[: tree.branching, here], root, table)


def products(
    tree: TokenTree, factor: Callable[[slice], np.ndarray], root: Any, like: np.ndarray
) -> np.ndarray:
    """Products along prefixes of ``factor(contexts)``, (branching, contexts[, batch]), times ``root``."""
    out = np.empty(like.shape[1:], dtype=np.result_type(like, root))
    out[: tree.prompts] = root
    b = tree.branching
    for t in range(tree.horizon - 1):
        here, below = tree.level_slice(t), tree.level_slice(t + 1)
        children = out[below].reshape((b, *out[here].shape))  # a view: leading axis split
        np.multiply(factor(here), out[here], out=children)
    return out


def backward(
    tree: TokenTree, table: np.ndarray, reward: np.ndarray, terminal: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """(Q, V) of the sum of ``reward`` under ``table``: Q has the shape of ``reward``, V drops the actions.

    With ``terminal`` the reward on continuing actions is taken to be zero and is not read.
    """
    q, v = np.empty_like(reward), np.empty(reward.shape[1:], dtype=reward.dtype)
    b, last = tree.branching, tree.horizon - 1
    for t in range(last, -1, -1):
        here = tree.level_slice(t)
        if t == last:
            q[:, here] = reward[:, here]
        else:
            below = v[tree.level_slice(t + 1)].reshape((b, *v[here].shape))
            q[b:, here] = reward[b:, here]
            q[:b, here] = below if terminal else below + reward[:b, here]
        v[here] = contract(table[:, here], q[:, here])
    return q, v


def values(tree: TokenTree, table: np.ndarray, reward: np.ndarray) -> np.ndarray:
    """V of a terminal reward under ``table``, ``(contexts[, batch])``, without forming Q."""
    v = np.empty(reward.shape[1:], dtype=reward.dtype)
    b, last = tree.branching, tree.horizon - 1
    for t in range(last, -1, -1):
        here = tree.level_slice(t)
        if t == last:
            v[here] = contract(table[:, here], reward[:, here])
            continue
        v[here] = contract(table[b:, here], reward[b:, here]) if tree.eos is not None else 0
        if b:
            below = v[tree.level_slice(t + 1)].reshape((b, *v[here].shape))
            v[here] += contract(table[:b, here], below)
    return v


def sequence_entries(tree: TokenTree, x: np.ndarray) -> np.ndarray:
    """Entries of a table on ending actions, one for each complete sequence: ``(sequences[, batch])``.

    Order: EOS at every context before the last level, then all actions of the last level, inner layout.
    """
    last = x[:, tree.level_slice(tree.horizon - 1)]
    tail = last.reshape((-1, *x.shape[2:]))
    if tree.eos is None:
        return tail
    return np.concatenate([x[-1, : tree.offsets[-2]], tail])


def ending(tree: TokenTree, prefix: np.ndarray, table: np.ndarray) -> np.ndarray:
    """``prefix`` times ``table`` on ending actions, ``(sequences[, batch])``; of an occupancy: its law."""
    last = tree.level_slice(tree.horizon - 1)
    tail = (table[:, last] * prefix[last]).reshape((-1, *prefix.shape[1:]))
    if tree.eos is None:
        return tail
    early = slice(0, tree.offsets[-2])
    return np.concatenate([table[-1, early] * prefix[early], tail])


def place_on_endings(tree: TokenTree, values: np.ndarray) -> np.ndarray:
    """Inverse of ``sequence_entries``: a table that is zero on continuing actions."""
    zero: Any = 0 if values.dtype == object else 0.0
    flat = np.full((tree.vocab, tree.contexts_total, *values.shape[1:]), zero, dtype=values.dtype)
    early = 0 if tree.eos is None else tree.offsets[-2]
    if early:
        flat[-1, :early] = values[:early]
    last = tree.level_slice(tree.horizon - 1)
    flat[:, last] = values[early:].reshape((tree.vocab, -1, *values.shape[1:]))
    return flat
