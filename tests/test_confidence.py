"""Coverage by simulation, and the certificates on models where the truth is known exactly."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

import opdtheory as ot
from opdtheory import confidence
from opdtheory.bounds import masked_lower
from tests.tolerance import FLOAT64, LOOSE64, SIGMAS, TIGHT, close

REPETITIONS = 2000
LEVEL = 0.95
SIDES = ("lower", "upper", "two-sided")


def _enough(hits: np.ndarray, level: float = LEVEL) -> bool:
    """Coverage at least nominal within binomial error."""
    return bool(hits.mean() >= level - SIGMAS * math.sqrt(level * (1 - level) / hits.size))


LAWS = {
    "bernoulli rare": (lambda rng, s: (rng.random(s) < 0.05) * 1.0, 0.05),
    "bernoulli even": (lambda rng, s: (rng.random(s) < 0.5) * 1.0, 0.5),
    "uniform": (lambda rng, s: rng.random(s), 0.5),
    "narrow": (lambda rng, s: rng.beta(60, 20, s), 0.75),
    "constant": (lambda rng, s: np.full(s, 0.3), 0.3),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("method", confidence.METHODS)
def test_coverage(method: str, law: str) -> None:
    draw, mean = LAWS[law]
    for n in (5, 60):
        x = draw(np.random.default_rng(n), (REPETITIONS, n))
        for side in SIDES:
            ends = confidence.interval(x, method, confidence=LEVEL, side=side)
            assert _enough((ends.lower <= mean) & (mean <= ends.upper)), f"n={n}, {side}"
            assert side != "upper" or np.all(ends.lower == 0)
            assert side != "lower" or np.all(ends.upper == 1)


def test_the_coverage_check_can_fail() -> None:
    """A normal approximation on few samples of a rare event does not cover, and the check says so."""
    draw, mean = LAWS["bernoulli rare"]
    x = draw(np.random.default_rng(0), (REPETITIONS, 30))
    radius = 1.96 * x.std(axis=-1, ddof=1) / math.sqrt(30)
    assert not _enough(abs(x.mean(axis=-1) - mean) <= radius)


def test_betting_is_narrowest() -> None:
    for law in ("bernoulli rare", "narrow", "uniform"):
        x = LAWS[law][0](np.random.default_rng(1), (200, 200))
        width = {}
        for method in confidence.METHODS:
            ends = confidence.interval(x, method)
            width[method] = np.mean(ends.upper - ends.lower)
        assert width["betting"] < 0.8 * min(width["hoeffding"], width["empirical_bernstein"])


def test_formulas_of_the_classical_bounds() -> None:
    x = np.random.default_rng(2).random(50)
    low = confidence.hoeffding(x, 0.9, side="lower").lower
    assert close(low, x.mean() - math.sqrt(math.log(10) / 100), TIGHT)
    high = confidence.empirical_bernstein(x, 0.9, side="upper").upper
    log_term = math.log(20)
    assert close(
        high, x.mean() + math.sqrt(2 * x.var(ddof=1) * log_term / 50) + 7 * log_term / (3 * 49), TIGHT
    )


def test_ranges_shift_and_scale() -> None:
    x = np.random.default_rng(3).random((3, 40))
    for method in confidence.METHODS:
        unit = confidence.interval(x, method)
        moved = confidence.interval(2 - 5 * x, method, bounds=(-3, 2))
        assert close(moved.lower, 2 - 5 * unit.upper, LOOSE64) and close(
            moved.upper, 2 - 5 * unit.lower, LOOSE64
        )
        assert close(moved.mean, 2 - 5 * unit.mean, FLOAT64)


def test_betting_lower_end_by_direct_inversion() -> None:
    """The reported end separates refuted from surviving means, with capital computed one factor at a time."""
    x = np.random.default_rng(4).beta(2, 3, 80)
    delta = 1 - LEVEL
    end = float(confidence.betting(x, LEVEL, side="lower").lower)

    def peak(mean: float) -> float:
        capital, best, total, spread, estimate = 1.0, 1.0, 0.0, 0.25, 0.5
        for t, value in enumerate(x, start=1):
            bet = math.sqrt(2 * math.log(1 / delta) / (len(x) * (spread / t)))
            capital *= 1 + min(bet, 0.75 / mean) * (value - mean)
            best = max(best, capital)
            total += value
            estimate = (0.5 + total) / (t + 1)
            spread += (value - estimate) ** 2
        return best

    assert peak(end - LOOSE64) >= 1 / delta > peak(end + LOOSE64)


CONFSEQ = {
    (50, "beta"): (0.2235, 0.348),
    (50, "bernoulli"): (0.0925, 0.4135),
    (50, "narrow"): (0.6755, 0.7755),
    (300, "beta"): (0.272, 0.3155),
    (300, "bernoulli"): (0.2845, 0.403),
    (300, "narrow"): (0.7365, 0.758),
}
"""Output of ``betting_ci`` of the package confseq 0.0.11 (truncation 0.75/m) on a grid of 2000 means;
it needs NumPy 1 and a compiler, which is why it is no dependency.
"""


def test_betting_agrees_with_a_published_implementation() -> None:
    rng = np.random.default_rng(0)
    cell = 1 / 2000
    for n in (50, 300):
        samples = {
            "beta": rng.beta(2, 5, n),
            "bernoulli": (rng.random(n) < 0.3) * 1.0,
            "narrow": rng.beta(60, 20, n),
        }
        for name, x in samples.items():
            ends = confidence.betting(x, 0.95)
            low, high = CONFSEQ[n, name]
            # a grid rounds outwards by up to one cell
            assert low - TIGHT <= ends.lower <= low + cell + TIGHT, (n, name)
            assert high - cell - TIGHT <= ends.upper <= high + TIGHT, (n, name)


def test_betting_holds_at_all_sample_sizes_at_once() -> None:
    streams, n, level, mean = 300, 150, 0.8, 0.3
    rng = np.random.default_rng(5)
    always, tight = [], []
    for _ in range(streams):
        low, high = confidence.betting_sequence((rng.random(n) < mean) * 1.0, level, grid=200)
        always.append(np.all((low <= mean) & (mean <= high)))
        tight.append(high[-1] - low[-1])
        assert np.all(np.diff(low) >= 0) and np.all(np.diff(high) <= 0)
    assert _enough(np.array(always), level)
    assert np.mean(tight) < 0.35


def _at_every_look(
    x: np.ndarray, mean: float, level: float, looks: tuple[int, ...], planned: bool
) -> np.ndarray:
    """Streams whose two-sided bound holds at every look."""
    held = np.ones(len(x), dtype=bool)
    for n in looks:
        ends = confidence.betting(x[:, :n], level, planned=planned)
        held &= (ends.lower <= mean) & (mean <= ends.upper)
    return held


def test_only_unplanned_bets_survive_looking_again() -> None:
    """Bets tuned anew to every sample size lose their coverage when one looks often; unplanned ones do not."""
    looks = (4, 6, 9, 13, 20, 30, 45, 68, 100, 150)
    x = (np.random.default_rng(7).random((REPETITIONS, max(looks))) < 0.5) * 1.0
    assert _enough(_at_every_look(x, 0.5, 0.7, looks, planned=False), 0.7)
    assert not _enough(_at_every_look(x, 0.5, 0.7, looks, planned=True), 0.7)
    assert confidence.betting(x[0], planned=False).anytime and not confidence.betting(x[0]).anytime
    log_w = np.log1p(-x[0] / 2)
    assert not any(c.anytime for c in confidence.certify(log_w, x[0]))
    always = confidence.certify(log_w, x[0], anytime=True)
    assert all(c.anytime for c in always) and len(always) == 5
    assert always[0].lower < confidence.certify(log_w)[0].lower
    with pytest.raises(ValueError, match=r"^anytime: got method 'hoeffding'"):
        confidence.certify(log_w, method="hoeffding", anytime=True)


# ------------------------------------------------------------------------------------- known models


@cache
def _model() -> tuple[ot.PolicyPair, np.ndarray, np.ndarray, np.ndarray]:
    """A pair, and per response: law under μ, log ratio, reward."""
    tree = ot.TokenTree(vocab=3, horizon=3)
    mu = ot.Policy.random(tree, seed=1, concentration=1.0)
    pi = ot.Policy.mixture(ot.Policy.random(tree, seed=2, concentration=1.0), mu, 0.3)
    rng = np.random.default_rng(3)
    reward = [np.zeros(tree.level_shape(t)) for t in range(3)]
    reward[-1] = (rng.random(tree.level_shape(2)) < 0.4) * 1.0
    pair = ot.PolicyPair.from_levels(tree, mu.levels, pi.levels, reward)
    law, other = mu.sequence_law[-1].ravel(), pi.sequence_law[-1].ravel()
    return pair, law, np.log(other) - np.log(law), reward[-1].ravel()


def _variables(cap: float = 1.5) -> dict[str, tuple[np.ndarray, tuple[float, float], float]]:
    """Per response: the certified variable, its range, and the exact quantity on its safe side."""
    pair, _, log_w, reward = _model()
    mask = np.random.default_rng(9).random(log_w.size) < 0.8
    change = float(pair.improvement)
    return {
        "truncated": (confidence.truncated_values(log_w, reward, cap), (0, cap), float(pair.J_target)),
        "change": (confidence.truncated_change_values(log_w, reward, cap), (-1, cap - 1), change),
        "log": (confidence.log_change_values(log_w, reward, cap), (-1, math.log(cap)), change),
        "masked": (
            confidence.masked_change_values(log_w, reward, mask, cap, 0.9),
            (-1, math.log(cap)),
            change,
        ),
    }


def test_variables_lie_on_the_safe_side() -> None:
    pair, law, log_w, _ = _model()
    assert close(law @ confidence.tv_values(log_w), pair.tv_seq, TIGHT)
    for name, (z, (least, most), truth) in _variables().items():
        assert z.min() >= least and z.max() <= most, name
        assert law @ z < truth, name
    z, _, truth = _variables(cap=1e6)["truncated"]
    assert close(law @ z, truth, TIGHT)
    z, _, _ = _variables(cap=1e6)["log"]
    assert close(law @ z, pair.reward_floor_log_w, TIGHT)


def test_masked_variable_is_the_masked_bound() -> None:
    """Per token (ρ − 1) − k3(ρ) = log ρ: the variable's mean is the three-term bound."""
    pair, law, log_w, reward = _model()
    mask = (log_w > -1.2) & (np.arange(log_w.size) % 4 > 0)
    rho = [b / a for a, b in zip(pair.behavior.levels, pair.target.levels, strict=True)]
    per_token = [np.repeat(r.ravel(), 3 ** (2 - t)) for t, r in enumerate(rho)]
    surrogate = law @ (mask * reward * sum(r - 1 for r in per_token))
    k3 = law @ (mask * reward * sum(r - 1 - np.log(r) for r in per_token))
    lost = law @ ((1 - mask) * reward)
    z = confidence.masked_change_values(log_w, reward, mask * 1.0, 1e6, 1.2)
    assert close(law @ z, masked_lower(surrogate, k3, lost), FLOAT64)


