"""Exact policy gradients with respect to the logits of every context.

With softmax logits z(s, ·) and any weights w(s, a), Σ_s Σ_a w(s, a) ∇log p(a|s) has the component
w(s, a) − p(a|s) Σ_b w(s, b) at z(s, a), because ∂log p(b|s)/∂z(s, a) = 1{a=b} − p(a|s).  Every gradient here
is this map applied to weights d(s) p(a|s) Ā(s, a), with Ā the conditional mean of an advantage.

Results are lists of level arrays ``(batch..., contexts(t), vocab)``, one entry per logit.  Exact policies
give rationals or balls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from opdtheory.gradients.estimators import ESTIMATORS, Estimator, conditional_moments
from opdtheory.tabular import Policy, PolicyPair, Reward, flow
from opdtheory.tabular.contrast import aligned
from opdtheory.tabular.table import Table

__all__ = [
    "bias_part", "estimator_mean", "immediate_part", "objective_gradient", "return_gradient",
    "surrogate_gradient", "weighted_gradient",
]  # fmt: skip

Levels = list[np.ndarray]


def objective_gradient(student: Policy, teacher: Policy) -> Levels:
    """∇η with η = −KL(student‖teacher) over whole sequences.

    The advantage is the log-ratio-to-go; the dependence of the reward itself on the student drops out,
    because E_p[∇log p] = 0 in every context.  Source: *Theory of On-Policy Distillation*, Thm 1 (ii).
    """
    return estimator_mean(student, teacher, "ii")


def immediate_part(student: Policy, teacher: Policy) -> Levels:
    """g₁ = −Σ_s d(s) ∇KL(student‖teacher)(s), the mean of the immediate-reward estimator.

    Source: *Theory of On-Policy Distillation*, 1.3.
    """
    return estimator_mean(student, teacher, "immediate")


def bias_part(student: Policy, teacher: Policy) -> Levels:
    """g₂ = −Σ_s ∇d(s) KL(student‖teacher)(s) = ∇η − g₁, computed from the values of the later contexts.

    Source: *Theory of On-Policy Distillation*, 1.3 and Thm 2 with f(s) = −KL(s).
    """
    student, teacher = aligned(student.tree, student, teacher)
    later = (
        conditional_moments(student, teacher, ESTIMATORS["ii"])[0]
        - conditional_moments(student, teacher, ESTIMATORS["immediate"])[0]
    )
    return _levels(student, _weighted(student.flat, student.flat_occupancy * student.flat * later))


def estimator_mean(student: Policy, teacher: Policy, estimator: Estimator | str) -> Levels:
    """Exact mean of a sampled estimator, as a vector over the logits (baselines do not change it)."""
    student, teacher = aligned(student.tree, student, teacher)
    return _levels(student, flat_mean(student, teacher, lookup(estimator)))


def return_gradient(policy: Policy, reward: Reward) -> Levels:
    """∇J of J = E_policy[R] with respect to the policy's logits: d(s) p(a|s) A(s, a)."""
    policy, reward = aligned(policy.tree, policy, reward)
    q, _ = flow.backward(policy.tree, policy.flat, reward.as_terminal().flat)
    return _levels(policy, _weighted(policy.flat, policy.flat_occupancy * policy.flat * q))


def surrogate_gradient(pair: PolicyPair) -> Levels:
    """∇L of L = Σ_t E_{d_t^μ}[E_π A^μ] with respect to the logits of the target policy π.

    At π = μ it equals ∇J.  Source: *Trust Region Masking for Long-Horizon LLM Reinforcement Learning*, slide
    2.2.5.
    """
    mu, pi = pair.behavior, pair.target
    q, v = flow.backward(pair.tree, mu.flat, pair.reward.flat)
    return _levels(pi, _weighted(pi.flat, mu.flat_occupancy * pi.flat * (q - v)))


def weighted_gradient(behavior: Policy, target: Policy, weights: Sequence[Any]) -> Levels:
    """E_behavior[Σ_t w(s_t, a_t) ∇log π(a_t|s_t)] with respect to the logits of the target π.

    With w = M·min(π/μ, C)·Â it is the unified policy gradient.  ``weights`` are level arrays.  Source:
    *Rethinking the Trust Region in LLM Reinforcement Learning*, Eq. 23.
    """
    behavior, target, table = aligned(
        behavior.tree, behavior, target, Table.from_levels(behavior.tree, weights)
    )
    return _levels(target, _weighted(target.flat, behavior.flat_occupancy * behavior.flat * table.flat))


def lookup(estimator: Estimator | str) -> Estimator:
    """An estimator by its name in ``ESTIMATORS``."""
    if isinstance(estimator, Estimator):
        return estimator
    if estimator not in ESTIMATORS:
        raise ValueError(
            f"estimator: got {estimator!r}, expected one of {', '.join(ESTIMATORS)} or an Estimator"
        )
    return ESTIMATORS[estimator]


def flat_mean(student: Policy, teacher: Policy, estimator: Estimator) -> np.ndarray:
    """``estimator_mean`` in the inner layout, for policies that are already aligned."""
    mean, _ = conditional_moments(student, teacher, estimator)
    return _weighted(student.flat, student.flat_occupancy * student.flat * mean)


def _weighted(p: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return weights - p * weights.sum(axis=0)


def _levels(policy: Policy, flat: np.ndarray) -> Levels:
    return Table(policy.tree, flat, policy.batch_shape).levels
