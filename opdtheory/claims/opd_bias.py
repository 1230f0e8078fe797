"""Theory of On-Policy Distillation: occupancy, its gradient, and what the immediate form misses."""

from __future__ import annotations

from typing import Any

import numpy as np

from opdtheory import gradients
from opdtheory.claims.opd_common import (
    COVERED,
    ENUMERATED,
    PROOFS,
    SEED,
    TABULAR,
    Responses,
    along_logits,
    derivative_at_zero,
    gradient,
    models,
    tilted,
)
from opdtheory.claims.sources import OPD
from opdtheory.elementary import log
from opdtheory.spaces import SMALL, WITH_EOS
from opdtheory.tabular import Policy, TeacherStudent, TokenTree
from opdtheory.verification.claim import Mutant
from opdtheory.verification.evidence import Evidence
from opdtheory.verification.identities import symbolic
from opdtheory.verification.registry import CATALOGUE, claim

_PROVED_AT = (*SMALL[1:4], WITH_EOS[0], WITH_EOS[2])


# ------------------------------------------------------------------------------------------- occupancy


def _value_of_contexts(x: TeacherStudent) -> np.ndarray:
    """f(s) = the teacher's probability of the first token, as (contexts[, batch]): any function of contexts would do."""
    return x.teacher.flat[0]


def _occupancy_sum(x: TeacherStudent, student: Policy, f: np.ndarray) -> Any:
    """Σ_s d(s) f(s), the occupancy from the forward recursion of ``student``."""
    return x.student._out((student.flat_occupancy * f).sum(axis=0))


def _occupancy_is_expected_length() -> Evidence:
    """The mass of the occupancy is E|y|, EOS counted."""
    gaps = [abs(float(np.sum(s.flat_occupancy)) - float(Responses(TeacherStudent(s.tree, q, s)).mean(_lengths(s)))) for s, q in models()]
    return Evidence("check", max(gaps) < 1e-10, f"total occupancy − E|y| over enumerated responses: {max(gaps):.0e}")


def _lengths(student: Policy) -> np.ndarray:
    return gradients.Paths(student.tree).alive.sum(axis=1)


@claim(
    "opd.lemma1", OPD, "Lemma 1", "Sums along trajectories are expectations under the occupancy",
    space=ENUMERATED, relation="==", sharpness="identity", checks=(_occupancy_is_expected_length,),
    hypotheses=("the occupancy is not normalised: its mass is the expected length, EOS counted",),
    proof=f"{PROOFS}#occupancy",
    proofs=(lambda: symbolic(CATALOGUE.get("opd.lemma1"), *_PROVED_AT),),
    sketch="Insert Σ_s 1[(x, y_{<t}) = s] = 1 and exchange the sums.",
    latex=r"\mathbb{E}\Big[\sum_{t<|y|}f(s_t)\Big]=\sum_s d(s)f(s),\qquad \sum_s d(s)=\mathbb{E}|y|",
    mutants=(
        Mutant("occupancy normalised", "dies", "the mass of d is the expected length",
               {"sides": lambda x: (_along_responses(x), _occupancy_sum(x, x.student, _value_of_contexts(x)) / x.expected_length_student)}),
        Mutant("teacher's occupancy", "dies", "the responses are the student's",
               {"sides": lambda x: (_along_responses(x), _occupancy_sum(x, x.teacher, _value_of_contexts(x)))}),
    ),
)  # fmt: skip
def lemma1(x: Any) -> tuple[Any, Any]:
    """The mean over responses of Σ_t f(s_t) is Σ_s d(s)f(s): every response written out, against the forward recursion of
    the occupancy (f(s) is here the teacher's probability of the first token)."""
    return _along_responses(x), _occupancy_sum(x, x.student, _value_of_contexts(x))


def _along_responses(x: Any) -> Any:
    y = Responses(x)
    return y.mean(y.visited(_value_of_contexts(x)).sum(axis=1))


