"""Trust Region Masking, sections 2.4 and 2.5.0: expected advantages and divergences, the pieces of the
bounds."""

from __future__ import annotations

from typing import Any

import sympy as sp

from opdtheory import bounds
from opdtheory.claims.sources import TRM
from opdtheory.claims.trm_common import (
    ANY_SUPPORT,
    FINITE_LAWS,
    FREE,
    LAWS,
    MULTI_STEP,
    PROOFS,
    UNIT,
    WORST,
)
from opdtheory.elementary import absolute, exact, maximum, minimum
from opdtheory.spaces import single_states
from opdtheory.verification.claim import Mutant
from opdtheory.verification.evidence import Evidence
from opdtheory.verification.identities import symbolic
from opdtheory.verification.registry import CATALOGUE, claim

_ACTIONS = single_states(values=(0.0, 1.0))
_TWO_STEPS = WORST.with_sizes(*MULTI_STEP)

# ------------------------------------------------------------ 2.4 the pieces


@claim(
    "trm.2.4",
    TRM,
    "slides 2.4.1 to 2.4.3",
    "Expected advantage by token TV",
    sketch="g(c) = Σ_a (π − μ)(a)A(c, a) because E_μ A = 0, and |A| ≤ 1.",
    space=_ACTIONS,
    sharpness="loose",
    hypotheses=("values in [0, 1]", ANY_SUPPORT),
    proof=f"{PROOFS}#advantage",
    corrected_by=("trm.2.4-centred",),
    latex=r"|g(c)|\le 2\,\mathrm{TV}(c)",
    note="At one context: p is μ, q is π, the values are Q^μ(c, ·), which may be anything in [0, 1].",
    mutants=(
        Mutant("quarter", "dies", "half of the true constant", {"factor": exact("1/4")}),
        Mutant("half", "survives", "the sharp constant is one, not two", {"factor": exact("1/2")}),
    ),
)
def advantage_gap(x: Any) -> Any:
    """|E_π Q − E_μ Q| ≤ 2·TV at every context, for action values in [0, 1]."""
    return absolute(x.gain), bounds.advantage_gap(x.tv)


@claim(
    "trm.2.4/martingale",
    TRM,
    "slide 2.4.2",
    "Advantages have mean zero under μ",
    sketch="V is the mean of Q under μ.",
    space=FREE.with_sizes(*MULTI_STEP[:3]),
    relation="==",
    sharpness="identity",
    hypotheses=(ANY_SUPPORT,),
    proof=f"{PROOFS}#advantage",
    proofs=(lambda: symbolic(CATALOGUE.get("trm.2.4/martingale"), *MULTI_STEP[:3]),),
    latex=r"E_\mu[A^\mu_t(c,\cdot)]=0",
    note="Tested through g: at every context E_π A computed from Q alone equals E_π A computed from A = Q − "
    "V.",
    mutants=(
        Mutant(
            "first-step-only",
            "dies",
            "every step counts",
            {"sides": lambda x: (x.surrogate, x.g_step(0))},
        ),
        Mutant(
            "last-step-only",
            "dies",
            "every step counts",
            {"sides": lambda x: (x.surrogate, x.g_step(x.horizon - 1))},
        ),
    ),
)
def martingale(x: Any) -> Any:
    """Σ_t E_{d_t^μ} E_π[A] is the same whether A = Q − V or Q less its mean under μ: E_μ[A(c, ·)] = 0 at
    every context."""
    return x.surrogate, sum(x.g_step(t) for t in range(x.horizon))


