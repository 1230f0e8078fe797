"""What samples of one policy certify about another: a finite-sample bound with nothing unseen left open.

Responses y come from μ (the true sampler: temperature, top-p and all) together with log W = log
π(y)/μ(y) of the whole response and a reward in a known range.  Each certificate is the mean of a
bounded variable that lies on the safe side of the wanted quantity, plus a confidence bound on that
mean:

* TV_seq = E_μ(1 − W)₊, an identity;
* J(π) − lo ≥ E_μ[min(W, c)(R − lo)], which costs only the mass where W > c;
* J(π) − J(μ) ≥ E_μ[(min(W, c) − 1)(R − lo)], the same for the improvement, with less variance;
* J(π) − J(μ) ≥ E_μ[(R − lo)·clip(log W, −1, log c)], tangent at π = μ;
* J(π) − J(μ) ≥ E_μ[M(R − lo) min(log W, log c)] − E_μ[(1 − M)(R − lo)] for a mask M, because per token
  (ρ − 1) − k3(ρ) = log ρ.

The other side of each follows from the cost hi − R.  Valid if the prompts are independent, π was chosen
without looking at these samples, and cap, floor and mask rules were fixed beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from opdtheory.confidence.intervals import METHODS, Interval, Side, group_means, interval
from opdtheory.elementary import exp, expm1, log, maximum, minimum


@dataclass(frozen=True)
class Certificate:
    """A statement that holds with the given confidence: the quantity lies in [lower, upper]."""

    name: str
    quantity: str
    method: str
    confidence: float
    lower: float
    upper: float
    estimate: float
    samples: int
    anytime: bool

    def to_dict(self) -> dict[str, Any]:
        """The fields as a plain dictionary."""
        return asdict(self)


def tv_values(log_w: Any) -> Any:
    """(1 − W)₊, whose mean under μ is the TV of the two laws of whole responses; in [0, 1]."""
    return -expm1(minimum(log_w, 0))


def truncated_values(log_w: Any, gain: Any, cap: Any) -> Any:
    """min(W, c)·G for a gain G ≥ 0; its mean is at most E_π[G], values in [0, c·max G]."""
    return exp(minimum(log_w, log(cap))) * gain


def truncated_change_values(log_w: Any, gain: Any, cap: Any) -> Any:
    """(min(W, c) − 1)·G; its mean is at most E_π[G] − E_μ[G], values in [−max G, (c − 1)·max G]."""
    return (exp(minimum(log_w, log(cap))) - 1) * gain


def log_change_values(log_w: Any, gain: Any, cap: Any) -> Any:
    """G·clip(log W, −1, log c); its mean is at most E_π[G] − E_μ[G], values in [−max G, log c·max G]."""
    return gain * minimum(maximum(log_w, -1), log(cap))


def masked_change_values(log_w: Any, gain: Any, mask: Any, cap: Any, floor: Any) -> Any:
    """M·G·min(log W, log c) − (1 − M)·G; responses with log W < −floor are masked too.

    Its mean is at most E_π[G] − E_μ[G]; values in [−max(1, floor)·max G, log c·max G].
    """
    kept = np.where(np.asarray(log_w, dtype=float) >= -floor, mask, 0.0)
    return kept * gain * minimum(maximum(log_w, -floor), log(cap)) - (1 - kept) * gain


def certify(
    log_w: Any,
    rewards: Any = None,
    *,
    reward_range: tuple[float, float] = (0.0, 1.0),
    groups: Any = None,
    method: str = "betting",
    confidence: float = 0.95,
    side: Side = "two-sided",
    cap: float = 2.0,
    floor: float = 1.0,
    mask: Any = None,
    anytime: bool = False,
) -> list[Certificate]:
    """Every certificate the samples allow, each at the stated confidence (not jointly).

    Args:
        log_w: log ratio log π(y)/μ(y) of each response, shape (N,); −inf where π(y) = 0.
        rewards: rewards, shape (N,); without them only TV_seq is certified.
        reward_range: smallest and largest possible reward.
        groups: prompt of each response, shape (N,); responses to one prompt are averaged.  None: all
            independent.
        method: ``betting``, ``empirical_bernstein`` or ``hoeffding``.
        side: which side gets the error probability.
        cap: weights are cut at this value, at least 1.
        floor: the masked certificate drops responses with log W below −floor.
        mask: weight in [0, 1] of each response in the masked certificate, shape (N,).
        anytime: spread the bets over all sample sizes, so that each certificate holds after every batch at
            once; only ``betting`` can.

    Raises:
        ValueError: shapes, ranges or parameters that do not fit.

    >>> log_w = np.log([0.9, 1.1] * 200)
    >>> [c.name for c in certify(log_w, [1.0, 0.0] * 200)]
    ['tv_seq', 'return_truncated', 'improvement_truncated', 'improvement_log', 'improvement_masked']
    """
    log_w = _weights(log_w)
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}, expected one of {', '.join(METHODS)}")

    if anytime and method != "betting":
        raise ValueError(
            f"anytime: got method {method!r}, expected betting, the only one that holds at all times"
        )
    if groups is not None and len(np.unique(groups)) < 2:
        raise ValueError(
            "groups: got a single prompt, expected at least 2: only prompts are independent of each other"
        )
    options: dict[str, Any] = {"planned": not anytime} if method == "betting" else {}

    def bound(values: Any, limits: tuple[float, float], level: float, toward: Side) -> Interval:
        z = np.asarray(values) if groups is None else group_means(values, groups)
        return interval(z, method, confidence=level, bounds=limits, side=toward, **options)

    def certificate(
        name: str, quantity: str, lower: Any, upper: Any, found: Interval, base: float
    ) -> Certificate:
        ends = (float(lower), float(upper), base + float(found.mean))
        return Certificate(name, quantity, method, confidence, *ends, found.samples, found.anytime)

    tv = bound(tv_values(log_w), (0.0, 1.0), confidence, side)
    out = [certificate("tv_seq", "TV of the laws of whole responses", tv.lower, tv.upper, tv, 0.0)]
    if rewards is None:
        return out
    lo, hi = (float(x) for x in reward_range)
    gain, span, mask = _checked(log_w, rewards, lo, hi, cap, floor, mask)
    families: dict[str, Callable[[Any], Any]] = {
        "return_truncated": lambda g: truncated_values(log_w, g, cap),
        "improvement_truncated": lambda g: truncated_change_values(log_w, g, cap),
        "improvement_log": lambda g: log_change_values(log_w, g, cap),
        "improvement_masked": lambda g: masked_change_values(log_w, g, mask, cap, floor),
    }
    limits = value_ranges(span, cap, floor)
    share = (1 - confidence) / (2 if side == "two-sided" else 1)
    for name, values in families.items():
        from_gain = bound(values(gain), limits[name], 1 - share, "lower")
        from_cost = bound(values(span - gain), limits[name], 1 - share, "lower")
        of_return = name == "return_truncated"
        quantity, first, last = ("J(π)", lo, hi) if of_return else (_CHANGE, -span, span)
        base, top = (lo, hi) if of_return else (0.0, 0.0)
        lower = max(first, base + float(from_gain.lower)) if side != "upper" else first
        upper = min(last, top - float(from_cost.lower)) if side != "lower" else last
        out.append(certificate(name, quantity, lower, upper, from_gain, base))
    return out


def value_ranges(span: float = 1.0, cap: float = 2.0, floor: float = 1.0) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of each certified variable for gains in [0, ``span``], by certificate.

    >>> value_ranges(cap=3.0)["improvement_truncated"]
    (-1.0, 2.0)
    """
    log_cap = math.log(cap)
    return {
        "tv_seq": (0.0, 1.0),
        "return_truncated": (0.0, cap * span),
        "improvement_truncated": (-span, (cap - 1) * span),
        "improvement_log": (-span, log_cap * span),
        "improvement_masked": (-max(1.0, floor) * span, log_cap * span),
    }


