"""Gradients against autograd, finite differences, enumeration and sampling, and what the theory says."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import flint
import numpy as np
import pytest
from scipy.optimize import brentq

from opdtheory import gradients as gr
from opdtheory import masks
from opdtheory.gradients.parameters import policy_at
from opdtheory.tabular import Policy, PolicyPair, TokenTree, terminal_reward
from opdtheory.tabular.table import to_float
from tests.tolerance import FLOAT64, LOOSE64, SIGMAS, TIGHT, close

torch = pytest.importorskip("torch")

TREES = {
    "binary": TokenTree(2, 3),
    "eos": TokenTree(3, 3, eos=1, prompts=2, prompt_probs=[0.3, 0.7]),
    "late_eos": TokenTree(2, 5, eos=0),
    "one_step": TokenTree(4, 1, eos=0),
    "one_token": TokenTree(1, 3),
    "only_eos": TokenTree(1, 2, eos=0),
}
EXTRA = {
    "optimal": gr.Estimator(baseline="optimal"),
    "lambda": gr.Estimator(lam=0.6),
    "lambda_expected": gr.Estimator("expected", lam=0.3, baseline="optimal"),
    "topd": gr.Estimator(lam=0, alpha=0.2),
    "topd_to_go": gr.Estimator(alpha=0.2),
    "topd_return": gr.Estimator("topd_return", alpha=0.2, baseline="value"),
    "total_baseline": gr.Estimator("total", baseline="value"),
}
ALL = {**gr.ESTIMATORS, **EXTRA}
UNBIASED = ("i", "ii", "iii", "iv", "v", "value", "optimal", "total_baseline")


def policies(
    tree: TokenTree, seed: int, batch: tuple[int, ...] = (), concentration: float = 1.0
) -> tuple[Policy, Policy]:
    """(student, teacher)"""
    student = Policy.random(tree, seed=[seed, 0], batch=batch, concentration=concentration)
    return student, Policy.random(tree, seed=[seed, 1], batch=batch, concentration=concentration)


def parametrisations(tree: TokenTree, seed: int) -> list[tuple[object, np.ndarray]]:
    """Maps of every kind with a random point each."""
    rng = np.random.default_rng(seed)
    features = [rng.normal(size=(tree.contexts(t), tree.vocab, 3)) for t in range(tree.horizon)]
    offset = [rng.normal(size=(tree.contexts(t), tree.vocab)) for t in range(tree.horizon)]
    weights = [torch.tensor(level) for level in features]

    def network(theta):
        return [torch.tanh(w @ theta) * torch.exp(theta[0] / 3) + (w @ theta**2) / 2 for w in weights]

    maps = [
        gr.TabularLogits(tree),
        gr.LinearLogits(tree, features, offset),
        gr.shared_logits(tree),
        gr.one_logit(tree),
        gr.TorchLogits(tree, 3, network),
    ]
    return [(m, rng.normal(size=m.size)) for m in maps]


def slopes(fn, theta: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences of ``fn`` in every direction, last axis."""
    return np.stack(
        [(fn(theta + step * e) - fn(theta - step * e)) / (2 * step) for e in np.eye(len(theta))], axis=-1
    )


def objective_at(parameters, teacher: Policy, theta: np.ndarray) -> np.ndarray:
    return np.asarray(gr.objective(parameters, theta, teacher))


def field_at(parameters, teacher: Policy, estimator, theta: np.ndarray) -> np.ndarray:
    return gr.mean_field(parameters, theta, teacher, estimator)


def torch_eta(tree: TokenTree, logits: list, teacher: Policy):
    """−KL(student‖teacher) of sequences by a forward pass over the public levels."""
    reach = torch.tensor(tree.weights(False).reshape(-1))
    total = 0.0
    continuing = [a for a in range(tree.vocab) if a != tree.eos]
    for t in range(tree.horizon):
        log_p = torch.log_softmax(logits[t], -1)
        joint = reach[:, None] * log_p.exp()
        total = total + (joint * (torch.log(torch.tensor(teacher.levels[t])) - log_p)).sum()
        reach = joint[:, continuing].reshape(-1)
    return total


