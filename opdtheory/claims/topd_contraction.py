"""TOP-D: convergence of the proximal iteration (Theorem 4.4) under the three readings of its mixture, and
Pinsker's step.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

from opdtheory import bounds, spaces
from opdtheory.claims.sources import TOPD
from opdtheory.elementary import sqrt
from opdtheory.spaces import Box, Simplex, Size, Space
from opdtheory.tabular.iterates import ProximalSteps
from opdtheory.verification.blocks import Block, Values
from opdtheory.verification.claim import Mutant
from opdtheory.verification.evidence import Evidence
from opdtheory.verification.registry import claim

MIXED = {"alpha": (0.05, 0.95)}
TREES = tuple(s for s in spaces.SMALL if s["horizon"] >= 2)
STUDENTS = spaces.teacher_students(sizes=TREES, extra=MIXED)
ANY_LENGTH = spaces.teacher_students(sizes=spaces.SMALL + spaces.WITH_EOS, extra=MIXED)
PROOFS = "docs/proofs/topd.md"
_STEPS = 3


def proximal_steps(steps: int, errors: bool, sizes: tuple[int, ...] = (2, 3, 4)) -> Space:
    """A teacher and ``steps`` updates over ``outcomes`` whole responses, mixed as wholes; with ``errors``
    every next law is free.
    """

    def blocks(outcomes: int) -> dict[str, Block]:
        laws = {f"law.{k}": Simplex((outcomes,)) for k in range(steps + 1 if errors else 1)}
        return {"teacher": Simplex((outcomes,))} | laws | {"alpha": Box((), *MIXED["alpha"])}

    def build(b: Values, outcomes: int) -> ProximalSteps:
        alpha = b["alpha"] if b["alpha"].shape else b["alpha"].item()
        laws = [b["law.0"]]
        for k in range(1, steps + 1):
            weight = alpha[..., None] if b["alpha"].shape else alpha
            laws.append(b[f"law.{k}"] if errors else weight * b["teacher"] + (1 - weight) * laws[-1])
        return ProximalSteps(b["teacher"], laws, alpha=alpha)

    def serialise(x: ProximalSteps) -> dict[str, Any]:
        data = x.to_data()
        return data if errors else {k: v for k, v in data.items() if k != "errors"}

    return Space(
        kind="iterated_map",
        sizes=tuple({"outcomes": n} for n in sizes),
        blocks=blocks,
        build=build,
        serialise=serialise,
        description=f"{steps} proximal updates of a law over {sizes} responses"
        + ("" if errors else ", no errors"),
    )


def _unrolled(
    discount: Callable[[Any, int], Any], start: Callable[[Any], Any]
) -> Callable[[Any], tuple[Any, Any]]:
    """‖p_n − q‖₁ against a discounted start and discounted errors, n = 3."""

    def sides(x: Any) -> tuple[Any, Any]:
        total = start(x.alpha) * x.l1(0)
        for i in range(_STEPS):
            total = total + discount(x.alpha, _STEPS - 1 - i) * x.error_l1(i)
        return x.l1(_STEPS), total

    return sides


_SEQUENCE = _unrolled(lambda a, n: (1 - a) ** n, lambda a: (1 - a) ** _STEPS)


def _limit_is_attained() -> Evidence:
    """Errors of one size that always point away from the teacher: the distance tends to ε/α, exactly."""
    alpha, size = Fraction(1, 4), Fraction(1, 10)
    teacher, law = [Fraction(1), Fraction(0)], [Fraction(1, 2), Fraction(1, 2)]
    for _ in range(200):
        law = [alpha * b + (1 - alpha) * a for a, b in zip(law, teacher, strict=True)]
        law = [law[0] - size / 2, law[1] + size / 2]
    distance = sum(abs(a - b) for a, b in zip(law, teacher, strict=True))
    gap = abs(float(distance - size / alpha))
    return Evidence(
        "check",
        gap < 1e-20,
        f"α = 1/4, ‖ε_k‖₁ = 1/10: after 200 steps d = {float(distance):.12f}, ε/α = {float(size / alpha)}",
    )


@claim(
    "topd.thm4.4",
    TOPD,
    "Theorem 4.4, Eqs 11–13, 33–50",
    "Convergence with whole responses mixed",
    space=proximal_steps(_STEPS, errors=True),
    relation="<=",
    sharpness="tight",
    checks=(_limit_is_attained,),
    proof=f"{PROOFS}#thm4-4",
    hypotheses=(
        "the mixture is of laws of whole responses, π̃*(y|x) = απ*(y|x) + (1−α)π(y|x), as the metric "
        "of section 4.2 requires",
    ),
    vacuous_as_quoted=lambda: (
        False,
        "the limit ε∞/α says something iff ε∞ < 2α, since d ≤ 2; at α = 0.1 the optimisation error "
        "must stay below 0.2",
    ),
    useful_when="ε∞ < 2α",
    sketch="‖T(π) − π*‖₁ = (1 − α)‖π − π*‖₁ exactly; add ‖ε_k‖₁ by the triangle inequality and unroll. "
    "Equality without errors, or with errors that "
    "point away from the teacher.",
    latex=(
        r"d(\pi_{k+1},\pi^*)\le(1-\alpha)^{k+1}d(\pi_0,\pi^*)"
        r"+\sum_{i\le k}(1-\alpha)^{k-i}\|\epsilon_i\|_1"
    ),
    mutants=(
        Mutant(
            "one power more",
            "dies",
            "equality without errors",
            {"sides": _unrolled(lambda a, n: (1 - a) ** n, lambda a: (1 - a) ** (_STEPS + 1))},
        ),
        Mutant(
            "errors forgotten one step faster",
            "dies",
            "the last error counts in full",
            {"sides": _unrolled(lambda a, n: (1 - a) ** (n + 1), lambda a: (1 - a) ** _STEPS)},
        ),
        Mutant(
            "errors never forgotten",
            "survives",
            "a larger right-hand side",
            {"sides": _unrolled(lambda a, n: 1, lambda a: (1 - a) ** _STEPS)},
        ),
        Mutant(
            "α for 1 − α",
            "dies",
            "small α moves little",
            {"sides": _unrolled(lambda a, n: (1 - a) ** n, lambda a: a**_STEPS)},
        ),
    ),
)
def sequence_level(x: Any) -> tuple[Any, Any]:
    """With whole responses mixed, three updates with errors ε_0, ε_1, ε_2 end within (1−α)³·d_0 +
    (1−α)²‖ε_0‖₁ + (1−α)‖ε_1‖₁ + ‖ε_2‖₁ of the teacher; hence limsup d ≤ ε∞/α.
    """
    return _SEQUENCE(x)


@claim(
    "topd.thm4.4/token",
    TOPD,
    "Theorem 4.4, Eq 12, with the mixture of Eq 5",
    "Convergence with tokens mixed: the rate",
    hypotheses=("T ≥ 2, full supports",),
    space=STUDENTS,
    relation="<=",
    corrected_by=("topd.thm4.4-token", "topd.thm4.4-repair", "topd.thm4.4/state"),
    sketch="Eq 5 mixes next-token distributions; the law of responses is then a product of mixtures, not a "
    "mixture of products: a teacher response keeps "
    "at least α^T of its mass instead of α, and other responses gain mass that neither policy gives them.",
    latex=r"d(\mathcal T_{\mathrm{tok}}\pi,\pi^*)\le(1-\alpha)\,d(\pi,\pi^*)",
    note="One step, no error: k = 0, ε_0 = 0 in Eq 12.",
)
def token_level(x: Any) -> tuple[Any, Any]:
    """Mixing token by token with weight α brings the law of responses within (1 − α) times its distance to
    the teacher.
    """
    return x.l1_token_mixed(x.alpha), (1 - x.alpha) * x.l1_seq


@claim(
    "topd.thm4.4/token-limit",
    TOPD,
    "Theorem 4.4, Eq 13, with the mixture of Eq 5",
    "Convergence with tokens mixed: the limit",
    hypotheses=("T ≥ 2, full supports", "the student stays where it is",),
    space=STUDENTS,
    relation="<=",
    corrected_by=("topd.thm4.4-token",),
    sketch="Take the constant sequence π_k = π: the error of every step is π − T_tok(π), so Eq 13 would "
    "give α·d(π, π*) ≤ d(π, T_tok π). One token-level "
    "step can move the law of responses by less than α times its distance to the teacher.",
    latex=r"\alpha\,d(\pi,\pi^*)\le d(\pi,\mathcal T_{\mathrm{tok}}\pi)",
    note="A stationary student is admissible in the theorem: π_{k+1} = T(π_k) + ε_k with ε_k = π − T(π) "
    "for all k, ε∞ = ‖π − T(π)‖₁.",
)
def token_limit(x: Any) -> tuple[Any, Any]:
    """A student that stays where it is, each step missing the token-level proximal teacher by ‖ε‖₁, is within
    ‖ε‖₁/α of the teacher.
    """
    return x.alpha * x.l1_seq, x.l1_token_move(x.alpha)


@claim(
    "topd.thm4.4/state",
    TOPD,
    "Theorem 4.4, read per state",
    "Convergence with tokens mixed, measured per state",
    hypotheses=("any length, full supports",),
    space=ANY_LENGTH,
    relation="==",
    sharpness="identity",
    proof=f"{PROOFS}#thm4-4-state",
    sketch="At one state the mixture is the operator of Theorem 4.4, ‖m − q‖₁ = (1−α)‖p − q‖₁ exactly. "
    "Maxima over states and averages with weights that do "
    "not depend on the student inherit Eqs 12–13; averages over the student's own states do not, "
    "since its weights change.",
    latex=r"\sup_s\|\mathcal "
    r"T\pi(\cdot|s)-\pi^*(\cdot|s)\|_1=(1-\alpha)\sup_s\|\pi(\cdot|s)-\pi^*(\cdot|s)\|_1",
    mutants=(
        Mutant(
            "squared",
            "dies",
            "one update, not two",
            {"sides": lambda x: (x.l1_state_mixed_max(x.alpha), (1 - x.alpha) ** 2 * x.l1_state_max)},
        ),
        Mutant(
            "whole responses",
            "dies",
            "see topd.thm4.4/token",
            {"sides": lambda x: (x.l1_token_mixed(x.alpha), (1 - x.alpha) * x.l1_seq)},
        ),
    ),
)
def per_state(x: Any) -> tuple[Any, Any]:
    """Mixing token by token multiplies the largest per-state L1 distance to the teacher by exactly 1 − α."""
    return x.l1_state_mixed_max(x.alpha), bounds.contraction_state(x.alpha, 1, initial=x.l1_state_max)


@claim(
    "topd.rem4.5",
    TOPD,
    "Remark 4.5",
    "Errors are forgotten",
    hypotheses=("whole responses mixed", "no error after the first law",),
    space=proximal_steps(_STEPS, errors=False),
    relation="==",
    sharpness="identity",
    proof=f"{PROOFS}#thm4-4",
    sketch="After the last error the distance shrinks by exactly 1 − α a step (whole responses mixed), so "
    "an early error's share is (1−α)^k. Under token-level "
    "mixing the guaranteed factor per step is 1 − α^T only; without errors k token mixtures are one "
    "of weight 1 − (1−α)^k.",
    latex=r"d(\pi_{k+n},\pi^*)=(1-\alpha)^n d(\pi_k,\pi^*)\ \text{without errors after step }k",
    mutants=(
        Mutant(
            "alpha-for-its-complement",
            "dies",
            "the student keeps 1 − α",
            {"sides": lambda x: (x.l1(_STEPS), x.alpha**_STEPS * x.l1(0))},
        ),
        Mutant(
            "one step fewer",
            "dies",
            "exact rate",
            {"sides": lambda x: (x.l1(_STEPS), (1 - x.alpha) ** (_STEPS - 1) * x.l1(0))},
        ),
    ),
)
def forgetting(x: Any) -> tuple[Any, Any]:
    """Three error-free updates of whole responses multiply whatever distance an earlier error left by (1 −
    α)³.
    """
    return x.l1(_STEPS), (1 - x.alpha) ** _STEPS * x.l1(0)


# --------------------------------------------------------------------------------------------- Pinsker

_PROMPTS: tuple[Size, ...] = tuple(
    {**s, "prompts": 2} for s in (spaces.SMALL[0], spaces.SMALL[1], spaces.WITH_EOS[0])
)


@claim(
    "topd.pinsker",
    TOPD,
    "end of section 4.3",
    "From KL to the optimisation error",
    hypotheses=("KL of whole responses, per prompt",),
    space=spaces.teacher_students(sizes=_PROMPTS + spaces.SMALL[:3], full_support=False),
    relation="<=",
    sharpness="asymptotic",
    proof=f"{PROOFS}#pinsker",
    sketch="Pinsker per prompt, ‖·‖₁ ≤ √(2KL), then Jensen for the square root over prompts. The KL must be "
    "that of whole responses.",
    latex=r"\|\epsilon_k\|_1\le\mathbb{E}_x\sqrt{2\mathrm{KL}_x}\le\sqrt{2\,\mathbb{E}_x\mathrm{KL}_x}",
    mutants=(
        Mutant(
            "no factor two",
            "dies",
            "Pinsker is sharp for nearby laws",
            {"sides": lambda x: (x.l1_seq, sqrt(x.kl_student_teacher_seq))},
        ),
        Mutant(
            "other direction of KL",
            "survives",
            "Pinsker is symmetric in its arguments",
            {"sides": lambda x: (x.l1_seq, sqrt(2 * x.kl_teacher_student_seq))},
        ),
    ),
)
def pinsker(x: Any) -> tuple[Any, Any]:
    """The expected L1 distance between the laws of responses is at most √(2·E_x KL(π‖π̃*)), the KL of whole
    responses.
    """
    return x.l1_seq, 2 * bounds.sequence_tv_pinsker(x.kl_student_teacher_seq)


@claim(
    "topd.pinsker/token",
    TOPD,
    "end of section 4.3, read per token",
    "From token KL to the optimisation error",
    hypotheses=("full supports",),
    space=spaces.teacher_students(sizes=TREES, full_support=True),
    relation="<=",
    corrected_by=("topd.pinsker",),
    sketch="Token KLs add up along a response: with the same small divergence at every step the distance of "
    "responses grows like √T.",
    latex=r"\|\epsilon_k\|_1\le\sqrt{2\max_s\mathrm{KL}(\pi\|\tilde\pi^*)(s)}",
    note="What a trainer logs is the KL per token; with it the step fails.",
)
def pinsker_token(x: Any) -> tuple[Any, Any]:
    """The L1 distance of the laws of responses is at most √(2·KL) with the largest KL of a single state."""
    return x.l1_seq, sqrt(2 * x.kl_student_teacher_max)
