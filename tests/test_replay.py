"""Replaying certificates against the catalogue: the formulas must be those of the claim named."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import opdtheory as ot
from opdtheory import checker
from opdtheory.verification.replay import replay
from tests.certificate_examples import EXAMPLES, ROOT


@pytest.fixture(scope="module")
def genuine() -> dict[str, Any]:
    """A hundredth of a true bound is false, and the search says so with a certificate."""
    certificate = ot.search(ot.claims.get("trm.2.5.4").scaled(Fraction(1, 100)), seed=0).certificate
    assert certificate is not None
    return certificate


def write(path: Path, certificate: dict[str, Any]) -> Path:
    path.write_text(json.dumps(certificate))
    return path


def test_genuine_and_unlisted_certificates_are_confirmed(tmp_path, genuine, capsys):
    paths = [write(tmp_path / "a.json", genuine), write(tmp_path / "b.json", EXAMPLES["scalar"])]
    assert replay(paths) == 0
    listed, unlisted = capsys.readouterr().out.splitlines()
    assert "confirmed: trm.2.5.4:" in listed
    assert "formulas not compared" in unlisted


def test_certificates_of_the_engine_fit_the_schema(genuine):
    schema = json.loads((ROOT / "opdtheory/data/certificate.schema.json").read_text("utf-8"))
    assert list(Draft202012Validator(schema).iter_errors(genuine)) == []


def test_true_formulas_that_are_not_the_claims_are_refused(tmp_path, genuine, capsys):
    """The checker alone confirms these: what they say is right, but it is not what the claim says."""
    forgeries = [
        genuine | {"lhs": ["mul", ["const", "2"], genuine["lhs"]]},
        genuine | {"given": []},
        genuine | {"claim": "ours.s3"},
        EXAMPLES["scalar"] | {"claim": "trm.2.5.4"},
    ]
    for number, forgery in enumerate(forgeries):
        sealed = checker.seal(forgery)
        assert checker.check(sealed).confirmed
        assert replay([write(tmp_path / f"{number}.json", sealed)]) == 1
        assert "not those of" in capsys.readouterr().out


def test_exit_status_of_refusals_and_of_unreadable_files(tmp_path, genuine, capsys):
    bad = write(tmp_path / "bad.json", genuine | {"scale": "1/99"})
    good = write(tmp_path / "good.json", genuine)
    assert replay([bad, good]) == 1
    assert replay([tmp_path / "absent.json", bad]) == 2
    assert "absent.json" in capsys.readouterr().err
