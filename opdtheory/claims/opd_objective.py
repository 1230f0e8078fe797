"""Theory of On-Policy Distillation: the objective, the five advantage forms of Theorem 1, and REINFORCE."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from sympy import QQ
from sympy.polys.fields import field

from opdtheory import gradients, spaces
from opdtheory.claims.opd_common import (
    ANY_LENGTH,
    COVERED,
    PAIRS,
    PROOFS,
    SEED,
    STUDENTS,
    Responses,
    along_logits,
    gradient,
    models,
)
from opdtheory.claims.sources import OPD
from opdtheory.elementary import exact, log
from opdtheory.tabular import Policy, TeacherStudent
from opdtheory.verification.claim import Mutant
from opdtheory.verification.evidence import Evidence
from opdtheory.verification.registry import claim, entry

# ------------------------------------------------------------------------------------------- objective


def _entropy_form() -> Evidence:
    """E[Σ log q(a_t|s_t) + H(p(·|s_t))] equals η, but not sequence by sequence."""
    worst, apart = 0.0, 0.0
    for student, teacher in models():
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


def _whole_response_kl(x: TeacherStudent) -> Any:
    law_p, law_q = (_flat_law(policy) for policy in (x.student, x.teacher))
    return (law_p * log(law_p / law_q)).sum(axis=-1)


@claim(
    "opd.obj", OPD, "Eqs 1–4", "The objective as a sum of token log ratios",
    space=STUDENTS, relation="==", sharpness="identity", checks=(_entropy_form,),
    hypotheses=(COVERED, "EOS counted as a token"),
    proof=f"{PROOFS}#obj",
    sketch="Chain rule of KL along the sequence. The entropy-regularised form replaces −log p(a|s) by its mean given s and so agrees in expectation only.",
    latex=r"\mathrm{KL}(p\|q)=-\mathbb{E}_{y\sim p}\Big[\sum_{t<|y|}\log\frac{q(a_t|s_t)}{p(a_t|s_t)}\Big]",
    mutants=(
        Mutant("teacher's responses", "dies", "KL(q‖p) is another divergence",
               {"sides": lambda x: (_whole_response_kl(x), x.kl_teacher_student_seq)}),
        Mutant("mean over tokens", "dies", "the objective sums over tokens",
               {"sides": lambda x: (_whole_response_kl(x), x.kl_student_teacher_seq / x.expected_length_student)}),
    ),
)  # fmt: skip
def objective(x: Any) -> tuple[Any, Any]:
    """The reverse KL of sequences equals minus the expected sum of token log ratios under the student (here: the KL of
    the sequence laws against the occupancy-weighted sum of token KLs)."""
    return _whole_response_kl(x), x.kl_student_teacher_seq


def _flat_law(policy: Policy) -> Any:
    law = np.asarray(policy.flat_sequence_law)
    return np.moveaxis(law, 0, -1) if law.ndim > 1 else law


# ------------------------------------------------------------------------------------------ Theorem 1


@claim(
    "opd.thm1.i", OPD, "Theorem 1 (i)", "Sum of log ratios as a quotient of logarithms",
    space=spaces.scalars(q=(0.01, 0.99), p=(0.01, 0.99)), relation="==", misprint=True, corrected_by=("opd.thm1.i/intended",),
    hypotheses=("q and p the probabilities of one whole trajectory",),
    sketch="Σ log(q/p) = log q(y) − log p(y) = log(q(y)/p(y)); the printed right-hand side divides the two logarithms instead.",
    note="Evidently a slip: the proof uses log(q(y)/p(y)).",
    latex=r"\sum_t\log\frac{q(a_t|s_t)}{p(a_t|s_t)}\overset{?}{=}\frac{\log q(y)}{\log p(y)}",
)  # fmt: skip
def thm1_i(s: Any) -> tuple[Any, Any]:
    """The log ratio of a whole trajectory equals log q(y) divided by log p(y)."""
    return log(s.q) - log(s.p), log(s.q) / log(s.p)


def _mean_and_gradient(x: Any, estimator: Any) -> tuple[Any, Any]:
    """An estimator's exact mean and ∇V, both along one direction of the tabular logits."""
    v = Responses(x).direction()
    return along_logits(x, v, gradients.tabular_moments(x.student, x.teacher, estimator).mean), along_logits(x, v, gradient(x))


