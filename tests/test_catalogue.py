"""The catalogue as executable theorems: every entry against random rational instances, and against its record."""

from __future__ import annotations

import json

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opdtheory import checker, strategies
from opdtheory.claims import all_claims
from opdtheory.claims.sources import SOURCES
from opdtheory.verification import runner
from opdtheory.verification.arithmetic import compare, precision
from opdtheory.verification.engine import ROOT
from opdtheory.verification.status import SUPPORTED, resolve

CLAIMS = all_claims()
RECORD = {row["id"]: row for row in runner.load_record()["claims"]}
HOLDING = [c for c in CLAIMS if c.space is not None and RECORD.get(c.id, {}).get("status") in SUPPORTED]
CERTIFICATES = sorted((ROOT / "certificates").glob("*.json"))


@pytest.mark.parametrize("claim", HOLDING, ids=lambda c: c.id)
def test_holds_on_random_rational_instances(claim):
    """No instance with small rational probabilities certainly violates a claim that the record calls supported."""

    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    @given(st.data())
    def theorem(data):
        x = data.draw(strategies.instances(claim.space, exact=True))
        with precision(128):
            lhs, rhs = claim.sides(x)
            conditions = claim.given(x) if claim.given is not None else []
            if all(compare(a, relation, b) is True for a, relation, b in conditions):
                assert compare(lhs, claim.relation, rhs * claim.scale) is not False

    theorem()


def test_every_claim_is_recorded_and_agrees_with_its_label():
    assert set(RECORD) == {c.id for c in CLAIMS}
    assert [f"{i}: {row['problems']}" for i, row in RECORD.items() if row["problems"]] == []


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.id)
def test_entries_are_complete(claim):
    assert claim.title and claim.statement, "a title and a statement in our own words"
    assert claim.source is not None and claim.source.key in SOURCES and claim.locator
    known = {c.id for c in CLAIMS}
    assert set(claim.depends_on) <= known
    assert set(claim.corrected_by) <= known
    row = RECORD[claim.id]
    assert row["evidence"], "a verdict rests on evidence"
    if row["status"] == "refuted":
        assert row["certificates"], "a refutation comes with a certificate"
    if claim.unassumed is not None:
        assert claim.assumption and any("unassumed" in path for path in row["certificates"])


def test_dependencies_have_no_cycle():
    resolve({c.id: c for c in CLAIMS}, {c.id: "survived" for c in CLAIMS})


@pytest.mark.parametrize("path", CERTIFICATES, ids=lambda p: p.stem)
def test_committed_certificates_are_confirmed(path):
    verdict = checker.check(path)
    assert verdict.confirmed, verdict.reason


def test_certificates_and_record_name_each_other():
    listed = {path for row in RECORD.values() for path in row["certificates"]}
    assert listed == {f"certificates/{path.name}" for path in CERTIFICATES}


def test_the_record_follows_its_schema():
    schema = json.loads((ROOT / "opdtheory/data/results.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(runner.load_record(), schema)
