"""The engine: attack, confirmation, certificates, statuses, failure behaviour."""

from __future__ import annotations

import dataclasses
import json
from fractions import Fraction

import flint
import numpy as np
import pytest

import opdtheory as ot
from opdtheory import checker, spaces
from opdtheory.elementary import log, sqrt
from opdtheory.verification import blocks as bl
from opdtheory.verification.arithmetic import compare, decide
from opdtheory.verification.ascent import SidesError
from opdtheory.verification.certificate import build, file_name, states
from opdtheory.verification.claim import Mutant
from opdtheory.verification.engine import verify
from opdtheory.verification.evidence import Evidence
from opdtheory.verification.expression import Expr, NotRecordable, Recorder, readable
from opdtheory.verification.identities import random_points, symbolic
from opdtheory.verification.runner import differences, results, run
from opdtheory.verification.status import as_printed, own_status, resolve
from opdtheory.verification.userclaims import load_user_claims
from tests.tolerance import LOOSE64, close

XY = spaces.scalars(x=(0.01, 10.0), y=(0.01, 10.0))
AM_GM = ot.Claim(id="am-gm", space=XY, sides=lambda s: (2 * s.x * s.y, s.x * s.x + s.y * s.y))
PAIRS = spaces.policy_pairs()
S1 = ot.Claim(id="s1", space=PAIRS, sides=lambda x: (abs(x.error), x.kl_seq))


# ------------------------------------------------------------------------------- three-valued arithmetic


def test_comparisons_are_three_valued():
    one, overlap = flint.arb(1), flint.arb(1, 0.5)
    assert compare(one, "<=", flint.fmpq(2)) is True
    assert compare(flint.fmpq(2), "<=", one) is False
    for relation in ("<", "<=", ">", ">="):
        assert compare(overlap, relation, one) is None
    assert compare(overlap, "==", one) is None, "touching balls are neither equal nor different"
    assert compare(flint.fmpq(1, 3), "==", flint.fmpq(2, 6)) is True
    assert compare(flint.arb("nan"), "<", one) is None
    assert compare(one, "<", flint.arb(float("inf"))) is True


def test_decide_raises_precision_until_it_knows():
    tiny = flint.fmpq(1, 2**300)
    answer = decide(lambda: compare(flint.arb(2).sqrt() ** 2 + tiny, ">", flint.fmpq(2)))
    assert answer is True


# ------------------------------------------------------------------------------------------ blocks


@pytest.mark.parametrize("block", [bl.Simplex((3, 4)), bl.Simplex((2, 3), zeros=False), bl.Box((5,), -1.0, 2.0), bl.LogBox((4,), 1e-3, 10.0)])
def test_blocks_decode_what_they_encode_and_round_into_their_domain(block):
    rng = np.random.default_rng(0)
    theta = block.sample(rng, 50)
    values = block.decode(theta)
    assert values.shape == (50, *block.shape)
    assert close(block.decode(block.encode(values)), values, LOOSE64)
    for v in values[:20]:
        for denominator in (1, 3, 10, 1000):
            exact = block.rationalise(v, denominator)
            if isinstance(block, bl.Simplex):
                assert all(sum(row) == 1 for row in exact)
                assert all(q >= 0 for q in exact.flat)
                assert block.zeros or all(q > 0 for q in exact.flat)
            else:
                assert all(Fraction(str(block.lo)) <= Fraction(int(q.p), int(q.q)) <= Fraction(str(block.hi)) for q in exact.flat)


def test_sampling_reaches_the_boundary_and_near_equal_pairs():
    layout = {"p": bl.Simplex((4,)), "q": bl.Simplex((4,))}
    theta = bl.sample(layout, np.random.default_rng(1), 4000, (("p", "q"),))
    v = bl.decode(layout, theta)
    assert (v["p"] == 0).any(axis=-1).mean() > 0.1
    distance = np.abs(v["p"] - v["q"]).sum(axis=-1) / 2
    assert (distance < 1e-2).mean() > 0.05
    assert ((v["p"] > 0) & (v["q"] > 0)).any(axis=-1).mean() < 0.99, "some pairs have disjoint supports"


# ------------------------------------------------------------------------------------------ search


