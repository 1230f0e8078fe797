"""Token rewards of on-policy distillation, as samples and as exact expectations over the alphabet.

Sampled forms take log-probabilities (or a log ratio) of the drawn token and are elementwise; the teacher
comes first, as in the ratio ρ = teacher/student.  Expected forms take whole distributions over the last axis
and average over the *student*, who draws the tokens; tokens that the student never draws contribute nothing.
All work on numpy float64, torch tensors and object arrays of exact rationals or balls.  Units are nats.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from opdtheory._arrays import Array, distribution, is_torch, numbers, one_like, pair, parameter, zero_like
from opdtheory.divergences import jsd, kl
from opdtheory.elementary import asum, exp, expm1, is_exact, log, log1p, maximum, minimum, where

__all__ = [
    "entropy_filter", "expectation", "expected_opd", "expected_topd", "expected_tropd_clip",
    "expected_tropd_gate", "expected_tropd_mask", "geometric_log_normalizer", "opd", "opd_geometric", "ratio",
    "topd", "topd_from_ratio", "topd_potential", "topd_second_moment", "tropd_accept_probability",
    "tropd_clip", "tropd_gate", "tropd_mask",
]  # fmt: skip


def opd(logp_teacher: Array, logp_student: Array) -> Array:
    """Log ratio log(teacher/student) of the drawn token, the reward whose mean is −KL(student‖teacher).

    Source: *Theory of On-Policy Distillation*, Eq. 2; *Trust Region Policy Distillation*, Eq. 3.
    """
    return numbers(logp_teacher) - numbers(logp_student)


def topd(logp_teacher: Array, logp_student: Array, alpha: Any) -> Array:
    """TOP-D reward log(αρ + 1 − α) with ρ = teacher/student and 0 < α ≤ 1; at α = 1 the log ratio itself.

    It is at least log(1 − α) and never larger in size than the log ratio.  Source: *Trust Region Policy
    Distillation*, Eq. 5 (not to be confused with the rewards of *Trust Region On-Policy Distillation*).

    >>> round(float(topd(-50.0, -1.0, 0.1)), 6)     # the floor log(0.9)
    -0.105361
    """
    ell = opd(logp_teacher, logp_student)
    a = _alpha(alpha, ell)
    if a == 1:
        return ell
    if is_exact(ell):
        return log(a * exp(ell) + (1 - a))
    # three forms of one function, each used where it neither overflows nor cancels
    below = minimum(ell, -1.0)
    low = log1p(a * expm1(below)) if a <= 0.5 else log(a * exp(below) + (1 - a))
    middle = log1p(a * expm1(minimum(maximum(ell, -1.0), 80.0)))
    high_ell = maximum(ell, 80.0)
    high = high_ell + log(a + (1 - a) * exp(-high_ell))
    return where(ell < -1.0, low, where(ell > 80.0, high, middle))[()]


def topd_from_ratio(ratio: Array, alpha: Any) -> Array:
    """TOP-D reward log(αρ + 1 − α) of a probability ratio ρ ≥ 0, which may be exact."""
    rho = numbers(ratio)
    a = _alpha(alpha, rho)
    return log(a * rho + (1 - a))


def opd_geometric(logp_teacher: Array, logp_student: Array, alpha: Any) -> Array:
    """Reward of the *unnormalised* geometric mixture, α log(teacher/student).

    Subtract ``geometric_log_normalizer`` for the reward of the normalised mixture.  Source: *Trust Region
    Policy Distillation*, Eq. 6.
    """
    ell = opd(logp_teacher, logp_student)
    return _alpha(alpha, ell) * ell


def geometric_log_normalizer(teacher: Array, student: Array, alpha: Any) -> Array:
    """log Σ student^{1−α} teacherᵅ ≤ 0 over the last axis: the normaliser that Eq. 6 of *Trust Region Policy
    Distillation* leaves out.  −inf if the supports are disjoint.
    """
    q, p = pair(teacher, student)
    a = _alpha(alpha, p)
    both = (p > 0) & (q > 0)
    safe_p, safe_q = where(both, p, one_like(p)), where(both, q, one_like(q))
    return log(asum(where(both, exp(a * log(safe_q) + (1 - a) * log(safe_p)), zero_like(p))))


def tropd_accept_probability(logp_teacher: Array, logp_student: Array) -> Array:
    """min(teacher/student, 1): the chance that speculative decoding would accept the student's token.

    Its mean over the student is 1 − TV(student, teacher).  Source: *Trust Region On-Policy Distillation*, the
    decoding agreement that defines the trust region.
    """
    ell = opd(logp_teacher, logp_student)
    return exp(minimum(ell, zero_like(ell)))


def tropd_gate(logp_teacher: Array, logp_student: Array, uniform: Array) -> Array:
    """Log ratio where the token is accepted (``uniform`` < acceptance probability), else 0.

    ``uniform`` holds independent U[0,1) draws.  Source: *Trust Region On-Policy Distillation*, first term of
    the on-policy objective; the other tokens get the top-k forward KL (``divergences.topk_kl(...,
    tail=False)``).
    """
    ell = opd(logp_teacher, logp_student)
    accepted = _decided(
        numbers(uniform), tropd_accept_probability(logp_teacher, logp_student), "uniform draw"
    )
    return where(accepted, ell, zero_like(ell))[()]


def tropd_clip(log_ratio: Array, tau: Any) -> Array:
    """max(log ratio, τ) with τ < 0.  Source: *Trust Region On-Policy Distillation*, Clip Outlier."""
    ell = numbers(log_ratio)
    return maximum(ell, _threshold(tau, ell))


def tropd_mask(log_ratio: Array, tau: Any) -> Array:
    """The log ratio where it exceeds τ < 0, else 0: masked outliers.  Source: *Trust Region On-Policy
    Distillation*.
    """
    ell = numbers(log_ratio)
    return where(_decided(_threshold(tau, ell), ell, "tau"), ell, zero_like(ell))[()]


def entropy_filter(log_ratio: Array, entropy: Array, tau: Any) -> Array:
    """The log ratio where the entropy of the context exceeds τ (nats), else 0."""
    ell, h = numbers(log_ratio), numbers(entropy)
    return where(_decided(parameter("tau", tau, h), h, "tau"), ell, zero_like(ell))[()]


def ratio(teacher: Array, student: Array) -> Array:
    """ρ = teacher/student of every token; 1 where the student has no mass (those tokens are never drawn)."""
    q, p = pair(teacher, student)
    drawn = p > 0
    return where(drawn, q / where(drawn, p, one_like(p)), one_like(p))


def expectation(student: Array, values: Array) -> Array:
    """Σ student·values over the last axis; infinite values at tokens of probability zero do not count."""
    p, v = distribution("student", student), numbers(values)
    drawn = p > 0
    return asum(where(drawn, p * where(drawn, v, zero_like(v)), zero_like(p)))


def expected_opd(teacher: Array, student: Array) -> Array:
    """E_student[log(teacher/student)] = −KL(student‖teacher)."""
    return -kl(student, teacher)


def expected_topd(teacher: Array, student: Array, alpha: Any) -> Array:
    """E_student[log(αρ + 1 − α)] = −KL(student‖α·teacher + (1−α)·student)."""
    q, p = pair(teacher, student)
    a = _alpha(alpha, p)
    return -kl(p, a * q + (1 - a) * p)


def topd_second_moment(teacher: Array, student: Array, alpha: Any) -> Array:
    """E_student[r̃²] of the TOP-D reward, the quantity that Thm 4.2 of *Trust Region Policy Distillation*
    bounds.
    """
    reward = topd_from_ratio(ratio(teacher, student), alpha)
    return expectation(student, reward * reward)


def expected_tropd_gate(teacher: Array, student: Array) -> Array:
    """E_student[M log ρ] with M the acceptance gate: Σ min(student, teacher)·log(teacher/student), always
    finite.
    """
    q, p = pair(teacher, student)
    overlap = minimum(p, q)
    both = overlap > 0
    log_rho = log(where(both, q, one_like(q)) / where(both, p, one_like(p)))
    return asum(where(both, overlap * log_rho, zero_like(p)))


def expected_tropd_clip(teacher: Array, student: Array, tau: Any) -> Array:
    """E_student[max(log ρ, τ)] over the last axis."""
    return expectation(student, tropd_clip(log(ratio(teacher, student)), tau))


def expected_tropd_mask(teacher: Array, student: Array, tau: Any) -> Array:
    """E_student[1{log ρ > τ}·log ρ] over the last axis."""
    return expectation(student, tropd_mask(log(ratio(teacher, student)), tau))


def topd_potential(teacher: Array, student: Array, alpha: Any) -> Array:
    """JSD_α(student, teacher)/(1 − α), α < 1: the function that the immediate TOP-D update descends.

    E_student[r̃ ∇log student] = −∇ of this.  With m = αq + (1−α)p one has r̃ = log(m/p), and
    ∂/∂p of α KL(q‖m) + (1−α) KL(p‖m) is (1−α) log(p/m) up to a constant on the simplex, because the terms
    through m add up to −(1−α)Σ(αq + (1−α)p)/m = −(1−α), a constant.
    """
    q, p = pair(teacher, student)
    a = _alpha(alpha, p)
    if a == 1:
        raise ValueError("alpha: got 1, expected a number below 1 (the limit is KL(student‖teacher))")
    return jsd(p, q, alpha) / (1 - a)


def _alpha(alpha: Any, like: Array) -> Any:
    if not (0 < alpha <= 1):
        raise ValueError(f"alpha: got {alpha!r}, expected a number in (0, 1]")
    return parameter("alpha", alpha, like)


def _threshold(tau: Any, like: Array) -> Any:
    if not tau < 0:
        raise ValueError(f"tau: got {tau!r}, expected a negative log-ratio threshold")
    return parameter("tau", tau, like)


def _decided(low: Any, high: Array, name: str) -> Array:
    """``low < high`` elementwise; a comparison of overlapping balls has no answer and is refused."""
    less = low < high
    if not is_torch(high) and is_exact(high):
        certain = np.asarray(less | (low >= high), dtype=bool)
        if not certain.all():
            raise ValueError(f"{name}: balls overlap it, so the comparison is undecided at this precision")
    return less
