"""The calculator's other forms, each attacked as the calculator computes it.

The catalogue's entries state most bounds; these are their centred, step-by-step, reverse or one-sided variants.  The
entry's id is the bound's, and its right-hand side is the very function that ``opdtheory bounds`` calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

from opdtheory import bounds
from opdtheory.bounds.registry import REGISTRY
from opdtheory.claims.sharper import ANY_SUPPORT, COVERED, DOC, FREE, NESTED, UNIT, WORST
from opdtheory.claims.sharper_steps import leak, offer
from opdtheory.claims.sources import DPPO, OURS, TOPD, TRM
from opdtheory.claims.topd_contraction import proximal_steps
from opdtheory.elementary import absolute, amax, exact, maximum, minimum
from opdtheory.spaces import Box, Space, policy_pairs, single_states, teacher_students
from opdtheory.tabular import PolicyPair
from opdtheory.verification.blocks import Values
from opdtheory.verification.claim import Claim, Mutant, Source
from opdtheory.verification.registry import claim, entry

Sides = Callable[[Any], tuple[Any, Any]]

_MEASURED: dict[str, Callable[[Any], Any]] = {
    "surrogate_error": lambda x: absolute(x.error),
    "improvement": lambda x: absolute(x.improvement),
    "sequence_tv": lambda x: x.tv_seq,
}
"""Target of a bound → what it bounds, on a policy pair."""


def _computed(bound_id: str) -> Sides:
    """What is bounded against the bound's own function of the instance's quantities, whatever they are called."""
    bound = REGISTRY[bound_id]
    measured = _MEASURED[bound.target]
    return lambda x: (measured(x), bound.function(**{name: getattr(x, name) for name in bound.needs}))


def _half(sides: Sides) -> Mutant:
    def halved(x: Any) -> tuple[Any, Any]:
        lhs, rhs = sides(x)
        return 5 * lhs, rhs

    return Mutant("a fifth of it", "dies", "the bound is within a factor of five of the truth", {"sides": halved})


def _state(
    bound_id: str,
    source: Source,
    locator: str,
    space: Space,
    sketch: str,
    depends_on: tuple[str, ...],
    sharpness: str = "loose",
    hypotheses: tuple[str, ...] = (UNIT, ANY_SUPPORT),
    mutants: tuple[Mutant, ...] | None = None,
) -> Claim:
    bound, sides = REGISTRY[bound_id], _computed(bound_id)
    statement = " ".join((bound.function.__doc__ or "").split(">>>")[0].split())
    return entry(
        bound_id, source, locator, bound.name, space=space, sides=sides, nature="ours", sharpness=sharpness,
        statement=statement, hypotheses=hypotheses, sketch=sketch, depends_on=depends_on, proof=f"{DOC}#calculator",
        mutants=(_half(sides),) if mutants is None else mutants,
    )  # fmt: skip


_FINITE = replace(policy_pairs(reward="extremal", full_support=True), sizes=WORST.sizes[1:])
"""Finite divergences, and a step after which something may differ."""
_CENTRED = "A reward in [0, 1] is ½ plus something in [−½, ½], so that |g(c)| ≤ TV(c): half of the printed constant."
_FEW = ()

_state("trm.2.4/centred/tv", TRM, "slide 2.5.1, centred", WORST, _CENTRED, ("trm.2.4-centred",))
_state("trm.2.4/centred/kl", TRM, "slide 2.5.1, centred", _FINITE, _CENTRED, ("trm.2.4-centred",))
_state("trm.2.5.4/centred", TRM, "slide 2.5.4, centred", _FINITE, _CENTRED, ("trm.2.4-centred", "trm.2.5.3"))
_state("trm.2.5.5/centred", TRM, "slide 2.5.5, centred", _FINITE, _CENTRED, ("trm.2.4-centred", "trm.2.5.3"))
_state(
    "trm.a7/hellinger", TRM, "A.7, with Hellinger distances", WORST,
    "Squared Hellinger distances of responses add up to at most T·h (trm.a7-hellinger), and TV ≤ √(2H²) at every step.",
    ("trm.a7-hellinger",), mutants=_FEW,
)  # fmt: skip
_state(
    "dppo.b1/max", DPPO, "Lemma B.1, with the largest TV", policy_pairs(reward=None),
    "A maximal coupling of the two policies keeps the responses together with chance at least 1 − ε a step.",
    ("dppo.b1",), "tight", (ANY_SUPPORT,),
)  # fmt: skip
_state(
    "ours.tv/improvement", OURS, "TV of whole responses", FREE,
    "J(π) − J(μ) = Σ_y (π − μ)(y)R(y), at most the positive part of π − μ.", (), "tight",
)  # fmt: skip
_state(
    "ours.tv/bretagnolle-huber", OURS, "TV of whole responses", policy_pairs(reward=None),
    "Bretagnolle and Huber: (Σ_y √(μπ))² ≤ 1 − TV², and −2 log Σ_y √(μπ) ≤ KL by Jensen.", (), "unknown", (ANY_SUPPORT,),
)  # fmt: skip
_state(
    "topd.pinsker/reverse", TOPD, "end of section 4.3, either direction", policy_pairs(reward=None),
    "Pinsker's inequality and that of Bretagnolle and Huber hold for KL(π‖μ) as well.", ("ours.tv/bretagnolle-huber",),
    "asymptotic", (ANY_SUPPORT,),
)  # fmt: skip
_state(
    "ours.tv/chi2", OURS, "TV of whole responses", policy_pairs(reward=None, absolutely_continuous=True),
    "TV = ½E|W − 1| ≤ ½√(E W² − 1), and E W² ≤ (1+x)^T step by step.", (), "tight", (NESTED,),
)  # fmt: skip
_state(
    "ours.chi2/improvement", OURS, "change of the return at a maximal χ²", COVERED,
    "Cauchy–Schwarz on J(π) − J(μ) = E_μ[(R − J)(W − 1)], and E W² ≤ (1+x)^T.", (), "tight", (UNIT, NESTED),
)  # fmt: skip


@claim(
    "ours.s2/lower", OURS, "s2", "Log-ratio bound from below", space=COVERED, nature="ours", signed=True, sharpness="tight",
    hypotheses=(UNIT, NESTED), proof=f"{DOC}#ours-s2", depends_on=("ours.s2",),
    sketch="log W ≤ W − 1, weighted with R ≥ 0 and averaged under μ.", latex=r"E_\mu[R\log W]\le J(\pi)-J(\mu)",
    mutants=(Mutant("nine tenths", "dies", "tangent at π = μ", {"sides": lambda x: (9 * x.reward_log_w / 10, x.improvement)}),),
)  # fmt: skip
def log_ratio_lower(x: Any) -> Any:
    """J(π) − J(μ) ≥ E_μ[R log W]."""
    return bounds.log_ratio_lower(x.reward_log_w), x.improvement


@claim(
    "ours.s2/upper", OURS, "s2", "Log-ratio bound from above", space=COVERED, nature="ours", signed=True, sharpness="tight",
    hypotheses=(UNIT, NESTED), proof=f"{DOC}#ours-s2", depends_on=("ours.s2",),
    sketch="The lower bound for the reward 1 − R, whose return changes by the opposite.",
    latex=r"J(\pi)-J(\mu)\le-E_\mu[(1-R)\log W]",
    mutants=(Mutant("nine tenths", "dies", "tangent at π = μ", {"sides": lambda x: (x.improvement, -9 * x.cost_log_w / 10)}),),
)  # fmt: skip
def log_ratio_upper(x: Any) -> Any:
    """J(π) − J(μ) ≤ −E_μ[(1−R) log W]."""
    return x.improvement, bounds.log_ratio_upper(x.cost_log_w)


_BETWEEN = policy_pairs(reward=(0.01, 0.99), absolutely_continuous=True)


@claim(
    "ours.s2/exp-lower", OURS, "s2", "Exponential form from below", space=_BETWEEN, nature="ours", signed=True, sharpness="tight",
    hypotheses=("0 < J(μ) < 1", UNIT, NESTED), proof=f"{DOC}#ours-s2", depends_on=("ours.s2/exp",),
    sketch="Jensen for the exponential under the law μR/J(μ): J(π) ≥ J(μ)·exp E[log W].",
    latex=r"J(\pi)\ge J(\mu)\exp\bigl(E_\mu[R\log W]/J(\mu)\bigr)",
    mutants=(
        Mutant(
            "half of the behaviour's return", "dies", "the smaller J(μ), the more the exponential says",
            {"sides": lambda x: (bounds.exponential_lower(x.J_behavior / 2, x.reward_log_w), x.improvement)},
        ),
    ),
)  # fmt: skip
def exponential_lower(x: Any) -> Any:
    """J(π) − J(μ) ≥ J(μ)(exp(E_μ[R log W]/J(μ)) − 1)."""
    return bounds.exponential_lower(x.J_behavior, x.reward_log_w), x.improvement


@claim(
    "ours.s2/exp-upper", OURS, "s2", "Exponential form from above", space=_BETWEEN, nature="ours", signed=True, sharpness="tight",
    hypotheses=("0 < J(μ) < 1", UNIT, NESTED), proof=f"{DOC}#ours-s2", depends_on=("ours.s2/exp",),
    sketch="The exponential lower bound for the reward 1 − R.",
    latex=r"1-J(\pi)\ge(1-J(\mu))\exp\bigl(E_\mu[(1-R)\log W]/(1-J(\mu))\bigr)",
    mutants=(
        Mutant(
            "with the return for its complement", "dies", "the upper form weighs with 1 − R",
            {"sides": lambda x: (x.improvement, bounds.exponential_upper(1 - x.J_behavior, x.cost_log_w))},
        ),
    ),
)  # fmt: skip
def exponential_upper(x: Any) -> Any:
    """J(π) − J(μ) ≤ (1−J(μ))(1 − exp(E_μ[(1−R) log W]/(1−J(μ))))."""
    return x.improvement, bounds.exponential_upper(x.J_behavior, x.cost_log_w)


@claim(
    "ours.s3/surrogate", OURS, "s3", "Largest surrogate at a given TV", space=FREE, nature="ours", sharpness="tight",
    hypotheses=(UNIT, ANY_SUPPORT), proof=f"{DOC}#ours-s3",
    sketch="|g(c)| ≤ TV(c)·span, summed over the contexts that μ visits.",
    mutants=(Mutant("largest context", "dies", "one context is not all", {"sides": lambda x: (absolute(x.surrogate), x.tv_max)}),),
)  # fmt: skip
def surrogate_limit_tv(x: Any) -> Any:
    """|L| ≤ Σ_t E_{d_t^μ} TV(c_t)."""
    return absolute(x.surrogate), bounds.surrogate_limit_tv(x.tv_sum)


def _step_maxima(x: Any) -> list[Any]:
    """The largest token TV of every step."""
    return [amax(level, -1) for level in x.tv]


@claim(
    "ours.s4/profile", OURS, "s4", "Exact supremum at a TV limit of every step", space=WORST, nature="ours", sharpness="tight",
    hypotheses=(UNIT, ANY_SUPPORT), proof=f"{DOC}#ours-s4", depends_on=("ours.s4",), structured=offer(leak("1/4"), leak("1/2")),
    sketch="As s4: s3 less the mass of the coupled runs that deviate exactly once, with a chance of its own at every step.",
    latex=r"|J(\pi)-J(\mu)-L|\le\textstyle\sum_t\varepsilon_t\bigl(1-\prod_{s\ne t}(1-\varepsilon_s)\bigr)",
    mutants=(
        Mutant(
            "smallest step for all", "dies", "a step may have a larger TV than another",
            {"sides": lambda x: (absolute(x.error), bounds.sharp_tv(x.horizon, _smallest(_step_maxima(x))))},
        ),
    ),
)  # fmt: skip
def sharp_tv_profile(x: Any) -> Any:
    """|J(π) − J(μ) − L| ≤ Σ_t ε_t(1 − Π_{s≠t}(1−ε_s)), ε_t the largest token TV of step t."""
    return absolute(x.error), bounds.sharp_tv_profile(_step_maxima(x))


def _smallest(steps: list[Any]) -> Any:
    least = -steps[0]
    for step in steps[1:]:
        least = maximum(least, -step)
    return -least


@claim(
    "trm.2.5.1/marginal-sharp", TRM, "slide 2.5.1 and A.6, sharp", "Laws of contexts part no faster than 1 − (1−ε)^t",
    space=replace(WORST, sizes=WORST.sizes[1:]), nature="ours", sharpness="tight", hypotheses=(ANY_SUPPORT,),
    depends_on=("trm.2.5.1/simulation",), proof=f"{DOC}#calculator",
    sketch="A maximal coupling keeps the prefixes together with chance at least 1 − ε a step.",
    mutants=(
        Mutant(
            "a step fewer", "dies", "t steps lie before a context of step t",
            {"sides": lambda x: (x.marginal_tv(x.horizon - 1), bounds.marginal_tv_sharp(x.horizon - 2, x.tv_max))},
        ),
    ),
)  # fmt: skip
def marginal_sharp(x: Any) -> Any:
    """TV of the two laws of contexts after t tokens is at most 1 − (1−ε)^t, ε the largest token TV."""
    return x.marginal_tv(x.horizon - 1), bounds.marginal_tv_sharp(x.horizon - 1, x.tv_max)


# ------------------------------------------------------------------------- a mask on responses


class _MaskedPair:
    """A pair together with a free mask on its responses."""

    def __init__(self, pair: PolicyPair, mask: list[Any]):
        self.pair, self.mask = pair, mask
        rewards = [level * m for level, m in zip(pair.reward.levels, mask, strict=True)]
        levels = (pair.behavior.levels, pair.target.levels, rewards)
        self.kept = PolicyPair.from_levels(pair.tree, *levels, validate=False)
        """The same policies with reward M·R."""

    @property
    def improvement(self) -> Any:
        return self.pair.improvement

    @property
    def reward_lost(self) -> Any:
        """E_μ[(1 − M)R]."""
        return self.pair.J_behavior - self.kept.J_behavior


def _with_mask(base: Space) -> Space:
    """Pairs of ``base`` with weights in [0, 1] on every response."""

    def blocks(**size: Any) -> dict[str, Any]:
        plain = base.blocks(**size)
        return plain | {name.replace("reward", "mask"): Box(b.shape) for name, b in plain.items() if name.startswith("reward")}

    def build(values: Values, **size: Any) -> _MaskedPair:
        pair = base.build({k: v for k, v in values.items() if not k.startswith("mask")}, **size)
        last = values[f"mask.{size['horizon'] - 1}"]
        return _MaskedPair(pair, [*(0 * level for level in pair.behavior.levels[:-1]), last])

    def serialise(x: _MaskedPair) -> dict[str, Any]:
        return x.pair.to_data() | {"mask": [[[str(exact(q)) for q in row] for row in x.mask[-1]]]}

    return replace(base, blocks=blocks, build=build, serialise=serialise, description=base.description + ", any mask on responses")


@claim(
    "ours.s8/masked", OURS, "s8", "Lower bound under any mask", space=_with_mask(COVERED), nature="ours", signed=True,
    sharpness="tight", hypotheses=("R ≥ 0", "0 ≤ M ≤ 1", NESTED), proof=f"{DOC}#ours-s8", depends_on=("ours.s8/mask",),
    sketch="W − 1 ≥ Σ(ρ_t − 1) − Σk3(ρ_t) = log W where the mask keeps a response, W − 1 ≥ −1 where it does not; times R ≥ 0.",
    latex=r"J(\pi)-J(\mu)\ge E_\mu[MR\textstyle\sum(\rho_t-1)]-E_\mu[MR\sum k_3(\rho_t)]-E_\mu[(1-M)R]",
    mutants=(
        Mutant(
            "nothing lost by masking", "dies", "a masked response may lose its whole reward",
            {"sides": lambda x: (bounds.masked_lower(x.kept.surrogate_reward, x.kept.reward_k3_sum, 0), x.improvement)},
        ),
    ),
)  # fmt: skip
def masked(x: Any) -> Any:
    """For every mask M with values in [0, 1] on responses, J(π) − J(μ) is at least E_μ[M R Σ(ρ_t−1)] − E_μ[M R Σ k3(ρ_t)] −
    E_μ[(1−M)R]."""
    return bounds.masked_lower(x.kept.surrogate_reward, x.kept.reward_k3_sum, x.reward_lost), x.improvement


# ----------------------------------------------------------------------------- TOP-D's other forms

_ALPHAS = (0.0625, 0.25, 0.875)  # exact in binary


@claim(
    "topd.thm4.2-sharp/softmax", TOPD, "Theorem 4.2", "Second moment of the gradient with free logits", space=single_states(),
    nature="ours", sharpness="loose", hypotheses=("the token is drawn from the student",), depends_on=("topd.thm4.2-sharp",), proof=f"{DOC}#calculator",
    sketch="‖e_y − p‖² = 1 − 2p_y + Σp² ≤ 2, and E_p[r̃²] ≤ K(α).",
    mutants=(
        Mutant("a tenth", "dies", "the bound is within a factor of ten of the truth", {"sides": lambda x: (10 * _largest_share(x), 1)}),
    ),
)  # fmt: skip
def softmax_second_moment(x: Any) -> Any:
    """E_p‖r̃ ∇log p‖² ≤ 2K(α) for a softmax over free logits, checked at α = 1/16, 1/4 and 7/8 together."""
    return _largest_share(x), 1


def _largest_share(x: Any) -> Any:
    largest = 0
    for alpha in _ALPHAS:
        ball = bounds.topd_variance_softmax(exact(alpha))
        limit = float(ball.mid()) * (1 + 1e-12)
        largest = maximum(largest, x.topd_gradient_second_moment(alpha) / (exact(limit) if x.is_exact else limit))
    return largest


_TEACHING = teacher_students(extra={"alpha": (0.02, 0.98)}, full_support=False)


@claim(
    "topd.thm4.4-token/steps", TOPD, "Theorem 4.4", "Contraction of several token-level mixtures", space=_TEACHING, nature="ours",
    sharpness="tight", hypotheses=("0 < α < 1", "no errors"), depends_on=("topd.thm4.4-token",), proof=f"{DOC}#topd-thm4-4-token",
    sketch="k token mixtures with weight α are one with weight 1 − (1−α)^k.",
    mutants=(
        Mutant(
            "the law of one step, twice", "survives", "iterating it is valid and weaker: a mixture of mixtures forgets more",
            {"sides": lambda x: (x.l1_token_mixed(_after(x, 2)), (1 - x.alpha**x.horizon) ** 2 * x.l1_seq)},
        ),
        Mutant("three quarters", "dies", "best possible", {"factor": Fraction(3, 4)}),
    ),
)  # fmt: skip
def token_steps(x: Any) -> Any:
    """After two updates by token-level mixing the distance is at most (1 − (1−(1−α)²)^T)·d₀."""
    return x.l1_token_mixed(_after(x, 2)), bounds.contraction_token_steps(x.alpha, x.horizon, 2, initial=x.l1_seq)


def _after(x: Any, steps: int) -> Any:
    return 1 - (1 - x.alpha) ** steps


_UPDATES = proximal_steps(3, errors=True)


def _worst_error(x: Any) -> Any:
    return maximum(maximum(x.error_l1(0), x.error_l1(1)), x.error_l1(2))


@claim(
    "topd.thm4.4/uniform", TOPD, "Theorem 4.4, Eqs 12 and 13", "Contraction with errors of one size", space=_UPDATES, nature="ours",
    sharpness="tight", hypotheses=("whole responses are mixed", "0 < α < 1"), depends_on=("topd.thm4.4",), proof=f"{DOC}#calculator",
    sketch="The errors of topd.thm4.4, each at most e, sum to a geometric series; started at e/α or nearer it stays there.",
    mutants=(
        Mutant(
            "one step more", "dies", "equality without errors",
            {"sides": lambda x: (x.l1(3), bounds.contraction_sequence(x.alpha, 4, initial=x.l1(0), step_error=_worst_error(x)))},
        ),
        Mutant(
            "the limit at once", "dies", "the limit is approached, not jumped to",
            {"sides": lambda x: (x.l1(3), bounds.contraction_limit(x.alpha, _worst_error(x)))},
        ),
    ),
)  # fmt: skip
def uniform_errors(x: Any) -> Any:
    """After three updates with errors of at most e the distance is at most (1−α)³·d₀ + e·(1 − (1−α)³)/α, and so never above
    the larger of d₀ and e/α."""
    error = _worst_error(x)
    law = bounds.contraction_sequence(x.alpha, 3, initial=x.l1(0), step_error=error)
    ceiling = maximum(x.l1(0), bounds.contraction_limit(x.alpha, error))
    return x.l1(3), minimum(law, ceiling)
