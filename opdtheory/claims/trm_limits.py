"""Trust Region Masking, sections 2.5.6, 2.6, A.7 and A.8: what is said to be impossible, and what the bounds
are worth."""

from __future__ import annotations

from typing import Any

import flint
import numpy as np

from opdtheory import bounds
from opdtheory.claims.sources import TRM
from opdtheory.claims.trm_common import (
    ANY_SUPPORT,
    DELTA,
    FINITE,
    FINITE_LAWS,
    LAWS,
    LONG,
    MULTI_STEP,
    PROOFS,
    UNIT,
    sized,
    table,
    vacuous,
)
from opdtheory.elementary import exact, maximum, minimum, sqrt
from opdtheory.spaces import LogBox, Space, policy_pairs, scalars
from opdtheory.tabular import PolicyPair, TokenTree
from opdtheory.verification.balls import lemma
from opdtheory.verification.blocks import Values
from opdtheory.verification.claim import Mutant
from opdtheory.verification.evidence import Evidence
from opdtheory.verification.registry import claim, entry

_FREE_INTERIOR = policy_pairs(full_support=True)

# ------------------------------------------------------------ 2.5.6, A.7, A.8 what is said to be impossible


@claim(
    "trm.2.5.6",
    TRM,
    "slide 2.5.6 and A.8",
    "No bound by the sequence KL alone exists",
    hypotheses=("R in [0, 1], the worst reward", "full support"),
    space=FINITE_LAWS.with_sizes(*MULTI_STEP),
    relation=">",
    signed=True,
    given=lambda x: [(x.kl_max, ">", 1), (1, ">", 5 * x.kl_seq), (100 * x.error_sup, ">", 1)],
    corrected_by=("ours.s1",),
    latex=r"\nexists f:\ |\mathrm{Error}|\le f(D_{\mathrm{seq}})",
    sketch="ours.s1 is such a bound, with f(D) = D. A rare context may have a large KL; for the same reason "
    "it contributes little to the error.",
    note="A statement of non-existence is refuted by the theorem ours.s1. The certificate refutes the "
    "instances offered for it: the rare-context pairs of A.8 do not violate even the simplest candidate, "
    "f(D) = D, for the worst reward in [0, 1]. The table on the same slide is trm.2.5.7.",
)
def no_sequence_bound(x: Any) -> Any:
    """Where some context has KL(μ‖π) above 1 while D < 1/5, an error that matters (over 1/100 for the worst
    reward) exceeds D."""
    return x.error_sup, x.kl_seq


def _level(rows: list[list[Any]]) -> np.ndarray:
    """A level array of one instance (exact entries) or of many lanes (float arrays)."""
    if isinstance(rows[0][0], flint.fmpq):
        return np.array(rows, dtype=object)
    return np.moveaxis(np.array(rows), -1, 0)


