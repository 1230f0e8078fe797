"""Rollout engine against training forward: exact per-token divergences, and what every estimator and bound
makes of them.

The rollout policy μ is what really drew the tokens, temperature and truncation included; the trainer's policy
π is read at the same temperature and never truncated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..experiments import Run
from . import counterparts, llamacpp, models, reports, tasks
from .compare import compare
from .engines import Engine, TorchEngine
from .evidence import evidence
from .rollouts import Rollouts, Sampler, export
from .settings import SCENARIOS
from .statistics import NAMES, estimators, mask_rates, metrics

SMALLEST = 1e-9
"""KL per token below which a tabular counterpart would only show rounding."""


def mismatch(run: Run) -> dict[str, Any]:
    """Measure every scenario of the configuration and conclude."""
    config = run.config
    sampler = Sampler(config["temperature"], config["top_p"], 0, config["max_tokens"], config["seed"])
    engines = Engines(config["student"])
    reasons = {name: engines.unavailable(SCENARIOS[name][0]) for name in config["scenarios"]}
    skipped = {name: reason for name, reason in reasons.items() if reason}
    model = engines.language_model({})
    prompts = tasks.encode_prompts(model, config["prompts"])
    models.check_context(model, prompts, config["max_tokens"])
    engines.context = max(map(len, prompts)) + config["max_tokens"]
    for name, reason in skipped.items():
        run.say(f"{name}: skipped, {reason}")
    results = {}
    for name in run.track([n for n in config["scenarios"] if n not in skipped], "mismatch"):
        path = run.folder("rollouts") / f"{name.replace(' ', '-').replace('.', '')}.npz"
        if not (run.resume and path.exists()):
            rollout, train = (engines.get(description) for description in SCENARIOS[name])
            export(measure(rollout, train, prompts, config, sampler), path)
        results[name] = conclude(read_arrays(path))
    exact = {
        name: counterparts.mismatch(max(r["metrics"]["kl_rollout_train/mean"], SMALLEST), config["seed"])
        for name, r in results.items()
    }
    return {
        "results": results,
        "skipped": skipped,
        "tabular": exact,
        "report": reports.mismatch(results, skipped, exact),
    }


def measure(
    rollout: Engine, train: Engine, prompts: list[list[int]], config: Mapping[str, Any], sampler: Sampler
) -> Rollouts:
    """Responses of the rollout engine with the exact comparison to the training forward under field names;
    the reward is 1 where a response ended by itself.
    """
    drawn = rollout.generate(prompts, sampler, config["samples"])
    stats = compare(rollout, train, drawn.prompts, drawn.responses, drawn.tokens, config["chunk"], sampler)
    arrays = {new: stats[old] for old, new in NAMES.items()}
    arrays |= {
        "log_probs": stats["log_q"],
        "rollout_entropy": stats["entropy_p"],
        "entropy": stats["entropy_q"],
        "max_log_ratio": stats["max_log_ratio"],
        "mean_ratio": stats["mean_ratio"],
        "replay_drift": np.abs(stats["log_p"] - drawn.rollout_log_probs).max(-1),
    }
    return drawn.with_(rewards=drawn.ended.astype(float), **arrays)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an exported ``.npz`` file."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def conclude(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Everything said about one comparison, from its arrays alone."""
    mask, settings = arrays["response_mask"] > 0, json.loads(str(arrays["settings"]))
    return {
        "sequences": int(mask.shape[0]),
        "tokens": int(mask.sum()),
        "replay_drift": float(arrays["replay_drift"].max()),
        "settings": settings,
        "metrics": metrics(arrays),
        "estimators": estimators(arrays),
        "masks": mask_rates(arrays),
        "evidence": evidence(
            {
                "mask": mask,
                "log_mu": arrays["rollout_log_probs"],
                "log_pi": arrays["log_probs"],
                "tv": arrays["tv"],
                "kl": arrays["kl_rollout_train"],
                "reverse_kl": arrays["kl_train_rollout"],
                "chi2": arrays["chi2_train_rollout"],
            },
            arrays["rewards"],
            arrays["prompt_id"],
            settings["max_tokens"],
        ),
    }


class Engines:
    """Engines by their description, each model loaded once; the second engine only where it can run.

    ``context`` is the longest sequence the second engine must hold.
    """

    context = 1024

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.spec = dict(spec)
        self.models: dict[str, models.LanguageModel] = {}
        self.llama: llamacpp.LlamaCppEngine | None = None

    def unavailable(self, description: Mapping[str, Any]) -> str | None:
        """Why an engine cannot run here, or None."""
        if description.get("kind") != "llamacpp":
            return None
        path = self.spec.get("path")
        if not llamacpp.available():
            return "xllamacpp is not installed (pip install 'opdtheory[engines]')"
        if path is not None and Path(path).suffix != ".gguf":
            return f"llama.cpp needs a GGUF file, the model is {path}"
        changed = [k for k in ("drop_layers", "noise", "weight_bits") if self.spec.get(k)]
        return f"llama.cpp cannot run a derived model ({', '.join(changed)})" if changed else None

    def language_model(self, change: Mapping[str, Any]) -> models.LanguageModel:
        """The configured model with some keys of its description replaced."""
        spec = {**self.spec, **change}
        key = json.dumps(spec, sort_keys=True, default=str)
        if key not in self.models:
            self.models[key] = models.build(spec)
        return self.models[key]

    def get(self, description: Mapping[str, Any]) -> Engine:
        """The engine a description asks for."""
        if description.get("kind") == "llamacpp":
            if self.llama is None:
                self.llama = llamacpp.LlamaCppEngine(self.spec.get("path"), context=self.context)
            return self.llama
        description = {k: v for k, v in description.items() if k != "kind" and v is not None}
        own = {k: v for k, v in description.items() if k in ("mode", "batch", "kv_bits")}
        return TorchEngine(self.language_model({k: v for k, v in description.items() if k not in own}), **own)
