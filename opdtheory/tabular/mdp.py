"""Small discounted tabular MDPs with a behaviour and a target policy."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import flint
import numpy as np

from opdtheory.elementary import absolute, amax, amin, asum, exact
from opdtheory.tabular import local
from opdtheory.tabular.instance import check_distribution
from opdtheory.tabular.table import as_numbers

__all__ = ["DiscountedMDP"]


class DiscountedMDP:
    """MDP with discount γ in [0, 1), behaviour policy μ and target policy π; lazy exact quantities of the
    batch shape.

    ``transition`` has shape ``(batch..., s, a, s')``, ``reward``, ``behavior`` and ``target`` ``(batch..., s,
    a)``, ``initial`` ``(batch..., s)``, ``gamma`` the batch shape.  Returns are Σ γ^t r_t.  Exact if any
    table is.

    Raises ``ValueError`` for shapes that do not fit, rows that are no distribution, and γ outside [0, 1).

    >>> mdp = DiscountedMDP(transition=[[["1"], ["1"]]], reward=[["0", "1"]], gamma="1/2", initial=["1"],
    ...                     behavior=[["1", "0"]], target=[["0", "1"]])
    >>> mdp.J_behavior, mdp.J_target, mdp.surrogate
    (0, 2, 2)
    """

    def __init__(
        self,
        transition: Any,
        reward: Any,
        gamma: Any,
        initial: Any,
        behavior: Any,
        target: Any,
        *,
        validate: bool = True,
    ) -> None:
        names = ("transition", "reward", "gamma", "initial", "behavior", "target")
        tables = {
            n: as_numbers(x)
            for n, x in zip(names, (transition, reward, gamma, initial, behavior, target), strict=True)
        }
        if any(x.dtype == object for x in tables.values()):
            tables = {n: as_numbers(x.astype(object)) for n, x in tables.items()}
        *batch, states, actions = tables["reward"].shape if tables["reward"].ndim >= 2 else (0, 0)
        expected = {
            "transition": (*batch, states, actions, states),
            "reward": (*batch, states, actions),
            "gamma": tuple(batch),
            "initial": (*batch, states),
            "behavior": (*batch, states, actions),
            "target": (*batch, states, actions),
        }
        if tables["gamma"].ndim == 0 and batch and tables["gamma"].dtype != object:
            tables["gamma"] = np.broadcast_to(tables["gamma"], batch)
        for name, shape in expected.items():
            if tables[name].shape != shape:
                raise ValueError(f"{name} has shape {tables[name].shape}: expected {shape}")
        self.transition, self.reward, self.initial = tables["transition"], tables["reward"], tables["initial"]
        self.behavior, self.target = tables["behavior"], tables["target"]
        self.gamma = tables["gamma"][()]
        self.batch_shape, self.states, self.actions = tuple(batch), states, actions
        if self.is_exact and batch:
            raise ValueError(f"batch shape {tuple(batch)}: expected none for exact numbers")
        if validate:
            for name in ("transition", "initial", "behavior", "target"):
                check_distribution(name, tables[name])
            if not np.all((self.gamma >= 0) & (self.gamma < 1)):
                raise ValueError(f"gamma = {self.gamma}: expected a discount in [0, 1)")
            if not self.is_exact and not np.isfinite(self.reward).all():
                raise ValueError("reward: expected finite numbers")

    @property
    def is_exact(self) -> bool:
        """True if the numbers are rationals."""
        return self.reward.dtype == object

    def to_data(self) -> dict[str, Any]:
        """JSON-ready instance of a certificate: every number a fraction string."""
        if self.batch_shape:
            raise ValueError(f"batch shape {self.batch_shape}: expected a single instance")
        names = ("transition", "reward", "gamma", "initial", "behavior", "target")
        return {name: _strings(np.asarray(getattr(self, name))) for name in names}

    # ---- linear algebra

    def _kernel(self, policy: np.ndarray) -> np.ndarray:
        """State-to-state transition matrix of a policy."""
        return (policy[..., None] * self.transition).sum(axis=-2)

    def _resolvent_system(self, policy: np.ndarray) -> np.ndarray:
        gamma = self.gamma if self.is_exact else np.asarray(self.gamma)[..., None, None]
        return np.eye(self.states, dtype=int) - gamma * self._kernel(policy)

    def _values(self, policy: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        """(I - γP)⁻¹ rewards."""
        return _solve(self._resolvent_system(policy), rewards)

    def _visits(self, policy: np.ndarray, start: np.ndarray) -> np.ndarray:
        """start (I - γP)⁻¹: discounted visits, unnormalised."""
        return _solve(np.swapaxes(self._resolvent_system(policy), -1, -2), start)

    # ---- returns and advantages

    @cached_property
    def v(self) -> np.ndarray:
        """V^μ, shape ``(batch..., s)``."""
        return self._values(self.behavior, asum(self.behavior * self.reward))

    @cached_property
    def advantage(self) -> np.ndarray:
        """A^μ, shape ``(batch..., s, a)``."""
        gamma = self.gamma if self.is_exact else np.asarray(self.gamma)[..., None, None]
        return (
            self.reward
            + gamma * (self.transition * self.v[..., None, None, :]).sum(axis=-1)
            - self.v[..., None]
        )

    @cached_property
    def g(self) -> np.ndarray:
        """g(s) = E_{a~π}[A^μ(s, a)], shape ``(batch..., s)``."""
        return asum((self.target - self.behavior) * self.advantage)

    @cached_property
    def visits_behavior(self) -> np.ndarray:
        """Σ_t γ^t P(s_t = s) under μ; sums to 1/(1 - γ)."""
        return self._visits(self.behavior, self.initial)

    @cached_property
    def visits_target(self) -> np.ndarray:
        """Σ_t γ^t P(s_t = s) under π."""
        return self._visits(self.target, self.initial)

    @cached_property
    def _visits_shift(self) -> np.ndarray:
        """Visits under π minus visits under μ, without cancellation."""
        gamma = self.gamma if self.is_exact else np.asarray(self.gamma)[..., None]
        moved = (self.visits_behavior[..., None] * self._kernel(self.target - self.behavior)).sum(axis=-2)
        return self._visits(self.target, gamma * moved)

    @cached_property
    def J_behavior(self) -> Any:
        """Discounted return of μ."""
        return asum(self.initial * self.v)

    @cached_property
    def J_target(self) -> Any:
        """Discounted return of π."""
        return asum(self.initial * self._values(self.target, asum(self.target * self.reward)))

    @cached_property
    def improvement(self) -> Any:
        """J(π) - J(μ), the solution of Δ = g + γ P_π Δ at the initial distribution."""
        return asum(self.initial * self._values(self.target, self.g))

    @cached_property
    def surrogate(self) -> Any:
        """Σ_s visits_μ(s) g(s) = (1 - γ)⁻¹ E_{ρ^μ, π}[A^μ] (DPPO, Eq 3)."""
        return asum(self.visits_behavior * self.g)

    @cached_property
    def error(self) -> Any:
        """improvement - surrogate, as the change of visits times g."""
        return asum(self._visits_shift * self.g)

    @cached_property
    def adv_max(self) -> Any:
        """ξ = max_{s,a} |A^μ(s, a)|."""
        return amax(amax(absolute(self.advantage)))

    @cached_property
    def adv_target_max(self) -> Any:
        """max_s |g(s)|."""
        return amax(absolute(self.g))

    @cached_property
    def reward_min(self) -> Any:
        """Smallest reward."""
        return amin(amin(self.reward))

    @cached_property
    def reward_max(self) -> Any:
        """Largest reward."""
        return amax(amax(self.reward))

    # ---- divergences

    @cached_property
    def _tables(self) -> tuple[np.ndarray, np.ndarray]:
        return np.moveaxis(self.behavior, -1, 0), np.moveaxis(self.target, -1, 0)

    @cached_property
    def tv_max(self) -> Any:
        """max_s TV(μ, π)."""
        return amax(local.tv(*self._tables))

    @cached_property
    def tv_mean(self) -> Any:
        """E_{ρ^μ}[TV], ρ^μ the normalised discounted visits."""
        return asum(self.visits_behavior * local.tv(*self._tables)) * (1 - self.gamma)

    @cached_property
    def kl_max(self) -> Any:
        """max_s KL(μ‖π)."""
        return amax(local.kl_family(*self._tables)[0])

    @cached_property
    def reverse_kl_max(self) -> Any:
        """max_s KL(π‖μ)."""
        return amax(local.kl_family(*self._tables)[1])


def _strings(x: np.ndarray) -> Any:
    if isinstance(x, np.ndarray):
        return [_strings(part) for part in x.tolist()] if x.ndim else str(exact(x.item()))
    return [_strings(part) for part in x] if isinstance(x, list) else str(exact(x))


def _solve(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve ``matrix @ x = right`` for vectors, batched float64 or exact."""
    if matrix.dtype != object:
        return np.linalg.solve(matrix, right[..., None])[..., 0]
    n = len(right)
    solution = flint.fmpq_mat(n, n, [exact(v) for v in matrix.ravel()]).solve(
        flint.fmpq_mat(n, 1, [exact(v) for v in right])
    )
    out = np.empty(n, dtype=object)
    out[:] = [solution[i, 0] for i in range(n)]
    return out
