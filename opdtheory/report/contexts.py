"""Instances on a token tree as one table: a row a context, a column a policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEADINGS = {"behavior": "μ", "target": "π", "reward": "R", "teacher": "teacher", "student": "student", "candidate": "candidate"}
_SHAPE = ("vocab", "horizon", "eos", "prompts", "prompt_probs")


def context_table(data: Mapping[str, Any]) -> dict[str, Any] | None:
    """``columns``, ``rows`` of (context, cells) and ``caption`` of an instance's data, or None if it has no tree.

    A cell lists the numbers of all tokens at that context; a level without rewards has an empty cell.

    >>> level = [[["1/2", "1/2"]]]
    >>> x = {"vocab": 2, "horizon": 1, "eos": None, "prompts": 1, "behavior": level, "target": [[["0", "1"]]]}
    >>> context_table(x)["rows"]
    [('start', ['1/2, 1/2', '0, 1'])]
    """
    names = [name for name in HEADINGS if name in data]
    if all(_cell("reward", row) == "" for level in data.get("reward", ()) for row in level):
        names = [name for name in names if name != "reward"]
    if "horizon" not in data or not names:
        return None
    contexts = _contexts(data)
    rows = []
    for level, labels in enumerate(contexts):
        for index, label in enumerate(labels):
            rows.append((label, [_cell(name, data[name][level][index]) for name in names]))
    tokens = ["EOS" if a == data["eos"] else str(a) for a in range(data["vocab"])]
    caption = f"Contexts are the tokens so far; each cell lists tokens {', '.join(tokens)}."
    return {"columns": [HEADINGS[name] for name in names], "rows": rows, "caption": caption}


def remainder(data: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`context_table` leaves out and a reader needs: named scalars, prompt weights, features."""
    hidden = {*HEADINGS, *_SHAPE} if context_table(data) is not None else set()
    if len(data.get("prompt_probs") or ()) > 1:
        hidden.discard("prompt_probs")
    rest = {name: value for name, value in data.items() if name not in hidden}
    return rest.pop("scalars", {}) | rest


def _contexts(data: Mapping[str, Any]) -> list[list[str]]:
    continuing = [str(a) for a in range(data["vocab"]) if a != data["eos"]]
    prompts = data.get("prompts", 1)
    level = [""] if prompts == 1 else [f"prompt {i + 1}:" for i in range(prompts)]
    out = []
    for _ in range(data["horizon"]):
        out.append([label or "start" for label in level])
        level = [f"{label} {token}".strip() for label in level for token in continuing]
    return out


def _cell(name: str, row: list[str]) -> str:
    return "" if name == "reward" and set(row) == {"0"} else ", ".join(row)
