"""Rollout engine against training forward: exact per-token divergences, and what every estimator and bound
makes of them.

The rollout policy μ is the engine's untempered softmax, the trainer's policy is π; with the default sampler
(temperature 1, no truncation) μ is what really drew the tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import divergences, masks
from ..experiments import Run
from . import counterparts, llamacpp, models, reports, tasks
from .compare import compare
from .engines import Engine, TorchEngine
from .evidence import evidence
from .rollouts import Rollouts, Sampler, export
from .settings import SCENARIOS

SMALLEST = 1e-9
"""KL per token below which a tabular counterpart would only show rounding."""

NAMES = {
    "tv": "tv",
    "kl_pq": "kl_rollout_train",
    "kl_qp": "kl_train_rollout",
    "chi2_qp": "chi2_train_rollout",
    "jsd": "jsd",
    "hellinger2": "hellinger2",
}
"""Statistic of ``compare`` → metric name."""


def mismatch(run: Run) -> dict[str, Any]:
    """Measure every scenario of the configuration and conclude."""
    config = run.config
    unknown = [s for s in config["scenarios"] if s not in SCENARIOS]
    if unknown:
        raise ValueError(f"scenarios: unknown {unknown}; expected some of {list(SCENARIOS)}")
    sampler = Sampler(config["temperature"], config["top_p"], 0, config["max_tokens"], config["seed"])
    engines = Engines(config["student"], config["max_tokens"])
    results, skipped = {}, {}
    for name in run.track(config["scenarios"], "mismatch"):
        reason = engines.unavailable(SCENARIOS[name][0])
        if reason:
            skipped[name] = reason
            run.say(f"{name}: skipped, {reason}")
            continue
        path = run.out / f"{name.replace(' ', '-').replace('.', '')}.npz"
        if not (run.resume and path.exists()):
            measure(engines, *SCENARIOS[name], config, sampler, path)
        results[name] = conclude(read_arrays(path))
    exact = {
        name: counterparts.step(max(r["metrics"]["kl_rollout_train/mean"], SMALLEST), config["seed"])
        for name, r in results.items()
    }
    return {
        "results": results,
        "skipped": skipped,
        "tabular": exact,
        "report": reports.mismatch(results, skipped, exact),
    }


def measure(
    engines: Engines,
    rollout_spec: Mapping[str, Any],
    train_spec: Mapping[str, Any],
    config: Mapping[str, Any],
    sampler: Sampler,
    path: Path,
) -> None:
    """Sample from the rollout engine, compare with the training forward, and store the arrays at ``path``."""
    rollout, train = engines.get(rollout_spec), engines.get(train_spec)
    model = engines.language_model({})
    prompts = tasks.encode_prompts(model, config["prompts"])
    models.check_context(model, prompts, config["max_tokens"])
    sampled = rollout.generate(prompts, sampler, config["samples"])
    stats = compare(rollout, train, sampled.prompts, sampled.responses, sampled.tokens, config["chunk"])
    drift = np.abs(stats["log_p"] - sampled.raw_log_probs).max(-1)
    export(with_statistics(sampled, stats).with_(replay_drift=drift), path)


def with_statistics(sampled: Rollouts, stats: Mapping[str, np.ndarray]) -> Rollouts:
    """Rollouts carrying the comparison under field names; reward 1 where the response ended by itself."""
    arrays = {new: stats[old] for old, new in NAMES.items()}
    arrays |= {
        "log_probs": stats["log_q"],
        "rollout_entropy": stats["entropy_p"],
        "entropy": stats["entropy_q"],
        "max_log_ratio": stats["max_log_ratio"],
    }
    return sampled.with_(rewards=sampled.ended.astype(float), **arrays)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an exported ``.npz`` file."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def conclude(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Everything said about one comparison, from its arrays alone."""
    mask = arrays["response_mask"] > 0
    log_ratio = np.where(mask, arrays["log_probs"] - arrays["raw_log_probs"], 0.0)
    ratio = np.exp(log_ratio[mask])
    per_sequence = {n: np.where(mask, arrays[n], 0.0).sum(-1) for n in NAMES.values()}
    metrics: dict[str, float] = {
        "log_ratio_abs/mean": float(np.abs(log_ratio[mask]).mean()),
        "log_ratio_abs/max": float(np.abs(log_ratio[mask]).max()),
        "log_ratio_vocabulary/max": float(arrays["max_log_ratio"][mask].max()),
    }
    for name in NAMES.values():
        metrics |= {
            f"{name}/mean": float(arrays[name][mask].mean()),
            f"{name}/max": float(arrays[name][mask].max()),
            f"{name}/seq_sum_mean": float(per_sequence[name].mean()),
        }
    exact = metrics["kl_rollout_train/mean"]
    estimators = {
        name: _estimate(f(ratio), exact)
        for name, f in (("k1", divergences.k1), ("k2", divergences.k2), ("k3", divergences.k3))
    }
    estimators["mean ratio"] = _estimate(ratio, 1.0)
    return {
        "sequences": int(mask.shape[0]),
        "tokens": int(mask.sum()),
        "replay_drift": float(arrays["replay_drift"].max()),
        "settings": json.loads(str(arrays["settings"])),
        "metrics": metrics,
        "estimators": estimators,
        "masks": mask_rates(arrays, log_ratio, mask),
        "evidence": evidence(
            {
                "mask": mask,
                "log_mu": arrays["raw_log_probs"],
                "log_pi": arrays["log_probs"],
                "tv": arrays["tv"],
                "kl": arrays["kl_rollout_train"],
                "reverse_kl": arrays["kl_train_rollout"],
                "chi2": arrays["chi2_train_rollout"],
            },
            arrays["rewards"],
            arrays["prompt_id"],
            json.loads(str(arrays["settings"]))["max_tokens"],
        ),
    }


