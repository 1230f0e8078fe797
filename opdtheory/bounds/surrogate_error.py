"""Bounds on |J(π) − J(μ) − L|, the error of the surrogate L = Σ_t E_{d_t^μ}[g_t].

μ generates, π is the policy being trained; KL without further words is KL(μ‖π) in nats; ``*_max`` are
maxima over every context of the tree.  Every function is vectorised and non-decreasing in each divergence.
``span`` is max R − min R of the terminal reward (rewards in [0, 1] have span 1).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from opdtheory.bounds.powers import excess_growth, miss_probability
from opdtheory.bounds.registry import DPPO, TRM, bound, error_bound, product, scaled
from opdtheory.elementary import absolute, asum, minimum, sqrt

_ABSOLUTE_CONTINUITY = ("supp π ⊆ supp μ at every context",)


@error_bound("trm.2.5.1/tv", "TRPO-style, TV", "T² ε²", source=f"{TRM}, slide 2.5.1", claim="trm.2.5.1")
def trpo_tv(horizon: Any, tv_max: Any, *, span: Any = 1) -> Any:
    """2T(T−1)ε², ε the largest token TV of any context (simulation lemma and |g| ≤ 2 TV)."""
    return scaled(2 * horizon * (horizon - 1) * tv_max * tv_max, span)


@error_bound("trm.2.5.1/kl", "TRPO-style, KL", "T² δ", source=f"{TRM}, slide 2.5.1")
def trpo_kl(horizon: Any, kl_max: Any, *, span: Any = 1) -> Any:
    """T(T−1)δ, δ the largest token KL(μ‖π) (or KL(π‖μ)) of any context.

    >>> round(trpo_kl(4096, 1e-4))
    1677
    """
    return scaled(product(horizon * (horizon - 1), kl_max), span)


@error_bound("trm.2.4/centred/tv", "TRPO-style centred, TV", "T² ε²")
def trpo_tv_centred(horizon: Any, tv_max: Any, *, span: Any = 1) -> Any:
    """T(T−1)ε²: the advantage is centred before it is bounded, |g(c)| ≤ TV(c)·span."""
    return scaled(horizon * (horizon - 1) * tv_max * tv_max, span)


@error_bound("trm.2.4/centred/kl", "TRPO-style centred, KL", "T² δ")
def trpo_kl_centred(horizon: Any, kl_max: Any, *, span: Any = 1) -> Any:
    """T(T−1)δ/2: the centred form after Pinsker."""
    return scaled(product(horizon * (horizon - 1), kl_max) / 2, span)


@error_bound("trm.2.5.4", "Pinsker-marginal", "T^{3/2} δ", source=f"{TRM}, slide 2.5.4")
def pinsker_marginal(horizon: Any, kl_max: Any, *, span: Any = 1) -> Any:
    """(4/3) T^{3/2} δ, δ the largest token KL(μ‖π) of any context, visited or not.

    >>> round(float(pinsker_marginal(4096, 1e-4)), 1)
    35.0
    """
    return scaled(4 * horizon * sqrt(horizon * kl_max) * sqrt(kl_max) / 3, span)


@error_bound("trm.2.5.4/centred", "Pinsker-marginal centred", "T^{3/2} δ")
def pinsker_marginal_centred(horizon: Any, kl_max: Any, *, span: Any = 1) -> Any:
    """(2/3) T^{3/2} δ: half of the printed constant, from |g| ≤ TV·span."""
    return scaled(2 * horizon * sqrt(horizon * kl_max) * sqrt(kl_max) / 3, span)


@error_bound(
    "trm.reverse/marginal", "Pinsker-marginal, reverse KL", "T^{3/2} δ′", source=f"{TRM}, slide 4.4.1"
)
def pinsker_marginal_reverse(horizon: Any, reverse_kl_max: Any, *, span: Any = 1) -> Any:
    """(4/3) T^{3/2} δ′, δ′ the largest KL(π‖μ) of any context: Pinsker's inequality is symmetric."""
    return pinsker_marginal(horizon, reverse_kl_max, span=span)


