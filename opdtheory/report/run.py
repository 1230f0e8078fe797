"""The page of one experiment: its paragraphs, tables and figures in a single file beside the record."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opdtheory.files import atomic
from opdtheory.report.page import environment
from opdtheory.report.recorded import draw_record


def write_run(record: Mapping[str, Any], folder: Path) -> Path:
    """Draw the figures of a record into ``folder/figures`` and write ``folder/report.html``."""
    report = record["report"]
    figures = []
    for path, data in zip(draw_record(record, folder / "figures"), report.get("figures", []), strict=True):
        image = base64.b64encode(path.read_bytes()).decode("ascii")
        caption = data.get("caption", data["title"])
        figures.append({"name": path.stem, "caption": caption, "uri": f"data:image/svg+xml;base64,{image}"})
    section = {
        "title": report.get("title", record["experiment"]),
        "summary": record["summary"],
        "paragraphs": report.get("paragraphs", []),
        "tables": report.get("tables", []),
        "figures": figures,
        "command": record["command"],
    }
    page = environment().get_template("run.html.j2").render(record=record, section=section)
    with atomic(folder / "report.html") as partial:
        partial.write_text(page, encoding="utf-8")
    return folder / "report.html"
