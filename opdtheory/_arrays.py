"""The three kinds of array the estimators run on (numpy, torch, exact objects), told apart in one place."""

from __future__ import annotations

from typing import Any

import flint
import numpy as np

from opdtheory.elementary import exact, is_exact

Array = Any


def is_torch(x: Any) -> bool:
    """True for torch tensors, without importing torch."""
    return type(x).__module__.partition(".")[0] == "torch"


def numbers(x: Any) -> Array:
    """Lists become numpy arrays; fraction strings and arrays of exact numbers become object arrays of
    ``fmpq`` (balls are kept).
    """
    if is_torch(x) or hasattr(x, "__elementary__") or (isinstance(x, np.ndarray) and x.dtype.kind == "f"):
        return x
    x = np.asarray(x)
    if x.dtype.kind in "fiub":
        return x.astype(np.float64)
    if x.dtype.kind not in "OUS":
        raise ValueError(f"entries of type {x.dtype}: expected real numbers")
    convert = np.frompyfunc(lambda v: v if isinstance(v, flint.arb | flint.fmpq) else exact(v), 1, 1)
    return np.asarray(convert(x), dtype=object)


def distribution(name: str, p: Any) -> Array:
    """``p`` as an array; ``ValueError`` if an entry is negative or NaN."""
    p = numbers(p)
    if hasattr(p, "__elementary__"):
        return p
    # the exact branch refuses what is certainly negative; the float branch also refuses NaN
    good = bool(np.all(~(p < 0))) if is_exact(p) else bool((p >= 0).all())
    if not good:
        raise ValueError(f"{name}: expected non-negative probabilities, got {_first_bad(p)}")
    return p


def _first_bad(p: Array) -> str:
    flat = p.reshape(-1)
    index = next(i for i, v in enumerate(flat) if not v >= 0)
    return f"{flat[index]} at flat index {index}"


def pair(p: Any, q: Any) -> tuple[Array, Array]:
    """Two non-negative arrays over alphabets of one size."""
    p, q = distribution("p", p), distribution("q", q)
    if p.ndim and q.ndim and p.shape[-1] != q.shape[-1]:
        sizes = f"{p.shape[-1]} and {q.shape[-1]}"
        raise ValueError(f"p and q: got alphabets of {sizes} tokens, expected equal sizes")
    return p, q


def parameter(name: str, value: Any, like: Array, low: Any = None, high: Any = None) -> Any:
    """A scalar parameter in the arithmetic of ``like``: rational beside rationals, float beside floats."""
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        raise ValueError(f"{name}: got {value!r}, expected a number from {low} to {high}")
    return exact(value) if is_exact(like) else float(value)


def one_like(x: Array) -> Any:
    return x.new_ones(()) if is_torch(x) else exact(1) if is_exact(x) else 1.0


def zero_like(x: Array) -> Any:
    return x.new_zeros(()) if is_torch(x) else exact(0) if is_exact(x) else 0.0


def inf_like(x: Array) -> Any:
    return x.new_full((), float("inf")) if is_torch(x) else flint.arb("inf") if is_exact(x) else float("inf")


def any_last(condition: Array) -> Array:
    return condition.any(dim=-1) if is_torch(condition) else np.any(condition, axis=-1)


def as_mask(x: Array, response_mask: Any) -> Array:
    """``response_mask`` as booleans on the device of ``x`` (B, T), all true if omitted; shapes must agree."""
    mask: Array
    if is_torch(x):
        import torch

        ones = torch.ones_like(x, dtype=torch.bool)
        mask = ones if response_mask is None else torch.as_tensor(response_mask, device=x.device).bool()
    elif response_mask is None:
        mask = np.ones(x.shape, dtype=bool)
    else:
        mask = np.asarray(response_mask).astype(bool)
    if tuple(mask.shape) != tuple(x.shape):
        raise ValueError(f"response_mask: got shape {tuple(mask.shape)}, expected {tuple(x.shape)}")
    return mask