@pytest.mark.parametrize("method", confidence.METHODS)
def test_certificates_cover(method: str) -> None:
    pair, law, log_w, _ = _model()
    index = np.random.default_rng(11).choice(log_w.size, size=(REPETITIONS, 40), p=law)
    tv = confidence.interval(confidence.tv_values(log_w)[index], method, confidence=LEVEL)
    assert _enough((tv.lower <= pair.tv_seq) & (pair.tv_seq <= tv.upper))
    for name, (z, bounds, truth) in _variables().items():
        ends = confidence.interval(z[index], method, confidence=LEVEL, bounds=bounds, side="lower")
        assert _enough(ends.lower <= truth), name


def test_certify_reports_the_truth_on_both_sides() -> None:
    pair, law, log_w, reward = _model()
    index = np.random.default_rng(12).choice(log_w.size, size=4000, p=law)
    found = {c.name: c for c in confidence.certify(log_w[index], reward[index], mask=np.ones(4000))}
    truth = {"tv_seq": pair.tv_seq, "return_truncated": pair.J_target}
    for name, certificate in found.items():
        value = float(truth.get(name, pair.improvement))
        assert certificate.lower <= value <= certificate.upper
        assert certificate.upper - certificate.lower < 0.5 and certificate.samples == 4000
        assert certificate.to_dict()["method"] == "betting"
    for side, open_end in (("lower", "upper"), ("upper", "lower")):
        one = confidence.certify(log_w[index], reward[index], side=side, method="hoeffding")
        assert getattr(one[0], open_end) in (0.0, 1.0) and abs(getattr(one[2], open_end)) == 1.0


