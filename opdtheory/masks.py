"""Which tokens and sequences take part in an off-policy update, and with what weight.

Log-probabilities of the drawn tokens have shape (B, T): the policy being trained first, the behaviour
(rollout) policy second, ``response_mask`` (1 = model token) last.  Token masks are boolean (B, T) and False
outside the response; sequence masks are boolean (B,).  ``advantages`` are (B, T), or (B,) and then shared by
the tokens of a sequence.  Functions named ``*_from_ratio`` take r = π/μ itself, which may be an exact
rational.  numpy, torch and object arrays.  Thresholds default to those of the sources; where a source gives
none there is no default.

The unified policy gradient of *Rethinking the Trust Region in LLM Reinforcement Learning*, Eq. 23, weights
∇log π(y_t) by M_t · min(r_t, C) · Â_t; ``METHODS`` lists its instances and ``unified_weight`` evaluates them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from opdtheory._arrays import Array, any_last, as_mask, is_torch, numbers, parameter, zero_like
from opdtheory.divergences import binary_kl, binary_tv
from opdtheory.elementary import absolute, asum, exp, expm1, is_exact, maximum, minimum, where

__all__ = [
    "METHODS", "Method", "dppo", "dppo_from_ratio", "icepop", "icepop_from_ratio", "method_mask",
    "negative_drop", "opsm", "ppo", "ppo_from_ratio", "seq_ratio", "sum_k3", "token_statistic", "trm",
    "trm_from_divergence", "tropd", "tropd_outlier", "truncated_ratio", "unified_weight",
]  # fmt: skip


def ppo(
    log_probs: Array,
    rollout_log_probs: Array,
    advantages: Array,
    response_mask: Array | None = None,
    *,
    eps_low: Any = 0.2,
    eps_high: Any = 0.2,
) -> Array:
    """Tokens whose clipped PPO objective still has a gradient: not (A>0 and r>1+ε_high), not (A<0 and
    r<1−ε_low).

    GRPO with clip-higher is ``eps_high=0.28`` (stability study) or 0.27 (scaling study); MiniRL is the same
    mask on the ratio to the *recomputed* old policy: pass its log-probabilities in place of the rollout ones.
     Source: *Rethinking the Trust Region in LLM Reinforcement Learning*, Fig. 1 and App. D–F.
    """
    ell, response = _log_ratio(log_probs, rollout_log_probs, response_mask)
    low = math.log1p(-eps_low) if eps_low < 1 else -math.inf
    return ~_pushed_out(ell, advantages, low, math.log1p(eps_high)) & response


def ppo_from_ratio(ratio: Array, advantages: Array, *, eps_low: Any = 0.2, eps_high: Any = 0.2) -> Array:
    """``ppo`` on ratios r = π/μ of any shape."""
    r = numbers(ratio)
    low, high = parameter("eps_low", eps_low, r), parameter("eps_high", eps_high, r)
    return ~_pushed_out(r, advantages, 1 - low, 1 + high)


def dppo(
    log_probs: Array,
    rollout_log_probs: Array,
    advantages: Array,
    divergence: Array,
    response_mask: Array | None = None,
    *,
    delta: Any,
) -> Array:
    """Not (D>δ and A>0 and r>1) and not (D>δ and A<0 and r<1), with D (B, T) any divergence of the two
    policies.

    D is ``binary_tv``, ``binary_kl``, ``topk_tv``, ``topk_kl``, ``tv`` or ``kl`` of (behaviour, policy).
    Thresholds of the source: δ=0.15 for TV (0.2 in most scaling runs), 0.05 for KL.  Source: *Rethinking the
    Trust Region in LLM Reinforcement Learning*, Eq. 12.
    """
    ell, response = _log_ratio(log_probs, rollout_log_probs, response_mask)
    return ~(_pushed_out(ell, advantages, 0.0, 0.0) & _exceeds(divergence, delta, response)) & response


def dppo_from_ratio(ratio: Array, advantages: Array, divergence: Array, *, delta: Any) -> Array:
    """``dppo`` on ratios r = π/μ of any shape."""
    r, d = numbers(ratio), numbers(divergence)
    return ~(_pushed_out(r, advantages, 1, 1) & (d > parameter("delta", delta, d)))


def negative_drop(
    log_probs: Array,
    rollout_log_probs: Array,
    advantages: Array,
    response_mask: Array | None = None,
    *,
    delta: Any = 0.5,
) -> Array:
    """Not (A<0 and μ − π ≥ δ) on the drawn token: the smallest mask that stabilised training.

    Source: *Rethinking the Trust Region in LLM Reinforcement Learning*, 5.3.
    """
    ell, response = _log_ratio(log_probs, rollout_log_probs, response_mask)
    mu = exp(where(response, numbers(rollout_log_probs), zero_like(ell)))
    drop = -mu * expm1(minimum(ell, zero_like(ell)))
    return ~((_per_token(advantages, ell) < 0) & (drop >= delta)) & response


def icepop(
    log_probs: Array,
    rollout_log_probs: Array,
    response_mask: Array | None = None,
    *,
    low: Any = 0.5,
    high: Any = 5.0,
) -> Array:
    """Tokens whose ratio (training engine over rollout engine) lies in [low, high] (IcePop; its defaults)."""
    ell, response = _log_ratio(log_probs, rollout_log_probs, response_mask)
    return (ell >= math.log(low)) & (ell <= math.log(high)) & response


def icepop_from_ratio(ratio: Array, *, low: Any = 0.5, high: Any = 5.0) -> Array:
    """``icepop`` on ratios r = π/μ of any shape."""
    r = numbers(ratio)
    return (r >= parameter("low", low, r)) & (r <= parameter("high", high, r))


def opsm(
    log_probs: Array,
    rollout_log_probs: Array,
    advantages: Array,
    response_mask: Array | None = None,
    *,
    delta: Any = 0.5,
) -> Array:
    """Off-policy sequence masking: drops tokens with A<0 in sequences whose mean of log(μ/π) exceeds δ.

    Trainers disagree about δ: 0.5 and 1e-4 are both in use.  A sequence without model tokens has mean 0.
    """
    ell, response = _log_ratio(log_probs, rollout_log_probs, response_mask)
    stale = _mean(-ell, response) > delta
    return ~((_per_token(advantages, ell) < 0) & stale[..., None]) & response


_STATISTICS: dict[str, Callable[[Array], Array]] = {
    "abs_log_ratio": absolute,
    "k1": lambda ell: -ell,
    "k2": lambda ell: ell * ell / 2,
    "k3": lambda ell: expm1(ell) - ell,
}


def token_statistic(
    name: str, log_probs: Array, rollout_log_probs: Array, response_mask: Array | None = None
) -> Array:
    """One-sample divergence statistic of each token, (B, T), 0 outside the response.

    ``name``: ``abs_log_ratio``, or ``k1``, ``k2``, ``k3`` of r = π/μ, which estimate KL(μ‖π) in nats.
    """
    if name not in _STATISTICS:
        raise ValueError(f"statistic: got {name!r}, expected one of {', '.join(sorted(_STATISTICS))}")
    ell, _ = _log_ratio(log_probs, rollout_log_probs, response_mask)
    # exp overflows beyond any threshold that could matter: saturate to inf in silence
    with np.errstate(over="ignore"):
        return _STATISTICS[name](ell)


def trm_from_divergence(
    divergence: Array,
    response_mask: Array | None = None,
    *,
    delta_max: Any = None,
    delta_avg: Any = None,
    average_of: Array | None = None,
) -> Array:
    """Sequences with max_t D_t ≤ δ_max and mean_t D_t ≤ δ_avg (either threshold may be left out, not both).

    ``divergence`` (B, T) is the exact KL(μ‖π) of each visited context for the rigorous form, or a token
    statistic; ``average_of`` is averaged instead of it if given.  Source: *Trust Region Masking for
    Long-Horizon LLM Reinforcement Learning*, slides 4.3.2 and 4.5.1.
    """
    if delta_max is None and delta_avg is None:
        raise ValueError("delta_max, delta_avg: got neither, expected at least one threshold")
    d = numbers(divergence)
    response = as_mask(d, response_mask)
    accepted = None
    if delta_max is not None:
        accepted = ~any_last(_exceeds(d, delta_max, response))
    if delta_avg is not None:
        averaged = d if average_of is None else numbers(average_of)
        below = _mean(where(response, averaged, zero_like(averaged)), response) <= delta_avg
        accepted = below if accepted is None else accepted & below
    return accepted


def trm(
    log_probs: Array,
    rollout_log_probs: Array,
    response_mask: Array | None = None,
    *,
    delta_max: Any = None,
    delta_avg: Any = None,
    max_of: str = "abs_log_ratio",
    average_of: str = "k3",
) -> Array:
    """Trust region masking from sampled log-probabilities: max_t |log r_t| ≤ δ_max and/or mean_t k3(r_t) ≤
    δ_avg.

    The statistics are the recommended ones; ``token_statistic`` lists the others.  A detector, not a bound.
    Source: *Trust Region Masking for Long-Horizon LLM Reinforcement Learning*, slides 3.4.2, 4.3.1–4.3.2.
    """
    return trm_from_divergence(
        token_statistic(max_of, log_probs, rollout_log_probs, response_mask),
        response_mask,
        delta_max=delta_max,
        delta_avg=delta_avg,
        average_of=token_statistic(average_of, log_probs, rollout_log_probs, response_mask),
    )


def sum_k3(
    log_probs: Array, rollout_log_probs: Array, response_mask: Array | None = None, *, delta: Any
) -> Array:
    """Sequences with Σ_t k3(r_t) ≤ δ: the total-based criterion, whose statistic grows with length.

    Source: *Trust Region Masking for Long-Horizon LLM Reinforcement Learning*, slide 4.2.1.
    """
    return asum(token_statistic("k3", log_probs, rollout_log_probs, response_mask)) <= delta


def tropd(
    log_probs: Array, teacher_log_probs: Array, uniform: Array, response_mask: Array | None = None
) -> Array:
    """Tokens inside the trust region of distillation: ``uniform`` < min(teacher/student, 1).

    ``uniform`` (B, T) holds independent U[0,1) draws.  Source: *Trust Region On-Policy Distillation*,
    decoding agreement between teacher and student.
    """
    ell, response = _log_ratio(log_probs, teacher_log_probs, response_mask)
    return (numbers(uniform) < exp(minimum(-ell, zero_like(ell)))) & response


def tropd_outlier(
    log_probs: Array, teacher_log_probs: Array, response_mask: Array | None = None, *, tau: Any
) -> Array:
    """Tokens kept by the outlier mask: log(teacher/student) > τ, τ<0.  Source: *Trust Region On-Policy
    Distillation*.
    """
    if not tau < 0:
        raise ValueError(f"tau: got {tau!r}, expected a negative log-ratio threshold")
    ell, response = _log_ratio(log_probs, teacher_log_probs, response_mask)
    return (-ell > tau) & response


def truncated_ratio(
    log_probs: Array, rollout_log_probs: Array, response_mask: Array | None = None, *, cap: Any = 3.0
) -> Array:
    """min(π/μ, C) of each token (B, T), 0 outside the response: truncated importance sampling, CISPO.

    Source: *Rethinking the Trust Region in LLM Reinforcement Learning*, App. D (C=3; C=5 in App. F).
    """
    ell, response = _log_ratio(log_probs, rollout_log_probs, response_mask)
    return where(response, _capped_exp(ell, cap), zero_like(ell))


def seq_ratio(
    log_probs: Array,
    rollout_log_probs: Array,
    response_mask: Array | None = None,
    *,
    cap: Any = math.inf,
    mean: bool = False,
) -> Array:
    """min(∏_t r_t, C) of each sequence (B,); the geometric mean of the r_t with ``mean=True``."""
    ell, response = _log_ratio(log_probs, rollout_log_probs, response_mask)
    return _capped_exp(_mean(ell, response) if mean else asum(ell), cap)


@dataclass(frozen=True)
class Method:
    """One instance of the unified policy gradient: its mask, its cap C and the thresholds of the source.

    ``anchor`` says whose log-probabilities the mask compares with: ``rollout``, or ``old`` (recomputed).
    ``divergence`` names the divergence that the mask needs per token, if any.
    """

    name: str
    mask: str
    cap: float = math.inf
    parameters: Mapping[str, float] = field(default_factory=dict)
    anchor: str = "rollout"
    divergence: str | None = None


_CLIP_HIGHER = {"eps_low": 0.2, "eps_high": 0.28}

METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("pg_is", "none"),
        Method("pg_tis", "none", cap=3.0),
        Method("cispo", "none", cap=5.0),
        Method("ppo", "ppo", parameters={"eps_low": 0.2, "eps_high": 0.2}),
        Method("grpo_clip_higher", "ppo", parameters=_CLIP_HIGHER),
        Method("grpo_clip_higher_scaling", "ppo", cap=5.0, parameters={"eps_low": 0.2, "eps_high": 0.27}),
        Method("minirl", "ppo", parameters=_CLIP_HIGHER, anchor="old"),
        Method("minirl_tis", "ppo", cap=3.0, parameters=_CLIP_HIGHER, anchor="old"),
        Method("dppo_binary_tv", "dppo", parameters={"delta": 0.15}, divergence="binary_tv"),
        Method("dppo_binary_kl", "dppo", parameters={"delta": 0.05}, divergence="binary_kl"),
        Method("dppo_binary_tv_scaling", "dppo", cap=5.0, parameters={"delta": 0.2}, divergence="binary_tv"),
        Method("dppo_binary_kl_scaling", "dppo", cap=5.0, parameters={"delta": 0.05}, divergence="binary_kl"),
        Method("dppo_topk_tv", "dppo", cap=5.0, parameters={"delta": 0.2}, divergence="topk_tv"),
        Method("dppo_topk_kl", "dppo", cap=5.0, parameters={"delta": 0.05}, divergence="topk_kl"),
    )
}


def method_mask(
    method: str | Method,
    log_probs: Array,
    rollout_log_probs: Array,
    advantages: Array,
    response_mask: Array | None = None,
    *,
    old_log_probs: Array | None = None,
    divergence: Array | None = None,
) -> Array:
    """The mask M_t (B, T) of a method of ``METHODS``.

    Binary divergences are computed here from the drawn tokens; others must be given as ``divergence`` (B, T).
    ``old_log_probs`` are needed by the methods anchored at the recomputed policy.
    """
    m = _method(method)
    if m.mask == "none":
        return _log_ratio(log_probs, rollout_log_probs, response_mask)[1]
    if m.mask == "ppo":
        anchor = rollout_log_probs if m.anchor == "rollout" else old_log_probs
        if anchor is None:
            raise ValueError(
                f"old_log_probs: got None, expected the recomputed log-probabilities for {m.name}"
            )
        return ppo(log_probs, anchor, advantages, response_mask, **m.parameters)
    if m.divergence in ("binary_tv", "binary_kl") and divergence is None:
        divergence = _binary(m.divergence, log_probs, rollout_log_probs, response_mask)
    if divergence is None:
        raise ValueError(
            f"divergence: got None, expected {m.divergence} of (behaviour, policy) per token for {m.name}"
        )
    return dppo(log_probs, rollout_log_probs, advantages, divergence, response_mask, **m.parameters)


def unified_weight(
    method: str | Method,
    log_probs: Array,
    rollout_log_probs: Array,
    advantages: Array,
    response_mask: Array | None = None,
    *,
    old_log_probs: Array | None = None,
    divergence: Array | None = None,
) -> Array:
    """M_t · min(r_t, C) · Â_t, the coefficient of ∇log π(y_t) on tokens drawn from μ, (B, T).

    Source: *Rethinking the Trust Region in LLM Reinforcement Learning*, Eq. 23.
    """
    m = _method(method)
    mask = method_mask(
        m,
        log_probs,
        rollout_log_probs,
        advantages,
        response_mask,
        old_log_probs=old_log_probs,
        divergence=divergence,
    )
    ell, _ = _log_ratio(log_probs, rollout_log_probs, response_mask)
    return where(mask, _capped_exp(ell, m.cap) * _per_token(advantages, ell), zero_like(ell))


def _method(method: str | Method) -> Method:
    if isinstance(method, Method):
        return method
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}, expected one of {', '.join(METHODS)}")
    return METHODS[method]


def _binary(name: str, log_probs: Array, rollout_log_probs: Array, response_mask: Array | None) -> Array:
    _, response = _log_ratio(log_probs, rollout_log_probs, response_mask)
    pi, mu = (where(response, numbers(x), zero_like(numbers(x))) for x in (log_probs, rollout_log_probs))
    divergence = binary_tv if name == "binary_tv" else binary_kl
    return divergence(exp(mu), exp(pi))


def _log_ratio(log_probs: Any, other_log_probs: Any, response_mask: Any) -> tuple[Array, Array]:
    """log(π/μ) of the drawn tokens, 0 outside the response, and the response as booleans."""
    pi, mu = numbers(log_probs), numbers(other_log_probs)
    if tuple(pi.shape) != tuple(mu.shape):
        raise ValueError(
            f"log-probabilities: got shapes {tuple(pi.shape)} and {tuple(mu.shape)}, expected equal ones"
        )
    response = as_mask(pi, response_mask)
    zero = zero_like(pi)
    pi, mu = where(response, pi, zero), where(response, mu, zero)
    if not is_exact(pi):
        # a drawn token has positive probability under its sampler, and NaN would pass every comparison
        bad = (pi != pi) | (mu != mu) | (mu == -math.inf) | (pi == math.inf) | (mu == math.inf)
        if bool(bad.any()):
            at = tuple(int(i) for i in np.argwhere(np.asarray(bad.cpu() if is_torch(bad) else bad))[0])
            raise ValueError(
                f"log-probabilities at {at}: got {float(pi[at])} and {float(mu[at])}, expected numbers, "
                "finite for the policy that drew the token"
            )
    return pi - mu, response


def _per_token(advantages: Any, like: Array) -> Array:
    a = numbers(advantages)
    return a[..., None] if a.ndim == like.ndim - 1 else a


def _pushed_out(x: Array, advantages: Any, low: Any, high: Any) -> Array:
    """The advantage pushes ``x`` further beyond the end of [low, high] at which it already is."""
    a = _per_token(advantages, x)
    return ((a > 0) & (x > high)) | ((a < 0) & (x < low))


def _exceeds(divergence: Any, delta: Any, response: Array) -> Array:
    d = numbers(divergence)
    d = where(response, d, zero_like(d))
    if not is_exact(d) and bool((d != d).any()):
        raise ValueError("divergence: got NaN inside the response, expected a number per model token")
    return d > delta


def _mean(x: Array, response: Array) -> Array:
    """Mean over the response tokens of each sequence, 0 for an empty one; ``x`` is 0 outside."""
    count = asum(response + zero_like(x))
    return asum(x) / maximum(count, zero_like(x) + 1)


def _capped_exp(ell: Array, cap: Any) -> Array:
    """min(e^ℓ, C) without overflow below an infinite cap."""
    if not cap > 0:
        raise ValueError(f"cap: got {cap!r}, expected a positive number or inf")
    if math.isinf(cap):
        with np.errstate(over="ignore"):
            return exp(ell)
    # the outer minimum makes the cap itself exact
    return minimum(exp(minimum(ell, math.log(cap))), float(cap))
