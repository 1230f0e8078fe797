"""Replay certificates of refuted claims, independently of everything else.

A certificate says: on this instance, written in fractions, the hypotheses hold and ``lhs relation
scale·rhs`` fails. This file confirms or refuses that.  It imports the Python standard library only, nothing
of the package it comes with, and computes every named quantity from its definition: sequences are
enumerated one by one, probabilities are products of exact fractions, and the only inexact steps (logarithm,
exponential, square root) are enclosed between two rational numbers by the series below, whose truncation
and rounding errors are bounded and added outwards.

Run it as ``python -I checker.py CERTIFICATE.json ...``: exit status 0 if every certificate is confirmed, 1
if one is refused, 2 if one cannot be read at all.  Whatever this file does not fully understand, it
refuses.

Sections: 1 intervals, 2 reading numbers and instances, 3 policy pairs, 4 teacher and student, 5 single
states, 6 scalars, 7 discounted decision processes, 8 iterated maps, 9 gradient fields, 10 expressions, 11
certificates, 12 command line.  A primitive is a function of an instance registered with
``@primitive(kind)``.

Units are nats; ``KL(p‖q)`` is Σ p log(p/q); 0·log 0 = 0; a divergence is +inf where mass is not covered.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import operator
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any

SCHEMA_VERSION = 1
PRECISIONS = (96, 192, 384, 768, 1536)
"""Bits carried by the interval arithmetic; raised step by step until a comparison is decided."""
RELATIVE_WIDTH = Fraction(1, 10**9)
"""A recorded enclosure must be at most this wide relative to its magnitude, or ``ABSOLUTE_WIDTH`` wide."""
ABSOLUTE_WIDTH = Fraction(1, 10**30)
MAX_SEQUENCES = 1 << 15
MAX_BYTES = 2 << 20
MAX_NUMBER_LENGTH = 2000
MAX_NODES = 20_000
MAX_DEPTH = 200
MAX_POWER = 1 << 20
MAX_EXPONENT = 1 << 20
"""Numbers beyond 2^±this are refused."""
EXACT_BITS = 20_000
"""Exact fractions longer than this are rounded outwards."""
INF = math.inf


class Refused(Exception):
    """The certificate is understood well enough to say why it is not confirmed."""


class Undecided(Exception):
    """The precision at hand does not decide; a higher one may."""


class BadInput(Exception):
    """The file cannot be read as JSON at all."""


# ============================================================================ 1 intervals


def _down(x: Any, bits: int) -> Any:
    """Largest number with ``bits`` significant bits that is at most ``x`` (or ``x`` itself if short)."""
    if isinstance(x, float) or x == 0:
        return x
    n, d = x.numerator, x.denominator
    if n.bit_length() <= bits and d & (d - 1) == 0:
        return x
    shift = bits - (n.bit_length() - d.bit_length())
    if shift >= 0:
        return Fraction((n << shift) // d, 1 << shift)
    return Fraction((n // (d << -shift)) << -shift)


def _up(x: Any, bits: int) -> Any:
    return -_down(-x, bits)


class Interval:
    """A real number known to lie in [lo, hi]: fractions, or both ends the same infinity.

    Operations return an interval that contains the result for every choice of operands inside.  An exact
    number is an interval of width zero and stays exact under + - * / until it exceeds ``EXACT_BITS``.
    """

    __slots__ = ("bits", "hi", "lo")

    def __init__(self, lo: Any, hi: Any, bits: int):
        if isinstance(lo, float) or isinstance(hi, float):
            if lo != hi or lo not in (INF, -INF):
                raise Undecided("an unbounded interval")
        elif lo > hi:
            raise ArithmeticError("interval ends in the wrong order")
        elif lo != hi or lo.numerator.bit_length() + lo.denominator.bit_length() > EXACT_BITS:
            lo, hi = _down(lo, bits), _up(hi, bits)
            if max(x.numerator.bit_length() + x.denominator.bit_length() for x in (lo, hi)) > MAX_EXPONENT:
                raise Refused("an intermediate quantity too large or too small to handle")
        self.lo, self.hi, self.bits = lo, hi, bits

    @property
    def is_exact(self) -> bool:
        return self.lo == self.hi

    @property
    def is_infinite(self) -> bool:
        return isinstance(self.lo, float)

    @property
    def sign(self) -> int:
        """1 or -1 if certainly positive or negative, 0 if exactly zero; otherwise undecided."""
        if self.lo > 0:
            return 1
        if self.hi < 0:
            return -1
        if self.lo == self.hi == 0:
            return 0
        raise Undecided("the sign of an intermediate quantity")

    def _lift(self, other: Any) -> Interval:
        return other if isinstance(other, Interval) else Interval(Fraction(other), Fraction(other), self.bits)

    def __neg__(self) -> Interval:
        return Interval(-self.hi, -self.lo, self.bits)

    def __add__(self, other: Any) -> Interval:
        other = self._lift(other)
        if self.is_infinite or other.is_infinite:
            if self.is_infinite and other.is_infinite and self.lo != other.lo:
                raise Refused("an undefined difference of infinities")
            return self if self.is_infinite else other
        return Interval(self.lo + other.lo, self.hi + other.hi, self.bits)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Interval:
        return self + (-self._lift(other))

    def __rsub__(self, other: Any) -> Interval:
        return self._lift(other) + (-self)

    def __mul__(self, other: Any) -> Interval:
        other = self._lift(other)
        if self.is_infinite or other.is_infinite:
            sign = self.sign * other.sign
            if sign == 0:
                raise Refused("an undefined product of zero and infinity")
            return Interval(sign * INF, sign * INF, self.bits)
        if self.lo >= 0 and other.lo >= 0:
            return Interval(self.lo * other.lo, self.hi * other.hi, self.bits)
        ends = [a * b for a in (self.lo, self.hi) for b in (other.lo, other.hi)]
        return Interval(min(ends), max(ends), self.bits)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Interval:
        other = self._lift(other)
        if other.is_infinite:
            if self.is_infinite:
                raise Refused("an undefined quotient of infinities")
            return Interval(Fraction(0), Fraction(0), self.bits)
        if other.sign == 0:
            raise Refused("a division by zero")
        return self * Interval(1 / Fraction(other.hi), 1 / Fraction(other.lo), self.bits)

    def __rtruediv__(self, other: Any) -> Interval:
        return self._lift(other) / self

    def __abs__(self) -> Interval:
        if self.lo >= 0:
            return self
        if self.hi <= 0:
            return -self
        return Interval(Fraction(0), max(-self.lo, self.hi), self.bits)

    def __pow__(self, n: int) -> Interval:
        if n < 0:
            return 1 / self ** (-n)
        if n == 0:
            return self._lift(1)
        base = abs(self) if n % 2 == 0 else self
        if base.lo < 0 or base.hi <= 0:
            # an odd power is increasing: each end separately
            return Interval(
                -_power(-base.lo, n, base.bits).hi,
                (_power(base.hi, n, base.bits).hi if base.hi > 0 else -_power(-base.hi, n, base.bits).lo),
                base.bits,
            )
        return Interval(_power(base.lo, n, base.bits).lo, _power(base.hi, n, base.bits).hi, base.bits)

    def __repr__(self) -> str:
        return f"[{self.lo}, {self.hi}]"


def _power(x: Any, n: int, bits: int) -> Interval:
    """xⁿ for one number x ≥ 0 and n ≥ 1, by squaring and multiplying intervals."""
    result, square = Interval(Fraction(1), Fraction(1), bits), Interval(x, x, bits)
    while True:
        if n & 1:
            result = result * square
        n >>= 1
        if not n:
            return result
        square = square * square


def _ceil_shift(x: int, w: int) -> int:
    return -((-x) >> w)


def _ceil_div(a: int, b: int) -> int:
    return -((-a) // b)


def _atanh_bounds(n: int, d: int, w: int) -> tuple[int, int]:
    """Integers below and above 2^w·atanh(n/d), for 0 ≤ n/d ≤ 1/2, from Σ zᵏ/k over odd k.

    Lower sums round every step down, upper sums up; the tail after the last term kept is at most the next
    power divided by 1 - z² ≤ 4/3 of it, hence 2·(next power)+1 covers it.
    """
    low, high = (n << w) // d, _ceil_div(n << w, d)
    low2, high2 = (low * low) >> w, _ceil_shift(high * high, w)
    sum_low, sum_high, k = 0, 0, 1
    while high > 1:
        sum_low += low // k
        sum_high += _ceil_div(high, k)
        low, high, k = (low * low2) >> w, _ceil_shift(high * high2, w), k + 2
    return sum_low, sum_high + 2 * high + 1


@lru_cache(maxsize=64)
def _log2_bounds(w: int) -> tuple[int, int]:
    """Integers below and above 2^w·log 2 = 2^w·2·atanh(1/3)."""
    low, high = _atanh_bounds(1, 3, w)
    return 2 * low, 2 * high


@lru_cache(maxsize=1 << 16)
def _log_bounds(x: Fraction, bits: int) -> tuple[Fraction, Fraction]:
    """Fractions below and above log x for x > 0.

    x = m·2^k with 2/3 ≤ m ≤ 4/3, and log m = 2·atanh((m-1)/(m+1)), where the argument is at most 1/5 in size.
    """
    if x == 1:
        return Fraction(0), Fraction(0)
    k = x.numerator.bit_length() - x.denominator.bit_length()
    m = x / Fraction(2) ** k
    while m > Fraction(4, 3):
        m, k = m / 2, k + 1
    while m < Fraction(2, 3):
        m, k = m * 2, k - 1
    n, d = m.numerator - m.denominator, m.numerator + m.denominator
    # relative accuracy near x = 1: as many extra bits as z = n/d has leading zeros
    w = bits + 16 + k.bit_length() + (max(0, d.bit_length() - abs(n).bit_length()) if k == 0 else 0)
    low, high = _atanh_bounds(abs(n), d, w)
    low, high = (2 * low, 2 * high) if n >= 0 else (-2 * high, -2 * low)
    two_low, two_high = _log2_bounds(w)
    low, high = (
        (low + k * two_low, high + k * two_high) if k >= 0 else (low + k * two_high, high + k * two_low)
    )
    return Fraction(low, 1 << w), Fraction(high, 1 << w)


@lru_cache(maxsize=1 << 12)
def _exp_bounds(x: Fraction, bits: int) -> tuple[Fraction, Fraction]:
    """Fractions below and above exp x.

    x = k·log 2 + r with 0 < r < 2, and the Taylor series of exp r; from the fourth term on each term is at
    most half of the one before, so the tail is at most the last term kept.
    """
    if x == 0:
        return Fraction(1), Fraction(1)
    if abs(x) > MAX_EXPONENT // 2:
        raise Refused(f"exp of a number as large as {float(x):.3g}")
    w = bits + 32 + x.numerator.bit_length() - min(x.numerator.bit_length(), x.denominator.bit_length())
    two_low, two_high = _log2_bounds(w)
    x_low, x_high = (x.numerator << w) // x.denominator, _ceil_div(x.numerator << w, x.denominator)
    k = x_low // two_high - 1
    r_low, r_high = (
        (x_low - k * two_high, x_high - k * two_low)
        if k >= 0
        else (x_low - k * two_low, x_high - k * two_high)
    )
    if not 0 < r_low <= r_high < 2 << w:
        raise ArithmeticError("argument reduction of exp left its range")
    one = 1 << w
    sum_low = term_low = sum_high = term_high = one
    j = 1
    while term_high > 1 or j < 4:
        term_low = ((term_low * r_low) >> w) // j
        term_high = _ceil_div(_ceil_shift(term_high * r_high, w), j)
        sum_low, sum_high, j = sum_low + term_low, sum_high + term_high, j + 1
    # from here on each term is at most half of the one before
    sum_high += 2 * term_high + 1
    scale = Fraction(2) ** k
    return Fraction(sum_low, one) * scale, Fraction(sum_high, one) * scale


def _sqrt_bounds(x: Fraction, bits: int) -> tuple[Fraction, Fraction]:
    """Fractions below and above √x for x ≥ 0, equal if x is the square of a fraction."""
    n, d = x.numerator, x.denominator
    root_n, root_d = math.isqrt(n), math.isqrt(d)
    if root_n * root_n == n and root_d * root_d == d:
        return Fraction(root_n, root_d), Fraction(root_n, root_d)
    shift = max(0, 2 * bits + d.bit_length() - n.bit_length())
    shift += shift & 1
    root = math.isqrt((n << shift) // d)
    return Fraction(root, 1 << shift // 2), Fraction(root + 1, 1 << shift // 2)


def _as_interval(x: Any, bits: int) -> Interval:
    return x if isinstance(x, Interval) else Interval(Fraction(x), Fraction(x), bits)


def log(x: Any, bits: int) -> Interval:
    """Enclosure of the natural logarithm; log 0 = -inf."""
    x = _as_interval(x, bits)
    if x.is_infinite and x.lo > 0:
        return x
    if x.lo == x.hi == 0:
        return Interval(-INF, -INF, bits)
    if x.hi < 0:
        raise Refused("the logarithm of a negative number")
    if x.lo <= 0:
        raise Undecided("the logarithm of a number not known to be positive")
    low = _log_bounds(x.lo, bits)
    return Interval(low[0], low[1] if x.is_exact else _log_bounds(x.hi, bits)[1], bits)


def exp(x: Any, bits: int) -> Interval:
    """Enclosure of the exponential."""
    x = _as_interval(x, bits)
    if x.is_infinite:
        return x if x.lo > 0 else Interval(Fraction(0), Fraction(0), bits)
    low = _exp_bounds(x.lo, bits)
    return Interval(low[0], low[1] if x.is_exact else _exp_bounds(x.hi, bits)[1], bits)


def sqrt(x: Any, bits: int) -> Interval:
    """Enclosure of the square root; exact for squares of fractions."""
    x = _as_interval(x, bits)
    if x.is_infinite and x.lo > 0:
        return x
    if x.hi < 0:
        raise Refused("the square root of a negative number")
    if x.lo < 0:
        raise Undecided("the square root of a number not known to be non-negative")
    low = _sqrt_bounds(x.lo, bits)
    return Interval(low[0], low[1] if x.is_exact else _sqrt_bounds(x.hi, bits)[1], bits)


def maximum(a: Any, b: Any) -> Any:
    """Larger of two numbers or intervals, as an enclosure."""
    if not isinstance(a, Interval) and not isinstance(b, Interval):
        return max(a, b)
    bits = a.bits if isinstance(a, Interval) else b.bits
    a, b = _as_interval(a, bits), _as_interval(b, bits)
    return Interval(max(a.lo, b.lo), max(a.hi, b.hi), bits)


def minimum(a: Any, b: Any) -> Any:
    """Smaller of two numbers or intervals, as an enclosure."""
    return -maximum(-a, -b)


def largest(values: Iterable[Any]) -> Any:
    """Maximum of a non-empty collection."""
    values = list(values)
    result = values[0]
    for value in values[1:]:
        result = maximum(result, value)
    return result


def smallest(values: Iterable[Any]) -> Any:
    """Minimum of a non-empty collection."""
    return -largest([-v for v in values])


def weigh(weight: Any, value: Any) -> Any:
    """weight·value with 0·inf = 0, for an exact weight."""
    return Fraction(0) if weight == 0 else weight * value


def total(values: Iterable[Any]) -> Any:
    """Sum of fractions and intervals, the fractions exactly and first."""
    exact, inexact = Fraction(0), None
    for value in values:
        if isinstance(value, Interval):
            inexact = value if inexact is None else inexact + value
        else:
            exact += value
    return exact if inexact is None else inexact + exact


def product(values: Iterable[Any]) -> Any:
    result = Fraction(1)
    for value in values:
        result = result * value
    return result


# ============================================================================ 2 reading numbers and instances

PRIMITIVES: dict[str, dict[str, Callable[..., Any]]] = {
    kind: {}
    for kind in (
        "policy_pair",
        "teacher_student",
        "single_state",
        "scalar",
        "discounted_mdp",
        "iterated_map",
        "gradient_field",
    )
}
"""kind -> name -> function(instance, **arguments); the docstring of each says what it is."""

_PREFIXES = {
    "policy_pair": "pair_", "teacher_student": "teacher_", "single_state": "state_", "discounted_mdp": "mdp_",
    "iterated_map": "map_", "gradient_field": "field_",
}  # fmt: skip


def primitive(*kinds: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function under its name without the kind's prefix (``pair_``, ``teacher_``, ``state_``,
    ...).

    It gets the instance and returns a Fraction or an Interval; logarithms and roots are ``x.log``,
    ``x.sqrt``, ``x.exp``.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for kind in kinds:
            name = function.__name__
            for prefix in _PREFIXES.values():
                if name.startswith(prefix):
                    name = name.removeprefix(prefix)
                    break
            if name in PRIMITIVES[kind]:
                raise ValueError(f"primitive {name!r} of kind {kind!r} is defined twice")
            PRIMITIVES[kind][name] = function
        return function

    return register


_FRACTION = re.compile(r"(?:0|-?[1-9][0-9]*)(?:/[1-9][0-9]*)?")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_WORD = re.compile(r"[a-z][a-z0-9_-]{0,31}")


def fraction(value: Any, where: str) -> Fraction:
    """A canonical fraction string: ``3``, ``-2/7``; in lowest terms, no sign on zero, no decimals.

    >>> fraction("-2/7", "scale")
    Fraction(-2, 7)
    """
    if (
        not isinstance(value, str)
        or len(value) > MAX_NUMBER_LENGTH
        or not value.isascii()
        or not _FRACTION.fullmatch(value)
    ):
        raise Refused(f'{where}: {_short(value)} is not a fraction string such as "2/7"')
    result = Fraction(value)
    if str(result) != value:
        raise Refused(f"{where}: {_short(value)} is not in lowest terms (expected {_short(str(result))})")
    return result


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def integer(value: Any, where: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise Refused(f"{where}: {_short(value)} is not an integer from {low} to {high}")
    return value


def fields(value: Any, where: str, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    """An object with exactly the required keys, and none but the optional ones besides."""
    if not isinstance(value, dict):
        raise Refused(f"{where}: expected an object, got {_short(value)}")
    for key in required:
        if key not in value:
            raise Refused(f"{where}: the key {key!r} is missing")
    for key in value:
        if key not in required and key not in optional:
            raise Refused(f"{where}: unknown key {_short(key)}")
    return value


def items(value: Any, where: str, length: int | None = None) -> list[Any]:
    if not isinstance(value, list) or (length is not None and len(value) != length):
        raise Refused(
            f"{where}: expected a list{'' if length is None else f' of {length}'}, got {_short(value)}"
        )
    return value


def vector(value: Any, where: str, length: int | None = None) -> list[Fraction]:
    return [fraction(v, f"{where}[{i}]") for i, v in enumerate(items(value, where, length))]


def distribution(value: Any, where: str, length: int | None = None) -> list[Fraction]:
    """Non-negative fractions that sum to exactly 1."""
    result = vector(value, where, length)
    if not result or any(p < 0 for p in result):
        raise Refused(f"{where}: a probability is negative, or there is none")
    if sum(result) != 1:
        raise Refused(f"{where}: probabilities sum to {_short(str(sum(result)))}, not to 1")
    return result


class Instance:
    """What a certificate is about.  ``bits`` is the working precision of everything inexact."""

    def __init__(self, data: Any, required: Sequence[str], optional: Sequence[str] = ()):
        self.data = fields(data, "instance", required, (*optional, "scalars"))
        self.bits = PRECISIONS[0]
        self.scalars: dict[str, Fraction] = {}
        if "scalars" in data:
            self.scalars = _named_fractions(data["scalars"], "instance.scalars")

    def log(self, x: Any) -> Interval:
        return log(x, self.bits)

    def exp(self, x: Any) -> Interval:
        return exp(x, self.bits)

    def sqrt(self, x: Any) -> Interval:
        return sqrt(x, self.bits)

    def log_ratio(self, a: Fraction, b: Fraction) -> Interval:
        """log(a/b) of two probabilities, ±inf if one of them is zero."""
        if b == 0:
            if a == 0:
                raise Refused("the logarithm of 0/0")
            return self.infinity
        return self.log(a / b)

    @property
    def infinity(self) -> Interval:
        return Interval(INF, INF, self.bits)

    def kl(self, p: Sequence[Fraction], q: Sequence[Fraction]) -> Any:
        """KL(p‖q) = Σ p log(p/q)."""
        return total(weigh(a, self.log_ratio(a, b)) for a, b in zip(p, q, strict=True) if a)

    def chi2(self, q: Sequence[Fraction], p: Sequence[Fraction]) -> Any:
        """χ²(q‖p) = Σ (q - p)²/p."""
        if any(b and not a for a, b in zip(p, q, strict=True)):
            return self.infinity
        return total((b - a) ** 2 / a for a, b in zip(p, q, strict=True) if a)

    def hellinger2(self, p: Sequence[Fraction], q: Sequence[Fraction]) -> Any:
        """½ Σ (√p - √q)² = ½ Σ (p + q) - Σ √(pq)."""
        return (sum(p) + sum(q)) / 2 - total(self.sqrt(a * b) for a, b in zip(p, q, strict=True) if a and b)

    def k3(self, ratio: Fraction) -> Interval:
        """k3(r) = r - 1 - log r."""
        return ratio - 1 - self.log(ratio)


def _named_fractions(value: Any, where: str) -> dict[str, Fraction]:
    if not isinstance(value, dict) or not value:
        raise Refused(f"{where}: expected an object of named fractions, got {_short(value)}")
    for name in value:
        if not _NAME.fullmatch(name):
            raise Refused(f"{where}: {_short(name)} is not a name")
    return {name: fraction(v, f"{where}.{name}") for name, v in value.items()}


def tv(p: Sequence[Fraction], q: Sequence[Fraction]) -> Fraction:
    """Total variation ½ Σ|p - q|."""
    return sum((abs(a - b) for a, b in zip(p, q, strict=True)), Fraction(0)) / 2


def dot(a: Sequence[Any], b: Sequence[Any]) -> Any:
    return total(x * y for x, y in zip(a, b, strict=True))


def unit_interval(alpha: Any, open_left: bool = False, open_right: bool = False) -> Fraction:
    """An argument that must lie in [0, 1], with the open ends excluded."""
    if (
        isinstance(alpha, str)
        or not 0 <= alpha <= 1
        or (open_left and alpha == 0)
        or (open_right and alpha == 1)
    ):
        raise Refused(f"argument {alpha}: expected a number in the unit interval")
    return Fraction(alpha)


def below(index: Any, count: int, name: str = "index") -> int:
    """An integer argument 0 ≤ index < count."""
    return integer(index, f"argument {name}", 0, count - 1)


Step = tuple[int, int, int]
"""(level, context index at that level, token)"""


class Tree(Instance):
    """A token tree: prompts, alphabet, horizon, optional EOS.

    Level t holds prompts·bᵗ contexts, b the number of tokens that continue; the child of context i by a
    continuing token is i·b + (rank of the token among the continuing ones).  EOS ends a sequence; so does
    every token of the last level.
    """

    SHAPE = ("vocab", "horizon", "eos", "prompts", "prompt_probs")

    def __init__(self, data: Any, required: Sequence[str], optional: Sequence[str] = ()):
        super().__init__(data, (*self.SHAPE, *required), optional)
        self.vocab = integer(data["vocab"], "instance.vocab", 1, MAX_SEQUENCES)
        self.horizon = integer(data["horizon"], "instance.horizon", 1, 64)
        self.prompts = integer(data["prompts"], "instance.prompts", 1, MAX_SEQUENCES)
        self.eos = data["eos"]
        if self.eos is not None:
            integer(self.eos, "instance.eos", 0, self.vocab - 1)
        self.prompt_probs = distribution(data["prompt_probs"], "instance.prompt_probs", self.prompts)
        self.continuing = [a for a in range(self.vocab) if a != self.eos]
        if (
            self.prompts * sum(len(self.continuing) ** t for t in range(self.horizon)) * self.vocab
            > MAX_SEQUENCES
        ):
            raise Refused(f"instance: more than {MAX_SEQUENCES} context-token pairs")

    def count(self, t: int) -> int:
        """Number of contexts at level t."""
        return self.prompts * len(self.continuing) ** t

    def policy(self, name: str) -> list[list[list[Fraction]]]:
        levels = items(self.data[name], f"instance.{name}", self.horizon)
        return [
            [
                distribution(row, f"instance.{name}[{t}][{i}]", self.vocab)
                for i, row in enumerate(items(level, f"instance.{name}[{t}]", self.count(t)))
            ]
            for t, level in enumerate(levels)
        ]

    def table(self, name: str) -> list[list[list[Fraction]]]:
        levels = items(self.data[name], f"instance.{name}", self.horizon)
        return [
            [
                vector(row, f"instance.{name}[{t}][{i}]", self.vocab)
                for i, row in enumerate(items(level, f"instance.{name}[{t}]", self.count(t)))
            ]
            for t, level in enumerate(levels)
        ]

    @cached_property
    def contexts(self) -> list[tuple[int, int]]:
        """Every context of the tree, visited or not, as (level, index)."""
        return [(t, i) for t in range(self.horizon) for i in range(self.count(t))]

    @cached_property
    def sequences(self) -> list[tuple[int, tuple[Step, ...]]]:
        """Every complete sequence as (prompt, steps)."""
        found: list[tuple[int, tuple[Step, ...]]] = []

        def extend(prompt: int, index: int, steps: tuple[Step, ...]) -> None:
            t = len(steps)
            for a in range(self.vocab):
                longer = (*steps, (t, index, a))
                if a == self.eos or t == self.horizon - 1:
                    found.append((prompt, longer))
                else:
                    extend(prompt, index * len(self.continuing) + self.continuing.index(a), longer)

        for prompt in range(self.prompts):
            extend(prompt, prompt, ())
        return found

    @cached_property
    def prefixes(self) -> dict[tuple[int, int], tuple[int, tuple[Step, ...]]]:
        """The prompt and the steps that lead to each context."""
        found = {}
        for prompt, steps in self.sequences:
            for j, (t, i, _a) in enumerate(steps):
                found[t, i] = (prompt, steps[:j])
        return found

    def law(self, policy: list[list[list[Fraction]]]) -> list[Fraction]:
        """Probability of every sequence, prompt included."""
        return [
            self.prompt_probs[prompt] * product(policy[t][i][a] for t, i, a in steps)
            for prompt, steps in self.sequences
        ]

    def occupancy(self, policy: list[list[list[Fraction]]]) -> dict[tuple[int, int], Fraction]:
        """Probability of visiting each context."""
        return {
            c: self.prompt_probs[prompt] * product(policy[t][i][a] for t, i, a in steps)
            for c, (prompt, steps) in self.prefixes.items()
        }

    def expected_length(self, law: Sequence[Fraction]) -> Fraction:
        """Mean number of generated tokens, EOS counted."""
        return sum((w * len(steps) for w, (_p, steps) in zip(law, self.sequences, strict=True)), Fraction(0))


# ============================================================================ 3 policy pairs


class PolicyPair(Tree):
    """Behaviour policy μ, target policy π, reward R(y) = sum of the reward table along the sequence."""

    def __init__(self, data: Any):
        super().__init__(data, ("behavior", "target", "reward"))
        self.mu, self.pi = self.policy("behavior"), self.policy("target")
        table = self.table("reward")
        self.reward = [
            sum((table[t][i][a] for t, i, a in steps), Fraction(0)) for _p, steps in self.sequences
        ]
        self.law_mu, self.law_pi = self.law(self.mu), self.law(self.pi)
        self.d_mu, self.d_pi = self.occupancy(self.mu), self.occupancy(self.pi)

    def rows(self, c: tuple[int, int]) -> tuple[list[Fraction], list[Fraction]]:
        """(μ(·|c), π(·|c))."""
        return self.mu[c[0]][c[1]], self.pi[c[0]][c[1]]

    def ratios(self, steps: Sequence[Step]) -> list[Fraction]:
        """ρ_t = π/μ along a sequence of positive μ-probability."""
        return [self.pi[t][i][a] / self.mu[t][i][a] for t, i, a in steps]

    @cached_property
    def visited(self) -> list[tuple[Fraction, Fraction, list[Fraction]]]:
        """(μ(y), R(y), ratios) of every sequence with μ(y) > 0."""
        return [
            (w, r, self.ratios(steps))
            for w, r, (_p, steps) in zip(self.law_mu, self.reward, self.sequences, strict=True)
            if w
        ]

    @cached_property
    def q(self) -> dict[Step, Fraction]:
        """Q^μ(c, a) = E_μ[R | c, a]: sum over all completions, generated by μ after a."""
        found: dict[Step, Fraction] = {}
        for r, (_p, steps) in zip(self.reward, self.sequences, strict=True):
            tail = Fraction(1)
            for step in reversed(steps):
                found[step] = found.get(step, Fraction(0)) + tail * r
                t, i, a = step
                tail *= self.mu[t][i][a]
        return found

    @cached_property
    def v(self) -> dict[tuple[int, int], Fraction]:
        """V^μ(c) = Σ_a μ(a|c) Q^μ(c, a)."""
        return {
            (t, i): dot(self.mu[t][i], [self.q[t, i, a] for a in range(self.vocab)]) for t, i in self.contexts
        }

    @cached_property
    def g(self) -> dict[tuple[int, int], Fraction]:
        """g(c) = Σ_a π(a|c) (Q^μ(c, a) - V^μ(c))."""
        return {
            (t, i): dot(self.pi[t][i], [self.q[t, i, a] - self.v[t, i] for a in range(self.vocab)])
            for t, i in self.contexts
        }

    @cached_property
    def remainder(self) -> list[Fraction]:
        """n(y) = π(y) - μ(y) - Σ_t μ_{<t}(π_t - μ_t)μ_{>t} of every sequence, prompt probability included."""
        found = []
        for w_mu, w_pi, (prompt, steps) in zip(self.law_mu, self.law_pi, self.sequences, strict=True):
            mus = [self.mu[t][i][a] for t, i, a in steps]
            first = Fraction(0)
            for j, (t, i, a) in enumerate(steps):
                first += (self.pi[t][i][a] - mus[j]) * product(mus[:j]) * product(mus[j + 1 :])
            found.append(w_pi - w_mu - self.prompt_probs[prompt] * first)
        return found

    def mean_mu(self, value: Callable[[Fraction, list[Fraction]], Any]) -> Any:
        """E_μ[value(R, ratios)]."""
        return total(weigh(w, value(r, ratios)) for w, r, ratios in self.visited)

    def over_steps(self, value: Callable[..., Any], t: int | None = None) -> Any:
        """Σ_c d^μ(c)·value(μ(·|c), π(·|c)) over the contexts (of level t) that μ visits."""
        return total(w * value(*self.rows(c)) for c, w in self.d_mu.items() if w and (t is None or c[0] == t))

    def over_contexts(self, value: Callable[..., Any], reachable: bool = False) -> Any:
        """Maximum of value(μ(·|c), π(·|c)) over every context (that μ visits)."""
        return largest(value(*self.rows(c)) for c in self.contexts if not reachable or self.d_mu[c])


@primitive("policy_pair", "teacher_student")
def horizon(x: Tree) -> Any:
    """T."""
    return Fraction(x.horizon)


@primitive("policy_pair", "teacher_student")
def vocab(x: Tree) -> Any:
    """Number of actions, EOS included."""
    return Fraction(x.vocab)


@primitive("policy_pair")
def pair_J_behavior(x: PolicyPair) -> Any:
    """E_μ[R]."""
    return dot(x.law_mu, x.reward)


@primitive("policy_pair")
def pair_J_target(x: PolicyPair) -> Any:
    """E_π[R]."""
    return dot(x.law_pi, x.reward)


@primitive("policy_pair")
def pair_improvement(x: PolicyPair) -> Any:
    """E_π[R] - E_μ[R]."""
    return pair_J_target(x) - pair_J_behavior(x)


@primitive("policy_pair")
def pair_surrogate(x: PolicyPair) -> Any:
    """L = Σ_t E_{d_t^μ}[g_t]."""
    return total(w * x.g[c] for c, w in x.d_mu.items())


@primitive("policy_pair")
def pair_surrogate_ratio(x: PolicyPair) -> Any:
    """E_μ[(R - E_μ R) Σ_t ρ_t]."""
    mean = pair_J_behavior(x)
    return x.mean_mu(lambda r, rho: (r - mean) * sum(rho))


@primitive("policy_pair")
def pair_surrogate_reward(x: PolicyPair) -> Any:
    """E_μ[R Σ_t (ρ_t - 1)]."""
    return x.mean_mu(lambda r, rho: r * (sum(rho) - len(rho)))


@primitive("policy_pair")
def pair_error(x: PolicyPair) -> Any:
    """J(π) - J(μ) - L."""
    return pair_improvement(x) - pair_surrogate(x)


@primitive("policy_pair")
def pair_delta(x: PolicyPair) -> Any:
    """E_μ[R Σ_t (ρ_t - 1)(1 - ∏_{j>t} ρ_j)]."""

    def value(r: Fraction, rho: list[Fraction]) -> Fraction:
        return r * sum((rho[t] - 1) * (1 - product(rho[t + 1 :])) for t in range(len(rho)))

    return x.mean_mu(value)


@primitive("policy_pair")
def pair_error_sup(x: PolicyPair) -> Any:
    """½ Σ_y |n(y)|."""
    return total(abs(n) for n in x.remainder) / 2


@primitive("policy_pair")
def pair_tv_max(x: PolicyPair) -> Any:
    """max_c TV(μ, π)(c) over every context of the tree."""
    return x.over_contexts(tv)


@primitive("policy_pair")
def pair_reachable_tv_max(x: PolicyPair) -> Any:
    """max TV over contexts that μ visits."""
    return x.over_contexts(tv, reachable=True)


@primitive("policy_pair")
def pair_tv_sum(x: PolicyPair) -> Any:
    """Σ_t E_{d_t^μ} TV(c_t)."""
    return x.over_steps(tv)


@primitive("policy_pair")
def pair_tv_step(x: PolicyPair, t: int) -> Any:
    """E_{d_t^μ} TV(c_t)."""
    return x.over_steps(tv, below(t, x.horizon, "t"))


@primitive("policy_pair")
def pair_tv_seq(x: PolicyPair) -> Any:
    """TV of the two laws of sequences."""
    return tv(x.law_mu, x.law_pi)


@primitive("policy_pair")
def pair_marginal_tv(x: PolicyPair, t: int) -> Any:
    """½ Σ_c |d_t^μ(c) - d_t^π(c)| over the contexts of level t."""
    below(t, x.horizon, "t")
    return total(abs(x.d_mu[c] - x.d_pi[c]) for c in x.contexts if c[0] == t) / 2


@primitive("policy_pair")
def pair_kl_max(x: PolicyPair) -> Any:
    """max_c KL(μ‖π)(c)."""
    return x.over_contexts(x.kl)


@primitive("policy_pair")
def pair_reachable_kl_max(x: PolicyPair) -> Any:
    """max KL(μ‖π)(c) over contexts that μ visits."""
    return x.over_contexts(x.kl, reachable=True)


@primitive("policy_pair")
def pair_kl_seq(x: PolicyPair) -> Any:
    """KL(μ‖π) of the laws of sequences."""
    return x.kl(x.law_mu, x.law_pi)


@primitive("policy_pair")
def pair_kl_step(x: PolicyPair, t: int) -> Any:
    """E_{d_t^μ} KL(μ‖π)(c_t)."""
    return x.over_steps(x.kl, below(t, x.horizon, "t"))


@primitive("policy_pair")
def pair_reverse_kl_max(x: PolicyPair) -> Any:
    """max_c KL(π‖μ)(c)."""
    return x.over_contexts(lambda p, q: x.kl(q, p))


@primitive("policy_pair")
def pair_reachable_reverse_kl_max(x: PolicyPair) -> Any:
    """max KL(π‖μ)(c) over contexts that μ visits."""
    return x.over_contexts(lambda p, q: x.kl(q, p), reachable=True)


@primitive("policy_pair")
def pair_reverse_kl_seq(x: PolicyPair) -> Any:
    """KL(π‖μ) of the laws of sequences."""
    return x.kl(x.law_pi, x.law_mu)


@primitive("policy_pair")
def pair_reverse_kl_sum(x: PolicyPair) -> Any:
    """Σ_t E_{d_t^μ} KL(π‖μ)(c_t)."""
    return x.over_steps(lambda p, q: x.kl(q, p))


@primitive("policy_pair")
def pair_chi2_max(x: PolicyPair) -> Any:
    """max_c χ²(π‖μ)(c)."""
    return x.over_contexts(lambda p, q: x.chi2(q, p))


@primitive("policy_pair")
def pair_reachable_chi2_max(x: PolicyPair) -> Any:
    """max χ²(π‖μ)(c) over contexts that μ visits."""
    return x.over_contexts(lambda p, q: x.chi2(q, p), reachable=True)


@primitive("policy_pair")
def pair_chi2_seq(x: PolicyPair) -> Any:
    """χ²(π‖μ) of the laws of sequences."""
    return x.chi2(x.law_pi, x.law_mu)


@primitive("policy_pair")
def pair_hellinger2_max(x: PolicyPair) -> Any:
    """max_c of the squared Hellinger distance."""
    return x.over_contexts(x.hellinger2)


@primitive("policy_pair")
def pair_hellinger2_seq(x: PolicyPair) -> Any:
    """Squared Hellinger distance of the laws of sequences."""
    return x.hellinger2(x.law_mu, x.law_pi)


@primitive("policy_pair")
def pair_hellinger2_sum(x: PolicyPair) -> Any:
    """Σ_t E_{d_t^μ} of the squared Hellinger distance."""
    return x.over_steps(x.hellinger2)


@primitive("policy_pair")
def pair_midpoint_kl_sum(x: PolicyPair) -> Any:
    """Σ_t E_{d_t^μ} KL(μ‖(μ + π)/2)(c_t)."""
    return x.over_steps(lambda p, q: x.kl(p, [(a + b) / 2 for a, b in zip(p, q, strict=True)]))


@primitive("policy_pair")
def pair_reward_sd(x: PolicyPair) -> Any:
    """Standard deviation of R under μ."""
    mean = pair_J_behavior(x)
    return x.sqrt(total(w * (r - mean) ** 2 for w, r in zip(x.law_mu, x.reward, strict=True)))


@primitive("policy_pair")
def pair_reward_min(x: PolicyPair) -> Any:
    """Smallest reward of a sequence."""
    return min(x.reward)


@primitive("policy_pair")
def pair_reward_max(x: PolicyPair) -> Any:
    """Largest reward of a sequence."""
    return max(x.reward)


@primitive("policy_pair")
def pair_adv_max(x: PolicyPair) -> Any:
    """max |A^μ(c, a)| over every context and action."""
    return max(abs(value - x.v[t, i]) for (t, i, _a), value in x.q.items())


@primitive("policy_pair")
def pair_adv_target_max(x: PolicyPair) -> Any:
    """max_c |g(c)|."""
    return max(abs(value) for value in x.g.values())


@primitive("policy_pair")
def pair_q_span_max(x: PolicyPair) -> Any:
    """max_c of max_a Q^μ(c, a) - min_a Q^μ(c, a)."""
    rows = [[x.q[t, i, a] for a in range(x.vocab)] for t, i in x.contexts]
    return max(max(row) - min(row) for row in rows)


@primitive("policy_pair")
def pair_g_step(x: PolicyPair, t: int) -> Any:
    """E_{d_t^μ}[g_t]."""
    below(t, x.horizon, "t")
    return total(w * x.g[c] for c, w in x.d_mu.items() if c[0] == t)


@primitive("policy_pair")
def pair_k3_sum(x: PolicyPair) -> Any:
    """E_μ Σ_t k3(ρ_t)."""
    return x.mean_mu(lambda r, rho: total(x.k3(ratio) for ratio in rho))


@primitive("policy_pair")
def pair_k3_seq(x: PolicyPair) -> Any:
    """E_μ k3(W), W = ∏ρ_t."""
    return x.mean_mu(lambda r, rho: x.k3(product(rho)))


@primitive("policy_pair")
def pair_reward_k3_sum(x: PolicyPair) -> Any:
    """E_μ[R Σ_t k3(ρ_t)]."""
    return x.mean_mu(lambda r, rho: weigh(r, total(x.k3(ratio) for ratio in rho)))


@primitive("policy_pair")
def pair_reward_log_w(x: PolicyPair) -> Any:
    """E_μ[R log W]."""
    return x.mean_mu(lambda r, rho: weigh(r, x.log(product(rho))))


@primitive("policy_pair")
def pair_cost_log_w(x: PolicyPair) -> Any:
    """E_μ[(1 - R) log W]."""
    return x.mean_mu(lambda r, rho: weigh(1 - r, x.log(product(rho))))


@primitive("policy_pair")
def pair_reward_floor_log_w(x: PolicyPair) -> Any:
    """E_μ[R max(log W, -1)]."""

    def value(r: Fraction, rho: list[Fraction]) -> Any:
        w = product(rho)
        return weigh(r, maximum(x.log(w), Fraction(-1)) if w else Fraction(-1))

    return x.mean_mu(value)


@primitive("policy_pair")
def pair_reward_capped_log_w(x: PolicyPair, cap: Fraction) -> Any:
    """E_μ[R min(max(log W, -1), cap)]."""

    def value(r: Fraction, rho: list[Fraction]) -> Any:
        w = product(rho)
        return weigh(r, minimum(maximum(x.log(w), Fraction(-1)), cap) if w else Fraction(-1))

    return x.mean_mu(value)


@primitive("policy_pair")
def pair_reward_truncated(x: PolicyPair, cap: Fraction) -> Any:
    """E_μ[R min(W, cap)]."""
    return x.mean_mu(lambda r, rho: r * min(product(rho), cap))


@primitive("policy_pair")
def pair_ratio_martingale(x: PolicyPair) -> Any:
    """E_μ Σ_t (W_{t-1} - 1)² χ²(π‖μ)(c_t)."""
    found = []
    for c, d in x.d_mu.items():
        if d:
            p, q = x.rows(c)
            found.append(weigh(d * (x.d_pi[c] / d - 1) ** 2, x.chi2(q, p)))
    return total(found)


@primitive("policy_pair")
def pair_w_second_moment(x: PolicyPair) -> Any:
    """E_μ W²."""
    return x.mean_mu(lambda r, rho: product(rho) ** 2)


@primitive("policy_pair")
def pair_expected_length_behavior(x: PolicyPair) -> Any:
    """E_μ of the number of tokens, EOS counted."""
    return x.expected_length(x.law_mu)


@primitive("policy_pair")
def pair_expected_length_target(x: PolicyPair) -> Any:
    """E_π of the number of tokens, EOS counted."""
    return x.expected_length(x.law_pi)


def at_most(a: Any, b: Any) -> bool:
    """Whether a ≤ b, for certain; ``Undecided`` if the enclosures overlap."""
    gap = a - b
    return gap.sign <= 0 if isinstance(gap, Interval) else gap <= 0


def accepted(x: PolicyPair, mask: str, delta: Any, steps: Sequence[Step]) -> bool:
    """Whether a mask keeps a response: its statistic is at most delta at every step."""
    if mask == "none":
        return True
    if mask == "kl":
        return all(at_most(x.kl(*x.rows((t, i))), delta) for t, i, _a in steps)
    if mask == "log_ratio":
        return all(at_most(abs(x.log(ratio)), delta) for ratio in x.ratios(steps))
    if mask == "k3":
        return all(at_most(x.k3(ratio), delta) for ratio in x.ratios(steps))
    raise Refused(f"mask {_short(mask)}: expected kl, log_ratio, k3 or none")


def kept(x: PolicyPair, mask: str, delta: Any) -> list[tuple[Fraction, Fraction, Sequence[Step]]]:
    """(μ(y), R(y) - E_μ R, steps) of every response with μ(y) > 0 that the mask keeps."""
    mean = pair_J_behavior(x)
    return [
        (w, r - mean, steps)
        for w, r, (_p, steps) in zip(x.law_mu, x.reward, x.sequences, strict=True)
        if w and accepted(x, mask, delta, steps)
    ]


@primitive("policy_pair")
def pair_acceptance(x: PolicyPair, mask: str, delta: Any) -> Any:
    """E_μ[M]: the share of responses that the mask keeps."""
    return sum((w for w, _gain, _steps in kept(x, mask, delta)), Fraction(0))


@primitive("policy_pair")
def pair_first_token_acceptance(x: PolicyPair, delta: Any) -> Any:
    """P_μ(|log ρ_1| ≤ delta)."""
    first = [(w, x.ratios(steps[:1])[0]) for w, (_p, steps) in zip(x.law_mu, x.sequences, strict=True) if w]
    return total(w for w, ratio in first if at_most(abs(x.log(ratio)), delta))


@primitive("policy_pair")
def pair_masked_surrogate(x: PolicyPair, mask: str, delta: Any) -> Any:
    """E_μ[M (R - E_μ R) Σ_t ρ_t]."""
    return sum((w * gain * sum(x.ratios(steps)) for w, gain, steps in kept(x, mask, delta)), Fraction(0))


@primitive("policy_pair")
def pair_masked_centred_surrogate(x: PolicyPair, mask: str, delta: Any) -> Any:
    """E_μ[M (R - E_μ R) Σ_t (ρ_t - 1)]."""
    return total(w * gain * (sum(x.ratios(steps)) - len(steps)) for w, gain, steps in kept(x, mask, delta))


@primitive("policy_pair")
def pair_masked_gradient_dot(x: PolicyPair, mask: str, delta: Any) -> Any:
    """⟨E_μ[M (R - E_μ R) Σ_t ρ_t ∇log π(y_t|c_t)], ∇E_π R⟩ over the logits of π, the mask held fixed."""
    masked: dict[Step, Fraction] = {}
    true: dict[Step, Fraction] = {}

    def add(total_: dict[Step, Fraction], steps: Sequence[Step], weights: Sequence[Fraction]) -> None:
        for (t, i, a), w in zip(steps, weights, strict=True):
            for b in range(x.vocab):
                score = (1 if a == b else 0) - x.pi[t][i][b]
                total_[t, i, b] = total_.get((t, i, b), Fraction(0)) + w * score

    for w, gain, steps in kept(x, mask, delta):
        add(masked, steps, [w * gain * ratio for ratio in x.ratios(steps)])
    for w, r, (_p, steps) in zip(x.law_pi, x.reward, x.sequences, strict=True):
        add(true, steps, [w * r] * len(steps))
    return sum((value * true.get(place, Fraction(0)) for place, value in masked.items()), Fraction(0))


def variance_mu(x: PolicyPair, value: Callable[[Fraction, list[Fraction]], Fraction]) -> Fraction:
    """Var_μ of a rational function of R and the ratios."""
    mean = x.mean_mu(value)
    return x.mean_mu(lambda r, rho: (value(r, rho) - mean) ** 2)


@primitive("policy_pair")
def pair_surrogate_variance(x: PolicyPair) -> Any:
    """Var_μ[(R - E_μ R) Σ_t ρ_t]."""
    mean = pair_J_behavior(x)
    return variance_mu(x, lambda r, rho: (r - mean) * sum(rho))


@primitive("policy_pair")
def pair_surrogate_term_variance(x: PolicyPair) -> Any:
    """Σ_t Var_μ[(R - E_μ R) ρ_t], a term of an ended response being 0."""
    mean = pair_J_behavior(x)

    def term(t: int) -> Fraction:
        return variance_mu(x, lambda r, rho: (r - mean) * rho[t] if t < len(rho) else Fraction(0))

    return total(term(t) for t in range(x.horizon))


@primitive("policy_pair")
def pair_centred_surrogate_variance(x: PolicyPair) -> Any:
    """Var_μ[(R - E_μ R) Σ_t (ρ_t - 1)]."""
    mean = pair_J_behavior(x)
    return variance_mu(x, lambda r, rho: (r - mean) * (sum(rho) - len(rho)))


def extended_variance(x: PolicyPair, value: Callable[[list[Fraction]], Any]) -> Any:
    """Var_μ of a function of the ratios, inf if its second moment is."""
    second = x.mean_mu(lambda r, rho: value(rho) * value(rho))
    if isinstance(second, Interval) and second.is_infinite:
        return second
    mean = x.mean_mu(lambda r, rho: value(rho))
    return second - mean * mean


@primitive("policy_pair")
def pair_k3_sum_variance(x: PolicyPair) -> Any:
    """Var_μ Σ_t k3(ρ_t)."""
    return extended_variance(x, lambda rho: total(x.k3(ratio) for ratio in rho))


@primitive("policy_pair")
def pair_k3_term_variance(x: PolicyPair) -> Any:
    """Σ_t Var_μ k3(ρ_t), a term of an ended response being 0."""

    def term(t: int) -> Any:
        return extended_variance(x, lambda rho: x.k3(rho[t]) if t < len(rho) else Fraction(0))

    return total(term(t) for t in range(x.horizon))


@primitive("policy_pair")
def pair_gap_sum_target(x: PolicyPair) -> Any:
    """Σ_t E_{d_t^π}[g_t]."""
    return total(w * x.g[c] for c, w in x.d_pi.items())


@primitive("policy_pair")
def pair_gap_max(x: PolicyPair, t: int) -> Any:
    """max |g| over the contexts of step t."""
    below(t, x.horizon, "t")
    return max(abs(value) for c, value in x.g.items() if c[0] == t)


@primitive("policy_pair")
def pair_marginal_kl(x: PolicyPair, t: int) -> Any:
    """KL(d_t^μ‖d_t^π) of the laws of contexts of step t."""
    below(t, x.horizon, "t")
    here = [c for c in x.contexts if c[0] == t]
    return x.kl([x.d_mu[c] for c in here], [x.d_pi[c] for c in here])


@primitive("policy_pair")
def pair_telescope_gap(x: PolicyPair) -> Any:
    """max_y |R - E_μ R - Σ_t A_t| over every complete response."""
    mean = pair_J_behavior(x)
    return max(
        abs(r - mean - sum(x.q[t, i, a] - x.v[t, i] for t, i, a in steps))
        for r, (_p, steps) in zip(x.reward, x.sequences, strict=True)
    )


@primitive("policy_pair")
def pair_reward_length_covariance(x: PolicyPair) -> Any:
    """E_μ[(R - E_μ R) |y|]."""
    mean = pair_J_behavior(x)
    return x.mean_mu(lambda r, rho: (r - mean) * len(rho))


@primitive("policy_pair")
def pair_ratio_max(x: PolicyPair) -> Any:
    """Largest token ratio π/μ that sampling from μ can meet."""
    return max(ratio for _w, _r, rho in x.visited for ratio in rho)


@primitive("policy_pair")
def pair_reward_token_capped(x: PolicyPair, cap: Fraction) -> Any:
    """E_μ[R Σ_t min(log ρ_t, cap)]."""
    return x.mean_mu(lambda r, rho: weigh(r, total(minimum(x.log(ratio), cap) for ratio in rho)))


@primitive("policy_pair")
def pair_min_behavior(x: PolicyPair) -> Any:
    """Smallest μ(a|c) of the tree."""
    return min(p for level in x.mu for row in level for p in row)


@primitive("policy_pair")
def pair_min_target(x: PolicyPair) -> Any:
    """Smallest π(a|c) of the tree."""
    return min(p for level in x.pi for row in level for p in row)


@primitive("policy_pair")
def pair_support_ok(x: PolicyPair) -> Any:
    """1 if supp π ⊆ supp μ at every context of the tree, else 0."""
    return Fraction(int(all(p or not q for c in x.contexts for p, q in zip(*x.rows(c), strict=True))))


# ============================================================================ 4 teacher and student


class TeacherStudent(Tree):
    """Student p, teacher q and, optionally, a candidate p̃ for the next student.

    The student's reward is r = log(q/p).
    """

    def __init__(self, data: Any):
        super().__init__(data, ("teacher", "student"), ("candidate",))
        self._prepare(self.policy("student"))

    def _prepare(self, student: list[list[list[Fraction]]]) -> None:
        self.q, self.p = self.policy("teacher"), student
        self._next = self.policy("candidate") if "candidate" in self.data else None
        self.law_p, self.law_q = self.law(self.p), self.law(self.q)
        self.d_p = self.occupancy(self.p)
        self._known: dict[Any, Any] = {}

    @property
    def candidate(self) -> list[list[list[Fraction]]]:
        if self._next is None:
            raise Refused("instance: this quantity needs a candidate policy")
        return self._next

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """Keep intermediate results of one precision."""
        key = (self.bits, key)
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]

    def mixed(self, alpha: Any) -> list[list[list[Fraction]]]:
        """αq + (1-α)p at every context."""
        alpha = unit_interval(alpha)
        return [
            [
                [alpha * b + (1 - alpha) * a for a, b in zip(*rows, strict=True)]
                for rows in zip(*levels, strict=True)
            ]
            for levels in zip(self.p, self.q, strict=True)
        ]

    def over_contexts(self, value: Callable[..., Any], first: Any, second: Any) -> Any:
        """Maximum over every context of value(first(·|c), second(·|c))."""
        return largest(value(first[t][i], second[t][i]) for t, i in self.contexts)

    # ---- one step from student to candidate, the reward frozen at the student's

    @property
    def frozen_g(self) -> dict[tuple[int, int], Any]:
        """g(c) = Σ_a p̃(a|c) (Q(c, a) - V(c)), Q and V the student's values of its own reward from c on."""
        return self.once("frozen_g", self._frozen_g)

    def _frozen_g(self) -> dict[tuple[int, int], Any]:
        q: dict[Step, Any] = {}
        for _prompt, steps in self.sequences:
            tail, to_go = Fraction(1), Fraction(1)
            for t, i, a in reversed(steps):
                student, teacher = self.p[t][i][a], self.q[t][i][a]
                if student == 0 < self.candidate[t][i][a]:
                    raise Refused("the candidate draws a token that the student never draws: log(q/0)")
                if student == 0:
                    break
                to_go *= teacher / student
                q[t, i, a] = q.get((t, i, a), Fraction(0)) + weigh(tail, self.log(to_go))
                tail *= student
        found = {}
        for t, i in self.contexts:
            shift = [b - a for a, b in zip(self.p[t][i], self.candidate[t][i], strict=True)]
            found[t, i] = total(weigh(s, q[t, i, a]) for a, s in enumerate(shift) if s)
        return found

    # ---- sampled gradient estimators ĝ(y) = Σ_t Â_t ∇log p(y_t|c_t)

    def score(self, step: Step) -> dict[Any, Fraction]:
        """∇log p(a|c) with respect to the logits of the context: 1{a=b} - p(b|c)."""
        t, i, a = step
        return {(t, i, b): (a == b) - p for b, p in enumerate(self.p[t][i])}

    def advantages(self, estimator: Any, alpha: Any) -> list[list[Any]]:
        """Â_1, ..., Â_n of every sequence that the student draws (an empty list for the others).

        Token rewards are log(q/p), or log(αq/p + 1 - α) if alpha is given.  Estimators: ``i`` all rewards,
        ``ii`` those from t on, ``immediate`` the t-th, ``iv`` the t-th plus the means of the later ones
        given their contexts, ``topd_return`` the t-th plus the average of the later ones; ``iii``, ``v``
        and ``immediate_baseline`` are ii, iv and immediate minus the mean given the context.
        """
        return self.once(("advantages", estimator, alpha), lambda: self._advantages(estimator, alpha))

    def _advantages(self, estimator: Any, alpha: Any) -> list[list[Any]]:
        centred = {"iii": "ii", "v": "iv", "immediate_baseline": "immediate"}
        if estimator in centred:
            plain = self.advantages(centred[estimator], alpha)
            mean = self.conditional_mean(plain)
            return [
                [value - mean[t, i] for value, (t, i, _a) in zip(values, steps, strict=False)]
                for values, (_prompt, steps) in zip(plain, self.sequences, strict=True)
            ]
        reward = self.log if alpha is None else self._topd(alpha)
        found: list[list[Any]] = []
        for w, (_prompt, steps) in zip(self.law_p, self.sequences, strict=True):
            if not w:
                found.append([])
                continue
            r = [reward(self.q[t][i][a] / self.p[t][i][a]) for t, i, a in steps]
            n = len(r)
            if estimator == "i":
                values = [total(r)] * n
            elif estimator == "ii":
                values = [total(r[k:]) for k in range(n)]
            elif estimator == "immediate":
                values = r
            elif estimator == "iv":
                means = [self.mean_reward((t, i), reward) for t, i, _a in steps]
                values = [r[k] + total(means[k + 1 :]) for k in range(n)]
            elif estimator == "topd_return":
                values = [r[k] + (total(r[k + 1 :]) / (n - 1 - k) if k < n - 1 else 0) for k in range(n)]
            else:
                raise Refused(f"argument estimator: unknown word {_short(estimator)}")
            found.append(values)
        return found

    def _topd(self, alpha: Any) -> Callable[[Fraction], Any]:
        alpha = unit_interval(alpha)
        return lambda rho: self.log(alpha * rho + 1 - alpha)

    def mean_reward(self, c: tuple[int, int], reward: Callable[[Fraction], Any]) -> Any:
        """Σ_a p(a|c) r(c, a)."""
        t, i = c
        return total(a * reward(b / a) for a, b in zip(self.p[t][i], self.q[t][i], strict=True) if a)

    def conditional_mean(self, values: list[list[Any]]) -> dict[tuple[int, int], Any]:
        """E[Â_t | c_t] of every context that the student visits."""
        parts: dict[tuple[int, int], list[Any]] = {}
        for w, row, (_prompt, steps) in zip(self.law_p, values, self.sequences, strict=True):
            for value, (t, i, _a) in zip(row, steps, strict=False):
                parts.setdefault((t, i), []).append(w * value)
        return {c: total(found) / self.d_p[c] for c, found in parts.items()}

    def gradients(self, estimator: Any, alpha: Any) -> list[tuple[Fraction, dict[Any, Any]]]:
        """(probability, ĝ(y)) of every sequence that the student draws."""

        def compute() -> list[tuple[Fraction, dict[Any, Any]]]:
            found = []
            rows = self.advantages(estimator, alpha)
            for w, row, (_prompt, steps) in zip(self.law_p, rows, self.sequences, strict=True):
                if w:
                    vector: dict[Any, Any] = {}
                    for value, step in zip(row, steps, strict=True):
                        for name, s in self.score(step).items():
                            vector[name] = vector.get(name, Fraction(0)) + weigh(s, value)
                    found.append((w, vector))
            return found

        return self.once(("gradients", estimator, alpha), compute)

    def mean_gradient(self, estimator: Any, alpha: Any) -> dict[Any, Any]:
        """E ĝ."""

        def compute() -> dict[Any, Any]:
            mean: dict[Any, Any] = {}
            for w, vector in self.gradients(estimator, alpha):
                for name, value in vector.items():
                    mean[name] = mean.get(name, Fraction(0)) + w * value
            return mean

        return self.once(("mean", estimator, alpha), compute)