@error_bound("trm.2.5.5", "Mixed", "T √(δD)", source=f"{TRM}, slide 2.5.5")
def mixed(horizon: Any, kl_max: Any, kl_seq: Any, *, span: Any = 1) -> Any:
    """2T√(δD), D the KL(μ‖π) of whole responses.

    >>> round(float(mixed(4096, 1e-4, 0.01)), 1)
    8.2
    """
    return scaled(2 * horizon * sqrt(product(kl_max, kl_seq)), span)


@error_bound("trm.2.5.5/centred", "Mixed centred", "T √(δD)")
def mixed_centred(horizon: Any, kl_max: Any, kl_seq: Any, *, span: Any = 1) -> Any:
    """T√(δD): half of the printed constant, from |g| ≤ TV·span."""
    return scaled(horizon * sqrt(product(kl_max, kl_seq)), span)


@error_bound("dppo.thm3.2", "DPPO quadratic", "ξ T² ε²", source=f"{DPPO}, Theorem 3.2")
def dppo_quadratic(horizon: Any, tv_max: Any, reward_bound: Any) -> Any:
    """2ξT(T−1)ε² with ξ = max |R|; rewards in [−ξ, ξ] and T = 2 attain it."""
    return 2 * reward_bound * horizon * (horizon - 1) * tv_max * tv_max


@error_bound("dppo.b3", "DPPO linear", "ξ Σ TV", source=f"{DPPO}, Appendix B.3, Eq 20")
def dppo_linear(tv_sum: Any, reward_bound: Any) -> Any:
    """4ξ E_μ Σ_t TV(c_t) with ξ = max |R|."""
    return 4 * reward_bound * tv_sum


@error_bound("dppo.b3/composite", "DPPO composite", "ξ min(T²ε², ΣTV)", source=f"{DPPO}, end of Appendix B.3")
def dppo_composite(horizon: Any, tv_max: Any, tv_sum: Any, reward_bound: Any) -> Any:
    """The smaller of the quadratic and the linear DPPO bound."""
    return minimum(dppo_quadratic(horizon, tv_max, reward_bound), dppo_linear(tv_sum, reward_bound))


def _adaptive_factor(remaining: Any, tv_max: Any, kl_max: Any) -> Any:
    return minimum(minimum(1, remaining * tv_max), sqrt(remaining * kl_max / 2))


@error_bound(
    "trm.adaptive",
    "Adaptive",
    "Σ TV_t min(1, (T−t)ε, √((T−t)δ))",
    source=f"{TRM}, later versions (second-hand)",
)
def adaptive(tv_steps: Any, tv_max: Any, kl_max: Any, *, span: Any = 1) -> Any:
    """4 Σ_t E[TV(c_t)]·min(1, (T−t)ε, √((T−t)δ/2)).

    ``tv_steps`` holds E_{d_t^μ} TV(c_t), one entry for each of the T steps: a sequence, or an array whose
    last axis is time.
    """
    return scaled(4 * _adaptive_sum(tv_steps, tv_max, kl_max), span)


@error_bound(
    "trm.adaptive/centred",
    "Adaptive centred",
    "Σ TV_t min(1, (T−t)ε, √((T−t)δ))",
    source=f"{TRM}, later versions (second-hand), centred",
    claim="trm.adaptive-centred",
)
def adaptive_centred(tv_steps: Any, tv_max: Any, kl_max: Any, *, span: Any = 1) -> Any:
    """The adaptive bound with constant 2: a reward centred in its range has |R| ≤ span/2."""
    return scaled(2 * _adaptive_sum(tv_steps, tv_max, kl_max), span)


def _adaptive_sum(tv_steps: Any, tv_max: Any, kl_max: Any) -> Any:
    if isinstance(tv_steps, np.ndarray) and tv_steps.dtype.kind == "f":
        remaining = np.arange(tv_steps.shape[-1] - 1, -1, -1)
        limits = (np.asarray(z, dtype=float)[..., None] for z in (tv_max, kl_max))
        return (tv_steps * _adaptive_factor(remaining, *limits)).sum(axis=-1)
    steps = (
        [tv_steps[..., t] for t in range(tv_steps.shape[-1])]
        if hasattr(tv_steps, "shape")
        else list(tv_steps)
    )
    last = len(steps) - 1
    total = 0 * steps[-1]
    # the last step has nothing after it: its factor is zero
    for t, step in enumerate(steps[:-1]):
        total = total + step * _adaptive_factor(last - t, tv_max, kl_max)
    return total


