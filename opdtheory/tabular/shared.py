"""A student with one logit shared by all contexts, against any teacher: the smallest shared-parameter model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flint
import numpy as np

from opdtheory.elementary import exact
from opdtheory.tabular.teacher import TeacherStudent
from opdtheory.tabular.tree import TokenTree

__all__ = ["OneLogitStudent"]


class OneLogitStudent(TeacherStudent):
    """Student p(last action) = w/(V − 1 + w) at every context, the other actions equally likely; θ = log w.

    Gradients are with respect to θ: sums over contexts of the tabular gradient's last component.

    ``weight`` has the batch shape; teacher levels as in :class:`TeacherStudent`.
    """

    weight: Any

    @classmethod
    def from_weight(cls, tree: TokenTree, teacher: Sequence[Any], weight: Any) -> OneLogitStudent:
        """The student with odds ``weight`` of the last action, against ``teacher`` (list of levels)."""
        weight = exact(weight) if np.asarray(weight).dtype == object or isinstance(weight, flint.fmpq) else np.asarray(weight)
        total = weight + (tree.vocab - 1)
        student = []
        for t in range(tree.horizon):
            like = np.asarray(teacher[t])
            level = np.empty(like.shape, dtype=like.dtype)
            column = weight / total if like.dtype == object else (weight / total)[..., None]
            rest = 1 / total if like.dtype == object else (1 / total)[..., None]
            for a in range(tree.vocab):
                level[..., a] = column if a == tree.vocab - 1 else rest
            student.append(level)
        self = cls.from_levels(tree, teacher=teacher, student=student, validate=False)
        self.weight = weight
        return self

    def to_data(self) -> dict[str, Any]:
        """JSON-ready instance of kind ``gradient_field``: one whole-number feature per action."""
        data = super().to_data()
        feature = [["0"]] * (self.tree.vocab - 1) + [["1"]]
        tree_keys = {k: v for k, v in data.items() if k not in {"student", "candidate", "scalars"}}
        features = [[feature for _ in range(self.tree.contexts(t))] for t in range(self.tree.horizon)]
        return tree_keys | {"features": features, "weights": [str(exact(self.weight))]}

    def component(self, estimator: str, row: int = 0) -> Any:
        """(E ĝ)_θ of a sampled estimator."""
        if row != 0:
            raise ValueError(f"row = {row}: this student has one parameter")
        mean = self._moments(estimator, None).mean
        return mean[..., self.tree.vocab - 1 :: self.tree.vocab].sum(axis=-1)

    def gradient_norm2(self, estimator: str, alpha: Any = None) -> Any:
        """(E ĝ)_θ²."""
        component = self.component(estimator)
        return component * component
