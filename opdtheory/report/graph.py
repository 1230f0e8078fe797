"""The dependency graph of the catalogue as inline SVG, layered from foundations (left) to what rests on them."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

_ROW, _COLUMN, _PAD = 24, 230, 14


def _layers(needs: dict[str, list[str]]) -> dict[str, int]:
    """Longest path from a foundation, by id; the graph is acyclic (the run has checked)."""
    depth: dict[str, int] = {}

    def visit(node: str) -> int:
        if node not in depth:
            depth[node] = 1 + max((visit(n) for n in needs[node]), default=-1)
        return depth[node]

    for node in needs:
        visit(node)
    return depth


def dependency_graph(claims: list[dict[str, Any]], anchor: Callable[[str], str]) -> str:
    """SVG of every claim that rests on another or is rested on; nodes link to the claims' sections."""
    known = {c["id"]: c for c in claims}
    needs = {cid: [d for d in c["depends_on"] if d in known] for cid, c in known.items()}
    used = {cid for cid, ds in needs.items() if ds} | {d for ds in needs.values() for d in ds}
    if not used:
        return ""
    depth = _layers({cid: needs[cid] for cid in used})
    columns: dict[int, list[str]] = {}
    for cid in known:
        if cid in used:
            columns.setdefault(depth[cid], []).append(cid)
    place: dict[str, tuple[int, int]] = {}
    for column in sorted(columns):
        # order by the mean height of what a node rests on, which keeps most edges short
        def height(cid: str) -> float:
            below = [place[d][1] for d in needs[cid] if d in place]
            return sum(below) / len(below) if below else 0.0

        for row, cid in enumerate(sorted(columns[column], key=height)):
            place[cid] = (_PAD + column * _COLUMN, _PAD + row * _ROW + _ROW // 2)
    width = _PAD * 2 + (max(columns) + 1) * _COLUMN
    height_px = _PAD * 2 + max(len(c) for c in columns.values()) * _ROW
    parts = [f'<svg class="graph" viewBox="0 0 {width} {height_px}" width="{width}" role="img" aria-label="Which claims rest on which">']
    for cid in place:
        for needed in needs[cid]:
            (x1, y1), (x2, y2) = place[needed], place[cid]
            x1 += _COLUMN - 50
            middle = (x1 + x2) / 2
            parts.append(f'<path d="M{x1} {y1} C{middle} {y1} {middle} {y2} {x2} {y2}"/>')
    for cid, (x, y) in place.items():
        status = escape(known[cid]["status"])
        parts.append(
            f'<a href="#{anchor(cid)}" class="node s-{status}"><rect x="{x}" y="{y - 9}" width="{_COLUMN - 50}" height="18" rx="4"/>'
            f'<text x="{x + 6}" y="{y + 4}">{escape(cid)}</text><title>{escape(known[cid]["title"])}: {status}</title></a>'
        )
    return "".join([*parts, "</svg>"])
