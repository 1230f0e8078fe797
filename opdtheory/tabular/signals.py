"""Reward signals of distillation at one state, and the update directions they give in the logits of the student.

``p`` is the student, who draws the action, and ``q`` the teacher; ρ = q/p.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from opdtheory import divergences
from opdtheory.elementary import amax, amin, asum, log, maximum, minimum
from opdtheory.tabular import local
from opdtheory.tabular.two_laws import TwoLaws

__all__ = ["RewardSignals"]


class RewardSignals(TwoLaws):
    """Log ratio, TOP-D reward and TrOPD's gate: moments as values, and as weights of ∇log p."""

    def topd_reward(self, alpha: Any) -> np.ndarray:
        """r̃ = log(α ρ + 1 - α) per action on the support of p, 0 outside (TOP-D, Eq 5)."""
        return local.log_ratio(self.p, self.mixture(alpha), self._weight(alpha) * (self.q - self.p))

    @cached_property
    def opd_mean(self) -> Any:
        """E_p[log ρ] = -KL(p‖q)."""
        return self.expect_p(self.log_ratio)

    @cached_property
    def opd_second_moment(self) -> Any:
        """E_p[log² ρ]."""
        return self.expect_p(self.log_ratio * self.log_ratio)

    @cached_property
    def opd_variance(self) -> Any:
        """Var_p(log ρ)."""
        return self._variance(self.log_ratio)

    def topd_mean(self, alpha: Any) -> Any:
        """E_p[r̃]."""
        return self.expect_p(self.topd_reward(alpha))

    def topd_second_moment(self, alpha: Any) -> Any:
        """E_p[r̃²]."""
        reward = self.topd_reward(alpha)
        return self.expect_p(reward * reward)

    def topd_variance(self, alpha: Any) -> Any:
        """Var_p(r̃)."""
        return self._variance(self.topd_reward(alpha))

    def topd_max(self, alpha: Any) -> Any:
        """max r̃ over the support of p."""
        return amax(np.where(self._outside, -self._no_number, self.topd_reward(alpha)))

    def topd_min(self, alpha: Any) -> Any:
        """min r̃ over the support of p."""
        return amin(np.where(self._outside, self._no_number, self.topd_reward(alpha)))

    @cached_property
    def _score_norm2(self) -> np.ndarray:
        """‖∇log p(y)‖² = ‖e_y - p‖² with respect to the logits, per action."""
        return 1 - 2 * self.p + (self.p * self.p).sum(axis=-1, keepdims=True)

    def _gradient_second_moment(self, f: np.ndarray) -> Any:
        return asum(local.weigh(self.p * self._score_norm2, f * f))

    def _gradient_norm2(self, f: np.ndarray) -> Any:
        mean = (
            self.expect_p(f)
            if self.is_exact and self.p.ndim == 1
            else np.asarray(self.expect_p(f))[..., None]
        )
        with np.errstate(invalid="ignore"):
            field = local.weigh(self.p, f - mean)
        return asum(field * field)

    @cached_property
    def opd_gradient_second_moment(self) -> Any:
        """E_p‖log ρ ∇log p‖², gradient with respect to the logits of p."""
        return self._gradient_second_moment(self.log_ratio)

    @cached_property
    def opd_gradient_norm2(self) -> Any:
        """‖E_p[log ρ ∇log p]‖²."""
        return self._gradient_norm2(self.log_ratio)

    @cached_property
    def opd_gradient_variance(self) -> Any:
        """E‖g‖² - ‖E g‖², g = log ρ ∇log p."""
        return self.opd_gradient_second_moment - self.opd_gradient_norm2

    def topd_gradient_second_moment(self, alpha: Any) -> Any:
        """E_p‖r̃ ∇log p‖²."""
        return self._gradient_second_moment(self.topd_reward(alpha))

    def topd_gradient_norm2(self, alpha: Any) -> Any:
        """‖E_p[r̃ ∇log p]‖²."""
        return self._gradient_norm2(self.topd_reward(alpha))

    def topd_gradient_variance(self, alpha: Any) -> Any:
        """E‖g̃‖² - ‖E g̃‖², g̃ = r̃ ∇log p."""
        return self.topd_gradient_second_moment(alpha) - self.topd_gradient_norm2(alpha)

    @cached_property
    def gate_acceptance(self) -> Any:
        """E_p[min(ρ, 1)] = Σ min(p, q)."""
        return asum(minimum(self.p, self.q))

    @cached_property
    def gated_k1(self) -> Any:
        """E_p[-M log ρ], P(M = 1) = min(ρ, 1)."""
        return -asum(local.weigh(minimum(self.p, self.q), self.log_ratio))

    @cached_property
    def gated_second_moment(self) -> Any:
        """E_p[M log² ρ], P(M = 1) = min(ρ, 1)."""
        return asum(local.weigh(minimum(self.p, self.q), self.log_ratio * self.log_ratio))

    # ---- expected update directions of TrOPD's signals, in the logits of p

    def _direction(self, signal: str, floor: Any, k: int) -> np.ndarray:
        """E_p[signal(ρ) ∇log p], or for "fkl" −∇ of the top-``k`` forward KL without tail; p of full support.

        Signals of ρ = q/p: "rkl" log ρ; "gate" min(ρ, 1) log ρ; "clip" max(log ρ, log floor);
        "mask" 1[ρ > floor] log ρ; "tropd" the gate plus TV(p, q) (its rejection rate) times "fkl".
        """
        if signal == "fkl":
            head = np.where(divergences.topk_members(self.q, k), self.q, 0 * self.q)
            return head - self.p * self._column(asum(head))
        if signal == "tropd":
            forward = self._column(self.tv) * self._direction("fkl", floor, k)
            return self._direction("gate", floor, k) + forward
        if signal == "rkl":
            reward = self.log_ratio
        elif signal == "gate":
            reward = local.weigh(minimum(self.ratio, 1), self.log_ratio)
        elif signal == "clip":
            reward = maximum(self.log_ratio, log(self._weight(floor)))
        elif signal == "mask":
            reward = np.where(self.ratio > self._weight(floor), self.log_ratio, 0 * self.p)
        else:
            raise ValueError(f"signal {signal!r}: expected rkl, gate, clip, mask, fkl or tropd")
        return local.weigh(self.p, reward - self._column(asum(local.weigh(self.p, reward))))

    def direction_dot(self, first: str, second: str, floor: Any = 1, k: int = 1) -> Any:
        """Inner product of two expected update directions, see ``_direction``; ``floor`` is e^τ."""
        return asum(self._direction(first, floor, k) * self._direction(second, floor, k))