@pytest.mark.parametrize("name", TREES)
def test_objective_gradient_equals_autograd(name: str) -> None:
    tree = TREES[name]
    student, teacher = policies(tree, 1)
    logits = [torch.log(torch.tensor(level)).requires_grad_() for level in student.levels]
    eta = torch_eta(tree, logits, teacher)
    expected = torch.autograd.grad(eta, logits)
    for ours, theirs in zip(gr.objective_gradient(student, teacher), expected, strict=True):
        assert close(ours, theirs.numpy(), TIGHT)
    tabular = gr.TabularLogits(tree)
    assert close(
        gr.objective(tabular, tabular.order(np.log(student.flat)), teacher), float(eta.detach()), TIGHT
    )


@pytest.mark.parametrize("name", TREES)
def test_gradient_and_field_jacobian_equal_finite_differences(name: str) -> None:
    tree = TREES[name]
    _, teacher = policies(tree, 2)
    for parameters, theta in parametrisations(tree, 3):
        numeric = slopes(partial(objective_at, parameters, teacher), theta)
        assert close(gr.mean_field(parameters, theta, teacher, "ii"), numeric, LOOSE64)
        for estimator in ("ii", "immediate", EXTRA["topd"], EXTRA["topd_return"]):
            jacobian = gr.mean_field_jacobian(parameters, theta, teacher, estimator)
            numeric = slopes(partial(field_at, parameters, teacher, estimator), theta)
            assert close(jacobian, numeric, LOOSE64)


def test_five_advantages_one_gradient_and_the_immediate_one_differs() -> None:
    for tree in (TREES["binary"], TREES["eos"]):
        student, teacher = policies(tree, 4, batch=(50,))
        truth = gr.objective_gradient(student, teacher)
        for name in UNBIASED:
            for a, b in zip(truth, gr.estimator_mean(student, teacher, ALL[name]), strict=True):
                assert close(a, b, FLOAT64)
        biased = gr.estimator_mean(student, teacher, "immediate")
        gap = sum(((a - b) ** 2).sum(axis=(-1, -2)) for a, b in zip(truth, biased, strict=True))
        assert gap.min() > LOOSE64
    # no future, no bias
    student, teacher = policies(TREES["one_step"], 4)
    assert close(
        gr.estimator_mean(student, teacher, "immediate")[0], gr.objective_gradient(student, teacher)[0], TIGHT
    )
    # nor at the optimum
    student, _ = policies(TREES["eos"], 5)
    assert all(close(level, 0 * level, TIGHT) for level in gr.immediate_part(student, student))


def test_the_two_parts_are_the_derivatives_of_the_two_factors() -> None:
    tree = TREES["eos"]
    student, teacher = policies(tree, 6)
    tabular = gr.TabularLogits(tree)
    theta = tabular.order(np.log(student.flat))

    def kl(x: np.ndarray) -> np.ndarray:
        p = policy_at(tabular, x).flat
        return (p * np.log(p / teacher.flat)).sum(axis=0)

    def occupancy(x: np.ndarray) -> np.ndarray:
        return policy_at(tabular, x).flat_occupancy

    first = slopes(lambda x: -(occupancy(theta) * kl(x)).sum(), theta)
    second = slopes(lambda x: -(occupancy(x) * kl(theta)).sum(), theta)
    g1, g2 = (
        np.concatenate([np.ravel(level) for level in part(student, teacher)])
        for part in (gr.immediate_part, gr.bias_part)
    )
    assert close(g1, first, LOOSE64)
    assert close(g2, second, LOOSE64)
    assert np.abs(second).max() > LOOSE64


