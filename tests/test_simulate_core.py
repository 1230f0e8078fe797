"""Training steps: exact updates against closed forms, sampled against exact ones, masks by definition."""

from __future__ import annotations

import numpy as np
import pytest

from opdtheory import advantages, bounds, masks
from opdtheory.gradients import (
    ESTIMATORS,
    Estimator,
    LinearLogits,
    estimator_mean,
    mean_field,
    return_gradient,
    weighted_gradient,
)
from opdtheory.gradients.parameters import TabularLogits
from opdtheory.simulate import (
    Adam,
    Algorithm,
    Distill,
    Gradient,
    LinearStudent,
    MaskedSequences,
    Natural,
    NegativeDrop,
    OnPolicy,
    Rollout,
    SequenceRatio,
    TabularStudent,
    Terminal,
    TrOPD,
    Unified,
    View,
    World,
    enumerate_responses,
    gradient,
    group_standardise,
    policy_of,
    sample_responses,
    steps,
    train,
)
from opdtheory.simulate import measures as ms
from opdtheory.simulate.rollouts import round_significand
from opdtheory.simulate.train import begin_step
from opdtheory.simulate.weights import divergence_table
from opdtheory.tabular import Policy, PolicyPair, Reward, TokenTree
from opdtheory.tabular.table import Table
from tests.tolerance import EXACT, FLOAT64, SIGMAS, TIGHT, close

TREES = {
    "binary": TokenTree(2, 3),
    "eos": TokenTree(3, 3, eos=1, prompts=2, prompt_probs=[0.3, 0.7]),
}


def world(tree: TokenTree, seed: int = 0) -> tuple[World, Policy]:
    """A teacher, a random 0/1 reward on the endings, and a student."""
    rng = np.random.default_rng([seed, 7])
    student, teacher = (Policy.random(tree, seed=[seed, i]) for i in range(2))
    last = tree.horizon - 1
    levels = [
        (rng.random(tree.level_shape(t)) < 0.5) * (1.0 if t == last else np.arange(tree.vocab) == tree.eos)
        for t in range(tree.horizon)
    ]
    return World(tree, teacher, Reward.from_levels(tree, levels)), student


def flat(tree: TokenTree, levels: list[np.ndarray]) -> np.ndarray:
    return Table.from_levels(tree, levels).flat


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize(
    "estimator", ["i", "ii", "iii", "iv", "v", "immediate", "value", "lambda", "topd", "eq8"]
)
def test_exact_updates_are_the_mean_fields_by_tables_and_by_responses(name: str, estimator: str) -> None:
    tree = TREES[name]
    w, policy = world(tree)
    extra = {
        "lambda": Estimator("expected", lam=0.4),
        "topd": Estimator(lam=0, alpha=0.2),
        "eq8": Estimator("topd_return", alpha=0.2),
    }
    e = extra.get(estimator) or ESTIMATORS[estimator]
    student = TabularStudent(tree)
    theta = student.start(policy)
    expected = flat(tree, estimator_mean(policy, w.teacher, e))
    by_table = gradient(w, student, theta, Algorithm(Distill(e)))[..., 0]
    # judging whole responses with a threshold that none exceeds forces the enumeration
    lenient = MaskedSequences(delta_max=np.inf)
    step = begin_step(Algorithm(Distill(e), lenient, epochs=2), view_of(w, policy))
    assert step.batch is not None
    by_response, kept = step.gradient(student, policy_of(student, theta))
    assert close(by_table, expected, FLOAT64) and close(by_response[..., 0], expected, FLOAT64)
    assert close(kept, 1.0, TIGHT)


def view_of(w: World, policy: Policy, rollout: Policy | None = None, **kwargs) -> View:
    one = policy.broadcast((1,))
    return View(
        w, one if rollout is None else rollout.broadcast((1,)), one, np.random.default_rng(0), **kwargs
    )


@pytest.mark.parametrize("name", TREES)
def test_reward_gradient_and_importance_weights_are_exact(name: str) -> None:
    tree = TREES[name]
    w, policy = world(tree, 1)
    student = TabularStudent(tree)
    theta = student.start(policy)
    truth = flat(tree, return_gradient(policy, w.reward))
    for baseline in ("group", "value", "none"):
        assert close(gradient(w, student, theta, Algorithm(Terminal(baseline)))[..., 0], truth, FLOAT64)
    # with the whole trajectory weight the rollout policy does not matter, without baseline or with any
    biased = Algorithm(Terminal("none"), SequenceRatio(), rollout=Rollout(temperature=2.0))
    assert close(gradient(w, student, theta, biased)[..., 0], truth, FLOAT64)
    ignored = gradient(w, student, theta, Algorithm(Terminal("none"), rollout=Rollout(temperature=2.0)))
    assert not close(ignored[..., 0], truth, FLOAT64)


