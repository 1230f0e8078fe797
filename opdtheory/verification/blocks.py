"""Search coordinates: how an instance's free numbers are drawn, moved, rounded and simplified.

A space is described by named blocks (probability simplices, boxes, log-scaled boxes).  Everything the attack does
to an instance, sampling structured families, mutation, exact rounding, shrinking, is written once on blocks.
Search works on unconstrained coordinates θ in [−14, 14]; a simplex entry whose coordinate falls under −13.5 is an
exact zero, because extreme instances sit on the boundary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import flint
import numpy as np

from opdtheory.elementary import exact

LIMIT = 14.0
ZERO_BELOW = -13.5
_BOX_SPAN = 16.0  # the box's interior is |θ| < 8, so clipping reaches both ends

Array = np.ndarray


@dataclass(frozen=True)
class Simplex:
    """Probability vectors along the last axis of ``shape``; ``zeros`` allows exact zeros."""

    shape: tuple[int, ...]
    zeros: bool = True

    def decode(self, theta: Array) -> Array:
        """θ (…, size) → probabilities (…, *shape)."""
        x = theta.reshape(*theta.shape[:-1], *self.shape)
        top = x.max(axis=-1, keepdims=True)
        p = np.exp(x - top)
        if self.zeros:
            p[(x <= ZERO_BELOW) & (x < top)] = 0.0
        return p / p.sum(axis=-1, keepdims=True)

    def encode(self, value: Array) -> Array:
        logs = np.log(np.maximum(value, np.exp(-2 * LIMIT)))
        theta = logs - logs.max(axis=-1, keepdims=True) + LIMIT / 2
        theta = np.where(value > 0, np.maximum(theta, ZERO_BELOW + 0.1), -LIMIT)
        return np.clip(theta, -LIMIT, LIMIT).reshape(*value.shape[: value.ndim - len(self.shape)], -1)

    def sample(self, rng: np.random.Generator, n: int) -> Array:
        """Structured families, one a lane: Dirichlet of many sharpnesses, Gaussian logits, sparse, deterministic, uniform."""
        k = self.shape[-1]
        rows = (n, *self.shape[:-1])
        family = rng.integers(0, 6, size=(n, *(1,) * len(self.shape)))
        concentration = rng.choice([0.05, 0.3, 1.0, 5.0], size=family.shape)
        dirichlet = np.log(rng.standard_gamma(np.broadcast_to(concentration, (n, *self.shape))) + 1e-300)
        dirichlet -= dirichlet.max(axis=-1, keepdims=True)
        gaussian = rng.normal(size=(n, *self.shape)) * rng.choice([0.1, 0.5, 2.0, 6.0], size=family.shape)
        keep = rng.random((n, *self.shape)) < 0.5
        hot = np.arange(k) == rng.integers(0, k, size=(*rows, 1))
        sparse = np.where(keep | hot, gaussian, -LIMIT)
        deterministic = np.where(hot, 0.0, -LIMIT)
        theta = np.select(
            [family <= 1, family == 2, family == 3, family == 4], [dirichlet, gaussian, sparse, deterministic], default=0.0
        )
        if not self.zeros:
            theta = np.maximum(theta, ZERO_BELOW + 0.1)
        return np.clip(theta, -LIMIT, LIMIT).reshape(n, -1)

    def rationalise(self, value: Array, denominator: int) -> Array:
        """Round each row to multiples of 1/denominator by largest remainders; zeros stay zero if asked to be allowed."""
        k = self.shape[-1]
        rows = value.reshape(-1, k)
        scaled = rows * denominator
        floor = np.floor(scaled + 1e-9)
        if not self.zeros:
            floor = np.maximum(floor, 1.0)
        out = np.empty(rows.shape, dtype=object)
        for i in range(len(rows)):
            counts = floor[i].astype(int).tolist()
            order = sorted(range(k), key=(scaled[i] - floor[i]).__getitem__, reverse=True)
            missing = denominator - sum(counts)
            for step in range(abs(missing)):
                candidates = order if missing > 0 else [a for a in sorted(range(k), key=lambda a: -counts[a]) if counts[a] > 1]
                if not candidates:
                    break
                counts[candidates[step % len(candidates)]] += 1 if missing > 0 else -1
            total = sum(counts)
            for a in range(k):
                out[i, a] = flint.fmpq(counts[a], total)
        return out.reshape(self.shape)

    def simpler(self, value: Array) -> Iterator[tuple[tuple[int, ...], list[flint.fmpq]]]:
        """Simplifications, row by row: deterministic, uniform, then coarser grids.  Yields (row index, new row)."""
        for index in np.ndindex(self.shape[:-1]):
            for option in _simpler_rows(tuple(value[index]), self.zeros):
                yield index, list(option)


@lru_cache(maxsize=4096)
def _simpler_rows(row: tuple[Any, ...], zeros: bool) -> tuple[tuple[Any, ...], ...]:
    """Distributions over as many tokens that are easier to read than ``row``."""
    k = len(row)
    current = _row_cost(row)
    options: list[tuple[Any, ...]] = []
    if zeros:
        best = max(range(k), key=row.__getitem__)
        options.append(tuple(flint.fmpq(int(a == best)) for a in range(k)))
    options.append((flint.fmpq(1, k),) * k)
    floats = np.array([float(v.p) / float(v.q) for v in row])
    for denominator in (2, 3, 4, 5, 10, 20, 100):
        options.append(tuple(Simplex((k,), zeros).rationalise(floats, denominator)))
    return tuple(option for option in options if _row_cost(option) < current)


@dataclass(frozen=True)
class Box:
    """Numbers in [lo, hi], linear scale."""

    shape: tuple[int, ...]
    lo: float = 0.0
    hi: float = 1.0

    @property
    def _ends(self) -> tuple[flint.fmpq, flint.fmpq]:
        """The ends as the decimal fractions they were written as, not as their binary approximations."""
        return exact(str(self.lo)), exact(str(self.hi))

    def decode(self, theta: Array) -> Array:
        x = theta.reshape(*theta.shape[:-1], *self.shape)
        return self.lo + (self.hi - self.lo) * np.clip(0.5 + x / _BOX_SPAN, 0.0, 1.0)

    def encode(self, value: Array) -> Array:
        x = ((value - self.lo) / (self.hi - self.lo) - 0.5) * _BOX_SPAN
        return x.reshape(*value.shape[: value.ndim - len(self.shape)], -1)

    def sample(self, rng: np.random.Generator, n: int) -> Array:
        size = math.prod(self.shape)
        spread = rng.choice([0.0, 2.0, 6.0, 40.0], size=(n, 1))
        return np.clip(rng.uniform(-8, 8, size=(n, 1)) + spread * rng.normal(size=(n, size)), -LIMIT, LIMIT)

    def rationalise(self, value: Array, denominator: int) -> Array:
        lo, hi = self._ends
        out = np.empty(self.shape, dtype=object)
        for index in np.ndindex(self.shape):
            q = flint.fmpq(round(float(value[index]) * denominator), denominator)
            out[index] = min(max(q, lo), hi)
        return out

    def simpler(self, value: Array) -> Iterator[tuple[tuple[int, ...], flint.fmpq]]:
        lo, hi = self._ends
        ends = [exact(0)] if lo <= 0 <= hi else []
        ends += [lo, hi]
        for index in np.ndindex(self.shape):
            v: Any = value[index]
            coarse = [flint.fmpq(round(float(v.p) / float(v.q) * d), d) for d in (1, 2, 3, 4, 5, 10, 20, 100)]
            for option in [*ends, *coarse]:
                if lo <= option <= hi and cost(option) < cost(v):
                    yield index, option


@dataclass(frozen=True)
class LogBox(Box):
    """Positive numbers in [lo, hi], logarithmic scale."""

    def decode(self, theta: Array) -> Array:
        x = theta.reshape(*theta.shape[:-1], *self.shape)
        return self.lo * (self.hi / self.lo) ** np.clip(0.5 + x / _BOX_SPAN, 0.0, 1.0)

    def encode(self, value: Array) -> Array:
        x = (np.log(value / self.lo) / np.log(self.hi / self.lo) - 0.5) * _BOX_SPAN
        return x.reshape(*value.shape[: value.ndim - len(self.shape)], -1)

    def rationalise(self, value: Array, denominator: int) -> Array:
        """Round to about log10(denominator) significant digits: relative, not absolute, precision."""
        digits = max(1, math.ceil(math.log10(denominator)))
        lo, hi = self._ends
        out = np.empty(self.shape, dtype=object)
        for index in np.ndindex(self.shape):
            q = exact(f"{float(value[index]):.{digits}g}")
            out[index] = min(max(q, lo), hi)
        return out


Block = Simplex | Box | LogBox
Values = dict[str, Array]


@lru_cache(maxsize=65536)
def cost(q: Any) -> int:
    """How hard a fraction is to read: digits of numerator and denominator."""
    return int(q) if q in (0, 1) else len(str(abs(q.p))) + 3 * len(str(q.q)) + (int(q.q) > 2)


def _row_cost(row: tuple[Any, ...]) -> int:
    return sum(map(cost, row))


def total_cost(values: Values) -> int:
    """Reading cost of a whole exact instance."""
    return sum(cost(q) for array in values.values() for q in array.flat)


def size_of(block: Block) -> int:
    return math.prod(block.shape)


def decode(blocks: dict[str, Block], theta: Array) -> Values:
    """θ (lanes, d) → float values of every block, (lanes, *shape)."""
    out, start = {}, 0
    for name, block in blocks.items():
        stop = start + size_of(block)
        out[name] = block.decode(theta[..., start:stop])
        start = stop
    return out


def encode(blocks: dict[str, Block], values: Values) -> Array:
    return np.concatenate([block.encode(values[name]) for name, block in blocks.items()], axis=-1)


def sample(blocks: dict[str, Block], rng: np.random.Generator, n: int, pairs: tuple[tuple[str, str], ...]) -> Array:
    """Draw θ for n lanes from the structured families; blocks named in ``pairs`` (prefixes) are coupled.

    A quarter of the lanes each: independent, near-equal (log-uniform noise), equal but for a few entries, opposed.
    """
    parts = {name: block.sample(rng, n) for name, block in blocks.items()}
    coupling = rng.integers(0, 4, size=(n, 1))
    noise = 10.0 ** rng.uniform(-3, 0.5, size=(n, 1))
    for first, second in pairs:
        for name in [b for b in blocks if b == first or b.startswith(first + ".")]:
            twin = second + name[len(first) :]
            a, b = parts[name], parts[twin]
            few = rng.random(a.shape) < 0.3
            zeroed = a <= ZERO_BELOW
            near = np.where(zeroed, a, a + noise * rng.normal(size=a.shape))
            opposed = np.where(zeroed, rng.uniform(-2, 2, size=a.shape), -a)
            parts[twin] = np.select([coupling == 0, coupling == 1, coupling == 2], [b, near, np.where(few, b, a)], opposed)
    return np.clip(np.concatenate(list(parts.values()), axis=-1), -LIMIT, LIMIT)


def rationalise(blocks: dict[str, Block], values: Values, denominator: int) -> Values:
    """Round one float instance (no lane axis) to exact fractions."""
    return {name: block.rationalise(np.asarray(values[name]), denominator) for name, block in blocks.items()}


def to_float(values: Values) -> Values:
    """Exact values → float64 arrays."""
    convert = np.frompyfunc(lambda q: float(q.p) / float(q.q) if isinstance(q, flint.fmpq) else float(q), 1, 1)
    return {name: np.asarray(convert(array), dtype=float) for name, array in values.items()}
