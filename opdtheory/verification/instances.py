"""Certificates read back: the exact instance that a certificate, or a catalogue's witness, describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from opdtheory.elementary import exact
from opdtheory.spaces import Scalars
from opdtheory.tabular import DiscountedMDP, PolicyPair, SingleState, TeacherStudent, TokenTree
from opdtheory.tabular.iterates import MinorizerSteps, ProximalSteps
from opdtheory.tabular.shared import OneLogitStudent
from opdtheory.tabular.table import as_numbers

__all__ = ["KINDS", "instance_from_data", "instance_of"]

_TREE = ("vocab", "horizon", "eos", "prompts", "prompt_probs")


def instance_of(certificate: Mapping[str, Any]) -> Any:
    """The instance of a certificate as the package's exact object: every quantity in fractions or balls.

    >>> x = instance_of({"kind": "single_state", "instance": {"p": ["1/2", "1/2"], "q": ["1/4", "3/4"]}})
    >>> x.tv
    1/4
    """
    return instance_from_data(certificate["kind"], certificate["instance"])


def instance_from_data(kind: str, data: Mapping[str, Any]) -> Any:
    """The instance described by ``data``, the inverse of ``to_data`` of its class.

    Raises ``ValueError`` for a kind that is not one of ``KINDS``, or for tables that are no distributions.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, expected one of {', '.join(KINDS)}")
    return KINDS[kind](dict(data))


def _tree(data: dict[str, Any]) -> TokenTree:
    return TokenTree(**{name: data.pop(name) for name in _TREE if name in data})


def _named(data: dict[str, Any]) -> dict[str, Any]:
    return {name: exact(value) for name, value in data.pop("scalars", {}).items()}


def _policy_pair(data: dict[str, Any]) -> PolicyPair:
    scalars = _named(data)
    return PolicyPair.from_levels(_tree(data), **data, **scalars)


def _teacher_student(data: dict[str, Any]) -> TeacherStudent:
    scalars = _named(data)
    return TeacherStudent.from_levels(_tree(data), **data, **scalars)


def _single_state(data: dict[str, Any]) -> SingleState:
    scalars = _named(data)
    return SingleState(**data, **scalars)


def _one_logit(data: dict[str, Any]) -> OneLogitStudent:
    tree = _tree(data)
    feature = [["0"]] * (tree.vocab - 1) + [["1"]]
    if any(row != feature for level in data["features"] for row in level) or len(data["weights"]) != 1:
        raise ValueError("features: expected one feature, 1 for the last action and 0 for the others")
    teacher = [as_numbers(np.array(level, dtype=object)) for level in data["teacher"]]
    return OneLogitStudent.from_weight(tree, teacher, exact(data["weights"][0]))


def _iterated_map(data: dict[str, Any]) -> MinorizerSteps | ProximalSteps:
    scalars, steps, which = _named(data), int(data["steps"]), data["map"]
    teacher, start = (as_numbers(np.array(data[name], dtype=object)) for name in ("teacher", "start"))
    if which == "minorizer":
        return MinorizerSteps.run(teacher, start, scalars["penalty"], steps)
    if which != "proximal":
        raise ValueError(f"map: got {which!r}, expected minorizer or proximal")
    alpha, laws = scalars["alpha"], [start]
    for k in range(steps):
        error = as_numbers(np.array(data["errors"][k], dtype=object)) if "errors" in data else 0
        laws.append(alpha * teacher + (1 - alpha) * laws[-1] + error)
    return ProximalSteps(teacher, laws, **scalars)


KINDS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "policy_pair": _policy_pair,
    "teacher_student": _teacher_student,
    "single_state": _single_state,
    "discounted_mdp": lambda data: DiscountedMDP(**data),
    "gradient_field": _one_logit,
    "iterated_map": _iterated_map,
    "scalar": lambda data: Scalars({name: exact(value) for name, value in data.items()}),
}