@error_bound("ours.s1", "Sequence KL", "D", sharpness="tight")
def sequence_kl(kl_seq: Any, *, span: Any = 1) -> Any:
    """D = KL(μ‖π) of whole responses: no horizon, no maximum over contexts, best constant 1.

    With W the ratio of a whole response, Error = E[R·(k3(W) − Σ_t k3(ρ_t))] where the supports are nested,
    and both terms are non-negative with mean D; the bound itself needs no support assumption.
    """
    return scaled(kl_seq, span)


@error_bound("ours.s1/uniform", "Sequence KL from the largest token KL", "T δ")
def sequence_kl_uniform(horizon: Any, kl_max: Any, *, span: Any = 1) -> Any:
    """Tδ, because D ≤ Tδ."""
    return scaled(horizon * kl_max, span)


@error_bound("ours.s3", "Expected token TV", "Σ TV", sharpness="tight")
def expected_tv(tv_sum: Any, *, span: Any = 1) -> Any:
    """Σ_t E_{d_t^μ}[TV(c_t)], best constant 1: an expectation over visited contexts only."""
    return scaled(tv_sum, span)


@error_bound("ours.s4", "Sharp TV", "min(T²ε², Tε)", sharpness="tight")
def sharp_tv(horizon: Any, tv_max: Any, *, span: Any = 1) -> Any:
    """Tε(1−(1−ε)^{T−1}), the exact supremum over every instance with token TV at most ε.

    >>> float(sharp_tv(2, 0.5)), float(sharp_tv(1, 0.5))
    (0.5, 0.0)
    """
    return scaled(horizon * tv_max * miss_probability(tv_max, horizon - 1), span)


@error_bound(
    "ours.s4/profile",
    "Sharp TV, step by step",
    "Σ ε_t (1 − Π_{s≠t}(1−ε_s))",
    sharpness="tight",
)
def sharp_tv_profile(tv_max_steps: Any, *, span: Any = 1) -> Any:
    """Σ_t ε_t(1 − Π_{s≠t}(1−ε_s)), ε_t the largest token TV of any context of step t; time on the last axis.

    >>> float(sharp_tv_profile([0.5, 0.5]))
    0.5
    """
    steps = list(tv_max_steps) if isinstance(tv_max_steps, (list, tuple)) else None
    if steps is None:
        steps = [tv_max_steps[..., t] for t in range(tv_max_steps.shape[-1])]
    before, after = [1], [1]
    for first, last in zip(steps[:-1], steps[:0:-1], strict=True):
        before.append(before[-1] * (1 - first))
        after.append(after[-1] * (1 - last))
    total = 0 * steps[0]
    for step, left, right in zip(steps, before, reversed(after), strict=True):
        total = total + step * (1 - left * right)
    return scaled(total, span)


@error_bound("ours.s5/uniform", "χ², largest", "sd(R) √((1+x)^T − 1 − Tx)", assumptions=_ABSOLUTE_CONTINUITY)
def chi2_uniform(horizon: Any, chi2_max: Any, reward_sd: Any) -> Any:
    """sd_μ(R)·√((1+x)^T − 1 − Tx), x the largest χ²(π‖μ) of any context."""
    return reward_sd * sqrt(excess_growth(chi2_max, horizon))


@error_bound(
    "ours.s5/martingale",
    "χ², martingale",
    "sd(R) √(E Σ (W−1)²χ²)",
    claim="ours.s5",
    assumptions=_ABSOLUTE_CONTINUITY,
)
def chi2_martingale(ratio_martingale: Any, reward_sd: Any) -> Any:
    """sd_μ(R)·√(E_μ Σ_t (W_{t−1}−1)² χ²(c_t)): computable from samples of μ with full distributions."""
    return reward_sd * sqrt(ratio_martingale)


@error_bound(
    "ours.s5/sup", "χ², supremum", "√((1+x)^T − 1 − Tx)", sharpness="tight", assumptions=_ABSOLUTE_CONTINUITY
)
def chi2_supremum(horizon: Any, chi2_max: Any, *, span: Any = 1) -> Any:
    """½√((1+x)^T − 1 − Tx): the spread of a reward is at most half its range.

    The exact supremum over all instances with token χ²(π‖μ) at most x, for every T as long as x is small.

    >>> round(float(chi2_supremum(2, 0.5)), 6)
    0.25
    """
    return scaled(chi2_uniform(horizon, chi2_max, 1) / 2, span)


