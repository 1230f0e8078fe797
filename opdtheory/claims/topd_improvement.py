"""TOP-D: the improvement bound of Theorem 4.9, with its reward frozen and refreshed, and the iteration of
Remark 4.10.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from opdtheory import bounds, spaces
from opdtheory.claims.sources import TOPD
from opdtheory.elementary import absolute, exact
from opdtheory.spaces import Box, Simplex, Space
from opdtheory.tabular.iterates import MinorizerSteps
from opdtheory.verification.blocks import Block, Values
from opdtheory.verification.claim import Mutant
from opdtheory.verification.evidence import Evidence
from opdtheory.verification.registry import claim

STEPS = spaces.teacher_students(sizes=spaces.SMALL + spaces.WITH_EOS, candidate=True)
LONGER = spaces.teacher_students(
    sizes=tuple(s for s in spaces.SMALL + spaces.WITH_EOS if s["horizon"] >= 2), candidate=True
)
PROOFS = "docs/proofs/topd.md"
_LENGTH = 16384  # Table 5: longest response


def _gap(x: Any) -> Any:
    """|η_r(π̃) − ζ_π(π̃)| with the reward r = log(π*/π) frozen at the student's."""
    return absolute(x.candidate_return_frozen - x.eta - x.candidate_surrogate)


def _penalty(x: Any, horizon: Any) -> Any:
    return 2 * x.candidate_g_max * horizon * x.candidate_tv_sum


def _minorizer_gain(x: Any) -> Any:
    """M_π(π̃) − η(π), the penalty as printed."""
    return x.candidate_surrogate - _penalty(x, x.horizon)


def _quoted_regime() -> tuple[bool, str]:
    limit = 1 / (2 * _LENGTH)
    return True, (
        f"T_max = {_LENGTH}: M can exceed η(π) only while the mean TV per token is below {limit:.2g}; "
        f"clipping at ε = 0.2 allows TV up to 0.1 at a state"
    )


@claim(
    "topd.thm4.9",
    TOPD,
    "Theorem 4.9, Eqs 14, 51–66",
    "Improvement bound for a frozen reward",
    space=STEPS,
    relation="<=",
    sharpness="loose",
    proof=f"{PROOFS}#thm4-9",
    corrected_by=("topd.thm4.9/horizon",),
    hypotheses=(
        "the reward is log(π*/π) of the *old* policy throughout",
        "ξ is a maximum over all states",
        "EOS counts as a token",
    ),
    vacuous_as_quoted=_quoted_regime,
    useful_when="E_{d_norm} TV(π̃, π) < 1/(2 T_max), see topd.vac4.9",
    sketch="Performance difference: η_r(π̃) = η(π) + Σ_s d^π̃(s) g(s), g = E_π̃ A^π. Replacing d^π̃ by d^π "
    "costs at most ξ·Σ|d^π̃ − d^π|, and a change at "
    "step i moves each of the T_max − i later state laws by at most 2E TV.",
    latex=r"\eta_r(\tilde\pi)\ge\zeta_\pi(\tilde\pi)-2\xi "
    r"T_{\max}\ell_\pi\mathbb{E}_{d^\pi_{\rm norm}}[\mathrm{TV}(\tilde\pi,\pi)]",
    mutants=(
        Mutant(
            "T_max − 2",
            "dies",
            "a first token moves all later state laws",
            {"sides": lambda x: (_gap(x), _penalty(x, x.horizon - 2)), "space": LONGER},
        ),
        Mutant(
            "half the penalty",
            "dies",
            "three steps use two thirds of it",
            {"sides": lambda x: (2 * _gap(x), _penalty(x, x.horizon)), "space": LONGER},
        ),
    ),
)
def frozen(x: Any) -> tuple[Any, Any]:
    """For the reward of π kept fixed, |η_r(π̃) − ζ_π(π̃)| ≤ 2ξ·T_max·ℓ_π·E_{d_norm}TV(π̃, π)."""
    return _gap(x), bounds.topd_penalty(x.horizon, x.candidate_tv_sum, x.candidate_g_max)


def _opposite_advantages(vocab: int, horizon: int, **rest: Any) -> list[Values]:
    """A first token that moves half its mass between contexts whose advantages are opposite at almost no TV: the ratio is
    ½/(½ + a) for the probability a of the rare second token, which the candidate drops in one context and doubles in the other.
    """
    if (vocab, horizon) != (2, 2) or rest.get("eos") is not None:
        return []
    rare, half, one = exact("1/10000"), exact("1/2"), exact(1)
    levels = {
        "teacher": [[[half, half]], [[half, half], [half, half]]],
        "student": [[[half, half]], [[one - rare, rare], [rare, one - rare]]],
        "candidate": [[[one - one, one]], [[one, one - one], [2 * rare, one - 2 * rare]]],
    }
    return [{f"{name}.{t}": np.array(rows, dtype=object) for name, table in levels.items() for t, rows in enumerate(table)}]


