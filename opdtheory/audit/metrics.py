"""From a state to named numbers, each with what it is (exact, lower, upper, estimate), its interval and
population.

``exact`` speaks of the data at hand: the mean of full-vocabulary divergences over the contexts that were
visited. The interval beside it is for the expectation over fresh prompts; it is cluster-robust (prompts are
the independent units) and asymptotic.  Finite-sample statements are the certificates'.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from opdtheory.audit import rollout_corr
from opdtheory.audit.settings import Settings
from opdtheory.audit.state import State

VISITED, ALL, SAMPLED, SEQUENCES = "visited contexts", "all contexts", "sampled tokens", "sequences"
FULL = frozenset(
    {
        "kl_rollout_train",
        "kl_train_rollout",
        "tv",
        "chi2_train_rollout",
        "jsd",
        "hellinger2",
        "max_abs_log_ratio",
        "entropy_rollout",
        "entropy_train",
        "entropy_student",
        "entropy_teacher",
        "kl_student_teacher",
        "kl_teacher_student",
        "tv_student_teacher",
        "chi2_teacher_student",
        "jsd_student_teacher",
        "hellinger2_student_teacher",
        "max_abs_log_ratio_student_teacher",
        "topd_second_moment",
        "tropd_accept_exact",
    }
)
"""Known from full logits: exact in every visited context."""
PARTITION = frozenset({
    "topk_kl", "topk_tv", "topk_kl_reverse", "binary_kl", "binary_tv", "topk_kl_student_teacher",
    "topk_tv_student_teacher", "topk_kl_teacher_student",
})  # fmt: skip
"""Lower bounds of the full divergence in every visited context."""
STANDS_FOR = {
    "kl_rollout_train": "k3", "tv": "tv_sampled", "chi2_train_rollout": "chi2_sampled",
    "kl_student_teacher": "k3_student_teacher", "tv_student_teacher": "tv_sampled_student_teacher",
    "chi2_teacher_student": "chi2_sampled_student_teacher",
}  # fmt: skip
"""Without full logits the divergence is estimated by the mean of this one-sample statistic."""
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


@dataclass(frozen=True)
class Metric:
    """A number that says what it is; ``interval`` may be None, ``count`` is how many values it came from."""

    value: float
    kind: str
    over: str
    interval: tuple[float, float] | None = None
    count: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "kind": self.kind,
            "interval": None if self.interval is None else list(self.interval),
            "over": self.over,
            "count": self.count,
        }


def metrics(state: State, settings: Settings) -> dict[str, Metric]:
    """Every metric the state supports, by name."""
    out: dict[str, Metric] = {}
    for name, series in state.tokens.items():
        if series.count and not name.startswith("rc/"):
            out |= _token_metrics(state, name, settings.confidence)
    for name, source in STANDS_FOR.items():
        if name not in state.tokens and source in state.tokens and state.tokens[source].count:
            mean = out[f"{source}/mean"]
            out[f"{name}/mean"] = mean
            key = "seq_sum_k3" if source == "k3" else f"sum:{source}"
            if key in state.sequences and state.sequences[key].count:
                out[f"{name}/seq_sum_mean"] = _sequence_mean(state, key, "estimate", settings.confidence)
    for name, series in state.sequences.items():
        if not series.count or name.startswith("rc/"):
            continue
        if name.startswith("sum:"):
            base = name.removeprefix("sum:")
            kind, over = _kind(base)
            mean = _sequence_mean(state, name, kind, settings.confidence)
            out[f"{base}/seq_sum_mean"] = replace(mean, over=over)
            out[f"{base}/seq_sum_max"] = Metric(series.largest, kind, over, None, series.count)
        else:
            kind = "exact" if name in ("length", "reward") else "estimate"
            out[f"{name}/mean"] = _sequence_mean(state, name, kind, settings.confidence)
            whole = {"max": series.largest, "min": series.least}
            whole |= {q: series.quantile(x) for q, x in QUANTILES.items()}
            out |= {
                f"{name}/{k}": Metric(v, "exact", SEQUENCES, None, series.count) for k, v in whole.items()
            }
            if name in ("reward", "length"):
                out[f"{name}/std"] = Metric(
                    math.sqrt(series.variance(1)), "estimate", SEQUENCES, None, series.count
                )
    out |= _derived(state)
    for name, value in rollout_corr.metrics(state, "verl-sequence-is" in settings.compat).items():
        out[name] = Metric(
            value, "estimate", SAMPLED if "seq" not in name and "ppl" not in name else SEQUENCES
        )
    return {name: metric for name, metric in out.items() if not math.isnan(metric.value)}


def _sequence_mean(state: State, name: str, kind: str, confidence: float) -> Metric:
    """Mean over sequences, with an interval for fresh prompts where sums and counts per prompt were kept."""
    series = state.sequences[name]
    base = name.removeprefix("sum:")
    column, count = {
        "reward": ("reward", "rewarded"),
        "length": ("tokens", "sequences"),
        f"sum:{base}": (f"w:{base}", f"c:{base}"),
    }.get(name, (f"s:{name}", "complete"))
    interval = None
    if column in state.groups.names:
        sums, counts = state.groups.column(column), state.groups.column(count)
        interval = ratio_interval(sums[counts > 0], counts[counts > 0], confidence)
    return Metric(series.mean, kind, SEQUENCES, interval, series.count)


def _kind(name: str) -> tuple[str, str]:
    return (
        ("exact", VISITED)
        if name in FULL
        else ("lower", VISITED)
        if name in PARTITION
        else ("estimate", SAMPLED)
    )


def _token_metrics(state: State, name: str, confidence: float) -> dict[str, Metric]:
    series = state.tokens[name]
    kind, over = _kind(name)
    seen = "exact" if kind == "estimate" else kind
    whole = {"max": series.largest, "min": series.least}
    whole |= {q: series.quantile(x) for q, x in QUANTILES.items()}
    out = {
        f"{name}/mean": Metric(series.mean, kind, over, mean_interval(state, name, confidence), series.count)
    }
    if "advantage" in name or name in ("topd_return", "opd_reward", "topd_reward"):
        spread = math.sqrt(series.variance(1))
        out[f"{name}/std"] = Metric(spread, "estimate", over, None, series.count)
    return out | {f"{name}/{k}": Metric(v, seen, over, None, series.count) for k, v in whole.items()}


def mean_interval(state: State, name: str, confidence: float) -> tuple[float, float] | None:
    """Interval for the expectation per token over fresh prompts: a ratio of sums over prompts, linearised."""
    sums, counts = state.groups.column(f"t:{name}"), state.groups.column(f"n:{name}")
    return ratio_interval(sums[counts > 0], counts[counts > 0], confidence)


def ratio_interval(sums: np.ndarray, counts: np.ndarray, confidence: float) -> tuple[float, float] | None:
    """t interval for Σ sums / Σ counts with independent rows; None for fewer than two rows or infinite
    sums.
    """
    n = len(sums)
    if n < 2 or not np.isfinite(sums).all() or not counts.sum():
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        mean = sums.sum() / counts.sum()
        residual = sums - mean * counts
        squares = float((residual**2).sum())
    if not math.isfinite(squares):
        return None
    error = math.sqrt(n / (n - 1) * squares) / float(counts.sum())
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * error
    return float(mean - half), float(mean + half)


def _derived(state: State) -> dict[str, Metric]:
    out: dict[str, Metric] = {}
    for prefix, name, over in (("seq", "seq_w", SEQUENCES), ("token", "ratio", SAMPLED)):
        series = (state.sequences if prefix == "seq" else state.tokens).get(name)
        if (
            series is not None
            and series.count
            and math.isfinite(series.squares.value)
            and series.squares.value > 0
        ):
            size = series.total.value**2 / series.squares.value
            out[f"{prefix}_effective_sample_size"] = Metric(size, "estimate", over)
            out[f"{prefix}_effective_fraction"] = Metric(size / series.count, "estimate", over)
    if "tropd_accept" in state.tokens:
        accept = state.tokens["tropd_accept"]
        if accept.count:
            out["tropd_accept_rate"] = Metric(accept.mean, "estimate", SAMPLED)
    return out
