"""Theory of On-Policy Distillation: the variances of the advantage forms, and bias against variance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from opdtheory import gradients, spaces
from opdtheory.claims.opd_common import (
    COVERED,
    ENUMERATED_LONGER,
    LONGER,
    PAIRS,
    PROOFS,
    SHORT,
    STUDENTS,
    TABULAR,
    Responses,
    gradient,
    models,
    public_order,
)
from opdtheory.claims.sources import OPD
from opdtheory.elementary import exact, minimum
from opdtheory.tabular import Policy, TeacherStudent
from opdtheory.verification.claim import Mutant
from opdtheory.verification.evidence import Evidence
from opdtheory.verification.registry import claim, entry


@claim(
    "opd.var-table", OPD, "table of section 2.4", "The immediate form has the lower variance",
    space=LONGER, relation="<=", corrected_by=("opd.var-criterion",),
    hypotheses=(TABULAR, "one response a sample"),
    sketch="Later log ratios can cancel the immediate one: with G = s(r + F), Var(G) − Var(sr) = Var(sF) + 2Cov(sr, sF), and the covariance can be negative enough.",
    note="The source argues that fewer random variables give less variance; variables may cancel.",
    latex=r"\mathrm{Var}(\hat g_{\mathrm{imm}})\le\mathrm{Var}(\hat g_{\mathrm{togo}})",
)  # fmt: skip
def var_table(x: Any) -> tuple[Any, Any]:
    """The trace of the covariance of one sample's gradient is at most as large for the immediate form as for the log-ratio-to-go."""
    return x.gradient_variance("immediate"), x.gradient_variance("ii")


def _quieter_in_random_pairs() -> Evidence:
    """How often the immediate form is the noisier one."""
    rng = np.random.default_rng(11)
    tree_levels = [rng.dirichlet(np.full(2, 0.4), size=(2000, 2**t)) for t in range(2) for _ in range(2)]
    teacher, student = tree_levels[::2], tree_levels[1::2]
    x = spaces.teacher_students().build(
        {f"teacher.{t}": a for t, a in enumerate(teacher)} | {f"student.{t}": a for t, a in enumerate(student)},
        vocab=2, horizon=2, eos=None, prompts=1,
    )  # fmt: skip
    noisier = int(np.sum(x.gradient_variance("immediate") > x.gradient_variance("ii")))
    return Evidence("check", 0 < noisier < 1000, f"the immediate form is the noisier one in {noisier} of 2000 random pairs (V = 2, T = 2)")


def _covariances(x: Any) -> tuple[Any, Any]:
    """Var(sF) and Cov(sr, sF), traces, every response written out."""
    y = Responses(x)
    now, later = y.gradients(y.rewards), y.gradients(y.later)
    mean_now, mean_later = y.mean(now), y.mean(later)
    spread = y.mean((later * later).sum(axis=1)) - (mean_later * mean_later).sum(axis=0)
    return spread, y.mean((now * later).sum(axis=1)) - (mean_now * mean_later).sum(axis=0)


def _criterion(x: Any, weight: int = 2) -> tuple[Any, Any]:
    spread, covariance = _covariances(x)
    return x.gradient_variance("ii") - x.gradient_variance("immediate"), spread + weight * covariance


entry(
    "opd.var-criterion", OPD, "section 2.4, made exact", "When the immediate form is the quieter one",
    nature="ours", space=ENUMERATED_LONGER, relation="==", sharpness="identity", checks=(_quieter_in_random_pairs,),
    statement="Var(to-go) − Var(immediate) = Var(sF) + 2 Cov(sr, sF), s the score, r the token's log ratio, F the later ones: the immediate form is quieter iff this "
    "is non-negative. The left side comes from the backward recursion of moments, the right side from every response written out.",
    latex=r"\mathrm{Var}(\hat g_{\mathrm{togo}})-\mathrm{Var}(\hat g_{\mathrm{imm}})=\mathrm{Var}(sF)+2\,\mathrm{Cov}(sr,sF)",
    hypotheses=(COVERED, TABULAR),
    proof=f"{PROOFS}#variance",
    sides=_criterion,
    sketch="Bilinearity of the covariance.",
    mutants=(
        Mutant("covariance left out", "dies", "later log ratios may cancel the immediate one", {"sides": lambda x: _criterion(x, 0)}),
        Mutant("covariance once", "dies", "a square has two cross terms", {"sides": lambda x: _criterion(x, 1)}),
    ),
)  # fmt: skip


@claim(
    "opd.iv-vs-ii", OPD, "forms (ii) and (iv), Rao–Blackwell intuition", "Form (iv) has at most the variance of (ii)",
    space=LONGER, relation="<=", corrected_by=("opd.rao-blackwell", "opd.iv-vs-ii/t2"),
    hypotheses=(TABULAR, "one response a sample"),
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
    hypotheses=(TABULAR, COVERED, "T ≤ 2 (at T = 1 the forms are one)"),
    proof=f"{PROOFS}#two-steps",
    sketch="At T = 2 form (iv) is E[form (ii) | s₁, a₁] in the first score and equal in the second, and tabular scores of different contexts are orthogonal coordinates.",
    latex=r"\mathrm{Var}(\hat g_{(ii)})-\mathrm{Var}(\hat g_{(iv)})=\mathbb{E}\big[\|s_1\|^2\,\mathrm{Var}(r_2|s_2)\big]\ge0\quad(T=2)",
    mutants=(
        Mutant("three tokens", "dies", "see opd.iv-vs-ii", {"space": LONGER.with_sizes(*(s for s in spaces.SMALL if s["horizon"] == 3))}),
        Mutant("against the immediate form", "dies", "the immediate form has fewer terms, and a bias",
               {"sides": lambda x: (x.gradient_variance("iv"), x.gradient_variance("immediate"))}),
    ),
)  # fmt: skip
def iv_vs_ii_short(x: Any) -> tuple[Any, Any]:
    """At T ≤ 2 with a tabular student, the covariance trace of form (iv) is at most that of form (ii)."""
    return x.gradient_variance("iv"), x.gradient_variance("ii")


