"""The record of a thorough run: how near every inequality comes to its limit, size by size, and docs/tightness.md.

``opdtheory verify --effort thorough --json build/thorough.json`` and then
``python -m opdtheory.report.tightness build/thorough.json`` rewrite both.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from opdtheory.bounds.registry import REGISTRY
from opdtheory.claims import get
from opdtheory.claims.sources import SOURCES
from opdtheory.report.page import SCENARIOS, scenario_table
from opdtheory.verification.certificate import write_json
from opdtheory.verification.engine import ROOT

RECORD = Path(__file__).resolve().parents[1] / "data" / "tightness.json"
PAGE = ROOT / "docs" / "tightness.md"
_EQUALITIES = ("==", "identity")


def condense(document: dict[str, Any]) -> dict[str, Any]:
    """The part of a thorough ``results.json`` that is worth keeping.

    Raises:
        ValueError: if the run was not thorough.
    """
    if document["effort"] != "thorough":
        raise ValueError(f"effort {document['effort']!r}: expected a run with --effort thorough")
    rows = [_row(row) for row in document["claims"]]
    return {
        "package_version": document["package_version"],
        "seed": document["seed"],
        "seconds": round(sum(row["seconds"] for row in document["claims"]), 1),
        "claims": len(rows),
        "mutants": {
            "attacked": sum(len(row["mutants"]) for row in document["claims"]),
            "dead": sum(m["got"] == "dies" for row in document["claims"] for m in row["mutants"]),
            "unexpected": [f"{row['id']}: {m['name']}" for row in document["claims"] for m in row["mutants"] if m["got"] != m["expected"]],
        },
        "inequalities": [row for row in rows if row is not None],
    }


def _row(row: dict[str, Any]) -> dict[str, Any] | None:
    """One inequality that stands, or None: equalities, refuted entries and those without sides have no tightness."""
    claim = get(row["id"])
    if claim.sides is None or claim.relation in _EQUALITIES or row["status"] == "refuted":
        return None
    return {
        "id": row["id"], "title": row["title"], "source": row["source"], "sharpness": row["sharpness"],
        "form": "ratio" if claim.has_ratio else "margin", "best": _best(row, claim.has_ratio),
        "limit": next((e["detail"] for e in row["evidence"] if e["grade"] == "limit" and e["ok"]), None),
        "reached": [{k: v for k, v in size.items() if v is not None} for size in row["reached"]], "witness": row["witness"],
        "mutants": {m["name"]: m["got"] for m in row["mutants"]},
    }  # fmt: skip


def _best(row: dict[str, Any], ratio: bool) -> Any:
    """Largest lhs/rhs, or the largest lhs − rhs: what is left is its negative."""
    if ratio:
        return row["best_ratio"]
    scores = [size["score"] for size in row["reached"] if isinstance(size["score"], (int, float))]
    return max(scores, default=None)


def load() -> dict[str, Any]:
    """The committed record."""
    return json.loads(RECORD.read_text(encoding="utf-8"))


def by_horizon(row: dict[str, Any]) -> dict[int, float]:
    """Horizon → the best over all vocabularies (0 for spaces without a horizon)."""
    out: dict[int, float] = {}
    for size in row["reached"]:
        if isinstance(size["score"], (int, float)):
            t = size.get("horizon", 0)
            out[t] = max(out.get(t, -float("inf")), size["score"])
    return out


def scenarios() -> list[str]:
    """Markdown table: each bound on the papers' own scenarios."""
    heads = [f"δ = {s['kl_max']:g}, D = {s['kl_seq']:g}" for s in SCENARIOS]
    lines = ["| bound | entry | grows as | " + " | ".join(heads) + " |", "|---|---|---|" + "---:|" * len(heads)]
    for row in scenario_table():
        cells = []
        for cell in row["cells"]:
            text = "–" if cell is None else f"{cell['value']:.4g}" if isinstance(cell["value"], float) else str(cell["value"])
            cells.append(f"{text} (says nothing)" if cell is not None and cell["vacuous"] else f"**{text}**")
        lines.append(f"| {row['name']} | `{REGISTRY[row['id']].claim}` | {row['scaling'].replace('|', chr(92) + '|')} | " + " | ".join(cells) + " |")
    return lines


