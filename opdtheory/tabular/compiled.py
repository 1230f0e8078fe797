"""All usual quantities of policy pairs in one compiled pass (needs numba, the extra ``opdtheory[fast]``).

Two sweeps over the tree, one backward for values and one forward for measures, in segments of contexts (of
one instance) or of instances (of a batch) that stay in the first-level cache.  Every inner loop reads and
writes contiguous arrays and stores one result, so that it compiles to vector instructions.  Probabilities
must be positive: pairs with zeros are left to the array code.
"""

from __future__ import annotations

import threading

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from opdtheory.tabular.tree import TokenTree

__all__ = ["SUMMED", "TAKEN_MAXIMUM", "summarise"]

SUMMED = (
    "surrogate", "tv_sum", "kl_seq", "reverse_kl_sum", "reverse_kl_seq", "ratio_martingale", "variance",
    "expected_length_behavior", "expected_length_target", "error", "error_sup", "tv_seq", "chi2_seq",
    "hellinger2_seq", "improvement",
)  # fmt: skip
"""Quantities that are sums over contexts or sequences, in the order of the rows of the accumulators."""

TAKEN_MAXIMUM = (
    "tv_max", "kl_max", "reverse_kl_max", "chi2_max", "hellinger2_max", "adv_target_max", "adv_max",
)  # fmt: skip
"""Quantities that are maxima over contexts."""

_SEGMENT = 512  # contexts of one instance handled together
_LANES = 256  # instances of a batch handled together
_KEPT_NUMBERS = 1 << 17  # contexts times instances up to which the scratch memory is kept
_FLAGS = {"contract", "nsz", "arcp"}


@intrinsic
def _bits(typingctx, x):  # type: ignore[no-untyped-def]
    """The 64 bits of a double as an integer."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.bitcast(args[0], ir.IntType(64))

    return types.int64(types.float64), codegen


@intrinsic
def _from_bits(typingctx, x):  # type: ignore[no-untyped-def]
    """The double with the given 64 bits."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.int64), codegen


@numba.njit(inline="always")
def _log_quotient(u, p, m, diff):  # type: ignore[no-untyped-def]
    """log u, u = p/m, diff = p - m: e·log 2 + 2 atanh s, s from the difference if the ratio is near one."""
    bits = _bits(u)  # type: ignore[call-arg,var-annotated]
    # exponent such that the mantissa lies in [sqrt(1/2), sqrt(2))
    e = (bits - 0x3FE6A09E667F3BCD) >> 52
    z = _from_bits(bits - (e << 52))
    near = e == 0
    s = (diff if near else z - 1.0) / ((p + m) if near else z + 1.0)
    w = s * s
    series = 1.0 / 19.0
    series = series * w + 1.0 / 17.0
    series = series * w + 1.0 / 15.0
    series = series * w + 1.0 / 13.0
    series = series * w + 1.0 / 11.0
    series = series * w + 1.0 / 9.0
    series = series * w + 1.0 / 7.0
    series = series * w + 1.0 / 5.0
    series = series * w + 1.0 / 3.0
    return e * 0.6931471805599453 + 2.0 * (s + s * w * series)


@numba.njit(fastmath=_FLAGS, error_model="numpy", nogil=True, cache=True)
def _zero(x):  # type: ignore[no-untyped-def]
    for j in range(len(x)):
        x[j] = 0.0


@numba.njit(fastmath=_FLAGS, error_model="numpy", nogil=True, cache=True)
def _add_product(x, y, out):  # type: ignore[no-untyped-def]
    for j in range(len(out)):
        out[j] += x[j] * y[j]


@numba.njit(fastmath=_FLAGS, error_model="numpy", nogil=True, cache=True)
def _raise_to(x, out):  # type: ignore[no-untyped-def]
    for j in range(len(out)):
        size = abs(x[j])
        out[j] = size if size > out[j] else out[j]


@numba.njit(fastmath=_FLAGS, error_model="numpy", nogil=True, cache=True)
def _add_values(m, p, q, v, gain):  # type: ignore[no-untyped-def]
    """V^μ and g = Σ (π - μ) Q."""
    for j in range(len(v)):
        v[j] += m[j] * q[j]
        gain[j] += (p[j] - m[j]) * q[j]