@primitive("teacher_student")
def teacher_eta(x: TeacherStudent) -> Any:
    """η = -KL(student‖teacher) of the laws of sequences."""
    return -x.kl(x.law_p, x.law_q)


@primitive("teacher_student")
def teacher_kl_student_teacher_seq(x: TeacherStudent) -> Any:
    """KL(student‖teacher) of the laws of sequences."""
    return x.kl(x.law_p, x.law_q)


@primitive("teacher_student")
def teacher_kl_teacher_student_seq(x: TeacherStudent) -> Any:
    """KL(teacher‖student) of the laws of sequences."""
    return x.kl(x.law_q, x.law_p)


@primitive("teacher_student")
def teacher_kl_student_teacher_max(x: TeacherStudent) -> Any:
    """max_c KL(student‖teacher)(c)."""
    return x.over_contexts(x.kl, x.p, x.q)


@primitive("teacher_student")
def teacher_kl_teacher_student_max(x: TeacherStudent) -> Any:
    """max_c KL(teacher‖student)(c)."""
    return x.over_contexts(x.kl, x.q, x.p)


@primitive("teacher_student")
def teacher_kl_state_sum(x: TeacherStudent) -> Any:
    """Σ_c KL(student‖teacher)(c), every context counted once."""
    return total(x.kl(x.p[t][i], x.q[t][i]) for t, i in x.contexts)


