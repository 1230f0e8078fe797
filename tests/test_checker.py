"""Certificates: the documented ones are confirmed, and whatever is changed or not understood is refused."""

from __future__ import annotations

import ast
import copy
import json
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from opdtheory import checker
from tests.certificate_examples import EXAMPLES, KINDS, ROOT, resealed

CHECKER = ROOT / "opdtheory" / "checker.py"


def test_the_documented_examples_cover_every_kind_and_are_confirmed() -> None:
    assert set(EXAMPLES) == set(KINDS)
    for kind, certificate in EXAMPLES.items():
        verdict = checker.check(certificate)
        assert verdict.confirmed, (kind, verdict.reason)
        assert verdict.claim == certificate["claim"] and verdict.lhs is not None and verdict.rhs is not None


def test_examples_fit_the_schema_and_the_schema_refuses_misfits() -> None:
    schema = json.loads((ROOT / "opdtheory/data/certificate.schema.json").read_text("utf-8"))
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    for certificate in EXAMPLES.values():
        assert validator.is_valid(certificate)
        assert not validator.is_valid(certificate | {"extra": 1})
        assert not validator.is_valid(
            certificate | {"instance": certificate["instance"] | {"extra-key": "1"}}
        )
        assert not validator.is_valid(certificate | {"lhs": ["const", 1]})
    assert set(schema["properties"]) == set(checker.FIELDS)
    assert schema["properties"]["kind"]["enum"] == list(KINDS)


def test_sealing_reproduces_the_examples() -> None:
    for certificate in EXAMPLES.values():
        bare = {k: v for k, v in certificate.items() if k not in ("lhs_enclosure", "rhs_enclosure", "sha256")}
        assert checker.seal(bare) == certificate