def test_search_is_reproducible_and_finds_the_supremum():
    first, second = (ot.search(AM_GM, seed=3) for _ in range(2))
    assert not first.refuted
    assert first.best_ratio == second.best_ratio
    assert close(first.best_ratio, 1.0, LOOSE64)
    assert first.instance == second.instance and first.instance["x"] == first.instance["y"]


def test_a_scaled_claim_dies_and_its_certificate_records_the_factor():
    result = ot.search(AM_GM.scaled(Fraction(99, 100)), seed=0)
    assert result.refuted
    assert result.certificate["scale"] == "99/100"
    assert checker.check(result.certificate).confirmed


@pytest.mark.parametrize(
    "claim",
    [
        ot.Claim(id="signed", space=XY, sides=lambda s: (log(s.x), s.x - 1), signed=True),
        ot.Claim(id="equality", space=XY, sides=lambda s: (s.x, s.x), relation="=="),
        ot.Claim(id="definition", nature="definition"),
    ],
)
def test_scaling_is_refused_where_it_means_nothing(claim):
    with pytest.raises(ValueError, match=claim.id):
        claim.scaled(2)


def test_counterexamples_are_small_and_readable():
    claim = ot.Claim(id="reversed", space=PAIRS, sides=lambda x: (abs(x.error), x.reverse_kl_seq))
    result = ot.search(claim, seed=0)
    assert result.refuted
    data = result.certificate["instance"]
    numbers = [q for level in data["behavior"] + data["target"] for row in level for q in row]
    assert data["horizon"] <= 3
    assert max(Fraction(q).denominator for q in numbers) <= 20


def test_ratio_search_is_not_fooled_by_rounding_noise():
    """Both sides vanish together at π = μ; sums of rounding errors must not look like violations."""
    result = ot.search(S1, seed=0)
    assert not result.refuted
    assert result.best_ratio <= 1.0


def test_implications_need_every_condition():
    claim = ot.Claim(
        id="promise", space=PAIRS, sides=lambda x: (-x.improvement, 0), signed=True, given=lambda x: [(x.surrogate, ">", 0)]
    )
    result = ot.search(claim, seed=0)
    assert result.refuted
    *scope, condition = result.certificate["given"]
    assert condition == {"lhs": ["prim", "surrogate"], "relation": ">", "rhs": ["const", "0"]}
    assert {c["lhs"][1] for c in scope} == {"reward_min", "reward_max", *(["support_ok"] if len(scope) > 2 else [])}
    never = ot.Claim(id="never", space=PAIRS, sides=lambda x: (1, 0), signed=True, given=lambda x: [(x.kl_seq, "<", -1)])
    assert ot.verify(never).status == "undecided", "no instance met the conditions: nothing was tested"


# ------------------------------------------------------------------------------------------ failures


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        (lambda s: (1 / 0, s.x), "ZeroDivisionError"),
        (lambda s: (s.x * float("nan"), s.y), "NaN"),
        (lambda s: (np.zeros((7, 7)), s.y), "shape"),
        (lambda s: (s.nothing, s.y), "nothing"),
    ],
)
def test_a_broken_claim_is_reported_and_does_not_stop_the_others(sides, message):
    broken = ot.Claim(id="broken", space=XY, sides=sides)
    verdicts = run([broken, AM_GM])
    assert verdicts[0].status == "undecided"
    assert any(message in p for p in verdicts[0].problems)
    assert verdicts[1].status == "survived"


def test_sides_error_carries_one_readable_instance():
    """A failure in one lane of a batch is traced to that lane, and the lane rounded to what still fails."""
    fails = ot.Claim(id="bad", space=PAIRS, sides=lambda x: (np.where(x.tv_max > 0.7, np.nan, x.tv_max), x.tv_sum))
    with pytest.raises(SidesError, match=r"NaN.*behavior") as caught:
        ot.search(fails, seed=0)
    data = caught.value.instance
    assert data["horizon"] == 1
    (p, q), = zip(data["behavior"][0], data["target"][0], strict=True)
    distance = sum(abs(Fraction(a) - Fraction(b)) for a, b in zip(p, q, strict=True)) / 2
    assert distance > Fraction(7, 10) and max(Fraction(a).denominator for a in p) <= 10