@numba.njit(fastmath=_FLAGS, error_model="numpy", nogil=True, cache=True)
def _add_spread(m, q, v, variance, largest):  # type: ignore[no-untyped-def]
    """Variance of Q under μ, and the largest |Q - V|."""
    for j in range(len(variance)):
        gap = q[j] - v[j]
        variance[j] += m[j] * gap * gap
        gap = abs(gap)
        largest[j] = gap if gap > largest[j] else largest[j]


@numba.njit(fastmath=_FLAGS, error_model="numpy", nogil=True, cache=True)
def _invert(m, out):  # type: ignore[no-untyped-def]
    for j in range(len(out)):
        out[j] = 1.0 / m[j]


@numba.njit(fastmath=_FLAGS, error_model="numpy", nogil=True, cache=True)
def _add_kls(m, p, inverse, forward, reverse):  # type: ignore[no-untyped-def]
    """KL both ways from non-negative terms."""
    for j in range(len(forward)):
        diff = p[j] - m[j]
        log = _log_quotient(p[j] * inverse[j], p[j], m[j], diff)
        forward[j] += diff - m[j] * log
        reverse[j] += p[j] * log - diff


@numba.njit(fastmath=_FLAGS, error_model="numpy", nogil=True, cache=True)
def _add_tv_and_chi2(m, p, inverse, tv, chi2):  # type: ignore[no-untyped-def]
    for j in range(len(tv)):
        diff = p[j] - m[j]
        tv[j] += 0.5 * abs(diff)
        chi2[j] += diff * (diff * inverse[j])


@numba.njit(fastmath=_FLAGS, error_model="numpy", nogil=True, cache=True)
def _add_error(rest, reward, error, size):  # type: ignore[no-untyped-def]
    for j in range(len(error)):
        error[j] += rest[j] * reward[j]
        size[j] += 0.5 * abs(rest[j])


@numba.njit(fastmath=_FLAGS, error_model="numpy", nogil=True, cache=True)
def _add_hellinger2(m, p, root, out):  # type: ignore[no-untyped-def]
    """(√p - √m)² = (p - m)²/(p + m + 2√(pm)), and the root √(pm)."""
    for j in range(len(out)):
        diff = p[j] - m[j]
        mean = np.sqrt(p[j] * m[j])
        root[j] = mean
        out[j] += 0.5 * diff * (diff / (p[j] + m[j] + 2.0 * mean))


@numba.njit(fastmath=_FLAGS, error_model="numpy", nogil=True, cache=True)
def _step_second(second, inverse, p, out):  # type: ignore[no-untyped-def]
    for j in range(len(out)):
        out[j] = second[j] * (p[j] * (p[j] * inverse[j]))


@numba.njit(fastmath=_FLAGS, error_model="numpy", nogil=True, cache=True)
def _add_tv_of_shift(d, shift, m, p, out):  # type: ignore[no-untyped-def]
    for j in range(len(out)):
        out[j] += 0.5 * abs(shift[j] * p[j] + d[j] * (p[j] - m[j]))


@numba.njit(fastmath=_FLAGS, error_model="numpy", nogil=True, cache=True)
def _add_total_product(d, shift, y, out):  # type: ignore[no-untyped-def]
    for j in range(len(out)):
        out[j] += (d[j] + shift[j]) * y[j]


@numba.njit(fastmath=_FLAGS, error_model="numpy", nogil=True, cache=True)
def _add_ratio_square(d, shift, y, out):  # type: ignore[no-untyped-def]
    for j in range(len(out)):
        out[j] += shift[j] * shift[j] / d[j] * y[j]


@numba.njit(fastmath=_FLAGS, error_model="numpy", nogil=True, cache=True)
def _add(x, out):  # type: ignore[no-untyped-def]
    for j in range(len(out)):
        out[j] += x[j]


@numba.njit(fastmath=_FLAGS, error_model="numpy", nogil=True, cache=True)
def _step_law(d, m, out):  # type: ignore[no-untyped-def]
    for j in range(len(out)):
        out[j] = d[j] * m[j]


@numba.njit(fastmath=_FLAGS, error_model="numpy", nogil=True, cache=True)
def _step_shift(d, shift, m, p, out):  # type: ignore[no-untyped-def]
    for j in range(len(out)):
        out[j] = shift[j] * p[j] + d[j] * (p[j] - m[j])


@numba.njit(fastmath=_FLAGS, error_model="numpy", nogil=True, cache=True)
def _step_remainder(rest, shift, m, p, out):  # type: ignore[no-untyped-def]
    for j in range(len(out)):
        out[j] = rest[j] * m[j] + shift[j] * (p[j] - m[j])