@error_bound("ours.s6", "Sharp mixed", "T √(δD)")
def sharp_mixed(horizon: Any, kl_max: Any, kl_seq: Any, *, span: Any = 1) -> Any:
    """√(T(T−1)/2·δD), D summed over contexts that μ visits."""
    return scaled(sqrt(product(product(horizon * (horizon - 1), kl_max), kl_seq) / 2), span)


@error_bound("ours.s6/reverse", "Sharp mixed, reverse KL", "T √(δD)")
def sharp_mixed_reverse(horizon: Any, reverse_kl_max: Any, reverse_kl_sum: Any, *, span: Any = 1) -> Any:
    """√(T(T−1)/2·δ′D′) with KL(π‖μ) in both places; D′ = Σ_t E_{d_t^μ} KL(π‖μ)(c_t)."""
    return scaled(sqrt(product(product(horizon * (horizon - 1), reverse_kl_max), reverse_kl_sum) / 2), span)


@error_bound("ours.s6/crossed", "Sharp mixed, crossed", "T √(δ′D)")
def sharp_mixed_crossed(horizon: Any, reverse_kl_max: Any, kl_seq: Any, *, span: Any = 1) -> Any:
    """√(T(T−1)/2·δ′D), δ′ the largest KL(π‖μ) and D the summed KL(μ‖π)."""
    return scaled(sqrt(product(product(horizon * (horizon - 1), reverse_kl_max), kl_seq) / 2), span)


@error_bound("ours.s12", "Reverse KL of responses", "T KL(π‖μ)", sharpness="asymptotic")
def reverse_sequence_kl(horizon: Any, reverse_kl_seq: Any, *, span: Any = 1) -> Any:
    """(T−1)·KL(π‖μ) of whole responses, the factor best possible at every T.

    The divergence sums over contexts that π visits and does not see those that only μ does, so that,
    unlike with KL(μ‖π), the horizon cannot be dropped.

    >>> round(reverse_sequence_kl(100, 1e-3), 6)
    0.099
    """
    return scaled(product(horizon - 1, reverse_kl_seq), span)


# -------------------- the pieces inside


@bound("trm.2.4", "Expected advantage, printed", "TV", target="step", source=f"{TRM}, slide 2.4.3")
def advantage_gap(tv: Any, *, span: Any = 1) -> Any:
    """|g(c)| ≤ 2 TV(c)."""
    return scaled(2 * tv, span)


@bound(
    "trm.2.4/centred",
    "Expected advantage, centred",
    "TV",
    target="step",
    sharpness="tight",
    claim="trm.2.4-centred",
)
def advantage_gap_centred(tv: Any, *, span: Any = 1) -> Any:
    """|g(c)| ≤ TV(c)·span of the action values at c."""
    return scaled(tv, span)


@bound(
    "trm.2.5.1/marginal",
    "Context law, simulation lemma",
    "t ε",
    target="step",
    source=f"{TRM}, Appendix A.6",
    claim="trm.2.5.1/simulation",
)
def marginal_tv_simulation(steps_before: Any, tv_max: Any) -> Any:
    """TV of the two laws of contexts after ``steps_before`` tokens is at most steps_before·ε."""
    return steps_before * tv_max


@bound(
    "trm.2.5.1/marginal-sharp",
    "Context law, sharp",
    "1 − (1−ε)^t",
    target="step",
    sharpness="tight",
)
def marginal_tv_sharp(steps_before: Any, tv_max: Any) -> Any:
    """1 − (1−ε)^t: maximal coupling, the two responses part with chance at most ε a step."""
    return miss_probability(tv_max, steps_before)


@bound("trm.2.5.3", "Context law, Pinsker", "√(tδ)", target="step", source=f"{TRM}, slide 2.5.3")
def marginal_tv_pinsker(steps_before: Any, kl_max: Any) -> Any:
    """TV of the two laws of contexts after t tokens is at most √(tδ/2)."""
    return sqrt(steps_before * kl_max / 2)


def remainder_supremum(n_values: Any) -> Any:
    """sup over R in [0, 1] of |Error| given n(y) on all responses (last axis): ½ Σ_y |n(y)|."""
    return asum(absolute(n_values)) / 2
