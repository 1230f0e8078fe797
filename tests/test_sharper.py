"""The sharper results restated in plain fractions and brute-force enumeration, without the engine."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction as F

import pytest

from tests.tolerance import FLOAT64, LOOSE64, TIGHT, close

Rows = dict[tuple[int, ...], list[F]]


def random_policy(rng: random.Random, vocab: int, horizon: int, zeros: bool) -> Rows:
    """A table prefix → probabilities, with small denominators and, if asked for, zeros."""
    table = {}
    for t in range(horizon):
        for prefix in itertools.product(range(vocab), repeat=t):
            weights = [rng.choice([0, 1, 1, 2, 5, 40] if zeros else [1, 2, 3, 20]) for _ in range(vocab)]
            if not any(weights):
                weights[rng.randrange(vocab)] = 1
            table[prefix] = [F(w, sum(weights)) for w in weights]
    return table


class Pair:
    """Everything by its definition: sums over all sequences, no recursion."""

    def __init__(self, vocab: int, horizon: int, mu: Rows, pi: Rows):
        self.T, self.mu, self.pi = horizon, mu, pi
        self.sequences = list(itertools.product(range(vocab), repeat=horizon))
        self.steps = {y: [(mu[y[:t]][y[t]], pi[y[:t]][y[t]]) for t in range(horizon)] for y in self.sequences}

    def law(self, y: tuple[int, ...], which: int) -> F:
        return math.prod((s[which] for s in self.steps[y]), start=F(1))

    def hybrid(self, y: tuple[int, ...], t: int, row: int) -> F:
        """μ_{<t} · (row 0: μ_t, row 1: π_t) · μ_{>t}."""
        return math.prod((s[row if u == t else 0] for u, s in enumerate(self.steps[y])), start=F(1))

    def n(self, y: tuple[int, ...]) -> F:
        mu = self.law(y, 0)
        return self.law(y, 1) - mu - sum(self.hybrid(y, t, 1) - mu for t in range(self.T))

    @property
    def error_sup(self) -> F:
        return sum((abs(self.n(y)) for y in self.sequences), start=F(0)) / 2

    def average(self, value) -> float | F:
        """Σ_t E_{d_t^μ}[value(μ(c), π(c))] over visited contexts."""
        total = 0
        for prefix, row in self.mu.items():
            d = math.prod((self.mu[prefix[:t]][prefix[t]] for t in range(len(prefix))), start=F(1))
            if d:
                total += d * value(row, self.pi[prefix])
        return total


def tv(p: list[F], q: list[F]) -> F:
    return sum((abs(a - b) for a, b in zip(p, q, strict=True)), start=F(0)) / 2


def kl(p: list[F], q: list[F]) -> float:
    if any(a and not b for a, b in zip(p, q, strict=True)):
        return math.inf
    return sum(float(a) * math.log(a / b) for a, b in zip(p, q, strict=True) if a)


def hellinger2(p: list[F], q: list[F]) -> float:
    return sum((math.sqrt(a) - math.sqrt(b)) ** 2 for a, b in zip(p, q, strict=True)) / 2


def pairs(count: int, seed: int, zeros: bool = True) -> list[Pair]:
    rng = random.Random(seed)
    out = []
    for _ in range(count):
        vocab, horizon = rng.choice([(2, 1), (2, 2), (3, 2), (2, 3), (2, 4)])
        mu, pi = (random_policy(rng, vocab, horizon, zeros) for _ in range(2))
        if rng.random() < 0.4:  # near pairs: most contexts equal
            pi = {c: row if rng.random() < 0.4 else mu[c] for c, row in pi.items()}
        out.append(Pair(vocab, horizon, mu, pi))
    return out


def tabled(horizon: int, rule) -> Pair:
    """A two-token pair from a rule prefix → (μ row, π row)."""
    rows = {c: rule(c) for t in range(horizon) for c in itertools.product(range(2), repeat=t)}
    return Pair(
        2,
        horizon,
        {c: list(map(F, r[0])) for c, r in rows.items()},
        {c: list(map(F, r[1])) for c, r in rows.items()},
    )


# ---------------------------------------------------------------------------------- inequalities at random


@pytest.mark.parametrize("x", pairs(60, seed=1))
def test_error_is_bounded_by_kl_tv_and_hellinger(x: Pair) -> None:
    error = float(x.error_sup)
    slack = FLOAT64
    assert error <= x.average(kl) + slack  # s1
    assert x.error_sup <= x.average(tv)  # s3, exact
    assert error <= 21 / 2 * x.average(hellinger2) + slack  # s9 (c)
    assert error <= 11 / 4 * x.average(lambda p, q: kl(q, p)) + slack  # s13, sharper than s9 (d)
    sequences = [[x.law(y, which) for y in x.sequences] for which in (0, 1)]
    distance = hellinger2(*sequences)
    assert distance <= 4 * x.average(hellinger2) + slack  # s9 (b)
    middle = x.average(lambda p, q: kl(p, [(a + b) / 2 for a, b in zip(p, q, strict=True)]))
    assert error <= 2 * distance + 2 * middle + slack  # s9 (a)


def test_supersolution_of_the_reverse_constant_on_a_grid() -> None:
    """Inequality (8) behind 11/4, at many ratios of the response so far and of the next token."""

    def u(w: float) -> float:
        return -(w**0.6) if w <= 1 else -1 - 0.3 * (1 - math.exp(-2 * (w - 1)))

    def slope(w: float) -> float:
        return -0.6 * w**0.6 if w <= 1 else -0.6 * w * math.exp(-2 * (w - 1))

    grid = [math.exp(k / 8) for k in range(-64, 41)]
    for w in grid:
        assert u(w) >= -(w**0.6) - FLOAT64
        for rho in [0.0, *grid]:
            entropy = rho * math.log(rho) - rho + 1 if rho else 1.0
            mixed = 0.4 + 0.6 * rho
            price = 33 / 20 * entropy - (mixed - 1 - math.log(mixed))
            assert u(w * rho) <= u(w) + slope(w) * (rho - 1) + price + FLOAT64


def test_linear_in_the_horizon_is_the_order_that_is_reached() -> None:
    """|Error| ≤ Tδ always, with 7/10 of it at T = 6: far below the printed (4/3)T^{3/2}δ, far above δ."""
    for x in pairs(40, seed=7):
        largest = max(kl(row, x.pi[c]) for c, row in x.mu.items())
        assert float(x.error_sup) <= x.T * largest + FLOAT64
    eps = F(3, 10)
    leaking = tabled(6, lambda c: ((1, 0), (1 - eps, eps) if sum(c) <= 1 else (1, 0)))
    assert 0.69 < float(leaking.error_sup) / (6 * -math.log(1 - eps)) < 0.71


@pytest.mark.parametrize("x", pairs(40, seed=2))
def test_exact_supremum_at_a_maximal_tv(x: Pair) -> None:
    eps = max(tv(row, x.pi[c]) for c, row in x.mu.items())
    assert x.error_sup <= x.T * eps * (1 - (1 - eps) ** (x.T - 1))
    # step-wise maxima, the form behind it
    steps = [max(tv(x.mu[c], x.pi[c]) for c in x.mu if len(c) == t) for t in range(x.T)]
    rest = [math.prod((1 - e for s, e in enumerate(steps) if s != t), start=F(1)) for t in range(x.T)]
    assert x.error_sup <= sum(e * (1 - r) for e, r in zip(steps, rest, strict=True))


@pytest.mark.parametrize("x", pairs(40, seed=3))
def test_coupled_runs_that_deviate_once_sharpen_the_tv_bound(x: Pair) -> None:
    once = F(0)
    for y in x.sequences:
        low = [min(s) for s in x.steps[y]]
        for t, (m, p) in enumerate(x.steps[y]):
            rest = math.prod((v for s, v in enumerate(low) if s != t), start=F(1))
            once += max(p - m, F(0)) * rest
    assert x.error_sup <= x.average(tv) - once


@pytest.mark.parametrize("x", pairs(30, seed=4, zeros=False))
def test_error_is_the_gap_between_two_estimates_of_one_kl(x: Pair) -> None:
    """sup|Error| = D − E_μ min(k3(W), Σ k3(ρ_t)), and both estimates have mean D."""

    def k3(r: F) -> float:
        return float(r - 1) - math.log(r)

    whole = {y: k3(x.law(y, 1) / x.law(y, 0)) for y in x.sequences}
    tokens = {y: sum(k3(q / p) for p, q in x.steps[y]) for y in x.sequences}
    mean = lambda f: sum(float(x.law(y, 0)) * f[y] for y in x.sequences)  # noqa: E731
    d = x.average(kl)
    overlap = mean({y: min(whole[y], tokens[y]) for y in x.sequences})
    assert close(mean(whole), d) and close(mean(tokens), d)
    assert close(float(x.error_sup), d - overlap)


@pytest.mark.parametrize("x", pairs(40, seed=5))
def test_improvement_lies_between_the_logarithmic_bounds(x: Pair) -> None:
    rng = random.Random(len(x.sequences))
    reward = {y: F(rng.randrange(5), 4) for y in x.sequences}
    change = float(sum(reward[y] * (x.law(y, 1) - x.law(y, 0)) for y in x.sequences))
    below = above = floored = 0.0
    for y in x.sequences:
        m, p = x.law(y, 0), x.law(y, 1)
        if not m:
            continue
        log_w = math.log(p / m) if p else -math.inf
        for_reward, for_cost = float(m * reward[y]), float(m * (1 - reward[y]))
        below += for_reward * log_w if reward[y] else 0
        above -= for_cost * log_w if reward[y] != 1 else 0
        floored += for_reward * max(log_w, -1.0)
    assert below <= floored + TIGHT  # the floor only helps
    assert floored <= change + FLOAT64 and change <= above + FLOAT64


# ---------------------------------------------------------------------------------- where they are attained


@pytest.mark.parametrize("horizon", [2, 3, 5])
@pytest.mark.parametrize("eps", [F(1, 10), F(1, 2), F(9, 10)])
def test_leak_attains_the_tv_supremum_exactly(horizon: int, eps: F) -> None:
    x = tabled(horizon, lambda c: ((1, 0), (1 - eps, eps) if sum(c) <= 1 else (1, 0)))
    assert x.error_sup == horizon * eps * (1 - (1 - eps) ** (horizon - 1))


def test_disjoint_tokens_attain_the_expected_tv_exactly() -> None:
    for horizon in (2, 3, 4):
        x = tabled(horizon, lambda c: ((1, 0), (0, 1)))
        assert x.error_sup == x.average(tv) == horizon


def leak_then_leave(horizon: int, eps: F) -> Pair:
    def rule(c: tuple[int, ...]):
        if sum(c) == 0:
            return (1, 0), (1 - eps, eps)
        return (1, 0), ((0, 1) if sum(c) == c[-1] else (1, 0))

    return tabled(horizon, rule)


@pytest.mark.parametrize("x", [*pairs(40, seed=6), leak_then_leave(4, F(1, 50))])
@pytest.mark.parametrize("share", [F(1, 10), F(1, 3), F(3, 5), F(9, 10), F(1)])
def test_error_is_bounded_for_every_share_between_kl_and_hellinger(x: Pair, share: F) -> None:
    affinity = sum(float(x.law(y, 0)) ** (1 - share) * float(x.law(y, 1)) ** share for y in x.sequences)  # 0⁰ = 1
    way = x.average(lambda p, q: kl(p, [(1 - share) * a + share * b for a, b in zip(p, q, strict=True)]))
    assert float(x.error_sup) <= (1 - affinity + way) / share + FLOAT64


@pytest.mark.parametrize("horizon", [2, 3, 6])
def test_error_formula_of_the_extremal_sequence(horizon: int) -> None:
    eps = F(1, 5)
    x = leak_then_leave(horizon, eps)
    assert x.error_sup == (horizon - 1) * eps + eps * (1 - (1 - eps) ** (horizon - 1))
    assert close(x.average(kl), -horizon * math.log(1 - eps))


@pytest.mark.parametrize("d", [0.01, 0.5, 3.0])
def test_the_constant_one_is_reached_at_every_divergence(d: float) -> None:
    """With D fixed and T → ∞ the extremal error tends to D: its formula was checked by enumeration above."""

    def error(horizon: int) -> float:
        eps = -math.expm1(-d / horizon)
        return (horizon - 1) * eps + eps * (1 - (1 - eps) ** (horizon - 1))

    ratios = [error(horizon) / d for horizon in (2, 10, 1000, 10**6)]
    assert ratios == sorted(ratios) and ratios[-1] < 1 and close(ratios[-1], 1, tol=1e2 * LOOSE64)


def test_the_reverse_kl_of_responses_does_not_bound_the_error() -> None:
    """Ratio (T − 1)·η/(−log(1 − η)): larger than any constant."""
    eta = F(1, 100)
    for horizon in (3, 5):
        x = tabled(
            horizon,
            lambda c: ((1 - eta, eta), (1, 0)) if not c else ((1, 0), (0, 1) if c[0] == 1 else (1, 0)),
        )
        assert x.error_sup == (horizon - 1) * eta
        reverse = -math.log(1 - eta)
        assert x.error_sup > F(9, 10) * (horizon - 1) * F(reverse)


# ---------------------------------------------------------------------------------- TOP-D and DPPO


def test_discounted_bound_is_attained_at_every_divergence() -> None:
    """State 0 is left through the action that only π plays; state 1 has the opposite advantages."""
    for eps, gamma in itertools.product((F(1, 10), F(1, 2), F(4, 5), F(1)), (F(1, 2), F(9, 10))):
        small, large = [-eps / (1 - eps) if eps < 1 else F(0), F(1), F(-1)], [F(-1), (1 - eps) / eps, F(-1)]
        advantage = small if eps <= F(1, 2) else large
        mu, pi = [1 - eps, eps, F(0)], [1 - eps, F(0), eps]
        assert sum(m * a for m, a in zip(mu, advantage, strict=True)) == 0
        assert max(map(abs, advantage)) == 1 and tv(mu, pi) == eps
        g = sum(p * a for p, a in zip(pi, advantage, strict=True))
        # discounted visits of π: state 0 is kept with probability 1 − ε a step; μ never leaves it
        stay = 1 / (1 - gamma * (1 - eps))
        total = 1 / (1 - gamma)
        error = (stay - total) * g + (total - stay) * (-g)
        bound = 2 * min(2 * eps, F(1)) * gamma * eps / ((1 - gamma) * (1 - gamma + gamma * eps))
        assert error == bound


def test_token_mixing_contracts_by_one_minus_alpha_to_the_horizon() -> None:
    rng = random.Random(7)
    for _ in range(150):
        horizon = rng.choice([1, 2, 3])
        teacher, student = (random_policy(rng, 2, horizon, zeros=True) for _ in range(2))
        alpha = F(rng.randrange(1, 10), 10)
        mixed = {
            c: [alpha * a + (1 - alpha) * b for a, b in zip(teacher[c], student[c], strict=True)]
            for c in teacher
        }
        before, after = Pair(2, horizon, teacher, student), Pair(2, horizon, teacher, mixed)
        laws = [[x.law(y, which) for y in x.sequences] for x, which in ((before, 0), (before, 1), (after, 1))]
        assert tv(laws[2], laws[0]) <= (1 - alpha**horizon) * tv(laws[1], laws[0])
    apart = tabled(3, lambda c: ((1, 0), (F(1, 4), F(3, 4))))  # α = 1/4 and disjoint tokens before mixing
    laws = [[apart.law(y, which) for y in apart.sequences] for which in (0, 1)]
    assert tv(*laws) == 1 - F(1, 4) ** 3


def test_posterior_weights_compute_sequence_level_mixing() -> None:
    """∏(α_t ρ_t + 1 − α_t) = α ρ_{1:T} + 1 − α with α_{t+1} = α_t ρ_t/(α_t ρ_t + 1 − α_t)."""
    rng = random.Random(8)
    for _ in range(50):
        alpha = F(rng.randrange(1, 20), 20)
        ratios = [F(rng.randrange(0, 9), rng.randrange(1, 9)) for _ in range(6)]
        weight, product = alpha, F(1)
        for rho in ratios:
            factor = weight * rho + 1 - weight
            product *= factor
            if factor == 0:
                break
            weight = weight * rho / factor
        else:
            assert product == alpha * math.prod(ratios) + 1 - alpha


def test_immediate_topd_update_descends_a_generalised_jsd() -> None:
    """dJSD/dp along every exchange of mass equals −(1−α)·(difference of rewards), by central differences."""
    p, q, alpha = [0.5, 0.3, 0.2], [0.1, 0.2, 0.7], 0.3

    def jsd(p: list[float]) -> float:
        m = [alpha * b + (1 - alpha) * a for a, b in zip(p, q, strict=True)]
        forward = sum(b * math.log(b / c) for b, c in zip(q, m, strict=True))
        return alpha * forward + (1 - alpha) * sum(a * math.log(a / c) for a, c in zip(p, m, strict=True))

    reward = [math.log(alpha * b / a + 1 - alpha) for a, b in zip(p, q, strict=True)]
    step = 1e-6
    for i, j in itertools.permutations(range(3), 2):
        up, down = list(p), list(p)
        up[i], up[j] = up[i] + step, up[j] - step
        down[i], down[j] = down[i] - step, down[j] + step
        slope = (jsd(up) - jsd(down)) / (2 * step)
        assert close(slope, -(1 - alpha) * (reward[i] - reward[j]), tol=LOOSE64)


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.5, 0.9])
def test_second_moment_bound_is_the_chord_to_the_tangent_point(alpha: float) -> None:
    floor = math.log(1 - alpha) ** 2
    low, high = math.e, math.e**12  # u (log²u − ℓ²) = 2(u − 1 + α) log u
    for _ in range(200):
        u = (low + high) / 2
        low, high = (
            (u, high) if u * (math.log(u) ** 2 - floor) < 2 * (u - 1 + alpha) * math.log(u) else (low, u)
        )
    best = floor + 2 * alpha * math.log(u) / u
    b = (u - 1 + alpha) / alpha
    # attained by p = (1/b, 1 − 1/b), q = (1, 0), and never exceeded
    assert close(math.log(alpha * b + 1 - alpha) ** 2 / b + floor * (1 - 1 / b), best)
    rng = random.Random(9)
    for _ in range(3000):
        weights = [[rng.expovariate(1) ** rng.choice([1, 4]) for _ in range(3)] for _ in range(2)]
        p, q = ([w / sum(row) for w in row] for row in weights)
        moment = sum(a * math.log(alpha * c / a + 1 - alpha) ** 2 for a, c in zip(p, q, strict=True))
        assert moment <= best + FLOAT64
    if alpha == 0.1:
        assert close(best, 0.0740586993134, tol=TIGHT)


def test_immediate_update_is_no_gradient_and_can_raise_the_sequence_kl() -> None:
    """Two logits: the root's and that of the context after token 1, far from its teacher but nearly flat."""

    def sigmoid(z: float) -> float:
        return 1 / (1 + math.exp(-z))

    def kl2(p: float, q: float) -> float:
        return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))

    def update(root: float, after: float) -> tuple[float, float]:
        """g₁ in logits: −d(s)·dKL_s/dθ_s, dKL/dθ = p(1−p)(θ − θ*)."""
        p, r = sigmoid(root), sigmoid(after)
        return -p * (1 - p) * (root - math.log(1.5)), -p * r * (1 - r) * (after - math.log(999))

    def sequence_kl(root: float, after: float) -> float:
        return kl2(sigmoid(root), 0.6) + sigmoid(root) * kl2(sigmoid(after), 0.999)

    start = (0.0, -math.log(999))
    g = update(*start)
    step = 1e-4
    moved = (start[0] + step * g[0], start[1] + step * g[1])
    rise = (sequence_kl(*moved) - sequence_kl(*start)) / step
    assert close(rise, 0.1644, tol=1e3 * LOOSE64)
    cross = (update(step, start[1])[1] - update(-step, start[1])[1]) / (2 * step)
    other = (update(0.0, start[1] + step)[0] - update(0.0, start[1] - step)[0]) / (2 * step)
    assert other == 0 and cross > LOOSE64  # the Jacobian is not symmetric