_CHANGE = "J(π) − J(μ)"


def _weights(log_w: Any) -> np.ndarray:
    log_w = np.asarray(log_w, dtype=float)
    if log_w.ndim != 1 or len(log_w) < 2:
        raise ValueError(
            f"log_w: got shape {log_w.shape}, expected one log ratio for each of at least 2 responses"
        )
    if np.isnan(log_w).any() or np.isposinf(log_w).any():
        raise ValueError("log_w: got NaN or +inf, expected log π(y)/μ(y) of responses that μ can generate")
    return log_w


def _checked(
    log_w: np.ndarray, rewards: Any, lo: float, hi: float, cap: float, floor: float, mask: Any
) -> tuple[np.ndarray, float, np.ndarray]:
    """Gains R − lo, the span and the mask, or the reason why they do not fit."""
    rewards = np.asarray(rewards, dtype=float)
    mask = np.ones_like(log_w) if mask is None else np.asarray(mask, dtype=float)
    for name, x in (("rewards", rewards), ("mask", mask)):
        if x.shape != log_w.shape:
            raise ValueError(f"{name}: got shape {x.shape}, expected {log_w.shape}, one for each response")
    if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
        raise ValueError(f"reward_range: got {(lo, hi)!r}, expected two finite numbers, the smaller first")
    if not ((rewards >= lo) & (rewards <= hi)).all():
        bad = rewards[~((rewards >= lo) & (rewards <= hi))][0]
        raise ValueError(f"rewards: got {bad!r}, expected values in the reward range [{lo:g}, {hi:g}]")
    if not ((mask >= 0) & (mask <= 1)).all():
        raise ValueError("mask: expected weights in [0, 1]")
    if not 1 <= cap < math.inf:
        raise ValueError(f"cap: got {cap!r}, expected a finite number of at least 1")
    if not 0 <= floor < math.inf:
        raise ValueError(f"floor: got {floor!r}, expected a finite number of at least 0")
    return rewards - lo, hi - lo, mask
