"""What the calculator computes, refuses, derives and suggests, and the inverse problems."""

from __future__ import annotations

import json
import math
from functools import cache
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
from opdtheory.quantities import QUANTITIES, RULES, derive
from tests.tolerance import FLOAT64, LOOSE64, TIGHT, close

SCHEMA = json.loads((Path(bounds.__file__).parents[1] / "data" / "bounds.schema.json").read_text())
EXAMPLES = [
    {"horizon": 4096, "kl_max": 1e-4, "kl_seq": 0.01},
    {"horizon": 16384, "tv_max": 0.2},
    {"horizon": 16, "kl_max": 1e-7, "surrogate": 1e-4},
    {"alpha": 0.1, "vocab": 151936, "score_bound": 1.0},
    {"horizon": 64, "chi2_max": 1e-3, "reward_sd": 0.2, "reward_range": (-1.0, 1.0)},
    {"horizon": 8, "kl_max": math.inf, "tv_sum": 0.1},
    {"gamma": 0.9, "tv_max": 0.1, "adv_max": 2.0},
    {"horizon": 100, "reverse_kl_seq": 1e-3, "J_behavior": -0.5, "reward_range": (-1.0, 1.0)},
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
        ({"horizon": 10**400}, "digits"),
        ({"gamma": 1.0}, "strictly between"),
        ({"reward_range": (-1e308, 1e308)}, "finite"),
        ({"horizon": 10, "reverse_kl_max": 0.1, "reverse_kl_seq": 2.0}, "chain rule"),
        ({"reverse_kl_max": 1e-4, "hellinger2_max": 0.5}, "hellinger2_max"),
        ({"horizon": 10, "hellinger2_max": 1e-6, "hellinger2_seq": 0.5}, "affinities"),
        ({"horizon": 10, "chi2_max": 0.1, "ratio_martingale": 50.0}, "chi2_max"),
        ({"kl_max": 0.0, "chi2_max": 0.5}, "agree at every context"),
        ({"tv_seq": 0.0, "kl_seq": 0.1}, "agree wherever"),
        ({"J_behavior": 1.0}, "strictly inside the reward range"),
        ({"J_behavior": 0.5, "reward_range": (0.0, 0.4)}, "strictly inside the reward range"),
        ({"J_behavior": 0.01, "reward_sd": 0.5}, "Bhatia"),
        ({"reward_log_w": 5.0}, "no improvement exceeds"),
        ({"reward_log_w": 0.05, "cost_log_w": -0.01}, "not positive"),
        ({"reward_log_w": 0.05, "reward_floor_log_w": 0.01}, "floor only raises"),
        ({"masked_reward_lost": 0.5, "J_behavior": 0.2}, "masked"),
        ({"reward_bound": 2.0}, "largest |R|"),
        ({"adv_max": 1.0, "adv_target_max": 5.0}, "mean of advantages"),
        ({"expected_length": 20.0, "horizon": 10}, "longer than T"),
        ({"surrogate": 0.5, "horizon": 64, "kl_seq": 1e-3}, "largest value that any policy"),
        ({"reward_log_w": 0.5, "tv_seq": 0.01}, "expected at most 0.01"),
        ({"surrogate": 0.01, "kl_seq": 5e-4, "reverse_kl_seq": 1e-4}, "concludes from tv_seq"),
    ],
)
def test_contradictions_are_refused(given: dict, because: str) -> None:
    with pytest.raises(ValueError, match=because) as caught:
        calculate(**given)
    names = str(caught.value).split(":")[0].split(", ")
    assert names[0] in given


def test_estimates_may_skip_the_comparison() -> None:
    report = calculate(horizon=10, kl_max=0.1, kl_seq=2.0, validate=False)
    assert report["best"]["surrogate_error"]
    with pytest.raises(ValueError, match="never negative"):
        calculate(kl_max=-1.0, validate=False)
    noisy = calculate(horizon=64, kl_seq=1e-3, surrogate=0.5, validate=False)
    assert noisy["notes"][0].startswith("surrogate: got 0.5")
    # a sum that noise made positive is no divergence of zero
    assert "kl_seq" not in calculate(reward_log_w=0.02, cost_log_w=-0.01, validate=False)["derived"]


