"""Trust Region Masking, slide 4.2.1: how the acceptance of the maximum criterion depends on length."""

from __future__ import annotations

from typing import Any

from opdtheory.claims.sources import TRM
from opdtheory.claims.trm_common import (
    MULTI_STEP,
    PROOFS,
    memoryless,
    with_threshold,
)
from opdtheory.spaces import LogBox, policy_pairs, single_states
from opdtheory.verification.claim import Mutant
from opdtheory.verification.registry import claim

# ------------------------------------------------------------ 4.2.1 length invariance

_THRESHOLD = {"threshold": LogBox((), 1e-3, 10.0)}


@claim(
    "trm.4.2.1",
    TRM,
    "slide 4.2.1",
    "The maximum criterion is invariant to length",
    hypotheses=("independent tokens",),
    relation=">=",
    signed=True,
    space=single_states(vocab=(2, 3), full_support=True, extra=_THRESHOLD),
    corrected_by=("trm.4.2.1-acceptance",),
    latex=r"\Pr[\max_{t\le4000}f(\rho_t)\le\delta]=\Pr[\max_{t\le100}f(\rho_t)\le\delta]",
    sketch="The largest of T samples grows with T in law: acceptance is P^T.",
    note="The printed example is constant f(ρ_t); with sampled tokens the statistic is a maximum of T "
    "draws. Lengths 100 and 4000 are the slide's.",
)
def invariance(x: Any) -> Any:
    """For independent tokens the criterion max_t |log ρ_t| ≤ δ accepts a response of 4000 tokens no less
    often than one of 100."""
    kept = x.within_log_ratio(x.threshold)
    return kept**4000, kept**100


@claim(
    "trm.4.2.1-acceptance",
    TRM,
    "slide 4.2.1",
    "Acceptance of the maximum criterion",
    nature="ours",
    sketch="A response passes if each of its T independent tokens does.",
    relation="==",
    sharpness="identity",
    space=memoryless((2, 2), (3, 2), (2, 4), extra=_THRESHOLD),
    hypotheses=("independent, identically distributed tokens",),
    proof=f"{PROOFS}#sampled",
    latex=r"\Pr[M=1]=P^T",
    note="With a share q of tokens beyond the threshold, (1−q)^T: at q = 10⁻³, 90 % of responses of 100 "
    "tokens and 2 % of those of 4000 are kept.",
    mutants=(
        Mutant(
            "length-free",
            "dies",
            "one token's chance is not a response's",
            {
                "sides": lambda x: (
                    x.acceptance("log_ratio", x.threshold),
                    x.first_token_acceptance(x.threshold),
                )
            },
        ),
        Mutant(
            "past-matters",
            "dies",
            "with a past that matters tokens are not independent",
            {"space": with_threshold(policy_pairs(reward=None, sizes=MULTI_STEP[:2]))},
        ),
    ),
)
def acceptance(x: Any) -> Any:
    """For independent tokens E_μ[M] = P^T, P the chance that one token has |log ρ| ≤ δ."""
    return x.acceptance("log_ratio", x.threshold), x.first_token_acceptance(x.threshold) ** x.horizon
