"""What the recorded comparison of distillation gradients says: figures, a table and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["frontier_report"]

NAMES = {
    "to_go/lambda=0/none": "immediate",
    "to_go/lambda=0/value": "immediate, baseline",
    "to_go/lambda=0.5/none": "λ = 0.5",
    "to_go/lambda=0.9/none": "λ = 0.9",
    "to_go/lambda=1/none": "(ii) to go",
    "to_go/lambda=1/value": "(iii) to go, baseline",
    "expected/lambda=1/none": "(iv) expected later terms",
    "expected/lambda=1/value": "(v) as (iv), baseline",
}
"""Estimators that the figures show, where the configuration has them."""
IMMEDIATE = "to_go/lambda=0/none"
_MEDIAN = 1
_RELATIVE = "relative to ‖∇η‖², median"

Cell = dict[str, Any]


def frontier_report(
    cells: Sequence[Cell], slopes: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Paragraphs, tables and figures of one record; every value is an exact moment, medians are over instances."""
    horizon, kl = config["shown"]["horizon"], config["shown"]["kl_per_token"]
    tabular = {(c["horizon"], c["kl_per_token"]): c for c in cells if c["parameters"] == "tabular"}
    shown = tabular[horizon, kl]["estimators"]
    names = {key: label for key, label in NAMES.items() if key in shown}
    world = f"vocabulary {config['vocab']}, {config['instances']} random tabular students and teachers"
    along_distance = [tabular[horizon, x] for x in config["kl_per_token"]]
    along_horizon = [tabular[t, kl] for t in config["horizons"]]
    axes = {
        "distance to the teacher": (
            along_distance, config["kl_per_token"], f"KL(student‖teacher) a token, nats; T = {horizon}",
        ),
        "horizon": (along_horizon, config["horizons"], f"horizon T, tokens; {kl:g} nats a token"),
    }  # fmt: skip
    parts = {
        "Bias": (
            "bias2",
            f"Exact ‖bias‖² relative to ‖∇η‖² (medians; {world}). Without bias: (ii), (iii), (iv) and (v).",
        ),
        "Variance": (
            "variance",
            f"Exact variance of one sampled gradient relative to ‖∇η‖² (medians; {world}).",
        ),
    }
    figures = [
        {
            "kind": "lines",
            "title": f"{part} of one gradient over the {axis}",
            "x": list(x),
            "x_label": label,
            "y_label": f"{part.lower()}{'²' if part == 'Bias' else ''} {_RELATIVE}",
            "log": True,
            "series": _along(row, names, key),
            "caption": caption,
        }
        for axis, (row, x, label) in axes.items()
        for part, (key, caption) in parts.items()
    ] + [
        {
            "kind": "lines",
            "title": "Mean squared error over the number of samples",
            "x": config["samples"],
            "x_label": f"sampled responses N; T = {horizon}, {kl:g} nats a token",
            "y_label": f"mean squared error {_RELATIVE}",
            "log": True,
            "series": {
                label: [shown[key]["mse"][str(n)][_MEDIAN] for n in config["samples"]]
                for key, label in names.items()
            },
            "caption": f"Exact mean squared error ‖bias‖² + variance/N (medians; {world}): what is biased stops "
            "improving, what is not wins in the end.",
        },
        {
            "kind": "lines",
            "title": "Samples from which the unbiased gradient wins",
            "x": config["kl_per_token"],
            "x_label": "KL(student‖teacher) a token, nats",
            "y_label": "crossover sample size, median",
            "log": True,
            "series": _crossings(cells, config),
            "caption": "Exact number of sampled responses from which the log-ratio-to-go (ii) has a smaller mean "
            "squared error than the immediate reward (medians over random instances; where the logits share "
            f"{config['features']} parameters every response is enumerated).",
        },
    ]
    return {"paragraphs": _paragraphs(slopes), "tables": [_table(cells)], "figures": figures}


def _along(row: Sequence[Cell], names: Mapping[str, str], part: str) -> dict[str, list[float]]:
    """Medians of each estimator along a row of cells; a baseline does not change the mean, nor then the bias."""
    series = {label: [c["estimators"][key][part][_MEDIAN] for c in row] for key, label in names.items()}
    if part == "bias2":
        return {label: x for label, x in series.items() if max(x) > 0 and "baseline" not in label}
    return series


def _crossings(cells: Sequence[Cell], config: Mapping[str, Any]) -> dict[str, list[float]]:
    series = {}
    for kind, label in (("tabular", "T = {}"), ("features", "T = {}, shared parameters")):
        for horizon in sorted({c["horizon"] for c in cells if c["parameters"] == kind}):
            found = {
                c["kl_per_token"]: c for c in cells if (c["parameters"], c["horizon"]) == (kind, horizon)
            }
            series[label.format(horizon)] = [
                found[x]["estimators"][IMMEDIATE]["crossover"]["ii"][_MEDIAN] for x in config["kl_per_token"]
            ]
    return series


def _table(cells: Sequence[Cell]) -> dict[str, Any]:
    rows = []
    for c in cells:
        row = c["estimators"][IMMEDIATE]
        quartiles = [f"{x:.3g}" for x in row["crossover"]["ii"]]
        rows.append(
            [
                "one a logit" if c["parameters"] == "tabular" else f"{c['features']} shared",
                c["horizon"],
                c["kl_per_token"],
                row["bias2"][_MEDIAN],
                row["variance"][_MEDIAN],
                c["estimators"]["to_go/lambda=1/none"]["variance"][_MEDIAN],
                " / ".join(quartiles),
            ]
        )
    columns = [
        "parameters", "T", "KL a token", "immediate: bias²", "immediate: variance", "(ii): variance",
        "samples until (ii) wins, quartiles",
    ]  # fmt: skip
    return {
        "caption": "Exact moments relative to ‖∇η‖², medians over random instances",
        "columns": columns,
        "rows": rows,
    }


def _paragraphs(slopes: Mapping[str, Any]) -> list[str]:
    in_distance = [x for x in slopes["in_distance"].values() if x is not None]
    in_horizon = [x for x in slopes["in_horizon"].values() if x is not None]
    return (
        [
            "The sample size from which the unbiased log-ratio-to-go beats the immediate reward falls with the distance "
            f"to the teacher, with a fitted power between {min(in_distance):.2f} and {max(in_distance):.2f}, and rises "
            f"with the horizon, with a power between {min(in_horizon):.2f} and {max(in_horizon):.2f}."
        ]
        if in_distance and in_horizon
        else []
    )
