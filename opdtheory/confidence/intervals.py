"""Finite-sample confidence bounds on a mean.

Samples are independent values in a known range; values that share a prompt are not independent and are
averaged first (:func:`group_means`).  All methods are valid at any finite sample size fixed beforehand.
The betting bound with unplanned bets is moreover valid at all sample sizes at once, so one may look after
every batch and stop at will.

Sources: Hoeffding 1963; Maurer & Pontil, Empirical Bernstein bounds and sample-variance penalization (2009),
Theorem 4; Waudby-Smith & Ramdas, Estimating means of bounded random variables by betting (2024), Section 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

Side = Literal["lower", "upper", "two-sided"]
SIDES = ("lower", "upper", "two-sided")


@dataclass(frozen=True)
class Interval:
    """A confidence interval for a mean; the side not asked for is the end of the known range."""

    lower: Any
    upper: Any
    mean: Any
    method: str
    confidence: float
    samples: int
    anytime: bool

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain numbers."""
        return {
            k: v.tolist() if isinstance(v, (np.ndarray, np.generic)) else v for k, v in asdict(self).items()
        }


def _unit(
    x: Any, bounds: tuple[float, float], confidence: float, side: str
) -> tuple[np.ndarray, float, float]:
    """Samples mapped to [0, 1], and the range."""
    lo, hi = (float(b) for b in bounds)
    if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
        raise ValueError(f"bounds: got {bounds!r}, expected two finite numbers, the smaller first")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: got {confidence!r}, expected a number strictly between 0 and 1")
    if side not in SIDES:
        raise ValueError(f"side: got {side!r}, expected one of {', '.join(SIDES)}")
    x = np.asarray(x, dtype=float)
    if x.ndim == 0 or x.shape[-1] < 2:
        raise ValueError(f"x: got shape {x.shape}, expected at least 2 samples on the last axis")
    room = 1e-9 * max(1.0, abs(lo), abs(hi))
    outside = ~((x >= lo - room) & (x <= hi + room))
    if outside.any():
        raise ValueError(f"x: got {x[outside].flat[0]!r}, expected values in [{lo:g}, {hi:g}]")
    return np.clip((x - lo) / (hi - lo), 0.0, 1.0), lo, hi


def _interval(
    radius_or_lower: Callable[[np.ndarray, float], np.ndarray],
    name: str,
    anytime: bool,
    x: Any,
    bounds: tuple[float, float],
    confidence: float,
    side: str,
) -> Interval:
    """Apply a one-sided lower bound (samples in [0, 1], error probability) to the sides asked for."""
    u, lo, hi = _unit(x, bounds, confidence, side)
    delta = (1 - confidence) / (2 if side == "two-sided" else 1)
    low = np.maximum(radius_or_lower(u, delta), 0.0) if side != "upper" else np.zeros(u.shape[:-1])
    high = np.minimum(1 - radius_or_lower(1 - u, delta), 1.0) if side != "lower" else np.ones(u.shape[:-1])
    scale = hi - lo
    return Interval(
        (lo + scale * low)[()],
        (lo + scale * high)[()],
        (lo + scale * u.mean(axis=-1))[()],
        name,
        confidence,
        u.shape[-1],
        anytime,
    )


def hoeffding(
    x: Any, confidence: float = 0.95, bounds: tuple[float, float] = (0.0, 1.0), side: Side = "two-sided"
) -> Interval:
    """Hoeffding's bound: mean ∓ (hi − lo)√(log(1/δ)/(2n)); samples on the last axis.

    >>> interval = hoeffding([0.0, 1.0] * 300, side="lower")
    >>> round(float(interval.lower), 3)
    0.45
    """

    def lower(u: np.ndarray, delta: float) -> np.ndarray:
        return u.mean(axis=-1) - math.sqrt(-math.log(delta) / (2 * u.shape[-1]))

    return _interval(lower, "hoeffding", False, x, bounds, confidence, side)


def empirical_bernstein(
    x: Any, confidence: float = 0.95, bounds: tuple[float, float] = (0.0, 1.0), side: Side = "two-sided"
) -> Interval:
    """Maurer and Pontil's bound: mean ∓ (√(2V log(2/δ)/n) + 7 log(2/δ)/(3(n−1))·(hi − lo)), V the
    sample variance.
    """

    def lower(u: np.ndarray, delta: float) -> np.ndarray:
        n, log_term = u.shape[-1], math.log(2 / delta)
        variance = u.var(axis=-1, ddof=1)
        return u.mean(axis=-1) - np.sqrt(2 * variance * log_term / n) - 7 * log_term / (3 * (n - 1))

    return _interval(lower, "empirical_bernstein", False, x, bounds, confidence, side)


_TRUNCATION = 0.75
"""Share of the largest safe bet that may be placed; below 1 so that capital never reaches zero."""
_BISECTIONS = 32


