"""The generated parts of README.md and docs/verdicts.md: tables of the committed record and real output of commands.

``python -m opdtheory.report.readme`` rewrites them; a test fails when they are stale.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from opdtheory.claims.sources import SOURCES
from opdtheory.report.tables import verdict_table
from opdtheory.verification.certificate import file_name
from opdtheory.verification.engine import ROOT
from opdtheory.verification.runner import load_record

BEGIN, END = "<!-- generated: verdicts -->", "<!-- end of generated part -->"
WIDTH = 98
"""Columns of the terminal whose output the README shows."""
_OUTPUT = re.compile(r"<!-- output of (?P<command>.+?)(?:, first (?P<lines>\d+) lines)? -->\n```console\n.*?```", re.DOTALL)
_PRINTED = ("holds", "holds-if", "refuted", "misprint", "definition", "empirical", "question")


def summary_table(record: dict[str, Any]) -> str:
    """Counts of what became of each document's statements."""
    lines = ["| document | " + " | ".join(_PRINTED) + " |", "|---|" + "---:|" * len(_PRINTED)]
    for key, source in SOURCES.items():
        rows = [r for r in record["claims"] if r["source"] == key and r["as_printed"] != "not-in-source"]
        if rows:
            counts = [sum(r["as_printed"] == p for r in rows) for p in _PRINTED]
            lines.append(f"| {source.title} | " + " | ".join(str(c) if c else "–" for c in counts) + " |")
    ours = [r for r in record["claims"] if r["as_printed"] == "not-in-source"]
    statuses = sorted({r["status"] for r in ours})
    named = ", ".join(f"{sum(r['status'] == s for r in ours)} {s}" for s in statuses)
    lines += ["", f"Beside them stand {len(ours)} results of this package ({named})."]
    summary = record["summary"]
    lines.append(f"In all {summary['claims']} entries and {summary['certificates']} certificates; every entry is listed in [docs/verdicts.md](docs/verdicts.md).")
    return "\n".join(lines)


def full_table(record: dict[str, Any]) -> str:
    """Every entry: id, title, what became of the printed form, status, tightness, certificate."""
    parts = ["# Verdicts", "", "Generated from `opdtheory/data/record.json`; `opdtheory show ID` prints one entry in full, and "
             "[tightness.md](tightness.md) has the ratios of a wider search.", ""]
    for key, source in SOURCES.items():
        rows = [r for r in record["claims"] if r["source"] == key]
        if not rows:
            continue
        parts += [f"## {source.title}", "", "| id | title | as printed | status | lhs/rhs in the default search |", "|---|---|---|---|---:|"]
        for r in rows:
            ratio = f"{r['best_ratio']:.4f}" if isinstance(r["best_ratio"], float) else ""
            own = f"certificates/{file_name(r['id'])}"
            status = f"[{r['status']}](../{own})" if own in r["certificates"] else r["status"]
            parts.append(f"| `{r['id']}` | {r['title'].replace('|', chr(92) + '|')} | {r['as_printed']} | {status} | {ratio} |")
        parts.append("")
    return "\n".join(parts)


def with_summary(text: str, record: dict[str, Any]) -> str:
    """README text with the part between the markers replaced.

    Raises:
        ValueError: if the markers are missing.
    """
    if BEGIN not in text or END not in text:
        raise ValueError(f"README.md: expected the markers {BEGIN} and {END}")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{summary_table(record)}\n{END}{tail}"


def run_table(record: dict[str, Any], rows: int = 6) -> str:
    """What ``make verify`` prints at its end, all but the first rows of the table left out."""
    console = Console(width=WIDTH, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(verdict_table(record))
    lines = [line.rstrip() for line in capture.get().splitlines()]
    return "\n".join([*lines[: rows + 1], "…", *lines[-2:]])


def command_output(command: str, root: Path = ROOT) -> str:
    """Standard output of an ``opdtheory`` command line, run in ``root``.

    Raises:
        RuntimeError: if the command fails.
    """
    words = shlex.split(command)
    environment = os.environ | {"COLUMNS": str(WIDTH), "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=root, env=environment, capture_output=True, text=True, encoding="utf-8", check=False
    )
    if done.returncode:
        raise RuntimeError(f"{command}: exit code {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout


def with_outputs(text: str, record: dict[str, Any], run: Callable[[str], str] = command_output) -> str:
    """README text with every block after ``<!-- output of COMMAND, first N lines -->`` replaced by real output."""

    def block(match: re.Match[str]) -> str:
        command, limit = match["command"], match["lines"]
        if command == "make verify":
            shown = run_table(record)
        else:
            lines = [line.rstrip() for line in run(command).strip("\n").splitlines()]
            shown = "\n".join(lines if limit is None or len(lines) <= int(limit) else [*lines[: int(limit)], "…"])
        head = match[0].partition("\n")[0]
        return f"{head}\n```console\n$ {command}\n{shown}\n```"

    return _OUTPUT.sub(block, text)


def without_times(text: str) -> str:
    """Text with running times blanked, which differ from run to run.

    >>> without_times("384 ascents, 0.9 s, seed 0")
    '384 ascents, – s, seed 0'
    """
    return re.sub(r"\b\d+(\.\d+)? s\b", "– s", text)


def refresh(root: Path = ROOT) -> None:
    """Rewrite both files from the committed record and the commands' output."""
    record = load_record()
    readme = root / "README.md"
    readme.write_text(with_outputs(with_summary(readme.read_text(encoding="utf-8"), record), record), encoding="utf-8")
    (root / "docs" / "verdicts.md").write_text(full_table(record), encoding="utf-8")


if __name__ == "__main__":
    refresh()
