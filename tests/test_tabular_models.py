"""Trees, policies made from policies, occupancies, values, sampling and refused input."""

from __future__ import annotations

import random
from fractions import Fraction

import flint
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opdtheory.elementary import exact
from opdtheory.tabular import (
    Policy,
    PolicyPair,
    Reward,
    SingleState,
    TeacherStudent,
    TokenTree,
    action_values,
    sample_trajectories,
    terminal_reward,
    token_reward,
)
from opdtheory.tabular.table import to_float
from tests import twins
from tests.test_tabular_pair import fast_tree, instance
from tests.tolerance import FLOAT64, LOOSE64, SIGMAS, TIGHT, close


def equal(found, expected) -> bool:
    """Exact equality of nested levels with nested lists of fractions."""
    return all(
        exact(a) == exact(b)
        for level, rows in zip(found, expected, strict=True)
        for a, b in zip(level.ravel(), np.array(rows, dtype=object).ravel(), strict=True)
    )


# ---- layout


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.data())
def test_tree_numbers_contexts_as_listed(vocab, horizon, prompts, data):
    eos = data.draw(st.sampled_from([None, *range(vocab)]))
    tree = TokenTree(vocab, horizon, eos, prompts)
    slow = twins.SlowTree(vocab, horizon, eos, [Fraction(1, prompts)] * prompts)
    for t in range(horizon):
        assert tree.contexts(t) == len(slow.contexts[t])
        assert [tree.context_label(t, c) for c in range(tree.contexts(t))] == slow.contexts[t]
    assert list(tree.sequences()) == slow.sequences
    assert tree.sequences_total == len(slow.sequences)
    for prompt, tokens in tree.sequences():
        t, c, a = tree.locate(prompt, tokens)
        assert (t, a) == (len(tokens) - 1, tokens[-1])
        assert slow.contexts[t][c] == (prompt, tokens[:-1])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 3),
    st.lists(st.integers(1, 3), max_size=2),
    st.data(),
)
def test_levels_survive_the_inner_layout(vocab, horizon, prompts, batch, data):
    eos = data.draw(st.sampled_from([None, *range(vocab)]))
    tree = TokenTree(vocab, horizon, eos, prompts)
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    levels = [rng.random((*batch, *tree.level_shape(t))) for t in range(horizon)]
    back = Reward.from_levels(tree, levels).levels
    assert all(np.array_equal(a, b) for a, b in zip(levels, back, strict=True))
    # a child of a context is where the numbering says
    policy = Policy.random(tree, seed=rng, batch=tuple(batch))
    d, p = policy.occupancy, policy.levels
    for t in range(horizon - 1):
        for rank, action in enumerate(tree.action_order[: tree.branching]):
            children = d[t + 1][..., rank :: tree.branching] if tree.branching else d[t + 1]
            assert np.allclose(children, d[t] * p[t][..., action], rtol=TIGHT, atol=0)


@pytest.mark.parametrize("seed", range(40))
def test_occupancy_and_laws_equal_enumeration(seed):
    slow, mu, _, _ = instance(seed)
    policy = Policy.from_probs(fast_tree(slow), mu)
    twin = twins.SlowPolicy(slow, mu)
    assert equal(policy.occupancy, twin.occupancy())
    law = {s: w for s, w in zip(slow.sequences, twin.law(), strict=True)}
    for s, w in law.items():
        t, c, a = policy.tree.locate(*s)
        assert policy.sequence_law[t][c, a] == exact(w)
    assert sum(level.sum() for level in policy.sequence_law) == 1
    assert policy.expected_length == exact(twin.expected_length())
    normalised = policy.normalised_occupancy
    assert sum(level.sum() for level in normalised) == 1
    assert normalised[0][0] * policy.expected_length == policy.occupancy[0][0]