@claim(
    "topd.thm4.9/horizon",
    TOPD,
    "Theorem 4.9, Eq 62 before its last relaxation",
    "Improvement bound with T_max − 1",
    hypotheses=("the reward is log(π*/π) of the *old* policy throughout", "EOS counts as a token",),
    space=LONGER,
    relation="<=",
    nature="ours",
    proof=f"{PROOFS}#thm4-9",
    sharpness="asymptotic",
    sketch="The last token changes no state: weights T_max − i in place of T_max, at most T_max − 1. At "
    "T_max = 2 the first token can use all of it.",
    structured=_opposite_advantages,
    latex=(
        r"|\eta_r(\tilde\pi)-\zeta_\pi(\tilde\pi)|"
        r"\le2\xi(T_{\max}-1)\ell_\pi\mathbb{E}_{d^\pi_{\rm norm}}[\mathrm{TV}(\tilde\pi,\pi)]"
    ),
    mutants=(
        Mutant(
            "T_max-2",
            "dies",
            "a first token moves all later state laws",
            {"sides": lambda x: (_gap(x), _penalty(x, x.horizon - 2))},
        ),
        Mutant(
            "mean-visits",
            "dies",
            "the penalty sums over the states visited",
            {"sides": lambda x: (_gap(x), _penalty(x, x.horizon - 1) / x.expected_length_student)},
        ),
    ),
)
def frozen_horizon(x: Any) -> tuple[Any, Any]:
    """For the reward of π kept fixed, |η_r(π̃) − ζ_π(π̃)| ≤ 2ξ·(T_max − 1)·ℓ_π·E_{d_norm}TV(π̃, π)."""
    return _gap(x), bounds.topd_penalty_tight(x.horizon, x.candidate_tv_sum, x.candidate_g_max)


@claim(
    "topd.thm4.9/true",
    TOPD,
    "Theorem 4.9 with η as defined in Eqs 2 and 4",
    "Improvement bound for the distillation objective",
    hypotheses=("full supports",),
    space=STEPS,
    signed=True,
    corrected_by=("topd.thm4.9-fixed", "topd.thm4.9"),
    sketch="η(π̃) = −KL(π̃‖π*) uses the reward log(π*/π̃) of the new policy. Eq 52 keeps that of the old "
    "one and so drops −E_{d^π̃}KL(π̃‖π), which has the "
    "sign that hurts.",
    latex=r"\eta(\tilde\pi)=-\mathrm{KL}(\tilde\pi\|\pi^*)\overset?\ge\zeta_\pi(\tilde\pi)-2\xi "
    r"T_{\max}\ell_\pi\mathbb{E}_{d^\pi_{\rm norm}}[\mathrm{TV}]",
)
def refreshed(x: Any) -> tuple[Any, Any]:
    """The objective −KL(π̃‖π*) of the new policy is at least η(π) + Σ_s d^π(s)E_π̃A^π −
    2ξT_max·ℓ_π·E_{d_norm}TV(π̃, π).
    """
    return x.eta + _minorizer_gain(x), x.candidate_eta


# ------------------------------------------------------------------------------------------ Remark 4.10


@claim(
    "topd.rem4.10",
    TOPD,
    "Remark 4.10, Eq 15",
    "Raising the bound lowers the KL",
    hypotheses=("full supports, the penalty as printed",),
    space=STEPS,
    signed=True,
    given=lambda x: [(_minorizer_gain(x), ">", 0)],
    corrected_by=("topd.thm4.9-fixed",),
    sketch="True for the frozen reward. For the KL itself a step that raises M may go too far: M is blind "
    "to the term E_{d^π̃}KL(π̃‖π).",
    latex=r"\mathcal M_\pi(\tilde\pi)>\eta(\pi)\ \Rightarrow\ "
    r"\mathrm{KL}(\tilde\pi\|\pi^*)\le\mathrm{KL}(\pi\|\pi^*)",
)
def monotone(x: Any) -> tuple[Any, Any]:
    """Every step with M_π(π̃) > η(π) = M_π(π) has KL(π̃‖π*) ≤ KL(π‖π*), responses taken whole."""
    return x.eta, x.candidate_eta


