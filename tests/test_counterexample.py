"""Certificates told to a reader: the numbers are the checker's, and nothing a reader needs is left out."""

from __future__ import annotations

import json

import pytest

import opdtheory as ot
from opdtheory import checker
from opdtheory.report.counterexample import explain
from opdtheory.verification.engine import ROOT

PATHS = sorted((ROOT / "certificates").glob("*.json"))
LIE = {
    "schema_version": 1, "claim": "tropd.gate", "source": "tropd", "scale": "1", "kind": "single_state",
    "instance": {"p": ["1/2", "1/2"], "q": ["1/5", "4/5"], "scalars": {"floor": "1/3"}},
    "given": [
        {"lhs": ["prim", "min_p"], "relation": ">", "rhs": ["const", "0"]},
        {"lhs": ["mul", ["const", "4"], ["prim", "tv"]], "relation": ">", "rhs": ["const", "1"]},
    ],
    "lhs": ["prim", "gate_acceptance"], "relation": "==", "rhs": ["const", "1"],
    "lhs_enclosure": ["7/10", "7/10"], "rhs_enclosure": ["1", "1"], "sentence": "",
}  # fmt: skip


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_every_certificate_is_told_with_both_sides(path):
    certificate = json.loads(path.read_text(encoding="utf-8"))
    text = explain(certificate, ot.claims.get(certificate["claim"].split("~")[0]))
    for side in ("lhs", "rhs"):
        if certificate[side][0] != "const":
            assert f"`{checker.formula(certificate[side])}`" in text
    assert "*Said.*" in text and "*Counterexample.*" in text and "*Why.*" in text


def test_a_small_case_in_full():
    text = explain(LIE, ot.claims.get("tropd.gate"))
    assert "So `gate_acceptance` = 7/10 differs from 1, although `4·tv` = 6/5 > 1." in text
    assert "| `gate_acceptance` | 7/10 |" in text and "| `tv` | 3/10 |" in text
    assert "min_p" not in text, "conditions that only bound the space are left out"
    assert "- p = (1/2, 1/2)" in text and "- floor = 1/3" in text


def test_a_tree_becomes_a_table():
    certificate = json.loads((ROOT / "certificates/trm.2.2.6.json").read_text(encoding="utf-8"))
    text = explain(certificate, ot.claims.get("trm.2.2.6"))
    assert "| after | μ | π | R |" in text and "| start |" in text
