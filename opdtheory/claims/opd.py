"""Theory of On-Policy Distillation: objective, five advantage forms, bias, variance, stationary points."""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

import numpy as np
from sympy import QQ
from sympy.polys.fields import field

from opdtheory import gradients, spaces
from opdtheory.claims.sources import OPD
from opdtheory.elementary import log, minimum
from opdtheory.spaces import Box, Simplex, Size, Space
from opdtheory.tabular import Policy, TeacherStudent, TokenTree
from opdtheory.tabular.shared import OneLogitStudent
from opdtheory.verification.blocks import Block, Values
from opdtheory.verification.claim import Mutant
from opdtheory.verification.evidence import Evidence
from opdtheory.verification.registry import claim, entry

ANY_LENGTH = spaces.SMALL + spaces.WITH_EOS
STUDENTS = spaces.teacher_students(sizes=ANY_LENGTH)
SHORT = spaces.teacher_students(sizes=tuple(s for s in spaces.SMALL if s["horizon"] <= 2))
LONGER = spaces.teacher_students(sizes=tuple(s for s in spaces.SMALL if s["horizon"] >= 2))
_SEED = 11
_SMOOTHING = (4, 5)  # a fifth of the mass is spread evenly, so that every probability exceeds 1/(5V)
_MICRO = 10**6


def _smooth(level: Any) -> Any:
    keep, of = _SMOOTHING
    vocab = level.shape[-1]
    return (keep * level) / of + (level * 0 + 1) * (of - keep) / (of * vocab)


def interior_students(sizes: tuple[Size, ...]) -> Space:
    """Teachers and tabular students whose probabilities all exceed 1/(5V)."""
    plain = spaces.teacher_students(sizes=sizes)

    def build(b: Values, **size: Any) -> TeacherStudent:
        return plain.build({k: _smooth(v) for k, v in b.items()}, **size)

    return Space(kind=plain.kind, sizes=sizes, blocks=plain.blocks, build=build, serialise=plain.serialise,
                 structure=plain.structure, pairs=plain.pairs, conditions=plain.conditions,
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
        description="students with one logit shared by all contexts",
    )  # fmt: skip


TWO_STEPS = tuple(s for s in spaces.SMALL if s["horizon"] <= 2)
ONE_LOGIT = one_logit_students(tuple(s for s in spaces.SMALL if s["horizon"] == 2))


@cache
def _models(count: int = 6) -> tuple[tuple[Policy, Policy], ...]:
    """A few random student–teacher pairs on trees with and without EOS, for checks that enumerate or sample."""
    rng = np.random.default_rng(_SEED)
    out = []
    for i in range(count):
        tree = TokenTree(vocab=3, horizon=3, eos=2 if i % 2 else None)
        levels = [[rng.dirichlet(np.ones(3), size=tree.contexts(t)) for t in range(3)] for _ in range(2)]
        out.append((Policy.from_probs(tree, levels[0]), Policy.from_probs(tree, levels[1])))
    return tuple(out)


# ------------------------------------------------------------------------------------------- objective


def _entropy_form() -> Evidence:
    """E[Σ log q(a_t|s_t) + H(p(·|s_t))] equals η, but not sequence by sequence."""
    worst, apart = 0.0, 0.0
    for student, teacher in _models():
        paths = gradients.Paths(student.tree)
        law = np.asarray(student.flat_sequence_law)
        log_q = paths.along(np.log(teacher.flat))
        log_p = paths.along(np.log(student.flat))
        entropy = paths.contexts(-(student.flat * np.log(student.flat)).sum(axis=0))
        regularised, ratio = (log_q + entropy).sum(axis=-1), (log_q - log_p).sum(axis=-1)
        eta = float(TeacherStudent(student.tree, teacher, student).eta)
        worst = max(worst, abs(float(law @ regularised) - eta))
        apart = max(apart, float(np.abs(regularised - ratio).max()))
    detail = f"means agree within {worst:.0e}; single sequences differ by up to {apart:.2g} nats"
    return Evidence("check", worst < 1e-10 and apart > 0.1, detail)


