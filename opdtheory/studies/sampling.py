"""Coverage and width of confidence bounds and certificates, by simulation on models whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from opdtheory import confidence
from opdtheory.tabular.pair import PolicyPair
from opdtheory.tabular.policy import Policy
from opdtheory.tabular.tree import TokenTree

LEVEL = 0.95


def model(distance: float, vocab: int = 3, horizon: int = 4, seed: int = 0) -> PolicyPair:
    """A random pair at the given mixing distance with a Bernoulli reward table."""
    tree = TokenTree(vocab=vocab, horizon=horizon)
    rng = np.random.default_rng(seed)
    mu, other = (Policy.random(tree, seed=rng, concentration=1.0) for _ in range(2))
    reward: list[np.ndarray] = [np.zeros(tree.level_shape(t)) for t in range(horizon)]
    reward[-1] = (rng.random(tree.level_shape(horizon - 1)) < 0.4) * 1.0
    return PolicyPair.from_levels(tree, mu.levels, Policy.mixture(other, mu, distance).levels, reward)


def certified_variables(pair: PolicyPair, cap: float = 2.0, floor: float = 1.0) -> dict[str, dict[str, Any]]:
    """Per response of ``pair``: each certified variable, its range, its mean and the exact quantity it
    certifies.
    """
    law, other = (p.sequence_law[-1].ravel() for p in (pair.behavior, pair.target))
    log_w, reward = np.log(other) - np.log(law), pair.reward.levels[-1].ravel()
    mask = np.ones_like(log_w)
    improvement = float(pair.improvement)
    top = math.log(cap)
    table = {
        "tv_seq": (confidence.tv_values(log_w), (0.0, 1.0), float(pair.tv_seq)),
        "return_truncated": (
            confidence.truncated_values(log_w, reward, cap),
            (0.0, cap),
            float(pair.J_target),
        ),
        "improvement_truncated": (
            confidence.truncated_change_values(log_w, reward, cap),
            (-1.0, cap - 1),
            improvement,
        ),
        "improvement_log": (confidence.log_change_values(log_w, reward, cap), (-1.0, top), improvement),
        "improvement_masked": (
            confidence.masked_change_values(log_w, reward, mask, cap, floor),
            (-max(1.0, floor), top),
            improvement,
        ),
    }
    return {
        name: {"values": z, "bounds": b, "truth": truth, "mean": float(law @ z)}
        for name, (z, b, truth) in table.items()
    }


def certificate_coverage(
    distances: Sequence[float] = (0.05, 0.3),
    samples: Sequence[int] = (30, 100, 300, 1000),
    repetitions: int = 2000,
    group: int = 4,
    seed: int = 0,
) -> dict[str, Any]:
    """Share of repetitions in which each one-sided certificate holds, and how far it is from the truth.

    ``grouped`` rows draw ``group`` responses to each of n prompts, equal in reward and weight within a
    prompt with probability ½ (dependent), and average them before bounding.  ``p_value`` is the
    binomial probability of so few successes if coverage were exactly nominal: small values would refute
    validity.
    """
    rows = []
    for distance in distances:
        pair = model(distance)
        law = pair.behavior.sequence_law[-1].ravel()
        for name, v in certified_variables(pair).items():
            for n in samples:
                rng = np.random.default_rng([seed, n])
                for grouped in (False, True):
                    z = _draw(rng, v["values"], law, repetitions, n, group if grouped else 1)
                    for method in confidence.METHODS:
                        ends = confidence.interval(
                            z, method, confidence=LEVEL, bounds=v["bounds"], side="lower"
                        )
                        hits = int(np.count_nonzero(ends.lower <= v["truth"]))
                        rows.append(
                            {
                                "distance": distance,
                                "certificate": name,
                                "samples": n,
                                "grouped": grouped,
                                "method": method,
                                "coverage": hits / repetitions,
                                "p_value": float(stats.binom.cdf(hits, repetitions, LEVEL)),
                                "gap": float(np.mean(v["truth"] - ends.lower)),
                                "slack": v["truth"] - v["mean"],
                                "width": float(np.mean(v["mean"] - ends.lower)),
                            }
                        )
    return {"level": LEVEL, "repetitions": repetitions, "group": group, "rows": rows}


def _draw(
    rng: np.random.Generator, values: np.ndarray, law: np.ndarray, repetitions: int, n: int, group: int
) -> np.ndarray:
    """Samples (repetitions, n): single draws, or means over groups whose members copy the first with
    chance ½.
    """
    index = rng.choice(len(law), size=(repetitions, n, group), p=law / law.sum())
    copied = rng.random(index.shape) < 0.5
    return values[np.where(copied, index[..., :1], index)].mean(axis=-1)


def width_over_samples(
    distance: float = 0.1, samples: Sequence[int] = (10, 30, 100, 300, 1000, 3000), repetitions: int = 200
) -> dict[str, Any]:
    """Two-sided width of each method on the TV and return certificates, over the number of samples."""
    pair = model(distance)
    law = pair.behavior.sequence_law[-1].ravel()
    rows = []
    for name in ("tv_seq", "return_truncated", "improvement_truncated"):
        v = certified_variables(pair)[name]
        spread = math.sqrt(max(0.0, float(law @ v["values"] ** 2) - v["mean"] ** 2))
        for n in samples:
            z = _draw(np.random.default_rng(n), v["values"], law, repetitions, n, 1)
            for method in confidence.METHODS:
                ends = confidence.interval(z, method, confidence=LEVEL, bounds=v["bounds"])
                width = float(np.mean(ends.upper - ends.lower))
                rows.append(
                    {"certificate": name, "samples": n, "method": method, "width": width, "sd": spread}
                )
    return {"distance": distance, "level": LEVEL, "rows": rows}
