"""Bounds of Trust Region Policy Distillation: variance of its gradient estimator and contraction towards
the teacher.

The proximal reward is r̃ = log(αρ + 1 − α) with ρ = teacher/student; α ∈ (0, 1).
C* and K(α) are solved for, not typed.
"""

from __future__ import annotations

from typing import Any

import flint
import numpy as np
from scipy import special

from opdtheory.bounds.powers import miss_probability, power
from opdtheory.bounds.registry import TOPD, bound
from opdtheory.elementary import exact, exp, is_exact, log, log1p, maximum, sqrt, to_ball

_SCORE = ("‖∇ log π(y_k)‖ ≤ M",)


def optimal_ratio() -> float:
    """t* = −2/W₀(−2e⁻²), the root in (2, e²) of log t = 2(1 − 1/t)."""
    return float(-2 / special.lambertw(-2 * np.exp(-2.0), 0).real)


def variance_constant(like: Any = 1.0) -> Any:
    """C* = (log t*)²/(t* − 1), a float, or a ball if ``like`` is exact.

    >>> round(variance_constant(), 6)
    0.64761
    """
    if is_exact(like):
        t = -2 / (-2 * flint.arb(-2).exp()).lambertw()
        return t.log() ** 2 / (t - 1)
    return float(np.log(optimal_ratio()) ** 2 / (optimal_ratio() - 1))


@bound("topd.lemma28", "TOP-D term bound", "max(log²(1−α), C*α)", target="step", source=f"{TOPD}, Eq 28")
def topd_term_bound(alpha: Any) -> Any:
    """p·log²(αq/p + 1 − α) ≤ max(log²(1−α), C*α) for every p, q in (0, 1)."""
    return maximum(log(1 - alpha) ** 2, variance_constant(alpha) * alpha)


def topd_positive_supremum(alpha: Any) -> Any:
    """sup over q ≥ p of p·log²(αq/p + 1 − α): 2α log t/t with t = exp(2 + W₀(−2(1−α)e⁻²)); below the
    printed C*α.

    >>> round(float(topd_positive_supremum(0.37820365953)), 5)
    0.22576
    """
    a = np.asarray(alpha, dtype=float)
    log_t = 2 + special.lambertw(-2 * (1 - a) * np.exp(-2.0), 0).real
    return (2 * a * log_t * np.exp(-log_t))[()]


@bound(
    "topd.thm4.2",
    "TOP-D gradient variance, printed",
    "|V| α",
    target="variance",
    source=f"{TOPD}, Theorem 4.2",
    assumptions=_SCORE,
)
def topd_variance(alpha: Any, vocab: Any, score_bound: Any) -> Any:
    """M²·|V|·max(log²(1−α), C*α).

    >>> round(float(topd_variance(0.1, 151936, 1)), -2)
    9800.0
    """
    return score_bound * score_bound * vocab * topd_term_bound(alpha)


@bound(
    "topd.thm4.2-sharp/moment",
    "TOP-D reward second moment",
    "Θ(α)",
    target="variance",
    sharpness="tight",
    claim="topd.thm4.2-sharp",
)
def topd_second_moment(alpha: Any) -> Any:
    """K(α) = log²(1−α) + max_{b>1}[log²(1−α+αb) − log²(1−α)]/b, the supremum of E_p[r̃²] over every
    vocabulary.

    Vectorised over float arrays; a rational or ball α gives a ball that certainly contains K(α).

    >>> round(float(topd_second_moment(0.1)), 13)
    0.0740586993134
    """
    if isinstance(alpha, np.ndarray) and alpha.dtype == object:
        return np.frompyfunc(_second_moment_ball, 1, 1)(alpha)
    if is_exact(alpha):
        return _second_moment_ball(alpha)
    a = np.asarray(alpha, dtype=float)
    if not ((a >= 0) & (a <= 1)).all():
        raise ValueError(f"alpha: got {alpha!r}, expected a number in [0, 1]")
    with np.errstate(divide="ignore", invalid="ignore"):
        kappa = -np.log1p(-a)
        s = _tangent(a, kappa)
        return np.where(a == 1, np.inf, kappa**2 + 2 * a * s * np.exp(-s))[()]


def tangent_ratio(alpha: Any) -> Any:
    """The teacher/student ratio b at which K(α) is attained in the limit of a two-token vocabulary."""
    a = np.asarray(alpha, dtype=float)
    return ((np.exp(_tangent(a, -np.log1p(-a))) - 1) / a + 1)[()]


