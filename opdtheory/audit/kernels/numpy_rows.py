"""The sweep in numpy, one row at a time, so that every temporary stays in cache.

Near p = q the naive sums cancel: Σ p(log p − log q) is a difference of numbers of the size of the entropy.  Here every
divergence is a sum of non-negative terms in ℓ = log q − log p: KL(p‖q) = Σ p(e^ℓ−1−ℓ), KL(q‖p) = Σ p(ℓ(e^ℓ−1) −
(e^ℓ−1−ℓ)), χ²(q‖p) = Σ p(e^ℓ−1)², TV = ½Σ p|e^ℓ−1|, H² = ½Σ p(e^{ℓ/2}−1)², JSD = ½Σ p·j(ℓ); e^ℓ−1−ℓ and j come from
their series where |ℓ| is small.
"""

from __future__ import annotations

import numpy as np

STATISTICS = (
    "logp_p", "logp_q", "entropy_p", "entropy_q", "kl_pq", "kl_qp", "tv", "chi2_qp", "jsd", "hellinger2",
    "max_abs_log_ratio", "topd_second_moment", "topk_kl", "topk_tv",
)  # fmt: skip
SERIES_BELOW = 0.5
NARROW = 0.05
"""In float64 the series serve a narrower range, where they are exact to the last digits."""
SAFE_RANGE = 80.0
"""Rows whose log-probabilities or log ratios exceed this in size are computed in float64, zeros included."""


def pair_statistics(p: np.ndarray, q: np.ndarray, tokens: np.ndarray, topk: int, alpha: float) -> dict[str, np.ndarray]:
    """See ``dispatch.pair_statistics``."""
    out = np.full((len(STATISTICS), len(p)), np.nan)
    for i in range(len(p)):
        if np.isnan(p[i]).any() or np.isnan(q[i]).any():
            continue
        out[:, i] = _row(p[i], q[i], int(tokens[i]), topk, alpha)
    return dict(zip(STATISTICS, out, strict=True))


def _row(x: np.ndarray, y: np.ndarray, token: int, topk: int, alpha: float) -> np.ndarray | float:
    top_x, top_y = x.max(), y.max()
    if not (np.isfinite(top_x) and np.isfinite(top_y)):
        return np.nan
    low = min(x.min() - top_x, y.min() - top_y)
    if low < -SAFE_RANGE or not np.isfinite(low):
        return careful_row(x, y, token, topk, alpha)
    a, b = x - top_x, y - top_y
    p, q = np.exp(a), np.exp(b)
    z_p, z_q = p.sum(dtype=np.float64), q.sum(dtype=np.float64)
    log_zp, log_zq = np.log(z_p), np.log(z_q)
    d = np.subtract(y, x)
    shift = (float(top_y) + log_zq) - (float(top_x) + log_zp)
    entropy_p = log_zp - np.dot(p, a) / z_p
    entropy_q = log_zq - np.dot(q, b) / z_q
    d -= x.dtype.type(shift)
    ell = d
    p *= x.dtype.type(1 / z_p)
    largest = max(abs(float(ell.max())), abs(float(ell.min())))
    g, em1, j = _functions(ell, largest)
    kl_pq = np.dot(p, g)
    kl_qp = np.dot(p, ell * em1 - g)
    pe = p * em1
    tv = np.abs(pe).sum(dtype=np.float64) / 2
    chi2 = np.dot(pe, em1)
    half = em1 / (1 + np.sqrt(1 + em1))
    hellinger = np.dot(p * half, half) / 2
    jsd = np.dot(p, j) / 2
    topd = np.log1p(alpha * em1) if alpha < 1 else ell
    moment = np.dot(p * topd, topd)
    kl_top, tv_top = topk_row(x, y, float(top_x) + log_zp, float(top_y) + log_zq, token, topk)
    return np.array([
        x[token] - top_x - log_zp, y[token] - top_y - log_zq, entropy_p, entropy_q, kl_pq, kl_qp, tv, chi2, jsd,
        hellinger, largest, moment, kl_top, tv_top,
    ], dtype=np.float64)  # fmt: skip


def _functions(ell: np.ndarray, largest: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """e^ℓ−1−ℓ, e^ℓ−1 and j(ℓ) = e^ℓ·ℓ − (1+e^ℓ) log((1+e^ℓ)/2), by series where |ℓ| < ½."""
    small = np.clip(ell, -SERIES_BELOW, SERIES_BELOW) if largest > SERIES_BELOW else ell
    square = small * small
    g = square * series_g(small)
    j = square * series_j(small)
    if largest > SERIES_BELOW:
        big = np.abs(ell) > SERIES_BELOW
        e = ell[big]
        em1 = np.expm1(e)
        g[big] = em1 - e
        j[big] = (1 + em1) * e - (2 + em1) * np.log1p(em1 / 2)
    return g, g + ell, j


def series_g(x):  # type: ignore[no-untyped-def]
    """(e^x − 1 − x)/x² for |x| ≤ ½, to float32 accuracy; also for scalars."""
    return 1 / 2 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120 + x * (1 / 720 + x * (1 / 5040 + x * (1 / 40320))))))


