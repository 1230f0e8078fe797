"""The record of the thorough run: complete, honest about its witnesses, and what the page says."""

from __future__ import annotations

import pytest

from opdtheory.claims import all_claims, get
from opdtheory.report import tightness
from opdtheory.report.tables import claim_page
from opdtheory.verification.arithmetic import compare, precision
from opdtheory.verification.instances import KINDS, instance_from_data
from opdtheory.verification.runner import load_record
from opdtheory.verification.status import SUPPORTED

RECORD = tightness.load()
ROWS = {row["id"]: row for row in RECORD["inequalities"]}
BEST_POSSIBLE = 0.99
"""What a ratio must reach where the constant is declared best possible."""
WITNESSED = [r for r in RECORD["inequalities"] if r["witness"] is not None and r["form"] == "ratio" and "mask" not in r["witness"]]


def _inequalities():
    status = {row["id"]: row["status"] for row in load_record()["claims"]}
    for claim in all_claims():
        if claim.sides is not None and claim.relation not in {"==", "identity"} and status.get(claim.id) in SUPPORTED:
            yield claim


def test_every_inequality_was_swept():
    """V ≤ 4 and T ≤ 6, or as far as the statement goes."""
    for claim in _inequalities():
        row = ROWS[claim.id]
        names = ("vocab", "horizon")
        found = {tuple(size.get(n) for n in names) for size in row["reached"]}
        assert {tuple(size.get(n) for n in names) for size in (*claim.space.sizes, *claim.space.wide())} == found, claim.id
        assert row["best"] is not None


@pytest.mark.parametrize("row", [r for r in ROWS.values() if r["form"] == "ratio"], ids=lambda r: r["id"])
def test_what_is_declared_best_possible_is_reached(row):
    if row["sharpness"] == "tight" or (row["sharpness"] == "asymptotic" and row["limit"] is None):
        assert row["best"] >= BEST_POSSIBLE
    assert row["best"] == max(size["score"] for size in row["reached"])
    assert row["best"] <= 1


@pytest.mark.parametrize("row", WITNESSED, ids=lambda r: r["id"])
def test_witnesses_reach_what_is_said_of_them_in_exact_arithmetic(row):
    claim = get(row["id"])
    x = instance_from_data(claim.space.kind, row["witness"])
    # where the best instance has too many numbers to be written down, the witness is that of a smaller size
    own = [s["score"] for s in row["reached"] if all(row["witness"].get(k) == s[k] for k in ("vocab", "horizon") if k in s)]
    with precision(128):
        lhs, rhs = claim.sides(x)
        assert compare(1000 * lhs, ">", rhs * int(970 * max(own, default=row["best"]))) is True
        assert compare(lhs, "<=", rhs) is not False


def test_every_mutant_met_its_expected_fate():
    assert RECORD["mutants"]["unexpected"] == []
    assert [r["id"] for r in ROWS.values() if sum(got == "dies" for got in r["mutants"].values()) < 2] == []


def test_the_page_is_what_the_record_says():
    assert tightness.PAGE.read_text(encoding="utf-8") == tightness.page(RECORD)


def test_show_tells_the_sweep():
    row = {"id": "trm.2.5.1"} | next(r for r in load_record()["claims"] if r["id"] == "trm.2.5.1")
    text = "\n".join(str(part) for part in claim_page(get("trm.2.5.1"), row).renderables)
    assert "largest lhs/rhs for V ≤ 4" in text and "at T = 6" in text


def test_only_a_thorough_run_becomes_the_record():
    with pytest.raises(ValueError, match="default"):
        tightness.condense({"effort": "default", "claims": []})
    assert set(KINDS) >= {claim.space.kind for claim in _inequalities()}
