"""Finite-sample certificates from rewards and sequence weights; no context that was not visited is needed.

The independent units are prompts: values are averaged inside a prompt first.  Every certificate assumes that the
prompts were drawn independently, that the trained policy does not depend on these samples, that the rollout
log-probabilities are those of the sampler that drew the tokens, that supp π ⊆ supp μ where an upper end or an
equality is used, and that rewards stay in the stated range.

With R scaled to [0, 1] and W = ∏π/μ the quantities are: (1 − W)₊, whose mean is TV of the two response laws;
min(W, c)·R, whose mean is at most J(π); R·max(log W, −1) and, for a mask M, M·R·log W − (1−M)·R, whose means are at
most J(π) − J(μ).  Clipping them further from above keeps a lower bound a lower bound.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from opdtheory import confidence
from opdtheory.audit.settings import Settings
from opdtheory.audit.state import State

METHODS = ("hoeffding", "empirical_bernstein", "betting")


def certificates(state: State, settings: Settings) -> list[dict[str, Any]]:
    """All certificates the data supports, by every method; needs at least two prompts."""
    complete = state.groups.column("complete")
    if (complete > 0).sum() < 2:
        return []
    out: list[dict[str, Any]] = []
    # the order of prompts must not depend on their values for the betting bound: keys are hashes of names
    used = complete > 0
    tv = state.groups.column("cert:tv_seq")[used] / complete[used]
    _add(out, "tv_seq", "TV between the two laws of whole responses", tv, (0.0, 1.0), settings, "two-sided", 1.0, 0.0)
    if settings.reward_range is None or "certified" not in state.groups.names:
        return out
    counted = state.groups.column("certified")
    used = counted > 0
    if used.sum() < 2 or state.groups.column("cert:outside").any():
        return out
    low, high = settings.reward_range
    span, cap = high - low, settings.ratio_cap

    def mean(name: str) -> np.ndarray:
        return state.groups.column(f"cert:{name}")[used] / counted[used]

    _add(out, "reward_behavior", "J(μ), the rollout policy's mean reward", mean("reward"), (0.0, 1.0), settings, "two-sided", span, low)
    _add(out, "reward_target/truncated", f"J(π) ≥ E[min(W, {cap:g})·R]", mean("truncated"), (0.0, cap), settings, "lower", span, low, ceiling=high)
    _add(out, "improvement/truncated", f"J(π) − J(μ) ≥ E[(min(W, {cap:g}) − 1)·R]", mean("improvement"), (-1.0, max(cap - 1.0, 0.0)), settings, "lower", span, 0.0)
    _add(out, "improvement/log_w", "J(π) − J(μ) ≥ E[R·max(log W, −1)]", mean("log_w"), (-1.0, 1.0), settings, "lower", span, 0.0)
    text = f"J(π) − J(μ) ≥ E[M·R·log W] − E[(1−M)·R], M: Σk3 ≤ {settings.k3_mask:g} and |log W| ≤ 1"
    _add(out, "improvement/masked", text, mean("masked"), (-1.0, 1.0), settings, "lower", span, 0.0)
    return out


def _add(
    out: list[dict[str, Any]], name: str, statement: str, values: np.ndarray, ends: tuple[float, float],
    settings: Settings, side: str, scale: float, shift: float, ceiling: float | None = None,
) -> None:  # fmt: skip
    for method in METHODS:
        found = confidence.interval(values, method, confidence=settings.confidence, bounds=ends, side=side)
        lower = shift + scale * float(found.lower)
        upper = shift + scale * float(found.upper) if side == "two-sided" else ceiling
        out.append({
            "name": name, "statement": statement, "method": method, "confidence": settings.confidence, "lower": lower,
            "upper": upper, "mean": shift + scale * float(found.mean), "prompts": len(values),
            "improves": bool(lower > 0) if name.startswith("improvement") else None,
        })  # fmt: skip
