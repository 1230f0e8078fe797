"""Powers with a horizon in the exponent: accurate in floating point, polynomial for exact numbers,
recordable.
"""

from __future__ import annotations

from typing import Any

import flint
import numpy as np

from opdtheory.elementary import exp, is_exact, log, where


def _whole(n: Any) -> int | None:
    """``n`` as a plain integer if it is one."""
    if isinstance(n, flint.fmpq):
        return int(n.p) if n.q == 1 else None
    if isinstance(n, (int, np.integer, flint.fmpz)):
        return int(n)
    return None


def power(base: Any, n: Any) -> Any:
    """base**n for n ≥ 0 (0**0 = 1).

    A plain integer exponent stays a polynomial for exact and recorded bases; a recorded exponent becomes
    exp(n·log base), so pass the horizon as a plain integer where the base may be zero.
    """
    whole = _whole(n)
    if whole is not None:
        return base**whole
    if hasattr(n, "__elementary__") or hasattr(base, "__elementary__"):
        return exp(n * log(base))
    return np.power(np.asarray(base, dtype=float), n)


def _floating(x: Any, n: Any) -> bool:
    return not (
        is_exact(x)
        or is_exact(n)
        or any(hasattr(z, "__elementary__") or type(z).__module__.startswith("torch") for z in (x, n))
    )


def miss_probability(x: Any, n: Any) -> Any:
    """1 − (1 − x)**n: the chance of at least one success in n independent trials of probability x ≤ 1."""
    if not _floating(x, n):
        return 1 - power(1 - x, n)
    x, n = np.asarray(x, dtype=float), np.asarray(n, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        out = -np.expm1(n * np.log1p(-x))
    return np.where(n == 0, 0.0, np.where(x >= 1, 1.0, out))[()]


def growth(x: Any, n: Any) -> Any:
    """(1 + x)**n − 1."""
    if not _floating(x, n):
        return power(1 + x, n) - 1
    with np.errstate(over="ignore"):
        return np.expm1(np.asarray(n, dtype=float) * np.log1p(np.asarray(x, dtype=float)))[()]


_TERMS = 8
_SERIES_BELOW = 1e-2


def excess_growth(x: Any, n: Any) -> Any:
    """(1 + x)**n − 1 − n·x, without cancellation when n·x is small."""
    if not _floating(x, n):
        return power(1 + x, n) - 1 - n * x
    x, n = np.broadcast_arrays(np.asarray(x, dtype=float), np.asarray(n, dtype=float))
    tail = np.ones_like(x)
    # Horner form of Σ_{k≥2} C(n,k) x^k divided by its first term
    for k in range(_TERMS, 2, -1):
        tail = 1 + (n - k + 1) * x / k * tail
    series = n * (n - 1) / 2 * x * x * tail
    with np.errstate(over="ignore", invalid="ignore"):
        direct = np.expm1(n * np.log1p(x)) - n * x
    # at infinite growth the subtraction is inf − finite, or inf − inf when x itself is infinite
    direct = where(np.isposinf(x) & (n >= 2), np.inf, direct)
    # a single factor has no excess; elsewhere rounding must not make it negative
    out = where(n * x < _SERIES_BELOW, series, np.maximum(direct, 0.0))
    return where(n <= 1, 0.0, out)[()]