def series_j(x):  # type: ignore[no-untyped-def]
    """j(x)/x² for |x| ≤ ½ with j(x) = e^x·x − (1+e^x) log((1+e^x)/2)."""
    return 1 / 4 + x * (1 / 8 + x * (1 / 32 + x * (1 / 192 + x * (1 / 1152 + x * (1 / 5760 + x / 46080)))))


def topk_row(x: np.ndarray, y: np.ndarray, lse_x: float, lse_y: float, token: int, k: int) -> tuple[float, float]:
    """KL(p‖q) and TV after merging all but p's top k tokens and the drawn one, ties to the lower index."""
    top = np.argpartition(-x, k - 1)[:k] if k < len(x) else np.arange(len(x))
    if k < len(x):
        edge = x[top].min()
        above = np.flatnonzero(x > edge)
        ties = np.flatnonzero(x == edge)[: k - len(above)]
        top = np.concatenate([above, ties])
    if token not in top:
        top = np.append(top, token)
    return topk_pair(np.exp(x[top].astype(np.float64) - lse_x), np.exp(y[top].astype(np.float64) - lse_y), len(top) == len(x))


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
    """One row in float64 with exact rules for zeros: 0·log 0 = 0, and missing support makes a divergence inf."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    lp, lq = x - _lse(x), y - _lse(y)
    p, q = np.exp(lp), np.exp(lq)
    both = (lp > -np.inf) & (lq > -np.inf)
    ell = np.where(both, np.where(both, lq, 0) - np.where(both, lp, 0), 0.0)
    p_only, q_only = p[(lq == -np.inf)].sum(), q[lp == -np.inf].sum()
    pb, qb = np.where(both, p, 0.0), np.where(both, q, 0.0)
    near = np.abs(ell) < NARROW
    small = np.where(near, ell, 0.0)
    g = pb * small**2 * series_g(small)
    kl_pq = np.where(near, g, qb - pb - pb * ell).sum() + q_only if p_only == 0 else np.inf
    kl_qp = np.where(near, pb * small * np.expm1(small) - g, qb * ell - qb + pb).sum() + p_only if q_only == 0 else np.inf
    diff = np.where(near, pb * np.expm1(small), qb - pb)
    tv = (np.abs(diff).sum() + p_only + q_only) / 2
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        log_square = np.where(both, 2 * lq - lp, -np.inf)
        far = np.where(near, pb * np.expm1(small) ** 2, np.exp(log_square) - 2 * qb + pb)
        chi2 = np.where(both, far, 0).sum() + p_only if q_only == 0 else np.inf
        hellinger = (np.where(near, pb * np.expm1(small / 2) ** 2, (np.sqrt(pb) - np.sqrt(qb)) ** 2).sum() + p_only + q_only) / 2
        m = (pb + qb) / 2
        terms = np.where(m > 0, _rel(pb, m) + _rel(qb, m), 0.0) / 2
        jsd = np.where(near, pb * small**2 * series_j(small) / 2, terms).sum() + (p_only + q_only) * np.log(2) / 2
        # where q has no mass α q/p + 1 − α is 1 − α
        topd = np.where(lq > -np.inf, np.logaddexp(np.log(alpha) + ell, np.log1p(-alpha) if alpha < 1 else -np.inf), np.log1p(-alpha) if alpha < 1 else -np.inf)  # fmt: skip
        topd = np.where(near, np.log1p(alpha * np.expm1(small)), topd) if alpha < 1 else np.where(lq > -np.inf, ell, -np.inf)
        moment = np.where(p > 0, p * np.where(p > 0, topd, 0.0) ** 2, 0.0).sum()
    largest = np.inf if p_only > 0 or q_only > 0 else float(np.abs(ell).max())
    entropy = [-(w[w > 0] * lw[w > 0]).sum() for w, lw in ((p, lp), (q, lq))]
    kl_top, tv_top = topk_row(x, y, _lse(x), _lse(y), token, topk)
    return np.array([lp[token], lq[token], *entropy, kl_pq, kl_qp, tv, chi2, jsd, hellinger, largest, moment, kl_top, tv_top])


def _lse(x: np.ndarray) -> float:
    top = x.max()
    return float(top + np.log(np.exp(x - top).sum()))


def _rel(a: np.ndarray, m: np.ndarray) -> np.ndarray:
    return np.where(a > 0, a * np.log(np.where(a > 0, a, 1.0) / np.where(m > 0, m, 1.0)), 0.0)
