"""``--fail-on`` expressions: comparisons of metrics, parsed as syntax trees and never evaluated as code.

A metric is written by its name, ``kl_rollout_train/mean``; ``.low`` and ``.high`` are the ends of its
interval; ``warnings`` and ``errors`` are counts, ``warning:CODE`` counts one kind, ``mask:NAME`` is the
kept token fraction. Division needs spaces around its sign.  Allowed besides: numbers, + − * /, comparisons,
and, or, not, parentheses.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

_NAME = re.compile(
    r"(?:warning:|mask:)?[A-Za-z_][A-Za-z0-9_]*(?:[/:-][A-Za-z0-9_.-]*[A-Za-z0-9_])*(?:\.(?:low|high))?"
)
_WORDS = {"and", "or", "not", "inf"}
_ARITHMETIC: Mapping[type, Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: lambda a, b: a / b if b else math.nan,
}  # fmt: skip
_COMPARISONS: Mapping[type, Callable[[float, float], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}  # fmt: skip
MAX_LENGTH = 2000


class Undecided(Exception):
    """The expression names a quantity that this data does not determine."""


def check_syntax(expression: str) -> None:
    """ValueError if the expression is not of the allowed form, before any data is read."""
    _parse(expression)


def fails(expression: str, values: Mapping[str, float | None]) -> bool:
    """Whether the condition holds; ``Undecided`` where a name has no value, ValueError for bad syntax.

    >>> fails("kl/mean > 0.1 or not ratio/mean >= 0.9", {"kl/mean": 0.02, "ratio/mean": 0.8})
    True
    """
    tree, names = _parse(expression)
    result = _evaluate(tree, names, values)
    if not isinstance(result, bool):
        raise ValueError(
            f"condition {expression!r}: got a number, expected a comparison such as "
            "kl_rollout_train/mean > 0.01"
        )
    return result


def _parse(expression: str) -> tuple[ast.expr, dict[str, str]]:
    if len(expression) > MAX_LENGTH:
        raise ValueError(f"condition: got {len(expression)} characters, expected at most {MAX_LENGTH}")
    names: dict[str, str] = {}

    def replace(match: re.Match[str]) -> str:
        word = match.group()
        if word in _WORDS:
            return f" {word} "
        key = f"_m{len(names)}"
        names[key] = word
        return f" {key} "

    # numbers in exponent form must not be taken for names
    text = re.sub(
        r"(?<![\w/.:-])(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|" + _NAME.pattern,
        lambda m: m.group() if m.group()[0] in "0123456789." else replace(m),
        expression,
    )
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(
            f"condition {expression!r}: not an expression; expected for example kl_rollout_train/mean > 0.01"
        ) from None
    _allowed(tree, expression)
    return tree, names


def _allowed(tree: ast.expr, expression: str) -> None:
    nodes = (
        ast.Name,
        ast.Load,
        ast.Constant,
        ast.BinOp,
        ast.BoolOp,
        ast.UnaryOp,
        ast.Compare,
        ast.And,
        ast.Or,
        ast.Not,
        ast.USub,
        ast.UAdd,
        *_ARITHMETIC,
        *_COMPARISONS,
    )
    for node in ast.walk(tree):
        if not isinstance(node, nodes) or (
            isinstance(node, ast.Constant) and type(node.value) not in (int, float)
        ):
            raise ValueError(
                f"condition {expression!r}: {type(node).__name__} is not allowed; expected metrics, "
                "numbers, comparisons, and/or/not"
            )


def _evaluate(node: ast.expr, names: Mapping[str, str], values: Mapping[str, float | None]) -> Any:
    if isinstance(node, ast.Constant):
        return float(node.value)  # type: ignore[arg-type]
    if isinstance(node, ast.Name):
        if node.id == "inf":
            return math.inf
        name = names.get(node.id, node.id)
        value = values.get(name)
        if value is None:
            raise Undecided(f"{name} is not determined by this data")
        return float(value)
    if isinstance(node, ast.UnaryOp):
        inner = _evaluate(node.operand, names, values)
        if isinstance(node.op, ast.Not):
            return not inner
        return -inner if isinstance(node.op, ast.USub) else inner
    if isinstance(node, ast.BinOp):
        return _ARITHMETIC[type(node.op)](
            _evaluate(node.left, names, values), _evaluate(node.right, names, values)
        )
    if isinstance(node, ast.BoolOp):
        parts = [bool(_evaluate(v, names, values)) for v in node.values]
        return all(parts) if isinstance(node.op, ast.And) else any(parts)
    assert isinstance(node, ast.Compare)
    left = _evaluate(node.left, names, values)
    for op, right_node in zip(node.ops, node.comparators, strict=True):
        right = _evaluate(right_node, names, values)
        if not _COMPARISONS[type(op)](left, right):
            return False
        left = right
    return True


def values_of(document: Mapping[str, Any]) -> dict[str, float | None]:
    """What a condition may name, from a report's dictionary."""
    out: dict[str, float | None] = {
        "warnings": len([w for w in document["warnings"] if w["code"] != "compat"]),
        "errors": len(document["errors"]),
        "sequences": document["sequences"],
        "tokens": document["tokens"],
    }
    for name, metric in document["metrics"].items():
        out[name] = float(metric["value"])
        if metric["interval"] is not None:
            out[f"{name}.low"], out[f"{name}.high"] = (float(x) for x in metric["interval"])
    for warning in document["warnings"]:
        key = f"warning:{warning['code']}"
        out[key] = (out.get(key) or 0) + 1
    for mask in document["masks"]:
        out[f"mask:{mask['name']}"] = mask["token_fraction"]
    return out


def absent_warnings(expression: str, values: dict[str, float | None]) -> dict[str, float | None]:
    """Warnings that did not occur count 0."""
    _, names = _parse(expression)
    return values | {n: 0 for n in names.values() if n.startswith("warning:") and n not in values}
