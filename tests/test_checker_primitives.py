"""The checker's quantities, enumerated, against the package's, by recursion, and against hand calculation."""

from __future__ import annotations

import inspect
import json
import math
import random
from fractions import Fraction
from functools import cached_property
from typing import Any

import flint
import numpy as np
import pytest

from opdtheory import checker, gradients
from opdtheory.elementary import exact
from opdtheory.gradients.field import mean_field_jacobian
from opdtheory.gradients.moments import enumerated_moments
from opdtheory.tabular import DiscountedMDP, Policy, PolicyPair, SingleState, TeacherStudent, TokenTree
from tests.certificate_examples import EXAMPLES, ball_ends
from tests.tolerance import FLOAT64, LOOSE64, close


def random_row(rng: random.Random, n: int, zeros: bool) -> list[str]:
    while True:
        weights = [0 if zeros and rng.random() < 0.2 else rng.randint(1, 9) for _ in range(n)]
        if sum(weights):
            return [str(Fraction(w, sum(weights))) for w in weights]


def random_tree(rng: random.Random) -> TokenTree:
    vocab, horizon, prompts = rng.choice(((2, 1, 1), (2, 2, 2), (3, 2, 1), (2, 3, 1), (3, 3, 1)))
    eos = rng.choice((None, 0, vocab - 1))
    probs = [Fraction(p) for p in random_row(rng, prompts, False)]
    return TokenTree(vocab=vocab, horizon=horizon, eos=eos, prompts=prompts, prompt_probs=probs)


def random_levels(rng: random.Random, tree: TokenTree, zeros: bool) -> list[list[list[str]]]:
    return [
        [random_row(rng, tree.vocab, zeros) for _ in range(tree.contexts(t))] for t in range(tree.horizon)
    ]


def random_reward(rng: random.Random, tree: TokenTree) -> list[list[list[str]]]:
    def entry(t: int, a: int) -> str:
        ends = t == tree.horizon - 1 or a == tree.eos
        return str(Fraction(rng.randint(0, 4), 4)) if ends else "0"

    return [
        [[entry(t, a) for a in range(tree.vocab)] for _ in range(tree.contexts(t))]
        for t in range(tree.horizon)
    ]


def make_policy_pair(rng: random.Random, zeros: bool) -> Any:
    tree = random_tree(rng)
    return PolicyPair.from_levels(
        tree, random_levels(rng, tree, zeros), random_levels(rng, tree, zeros), random_reward(rng, tree)
    )


def make_teacher_student(rng: random.Random, zeros: bool) -> Any:
    tree = random_tree(rng)
    names = ("teacher", "student", "candidate")
    return TeacherStudent.from_levels(tree, **{name: random_levels(rng, tree, zeros) for name in names})


def make_single_state(rng: random.Random, zeros: bool) -> Any:
    n = rng.randint(2, 4)
    return SingleState(
        random_row(rng, n, zeros), random_row(rng, n, zeros), [str(rng.randint(-3, 3)) for _ in range(n)]
    )


def make_discounted_mdp(rng: random.Random, zeros: bool) -> Any:
    s, a = rng.randint(1, 3), rng.randint(2, 3)
    return DiscountedMDP(
        transition=[[random_row(rng, s, True) for _ in range(a)] for _ in range(s)],
        reward=[[str(rng.randint(-3, 3)) for _ in range(a)] for _ in range(s)],
        gamma=str(Fraction(rng.randint(0, 9), 10)),
        initial=random_row(rng, s, False),
        behavior=[random_row(rng, a, zeros) for _ in range(s)],
        target=[random_row(rng, a, zeros) for _ in range(s)],
    )


MAKERS = {
    "policy_pair": make_policy_pair,
    "teacher_student": make_teacher_student,
    "single_state": make_single_state,
    "discounted_mdp": make_discounted_mdp,
}
ARGUMENTS: dict[str, list[Any]] = {
    "t": [0],
    "k": [1, 0, 2],
    "token": [0, 1],
    "alpha": [Fraction(1, 3), Fraction(9, 10)],
    "cap": [Fraction(3, 2), Fraction(0)],
    "delta": [Fraction(1, 7), Fraction(1)],
    "floor": [Fraction(1, 2), Fraction(1)],
    "mask": ["kl", "log_ratio", "k3", "none"],
    "estimator": ["ii", "immediate", "i", "iii", "iv", "v", "immediate_baseline", "topd_return"],
}
"""Values for every argument that a primitive of these kinds can take; a new argument needs an entry."""
WORDS = {
    "teacher_student": {"first": ["immediate", "iv", "topd_return"], "second": ["ii", "immediate"]},
    "single_state": {"first": ["tropd", "gate", "clip", "mask"], "second": ["rkl", "fkl"]},
}