def _number(x: Any) -> str:
    return f"{x:.4f}" if isinstance(x, (int, float)) else "" if x is None else str(x)


def constants(record: dict[str, Any], source: str) -> list[str]:
    """Markdown table of one document's inequalities: the largest ratio, overall and for every horizon."""
    rows = [r for r in record["inequalities"] if r["form"] == "ratio" and r["source"] == source]
    if not rows:
        return []
    lines = ["| entry | declared | C at least | " + " | ".join(f"T = {t}" for t in range(1, 7)) + " |", "|---|---|---:|" + "---:|" * 6]
    for row in rows:
        by = by_horizon(row)
        cells = " | ".join(_number(by.get(t)) for t in range(1, 7))
        title = row["title"].replace("|", "\\|")
        lines.append(f"| `{row['id']}` {title} | {row['sharpness']} | {_number(row['best'])} | {cells} |")
    return lines


def page(record: dict[str, Any]) -> str:
    """docs/tightness.md."""
    signed = [r for r in record["inequalities"] if r["form"] == "margin"]
    mutants = record["mutants"]
    parts = [
        "# How tight every bound is", "",
        "Generated from `opdtheory/data/tightness.json`, the record of `opdtheory verify --effort thorough`; "
        "`opdtheory show ID` prints the instance of the default search, whose ratio may be smaller.", "",
        f"## What each bound says at T = {SCENARIOS[0]['horizon']} on the papers' own scenarios", "",
        "Bounds on |J(π) − J(μ) − L| for rewards in [0, 1], where 1 says nothing: δ the largest KL(μ‖π) of any context, D the KL(μ‖π) "
        "of whole responses. Total variation enters through Pinsker's inequality where it is not given.", "",
        *scenarios(), "",
        "## Smallest constants", "",
        "For an inequality 0 ≤ lhs ≤ C·rhs: the largest lhs/rhs found, below which no constant can be cut, over every vocabulary "
        "V ≤ 4 and horizon T ≤ 6 (sequences of any shorter statement: up to where it ends), then the largest at each horizon. "
        "An empty cell: the statement does not depend on the horizon, or is not about that one.", "",
    ]  # fmt: skip
    for key, source in SOURCES.items():
        table = constants(record, key)
        if table:
            parts += [f"### {source.title}", "", *table, ""]
    parts += [
        "## Statements without a constant", "",
        "Signed inequalities and implications: the smallest rhs − lhs found under the conditions of the statement (0: attained).", "",
        "| entry | declared | smallest margin |", "|---|---|---:|",
        *(f"| `{r['id']}` {r['title'].replace('|', chr(92) + '|')} | {r['sharpness']} | {_number(0.0 - r['best'] if r['best'] else r['best'])} |" for r in signed), "",
        "## Near misses", "",
        f"{mutants['attacked']} mutants of the entries were attacked: constants cut by 1 % to 50 %, sides shifted by a thousandth, KL directions "
        f"swapped, maxima for means, horizons off by one, hypotheses dropped. {mutants['dead']} died, the others were expected to survive"
        + (f", except {', '.join(mutants['unexpected'])}." if mutants["unexpected"] else "."), "",
    ]  # fmt: skip
    return "\n".join(parts)


def refresh(results: Path) -> None:
    """Make a thorough run the committed record and rewrite the page."""
    write_json(RECORD, condense(json.loads(results.read_text(encoding="utf-8"))))
    PAGE.write_text(page(load()), encoding="utf-8")


if __name__ == "__main__":
    refresh(Path(sys.argv[1]))
