"""Trust Region On-Policy Distillation (TrOPD): top-k forward KL, generalised JSD and guidance, at one state."""

from __future__ import annotations

from typing import Any

import numpy as np

from opdtheory import divergences, spaces
from opdtheory.claims.sources import TROPD
from opdtheory.claims.tropd import INTERIOR, INTERIOR_PAIR, PROOFS, agree, random_states
from opdtheory.elementary import log, minimum
from opdtheory.verification.claim import Mutant
from opdtheory.verification.evidence import Evidence
from opdtheory.verification.registry import claim, entry

TOPK = spaces.single_states(vocab=(3, 4, 6))
WEIGHTED = spaces.single_states(full_support=True, extra={"alpha": (0.01, 0.99)})

# ------------------------------------------------------------------------------------------ top-k forward KL


@claim(
    "tropd.topk-lower", TROPD, "top-k forward KL", "The top-k forward KL without a tail is a divergence below the forward KL",
    space=spaces.single_states(full_support=True, vocab=(3, 4)), signed=True, corrected_by=("tropd.topk-lower/tail",),
    hypotheses=(INTERIOR_PAIR, "k = 2"),
    sketch="Σ over the top k of q log(q/p) is a partial sum of KL(q‖p): the tokens left out may contribute negatively, and the partial sum itself may "
    "be negative when the student puts more mass on the teacher's top k than the teacher does.",
    latex=r"0\le \sum_{y\in \mathrm{TopK}(q)} q_y\log\frac{q_y}{p_y}\le \mathrm{KL}(q\|p)",
)  # fmt: skip
def topk_lower(x: Any) -> tuple[Any, Any]:
    """The forward KL summed over the teacher's top two tokens lies between 0 and KL(q‖p) (as one statement: its
    distance below 0 and above KL(q‖p) is nil)."""
    value = x.topk_fkl(2)
    return -minimum(value, x.kl_qp - value), 0


@claim(
    "tropd.topk-lower/tail", TROPD, "top-k forward KL, with a tail bucket", "With a tail bucket the top-k forward KL is a lower bound",
    space=TOPK, sharpness="tight", relation="<=",
    hypotheses=("the top k are the teacher's, and one bucket holds all other tokens",),
    proof=f"{PROOFS}#topk",
    latex=r"0\le\sum_{y\in K}q_y\log\frac{q_y}{p_y}+q(K^c)\log\frac{q(K^c)}{p(K^c)}\le\mathrm{KL}(q\|p)",
    sketch="Merging tokens into a bucket is a deterministic map; by the data-processing inequality it can only lower KL(q‖p), and what is left is a KL of "
    "distributions, hence non-negative. Equality when ρ is constant on the tail.",
    mutants=(
        Mutant("reverse direction", "dies", "KL(p‖q) does not bound it", {"sides": lambda x: (x.topk_fkl_tail(2), x.kl_pq)}),
        Mutant("tail left out", "dies", "see tropd.topk-lower", {"sides": lambda x: (x.topk_fkl(2), x.kl_qp)}),
    ),
)  # fmt: skip
def topk_lower_tail(x: Any) -> tuple[Any, Any]:
    """KL(q‖p) on the teacher's top two tokens and one tail bucket is at most KL(q‖p)."""
    return x.topk_fkl_tail(2), x.kl_qp


def _topk_minimiser() -> Evidence:
    """Gradient descent is not needed: the stationarity condition of −Σ_K q log p is p = q_K/P, checked as a zero field and a minimum."""
    p, q = random_states(200)
    worst, gap = 0.0, 0.0
    for k in (1, 2, 3):
        head = np.asarray(divergences.topk_members(q, k))
        mass = np.where(head, q, 0.0).sum(-1)
        best = np.where(head, q, 0.0) / mass[:, None]
        value = (np.where(head, q, 0.0) * np.log(np.where(head, q / np.maximum(best, 1e-300), 1.0))).sum(-1)
        other = (np.where(head, q, 0.0) * np.log(np.where(head, q / p, 1.0))).sum(-1)
        worst = max(worst, float((value - other).max()))
        gap = max(gap, float(np.abs(np.abs(best - q).sum(-1) / 2 - (1 - mass)).max()))
    ok = worst <= 0.0 and gap < 1e-12
    return Evidence("check", ok, f"no student beats q restricted to the top k; its TV to q is 1 − P within {gap:.0e}")


@claim(
    "tropd.topk-bias", TROPD, "top-k forward KL", "The top-k objective is minimised by the renormalised top-k teacher",
    space=INTERIOR, signed=True, checks=(_topk_minimiser,), sharpness="tight",
    hypotheses=("no tail bucket", INTERIOR_PAIR),
    proof=f"{PROOFS}#topk-bias",
    sketch="Over students p, Σ_K q log(q/p) = P·KL(q_K/P ‖ p_K/p(K)) + P log(P/p(K)) with P = q(K): both terms are smallest for p = q_K/P, where the value is "
    "P log P. That student is at TV distance 1 − P from the teacher.",
    latex=r"\min_p\sum_{y\in K}q_y\log\frac{q_y}{p_y}=P\log P,\qquad \mathrm{TV}(q_K/P,\,q)=1-P",
    mutants=(
        Mutant("value zero", "dies", "the minimum P log P is negative", {"sides": lambda x: (0, x.topk_fkl(1))}),
        Mutant("half the value", "dies", "the minimiser has p(K) = 1",
               {"sides": lambda x: (x.topk_mass_q(1) * log(x.topk_mass_q(1)) / 2, x.topk_fkl(1))}),
    ),
)  # fmt: skip
def topk_bias(x: Any) -> tuple[Any, Any]:
    """For every student the top-1 forward KL without a tail is at least P log P, P the teacher's mass on its top token; the
    minimiser is the teacher restricted to the top k."""
    mass = x.topk_mass_q(1)
    return mass * log(mass), x.topk_fkl(1)


