"""Exact mean, covariance trace and mean squared error of sampled gradient estimators.

Two routes.  For tabular softmax the contexts along a path have parameters of their own, so the squared norm
of ĝ = Σ_t Â_t s_t is Σ_t Â_t²‖s_t‖² and E‖ĝ‖² = Σ_s d(s) Σ_a p(a|s) E[Â²|s,a] ‖s(a)‖²: one backward
recursion, any tree and batch.  With shared parameters the scores of different steps are correlated and every
sequence is enumerated. The enumeration forms its advantages with ``opdtheory.advantages``, the functions that
training code calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np

from opdtheory import advantages
from opdtheory.gradients.estimators import Estimator, conditional_moments, score_norm2, token_rewards
from opdtheory.gradients.exact import flat_mean, lookup
from opdtheory.gradients.parameters import Parameters, TabularLogits, policy_at, score_table
from opdtheory.tabular import Policy, TokenTree, flow
from opdtheory.tabular.contrast import aligned

__all__ = ["Moments", "Paths", "crossover", "enumerated_moments", "sequence_gradients", "tabular_moments"]


@dataclass(frozen=True)
class Moments:
    """Exact moments of one estimator; ``mean`` and ``target`` (the true gradient) are (size,), the rest
    scalars.

    In a batch ``mean`` and ``target`` are (batch, size) and the scalars (batch,).
    """

    mean: np.ndarray
    second_moment: Any
    target: np.ndarray
    unbiased: bool = False

    @cached_property
    def bias2(self) -> Any:
        """‖E ĝ − ∇η‖², and 0 rather than its rounding error for an estimator proved unbiased."""
        gap = self.mean - self.target
        gap2 = (gap * gap).sum(axis=-1)  # a product: a ball around zero has no real power
        return 0 * gap2 if self.unbiased else gap2

    @cached_property
    def variance(self) -> Any:
        """Trace of the covariance of one sample, E‖ĝ‖² − ‖E ĝ‖²."""
        return self.second_moment - (self.mean * self.mean).sum(axis=-1)

    def mse(self, samples: int = 1) -> Any:
        """E‖(mean of ``samples`` independent ĝ) − ∇η‖² = bias² + variance/samples."""
        if samples < 1:
            raise ValueError(f"samples: got {samples}, expected at least 1")
        return self.bias2 + self.variance / samples

    def efficiency(self, samples: int = 1) -> Any:
        """Progress of one ascent step with its best step size, relative to a step along the true
        gradient, in [0, 1].

        For a smooth objective a step a·ḡ gains a⟨∇η, E ĝ⟩ − ½a²·const·E‖ḡ‖², at best ∝ ⟨∇η, E ĝ⟩²/E‖ḡ‖² with
        E‖ḡ‖² = ‖E ĝ‖² + variance/samples.  Unlike the squared error it does not depend on the scale of
        an estimator. 0 if the mean points away from the gradient (no positive step then helps), 1 where
        the gradient vanishes.
        """
        size = (self.mean**2).sum(axis=-1) + self.variance / samples
        along = np.maximum((self.mean * self.target).sum(axis=-1), 0.0)
        scale = size * (self.target**2).sum(axis=-1)
        return np.where(scale > 0, along**2 / np.where(scale > 0, scale, 1.0), 1.0)[()]


def crossover(biased: Moments, unbiased: Moments) -> Any:
    """Sample size from which the unbiased estimator has the smaller mean squared error.

    Solves bias² + v_b/N = v_u/N: (v_u − v_b)/bias², 0 if the biased one never wins, inf if its bias is 0 and
    it has the smaller variance.
    """
    gain = np.maximum(np.asarray(unbiased.variance - biased.variance, dtype=float), 0.0)
    bias2 = np.asarray(biased.bias2 - unbiased.bias2, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(gain == 0, 0.0, np.where(bias2 > 0, gain / bias2, np.inf))[()]


def tabular_moments(student: Policy, teacher: Policy, estimator: Estimator | str) -> Moments:
    """Moments for tabular softmax, over the logits in the order of the concatenated public levels.

    Policies may be batches.
    """
    e = lookup(estimator)
    student, teacher = aligned(student.tree, student, teacher)
    p, d = student.flat, student.flat_occupancy
    first, second = conditional_moments(student, teacher, e)
    weights = d * p * first
    per_context = d * flow.contract(p, second * score_norm2(p))
    mean = weights - p * weights.sum(axis=0)
    target = flat_mean(student, teacher, lookup("ii"))
    parameters = TabularLogits(student.tree)
    shape = (*student.batch_shape, parameters.size)

    def vector(flat: np.ndarray) -> np.ndarray:
        return np.moveaxis(parameters.order(flat), 0, -1).reshape(shape)

    return Moments(vector(mean), student._out(per_context.sum(axis=0)), vector(target), e.unbiased)


class Paths:
    """Every complete sequence of a tree, in the order of ``flow.sequence_entries``.

    ``pairs`` (sequences, T) numbers the context-action pair of each step in a flattened ``(actions,
    contexts)`` table, 0 after the end; ``alive`` (sequences, T) marks the generated tokens.
    """

    def __init__(self, tree: TokenTree) -> None:
        contexts, b, horizon = tree.contexts_total, tree.branching, tree.horizon
        prefix = np.zeros((tree.prompts, 0), dtype=np.int64)
        done = []
        for t in range(horizon):
            here = np.arange(contexts)[tree.level_slice(t)]
            actions = range(tree.vocab) if t == horizon - 1 else range(b)
            if t < horizon - 1 and tree.eos is not None:
                done.append(np.column_stack([prefix, (tree.vocab - 1) * contexts + here]))
            prefix = np.concatenate(
                [np.column_stack([prefix, a * contexts + here]) for a in actions] or [prefix[:0]]
            )
        done.append(prefix)
        lengths = np.concatenate([np.full(len(block), block.shape[1]) for block in done])
        self.pairs = np.concatenate(
            [np.pad(block, ((0, 0), (0, horizon - block.shape[1]))) for block in done]
        )
        self.alive = np.arange(horizon) < lengths[:, None]

    @classmethod
    def of(cls, pairs: np.ndarray, alive: np.ndarray) -> Self:
        """Given paths, for example sampled ones."""
        self = cls.__new__(cls)
        self.pairs, self.alive = pairs, alive
        return self

    def along(self, table: np.ndarray) -> np.ndarray:
        """Values of an ``(actions, contexts)`` table at each step, 0 after the end."""
        return np.where(self.alive, table.reshape(-1)[self.pairs], 0.0)

    def contexts(self, values: np.ndarray) -> np.ndarray:
        """Values of a quantity of contexts at each step, 0 after the end."""
        return np.where(self.alive, values[self.pairs % len(values)], 0.0)


def path_advantages(student: Policy, teacher: Policy, estimator: Estimator, paths: Paths) -> np.ndarray:
    """Advantages (sequences, T) of every path, by the functions of ``opdtheory.advantages``."""
    e, p = estimator, student.flat
    table = token_rewards(p, teacher.flat, e.alpha)
    r, alive = paths.along(table), paths.alive
    if e.form == "total":
        a = advantages.log_ratio_total(r, alive)
    elif e.form == "topd_return":
        a = advantages.topd_return(r, alive)
    elif e.form == "value":
        a = paths.along(conditional_moments(student, teacher, Estimator("to_go", e.lam, e.alpha))[0])
    else:
        minus_mean = paths.contexts(-flow.contract(p, table)) if e.form == "expected" else None
        a = advantages.lambda_return(r, e.lam, alive, kl=minus_mean)
    if e.baseline == "none":
        return a
    plain = Estimator(e.form, e.lam, e.alpha)
    first, _ = conditional_moments(student, teacher, plain)
    weights = p if e.baseline == "value" else p * score_norm2(p)
    mass = weights.sum(axis=0)
    baseline = (weights * first).sum(axis=0) / np.where(mass > 0, mass, 1.0)
    return np.where(alive, a - paths.contexts(baseline), 0.0)


def sequence_gradients(
    parameters: Parameters,
    theta: np.ndarray,
    teacher: Policy,
    estimator: Estimator | str,
    paths: Paths | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(probability of every sequence, ĝ of every sequence (sequences, size)) at ``theta``."""
    paths = Paths(parameters.tree) if paths is None else paths
    student = policy_at(parameters, theta)
    scores = score_table(parameters, theta, student).reshape(-1, parameters.size)
    a = path_advantages(student, teacher, lookup(estimator), paths)
    gradients = np.zeros((len(a), parameters.size))
    for t in range(a.shape[1]):
        gradients += a[:, t, None] * scores[paths.pairs[:, t]]
    return student.flat_sequence_law, gradients


def enumerated_moments(
    parameters: Parameters, theta: np.ndarray, teacher: Policy, estimator: Estimator | str
) -> Moments:
    """Moments at ``theta`` for any parametrisation, by enumerating every sequence."""
    e = lookup(estimator)
    law, gradients = sequence_gradients(parameters, theta, teacher, e)
    student = policy_at(parameters, theta)
    target = parameters.pull(theta, flat_mean(student, teacher, lookup("ii")))
    return Moments(law @ gradients, float(law @ (gradients**2).sum(axis=1)), target, e.unbiased)
