"""One trust-region step on a real model from a mismatched rollout engine: what each theory promised, what
happened.

μ is the rollout engine's policy, π the trainer's after the step. Promises are computed on responses of μ that
the update never saw; what happened is measured on fresh responses of π itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from .. import advantages, divergences, masks
from ..experiments import Run
from . import counterparts, models, reports, tasks, twins
from .compare import compare
from .engines import Engine, TorchEngine
from .evidence import clustered, evidence
from .forward import hidden_states, logit_blocks, token_log_probs
from .mismatch import SMALLEST, Engines
from .models import LanguageModel
from .rollouts import Rollouts, Sampler, stream

TOPK = ("dppo_topk_tv", "dppo_topk_kl")
METHODS = ("none", "trm", *masks.METHODS)
"""``none`` leaves the model as it is (the engines' mismatch alone); ``trm`` masks whole sequences."""


def improve(run: Run) -> dict[str, Any]:
    """Update a fresh copy of the model with each method and compare promise and outcome."""
    config = run.config
    engines = Engines(config["student"])
    reason = engines.unavailable(config["rollout"])
    if reason:
        raise ValueError(f"rollout engine {config['rollout']['kind']!r}: {reason}")
    base = engines.language_model({})
    models.parameters(base, config["train"])
    train, held = _tasks(config)
    prompts = tasks.encode_prompts(base, [*train.requests, *held.requests])
    models.check_context(base, prompts, config["max_tokens"])
    engines.context = max(map(len, prompts)) + config["max_tokens"]
    engine = engines.get(config["rollout"])
    results = {}
    batches: list[Rollouts] = []
    for name in run.track(config["methods"], "improve"):
        results[name] = run.part(name, partial(_method, run, name, engine, base, train, held, batches))
    updates = config["epochs"] * config["minibatches"]
    exact = {}
    for name, r in results.items():
        d_seq = max(float(r["evidence"]["quantities"]["kl_seq"]["value"]), SMALLEST)
        # the same step per token, whatever the two horizons
        scaled = d_seq * counterparts.HORIZON / config["max_tokens"]
        exact[name] = twins.improvement(name, updates, scaled, config["seed"])
    return {"results": results, "tabular": exact, "report": reports.improve(results, exact, config)}


def _tasks(config: Mapping[str, Any]) -> tuple[tasks.Task, tasks.Task]:
    train = tasks.make_task(config["task"], config["prompts"], config["seed"])
    return train, tasks.make_task(config["task"], config["evaluation_prompts"], config["seed"] + 1)


def _method(
    run: Run,
    name: str,
    engine: Engine,
    base: LanguageModel,
    train: tasks.Task,
    held: tasks.Task,
    batches: list[Rollouts],
) -> dict[str, Any]:
    """Update, then evidence on held-out responses of μ and the outcome on fresh responses of π."""
    config = run.config
    if not batches:  # the same rollouts serve every method
        batches += [_sample(engine, base, train, config), _sample(engine, base, held, config)]
    model = models.build(config["student"])
    steps = [] if name == "none" else update(name, model, engine, batches[0], config)
    prefill = TorchEngine(model, mode="prefill", batch=config["batch"])
    sample = batches[1]
    stats = compare(engine, prefill, sample.prompts, sample.responses, sample.tokens, config["chunk"])
    arrays = {
        "mask": sample.response_mask,
        "log_mu": stats["log_p"],
        "log_pi": stats["log_q"],
        "tv": stats["tv"],
        "kl": stats["kl_pq"],
        "reverse_kl": stats["kl_qp"],
        "chi2": stats["chi2_qp"],
    }
    found = evidence(arrays, sample.reward, sample.prompt_id, config["max_tokens"])
    # the same uniform numbers drive both policies: each mean stays unbiased, their difference is less noisy
    fresh = _sample(TorchEngine(model, batch=config["batch"]), base, held, config)
    before, after = (clustered(r.reward, r.prompt_id) for r in (sample, fresh))
    labels = sorted(set(sample.prompt_id))
    paired = np.array(
        [
            fresh.reward[fresh.prompt_id == g].mean() - sample.reward[sample.prompt_id == g].mean()
            for g in labels
        ]
    )
    change, error = clustered(paired, np.arange(len(paired)))
    run.say(
        f"{name}: J(μ) {before[0]:.3f}, J(π) {after[0]:.3f}, "
        f"surrogate {found['quantities']['surrogate']['value']:.3f}"
    )
    return {
        "steps": steps,
        "reward_before": before[0],
        "reward_after": after[0],
        "improvement": {"value": change, "interval": [change - 1.96 * error, change + 1.96 * error]},
        "evidence": found,
    }


def _sample(
    engine: Engine, base: LanguageModel, task: tasks.Task, config: Mapping[str, Any]
) -> Rollouts:
    prompts = tasks.encode_prompts(base, task.requests)
    sampler = Sampler(max_tokens=config["max_tokens"], seed=stream(config["seed"], *task.requests))
    drawn = engine.generate(prompts, sampler, config["group"])
    return drawn.with_(rewards=tasks.rewards(task, base, drawn))


def update(
    name: str, model: LanguageModel, engine: Engine, batch: Rollouts, config: Mapping[str, Any]
) -> list[dict[str, float]]:
    """Take ``epochs`` × ``minibatches`` gradient steps on one batch of rollouts; what each step saw and
    kept.
    """
    parameters = models.trainable(model, config["train"])
    optimizer = torch.optim.AdamW(parameters, lr=config["learning_rate"], weight_decay=0.0, foreach=False)
    advantage = advantages.group_mean_baseline(batch.reward, batch.prompt_id)
    old = _log_probs(model, batch, config["chunk"])
    top = _top_probabilities(engine, batch, config) if name in TOPK else None
    random = np.random.default_rng([config["seed"], 11])
    log = []
    for _ in range(config["epochs"]):
        for rows in np.array_split(random.permutation(len(batch)), config["minibatches"]):
            part = batch.take(rows)
            states = hidden_states(model, part.prompts, part.responses)
            tokens = torch.from_numpy(part.tokens[:, : states.shape[1]])
            log_pi, entropy = token_log_probs(model, states, tokens, chunk=config["chunk"])
            mask = part.response_mask[:, : states.shape[1]] > 0
            detached = np.where(mask, log_pi.detach().double().cpu().numpy(), 0.0)
            mu = part.rollout_log_probs[:, : states.shape[1]]
            divergence = None if top is None else _topk(name, model, states, part, top, rows, config)
            weight = _weight(
                name, detached, mu, advantage[rows], mask, old[rows][:, : states.shape[1]], divergence
            )
            used = torch.from_numpy(weight).to(log_pi)
            loss = -(used * log_pi).sum() / mask.sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, config["max_norm"], foreach=False)
            optimizer.step()
            acting = mask & (np.abs(advantage[rows])[:, None] > 0)
            log.append(
                {
                    "gradient_norm": float(norm),
                    "tokens_used": float((weight[acting] != 0).mean()) if acting.any() else 0.0,
                    "mean_abs_log_ratio": float(np.abs(detached - mu)[mask].mean()),
                    "entropy": float(entropy.detach().double().cpu().numpy()[mask].mean()),
                }
            )
    optimizer.zero_grad(set_to_none=True)
    return log


