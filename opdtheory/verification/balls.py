"""Proofs of scalar inequalities over continuous domains by ball arithmetic.

``prove_nonnegative`` subdivides the domain into boxes and certifies each one by the direct enclosure of f, by the
centred (mean-value) form f(c) + Σ ∂f_i(box)(x_i − c_i), which converges quadratically where f is small, or, in one
variable next to a declared zero, by a Taylor expansion at that zero whose first coefficients vanish exactly.
The same source lines serve as the claim's formula: f is written with :mod:`opdtheory.elementary`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any

import flint

from opdtheory.elementary import exact, to_ball
from opdtheory.verification.arithmetic import precision
from opdtheory.verification.evidence import Evidence

_WORKING_BITS = 128


class Dual:
    """A ball with the balls of its partial derivatives: forward-mode differentiation over a box."""

    __slots__ = ("grad", "value")
    __array_ufunc__ = None

    def __init__(self, value: flint.arb, grad: tuple[flint.arb, ...]):
        self.value, self.grad = value, grad

    def _lift(self, other: Any) -> Dual:
        return other if isinstance(other, Dual) else Dual(to_ball(other), tuple(flint.arb(0) for _ in self.grad))

    def _map(self, value: flint.arb, slope: flint.arb) -> Dual:
        return Dual(value, tuple(slope * g for g in self.grad))

    def __add__(self, other: Any) -> Dual:
        o = self._lift(other)
        return Dual(self.value + o.value, tuple(a + b for a, b in zip(self.grad, o.grad, strict=True)))

    __radd__ = __add__

    def __neg__(self) -> Dual:
        return Dual(-self.value, tuple(-g for g in self.grad))

    def __sub__(self, other: Any) -> Dual:
        return self + (-self._lift(other))

    def __rsub__(self, other: Any) -> Dual:
        return self._lift(other) - self

    def __mul__(self, other: Any) -> Dual:
        o = self._lift(other)
        return Dual(self.value * o.value, tuple(a * o.value + self.value * b for a, b in zip(self.grad, o.grad, strict=True)))

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Dual:
        o = self._lift(other)
        value = self.value / o.value
        return Dual(value, tuple((a - value * b) / o.value for a, b in zip(self.grad, o.grad, strict=True)))

    def __rtruediv__(self, other: Any) -> Dual:
        return self._lift(other) / self

    def __pow__(self, power: int) -> Dual:
        return self._map(self.value**power, power * self.value ** (power - 1) if power else flint.arb(0))

    def __elementary__(self, name: str, *args: Any) -> Dual:
        v = self.value
        if name == "log":
            return self._map(v.log(), 1 / v)
        if name == "exp":
            return self._map(v.exp(), v.exp())
        if name == "sqrt":
            return self._map(v.sqrt(), 1 / (2 * v.sqrt()))
        raise NotImplementedError(f"{name} has no derivative rule in ball proofs")


class Series:
    """A truncated power series with ball coefficients, for expansions at a zero of f."""

    __slots__ = ("series",)
    __array_ufunc__ = None

    def __init__(self, series: flint.arb_series):
        self.series = series

    def _other(self, other: Any) -> Any:
        return other.series if isinstance(other, Series) else to_ball(other)

    def __add__(self, other: Any) -> Series:
        return Series(self.series + self._other(other))

    __radd__ = __add__

    def __neg__(self) -> Series:
        return Series(-self.series)

    def __sub__(self, other: Any) -> Series:
        return Series(self.series - self._other(other))

    def __rsub__(self, other: Any) -> Series:
        return Series(self._other(other) - self.series)

    def __mul__(self, other: Any) -> Series:
        return Series(self.series * self._other(other))

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Series:
        return Series(self.series / self._other(other))

    def __rtruediv__(self, other: Any) -> Series:
        return Series(self._other(other) / self.series)

    def __pow__(self, power: int) -> Series:
        out = Series(flint.arb_series([1], prec=self.series.prec))
        for _ in range(power):
            out = out * self
        return out

    def __elementary__(self, name: str, *args: Any) -> Series:
        if name in {"log", "exp", "sqrt"}:
            return Series(getattr(self.series, name)())
        raise NotImplementedError(f"{name} has no series rule in ball proofs")


@dataclass(frozen=True)
class BallProof:
    """Outcome of a branch and bound: boxes certified and boxes left undecided, or a box where f is certainly negative."""

    boxes: int
    undecided: int
    negative_at: tuple[float, ...] | None

    @property
    def proved(self) -> bool:
        return self.undecided == 0 and self.negative_at is None


def _as_float(q: flint.fmpq) -> float:
    return int(q.p) / int(q.q)


def _interval(lo: flint.fmpq, hi: flint.fmpq) -> flint.arb:
    return flint.arb(lo).union(flint.arb(hi))


def _certified(f: Callable[..., Any], box: tuple[tuple[flint.fmpq, flint.fmpq], ...], zeros: Sequence[Any], order: int) -> bool | None:
    """True if f ≥ 0 on the box for certain, False if f < 0 somewhere in it for certain, None if undecided."""
    sides = [_interval(lo, hi) for lo, hi in box]
    dims = len(box)
    if dims == 1:
        lo, hi = box[0]
        for zero in zeros:
            if lo <= zero <= hi:
                return _nonnegative_by_series(f, zero, sides[0], order, right=lo == zero)
    direct = f(*sides)
    if to_ball(direct) >= 0:
        return True
    centre = [(lo + hi) / 2 for lo, hi in box]
    middle = to_ball(f(*(flint.arb(c) for c in centre)))
    if middle < 0:
        return False
    duals = [Dual(s, tuple(flint.arb(int(i == j)) for j in range(dims))) for i, s in enumerate(sides)]
    image = f(*duals)
    if not isinstance(image, Dual):
        return None
    spread = sum((g * (s - flint.arb(c)) for g, s, c in zip(image.grad, sides, centre, strict=True)), flint.arb(0))
    if middle + spread >= 0:
        return True
    # monotone in one variable with the right sign: the corner decides
    if dims == 1 and (image.grad[0] >= 0 or image.grad[0] <= 0):
        corner = box[0][0] if image.grad[0] >= 0 else box[0][1]
        value = to_ball(f(flint.arb(corner)))
        return True if value >= 0 else (False if value < 0 else None)
    return None


def _nonnegative_by_series(f: Callable[..., Any], zero: flint.fmpq, side: flint.arb, order: int, right: bool) -> bool | None:
    """Decide by f(x) = Σ_{k<order} c_k h^k + R h^order, R enclosed over the box (Taylor with Lagrange remainder).

    The c_k, k < order, must come out as exact zeros (balls of radius 0), which they do where the expansion at the
    zero meets only dyadic numbers, log 1 and exp 0; a ball that merely contains 0 proves nothing.
    """
    at_zero = f(Series(flint.arb_series([flint.arb(zero), 1], prec=order))).series
    if any(at_zero[k].rad() != 0 or at_zero[k].mid() != 0 for k in range(order)):
        return None
    over_box = f(Series(flint.arb_series([side, 1], prec=order + 1))).series
    remainder = over_box[order]
    # the domain is cut at its zeros, so h keeps one sign on the box
    same_sign = right or order % 2 == 0
    return True if (remainder >= 0 if same_sign else remainder <= 0) else None


def prove_nonnegative(
    f: Callable[..., Any],
    domain: Sequence[tuple[Any, Any]],
    zeros: Sequence[Any] = (),
    order: int = 2,
    max_boxes: int = 200_000,
    min_width: float = 1e-12,
) -> BallProof:
    """Prove f ≥ 0 on a box of R^d by branch and bound with balls.

    Args:
        f: function of d numbers, written with :mod:`opdtheory.elementary` and plain arithmetic.
        domain: d pairs (lo, hi) of rationals (ints, fraction strings).
        zeros: in one variable, points where f and its first ``order`` − 1 derivatives vanish exactly ; next to them the Taylor remainder of that order decides.
        max_boxes: give up after this many boxes; what is left counts as undecided.

    Raises:
        ValueError: for a domain whose ends are in the wrong order.
        TypeError: if f compares its argument: a ball is on neither side of what it overlaps, so that a branch proves nothing.
    """
    start = tuple((exact(lo), exact(hi)) for lo, hi in domain)
    if any(lo > hi for lo, hi in start):
        raise ValueError(f"domain: got {list(domain)}, expected pairs (lo, hi) with lo ≤ hi")
    with suppress(NotImplementedError, ZeroDivisionError):  # a function without a rule here may still be enclosed directly
        f(*(Dual(_interval(lo, hi), (flint.arb(0),) * len(start)) for lo, hi in start))
    exact_zeros = [exact(z) for z in zeros]
    narrowest = exact(min_width)
    ticket = count()
    # split at declared zeros first so that they lie at corners, where one-sided expansions apply
    queue: list[tuple[float, int, Any]] = []
    pieces = [start]
    if len(start) == 1:
        lo, hi = start[0]
        cuts = [lo, *sorted(z for z in exact_zeros if lo < z < hi), hi]
        pieces = [((a, b),) for a, b in pairwise(cuts)]
    for piece in pieces:
        heapq.heappush(queue, (float("-inf"), next(ticket), piece))
    boxes = undecided = 0
    with precision(_WORKING_BITS):
        while queue:
            _, _, box = heapq.heappop(queue)
            boxes += 1
            answer = _certified(f, box, exact_zeros, order)
            if answer is False:
                return BallProof(boxes, undecided, tuple(_as_float((lo + hi) / 2) for lo, hi in box))
            if answer is True:
                continue
            widths = [hi - lo for lo, hi in box]
            axis = max(range(len(box)), key=lambda i: widths[i])
            if boxes + len(queue) >= max_boxes or widths[axis] < narrowest:
                undecided += 1
                continue
            lo, hi = box[axis]
            middle = (lo + hi) / 2
            for part in ((lo, middle), (middle, hi)):
                child = (*box[:axis], part, *box[axis + 1 :])
                heapq.heappush(queue, (_as_float(part[0] - part[1]), next(ticket), child))
    return BallProof(boxes, undecided, None)


def lemma(name: str, f: Callable[..., Any], domain: Sequence[tuple[Any, Any]], grade: str = "lemma", **options: Any) -> Callable[[], Evidence]:
    """A ball proof as evidence, to be listed among a claim's ``lemmas`` (or, with grade "balls", its ``proofs``)."""

    def run() -> Evidence:
        outcome = prove_nonnegative(f, domain, **options)
        where = f"; negative near {outcome.negative_at}" if outcome.negative_at else ""
        detail = f"{name}: {outcome.boxes} boxes, {outcome.undecided} undecided{where}"
        return Evidence(grade, outcome.proved, detail)  # type: ignore[arg-type]

    run.__name__ = name
    return run