# ---------------------------------------------------------------------------------- exact constants


def test_token_mixing_cannot_contract_below_a_quarter_at_one_half() -> None:
    """C_α = (1−α)·α^{α/(1−α)} is 1/4 at α = 1/2; two and three steps reach 1/3 and less."""
    rng = random.Random(11)
    half = F(1, 2)

    def ratio(teacher: Rows, student: Rows, horizon: int) -> F | None:
        mixed = {c: [(a + b) / 2 for a, b in zip(teacher[c], student[c], strict=True)] for c in teacher}
        before, after = Pair(2, horizon, teacher, student), Pair(2, horizon, teacher, mixed)
        laws = [[x.law(y, which) for y in x.sequences] for x, which in ((before, 0), (before, 1), (after, 1))]
        return tv(laws[2], laws[0]) / tv(laws[1], laws[0]) if laws[1] != laws[0] else None

    for _ in range(200):
        horizon = rng.choice([1, 2, 3])
        found = ratio(*(random_policy(rng, 2, horizon, zeros=True) for _ in range(2)), horizon)
        assert found is None or found >= F(1, 4)
    # the student bets everything on a third of the teacher's mass, then leaves it
    teacher = {(): [F(1, 3), F(2, 3)], (0,): [F(0), F(1)], (1,): [F(1), F(0)]}
    student = {(): [F(1), F(0)], (0,): [F(1), F(0)], (1,): [F(1), F(0)]}
    assert ratio(teacher, student, 2) == (1 - half) / (1 + half)


