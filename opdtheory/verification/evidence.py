"""Evidence: what has been established about a claim, by which means."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Grade = Literal[
    "symbolic", "balls", "exhaustive", "computed", "paper", "lemma", "limit", "identity-test", "search", "certificate", "check", "error"
]

PROOF_GRADES = frozenset({"symbolic", "balls", "computed"})
"""What proves a claim alone.  A grid is checked to the last instance, but it is not the whole space."""


@dataclass(frozen=True)
class Evidence:
    """One finding.  ``ok`` says whether it supports the claim; ``detail`` states scope and numbers in one line."""

    grade: Grade
    ok: bool
    detail: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "ok", bool(self.ok))  # comparisons of arrays give numpy's own booleans

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