@claim(
    "opd.rao-blackwell", OPD, "forms (i)–(v), the minimal one", "The conditional mean given (s_t, a_t) is minimal per token",
    nature="ours", space=STUDENTS, relation="<=", sharpness="tight",
    hypotheses=(TABULAR, COVERED),
    proof=f"{PROOFS}#rao-blackwell",
    sketch="Given (s_t, a_t) the score is fixed, so E‖sÂ‖² is smallest for Â = E[Â|s_t, a_t] = r_t + V(s_{t+1}); scores of different contexts are orthogonal for tabular softmax, so "
    "the second moments add up over contexts.",
    latex=r"\mathbb{E}\|\hat g_{r+V}\|^2\le\mathbb{E}\|\hat g_{(ii)}\|^2,\ \mathbb{E}\|\hat g_{(iv)}\|^2",
    mutants=(
        Mutant("against the immediate form", "dies", "the immediate form is biased and can be smaller",
               {"sides": lambda x: (x.gradient_second_moment("value"), x.gradient_second_moment("immediate"))}),
        Mutant("a hundredth to spare", "dies", "equality at T = 1", {"factor": exact("99/100")}),
    ),
)  # fmt: skip
def rao_blackwell(x: Any) -> tuple[Any, Any]:
    """For tabular students, s_t(r_t + V(s_{t+1})) has at most the second moment of form (ii) and of form (iv)."""
    return x.gradient_second_moment("value"), minimum(x.gradient_second_moment("ii"), x.gradient_second_moment("iv"))


# -------------------------------------------------------------------------------------------- frontier


def _lambda_ends() -> Evidence:
    """The λ-family joins the two forms: its ends are the immediate form and (ii), bias² falls to 0 and is positive inside."""
    student, teacher = models()[0]
    lams = (0.0, 0.25, 0.5, 0.75, 1.0)
    rows = [gradients.tabular_moments(student, teacher, gradients.Estimator(lam=lam)) for lam in lams]
    ends = [gradients.tabular_moments(student, teacher, name) for name in ("immediate", "ii")]
    gap = max(abs(float(rows[i].second_moment) - float(end.second_moment)) for i, end in ((0, ends[0]), (-1, ends[1])))
    biases = [float(row.bias2) for row in rows]
    ok = gap < 1e-12 and biases[-1] < 1e-20 and all(b > 0 for b in biases[:-1])
    crossing = float(gradients.crossover(rows[0], rows[-1]))
    detail = f"bias² over λ: {', '.join(f'{b:.2e}' for b in biases)}; unbiased wins from N = {crossing:.1f} samples on"
    return Evidence("check", ok, detail)


def _error_over_pairs(x: Any) -> Any:
    """E‖½(ĝ + ĝ′) − ∇V‖² at λ = ½ over every pair of independent responses, each written out."""
    y = Responses(x)
    # Σ_{k>t} λ^{k−t} r_k at λ = ½, backwards along each response
    discounted = 0 * y.rewards
    for t in reversed(range(x.horizon - 1)):
        discounted[:, t] = (discounted[:, t + 1] + y.rewards[:, t + 1]) / 2
    update = y.gradients(y.rewards + discounted)
    public = np.arange(x.student.flat.shape[0] * x.student.flat.shape[1])
    single = TeacherStudent(x.tree, Policy.uniform(x.tree), Policy.uniform(x.tree))
    order = np.argsort(public_order(single, public))
    target = np.moveaxis(np.asarray(gradient(x)), -1, 0)[order]
    error = (update[:, None] + update[None]) / 2 - target
    return (y.law[:, None] * y.law[None] * (error * error).sum(axis=2)).sum(axis=(0, 1))


def _predicted(x: Any, bias: int = 1, samples: int = 2) -> Any:
    half = exact("1/2") if x.is_exact else 0.5
    moments = gradients.tabular_moments(x.student, x.teacher, gradients.Estimator(lam=half))
    return bias * moments.bias2 + moments.variance / samples


@claim(
    "opd.frontier", OPD, "between the two rows of the table", "Mean squared error of N samples along the λ-family",
    nature="ours", space=replace(PAIRS, sizes=PAIRS.sizes[:3]), relation="==", sharpness="identity", checks=(_lambda_ends,),
    hypotheses=(COVERED, TABULAR, "independent samples"),
    proof=f"{PROOFS}#frontier",
    sketch="MSE_N = bias² + Var/N for the mean of N independent samples; the biased form wins exactly for N < (Var_unbiased − Var_biased)/bias².",
    latex=r"\mathrm{MSE}_N(\lambda)=\|\mathbb{E}\hat g_\lambda-\nabla V\|^2+\mathrm{Var}(\hat g_\lambda)/N",
    mutants=(
        Mutant("bias left out", "dies", "averaging does not remove a bias", {"sides": lambda x: (_predicted(x, bias=0), _error_over_pairs(x))}),
        Mutant("variance of one sample", "dies", "the mean of two samples varies half as much", {"sides": lambda x: (_predicted(x, samples=1), _error_over_pairs(x))}),
    ),
)  # fmt: skip
def frontier(x: Any) -> tuple[Any, Any]:
    """The mean of N independent samples of the λ-form misses ∇V by bias² + Var/N in mean square. Here N = 2 and λ = ½: moments from
    the backward recursion, against every pair of responses written out."""
    return _predicted(x), _error_over_pairs(x)
