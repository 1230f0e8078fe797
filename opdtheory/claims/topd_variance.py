"""TOP-D: the variance bound of Theorem 4.2, the single-token supremum inside it, and what α controls."""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from math import ceil
from typing import Any

import flint
import numpy as np
from scipy.optimize import brentq

from opdtheory import bounds, spaces
from opdtheory.claims.sources import TOPD
from opdtheory.elementary import exp, log, sqrt
from opdtheory.tabular import SingleState
from opdtheory.verification import balls
from opdtheory.verification.blocks import LogBox
from opdtheory.verification.claim import Mutant
from opdtheory.verification.evidence import Evidence
from opdtheory.verification.registry import claim

STATES = spaces.single_states(full_support=True, extra={"alpha": (0.02, 0.98)})
TOKEN = spaces.scalars(p=LogBox((), 1e-4, 0.999999), q=LogBox((), 1e-8, 0.999999), alpha=(0.01, 0.99))
SHARP = "docs/sharper-results.md"
PROOFS = "docs/proofs/topd.md"
_VOCABULARY = 151936
_SCORE2 = 2  # ‖e_y − p‖² ≤ 2: the square of the score bound M for free logits


# ------------------------------------------------------------------------------------------ Theorem 4.2


@cache
def _rounded_constant() -> Fraction:
    """C* rounded up in the tenth decimal."""
    return Fraction(ceil(bounds.variance_constant() * 10**10), 10**10)


def _log_square(s: Any) -> Any:
    """C(t − 1) − log²t in s = log t ≥ 0, C just above C*."""
    c = _rounded_constant()
    return c.numerator * (exp(s) - 1) / c.denominator - s * s


def _stationary_point() -> Evidence:
    """w(t) = log t − 2(1 − 1/t) vanishes at t* = −2/W₀(−2e⁻²) in (2, e²); C* = log²t*/(t* − 1), in balls."""
    t = -2 / (-2 * flint.arb(-2).exp()).lambertw()
    root = t.log() - 2 * (1 - 1 / t)
    constant = t.log() ** 2 / (t - 1)
    inside = t > 2 and t < flint.arb(2).exp()
    agree = constant.overlaps(bounds.variance_constant(flint.arb(1)))
    detail = (
        f"t* = {t.mid().str(12, radius=False)} in (2, e²), w(t*) = 0 ± {float(root.rad()):.0e}, C* = "
        f"{constant.mid().str(12, radius=False)}"
    )
    return Evidence("check", bool(inside and root.contains(0) and agree), detail)


def _quoted_regime() -> tuple[bool, str]:
    """The printed bound beside the largest second moment that any vocabulary allows, at the paper's α."""
    lines = []
    for alpha in (0.1, 0.2):
        printed, true = bounds.topd_variance(alpha, _VOCABULARY, 1), bounds.topd_second_moment(alpha)
        lines.append(f"α = {alpha}: {float(printed):.3g}·M² printed, {float(true):.6f}·M² attainable")
    return True, f"with {_VOCABULARY} tokens, " + "; ".join(lines)