def test_masked_updates_equal_the_unified_gradient_on_tables() -> None:
    tree = TREES["eos"]
    w, policy = world(tree, 2)
    behavior = policy.tempered(1.5)
    student = TabularStudent(tree)
    theta = student.start(policy)
    r = np.log(w.teacher.flat / policy.flat)
    for method in masks.METHODS:
        m = masks.METHODS[method]
        divergence = (
            None if m.divergence is None else divergence_table(m.divergence, behavior.flat, policy.flat)
        )
        logs = (np.log(policy.flat), np.log(behavior.flat), r)
        unified = masks.unified_weight(
            method, *logs, old_log_probs=np.log(policy.flat), divergence=divergence
        )
        levels = Table(tree, unified / r * r).levels
        expected = flat(tree, weighted_gradient(behavior, policy, levels))
        a = Algorithm(Distill(), Unified(method), rollout=Rollout(temperature=1.5))
        by_table = gradient(w, student, theta, a)[..., 0]
        assert close(by_table, expected, FLOAT64), method
        batch = enumerate_responses(behavior.broadcast((1,)))
        step = begin_step(a, view_of(w, policy, behavior))
        again = type(step)(a, step.view, step.drawn, batch, a.signal(step.view, batch))
        assert close(again.gradient(student, policy_of(student, theta))[0][..., 0], expected, FLOAT64), method


def test_reward_tables_agree_with_responses_under_a_capped_ratio() -> None:
    tree = TREES["eos"]
    w, policy = world(tree, 6)
    behavior = policy.tempered(0.3)
    student = TabularStudent(tree)
    theta = student.start(policy)
    weight = Unified(masks.Method("capped", "none", cap=1.2))
    found = {}
    for signal in (Terminal("value"), Terminal("group"), Terminal("none"), Terminal(normalise=True)):
        a = Algorithm(signal, weight, rollout=Rollout(temperature=0.3))
        found[signal] = gradient(w, student, theta, a)
        view = view_of(w, policy, behavior)
        batch = enumerate_responses(view.rollout)
        step = type(begin_step(a, view))(a, view, view.rollout, batch, signal(view, batch))
        assert close(found[signal], step.gradient(student, policy_of(student, theta))[0], FLOAT64)
    # a cap makes the expected update depend on the baseline
    assert not close(found[Terminal("value")], found[Terminal("none")], FLOAT64)


def test_tropd_in_closed_form() -> None:
    tree = TREES["binary"]
    w, policy = world(tree, 7)
    student = TabularStudent(tree)
    p, q, d = policy.flat, w.teacher.flat, policy.flat_occupancy
    overlap = np.minimum(p, q)
    rejected = d * (1 - overlap.sum(axis=0))
    for k, top in ((2, q), (1, np.where(q == q.max(axis=0), q, 0.0))):
        weights = d * overlap * np.log(q / p) + rejected * top
        found = gradient(w, student, student.start(policy), Algorithm(TrOPD(top_k=k)))[..., 0]
        assert close(found, weights - p * weights.sum(axis=0), FLOAT64)
    ungated = gradient(w, student, student.start(policy), Algorithm(TrOPD(gate=False)))[..., 0]
    plain = gradient(w, student, student.start(policy), Algorithm(Distill()))[..., 0]
    assert close(ungated, plain, FLOAT64)


