"""On-policy distillation of a real student, one curve for each method, with the exact per-token KL to the
teacher.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..experiments import Run, atomic
from . import counterparts, models, reports, tasks, twins
from .engines import TorchEngine
from .forward import hidden_states
from .objectives import (
    METHODS,
    Objective,
    Scored,
    Settings,
    guided_length,
    loss,
    score,
    token_advantages,
    token_rewards,
)
from .rollouts import Sampler, stream, uniforms


def distill(run: Run) -> dict[str, Any]:
    """Train a fresh student with each method of the configuration and compare the curves."""
    config = run.config
    teacher = models.build(config["teacher"])
    student = models.build(config["student"])
    models.check_pair(student, teacher)
    models.parameters(student, config["train"])
    longest = max(config["max_tokens"] + config["guided_tokens"], config["evaluation_tokens"])
    for model in (student, teacher):
        models.check_context(model, tasks.encode_prompts(model, len(tasks.GENERAL)), longest)
    del student
    curves = {}
    for name in run.track(config["methods"], "distill"):
        curves[name] = run.part(name, partial(_train, run, name, teacher))
    summary = {name: summarise(curve, config) for name, curve in curves.items()}
    exact = _tabular(config, summary)
    return {
        "curves": curves,
        "summary": summary,
        "tabular": exact,
        "report": reports.distill(curves, summary, exact, config),
    }


def _tabular(config: Mapping[str, Any], summary: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Exact proximal steps and exact runs of the methods from the measured KL per token."""
    first = summary.get("full-rkl", next(iter(summary.values())))
    kl = first["kl_on_policy_first"]
    if kl <= SMALLEST:
        return {"proximal": [], "runs": {}}
    share = min(first["kl_on_policy_last"] / kl, 1.0)
    return {
        "proximal": counterparts.contraction(kl, config["alpha"], config["steps"], config["seed"]),
        "runs": twins.distillation(config["methods"], config, kl, share),
    }


SMALLEST = 1e-9
"""KL per token below which student and teacher are the same, and there is nothing to repeat."""


@dataclass
class _Task:
    """Training prompts for both models, and a fixed evaluation set written by the teacher."""

    student_prompts: list[list[int]]
    teacher_prompts: list[list[int]]
    evaluation: tuple[list[list[int]], list[list[int]], list[list[int]]]
    teacher_states: torch.Tensor


def _train(run: Run, name: str, teacher: models.LanguageModel) -> list[dict[str, float]]:
    """The curve of one method; goes on from its checkpoint when there is one."""
    config, objective = run.config, METHODS[name]
    settings = Settings(
        config["alpha"], config["tau"], config["entropy_tau"], config["topk"],
        config["beta_guidance"], config["lambda"], config["chunk"],
    )  # fmt: skip
    student = models.build(config["student"])
    trained = models.trainable(student, config["train"])
    task = _task(config, student, teacher)
    optimizer = torch.optim.AdamW(
        trained, lr=config["learning_rate"], weight_decay=config["weight_decay"], foreach=False
    )
    checkpoint = run.folder("checkpoints") / f"{name}.pt"
    curve: list[dict[str, float]] = []
    if run.resume and checkpoint.exists():
        curve = load_checkpoint(checkpoint, trained, optimizer)
        run.say(f"{name}: resumed at step {len(curve)}")
    for step in range(len(curve), config["steps"]):
        clock = time.perf_counter()
        entry = evaluate(student, teacher, task, config["chunk"])
        entry |= _step(step, objective, student, teacher, task, optimizer, trained, config, settings)
        entry["seconds"] = time.perf_counter() - clock
        curve.append(entry)
        run.say(
            f"{name} step {step}: KL(S‖T) {entry['kl_on_policy']:.3f} on own rollouts, "
            f"{entry['kl_student_teacher']:.3f} on fixed responses"
        )
        if (step + 1) % config["checkpoint_every"] == 0 and step + 1 < config["steps"]:
            save_checkpoint(checkpoint, trained, optimizer, curve)
    final = evaluate(student, teacher, task, config["chunk"])
    final["kl_on_policy"] = on_policy_kl(student, teacher, task, config, config["steps"])
    checkpoint.unlink(missing_ok=True)
    return [*curve, final]


