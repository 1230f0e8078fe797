"""Rewards over a token tree: terminal ones live on the ending actions, token rewards anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from opdtheory.tabular import flow
from opdtheory.tabular.table import Table
from opdtheory.tabular.tree import TokenTree

__all__ = ["Reward", "terminal_reward", "token_reward"]


class Reward(Table):
    """A reward table; the return of a sequence is the sum of the entries along it."""

    def _continuing(self) -> np.ndarray:
        return self.flat[: self.tree.branching, : self.tree.offsets[-2]]

    @property
    def is_terminal(self) -> bool:
        """True if all rewards lie on ending actions."""
        return not np.any(self._continuing() != 0)

    def flat_returns(self) -> np.ndarray:
        """Return of every complete sequence, in the order of ``flow.sequence_entries``."""
        if self.is_terminal:
            return flow.sequence_entries(self.tree, self.flat)
        return flow.sequence_entries(self.tree, self.flat + flow.accumulate(self.tree, self.flat))

    def as_terminal(self) -> Reward:
        """The terminal reward with the same return on every sequence."""
        if self.is_terminal:
            return self
        return self._like(flow.place_on_endings(self.tree, self.flat_returns()))


def terminal_reward(tree: TokenTree, fn: Callable[[int, tuple[int, ...]], Any]) -> Reward:
    """Terminal reward ``fn(prompt, tokens)`` of every complete sequence, ``tokens`` including EOS where
    emitted.

    Exact if any value is a Fraction, fmpq or fraction string (all are then exact), else float64.

    >>> R = terminal_reward(TokenTree(vocab=2, horizon=2), lambda prompt, tokens: sum(tokens))
    >>> R.levels[1].tolist()
    [[0.0, 1.0], [1.0, 2.0]]
    """
    entries = ((*tree.locate(*sequence), sequence) for sequence in tree.sequences())
    return _tabulated(tree, fn, entries)


def token_reward(tree: TokenTree, fn: Callable[[int, tuple[int, ...]], Any]) -> Reward:
    """Token reward ``fn(prompt, tokens)`` for emitting the last of ``tokens`` after the others."""
    contexts = ((t, c) for t in range(tree.horizon) for c in range(tree.contexts(t)))
    labels = ((t, c, *tree.context_label(t, c)) for t, c in contexts)
    entries = (
        (t, c, a, (prompt, (*tokens, a))) for t, c, prompt, tokens in labels for a in range(tree.vocab)
    )
    return _tabulated(tree, fn, entries)


def _tabulated(
    tree: TokenTree,
    fn: Callable[[int, tuple[int, ...]], Any],
    entries: Iterator[tuple[int, int, int, tuple[int, tuple[int, ...]]]],
) -> Reward:
    """The table with ``fn(prompt, tokens)`` at every (level, context, action, (prompt, tokens)), else zero."""
    tree.check_memory(tables=2)
    levels: list[Any] = [np.zeros(tree.level_shape(t), dtype=object) for t in range(tree.horizon)]
    plain = True
    for t, c, a, (prompt, tokens) in entries:
        value = levels[t][c, a] = fn(prompt, tokens)
        plain = plain and isinstance(value, (int, float, np.number, np.bool_))
    return Reward.from_levels(tree, [level.astype(np.float64) for level in levels] if plain else levels)
