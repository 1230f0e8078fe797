"""One run of any preset from a configuration file: the experiment ``simulate``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from opdtheory.gradients import LinearLogits
from opdtheory.simulate import measures as ms
from opdtheory.simulate.figure_data import lines, report
from opdtheory.simulate.presets import exact, optimiser, preset, rollout_law
from opdtheory.simulate.signals import Terminal, World
from opdtheory.simulate.students import LinearStudent, TabularStudent
from opdtheory.simulate.train import train
from opdtheory.tabular import Policy, Reward, TokenTree

__all__ = ["run"]


def run(**config: Any) -> dict[str, Any]:
    """Every exact measurement along the run: mean and 5–95 % range over the seeds.

    Raises ValueError for a setting of the wrong kind, and for worlds that do not fit in memory.
    """
    for name in ("epochs", "responses", "prompts"):
        _whole(name, config[name], optional=True)
    for name in ("steps", "every", "seeds"):
        _whole(name, config[name])
    _whole("world.features", config["world"]["features"], optional=True)
    world, student, start = _world(config["world"], config["seeds"])
    algorithm = preset(config["algorithm"])
    given = {key: config[key] for key in ("epochs", "responses", "prompts") if config[key] is not None}
    if algorithm.responses is None:
        given.setdefault("responses", 8)
    if given.get("prompts", algorithm.prompts) < algorithm.minibatches:
        given["minibatches"] = given["prompts"]
    algorithm = replace(algorithm, **given)
    if config["exact"]:
        algorithm = exact(algorithm)
    settings = {"rate": 1.0, **config["optimiser"]["settings"]}
    algorithm = replace(
        algorithm,
        optimiser=optimiser(config["optimiser"]["kind"], **settings),
        rollout=rollout_law(**config["rollout"]),
    )
    measures = {**ms.BASIC, **ms.TEACHER, **ms.REWARD, **ms.ROLLOUT, **ms.pair_measures(config["delta"])}
    if config["gradient_moments"]:
        measures |= ms.update_measures(student, algorithm)
    history = train(
        world,
        student,
        start,
        algorithm,
        config["steps"],
        measures=measures,
        every=config["every"],
        seed=config["seed"],
    )
    values = {
        name: {
            "mean": v.mean(axis=1),
            # order statistics: interpolation has no answer beside an infinite value
            "low": np.quantile(v, 0.05, axis=1, method="inverted_cdf"),
            "high": np.quantile(v, 0.95, axis=1, method="inverted_cdf"),
        }
        for name, v in history.values.items()
    }
    reward = isinstance(algorithm.signal, Terminal)
    shown, unit = ("J", "expected reward") if reward else ("kl_student_teacher", "KL(student‖teacher), nats")
    series = {"mean": values[shown]["mean"].tolist()}
    if not config["exact"]:
        series |= {"5%": values[shown]["low"].tolist(), "95%": values[shown]["high"].tolist()}
    figure = lines(
        f"{config['algorithm']}: {unit}",
        series,
        at=history.at.tolist(),
        x="step",
        y=unit,
        estimated=[] if config["exact"] else list(series),
        caption=f"""{"Exact expected updates" if config["exact"] else "Sampled updates"}; the value of each
        run is exact.""",
    )
    return {"at": history.at, "measured": values, "report": report(figure)}


def _whole(name: str, value: Any, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(
            f"{name}: got {value!r}, expected a positive integer{' or none' if optional else ''}"
        )


def _world(settings: Mapping[str, Any], seeds: int) -> tuple[World, Any, np.ndarray]:
    """Random teacher, 0/1 reward on the endings and student, repeated for every seed."""
    tree = TokenTree(settings["vocab"], settings["horizon"], settings["eos"], settings["prompts"])
    tree.check_memory(seeds, tables=20)
    rng = np.random.default_rng(settings["seed"])
    teacher = Policy.random(tree, seed=rng, concentration=settings["teacher_concentration"])
    levels = []
    for t in range(tree.horizon):
        ends = np.arange(tree.vocab) == tree.eos if t < tree.horizon - 1 else np.ones(tree.vocab, dtype=bool)
        levels.append((rng.random(tree.level_shape(t)) < settings["reward_share"]) * ends * 1.0)
    world = World(tree, teacher, Reward.from_levels(tree, levels))
    count = settings["features"]
    if count is None:
        tabular = TabularStudent(tree)
        policy = Policy.random(tree, seed=rng, concentration=settings["student_concentration"])
        return world, tabular, tabular.start(policy, seeds)
    features = [rng.normal(size=(tree.contexts(t), tree.vocab, count)) for t in range(tree.horizon)]
    shared = LinearStudent(LinearLogits(tree, features))
    return world, shared, shared.start(rng.normal(size=count) / np.sqrt(count), seeds)