@claim(
    "topd.thm4.2",
    TOPD,
    "Theorem 4.2, Eqs 10, 16–32",
    "Bounded gradient variance",
    space=STATES,
    relation="<=",
    sharpness="loose",
    corrected_by=("topd.thm4.2-sharp",),
    depends_on=("topd.lemma28",),
    proof=f"{PROOFS}#thm4-2",
    checks=(_stationary_point,),
    lemmas=(balls.lemma("log²t ≤ C(t − 1) on [1, e⁴⁰]", _log_square, [(0, 40)], zeros=[0], order=1),),
    vacuous_as_quoted=_quoted_regime,
    useful_when="the vocabulary is small: the bound grows like |V| where the "
    "truth, K(α), does not depend on it",
    hypotheses=("‖∇log π‖ ≤ M; here M² = 2, one free logit a token",),
    sketch="Var ≤ second moment ≤ M² E_p[r̃²], and E_p[r̃²] is a sum of |V| terms p log²(αq/p + 1 − α), "
    "each at most max{log²(1−α), C*α}. The terms "
    "cannot all be large at once (their p sum to 1), which is where the factor |V| is lost.",
    latex=r"\mathrm{Var}(\tilde g)\le M^2|\mathcal V|\max\{\log^2(1-\alpha),C^*\alpha\}",
    mutants=(
        Mutant(
            "no vocabulary, no maximum",
            "dies",
            "log²(1−α) alone is exceeded when a rare token gains",
            {"sides": lambda x: (x.topd_second_moment(x.alpha), log(1 - x.alpha) ** 2)},
        ),
        Mutant(
            "no vocabulary",
            "dies",
            "K(α) exceeds either branch where the two are of one size",
            {"sides": lambda x: (x.topd_second_moment(x.alpha), bounds.topd_term_bound(x.alpha))},
        ),
        Mutant(
            "two in place of the vocabulary",
            "survives",
            "K(α) ≤ log²(1−α) + C*α ≤ twice the maximum",
            {"sides": lambda x: (x.topd_second_moment(x.alpha), 2 * bounds.topd_term_bound(x.alpha))},
        ),
    ),
)
def variance(x: Any) -> tuple[Any, Any]:
    """The variance of r̃ ∇log π at a context is at most M²·|V|·max{log²(1−α), C*α}, C* = log²t*/(t*−1), t* =
    −2/W₀(−2e⁻²).
    """
    return x.topd_gradient_variance(x.alpha), bounds.topd_variance(x.alpha, x.vocab, sqrt(_SCORE2))


# ------------------------------------------------------------------------------------------------ Eq 28


def _term(s: Any) -> Any:
    reward = log(s.alpha * s.q / s.p + 1 - s.alpha)
    return s.p * reward * reward


def _crossings() -> Evidence:
    """The α at which both branches are equal: with the exact supremum of the second one, and as printed."""
    exact = brentq(lambda a: np.log1p(-a) ** 2 - bounds.topd_positive_supremum(a), 0.1, 0.9, xtol=1e-13)
    printed = brentq(lambda a: np.log1p(-a) ** 2 - bounds.variance_constant() * a, 0.1, 0.9, xtol=1e-13)
    grid = np.linspace(0.001, 0.999, 500)
    below = bool((bounds.topd_positive_supremum(grid) < bounds.variance_constant() * grid).all())
    small = float(bounds.topd_positive_supremum(1e-7) / (bounds.variance_constant() * 1e-7))
    detail = (
        f"branches cross at α = {exact:.10f} (value {np.log1p(-exact) ** 2:.5f}), as printed at "
        f"{printed:.10f}; exact second branch below "
        f"C*α on (0, 1), ratio {small:.6f} at α = 1e-7"
    )
    return Evidence("check", exact < printed and below and abs(small - 1) < 1e-3, detail)


@claim(
    "topd.lemma28",
    TOPD,
    "Eqs 18–28",
    "Single-token supremum",
    hypotheses=("0 < p, q < 1", "0 < α < 1",),
    space=TOKEN,
    relation="<=",
    sharpness="tight",
    proof=f"{SHARP}#topd-lemma28",
    checks=(_crossings,),
    lemmas=(balls.lemma("log²t ≤ C(t − 1) on [1, e⁴⁰]", _log_square, [(0, 40)], zeros=[0], order=1),),
    corrected_by=("topd.lemma28/case2",),
    sketch="q < p: αq/p + 1 − α lies in (1 − α, 1), so the square is below log²(1−α), approached as q → 0, "
    "p → 1. q ≥ p: the ratio is at most 1/p, and "
    "log²(1 + αu)/u has its maximum C*α at αu = t* − 1. Dropping −α there costs something: the "
    "second branch is no supremum.",
    latex=r"\sup_{p,q}p\log^2(\alpha q/p+1-\alpha)\le\max\{\log^2(1-\alpha),C^*\alpha\}",
    mutants=(
        Mutant(
            "first branch only",
            "dies",
            "rare tokens the teacher likes",
            {"sides": lambda s: (_term(s), log(1 - s.alpha) ** 2)},
        ),
        Mutant(
            "second branch only",
            "dies",
            "common tokens the teacher refuses",
            {"sides": lambda s: (_term(s), bounds.variance_constant(s.alpha) * s.alpha)},
        ),
    ),
)
def token_supremum(s: Any) -> tuple[Any, Any]:
    """For one token, p·log²(αq/p + 1 − α) ≤ max{log²(1−α), C*α} for all p, q in (0, 1)."""
    return _term(s), bounds.topd_term_bound(s.alpha)


