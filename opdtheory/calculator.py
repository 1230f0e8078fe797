"""From the numbers one has to every bound that follows: sorted, with the vacuous ones marked.

``calculate`` checks the numbers against each other, fills in what follows from them (a token TV from a token
KL, a sequence KL from a token KL, …), evaluates every registered bound, says from which divergence on
each stops being vacuous, and which further quantity would help.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from opdtheory.bounds.registry import LOWER, REGISTRY, TARGETS, UNIT_INTERVAL, Bound, largest_below
from opdtheory.quantities import QUANTITIES, RULES, check_consistency, check_domain, derive

SCHEMA_VERSION = "1.0"
_FROM_RANGE = frozenset({"reward_bound", "advantage_bound"})
"""Quantities that follow from the reward range and are not asked for."""


def _value(bound: Bound, values: Mapping[str, Any], span: float) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        value = float(bound.evaluate(values, span))
    if not math.isnan(value):
        return value
    # 0·∞: a reward without variance has no error whatever multiplies it; otherwise nothing is known
    return 0.0 if values.get("reward_sd") == 0 and "reward_sd" in bound.needs else math.inf


def _roots(bound: Bound, given: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    """The given divergences on which the bound's value depends, directly or through derived quantities."""
    wanted, seen = list(bound.needs), set()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        if name not in given:
            wanted += [
                s
                for r in RULES
                if r.quantity == name and not r.only_checks and all(x in values for x in r.sources)
                for s in r.sources
            ]
    return [name for name in given if name in seen and name in QUANTITIES and QUANTITIES[name].divergence]


def _largest_divergences(
    bound: Bound,
    given: Mapping[str, Any],
    values: Mapping[str, Any],
    span: float,
    limit: Callable[[Mapping[str, Any]], float],
    also: tuple[str, ...] = (),
) -> dict[str, float]:
    """For each given divergence: below which value the bound is under ``limit``, everything else as given.

    ``also`` names the quantities that the limit reads.
    """
    out, wanted = {}, (*bound.needs, *also, "expected_length")
    for name in _roots(bound, given, values):

        def pair(x: float, name: str = name) -> tuple[float, float]:
            moved, _ = derive({**given, name: x}, wanted)
            return _value(bound, moved, span), float(limit(moved))

        # against a limit that moves too, the bound may cross it more than once
        out[name] = largest_below(pair, 1.0 if name in UNIT_INTERVAL else 1e12, scan=bool(also))
    return out


_SURROGATE_BOUNDS = tuple(b for b in REGISTRY.values() if b.target == "surrogate")
_SURROGATE_NEEDS = tuple(n for b in _SURROGATE_BOUNDS for n in b.needs)


def _surrogate_limit(values: Mapping[str, Any], span: float) -> float:
    """The largest surrogate value L any policy pair with these divergences can have."""
    limits = [b.evaluate(values, span) for b in _SURROGATE_BOUNDS if all(n in values for n in b.needs)]
    return min((float(x) for x in limits), default=math.inf)


def _entry(
    bound: Bound, given: Mapping[str, Any], values: Mapping[str, Any], origin: Mapping[str, str], span: float
) -> dict[str, Any]:
    value = _value(bound, values, span)
    entry: dict[str, Any] = {
        "id": bound.id,
        "name": bound.name,
        "value": value,
        "vacuous": bool(bound.is_vacuous(value, values, span)),
        "needs": list(bound.needs),
        "scaling": bound.scaling,
        "claim": bound.claim,
        "target": bound.target,
        "source": bound.source,
        "sharpness": bound.sharpness,
        "assumptions": list(bound.assumptions),
        "derived": {n: origin[n] for n in (*bound.needs, *bound.optional) if n in origin},
        "informative_below": {},
    }
    if bound.target not in LOWER and math.isfinite(float(bound.trivial(values, span))):
        entry["informative_below"] = _largest_divergences(
            bound, given, values, span, lambda v: bound.trivial(v, span)
        )
    if bound.target == "surrogate_error":
        entry["certifies_below"] = _largest_divergences(
            bound, given, values, span, lambda v: _surrogate_limit(v, span), _SURROGATE_NEEDS
        )
        entry["can_certify_improvement"] = value < _surrogate_limit(values, span)
        if "surrogate" in given:
            entry["improvement_lower"] = given["surrogate"] - value
            entry["improvement_upper"] = given["surrogate"] + value
    return entry