def _slack(s: Any, a: Any, kappa: Any) -> Any:
    # derivative of the chord slope, up to a positive factor, at s = log(1 − α + αb)
    return 2 * s * (1 - (1 - a) * np.exp(-s)) - s * s + kappa * kappa


def _tangent(a: Any, kappa: Any) -> Any:
    """The root of the tangency condition, between κ and 1 + √(1 + κ²) where it changes sign once."""
    low, high = kappa + 0.0, 1 + np.sqrt(1 + kappa * kappa)
    for _ in range(80):
        middle = (low + high) / 2
        right = _slack(middle, a, kappa) > 0
        low, high = np.where(right, middle, low), np.where(right, high, middle)
    return (low + high) / 2


def _second_moment_ball(alpha: Any) -> flint.arb:
    a = to_ball(alpha)
    if a == 0:
        return flint.arb(0)
    if not (a > 0 and a < 1):
        raise ValueError(f"alpha: got {alpha}, expected a number certainly in [0, 1)")
    kappa = -(1 - a).log()

    def slack(s: flint.arb) -> flint.arb:
        return 2 * s * (1 - (1 - a) * (-s).exp()) - s * s + kappa * kappa

    low, high = kappa.mid(), (1 + (1 + kappa * kappa).sqrt()).mid() + flint.arb(2) ** -30
    for _ in range(flint.ctx.prec):
        middle = ((low + high) / 2).mid()
        value = slack(middle)
        # an undecided sign ends the bisection: the bracket so far is certain
        if value > 0:
            low = middle
        elif value < 0:
            high = middle
        else:
            break
    s = low.union(high)
    return kappa * kappa + 2 * a * s * (-s).exp()


@bound(
    "topd.thm4.2-sharp",
    "TOP-D gradient variance, vocabulary-free",
    "Θ(α)",
    target="variance",
    sharpness="tight",
    assumptions=_SCORE,
)
def topd_variance_sharp(alpha: Any, score_bound: Any) -> Any:
    """M²·K(α), for every vocabulary at once; best possible at V = 2."""
    return score_bound * score_bound * topd_second_moment(alpha)


@bound(
    "topd.thm4.2-sharp/softmax",
    "TOP-D gradient variance, logit parametrisation",
    "Θ(α)",
    target="variance",
    assumptions=("one free logit per token",),
)
def topd_variance_softmax(alpha: Any) -> Any:
    """2K(α): with free logits the score e_y − p has ‖·‖² ≤ 2."""
    return 2 * topd_second_moment(alpha)


@bound(
    "topd.thm4.2-sharp/simple",
    "TOP-D reward second moment, closed form",
    "Θ(α)",
    target="variance",
    claim="topd.rem4.3",
)
def topd_second_moment_simple(alpha: Any) -> Any:
    """log²(1−α) + C*α ≥ K(α)."""
    return log(1 - alpha) ** 2 + variance_constant(alpha) * alpha


@bound(
    "topd.togo-var",
    "TOP-D return-to-go, L2 norm",
    "κ T^{3/2}",
    target="variance",
    sharpness="asymptotic",
    assumptions=_SCORE,
)
def topd_togo_norm(alpha: Any, horizon: Any, score_bound: Any) -> Any:
    """M[(2/3)κ(T+1)^{3/2} + √(K·T(T−1)/2) + √K·T] ≥ ‖Σ_t ∇log π_t·Σ_{k≥t} r̃_k‖_{L²}, κ = −log(1−α)."""
    kappa, second_moment = -log1p(-alpha), topd_second_moment(alpha)
    n = _like(horizon + 1, alpha)
    drift = 2 * kappa * n * sqrt(n) / 3
    noise = sqrt(second_moment * horizon * (horizon - 1) / 2) + sqrt(second_moment) * horizon
    return score_bound * (drift + noise)


def _like(n: Any, x: Any) -> Any:
    """A whole number in the arithmetic of x, so that its square root is a ball beside balls."""
    return exact(n) if is_exact(x) and isinstance(n, int) else n


# -------------------- contraction


@bound(
    "topd.thm4.4/uniform",
    "Contraction, sequence-level",
    "(1−α)^k d₀ + e(1−(1−α)^k)/α",
    target="distance",
    source=f"{TOPD}, Theorem 4.4, Eq 12",
    sharpness="tight",
    assumptions=("mixture of whole responses", "errors at most e"),
)
def contraction_sequence(alpha: Any, steps: Any, initial: Any = 2, step_error: Any = 0) -> Any:
    """(1−α)^k·d₀ + e·(1 − (1−α)^k)/α after k steps, each with an L1 error of at most e.

    >>> round(float(contraction_sequence(0.1, 20)), 4)
    0.2432
    """
    return power(1 - alpha, steps) * initial + step_error * miss_probability(alpha, steps) / alpha


