"""Token trees: the contexts an autoregressive policy with a finite vocabulary and horizon can meet."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import flint
import numpy as np

from opdtheory.elementary import exact

__all__ = ["SUM_TOLERANCE", "TokenTree"]

# Largest |sum - 1| that floating-point probabilities may show; exact ones must sum to one exactly.
SUM_TOLERANCE = 1e-9


@dataclass(frozen=True)
class TokenTree:
    """Contexts of sequences over ``vocab`` actions with at most ``horizon`` tokens after one of ``prompts``
    prompts.

    With ``eos`` (an action index) the other ``vocab - 1`` tokens continue a sequence and EOS ends it;
    without, every token continues and all sequences have length ``horizon``.  At the last level every token
    ends the sequence. Level ``t`` holds ``prompts * branching**t`` contexts in lexicographic order (prompt
    first); a table over the tree is a list of ``horizon`` arrays of shape ``(batch..., contexts(t), vocab)``.
    The child of context ``c`` by the continuing token of rank ``k`` (EOS left out of the ranking) is ``c *
    branching + k``.

    ``prompt_probs`` are weights of the prompts (uniform by default), numbers or fraction strings summing to
    one.

    Raises ``ValueError`` if a size is not a positive integer, EOS is out of range or the weights are no
    distribution.

    >>> tree = TokenTree(vocab=3, horizon=2, eos=2)
    >>> [tree.contexts(t) for t in range(2)], tree.branching, tree.sequences_total
    ([1, 2], 2, 7)
    """

    vocab: int
    horizon: int
    eos: int | None = None
    prompts: int = 1
    prompt_probs: Sequence[Any] | None = field(default=None)

    def __post_init__(self) -> None:
        for name in ("vocab", "horizon", "prompts"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"{name} = {value!r}: expected a positive integer")
            object.__setattr__(self, name, int(value))
        if self.eos is not None:
            if (
                isinstance(self.eos, bool)
                or not isinstance(self.eos, (int, np.integer))
                or not 0 <= self.eos < self.vocab
            ):
                raise ValueError(
                    f"eos = {self.eos!r}: expected None or an action index in 0..{self.vocab - 1}"
                )
            object.__setattr__(self, "eos", int(self.eos))
        if self.prompt_probs is not None:
            object.__setattr__(self, "prompt_probs", self._checked_prompts(self.prompt_probs))

    def _checked_prompts(self, weights: Sequence[Any]) -> tuple[Any, ...]:
        values = tuple(weights.tolist() if isinstance(weights, np.ndarray) else weights)
        if len(values) != self.prompts:
            raise ValueError(f"prompt_probs has {len(values)} entries: expected prompts = {self.prompts}")
        for i, v in enumerate(values):
            try:
                exact(v)
            except (TypeError, ValueError, OverflowError):
                raise ValueError(f"prompt_probs[{i}] = {v!r}: expected a number >= 0") from None
        values = tuple(float(v) if isinstance(v, (float, np.floating)) else exact(v) for v in values)
        for i, v in enumerate(values):
            if not v >= 0:
                raise ValueError(f"prompt_probs[{i}] = {v}: expected a number >= 0")
        total = sum(values)
        slack = SUM_TOLERANCE if any(isinstance(v, float) for v in values) else 0
        if not abs(total - 1) <= slack:
            raise ValueError(f"prompt_probs sums to {total}: expected 1")
        return values

    # ---- sizes

    @cached_property
    def branching(self) -> int:
        """Number of tokens that continue a sequence."""
        return self.vocab if self.eos is None else self.vocab - 1

    def contexts(self, t: int) -> int:
        """Number of contexts at level ``t`` (0-based: contexts with ``t`` generated tokens)."""
        if not 0 <= t < self.horizon:
            raise ValueError(f"level t = {t}: expected 0..{self.horizon - 1}")
        return self.prompts * self.branching**t

    def level_shape(self, t: int) -> tuple[int, int]:
        """(contexts, actions) of a table at level ``t``, batch axes apart."""
        return self.contexts(t), self.vocab

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Start of each level in the flat list of contexts, and the total as last entry."""
        total, out = 0, [0]
        for t in range(self.horizon):
            total += self.prompts * self.branching**t
            out.append(total)
        return tuple(out)

    @property
    def contexts_total(self) -> int:
        """Number of contexts of all levels."""
        return self.offsets[-1]

    @property
    def pairs_total(self) -> int:
        """Number of context-action pairs."""
        return self.vocab * self.contexts_total

    @cached_property
    def sequences_total(self) -> int:
        """Number of complete sequences (prompt included)."""
        early = 0 if self.eos is None else self.offsets[-2]
        return early + self.vocab * (self.offsets[-1] - self.offsets[-2])

    def nbytes(self, batch: int = 1) -> int:
        """Bytes that one float64 table of ``batch`` instances takes."""
        return 8 * self.pairs_total * batch

    def check_memory(self, batch: int = 1, tables: int = 1) -> None:
        """Raise ``ValueError`` if ``tables`` tables exceed the machine's memory; allocates nothing."""
        need, have = tables * self.nbytes(batch), _physical_memory()
        if need > have:
            raise ValueError(
                f"vocab {self.vocab}, horizon {self.horizon}, {self.prompts} prompt(s), batch {batch}: "
                f"{tables} table(s) would take {_size(need)}; expected at most the {have} bytes of this machine"
            )

    def to_data(self) -> dict[str, Any]:
        """JSON-ready description with weights as fraction strings."""
        return {
            "vocab": self.vocab,
            "horizon": self.horizon,
            "eos": self.eos,
            "prompts": self.prompts,
            "prompt_probs": [str(w) for w in self.weights(True)],
        }

    # ---- layout

    @cached_property
    def action_order(self) -> tuple[int, ...]:
        """Actions in the order of the inner layout: continuing tokens first, EOS last."""
        rest = [a for a in range(self.vocab) if a != self.eos]
        return tuple(rest if self.eos is None else [*rest, self.eos])

    def level_slice(self, t: int) -> slice:
        """Contexts of level ``t`` in the flat inner layout."""
        return self._slices[t]

    @cached_property
    def _slices(self) -> tuple[slice, ...]:
        return tuple(slice(a, b) for a, b in pairwise(self.offsets))

    def weights(self, exact_numbers: bool, batch_axes: int = 0) -> np.ndarray:
        """Prompt weights of shape ``(prompts, 1, ...)`` as float64 or as exact rationals."""
        out = self._exact_weights if exact_numbers else self._float_weights
        return out.reshape((self.prompts,) + (1,) * batch_axes)

    @cached_property
    def _exact_weights(self) -> np.ndarray:
        out = np.empty(self.prompts, dtype=object)
        out[:] = [exact(v) for v in self.prompt_probs or [flint.fmpq(1, self.prompts)] * self.prompts]
        return out

    @cached_property
    def _float_weights(self) -> np.ndarray:
        return np.array([_to_float(v) for v in self._exact_weights])

    def context_label(self, t: int, c: int) -> tuple[int, tuple[int, ...]]:
        """(prompt, tokens) of context ``c`` of level ``t``."""
        tokens: list[int] = []
        for _ in range(t):
            c, rank = divmod(c, self.branching)
            tokens.append(self.action_order[rank])
        return c, tuple(reversed(tokens))

    def sequences(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """All complete sequences as (prompt, tokens), tokens including EOS where it was emitted."""
        for t in range(self.horizon):
            for c in range(self.contexts(t)):
                prompt, tokens = self.context_label(t, c)
                for a in range(self.vocab):
                    if t == self.horizon - 1 or a == self.eos:
                        yield prompt, (*tokens, a)

    def locate(self, prompt: int, tokens: Sequence[int]) -> tuple[int, int, int]:
        """(level, context, last action) of a non-empty token prefix.

        Raises ``ValueError`` if a token is out of range, EOS is followed by more, or the prefix is too long.
        """
        if not 0 < len(tokens) <= self.horizon:
            raise ValueError(f"tokens {tuple(tokens)}: expected 1..{self.horizon} of them")
        if not 0 <= prompt < self.prompts:
            raise ValueError(f"prompt {prompt}: expected 0..{self.prompts - 1}")
        c = prompt
        for i, a in enumerate(tokens):
            if not 0 <= a < self.vocab:
                raise ValueError(f"token {i} = {a}: expected 0..{self.vocab - 1}")
            if i < len(tokens) - 1:
                if a == self.eos:
                    raise ValueError(f"token {i} is EOS: expected it last")
                c = c * self.branching + self.action_order.index(a)
        return len(tokens) - 1, c, tokens[-1]


def _to_float(value: Any) -> float:
    return float(value.p) / float(value.q) if isinstance(value, flint.fmpq) else float(value)


def _size(need: int) -> str:
    """Bytes in words, also where they exceed the range of float64."""
    if need.bit_length() > 200:
        return f"about 10^{int(need.bit_length() * math.log10(2))} bytes"
    return f"{need} bytes ({need / 2**30:.3g} GiB)"


def _physical_memory() -> int:
    import os

    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no such call on this platform: refuse nothing
        return math.inf  # type: ignore[return-value]
