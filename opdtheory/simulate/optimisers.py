"""Steps along a gradient: plain, natural and Adam; parameters and gradients have the seeds last."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from opdtheory.simulate.students import Student
from opdtheory.tabular import Policy

__all__ = ["Adam", "Gradient", "Natural", "Optimiser"]


class Optimiser(Protocol):
    """Turns a gradient into a change of the parameters; ``state`` is its memory, None at first."""

    def step(
        self, student: Student, policy: Policy, gradient: np.ndarray, state: Any
    ) -> tuple[np.ndarray, Any]:
        """(change, new state)."""


@dataclass(frozen=True)
class Gradient:
    """rate·g, with ‖g‖ cut at ``clip`` in every run if given."""

    rate: float
    clip: float | None = None

    def step(
        self, student: Student, policy: Policy, gradient: np.ndarray, state: Any
    ) -> tuple[np.ndarray, Any]:
        """Plain ascent."""
        return self.rate * _clipped(gradient, self.clip), state


@dataclass(frozen=True)
class Natural:
    """rate·F⁺g with the Fisher matrix of the current policy's responses; a tabular student moves by its
    advantages.
    """

    rate: float

    def step(
        self, student: Student, policy: Policy, gradient: np.ndarray, state: Any
    ) -> tuple[np.ndarray, Any]:
        """Natural ascent."""
        return self.rate * student.natural(policy, gradient), state


@dataclass(frozen=True)
class Adam:
    """Adam with bias correction."""

    rate: float
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    clip: float | None = field(default=None)

    def step(
        self, student: Student, policy: Policy, gradient: np.ndarray, state: Any
    ) -> tuple[np.ndarray, Any]:
        """One Adam step; ``state`` is (count, mean, mean square)."""
        g = _clipped(gradient, self.clip)
        count, m, v = state if state is not None else (0, np.zeros_like(g), np.zeros_like(g))
        count += 1
        m = self.beta1 * m + (1 - self.beta1) * g
        v = self.beta2 * v + (1 - self.beta2) * g * g
        mean, square = m / (1 - self.beta1**count), v / (1 - self.beta2**count)
        return self.rate * mean / (np.sqrt(square) + self.epsilon), (count, m, v)


def _clipped(gradient: np.ndarray, limit: float | None) -> np.ndarray:
    if limit is None:
        return gradient
    norm = np.sqrt((gradient**2).sum(axis=tuple(range(gradient.ndim - 1))))
    return gradient * np.minimum(1.0, limit / np.where(norm > 0, norm, 1.0))
