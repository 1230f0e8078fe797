"""Trust Region Policy Distillation: headline results enumerated plainly, and its successive students."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction as F
from itertools import product

import numpy as np
import pytest

from opdtheory import checker, claims
from opdtheory.claims import topd_algorithm, topd_reward, topd_variance
from opdtheory.tabular.iterates import MinorizerSteps, ProximalSteps
from opdtheory.verification.searching import search
from tests.tolerance import LOOSE64, TIGHT, close

Policy = dict[tuple[int, ...], tuple[F, ...]]


def row(*numbers: str) -> tuple[F, ...]:
    return tuple(F(n) for n in numbers)


def law(policy: Policy) -> dict[tuple[int, ...], F]:
    horizon = 1 + max(len(prefix) for prefix in policy)
    words = product(range(len(policy[()])), repeat=horizon)
    return {y: math.prod((policy[y[:t]][a] for t, a in enumerate(y)), start=F(1)) for y in words}


def mixed(teacher: Policy, student: Policy, alpha: F) -> Policy:
    return {
        c: tuple(alpha * b + (1 - alpha) * a for a, b in zip(student[c], teacher[c], strict=True))
        for c in student
    }


def distance(a: Policy, b: Policy) -> F:
    p, q = law(a), law(b)
    return sum((abs(p[y] - q[y]) for y in p), F(0))


def kl(p: tuple[float, ...], q: tuple[float, ...]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a)


HALF = row("1/2", "1/2")


# -------------------------------------------------------------------------------- convergence (Theorem 4.4)


def test_token_mixing_misses_the_printed_rate() -> None:
    teacher = {(): HALF, (0,): row("1/3", "2/3"), (1,): HALF}
    student = {(): row("1/3", "2/3"), (0,): HALF, (1,): HALF}
    alpha = F(19, 20)
    after, before = distance(mixed(teacher, student, alpha), teacher), distance(student, teacher)
    assert (after, (1 - alpha) * before) == (F(139, 7200), F(1, 60))


@pytest.mark.parametrize("horizon", [1, 2, 3, 4])
def test_token_mixing_keeps_one_minus_alpha_to_the_horizon(horizon: int) -> None:
    contexts = [y for t in range(horizon) for y in product(range(2), repeat=t)]
    teacher, student = dict.fromkeys(contexts, row("1", "0")), dict.fromkeys(contexts, row("0", "1"))
    alpha = F(1, 10)
    assert distance(mixed(teacher, student, alpha), teacher) == 2 * (1 - alpha**horizon)


def test_a_student_that_stays_can_be_farther_than_the_printed_limit() -> None:
    teacher = {(): row("3/4", "1/4"), (0,): row("3/4", "1/4"), (1,): HALF}
    student = {(): HALF, (0,): HALF, (1,): HALF}
    alpha = F(1, 20)
    error = distance(student, mixed(teacher, student, alpha))
    assert (alpha * distance(student, teacher), error) == (F(1, 32), F(81, 3200))
    assert distance(student, teacher) > error / alpha


def test_proximal_steps_agree_with_the_checker() -> None:
    laws = [["1", "0", "0"], ["1/2", "1/4", "1/4"], ["1/5", "2/5", "2/5"]]
    steps = ProximalSteps(["1/3", "1/3", "1/3"], laws, alpha="1/4")
    twin = checker.load_instance("iterated_map", steps.to_data())
    for name, arguments in [
        ("l1", {"k": 0}),
        ("l1", {"k": 2}),
        ("error_l1", {"k": 1}),
        ("move", {"j": 0, "k": 2}),
    ]:
        lo, hi = checker.evaluate(["prim", name, arguments], twin, "iterated_map")
        assert lo == hi == F(str(getattr(steps, name)(**arguments)))


def test_minorizer_steps_agree_with_the_checker() -> None:
    steps = MinorizerSteps.run(["2/3", "1/3"], ["1/10", "9/10"], penalty="3/2", steps=5)
    twin = checker.load_instance("iterated_map", steps.to_data())
    for k in range(6):
        lo, hi = checker.evaluate(["prim", "probability", {"k": k, "token": 1}], twin, "iterated_map")
        assert lo == hi == F(str(steps.probability(k, 1)))
        lo, hi = checker.evaluate(["prim", "kl", {"k": k}], twin, "iterated_map")
        assert close(float(lo), float(steps.kl(k).mid()), TIGHT)


def test_minorizer_steps_need_two_actions() -> None:
    with pytest.raises(ValueError, match="3 actions"):
        MinorizerSteps.run(["1/3", "1/3", "1/3"], ["1/3", "1/3", "1/3"], penalty=1, steps=1)


# ------------------------------------------------------------------------------ improvement (Theorem 4.9)


def minorizer_gain(
    student: tuple[float, ...], teacher: tuple[float, ...], candidate: tuple[float, ...]
) -> float:
    """M(candidate) − η(student) at one state, T_max = 1."""
    reward = [math.log(b / a) for a, b in zip(student, teacher, strict=True)]
    mean = sum(a * r for a, r in zip(student, reward, strict=True))
    gain = sum(c * (r - mean) for c, r in zip(candidate, reward, strict=True))
    total_variation = sum(abs(a - c) for a, c in zip(student, candidate, strict=True)) / 2
    return gain - 2 * abs(gain) * total_variation


def test_a_step_that_raises_the_bound_can_raise_the_kl() -> None:
    student, teacher, candidate = (0.5, 0.5), (0.6, 0.4), (0.8, 0.2)
    assert minorizer_gain(student, teacher, candidate) > 0
    assert kl(candidate, teacher) > 4 * kl(student, teacher)


def test_the_printed_bound_fails_at_the_teacher_itself() -> None:
    teacher, candidate = (1 / 3, 2 / 3), (0.5, 0.5)
    assert close(minorizer_gain(teacher, teacher, candidate), 0.0, TIGHT)  # M(candidate) = η(teacher) = 0
    assert -kl(candidate, teacher) < 0


def test_exact_maximisation_returns_after_two_steps() -> None:
    teacher, path = (0.4, 0.6), [0.5]
    for _ in range(4):
        grid = np.linspace(0.0, 1.0, 2001)
        gains = [minorizer_gain((1 - path[-1], path[-1]), teacher, (1 - u, u)) for u in grid]
        path.append(float(grid[int(np.argmax(gains))]))
    assert close(path[1], 0.75, TIGHT) and close(path[2], 0.5, TIGHT) and close(path[4], 0.5, TIGHT)


# --------------------------------------------------------------------------------- variance (Theorem 4.2)


def test_the_printed_variance_bound_at_the_quoted_vocabulary() -> None:
    low, high = 2.0, math.exp(2)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if math.log(middle) < 2 * (1 - 1 / middle) else (low, middle)
    constant = math.log(low) ** 2 / (low - 1)
    printed = 151936 * max(math.log(0.9) ** 2, constant * 0.1)
    vacuous, detail = claims.get("topd.thm4.2").vacuous_as_quoted()
    assert vacuous and f"{printed:.3g}" in detail and f"{printed:.2g}" == "9.8e+03"


def gradient_variance(p: np.ndarray, reward: np.ndarray) -> float:
    vectors = reward[:, None] * (np.eye(len(p)) - p)
    mean = p @ vectors
    return float((p * (vectors**2).sum(-1)).sum() - (mean**2).sum())


def test_mixing_can_raise_the_variance_of_the_token_gradient() -> None:
    p, q, alpha = np.array([1, 2]) / 3, np.array([5, 1]) / 6, 0.98
    plain, proximal = np.log(q / p), np.log(alpha * q / p + 1 - alpha)
    assert gradient_variance(p, proximal) > gradient_variance(p, plain) * 1.1
    assert (p * proximal**2).sum() <= (p * plain**2).sum()


# ------------------------------------------------------------------------------------------ returns (Eq 8)


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max())
    return e / e.sum()


Logits = dict[tuple[int, ...], np.ndarray]


def along(logits: Logits) -> list[tuple[tuple[int, ...], float]]:
    return [
        (y, math.prod(float(softmax(logits[y[:t]])[a]) for t, a in enumerate(y)))
        for y in product(range(2), repeat=3)
    ]


def update(
    logits: Logits, teacher: Logits, alpha: float, advantage: Callable[[list[float]], list[float]]
) -> np.ndarray:
    """E Σ_k Â_k ∇log π, rewards log(αρ + 1 − α), by enumeration."""
    out = {c: np.zeros(2) for c in logits}
    for y, probability in along(logits):
        ratios = [softmax(teacher[y[:t]])[a] / softmax(logits[y[:t]])[a] for t, a in enumerate(y)]
        for t, value in enumerate(advantage([math.log(alpha * r + 1 - alpha) for r in ratios])):
            out[y[:t]] += probability * value * (np.eye(2)[y[t]] - softmax(logits[y[:t]]))
    return np.concatenate([out[c] for c in sorted(out)])


def reverse_kl(logits: Logits, teacher: Logits) -> float:
    return sum(
        w * sum(math.log(softmax(logits[y[:t]])[a] / softmax(teacher[y[:t]])[a]) for t, a in enumerate(y))
        for y, w in along(logits)
    )


def test_the_length_normalised_return_can_oppose_the_gradient() -> None:
    contexts = [y for t in range(3) for y in product(range(2), repeat=t)]
    student = {c: np.log([0.5, 0.5]) for c in contexts} | {(0,): np.log([0.99, 0.01])}
    teacher = {c: np.log([0.5, 0.5]) for c in contexts} | {(): np.log([0.9, 0.1]), (0,): np.log([0.05, 0.95])}
    descent, h = [], 1e-5
    for c in sorted(contexts):
        for a in range(2):
            ends = [reverse_kl({**student, c: student[c] + s * h * np.eye(2)[a]}, teacher) for s in (1, -1)]
            descent.append(-(ends[0] - ends[1]) / (2 * h))
    to_go = update(student, teacher, 1.0, lambda r: [sum(r[k:]) for k in range(3)])
    assert np.allclose(to_go, descent, rtol=0, atol=LOOSE64)
    average = update(
        student,
        teacher,
        0.95,
        lambda r: [r[k] + (sum(r[k + 1 :]) / (2 - k) if k < 2 else 0.0) for k in range(3)],
    )
    cosine = average @ to_go / np.linalg.norm(average) / np.linalg.norm(to_go)
    assert cosine < -0.9


# --------------------------------------------------------------------------------------------- the entries


@pytest.mark.parametrize(
    "claim_id",
    [
        "topd.eq5/var", "topd.eq5/var-togo", "topd.eq8/opposed", "topd.thm4.4/token",
        "topd.thm4.4/token-limit",
        "topd.pinsker/token", "topd.thm4.9/true", "topd.rem4.10", "topd.rem4.10/cycle", "topd.rem4.3/noise",
    ],
)  # fmt: skip
def test_the_search_refutes_and_the_checker_confirms(claim_id: str) -> None:
    found = search(claims.get(claim_id), seed=1)
    assert found.refuted and checker.check(found.certificate).confirmed


@pytest.mark.parametrize(
    "check",
    [
        topd_algorithm._gradient_weight, topd_algorithm._no_penalty, topd_algorithm._weights,
        topd_algorithm._differences,
        topd_algorithm._scale_disappears, topd_algorithm._behind_rlvr, topd_variance._crossings,
        topd_variance._stationary_point, topd_variance._both_directions, topd_reward._length_is_occupancy,
    ],
)  # fmt: skip
def test_checks_of_definitions_and_numbers(check: Callable[[], object]) -> None:
    evidence = check()
    assert evidence.ok, evidence.detail
    assert any(c.isdigit() for c in evidence.detail)


def test_checks_notice_a_changed_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(topd_algorithm._EIGHT, "AIME24", ("30.10", "32.92", "24.58", "50.42", "25.85"))
    assert not topd_algorithm._differences().ok
