"""The sweep in numpy, row by row, rows shared between threads.

Near p = q the naive sums cancel: Σ p(log p − log q) is a difference of numbers of the size of the entropy.
Here every divergence is a sum of non-negative terms in ℓ = log q − log p: KL(p‖q) = Σ p(e^ℓ−1−ℓ), KL(q‖p) =
Σ p(ℓ(e^ℓ−1) − (e^ℓ−1−ℓ)), χ²(q‖p) = Σ p(e^ℓ−1)², TV = ½Σ p|e^ℓ−1|, H² = ½Σ p(e^{ℓ/2}−1)², JSD = ½Σ p·j(ℓ);
e^ℓ−1−ℓ and j come from their series where |ℓ| is small.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

STATISTICS = (
    "logp_p", "logp_q", "entropy_p", "entropy_q", "kl_pq", "kl_qp", "tv", "chi2_qp", "jsd", "hellinger2",
    "max_abs_log_ratio", "topd_second_moment", "topk_kl", "topk_tv",
)  # fmt: skip
SERIES_BELOW = 0.5
CHUNK = 1 << 18
"""Elements handled at a time, a whole row of today's vocabularies: shorter pieces stay in cache but leave the
interpreter lock to one thread too rarely for two to pay.
"""
NARROW = 0.05
"""In float64 the series serve a narrower range, where they are exact to the last digits."""
SAFE_RANGE = 80.0
"""Rows whose log-probabilities or log ratios exceed this in size are computed in float64, zeros included."""


def pair_statistics(
    p: np.ndarray, q: np.ndarray, tokens: np.ndarray, topk: int, alpha: float
) -> dict[str, np.ndarray]:
    """See ``dispatch.pair_statistics``."""
    out = np.full((len(STATISTICS), len(p)), np.nan)

    def rows(first: int, last: int) -> None:
        work = np.empty((7, min(CHUNK, max(1, p.shape[1]))), p.dtype)
        for i in range(first, last):
            out[:, i] = _row(p[i], q[i], int(tokens[i]), topk, alpha, work)

    # the usual variable also keeps the worker processes of a parallel audit to their share of the cores
    threads = min(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1), max(1, len(p) // 4))
    cuts = [len(p) * k // threads for k in range(threads + 1)]
    if threads == 1:
        rows(0, len(p))
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(rows, cuts[:-1], cuts[1:]))
    return dict(zip(STATISTICS, out, strict=True))


def _row(
    x: np.ndarray, y: np.ndarray, token: int, topk: int, alpha: float, work: np.ndarray
) -> np.ndarray | float:
    lse_p, entropy_p, low_x = _normaliser(x, work)
    lse_q, entropy_q, low_y = _normaliser(y, work)
    if np.isnan(lse_p) or np.isnan(lse_q):
        return np.nan
    if min(low_x, low_y) < -SAFE_RANGE:
        return careful_row(x, y, token, topk, alpha)
    sums = np.zeros(7)
    largest = 0.0
    for a in range(0, len(x), CHUNK):
        largest = max(
            largest, _chunk(x[a : a + CHUNK], y[a : a + CHUNK], lse_p, lse_q - lse_p, alpha, sums, work)
        )
    kl_top, tv_top = topk_row(x, y, lse_p, lse_q, token, topk)
    return np.array(
        [
            float(x[token]) - lse_p,
            float(y[token]) - lse_q,
            entropy_p,
            entropy_q,
            sums[0],
            sums[1],
            sums[2] / 2,
            sums[3],
            sums[4] / 2,
            sums[5] / 2,
            largest,
            sums[6],
            kl_top,
            tv_top,
        ],
        dtype=np.float64,
    )


def _normaliser(x: np.ndarray, work: np.ndarray) -> tuple[float, float, float]:
    """(log Σe^x, entropy, smallest logit less the largest); NaN for a row with NaN or +inf or only −inf.

    Only the last is right where it is below −SAFE_RANGE.
    """
    top, low, total, weighted = -np.inf, np.inf, 0.0, 0.0
    for a in range(0, len(x), CHUNK):
        part = x[a : a + CHUNK]
        here, low = float(part.max()), min(low, float(part.min()))
        if not here < np.inf:
            return np.nan, np.nan, np.nan
        before, top = top, max(top, here)
        if not low - top >= -SAFE_RANGE:
            continue  # only NaN can still matter
        if top > before and total:
            fade = math.exp(before - top)
            weighted = fade * (weighted + total * (before - top))
            total *= fade
        shifted, e = work[0, : len(part)], work[1, : len(part)]
        np.exp(np.subtract(part, x.dtype.type(top), out=shifted), out=e)
        total += float(e.sum(dtype=np.float64))
        weighted += float(np.dot(e, shifted))
    if top == -np.inf:
        return np.nan, np.nan, np.nan
    entropy = math.log(total) - weighted / total if total else 0.0
    return top + math.log(total or 1.0), entropy, low - top


def _chunk(
    x: np.ndarray, y: np.ndarray, lse_p: float, shift: float, alpha: float, sums: np.ndarray, work: np.ndarray
) -> float:
    """Adds a stretch's KL(p‖q), KL(q‖p), 2TV, χ², 2JSD, 2H² and moment to ``sums``; returns max |ℓ|."""
    ell, p, g, em1, j, t, pe = work[:, : len(x)]
    np.subtract(y, x, out=ell)
    ell -= x.dtype.type(shift)
    np.exp(np.subtract(x, x.dtype.type(lse_p), out=p), out=p)
    largest = float(max(ell.max(), -ell.min()))
    small = ell
    if largest > SERIES_BELOW:
        small = np.clip(ell, -SERIES_BELOW, SERIES_BELOW, out=pe)
    square = np.multiply(small, small, out=t)
    reach = min(largest, SERIES_BELOW)
    _horner(SERIES_G, small, reach, g)
    g *= square
    square *= x.dtype.type(0.25)
    _horner(SERIES_PHI, square, reach**2 / 4, j)
    j *= square
    np.add(g, ell, out=em1)
    np.add(em1, 2, out=pe)
    j *= pe
    if largest > SERIES_BELOW:
        _far(ell, g, em1, j)
    np.multiply(p, em1, out=pe)
    sums[0] += np.dot(p, g)
    sums[3] += np.dot(pe, em1)
    sums[4] += np.dot(p, j)
    np.multiply(ell, em1, out=t)
    t -= g
    sums[1] += np.dot(p, t)
    np.abs(pe, out=pe)
    sums[2] += pe.sum()
    np.sqrt(np.add(em1, 1, out=t), out=t)
    t += 1
    np.divide(em1, t, out=t)  # e^{ℓ/2} − 1 without cancellation
    np.multiply(p, t, out=pe)
    sums[5] += np.dot(pe, t)
    if alpha < 1:
        np.log1p(np.multiply(em1, x.dtype.type(alpha), out=t), out=t)
    else:
        t[:] = ell
    np.multiply(p, t, out=pe)
    sums[6] += np.dot(pe, t)
    return largest