@claim(
    "opd.obj", OPD, "Eqs 1–4", "The objective as a sum of token log ratios",
    space=STUDENTS, relation="==", sharpness="identity", checks=(_entropy_form,),
    hypotheses=("supp student ⊆ supp teacher", "EOS counted as a token"),
    sketch="Chain rule of KL along the sequence. The entropy-regularised form replaces −log p(a|s) by its mean given s and so agrees in expectation only.",
    latex=r"\mathrm{KL}(p\|q)=-\mathbb{E}_{y\sim p}\Big[\sum_{t<|y|}\log\frac{q(a_t|s_t)}{p(a_t|s_t)}\Big]",
)  # fmt: skip
def objective(x: Any) -> tuple[Any, Any]:
    """The reverse KL of sequences equals minus the expected sum of token log ratios under the student (here: the KL of
    the sequence laws against the occupancy-weighted sum of token KLs)."""
    law_p, law_q = (_flat_law(policy) for policy in (x.student, x.teacher))
    return (law_p * log(law_p / law_q)).sum(axis=-1), x.kl_student_teacher_seq


def _flat_law(policy: Policy) -> Any:
    law = np.asarray(policy.flat_sequence_law)
    return np.moveaxis(law, 0, -1) if law.ndim > 1 else law


# ------------------------------------------------------------------------------------------ Theorem 1


@claim(
    "opd.thm1.i", OPD, "Theorem 1 (i)", "Sum of log ratios as a quotient of logarithms",
    space=spaces.scalars(q=(0.01, 0.99), p=(0.01, 0.99)), relation="==", misprint=True, corrected_by=("opd.thm1.i/intended",),
    sketch="Σ log(q/p) = log q(y) − log p(y) = log(q(y)/p(y)); the printed right-hand side divides the two logarithms instead.",
    note="Evidently a slip: the proof uses log(q(y)/p(y)).",
    latex=r"\sum_t\log\frac{q(a_t|s_t)}{p(a_t|s_t)}\overset{?}{=}\frac{\log q(y)}{\log p(y)}",
)  # fmt: skip
def thm1_i(s: Any) -> tuple[Any, Any]:
    """The log ratio of a whole trajectory equals log q(y) divided by log p(y)."""
    return log(s.q) - log(s.p), log(s.q) / log(s.p)


def _form_gap(x: Any, form: str) -> Any:
    """Squared distance of the form's exact mean from ∇V, both over all tabular logits."""
    moments = gradients.tabular_moments(x.student, x.teacher, form)
    difference = moments.mean - _gradient(x)
    return (difference * difference).sum(axis=-1)


def _gradient(x: Any) -> Any:
    """∇V by the chain rule through the occupancy: −Σ_s [d(s) ∇KL(s) + ∇d(s) KL(s)], without any advantage form.

    For tabular softmax ∂V/∂z(s, a) = d(s) p(a|s) (Q(s, a) − V(s)) with Q from backward induction on the token rewards,
    which is computed here level by level from the values of the children.
    """
    tree = x.tree
    student, teacher = x.student.levels, x.teacher.levels
    occupancy = x.student.occupancy
    value: Any = None
    parts = []
    for t in reversed(range(tree.horizon)):
        p, q = student[t], teacher[t]
        quality = log(q / p)
        if value is not None:
            shape = (*p.shape[:-1], tree.branching)
            later = value.reshape(shape)
            keep = [a for a in range(tree.vocab) if a != tree.eos]
            quality = quality.copy()
            quality[..., keep] = quality[..., keep] + later
        value = (p * quality).sum(axis=-1)
        advantage = quality - value[..., None]
        grad = occupancy[t][..., None] * p * advantage
        parts.append(grad.reshape(*grad.shape[:-2], -1))
    return np.concatenate(parts[::-1], axis=-1)


def _enumerated_and_sampled(form: str) -> Any:
    """The form's mean by enumerating all sequences, and by Monte Carlo within five standard errors."""

    def run() -> Evidence:
        worst, z = 0.0, 0.0
        for i, (student, teacher) in enumerate(_models()):
            parameters = gradients.TabularLogits(student.tree)
            theta = parameters.order(np.log(student.flat))
            exact_mean = gradients.enumerated_moments(parameters, theta, teacher, form)
            worst = max(worst, float(np.abs(exact_mean.mean - exact_mean.target).max()))
            if i < 2:
                sample = gradients.sampled_gradient(parameters, theta, teacher, form, 20000, seed=_SEED + i)
                moving = sample.standard_error > 1e-12
                z = max(z, float(np.abs((sample.mean - exact_mean.target)[moving] / sample.standard_error[moving]).max()))
        return Evidence("check", worst < 1e-10 and z < 5, f"enumerated mean − ∇V: {worst:.0e}; largest Monte Carlo z-score {z:.1f}")

    run.__name__ = f"enumeration and sampling of form {form}"
    return run