@pytest.mark.parametrize("seed", range(25))
def test_values_of_token_rewards_equal_enumeration(seed):
    rng = random.Random(seed)
    slow = twins.random_tree(rng, 20)
    mu = twins.random_policy(rng, slow)
    tree, twin = fast_tree(slow), twins.SlowPolicy(slow, mu)
    table = {}
    reward = token_reward(tree, lambda x, y: table.setdefault((x, y), Fraction(rng.randint(-3, 3), 2)))
    values = action_values(Policy.from_probs(tree, mu), reward)
    for t, level in enumerate(slow.contexts):
        for i, (x, y) in enumerate(level):
            total = Fraction(0)
            for a in range(slow.vocab):
                later = [
                    (w, sum(table[s[0], s[1][: j + 1]] for j in range(t, len(s[1]))))
                    for w, s in twin.completion(x, (*y, a))
                ]
                q = sum((w * r for w, r in later), Fraction(0))
                assert values.q[t][i, a] == exact(q)
                total += twin.row[x, y][a] * q
            assert values.v[t][i] == exact(total)
            assert values.advantage[t][i, 0] == values.q[t][i, 0] - values.v[t][i]
    # the equivalent terminal reward has the same returns, hence the same J
    pair = PolicyPair(tree, Policy.from_probs(tree, mu), Policy.from_probs(tree, mu), reward)
    assert pair.reward.is_terminal and pair.J_behavior == values.expected_return


def test_terminal_reward_lies_on_endings():
    tree = TokenTree(3, 2, eos=1, prompts=2)
    reward = terminal_reward(tree, lambda x, y: Fraction(x + len(y), 3))
    assert reward.is_terminal and reward.is_exact
    assert [str(v) for v in reward.levels[0].ravel()] == ["0", "1/3", "0", "0", "2/3", "0"]
    assert not terminal_reward(tree, lambda x, y: 0.5 * x).is_exact


# ---- policies from policies


@pytest.mark.parametrize("seed", range(25))
def test_sequence_mixture_mixes_laws(seed):
    rng = random.Random(seed)
    slow = twins.random_tree(rng)
    tree = fast_tree(slow)
    a, b = (Policy.from_probs(tree, twins.random_policy(rng, slow)) for _ in range(2))
    weight = Fraction(rng.randint(0, 4), 4)
    mixed = Policy.sequence_mixture(a, b, weight)
    mixed.validate()
    w = exact(weight)
    assert (mixed.flat_sequence_law == w * a.flat_sequence_law + (1 - w) * b.flat_sequence_law).all()
    token = Policy.mixture(a, b, weight)
    token.validate()
    assert (token.flat == w * a.flat + (1 - w) * b.flat).all()
    # the closed form for the distance of the sequence-level mixture agrees with the mixture itself
    x = TeacherStudent(tree, teacher=a, student=b)
    assert x.l1_sequence_mixed(weight) == 2 * TeacherStudent(tree, teacher=a, student=mixed).tv_seq


def slow_truncation(row, top_k, top_p):
    order = sorted(range(len(row)), key=lambda a: (-row[a], a))[: top_k or len(row)]
    total = sum(row[a] for a in order)
    kept, mass = [], Fraction(0)
    for a in order:
        if top_p is not None and mass >= top_p:
            break
        kept.append(a)
        mass += row[a] / total
    total = sum(row[a] for a in kept)
    return [row[a] / total if a in kept else Fraction(0) for a in range(len(row))]


@pytest.mark.parametrize("seed", range(30))
def test_truncation_equals_its_definition(seed):
    rng = random.Random(seed)
    slow = twins.random_tree(rng)
    levels = twins.random_policy(rng, slow)
    policy = Policy.from_probs(fast_tree(slow), levels)
    top_k = rng.choice([None, 1, slow.vocab])
    top_p = rng.choice([None, Fraction(1, 3), Fraction(1, 2), Fraction(1)])
    expected = [[slow_truncation(row, top_k, top_p) for row in level] for level in levels]
    assert equal(policy.truncated(top_k=top_k, top_p=top_p).levels, expected)
    floats = policy.as_float().broadcast((3,)).truncated(top_k=top_k)
    assert close(floats[1].flat, to_float(policy.truncated(top_k=top_k).flat), TIGHT)


