"""From two policies' measured divergences and a reward to everything the theory says about the step between
them.

Expectations are sample means over the rollout policy's own responses, with standard errors over prompts;
divergences at each visited context are exact. A maximum over all contexts cannot be known from visited ones,
so bounds that need one are evaluated at the visited maximum and marked as lower values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import calculator, confidence, divergences, masks
from ..quantities import QUANTITIES

MAXIMA = ("tv_max", "kl_max", "reverse_kl_max", "chi2_max", "hellinger2_max")
TARGETS = ("surrogate_error", "improvement", "improvement_lower", "improvement_upper")
"""What a bound may speak of: |ΔJ − L|, |ΔJ|, or ΔJ from below or above."""


def clustered(values: np.ndarray, group: np.ndarray) -> tuple[float, float]:
    """Mean of ``values`` (B,) over prompts and its standard error, prompts being the independent units.

    >>> clustered(np.array([0.0, 2.0, 4.0, 6.0]), np.array([0, 0, 1, 1]))
    (3.0, 2.0)
    """
    labels, inverse = np.unique(group, return_inverse=True)
    means = np.bincount(inverse, values) / np.bincount(inverse)
    if len(labels) < 2 or not np.isfinite(means).all():
        return float(means.mean()), float("inf")
    return float(means.mean()), float(means.std(ddof=1) / np.sqrt(len(labels)))


def accepted(arrays: Mapping[str, np.ndarray], threshold: float) -> np.ndarray:
    """1.0 for responses (B,) whose every visited context has KL(μ‖π) up to ``threshold``: the mask of the
    masked bounds.
    """
    kept = masks.trm_from_divergence(arrays["kl"], arrays["mask"], delta_max=threshold)
    return np.asarray(kept, dtype=float)


def sequence_terms(
    arrays: Mapping[str, np.ndarray], rewards: np.ndarray, group: np.ndarray, kept: np.ndarray
) -> dict[str, np.ndarray]:
    """Per-sequence terms (B,) whose expectations under the rollout policy are the calculator's quantities.

    ``arrays``: ``mask``, ``log_mu``, ``log_pi`` and the exact per-context ``tv``, ``kl`` (μ‖π),
    ``reverse_kl``, ``chi2`` (π‖μ), all (B, T); ``kept`` (B,) is the mask of the masked bound. The surrogate
    is centred by the mean reward of the *other* prompts, which leaves it unbiased.
    """
    mask = arrays["mask"].astype(bool)
    log_ratio = np.where(mask, arrays["log_pi"] - arrays["log_mu"], 0.0)
    log_w = log_ratio.sum(1)
    drift = np.expm1(log_ratio).sum(1)
    k3 = divergences.k3_from_log_ratio(log_ratio).sum(1)
    before = np.exp(np.cumsum(log_ratio, 1) - log_ratio)
    # χ² is inf where μ was truncated; a weight that has not moved yet still counts nothing
    moved = mask & (before != 1)
    return {
        "reward": rewards,
        "kl_seq": np.where(mask, arrays["kl"], 0.0).sum(1),
        "reverse_kl_sum": np.where(mask, arrays["reverse_kl"], 0.0).sum(1),
        "tv_sum": np.where(mask, arrays["tv"], 0.0).sum(1),
        "ratio_martingale": np.where(moved, (before - 1) ** 2 * np.where(moved, arrays["chi2"], 0.0), 0.0).sum(1),
        "surrogate": (rewards - others_mean(rewards, group)) * drift,
        "improvement_weighted": rewards * np.expm1(log_w),
        "reward_log_w": rewards * log_w,
        "cost_log_w": (1 - rewards) * log_w,
        "reward_floor_log_w": rewards * np.maximum(log_w, -1.0),
        "masked_surrogate": kept * rewards * drift,
        "masked_k3": kept * rewards * k3,
        "masked_reward_lost": (1 - kept) * rewards,
        "tv_seq": np.maximum(0.0, -np.expm1(log_w)),
    }


def others_mean(rewards: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The mean reward of the sequences of all other prompts, 0 if there is only one prompt."""
    labels, inverse = np.unique(group, return_inverse=True)
    sums, counts = np.bincount(inverse, rewards), np.bincount(inverse)
    if len(labels) < 2:
        return np.zeros_like(rewards)
    return ((sums.sum() - sums) / (counts.sum() - counts))[inverse]


def evidence(
    arrays: Mapping[str, np.ndarray],
    rewards: np.ndarray,
    group: np.ndarray,
    horizon: int,
    kl_threshold: float = 0.05,
) -> dict[str, Any]:
    """Quantities with standard errors, every bound that follows, and certificates at 95 %, for rewards in [0,
    1].

    ``group`` (B,) names the prompts, which are the independent units; ``kl_threshold`` defines the mask of
    the masked bounds.
    """
    mask = arrays["mask"].astype(bool)
    kept = accepted(arrays, kl_threshold)
    terms = sequence_terms(arrays, rewards, group, kept)
    means = {name: clustered(values, group) for name, values in terms.items()}
    log_w = np.where(mask, arrays["log_pi"] - arrays["log_mu"], 0.0).sum(1)
    maxima = {
        "tv_max": arrays["tv"][mask].max(),
        "kl_max": arrays["kl"][mask].max(),
        "reverse_kl_max": arrays["reverse_kl"][mask].max(),
        "chi2_max": arrays["chi2"][mask].max(),
    }
    given: dict[str, Any] = {name: value for name, (value, _) in means.items() if name in QUANTITIES}
    given |= {name: float(value) for name, value in maxima.items()}
    given |= {"horizon": horizon, "reward_sd": float(rewards.std())}
    # sample means may contradict each other by noise; only their domains are enforced
    for name in ("kl_seq", "reverse_kl_sum", "tv_sum", "tv_seq", "ratio_martingale"):
        given[name] = float(np.clip(given[name], 0.0, QUANTITIES[name].high))
    report = calculator.calculate(reward_range=(0.0, 1.0), validate=False, **given)
    return {
        "quantities": {
            **{name: {"value": v, "standard_error": e, "kind": "estimate"} for name, (v, e) in means.items()},
            **{
                name: {"value": float(v), "kind": "lower", "over": "visited contexts"}
                for name, v in maxima.items()
            },
        },
        "bounds": [
            {
                **{k: b[k] for k in ("id", "name", "target", "value", "vacuous", "scaling")},
                "kind": "lower" if set(b["needs"]) & set(MAXIMA) else "estimate",
            }
            for b in report["bounds"]
            if b["target"] in TARGETS
        ],
        "certificates": [
            c.to_dict()
            for method in ("betting", "empirical_bernstein", "hoeffding")
            for c in confidence.certify(log_w, rewards, groups=group, method=method, mask=kept)
        ]
        if len(np.unique(group)) > 1
        else [],
    }