def shared_primitives() -> list[tuple[str, str]]:
    """Primitives that the package has under the same name."""
    classes = {
        "policy_pair": PolicyPair,
        "teacher_student": TeacherStudent,
        "single_state": SingleState,
        "discounted_mdp": DiscountedMDP,
    }
    return [
        (kind, name)
        for kind, cls in classes.items()
        for name in checker.PRIMITIVES[kind]
        if hasattr(cls, name) or (kind, name) == ("discounted_mdp", "gamma")
    ]


def arguments(kind: str, name: str, seed: int) -> dict[str, Any]:
    """Arguments of a primitive, others for other seeds; an optional argument is given to every second one."""
    parameters = list(inspect.signature(checker.PRIMITIVES[kind][name]).parameters.values())[1:]
    known = ARGUMENTS | WORDS.get(kind, {})
    return {
        p.name: known[p.name][(seed // (1 + position)) % len(known[p.name])]
        for position, p in enumerate(parameters)
        if p.default is inspect.Parameter.empty or seed % 2
    }


def test_every_attribute_of_a_policy_pair_that_a_claim_may_use_is_a_primitive() -> None:
    arrays = {"tv", "kl", "reverse_kl", "chi2", "hellinger2", "remainder", "is_exact", "batch_shape"}
    arrays |= {"flat_target_gradient", "target_gradient", "is_large"}
    lazy = (property, cached_property)
    public = {name for name in dir(PolicyPair) if isinstance(inspect.getattr_static(PolicyPair, name), lazy)}
    public = {name for name in public if not name.startswith("_")} - arrays
    assert public - set(checker.PRIMITIVES["policy_pair"]) == set()
    assert len([name for kind, name in shared_primitives() if kind == "policy_pair"]) >= 50


@pytest.mark.parametrize("kind", MAKERS)
def test_primitives_agree_with_the_package(kind: str) -> None:
    names = [name for k, name in shared_primitives() if k == kind]
    assert set(names) == set(checker.PRIMITIVES[kind]), "a quantity that no claim could use"
    compared: dict[str, int] = dict.fromkeys(names, 0)
    for seed in range(12):
        zeros = seed % 3 == 2
        instance = MAKERS[kind](random.Random(seed), zeros)
        data = json.loads(json.dumps(instance.to_data()))
        for name in names:
            given = arguments(kind, name, seed)
            plain = {k: v if isinstance(v, int) else str(v) for k, v in given.items()}
            node = ["prim", name, plain] if given else ["prim", name]
            refusal = ""
            try:
                lo, hi = checker.evaluate(node, data, kind)
            except checker.Refused as refused:
                refusal = str(refused)
            if (
                "full support" in refusal
                or "never draws" in refusal
                or (zeros and name.startswith("gradient"))
            ):
                assert zeros
                continue
            fast = getattr(instance, name)
            exactly = {k: exact(v) if isinstance(v, Fraction) else v for k, v in given.items()}
            fast = fast(**exactly) if given else fast
            if refusal:  # infinity minus infinity is no number in the package either
                assert "infinities" in refusal and isinstance(fast, flint.arb) and not fast.is_finite(), name
                continue
            compared[name] += 1
            agree(f"{kind}.{name}, seed {seed}", fast, lo, hi)
    assert min(compared.values()) >= 5


def agree(what: str, fast: Any, lo: Any, hi: Any) -> None:
    """Exact numbers must be equal, balls must overlap the enclosure, infinities must match."""
    if isinstance(fast, flint.arb):
        if not fast.is_finite():
            assert lo == hi == (math.inf if fast > 0 else -math.inf), what
            return
        low, high = ball_ends(fast)
        assert low <= hi and lo <= high, what
        assert high - low <= FLOAT64 * max(1, abs(high)), what
    elif isinstance(fast, float) and math.isinf(fast):
        assert lo == hi == fast, what
    elif isinstance(fast, int | flint.fmpq):
        assert lo == hi == Fraction(int(flint.fmpq(fast).p), int(flint.fmpq(fast).q)), what
    else:
        raise AssertionError(f"{what}: {type(fast).__name__} is no exact number")


def value(kind: str, instance: dict[str, Any], name: str, **given: Any) -> checker.Interval:
    lo, hi = checker.evaluate(["prim", name, given] if given else ["prim", name], instance, kind)
    return checker.Interval(lo, hi, 96)


def same(a: Any, b: Any) -> bool:
    """Two enclosures of one number: they overlap and are narrow."""
    a, b = (
        z if isinstance(z, checker.Interval) else checker.Interval(Fraction(z), Fraction(z), 96)
        for z in (a, b)
    )
    narrow = max(a.hi - a.lo, b.hi - b.lo) <= Fraction(1, 10**20)
    return bool(narrow and a.lo <= b.hi and b.lo <= a.hi)


@pytest.mark.parametrize("seed", range(4))
def test_single_state_identities(seed: int) -> None:
    """Relations between primitives that the package lacks and ones that were compared with it."""
    rng = random.Random(seed)
    n = rng.randint(2, 4)
    x = {"p": random_row(rng, n, False), "q": random_row(rng, n, False)}

    def of(name: str, **given: Any) -> checker.Interval:
        return value("single_state", x, name, **given)

    assert same(of("gate_acceptance"), 1 - of("tv"))
    assert same(of("opd_mean"), -of("kl_pq"))
    assert same(of("k3_pq"), of("kl_pq"))
    assert same(of("opd_variance"), of("opd_second_moment") - of("opd_mean") ** 2)
    assert same(of("topd_mean", alpha="1"), of("opd_mean")) and same(of("topd_second_moment", alpha="0"), 0)
    assert same(of("topd_gradient_second_moment", alpha="1"), of("opd_gradient_second_moment"))
    assert same(of("topd_gradient_variance", alpha="1"), of("opd_gradient_variance"))
    assert same(of("topk_tv", k=n), of("tv")) and same(of("topk_kl", k=n), of("kl_pq"))
    assert same(of("topk_fkl", k=n), of("kl_qp")) and same(of("topk_fkl_tail", k=n), of("kl_qp"))
    assert same(of("topk_tv", k=0), 0) and of("topk_fkl_tail", k=1).hi <= of("kl_qp").hi
    if n == 2:
        assert same(of("binary_tv", token=1), of("tv")) and same(of("binary_kl", token=0), of("kl_pq"))
    assert same(
        of("entropy_p"),
        -of("kl_pq")
        - checker.total(
            Fraction(a) * checker.log(Fraction(b), 96) for a, b in zip(x["p"], x["q"], strict=True)
        ),
    )
    assert of("max_ratio").lo >= 1 >= of("min_ratio").hi and same(of("covered_mass"), 1)


def test_gated_quantities_by_hand() -> None:
    x = {"p": ["1/2", "1/2"], "q": ["1/4", "3/4"]}
    log2, log32 = checker.log(Fraction(2), 96), checker.log(Fraction(3, 2), 96)
    assert same(value("single_state", x, "gated_k1"), (log2 * Fraction(1, 2) - log32) / 2)
    assert same(value("single_state", x, "gated_second_moment"), (log2**2 * Fraction(1, 2) + log32**2) / 2)


def softmax_field(rng: random.Random) -> dict[str, Any]:
    """A gradient field whose parameters are all the logits of a random full-support student."""
    tree = random_tree(rng)
    size = sum(tree.contexts(t) for t in range(tree.horizon)) * tree.vocab
    student = random_levels(rng, tree, False)
    weights, features, index = [], [], 0
    for level in student:
        features.append([])
        for row in level:
            features[-1].append([])
            for p in row:
                features[-1][-1].append([str(int(k == index)) for k in range(size)])
                weights.append(p)
                index += 1
    shape = {k: v for k, v in tree.to_data().items()}
    return shape | {
        "teacher": random_levels(rng, tree, False),
        "weights": weights,
        "features": features,
        "student": student,
    }


@pytest.mark.parametrize("seed", range(3))
def test_gradient_fields_with_one_parameter_for_each_logit_are_the_tabular_case(seed: int) -> None:
    data = softmax_field(random.Random(seed))
    student = data.pop("student")
    tabular = {k: v for k, v in data.items() if k not in ("features", "weights")} | {"student": student}
    for estimator in ("i", "ii", "iii", "iv", "v", "immediate", "immediate_baseline", "topd_return"):
        for name in ("gradient_second_moment", "gradient_norm2", "gradient_variance"):
            a = value("gradient_field", data, name, estimator=estimator)
            assert same(a, value("teacher_student", tabular, name, estimator=estimator))
        unbiased = estimator in ("i", "iii", "iv", "v")
        if unbiased:
            norm = value("teacher_student", tabular, "gradient_norm2", estimator="ii")
            assert same(value("teacher_student", tabular, "gradient_norm2", estimator=estimator), norm)
            assert same(value("teacher_student", tabular, "gradient_dot", first=estimator, second="ii"), norm)


@pytest.mark.parametrize("seed", range(3))
def test_shared_parameters_agree_with_the_package(seed: int) -> None:
    """Three parameters, whole features, every estimator, against enumeration in floating point."""
    rng = random.Random(seed)
    tree = random_tree(rng)
    features = [
        [[[rng.randint(-2, 2) for _ in range(3)] for _ in range(tree.vocab)] for _ in range(tree.contexts(t))]
        for t in range(tree.horizon)
    ]
    weights, levels = [Fraction(rng.randint(1, 5), 2) for _ in range(3)], random_levels(rng, tree, False)
    data = tree.to_data() | {
        "teacher": levels,
        "weights": [str(w) for w in weights],
        "features": [[[[str(f) for f in action] for action in row] for row in level] for level in features],
    }
    parameters = gradients.LinearLogits(tree, features)
    theta = np.log([float(w) for w in weights])
    teacher = Policy.from_levels(tree, levels).as_float()
    for estimator in ("i", "ii", "iii", "iv", "v", "immediate", "immediate_baseline"):
        moments = enumerated_moments(parameters, theta, teacher, estimator)
        for name, expected in (
            ("gradient_second_moment", moments.second_moment),
            ("gradient_norm2", (moments.mean**2).sum()),
            ("gradient_variance", moments.variance),
        ):
            got = value("gradient_field", data, name, estimator=estimator)
            assert close(float(got.lo), expected, LOOSE64), (estimator, name)
    field = mean_field_jacobian(parameters, theta, teacher, "immediate")
    for row, column in np.ndindex(3, 3):
        got = value("gradient_field", data, "jacobian", estimator="immediate", row=row, column=column)
        assert close(float(got.lo), field[row, column], LOOSE64)


def test_jacobians_are_symmetric_for_gradients_and_match_difference_quotients() -> None:
    example = EXAMPLES["gradient_field"]["instance"]
    data = example | {
        "weights": ["2", "3"],
        "features": [
            [
                [[*f, "1" if (t + i + a) % 3 == 0 else "0"] for a, f in enumerate(row)]
                for i, row in enumerate(level)
            ]
            for t, level in enumerate(example["features"])
        ],
    }
    step = Fraction(1, 10**6)

    def component(estimator: str, row: int, factor: Fraction) -> checker.Interval:
        moved = data | {"weights": ["2", str(3 * factor)]}
        return value("gradient_field", moved, "component", estimator=estimator, row=row)

    for estimator in ("immediate", "ii"):
        got = value("gradient_field", data, "jacobian", estimator=estimator, row=0, column=1)
        change = component(estimator, 0, 1 + step) - component(estimator, 0, 1 / (1 + step))
        quotient = change / (2 * checker.log(1 + step, 96))
        assert abs(got - quotient).hi <= Fraction(1, 10**9)
    first, second = (
        value("gradient_field", data, "jacobian", estimator="ii", row=i, column=1 - i) for i in (0, 1)
    )
    assert same(first, second)
    first, second = (
        value("gradient_field", data, "jacobian", estimator="immediate", row=i, column=1 - i) for i in (0, 1)
    )
    assert not same(first, second)


def test_iterated_maps_by_hand() -> None:
    proximal = {
        "map": "proximal",
        "start": ["1", "0"],
        "teacher": ["0", "1"],
        "steps": 2,
        "scalars": {"alpha": "1/2"},
        "errors": [["1/4", "-1/4"], ["0", "0"]],
    }
    assert same(value("iterated_map", proximal, "probability", k=2, token=0), Fraction(3, 8))
    assert same(value("iterated_map", proximal, "error_l1", k=0), Fraction(1, 2))
    assert same(value("iterated_map", proximal, "l1", k=2), Fraction(3, 4))
    assert same(value("iterated_map", proximal, "move", j=1, k=2), Fraction(3, 4))


def test_the_minorizer_map_maximises_its_bound() -> None:
    """Against a fine grid of candidates, on both sides of the teacher and at the border."""
    for p, q, penalty in (
        (Fraction(1, 3), Fraction(3, 4), 1),
        (Fraction(4, 5), Fraction(1, 9), 2),
        (Fraction(1, 8), Fraction(1, 9), 1),
    ):
        x = {
            "map": "minorizer",
            "start": [str(1 - p), str(p)],
            "teacher": [str(1 - q), str(q)],
            "steps": 1,
            "scalars": {"penalty": str(penalty)},
        }
        slope = math.log(q / p) - math.log((1 - q) / (1 - p))

        def bound(new: float, slope: float = slope, p: Fraction = p, penalty: int = penalty) -> float:
            shift = float(new) - float(p)
            return slope * shift - 2 * penalty * abs(slope * shift) * abs(shift)

        best = max(bound(i / 1000) for i in range(1001))
        reached = value("iterated_map", x, "probability", k=1, token=1).lo
        assert bound(float(reached)) >= best - FLOAT64
