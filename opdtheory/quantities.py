"""The numbers a user may know about a run, and the inequalities that hold between them.

One table of rules serves twice: it refuses inputs that contradict each other, and it fills in upper
limits for what was not given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from opdtheory.bounds.powers import excess_growth
from opdtheory.bounds.registry import REGISTRY

_SLACK = 1e-9
"""Relative room for rounding when inputs are compared with each other."""


@dataclass(frozen=True)
class Quantity:
    """An input: its meaning, its domain, and whether it is a divergence (bounds grow with it)."""

    meaning: str
    low: float = -math.inf
    high: float = math.inf
    whole: bool = False
    open_ends: bool = False
    divergence: bool = False


QUANTITIES: dict[str, Quantity] = {
    "horizon": Quantity("largest response length T", 1, whole=True),
    "tv_max": Quantity("largest token TV over all contexts", 0, 1, divergence=True),
    "kl_max": Quantity("largest token KL(μ‖π) over all contexts, nats", 0, divergence=True),
    "reverse_kl_max": Quantity("largest token KL(π‖μ) over all contexts, nats", 0, divergence=True),
    "kl_seq": Quantity("KL(μ‖π) of whole responses, nats", 0, divergence=True),
    "reverse_kl_seq": Quantity("KL(π‖μ) of whole responses, nats", 0, divergence=True),
    "reverse_kl_sum": Quantity("Σ_t E_{d_t^μ} KL(π‖μ)(c_t), nats", 0, divergence=True),
    "tv_sum": Quantity("Σ_t E_{d_t^μ} TV(c_t)", 0, divergence=True),
    "tv_seq": Quantity("TV of the two laws of whole responses", 0, 1, divergence=True),
    "chi2_max": Quantity("largest token χ²(π‖μ) over all contexts", 0, divergence=True),
    "hellinger2_max": Quantity("largest token squared Hellinger distance", 0, 1, divergence=True),
    "hellinger2_sum": Quantity("Σ_t E_{d_t^μ} h²(c_t), squared Hellinger distances", 0, divergence=True),
    "hellinger2_seq": Quantity("squared Hellinger distance of whole responses", 0, 1, divergence=True),
    "midpoint_kl_sum": Quantity("Σ_t E_{d_t^μ} KL(μ‖(μ+π)/2)(c_t), nats", 0, divergence=True),
    "ratio_martingale": Quantity("E_μ Σ_t (W_{t−1}−1)² χ²(c_t)", 0, divergence=True),
    "reward_sd": Quantity("standard deviation of the reward under μ", 0),
    "reward_bound": Quantity("largest |R|", 0),
    "surrogate": Quantity("L, the surrogate value"),
    "J_behavior": Quantity("J(μ), the mean reward under μ"),
    "reward_log_w": Quantity("E_μ[R log W], R counted from the smallest reward"),
    "cost_log_w": Quantity("E_μ[(max R − R) log W]"),
    "reward_floor_log_w": Quantity("E_μ[R max(log W, −1)], R counted from the smallest reward"),
    "masked_surrogate": Quantity("E_μ[M R Σ(ρ_t−1)], R counted from the smallest reward"),
    "masked_k3": Quantity("E_μ[M R Σ k3(ρ_t)], R counted from the smallest reward", 0),
    "masked_reward_lost": Quantity("E_μ[(1−M) R], R counted from the smallest reward", 0),
    "alpha": Quantity("interpolation towards the teacher", 0, 1, open_ends=True),
    "vocab": Quantity("vocabulary size", 2, whole=True),
    "score_bound": Quantity("bound M on ‖∇ log π‖", 0),
    "steps": Quantity("number of distillation steps", 0, whole=True),
    "initial": Quantity("initial L1 distance to the teacher", 0, 2),
    "step_error": Quantity("L1 error of one step", 0, 2),
    "adv_max": Quantity("largest |A^μ|", 0),
    "adv_target_max": Quantity("ξ = largest |E_π̃ A(c, ·)|", 0),
    "adv_kl_max": Quantity("ξ′ = largest |E_π̃ A(c, ·) − KL(π̃‖π)(c)|", 0),
    "advantage_bound": Quantity("largest |A|", 0),
    "expected_length": Quantity("mean response length under μ, tokens", 1),
    "gamma": Quantity("discount factor", 0, 1, open_ends=True),
}


EVERY_CONTEXT = ("tv_max", "kl_max", "reverse_kl_max", "chi2_max", "hellinger2_max")
"""Divergences that vanish only if the policies agree at every context."""
VISITED = (
    "kl_seq", "reverse_kl_seq", "reverse_kl_sum", "tv_sum", "tv_seq", "hellinger2_sum", "hellinger2_seq",
    "midpoint_kl_sum",
)  # fmt: skip
"""Divergences that vanish only if the policies agree wherever μ goes."""


@dataclass(frozen=True)
class Rule:
    """``quantity`` is at most ``limit(sources)``: refuses one above it and, unless it ``only_checks``, fills in
    a missing one.

    Filling in is right for quantities that bounds grow with.  ``reward_span`` and ``reward_size`` stand for
    max R − min R and max |R|; J is counted from the smallest reward.
    """

    quantity: str
    sources: tuple[str, ...]
    limit: Callable[..., Any]
    reason: str
    only_checks: bool = False


def _root(x: Any) -> Any:
    return np.sqrt(np.asarray(x, dtype=float))[()]


def _pinsker(d: Any) -> Any:
    return np.minimum(1.0, _root(d / 2))


def _bretagnolle_huber(d: Any) -> Any:
    return _root(-np.expm1(-d))


def _affinity(h: Any) -> Any:
    """The largest TV at squared Hellinger distance h."""
    return _root(h * (2 - h))


def _chi2_tv(x: float) -> float:
    """The largest TV at χ² = x: two tokens, the first of probability ½ or, from x = 1 on, less."""
    return math.sqrt(x) / 2 if x < 1 else 1 / (1 + 1 / x)


def _jensen(n: Any, d: Any) -> Any:
    return _root(n * d / 2)


def _same(x: Any) -> Any:
    return x


def _divergence_of_sides(reward: float, cost: float, span: float) -> float | None:
    """−(reward + cost)/span with room for what cancels; None where noise has made it negative."""
    total = -reward - cost
    return (total + _SLACK * (abs(reward) + abs(cost))) / span if total >= 0 else None


def _metrics_of(kl: str, tv: str, hellinger: str) -> tuple[Rule, ...]:
    """What a KL divergence in either direction says of TV and Hellinger distance between the same laws."""
    return (
        Rule(tv, (kl,), _pinsker, f"Pinsker, {tv} ≤ √({kl}/2)"),
        Rule(tv, (kl,), _bretagnolle_huber, f"Bretagnolle–Huber, {tv} ≤ √(1 − e^(−{kl}))"),
        Rule(hellinger, (kl,), lambda d: -np.expm1(-d / 2), f"{hellinger} ≤ 1 − e^(−{kl}/2)"),
    )


def _total(total: str, largest: str, why: str = "a sum of T terms") -> Rule:
    return Rule(total, ("horizon", largest), lambda n, x: n * x, f"{why}, {total} ≤ T·{largest}")


_LONGEST = 1_000_000


def front_loaded(horizon: int, tv_sum: float, tv_max: float) -> np.ndarray | None:
    """Expected token TVs of T steps that sum to at most ``tv_sum``, none above ``tv_max``, early steps first.

    None where T is too long to hold a list of steps.
    """
    if horizon > _LONGEST:
        return None
    return np.clip(tv_sum - tv_max * np.arange(horizon), 0.0, tv_max)


RULES: tuple[Rule, ...] = (
    Rule("reverse_kl_max", ("chi2_max",), np.log1p, "KL(π‖μ) ≤ log(1 + χ²)"),
    *_metrics_of("kl_max", "tv_max", "hellinger2_max"),
    *_metrics_of("reverse_kl_max", "tv_max", "hellinger2_max"),
    Rule("tv_max", ("chi2_max",), _chi2_tv, "tv_max ≤ ½√x, or x/(1 + x) from x = chi2_max = 1 on"),
    Rule("tv_max", ("hellinger2_max",), _affinity, "tv_max ≤ √(h(2 − h)), h = hellinger2_max"),
    Rule("hellinger2_max", ("tv_max",), _same, "hellinger2_max ≤ tv_max"),
    Rule(
        "kl_seq",
        ("reward_log_w", "cost_log_w", "reward_span"),
        _divergence_of_sides,
        "kl_seq = −E log W = −(reward_log_w + cost_log_w)/(max R − min R)",
    ),
    _total("kl_seq", "kl_max", "chain rule"),
    _total("reverse_kl_seq", "reverse_kl_max", "chain rule"),
    _total("reverse_kl_sum", "reverse_kl_max"),
    _total("tv_sum", "tv_max"),
    _total("hellinger2_sum", "hellinger2_max"),
    Rule("tv_sum", ("horizon", "kl_seq"), _jensen, "Pinsker and Jensen, tv_sum ≤ √(T·kl_seq/2)"),
    Rule(
        "tv_sum", ("horizon", "reverse_kl_sum"), _jensen, "Pinsker and Jensen, tv_sum ≤ √(T·reverse_kl_sum/2)"
    ),
    Rule("hellinger2_sum", ("tv_sum",), _same, "hellinger2_sum ≤ tv_sum"),
    Rule("hellinger2_sum", ("kl_seq",), lambda d: d / 2, "hellinger2_sum ≤ kl_seq/2"),
    Rule("hellinger2_sum", ("reverse_kl_sum",), lambda d: d / 2, "hellinger2_sum ≤ reverse_kl_sum/2"),
    Rule(
        "tv_sum",
        ("horizon", "hellinger2_sum"),
        lambda n, h: _root(2 * n * h),
        "Jensen, tv_sum ≤ √(2T·hellinger2_sum)",
    ),
    Rule(
        "midpoint_kl_sum", ("hellinger2_sum",), lambda h: 5 * h / 4, "midpoint_kl_sum ≤ (5/4)·hellinger2_sum"
    ),
    Rule("midpoint_kl_sum", ("kl_seq",), lambda d: d / 2, "convexity, midpoint_kl_sum ≤ kl_seq/2"),
    Rule("midpoint_kl_sum", ("reverse_kl_sum",), lambda d: d / 4, "midpoint_kl_sum ≤ reverse_kl_sum/4"),
    Rule("midpoint_kl_sum", ("tv_sum",), lambda s: math.log(2) * s, "midpoint_kl_sum ≤ log 2·tv_sum"),
    Rule("tv_seq", ("tv_sum",), lambda s: np.minimum(1.0, s), "tv_seq ≤ tv_sum"),
    Rule(
        "tv_seq",
        ("horizon", "tv_max"),
        lambda n, e: REGISTRY["dppo.b1/max"](n, e),
        "maximal coupling, tv_seq ≤ 1 − (1 − tv_max)^T",
    ),
    Rule(
        "tv_seq",
        ("horizon", "chi2_max"),
        lambda n, x: np.minimum(1.0, REGISTRY["ours.tv/chi2"](n, x)),
        "Cauchy and Schwarz, tv_seq ≤ ½√((1 + chi2_max)^T − 1)",
    ),
    *_metrics_of("kl_seq", "tv_seq", "hellinger2_seq"),
    *_metrics_of("reverse_kl_seq", "tv_seq", "hellinger2_seq"),
    Rule("hellinger2_seq", ("tv_seq",), _same, "hellinger2_seq ≤ tv_seq"),
    Rule(
        "hellinger2_seq",
        ("hellinger2_sum",),
        lambda h: np.minimum(1.0, 4 * h),
        "hellinger2_seq ≤ 4·hellinger2_sum",
    ),
    Rule(
        "hellinger2_seq",
        ("horizon", "hellinger2_max"),
        lambda n, h: REGISTRY["dppo.b1/max"](n, h),
        "affinities multiply, hellinger2_seq ≤ 1 − (1 − hellinger2_max)^T",
    ),
    Rule("tv_seq", ("hellinger2_seq",), _affinity, "tv_seq ≤ √(h(2 − h)), h = hellinger2_seq"),
    Rule(
        "ratio_martingale",
        ("horizon", "chi2_max"),
        lambda n, x: excess_growth(x, n),
        "ratio_martingale ≤ (1 + x)^T − 1 − Tx, x = chi2_max",
    ),
    Rule(
        "tv_steps",
        ("horizon", "tv_sum", "tv_max"),
        front_loaded,
        "the worst division of tv_sum over the steps, as early as tv_max allows",
    ),
    Rule("expected_length", ("horizon",), _same, "no response is longer than T"),
    Rule("adv_target_max", ("adv_max",), _same, "a mean of advantages is at most the largest"),
    Rule("reward_bound", ("reward_size",), _same, "the largest |R| of the reward range"),
    Rule("advantage_bound", ("reward_span",), _same, "no advantage exceeds the reward range"),
    Rule("reward_sd", ("reward_span",), lambda s: s / 2, "half of the reward range"),
    Rule(
        "reward_sd",
        ("J_behavior", "reward_span"),
        lambda j, s: math.sqrt(max(0.0, j * (s - j))),
        "Bhatia and Davis, reward_sd ≤ √((J − min R)(max R − J))",
    ),
    Rule("J_behavior", ("reward_span",), _same, "no mean exceeds the largest reward", True),
    Rule("masked_reward_lost", ("reward_span",), _same, "no loss exceeds the reward range", True),
    Rule("masked_reward_lost", ("J_behavior",), _same, "no more can be masked than J − min R", True),
    Rule("reward_log_w", ("reward_span",), _same, "no improvement exceeds the reward range", True),
    Rule("reward_floor_log_w", ("reward_span",), _same, "no improvement exceeds the reward range", True),
    Rule("reward_log_w", ("reward_floor_log_w",), _same, "the floor only raises log W", True),
    Rule("reward_log_w", ("cost_log_w",), lambda c: -c, "E log W = −kl_seq is not positive", True),
)
"""Inequalities between quantities, sources before the quantities that use them."""


def check_domain(name: str, value: Any) -> float | int:
    spec = QUANTITIES.get(name)
    if spec is None:
        raise ValueError(f"{name}: unknown quantity; expected one of {', '.join(QUANTITIES)}")
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise ValueError(f"{name}: got {value!r}, expected a number")
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(
            f"{name}: got a number of {len(str(value))} digits, expected less than 1e308"
        ) from None
    if math.isnan(number):
        raise ValueError(f"{name}: got NaN, expected a number")
    if spec.whole and (math.isinf(number) or number != int(number)):
        raise ValueError(f"{name}: got {value!r}, expected a whole number")
    inside = spec.low < number < spec.high if spec.open_ends else spec.low <= number <= spec.high
    if not inside:
        what = "a divergence is never negative" if spec.divergence and number < 0 else _domain(spec)
        raise ValueError(
            f"{name}: got {value!r}, expected {_domain(spec)}"
            + ("" if what == _domain(spec) else f" ({what})")
        )
    return int(number) if spec.whole else number


def _domain(spec: Quantity) -> str:
    if spec.open_ends:
        return f"a number strictly between {spec.low:g} and {spec.high:g}"
    if math.isinf(spec.high):
        return f"a {'whole number' if spec.whole else 'number'} of at least {spec.low:g}"
    return f"a number from {spec.low:g} to {spec.high:g}"


def check_consistency(given: Mapping[str, Any]) -> None:
    """Raise ValueError if the given quantities contradict each other, naming the inequality they break."""
    for rule in RULES:
        if rule.quantity not in given or any(s not in given for s in rule.sources):
            continue
        found = rule.limit(*(given[s] for s in rule.sources))
        limit = math.inf if found is None else float(found)
        if given[rule.quantity] > limit + _SLACK * abs(limit):
            sources = ", ".join(f"{s}={given[s]:g}" for s in rule.sources)
            raise ValueError(
                f"{rule.quantity}: got {given[rule.quantity]:g}, expected at most {limit:g}, "
                f"which {sources} imply ({rule.reason})"
            )
    for zeros, others in ((EVERY_CONTEXT, EVERY_CONTEXT + VISITED), (VISITED, VISITED)):
        zero = next((n for n in zeros if given.get(n) == 0), None)
        positive = next((n for n in others if given.get(n, 0) > 0), None)
        if zero and positive:
            where = "at every context" if zeros is EVERY_CONTEXT else "wherever μ goes"
            raise ValueError(
                f"{positive}: got {given[positive]:g}, expected 0, because {zero}=0 says that the policies "
                f"agree {where}"
            )


@lru_cache(maxsize=256)
def _rules_for(wanted: tuple[str, ...]) -> tuple[Rule, ...]:
    """The rules that can matter to the wanted quantities, in order."""
    relevant, queue = set(), list(wanted)
    while queue:
        name = queue.pop()
        if name not in relevant:
            relevant.add(name)
            queue += [source for rule in RULES if rule.quantity == name for source in rule.sources]
    return tuple(rule for rule in RULES if rule.quantity in relevant)


def derive(
    given: Mapping[str, Any], wanted: tuple[str, ...] | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Every quantity that follows from the given ones, and for each derived one the inequality it came from.

    A derived value is an upper limit, the smallest that any rule gives; bounds grow with their
    divergences, so it may stand in for the quantity itself.  ``wanted`` restricts the work to what
    these quantities rest on.
    """
    values, origin = dict(given), {}
    for rule in RULES if wanted is None else _rules_for(wanted):
        if rule.quantity in given or rule.only_checks:
            continue
        try:
            arguments = [values[source] for source in rule.sources]
        except KeyError:
            continue
        limit = rule.limit(*arguments)
        if limit is None:
            continue
        limit = limit if isinstance(limit, np.ndarray) else float(limit)
        if rule.quantity not in values or limit < values[rule.quantity]:
            values[rule.quantity], origin[rule.quantity] = limit, rule.reason
    return values, origin
