"""The compiled pass against the array code, whose own twin is enumeration."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from opdtheory import gradients, tabular
from opdtheory.tabular import Policy, PolicyPair, Reward, TokenTree
from tests.tolerance import FLOAT64, LOOSE64, close

compiled = pytest.importorskip("opdtheory.tabular.compiled", exc_type=ImportError)

SHAPES = [
    (1, 3, None, 1, ()),
    (2, 1, None, 1, ()),
    (3, 3, 1, 2, ()),
    (4, 5, None, 1, ()),
    (2, 3, 0, 3, (5,)),
    (3, 4, None, 1, (300,)),
    (3, 2, 2, 2, (2, 3)),
]


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


def public_names():
    sums = [name for name in compiled.SUMMED if name != "variance"]
    derived = [
        "J_behavior",
        "J_target",
        "reward_sd",
        "delta",
        "surrogate_reward",
        "k3_sum",
        "w_second_moment",
    ]
    return [*sums, *compiled.TAKEN_MAXIMUM, *derived]


@pytest.mark.parametrize("shape", SHAPES)
def test_one_pass_equals_the_array_code(shape):
    lazy, eager = random_pair(shape), random_pair(shape)
    assert eager.precompute() is eager
    for name in public_names():
        assert name in vars(eager), name
        found, expected = getattr(eager, name), getattr(lazy, name)
        assert np.shape(found) == np.shape(expected) == shape[-1], name
        assert close(found, expected, FLOAT64), name


@pytest.mark.parametrize("closeness", [1e-2, 1e-5, 1e-8])
def test_close_policies_keep_relative_accuracy(closeness):
    lazy, eager = (random_pair((3, 3, 2, 1, (40,)), closeness=closeness) for _ in range(2))
    eager.precompute()
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
        assert np.all(np.abs(getattr(eager, name) / getattr(lazy, name) - 1) < LOOSE64), name


def test_spread_ratios():
    """Logarithms of ratios over the whole range of exponents."""
    tree = TokenTree(2, 1)
    small = 10.0 ** -np.arange(1, 300, 23.0)
    mu = np.stack([small, 1 - small])[:, None, :]
    pi = np.roll(mu, 1, axis=2)
    lazy, eager = (PolicyPair.from_flat(tree, mu, pi, np.ones_like(mu)) for _ in range(2))
    eager.precompute()
    for name in ("kl_seq", "reverse_kl_seq", "hellinger2_seq"):
        assert np.all(np.abs(getattr(eager, name) / getattr(lazy, name) - 1) < FLOAT64), name


@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_equals_the_gradients_module(shape):
    pair = random_pair(shape)
    expected = gradients.return_gradient(pair.target, pair.reward)
    assert all(close(a, b, FLOAT64) for a, b in zip(pair.target_gradient, expected, strict=True))
    eager = random_pair(shape).precompute(gradient=True)
    assert "flat_target_gradient" in vars(eager)
    assert all(close(a, b, FLOAT64) for a, b in zip(eager.target_gradient, expected, strict=True))


def test_zeros_exact_numbers_and_missing_numba_are_left_to_the_array_code(monkeypatch):
    tree = TokenTree(2, 2)
    zeros = Policy.deterministic(tree, [[0], [0, 1]])
    reward = Reward(tree, np.zeros_like(zeros.flat))
    assert "kl_seq" not in vars(PolicyPair(tree, zeros, Policy.uniform(tree), reward).precompute())
    exact = PolicyPair(tree, Policy.uniform(tree, exact=True), Policy.uniform(tree), reward).precompute()
    assert "kl_seq" not in vars(exact) and exact.kl_seq == 0
    monkeypatch.setitem(sys.modules, "opdtheory.tabular.compiled", None)
    monkeypatch.delattr(tabular, "compiled")
    pair = random_pair((2, 2, None, 1, ())).precompute()
    assert "kl_seq" not in vars(pair) and pair.kl_seq > 0