def _task(config: Mapping[str, Any], student: models.LanguageModel, teacher: models.LanguageModel) -> _Task:
    texts = tasks.general(len(tasks.GENERAL))
    held = config["evaluation_prompts"]
    ours, theirs = [student.encode(t) for t in texts], [teacher.encode(t) for t in texts]
    sampler = Sampler(max_tokens=config["evaluation_tokens"], seed=stream(config["seed"], "evaluation"))
    responses = TorchEngine(teacher).generate(theirs[-held:], sampler).responses
    with torch.no_grad():
        states = hidden_states(teacher, theirs[-held:], responses)
    return _Task(ours[:-held], theirs[:-held], (ours[-held:], theirs[-held:], responses), states)


def _step(
    step: int,
    objective: Objective,
    student: models.LanguageModel,
    teacher: models.LanguageModel,
    task: _Task,
    optimizer: torch.optim.Optimizer,
    trained: list[torch.nn.Parameter],
    config: Mapping[str, Any],
    settings: Settings,
) -> dict[str, float]:
    """One rollout batch and its updates; what is recorded is measured on the rollouts, before the update."""
    scored, group = _rollout(step, objective, student, teacher, task, config, settings)
    uniform = torch.from_numpy(uniforms(stream(config["seed"], "gate"), step, scored.tokens.numel())).reshape(
        scored.tokens.shape
    )
    reward = token_rewards(objective, scored, settings, uniform)
    advantage = token_advantages(objective, reward, scored, settings, group)
    order = np.random.default_rng([config["seed"], step]).permutation(len(scored.responses))
    norms = []
    for part in np.array_split(order, min(objective.minibatches, len(order))):
        optimizer.zero_grad(set_to_none=True)
        batch = scored.rows(part.tolist())
        loss(objective, student, teacher, batch, advantage[part], settings, uniform[part]).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, math.inf, foreach=False)))
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    own, own_advantage = scored.own, advantage[scored.own]
    return {
        "kl_on_policy": float(scored.kl_student_teacher[own].mean()),
        "kl_on_policy_sequence": float((scored.kl_student_teacher * own).sum(-1).mean()),
        "reward": float(reward[own].mean()),
        "advantage_std": float(own_advantage.std(correction=0)),
        "entropy": float(scored.entropy[own].mean()),
        "length": float(own.sum(-1).double().mean()),
        "gradient_norm": float(np.mean(norms)),
    }


def _rollout(
    step: int,
    objective: Objective,
    student: models.LanguageModel,
    teacher: models.LanguageModel,
    task: _Task,
    config: Mapping[str, Any],
    settings: Settings,
) -> tuple[Scored, np.ndarray]:
    """A group of student responses to each prompt of this step, scored; guided methods start from teacher
    tokens.
    """
    count, group = config["prompts_per_step"], config["group"]
    picked = [(step * count + i) % len(task.student_prompts) for i in range(count)]
    ours = [task.student_prompts[i] for i in picked for _ in range(group)]
    theirs = [task.teacher_prompts[i] for i in picked for _ in range(group)]
    prefixes: list[list[int]] = [[] for _ in ours]
    if objective.guidance and (length := guided_length(step, config["steps"], config["guided_tokens"])):
        guide = Sampler(max_tokens=length, seed=stream(config["seed"], "guidance", step))
        led = TorchEngine(teacher).generate(theirs, guide).responses
        prefixes = [r[:-1] if r[-1:] == [teacher.eos] else r for r in led]
    sampler = Sampler(max_tokens=config["max_tokens"], seed=stream(config["seed"], "rollouts", step))
    drawn = (
        TorchEngine(student).generate([p + x for p, x in zip(ours, prefixes, strict=True)], sampler).responses
    )
    responses = [x + r for x, r in zip(prefixes, drawn, strict=True)]
    scored = score(
        student, teacher, ours, responses,
        teacher_prompts=theirs, guided=[len(x) for x in prefixes], chunk=settings.chunk,
    )  # fmt: skip
    return scored, np.repeat(np.arange(count), group)


