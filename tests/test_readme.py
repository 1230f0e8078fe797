"""README tells the truth of today: its Python runs, its shell lines run, its tables are fresh, its links lead somewhere."""

from __future__ import annotations

import re
import shlex

import pytest
from typer.testing import CliRunner

from opdtheory import checker, cli
from opdtheory.report.readme import full_table, with_outputs, with_summary, without_times
from opdtheory.verification.engine import ROOT
from opdtheory.verification.runner import load_record

README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.S)
SHELL = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, flags=re.S)
    for line in block.splitlines()
    if line.strip()
]
COMMANDS = [line for line in SHELL if line.startswith("opdtheory ")]


def test_readme_shows_python_and_commands():
    assert len(PYTHON) >= 2 and len(COMMANDS) >= 6


@pytest.mark.parametrize("code", PYTHON, ids=lambda c: c.strip().splitlines()[2][:30])
def test_python_blocks_run(code):
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("line", COMMANDS)
def test_command_lines_run(line, tmp_path, monkeypatch):
    cli.mount()
    words = shlex.split(line)[1:]
    words = [w.replace("build/", f"{tmp_path}/") for w in words]
    words = [str(p) for w in words for p in (sorted(ROOT.glob(w)) if "*" in w else [w])]
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.output + done.stderr


def test_the_checker_line_names_a_confirmed_certificate():
    (path,) = re.findall(r"python -I opdtheory/checker.py (\S+)", README)
    assert checker.check(ROOT / path).confirmed


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert {line.split()[1] for line in SHELL if line.startswith("make ")} <= targets


def test_tables_are_fresh():
    record = load_record()
    assert with_summary(README, record) == README, "run: python -m opdtheory.report.readme"
    assert (ROOT / "docs/verdicts.md").read_text(encoding="utf-8") == full_table(record)


def test_shown_output_is_what_the_commands_print():
    fresh = with_outputs(README, load_record())
    assert fresh.count("```console") == README.count("```console") >= 5
    assert without_times(fresh) == without_times(README), "run: python -m opdtheory.report.readme"


def test_links_lead_somewhere():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        # a target has a dot or a slash; formulas such as E[X](c) have neither
        for target in re.findall(r"\]\(([^)#:\s]*[./][^)#:\s]*)(?:#[^)]*)?\)", prose):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
