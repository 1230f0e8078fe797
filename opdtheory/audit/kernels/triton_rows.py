"""The sweep on a GPU: one program a row, blocks of the vocabulary, no temporary of the size of the logits.

``one_pass`` reads the logits once and gives log-probabilities, entropies, KL both ways, χ² and E_p[ℓ²] from
running maxima with rescaled sums; its KL is a difference of larger numbers, good to about 1e-6 nats.  The
full set reads them twice and computes the terms as ``numba_rows`` does, so that small divergences keep
their digits.

With ``TRITON_INTERPRET=1`` the kernels run on CPU tensors, which is how their logic is tested.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

BLOCK = 4096
SPREAD = 40.0
"""Rows with a larger log ratio are recomputed in float64."""
ONE_PASS = (
    "logp_p",
    "logp_q",
    "entropy_p",
    "entropy_q",
    "kl_pq",
    "kl_qp",
    "log_ratio_second_moment",
    "chi2_qp",
)
_FULL = (
    "logp_p",
    "logp_q",
    "entropy_p",
    "entropy_q",
    "kl_pq",
    "kl_qp",
    "tv",
    "chi2_qp",
    "jsd",
    "hellinger2",
    "max_abs_log_ratio",
    "topd_second_moment",
)


@triton.jit
def _expm1_half(h):
    """e^h − 1 and e^h − 1 − h, from the series where |h| < 0.35."""
    s = h * h * (0.5 + h * (1.0 / 6 + h * (1.0 / 24 + h * (1.0 / 120 + h * (1.0 / 720 + h * (1.0 / 5040))))))
    w = tl.exp(tl.minimum(h, 20.5)) - 1.0  # rows beyond SPREAD are recomputed anyway
    near = tl.abs(h) < 0.35
    return tl.where(near, h + s, w), s, near


@triton.jit
def _log1p(z):
    """log(1 + z), by its series where |z| < 0.1."""
    near = tl.abs(z) < 0.1
    n = tl.where(near, z, 0.0)
    series = n * (
        1.0 + n * (-0.5 + n * (1.0 / 3 + n * (-0.25 + n * (0.2 + n * (-1.0 / 6 + n * (1.0 / 7 - n / 8))))))
    )
    return tl.where(near, series, tl.log(1.0 + z))


@triton.jit
def _running(x, top, total, weighted):
    """Update a running maximum, Σe^{x−top} and Σe^{x−top}(x−top) with one block; −inf adds nothing."""
    here = tl.maximum(top, tl.max(x, axis=0))
    safe = tl.where(here == float("-inf"), 0.0, here)
    before = tl.where(top == float("-inf"), safe - 200.0, top)
    factor = tl.exp(before - safe)
    a = tl.maximum(x - safe, -200.0)  # e^−200 is 0 in float32, and 0 · −200 is no NaN
    e = tl.exp(a)
    moved = factor * (weighted + total * (before - safe))
    return here, total * factor + tl.sum(e, axis=0), moved + tl.sum(e * a, axis=0)


@triton.jit
def _one_pass_kernel(x_ptr, y_ptr, token_ptr, out_ptr, vocab, x_stride, y_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    xs, ys = x_ptr + row.to(tl.int64) * x_stride, y_ptr + row.to(tl.int64) * y_stride
    ninf = float("-inf")
    top_p, sum_p, ent_p = ninf, 0.0, 0.0
    top_q, sum_q, ent_q = ninf, 0.0, 0.0
    top_c, sum_c = ninf, 0.0
    d_p, d_q, dd_p = 0.0, 0.0, 0.0
    for start in range(0, vocab, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < vocab
        x = tl.load(xs + at, mask=inside, other=ninf).to(tl.float32)
        y = tl.load(ys + at, mask=inside, other=ninf).to(tl.float32)
        both = (x > ninf) & (y > ninf)
        d = tl.where(both, y, 0.0) - tl.where(both, x, 0.0)
        old_p, old_q = top_p, top_q
        top_p, sum_p, ent_p = _running(x, top_p, sum_p, ent_p)
        top_q, sum_q, ent_q = _running(y, top_q, sum_q, ent_q)
        safe_p, safe_q = tl.where(top_p == ninf, 0.0, top_p), tl.where(top_q == ninf, 0.0, top_q)
        fade_p, fade_q = (
            tl.exp(tl.maximum(old_p - safe_p, -200.0)),
            tl.exp(tl.maximum(old_q - safe_q, -200.0)),
        )
        e_p, e_q = tl.exp(tl.maximum(x - safe_p, -200.0)), tl.exp(tl.maximum(y - safe_q, -200.0))
        d_p = d_p * fade_p + tl.sum(e_p * d, axis=0)
        dd_p = dd_p * fade_p + tl.sum(e_p * d * d, axis=0)
        d_q = d_q * fade_q + tl.sum(e_q * d, axis=0)
        c = tl.where(both, tl.where(both, y, 0.0) + d, ninf)
        top_n = tl.maximum(top_c, tl.max(c, axis=0))
        safe_c = tl.where(top_n == ninf, 0.0, top_n)
        fade = tl.exp(tl.maximum(top_c - safe_c, -200.0))
        sum_c = sum_c * fade + tl.sum(tl.exp(tl.maximum(c - safe_c, -200.0)), axis=0)
        top_c = top_n
    token = tl.load(token_ptr + row)
    lse_p, lse_q = top_p + tl.log(sum_p), top_q + tl.log(sum_q)
    shift = lse_q - lse_p
    out = out_ptr + row * 8
    tl.store(out + 0, tl.load(xs + token).to(tl.float32) - lse_p)
    tl.store(out + 1, tl.load(ys + token).to(tl.float32) - lse_q)
    tl.store(out + 2, tl.log(sum_p) - ent_p / sum_p)
    tl.store(out + 3, tl.log(sum_q) - ent_q / sum_q)
    tl.store(out + 4, tl.maximum(shift - d_p / sum_p, 0.0))
    tl.store(out + 5, tl.maximum(d_q / sum_q - shift, 0.0))
    tl.store(out + 6, dd_p / sum_p - 2 * shift * d_p / sum_p + shift * shift)
    # Σ q²/p − 1 with q²/p = e^{2y − x} Z_p / Z_q²
    tl.store(out + 7, tl.exp(top_c + tl.log(sum_c) + lse_p - 2 * lse_q) - 1.0)


@triton.jit
def _full_kernel(x_ptr, y_ptr, token_ptr, out_ptr, vocab, x_stride, y_stride, alpha, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    xs, ys = x_ptr + row.to(tl.int64) * x_stride, y_ptr + row.to(tl.int64) * y_stride
    ninf = float("-inf")
    top_p, sum_p, ent_p = ninf, 0.0, 0.0
    top_q, sum_q, ent_q = ninf, 0.0, 0.0
    for start in range(0, vocab, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < vocab
        x = tl.load(xs + at, mask=inside, other=ninf).to(tl.float32)
        y = tl.load(ys + at, mask=inside, other=ninf).to(tl.float32)
        top_p, sum_p, ent_p = _running(x, top_p, sum_p, ent_p)
        top_q, sum_q, ent_q = _running(y, top_q, sum_q, ent_q)
    lse_p, lse_q = top_p + tl.log(sum_p), top_q + tl.log(sum_q)
    # the difference of the normalisers without the rounding of their size
    shift = (top_q - top_p) + (tl.log(sum_q) - tl.log(sum_p))
    zero = tl.zeros([BLOCK], dtype=tl.float32)
    kl_pq, kl_qp, tv, chi2, jsd, hell, moment = zero, zero, zero, zero, zero, zero, zero
    p_only, q_only = zero, zero
    largest = 0.0
    for start in range(0, vocab, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < vocab
        x = tl.load(xs + at, mask=inside, other=ninf).to(tl.float32)
        y = tl.load(ys + at, mask=inside, other=ninf).to(tl.float32)
        has_p, has_q = x > ninf, y > ninf
        both = has_p & has_q
        d = tl.where(both, y, 0.0) - tl.where(both, x, 0.0)
        ell = tl.where(both, d - shift, 0.0)
        p_all = tl.where(has_p, tl.exp(x - lse_p), 0.0)
        p = tl.where(both, p_all, 0.0)
        half = 0.5 * ell
        w, s, near = _expm1_half(half)
        w2 = w * w
        em1 = w + w + w2
        g = tl.where(near, s + s + w2, em1 - ell)
        pe = p * em1
        kl_pq += p * g
        kl_qp += p * (ell * em1 - g)
        tv += tl.abs(pe)
        chi2 += pe * em1
        hell += p * w2
        h2 = half * half
        phi = h2 * (0.5 + h2 * (-0.25 + h2 * (1.0 / 9 + h2 * (-17.0 / 360 + h2 * (31.0 / 1575)))))
        ratio = 2.0 + em1
        phi = tl.where(h2 < 0.0625, phi, half * em1 / ratio - (_log1p(0.5 * em1) - half))
        jsd += p * ratio * phi
        t = _log1p(alpha * em1)
        moment += p * t * t
        p_only += tl.where(has_p & (y == ninf), p_all, 0.0)
        q_only += tl.where(has_q & (x == ninf), tl.exp(y - lse_q), 0.0)
        largest = tl.maximum(largest, tl.max(tl.abs(ell), axis=0))
    token = tl.load(token_ptr + row)
    out = out_ptr + row * 14
    tl.store(out + 0, tl.load(xs + token).to(tl.float32) - lse_p)
    tl.store(out + 1, tl.load(ys + token).to(tl.float32) - lse_q)
    tl.store(out + 2, tl.log(sum_p) - ent_p / sum_p)
    tl.store(out + 3, tl.log(sum_q) - ent_q / sum_q)
    tl.store(out + 4, tl.sum(kl_pq, axis=0))
    tl.store(out + 5, tl.sum(kl_qp, axis=0))
    tl.store(out + 6, tl.sum(tv, axis=0) / 2)
    tl.store(out + 7, tl.sum(chi2, axis=0))
    tl.store(out + 8, tl.sum(jsd, axis=0) / 2)
    tl.store(out + 9, tl.sum(hell, axis=0) / 2)
    tl.store(out + 10, largest)
    tl.store(out + 11, tl.sum(moment, axis=0))
    tl.store(out + 12, tl.sum(p_only, axis=0))
    tl.store(out + 13, tl.sum(q_only, axis=0))


def _check(p: torch.Tensor, q: torch.Tensor) -> None:
    if p.stride(1) != 1 or q.stride(1) != 1:
        raise ValueError("logits: expected rows that are contiguous in memory")


def one_pass(
    p_logits: torch.Tensor, q_logits: torch.Tensor, tokens: torch.Tensor, block: int = BLOCK
) -> dict[str, torch.Tensor]:
    """The statistics ``ONE_PASS`` (N,) of logits (N, V) in bf16, fp16 or fp32, each logit read once."""
    _check(p_logits, q_logits)
    n, vocab = p_logits.shape
    out = torch.empty((n, 8), dtype=torch.float32, device=p_logits.device)
    if n:
        _one_pass_kernel[(n,)](
            p_logits,
            q_logits,
            tokens,
            out,
            vocab,
            p_logits.stride(0),
            q_logits.stride(0),
            BLOCK=_block(vocab, block),
        )
    return dict(zip(ONE_PASS, out.unbind(1), strict=True))


def _block(vocab: int, block: int) -> int:
    return max(16, min(block, triton.next_power_of_2(vocab)))


def pair_statistics(
    p_logits: torch.Tensor,
    q_logits: torch.Tensor,
    tokens: torch.Tensor,
    topk: int = 20,
    alpha: float = 0.1,
    block: int = BLOCK,
) -> dict[str, torch.Tensor]:
    """All statistics of ``dispatch.pair_statistics`` as float64 tensors (N,) on the logits' device."""
    _check(p_logits, q_logits)
    n, vocab = p_logits.shape
    out = torch.empty((n, 14), dtype=torch.float32, device=p_logits.device)
    weight = min(alpha, 1.0 - 2.0**-24)
    if n:
        _full_kernel[(n,)](
            p_logits,
            q_logits,
            tokens,
            out,
            vocab,
            p_logits.stride(0),
            q_logits.stride(0),
            weight,
            BLOCK=_block(vocab, block),
        )
    values = dict(zip((*_FULL, "p_only", "q_only"), out.double().unbind(1), strict=True))
    lost_p, lost_q = values.pop("p_only"), values.pop("q_only")
    values["topk_kl"], values["topk_tv"] = _partition(p_logits, q_logits, tokens, values, min(topk, vocab))
    careful = (
        (values["max_abs_log_ratio"] > SPREAD)
        | (lost_p > 0)
        | (lost_q > 0)
        | ~torch.isfinite(values["entropy_p"] + values["kl_pq"])
    )
    for i in careful.nonzero()[:, 0].tolist():
        _careful(values, i, p_logits[i], q_logits[i], int(tokens[i]), min(topk, vocab), alpha)
    return values


