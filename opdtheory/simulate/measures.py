"""Exact measurements along a run: one number for every run, from the policies of a ``Snapshot``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from opdtheory import bounds
from opdtheory.simulate.moments import UpdateMoments, update_moments
from opdtheory.simulate.students import Student
from opdtheory.simulate.train import Algorithm, Snapshot
from opdtheory.tabular import Policy, PolicyContrast, PolicyPair

__all__ = [
    "BASIC",
    "REWARD",
    "ROLLOUT",
    "TEACHER",
    "Measure",
    "context_divergences",
    "context_share_above",
    "pair_measures",
    "update_measures",
]

Measure = Callable[[Snapshot], np.ndarray]


def entropy(policy: Policy) -> np.ndarray:
    """Mean entropy of the contexts that the policy visits, per token, in nats."""
    p, d = policy.flat, policy.flat_occupancy
    with np.errstate(divide="ignore", invalid="ignore"):
        h = -np.where(p > 0, p * np.log(p), 0.0).sum(axis=0)
    return (d * h).sum(axis=0) / d.sum(axis=0)


def returns(policy: Policy, reward: Any) -> np.ndarray:
    """J = E[R] under the policy."""
    return (policy.flat_occupancy * policy.flat * reward.flat).sum(axis=(0, 1))


def context_share_above(mu: Policy, pi: Policy, divergence: str, threshold: float) -> np.ndarray:
    """Share of the tokens drawn from μ that stand in contexts with divergence(μ, π) above ``threshold``.

    ``divergence``: ``tv`` or ``kl``, KL(μ‖π).
    """
    contrast = PolicyContrast(mu, pi)
    if divergence not in ("tv", "kl"):
        raise ValueError(f"divergence: got {divergence!r}, expected 'tv' or 'kl'")
    values = contrast._tv if divergence == "tv" else contrast._kls[0]
    d = mu.flat_occupancy
    return (d * (values > threshold)).sum(axis=0) / d.sum(axis=0)


def _teacher(snapshot: Snapshot) -> PolicyContrast:
    return PolicyContrast(snapshot.after, snapshot.world.teacher_of(snapshot.seeds))


def _before(snapshot: Snapshot) -> PolicyContrast:
    return PolicyContrast(snapshot.before, snapshot.world.teacher_of(snapshot.seeds))


def _rollout(snapshot: Snapshot) -> PolicyContrast:
    return PolicyContrast(snapshot.rollout, snapshot.after)


BASIC: Mapping[str, Measure] = {
    "length": lambda s: s.after.expected_length,
    "entropy": lambda s: entropy(s.after),
    "kept": lambda s: s.kept,
}
"""Expected length, entropy per token, share of tokens that the mask kept."""

REWARD: Mapping[str, Measure] = {"J": lambda s: returns(s.after, s.world.reward_of(s.seeds))}
"""Expected reward."""

TEACHER: Mapping[str, Measure] = {
    "kl_student_teacher": lambda s: _teacher(s).kl_seq,
    "kl_teacher_student": lambda s: _teacher(s).reverse_kl_seq,
    "tv_teacher_seq": lambda s: _teacher(s).tv_seq,
    "tv_teacher_max": lambda s: _teacher(s).tv_max,
    "kl_student_teacher_max": lambda s: _teacher(s).kl_max,
    "kl_rise": lambda s: np.maximum(_teacher(s).kl_seq - _before(s).kl_seq, 0.0),
}
"""KL(student‖teacher), KL(teacher‖student) and TV of responses, largest TV and KL of a context, and by how
much the step raised KL(student‖teacher).
"""

ROLLOUT: Mapping[str, Measure] = {
    "kl_rollout_seq": lambda s: _rollout(s).kl_seq,
    "kl_rollout_max": lambda s: _rollout(s).reachable_kl_max,
    "tv_rollout_seq": lambda s: _rollout(s).tv_seq,
    "tv_rollout_max": lambda s: _rollout(s).reachable_tv_max,
    "mismatch_tv": lambda s: _per_token(PolicyContrast(s.rollout, s.before)),
    "step_tv_max": lambda s: PolicyContrast(s.before, s.after).reachable_tv_max,
}
"""Divergences KL(rollout‖student) and TV after the step; ``mismatch_tv`` the mean token TV of the rollout
policy to the student at that time; ``step_tv_max`` how far one step went.
"""


def _per_token(contrast: PolicyContrast) -> np.ndarray:
    return contrast.tv_sum / contrast.behavior.expected_length


def update_measures(student: Student, algorithm: Algorithm) -> dict[str, Measure]:
    """Exact bias and variance of the update from one response at the new parameters, and its direction.

    ``gradient_bias2`` ‖E ĝ − ∇‖², ``gradient_variance`` the trace of the covariance, ``gradient_norm2`` ‖∇‖²
    of the true gradient, ``gradient_cosine`` of mean update and true gradient.
    """

    @lru_cache(maxsize=1)
    def of(s: Snapshot) -> UpdateMoments:
        return update_moments(s.world, student, s.theta, algorithm, seed=s.step)

    return {
        "gradient_bias2": lambda s: of(s).bias2,
        "gradient_variance": lambda s: of(s).variance,
        "gradient_norm2": lambda s: (of(s).truth ** 2).sum(axis=tuple(range(s.theta.ndim - 1))),
        "gradient_cosine": lambda s: of(s).cosine,
    }


def context_divergences(snapshot: Snapshot, other: str) -> dict[str, list[np.ndarray]]:
    """TV and KL of every context after the step, level arrays ``(runs, contexts(t))``.

    ``other`` "teacher" gives TV and KL(student‖teacher), "rollout" TV and KL(rollout‖student).
    """
    if other not in ("teacher", "rollout"):
        raise ValueError(f"other: got {other!r}, expected 'teacher' or 'rollout'")
    contrast = _teacher(snapshot) if other == "teacher" else _rollout(snapshot)
    return {"tv": contrast.tv, "kl": contrast.kl}


def pair_measures(delta: float, divergence: str = "tv") -> dict[str, Measure]:
    """Surrogate, error and bounds of a step from the rollout policy to the new student, and its violations.

    ``violation`` is the share of tokens in contexts whose divergence exceeds ``delta`` after the step,
    ``masked`` the share that the mask took out; ``bound_kl`` is D_seq, ``bound_tv`` Σ_t E TV, ``bound_sharp``
    the sharp uniform TV bound and ``bound_mixed`` a published one, all on |J(π) − J(μ) − L|; ``decrease`` is
    how much J fell, 0 if it rose.
    """

    @lru_cache(maxsize=1)  # the measures of one snapshot share the pair
    def pair(s: Snapshot) -> PolicyPair:
        return PolicyPair(s.world.tree, s.rollout, s.after, s.world.reward_of(s.seeds), validate=False)

    def fell(s: Snapshot) -> np.ndarray:
        reward = s.world.reward_of(s.seeds)
        return np.maximum(returns(s.before, reward) - returns(s.after, reward), 0.0)

    return {
        "surrogate": lambda s: pair(s).surrogate,
        "improvement": lambda s: pair(s).improvement,
        "error": lambda s: np.abs(pair(s).error),
        "bound_kl": lambda s: bounds.sequence_kl(pair(s).kl_seq),
        "bound_tv": lambda s: bounds.expected_tv(pair(s).tv_sum),
        "bound_sharp": lambda s: bounds.sharp_tv(s.world.tree.horizon, pair(s).tv_max),
        "bound_mixed": lambda s: bounds.mixed(s.world.tree.horizon, pair(s).kl_max, pair(s).kl_seq),
        "violation": lambda s: context_share_above(s.rollout, s.after, divergence, delta),
        "masked": lambda s: 1 - s.kept,
        "decrease": fell,
    }
