"""Properties that every registered bound shares: monotone, unit-consistent, exact, recordable, with
true thresholds.
"""

from __future__ import annotations

import math
from fractions import Fraction

import flint
import numpy as np
import pytest

from opdtheory.bounds.registry import REGISTRY, UNIT_INTERVAL, Bound, bound
from opdtheory.elementary import exact as exact_number
from opdtheory.verification.expression import Expr
from tests.tolerance import FLOAT64, LOOSE64, TIGHT, close

# -------------------------------------------------------------------------------------- shared properties

SAMPLE = {
    "horizon": 12,
    "tv_max": 0.03,
    "kl_max": 0.004,
    "reverse_kl_max": 0.004,
    "kl_seq": 0.02,
    "reverse_kl_seq": 0.02,
    "reverse_kl_sum": 0.02,
    "tv_sum": 0.2,
    "tv_seq": 0.1,
    "chi2_max": 0.01,
    "hellinger2_max": 0.001,
    "hellinger2_sum": 0.01,
    "hellinger2_seq": 0.01,
    "midpoint_kl_sum": 0.01,
    "J_behavior": 0.4,
    "tv_max_steps": np.full(12, 0.03),
    "ratio_martingale": 0.01,
    "reward_sd": 0.4,
    "reward_bound": 1.0,
    "surrogate": 0.1,
    "reward_log_w": 0.01,
    "cost_log_w": 0.02,
    "reward_floor_log_w": 0.01,
    "masked_surrogate": 0.1,
    "masked_k3": 0.01,
    "masked_reward_lost": 0.02,
    "alpha": 0.3,
    "vocab": 100,
    "score_bound": 1.5,
    "steps": 7,
    "initial": 1.2,
    "step_error": 1e-9,
    "adv_max": 0.7,
    "adv_target_max": 0.3,
    "adv_kl_max": 0.3,
    "advantage_bound": 1.0,
    "gamma": 0.9,
    "tv": 0.1,
    "steps_before": 3,
    "tv_steps": np.full(12, 0.01),
}
ARRAYS = {"tv_steps", "tv_max_steps"}
DECREASING = {("trm.2.6.1", n) for n in ("horizon", "kl_max", "kl_seq")} | {
    ("ours.s2/upper", "cost_log_w"),
    ("ours.s2/exp-upper", "cost_log_w"),
    ("ours.s2/exp-upper", "J_behavior"),
    ("ours.s2/exp-lower", "J_behavior"),
    ("ours.s8/masked", "masked_k3"),
    ("ours.s8/masked", "masked_reward_lost"),
    ("topd.thm4.4/uniform", "alpha"),
    ("topd.thm4.4/uniform", "steps"),
    ("topd.thm4.4/limit", "alpha"),
    ("topd.thm4.4-token", "alpha"),
    ("topd.thm4.4-token", "steps"),
    ("topd.thm4.4-token/steps", "alpha"),
    ("topd.thm4.4-token/steps", "steps"),
    ("topd.thm4.4/state", "alpha"),
    ("topd.thm4.4/state", "steps"),
    ("ours.s10", "alpha"),
    ("ours.s10", "steps"),
}


@pytest.mark.parametrize("entry", REGISTRY.values(), ids=lambda b: b.id)
def test_monotone_in_each_argument(entry: Bound) -> None:
    for name in (*entry.needs, *entry.optional):
        base = SAMPLE[name]
        whole = isinstance(base, int)
        values = []
        for factor in [1, 2, 4, 8] if whole else np.geomspace(0.2, 9, 60):
            moved = 1 - (1 - base) / factor if name == "gamma" else base * factor
            if name in {*UNIT_INTERVAL, "J_behavior"} and moved >= 1:
                break
            steps = (
                {"tv_steps": np.full(moved, 0.01)} if name == "horizon" and "tv_steps" in entry.needs else {}
            )
            values.append(float(entry.evaluate({**SAMPLE, **steps, name: moved})))
        change = np.diff(values)
        slack = TIGHT * np.abs(values[:-1])
        if (entry.id, name) in DECREASING:
            assert np.all(change <= slack) and values[-1] < values[0], f"{entry.id} does not fall with {name}"
        else:
            assert np.all(change >= -slack) and values[-1] > values[0], (
                f"{entry.id} does not grow with {name}"
            )


REWARD_UNITS = {
    "J_behavior",
    "reward_bound",
    "reward_sd",
    "adv_max",
    "adv_target_max",
    "adv_kl_max",
    "surrogate",
    "reward_log_w",
    "cost_log_w",
    "reward_floor_log_w",
    "masked_surrogate",
    "masked_k3",
    "masked_reward_lost",
    "advantage_bound",
}


@pytest.mark.parametrize("entry", REGISTRY.values(), ids=lambda b: b.id)
def test_units(entry: Bound) -> None:
    """Scaling the reward scales what is in reward units, and nothing else."""
    factor = 3.0
    scaled = {k: factor * v if k in REWARD_UNITS else v for k, v in SAMPLE.items()}
    before, after = entry.evaluate(SAMPLE), entry.evaluate(scaled, span=factor)
    in_reward_units = entry.scales_with_span or REWARD_UNITS & set(entry.needs)
    power = 2 if entry.target == "variance" and in_reward_units else 1 if in_reward_units else 0
    assert close(after, factor**power * before, TIGHT)