def _careful(
    values: dict[str, torch.Tensor],
    i: int,
    p: torch.Tensor,
    q: torch.Tensor,
    token: int,
    topk: int,
    alpha: float,
) -> None:
    from opdtheory.audit.kernels import numpy_rows

    row = numpy_rows.pair_statistics(
        p[None].double().cpu().numpy(), q[None].double().cpu().numpy(), np.array([token]), topk, alpha
    )
    for name, found in row.items():
        values[name][i] = float(found[0])


def _partition(
    p: torch.Tensor, q: torch.Tensor, tokens: torch.Tensor, values: dict[str, torch.Tensor], k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(p‖q) and TV over p's top k, the drawn token and one bucket, from the few gathered logits."""
    top: Any = p.topk(k, dim=-1)
    at = tokens.long()[:, None]
    lse_p = p.gather(-1, at).double() - values["logp_p"][:, None]
    lse_q = q.gather(-1, at).double() - values["logp_q"][:, None]
    lp, lq = top.values.double() - lse_p, q.gather(-1, top.indices).double() - lse_q
    extra = ~(top.indices == at).any(-1, keepdim=True)
    lp = torch.cat([lp, torch.where(extra, values["logp_p"][:, None], -torch.inf)], -1)
    lq = torch.cat([lq, torch.where(extra, values["logp_q"][:, None], -torch.inf)], -1)
    a, b = lp.exp(), lq.exp()
    whole = (k + extra[:, 0].long()) >= p.shape[1]
    rest_a = torch.where(whole, 0.0, (1 - a.sum(-1)).clamp_min(0.0))
    rest_b = torch.where(whole, 0.0, (1 - b.sum(-1)).clamp_min(0.0))
    a, b = torch.cat([a, rest_a[:, None]], -1), torch.cat([b, rest_b[:, None]], -1)
    ell = torch.where((a > 0) & (b > 0), b.log() - a.log(), 0.0)
    near = ell.abs() < 0.5
    terms = torch.where(
        near, a * (torch.expm1(ell) - ell), b - a - torch.where(a > 0, a * (b.log() - a.log()), 0.0)
    )
    terms = torch.where(a > 0, torch.where(b > 0, terms, torch.inf), b)
    return terms.sum(-1).clamp_min(0.0), (a - b).abs().sum(-1) / 2
