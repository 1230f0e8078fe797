"""Inverse problems: from a wanted guarantee to the divergence, interpolation or sample size it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from opdtheory import bounds
from opdtheory.bounds.registry import REGISTRY, UNIT_INTERVAL, Bound, largest_below
from opdtheory.confidence.certificates import value_ranges
from opdtheory.quantities import QUANTITIES, check_domain, derive


def divergence_budget(
    horizon: int, penalty: float, span: float = 1.0, given: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """The largest divergence each error bound allows if |J(π) − J(μ) − L| is to be certified at most
    ``penalty``.

    One row for each bound and each divergence it depends on, directly or through what follows from it
    (with only ``kl_max`` free, kl_seq is T·kl_max); ``given`` fixes others.  Sorted by quantity, most
    generous bound first.

    >>> rows = divergence_budget(4096, 0.1)
    >>> round(next(r for r in rows if r["id"] == "ours.s1" and r["quantity"] == "kl_seq")["budget"], 9)
    0.1
    """
    check_domain("horizon", horizon)
    if not (0 < penalty < math.inf):
        raise ValueError(f"penalty: got {penalty!r}, expected a positive number")
    if not (0 < span < math.inf):
        raise ValueError(f"span: got {span!r}, expected a positive number")
    fixed = {"horizon": horizon, "reward_span": span, "reward_size": span, **(given or {})}
    rows = []
    for bound in (b for b in REGISTRY.values() if b.target == "surrogate_error"):
        for name, spec in QUANTITIES.items():
            if not spec.divergence or name in fixed or not _suffices(bound, {**fixed, name: 0.0}, name):
                continue
            budget = _largest(bound, name, fixed, penalty, span)
            rows.append(
                {
                    "id": bound.id,
                    "name": bound.name,
                    "quantity": name,
                    "budget": budget,
                    "scaling": bound.scaling,
                }
            )
    order = list(QUANTITIES)
    return sorted(rows, key=lambda r: (order.index(r["quantity"]), -r["budget"]))


def _suffices(bound: Bound, given: Mapping[str, Any], name: str) -> bool:
    """Whether the bound follows from ``given``, and not without ``name``."""
    without, _ = derive({k: v for k, v in given.items() if k != name})
    values, _ = derive(given)
    return all(n in values for n in bound.needs) and not all(n in without for n in bound.needs)


def _largest(bound: Bound, name: str, fixed: Mapping[str, Any], level: float, span: float) -> float:
    def pair(x: float) -> tuple[float, float]:
        values, _ = derive({**fixed, name: x}, bound.needs)
        return float(bound.evaluate(values, span)), level

    return largest_below(pair, 1.0 if name in UNIT_INTERVAL else 1e12)


def steps_to_distance(rate: float, target: float, initial: float = 2.0, step_error: float = 0.0) -> float:
    """Steps until rate-contraction d ← (1 − rate)·d + e brings the distance from ``initial`` to ``target``.

    A whole number, or inf if the floor e/rate is not below the target.

    >>> steps_to_distance(0.1, 0.1)
    29.0
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate: got {rate!r}, expected a number in [0, 1]")
    if target >= initial:
        return 0.0
    floor = step_error / rate if rate > 0 else math.inf if step_error else 0.0
    # a target at the floor is approached and never reached; rounding must not hide that
    if rate == 0 or target <= floor * (1 + 1e-12):
        return math.inf
    if rate == 1:
        return 1.0
    exact = math.log((target - floor) / (initial - floor)) / math.log1p(-rate)
    return float(max(0, math.ceil(exact - 1e-12 * abs(exact))))


def token_steps_to_distance(
    alpha: float, horizon: int, target: float, initial: float = 2.0, step_error: float = 0.0
) -> float:
    """Steps of token-level mixing until whole responses are within ``target`` of the teacher's.

    Exact steps compose to one mixture of weight 1 − (1−α)^k; with errors between them only the one-step
    rate α^T is known, and the answer is usually inf.

    >>> token_steps_to_distance(0.1, 16384, 0.1)
    121.0
    """
    if step_error > 0:
        return steps_to_distance(alpha**horizon, target, initial, step_error)
    if target >= initial:
        return 0.0
    # (1−α)^k must fall to 1 − (1 − target/d₀)^{1/T}
    goal = -math.expm1(math.log1p(-target / initial) / horizon)
    return steps_to_distance(alpha, goal, 1.0)