@pytest.mark.parametrize("name", ALL)
def test_moments_by_recursion_enumeration_and_sampling(name: str) -> None:
    count = 4000
    for tree in TREES.values():
        student, teacher = policies(tree, 7)
        tabular = gr.TabularLogits(tree)
        theta = tabular.order(np.log(student.flat))
        recursion = gr.tabular_moments(student, teacher, ALL[name])
        enumerated = gr.enumerated_moments(tabular, theta, teacher, ALL[name])
        assert close(recursion.mean, enumerated.mean, FLOAT64)
        assert close(recursion.second_moment, enumerated.second_moment, FLOAT64)
        assert close(recursion.target, enumerated.target, FLOAT64)
        sampled = gr.sampled_gradient(tabular, theta, teacher, ALL[name], count, seed=8)
        law, gradients = gr.sequence_gradients(tabular, theta, teacher, ALL[name])
        error = np.sqrt(np.maximum(law @ gradients**2 - (law @ gradients) ** 2, 0) / count)
        assert np.all(np.abs(sampled.mean - enumerated.mean) <= SIGMAS * error + TIGHT)
        norms = (gradients**2).sum(axis=1)
        error = np.sqrt(max(law @ norms**2 - (law @ norms) ** 2, 0) / count)
        assert abs(sampled.second_moment - enumerated.second_moment) <= SIGMAS * error + TIGHT


def test_shared_parameters_enumeration_agrees_with_sampling() -> None:
    tree, count = TREES["eos"], 8000
    _, teacher = policies(tree, 9)
    for parameters, theta in parametrisations(tree, 10)[1:]:
        for name in ("ii", "iv", "immediate", "topd_return"):
            exact = gr.enumerated_moments(parameters, theta, teacher, ALL[name])
            sampled = gr.sampled_gradient(parameters, theta, teacher, ALL[name], count, seed=11)
            assert np.all(np.abs(sampled.mean - exact.mean) <= SIGMAS * sampled.standard_error + TIGHT)
            assert abs(sampled.second_moment - exact.second_moment) <= SIGMAS * sampled.second_moment_error
            assert close(exact.mean, gr.mean_field(parameters, theta, teacher, ALL[name]))


def test_batches_equal_single_instances() -> None:
    tree = TREES["eos"]
    student, teacher = policies(tree, 12, batch=(4,))
    for estimator in ALL.values():
        batched = gr.tabular_moments(student, teacher, estimator)
        for i in range(4):
            single = gr.tabular_moments(
                *(Policy.from_probs(tree, [level[i] for level in x.levels]) for x in (student, teacher)),
                estimator,
            )
            assert close(batched.mean[i], single.mean, TIGHT)
            assert close(batched.variance[i], single.variance, FLOAT64)
            assert close(batched.bias2[i], single.bias2, FLOAT64)


def test_rollouts_follow_the_sequence_law() -> None:
    tree = TREES["eos"]
    policy, _ = policies(tree, 13)
    count = 20_000
    every, drawn = gr.Paths(tree), gr.rollout(policy, count, seed=14)
    keys = {row.tobytes(): i for i, row in enumerate(np.where(every.alive, every.pairs, -1))}
    counts = np.bincount(
        [keys[row.tobytes()] for row in np.where(drawn.alive, drawn.pairs, -1)], minlength=len(keys)
    )
    law = policy.flat_sequence_law
    assert close(law.sum(), 1.0, TIGHT)
    assert np.all(np.abs(counts / count - law) <= SIGMAS * np.sqrt(law * (1 - law) / count) + 1 / count)


def test_variance_orderings_that_hold_and_those_that_do_not() -> None:
    student, teacher = policies(TokenTree(2, 3), 15, batch=(4000,), concentration=0.5)
    v = {name: gr.tabular_moments(student, teacher, e).variance for name, e in ALL.items()}
    slack = LOOSE64 * (1 + v["ii"])
    # conditioning on (s, a) is minimal per token, the norm-weighted baseline beats none and the plain one
    assert np.all(v["value"] <= np.minimum(v["ii"], v["iv"]) + slack)
    assert np.all(v["optimal"] <= np.minimum(v["ii"], v["iii"]) + slack)
    # what the table of the source suggests but is not so
    assert np.any(v["immediate"] > v["ii"] + slack)
    assert np.any(v["iv"] > v["ii"] + slack)
    # with two steps (iv) never has the larger variance, but the immediate form may
    student, teacher = policies(TokenTree(2, 2), 16, batch=(4000,), concentration=0.5)
    v = {
        name: gr.tabular_moments(student, teacher, gr.ESTIMATORS[name]).variance
        for name in ("ii", "iv", "immediate")
    }
    slack = LOOSE64 * (1 + v["ii"])
    assert np.all(v["iv"] <= v["ii"] + slack)
    assert np.any(v["immediate"] > v["ii"] + slack)