def one_digit_changes(text: str) -> list[str]:
    """Every text that differs from this one in a single digit."""
    return [
        text[:i] + digit + text[i + 1 :]
        for i, c in enumerate(text)
        if c.isdigit()
        for digit in "0123456789"
        if digit != c
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_every_change_of_a_single_digit_is_refused(kind: str) -> None:
    for text in one_digit_changes(json.dumps(EXAMPLES[kind], ensure_ascii=False)):
        try:
            changed = checker.parse(text)
        except (checker.Refused, checker.BadInput):
            continue
        assert not checker.check(changed).confirmed, text


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_digit_is_noticed_by_the_mathematics_too(kind: str) -> None:
    """Even under a fresh digest a changed number is refused, unless the two sides keep their values."""
    certificate = EXAMPLES[kind]
    noticed = 0
    for key in ("instance", "lhs", "rhs", "lhs_enclosure", "rhs_enclosure", "scale", "given"):
        for text in one_digit_changes(json.dumps(certificate[key])):
            try:
                changed = resealed(certificate, **{key: checker.parse(text)})
            except (checker.Refused, checker.BadInput):
                continue
            verdict = checker.check(changed)
            if not verdict.confirmed:
                noticed += 1
                continue
            for side in ("lhs", "rhs"):
                lo, hi = map(Fraction, certificate[f"{side}_enclosure"])
                own = getattr(verdict, side)
                assert lo <= own[0] and own[1] <= hi, (key, text)
    assert noticed > 100


HOSTILE: tuple[Any, ...] = (
    None, True, False, "", "NaN", "inf", "1e9", "0x1", "½", "-0", "2/4", "1/0", "01", " 1", "\ud800", "9" * 3000, "kl_max",
    [], [[]], {}, {"scalar": "x"}, -1, 7, 10**19,
)  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the parts of a JSON document are, outermost first."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, part in inner for place in places(part, (*at, key)))]


def part(document: Any, place: tuple[Any, ...]) -> Any:
    return reduce(lambda outer, key: outer[key], place, document)


def replaced(certificate: dict[str, Any], place: tuple[Any, ...], change: Callable[[Any], Any]) -> dict[str, Any]:
    changed = copy.deepcopy(certificate)
    outer = part(changed, place[:-1])
    outer[place[-1]] = change(outer[place[-1]])
    return resealed(changed)


@pytest.mark.parametrize("kind", KINDS)
def test_no_part_can_be_replaced_by_anything_strange(kind: str) -> None:
    """Under a fresh digest, any part replaced or lengthened: refused, or the two sides keep their values to the last bit."""
    certificate = EXAMPLES[kind]
    own = checker.check(certificate)
    refused = 0
    for place in places(certificate)[1:]:
        if place[0] in ("claim", "source", "sentence", "sha256"):  # texts and the digest are tested by themselves
            continue
        changes: list[Callable[[Any], Any]] = [lambda _, h=h: h for h in HOSTILE]
        changes += [lambda x: [*x, None] if isinstance(x, list) else None, lambda x: [*x, x[-1]] if isinstance(x, list) and x else None]
        changes += [lambda x: x | {"extra": "1"} if isinstance(x, dict) else None]
        for change in changes:
            changed = replaced(certificate, place, change)
            if changed == certificate:
                continue
            verdict = checker.check(changed)
            assert not verdict.reason.startswith("not understood"), (place, changed, verdict.reason)
            refused += not verdict.confirmed
            if verdict.confirmed:
                assert (verdict.lhs, verdict.rhs) == (own.lhs, own.rhs), (place, changed)
                assert type(part(changed, place)) is type(part(certificate, place)), (place, changed)
    assert refused > 400


def test_changes_of_relation_scale_claim_and_kind_are_refused() -> None:
    for certificate in EXAMPLES.values():
        for relation in checker.RELATIONS:
            if relation != certificate["relation"]:
                assert not checker.check(certificate | {"relation": relation}).confirmed
        opposite = {"<=": ">=", "<": ">=", ">=": "<=", ">": "<="}[certificate["relation"]]
        assert not checker.check(resealed(certificate, relation=opposite)).confirmed
        for key, changed in (
            ("scale", "1000"),
            ("claim", "another.claim"),
            ("source", "x"),
            ("sentence", "x"),
        ):
            assert not checker.check(certificate | {key: changed}).confirmed
        assert not checker.check(resealed(certificate, scale="0")).confirmed
        for other in KINDS:
            if other != certificate["kind"]:
                assert not checker.check(resealed(certificate, kind=other)).confirmed


SCALAR = EXAMPLES["scalar"]
PAIR = EXAMPLES["policy_pair"]


def with_instance(certificate: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return resealed(certificate, instance=certificate["instance"] | changes)


def without(certificate: dict[str, Any], key: str) -> dict[str, Any]:
    return resealed({k: v for k, v in certificate.items() if k != key})


def nested(depth: int) -> list[Any]:
    node: list[Any] = ["prim", "x"]
    for _ in range(depth):
        node = ["neg", node]
    return node


LEVEL = PAIR["instance"]["behavior"]
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": (resealed(SCALAR, extra="1"), "unknown key"),
    "missing key": (without(SCALAR, "given"), "missing"),
    "version": (resealed(SCALAR, schema_version=2), "schema_version"),
    "version true": (resealed(SCALAR, schema_version=True), "schema_version"),
    "claim id": (resealed(SCALAR, claim=""), "claim"),
    "empty sentence": (resealed(SCALAR, sentence=" "), "sentence"),
    "operation": (resealed(SCALAR, lhs=["sin", ["prim", "x"]]), "unknown operation"),
    "no operation": (resealed(SCALAR, lhs=[]), "expression"),
    "bare number": (resealed(SCALAR, lhs="3"), "expression"),
    "arity": (resealed(SCALAR, lhs=["add", ["prim", "x"]]), "operands"),
    "arity of const": (resealed(SCALAR, lhs=["const", "1", "2"]), "operands"),
    "primitive": (resealed(SCALAR, lhs=["prim", "y"]), "no quantity"),
    "primitive of a pair": (resealed(PAIR, lhs=["prim", "kl_maximum"]), "no quantity"),
    "arguments of a scalar": (resealed(SCALAR, lhs=["prim", "x", {"t": 0}]), "takes no arguments"),
    "arguments null": (resealed(PAIR, lhs=["prim", "kl_max", None]), "expected an object"),
    "arguments a list": (resealed(PAIR, lhs=["prim", "kl_max", []]), "expected an object"),
    "unwanted argument": (resealed(PAIR, lhs=["prim", "kl_max", {"t": 0}]), "unknown key"),
    "missing argument": (resealed(PAIR, lhs=["prim", "tv_step"]), "missing"),
    "step out of range": (resealed(PAIR, lhs=["prim", "tv_step", {"t": 2}]), "from 0 to 1"),
    "negative step": (resealed(PAIR, lhs=["prim", "tv_step", {"t": -1}]), "from 0 to 1"),
    "step as a fraction": (resealed(PAIR, lhs=["prim", "tv_step", {"t": "1"}]), "argument t"),
    "unknown scalar": (resealed(PAIR, lhs=["prim", "tv_step", {"t": {"scalar": "n"}}]), "no scalar"),
    "fractional power": (resealed(SCALAR, lhs=["pow", ["prim", "x"], "1/2"]), "exponent"),
    "boolean power": (resealed(SCALAR, lhs=["pow", ["prim", "x"], True]), "exponent"),
    "huge power": (resealed(SCALAR, lhs=["pow", ["prim", "x"], 10**9]), "exponent"),
    "too deep": (resealed(SCALAR, lhs=nested(checker.MAX_DEPTH + 1)), "deeper"),
    "division by zero": (resealed(SCALAR, lhs=["div", ["prim", "x"], ["const", "0"]]), "zero"),
    "power of zero": (resealed(SCALAR, lhs=["pow", ["const", "0"], -1]), "zero"),
    "log of negative": (resealed(SCALAR, lhs=["log", ["const", "-1"]]), "negative"),
    "infinity minus infinity": (
        resealed(SCALAR, lhs=["sub", ["log", ["const", "0"]], ["log", ["const", "0"]]]),
        "infinities",
    ),
    "relation": (resealed(SCALAR, relation="!="), "relation"),
    "scale zero": (resealed(SCALAR, scale="0"), "scale"),
    "scale negative": (resealed(SCALAR, scale="-1"), "scale"),
    "scale of an equality": (resealed(SCALAR, relation="=="), "scale"),
    "kind": (resealed(SCALAR, kind="scalars"), "kind"),
    "not lowest terms": (with_instance(SCALAR, x="2/2"), "lowest terms"),
    "decimal": (with_instance(SCALAR, x="1.0"), "fraction string"),
    "exponent notation": (with_instance(SCALAR, x="1e0"), "fraction string"),
    "leading zero": (with_instance(SCALAR, x="01"), "fraction string"),
    "plus sign": (with_instance(SCALAR, x="+1"), "fraction string"),
    "space": (with_instance(SCALAR, x=" 1"), "fraction string"),
    "minus zero": (with_instance(SCALAR, x="-0"), "fraction string"),
    "denominator one": (with_instance(SCALAR, x="1/1"), "lowest terms"),
    "zero denominator": (with_instance(SCALAR, x="1/0"), "fraction string"),
    "other digits": (with_instance(SCALAR, x="١"), "fraction string"),
    "underscore": (with_instance(SCALAR, x="1_0"), "fraction string"),
    "newline": (with_instance(SCALAR, x="1\n"), "fraction string"),
    "integer for a fraction": (with_instance(SCALAR, x=1), "fraction string"),
    "too long": (with_instance(SCALAR, x="1" * 5000), "fraction string"),
    "no scalars": (resealed(SCALAR, instance={}), "named fractions"),
    "strange name": (resealed(SCALAR, instance={"x y": "1"}), "not a name"),
    "instance a list": (resealed(PAIR, instance=[]), "object"),
    "unknown instance key": (with_instance(PAIR, colour="1"), "unknown key"),
    "sum above one": (with_instance(PAIR, behavior=[[["1/2", "3/4"]], LEVEL[1]]), "sum"),
    "sum below one": (with_instance(PAIR, behavior=[[["1/2", "1/3"]], LEVEL[1]]), "sum"),
    "negative probability": (with_instance(PAIR, behavior=[[["-1/2", "3/2"]], LEVEL[1]]), "negative"),
    "row too long": (with_instance(PAIR, behavior=[[["1/2", "1/4", "1/4"]], LEVEL[1]]), "list of 2"),
    "level too short": (with_instance(PAIR, behavior=[LEVEL[0], LEVEL[1][:1]]), "list of 2"),
    "level missing": (with_instance(PAIR, behavior=LEVEL[:1]), "list of 2"),
    "prompt law": (with_instance(PAIR, prompt_probs=["1/2"]), "sum"),
    "eos out of range": (with_instance(PAIR, eos=2), "eos"),
    "eos false": (with_instance(PAIR, eos=False), "eos"),
    "horizon as a string": (with_instance(PAIR, horizon="2"), "horizon"),
    "too many sequences": (with_instance(PAIR, horizon=40), "context-token pairs"),
    "scalar shadows a primitive": (with_instance(PAIR, scalars={"improvement": "1"}), "both"),
    "empty scalars": (with_instance(PAIR, scalars={}), "named fractions"),
    "hypothesis fails": (
        resealed(SCALAR, given=[{"lhs": ["prim", "x"], "relation": ">", "rhs": ["const", "1"]}]),
        "does not hold",
    ),
    "hypothesis undecided": (
        resealed(
            SCALAR, given=[{"lhs": ["exp", ["log", ["const", "2"]]], "relation": "==", "rhs": ["const", "2"]}]
        ),
        "undecided",
    ),
    "hypothesis with more": (resealed(SCALAR, given=[SCALAR["given"][0] | {"why": "x"}]), "unknown key"),
    "given an object": (resealed(SCALAR, given={}), "list"),
    "about nothing": (resealed(SCALAR, lhs=["const", "3"], rhs=["const", "1"]), "neither side"),
    "nothing refuted": (resealed(SCALAR, scale="2"), "holds"),
    "undecided statement": (
        resealed(SCALAR, scale="1", lhs=["exp", ["log", ["const", "2"]]], rhs=["const", "2"], relation="<"),
        "undecided",
    ),
    "enclosure elsewhere": (resealed(SCALAR, lhs_enclosure=["3", "3"]), "does not contain"),
    "enclosure reversed": (resealed(SCALAR, rhs_enclosure=["9/4", "2"]), "wrong order"),
    "enclosure wide": (resealed(SCALAR, lhs_enclosure=["5/2", "3"]), "wider"),
    "enclosure infinite": (resealed(SCALAR, lhs_enclosure=["inf", "inf"]), "does not contain"),
    "enclosure half infinite": (resealed(SCALAR, lhs_enclosure=["2", "inf"]), "fraction string"),
    "enclosure of one end": (resealed(SCALAR, lhs_enclosure=["2"]), "list of 2"),
    "digest": (SCALAR | {"sha256": "0" * 64}, "sealed"),
    "digest missing": ({k: v for k, v in SCALAR.items() if k != "sha256"}, "missing"),
    "candidate needed": (resealed(EXAMPLES["teacher_student"], lhs=["prim", "candidate_eta"]), "candidate"),
    "values needed": (resealed(EXAMPLES["single_state"], lhs=["prim", "gain"]), "values"),
    "unknown estimator": (
        resealed(EXAMPLES["gradient_field"], lhs=["prim", "gradient_norm2", {"estimator": "vi"}]),
        "unknown word",
    ),
    "alpha outside": (
        resealed(EXAMPLES["single_state"], lhs=["prim", "topd_mean", {"alpha": "3/2"}]),
        "unit interval",
    ),
    "discount one": (with_instance(EXAMPLES["discounted_mdp"], gamma="1"), "gamma"),
    "fractional feature": (
        with_instance(EXAMPLES["gradient_field"], features=[[[["0"], ["1/2"]]], [[["0"], ["1"]]] * 2]),
        "whole",
    ),
    "weight zero": (with_instance(EXAMPLES["gradient_field"], weights=["0"]), "positive"),
    "wrong scalar of a map": (with_instance(EXAMPLES["iterated_map"], scalars={"alpha": "1"}), "penalty"),
    "unknown map": (with_instance(EXAMPLES["iterated_map"], map="newton"), "map"),
    "error leaves the simplex": (
        with_instance(
            EXAMPLES["iterated_map"], map="proximal", scalars={"alpha": "1"}, errors=[["1", "-1"], ["0", "0"]]
        ),
        "no distribution",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_refuses_what_it_does_not_fully_understand(name: str) -> None:
    certificate, reason = BAD[name]
    verdict = checker.check(certificate)
    assert not verdict.confirmed
    assert reason in verdict.reason


def test_a_float_and_other_objects_in_a_dictionary_are_refused() -> None:
    for nothing in (None, 0, True, [], (), 1.5):
        assert not checker.check(nothing).confirmed
    for strange in (1.0, float("nan"), {1, 2}, None, b"1"):
        assert not checker.check(SCALAR | {"scale": strange}).confirmed
    deep: list[Any] = ["prim", "x"]
    for _ in range(100_000):
        deep = ["neg", deep]
    assert not checker.check(SCALAR | {"lhs": deep}).confirmed


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"scale": "9/10"', '"scale": "9/10", "scale": "9/10"'),
        ('"x": "1"', '"x": "1", "x": "1"'),
        ('"x": "1"', '"x": 1.0'),
        ('"x": "1"', '"x": NaN'),
        ('"x": "1"', '"x": Infinity'),
        ('"schema_version": 1', '"schema_version": 1.0'),
        ('"schema_version": 1', '"schema_version": ' + "1" * 400),
        ('"given": [', '"given": ' + "[" * 3000 + "]" * 3000 + ', "given": ['),
    ],
)
def test_refuses_json_beyond_the_format(tmp_path: Path, old: str, new: str) -> None:
    text = json.dumps(SCALAR)
    assert old in text
    path = tmp_path / "c.json"
    path.write_text(text.replace(old, new, 1))
    assert not checker.check(path).confirmed


def test_undecidable_is_not_confirmed_however_it_is_written() -> None:
    """√2·√2 = 2 cannot be told apart from 2 by enclosures, so neither relation is called violated."""
    root = ["mul", ["sqrt", ["const", "2"]], ["sqrt", ["const", "2"]]]
    for relation in ("<", ">", "=="):
        c = resealed(
            SCALAR,
            scale="1",
            given=[],
            lhs=root,
            rhs=["const", "2"],
            relation=relation,
            lhs_enclosure=["2", "2"],
            rhs_enclosure=["2", "2"],
        )
        verdict = checker.check(c)
        assert not verdict.confirmed and "undecided" in verdict.reason


def test_close_sides_are_decided_by_more_bits() -> None:
    """exp(10^-40) against 1 + 10^-40: they differ by 5·10^-81."""
    tiny = "1/1" + "0" * 40
    bare = {
        "schema_version": 1,
        "claim": "test.close",
        "source": "test",
        "scale": "1",
        "kind": "scalar",
        "instance": {"x": tiny},
        "given": [],
        "lhs": ["exp", ["prim", "x"]],
        "relation": "<=",
        "rhs": ["add", ["const", "1"], ["prim", "x"]],
        "sentence": "exp(x) is above its tangent.",
    }
    certificate = checker.seal(bare)
    assert checker.check(certificate).confirmed
    assert not checker.check(checker.seal(bare | {"relation": ">="})).confirmed


def test_an_infinite_side_can_be_certified() -> None:
    bare = EXAMPLES["single_state"] | {
        "instance": {"p": ["1/2", "1/2"], "q": ["1", "0"]},
        "lhs": ["prim", "kl_pq"],
        "rhs": ["const", "100"],
    }
    certificate = checker.seal(bare)
    assert certificate["lhs_enclosure"] == ["inf", "inf"]
    assert checker.check(certificate).confirmed
    assert not checker.check(
        resealed(certificate, rhs=["prim", "kl_pq"], rhs_enclosure=["inf", "inf"])
    ).confirmed


# ---- as a script


def run_script(*paths: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", str(CHECKER), *map(str, paths)], capture_output=True, text=True, check=False
    )


def test_command_line_exit_codes(tmp_path: Path) -> None:
    good, bad, broken = tmp_path / "good.json", tmp_path / "bad.json", tmp_path / "broken.json"
    good.write_text(json.dumps(PAIR))
    bad.write_text(json.dumps(PAIR).replace("3/4", "1/4", 1))
    broken.write_text('{"schema_version": 1,')
    done = run_script(good, good)
    assert done.returncode == 0 and done.stdout.count("confirmed") == 2
    done = run_script(good, bad)
    assert done.returncode == 1 and "refused" in done.stdout and "confirmed" in done.stdout
    done = run_script(broken, good)
    assert done.returncode == 2 and "broken.json" in done.stderr and "Traceback" not in done.stderr
    done = run_script(tmp_path / "absent.json", bad)
    assert done.returncode == 2 and "absent.json" in done.stderr
    assert run_script().returncode == 2


def test_imports_only_the_standard_library() -> None:
    tree = ast.parse(CHECKER.read_text("utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(str(node.module).split(".")[0])
        elif isinstance(node, ast.Name):
            assert node.id not in {"eval", "exec", "__import__"}
    assert imported <= set(sys.stdlib_module_names)
    assert "opdtheory" not in imported and "importlib" not in imported


def test_every_primitive_says_what_it_is() -> None:
    for kind, functions in checker.PRIMITIVES.items():
        for name, function in functions.items():
            assert function.__doc__ and function.__doc__.strip().endswith("."), (kind, name)
