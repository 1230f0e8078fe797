"""Extremal instances and machine-checked steps behind the sharper results."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import sympy as sp

from opdtheory.elementary import exact, log
from opdtheory.spaces import Size
from opdtheory.verification.balls import lemma
from opdtheory.verification.blocks import Values
from opdtheory.verification.claim import Proof
from opdtheory.verification.evidence import Evidence

Rows = tuple[Sequence[Any], Sequence[Any]]
Rule = Callable[[tuple[int, ...]], Rows]


def plain_sizes(*pairs: tuple[int, int]) -> tuple[Size, ...]:
    """Sizes (V, T) of fixed-length trees with one prompt."""
    return tuple({"vocab": v, "horizon": t, "eos": None, "prompts": 1} for v, t in pairs)


def two_tokens(horizon: int, rows: Rule) -> Values:
    """Blocks of a two-token pair from a rule: prefix ↦ (μ, π) at that context."""
    values: Values = {}
    for t in range(horizon):
        table = np.empty((2, 2**t, 2), dtype=object)
        for i in range(2**t):
            prefix = tuple(i >> (t - 1 - s) & 1 for s in range(t))
            for policy, row in zip((0, 1), rows(prefix), strict=True):
                table[policy, i] = [exact(p) for p in row]
        values |= {f"mu.{t}": table[0], f"pi.{t}": table[1]}
    return values


ZERO, ONE = (1, 0), (0, 1)


def leak_then_leave(eps: Any) -> Rule:
    """μ plays 0; π leaks ε to token 1 as long as it has played 0, and surely plays 1 right after its first
    1."""

    def rows(prefix: tuple[int, ...]) -> Rows:
        if sum(prefix) == 0:
            return ZERO, (1 - exact(eps), exact(eps))
        return ZERO, (ONE if sum(prefix) == prefix[-1] else ZERO)

    return rows


def leak(eps: Any) -> Rule:
    """μ plays 0; π leaks ε to token 1 on the all-0 path and after exactly one 1."""

    def rows(prefix: tuple[int, ...]) -> Rows:
        return ZERO, ((1 - exact(eps), exact(eps)) if sum(prefix) <= 1 else ZERO)

    return rows


def split_then_part(eta: Any) -> Rule:
    """μ starts with token 1 with probability η, π never; after that start the two play different tokens for
    ever."""

    def rows(prefix: tuple[int, ...]) -> Rows:
        if not prefix:
            return (1 - exact(eta), exact(eta)), ZERO
        return ZERO, (ONE if prefix[0] == 1 else ZERO)

    return rows


def offer(*rules: Callable[..., Any]) -> Callable[..., list[Values]]:
    """Structured starts for two-token sizes without EOS; other sizes get none."""

    def offered(vocab: int, horizon: int, eos: int | None, prompts: int) -> list[Values]:
        plain = vocab == 2 and eos is None and prompts == 1
        return [two_tokens(horizon, rule) for rule in rules] if plain else []

    return offered


def aligned_reward(vocab: int, horizon: int, eos: int | None, prompts: int) -> list[Values]:
    """Equal χ² at every context and R − ½ proportional to N: equality in s5."""
    if vocab != 2 or eos is not None or prompts != 1:
        return []
    half, low, high = exact("1/2"), exact("1/4"), exact("3/4")
    values = two_tokens(horizon, lambda prefix: ((half, half), (low, high)))
    remainder = []
    for i in range(2**horizon):
        ratios = [low / half if i >> s & 1 == 0 else high / half for s in range(horizon)]
        remainder.append(math.prod(ratios, start=exact(1)) - 1 - sum(r - 1 for r in ratios))
    top = max(abs(n) for n in remainder)
    reward = [half + (n / top / 2 if top else 0) for n in remainder]
    return [values | {f"reward.{horizon - 1}": np.array(reward, dtype=object).reshape(-1, 2)}]


def algebra(name: str, difference: Callable[[], Any]) -> Proof:
    """A rational identity as a lemma: the difference of its sides simplifies to zero."""

    def run() -> Evidence:
        return Evidence("lemma", sp.cancel(sp.together(difference())) == 0, f"{name}: symbolic")

    run.__name__ = name
    return run


def k3_nonnegative() -> Evidence:
    """k3′(r) = (r − 1)/r changes sign at 1 only, and k3(1) = 0: the minimum over (0, ∞) is 0."""
    r = sp.symbols("r", positive=True)
    k3 = r - 1 - sp.log(r)
    return Evidence(
        "lemma",
        sp.simplify(sp.diff(k3, r) - (r - 1) / r) == 0 and k3.subs(r, 1) == 0,
        "k3 ≥ 0 on (0, ∞): sign of k3′",
    )


def reverse_midpoint() -> Evidence:
    """f(ρ) = ρ log ρ − ρ + 1 − 4 k3((1+ρ)/2) has f(1) = f′(1) = 0 and f″ = (1−ρ)²/(ρ(1+ρ)²) ≥ 0."""
    r = sp.symbols("rho", positive=True)
    half = (1 + r) / 2
    f = r * sp.log(r) - r + 1 - 4 * (half - 1 - sp.log(half))
    convex = sp.simplify(sp.diff(f, r, 2) - (1 - r) ** 2 / (r * (1 + r) ** 2)) == 0
    flat = sp.simplify(f.subs(r, 1)) == 0 and sp.simplify(sp.diff(f, r).subs(r, 1)) == 0
    return Evidence(
        "lemma",
        bool(convex and flat),
        "4·k3((1+ρ)/2) ≤ ρ log ρ − ρ + 1 on (0, ∞): convex, zero at 1 with its derivative",
    )


def reverse_hellinger() -> Evidence:
    """ρ log ρ − ρ + 1 − (1 − √ρ)² = 2r·(r log r − r + 1) with r = √ρ, and r log r − r + 1 = r·k3(1/r) ≥ 0."""
    r = sp.symbols("r", positive=True)
    left = 2 * r**2 * sp.log(r) - r**2 + 1 - (1 - r) ** 2
    first = sp.simplify(left - 2 * r * (r * sp.log(r) - r + 1)) == 0
    second = sp.simplify(r * sp.log(r) - r + 1 - r * (1 / r - 1 + sp.log(r))) == 0
    return Evidence(
        "lemma", bool(first and second), "(1 − √ρ)² ≤ ρ log ρ − ρ + 1 on (0, ∞): reduces to k3 ≥ 0"
    )


def remainder_forms() -> Evidence:
    """∏π − ∏μ − Στ_t = Σ_t μ_{<t}(π_t − μ_t)(π_{>t} − μ_{>t}) as polynomials, T ≤ 5."""
    for horizon in range(1, 6):
        mu, pi = sp.symbols(f"m:{horizon}"), sp.symbols(f"p:{horizon}")
        before = [sp.prod(mu[:t]) * (pi[t] - mu[t]) for t in range(horizon)]
        first = sum(b * sp.prod(mu[t + 1 :]) for t, b in enumerate(before))
        second = sum(b * (sp.prod(pi[t + 1 :]) - sp.prod(mu[t + 1 :])) for t, b in enumerate(before))
        if sp.expand(sp.prod(pi) - sp.prod(mu) - first - second) != 0:
            return Evidence("lemma", False, f"second-order form of n(y) fails at T = {horizon}")
    return Evidence("lemma", True, "second-order form of n(y): polynomial identity for T ≤ 5")


def weierstrass() -> Evidence:
    """With P = ∏(1−u) and S = Σu: P(1−u) − 1 + S + u = (1−u)(P − 1 + S) + uS, an induction for every T."""
    p, s, u = sp.symbols("P S u")
    ok = sp.expand(p * (1 - u) - 1 + s + u - (1 - u) * (p - 1 + s) - u * s) == 0
    return Evidence("lemma", ok, "∏(1−u_t) ≥ 1 − Σu_t on [0, 1]^T: induction step symbolic, every T")


def hellinger_cases() -> Evidence:
    """The four cases of the supersolution u(y) = −y (y ≤ 1), −2 + 1/y (y ≥ 1), as rational identities."""
    y, r = sp.symbols("y r", positive=True)
    low, high = lambda z: -z, lambda z: -2 + 1 / z
    quadratic = 2 * (1 - r) ** 2

    def gap(here: Any, there: Any) -> Any:
        """Right side minus left side, λ = y u′(y)/2."""
        return here(y) + quadratic + y * sp.diff(here(y), y) / 2 * (r**2 - 1) - there(y * r)

    identities = [
        gap(low, low) - (4 - y) * (1 - r) ** 2 / 2,
        gap(low, high) - ((4 - y) * (r - 1) ** 2 / 2 - (y * r - 1) ** 2 / (y * r)),
        gap(high, high) - (r - 1) ** 2 * (2 - (r + 2) / (2 * y * r)),
        gap(high, low) - (3 / (2 * y) - (4 - y) * r + (2 - 1 / (2 * y)) * r**2),
        ((4 - y) ** 2 - 4 * (3 / (2 * y)) * (2 - 1 / (2 * y))) - (y - 1) ** 2 * (y**2 - 6 * y + 3) / y**2,
    ]
    return Evidence(
        "lemma",
        all(sp.cancel(sp.together(e)) == 0 for e in identities),
        "Hellinger supersolution: four cases symbolic",
    )


def midpoint_hellinger(r: Any) -> Any:
    """(5/8)(1−r)² − k3((1+r²)/2), r = √ρ."""
    half = (1 + r * r) / 2
    return 5 * (1 - r) * (1 - r) / 8 - (half - 1 - log(half))


_W, _R = sp.symbols("W rho")
_LOGS = sp.symbols("l1:4")
STEP = algebra(
    "one step adds (W−1)(ρ−1) to N", lambda: (_W * _R - 1) - (_W - 1) - (_R - 1) - (_W - 1) * (_R - 1)
)
SPLIT = algebra(
    "N = k3(W) − Σk3(ρ_t), logarithms as free symbols",
    lambda: (_W - 1 - (_R - 1)) - ((_W - 1 - sum(_LOGS)) - ((_R - 1) - sum(_LOGS))),
)
MIDPOINT = (
    lemma("k3((1+ρ)/2) ≤ (5/8)(1−√ρ)² for √ρ ≤ 20", midpoint_hellinger, [(0, 20)], zeros=[1]),
    # beyond 20 the logarithm is dropped: r²/8 − 5r/4 + 9/8 has non-negative Taylor coefficients at 10
    algebra(
        "tail of the same beyond √ρ = 10",
        lambda: (
            (_R**2 / 8 - 5 * _R / 4 + sp.Rational(9, 8))
            - ((_R - 10) ** 2 / 8 + 5 * (_R - 10) / 4 + sp.Rational(9, 8))
        ),
    ),
)
CASES = (
    hellinger_cases,
    lemma("2y² + y ≤ 4 on [0, 1]", lambda y: 4 - y - 2 * y * y, [(0, 1)]),
    lemma("y² − 6y + 3 ≤ 0 on [1, 4]", lambda y: 6 * y - 3 - y * y, [(1, 4)]),
)


def _reverse_cases() -> Evidence:
    """The four cases of the supersolution u(y) = −y (y ≤ 1), −3/2 + 1/(2y²) (y ≥ 1): rational identities."""
    y, r, phi = sp.symbols("y r phi", positive=True)

    def low(z: Any) -> Any:
        return -z

    def high(z: Any) -> Any:
        return -sp.Rational(3, 2) + 1 / (2 * z**2)

    def gap(here: Any, there: Any) -> Any:
        """Right side minus left side, λ = y u′(y)/2; φ stands for φ(r²)."""
        return here(y) + 3 * phi / 2 + y * sp.diff(here(y), y) / 2 * (r**2 - 1) - there(y * r)

    w = y * r
    identities = [
        gap(low, low) - (3 * phi / 2 - y * (1 - r) ** 2 / 2),
        gap(low, high) - (3 * phi / 2 - y * (r - 1) ** 2 / 2 - (w - 1) ** 2 * (2 * w + 1) / (2 * w**2)),
        gap(high, high) - (3 * phi / 2 - (r - 1) ** 2 * (r + 1) ** 2 / (2 * y**2 * r**2)),
        gap(high, low) - (3 * (phi - 1) / 2 + (1 - r**2 / 2) / y**2 + y * r),
    ]
    ok = all(sp.cancel(sp.together(e)) == 0 for e in identities)
    return Evidence("lemma", ok, "reverse-KL supersolution: four cases symbolic")


def _reverse_orders() -> Evidence:
    """φ(r²) ≥ 2(r−1)² (r ≥ 1) and φ(ρ) ≥ (1−ρ)²/2 (ρ ≤ 1), by derivatives; where ρ²(1−log ρ)³ increases."""
    r = sp.symbols("r", positive=True)
    phi = r * sp.log(r) - r + 1
    square = 2 * r**2 * sp.log(r) - r**2 + 1
    checks = [
        sp.diff(square - 2 * (r - 1) ** 2, r) - 4 * r * (sp.log(r) + 1 / r - 1),
        sp.diff(phi - (1 - r) ** 2 / 2, r) - (sp.log(r) - r + 1),
        sp.diff(r**2 * (1 - sp.log(r)) ** 3, r) - r * (1 - sp.log(r)) ** 2 * (2 * (1 - sp.log(r)) - 3),
    ]
    flat = [square.subs(r, 1), phi.subs(r, 1)]
    ok = all(sp.simplify(e) == 0 for e in checks) and flat == [0, 0]
    return Evidence("lemma", ok, "φ(r²) ≥ 2(r−1)² (r ≥ 1), φ(ρ) ≥ (1−ρ)²/2 (ρ ≤ 1): derivatives k3-signed")


def _last_case(rho: Any) -> Any:
    """2 − ρ − ρ²(1 − log ρ)³."""
    rest = 1 - log(rho)
    return 2 - rho - rho * rho * rest * rest * rest


REVERSE_CASES = (
    _reverse_cases,
    _reverse_orders,
    lemma("ρ²(1−log ρ)³ ≤ 2 − ρ on [1/2, 1]", _last_case, [("1/2", 1)], zeros=[1]),
)