@primitive("teacher_student")
def teacher_tv_seq(x: TeacherStudent) -> Any:
    """TV of the laws of sequences."""
    return tv(x.law_p, x.law_q)


@primitive("teacher_student")
def teacher_l1_seq(x: TeacherStudent) -> Any:
    """‖p - q‖₁ of the laws of sequences."""
    return 2 * tv(x.law_p, x.law_q)


@primitive("teacher_student")
def teacher_tv_state_max(x: TeacherStudent) -> Any:
    """max_c TV(student, teacher)(c)."""
    return x.over_contexts(tv, x.p, x.q)


@primitive("teacher_student")
def teacher_l1_state_max(x: TeacherStudent) -> Any:
    """max_c ‖p - q‖₁(c)."""
    return 2 * x.over_contexts(tv, x.p, x.q)


@primitive("teacher_student")
def teacher_l1_state_mixed_max(x: TeacherStudent, alpha: Any) -> Any:
    """max_c ‖m - q‖₁(c), m = αq + (1-α)p at every context."""
    return 2 * x.over_contexts(tv, x.mixed(alpha), x.q)


@primitive("teacher_student")
def teacher_l1_token_mixed(x: TeacherStudent, alpha: Any) -> Any:
    """‖m - q‖₁ of the laws of sequences, m the policy αq + (1-α)p at every context."""
    return 2 * tv(x.law(x.mixed(alpha)), x.law_q)


