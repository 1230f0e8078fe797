"""A pair of policies and a reward, with every exact quantity the trust-region papers use, on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np

from opdtheory.elementary import absolute, amax, amin, asum, exact, maximum, minimum, sqrt
from opdtheory.tabular import flow, local
from opdtheory.tabular.contrast import PolicyContrast, aligned, indicator
from opdtheory.tabular.eager import usual_quantities
from opdtheory.tabular.instance import attach_scalars, scalars_data
from opdtheory.tabular.policy import Policy
from opdtheory.tabular.responses import ResponseQuantities
from opdtheory.tabular.reward import Reward
from opdtheory.tabular.table import flat_to_levels
from opdtheory.tabular.tree import TokenTree

__all__ = ["PolicyPair"]


class PolicyPair(ResponseQuantities):
    """Behaviour policy μ, target policy π and reward R on one token tree; all quantities are lazy and cached.

    ``reward`` is a ``Reward`` or a list of level arrays; token rewards are replaced by the terminal reward
    with the same returns.  If one of the policies is exact all three become exact.  Every attribute without
    other remark has the batch shape; conventions as in ``PolicyContrast``.

    Raises ``ValueError`` if the tables do not fit the tree or are no distributions (``validate=False`` skips
    the latter).  ``scalars`` (such as a threshold, of the batch shape) become attributes.

    >>> tree = TokenTree(vocab=2, horizon=1)
    >>> pair = PolicyPair.from_levels(tree, [[["1/2", "1/2"]]], [[["1/4", "3/4"]]], [[["0", "1"]]])
    >>> pair.improvement, pair.surrogate, pair.error, pair.tv_max
    (1/4, 1/4, 0, 1/4)
    """

    def __init__(
        self,
        tree: TokenTree,
        behavior: Policy,
        target: Policy,
        reward: Reward | Sequence[Any],
        *,
        validate: bool = True,
        **scalars: Any,
    ) -> None:
        ready = reward if isinstance(reward, Reward) else Reward.from_levels(tree, reward, validate=validate)
        self.tree = tree
        self.behavior, self.target, ready = aligned(tree, behavior, target, ready)
        self.reward = ready.as_terminal()
        self.batch_shape = self.behavior.batch_shape
        self.scalars = scalars
        attach_scalars(self, scalars)

    @classmethod
    def from_levels(
        cls,
        tree: TokenTree,
        behavior: Sequence[Any],
        target: Sequence[Any],
        reward: Reward | Sequence[Any],
        *,
        validate: bool = True,
        **scalars: Any,
    ) -> Self:
        """Pair from three lists of level arrays in the public layout (or a ready ``Reward``)."""
        return cls(
            tree,
            Policy.from_levels(tree, behavior, validate=validate),
            Policy.from_levels(tree, target, validate=validate),
            reward if isinstance(reward, Reward) else Reward.from_levels(tree, reward, validate=validate),
            **scalars,
        )

    @classmethod
    def from_flat(cls, tree: TokenTree, behavior: np.ndarray, target: np.ndarray, reward: np.ndarray) -> Self:
        """Pair from arrays in the inner layout, a terminal reward, nothing checked: for searches."""
        self = cls.__new__(cls)
        self.tree = tree
        self.behavior, self.target = Policy(tree, behavior), Policy(tree, target)
        self.reward = Reward(tree, reward)
        self.batch_shape = self.behavior.batch_shape
        self.scalars = {}
        return self

    def __getitem__(self, index: Any) -> PolicyPair:
        """Select instances along a one-dimensional batch."""
        part = PolicyPair.from_flat(
            self.tree, self.behavior[index].flat, self.target[index].flat, self.reward[index].flat
        )
        part.scalars = {name: value[index] for name, value in self.scalars.items()}
        attach_scalars(part, part.scalars)
        return part

    def precompute(self, *, gradient: bool = False) -> Self:
        """Compute the usual quantities at once, in the fastest way there is; returns the pair itself.

        With the extra ``fast`` and positive probabilities in one compiled pass, otherwise block by block of
        the batch so that each stays in cache.  Attributes and their values are the same without; exact
        numbers and single instances without the extra are left to be computed on demand.  ``gradient``
        includes ``flat_target_gradient``.
        """
        for name, value in usual_quantities(self, gradient).items():
            vars(self).setdefault(name, value if name == "flat_target_gradient" else self._out(value))
        return self

    def with_reward(self, reward: Reward | Sequence[Any]) -> PolicyPair:
        """The same policies with another reward; what does not depend on the reward is not computed again."""
        other = PolicyPair(self.tree, self.behavior, self.target, reward, **self.scalars)
        if other.batch_shape == self.batch_shape and other.is_exact == self.is_exact:
            for name, value in vars(self).items():
                if isinstance(vars(PolicyContrast).get(name), cached_property):
                    vars(other)[name] = value
        return other

    def to_data(self) -> dict[str, Any]:
        """JSON-ready instance of a certificate: every number a fraction string."""
        tables = {"behavior": self.behavior, "target": self.target, "reward": self.reward}
        data = self.tree.to_data() | {name: table.to_data() for name, table in tables.items()}
        return data | scalars_data(self.scalars)

    @cached_property
    def _q_v(self) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[override]
        return flow.backward(self.tree, self._mu, self.reward.flat)

    @cached_property
    def _v(self) -> np.ndarray:
        if self.is_large:
            return flow.values(self.tree, self._mu, self.reward.flat)
        return self._q_v[1]

    def _q_parts(self, v: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Contexts in parts that stay in cache, with Q there, put together in a buffer from the values."""
        tree, reward = self.tree, self.reward.flat
        buffer = np.empty(0, dtype=reward.dtype)
        for t in range(tree.horizon):
            here = tree.level_slice(t)
            inner = tree.branching if t < tree.horizon - 1 else 0
            below = v[tree.level_slice(t + 1)].reshape((inner, *v[here].shape)) if inner else None
            for part in local.spans(here, reward):
                if below is None:
                    yield part, reward[:, part]
                    continue
                shape = reward[:, part].shape
                count = int(np.prod(shape))
                if len(buffer) < count:
                    buffer = np.empty(count, dtype=reward.dtype)
                q = buffer[:count].reshape(shape)
                q[:inner] = below[:, part.start - here.start : part.stop - here.start]
                q[inner:] = reward[inner:, part]
                yield part, q

    def _of_actions(self, fn: Callable[..., np.ndarray]) -> np.ndarray:
        """``fn(mu, pi, q, v)`` of every context, (contexts[, batch]); Q of a large tree is never stored."""
        if not self.is_large:
            return fn(self._mu, self._pi, *self._q_v)
        out = np.empty_like(self._v)
        for part, q in self._q_parts(self._v):
            out[part] = fn(self._mu[:, part], self._pi[:, part], q, self._v[part])
        return out

    @cached_property
    def _v_target(self) -> np.ndarray:
        return flow.values(self.tree, self._pi, self.reward.flat)

    @cached_property
    def _returns(self) -> np.ndarray:  # type: ignore[override]
        return flow.sequence_entries(self.tree, self.reward.flat)

    # ---- returns

    @cached_property
    def J_behavior(self) -> Any:
        """J(μ) = E_μ[R]."""
        weights = self.tree.weights(self.is_exact, self.behavior.batch_axes)
        return self._sum(self._v[: self.tree.prompts] * weights)

    @cached_property
    def J_target(self) -> Any:
        """J(π) = E_π[R]."""
        value = self._v_target
        weights = self.tree.weights(self.is_exact, self.behavior.batch_axes)
        return self._sum(value[: self.tree.prompts] * weights)

    @cached_property
    def flat_target_gradient(self) -> np.ndarray:
        """∇J(π) with respect to the logits of π, d^π(c) π(a|c) A^π(c, a), in the inner layout."""
        pi, v, d = self._pi, self._v_target, self.target.flat_occupancy
        out = np.empty_like(pi)
        for part, q in self._q_parts(v):
            slope = out[:, part]
            np.subtract(q, v[part], out=slope)
            slope *= pi[:, part]
            slope *= d[part]
        return out

    @cached_property
    def target_gradient(self) -> list[np.ndarray]:
        """∇J(π) with respect to the logits of π, level arrays ``(batch..., contexts(t), vocab)``."""
        return flat_to_levels(self.tree, self.flat_target_gradient, self.batch_shape)

    @cached_property
    def improvement(self) -> Any:
        """J(π) - J(μ), from the backward recursion of the value difference (accurate for close policies)."""
        tree, gap, pi, b = self.tree, self._flat_g.copy(), self._pi, self.tree.branching
        for t in range(tree.horizon - 2, -1, -1):
            here = tree.level_slice(t)
            below = gap[tree.level_slice(t + 1)].reshape((b, *gap[here].shape))
            if b:
                gap[here] += flow.contract(pi[:b, here], below)
        weights = tree.weights(self.is_exact, self.behavior.batch_axes)
        return self._sum(gap[: tree.prompts] * weights)

    @cached_property
    def _flat_g(self) -> np.ndarray:  # type: ignore[override]
        if not self.is_large:
            return flow.contract(self._diff, self._q_v[0])
        return self._of_actions(lambda mu, pi, q, v: flow.contract(pi - mu, q))

    @cached_property
    def surrogate(self) -> Any:
        """L = Σ_t E_{d_t^μ}[g_t] with g_t(c) = E_{a~π}[A_t^μ(c, a)]; needs no support assumption."""
        return self._sum(self._d * self._flat_g)

    @cached_property
    def surrogate_ratio(self) -> Any:
        """E_μ[(R - J(μ)) Σ_t ρ_t] (Trust Region Masking, 2.2.4, with baseline E R)."""
        q = self._q_v[0]
        baseline = np.reshape(self.J_behavior, (-1,)) if self._mu.ndim > 2 else self.J_behavior
        reach = self._pi if self._covered else self._pi * (self._mu > 0)
        return self._sum(self._d * flow.contract(reach, q - baseline))

    @cached_property
    def surrogate_reward(self) -> Any:
        """E_μ[R Σ_t (ρ_t - 1)] (DPPO, Eq 5)."""
        if self._covered:
            return self._sum(self._d * self._flat_g)
        return self._sum(self._d * flow.contract(self._supported_diff, self._q_v[0]))

    @cached_property
    def error(self) -> Any:
        """J(π) - J(μ) - L = Σ_y R(y) n(y) with the signed measure n of ``remainder``."""
        return self._sequence_sum(lambda e: e.remainder * e.returns)

    @cached_property
    def delta(self) -> Any:
        """E_μ[R Σ_t (ρ_t - 1)(1 - ∏_{j>t} ρ_j)] (DPPO, Eq 6), over the support of μ."""
        if self._covered:
            return -self.error
        return self._sequence_sum(lambda e: -e.remainder * e.returns * (e.law_mu > 0))

    @cached_property
    def error_sup(self) -> Any:
        """½ Σ_y |n(y)|: the supremum of |error| over rewards in [0, 1]."""
        return self._sequence_sum(lambda e: absolute(e.remainder)) / 2

    @cached_property
    def remainder(self) -> list[np.ndarray]:
        """The signed measure n(y) on ending actions, zero elsewhere; level shapes.  It sums to zero."""
        return self._levels_of_sequences(self._flat_remainder)

    def extremal_reward(self, sign: int = 1) -> Reward:
        """The reward in {0, 1} that attains ``error_sup``: 1 where n(y) > 0 (n(y) < 0 for ``sign=-1``)."""
        chosen = self._flat_remainder > 0 if sign > 0 else self._flat_remainder < 0
        values = indicator(chosen, self.is_exact)
        return Reward(self.tree, flow.place_on_endings(self.tree, values), self.batch_shape)

    # ---- rewards and advantages

    @cached_property
    def reward_sd(self) -> Any:
        """Standard deviation of R under μ, by the law of total variance (no cancellation)."""
        roots = self._v[: self.tree.prompts]
        weights = self.tree.weights(self.is_exact, self.behavior.batch_axes)
        between = self._sum((roots - asum(roots * weights, 0)) ** 2 * weights)
        within = self._of_actions(lambda mu, pi, q, v: flow.contract(mu, (q - v) ** 2))
        return sqrt(between + self._sum(self._d * within))

    @cached_property
    def reward_min(self) -> Any:
        """Smallest reward of a complete sequence."""
        return self._min(self._returns)

    @cached_property
    def reward_max(self) -> Any:
        """Largest reward of a complete sequence."""
        return self._max(self._returns)

    @cached_property
    def adv_max(self) -> Any:
        """max |A^μ(c, a)| over all contexts and actions."""
        return self._max(self._of_actions(lambda mu, pi, q, v: amax(absolute(q - v), 0)))

    @cached_property
    def adv_target_max(self) -> Any:
        """max_c |g(c)|, g(c) = E_{a~π}[A^μ(c, a)]."""
        return self._max(absolute(self._flat_g))

    @cached_property
    def q_span_max(self) -> Any:
        """max_c (max_a Q^μ(c, a) - min_a Q^μ(c, a))."""
        return self._max(self._of_actions(lambda mu, pi, q, v: amax(q, 0) - amin(q, 0)))

    def g_step(self, t: int) -> Any:
        """E_{d_t^μ}[g_t] at step ``t`` (0-based); the surrogate is the sum over steps."""
        return self._step(t, self._flat_g)

    @cached_property
    def reward_k3_sum(self) -> Any:
        """E_μ[R Σ_t k3(ρ_t)]."""
        terms = local.weigh(self._mu, local.log_ratio(self._mu, self._pi))
        k3 = self._supported_diff - terms
        return self._sum(local.weigh(self._d, asum(local.weigh(self._q_v[0], k3), 0)))

    @cached_property
    def reward_log_w(self) -> Any:
        """E_μ[R log W], -inf where W = 0 < R has mass; for R ≥ 0."""
        return self._sequence_sum(lambda e: local.weigh(e.law_mu * e.returns, e.log_ratio))

    @cached_property
    def cost_log_w(self) -> Any:
        """E_μ[(1 - R) log W]; for R ≤ 1."""
        return self._sequence_sum(lambda e: local.weigh(e.law_mu * (1 - e.returns), e.log_ratio))

    @cached_property
    def reward_floor_log_w(self) -> Any:
        """E_μ[R max(log W, -1)]."""
        return self._sequence_sum(lambda e: local.weigh(e.law_mu * e.returns, maximum(e.log_ratio, -1)))

    def reward_capped_log_w(self, cap: Any) -> Any:
        """E_μ[R min(max(log W, -1), cap)]."""
        bounded = minimum(maximum(self._sequence_log_ratio, -1), exact(cap) if self.is_exact else cap)
        return self._sum(local.weigh(self._law_mu * self._returns, bounded))

    def reward_truncated(self, cap: Any) -> Any:
        """E_μ[R min(W, cap)]: truncated importance sampling of J(π)."""
        capped = self._law_mu * (exact(cap) if self.is_exact else cap)
        return self._sum(minimum(self._law_pi, capped) * self._returns)
