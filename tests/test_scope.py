"""The scope of a claim: what its space says of every instance, stated in certificates and asked for when they are replayed."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import opdtheory as ot
from opdtheory import checker, spaces
from opdtheory.claims import all_claims
from opdtheory.spaces import Box, LogBox, Simplex, Space
from opdtheory.verification import blocks as bl
from opdtheory.verification.certificate import states
from opdtheory.verification.expression import Expr, NotRecordable, Recorder

FULL_SUPPORT = {
    "policy_pair": {"min_behavior", "min_target"},
    "teacher_student": {"min_teacher", "min_student"},
    "single_state": {"min_p", "min_q"},
    "gradient_field": {"min_teacher", "min_student"},
}


def distinct_spaces() -> list[tuple[str, Space]]:
    """Every space of the catalogue, assumptions dropped included, once, with a claim that uses it."""
    found: dict[int, tuple[str, Space]] = {}
    for claim in all_claims():
        for space in (claim.space, (claim.unassumed or {}).get("space")):
            if space is not None:
                found.setdefault(id(space), (claim.id, space))
    return list(found.values())


def sample(space: Space, size: Any) -> tuple[Any, dict[str, Any]]:
    """An exact instance of a space and its data."""
    layout = space.blocks(**size)
    theta = bl.sample(layout, np.random.default_rng(0), 1, space.pairs)
    values = bl.rationalise(layout, {k: v[0] for k, v in bl.decode(layout, theta).items()}, 20)
    instance = space.build(values, **size)
    return instance, space.serialise(instance)


@pytest.mark.parametrize(("name", "space"), distinct_spaces(), ids=lambda x: x if isinstance(x, str) else "")
def test_every_space_states_its_scope_and_its_instances_satisfy_it(name, space):
    size = space.sizes[0]
    _, data = sample(space, size)
    names = data if space.kind == "scalar" else data.get("scalars", {})
    try:
        recorder = Recorder(space.kind, space.structure(**size), dict(names))
        scope = [(Expr.constant(a).node, r, Expr.constant(b).node) for a, r, b in space.scope(recorder, size, names)]
    except NotRecordable:
        pytest.fail(f"{name}: the scope of its space cannot be put into a certificate")
    if "mask" in data:
        return  # a masked pair is no kind of the checker's: its claim cannot be refuted by a certificate
    loaded = checker.load_instance(space.kind, data)
    for a, relation, b in scope:
        ends = [checker.evaluate(node, loaded, space.kind) for node in (a, b)]
        assert checker._holds(ends[0], relation, ends[1]) is True, (name, a, relation, b)
    stated = {node[1] for a, _, b in scope for node in (a, b) if node[0] == "prim"}
    layout = space.blocks(**size)
    assert {k for k, b in layout.items() if isinstance(b, Box) and k in names} <= stated, "the range of every named scalar"
    if any(isinstance(b, Simplex) and not b.zeros for b in layout.values()) and space.kind in FULL_SUPPORT:
        assert stated >= FULL_SUPPORT[space.kind], f"{name}: full support"


def test_a_space_written_by_hand_states_the_ranges_of_its_scalars():
    plain = spaces.scalars(x=(0.0, 1.0))
    mine = Space(
        kind="scalar", sizes=({},), blocks=lambda: {"x": LogBox((), 0.1, 10.0), "n": Box((), 2.0, 2.0)}, build=plain.build,
        serialise=lambda x: {"x": str(x.x), "n": str(x.n)},
    )  # fmt: skip
    claim = ot.Claim(id="mine", space=mine, sides=lambda s: (s.n * s.x, s.x * s.x))
    certificate = ot.search(claim, seed=0).certificate
    assert [(c["lhs"][1], c["relation"], c["rhs"][1]) for c in certificate["given"]] == [
        ("x", ">=", "1/10"), ("x", "<=", "10"), ("n", "==", "2"),
    ]  # fmt: skip
    forged = checker.seal(certificate | {"instance": {"x": "1/20", "n": "2"}})
    assert states(claim, forged) and not checker.check(forged).confirmed


TWO = {"vocab": 2, "horizon": 2, "eos": None, "prompts": 1}


def test_sizes_beyond_those_tried_are_admitted_but_not_of_another_kind():
    pairs = spaces.policy_pairs(sizes=(TWO, TWO | {"horizon": 3}))
    assert pairs.admits(TWO) and pairs.admits(TWO | {"horizon": 9})
    assert not pairs.admits(TWO | {"horizon": 1}), "fewer steps than any declared size"
    assert not pairs.admits(TWO | {"vocab": 3}), "one vocabulary was declared"
    assert not pairs.admits(TWO | {"eos": 1}) and not pairs.admits(TWO | {"prompts": 2}) and not pairs.admits({})
    ending = spaces.policy_pairs(sizes=spaces.WITH_EOS)
    assert ending.admits(TWO | {"eos": 0}) and not ending.admits(TWO)


def test_a_certificate_of_another_size_is_not_about_the_claim():
    """An EOS tree refutes nothing about fixed lengths, and the formula is that of the instance's own horizon."""
    def sides(x: Any) -> tuple[Any, Any]:
        return x.tv_sum, (x.horizon - 1) * x.tv_max

    claim = ot.Claim(id="steps", space=spaces.policy_pairs(sizes=(TWO, TWO | {"horizon": 3})), sides=sides)
    ends = dataclasses.replace(claim, space=spaces.policy_pairs(sizes=(TWO | {"eos": 1},)))
    for other in (claim, ends):
        certificate = ot.search(other, seed=0).certificate
        assert checker.check(certificate).confirmed and states(other, certificate)
        assert states(claim, certificate) == (other is claim)
    long = ot.search(dataclasses.replace(claim, space=spaces.policy_pairs(sizes=(TWO | {"horizon": 3},))), seed=0).certificate
    assert states(claim, long)
    short = checker.seal(long | {"rhs": ["mul", ["const", str(Fraction(1))], ["prim", "tv_max"]]})
    assert checker.check(short).confirmed and not states(claim, short), "T − 1 of another T"