@primitive("teacher_student")
def teacher_l1_token_move(x: TeacherStudent, alpha: Any) -> Any:
    """‖m - p‖₁ of the laws of sequences, m the policy αq + (1-α)p at every context."""
    return 2 * tv(x.law(x.mixed(alpha)), x.law_p)


@primitive("teacher_student")
def teacher_l1_sequence_mixed(x: TeacherStudent, alpha: Any) -> Any:
    """Σ_y |αq(y) + (1-α)p(y) - q(y)|."""
    alpha = unit_interval(alpha)
    return total(abs(alpha * b + (1 - alpha) * a - b) for a, b in zip(x.law_p, x.law_q, strict=True))


@primitive("teacher_student")
def teacher_expected_length_student(x: TeacherStudent) -> Any:
    """Mean number of tokens of the student, EOS counted."""
    return x.expected_length(x.law_p)


@primitive("teacher_student")
def teacher_expected_length_teacher(x: TeacherStudent) -> Any:
    """Mean number of tokens of the teacher, EOS counted."""
    return x.expected_length(x.law_q)


@primitive("teacher_student")
def teacher_min_student(x: TeacherStudent) -> Any:
    """Smallest student probability of the tree."""
    return min(p for level in x.p for row in level for p in row)


@primitive("teacher_student")
def teacher_min_teacher(x: TeacherStudent) -> Any:
    """Smallest teacher probability of the tree."""
    return min(p for level in x.q for row in level for p in row)


