"""Distillation rewards: stable formulas, exact expectations, and the divergences they descend."""

from __future__ import annotations

import math
from fractions import Fraction

import flint
import numpy as np
import pytest

from opdtheory import divergences as dv
from opdtheory import rewards as rw
from opdtheory.elementary import log
from opdtheory.tabular.table import to_float
from tests.tolerance import FLOAT64, LOOSE64, SIGMAS, TIGHT, close

torch = pytest.importorskip("torch")

ALPHAS = [1e-12, 0.05, 0.5, 0.9, 1 - 1e-9, 1.0]


def policies(seed: int, shape: tuple[int, ...] = (300,), vocab: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """(teacher, student)"""
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(vocab, 0.7), size=shape), rng.dirichlet(np.full(vocab, 0.7), size=shape)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_topd_is_accurate_over_the_whole_range(alpha: float) -> None:
    ell = np.array([-700.0, -40.0, -1.0001, -0.9999, -1e-9, 0.0, 1e-12, 0.3, 30.0, 79.9, 80.1, 700.0])
    with flint.ctx.workprec(4000):
        a = flint.arb(alpha)
        reference = np.array([float((a * flint.arb(x).exp() + (1 - a)).log()) for x in ell])
    value = rw.topd(ell, np.zeros_like(ell), alpha)
    assert close(value, reference, TIGHT)
    nonzero = reference != 0
    assert np.all(np.abs(value - reference)[nonzero] <= LOOSE64 * np.abs(reference)[nonzero])
    assert close(
        rw.topd(torch.tensor(ell), torch.zeros(12, dtype=torch.float64), alpha).numpy(), value, TIGHT
    )
    moderate = np.abs(ell) < 50
    assert close(rw.topd_from_ratio(np.exp(ell[moderate]), alpha), value[moderate])


def test_topd_floor_limit_and_shrinkage() -> None:
    assert rw.topd(-math.inf, -1.0, 0.25) == math.log(0.75)
    ell = np.linspace(-30, 30, 121)
    assert close(rw.topd(ell, 0 * ell, 1), ell, TIGHT)
    for alpha in ALPHAS:
        r = rw.topd(ell, 0 * ell, alpha)
        assert np.all(np.abs(r) <= np.abs(ell) + TIGHT)
        if alpha < 1:
            assert np.all(r >= math.log1p(-alpha) - TIGHT)


def test_topd_of_exact_ratios_is_a_ball_around_the_truth() -> None:
    ball = rw.topd_from_ratio(Fraction(3, 2), Fraction(1, 3))
    assert isinstance(ball, flint.arb)
    assert ball.overlaps(flint.arb(flint.fmpq(7, 6)).log())
    assert rw.topd(
        flint.arb(flint.fmpq(1, 2)).log(), flint.arb(flint.fmpq(1, 3)).log(), Fraction(1, 3)
    ).overlaps(ball)


def test_topd_gradient_through_torch_is_finite_and_right() -> None:
    ell = torch.tensor([-200.0, -5.0, -0.5, 0.5, 79.0, 300.0], dtype=torch.float64, requires_grad=True)
    rw.topd(ell, torch.zeros_like(ell), 0.3).sum().backward()
    x = np.exp(-np.abs(ell.detach().numpy()))
    expected = np.where(ell.detach().numpy() > 0, 0.3 / (0.3 + 0.7 * x), 0.3 * x / (0.3 * x + 0.7))
    assert close(ell.grad.numpy(), expected)


def test_expectations_are_the_divergences_with_a_minus_sign() -> None:
    q, p = policies(0)
    assert close(rw.expected_opd(q, p), -dv.kl(p, q))
    assert close(rw.expected_topd(q, p, 0.3), -dv.kl(p, 0.3 * q + 0.7 * p))
    logs = rw.opd(np.log(q), np.log(p))
    assert close(rw.expectation(p, logs), rw.expected_opd(q, p))
    assert close(rw.expectation(p, rw.topd(np.log(q), np.log(p), 0.3)), rw.expected_topd(q, p, 0.3))
    assert close(rw.expectation(p, rw.topd(np.log(q), np.log(p), 0.3) ** 2), rw.topd_second_moment(q, p, 0.3))
    assert close(rw.expectation(p, rw.tropd_clip(logs, -0.4)), rw.expected_tropd_clip(q, p, -0.4))
    assert close(rw.expectation(p, rw.tropd_mask(logs, -0.4)), rw.expected_tropd_mask(q, p, -0.4))
    gate = rw.tropd_accept_probability(np.log(q), np.log(p))
    assert close(rw.expectation(p, gate), 1 - dv.tv(p, q))
    assert close(rw.expectation(p, gate * logs), rw.expected_tropd_gate(q, p))


