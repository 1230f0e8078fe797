"""Bias, variance, cosine and mean squared error of sampled gradient estimators, with jackknife intervals.

An estimator is a matrix (N, k): one independent gradient sample a row. Squared lengths of means are estimated
without bias by leaving out the diagonal of the Gram matrix, so a bias of zero is not reported as positive
noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """An estimate with its jackknife standard error."""

    value: float
    error: float

    def to_dict(self, z: float = 1.96) -> dict[str, float | list[float]]:
        """Value and the interval of ±z standard errors."""
        return {"value": self.value, "interval": [self.value - z * self.error, self.value + z * self.error]}


def cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """E[a]·E[b] without bias: all rows first, then each of the N leave-one-out values.

    >>> x = np.array([[1.0], [3.0]]); cross(np.vstack([x, x]), np.vstack([x, x]))[0].round(4)
    np.float64(3.6667)
    """
    n = len(a)
    if n < 3:
        raise ValueError(f"{n} samples: expected at least 3")
    total_a, total_b = a.sum(0), b.sum(0)
    own = (a * b).sum(1)
    pairs = total_a @ total_b - own.sum()
    without = pairs - (a @ total_b) - (b @ total_a) + 2 * own
    return np.concatenate([[pairs / (n * (n - 1))], without / ((n - 1) * (n - 2))])


def spread(a: np.ndarray) -> np.ndarray:
    """Trace of the covariance of one sample, then its leave-one-out values."""
    own = (a * a).sum(1)
    n = len(a)
    second = np.concatenate([[own.mean()], (own.sum() - own) / (n - 1)])
    return second - cross(a, a)


def jackknife(values: np.ndarray) -> Interval:
    """The estimate ``values[0]`` with the standard error that its leave-one-out values imply."""
    left = values[1:]
    n = len(left)
    return Interval(float(values[0]), float(np.sqrt((n - 1) / n * ((left - left.mean()) ** 2).sum())))


@dataclass(frozen=True)
class Comparison:
    """An estimator against a reference: squared bias, variance and squared mean of one sample, cosine of the
    two means (None where one of them cannot be told from zero), mean squared error for each number of
    samples.
    """

    bias2: Interval
    variance: Interval
    mean2: Interval
    cosine: Interval | None
    mse: dict[int, Interval]


def compare_estimators(estimator: np.ndarray, reference: np.ndarray, sizes: Sequence[int]) -> Comparison:
    """Compare two estimators (N, k) computed from the same rollouts row by row, so that the bias is estimated
    from paired differences.
    """
    difference = estimator - reference
    bias2, variance = cross(difference, difference), spread(estimator)
    lengths = cross(estimator, estimator), cross(reference, reference)
    inner = cross(estimator, reference)
    seen = bool((lengths[0] > 0).all() and (lengths[1] > 0).all())
    return Comparison(
        bias2=jackknife(bias2),
        variance=jackknife(variance),
        mean2=jackknife(lengths[0]),
        cosine=jackknife(inner / np.sqrt(lengths[0] * lengths[1])) if seen else None,
        mse={n: jackknife(bias2 + variance / n) for n in sizes},
    )


def crossover(bias2: float, variance: float, reference_variance: float) -> float:
    """The sample size up to which the biased estimator has the smaller MSE; inf without bias, 0 without any
    gain.
    """
    gain = reference_variance - variance
    if gain <= 0:
        return 0.0
    return gain / bias2 if bias2 > 0 else float("inf")
