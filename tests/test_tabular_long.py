"""Long-horizon models and discounted MDPs against token trees, enumeration and truncated series."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from opdtheory.elementary import exact
from opdtheory.tabular import (
    DiscountedMDP,
    FiniteContextChain,
    IidBinary,
    PolicyPair,
    TokenTree,
    markov_sequence_tv,
)
from opdtheory.tabular.table import to_float
from tests import twins
from tests.tolerance import FLOAT64, LOOSE64, TIGHT, close

SHARED = (
    "J_behavior", "J_target", "improvement", "surrogate", "error", "adv_target_max", "tv_max",
    "tv_sum", "kl_max", "kl_seq", "reverse_kl_max", "reverse_kl_sum", "reverse_kl_seq", "k3_sum", "chi2_max",
    "chi2_seq", "ratio_martingale", "hellinger2_seq", "expected_length_behavior", "expected_length_target",
)  # fmt: skip


def rows(rng, count, size, kind):
    return [twins.random_row(rng, size, kind) for _ in range(count)]


@pytest.mark.parametrize("seed", range(40))
def test_last_token_chain_equals_its_tree(seed):
    rng = random.Random(seed)
    vocab, memory, horizon = rng.randint(1, 3), rng.randint(0, 2), rng.randint(1, 4)
    states = sum(vocab**k for k in range(memory + 1))
    kind = rng.choice(["sparse", "dense", "deterministic"])
    mu, pi = rows(rng, states, vocab, kind), rows(rng, states, vocab, rng.choice(["sparse", "dense"]))
    reward = [[Fraction(rng.randint(-3, 3), 2) for _ in range(vocab)] for _ in range(states)]
    final = [[Fraction(rng.randint(-3, 3), 2) for _ in range(vocab)] for _ in range(states)]
    chain = FiniteContextChain.last_token(
        mu, pi, horizon=horizon, reward=reward, final_reward=final, memory=memory
    )
    pair = chain.unrolled()
    assert chain.is_exact and pair.horizon == horizon
    floats = [np.array(x, dtype=float) for x in (mu, pi, reward, final)]
    fast = FiniteContextChain.last_token(
        *floats[:2], horizon=horizon, reward=floats[2], final_reward=floats[3]
    )
    batch = FiniteContextChain.last_token(
        *(np.stack([x, x[::-1], x]) for x in floats[:2]),
        horizon=horizon,
        reward=floats[2],
        final_reward=floats[3],
    )
    for name in SHARED:
        expected = getattr(pair, name)
        assert close(to_float(getattr(chain, name)), to_float(expected), FLOAT64), name
        assert close(getattr(fast, name), to_float(expected), FLOAT64), name
        assert close(getattr(batch, name)[2], to_float(expected), FLOAT64), name
    assert exact(chain.improvement) == exact(pair.improvement) and exact(chain.error) == exact(pair.error)


@pytest.mark.parametrize("seed", range(20))
def test_automaton_with_eos_and_time_varying_tables(seed):
    rng = random.Random(100 + seed)
    states, horizon = rng.randint(1, 3), rng.randint(1, 4)
    successor = [[-1, rng.randrange(states), rng.randrange(states)] for _ in range(states)]

    def table():
        return np.array([rows(rng, states, 3, "sparse") for _ in range(horizon)], dtype=float)

    start = np.eye(states)[rng.randrange(states)]
    reward = np.array([[[rng.random() for _ in range(3)] for _ in range(states)] for _ in range(horizon)])
    chain = FiniteContextChain(
        successor, table(), table(), horizon=horizon, initial=start, reward=reward, final_reward=reward[::-1],
        time_varying=True,
    )  # fmt: skip
    pair = chain.unrolled()
    for name in SHARED:
        assert close(getattr(chain, name), getattr(pair, name), FLOAT64), name


def test_count_chain_and_segments(monkeypatch):
    """Counting ones, with a reward on the count; a small segment gives the same sums as one pass."""
    horizon = 9
    rng = np.random.default_rng(0)
    mu, pi = rng.dirichlet([1, 1], horizon + 1), rng.dirichlet([1, 1], horizon + 1)
    final = (np.arange(horizon + 1)[:, None] + [0, 1]) ** 2 / 81.0
    chain = FiniteContextChain.count(mu, pi, horizon=horizon, final_reward=final)
    pair = chain.unrolled()
    monkeypatch.setattr("opdtheory.tabular.chains._SEGMENT_NUMBERS", 40)
    cut = FiniteContextChain.count(mu, pi, horizon=horizon, final_reward=final)
    for name in SHARED:
        assert close(getattr(chain, name), getattr(pair, name), FLOAT64), name
        assert close(getattr(cut, name), getattr(chain, name), TIGHT), name


def test_long_chain_against_independent_tokens():
    """A memoryless chain at T = 16384 agrees with the laws by counts."""
    horizon, p, q = 16384, 0.5, 0.5005
    iid = IidBinary(p, q, horizon)
    chain = FiniteContextChain.last_token([[1 - p, p]], [[1 - q, q]], horizon=horizon, reward=[[0.0, 1.0]])
    for name in ("tv_sum", "kl_seq", "reverse_kl_seq", "chi2_seq", "kl_max", "chi2_max"):
        assert close(getattr(chain, name) / getattr(iid, name), 1, LOOSE64), name
    assert close(chain.improvement, horizon * (q - p), LOOSE64)
    assert abs(chain.error) < LOOSE64  # an additive reward of independent tokens has no error
    assert close(iid.J_target(iid.counts), horizon * q, LOOSE64)
    # E_μ Σ (W_{t-1} - 1)² χ² with E_μ (W_{t-1} - 1)² = (1 + χ²)^(t-1) - 1
    x = iid.chi2_max
    assert close(chain.ratio_martingale, np.expm1(horizon * np.log1p(x)) - horizon * x, LOOSE64)


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (0.5, 0.3),
        (0.2, 0.7),
        (0.5, 0.500001),
        (0.3, 0.3),
        (0, 0.3),
        (0.3, 0),
        (1, 0.4),
        (0, 1),
        (0.4, 1),
        (0, 0),
    ],
)
@pytest.mark.parametrize("horizon", [1, 2, 7])
def test_independent_tokens_equal_their_tree(p, q, horizon):
    tree = TokenTree(2, horizon)
    rng = np.random.default_rng(horizon)
    by_count = rng.random(horizon + 1)
    counts = [np.array([bin(c).count("1") for c in range(2**t)]) for t in range(horizon)]
    reward = [np.zeros((2**t, 2)) for t in range(horizon)]
    reward[-1] = by_count[counts[-1][:, None] + [0, 1]]
    mu, pi = ([np.tile([1 - x, x], (2**t, 1)) for t in range(horizon)] for x in (p, q))
    pair = PolicyPair.from_levels(tree, mu, pi, reward)
    iid = IidBinary(p, q, horizon)
    for name in ("tv_seq", "tv_max", "tv_sum", "kl_seq", "kl_max", "reverse_kl_seq", "chi2_seq", "chi2_max"):
        assert close(getattr(iid, name), getattr(pair, name), FLOAT64), name
    assert close(markov_sequence_tv([[1 - p, p]] * 2, [[1 - q, q]] * 2, horizon), pair.tv_seq, FLOAT64)
    assert close(iid.J_behavior(by_count), pair.J_behavior, FLOAT64)
    assert close(iid.J_target(lambda k: by_count[k]), pair.J_target, FLOAT64)
    if 0 < p < 1:
        for name in ("improvement", "surrogate", "error"):
            assert close(getattr(iid, name)(by_count), getattr(pair, name), FLOAT64), name
        assert close(iid.error_sup, pair.error_sup, FLOAT64)
        assert close(iid.error(iid.extremal_reward()), iid.error_sup, FLOAT64)
    else:
        with pytest.raises(ValueError, match="expected 0 < p < 1"):
            _ = iid.remainder


@pytest.mark.parametrize("seed", range(15))
def test_markov_sequence_tv_equals_enumeration(seed):
    rng = random.Random(seed)
    horizon = rng.randint(1, 6)
    mu, pi, starts = (rows(rng, 2, 2, rng.choice(["sparse", "dense", "deterministic"])) for _ in range(3))
    slow = twins.SlowTree(2, horizon, None, [Fraction(1)])

    def law(chain, start):
        return [
            twins.product([start[y[0]], *(chain[a][b] for a, b in pairwise(y))]) for _, y in slow.sequences
        ]

    expected = twins.tv(law(mu, starts[0]), law(pi, starts[1]))
    floats = [np.array(x, dtype=float) for x in (mu, pi)]
    found = markov_sequence_tv(*floats, horizon, initial=np.array(starts, dtype=float))
    assert close(found, float(expected), FLOAT64)


def test_long_markov_chain_reduces_to_independent_tokens():
    found = markov_sequence_tv([[0.5, 0.5]] * 2, [[0.49, 0.51]] * 2, 512)
    assert close(found, IidBinary(0.5, 0.51, 512).tv_seq, FLOAT64)


@pytest.mark.parametrize("seed", range(15))
def test_mdp_equals_truncated_rollout_sums(seed):
    rng = random.Random(seed)
    s, a = rng.randint(1, 3), rng.randint(1, 3)
    transition = np.array([rows(rng, a, s, "sparse") for _ in range(s)], dtype=float)
    mu, pi = (np.array(rows(rng, s, a, "dense"), dtype=float) for _ in range(2))
    initial = np.array(twins.random_row(rng, s, "sparse"), dtype=float)
    reward = np.array([[rng.uniform(-1, 1) for _ in range(a)] for _ in range(s)])
    gamma = 0.6
    mdp = DiscountedMDP(transition, reward, gamma, initial, mu, pi)

    def rollout(policy):
        law, total, visits = initial, 0.0, 0.0
        for t in range(90):
            pairs = law[:, None] * policy
            total += gamma**t * (pairs * reward).sum()
            visits += gamma**t * law
            law = (pairs[..., None] * transition).sum(axis=(0, 1))
        return total, visits

    (j_mu, d), (j_pi, _) = rollout(mu), rollout(pi)
    assert close(mdp.J_behavior, j_mu, FLOAT64) and close(mdp.J_target, j_pi, FLOAT64)
    assert close(mdp.improvement, j_pi - j_mu, FLOAT64)
    assert close(mdp.visits_behavior, d, FLOAT64)
    assert close((mdp.behavior * mdp.advantage).sum(axis=-1), np.zeros(s), FLOAT64)
    assert close(mdp.surrogate + mdp.error, mdp.improvement, FLOAT64)
    # a batch of the instance and its mirror image
    both = [np.stack([x, y]) for x, y in ((transition, transition), (reward, -reward), (initial, initial))]
    batch = DiscountedMDP(both[0], both[1], gamma, both[2], np.stack([mu, mu]), np.stack([pi, pi]))
    for name in ("J_behavior", "improvement", "surrogate", "error"):
        assert close(getattr(batch, name), getattr(mdp, name) * np.array([1, -1]), FLOAT64), name
    for name in ("adv_max", "adv_target_max", "tv_max", "tv_mean", "kl_max", "reverse_kl_max"):
        assert close(getattr(batch, name), [getattr(mdp, name)] * 2, FLOAT64), name


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: FiniteContextChain([[0, 1]], [[0.5, 0.5]], [[0.5, 0.5]], horizon=2), r"entries in -1..0"),
        (
            lambda: FiniteContextChain([[0, 0]], [[0.5, 0.6]], [[0.5, 0.5]], horizon=2),
            r"behavior\[0\] sums to 1.1",
        ),
        (lambda: FiniteContextChain([[0, 0]], [[0.5, 0.5]], [[1.0]], horizon=2), r"target has shape"),
        (lambda: FiniteContextChain([[0, 0]], [[0.5, 0.5]], [[0.5, 0.5]], horizon=0), r"horizon = 0"),
        (lambda: FiniteContextChain.last_token(np.eye(2), np.eye(2), horizon=3), r"expected 1 \+ V"),
        (lambda: FiniteContextChain.count(np.eye(2), np.eye(2), horizon=3), r"expected horizon \+ 1 = 4"),
        (lambda: IidBinary(1.5, 0.5, 3), r"p = 1.5"),
        (lambda: IidBinary(0.5, 0.5, 0), r"horizon = 0"),
        (lambda: IidBinary(0.5, 0.5, 3).J_behavior([1.0]), r"reward has shape \(1,\): expected \(4,\)"),
        (lambda: markov_sequence_tv([[1, 1], [0, 1]], np.eye(2), 3), r"behavior = .*two rows"),
        (lambda: DiscountedMDP([[[1.0]]], [[1.0]], 1.0, [1.0], [[1.0]], [[1.0]]), r"gamma = 1.0"),
        (lambda: DiscountedMDP([[[1.0]]], [[1.0]], 0.5, [0.5], [[1.0]], [[1.0]]), "initial sums to 0.5"),
        (lambda: DiscountedMDP([[[1.0]]], [[1.0]], 0.5, [1.0, 0.0], [[1.0]], [[1.0]]), r"initial has shape"),
    ],
)
def test_bad_models_are_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build()