def test_random_families_are_distributions_and_reproducible():
    tree = TokenTree(4, 3, eos=2, prompts=2)
    scales = np.array([0.01, 0.1, 1.0, 10.0])
    policy = Policy.random(tree, seed=3, batch=(4,), concentration=scales, zeros=0.3)
    policy.validate()
    assert np.array_equal(
        policy.flat, Policy.random(tree, seed=3, batch=(4,), concentration=scales, zeros=0.3).flat
    )
    assert not np.array_equal(
        policy.flat, Policy.random(tree, seed=4, batch=(4,), concentration=scales, zeros=0.3).flat
    )
    assert (policy.flat == 0).any()
    sharpness = np.sort(Policy.random(tree, seed=1, batch=(4,), concentration=scales).flat, axis=0)[-1].mean(
        axis=0
    )
    assert (np.diff(sharpness) < 0).all()
    near = policy[2].perturbed(np.array([0.0, 1e-6, 1.0]), seed=1)
    near.validate()
    gap = np.abs(near.flat - policy[2].flat[..., None]).max(axis=(0, 1))
    assert gap[0] < TIGHT < gap[1] < LOOSE64 * 100 < gap[2]
    assert ((near.flat == 0) == (policy[2].flat == 0)[..., None]).all()
    assert close(policy.tempered(1.0).flat, policy.flat, TIGHT)
    assert np.allclose(Policy.random(tree, batch=(2,)).tempered(1e-3).flat.max(axis=0), 1)


def test_dirichlet_mean_is_uniform():
    draws = Policy.random(TokenTree(3, 1), seed=0, batch=(20000,), concentration=0.7).flat[:, 0]
    error = draws.std(axis=1) / np.sqrt(draws.shape[1])
    assert (np.abs(draws.mean(axis=1) - 1 / 3) < SIGMAS * error).all()
    # variance of a symmetric Dirichlet coordinate: (1/V)(1 - 1/V)/(V a + 1)
    expected = (1 / 3) * (2 / 3) / (3 * 0.7 + 1)
    squares = (draws - 1 / 3) ** 2
    assert (np.abs(squares.mean(axis=1) - expected) < SIGMAS * squares.std(axis=1) / np.sqrt(20000)).all()


# ---- sampling


@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
def test_samples_follow_the_sequence_law(batch):
    tree = TokenTree(3, 3, eos=1, prompts=2, prompt_probs=[0.25, 0.75])
    policy = Policy.random(tree, seed=5, batch=batch, zeros=0.2)
    drawn = sample_trajectories(policy, 4000, seed=7)
    assert drawn.tokens.shape == (*batch, 4000, 3)
    tokens = drawn.tokens.reshape(-1, 4000, 3)
    prompts = drawn.prompts.reshape(-1, 4000)
    law = [level.reshape(-1, *level.shape[-2:]) for level in policy.sequence_law]
    for i in range(len(tokens)):
        found: dict = {}
        for x, y in zip(prompts[i], tokens[i], strict=True):
            key = (int(x), tuple(int(a) for a in y if a >= 0))
            found[key] = found.get(key, 0) + 1
        for s in tree.sequences():
            t, c, a = tree.locate(*s)
            w = law[t][i, c, a]
            assert abs(found.pop(s, 0) / 4000 - w) <= SIGMAS * np.sqrt(w * (1 - w) / 4000) + TIGHT
        assert not found
    lengths = drawn.lengths.mean(axis=-1)
    assert np.all(np.abs(lengths - policy.expected_length) < SIGMAS / np.sqrt(4000))
    again = sample_trajectories(policy, 4000, seed=7)
    assert np.array_equal(drawn.tokens, again.tokens)
    # gathered probabilities are those of the sampled tokens
    along = drawn.along(policy)
    assert np.array_equal(along > 0, drawn.alive)
    x, y = int(prompts[-1][0]), [int(a) for a in tokens[-1][0] if a >= 0]
    t, c, a = tree.locate(x, y)
    last = policy.levels[t].reshape(-1, *policy.levels[t].shape[-2:])[-1, c, a]
    assert along.reshape(-1, 4000, 3)[-1, 0, t] == last


# ---- accuracy near equality


