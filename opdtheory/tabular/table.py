"""Tables over the contexts and actions of a token tree, in floating point or exact.

Public layout: a list of ``horizon`` arrays ``(batch..., contexts(t), vocab)``.  Inner layout: one array
``flat`` of shape ``(vocab, contexts_total)`` or ``(vocab, contexts_total, batch)``, actions first (EOS last
among them), then the contexts level by level, within a level with the *newest* token most significant, and
the batch last.  In that order the children of a level by all continuing tokens are ``branching`` contiguous
copies of the level, so that one step of forward occupancy or of backward values is one contiguous
multiplication.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

import flint
import numpy as np

from opdtheory.elementary import exact
from opdtheory.tabular.tree import TokenTree

__all__ = ["Table", "as_numbers", "to_float"]


def _exact_or_ball(value: Any) -> Any:
    return value if isinstance(value, flint.arb) else exact(value)


_to_exact = np.frompyfunc(_exact_or_ball, 1, 1)


def _float_of(value: Any) -> float:
    # fmpq has no __float__; Python's big-integer division rounds correctly at any size
    return int(value.p) / int(value.q) if isinstance(value, flint.fmpq) else float(value)


_to_float64 = np.frompyfunc(_float_of, 1, 1)


def to_float(x: Any) -> Any:
    """Nearest float64 of exact rationals or balls (scalars or object arrays); float input passes through."""
    if isinstance(x, np.ndarray):
        return _to_float64(x).astype(np.float64) if x.dtype == object else x
    return _float_of(x)


def as_numbers(x: Any) -> np.ndarray:
    """Array of float64, or of exact rationals for entries that are Fractions, fmpq, balls or strings."""
    array = np.asarray(x)
    if array.dtype == object or array.dtype.kind in "US":
        return np.asarray(_to_exact(array), dtype=object)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"entries of type {array.dtype}: expected real numbers")
    return array.astype(np.float64, copy=False)


class Table:
    """A real table over context-action pairs; construct with ``from_levels`` or from the inner layout.

    ``flat`` has shape ``(vocab, contexts_total)`` plus one batch axis unless ``batch_shape`` is ``()``.
    """

    def __init__(self, tree: TokenTree, flat: np.ndarray, batch_shape: tuple[int, ...] | None = None) -> None:
        self.tree = tree
        self.flat = flat
        self.batch_shape = tuple(flat.shape[2:]) if batch_shape is None else batch_shape

    @classmethod
    def from_levels(cls, tree: TokenTree, levels: Sequence[Any], *, validate: bool = True) -> Self:
        """Build from the public layout; ``validate=False`` skips the checks of the entries, not those of
        shapes.

        Raises ``ValueError`` naming the level and entry.
        """
        flat, batch_shape = _levels_to_flat(tree, levels)
        table = cls(tree, flat, batch_shape)
        if validate:
            table.validate()
        return table

    @property
    def is_exact(self) -> bool:
        """True if the entries are rationals or balls."""
        return self.flat.dtype == object

    @property
    def batch_axes(self) -> int:
        """Number of batch axes of the inner layout, 0 or 1."""
        return self.flat.ndim - 2

    @cached_property
    def levels(self) -> list[np.ndarray]:
        """The public layout: ``levels[t]`` has shape ``(batch..., contexts(t), vocab)``."""
        return flat_to_levels(self.tree, self.flat, self.batch_shape)

    def to_data(self) -> list[Any]:
        """Level lists of fraction strings of a single instance (floats at their binary value)."""
        if self.batch_shape:
            raise ValueError(f"batch shape {self.batch_shape}: expected a single instance")
        return [[[str(v) for v in row] for row in level] for level in self.as_exact().levels]

    def validate(self) -> None:
        """Raise ``ValueError`` at the first entry that is not a finite number."""
        if not self.is_exact:
            self._refuse(~np.isfinite(self.flat), "a finite number")

    def _refuse(self, bad: np.ndarray, expected: str) -> None:
        """Raise if any entry of ``bad`` (inner layout) is set, naming the first in public order."""
        if not bad.any():
            return
        for t, (level, values) in enumerate(
            zip(flat_to_levels(self.tree, bad, self.batch_shape), self.levels, strict=True)
        ):
            where = np.argwhere(level)
            if len(where):
                *batch, c, a = (int(i) for i in where[0])
                at = f"levels[{t}][{', '.join(map(str, [*batch, c, a]))}]"
                prompt, tokens = self.tree.context_label(t, c)
                raise ValueError(
                    f"{type(self).__name__} {at} = {values[(*batch, c, a)]} "
                    f"(prompt {prompt}, context {tokens}, action {a}): expected {expected}"
                )

    def _like(self, flat: np.ndarray) -> Self:
        return type(self)(self.tree, flat, self.batch_shape)

    def as_exact(self) -> Self:
        """The same table with exact rational entries (floats are taken at their binary value)."""
        return self if self.is_exact else self._like(_to_exact(self.flat))

    def as_float(self) -> Self:
        """The same table rounded to float64."""
        return self._like(to_float(self.flat)) if self.is_exact else self

    def broadcast(self, batch_shape: tuple[int, ...]) -> Self:
        """The same table repeated to a larger batch shape."""
        if batch_shape == self.batch_shape:
            return self
        ones = (1,) * (len(batch_shape) - len(self.batch_shape)) + self.batch_shape
        spread = np.broadcast_to(
            self.flat.reshape((*self.flat.shape[:2], *ones)), (*self.flat.shape[:2], *batch_shape)
        )
        return type(self)(
            self.tree, np.ascontiguousarray(spread.reshape((*self.flat.shape[:2], -1))), batch_shape
        )

    def __getitem__(self, index: Any) -> Self:
        """Select instances along a one-dimensional batch."""
        if len(self.batch_shape) != 1:
            raise ValueError(f"batch shape {self.batch_shape}: expected one batch axis to select from")
        flat = self.flat[:, :, index]
        return type(self)(self.tree, np.ascontiguousarray(flat), tuple(flat.shape[2:]))


def _read_level(t: int, level: Any) -> np.ndarray:
    """Level ``t`` as numbers; a ``ValueError`` names the entry that is none."""
    try:
        return as_numbers(level)
    except (TypeError, ValueError, OverflowError):
        pass
    try:
        entries = np.asarray(level)
    except ValueError:
        raise ValueError(f"levels[{t}] has rows of different lengths: expected one array") from None
    for at, entry in np.ndenumerate(entries.astype(object)):
        try:
            as_numbers(entry)
        except (TypeError, ValueError, OverflowError):
            where = f"[{', '.join(map(str, at))}]" if at else ""
            raise ValueError(f"levels[{t}]{where} = {entry!r}: expected a real number") from None
    raise ValueError(f"levels[{t}] holds entries of type {entries.dtype}: expected real numbers")


def _levels_to_flat(tree: TokenTree, levels: Sequence[Any]) -> tuple[np.ndarray, tuple[int, ...]]:
    if not hasattr(levels, "__len__"):
        raise ValueError(f"levels = {levels!r}: expected a list of horizon = {tree.horizon} arrays")
    if len(levels) != tree.horizon:
        raise ValueError(f"{len(levels)} levels: expected horizon = {tree.horizon}")
    arrays = [_read_level(t, level) for t, level in enumerate(levels)]
    batch_shape = arrays[0].shape[:-2]
    for t, array in enumerate(arrays):
        want = (*batch_shape, tree.contexts(t), tree.vocab)
        if array.size == 0 == tree.contexts(t):  # only EOS exists: empty levels may be written []
            arrays[t] = array.reshape(want)
        elif array.shape != want:
            raise ValueError(f"levels[{t}] has shape {array.shape}: expected {want}")
    exact_numbers = any(array.dtype == object for array in arrays)
    inner_batch = () if batch_shape == () else (int(np.prod(batch_shape)),)
    tree.check_memory(int(np.prod(batch_shape)))
    flat = np.empty(
        (tree.vocab, tree.contexts_total, *inner_batch), dtype=object if exact_numbers else np.float64
    )
    order = list(tree.action_order)
    for t, array in enumerate(arrays):
        if exact_numbers and array.dtype != object:
            array = _to_exact(array)
        if order != sorted(order):
            array = array[..., order]
        digits = (tree.prompts, *(tree.branching,) * t, tree.vocab)
        split = array.reshape((*inner_batch, *digits))
        # reverse the digits: actions, newest token, ..., oldest token, prompt; the batch goes last
        axes = (*range(split.ndim - 1, len(inner_batch) - 1, -1), *range(len(inner_batch)))
        target = flat[:, tree.level_slice(t)]
        target.reshape((*reversed(digits), *inner_batch))[...] = split.transpose(axes)
    return flat, batch_shape


def flat_to_levels(tree: TokenTree, flat: np.ndarray, batch_shape: tuple[int, ...]) -> list[np.ndarray]:
    """Public layout of an inner array whose first axis holds all actions."""
    inner_batch = flat.shape[2:]
    inverse = list(np.argsort(tree.action_order))
    levels = []
    for t in range(tree.horizon):
        digits = (tree.vocab, *(tree.branching,) * t, tree.prompts)
        split = flat[:, tree.level_slice(t)].reshape((*digits, *inner_batch))
        n = len(digits)
        axes = (*range(n, split.ndim), *range(n - 1, -1, -1))
        level = split.transpose(axes)[..., inverse]
        levels.append(np.ascontiguousarray(level).reshape((*batch_shape, tree.contexts(t), tree.vocab)))
    return levels


def flat_to_context_levels(
    tree: TokenTree, flat: np.ndarray, batch_shape: tuple[int, ...]
) -> list[np.ndarray]:
    """Public layout ``(batch..., contexts(t))`` of an inner array ``(contexts_total[, batch])``."""
    inner_batch = flat.shape[1:]
    levels = []
    for t in range(tree.horizon):
        digits = (*(tree.branching,) * t, tree.prompts)
        split = flat[tree.level_slice(t)].reshape((*digits, *inner_batch))
        n = len(digits)
        level = split.transpose((*range(n, split.ndim), *range(n - 1, -1, -1)))
        levels.append(np.ascontiguousarray(level).reshape((*batch_shape, tree.contexts(t))))
    return levels
