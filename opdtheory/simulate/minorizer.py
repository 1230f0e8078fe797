"""Maximising the monotonic-improvement bound of distillation, as printed and corrected, again and again.

*Trust Region Policy Distillation*, Thm 4.9 bounds the return of a next student π̃ from below by M(π̃) = η(π) +
Σ d^π(s) E_π̃ A^π(s, ·) − 2ξ·T·Σ d^π(s) TV(π̃, π)(s), ξ = max_s |E_π̃ A^π|, for the reward frozen at
log(teacher/π).  But the reward changes with the student: the bound for the true objective replaces E_π̃ A^π by
g′ = E_π̃ A^π − KL(π̃‖π).  Both are maximised here over a one-parameter family of candidates, the reward
refreshed after every step.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from opdtheory import bounds
from opdtheory.tabular import Policy, TeacherStudent
from opdtheory.tabular.policy import softmax

__all__ = ["candidates", "minorizer_run", "minorizer_values"]

FORMS = ("frozen", "corrected")


def candidates(student: Policy, teacher: Policy, strengths: np.ndarray) -> Policy:
    """The policies ∝ student·(teacher/student)^s for every strength s: towards the teacher, and beyond."""
    with np.errstate(divide="ignore"):
        log_p, log_q = np.log(student.flat), np.log(teacher.flat)
    return Policy(
        student.tree, softmax(log_p[..., None] + strengths * (log_q - log_p)[..., None]), strengths.shape
    )


def minorizer_values(
    student: Policy, teacher: Policy, candidate: Policy, form: str, *, penalty_horizon: int | None = None
) -> np.ndarray:
    """M(candidate) − η(student) of every candidate in the batch; 0 at the student itself.

    ``form`` "frozen" as printed (penalty with T), "corrected" for the true objective (penalty with T − 1).
    ``penalty_horizon`` overrides the number of steps in the penalty.
    """
    if form not in FORMS:
        raise ValueError(f"form: got {form!r}, expected one of {', '.join(FORMS)}")
    x = TeacherStudent(student.tree, teacher, student, candidate)
    horizon = student.tree.horizon
    if form == "frozen":
        steps = horizon if penalty_horizon is None else penalty_horizon
        return x.candidate_surrogate - bounds.topd_penalty(steps, x.candidate_tv_sum, x.candidate_g_max)
    steps = horizon if penalty_horizon is None else penalty_horizon + 1
    penalty = bounds.topd_penalty_fixed(steps, x.candidate_tv_sum, x.candidate_corrected_g_max)
    return x.candidate_corrected_surrogate - penalty


def minorizer_run(
    student: Policy,
    teacher: Policy,
    form: str,
    count: int,
    *,
    penalty_horizon: int | None = None,
    reach: float = 4.0,
    refinements: int = 12,
) -> dict[str, Any]:
    """``count`` maximisations of M, the reward refreshed after each.

    Returns KL(student‖teacher) at the start and after every step, the claimed gain M − η(π), and the
    probability of the first action in the first context.

    The best strength in [0, ``reach``] is found on a grid that zooms in on its best point.  With two actions
    and one token the line holds every policy, so that a large ``reach`` gives the exact maximiser.
    """
    kl, gain, first = (
        [float(-TeacherStudent(student.tree, teacher, student).eta)],
        [],
        [float(student.flat[0, 0])],
    )
    for _ in range(count):
        low, high, best = 0.0, reach, 0.0
        for _ in range(refinements):
            grid = np.linspace(low, high, 65)
            values = minorizer_values(
                student, teacher, candidates(student, teacher, grid), form, penalty_horizon=penalty_horizon
            )
            top = int(np.argmax(values))
            best, value = float(grid[top]), float(values[top])
            low, high = float(grid[max(top - 1, 0)]), float(grid[min(top + 1, len(grid) - 1)])
        chosen = candidates(student, teacher, np.array([best]))
        student = Policy(student.tree, chosen.flat[..., 0])
        gain.append(value)
        kl.append(float(-TeacherStudent(student.tree, teacher, student).eta))
        first.append(float(student.flat[0, 0]))
    return {"kl": kl, "claimed_gain": gain, "first_probability": first}
