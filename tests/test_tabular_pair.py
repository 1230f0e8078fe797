"""Every quantity of a policy pair against enumeration of sequences, exact and in floating point."""

from __future__ import annotations

import random
from fractions import Fraction

import flint
import numpy as np
import pytest

from opdtheory.elementary import exact
from opdtheory.tabular import Policy, PolicyPair, Reward, TokenTree
from opdtheory.tabular.table import to_float
from tests import twins
from tests.tolerance import FLOAT64, close


def fast_tree(slow: twins.SlowTree) -> TokenTree:
    return TokenTree(slow.vocab, slow.horizon, slow.eos, len(slow.weights), slow.weights)


def instance(seed: int):
    rng = random.Random(seed)
    tree = twins.random_tree(rng)
    mu = twins.random_policy(rng, tree)
    pi = twins.random_target(rng, tree, mu)
    return tree, mu, pi, twins.random_terminal_reward(rng, tree)


def three_tables(rng, slow):
    return (
        twins.random_policy(rng, slow),
        twins.random_policy(rng, slow),
        twins.random_terminal_reward(rng, slow),
    )


def floats(levels):
    return [np.array(level, dtype=np.float64) for level in levels]


def value_of(pair: PolicyPair, name):
    return getattr(pair, name[0])(name[1]) if isinstance(name, tuple) else getattr(pair, name)


def agree(found, expected) -> bool:
    if isinstance(expected, Fraction | int) and isinstance(found, flint.fmpq | int):
        return exact(found) == exact(expected)
    return close(to_float(found), float(expected), FLOAT64)


@pytest.mark.parametrize("block", range(8))
def test_exact_pair_equals_enumeration(block):
    for seed in range(60 * block, 60 * (block + 1)):
        slow, mu, pi, reward = instance(seed)
        pair = PolicyPair.from_levels(fast_tree(slow), mu, pi, reward)
        assert pair.is_exact
        for name, expected in twins.pair_quantities(slow, mu, pi, reward).items():
            found = value_of(pair, name)
            assert agree(found, expected), (seed, name, found, expected)


@pytest.mark.parametrize("block", range(4))
def test_float_batches_equal_enumeration(block):
    rng = random.Random(block)
    for _ in range(12):
        slow = twins.random_tree(rng)
        instances = []
        for _ in range(25):
            mu = twins.random_policy(rng, slow)
            instances.append(
                (mu, twins.random_target(rng, slow, mu), twins.random_terminal_reward(rng, slow))
            )
        stacked = [
            [np.stack([floats(x[k])[t] for x in instances]) for t in range(slow.horizon)] for k in range(3)
        ]
        pair = PolicyPair.from_levels(fast_tree(slow), *stacked)
        for i, (mu, pi, reward) in enumerate(instances):
            for name, expected in twins.pair_quantities(slow, mu, pi, reward).items():
                found = value_of(pair, name)
                found = found[i] if np.ndim(found) else found
                assert close(found, float(expected), FLOAT64), (name, found, expected)


@pytest.mark.parametrize("huge", [0, 1 << 40])
def test_block_by_block_sums_equal_whole_ones(monkeypatch, huge):
    """The way large trees are handled, on small ones: kept blocks and blocks made again for every sum."""
    rng = random.Random(5)
    for seed in range(12):
        slow = twins.random_tree(rng, 40)
        tree = fast_tree(slow)
        batch = ((), (3,))[seed % 2]
        mu, pi = (Policy.random(tree, seed=[seed, i], batch=batch, zeros=0.2 * (seed % 3)) for i in range(2))
        reward = Reward.from_levels(tree, twins.random_terminal_reward(rng, slow)).as_float().broadcast(batch)
        whole = PolicyPair(tree, mu, pi, reward)
        names = list(twins.pair_quantities(slow, *three_tables(rng, slow)))
        expected = {name: value_of(whole, name) for name in [*names, "flat_target_gradient"]}
        with monkeypatch.context() as patch:
            patch.setattr("opdtheory.tabular.contrast._LARGE", 0)
            patch.setattr("opdtheory.tabular.contrast._HUGE", huge)
            patch.setattr("opdtheory.tabular.local.CHUNK", 7)
            blocks = PolicyPair(tree, mu, pi, reward)
            assert blocks.is_large
            for name, value in expected.items():
                assert close(value_of(blocks, name), value, FLOAT64), (seed, name)
