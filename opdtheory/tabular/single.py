"""One state: two distributions over the actions and, optionally, values of the actions."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from opdtheory.elementary import absolute, amax, amin, asum, exact
from opdtheory.tabular.instance import attach_scalars, check_distribution, scalars_data
from opdtheory.tabular.signals import RewardSignals
from opdtheory.tabular.table import as_numbers

__all__ = ["SingleState"]


class SingleState(RewardSignals):
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
