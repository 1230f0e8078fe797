"""Trust Region Masking, section 2.5: the orders in T of the printed bounds are never attained."""

from __future__ import annotations

from typing import Any

from opdtheory import bounds
from opdtheory.claims.sources import TRM
from opdtheory.claims.trm_common import ANY_SUPPORT, FINITE, INTERIOR, MULTI_STEP, PROOFS, UNIT, WORST
from opdtheory.elementary import absolute, exact, sqrt
from opdtheory.verification.claim import Mutant
from opdtheory.verification.registry import claim


def _root(x: Any) -> Any:
    """√T."""
    return sqrt(exact(x.horizon)) if x.behavior.is_exact else x.horizon**0.5


@claim(
    "trm.2.5.4/order",
    TRM,
    "slide 2.5.4, its order",
    "The order of the Pinsker-marginal bound is never attained",
    space=WORST,
    nature="ours",
    sharpness="loose",
    hypotheses=(UNIT, ANY_SUPPORT),
    depends_on=("ours.s1",),
    proof=f"{PROOFS}#order",
    latex=r"\tfrac43\sqrt T\,|\mathrm{Error}|\le\tfrac43T^{3/2}\delta,\qquad\sup_{T}\frac{|\mathrm{Error}|}{T\delta}=1",
    sketch="|Error| ≤ D ≤ Tδ (ours.s1), so the printed bound is at least (4/3)√T times the error, for every pair at every T.",
    note="With reward, policies and T free the error does grow like Tδ (instance of ours.s4, δ → 0, Tδ → ∞): linear is the true order.",
    mutants=(
        Mutant(
            "twice-the-room",
            "dies",
            "the error comes within a factor of 2 of Tδ",
            {"sides": lambda x: (4 * absolute(x.error), x.horizon * x.kl_max), "space": WORST.with_sizes(*MULTI_STEP[-1:])},
        ),
        Mutant("room-of-order-T", "dies", "a bound of order one in T would be exceeded", {"sides": lambda x: (absolute(x.error), x.kl_max / 2)}),
    ),
)  # fmt: skip
def order_of_marginal(x: Any) -> Any:
    """(4/3)√T times |J(π) − J(μ) − L| is still below (4/3)T^{3/2}δ, for every pair of policies and every horizon: no family of
    instances makes the error grow like T^{3/2}δ."""
    return 4 * _root(x) * absolute(x.error) / 3, bounds.pinsker_marginal(x.horizon, x.kl_max)


@claim(
    "trm.2.5.5/order",
    TRM,
    "slide 2.5.5, its order",
    "The order of the mixed bound is never attained",
    space=INTERIOR,
    nature="ours",
    sharpness="loose",
    hypotheses=(UNIT, FINITE),
    depends_on=("ours.s1",),
    proof=f"{PROOFS}#order",
    latex=r"2\sqrt T\,|\mathrm{Error}|\le2T\sqrt{\delta D}",
    sketch="|Error| ≤ D = √D·√D ≤ √(Tδ)·√D (ours.s1 and D ≤ Tδ): the printed bound is at least 2√T times the error.",
    mutants=(
        Mutant("four-times-the-room", "dies", "the error comes within a factor of 4 of √(TδD)", {"sides": lambda x: (8 * _root(x) * absolute(x.error), bounds.mixed(x.horizon, x.kl_max, x.kl_seq))}),
        Mutant("first-step", "dies", "the largest divergence may come later", {"sides": lambda x: (2 * _root(x) * absolute(x.error), bounds.mixed(x.horizon, x.kl_step(0), x.kl_seq))}),
    ),
)  # fmt: skip
def order_of_mixed(x: Any) -> Any:
    """2√T times |J(π) − J(μ) − L| is still below 2T√(δD), for every pair of policies and every horizon."""
    return 2 * _root(x) * absolute(x.error), bounds.mixed(x.horizon, x.kl_max, x.kl_seq)
