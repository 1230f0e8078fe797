"""All usual quantities of policy pairs in one compiled pass (needs numba, the extra ``opdtheory[fast]``).

A sweep down the tree carries the occupancies, a sweep up does everything else.  Both go by *cells*: at most
``WIDTH`` numbers, which are neighbouring contexts of one level times instances of a batch.  What a cell needs
and collects are rows of one small array at fixed distances: it stays in the first-level cache, and every
loop is seen to read and write apart, so that it compiles to vector instructions.

Probabilities must be at least ``SMALLEST``: pairs with smaller ones are left to the array code.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from opdtheory.tabular.tree import TokenTree

__all__ = ["BACKWARD", "SMALLEST", "SUMMED", "TAKEN_MAXIMUM", "summarise"]

SUMMED = (
    "surrogate", "tv_sum", "kl_seq", "reverse_kl_sum", "reverse_kl_seq", "ratio_martingale", "reward_sd",
    "expected_length_behavior", "expected_length_target", "improvement", "error", "error_sup", "tv_seq",
)  # fmt: skip
"""Sums over contexts or sequences (of the square, for the standard deviation)."""

TAKEN_MAXIMUM = (
    "tv_max", "kl_max", "reverse_kl_max", "chi2_max", "hellinger2_max", "adv_target_max", "adv_max",
)  # fmt: skip
"""Maxima over contexts."""

BACKWARD = ("J_behavior", "J_target", "chi2_seq", "hellinger2_seq")
"""Values of the prompts in a backward recursion, averaged."""

SMALLEST = 1e-100
"""Three probabilities share one division: their product must not underflow."""

WIDTH = 128  # numbers of a cell
_KEPT_NUMBERS = 1 << 20  # of scratch memory, up to which it is kept
_FLAGS = {"contract", "nsz", "arcp"}
Index = np.uintp  # a signed index may count from the end, which keeps loops from becoming vector ones


def _rows(first: int, count: int) -> list[Any]:
    return [Index((first + i) * WIDTH) for i in range(count)]


# Kept of every cell: the state that the sweep down computes, and the values that the sweep up hands on.
# State: occupancy under μ, what π adds to it, the second-order part of that.
_D, _SHIFT, _REST = _rows(0, 3)
# Values: V under μ and π, E_μ W² - 1 and 1 - E_μ √W of what follows.
_V, _V_PI, _CHI2_AFTER, _HELLINGER2_AFTER = _rows(0, 4)
_STATE, _VALUES = Index(3 * WIDTH), Index(4 * WIDTH)

# The rows of the cell at work: its state, sums over its actions, and what all cells add up to.
_COLLECTED_V, _COLLECTED_V_PI, _ON, _OVERLAP, _G, _TV, _KL, _REVERSE, _CHI2, _HELLINGER2, _SPREAD, _ADV = (
    _rows(3, 12)
)
_FIRST_SUM, _FIRST_MAXIMUM = 15, 15 + len(SUMMED)
(
    _SURROGATE, _TV_SUM, _KL_SUM, _REVERSE_SUM, _REVERSE_SEQ, _MARTINGALE, _VARIANCE, _LENGTH, _LENGTH_PI,
    _IMPROVEMENT, _ERROR, _ERROR_SUP, _TV_SEQ,
) = _rows(_FIRST_SUM, len(SUMMED))  # fmt: skip
_TV_MAX, _KL_MAX, _REVERSE_MAX, _CHI2_MAX, _H_MAX, _G_MAX, _ADV_MAX = _rows(
    _FIRST_MAXIMUM, len(TAKEN_MAXIMUM)
)
(_LEAST,) = _rows(_FIRST_MAXIMUM + len(TAKEN_MAXIMUM), 1)
_ROWS = _FIRST_MAXIMUM + len(TAKEN_MAXIMUM) + 1


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
def _divergences(m, p):  # type: ignore[no-untyped-def]
    """What an action adds to KL(μ‖π), KL(π‖μ), χ² and twice the squared Hellinger distance; 1/m and √(pm)."""
    diff = p - m
    root = np.sqrt(p * m)
    # scaled = m 2^e lies between 2/3 and 3/2 of p
    e = (_bits(p) - _bits(m) + (1 << 51)) >> 52  # type: ignore[call-arg]
    scaled = _from_bits(_bits(m) + (e << 52))
    # one division for 1/m, 1/(p + scaled) and 1/(p + m + 2 root) = 1/(√p + √m)²
    near, wide = p + scaled, p + m + 2.0 * root
    product = m * near
    inverse = 1.0 / (product * wide)
    by_wide, rest = product * inverse, wide * inverse
    by_m, by_near = near * rest, m * rest
    # log(p/scaled) = 2 atanh s = 2(s + s³·series)
    s = (p - scaled) * by_near
    w = s * s
    series = 0.07559243554362285
    series = series * w + 0.07641851876201573
    series = series * w + 0.09092305123147032
    series = series * w + 0.11111091388337241
    series = series * w + 0.14285714418022774
    series = series * w + 0.19999999999667778
    series = series * w + 0.3333333333333347
    log = e * 0.6931471805599453 + 2.0 * (s + s * w * series)
    # for e = 0 the non-negative terms diff - m log(p/m), p log(p/m) - diff without their cancellation
    square = diff * diff
    lead = diff * s
    kl = lead + lead * series * (w - s) if e == 0 else diff - m * log
    reverse = lead + lead * series * (w + s) if e == 0 else p * log - diff
    return kl, reverse, square * by_m, square * by_wide, by_m, root


@numba.njit(fastmath=_FLAGS, error_model="numpy", nogil=True, forceinline=True)
def _descend(mu, pi, at, state, cell, out, to, n):  # type: ignore[no-untyped-def]
    """State of the children by one action."""
    for j in range(n):
        m, p = mu[at + j], pi[at + j]
        d, shift, rest = state[cell + _D + j], state[cell + _SHIFT + j], state[cell + _REST + j]
        diff = p - m
        out[to + _D + j] = d * m
        out[to + _SHIFT + j] = shift * p + d * diff
        out[to + _REST + j] = rest * m + shift * diff


@numba.njit(fastmath=_FLAGS, error_model="numpy", nogil=True, forceinline=True)
def _load(state, cell, work, n):  # type: ignore[no-untyped-def]
    for j in range(n):
        work[_D + j] = state[cell + _D + j]
        work[_SHIFT + j] = state[cell + _SHIFT + j]
        work[_REST + j] = state[cell + _REST + j]


@numba.njit(fastmath=_FLAGS, error_model="numpy", nogil=True, forceinline=True)
def _clear(work, n):  # type: ignore[no-untyped-def]
    for j in range(n):
        work[_COLLECTED_V + j] = 0.0
        work[_COLLECTED_V_PI + j] = 0.0
        work[_ON + j] = 0.0
        work[_OVERLAP + j] = 0.0
        work[_G + j] = 0.0
        work[_TV + j] = 0.0
        work[_KL + j] = 0.0
        work[_REVERSE + j] = 0.0
        work[_CHI2 + j] = 0.0
        work[_HELLINGER2 + j] = 0.0
        work[_SPREAD + j] = 0.0
        work[_ADV + j] = 0.0


@numba.njit(fastmath=_FLAGS, error_model="numpy", nogil=True, forceinline=True)
def _add_continuing(mu, pi, at, values, child, work, n):  # type: ignore[no-untyped-def]
    """Add an action that leads to the contexts ``child``."""
    for j in range(n):
        m, p = mu[at + j], pi[at + j]
        q, q_pi = values[child + _V + j], values[child + _V_PI + j]
        kl, reverse, chi2, hellinger2, by_m, root = _divergences(m, p)
        diff = p - m
        work[_COLLECTED_V + j] += m * q
        work[_COLLECTED_V_PI + j] += p * q_pi
        work[_G + j] += diff * q
        work[_TV + j] += abs(diff)
        work[_KL + j] += kl
        work[_REVERSE + j] += reverse
        work[_CHI2 + j] += chi2
        work[_HELLINGER2 + j] += hellinger2
        work[_ON + j] += p * (p * by_m) * values[child + _CHI2_AFTER + j]
        work[_OVERLAP + j] += root * values[child + _HELLINGER2_AFTER + j]
        least = min(m, p)
        work[_LEAST + j] = least if least < work[_LEAST + j] else work[_LEAST + j]


@numba.njit(fastmath=_FLAGS, error_model="numpy", nogil=True, forceinline=True)
def _add_ending(mu, pi, reward, at, work, n):  # type: ignore[no-untyped-def]
    """Add an action that ends the sequence."""
    for j in range(n):
        m, p, q = mu[at + j], pi[at + j], reward[at + j]
        kl, reverse, chi2, hellinger2, _, _ = _divergences(m, p)
        diff = p - m
        work[_COLLECTED_V + j] += m * q
        work[_COLLECTED_V_PI + j] += p * q
        work[_G + j] += diff * q
        work[_TV + j] += abs(diff)
        work[_KL + j] += kl
        work[_REVERSE + j] += reverse
        work[_CHI2 + j] += chi2
        work[_HELLINGER2 + j] += hellinger2
        least = min(m, p)
        work[_LEAST + j] = least if least < work[_LEAST + j] else work[_LEAST + j]
        shift = work[_SHIFT + j]
        rest = work[_REST + j] * m + shift * diff
        work[_ERROR + j] += rest * q
        work[_ERROR_SUP + j] += 0.5 * abs(rest)
        work[_TV_SEQ + j] += 0.5 * abs(shift * p + work[_D + j] * diff)


@numba.njit(fastmath=_FLAGS, error_model="numpy", nogil=True, forceinline=True)
def _add_spread(mu, at, q, child, work, n):  # type: ignore[no-untyped-def]
    """Variance of Q under μ, and the largest |Q - V|."""
    for j in range(n):
        gap = q[child + j] - work[_COLLECTED_V + j]
        work[_SPREAD + j] += mu[at + j] * gap * gap
        gap = abs(gap)
        work[_ADV + j] = gap if gap > work[_ADV + j] else work[_ADV + j]


@numba.njit(fastmath=_FLAGS, error_model="numpy", nogil=True, forceinline=True)
def _add_spread_and_slope(mu, pi, at, q, child, child_pi, work, gradient, n):  # type: ignore[no-untyped-def]
    """The same, and the gradient d^π π (Q^π - V^π)."""
    for j in range(n):
        gap = q[child + j] - work[_COLLECTED_V + j]
        work[_SPREAD + j] += mu[at + j] * gap * gap
        gap = abs(gap)
        work[_ADV + j] = gap if gap > work[_ADV + j] else work[_ADV + j]
        reach = work[_D + j] + work[_SHIFT + j]
        gradient[at + j] = reach * pi[at + j] * (q[child_pi + j] - work[_COLLECTED_V_PI + j])


@numba.njit(fastmath=_FLAGS, error_model="numpy", nogil=True, forceinline=True)
def _collect(work, values, cell, n):  # type: ignore[no-untyped-def]
    """Add the cell's contexts to the sums, raise the maxima to them, and hand on their values."""
    for j in range(n):
        d, shift, g = work[_D + j], work[_SHIFT + j], work[_G + j]
        tv, hellinger2 = 0.5 * work[_TV + j], 0.5 * work[_HELLINGER2 + j]
        kl, reverse, chi2, adv = work[_KL + j], work[_REVERSE + j], work[_CHI2 + j], work[_ADV + j]
        d_pi, size = d + shift, abs(g)
        work[_SURROGATE + j] += d * g
        work[_TV_SUM + j] += d * tv
        work[_KL_SUM + j] += d * kl
        work[_REVERSE_SUM + j] += d * reverse
        work[_REVERSE_SEQ + j] += d_pi * reverse
        work[_MARTINGALE + j] += shift * shift / d * chi2 if shift != 0.0 else 0.0
        work[_VARIANCE + j] += d * work[_SPREAD + j]
        work[_LENGTH + j] += d
        work[_LENGTH_PI + j] += d_pi
        work[_IMPROVEMENT + j] += d_pi * g
        work[_TV_MAX + j] = tv if tv > work[_TV_MAX + j] else work[_TV_MAX + j]
        work[_KL_MAX + j] = kl if kl > work[_KL_MAX + j] else work[_KL_MAX + j]
        work[_REVERSE_MAX + j] = reverse if reverse > work[_REVERSE_MAX + j] else work[_REVERSE_MAX + j]
        work[_CHI2_MAX + j] = chi2 if chi2 > work[_CHI2_MAX + j] else work[_CHI2_MAX + j]
        work[_H_MAX + j] = hellinger2 if hellinger2 > work[_H_MAX + j] else work[_H_MAX + j]
        work[_G_MAX + j] = size if size > work[_G_MAX + j] else work[_G_MAX + j]
        work[_ADV_MAX + j] = adv if adv > work[_ADV_MAX + j] else work[_ADV_MAX + j]
        values[cell + _V + j] = work[_COLLECTED_V + j]
        values[cell + _V_PI + j] = work[_COLLECTED_V_PI + j]
        values[cell + _CHI2_AFTER + j] = work[_ON + j] + chi2
        values[cell + _HELLINGER2_AFTER + j] = work[_OVERLAP + j] + hellinger2


