"""Bounds on the improvement J(π) − J(μ), on the surrogate L and on the distance between the laws of whole
responses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from opdtheory.bounds.powers import excess_growth, growth, miss_probability
from opdtheory.bounds.registry import DPPO, TOPD, TRM, bound, scaled
from opdtheory.bounds.surrogate_error import mixed, pinsker_marginal
from opdtheory.elementary import expm1, is_exact, minimum, sqrt, where

_ABSOLUTE_CONTINUITY = ("supp π ⊆ supp μ at every context",)
_SHIFTED = ("R counted from the smallest reward",)


@bound(
    "trm.2.6.1",
    "Minorizer",
    "L − min(T^{3/2}δ, T√(δD))",
    target="improvement_lower",
    source=f"{TRM}, slide 2.6.1",
)
def trm_minorizer(surrogate: Any, horizon: Any, kl_max: Any, kl_seq: Any, *, span: Any = 1) -> Any:
    """J(π) − J(μ) ≥ L − min((4/3)T^{3/2}δ, 2T√(δD))."""
    penalty = minimum(pinsker_marginal(horizon, kl_max), mixed(horizon, kl_max, kl_seq))
    return surrogate - scaled(penalty, span)


def minorizer(surrogate: Any, error_bound: Any) -> Any:
    """J(π) − J(μ) ≥ L − B for any bound B on |Error|."""
    return surrogate - error_bound


@bound(
    "ours.s2/lower",
    "Log-ratio lower bound",
    "E[R log W]",
    target="improvement_lower",
    sharpness="tight",
    assumptions=_SHIFTED,
)
def log_ratio_lower(reward_log_w: Any) -> Any:
    """J(π) − J(μ) ≥ E_μ[R log W], tangent at π = μ (prior art: the EM, or reward-weighted regression,
    bound).
    """
    return reward_log_w


@bound(
    "ours.s2/upper",
    "Log-ratio upper bound",
    "E[(1−R) log W]",
    target="improvement_upper",
    sharpness="tight",
    assumptions=("R − max R in place of R − 1",),
)
def log_ratio_upper(cost_log_w: Any) -> Any:
    """J(π) − J(μ) ≤ −E_μ[(1−R) log W]."""
    return -cost_log_w


def _tilted(mass: Any, total: Any) -> Any:
    """mass·(e^{total/mass} − 1), and on floats its limit 0 where a mean of nothing is zero."""
    if is_exact(mass) or hasattr(mass, "__elementary__"):
        return mass * expm1(total / mass)
    some = mass > 0
    return where(some, mass * expm1(total / where(some, mass, 1.0)), 0.0 * total)


@bound(
    "ours.s2/exp-lower",
    "Exponential log-ratio lower bound",
    "J(e^{E[R log W]/J} − 1)",
    target="improvement_lower",
    sharpness="tight",
    assumptions=_SHIFTED,
)
def exponential_lower(J_behavior: Any, reward_log_w: Any) -> Any:
    """J(π) − J(μ) ≥ J(μ)(exp(E_μ[R log W]/J(μ)) − 1), never below the linear form; 0 at J(μ) = 0."""
    return _tilted(J_behavior, reward_log_w)


@bound(
    "ours.s2/exp-upper",
    "Exponential log-ratio upper bound",
    "(1−J)(1 − e^{E[(1−R) log W]/(1−J)})",
    target="improvement_upper",
    sharpness="tight",
    assumptions=_SHIFTED,
)
def exponential_upper(J_behavior: Any, cost_log_w: Any, *, span: Any = 1) -> Any:
    """J(π) − J(μ) ≤ (1−J(μ))(1 − exp(E_μ[(1−R) log W]/(1−J(μ)))), never above the linear form.

    For R in [0, span] it reads span − R and span − J(μ) in place of 1 − R and 1 − J(μ).
    """
    return -_tilted(span - J_behavior, cost_log_w)


@bound(
    "ours.s8",
    "Floored log-ratio lower bound",
    "E[R max(log W, −1)]",
    target="improvement_lower",
    assumptions=_SHIFTED,
)
def floored_log_ratio_lower(reward_floor_log_w: Any) -> Any:
    """J(π) − J(μ) ≥ E_μ[R max(log W, −1)], because w − 1 ≥ max(log w, −1): one bounded number a response on
    the low side.
    """
    return reward_floor_log_w


@bound(
    "ours.s8/masked",
    "Masked lower bound",
    "L_M − E[M R Σ k3] − E[(1−M)R]",
    target="improvement_lower",
    assumptions=(*_SHIFTED, "mask in [0, 1]"),
)
def masked_lower(masked_surrogate: Any, masked_k3: Any, masked_reward_lost: Any) -> Any:
    """J(π) − J(μ) ≥ E_μ[M R Σ(ρ_t−1)] − E_μ[M R Σ k3(ρ_t)] − E_μ[(1−M)R], M masking responses."""
    return masked_surrogate - masked_k3 - masked_reward_lost


@bound("ours.s7", "Largest surrogate", "√D", target="surrogate", sharpness="unknown")
def surrogate_limit(kl_seq: Any, *, span: Any = 1) -> Any:
    """L ≤ J(π) − J(μ) + E[R Σ k3] ≤ √(D/2) + D: no larger surrogate value is possible at this divergence."""
    return scaled(sqrt(kl_seq / 2) + kl_seq, span)


@bound(
    "ours.s3/surrogate",
    "Largest surrogate, TV",
    "Σ TV",
    target="surrogate",
    sharpness="tight",
)
def surrogate_limit_tv(tv_sum: Any, *, span: Any = 1) -> Any:
    """L ≤ Σ_t E_{d_t^μ} TV(c_t), because |g(c)| ≤ TV(c)·span."""
    return scaled(tv_sum, span)


# -------------------- the laws of whole responses


@bound(
    "dppo.b1",
    "Trajectory TV from expected token TV",
    "Σ TV",
    target="sequence_tv",
    source=f"{DPPO}, Lemma B.1",
)
def sequence_tv_sum(tv_sum: Any) -> Any:
    """TV_seq ≤ Σ_t E_{d_t^μ} TV(c_t)."""
    return tv_sum


@bound(
    "dppo.b1/max",
    "Trajectory TV from the largest token TV",
    "1 − (1−ε)^T",
    target="sequence_tv",
    sharpness="tight",
)
def sequence_tv_max(horizon: Any, tv_max: Any) -> Any:
    """TV_seq ≤ 1 − (1−ε)^T: never vacuous below ε = 1."""
    return miss_probability(tv_max, horizon)


@bound(
    "topd.pinsker",
    "Trajectory TV, Pinsker",
    "√D",
    target="sequence_tv",
    source=f"{TOPD}, end of Section 4.3",
)
def sequence_tv_pinsker(kl_seq: Any) -> Any:
    """TV_seq ≤ √(D/2) for the KL of whole responses in either direction."""
    return sqrt(kl_seq / 2)


@bound(
    "ours.tv/bretagnolle-huber",
    "Trajectory TV, Bretagnolle–Huber",
    "√(1 − e^{−D})",
    target="sequence_tv",
    source="Bretagnolle & Huber 1979",
)
def sequence_tv_bretagnolle_huber(kl_seq: Any) -> Any:
    """TV_seq ≤ √(1 − e^{−D}): stays below one however large D is."""
    return sqrt(-expm1(-kl_seq))


@bound(
    "topd.pinsker/reverse",
    "Trajectory TV, reverse KL",
    "√D′",
    target="sequence_tv",
    source=f"{TOPD}, end of Section 4.3; Bretagnolle & Huber 1979",
)
def sequence_tv_reverse(reverse_kl_seq: Any) -> Any:
    """TV_seq ≤ min(√(D′/2), √(1 − e^{−D′})), D′ = KL(π‖μ) of whole responses: both hold in either direction."""
    return minimum(sequence_tv_pinsker(reverse_kl_seq), sequence_tv_bretagnolle_huber(reverse_kl_seq))


@bound(
    "ours.tv/hellinger",
    "Trajectory TV, Hellinger",
    "√(1 − (1−h)^{2T})",
    target="sequence_tv",
    claim="trm.a7-hellinger",
)
def sequence_tv_hellinger(horizon: Any, hellinger2_max: Any) -> Any:
    """TV_seq ≤ √(1 − (1−h)^{2T}), because affinities multiply along a response."""
    return sqrt(miss_probability(hellinger2_max, 2 * horizon))


@bound(
    "ours.tv/chi2",
    "Trajectory TV, χ²",
    "½√((1+x)^T − 1)",
    target="sequence_tv",
    assumptions=_ABSOLUTE_CONTINUITY,
)
def sequence_tv_chi2(horizon: Any, chi2_max: Any) -> Any:
    """TV_seq ≤ ½√((1+x)^T − 1), x the largest χ²(π‖μ) of any context."""
    return sqrt(growth(chi2_max, horizon)) / 2


@bound(
    "ours.tv/improvement",
    "Largest change of J",
    "TV_seq",
    target="improvement",
    sharpness="tight",
)
def improvement_limit(tv_seq: Any, *, span: Any = 1) -> Any:
    """|J(π) − J(μ)| ≤ TV_seq·span, with equality for the reward 1[π(y) > μ(y)]."""
    return scaled(tv_seq, span)


@bound(
    "ours.chi2/improvement",
    "Largest change of J, χ²",
    "sd(R)√((1+x)^T − 1)",
    target="improvement",
    assumptions=_ABSOLUTE_CONTINUITY,
)
def improvement_limit_chi2(horizon: Any, chi2_max: Any, reward_sd: Any) -> Any:
    """|J(π) − J(μ)| ≤ sd_μ(R)·√((1+x)^T − 1) (Cauchy–Schwarz)."""
    return reward_sd * sqrt(growth(chi2_max, horizon))


# -------------------- trust-region bounds of the other papers


def _gain_limit(advantage: str) -> Callable[[Mapping[str, Any]], Any]:
    """No step gains more than ξ a token in the surrogate: ξ·ℓ in all, ℓ ≤ T if unknown."""

    def limit(given: Mapping[str, Any]) -> Any:
        return given[advantage] * given.get("expected_length", given["horizon"])

    return limit


@bound(
    "topd.thm4.9",
    "TOP-D monotonic improvement, printed penalty",
    "ξ T ΣTV",
    target="token_reward_error",
    source=f"{TOPD}, Theorem 4.9",
    assumptions=("token reward frozen at r^π",),
    limit=_gain_limit("adv_target_max"),
)
def topd_penalty(horizon: Any, tv_sum: Any, adv_target_max: Any) -> Any:
    """2ξ T_max·ℓ E_{d_norm}[TV], written with Σ_t E TV = ℓ E_{d_norm}[TV]; ξ = max_c |E_π̃ A(c, ·)|."""
    return 2 * adv_target_max * horizon * tv_sum


@bound(
    "topd.thm4.9/tight",
    "TOP-D monotonic improvement, T_max − 1",
    "ξ T ΣTV",
    target="token_reward_error",
    claim="topd.thm4.9/horizon",
    assumptions=("token reward frozen at r^π",),
    limit=_gain_limit("adv_target_max"),
)
def topd_penalty_tight(horizon: Any, tv_sum: Any, adv_target_max: Any) -> Any:
    """2ξ(T_max − 1)·Σ_t E TV(c_t): the last step shifts no later context."""
    return 2 * adv_target_max * (horizon - 1) * tv_sum


@bound(
    "topd.thm4.9-fixed",
    "TOP-D monotonic improvement for the true objective",
    "ξ′ T ΣTV",
    target="token_reward_error",
    limit=_gain_limit("adv_kl_max"),
)
def topd_penalty_fixed(horizon: Any, tv_sum: Any, adv_kl_max: Any) -> Any:
    """2ξ′(T_max − 1)·Σ_t E TV(c_t), ξ′ = max_c |E_π̃ A(c, ·) − KL(π̃‖π)(c)|.

    It penalises η(π) + ℓ E[g′] with g′ = E_π̃ A − KL(π̃‖π), which accounts for the
    reward's own dependence on the policy.
    """
    return 2 * adv_kl_max * (horizon - 1) * tv_sum


def topd_improvement_region(horizon: Any) -> Any:
    """The mean token TV E_{d_norm}[TV] below which Theorem 4.9's lower bound can exceed η(π) at all:
    1/(2T_max).
    """
    return 1 / (2 * horizon)


@bound(
    "dppo.thm2.1",
    "Discounted, printed constant 2",
    "ξγε²/(1−γ)²",
    target="step",
    source=f"{DPPO}, Theorem 2.1",
    sharpness="unknown",
    assumptions=("discounted MDP", "this constant is false"),
)
def discounted_printed(gamma: Any, tv_max: Any, adv_max: Any) -> Any:
    """2ξγ/(1−γ)²·ε², as printed; too small by up to a factor of two."""
    return 2 * adv_max * gamma * tv_max * tv_max / ((1 - gamma) * (1 - gamma))


@bound(
    "dppo.thm2.1/trpo",
    "Discounted, TRPO constant 4",
    "ξγε²/(1−γ)²",
    target="discounted_error",
    source="Trust Region Policy Optimization, Theorem 1",
    assumptions=("discounted MDP",),
)
def discounted_trpo(gamma: Any, tv_max: Any, adv_max: Any) -> Any:
    """4ξγ/(1−γ)²·ε², ξ = max |A^μ|."""
    return 4 * adv_max * gamma * tv_max * tv_max / ((1 - gamma) * (1 - gamma))


@bound(
    "dppo.thm2.1-sharp",
    "Discounted, sharp",
    "ξγε²/((1−γ)(1−γ+γε))",
    target="discounted_error",
    sharpness="tight",
    assumptions=("discounted MDP",),
)
def discounted_sharp(gamma: Any, tv_max: Any, adv_max: Any) -> Any:
    """2ξ·min(2ε, 1)·γε/((1−γ)(1−γ+γε)), attained at every ε; 4ξγε²/… for ε ≤ ½."""
    share = minimum(2 * tv_max, 1)
    return 2 * adv_max * share * gamma * tv_max / ((1 - gamma) * (1 - gamma + gamma * tv_max))


# -------------------- importance weights


@bound(
    "trm.2.2.2-bound",
    "Variance of the trajectory weight",
    "(1+x)^T − 1",
    target="variance",
    sharpness="tight",
    assumptions=_ABSOLUTE_CONTINUITY,
)
def trajectory_weight_variance(horizon: Any, chi2_max: Any) -> Any:
    """Var_μ(W) ≤ (1+x)^T − 1, an equality when every context has χ²(π‖μ) = x.

    At T = 4096 and x = 2·10⁻⁴ it is of order one: growth per token, not T alone, decides
    whether weights are useful.

    >>> round(float(trajectory_weight_variance(4096, 2e-4)), 2)
    1.27
    """
    return growth(chi2_max, horizon)


@bound(
    "trm.2.2.4-centred",
    "Variance of the per-token surrogate",
    "T x",
    target="variance",
    assumptions=_ABSOLUTE_CONTINUITY,
)
def token_weight_variance(horizon: Any, chi2_max: Any, advantage_bound: Any) -> Any:
    """Var_μ(A·Σ_t(ρ_t−1)) ≤ max|A|²·Tx: ratios minus one are martingale differences."""
    return advantage_bound * advantage_bound * horizon * chi2_max


def weight_remainder_second_moment(horizon: Any, chi2_max: Any) -> Any:
    """E_μ[N²] ≤ (1+x)^T − 1 − Tx for N = W − 1 − Σ_t(ρ_t − 1)."""
    return excess_growth(chi2_max, horizon)
