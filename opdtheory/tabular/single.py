"""One state: two distributions over the actions and, optionally, values of the actions."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import flint
import numpy as np

from opdtheory import divergences
from opdtheory.elementary import absolute, amax, amin, asum, exact, log, maximum, minimum, xlogy
from opdtheory.tabular import local
from opdtheory.tabular.table import as_numbers
from opdtheory.tabular.tree import SUM_TOLERANCE

__all__ = ["SingleState"]


class SingleState:
    """``p`` (student or behaviour) and ``q`` (teacher or target) over actions, last axis; leading axes are a
    batch.

    ``values`` (optional, same shape) are values of the actions; ``scalars`` (such as alpha, of the batch
    shape) become attributes.  Exact if any table is.

    Raises ``ValueError`` if shapes differ or a row is no distribution.

    >>> state = SingleState(["1/2", "1/2"], ["1/4", "3/4"])
    >>> state.tv, state.chi2_qp
    (1/4, 1/4)
    """

    def __init__(self, p: Any, q: Any, values: Any = None, *, validate: bool = True, **scalars: Any) -> None:
        arrays = [as_numbers(x) for x in ((p, q) if values is None else (p, q, values))]
        if any(a.dtype == object for a in arrays):
            arrays = [as_numbers(a.astype(object)) for a in arrays]
        if any(a.shape != arrays[0].shape for a in arrays) or arrays[0].ndim == 0:
            raise ValueError(
                f"shapes {[a.shape for a in arrays]}: expected one common shape (batch..., actions)"
            )
        self.p, self.q = arrays[:2]
        self.values = arrays[2] if values is not None else None
        if validate:
            check_distribution("p", self.p)
            check_distribution("q", self.q)

        self.scalars = scalars
        attach_scalars(self, scalars)

    def to_data(self) -> dict[str, Any]:
        """JSON-ready instance of a certificate: every number a fraction string."""
        if self.p.ndim != 1:
            raise ValueError(f"batch shape {self.p.shape[:-1]}: expected a single instance")
        arrays = {"p": self.p, "q": self.q} | ({} if self.values is None else {"values": self.values})
        vectors = {name: [str(exact(v)) for v in array] for name, array in arrays.items()}
        return vectors | scalars_data(self.scalars)

    @property
    def is_exact(self) -> bool:
        """True if the numbers are rationals or balls."""
        return self.p.dtype == object

    @property
    def vocab(self) -> int:
        """Number of actions."""
        return self.p.shape[-1]

    @cached_property
    def _pq(self) -> tuple[np.ndarray, np.ndarray]:
        return np.moveaxis(self.p, -1, 0), np.moveaxis(self.q, -1, 0)

    def _weight(self, alpha: Any) -> Any:
        """A weight per instance, ready to multiply arrays with the actions last."""
        if self.is_exact:
            return exact(alpha)
        return np.asarray(alpha, dtype=np.float64)[..., None]

    # ---- divergences

    @cached_property
    def tv(self) -> Any:
        """TV(p, q)."""
        return local.tv(*self._pq)

    @cached_property
    def l1(self) -> Any:
        """‖p - q‖₁ = 2 TV."""
        return 2 * self.tv

    @cached_property
    def _kls(self) -> tuple[Any, Any, Any]:
        return local.kl_family(*self._pq)

    @property
    def kl_pq(self) -> Any:
        """KL(p‖q); with p the student, the reverse KL."""
        return self._kls[0]

    @property
    def kl_qp(self) -> Any:
        """KL(q‖p); with q the teacher, the forward KL."""
        return self._kls[1]

    @property
    def k3_pq(self) -> Any:
        """E_p[ρ - 1 - log ρ]."""
        return self._kls[2]

    @cached_property
    def chi2_qp(self) -> Any:
        """χ²(q‖p)."""
        return local.chi2(*self._pq)

    @cached_property
    def chi2_pq(self) -> Any:
        """χ²(p‖q)."""
        return local.chi2(*self._pq[::-1])

    @cached_property
    def hellinger2(self) -> Any:
        """Squared Hellinger distance 1 - Σ√(pq)."""
        return local.hellinger2(*self._pq)

    @cached_property
    def entropy_p(self) -> Any:
        """Entropy of p."""
        return -asum(xlogy(self.p, self.p), -1)

    @cached_property
    def entropy_q(self) -> Any:
        """Entropy of q."""
        return -asum(xlogy(self.q, self.q), -1)

    def mixture(self, alpha: Any) -> np.ndarray:
        """α q + (1 - α) p."""
        a = self._weight(alpha)
        return a * self.q + (1 - a) * self.p

    def jsd(self, alpha: Any) -> Any:
        """JSD_α = α KL(q‖m) + (1 - α) KL(p‖m), m = α q + (1 - α) p."""
        a, m = self._weight(alpha), np.moveaxis(self.mixture(alpha), -1, 0)
        p, q = self._pq
        a = a if self.is_exact else a[..., 0]
        return local.weigh(a, local.kl_family(q, m)[0]) + local.weigh(1 - a, local.kl_family(p, m)[0])

    def binary_tv(self, token: int) -> Any:
        """TV of the partition into ``token`` and the rest."""
        return absolute(self.p[..., token] - self.q[..., token])

    def binary_kl(self, token: int) -> Any:
        """KL(p‖q) of the partition into ``token`` and the rest."""
        return divergences.binary_kl(self.p[..., token], self.q[..., token])

    def topk_tv(self, k: int) -> Any:
        """TV on the top ``k`` actions of p and one tail bucket."""
        return divergences.topk_tv(self.p, self.q, k)

    def topk_kl(self, k: int) -> Any:
        """KL(p‖q) on the top ``k`` actions of p and one tail bucket."""
        return divergences.topk_kl(self.p, self.q, k)

    def topk_fkl(self, k: int) -> Any:
        """Σ q log(q/p) over the top ``k`` actions of q, no tail bucket."""
        return divergences.topk_kl(self.q, self.p, k, tail=False)

    def topk_fkl_tail(self, k: int) -> Any:
        """KL(q‖p) on the top ``k`` actions of q and one tail bucket."""
        return divergences.topk_kl(self.q, self.p, k)

    def topk_tv_head(self, k: int) -> Any:
        """½ Σ|p − q| over the top ``k`` actions of p, the tail left out."""
        head = divergences.topk_members(self.p, k)
        return asum(np.where(head, absolute(self.p - self.q), 0 * self.p)) / 2

    def _topk_mass(self, x: np.ndarray, k: int) -> Any:
        return asum(np.where(divergences.topk_members(self.q, k), x, x * 0), -1)

    def topk_mass_p(self, k: int) -> Any:
        """Mass of p on the top ``k`` actions of q."""
        return self._topk_mass(self.p, k)

    def topk_mass_q(self, k: int) -> Any:
        """Mass of q on the top ``k`` actions of q."""
        return self._topk_mass(self.q, k)

    # ---- ratios

    @cached_property
    def ratio(self) -> np.ndarray:
        """ρ = q/p per action; 0 where both vanish, inf where p = 0 < q."""
        return local.ratio(self.p, self.q)

    @cached_property
    def log_ratio(self) -> np.ndarray:
        """log(q/p) per action on the support of p (-inf where q = 0), 0 outside."""
        return local.log_ratio(self.p, self.q)

    @cached_property
    def _outside(self) -> np.ndarray:
        return np.asarray(self.p == 0, dtype=bool)

    @cached_property
    def max_ratio(self) -> Any:
        """max q/p over the support of p."""
        nothing: Any = exact(0) if self.is_exact else 0.0
        return amax(np.where(self._outside, nothing, self.ratio))

    @cached_property
    def min_ratio(self) -> Any:
        """min q/p over the support of p."""
        return amin(np.where(self._outside, self._no_number, self.ratio))

    @property
    def _no_number(self) -> Any:
        """What a minimum ignores."""
        return flint.arb("inf") if self.is_exact else np.inf

    @cached_property
    def max_abs_log_ratio(self) -> Any:
        """max |log(q/p)| over the support of p."""
        return amax(absolute(self.log_ratio))

    @cached_property
    def covered_mass(self) -> Any:
        """E_p[ρ] = q(supp p)."""
        return asum(np.where(self._outside, self.q * 0, self.q))

    @cached_property
    def min_p(self) -> Any:
        """Smallest probability of p."""
        return amin(self.p)

    @cached_property
    def min_q(self) -> Any:
        """Smallest probability of q."""
        return amin(self.q)

    def within_log_ratio(self, delta: Any) -> Any:
        """p-mass of the actions with |log(q/p)| ≤ delta: what a threshold on one sampled token keeps."""
        sizes = absolute(self.log_ratio)
        if not self.is_exact:
            return asum(self.p * (sizes <= self._weight(delta)), -1)
        return asum(self.p * np.frompyfunc(lambda s: local.at_most(s, delta), 1, 1)(sizes), -1)

    @cached_property
    def value_gap_sup(self) -> Any:
        """max |E_q f - E_p f| over f in [0, 1]: the mass that q has above p."""
        gain = self.q - self.p
        return asum(maximum(gain, 0 * gain), -1)

    @cached_property
    def support_ok(self) -> Any:
        """1 if supp q ⊆ supp p, else 0."""
        covered = ~(self._outside & np.asarray(self.q > 0, dtype=bool)).any(axis=-1)
        return exact(int(covered)) if self.is_exact and self.p.ndim == 1 else covered.astype(np.float64)[()]

    @cached_property
    def p_covered(self) -> Any:
        """1 if supp p ⊆ supp q, else 0."""
        covered = ~(~self._outside & np.asarray(self.q == 0, dtype=bool)).any(axis=-1)
        return exact(int(covered)) if self.is_exact and self.p.ndim == 1 else covered.astype(np.float64)[()]

    # ---- rewards of distillation: log ratio, TOP-D, TrOPD's gate

    def expect_p(self, f: Any) -> Any:
        """E_p[f] with 0·inf = 0."""
        return asum(local.weigh(self.p, np.asarray(f)))

    def expect_q(self, f: Any) -> Any:
        """E_q[f] with 0·inf = 0."""
        return asum(local.weigh(self.q, np.asarray(f)))

    def _variance(self, f: np.ndarray) -> Any:
        """Var_p f; inf if the second moment is."""
        second, mean = self.expect_p(f * f), self.expect_p(f)
        if self.is_exact:
            return second if not flint.arb(second).is_finite() else second - mean * mean
        with np.errstate(invalid="ignore"):
            centred = self.expect_p((f - np.asarray(mean)[..., None]) ** 2)
        return np.where(np.isinf(second), np.inf, centred)[()]

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

    # ---- the masked policy gradient of DPPO (p rolls out, q is trained, values are rewards)

    @cached_property
    def mean_ratio_distance(self) -> Any:
        """E_p|ρ − 1|."""
        return asum(np.where(self.p > 0, absolute(self.q - self.p), 0 * self.p))

    def dppo_tv_drift(self, delta: Any) -> Any:
        """Rate of change of TV(p, q) when the logits of q follow DPPO's masked policy gradient, full support.

        The gradient is E_{y~p}[M ρ Â ∇log q(y)] with Â = values − E_p values and exact TV(p, q) > δ as the
        mask's test.
        """
        delta = exact(delta) if self.is_exact else np.asarray(delta)
        advantage = self._values - self._column(self.mean_values)
        outward = ((advantage > 0) & (self.q > self.p)) | ((advantage < 0) & (self.q < self.p))
        weight = self.q * np.where(outward & self._column(self.tv > delta), 0 * advantage, advantage)
        gradient = weight - self.q * self._column(asum(weight))
        velocity = self.q * (gradient - self._column(asum(self.q * gradient)))
        sign = (self.q > self.p).astype(int) - (self.q < self.p).astype(int)
        return asum(sign * velocity) / 2

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

    def _column(self, value: Any) -> Any:
        """A number per instance, ready to combine with arrays over actions."""
        return value if self.is_exact else value[..., None]

    def direction_dot(self, first: str, second: str, floor: Any = 1, k: int = 1) -> Any:
        """Inner product of two expected update directions, see ``_direction``; ``floor`` is e^τ."""
        return asum(self._direction(first, floor, k) * self._direction(second, floor, k))

    # ---- values

    @property
    def _values(self) -> np.ndarray:
        if self.values is None:
            raise ValueError("this SingleState has no values: expected the argument values=...")
        return self.values

    @cached_property
    def mean_values(self) -> Any:
        """E_p[values]."""
        return asum(self.p * self._values)

    @cached_property
    def mean_q(self) -> Any:
        """E_q[values]."""
        return asum(self.q * self._values)

    @cached_property
    def gain(self) -> Any:
        """E_q[values] - E_p[values]."""
        return asum((self.q - self.p) * self._values)

    @cached_property
    def values_min(self) -> Any:
        """min values."""
        return amin(self._values)

    @cached_property
    def values_max(self) -> Any:
        """max values."""
        return amax(self._values)

    @cached_property
    def values_span(self) -> Any:
        """max values - min values."""
        return amax(self._values) - amin(self._values)

    @cached_property
    def values_max_abs(self) -> Any:
        """max |values|."""
        return amax(absolute(self._values))


def attach_scalars(instance: Any, scalars: dict[str, Any]) -> None:
    """Make named scalars attributes; ``ValueError`` for a name that the class uses itself."""
    for name, value in scalars.items():
        if hasattr(type(instance), name) or name in vars(instance):
            raise ValueError(f"scalar {name!r}: expected a name that is not an attribute already")
        setattr(instance, name, value)


def scalars_data(scalars: dict[str, Any]) -> dict[str, Any]:
    """Entry ``scalars`` of a certificate's instance, nothing if there are none."""
    return {"scalars": {name: str(exact(v)) for name, v in scalars.items()}} if scalars else {}


def check_distribution(name: str, x: np.ndarray) -> None:
    """Raise ``ValueError`` unless every row of ``x`` (last axis) is a distribution."""
    slack: Any = 0 if x.dtype == object else SUM_TOLERANCE
    if x.dtype != object and not np.isfinite(x).all():
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(x))[0])
        raise ValueError(f"{name}[{', '.join(map(str, at))}] = {x[at]}: expected a finite number")
    if (x < 0).any():
        at = tuple(int(i) for i in np.argwhere(x < 0)[0])
        raise ValueError(f"{name}[{', '.join(map(str, at))}] = {x[at]}: expected a probability in [0, 1]")
    sums = x.sum(axis=-1)
    wrong = np.asarray(np.abs(sums - 1) > slack, dtype=bool)
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(f"{name}[{', '.join(map(str, at))}] sums to {np.asarray(sums)[at]}: expected 1")
