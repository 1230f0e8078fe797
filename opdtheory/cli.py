"""The command line: parses, calls, prints.

Exit codes: 0 good; 1 a difference, a failed condition or a refused certificate; 2 bad input; 3 undecided where a
decision was asked for.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from typer.core import TyperGroup

import opdtheory
from opdtheory.bounds.registry import REGISTRY
from opdtheory.verification import runner
from opdtheory.verification.ascent import SidesError
from opdtheory.verification.certificate import file_name, write_json
from opdtheory.verification.claim import Claim
from opdtheory.verification.interruption import terminable
from opdtheory.verification.registry import load_catalogue
from opdtheory.verification.replay import replay
from opdtheory.verification.resume import FinishedVerdicts
from opdtheory.verification.searching import BUDGETS, search
from opdtheory.verification.userclaims import load_user_claims
from opdtheory.workers import workers

WrongUsage: Any = typer.BadParameter.__base__  # click's UsageError, from whichever click Typer carries


class Commands(TyperGroup):
    """Commands whose wrong usage is reported like any other bad input: one line on stderr, exit 2."""

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, standalone_mode: bool = True, **extra: Any
    ) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        if not standalone_mode:
            return super().main(words, standalone_mode=False, **extra)
        try:
            code = super().main(words, standalone_mode=False, **extra)
        except WrongUsage as problem:
            if type(problem).__name__ == "NoArgsIsHelpError":  # its message is the help text
                print(problem.format_message())
            else:
                where = problem.ctx.command_path if problem.ctx is not None else "opdtheory"
                err.print(f"{where}: {_usage(problem, words)}", style="red", highlight=False, markup=False)
            sys.exit(problem.exit_code)
        sys.exit(code if isinstance(code, int) else 0)


def _usage(problem: Any, words: list[str]) -> str:
    """What is wrong with a command line, in one line that also quotes the value given to the option at fault."""
    text = " ".join(problem.format_message().split())
    for option in getattr(getattr(problem, "param", None), "opts", ()):
        given = [w.partition("=")[2] for w in words if w.startswith(f"{option}=")]
        given += [b for a, b in pairwise(words) if a == option]
        if option.startswith("-") and given and repr(given[-1]) not in text:
            return f"{text} (got {given[-1]!r})"
    return text


app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=opdtheory.__doc__)
out = Console()
err = Console(stderr=True, soft_wrap=True)
PARTS = Path("build") / "verify"
"""Where the finished verdicts of a run lie until it is complete."""


class Effort(StrEnum):
    quick = "quick"
    default = "default"
    thorough = "thorough"


class SourceKey(StrEnum):
    topd = "topd"
    opd = "opd"
    trm = "trm"
    tropd = "tropd"
    dppo = "dppo"
    ours = "ours"


class Engine(StrEnum):
    local = "local"
    ray = "ray"


JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the result as JSON to this file.")]
SourceOption = Annotated[SourceKey | None, typer.Option(help="Only claims of this source.")]


def refuse(message: str) -> typer.Exit:
    """Print one line on stderr and leave with the exit code for bad input."""
    err.print(message, style="red", highlight=False, markup=False)
    return typer.Exit(2)


def _version(value: bool) -> None:
    if value:
        print(f"opdtheory {opdtheory.__version__}")
        raise typer.Exit()


@app.callback()
def _root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    pass


def _claim(claim_id: str) -> Claim:
    try:
        return load_catalogue().get(claim_id)
    except KeyError as problem:
        raise refuse(f"opdtheory: {problem.args[0]}") from None


def _recorded() -> dict[str, Any]:
    if not runner.RECORD.exists():
        return {}
    return {row["id"]: row for row in runner.load_record()["claims"]}


@app.command("list")
def list_claims(
    source: SourceOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Every claim with its locator, title and recorded status."""
    from opdtheory.report.tables import claims_table

    recorded = _recorded()
    rows = []
    for claim in load_catalogue():
        key = claim.source.key if claim.source else "user"
        if source is not None and key != source.value:
            continue
        row = recorded.get(claim.id, {})
        rows.append(
            {"id": claim.id, "source": key, "locator": claim.locator, "title": claim.title,
             "as_printed": row.get("as_printed"), "status": row.get("status")}
        )  # fmt: skip
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        out.print(claims_table(rows))


