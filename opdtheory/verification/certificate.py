"""Certificates: a confirmed counterexample as one JSON document that the stand-alone checker replays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from opdtheory import checker
from opdtheory.files import atomic
from opdtheory.spaces import Size
from opdtheory.verification.blocks import Values
from opdtheory.verification.claim import Claim
from opdtheory.verification.expression import Expr, NotRecordable, Recorder, readable

SCHEMA_VERSION = 1


_FAILS = {
    "<=": "is not at most", "<": "is not below", ">=": "is not at least", ">": "is not above", "==": "differs from",
}  # fmt: skip
_SIGN = {"identity": "=", "==": "=", "<=": "≤", ">=": "≥"}

Statement = tuple[list[Any], list[Any], list[dict[str, Any]]]


def statement(claim: Claim, size: Size, names: Mapping[str, Any]) -> Statement:
    """lhs, rhs and conditions of a claim as expressions, by running its own functions on a recording instance.

    ``names`` holds the named scalars of the instance.  The conditions are those of the claim's space and its own.

    Raises:
        NotRecordable: if the claim uses anything but primitives and arithmetic.
    """
    space = claim.space
    assert space is not None and claim.sides is not None
    recorder = Recorder(space.kind, space.structure(**size), dict(names))
    given: list[dict[str, Any]] = []
    try:
        lhs, rhs = (Expr.constant(side).node for side in claim.sides(recorder))
        for a, relation, b in [*space.scope(recorder, size, names), *(claim.given(recorder) if claim.given is not None else ())]:
            condition = {"lhs": Expr.constant(a).node, "relation": relation, "rhs": Expr.constant(b).node}
            if condition not in given:
                given.append(condition)
    except NotRecordable:
        raise
    except Exception as problem:  # the sides are anybody's code
        raise NotRecordable(f"recording its sides raised {type(problem).__name__}: {problem}") from problem
    return lhs, rhs, given


def _scalars(kind: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
    return data if kind == "scalar" else data.get("scalars", {})


def states(claim: Claim, certificate: Mapping[str, Any]) -> bool:
    """Whether a certificate is about this claim: the same formulas, relation, scale and conditions, on an instance of a size
    that its space admits."""
    space, data = claim.space, certificate["instance"]
    if space is None or certificate["kind"] != space.kind:
        return False
    if certificate["relation"] != _relation(claim) or certificate["scale"] != str(claim.scale):
        return False
    own = _size(space.kind, data)
    own = {name: own[name] for name in space.sizes[0] if name in own}
    if not space.admits(own):
        return False
    try:
        stated = statement(claim, own, _scalars(space.kind, data))
    except NotRecordable:
        return False
    return stated == (certificate["lhs"], certificate["rhs"], certificate["given"])


def _size(kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Whatever of an instance spaces call its size."""
    if kind == "single_state":
        return {"vocab": len(data["p"])}
    if kind == "discounted_mdp":
        return {"states": len(data["reward"]), "actions": len(data["reward"][0])}
    if kind == "iterated_map":
        return {"outcomes": len(data["teacher"])}
    return {name: data[name] for name in ("vocab", "horizon", "eos", "prompts") if name in data}


def _relation(claim: Claim) -> str:
    return "==" if claim.relation == "identity" else claim.relation


def build(claim: Claim, size: Size, values: Values, sentence: str = "") -> dict[str, Any]:
    """The sealed certificate of a confirmed counterexample.

    Raises:
        NotRecordable: if the claim cannot be stated over the checker's primitives.
        checker.Refused: if the checker does not confirm it; such a certificate is never handed out.
    """
    assert claim.space is not None
    data = claim.space.serialise(claim.space.build(values, **size))
    lhs, rhs, given = statement(claim, size, _scalars(claim.space.kind, data))
    certificate = {
        "schema_version": SCHEMA_VERSION,
        "claim": claim.id,
        "source": claim.source.key if claim.source else "user",
        "scale": str(claim.scale),
        "kind": claim.space.kind,
        "instance": data,
        "given": given,
        "lhs": lhs,
        "relation": _relation(claim),
        "rhs": rhs,
        "sentence": sentence,
    }
    sealed = checker.seal(certificate)
    if not sentence:
        own = given[len(statement(replace(claim, given=None), size, _scalars(claim.space.kind, data))[2]) :]
        sealed = checker.seal(sealed | {"sentence": explain(claim, sealed, own)})
    verdict = checker.check(sealed)
    if not verdict.confirmed:
        raise checker.Refused(verdict.reason)
    return sealed


def explain(claim: Claim, sealed: Mapping[str, Any], conditions: list[dict[str, Any]]) -> str:
    """What goes wrong, in one or two sentences: both sides with their values, the conditions that hold, and the reason."""
    right = readable(sealed["rhs"]) if claim.scale == 1 else f"{claim.scale}·({readable(sealed['rhs'])})"
    sides = [
        text if text == value else f"{text} = {value}"
        for text, value in (
            (readable(sealed["lhs"]), _value(sealed["lhs_enclosure"])),
            (right, _value(sealed["rhs_enclosure"])),
        )
    ]
    held = " and ".join(f"{readable(c['lhs'])} {_SIGN.get(c['relation'], c['relation'])} {readable(c['rhs'])}" for c in conditions)
    dropped = f"without “{claim.assumption}”, " if "~" in claim.id and claim.assumption else ""
    name = claim.title or claim.id
    stated = f"{name}{'' if name.endswith('?') else ':'} {dropped}{sides[0]} {_FAILS[sealed['relation']]} {sides[1]}"
    stated += f", although {held}" if held else ""
    reason = "" if "~" in claim.id else claim.sketch
    return f"{stated}. {reason}".rstrip()


def _value(enclosure: list[str]) -> str:
    """A number as it is best read: a small fraction as it stands, otherwise four digits."""
    low, high = ([x] if x in {"inf", "-inf"} else [Fraction(x)] for x in enclosure)
    if not isinstance(low[0], Fraction) or not isinstance(high[0], Fraction):
        return str(low[0]).replace("inf", "∞")
    if low == high and len(str(low[0])) <= 7:
        return str(low[0])
    return f"{float((low[0] + high[0]) / 2):.4g}"


def load(path: Path) -> dict[str, Any]:
    """A certificate's content, unchecked."""
    return json.loads(path.read_text(encoding="utf-8"))


def file_name(claim_id: str) -> str:
    """File name of a claim's certificate.

    >>> file_name("trm.guarantee/exact-kl")
    'trm.guarantee--exact-kl.json'
    """
    return claim_id.replace("/", "--").replace("~", "__") + ".json"


def write_json(path: Path, content: Any) -> None:
    """Write atomically: a reader sees the old file or the new one, never half of one."""
    with atomic(path) as partial:
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
