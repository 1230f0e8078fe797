"""Every instance of a finite grid: probabilities in multiples of 1/N, other numbers at N + 1 even steps.

Searches look where ratios are large; a grid looks everywhere, coarsely, and meets every pattern of zeros and ties.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from opdtheory.elementary import exact
from opdtheory.spaces import Size
from opdtheory.verification import blocks as bl
from opdtheory.verification.ascent import SidesError
from opdtheory.verification.claim import Claim
from opdtheory.verification.confirm import violates
from opdtheory.verification.evidence import Evidence

__all__ = ["grid", "grid_count", "grid_points"]

CLEAR = 1e-9
"""Float64 settles an inequality whose sides are further apart than this share of their size plus one; exact arithmetic
settles the others.
"""

LANES = 4096


def _options(block: bl.Block, denominator: int) -> list[tuple[Any, ...]]:
    """The values of one row of a probability block, or of one number of a box."""
    if isinstance(block, bl.Simplex):
        k, least = block.shape[-1], 0 if block.zeros else 1
        counts = (c for c in itertools.product(range(least, denominator + 1), repeat=k) if sum(c) == denominator)
        return [tuple(exact(n) / denominator for n in c) for c in counts]
    low, high = exact(str(block.lo)), exact(str(block.hi))
    return [(low + (high - low) * n / denominator,) for n in range(denominator + 1 if high > low else 1)]


def _rows(block: bl.Block) -> int:
    return math.prod(block.shape[:-1] if isinstance(block, bl.Simplex) else block.shape)


def grid_count(claim: Claim, size: Size, denominator: int) -> int:
    """How many instances the grid has."""
    assert claim.space is not None
    return math.prod(len(_options(block, denominator)) ** _rows(block) for block in claim.space.blocks(**size).values())


def grid_points(claim: Claim, size: Size, denominator: int) -> Iterator[bl.Values]:
    """The instances as blocks of exact rationals."""
    assert claim.space is not None
    layout = claim.space.blocks(**size)
    every = [itertools.product(_options(block, denominator), repeat=_rows(block)) for block in layout.values()]
    for choice in itertools.product(*every):
        yield {
            name: np.array([x for row in rows for x in row], dtype=object).reshape(block.shape)
            for (name, block), rows in zip(layout.items(), choice, strict=True)
        }


def grid(claim: Claim, size: Size, *, at_most: int, denominator: int | None = None) -> Evidence | None:
    """Check a claim on every instance of a grid; the finest of at most ``at_most`` instances unless N is given.

    Equalities and conditional statements are decided exactly everywhere, inequalities where their sides are within
    ``CLEAR`` of each other.  None if even the coarsest grid is larger, or the space has no free numbers.

    Raises:
        ValueError: if ``denominator`` is given and its grid has more instances or none.
    """
    assert claim.space is not None
    if denominator is None:
        fitting = [n for n in range(1, 13) if 2 <= grid_count(claim, size, n) <= at_most]
        if not fitting:
            return None
        denominator = max(fitting)
    count = grid_count(claim, size, denominator)
    if not 0 < count <= at_most:
        raise ValueError(f"denominator {denominator}: its grid has {count} instances, expected 1 to {at_most}")
    everywhere = claim.given is not None or claim.relation in {"==", "identity"}
    exactly = undecided = 0
    points = grid_points(claim, size, denominator)
    where = ", ".join(f"{k}={v}" for k, v in size.items() if v is not None)
    scope = f"{count} instances with denominator {denominator}" + (f" at {where}" if where else "")
    while block := list(itertools.islice(points, LANES)):
        close = block
        if not everywhere:
            close = [values for values, clear in zip(block, _clear(claim, size, block), strict=True) if not clear]
        for values in close:
            failed = _fails(claim, size, values)
            if failed:
                return Evidence("exhaustive", False, f"fails on one of {scope}")
            exactly, undecided = exactly + (failed is False), undecided + (failed is None)
    shares = [(count - exactly - undecided, "clear in floating point"), (exactly, "decided exactly"), (undecided, "within the width of a ball")]
    told = ", ".join(f"{n} {how}" for n, how in shares if n)
    return Evidence("exhaustive", True, f"fails on none of {scope}: {told}")


def _clear(claim: Claim, size: Size, block: list[bl.Values]) -> np.ndarray:
    """Instances whose inequality holds with room to spare, in floating point."""
    assert claim.space is not None and claim.sides is not None
    floats = [bl.to_float(values) for values in block]
    stacked = {name: np.stack([f[name] for f in floats]) for name in floats[0]}
    with np.errstate(all="ignore"):
        sides = claim.sides(claim.space.build(stacked, **size))
        lhs, rhs = (np.broadcast_to(np.asarray(side, dtype=float), (len(block),)) for side in sides)
        rhs = rhs * float(claim.scale)
        room = lhs - rhs if claim.relation in {">=", ">"} else rhs - lhs
        # a comparison with NaN is false: such an instance goes to exact arithmetic
        return np.isfinite(lhs) & (room > CLEAR * (1 + np.abs(lhs) + np.where(np.isinf(rhs), 0, np.abs(rhs))))


def _fails(claim: Claim, size: Size, values: bl.Values) -> bool | None:
    try:
        return violates(claim, size, values)
    except SidesError:
        return None  # sides that run on floats alone decide nothing exactly
