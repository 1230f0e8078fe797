"""What the calculator computes, refuses, derives and suggests, and the inverse problems."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import opdtheory as ot
from opdtheory import bounds, cli_bounds, planning
from opdtheory.bounds.registry import REGISTRY
from opdtheory.calculator import calculate, jsonable
from opdtheory.quantities import RULES, derive
from tests.tolerance import FLOAT64, LOOSE64, TIGHT, close

SCHEMA = json.loads((Path(bounds.__file__).parents[1] / "data" / "bounds.schema.json").read_text())
EXAMPLES = [
    {"horizon": 4096, "kl_max": 1e-4, "kl_seq": 0.01},
    {"horizon": 16384, "tv_max": 0.2},
    {"horizon": 16, "kl_max": 1e-7, "surrogate": 1e-3},
    {"alpha": 0.1, "vocab": 151936, "score_bound": 1.0},
    {"horizon": 64, "chi2_max": 1e-3, "reward_sd": 0.2, "reward_range": (-1.0, 1.0)},
    {"horizon": 8, "kl_max": math.inf, "tv_sum": 0.1},
    {"gamma": 0.9, "tv_max": 0.1, "adv_max": 2.0},
    {"horizon": 100, "tv_sum": 0.001, "adv_target_max": 3.0, "steps": 5, "alpha": 0.2, "step_error": 0.01},
]


@pytest.mark.parametrize("given", EXAMPLES, ids=lambda g: ",".join(g))
def test_report_is_valid_sorted_and_complete(given: dict) -> None:
    report = calculate(**given)
    jsonschema.validate(json.loads(json.dumps(jsonable(report), allow_nan=False)), SCHEMA)
    values = [e["value"] for e in report["bounds"]]
    assert values == sorted(values)
    ids = [e["id"] for e in report["bounds"]] + [e["id"] for e in report["not_computable"]]
    assert sorted(ids) == sorted(b.id for b in REGISTRY.values() if b.target != "step")
    for row in report["not_computable"]:
        assert row["needs"]


def test_printed_scenario() -> None:
    report = calculate(horizon=4096, kl_max=1e-4, kl_seq=0.01)
    by_id = {e["id"]: e for e in report["bounds"]}
    assert [round(by_id[i]["value"], 1) for i in ("trm.2.5.1/kl", "trm.2.5.4", "trm.2.5.5")] == [
        1677.3,
        35.0,
        8.2,
    ]
    for printed in ("trm.2.5.1/kl", "trm.2.5.4", "trm.2.5.5"):
        assert by_id[printed]["vacuous"] and not by_id[printed]["can_certify_improvement"]
    assert report["best"]["surrogate_error"] == "ours.s1"
    assert by_id["ours.s1"]["value"] == pytest.approx(0.01, rel=TIGHT) and not by_id["ours.s1"]["vacuous"]
    assert by_id["ours.s1"]["derived"] == {} and "tv_max" in by_id["ours.s4"]["derived"]


def test_large_token_divergence_is_vacuous_for_the_quadratic_bound() -> None:
    report = calculate(horizon=16384, tv_max=0.2)
    entry = next(e for e in report["bounds"] if e["id"] == "dppo.thm3.2")
    assert entry["vacuous"] and close(entry["value"], 2 * 16384 * 16383 * 0.04, TIGHT)
    edge = entry["informative_below"]["tv_max"]
    assert close(2 * 16384 * 16383 * edge**2, 1.0, FLOAT64)


@pytest.mark.parametrize(
    ("given", "because"),
    [
        ({"horizon": 10, "kl_max": 0.1, "kl_seq": 2.0}, "chain rule"),
        ({"horizon": 10, "tv_max": 0.1, "tv_sum": 1.5}, "sum of T terms"),
        ({"tv_max": 1.5}, "from 0 to 1"),
        ({"kl_max": -1e-9}, "never negative"),
        ({"chi2_max": -0.5}, "never negative"),
        ({"tv_max": 0.5, "kl_max": 1e-3}, "Pinsker"),
        ({"tv_max": 0.5, "reverse_kl_max": 1e-3}, "Pinsker"),
        ({"tv_max": 0.9, "chi2_max": 0.01}, "chi2_max"),
        ({"tv_max": 0.99, "kl_max": 2.5}, "Bretagnolle"),
        ({"tv_seq": 0.5, "kl_seq": 0.01}, "Pinsker"),
        ({"tv_seq": 0.5, "tv_sum": 0.1}, "tv_seq ≤ tv_sum"),
        ({"reverse_kl_max": 1.0, "chi2_max": 1.0}, "log"),
        ({"hellinger2_max": 0.2, "tv_max": 0.1}, "hellinger2_max ≤ tv_max"),
        ({"horizon": 0}, "at least 1"),
        ({"horizon": 2.5}, "whole"),
        ({"horizon": math.inf}, "whole"),
        ({"kl_max": math.nan}, "NaN"),
        ({"kl_max": "1"}, "number"),
        ({"horizon": True}, "number"),
        ({"alpha": 1.0}, "strictly between"),
        ({"vocab": 1}, "at least 2"),
        ({"reward_sd": 0.6}, "half of the reward range"),
        ({"reward_range": (1.0, 0.0)}, "smaller first"),
        ({"reward_range": (0.0, math.inf)}, "finite"),
        ({"kl": 1.0}, "unknown quantity"),
    ],
)
def test_contradictions_are_refused(given: dict, because: str) -> None:
    with pytest.raises(ValueError, match=because) as caught:
        calculate(**given)
    name = str(caught.value).split(":")[0]
    assert name in given


def test_estimates_may_skip_the_comparison() -> None:
    report = calculate(horizon=10, kl_max=0.1, kl_seq=2.0, validate=False)
    assert report["best"]["surrogate_error"]
    with pytest.raises(ValueError, match="never negative"):
        calculate(kl_max=-1.0, validate=False)


def test_rules_hold_on_random_pairs() -> None:
    """Each inequality between quantities, on exact values of random policy pairs."""
    tree = ot.TokenTree(vocab=3, horizon=3)
    rng = np.random.default_rng(1)
    mu, pi = (ot.Policy.random(tree, seed=rng, batch=(3000,), concentration=c) for c in (0.4, 1.0))
    near = ot.Policy.mixture(pi, mu, 10.0 ** -rng.uniform(0, 4, 3000))
    checked = set()
    for target in (pi, near):
        pair = ot.PolicyPair(tree, mu, target, [np.zeros((3000, *tree.level_shape(t))) for t in range(3)])
        values = {"expected_length": np.full(3000, 3.0)}
        for rule in RULES:
            if rule.quantity == "tv_steps":
                continue
            for name in (rule.quantity, *rule.sources):
                if name not in values:
                    values[name] = np.asarray(getattr(pair, name), dtype=float)
            limit = rule.limit(*(values[s] for s in rule.sources))
            assert np.all(values[rule.quantity] <= limit + FLOAT64), rule.reason
            checked.add(rule.reason)
    assert len(checked) == len(RULES) - 1


def test_derived_steps_are_the_worst_case() -> None:
    """No other division of the same total over the steps makes the adaptive bound larger."""
    horizon, total, top = 30, 0.5, 0.06
    values, _ = derive({"horizon": horizon, "tv_sum": total, "tv_max": top, "kl_max": 2.0})
    assert close(values["tv_steps"].sum(), total, TIGHT) and values["tv_steps"].max() <= top
    worst = bounds.adaptive(values["tv_steps"], top, 2.0)
    rng = np.random.default_rng(0)
    for _ in range(500):
        other = rng.dirichlet(np.full(horizon, 3.0)) * total
        if other.max() <= top:
            assert bounds.adaptive(other, top, 2.0) <= worst + TIGHT


def test_suggestions_are_true() -> None:
    given = {"horizon": 4096, "kl_max": 1e-4}
    report = calculate(**given)
    best = min(e["value"] for e in report["bounds"] if e["target"] == "surrogate_error")
    tested = 0
    for row in report["suggestions"]:
        if row["quantity"] in {"steps", "alpha", "vocab"}:
            continue
        edge = row.get("beats_best_below")
        if edge and math.isfinite(edge):
            for shift, better in ((-LOOSE64, True), (LOOSE64, False)):
                again = calculate(**given, **{row["quantity"]: edge * (1 + shift)}, validate=False)
                value = min(e["value"] for e in again["bounds"] if e["target"] == "surrogate_error")
                assert (value < best) == better, row["quantity"]
                assert set(row["unlocks"]) <= {e["id"] for e in again["bounds"]}
            tested += 1
    assert tested >= 5


def test_surrogate_gives_an_improvement_bound() -> None:
    report = calculate(horizon=64, kl_seq=1e-3, surrogate=0.02)
    s1 = next(e for e in report["bounds"] if e["id"] == "ours.s1")
    assert s1["improvement_lower"] == pytest.approx(0.019, rel=TIGHT) and report["notes"] == []
    noisy = calculate(horizon=64, kl_seq=1e-3, surrogate=0.5)
    assert "exceeds" in noisy["notes"][0]


def test_certification_edges() -> None:
    """Below the edge the bound is under the largest possible surrogate, above it is not."""
    report = calculate(horizon=4096, kl_max=1e-4)
    chosen = {"ours.s1", "ours.s4", "ours.s6", "trm.2.5.1/tv", "trm.2.5.4", "trm.adaptive"}
    for entry in (e for e in report["bounds"] if e["id"] in chosen):
        for name, edge in entry.get("certifies_below", {}).items():
            if 0 < edge < math.inf:
                for shift in (-LOOSE64, LOOSE64):
                    again = calculate(horizon=4096, **{name: edge * (1 + shift)})
                    assert next(e for e in again["bounds"] if e["id"] == entry["id"])[
                        "can_certify_improvement"
                    ] == (shift < 0)


def test_first_crossing_is_found() -> None:
    """f crosses the limit at 1e-3, comes back at 1 and crosses again at 1e3."""
    from opdtheory.bounds.registry import largest_below

    def wave(x: float) -> tuple[float, float]:
        return (2.0 if 1e-3 < x < 1 or x > 1e3 else 0.5), 1.0

    assert largest_below(wave, 1e12, scan=True) == pytest.approx(1e-3, rel=LOOSE64)
    assert largest_below(lambda x: (0.5, 1.0), 1e12, scan=True) == math.inf
    assert largest_below(lambda x: (2.0, 1.0), 1e12, scan=True) == 0


def test_reward_without_spread_has_no_error() -> None:
    report = calculate(horizon=5000, chi2_max=10.0, reward_sd=0.0)
    assert next(e for e in report["bounds"] if e["id"] == "ours.s5/uniform")["value"] == 0


# ----------------------------------------------------------------------------------------------- planning


def test_budgets_are_the_largest_that_work() -> None:
    rows = planning.divergence_budget(512, 0.2, span=2.0)
    assert len(rows) > 20
    for row in rows:
        assert 0 < row["budget"] < math.inf
        fixed = {"horizon": 512, "reward_bound": 2.0, "reward_sd": 1.0}
        for shift in (-LOOSE64, LOOSE64):
            values, _ = derive({**fixed, row["quantity"]: row["budget"] * (1 + shift)})
            assert (REGISTRY[row["id"]].evaluate(values, 2.0) < 0.2) == (shift < 0)


def test_steps_follow_the_recursion() -> None:
    for rate, target, start, error in (
        (0.1, 0.1, 2.0, 0.0),
        (0.3, 0.2, 1.0, 0.01),
        (0.01, 1.5, 2.0, 0.001),
        (1.0, 0.1, 2.0, 0.0),
    ):
        distance, steps = start, 0
        while distance > target:
            distance, steps = (1 - rate) * distance + error, steps + 1
        assert planning.steps_to_distance(rate, target, start, error) == steps
    assert planning.steps_to_distance(0.1, 0.1, 2.0, 0.01) == math.inf
    assert planning.steps_to_distance(0.0, 0.1) == math.inf
    assert planning.steps_to_distance(0.5, 2.0) == 0


def test_token_level_steps_are_minimal() -> None:
    for alpha, horizon, target in ((0.1, 1, 0.5), (0.1, 16384, 0.1), (0.3, 7, 0.01), (0.9, 100, 1.9)):
        steps = int(planning.token_steps_to_distance(alpha, horizon, target))
        assert bounds.contraction_token_steps(alpha, horizon, steps) <= target * (1 + FLOAT64)
        assert bounds.contraction_token_steps(alpha, horizon, steps - 1) > target
    assert planning.token_steps_to_distance(0.5, 2, 0.1, step_error=0.01) == planning.steps_to_distance(
        0.25, 0.1, 2.0, 0.01
    )
    assert planning.token_steps_to_distance(0.1, 100, 2.0) == 0


def test_distillation_plan_uses_the_bounds() -> None:
    first, second = planning.distillation_plan([0.1, 0.5], 0.1, horizon=2, vocab=151936, score_bound=2.0)
    assert first["variance"] == pytest.approx(4 * bounds.topd_second_moment(0.1), rel=TIGHT)
    assert first["variance_printed"] == pytest.approx(
        float(bounds.topd_variance(0.1, 151936, 2.0)), rel=TIGHT
    )
    assert first["steps"] > second["steps"] and first["steps_token"] > first["steps"]
    assert first["cost"] == pytest.approx(first["steps"] * first["variance"], rel=TIGHT)


def test_sample_sizes_are_minimal() -> None:
    for width, sd in ((0.05, 0.5), (0.01, 0.1), (0.2, 0.0)):
        for row in planning.sample_sizes(width, 0.9, 1.0, sd):
            n = row["samples"]
            assert planning.certificate_widths(n, 0.9, 1.0, sd)[row["method"]] <= width
            if n > 2:
                assert planning.certificate_widths(n - 1, 0.9, 1.0, sd)[row["method"]] > width


@pytest.mark.parametrize(
    "call",
    [
        lambda: planning.divergence_budget(0, 0.1),
        lambda: planning.divergence_budget(8, 0.0),
        lambda: planning.divergence_budget(8, 0.1, span=-1),
        lambda: planning.steps_to_distance(1.5, 0.1),
        lambda: planning.distillation_plan(0.1, 3.0),
        lambda: planning.distillation_plan(1.5, 0.1),
        lambda: planning.sample_sizes(0.0),
        lambda: planning.sample_sizes(0.1, confidence=1.0),
        lambda: planning.sample_sizes(0.1, sd=0.7),
        lambda: planning.certificate_widths(1),
    ],
)
def test_planning_refuses_bad_input(call) -> None:
    with pytest.raises(ValueError, match=r"got .*expected"):
        call()


# ----------------------------------------------------------------------------------------------- commands

app = typer.Typer()
app.command("bounds")(cli_bounds.bounds)
app.command("plan")(cli_bounds.plan)


def test_bounds_command_writes_what_it_prints(tmp_path: Path) -> None:
    target = tmp_path / "b.json"
    arguments = [
        "bounds",
        "--horizon",
        "4096",
        "--kl-max",
        "1e-4",
        "--kl-seq",
        "0.01",
        "--reward-range",
        "0",
        "2",
        "--json",
    ]
    done = CliRunner().invoke(app, [*arguments, str(target)])
    assert done.exit_code == 0, done.output
    report = json.loads(target.read_text())
    jsonschema.validate(report, SCHEMA)
    assert report["inputs"]["reward_range"] == [0, 2] and report["bounds"][0]["value"] == pytest.approx(
        0.02, rel=TIGHT
    )
    assert "vacuous" in done.output and "ours.s1" in done.output


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("bounds --horizon 10 --kl-max 0.1 --kl-seq 2", "kl_seq"),
        ("bounds --tv-max 1.5", "tv_max"),
        ("bounds --kl-max -1", "kl_max"),
        ("bounds", "quantity"),
        ("bounds --horizon 4 --json /nonexistent/x.json", "/nonexistent"),
        ("plan", "nothing to plan"),
        ("plan --penalty 0.1", "horizon"),
        ("plan --horizon 8 --surrogate 0.1 --guarantee 0.2", "guarantee"),
        ("plan --alpha 2", "alpha"),
        ("plan --width 0.1 --reward-range 1 0", "reward_range"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: str, named: str) -> None:
    done = CliRunner().invoke(app, arguments.split())
    assert done.exit_code == 2
    assert (
        named in done.stderr and len(done.stderr.strip().splitlines()) <= 2 and "Traceback" not in done.stderr
    )


def test_plan_command(tmp_path: Path) -> None:
    target = tmp_path / "p.json"
    arguments = "plan --horizon 4096 --surrogate 0.1 --guarantee 0.05 --alpha 0.1 --alpha 0.2"
    arguments += f" --width 0.05 --samples 100 --json {target}"
    done = CliRunner().invoke(app, arguments.split())
    assert done.exit_code == 0, done.output
    report = json.loads(target.read_text())
    assert report["penalty"] == pytest.approx(0.05, rel=TIGHT)
    assert [r["alpha"] for r in report["distillation"]] == [0.1, 0.2]
    for section in ("sample_sizes", "widths"):
        assert {r["method"] for r in report[section]} == set(planning.WIDTHS)
    best = next(r for r in report["divergence_budget"] if r["quantity"] == "kl_seq")
    assert best["id"] == "ours.s1" and best["budget"] == pytest.approx(0.05, rel=FLOAT64)