def _beats(bound: Bound, name: str, given: Mapping[str, Any], best: float, span: float) -> float:
    """Below which value of one more quantity the bound would be smaller than ``best``."""

    def pair(x: float) -> tuple[float, float]:
        return _value(bound, derive({**given, name: x}, bound.needs)[0], span), best

    return largest_below(pair, 1.0 if name in UNIT_INTERVAL else 1e12)


def _suggestions(
    given: Mapping[str, Any], values: Mapping[str, Any], computed: list[dict[str, Any]], span: float
) -> list[dict[str, Any]]:
    """For each quantity not given: what it unlocks or sharpens, and where it beats the best.

    First those that can give a smaller error bound, the ones that need to fall least below what is known first.
    """
    errors = [e["value"] for e in computed if e["target"] == "surrogate_error"]
    best = min(errors, default=math.inf)
    have = {e["id"] for e in computed}
    out = []
    for name, spec in QUANTITIES.items():
        if name in given or name in _FROM_RANGE or name == "surrogate":
            continue
        more, _ = derive({**given, name: 0.5 if spec.open_ends else 1})
        unlocks = [
            b.id
            for b in REGISTRY.values()
            if b.target != "step" and b.id not in have and all(n in more for n in b.needs)
        ]
        affected = [
            b
            for b in REGISTRY.values()
            if b.target == "surrogate_error"
            and all(n in more for n in b.needs)
            and name in (*b.needs, *_roots(b, {**given, name: 1}, more))
        ]
        row: dict[str, Any] = {
            "quantity": name,
            "meaning": spec.meaning,
            "unlocks": unlocks,
            "sharpens": [b.id for b in affected if b.id in have],
        }
        if spec.divergence and math.isfinite(best) and best > 0:
            row["beats_best_below"] = (
                max((_beats(b, name, given, best, span) for b in affected), default=0.0) or None
            )
        if name in values:
            row["known_below"] = float(values[name])
        if unlocks or row["sharpens"]:
            out.append(row)
    return sorted(out, key=_effort)


def _effort(row: Mapping[str, Any]) -> float:
    """By which factor a quantity must fall below what is known of it before it helps."""
    edge = row.get("beats_best_below")
    return math.inf if not edge else row.get("known_below", math.inf) / edge if math.isfinite(edge) else 0.0


def _contradictions(
    given: Mapping[str, Any], values: Mapping[str, Any], computed: list[dict[str, Any]], span: float
) -> list[str]:
    """What the inputs imply against each other once they are put into the bounds."""
    found = []
    limit = _surrogate_limit(values, span)
    if abs(given.get("surrogate", 0.0)) > limit * (1 + 1e-9):
        found.append(
            f"surrogate: got {given['surrogate']:g}, expected at most {limit:g} in size, the largest value that any"
            " policy with these divergences can have: it is an estimate with noise, or the divergences are"
            " underestimated"
        )
    ends = _improvement(computed)
    if len(ends) == 2 and ends["lower"]["value"] > ends["upper"]["value"] + 1e-9 * span:
        below, above = (
            ", ".join((*(["surrogate"] if b.target == "surrogate_error" else []), *b.needs))
            for b in (REGISTRY[ends[side]["id"]] for side in ("lower", "upper"))
        )
        found.append(
            f"{below}: {ends['lower']['id']} says J(π) − J(μ) ≥ {ends['lower']['value']:g}, expected at most"
            f" {ends['upper']['value']:g}, which {ends['upper']['id']} concludes from {above}"
        )
    return found


