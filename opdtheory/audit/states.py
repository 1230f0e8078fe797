"""Statistics as mergeable states: one file, many files, many processes and a cluster give the same result.

Counts are integers and extremes are exact, so merging them is associative; sums are kept as pairs of floats
whose merging loses nothing above about 1e-30 relative, so that the order of merging changes no digit
anybody sees. Quantiles come from a histogram with bins of 1 % relative width, whose merging is addition.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_GAMMA = math.log(1.02)
_SMALLEST, _LARGEST = -28.0, 46.0
"""ln of the magnitudes that the histogram resolves: 1e-12 to 1e20; smaller is counted as 0, larger in the
last bin.
"""
_SIDE = math.ceil((_LARGEST - _SMALLEST) / _GAMMA)


@dataclass
class Sum:
    """A sum of floats as an unevaluated pair high + low, plus counts of infinite terms."""

    high: float = 0.0
    low: float = 0.0
    plus_inf: int = 0
    minus_inf: int = 0

    def add(self, values: np.ndarray) -> None:
        """Add an array; infinities are counted apart: they poison the value but not the bookkeeping."""
        finite = np.isfinite(values)
        if not finite.all():
            self.plus_inf += int((values == np.inf).sum())
            self.minus_inf += int((values == -np.inf).sum())
            values = values[finite]
        self._accumulate(math.fsum(values.tolist()) if values.size <= 4096 else _blocked_sum(values))

    def _accumulate(self, value: float, low: float = 0.0) -> None:
        total = self.high + value
        part = total - self.high
        error = (self.high - (total - part)) + (value - part)
        self.low += error + low
        self.high = total

    def merge(self, other: Sum) -> None:
        self._accumulate(other.high, other.low)
        self.plus_inf += other.plus_inf
        self.minus_inf += other.minus_inf

    @property
    def value(self) -> float:
        """The sum; inf − inf is NaN."""
        if self.plus_inf or self.minus_inf:
            return math.nan if self.plus_inf and self.minus_inf else math.inf if self.plus_inf else -math.inf
        return self.high + self.low


def _blocked_sum(values: np.ndarray) -> float:
    """Pairwise sums of blocks of 1024, joined exactly."""
    cut = values.size // 1024 * 1024
    blocks = values[:cut].reshape(-1, 1024).sum(axis=1)
    return math.fsum([*blocks.tolist(), *values[cut:].tolist()])


@dataclass
class Series:
    """Count, sum, sum of squares, extremes and histogram of one statistic."""

    count: int = 0
    total: Sum = field(default_factory=Sum)
    squares: Sum = field(default_factory=Sum)
    least: float = math.inf
    largest: float = -math.inf
    places: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, values: np.ndarray) -> None:
        """Add an array of values; NaN is refused, since it would hide in a sum."""
        if values.size == 0:
            return
        if np.isnan(values).any():
            raise ValueError("values: got NaN, expected numbers or infinities")
        self.count += values.size
        self.total.add(values)
        with np.errstate(over="ignore"):
            self.squares.add(values * values)
        self.least = min(self.least, float(values.min()))
        self.largest = max(self.largest, float(values.max()))
        counts = np.bincount(_bin(values), minlength=2 * _SIDE + 1)
        self._join(np.flatnonzero(counts), counts[counts > 0])

    def merge(self, other: Series) -> None:
        self.count += other.count
        self.total.merge(other.total)
        self.squares.merge(other.squares)
        self.least = min(self.least, other.least)
        self.largest = max(self.largest, other.largest)
        self._join(other.places, other.counts)

    def _join(self, places: np.ndarray, counts: np.ndarray) -> None:
        """Add counts of histogram bins; only bins that were hit are kept."""
        self.places, where = np.unique(np.concatenate([self.places, places]), return_inverse=True)
        total = np.zeros(len(self.places), np.int64)
        np.add.at(total, where, np.concatenate([self.counts, counts]))
        self.counts = total

    @property
    def mean(self) -> float:
        return self.total.value / self.count if self.count else math.nan

    def variance(self, ddof: int = 0) -> float:
        """Variance; 0 for a single value."""
        if self.count <= ddof:
            return 0.0
        mean = self.mean
        if not math.isfinite(mean) or not math.isfinite(self.squares.value):
            return math.inf
        return max(0.0, (self.squares.value - self.count * mean * mean) / (self.count - ddof))

    def quantile(self, q: float) -> float:
        """Quantile within 1 % relative (and 1e-12 absolute), clipped to the exact extremes."""
        if not self.count:
            return math.nan
        if q <= 0 or q >= 1:
            return self.least if q <= 0 else self.largest
        rank = q * (self.count - 1)
        index = self.places[int(np.searchsorted(np.cumsum(self.counts), rank, side="right"))]
        return float(min(max(_centre(np.array([index]))[0], self.least), self.largest))

    def histogram(self, edges: np.ndarray) -> np.ndarray:
        """Counts between increasing edges, to the histogram's own resolution."""
        where = np.searchsorted(edges, _centre(self.places), side="right") - 1
        out = np.zeros(len(edges) - 1, np.int64)
        np.add.at(out, np.clip(where, 0, len(out) - 1), self.counts)
        return out