def test_trouble_beyond_floats_is_reported_too():
    """Sides that work on floats but not on exact numbers, or cannot be recorded, do not end a run."""
    exact = ot.Claim(id="exact", space=XY, sides=lambda s: (s.x, s.y * Fraction(1, 2)))
    opaque = ot.Claim(id="opaque", space=PAIRS, sides=lambda x: (abs(x.error), np.sqrt(x.kl_seq) / 9))
    given = ot.Claim(id="given", space=XY, sides=lambda s: (s.x, s.y), given=lambda s: [(s.x, "≥", 0)])
    verdicts = run([exact, opaque, given, AM_GM])
    assert [v.status for v in verdicts] == ["undecided"] * 3 + ["survived"]
    said = [" ".join(v.problems) for v in verdicts]
    assert "Fraction" in said[0] and "on the instance" in said[0]
    assert "not certifiable" in said[1] and "'≥'" in said[2] and not said[3]


def test_a_violation_that_cannot_be_recorded_is_not_a_refutation():
    claim = ot.Claim(id="opaque", space=PAIRS, sides=lambda x: (x.tv_max + 1, x.behavior.batch_axes * 0 + x.tv_max))
    verdict = verify(claim)
    assert verdict.status == "undecided"
    assert "not certifiable" in verdict.evidence[-1].detail


# ------------------------------------------------------------------------------------------ recording


def test_expressions_record_the_formula_and_print_it():
    recorder = Recorder("policy_pair", {"T": 2})
    node = (4 * recorder.horizon * sqrt(recorder.kl_max) / 3).node
    assert readable(node) == "4·horizon·sqrt(kl_max)/3"
    assert recorder.T == 2
    with pytest.raises(NotRecordable, match="no primitive"):
        _ = recorder.unheard_of
    with pytest.raises(NotRecordable):
        bool(Expr(["prim", "kl_max"]) < 1)


def test_certificate_is_refused_for_a_true_claim():
    size = PAIRS.sizes[1]
    layout = PAIRS.blocks(**size)
    values = bl.rationalise(layout, {k: v[0] for k, v in bl.decode(layout, bl.sample(layout, np.random.default_rng(0), 1, ())).items()}, 10)
    with pytest.raises(checker.Refused):
        build(S1, size, values)


def test_file_names_are_flat():
    assert "/" not in file_name("a.b/c~d")


# ------------------------------------------------------------------------------------------ proofs


def test_identities_are_proved_and_false_ones_are_not():
    identity = ot.Claim(id="pdi", space=PAIRS, sides=lambda x: (x.improvement, x.surrogate + x.error), relation="identity")
    difference = ot.Claim(id="not", space=PAIRS, sides=lambda x: (x.improvement, x.surrogate), relation="identity")
    small, larger = {"vocab": 2, "horizon": 2, "eos": None, "prompts": 1}, {"vocab": 3, "horizon": 4, "eos": None, "prompts": 1}
    assert symbolic(identity, small).ok
    assert not symbolic(difference, small).ok
    tested = random_points(identity, larger, degree=9)
    assert tested.ok and "2^−" in tested.detail
    assert not random_points(difference, larger, degree=9).ok


# ------------------------------------------------------------------------------------------ statuses


def _evidence(grade, ok=True):
    return Evidence(grade, ok, "")


def test_status_follows_from_evidence_alone():
    assert own_status(AM_GM, [_evidence("search")]) == "survived"
    assert own_status(AM_GM, [_evidence("search"), _evidence("paper"), _evidence("lemma")]) == "proved-on-paper"
    assert own_status(AM_GM, [_evidence("search"), _evidence("paper"), _evidence("lemma", False)]) == "undecided"
    assert own_status(AM_GM, [_evidence("paper")]) == "undecided", "a written proof alone is not enough"
    assert own_status(AM_GM, [_evidence("balls")]) == "proved"
    assert own_status(AM_GM, [_evidence("balls"), _evidence("certificate")]) == "refuted"
    assert own_status(AM_GM, []) == "undecided"


def test_a_failed_check_of_a_refuted_claim_is_a_problem():
    wrong = dataclasses.replace(AM_GM, id="wrong", sides=lambda s: (2 * s.x * s.y, s.x * s.x))
    assert verify(wrong, "quick").problems == []
    said = dataclasses.replace(wrong, checks=(lambda: Evidence("check", False, "only for x < y"),))
    verdict = verify(said, "quick")
    assert verdict.status == "refuted" and verdict.problems == ["check failed: only for x < y"]