def _improvement(computed: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The best lower and upper bound on J(π) − J(μ) itself, each with the bound it comes from."""
    lower = [(e["value"], e["id"]) for e in computed if e["target"] == "improvement_lower"]
    lower += [(e["improvement_lower"], e["id"]) for e in computed if "improvement_lower" in e]
    lower += [(-e["value"], e["id"]) for e in computed if e["target"] == "improvement"]
    upper = [
        (e["value"], e["id"]) for e in computed if e["target"] in ("improvement", "improvement_upper")
    ] + [(e["improvement_upper"], e["id"]) for e in computed if "improvement_upper" in e]
    ends = {
        "lower": max(lower, key=lambda e: e[0], default=None),
        "upper": min(upper, key=lambda e: e[0], default=None),
    }
    return {side: {"value": end[0], "id": end[1]} for side, end in ends.items() if end is not None}


def calculate(
    *, reward_range: tuple[float, float] = (0.0, 1.0), validate: bool = True, **quantities: Any
) -> dict[str, Any]:
    """Evaluate every bound that the given quantities allow.

    Args:
        reward_range: smallest and largest possible reward.
        validate: refuse quantities that contradict each other (turn off for noisy estimates).
        quantities: any of :data:`QUANTITIES`; None means not given.

    Returns:
        ``inputs``, ``derived``, ``bounds`` sorted by value, ``not_computable`` with what each still needs,
        ``suggestions`` (which quantity unlocks or sharpens which bound, the most helpful first), the ``best``
        bound per target, and the best two-sided statement on the ``improvement`` itself.

    Raises:
        ValueError: an unknown quantity, a value outside its domain, or values that contradict each other.
            Unvalidated contradictions appear in ``notes``.

    >>> report = calculate(horizon=4096, kl_max=1e-4, kl_seq=0.01)
    >>> report["best"]["surrogate_error"], report["bounds"][0]["vacuous"]
    ('ours.s1', False)
    """
    low, high = (float(x) for x in reward_range)
    if not (math.isfinite(high - low) and low < high):
        raise ValueError(
            f"reward_range: got {reward_range!r}, expected two finite numbers, the smaller first"
        )
    span = high - low
    inputs = {name: check_domain(name, value) for name, value in quantities.items() if value is not None}
    given = {**inputs, "reward_span": span, "reward_size": max(abs(low), abs(high))}
    if "J_behavior" in given:
        if not low < given["J_behavior"] < high:
            raise ValueError(
                f"J_behavior: got {given['J_behavior']:g}, expected a number strictly inside the reward range"
                f" [{low:g}, {high:g}]"
            )
        # improvements do not see a shift of the reward: R − min R ≥ 0 takes the place of R
        given["J_behavior"] -= low
    if validate:
        check_consistency(given)
    values, origin = derive(given)
    computed, missing = [], []
    for bound in REGISTRY.values():
        if bound.target == "step":
            continue
        lacking = [n for n in bound.needs if n not in values]
        lacking += [f"{n} = 0" for n in bound.without if given.get(n)]
        if lacking:
            missing.append({"id": bound.id, "name": bound.name, "needs": lacking})
        else:
            computed.append(_entry(bound, given, values, origin, span))
    computed.sort(key=lambda e: e["value"])
    notes = _contradictions(given, values, computed, span)
    if validate and notes:
        raise ValueError(notes[0])
    best: dict[str, str] = {}
    for entry in reversed(computed) if computed else []:
        if entry["target"] not in LOWER:
            best[entry["target"]] = entry["id"]
    for entry in computed:
        if entry["target"] in LOWER:
            best[entry["target"]] = entry["id"]
    return {
        "schema_version": SCHEMA_VERSION,
        "inputs": {**inputs, "reward_range": [low, high]},
        "derived": {n: {"value": values[n], "because": origin[n]} for n in origin if n in QUANTITIES},
        "bounds": computed,
        "best": best,
        "improvement": _improvement(computed),
        "notes": notes,
        "surrogate_limit": _surrogate_limit(values, span),
        "not_computable": missing,
        "suggestions": _suggestions(given, values, computed, span),
        "targets": {t: TARGETS[t] for t in dict.fromkeys(e["target"] for e in computed)},
    }


def jsonable(value: Any) -> Any:
    """The report with infinities as the strings "inf" and "-inf", ready for strict JSON."""
    if isinstance(value, dict):
        return {k: jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return value
