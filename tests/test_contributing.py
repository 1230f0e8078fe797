"""The examples for contributors are real: their diffs apply to a copy of the package, which then does what they say."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tolerance import FLOAT64

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
DIFFS = re.findall(r"```diff\n(.*?)```", PAGE, flags=re.DOTALL)
RECORD = {"details": {"tokens": [{"id": 5, "text": "a", "logprob": -0.5}, {"id": 7, "text": "b", "logprob": -1.5}]}}
pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git to apply the diffs")


@pytest.fixture(scope="module")
def patched(tmp_path_factory) -> Path:
    """A copy of the package with every diff of the page applied."""
    folder = tmp_path_factory.mktemp("contribution")
    shutil.copytree(ROOT / "opdtheory", folder / "opdtheory", ignore=shutil.ignore_patterns("__pycache__", "record.json"))
    for diff in DIFFS:
        command = ["git", "apply", "--whitespace=error-all", "-"]
        done = subprocess.run(command, cwd=folder, input=diff, text=True, encoding="utf-8", capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
    return folder


def run(folder: Path, *words: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "120"}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, text=True, encoding="utf-8", capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_there_is_one_example_of_each_kind():
    files = [re.search(r"^\+\+\+ b/(\S+)", diff, flags=re.MULTILINE)[1] for diff in DIFFS]
    assert files == [
        "opdtheory/claims/example.py", "opdtheory/divergences.py", "opdtheory/audit/readers/engines.py", "opdtheory/studies/example.py",
    ]  # fmt: skip


def test_the_claim_survives_and_its_mutant_dies(patched):
    program = (
        "import opdtheory as ot\n"
        "claim = ot.claims.get('trm.example')\n"
        "(mutant,) = claim.mutants\n"
        "dead = ot.search(claim.variant(mutant.name, mutant.changes)).refuted\n"
        "verdict = ot.verify(claim)\n"
        "print(verdict.status, mutant.expected, dead, verdict.found.best_ratio)\n"
    )
    status, expected, dead, ratio = run(patched, "-c", program).split()
    assert (status, expected, dead) == ("survived", "dies", "True")
    assert 0.9 < float(ratio) <= 1.0 + FLOAT64


def test_the_estimator_is_exact_and_its_doctest_passes(patched):
    program = (
        "import doctest; from fractions import Fraction as F; from opdtheory import divergences as d;"
        "print(d.le_cam([F(1, 2), F(1, 2), F(0)], [F(1, 4), F(3, 4), F(0)]), doctest.testmod(d).failed)"
    )
    half, quarter = (1 / 2 - 1 / 4) ** 2 / (3 / 4), (1 / 2 - 3 / 4) ** 2 / (5 / 4)
    value, failed = run(patched, "-c", program).split()
    assert value == "1/15" and (half + quarter) / 2 == pytest.approx(1 / 15) and failed == "0"


def test_the_reader_reads_and_refuses(patched):
    bad = {"details": {"tokens": [{"id": 5, "text": "a"}]}}
    (patched / "good.jsonl").write_text(json.dumps(RECORD) + "\n", encoding="utf-8")
    (patched / "bad.jsonl").write_text(json.dumps(bad) + "\n", encoding="utf-8")
    program = (
        "import opdtheory as ot\n"
        "print(ot.audit_logs('good.jsonl').state.token_count)\n"
        "try: ot.audit_logs('bad.jsonl')\n"
        "except ValueError as problem: print(problem)\n"
    )
    count, message = run(patched, "-c", program).splitlines()
    assert count == "2"
    assert "malformed tgi record" in message and "id, text and logprob" in message


def test_the_experiment_runs_and_resumes(patched):
    run(patched, "-m", "opdtheory", "run", "random-pairs", "--out", "runs")
    record = json.loads((patched / "runs" / "record.json").read_text(encoding="utf-8"))
    assert [row["level"] for row in record["rows"]] == [0.3, 1.0, 3.0]
    assert all(0 < row["share"] < 1 for row in record["rows"])
    run(patched, "-m", "opdtheory", "run", "random-pairs", "--out", "runs", "--resume")
    again = json.loads((patched / "runs" / "record.json").read_text(encoding="utf-8"))
    assert again["rows"] == record["rows"] and len(again["reused_parts"]) == 3
