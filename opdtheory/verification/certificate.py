"""Certificates: a confirmed counterexample as one JSON document that the stand-alone checker replays."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from opdtheory import checker
from opdtheory.spaces import Size
from opdtheory.verification.blocks import Values
from opdtheory.verification.claim import Claim
from opdtheory.verification.expression import Expr, NotRecordable, Recorder, readable

SCHEMA_VERSION = 1


def record(claim: Claim, size: Size, values: Values) -> tuple[dict[str, Any], Any, Any, list[tuple[Any, str, Any]]]:
    """Run the claim's own sides on a recording instance.

    Returns the instance data and the expressions of lhs, rhs and the conditions.

    Raises:
        NotRecordable: if the sides use anything but primitives and arithmetic.
    """
    space = claim.space
    assert space is not None and claim.sides is not None
    data = space.serialise(space.build(values, **size))
    names = data if space.kind == "scalar" else data.get("scalars", {})
    recorder = Recorder(space.kind, space.structure(**size), names)
    lhs, rhs = claim.sides(recorder)
    given = claim.given(recorder) if claim.given is not None else []
    nodes = [Expr.constant(e).node for e in (lhs, rhs)]
    conditions = [(Expr.constant(a).node, relation, Expr.constant(b).node) for a, relation, b in given]
    return data, nodes[0], nodes[1], conditions


def build(claim: Claim, size: Size, values: Values, sentence: str = "") -> dict[str, Any]:
    """The sealed certificate of a confirmed counterexample.

    Raises:
        NotRecordable: if the claim cannot be stated over the checker's primitives.
        checker.Refused: if the checker does not confirm it; such a certificate is never handed out.
    """
    assert claim.space is not None
    data, lhs, rhs, given = record(claim, size, values)
    certificate = {
        "schema_version": SCHEMA_VERSION,
        "claim": claim.id,
        "source": claim.source.key if claim.source else "user",
        "scale": str(claim.scale),
        "kind": claim.space.kind,
        "instance": data,
        "given": [{"lhs": a, "relation": relation, "rhs": b} for a, relation, b in given],
        "lhs": lhs,
        "relation": "==" if claim.relation == "identity" else claim.relation,
        "rhs": rhs,
        "sentence": sentence or explain(claim, lhs, rhs),
    }
    sealed = checker.seal(certificate)
    verdict = checker.check(sealed)
    if not verdict.confirmed:
        raise checker.Refused(verdict.reason)
    return sealed


def explain(claim: Claim, lhs: list[Any], rhs: list[Any]) -> str:
    """A sentence for a certificate whose claim does not bring its own."""
    right = readable(rhs) if claim.scale == 1 else f"{claim.scale}·({readable(rhs)})"
    relation = {"identity": "=", "==": "=", "<=": "≤", ">=": "≥"}.get(claim.relation, claim.relation)
    return f"Claimed: {readable(lhs)} {relation} {right}; on this instance it fails."


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
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=1, ensure_ascii=False, allow_nan=False)
        stream.write("\n")
    os.replace(temporary, path)
