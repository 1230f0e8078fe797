"""Sweeps: the table, resuming, the same rows on every engine; the exact moments of updates."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opdtheory.experiments import run_experiment
from opdtheory.gradients import ESTIMATORS, Estimator, LinearLogits, enumerated_moments, tabular_moments
from opdtheory.simulate import (
    Algorithm,
    Distill,
    Gradient,
    LinearStudent,
    Rollout,
    TabularStudent,
    Terminal,
    TrOPD,
    Unified,
    World,
    gradient,
    grid,
    sweep,
    train,
    update_moments,
)
from opdtheory.simulate import measures as ms
from opdtheory.simulate.sweep import read_table
from opdtheory.tabular import Policy, Reward, TokenTree
from tests.tolerance import FLOAT64, SIGMAS, TIGHT, close

CALLS: list[float] = []


def cell(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Final KL of a short exact run; counts its calls in this process."""
    CALLS.append(settings["rate"])
    if settings["rate"] < 0:
        raise ValueError("rate: got a negative number")
    tree = TokenTree(2, 2)
    student = TabularStudent(tree)
    run = train(
        World(tree, Policy.random(tree, seed=1)),
        student,
        student.start(Policy.random(tree, seed=settings["seed"] + 2)),
        Algorithm(Distill(), optimiser=Gradient(settings["rate"])),
        5,
        measures={"kl": ms.TEACHER["kl_student_teacher"]},
    )
    return {"kl": float(run["kl"][-1, 0]), "curve": run["kl"][:, 0]}


