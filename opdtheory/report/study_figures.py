"""The figures of the exact studies, one function a recorded document, each returning its caption.

Exact values are solid lines, estimates are dashed, bounds are dotted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from opdtheory.report.styles import Styles

__all__ = ["FIGURES", "Draw"]

Draw = Callable[[Mapping[str, Any], Figure], str]
Rows = Sequence[Mapping[str, Any]]

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


def _column(rows: Rows, key: str) -> list[float]:
    return [_number(row[key]) for row in rows]


def _pick(rows: Rows, **where: Any) -> list[Mapping[str, Any]]:
    return [row for row in rows if all(row[key] == value for key, value in where.items())]


def _legend(axes: Axes, **options: Any) -> None:
    axes.legend(fontsize="x-small", frameon=False, **options)


def _note(axes: Axes, x: float, y: float, text: str, **options: Any) -> None:
    axes.annotate(text, (x, y), fontsize="xx-small", color="dimgrey", **options)


ERROR_BOUNDS = {
    "trm.2.5.1/kl": "TRPO-style, T²δ", "trm.2.5.4": "Pinsker-marginal, T√T δ", "trm.2.5.5": "Mixed, T√(δD)",
    "ours.s3": "expected TV (s3)", "ours.s1/uniform": "sequence KL, Tδ (s1)",
}  # fmt: skip


@figure("bounds-over-divergence")
def bounds_over_divergence(data: Mapping[str, Any], target: Figure) -> str:
    axes, style = target.subplots(), Styles()
    rows = data["rows"]
    x = _column(rows, "kl")
    for key, label in ERROR_BOUNDS.items():
        axes.loglog(x, [_number(row["bounds"].get(key)) for row in rows], label=label, markevery=6, **style(label, ":"))
    axes.loglog(x, _column(rows, "error"), color="black", linewidth=2, label="|Error| of independent tokens, worst reward (exact)")
    axes.axhline(1, color="grey", linewidth=0.8)
    _note(axes, x[0], 1.2, "above: larger than any change of J")
    axes.set_ylim(1e-8, 1e4)
    axes.set_xlabel("KL(μ‖π) of every token, nats")
    axes.set_ylabel(f"bound on |J(π) − J(μ) − L|, T = {data['horizon']}")
    _legend(axes)
    return (
        f"Five bounds on the surrogate error over the token KL at T = {data['horizon']}, rewards in [0, 1]. Dotted: bounds. Solid: the exact error of "
        "independent binary tokens with the reward that makes it largest."
    )


SCALING = {
    "tv": {"trm.2.5.1/tv": "2T(T−1)ε²"},
    "kl": {"trm.2.5.1/kl": "T(T−1)δ", "trm.2.5.4": "(4/3)T√T δ", "ours.s1/uniform": "Tδ"},
}
"""Bounds of the given divergence alone; others would hold for one family and not for the next."""


@figure("error-scaling")
def error_scaling(data: Mapping[str, Any], target: Figure) -> str:
    panels, style = target.subplots(1, 2, sharey=False), Styles()
    fits = []
    for axes, divergence, name in zip(panels, ("tv", "kl"), ("TV", "KL"), strict=True):
        study = [s for s in data["studies"] if s["divergence"] == divergence][1]
        families = sorted({row["family"] for row in study["rows"]})
        for family in families:
            rows = _pick(study["rows"], family=family)
            axes.loglog(_column(rows, "horizon"), [x or math.nan for x in _column(rows, "error")], label=family, **style(family))
        lines = {text: [_number(r["bounds"][key]) for r in rows] for key, text in SCALING[divergence].items()}
        for text, values in lines.items():
            axes.loglog(_column(rows, "horizon"), values, ":", color="grey")
            _note(axes, rows[-1]["horizon"], values[-1], text, ha="right", va="bottom")
        name_of_all = "supremum over all instances" + ("" if divergence == "tv" else ", δ → 0")
        axes.loglog(_column(study["supremum"], "horizon"), _column(study["supremum"], "error"), "k:", linewidth=2, label=name_of_all)
        axes.set_xlabel("horizon T, tokens")
        axes.set_title(f"fixed {name} = {study['level']:g} a token", fontsize="small")
        slope = {e["family"]: e for e in study["exponents"] if e["series"] in ("measured", "supremum")}
        fits += [f"{name}: " + ", ".join(_exponent(f, slope[f]) for f in (*families, "all instances") if slope[f]["exponent"] is not None)]
    panels[0].set_ylabel("|J(π) − J(μ) − L|, rewards in [0, 1]")
    _legend(panels[0])
    panels[1].legend(handles=panels[1].get_legend_handles_labels()[0][-1:], fontsize="x-small", frameon=False, loc="lower right")
    return (
        "Exact surrogate error of long chains over the horizon at a fixed token divergence (solid), bounds and suprema over all instances (dotted). At fixed TV the "
        "one-slip automaton attains the supremum, which turns from T² to T; at fixed KL every error stays below Tδ. Exponents fitted to the longer half, 95% "
        f"intervals: {'; '.join(fits)}."
    )


def _exponent(family: str, fit: Mapping[str, Any]) -> str:
    # adding zero turns a rounded −0 into 0
    value, low, high = (round(fit[key], 2) + 0.0 for key in ("exponent", "lower", "upper"))
    return f"{family} {value:.2f} [{low:.2f}, {high:.2f}]"


@figure("weight-variance")
def weight_variance(data: Mapping[str, Any], target: Figure) -> str:
    axes, style = target.subplots(), Styles()
    for level in data["config"]["levels"]:
        rows = _pick(data["rows"], kl=level)
        label = f"token KL {level:g} nats"
        axes.loglog(_column(rows, "horizon"), _column(rows, "variance"), label=label, **style(label))
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.axvline(1000, color="grey", linewidth=0.8)
    _note(axes, 16, 1.3, "above: the weighted mean is worth less than half of its samples")
    _note(axes, 1000, 2e-6, " T = 1000")
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
        rows = _pick(data["rows"], id=key, divergence="kl_max")
        axes.loglog(_column(rows, "horizon"), _column(rows, "informative"), label=label, **style(label))
    axes.set_xlabel("horizon T, tokens")
    axes.set_ylabel("largest token KL with a bound below 1, nats")
    _legend(axes)
    return "The token KL(μ‖π) that each bound tolerates before it says nothing (solid: solved exactly), over the horizon; only the largest token KL is given."


@figure("topd-variance")
def topd_variance(data: Mapping[str, Any], target: Figure) -> str:
    (left, right), style = target.subplots(1, 2), Styles()
    vocabularies = (2, 1000, 151936)
    for vocab in vocabularies:
        rows = _pick(data["rows"], vocab=vocab, family="zipf", member=0)
        label = f"Zipf student, noisy teacher, V = {vocab}"
        left.loglog(_column(rows, "alpha"), _column(rows, "reward_moment"), label=label, **style(label))
        right.semilogx(_column(rows, "alpha"), _column(rows, "noise_to_signal"), **style(label))
    rows = _pick(data["rows"], vocab=vocabularies[-1], family="extremal")
    label = f"extremal pair, V = {vocabularies[-1]}"
    left.loglog(_column(rows, "alpha"), _column(rows, "reward_moment"), label=label, **style(label))
    left.loglog(_column(data["curve"], "alpha"), _column(data["curve"], "second_moment"), "k:", linewidth=2.5, label="K(α), every vocabulary")
    for vocab in (vocabularies[0], vocabularies[-1]):
        rows = _pick(data["rows"], vocab=vocab, family="zipf", member=0)
        # recorded for M² = 2
        printed = [x / 2 for x in _column(rows, "printed")]
        left.loglog(_column(rows, "alpha"), printed, ":", color="grey")
        _note(left, rows[0]["alpha"], printed[0], f"printed bound / M², V = {vocab}", xytext=(0, 22), textcoords="offset points")
    left.set_ylim(bottom=1e-12)
    left.set_ylabel("E[r̃²], nats²")
    right.set_ylabel("Var ĝ / ‖E ĝ‖², one sample")
    right.set_yscale("log")
    for axes in (left, right):
        axes.set_xlabel("mixing weight α")
    _legend(left, loc="lower right")
    return (
        "TOP-D at one state, exact. Left: second moment of the reward of Zipf students against noisy teachers and of the pair that attains it (solid), the best vocabulary-free "
        "constant K(α) and the printed bound divided by M² (dotted). Right: variance of one sampled gradient over the square of its mean, free logits: both vanish with α, "
        "their ratio does not."
    )


@figure("contraction")
def contraction(data: Mapping[str, Any], target: Figure) -> str:
    panels, style, alpha = target.subplots(1, 2, sharey=True), Styles(), 0.3
    series = {
        "sequence": "responses mixed: distance of responses",
        "token": "tokens mixed: distance of responses",
        "state": "tokens mixed: farthest state",
    }
    for axes, start in zip(panels, ("disjoint", "random"), strict=True):
        rows = _pick(data["rows"], alpha=alpha, start=start)
        x = _column(rows, "step")
        for i, (key, label) in enumerate(series.items()):
            axes.semilogy(x, _column(rows, key), label=label, markevery=(i, 5), **style(label))
            axes.semilogy(x, _column(rows, f"{key}_law"), ":", color=style(label)["color"], linewidth=2.5)
        axes.semilogy(x, _column(rows, "token_rate_law"), ":", color="grey")
        _note(axes, x[-1], rows[-1]["token_rate_law"], "(1 − α^T)^k", ha="right", va="bottom")
        axes.set_xlabel("exact TOP-D steps k")
        axes.set_title(f"{start} start", fontsize="small")
        axes.set_ylim(1e-5, 4)
    panels[0].set_ylabel("L1 distance to the teacher")
    _legend(panels[0], loc="lower left")
    return (
        f"Distance to the teacher under exact proximal-teacher steps, α = {alpha}, V = {data['vocab']}, T = {data['horizon']}. Solid: exact distances. Dotted, in the same colours: "
        "(1 − α)^k for whole responses and for states, the composed law of token mixing; grey: the one-step rate of token mixing repeated. Policies that never agree on a token "
        "(left) attain the laws."
    )


@figure("error-forgetting")
def error_forgetting(data: Mapping[str, Any], target: Figure) -> str:
    axes, style = target.subplots(), Styles()
    for part in data["summary"]:
        rows = _pick(data["rows"], alpha=part["alpha"])
        label = f"α = {part['alpha']}"
        axes.semilogy(_column(rows, "step"), _column(rows, "distance"), label=label, markevery=6, **style(label))
        axes.semilogy(_column(rows, "step"), _column(rows, "law"), ":", color=style(label)["color"])
        axes.plot([60, 63], [part["limit"]] * 2, color=style(label)["color"], linewidth=1.2)
        _note(axes, 63.5, part["limit"], "e∞/α", va="center")
    axes.axvspan(5, 8, color="0.92")
    _note(axes, 5.2, 0.025, "burst")
    axes.set_xlim(right=68)
    axes.set_xlabel("steps with injected error")
    axes.set_ylabel("L1 distance to the teacher")
    _legend(axes)
    return (
        "Error forgetting: exact distances under sequence-level mixing with a random error injected at every step, fifty times as strong in the grey band (solid), the law "
        "computed from the errors so far (dotted), and the printed limit e∞/α of the late errors (ticks on the right)."
    )


def _names(methods: Iterable[str]) -> dict[str, str]:
    return {method: method.replace("_", " ").replace("hoeffding", "Hoeffding").replace("bernstein", "Bernstein") for method in sorted(methods)}


@figure("certificate-coverage")
def coverage(data: Mapping[str, Any], target: Figure) -> str:
    panels, style = target.subplots(1, 2, sharey=True), Styles()
    for axes, grouped in zip(panels, (False, True), strict=True):
        for method, label in _names({r["method"] for r in data["rows"]}).items():
            rows = _pick(data["rows"], method=method, grouped=grouped)
            sizes = sorted({r["samples"] for r in rows})
            lowest = [min(r["coverage"] for r in rows if r["samples"] == n) for n in sizes]
            # open markers: two of the methods lie on top of each other
            axes.semilogx(sizes, lowest, label=label, **style(method, "--") | {"markersize": 7 - 2 * (method == "hoeffding"), "markerfacecolor": "none"})
        axes.axhline(data["level"], color="grey", linewidth=0.8)
        axes.set_xlabel("independent prompts")
        axes.set_title(f"{data['group']} dependent responses a prompt" if grouped else "one response a prompt", fontsize="small")
    _note(panels[0], min(sizes), data["level"], "nominal", va="top")
    panels[0].set_ylabel("lowest coverage over certificates and sides")
    panels[0].set_ylim(0.93, 1.005)
    _legend(panels[0], loc="lower left")
    return (
        f"Estimated coverage (dashed; {data['repetitions']} repetitions a cell) of the finite-sample certificates on tabular models: the lowest of five certificates, two distances, "
        f"lower, upper and two-sided bounds, against the nominal {data['level']:.0%}. “Any time”: all sample sizes at once."
    )


@figure("certificate-width")
def width(data: Mapping[str, Any], target: Figure) -> str:
    titles = {"tv_seq": "TV of responses", "return_truncated": "J(π), weights cut at 2", "improvement_truncated": "J(π) − J(μ), weights cut at 2"}
    panels, style = target.subplots(1, len(titles), sharey=True), Styles()
    for axes, (certificate, title) in zip(panels, titles.items(), strict=True):
        for method, label in _names({r["method"] for r in data["rows"]}).items():
            rows = _pick(data["rows"], certificate=certificate, method=method)
            axes.loglog(_column(rows, "samples"), _column(rows, "width"), label=label, **style(method, "--"))
        axes.set_xlabel("independent responses")
        axes.set_title(title, fontsize="small")
    panels[0].set_ylabel(f"mean width of the {data['level']:.0%} interval")
    _legend(panels[0])
    return (
        f"Mean width (dashed: over simulated samples) of two-sided {data['level']:.0%} intervals for the means of three certified variables, by method. Betting adapts to a small "
        "variance soonest."
    )
