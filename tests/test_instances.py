"""Instances read back from certificates: the same data again, and the package's own numbers on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opdtheory.claims import all_claims
from opdtheory.verification.arithmetic import compare
from opdtheory.verification.instances import KINDS, instance_from_data, instance_of

FILES = sorted((Path(__file__).parents[1] / "certificates").glob("*.json"))
CLAIMS = {claim.id: claim for claim in all_claims()}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_certificate_gives_its_own_data_back(path: Path) -> None:
    certificate = json.loads(path.read_text(encoding="utf-8"))
    instance = instance_of(certificate)
    if certificate["kind"] != "scalar":
        assert instance.to_data() == certificate["instance"]


@pytest.mark.parametrize("path", [p for p in FILES if json.loads(p.read_text())["claim"] in CLAIMS], ids=str)
def test_the_package_sees_the_violation_too(path: Path) -> None:
    certificate = json.loads(path.read_text(encoding="utf-8"))
    claim = CLAIMS[certificate["claim"]]
    assert claim.sides is not None
    lhs, rhs = claim.sides(instance_of(certificate))
    assert compare(lhs, claim.relation, rhs) is False


def test_proximal_steps_with_their_errors() -> None:
    data = {
        "map": "proximal", "start": ["1", "0"], "teacher": ["0", "1"], "steps": 2,
        "scalars": {"alpha": "1/2"}, "errors": [["1/8", "-1/8"], ["0", "0"]],
    }  # fmt: skip
    steps = instance_from_data("iterated_map", data)
    assert [str(p) for p in steps.laws[1]] == ["5/8", "3/8"] and steps.to_data() == data


def test_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="kind: got 'tree'"):
        instance_from_data("tree", {})
    assert "policy_pair" in KINDS
