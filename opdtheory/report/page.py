"""The self-contained report: one HTML file, no network, formulas as MathML, readable by keyboard and in the dark."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2
from latex2mathml.converter import convert
from markupsafe import Markup, escape

from opdtheory.calculator import calculate
from opdtheory.claims.sources import SOURCES
from opdtheory.files import atomic
from opdtheory.report.contexts import context_table, remainder
from opdtheory.report.graph import dependency_graph
from opdtheory.report.studies import recorded_studies
from opdtheory.verification.engine import ROOT
from opdtheory.verification.power import load_record as load_power

SCENARIOS: tuple[dict[str, Any], ...] = (
    {"name": "the bounds' table of Trust Region Masking", "horizon": 4096, "kl_max": 1e-4, "kl_seq": 0.01},
    {"name": "the same with D_seq at its limit T·δ", "horizon": 4096, "kl_max": 1e-4, "kl_seq": 4096e-4},
)
"""Regimes that the papers quote; every bound is evaluated on them by the calculator."""

STATUS_WORDS = {
    "proved": "proved by machine on the scope it states",
    "proved-on-paper": "a written proof whose lemmas are machine-checked, and every attack survived",
    "identity-tested": "exact evaluation at random rational points; the error probability is printed",
    "survived": "every attack survived, which is no proof",
    "refuted": "at least one counterexample that the separate checker confirms",
    "conditional": "rests on a claim that is refuted or undecided",
    "unit-tested": "a definition, tested as code",
    "recorded": "about training runs; the arithmetic of what is reported was checked",
    "undecided": "the evidence decides nothing",
}
PRINTED_WORDS = {
    "holds": "true as the source words it",
    "holds-if": "true with an assumption that the source does not state",
    "misprint": "evidently a slip: the intended form holds",
    "refuted": "false as the source words it",
    "question": "the source asks",
    "definition": "a definition",
    "empirical": "about training runs",
    "not-in-source": "a correction or sharper result of this package",
}
_EDGES = {"refuted": "bad", "survived": "mid", "unit-tested": "mid", "recorded": "mid", "conditional": "open", "undecided": "open"}


_UNKNOWN_TO_THE_CONVERTER = ((r"\arg\max", r"\operatorname{arg\,max}"), (r"\Big\langle", r"\langle"), (r"\Big\rangle", r"\rangle"))


def _mathml(latex: str) -> Markup:
    """A displayed formula; commands that the converter would print as they are get a form that it knows."""
    for command, known in _UNKNOWN_TO_THE_CONVERTER:
        latex = latex.replace(command, known)
    return Markup(convert(latex, display="block"))


def _powers(text: str) -> Markup:
    """Plain text with T^{3/2} as a superscript."""
    return Markup(re.sub(r"\^\{(.+?)\}", r"<sup>\1</sup>", str(escape(text))))


def _anchor(claim_id: str) -> str:
    return claim_id.replace("/", "--").replace(".", "-")


def _flat(data: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Rows (name, text) of an instance's numbers, one a level of a table."""
    rows: list[tuple[str, str]] = []
    for name, value in data.items():
        label = f"{prefix}{name}"
        if isinstance(value, dict):
            rows += _flat(value, f"{label}.")
        elif isinstance(value, list) and value and isinstance(value[0], list):
            for t, level in enumerate(value):
                nested = level if level and isinstance(level[0], list) else [level]
                text = "  ".join("(" + ", ".join(map(str, row)) + ")" for row in nested)
                rows.append((f"{label}, step {t + 1}" if len(value) > 1 else label, text))
        elif isinstance(value, list):
            rows.append((label, "(" + ", ".join(map(str, value)) + ")"))
        elif value is not None:
            rows.append((label, str(value)))
    return rows


def scenario_table() -> list[dict[str, Any]]:
    """What each bound on |Error| says on the papers' own scenarios, smallest first."""
    columns = []
    for scenario in SCENARIOS:
        given = {k: v for k, v in scenario.items() if k != "name"}
        columns.append({row["id"]: row for row in calculate(**given)["bounds"] if row["target"] == "surrogate_error"})
    rows = []
    for bound_id, row in columns[-1].items():
        cells = [c.get(bound_id) for c in columns]
        rows.append({"id": bound_id, "name": row["name"], "cells": cells, "scaling": row["scaling"]})
    return rows


def verdict_matrix(claims: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Source → what becomes of its wording → how many claims, in the order of the vocabulary.

    >>> verdict_matrix([{"source": "trm", "as_printed": v} for v in ("refuted", "holds", "refuted")])
    {'trm': {'holds': 1, 'refuted': 2}}
    """
    matrix: dict[str, dict[str, int]] = {}
    for claim in claims:
        counts = matrix.setdefault(claim["source"], dict.fromkeys(PRINTED_WORDS, 0))
        counts[claim["as_printed"]] += 1
    return {source: {k: n for k, n in counts.items() if n} for source, counts in matrix.items()}


def _cell(value: Any) -> str:
    """A table cell: four digits of a number, yes and no, anything else as it is."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def environment() -> jinja2.Environment:
    """The templates of this package with the filters that they use."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("opdtheory.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    made.filters |= {
        "mathml": _mathml, "powers": _powers, "anchor": _anchor, "flat": _flat, "cell": _cell, "contexts": context_table, "remainder": remainder,
        "edge": lambda status: _EDGES.get(status, "good"),
    }  # fmt: skip
    return made


def render(
    document: dict[str, Any],
    certificates: dict[str, dict[str, Any]],
    studies: list[dict[str, Any]] | None = None,
    power: dict[str, Any] | None = None,
) -> str:
    """The page as a string.

    Args:
        document: a ``results.json`` document.
        certificates: certificate file path (as listed in the document) → its content.
        studies: groups of :func:`opdtheory.report.studies.recorded_studies` to show, if any.
        power: the recorded measurement of ``opdtheory power``, if any.
    """
    by_status = document["summary"]["by_status"]
    tight = sorted((c for c in document["claims"] if isinstance(c["best_ratio"], float)), key=lambda c: -c["best_ratio"])
    return environment().get_template("report.html.j2").render(
        document=document,
        certificates=certificates,
        sources=SOURCES,
        scenarios=SCENARIOS,
        scenario_rows=scenario_table(),
        tight=tight,
        matrix=verdict_matrix(document["claims"]),
        by_status={s: by_status[s] for s in STATUS_WORDS if s in by_status},
        status_words=STATUS_WORDS,
        printed_words=PRINTED_WORDS,
        studies=studies or [],
        power=power,
        graph=Markup(dependency_graph(document["claims"], _anchor)),
        ids={c["id"] for c in document["claims"]},
    )


def write_report(document: dict[str, Any], verdicts: list[Any], path: Path) -> None:
    """Render a run and write the page atomically."""
    rows = {row["id"]: row["certificates"] for row in document["claims"]}
    certificates = {
        file: content for v in verdicts for file, content in zip(rows[v.claim.id], v.certificates.values(), strict=True)
    }
    page = render(document, certificates, recorded_studies(ROOT), load_power())
    with atomic(path) as partial:
        partial.write_text(page, encoding="utf-8")
