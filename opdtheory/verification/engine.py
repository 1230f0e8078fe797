"""Search and verify: the two things one does with a claim."""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from opdtheory import checker
from opdtheory.spaces import Size
from opdtheory.verification import blocks as bl
from opdtheory.verification.ascent import EXCESS, Budget, Findings, SidesError, attack, scores, threshold
from opdtheory.verification.certificate import build, file_name, load, states
from opdtheory.verification.claim import Claim
from opdtheory.verification.confirm import DENOMINATORS, counterexample, shrink
from opdtheory.verification.evidence import Evidence
from opdtheory.verification.expression import NotRecordable
from opdtheory.verification.status import Status, as_printed, disagreement, own_status

Effort = Literal["quick", "default", "thorough"]
ROOT = Path(__file__).resolve().parents[2]
"""The checkout, when the package runs from one: documentation and committed certificates live there."""

BUDGETS: dict[str, Budget] = {
    "quick": Budget(lanes=96, samples=1024, rounds=60),
    "default": Budget(lanes=192, samples=2048, rounds=240),
    "thorough": Budget(lanes=384, samples=16384, rounds=600),
}
_WIDE = ((4, 2), (2, 4), (4, 3), (3, 4), (2, 5), (2, 6), (4, 4))
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
        return self.claim.space.serialise(self.claim.space.build(self.values, **(self.size or {})))

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


