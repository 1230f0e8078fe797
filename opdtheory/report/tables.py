"""Terminal renderings of claims, verdicts and searches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from opdtheory.verification.certificate import load
from opdtheory.verification.claim import Claim
from opdtheory.verification.engine import ROOT
from opdtheory.verification.searching import SearchResult

STATUS_STYLE = {
    "proved": "bold green", "proved-on-paper": "green", "identity-tested": "green", "survived": "cyan",
    "refuted": "bold red", "conditional": "yellow", "unit-tested": "blue", "recorded": "blue", "undecided": "bold yellow",
}  # fmt: skip


def _status(value: str | None) -> Text:
    return Text(value or "not recorded", style=STATUS_STYLE.get(value or "", "dim"))


def claims_table(rows: list[dict[str, Any]]) -> Table:
    """id, locator, title, printed verdict and status of each claim."""
    table = Table(box=None, pad_edge=False)
    for name in ("id", "where", "title", "as printed", "status"):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(Text(row["id"]), Text(row["locator"]), Text(row["title"]), row["as_printed"] or "–", _status(row["status"]))
    return table


def verdict_table(document: dict[str, Any]) -> Group:
    """The table of a run, with its summary line."""
    table = Table(box=None, pad_edge=False, expand=True)
    for name in ("id", "as printed", "status", "lhs/rhs"):
        table.add_column(name, no_wrap=True)
    table.add_column("evidence", no_wrap=True, overflow="ellipsis", ratio=1)
    for row in document["claims"]:
        ratio = row["best_ratio"]
        tightness = f"{ratio:.4f}" if isinstance(ratio, float) else "–"
        first = row["evidence"][0]["detail"] if row["evidence"] else ""
        table.add_row(Text(row["id"]), row["as_printed"], _status(row["status"]), tightness, Text(first))
    summary = document["summary"]
    counts = ", ".join(f"{n} {status}" for status, n in summary["by_status"].items())
    line = f"\n{summary['claims']} claims: {counts}; {summary['certificates']} certificates; {document['seconds']} s"
    return Group(table, Text(line, style="bold"))


def readable_instance(data: dict[str, Any]) -> Table:
    """An instance's numbers, one row a context, probabilities as fractions."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in data.items():
        if isinstance(value, list) and value and isinstance(value[0], list):
            for t, level in enumerate(value):
                rows = level if isinstance(level, list) and level and isinstance(level[0], list) else [level]
                table.add_row(f"{name} t={t + 1}", Text("   ".join("(" + ", ".join(map(str, row)) + ")" for row in rows)))
        elif isinstance(value, list):
            table.add_row(name, Text("(" + ", ".join(map(str, value)) + ")"))
        elif value is not None:
            table.add_row(name, Text(str(value)))
    return table


def claim_page(claim: Claim, row: dict[str, Any] | None) -> Group:
    """Everything about one claim: statement, hypotheses, verdict, evidence, witness, relations to other claims."""
    source = f"{claim.source.title}, {claim.locator}" if claim.source else claim.locator
    parts: list[Any] = [Text(f"{claim.id}  {claim.title}", style="bold"), Text(source, style="dim"), Text("")]
    parts.append(Text(claim.statement or "(no statement)"))
    for hypothesis in claim.hypotheses:
        parts.append(Text(f"  assuming {hypothesis}"))
    if claim.assumption:
        parts.append(Text(f"  not stated by the source, needed: {claim.assumption}", style="yellow"))
    if row is None:
        parts.append(Text("\nNo recorded verdict; run `opdtheory verify`.", style="yellow"))
        return Group(*parts)
    parts.append(Text.assemble("\nas printed: ", row["as_printed"], "   status: ", _status(row["status"])))
    if isinstance(row["best_ratio"], float):
        parts.append(Text(f"largest lhs/rhs in the default search: {row['best_ratio']:.6g}   sharpness: {row['sharpness']}"))
    swept = _swept(claim.id)
    if swept:
        parts.append(Text(swept))
    for item in row["evidence"]:
        parts.append(Text(f"  [{item['grade']}{'' if item['ok'] else ', against'}] {item['detail']}"))
    useful = row["usefulness"]
    if useful["detail"] or useful["useful_when"]:
        parts.append(Text(f"usefulness: {useful['useful_when']} {useful['detail']}".rstrip()))
    for name in ("sketch", "note"):
        if row[name]:
            parts.append(Text(f"{name}: {row[name]}"))
    if row["proof"]:
        parts.append(Text(f"proof: {row['proof']}"))
    if row["corrected_by"]:
        parts.append(Text(f"corrected or sharpened by: {', '.join(row['corrected_by'])}"))
    if row["depends_on"]:
        parts.append(Text(f"rests on: {', '.join(row['depends_on'])}"))
    for path in row["certificates"]:
        parts.append(Text(f"certificate: {path}"))
        parts.extend(_certificate(path))
    if row["witness"] is not None:
        parts += [Text("tightness witness:"), readable_instance(row["witness"])]
    return Group(*parts)


