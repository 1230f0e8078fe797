"""The ``rollout_corr/*`` metrics under verl's names and formulas, from mergeable series.

ℓ = old − rollout per token, ρ = e^ℓ; weights are formed from ℓ clamped to ±20, KL and perplexities from ℓ
as it is. An empty sequence counts with mean log-probability 0, as it does there.  Read from verl 0.9.1,
``trainer/ppo/rollout_corr_helper.py``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from opdtheory import divergences
from opdtheory.audit.batch import Batch
from opdtheory.audit.sampled import Drawn

if TYPE_CHECKING:
    from opdtheory.audit.state import State

CLAMP = 20.0


def accumulate(state: State, batch: Batch, drawn: Drawn, threshold: float, sequence_level: bool) -> None:
    """Add one batch to the series that ``metrics`` reads."""
    ok = drawn.usable & np.isfinite(drawn.ell)
    ell = np.where(ok, drawn.ell, 0.0)
    counts = batch.sums(ok.astype(float)) + 1e-8
    train = batch.sums(np.where(ok, drawn.policy, 0.0)) / counts
    rollout = batch.sums(np.where(ok, drawn.behaviour, 0.0)) / counts
    total = batch.sums(ell)
    with np.errstate(over="ignore"):
        raw_token = np.exp(np.clip(ell, -CLAMP, CLAMP))
        state.add_tokens(
            {
                "rc/kl": -ell[ok],
                "rc/k3_kl": divergences.k3_from_log_ratio(ell[ok]),
                "rc/rho2": raw_token[ok] ** 2,
            }
        )
        raw = np.exp(np.clip(total, -CLAMP, CLAMP))[batch.sequence_of] if sequence_level else raw_token
        state.add_sequences(
            {
                "rc/training_ppl": np.exp(-train),
                "rc/training_log_ppl": -train,
                "rc/rollout_ppl": np.exp(-rollout),
                "rc/rollout_log_ppl": -rollout,
                "rc/log_ppl_diff": rollout - train,
                "rc/log_ppl_abs_diff": np.abs(rollout - train),
                "rc/ppl_ratio": np.exp(rollout - train),
                "rc/rho2_seq": np.exp(2 * np.clip(total, -CLAMP, CLAMP)),
            }
        )
    weight = np.minimum(raw, threshold)
    low = 1 / threshold
    state.add_tokens({"rc/is": weight[ok]})
    if sequence_level:
        state.add_sequences(
            {
                "rc/is_high": (total > math.log(threshold)).astype(float),
                "rc/is_low": (total < math.log(low)).astype(float),
                "rc/is_log": total,
            }
        )
    else:
        state.add_tokens(
            {"rc/is_high": (raw[ok] > threshold).astype(float), "rc/is_low": (raw[ok] < low).astype(float)}
        )
    per_seq = batch.sums(np.where(ok, weight, 0.0)) / counts
    per_seq_raw = batch.sums(np.where(ok, raw, 0.0)) / counts
    state.add_sequences(
        {
            "rc/is_seq": per_seq,
            "rc/is_seq_dev": np.abs(per_seq - 1),
            "rc/is_seq_high": (per_seq_raw > threshold).astype(float),
            "rc/is_seq_low": (per_seq_raw < low).astype(float),
        }
    )


def metrics(state: State, sequence_level: bool) -> dict[str, float]:
    """All ``rollout_corr/*`` values; empty if the two policies were not both recorded."""
    if "rc/kl" not in state.tokens or not state.tokens["rc/kl"].count:
        return {}
    t, s = state.tokens, state.sequences
    names = (
        "training_ppl",
        "training_log_ppl",
        "rollout_ppl",
        "rollout_log_ppl",
        "log_ppl_diff",
        "log_ppl_abs_diff",
        "ppl_ratio",
    )
    out = {name: s[f"rc/{name}"].mean for name in names}
    out |= {
        "kl": t["rc/kl"].mean,
        "k3_kl": t["rc/k3_kl"].mean,
        "log_ppl_diff_max": s["rc/log_ppl_diff"].largest,
        "log_ppl_diff_min": s["rc/log_ppl_diff"].least,
        "chi2_token": t["rc/rho2"].mean - 1,
        "chi2_seq": s["rc/rho2_seq"].mean - 1,
    }
    weight = t["rc/is"]
    square = weight.squares.value / weight.count
    sides = s if sequence_level else t
    out |= {
        "rollout_is_mean": weight.mean,
        "rollout_is_max": math.exp(min(s["rc/is_log"].largest, CLAMP)) if sequence_level else weight.largest,
        "rollout_is_min": math.exp(s["rc/is_log"].least) if sequence_level else weight.least,
        "rollout_is_std": math.sqrt(max(0.0, square - weight.mean**2)) if weight.count > 1 else 0.0,
        "rollout_is_ratio_fraction_high": sides["rc/is_high"].mean,
        "rollout_is_ratio_fraction_low": sides["rc/is_low"].mean,
        "rollout_is_eff_sample_size": (weight.mean + 1e-8) ** 2 / square,
        "rollout_is_seq_mean": s["rc/is_seq"].mean,
        "rollout_is_seq_std": math.sqrt(s["rc/is_seq"].variance(ddof=1)),
        "rollout_is_seq_max": s["rc/is_seq"].largest,
        "rollout_is_seq_min": s["rc/is_seq"].least,
        "rollout_is_seq_max_deviation": s["rc/is_seq_dev"].largest,
        "rollout_is_seq_fraction_high": s["rc/is_seq_high"].mean,
        "rollout_is_seq_fraction_low": s["rc/is_seq_low"].mean,
    }
    return {f"rollout_corr/{name}": value for name, value in out.items()}


REJECTION_THRESHOLDS: dict[str, tuple[float, float]] = {
    "token_k1": (0.5, 2.0),
    "token_k2": (0.0, 0.1),
    "token_k3": (0.0, 0.1),
    "seq_sum_k1": (0.5, 2.0),
    "seq_sum_k2": (0.0, 0.1),
    "seq_sum_k3": (0.0, 0.1),
    "seq_mean_k1": (0.99, 1.01),
    "seq_mean_k2": (0.0, 0.01),
    "seq_mean_k3": (0.0, 0.01),
    "seq_max_k2": (0.0, 0.1),
    "seq_max_k3": (0.0, 0.1),
}
"""Rejection options and the thresholds used when none are given: (lower, upper); ratio bounds for k1."""


def rejection(batch: Batch, drawn: Drawn, option: str, low: float, high: float) -> np.ndarray:
    """Tokens (N,) that a rejection option keeps.  k1 = −ℓ is compared with log bounds, so they bound 1/ρ,
    not ρ.
    """
    if option not in REJECTION_THRESHOLDS:
        raise ValueError(
            f"rejection option: got {option!r}, expected one of {', '.join(REJECTION_THRESHOLDS)}"
        )
    level, kind = option.rsplit("_", 1)
    ell = np.clip(drawn.ell, -CLAMP, CLAMP)
    statistic = {"k1": -ell, "k2": ell**2 / 2, "k3": np.exp(ell) - 1 - ell}[kind]
    if level != "token":
        total = batch.sums(statistic)
        whole = batch.maxima(statistic, 0.0) if level == "seq_max" else total
        if level == "seq_mean":
            whole = total / (batch.lengths + 1e-8)
        statistic = whole[batch.sequence_of]
    if kind == "k1":
        return (statistic >= math.log(low)) & (statistic <= math.log(high))
    return statistic <= high