def maximisations(steps: int) -> Space:
    """Exact maximisations of the printed bound at one state of two tokens, horizon 1, the reward refreshed
    before each.
    """

    def blocks() -> dict[str, Block]:
        return {"teacher": Simplex((2,), False), "start": Simplex((2,), False), "penalty": Box((), 1.0, 1.0)}

    def build(b: Values) -> MinorizerSteps:
        penalty = b["penalty"] if b["penalty"].shape else b["penalty"].item()
        return MinorizerSteps.run(b["teacher"], b["start"], penalty, steps)

    return Space(
        kind="iterated_map",
        sizes=({},),
        blocks=blocks,
        build=build,
        serialise=lambda x: x.to_data(),
        description=f"{steps} maximisations of M at one state of two tokens",
    )


def _away(x: Any) -> list[tuple[Any, str, Any]]:
    """Neither the start nor the first iterate is the teacher."""
    return [(10 * x.l1(0), ">", 1), (10 * x.l1(1), ">", 1)]


def _cycle_in_fractions() -> Evidence:
    """The first step against a fine grid of every possible candidate: M is maximal at ±1/4, so that two steps
    return.
    """
    teacher, start = Fraction(3, 5), Fraction(1, 2)
    second = [start]
    for _ in range(6):
        p = second[-1]
        sign = 1 if teacher * (1 - p) > (1 - teacher) * p else -1
        grid = [Fraction(i, 400) - p for i in range(401)]
        gain = [sign * u - 2 * u * u for u in grid]  # in units of |a|
        second.append(p + grid[max(range(401), key=gain.__getitem__)])
    returns = second[0] == second[2] == second[4] == second[6] != second[1] == second[3]
    path = " → ".join(str(p) for p in second)
    return Evidence("check", returns, f"π*(1) = {teacher}: {path}, each the best of 401 candidates")


@claim(
    "topd.rem4.10/cycle",
    TOPD,
    "Remark 4.10, Eq 15, with exact maximisation",
    "Maximising the bound again and again approaches the teacher",
    hypotheses=("one state, two tokens, T_max = 1", "exact maximisation over all policies",),
    space=maximisations(2),
    signed=True,
    given=_away,
    checks=(_cycle_in_fractions,),
    corrected_by=("topd.thm4.9-fixed",),
    sketch="At one state with two tokens M − η = a·u − 2|a|u² for a step u, whose maximum is at u = "
    "sign(a)/4 however close the teacher is: the next reward "
    "points back, and the next step undoes this one. The sequence of KLs has period two.",
    latex=r"\pi_{n+1}=\arg\max_{\tilde\pi}\mathcal M_{\pi_n}(\tilde\pi)\ "
    r"\Rightarrow\ \pi_{n+2}\ne\pi_n\text{ unless at the teacher}",
    note="T_max = 1 and the penalty as printed (T_max, not T_max − 1, which would be no penalty at all "
    "here).",
)
def no_cycle(x: Any) -> tuple[Any, Any]:
    """Two exact maximisations of M, the reward refreshed between them, do not lead back to where they started
    (they move by at least 1/100 when start and first iterate are away from the teacher).
    """
    return 1, 100 * x.move(0, 2)


@claim(
    "topd.rem4.10/frozen",
    TOPD,
    "Remark 4.10, reward frozen",
    "Raising the bound raises the frozen return",
    hypotheses=("the reward of π kept fixed",),
    space=STEPS,
    signed=True,
    nature="ours",
    depends_on=("topd.thm4.9",),
    proof=f"{PROOFS}#thm4-9",
    sketch="Theorem 4.9 with the frozen reward, and equality of M and η at π̃ = π.",
    latex=r"\eta_r(\tilde\pi)-\eta(\pi)\ge\mathcal M_\pi(\tilde\pi)-\mathcal M_\pi(\pi)",
    mutants=(
        Mutant(
            "penalty-dropped",
            "dies",
            "visits change",
            {"sides": lambda x: (x.candidate_surrogate, x.candidate_return_frozen - x.eta)},
        ),
        Mutant(
            "reward-refreshed",
            "dies",
            "see topd.thm4.9/true",
            {"sides": lambda x: (_minorizer_gain(x), x.candidate_eta - x.eta)},
        ),
    ),
)
def monotone_frozen(x: Any) -> tuple[Any, Any]:
    """With the reward of π kept fixed, the return rises by at least as much as M does."""
    return _minorizer_gain(x), x.candidate_return_frozen - x.eta