@bound(
    "topd.thm4.4/limit",
    "Contraction, limit",
    "e/α",
    target="distance",
    source=f"{TOPD}, Theorem 4.4, Eq 13",
    sharpness="tight",
    claim="topd.thm4.4/uniform",
    assumptions=("mixture of whole responses", "errors at most e"),
)
def contraction_limit(alpha: Any, step_error: Any) -> Any:
    """limsup d ≤ e/α; says nothing unless e < 2α."""
    return step_error / alpha


@bound(
    "topd.thm4.4-token",
    "Contraction, token-level",
    "(1−α^T)^k d₀",
    target="distance",
    sharpness="tight",
    assumptions=("mixture at each token",),
)
def contraction_token(alpha: Any, horizon: Any, steps: Any, initial: Any = 2, step_error: Any = 0) -> Any:
    """(1−α^T)^k·d₀ + e·(1 − (1−α^T)^k)/α^T: token mixing contracts whole responses only by 1 − α^T."""
    rate = power(alpha, horizon)
    return power(1 - rate, steps) * initial + step_error * _geometric(rate, steps)


@bound(
    "topd.thm4.4-token/steps",
    "Contraction, token-level, composed",
    "(1 − (1−(1−α)^k)^T) d₀",
    target="distance",
    sharpness="tight",
    assumptions=("mixture at each token", "no errors between the steps"),
    without=("step_error",),
)
def contraction_token_steps(alpha: Any, horizon: Any, steps: Any, initial: Any = 2) -> Any:
    """(1 − (1−(1−α)^k)^T)·d₀ after k exact steps: k token mixtures are one, with weight 1 − (1−α)^k.

    At most T(1−α)^k·d₀: about log(T)/α steps suffice, where (1−α^T)^k would ask for α^{−T} of them.
    """
    return miss_probability(power(1 - alpha, steps), horizon) * initial


@bound(
    "ours.s10",
    "Contraction, token-level, no faster",
    "(1−α)^k d₀/e",
    target="distance_lower",
    sharpness="asymptotic",
    assumptions=("mixture at each token", "no errors between the steps"),
    without=("step_error",),
)
def contraction_token_floor(alpha: Any, steps: Any, initial: Any = 2) -> Any:
    """b·(1−b)^{(1−b)/b}·d₀ with b = (1−α)^k: no horizon and no policies come closer in k exact steps.

    The infimum over all horizons; k token mixtures are one, with weight 1 − b on the teacher.

    >>> round(float(contraction_token_floor(0.5, 1, 1.0)), 12)
    0.25
    """
    rest = power(1 - alpha, steps)
    if is_exact(rest) or hasattr(rest, "__elementary__"):
        return rest * exp((1 - rest) / rest * log(1 - rest)) * initial
    b, a = np.broadcast_arrays(np.asarray(rest, dtype=float), miss_probability(alpha, steps))
    safe = np.maximum(b, np.finfo(float).tiny)
    # log(1 − b) loses its digits near b = 0, log a near a = 0, where a·log a must be 0
    entropy = np.where(a < 0.5, special.xlogy(a, a), special.xlog1py(a, -np.minimum(b, 0.5)))
    return (b * np.exp(entropy / safe) * initial)[()]


def _geometric(rate: Any, steps: Any) -> Any:
    """(1 − (1−r)^k)/r, which is k at r = 0 (α^T underflows at long horizons)."""
    if is_exact(rate) or hasattr(rate, "__elementary__"):
        return miss_probability(rate, steps) / rate
    r, k = np.broadcast_arrays(np.asarray(rate, dtype=float), np.asarray(steps, dtype=float))
    safe = np.where(r > 0, r, 1.0)
    return np.where(r > 0, miss_probability(safe, k) / safe, k)[()]


@bound(
    "topd.thm4.4/state",
    "Contraction, per state",
    "(1−α)^k d₀ + e(1−(1−α)^k)/α",
    target="distance",
    sharpness="tight",
    assumptions=("distance taken state by state, fixed weights",),
)
def contraction_state(alpha: Any, steps: Any, initial: Any = 2, step_error: Any = 0) -> Any:
    """The sequence-level law, for sup_s ‖π(·|s) − π*(·|s)‖₁ or any fixed weighting of states under token-
    level mixing.
    """
    return contraction_sequence(alpha, steps, initial, step_error)
