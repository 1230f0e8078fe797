"""Elementary functions that run on every number the package computes with.

One formula serves floating-point search, exact confirmation and recording.  The functions below accept

* Python numbers and numpy float64 arrays (evaluated in floating point),
* torch tensors (evaluated by torch, autograd flows),
* ``flint.fmpq`` and ``fractions.Fraction`` (algebra stays rational; a logarithm, exponential or irrational
  root becomes a ``flint.arb`` ball that certainly contains the true value),
* ``flint.arb`` balls, object arrays of rationals or balls (elementwise),
* recorded expressions: any object with an ``__elementary__(name, *args)`` method.

Conventions: ``log(0)`` is -inf, ``0·log 0`` is 0, ``p·log(p/0)`` is inf for p > 0.  Units are nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import reduce
from typing import Any

import flint
import numpy as np
from scipy import special

__all__ = [
    "absolute", "amax", "amin", "asum", "exact", "exp", "expm1", "is_exact", "log", "log1p", "maximum",
    "minimum", "rel_entr", "sqrt", "to_ball", "where", "xlogy",
]  # fmt: skip

_EXACT_SCALARS = (flint.fmpq, flint.fmpz, Fraction)


def exact(value: Any) -> flint.fmpq:
    """Return ``value`` (int, Fraction, fmpq, fraction string, or float taken at its binary value) as an ``fmpq``.

    >>> exact("2/6")
    1/3
    """
    if isinstance(value, flint.fmpq) or type(value).__module__.startswith("sympy.polys"):
        return value  # elements of a field of rational functions are exact as they are
    if isinstance(value, flint.fmpz):
        return flint.fmpq(value)
    fraction = Fraction(value) if not isinstance(value, np.generic) else Fraction(value.item())
    return flint.fmpq(fraction.numerator, fraction.denominator)


def to_ball(value: Any) -> flint.arb:
    """Enclose an exact number, or pass a ball through; floats are taken at their binary value."""
    if isinstance(value, flint.arb):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return flint.arb(value)
    return flint.arb(exact(value))


def is_exact(x: Any) -> bool:
    """True for rationals, balls and object arrays (which hold nothing else)."""
    return isinstance(x, (*_EXACT_SCALARS, flint.arb)) or (isinstance(x, np.ndarray) and x.dtype == object)


def _is_torch(x: Any) -> bool:
    return type(x).__module__.partition(".")[0] == "torch"


def _recorder(args: tuple[Any, ...]) -> Any:
    return next((a for a in args if hasattr(a, "__elementary__")), None)


def _lift(name: str, numpy_fn: Callable[..., Any], exact_fn: Callable[..., Any], torch_fn: Callable[..., Any]) -> Callable[..., Any]:
    """Build one public function out of its floating-point, exact and torch versions."""

    def function(*args: Any) -> Any:
        recorder = _recorder(args)
        if recorder is not None:
            return recorder.__elementary__(name, *args)
        if any(_is_torch(a) for a in args):
            return torch_fn(*args)
        if any(is_exact(a) for a in args):
            if any(isinstance(a, np.ndarray) for a in args):
                return np.frompyfunc(exact_fn, len(args), 1)(*args)
            return exact_fn(*args)
        return numpy_fn(*args)

    function.__name__ = function.__qualname__ = name
    return function


def _torch() -> Any:
    import torch

    return torch


def _log_exact(x: Any) -> flint.arb:
    ball = to_ball(x)
    return flint.arb("-inf") if ball == 0 else ball.log()


def _sqrt_exact(x: Any) -> Any:
    if isinstance(x, flint.arb):
        return x.sqrt()
    q = exact(x)
    if q >= 0:
        numerator, denominator = math.isqrt(int(q.p)), math.isqrt(int(q.q))
        if numerator * numerator == q.p and denominator * denominator == q.q:
            return flint.fmpq(numerator, denominator)
    return flint.arb(q).sqrt()


def _extreme_exact(pick: Callable[..., Any], ball_pick: Callable[..., Any]) -> Callable[..., Any]:
    def choose(a: Any, b: Any) -> Any:
        if isinstance(a, flint.arb) or isinstance(b, flint.arb) or isinstance(a, float) or isinstance(b, float):
            return ball_pick(to_ball(a), to_ball(b))
        return pick(exact(a), exact(b))

    return choose


_max_exact = _extreme_exact(max, lambda a, b: a.max(b))
_min_exact = _extreme_exact(min, lambda a, b: a.min(b))


def _quiet(fn: Callable[..., Any]) -> Callable[..., Any]:
    """numpy's log(0) is the value we want; its warning is not."""

    def call(*args: Any) -> Any:
        with np.errstate(divide="ignore"):
            return fn(*args)

    return call


