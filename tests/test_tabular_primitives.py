"""Instances of claims against the stand-alone checker, which recomputes every primitive by enumeration."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import flint
import pytest

from opdtheory import checker
from opdtheory.elementary import exact
from opdtheory.tabular import DiscountedMDP, PolicyPair, SingleState, TeacherStudent
from opdtheory.tabular.responses import MASKS
from opdtheory.tabular.table import to_float
from tests import twins
from tests.test_tabular_pair import fast_tree
from tests.tolerance import FLOAT64, close

ESTIMATORS = ("i", "ii", "iii", "iv", "v", "immediate", "immediate_baseline", "topd_return")
SIGNALS = ("rkl", "gate", "clip", "mask", "fkl", "tropd")
ALPHA = Fraction(1, 3)


def strings(levels: Any) -> Any:
    return [strings(x) for x in levels] if isinstance(levels, list) else str(levels)


def arguments(kind: str, function: Any, size: int) -> list[dict[str, Any]]:
    """Argument sets to try for a primitive, by the names of its parameters."""
    names = list(function.__code__.co_varnames[1 : function.__code__.co_argcount])
    choices: dict[str, list[Any]] = {
        "t": list(range(size)),
        "k": [0, 1, size],
        "token": [0],
        "alpha": [ALPHA, Fraction(1)],
        "cap": [Fraction(3, 2)],
        "delta": [Fraction(1, 7)],
        "floor": [Fraction(1, 3)],
        "mask": list(MASKS),
        "estimator": list(ESTIMATORS),
        "first": list(SIGNALS if kind == "single_state" else ESTIMATORS[3:]),
        "second": ["fkl", "rkl"] if kind == "single_state" else ["ii"],
    }
    sets: list[dict[str, Any]] = [{}]
    for name in names:
        sets = [s | {name: v} for s in sets for v in choices[name]]
    return sets


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, checker.Interval):
        if expected.is_infinite:
            return float(expected.lo) == to_float(found)
        expected = (expected.lo + expected.hi) / 2
    elif isinstance(found, flint.fmpq):
        return found == exact(expected)
    return close(to_float(found), float(expected), FLOAT64)


def compare(
    kind: str, fast: Any, data: Any, size: int, context: Any, gradients: bool = True
) -> tuple[int, int]:
    """Compare all primitives on one instance; return how many values agreed and how many were refused.

    The gradient estimators refuse a teacher without full support, where the checker says inf.
    """
    agreed = refused = 0
    slow = checker.KINDS[kind](data)
    for name, function in checker.PRIMITIVES[kind].items():
        if name.startswith("gradient_") and not gradients:
            continue
        for kwargs in arguments(kind, function, size):
            try:
                expected = function(slow, **kwargs)
            except checker.Refused:
                refused += 1
                continue
            member = getattr(fast, name)
            found = member(**kwargs) if callable(member) else member
            assert same(found, expected), (context, name, kwargs, found, expected)
            agreed += 1
    return agreed, refused


@pytest.mark.parametrize("block", range(4))
def test_policy_pair_primitives(block):
    for seed in range(1000 + 15 * block, 1000 + 15 * (block + 1)):
        rng = random.Random(seed)
        slow = twins.random_tree(rng, 20)
        if slow.vocab == 1 and slow.eos == 0:
            continue  # the checker knows no tree without continuing tokens
        mu = twins.random_policy(rng, slow)
        pi = twins.random_target(rng, slow, mu)
        pair = PolicyPair.from_levels(fast_tree(slow), mu, pi, twins.random_terminal_reward(rng, slow))
        agreed, refused = compare("policy_pair", pair, pair.to_data(), slow.horizon, seed)
        assert agreed > 40 and refused == 0


@pytest.mark.parametrize("block", range(4))
def test_teacher_student_primitives(block):
    for seed in range(2000 + 5 * block, 2000 + 5 * (block + 1)):
        rng = random.Random(seed)
        slow = twins.random_tree(rng, 14)
        if slow.vocab == 1 and slow.eos == 0:
            continue
        kind = "dense" if seed % 3 else None
        levels = [twins.random_policy(rng, slow, kind) for _ in range(3)]
        x = TeacherStudent.from_levels(fast_tree(slow), *levels)
        agreed, refused = compare(
            "teacher_student", x, x.to_data(), slow.horizon, seed, gradients=kind == "dense"
        )
        assert agreed > 20 and (refused == 0 or kind is None)


def test_single_state_primitives():
    for seed in range(3000, 3080):
        rng = random.Random(seed)
        vocab = rng.randint(1, 5)
        p, q = (twins.random_row(rng, vocab, rng.choice(twins.KINDS[:3])) for _ in range(2))
        x = SingleState(p, q, values=[Fraction(rng.randint(-5, 5), 3) for _ in range(vocab)])
        agreed, refused = compare("single_state", x, x.to_data(), vocab, seed)
        assert agreed > 40 and (refused == 0 or 0 in [*p, *q])


def test_discounted_mdp_primitives():
    for seed in range(4000, 4040):
        rng = random.Random(seed)
        s, a = rng.randint(1, 3), rng.randint(1, 3)
        mdp = DiscountedMDP(
            transition=[[twins.random_row(rng, s, "sparse") for _ in range(a)] for _ in range(s)],
            reward=[[Fraction(rng.randint(-4, 4), 3) for _ in range(a)] for _ in range(s)],
            gamma=Fraction(rng.randint(0, 9), 10),
            initial=twins.random_row(rng, s, "sparse"),
            behavior=[twins.random_row(rng, a, "sparse") for _ in range(s)],
            target=[twins.random_row(rng, a, "sparse") for _ in range(s)],
        )
        agreed, refused = compare("discounted_mdp", mdp, mdp.to_data(), s, seed)
        assert agreed > 8 and refused == 0
