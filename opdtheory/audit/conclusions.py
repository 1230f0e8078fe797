"""What the numbers say about the update: which bounds apply, what they are worth, and what samples certify.

A bound that needs a maximum over all contexts cannot be evaluated from visited ones: it is given from the
visited maximum and labelled so.  Expectations (D_seq, Σ_t E TV) are taken at the upper end of their
interval as well as at their value.
"""

from __future__ import annotations

import math
import re
from typing import Any

from opdtheory import calculator
from opdtheory.audit.metrics import Metric
from opdtheory.audit.settings import Settings
from opdtheory.audit.state import State
from opdtheory.quantities import QUANTITIES

COVERED = 0.99
"""A number that rests on fewer of the tokens than this says so."""
_MAXIMA = ("tv_max", "kl_max", "reverse_kl_max", "chi2_max", "hellinger2_max")
_FROM = {
    "kl_seq": "kl_rollout_train/seq_sum_mean",
    "tv_sum": "tv/seq_sum_mean",
    "tv_max": "tv/max",
    "kl_max": "kl_rollout_train/max",
    "reverse_kl_max": "kl_train_rollout/max",
    "chi2_max": "chi2_train_rollout/max",
    "hellinger2_max": "hellinger2/max",
    "reverse_kl_sum": "kl_train_rollout/seq_sum_mean",
    "hellinger2_sum": "hellinger2/seq_sum_mean",
    "hellinger2_seq": "seq_hellinger2_sampled/mean",
    "tv_seq": "seq_tv_sampled/mean",
    "ratio_martingale": "seq_ratio_martingale/mean",
}


def quantities(
    state: State, metrics: dict[str, Metric], settings: Settings
) -> tuple[dict[str, float], dict[str, str]]:
    """(inputs of the bound calculator, what each one is): the value of every quantity the data supports."""
    values: dict[str, float] = {}
    labels: dict[str, str] = {}
    for name, metric in _FROM.items():
        if metric in metrics and math.isfinite(metrics[metric].value):
            found = metrics[metric]
            values[name] = max(0.0, found.value)
            labels[name] = (
                "visited contexts only (lower)"
                if name in _MAXIMA
                else "estimate"
                if found.kind == "estimate"
                else "mean over visited contexts"
            )
            whole = state.sequence_count if "seq" in metric else state.token_count
            if found.count is not None and found.count < COVERED * whole:
                labels[name] += (
                    f", known for {found.count} of {whole} {'sequences' if 'seq' in metric else 'tokens'}"
                )
    if state.longest:
        values["horizon"], labels["horizon"] = float(state.longest), "longest response seen"
    certified = state.groups.column("certified").sum()
    if settings.reward_range is not None and certified and not state.groups.column("cert:outside").any():
        for name in (
            "surrogate",
            "reward_log_w",
            "cost_log_w",
            "reward_floor_log_w",
            "masked_surrogate",
            "masked_k3",
            "masked_reward_lost",
        ):
            # differences of J do not see a shift of the reward: R − LO ≥ 0 takes the place of R
            total = float(state.groups.column(f"est:{name}").sum())
            if math.isfinite(total):
                values[name], labels[name] = (
                    total / certified * (settings.reward_range[1] - settings.reward_range[0]),
                    "estimate",
                )
    reward = state.sequences.get("reward")
    if reward is not None and reward.count > 1:
        values["reward_sd"], labels["reward_sd"] = math.sqrt(reward.variance(1)), "estimate"
    return values, labels


