"""Collapse of off-policy reward training under rollout mismatch: methods, mismatches, learning rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from opdtheory.gradients import LinearLogits
from opdtheory.simulate import measures as ms
from opdtheory.simulate.figure_data import lines, report
from opdtheory.simulate.optimisers import Gradient
from opdtheory.simulate.rollouts import Rollout
from opdtheory.simulate.signals import Terminal, World
from opdtheory.simulate.students import LinearStudent
from opdtheory.simulate.train import Algorithm, train
from opdtheory.simulate.weights import MaskedSequences, NegativeDrop, Unified, Weight
from opdtheory.tabular import Reward, TokenTree

__all__ = ["METHODS", "MISMATCHES", "collapse_cell", "collapse_report", "pooled"]

METHODS: Mapping[str, Weight] = {
    "PG-IS": Unified("pg_is"),
    "CISPO": Unified("cispo"),
    "GRPO clip-higher": Unified("grpo_clip_higher"),
    "MiniRL": Unified("minirl"),
    "DPPO binary TV": Unified("dppo_binary_tv"),
    "DPPO binary KL": Unified("dppo_binary_kl"),
    "DPPO binary KL, decoupled": Unified("dppo_binary_kl", anchor="old"),
    "negative drop 0.5": NegativeDrop(0.5),
    "TRM, max KL 0.05": MaskedSequences(delta_max=0.05),
}
"""The off-policy rules compared in the collapse study, with the thresholds of their sources (that of trust
region masking is ours).
"""


def collapse_world(
    prompts: int, vocab: int, horizon: int, features: int, seed: int
) -> tuple[World, LinearStudent]:
    """Prompts that share parameters: a random 0/1 reward on responses, Gaussian features of the logits."""
    rng = np.random.default_rng(seed)
    tree = TokenTree(vocab, horizon, prompts=prompts)
    feature = [rng.normal(size=(tree.contexts(t), vocab, features)) for t in range(horizon)]
    levels: list[np.ndarray] = [np.zeros(tree.level_shape(t)) for t in range(horizon)]
    levels[-1] = (rng.random(tree.level_shape(horizon - 1)) < 0.3) * 1.0
    return World(tree, reward=Reward.from_levels(tree, levels)), LinearStudent(LinearLogits(tree, feature))


MISMATCHES: Mapping[str, Rollout] = {
    "none": Rollout(),
    "flips": Rollout(flip=0.2, flip_scale=3.0),
    "rounding": Rollout(bits=2),
    "stale": Rollout(stale=4),
}
"""Rollout laws of the collapse study."""

MISMATCH_TEXT: Mapping[str, str] = {
    "none": "the student itself",
    "flips": "normal noise of size 3 on the logits of one context in five, drawn afresh at every step",
    "rounding": "logits rounded to 2 significant binary digits",
    "stale": "the student of 4 steps ago",
}
"""What the captions call them."""


def collapse_cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    """One method, learning rate and mismatch: returns over many sampled runs, as one row of a table.

    Keys: method, mismatch, rate, epochs, seeds, steps, seed and the world's prompts, vocab, horizon,
    features.
    ``collapsed`` is the share of runs whose final return is below 70 % of their best.
    """
    world, student = collapse_world(
        cell["prompts"], cell["vocab"], cell["horizon"], cell["features"], cell["seed"]
    )
    algorithm = Algorithm(
        Terminal(normalise=True),
        METHODS[cell["method"]],
        Gradient(cell["rate"]),
        MISMATCHES[cell["mismatch"]],
        epochs=cell["epochs"],
        responses=8,
        prompts=2,
    )
    measures = {
        **ms.REWARD,
        "tv_step": ms.ROLLOUT["tv_rollout_max"],
        "mismatch_tv": ms.ROLLOUT["mismatch_tv"],
        "violation": lambda s: ms.context_share_above(s.rollout, s.after, "tv", 0.15),
        **ms.BASIC,
    }
    start = student.start(np.zeros(cell["features"]), cell["seeds"])
    every = max(cell["steps"] // 20, 1)
    run = train(
        world, student, start, algorithm, cell["steps"], measures=measures, every=every, seed=cell["seed"]
    )
    j = run["J"]
    return {
        **_summary(j),
        "entropy": float(run["entropy"][-1].mean()),
        "kept": float(run["kept"][1:].mean()),
        "violation": float(run["violation"][1:].mean()),
        "mismatch_tv": float(run["mismatch_tv"][1:].mean()),
        "at": run.at.tolist(),
        "returns": j.tolist(),
    }


def _summary(j: np.ndarray) -> dict[str, float]:
    """Of expected rewards (records, runs): mean, 5th percentile and share of collapsed runs at the end."""
    return {
        "final_mean": float(j[-1].mean()),
        "final_worst": float(np.quantile(j[-1], 0.05)),
        "collapsed": float(np.mean(j[-1] < 0.7 * j.max(axis=0))),
    }


def pooled(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per mismatch, method and rate: all runs of all worlds together."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["mismatch"], row["method"], row["rate"]), []).append(row)
    out = []
    for (mismatch, method, rate), members in groups.items():
        j = np.concatenate([np.array(row["returns"]) for row in members], axis=1)
        means = {
            key: float(np.mean([row[key] for row in members]))
            for key in ("entropy", "kept", "violation", "mismatch_tv")
        }
        curves = {"curve": j.mean(axis=1).tolist(), "worst_curve": np.quantile(j, 0.05, axis=1).tolist()}
        head = {"mismatch": mismatch, "method": method, "rate": rate, "runs": j.shape[1]}
        out.append({**head, **_summary(j), **means, "at": members[0]["at"], **curves})
    return out


def collapse_report(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of pooled rows: for every method and mismatch the rate with the best worst case, and the curves."""
    tuned: list[Mapping[str, Any]] = []
    for mismatch in dict.fromkeys(row["mismatch"] for row in rows):
        for method in dict.fromkeys(row["method"] for row in rows):
            mine = [row for row in rows if (row["mismatch"], row["method"]) == (mismatch, method)]
            tuned.append(max(mine, key=lambda row: row["final_worst"]))
    figures = []
    for mismatch in dict.fromkeys(row["mismatch"] for row in rows):
        here = [row for row in rows if row["mismatch"] == mismatch]
        rates = sorted({row["rate"] for row in here})
        middle = rates[len(rates) // 2]
        chosen = [row for row in here if row["rate"] == middle]
        figures.append(
            lines(
                f"Return under mismatch {mismatch}",
                {row["method"]: row["worst_curve"] for row in chosen},
                at=chosen[0]["at"],
                x="step",
                y="expected reward, 5th percentile over runs",
                estimated=[row["method"] for row in chosen],
                caption=f"""{chosen[0]["runs"]} sampled runs a curve, over several random worlds, plain
                gradient of rate {middle:g}; each run's expected reward is exact. Rollout policy:
                {MISMATCH_TEXT[mismatch]}.""",
            )
        )
    columns = ["mismatch", "method", "rate", "final_mean", "final_worst", "collapsed", "kept", "violation"]
    table = {
        "caption": "Each method at the rate with its best worst case",
        "columns": columns,
        "rows": [[row[c] for c in columns] for row in tuned],
    }
    return {"tuned": [dict(row) for row in tuned], "report": report(*figures, tables=[table])}