def evaluate(
    student: models.LanguageModel, teacher: models.LanguageModel, task: _Task, chunk: int
) -> dict[str, float]:
    """Exact per-token divergences on the teacher's fixed responses, and the sequence TV estimated from
    them.
    """
    ours, theirs, responses = task.evaluation
    s = score(
        student,
        teacher,
        ours,
        responses,
        teacher_prompts=theirs,
        teacher_states=task.teacher_states,
        chunk=chunk,
    )
    log_w = ((s.student - s.teacher) * s.mask).sum(-1)
    return {
        "kl_student_teacher": float(s.kl_student_teacher[s.mask].mean()),
        "kl_teacher_student": float(s.kl_teacher_student[s.mask].mean()),
        "kl_teacher_student_sequence": float(s.kl_teacher_student.sum(-1).mean()),
        "tv": float(s.tv[s.mask].mean()),
        "tv_sequence_estimate": float((1 - log_w.exp()).clamp_min(0).mean()),
    }


def on_policy_kl(
    student: models.LanguageModel,
    teacher: models.LanguageModel,
    task: _Task,
    config: Mapping[str, Any],
    step: int,
) -> float:
    """Mean exact KL(student‖teacher) per token over fresh rollouts of the student."""
    fresh, _ = _rollout(
        step, METHODS["immediate"], student, teacher, task, config, Settings(chunk=config["chunk"])
    )
    return float(fresh.kl_student_teacher[fresh.mask].mean())


def save_checkpoint(
    path: Path,
    trained: list[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    curve: list[dict[str, float]],
) -> None:
    """Parameters, optimizer state and the curve so far, written atomically."""
    state = {"parameters": [p.detach() for p in trained], "optimizer": optimizer.state_dict(), "curve": curve}
    with atomic(path) as unfinished:
        torch.save(state, unfinished)


def load_checkpoint(
    path: Path, trained: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> list[dict[str, float]]:
    """Restore what ``save_checkpoint`` wrote and return the curve."""
    state = torch.load(path, weights_only=True)
    with torch.no_grad():
        for parameter, saved in zip(trained, state["parameters"], strict=True):
            parameter.copy_(saved)
    optimizer.load_state_dict(state["optimizer"])
    return list(state["curve"])


def summarise(curve: list[dict[str, float]], config: Mapping[str, Any]) -> dict[str, float]:
    """Start, end and contraction of a curve beside the two laws for exact proximal steps of size α.

    If every step reached α·teacher + (1−α)·student, TV would fall by (1−α) a step per state; sequences mixed
    token by token contract at least by 1−α^T, T the length.
    """
    first, last, steps = curve[0], curve[-1], len(curve) - 1
    alpha = config["alpha"]
    return {
        "kl_on_policy_first": first["kl_on_policy"],
        "kl_on_policy_last": last["kl_on_policy"],
        "kl_first": first["kl_student_teacher"],
        "kl_last": last["kl_student_teacher"],
        "tv_first": first["tv"],
        "tv_last": last["tv"],
        "tv_factor_per_step": (last["tv"] / first["tv"]) ** (1 / steps) if first["tv"] > 0 else 0.0,
        "tv_factor_largest": max((b["tv"] / a["tv"] for a, b in pairwise(curve) if a["tv"] > 0), default=0.0),
        "state_law": 1 - alpha,
        "token_law": 1 - alpha ** config["evaluation_tokens"],
        "gradient_norm_mean": float(np.mean([c["gradient_norm"] for c in curve[:-1]])),
        "gradient_norm_max": max(c["gradient_norm"] for c in curve[:-1]),
        "seconds": sum(c["seconds"] for c in curve[:-1]),
    }
