"""The experiment registry: configuration, records, resuming, the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from opdtheory import cli_run, experiments
from opdtheory.experiments import experiment, jsonable, merged, run_experiment, write_json

app = typer.Typer()
app.command()(cli_run.run)
cli = CliRunner()


@pytest.fixture
def toy(monkeypatch):
    """An experiment of three parts that counts how often each is computed and can be made to fail."""
    monkeypatch.setattr(experiments, "_REGISTRY", dict(experiments.load_all()))
    seen = {"calls": [], "fail_at": None}

    @experiment("toy", summary="adds", defaults={"seed": 1, "student": {"path": None, "bits": 4}})
    def toy(run):
        def part(i):
            seen["calls"].append(i)
            if seen["fail_at"] == i:
                raise KeyboardInterrupt
            return i * run.config["seed"]

        values = [run.part(f"p{i}", lambda i=i: part(i)) for i in run.track(range(3), "toy")]
        tables = [{"caption": "values", "columns": ["a", "b"], "rows": [[1.23456, "x"]]}]
        curve = {"kind": "lines", "title": "Sums", "x_label": "x", "y_label": "y", "series": {"a": values}}
        report = {"paragraphs": ["done"], "tables": tables, "figures": [curve]}
        return {"values": values, "array": np.arange(2.0), "report": report}

    return seen


def test_a_record_says_what_was_run(toy, tmp_path):
    record = run_experiment("toy", {"seed": 2, "student": {"bits": 8}}, tmp_path)
    assert record == json.loads((tmp_path / "record.json").read_text())
    assert record["values"] == [0, 2, 4] and record["array"] == [0.0, 1.0]
    assert record["config"] == {"seed": 2, "student": {"path": None, "bits": 8}}
    assert record["experiment"] == "toy" and record["versions"]["numpy"] == np.__version__
    assert record["command"] and record["date"].endswith("Z") and record["seconds"] >= 0


def test_an_interrupted_run_goes_on_from_its_finished_parts(toy, tmp_path):
    toy["fail_at"] = 2
    with pytest.raises(KeyboardInterrupt):
        run_experiment("toy", None, tmp_path)
    assert not (tmp_path / "record.json").exists()
    spent = json.loads((tmp_path / "elapsed.json").read_text())["seconds"]
    (tmp_path / "parts" / ".p2.17.json").write_text("half")  # what a killed process was writing
    toy["fail_at"], toy["calls"] = None, []
    record = run_experiment("toy", None, tmp_path, resume=True)
    assert toy["calls"] == [2]
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == ["p0.json", "p1.json", "p2.json"]
    assert record["values"] == [0, 1, 2] and record["reused_parts"] == ["p0", "p1"]
    assert record["seconds"] >= spent
    toy["calls"] = []
    assert run_experiment("toy", None, tmp_path)["reused_parts"] == [] and toy["calls"] == [0, 1, 2]


def test_resuming_with_other_settings_is_refused(toy, tmp_path):
    run_experiment("toy", {"seed": 5}, tmp_path)
    with pytest.raises(ValueError, match=r"seed=5 \(now 6\)"):
        run_experiment("toy", {"seed": 6}, tmp_path, resume=True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sed": 1}, "config: unknown key 'sed'; expected one of seed, student"),
        ({"student": {"bit": 1}}, "config.student: unknown key 'bit'"),
        ({"student": "x"}, "config.student: got 'x', expected a mapping"),
        ({"seed": "x"}, "config.seed: got 'x', expected a number"),
        ({"seed": True}, "config.seed: got True, expected a number"),
        ({"student": {"bits": [4]}}, r"config.student.bits: got \[4\], expected a number"),
    ],
)
def test_bad_configurations_are_refused(toy, tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        run_experiment("toy", config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_settings_of_several_kinds_are_named():
    assert merged({"prompts": 3, "drop_layers": "auto"}, {"prompts": ["x"], "drop_layers": [1]}) == {
        "prompts": ["x"],
        "drop_layers": [1],
    }
    with pytest.raises(ValueError, match="prompts: got 'x', expected a number or a list"):
        merged({"prompts": 3}, {"prompts": "x"})


def test_a_run_started_afresh_never_reuses_what_another_left(toy, tmp_path):
    run_experiment("toy", {"seed": 5}, tmp_path)
    toy["fail_at"] = 1
    with pytest.raises(KeyboardInterrupt):
        run_experiment("toy", {"seed": 6}, tmp_path)
    toy["fail_at"], toy["calls"] = None, []
    record = run_experiment("toy", {"seed": 6}, tmp_path, resume=True)
    assert toy["calls"] == [1, 2] and record["values"] == [0, 6, 12]
    (tmp_path / "config.json").unlink()
    toy["calls"] = []
    run_experiment("toy", {"seed": 7}, tmp_path, resume=True)
    assert toy["calls"] == [0, 1, 2]


def test_folders_are_declared_and_cleared_with_the_parts(toy, tmp_path):
    @experiment("keeper", summary="", folders=["kept"])
    def keeper(run):
        (run.folder("kept") / f"{len(list(run.folder('kept').iterdir()))}.txt").touch()
        return {"files": len(list(run.folder("kept").iterdir()))}

    assert run_experiment("keeper", None, tmp_path)["files"] == 1
    assert run_experiment("keeper", None, tmp_path, resume=True)["files"] == 2
    assert run_experiment("keeper", None, tmp_path)["files"] == 1

    @experiment("stray", summary="")
    def stray(run):
        return {"path": str(run.folder("elsewhere"))}

    with pytest.raises(ValueError, match="folder 'elsewhere': stray declares none"):
        run_experiment("stray", None, tmp_path / "stray")


def test_a_failed_check_leaves_no_trace(toy, tmp_path):
    def check(config):
        raise ValueError("not today")

    @experiment("choosy", summary="", check=check)
    def choosy(run):
        raise AssertionError("the check comes first")

    with pytest.raises(ValueError, match="not today"):
        run_experiment("choosy", None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_and_misplaced_results_are_named(toy, tmp_path):
    run_experiment("toy", None, tmp_path)
    (tmp_path / "parts" / "p1.json").write_text("{")
    with pytest.raises(ValueError, match=r"p1\.json: .*expected JSON that this package wrote"):
        run_experiment("toy", None, tmp_path, resume=True)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file: a file; expected a folder"):
        run_experiment("toy", None, tmp_path / "file")


def test_unknown_experiments_and_missing_packages_are_refused(toy, tmp_path):
    with pytest.raises(ValueError, match=r"no experiment 'toys'; known: .*toy"):
        run_experiment("toys", None, tmp_path)

    @experiment("needy", summary="", needs=["surely_not_installed"])
    def needy(run):
        return {}

    with pytest.raises(ValueError, match="needs surely_not_installed"):
        run_experiment("needy", None, tmp_path)
    with pytest.raises(ValueError, match="already registered"):
        experiment("toy", summary="again")(needy)


def test_defaults_are_not_changed_by_merging():
    defaults = {"a": {"b": 1}, "free": {}}
    assert merged(defaults, {"a": {"b": 2}, "free": {"x": 3}}) == {"a": {"b": 2}, "free": {"x": 3}}
    assert defaults == {"a": {"b": 1}, "free": {}}


def test_records_hold_no_nan_and_spell_infinities():
    found = jsonable({"x": np.array([1.0, np.inf]), "y": (-np.inf, None, True)})
    assert found == {"x": [1.0, "inf"], "y": ["-inf", None, True]}
    with pytest.raises(ValueError, match="NaN"):
        jsonable([float("nan")])
    with pytest.raises(ValueError, match="type set"):
        jsonable({1, 2})


def test_a_write_replaces_the_file_instead_of_changing_it(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with path.open() as reader:
        write_json(path, {"x": 2})
        assert json.loads(reader.read()) == {"x": 1}
    assert json.loads(path.read_text()) == {"x": 2}


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(TypeError):
        write_json(path, {"x": object()})
    assert json.loads(path.read_text()) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_the_command_runs_resumes_and_lists(toy, tmp_path):
    config = tmp_path / "c.toml"
    config.write_text("seed = 3\n[student]\nbits = 2\n")
    out = tmp_path / "out"
    result = cli.invoke(app, ["toy", "--config", str(config), "--out", str(out), "--student", "some/path"])
    assert result.exit_code == 0, result.output
    assert "done" in result.output and "1.235" in result.output
    assert json.loads((out / "record.json").read_text())["config"] == {
        "seed": 3,
        "student": {"path": "some/path", "bits": 2},
    }
    page = (out / "report.html").read_text()
    assert "done" in page and "1.235" in page and page.count("data:image/svg+xml;base64,") == 1
    assert (out / "figures" / "toy-sums.svg").exists() and "https://" not in page
    changed = ["toy", "--config", str(config), "--out", str(out), "--student", "other", "--resume"]
    again = cli.invoke(app, changed)
    assert again.exit_code == 2 and "some/path" in again.output
    listed = cli.invoke(app, ["--list"], env={"COLUMNS": "200"})
    assert listed.exit_code == 0 and "toy" in listed.output and "mismatch" in listed.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no experiment named"),
        (["nothing"], "no experiment 'nothing'"),
        (["toy", "--config", "nowhere.toml"], "nowhere.toml: cannot be read"),
        (["toy", "--config", "bad.toml"], "bad.toml"),
        (["toy", "--config", "list.json"], "list.json: got list, expected a table"),
        (["toy", "--teacher", "x"], "unknown key 'teacher'"),
        (["toy", "--config", "text.json", "--student", "x"], "text.json: student is 'y', expected a table"),
    ],
)
def test_bad_input_exits_with_two_and_one_line(toy, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.toml").write_text("seed = = 1")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "text.json").write_text('{"student": "y"}')
    result = cli.invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.output and "Traceback" not in result.output
    assert len(result.output.strip().splitlines()) == 1
