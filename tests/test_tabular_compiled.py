"""The compiled pass and the buffers against the array code, whose own twin is enumeration."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest

from opdtheory import gradients, tabular
from opdtheory.tabular import Policy, PolicyPair, Reward, TokenTree, buffered, eager, terminal_reward
from tests import twins
from tests.tolerance import FLOAT64, LOOSE64, close

compiled = pytest.importorskip("opdtheory.tabular.compiled", exc_type=ImportError)

SHAPES = [
    (2, 9, None, 1, ()),
    (3, 4, 0, 200, ()),
    (5, 3, 2, 7, (20,)),
    (1, 2, 0, 3, (4,)),
    (1, 3, None, 1, ()),
    (2, 1, None, 1, ()),
    (3, 3, 1, 2, ()),
    (4, 5, None, 1, ()),
    (2, 3, 0, 3, (5,)),
    (3, 4, None, 1, (300,)),
    (3, 2, 2, 2, (2, 3)),
]


@pytest.fixture
def without_numba(monkeypatch):
    monkeypatch.setitem(sys.modules, "opdtheory.tabular.compiled", None)
    monkeypatch.delattr(tabular, "compiled")


def random_pair(shape, seed=0, closeness=None):
    vocab, horizon, eos, prompts, batch = shape
    tree = TokenTree(vocab, horizon, eos, prompts)
    mu = Policy.random(tree, seed=seed, batch=batch)
    pi = (
        Policy.random(tree, seed=seed + 1, batch=batch)
        if closeness is None
        else mu.perturbed(closeness, seed=1)
    )
    rng = np.random.default_rng(seed)
    table = rng.normal(size=mu.flat.shape)
    table[: tree.branching, : tree.offsets[-2]] = 0
    return PolicyPair(tree, mu, pi, Reward(tree, table, batch))


@pytest.mark.parametrize("shape", SHAPES)
def test_one_pass_equals_the_array_code(shape):
    lazy, ready = random_pair(shape), random_pair(shape)
    assert ready.precompute() is ready
    for name in eager.USUAL:
        assert name in vars(ready), name
        found, expected = getattr(ready, name), getattr(lazy, name)
        assert np.shape(found) == np.shape(expected) == shape[-1], name
        assert close(found, expected, FLOAT64), name


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("way", ["compiled", "buffered"])
def test_both_ways_equal_enumeration(seed, way, request):
    """Positive random instances against sequences listed with fractions."""
    if way == "buffered":
        request.getfixturevalue("without_numba")
    rng = random.Random(seed)
    slow = twins.random_tree(rng)
    tree = TokenTree(slow.vocab, slow.horizon, slow.eos, len(slow.weights), slow.weights)
    instances = [
        (
            *(twins.random_policy(rng, slow, "dense") for _ in range(2)),
            twins.random_terminal_reward(rng, slow),
        )
        for _ in range(10)
    ]
    stacked = [
        [np.array([x[k][t] for x in instances], dtype=np.float64) for t in range(slow.horizon)]
        for k in range(3)
    ]
    pair = PolicyPair.from_levels(tree, *stacked).precompute()
    for i, tables in enumerate(instances):
        expected = twins.pair_quantities(slow, *tables)
        for name in set(eager.USUAL) & set(expected):
            assert close(vars(pair)[name][i], float(expected[name]), FLOAT64), name


@pytest.mark.parametrize("closeness", [1e-2, 1e-5, 1e-8])
def test_close_policies_keep_relative_accuracy(closeness):
    lazy, ready = (random_pair((3, 3, 2, 1, (40,)), closeness=closeness) for _ in range(2))
    ready.precompute()
    for name in (
        "improvement",
        "surrogate",
        "error_sup",
        "tv_seq",
        "kl_seq",
        "kl_max",
        "reverse_kl_seq",
        "chi2_seq",
    ):
        assert np.all(np.abs(getattr(ready, name) / getattr(lazy, name) - 1) < LOOSE64), name


def spread_pair(exponents):
    tree = TokenTree(2, 1)
    small = 10.0**-exponents
    mu = np.stack([small, 1 - small])[:, None, :]
    return PolicyPair.from_flat(tree, mu, np.roll(mu, 1, axis=2), np.ones_like(mu))


def test_spread_ratios():
    """Logarithms of ratios over the whole range of exponents that the compiled pass takes."""
    lazy, ready = (spread_pair(np.arange(1, 100, 7.0)) for _ in range(2))
    ready.precompute()
    assert "kl_seq" in vars(ready)
    for name in ("kl_seq", "reverse_kl_seq", "hellinger2_seq"):
        assert np.all(np.abs(getattr(ready, name) / getattr(lazy, name) - 1) < FLOAT64), name


def test_vanishing_probabilities_are_left_to_the_array_code():
    ready = spread_pair(np.arange(1, 300, 23.0)).precompute()
    assert "kl_seq" not in vars(ready) and np.all(ready.kl_seq > 0)
    assert compiled.summarise(TokenTree(2, 1), *(np.array([[0.0], [1.0]]),) * 3) is None


def test_prompts_without_weight():
    tree = TokenTree(2, 3, prompts=2, prompt_probs=[0.0, 1.0])
    mu, pi = (Policy.random(tree, seed=seed) for seed in (1, 2))
    reward = terminal_reward(tree, lambda prompt, tokens: prompt + sum(tokens))
    lazy, ready = (PolicyPair(tree, mu, pi, reward) for _ in range(2))
    ready.precompute()
    assert all(close(vars(ready)[name], getattr(lazy, name), FLOAT64) for name in eager.USUAL)


@pytest.mark.parametrize("per_block", [2, 3, 1000])
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[-1]])
def test_buffers_equal_the_array_code(shape, per_block, monkeypatch, without_numba):
    lazy, ready = random_pair(shape), random_pair(shape)
    monkeypatch.setattr(buffered, "_BLOCK_NUMBERS", per_block * lazy.tree.pairs_total)
    ready.precompute(gradient=True)
    for name in (*eager.USUAL, "flat_target_gradient"):
        assert np.shape(vars(ready)[name]) == np.shape(getattr(lazy, name))
        assert close(vars(ready)[name], getattr(lazy, name), FLOAT64), name


def test_single_instances_and_zeros_are_left_to_the_array_code(without_numba):
    pair = random_pair((2, 2, None, 1, ())).precompute()
    assert "kl_seq" not in vars(pair) and pair.kl_seq > 0
    sparse = random_pair((3, 2, None, 1, (4,)))
    sparse.target.flat[0, 0, 2], sparse.target.flat[1, 0, 2] = 0.0, 1.0 - sparse.target.flat[2, 0, 2]
    assert "kl_seq" not in vars(sparse.precompute()) and np.isinf(sparse.kl_seq).tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_equals_the_gradients_module(shape):
    pair = random_pair(shape)
    expected = gradients.return_gradient(pair.target, pair.reward)
    assert all(close(a, b, FLOAT64) for a, b in zip(pair.target_gradient, expected, strict=True))
    ready = random_pair(shape).precompute(gradient=True)
    assert "flat_target_gradient" in vars(ready)
    assert all(close(a, b, FLOAT64) for a, b in zip(ready.target_gradient, expected, strict=True))


def test_zeros_and_exact_numbers_are_left_to_the_array_code():
    tree = TokenTree(2, 2)
    zeros = Policy.deterministic(tree, [[0], [0, 1]])
    reward = Reward(tree, np.zeros_like(zeros.flat))
    assert "kl_seq" not in vars(PolicyPair(tree, zeros, Policy.uniform(tree), reward).precompute())
    exact = PolicyPair(tree, Policy.uniform(tree, exact=True), Policy.uniform(tree), reward).precompute()
    assert "kl_seq" not in vars(exact) and exact.kl_seq == 0
