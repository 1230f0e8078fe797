"""Successive students of one state (or of responses read as single actions) on their way to a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from opdtheory.elementary import absolute, asum, exact, maximum, minimum
from opdtheory.tabular import local
from opdtheory.tabular.table import as_numbers

__all__ = ["MinorizerSteps", "ProximalSteps"]


class _Iterates:
    """Laws p_0, …, p_n and a teacher q over the same actions (last axis); leading axes are a batch."""

    map: str

    def __init__(self, teacher: Any, laws: Sequence[Any], **scalars: Any) -> None:
        self.teacher = as_numbers(teacher)
        self.laws = [as_numbers(p) for p in laws]
        self.scalars = scalars
        for name, value in scalars.items():
            setattr(self, name, value)

    @property
    def is_exact(self) -> bool:
        """True if the numbers are rationals or balls."""
        return self.teacher.dtype == object

    def _column(self, value: Any) -> Any:
        """A number per instance, ready to combine with arrays over actions."""
        return exact(value) if self.is_exact else np.asarray(value, dtype=np.float64)[..., None]

    def to_data(self) -> dict[str, Any]:
        """JSON-ready instance of kind ``iterated_map``."""
        return {
            "map": self.map,
            "start": [str(exact(v)) for v in self.laws[0]],
            "teacher": [str(exact(v)) for v in self.teacher],
            "steps": len(self.laws) - 1,
            "scalars": {name: str(exact(v)) for name, v in self.scalars.items()},
        }

    def l1(self, k: int) -> Any:
        """‖p_k - q‖₁."""
        return asum(absolute(self.laws[k] - self.teacher))

    def move(self, j: int, k: int) -> Any:
        """‖p_j - p_k‖₁."""
        return asum(absolute(self.laws[j] - self.laws[k]))

    def kl(self, k: int) -> Any:
        """KL(p_k‖q)."""
        return local.kl_family(np.moveaxis(self.laws[k], -1, 0), np.moveaxis(self.teacher, -1, 0))[0]

    def probability(self, k: int, token: int) -> Any:
        """p_k(token)."""
        return self.laws[k][..., token]


class ProximalSteps(_Iterates):
    """p_{k+1} = αq + (1 − α)p_k + e_k: any laws are such a sequence, with e_k what the step misses (TOP-D,
    Theorem 4.4).

    >>> steps = ProximalSteps(["1/2", "1/2"], [["1", "0"], ["3/4", "1/4"]], alpha="1/2")
    >>> steps.l1(0), steps.l1(1), steps.error_l1(0)
    (1, 1/2, 0)
    """

    map = "proximal"

    def error(self, k: int) -> np.ndarray:
        """e_k."""
        alpha = self._column(self.scalars["alpha"])
        return self.laws[k + 1] - alpha * self.teacher - (1 - alpha) * self.laws[k]

    def error_l1(self, k: int) -> Any:
        """‖e_k‖₁."""
        return asum(absolute(self.error(k)))

    def to_data(self) -> dict[str, Any]:
        """JSON-ready instance of kind ``iterated_map``."""
        rows = [[str(exact(v)) for v in self.error(k)] for k in range(len(self.laws) - 1)]
        return super().to_data() | {"errors": rows}


class MinorizerSteps(_Iterates):
    """Exact maximisations of Σ p̃A − 2·penalty·|Σ p̃A|·TV(p̃, p) at one state of two tokens, the reward
    log(q/p) refreshed before each. With p̃ = p + u on the second token and a = r(1) − r(0) the bound is
    a·u − 2·penalty·|a|·u², so that u = sign(a)/(4·penalty) inside [0, 1] (TOP-D, Theorem 4.9 at horizon 1
    with penalty T_max).

    >>> steps = MinorizerSteps.run(["1/2", "1/2"], ["2/5", "3/5"], penalty=1, steps=2)
    >>> [str(p) for p in steps.laws[1]], steps.move(0, 2)
    (['13/20', '7/20'], 0)
    """

    map = "minorizer"

    @classmethod
    def run(cls, teacher: Any, start: Any, penalty: Any, steps: int) -> MinorizerSteps:
        """The first ``steps`` maximisations from ``start``."""
        q, laws = as_numbers(teacher), [as_numbers(start)]
        if q.shape[-1] != 2:
            raise ValueError(f"teacher has {q.shape[-1]} actions: expected 2")
        size = 1 / (4 * exact(penalty)) if q.dtype == object else 1 / (4 * np.asarray(penalty, dtype=float))
        zero = exact(0) if q.dtype == object else 0.0
        for _ in range(steps):
            p = laws[-1]
            side = q[..., 1] * p[..., 0] - q[..., 0] * p[..., 1]
            sign = np.asarray(side > 0).astype(int) - np.asarray(side < 0).astype(int)
            sign = int(sign) if q.dtype == object else sign
            second = minimum(maximum(p[..., 1] + sign * size, zero), zero + 1)
            nxt = np.empty(p.shape, dtype=p.dtype)
            nxt[..., 0], nxt[..., 1] = 1 - second, second
            laws.append(nxt)
        return cls(q, laws, penalty=penalty)