def fewest_token_steps(alpha: float, target: float, initial: float = 2.0) -> float:
    """Exact steps of token-level mixing before which no pair of policies, at any horizon, is within ``target``.

    The inverse of ``bounds.contraction_token_floor``.

    >>> fewest_token_steps(0.1, 0.1), token_steps_to_distance(0.1, 16384, 0.1)
    (20.0, 121.0)
    """
    if target >= initial:
        return 0.0
    # the weight that k steps leave on the student is (1−α)^k, and the floor grows with it
    rest = largest_below(lambda b: (float(bounds.contraction_token_floor(1 - b, 1, initial)), target), 1.0)
    return steps_to_distance(alpha, rest, 1.0)


def distillation_plan(
    alphas: Sequence[float] | float,
    target: float,
    *,
    initial: float = 2.0,
    step_error: float = 0.0,
    horizon: int | None = None,
    vocab: int | None = None,
    score_bound: float = 1.0,
) -> list[dict[str, Any]]:
    """What each α costs and buys: steps to an L1 distance of ``target``, and the variance of one
    gradient sample.

    A row has ``steps`` (whole responses mixed, or state by state), ``steps_token`` (mixed at each
    token, enough for every pair of policies; needs ``horizon``) and ``steps_token_least`` (enough for no pair
    before; without errors), the limit e/α, K(α)·M², the printed variance bound (needs
    ``vocab``), ``cost`` = steps·K(α)·M² (samples needed for a fixed accuracy of the sum of all steps)
    and the ratio K(α)/α, variance per unit of pull.
    """
    for name, value in (("target", target), ("initial", initial)):
        if not 0 < value <= 2:
            raise ValueError(f"{name}: got {value!r}, expected an L1 distance in (0, 2]")
    check_domain("step_error", step_error)
    rows = []
    for alpha in np.atleast_1d(alphas):
        a = float(check_domain("alpha", float(alpha)))
        steps = steps_to_distance(a, target, initial, step_error)
        moment = float(bounds.topd_second_moment(a)) * score_bound**2
        row: dict[str, Any] = {
            "alpha": a,
            "steps": steps,
            "limit": float(bounds.contraction_limit(a, step_error)),
            "variance": moment,
            "cost": steps * moment,
            "variance_per_pull": moment / a,
        }
        if horizon is not None:
            length = int(check_domain("horizon", horizon))
            row["steps_token"] = token_steps_to_distance(a, length, target, initial, step_error)
            if step_error == 0:
                row["steps_token_least"] = fewest_token_steps(a, target, initial)
        if vocab is not None:
            row["variance_printed"] = float(
                bounds.topd_variance(a, check_domain("vocab", vocab), score_bound)
            )
        rows.append(row)
    return rows


def hoeffding_width(n: Any, confidence: float = 0.95, span: float = 1.0) -> Any:
    """Distance of Hoeffding's one-sided bound from the sample mean of n values in a range of length
    ``span``.
    """
    return span * np.sqrt(-math.log1p(-confidence) / (2 * np.asarray(n, dtype=float)))


def empirical_bernstein_width(n: Any, confidence: float = 0.95, span: float = 1.0, sd: float = 0.5) -> Any:
    """The same for Maurer and Pontil's empirical Bernstein bound at sample standard deviation ``sd``."""
    n, log_term = np.asarray(n, dtype=float), math.log(2 / (1 - confidence))
    return sd * np.sqrt(2 * log_term / n) + 7 * span * log_term / (3 * (n - 1))


def betting_width(n: Any, confidence: float = 0.95, span: float = 1.0, sd: float = 0.5) -> Any:
    """The leading term of the betting bound's width, σ√(2 log(1/δ)/n): asymptotic, not a guarantee."""
    return sd * np.sqrt(-2 * math.log1p(-confidence) / np.asarray(n, dtype=float))


