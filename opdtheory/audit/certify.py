"""Finite-sample certificates from rewards and sequence weights; no context that was not visited is needed.

The bounded variables are those of ``opdtheory.confidence``; here they arrive as sums per prompt, so that
logs of any size stream through.  The independent units are prompts: values are averaged inside a prompt
first.  Every certificate assumes that prompts were drawn independently, that the trained policy was chosen
without these samples, that the rollout log-probabilities are those of the sampler that drew the tokens, and
that rewards stay in the stated range; the upper ends and ``tv_seq`` also need supp π ⊆ supp μ.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from opdtheory import confidence
from opdtheory.audit.settings import Settings
from opdtheory.audit.state import State


def certificates(state: State, settings: Settings) -> list[dict[str, Any]]:
    """All certificates the data supports, each by every method; at least two prompts are needed."""
    complete = state.groups.column("complete")
    used = complete > 0
    if used.sum() < 2:
        return []
    # prompts are ordered by a hash of their names: an order that the values cannot influence, for betting
    values = state.groups.column("cert:tv_seq")[used] / complete[used]
    out = [
        _interval("tv_seq", "TV of the two laws of whole responses", values, method, settings)
        for method in confidence.METHODS
    ]
    counted = state.groups.column("certified")
    used = counted > 0
    if settings.reward_range is None or used.sum() < 2 or state.groups.column("cert:outside").any():
        return out
    low, high = settings.reward_range
    span, cap = high - low, settings.ratio_cap

    def mean(name: str) -> np.ndarray:
        return state.groups.column(f"cert:{name}")[used] / counted[used]

    for method in confidence.METHODS:
        found = confidence.interval(mean("reward"), method, confidence=settings.confidence)
        entry = _entry(
            "return_behavior",
            "J(μ)",
            method,
            settings,
            low + span * float(found.lower),
            low + span * float(found.upper),
            low + span * float(found.mean),
            found.samples,
        )
        out.append(entry)
    families = (
        ("return_truncated", "J(π)", 0.0, cap, low, high),
        ("improvement_truncated", "J(π) − J(μ)", -1.0, cap - 1, 0.0, 0.0),
        ("improvement_log", "J(π) − J(μ)", -1.0, math.log(cap), 0.0, 0.0),
        (
            "improvement_masked",
            f"J(π) − J(μ), tokens kept while Σk3 ≤ {settings.k3_mask:g}",
            -1.0,
            math.log(cap),
            0.0,
            0.0,
        ),
    )
    # half of the error probability for each side
    level = (1 + settings.confidence) / 2
    for name, quantity, least, most, base, top in families:
        for method in confidence.METHODS:
            gain, cost = (
                confidence.interval(
                    mean(f"{name}/{side}"), method, confidence=level, bounds=(least, most), side="lower"
                )
                for side in ("gain", "cost")
            )
            first, last = (low, high) if name.startswith("return") else (-span, span)
            lower = max(first, base + span * float(gain.lower))
            upper = min(last, top - span * float(cost.lower))
            out.append(
                _entry(
                    name,
                    quantity,
                    method,
                    settings,
                    lower,
                    upper,
                    base + span * float(gain.mean),
                    gain.samples,
                )
            )
    return out


def _interval(
    name: str, quantity: str, values: np.ndarray, method: str, settings: Settings
) -> dict[str, Any]:
    found = confidence.interval(values, method, confidence=settings.confidence)
    return _entry(
        name,
        quantity,
        method,
        settings,
        float(found.lower),
        float(found.upper),
        float(found.mean),
        found.samples,
    )


def _entry(
    name: str,
    quantity: str,
    method: str,
    settings: Settings,
    lower: float,
    upper: float,
    estimate: float,
    prompts: int,
) -> dict[str, Any]:
    return {
        "name": name,
        "quantity": quantity,
        "method": method,
        "confidence": settings.confidence,
        "lower": lower,
        "upper": upper,
        "estimate": estimate,
        "prompts": prompts,
        "improves": lower > 0 if name.startswith("improvement") else None,
    }
