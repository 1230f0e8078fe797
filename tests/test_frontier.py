"""The bias–variance comparison: distances, tables that repeat the moments, an experiment end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from opdtheory import divergences as dv
from opdtheory import gradients as gr
from opdtheory.experiments import jsonable, run_experiment
from opdtheory.gradients.experiment import slope
from opdtheory.gradients.frontier import best_lambda, contestants, frontier, teacher_at_distance
from opdtheory.tabular import Policy, TokenTree
from tests.tolerance import FLOAT64, LOOSE64, TIGHT, close

TREE = TokenTree(3, 3, eos=2)


@pytest.mark.parametrize("kl", [1e-5, 0.1, 3.0])
def test_teacher_lies_at_the_requested_distance(kl: float) -> None:
    student = Policy.random(TREE, seed=1, batch=(20,))
    teacher = teacher_at_distance(student, kl, seed=2)
    total = sum(
        (d * dv.kl(p, q)).sum(axis=-1)
        for d, p, q in zip(student.occupancy, student.levels, teacher.levels, strict=True)
    )
    assert close(total / student.expected_length / kl, 1.0, LOOSE64)
    again = teacher_at_distance(student, kl, seed=2)
    assert np.array_equal(again.flat, teacher.flat)
    teacher.validate()


def test_table_repeats_the_moments() -> None:
    samples = (1, 100)
    table = frontier(TREE, 0.2, instances=1, seed=3, samples=samples)
    student = Policy.random(TREE, seed=[3, 0], batch=(1,))
    teacher = teacher_at_distance(student, 0.2, seed=[3, 1])
    assert set(table["estimators"]) == set(contestants())
    for name, estimator in contestants().items():
        m = gr.tabular_moments(student, teacher, estimator)
        norm2 = (m.target**2).sum()
        row = table["estimators"][name]
        # one instance: all quartiles are its value
        assert close(row["variance"], np.full(3, m.variance[0] / norm2))
        assert close(row["bias2"], np.full(3, m.bias2[0] / norm2))
        for n in samples:
            assert close(row["mse"][str(n)], np.full(3, m.mse(n)[0] / norm2))
            assert close(row["efficiency"][str(n)], np.full(3, m.efficiency(n)[0]))
    plain = {name: row["mse"]["1"][1] for name, row in table["estimators"].items() if name.endswith("none")}
    plain = {name: value for name, value in plain.items() if not name.startswith("value")}
    assert table["wins"]["1"][min(plain, key=plain.get)] == 1


def test_efficiency_is_the_progress_at_the_best_step() -> None:
    student = Policy.random(TREE, seed=4)
    teacher = Policy.random(TREE, seed=5)
    m = gr.tabular_moments(student, teacher, gr.Estimator(lam=0, alpha=0.1))
    for n in (1, 50):

        def gain(step: float, n: int = n) -> float:
            size = (m.mean**2).sum() + m.variance / n
            return float(step * m.mean @ m.target - step**2 * size / 2)

        best = max(gain(x) for x in np.linspace(0, 200, 20_001))
        assert close(m.efficiency(n), best / (m.target @ m.target / 2), LOOSE64 * 1e3)
    # a rescaled estimator is as efficient, a reversed one useless, the exact gradient perfect
    scaled = gr.Moments(7 * m.mean, 49 * m.second_moment, m.target)
    assert close(scaled.efficiency(3), m.efficiency(3), TIGHT)
    assert gr.Moments(-m.target, m.second_moment, m.target).efficiency(3) == 0
    assert close(gr.Moments(m.target, (m.target**2).sum(), m.target).efficiency(), 1.0, TIGHT)


def test_more_samples_favour_less_bias() -> None:
    student = Policy.random(TREE, seed=6, batch=(40,))
    teacher = teacher_at_distance(student, 0.5, seed=7)
    grid = np.linspace(0, 1, 11)
    chosen = best_lambda(student, teacher, [1, 30, 10**4, 10**9], grid)
    assert np.all(np.diff(chosen, axis=0) >= 0)
    assert np.all(chosen[-1] == 1)
    assert chosen[0].mean() < 0.5
    row = frontier(TREE, 0.5, instances=40, samples=(1, 10**9))
    immediate = row["estimators"]["to_go/lambda=0/none"]
    crossing = immediate["crossover"]["ii"][1]
    assert 1 < crossing < 10**9
    assert row["estimators"]["to_go/lambda=1/none"]["bias2"] == [0.0, 0.0, 0.0]


def test_shared_features_use_the_enumerated_moments() -> None:
    names = {"immediate": gr.ESTIMATORS["immediate"], "iv": gr.ESTIMATORS["iv"]}
    tree = TokenTree(2, 3)
    a = frontier(tree, 0.3, instances=4, seed=8, estimators=names, features=2)
    b = frontier(tree, 0.3, instances=4, seed=8, estimators=names, features=2)
    assert a == b
    assert a["features"] == 2
    assert a["estimators"]["iv"]["bias2"] == [0.0, 0.0, 0.0]
    assert a["estimators"]["immediate"]["bias2"][0] > 0
    assert a["estimators"]["immediate"]["crossover"]["iv"][2] >= 0


def test_experiment_runs_and_resumes(tmp_path) -> None:
    small = {
        "horizons": [2, 3],
        "kl_per_token": [0.01, 0.1],
        "instances": 8,
        "feature_horizons": [2],
        "feature_instances": 2,
        "samples": [1, 16],
        "lambdas": [0.5],
        "shown": {"horizon": 3, "kl_per_token": 0.1},
    }
    record = run_experiment("gradient-frontier", small, tmp_path)
    again = run_experiment("gradient-frontier", small, tmp_path, resume=True)
    assert len(record["cells"]) == 6
    assert again["cells"] == record["cells"]
    assert len(again["reused_parts"]) == 6
    # the closer the teacher, the later the bias matters
    assert all(value < 0 for value in record["crossover_slopes"]["in_distance"].values())
    json.dumps(record, allow_nan=False)


RECORDED = json.loads((Path(__file__).parents[1] / "figures" / "data" / "gradient_frontier.json").read_text())


def test_recorded_comparison_is_reproduced(tmp_path) -> None:
    """The committed record comes from this code: its smallest cells again, number by number."""
    config = RECORDED["config"]
    small = {**config, "horizons": [2, 4], "feature_horizons": [2], "kl_per_token": [0.01, 0.1]}
    fresh = run_experiment(
        "gradient-frontier", {**small, "shown": {"horizon": 4, "kl_per_token": 0.1}}, tmp_path
    )
    key = ("parameters", "horizon", "kl_per_token")
    known = {tuple(c[k] for k in key): c for c in RECORDED["cells"]}
    assert len(known) == len(config["kl_per_token"]) * (
        len(config["horizons"]) + len(config["feature_horizons"])
    )
    for cell in fresh["cells"]:
        recorded = known[tuple(cell[k] for k in key)]
        assert cell["wins"] == recorded["wins"]
        for name, row in cell["estimators"].items():
            again = recorded["estimators"][name]
            for part in ("bias2", "variance", *(("mse", str(n)) for n in config["samples"])):
                pair = (x[part] if isinstance(part, str) else x[part[0]][part[1]] for x in (row, again))
                for a, b in zip(*pair, strict=True):
                    assert close(a, b, 1e3 * LOOSE64 * max(abs(b), TIGHT)), (cell["horizon"], name, part)


def test_recorded_report_says_what_the_cells_say() -> None:
    from opdtheory.gradients.frontier_report import frontier_report

    fresh = frontier_report(RECORDED["cells"], RECORDED["crossover_slopes"], RECORDED["config"])
    assert jsonable(fresh) == RECORDED["report"]
    curves = {f["title"]: f["series"] for f in fresh["figures"]}
    assert len(curves) == 6
    bias = curves["Bias of one gradient over the distance to the teacher"]
    assert set(bias) == {"immediate", "λ = 0.5", "λ = 0.9"} and all(
        np.all(np.diff(x) > 0) for x in bias.values()
    )
    # the closer the teacher the more samples it takes, whatever the horizon
    crossings = curves["Samples from which the unbiased gradient wins"]
    assert all(np.all(np.diff(values) < 0) for values in crossings.values())
    errors = curves["Mean squared error over the number of samples"]
    assert (
        errors["immediate"][0] < errors["(ii) to go"][0]
        and errors["immediate"][-1] > errors["(ii) to go"][-1]
    )
    assert errors["(v) as (iv), baseline"][-1] < errors["(ii) to go"][-1]


def test_slope_recovers_a_power_and_skips_what_has_no_logarithm() -> None:
    x = [1.0, 2.0, 4.0, 8.0]
    assert close(slope(x, [3 * v**-1.5 for v in x]), -1.5, FLOAT64)
    assert close(slope(x, [1.0, 2.0, np.inf, 0.0]), 1.0, FLOAT64)
    assert slope(x, [1.0, np.inf, np.inf, 0.0]) is None


def test_bad_input_is_named() -> None:
    student = Policy.random(TREE, seed=9)
    with pytest.raises(ValueError, match="kl_per_token: got 0"):
        teacher_at_distance(student, 0)
    rows = [np.zeros((TREE.contexts(t), 1), dtype=int)[:, 0] for t in range(TREE.horizon)]
    with pytest.raises(ValueError, match="student: deterministic"):
        teacher_at_distance(Policy.deterministic(TREE, rows), 0.1)
