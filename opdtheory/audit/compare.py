"""Comparing two audits: which metrics moved, and whether by more than their intervals allow."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from opdtheory.audit.batch import InputError
from opdtheory.audit.readers.containers import unique_keys

MAX_BYTES = 256 << 20


def load(path: Path) -> dict[str, Any]:
    """A report written by ``audit --json``; ValueError naming the file otherwise."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(
                str(path), "", f"{path.stat().st_size} bytes", f"a report of at most {MAX_BYTES}"
            )
        document = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique_keys)
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            str(path),
            "",
            str(getattr(error, "strerror", None) or error)[:80],
            "a report written by audit --json",
        ) from None
    if not isinstance(document, dict) or "metrics" not in document or "schema_version" not in document:
        raise InputError(
            str(path), "", "no 'metrics' and 'schema_version'", "a report written by audit --json"
        )
    return document


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One entry per metric of either report: those beyond both intervals first, then by relative change.

    ``separated`` is true where both have intervals and these do not overlap, null where one has none.
    """
    out = []
    for name in sorted(set(a["metrics"]) | set(b["metrics"])):
        left, right = a["metrics"].get(name), b["metrics"].get(name)
        if left is None or right is None:
            out.append(
                {
                    "metric": name,
                    "a": _value(left),
                    "b": _value(right),
                    "change": None,
                    "relative": None,
                    "separated": None,
                }
            )
            continue
        x, y = float(left["value"]), float(right["value"])
        change = y - x if math.isfinite(x) and math.isfinite(y) else None if x == y else math.inf
        scale = max(abs(x), abs(y))
        relative = None if change is None or not math.isfinite(change) else change / scale if scale else 0.0
        separated = None
        if left["interval"] and right["interval"]:
            (l0, l1), (r0, r1) = ([float(v) for v in m["interval"]] for m in (left, right))
            separated = l1 < r0 or r1 < l0
        out.append(
            {"metric": name, "a": x, "b": y, "change": change, "relative": relative, "separated": separated}
        )
    return sorted(out, key=_order)


def _order(row: Mapping[str, Any]) -> tuple[bool, float, str]:
    relative = row["relative"]
    return not row["separated"], -abs(relative) if relative is not None else 1.0, row["metric"]


def _value(metric: Mapping[str, Any] | None) -> float | None:
    return None if metric is None else float(metric["value"])


def table(rows: list[dict[str, Any]], a: Mapping[str, Any], b: Mapping[str, Any], limit: int = 40) -> Group:
    """The largest changes, and the warnings that came or went."""
    out = Table(box=None, pad_edge=False)
    for name in ("metric", "A", "B", "change", "beyond both intervals"):
        out.add_column(name, no_wrap=not name.startswith("beyond"))
    moved = [r for r in rows if r["a"] != r["b"]]
    for row in moved[:limit]:
        numbers = ["–" if row[k] is None else f"{row[k]:.4g}" for k in ("a", "b", "change")]
        out.add_row(row["metric"], *numbers, {True: "yes", False: "no", None: ""}[row["separated"]])
    codes = [{w["code"] for w in d["warnings"]} for d in (a, b)]
    lines = [Text(f"warning gone: {c}", style="green") for c in sorted(codes[0] - codes[1])]
    lines += [Text(f"new warning: {c}", style="yellow") for c in sorted(codes[1] - codes[0])]
    return Group(Text(f"{len(moved)} of {len(rows)} metrics differ", style="bold"), out, *lines)
