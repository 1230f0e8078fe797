"""Trust Region Masking: headline counterexamples in plain fractions, without the package's tables."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction as F
from itertools import product

import pytest

from opdtheory import checker, claims
from opdtheory.claims import trm_common
from opdtheory.verification.searching import search
from tests.tolerance import TIGHT, close

Policy = dict[tuple[int, ...], tuple[F, ...]]
Reward = dict[tuple[int, ...], F]


def row(*numbers: str) -> tuple[F, ...]:
    return tuple(F(n) for n in numbers)


def responses(policy: Policy) -> list[tuple[int, ...]]:
    horizon = 1 + max(len(prefix) for prefix in policy)
    return list(product(range(len(policy[()])), repeat=horizon))


def law(policy: Policy, y: tuple[int, ...]) -> F:
    return math.prod((policy[y[:t]][a] for t, a in enumerate(y)), start=F(1))


def value(policy: Policy, reward: Reward) -> F:
    return sum((law(policy, y) * reward.get(y, F(0)) for y in responses(policy)), F(0))


def ratios(mu: Policy, pi: Policy, y: tuple[int, ...]) -> list[F]:
    return [pi[y[:t]][a] / mu[y[:t]][a] for t, a in enumerate(y)]


def kl(p: tuple[F, ...], q: tuple[F, ...]) -> float:
    return sum(float(a) * math.log(a / b) for a, b in zip(p, q, strict=True) if a)


def masked_surrogate(mu: Policy, pi: Policy, reward: Reward, keep: Callable[..., bool], shift: int = 0) -> F:
    mean = value(mu, reward)
    return sum(
        (
            law(mu, y) * (reward.get(y, F(0)) - mean) * (sum(ratios(mu, pi, y)) - shift * len(y))
            for y in responses(mu)
            if keep(y)
        ),
        F(0),
    )


def surrogate(mu: Policy, pi: Policy, reward: Reward) -> F:
    """L as the derivative of J at μ towards π: one factor of the product at a time."""
    return sum(
        reward.get(y, F(0))
        * (pi[y[:t]][a] - mu[y[:t]][a])
        * math.prod((mu[y[:s]][b] for s, b in enumerate(y) if s != t), start=F(1))
        for y in responses(mu)
        for t, a in enumerate(y)
    )


def kl_mask(mu: Policy, pi: Policy, threshold: float) -> Callable[..., bool]:
    return lambda y: all(kl(mu[y[:t]], pi[y[:t]]) <= threshold for t in range(len(y)))


HALF = row("1/2", "1/2")


def test_guarantee_of_the_exact_mask_fails():
    mu = {(): HALF, (0,): HALF, (1,): HALF}
    pi = {(): HALF, (0,): row("3/5", "2/5"), (1,): row("3/8", "5/8")}
    reward, threshold = {(0, 1): F(1)}, F(3, 100)
    promised = masked_surrogate(mu, pi, reward, kl_mask(mu, pi, float(threshold)))
    assert promised == F(1, 5)
    assert promised > 4 / 3 * 2**1.5 * threshold
    assert value(mu, reward) == F(1, 4) and value(pi, reward) == F(1, 5)


def test_guarantee_fails_with_centred_ratios_too():
    mu = {(): row("3/5", "2/5"), (0,): row("12/25", "13/25"), (1,): HALF}
    pi = {(): row("3/5", "2/5"), (0,): row("13/25", "12/25"), (1,): row("1/3", "2/3")}
    reward, threshold = {(0, 0): F(1), (1, 0): F(1)}, F(37, 10000)
    promised = masked_surrogate(mu, pi, reward, kl_mask(mu, pi, float(threshold)), shift=1)
    assert promised > 4 / 3 * 2**1.5 * threshold
    assert value(pi, reward) - value(mu, reward) == F(-16, 375)


@pytest.mark.parametrize("statistic", [lambda r: abs(math.log(r)), lambda r: float(r) - 1 - math.log(r)])
def test_guarantee_of_sampled_masks_fails(statistic):
    mu = {(): HALF, (0,): row("1/8", "7/8"), (1,): HALF}
    pi = {(): HALF, (0,): row("1/8", "7/8"), (1,): row("1/8", "7/8")}
    reward, threshold = {(0, 1): F(1), (1, 0): F(1)}, 1 / 50
    promised = masked_surrogate(
        mu, pi, reward, lambda y: all(statistic(r) <= threshold for r in ratios(mu, pi, y))
    )
    assert promised > 4 / 3 * 2**1.5 * threshold
    assert value(pi, reward) < value(mu, reward)


def test_masked_gradient_points_downhill():
    mu = {(): row("1/6", "5/6"), (0,): row("5/6", "1/6"), (1,): row("1/6", "5/6")}
    pi = mu | {(1,): row("5/6", "1/6")}
    reward = {(0, 0): F(1, 2), (1, 0): F(1)}

    def gradient(weights: Callable[[tuple[int, ...]], list[F]]) -> dict[tuple[tuple[int, ...], int], F]:
        out: dict[tuple[tuple[int, ...], int], F] = {}
        for y in responses(mu):
            for t, w in enumerate(weights(y)):
                for b in range(2):
                    score = (y[t] == b) - pi[y[:t]][b]
                    out[y[:t], b] = out.get((y[:t], b), F(0)) + w * score
        return out

    mean = value(mu, reward)
    keep = kl_mask(mu, pi, 1.0)
    gain = {y: law(mu, y) * (reward.get(y, F(0)) - mean) for y in responses(mu)}
    true = gradient(lambda y: [law(pi, y) * reward.get(y, F(0))] * 2)
    plain = gradient(lambda y: [gain[y] * r for r in ratios(mu, pi, y)])
    masked = gradient(lambda y: [gain[y] * r * keep(y) for r in ratios(mu, pi, y)])
    assert sum(plain[k] * true[k] for k in true) > F(1, 100)
    assert sum(masked[k] * true[k] for k in true) == F(-575, 186624)


def test_positive_surrogate_with_falling_return():
    mu = {(): row("0", "1"), (0,): row("0", "1"), (1,): row("1/3", "2/3")}
    pi = {(): row("1", "0"), (0,): row("0", "1"), (1,): row("1", "0")}
    reward = {(1, 0): F(1)}
    assert surrogate(mu, pi, reward) == F(1, 3)
    assert value(pi, reward) - value(mu, reward) == F(-1, 3)


def test_the_rare_context_does_not_escape_the_sequence_kl():
    mu = {(): row("1/10", "9/10"), (0,): row("3/4", "1/4"), (1,): HALF}
    pi = {(): row("1/5", "4/5"), (0,): row("1/10", "9/10"), (1,): HALF}
    largest = max(kl(mu[c], pi[c]) for c in mu)
    sequence = kl(mu[()], pi[()]) + sum(float(mu[()][a]) * kl(mu[a,], pi[a,]) for a in range(2))
    errors = []
    for picked in product((0, 1), repeat=4):
        reward = dict(zip(responses(mu), map(F, picked), strict=True))
        errors.append(value(pi, reward) - value(mu, reward) - surrogate(mu, pi, reward))
    assert largest > 1 and sequence < 1 / 5
    assert max(map(abs, errors)) == F(13, 200)
    assert max(errors) <= sequence


def test_reverse_kl_over_contexts_of_mu_misses_the_marginal_step():
    mu = {(): HALF, (0,): row("3/4", "1/4"), (1,): HALF}
    pi = {(): row("1/4", "3/4"), (0,): row("3/4", "1/4"), (1,): row("4/5", "1/5")}
    shift = sum(abs(law(mu, y) - law(pi, y)) for y in responses(mu)) / 2

    def divergence(visits: Policy) -> float:
        return kl(pi[()], mu[()]) + sum(float(visits[()][a]) * kl(pi[a,], mu[a,]) for a in range(2))

    assert shift == F(7, 20)
    assert divergence(mu) / 2 < float(shift) ** 2 < divergence(pi) / 2


def test_weight_variance_at_the_quoted_divergence():
    # two equally likely tokens, KL(μ‖π) ≈ 1e-4, so that χ²(π‖μ) ≈ 2e-4
    mu, pi = HALF, row("497/1000", "503/1000")
    chi2 = sum((b - a) ** 2 / a for a, b in zip(mu, pi, strict=True))
    assert kl(mu, pi) < 1e-4
    pairs = [
        (math.prod(p), math.prod(q))
        for p, q in zip(product(mu, repeat=5), product(pi, repeat=5), strict=True)
    ]
    assert sum(q * q / p for p, q in pairs) - 1 == (1 + chi2) ** 5 - 1
    assert (1 + chi2) ** 1000 - 1 < F(1, 20)


def test_truncated_sampler_hides_its_divergence_from_k3():
    mu, pi = row("5/8", "3/8", "0"), row("1/2", "3/10", "1/5")
    seen = {b / a - 1 - math.log(b / a) for a, b in zip(mu, pi, strict=True) if a}
    assert len(seen) == 1
    assert close(seen.pop(), kl(mu, pi) - 0.2, TIGHT)


def test_length_decides_acceptance():
    passing = F(999, 1000)
    assert passing**100 > F(9, 10) and passing**4000 < F(2, 100)


FALSE = [
    "2.1.2",
    "2.2.2",
    "2.2.2/order",
    "2.2.4",
    "2.2.6",
    "2.4/tightest",
    "2.5.0/visited",
    "2.5.6",
    "2.6.5",
    "2.6.5/equivalent",
    "nonvacuous",
    "3.2.1",
    "3.3.2",
    "3.4",
    "a2/both",
    "k3/average",
    "a4/telescope",
    "a7",
    "4.2.1",
    "guarantee/exact-kl",
    "guarantee/exact-kl-centred",
    "guarantee/sampled-logratio",
    "guarantee/sampled-k3",
    "guarantee/divergence",
    "guarantee/gradient",
]
CONDITIONAL = ["2.2.5", "a4", "a8", "k3", "reverse"]


@pytest.mark.parametrize("name", FALSE)
def test_what_does_not_hold_is_refuted_by_a_certificate(name):
    result = search(claims.get(f"trm.{name}"), seed=11)
    assert result.refuted and result.certificate is not None
    assert checker.check(result.certificate).confirmed


@pytest.mark.parametrize("name", CONDITIONAL)
def test_the_unstated_assumption_is_needed(name):
    claim = claims.get(f"trm.{name}")
    assert claim.assumption and claim.unassumed is not None
    assert search(claim.variant("unassumed", claim.unassumed), seed=11).refuted


def test_a_printed_number_that_does_not_round_is_noticed():
    assert trm_common.table("good", lambda: [("third", F(1, 3), "0.33")])().ok
    assert not trm_common.table("bad", lambda: [("third", F(1, 3), "0.34")])().ok


def test_numbers_of_the_comparison_in_plain_arithmetic():
    horizon, delta = 4096, 1e-4
    assert round(horizon * (horizon - 1) * delta) == 1677
    assert round(4 / 3 * horizon**1.5 * delta, 1) == 35.0
    assert round(2 * horizon * math.sqrt(delta * horizon * delta), 1) == 52.4
    assert round(2 * horizon * math.sqrt(delta * 0.01), 1) == 8.2
    # the largest surrogate at these divergences is far below each penalty
    assert math.sqrt(0.4096 / 2) + 0.4096 < 1 and math.sqrt(0.01 / 2) + 0.01 < 0.1