def _symbolic_form(form: str) -> Any:
    """E[Σ_t Â_t ∇log p(a_t|s_t)] = d(s) p(a|s) (Q(s, a) − V(s)), identically in probabilities and log ratios.

    Both are free symbols: the identity needs nothing of r = log(q/p) but that its own gradient has mean zero,
    which is the statement E_p[∇log p] = 0.
    """

    def run() -> Evidence:
        done = []
        for vocab, horizon in ((2, 2), (3, 2), (2, 3)):
            contexts = [c for t in range(horizon) for c in product(range(vocab), repeat=t)]
            count = len(contexts) * (2 * vocab - 1)
            _, *symbols = field([f"x{i}" for i in range(count)], QQ)
            supply = iter(symbols)
            one = symbols[0].field.one
            p: dict[Any, list[Any]] = {}
            r: dict[Any, list[Any]] = {}
            for c in contexts:
                free = [next(supply) for _ in range(vocab - 1)]
                p[c] = [*free, one - sum(free, one - one)]
                r[c] = [next(supply) for _ in range(vocab)]
            mean = {c: sum((a * b for a, b in zip(p[c], r[c], strict=True)), one - one) for c in contexts}
            got = {(c, a): one - one for c in contexts for a in range(vocab)}
            for y in product(range(vocab), repeat=horizon):
                law = one
                for t in range(horizon):
                    law = law * p[y[:t]][y[t]]
                reward = [r[y[:t]][y[t]] for t in range(horizon)]
                for t in range(horizon):
                    c = y[:t]
                    if form == "i":
                        advantage = sum(reward, one - one)
                    elif form in ("iv", "v"):
                        advantage = reward[t] + sum((mean[y[:u]] for u in range(t + 1, horizon)), one - one)
                    else:
                        advantage = sum(reward[t:], one - one)
                    if form in ("iii", "v"):
                        advantage = advantage - mean[c]  # a baseline of the state
                    for a in range(vocab):
                        got[c, a] = got[c, a] + law * advantage * ((one if a == y[t] else one - one) - p[c][a])
            quality: dict[Any, list[Any]] = {}
            value: dict[Any, Any] = {}
            for c in reversed(contexts):
                quality[c] = [r[c][a] + value.get((*c, a), one - one) for a in range(vocab)]
                value[c] = sum((x * y for x, y in zip(p[c], quality[c], strict=True)), one - one)
            occupancy: dict[tuple[int, ...], Any] = {(): one}
            for c in contexts[1:]:
                occupancy[c] = occupancy[c[:-1]] * p[c[:-1]][c[-1]]
            for (c, a), component in got.items():
                if component != occupancy[c] * p[c][a] * (quality[c][a] - value[c]):
                    return Evidence("symbolic", False, f"component {c}, {a} differs at V={vocab}, T={horizon}")
            done.append(f"(V={vocab}, T={horizon}; {count} variables)")
        return Evidence("symbolic", True, "policy-gradient identity with log ratios as free symbols at " + ", ".join(done))

    run.__name__ = f"symbolic identity of form {form}"
    return run


_FORMS = {
    "i": ("opd.thm1.i/intended", "all log ratios of the trajectory", "E_p[∇log p(y)] = 0, so the score function identity applies to log(q(y)/p(y)) itself."),
    "ii": ("opd.thm1.ii", "the log-ratio-to-go", "Earlier rewards are fixed given s_t and E[∇log p(a_t|s_t)|s_t] = 0."),
    "iii": ("opd.thm1.iii", "the log-ratio-to-go minus a baseline", "A function of s_t alone multiplies a score of mean zero."),
    "iv": ("opd.thm1.iv", "the log ratio minus later token KLs", "Each later log ratio is replaced by its mean given its context."),
    "v": ("opd.thm1.v", "form (iv) minus a baseline", "As (iv), and a baseline does not matter."),
}  # fmt: skip
for _form, (_id, _what, _why) in _FORMS.items():
    entry(
        _id, OPD, f"Theorem 1 ({_form})", f"Unbiased policy gradient with {_what}",
        statement=f"With {_what} as the advantage, the expected policy gradient is ∇V, for every tabular student and teacher and any length.",
        space=STUDENTS, relation="==", sharpness="identity", sketch=_why,
        sides=lambda x, form=_form: (_form_gap(x, form), 0), checks=(_enumerated_and_sampled(_form),),
        proofs=(_symbolic_form(_form),),
        hypotheses=("supp student ⊆ supp teacher",),
    )  # fmt: skip


