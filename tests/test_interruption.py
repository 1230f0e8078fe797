"""Interrupted runs of ``verify``: finished verdicts are kept, and ``--resume`` goes on from there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import opdtheory as ot
from opdtheory.verification.engine import ROOT, verify
from opdtheory.verification.resume import FinishedVerdicts, code_digest, verdict_from_data, verdict_to_data
from opdtheory.verification.runner import results, run
from opdtheory.verification.userclaims import load_user_claims

CLAIMS = """
import time
from pathlib import Path
import opdtheory as ot

XY = ot.spaces.scalars(x=(0.01, 10.0), y=(0.01, 10.0))

def am_gm(s):
    return 2 * s.x * s.y, s.x * s.x + s.y * s.y

def waits(s):
    with open("evaluated", "a") as file:
        file.write("w")
    while not Path("go").exists():
        time.sleep(0.01)
    return am_gm(s)

def counted(s):
    with open("evaluated", "a") as file:
        file.write("c")
    return am_gm(s)

first = ot.Claim(id="first", space=XY, sides=counted)
false = ot.Claim(id="false", space=XY, sides=lambda s: (2 * s.x * s.y, s.x * s.x))
slow = ot.Claim(id="slow", space=XY, sides=waits, depends_on=("false",))
last = ot.Claim(id="last", space=XY, sides=am_gm)
"""
SECONDS = 120
"""Patience with a loaded machine; nothing is measured."""


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "opdtheory", "verify", "mine.py", "--effort", "quick", *words]
    return subprocess.Popen(line, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until_slow(folder: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while "w" not in (folder / "evaluated").read_text() if (folder / "evaluated").exists() else True:
        assert time.monotonic() < deadline, "the slow claim was never reached"
        time.sleep(0.05)


@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, 130), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_what_is_finished_survives_and_is_not_done_again(tmp_path, monkeypatch, how, code):
    (tmp_path / "mine.py").write_text(CLAIMS)
    process = start(tmp_path, "--json", "partial.json")
    until_slow(tmp_path)
    process.send_signal(how)
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == code and "Traceback" not in said
    kept = sorted(p.name for p in (tmp_path / "build/verify").glob("*/*.json"))
    assert kept == ["false.json", "first.json"]
    if how != signal.SIGKILL:
        assert "2 of 4" in said and "--resume" in said
        assert [c["id"] for c in json.loads((tmp_path / "partial.json").read_text())["claims"]] == ["first", "false"]

    (tmp_path / "go").touch()
    (tmp_path / "evaluated").write_text("")
    process = start(tmp_path, "--resume", "--json", "resumed.json")
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 1, "one claim rests on a refuted one"
    assert "2 of 4 verdicts taken over" in said
    assert set((tmp_path / "evaluated").read_text()) == {"w"}, "the first claim was not evaluated again"
    assert not list((tmp_path / "build/verify").glob("*")), "a complete run leaves nothing to resume"

    monkeypatch.chdir(tmp_path)
    whole = results(run(load_user_claims(tmp_path / "mine.py"), "quick"), "quick", 0, 0.0)
    resumed = json.loads((tmp_path / "resumed.json").read_text())
    for document in (resumed, whole):
        document["seconds"] = 0
        for row in document["claims"]:
            row["seconds"] = 0
    assert resumed == whole
    assert [row["status"] for row in whole["claims"]] == ["survived", "refuted", "conditional", "survived"]


PAIRS = ot.spaces.policy_pairs()
KINDS = {
    "refuted": ot.Claim(id="cut", space=PAIRS, sides=lambda x: (abs(x.error), x.tv_sum / 2)),
    "survived": ot.Claim(id="holds/here", space=PAIRS, sides=lambda x: (abs(x.error), x.tv_sum)),
    "failing": ot.Claim(id="fails", space=PAIRS, sides=lambda x: (x.nothing, x.tv_sum)),
    "infinite": ot.Claim(id="inf", space=PAIRS, sides=lambda x: (-x.kl_max, 0), signed=True, given=lambda x: [(x.kl_max, "<", -1)]),
    "scalar": ot.Claim(id="scalar", space=ot.spaces.scalars(x=(0.0, 1.0)), sides=lambda s: (s.x, s.x), relation="=="),
    "bare": ot.Claim(id="bare", nature="definition"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_verdict_read_back_says_the_same(kind):
    claim = KINDS[kind]
    verdict = verify(claim, "quick", replay=False)
    data = json.loads(json.dumps(verdict_to_data(verdict), allow_nan=False))
    again = verdict_from_data(claim, data)
    assert again.to_dict() == verdict.to_dict()
    assert verdict_to_data(again) == data


def test_other_code_effort_or_seed_is_not_taken_over(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("one")
    claim = KINDS["scalar"]
    parts = FinishedVerdicts(tmp_path, "quick", 0, [mine])
    parts.store(verify(claim, "quick"))
    assert parts.load(claim) is not None and parts.load(KINDS["bare"]) is None
    assert FinishedVerdicts(tmp_path, "quick", 0, [mine]).load(claim) is not None
    assert FinishedVerdicts(tmp_path, "default", 0, [mine]).load(claim) is None
    assert FinishedVerdicts(tmp_path, "quick", 1, [mine]).load(claim) is None
    assert FinishedVerdicts(tmp_path, "quick", 0).load(claim) is None
    before = code_digest([mine])
    mine.write_text("two")
    assert code_digest([mine]) != before and FinishedVerdicts(tmp_path, "quick", 0, [mine]).load(claim) is None
    parts.discard([claim])
    assert not parts.folder.exists()


def test_dependencies_are_settled_among_finished_and_fresh():
    base, above = KINDS["refuted"], ot.Claim(id="above", space=PAIRS, sides=lambda x: (x.tv_max, x.tv_max), depends_on=("cut",))
    finished = {base.id: verify(base, "quick")}
    seen: list[str] = []
    verdicts = run([above, base], "quick", on_done=lambda v: seen.append(v.claim.id), finished=finished)
    assert seen == ["above"]
    assert [v.status for v in verdicts] == ["conditional", "refuted"]
    assert results(verdicts, "quick", 0, 0.0)["summary"]["by_status"] == {"conditional": 1, "refuted": 1}
