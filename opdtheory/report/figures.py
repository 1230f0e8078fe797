"""Figures from recorded results: vector and PNG, readable in grey, with their captions in one companion file.

Every figure is a function of one recorded JSON document.  Exact values are solid lines, estimates are dashed,
bounds are dotted; colours are Okabe and Ito's and never the only difference between two series.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from opdtheory.report.recorded import draw_record
from opdtheory.report.study_figures import FIGURES, Draw
from opdtheory.report.styles import COLOURS
from opdtheory.verification.runner import load_record

__all__ = ["FIGURES", "draw_all", "tightness"]


def tightness(record: Mapping[str, Any], target: Figure) -> str:
    """Drawn from the committed record, not from figures/data."""
    rows = sorted((c for c in record["claims"] if isinstance(c["best_ratio"], float)), key=lambda c: c["best_ratio"])
    target.set_size_inches(7, 0.17 * len(rows) + 1)
    axes = target.subplots()
    axes.barh([r["id"] for r in rows], [r["best_ratio"] for r in rows], color=COLOURS[0], height=0.7)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.tick_params(axis="y", labelsize=6)
    axes.set_xlabel("largest lhs/rhs found")
    axes.margins(y=0.01)
    return f"Tightness of {len(rows)} inequalities: the largest ratio of the two sides found by search; 1 means attained (exact instances, searched)."


def draw_all(out: Path, data: Path, results: Path) -> list[Path]:
    """Draw every figure into ``out`` from recorded ``data`` and experiment ``results``; returns the images.

    Raises:
        FileNotFoundError: if a recorded document that a figure needs is missing.
    """
    out.mkdir(parents=True, exist_ok=True)
    captions: dict[str, str] = {}
    images: list[Path] = []
    with rc_context({"svg.hashsalt": "opdtheory", "svg.fonttype": "none", "font.size": 10}):
        for name, draw in FIGURES.items():
            document = json.loads((data / f"{name}.json").read_text(encoding="utf-8"))
            captions[name] = _render(draw, document, name, out, images)
        captions["tightness"] = _render(tightness, load_record(), "tightness", out, images)
        for path in sorted(results.glob("*.json")) + sorted(data.glob("*.json")):
            document = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(document, dict) and document.get("report", {}).get("figures"):
                for suffix in ("svg", "png"):
                    drawn = draw_record(document, out, suffix=suffix)
                    images += drawn
                for image, entry in zip(drawn, document["report"]["figures"], strict=True):
                    captions[image.stem] = entry.get("caption") or entry["title"]
    lines = ["# Captions", "", *(f"**{name}.** {text}\n" for name, text in sorted(captions.items()))]
    (out / "captions.md").write_text("\n".join(lines), encoding="utf-8")
    return images


def _render(draw: Draw, document: Mapping[str, Any], name: str, out: Path, images: list[Path]) -> str:
    target = Figure(figsize=(7.2, 4.4), layout="constrained")
    caption = draw(document, target)
    for suffix in ("svg", "png"):
        path = out / f"{name}.{suffix}"
        target.savefig(path, dpi=150, metadata={"Date": None} if suffix == "svg" else None)
        images.append(path)
    return caption
