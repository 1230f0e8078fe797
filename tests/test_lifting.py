"""Instances carried to larger trees keep their quantities."""

from __future__ import annotations

import numpy as np
import pytest

from opdtheory import spaces
from opdtheory.verification import blocks as bl
from opdtheory.verification.lifting import lifts
from tests.tolerance import FLOAT64, close

SPACES = {
    "pair": (spaces.policy_pairs(), ("error", "kl_seq", "kl_max", "tv_sum", "tv_max", "improvement")),
    "students": (spaces.teacher_students(full_support=False), ("kl_student_teacher_seq", "tv_seq")),
}
LANES = 40


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize(("vocab", "horizon", "prompts"), [(2, 1, 1), (3, 2, 2), (2, 3, 1)])
def test_one_token_or_one_step_more_changes_nothing(kind, ends, vocab, horizon, prompts):
    space, names = SPACES[kind]
    size = {"vocab": vocab, "horizon": horizon, "eos": vocab - 1 if ends else None, "prompts": prompts}
    theta = bl.sample(space.blocks(**size), np.random.default_rng(0), LANES, space.pairs)
    small = space.build(bl.decode(space.blocks(**size), theta), **size)
    for larger in (size | {"vocab": vocab + 1, "eos": vocab if ends else None}, size | {"horizon": horizon + 1}):
        lifted = lifts(space, theta, size, larger)
        copies = len(lifted) // LANES
        assert copies == (1 if larger["vocab"] > vocab else 4)
        big = space.build(bl.decode(space.blocks(**larger), lifted), **larger)
        for name in names:
            value = np.asarray(getattr(big, name)).reshape(copies, LANES)
            # of the four ways to add a step, those in which the policies agree there: the first and the third
            for copy in range(0, copies, 2):
                assert close(value[copy], getattr(small, name), FLOAT64), (name, larger)


def test_what_is_no_table_on_a_tree_is_not_carried_over():
    space = spaces.single_states()
    theta = bl.sample(space.blocks(vocab=2), np.random.default_rng(0), 3, space.pairs)
    assert len(lifts(space, theta, {"vocab": 2}, {"vocab": 3})) == 0