def _swept(claim_id: str) -> str:
    """What the recorded wide sweep found, horizon by horizon, if there is such a record."""
    from opdtheory.report import tightness

    if not tightness.RECORD.exists():
        return ""
    row = next((r for r in tightness.load()["inequalities"] if r["id"] == claim_id), None)
    steps = {} if row is None else {t: score for t, score in tightness.by_horizon(row).items() if t}
    if row is None or not steps:
        return ""
    vocab = max(size["vocab"] for size in row["reached"])
    what = "largest lhs/rhs" if row["form"] == "ratio" else "smallest margin"
    sign = 1 if row["form"] == "ratio" else -1
    return f"{what} for V ≤ {vocab}: " + ", ".join(f"{sign * score + 0.0:.4g} at T = {t}" for t, score in sorted(steps.items()))


def _certificate(path: str) -> list[Any]:
    """The counterexample behind a certificate, if the checkout that holds it is at hand."""
    file = ROOT / path
    if not file.exists():
        return []
    certificate = load(file)
    return [Text(f"  {certificate['sentence']}", style="red"), readable_instance(certificate["instance"])]


def power_table(document: dict[str, Any]) -> Group:
    """The false statements of a power measurement with how often each was refuted, and the summary."""
    table = Table(box=None, pad_edge=False)
    for name, justify in (("false statement", "left"), ("what is wrong", "left"), ("refuted", "right"), ("slowest, CPU s", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in document["statements"]:
        if row["false"]:
            hits = f"{len(row['refuted'])}/{len(row['refuted']) + len(row['not_refuted'])}"
            table.add_row(Text(row["id"]), Text(row["slip"]), hits, f"{max(row['seconds']):.2f}")
    s = document["summary"]
    line = (
        f"\n{s['false_statements']} false statements: {100 * s['power']:.4g} % refuted over {s['seeds']} seeds, the hardest in "
        f"{100 * s['lowest_rate']:.4g} %, none slower than {s['slowest_refutation_seconds']:.2f} CPU s; "
        f"{s['true_statements']} true ones: {len(s['false_alarms'])} refuted"
    )
    return Group(table, Text(line, style="bold" if s["goal_met"] else "bold red"))


def search_summary(result: SearchResult, path: Path | None) -> Group:
    """What a search found."""
    verdict = Text("refuted", style="bold red") if result.refuted else Text("not refuted", style="cyan")
    parts: list[Any] = [Text.assemble(result.claim.id, ": ", verdict)]
    if result.best_ratio is not None:
        parts.append(Text(f"best lhs/(C·rhs) = {result.best_ratio:.9g}"))
    elif not result.refuted:
        parts.append(Text(f"best score {result.best_score:.6g} (above 0 would be a violation)"))
    parts.append(Text(f"{result.instances} instances, {result.ascents} ascents, {result.seconds:.1f} s, seed {result.seed}"))
    if result.note:
        parts.append(Text(result.note, style="yellow"))
    if result.instance is not None:
        parts.append(readable_instance(result.instance))
    if path is not None:
        parts.append(Text(f"certificate: {path}"))
    return Group(*parts)
