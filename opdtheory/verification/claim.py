"""A claim: one reading of one statement, as mathematics that can be attacked."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from opdtheory.spaces import Space
from opdtheory.verification.evidence import Evidence

Relation = Literal["<=", "<", ">=", ">", "==", "identity"]
Nature = Literal["statement", "definition", "empirical", "question", "ours"]
Sharpness = Literal["identity", "tight", "asymptotic", "loose", "unknown"]
Sides = Callable[[Any], tuple[Any, Any]]
Given = Callable[[Any], list[tuple[Any, str, Any]]]
Proof = Callable[[], Evidence]

RELATIONS = ("<=", "<", ">=", ">", "==", "identity")


@dataclass(frozen=True)
class Source:
    """A paper or note whose statements are checked."""

    key: str
    title: str
    citation: str


@dataclass(frozen=True)
class Mutant:
    """A deliberate near miss of a claim: ``changes`` are fields of :class:`Claim` to replace.

    ``expected`` is "dies" (the engine must refute it) or "survives", and ``why`` says which and for what reason.
    """

    name: str
    expected: Literal["dies", "survives"]
    why: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    """One reading of one statement.

    Attributes:
        sides: instance → (lhs, rhs); runs on batched floats, exact rationals and balls, and recorders.
        relation: what is claimed between lhs and rhs.
        signed: an inequality whose sides may be negative; it is attacked through its margin rhs − lhs, has no
            meaningful ratio and refuses scaling.
        given: instance → list of (lhs, relation, rhs) that must hold for the claim to apply (an implication).
        nature: "statement" for what a source asserts; definitions, empirical statements and questions of a source,
            and results of our own, are recorded as such.
        misprint: the printed form is evidently a slip (editorial; say why in ``note``).
        assumption: what a source leaves unstated; ``unassumed`` holds the fields that drop it, and the engine must
            refute that variant.
        proofs: callables that establish the claim itself by machine on a scope they state.
        lemmas: machine checks of the steps of a written proof; with ``proof`` (a path#anchor in docs/) they support it.
        checks: for definitions and empirical entries, callables that test what is said.
        vacuous_as_quoted: callable giving (bool, detail): whether the regime the source quotes gets nothing from it.
        useful_when: the parameter region where the statement says anything.
    """

    id: str
    title: str = ""
    space: Space | None = None
    sides: Sides | None = None
    relation: Relation = "<="
    source: Source | None = None
    locator: str = ""
    statement: str = ""
    latex: str = ""
    hypotheses: tuple[str, ...] = ()
    signed: bool = False
    scale: Any = 1
    given: Given | None = None
    nature: Nature = "statement"
    sharpness: Sharpness = "unknown"
    misprint: bool = False
    assumption: str = ""
    unassumed: Mapping[str, Any] | None = None
    depends_on: tuple[str, ...] = ()
    corrected_by: tuple[str, ...] = ()
    mutants: tuple[Mutant, ...] = ()
    proof: str | None = None
    proofs: tuple[Proof, ...] = ()
    lemmas: tuple[Proof, ...] = ()
    checks: tuple[Proof, ...] = ()
    vacuous_as_quoted: Callable[[], tuple[bool, str]] | None = None
    useful_when: str = ""
    sketch: str = ""
    note: str = ""
    structured: Callable[..., Any] | None = field(default=None)
    """Optional (space size) → block values: extremal instances known from a proof, offered to the search as starts."""

    def __post_init__(self) -> None:
        if self.relation not in RELATIONS:
            raise ValueError(f"claim {self.id}: relation {self.relation!r}, expected one of {', '.join(RELATIONS)}")
        if (self.space is None) != (self.sides is None):
            raise ValueError(f"claim {self.id}: space and sides go together; one of them is missing")

    @property
    def has_ratio(self) -> bool:
        """True for inequalities written as 0 ≤ lhs ≤ rhs, whose tightness is the supremum of lhs/rhs."""
        return self.relation in {"<=", "<"} and not self.signed and self.given is None

    def scaled(self, factor: Any) -> Claim:
        """The claim with its right-hand side multiplied by ``factor``.

        Raises:
            ValueError: for signed statements, equalities and entries without sides, where a factor means nothing.
        """
        if self.sides is None or not self.has_ratio:
            raise ValueError(f"claim {self.id}: only inequalities 0 ≤ lhs ≤ rhs can be scaled, this is {self.form}")
        return replace(self, scale=self.scale * factor)

    @property
    def form(self) -> str:
        if self.sides is None:
            return f"a {self.nature} without sides"
        if self.given is not None:
            return "an implication"
        return f"a signed statement ({self.relation})" if self.signed else f"of the form lhs {self.relation} rhs"

    def variant(self, name: str, changes: Mapping[str, Any]) -> Claim:
        """A renamed copy with some fields replaced, without the original's proofs and mutants."""
        bare = {"proof": None, "proofs": (), "lemmas": (), "checks": (), "mutants": (), "unassumed": None}
        changes = dict(changes)
        factor = changes.pop("factor", None)
        slug = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
        out = replace(self, id=f"{self.id}~{slug}", **(bare | changes))
        return out if factor is None else out.scaled(factor)