WIDTHS: dict[str, tuple[Callable[..., Any], str]] = {
    "hoeffding": (hoeffding_width, "exact"),
    "empirical_bernstein": (empirical_bernstein_width, "exact given the sample standard deviation"),
    "betting": (betting_width, "asymptotic"),
}
"""Width functions by method, and how far they can be trusted."""


def certificate_widths(
    n: Any, confidence: float = 0.95, span: float = 1.0, sd: float = 0.5
) -> dict[str, Any]:
    """Width of each one-sided confidence bound for n independent prompts."""
    _check_sampling(confidence, span, sd)
    if np.any(np.asarray(n) < 2):
        raise ValueError(f"n: got {n!r}, expected at least 2 samples")
    return {
        m: f(n, confidence, span) if m == "hoeffding" else f(n, confidence, span, sd)
        for m, (f, _) in WIDTHS.items()
    }


def sample_sizes(
    width: float, confidence: float = 0.95, span: float = 1.0, sd: float = 0.5
) -> list[dict[str, Any]]:
    """Independent prompts needed until each one-sided bound is within ``width`` of the sample mean.

    >>> [r["samples"] for r in sample_sizes(0.05)]
    [600, 1055, 600]
    """
    _check_sampling(confidence, span, sd)
    if not 0 < width < math.inf:
        raise ValueError(f"width: got {width!r}, expected a positive number")
    rows = []
    for method, (_, trust) in WIDTHS.items():
        low, high = 1, 2
        while certificate_widths(high, confidence, span, sd)[method] > width:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (
                (low, middle)
                if certificate_widths(middle, confidence, span, sd)[method] <= width
                else (middle, high)
            )
        rows.append({"method": method, "samples": high, "trust": trust})
    return rows


def certificates_from_samples(
    n: int,
    confidence: float = 0.95,
    span: float = 1.0,
    sd: float | None = None,
    cap: float = 2.0,
    floor: float = 1.0,
) -> list[dict[str, Any]]:
    """Width of the one-sided bound of each certificate of :func:`opdtheory.confidence.certify`, by method.

    ``sd`` is the standard deviation of the certified variable; without it half of the variable's range, the worst.

    >>> certificates_from_samples(1000)[0]["width"] < certificates_from_samples(1000)[3]["width"]
    True
    """
    rows = []
    for name, (least, most) in _ranges(span, cap, floor).items():
        size = most - least
        widths = certificate_widths(n, confidence, size, size / 2 if sd is None else sd)
        rows += [
            {"certificate": name, "method": m, "width": float(w), "trust": WIDTHS[m][1]}
            for m, w in widths.items()
        ]
    return rows


def certificates_of_width(
    width: float,
    confidence: float = 0.95,
    span: float = 1.0,
    sd: float | None = None,
    cap: float = 2.0,
    floor: float = 1.0,
) -> list[dict[str, Any]]:
    """Independent prompts until the one-sided bound of each certificate is within ``width`` of the sample mean.

    >>> [r["samples"] for r in certificates_of_width(0.05) if r["certificate"] == "tv_seq"]
    [600, 1055, 600]
    """
    rows = []
    for name, (least, most) in _ranges(span, cap, floor).items():
        size = most - least
        rows += [
            {"certificate": name, **row}
            for row in sample_sizes(width, confidence, size, size / 2 if sd is None else sd)
        ]
    return rows


def _ranges(span: float, cap: float, floor: float) -> dict[str, tuple[float, float]]:
    if not 0 < span < math.inf:
        raise ValueError(f"span: got {span!r}, expected a positive number")
    if not 1 <= cap < math.inf:
        raise ValueError(f"cap: got {cap!r}, expected a finite number of at least 1")
    if not 0 <= floor < math.inf:
        raise ValueError(f"floor: got {floor!r}, expected a finite number of at least 0")
    return value_ranges(span, cap, floor)


def _check_sampling(confidence: float, span: float, sd: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: got {confidence!r}, expected a number strictly between 0 and 1")
    if not 0 < span < math.inf:
        raise ValueError(f"span: got {span!r}, expected a positive number")
    if not 0 <= sd <= span / 2:
        raise ValueError(f"sd: got {sd!r}, expected a number from 0 to half the span {span:g}")