def test_expected_forms_agree_on_exact_numbers_and_disjoint_supports() -> None:
    q = [Fraction(1, 3), Fraction(2, 3), Fraction(0)]
    p = [Fraction(1, 2), Fraction(0), Fraction(1, 2)]
    forms = {
        "topd": lambda a, b: rw.expected_topd(a, b, Fraction(1, 4)),
        "second": lambda a, b: rw.topd_second_moment(a, b, Fraction(1, 4)),
        "gate": rw.expected_tropd_gate,
        "clip": lambda a, b: rw.expected_tropd_clip(a, b, Fraction(-1, 4)),
        "mask": lambda a, b: rw.expected_tropd_mask(a, b, Fraction(-1, 4)),
        "normalizer": lambda a, b: rw.geometric_log_normalizer(a, b, Fraction(1, 4)),
        "potential": lambda a, b: rw.topd_potential(a, b, Fraction(1, 4)),
    }
    fq, fp = np.array(q, dtype=float), np.array(p, dtype=float)
    for form in forms.values():
        assert np.isfinite(form(fq, fp))
        assert close(to_float(form(q, p)), form(fq, fp))
        assert close(form(torch.tensor(fq), torch.tensor(fp)).numpy(), form(fq, fp), TIGHT)
    assert rw.expected_opd(fq, fp) == -math.inf
    assert rw.expected_tropd_gate([1.0, 0.0], [0.0, 1.0]) == 0
    assert rw.geometric_log_normalizer([1.0, 0.0], [0.0, 1.0], 0.5) == -math.inf


def test_geometric_mixture_normaliser_is_the_missing_term() -> None:
    q, p = policies(1)
    alpha = 0.3
    mixture = np.exp(alpha * np.log(q) + (1 - alpha) * np.log(p))
    mixture /= mixture.sum(-1, keepdims=True)
    reward = rw.opd_geometric(np.log(q), np.log(p), alpha)
    log_z = rw.geometric_log_normalizer(q, p, alpha)
    assert close(np.log(mixture / p), reward - log_z[..., None])
    assert np.all(log_z <= TIGHT)
    assert np.any(log_z < -0.01)


def test_immediate_topd_descends_its_potential() -> None:
    q, p = policies(2, (20,))
    z = torch.tensor(np.log(p), requires_grad=True)
    rw.topd_potential(torch.tensor(q), torch.softmax(z, -1), 0.4).sum().backward()
    reward = rw.topd(np.log(q), np.log(p), 0.4)
    update = p * (reward - (p * reward).sum(-1, keepdims=True))
    assert close(-z.grad.numpy(), update)


def test_gate_samples_match_the_acceptance_probability() -> None:
    q, p = policies(3, (1,))
    rng = np.random.default_rng(0)
    n = 40_000
    draws = rng.choice(5, size=n, p=p[0])
    values = rw.tropd_gate(np.log(q[0, draws]), np.log(p[0, draws]), rng.random(n))
    standard_error = values.std() / math.sqrt(n)
    assert abs(values.mean() - rw.expected_tropd_gate(q, p)[0]) < SIGMAS * standard_error


def test_outlier_rules_and_entropy_filter_elementwise() -> None:
    ell = np.array([-math.inf, -2.0, -0.5, 1.0])
    assert rw.tropd_clip(ell, -1).tolist() == [-1, -1, -0.5, 1]
    assert rw.tropd_mask(ell, -1).tolist() == [0, 0, -0.5, 1]
    assert rw.entropy_filter(ell, np.array([0.1, 2, 0.1, 2]), 0.5).tolist() == [0, -2, 0, 1]
    assert rw.tropd_mask(torch.tensor(ell), -1).tolist() == [0, 0, -0.5, 1]
    # a threshold on an exact logarithm is decided by balls, or refused
    exact = log(np.array([flint.fmpq(1, 2), flint.fmpq(1, 9)], dtype=object))
    assert [bool(x == 0) for x in rw.tropd_mask(exact, -1)] == [False, True]
    with pytest.raises(ValueError, match="undecided"):
        rw.tropd_mask(np.array([flint.arb(-1, 1)], dtype=object), -1)


def test_tokens_the_student_never_draws_do_not_count() -> None:
    assert rw.expectation([1.0, 0.0], [2.0, math.inf]) == 2.0
    assert rw.ratio([0.5, 0.5], [1.0, 0.0]).tolist() == [0.5, 1.0]
    assert close(rw.topd_second_moment([0.5, 0.5], [1.0, 0.0], 0.5), math.log(0.75) ** 2, FLOAT64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rw.topd(0.0, 0.0, 0), "alpha: got 0"),
        (lambda: rw.topd_from_ratio(1.0, 1.5), "alpha: got 1.5"),
        (lambda: rw.tropd_clip(0.0, 0.5), "tau: got 0.5"),
        (lambda: rw.topd_potential([1.0], [1.0], 1), "alpha: got 1"),
        (lambda: rw.expected_opd([0.5, 0.5], [1.0]), "2 and 1 tokens|1 and 2 tokens"),
    ],
)
def test_bad_input_is_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