# --------------------------------------------------------------------------------------------------- JSD


@claim(
    "tropd.jsd", TROPD, "generalised JSD objective", "The k1 term of generalised JSD is minus TOP-D's reward",
    space=WEIGHTED, relation="==", nature="ours", sharpness="identity",
    hypotheses=("0 < α < 1",),
    proof="docs/sharper-results.md#tropd-jsd",
    sketch="With m = αq + (1−α)p, log(p/m) = −log(αρ + 1 − α) = −r̃ pointwise, so KL(p‖m) = −E_p[r̃]: generalised JSD's student term and TOP-D's reward are one.",
    latex=r"\mathbb{E}_p\Big[\log\frac{p}{\alpha q+(1-\alpha)p}\Big]=-\mathbb{E}_p[\tilde r]",
    mutants=(Mutant("weights swapped", "dies", "α weighs the teacher", {"sides": lambda x: (divergences.kl(x.p, x.mixture(x.alpha)), -x.topd_mean(1 - x.alpha))}),
             Mutant("the teacher's term", "dies", "KL(q‖m) is the other half of JSD",
                    {"sides": lambda x: (divergences.kl(x.q, x.mixture(x.alpha)), -x.topd_mean(x.alpha))}),),
)  # fmt: skip
def jsd(x: Any) -> tuple[Any, Any]:
    """KL(p‖m) with m = αq + (1−α)p equals −E_p[log(αρ + 1 − α)]."""
    return divergences.kl(x.p, x.mixture(x.alpha)), -x.topd_mean(x.alpha)


# -------------------------------------------------------------------------------------------- suppressed


@claim(
    "tropd.suppressed", TROPD, "suppressed top-k tokens", "Suppressing the teacher's top tokens makes its divergence vanish",
    space=spaces.single_states(full_support=True, vocab=(2, 3)), signed=True,
    given=lambda x: [(10 * x.topk_mass_p(1), "<", 1)], corrected_by=("tropd.topk-lower/tail",),
    hypotheses=(INTERIOR_PAIR,),
    latex=r"p(\mathrm{Top}_1(q))\to0\overset{?}{\implies}\mathrm{KL}(p\|q)\to0",
    sketch="If the student's mass on the teacher's top tokens goes to 0 while the teacher's stays, KL(q‖p) → ∞ and KL(p‖q) stays away from 0: the tokens' "
    "weight in E_p vanishes, not the divergence. Only the *gradient signal from sampling* fades.",
    note="Read as: when the student's mass on the teacher's top token is small, KL(p‖q) is small (here: mass below 1/10 would give KL below 1/10).",
)  # fmt: skip
def suppressed(x: Any) -> tuple[Any, Any]:
    """Where the student's mass on the teacher's top token is below 1/10, KL(p‖q) is below 1/10 as well."""
    return 10 * x.kl_pq, 1


# --------------------------------------------------------------------------------------------- off policy


def _guidance_gradient() -> Evidence:
    """E_{y~q}[∇ of −log(q/p)] against the gradient of the cross entropy, in the logits."""
    p, q = random_states()
    score = np.eye(p.shape[-1]) - p[:, None, :]
    guided = np.einsum("ny,nyz->nz", q, score)  # E_q ∇log p: log q does not depend on the student
    return agree("gradient of the guidance term − SFT gradient q − p", guided - (q - p))


entry(
    "tropd.offpolicy", TROPD, "off-policy guidance", "Guidance on teacher prefixes is supervised fine-tuning",
    statement="On tokens drawn from the teacher, the guidance term's gradient is that of the negative log-likelihood: log q does not depend on the student.",
    checks=(_guidance_gradient,), space=INTERIOR, relation="==", sharpness="identity",
    sides=lambda x: (x.kl_qp + x.entropy_q, _cross_entropy(x)),
    hypotheses=("the prefix is drawn from the teacher", INTERIOR_PAIR),
    proof=f"{PROOFS}#offpolicy",
    latex=r"\mathbb{E}_q\Big[\log\frac qp\Big]=-\mathbb{E}_q[\log p]-H(q)",
    mutants=(
        Mutant("on-policy tokens", "dies", "guidance averages over the teacher", {"sides": lambda x: (x.kl_pq + x.entropy_p, _cross_entropy(x))}),
        Mutant("entropy of the student", "dies", "it is the teacher's entropy that is constant", {"sides": lambda x: (x.kl_qp + x.entropy_p, _cross_entropy(x))}),
    ),
    sketch="E_q[log(q/p)] = H(q, p) − H(q), and H(q) is a constant of the student: both have gradient p − q in the logits.",
)  # fmt: skip


def _cross_entropy(x: Any) -> Any:
    return -x.expect_q(log(x.p))