@pytest.mark.parametrize("power", [2, 4, 6, 8])
def test_close_policies_keep_relative_accuracy(power):
    """Quantities of policies at distance 10^-power agree with exact arithmetic to many digits."""
    rng = random.Random(power)
    slow = twins.SlowTree(3, 3, 2, [Fraction(1)])
    mu = twins.random_policy(rng, slow, "dense")
    other = twins.random_policy(rng, slow, "dense")
    # steps by powers of two are exact in float64 once the probabilities are
    e = Fraction(1, 2 ** (3 * power + 3))
    mu = [[[Fraction(float(p)) for p in row] for row in level] for level in mu]
    mu = [[[*row[:-1], 1 - sum(row[:-1])] for row in level] for level in mu]
    pi = [
        [
            [Fraction(float((1 - e) * a + e * b)) for a, b in zip(x, y, strict=True)]
            for x, y in zip(m, o, strict=True)
        ]
        for m, o in zip(mu, other, strict=True)
    ]
    pi = [[[*row[:-1], 1 - sum(row[:-1])] for row in level] for level in pi]
    reward = twins.random_terminal_reward(rng, slow)
    tree = fast_tree(slow)
    pair = PolicyPair.from_levels(tree, mu, pi, reward)
    approximate = PolicyPair(tree, pair.behavior.as_float(), pair.target.as_float(), pair.reward.as_float())
    names = ["improvement", "surrogate", "error", "error_sup", "tv_sum", "kl_seq", "kl_max", "reverse_kl_seq"]
    for name in [*names, "chi2_seq", "ratio_martingale", "hellinger2_seq", "tv_seq"]:
        with flint.ctx.workprec(400):
            truth = to_float(getattr(pair, name))
        assert truth != 0
        assert abs(getattr(approximate, name) / truth - 1) < LOOSE64, (name, truth)


# ---- refused input

TREE = TokenTree(vocab=2, horizon=2)
GOOD = [[[0.5, 0.5]], [[0.5, 0.5], [1.0, 0.0]]]


def replaced(t, c, row):
    levels = [[list(r) for r in level] for level in GOOD]
    levels[t][c] = row
    return levels


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        (replaced(1, 1, [0.5, 0.6]), r"levels\[1\]\[1\].*sums to 1.1.*expected 1"),
        (replaced(1, 0, [1.5, -0.5]), r"levels\[1\]\[0, 1\] = -0.5.*probability in \[0, 1\]"),
        (replaced(0, 0, [float("nan"), 1.0]), r"levels\[0\]\[0, 0\] = nan.*finite"),
        (replaced(1, 1, [Fraction(1, 2), Fraction(1, 3)]), r"levels\[1\]\[1\].*sums to 5/6.*expected 1"),
        (GOOD[:1], r"1 levels: expected horizon = 2"),
        ([GOOD[0], GOOD[1][:1]], r"levels\[1\] has shape \(1, 2\): expected \(2, 2\)"),
        (None, r"levels = None: expected a list of horizon = 2 arrays"),
        (replaced(1, 1, ["1/2", "half"]), r"levels\[1\]\[1, 1\] = 'half': expected a real number"),
        (replaced(0, 0, [None, 1.0]), r"levels\[0\]\[0, 0\] = None: expected a real number"),
        (replaced(1, 0, [1.0]), r"levels\[1\] has rows of different lengths"),
    ],
)
def test_bad_policies_are_refused(levels, words):
    with pytest.raises(ValueError, match=words):
        Policy.from_probs(TREE, levels)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"vocab": 0, "horizon": 1}, "vocab = 0: expected a positive integer"),
        ({"vocab": 2, "horizon": 1.5}, "horizon = 1.5: expected a positive integer"),
        ({"vocab": 2, "horizon": 1, "eos": 2}, r"eos = 2: expected None or an action index in 0..1"),
        ({"vocab": 2, "horizon": 1, "prompts": 2, "prompt_probs": [0.5, 0.6]}, "sums to 1.1: expected 1"),
        (
            {"vocab": 2, "horizon": 1, "prompts": 2, "prompt_probs": [1]},
            "has 1 entries: expected prompts = 2",
        ),
        ({"vocab": 2, "horizon": 1, "prompts": 2, "prompt_probs": [-1, 2]}, r"prompt_probs\[0\] = -1"),
        ({"vocab": 2, "horizon": 1, "prompts": 2, "prompt_probs": ["x", 1]}, r"prompt_probs\[0\] = 'x'"),
    ],
)
def test_bad_trees_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        TokenTree(**arguments)