@cache
def _true_quantities(count: int = 3000) -> tuple[ot.PolicyPair, dict[str, np.ndarray]]:
    """Random pairs at every distance, some with tokens left out, and what is exactly true of them."""
    tree = ot.TokenTree(vocab=3, horizon=3)
    rng = np.random.default_rng(1)
    mu, other = (ot.Policy.random(tree, seed=rng, batch=(count,), concentration=c) for c in (0.4, 1.0))
    weight = np.where(rng.random(count) < 0.4, 1.0, 10.0 ** -rng.uniform(0, 4, count))
    pi = ot.Policy.mixture(other, mu, weight)
    for level in pi.levels:
        level[: count // 4, :, 0] = 0.0
        level /= level.sum(axis=-1, keepdims=True)
    reward = [np.zeros((count, *tree.level_shape(t))) for t in range(3)]
    reward[-1] = rng.random((count, *tree.level_shape(2)))
    reward[-1][::2] = rng.random((count // 2, *tree.level_shape(2))) < 0.5
    pair = ot.PolicyPair.from_levels(tree, mu.levels, pi.levels, reward)
    names = {n for r in RULES for n in (r.quantity, *r.sources)} | {"surrogate"}
    given = {n: np.asarray(getattr(pair, n), dtype=float) for n in names - _CONSTANT - _NOT_OF_A_PAIR}
    return pair, given | {
        n: np.full(count, 3.0 if n in ("horizon", "expected_length") else 1.0) for n in _CONSTANT
    }


_CONSTANT = {"horizon", "expected_length", "reward_span", "reward_size", "reward_bound", "advantage_bound"}
_NOT_OF_A_PAIR = {"tv_steps", "masked_reward_lost"}


def test_rules_hold_on_random_pairs() -> None:
    """Each inequality between quantities, on exact values of random policy pairs."""
    _, values = _true_quantities()
    checked = 0
    for rule in RULES:
        if {rule.quantity, *rule.sources} & _NOT_OF_A_PAIR:
            continue
        for i in range(len(values["horizon"])):
            limit = rule.limit(*(values[s][i] for s in rule.sources))
            value = values[rule.quantity][i]
            assert limit is None or value <= limit + FLOAT64 * abs(limit) + TIGHT, (rule.reason, i)
        checked += 1
    assert checked == len(RULES) - 3


def test_true_quantities_are_never_refused_and_no_bound_is_false() -> None:
    """Any selection of the exact quantities of a pair: no contradiction, and every printed bound holds."""
    pair, values = _true_quantities()
    rng = np.random.default_rng(2)
    measured = {
        "surrogate_error": abs(pair.error),
        "improvement": abs(pair.improvement),
        "surrogate": pair.surrogate,
        "improvement_lower": pair.improvement,
        "improvement_upper": pair.improvement,
        "sequence_tv": pair.tv_seq,
    }
    names = [n for n in QUANTITIES if n in values]
    compared = 0
    for i in rng.choice(len(values["horizon"]), 120, replace=False):
        report = calculate(**{n: float(values[n][i]) for n in names if rng.random() < 0.3})
        for entry in report["bounds"]:
            if entry["target"] in measured:
                truth = float(measured[entry["target"]][i])
                room = FLOAT64 * (1 + abs(truth))
                lower = entry["target"] == "improvement_lower"
                good = entry["value"] <= truth + room if lower else entry["value"] >= truth - room
                assert good, (entry["id"], entry["value"], truth, report["inputs"])
                compared += 1
        ends = report["improvement"]
        assert "lower" not in ends or ends["lower"]["value"] <= pair.improvement[i] + FLOAT64
        assert "upper" not in ends or ends["upper"]["value"] >= pair.improvement[i] - FLOAT64
    assert compared > 1500


def test_rewards_of_other_ranges() -> None:
    """A shift and a scale of the reward move every bound as they should."""
    given = {"horizon": 20, "kl_max": 1e-3, "chi2_max": 3e-3, "tv_sum": 0.2}
    pieces = {"reward_log_w": -0.002, "cost_log_w": -0.004, "surrogate": 0.003}
    unit = calculate(**given, **pieces, J_behavior=0.3)
    wide = calculate(
        **given, **{k: 5 * v for k, v in pieces.items()}, J_behavior=5 * 0.3 - 2, reward_range=(-2.0, 3.0)
    )
    # ξ = max |R| is the one quantity that is no multiple of the range
    for a in (e for e in unit["bounds"] if not e["id"].startswith("dppo.")):
        (b,) = (e for e in wide["bounds"] if e["id"] == a["id"])
        scale = {"sequence_tv": 1, "variance": 25 if a["id"] == "trm.2.2.4-centred" else 1}.get(
            a["target"], 5
        )
        assert close(b["value"], scale * a["value"], FLOAT64), a["id"]
        assert a["vacuous"] == b["vacuous"]


def test_errors_between_steps_exclude_the_exact_laws() -> None:
    exact = {e["id"] for e in calculate(alpha=0.2, horizon=5, steps=4)["bounds"]}
    noisy = calculate(alpha=0.2, horizon=5, steps=4, step_error=0.01)
    dropped = {"ours.s10", "topd.thm4.4-token/steps"}
    assert dropped <= exact and not dropped & {e["id"] for e in noisy["bounds"]}
    for row in noisy["not_computable"]:
        if row["id"] in dropped:
            assert row["needs"] == ["step_error = 0"]


def test_distance_lies_between_its_bounds() -> None:
    report = calculate(alpha=0.2, horizon=5, steps=4)
    ends = {
        e["target"]: e["value"]
        for e in report["bounds"]
        if e["id"] in ("ours.s10", "topd.thm4.4-token/steps")
    }
    assert 0 < ends["distance_lower"] < ends["distance"] < 2
    assert report["best"]["distance_lower"] == "ours.s10"


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
    assert report["improvement"]["lower"] == {"value": s1["improvement_lower"], "id": "ours.s1"}
    assert report["improvement"]["upper"]["value"] == pytest.approx(0.021, rel=TIGHT)


def test_log_ratios_give_the_sequence_divergence() -> None:
    """E[R log W] + E[(1−R) log W] = −D, so that s1 follows from the two."""
    report = calculate(reward_log_w=-0.001, cost_log_w=-0.003)
    assert report["derived"]["kl_seq"]["value"] == pytest.approx(0.004, rel=LOOSE64)
    assert "ours.s1" in {e["id"] for e in report["bounds"]}


def test_the_spread_follows_from_the_mean() -> None:
    sd = calculate(horizon=8, chi2_max=0.01, J_behavior=0.1)["derived"]["reward_sd"]
    assert sd["value"] == pytest.approx(0.3, rel=TIGHT) and "Bhatia" in sd["because"]


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
        fixed = {"horizon": 512, "reward_size": 2.0, "reward_span": 2.0}
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


def test_no_pair_is_closer_before_the_fewest_steps() -> None:
    for alpha, target, initial in ((0.1, 0.1, 2.0), (0.5, 0.01, 1.0), (0.9, 1e-6, 2.0), (0.02, 1.9, 2.0)):
        steps = int(planning.fewest_token_steps(alpha, target, initial))
        assert bounds.contraction_token_floor(alpha, steps, initial) <= target * (1 + FLOAT64)
        assert steps == 0 or bounds.contraction_token_floor(alpha, steps - 1, initial) > target
        for horizon in (1, 7, 16384):
            assert steps <= planning.token_steps_to_distance(alpha, horizon, target, initial)
    assert planning.fewest_token_steps(0.1, 2.0) == 0


def test_width_of_each_certificate_is_that_of_its_range() -> None:
    """The planned Hoeffding width is the one that certify gives for such samples."""
    rng = np.random.default_rng(0)
    log_w, rewards = np.log(rng.uniform(0.5, 1.5, 400)), 4 * rng.random(400) - 1
    found = ot.confidence.certify(
        log_w, rewards, reward_range=(-1.0, 3.0), method="hoeffding", side="lower", confidence=0.9, cap=1.5
    )
    planned = planning.certificates_from_samples(400, 0.9, span=4.0, cap=1.5)
    widths = {r["certificate"]: r["width"] for r in planned if r["method"] == "hoeffding"}
    assert set(widths) == {c.name for c in found}
    for c in found:
        if c.lower > {"tv_seq": 0.0, "return_truncated": -1.0}.get(c.name, -4.0):
            assert close(c.estimate - c.lower, widths[c.name], FLOAT64), c.name
    for row in planning.certificates_of_width(0.3, 0.9, span=4.0, cap=1.5):
        again = planning.certificates_from_samples(row["samples"], 0.9, span=4.0, cap=1.5)
        (same,) = (r for r in again if (r["certificate"], r["method"]) == (row["certificate"], row["method"]))
        assert same["width"] <= 0.3


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
        lambda: planning.certificates_from_samples(10, cap=0.5),
        lambda: planning.certificates_of_width(0.1, span=0.0),
        lambda: planning.certificates_of_width(0.1, floor=-1.0),
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