@pytest.mark.parametrize("entry", REGISTRY.values(), ids=lambda b: b.id)
def test_exact_and_float_agree(entry: Bound) -> None:
    """On rationals the same lines give a rational or a ball that agrees with the float value."""
    exact = {
        k: v if isinstance(v, int) else flint.fmpq(round(float(v) * 10**12), 10**12)
        for k, v in SAMPLE.items()
        if np.ndim(v) == 0
    }
    exact |= {k: [exact_number(Fraction(str(v[0])))] * 12 for k, v in SAMPLE.items() if np.ndim(v)}
    value = entry.evaluate(exact)
    assert isinstance(value, flint.arb | flint.fmpq)
    ball = flint.arb(value)
    assert float(ball.rad()) <= TIGHT * max(1.0, abs(float(ball.mid())))
    assert close(float(ball.mid()), float(entry.evaluate(SAMPLE)), FLOAT64)


RECORDABLE = [
    b
    for b in REGISTRY.values()
    if ("alpha" not in b.needs or b.id == "ours.s10") and not {"tv_steps", "tv_max_steps"} & set(b.needs)
]


@pytest.mark.parametrize("entry", RECORDABLE, ids=lambda b: b.id)
def test_recorded_formula_says_the_same(entry: Bound) -> None:
    recorded = {name: Expr(["prim", name]) for name in SAMPLE}
    assert close(_play(entry.evaluate(recorded).node), entry.evaluate(SAMPLE), FLOAT64)


def _play(node: list) -> float:
    operations = {
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "mul": lambda a, b: a * b,
        "div": lambda a, b: a / b,
        "neg": lambda a: -a,
        "sqrt": math.sqrt,
        "log": math.log,
        "exp": math.exp,
        "min": min,
        "max": max,
    }
    op, *rest = node
    if op == "const":
        return float(flint.fmpq(*map(int, rest[0].split("/"))))
    if op == "prim":
        return float(SAMPLE[rest[0]])
    if op == "pow":
        return _play(rest[0]) ** rest[1]
    return operations[op](*(_play(r) for r in rest))


def test_vectorised() -> None:
    deltas = np.geomspace(1e-8, 1e-2, 7)
    for entry in REGISTRY.values():
        if "kl_max" in entry.needs and "tv_steps" not in entry.needs:
            together = entry.evaluate({**SAMPLE, "kl_max": deltas})
            one_by_one = [entry.evaluate({**SAMPLE, "kl_max": d}) for d in deltas]
            assert np.shape(together) == (7,) and close(together, one_by_one, TIGHT)


# --------------------------------------------------------------------------------------- powers, thresholds


def test_powers_keep_their_digits() -> None:
    from mpmath import mp, mpf

    from opdtheory.bounds.powers import excess_growth, growth, miss_probability

    mp.dps = 60
    for n in (1, 2, 3, 100, 16384):
        for x in (1e-18, 1e-12, 1e-7, 1e-4, 0.01, 0.3, 1.0):
            e = mpf(x)
            assert close(float(miss_probability(x, n) / float(1 - (1 - e) ** n)), 1.0, TIGHT)
            if n * x < 30:
                assert close(float(growth(x, n)) / float((1 + e) ** n - 1), 1.0, TIGHT)
                if n > 1:
                    assert close(float(excess_growth(x, n)) / float((1 + e) ** n - 1 - n * e), 1.0, FLOAT64)
    assert miss_probability(1.0, 0) == 0 and miss_probability(0.5, np.array([0, 1]))[1] == 0.5
    assert excess_growth(0.3, 1) == pytest.approx(0, abs=TIGHT) and excess_growth(10.0, 5000) == math.inf


@pytest.mark.parametrize("horizon", [16, 4096])
def test_thresholds_separate_vacuous_from_informative(horizon: int) -> None:
    given = {**SAMPLE, "horizon": horizon, "tv_steps": None}
    checked = 0
    for entry in REGISTRY.values():
        if entry.target not in {"surrogate_error", "sequence_tv", "improvement"} or ARRAYS & set(entry.needs):
            continue
        for name in set(entry.needs) - {"horizon", "reward_sd", "reward_bound", "surrogate"}:
            edge = entry.threshold(name, given)
            if 0 < edge < (0.99 if name in UNIT_INTERVAL else math.inf):
                checked += 1
                below, above = ({**given, name: edge * (1 + s)} for s in (-LOOSE64, LOOSE64))
                assert not entry.is_vacuous(entry.evaluate(below), below)
                assert entry.is_vacuous(entry.evaluate(above), above)
    assert checked >= 20


def test_docstrings_carry_what_a_reader_must_know() -> None:
    for entry in REGISTRY.values():
        text = entry.function.__doc__
        assert text.split("\n\n")[0].strip() and entry.summary() in text, entry.id
        for part in (entry.source, entry.scaling, entry.sharpness, *entry.assumptions):
            assert part and part in text, (entry.id, part)


def test_registration_refuses_nonsense() -> None:
    options = {"name": "n", "source": "s", "scaling": "", "sharpness": "tight"}
    with pytest.raises(ValueError, match="target"):
        bound("x.y", target="nothing", **options)(lambda kl_max: kl_max)
    with pytest.raises(ValueError, match="twice"):
        bound("ours.s1", target="step", **options)(lambda kl_max: kl_max)
    with pytest.raises(ValueError, match="missing"):
        REGISTRY["ours.s4"].evaluate({"horizon": 3})
    with pytest.raises(ValueError, match="expected one of"):
        REGISTRY["ours.s4"].threshold("kl_max", {"horizon": 3})
