"""The compiled sweep: two passes over each pair of rows, block by block, so that both stay in cache.

Pass 1 finds maxima (of every 64 elements, which later gives the top k without a sort), the normalisers and
both entropies.  Pass 2 knows both normalisers, forms ℓ = log q − log p and accumulates everything else from
e^{ℓ/2} − 1, which is computed without cancellation, so that small divergences keep their digits in float32.
Exponentials and logarithms are polynomials on bit-cast floats and the loops vectorise; blocks of 1024
elements are summed in float32 and joined in float64.

Rows with NaN, with −inf in only one of the two, or so spread that float32 would not do, are left to the
careful float64 row of ``numpy_rows``.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numba
import numpy as np

from opdtheory.audit.kernels import numpy_rows
from opdtheory.audit.kernels.numba_math import (
    FLAGS,
    F,
    bits,
    exp,
    exp_parts,
    from_bits,
    key,
    log1p,
    log1p_tiny,
    nearest,
    phi_series,
    square_part,
    value,
)

BLOCK = 1024
SUB = 64
LOWEST = 87.0
"""Log-probabilities below −87 are raised to it: e^−87 is the smallest normal float32."""
SPREAD = 40.0
"""Rows that were so raised somewhere and have a log ratio beyond this are computed in float64."""
NEAR = 0.69
"""Blocks whose log ratios all lie below this (log 2) take the shorter loop."""
TINY = 0.1
"""Where α|e^ℓ − 1| stays below this, as it does at α = 0.1 in those blocks, a short series gives the logarithm."""


@numba.njit(nogil=True, cache=True)
def _maxima(x, tops):  # type: ignore[no-untyped-def]
    """Maximum of every SUB elements into ``tops``; returns the maximum and minimum of all.  NaN comes out as
    NaN in one of them.

    Integer keys, because maxima of integers vectorise and those of floats with NaN do not.
    """
    high, low = np.int32(-0x80000000), np.int32(0x7FFFFFFF)
    whole = x.shape[0] // SUB
    for s in range(whole):
        m, l = np.int32(-0x80000000), np.int32(0x7FFFFFFF)
        for i in range(SUB):
            k = key(x[s * SUB + i])
            m = k if k > m else m
            l = k if k < l else l
        tops[s] = value(m)
        high = m if m > high else high
        low = l if l < low else low
    if whole < tops.shape[0]:
        m = np.int32(-0x80000000)
        for i in range(whole * SUB, x.shape[0]):
            k = key(x[i])
            m = k if k > m else m
            low = k if k < low else low
        tops[whole] = value(m)
        high = m if m > high else high
    return value(high), value(low)


@numba.njit(fastmath=FLAGS, error_model="numpy", nogil=True, cache=True)
def _sums(x, top):  # type: ignore[no-untyped-def]
    """Σ e^{x−top} and Σ e^{x−top}·(x − top) of one block with maximum ``top``.

    The terms at the maximum are counted, as beside a 1 the others would lose their digits.
    """
    total = rest = weighted = F(0)
    for i in range(x.shape[0]):
        a = x[i] - top
        a = F(-LOWEST) if a < F(-LOWEST) else a
        e = exp(a)
        total += e
        rest += e if a < F(0) else F(0)
        weighted += e * a
    return np.float64(nearest(total - rest)) + np.float64(rest), np.float64(weighted)  # type: ignore[call-arg]


@numba.njit(error_model="numpy", nogil=True, cache=True)
def _normaliser(x, tops):  # type: ignore[no-untyped-def]
    """(log Σe^x, entropy, minimum) of a row; fills the maxima of its parts."""
    low = F(np.inf)
    top, total, weighted = -np.inf, 0.0, 0.0
    for start in range(0, x.shape[0], BLOCK):
        stop = min(start + BLOCK, x.shape[0])
        here, least = _maxima(x[start:stop], tops[start // SUB : (stop + SUB - 1) // SUB])
        if not (here < np.inf and least < np.inf):
            return np.nan, np.nan, np.nan
        low = min(low, least)
        if here == -np.inf:
            continue
        s, w = _sums(x[start:stop], here)
        if here > top:
            factor = math.exp(top - here)
            weighted = factor * (weighted + total * (top - here)) if total > 0 else 0.0
            total *= factor
            top = float(here)
            weighted += w
            total += s
        else:
            factor = math.exp(here - top)
            weighted += factor * (w + s * (here - top))
            total += factor * s
    return top + math.log(total), math.log(total) - weighted / total, low


@numba.njit(fastmath={"nsz", "contract"}, error_model="numpy", nogil=True, cache=True)
def _densities(x, y, lse_p, lse_q, shift, ps, halves):  # type: ignore[no-untyped-def]
    """One block's p and ℓ/2; returns max |ℓ|.  The difference of close logits is exact: nothing may reorder
    it.
    """
    low_x, low_y = lse_p - F(LOWEST), lse_q - F(LOWEST)
    largest = np.int32(0)
    for i in range(x.shape[0]):
        u = low_x if x[i] < low_x else x[i]
        v = low_y if y[i] < low_y else y[i]
        ps[i] = exp(u - lse_p)
        ell = (v - u) - shift
        halves[i] = F(0.5) * ell
        # sizes of floats compare as integers do, and integer maxima vectorise
        size = bits(abs(ell))  # type: ignore
        largest = size if size > largest else largest
    return from_bits(largest)  # type: ignore


@numba.njit(fastmath=FLAGS, error_model="numpy", nogil=True, cache=True)
def _ratios_near(ps, halves, ems, count, sums):  # type: ignore[no-untyped-def]
    """``_ratios`` of a block whose log ratios are all below log 2: no powers of two, JSD by its series
    alone.

    With h = ℓ/2 and w = e^h − 1: e^ℓ − 1 − ℓ = 2(e^h − 1 − h) + w², and KL(p‖q) + KL(q‖p) = Σ pℓ(e^ℓ − 1).
    """
    squares = both = a2 = a3 = a4 = a5 = F(0)
    for i in range(count):
        p, half = ps[i], halves[i]
        square = square_part(half)
        w = half + square
        w2 = w * w
        em1 = w + w + w2
        pe = p * em1
        squares += p * square
        both += pe * half
        a2 += abs(pe)
        a3 += pe * em1
        a4 += p * w2
        a5 += (p + p + pe) * phi_series(half * half)
        ems[i] = em1
    kl = 2.0 * squares + a4
    sums[0] += kl
    sums[1] += 2.0 * both - kl
    sums[2] += a2
    sums[3] += a3
    sums[4] += a5
    sums[5] += a4


@numba.njit(fastmath=FLAGS, error_model="numpy", nogil=True, cache=True)
def _ratios(ps, halves, ems, count, sums):  # type: ignore[no-untyped-def]
    """One block's e^ℓ − 1; adds to ``sums`` KL(p‖q), KL(q‖p), 2TV, χ² and 2H²."""
    a0 = a1 = a2 = a3 = a4 = F(0)
    for i in range(count):
        p, half = ps[i], halves[i]
        ell = half + half
        square, scale, r, n = exp_parts(half)
        near = n == F(0.0)
        w = r + square if near else scale * (r + square) + (scale - F(1.0))  # e^{ℓ/2} − 1
        w2 = w * w
        em1 = w + w + w2
        g = square + square + w2 if near else em1 - ell  # e^ℓ − 1 − ℓ
        pe = p * em1
        a0 += p * g
        a1 += p * (ell * em1 - g)
        a2 += abs(pe)
        a3 += pe * em1
        a4 += p * w2
        ems[i] = em1
    sums[0] += a0
    sums[1] += a1
    sums[2] += a2
    sums[3] += a3
    sums[5] += a4


