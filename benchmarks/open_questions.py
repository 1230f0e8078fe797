"""Numbers of docs/open-questions.md: largest errors at a fixed divergence, least contraction of token mixing.

Run ``python benchmarks/open_questions.py`` (a few minutes on one core); every number has a fixed seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from opdtheory.tabular import PolicyPair, TokenTree

Divergence = Callable[[np.ndarray, np.ndarray], np.ndarray]


def forward_kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p‖q) along the last axis."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p > 0, p * np.log(p / q), 0.0).sum(-1)


def reverse_kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(q‖p) along the last axis."""
    return forward_kl(q, p)


def chi_square(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """χ²(q‖p) along the last axis."""
    return ((q - p) ** 2 / p).sum(-1)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def within(mu: np.ndarray, pi: np.ndarray, limit: float, divergence: Divergence) -> np.ndarray:
    """The point of the segment from μ to π farthest from μ with divergence at most ``limit``, row by row."""
    low, high = np.zeros(mu.shape[:-1]), np.ones(mu.shape[:-1])
    free = divergence(mu, pi) <= limit
    for _ in range(34):
        middle = (low + high) / 2
        inside = divergence(mu, mu + middle[..., None] * (pi - mu)) <= limit
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return mu + np.where(free, 1.0, low)[..., None] * (pi - mu)


def largest_error(
    horizon: int, limit: float, divergence: Divergence, lanes: int = 192, rounds: int = 600, seed: int = 0
) -> float:
    """Largest sup_R |Error| found over two-token pairs with divergence at most ``limit`` at every context."""
    rng = np.random.default_rng(seed)
    tree = TokenTree(vocab=2, horizon=horizon)
    shapes = [(2**t, 2) for t in range(horizon)] * 2
    ends = np.cumsum([math.prod(s) for s in shapes])

    def value(z: np.ndarray) -> np.ndarray:
        rows = [
            softmax(part.reshape(-1, *s))
            for part, s in zip(np.split(z, ends[:-1], axis=1), shapes, strict=True)
        ]
        mu = rows[:horizon]
        pi = [within(m, p, limit, divergence) for m, p in zip(mu, rows[horizon:], strict=True)]
        reward = [np.zeros_like(m) for m in mu]
        return PolicyPair.from_levels(tree, mu, pi, reward, validate=False).error_sup

    z = rng.normal(size=(lanes, int(ends[-1]))) * rng.choice([0.3, 1, 3, 6], size=(lanes, 1))
    best, step = value(z), np.ones(lanes)
    for k in range(rounds):
        moved = (rng.random(z.shape) < 0.3) | (rng.random((lanes, 1)) < 0.4)
        trial = np.clip(z + rng.normal(size=z.shape) * moved * step[:, None], -14, 14)
        new = value(trial)
        better = new > best
        z[better], best[better] = trial[better], new[better]
        step = np.clip(np.where(better, step * 1.3, step * 0.94), 1e-5, 4)
        if k % 150 == 149:
            order, half = np.argsort(best), lanes // 2
            z[order[:half]], best[order[:half]] = z[order[half:]], best[order[half:]]
            step[order[:half]] = np.maximum(step[order[half:]], 0.05) * rng.choice([1, 5, 20], size=half)
    return float(best.max())


def least_contraction(horizon: int, alpha: float, points: int = 800) -> float:
    """V_T(1) by V_k(z) = min_a (1−a)(1−αz)⁺ + a·V_{k−1}(z(α + (1−α)/a)), V_1 = (1−αz)⁺, on a grid."""
    z = np.linspace(0, 1 / alpha, points + 1)
    factor = 1 + np.exp(np.linspace(math.log(1e-5), math.log(50 / alpha), 3000))
    share = (1 - alpha) / (factor - alpha)
    value = np.maximum(1 - alpha * z, 0)
    for _ in range(horizon - 1):
        ahead = np.minimum(np.outer(z, factor), 1 / alpha)
        value = np.minimum(
            value, ((1 - share) * (1 - alpha * z)[:, None] + share * np.interp(ahead, z, value)).min(1)
        )
    return float(np.interp(1, z, value))


def main() -> None:
    print("sup|Error|/δ at a fixed largest divergence δ; √(T(T−1)/2) is the limit δ → 0")
    for name, divergence in (("KL(μ‖π)", forward_kl), ("KL(π‖μ)", reverse_kl)):
        for horizon in (2, 3, 4, 5):
            row = [largest_error(horizon, d, divergence) / d for d in (0.001, 0.01, 0.1, 0.3, 1.0)]
            print(
                name,
                f"T={horizon}",
                *(f"{r:.4f}" for r in row),
                f"limit {math.sqrt(horizon * (horizon - 1) / 2):.4f}",
            )
    print("least d(T_tok π, π*)/d(π, π*): T = 1 to 8, then all horizons")
    for alpha in (0.1, 0.2, 0.5, 0.9):
        row = [least_contraction(horizon, alpha) for horizon in range(1, 9)]
        print(f"α={alpha}", *(f"{r:.4f}" for r in row), f"{(1 - alpha) * alpha ** (alpha / (1 - alpha)):.4f}")


if __name__ == "__main__":
    main()