@primitive("teacher_student")
def teacher_min_candidate(x: TeacherStudent) -> Any:
    """Smallest candidate probability of the tree."""
    return min(p for level in x.candidate for row in level for p in row)


@primitive("teacher_student")
def teacher_candidate_eta(x: TeacherStudent) -> Any:
    """-KL(candidate‖teacher) of the laws of sequences."""
    return -x.kl(x.law(x.candidate), x.law_q)


@primitive("teacher_student")
def teacher_candidate_return_frozen(x: TeacherStudent) -> Any:
    """E of Σ_t log(q/p) over sequences of the candidate, the reward being the student's."""
    found = []
    for w, (_prompt, steps) in zip(x.law(x.candidate), x.sequences, strict=True):
        if w:
            p = product(x.p[t][i][a] for t, i, a in steps)
            if p == 0:
                raise Refused("the candidate draws a token that the student never draws: log(q/0)")
            found.append(w * x.log(product(x.q[t][i][a] for t, i, a in steps) / p))
    return total(found)


@primitive("teacher_student")
def teacher_candidate_surrogate(x: TeacherStudent) -> Any:
    """Σ_c d(c) g(c), g(c) = E_{a~p̃}[A(c, a)] under the student's reward, d the student's visits."""
    return total(weigh(x.d_p[c], g) for c, g in x.frozen_g.items())


@primitive("teacher_student")
def teacher_candidate_g_max(x: TeacherStudent) -> Any:
    """max_c |g(c)|."""
    return largest(abs(g) for g in x.frozen_g.values())


def _step_kl(x: TeacherStudent, c: tuple[int, int]) -> Any:
    return x.kl(x.candidate[c[0]][c[1]], x.p[c[0]][c[1]])


@primitive("teacher_student")
def teacher_candidate_corrected_surrogate(x: TeacherStudent) -> Any:
    """Σ_c d(c) g′(c), g′(c) = g(c) - KL(p̃‖p)(c)."""
    return total(weigh(x.d_p[c], g - _step_kl(x, c)) for c, g in x.frozen_g.items())


@primitive("teacher_student")
def teacher_candidate_corrected_g_max(x: TeacherStudent) -> Any:
    """max_c |g′(c)|."""
    return largest(abs(g - _step_kl(x, c)) for c, g in x.frozen_g.items())


@primitive("teacher_student")
def teacher_candidate_tv_sum(x: TeacherStudent) -> Any:
    """Σ_c d(c) TV(p, p̃)(c)."""
    return total(x.d_p[t, i] * tv(x.p[t][i], x.candidate[t][i]) for t, i in x.contexts)


@primitive("teacher_student")
def teacher_candidate_tv_max(x: TeacherStudent) -> Any:
    """max_c TV(p, p̃)(c)."""
    return x.over_contexts(tv, x.p, x.candidate)


@primitive("teacher_student")
def teacher_candidate_kl_step_sum(x: TeacherStudent) -> Any:
    """Σ_c d(c) KL(p̃‖p)(c)."""
    return total(weigh(x.d_p[c], _step_kl(x, c)) for c in x.contexts if x.d_p[c])


@primitive("teacher_student")
def teacher_candidate_kl_max(x: TeacherStudent) -> Any:
    """max_c KL(p̃‖p)(c)."""
    return largest(_step_kl(x, c) for c in x.contexts)


@primitive("teacher_student")
def teacher_candidate_expected_length(x: TeacherStudent) -> Any:
    """Mean number of tokens of the candidate, EOS counted."""
    return x.expected_length(x.law(x.candidate))


@primitive("teacher_student")
def teacher_gradient_second_moment(x: TeacherStudent, estimator: str, alpha: Any = None) -> Any:
    """E‖ĝ‖² of a sampled gradient estimator (see ``advantages``)."""
    return total(w * total(v * v for v in vector.values()) for w, vector in x.gradients(estimator, alpha))


@primitive("teacher_student")
def teacher_gradient_norm2(x: TeacherStudent, estimator: str, alpha: Any = None) -> Any:
    """‖E ĝ‖²."""
    return total(v * v for v in x.mean_gradient(estimator, alpha).values())


@primitive("teacher_student")
def teacher_gradient_variance(x: TeacherStudent, estimator: str, alpha: Any = None) -> Any:
    """Trace of the covariance, E‖ĝ - E ĝ‖²."""
    mean = x.mean_gradient(estimator, alpha)
    return total(
        w * total((vector.get(name, 0) - m) ** 2 for name, m in mean.items())
        for w, vector in x.gradients(estimator, alpha)
    )


@primitive("teacher_student")
def teacher_gradient_dot(x: TeacherStudent, first: str, second: str, alpha: Any = None) -> Any:
    """⟨E ĝ_first, E ĝ_second⟩; alpha (if given) belongs to the first."""
    a, b = x.mean_gradient(first, alpha), x.mean_gradient(second, None)
    return total(value * b[name] for name, value in a.items())


# ============================================================================ 5 single states


class SingleState(Instance):
    """Distributions p (student, behaviour) and q (teacher, target) on one alphabet, and optional values."""

    def __init__(self, data: Any):
        super().__init__(data, ("p", "q"), ("values",))
        self.p = distribution(data["p"], "instance.p")
        self.q = distribution(data["q"], "instance.q", len(self.p))
        self.vocab = len(self.p)
        if self.vocab > 4096:
            raise Refused("instance: more than 4096 tokens")
        self._values = vector(data["values"], "instance.values", self.vocab) if "values" in data else None

    @property
    def values(self) -> list[Fraction]:
        if self._values is None:
            raise Refused("instance: this quantity needs values")
        return self._values

    def mean(self, f: Callable[[Fraction], Any]) -> Any:
        """E_p[f(ρ)], ρ = q/p, over the support of p."""
        return total(weigh(a, f(b / a)) for a, b in zip(self.p, self.q, strict=True) if a)

    def field(self, f: Callable[[Fraction], Any]) -> list[Any]:
        """E_p[f(ρ) ∇log p] with respect to the logits of p: component y is p_y (f(ρ_y) - E_p f)."""
        mean = self.mean(f)
        return [a * (f(b / a) - mean) if a else Fraction(0) for a, b in zip(self.p, self.q, strict=True)]

    def score_norm2(self, y: int) -> Fraction:
        """‖∇log p(y)‖² = ‖e_y - p‖² with respect to the logits."""
        return 1 - 2 * self.p[y] + sum(a * a for a in self.p)

    def gradient_second_moment(self, f: Callable[[Fraction], Any]) -> Any:
        """E_p ‖f(ρ) ∇log p‖²."""
        return total(a * f(b / a) ** 2 * self.score_norm2(y)
                     for y, (a, b) in enumerate(zip(self.p, self.q, strict=True)) if a)  # fmt: skip

    def topd(self, alpha: Any) -> Callable[[Fraction], Any]:
        """r̃(ρ) = log(αρ + 1 - α)."""
        alpha = unit_interval(alpha)
        return lambda rho: self.log(alpha * rho + 1 - alpha)

    def top(self, weights: Sequence[Fraction], k: Any) -> list[int]:
        """The k tokens of largest weight, ties by the lower index."""
        integer(k, "argument k", 0, self.vocab)
        return sorted(range(self.vocab), key=lambda y: (-weights[y], y))[:k]


@primitive("single_state")
def state_vocab(x: SingleState) -> Any:
    """Number of tokens."""
    return Fraction(x.vocab)


@primitive("single_state")
def state_kl_pq(x: SingleState) -> Any:
    """KL(p‖q)."""
    return x.kl(x.p, x.q)


@primitive("single_state")
def state_kl_qp(x: SingleState) -> Any:
    """KL(q‖p)."""
    return x.kl(x.q, x.p)


@primitive("single_state")
def state_tv(x: SingleState) -> Any:
    """TV(p, q)."""
    return tv(x.p, x.q)


@primitive("single_state")
def state_l1(x: SingleState) -> Any:
    """‖p - q‖₁."""
    return 2 * tv(x.p, x.q)


@primitive("single_state")
def state_max_abs_log_ratio(x: SingleState) -> Any:
    """max |log(q/p)| over the support of p."""
    return largest(abs(x.log(b / a)) for a, b in zip(x.p, x.q, strict=True) if a)


@primitive("single_state")
def state_chi2_pq(x: SingleState) -> Any:
    """χ²(p‖q) = Σ p²/q - 1."""
    return x.chi2(x.p, x.q)


@primitive("single_state")
def state_chi2_qp(x: SingleState) -> Any:
    """χ²(q‖p) = Σ q²/p - 1."""
    return x.chi2(x.q, x.p)


@primitive("single_state")
def state_hellinger2(x: SingleState) -> Any:
    """1 - Σ √(pq)."""
    return x.hellinger2(x.p, x.q)


@primitive("single_state")
def state_jsd(x: SingleState, alpha: Any) -> Any:
    """α KL(q‖m) + (1-α) KL(p‖m), m = αq + (1-α)p."""
    alpha = unit_interval(alpha)
    m = [alpha * b + (1 - alpha) * a for a, b in zip(x.p, x.q, strict=True)]
    return weigh(alpha, x.kl(x.q, m)) + weigh(1 - alpha, x.kl(x.p, m))


@primitive("single_state")
def state_entropy_p(x: SingleState) -> Any:
    """-Σ p log p."""
    return -total(weigh(a, x.log(a)) for a in x.p)


@primitive("single_state")
def state_entropy_q(x: SingleState) -> Any:
    """-Σ q log q."""
    return -total(weigh(b, x.log(b)) for b in x.q)


@primitive("single_state")
def state_min_p(x: SingleState) -> Any:
    """Smallest student probability."""
    return min(x.p)


@primitive("single_state")
def state_min_q(x: SingleState) -> Any:
    """Smallest teacher probability."""
    return min(x.q)


@primitive("single_state")
def state_max_ratio(x: SingleState) -> Any:
    """max q/p over the support of p."""
    return max(b / a for a, b in zip(x.p, x.q, strict=True) if a)


@primitive("single_state")
def state_min_ratio(x: SingleState) -> Any:
    """min q/p over the support of p."""
    return min(b / a for a, b in zip(x.p, x.q, strict=True) if a)


@primitive("single_state")
def state_covered_mass(x: SingleState) -> Any:
    """E_p[ρ] = q(supp p)."""
    return sum(b for a, b in zip(x.p, x.q, strict=True) if a)


@primitive("single_state")
def state_within_log_ratio(x: SingleState, delta: Any) -> Any:
    """p-mass of the actions with |log(q/p)| ≤ delta."""
    return total(a for a, b in zip(x.p, x.q, strict=True) if a and at_most(abs(x.log(b / a)), delta))


@primitive("single_state")
def state_value_gap_sup(x: SingleState) -> Any:
    """max |E_q f - E_p f| over f in {0, 1}^V, and so over f in [0, 1]^V."""
    if x.vocab > 12:
        raise Refused("instance: too many actions to enumerate their subsets")
    return max(
        abs(total(b - a for k, (a, b) in enumerate(zip(x.p, x.q, strict=True)) if chosen >> k & 1))
        for chosen in range(1 << x.vocab)
    )


@primitive("single_state")
def state_p_covered(x: SingleState) -> Any:
    """1 if supp p ⊆ supp q, else 0."""
    return Fraction(int(all(b or not a for a, b in zip(x.p, x.q, strict=True))))


@primitive("single_state")
def state_support_ok(x: SingleState) -> Any:
    """1 if supp q ⊆ supp p, else 0."""
    return Fraction(int(all(a or not b for a, b in zip(x.p, x.q, strict=True))))


@primitive("single_state")
def state_opd_mean(x: SingleState) -> Any:
    """E_p[log ρ] = -KL(p‖q)."""
    return x.mean(x.log)


@primitive("single_state")
def state_opd_second_moment(x: SingleState) -> Any:
    """E_p[log² ρ]."""
    return x.mean(lambda rho: x.log(rho) ** 2)


@primitive("single_state")
def state_opd_variance(x: SingleState) -> Any:
    """Var_p(log ρ)."""
    return state_opd_second_moment(x) - state_opd_mean(x) ** 2


@primitive("single_state")
def state_topd_mean(x: SingleState, alpha: Any) -> Any:
    """E_p[r̃], r̃ = log(αρ + 1 - α)."""
    return x.mean(x.topd(alpha))


