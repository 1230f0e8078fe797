"""The checker's intervals and its own logarithm, exponential and square root."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import flint
import pytest

from opdtheory import checker
from opdtheory.elementary import to_ball
from tests.certificate_examples import ball_ends


def random_positive(rng: random.Random) -> Fraction:
    if rng.random() < 0.3:
        return 1 + Fraction(rng.choice((-1, 1)), rng.randint(2, 10 ** rng.randint(1, 40)))
    return Fraction(rng.randint(1, 10 ** rng.randint(1, 40)), rng.randint(1, 10 ** rng.randint(1, 40)))


@pytest.mark.parametrize("name", ["log", "exp", "sqrt"])
@pytest.mark.parametrize("bits", checker.PRECISIONS[:3])
def test_elementary_enclosures_contain_the_value_and_are_narrow(name: str, bits: int) -> None:
    rng = random.Random(bits)
    for _ in range(150):
        x = random_positive(rng)
        if name == "exp":
            x = rng.choice((-1, 1)) * min(x, Fraction(rng.randint(1, 5000), rng.randint(1, 50)))
        own = getattr(checker, name)(x, bits)
        with flint.ctx.workprec(4 * bits + 300):
            lo, hi = ball_ends(getattr(to_ball(x), name)())
        assert (own.lo <= lo and hi <= own.hi) or own.lo == own.hi == lo, (name, x)
        assert own.hi - own.lo <= abs(own.hi) * Fraction(1, 2 ** (bits - 8)), (name, x)


def test_elementary_functions_of_intervals_and_at_the_ends() -> None:
    wide = checker.Interval(Fraction(1, 3), Fraction(5, 2), 96)
    for name in ("log", "exp", "sqrt"):
        image, function = getattr(checker, name)(wide, 96), getattr(checker, name)
        for x in (Fraction(1, 3), Fraction(1), Fraction(5, 2)):
            assert image.lo <= function(x, 96).lo and function(x, 96).hi <= image.hi
    assert checker.log(Fraction(0), 96).lo == -math.inf
    assert checker.exp(checker.log(Fraction(0), 96), 96).lo == 0
    assert checker.sqrt(Fraction(9, 49), 96).lo == checker.sqrt(Fraction(9, 49), 96).hi == Fraction(3, 7)
    for name in ("log", "sqrt"):
        with pytest.raises(checker.Refused, match="negative"):
            getattr(checker, name)(Fraction(-1), 96)
    straddling = checker.Interval(Fraction(-1), Fraction(1), 96)
    for name in ("log", "sqrt"):
        with pytest.raises(checker.Undecided):
            getattr(checker, name)(straddling, 96)


def test_interval_operations_contain_the_results_of_all_members() -> None:
    rng = random.Random(4)

    def member(interval: checker.Interval) -> Fraction:
        return interval.lo + (interval.hi - interval.lo) * Fraction(rng.randint(0, 8), 8)

    def interval() -> checker.Interval:
        ends = sorted(Fraction(rng.randint(-30, 30), rng.randint(1, 9)) for _ in range(2))
        return checker.Interval(*ends, 24)  # few bits, so that outward rounding happens

    for _ in range(2000):
        a, b = interval(), interval()
        x, y = member(a), member(b)
        n = rng.randint(0, 5)
        results = [(a + b, x + y), (a - b, x - y), (a * b, x * y), (abs(a), abs(x)), (-a, -x), (a**n, x**n)]
        results += [(checker.maximum(a, b), max(x, y)), (checker.minimum(a, b), min(x, y))]
        if b.lo > 0 or b.hi < 0:
            results += [(a / b, x / y), (b**-n, y**-n), (1 / b, 1 / y)]
        for got, expected in results:
            assert got.lo <= expected <= got.hi


def test_infinities_have_rules_and_undefined_combinations_are_refused() -> None:
    inf = checker.Interval(math.inf, math.inf, 96)
    one, zero = checker.Interval(Fraction(1), Fraction(1), 96), checker.Interval(Fraction(0), Fraction(0), 96)
    assert (inf + one).lo == math.inf and (one - inf).hi == -math.inf
    assert (inf * -one).lo == -math.inf and (one / inf).lo == (one / inf).hi == 0
    assert checker.sqrt(inf, 96).lo == math.inf and checker.exp(-inf, 96).hi == 0
    for undefined in (
        lambda: inf - inf,
        lambda: inf * zero,
        lambda: inf / inf,
        lambda: one / zero,
        lambda: zero / zero,
    ):
        with pytest.raises(checker.Refused):
            undefined()
    around = checker.Interval(Fraction(-1), Fraction(1), 96)
    for undecided in (lambda: one / around, lambda: inf * around):
        with pytest.raises(checker.Undecided):
            undecided()


def test_rounding_is_outward_and_short() -> None:
    rng = random.Random(2)
    for _ in range(500):
        x = rng.choice((-1, 1)) * random_positive(rng)
        down, up = checker._down(x, 20), checker._up(x, 20)
        assert down <= x <= up
        assert up - down <= abs(x) * Fraction(1, 2**18)
        for end in (down, up):
            odd = abs(end.numerator)
            while odd % 2 == 0:
                odd //= 2
            assert odd.bit_length() <= 21
            assert end.denominator & (end.denominator - 1) == 0