def _theorem2() -> Evidence:
    """∇E_d[f] by central differences in every logit against the score-function form, f frozen."""
    rng = np.random.default_rng(SEED)
    worst = 0.0
    for student, _teacher in models(2):
        tree = student.tree
        f = [rng.normal(size=tree.contexts(t)) for t in range(tree.horizon)]
        logits = [np.log(np.asarray(level)) for level in student.levels]

        def value(z: list[np.ndarray], tree: TokenTree = tree, f: list[np.ndarray] = f) -> float:
            policy = Policy.from_logits(tree, z)
            return float(sum((np.asarray(d) * g).sum() for d, g in zip(policy.occupancy, f, strict=True)))

        later = _later_sums(student, f)
        h = 1e-5
        for t, level in enumerate(logits):
            for c, a in np.ndindex(level.shape):
                pair: list[float] = []
                for sign in (1, -1):
                    moved = [z.copy() for z in logits]
                    moved[t][c, a] += sign * h
                    pair.append(value(moved))
                worst = max(worst, abs((pair[0] - pair[1]) / (2 * h) - float(later[t][c, a])))
    return Evidence("check", worst < 1e-8, f"score form − finite differences: {worst:.0e}")


def _later_sums(student: Policy, f: list[np.ndarray]) -> list[np.ndarray]:
    """E[Σ_t (Σ_{t'>t} f(s_t')) ∇log p(a_t|s_t)] over tabular logits: d(s) p(a|s) (F(s, a) − F(s))."""
    tree = student.tree
    value: np.ndarray | None = None
    out: list[np.ndarray] = []
    keep = [a for a in range(tree.vocab) if a != tree.eos]
    for t in reversed(range(tree.horizon)):
        p = np.asarray(student.levels[t])
        quality = np.zeros_like(p)
        if value is not None:
            quality[..., keep] = value.reshape(*p.shape[:-1], tree.branching)
        mean = (p * quality).sum(axis=-1)
        out.append(np.asarray(student.occupancy[t])[..., None] * p * (quality - mean[..., None]))
        value = f[t] + mean
    return out[::-1]


def _slope_of_occupancy(x: TeacherStudent, f: np.ndarray) -> Any:
    """d/dε Σ_s d_ε(s) f(s) at ε = 0 along a direction of the logits, f frozen: a polynomial in ε, differentiated exactly."""
    v = Responses(x).direction()
    return derivative_at_zero(max(x.horizon - 1, 1), lambda k, n: _occupancy_sum(x, tilted(x, v, k, n), f))


def _score_form(x: Any, skip: int = 1) -> Any:
    """E[Σ_t (Σ_{k ≥ t+skip} f(s_k)) ⟨∇log p(a_t|s_t), v⟩], every response written out."""
    y = Responses(x)
    values, scores = y.visited(_value_of_contexts(x)), y.scores_along(y.direction())
    total = 0 * scores[:, 0]
    for t in range(x.horizon):
        for k in range(t + skip, x.horizon):
            total = total + scores[:, t] * values[:, k]
    return y.mean(total)


@claim(
    "opd.thm2", OPD, "Theorem 2", "Gradient of the occupancy",
    space=ENUMERATED, relation="==", sharpness="identity", checks=(_theorem2,),
    hypotheses=("f is frozen: the θ-dependence of f itself is not differentiated",),
    proof=f"{PROOFS}#occupancy",
    proofs=(lambda: symbolic(CATALOGUE.get("opd.thm2"), *_PROVED_AT[:2], *_PROVED_AT[3:4]),),
    sketch="Differentiate the trajectory law; values at or before t multiply a score of mean zero.",
    latex=r"\nabla\,\mathbb{E}_{d}[f]=\mathbb{E}\Big[\sum_t\Big(\sum_{t'>t}f(s_{t'})\Big)\nabla\log p(a_t|s_t)\Big]",
    note="With f = −KL frozen it is g₂ (opd.bias).",
    mutants=(
        Mutant("present value included", "survives", "f(s_t) multiplies a score of mean zero given s_t",
               {"sides": lambda x: (_slope_of_occupancy(x, _value_of_contexts(x)), _score_form(x, 0))}),
        Mutant("next value left out", "dies", "the next context depends on the token",
               {"sides": lambda x: (_slope_of_occupancy(x, _value_of_contexts(x)), _score_form(x, 2))}),
        Mutant("moving teacher", "dies", "f frozen at another function",
               {"sides": lambda x: (_slope_of_occupancy(x, 1 - _value_of_contexts(x)), _score_form(x))}),
    ),
)  # fmt: skip
def theorem2(x: Any) -> tuple[Any, Any]:
    """For f that does not depend on θ, ∇E_d[f] is the expected sum of later values f(s_t') times ∇log p(a_t|s_t). Here along a
    direction of the logits: the exact derivative of the forward recursion against every response written out."""
    return _slope_of_occupancy(x, _value_of_contexts(x)), _score_form(x)


