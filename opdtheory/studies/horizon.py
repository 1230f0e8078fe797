"""How errors, bounds and importance weights grow with the horizon, on models that are exact at any length."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from scipy import optimize, stats

from opdtheory import bounds
from opdtheory.bounds.registry import REGISTRY
from opdtheory.tabular.chains import FiniteContextChain
from opdtheory.tabular.iid import IidBinary

HORIZONS = tuple(2**k for k in range(4, 15))
"""16, 32, …, 16384."""
LEVELS = {"tv": (1e-2, 1e-3, 1e-4), "kl": (1e-4, 1e-6, 1e-8)}
"""Divergences per token at which the studies are run."""


def token_shift(level: float, divergence: str) -> float:
    """q − ½ such that a fair coin and a q-coin have the given TV, or the given KL(fair‖q).

    >>> round(token_shift(0.1, "tv"), 3), round(token_shift(0.5 * math.log(4 / 3), "kl"), 3)
    (0.1, 0.25)
    """
    if divergence == "tv":
        return level
    if divergence == "kl":
        # KL(½‖q) = −½ log(4q(1 − q))
        return math.sqrt(-math.expm1(-2 * level)) / 2
    raise ValueError(f"divergence: got {divergence!r}, expected 'tv' or 'kl'")


def _quantities(model: Any, horizon: int) -> dict[str, Any]:
    names = ("tv_max", "kl_max", "reverse_kl_max", "kl_seq", "reverse_kl_seq", "tv_sum", "chi2_max")
    found = {name: float(getattr(model, name)) for name in names}
    # independent tokens have the same divergence in every context
    repeated = horizon * model.reverse_kl_max if isinstance(model, IidBinary) else model.reverse_kl_sum
    found["reverse_kl_sum"] = float(repeated)
    return {"horizon": horizon, "reward_sd": 0.5, "reward_bound": 1.0, **found}


def iid_worst(level: float, divergence: str, horizon: int) -> tuple[float, dict[str, Any]]:
    """Independent fair coins against shifted ones, the reward that maximises the error."""
    model = IidBinary(0.5, 0.5 + token_shift(level, divergence), horizon)
    return model.error_sup, _quantities(model, horizon)


def iid_threshold(level: float, divergence: str, horizon: int) -> tuple[float, dict[str, Any]]:
    """The same coins with a natural reward: ones exceed chance by a standard deviation."""
    model = IidBinary(0.5, 0.5 + token_shift(level, divergence), horizon)
    return abs(model.error(lambda ones: (ones > (horizon + math.sqrt(horizon)) / 2) * 1.0)), _quantities(
        model, horizon
    )


def one_slip(level: float, divergence: str, horizon: int) -> tuple[float, dict[str, Any]]:
    """The automaton that attains the TV supremum: reward unless exactly one token is a 1, which μ never
    emits.
    """
    eps = level if divergence == "tv" else -math.expm1(-level)  # KL((1, 0)‖(1−ε, ε)) = −log(1−ε)
    model = FiniteContextChain(
        [[0, 1], [1, 2], [2, 2]],
        np.array([[1.0, 0.0]] * 3),
        np.array([[1 - eps, eps], [1 - eps, eps], [1.0, 0.0]]),
        horizon=horizon,
        final_reward=np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]),
    )
    return abs(float(model.error)), _quantities(model, horizon)


def sticky_chain(level: float, divergence: str, horizon: int) -> tuple[float, dict[str, Any]]:
    """Tokens that repeat with probability 0.9; π repeats ones more often; reward for ending on a one."""
    stay = 0.9
    shift = level if divergence == "tv" else _shift_up(stay, level)
    behavior = np.array([[0.5, 0.5], [stay, 1 - stay], [1 - stay, stay]])
    target = behavior + np.array([[0.0, 0.0], [0.0, 0.0], [-shift, shift]])
    final = np.array([[0.0, 1.0]] * 3)
    model = FiniteContextChain.last_token(behavior, target, horizon=horizon, final_reward=final)
    return abs(float(model.error)), _quantities(model, horizon)


def _shift_up(p: float, level: float) -> float:
    """The shift for which KL((1−p, p)‖(1−p−s, p+s)) is ``level``."""

    def excess(s: float) -> float:
        return -p * math.log1p(s / p) - (1 - p) * math.log1p(-s / (1 - p)) - level

    return optimize.brentq(excess, 0.0, (1 - p) * (1 - 1e-12), xtol=1e-18, rtol=8.9e-16)


FAMILIES: dict[str, Callable[[float, str, int], tuple[float, dict[str, Any]]]] = {
    "independent tokens, worst reward": iid_worst,
    "independent tokens, threshold reward": iid_threshold,
    "one slip (attains the TV supremum)": one_slip,
    "sticky chain, reward on the last token": sticky_chain,
}


def error_scaling(divergence: str, level: float, horizons: Iterable[int] = HORIZONS) -> dict[str, Any]:
    """Measured |Error| of each family and every error bound over the horizon at a fixed divergence per token.

    Returns ``rows`` (one per horizon and family: measured error, its quantities, bounds by id), the ``supremum``
    over all instances at each horizon (exact at fixed TV; at fixed KL to first order, for T·level ≪ 1) and
    ``exponents``: of each measured series, bound and the supremum over the upper half of the horizons.
    """
    horizons = list(horizons)
    rows = []
    for family, build in FAMILIES.items():
        for horizon in horizons:
            error, given = build(level, divergence, horizon)
            values = {
                b.id: float(b.evaluate(given))
                for b in REGISTRY.values()
                if b.target == "surrogate_error" and all(n in given for n in b.needs)
            }
            rows.append(
                {"family": family, "horizon": horizon, "error": error, "bounds": values, **_kept(given)}
            )
    exponents = []
    for family in FAMILIES:
        mine = [r for r in rows if r["family"] == family]
        series = {"measured": [r["error"] for r in mine]}
        series |= {name: [r["bounds"][name] for r in mine] for name in mine[0]["bounds"]}
        for name, line in series.items():
            exponents.append({"family": family, "series": name, **fitted_exponent(horizons, line)})
    largest = [supremum(divergence, level, n) for n in horizons]
    exponents.append({"family": "all instances", "series": "supremum", **fitted_exponent(horizons, largest)})
    return {
        "divergence": divergence,
        "level": level,
        "rows": rows,
        "supremum": [{"horizon": n, "error": x} for n, x in zip(horizons, largest, strict=True)],
        "exponents": exponents,
    }


def supremum(divergence: str, level: float, horizon: int) -> float:
    """The largest error of any instance with this token divergence at every context, rewards in [0, 1].

    For TV exact at every level (s4); for KL, in either direction, its leading term √(T(T−1)/2)·level (s11).
    """
    if divergence == "tv":
        return float(bounds.sharp_tv(horizon, level))
    return math.sqrt(horizon * (horizon - 1) / 2) * level


def _kept(given: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in given.items() if k not in {"horizon", "reward_sd", "reward_bound"}}


def fitted_exponent(
    horizons: Sequence[float], values: Sequence[float], confidence: float = 0.95
) -> dict[str, Any]:
    """Slope of log value against log horizon over the upper half of the points, with its t interval.

    ``exponent`` None where a value is zero or infinite; ``local`` is the slope between the last two points.

    >>> fit = fitted_exponent([1, 2, 4, 8, 16, 32], [3 * t**1.5 for t in (1, 2, 4, 8, 16, 32)])
    >>> round(fit["exponent"], 6), round(fit["local"], 6)
    (1.5, 1.5)
    """
    half = len(horizons) // 2
    x, y = np.asarray(horizons[half:], dtype=float), np.asarray(values[half:], dtype=float)
    if len(x) < 3 or not (np.isfinite(y).all() and (y > 0).all()):
        return {"exponent": None, "lower": None, "upper": None, "local": None}
    fit = stats.linregress(np.log(x), np.log(y))
    radius = stats.t.ppf((1 + confidence) / 2, len(x) - 2) * fit.stderr
    local = math.log(y[-1] / y[-2]) / math.log(x[-1] / x[-2])
    return {
        "exponent": float(fit.slope),
        "lower": float(fit.slope - radius),
        "upper": float(fit.slope + radius),
        "local": local,
    }


def weight_variance(
    levels: Sequence[float] = (1e-3, 1e-4, 1e-5, 1e-6), horizons: Iterable[int] = HORIZONS
) -> dict[str, Any]:
    """Variance of the weight W of a whole response for coins at KL ``level`` a token, and what it
    leaves usable.

    ``effective`` is 1/(1 + Var W), the share of the samples that a weighted mean is worth;
    ``surrogate`` is the variance bound of the per-token surrogate with |A| ≤ 1; ``unit_horizon`` is
    where Var W reaches 1.
    """
    rows, summary = [], []
    for level in levels:
        shift = token_shift(level, "kl")
        chi2 = IidBinary(0.5, 0.5 + shift, 1).chi2_max
        for horizon in sorted({*horizons, 1000}):
            exact = float(IidBinary(0.5, 0.5 + shift, horizon).chi2_seq)
            rows.append(
                {
                    "kl": level,
                    "chi2": chi2,
                    "horizon": horizon,
                    "variance": exact,
                    "formula": float(bounds.trajectory_weight_variance(horizon, chi2)),
                    "effective": 1 / (1 + exact),
                    "surrogate": float(bounds.token_weight_variance(horizon, chi2, 1.0)),
                }
            )
        summary.append({"kl": level, "chi2": chi2, "unit_horizon": math.log(2) / math.log1p(chi2)})
    return {"rows": rows, "summary": summary}


def bounds_over_divergence(horizon: int = 4096, levels: Sequence[float] | None = None) -> dict[str, Any]:
    """Every error bound against the token KL for coins at one horizon, with the measured worst error.

    ``thresholds`` says from which token KL on each bound stops being vacuous, and below which it can
    certify any improvement at all (if kl_seq = T·kl_max and the rest follows from it).
    """
    from opdtheory.calculator import calculate

    chosen = np.geomspace(1e-10, 1e-1, 46) if levels is None else np.asarray(levels)
    rows = []
    for level in chosen:
        error, given = iid_worst(float(level), "kl", horizon)
        values = {
            b.id: float(b.evaluate(given))
            for b in REGISTRY.values()
            if b.target == "surrogate_error" and all(n in given for n in b.needs)
        }
        limit = float(bounds.surrogate_limit(given["kl_seq"]))
        rows.append(
            {"kl": float(level), "error": error, "bounds": values, "surrogate_limit": limit, **_kept(given)}
        )
    report = calculate(horizon=horizon, kl_max=1e-4)
    thresholds = [
        {
            "id": e["id"],
            "informative_below": e["informative_below"].get("kl_max"),
            "certifies_below": e["certifies_below"].get("kl_max"),
        }
        for e in report["bounds"]
        if e["target"] == "surrogate_error"
    ]
    return {"horizon": horizon, "rows": rows, "thresholds": thresholds}


def thresholds_over_horizon(horizons: Iterable[int] = HORIZONS) -> dict[str, Any]:
    """The token divergence each error bound tolerates, over the horizon, with nothing else known.

    For token TV and token KL: ``informative`` is where the bound stops being vacuous for rewards in [0, 1],
    ``certifies`` where it falls below every possible surrogate value, so that some improvement can be
    certified.
    """
    from opdtheory.calculator import calculate

    rows = []
    for horizon in horizons:
        for name in ("tv_max", "kl_max"):
            given: dict[str, Any] = {name: 1e-6}
            report = calculate(horizon=horizon, **given)
            for entry in report["bounds"]:
                if entry["target"] == "surrogate_error" and name in entry["certifies_below"]:
                    row = {"horizon": horizon, "divergence": name, "id": entry["id"]}
                    row |= {
                        "informative": entry["informative_below"][name],
                        "certifies": entry["certifies_below"][name],
                    }
                    rows.append(row)
    return {"rows": rows}
