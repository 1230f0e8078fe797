"""Finite grids: every instance once, floats where sides are far apart, exact numbers where they are close."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

import opdtheory as ot
from opdtheory.elementary import log
from opdtheory.spaces import policy_pairs, scalars, single_states
from opdtheory.verification.blocks import Box
from opdtheory.verification.exhaustive import grid, grid_count, grid_points

STATES = single_states(vocab=(2, 3))
PAIRS = policy_pairs(sizes=({"vocab": 2, "horizon": 1, "eos": None, "prompts": 1}, {"vocab": 2, "horizon": 2, "eos": None, "prompts": 1}))


def test_a_grid_has_every_instance_once() -> None:
    claim = ot.Claim(id="t.pinsker", title="", space=STATES, sides=lambda x: (2 * x.tv * x.tv, x.kl_pq), relation="<=")
    for size, rows in ((STATES.sizes[0], 5), (STATES.sizes[1], 15)):
        points = list(grid_points(claim, size, 4))
        assert len(points) == grid_count(claim, size, 4) == rows**2
        seen = {tuple(str(v) for name in sorted(p) for v in p[name].ravel()) for p in points}
        assert len(seen) == len(points)
        assert all(sum(p[name]) == 1 for p in points for name in ("p", "q"))


def test_boxes_are_cut_evenly_from_end_to_end() -> None:
    space = scalars(a=Box((), 0.1, 0.9))
    claim = ot.Claim(id="t.box", title="", space=space, sides=lambda x: (x.a * x.a, x.a), relation="<=")
    values = [Fraction(str(p["a"].item())) for p in grid_points(claim, space.sizes[0], 4)]
    assert values == [Fraction(1, 10), Fraction(3, 10), Fraction(1, 2), Fraction(7, 10), Fraction(9, 10)]


def test_what_holds_holds_on_its_grid_and_ties_are_decided_exactly() -> None:
    claim = ot.Claim(id="t.tv", title="", space=PAIRS, sides=lambda x: (x.tv_seq, x.tv_sum), relation="<=")
    found = grid(claim, PAIRS.sizes[0], at_most=10_000, denominator=4)
    assert found is not None and found.ok and "undecided" not in found.detail
    # one token: both sides are the same number everywhere, so that floats decide nothing
    assert f"{grid_count(claim, PAIRS.sizes[0], 4)} decided exactly" in found.detail


def test_a_violation_on_the_grid_is_found_and_leaves_the_claim_open() -> None:
    # false at a single point of the grid, where a search for large ratios has no reason to look
    space = scalars(a=Box((), 0.0, 1.0))
    strict = ot.Claim(id="t.point", title="", space=space, sides=lambda x: (0 * x.a, (3 * x.a - 1) * (3 * x.a - 1)), relation="<", signed=True)
    found = grid(strict, space.sizes[0], at_most=100, denominator=3)
    assert found is not None and not found.ok and "fails on one of 4 instances" in found.detail
    assert grid(strict, space.sizes[0], at_most=100, denominator=2).ok


def test_equalities_of_logarithms_stay_within_a_ball_and_are_said_to() -> None:
    claim = ot.Claim(
        id="t.log", title="", space=scalars(a=Box((), 0.5, 1.0)), sides=lambda x: (log(x.a * x.a), 2 * log(x.a)), relation="=="
    )
    found = grid(claim, {}, at_most=100, denominator=4)
    assert found is not None and found.ok
    assert "5 within the width of a ball" in found.detail


def test_grids_that_do_not_fit_are_left_out_or_refused() -> None:
    claim = ot.Claim(id="t.big", title="", space=PAIRS, sides=lambda x: (x.tv_seq, x.tv_sum), relation="<=")
    assert grid(claim, PAIRS.sizes[1], at_most=1) is None
    with pytest.raises(ValueError, match="denominator 5: its grid has"):
        grid(claim, PAIRS.sizes[1], at_most=1000, denominator=5)


def test_verify_reports_the_grid() -> None:
    verdict = ot.verify(ot.claims.get("ours.s3"), effort="default")
    found = [e for e in verdict.evidence if e.grade == "exhaustive"]
    assert found and all(e.ok for e in found)
    floats_only = ot.Claim(
        id="t.floats", title="", space=PAIRS, sides=lambda x: (np.minimum(x.tv_seq, x.tv_sum), x.tv_sum), relation="<="
    )
    assert ot.verify(floats_only, effort="default").status == "survived"