@claim(
    "trm.2.4/error",
    TRM,
    "slide 2.4.1",
    "Error by advantages and context laws",
    sketch="Error = Σ_t (E_{d_t^π} − E_{d_t^μ}) g_t, and a difference of laws has total mass 2·TV.",
    space=_TWO_STEPS,
    sharpness="loose",
    hypotheses=(UNIT, ANY_SUPPORT),
    proof=f"{PROOFS}#error",
    depends_on=("trm.pdi",),
    latex=r"|\mathrm{Error}|\le2\sum_t\|g_t\|_\infty\,\mathrm{TV}(d_t^\mu,d_t^\pi)",
    mutants=(
        Mutant(
            "factor-dropped",
            "dies",
            "a signed measure of mass zero has norm twice its TV, and g may have either sign",
            {"sides": lambda x: (absolute(x.error), _pieces(x, 1))},
        ),
        Mutant(
            "first-step",
            "dies",
            "later steps shift, the first does not",
            {"sides": lambda x: (absolute(x.error), 2 * x.gap_max(0) * x.marginal_tv(1))},
        ),
    ),
)
def error_pieces(x: Any) -> Any:
    """|Error| ≤ 2 Σ_t max_{c_t}|g(c_t)|·TV(d_t^μ, d_t^π)."""
    return absolute(x.error), _pieces(x, 2)


def _pieces(x: Any, factor: int) -> Any:
    return factor * sum(x.gap_max(t) * x.marginal_tv(t) for t in range(1, x.horizon))


@claim(
    "trm.2.4/tightest",
    TRM,
    "slide 2.4.3",
    "The bound 2·TV is the tightest",
    hypotheses=("R in [0, 1]",),
    space=single_states(),
    relation=">=",
    signed=True,
    given=lambda x: [(x.tv, ">", 0)],
    corrected_by=("trm.2.4-centred",),
    latex=r"\sup_{Q\in[0,1]^V}|g|=2\,\mathrm{TV}",
    sketch="The largest gap over all values in [0, 1] is TV itself: the constant of the values does not "
    "matter.",
    note="Read as: for given μ and π some action values reach the bound.",
)
def tightest(x: Any) -> Any:
    """For different μ and π some action values in [0, 1] make |E_π Q − E_μ Q| as large as 2·TV."""
    return x.value_gap_sup, 2 * x.tv


@claim(
    "trm.2.4-centred",
    TRM,
    "slide 2.4.3",
    "Expected advantage, sharp",
    space=_ACTIONS,
    nature="ours",
    sharpness="tight",
    hypotheses=("values in [0, 1]", ANY_SUPPORT),
    proof=f"{PROOFS}#advantage",
    latex=r"|g(c)|\le\mathrm{TV}(c)\,\bigl(\max_aQ-\min_aQ\bigr)",
    sketch="Subtract the middle of the range of Q; attained by Q = 1[π > μ].",
    mutants=(
        Mutant(
            "size-for-span",
            "survives",
            "values in [0, 1] have span at most their largest",
            {
                "sides": lambda x: (
                    absolute(x.gain),
                    bounds.advantage_gap_centred(x.tv, span=x.values_max_abs),
                )
            },
        ),
        Mutant(
            "signed-values",
            "dies",
            "values in [−1, 1] may have span 2",
            {
                "space": single_states(values=(-1.0, 1.0)),
                "sides": lambda x: (absolute(x.gain), bounds.advantage_gap_centred(x.tv)),
            },
        ),
    ),
)
def advantage_gap_centred(x: Any) -> Any:
    """|E_π Q − E_μ Q| ≤ TV·(max Q − min Q)."""
    return absolute(x.gain), bounds.advantage_gap_centred(x.tv, span=x.values_span)


# ------------------------------------------------------------ 2.5.0 divergences


