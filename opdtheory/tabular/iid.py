"""Binary sequences of independent tokens, and first-order binary Markov chains: exact laws by counts.

All sequences with the same counts have the same probability under both policies, so that sums over 2^T
sequences become sums over T + 1 counts (independent tokens) or O(T²) transition classes (Markov chains).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from scipy import special

from opdtheory.tabular import local

__all__ = ["IidBinary", "markov_sequence_tv"]


class IidBinary:
    """``horizon`` independent binary tokens: 1 with probability ``p`` under μ and ``q`` under π (floats).

    >>> pair = IidBinary(0.5, 0.25, horizon=2)
    >>> round(pair.tv_seq, 12), round(pair.tv_sum, 12)
    (0.3125, 0.5)
    """

    def __init__(self, p: float, q: float, horizon: int) -> None:
        for name, value in (("p", p), ("q", q)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} = {value!r}: expected a probability in [0, 1]")
        if isinstance(horizon, bool) or not isinstance(horizon, (int, np.integer)) or horizon < 1:
            raise ValueError(f"horizon = {horizon!r}: expected a positive integer")
        self.p, self.q, self.horizon = float(p), float(q), int(horizon)

    # ---- one token

    @cached_property
    def _token(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array([[1 - self.p], [self.p]]), np.array([[1 - self.q], [self.q]])

    @property
    def tv_max(self) -> float:
        """TV of one token, the same in every context."""
        return abs(self.p - self.q)

    @cached_property
    def kl_max(self) -> float:
        """KL(μ‖π) of one token."""
        return float(local.kl_family(*self._token)[0][0])

    @cached_property
    def reverse_kl_max(self) -> float:
        """KL(π‖μ) of one token."""
        return float(local.kl_family(*self._token)[1][0])

    @cached_property
    def chi2_max(self) -> float:
        """χ²(π‖μ) of one token."""
        return float(local.chi2(*self._token)[0])

    # ---- sequences

    @property
    def tv_sum(self) -> float:
        """Σ_t E[TV] = T TV."""
        return self.horizon * self.tv_max

    @property
    def kl_seq(self) -> float:
        """D_seq = T KL(μ‖π)."""
        return self.horizon * self.kl_max

    @property
    def reverse_kl_seq(self) -> float:
        """T KL(π‖μ)."""
        return self.horizon * self.reverse_kl_max

    @cached_property
    def chi2_seq(self) -> float:
        """χ²(π‖μ) of sequences, (1 + χ²)^T - 1; inf beyond the range of float64."""
        with np.errstate(over="ignore"):
            return float(np.expm1(self.horizon * np.log1p(self.chi2_max)))

    @cached_property
    def threshold(self) -> int:
        """Smallest count of ones from which the policy with the larger probability of 1 is the likelier."""
        low, high = sorted((self.p, self.q))
        if low == high:
            return self.horizon + 1
        if low == 0 or high == 1:
            # a boundary policy excludes counts: one of them is possible only at 0 (at T)
            return 1 if low == 0 and high < 1 else self.horizon if low > 0 else 1
        up, down = np.log(high) - np.log(low), np.log1p(-low) - np.log1p(-high)
        return min(self.horizon, int(np.floor(self.horizon * down / (up + down))) + 1)

    @cached_property
    def tv_seq(self) -> float:
        """TV of the sequence laws, the difference of two binomial tails (incomplete beta functions)."""
        low, high = sorted((self.p, self.q))
        return max(0.0, self.tail(high, self.threshold) - self.tail(low, self.threshold))

    def tail(self, p: float, count: int) -> float:
        """P(number of ones ≥ ``count``) for tokens that are 1 with probability ``p``."""
        if count <= 0:
            return 1.0
        if count > self.horizon:
            return 0.0
        return float(special.betainc(count, self.horizon - count + 1, p))

    @cached_property
    def counts(self) -> np.ndarray:
        """0, ..., horizon."""
        return np.arange(self.horizon + 1)

    def log_law(self, p: float) -> np.ndarray:
        """Log probabilities of the counts, (horizon + 1,)."""
        k, n = self.counts, self.horizon
        choose = special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)
        return choose + special.xlogy(k, p) + special.xlog1py(n - k, -p)

    @cached_property
    def _law(self) -> np.ndarray:
        return np.exp(self.log_law(self.p))

    @cached_property
    def _ratio_excess(self) -> np.ndarray:
        """W - 1 of a sequence by its count, on the support of μ."""
        k, n = self.counts, self.horizon
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            one = np.where(k > 0, k * _log_quotient(self.q, self.p), 0.0)
            zero = np.where(k < n, (n - k) * _log_quotient(1 - self.q, 1 - self.p, self.p - self.q), 0.0)
            return np.expm1(one + zero)

    @cached_property
    def _first_order(self) -> np.ndarray:
        """Σ_t (ρ_t - 1) of a sequence by its count."""
        k, n, shift = self.counts, self.horizon, self.q - self.p
        return shift * (np.where(k > 0, k / self.p, 0.0) - np.where(k < n, (n - k) / (1 - self.p), 0.0))

    def _needs_support(self) -> None:
        if not 0 < self.p < 1:
            raise ValueError(f"p = {self.p}: expected 0 < p < 1, so that π is covered by μ")

    @cached_property
    def remainder(self) -> np.ndarray:
        """N = W - 1 - Σ_t (ρ_t - 1) by the count of ones; the error is E_μ[R N]."""
        self._needs_support()
        return self._ratio_excess - self._first_order

    @cached_property
    def _law_shift(self) -> np.ndarray:
        """π - μ of the counts: μ (W - 1), from the two laws where W is large and may overflow."""
        excess = self._ratio_excess
        with np.errstate(invalid="ignore"):
            return np.where(excess < 1, self._law * excess, np.exp(self.log_law(self.q)) - self._law)

    @cached_property
    def _law_remainder(self) -> np.ndarray:
        """μ N by the count of ones."""
        self._needs_support()
        return self._law_shift - self._law * self._first_order

    @cached_property
    def error_sup(self) -> float:
        """½ E_μ|N|, the supremum of |error| over rewards in [0, 1]."""
        return float(np.sum(np.abs(self._law_remainder)) / 2)

    def extremal_reward(self) -> np.ndarray:
        """The reward by count that attains ``error_sup``: 1 where N > 0."""
        return (self.remainder > 0).astype(float)

    def expectation(self, reward: Any, p: float) -> float:
        """E[R] when tokens are 1 with probability ``p``; ``reward`` by count, an array or a function."""
        return float(np.sum(np.exp(self.log_law(p)) * self._by_count(reward)))

    def _by_count(self, reward: np.ndarray | Callable[[np.ndarray], Any]) -> np.ndarray:
        values = np.asarray(reward(self.counts) if callable(reward) else reward, dtype=float)
        if values.shape != (self.horizon + 1,):
            raise ValueError(f"reward has shape {values.shape}: expected {(self.horizon + 1,)}")
        return values

    def J_behavior(self, reward: Any) -> float:
        """J(μ) of a reward by count."""
        return self.expectation(reward, self.p)

    def J_target(self, reward: Any) -> float:
        """J(π) of a reward by count."""
        return self.expectation(reward, self.q)

    def surrogate(self, reward: Any) -> float:
        """L = E_μ[R Σ_t (ρ_t - 1)]."""
        self._needs_support()
        return float(np.sum(self._law * self._first_order * self._centred(reward)))

    def error(self, reward: Any) -> float:
        """J(π) - J(μ) - L = E_μ[R N]."""
        return float(np.sum(self._law_remainder * self._centred(reward)))

    def improvement(self, reward: Any) -> float:
        """J(π) - J(μ) = E_μ[R (W - 1)]."""
        self._needs_support()
        return float(np.sum(self._law_shift * self._centred(reward)))

    def _centred(self, reward: Any) -> np.ndarray:
        """The reward minus its mean under μ: the weights it meets all have mean zero."""
        values = self._by_count(reward)
        return values - np.sum(self._law * values)


def _log_quotient(a: float, b: float, diff: float | None = None) -> Any:
    """log(a/b), from the difference a - b where the two are close."""
    diff = a - b if diff is None else diff
    if a == 0:
        return -np.inf if b > 0 else 0.0
    if b == 0:
        return np.inf
    return np.log1p(diff / b) if abs(diff) < b / 2 else np.log(a / b)


def markov_sequence_tv(behavior: Any, target: Any, horizon: int, initial: Any = None) -> float:
    """TV of the sequence laws of two binary first-order Markov chains.

    ``behavior`` and ``target`` (2, 2) hold P(next | last); ``initial`` is a pair of laws of the first token
    ((2,), (2,)), default the first rows.  Sequences that agree in their first token, number of runs and
    number of ones have equal probabilities: O(T²) classes, listed with their sizes (Whittle, 1955).

    >>> round(markov_sequence_tv([[0.5, 0.5], [0.5, 0.5]], [[0.75, 0.25], [0.75, 0.25]], 2), 12)
    0.3125
    """
    mu, pi = (np.asarray(x, dtype=float) for x in (behavior, target))
    starts = (mu[0], pi[0]) if initial is None else tuple(np.asarray(x, dtype=float) for x in initial)
    for name, x in (("behavior", mu), ("target", pi)):
        if x.shape != (2, 2) or not (np.all(x >= 0) and np.allclose(x.sum(axis=1), 1)):
            raise ValueError(f"{name} = {x.tolist()}: expected two rows that are distributions on two tokens")
    if isinstance(horizon, bool) or not isinstance(horizon, (int, np.integer)) or horizon < 1:
        raise ValueError(f"horizon = {horizon!r}: expected a positive integer")
    n = int(horizon)
    total = 0.0
    factorial = special.gammaln(np.arange(n + 1) + 1.0)
    for first in (0, 1):
        for runs in range(1, n + 1):
            runs_of = (runs // 2, (runs + 1) // 2) if first else ((runs + 1) // 2, runs // 2)
            # runs - 1 changes, alternating, beginning with first -> other
            leave = ((runs - 1) // 2, runs // 2) if first else (runs // 2, (runs - 1) // 2)
            ones = np.arange(runs_of[1], n - runs_of[0] + 1) if runs > 1 else np.array([n * first])
            tokens = (n - ones, ones)
            log_size = np.zeros(len(ones))
            for token in (0, 1):
                if runs_of[token]:
                    # ways to cut the tokens of this kind into that many non-empty runs
                    m, k = tokens[token] - 1, runs_of[token] - 1
                    log_size += factorial[m] - factorial[k] - factorial[m - k]
            logs = []
            for chain, start in ((mu, starts[0]), (pi, starts[1])):
                value = np.full(len(ones), special.xlogy(1, start[first]))
                for token in (0, 1):
                    value += special.xlogy(tokens[token] - runs_of[token], chain[token, token])
                    value += special.xlogy(leave[token], chain[token, 1 - token])
                logs.append(value)
            high, low = np.maximum(*logs), np.minimum(*logs)
            live = high > -np.inf
            terms = np.exp(log_size[live] + high[live]) * -np.expm1(low[live] - high[live])
            total += float(np.sum(terms))
    return total / 2
