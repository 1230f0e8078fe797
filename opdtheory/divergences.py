"""Divergences between distributions over one alphabet, and their one-sample estimators.

Every function works over the last axis; leading axes are a batch.  Arrays are numpy float64, torch tensors
(autograd flows, the device is kept) or object arrays of exact rationals, which stay rational unless a
logarithm or an irrational root occurs (then the entries are ``flint.arb`` balls).  Units are nats.

The direction is always written out: ``kl(p, q)`` is KL(p‖q), the expectation under the *first* argument.
0·log 0 is 0, and mass of ``p`` where ``q`` has none makes a divergence infinite: nothing is clamped.  Entries
must be non-negative; they need not sum to one where the formula makes sense without (truncated
distributions).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from opdtheory._arrays import (
    Array,
    any_last,
    distribution,
    inf_like,
    is_torch,
    numbers,
    one_like,
    pair,
    parameter,
    zero_like,
)
from opdtheory.elementary import (
    absolute,
    amax,
    asum,
    exp,
    expm1,
    is_exact,
    log,
    log1p,
    maximum,
    rel_entr,
    sqrt,
    where,
    xlogy,
)

__all__ = [
    "binary_kl", "binary_tv", "chi2", "coarsen", "entropy", "hellinger2", "jsd", "k1", "k2", "k3",
    "k3_from_log_ratio", "kl", "renyi", "topk_kl", "topk_members", "topk_tv", "tv",
]  # fmt: skip


def kl(p: Array, q: Array) -> Array:
    """KL(p‖q) = Σ p log(p/q) in nats; inf where ``p`` has mass outside the support of ``q``.

    >>> float(kl([0.5, 0.5], [1.0, 0.0]))
    inf
    >>> float(kl([1.0, 0.0], [0.5, 0.5]))
    0.6931471805599453
    """
    p, q = pair(p, q)
    return asum(rel_entr(p, q))


def tv(p: Array, q: Array) -> Array:
    """Total variation ½ Σ|p − q|, in [0, 1] for distributions.

    >>> from fractions import Fraction
    >>> tv([Fraction(1, 2), Fraction(1, 2)], [Fraction(1, 3), Fraction(2, 3)])
    1/6
    """
    p, q = pair(p, q)
    return asum(absolute(p - q)) / 2


def chi2(p: Array, q: Array) -> Array:
    """χ²(p‖q) = Σ (p − q)²/q, the variance under ``q`` of the ratio p/q; inf where ``q`` lacks support.

    >>> float(chi2([0.75, 0.25], [0.5, 0.5]))
    0.25
    """
    p, q = pair(p, q)
    supported = q > 0
    safe = where(supported, q, one_like(q))
    finite = asum(where(supported, (p - q) * (p - q) / safe, zero_like(q)))
    return where(any_last((p > 0) & ~supported), inf_like(finite), finite)[()]


def hellinger2(p: Array, q: Array) -> Array:
    """Squared Hellinger distance ½ Σ(√p − √q)², in [0, 1] for distributions (1 − Bhattacharyya
    coefficient).
    """
    p, q = pair(p, q)
    # the root has no derivative at 0: autograd must not meet it where both vanish
    either = (p > 0) | (q > 0)
    difference = sqrt(where(either, p, one_like(p))) - sqrt(where(either, q, one_like(q)))
    return asum(difference * difference) / 2


def jsd(p: Array, q: Array, alpha: Any = 0.5) -> Array:
    """Generalised Jensen–Shannon divergence α KL(q‖m) + (1−α) KL(p‖m) with m = αq + (1−α)p, 0 ≤ α ≤ 1.

    ``alpha`` is the weight of the second argument in the mixture (the teacher's, when ``p`` is the student).
    At α = ½ it is the usual JSD; it vanishes at both ends, JSD_α/(1−α) → KL(p‖q) as α → 1 and
    JSD_α/α → KL(q‖p) as α → 0.  The TOP-D reward of *Trust Region Policy Distillation*, Eq. 5, descends it.

    >>> float(jsd([1.0, 0.0], [0.0, 1.0]))
    0.6931471805599453
    """
    p, q = pair(p, q)
    a = parameter("alpha", alpha, p, low=0, high=1)
    m = a * q + (1 - a) * p
    return a * asum(rel_entr(q, m)) + (1 - a) * asum(rel_entr(p, m))


def renyi(p: Array, q: Array, order: Any) -> Array:
    """Rényi divergence of ``order`` a ≥ 0, log(Σ pᵃ q^{1−a})/(a−1); a=1 is KL(p‖q), a=inf is log max p/q.

    For a < 1 it is infinite only if the supports are disjoint, for a ≥ 1 as soon as ``p`` leaves ``q``'s
    support.
    """
    p, q = pair(p, q)
    if not order >= 0:
        raise ValueError(f"order of a Rényi divergence: got {order!r}, expected a number >= 0")
    if order == 1:
        return kl(p, q)
    both = (p > 0) & (q > 0)
    safe_p, safe_q = where(both, p, one_like(p)), where(both, q, one_like(q))
    if order == float("inf"):
        value = log(amax(where(both, safe_p / safe_q, zero_like(p))))
    else:
        a = parameter("order", order, p)
        if is_exact(p) and a.q == 1 and a >= 0:
            powers = safe_p ** int(a.p) * safe_q ** (1 - int(a.p))
        else:
            powers = exp(a * log(safe_p) + (1 - a) * log(safe_q))
        value = log(asum(where(both, powers, zero_like(p)))) / (a - 1)
    escaped = any_last((p > 0) & ~(q > 0)) if order > 1 else ~any_last(both)
    return where(escaped, inf_like(value), value)[()]


def entropy(p: Array) -> Array:
    """Shannon entropy −Σ p log p in nats."""
    p = distribution("p", p)
    return -asum(xlogy(p, p))


def binary_tv(p_token: Array, q_token: Array) -> Array:
    """TV after merging all tokens but the sampled one, |p(a) − q(a)|: a lower bound of ``tv``.

    Arguments are the probabilities of the sampled token, of any shape.  Source: *Rethinking the Trust Region
    in LLM Reinforcement Learning*, Eq. 13.
    """
    p, q = pair(p_token, q_token)
    return absolute(p - q)


def binary_kl(p_token: Array, q_token: Array) -> Array:
    """KL(p‖q) after merging all tokens but the sampled one: a lower bound of ``kl``.

    Arguments are the probabilities of the sampled token, of any shape.  Source: *Rethinking the Trust Region
    in LLM Reinforcement Learning*, Eq. 14, with ``p`` the behaviour policy and ``q`` the trained one.
    """
    p, q = pair(p_token, q_token)
    zero = zero_like(p)
    # a probability that rounding left just above one has a complement of zero
    return rel_entr(p, q) + rel_entr(maximum(1 - p, zero), maximum(1 - q, zero))


def topk_members(p: Array, k: int, sampled: Array | None = None) -> Array:
    """Boolean mask (…, V) of the ``k`` most probable tokens of ``p``, ties to the lower index, plus
    ``sampled``.

    ``sampled`` holds token indices of shape (…).
    """
    p = distribution("p", p)
    vocab = p.shape[-1]
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 0 <= k <= vocab:
        raise ValueError(f"k: got {k!r}, expected an integer from 0 to the vocabulary size {vocab}")
    if is_torch(p):
        import torch

        chosen = torch.zeros_like(p, dtype=torch.bool)
        chosen.scatter_(-1, torch.argsort(p.detach(), dim=-1, descending=True, stable=True)[..., :k], True)
        if sampled is not None:
            chosen.scatter_(-1, torch.as_tensor(sampled, device=p.device)[..., None], True)
        return chosen
    members = np.zeros(p.shape, dtype=bool)
    np.put_along_axis(members, np.argsort(-p, axis=-1, kind="stable")[..., :k], True, axis=-1)
    if sampled is not None:
        np.put_along_axis(members, np.asarray(sampled)[..., None], True, axis=-1)
    return members


def topk_tv(p: Array, q: Array, k: int, sampled: Array | None = None, *, tail: bool = True) -> Array:
    """TV over the top ``k`` tokens of ``p`` (plus ``sampled``) and one bucket for the rest: a lower bound of
    ``tv``.

    ``tail=False`` leaves the bucket out, as *Rethinking the Trust Region in LLM Reinforcement Learning*, Eq.
    15 prints it (at k=0 that is half of the binary value).
    """
    p, q = pair(p, q)
    members = topk_members(p, k, sampled)
    zero = zero_like(p)
    difference = p - q
    total = asum(absolute(where(members, difference, zero)))
    if tail:
        total = total + absolute(asum(where(members, zero, difference)))
    return total / 2


def topk_kl(p: Array, q: Array, k: int, sampled: Array | None = None, *, tail: bool = True) -> Array:
    """KL(p‖q) over the top ``k`` tokens of ``p`` (plus ``sampled``) and one bucket for the rest: a lower
    bound.

    Source: *Rethinking the Trust Region in LLM Reinforcement Learning*, Eq. 16.  ``tail=False`` leaves the
    bucket out, as the forward KL of *Trust Region On-Policy Distillation* does; that sum may be negative or
    exceed KL.
    """
    p, q = pair(p, q)
    members = topk_members(p, k, sampled)
    zero = zero_like(p)
    total = asum(where(members, rel_entr(p, q), zero))
    if tail:
        total = total + rel_entr(asum(where(members, zero, p)), asum(where(members, zero, q)))
    return total


def coarsen(p: Array, cells: Sequence[Sequence[int]]) -> Array:
    """Merge tokens: entry j of the result is the mass of ``cells[j]``, which must partition the alphabet.

    Any divergence of coarsened distributions is a lower bound of the full one (*Rethinking the Trust Region
    in LLM Reinforcement Learning*, App. C).
    """
    p = distribution("p", p)
    if sorted(token for cell in cells for token in cell) != list(range(p.shape[-1])):
        raise ValueError(f"cells: got {cells!r}, expected a partition of the tokens 0..{p.shape[-1] - 1}")
    masses = [asum(p[..., list(cell)]) for cell in cells]
    if is_torch(p):
        import torch

        return torch.stack(masses, dim=-1)
    return np.stack([np.asarray(mass, dtype=p.dtype) for mass in masses], axis=-1)


def k1(ratio: Array) -> Array:
    """−log r: for r = π/μ on a token drawn from μ, an unbiased but signed one-sample estimate of KL(μ‖π)."""
    return -log(numbers(ratio))


def k2(ratio: Array) -> Array:
    """½ log² r: non-negative, biased estimate of KL(μ‖π), r = π/μ on a token drawn from μ."""
    ell = log(numbers(ratio))
    return ell * ell / 2


def k3(ratio: Array) -> Array:
    """r − 1 − log r ≥ 0: estimates KL(μ‖π), r = π/μ on a token drawn from μ.

    Unbiased if supp π ⊆ supp μ; otherwise its mean is too small by the mass of π outside.  Source: *Trust
    Region Masking for Long-Horizon LLM Reinforcement Learning*, App. A.1.

    >>> float(k3(1.0)), round(float(k3(100.0)), 1)
    (0.0, 94.4)
    """
    excess = numbers(ratio) - 1
    return excess - log1p(excess)


def k3_from_log_ratio(log_ratio: Array) -> Array:
    """``k3`` of r = exp(log_ratio), without forming a ratio that could underflow."""
    ell = numbers(log_ratio)
    return expm1(ell) - ell