def test_iv_can_be_noisier_than_ii_with_shared_parameters_at_two_steps() -> None:
    tree = TokenTree(2, 2)
    parameters = gr.one_logit(tree)
    found = False
    for seed in range(40):
        _, teacher = policies(tree, seed, concentration=0.5)
        theta = np.random.default_rng(seed).normal(size=1)
        iv, ii = (gr.enumerated_moments(parameters, theta, teacher, name).variance for name in ("iv", "ii"))
        found = found or iv > ii * (1 + LOOSE64)
    assert found


def test_immediate_field_is_not_a_gradient_the_true_one_is() -> None:
    tree = TokenTree(2, 2)
    student, teacher = policies(tree, 17)
    parameters = gr.TabularLogits(tree)
    theta = parameters.order(np.log(student.flat))
    assert gr.asymmetry(gr.mean_field_jacobian(parameters, theta, teacher, "ii")) < FLOAT64
    assert gr.asymmetry(gr.mean_field_jacobian(parameters, theta, teacher, "immediate")) > LOOSE64
    assert gr.asymmetry(np.array([[0.0, 1.0], [-1.0, 0.0]])) == np.inf
    assert gr.asymmetry(np.zeros((2, 2))) == 0


def test_stationary_immediate_update_that_is_not_stationary_for_the_objective() -> None:
    tree = TokenTree(2, 2)
    teacher = Policy.from_probs(tree, [[[0.2, 0.8]], [[0.9, 0.1], [0.4, 0.6]]])
    parameters = gr.one_logit(tree)
    root = brentq(
        lambda x: gr.mean_field(parameters, np.array([x]), teacher, "immediate")[0], -5, 5, xtol=TIGHT
    )
    theta = np.array([root])
    assert abs(gr.mean_field(parameters, theta, teacher, "immediate")[0]) < FLOAT64
    assert abs(gr.mean_field(parameters, theta, teacher, "ii")[0]) > 0.01


def test_crossover_is_where_the_errors_meet() -> None:
    student, teacher = policies(TokenTree(3, 4), 18)
    biased, unbiased = (gr.tabular_moments(student, teacher, name) for name in ("immediate", "ii"))
    n = gr.crossover(biased, unbiased)
    assert n > 0
    assert close(biased.bias2 + biased.variance / n, unbiased.variance / n, FLOAT64)
    assert close(unbiased.bias2, 0.0, TIGHT)
    assert close(biased.mse(4), biased.bias2 + biased.variance / 4, TIGHT)
    assert gr.crossover(replace(biased, second_moment=biased.second_moment + 100), unbiased) == 0
    assert gr.crossover(replace(unbiased, second_moment=unbiased.second_moment / 2), unbiased) > 1 / LOOSE64


def test_exact_policies_enclose_the_floating_point_gradient() -> None:
    tree = TokenTree(3, 2, eos=2)
    levels = [[["1/2", "1/3", "1/6"]], [["1/4", "1/4", "1/2"], ["1/5", "3/5", "1/5"]]]
    other = [[["1/3", "1/3", "1/3"]], [["1/2", "1/4", "1/4"], ["1/7", "2/7", "4/7"]]]
    student, teacher = Policy.from_probs(tree, levels), Policy.from_probs(tree, other)
    for estimator in ALL.values():
        exact = gr.estimator_mean(student, teacher, estimator)
        floats = gr.estimator_mean(student.as_float(), teacher.as_float(), estimator)
        for e, f in zip(exact, floats, strict=True):
            assert close(to_float(e), f, FLOAT64)
    reward = terminal_reward(tree, lambda _, tokens: flint.fmpq(len(tokens), 3))
    gradient = gr.return_gradient(student, reward)
    assert all(isinstance(x, flint.fmpq) for level in gradient for x in level.flat)
    assert sum(gradient[0].flat) == 0