def _tangent_weight(s: Any) -> Any:
    """The α at which the maximum over the ratio x sits at log(1 − α + αx) = s: 2(t − 1 + α) = t log t with t
    = eˢ.
    """
    return 1 - exp(s) * (1 - s / 2)


def _tangent_is_lambert() -> Evidence:
    """The parametrisation by s and the closed form t = exp(2 + W₀(−2(1−α)e⁻²)) give one value."""
    s = np.linspace(1.5937, 1.9999, 400)
    alpha = _tangent_weight(s)
    gap = float(np.abs(2 * alpha * s * np.exp(-s) - bounds.topd_positive_supremum(alpha)).max())
    return Evidence("check", gap < 1e-12, f"2α log t/t from the root and from W₀ differ by at most {gap:.0e}")


@claim(
    "topd.lemma28/case2",
    TOPD,
    "Eqs 21–27",
    "Exact supremum where the teacher gains",
    hypotheses=("q ≥ p", "0 < α < 1, given through s = log t",),
    space=spaces.scalars(p=LogBox((), 1e-4, 0.9999), share=(0.0, 1.0), s=(1.6, 1.99)),
    relation="<=",
    nature="ours",
    sharpness="tight",
    proof=f"{SHARP}#topd-lemma28",
    checks=(_tangent_is_lambert,),
    sketch="With x = q/p ≥ 1 the term is at most log²(1−α+αx)/x, q = 1 being best; the maximum over x "
    "solves 2(t−1+α) = t log t for t = 1 − α + αx. "
    "Here α is given through s = log t.",
    latex=r"\sup_{q\ge p}p\log^2(\alpha "
    r"q/p+1-\alpha)=\frac{2\alpha\log t}{t},\quad "
    r"t=e^{2+W_0(-2(1-\alpha)e^{-2})}",
    mutants=(
        Mutant(
            "a-hundredth-to-spare",
            "dies",
            "attained at q = 1",
            {"factor": Fraction(99, 100)},
        ),
        Mutant(
            "printed-with-half",
            "dies",
            "half of the supremum",
            {"factor": Fraction(1, 2)},
        ),
    ),
)
def gaining_token(x: Any) -> tuple[Any, Any]:
    """For q ≥ p (q = p + share·(1 − p)), p·log²(αq/p + 1 − α) ≤ 2αs/eˢ, where s = 2 + W₀(−2(1−α)e⁻²)."""
    q, alpha = x.p + x.share * (1 - x.p), _tangent_weight(x.s)
    reward = log(alpha * q / x.p + 1 - alpha)
    return x.p * reward * reward, 2 * alpha * x.s * exp(-x.s)


# ------------------------------------------------------------------------------------------ Remark 4.3


def _rates() -> Evidence:
    """K(α)/α between constants as α → 0, and K(α)/log²(1−α) → 1 as α → 1."""
    small = [float(bounds.topd_second_moment(a) / a) for a in (1e-2, 1e-4, 1e-6)]
    large = [float(bounds.topd_second_moment(1 - a)) for a in (1e-2, 1e-6, 1e-12)]
    limit = bounds.variance_constant()
    ok = abs(small[-1] - limit) < 1e-3 and large[0] < large[1] < large[2] and large[2] > 100
    detail = (
        f"K(α)/α = {small[0]:.4f}, {small[1]:.4f}, {small[2]:.4f} → C* as α → 0; K(1−α) = {large[0]:.1f}, "
        f"{large[1]:.0f}, {large[2]:.0f}"
    )
    return Evidence("check", ok, detail + " at α = 1e-2, 1e-6, 1e-12")


def _noise_to_signal(state: SingleState, alpha: Any) -> tuple[Any, Any]:
    """Var/‖mean‖² of the token gradient, for the proximal reward and for the log ratio."""
    ours = state.topd_gradient_variance(alpha) / state.topd_gradient_norm2(alpha)
    return ours, state.opd_gradient_variance / state.opd_gradient_norm2


