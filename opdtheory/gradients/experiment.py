"""The bias–variance experiment of distillation gradients, run by ``opdtheory run gradient-frontier``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from opdtheory.experiments import Run, experiment
from opdtheory.gradients.frontier import contestants, frontier
from opdtheory.gradients.frontier_report import frontier_report
from opdtheory.tabular import TokenTree

__all__ = ["gradient_frontier", "slope"]


@experiment(
    "gradient-frontier",
    summary="exact bias, variance and error of distillation gradients; who wins at which sample size",
    defaults={
        "vocab": 2,
        "horizons": [2, 4, 6, 8, 10, 12],
        "kl_per_token": [0.001, 0.01, 0.1, 1.0],
        "lambdas": [0.5, 0.9],
        "samples": [1, 16, 256, 4096, 65536],
        "instances": 60,
        "concentration": 1.0,
        "features": 4,
        "feature_horizons": [2, 4, 6, 8],
        "feature_instances": 20,
        "seed": 0,
        "shown": {"horizon": 8, "kl_per_token": 0.1},
    },
)
def gradient_frontier(run: Run) -> dict[str, Any]:
    """Quartiles over random instances at every horizon and distance, tabular and with shared features.

    ``crossover_slopes`` are the exponents fitted to the median sample size from which the
    log-ratio-to-go beats the immediate reward, as a power of the distance and of the horizon.  ``shown`` is the
    cell through which the figures cut.
    """
    c = run.config
    for name, grid in (("horizon", c["horizons"]), ("kl_per_token", c["kl_per_token"])):
        if c["shown"][name] not in grid:
            raise ValueError(f"shown.{name}: got {c['shown'][name]!r}, expected one of {grid}")
    common = {
        "seed": c["seed"],
        "samples": c["samples"],
        "concentration": c["concentration"],
        "estimators": contestants(c["lambdas"]),
    }
    cells = [
        ("tabular", horizon, kl, c["instances"], None)
        for horizon in c["horizons"]
        for kl in c["kl_per_token"]
    ] + [
        ("features", horizon, kl, c["feature_instances"], c["features"])
        for horizon in c["feature_horizons"]
        for kl in c["kl_per_token"]
    ]
    table = []
    for kind, horizon, kl, instances, features in run.track(cells, "frontier"):
        cell = run.part(
            f"{kind}-T{horizon}-kl{kl:g}",
            partial(
                frontier, TokenTree(c["vocab"], horizon), kl, instances=instances, features=features, **common
            ),
        )
        table.append({"parameters": kind, **cell, "estimators": _recorded(cell["estimators"])})
    slopes = _slopes(table, c["horizons"], c["kl_per_token"])
    return {"cells": table, "crossover_slopes": slopes, "report": frontier_report(table, slopes, c)}


def _recorded(estimators: dict[str, Any]) -> dict[str, Any]:
    """The rows without the efficiency, which compares rescaled steps, in six digits."""

    def short(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: short(item) for key, item in value.items() if key != "efficiency"}
        if isinstance(value, list):
            return [short(item) for item in value]
        return float(f"{float(value):.6g}")

    return {name: short(row) for name, row in estimators.items()}


def _slopes(cells: list[dict[str, Any]], horizons: list[int], distances: list[float]) -> dict[str, Any]:
    crossing = {
        (cell["horizon"], cell["kl_per_token"]): cell["estimators"]["to_go/lambda=0/none"]["crossover"]["ii"][
            1
        ]
        for cell in cells
        if cell["parameters"] == "tabular"
    }
    return {
        "in_distance": {str(t): slope(distances, [crossing[t, kl] for kl in distances]) for t in horizons},
        "in_horizon": {str(kl): slope(horizons, [crossing[t, kl] for t in horizons]) for kl in distances},
    }


def slope(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Least-squares exponent of y ∝ xᵏ over the points with finite positive y; None with fewer than two."""
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if a > 0 and 0 < b < np.inf]
    if len(pairs) < 2:
        return None
    log_x, log_y = np.log(np.array(pairs)).T
    return float(np.polyfit(log_x, log_y, 1)[0])
