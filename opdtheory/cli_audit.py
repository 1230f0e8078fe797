"""``opdtheory audit`` and ``opdtheory audit-diff``: parse, call, print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from .audit import audit_logs, compare, conditions
from .calculator import jsonable


def audit(
    paths: Annotated[list[str], typer.Argument(help="Files or folders of rollout logs.")],
    format: Annotated[
        str | None, typer.Option(help="jsonl, json, npz, safetensors, parquet or pt; default: by content.")
    ] = None,
    reward_range: Annotated[
        tuple[float, float] | None, typer.Option(help="Smallest and largest possible reward.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Sampler temperature; divides full logits.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Sampler top-p; cuts the rollout policy's full logits.")] = 1.0,
    tokenizer: Annotated[Path | None, typer.Option(help="Tokenizer folder, to show token texts.")] = None,
    group: Annotated[str | None, typer.Option(help="Column that names the prompt of a sequence.")] = None,
    confidence: Annotated[float, typer.Option(help="Confidence of intervals and certificates.")] = 0.95,
    compat: Annotated[
        list[str] | None,
        typer.Option(
            help="Also report a trainer's own formulas: verl, verl-sequence-is, nemo-rl, slime, ms-swift."
        ),
    ] = None,
    alpha: Annotated[float, typer.Option(help="TOP-D's mixing weight.")] = 0.1,
    redact: Annotated[bool, typer.Option("--redact", help="Leave out token texts and file names.")] = False,
    fail_on: Annotated[
        str | None, typer.Option(help="Exit 1 if this holds, for example 'kl_rollout_train/mean > 0.01'.")
    ] = None,
    engine: Annotated[str, typer.Option(help="local or ray.")] = "local",
    jobs: Annotated[int, typer.Option(help="Processes; -1 for all cores.")] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the finished parts of an interrupted audit.")
    ] = False,
    json_: Annotated[Path | None, typer.Option("--json", help="Write the report as JSON.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as one HTML page.")] = None,
) -> None:
    """Read real rollout logs and say what divergences, bounds, masks and estimators say about them."""
    parts = Path(f"{json_ or html or 'audit'}.parts")
    try:
        if fail_on is not None:
            conditions.check_syntax(fail_on)
        for target in (json_, html):
            if target is not None and not target.parent.is_dir():
                raise ValueError(f"{target}: no folder {target.parent}; expected an existing folder")
        texts = _token_texts(tokenizer)
        if not resume:
            _clear(parts)
        with Progress(
            transient=True, disable=not Console(stderr=True).is_terminal, console=Console(stderr=True)
        ) as bar:
            task = bar.add_task("reading", total=None)
            report = audit_logs(
                paths,
                format=format,
                jobs=jobs,
                engine=engine,
                store=parts,
                strict=False,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
                reward_range=reward_range,
                temperature=temperature,
                top_p=top_p,
                group=group,
                confidence=confidence,
                compat=tuple(compat or ()),
                redact=redact,
                alpha=alpha,
                token_texts=texts,
            )
    except ValueError as error:
        _refuse(str(error))
    except KeyboardInterrupt:
        typer.echo(f"interrupted; finished parts are in {parts}, go on with --resume", err=True)
        raise typer.Exit(130) from None
    document = report.to_dict()
    if json_ is not None:
        _write(json_, json.dumps(document, indent=1, allow_nan=False))
    if html is not None:
        _write(html, report.to_html())
    _clear(parts)
    if report.state.sequence_count:
        Console().print(report.table())
    for line in report.errors:
        typer.echo(f"error: {line}", err=True)
    if report.errors:
        raise typer.Exit(2)
    if fail_on is not None:
        _decide(fail_on, conditions.absent_warnings(fail_on, conditions.values_of(document)))


def audit_diff(
    a: Annotated[Path, typer.Argument(help="Report written by audit --json.")],
    b: Annotated[Path, typer.Argument(help="Report to compare with it.")],
    json_: Annotated[Path | None, typer.Option("--json", help="Write the differences as JSON.")] = None,
) -> None:
    """Compare two audits; exit 1 where a metric moved beyond both intervals."""
    try:
        left, right = compare.load(a), compare.load(b)
        rows = compare.differences(left, right)
    except ValueError as error:
        _refuse(str(error))
    if json_ is not None:
        _write(
            json_,
            json.dumps(
                jsonable({"schema_version": "1.0", "a": str(a), "b": str(b), "differences": rows}),
                indent=1,
                allow_nan=False,
            ),
        )
    Console().print(compare.table(rows, left, right))
    if any(row["separated"] for row in rows):
        raise typer.Exit(1)


def _decide(expression: str, values: dict[str, float | None]) -> None:
    try:
        failed = conditions.fails(expression, values)
    except conditions.Undecided as error:
        typer.echo(f"undecided: {expression}: {error}", err=True)
        raise typer.Exit(3) from None
    except ValueError as error:
        _refuse(str(error))
    if failed:
        typer.echo(f"failed: {expression}", err=True)
        raise typer.Exit(1)


def _token_texts(folder: Path | None) -> Path | None:
    if folder is not None and not folder.exists():
        raise ValueError(
            f"--tokenizer {folder}: no such file or folder; expected a tokenizer folder or tokenizer.json"
        )
    return folder


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        _refuse(f"{path}: cannot be written ({error.strerror})")


def _clear(folder: Path) -> None:
    """Remove finished parts, and only those."""
    if folder.is_dir():
        for part in [*folder.glob("*.json"), *folder.glob("*.tmp")]:
            part.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()


def _refuse(message: str) -> None:
    typer.echo(message, err=True)
    raise typer.Exit(2)