def _reinforce() -> Evidence:
    """E[−∇ of the REINFORCE loss] with stopped advantages, by Monte Carlo at several batch sizes' worth of samples."""
    return _enumerated_and_sampled("ii")()


entry(
    "opd.reinforce", OPD, "Eq 6", "REINFORCE with the log-ratio-to-go is unbiased",
    statement="The gradient of −(1/N) Σ Σ_t sg(Â_t) log p(a_t|s_t) has mean −∇V.",
    space=STUDENTS, relation="==", sharpness="identity", checks=(_reinforce,), depends_on=("opd.thm1.ii",),
    sides=lambda x: (_form_gap(x, "ii"), 0),
    sketch="Linearity of the expectation over the N trajectories and Theorem 1.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ bias


def _bias_cases() -> Evidence:
    """Generic bias, none at T = 1, none at the teacher."""
    rng = np.random.default_rng(_SEED)
    shares = []
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


@claim(
    "opd.bias", OPD, "section 1.3, g₁ and g₂", "The immediate form misses exactly g₂",
    space=STUDENTS, relation="==", sharpness="identity", checks=(_bias_cases,), depends_on=("opd.thm1.ii",),
    sketch="∇V = Σ d(s)∇(−KL)(s) + Σ ∇d(s)(−KL(s)); the first sum is the mean of the immediate form.",
    latex=r"\nabla V-g_1=g_2=-\sum_s\nabla d(s)\,\mathrm{KL}(s)",
)  # fmt: skip
def bias(x: Any) -> tuple[Any, Any]:
    """The mean of the immediate form plus g₂, the gradient through the occupancy, is ∇V (as a squared distance)."""
    parts = [a + b - c for a, b, c in zip(gradients.immediate_part(x.student, x.teacher), gradients.bias_part(x.student, x.teacher), _by_level(x), strict=True)]
    return sum((d * d).sum(axis=(-1, -2)) for d in parts), 0


def _by_level(x: Any) -> list[Any]:
    flat = _gradient(x)
    out, start = [], 0
    for t in range(x.tree.horizon):
        contexts, vocab = x.tree.level_shape(t)
        out.append(flat[..., start : start + contexts * vocab].reshape(*flat.shape[:-1], contexts, vocab))
        start += contexts * vocab
    return out


def _lemma1() -> Evidence:
    """E[Σ f(s_t)] by enumeration against Σ d(s) f(s), f random."""
    rng = np.random.default_rng(_SEED)
    worst, masses = 0.0, []
    for student, _teacher in _models():
        paths = gradients.Paths(student.tree)
        f = rng.normal(size=(student.flat.shape[-1],))
        law = np.asarray(student.flat_sequence_law)
        direct = float(law @ paths.contexts(f).sum(axis=-1))
        weighted = float((np.asarray(student.flat_occupancy) * f).sum())
        worst = max(worst, abs(direct - weighted))
        masses.append(abs(float(np.sum(student.flat_occupancy)) - float(student.expected_length)))
    return Evidence("check", worst < 1e-10 and max(masses) < 1e-10, f"largest difference {worst:.0e}; total occupancy − E|y|: {max(masses):.0e}")


@claim(
    "opd.lemma1", OPD, "Lemma 1", "Sums along trajectories are expectations under the occupancy",
    space=STUDENTS, relation="==", sharpness="identity", checks=(_lemma1,),
    hypotheses=("the occupancy is not normalised: its mass is the expected length, EOS counted",),
    sketch="Insert Σ_s 1[(x, y_{<t}) = s] = 1 and exchange the sums.",
    latex=r"\mathbb{E}\Big[\sum_{t<|y|}f(s_t)\Big]=\sum_s d(s)f(s),\qquad \sum_s d(s)=\mathbb{E}|y|",
)  # fmt: skip
def lemma1(x: Any) -> tuple[Any, Any]:
    """The occupancy's total mass is the expected length (f = 1); the check takes random f."""
    return sum(level.sum(axis=-1) for level in x.student.occupancy), x.expected_length_student


def _theorem2() -> Evidence:
    """∇E_d[f] by central differences in every logit against the score-function form, f frozen."""
    rng = np.random.default_rng(_SEED)
    worst = 0.0
    for student, _teacher in _models(2):
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
                pair = []
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


entry(
    "opd.thm2", OPD, "Theorem 2", "Gradient of the occupancy",
    statement="For f that does not depend on θ, ∇E_d[f] is the expected sum of later values f(s_t') times ∇log p(a_t|s_t); with f = −KL frozen it is g₂ and g₁ + g₂ = ∇V.",
    space=STUDENTS, relation="==", sharpness="identity", checks=(_theorem2,), sides=bias.sides,
    hypotheses=("f is frozen: the θ-dependence of f itself is not differentiated",),
    sketch="Differentiate the trajectory law; values at or before t multiply a score of mean zero.",
    latex=r"\nabla\,\mathbb{E}_{d}[f]=\mathbb{E}\Big[\sum_t\Big(\sum_{t'>t}f(s_{t'})\Big)\nabla\log p(a_t|s_t)\Big]",
)  # fmt: skip


# -------------------------------------------------------------------------------------------- variance


@claim(
    "opd.var-table", OPD, "table of section 2.4", "The immediate form has the lower variance",
    space=LONGER, relation="<=", corrected_by=("opd.var-criterion",),
    sketch="Later log ratios can cancel the immediate one: with G = s(r + F), Var(G) − Var(sr) = Var(sF) + 2Cov(sr, sF), and the covariance can be negative enough.",
    note="The source argues that fewer random variables give less variance; variables may cancel.",
    latex=r"\mathrm{Var}(\hat g_{\mathrm{imm}})\le\mathrm{Var}(\hat g_{\mathrm{togo}})",
)  # fmt: skip
def var_table(x: Any) -> tuple[Any, Any]:
    """The trace of the covariance of one sample's gradient is at most as large for the immediate form as for the log-ratio-to-go."""
    return x.gradient_variance("immediate"), x.gradient_variance("ii")


def _criterion() -> Evidence:
    """Var(sr + sF) = Var(sr) + Var(sF) + 2 Cov by enumeration, and its sign against the order of the variances."""
    rng = np.random.default_rng(_SEED)
    agree, flips, total = 0.0, 0, 0
    tree = TokenTree(vocab=2, horizon=2)
    parameters = gradients.TabularLogits(tree)
    for _ in range(300):
        levels = [[rng.dirichlet(np.full(2, 0.4), size=tree.contexts(t)) for t in range(2)] for _ in range(2)]
        student, teacher = (Policy.from_probs(tree, level) for level in levels)
        theta = parameters.order(np.log(student.flat))
        law, now = gradients.sequence_gradients(parameters, theta, teacher, "immediate")
        _, togo = gradients.sequence_gradients(parameters, theta, teacher, "ii")
        later = togo - now

        def covariance(a: np.ndarray, b: np.ndarray, law: np.ndarray = law) -> float:
            return float(law @ (a * b).sum(axis=1) - (law @ a) @ (law @ b))

        difference = covariance(togo, togo) - covariance(now, now)
        criterion = covariance(later, later) + 2 * covariance(now, later)
        agree = max(agree, abs(difference - criterion) / (1 + abs(difference)))
        flips += criterion < 0
        total += 1
    detail = f"criterion = difference within {agree:.0e}; the immediate form is the noisier one in {flips} of {total} random pairs (V = 2, T = 2)"
    return Evidence("check", agree < 1e-9 and 0 < flips < total, detail)


entry(
    "opd.var-criterion", OPD, "section 2.4, made exact", "When the immediate form is the quieter one",
    nature="ours", space=LONGER, relation="==", sharpness="identity", checks=(_criterion,),
    statement="Var(to-go) − Var(immediate) = Var(sF) + 2 Cov(sr, sF), s the score, r the token's log ratio, F the later ones: the immediate form is quieter iff this is non-negative.",
    sides=lambda x: (x.gradient_variance("ii"), x.gradient_second_moment("ii") - x.gradient_norm2("ii")),
    sketch="Bilinearity of the covariance.",
)  # fmt: skip


@claim(
    "opd.iv-vs-ii", OPD, "forms (ii) and (iv), Rao–Blackwell intuition", "Form (iv) has at most the variance of (ii)",
    space=LONGER, relation="<=", corrected_by=("opd.rao-blackwell", "opd.iv-vs-ii/t2"),
    sketch="Replacing a later log ratio by its conditional mean is Rao–Blackwell for that term alone; the sum with the correlated later scores is not a conditional expectation of the "
    "whole estimator, and from T = 3 on its variance can grow.",
    note="Implied by the order in which the source lists the forms; read as a comparison of the covariance traces of one sample.",
    latex=r"\mathrm{Var}(\hat g_{(iv)})\le\mathrm{Var}(\hat g_{(ii)})",
)  # fmt: skip
def iv_vs_ii(x: Any) -> tuple[Any, Any]:
    """The trace of the covariance of form (iv) is at most that of form (ii)."""
    return x.gradient_variance("iv"), x.gradient_variance("ii")


@claim(
    "opd.iv-vs-ii/t2", OPD, "forms (ii) and (iv) at T ≤ 2", "For two tokens and a tabular student (iv) is at most as noisy as (ii)",
    nature="ours", space=SHORT, relation="<=", sharpness="tight",
    sketch="At T = 2 form (iv) is E[form (ii) | s₁, a₁, s₂] in the first score and equal in the second, and tabular scores of different contexts are orthogonal coordinates.",
)  # fmt: skip
def iv_vs_ii_short(x: Any) -> tuple[Any, Any]:
    """At T ≤ 2 with a tabular student, the covariance trace of form (iv) is at most that of form (ii)."""
    return x.gradient_variance("iv"), x.gradient_variance("ii")


@claim(
    "opd.rao-blackwell", OPD, "forms (i)–(v), the minimal one", "The conditional mean given (s_t, a_t) is minimal per token",
    nature="ours", space=STUDENTS, relation="<=", sharpness="tight",
    sketch="Given (s_t, a_t) the score is fixed, so E‖sÂ‖² is smallest for Â = E[Â|s_t, a_t] = r_t + V(s_{t+1}); scores of different contexts are orthogonal for tabular softmax, so "
    "the second moments add up over contexts.",
    latex=r"\mathbb{E}\|\hat g_{r+V}\|^2\le\mathbb{E}\|\hat g_{(ii)}\|^2,\ \mathbb{E}\|\hat g_{(iv)}\|^2",
    mutants=(Mutant("against the immediate form", "dies", "the immediate form is biased and can be smaller",
                    {"sides": lambda x: (x.gradient_second_moment("value"), x.gradient_second_moment("immediate"))}),),
)  # fmt: skip
def rao_blackwell(x: Any) -> tuple[Any, Any]:
    """For tabular students, s_t(r_t + V(s_{t+1})) has at most the second moment of form (ii) and of form (iv)."""
    return x.gradient_second_moment("value"), minimum(x.gradient_second_moment("ii"), x.gradient_second_moment("iv"))


# ------------------------------------------------------------------------------------------ Theorem 3


def _small_gradient(estimator: str) -> Any:
    return lambda x: [(_MICRO * x.gradient_norm2(estimator), "<", 1)]


def _near_optimal(x: Any) -> tuple[Any, Any]:
    return 100 * x.kl_student_teacher_seq, 1


def _vertex_is_stationary() -> Evidence:
    """A deterministic student has zero scores in expectation: stationary whatever the teacher."""
    tree = TokenTree(vocab=2, horizon=2)
    student = Policy.deterministic(tree, [[0], [0, 0]])
    teacher = Policy.uniform(tree)
    x = TeacherStudent(tree, teacher, student)
    norms = [float(x.gradient_norm2(e)) for e in ("immediate", "ii")]
    kl = float(x.kl_student_teacher_seq)
    return Evidence("check", max(norms) == 0.0 and kl > 1, f"deterministic student: gradients {norms}, KL {kl:.3f} nats")


def _two_teachers() -> Evidence:
    """Two teachers for one prompt, drawn with equal odds: the mean field vanishes at a student that is neither."""
    q = np.array([[0.9, 0.1], [0.1, 0.9]])
    p = np.array([0.5, 0.5])
    reward = np.log(q / p)
    field = (p * (reward - (p * reward).sum(-1, keepdims=True))).mean(0)
    kl = (p * np.log(p / q)).sum(-1)
    return Evidence("check", float(np.abs(field).max()) < 1e-15 and float(kl.min()) > 0.1, f"field {np.abs(field).max():.0e} at KLs {kl.round(3).tolist()}")


for _which, _name, _estimator in (("imm", "immediate log ratio", "immediate"), ("togo", "log-ratio-to-go", "ii")):
    entry(
        f"opd.thm3.{_which}", OPD, f"Theorem 3, {_name}", f"Stationary points of the {_name} are optimal",
        statement=f"If the mean gradient with the {_name} vanishes, the student is the teacher. Checked with a margin: where all probabilities exceed 1/(5V) and T ≤ 2, "
        "‖g‖² < 10⁻⁶ implies KL(student‖teacher) < 1/100.",
        space=interior_students(TWO_STEPS), sides=_near_optimal, given=_small_gradient(_estimator), signed=True,
        assumption="tabular softmax inside the simplex, with one full-support teacher fixed by the state",
        unassumed={"space": ONE_LOGIT},
        checks=(_vertex_is_stationary, _two_teachers),
        hypotheses=("finite logits", "full-support teacher", "one teacher per state"),
        sketch="Tabular logits of different contexts are separate coordinates. Immediate: d(s)∇KL(s) = 0 with d(s) > 0 and full support forces p(·|s) = q(·|s). To-go: backwards from the last "
        "level, where the values are −KL; Q − V = 0 level by level. With one logit for all contexts the contributions of contexts cancel: g₁ = 0 although ∇V ≠ 0.",
        note="A small gradient is not near-optimality either: the smallest d(s) divides the bound. At vertices of the simplex every gradient vanishes.",
    )  # fmt: skip


# -------------------------------------------------------------------------------------------- frontier


def _lambda_ends() -> Evidence:
    """The λ-family joins the two forms: its ends are the immediate form and (ii), bias² falls to 0 and is positive inside."""
    student, teacher = _models()[0]
    lams = (0.0, 0.25, 0.5, 0.75, 1.0)
    rows = [gradients.tabular_moments(student, teacher, gradients.Estimator(lam=lam)) for lam in lams]
    ends = [gradients.tabular_moments(student, teacher, name) for name in ("immediate", "ii")]
    gap = max(abs(float(rows[i].second_moment) - float(end.second_moment)) for i, end in ((0, ends[0]), (-1, ends[1])))
    biases = [float(row.bias2) for row in rows]
    ok = gap < 1e-12 and biases[-1] < 1e-20 and all(b > 0 for b in biases[:-1])
    crossing = float(gradients.crossover(rows[0], rows[-1]))
    detail = f"bias² over λ: {', '.join(f'{b:.2e}' for b in biases)}; unbiased wins from N = {crossing:.1f} samples on"
    return Evidence("check", ok, detail)


@claim(
    "opd.frontier", OPD, "between the two rows of the table", "Mean squared error of N samples along the λ-family",
    nature="ours", space=LONGER, relation="==", sharpness="identity", checks=(_lambda_ends,),
    sketch="MSE_N = bias² + Var/N for the mean of N independent samples; the biased form wins exactly for N < (Var_unbiased − Var_biased)/bias².",
    latex=r"\mathrm{MSE}_N(\lambda)=\|\mathbb{E}\hat g_\lambda-\nabla V\|^2+\mathrm{Var}(\hat g_\lambda)/N",
)  # fmt: skip
def frontier(x: Any) -> tuple[Any, Any]:
    """The exact mean squared error of one immediate sample is its second moment around ∇V."""
    moments = gradients.tabular_moments(x.student, x.teacher, "immediate")
    cross = (moments.mean * moments.target).sum(axis=-1)
    around = moments.second_moment - 2 * cross + (moments.target * moments.target).sum(axis=-1)
    return moments.mse(1), around
