"""The report as one self-contained HTML page."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jinja2

from opdtheory.audit import svg

if TYPE_CHECKING:
    from opdtheory.audit.report import Report

DISTRIBUTIONS = (
    "kl_rollout_train",
    "tv",
    "abs_log_ratio",
    "log_ratio",
    "k3",
    "topk_kl",
    "kl_student_teacher",
    "opd_reward",
    "topd_reward",
    "entropy_train",
)
SEQUENCE_DISTRIBUTIONS = ("seq_log_w", "seq_sum_k3", "seq_max_abs_log_ratio", "length", "reward")
PROFILES = ("abs_log_ratio", "log_ratio", "kl_rollout_train", "tv", "k3", "kl_student_teacher")
RUN_METRICS = (
    "abs_log_ratio/mean", "kl_rollout_train/mean", "tv/mean", "seq_effective_fraction", "reward/mean",
    "kl_student_teacher/mean",
)  # fmt: skip
GROUPS = (
    ("Rollout against trainer", ("kl_", "tv", "chi2_", "jsd", "hellinger2", "topk_", "binary_", "max_abs")),
    (
        "Sampled estimators and ratios",
        (
            "k1",
            "k2",
            "k3",
            "ratio",
            "log_ratio",
            "abs_log_ratio",
            "chi2_sampled",
            "tv_sampled",
            "seq_",
            "token_eff",
        ),
    ),
    ("Distillation", ("opd_", "topd_", "tropd_")),
    ("Dashboard names", ("rollout_corr/", "compat/")),
)


def render(report: Report) -> str:
    """The page; the report's dictionary feeds it, so that redaction reaches it too."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("opdtheory.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["show"] = show
    document = report.to_dict()
    return environment.get_template("audit.html.j2").render(
        document=document,
        tables=_tables(document),
        charts=_charts(report),
        profiles=_profiles(document),
        run_charts=_run_charts(document),
        run_metrics=RUN_METRICS,
        heat=_heat(document),
        marked=[] if report.settings.redact else _marked(report, document),
        headlines=_headlines(document),
    )


def show(value: Any) -> str:
    """A number for reading."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return {"inf": "∞", "-inf": "−∞"}.get(value, value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _headlines(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    from opdtheory.audit.report import HEADLINES

    return [(name, document["metrics"][name]) for name in HEADLINES if name in document["metrics"]]


def _tables(document: dict[str, Any]) -> list[tuple[str, list[tuple[str, dict[str, Any]]]]]:
    """Metrics in groups; each goes to the last group that one of its prefixes names."""
    chosen: dict[str, list[tuple[str, dict[str, Any]]]] = {
        t: [] for t, _ in (*GROUPS, ("Everything else", ()))
    }
    for name, metric in document["metrics"].items():
        titles = [title for title, prefixes in GROUPS if name.startswith(prefixes)]
        title = "Distillation" if "teacher" in name else titles[-1] if titles else "Everything else"
        chosen[title].append((name, metric))
    return [(title, rows) for title, rows in chosen.items() if rows]


def _charts(report: Report) -> list[tuple[str, str]]:
    state = report.state
    pairs = [(n, state.tokens[n]) for n in DISTRIBUTIONS if n in state.tokens]
    pairs += [(n, state.sequences[n]) for n in SEQUENCE_DISTRIBUTIONS if n in state.sequences]
    drawn = [(name, svg.histogram(series, name)) for name, series in pairs if series.count > 1]
    return [(name, chart) for name, chart in drawn if chart]


def _profiles(document: dict[str, Any]) -> list[tuple[str, str]]:
    rows = document["profile"]
    out = []
    for name in PROFILES:
        have = [r for r in rows if name in r]
        if have:
            out.append(
                (name, svg.line([r["position"] for r in have], [r[name] for r in have], f"Mean {name}"))
            )
    return [(name, chart) for name, chart in out if chart]


def _run_charts(document: dict[str, Any]) -> list[tuple[str, str]]:
    """Headline metrics over the training steps."""
    steps = document["steps"]
    out = []
    for name in RUN_METRICS:
        points = [(s["step"], float(s["metrics"][name]["value"])) for s in steps if name in s["metrics"]]
        if len(points) > 1:
            out.append((name, svg.line([x for x, _ in points], [y for _, y in points], name, "step")))
    return [(name, chart) for name, chart in out if chart]


def _heat(document: dict[str, Any]) -> str:
    rows = document["heat"]
    return (
        svg.heat(
            [r["values"] for r in rows], [r["sequence"] for r in rows], "Divergence by sequence and token"
        )
        if rows
        else ""
    )


def _marked(report: Report, document: dict[str, Any]) -> list[dict[str, Any]]:
    """The worst sequences as texts, each token shaded by its divergence; only where texts are known."""
    out = []
    for row in document["heat"][:8]:
        tokens = row.get("tokens", [])[:160]
        texts = [report.texts.get(t, report.state.texts.get(t)) for t in tokens]
        if not any(texts):
            continue
        values = row["values"][: len(tokens)]
        high = max(values, default=0.0)
        low = max(high * 1e-4, 1e-12)
        span = math.log(high / low) if high > low else 1.0
        parts = [
            {
                "text": t if t is not None else f"⟨{i}⟩",
                "value": v,
                "shade": round(0.75 * svg.shade(v, low, span), 2),
            }
            for t, i, v in zip(texts, tokens, values, strict=True)
        ]
        out.append({"sequence": row["sequence"], "mean": row["mean"], "parts": parts})
    return out
