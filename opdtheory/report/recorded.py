"""Figures of recorded experiments: every entry of a record's ``report.figures`` becomes one image."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from opdtheory.report.styles import COLOURS, Styles


def draw_record(record: Mapping[str, Any], folder: str | Path, *, suffix: str = "svg") -> list[Path]:
    """Draw the figures of one experiment record into ``folder`` and return their paths.

    Kinds: ``lines`` (``series`` of values, optional common ``x``), ``bars`` (``labels``, ``values``, optional
    ``limit`` with its ``limit_label``), ``intervals`` (``labels``, ``values``, ``intervals``, optional
    ``reference``); ``log`` makes the axes of numbers logarithmic, ``log_y`` that of the values, and lines
    named in ``estimated`` are dashed. Raises ValueError for an unknown kind.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    paths = []
    for data in record.get("report", {}).get("figures", []):
        if data.get("kind") not in KINDS:
            raise ValueError(f"figure kind {data.get('kind')!r}: expected one of {', '.join(KINDS)}")
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        KINDS[data["kind"]](axes, data)
        axes.set_title(data["title"])
        slug = re.sub(r"[^a-z0-9]+", "-", data["title"].lower()).strip("-")
        paths.append(target / f"{record['experiment']}-{slug}.{suffix}")
        # without a date and with a fixed salt the same record gives the same file
        with rc_context({"svg.hashsalt": "opdtheory"}):
            figure.savefig(paths[-1], metadata={"Date": None} if suffix == "svg" else None)
    return paths


def draw_folder(results: str | Path, folder: str | Path, *, suffix: str = "svg") -> list[Path]:
    """Draw the figures of every experiment record (``*.json``) in ``results``."""
    paths = []
    for path in sorted(Path(results).glob("*.json")):
        record = json.loads(path.read_text())
        if isinstance(record, dict) and "experiment" in record:
            paths += draw_record(record, folder, suffix=suffix)
    return paths


def _finite(values: Sequence[Any]) -> list[float]:
    """Numbers with recorded infinities ("inf") and missing values as NaN, which are not drawn."""
    return [float(v) if isinstance(v, int | float) and math.isfinite(v) else math.nan for v in values]


def _lines(axes: Axes, data: Mapping[str, Any]) -> None:
    style, count = Styles(), len(data["series"])
    for i, (name, values) in enumerate(data["series"].items()):
        x = data.get("x") or range(len(values))
        # about a dozen markers a line, shifted from line to line, so that lines on top of each other show
        every = max(len(values) // 12, 1)
        shown = slice(i * every // count, None, every)
        line = "--" if name in data.get("estimated", ()) else "-"
        axes.plot(list(x)[: len(values)], _finite(values), markevery=shown, label=name, **style(name, line))
    axes.set_xlabel(data["x_label"])
    axes.set_ylabel(data["y_label"])
    if data.get("log"):
        axes.set_xscale("log")
    if data.get("log") or data.get("log_y"):
        axes.set_yscale("log")
    axes.legend(fontsize="small", ncols=2 if len(data["series"]) > 6 else 1)


def _bars(axes: Axes, data: Mapping[str, Any]) -> None:
    positions = range(len(data["labels"]))
    axes.barh(positions, _finite(data["values"]), color=COLOURS[0])
    axes.set_yticks(positions, data["labels"], fontsize="small")
    axes.invert_yaxis()
    if data.get("log"):
        axes.set_xscale("log")
    if "limit" in data:
        axes.axvline(data["limit"], color="black", linestyle="--", label=data["limit_label"])
        axes.legend(fontsize="small")


def _intervals(axes: Axes, data: Mapping[str, Any]) -> None:
    positions = list(range(len(data["labels"])))
    values = _finite(data["values"])
    below = [v - low for v, (low, _) in zip(values, data["intervals"], strict=True)]
    above = [high - v for v, (_, high) in zip(values, data["intervals"], strict=True)]
    axes.errorbar(positions, values, yerr=[below, above], fmt="o", color=COLOURS[0], capsize=4, label="measured")
    if "reference" in data:
        label = data.get("reference_label", "reference")
        axes.plot(positions, _finite(data["reference"]), "x", color=COLOURS[1], label=label)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(positions, data["labels"], rotation=20)
    axes.legend(fontsize="small")


KINDS: dict[str, Callable[[Axes, Mapping[str, Any]], None]] = {
    "lines": _lines,
    "bars": _bars,
    "intervals": _intervals,
}
