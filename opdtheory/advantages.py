"""Per-token advantages from token rewards, and their normalisation within groups.

Rewards and advantages have shape (B, T): sequences by positions.  ``response_mask`` (B, T) marks the model's
own tokens (all of them if omitted); masked positions may hold anything, are skipped (an exponent or a count
runs over model tokens only) and get advantage 0.  numpy, torch (autograd flows) and object arrays of exact
rationals. For distillation the rewards are log ratios log(teacher/student) of the drawn tokens, in nats.

The five forms (i)–(v) are those of *Theory of On-Policy Distillation*, Thm 1; all have the same expected
policy gradient.  The immediate form and the λ-family with λ < 1 do not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from opdtheory._arrays import Array, as_mask, is_torch, numbers, parameter, zero_like
from opdtheory.elementary import sqrt, where

__all__ = [
    "expected_to_go", "group_mean_baseline", "group_normalize", "immediate", "lambda_return",
    "log_ratio_to_go", "log_ratio_total", "rloo", "topd_return",
]  # fmt: skip


def log_ratio_total(rewards: Array, response_mask: Array | None = None) -> Array:
    """Form (i): every token gets the sum over the whole sequence."""
    r, mask = _masked(rewards, response_mask)
    return where(mask, _row_sum(r)[..., None], zero_like(r))


def log_ratio_to_go(
    rewards: Array, response_mask: Array | None = None, baseline: Array | None = None
) -> Array:
    """Form (ii): Σ_{t'≥t} r_{t'}; with a ``baseline`` b(s_t) of shape (B, T) subtracted, form (iii).

    >>> log_ratio_to_go([[1.0, 2.0, 4.0]], [[1, 1, 0]])
    array([[3., 2., 0.]])
    """
    r, mask = _masked(rewards, response_mask)
    return _minus(_reverse_cumsum(r), baseline, mask)


def expected_to_go(
    rewards: Array, kl: Array, response_mask: Array | None = None, baseline: Array | None = None
) -> Array:
    """Form (iv): r_t − Σ_{t'>t} KL(student‖teacher)(s_{t'}); with a ``baseline`` subtracted, form (v).

    ``kl`` (B, T) holds the full-vocabulary KL of each visited context, in nats.
    """
    r, mask = _masked(rewards, response_mask)
    k, _ = _masked(kl, mask)
    return _minus(r - (_reverse_cumsum(k) - k), baseline, mask)


def immediate(rewards: Array, response_mask: Array | None = None, baseline: Array | None = None) -> Array:
    """r_t alone: the biased advantage of *Theory of On-Policy Distillation*, 1.3, whose mean gradient is
    g₁.
    """
    r, mask = _masked(rewards, response_mask)
    return _minus(r, baseline, mask)


def lambda_return(
    rewards: Array,
    lam: Any,
    response_mask: Array | None = None,
    baseline: Array | None = None,
    kl: Array | None = None,
) -> Array:
    """Σ_{k≥t} λ^{k−t} r_k, from immediate (λ=0) to log-ratio-to-go (λ=1).

    With ``kl`` (B, T) the future rewards are replaced by their conditional means, r_t − Σ_{k>t} λ^{k−t}
    KL(s_k).
    """
    r, mask = _masked(rewards, response_mask)
    if not 0 <= lam <= 1:
        raise ValueError(f"lam: got {lam!r}, expected a number from 0 to 1")
    lam = parameter("lam", lam, r)
    future = r if kl is None else -_masked(kl, mask)[0]
    columns, tail = [], zero_like(r) * r[..., 0]
    for t in reversed(range(r.shape[-1])):
        columns.append(r[..., t] + lam * tail)
        tail = where(mask[..., t], future[..., t] + lam * tail, tail)
    return _minus(_stack(columns[::-1]), baseline, mask)


def topd_return(rewards: Array, response_mask: Array | None = None) -> Array:
    """TOP-D return: r̃_k plus the *mean* of the later rewards r̃_{k+1}, …, r̃_n of the sequence.

    At the last token the printed mean is 0/0; the convention here is R̃_n = r̃_n.  Source: *Trust Region
    Policy Distillation*, Eq. 8 and Alg. 1 line 7.

    >>> topd_return([[1.0, 2.0, 4.0]])
    array([[4., 6., 4.]])
    """
    r, mask = _masked(rewards, response_mask)
    later = _reverse_cumsum(r) - r
    ones, _ = _masked(zero_like(r) * r + 1, mask)
    count = _reverse_cumsum(ones) - ones
    mean = where(count > 0, later / where(count > 0, count, ones * 0 + 1), zero_like(r))
    return where(mask, r + mean, zero_like(r))


def group_normalize(
    returns: Array, group: Array | None = None, response_mask: Array | None = None, *, ddof: int = 0
) -> Array:
    """(x − mean)/std within each group; a group without variance gets 0.

    ``returns`` (B,) is normalised over the sequences of a group (GRPO), ``returns`` (B, T) over all their
    model tokens together (*Trust Region Policy Distillation*, Alg. 1 line 8).  ``group`` (B,) labels prompts;
    one group if omitted.  ``ddof`` is 0 for the population, 1 for the sample standard deviation.
    """
    x, mask, labels, first, counts = _groups(returns, group, response_mask)
    # values relative to the group's first one: a constant group deviates by exactly zero, whatever the
    # rounding
    shifted = x - x[first][labels]
    centred = shifted - (_segment_sum(shifted, labels, len(counts)) / _like(counts, x))[labels]
    degrees = np.maximum(counts - ddof, 1)
    variance = (_segment_sum(centred * centred, labels, len(counts)) / _like(degrees, x))[labels]
    varies = variance > 0
    # the root of a vanishing variance has no derivative: autograd must not meet it
    std = sqrt(where(varies, variance, zero_like(x) + 1))
    return _scatter(where(varies, centred / std, zero_like(x)), mask)


def group_mean_baseline(returns: Array, group: Array | None = None) -> Array:
    """R minus the mean of its group, itself included: 1 − 1/G times the unbiased advantage in expectation.

    Source: *Rethinking the Trust Region in LLM Reinforcement Learning*, below Eq. 9.
    """
    x, mask, labels, _, counts = _groups(returns, group, None)
    return _scatter(x - (_segment_sum(x, labels, len(counts)) / _like(counts, x))[labels], mask)


def rloo(returns: Array, group: Array | None = None) -> Array:
    """R minus the mean of the *other* members of its group; every group needs two members.

    >>> rloo([1.0, 0.0, 0.0])
    array([ 1. , -0.5, -0.5])
    """
    x, mask, labels, _, counts = _groups(returns, group, None)
    if (counts < 2).any():
        raise ValueError(
            f"group: smallest group has {counts.min()} sequence, expected at least 2 for leave-one-out"
        )
    n = _like(counts, x)[labels]
    return _scatter((x * n - _segment_sum(x, labels, len(counts))[labels]) / (n - 1), mask)


def _masked(values: Any, response_mask: Any) -> tuple[Array, Array]:
    """Values with masked positions set to 0 (by selection: inf and NaN there do no harm), and the mask."""
    x = numbers(values)
    if x.ndim < 1:
        raise ValueError(f"rewards: got shape {tuple(x.shape)}, expected (B, T)")
    mask = as_mask(x, response_mask)
    return where(mask, x, zero_like(x)), mask


def _minus(advantages: Array, baseline: Any, mask: Array) -> Array:
    if baseline is not None:
        advantages = advantages - _masked(baseline, mask)[0]
    return where(mask, advantages, zero_like(advantages))


def _row_sum(x: Array) -> Array:
    return x.sum(dim=-1) if is_torch(x) else np.sum(x, axis=-1)


def _reverse_cumsum(x: Array) -> Array:
    return x.flip(-1).cumsum(-1).flip(-1) if is_torch(x) else np.flip(np.cumsum(np.flip(x, -1), -1), -1)


def _stack(columns: list[Array]) -> Array:
    if is_torch(columns[0]):
        import torch

        return torch.stack(columns, dim=-1)
    return np.stack(columns, axis=-1)


def _groups(
    returns: Any, group: Any, response_mask: Any
) -> tuple[Array, Array, np.ndarray, np.ndarray, np.ndarray]:
    """Valid entries flattened, their mask, the group number of each, each group's first entry, and its
    size.
    """
    x = numbers(returns)
    if x.ndim not in (1, 2):
        raise ValueError(f"returns: got shape {tuple(x.shape)}, expected (B,) or (B, T)")
    _, mask = _masked(x, response_mask)
    ids = (
        np.zeros(x.shape[0], dtype=int)
        if group is None
        else np.asarray(group.cpu() if is_torch(group) else group)
    )
    if ids.shape != (x.shape[0],):
        raise ValueError(f"group: got shape {ids.shape}, expected ({x.shape[0]},)")
    valid = np.asarray(mask.cpu()) if is_torch(mask) else mask
    of_entry = np.broadcast_to(ids.reshape(-1, *([1] * (x.ndim - 1))), tuple(x.shape))[valid]
    _, first, labels, counts = np.unique(of_entry, return_index=True, return_inverse=True, return_counts=True)
    return x[mask], mask, labels, first, counts


def _segment_sum(x: Array, labels: np.ndarray, count: int) -> Array:
    if is_torch(x):
        import torch

        return x.new_zeros(count).index_add(0, torch.as_tensor(labels, device=x.device), x)
    total = np.full(count, zero_like(x), dtype=x.dtype)
    np.add.at(total, labels, x)
    return total


def _like(integers: np.ndarray, x: Array) -> Array:
    """Counts in the arithmetic of ``x``."""
    if is_torch(x):
        import torch

        return torch.as_tensor(integers, dtype=x.dtype, device=x.device)
    return numbers(integers.astype(object)) if x.dtype == object else integers.astype(np.float64)


def _scatter(entries: Array, mask: Array) -> Array:
    if is_torch(entries):
        return entries.new_zeros(mask.shape).masked_scatter(mask, entries)
    out = np.full(mask.shape, zero_like(entries), dtype=entries.dtype)
    out[mask] = entries
    return out