def mask_rates(
    arrays: Mapping[str, np.ndarray], log_ratio: np.ndarray, mask: np.ndarray
) -> dict[str, dict[str, float]]:
    """The share of tokens and sequences that each mask keeps, for advantages of either sign."""
    pi, mu = arrays["log_probs"], arrays["raw_log_probs"]
    shape = mask.shape
    kept: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "ppo 0.2": lambda a: masks.ppo(pi, mu, a, mask),
        "dppo binary TV 0.15": lambda a: masks.method_mask("dppo_binary_tv", pi, mu, a, mask),
        "dppo binary KL 0.05": lambda a: masks.method_mask("dppo_binary_kl", pi, mu, a, mask),
        "dppo exact TV 0.15": lambda a: masks.dppo(pi, mu, a, arrays["tv"], mask, delta=0.15),
        "dppo exact KL 0.05": lambda a: masks.dppo(pi, mu, a, arrays["kl_rollout_train"], mask, delta=0.05),
        "icepop": lambda _: masks.icepop(pi, mu, mask),
        "opsm 0.5": lambda a: masks.opsm(pi, mu, a, mask),
        "opsm 1e-4": lambda a: masks.opsm(pi, mu, a, mask, delta=1e-4),
        "trm sampled 0.05": lambda _: masks.trm(pi, mu, mask, delta_max=0.05)[:, None] & mask,
        "trm sampled k3 0.002": lambda _: masks.trm(pi, mu, mask, delta_avg=0.002)[:, None] & mask,
        "trm exact KL 0.05": lambda _: (
            masks.trm_from_divergence(arrays["kl_rollout_train"], mask, delta_max=0.05)[:, None] & mask
        ),
    }
    rates = {}
    for name, f in kept.items():
        both = [np.broadcast_to(f(np.full(shape, sign)), shape) for sign in (1.0, -1.0)]
        whole = [np.all(k | ~mask, axis=-1) for k in both]
        rates[name] = {
            "tokens_kept_positive": float(both[0][mask].mean()),
            "tokens_kept_negative": float(both[1][mask].mean()),
            "sequences_kept": float((whole[0] & whole[1]).mean()),
        }
    return rates


def _estimate(values: np.ndarray, exact: float) -> dict[str, float]:
    """Sample mean with its standard error beside the exact value averaged over the same contexts."""
    error = float(values.std(ddof=1) / np.sqrt(values.size)) if values.size > 1 else float("inf")
    return {"mean": float(values.mean()), "standard_error": error, "exact": exact}


class Engines:
    """Engines by their description, each model loaded once; the second engine only where it can run."""

    def __init__(self, spec: Mapping[str, Any], max_tokens: int) -> None:
        self.spec, self.max_tokens = dict(spec), max_tokens
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
                self.llama = llamacpp.LlamaCppEngine(self.spec.get("path"), context=self.max_tokens + 512)
            return self.llama
        if description.get("kind", "torch") not in (None, "torch"):
            raise ValueError(f"engine kind {description['kind']!r}: expected 'torch' or 'llamacpp'")
        description = {k: v for k, v in description.items() if k != "kind" and v is not None}
        own = {k: v for k, v in description.items() if k in ("mode", "batch", "kv_bits")}
        return TorchEngine(self.language_model({k: v for k, v in description.items() if k not in own}), **own)
