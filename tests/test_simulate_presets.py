"""Published algorithms as compositions, minibatches and per-token averages, and runs from a configuration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from opdtheory import masks
from opdtheory.experiments import run_experiment
from opdtheory.gradients import Estimator
from opdtheory.simulate import (
    Algorithm,
    Distill,
    Gradient,
    MaskedSequences,
    Rollout,
    TabularStudent,
    Terminal,
    Unified,
    View,
    World,
    gradient,
    policy_of,
    steps,
    train,
    update_moments,
)
from opdtheory.simulate import measures as ms
from opdtheory.simulate.batch import sample_responses
from opdtheory.simulate.presets import ALGORITHMS, exact, optimiser, preset, rollout_law
from opdtheory.simulate.train import begin_step, parts
from opdtheory.tabular import Policy, Reward, TokenTree
from tests.tolerance import EXACT, FLOAT64, TIGHT, close

TREE = TokenTree(3, 3, eos=1, prompts=2, prompt_probs=[0.3, 0.7])


def make() -> tuple[World, TabularStudent, Policy]:
    rng = np.random.default_rng(0)
    policy, teacher = (Policy.random(TREE, seed=i, concentration=2.0) for i in range(2))
    levels = [(rng.random(TREE.level_shape(t)) < 0.5) * (np.arange(3) == 1) * 1.0 for t in range(2)]
    levels.append((rng.random(TREE.level_shape(2)) < 0.5) * 1.0)
    return World(TREE, teacher, Reward.from_levels(TREE, levels)), TabularStudent(TREE), policy


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_makes_progress_exactly_and_runs_on_samples(name: str) -> None:
    world, student, policy = make()
    algorithm = preset(name)
    step = Gradient(0.05)
    goal = "J" if isinstance(algorithm.signal, Terminal) else "kl_student_teacher"
    measures = {**ms.REWARD, **ms.TEACHER}
    whole = replace(exact(algorithm), optimiser=step)
    run = train(world, student, student.start(policy), whole, 6, measures=measures)[goal][:, 0]
    assert np.all(np.diff(run) * (1 if goal == "J" else -1) > 0)
    drawn = replace(algorithm, optimiser=step, responses=8, prompts=max(algorithm.prompts, 2))
    drawn = replace(drawn, rollout=Rollout(flip=0.3))
    history = train(world, student, student.start(policy, 3), drawn, 3, measures=measures, seed=1)
    assert history[goal].shape == (4, 3)
    ends = history.theta.reshape(-1, 3)
    assert np.isfinite(ends).all() and not np.array_equal(ends[:, 0], ends[:, 1])
    again = train(world, student, student.start(policy, 3), drawn, 3, measures=measures, seed=1)
    assert np.array_equal(again.theta, history.theta)


def test_every_published_method_has_a_preset_and_top_k_masks_differ_from_binary_ones() -> None:
    assert set(masks.METHODS) <= set(ALGORITHMS)
    world, student, policy = make()
    theta = student.start(policy)
    updates = {}
    for name in ("dppo_topk_tv", "dppo_binary_tv_scaling", "minirl", "grpo_clip_higher"):
        algorithm = replace(preset(name), rollout=Rollout(temperature=3.0), top_k=1)
        if "dppo" in name:
            algorithm = replace(algorithm, weight=Unified(name, delta=0.1))
        updates[name] = gradient(world, student, theta, algorithm)
    assert not close(updates["dppo_topk_tv"], updates["dppo_binary_tv_scaling"], FLOAT64)
    # before the first update a mask anchored at the recomputed policy sees no ratio at all
    plain = replace(preset("pg_is"), rollout=Rollout(temperature=3.0))
    assert close(updates["minirl"], gradient(world, student, theta, plain), FLOAT64)
    assert not close(updates["grpo_clip_higher"], updates["minirl"], FLOAT64)


def test_per_token_averages_divide_by_the_length_of_a_prompts_responses() -> None:
    world, student, policy = make()
    theta = student.start(policy)
    signal = Distill(Estimator(lam=0, alpha=0.2))
    plain = gradient(world, student, theta, Algorithm(signal))
    by_table = gradient(world, student, theta, Algorithm(signal, per_token=True))
    d, prompts = policy.flat_occupancy, TREE.prompts
    prompt = np.concatenate([np.arange(TREE.contexts(t)) % prompts for t in range(TREE.horizon)])
    length = np.array([d[prompt == i].sum() for i in range(prompts)]) / d[:prompts]
    assert length[0] != length[1]
    assert close(by_table, plain / length[prompt][None, :, None], FLOAT64)
    one = policy.broadcast((1,))
    view = View(world, one, one, np.random.default_rng(0))
    step = begin_step(Algorithm(signal, MaskedSequences(delta_max=9.0), epochs=2, per_token=True), view)
    assert step.batch is not None
    assert close(by_table, step.gradient(student, policy_of(student, theta))[0], FLOAT64)


def test_minibatches_are_whole_prompts_and_average_to_the_batch() -> None:
    world, student, policy = make()
    theta = student.start(policy, 4)
    now = policy_of(student, theta)
    algorithm = Algorithm(Terminal(normalise=True), Unified("ppo"), responses=3, prompts=5, minibatches=2)
    view = View(world, now, now, np.random.default_rng(1), exact=False)
    whole = begin_step(algorithm, view)
    pieces = parts(whole)
    assert [len(p.batch.pairs) for p in pieces] == [4 * 3 * 3, 4 * 3 * 2]
    for piece in pieces:
        assert close(piece.batch.mean(np.ones(len(piece.batch.weight))), 1.0, TIGHT)
    halves = [p.gradient(student, now)[0] for p in pieces]
    assert close((3 * halves[0] + 2 * halves[1]) / 5, whole.gradient(student, now)[0], FLOAT64)
    groups = [set(p.batch.group) for p in pieces]
    assert not groups[0] & groups[1] and len(groups[0] | groups[1]) == 20
    batch = sample_responses(now, 5, 3, np.random.default_rng(2))
    assert close(batch.part(0, 1).weight, batch.weight, EXACT)


def test_minibatches_move_the_policy_between_updates() -> None:
    world, student, policy = make()
    base = Algorithm(Terminal(), Unified("ppo"), Gradient(2.0), responses=4, prompts=8)
    kept = {
        count: train(
            world,
            student,
            student.start(policy, 8),
            replace(base, minibatches=count),
            4,
            measures=dict(ms.BASIC),
        )["kept"][1:].mean()
        for count in (1, 8)
    }
    # one update per batch never leaves the clip range, the last of eight does
    assert kept[1] == 1.0 > kept[8]


def test_gradient_quality_along_a_run() -> None:
    world, student, policy = make()
    algorithm = Algorithm(Distill(Estimator(lam=0)), optimiser=Gradient(0.3))
    measures = {**ms.TEACHER, **ms.update_measures(student, algorithm)}
    run = train(world, student, student.start(policy), algorithm, 3, measures=measures)
    final = update_moments(world, student, run.theta, algorithm)
    assert close(run["gradient_bias2"][-1], final.bias2, FLOAT64)
    assert close(run["gradient_variance"][-1], final.variance, FLOAT64)
    assert np.all(run["gradient_bias2"] > 0) and np.all(run["gradient_cosine"] < 1)
    assert close(run["kl_rise"], 0.0, EXACT)
    overshoot = replace(algorithm, optimiser=Gradient(200.0))
    wild = train(world, student, student.start(policy), overshoot, 1, measures=measures)
    rise = wild["kl_student_teacher"][1] - wild["kl_student_teacher"][0]
    assert rise > 0 and close(wild["kl_rise"][1], rise, FLOAT64)


def test_a_configured_run_measures_everything(tmp_path: Path) -> None:
    config = {"algorithm": "topd", "steps": 4, "every": 2, "seeds": 3, "prompts": 4, "responses": 2}
    record = run_experiment("simulate", config, tmp_path / "a")
    assert record["at"] == [0, 2, 4]
    measured = record["measured"]
    assert {"J", "kl_student_teacher", "bound_kl", "violation", "entropy", "decrease"} <= set(measured)
    low, mean, high = (np.array(measured["J"][key]) for key in ("low", "mean", "high"))
    assert np.all(low <= mean) and np.all(mean <= high)
    assert record["report"]["figures"][0]["estimated"]
    shared = {"algorithm": "pg_is", "exact": True, "world": {"features": 3}, "gradient_moments": True}
    whole = run_experiment("simulate", {**shared, "steps": 3, "seeds": 1}, tmp_path / "b")
    assert whole["measured"]["J"]["low"] == whole["measured"]["J"]["high"]
    assert 0 < whole["measured"]["gradient_cosine"]["mean"][0] <= 1 + TIGHT
    assert whole["measured"]["J"]["mean"][-1] > whole["measured"]["J"]["mean"][0]
    assert not whole["report"]["figures"][0]["estimated"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"steps": "x"}, "steps: got 'x', expected a number"),
        ({"steps": 0}, "steps: got 0"),
        ({"world": {"features": 0}}, "world.features: got 0"),
        ({"world": {"horizon": 40}}, "would take"),
        ({"world": {"vocab": 0}}, "vocab = 0"),
        ({"responses": 0}, "responses: got 0"),
        ({"optimiser": {"settings": {"rate": "fast"}}}, "optimiser.rate: got 'fast', expected a number"),
        ({"rollout": {"top_p": 2}}, "top_p = 2"),
        ({"algorithm": "grpo"}, "algorithm: got 'grpo'"),
    ],
)
def test_configurations_are_checked_before_the_run(config, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run_experiment("simulate", config, tmp_path)


def test_a_run_that_leaves_the_numbers_says_so() -> None:
    world, student, policy = make()
    algorithm = Algorithm(Distill(), optimiser=Gradient(np.inf))
    with pytest.raises(ValueError, match="step 1: a parameter is not finite"):
        train(world, student, student.start(policy), algorithm, 2, measures={})
    with pytest.raises(ValueError, match="every: got 0"):
        train(world, student, student.start(policy), algorithm, 2, measures={}, every=0)


def test_divergences_of_every_context() -> None:
    world, student, policy = make()
    last = list(steps(world, student, student.start(policy, 2), Algorithm(Distill()), 2))[-1]
    for other, reference in (("teacher", ms.TEACHER["tv_teacher_max"]), ("rollout", None)):
        levels = ms.context_divergences(last, other)
        assert [level.shape for level in levels["kl"]] == [(2, TREE.contexts(t)) for t in range(3)]
        top = np.max([level.max(axis=1) for level in levels["tv"]], axis=0)
        if reference is not None:
            assert close(top, reference(last), EXACT)
        assert np.all(top > 0)
    with pytest.raises(ValueError, match="other: got 'student'"):
        ms.context_divergences(last, "student")


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: preset("topdd"), "algorithm: got 'topdd'"),
        (lambda: preset("topd", alpha=0.3), r"algorithm field \['alpha'\]"),
        (lambda: optimiser("sgd"), "optimiser: got 'sgd'"),
        (lambda: optimiser("adam", lr=0.1), "optimiser.lr: unknown setting"),
        (lambda: rollout_law(digits=3), "rollout.digits: unknown setting"),
        (lambda: Algorithm(Terminal(), minibatches=2), "minibatches: got 2, expected 1 to 1"),
    ],
)
def test_bad_settings_are_named(make_it, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_it()
