"""Recorded expressions: what a claim's two sides say, as a tree over named primitive quantities.

A claim's ``sides`` function is run once on a :class:`Recorder` in place of an instance.  Attribute access yields
primitive leaves and arithmetic builds the tree, so that a certificate carries the claim's own formula and the
stand-alone checker can evaluate it on the instance without sharing code with this package.
"""

from __future__ import annotations

import inspect
from fractions import Fraction
from typing import Any

import flint
import numpy as np

from opdtheory import checker


class NotRecordable(TypeError):
    """The sides of a claim use something that has no place in an expression tree."""


def _leaf(value: Any) -> list[Any]:
    if isinstance(value, Expr):
        return value.node
    if isinstance(value, flint.fmpq | flint.fmpz):
        return ["const", str(value)]
    if isinstance(value, np.ndarray) and value.shape == ():
        return _leaf(value.item())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float | Fraction):
        raise NotRecordable(f"cannot record {value!r} of type {type(value).__name__}")
    return ["const", str(Fraction(value))]


class Expr:
    """A node of a recorded expression; supports arithmetic and the functions of :mod:`opdtheory.elementary`."""

    __slots__ = ("node",)
    __array_ufunc__ = None  # numpy scalars on the left must defer to our reflected operators

    def __init__(self, node: list[Any]):
        self.node = node

    @classmethod
    def constant(cls, value: Any) -> Expr:
        return cls(_leaf(value))

    def _binary(self, op: str, other: Any, swap: bool = False) -> Expr:
        a, b = self.node, _leaf(other)
        return Expr([op, b, a] if swap else [op, a, b])

    def __add__(self, other: Any) -> Expr:
        return self._binary("add", other)

    def __radd__(self, other: Any) -> Expr:
        return self._binary("add", other, swap=True)

    def __sub__(self, other: Any) -> Expr:
        return self._binary("sub", other)

    def __rsub__(self, other: Any) -> Expr:
        return self._binary("sub", other, swap=True)

    def __mul__(self, other: Any) -> Expr:
        return self._binary("mul", other)

    def __rmul__(self, other: Any) -> Expr:
        return self._binary("mul", other, swap=True)

    def __truediv__(self, other: Any) -> Expr:
        return self._binary("div", other)

    def __rtruediv__(self, other: Any) -> Expr:
        return self._binary("div", other, swap=True)

    def __neg__(self) -> Expr:
        return Expr(["neg", self.node])

    def __abs__(self) -> Expr:
        return Expr(["abs", self.node])

    def __pow__(self, power: Any) -> Expr:
        if not isinstance(power, int):
            raise NotRecordable(f"only whole powers can be recorded, not {power!r}")
        return Expr(["pow", self.node, power])

    def __elementary__(self, name: str, *args: Any) -> Expr:
        if name in {"xlogy", "rel_entr"}:
            raise NotRecordable(f"{name} acts on distributions; use a primitive of the instance instead")
        return Expr([name, *map(_leaf, args)])

    def _no_comparison(self, _other: Any) -> bool:
        raise NotRecordable("a recorded quantity has no value to compare; use maximum, minimum or `given`")

    __lt__ = __le__ = __gt__ = __ge__ = _no_comparison

    def __repr__(self) -> str:
        return f"Expr({readable(self.node)})"


class Recorder:
    """Stands in for an instance of ``kind``: its primitives become leaves, structural integers stay integers.

    ``structure`` holds what a claim may loop over (horizon ``T``, vocabulary ``V``, …) as plain integers.
    """

    def __init__(self, kind: str, structure: dict[str, Any], names: dict[str, Any] | None = None):
        self._kind = kind
        self._structure = structure
        self._names = names  # free scalar names, for the kind "scalar"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self._structure:
            return self._structure[name]
        if self._names is not None and name in self._names:
            return Expr(["prim", name])
        function = checker.PRIMITIVES[self._kind].get(name)
        if function is None:
            raise NotRecordable(f"{name!r} is no primitive of kind {self._kind!r}; a certificate cannot state it")
        arguments = list(inspect.signature(function).parameters)[1:]
        if not arguments:
            return Expr(["prim", name])

        def call(*values: Any, **named: Any) -> Expr:
            bound = inspect.signature(function).bind(None, *values, **named).arguments
            given = {k: _argument(bound[k]) for k in arguments if k in bound}
            return Expr(["prim", name, given])

        return call


def _argument(value: Any) -> Any:
    """A primitive's argument as JSON: integers and strings as they are, other numbers as fraction strings."""
    if isinstance(value, int | str) and not isinstance(value, bool):
        return value
    node = _leaf(value)
    if node[0] == "prim" and len(node) == 2:
        return {"scalar": node[1]}
    if node[0] != "const":
        raise NotRecordable("an argument of a primitive must be a number or a named scalar of the instance")
    return node[1]


_INFIX = {"add": "+", "sub": "−", "mul": "·", "div": "/"}


def _shown(name: str, value: Any) -> str:
    """An argument of a primitive; a named scalar under its own name is not said twice."""
    text = value["scalar"] if isinstance(value, dict) else value
    return name if text == name else f"{name}={text}"


def readable(node: list[Any]) -> str:
    """A one-line rendering of an expression tree for terminals and reports.

    >>> readable(["mul", ["const", "2"], ["sqrt", ["prim", "kl_seq"]]])
    '2·sqrt(kl_seq)'
    >>> readable(["div", ["const", "1"], ["mul", ["const", "2"], ["prim", "kl", {"alpha": {"scalar": "alpha"}}]]])
    '1/(2·kl(alpha))'
    """
    op, *args = node
    if op == "const":
        return str(args[0])
    if op == "prim":
        inner = ", ".join(_shown(k, v) for k, v in args[1].items()) if len(args) > 1 else ""
        return f"{args[0]}({inner})" if inner else str(args[0])
    if op in _INFIX:
        left, right = (readable(a) for a in args)
        wrap = {"add", "sub"} if op in {"mul", "div"} else set()
        left = f"({left})" if args[0][0] in wrap else left
        grouped = wrap | {"sub", "div", "add"} - ({"add"} if op == "add" else set()) | ({"mul"} if op == "div" else set())
        right = f"({right})" if args[1][0] in grouped else right
        return f"{left}{_INFIX[op]}{right}" if op in {"mul", "div"} else f"{left} {_INFIX[op]} {right}"
    if op == "neg":
        return f"−({readable(args[0])})" if args[0][0] in _INFIX else f"−{readable(args[0])}"
    if op == "pow":
        return f"({readable(args[0])})^{args[1]}"
    return f"{op}({', '.join(readable(a) for a in args)})"