@primitive("single_state")
def state_topd_second_moment(x: SingleState, alpha: Any) -> Any:
    """E_p[r̃²]."""
    f = x.topd(alpha)
    return x.mean(lambda rho: f(rho) ** 2)


@primitive("single_state")
def state_topd_variance(x: SingleState, alpha: Any) -> Any:
    """Var_p(r̃)."""
    return state_topd_second_moment(x, alpha) - state_topd_mean(x, alpha) ** 2


@primitive("single_state")
def state_topd_max(x: SingleState, alpha: Any) -> Any:
    """max r̃ over the support of p."""
    f = x.topd(alpha)
    return largest(f(b / a) for a, b in zip(x.p, x.q, strict=True) if a)


@primitive("single_state")
def state_topd_min(x: SingleState, alpha: Any) -> Any:
    """min r̃ over the support of p."""
    f = x.topd(alpha)
    return smallest(f(b / a) for a, b in zip(x.p, x.q, strict=True) if a)


@primitive("single_state")
def state_opd_gradient_second_moment(x: SingleState) -> Any:
    """E_p ‖log ρ · ∇log p‖², gradient with respect to the logits of p."""
    return x.gradient_second_moment(x.log)


@primitive("single_state")
def state_opd_gradient_norm2(x: SingleState) -> Any:
    """‖E_p[log ρ · ∇log p]‖²."""
    mean = x.field(x.log)
    return dot(mean, mean)


@primitive("single_state")
def state_opd_gradient_variance(x: SingleState) -> Any:
    """E‖g‖² - ‖E g‖², g = log ρ · ∇log p."""
    return state_opd_gradient_second_moment(x) - state_opd_gradient_norm2(x)


@primitive("single_state")
def state_topd_gradient_second_moment(x: SingleState, alpha: Any) -> Any:
    """E_p ‖r̃ · ∇log p‖²."""
    return x.gradient_second_moment(x.topd(alpha))


@primitive("single_state")
def state_topd_gradient_norm2(x: SingleState, alpha: Any) -> Any:
    """‖E_p[r̃ · ∇log p]‖²."""
    mean = x.field(x.topd(alpha))
    return dot(mean, mean)


@primitive("single_state")
def state_topd_gradient_variance(x: SingleState, alpha: Any) -> Any:
    """E‖g̃‖² - ‖E g̃‖², g̃ = r̃ · ∇log p."""
    return state_topd_gradient_second_moment(x, alpha) - state_topd_gradient_norm2(x, alpha)


@primitive("single_state")
def state_k3_pq(x: SingleState) -> Any:
    """E_p[ρ - 1 - log ρ]."""
    return x.mean(x.k3)


@primitive("single_state")
def state_gate_acceptance(x: SingleState) -> Any:
    """E_p[min(ρ, 1)] = Σ min(p, q)."""
    return sum(min(a, b) for a, b in zip(x.p, x.q, strict=True))


@primitive("single_state")
def state_gated_k1(x: SingleState) -> Any:
    """E_p[-M log ρ] with P(M = 1) = min(ρ, 1)."""
    return x.mean(lambda rho: -weigh(min(rho, Fraction(1)), x.log(rho)))


@primitive("single_state")
def state_gated_second_moment(x: SingleState) -> Any:
    """E_p[M log² ρ] with P(M = 1) = min(ρ, 1)."""
    return x.mean(lambda rho: weigh(min(rho, Fraction(1)), x.log(rho) ** 2))


@primitive("single_state")
def state_mean_ratio_distance(x: SingleState) -> Any:
    """E_p|ρ - 1|."""
    return x.mean(lambda rho: abs(rho - 1))


@primitive("single_state")
def state_topk_tv_head(x: SingleState, k: int) -> Any:
    """½ Σ|p - q| over the top k tokens of p, the tail left out."""
    return sum((abs(x.p[y] - x.q[y]) for y in x.top(x.p, k)), Fraction(0)) / 2


@primitive("single_state")
def state_dppo_tv_drift(x: SingleState, delta: Fraction) -> Any:
    """d/dt TV(p, q_t) at 0 when the logits of q follow E_p[M ρ Â ∇log q], M DPPO's mask for TV > delta."""
    if min(x.p) == 0 or min(x.q) == 0:
        raise Refused("instance: the drift needs full support")
    mean = dot(x.p, x.values)
    outside = tv(x.p, x.q) > delta
    gradient = [Fraction(0)] * x.vocab
    for y, (mu, pi, value) in enumerate(zip(x.p, x.q, x.values, strict=True)):
        advantage, rho = value - mean, pi / mu
        masked = outside and ((advantage > 0 and rho > 1) or (advantage < 0 and rho < 1))
        for z in range(x.vocab):
            score = (1 if z == y else 0) - x.q[z]  # ∂ log q(y) / ∂ logit z
            gradient[z] += 0 if masked else mu * rho * advantage * score
    mean_gradient = dot(x.q, gradient)
    velocity = [b * (g - mean_gradient) for b, g in zip(x.q, gradient, strict=True)]
    return (
        sum(
            ((1 if b > a else -1 if b < a else 0) * v for a, b, v in zip(x.p, x.q, velocity, strict=True)),
            Fraction(0),
        )
        / 2
    )


def _direction(x: SingleState, signal: str, floor: Any, k: int) -> list[Any]:
    """Expected update direction in the logits of p, for full support."""
    if min(x.p) == 0 or min(x.q) == 0:
        raise Refused("instance: update directions need full support")
    one = Fraction(1)
    if signal == "fkl":
        head = x.top(x.q, k)
        mass = sum((x.q[y] for y in head), Fraction(0))
        return [
            (b if y in head else Fraction(0)) - a * mass
            for y, (a, b) in enumerate(zip(x.p, x.q, strict=True))
        ]
    if signal == "tropd":
        rejected = tv(x.p, x.q)
        parts = zip(_direction(x, "gate", floor, k), _direction(x, "fkl", floor, k), strict=True)
        return [a + rejected * b for a, b in parts]
    if signal in ("clip", "mask") and floor <= 0:
        raise Refused("argument floor: expected a positive number")
    signals: dict[str, Callable[[Fraction], Any]] = {
        "rkl": x.log,
        "gate": lambda rho: min(rho, one) * x.log(rho),
        "clip": lambda rho: x.log(max(rho, floor)),
        "mask": lambda rho: x.log(rho) if rho > floor else Fraction(0),
    }
    if signal not in signals:
        raise Refused(f"argument: unknown signal {signal!r}")
    return x.field(signals[signal])


@primitive("single_state")
def state_direction_dot(x: SingleState, first: str, second: str, floor: Any = Fraction(1), k: int = 1) -> Any:
    """Inner product of two expected TrOPD update directions.

    Directions: rkl, gate, clip and mask (floor = e^τ), fkl (top k), tropd.
    """
    return dot(_direction(x, first, floor, k), _direction(x, second, floor, k))


@primitive("single_state")
def state_binary_tv(x: SingleState, token: int) -> Any:
    """|p - q| of one token: TV of the partition into it and the rest."""
    token = below(token, x.vocab, "token")
    return abs(x.p[token] - x.q[token])


@primitive("single_state")
def state_binary_kl(x: SingleState, token: int) -> Any:
    """KL(p‖q) of the partition into one token and the rest."""
    token = below(token, x.vocab, "token")
    return x.kl([x.p[token], 1 - x.p[token]], [x.q[token], 1 - x.q[token]])


def _merged(x: SingleState, head: list[int]) -> tuple[list[Fraction], list[Fraction]]:
    """(p, q) on the tokens of ``head`` and one bucket for the rest."""
    p, q = [x.p[y] for y in head], [x.q[y] for y in head]
    return [*p, Fraction(1) - sum(p)], [*q, Fraction(1) - sum(q)]


@primitive("single_state")
def state_topk_tv(x: SingleState, k: int) -> Any:
    """TV on the top k tokens of p and one tail bucket."""
    return tv(*_merged(x, x.top(x.p, k)))


@primitive("single_state")
def state_topk_kl(x: SingleState, k: int) -> Any:
    """KL(p‖q) on the top k tokens of p and one tail bucket."""
    return x.kl(*_merged(x, x.top(x.p, k)))


@primitive("single_state")
def state_topk_fkl(x: SingleState, k: int) -> Any:
    """Σ q log(q/p) over the top k tokens of q, without a tail bucket."""
    head = x.top(x.q, k)
    return x.kl([x.q[y] for y in head], [x.p[y] for y in head])


@primitive("single_state")
def state_topk_fkl_tail(x: SingleState, k: int) -> Any:
    """KL(q‖p) on the top k tokens of q and one tail bucket."""
    p, q = _merged(x, x.top(x.q, k))
    return x.kl(q, p)


@primitive("single_state")
def state_topk_mass_p(x: SingleState, k: int) -> Any:
    """Student mass of the top k tokens of q."""
    return sum((x.p[y] for y in x.top(x.q, k)), Fraction(0))


@primitive("single_state")
def state_topk_mass_q(x: SingleState, k: int) -> Any:
    """Teacher mass of the top k tokens of q."""
    return sum((x.q[y] for y in x.top(x.q, k)), Fraction(0))


@primitive("single_state")
def state_mean_values(x: SingleState) -> Any:
    """E_p[values]."""
    return dot(x.p, x.values)


@primitive("single_state")
def state_gain(x: SingleState) -> Any:
    """E_q[values] - E_p[values]."""
    return dot(x.q, x.values) - dot(x.p, x.values)


@primitive("single_state")
def state_values_min(x: SingleState) -> Any:
    """min values."""
    return min(x.values)


@primitive("single_state")
def state_values_max(x: SingleState) -> Any:
    """max values."""
    return max(x.values)


@primitive("single_state")
def state_values_span(x: SingleState) -> Any:
    """max values - min values."""
    return max(x.values) - min(x.values)


@primitive("single_state")
def state_values_max_abs(x: SingleState) -> Any:
    """max |values|."""
    return max(abs(v) for v in x.values)


# ============================================================================ 6 scalars


class Scalar(Instance):
    """Named numbers; each name is a primitive."""

    def __init__(self, data: Any):
        self.data = data
        self.bits = PRECISIONS[0]
        self.scalars = _named_fractions(data, "instance")


# ============================================================================ 7 discounted decision processes


def solve(matrix: list[list[Fraction]], right: list[Fraction]) -> list[Fraction]:
    """The solution of a square linear system, by exact elimination."""
    n = len(right)
    rows = [[*row, b] for row, b in zip(matrix, right, strict=True)]
    for k in range(n):
        pivot = next((i for i in range(k, n) if rows[i][k]), None)
        if pivot is None:
            raise Refused("a singular linear system")
        rows[k], rows[pivot] = rows[pivot], rows[k]
        rows[k] = [v / rows[k][k] for v in rows[k]]
        for i in range(n):
            if i != k and rows[i][k]:
                rows[i] = [v - rows[i][k] * u for v, u in zip(rows[i], rows[k], strict=True)]
    return [row[n] for row in rows]


class DiscountedMDP(Instance):
    """Transition (s, a, s'), reward (s, a), discount γ in [0, 1), initial law, policies μ and π (s, a)."""

    def __init__(self, data: Any):
        super().__init__(data, ("transition", "reward", "gamma", "initial", "behavior", "target"))
        rows = items(data["reward"], "instance.reward")
        if not 1 <= len(rows) <= 64 or not isinstance(rows[0], list) or not 1 <= len(rows[0]) <= 64:
            raise Refused("instance.reward: expected 1 to 64 states and 1 to 64 actions")
        s, a = len(rows), len(rows[0])
        self.states, self.actions = s, a
        self.reward = [vector(row, f"instance.reward[{i}]", a) for i, row in enumerate(rows)]
        self.transition = [
            [
                distribution(law, f"instance.transition[{i}][{j}]", s)
                for j, law in enumerate(items(row, f"instance.transition[{i}]", a))
            ]
            for i, row in enumerate(items(data["transition"], "instance.transition", s))
        ]
        self.gamma = fraction(data["gamma"], "instance.gamma")
        if not 0 <= self.gamma < 1:
            raise Refused(f"instance.gamma: {self.gamma} is not in [0, 1)")
        self.initial = distribution(data["initial"], "instance.initial", s)
        self.mu, self.pi = (
            [
                distribution(row, f"instance.{name}[{i}]", a)
                for i, row in enumerate(items(data[name], f"instance.{name}", s))
            ]
            for name in ("behavior", "target")
        )

    def system(self, policy: list[list[Fraction]]) -> list[list[Fraction]]:
        """I - γP under a policy."""
        return [
            [
                (i == j)
                - self.gamma * sum(policy[i][a] * self.transition[i][a][j] for a in range(self.actions))
                for j in range(self.states)
            ]
            for i in range(self.states)
        ]

    def values(self, policy: list[list[Fraction]]) -> list[Fraction]:
        """V = (I - γP)⁻¹ r."""
        return solve(self.system(policy), [dot(p, r) for p, r in zip(policy, self.reward, strict=True)])

    def visits(self, policy: list[list[Fraction]]) -> list[Fraction]:
        """Σ_t γᵗ P(s_t = s)."""
        return solve([list(column) for column in zip(*self.system(policy), strict=True)], self.initial)

    @cached_property
    def advantage(self) -> list[list[Fraction]]:
        """A^μ(s, a) = r + γ Σ_s' P(s'|s, a) V^μ(s') - V^μ(s)."""
        v = self.values(self.mu)
        return [
            [
                self.reward[s][a] + self.gamma * dot(self.transition[s][a], v) - v[s]
                for a in range(self.actions)
            ]
            for s in range(self.states)
        ]

    @cached_property
    def g(self) -> list[Fraction]:
        """Σ_a π(a|s) A^μ(s, a)."""
        return [dot(p, a) for p, a in zip(self.pi, self.advantage, strict=True)]

    def over_states(self, value: Callable[..., Any]) -> Any:
        return largest(value(p, q) for p, q in zip(self.mu, self.pi, strict=True))


@primitive("discounted_mdp")
def mdp_gamma(x: DiscountedMDP) -> Any:
    """Discount."""
    return x.gamma


@primitive("discounted_mdp")
def mdp_J_behavior(x: DiscountedMDP) -> Any:
    """Discounted return of μ."""
    return dot(x.initial, x.values(x.mu))


@primitive("discounted_mdp")
def mdp_J_target(x: DiscountedMDP) -> Any:
    """Discounted return of π."""
    return dot(x.initial, x.values(x.pi))


@primitive("discounted_mdp")
def mdp_improvement(x: DiscountedMDP) -> Any:
    """J(π) - J(μ)."""
    return mdp_J_target(x) - mdp_J_behavior(x)


@primitive("discounted_mdp")
def mdp_surrogate(x: DiscountedMDP) -> Any:
    """Σ_s visits_μ(s) Σ_a π(a|s) A^μ(s, a)."""
    return dot(x.visits(x.mu), x.g)


@primitive("discounted_mdp")
def mdp_error(x: DiscountedMDP) -> Any:
    """Improvement - surrogate."""
    return mdp_improvement(x) - mdp_surrogate(x)


@primitive("discounted_mdp")
def mdp_adv_max(x: DiscountedMDP) -> Any:
    """max |A^μ(s, a)|."""
    return max(abs(a) for row in x.advantage for a in row)


