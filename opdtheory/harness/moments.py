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


def block_means(samples: np.ndarray, block: np.ndarray) -> np.ndarray:
    """The mean of the rows of each block (M, k): blocks are the independent samples."""
    _, inverse, counts = np.unique(block, return_inverse=True, return_counts=True)
    totals = np.zeros((len(counts), samples.shape[1]))
    np.add.at(totals, inverse, samples)
    return totals / counts[:, None]


def second_moment(samples: np.ndarray, block: np.ndarray) -> np.ndarray:
    """E‖x‖² of one row, then without each block in turn."""
    _, inverse = np.unique(block, return_inverse=True)
    own = np.bincount(inverse, (samples * samples).sum(1))
    counts = np.bincount(inverse)
    left = (own.sum() - own) / (counts.sum() - counts)
    return np.concatenate([[own.sum() / counts.sum()], left])


def jackknife(values: np.ndarray) -> Interval:
    """The estimate ``values[0]`` with the standard error that its leave-one-out values imply."""
    left = values[1:]
    n = len(left)
    return Interval(float(values[0]), float(np.sqrt((n - 1) / n * ((left - left.mean()) ** 2).sum())))


@dataclass(frozen=True)
class Comparison:
    """An estimator against the reference: squared bias, variance and squared mean of one sample, cosine of
    the two means (None where one of them cannot be told from zero), mean squared error for each number of
    samples.
    """

    bias2: Interval
    variance: Interval
    mean2: Interval
    cosine: Interval | None
    mse: dict[int, Interval]


def compare_estimators(
    samples: np.ndarray,
    quiet: np.ndarray,
    reference: np.ndarray,
    block: np.ndarray,
    sizes: Sequence[int],
    *,
    unbiased: bool = False,
) -> Comparison:
    """What is known of an estimator (N, k) from ``quiet`` samples of its mean and of the reference's mean,
    row by row from the same rollouts, so that the bias is estimated from paired differences.

    ``block`` (N,) labels the independent samples. The bias of an ``unbiased`` estimator is zero, not
    estimated.
    """
    mine, theirs = block_means(quiet, block), block_means(reference, block)
    bias2, mean2 = cross(mine - theirs, mine - theirs), cross(mine, mine)
    if unbiased:
        bias2 = np.zeros_like(bias2)
    variance = second_moment(samples, block) - mean2
    norms2 = mean2 * cross(theirs, theirs)
    seen = bool((mean2 > 0).all() and (norms2 > 0).all())
    return Comparison(
        bias2=jackknife(bias2),
        variance=jackknife(variance),
        mean2=jackknife(mean2),
        cosine=jackknife(cross(mine, theirs) / np.sqrt(norms2)) if seen else None,
        mse={n: jackknife(bias2 + variance / n) for n in sizes},
    )


def crossover(
    samples: np.ndarray,
    reference: np.ndarray,
    difference: np.ndarray,
    block: np.ndarray,
    *,
    unbiased: bool = False,
) -> Interval | None:
    """The sample size up to which an estimator (N, k) has a smaller MSE than the unbiased ``reference``, from
    quiet samples of the difference of their means.

    0 without any gain in variance, inf for an unbiased estimator with one, None where the squared bias cannot
    be told from zero.
    """
    gain = second_moment(reference, block) - second_moment(samples, block)
    paired = block_means(difference, block)
    bias2 = cross(paired, paired)
    if gain[0] <= 0:
        return Interval(0.0, 0.0)
    if unbiased:
        return Interval(float("inf"), 0.0)
    interval = jackknife(bias2)
    return jackknife(gain / bias2) if interval.value > 1.96 * interval.error else None