def clashing(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {"rate": 0.0}


def test_a_sweep_writes_one_tidy_row_per_cell_and_resumes(tmp_path: Path) -> None:
    CALLS.clear()
    cells = grid(rate=[0.5, 1.0], seed=[0, 1])
    rows = sweep(cell, cells, tmp_path)
    assert len(CALLS) == 4
    assert [(r["rate"], r["seed"]) for r in rows] == [(0.5, 0), (0.5, 1), (1.0, 0), (1.0, 1)]
    table = read_table(tmp_path / "table.csv")
    assert list(table[0]) == ["rate", "seed", "kl"]
    assert close([float(r["kl"]) for r in table], [r["kl"] for r in rows], TIGHT)
    assert len(rows[0]["curve"]) == 6
    # a larger grid computes what is new, an identical one nothing
    more = sweep(cell, grid(rate=[0.5, 1.0, 2.0], seed=[0, 1]), tmp_path)
    assert CALLS[4:] == [2.0, 2.0] and more[:4] == rows
    assert sweep(cell, cells, tmp_path) == rows and len(CALLS) == 6
    assert sweep(cell, cells[:1], tmp_path, resume=False) == rows[:1] and len(CALLS) == 7


def test_an_interrupted_sweep_keeps_what_was_finished(tmp_path: Path) -> None:
    CALLS.clear()
    with pytest.raises(ValueError, match="negative"):
        sweep(cell, [{"rate": 1.0, "seed": 0}, {"rate": -1.0, "seed": 0}], tmp_path)
    assert not (tmp_path / "table.csv").exists()
    rows = sweep(cell, [{"rate": 1.0, "seed": 0}, {"rate": 2.0, "seed": 0}], tmp_path)
    assert CALLS == [1.0, -1.0, 2.0] and len(rows) == 2
    assert not [p for p in (tmp_path / "cells").iterdir() if p.name.startswith(".")]


def test_processes_and_parquet_give_the_same_rows(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    cells = grid(rate=[0.5, 1.0], seed=[0])
    rows = sweep(cell, cells, tmp_path / "one")
    assert sweep(cell, cells, tmp_path / "two", jobs=2, table="table.parquet") == rows
    table = read_table(tmp_path / "two" / "table.parquet")
    assert table == [{k: v for k, v in r.items() if k != "curve"} for r in rows]


@pytest.mark.ray
def test_ray_gives_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    cells = grid(rate=[0.5, 1.0], seed=[0])
    assert sweep(cell, cells, tmp_path / "ray", jobs=2, engine="ray") == sweep(
        cell, cells, tmp_path / "local"
    )


def test_bad_sweeps_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = grid(rate=[1.0], seed=[0])
    with pytest.raises(ValueError, match="engine: got 'dask'"):
        sweep(cell, cells, tmp_path, engine="dask")
    with pytest.raises(ValueError, match=r"table: got 'table\.xlsx'"):
        sweep(cell, cells, tmp_path, table="table.xlsx")
    with pytest.raises(ValueError, match="result 'rate' of clashing"):
        sweep(clashing, cells, tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match="parquet needs pyarrow"):
        sweep(cell, cells, tmp_path, table="table.parquet")


def test_the_collapse_experiment_runs_and_resumes(tmp_path: Path) -> None:
    config = {
        "methods": ["PG-IS", "MiniRL"],
        "mismatches": ["flips"],
        "rates": [0.2],
        "seeds": 2,
        "steps": 4,
        "worlds": [0],
        "prompts": 2,
        "features": 4,
    }
    record = run_experiment("sim-collapse", config, tmp_path)
    files = sorted((tmp_path / "sweep" / "cells").glob("*.json"))
    stamps = [f.stat().st_mtime_ns for f in files]
    again = run_experiment("sim-collapse", config, tmp_path, resume=True)
    assert [f.stat().st_mtime_ns for f in files] == stamps and len(files) == 2
    assert again["rows"] == record["rows"]
    assert json.loads((tmp_path / "record.json").read_text())["tuned"][0]["method"] == "PG-IS"
    assert record["report"]["tables"][0]["rows"][1][1] == "MiniRL"


TREE = TokenTree(3, 3, eos=1, prompts=2, prompt_probs=[0.3, 0.7])


@pytest.mark.parametrize("estimator", ["i", "ii", "iv", "immediate", "topd"])
def test_moments_of_updates_agree_with_the_two_other_routes(estimator: str) -> None:
    e = Estimator(alpha=0.2, lam=0) if estimator == "topd" else ESTIMATORS[estimator]
    policy, teacher = (Policy.random(TREE, seed=i) for i in range(2))
    world = World(TREE, teacher)
    student = TabularStudent(TREE)
    mine = update_moments(world, student, student.start(policy), Algorithm(Distill(e)))
    known = tabular_moments(policy, teacher, e)
    assert close(mine.variance, known.variance, FLOAT64) and close(mine.bias2, known.bias2, FLOAT64)
    rng = np.random.default_rng(0)
    linear = LinearLogits(TREE, [rng.normal(size=(TREE.contexts(t), TREE.vocab, 4)) for t in range(3)])
    shared, theta = LinearStudent(linear), rng.normal(size=4)
    mine = update_moments(world, shared, shared.start(theta, 2), Algorithm(Distill(e)))
    known = enumerated_moments(linear, theta, teacher, e)
    assert close(mine.variance, known.variance, FLOAT64) and close(mine.bias2, known.bias2, FLOAT64)
    assert mine.variance.shape == (2,)


def test_moments_under_mismatch_agree_with_sampling() -> None:
    rng = np.random.default_rng(3)
    levels = [rng.random(TREE.level_shape(t)) * (np.arange(3) == 1) for t in range(2)]
    world = World(TREE, reward=Reward.from_levels(TREE, [*levels, rng.random(TREE.level_shape(2))]))
    student = TabularStudent(TREE)
    policy = Policy.random(TREE, seed=5)
    algorithm = Algorithm(Terminal("none"), Unified("cispo"), rollout=Rollout(temperature=2.0))
    exact = update_moments(world, student, student.start(policy), algorithm)
    sampled = Algorithm(Terminal("none"), Unified("cispo"), rollout=Rollout(temperature=2.0), responses=1)
    draws = gradient(world, student, student.start(policy, 20000), sampled, seed=4)
    error = draws.std(axis=-1, ddof=1) / np.sqrt(draws.shape[-1])
    assert np.all(np.abs(draws.mean(axis=-1) - exact.mean[..., 0]) <= SIGMAS * error + TIGHT)
    squares = (draws**2).sum(axis=(0, 1))
    second = exact.variance[0] + (exact.mean**2).sum()
    assert abs(squares.mean() - second) <= SIGMAS * squares.std() / np.sqrt(len(squares))
    assert exact.bias2[0] > 1e-6 and 0 < exact.cosine[0] < 1
    with pytest.raises(ValueError, match="TrOPD adds a part that is not sampled"):
        update_moments(World(TREE, policy), student, student.start(policy), Algorithm(TrOPD()))
