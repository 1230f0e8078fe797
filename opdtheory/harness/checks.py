"""What is wrong with the settings of a real-model experiment, said before a model is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from . import gradients, improve, models, objectives, tasks
from .rollouts import Sampler
from .settings import SCENARIOS

WHOLE = {
    "seed": 0, "samples": 1, "max_tokens": 1, "chunk": 1, "steps": 1, "prompts_per_step": 1, "group": 1, "topk": 1,
    "guided_tokens": 0, "evaluation_prompts": 1, "evaluation_tokens": 1, "checkpoint_every": 1, "sequences": 3,
    "block": 2, "sketch": 1, "epochs": 1, "minibatches": 1, "batch": 1,
}  # fmt: skip
"""Whole numbers and the least each may be."""

RANGES = {
    "temperature": (0.0, math.inf), "top_p": (0.0, 1.0), "learning_rate": (0.0, math.inf), "max_norm": (0.0, math.inf),
    "weight_decay": (0.0, math.inf), "alpha": (0.0, 1.0), "lambda": (0.0, 1.0), "beta_guidance": (0.0, math.inf),
    "tau": (-math.inf, 0.0), "entropy_tau": (0.0, math.inf),
}  # fmt: skip
"""Real numbers and the interval each lies in."""


def check(name: str, config: Mapping[str, Any]) -> None:
    """Raise ValueError naming the setting, its value and what was expected."""
    numbers(config)
    for role in ("student", "teacher"):
        if role in config:
            models.check_spec(config[role], role)
    if not isinstance(config.get("prompts", 1), int):
        _prompts(config["prompts"])
    elif name in ("mismatch", "gradients"):
        tasks.general(config["prompts"])
    {"mismatch": _mismatch, "gradients": _gradients, "distill": _distill, "improve": _improve}[name](config)


def numbers(config: Mapping[str, Any]) -> None:
    """Every number of a configuration is of its kind and inside its interval."""
    for key, least in WHOLE.items():
        value = config.get(key, least)
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{key} {value!r}: expected a whole number, at least {least}")
    for key, (low, high) in RANGES.items():
        value = config.get(key, high)
        if math.isnan(value) or not low <= value <= high:
            raise ValueError(f"{key} {value!r}: expected a number from {low:g} to {high:g}")


def _prompts(prompts: Sequence[Any]) -> None:
    for i, prompt in enumerate(prompts):
        ids = isinstance(prompt, list) and all(isinstance(t, int) and t >= 0 for t in prompt)
        if not prompt or not (ids or isinstance(prompt, str)):
            raise ValueError(f"prompts[{i}] {prompt!r}: expected a text or a list of token ids")
    if not prompts:
        raise ValueError("prompts []: expected at least one")


def _named(setting: str, given: Sequence[Any], known: Sequence[str]) -> None:
    unknown = [x for x in given if x not in known]
    if unknown or not given:
        raise ValueError(f"{setting}: unknown {unknown}; expected some of {list(known)}")


def _mismatch(config: Mapping[str, Any]) -> None:
    _named("scenarios", config["scenarios"], list(SCENARIOS))
    Sampler(config["temperature"], config["top_p"], 0, config["max_tokens"], config["seed"])


def _gradients(config: Mapping[str, Any]) -> None:
    gradients.check_space(config["space"])
    if config["sequences"] % config["block"] or config["sequences"] < 3 * config["block"]:
        raise ValueError(
            f"sequences {config['sequences']} in blocks of {config['block']}: expected at least 3 whole blocks"
        )
    for key, low, high in (("alphas", 0.0, 1.0), ("lambdas", 0.0, 1.0), ("sample_sizes", 1, math.inf)):
        bad = [x for x in config[key] if not isinstance(x, int | float) or not low <= x <= high]
        if bad or not config[key]:
            raise ValueError(f"{key} {bad or []}: expected numbers from {low:g} to {high:g}")


def _distill(config: Mapping[str, Any]) -> None:
    _named("methods", config["methods"], list(objectives.METHODS))
    most = len(tasks.GENERAL) - 1
    if config["evaluation_prompts"] > most:
        raise ValueError(f"evaluation_prompts {config['evaluation_prompts']}: expected 1..{most}")


def _improve(config: Mapping[str, Any]) -> None:
    _named("methods", config["methods"], list(improve.METHODS))
    for key in ("prompts", "evaluation_prompts"):
        tasks.make_task(config["task"], config[key], config["seed"])
    kind = config["rollout"]["kind"]
    if kind not in ("torch", "llamacpp"):
        raise ValueError(f"engine kind {kind!r}: expected 'torch' or 'llamacpp'")
