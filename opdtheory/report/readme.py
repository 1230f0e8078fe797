"""The generated parts of README.md and docs/verdicts.md: tables computed from the committed record.

``python -m opdtheory.report.readme`` rewrites them; a test fails when they are stale.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opdtheory.claims.sources import SOURCES
from opdtheory.verification.certificate import file_name
from opdtheory.verification.engine import ROOT
from opdtheory.verification.runner import load_record

BEGIN, END = "<!-- generated: verdicts -->", "<!-- end of generated part -->"
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
    parts = ["# Verdicts", "", "Generated from `opdtheory/data/record.json`; `opdtheory show ID` prints one entry in full.", ""]
    for key, source in SOURCES.items():
        rows = [r for r in record["claims"] if r["source"] == key]
        if not rows:
            continue
        parts += [f"## {source.title}", "", "| id | title | as printed | status | largest lhs/rhs |", "|---|---|---|---|---:|"]
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


def refresh(root: Path = ROOT) -> None:
    """Rewrite both files from the committed record."""
    record = load_record()
    readme = root / "README.md"
    readme.write_text(with_summary(readme.read_text(encoding="utf-8"), record), encoding="utf-8")
    (root / "docs" / "verdicts.md").write_text(full_table(record), encoding="utf-8")


if __name__ == "__main__":
    refresh()
