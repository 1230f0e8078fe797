"""A certificate told to a reader: what was said, the instance as a table, every quantity with its value and its meaning."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from opdtheory import checker
from opdtheory.report.contexts import context_table, remainder
from opdtheory.verification.claim import Claim

_SCOPE = frozenset(
    ["min_p", "min_q", "min_behavior", "min_target", "min_student", "min_teacher", "min_candidate", "reward_min", "reward_max", "values_min", "values_max", "support_ok", "p_covered"]
)
"""Quantities whose conditions only say which instances a claim is about: full support, range of rewards, parameters."""
_FAILS = {"<=": "is not at most", "<": "is not below", ">=": "is not at least", ">": "is not above", "==": "differs from", "identity": "differs from"}


def explain(certificate: Mapping[str, Any], claim: Claim) -> str:
    """Markdown: the claim, the counterexample as a table, the quantities in numbers, and why it fails.

    Args:
        certificate: as in ``certificates/``; its instance is evaluated by the stand-alone checker.
        claim: the catalogue's entry that it refutes.
    """
    parts = [f"*Said.* {claim.statement}"]
    if "~" in certificate["claim"]:
        parts.append(f"*Left out here:* the assumption that {claim.assumption}.")
    parts.append("*Counterexample.*\n\n" + _instance(certificate["instance"]))
    parts.append("*In numbers.*\n\n" + _quantities(certificate))
    parts.append(_verdict(certificate))
    parts += [f"*{word}.* {text}" for word, text in (("Why", claim.sketch), ("Note", claim.note)) if text]
    return "\n\n".join(parts)


def _instance(data: Mapping[str, Any]) -> str:
    lines = []
    table = context_table(data)
    if table is not None:
        lines.append(_table(["after", *table["columns"]], [[label, *cells] for label, cells in table["rows"]]))
        lines.append("")
        lines.append(table["caption"])
    rest = {name: value for name, value in remainder(data).items() if value is not None}
    values = [f"- {name} = {_plain(value)}" for name, value in rest.items()]
    return "\n".join([*lines, *([""] if lines and values else []), *values])


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return "(" + ", ".join(map(_plain, value)) + ")"
    return str(value)


def _quantities(certificate: Mapping[str, Any]) -> str:
    """One row for each quantity of the two sides and of the conditions that matter."""
    kind = certificate["kind"]
    instance = checker.load_instance(kind, certificate["instance"])
    wanted: dict[str, list[Any]] = {}
    sides = [certificate["lhs"], certificate["rhs"]]
    for g in certificate["given"]:
        sides += [g["lhs"], g["rhs"]] if not _is_scope(g, certificate) else []
    for node in (leaf for side in sides for leaf in _leaves(side)):
        wanted.setdefault(json.dumps(node), node)
    rows = []
    for node in wanted.values():
        if node[1] not in _scalars(certificate):
            meaning = (checker.PRIMITIVES[kind][node[1]].__doc__ or "").strip().split("\n")[0]
            rows.append([f"`{checker.formula(node)}`", _number(checker.evaluate(node, instance, kind)), meaning])
    return _table(["quantity", "value", "meaning"], rows) if rows else "Every quantity is a number of the instance."


def _verdict(certificate: Mapping[str, Any]) -> str:
    rhs = certificate["rhs"] if certificate.get("scale", "1") == "1" else ["mul", ["const", certificate["scale"]], certificate["rhs"]]
    kind = certificate["kind"]
    instance = checker.load_instance(kind, certificate["instance"])
    first, second = (_valued(side, checker.evaluate(side, instance, kind)) for side in (certificate["lhs"], rhs))
    text = f"{first} {_FAILS[certificate['relation']]} {second}"
    held = []
    for g in certificate["given"]:
        if not _is_scope(g, certificate):
            left, right = (_valued(g[side], checker.evaluate(g[side], instance, kind)) for side in ("lhs", "rhs"))
            held.append(f"{left} {g['relation']} {right}")
    return f"So {text}" + (f", although {' and '.join(held)}." if held else ".")


def _valued(node: Any, enclosure: tuple[Any, Any]) -> str:
    return _number(enclosure) if node[0] == "const" else f"`{checker.formula(node)}` = {_number(enclosure)}"


def _is_scope(given: Mapping[str, Any], certificate: Mapping[str, Any]) -> bool:
    """True for a condition on a named scalar alone, or on nothing but supports and ranges."""
    named = {node[1] for side in (given["lhs"], given["rhs"]) for node in _leaves(side)}
    free = named <= _scalars(certificate) and all(len(given[side]) <= 2 for side in ("lhs", "rhs"))
    return free or named <= _SCOPE


def _scalars(certificate: Mapping[str, Any]) -> set[str]:
    """Quantities that are numbers of the instance as they stand."""
    data = certificate["instance"]
    return set(data.get("scalars", {})) | {name for name, value in data.items() if isinstance(value, str)}


def _leaves(node: Any) -> Iterator[Any]:
    if isinstance(node, list) and node:
        if node[0] == "prim":
            yield node
        else:
            for part in node[1:]:
                yield from _leaves(part)


def _number(enclosure: tuple[Any, Any]) -> str:
    low, high = enclosure
    if low == high and len(str(low)) < 12:
        return str(low)
    return "0" if low <= 0 <= high else f"{float(low):.6g}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])
