"""Two distributions over the same actions: their divergences and ratios."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import flint
import numpy as np

from opdtheory import divergences
from opdtheory.elementary import absolute, amax, amin, asum, exact, maximum, xlogy
from opdtheory.tabular import local

__all__ = ["TwoLaws"]


class TwoLaws:
    """``p`` and ``q`` over actions, last axis, leading axes a batch; float64, or object arrays of exact numbers.

    Quantities are lazy, cached and have the batch shape unless they are per action.
    """

    p: np.ndarray
    q: np.ndarray

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

    def _column(self, value: Any) -> Any:
        """A number per instance, ready to combine with arrays over actions."""
        return value if self.is_exact else value[..., None]

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