def _enumerated_and_sampled(form: str) -> Any:
    """The form's mean by enumerating all sequences, and by Monte Carlo within five standard errors."""

    def run() -> Evidence:
        worst, z = 0.0, 0.0
        for i, (student, teacher) in enumerate(models()):
            parameters = gradients.TabularLogits(student.tree)
            theta = parameters.order(np.log(student.flat))
            exact_mean = gradients.enumerated_moments(parameters, theta, teacher, form)
            worst = max(worst, float(np.abs(exact_mean.mean - exact_mean.target).max()))
            if i < 2:
                sample = gradients.sampled_gradient(parameters, theta, teacher, form, 20000, seed=SEED + i)
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
    "i": ("opd.thm1.i/intended", "all log ratios of the trajectory", r"\sum_kr_k", "E_p[∇log p(y)] = 0, so the score function identity applies to log(q(y)/p(y)) itself."),
    "ii": ("opd.thm1.ii", "the log-ratio-to-go", r"\sum_{k\ge t}r_k", "Earlier rewards are fixed given s_t and E[∇log p(a_t|s_t)|s_t] = 0."),
    "iii": ("opd.thm1.iii", "the log-ratio-to-go minus a baseline", r"\sum_{k\ge t}r_k-b(s_t)", "A function of s_t alone multiplies a score of mean zero."),
    "iv": ("opd.thm1.iv", "the log ratio minus later token KLs", r"r_t-\sum_{k>t}\mathrm{KL}(s_k)", "Each later log ratio is replaced by its mean given its context."),
    "v": ("opd.thm1.v", "form (iv) minus a baseline", r"r_t-\sum_{k>t}\mathrm{KL}(s_k)-b(s_t)", "As (iv), and a baseline does not matter."),
}  # fmt: skip
for _form, (_id, _what, _advantage, _why) in _FORMS.items():
    entry(
        _id, OPD, f"Theorem 1 ({_form})", f"Unbiased policy gradient with {_what}",
        statement=f"With {_what} as the advantage, the expected policy gradient is ∇V, for every tabular student and teacher and any length. "
        "Compared along a direction of the logits.",
        latex=rf"\nabla V=\mathbb{{E}}\Big[\sum_t\Big({_advantage}\Big)\nabla\log p(a_t|s_t)\Big]",
        space=STUDENTS, relation="==", sharpness="identity", sketch=_why,
        sides=lambda x, form=_form: _mean_and_gradient(x, form), checks=(_enumerated_and_sampled(_form),),
        proof=f"{PROOFS}#thm1", proofs=(_symbolic_form(_form),),
        hypotheses=(COVERED,),
        mutants=(
            Mutant("immediate reward alone", "dies", "the later rewards carry g₂",
                   {"sides": lambda x: _mean_and_gradient(x, "immediate")}),
            Mutant("later rewards at nine tenths", "dies", "any discount is a bias",
                   {"sides": lambda x: _mean_and_gradient(x, gradients.Estimator(lam=exact("9/10") if x.is_exact else 0.9)), "space": spaces.teacher_students(sizes=ANY_LENGTH[1:])}),
        ),
    )  # fmt: skip


def _batches_of_two(x: TeacherStudent, averaged: int = 2, differentiate: bool = False) -> Any:
    """Mean of the REINFORCE update over every pair of responses, weighted with its probability."""
    y = Responses(x)
    togo = y.rewards + y.later
    update = y.gradients(togo)
    if differentiate:  # without the stop-gradient, log p(a_t|s_t)·∇Â_t = −log p(a_t|s_t) Σ_{k≥t} ∇log p(a_k|s_k) is added
        update = update - y.gradients(y.along(log(y.p)).cumsum(axis=1))
    law = y.law[:, None]  # over the logits
    pairs = update[:, None] + update[None]
    return (law[:, None] * law[None] * pairs).sum(axis=(0, 1)) / averaged


def _against_gradient(x: Any, update: Any) -> tuple[Any, Any]:
    """Both vectors along one direction of the logits; the update is in the order of the inner layout."""
    v = Responses(x).direction()
    return (update * v).sum(axis=0), along_logits(x, v, gradient(x))


entry(
    "opd.reinforce", OPD, "Eq 6", "REINFORCE with the log-ratio-to-go is unbiased",
    statement="The gradient of −(1/N) Σ Σ_t sg(Â_t) log p(a_t|s_t) has mean −∇V. Here N = 2: the mean over every pair of responses, "
    "each written out token by token, against ∇V from backward induction.",
    latex=r"\mathbb{E}\Big[-\tfrac1N\sum_i\sum_t\hat A_t^i\nabla\log p(a_t^i|s_t^i)\Big]=-\nabla V",
    space=PAIRS, relation="==", sharpness="identity", depends_on=("opd.thm1.ii",),
    sides=lambda x: _against_gradient(x, _batches_of_two(x)),
    hypotheses=(COVERED, "the advantage is behind a stop-gradient"),
    proof=f"{PROOFS}#reinforce",
    sketch="Linearity of the expectation over the N trajectories and Theorem 1.",
    mutants=(
        Mutant("sum over the batch", "dies", "the loss is a mean", {"sides": lambda x: _against_gradient(x, _batches_of_two(x, averaged=1))}),
        Mutant("advantage differentiated", "dies", "without the stop-gradient the advantage adds a term",
               {"sides": lambda x: _against_gradient(x, _batches_of_two(x, differentiate=True))}),
    ),
)  # fmt: skip
