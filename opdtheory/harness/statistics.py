"""What is said of two policies from per-token arrays: metrics, sampled estimators, masks.

Responses carry weights, so that the same lines serve a sample (equal weights) and the exact law of a tabular
policy (every response, weighted with its probability). Arrays are (B, T): ``response_mask``, the rollout
policy's ``rollout_log_probs`` and the trainer's ``log_probs`` of the drawn tokens, and under the names of
``NAMES`` the exact divergences of each visited context; ``weight`` is (B,).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from .. import divergences, masks

NAMES = {
    "tv": "tv",
    "kl_pq": "kl_rollout_train",
    "kl_qp": "kl_train_rollout",
    "chi2_qp": "chi2_train_rollout",
    "jsd": "jsd",
    "hellinger2": "hellinger2",
}
"""Statistic of ``compare`` → metric name."""

Arrays = Mapping[str, np.ndarray]


def token_weights(arrays: Arrays) -> np.ndarray:
    """The weight (B, T) of each response token; they sum to one."""
    mask = arrays["response_mask"] > 0
    weight = arrays.get("weight", np.ones(len(mask)))[:, None] * mask
    return np.asarray(weight / weight.sum())


def log_ratios(arrays: Arrays) -> np.ndarray:
    """log π/μ (B, T) of the drawn tokens, 0 outside the responses."""
    mask = arrays["response_mask"] > 0
    return np.where(mask, arrays["log_probs"] - arrays["rollout_log_probs"], 0.0)


def metrics(arrays: Arrays) -> dict[str, float]:
    """Means over tokens, maxima over visited contexts, and means over sequences of sums."""
    mask, weight, ell = arrays["response_mask"] > 0, token_weights(arrays), log_ratios(arrays)
    per_sequence = arrays.get("weight", np.ones(len(mask)))
    found = {
        "log_ratio_abs/mean": float((weight * np.abs(ell)).sum()),
        "log_ratio_abs/max": float(np.abs(ell[mask]).max()),
        "log_ratio_vocabulary/max": float(arrays["max_log_ratio"][mask].max()),
    }
    for name in NAMES.values():
        values = np.where(mask, arrays[name], 0.0)
        found |= {
            f"{name}/mean": float(values[mask] @ weight[mask]),
            f"{name}/max": float(arrays[name][mask].max()),
            f"{name}/seq_sum_mean": float(np.average(values.sum(-1), weights=per_sequence)),
        }
    return found


def estimators(arrays: Arrays) -> dict[str, dict[str, float]]:
    """Sample mean of each estimator with its standard error, beside the exact value at the same contexts.

    k1, k2 and k3 estimate KL(μ‖π); ``expected`` is what their mean really tends to, which differs for k2 and,
    where μ lacks some of π's support, for k3.
    """
    mask, weight, ell = arrays["response_mask"] > 0, token_weights(arrays), log_ratios(arrays)
    w, ratio = weight[mask], np.exp(ell[mask])
    kl, mass = (float(arrays[name][mask] @ w) for name in ("kl_rollout_train", "mean_ratio"))
    exact = {"k1": (kl, kl), "k2": (kl, None), "k3": (kl, kl + mass - 1), "mean ratio": (1.0, mass)}
    values = {
        "k1": divergences.k1(ratio),
        "k2": divergences.k2(ratio),
        "k3": divergences.k3(ratio),
        "mean ratio": ratio,
    }
    found = {}
    for name, x in values.items():
        mean = float(x @ w)
        # the plug-in error of a weighted mean; for equal weights that of n independent values
        error = float(np.sqrt((w**2 * (x - mean) ** 2).sum() * len(w) / max(len(w) - 1, 1)))
        target, expected = exact[name]
        found[name] = {"mean": mean, "standard_error": error, "exact": target}
        if expected is not None:
            found[name]["expected"] = expected
    return found


def mask_rates(arrays: Arrays) -> dict[str, dict[str, float]]:
    """The share of tokens and sequences that each mask keeps, for advantages of either sign."""
    mask, pi, mu = arrays["response_mask"] > 0, arrays["log_probs"], arrays["rollout_log_probs"]
    kl, tv = arrays["kl_rollout_train"], arrays["tv"]
    kept: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "ppo 0.2": lambda a: masks.ppo(pi, mu, a, mask),
        "dppo binary TV 0.15": lambda a: masks.method_mask("dppo_binary_tv", pi, mu, a, mask),
        "dppo binary KL 0.05": lambda a: masks.method_mask("dppo_binary_kl", pi, mu, a, mask),
        "dppo exact TV 0.15": lambda a: masks.dppo(pi, mu, a, tv, mask, delta=0.15),
        "dppo exact KL 0.05": lambda a: masks.dppo(pi, mu, a, kl, mask, delta=0.05),
        "icepop": lambda _: masks.icepop(pi, mu, mask),
        "opsm 0.5": lambda a: masks.opsm(pi, mu, a, mask),
        "opsm 1e-4": lambda a: masks.opsm(pi, mu, a, mask, delta=1e-4),
        "trm sampled 0.05": lambda _: masks.trm(pi, mu, mask, delta_max=0.05)[:, None] & mask,
        "trm sampled k3 0.002": lambda _: masks.trm(pi, mu, mask, delta_avg=0.002)[:, None] & mask,
        "trm exact KL 0.05": lambda _: masks.trm_from_divergence(kl, mask, delta_max=0.05)[:, None] & mask,
    }
    weight, per_sequence = token_weights(arrays), arrays.get("weight", np.ones(len(mask)))
    rates = {}
    for name, f in kept.items():
        both = [np.broadcast_to(f(np.full(mask.shape, sign)), mask.shape) for sign in (1.0, -1.0)]
        whole = [np.all(k | ~mask, axis=-1) for k in both]
        rates[name] = {
            "tokens_kept_positive": float((both[0] * weight).sum()),
            "tokens_kept_negative": float((both[1] * weight).sum()),
            "sequences_kept": float(np.average(whole[0] & whole[1], weights=per_sequence)),
        }
    return rates