def test_a_tree_too_large_says_how_many_bytes():
    tree = TokenTree(vocab=50, horizon=12)
    bytes_needed = 8 * 50 * sum(50**t for t in range(12))
    with pytest.raises(ValueError, match=f"{bytes_needed} bytes"):
        Policy.uniform(tree)
    with pytest.raises(ValueError, match=f"{2 * bytes_needed} bytes"):
        Policy.random(tree)
    for table in (terminal_reward, token_reward):
        with pytest.raises(ValueError, match=f"{2 * bytes_needed} bytes"):
            table(tree, lambda prompt, tokens: 0)
    with pytest.raises(ValueError, match=r"about 10\^510 bytes"):
        Policy.uniform(TokenTree(vocab=50, horizon=300))


def test_other_bad_input_is_refused():
    other = Policy.uniform(TokenTree(vocab=3, horizon=2))
    with pytest.raises(ValueError, match="expected TokenTree"):
        PolicyPair(TREE, Policy.uniform(TREE), other, [np.zeros((1, 2)), np.zeros((2, 2))])
    with pytest.raises(ValueError, match=r"Reward levels\[0\]\[0, 1\] = inf"):
        PolicyPair(TREE, Policy.uniform(TREE), Policy.uniform(TREE), [[[0, np.inf]], np.zeros((2, 2))])
    with pytest.raises(ValueError, match="logit < inf"):
        Policy.from_logits(TREE, [[[0, np.inf]], np.zeros((2, 2))])
    with pytest.raises(ValueError, match="one logit > -inf"):
        Policy.from_logits(TREE, [[[-np.inf, -np.inf]], np.zeros((2, 2))])
    with pytest.raises(ValueError, match=r"zeros = 2: expected a probability"):
        Policy.random(TREE, zeros=2)
    with pytest.raises(
        ValueError, match=r"Policy \(2,\), Policy \(3,\), Reward \(\): expected shapes that broadcast"
    ):
        PolicyPair(
            TREE,
            Policy.random(TREE, batch=(2,)),
            Policy.random(TREE, batch=(3,)),
            [np.zeros((1, 2)), np.zeros((2, 2))],
        )
    with pytest.raises(ValueError, match="alpha = 2: expected a weight"):
        Policy.mixture(Policy.uniform(TREE), Policy.uniform(TREE), 2)
    with pytest.raises(ValueError, match="top_k = 3"):
        Policy.uniform(TREE).truncated(top_k=3)
    with pytest.raises(ValueError, match="top_p = 0"):
        Policy.uniform(TREE).truncated(top_p=0)
    with pytest.raises(ValueError, match="count = 0"):
        sample_trajectories(Policy.uniform(TREE), 0)
    with pytest.raises(ValueError, match=r"actions\[0\]"):
        Policy.deterministic(TREE, [[2], [0, 0]])
    with pytest.raises(ValueError, match=r"p\[1\] = -1"):
        SingleState([2.0, -1.0], [0.5, 0.5])
    with pytest.raises(ValueError, match=r"q sums to|q\[\] sums to"):
        SingleState([0.5, 0.5], [0.5, 0.4])
    with pytest.raises(ValueError, match="scalar 'tv'"):
        SingleState([0.5, 0.5], [0.5, 0.5], tv=1.0)
    with pytest.raises(ValueError, match="no candidate"):
        _ = TeacherStudent(TREE, Policy.uniform(TREE), Policy.uniform(TREE)).candidate_eta


def test_logits_and_balls():
    logits = [np.log([[0.25, 0.75]]), np.array([[0.0, -np.inf], [3.0, 3.0]])]
    policy = Policy.from_logits(TREE, logits)
    assert close(policy.levels[0], [[0.25, 0.75]], FLOAT64)
    assert policy.levels[1].tolist() == [[1.0, 0.0], [0.5, 0.5]]
    ball = flint.arb("0.25", "1e-20")
    balls = Policy.from_probs(TokenTree(2, 1), [[[ball, 1 - ball]]])
    assert balls.is_exact and (balls.flat[:, 0].sum() - 1).contains(0)
    with pytest.raises(ValueError, match="sums to"):
        Policy.from_probs(TokenTree(2, 1), [[[ball, ball]]])
