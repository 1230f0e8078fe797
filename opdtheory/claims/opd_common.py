"""Instance spaces of the entries on on-policy distillation, and what enumerating every response says about them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, cached_property, lru_cache
from math import comb
from typing import Any

import numpy as np

from opdtheory import spaces
from opdtheory.elementary import exact, log
from opdtheory.gradients import Paths
from opdtheory.spaces import Box, Simplex, Size, Space
from opdtheory.tabular import Policy, TeacherStudent, TokenTree
from opdtheory.tabular.shared import OneLogitStudent
from opdtheory.tabular.table import Table
from opdtheory.verification.blocks import Block, Values

PROOFS = "docs/proofs/opd.md"
COVERED = "supp student ⊆ supp teacher"
TABULAR = "tabular softmax student"
ANY_LENGTH = spaces.SMALL + spaces.WITH_EOS
STUDENTS = spaces.teacher_students(sizes=ANY_LENGTH)
LONGER = spaces.teacher_students(sizes=tuple(s for s in spaces.SMALL if s["horizon"] >= 2))
TWO_STEPS = tuple(s for s in spaces.SMALL if s["horizon"] == 2)
SHORT = replace(spaces.teacher_students(sizes=TWO_STEPS), reach=(4, 2))
SEED = 11
_SMOOTHING = (4, 5)  # a fifth of the mass is spread evenly, so that every probability exceeds 1/(5V)


def _smooth(level: Any) -> Any:
    keep, of = _SMOOTHING
    vocab = level.shape[-1]
    return (keep * level) / of + (level * 0 + 1) * (of - keep) / (of * vocab)


def _least(vocab: int) -> Any:
    """The smallest probability that smoothing leaves."""
    keep, of = _SMOOTHING
    return exact(of - keep) / (of * vocab)


def interior_students(sizes: tuple[Size, ...]) -> Space:
    """Teachers and tabular students whose probabilities all exceed 1/(5V)."""
    plain = spaces.teacher_students(sizes=sizes)

    def build(b: Values, **size: Any) -> TeacherStudent:
        student: TeacherStudent = plain.build({k: _smooth(v) for k, v in b.items()}, **size)
        return student

    return Space(kind=plain.kind, sizes=sizes, blocks=plain.blocks, build=build, serialise=plain.serialise,
                 structure=plain.structure, pairs=plain.pairs,
                 conditions=lambda x: [(x.min_teacher, ">=", _least(x.V)), (x.min_student, ">=", _least(x.V))],
                 description="teacher and student inside the simplex")  # fmt: skip


def one_logit_students(sizes: tuple[Size, ...]) -> Space:
    """Students with one logit for all contexts against teachers inside the simplex."""

    def blocks(vocab: int, horizon: int, eos: int | None, prompts: int) -> dict[str, Block]:
        tree = TokenTree(vocab=vocab, horizon=horizon, eos=eos, prompts=prompts)
        rows: dict[str, Block] = {f"teacher.{t}": Simplex(tree.level_shape(t)) for t in range(horizon)}
        return rows | {"weight": Box((), 0.25, 4.0)}

    def build(b: Values, vocab: int, horizon: int, eos: int | None, prompts: int) -> OneLogitStudent:
        tree = TokenTree(vocab=vocab, horizon=horizon, eos=eos, prompts=prompts)
        weight = b["weight"] if b["weight"].shape else b["weight"].item()
        return OneLogitStudent.from_weight(tree, [_smooth(b[f"teacher.{t}"]) for t in range(horizon)], weight)

    return Space(
        kind="gradient_field", sizes=sizes, blocks=blocks, build=build, serialise=lambda x: x.to_data(),
        structure=lambda vocab, horizon, eos, prompts: {"V": vocab, "T": horizon},
        conditions=lambda x: [(x.min_teacher, ">=", _least(x.V)), (x.min_student, ">=", exact("1/4") / (x.V - exact("3/4")))],
        description="students with one logit shared by all contexts",
    )  # fmt: skip


@cache
def models(count: int = 6) -> tuple[tuple[Policy, Policy], ...]:
    """A few random student–teacher pairs on trees with and without EOS, for checks that enumerate or sample."""
    rng = np.random.default_rng(SEED)
    out = []
    for i in range(count):
        tree = TokenTree(vocab=3, horizon=3, eos=2 if i % 2 else None)
        levels = [[rng.dirichlet(np.ones(3), size=tree.contexts(t)) for t in range(3)] for _ in range(2)]
        out.append((Policy.from_probs(tree, levels[0]), Policy.from_probs(tree, levels[1])))
    return tuple(out)


def gradient(x: TeacherStudent) -> Any:
    """∇V over all tabular logits, without any advantage form: ∂V/∂z(s, a) = d(s) p(a|s) (Q(s, a) − V(s)).

    Q comes from backward induction on the token rewards, level by level from the values of the children.
    """
    tree = x.tree
    keep = [a for a in range(tree.vocab) if a != tree.eos]
    value: Any = None
    parts = []
    for t in reversed(range(tree.horizon)):
        p, q = x.student.levels[t], x.teacher.levels[t]
        quality = log(q / p)
        if value is not None:
            quality = quality.copy()
            quality[..., keep] = quality[..., keep] + value.reshape((*p.shape[:-1], tree.branching))
        value = (p * quality).sum(axis=-1)
        part = x.student.occupancy[t][..., None] * p * (quality - value[..., None])
        parts.append(part.reshape(*part.shape[:-2], -1))
    return np.concatenate(parts[::-1], axis=-1)


def public_order(x: TeacherStudent, pairs: np.ndarray) -> Any:
    """A vector over context-action pairs in the public order of the logits: levels concatenated, batch first."""
    levels = Table(x.tree, pairs.reshape(x.student.flat.shape), x.student.batch_shape).levels
    return np.concatenate([np.asarray(level).reshape(*level.shape[:-2], -1) for level in levels], axis=-1)


def along_logits(x: TeacherStudent, direction: np.ndarray, vector: Any) -> Any:
    """⟨vector, v⟩ of a vector in the public order of the logits and a direction given over context-action pairs."""
    return (vector * public_order(x, direction)).sum(axis=-1)


def derivative_at_zero(degree: int, at: Any) -> Any:
    """p′(0) of the polynomial t ↦ ``at(t)`` of this degree n, from its values at t = k/n (given as k, n)."""
    weights = [exact((-1) ** (k + 1) * comb(degree, k)) * degree / k for k in range(1, degree + 1)]
    total = -sum(weights, exact(0))
    slope = at(0, degree) * int(total.p) / int(total.q)
    for k, w in enumerate(weights, start=1):
        slope = slope + at(k, degree) * int(w.p) / int(w.q)
    return slope


@lru_cache(maxsize=32)
def _paths(tree: TokenTree) -> Paths:
    return Paths(tree)


class Responses:
    """Every response of a student written out token by token, with nothing computed backwards or per context.

    Arrays have the shape (responses, T[, batch]), zero after the end of a response.  ``features`` numbers the
    context-action pairs: entry a·contexts + context of a vector over the tabular logits.
    """

    def __init__(self, x: TeacherStudent) -> None:
        if x.tree.prompts != 1:
            raise ValueError(f"prompts = {x.tree.prompts}: the enumeration is written for one prompt")
        self.x, self.paths = x, _paths(x.tree)
        self.p, self.q = (self._pairs(policy.flat) for policy in (x.student, x.teacher))
        trailing = (1,) * (self.p.ndim - 1)
        self.alive = self.paths.alive.reshape(*self.paths.alive.shape, *trailing)

    @staticmethod
    def _pairs(flat: np.ndarray) -> np.ndarray:
        return flat.reshape(-1, *flat.shape[2:])

    def along(self, table: np.ndarray) -> np.ndarray:
        """Entries of a table of context-action pairs at each step."""
        return np.where(self.alive, table[self.paths.pairs], 0 * table[:1])

    def visited(self, values: np.ndarray) -> np.ndarray:
        """Values (contexts[, batch]) of a quantity of contexts at each step."""
        return np.where(self.alive, values[self.paths.pairs % len(values)], 0 * values[:1])

    @cached_property
    def law(self) -> Any:
        """Probability of each response, a product along it."""
        steps = np.where(self.alive, self.p[self.paths.pairs], 0 * self.p[:1] + 1)
        out = steps[:, 0]
        for t in range(1, steps.shape[1]):
            out = out * steps[:, t]
        return out

    @cached_property
    def rewards(self) -> Any:
        """log(q/p) of each token."""
        return self.along(log(self.q / self.p))

    @cached_property
    def later(self) -> Any:
        """Σ_{k>t} r_k."""
        out = 0 * self.rewards
        for t in reversed(range(out.shape[1] - 1)):
            out[:, t] = out[:, t + 1] + self.rewards[:, t + 1]
        return out

    def mean(self, values: Any) -> Any:
        """Expectation over responses; the batch axis of the instance comes first in the result."""
        weights = self.law.reshape(len(self.law), *(1,) * (values.ndim - self.law.ndim), *self.law.shape[1:])
        return (weights * values).sum(axis=0)

    def gradients(self, advantages: Any) -> Any:
        """Σ_t Â_t ∇log p(a_t|c_t) of each response over the tabular logits, (responses, logits[, batch])."""
        contexts, rows = self.x.tree.contexts_total, np.arange(len(self.law))
        out = np.zeros((len(rows), *self.p.shape), dtype=advantages.dtype)
        for t in range(advantages.shape[1]):
            here = rows[self.paths.alive[:, t]]
            pair = self.paths.pairs[here, t]
            weight = advantages[here, t]
            out[here, pair] = out[here, pair] + weight
            for a in range(self.x.tree.vocab):
                entry = a * contexts + pair % contexts
                out[here, entry] = out[here, entry] - weight * self.p[entry]
        return out

    def direction(self) -> np.ndarray:
        """A direction in the logits with rational entries: the teacher's probabilities times the token's number."""
        tokens = np.arange(1, self.x.tree.vocab + 1).reshape(-1, *(1,) * (self.x.teacher.flat.ndim - 1))
        return self._pairs(self.x.teacher.flat * tokens)

    def scores_along(self, direction: np.ndarray) -> np.ndarray:
        """⟨∇log p(a_t|c_t), v⟩ = v(c_t, a_t) − E_p v(c_t) at each step."""
        shape = self.x.student.flat.shape
        return self.along(direction) - self.visited((self.p * direction).reshape(shape).sum(axis=0))


def tilted(x: TeacherStudent, direction: np.ndarray, k: int, n: int) -> Policy:
    """p·(1 + (k/n)(v − E_p v)) at every context: the student moved along a direction of its logits, to first order."""
    p = x.student.flat
    v = direction.reshape(p.shape)
    moved = p * (1 + (v - (p * v).sum(axis=0)) * k / n)
    return Policy(x.tree, moved, x.student.batch_shape)


ONE_LOGIT = one_logit_students(TWO_STEPS)
ENUMERATED = replace(STUDENTS, reach=(3, 3), description="teacher and student, every response enumerated")
"""For equalities one side of which writes out every response: beyond these sizes that is slow and says nothing new."""
ENUMERATED_LONGER = replace(LONGER, reach=(3, 3), description="teacher and student, every response enumerated")
PAIRS = replace(
    spaces.teacher_students(sizes=(*spaces.SMALL[1:4], spaces.WITH_EOS[0])), reach=(2, 2), description="teacher and student, every pair of responses enumerated"
)