def _far(ell: np.ndarray, g: np.ndarray, em1: np.ndarray, j: np.ndarray) -> None:
    """Replace the series where |ℓ| is not small."""
    big = np.flatnonzero(np.abs(ell) > SERIES_BELOW)
    e = ell[big]
    m = np.expm1(e)
    em1[big] = m
    g[big] = m - e
    j[big] = (1 + m) * e - (2 + m) * np.log1p(m / 2)


SERIES_G = tuple(1 / math.factorial(k) for k in range(2, 9))
"""(e^x − 1 − x)/x², lowest power first."""
SERIES_PHI = (1 / 2, -1 / 4, 1 / 9, -17 / 360, 31 / 1575)
"""φ(h)/h² in powers of h², φ(h) = h tanh h − log cosh h; 2JSD = Σ p(1 + e^ℓ) φ(ℓ/2)."""


def _horner(series: tuple[float, ...], x: np.ndarray, reach: float, out: np.ndarray) -> None:
    """The series at |x| ≤ ``reach``, without the terms that are below its rounding there."""
    kind = x.dtype.type
    least = float(np.finfo(kind).eps) / 8 * abs(series[0])
    used = max(2, sum(abs(c) * reach**i > least for i, c in enumerate(series)))
    np.multiply(x, kind(series[used - 1]), out=out)
    for c in series[used - 2 : 0 : -1]:
        out += kind(c)
        out *= x
    out += kind(series[0])


def _series(series: tuple[float, ...], x: np.ndarray) -> np.ndarray:
    return np.polynomial.polynomial.polyval(x, series)


def topk_row(
    x: np.ndarray, y: np.ndarray, lse_x: float, lse_y: float, token: int, k: int
) -> tuple[float, float]:
    """KL(p‖q) and TV after merging all but p's top k tokens and the drawn one, ties to the lower index."""
    top = _largest(x, k)
    if token not in top:
        top = np.append(top, token)
    return topk_pair(
        np.exp(x[top].astype(np.float64) - lse_x),
        np.exp(y[top].astype(np.float64) - lse_y),
        len(top) == len(x),
    )


