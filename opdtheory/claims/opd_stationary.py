"""Theory of On-Policy Distillation, Theorem 3: what a vanishing mean gradient says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from opdtheory.claims.opd_common import ONE_LOGIT, PROOFS, TWO_STEPS, interior_students
from opdtheory.claims.sources import OPD
from opdtheory.tabular import Policy, TeacherStudent, TokenTree
from opdtheory.verification.claim import Given, Mutant
from opdtheory.verification.evidence import Evidence
from opdtheory.verification.registry import entry

_MICRO = 10**6


def _small_gradient(estimator: str, micro: int = _MICRO) -> Given:
    return lambda x: [(micro * x.gradient_norm2(estimator), "<", 1)]


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


def _margins() -> Evidence:
    """The bounds of the written proof at ε = 1/1000 and m = 1/(5V), V ≤ 4: both below 1/100."""
    worst = 0.0
    for vocab in (2, 3, 4):
        m, square = 1 / (5 * vocab), 1e-6
        swell = np.exp(1e-3 / m**2)
        worst = max(worst, swell * square / (2 * m**2), swell * square * (1 / (2 * m**3) + 1 / (2 * m)))
    return Evidence("lemma", worst < 0.01, f"‖g‖² < 1e-6 leaves KL ≤ {worst:.1e} at V ≤ 4, T ≤ 2, probabilities above 1/(5V)")


_INTERIOR = replace(interior_students(TWO_STEPS), reach=(4, 2))

for _which, _name, _estimator in (("imm", "immediate log ratio", "immediate"), ("togo", "log-ratio-to-go", "ii")):
    entry(
        f"opd.thm3.{_which}", OPD, f"Theorem 3, {_name}", f"Stationary points of the {_name} are optimal",
        statement=f"If the mean gradient with the {_name} vanishes, the student is the teacher. Checked with a margin: where all probabilities exceed 1/(5V) and T ≤ 2, "
        "‖g‖² < 10⁻⁶ implies KL(student‖teacher) < 1/100.",
        latex=(r"g_1=0\implies p=q" if _which == "imm" else r"\nabla V=0\implies p=q"),
        space=_INTERIOR, sides=_near_optimal, given=_small_gradient(_estimator), signed=True,
        assumption="tabular softmax inside the simplex, with one full-support teacher fixed by the state",
        unassumed={"space": ONE_LOGIT},
        proof=f"{PROOFS}#thm3", lemmas=(_margins,),
        checks=(_vertex_is_stationary, _two_teachers),
        hypotheses=("finite logits", "full-support teacher", "one teacher per state"),
        sketch="Tabular logits of different contexts are separate coordinates. Immediate: d(s)∇KL(s) = 0 with d(s) > 0 and full support forces p(·|s) = q(·|s). To-go: backwards from the last "
        "level, where the values are −KL; Q − V = 0 level by level. With one logit for all contexts the contributions of contexts cancel: g₁ = 0 although ∇V ≠ 0.",
        note="A small gradient is not near-optimality either: the smallest d(s) divides the bound. At vertices of the simplex every gradient vanishes.",
        mutants=(
            Mutant("gradient of ordinary size", "dies", "‖g‖² < 1/10 says nothing", {"given": _small_gradient(_estimator, 10)}),
            Mutant("one logit for all contexts", "dies", "contributions of contexts cancel", {"space": ONE_LOGIT}),
        ),
    )  # fmt: skip
