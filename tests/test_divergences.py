"""Divergences against slow exact twins, known identities, limits and the three kinds of array."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import flint
import numpy as np
import pytest

from opdtheory import divergences as dv
from opdtheory.tabular import local
from opdtheory.tabular.table import as_numbers, to_float
from tests.tolerance import FLOAT32, FLOAT64, LOOSE64, TIGHT, close

torch = pytest.importorskip("torch")

INF = float("inf")
PAIRWISE = {
    "kl": dv.kl,
    "tv": dv.tv,
    "chi2": dv.chi2,
    "hellinger2": dv.hellinger2,
    "jsd": lambda p, q: dv.jsd(p, q, Fraction(1, 3)),
    "renyi_half": lambda p, q: dv.renyi(p, q, Fraction(1, 2)),
    "renyi_2": lambda p, q: dv.renyi(p, q, 2),
    "renyi_inf": lambda p, q: dv.renyi(p, q, INF),
    "topk_tv": lambda p, q: dv.topk_tv(p, q, 1),
    "topk_kl": lambda p, q: dv.topk_kl(p, q, 1),
}


def random_fractions(rng: np.random.Generator, shape: tuple[int, ...], zeros: float = 0.2) -> np.ndarray:
    """Rational distributions over the last axis with some entries zero, as Fractions."""
    counts = rng.integers(1, 20, size=shape) * (rng.random(shape) >= zeros)
    keep = rng.integers(shape[-1], size=shape[:-1])
    np.put_along_axis(counts, keep[..., None], 7, axis=-1)
    out = np.empty(shape, dtype=object)
    for index in np.ndindex(shape):
        out[index] = Fraction(int(counts[index]), int(counts[index[:-1]].sum()))
    return out


def as_floats(x: np.ndarray) -> np.ndarray:
    return np.array(x, dtype=float)


def log_or_inf(x: Fraction) -> float:
    return math.log(x) if x > 0 else -INF


def naive(name: str, p: list[Fraction], q: list[Fraction]) -> float:
    """The definitions, one token at a time."""
    pairs = list(zip(p, q, strict=True))
    if name == "tv":
        return float(sum(abs(a - b) for a, b in pairs) / 2)
    if name == "kl":
        return sum(INF if b == 0 else float(a) * math.log(a / b) for a, b in pairs if a > 0)
    if name == "chi2":
        return (
            INF
            if any(a > 0 and b == 0 for a, b in pairs)
            else float(sum(a * a / b for a, b in pairs if b > 0) - 1)
        )
    if name == "hellinger2":
        return 1 - sum(math.sqrt(a * b) for a, b in pairs)
    if name == "renyi_half":
        return -2 * log_or_inf(sum(math.sqrt(a * b) for a, b in pairs))
    if name == "renyi_2":
        return math.log1p(naive("chi2", p, q))
    if name == "renyi_inf":
        return max(INF if b == 0 else math.log(a / b) for a, b in pairs if a > 0)
    if name == "jsd":
        m = [b / 3 + 2 * a / 3 for a, b in pairs]
        return naive("kl", q, m) / 3 + 2 * naive("kl", p, m) / 3
    top = max(range(len(p)), key=lambda i: (p[i], -i))
    merged_p, merged_q = [p[top], 1 - p[top]], [q[top], 1 - q[top]]
    return naive(name.removeprefix("topk_"), merged_p, merged_q)


@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize("vocab", [1, 2, 5])
def test_agrees_with_the_definition_on_every_backend(name: str, vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    p, q = random_fractions(rng, (10, 20, vocab)), random_fractions(rng, (10, 20, vocab))
    q[0] = p[0]
    fn = PAIRWISE[name]
    expected = np.array(
        [
            [naive(name, list(a), list(b)) for a, b in zip(*rows, strict=True)]
            for rows in zip(p, q, strict=True)
        ]
    )
    floats = fn(as_floats(p), as_floats(q))
    assert floats.shape == (10, 20)
    assert close(floats, expected)
    assert close(to_float(fn(p, q)), expected)
    tensors = fn(torch.tensor(as_floats(p)), torch.tensor(as_floats(q)))
    assert close(tensors.numpy(), floats, TIGHT)


def test_algebraic_divergences_stay_rational() -> None:
    p = [Fraction(1, 2), Fraction(1, 4), Fraction(1, 4)]
    q = [Fraction(1, 3), Fraction(1, 3), Fraction(1, 3)]
    assert dv.tv(p, q) == flint.fmpq(1, 6)
    assert dv.chi2(p, q) == flint.fmpq(1, 8)
    assert dv.topk_tv(p, q, 1) == flint.fmpq(1, 6)
    assert dv.binary_tv(Fraction(1, 2), Fraction(1, 3)) == flint.fmpq(1, 6)
    assert isinstance(dv.kl(p, q), flint.arb)
    assert dv.hellinger2([Fraction(9, 25), Fraction(16, 25)], [Fraction(1), Fraction(0)]) == flint.fmpq(2, 5)
    assert dv.tv(["1/2", "1/2"], ["1/3", "2/3"]) == flint.fmpq(1, 6)


def test_support_mismatch_is_infinite_never_clamped() -> None:
    p, q = np.array([0.5, 0.5]), np.array([1.0, 0.0])
    for one_way in (dv.kl, dv.chi2, lambda a, b: dv.renyi(a, b, 3), lambda a, b: dv.renyi(a, b, INF)):
        assert one_way(p, q) == INF
        assert np.isfinite(one_way(q, p))
    assert dv.renyi(np.array([1.0, 0.0]), np.array([0.0, 1.0]), 0.5) == INF
    assert np.isfinite(dv.renyi(p, q, 0.5))
    assert dv.renyi(p, q, 0) == 0
    assert close(dv.renyi(q, p, 0), math.log(2))
    assert dv.binary_kl(0.5, 0.0) == INF
    assert dv.binary_kl(1.0, 1.0) == 0


def test_binary_kl_forgives_a_probability_rounded_above_one() -> None:
    above = np.nextafter(1.0, 2.0)
    assert dv.binary_kl(above, 1.0) < LOOSE64
    assert np.isfinite(dv.binary_kl(1.0, above))


def test_partitions_are_lower_bounds_and_refine() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.full(6, 0.5), size=3000), rng.dirichlet(np.full(6, 0.5), size=3000)
    sampled = rng.integers(6, size=3000)
    token = sampled[:, None]
    p_a, q_a = np.take_along_axis(p, token, -1)[:, 0], np.take_along_axis(q, token, -1)[:, 0]
    for full, topk, binary in ((dv.tv, dv.topk_tv, dv.binary_tv), (dv.kl, dv.topk_kl, dv.binary_kl)):
        values = [binary(p_a, q_a), *(topk(p, q, k, sampled) for k in range(7)), full(p, q)]
        assert close(values[0], values[1])
        assert close(values[-2], values[-1])
        for coarse, fine in itertools.pairwise(values):
            assert np.all(coarse <= fine + TIGHT)
        cells = [[0, 3], [1], [5, 2, 4]]
        assert np.all(full(dv.coarsen(p, cells), dv.coarsen(q, cells)) <= full(p, q) + TIGHT)


def test_leaving_the_tail_out_breaks_both_ends() -> None:
    p, q = np.array([0.6, 0.4]), np.array([0.1, 0.9])
    assert dv.topk_kl(p, q, 1, tail=False) > dv.kl(p, q)
    assert dv.topk_kl(q, np.array([0.05, 0.95]), 1, tail=False) < 0
    assert close(2 * dv.topk_tv(p, q, 0, sampled=1, tail=False), dv.binary_tv(p[1], q[1]))


def test_top_members_break_ties_by_index_and_add_the_sampled_token() -> None:
    p = np.array([[0.25, 0.25, 0.25, 0.25], [0.1, 0.2, 0.3, 0.4]])
    expected = [[True, True, False, True], [False, False, True, True]]
    assert dv.topk_members(p, 2, np.array([3, 3])).tolist() == expected
    assert dv.topk_members(torch.tensor(p), 2, torch.tensor([3, 3])).tolist() == expected
    exact = np.array([[Fraction(1, 4)] * 4], dtype=object)
    assert dv.topk_members(exact, 1).tolist() == [[True, False, False, False]]


def test_classical_inequalities_between_divergences() -> None:
    rng = np.random.default_rng(1)
    alpha = 10.0 ** rng.uniform(-1, 1.5, size=4000)
    p, q = (np.array([rng.dirichlet(np.full(4, a)) for a in alpha]) for _ in range(2))
    kl, tv, h2 = dv.kl(p, q), dv.tv(p, q), dv.hellinger2(p, q)
    slack = LOOSE64 * (1 + kl)
    assert np.all(2 * tv**2 <= kl + slack)
    assert np.all(kl <= np.log1p(dv.chi2(p, q)) + slack)
    assert np.all(2 * h2 <= kl + slack)
    assert np.all(h2 <= tv + slack)
    orders = [0, 0.3, 0.5, 1, 2, 5, INF]
    values = [dv.renyi(p, q, a) for a in orders]
    for lower, upper in itertools.pairwise(values):
        assert np.all(lower <= upper + slack)


def test_jsd_weights_the_second_argument_and_vanishes_at_both_ends() -> None:
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.3, 0.6])
    assert dv.jsd(p, q, 0) == 0
    assert dv.jsd(p, q, 1) == 0
    assert close(dv.jsd(p, q, 0.3), dv.jsd(q, p, 0.7))
    small = 1e-6
    assert close(dv.jsd(p, q, small) / small, dv.kl(q, p), 10 * small)
    assert close(dv.jsd(p, q, 1 - small) / small, dv.kl(p, q), 10 * small)


def test_entropy_and_kl_to_uniform() -> None:
    p = np.random.default_rng(2).dirichlet(np.ones(5), size=50)
    assert close(dv.entropy(p), math.log(5) - dv.kl(p, np.full(5, 0.2)))
    assert dv.entropy([1.0, 0.0]) == 0


def test_k3_is_unbiased_up_to_the_mass_outside() -> None:
    rng = np.random.default_rng(3)
    mu, pi = random_fractions(rng, (200, 4)), random_fractions(rng, (200, 4), zeros=0.0)
    m, t = as_floats(mu), as_floats(pi)
    drawn = m > 0
    ratio = np.where(drawn, t / np.where(drawn, m, 1), 1.0)
    outside = np.where(drawn, 0.0, t).sum(-1)
    assert close((m * dv.k3(ratio)).sum(-1), dv.kl(m, t) - outside)
    assert close((m * dv.k1(ratio)).sum(-1), dv.kl(m, t))
    assert outside.max() > 0.1
    assert np.all(dv.k3(ratio) >= 0)
    assert close(dv.k3_from_log_ratio(np.log(ratio)), dv.k3(ratio))
    assert close(dv.k2(ratio), dv.k1(ratio) ** 2 / 2)
    assert dv.k3(0.0) == INF
    assert isinstance(dv.k3(Fraction(1, 2)), flint.arb)


def test_autograd_matches_the_derivatives() -> None:
    rng = np.random.default_rng(4)
    p, q = (rng.dirichlet(np.ones(4)) for _ in range(2))
    tp, tq = (torch.tensor(x, requires_grad=True) for x in (p, q))
    dv.kl(tp, tq).backward()
    assert close(tp.grad.numpy(), np.log(p / q) + 1)
    assert close(tq.grad.numpy(), -p / q)
    step = 1e-6
    for fn in PAIRWISE.values():
        x = torch.tensor(p, requires_grad=True)
        fn(x, torch.tensor(q)).backward()
        numeric = [(fn(p + step * e, q) - fn(p - step * e, q)) / (2 * step) for e in np.eye(4)]
        assert close(x.grad.numpy(), numeric, LOOSE64)


def test_tabular_forms_are_the_same_divergences() -> None:
    """The ones that tables use, actions first and accurate for close laws, on zeros and disjoint supports too."""
    rng = np.random.default_rng(9)
    floats = rng.dirichlet(np.ones(4), (2, 60))
    floats[0, :20, 0] = floats[1, 10:30, 1] = 0.0
    floats[0, 30:35, :2] = floats[1, 30:35, 2:] = 0.0
    floats /= floats.sum(axis=-1, keepdims=True)
    whole = rng.integers(0, 4, (2, 30, 4)) + np.eye(4, dtype=int)[rng.integers(0, 4, (2, 30))]
    exact = np.array([[[Fraction(int(v), int(row.sum())) for v in row] for row in law] for law in whole])
    for p, q in (floats, exact):
        a, b = (as_numbers(np.moveaxis(x, -1, 0)) for x in (p, q))
        kl, reverse, _ = local.kl_family(a, b)
        pairs = [
            (kl, dv.kl(p, q)),
            (reverse, dv.kl(q, p)),
            (local.tv(a, b), dv.tv(p, q)),
            (local.chi2(a, b), dv.chi2(q, p)),
            (local.hellinger2(a, b), dv.hellinger2(p, q)),
        ]
        for found, expected in pairs:
            assert close(to_float(found), to_float(expected))


def test_gradient_is_finite_where_the_first_argument_has_zeros() -> None:
    p = torch.tensor([1.0, 0.0], requires_grad=True)
    dv.kl(p, torch.tensor([0.5, 0.5])).backward()
    assert torch.isfinite(p.grad).all()


def test_gradients_are_finite_where_both_vanish() -> None:
    q = torch.tensor([0.25, 0.75, 0.0])
    for fn in PAIRWISE.values():
        p = torch.tensor([0.5, 0.5, 0.0], requires_grad=True)
        fn(p, q).backward()
        assert torch.isfinite(p.grad).all(), fn


def test_float32_tensors_stay_float32() -> None:
    rng = np.random.default_rng(5)
    p, q = (rng.dirichlet(np.ones(50)) for _ in range(2))
    for fn in PAIRWISE.values():
        value = fn(torch.tensor(p, dtype=torch.float32), torch.tensor(q, dtype=torch.float32))
        assert value.dtype == torch.float32
        assert close(float(value), fn(p, q), FLOAT32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dv.kl([0.5, 0.5], [0.2, 0.3, 0.5]), "2 and 3 tokens"),
        (
            lambda: dv.tv([0.5, -0.5], [0.5, 0.5]),
            "p: expected non-negative probabilities, got -0.5 at flat index 1",
        ),
        (lambda: dv.tv([0.5, 0.5], [math.nan, 0.5]), "q: expected non-negative probabilities, got nan"),
        (lambda: dv.kl([Fraction(-1, 2)], [Fraction(1)]), "got -1/2"),
        (lambda: dv.jsd([1.0], [1.0], 1.5), "alpha: got 1.5"),
        (lambda: dv.renyi([1.0], [1.0], -1), "order"),
        (lambda: dv.topk_tv([0.5, 0.5], [0.5, 0.5], 3), "k: got 3"),
        (lambda: dv.topk_tv([0.5, 0.5], [0.5, 0.5], True), "k: got True"),
        (lambda: dv.coarsen([0.5, 0.5], [[0]]), "partition"),
        (lambda: dv.tv(["a"], ["b"]), "Invalid literal"),
    ],
)
def test_bad_input_is_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_subdistributions_are_allowed() -> None:
    assert close(dv.kl([0.5, 0.3], [0.5, 0.4]), 0.3 * math.log(0.75), FLOAT64)
