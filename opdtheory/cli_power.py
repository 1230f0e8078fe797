"""``opdtheory power``: how often the attack refutes what is false, and that it refutes nothing true."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from opdtheory.verification import power as measurement
from opdtheory.verification.interruption import terminable


def power(
    seeds: Annotated[int, typer.Option(min=1, help="Every planted statement is attacked with the seeds 0 to N − 1.")] = 20,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Take over the seeds that an interrupted run finished.")] = False,
    json_file: Annotated[Path, typer.Option("--json", help="The measurement, kept up to date after each seed.")] = Path("build/power.json"),
    record: Annotated[bool, typer.Option("--record", help="Write the committed record instead (maintainers).")] = False,
) -> None:
    """Attack planted statements, true and false, with many seeds; exit 1 if a false one survives too often or a true one dies."""
    from opdtheory.report.tables import power_table

    out, err = Console(), Console(stderr=True, soft_wrap=True)
    path = measurement.RECORD if record else json_file
    columns = (TextColumn("attacking the planted statements"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=err, transient=True) as progress, terminable():
            task = progress.add_task("seeds", total=seeds)
            document = measurement.measure(seeds, path, jobs, resume, lambda _seed: progress.update(task, advance=1))
    except KeyboardInterrupt:
        err.print(f"interrupted; the finished seeds are in {path}, and --resume goes on from there", markup=False, highlight=False)
        raise typer.Exit(130) from None
    except (OSError, ValueError) as problem:
        err.print(f"opdtheory power: {path}: {problem}", style="red", markup=False, highlight=False)
        raise typer.Exit(2) from None
    out.print(power_table(document))
    err.print(f"written to {path}", markup=False, highlight=False)
    raise typer.Exit(0 if document["summary"]["goal_met"] else 1)