def search(
    claim: Claim,
    seconds: float | None = None,
    seed: int = 0,
    budget: Budget | None = None,
    sizes: tuple[Size, ...] | None = None,
) -> SearchResult:
    """Try to refute a claim; report the counterexample (with certificate) or the best instance found.

    Args:
        seconds: keep attacking with fresh random starts until this much time has passed (gives up reproducibility);
            None for exactly one pass of ``budget``.
        seed: the only source of randomness.
        sizes: sizes to try, smallest first; the space's own by default.

    Raises:
        ValueError: if the claim has no sides to attack.
        SidesError: if the sides raise, return NaN or the wrong shape.
    """
    if claim.space is None:
        raise ValueError(f"claim {claim.id} is {claim.form}: there is nothing to search")
    begin = time.perf_counter()
    budget = budget or BUDGETS["default"]
    if claim.relation in {"==", "identity"}:
        budget = replace(budget, rounds=budget.rounds // 4)  # a false equality fails almost everywhere
    rng = generator(claim, seed)
    best: Findings | None = None
    instances = ascents = 0
    note = ""
    while True:
        for size in sizes or claim.space.sizes:
            found = attack(claim, size, budget, rng)
            instances += found.instances
            ascents += found.ascents
            if best is None or found.best > best.best:
                best = found
            if found.best > threshold(claim) + EXCESS:
                values = counterexample(claim, found)
                if values is not None:
                    try:
                        certificate = build(claim, size, values)
                    except (NotRecordable, checker.Refused) as problem:
                        note = f"violated, but not certifiable: {problem}"
                    else:
                        spent = time.perf_counter() - begin
                        return SearchResult(
                            claim, True, found.best, size, values, certificate, instances, ascents, spent, seed
                        )
                elif found.best > threshold(claim) + _UNCONFIRMED:
                    note = f"float violation of {found.best - threshold(claim):.3g} not confirmed exactly at {dict(size)}"
            if seconds is not None and time.perf_counter() - begin > seconds:
                break
        if seconds is None or time.perf_counter() - begin > seconds:
            break
    assert best is not None
    values = witness(claim, best)
    return SearchResult(
        claim, False, best.best, best.size, values, None, instances, ascents, time.perf_counter() - begin, seed, note
    )


def witness(claim: Claim, found: Findings) -> bl.Values | None:
    """The best non-violating instance in readable fractions, within half a percent of its score."""
    assert claim.space is not None
    if not len(found.score) or not np.isfinite(found.best) or found.best < -1e5:
        return None
    blocks = claim.space.blocks(**found.size)
    floats = {name: v[0] for name, v in bl.decode(blocks, found.theta[:1]).items()}
    accept = found.best - 0.005 * max(abs(found.best), 1e-6)
    for denominator in DENOMINATORS:
        values = bl.rationalise(blocks, floats, denominator)
        stacked = {name: v[None] for name, v in bl.to_float(values).items()}
        score = scores(claim, claim.space.build(stacked, **found.size), 1)[0][0]
        if accept < score <= threshold(claim) + EXCESS:
            return shrink(claim, found.size, values, accept)
    return None


@dataclass
class Verdict:
    """Everything one run established about one claim."""

    claim: Claim
    evidence: list[Evidence] = field(default_factory=list)
    found: SearchResult | None = None
    unassumed_refuted: bool | None = None
    certificates: dict[str, dict[str, Any]] = field(default_factory=dict)
    mutants: list[dict[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    status: Status = "undecided"
    seconds: float = 0.0

    @property
    def as_printed(self) -> str:
        return as_printed(self.claim, self.status, self.unassumed_refuted)

    def settle(self, status: Status) -> None:
        """Fix the final status (dependencies included) and note any disagreement."""
        self.status = status
        problem = disagreement(self.claim, status, self.unassumed_refuted)
        if problem and problem not in self.problems:
            self.problems.append(problem)

    def to_dict(self, certificate_dir: str = "certificates") -> dict[str, Any]:
        """The claim's row of ``results.json``."""
        c, found = self.claim, self.found
        vacuous: tuple[bool | None, str] = c.vacuous_as_quoted() if c.vacuous_as_quoted else (None, "")
        ratio = found.best_ratio if found is not None and self.status != "refuted" else None
        tight = c.sharpness if c.sharpness != "unknown" or ratio is None else ("tight" if ratio > 0.99 else "loose")
        return {
            "id": c.id, "source": c.source.key if c.source else "user", "locator": c.locator, "title": c.title,
            "statement": c.statement, "latex": c.latex, "hypotheses": list(c.hypotheses), "nature": c.nature,
            "as_printed": self.as_printed, "status": self.status, "assumption": c.assumption or None,
            "usefulness": {"vacuous_as_quoted": vacuous[0], "detail": vacuous[1], "useful_when": c.useful_when},
            "sharpness": tight, "best_ratio": finite(ratio),
            "smallest_constant": finite(ratio) if c.has_ratio and c.scale == 1 else None,
            "instances": found.instances if found else 0, "ascents": found.ascents if found else 0,
            "evidence": [e.to_dict() for e in self.evidence],
            "certificates": [f"{certificate_dir}/{file_name(cid)}" for cid in self.certificates],
            "witness": found.instance if found and not found.refuted else None,
            "corrected_by": list(c.corrected_by), "depends_on": list(c.depends_on), "proof": c.proof,
            "sketch": c.sketch, "note": c.note, "mutants": self.mutants, "problems": self.problems,
            "seconds": round(self.seconds, 3),
        }  # fmt: skip


def verify(claim: Claim, effort: Effort = "default", seed: int = 0, replay: bool = True) -> Verdict:
    """Collect the evidence for one claim and compute its status (dependencies are resolved by the runner).

    Args:
        effort: "quick" replays the committed certificate if there is one and searches briefly; "default" searches
            afresh; "thorough" adds wide sizes and every mutant.
        replay: look for committed certificates at all.
    """
    begin = time.perf_counter()
    verdict = Verdict(claim)
    try:
        _gather(verdict, effort, seed, replay)
    except SidesError as problem:
        verdict.evidence.append(Evidence("error", False, problem.problem))
        verdict.problems.append(problem.problem)
    status = own_status(claim, verdict.evidence)
    if status == "refuted":  # a certificate decides alone, but what the entry says beside it must be true as well
        verdict.problems += [f"{e.grade} failed: {e.detail}" for e in verdict.evidence if not e.ok]
    verdict.settle(status)
    verdict.seconds = time.perf_counter() - begin
    return verdict


def _gather(verdict: Verdict, effort: Effort, seed: int, replay: bool) -> None:
    claim = verdict.claim
    for proof in (*claim.proofs, *claim.lemmas, *claim.checks):
        verdict.evidence.append(_run_proof(proof))
    if claim.proof is not None:
        verdict.evidence.append(_written_proof(claim.proof))
    if claim.space is not None:
        certificate = _committed(claim) if replay and effort == "quick" else None
        if certificate is not None:
            verdict.certificates[claim.id] = certificate
            verdict.evidence.append(Evidence("certificate", True, f"replayed: {certificate['sentence']}"))
        else:
            found = search(claim, seed=seed, budget=BUDGETS[effort], sizes=_sizes(claim, effort))
            verdict.found = found
            verdict.evidence.append(_search_evidence(verdict, found))
        _check_tightness(verdict, effort)
    if claim.unassumed is not None:
        _drop_assumption(verdict, effort, seed, replay)
    if effort == "thorough":
        _run_mutants(verdict, seed)


def _run_proof(proof: Any) -> Evidence:
    try:
        return proof()
    except Exception as problem:
        name = getattr(proof, "__name__", "proof")
        return Evidence("error", False, f"{name} raised {type(problem).__name__}: {problem}")


def _written_proof(reference: str) -> Evidence:
    """A written proof must exist where the claim says it does; without the documentation at hand this cannot be checked."""
    path, _, anchor = reference.partition("#")
    file = ROOT / path
    if not file.parent.exists():
        return Evidence("paper", True, f"{reference} (documentation not installed here)")
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    present = f'id="{anchor}"' in text if anchor else bool(text)
    return Evidence("paper", present, reference if present else f"{reference} does not exist")


def _sizes(claim: Claim, effort: Effort) -> tuple[Size, ...]:
    assert claim.space is not None
    sizes = claim.space.sizes
    if effort == "quick":
        return sizes[:2]
    if effort == "thorough" and sizes and "horizon" in sizes[0]:
        known = {(s["vocab"], s["horizon"]) for s in sizes}
        base = sizes[-1]
        eos = base["eos"] is not None
        wide = [{**base, "vocab": v, "horizon": t, "eos": v - 1 if eos else None} for v, t in _WIDE if (v, t) not in known]
        fixed_horizon = len({s["horizon"] for s in sizes}) == 1
        return sizes if fixed_horizon else (*sizes, *wide)
    return sizes


def _search_evidence(verdict: Verdict, found: SearchResult) -> Evidence:
    claim = verdict.claim
    effort = f"{found.instances} instances, {found.ascents} ascents"
    if found.refuted:
        assert found.certificate is not None
        verdict.certificates[claim.id] = found.certificate
        return Evidence("certificate", True, f"{found.certificate['sentence']} ({effort})")
    if found.note:
        return Evidence("search", False, f"{found.note} ({effort})")
    where = f" at {_size_text(found.size)}" if found.size else ""
    if claim.has_ratio:
        return Evidence("search", True, f"{effort}; largest lhs/rhs {found.best_score:.6g}{where}")
    if claim.relation in {"==", "identity"}:
        return Evidence("search", True, f"{effort}; largest relative discrepancy {found.best_score + EXCESS:.1e}")
    if found.best_score < -1e5:
        return Evidence("search", False, f"{effort}; no instance met the conditions of the claim")
    return Evidence("search", True, f"{effort}; smallest margin {-found.best_score:.6g}{where}")


def _size_text(size: Size) -> str:
    return ", ".join(f"{k}={v}" for k, v in size.items() if v is not None)


def _check_tightness(verdict: Verdict, effort: Effort) -> None:
    claim, found = verdict.claim, verdict.found
    if effort == "quick" or found is None or found.refuted or claim.sharpness != "tight" or not claim.has_ratio:
        return
    if found.best_score < 0.99:
        verdict.problems.append(f"declared tight, but the largest ratio found is {found.best_score:.4g}")


def _drop_assumption(verdict: Verdict, effort: Effort, seed: int, replay: bool) -> None:
    claim = verdict.claim
    bare = claim.variant("unassumed", claim.unassumed or {})
    certificate = _committed(bare) if replay and effort == "quick" else None
    if certificate is None:
        result = search(bare, seed=seed, budget=BUDGETS[effort])
        certificate = result.certificate
    verdict.unassumed_refuted = certificate is not None
    if certificate is not None:
        verdict.certificates[bare.id] = certificate
        verdict.evidence.append(Evidence("check", True, f"without “{claim.assumption}”: {certificate['sentence']}"))


def _committed(claim: Claim) -> dict[str, Any] | None:
    """The committed certificate of a claim, if present, about this very statement, and confirmed just now."""
    path = ROOT / "certificates" / file_name(claim.id)
    if not path.exists():
        return None
    certificate = load(path) if checker.check(path).confirmed else None
    return certificate if certificate is not None and states(claim, certificate) else None


def standard_mutants(claim: Claim, best_ratio: float | None) -> list[tuple[Claim, str, str]]:
    """Constants cut by 1 % to 50 %: each must die exactly if the reported tightness exceeds it."""
    out = []
    if claim.has_ratio and best_ratio is not None:
        for percent in (1, 10, 25, 50):
            factor = Fraction(100 - percent, 100)
            # a witness at ratio r kills the claim scaled by any factor below r
            expected = "dies" if best_ratio > float(factor) * (1 + 1e-3) else "survives"
            out.append((claim.scaled(factor), expected, f"constant cut by {percent} %"))
    return out


def _run_mutants(verdict: Verdict, seed: int) -> None:
    claim = verdict.claim
    if claim.space is None or (verdict.found is not None and verdict.found.refuted):
        return
    ratio = verdict.found.best_ratio if verdict.found else None
    trials = [(m, e, n, "") for m, e, n in standard_mutants(claim, ratio)]
    trials += [(claim.variant(m.name, m.changes), m.expected, m.name, m.why) for m in claim.mutants]
    start = verdict.found.values if verdict.found else None
    for mutant, expected, name, why in trials:
        offered = replace(mutant, structured=_also(mutant, verdict, start)) if mutant.space is claim.space else mutant
        budget = BUDGETS["default"]
        sizes = (verdict.found.size,) if verdict.found and verdict.found.size is not None and mutant.space is claim.space else None
        result = search(offered, seed=seed, budget=budget, sizes=sizes)
        if not result.refuted and sizes is not None and expected == "dies":
            result = search(offered, seed=seed, budget=budget)
        got = "dies" if result.refuted else "survives"
        verdict.mutants.append({"name": name, "expected": expected, "got": got, "why": why})
        if got != expected:
            verdict.problems.append(f"mutant “{name}” was expected to {expected[:-1]} but {got}")


def _also(mutant: Claim, verdict: Verdict, values: bl.Values | None) -> Any:
    """Offer the parent's witness (at its own size) to the attack on a mutant, beside the claim's own candidates."""

    def offered(**size: Any) -> list[bl.Values]:
        own = list(mutant.structured(**size)) if mutant.structured is not None else []
        same = verdict.found is not None and values is not None and dict(verdict.found.size or {}) == size
        return [*own, values] if same and values is not None else own

    return offered