def rare_context(level: Any) -> Space:
    """A.8's family: policies that differ at one context of probability ε after the first token, with KL
    about ``level(m)``, and D ≤ η.

    ``level`` maps the target m to the whole number k; at the rare context μ = (½, ½), π = (1−z, z) with z
    = 2^{−k}/4, so that
    KL = ½log(1/(4z(1−z))) lies between k·½log 2 and k·½log 2 + ½log(4/3).
    """

    def blocks(**_: Any) -> dict[str, Any]:
        return {"m": LogBox((), 1.0, 50.0), "eta": LogBox((), 1e-6, 1.0)}

    def build(b: Values, vocab: int, horizon: int, eos: int | None, prompts: int) -> PolicyPair:
        tree = TokenTree(vocab=vocab, horizon=horizon, eos=eos, prompts=prompts)
        m, eta = (b[k] if b[k].shape else b[k].item() for k in ("m", "eta"))
        if isinstance(m, flint.fmpq):
            k = level(-(-int(m.p) // int(m.q)))
            z, rare = exact(1) / (4 * 2**k), min(eta / (2 * k), exact("1/2"))
        else:
            k = level(np.ceil(m))
            z, rare = np.exp2(-1.0 * k) / 4 + 0 * m, np.minimum(eta / (2 * k), 0.5)
        half = z * 0 + (exact("1/2") if isinstance(m, flint.fmpq) else 0.5)
        root = _level([[1 - rare, rare]])
        mu, pi = _level([[half, half], [half, half]]), _level([[half, half], [1 - z, z]])
        return PolicyPair.from_levels(
            tree, [root, mu], [root, pi], [0 * root, 0 * mu], validate=False, m=m, eta=eta
        )

    return Space(
        kind="policy_pair",
        sizes=sized((2, 2)),
        blocks=blocks,
        build=build,
        serialise=lambda x: x.to_data(),
        structure=lambda vocab, horizon, eos, prompts: {"V": vocab, "T": horizon, "horizon": horizon},
        conditions=lambda x: [(x.tv_step(0), "==", 0), (x.kl_seq, "<=", x.eta)],
        reach=(2, 2),
        description="policies that differ at one rare context, m ∈ [1, 50], η ∈ [1e-6, 1]",
    )


@claim(
    "trm.a8",
    TRM,
    "A.8",
    "The largest token KL is no function of the sequence KL",
    space=rare_context(lambda m: 3 * m),
    sharpness="loose",
    hypotheses=("one rare context",),
    assumption="the KL at the rare context is unbounded",
    unassumed={"space": rare_context(lambda m: 3)},
    latex=r"\nexists f:\ D_{\max}\le f(D_{\mathrm{seq}})",
    proof=f"{PROOFS}#rare-context",
    sketch="For every m and η the instance has D_max ≥ m and D ≤ η. With the printed D_max = 1 the constant "
    "f = 1 is a bound.",
    note="True, and of no consequence for bounds on the error: see trm.2.5.6.",
    mutants=(
        Mutant(
            "smaller-share",
            "dies",
            "D is of the order of η, not of its square",
            {"sides": lambda x: (maximum(x.m / x.kl_max, x.kl_seq / (x.eta * x.eta)), 1)},
        ),
        Mutant(
            "stronger",
            "dies",
            "three halves of m is more than this family offers",
            {"sides": lambda x: (maximum(3 * x.m / (2 * x.kl_max), x.kl_seq / x.eta), 1)},
        ),
    ),
)
def rare(x: Any) -> Any:
    """For every m ≥ 1 and η > 0 there are policies, different at one rare context only, with max_c KL(μ‖π)(c)
    ≥ m and D ≤ η: the larger of m/D_max and D/η is at most 1."""
    return maximum(x.m / x.kl_max, x.kl_seq / x.eta), 1


@claim(
    "trm.a7",
    TRM,
    "A.7",
    "Growth like √t needs the chain rule of KL",
    hypotheses=("responses of fixed length",),
    space=LAWS.with_sizes(*sized((2, 3), (2, 4), (3, 3))),
    relation=">=",
    signed=True,
    corrected_by=("trm.a7-hellinger",),
    latex=r"\text{“impossible with TV alone”}",
    sketch="Affinities multiply along a response, so Hellinger distances grow like √t as well, and stay "
    "finite where KL does not.",
    note="Read as: whatever else is known of the token laws, a bound that does not use KL is no better than "
    "the linear one or the trivial one, except where the KL bound is better still.",
)
def needs_kl(x: Any) -> Any:
    """The Hellinger bound √(1 − (1−h)^{2(T−1)}) on the TV of context laws is never below the smallest of 1,
    (T−1)ε and √((T−1)δ/2)."""
    linear = bounds.marginal_tv_simulation(x.horizon - 1, x.tv_max)
    chained = bounds.marginal_tv_pinsker(x.horizon - 1, x.kl_max)
    return bounds.sequence_tv_hellinger(x.horizon - 1, x.hellinger2_max), minimum(minimum(1, linear), chained)


@claim(
    "trm.a7-hellinger",
    TRM,
    "A.7",
    "Context laws by Hellinger distance",
    space=LAWS.with_sizes(*MULTI_STEP),
    nature="ours",
    sharpness="tight",
    hypotheses=(ANY_SUPPORT,),
    proof=f"{PROOFS}#context-laws",
    latex=r"\mathrm{TV}(d_t^\mu,d_t^\pi)\le\sqrt{1-(1-h)^{2(t-1)}}\le\sqrt{2(t-1)h}",
    sketch="Σ√(d^μ d^π) is at least (1−h)^{t−1}; Cauchy–Schwarz.",
    mutants=(
        Mutant(
            "one-step-fewer",
            "dies",
            "t − 1 tokens were drawn",
            {
                "sides": lambda x: (
                    x.marginal_tv(x.horizon - 1),
                    bounds.sequence_tv_hellinger(x.horizon - 2, x.hellinger2_max),
                )
            },
        ),
        Mutant(
            "squared",
            "dies",
            "TV is bounded by the root",
            {
                "sides": lambda x: (
                    x.marginal_tv(x.horizon - 1),
                    bounds.sequence_tv_hellinger(x.horizon - 1, x.hellinger2_max) ** 2,
                )
            },
        ),
    ),
)
def hellinger(x: Any) -> Any:
    """The laws of contexts after T − 1 tokens have TV at most √(1 − (1−h)^{2(T−1)}), h the largest squared
    Hellinger distance ½Σ(√μ − √π)²."""
    return x.marginal_tv(x.horizon - 1), bounds.sequence_tv_hellinger(x.horizon - 1, x.hellinger2_max)


# ------------------------------------------------------------ 2.5.7 numbers

_UNIFORM, _SPARSE = LONG * DELTA, exact("1/100")


def _comparison() -> list[tuple[str, Any, str]]:
    quadratic, marginal = bounds.trpo_kl(LONG, DELTA), bounds.pinsker_marginal(LONG, DELTA)
    sparse = bounds.mixed(LONG, DELTA, _SPARSE)
    return [
        ("T(T−1)δ", quadratic, "1677"),
        ("(4/3)T^{3/2}δ", marginal, "35.0"),
        ("D = Tδ", _UNIFORM, "0.41"),
        ("2T√(δD), D = Tδ", bounds.mixed(LONG, DELTA, _UNIFORM), "52.4"),
        ("2T√(δD), D = 0.01", sparse, "8.2"),
        ("T(T−1)δ over (4/3)T^{3/2}δ", quadratic / marginal, "48"),
        ("T(T−1)δ over 2T√(δD), D = 0.01", quadratic / sparse, "205"),
    ]


entry(
    "trm.2.5.7",
    TRM,
    "slides 2.5.2, 2.5.7, 2.6.4 and 4.5.2",
    "The printed numbers",
    statement="At T = 4096 and δ = 10⁻⁴: 1677, 35.0, D = 0.41, 52.4, and 8.2 at D = 0.01; 48 times tighter, "
    "and “up to 200 times” (204.7).",
    proofs=(table("numbers", _comparison),),
    hypotheses=("T = 4096, δ = 10⁻⁴", "D = Tδ or D = 0.01"),
    latex=r"T(T-1)\delta,\ \tfrac43T^{3/2}\delta,\ 2T\sqrt{\delta D}",
    sketch="The formulas of 2.5.1, 2.5.4 and 2.5.5 at the printed T, δ and D, in exact arithmetic and balls.",
    vacuous_as_quoted=lambda: vacuous(bounds.mixed(LONG, DELTA, _SPARSE)),
    sharpness="identity",
    note="Arithmetically right. Every one of these bounds exceeds 1, the largest change that a reward in "
    "[0, 1] allows; |Error| ≤ D reads 0.41 and 0.01.",
)


# ------------------------------------------------------------ 2.6 the minorizer


def _minorizer_vacuous() -> tuple[bool, str]:
    """Compare the penalty with the largest surrogate √(D/2) + D in both quoted scenarios."""
    said, always = [], True
    for kl_seq in (_UNIFORM, _SPARSE):
        penalty = minimum(bounds.pinsker_marginal(LONG, DELTA), bounds.mixed(LONG, DELTA, kl_seq))
        largest = flint.arb(bounds.surrogate_limit(kl_seq))
        always = always and bool(largest < penalty)
        d, cost = float(flint.arb(kl_seq).mid()), float(flint.arb(penalty).mid())
        said.append(f"D = {d:g}: L ≤ {float(largest.mid()):.3f}, penalty {cost:.1f}")
    return always, "; ".join(said)


@claim(
    "trm.2.6.1",
    TRM,
    "slide 2.6.1",
    "Minorizer",
    sketch="J(π) − J(μ) = L + Error ≥ L − |Error|, and the two bounds on |Error|.",
    space=_FREE_INTERIOR,
    relation=">=",
    signed=True,
    sharpness="loose",
    hypotheses=(UNIT, FINITE),
    depends_on=("trm.2.5.4", "trm.2.5.5"),
    proof=f"{PROOFS}#error",
    corrected_by=("ours.s1", "ours.s8"),
    latex=r"J(\pi)-J(\mu)\ge L-\min\{\tfrac43T^{3/2}\delta,\,2T\sqrt{\delta D}\}",
    vacuous_as_quoted=_minorizer_vacuous,
    useful_when="only D < 1/(2(4√T/3 − 1)²) lets it be positive: 7.0·10⁻⁵ nats a response at T = 4096",
    mutants=(
        Mutant(
            "penalty-dropped",
            "dies",
            "L alone is no lower bound",
            {"sides": lambda x: (x.improvement, x.surrogate)},
        ),
        Mutant(
            "eighth-of-the-penalty",
            "dies",
            "an eighth is too little",
            {
                "sides": lambda x: (
                    x.improvement,
                    x.surrogate
                    - (x.surrogate - bounds.trm_minorizer(x.surrogate, x.horizon, x.kl_max, x.kl_seq)) / 8,
                )
            },
        ),
        Mutant(
            "rewards-to-6",
            "dies",
            "the penalty scales with the range of R",
            {"space": policy_pairs(reward=(0.0, 6.0), full_support=True, sizes=MULTI_STEP)},
        ),
    ),
)
def minorizer(x: Any) -> Any:
    """J(π) − J(μ) ≥ L − min((4/3)T^{3/2}δ, 2T√(δD))."""
    return x.improvement, bounds.trm_minorizer(x.surrogate, x.horizon, x.kl_max, x.kl_seq)


@claim(
    "trm.2.6.1/region",
    TRM,
    "slide 2.6.1",
    "Where the minorizer can be positive",
    nature="ours",
    sharpness="loose",
    space=scalars(D=LogBox((), 1e-7, 10.0), root=(1.5, 64.0)),
    proof=f"{PROOFS}#error",
    depends_on=("ours.s7",),
    signed=True,
    given=lambda x: [(x.D * 2 * (4 * x.root / 3 - 1) * (4 * x.root / 3 - 1), ">", 1)],
    hypotheses=("D ≤ Tδ", "T ≥ 2"),
    latex=r"M>0\implies D<\frac1{2(\frac43\sqrt T-1)^2}",
    sketch="L ≤ √(D/2) + D, and both penalties are at least (4/3)√T·D because δ ≥ D/T.",
    mutants=(
        Mutant(
            "surrogate-doubled",
            "dies",
            "√(2D) is more than the largest surrogate",
            {"sides": lambda x: (2 * bounds.surrogate_limit(x.D), 4 * x.root * x.D / 3)},
        ),
        Mutant(
            "larger-region",
            "dies",
            "half the threshold",
            {"given": lambda x: [(x.D * 4 * (4 * x.root / 3 - 1) * (4 * x.root / 3 - 1), ">", 1)]},
        ),
    ),
)
def minorizer_region(x: Any) -> Any:
    """With root = √T and D ≥ 1/(2(4√T/3 − 1)²) the largest surrogate √(D/2) + D is at most the smallest
    penalty (4/3)√T·D."""
    return bounds.surrogate_limit(x.D), 4 * x.root * x.D / 3


@claim(
    "trm.2.6.5",
    TRM,
    "slide 2.6.5",
    "The constraint on KL(π‖μ) bounds the minorizer",
    hypotheses=("full support",),
    space=policy_pairs(reward=None, full_support=True),
    relation=">=",
    signed=True,
    misprint=True,
    corrected_by=("trm.2.6.1",),
    latex=r"D_{\max}(\pi\|\mu)\le\delta\implies M\ge L-\min\{\tfrac43T^{3/2}\delta,2T\sqrt{\delta D}\}",
    sketch="The bounds contain KL(μ‖π), the constraint on the same slide KL(π‖μ); neither bounds the other.",
    note="Evidently a slip of direction: with KL(μ‖π) in the constraint the statement is trm.2.6.1.",
)
def constraint_direction(x: Any) -> Any:
    """With δ the largest KL(π‖μ), M = L − penalty(max KL(μ‖π)) is at least L − penalty(δ)."""
    return (
        bounds.trm_minorizer(0, x.horizon, x.kl_max, x.kl_seq),
        bounds.trm_minorizer(0, x.horizon, x.reverse_kl_max, x.kl_seq),
    )


@claim(
    "trm.2.6.5/equivalent",
    TRM,
    "slide 2.6.5",
    "Maximising M is maximising L in a trust region",
    hypotheses=("one step, two actions, R in [0, 1]",),
    corrected_by=("trm.2.6.1",),
    space=_FREE_INTERIOR.with_sizes(*sized((2, 1))),
    relation=">=",
    signed=True,
    given=lambda x: [(x.surrogate, ">", 0)],
    latex=r"\arg\max M=\arg\max\{L:D_{\max}\le\delta\}",
    sketch="For two actions and one step any π with L > 0 maximises L in the trust region of its own "
    "radius; its M can be far below M(μ) = 0.",
    note="A penalty and a constraint are equivalent for one matched radius, not for a given δ.",
)
def constrained_maximiser(x: Any) -> Any:
    """With two actions and one step, where a π with L > 0 is the maximiser of L subject to D_max ≤ D_max(π),
    it has M(π) ≥ M(μ) = 0."""
    return bounds.trm_minorizer(x.surrogate, x.horizon, x.kl_max, x.kl_seq), 0


def _never_positive() -> Evidence:
    """For every D between the two scenarios the largest surrogate is below the penalty, by balls."""

    def margin(d: Any) -> Any:
        # the smaller penalty changes at D = 4Tδ/9; both are needed
        return 4 * exact(64**3) * DELTA / 3 - bounds.surrogate_limit(d)

    first = lemma("√(D/2) + D ≤ (4/3)T^{3/2}δ", margin, [(_SPARSE, _UNIFORM)])()
    second = lemma(
        "√(D/2) + D ≤ 2T√(δD)",
        lambda d: 2 * LONG * sqrt(DELTA * d) - bounds.surrogate_limit(d),
        [(_SPARSE, _UNIFORM)],
    )()
    return Evidence(
        "lemma",
        first.ok and second.ok,
        f"at T = {LONG}, δ = 1e-4, every D in [0.01, 0.41]: {first.detail}; {second.detail}",
    )


@claim(
    "trm.nonvacuous",
    TRM,
    "outline, contributions and slide 4.5.2",
    "The first non-vacuous guarantee",
    hypotheses=("T = 4096, δ = 10⁻⁴, D in [0.01, 0.41]", "R in [0, 1]"),
    space=scalars(horizon=(4096, 4096), kl_max=(1e-4, 1e-4), kl_seq=LogBox((), 0.01, 0.4096)),
    lemmas=(_never_positive,),
    depends_on=("ours.s7",),
    corrected_by=("ours.s1", "ours.s3"),
    latex=r"M>0\text{ is possible at }T=4096,\ \delta=10^{-4}",
    sharpness="loose",
    sketch="No pair of policies with this D has a surrogate above √(D/2) + D; the penalty is at least forty "
    "times that.",
    note="Whether an earlier guarantee was vacuous does not matter: at the source's own numbers this one "
    "is, for every instance.",
)
def nonvacuous(x: Any) -> Any:
    """At T = 4096, δ = 10⁻⁴ and a sequence KL D in [0.01, 0.41] the guarantee can be positive: the penalty
    min((4/3)T^{3/2}δ, 2T√(δD)) is at most the largest possible surrogate √(D/2) + D."""
    penalty = minimum(
        bounds.pinsker_marginal(x.horizon, x.kl_max), bounds.mixed(x.horizon, x.kl_max, x.kl_seq)
    )
    return penalty, bounds.surrogate_limit(x.kl_seq)