@app.command()
def show(claim_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Statement, hypotheses, verdict, evidence, counterexamples or witness of one claim."""
    from opdtheory.report.tables import claim_page

    # `bounds` and `plan` name some forms of a bound that one entry proves together
    form = REGISTRY.get(claim_id)
    claim = _claim(claim_id if form is None else form.claim)
    if claim.id != claim_id:
        out.print(f"{claim_id}: a form of {claim.id}", markup=False, highlight=False)
    out.print(claim_page(claim, _recorded().get(claim.id)))


def _select(targets: list[str] | None, source: SourceKey | None) -> tuple[list[Claim], list[Path]]:
    """The claims that were asked for, each once, and the user's files that define some of them."""
    catalogue = load_catalogue()
    chosen: list[Claim] = []
    files: list[Path] = []
    for target in dict.fromkeys(targets or []):
        if target.endswith(".py"):
            try:
                chosen += load_user_claims(Path(target))
            except (OSError, ValueError) as problem:
                raise refuse(f"opdtheory: {problem}") from None
            files.append(Path(target))
        else:
            chosen.append(_claim(target))
    if not targets:
        chosen = list(catalogue)
    if source is not None:
        chosen = [c for c in chosen if c.source is not None and c.source.key == source.value]
    if not chosen:
        raise refuse("opdtheory: no claims selected")
    ids = [c.id for c in chosen]
    if len(set(ids)) < len(ids):
        raise refuse(f"opdtheory: two of the claims selected are named {next(i for i in ids if ids.count(i) > 1)}")
    return chosen, files


@app.command("verify")
def verify_command(
    targets: Annotated[list[str] | None, typer.Argument(metavar="[ID… | my_claims.py]")] = None,
    source: SourceOption = None,
    effort: Annotated[Effort, typer.Option(help="quick replays certificates; thorough adds mutants and wide sweeps.")] = Effort.default,
    seed: Annotated[int, typer.Option(help="The only source of randomness.")] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    engine: Annotated[Engine, typer.Option(help="Where the processes run.")] = Engine.local,
    json_file: JsonFile = None,
    html: Annotated[Path | None, typer.Option(help="Write a self-contained report.")] = None,
    certificates: Annotated[Path | None, typer.Option(help="Write certificates of refuted claims into this folder; build/certificates for a file of claims.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Compare with the committed record; exit 1 on a difference.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Take over the verdicts that an interrupted run finished.")] = False,
    record: Annotated[bool, typer.Option("--record", help="Make this run the committed record (maintainers).")] = False,
) -> None:
    """Give claims their verdicts.

    Finished verdicts are kept in build/verify until the run is complete, so that --resume goes on after an interruption.
    """
    from opdtheory.report.tables import verdict_table

    claims, files = _select(targets, source)
    if record and (targets or source is not None):
        raise refuse("opdtheory: --record makes a whole run the record; expected no ids and no --source")
    begin = time.perf_counter()
    parts = FinishedVerdicts(PARTS, effort.value, seed, files)
    loaded = {claim.id: parts.load(claim) for claim in claims} if resume else {}
    finished = {claim_id: verdict for claim_id, verdict in loaded.items() if verdict is not None}
    done: list[Any] = list(finished.values())
    stopped: str | None = None
    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task("verifying", total=len(claims), completed=len(done))

        def on_done(verdict: Any) -> None:
            parts.store(verdict)
            done.append(verdict)
            progress.update(task, advance=1, description=verdict.claim.id)

        try:
            with terminable(), workers(engine.value, jobs):
                verdicts = runner.run(claims, effort.value, seed, jobs, on_done, finished)
        except KeyboardInterrupt:
            verdicts, stopped = runner.settle(done), "interrupted"
        except BrokenProcessPool:
            verdicts, stopped = runner.settle(done), "a worker process died"
        except (ValueError, OSError) as problem:
            raise refuse(f"opdtheory: {problem}") from None
    if finished:
        err.print(f"{len(finished)} of {len(claims)} verdicts taken over from an interrupted run", markup=False, highlight=False)
    document = runner.results(verdicts, effort.value, seed, time.perf_counter() - begin)
    if certificates is None and files:
        certificates = Path("build") / "certificates"
    if certificates is not None:
        runner.write_certificates(verdicts, certificates)
        err.print(f"certificates: {certificates}", markup=False, highlight=False)
    if json_file is not None:
        write_json(json_file, document)
    if html is not None:
        from opdtheory.report.page import write_report

        write_report(document, verdicts, html)
    out.print(verdict_table(document))
    for line in document["summary"]["disagreements"]:
        err.print(line, style="yellow", highlight=False, markup=False)
    if stopped is not None:
        err.print(f"{stopped} after {len(verdicts)} of {len(claims)} claims, which are kept; --resume goes on from there",
                  markup=False, highlight=False)  # fmt: skip
        raise typer.Exit(130 if stopped == "interrupted" else 1)
    parts.discard(claims)
    if record:
        runner.write_record(verdicts, document)
    failed = bool(document["summary"]["disagreements"])
    if check:
        differences = runner.differences(document, runner.load_record())
        for line in differences:
            err.print(f"differs from the record: {line}", style="red", highlight=False, markup=False)
        failed = failed or bool(differences)
    raise typer.Exit(1 if failed else 0)


@app.command("search")
def search_command(
    claim_id: Annotated[str, typer.Argument(metavar="ID")],
    seconds: Annotated[float | None, typer.Option(min=0, help="Search this long (not reproducible).")] = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="Rounds of ascent per size (reproducible).")] = None,
    seed: Annotated[int, typer.Option()] = 0,
    vocab: Annotated[int | None, typer.Option(min=1)] = None,
    horizon: Annotated[int | None, typer.Option(min=1)] = None,
    scale: Annotated[str | None, typer.Option(help="Multiply the right-hand side by this number.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Maximise lhs/(C·rhs); print the best ratio and instance; write a certificate when the claim is refuted."""
    from fractions import Fraction

    from opdtheory.report.tables import search_summary

    claim = _claim(claim_id)
    if scale is not None:
        try:
            claim = claim.scaled(Fraction(scale))
        except ValueError as problem:
            raise refuse(f"opdtheory: --scale {scale}: {problem}") from None
    if claim.space is None:
        raise refuse(f"opdtheory: {claim.id} is {claim.form}: there is nothing to search")
    sizes = claim.space.sizes
    if vocab is not None or horizon is not None:
        wanted = {k: v for k, v in (("vocab", vocab), ("horizon", horizon)) if v is not None}
        if not set(wanted) <= set(sizes[0]):
            raise refuse(f"opdtheory: {claim.id} quantifies over {claim.space.description}; it has no {', '.join(set(wanted) - set(sizes[0]))}")
        size = {**sizes[0], **wanted}
        if size.get("eos") is not None:
            size["eos"] = size["vocab"] - 1
        sizes = (size,)
    budget = BUDGETS["default"]
    if iterations is not None:
        budget = type(budget)(lanes=budget.lanes, samples=budget.samples, rounds=iterations)
    try:
        result = search(claim, seconds=seconds, seed=seed, budget=budget, sizes=sizes)
    except SidesError as problem:
        raise refuse(f"opdtheory: {problem}") from None
    path = None
    if result.certificate is not None:
        path = Path("build") / "certificates" / file_name(claim.id)
        write_json(path, result.certificate)
    out.print(search_summary(result, path))
    if json_file is not None:
        write_json(json_file, result.to_dict(str(path) if path else None))


@app.command("check")
def check_command(paths: Annotated[list[Path], typer.Argument(metavar="CERT.json…")]) -> None:
    """Replay certificates with the stand-alone checker; exit 0 only if each one is confirmed."""
    raise typer.Exit(replay(paths))


def mount() -> None:
    """Attach the commands that live beside what they call."""
    from opdtheory import cli_audit, cli_bounds, cli_figures, cli_power, cli_run

    for name, command in (
        ("bounds", cli_bounds.bounds), ("plan", cli_bounds.plan), ("audit", cli_audit.audit), ("audit-diff", cli_audit.audit_diff),
        ("run", cli_run.run), ("figures", cli_figures.figures), ("power", cli_power.power),
    ):  # fmt: skip
        if name not in {c.name for c in app.registered_commands}:
            app.command(name)(command)


def main() -> None:
    """Entry point of the ``opdtheory`` command."""
    mount()
    try:
        app(prog_name="opdtheory")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
