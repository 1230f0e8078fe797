"""The catalogue as executable theorems: every entry against random rational instances, and against its record."""

from __future__ import annotations

import json
import sys

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from opdtheory import checker, strategies
from opdtheory.bounds.registry import REGISTRY
from opdtheory.claims import all_claims, get
from opdtheory.claims.order import READING_ORDER, place
from opdtheory.claims.sources import SOURCES
from opdtheory.verification import blocks as bl
from opdtheory.verification import runner
from opdtheory.verification.arithmetic import compare, precision
from opdtheory.verification.engine import ROOT
from opdtheory.verification.status import SUPPORTED, resolve

CLAIMS = all_claims()
RECORD = {row["id"]: row for row in runner.load_record()["claims"]}
HOLDING = [c for c in CLAIMS if c.space is not None and RECORD.get(c.id, {}).get("status") in SUPPORTED]
CERTIFICATES = sorted((ROOT / "certificates").glob("*.json"))


def theorem(claim, examples, phases=tuple(Phase)):
    """A property test: no instance with small rational probabilities certainly violates the claim."""

    @settings(
        max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None, phases=phases
    )  # fmt: skip
    @given(st.data())
    def holds(data):
        x = data.draw(strategies.instances(claim.space, exact=True))
        with precision(128):
            lhs, rhs = claim.sides(x)
            conditions = claim.given(x) if claim.given is not None else []
            if all(compare(a, relation, b) is True for a, relation, b in conditions):
                assert compare(lhs, claim.relation, rhs * claim.scale) is not False

    return holds


@pytest.mark.parametrize("claim", HOLDING, ids=lambda c: c.id)
def test_holds_on_random_rational_instances(claim):
    """What the record calls supported."""
    theorem(claim, 12)()


@pytest.mark.parametrize("name", ["topd.thm4.4/token", "trm.2.4/tightest", "trm.k3-bias", "ours.s3"])
def test_the_property_test_can_fail(name):
    """Refuted entries, an equality with one side halved, and a bound cut to a tenth, on the same random instances."""
    claim = get(name)
    if RECORD[name]["status"] != "refuted":
        sides = claim.sides
        claim = claim.variant("half", {"sides": lambda x: (sides(x)[0] * (2 if claim.relation == "==" else 10), sides(x)[1])})
    with pytest.raises(AssertionError):
        theorem(claim, 80, (Phase.generate,))()


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


@pytest.mark.parametrize("entry", REGISTRY.values(), ids=lambda b: b.id)
def test_every_bound_is_computed_by_the_entry_it_names(entry):
    """The calculator and the catalogue use one formula: the sides of the named entry call the bound's own function."""
    claim = get(entry.claim)
    size = claim.space.sizes[-1]
    layout = claim.space.blocks(**size)
    theta = bl.sample(layout, np.random.default_rng(0), 2, claim.space.pairs)
    called = set()
    sys.setprofile(lambda frame, event, _: called.add(frame.f_code) if event == "call" else None)
    try:
        with np.errstate(all="ignore"):
            x = claim.space.build(bl.decode(layout, theta), **size)
            claim.sides(x)
            if claim.given is not None:
                claim.given(x)
    finally:
        sys.setprofile(None)
    assert entry.function.__code__ in called


def test_the_catalogue_follows_the_documents():
    placed = [(list(SOURCES).index(c.source.key), place(c.id)) for c in CLAIMS]
    assert placed == sorted(placed)
    named = {f"{source}.{name}" for source, names in READING_ORDER.items() for name in names.split()}
    assert [n for n in named if not any(c.id == n or c.id.startswith((f"{n}/", f"{n}-")) for c in CLAIMS)] == []
    last = place("no such statement")[0]
    assert sum(p[0] == last for _, p in placed) < 10, "all but a few belong to a listed statement"


def test_a_wide_sweep_covers_every_size():
    """V ≤ 4 and T ≤ 6, from the smallest declared size on, for every inequality on trees that is not about short ones."""
    short = []
    for claim in CLAIMS:
        if claim.space is None or claim.relation in {"==", "identity"} or "horizon" not in claim.space.sizes[0]:
            continue
        swept = {(s["vocab"], s["horizon"]) for s in (*claim.space.sizes, *claim.space.wide())}
        low = min(s["horizon"] for s in claim.space.sizes)
        if not {(v, t) for v in (2, 3, 4) for t in range(low, 7)} <= swept and RECORD.get(claim.id, {}).get("status") in SUPPORTED:
            short.append(claim.id)
    assert set(short) == {"opd.iv-vs-ii/t2", "opd.thm3.imm", "opd.thm3.togo", "ours.s11", "trm.a8"}