# ------------------------------------------------------------------------------------------------ bias


def _bias_cases() -> Evidence:
    """Generic bias, none at T = 1, none at the teacher."""
    rng = np.random.default_rng(SEED)
    shares = []
    at_teacher = np.inf
    for horizon in (1, 3):
        tree = TokenTree(vocab=3, horizon=horizon)
        p, q = ([rng.dirichlet(np.ones(3), size=(200, tree.contexts(t))) for t in range(horizon)] for _ in range(2))
        x = TeacherStudent.from_levels(tree, teacher=q, student=p, validate=False)
        bias = gradients.tabular_moments(x.student, x.teacher, "immediate")
        shares.append(np.asarray(bias.bias2))
        if horizon == 3:
            same = TeacherStudent.from_levels(tree, teacher=p, student=p, validate=False)
            at_teacher = float(np.max(gradients.tabular_moments(same.student, same.teacher, "immediate").bias2))
    ok = float(shares[0].max()) < 1e-20 and float(shares[1].min()) > 1e-8 and at_teacher < 1e-20
    detail = f"bias² at T = 1: {shares[0].max():.0e}; at T = 3: from {shares[1].min():.1e} (200 pairs); at p = q: {at_teacher:.0e}"
    return Evidence("check", ok, detail)


def _three_parts(x: Any) -> tuple[Any, Any, Any]:
    """⟨g₁, v⟩ over enumerated responses, ⟨g₂, v⟩ from the derivative of the occupancy, ⟨∇V, v⟩ from backward induction."""
    y = Responses(x)
    v = y.direction()
    first = y.mean((y.rewards * y.scores_along(v)).sum(axis=1))
    kl = (x.student.flat * log(x.student.flat / x.teacher.flat)).sum(axis=0)
    second = -_slope_of_occupancy(x, kl)
    return first, second, along_logits(x, v, gradient(x))


def _share(x: Any, g2: int) -> tuple[Any, Any]:
    first, second, whole = _three_parts(x)
    return first + g2 * second, whole


@claim(
    "opd.bias", OPD, "section 1.3, g₁ and g₂", "The immediate form misses exactly g₂",
    space=ENUMERATED, relation="==", sharpness="identity", checks=(_bias_cases,), depends_on=("opd.thm1.ii", "opd.thm2"),
    hypotheses=(COVERED, TABULAR),
    proof=f"{PROOFS}#bias",
    sketch="∇V = Σ d(s)∇(−KL)(s) + Σ ∇d(s)(−KL(s)); the first sum is the mean of the immediate form.",
    latex=r"\nabla V-g_1=g_2=-\sum_s\nabla d(s)\,\mathrm{KL}(s)",
    mutants=(
        Mutant("g₂ left out", "dies", "the immediate form is biased", {"sides": lambda x: _share(x, 0)}),
        Mutant("g₂ twice", "dies", "g₂ is the bias, not half of it", {"sides": lambda x: _share(x, 2)}),
    ),
)  # fmt: skip
def bias(x: Any) -> tuple[Any, Any]:
    """The mean of the immediate form (every response written out) plus g₂ (the derivative of the occupancy, the KLs frozen) is
    ∇V (backward induction), along a direction of the logits."""
    return _share(x, 1)
