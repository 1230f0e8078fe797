"""Polynomial and rational identities: proved symbolically at small sizes, tested at random rational points beyond.

Symbolic proof runs a claim's own ``sides`` on an instance whose free numbers are generators of a field of rational
functions over Q, where equality is decidable; the identity then holds at every instance of that size.  Random
evaluation runs them on exact rationals drawn from large sets and states the Schwartz–Zippel probability with which
a false identity of the declared degree would have passed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flint
import numpy as np
from sympy import QQ
from sympy.polys.fields import field

from opdtheory.spaces import Size
from opdtheory.verification.blocks import Block, Simplex, Values
from opdtheory.verification.claim import Claim
from opdtheory.verification.evidence import Evidence


def _fill(blocks: dict[str, Block], draw: Callable[[], Any], one: Any) -> Values:
    """Fill blocks with independent draws; the last entry of a probability row is one minus the others."""
    values: Values = {}
    for name, block in blocks.items():
        out = np.empty(block.shape, dtype=object)
        if isinstance(block, Simplex):
            for index in np.ndindex(block.shape[:-1]):
                free = [draw() for _ in range(block.shape[-1] - 1)]
                for a, x in enumerate([*free, one - sum(free, one - one)]):
                    out[(*index, a)] = x
        else:
            for index in np.ndindex(block.shape):
                out[index] = draw()
        values[name] = out
    return values


def _free_count(blocks: dict[str, Block]) -> int:
    total = 0
    for block in blocks.values():
        size = int(np.prod(block.shape, dtype=int))
        total += size - size // block.shape[-1] if isinstance(block, Simplex) else size
    return total


def _difference(claim: Claim, values: Values, size: Size) -> Any:
    assert claim.space is not None and claim.sides is not None
    lhs, rhs = claim.sides(claim.space.build(values, **size))
    return lhs - rhs


def symbolic(claim: Claim, *sizes: Size) -> Evidence:
    """Prove lhs = rhs as rational functions of all free numbers, at each of the given sizes."""
    assert claim.space is not None
    done = []
    for size in sizes:
        blocks = claim.space.blocks(**size)
        count = _free_count(blocks)
        _, *generators = field([f"x{i}" for i in range(count)], QQ)
        supply = iter(generators)
        one = generators[0].field.one
        difference = _difference(claim, _fill(blocks, supply.__next__, one), size)
        if difference != 0:
            return Evidence("symbolic", False, f"lhs − rhs is not the zero function at {dict(size)}")
        done.append(f"{_short(size)} ({count} variables)")
    return Evidence("symbolic", True, "identical rational functions at " + ", ".join(done))


def random_points(claim: Claim, *sizes: Size, degree: int, points: int = 4, bits: int = 64, seed: int = 0) -> Evidence:
    """Evaluate lhs − rhs exactly at random rational points (probabilities need not be positive: identities do not care).

    Args:
        degree: a bound on the total degree of the numerator of lhs − rhs in the free numbers.
        points: independent points per size; bits: each free number is drawn from 2^bits values.
    """
    assert claim.space is not None
    rng = np.random.default_rng(seed)
    denominator = flint.fmpz(2) ** 61 - 1
    for size in sizes:
        blocks = claim.space.blocks(**size)
        for _ in range(points):
            draw = lambda: flint.fmpq(flint.fmpz(int.from_bytes(rng.bytes(bits // 8), "big")), denominator)  # noqa: E731
            if _difference(claim, _fill(blocks, draw, flint.fmpq(1)), size) != 0:
                return Evidence("identity-test", False, f"lhs ≠ rhs at a random rational point of size {dict(size)}")
    # a nonzero polynomial of this degree vanishes at one such point with probability at most degree / 2^bits
    exponent = points * (bits - int(np.ceil(np.log2(max(degree, 1)))))
    where = ", ".join(_short(s) for s in sizes)
    return Evidence(
        "identity-test", True, f"exact at {points} random rational points each of {where}; false positives < 2^−{exponent} each"
    )


def _short(size: Size) -> str:
    names = {"vocab": "V", "horizon": "T"}
    return "(" + ", ".join(f"{names.get(k, k)}={v}" for k, v in size.items() if k in names or v not in (None, 1)) + ")"