def _both_directions() -> Evidence:
    """Random contexts where α = 0.1 improves the relative noise, and where it worsens it."""
    rng = np.random.default_rng(3)
    p, q = rng.dirichlet(np.full(4, 0.5), 4000) + 1e-9, rng.dirichlet(np.full(4, 0.5), 4000) + 1e-9
    state = SingleState(p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True))
    mixed, plain = _noise_to_signal(state, np.full(4000, 0.1))
    better, ratio = float(np.mean(mixed < plain)), mixed / plain
    detail = (
        f"α = 0.1: relative noise falls at {better:.0%} of 4000 random contexts, ratio from "
        f"{ratio.min():.2g} to {ratio.max():.2g}"
    )
    return Evidence("check", 0.0 < better < 1.0, detail)


@claim(
    "topd.rem4.3",
    TOPD,
    "Remark 4.3",
    "α controls the variance",
    hypotheses=("full supports", "0 < α < 1",),
    space=STATES,
    relation="<=",
    sharpness="asymptotic",
    checks=(_rates,),
    depends_on=("topd.thm4.2-sharp",),
    proof=f"{PROOFS}#rem4-3",
    sketch="E_p[r̃²] ≤ K(α) ≤ log²(1−α) + C*α, which vanishes like α uniformly over students, teachers and "
    "vocabularies; the lower order is real, "
    "since K(α) is attained. As α → 1 the bound diverges with log²(1−α), and so does what it bounds.",
    latex=r"\mathbb{E}_p[\tilde r^2]\le\log^2(1-\alpha)+C^*\alpha",
    useful_when="the scale of the gradient matters: the mean shrinks with α too, see topd.rem4.3/noise",
    mutants=(
        Mutant(
            "quadratic in α",
            "dies",
            "the rate α is attained",
            {"sides": lambda x: (x.topd_second_moment(x.alpha), 4 * log(1 - x.alpha) ** 2)},
        ),
        Mutant(
            "linear part only",
            "dies",
            "a teacher that refuses a common token costs log²(1−α)",
            {"sides": lambda x: (x.topd_second_moment(x.alpha), bounds.variance_constant(x.alpha) * x.alpha)},
        ),
    ),
)
def controls(x: Any) -> tuple[Any, Any]:
    """For every context E_p[r̃²] ≤ log²(1−α) + C*α: of order α as α → 0, divergent as α → 1."""
    return x.topd_second_moment(x.alpha), bounds.topd_second_moment_simple(x.alpha)


@claim(
    "topd.rem4.3/noise",
    TOPD,
    "Remark 4.3, read as less noise",
    "Mixing lowers the noise relative to the signal",
    hypotheses=("full supports, free logits",),
    corrected_by=("topd.rem4.3", "topd.eq5/second-moment"),
    space=spaces.single_states(full_support=True, vocab=(2, 3), extra={"alpha": (0.02, 0.5)}),
    relation="<=",
    checks=(_both_directions,),
    sketch="Both the variance and the mean shrink with α. To first order r̃ = α(ρ − 1): what remains is the "
    "noise of the ratio itself, which may be "
    "larger or smaller, relative to its mean, than that of log ρ. An optimiser that rescales "
    "gradients sees only this quotient.",
    latex=(
        r"\frac{\mathrm{Var}(\tilde g)}{\|\mathbb{E}\tilde g\|^2}\le"
        r"\frac{\mathrm{Var}(g)}{\|\mathbb{E}g\|^2}"
    ),
    note="A reading, not the paper's wording; recorded because AdamW and z-scored advantages make updates "
    "insensitive to the scale that α controls.",
)
def relative_noise(x: Any) -> tuple[Any, Any]:
    """The variance of r̃ ∇log π divided by its squared mean is at most that of r ∇log π (written without
    quotients).
    """
    return x.topd_gradient_variance(
        x.alpha
    ) * x.opd_gradient_norm2, x.opd_gradient_variance * x.topd_gradient_norm2(x.alpha)
