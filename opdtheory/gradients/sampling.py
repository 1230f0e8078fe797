"""Monte Carlo gradients: roll out the student token by token and form the estimators from the samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from opdtheory.gradients.estimators import Estimator
from opdtheory.gradients.exact import lookup
from opdtheory.gradients.moments import Paths, path_advantages
from opdtheory.gradients.parameters import Parameters, policy_at, score_table
from opdtheory.tabular import Policy, sample_trajectories

__all__ = ["SampledGradient", "rollout", "sampled_gradient"]


@dataclass(frozen=True)
class SampledGradient:
    """Gradients of single samples (N, size) and what they say about the exact moments."""

    samples: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Average of the samples, (size,)."""
        return self.samples.mean(axis=0)

    @property
    def standard_error(self) -> np.ndarray:
        """Standard error of each component of the mean, (size,)."""
        return self.samples.std(axis=0, ddof=1) / np.sqrt(len(self.samples))

    @property
    def second_moment(self) -> float:
        """Average of ‖ĝ‖²."""
        return float((self.samples**2).sum(axis=1).mean())

    @property
    def second_moment_error(self) -> float:
        """Standard error of ``second_moment``."""
        return float((self.samples**2).sum(axis=1).std(ddof=1) / np.sqrt(len(self.samples)))


def rollout(policy: Policy, count: int, seed: Any = 0) -> Paths:
    """``count`` independent sequences of a single-instance policy, as ``Paths`` of ``count`` rows."""
    if policy.batch_axes:
        raise ValueError(f"policy: got batch shape {policy.batch_shape}, expected a single instance")
    drawn = sample_trajectories(policy, count, seed=seed)
    return Paths.of(drawn.pairs, drawn.alive)


def sampled_gradient(
    parameters: Parameters,
    theta: np.ndarray,
    teacher: Policy,
    estimator: Estimator | str,
    count: int,
    seed: Any = 0,
) -> SampledGradient:
    """``count`` samples of ĝ = Σ_t Â_t ∇_θ log p(a_t|s_t) with y drawn from the student at ``theta``."""
    student = policy_at(parameters, theta)
    paths = rollout(student, count, seed)
    a = path_advantages(student, teacher, lookup(estimator), paths)
    scores = score_table(parameters, theta, student).reshape(-1, parameters.size)
    samples = np.zeros((count, parameters.size))
    for t in range(a.shape[1]):
        samples += a[:, t, None] * scores[paths.pairs[:, t]]
    return SampledGradient(samples)