@numba.njit(fastmath=FLAGS, error_model="numpy", nogil=True, cache=True)
def _jsd(ps, halves, ems, count, sums):  # type: ignore[no-untyped-def]
    """Adds 2JSD of a block with some larger log ratios."""
    total = F(0)
    for i in range(count):
        half, em1 = halves[i], ems[i]
        h2 = half * half
        ratio = F(2.0) + em1
        big = half * (em1 / ratio) - (log1p(F(0.5) * em1) - half)
        total += ps[i] * ratio * (phi_series(h2) if h2 < F(1 / 16) else big)
    sums[4] += total


@numba.njit(fastmath=FLAGS, error_model="numpy", nogil=True, cache=True)
def _moment_near(ps, ems, alpha, count, sums):  # type: ignore[no-untyped-def]
    """Adds E_p[log²(1 + α(e^ℓ − 1))] where α|e^ℓ − 1| ≤ TINY."""
    moment = F(0)
    for i in range(count):
        t = log1p_tiny(alpha * ems[i])
        moment += ps[i] * t * t
    sums[6] += moment


@numba.njit(fastmath=FLAGS, error_model="numpy", nogil=True, cache=True)
def _moment(ps, ems, alpha, count, sums):  # type: ignore[no-untyped-def]
    moment = F(0)
    for i in range(count):
        t = log1p(alpha * ems[i])
        moment += ps[i] * t * t
    sums[6] += moment