def bounds(state: State, metrics: dict[str, Metric], settings: Settings) -> dict[str, Any]:
    """The calculator's report for this data, every entry labelled by the weakest of its inputs."""
    values, labels = quantities(state, metrics, settings)
    span = settings.reward_range or (0.0, 1.0)
    divergences = [n for n in values if n not in ("horizon", "reward_sd")]
    if not divergences:
        return {"inputs": {}, "bounds": [], "not_computable": []}
    if "reward_sd" in values:
        values["reward_sd"] = (
            min(values["reward_sd"], (span[1] - span[0]) / 2)
            if settings.reward_range
            else values["reward_sd"]
        )
    if settings.reward_range is None:
        values.pop("reward_sd", None)
    # estimates from samples may contradict each other by noise; that is no error here
    report = calculator.calculate(reward_range=span, validate=False, **_whole(values))
    upper = dict(values) | {
        name: metrics[_FROM[name]].interval[1]  # type: ignore[index]
        for name in _FROM
        if name in values and name not in _MAXIMA and metrics[_FROM[name]].interval is not None
    }
    worst = {
        b["id"]: b["value"]
        for b in calculator.calculate(reward_range=span, validate=False, **_whole(upper))["bounds"]
    }
    kept = []
    for entry in report["bounds"]:
        used = _inputs_of(entry, report)
        if not any(n in divergences for n in used):
            continue
        weak = [n for n in used if n in _MAXIMA]
        basis = (
            f"rests on the visited maximum of {', '.join(weak)}: a lower value of the bound"
            if weak
            else "estimate"
            if any(labels.get(n, "").startswith("estimate") for n in used)
            else "from exact divergences of visited contexts"
        )
        partly = {text.partition(", ")[2] for n in used if "known for" in (text := labels.get(n, ""))}
        basis = "; ".join([basis, *sorted(partly)])
        kept.append(
            entry
            | {
                "kind": "lower" if weak else "estimate",
                "basis": basis,
                "says": _says(entry),
                "at_upper_end": worst.get(entry["id"]),
            }
        )
    return {
        "inputs": {n: {"value": v, "is": labels.get(n, "")} for n, v in values.items()},
        "bounds": kept,
        "not_computable": report["not_computable"],
        "reward_range": list(span),
        "assumed_range": settings.reward_range is None,
    }


def _says(entry: dict[str, Any]) -> str:
    """What a bound's value amounts to."""
    if entry["vacuous"]:
        return "nothing (vacuous)"
    if entry["target"] != "improvement_lower":
        return "something"
    return "improvement" if entry["value"] > 0 else "no improvement shown"


def _whole(values: dict[str, float]) -> dict[str, Any]:
    """Values moved into the domain of their quantity, which noise may leave."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        spec = QUANTITIES[name]
        inside = min(max(value, spec.low), spec.high)
        out[name] = int(inside) if spec.whole else inside
    return out


def _inputs_of(entry: dict[str, Any], report: dict[str, Any]) -> list[str]:
    """The given quantities behind a bound; a derived one says in words what it came from."""
    wanted, seen = list(entry.get("needs", [])), []
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.append(name)
        origin = report["derived"].get(name)
        if origin is not None:
            wanted += [q for q in QUANTITIES if q != name and re.search(rf"\b{q}\b", origin["because"])]
    return [n for n in seen if n in report["inputs"]]


def shortcuts(metrics: dict[str, Metric]) -> list[dict[str, Any]]:
    """How far sampled estimators and partition shortcuts are from the exact values, where both are known."""
    out = []
    for exact, others in _SHORTCUTS.items():
        if exact not in metrics or metrics[exact].kind != "exact":
            continue
        truth = metrics[exact].value
        for other, what in others:
            if other in metrics and _same_data(metrics[exact], metrics[other]):
                value = metrics[other].value
                ends = metrics[other].interval
                inside = ends is not None and ends[0] <= truth <= ends[1]
                out.append(
                    {
                        "exact": exact,
                        "truth": truth,
                        "shortcut": other,
                        "value": value,
                        "what": what,
                        "ratio": value / truth if truth else None,
                        "interval_covers": inside if what == "sampled estimate" else None,
                    }
                )
    return out


def _same_data(a: Metric, b: Metric) -> bool:
    """Whether both come from about the same tokens; where files record different things they may not."""
    return min(a.count or 0, b.count or 0) >= COVERED * max(a.count or 0, b.count or 0)


_SHORTCUTS: dict[str, tuple[tuple[str, str], ...]] = {
    "kl_rollout_train/mean": (
        ("k1/mean", "sampled estimate"),
        ("k2/mean", "sampled estimate"),
        ("k3/mean", "sampled estimate"),
        ("binary_kl/mean", "partition, lower"),
        ("topk_kl/mean", "partition, lower"),
    ),
    "kl_rollout_train/max": (
        ("k3/max", "sampled maximum"),
        ("binary_kl/max", "partition, lower"),
        ("topk_kl/max", "partition, lower"),
    ),
    "tv/mean": (
        ("tv_sampled/mean", "sampled estimate"),
        ("binary_tv/mean", "partition, lower"),
        ("topk_tv/mean", "partition, lower"),
    ),
    "tv/max": (("binary_tv/max", "partition, lower"), ("topk_tv/max", "partition, lower")),
    "chi2_train_rollout/mean": (("chi2_sampled/mean", "sampled estimate"),),
    "kl_student_teacher/mean": (
        ("k1_student_teacher/mean", "sampled estimate"),
        ("k3_student_teacher/mean", "sampled estimate"),
        ("topk_kl_student_teacher/mean", "partition, lower"),
    ),
    "tv_student_teacher/mean": (("topk_tv_student_teacher/mean", "partition, lower"),),
}