def test_what_rests_on_a_refuted_claim_is_conditional():
    base = ot.Claim(id="base", space=XY, sides=lambda s: (s.x, s.y))
    above = ot.Claim(id="above", space=XY, sides=lambda s: (s.x, s.x), depends_on=("base",))
    verdicts = run([above, base])
    assert [v.status for v in verdicts] == ["conditional", "refuted"]
    with pytest.raises(ValueError, match="cycle"):
        resolve({"a": ot.Claim(id="a", depends_on=("b",)), "b": ot.Claim(id="b", depends_on=("a",))}, {"a": "survived", "b": "survived"})


def test_an_unstated_assumption_must_matter():
    statement = {"space": spaces.scalars(x=(0.0, 1.0), y=(0.0, 1.0)), "sides": lambda s: (s.x * s.y, s.x)}
    needed = ot.Claim(id="n", assumption="y ≤ 1", unassumed={"space": spaces.scalars(x=(0.0, 1.0), y=(0.0, 2.0))}, **statement)
    idle = ot.Claim(id="i", assumption="x ≤ 1", unassumed={"space": spaces.scalars(x=(0.0, 2.0), y=(0.0, 1.0))}, **statement)
    good, bad = run([needed, idle])
    assert (good.as_printed, good.problems) == ("holds-if", [])
    assert bad.as_printed == "holds" and "no certificate" in bad.problems[0]
    assert as_printed(ot.Claim(id="m", misprint=True), "refuted", None) == "misprint"


def test_thorough_runs_mutants_against_their_expected_fate():
    claim = ot.Claim(
        id="bounded", space=XY, sides=AM_GM.sides,
        mutants=(
            Mutant("sum for sum of squares", "dies", "fails for x + y > 2", {"sides": lambda s: (2 * s.x * s.y, s.x + s.y)}),
            Mutant("swap", "survives", "symmetric", {"sides": lambda s: (2 * s.y * s.x, s.y * s.y + s.x * s.x)}),
            Mutant("wrong guess", "dies", "a looser bound cannot die", {"factor": 2}),
        ),
    )  # fmt: skip
    verdict = verify(claim, effort="thorough")
    fates = {m["name"]: m["got"] for m in verdict.mutants}
    assert fates["constant cut by 1 %"] == "dies"
    assert fates["sum for sum of squares"] == "dies" and fates["swap"] == "survives"
    assert [p for p in verdict.problems if "wrong guess" in p]


# ------------------------------------------------------------------------------------------ documents


def test_results_are_json_and_differences_are_noticed():
    document = results(run([AM_GM, S1], "quick"), "quick", 0, 1.0)
    assert json.loads(json.dumps(document, allow_nan=False))["summary"]["claims"] == 2
    assert differences(document, document) == []
    changed = json.loads(json.dumps(document))
    changed["claims"][0]["status"] = "refuted"
    changed["claims"][1]["certificates"] = ["certificates/x.json"]
    assert len(differences(document, changed)) == 2


def test_user_claims_come_from_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import opdtheory as ot\n"
        "mine = ot.Claim(id='mine', space=ot.spaces.policy_pairs(), sides=lambda x: (abs(x.error), x.tv_sum))\n"
    )
    (claim,) = load_user_claims(file)
    assert ot.verify(claim, effort="quick").status == "survived"
    file.write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"mine\.py"):
        load_user_claims(file)


def test_a_certificate_states_its_claim_and_the_scope_of_it():
    claim = ot.Claim(id="half", space=PAIRS, sides=lambda x: (abs(x.error), x.kl_seq / 2))
    certificate = ot.search(claim, seed=0).certificate
    assert states(claim, certificate)
    assert {c["lhs"][1] for c in certificate["given"]} >= {"reward_min", "reward_max"}
    assert not states(claim.scaled(2), certificate)
    assert not states(dataclasses.replace(claim, sides=lambda x: (abs(x.error), x.kl_seq / 3)), certificate)
    assert not states(claim, certificate | {"given": []}), "a certificate that drops the claim's scope"
    generous = certificate["instance"] | {"reward": [[["0"] * 2], [["9"] * 2] * 2]}
    forged = checker.seal(certificate | {"instance": generous})
    assert not checker.check(forged).confirmed, "the reward leaves the range the claim is about"