@numba.njit(error_model="numpy", nogil=True, forceinline=True)
def _visit(mu, pi, reward, gradient, plan, k, lanes, first, unit, values, work):  # type: ignore[no-untyped-def]
    """Everything about the contexts of cell ``k``, whose state is in ``work``."""
    n = plan.size[k] * unit
    _clear(work, n)
    inner = plan.branching if k < plan.above else Index(0)
    for a in range(plan.actions):
        at = (a * plan.contexts + plan.start[k]) * lanes + first
        if a < inner:
            child = plan.child[k, a] * _VALUES + plan.offset[k, a] * unit
            _add_continuing(mu, pi, at, values, child, work, n)
        else:
            _add_ending(mu, pi, reward, at, work, n)
    for a in range(plan.actions):
        at = (a * plan.contexts + plan.start[k]) * lanes + first
        if a < inner:
            child = plan.child[k, a] * _VALUES + plan.offset[k, a] * unit
            if len(gradient) > 0:
                _add_spread_and_slope(mu, pi, at, values, child, child + _V_PI, work, gradient, n)
            else:
                _add_spread(mu, at, values, child, work, n)
        elif len(gradient) > 0:
            _add_spread_and_slope(mu, pi, at, reward, at, at, work, gradient, n)
        else:
            _add_spread(mu, at, reward, at, work, n)
    _collect(work, values, k * _VALUES, n)


