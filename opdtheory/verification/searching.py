"""The search: attack a claim size by size, confirm what looks like a violation, keep the best instance otherwise."""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from opdtheory import checker
from opdtheory.spaces import Size
from opdtheory.verification import blocks as bl
from opdtheory.verification.ascent import EXCESS, Budget, Findings, attack, evaluate, threshold
from opdtheory.verification.certificate import build
from opdtheory.verification.claim import Claim
from opdtheory.verification.confirm import DENOMINATORS, counterexample
from opdtheory.verification.expression import NotRecordable
from opdtheory.verification.failures import blaming
from opdtheory.verification.lifting import lifts
from opdtheory.verification.shrinking import shrink

BUDGETS: dict[str, Budget] = {
    "quick": Budget(lanes=96, samples=1024, rounds=60),
    "default": Budget(lanes=192, samples=2048, rounds=240),
    "thorough": Budget(lanes=384, samples=8192, rounds=400),
}
VIOLATED = "violated"
"""How the note begins of a result whose violation was confirmed exactly but cannot be stated in a certificate."""
_WORK, _WIDE_WORK, _WIDE_WORK_SETTLED = 8e6, 3e6, 6e5
"""Free numbers drawn or moved in the search of one size: at the declared sizes, at each size of the wide sweep, and there
once a smaller size has attained the bound (what is carried over attains it again) or where an equality would fail anywhere."""
_ATTAINED = 0.999
_KEPT = 12
"""Best lanes of a size that are carried to the next larger ones."""
_READABLE, _SHRUNK = 3000, 400
"""Free numbers of the largest instance worth writing down, and of the largest whose fractions are simplified one by one."""
_UNCONFIRMED = 1e-4
"""A float excess beyond this is no rounding: if it cannot be confirmed exactly, the entry stays open."""


@dataclass
class SearchResult:
    """Outcome of an attack over the sizes of a claim's space."""

    claim: Claim
    refuted: bool
    best_score: float
    size: Size | None
    values: bl.Values | None
    certificate: dict[str, Any] | None
    instances: int
    ascents: int
    seconds: float
    seed: int
    note: str = ""
    reached: list[tuple[dict[str, Any], float]] = field(default_factory=list)
    """Best score of every size of a wide sweep; empty for a search over the declared sizes alone."""
    witness_size: Size | None = None
    """Size of ``values``: where a claim is refuted, or the smallest at which (nearly) the best score was reached."""

    @property
    def best_ratio(self) -> float | None:
        """Largest lhs/(scale·rhs) seen, for inequalities 0 ≤ lhs ≤ rhs; None otherwise."""
        if not self.claim.has_ratio or not np.isfinite(self.best_score):
            return None
        return self.best_score

    @property
    def instance(self) -> dict[str, Any] | None:
        """The best instance as fraction strings: the counterexample, or the tightness witness."""
        if self.values is None or self.claim.space is None:
            return None
        return self.claim.space.serialise(self.claim.space.build(self.values, **(self.witness_size or {})))

    def to_dict(self, certificate_path: str | None = None) -> dict[str, Any]:
        return {
            "id": self.claim.id, "scale": str(self.claim.scale), "refuted": self.refuted,
            "best_ratio": finite(self.best_ratio), "instances": self.instances, "seed": self.seed,
            "seconds": round(self.seconds, 3), "certificate": certificate_path,
        }  # fmt: skip


def finite(x: float | None) -> float | str | None:
    """JSON has no infinities: they become the strings the results schema names."""
    if x is None or np.isfinite(x):
        return x
    return "inf" if x > 0 else "-inf"


def generator(claim: Claim, seed: int) -> np.random.Generator:
    """A claim's own stream: independent of which other claims run, and in what order."""
    return np.random.default_rng([seed, zlib.crc32(claim.id.encode())])


