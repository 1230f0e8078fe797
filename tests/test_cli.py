"""The command line: what it prints, its exit codes, and one or two lines for bad input."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction

import pytest
from typer.testing import CliRunner

import opdtheory
from opdtheory import cli
from opdtheory.verification.engine import ROOT
from opdtheory.verification.runner import load_record
from opdtheory.verification.status import SUPPORTED

runner = CliRunner()


@pytest.fixture(scope="module", autouse=True)
def _mounted(tmp_path_factory):
    cli.mount()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "PARTS", tmp_path_factory.mktemp("parts"))
        yield


def run(*words: str):
    return runner.invoke(cli.app, list(words), prog_name="opdtheory")


def test_version():
    assert opdtheory.__version__ in run("--version").output


def test_list_shows_every_claim_and_filters():
    rows = json.loads(run("list", "--json").output)
    assert {row["id"] for row in rows} == {row["id"] for row in load_record()["claims"]}
    assert {row["source"] for row in json.loads(run("list", "--source", "trm", "--json").output)} == {"trm"}


def test_show_prints_the_counterexample():
    done = run("show", "tropd.suppressed")
    assert done.exit_code == 0
    assert "refuted" in done.output and "certificate" in done.output


def test_unknown_claim_suggests_the_nearest():
    done = run("show", "trm.2.5.44")
    assert done.exit_code == 2
    assert "trm.2.5.4" in done.stderr and len(done.stderr.strip().splitlines()) <= 2


def test_verify_writes_results_and_certificates(tmp_path):
    done = run("verify", "tropd.gate", "tropd.suppressed", "--json", str(tmp_path / "r.json"), "--certificates", str(tmp_path / "c"),
               "--html", str(tmp_path / "r.html"))  # fmt: skip
    assert done.exit_code == 0, done.output
    document = json.loads((tmp_path / "r.json").read_text())
    holds, fails = (c["status"] for c in document["claims"])
    assert holds in SUPPORTED and fails == "refuted"
    assert (tmp_path / "c" / "tropd.suppressed.json").exists()
    assert "tropd-suppressed" in (tmp_path / "r.html").read_text()


def test_verify_check_notices_a_difference(tmp_path, monkeypatch):
    assert run("verify", "tropd.gate", "--check", "--effort", "quick").exit_code == 0
    changed = load_record()
    next(c for c in changed["claims"] if c["id"] == "tropd.gate")["status"] = "refuted"
    monkeypatch.setattr(cli.runner, "load_record", lambda: changed)
    done = run("verify", "tropd.gate", "--check", "--effort", "quick")
    assert done.exit_code == 1 and "tropd.gate" in done.stderr


def test_search_scales_and_refuses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("search", "dppo.b1", "--scale", "9/10", "--iterations", "40", "--json", str(tmp_path / "s.json"))
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "s.json").read_text())
    assert found["refuted"] and found["scale"] == "9/10"
    assert run("check", found["certificate"]).exit_code == 0, "the certificate records its factor and is confirmed with it"
    done = run("search", "tropd.gate", "--scale", "2")
    assert done.exit_code == 2 and "tropd.gate" in done.stderr


def test_check_refuses_a_tampered_certificate(tmp_path):
    source = next((ROOT / "certificates").glob("tropd.*.json"))
    assert run("check", str(source)).exit_code == 0
    copy = tmp_path / source.name
    shutil.copy(source, copy)
    copy.write_text(copy.read_text().replace('"1/', '"2/', 1))
    assert run("check", str(copy)).exit_code == 1


@pytest.mark.parametrize(
    "words",
    [("verify", "missing.py"), ("search", "dppo.eq23"), ("search", "dppo.b1", "--scale", "x"), ("check", "missing.json"), ("show", "nothing")],
)
def test_bad_input_is_exit_two_without_a_traceback(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*words)
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output + done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("verify", "--jobs", "x"), ("--jobs", "'x'")),
        (("verify", "--jobs=0"), ("--jobs", "'0'")),
        (("verify", "--effort", "hard"), ("--effort", "'hard'", "thorough")),
        (("verify", "--nonsense"), ("--nonsense",)),
        (("verify", "--record", "tropd.gate"), ("--record",)),
        (("list", "--source", "arxiv"), ("'arxiv'", "dppo")),
        (("search",), ("ID",)),
        (("search", "dppo.b1", "--seconds", "-1"), ("--seconds", "'-1'")),
        (("bounds", "--horizon", "many"), ("--horizon", "'many'")),
        (("power", "--seeds", "0"), ("--seeds", "'0'")),
        (("run", "--seed", "1.5"), ("--seed", "'1.5'")),
        (("prove",), ("'prove'",)),
    ],
)
def test_wrong_usage_is_one_line_that_quotes_the_value(words, said):
    done = run(*words)
    assert done.exit_code == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) <= 2 and lines[0].startswith("opdtheory"), done.stderr
    assert all(word in done.stderr for word in said), done.stderr


def test_help_is_help():
    for words in ((), ("--help",), ("verify", "--help")):
        done = run(*words)
        assert "Usage" in done.output + done.stderr and done.exit_code in {0, 2}


BROKEN = """
import math
import numpy as np
import opdtheory as ot

XY = ot.spaces.scalars(x=(0.0, 1.0), y=(0.0, 1.0))
PAIRS = ot.spaces.policy_pairs(sizes=ot.spaces.SMALL[:2])
raises = ot.Claim(id="raises", space=PAIRS, sides=lambda x: (abs(x.error), math.sqrt(x.tv_sum)))
nan = ot.Claim(id="nan", space=XY, sides=lambda s: (np.log(s.x - 0.5), s.y))
shape = ot.Claim(id="shape", space=PAIRS, sides=lambda x: (x.behavior.levels[0], x.tv_sum))
false = ot.Claim(id="false", space=PAIRS, sides=lambda x: (abs(x.error), 99 * x.tv_sum / 100))
good = ot.Claim(id="good", space=PAIRS, sides=lambda x: (abs(x.error), x.tv_sum))
"""


def test_broken_claims_are_named_with_their_instance_and_stop_no_other(tmp_path):
    (tmp_path / "mine.py").write_text(BROKEN)
    done = run("verify", str(tmp_path / "mine.py"), "--json", str(tmp_path / "r.json"), "--certificates", str(tmp_path))
    assert done.exit_code == 1 and "Traceback" not in done.output + done.stderr
    rows = {row["id"]: row for row in json.loads((tmp_path / "r.json").read_text())["claims"]}
    assert {cid: row["status"] for cid, row in rows.items()} == {
        "raises": "undecided", "nan": "undecided", "shape": "undecided", "false": "refuted", "good": "survived",
    }  # fmt: skip
    for cid, what, where in (("raises", "TypeError", '"behavior"'), ("nan", "NaN", '"x"'), ("shape", "shape (", '"behavior"')):
        (line,) = [line for line in done.stderr.splitlines() if line.startswith(f"{cid}: ") and "instance" in line]
        assert what in line and where in line
    nan = json.loads(rows["nan"]["problems"][0].partition("on the instance ")[2])
    assert float(Fraction(nan["x"])) < 0.5
    assert run("check", str(tmp_path / "false.json")).exit_code == 0