@numba.njit(error_model="numpy", nogil=True, forceinline=True)
def _sweep(mu, pi, reward, gradient, plan, lanes, first, unit, state, values, work):  # type: ignore[no-untyped-def]
    """Both sweeps over ``unit`` instances from number ``first`` of ``lanes``."""
    one = Index(1)
    for k in range(plan.roots):
        for i in range(plan.size[k]):
            for j in range(unit):
                at = k * _STATE + i * unit + j
                state[at + _D] = plan.weights[plan.start[k] + i]
                state[at + _SHIFT] = 0.0
                state[at + _REST] = 0.0
    for k in range(plan.before):
        n = plan.size[k] * unit
        for a in range(plan.branching):
            at = (a * plan.contexts + plan.start[k]) * lanes + first
            to = plan.child[k, a] * _STATE + plan.offset[k, a] * unit
            _descend(mu, pi, at, state, k * _STATE, state, to, n)
    # up: the cells of the last level in the order of the tables, with their state made on the spot; then the
    # others backwards
    parents = plan.above - plan.before
    deepest = plan.branching * parents
    for i in range(deepest + plan.stored):
        if i < deepest:
            a, k = i // parents, plan.before + i % parents
            at = (a * plan.contexts + plan.start[k]) * lanes + first
            cell, offset = plan.child[k, a], plan.offset[k, a]
            _descend(mu, pi, at, state, k * _STATE, work, offset * unit, plan.size[k] * unit)
            if offset + plan.size[k] < plan.size[cell]:
                continue
        else:
            cell = plan.stored - one - (i - deepest)
            _load(state, cell * _STATE, work, plan.size[cell] * unit)
        _visit(mu, pi, reward, gradient, plan, cell, lanes, first, unit, values, work)


