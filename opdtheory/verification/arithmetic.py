"""Three-valued comparison of exact numbers and balls: certainly true, certainly false, undecided."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import flint

from opdtheory.elementary import to_ball

PRECISIONS = (128, 512, 2048)
"""Working precisions in bits, tried in turn until a comparison is decided."""


@contextmanager
def precision(bits: int) -> Iterator[None]:
    """Set the working precision of balls for a block."""
    before = flint.ctx.prec
    flint.ctx.prec = bits
    try:
        yield
    finally:
        flint.ctx.prec = before


def compare(a: Any, relation: str, b: Any) -> bool | None:
    """Whether ``a relation b`` certainly holds (True), certainly fails (False) or is undecided (None).

    >>> compare(flint.arb(1), "<=", flint.fmpq(2))
    True
    >>> compare(flint.arb(1, 1), "<", flint.fmpq(1)) is None
    True
    """
    x, y = to_ball(a), to_ball(b)
    if x.is_nan() or y.is_nan():
        return None
    if relation in {">", ">="}:
        return compare(y, {">": "<", ">=": "<="}[relation], x)
    if relation == "<=":
        return True if x <= y else (False if x > y else None)
    if relation == "<":
        return True if x < y else (False if x >= y else None)
    if relation in {"==", "identity"}:
        both_exact = not isinstance(a, flint.arb) and not isinstance(b, flint.arb)
        if both_exact:
            return bool(a == b)
        return False if (x < y or x > y) else None
    raise ValueError(f"relation {relation!r} is not one of <=, <, >=, >, ==, identity")


def decide(statement: Callable[[], bool | None]) -> bool | None:
    """Evaluate a three-valued statement at growing precision until it is decided."""
    for bits in PRECISIONS:
        with precision(bits):
            answer = statement()
        if answer is not None:
            return answer
    return None


def to_float(value: Any) -> float:
    """Midpoint of an exact number or ball as a float."""
    ball = to_ball(value)
    return float(ball.mid()) if ball.is_finite() else float(ball)