@numba.njit(error_model="numpy", nogil=True, cache=True)
def _threshold(values, k, heap):  # type: ignore[no-untyped-def]
    """k-th largest of ``values`` (all of them if fewer), by insertion into a short sorted list."""
    used = 0
    for v in values:
        if used < k:
            j = used
            used += 1
        elif v > heap[k - 1]:
            j = k - 1
        else:
            continue
        while j > 0 and heap[j - 1] < v:
            heap[j] = heap[j - 1]
            j -= 1
        heap[j] = v
    return heap[used - 1]


@numba.njit(error_model="numpy", nogil=True, cache=True)
def _partition(x, y, tops, lse_p, lse_q, token, k, heap):  # type: ignore[no-untyped-def]
    """KL(p‖q) and TV over p's top k, the drawn token and one bucket; ties go to the lower index."""
    count = x.shape[0]
    bar = _threshold(tops, k, heap)
    # the k-th largest element is at least the k-th largest of the parts' maxima
    used = 0
    for s in range(tops.shape[0]):
        if tops[s] >= bar:
            for i in range(s * SUB, min(s * SUB + SUB, count)):
                v = x[i]
                if used < k:
                    j = used
                    used += 1
                elif v > heap[k - 1]:
                    j = k - 1
                else:
                    continue
                while j > 0 and heap[j - 1] < v:
                    heap[j] = heap[j - 1]
                    j -= 1
                heap[j] = v
    edge = heap[used - 1]
    above = 0
    for j in range(used):
        above += heap[j] > edge
    ties = used - above
    kl, tv, mass_p, mass_q = 0.0, 0.0, 0.0, 0.0
    seen = False
    members = 0
    for s in range(tops.shape[0]):
        if tops[s] >= edge:
            for i in range(s * SUB, min(s * SUB + SUB, count)):
                member = x[i] > edge
                if x[i] == edge and ties > 0:
                    ties -= 1
                    member = True
                if member:
                    seen = seen or i == token
                    members += 1
                    p, q = math.exp(x[i] - lse_p), math.exp(y[i] - lse_q)
                    kl += _term(p, q, (y[i] - lse_q) - (x[i] - lse_p))
                    tv += abs(p - q)
                    mass_p += p
                    mass_q += q
    if not seen:
        members += 1
        p, q = math.exp(x[token] - lse_p), math.exp(y[token] - lse_q)
        kl += _term(p, q, (y[token] - lse_q) - (x[token] - lse_p))
        tv += abs(p - q)
        mass_p += p
        mass_q += q
    if members < count:
        p, q = max(0.0, 1.0 - mass_p), max(0.0, 1.0 - mass_q)
        if p > 0 and q > 0:
            kl += _term(p, q, math.log(q) - math.log(p))
        elif p > 0:
            kl = np.inf
        else:
            kl += q
        tv += abs(p - q)
    return max(0.0, kl), tv / 2


@numba.njit(error_model="numpy", nogil=True, cache=True)
def _term(p, q, ell):  # type: ignore[no-untyped-def]
    """q − p + p log(p/q) ≥ 0 with ℓ = log q − log p."""
    return p * (math.expm1(ell) - ell) if abs(ell) < 0.5 else q - p - p * ell


@numba.njit(error_model="numpy", nogil=True, cache=True)
def _same_zeros(x, y):  # type: ignore[no-untyped-def]
    """Whether −inf stands at the same places of both rows."""
    for i in range(x.shape[0]):  # noqa: SIM110 (compiled: generators are slower)
        if (x[i] == -np.inf) != (y[i] == -np.inf):
            return False
    return True


