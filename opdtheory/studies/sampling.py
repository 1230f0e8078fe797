"""Coverage and width of confidence bounds and certificates, by simulation on models whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
    """Per response of ``pair``, by certificate: the variable whose mean lies below the certified ``truth``,
    its ``mirror`` whose mean lies below ``total`` − truth, their range, and the mean of the first.
    """
    law, other = (p.sequence_law[-1].ravel() for p in (pair.behavior, pair.target))
    log_w, reward = np.log(other) - np.log(law), pair.reward.levels[-1].ravel()
    cost, everything = 1 - reward, np.ones_like(log_w)
    improvement, distance = float(pair.improvement), confidence.tv_values(log_w)
    families: dict[str, Callable[[Any], Any]] = {
        "return_truncated": lambda gain: confidence.truncated_values(log_w, gain, cap),
        "improvement_truncated": lambda gain: confidence.truncated_change_values(log_w, gain, cap),
        "improvement_log": lambda gain: confidence.log_change_values(log_w, gain, cap),
        "improvement_masked": lambda gain: confidence.masked_change_values(
            log_w, gain, everything, cap, floor
        ),
    }
    table = {"tv_seq": (distance, 1 - distance, 1.0, float(pair.tv_seq))} | {
        name: (
            values(reward),
            values(cost),
            *((1.0, float(pair.J_target)) if "return" in name else (0.0, improvement)),
        )
        for name, values in families.items()
    }
    ranges = confidence.value_ranges(1.0, cap, floor)
    return {
        name: {
            "values": z,
            "mirror": m,
            "total": total,
            "bounds": ranges[name],
            "truth": truth,
            "mean": float(law @ z),
        }
        for name, (z, m, total, truth) in table.items()
    }


def certificate_coverage(
    distances: Sequence[float] = (0.05, 0.3),
    samples: Sequence[int] = (30, 100, 300, 1000),
    repetitions: int = 2000,
    group: int = 4,
    seed: int = 0,
) -> dict[str, Any]:
    """Share of repetitions in which each certificate holds, and how far it is from the truth.

    Sides: ``lower`` and ``upper`` spend all of the error probability, ``two-sided`` half of it on each.
    ``grouped`` rows draw ``group`` responses to each of n prompts, equal in reward and weight within a
    prompt with probability ½ (dependent), and average them before bounding.  Rows of the method
    ``betting, any time`` count the repetitions in which the bound holds after every one of the sample sizes.
    ``p_value`` is the binomial probability of so few successes if coverage were exactly nominal: small values
    would refute validity.  ``gap`` is the mean distance of the bound (of the wider end) from the truth, ``slack``
    the part of it that no sample size removes.
    """
    rows = []
    for distance in distances:
        pair = model(distance)
        law = pair.behavior.sequence_law[-1].ravel()
        for name, v in certified_variables(pair).items():
            for grouped in (False, True):
                index = _draw(
                    [seed, grouped],
                    law,
                    repetitions,
                    max(samples),
                    group if grouped else 1,
                )
                both = [v[key][index].mean(axis=-1) for key in ("values", "mirror")]
                where = {
                    "distance": distance,
                    "certificate": name,
                    "grouped": grouped,
                    "slack": v["truth"] - v["mean"],
                }
                truth = v["truth"]
                for n in samples:
                    for method in confidence.METHODS:
                        for side, ends in _ends([z[:, :n] for z in both], v, method).items():
                            rows.append(
                                {**where, "samples": n, "method": method, "side": side, **_row(ends, truth)}
                            )
                ever = _every([_ends([z[:, :n] for z in both], v, "betting", planned=False) for n in samples])
                for side, ends in ever.items():
                    rows.append(
                        {
                            **where,
                            "samples": max(samples),
                            "method": ANY_TIME,
                            "side": side,
                            **_row(ends, truth),
                        }
                    )
    return {"level": LEVEL, "repetitions": repetitions, "group": group, "rows": rows}


ANY_TIME = "betting, any time"
Ends = dict[str, tuple[np.ndarray, np.ndarray]]


def _ends(both: Sequence[np.ndarray], v: dict[str, Any], method: str, **options: Any) -> Ends:
    """Lower and upper end of the certificate in every repetition, by side; infinite where it is open."""

    def low(z: np.ndarray, delta: float) -> np.ndarray:
        found = confidence.interval(
            z, method, confidence=1 - delta, bounds=v["bounds"], side="lower", **options
        )
        return np.asarray(found.lower)

    delta, (z, mirror) = 1 - LEVEL, both
    open_end = np.full(len(z), np.inf)
    return {
        "lower": (low(z, delta), open_end),
        "upper": (-open_end, v["total"] - low(mirror, delta)),
        "two-sided": (low(z, delta / 2), v["total"] - low(mirror, delta / 2)),
    }


def _every(ends: Sequence[Ends]) -> Ends:
    """What holds if all of the bounds do: the highest lower and the lowest upper end."""
    return {
        side: (np.max([e[side][0] for e in ends], axis=0), np.min([e[side][1] for e in ends], axis=0))
        for side in ends[0]
    }


def _row(ends: tuple[np.ndarray, np.ndarray], truth: float) -> dict[str, float]:
    low, high = ends
    hits = int(np.count_nonzero((low <= truth) & (truth <= high)))
    off = [z for z in (truth - low, high - truth) if np.isfinite(z).all()]
    return {
        "coverage": hits / len(low),
        "p_value": float(stats.binom.cdf(hits, len(low), LEVEL)),
        "gap": float(np.mean(np.max(off, axis=0))),
    }


def _draw(seed: Sequence[int], law: np.ndarray, repetitions: int, n: int, group: int) -> np.ndarray:
    """Responses (repetitions, n, group), each member of a group a copy of the first with chance ½.

    The first of them are the same whatever n is.
    """
    first, second = (np.random.default_rng([*seed, part]) for part in (0, 1))
    index = first.choice(len(law), size=(n, repetitions, group), p=law / law.sum()).swapaxes(0, 1)
    copied = second.random((n, repetitions, group)).swapaxes(0, 1) < 0.5
    return np.where(copied, index[..., :1], index)


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
            z = v["values"][_draw([n], law, repetitions, n, 1)].mean(axis=-1)
            for method in confidence.METHODS:
                ends = confidence.interval(z, method, confidence=LEVEL, bounds=v["bounds"])
                width = float(np.mean(ends.upper - ends.lower))
                rows.append(
                    {"certificate": name, "samples": n, "method": method, "width": width, "sd": spread}
                )
    return {"distance": distance, "level": LEVEL, "rows": rows}