def _bin(values: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        level = np.clip(np.ceil((np.log(np.abs(values)) - _SMALLEST) / _GAMMA), 0, _SIDE)
    return (_SIDE + np.sign(values) * level).astype(np.int64)


def _centre(index: np.ndarray) -> np.ndarray:
    side = index - _SIDE
    return np.where(side == 0, 0.0, np.sign(side) * np.exp(_SMALLEST + (np.abs(side) - 0.5) * _GAMMA))


@dataclass
class Groups:
    """Sums per prompt (group): a sorted table of keys, so that prompts split over files are joined again."""

    names: tuple[str, ...] = ()
    keys: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    values: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    pending: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def add(self, keys: np.ndarray, columns: Mapping[str, np.ndarray]) -> None:
        """Add one row per sequence; missing columns count as 0 and new ones extend the table."""
        fresh = tuple(n for n in columns if n not in self.names)
        if fresh:
            self._extend(fresh)
        block = np.zeros((len(keys), len(self.names)))
        for i, name in enumerate(self.names):
            if name in columns:
                block[:, i] = columns[name]
        self.pending.append((np.asarray(keys, np.uint64), block))
        if sum(len(k) for k, _ in self.pending) > 4096 + len(self.keys) // 4:
            self.settle()

    def _extend(self, fresh: tuple[str, ...]) -> None:
        self.settle()
        self.values = np.hstack([self.values, np.zeros((len(self.keys), len(fresh)))])
        self.names = self.names + fresh

    def settle(self) -> None:
        """Sum the rows of equal keys."""
        if not self.pending:
            return
        keys = np.concatenate([self.keys, *(k for k, _ in self.pending)])
        values = np.vstack([self.values, *(v for _, v in self.pending)])
        self.pending = []
        self.keys, inverse = np.unique(keys, return_inverse=True)
        out = np.zeros((len(self.keys), len(self.names)))
        np.add.at(out, inverse, values)
        self.values = out

    def merge(self, other: Groups) -> None:
        other.settle()
        self.add(other.keys, {n: other.values[:, i] for i, n in enumerate(other.names)})
        self.settle()

    def column(self, name: str) -> np.ndarray:
        """One column, ordered by key."""
        self.settle()
        return self.values[:, self.names.index(name)] if name in self.names else np.zeros(len(self.keys))


@dataclass
class Profile:
    """Sums by position in the response: single positions below 32, then 16 bins an octave."""

    sums: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, positions: np.ndarray, columns: Mapping[str, np.ndarray]) -> None:
        index = position_bin(positions)
        for name, values in {"count": np.ones(len(positions)), **columns}.items():
            self._plus(name, np.bincount(index, weights=values))

    def _plus(self, name: str, values: np.ndarray) -> None:
        old = self.sums.get(name, np.zeros(0))
        out = np.zeros(max(len(old), len(values)))
        out[: len(old)] += old
        out[: len(values)] += values
        self.sums[name] = out

    def merge(self, other: Profile) -> None:
        for name, values in other.sums.items():
            self._plus(name, values)


def position_bin(positions: np.ndarray) -> np.ndarray:
    """Bin of a position, the same in every file."""
    p = np.maximum(np.asarray(positions, np.int64), 0)
    octave = np.floor(np.log2(np.maximum(p, 32))).astype(np.int64) - 5
    return np.where(p < 32, p, 32 + 16 * octave + ((p >> (octave + 1)) - 16))


def bin_start(index: int) -> int:
    """First position of a bin.

    >>> [bin_start(int(position_bin(np.array([p]))[0])) for p in (5, 40, 1000)]
    [5, 40, 992]
    """
    if index < 32:
        return index
    octave, part = divmod(index - 32, 16)
    return (16 + part) << (octave + 1)


@dataclass
class Top:
    """The ``limit`` entries with the largest value; ties go to the smaller name, so merging has no order."""

    limit: int
    entries: list[tuple[float, str, dict[str, Any]]] = field(default_factory=list)

    def add(self, entries: Iterable[tuple[float, str, dict[str, Any]]]) -> None:
        self.entries = sorted([*self.entries, *entries], key=lambda e: (-e[0], e[1]))[: self.limit]

    def floor(self) -> float:
        """Values at or below this need not be offered."""
        if not self.limit:
            return math.inf
        return self.entries[-1][0] if len(self.entries) >= self.limit else -math.inf

    def merge(self, other: Top) -> None:
        self.add(other.entries)


@dataclass
class Vocabulary:
    """Count and summed divergence per token id, sparse and bounded by the vocabulary."""

    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    sums: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def add(self, ids: np.ndarray, values: np.ndarray, counts: np.ndarray | None = None) -> None:
        counts = np.ones(len(ids), np.int64) if counts is None else counts
        self.ids, inverse = np.unique(np.concatenate([self.ids, ids]), return_inverse=True)
        size = len(self.ids)
        self.counts = np.bincount(inverse, np.concatenate([self.counts, counts]), size).astype(np.int64)
        self.sums = np.bincount(inverse, np.concatenate([self.sums, values]), size)

    def merge(self, other: Vocabulary) -> None:
        self.add(other.ids, other.sums, other.counts)
