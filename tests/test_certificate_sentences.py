"""The sentence of a certificate says what goes wrong: both sides with their values, what holds, and why."""

from __future__ import annotations

from fractions import Fraction

import pytest

import opdtheory as ot
from opdtheory import checker, spaces
from opdtheory.verification.searching import search

SHORT = spaces.policy_pairs().with_sizes(spaces.SMALL[1], spaces.SMALL[3])


def test_sides_come_with_their_values_and_the_reason():
    claim = ot.Claim(
        id="reversed", title="Reversed", space=SHORT, sides=lambda x: (abs(x.error), x.reverse_kl_seq), sketch="KL(π‖μ) misses contexts."
    )
    certificate = search(claim).certificate
    lhs = [Fraction(q) for q in certificate["lhs_enclosure"]]
    shown = certificate["sentence"].split("abs(error) = ")[1].split(" is not at most reverse_kl_seq = ")[0]
    assert abs(Fraction(shown) - lhs[0]) <= Fraction(1, 1000) and lhs[0] <= lhs[1]
    assert certificate["sentence"].startswith("Reversed: ") and certificate["sentence"].endswith("KL(π‖μ) misses contexts.")
    assert checker.check(certificate).confirmed


def test_conditions_of_the_claim_are_told_and_those_of_the_space_are_not():
    claim = ot.Claim(
        id="promise", title="Does it rise?", space=SHORT, sides=lambda x: (x.improvement, 0), relation=">", signed=True,
        given=lambda x: [(x.surrogate, ">", 0)],
    )  # fmt: skip
    sentence = search(claim).certificate["sentence"]
    assert sentence.startswith("Does it rise? improvement = ") and "although surrogate > 0" in sentence
    assert "reward_max" not in sentence


@pytest.mark.parametrize("scale", [Fraction(1, 2)])
def test_a_scaled_side_shows_its_factor(scale):
    claim = ot.Claim(id="scaled", space=SHORT, sides=lambda x: (x.tv_seq, x.tv_sum)).scaled(scale)
    sentence = search(claim).certificate["sentence"]
    assert sentence.startswith("scaled: tv_seq = ") and "is not at most 1/2·(tv_sum) = " in sentence


def test_a_dropped_assumption_is_named():
    claim = ot.claims.get("trm.k3")
    sentence = search(claim.variant("unassumed", claim.unassumed)).certificate["sentence"]
    assert f"without “{claim.assumption}”" in sentence and "differs from" in sentence
