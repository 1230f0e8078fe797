"""Coefficients of ∇log π on tokens drawn from the rollout policy: masks, ratios and caps.

Every rule is a frozen dataclass with one method, ``coefficients(tokens, advantages)``, which works on drawn
tokens (M, T) and, unless it judges whole responses, on whole tables as well; what a mask does is left to
``opdtheory.masks``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from opdtheory import divergences, masks

__all__ = ["MaskedSequences", "NegativeDrop", "OnPolicy", "SequenceRatio", "Tokens", "Unified", "Weight"]


@dataclass(frozen=True)
class Tokens:
    """Log-probabilities of tokens under the policy being trained, the rollout policy and the student at
    rollout time; ``alive`` marks tokens; ``divergence(name)`` compares rollout (or, with ``old=True``,
    rollout-time student) and trained policy at each of them.
    """

    log_probs: np.ndarray
    rollout_log_probs: np.ndarray
    old_log_probs: np.ndarray
    alive: np.ndarray
    divergence: Callable[[str, bool], np.ndarray]


class Weight(Protocol):
    """A rule that turns advantages into coefficients of ∇log π."""

    @property
    def linear(self) -> bool:
        """True if the coefficient is the advantage times something that does not depend on it."""

    @property
    def by_token(self) -> bool:
        """True if a token's coefficient depends on that token alone."""

    @property
    def neutral(self) -> bool:
        """True if it leaves advantages as they are wherever all policies agree."""

    def coefficients(self, tokens: Tokens, advantages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(coefficients, tokens that take part)."""


@dataclass(frozen=True)
class OnPolicy:
    """The advantage itself: REINFORCE that takes the rollout policy for the trained one."""

    linear = True
    by_token = True
    neutral = True

    def coefficients(self, tokens: Tokens, advantages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Advantages, all tokens."""
        return np.where(tokens.alive, advantages, 0.0), tokens.alive


@dataclass(frozen=True)
class Unified:
    """M_t·min(r_t, C)·Â_t of a method of ``masks.METHODS`` (PPO, GRPO, MiniRL, CISPO, PG-IS, DPPO, …).

    ``anchor`` overrides what the mask compares with: the ``rollout`` policy, or ``old``, the student at
    rollout time (a decoupled objective); the ratio stays that to the rollout policy.  ``delta`` overrides the
    divergence threshold.  Source: *Rethinking the Trust Region in LLM Reinforcement Learning*, Eq. 23.
    """

    method: str | masks.Method
    anchor: str | None = None
    delta: float | None = None

    by_token = True

    def __post_init__(self) -> None:
        if self.anchor not in (None, "rollout", "old"):
            raise ValueError(f"anchor: got {self.anchor!r}, expected None, 'rollout' or 'old'")
        if isinstance(self.method, str) and self.method not in masks.METHODS:
            known = ", ".join(masks.METHODS)
            raise ValueError(f"method: got {self.method!r}, expected one of {known}")

    @property
    def resolved(self) -> masks.Method:
        """The method with its threshold."""
        m = self.method if isinstance(self.method, masks.Method) else masks.METHODS[self.method]
        if self.delta is None:
            return m
        parameters = {**m.parameters, "delta": self.delta}
        return masks.Method(m.name, m.mask, m.cap, parameters, m.anchor, m.divergence)

    @property
    def linear(self) -> bool:
        """Masks look at the sign of the advantage."""
        return self.resolved.mask == "none"

    @property
    def neutral(self) -> bool:
        """Ratios of one lie inside every clip range, and divergences of zero below every threshold."""
        return self.resolved.cap >= 1

    def coefficients(self, tokens: Tokens, advantages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Masked, capped coefficients and the mask."""
        m = self.resolved
        old = (self.anchor or m.anchor) == "old"
        anchor = tokens.old_log_probs if old else tokens.rollout_log_probs
        divergence = None if m.divergence is None else tokens.divergence(m.divergence, old)
        kept = masks.method_mask(
            m,
            tokens.log_probs,
            anchor,
            advantages,
            tokens.alive,
            old_log_probs=anchor,
            divergence=divergence,
        )
        ratio = masks.truncated_ratio(tokens.log_probs, tokens.rollout_log_probs, tokens.alive, cap=m.cap)
        return np.where(kept, ratio * advantages, 0.0), kept


@dataclass(frozen=True)
class NegativeDrop:
    """Importance weights with the smallest mask: not (Â < 0 and μ − π ≥ δ).

    Source: *Rethinking the Trust Region in LLM Reinforcement Learning*, 5.3.
    """

    delta: float = 0.5
    anchor: str = "rollout"

    linear = False
    by_token = True

    @property
    def neutral(self) -> bool:
        """No probability has dropped where the policies agree."""
        return self.delta > 0

    def coefficients(self, tokens: Tokens, advantages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ratio times advantage, and the mask."""
        anchor = tokens.old_log_probs if self.anchor == "old" else tokens.rollout_log_probs
        kept = masks.negative_drop(tokens.log_probs, anchor, advantages, tokens.alive, delta=self.delta)
        ratio = masks.truncated_ratio(tokens.log_probs, tokens.rollout_log_probs, tokens.alive, cap=np.inf)
        return np.where(kept, ratio * advantages, 0.0), kept


@dataclass(frozen=True)
class MaskedSequences:
    """Trust region masking: ratio times advantage on responses whose largest and mean divergence are small.

    ``statistic`` "kl" is the exact KL(μ‖π) of every context passed (the rigorous form); otherwise one of
    ``masks.token_statistic``, for the maximum and k3 for the mean.  ``total`` is a threshold on
    Σ_t k3 instead.  Source: *Trust Region Masking for Long-Horizon LLM Reinforcement Learning*, Part 4.
    """

    delta_max: float | None = None
    delta_avg: float | None = None
    total: float | None = None
    statistic: str = "kl"

    linear = True
    by_token = False
    neutral = True

    def accepted(self, tokens: Tokens) -> np.ndarray:
        """Which responses take part, (M,)."""
        if self.total is not None:
            return masks.sum_k3(tokens.log_probs, tokens.rollout_log_probs, tokens.alive, delta=self.total)
        if self.statistic == "kl":
            return masks.trm_from_divergence(
                tokens.divergence("kl", False),
                tokens.alive,
                delta_max=self.delta_max,
                delta_avg=self.delta_avg,
            )
        return masks.trm(
            tokens.log_probs,
            tokens.rollout_log_probs,
            tokens.alive,
            delta_max=self.delta_max,
            delta_avg=self.delta_avg,
            max_of=self.statistic,
        )

    def coefficients(self, tokens: Tokens, advantages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ratio times advantage, 0 on every token of a rejected response."""
        kept = self.accepted(tokens)[:, None] & tokens.alive
        ratio = masks.truncated_ratio(tokens.log_probs, tokens.rollout_log_probs, tokens.alive, cap=np.inf)
        return np.where(kept, ratio * advantages, 0.0), kept


@dataclass(frozen=True)
class SequenceRatio:
    """min(∏_t r_t, C)·Â_t: trajectory importance sampling, truncated at ``cap``."""

    cap: float = np.inf

    linear = True
    by_token = False

    @property
    def neutral(self) -> bool:
        """A cap below one would bind at once."""
        return self.cap >= 1

    def coefficients(self, tokens: Tokens, advantages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The capped weight of the whole response times the advantage."""
        w = masks.seq_ratio(tokens.log_probs, tokens.rollout_log_probs, tokens.alive, cap=self.cap)
        return np.where(tokens.alive, w[:, None] * advantages, 0.0), tokens.alive


def divergence_table(name: str, mu: np.ndarray, pi: np.ndarray, k: int = 20) -> np.ndarray:
    """Divergence of two policies ``(actions, contexts, seeds)`` as seen by every sampled action, same shape.

    ``name``: ``kl`` is KL(μ‖π), ``tv``; ``topk_kl``, ``topk_tv`` over the top ``k`` of μ and the sampled
    action; ``binary_kl``, ``binary_tv``.
    """
    if name in ("binary_tv", "binary_kl"):
        return getattr(divergences, name)(mu, pi)
    p, q = np.moveaxis(mu, 0, -1), np.moveaxis(pi, 0, -1)
    if name in ("tv", "kl"):
        return np.broadcast_to(getattr(divergences, name)(p, q), mu.shape)
    if name not in ("topk_tv", "topk_kl"):
        raise ValueError(
            f"divergence: got {name!r}, expected tv, kl, binary_tv, binary_kl, topk_tv or topk_kl"
        )
    fn, k = getattr(divergences, name), min(k, len(mu))
    return np.stack([fn(p, q, k, np.full(p.shape[:-1], a)) for a in range(len(mu))])
