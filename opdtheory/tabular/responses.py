"""What a trainer computes on responses of μ: masks, masked surrogates, sums of ratios and of advantages.

A mask accepts a response by a statistic of its contexts or sampled tokens and a threshold δ:

* ``"kl"``: max_t KL(μ‖π)(c_t) ≤ δ, the full divergence at every context passed,
* ``"log_ratio"``: max_t |log ρ_t| ≤ δ, ``"k3"``: max_t k3(ρ_t) ≤ δ, sampled tokens only,
* ``"none"``: every response.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import flint
import numpy as np

from opdtheory.elementary import absolute, amax, asum, exact, maximum, minimum, rel_entr
from opdtheory.tabular import flow, local
from opdtheory.tabular.contrast import PolicyContrast

if TYPE_CHECKING:
    from opdtheory.tabular.reward import Reward

__all__ = ["MASKS", "ResponseQuantities"]

MASKS = ("kl", "log_ratio", "k3", "none")


class ResponseQuantities(PolicyContrast):
    """Means over responses of the behaviour policy; sums over the support of μ, batch-shaped results."""

    reward: Reward
    _q_v: tuple[np.ndarray, np.ndarray]
    _returns: np.ndarray
    _flat_g: np.ndarray
    J_behavior: Any

    # ---- sums and maxima along responses

    def _along(self, table: np.ndarray, join: Callable[[Any, Any], Any]) -> np.ndarray:
        """Join the entries of ``table`` (≥ 0 if ``join`` is a maximum) along every complete response."""
        tree = self.tree
        out = np.empty(table.shape[1:], dtype=table.dtype)
        out[: tree.prompts] = self._zero
        b = tree.branching
        for t in range(tree.horizon - 1):
            here = tree.level_slice(t)
            out[tree.level_slice(t + 1)] = join(table[:b, here], out[here]).reshape((-1, *table.shape[2:]))
        return flow.sequence_entries(tree, join(table, out[None]))

    def _total(self, table: np.ndarray) -> np.ndarray:
        return self._along(table, lambda a, b: a + b)

    @cached_property
    def _rho(self) -> np.ndarray:
        """π/μ on the support of μ, 0 elsewhere."""
        mu = self._mu
        covered = local.ratio(mu, self._pi)
        return covered if self._covered else np.where(mu > 0, covered, self._zero)

    @cached_property
    def _log_rho(self) -> np.ndarray:
        return local.log_ratio(self._mu, self._pi)

    @cached_property
    def _k3(self) -> np.ndarray:
        """k3(ρ) on the support of μ, 0 elsewhere."""
        inside = self._rho - 1 - self._log_rho
        return np.where(self._mu > 0, inside, self._zero)

    def _inner(self, x: Any) -> Any:
        """A scalar per instance, ready for the inner layout (batch axis last)."""
        if self.is_exact:
            return exact(x) if not isinstance(x, flint.arb) else x
        x = np.asarray(x, dtype=np.float64)
        return np.broadcast_to(x, self.batch_shape).reshape(-1) if x.ndim else x

    @cached_property
    def _gain(self) -> np.ndarray:
        """R − J(μ) of every complete response: the trajectory advantage with baseline E R."""
        return self._returns - self._inner(self.J_behavior)

    # ---- masks

    def _statistic(self, mask: str) -> np.ndarray:
        if mask == "kl":
            table = np.broadcast_to(self._kls[0][None], self._mu.shape)
        elif mask == "log_ratio":
            table = absolute(self._log_rho)
        elif mask == "k3":
            table = self._k3
        else:
            raise ValueError(f"mask {mask!r}: expected one of {', '.join(MASKS)}")
        return self._along(table, maximum)

    def _accepted(self, mask: str, delta: Any) -> np.ndarray:
        """1 for accepted responses, 0 for rejected ones; a ball around both if undecided."""
        if mask == "none":
            return self._returns * 0 + 1
        statistic, delta = self._statistic(mask), self._inner(delta)
        if not self.is_exact:
            return (statistic <= delta).astype(np.float64)
        return np.frompyfunc(lambda s: local.at_most(s, delta), 1, 1)(statistic)

    def acceptance(self, mask: str, delta: Any) -> Any:
        """E_μ[M]: the share of responses that the mask keeps."""
        return self._sum(self._law_mu * self._accepted(mask, delta))

    def first_token_acceptance(self, delta: Any) -> Any:
        """P_μ(|log ρ_1| ≤ δ): the chance that the first token passes the threshold."""
        root = self._here(0)
        sizes, delta = absolute(self._log_rho[:, root]), self._inner(delta)
        if self.is_exact:
            passed = np.frompyfunc(lambda s: local.at_most(s, delta), 1, 1)(sizes)
        else:
            passed = (sizes <= delta).astype(np.float64)
        return self._sum(self._d[root] * asum(self._mu[:, root] * passed, 0))

    def masked_surrogate(self, mask: str, delta: Any) -> Any:
        """E_μ[M (R − J(μ)) Σ_t ρ_t] (Trust Region Masking, slide 4.1.1)."""
        weight = self._law_mu * self._accepted(mask, delta) * self._gain
        return self._sum(weight * self._total(self._rho))

    def masked_centred_surrogate(self, mask: str, delta: Any) -> Any:
        """E_μ[M (R − J(μ)) Σ_t (ρ_t − 1)]: nothing is left of it where π = μ."""
        weight = self._law_mu * self._accepted(mask, delta) * self._gain
        return self._sum(weight * self._total(self._rho - np.where(self._mu > 0, self._zero + 1, self._zero)))

    def masked_gradient_dot(self, mask: str, delta: Any) -> Any:
        """⟨∇L_masked, ∇J⟩ over the logits of π, the mask held fixed.

        ∇L_masked = E_μ[M (R − J(μ)) Σ_t ρ_t ∇log π(y_t|c_t)] (Trust Region Masking, slide 4.1.1).
        """
        tree, mu, pi = self.tree, self._mu, self._pi
        table = flow.place_on_endings(tree, self._accepted(mask, delta) * self._gain)
        weight = self._d * np.where(mu > 0, pi, self._zero) * flow.backward(tree, mu, table)[0]
        masked = weight - pi * asum(weight, 0)
        q, v = flow.backward(tree, pi, self.reward.flat)
        return self._sum(asum(masked * (self.target.flat_occupancy * pi * (q - v)), 0))

    # ---- spread of the surrogate's samples

    @cached_property
    def surrogate_variance(self) -> Any:
        """Var_μ[(R − J(μ)) Σ_t ρ_t]."""
        weight = self._total(self._rho) * self._gain
        mean = self._inner(self._sum(self._law_mu * weight))
        return self._sum(self._law_mu * (weight - mean) ** 2)

    @cached_property
    def surrogate_term_variance(self) -> Any:
        """Σ_t Var_μ[(R − J(μ)) ρ_t], a term of an ended response being 0."""
        second = self._sum(self._law_mu * self._gain**2 * self._total(self._rho**2))
        reach = self._pi if self._covered else np.where(self._mu > 0, self._pi, self._zero)
        gain = flow.contract(reach, self._q_v[0] - self._inner(self.J_behavior))
        return second - sum(self._step(t, gain) ** 2 for t in range(self.tree.horizon))

    @cached_property
    def centred_surrogate_variance(self) -> Any:
        """Var_μ[(R − J(μ)) Σ_t (ρ_t − 1)]."""
        weight = self._total(self._rho - np.where(self._mu > 0, self._zero + 1, self._zero)) * self._gain
        mean = self._inner(self._sum(self._law_mu * weight))
        return self._sum(self._law_mu * (weight - mean) ** 2)

    def _spread(self, second: Any, squared_mean: Any) -> Any:
        """second − squared_mean, inf where the second moment is."""
        if self.is_exact:
            return second - squared_mean if flint.arb(second).is_finite() else second
        with np.errstate(invalid="ignore"):
            return np.where(np.isinf(second), np.inf, second - squared_mean)[()]

    @cached_property
    def k3_sum_variance(self) -> Any:
        """Var_μ Σ_t k3(ρ_t); inf where a ratio is 0."""
        totals = self._total(self._k3)
        mean = self._sum(local.weigh(self._law_mu, totals))
        return self._spread(self._sum(local.weigh(self._law_mu, totals * totals)), mean * mean)

    @cached_property
    def k3_term_variance(self) -> Any:
        """Σ_t Var_μ k3(ρ_t), a term of an ended response being 0; inf where a ratio is 0."""
        square = asum(local.weigh(self._mu, self._k3 * self._k3), 0)
        mean = asum(local.weigh(self._mu, self._k3), 0)
        steps = range(self.tree.horizon)
        return sum(self._spread(self._step(t, square), self._step(t, mean) ** 2) for t in steps)

    # ---- advantages along responses, context by context

    @cached_property
    def gap_sum_target(self) -> Any:
        """Σ_t E_{d_t^π}[g_t]: the expected advantages at the contexts that the target visits."""
        return self._sum(self.target.flat_occupancy * self._flat_g)

    def gap_max(self, t: int) -> Any:
        """max |g| over the contexts of step ``t``."""
        return self._max(absolute(self._flat_g[self._here(t)]))

    def marginal_kl(self, t: int) -> Any:
        """KL(d_t^μ‖d_t^π) of the laws of contexts at step ``t``; ended responses are no context."""
        here = self._here(t)
        return self._sum(rel_entr(self._d[here], self.target.flat_occupancy[here]))

    def _here(self, t: int) -> slice:
        if not 0 <= t < self.tree.horizon:
            raise ValueError(f"step t = {t}: expected 0..{self.tree.horizon - 1}")
        return self.tree.level_slice(t)

    @cached_property
    def telescope_gap(self) -> Any:
        """max_y |R − J(μ) − Σ_t A_t| over complete responses."""
        q, v = self._q_v
        return self._max(absolute(self._gain - self._total(q - v)))

    @cached_property
    def reward_length_covariance(self) -> Any:
        """E_μ[(R − J(μ))·|y|]: covariance of reward and number of tokens, EOS counted."""
        length = self._total(self._mu * 0 + 1)
        return self._sum(self._law_mu * self._gain * length)

    # ---- sampled ratios

    @cached_property
    def ratio_max(self) -> Any:
        """Largest token ratio π/μ that sampling from μ can meet."""
        met = (self._mu > 0) & (self._d > 0)
        return self._max(amax(np.where(met, self._rho, self._zero), 0))

    def reward_token_capped(self, cap: Any) -> Any:
        """E_μ[R Σ_t min(log ρ_t, cap)]: every token's log ratio cut at ``cap`` on its own."""
        cut = minimum(self._log_rho, exact(cap) if self.is_exact else self._inner(cap))
        return self._sum(local.weigh(self._law_mu * self._returns, self._total(cut)))