@numba.njit(fastmath=_FLAGS, error_model="numpy", nogil=True, cache=True)
def _gradient(d, shift, p, q, v, out):  # type: ignore[no-untyped-def]
    for j in range(len(out)):
        out[j] = (d[j] + shift[j]) * p[j] * (q[j] - v[j])


@numba.njit(error_model="numpy", nogil=True, cache=True)
def _sweep(  # type: ignore[no-untyped-def]
    mu, pi, reward, weights, offsets, b, lanes, first, unit, width, sums, tops, roots, values, gradient, state
):
    """Both sweeps over ``unit`` instances from number ``first`` of ``lanes``, ``width`` contexts at a time.

    Tables are (actions, contexts·lanes); state arrays (contexts·unit).  ``sums`` and ``tops`` are
    accumulators (quantity, width·unit); ``roots`` (2, unit) gets J of both policies, ``values`` (prompts,
    unit) V^μ of the prompts, ``gradient`` (like a table, or empty) ∇J(π); ``state`` (9, contexts·unit) is
    scratch.
    """
    actions, horizon = mu.shape[0], len(offsets) - 1
    value, value_pi, g, variance = state[0], state[1], state[2], state[3]
    for i in range(4):
        _zero(state[i])
    size = width * unit
    root, rest, inverse = np.empty(size), np.empty(size), np.empty(size)
    local = np.empty((5, size))
    wanted = gradient.shape[0] > 0

    for t in range(horizon - 1, -1, -1):
        count = offsets[t + 1] - offsets[t]
        for c in range(offsets[t], offsets[t + 1], width):
            k = min(width, offsets[t + 1] - c)
            lo, hi = c * unit, (c + k) * unit
            at, to = c * lanes + first, c * lanes + first + (hi - lo)
            v, v_pi, gain, spread = value[lo:hi], value_pi[lo:hi], g[lo:hi], variance[lo:hi]
            for a in range(actions):
                m, p = mu[a, at:to], pi[a, at:to]
                if t < horizon - 1 and a < b:
                    child = (offsets[t + 1] + a * count + c - offsets[t]) * unit
                    q, q_target = value[child : child + hi - lo], value_pi[child : child + hi - lo]
                else:
                    q = reward[a, at:to]
                    q_target = q
                _add_values(m, p, q, v, gain)
                _add_product(p, q_target, v_pi)
            _raise_to(gain, tops[5, : hi - lo])
            for a in range(actions):
                m = mu[a, at:to]
                if t < horizon - 1 and a < b:
                    child = (offsets[t + 1] + a * count + c - offsets[t]) * unit
                    q = value[child : child + hi - lo]
                else:
                    q = reward[a, at:to]
                _add_spread(m, q, v, spread, tops[6, : hi - lo])

    d, shift, remainder, overlap, squares = state[4], state[5], state[6], state[7], state[8]
    for prompt in range(offsets[1]):
        for j in range(unit):
            i = prompt * unit + j
            d[i], shift[i], remainder[i] = weights[prompt], 0.0, 0.0
            overlap[i], squares[i] = weights[prompt], weights[prompt]
            values[prompt, j] = value[i]
            roots[0, j] += weights[prompt] * value[i]
            roots[1, j] += weights[prompt] * value_pi[i]

    for t in range(horizon):
        count = offsets[t + 1] - offsets[t]
        for c in range(offsets[t], offsets[t + 1], width):
            k = min(width, offsets[t + 1] - c)
            lo, hi = c * unit, (c + k) * unit
            n = hi - lo
            at, to = c * lanes + first, c * lanes + first + n
            here, change, second = d[lo:hi], shift[lo:hi], remainder[lo:hi]
            for i in range(5):
                _zero(local[i, :n])
            for a in range(actions):
                m, p = mu[a, at:to], pi[a, at:to]
                _invert(m, inverse[:n])
                _add_kls(m, p, inverse[:n], local[1, :n], local[2, :n])
                _add_tv_and_chi2(m, p, inverse[:n], local[0, :n], local[3, :n])
                _add_hellinger2(m, p, root[:n], local[4, :n])
                if wanted:
                    if t < horizon - 1 and a < b:
                        child = (offsets[t + 1] + a * count + c - offsets[t]) * unit
                        q = value_pi[child : child + n]
                    else:
                        q = reward[a, at:to]
                    _gradient(here, change, p, q, value_pi[lo:hi], gradient[a, at:to])
                if t < horizon - 1 and a < b:
                    child = (offsets[t + 1] + a * count + c - offsets[t]) * unit
                    _step_law(here, m, d[child : child + n])
                    _step_shift(here, change, m, p, shift[child : child + n])
                    _step_remainder(second, change, m, p, remainder[child : child + n])
                    _step_law(overlap[lo:hi], root[:n], overlap[child : child + n])
                    _step_second(squares[lo:hi], inverse[:n], p, squares[child : child + n])
                else:
                    _step_remainder(second, change, m, p, rest[:n])
                    _add_error(rest[:n], reward[a, at:to], sums[9, :n], sums[10, :n])
                    _add_tv_of_shift(here, change, m, p, sums[11, :n])
            for i in range(5):
                _raise_to(local[i, :n], tops[i, :n])
            _add_product(here, g[lo:hi], sums[0, :n])
            _add_product(here, local[0, :n], sums[1, :n])
            _add_product(here, local[1, :n], sums[2, :n])
            _add_product(here, local[2, :n], sums[3, :n])
            _add_total_product(here, change, local[2, :n], sums[4, :n])
            _add_ratio_square(here, change, local[3, :n], sums[5, :n])
            _add_product(here, variance[lo:hi], sums[6, :n])
            _add_product(squares[lo:hi], local[3, :n], sums[12, :n])
            _add_product(overlap[lo:hi], local[4, :n], sums[13, :n])
            _add(here, sums[7, :n])
            _add(here, sums[8, :n])
            _add(change, sums[8, :n])
            _add_total_product(here, change, g[lo:hi], sums[14, :n])


