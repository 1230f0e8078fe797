"""Elementary functions for the compiled sweep: polynomials on bit-cast floats, which vectorise.

All are float32, good to a few units in the last place; the series parts stay relatively accurate near 0.

Callers are cached by the time stamp of their own file: after a change here, touch ``numba_rows.py``.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

FLAGS = {"reassoc", "nsz", "arcp", "contract", "afn"}
"""Relaxations that let sums vectorise; NaN and infinities keep their meaning."""
F = np.float32
LN2 = F(math.log(2))


@intrinsic
def bits(typingctx, x):  # type: ignore[no-untyped-def]
    """float32 → int32, bit for bit."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), codegen


@intrinsic
def from_bits(typingctx, x):  # type: ignore[no-untyped-def]
    """int32 → float32, bit for bit."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@intrinsic
def nearest(typingctx, x):  # type: ignore[no-untyped-def]
    """Nearest integer as a float; an instruction, so that relaxed arithmetic cannot undo it."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.call(builder.module.declare_intrinsic("llvm.rint", [ir.FloatType()]), args)

    return types.float32(types.float32), codegen


@intrinsic
def multiply_add(typingctx, a, b, c):  # type: ignore[no-untyped-def]
    """a·b + c; an instruction, so that relaxed arithmetic does not regroup its parts."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        real = ir.FloatType()
        kind = ir.FunctionType(real, [real] * 3)
        return builder.call(builder.module.declare_intrinsic("llvm.fmuladd", [real], kind), args)

    return types.float32(types.float32, types.float32, types.float32), codegen


@numba.njit(inline="always", fastmath=FLAGS)
def square_part(r):  # type: ignore[no-untyped-def]
    """e^r − 1 − r for |r| ≤ ½ log 2."""
    y = F(1.9875691500e-4)
    y = y * r + F(1.3981999507e-3)
    y = y * r + F(8.3334519073e-3)
    y = y * r + F(4.1665795894e-2)
    y = y * r + F(1.6666665459e-1)
    y = y * r + F(5.0000001201e-1)
    return y * r * r


@numba.njit(inline="always", fastmath=FLAGS)
def exp_parts(x):  # type: ignore[no-untyped-def]
    """(e^r − 1 − r, 2ⁿ, r, n) with e^x = 2ⁿe^r, |r| ≤ ½ log 2, for −87 ≤ x ≤ 88."""
    n = nearest(x * F(1.4426950408889634))  # type: ignore
    r = multiply_add(n, F(-0.693359375), x)
    r = multiply_add(n, F(2.12194440e-4), r)
    return square_part(r), from_bits(np.int32((np.int32(n) + np.int32(127)) << np.int32(23))), r, n


@numba.njit(inline="always", fastmath=FLAGS)
def exp(x):  # type: ignore[no-untyped-def]
    square, scale, r, _ = exp_parts(x)
    return scale * (F(1.0) + (r + square))


@numba.njit(inline="always", fastmath=FLAGS)
def log1p(z):  # type: ignore[no-untyped-def]
    """log(1 + z) for −1 < z < 2¹²⁶, relatively accurate near 0."""
    shifted = np.int32(bits(F(1.0) + z) - np.int32(0x3F3504F3))  # type: ignore
    e = np.int32(shifted >> np.int32(23))
    m = from_bits(np.int32((shifted & np.int32(0x007FFFFF)) + np.int32(0x3F3504F3)))
    f = z if e == np.int32(0) else m - F(1.0)
    return F(e) * LN2 + log1p_small(f)


@numba.njit(inline="always", fastmath=FLAGS)
def log1p_small(f):  # type: ignore[no-untyped-def]
    """log(1 + f) for √½ − 1 ≤ f ≤ √2 − 1."""
    y = F(7.0376836292e-2)
    y = y * f + F(-1.1514610310e-1)
    y = y * f + F(1.1676998740e-1)
    y = y * f + F(-1.2420140846e-1)
    y = y * f + F(1.4249322787e-1)
    y = y * f + F(-1.6668057665e-1)
    y = y * f + F(2.0000714765e-1)
    y = y * f + F(-2.4999993993e-1)
    y = y * f + F(3.3333331174e-1)
    f2 = f * f
    return f + f2 * (y * f - F(0.5))


@numba.njit(inline="always", fastmath=FLAGS)
def log1p_tiny(f):  # type: ignore[no-untyped-def]
    """log(1 + f) for |f| ≤ 0.1."""
    y = F(1 / 7) * f - F(1 / 6)
    y = y * f + F(1 / 5)
    y = y * f - F(1 / 4)
    y = y * f + F(1 / 3)
    y = y * f - F(1 / 2)
    return f + f * f * y


@numba.njit(inline="always")
def key(x):  # type: ignore[no-untyped-def]
    """An integer ordered as the float is (NaN beyond the infinities); its own inverse on bits."""
    b = bits(x)  # type: ignore
    return np.int32(b ^ np.int32(np.int32(b >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@numba.njit(inline="always")
def value(k):  # type: ignore[no-untyped-def]
    return from_bits(np.int32(k ^ np.int32(np.int32(k >> np.int32(31)) & np.int32(0x7FFFFFFF))))  # type: ignore


@numba.njit(inline="always", fastmath=FLAGS)
def phi_series(h2):  # type: ignore[no-untyped-def]
    """φ(h) = h tanh h − log cosh h from h², |h| ≤ ½ log 2; the integrand of 2JSD is (1 + e^ℓ) φ(ℓ/2)."""
    y = h2 * F(-691 / 85050) + F(31 / 1575)
    y = y * h2 + F(-17 / 360)
    y = y * h2 + F(1 / 9)
    y = y * h2 + F(-0.25)
    return h2 * (y * h2 + F(0.5))
