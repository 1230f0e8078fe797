"""Verify: collect the evidence for a claim and give it its verdict."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from opdtheory import checker
from opdtheory.spaces import Size
from opdtheory.verification import mutants
from opdtheory.verification.ascent import EXCESS, SidesError
from opdtheory.verification.certificate import file_name, load, states
from opdtheory.verification.claim import Claim
from opdtheory.verification.evidence import Evidence
from opdtheory.verification.exhaustive import grid
from opdtheory.verification.searching import BUDGETS, SearchResult, finite, search
from opdtheory.verification.status import Status, as_printed, disagreement, own_status

Effort = Literal["quick", "default", "thorough"]

_GRID: Mapping[Effort, int] = {"quick": 0, "default": 1000, "thorough": 20000}
"""Instances of a grid that is checked to the last one."""
ROOT = Path(__file__).resolve().parents[2]
"""The checkout, when the package runs from one: documentation and committed certificates live there."""


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
            "reached": [size | {"score": finite(score)} for size, score in found.reached] if found else [],
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
    except Exception as problem:  # whatever is wrong with this claim must not stop the others
        text = _said(problem, claim)
        verdict.evidence.append(Evidence("error", False, text))
        verdict.problems.append(text)
    status = own_status(claim, verdict.evidence)
    # a certificate decides alone, but what the entry says beside it must be true as well
    verdict.problems += [f"{e.grade} failed: {e.detail}" for e in verdict.evidence if not e.ok and e.detail not in verdict.problems]
    verdict.settle(status)
    verdict.seconds = time.perf_counter() - begin
    return verdict


def _said(problem: Exception, claim: Claim) -> str:
    """What an exception says, with the id of the variant it is about if that is not the claim itself."""
    if not isinstance(problem, SidesError):
        return f"{type(problem).__name__}: {problem}"
    return problem.problem if problem.claim_id == claim.id else str(problem)


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
            sizes = claim.space.sizes[:2] if effort == "quick" else None
            found = search(claim, seed=seed, budget=BUDGETS[effort], sizes=sizes, wide=effort == "thorough")
            verdict.found = found
            verdict.evidence.append(_search_evidence(verdict, found))
            if not found.refuted and verdict.evidence[-1].ok:
                verdict.evidence += _grids(claim, _GRID[effort])
        _check_tightness(verdict, effort)
    if claim.unassumed is not None:
        _drop_assumption(verdict, effort, seed, replay)
    if effort == "thorough" and claim.space is not None and not (verdict.found is not None and verdict.found.refuted):
        verdict.mutants = mutants.trials(claim, verdict.found, seed)
        verdict.problems += [
            f"mutant “{m['name']}” was expected to {m['expected'][:-1]} but {m['got']}" for m in verdict.mutants if m["got"] != m["expected"]
        ]


def _grids(claim: Claim, at_most: int) -> list[Evidence]:
    """Grids at the two smallest sizes; coarser ones where every instance is decided exactly."""
    assert claim.space is not None
    exact_everywhere = claim.given is not None or claim.relation in {"==", "identity"}
    found = [grid(claim, size, at_most=at_most // (10 if exact_everywhere else 1)) for size in claim.space.sizes[:2]]
    return [e for e in found if e is not None]


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
    """What is declared best possible must be reached, or approached by a sequence of instances that the entry brings."""
    claim, found = verdict.claim, verdict.found
    if effort == "quick" or found is None or found.refuted or not claim.has_ratio:
        return
    approached = claim.sharpness == "asymptotic" and any(e.grade == "limit" and e.ok for e in verdict.evidence)
    if claim.sharpness in {"tight", "asymptotic"} and found.best_score < 0.99 and not approached:
        verdict.problems.append(f"declared {claim.sharpness}, but the largest ratio found is {found.best_score:.4g}")


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
