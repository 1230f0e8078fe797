"""Which instance broke a claim: a failure in a batch traced to one lane, and that lane made readable."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import update_wrapper
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np

from opdtheory.spaces import Size
from opdtheory.verification import blocks as bl
from opdtheory.verification.ascent import SidesError, evaluate
from opdtheory.verification.claim import Claim
from opdtheory.verification.confirm import DENOMINATORS

P = ParamSpec("P")
T = TypeVar("T")


def blaming(attack: Callable[Concatenate[Claim, P], T]) -> Callable[Concatenate[Claim, P], T]:
    """Decorator: a :class:`SidesError` out of ``attack(claim, …)`` names the instance that did it."""

    def named(claim: Claim, *args: P.args, **options: P.kwargs) -> T:
        try:
            return attack(claim, *args, **options)
        except SidesError as problem:
            raise blame(claim, problem) from problem

    return update_wrapper(named, attack)  # type: ignore[return-value]


def blame(claim: Claim, error: SidesError) -> SidesError:
    """The same error, carrying and naming the one instance that did it, as simple as it could be made."""
    if error.instance is not None or error.values is None or claim.space is None:
        return error
    values, size = error.values, error.size or {}
    if not any(array.dtype == object for array in values.values()):
        values = _readable(claim, size, _guilty(claim, size, values))
    try:
        data = claim.space.serialise(claim.space.build(values, **size))
    except Exception:  # the space itself is at fault: its free numbers say which instance it was
        data = {name: np.vectorize(str, otypes=[object])(array).tolist() for name, array in values.items()}
    text = f"{error.problem}; on the instance {json.dumps(data, ensure_ascii=False)}"
    named = SidesError(error.claim_id, text, size, values)
    named.instance = data
    return named


def _fails(claim: Claim, size: Size, values: bl.Values, lanes: int) -> bool:
    try:
        evaluate(claim, size, values, lanes)
    except SidesError:
        return True
    return False


def _guilty(claim: Claim, size: Size, values: bl.Values) -> bl.Values:
    """A single lane that fails, by halving the batch; where only the whole batch does, its first lane."""
    lanes = len(next(iter(values.values())))
    while lanes > 1:
        half = (lanes + 1) // 2
        first = {name: array[:half] for name, array in values.items()}
        values = first if _fails(claim, size, first, half) else {name: array[half:] for name, array in values.items()}
        lanes = len(next(iter(values.values())))
    return values


def _readable(claim: Claim, size: Size, lane: bl.Values) -> bl.Values:
    """The lane in fractions of the smallest denominator on which the claim still fails, else to twelve decimals."""
    assert claim.space is not None
    layout = claim.space.blocks(**size)
    single = {name: array[0] for name, array in lane.items()}
    exact: bl.Values = {}
    for denominator in DENOMINATORS:
        exact = bl.rationalise(layout, single, denominator)
        if _fails(claim, size, {name: array[None] for name, array in bl.to_float(exact).items()}, 1):
            break
    return exact