@claim(
    "trm.2.5.0",
    TRM,
    "slide 2.5.0",
    "Sequence KL and largest token KL",
    sketch="Chain rule: D is a sum of T means of token KLs, each at most δ.",
    space=LAWS,
    sharpness="tight",
    hypotheses=(ANY_SUPPORT,),
    proof=f"{PROOFS}#pinsker",
    latex=r"D_{\mathrm{seq}}=\sum_tE_{d_t^\mu}\mathrm{KL}(c_t)\le T\delta",
    mutants=(
        Mutant(
            "one-step-fewer",
            "dies",
            "T terms",
            {"sides": lambda x: (x.kl_seq, (x.horizon - 1) * x.kl_max), "space": FINITE_LAWS},
        ),
        Mutant(
            "mean-for-max",
            "dies",
            "the first step's mean bounds nothing later",
            {"sides": lambda x: (x.kl_seq, x.horizon * x.kl_step(0))},
        ),
        Mutant(
            "reverse-contexts",
            "dies",
            "KL(π‖μ) does not see what only μ plays",
            {"sides": lambda x: (x.kl_seq, x.horizon * x.reverse_kl_max)},
        ),
    ),
)
def sequence_kl(x: Any) -> Any:
    """D = KL(μ‖π) of responses is at most T times the largest KL(μ‖π) of any context."""
    return x.kl_seq, x.horizon * x.kl_max


def _pinsker_slope() -> Evidence:
    """d/dq [KL(p‖q) − 2(p−q)²] = (q−p)(1−2q)²/(q(1−q)) for two outcomes: the gap is least at q = p."""
    p, q = sp.symbols("p q")
    gap = p * sp.log(p / q) + (1 - p) * sp.log((1 - p) / (1 - q)) - 2 * (p - q) ** 2
    slope = sp.diff(gap, q) - (q - p) * (1 - 2 * q) ** 2 / (q * (1 - q))
    return Evidence("lemma", sp.simplify(slope) == 0, "Pinsker for two outcomes: sign of the slope, symbolic")


@claim(
    "trm.2.5.0/pinsker",
    TRM,
    "slide 2.5.0",
    "Pinsker's inequality, either direction",
    sketch="Merge tokens into {p > q} and the rest; in two outcomes the difference KL − 2TV² has a derivative of one sign.",
    space=single_states(),
    sharpness="asymptotic",
    hypotheses=(ANY_SUPPORT,),
    proof=f"{PROOFS}#pinsker",
    latex=r"2\,\mathrm{TV}^2\le\min\{\mathrm{KL}(p\|q),\mathrm{KL}(q\|p)\}",
    lemmas=(_pinsker_slope,),
    mutants=(
        Mutant(
            "constant-three",
            "dies",
            "equality to second order at nearby distributions",
            {"sides": lambda x: (3 * x.tv**2, minimum(x.kl_pq, x.kl_qp))},
        ),
        Mutant(
            "max-for-min", "survives", "weaker", {"sides": lambda x: (2 * x.tv**2, maximum(x.kl_pq, x.kl_qp))}
        ),
    ),
)
def pinsker(x: Any) -> Any:
    """2·TV² ≤ KL(μ‖π) and 2·TV² ≤ KL(π‖μ)."""
    return 2 * x.tv**2, minimum(x.kl_pq, x.kl_qp)


@claim(
    "trm.2.5.0/visited",
    TRM,
    "slides 2.5.0 and 4.5.2",
    "The largest token KL is read off visited contexts",
    hypotheses=("visited: of positive probability under μ",),
    space=LAWS.with_sizes(*MULTI_STEP),
    given=lambda x: [(10, ">", x.kl_max)],
    corrected_by=("ours.s1", "ours.s3"),
    latex=r"\max_c\mathrm{KL}(c)=\max_{c\text{ visited}}\mathrm{KL}(c)",
    sketch="The maximum runs over about V^T contexts; stored logits cover those that were generated.",
    note="“Exactly computable from stored logits” is true context by context and not of the maximum over "
    "all contexts that the bounds contain. Even contexts that μ can visit, here counted as visited, are "
    "seen only in part by a sample.",
)
def visited_maximum(x: Any) -> Any:
    """The largest KL(μ‖π) of any context is at most the largest at the contexts that μ visits."""
    return x.kl_max, x.reachable_kl_max