@numba.njit(error_model="numpy", nogil=True, cache=True)
def _sweep(xs, ys, tokens, k, alpha, out, careful):  # type: ignore[no-untyped-def]
    vocab = xs.shape[1]
    parts = (vocab + SUB - 1) // SUB
    tops_x, tops_y = np.empty(parts, np.float32), np.empty(parts, np.float32)
    heap = np.empty(k, np.float32)
    sums = np.zeros(7)
    ps, halves, ems = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    for row in range(xs.shape[0]):
        x, y, token = xs[row], ys[row], tokens[row]
        lse_p, entropy_p, low_p = _normaliser(x, tops_x)
        lse_q, entropy_q, low_q = _normaliser(y, tops_y)
        if not (abs(lse_p) < np.inf and abs(lse_q) < np.inf):
            careful[row] = True
            continue
        if (low_p == -np.inf or low_q == -np.inf) and not _same_zeros(x, y):
            careful[row] = True
            continue
        sums[:] = 0.0
        largest = F(0)
        for start in range(0, vocab, BLOCK):
            stop = min(start + BLOCK, vocab)
            count = stop - start
            here = _densities(x[start:stop], y[start:stop], F(lse_p), F(lse_q), F(lse_q - lse_p), ps, halves)
            largest = max(largest, here)
            if here < NEAR:
                _ratios_near(ps, halves, ems, count, sums)
            else:
                _ratios(ps, halves, ems, count, sums)
                _jsd(ps, halves, ems, count, sums)
            if alpha * math.expm1(here) < TINY:
                _moment_near(ps, ems, alpha, count, sums)
            else:
                _moment(ps, ems, alpha, count, sums)
        raised = low_p < lse_p - LOWEST or low_q < lse_q - LOWEST
        if not sums[0] < np.inf or (raised and largest > SPREAD):
            careful[row] = True
            continue
        kl_top, tv_top = _partition(x, y, tops_x, lse_p, lse_q, token, k, heap)
        out[row, 0] = x[token] - lse_p
        out[row, 1] = y[token] - lse_q
        out[row, 2] = entropy_p
        out[row, 3] = entropy_q
        out[row, 4] = sums[0]
        out[row, 5] = sums[1]
        out[row, 6] = sums[2] / 2
        out[row, 7] = sums[3]
        out[row, 8] = sums[4] / 2
        out[row, 9] = sums[5] / 2
        out[row, 10] = largest
        out[row, 11] = sums[6]
        out[row, 12] = kl_top
        out[row, 13] = tv_top


def pair_statistics(
    p: np.ndarray, q: np.ndarray, tokens: np.ndarray, topk: int, alpha: float, threads: int | None = None
) -> dict[str, np.ndarray]:
    """See ``dispatch.pair_statistics``; rows are shared between threads."""
    if p.dtype != np.float32:
        return numpy_rows.pair_statistics(p, q, tokens, topk, alpha)
    p, q = np.ascontiguousarray(p), np.ascontiguousarray(q)
    n = len(p)
    out = np.full((n, len(numpy_rows.STATISTICS)), np.nan)
    careful = np.zeros(n, np.bool_)
    # α = 1 makes the TOP-D reward the log ratio, which the formula through e^ℓ − 1 gives all the same
    weight = F(min(alpha, 1.0 - 2.0**-24))
    workers = min(threads or int(getattr(numba.config, "NUMBA_NUM_THREADS")), max(1, n // 4))  # noqa: B009 (untyped module)
    edges = np.linspace(0, n, workers + 1).astype(int)
    calls = [(p[a:b], q[a:b], tokens[a:b], topk, weight, out[a:b], careful[a:b]) for a, b in pairwise(edges)]
    if workers == 1:
        _sweep(*calls[0])
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(lambda arguments: _sweep(*arguments), calls))
    for i in np.flatnonzero(careful):
        single = numpy_rows.pair_statistics(p[i : i + 1], q[i : i + 1], tokens[i : i + 1], topk, alpha)
        out[i] = [single[name][0] for name in numpy_rows.STATISTICS]
    return dict(zip(numpy_rows.STATISTICS, out.T.copy(), strict=True))
