"""Maps from a parameter vector θ to the logits of every context.

A map knows its tree, its number of parameters ``size``, the logits at θ and their Jacobian.  Tabular softmax
has one parameter for each logit; shared parameters move many contexts at once.  Gradients over logits are
pulled back by the transposed Jacobian, and ∇_θ log p(a|s) = F(s,a) − Σ_b p(b|s) F(s,b) with F(s,a) =
∂z(s,a)/∂θ.

Jacobians have shape ``(actions, contexts, size)`` in the inner layout of the tabular package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from opdtheory.tabular import Policy, TokenTree
from opdtheory.tabular.table import Table

__all__ = [
    "LinearLogits",
    "Parameters",
    "TabularLogits",
    "TorchLogits",
    "one_logit",
    "score_table",
    "shared_logits",
]


class Parameters(Protocol):
    """What the gradient code needs of a parametrisation."""

    tree: TokenTree
    size: int

    def logits(self, theta: np.ndarray) -> np.ndarray:
        """Logits at ``theta`` (size,) or complex batches (size, batch), inner layout."""

    def jacobian(self, theta: np.ndarray) -> np.ndarray:
        """∂logits/∂θ, shape (actions, contexts, size)."""

    def pull(self, theta: np.ndarray, flat: np.ndarray) -> np.ndarray:
        """Jacobianᵀ·flat: a gradient over logits (actions, contexts[, batch]) as one over θ, (size[,
        batch]).
        """

    def curvature(self, theta: np.ndarray, flat: np.ndarray) -> np.ndarray:
        """Σ flat·∂²z/∂θ∂θ, shape (size, size): zero for linear maps."""


class LinearLogits:
    """z(s, a) = offset(s, a) + F(s, a)·θ with a fixed feature vector for every context-action pair.

    ``features`` are level arrays ``(contexts(t), vocab, size)``, ``offset`` level arrays ``(contexts(t),
    vocab)``.
    """

    def __init__(self, tree: TokenTree, features: Sequence[Any], offset: Sequence[Any] | None = None) -> None:
        arrays = [np.asarray(level, dtype=np.float64) for level in features]
        if len(arrays) != tree.horizon or any(level.ndim != 3 for level in arrays):
            shapes = [level.shape for level in arrays]
            raise ValueError(
                f"features: got shapes {shapes}, expected {tree.horizon} levels (contexts, vocab, size)"
            )
        self.tree = tree
        self.size = arrays[0].shape[-1]
        self._features = Table.from_levels(tree, [np.moveaxis(level, -1, 0) for level in arrays]).flat
        zero = [np.zeros((tree.contexts(t), tree.vocab)) for t in range(tree.horizon)]
        self._offset = Table.from_levels(tree, zero if offset is None else offset).flat

    def logits(self, theta: np.ndarray) -> np.ndarray:
        """Logits at ``theta`` (size[, batch])."""
        offset = self._offset if theta.ndim == 1 else self._offset[..., None]
        return offset + self._features @ theta

    def jacobian(self, theta: np.ndarray) -> np.ndarray:
        """The features."""
        return self._features

    def pull(self, theta: np.ndarray, flat: np.ndarray) -> np.ndarray:
        """Featuresᵀ·flat."""
        return np.tensordot(self._features, flat, axes=([0, 1], [0, 1]))

    def curvature(self, theta: np.ndarray, flat: np.ndarray) -> np.ndarray:
        """Zero."""
        return np.zeros((self.size, self.size))


class TabularLogits:
    """One parameter for each context-action pair, ordered as the concatenated public levels."""

    def __init__(self, tree: TokenTree) -> None:
        self.tree = tree
        self.size = tree.pairs_total
        numbering, start = [], 0
        for t in range(tree.horizon):
            count = tree.contexts(t) * tree.vocab
            numbering.append(
                np.arange(start, start + count, dtype=float).reshape(tree.contexts(t), tree.vocab)
            )
            start += count
        self._position = Table.from_levels(tree, numbering).flat.astype(int)

    def logits(self, theta: np.ndarray) -> np.ndarray:
        """The parameters in the inner layout."""
        return theta[self._position]

    def jacobian(self, theta: np.ndarray) -> np.ndarray:
        """One-hot rows; needs size² numbers, so only for small trees."""
        return np.eye(self.size)[self._position]

    def pull(self, theta: np.ndarray, flat: np.ndarray) -> np.ndarray:
        """``flat`` in the order of the parameters."""
        return self.order(flat)

    def order(self, flat: np.ndarray) -> np.ndarray:
        """Numbers over logits (actions, contexts[, batch]) in the order of the parameters, (size[,
        batch]).
        """
        out = np.empty((self.size, *flat.shape[2:]), dtype=flat.dtype)
        out[self._position] = flat
        return out

    def curvature(self, theta: np.ndarray, flat: np.ndarray) -> np.ndarray:
        """Zero."""
        return np.zeros((self.size, self.size))


class TorchLogits:
    """Any differentiable map: ``fn`` takes a float64 tensor (size,) and returns level tensors (contexts,
    vocab).
    """

    def __init__(self, tree: TokenTree, size: int, fn: Callable[[Any], Sequence[Any]]) -> None:
        self.tree = tree
        self.size = size
        self._fn = fn
        self._tabular = TabularLogits(tree)

    def _vector(self, theta: Any) -> Any:
        import torch

        return torch.cat([level.reshape(-1) for level in self._fn(theta)])

    def logits(self, theta: np.ndarray) -> np.ndarray:
        """Logits at a real ``theta`` (size,)."""
        import torch

        with torch.no_grad():
            return self._tabular.logits(self._vector(torch.tensor(theta, dtype=torch.float64)).numpy())

    def jacobian(self, theta: np.ndarray) -> np.ndarray:
        """By automatic differentiation."""
        import torch

        rows = torch.func.jacrev(self._vector)(torch.tensor(theta, dtype=torch.float64)).numpy()
        return rows[self._tabular._position]

    def pull(self, theta: np.ndarray, flat: np.ndarray) -> np.ndarray:
        """Jacobianᵀ·flat."""
        return np.tensordot(self.jacobian(theta), flat, axes=([0, 1], [0, 1]))

    def curvature(self, theta: np.ndarray, flat: np.ndarray) -> np.ndarray:
        """Hessian of Σ flat·z(θ) with ``flat`` held fixed."""
        import torch

        fixed = torch.tensor(self._tabular.order(flat))
        point = torch.tensor(theta, dtype=torch.float64)
        return torch.func.hessian(lambda x: (self._vector(x) * fixed).sum())(point).numpy()


def shared_logits(tree: TokenTree) -> LinearLogits:
    """One logit per action, shared by all contexts: size = vocab."""
    eye = np.eye(tree.vocab)
    return LinearLogits(
        tree, [np.broadcast_to(eye, (tree.contexts(t), *eye.shape)) for t in range(tree.horizon)]
    )


def one_logit(tree: TokenTree, action: int = -1) -> LinearLogits:
    """A single number: the logit of ``action`` in every context, all other logits being 0."""
    feature = np.zeros((tree.vocab, 1))
    feature[action] = 1.0
    return LinearLogits(
        tree, [np.broadcast_to(feature, (tree.contexts(t), *feature.shape)) for t in range(tree.horizon)]
    )


def policy_at(parameters: Parameters, theta: np.ndarray) -> Policy:
    """The softmax policy at ``theta``; complex parameters (complex-step derivatives) are allowed."""
    z = parameters.logits(theta)
    weights = np.exp(z - z.real.max(axis=0))
    return Policy(parameters.tree, weights / weights.sum(axis=0))


def score_table(parameters: Parameters, theta: np.ndarray, policy: Policy) -> np.ndarray:
    """∇_θ log p(a|s) of every context-action pair, shape (actions, contexts, size)."""
    jacobian = parameters.jacobian(theta)
    return jacobian - (policy.flat[..., None] * jacobian).sum(axis=0)
