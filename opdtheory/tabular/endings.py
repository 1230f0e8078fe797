"""Complete sequences of two policies, all at once or block by block.

Sums over the sequences of a large tree are taken over blocks that fit in cache: arrays over all sequences
would be written to memory and read back for every operation.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from opdtheory.tabular import local

if TYPE_CHECKING:
    from opdtheory.tabular.contrast import PolicyContrast

__all__ = ["AllEndings", "Endings", "blocks"]


class AllEndings:
    """All complete sequences, in the order of ``flow.sequence_entries``, from the contrast's own arrays."""

    def __init__(self, contrast: PolicyContrast) -> None:
        self._contrast = contrast

    @property
    def law_mu(self) -> np.ndarray:
        """μ(y)."""
        return self._contrast._law_mu

    @property
    def law_pi(self) -> np.ndarray:
        """π(y)."""
        return self._contrast._law_pi

    @property
    def shift(self) -> np.ndarray:
        """π(y) - μ(y)."""
        return self._contrast._law_shift

    @property
    def remainder(self) -> np.ndarray:
        """The signed measure n(y)."""
        return self._contrast._flat_remainder

    @property
    def log_ratio(self) -> np.ndarray:
        """log W(y) on the support of μ, 0 outside."""
        return self._contrast._sequence_log_ratio

    @property
    def returns(self) -> np.ndarray:
        """R(y) (of a policy pair)."""
        return self._contrast._returns  # type: ignore[attr-defined]


class Endings:
    """The complete sequences that end at ``contexts`` by ``actions``; attributes of ``AllEndings``."""

    def __init__(self, contrast: PolicyContrast, actions: slice, contexts: slice) -> None:
        self._contrast, self._actions, self._contexts = contrast, actions, contexts

    def _entries(self, table: np.ndarray) -> np.ndarray:
        return table[self._actions, self._contexts]

    def _flat(self, x: np.ndarray) -> np.ndarray:
        return x.reshape((-1, *x.shape[2:]))

    @cached_property
    def _mu(self) -> np.ndarray:
        return self._entries(self._contrast._mu)

    @cached_property
    def _pi(self) -> np.ndarray:
        return self._entries(self._contrast._pi)

    @cached_property
    def _moved(self) -> np.ndarray:
        return self._pi - self._mu

    @cached_property
    def law_mu(self) -> np.ndarray:
        return self._flat(self._mu * self._contrast._d[self._contexts])

    @cached_property
    def law_pi(self) -> np.ndarray:
        return self._flat(self._pi * self._contrast.target.flat_occupancy[self._contexts])

    @cached_property
    def shift(self) -> np.ndarray:
        c = self._contexts
        out = self._pi * self._contrast._context_shift[c]
        out += self._moved * self._contrast._d[c]
        return self._flat(out)

    @cached_property
    def remainder(self) -> np.ndarray:
        c = self._contexts
        out = self._mu * self._contrast._context_remainder[c]
        out += self._moved * self._contrast._context_shift[c]
        return self._flat(out)

    @cached_property
    def log_ratio(self) -> np.ndarray:
        return local.log_ratio(self.law_mu, self.law_pi, self.shift)

    @cached_property
    def returns(self) -> np.ndarray:
        reward: Any = self._contrast.reward  # type: ignore[attr-defined]
        return self._flat(self._entries(reward.flat))


def blocks(contrast: PolicyContrast) -> Iterator[Endings]:
    """The complete sequences in blocks of about ``local.CHUNK`` numbers."""
    tree, mu = contrast.tree, contrast._mu
    batch = int(np.prod(mu.shape[2:]))
    early = 0 if tree.eos is None else tree.offsets[-2]
    for actions, width, start, stop in (
        (slice(tree.vocab - 1, None), 1, 0, early),
        (slice(None), tree.vocab, tree.offsets[-2], tree.offsets[-1]),
    ):
        size = max(1, local.CHUNK // (width * batch))
        for first in range(start, stop, size):
            yield Endings(contrast, actions, slice(first, min(first + size, stop)))
