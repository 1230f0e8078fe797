"""Figures from recorded results: vector and PNG, readable in grey, with their captions in one companion file.

Every figure is a function of one recorded JSON document.  Exact values are solid lines, estimates are dashed,
bounds are dotted; colours are Okabe and Ito's and never the only difference between two series.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from opdtheory.report.recorded import draw_record
from opdtheory.report.styles import COLOURS, Styles
from opdtheory.verification.runner import load_record

Draw = Callable[[Mapping[str, Any], Figure], str]

FIGURES: dict[str, Draw] = {}
"""Name of a recorded document (without .json) → function that draws it and returns its caption."""


def figure(name: str) -> Callable[[Draw], Draw]:
    """Register the drawing function of a recorded document."""

    def register(draw: Draw) -> Draw:
        FIGURES[name] = draw
        return draw

    return register


def _number(x: Any) -> float:
    return float(x) if isinstance(x, int | float) and math.isfinite(x) else math.nan


def _legend(axes: Axes, **options: Any) -> None:
    axes.legend(fontsize="x-small", frameon=False, **options)


ERROR_BOUNDS = {
    "trm.2.5.1/kl": "TRPO-style T²", "trm.2.5.4": "Pinsker-marginal T^{3/2}", "trm.2.5.5": "Mixed T√(δD)",
    "ours.s3": "expected TV (s3)", "ours.s1/uniform": "sequence KL, Tδ (s1)",
}  # fmt: skip


@figure("bounds-over-divergence")
def bounds_over_divergence(data: Mapping[str, Any], target: Figure) -> str:
    axes, style = target.subplots(), Styles()
    x = [row["kl"] for row in data["rows"]]
    for key, label in ERROR_BOUNDS.items():
        axes.loglog(x, [_number(row["bounds"].get(key)) for row in data["rows"]], label=label, markevery=6, **style(label, ":"))
    axes.loglog(x, [_number(row["error"]) for row in data["rows"]], color="black", linewidth=2, label="|Error| of independent tokens, worst reward (exact)")
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.text(x[0], 1.2, "above: larger than any change of J", fontsize="x-small", color="dimgrey")
    axes.set_ylim(1e-8, 1e4)
    axes.set_xlabel("KL(μ‖π) of every token, nats")
    axes.set_ylabel(f"bound on |J(π) − J(μ) − L|, T = {data['horizon']}")
    _legend(axes)
    return (
        f"Every bound on the surrogate error over the token KL at T = {data['horizon']}, rewards in [0, 1]. Dotted: bounds. Solid: the exact error of "
        "independent binary tokens with the reward that makes it largest."
    )


@figure("error-scaling")
def error_scaling(data: Mapping[str, Any], target: Figure) -> str:
    panels, style = target.subplots(1, 2, sharey=False), Styles()
    for axes, divergence, name in zip(panels, ("tv", "kl"), ("TV", "KL"), strict=True):
        study = [s for s in data["studies"] if s["divergence"] == divergence][1]
        families = sorted({row["family"] for row in study["rows"]})
        for family in families:
            rows = [row for row in study["rows"] if row["family"] == family]
            axes.loglog([r["horizon"] for r in rows], [_number(r["error"]) or math.nan for r in rows], label=family, **style(family))
        rows = [row for row in study["rows"] if row["family"] == families[0]]
        for key in ("trm.2.5.1/tv" if divergence == "tv" else "trm.2.5.1/kl", "trm.2.5.4", "ours.s4" if divergence == "tv" else "ours.s1/uniform"):
            axes.loglog([r["horizon"] for r in rows], [_number(r["bounds"].get(key)) for r in rows], ":", color="grey")
            axes.annotate(key, (rows[-1]["horizon"], _number(rows[-1]["bounds"].get(key))), fontsize="xx-small", ha="right", va="bottom")
        axes.set_xlabel("horizon T, tokens")
        axes.set_title(f"fixed {name} = {study['level']:g} a token", fontsize="small")
    panels[0].set_ylabel("|J(π) − J(μ) − L|, rewards in [0, 1]")
    _legend(panels[0])
    return (
        "Exact surrogate error of long chains over the horizon at a fixed token divergence (solid), with three bounds (dotted). At fixed TV the one-slip automaton "
        "attains the supremum and turns from T² to T; at fixed KL nothing exceeds order T."
    )


@figure("weight-variance")
def weight_variance(data: Mapping[str, Any], target: Figure) -> str:
    axes, style = target.subplots(), Styles()
    for level in data["config"]["levels"]:
        rows = [r for r in data["rows"] if r["kl"] == level]
        label = f"token KL {level:g} nats"
        axes.loglog([r["horizon"] for r in rows], [_number(r["variance"]) for r in rows], label=label, **style(label))
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set_ylim(1e-6, 1e12)
    axes.set_xlabel("horizon T, tokens")
    axes.set_ylabel("variance of the sequence weight W = ∏ρ")
    _legend(axes)
    (unit,) = (row["unit_horizon"] for row in data["summary"] if row["kl"] == 1e-4)
    return f"Exact variance (1 + χ²)^T − 1 of the importance weight of independent tokens. At 10⁻⁴ nats a token it reaches 1 near T = {unit:.0f}, not at T = 1000."


@figure("thresholds-over-horizon")
def thresholds(data: Mapping[str, Any], target: Figure) -> str:
    axes, style = target.subplots(), Styles()
    wanted = {"trm.2.5.1/kl": "TRPO-style", "trm.2.5.4": "Pinsker-marginal", "trm.2.5.5": "Mixed", "ours.s1/uniform": "sequence KL (s1)"}
    for key, label in wanted.items():
        rows = [r for r in data["rows"] if r["id"] == key and r["divergence"] == "kl_max"]
        axes.loglog([r["horizon"] for r in rows], [_number(r["informative"]) for r in rows], label=label, **style(label))
    axes.set_xlabel("horizon T, tokens")
    axes.set_ylabel("largest token KL with a bound below 1, nats")
    _legend(axes)
    return "The token KL(μ‖π) that each bound tolerates before it says nothing (solid: solved exactly), over the horizon; only the largest token KL is given."


@figure("topd-variance")
def topd_variance(data: Mapping[str, Any], target: Figure) -> str:
    axes, style = target.subplots(), Styles()
    for vocab in (2, 1000, 151936):
        rows = [r for r in data["rows"] if r["vocab"] == vocab]
        alphas = sorted({r["alpha"] for r in rows})
        label = f"largest measured, V = {vocab}"
        axes.loglog(alphas, [max(_number(r["reward_moment"]) for r in rows if r["alpha"] == a) for a in alphas], label=label, **style(label))
    axes.loglog([c["alpha"] for c in data["curve"]], [_number(c["second_moment"]) for c in data["curve"]], "k:", linewidth=2, label="K(α), every vocabulary")
    rows = [r for r in data["rows"] if r["vocab"] == 151936 and r["member"] == 0]
    by_alpha = {r["alpha"]: _number(r["printed"]) / 2 for r in rows}
    axes.loglog(list(by_alpha), list(by_alpha.values()), ":", color="grey", label="printed bound / M², V = 151936")
    axes.set_xlabel("mixing weight α")
    axes.set_ylabel("E[r̃²], nats²")
    _legend(axes)
    return (
        "Second moment of TOP-D's reward at one state (solid: exact, the largest over the sampled families), the best vocabulary-free constant K(α) and the printed bound "
        "divided by M² (dotted)."
    )


@figure("contraction")
def contraction(data: Mapping[str, Any], target: Figure) -> str:
    axes, style = target.subplots(), Styles()
    alpha = 0.3
    start = sorted({r["start"] for r in data["rows"]})[0]
    rows = [r for r in data["rows"] if r["alpha"] == alpha and r["start"] == start]
    x = [r["step"] for r in rows]
    for key, label in (("sequence", "whole responses"), ("token", "tokens"), ("state", "largest state")):
        axes.semilogy(x, [_number(r[key]) for r in rows], label=f"mixing {label}", markevery=3, **style(label))
        axes.semilogy(x, [_number(r[f"{key}_law"]) for r in rows], ":", color=style(label)["color"], label=f"law for {label}")
    axes.set_xlabel("exact TOP-D steps")
    axes.set_ylabel("L1 distance to the teacher")
    axes.set_ylim(bottom=1e-5)
    _legend(axes)
    return (
        f"Distance to the teacher under exact proximal-teacher steps, α = {alpha}, V = {data['vocab']}, T = {data['horizon']}, start: {start}. Solid: exact distances. "
        "Dotted: (1 − α)^k for whole responses and states, and the token-level law."
    )


@figure("error-forgetting")
def error_forgetting(data: Mapping[str, Any], target: Figure) -> str:
    axes, style = target.subplots(), Styles()
    for alpha in data["config"]["alphas"]:
        rows = [r for r in data["rows"] if r["alpha"] == alpha]
        label = f"α = {alpha}"
        axes.semilogy([r["step"] for r in rows], [_number(r["distance"]) for r in rows], label=label, markevery=6, **style(label))
        axes.semilogy([r["step"] for r in rows], [_number(r["law"]) for r in rows], ":", color=style(label)["color"])
    axes.set_xlabel("steps with injected error")
    axes.set_ylabel("L1 distance to the teacher")
    _legend(axes)
    return "Error forgetting: exact distances under sequence-level mixing with random errors injected at every step (solid) and the printed bound (dotted)."


@figure("certificate-coverage")
def coverage(data: Mapping[str, Any], target: Figure) -> str:
    axes, style = target.subplots(), Styles()
    for method in sorted({r["method"] for r in data["rows"]}):
        rows = [r for r in data["rows"] if r["method"] == method]
        sizes = sorted({r["samples"] for r in rows})
        axes.semilogx(sizes, [min(r["coverage"] for r in rows if r["samples"] == n) for n in sizes], label=method.replace("_", " "), **style(method, "--"))
    axes.axhline(data["level"], color="grey", linewidth=0.8)
    axes.set_xlabel("sequences")
    axes.set_ylabel("lowest coverage over all certificates")
    axes.set_ylim(0.9, 1.005)
    _legend(axes)
    return f"Estimated coverage (dashed; {data['repetitions']} repetitions a cell) of the finite-sample certificates, the worst of all cells, against the nominal {data['level']:.0%}."


@figure("certificate-width")
def width(data: Mapping[str, Any], target: Figure) -> str:
    axes, style = target.subplots(), Styles()
    rows = [r for r in data["rows"] if r["certificate"] == "tv_seq"]
    for method in sorted({r["method"] for r in rows}):
        mine = [r for r in rows if r["method"] == method]
        axes.loglog([r["samples"] for r in mine], [_number(r["width"]) for r in mine], label=method.replace("_", " "), **style(method, "--"))
    axes.set_xlabel("sequences")
    axes.set_ylabel("mean gap of the upper bound on TV of sequences")
    _legend(axes)
    return f"Mean width (dashed: over simulated samples) of the one-sided {data['level']:.0%} bound on the sequence TV by three methods; betting adapts to the small variance."


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
        for path in sorted(results.glob("*.json")) + sorted(data.glob("sim_*.json")):
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