@primitive("discounted_mdp")
def mdp_adv_target_max(x: DiscountedMDP) -> Any:
    """max_s |Σ_a π(a|s) A^μ(s, a)|."""
    return max(abs(g) for g in x.g)


@primitive("discounted_mdp")
def mdp_reward_min(x: DiscountedMDP) -> Any:
    """Smallest reward."""
    return min(r for row in x.reward for r in row)


@primitive("discounted_mdp")
def mdp_reward_max(x: DiscountedMDP) -> Any:
    """Largest reward."""
    return max(r for row in x.reward for r in row)


@primitive("discounted_mdp")
def mdp_tv_max(x: DiscountedMDP) -> Any:
    """max_s TV(μ, π)(s)."""
    return x.over_states(tv)


@primitive("discounted_mdp")
def mdp_tv_mean(x: DiscountedMDP) -> Any:
    """Mean of TV(μ, π)(s) over the normalised discounted visits of μ."""
    return (1 - x.gamma) * dot(x.visits(x.mu), [tv(p, q) for p, q in zip(x.mu, x.pi, strict=True)])


@primitive("discounted_mdp")
def mdp_kl_max(x: DiscountedMDP) -> Any:
    """max_s KL(μ‖π)(s)."""
    return x.over_states(x.kl)


@primitive("discounted_mdp")
def mdp_reverse_kl_max(x: DiscountedMDP) -> Any:
    """max_s KL(π‖μ)(s)."""
    return x.over_states(lambda p, q: x.kl(q, p))


# ============================================================================ 8 iterated maps


class IteratedMap(Instance):
    """Students of one state, one after the other: p_0 = start, p_{k+1} = F(p_k) for k < steps, towards a
    teacher q.

    ``map`` is one of

    * ``proximal``: F(p) = αq + (1-α)p + e_k with the scalar alpha and optional ``errors`` e_k (each sums to
      0),
    * ``minorizer``: two tokens, one state, horizon 1 with penalty weight ``penalty`` (a scalar > 0): F(p)
      maximises over p̃ the bound Σ p̃A - 2·penalty·|Σ p̃A|·TV(p̃, p), A the advantage of the reward
      log(q/p).  With p̃ = p + u on the second token and a = r(1) - r(0) this is a·u - 2·penalty·|a|u², so u
      = sign(a)/(4·penalty), cut at the ends of [0, 1].
    """

    def __init__(self, data: Any):
        super().__init__(data, ("map", "start", "teacher", "steps"), ("errors",))
        self.start = distribution(data["start"], "instance.start")
        if len(self.start) > 1024:
            raise Refused("instance.start: more than 1024 tokens")
        self.q = distribution(data["teacher"], "instance.teacher", len(self.start))
        self.steps = integer(data["steps"], "instance.steps", 0, 256)
        maps = {"proximal": self._proximal, "minorizer": self._minorizer}
        if not isinstance(data["map"], str) or data["map"] not in maps:
            raise Refused(f"instance.map: {_short(data['map'])} is none of {', '.join(maps)}")
        needed = {"proximal": "alpha", "minorizer": "penalty"}[data["map"]]
        if set(self.scalars) != {needed}:
            raise Refused(f"instance.scalars: expected exactly {needed!r} for the map {data['map']!r}")
        self.parameter = self.scalars[needed]
        self.errors: list[list[Fraction]] = []
        if "errors" in data:
            if data["map"] != "proximal":
                raise Refused("instance.errors: only the map 'proximal' has errors")
            rows = items(data["errors"], "instance.errors", self.steps)
            self.errors = [vector(row, f"instance.errors[{k}]", len(self.q)) for k, row in enumerate(rows)]
        self.iterates = [self.start]
        for k in range(self.steps):
            nxt = maps[data["map"]](self.iterates[-1], k)
            if any(p < 0 for p in nxt) or sum(nxt) != 1:
                raise Refused(f"instance: iterate {k + 1} is no distribution")
            self.iterates.append(nxt)

    def _proximal(self, p: list[Fraction], k: int) -> list[Fraction]:
        alpha = unit_interval(self.parameter)
        error = self.errors[k] if self.errors else [Fraction(0)] * len(p)
        return [alpha * b + (1 - alpha) * a + e for a, b, e in zip(p, self.q, error, strict=True)]

    def _minorizer(self, p: list[Fraction], k: int) -> list[Fraction]:
        if len(p) != 2 or self.parameter <= 0 or not all(p) or not all(self.q):
            raise Refused(
                "instance: the map 'minorizer' needs two tokens of positive probability and penalty > 0"
            )
        # sign of a = log(q1/p1) - log(q0/p0), that is of q1·p0 - q0·p1
        side = self.q[1] * p[0] - self.q[0] * p[1]
        sign = (side > 0) - (side < 0)
        p1 = min(Fraction(1), max(Fraction(0), p[1] + sign / (4 * self.parameter)))
        return [1 - p1, p1]

    def iterate(self, k: Any) -> list[Fraction]:
        return self.iterates[below(k, self.steps + 1, "k")]


@primitive("iterated_map")
def map_probability(x: IteratedMap, k: int, token: int) -> Any:
    """p_k(token)."""
    return x.iterate(k)[below(token, len(x.q), "token")]


@primitive("iterated_map")
def map_kl(x: IteratedMap, k: int) -> Any:
    """KL(p_k‖q)."""
    return x.kl(x.iterate(k), x.q)


@primitive("iterated_map")
def map_forward_kl(x: IteratedMap, k: int) -> Any:
    """KL(q‖p_k)."""
    return x.kl(x.q, x.iterate(k))


@primitive("iterated_map")
def map_l1(x: IteratedMap, k: int) -> Any:
    """‖p_k - q‖₁."""
    return 2 * tv(x.iterate(k), x.q)


@primitive("iterated_map")
def map_move(x: IteratedMap, j: int, k: int) -> Any:
    """‖p_j - p_k‖₁."""
    return 2 * tv(x.iterate(j), x.iterate(k))


@primitive("iterated_map")
def map_error_l1(x: IteratedMap, k: int) -> Any:
    """‖e_k‖₁."""
    below(k, x.steps, "k")
    return sum((abs(e) for e in x.errors[k]), Fraction(0)) if x.errors else Fraction(0)


# ============================================================================ 9 gradient fields


class GradientField(TeacherStudent):
    """A student with shared parameters θ_k = log w_k: p(a|c) ∝ base(c, a) ∏_k w_k^{F_k(c, a)}, features F
    whole numbers.

    With whole features every probability is rational, and ∇log p(a|c) = F(c, a) - Σ_b p(b|c) F(c, b) as
    well.  Everything that kind ``teacher_student`` offers is offered here too, gradients being with respect
    to θ.
    """

    def __init__(self, data: Any):
        Tree.__init__(self, data, ("teacher", "features", "weights"), ("base", "candidate"))
        self.weights = vector(data["weights"], "instance.weights")
        if not 1 <= len(self.weights) <= 1024 or any(w <= 0 for w in self.weights):
            raise Refused("instance.weights: expected 1 to 1024 positive numbers")
        base = self.table("base") if "base" in data else None
        self.features: dict[Step, list[int]] = {}
        student = []
        for t, level in enumerate(items(data["features"], "instance.features", self.horizon)):
            rows = []
            for i, actions in enumerate(items(level, f"instance.features[{t}]", self.count(t))):
                where = f"instance.features[{t}][{i}]"
                unnormalised = []
                for a, row in enumerate(items(actions, where, self.vocab)):
                    numbers = vector(row, f"{where}[{a}]", len(self.weights))
                    if any(f.denominator != 1 or abs(f) > 64 for f in numbers):
                        raise Refused(f"{where}[{a}]: features are whole numbers from -64 to 64")
                    self.features[t, i, a] = [int(f) for f in numbers]
                    start = base[t][i][a] if base is not None else Fraction(1)
                    if start <= 0:
                        raise Refused(f"instance.base[{t}][{i}][{a}]: expected a positive number")
                    powers = zip(self.weights, self.features[t, i, a], strict=True)
                    unnormalised.append(start * product(w**f for w, f in powers))
                rows.append([u / sum(unnormalised) for u in unnormalised])
            student.append(rows)
        self._prepare(student)

    def score(self, step: Step) -> dict[Any, Fraction]:
        t, i, a = step
        rows = [self.features[t, i, b] for b in range(self.vocab)]
        return {k: rows[a][k] - dot(self.p[t][i], [row[k] for row in rows]) for k in range(len(self.weights))}

    def covariance(self, c: tuple[int, int], j: int, k: int) -> Fraction:
        """Cov_p(F_j, F_k) at a context: -∂²log p/∂θ_j∂θ_k of every action."""
        t, i = c
        first, second = ([self.features[t, i, b][n] for b in range(self.vocab)] for n in (j, k))
        p = self.p[t][i]
        return dot(p, [a * b for a, b in zip(first, second, strict=True)]) - dot(p, first) * dot(p, second)


PRIMITIVES["gradient_field"].update(PRIMITIVES["teacher_student"])


@primitive("gradient_field")
def field_component(x: GradientField, estimator: str, row: int, alpha: Any = None) -> Any:
    """(E ĝ)_row."""
    return x.mean_gradient(estimator, alpha)[below(row, len(x.weights), "row")]


@primitive("gradient_field")
def field_jacobian(x: GradientField, estimator: str, row: int, column: int) -> Any:
    """∂(E ĝ)_row/∂θ_column of ``immediate`` or ``ii``, by differentiating p(y), Â_t and ∇log p."""
    j, k = below(row, len(x.weights), "row"), below(column, len(x.weights), "column")
    if estimator not in ("immediate", "ii"):
        raise Refused(f"argument estimator: expected immediate or ii, got {_short(estimator)}")
    found = []
    for w, values, (_prompt, steps) in zip(x.law_p, x.advantages(estimator, None), x.sequences, strict=True):
        scores = [x.score(step) for step in steps]
        along = sum((s[k] for s in scores), Fraction(0))  # ∂log p(y)/∂θ_k
        for n, (value, (t, i, _a)) in enumerate(zip(values, steps, strict=False)):
            last = n + 1 if estimator == "immediate" else len(steps)
            slope = -sum((s[k] for s in scores[n:last]), Fraction(0))  # ∂Â_t/∂θ_k, since r = log q - log p
            found.append(
                w * (value * (along * scores[n][j] - x.covariance((t, i), j, k)) + slope * scores[n][j])
            )
    return total(found)


# ============================================================================ 10 expressions

KINDS: dict[str, Callable[[Any], Instance]] = {
    "policy_pair": PolicyPair,
    "teacher_student": TeacherStudent,
    "single_state": SingleState,
    "scalar": Scalar,
    "discounted_mdp": DiscountedMDP,
    "iterated_map": IteratedMap,
    "gradient_field": GradientField,
}

Expression = list[Any]

_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "max": maximum,
    "min": minimum,
}
_UNARY: dict[str, Callable[[Interval, int], Interval]] = {
    "neg": lambda a, bits: -a, "abs": lambda a, bits: abs(a), "sqrt": sqrt, "log": log, "exp": exp,
}  # fmt: skip


class Evaluator:
    """Evaluates expressions on one instance at one precision; a primitive used twice is computed once."""

    def __init__(self, instance: Instance, kind: str, bits: int):
        self.instance, self.kind, self.bits = instance, kind, bits
        self.known: dict[str, Interval] = {}
        self.nodes = 0

    def __call__(self, node: Any, depth: int = 0) -> Interval:
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > MAX_DEPTH:
            raise Refused(f"an expression of more than {MAX_NODES} nodes or deeper than {MAX_DEPTH}")
        if not isinstance(node, list) or not node or not isinstance(node[0], str):
            raise Refused(f"expression: expected a list that begins with an operation, got {_short(node)}")
        op, *args = node
        arity = 1 if op in {"const", *_UNARY} else 2
        if op != "prim" and op != "pow" and op not in _BINARY and arity == 2:
            raise Refused(f"expression: unknown operation {_short(op)}")
        if not (len(args) == arity or (op == "prim" and len(args) == 1)):
            raise Refused(f"expression: {op!r} takes {arity} operands, got {len(args)}")
        if op == "const":
            return _as_interval(fraction(args[0], "constant"), self.bits)
        if op == "prim":
            return self.primitive(args[0], args[1] if len(args) == 2 else {})
        if op == "pow":
            n = integer(args[1], "exponent", -MAX_POWER, MAX_POWER)
            base = self(args[0], depth + 1)
            if n < 0 and not base.is_infinite and base.sign == 0:
                raise Refused("a division by zero")
            return base**n
        values = [self(a, depth + 1) for a in args]
        return _UNARY[op](values[0], self.bits) if op in _UNARY else _BINARY[op](*values)

    def argument(self, name: str, value: Any) -> Any:
        """An argument of a primitive: integer, fraction string, word, or named scalar of the instance."""
        where = f"argument {_short(name)}"
        if isinstance(value, dict):
            scalar = fields(value, where, ("scalar",))["scalar"]
            if not isinstance(scalar, str) or scalar not in self.instance.scalars:
                raise Refused(f"{where}: the instance has no scalar {_short(scalar)}")
            return self.instance.scalars[scalar]
        if isinstance(value, str) and _WORD.fullmatch(value):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return integer(value, where, -(10**6), 10**6)
        return fraction(value, where)

    def primitive(self, name: Any, arguments: Any) -> Interval:
        if not isinstance(name, str):
            raise Refused(f"expression: {_short(name)} is not the name of a quantity")
        if not isinstance(arguments, dict):
            raise Refused(f"arguments of {_short(name)}: expected an object, got {_short(arguments)}")
        key = json.dumps([name, arguments], sort_keys=True)
        if key in self.known:
            return self.known[key]
        function = PRIMITIVES[self.kind].get(name)
        if function is None:
            if name not in self.instance.scalars:
                raise Refused(f"expression: kind {self.kind!r} has no quantity {_short(name)}")
            if arguments:
                raise Refused(f"expression: the scalar {name!r} takes no arguments")
            value: Any = self.instance.scalars[name]
        else:
            if name in self.instance.scalars:
                raise Refused(f"expression: {name!r} names both a quantity and a scalar of the instance")
            expected = list(inspect.signature(function).parameters.values())[1:]
            required = [p.name for p in expected if p.default is inspect.Parameter.empty]
            optional = [p.name for p in expected if p.default is not inspect.Parameter.empty]
            given = fields(arguments, f"arguments of {name}", required, optional)
            value = function(self.instance, **{k: self.argument(k, v) for k, v in given.items()})
        self.known[key] = _as_interval(value, self.bits)
        return self.known[key]


def load_instance(kind: Any, data: Any) -> Instance:
    """Parse and validate an instance; raises ``Refused``."""
    if not isinstance(kind, str) or kind not in KINDS:
        raise Refused(f"kind: {_short(kind)} is none of {', '.join(KINDS)}")
    return KINDS[kind](data)


def evaluate(expression: Expression, instance: Any, kind: str, bits: int = PRECISIONS[0]) -> tuple[Any, Any]:
    """Lower and upper bound (fractions, or both the same float infinity) of an expression on an instance.

    ``instance`` is the JSON object of a certificate or the result of ``load_instance``.

    >>> evaluate(["log", ["const", "1"]], {"t": "1"}, "scalar")
    (Fraction(0, 1), Fraction(0, 1))
    """
    loaded = instance if isinstance(instance, Instance) else load_instance(kind, instance)
    loaded.bits = bits
    value = Evaluator(loaded, kind, bits)(expression)
    return value.lo, value.hi


