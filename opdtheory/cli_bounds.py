"""``opdtheory bounds`` and ``opdtheory plan``: parse, call the calculator or the planner, print."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from opdtheory import planning
from opdtheory.bounds.registry import LOWER, TARGETS
from opdtheory.calculator import calculate, jsonable
from opdtheory.quantities import QUANTITIES

Number = float | None
Whole = int | None
RewardRange = Annotated[
    tuple[float, float], typer.Option("--reward-range", metavar="LO HI", help="Smallest and largest reward.")
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the result as JSON to this file.")]


def _option(name: str) -> Any:
    return typer.Option(f"--{name.replace('_', '-').lower()}", help=QUANTITIES[name].meaning + ".")


def bounds(
    horizon: Annotated[Whole, _option("horizon")] = None,
    tv_max: Annotated[Number, _option("tv_max")] = None,
    kl_max: Annotated[Number, _option("kl_max")] = None,
    reverse_kl_max: Annotated[Number, _option("reverse_kl_max")] = None,
    kl_seq: Annotated[Number, _option("kl_seq")] = None,
    reverse_kl_seq: Annotated[Number, _option("reverse_kl_seq")] = None,
    reverse_kl_sum: Annotated[Number, _option("reverse_kl_sum")] = None,
    tv_sum: Annotated[Number, _option("tv_sum")] = None,
    tv_seq: Annotated[Number, _option("tv_seq")] = None,
    chi2_max: Annotated[Number, _option("chi2_max")] = None,
    hellinger2_max: Annotated[Number, _option("hellinger2_max")] = None,
    hellinger2_sum: Annotated[Number, _option("hellinger2_sum")] = None,
    hellinger2_seq: Annotated[Number, _option("hellinger2_seq")] = None,
    midpoint_kl_sum: Annotated[Number, _option("midpoint_kl_sum")] = None,
    ratio_martingale: Annotated[Number, _option("ratio_martingale")] = None,
    reward_sd: Annotated[Number, _option("reward_sd")] = None,
    reward_range: RewardRange = (0.0, 1.0),
    surrogate: Annotated[Number, _option("surrogate")] = None,
    J_behavior: Annotated[Number, _option("J_behavior")] = None,
    reward_log_w: Annotated[Number, _option("reward_log_w")] = None,
    cost_log_w: Annotated[Number, _option("cost_log_w")] = None,
    reward_floor_log_w: Annotated[Number, _option("reward_floor_log_w")] = None,
    masked_surrogate: Annotated[Number, _option("masked_surrogate")] = None,
    masked_k3: Annotated[Number, _option("masked_k3")] = None,
    masked_reward_lost: Annotated[Number, _option("masked_reward_lost")] = None,
    alpha: Annotated[Number, _option("alpha")] = None,
    vocab: Annotated[Whole, _option("vocab")] = None,
    score_bound: Annotated[Number, _option("score_bound")] = None,
    steps: Annotated[Whole, _option("steps")] = None,
    initial: Annotated[Number, _option("initial")] = None,
    step_error: Annotated[Number, _option("step_error")] = None,
    adv_target_max: Annotated[Number, _option("adv_target_max")] = None,
    adv_kl_max: Annotated[Number, _option("adv_kl_max")] = None,
    adv_max: Annotated[Number, _option("adv_max")] = None,
    gamma: Annotated[Number, _option("gamma")] = None,
    expected_length: Annotated[Number, _option("expected_length")] = None,
    json_file: JsonFile = None,
) -> None:
    """Every bound that follows from the given numbers, sorted, vacuous ones marked, and what would help
    further.
    """
    given = {k: v for k, v in locals().items() if k in QUANTITIES and v is not None}
    with _Refusal("bounds"):
        if not given:
            raise ValueError(
                "no quantity given; expected at least one, for instance --horizon 4096 --kl-max 1e-4"
            )
        report = calculate(reward_range=reward_range, **given)
        _write(json_file, report)
    _print_report(report)


class _Refusal:
    """Turns bad input into one line on stderr and exit code 2."""

    def __init__(self, command: str):
        self.command = command

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, problem: Any, trace: Any) -> None:
        if isinstance(problem, ValueError | OSError):
            print(f"opdtheory {self.command}: {problem}", file=sys.stderr)
            raise typer.Exit(2) from None


def _write(path: Path | None, report: Any) -> None:
    if path is not None:
        path.write_text(
            json.dumps(jsonable(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
            encoding="utf-8",
        )


def _number(x: float) -> str:
    return "∞" if math.isinf(x) else f"{x:.4g}"


def _flag(quantity: str) -> str:
    return "--" + quantity.replace("_", "-").lower()


def _print_report(report: dict[str, Any]) -> None:
    console = Console()
    for target, meaning in report["targets"].items():
        rows = [e for e in report["bounds"] if e["target"] == target]
        table = Table(title=meaning, title_justify="left", title_style="bold")
        for column in ("value", "", "bound", "id", "scaling", "says something below"):
            table.add_column(column, justify="right" if column == "value" else "left", overflow="fold")
        for e in rows if target not in LOWER else reversed(rows):
            below = ", ".join(
                f"{name} {_number(x)}" for name, x in e["informative_below"].items() if math.isfinite(x)
            )
            table.add_row(
                _number(e["value"]), "vacuous" if e["vacuous"] else "", e["name"], e["id"],
                e["scaling"], below, style="dim" if e["vacuous"] else None,
            )  # fmt: skip
        console.print(table)
    used = {name for e in report["bounds"] for name in e["derived"]}
    for name, entry in report["derived"].items():
        if name in used:
            console.print(f"Used: {name} ≤ {_number(entry['value'])} ({entry['because']}).", highlight=False)
    _print_assumptions(console, report)
    _print_verdict(console, report)
    _print_suggestions(console, report)


def _print_assumptions(console: Console, report: dict[str, Any]) -> None:
    resting: dict[str, list[str]] = {}
    for e in report["bounds"]:
        for assumption in e["assumptions"]:
            resting.setdefault(assumption, []).append(e["id"])
    for assumption, ids in resting.items():
        console.print(f"Assumed: {assumption}, by {', '.join(ids)}.", highlight=False)


def _print_verdict(console: Console, report: dict[str, Any]) -> None:
    by_id = {e["id"]: e for e in report["bounds"]}
    best = report["best"].get("surrogate_error")
    if best is not None:
        value = _number(by_id[best]["value"])
        console.print(f"Best bound on {TARGETS['surrogate_error']}: {value} by {by_id[best]['name']}.")
    lower, upper = (report["improvement"].get(side) for side in ("lower", "upper"))
    if lower is not None and lower["value"] > 0:
        console.print(
            f"J(π) − J(μ) ≥ {_number(lower['value'])} by {by_id[lower['id']]['name']}: improvement is guaranteed."
        )
    elif lower is not None:
        console.print(
            f"{_number(lower['value'])} ≤ J(π) − J(μ)"
            + (f" ≤ {_number(upper['value'])}" if upper else "")
            + ": improvement is not guaranteed."
        )
    if (
        best is not None
        and "surrogate" not in report["inputs"]
        and not by_id[best]["can_certify_improvement"]
    ):
        limit = _number(report["surrogate_limit"])
        console.print(f"No surrogate value can certify an improvement: L never exceeds {limit} here.")
    for note in report["notes"]:
        console.print(f"Note: {note}.")


def _print_suggestions(console: Console, report: dict[str, Any]) -> None:
    """What else to measure: first what can beat the best error bound, then what bounds something new."""
    rows = report["suggestions"]
    better = [r for r in rows if r.get("beats_best_below")]
    if better:
        table = Table(title="A better error bound would need", title_justify="left", title_style="bold")
        for column in ("quantity", "below", "known so far", "meaning"):
            table.add_column(column, justify="left", overflow="fold")
        for r in better:
            known = f"≤ {_number(r['known_below'])}" if "known_below" in r else ""
            table.add_row(_flag(r["quantity"]), _number(r["beats_best_below"]), known, r["meaning"])
        console.print(table)
    unlocking = [r for r in rows if r["unlocks"]]
    if unlocking:
        table = Table(title="Further bounds would need", title_justify="left", title_style="bold")
        for column in ("quantity", "bounds"):
            table.add_column(column, justify="left", overflow="fold")
        for r in unlocking:
            more = len(r["unlocks"]) - _LISTED
            table.add_row(
                _flag(r["quantity"]),
                ", ".join(r["unlocks"][:_LISTED]) + (f" and {more} more" if more > 0 else ""),
            )
        console.print(table)


_LISTED = 4
"""Bounds named in a line of suggestions; the JSON has all."""


def plan(
    horizon: Annotated[Whole, _option("horizon")] = None,
    reward_range: RewardRange = (0.0, 1.0),
    penalty: Annotated[Number, typer.Option(help="Largest error of the surrogate to be certified.")] = None,
    surrogate: Annotated[
        Number, typer.Option(help="Surrogate value L; with --guarantee instead of --penalty.")
    ] = None,
    guarantee: Annotated[
        float, typer.Option(help="Wanted lower bound on J(π) − J(μ); needs --surrogate.")
    ] = 0.0,
    kl_seq: Annotated[Number, _option("kl_seq")] = None,
    alpha: Annotated[
        list[float] | None, typer.Option("--alpha", help="Interpolation coefficient; may be repeated.")
    ] = None,
    distance: Annotated[float, typer.Option(help="Wanted L1 distance to the teacher.")] = 0.1,
    initial: Annotated[float, _option("initial")] = 2.0,
    step_error: Annotated[float, _option("step_error")] = 0.0,
    vocab: Annotated[Whole, _option("vocab")] = None,
    score_bound: Annotated[float, _option("score_bound")] = 1.0,
    width: Annotated[Number, typer.Option(help="Wanted width of a one-sided confidence bound.")] = None,
    samples: Annotated[Whole, typer.Option(help="Number of independent prompts.")] = None,
    confidence: Annotated[float, typer.Option(help="Confidence level.")] = 0.95,
    sd: Annotated[
        Number, typer.Option(help="Standard deviation of the certified variable; default half its range.")
    ] = None,
    cap: Annotated[float, typer.Option(help="Weights are cut at this value in the certificates.")] = 2.0,
    floor: Annotated[
        float, typer.Option(help="The masked certificate drops responses whose log weight is below −floor.")
    ] = 1.0,
    json_file: JsonFile = None,
) -> None:
    """Divergence budget, interpolation and sample size for a wanted guarantee.

    --horizon with --penalty (or --surrogate and --guarantee) gives the divergence each bound allows;
    --alpha the steps and variances of proximal distillation; --width or --samples the size and width of
    finite-sample certificates.
    """
    report: dict[str, Any] = {}
    with _Refusal("plan"):
        span = reward_range[1] - reward_range[0]
        if not span > 0:
            raise ValueError(f"reward_range: got {reward_range!r}, expected two numbers, the smaller first")
        if penalty is None and surrogate is not None:
            penalty = surrogate - guarantee
            if penalty <= 0:
                raise ValueError(
                    f"guarantee: got {guarantee:g}, expected less than the surrogate value {surrogate:g}"
                )
        if penalty is not None:
            if horizon is None:
                raise ValueError("horizon: missing, expected --horizon T with --penalty or --surrogate")
            fixed = {} if kl_seq is None else {"kl_seq": kl_seq}
            report["penalty"] = penalty
            report["divergence_budget"] = planning.divergence_budget(horizon, penalty, span, fixed)
        if alpha:
            report["distillation"] = planning.distillation_plan(
                alpha, distance, initial=initial, step_error=step_error, horizon=horizon, vocab=vocab,
                score_bound=score_bound,
            )  # fmt: skip
        if width is not None:
            report["sample_sizes"] = planning.certificates_of_width(width, confidence, span, sd, cap, floor)
        if samples is not None:
            report["widths"] = planning.certificates_from_samples(samples, confidence, span, sd, cap, floor)
        if not report:
            raise ValueError(
                "nothing to plan; expected --penalty, --surrogate, --alpha, --width or --samples"
            )
        report["inputs"] = {"horizon": horizon, "reward_range": list(reward_range)}
        report["inputs"] |= {"confidence": confidence, "distance": distance}
        _write(json_file, report)
    console = Console()
    for title, key in _SECTIONS.items():
        if key in report:
            console.print(_table(title, report[key]))


_SECTIONS = {
    "Largest divergence that keeps the certified error below the penalty": "divergence_budget",
    "Proximal distillation": "distillation",
    "Independent prompts needed by each certificate": "sample_sizes",
    "Width of the one-sided bound of each certificate": "widths",
}


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    show: Callable[[Any], str] = lambda v: _number(v) if isinstance(v, float) else str(v)  # noqa: E731
    for column in rows[0]:
        table.add_column(
            column, overflow="fold", justify="left" if isinstance(rows[0][column], str) else "right"
        )
    for row in rows:
        table.add_row(*(show(v) for v in row.values()))
    return table
