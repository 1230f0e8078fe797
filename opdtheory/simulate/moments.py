"""Bias and variance of the update that one sampled response gives, exactly, at any point of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from opdtheory.gradients.estimators import ESTIMATORS, score_norm2
from opdtheory.simulate.batch import Batch, enumerate_responses
from opdtheory.simulate.signals import Distill, Terminal, View, World
from opdtheory.simulate.students import LinearStudent, Student, TabularStudent, policy_of
from opdtheory.simulate.train import Algorithm, Step, gradient
from opdtheory.simulate.weights import OnPolicy

__all__ = ["UpdateMoments", "update_moments"]


@dataclass(frozen=True)
class UpdateMoments:
    """Mean of the update, its squared distance ``bias2`` to the true gradient, and the trace ``variance`` of
    its covariance for one response; parameters first, runs last.
    """

    mean: np.ndarray
    truth: np.ndarray
    variance: np.ndarray

    @property
    def bias2(self) -> np.ndarray:
        """‖E ĝ − ∇‖², (runs,)."""
        gap = self.mean - self.truth
        return (gap * gap).sum(axis=tuple(range(gap.ndim - 1)))

    @property
    def cosine(self) -> np.ndarray:
        """Cosine of the angle between the mean update and the true gradient, (runs,)."""
        axes = tuple(range(self.mean.ndim - 1))
        norms = np.sqrt((self.mean**2).sum(axis=axes) * (self.truth**2).sum(axis=axes))
        return (self.mean * self.truth).sum(axis=axes) / np.where(norms > 0, norms, np.inf)


def update_moments(
    world: World, student: Student, theta: np.ndarray, algorithm: Algorithm, *, seed: int = 0
) -> UpdateMoments:
    """Exact moments of the first update of ``algorithm`` at ``theta`` from one response.

    The true gradient is that of J for a reward signal and of −KL(student‖teacher) otherwise.  Group
    statistics are those of infinitely many responses.  Raises ValueError for a signal with a part that is
    not sampled.
    """
    rng, policy = np.random.default_rng(seed), policy_of(student, theta)
    rollout = algorithm.rollout.policy(student, [theta], policy, rng)
    view = View(world, rollout, policy, rng)
    drawn = algorithm.signal.drawn_from(view)
    batch = enumerate_responses(drawn)
    contribution = algorithm.signal(view, batch)
    if contribution.direct is not None:
        raise ValueError(f"signal: {type(algorithm.signal).__name__} adds a part that is not sampled")
    step = Step(replace(algorithm, responses=None), view, drawn, batch, contribution)
    mean, _ = step.gradient(student, policy)
    coefficients, _ = step.coefficients(policy)
    if isinstance(student, TabularStudent):
        # contexts along a path have parameters of their own: squared norms add up
        squares = coefficients**2 * batch.along(score_norm2(policy.flat))
        second = batch.mean(squares.sum(axis=1))
    elif isinstance(student, LinearStudent):
        second = _shared_second_moment(student, policy.flat, batch, coefficients)
    else:
        raise ValueError(f"student: got {type(student).__name__}, expected a tabular or linear one")
    objective = Terminal("none") if isinstance(algorithm.signal, Terminal) else Distill(ESTIMATORS["ii"])
    truth = gradient(world, student, theta, Algorithm(objective, OnPolicy()))
    variance = second - (mean**2).sum(axis=tuple(range(mean.ndim - 1)))
    return UpdateMoments(mean, truth, np.maximum(variance, 0.0))


def _shared_second_moment(
    student: LinearStudent, p: np.ndarray, batch: Batch, coefficients: np.ndarray
) -> np.ndarray:
    features = student.parameters.jacobian(np.empty(0))
    out = np.empty(batch.seeds)
    for i in range(batch.seeds):
        mine = batch.seed == i
        score = features - (p[..., i, None] * features).sum(axis=0)
        rows = score.reshape(-1, score.shape[-1])
        total = np.zeros((int(mine.sum()), score.shape[-1]))
        for t in range(batch.tree.horizon):
            total += coefficients[mine, t, None] * rows[batch.pairs[mine, t]]
        out[i] = batch.weight[mine] @ (total**2).sum(axis=1)
    return out
