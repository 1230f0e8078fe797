"""Mutants: near misses of a claim, each with the fate expected of it.  A check that no near miss can fail is no check."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

from opdtheory.verification import blocks as bl
from opdtheory.verification.ascent import evaluate
from opdtheory.verification.claim import Claim, Sides
from opdtheory.verification.confirm import violates
from opdtheory.verification.searching import BUDGETS, VIOLATED, SearchResult, search

CUTS = (1, 10, 25, 50)
"""Percentages by which the constant of an inequality is cut."""
_ROOM = 1e-3
"""What a signed inequality is asked to leave between its sides."""

Trial = tuple[Claim, str, str, str]


def trials(claim: Claim, found: SearchResult | None, seed: int) -> list[dict[str, str]]:
    """Attack every mutant of a claim that was not refuted, generic ones and its own, and say what became of each.

    Args:
        found: what the search for a violation of the claim itself found; its witness is offered to every mutant that
            is about the same instances, so that most of them die without a search of their own.
    """
    assert claim.space is not None
    out = []
    for mutant, expected, name, why in (*_generic(claim, found), *_own(claim)):
        got = "dies" if _dies(claim, mutant, expected, found, seed) else "survives"
        out.append({"name": name, "expected": expected, "got": got, "why": why})
    return out


def _own(claim: Claim) -> Iterator[Trial]:
    for m in claim.mutants:
        yield claim.variant(m.name, m.changes), m.expected, m.name, m.why


def _generic(claim: Claim, found: SearchResult | None) -> Iterator[Trial]:
    """Slips that every claim of a form must notice."""
    if claim.sides is None:
        return
    if claim.has_ratio:
        best = _witnessed(claim, found)
        if best is None:
            return
        for percent in CUTS:
            factor = Fraction(100 - percent, 100)
            tight = claim.sharpness == "tight"
            expected = "dies" if tight or best > factor else "survives"
            why = "declared best possible" if tight else f"an instance has the ratio {best:.4g}"
            yield claim.scaled(factor), expected, f"constant cut by {percent} %", why
        if 1e-3 < best < 1:
            below = Fraction(int(990 * best), 1000)
            yield claim.scaled(below), "dies", f"constant cut to {float(below):g}", f"an instance has the ratio {best:.4g}"
    elif claim.relation in {"==", "identity"}:
        for thousandths in (1, -1):
            shifted = _with(claim, f"shifted {thousandths}", _apart(claim.sides, thousandths))
            yield shifted, "dies", f"sides {'+' if thousandths > 0 else '−'}1/1000 apart", "an equality"
    elif found is not None and found.best_score > -1e5:
        expected = "dies" if -found.best_score < 0.9 * _ROOM else "survives"
        why = f"the smallest margin found is {-found.best_score:.4g}"
        sign = 1 if claim.relation in {"<=", "<"} else -1
        yield _with(claim, "room", _apart(claim.sides, sign)), expected, "a margin of 1/1000 asked for", why


def _with(claim: Claim, name: str, sides: Sides) -> Claim:
    return claim.variant(name, {"sides": sides})


def _witnessed(claim: Claim, found: SearchResult | None) -> float | None:
    """The ratio of the instance that was written down: what is known to be reached, in fractions."""
    if found is None or found.values is None or found.witness_size is None:
        return None
    stacked = {name: v[None] for name, v in bl.to_float(found.values).items()}
    return float(evaluate(claim, found.witness_size, stacked, 1)[0])


def _apart(sides: Sides, thousandths: int) -> Sides:
    """The same statement about lhs + ``thousandths``/1000."""

    def apart(x: Any) -> tuple[Any, Any]:
        lhs, rhs = sides(x)
        return 1000 * lhs + thousandths, 1000 * rhs

    return apart


def _dies(claim: Claim, mutant: Claim, expected: str, found: SearchResult | None, seed: int) -> bool:
    same = mutant.space is claim.space and found is not None and found.values is not None
    if same:
        assert found is not None and found.values is not None and found.witness_size is not None
        if violates(mutant, found.witness_size, found.values):
            return True
    if mutant.sides is claim.sides and mutant.scale != claim.scale and expected == "survives":
        return False  # the same search with every score divided by the factor: it would end where the claim's own did
    if same and expected == "dies":
        assert found is not None
        offered = replace(mutant, structured=_also(mutant, found))
        if _killed(search(offered, seed=seed, sizes=(found.witness_size,))):  # type: ignore[arg-type]
            return True
    return _killed(search(mutant, seed=seed, budget=BUDGETS["default"]))


def _killed(result: SearchResult) -> bool:
    """Refuted, or violated in exact arithmetic by an instance that no certificate can state: a mutant needs none."""
    return result.refuted or result.note.startswith(VIOLATED)


def _also(mutant: Claim, found: SearchResult) -> Any:
    """Offer the claim's witness (at its own size) to the attack on a mutant, beside the claim's own candidates."""

    def offered(**size: Any) -> list[bl.Values]:
        own = list(mutant.structured(**size)) if mutant.structured is not None else []
        return [*own, found.values] if found.values is not None and dict(found.witness_size or {}) == size else own

    return offered
