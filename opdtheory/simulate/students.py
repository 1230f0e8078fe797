"""Students with a batch of parameters: tabular softmax, or logits linear in shared parameters.

Parameters have shape ``(…, seeds)``; logits and gradients over logits are tables ``(actions, contexts,
seeds)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from opdtheory.gradients.parameters import LinearLogits
from opdtheory.tabular import Policy, TokenTree
from opdtheory.tabular.policy import softmax

__all__ = ["LinearStudent", "Student", "TabularStudent"]


class Student(Protocol):
    """A map from parameters to policies, and what optimisers need of it."""

    @property
    def tree(self) -> TokenTree:
        """The token tree."""

    def logits(self, theta: np.ndarray) -> np.ndarray:
        """Logits ``(actions, contexts, seeds)``."""

    def pull(self, table: np.ndarray) -> np.ndarray:
        """A gradient over logits as one over the parameters."""

    def natural(self, policy: Policy, gradient: np.ndarray) -> np.ndarray:
        """F⁺·gradient with F = E[Σ_t ∇log π ∇log πᵀ] under ``policy`` itself."""


@dataclass(frozen=True)
class TabularStudent:
    """One logit for every action in every context."""

    tree: TokenTree

    def start(self, policy: Policy, seeds: int = 1) -> np.ndarray:
        """Parameters whose softmax is ``policy``, repeated for every seed if it is a single instance.

        Raises ``ValueError`` for a probability of zero (no finite logit gives it).
        """
        flat = policy.as_float().flat
        if not flat.min() > 0:
            raise ValueError(f"policy: smallest probability {flat.min()}, expected positive ones")
        logits = np.log(flat)
        return np.repeat(logits[..., None], seeds, axis=2) if logits.ndim == 2 else logits

    def logits(self, theta: np.ndarray) -> np.ndarray:
        """The parameters."""
        return theta

    def pull(self, table: np.ndarray) -> np.ndarray:
        """The table itself."""
        return table

    def natural(self, policy: Policy, gradient: np.ndarray) -> np.ndarray:
        """gradient/(d·π): the Fisher matrix of a context is d(diag π − ππᵀ), inverted on its range."""
        mass = policy.flat_occupancy * policy.flat
        return np.divide(gradient, mass, out=np.zeros_like(gradient), where=mass > 0)


@dataclass(frozen=True)
class LinearStudent:
    """Logits offset(s, a) + F(s, a)·θ with ``parameters`` a ``gradients.LinearLogits``."""

    parameters: LinearLogits

    @property
    def tree(self) -> TokenTree:
        """The token tree."""
        return self.parameters.tree

    def start(self, theta: np.ndarray, seeds: int = 1) -> np.ndarray:
        """Parameters (size,) repeated for every seed."""
        return np.repeat(np.asarray(theta, dtype=float)[:, None], seeds, axis=1)

    def logits(self, theta: np.ndarray) -> np.ndarray:
        """Logits at ``theta`` (size, seeds)."""
        return self.parameters.logits(theta)

    def pull(self, table: np.ndarray) -> np.ndarray:
        """Featuresᵀ·table."""
        return self.parameters.pull(np.empty(0), table)

    def natural(self, policy: Policy, gradient: np.ndarray) -> np.ndarray:
        """The Fisher matrix of every seed, pseudo-inverted."""
        features = self.parameters.jacobian(np.empty(0))
        out = np.empty_like(gradient)
        for i in range(gradient.shape[1]):
            p, d = policy.flat[..., i], policy.flat_occupancy[:, i]
            score = features - (p[..., None] * features).sum(axis=0)
            fisher = np.einsum("ac,aci,acj->ij", p * d, score, score)
            out[:, i] = np.linalg.pinv(fisher, hermitian=True) @ gradient[:, i]
        return out


def policy_of(student: Student, theta: np.ndarray) -> Policy:
    """The softmax policies at ``theta``."""
    z = student.logits(theta)
    return Policy(student.tree, softmax(z), (z.shape[2],))
