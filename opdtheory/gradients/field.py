"""Mean updates as vector fields over the parameters: are they gradients of anything?

A field is a gradient (on a simply connected domain) if and only if its Jacobian is symmetric.  Jacobians come
from complex-step differentiation of the exact formulas, Im F(θ + ih)/h with a step so small that nothing is
truncated, all directions at once as a batch; nonlinear parametrisations add their curvature term.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from opdtheory.gradients.estimators import Estimator, token_rewards
from opdtheory.gradients.exact import flat_mean, lookup
from opdtheory.gradients.parameters import Parameters, TabularLogits, policy_at
from opdtheory.tabular import Policy

__all__ = ["asymmetry", "cosine", "mean_field", "mean_field_jacobian", "objective"]

_STEP = 1e-100


def objective(parameters: Parameters, theta: np.ndarray, teacher: Policy) -> float:
    """η(θ) = −KL(student‖teacher) over whole sequences, in nats."""
    student = policy_at(parameters, theta)
    reward = token_rewards(student.flat, teacher.flat)
    return float((student.flat_occupancy * student.flat * reward).sum())


def mean_field(
    parameters: Parameters, theta: np.ndarray, teacher: Policy, estimator: Estimator | str
) -> np.ndarray:
    """Exact mean E ĝ of an estimator at ``theta``, shape (size,)."""
    return parameters.pull(theta, flat_mean(policy_at(parameters, theta), teacher, lookup(estimator)))


def mean_field_jacobian(
    parameters: Parameters, theta: np.ndarray, teacher: Policy, estimator: Estimator | str
) -> np.ndarray:
    """Jacobian ∂(E ĝ)_i/∂θ_j of the mean field, shape (size, size).

    With z(θ) the logits, J = ∂z/∂θ and G(z) the mean over logits, it is Jᵀ (∂G/∂z) J + Σ G ∂²z/∂θ∂θ.
    """
    e, tree = lookup(estimator), parameters.tree
    tabular = TabularLogits(tree)
    z = tabular.order(parameters.logits(theta))
    directions = tabular.order(parameters.jacobian(theta))
    student = policy_at(tabular, z[:, None] + 1j * _STEP * directions)
    student.batch_shape = (parameters.size,)
    fixed = Policy(tree, np.repeat(teacher.flat[..., None], parameters.size, axis=2), (parameters.size,))
    slopes = flat_mean(student, fixed, e).imag / _STEP
    mean = flat_mean(policy_at(parameters, theta), teacher, e)
    return parameters.pull(theta, slopes) + parameters.curvature(theta, mean)


def asymmetry(jacobian: np.ndarray) -> float:
    """‖J − Jᵀ‖_F / ‖J + Jᵀ‖_F: 0 for a gradient field; inf if the symmetric part vanishes alone."""
    odd, even = np.linalg.norm(jacobian - jacobian.T), np.linalg.norm(jacobian + jacobian.T)
    if odd == 0:
        return 0.0
    return float(odd / even) if even > 0 else float("inf")


def cosine(a: Any, b: Any) -> float:
    """Cosine of the angle between two vectors, or two lists of level arrays.

    Raises ``ValueError`` if one of them is zero.
    """
    x, y = (
        np.concatenate([np.ravel(level) for level in v]) if isinstance(v, list) else np.ravel(v)
        for v in (a, b)
    )
    norms = np.linalg.norm(x) * np.linalg.norm(y)
    if norms == 0:
        raise ValueError("cosine: a vector is zero and has no direction")
    return float(x @ y / norms)