def _largest(x: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k largest entries, ties to the lower index.

    At least k entries reach the k-th largest of the maxima of 64 entries each, which leaves few to look at.
    """
    if k >= len(x):
        return np.arange(len(x))
    at = np.arange(len(x))
    columns = len(x) // 64
    if columns > 4 * k:
        maxima = x[: 64 * columns].reshape(64, columns).max(axis=0)
        at = np.flatnonzero(x >= np.partition(maxima, columns - k)[columns - k])
    values = x[at]
    edge = np.partition(values, len(values) - k)[len(values) - k]
    above = at[values > edge]
    return np.concatenate([above, at[values == edge][: k - len(above)]])


def topk_pair(p: np.ndarray, q: np.ndarray, everything: bool = False) -> tuple[float, float]:
    """The two partition divergences from the members' probabilities (float64)."""
    tail_p = 0.0 if everything else max(0.0, 1 - p.sum())
    tail_q = 0.0 if everything else max(0.0, 1 - q.sum())
    p, q = np.append(p, tail_p), np.append(q, tail_q)
    with np.errstate(divide="ignore", invalid="ignore"):
        ell = np.where(p > 0, np.log(q) - np.log(p), 0.0)
        term = np.where(p > 0, np.where(np.abs(ell) < 0.5, p * (np.expm1(ell) - ell), q - p - p * ell), q)
    return float(max(0.0, term.sum())), float(np.abs(p - q).sum() / 2)


def careful_row(x: np.ndarray, y: np.ndarray, token: int, topk: int, alpha: float) -> np.ndarray:
    """One row in float64 with exact rules for zeros: 0·log 0 = 0, and missing support makes a divergence
    inf.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    lp, lq = x - _lse(x), y - _lse(y)
    p, q = np.exp(lp), np.exp(lq)
    both = (lp > -np.inf) & (lq > -np.inf)
    ell = np.where(both, np.where(both, lq, 0) - np.where(both, lp, 0), 0.0)
    p_only, q_only = p[(lq == -np.inf)].sum(), q[lp == -np.inf].sum()
    pb, qb = np.where(both, p, 0.0), np.where(both, q, 0.0)
    near = np.abs(ell) < NARROW
    small = np.where(near, ell, 0.0)
    g = pb * small**2 * _series(SERIES_G, small)
    kl_pq = np.where(near, g, qb - pb - pb * ell).sum() + q_only if p_only == 0 else np.inf
    kl_qp = (
        np.where(near, pb * small * np.expm1(small) - g, qb * ell - qb + pb).sum() + p_only
        if q_only == 0
        else np.inf
    )
    diff = np.where(near, pb * np.expm1(small), qb - pb)
    tv = (np.abs(diff).sum() + p_only + q_only) / 2
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        log_square = np.where(both, 2 * lq - lp, -np.inf)
        far = np.where(near, pb * np.expm1(small) ** 2, np.exp(log_square) - 2 * qb + pb)
        chi2 = np.where(both, far, 0).sum() + p_only if q_only == 0 else np.inf
        hellinger = (
            np.where(near, pb * np.expm1(small / 2) ** 2, (np.sqrt(pb) - np.sqrt(qb)) ** 2).sum()
            + p_only
            + q_only
        ) / 2
        quarter = small**2 / 4
        phi = quarter * _series(SERIES_PHI, quarter)
        m = (pb + qb) / 2
        terms = np.where(m > 0, _rel(pb, m) + _rel(qb, m), 0.0) / 2
        jsd = (
            np.where(near, pb * (2 + np.expm1(small)) * phi / 2, terms).sum()
            + (p_only + q_only) * np.log(2) / 2
        )
        # where q has no mass α q/p + 1 − α is 1 − α
        topd = np.where(
            lq > -np.inf,
            np.logaddexp(np.log(alpha) + ell, np.log1p(-alpha) if alpha < 1 else -np.inf),
            np.log1p(-alpha) if alpha < 1 else -np.inf,
        )
        topd = (
            np.where(near, np.log1p(alpha * np.expm1(small)), topd)
            if alpha < 1
            else np.where(lq > -np.inf, ell, -np.inf)
        )
        moment = np.where(p > 0, p * np.where(p > 0, topd, 0.0) ** 2, 0.0).sum()
    largest = np.inf if p_only > 0 or q_only > 0 else float(np.abs(ell).max())
    entropy = [-(w[w > 0] * lw[w > 0]).sum() for w, lw in ((p, lp), (q, lq))]
    kl_top, tv_top = topk_row(x, y, _lse(x), _lse(y), token, topk)
    return np.array(
        [
            lp[token],
            lq[token],
            *entropy,
            kl_pq,
            kl_qp,
            tv,
            chi2,
            jsd,
            hellinger,
            largest,
            moment,
            kl_top,
            tv_top,
        ]
    )


def _lse(x: np.ndarray) -> float:
    top = x.max()
    return float(top + np.log(np.exp(x - top).sum()))


def _rel(a: np.ndarray, m: np.ndarray) -> np.ndarray:
    return np.where(a > 0, a * np.log(np.where(a > 0, a, 1.0) / np.where(m > 0, m, 1.0)), 0.0)