@numba.njit(error_model="numpy", nogil=True, forceinline=True)
def _reduce(plan, work, values, first, unit, out):  # type: ignore[no-untyped-def]
    """Sums and maxima of every instance over the contexts that shared a cell; means of backward values."""
    summed, rows = Index(len(SUMMED)), Index(len(SUMMED) + len(TAKEN_MAXIMUM))
    least = np.inf
    for j in range(plan.width * unit):
        least = min(least, work[_LEAST + j])
    for r in range(rows):
        row = _SURROGATE + r * Index(WIDTH)
        for j in range(unit):
            out[r, first + j] = work[row + j]
        for i in range(Index(1), plan.width):
            for j in range(unit):
                x = work[row + i * unit + j]
                out[r, first + j] = out[r, first + j] + x if r < summed else max(out[r, first + j], x)
    for r in range(Index(len(BACKWARD))):
        for j in range(unit):
            out[rows + r, first + j] = 0.0
        for k in range(plan.roots):
            for i in range(plan.size[k]):
                weight = plan.weights[plan.start[k] + i]
                at = k * _VALUES + r * Index(WIDTH) + i * unit
                for j in range(unit):
                    out[rows + r, first + j] += weight * values[at + j]
    variance = (_VARIANCE - _SURROGATE) // Index(WIDTH)
    for k in range(plan.roots):
        for i in range(plan.size[k]):
            weight = plan.weights[plan.start[k] + i]
            at = k * _VALUES + i * unit
            for j in range(unit):
                gap = values[at + j] - out[rows, first + j]
                out[variance, first + j] += weight * gap * gap
    for j in range(unit):
        out[variance, first + j] = np.sqrt(out[variance, first + j])
    return least