@blaming
def search(
    claim: Claim,
    seconds: float | None = None,
    seed: int = 0,
    budget: Budget | None = None,
    sizes: tuple[Size, ...] | None = None,
    wide: bool = False,
) -> SearchResult:
    """Try to refute a claim; report the counterexample (with certificate) or the best instance found.

    Args:
        seconds: keep attacking with fresh random starts until this much time has passed (gives up reproducibility);
            None for exactly one pass of ``budget``.
        seed: the only source of randomness.
        sizes: sizes to try, smallest first; the space's own by default.
        wide: go on to every size of the space's wide sweep, each started from the best of the next smaller ones.

    Raises:
        ValueError: if the claim has no sides to attack.
        SidesError: if the sides raise, return NaN or the wrong shape.
    """
    if claim.space is None:
        raise ValueError(f"claim {claim.id} is {claim.form}: there is nothing to search")
    begin = time.perf_counter()
    budget = budget or BUDGETS["default"]
    equality = claim.relation in {"==", "identity"}
    if equality:
        budget = replace(budget, rounds=budget.rounds // 4)  # a false equality fails almost everywhere
    rng = generator(claim, seed)
    found: list[Findings] = []
    instances = ascents = 0
    note = ""
    declared = sizes or claim.space.sizes
    plan = [(size, False) for size in declared] + [(size, True) for size in claim.space.wide() if wide]
    while True:
        for size, beyond in plan:
            numbers = max(sum(map(bl.size_of, claim.space.blocks(**size).values())), _table_entries(size))
            effort, offered = budget, None
            if wide:
                settled = equality or (claim.has_ratio and max(f.best for f in found) > _ATTAINED) if beyond else False
                effort = budget.within(numbers, _WIDE_WORK_SETTLED if settled else _WIDE_WORK if beyond else _WORK)
                offered = _carried(claim, found, size)
            latest = attack(claim, size, effort, rng, offered=offered)
            instances += latest.instances
            ascents += latest.ascents
            if latest.best > threshold(claim) + EXCESS:
                values = counterexample(claim, latest)
                if values is not None:
                    try:
                        certificate = build(claim, size, values)
                    except (NotRecordable, checker.Refused) as problem:
                        note = f"{VIOLATED}, but not certifiable: {problem}"
                    else:
                        spent = time.perf_counter() - begin
                        return SearchResult(
                            claim, True, latest.best, size, values, certificate, instances, ascents, spent, seed, witness_size=size
                        )
                elif latest.best > threshold(claim) + _UNCONFIRMED:
                    note = f"float violation of {latest.best - threshold(claim):.3g} not confirmed exactly at {dict(size)}"
            found.append(latest.settled(threshold(claim), _KEPT if wide else 1))
            if seconds is not None and time.perf_counter() - begin > seconds:
                break
        if seconds is None or time.perf_counter() - begin > seconds:
            break
    best = max(found, key=lambda f: f.best)
    shown, values = witness(claim, found)
    reached = [(dict(f.size), f.best) for f in found] if wide else []
    spent = time.perf_counter() - begin
    return SearchResult(
        claim, False, best.best, best.size, values, None, instances, ascents, spent, seed, note, reached, shown
    )


def _table_entries(size: Size) -> int:
    """Probabilities in the tables of two policies: what an evaluation costs where few free numbers fill a large tree."""
    if "horizon" not in size:
        return 0
    branching = size["vocab"] - (size["eos"] is not None)
    return 2 * size["vocab"] * size["prompts"] * sum(branching**t for t in range(size["horizon"]))


def _carried(claim: Claim, found: list[Findings], size: Size) -> np.ndarray | None:
    """The best instances of the sizes with one token or one step less, as instances of this size."""
    assert claim.space is not None
    starts = []
    for earlier in found:
        grown = {k for k in size if size[k] != earlier.size.get(k)} - {"eos"}
        ends = (earlier.size.get("eos") is None) == (size.get("eos") is None)
        if ends and any(grown == {k} and size[k] == earlier.size[k] + 1 for k in ("vocab", "horizon")):
            starts.append(lifts(claim.space, earlier.theta, earlier.size, size))
    starts = [s for s in starts if len(s)]
    return np.concatenate(starts) if starts else None


def witness(claim: Claim, found: list[Findings]) -> tuple[Size | None, bl.Values | None]:
    """The best non-violating instance in readable fractions, within half a percent of its score, and its size.

    Of several sizes that reach the same within a thousandth, the first: a small instance says it as well as a large one.
    """
    assert claim.space is not None
    numbers = [sum(map(bl.size_of, claim.space.blocks(**f.size).values())) for f in found]
    readable = [(f, n) for f, n in zip(found, numbers, strict=True) if n <= _READABLE and len(f.score)]
    best = max((f.best for f, _ in readable), default=-np.inf)
    if claim.relation in {"==", "identity"} or not np.isfinite(best) or best < -1e5:
        return None, None
    chosen, free = next((f, n) for f, n in readable if f.best >= best - 1e-3 * max(abs(best), 1e-6))
    blocks = claim.space.blocks(**chosen.size)
    floats = {name: v[0] for name, v in bl.decode(blocks, chosen.theta[:1]).items()}
    accept = chosen.best - 0.005 * max(abs(chosen.best), 1e-6)
    for denominator in DENOMINATORS:
        values = bl.rationalise(blocks, floats, denominator)
        stacked = {name: v[None] for name, v in bl.to_float(values).items()}
        score = evaluate(claim, chosen.size, stacked, 1)[0]
        if accept < score <= threshold(claim) + EXCESS:
            return chosen.size, shrink(claim, chosen.size, values, accept) if free <= _SHRUNK else values
    return None, None
