"""Advantages over (B, T) arrays: loops as twins, masks, edge cases, group statistics."""

from __future__ import annotations

from fractions import Fraction

import flint
import numpy as np
import pytest

from opdtheory import advantages as av
from opdtheory.tabular.table import to_float
from tests.tolerance import FLOAT64, LOOSE64, TIGHT, close

torch = pytest.importorskip("torch")


def batch(seed: int, shape: tuple[int, int] = (6, 7)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rewards, divergences and a mask with gaps and one empty row; junk where masked."""
    rng = np.random.default_rng(seed)
    r, k = rng.normal(size=shape), rng.exponential(size=shape)
    mask = rng.random(shape) < 0.7
    mask[0] = False
    mask[1] = True
    r[~mask], k[~mask] = np.nan, np.inf
    return r, k, mask


def loop(r: np.ndarray, mask: np.ndarray, advantage) -> np.ndarray:
    """Apply ``advantage(rewards of the model tokens, position)`` sequence by sequence."""
    out = np.zeros(r.shape)
    for i in range(len(r)):
        tokens = np.flatnonzero(mask[i])
        for n, t in enumerate(tokens):
            out[i, t] = advantage(i, [r[i, u] for u in tokens], n)
    return out


def test_every_form_equals_its_definition() -> None:
    r, k, mask = batch(0)
    b = np.random.default_rng(1).normal(size=r.shape)
    b[~mask] = np.nan

    def later_kl(i: int, n: int, lam: float = 1.0) -> float:
        tokens = np.flatnonzero(mask[i])
        return sum(lam ** (m - n) * k[i, tokens[m]] for m in range(n + 1, len(tokens)))

    def mean_later(_: int, x: list[float], n: int) -> float:
        return x[n] + (sum(x[n + 1 :]) / (len(x) - n - 1) if n + 1 < len(x) else 0)

    cases = [
        (av.log_ratio_total(r, mask), lambda i, x, n: sum(x)),
        (av.log_ratio_to_go(r, mask), lambda i, x, n: sum(x[n:])),
        (av.expected_to_go(r, k, mask), lambda i, x, n: x[n] - later_kl(i, n)),
        (av.immediate(r, mask), lambda i, x, n: x[n]),
        (av.lambda_return(r, 0.6, mask), lambda i, x, n: sum(0.6**m * v for m, v in enumerate(x[n:]))),
        (av.lambda_return(r, 0.6, mask, kl=k), lambda i, x, n: x[n] - later_kl(i, n, 0.6)),
        (av.topd_return(r, mask), mean_later),
    ]
    for value, definition in cases:
        assert close(value, loop(r, mask, definition), TIGHT)
    for with_baseline, without in (
        (av.log_ratio_to_go(r, mask, b), av.log_ratio_to_go(r, mask)),
        (av.expected_to_go(r, k, mask, b), av.expected_to_go(r, k, mask)),
        (av.immediate(r, mask, b), av.immediate(r, mask)),
        (av.lambda_return(r, 0.5, mask, b), av.lambda_return(r, 0.5, mask)),
    ):
        assert close(with_baseline, np.where(mask, without - b, 0), TIGHT)


def test_lambda_family_joins_immediate_and_to_go() -> None:
    r, k, mask = batch(2)
    assert close(av.lambda_return(r, 0, mask), av.immediate(r, mask), TIGHT)
    assert close(av.lambda_return(r, 1, mask), av.log_ratio_to_go(r, mask), TIGHT)
    assert close(av.lambda_return(r, 1, mask, kl=k), av.expected_to_go(r, k, mask), TIGHT)


def test_topd_return_at_the_last_token_and_the_weight_of_each_reward() -> None:
    n = 12
    eye = np.eye(n)
    weights = np.array([av.topd_return(row[None])[0].sum() for row in eye])
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, n + 1))])
    expected = [1 + harmonic[n - 1] - harmonic[n - j] for j in range(1, n + 1)]
    assert close(weights, expected, TIGHT)
    assert av.topd_return([[3.0]]).tolist() == [[3.0]]


def test_torch_and_exact_arrays_give_the_same_numbers() -> None:
    r, _, mask = batch(3)
    b = np.where(mask, r * r, 0)
    group = np.array([0, 0, 1, 1, 1, 2])
    fractions = np.array(
        [[Fraction(float(x)) if np.isfinite(x) else Fraction(0) for x in row] for row in r], dtype=object
    )
    rounded = np.where(mask, r, 0.0)
    forms = [
        lambda x, m: av.log_ratio_total(x, m),
        lambda x, m: av.log_ratio_to_go(x, m),
        lambda x, m: av.expected_to_go(x, x, m),
        lambda x, m: av.lambda_return(x, Fraction(1, 2), m),
        lambda x, m: av.topd_return(x, m),
        lambda x, m: av.group_normalize(x, group, m),
        lambda x, m: av.group_normalize(x[:, 1], np.zeros(6), ddof=1),
        lambda x, m: av.rloo(x[:, 1], [0, 0, 0, 1, 1, 1]),
        lambda x, m: av.group_mean_baseline(x[:, 1], group),
    ]
    for form in forms:
        value = form(rounded, mask)
        tensor = form(torch.tensor(rounded), torch.tensor(mask))
        assert close(tensor.numpy(), value, TIGHT)
        assert close(to_float(form(fractions, mask)), value)
    assert isinstance(av.topd_return(fractions, mask)[1, 0], flint.fmpq)
    with_junk = av.log_ratio_to_go(torch.tensor(r), torch.tensor(mask), torch.tensor(b))
    assert close(with_junk.numpy(), av.log_ratio_to_go(r, mask, b), TIGHT)


def test_autograd_flows_through_returns_and_normalisation() -> None:
    r, _, mask = batch(4)
    x = torch.tensor(np.where(mask, r, 0.0), requires_grad=True)
    w = torch.tensor(np.random.default_rng(5).normal(size=r.shape))
    group = np.array([0, 0, 0, 1, 1, 1])
    step = 1e-6
    for form in (
        lambda y: av.topd_return(y, torch.tensor(mask)),
        lambda y: av.lambda_return(y, 0.5, torch.tensor(mask)),
        lambda y: av.group_normalize(y, group, torch.tensor(mask)),
    ):
        x.grad = None
        (form(x) * w).sum().backward()
        direction = torch.tensor(np.random.default_rng(6).normal(size=r.shape))
        up, down = ((form(x.detach() + s * step * direction) * w).sum() for s in (1, -1))
        assert close(float((x.grad * direction).sum()), float((up - down) / (2 * step)), LOOSE64)


def test_a_group_without_variance_has_no_gradient() -> None:
    x = torch.tensor([0.1, 0.1, 0.1, 1.0, 2.0, 4.0], dtype=torch.float64, requires_grad=True)
    (av.group_normalize(x, np.array([0, 0, 0, 1, 1, 1])) * torch.arange(6)).sum().backward()
    assert torch.equal(x.grad[:3], torch.zeros(3, dtype=torch.float64))
    assert torch.isfinite(x.grad).all() and x.grad[3:].abs().max() > 0


def test_group_normalisation_over_tokens_and_sequences() -> None:
    rng = np.random.default_rng(7)
    x, mask = rng.normal(size=(8, 5)), rng.random((8, 5)) < 0.8
    group = np.array([3, 3, 1, 1, 1, 0, 0, 3])
    z = av.group_normalize(x, group, mask)
    for g in np.unique(group):
        members = mask & (group == g)[:, None]
        values = x[members]
        assert close(z[members], (values - values.mean()) / values.std(), FLOAT64)
    assert np.all(z[~mask] == 0)
    s = av.group_normalize(x[:, 0], group, ddof=1)
    for g in np.unique(group):
        values = x[group == g, 0]
        assert close(s[group == g], (values - values.mean()) / values.std(ddof=1), FLOAT64)


def test_groups_without_variance_get_zero_even_after_rounding() -> None:
    value = 0.1 + 0.2
    constant = np.full(7, value)
    assert (constant - constant.mean()).any()  # the naive formula divides noise by noise here
    assert av.group_normalize(constant).tolist() == [0.0] * 7
    assert av.group_normalize(torch.tensor(constant)).tolist() == [0.0] * 7
    assert av.group_normalize(np.array([value, value, 1.0, 2.0]), [0, 0, 1, 1]).tolist() == [0, 0, -1, 1]
    assert av.group_normalize(np.array([5.0]), ddof=1).tolist() == [0.0]


def test_leave_one_out_is_unbiased_and_group_mean_shrinks() -> None:
    rewards, group = np.array([1.0, 0.0, 0.5, 2.0, 3.0]), np.array([0, 0, 0, 1, 1])
    loo = av.rloo(rewards, group)
    assert close(loo, [0.75, -0.75, 0.0, -1.0, 1.0], TIGHT)
    size = np.array([3, 3, 3, 2, 2])
    assert close(av.group_mean_baseline(rewards, group), loo * (size - 1) / size, TIGHT)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: av.log_ratio_to_go([[1.0, 2.0]], [[1]]), "response_mask: got shape"),
        (lambda: av.lambda_return([[1.0]], 1.5), "lam: got 1.5"),
        (lambda: av.rloo([1.0, 2.0, 3.0], [0, 0, 1]), "smallest group has 1"),
        (lambda: av.group_normalize([1.0, 2.0], [0]), "group: got shape"),
        (lambda: av.group_normalize(np.zeros((1, 1, 1))), "returns: got shape"),
    ],
)
def test_bad_input_is_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
