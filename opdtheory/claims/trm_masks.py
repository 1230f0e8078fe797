"""Trust Region Masking, sections 4.1 to 4.5: what masking whole responses guarantees and what not."""

from __future__ import annotations

from typing import Any

from opdtheory import bounds
from opdtheory.claims.sources import TRM
from opdtheory.claims.trm_common import sized, with_threshold
from opdtheory.spaces import policy_pairs
from opdtheory.verification.registry import claim

_SIZES = sized((2, 2), (3, 2), (2, 3))
_MASKED = with_threshold(policy_pairs(full_support=True, sizes=_SIZES), low=1e-3, high=1.0)
_GUARANTEE = r"L_{\mathrm{masked}}-\tfrac43T^{3/2}\delta>0\implies J(\pi)>J(\mu)"
_READING = (
    "The penalty in the condition is (4/3)T^{3/2}δ alone, at least the printed minimum: every instance here "
    "is one of the printed guarantee too, and with room to spare."
)
_WHY = (
    "The bound compares two policies; a set of accepted responses belongs to none. Σ_t ρ_t makes L_masked "
    "contain T·E_μ[M·A], which is positive when the mask rejects bad responses, whatever π does."
)
_WHY_CENTRED = "L_masked does not see the rejected responses, where π may lose more than it wins elsewhere."


def _promised(x: Any, mask: str) -> list[tuple[Any, str, Any]]:
    """L_masked exceeds the Pinsker-marginal penalty at the mask's threshold."""
    return [(x.masked_surrogate(mask, x.threshold), ">", bounds.pinsker_marginal(x.horizon, x.threshold))]


def _promised_centred(x: Any, mask: str) -> list[tuple[Any, str, Any]]:
    return [
        (x.masked_centred_surrogate(mask, x.threshold), ">", bounds.pinsker_marginal(x.horizon, x.threshold))
    ]


@claim(
    "trm.guarantee/exact-kl",
    TRM,
    "slides 4.1.2, 4.4.1 and 4.5.2",
    "Guarantee of the mask by exact divergences",
    hypotheses=("R in [0, 1]", "full support", "the mask's threshold is the δ of the penalty"),
    space=_MASKED,
    relation=">",
    signed=True,
    given=lambda x: _promised(x, "kl"),
    corrected_by=("ours.s8", "ours.s1"),
    latex=_GUARANTEE,
    sketch=_WHY,
    note=_READING,
)
def exact_kl(x: Any) -> Any:
    """With M = 1[max_t KL(μ‖π)(c_t) ≤ δ] along the response, L_masked = E_μ[M·A·Σ_t ρ_t] above the penalty
    implies J(π) > J(μ)."""
    return x.improvement, 0


@claim(
    "trm.guarantee/exact-kl-centred",
    TRM,
    "slides 4.1.2 and 4.5.2",
    "The same with centred ratios",
    hypotheses=("R in [0, 1]", "full support", "the mask's threshold is the δ of the penalty"),
    space=_MASKED,
    relation=">",
    signed=True,
    given=lambda x: _promised_centred(x, "kl"),
    corrected_by=("ours.s8", "ours.s1"),
    latex=_GUARANTEE,
    sketch=_WHY_CENTRED,
    note="Not printed: the charitable reading in which L_masked vanishes at π = μ whatever the mask. It "
    "fails as well. " + _READING,
)
def exact_kl_centred(x: Any) -> Any:
    """The guarantee of the exact mask with Σ_t(ρ_t − 1) in place of Σ_t ρ_t, so that a mask alone cannot make
    L_masked positive."""
    return x.improvement, 0


@claim(
    "trm.guarantee/sampled-logratio",
    TRM,
    "slides 3.4.2, 4.3.1 and 4.3.2",
    "Guarantee of the mask by sampled log ratios",
    hypotheses=("R in [0, 1]", "full support", "the mask's threshold is the δ of the penalty"),
    space=_MASKED,
    relation=">",
    signed=True,
    given=lambda x: _promised(x, "log_ratio"),
    corrected_by=("ours.s8",),
    latex=_GUARANTEE,
    sketch=_WHY,
    note=_READING
    + " A note of the slides calls sample-based masks approximate, the text says they give the full "
    "guarantee in the text.",
)
def sampled_log_ratio(x: Any) -> Any:
    """With M = 1[max_t |log ρ_t| ≤ δ] on sampled tokens, L_masked above the penalty implies J(π) > J(μ)."""
    return x.improvement, 0


@claim(
    "trm.guarantee/sampled-k3",
    TRM,
    "slides 4.4.1 and 4.5.1",
    "Guarantee of the mask by sampled k3",
    hypotheses=("R in [0, 1]", "full support", "the mask's threshold is the δ of the penalty"),
    space=_MASKED,
    relation=">",
    signed=True,
    given=lambda x: _promised(x, "k3"),
    corrected_by=("ours.s8",),
    latex=_GUARANTEE,
    sketch=_WHY,
    note=_READING,
)
def sampled_k3(x: Any) -> Any:
    """With M = 1[max_t k3(ρ_t) ≤ δ] on the sampled tokens, L_masked above the penalty implies J(π) > J(μ)."""
    return x.improvement, 0


@claim(
    "trm.guarantee/divergence",
    TRM,
    "slides 3.4.2 and 4.1.2",
    "Accepted responses have small token divergence",
    hypotheses=("full support",),
    corrected_by=("trm.2.5.0/pinsker", "ours.s8"),
    space=_MASKED,
    relation=">=",
    signed=True,
    given=lambda x: [(2 * x.acceptance("log_ratio", x.threshold), ">", 1)],
    latex=r"\max_t|\log\rho_t|\le\delta\implies D_{\max}\le\delta",
    sketch="A sampled ratio near one says nothing of the tokens that were not drawn, and masking changes no "
    "policy.",
    note="Read for the policies, as the bounds need it, and with more than half of the responses accepted.",
)
def accepted_divergence(x: Any) -> Any:
    """If most responses pass max_t |log ρ_t| ≤ δ, the largest KL(μ‖π) of any context is at most δ."""
    return x.threshold, x.kl_max


@claim(
    "trm.guarantee/gradient",
    TRM,
    "slides 4.1.1 and 4.1.2",
    "The masked gradient is a valid direction",
    hypotheses=("R in [0, 1]", "gradients over free logits, mask held fixed"),
    space=_MASKED,
    relation=">=",
    signed=True,
    given=lambda x: [(100 * x.masked_gradient_dot("none", 0), ">", 1)],
    corrected_by=("ours.s8",),
    latex=r"\langle\nabla L_{\mathrm{masked}},\nabla J\rangle\ge0",
    sketch="Rejecting the responses that go wrong leaves the gradient of those that go right: it can point "
    "downhill while ∇L points uphill.",
    note="“Valid” is read as not opposed to ∇J, and only where the unmasked surrogate gradient makes "
    "progress. Both gradients are over the logits of π, the mask held fixed.",
)
def gradient(x: Any) -> Any:
    """Where ⟨∇L, ∇J⟩ > 1/100 without a mask, the mask by exact divergences keeps ⟨∇L_masked, ∇J⟩ ≥ 0."""
    return 100 * x.masked_gradient_dot("kl", x.threshold), 0