def _bets(u: np.ndarray, delta: float, horizon: int | None) -> np.ndarray:
    """Bet sizes λ_t before truncation, from the samples before t only (predictable plug-in).

    With a planned sample size λ_t = √(2 log(1/δ)/(n σ̂²_{t−1})), without one t·log(1+t) takes the place of n.
    """
    n = u.shape[-1]
    t = np.arange(1, n + 1)
    means = (0.5 + np.cumsum(u, axis=-1)) / (t + 1)
    variances = (0.25 + np.cumsum((u - means) ** 2, axis=-1)) / (t + 1)
    previous = np.concatenate([np.full((*u.shape[:-1], 1), 0.25), variances[..., :-1]], axis=-1)
    rate = t * np.log1p(t) if horizon is None else horizon
    return np.sqrt(-2 * math.log(delta) / (rate * previous))


def _capital_peak(u: np.ndarray, bets: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Largest log capital so far of a bettor who claims that the mean exceeds ``mean``."""
    m = mean[..., None]
    with np.errstate(divide="ignore"):
        stake = np.minimum(bets, _TRUNCATION / m)
    return np.cumsum(np.log1p(stake * (u - m)), axis=-1).max(axis=-1)


def betting(
    x: Any,
    confidence: float = 0.95,
    bounds: tuple[float, float] = (0.0, 1.0),
    side: Side = "two-sided",
    planned: bool = True,
) -> Interval:
    """The hedged-capital betting bound.

    The lower end is the smallest mean not refuted by a bettor whose capital has never reached 1/δ; two-sided
    intervals split δ between two bettors.  ``planned`` tunes the bets to the present sample size, which must
    then have been fixed beforehand; without it they are spread over all sample sizes, and the bounds after
    every one of them hold at once (``anytime``).  The order of the samples matters and must not depend on
    their values.
    """

    def lower(u: np.ndarray, delta: float) -> np.ndarray:
        bets = _bets(u, delta, u.shape[-1] if planned else None)
        low, high = np.zeros(u.shape[:-1]), np.ones(u.shape[:-1])
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            # capital falls as the claimed mean rises, so the refuted means are an interval from 0
            refuted = _capital_peak(u, bets, middle) >= -math.log(delta)
            low, high = np.where(refuted, middle, low), np.where(refuted, high, middle)
        return low

    return _interval(lower, "betting", not planned, x, bounds, confidence, side)


METHODS: dict[str, Callable[..., Interval]] = {
    "hoeffding": hoeffding,
    "empirical_bernstein": empirical_bernstein,
    "betting": betting,
}
"""Interval functions by name."""


def interval(x: Any, method: str = "betting", **options: Any) -> Interval:
    """A confidence interval by the named method; options as for the methods themselves."""
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}, expected one of {', '.join(METHODS)}")
    return METHODS[method](x, **options)


def betting_sequence(
    x: Any, confidence: float = 0.95, bounds: tuple[float, float] = (0.0, 1.0), grid: int = 1000
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends after each sample of one stream: with the stated confidence all of them hold
    at once.

    Means are resolved on a grid of ``grid`` cells and the ends rounded outwards.
    """
    u, lo, hi = _unit(x, bounds, confidence, "two-sided")
    if u.ndim != 1:
        raise ValueError(f"x: got shape {u.shape}, expected one stream of samples")
    limit = math.log(2 / (1 - confidence))
    means = np.arange(1, grid) / grid

    def ends(v: np.ndarray) -> np.ndarray:
        bets = _bets(v, (1 - confidence) / 2, None)
        stake = np.minimum(bets[None, :], _TRUNCATION / means[:, None])
        capital = np.maximum.accumulate(
            np.cumsum(np.log1p(stake * (v[None, :] - means[:, None])), axis=1), axis=1
        )
        return (capital >= limit).sum(axis=0) / grid

    return lo + (hi - lo) * ends(u), hi - (hi - lo) * ends(1 - u)


def group_means(values: Any, groups: Any) -> np.ndarray:
    """Mean of the values of each group, groups in order of first appearance.

    Responses to one prompt are dependent given the data; means of different prompts are independent if
    the prompts were drawn independently, and their expectation is that of a fresh prompt.

    >>> group_means([1.0, 0.0, 1.0], ["a", "a", "b"])
    array([0.5, 1. ])
    """
    values, groups = np.asarray(values, dtype=float), np.asarray(groups)
    if values.ndim != 1 or values.shape != groups.shape:
        raise ValueError(
            f"groups: got shape {groups.shape}, expected one label for each of {values.shape} values"
        )
    labels, first, index = np.unique(groups, return_index=True, return_inverse=True)
    means = np.bincount(index, weights=values, minlength=len(labels)) / np.bincount(
        index, minlength=len(labels)
    )
    return means[np.argsort(first, kind="stable")]