_kept = threading.local()


def _scratch(length: int) -> np.ndarray:
    """State arrays (9, length); small ones are kept, as fresh memory costs more than the sweep."""
    if length > _KEPT_NUMBERS:
        return np.empty((9, length))
    if getattr(_kept, "block", None) is None or len(_kept.block) < 9 * length:
        _kept.block = np.empty(9 * length)
    return _kept.block[: 9 * length].reshape(9, length)


def summarise(
    tree: TokenTree, mu: np.ndarray, pi: np.ndarray, reward: np.ndarray, *, gradient: bool = False
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Quantities of every instance by name, and ∇J(π) with respect to the logits of π if asked for.

    Arguments are float64 in the inner layout, ``(vocab, contexts_total[, batch])``: positive probabilities
    and a terminal reward.  Results are scalars or have shape (batch,), the gradient the shape of a table.
    """
    batch = mu.shape[2:]
    lanes = int(np.prod(batch))
    tables = [np.ascontiguousarray(x).reshape(tree.vocab, -1) for x in (mu, pi, reward)]
    weights = np.ascontiguousarray(tree.weights(False), dtype=np.float64)
    offsets = np.array(tree.offsets, dtype=np.int64)
    slope = np.empty_like(tables[0]) if gradient else np.empty((0, 0))
    single = not batch
    width = min(_SEGMENT, tree.contexts_total) if single else 1
    parts = []
    for first in range(0, lanes, _LANES):
        unit = 1 if single else min(_LANES, lanes - first)
        sums, tops = np.zeros((len(SUMMED), width * unit)), np.zeros((len(TAKEN_MAXIMUM), width * unit))
        roots, values = np.zeros((2, unit)), np.empty((tree.prompts, unit))
        _sweep(  # type: ignore[call-arg]
            *tables,
            weights,
            offsets,
            tree.branching,
            lanes,
            first,
            unit,
            width,
            sums,
            tops,
            roots,
            values,
            slope,
            _scratch(tree.contexts_total * unit),
        )
        if single:
            sums, tops = sums.sum(axis=1, keepdims=True), tops.max(axis=1, keepdims=True)
        between = weights @ (values - roots[0]) ** 2
        spread = np.sqrt(between + sums[SUMMED.index("variance")])
        parts.append(np.concatenate([sums, tops, roots, spread[None]]))
    rows = np.concatenate(parts, axis=1)
    names = (*SUMMED, *TAKEN_MAXIMUM, "J_behavior", "J_target", "reward_sd")
    found = {name: row[0] if single else row for name, row in zip(names, rows, strict=True)}
    del found["variance"]
    return found, slope.reshape(mu.shape) if gradient else None
