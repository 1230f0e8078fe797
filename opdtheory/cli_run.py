"""``opdtheory run``: start an experiment, resume it, or list what there is."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Column, Table

from . import experiments


def run(
    experiment: Annotated[str | None, typer.Argument(help="Name of the experiment; see --list.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML or JSON file overriding the defaults.")] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder; default runs/EXPERIMENT.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Reuse the finished parts found in the folder.")
    ] = False,
    student: Annotated[
        str | None, typer.Option(help="Model folder or GGUF file of the student or trained model.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="Model folder or GGUF file of the teacher.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed; overrides the config's.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Name the experiments and what each needs.")] = False,
) -> None:
    """Run a simulation or a real-model experiment; finished parts stay on disk and --resume goes on from
    there.
    """
    if list_:
        _print_list()
        return
    if experiment is None:
        _refuse("run: no experiment named; `opdtheory run --list` shows them")
    try:
        settings = read_config(config) if config is not None else {}
        for key, path in (("student", student), ("teacher", teacher)):
            if path is not None:
                given = settings.get(key, {})
                if not isinstance(given, dict):
                    raise ValueError(f"{config}: {key} is {given!r}, expected a table of its settings")
                settings[key] = {**given, "path": path}
        if seed is not None:
            settings["seed"] = seed
        record = experiments.run_experiment(experiment, settings, out, resume=resume, quiet=False)
    except (ValueError, OSError) as error:
        _refuse(str(error))
    _print_report(record)
    folder = out or Path("runs") / experiment
    if record.get("report"):
        from opdtheory.report.run import write_run

        Console().print(f"report: {write_run(record, folder)}")
    Console().print(f"record: {folder / 'record.json'}  ({record['seconds']} s)")


def read_config(path: Path) -> dict[str, Any]:
    """A configuration from TOML (``.toml``) or JSON; ValueError naming the file and the fault."""
    try:
        text = path.read_text()
        value = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror}); expected a TOML or JSON file"
        ) from error
    except (tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: got {type(value).__name__}, expected a table of settings")
    return value


def _refuse(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(2)


def _print_list() -> None:
    table = Table(Column("experiment", no_wrap=True), "what it does", "needs", "defaults")
    for exp in experiments.load_all().values():
        absent = experiments.missing(exp)
        needs = ", ".join(f"{m} (missing)" if m in absent else m for m in exp.needs) or "core"
        table.add_row(exp.name, exp.summary, needs, ", ".join(exp.defaults))
    Console().print(table)


def _print_report(record: dict[str, Any]) -> None:
    console = Console()
    report = record.get("report", {})
    for paragraph in report.get("paragraphs", []):
        console.print(paragraph)
    for data in report.get("tables", []):
        table = Table(*data["columns"], title=data.get("caption"))
        for row in data["rows"]:
            table.add_row(*[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row])
        console.print(table)