@numba.njit(error_model="numpy", nogil=True, cache=True)
def _run(mu, pi, reward, gradient, plan, lanes, unit, state, values, work, out):  # type: ignore[no-untyped-def]
    first = Index(0)
    least = np.inf
    while first < lanes:
        now = min(unit, lanes - first)
        work[:] = 0.0
        work[_LEAST:] = np.inf
        _sweep(mu, pi, reward, gradient, plan, lanes, first, now, state, values, work)
        least = min(least, _reduce(plan, work, values, first, now, out))
        first += unit
    return least


class Plan(NamedTuple):
    """Cells of a tree, level by level: each is a run of contexts of one level.

    The children of a cell by one action are a run within one cell: a level that fits a cell is one, and the
    cells of the next level hold as many copies of it as fit; below that every cell repeats its parent.
    """

    actions: Any
    branching: Any  # continuing actions, which come first
    contexts: Any  # of the tree
    width: Any  # most contexts in a cell
    roots: Any  # cells of the first level
    before: Any  # cells above the last two levels
    above: Any  # cells above the last level
    stored: Any  # cells whose state is kept: those above the last level, or all if it is the first
    start: np.ndarray  # first context of a cell
    size: np.ndarray  # its contexts
    child: np.ndarray  # (cells, branching) the cell that holds the children
    offset: np.ndarray  # and where in it they start
    weights: np.ndarray  # of the prompts


