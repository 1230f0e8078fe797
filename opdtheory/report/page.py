"""The self-contained report: one HTML file, no network, formulas as MathML, readable by keyboard and in the dark."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import jinja2
from latex2mathml.converter import convert
from markupsafe import Markup

from opdtheory.calculator import calculate
from opdtheory.claims.sources import SOURCES
from opdtheory.report.graph import dependency_graph

SCENARIOS: tuple[dict[str, Any], ...] = (
    {"name": "the bounds' table of Trust Region Masking", "horizon": 4096, "kl_max": 1e-4, "kl_seq": 0.01},
    {"name": "the same with D_seq at its limit T·δ", "horizon": 4096, "kl_max": 1e-4, "kl_seq": 4096e-4},
)
"""Regimes that the papers quote; every bound is evaluated on them by the calculator."""


def _mathml(latex: str) -> Markup:
    return Markup(convert(latex, display="block")) if latex else Markup("")


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


def render(document: dict[str, Any], certificates: dict[str, dict[str, Any]]) -> str:
    """The page as a string.

    Args:
        document: a ``results.json`` document.
        certificates: certificate file path (as listed in the document) → its content.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("opdtheory.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"mathml": _mathml, "anchor": _anchor, "flat": _flat}
    tight = sorted((c for c in document["claims"] if isinstance(c["best_ratio"], float)), key=lambda c: -c["best_ratio"])
    return environment.get_template("report.html.j2").render(
        document=document,
        certificates=certificates,
        sources=SOURCES,
        scenarios=SCENARIOS,
        scenario_rows=scenario_table(),
        tight=tight,
        graph=Markup(dependency_graph(document["claims"], _anchor)),
        ids={c["id"] for c in document["claims"]},
    )


def write_report(document: dict[str, Any], verdicts: list[Any], path: Path) -> None:
    """Render a run and write the page atomically."""
    rows = {row["id"]: row["certificates"] for row in document["claims"]}
    certificates = {
        file: content for v in verdicts for file, content in zip(rows[v.claim.id], v.certificates.values(), strict=True)
    }
    page = render(document, certificates)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(page)
    os.replace(temporary, path)