def test_policy_gradients_of_return_and_surrogate() -> None:
    tree = TREES["eos"]
    behavior, target = policies(tree, 19)
    rng = np.random.default_rng(20)
    reward = terminal_reward(tree, lambda prompt, tokens: float(rng.random()))
    tabular = gr.TabularLogits(tree)
    theta = tabular.order(np.log(target.flat))

    def pair(x: np.ndarray) -> PolicyPair:
        return PolicyPair(tree, behavior, policy_at(tabular, x), reward)

    def vector(levels: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([np.ravel(level) for level in levels])

    assert close(
        vector(gr.return_gradient(target, reward)), slopes(lambda x: pair(x).J_target, theta), LOOSE64
    )
    here = pair(theta)
    surrogate = vector(gr.surrogate_gradient(here))
    assert close(surrogate, slopes(lambda x: pair(x).surrogate, theta), LOOSE64)
    # tangent at the behaviour policy
    same = PolicyPair(tree, behavior, behavior, reward)
    assert close(vector(gr.surrogate_gradient(same)), vector(gr.return_gradient(behavior, reward)), FLOAT64)
    # the unified weight without mask and cap is the surrogate's gradient, at any target
    advantage = advantages_of(behavior, reward)
    ratio = [np.log(t) for t in target.levels], [np.log(b) for b in behavior.levels]
    weights = [masks.unified_weight("pg_is", t, b, a) for t, b, a in zip(*ratio, advantage, strict=True)]
    assert close(vector(gr.weighted_gradient(behavior, target, weights)), surrogate, FLOAT64)
    clipped = [masks.unified_weight("ppo", t, b, a) for t, b, a in zip(*ratio, advantage, strict=True)]
    assert not close(vector(gr.weighted_gradient(behavior, target, clipped)), surrogate, LOOSE64)


def advantages_of(policy: Policy, reward) -> list[np.ndarray]:
    """A(s, a) = Q − V by walking the public levels backwards."""
    tree = policy.tree
    continuing = [a for a in range(tree.vocab) if a != tree.eos]
    out, value = [], None
    for t in reversed(range(tree.horizon)):
        q = np.array(reward.levels[t])
        if value is not None:
            q[:, continuing] = value.reshape(len(q), len(continuing))
        value = (policy.levels[t] * q).sum(axis=1)
        out.append(q - value[:, None])
    return out[::-1]


def test_tokens_the_student_never_draws_are_harmless() -> None:
    tree = TokenTree(2, 2)
    student = Policy.from_probs(tree, [[[1.0, 0.0]], [[0.5, 0.5], [1.0, 0.0]]])
    teacher = Policy.from_probs(tree, [[[0.5, 0.5]], [[0.3, 0.7], [0.0, 1.0]]])
    with pytest.raises(ValueError, match="probability 0 on 1 actions"):
        gr.objective_gradient(student, teacher)
    gradient = gr.estimator_mean(student, teacher, gr.Estimator(alpha=0.5))
    assert all(np.isfinite(level).all() for level in gradient)
    covered = Policy.from_probs(tree, [[[0.5, 0.5]], [[0.3, 0.7], [0.9, 0.1]]])
    first, second = gr.objective_gradient(student, covered)
    assert first.tolist() == [[0.0, 0.0]]
    assert close(second[1], [0.0, 0.0], TIGHT)
    assert abs(second[0, 0]) > LOOSE64


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gr.Estimator("forward"), "form: got 'forward'"),
        (lambda: gr.Estimator(lam=2), "lam: got 2"),
        (lambda: gr.Estimator("total", lam=0.5), "lam: got 0.5 with form 'total'"),
        (lambda: gr.Estimator(alpha=0), "alpha: got 0"),
        (lambda: gr.Estimator(baseline="group"), "baseline: got 'group'"),
        (lambda: gr.estimator_mean(*policies(TREES["binary"], 0), "vi"), "estimator: got 'vi'"),
        (lambda: gr.tabular_moments(*policies(TREES["binary"], 0), "i").mse(0), "samples: got 0"),
        (lambda: gr.LinearLogits(TREES["binary"], [np.zeros((1, 2))]), "features: got shapes"),
        (lambda: gr.rollout(policies(TREES["binary"], 0, batch=(2,))[0], 5), "batch shape"),
        (lambda: gr.cosine([0.0], [1.0]), "no direction"),
    ],
)
def test_bad_input_is_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
