"""The recorded studies of a checkout as sections of the report: paragraphs, tables and figures, nothing recomputed."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

GROUPS = (
    ("Real models", "benchmarks/results", "*.json"),
    ("Gradients", "figures/data", "gradient_*.json"),
    ("Simulations", "figures/data", "sim_*.json"),
)


def captions(folder: Path) -> dict[str, str]:
    """Figure name → caption, from the companion file that ``opdtheory figures`` writes."""
    file = folder / "captions.md"
    if not file.exists():
        return {}
    return dict(re.findall(r"^\*\*(.+?)\.\*\* (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE))


def recorded_studies(root: Path) -> list[dict[str, Any]]:
    """Groups of sections: ``name`` and ``sections`` of ``title``, ``summary``, ``paragraphs``, ``tables``, ``figures``.

    Args:
        root: a checkout; without its ``figures`` and ``benchmarks`` folders the list is empty.
    """
    texts = captions(root / "figures")
    used: set[str] = set()
    groups = []
    for name, folder, pattern in GROUPS:
        sections = []
        for path in sorted((root / folder).glob(pattern)):
            record = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(record, dict) and "report" in record and "experiment" in record:
                mine = [n for n in texts if n.startswith(f"{record['experiment']}-")]
                used.update(mine)
                sections.append(_section(record, [_figure(root, n, texts[n]) for n in mine]))
        if sections:
            groups.append({"name": name, "sections": sections})
    rest = [_figure(root, n, texts[n]) for n in texts if n not in used]
    if rest:
        plain = {"title": "Exact studies of the bounds", "summary": "", "paragraphs": [], "tables": [], "command": ""}
        groups.insert(0, {"name": "Theory", "sections": [plain | {"figures": rest}]})
    return groups


def _section(record: Mapping[str, Any], figures: list[dict[str, str]]) -> dict[str, Any]:
    report, summary = record["report"], record.get("summary")
    text = summary if isinstance(summary, str) else ""
    text = text[:1].upper() + text[1:]
    return {
        "title": report.get("title") or text or record["experiment"],
        "summary": text if report.get("title") else "",
        "paragraphs": report.get("paragraphs", []),
        "tables": report.get("tables", []),
        "command": record.get("command", ""),
        "figures": figures,
    }


def _figure(root: Path, name: str, caption: str) -> dict[str, str]:
    image = base64.b64encode((root / "figures" / f"{name}.svg").read_bytes()).decode("ascii")
    return {"name": name, "caption": caption, "uri": f"data:image/svg+xml;base64,{image}"}
