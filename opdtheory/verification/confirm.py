"""From a float violation to an exact one that is pleasant to read.

A violating lane is rounded to fractions of the smallest denominator that keeps it violating, then simplified entry
by entry while the float score stays clear of the threshold, then evaluated with exact rationals and balls.  Only an
exact violation, decided for certain, leaves this module.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np

from opdtheory.elementary import exact
from opdtheory.spaces import Size
from opdtheory.verification import blocks as bl
from opdtheory.verification.arithmetic import compare, decide
from opdtheory.verification.ascent import EXCESS, Findings, SidesError, evaluate, threshold
from opdtheory.verification.claim import Claim
from opdtheory.verification.shrinking import reading_cost, shrink

DENOMINATORS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 25, 40, 50, 100, 200, 500, 1000, 10**4, 10**6, 10**9, 10**12)
_EXACT_HINT = "sides run on exact rationals and balls too: use plain arithmetic, whole-number constants (99 * x.tv_sum / 100, not 0.99 * x.tv_sum) and opdtheory.elementary"


def exact_sides(claim: Claim, size: Size, values: bl.Values) -> tuple[Any, Any, list[tuple[Any, str, Any]]]:
    """Both sides and the conditions of a claim on one exact instance.

    Raises:
        SidesError: if they cannot be evaluated on exact numbers.
    """
    assert claim.space is not None and claim.sides is not None
    try:
        instance = claim.space.build(values, **size)
        lhs, rhs = claim.sides(instance)
        given = claim.given(instance) if claim.given else []
        return _scalar(lhs), _scalar(rhs), [(_scalar(a), r, _scalar(b)) for a, r, b in given]
    except Exception as problem:
        text = f"sides raised {type(problem).__name__} on exact numbers: {problem} ({_EXACT_HINT})"
        raise SidesError(claim.id, text, size, values) from problem


def _scalar(x: Any) -> Any:
    x = x.item() if isinstance(x, np.ndarray) else x
    # a constant that a claim computes in floating point is taken for the binary fraction it is
    return exact(Fraction(x)) if isinstance(x, float) and math.isfinite(x) else x


def violates(claim: Claim, size: Size, values: bl.Values) -> bool | None:
    """Whether the instance certainly refutes the claim: every condition holds and the relation fails, for certain."""

    def statement() -> bool | None:
        lhs, rhs, given = exact_sides(claim, size, values)
        conditions = [compare(a, relation, b) for a, relation, b in given]
        holds = compare(lhs, claim.relation, rhs * _exact_scale(claim))
        if any(c is False for c in conditions) or holds is True:
            return False
        return None if holds is None or any(c is None for c in conditions) else True

    return decide(statement)


def _exact_scale(claim: Claim) -> Any:
    return exact(str(claim.scale)) if not isinstance(claim.scale, int) else claim.scale


def _float_scores(claim: Claim, size: Size, candidates: list[bl.Values]) -> np.ndarray:
    assert claim.space is not None
    floats = [bl.to_float(v) for v in candidates]
    stacked = {name: np.stack([f[name] for f in floats]) for name in floats[0]}
    return evaluate(claim, size, stacked, len(candidates))


def counterexample(claim: Claim, found: Findings, tries: int = 12) -> bl.Values | None:
    """An exact, simplified counterexample from the best lanes of an attack, or None if none could be confirmed."""
    assert claim.space is not None
    blocks = claim.space.blocks(**found.size)
    bar = threshold(claim) + EXCESS
    lanes = np.flatnonzero(found.score > bar)
    lanes = lanes[np.unique(np.linspace(0, len(lanes) - 1, min(tries, len(lanes))).astype(int))] if len(lanes) else lanes
    best: tuple[int, bl.Values] | None = None
    for lane in lanes:
        floats = bl.decode(blocks, found.theta[lane][None])
        floats = {name: v[0] for name, v in floats.items()}
        rounded = [bl.rationalise(blocks, floats, d) for d in DENOMINATORS]
        score = _float_scores(claim, found.size, rounded)
        excess = min(float(found.score[lane]) - threshold(claim), 0.1)
        # keep a fair part of the violation: a counterexample by a hair is no pleasure to read
        accept = max(threshold(claim) + 0.3 * excess, bar)
        passing = np.flatnonzero(score > accept)
        if not len(passing):
            passing = np.flatnonzero(score > bar)
            accept = bar
        if not len(passing):
            continue
        values = shrink(claim, found.size, rounded[int(passing[0])], accept)
        cost = reading_cost(claim, found.size, values)
        if (best is None or cost < best[0]) and violates(claim, found.size, values):
            best = (cost, values)
        if best is not None and lane >= lanes[min(3, len(lanes) - 1)]:
            break
    return None if best is None else best[1]