def _weight(
    name: str,
    log_pi: np.ndarray,
    log_mu: np.ndarray,
    advantage: np.ndarray,
    mask: np.ndarray,
    old: np.ndarray,
    divergence: np.ndarray | None,
) -> np.ndarray:
    """The coefficient of ∇log π (B, T) for this method."""
    if name == "trm":
        accepted = masks.trm(log_pi, log_mu, mask, delta_max=0.5, delta_avg=0.05)
        return accepted[:, None] * masks.unified_weight("pg_is", log_pi, log_mu, advantage, mask)
    return masks.unified_weight(
        name, log_pi, log_mu, advantage, mask, old_log_probs=old, divergence=divergence
    )


@torch.no_grad()
def _log_probs(model: LanguageModel, batch: Rollouts, chunk: int) -> np.ndarray:
    """log π of every token before the update (B, T), the recomputed old policy."""
    out = np.zeros(batch.tokens.shape)
    for i in range(len(batch)):
        states = hidden_states(model, [batch.prompts[i]], [batch.responses[i]])
        values, _ = token_log_probs(
            model, states, torch.from_numpy(batch.tokens[i : i + 1, : states.shape[1]]), chunk=chunk
        )
        out[i, : states.shape[1]] = values[0].double().cpu().numpy()
    return out


def _top_probabilities(
    engine: Engine, batch: Rollouts, config: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """The rollout policy's top-k token ids and probabilities (B, T, k), by replaying the rollouts."""
    k = config["topk"]
    ids = np.zeros((*batch.tokens.shape, k), dtype=np.int64)
    probabilities = np.zeros((*batch.tokens.shape, k))
    for i in range(len(batch)):
        for block in engine.stream([batch.prompts[i]], [batch.responses[i]], config["chunk"]):
            found = torch.softmax(block.logits[0].double(), -1).topk(k, -1)
            ids[i, block.start : block.stop] = found.indices.cpu().numpy()
            probabilities[i, block.start : block.stop] = found.values.cpu().numpy()
    return ids, probabilities


def _topk(
    name: str,
    model: LanguageModel,
    states: torch.Tensor,
    part: Rollouts,
    top: tuple[np.ndarray, np.ndarray],
    rows: np.ndarray,
    config: Mapping[str, Any],
) -> np.ndarray:
    """TV or KL(μ‖π) over μ's top k tokens, the sampled token and one bucket for the rest, (B, T)."""
    ids, mu = (torch.from_numpy(x[rows][:, : states.shape[1]]) for x in top)
    tokens = torch.from_numpy(part.tokens[:, : states.shape[1], None])
    inside = (ids == tokens).any(-1, keepdim=True)
    sampled = torch.from_numpy(np.exp(part.rollout_log_probs[:, : states.shape[1], None]))
    members = torch.cat([ids, tokens], -1)
    pieces = []
    with torch.no_grad():
        for block in logit_blocks(model, states.detach(), part.responses, config["chunk"]):
            p = torch.softmax(block.logits.double(), -1).cpu()
            pieces.append(p.gather(-1, members[:, block.start : block.stop]))
    pi = torch.cat(pieces, 1)

    def cells(values: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        # a sampled token among the top k must not be counted twice
        own = torch.where(inside, torch.zeros_like(own), own)
        rest = (1 - values.sum(-1, keepdim=True) - own).clamp_min(0.0)
        return torch.cat([values, own, rest], -1)

    measure = divergences.tv if name == "dppo_topk_tv" else divergences.kl
    return measure(cells(mu, sampled), cells(pi[..., :-1], pi[..., -1:])).numpy()