def _narrow(lo: Any, hi: Any) -> bool:
    if isinstance(lo, float) or lo == hi:
        return True
    return hi - lo <= max(ABSOLUTE_WIDTH, RELATIVE_WIDTH * max(abs(lo), abs(hi)))


def _decimal(x: Fraction, digits: int, up: bool) -> Fraction:
    """``x`` rounded outwards to about ``digits`` significant decimals."""
    if x == 0:
        return x
    magnitude = (x.numerator.bit_length() - x.denominator.bit_length()) * 30103 // 100000
    scale = Fraction(10) ** (digits - magnitude)
    scaled = x * scale
    return Fraction(math.ceil(scaled) if up else math.floor(scaled)) / scale


def enclose(
    expression: Expression, instance: Any, kind: str, scale: Any = 1, digits: int = 18
) -> tuple[str, str]:
    """Readable enclosure of scale·expression as two strings, narrow enough for a certificate.

    Exact values of moderate length are given exactly, others as decimals with ``digits`` digits, rounded
    outwards. Raises ``Refused`` if the highest precision does not reach that.
    """
    loaded = instance if isinstance(instance, Instance) else load_instance(kind, instance)
    for bits in PRECISIONS:
        loaded.bits = bits
        try:
            value = Evaluator(loaded, kind, bits)(expression) * Fraction(scale)
        except Undecided:
            continue
        if value.is_infinite:
            return ("inf", "inf") if value.lo > 0 else ("-inf", "-inf")
        if value.is_exact and value.lo.numerator.bit_length() + value.lo.denominator.bit_length() <= 300:
            return str(value.lo), str(value.hi)
        if max(abs(value.lo), abs(value.hi)) <= ABSOLUTE_WIDTH / 2 and value.lo <= 0 <= value.hi:
            return str(-ABSOLUTE_WIDTH / 2), str(ABSOLUTE_WIDTH / 2)
        lo, hi = _decimal(value.lo, digits, up=False), _decimal(value.hi, digits, up=True)
        if value.hi - value.lo <= Fraction(1, 10**digits) * max(abs(lo), abs(hi)):
            return str(lo), str(hi)
    raise Refused("an expression that the highest precision does not enclose narrowly enough")


# ============================================================================ 11 certificates

FIELDS = (
    "schema_version", "claim", "source", "scale", "kind", "instance", "given", "lhs", "relation", "rhs",
    "lhs_enclosure", "rhs_enclosure", "sentence", "sha256",
)  # fmt: skip
RELATIONS = ("<=", "<", ">=", ">", "==")
_CLAIM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+~@-]{0,199}")


@dataclass(frozen=True)
class Verdict:
    """``confirmed`` or not, why, and this file's own enclosures of lhs and scale·rhs if it got that far."""

    confirmed: bool
    reason: str
    claim: str | None = None
    lhs: tuple[Any, Any] | None = None
    rhs: tuple[Any, Any] | None = None

    def __bool__(self) -> bool:
        return self.confirmed


def digest(certificate: dict[str, Any]) -> str:
    """SHA-256 of the certificate without its ``sha256`` entry, as canonical JSON."""
    content = {key: value for key, value in certificate.items() if key != "sha256"}
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _holds(a: tuple[Any, Any], relation: str, b: tuple[Any, Any]) -> bool | None:
    """Whether a relation b: certainly (True), certainly not (False), or undecided (None)."""
    if relation in (">=", ">"):
        return _holds(b, "<=" if relation == ">=" else "<", a)
    if relation == "==":
        if a[0] == a[1] == b[0] == b[1]:
            return True
        return False if a[1] < b[0] or b[1] < a[0] else None
    if relation == "<=":
        return True if a[1] <= b[0] else False if a[0] > b[1] else None
    return True if a[1] < b[0] else False if a[0] >= b[1] else None


def _recorded(value: Any, where: str) -> tuple[Any, Any]:
    ends = items(value, where, 2)
    if ends in (["inf", "inf"], ["-inf", "-inf"]):
        return (INF, INF) if ends[0] == "inf" else (-INF, -INF)
    lo, hi = vector(ends, where, 2)
    if lo > hi:
        raise Refused(f"{where}: the ends are in the wrong order")
    if not _narrow(lo, hi):
        raise Refused(f"{where}: wider than {RELATIVE_WIDTH} of its magnitude")
    return lo, hi


def _text(value: Any, where: str, limit: int) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > limit:
        raise Refused(f"{where}: expected a text of at most {limit} characters, got {_short(value)}")
    return value


def _decide(question: Callable[[int], bool | None], what: str) -> bool:
    """Raise the precision until ``question`` is answered; ``Refused`` at the cap."""
    reason = "the enclosures overlap"
    for bits in PRECISIONS:
        try:
            answer = question(bits)
        except Undecided as undecided:
            reason = str(undecided)
            continue
        if answer is not None:
            return answer
    raise Refused(f"{what}: undecided at {PRECISIONS[-1]} bits ({reason})")


def _verify(c: dict[str, Any]) -> Verdict:
    fields(c, "certificate", FIELDS)
    if (
        isinstance(c["schema_version"], bool)
        or c["schema_version"] != SCHEMA_VERSION
        or not isinstance(c["schema_version"], int)
    ):
        raise Refused(f"schema_version: {_short(c['schema_version'])} is not {SCHEMA_VERSION}")
    claim = c["claim"]
    if not isinstance(claim, str) or not _CLAIM.fullmatch(claim):
        raise Refused(f"claim: {_short(claim)} is not a claim id")
    _text(c["source"], "source", 500)
    _text(c["sentence"], "sentence", 5000)
    if not isinstance(c["sha256"], str) or c["sha256"] != digest(c):
        raise Refused("sha256: the content is not what was sealed")
    scale = fraction(c["scale"], "scale")
    relation = c["relation"]
    if relation not in RELATIONS:
        raise Refused(f"relation: {_short(relation)} is none of {', '.join(RELATIONS)}")
    if scale <= 0 or (relation == "==" and scale != 1):
        raise Refused(f"scale: {scale} (expected positive, and 1 for an equality)")
    lhs_recorded, rhs_recorded = (
        _recorded(c["lhs_enclosure"], "lhs_enclosure"),
        _recorded(c["rhs_enclosure"], "rhs_enclosure"),
    )
    instance = load_instance(c["kind"], c["instance"])
    evaluators: dict[int, Evaluator] = {}

    def value(expression: Any, bits: int, factor: Fraction = Fraction(1)) -> tuple[Any, Any]:
        instance.bits = bits
        evaluator = evaluators.setdefault(bits, Evaluator(instance, c["kind"], bits))
        evaluator.nodes = 0
        result = evaluator(expression) * factor
        return result.lo, result.hi

    for number, condition in enumerate(items(c["given"], "given")):
        where = f"given[{number}]"
        fields(condition, where, ("lhs", "relation", "rhs"))
        if condition["relation"] not in RELATIONS:
            raise Refused(
                f"{where}: relation {_short(condition['relation'])} is none of {', '.join(RELATIONS)}"
            )

        def holds(bits: int, g: dict[str, Any] = condition) -> bool | None:
            return _holds(value(g["lhs"], bits), g["relation"], value(g["rhs"], bits))

        if not _decide(holds, where):
            raise Refused(f"{where}: the hypothesis does not hold on the instance")

    if _decide(
        lambda bits: _holds(value(c["lhs"], bits), relation, value(c["rhs"], bits, scale)), "relation"
    ):
        raise Refused("relation: it holds on the instance; nothing is refuted")
    if not _primitives(c["lhs"]) | _primitives(c["rhs"]):
        raise Refused("relation: neither side says anything about the instance")
    own = {}
    for side, recorded, factor in (("lhs", lhs_recorded, Fraction(1)), ("rhs", rhs_recorded, scale)):

        def inside(
            bits: int, side: str = side, recorded: Any = recorded, factor: Fraction = factor
        ) -> bool | None:
            lo, hi = own[side] = value(c[side], bits, factor)
            return (
                True
                if recorded[0] <= lo and hi <= recorded[1]
                else False
                if hi < recorded[0] or lo > recorded[1]
                else None
            )

        if not _decide(inside, f"{side}_enclosure"):
            raise Refused(f"{side}_enclosure: it does not contain the value")
    if _holds(lhs_recorded, relation, rhs_recorded) is not False:
        raise Refused("the recorded enclosures do not show the violation")
    right = formula(c["rhs"]) if scale == 1 else f"{scale}·({formula(c['rhs'])})"
    reason = f"{formula(c['lhs'])} {relation} {right} fails: {_show(own['lhs'])} against {_show(own['rhs'])}"
    if c["given"]:
        conditions = (f"{formula(g['lhs'])} {g['relation']} {formula(g['rhs'])}" for g in c["given"])
        reason += f", although {' and '.join(conditions)}"
    return Verdict(True, reason, claim, own["lhs"], own["rhs"])


_SIGNS = {
    "add": (" + ", ()),
    "sub": (" - ", ("add", "sub", "neg")),
    "neg": ("-", ("add", "sub", "neg")),
    "mul": ("·", ("add", "sub", "neg")),
    "div": ("/", ("add", "sub", "neg", "mul", "div")),
    "pow": ("^", ("add", "sub", "neg", "mul", "div", "pow")),
}
"""How an operation is written, and which operands it puts in brackets."""


def formula(node: Expression) -> str:
    """An expression, already understood, as a line of text.

    >>> formula(["mul", ["add", ["const", "1"], ["prim", "g_step", {"t": 0}]], ["sqrt", ["prim", "kl_seq"]]])
    '(1 + g_step(t=0))·sqrt(kl_seq)'
    """
    op, *args = node
    if op == "const":
        return str(args[0])
    if op == "prim":
        named = args[1].items() if len(args) > 1 else ()
        inner = ", ".join(f"{k}={v['scalar'] if isinstance(v, dict) else v}" for k, v in named)
        return f"{args[0]}({inner})" if inner else str(args[0])
    if op in _SIGNS:
        sign, inside = _SIGNS[op]
        texts = [formula(a) if isinstance(a, list) else str(a) for a in args]
        bare = ("add", "sub") if op == "sub" else ("mul", "div") if op == "div" else ()
        for k, a in enumerate(args):
            long = isinstance(a, list) and (a[0] in inside or (a[0] == "const" and texts[k][0] == "-"))
            if long and not (k == 0 and a[0] in bare):
                texts[k] = f"({texts[k]})"
        return sign + texts[0] if op == "neg" else sign.join(texts)
    return f"{op}({', '.join(formula(a) for a in args)})"


def _primitives(node: Expression) -> set[str]:
    """Names of the quantities in an expression, already understood."""
    if node[0] == "prim":
        return {node[1]}
    return set().union(*(_primitives(a) for a in node[1:] if isinstance(a, list)))


def _show(ends: tuple[Any, Any]) -> str:
    if isinstance(ends[0], float):
        return str(ends[0])
    if ends[0] < 0 < ends[1] and _narrow(*ends):
        return f"0 within {float(max(-ends[0], ends[1])):.1g}"
    middle = (ends[0] + ends[1]) / 2
    if ends[0] == ends[1] and len(str(middle)) <= 20:
        return str(middle)
    try:
        return f"{float(middle):.12g}"
    except OverflowError:
        return "a very large number"


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise Refused(f"JSON: the key {_short(key)} appears twice")
        found[key] = value
    return found


def _no_float(text: str) -> Any:
    raise Refused(f"JSON: {_short(text)} is not allowed; numbers are integers or fraction strings")


def _short_int(text: str) -> int:
    if len(text) > 20:
        raise Refused("JSON: an integer of more than 20 digits")
    return int(text)


def parse(text: str) -> Any:
    """JSON without floats, NaN, infinities and duplicate keys."""
    try:
        return json.loads(
            text,
            object_pairs_hook=_no_duplicates,
            parse_float=_no_float,
            parse_constant=_no_float,
            parse_int=_short_int,
        )
    except RecursionError:
        raise Refused("JSON: nested too deeply") from None
    except json.JSONDecodeError as error:
        raise BadInput(f"not JSON: {error}") from None


def check(certificate: Any) -> Verdict:
    """Verdict on a certificate, given as a path or as a dictionary; never raises on a bad certificate in a
    dictionary.

    Raises ``BadInput`` if a file cannot be read or is not JSON.
    """
    try:
        if not isinstance(certificate, dict):
            if not isinstance(certificate, str | os.PathLike):
                raise Refused("certificate: expected a path or a dictionary")
            try:
                with open(certificate, "rb") as file:
                    raw = file.read(MAX_BYTES + 1)
            except OSError as error:
                raise BadInput(f"cannot be read: {error.strerror}") from None
            if len(raw) > MAX_BYTES:
                raise Refused(f"larger than {MAX_BYTES} bytes")
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError:
                raise BadInput("not UTF-8 text") from None
            certificate = parse(text)
            if not isinstance(certificate, dict):
                raise Refused("certificate: expected an object")
        else:
            certificate = parse(json.dumps(certificate))
        return _verify(certificate)
    except Refused as refusal:
        return Verdict(False, str(refusal))
    except Undecided as undecided:
        return Verdict(False, f"undecided: {undecided}")
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        RuntimeError,
        MemoryError,
    ) as error:
        return Verdict(False, f"not understood ({type(error).__name__}: {error})")


def seal(certificate: dict[str, Any]) -> dict[str, Any]:
    """Fill in the enclosures and the digest of a certificate that has all other entries; raises ``Refused``.

    Sealing does not check: pass the result to ``check``.
    """
    result = {
        key: value
        for key, value in certificate.items()
        if key not in ("lhs_enclosure", "rhs_enclosure", "sha256")
    }
    instance = load_instance(result["kind"], result["instance"])
    for digits in (18, 36, 72, 144):
        lhs = enclose(result["lhs"], instance, result["kind"], 1, digits)
        rhs = enclose(result["rhs"], instance, result["kind"], fraction(result["scale"], "scale"), digits)
        result["lhs_enclosure"], result["rhs_enclosure"] = list(lhs), list(rhs)
        ends = (
            _recorded(result["lhs_enclosure"], "lhs_enclosure"),
            _recorded(result["rhs_enclosure"], "rhs_enclosure"),
        )
        if _holds(ends[0], result["relation"], ends[1]) is not None:
            break
    result["sha256"] = digest(result)
    return {key: result[key] for key in FIELDS if key in result}


# ============================================================================ 12 command line


def main(paths: Sequence[str]) -> int:
    """Check each file, print one line each; 0 all confirmed, 1 a refusal, 2 unreadable input or none."""
    if not paths:
        print("usage: checker.py CERTIFICATE.json ...", file=sys.stderr)
        return 2
    status = 0
    for path in paths:
        try:
            verdict = check(path)
        except BadInput as error:
            print(f"{path}: {error}", file=sys.stderr)
            status = 2
            continue
        word = f"confirmed: {verdict.claim}" if verdict else "refused"
        print(f"{path}: {word}: {verdict.reason}")
        if not verdict and status == 0:
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