@lru_cache(maxsize=64)
def plan_cells(tree: TokenTree, width: int) -> Plan:
    """Cells of at most ``width`` contexts."""
    b, actions = tree.branching, np.arange(tree.branching)
    begin = np.arange(0, tree.prompts, width)
    levels = [(begin, np.minimum(width, tree.prompts - begin))]
    links, number = [], 0
    for t in range(tree.horizon - 1):
        begin, count = levels[-1]
        size, cells = tree.contexts(t), len(begin)
        number += cells
        if cells == 1:
            group = max(1, min(b, width // size))
            copies = np.arange(0, b, group)
            levels.append((copies * size, np.minimum(group, b - copies) * size))
            links.append(((number + actions // group)[None], (actions % group * size)[None]))
        else:
            levels.append(((actions[:, None] * size + begin).ravel(), np.tile(count, b)))
            child = number + np.arange(cells)[:, None] + actions * cells
            links.append((child, np.zeros_like(child)))
    cells = len(levels[-1][0])
    links.append((np.zeros((cells, b), dtype=int),) * 2)

    def joined(parts: list[Any]) -> np.ndarray:
        return np.concatenate(parts).astype(Index)

    start = joined([begin + tree.offsets[t] for t, (begin, _) in enumerate(levels)])
    count = joined([count for _, count in levels])
    return Plan(
        actions=Index(tree.vocab),
        branching=Index(b),
        contexts=Index(tree.contexts_total),
        width=Index(count.max()),
        roots=Index(len(levels[0][0])),
        before=Index(number - (len(levels[-2][0]) if number else 0)),
        above=Index(number),
        stored=Index(number or len(start)),
        start=start,
        size=count,
        child=joined([child for child, _ in links]),
        offset=joined([offset for _, offset in links]),
        weights=tree.weights(False).reshape(-1),
    )


_kept = threading.local()


def _scratch(name: str, length: int) -> np.ndarray:
    """Memory that starts a cache line; small blocks are kept, as fresh ones cost more than the sweep."""
    block = getattr(_kept, name, None)
    if block is None or len(block) < length:
        block = np.empty(length + 7)
        block = block[-block.ctypes.data % 64 // 8 :][:length]
        if length <= _KEPT_NUMBERS:
            setattr(_kept, name, block)
    return block


def summarise(
    tree: TokenTree, mu: np.ndarray, pi: np.ndarray, reward: np.ndarray, *, gradient: bool = False
) -> tuple[dict[str, np.ndarray], np.ndarray | None] | None:
    """Quantities of every instance by name, and ∇J(π) with respect to the logits of π if asked for.

    Arguments are float64 in the inner layout, ``(vocab, contexts_total[, batch])``: probabilities and a
    terminal reward.  Results are scalars or have shape (batch,), the gradient the shape of a table.  ``None``
    if a probability is below ``SMALLEST``.
    """
    batch = mu.shape[2:]
    lanes = int(np.prod(batch))
    names = (*SUMMED, *TAKEN_MAXIMUM, *BACKWARD)
    out = np.empty((len(names), lanes))
    tables = [np.ascontiguousarray(x).reshape(-1) for x in (mu, pi, reward)]
    slope = np.empty_like(tables[0]) if gradient else np.empty(0)
    if lanes:
        unit = -(-lanes // -(-lanes // WIDTH))  # equal parts of at most WIDTH instances
        plan = plan_cells(tree, WIDTH // unit)
        scratch = (
            _scratch("state", int(_STATE * plan.stored)),
            _scratch("values", int(_VALUES) * len(plan.start)),
            _scratch("work", _ROWS * WIDTH),
        )
        least = _run(*tables, slope, plan, Index(lanes), Index(unit), *scratch, out)  # type: ignore[call-arg]
        if not least >= SMALLEST:
            return None
    found = dict(zip(names, out if batch else out[:, 0], strict=True))
    return found, slope.reshape(mu.shape) if gradient else None
