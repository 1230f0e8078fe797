"""Surrogates under arbitrary token and response masks against enumeration."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest

from opdtheory.elementary import exact
from opdtheory.tabular import (
    Policy,
    PolicyPair,
    TokenTree,
    kept_responses,
    masked_lower_bound,
    response_masked_surrogate,
    token_masked_surrogate,
)
from opdtheory.tabular.table import to_float
from tests import twins
from tests.test_tabular_pair import fast_tree, floats
from tests.tolerance import FLOAT64, close


def random_mask(rng, slow):
    return [
        [[Fraction(rng.choice([0, 1, 1, 2]), 2) for _ in range(slow.vocab)] for _ in range(slow.shape(t)[0])]
        for t in range(slow.horizon)
    ]


def enumerated(slow, mu, pi, reward, mask, baseline):
    """Every quantity by its definition; ``mask`` on tokens, its products along responses for the others."""
    m, p, r, keep = twins.SlowPolicy(slow, mu), slow.rows(pi), slow.rows(reward), slow.rows(mask)
    out = dict.fromkeys(("token", "token_ratio", "response", "response_ratio", "bound"), Fraction(0))
    for s, w in zip(slow.sequences, m.law(), strict=True):
        steps = slow.steps(s)
        if w == 0:
            continue
        value = sum(r[c][a] for c, a in steps)
        rho = [p[c][a] / m.row[c][a] for c, a in steps]
        weights = [keep[c][a] for c, a in steps]
        kept = twins.product(weights)
        gain = value - baseline
        out["token"] += w * gain * sum(k * (x - 1) for k, x in zip(weights, rho, strict=True))
        out["token_ratio"] += w * gain * sum(k * x for k, x in zip(weights, rho, strict=True))
        out["response"] += w * kept * gain * sum(x - 1 for x in rho)
        out["response_ratio"] += w * kept * gain * sum(rho)
        surrogate = sum(x - 1 for x in rho) - sum(map(twins.k3, rho))
        out["bound"] += twins.times(w * kept * value, surrogate) - w * (1 - kept) * value
    return out


@pytest.mark.parametrize("seed", range(60))
def test_masked_surrogates_equal_enumeration(seed):
    rng = random.Random(seed)
    slow = twins.random_tree(rng, 24)
    mu = twins.random_policy(rng, slow)
    pi = twins.random_target(rng, slow, mu)
    reward, mask = twins.random_terminal_reward(rng, slow), random_mask(rng, slow)
    tree, baseline = fast_tree(slow), Fraction(rng.randint(-2, 2), 3)
    pair = PolicyPair.from_levels(tree, mu, pi, reward)
    kept = kept_responses(tree, mask)
    expected = enumerated(slow, mu, pi, reward, mask, baseline)
    found = {
        "token": token_masked_surrogate(pair, mask, baseline=baseline),
        "token_ratio": token_masked_surrogate(pair, mask, baseline=baseline, centred=False),
        "response": response_masked_surrogate(pair, kept, baseline=baseline),
        "response_ratio": response_masked_surrogate(pair, kept, baseline=baseline, centred=False),
        "bound": masked_lower_bound(pair, kept),
    }
    for name, value in found.items():
        if name != "bound":
            assert exact(value) == exact(expected[name]), name
        assert close(to_float(value), float(expected[name]), FLOAT64), name
    assert to_float(found["bound"]) <= to_float(pair.improvement) + FLOAT64
    # a batch in floating point
    batch = PolicyPair.from_levels(tree, *([np.stack([x, x]) for x in floats(y)] for y in (mu, pi, reward)))
    masks = [np.stack([x, 0 * x]) for x in floats(mask)]
    both = token_masked_surrogate(batch, masks, baseline=float(baseline))
    assert close(both, [float(expected["token"]), 0.0], FLOAT64)
    assert close(masked_lower_bound(batch, kept_responses(tree, masks))[1], -batch.J_behavior[1], FLOAT64)


def test_a_full_mask_gives_the_plain_surrogates():
    tree = TokenTree(3, 3, eos=0, prompts=2)
    mu, pi = (Policy.random(tree, seed=i, batch=(4,)) for i in (1, 2))
    rng = np.random.default_rng(0)
    reward = np.zeros_like(mu.flat)
    reward[tree.branching :] = rng.random(reward[tree.branching :].shape)
    reward[:, tree.level_slice(2)] = rng.random(reward[:, tree.level_slice(2)].shape)
    pair = PolicyPair.from_flat(tree, mu.flat, pi.flat, reward)
    ones = [np.ones(tree.level_shape(t)) for t in range(3)]
    assert close(token_masked_surrogate(pair, ones), pair.surrogate, FLOAT64)
    ratio = token_masked_surrogate(pair, ones, baseline=pair.J_behavior, centred=False)
    assert close(ratio, pair.surrogate_ratio, FLOAT64)
    kept = kept_responses(tree, ones)
    assert close(response_masked_surrogate(pair, kept), pair.surrogate_reward, FLOAT64)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ([[[2.0, 0.0]]], r"\[0, 0\] = 2.0.*a mask in \[0, 1\]"),
        ([[[[1.0, 0.0]], [[1.0, 0.0]]]], r"batch shape \(2,\): expected \(\)"),
        ([[[1.0]]], r"levels\[0\] has shape"),
    ],
)
def test_bad_masks_are_refused(mask, words):
    tree = TokenTree(2, 1)
    pair = PolicyPair(tree, Policy.uniform(tree), Policy.uniform(tree), [[[0.0, 1.0]]])
    with pytest.raises(ValueError, match=words):
        token_masked_surrogate(pair, mask)
