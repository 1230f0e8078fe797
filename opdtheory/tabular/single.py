"""One state: two distributions over the actions and, optionally, values of the actions."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from opdtheory.elementary import absolute, amax, asum, exact, log
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

    def _weight(self, alpha: Any) -> Any:
        """A weight per instance, ready to multiply arrays with the actions last."""
        if self.is_exact:
            return exact(alpha)
        return np.asarray(alpha, dtype=np.float64)[..., None]

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
    def ratio(self) -> np.ndarray:
        """ρ = q/p per action; 0 where both vanish, inf where p = 0 < q."""
        return local.ratio(self.p, self.q)

    @cached_property
    def log_ratio(self) -> np.ndarray:
        """log(q/p) per action on the support of p (-inf where q = 0), 0 outside."""
        return local.log_ratio(self.p, self.q)

    def expect_p(self, f: Any) -> Any:
        """E_p[f] with 0·inf = 0."""
        return asum(local.weigh(self.p, np.asarray(f)), -1)

    def expect_q(self, f: Any) -> Any:
        """E_q[f] with 0·inf = 0."""
        return asum(local.weigh(self.q, np.asarray(f)), -1)

    @cached_property
    def mean_values(self) -> Any:
        """E_p[values]."""
        return self.expect_p(self._values)

    @cached_property
    def gain(self) -> Any:
        """E_q[values] - E_p[values]."""
        return asum((self.q - self.p) * self._values, -1)

    @property
    def _values(self) -> np.ndarray:
        if self.values is None:
            raise ValueError("this SingleState has no values: expected the argument values=...")
        return self.values

    def mixture(self, alpha: Any) -> np.ndarray:
        """α q + (1 - α) p."""
        a = self._weight(alpha)
        return a * self.q + (1 - a) * self.p

    def jsd(self, alpha: Any) -> Any:
        """JSD_α = α KL(q‖m) + (1 - α) KL(p‖m), m = α q + (1 - α) p."""
        a, m = (exact(alpha) if self.is_exact else np.asarray(alpha)), np.moveaxis(self.mixture(alpha), -1, 0)
        p, q = self._pq
        return a * local.kl_family(q, m)[0] + (1 - a) * local.kl_family(p, m)[0]

    def topd_reward(self, alpha: Any) -> np.ndarray:
        """r̃ = log(α ρ + 1 - α) per action on the support of p, 0 outside (TOP-D, Eq 5)."""
        return local.log_ratio(self.p, self.mixture(alpha))

    @cached_property
    def support_ok(self) -> Any:
        """1 if supp q ⊆ supp p, else 0."""
        uncovered = ((self.p == 0) & (self.q > 0)).any(axis=-1)
        return exact(int(not uncovered)) if self.is_exact and self.p.ndim == 1 else 1.0 - uncovered

    @cached_property
    def max_abs_log_ratio(self) -> Any:
        """max |log(q/p)| over the support of p."""
        return amax(absolute(self.log_ratio), -1)

    @cached_property
    def entropy_p(self) -> Any:
        """Entropy of p in nats."""
        return -asum(local.weigh(self.p, log(self.p)), -1)


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
