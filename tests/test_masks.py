"""Masks and weights: truth tables of the definitions, the sources' numbers, refusals, array kinds."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from opdtheory import divergences as dv
from opdtheory import masks as mk
from opdtheory import rewards as rw
from tests.tolerance import TIGHT, close

torch = pytest.importorskip("torch")

INF = math.inf


def batch(seed: int = 0, shape: tuple[int, int] = (40, 6)) -> dict[str, np.ndarray]:
    """Log-probabilities with junk outside the response, advantages, and a recomputed policy."""
    rng = np.random.default_rng(seed)
    mu = np.log(rng.uniform(0.02, 0.98, size=shape))
    pi = np.log(np.clip(np.exp(mu) * np.exp(rng.normal(scale=0.6, size=shape)), 1e-6, 0.999))
    old = mu + rng.normal(scale=0.1, size=shape)
    mask = rng.random(shape) < 0.8
    mask[0] = False
    for x in (mu, pi, old):
        x[~mask] = rng.choice([np.nan, -INF, 0.0], size=(~mask).sum())
    advantages = rng.normal(size=shape)
    advantages[:, -1] = 0
    return {"pi": pi, "mu": mu, "old": old, "mask": mask, "adv": advantages, "div": rng.random(shape) * 0.4}


def ratios(b: dict[str, np.ndarray]) -> np.ndarray:
    """π/μ inside the response, 0 outside."""
    pi, mu = (np.where(b["mask"], b[name], 0.0) for name in ("pi", "mu"))
    return np.where(b["mask"], np.exp(pi - mu), 0.0)


def loop(b: dict[str, np.ndarray], keep) -> np.ndarray:
    """Token by token: ``keep(r, π, μ, A, i, t)`` inside the response."""
    out = np.zeros(b["mask"].shape, dtype=bool)
    for i, t in zip(*np.nonzero(b["mask"]), strict=True):
        pi, mu = math.exp(b["pi"][i, t]), math.exp(b["mu"][i, t])
        out[i, t] = keep(pi / mu, pi, mu, b["adv"][i, t], i, t)
    return out


def test_token_masks_equal_their_definitions() -> None:
    b = batch()
    common = (b["pi"], b["mu"])
    cases = [
        (
            mk.ppo(*common, b["adv"], b["mask"], eps_low=0.2, eps_high=0.28),
            lambda r, pi, mu, a, i, t: not ((a > 0 and r > 1.28) or (a < 0 and r < 0.8)),
        ),
        (
            mk.dppo(*common, b["adv"], b["div"], b["mask"], delta=0.15),
            lambda r, pi, mu, a, i, t: (
                not (b["div"][i, t] > 0.15 and ((a > 0 and r > 1) or (a < 0 and r < 1)))
            ),
        ),
        (
            mk.method_mask("dppo_binary_tv", *common, b["adv"], b["mask"]),
            lambda r, pi, mu, a, i, t: not ((a > 0 and pi - mu > 0.15) or (a < 0 and mu - pi > 0.15)),
        ),
        (
            mk.method_mask("dppo_binary_kl", *common, b["adv"], b["mask"]),
            lambda r, pi, mu, a, i, t: not (dv.binary_kl(mu, pi) > 0.05 and a * (r - 1) > 0),
        ),
        (
            mk.negative_drop(*common, b["adv"], b["mask"], delta=0.1),
            lambda r, pi, mu, a, i, t: not (a < 0 and mu - pi >= 0.1),
        ),
        (mk.icepop(*common, b["mask"]), lambda r, pi, mu, a, i, t: 0.5 <= r <= 5),
        (mk.tropd_outlier(*common, b["mask"], tau=-0.3), lambda r, pi, mu, a, i, t: math.log(mu / pi) > -0.3),
        (mk.tropd(*common, b["div"], b["mask"]), lambda r, pi, mu, a, i, t: b["div"][i, t] < min(mu / pi, 1)),
        (mk.method_mask("pg_is", *common, b["adv"], b["mask"]), lambda *_: True),
    ]
    for value, definition in cases:
        expected = loop(b, definition)
        assert value.dtype == bool
        assert np.array_equal(value, expected)
        assert expected.any()
    # all but the last really mask something, in both directions of the advantage where that matters
    for value, _ in cases[:-1]:
        assert (b["mask"] & ~value).any()


def test_ppo_mask_is_where_the_clipped_objective_is_flat() -> None:
    ratio = torch.linspace(0.5, 1.6, 23, dtype=torch.float64, requires_grad=True)
    for advantage in (-1.0, 1.0):
        ratio.grad = None
        torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).sum().backward()
        kept = mk.ppo_from_ratio(ratio.detach(), torch.full_like(ratio, advantage))
        assert np.array_equal(kept.numpy(), (ratio.grad != 0).numpy())


def test_numbers_of_the_dppo_paper() -> None:
    # the rare token is clipped by its ratio although the binary TV is negligible, the frequent one is not
    pi, mu, a = np.log([[1e-2, 0.80]]), np.log([[1e-4, 0.99]]), np.array([[1.0, -1.0]])
    assert mk.ppo(pi, mu, a).tolist() == [[False, True]]
    assert mk.method_mask("dppo_binary_tv", pi, mu, a).tolist() == [[True, False]]
    # with the threshold of the scaling runs the same drop of 0.19 passes
    assert mk.method_mask("dppo_binary_tv_scaling", pi, mu, a).tolist() == [[True, True]]


def test_gradient_leakage_example_of_trust_region_masking() -> None:
    pi, mu, a = np.array([[math.log(0.5)]]), np.array([[math.log(0.005)]]), np.array([[-1.0]])
    assert mk.ppo(pi, mu, a).all()
    assert close(mk.unified_weight("ppo", pi, mu, a), [[-100.0]], TIGHT)
    assert close(mk.unified_weight("pg_tis", pi, mu, a), [[-3.0]], TIGHT)


def test_unified_weight_is_mask_times_capped_ratio_times_advantage() -> None:
    b = batch(1)
    ratio = ratios(b)
    for name, method in mk.METHODS.items():
        extra = {"old_log_probs": b["old"], "divergence": b["div"] if method.divergence else None}
        kept = mk.method_mask(name, b["pi"], b["mu"], b["adv"], b["mask"], **extra)
        weight = mk.unified_weight(name, b["pi"], b["mu"], b["adv"], b["mask"], **extra)
        assert close(weight, kept * np.minimum(ratio, method.cap) * b["adv"], TIGHT)
        assert method.mask == "none" or not np.array_equal(kept, b["mask"]), name
    recomputed = mk.method_mask("minirl", b["pi"], b["mu"], b["adv"], b["mask"], old_log_probs=b["old"])
    assert np.array_equal(recomputed, mk.ppo(b["pi"], b["old"], b["adv"], b["mask"], eps_high=0.28))
    assert not np.array_equal(
        recomputed, mk.method_mask("grpo_clip_higher", b["pi"], b["mu"], b["adv"], b["mask"])
    )


def test_sequence_masks_equal_their_definitions() -> None:
    b = batch(2, (200, 4))
    ell = [
        [p - m for p, m, k in zip(*rows, strict=True) if k]
        for rows in zip(b["pi"], b["mu"], b["mask"], strict=True)
    ]

    def k3(x: float) -> float:
        return math.exp(x) - 1 - x

    def mean(x: list[float]) -> float:
        return sum(x) / len(x) if x else 0.0

    largest = [max(map(abs, x), default=0.0) <= 1 for x in ell]
    average = [mean([k3(v) for v in x]) <= 0.15 for x in ell]
    args = (b["pi"], b["mu"], b["mask"])
    both = [x and y for x, y in zip(largest, average, strict=True)]
    total = [sum(map(k3, x)) <= 0.5 for x in ell]
    for value, expected in (
        (mk.trm(*args, delta_max=1), largest),
        (mk.trm(*args, delta_avg=0.15), average),
        (mk.trm(*args, delta_max=1, delta_avg=0.15), both),
        (mk.sum_k3(*args, delta=0.5), total),
    ):
        assert value.tolist() == expected
        assert 0 < sum(expected) < len(expected)
    stale = [mean([-v for v in x]) > 0.1 for x in ell]
    sign = b["adv"][:, 0]
    expected = b["mask"] & ~((sign < 0) & np.array(stale))[:, None]
    assert np.array_equal(mk.opsm(b["pi"], b["mu"], sign, b["mask"], delta=0.1), expected)
    assert (b["mask"] & ~expected).any()
    products = [math.exp(sum(x)) for x in ell]
    assert close(mk.seq_ratio(*args), products)
    assert close(mk.seq_ratio(*args, cap=2.0), np.minimum(products, 2.0))
    assert close(mk.seq_ratio(*args, mean=True), [math.exp(mean(x)) for x in ell])
    assert close(mk.truncated_ratio(*args, cap=1.5), np.minimum(ratios(b), 1.5))


def test_exact_divergence_version_reads_the_contexts_not_the_drawn_tokens() -> None:
    rng = np.random.default_rng(3)
    mu, pi = rng.dirichlet(np.ones(4), size=(50, 3)), rng.dirichlet(np.ones(4), size=(50, 3))
    kl = dv.kl(mu, pi)
    mask = rng.random((50, 3)) < 0.9
    accepted = mk.trm_from_divergence(np.where(mask, kl, np.nan), mask, delta_max=0.8, delta_avg=0.5)
    expected = [
        all(x <= 0.8 for x in row[m]) and (row[m].mean() if m.any() else 0) <= 0.5
        for row, m in zip(kl, mask, strict=True)
    ]
    assert accepted.tolist() == expected


def test_gate_agrees_with_the_reward_of_the_same_draws() -> None:
    b = batch(4)
    lp, lt = np.where(b["mask"], b["pi"], 0), np.where(b["mask"], b["mu"], 0)
    inside = mk.tropd(lp, lt, b["div"], b["mask"])
    reward = rw.tropd_gate(lt, lp, b["div"])
    assert np.array_equal(np.where(inside, lt - lp, 0), np.where(b["mask"], reward, 0))


def test_ratio_forms_are_exact_on_the_boundary() -> None:
    r = np.array([Fraction(6, 5), Fraction(121, 100), Fraction(4, 5), Fraction(79, 100)], dtype=object)
    eps = Fraction(1, 5)
    assert mk.ppo_from_ratio(r, [1, 1, -1, -1], eps_low=eps, eps_high=eps).tolist() == [
        True,
        False,
        True,
        False,
    ]
    d = np.array([Fraction(1, 10), Fraction(1, 5)] * 2, dtype=object)
    assert mk.dppo_from_ratio(r, [1, 1, -1, -1], d, delta=Fraction(1, 10)).tolist() == [
        True,
        False,
        True,
        False,
    ]
    assert mk.icepop_from_ratio(r, low=Fraction(4, 5), high=Fraction(6, 5)).tolist() == [
        True,
        False,
        True,
        False,
    ]


def test_torch_gives_the_same_masks_and_lets_gradients_through_weights() -> None:
    b = batch(5)
    t = {name: torch.tensor(value) for name, value in b.items()}
    for name, method in mk.METHODS.items():
        names = {"old_log_probs": "old", "divergence": "div"}
        use = {key: value for key, value in names.items() if key != "divergence" or method.divergence}
        weight = mk.unified_weight(
            name, b["pi"], b["mu"], b["adv"], b["mask"], **{k: b[v] for k, v in use.items()}
        )
        tensor = mk.unified_weight(
            name, t["pi"], t["mu"], t["adv"], t["mask"], **{k: t[v] for k, v in use.items()}
        )
        assert close(tensor.numpy(), weight, TIGHT)
    for mask in (
        mk.trm(t["pi"], t["mu"], t["mask"], delta_max=1, delta_avg=0.2),
        mk.sum_k3(t["pi"], t["mu"], t["mask"], delta=1),
    ):
        assert mask.dtype == torch.bool
    pi = t["pi"].clone().requires_grad_()
    weight = mk.unified_weight("pg_is", pi, t["mu"], t["adv"], t["mask"])
    weight.sum().backward()
    assert close(pi.grad.numpy(), weight.detach().numpy(), TIGHT)


def test_vanishing_and_huge_ratios_do_not_overflow() -> None:
    pi, mu = np.array([[0.0, -INF, -1.0]]), np.array([[-800.0, -1.0, -1.0]])
    a = np.array([[1.0, -1.0, 1.0]])
    assert mk.ppo(pi, mu, a).tolist() == [[False, False, True]]
    assert mk.truncated_ratio(pi, mu).tolist() == [[3.0, 0.0, 1.0]]
    assert mk.unified_weight("pg_is", pi, mu, a)[0].tolist() == [INF, 0.0, 1.0]
    assert mk.token_statistic("k3", pi, mu)[0].tolist() == [INF, INF, 0.0]
    assert mk.trm(pi, mu, delta_max=1).tolist() == [False]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mk.ppo([[0.0]], [[0.0, 0.0]], [[1.0]]), "expected equal ones"),
        (lambda: mk.ppo([[np.nan]], [[0.0]], [[1.0]]), r"at \(0, 0\): got nan and 0.0"),
        (lambda: mk.icepop([[-1.0]], [[-INF]]), "finite for the policy that drew"),
        (lambda: mk.icepop([[-1.0]], [[-1.0]], [[1, 1]]), "response_mask: got shape"),
        (lambda: mk.dppo([[0.0]], [[0.0]], [[1.0]], [[np.nan]], delta=0.1), "divergence: got NaN"),
        (lambda: mk.trm([[0.0]], [[0.0]]), "at least one threshold"),
        (lambda: mk.token_statistic("k4", [[0.0]], [[0.0]]), "statistic: got 'k4'"),
        (lambda: mk.unified_weight("grpo", [[0.0]], [[0.0]], [[1.0]]), "method: got 'grpo'"),
        (lambda: mk.unified_weight("minirl", [[0.0]], [[0.0]], [[1.0]]), "old_log_probs: got None"),
        (lambda: mk.unified_weight("dppo_topk_tv", [[0.0]], [[0.0]], [[1.0]]), "divergence: got None"),
        (lambda: mk.truncated_ratio([[0.0]], [[0.0]], cap=0), "cap: got 0"),
        (lambda: mk.tropd_outlier([[0.0]], [[0.0]], tau=1), "tau: got 1"),
    ],
)
def test_bad_input_is_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