@pytest.mark.parametrize("horizon", [2, 3, 4])
def test_reverse_kl_of_responses_needs_exactly_one_step_fewer_than_the_horizon(horizon: int) -> None:
    rng = random.Random(horizon)
    for _ in range(40):
        x = Pair(2, horizon, *(random_policy(rng, 2, horizon, zeros=True) for _ in range(2)))
        laws = [[x.law(y, which) for y in x.sequences] for which in (1, 0)]
        assert float(x.error_sup) <= (horizon - 1) * kl(*laws) + FLOAT64


@pytest.mark.parametrize(("horizon", "chi2"), [(2, 0.5), (3, 0.05), (4, 0.003)])
def test_balanced_ratios_attain_the_chi_square_supremum(horizon: int, chi2: float) -> None:
    """Two ratios 1 + u, 1 − v with uv = χ² whose difference keeps E[N²] equal on both branches."""
    paths = [(1.0, 1.0, 0.0)]  # probability, W, N
    for left in range(horizon - 1, -1, -1):
        growth = ((1 + chi2) ** left - 1) / chi2
        following = []
        for p, w, n in paths:
            square = (w - 1) ** 2 + chi2 * growth * w * w
            linear = 2 * n * (w - 1) + 2 * chi2 * w * (growth * w - left)
            shift = -linear / square if square else 0.0
            up = (shift + math.sqrt(shift**2 + 4 * chi2)) / 2
            down = chi2 / up
            assert 0 < down <= 1
            following.append((p * down / (up + down), w * (1 + up), n + (w - 1) * up))
            following.append((p * up / (up + down), w * (1 - down), n - (w - 1) * down))
        paths = following
    bound = math.sqrt((1 + chi2) ** horizon - 1 - horizon * chi2) / 2
    assert close(sum(p * abs(n) for p, _, n in paths) / 2, bound, tol=LOOSE64)
    assert close(sum(p * n for p, _, n in paths), 0)