SIGNALS = {
    "immediate": (Distill(), OnPolicy()),
    "topd": (Distill(Estimator("topd_return", alpha=0.2)), Unified("ppo")),
    "return_clipped": (Terminal("value"), Unified("ppo")),
    "dppo": (Terminal("none"), Unified("dppo_binary_tv", delta=0.02)),
    "trm": (Terminal("none"), MaskedSequences(delta_max=0.05)),
    "drop": (Distill(ESTIMATORS["ii"]), NegativeDrop(0.02)),
    "tropd": (TrOPD(top_k=2), OnPolicy()),
    "guided": (TrOPD(guidance=0.5, top_k=2), OnPolicy()),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_sampled_updates_scatter_around_the_exact_one(name: str) -> None:
    signal, weight = SIGNALS[name]
    tree = TREES["eos"]
    w, policy = world(tree, 3)
    student = TabularStudent(tree)
    exact = Algorithm(signal, weight, rollout=Rollout(temperature=1.3), epochs=2)
    sampled = Algorithm(signal, weight, rollout=Rollout(temperature=1.3), epochs=2, prompts=4, responses=4)
    mean = gradient(w, student, student.start(policy), exact)[..., 0]
    runs = gradient(w, student, student.start(policy, 4000), sampled, seed=1)
    error = runs.std(axis=-1, ddof=1) / np.sqrt(runs.shape[-1])
    assert np.abs(runs.mean(axis=-1) - mean).max() > 0
    assert np.all(np.abs(runs.mean(axis=-1) - mean) <= SIGMAS * error + TIGHT)
    # a gradient over logits has no component along a common shift of a context's logits
    assert close(runs.sum(axis=0), 0.0, TIGHT) and close(mean.sum(axis=0), 0.0, TIGHT)


def test_a_group_mean_baseline_costs_the_factor_one_minus_one_over_G() -> None:
    tree = TREES["binary"]
    w, policy = world(tree, 4)
    student = TabularStudent(tree)
    truth = gradient(w, student, student.start(policy), Algorithm(Terminal()))[..., 0]
    runs = gradient(w, student, student.start(policy, 20000), Algorithm(Terminal(), responses=2), seed=2)
    error = runs.std(axis=-1, ddof=1) / np.sqrt(runs.shape[-1])
    assert np.all(np.abs(runs.mean(axis=-1) - truth / 2) <= SIGMAS * error + TIGHT)
    assert np.any(np.abs(runs.mean(axis=-1) - truth) > SIGMAS * error)


def test_group_standardisation_agrees_with_the_unweighted_function() -> None:
    tree = TREES["eos"]
    _, policy = world(tree, 5)
    batch = sample_responses(policy.broadcast((3,)), 4, 5, np.random.default_rng(0))
    x = np.random.default_rng(1).normal(size=batch.pairs.shape)
    mine = group_standardise(x, batch)
    assert close(mine, advantages.group_normalize(x, batch.group, batch.alive), FLOAT64)
    r = x[:, 0]
    assert close(group_standardise(r, batch), advantages.group_normalize(r, batch.group), FLOAT64)
    assert close(
        group_standardise(r, batch, scale=False), advantages.group_mean_baseline(r, batch.group), FLOAT64
    )
    assert close(group_standardise(np.full(len(r), 0.1), batch), 0.0, EXACT)
    assert batch.group.tolist() == [i // 5 for i in range(60)]
    # responses of a group answer one prompt
    prompt = batch.pairs[:, 0] % tree.contexts_total
    assert all(len(set(prompt[batch.group == g])) == 1 for g in range(12))


@pytest.mark.parametrize("name", TREES)
def test_standardised_updates_agree_between_tables_and_responses(name: str) -> None:
    tree = TREES[name]
    w, policy = world(tree, 6)
    student = TabularStudent(tree)
    theta = student.start(policy)
    for signal in (Distill(Estimator("topd_return", alpha=0.3), normalise=True), Terminal(normalise=True)):
        by_table = gradient(w, student, theta, Algorithm(signal))
        step = begin_step(Algorithm(signal, MaskedSequences(delta_max=np.inf), epochs=2), view_of(w, policy))
        assert step.batch is not None
        assert close(by_table, step.gradient(student, policy_of(student, theta))[0], FLOAT64)


@pytest.mark.parametrize("rule", [*(n for n, m in masks.METHODS.items() if m.mask != "none"), "negative_drop"])
@pytest.mark.parametrize("name", TREES)
def test_token_rules_may_see_tokens_summed_up_by_sign(rule: str, name: str) -> None:
    tree = TREES[name]
    w, policy = world(tree, 7)
    moved = Policy.random(tree, seed=31).broadcast((1,))
    weight = NegativeDrop(0.1) if rule == "negative_drop" else Unified(rule)
    signal = Distill(Estimator("topd_return", alpha=0.3), normalise=True)
    step = begin_step(Algorithm(signal, weight, epochs=2), view_of(w, policy))
    table, share = step.weights(moved)
    coefficients, kept = step.coefficients(moved)
    assert len(step.batch.by_sign(step.contribution.advantages)) >= 2
    assert close(table, step.batch.scatter(coefficients), FLOAT64)
    assert close(share, step.batch.token_mean(kept), FLOAT64)


def test_responses_carry_the_law() -> None:
    tree = TREES["eos"]
    policies = Policy.random(tree, seed=3, batch=(3,), zeros=0.3)
    batch = enumerate_responses(policies)
    assert close(batch.mean(np.ones(len(batch.weight))), 1.0, TIGHT)
    assert close(batch.mean(batch.alive.sum(axis=1).astype(float)), policies.expected_length, TIGHT)
    assert close(batch.scatter_contexts(np.ones(batch.pairs.shape)), policies.flat_occupancy, TIGHT)
    assert close(batch.scatter(np.ones(batch.pairs.shape)), policies.flat_occupancy * policies.flat, TIGHT)


def test_shared_parameters_pull_back_and_natural_steps_solve_the_fisher_system() -> None:
    tree = TREES["binary"]
    w, policy = world(tree, 8)
    rng = np.random.default_rng(0)
    linear = LinearLogits(tree, [rng.normal(size=(tree.contexts(t), tree.vocab, 3)) for t in range(3)])
    student = LinearStudent(linear)
    theta = student.start(rng.normal(size=3))
    g = gradient(w, student, theta, Algorithm(Distill(ESTIMATORS["ii"])))
    assert close(g[:, 0], mean_field(linear, theta[:, 0], w.teacher, "ii"), FLOAT64)
    # a one-context-per-parameter linear student is the tabular one, Fisher matrix included
    tabular, start = TabularStudent(tree), TabularStudent(tree).start(policy)
    numbering = TabularLogits(tree)
    one_hot = np.eye(numbering.size)
    same = LinearStudent(
        LinearLogits(
            tree,
            [
                one_hot[tree.vocab * (2**t - 1) : tree.vocab * (2 ** (t + 1) - 1)].reshape(
                    2**t, tree.vocab, -1
                )
                for t in range(3)
            ],
        )
    )
    vector = numbering.order(start)
    assert close(same.logits(vector), start, TIGHT)
    gt = gradient(w, tabular, start, Algorithm(Distill()))
    gl = gradient(w, same, vector, Algorithm(Distill()))
    one = policy_of(tabular, start)
    assert close(gl, numbering.order(gt), TIGHT)
    centred = same.natural(one, gl)
    assert close(
        centred, numbering.order(tabular.natural(one, gt) - tabular.natural(one, gt).mean(axis=0)), FLOAT64
    )
    advantage = np.log(w.teacher.flat / policy.flat)
    advantage = advantage - (policy.flat * advantage).sum(axis=0)
    assert close(tabular.natural(one, gt)[..., 0], advantage, FLOAT64)


def test_rollout_laws() -> None:
    tree = TREES["binary"]
    _, policy = world(tree, 9)
    student = TabularStudent(tree)
    theta = student.start(policy)
    now = policy_of(student, theta)
    rng = np.random.default_rng(0)

    def law(rollout: Rollout, history: list[np.ndarray] | None = None) -> np.ndarray:
        return rollout.policy(student, history or [theta], now, rng).flat

    assert Rollout().policy(student, [theta], now, rng) is now
    assert close(law(Rollout(bits=60)), now.flat, TIGHT)
    assert not close(law(Rollout(bits=4)), now.flat, FLOAT64)
    assert close(law(Rollout(temperature=2.0)), now.tempered(2.0).flat, TIGHT)
    assert close(law(Rollout(top_p=0.6)), now.truncated(top_p=0.6).flat, TIGHT)
    old = theta + np.random.default_rng(1).normal(size=theta.shape)
    assert close(law(Rollout(stale=1), [old, theta]), policy_of(student, old).flat, EXACT)
    assert close(law(Rollout(stale=5), [old, theta]), policy_of(student, old).flat, EXACT)
    moved = np.abs(law(Rollout(flip=0.5)) - now.flat).max(axis=0) > 0
    assert 0 < moved.sum() < moved.size
    assert not np.array_equal(law(Rollout(flip=1.0)), law(Rollout(flip=1.0)))
    assert round_significand(np.array([0.0, 257.0]), 8).tolist() == [0.0, 256.0]


def test_stale_rollouts_are_the_parameters_of_k_steps_ago() -> None:
    tree = TREES["binary"]
    w, policy = world(tree, 10)
    student = TabularStudent(tree)
    algorithm = Algorithm(Distill(), rollout=Rollout(stale=2))
    run = list(steps(w, student, student.start(policy), algorithm, 5))
    for k in range(1, 6):
        expected = policy_of(student, run[max(0, k - 3)].theta).flat
        assert close(run[k].rollout.flat, expected, EXACT)


def test_measurements_agree_with_their_definitions() -> None:
    tree = TREES["eos"]
    w, policy = world(tree, 11)
    student = TabularStudent(tree)
    algorithm = Algorithm(
        Terminal(), Unified("dppo_binary_tv", delta=0.05), Gradient(5.0), Rollout(temperature=1.2), epochs=3
    )
    measures = {**ms.BASIC, **ms.REWARD, **ms.TEACHER, **ms.ROLLOUT, **ms.pair_measures(0.1)}
    history = train(w, student, student.start(policy), algorithm, 4, measures=measures)
    final = policy_of(student, history.theta)
    pair = PolicyPair(tree, final, w.teacher, w.reward)
    assert close(history["J"][-1], pair.J_behavior, FLOAT64)
    assert close(history["kl_student_teacher"][-1], pair.kl_seq, FLOAT64)
    assert close(history["length"][-1], final.expected_length, FLOAT64)
    for bound in ("bound_kl", "bound_tv", "bound_sharp", "bound_mixed"):
        assert np.all(history["error"] <= history[bound] + FLOAT64), bound
    assert np.all(history["improvement"][1:] > 0)
    gap = history["improvement"] - history["surrogate"]
    assert close(np.abs(gap), history["error"], FLOAT64)
    assert 0 < history["masked"][1:].max() <= 1 and history["violation"].min() >= 0
    assert history.at.tolist() == [0, 1, 2, 3, 4]
    assert close(bounds.sequence_kl(history["kl_rollout_seq"]), history["bound_kl"], FLOAT64)


def test_optimisers() -> None:
    tree = TREES["binary"]
    w, policy = world(tree, 12)
    student = TabularStudent(tree)
    theta = student.start(policy)
    one = policy_of(student, theta)
    g = gradient(w, student, theta, Algorithm(Distill()))
    assert close(Gradient(2.0).step(student, one, g, None)[0], 2 * g, EXACT)
    clipped = Gradient(1.0, clip=1e-3).step(student, one, g, None)[0]
    assert close(np.sqrt((clipped**2).sum()), 1e-3, FLOAT64)
    change, state = Adam(0.1, epsilon=0.0).step(student, one, g, None)
    assert close(change, 0.1 * np.sign(g), FLOAT64) and state[0] == 1
    torch = pytest.importorskip("torch")
    x = torch.tensor(theta, requires_grad=True)
    reference = torch.optim.Adam([x], lr=0.1)
    mine, memory = theta, None
    for k in range(3):
        x.grad = -torch.tensor(g * (k + 1))
        reference.step()
        change, memory = Adam(0.1).step(student, one, g * (k + 1), memory)
        mine = mine + change
    assert close(mine, x.detach().numpy(), FLOAT64)
    natural = train(
        w, student, theta, Algorithm(Distill(), optimiser=Natural(1.0)), 1, measures=dict(ms.TEACHER)
    )
    # a full natural step on the immediate log ratio lands on the teacher
    assert close(natural["kl_student_teacher"][-1], 0.0, FLOAT64)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rollout(bits=0), "bits: got 0"),
        (lambda: Rollout(flip=2.0), "flip: got 2.0"),
        (lambda: Rollout(temperature=0.0), "temperature: got 0.0"),
        (lambda: Rollout(stale=-1), "stale: got -1"),
        (lambda: Unified("gpro"), "method: got 'gpro'"),
        (lambda: Unified("ppo", anchor="old_policy"), "anchor: got 'old_policy'"),
        (lambda: Distill(outlier="clip"), "tau: got None"),
        (lambda: Terminal("mean"), "baseline: got 'mean'"),
        (lambda: Algorithm(Distill(), epochs=0), "epochs: got 0"),
        (lambda: World(TREES["binary"], Policy.random(TREES["eos"])), "teacher: lives on"),
        (lambda: World(TREES["binary"]).teacher_of(1), "world.teacher: got None"),
        (lambda: World(TREES["binary"]).reward_of(1), "world.reward: got None"),
        (lambda: divergence_table("js", np.ones((2, 1, 1)), np.ones((2, 1, 1))), "divergence: got 'js'"),
    ],
)
def test_bad_input_is_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
