"""The verdict: status computed from evidence and dependencies, and its agreement with the editorial label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from opdtheory.verification.claim import Claim
from opdtheory.verification.evidence import PROOF_GRADES, Evidence

Status = Literal[
    "proved", "proved-on-paper", "identity-tested", "survived", "refuted", "conditional", "unit-tested", "recorded", "undecided"
]
SUPPORTED = frozenset({"proved", "proved-on-paper", "identity-tested", "survived", "unit-tested", "recorded"})
AsPrinted = Literal[
    "holds", "holds-if", "refuted", "misprint", "definition", "empirical", "question", "not-in-source"
]


def own_status(claim: Claim, evidence: Sequence[Evidence]) -> Status:
    """Status from the claim's own evidence, before its dependencies are looked at."""

    def of(*grades: str) -> list[Evidence]:
        return [e for e in evidence if e.grade in grades]

    if any(e.ok for e in of("certificate")):
        return "refuted"
    # whatever speaks against the claim without amounting to a certificate leaves it open
    if any(not e.ok for e in evidence):
        return "undecided"
    if claim.nature == "empirical":
        return "recorded"
    if of(*PROOF_GRADES):
        return "proved"
    survived = bool(of("search"))
    if of("paper") and survived:
        return "proved-on-paper"
    if of("identity-test"):
        return "identity-tested"
    if survived:
        return "survived"
    if claim.nature == "definition" and of("check"):
        return "unit-tested"
    return "undecided"


def resolve(claims: Mapping[str, Claim], own: Mapping[str, Status]) -> dict[str, Status]:
    """Statuses with dependencies taken into account: what rests on a refuted or undecided entry is conditional.

    Raises:
        ValueError: on a dependency cycle or an unknown id.
    """
    final: dict[str, Status] = {}
    visiting: set[str] = set()

    def visit(claim_id: str) -> Status:
        if claim_id in final:
            return final[claim_id]
        if claim_id in visiting:
            raise ValueError(f"claims depend on each other in a cycle through {claim_id}")
        visiting.add(claim_id)
        status = own[claim_id]
        for needed in claims[claim_id].depends_on:
            if needed not in own:
                continue  # not part of this run; the full run has every id
            if visit(needed) not in SUPPORTED and status in SUPPORTED:
                status = "conditional"
        visiting.discard(claim_id)
        final[claim_id] = status
        return status

    for claim_id in own:
        visit(claim_id)
    return final


def as_printed(claim: Claim, status: Status, unassumed_refuted: bool | None) -> AsPrinted:
    """What becomes of the source's wording: computed from the status, the claim's nature and its stated assumption."""
    if claim.nature == "ours":
        return "not-in-source"
    if claim.nature != "statement":
        return claim.nature
    if status == "refuted":
        return "misprint" if claim.misprint else "refuted"
    return "holds-if" if claim.unassumed is not None and unassumed_refuted else "holds"


def disagreement(claim: Claim, status: Status, unassumed_refuted: bool | None) -> str | None:
    """Why this entry must fail a run, or None: an open status, or an assumption whose absence was not refuted."""
    if status in {"undecided", "conditional"}:
        return f"status {status}"
    if claim.misprint and status != "refuted":
        return "declared a misprint, but the printed form was not refuted"
    if claim.unassumed is not None and not unassumed_refuted:
        return f"said to need the assumption “{claim.assumption}”, but no certificate was found without it"
    if claim.nature == "ours" and status == "refuted":
        return "one of our own results was refuted"
    return None
