"""Power of the search: the planted statements, three seeds of them, and the recorded measurement."""

from __future__ import annotations

import json
from dataclasses import replace

import jsonschema
import pytest

from opdtheory import cli
from opdtheory.verification import planted, power
from opdtheory.verification.engine import ROOT
from opdtheory.verification.searching import BUDGETS, search
from tests.tolerance import LOOSE64

SCHEMA = json.loads((ROOT / "opdtheory/data/power.schema.json").read_text(encoding="utf-8"))


def test_every_false_statement_is_one_slip_from_a_true_one():
    true = {claim.id: claim for claim in planted.TRUE}
    assert len(planted.FALSE) >= 25 and len(true) >= 25
    assert len({claim.id for claim in planted.FALSE}) == len(planted.FALSE) == len(planted.SLIPS)
    for claim in planted.FALSE:
        near = true[claim.id.partition("/")[0]]
        changed = [f for f in ("space", "sides", "relation", "scale", "signed") if getattr(claim, f) != getattr(near, f)]
        assert changed and planted.SLIPS[claim.id], claim.id
        if claim.id.endswith("/cut") and changed == ["scale"]:
            assert 0.97 < claim.scale < 1, "a constant just below the true one"


@pytest.mark.parametrize("seed", [101, 102, 103])
def test_the_false_are_refuted_and_the_true_are_not(seed):
    """Default effort on the false statements; the recorded measurement spends it on the true ones as well."""
    results = [power.trial(claim, True, seed) for claim in planted.FALSE]
    results += [power.trial(claim, False, seed, BUDGETS["quick"]) for claim in planted.TRUE]
    found = power.summary(results)
    assert found["missed"] == [] and found["false_alarms"] == []
    assert found["slowest_refutation_seconds"] < power.SECONDS_ALLOWED
    assert found["goal_met"]


def test_the_summary_sees_misses_slowness_and_false_alarms():
    def result(false: bool, seed: int, refuted: bool, seconds: float = 1.0) -> power.Trial:
        return power.Trial("planted.f" if false else "planted.t", false, seed, refuted, seconds, None, "")

    good = [result(True, s, s > 0) for s in range(20)] + [result(False, s, False) for s in range(20)]
    assert power.summary(good)["goal_met"] and power.summary(good)["lowest_rate"] == 19 / 20
    twice = [result(True, s, s > 1) for s in range(20)] + good[20:]
    assert not power.summary(twice)["goal_met"] and len(power.summary(twice)["missed"]) == 2
    assert not power.summary([*good[:19], result(True, 19, True, 11.0), *good[20:]])["goal_met"]
    alarmed = power.summary([*good[:-1], result(False, 19, True)])
    assert not alarmed["goal_met"] and alarmed["false_alarms"] == ["planted.t (seed 19)"]


def test_the_record_is_fresh_complete_and_meets_the_goal():
    record = power.load_record()
    jsonschema.validate(record, SCHEMA)
    assert record["fingerprint"] == power.fingerprint(), "the statements or the budget changed: opdtheory power --record"
    assert record["seeds"] == list(range(20))
    rows = {row["id"]: row for row in record["statements"]}
    assert set(rows) == {claim.id for claim in (*planted.FALSE, *planted.TRUE)}
    for claim in planted.FALSE:
        row = rows[claim.id]
        assert len(row["refuted"]) >= 19 and sorted(row["refuted"] + row["not_refuted"]) == record["seeds"]
        assert max(row["seconds"]) <= power.SECONDS_ALLOWED and row["slip"] == planted.SLIPS[claim.id]
    assert [rows[claim.id]["refuted"] for claim in planted.TRUE] == [[]] * len(planted.TRUE)
    done = power.finished(power.RECORD, record["fingerprint"], 20)
    assert power.document(done, record["fingerprint"])["summary"] == record["summary"], "the summary is that of the rows"


def test_constants_are_cut_just_below_the_supremum():
    """The record shows it: each true statement that is cut comes within half a percent of equality in some seed."""
    rows = {row["id"]: row for row in power.load_record()["statements"]}
    for claim in planted.FALSE:
        near = rows[claim.id.partition("/")[0]]
        if claim.id.endswith("/cut") and near["best_ratio"][0] is not None:
            assert max(near["best_ratio"]) > 0.99 and max(near["best_ratio"]) <= 1 + LOOSE64, claim.id


def test_the_fingerprint_follows_the_statements(monkeypatch):
    before = power.fingerprint()
    assert power.fingerprint() == before
    monkeypatch.setattr(power, "FALSE", (planted.FALSE[0].scaled(2), *planted.FALSE[1:]))
    assert power.fingerprint() != before


@pytest.fixture
def two(monkeypatch):
    """Two statements only, and the seeds that were really run."""
    chosen = {c.id: c for c in (*planted.FALSE, *planted.TRUE)}
    monkeypatch.setattr(power, "FALSE", (chosen["planted.am-gm/cut"],))
    monkeypatch.setattr(power, "TRUE", (chosen["planted.am-gm"],))
    ran: list[int] = []

    def counted(claim, seed=0, budget=None):
        ran.append(seed)
        if seed == 2 and "stop" in counted.__dict__:
            raise KeyboardInterrupt
        return search(claim, seed=seed, budget=budget)

    monkeypatch.setattr(power, "search", counted)
    return ran, counted


def test_an_interrupted_measurement_goes_on(two, tmp_path):
    ran, counted = two
    path = tmp_path / "power.json"
    counted.stop = True
    with pytest.raises(KeyboardInterrupt):
        power.measure(4, path)
    assert json.loads(path.read_text())["seeds"] == [0, 1]
    del counted.stop
    ran.clear()
    document = power.measure(4, path, resume=True)
    assert sorted(set(ran)) == [2, 3], "the finished seeds are taken over"
    jsonschema.validate(document, SCHEMA)
    assert document == json.loads(path.read_text()) and document["seeds"] == [0, 1, 2, 3]
    ran.clear()
    path.write_text(path.read_text().replace(document["fingerprint"], "0" * 64))
    power.measure(1, path, resume=True)
    assert set(ran) == {0}, "a record of other statements is not taken over"


def test_the_command_reports_and_exits_with_the_goal(two, tmp_path, capsys, monkeypatch):
    def run(*words: str) -> int:
        cli.mount()
        with pytest.raises(SystemExit) as left:
            cli.app(["power", "--json", str(tmp_path / "p.json"), *words], prog_name="opdtheory")
        return int(left.value.code or 0)

    assert run("--seeds", "2") == 0
    shown = capsys.readouterr().out
    assert "planted.am-gm/cut" in shown and "2/2" in shown and "1 true ones: 0 refuted" in " ".join(shown.split())
    (missed,) = (replace(claim, id=power.FALSE[0].id) for claim in power.TRUE)
    monkeypatch.setattr(power, "FALSE", (missed,))
    assert run("--seeds", "1") == 1
    (tmp_path / "p.json").write_text("{")
    assert run("--seeds", "1", "--resume") == 2