def _pairwise_torch(name: str) -> Callable[..., Any]:
    def call(a: Any, b: Any) -> Any:
        torch = _torch()
        like = a if _is_torch(a) else b
        a, b = (torch.as_tensor(z, dtype=like.dtype, device=like.device) for z in (a, b))
        return getattr(torch, name)(a, b)

    return call


log = _lift("log", _quiet(np.log), _log_exact, lambda x: x.log())
exp = _lift("exp", np.exp, lambda x: to_ball(x).exp(), lambda x: x.exp())
sqrt = _lift("sqrt", np.sqrt, _sqrt_exact, lambda x: x.sqrt())
absolute = _lift("abs", np.abs, abs, lambda x: x.abs())
maximum = _lift("max", np.maximum, _max_exact, _pairwise_torch("maximum"))
minimum = _lift("min", np.minimum, _min_exact, _pairwise_torch("minimum"))


def log1p(x: Any) -> Any:
    """log(1 + x), accurate near 0 in floating point."""
    if _recorder((x,)) is not None or is_exact(x):
        return log(1 + x)
    return x.log1p() if _is_torch(x) else _quiet(np.log1p)(x)


def expm1(x: Any) -> Any:
    """exp(x) − 1, accurate near 0 in floating point."""
    if _recorder((x,)) is not None or is_exact(x):
        return exp(x) - 1
    return x.expm1() if _is_torch(x) else np.expm1(x)


def _xlogy_exact(p: Any, q: Any) -> Any:
    return exact(0) if p == 0 else p * _log_exact(q)


def _rel_entr_exact(p: Any, q: Any) -> Any:
    if p == 0:
        return exact(0)
    return flint.arb("inf") if q == 0 else to_ball(p) * (to_ball(p) / to_ball(q)).log()


def _rel_entr_torch(p: Any, q: Any) -> Any:
    torch = _torch()
    positive = p > 0
    # both branches of a `where` are differentiated: keep the unused one finite
    safe_p = torch.where(positive, p, torch.ones_like(p))
    safe_q = torch.where(positive, q, torch.ones_like(p))
    return torch.where(positive, p * (safe_p.log() - safe_q.log()), torch.zeros_like(p))


xlogy = _lift("xlogy", special.xlogy, _xlogy_exact, lambda p, q: _torch().special.xlogy(p, q))
rel_entr = _lift("rel_entr", special.rel_entr, _rel_entr_exact, _rel_entr_torch)


def where(condition: Any, a: Any, b: Any) -> Any:
    """Elementwise choice, on arrays of any of the supported kinds."""
    if any(_is_torch(z) for z in (condition, a, b)):
        return _torch().where(condition, a, b)
    return np.where(condition, a, b)


def asum(x: Any, axis: int | tuple[int, ...] = -1) -> Any:
    """Sum over ``axis``."""
    return x.sum(dim=axis) if _is_torch(x) else np.sum(x, axis=axis)


def _reduce(x: Any, axis: int, pair: Callable[..., Any], numpy_fn: Callable[..., Any], torch_name: str) -> Any:
    if _is_torch(x):
        return getattr(x, torch_name)(dim=axis)
    if not is_exact(x):
        return numpy_fn(x, axis=axis)
    return reduce(pair, np.moveaxis(np.asarray(x), axis, 0))


def amax(x: Any, axis: int = -1) -> Any:
    """Maximum over ``axis``; on balls an enclosure of the maximum, never a comparison that may be undecided."""
    return _reduce(x, axis, maximum, np.max, "amax")


def amin(x: Any, axis: int = -1) -> Any:
    """Minimum over ``axis``; on balls an enclosure of the minimum."""
    return _reduce(x, axis, minimum, np.min, "amin")