def test_other_reward_ranges_and_missing_support() -> None:
    _, law, log_w, reward = _model()
    index = np.random.default_rng(13).choice(log_w.size, size=500, p=law)
    unit = confidence.certify(log_w[index], reward[index])
    wide = confidence.certify(log_w[index], 6 * reward[index] - 2, reward_range=(-2, 4))
    assert close(wide[1].lower, 6 * unit[1].lower - 2, LOOSE64) and close(
        wide[3].upper, 6 * unit[3].upper, LOOSE64
    )
    gone = confidence.certify(np.where(reward[index] > 0, -np.inf, 0.3), reward[index], method="hoeffding")
    assert gone[1].estimate == 0 and all(math.isfinite(c.lower) and math.isfinite(c.upper) for c in gone)


# ------------------------------------------------------------------------------------------- groups


def test_group_means_keep_order_and_labels() -> None:
    means = confidence.group_means([1, 2, 3, 4, 5.0], ["b", "a", "b", "c", "a"])
    assert means.tolist() == [2.0, 3.5, 4.0]
    with pytest.raises(ValueError, match="groups"):
        confidence.group_means([1.0, 2.0], [1])


def test_samples_of_one_prompt_need_grouping() -> None:
    """Eight copies of each of 30 draws: treating them as independent undercovers, group means do not."""
    rng = np.random.default_rng(6)
    draws = (rng.random((REPETITIONS, 30)) < 0.5) * 1.0
    copies = np.repeat(draws, 8, axis=1)
    wrong = confidence.betting(rng.permuted(copies, axis=1), LEVEL)
    assert not _enough((wrong.lower <= 0.5) & (wrong.upper >= 0.5))
    labels = np.repeat(np.arange(30), 8)
    means = np.array([confidence.group_means(row, labels) for row in copies])
    right = confidence.betting(means, LEVEL)
    assert _enough((right.lower <= 0.5) & (right.upper >= 0.5))
    log_w = np.log1p(-draws[0] / 2)
    alone = confidence.certify(log_w)[0]
    together = confidence.certify(np.repeat(log_w, 8), groups=labels)[0]
    assert (
        together.samples == 30
        and close(alone.lower, together.lower, TIGHT)
        and close(alone.upper, together.upper, TIGHT)
    )


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: confidence.hoeffding([0.5]), "x"),
        (lambda: confidence.hoeffding([0.5, 1.5]), "x"),
        (lambda: confidence.hoeffding([0.5, math.nan]), "x"),
        (lambda: confidence.betting([0.5, 0.5], confidence=1.0), "confidence"),
        (lambda: confidence.betting([0.5, 0.5], bounds=(1, 0)), "bounds"),
        (lambda: confidence.betting([0.5, 0.5], side="both"), "side"),
        (lambda: confidence.interval([0.5, 0.5], "clt"), "method"),
        (lambda: confidence.betting_sequence([[0.5, 0.5]]), "x"),
        (lambda: confidence.certify([0.0]), "log_w"),
        (lambda: confidence.certify([0.0, math.inf]), "log_w"),
        (lambda: confidence.certify([0.0, 0.0], [0.5, 2.0]), "rewards"),
        (lambda: confidence.certify([0.0, 0.0], [0.5]), "rewards"),
        (lambda: confidence.certify([0.0, 0.0], [0.5, 0.5], mask=[2, 0]), "mask"),
        (lambda: confidence.certify([0.0, 0.0], [0.5, 0.5], cap=0.5), "cap"),
        (lambda: confidence.certify([0.0, 0.0], [0.5, 0.5], floor=-1), "floor"),
        (lambda: confidence.certify([0.0, 0.0], [0.5, 0.5], reward_range=(1, 0)), "reward_range"),
        (lambda: confidence.certify([0.0, 0.0], method="clt"), "method"),
        (lambda: confidence.certify([0.0, 0.0], groups=["a", "a"]), "groups"),
    ],
)
def test_bad_input_is_named(call, named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}: "):
        call()
