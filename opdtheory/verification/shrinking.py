"""Making an exact instance pleasant to read: simplified entry by entry while its float score stays good enough."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from opdtheory.spaces import Size
from opdtheory.verification import blocks as bl
from opdtheory.verification.ascent import evaluate
from opdtheory.verification.claim import Claim

_MAX_STEPS = 200
_BATCH = 64


class Change(NamedTuple):
    """One entry (a row of a simplex, or a number) of one block replaced, and what that saves or costs in reading."""

    cost: int
    name: str
    entry: tuple[int, ...]
    new: Any


def _twins(claim: Claim, blocks: dict[str, bl.Block]) -> list[tuple[str, str]]:
    """Names of the blocks that are read side by side."""
    assert claim.space is not None
    return [
        (name, second + name[len(first) :])
        for first, second in claim.space.pairs
        for name in blocks
        if name == first or name.startswith(first + ".")
    ]


def reading_cost(claim: Claim, size: Size, values: bl.Values) -> int:
    """Digits to read, plus two for every row in which coupled policies differ."""
    assert claim.space is not None
    differing = sum(
        int(np.any(values[a] != values[b], axis=-1).sum()) for a, b in _twins(claim, claim.space.blocks(**size))
    )
    return bl.total_cost(values) + 2 * differing


def _changes(blocks: dict[str, bl.Block], twins: list[tuple[str, str]], values: bl.Values) -> Iterator[Change]:
    """Every single replacement that may make an instance simpler."""
    differs = {pair: np.any(values[pair[0]] != values[pair[1]], axis=-1) for pair in twins}

    def change(name: str, index: tuple[int, ...], new: Any) -> Change:
        cost = _reading(new) - _reading(values[name][index])
        for pair, differing in differs.items():
            if name in pair:
                other = values[pair[name == pair[0]]][index]
                cost += 2 * (any(a != b for a, b in zip(new, other, strict=True)) - bool(differing[index]))
        return Change(int(cost), name, index, new)

    for name, block in blocks.items():
        for index, new in block.simpler(values[name]):
            yield change(name, index, new)
    for (name, twin), differing in differs.items():
        for row in np.argwhere(differing):
            index = tuple(int(i) for i in row)
            yield change(twin, index, values[name][index])
            yield change(name, index, values[twin][index])


def _reading(entry: Any) -> int:
    return sum(map(bl.cost, entry)) if isinstance(entry, (list, np.ndarray)) else bl.cost(entry)


def _scores(claim: Claim, size: Size, values: bl.Values, changes: list[Change]) -> np.ndarray:
    floats = bl.to_float(values)
    stacked = {name: np.repeat(array[None], len(changes), axis=0) for name, array in floats.items()}
    for lane, change in enumerate(changes):
        new = bl.to_float({"": np.array(change.new, dtype=object)})[""]
        stacked[change.name][(lane, *change.entry)] = new
    return evaluate(claim, size, stacked, len(changes))


def shrink(claim: Claim, size: Size, values: bl.Values, accept: float) -> bl.Values:
    """Greedily take the simplification that costs least to read, while the float score stays above ``accept``."""
    assert claim.space is not None
    blocks = claim.space.blocks(**size)
    twins = _twins(claim, blocks)
    for _ in range(_MAX_STEPS):
        # a stable sort: among equally readable ones the first
        options = sorted((c for c in _changes(blocks, twins, values) if c.cost < 0), key=lambda c: c.cost)
        taken = None
        for start in range(0, len(options), _BATCH):
            batch = options[start : start + _BATCH]
            passing = np.flatnonzero(_scores(claim, size, values, batch) > accept)
            if len(passing):
                taken = batch[int(passing[0])]
                break
        if taken is None:
            break
        array = values[taken.name].copy()
        array[taken.entry] = taken.new
        values = values | {taken.name: array}
    return values
