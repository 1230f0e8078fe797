"""Bias and variance of on-policy distillation gradients on a real student.

The score ∇log π(y_t) of every sampled token is computed once, in a chosen part of the parameters and sketched
to a few hundred numbers; every advantage form is then a weighted sum of the same scores, compared on the same
rollouts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from .. import advantages, rewards
from ..bounds import topd_second_moment, topd_variance
from ..experiments import Run, atomic
from . import counterparts, models, reports, tasks
from .engines import TorchEngine
from .forward import hidden_states
from .models import LanguageModel
from .moments import Interval, compare_estimators, cross, crossover, jackknife
from .objectives import Scored, score
from .rollouts import Sampler


class Sketch:
    """A fixed random linear map from a parameter space to ``size`` numbers that keeps inner products on
    average.

    ``space``: ``last:N`` blocks or ``all`` parameters by signed hashing; ``lora:R`` first maps each weight
    gradient of the last block to that of a rank-R adapter's B, with A random and fixed (B starts at 0).
    """

    def __init__(self, model: LanguageModel, space: str, size: int, seed: int) -> None:
        self.size = size
        generator = torch.Generator().manual_seed(seed)
        blocks = "last:1" if space.startswith("lora:") else space
        rank = _rank(space)
        parameters = models.trainable(model, blocks)
        self.parameters = [p for p in parameters if rank is None or p.dim() == 2]
        self.adapters: list[torch.Tensor] | None = None
        if rank is not None:
            self.adapters = [
                torch.randn(p.shape[1], rank, generator=generator) / p.shape[1] ** 0.5
                for p in self.parameters
            ]
        counts = [p.numel() if rank is None else p.shape[0] * rank for p in self.parameters]
        self.buckets = [torch.randint(size, (n,), generator=generator) for n in counts]
        self.signs = [torch.randint(2, (n,), generator=generator, dtype=torch.int8) * 2 - 1 for n in counts]

    def __call__(self, gradients: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, float]:
        """The sketch (size,) of a gradient, and the gradient's exact squared length in the chosen space."""
        result, length2 = torch.zeros(self.size), 0.0
        for i, gradient in enumerate(gradients):
            g = gradient.detach().float().cpu()
            g = (g if self.adapters is None else g @ self.adapters[i]).reshape(-1)
            length2 += float(g @ g)
            result.index_add_(0, self.buckets[i], g * self.signs[i])
        return result, length2


def gradients(run: Run) -> dict[str, Any]:
    """Sample, score, differentiate, and compare the estimators."""
    config = run.config
    blocks = _collect(run)
    arrays = {name: np.concatenate([b[name] for b in blocks]) for name in blocks[0]}
    result = analyse(arrays, config)
    exact = counterparts.frontier(result["kl_per_token"], config["lambdas"], config["seed"])
    return {**result, "tabular": exact, "report": reports.gradients(result, exact, config)}


def _collect(run: Run) -> list[dict[str, np.ndarray]]:
    """Rollouts with token scores, in blocks that are stored as they are finished."""
    config = run.config
    size = config["block"]
    starts = list(range(0, config["sequences"], size))
    paths = [run.folder("blocks") / f"{start:06d}.npz" for start in starts]
    found: list[dict[str, np.ndarray]] = []
    loaded: tuple[LanguageModel, LanguageModel, Sketch] | None = None
    for start, path in run.track(list(zip(starts, paths, strict=True)), "gradients"):
        if not (run.resume and path.exists()):
            if loaded is None:
                student, teacher = models.build(config["student"]), models.build(config["teacher"])
                models.check_pair(student, teacher)
                loaded = student, teacher, Sketch(student, config["space"], config["sketch"], config["seed"])
                for model in loaded[:2]:
                    models.check_context(model, _prompts(model, config), config["max_tokens"])
            count = min(size, config["sequences"] - start)
            arrays = _block(config, *loaded, start, count)
            with atomic(path) as partial:
                np.savez_compressed(partial, **arrays)  # type: ignore[arg-type]
        with np.load(path) as file:
            found.append({name: file[name] for name in file.files})
    return found


def _prompts(model: LanguageModel, config: Mapping[str, Any]) -> list[list[int]]:
    return tasks.encode_prompts(model, config["prompts"])


def _block(
    config: Mapping[str, Any],
    student: LanguageModel,
    teacher: LanguageModel,
    sketch: Sketch,
    start: int,
    count: int,
) -> dict[str, np.ndarray]:
    """``count`` rollouts of one prompt, starting at number ``start``, padded to ``max_tokens``."""
    number = (start // config["block"]) % config["prompts"]
    ours, theirs = _prompts(student, config)[number], _prompts(teacher, config)[number]
    sampler = Sampler(max_tokens=config["max_tokens"], seed=config["seed"] * 1_000_003 + start + 1)
    drawn = TorchEngine(student).generate([ours], sampler, count)
    alphas = [a for a in config["alphas"] if a < 1]

    def moments(p: torch.Tensor, q: torch.Tensor) -> dict[str, torch.Tensor]:
        return {f"second_moment_{a}": rewards.topd_second_moment(q, p, a) for a in alphas}

    scored = score(
        student, teacher, drawn.prompts, drawn.responses,
        teacher_prompts=[theirs] * count, extra=moments, chunk=config["chunk"],
    )  # fmt: skip
    scores, lengths = token_scores(student, scored, sketch, config["max_tokens"])
    wide = {
        "mask": scored.mask,
        "student": scored.student,
        "teacher": scored.teacher,
        "kl": scored.kl_student_teacher,
        **scored.extra,
    }
    padded = {k: _widened(v.numpy(), config["max_tokens"]) for k, v in wide.items()}
    return {**padded, "scores": scores, "score_norm2": lengths, "vocab": np.full(count, student.vocab)}


def token_scores(
    student: LanguageModel, scored: Scored, sketch: Sketch, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sketched scores (B, width, k) of the sampled tokens and their exact squared lengths (B, width)."""
    scores = np.zeros((len(scored.responses), width, sketch.size), dtype=np.float32)
    lengths = np.zeros((len(scored.responses), width))
    for i, (prompt, response) in enumerate(zip(scored.prompts, scored.responses, strict=True)):
        states = hidden_states(student, [prompt], [response])
        for t, token in enumerate(response):
            log_p = torch.log_softmax(student.head(states[0, t].to(student.head.weight.device)).float(), -1)[
                token
            ]
            gradient = torch.autograd.grad(log_p, sketch.parameters, retain_graph=t + 1 < len(response))
            values, lengths[i, t] = sketch(gradient)
            scores[i, t] = values.numpy()
    return scores, lengths


def analyse(arrays: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    """Every number of the experiment from the stored arrays alone."""
    mask = arrays["mask"].astype(bool)
    reward = np.where(mask, rewards.opd(arrays["teacher"], arrays["student"]), 0.0)
    forms = {
        "togo": advantages.log_ratio_to_go(reward, mask),
        "total": advantages.log_ratio_total(reward, mask),
        "expected": advantages.expected_to_go(reward, arrays["kl"], mask),
        "immediate": advantages.immediate(reward, mask),
        **{f"lambda {lam:g}": advantages.lambda_return(reward, lam, mask) for lam in config["lambdas"]},
        **{
            f"expected lambda {lam:g}": advantages.lambda_return(reward, lam, mask, kl=arrays["kl"])
            for lam in config["lambdas"]
        },
    }
    scores = arrays["scores"].astype(float)
    samples = {name: np.einsum("nt,ntk->nk", a, scores) for name, a in forms.items()}
    sizes, reference = config["sample_sizes"], samples["togo"]
    compared = {name: compare_estimators(g, reference, sizes) for name, g in samples.items()}
    variance = compared["togo"].variance
    estimators = {}
    for name, found in compared.items():
        # (iv) has the to-go form's mean and less noise: the same bias, told more precisely
        quieter = samples[name] - samples["expected"]
        bias2 = jackknife(cross(quieter, quieter))
        estimators[name] = {
            "bias2_against_expected": _plain(bias2),
            **{k: _plain(getattr(found, k)) for k in ("bias2", "variance", "mean2", "cosine")},
            "mse": {str(n): _plain(v) for n, v in found.mse.items()},
            "better_than_togo_up_to": crossover(bias2.value, found.variance.value, variance.value),
        }
    return {
        "sequences": int(mask.shape[0]),
        "tokens": int(mask.sum()),
        "kl_per_token": float(arrays["kl"][mask].mean()),
        "estimators": estimators,
        "topd": [topd_moments(arrays, mask, alpha) for alpha in config["alphas"]],
    }


def topd_moments(arrays: Mapping[str, np.ndarray], mask: np.ndarray, alpha: float) -> dict[str, Any]:
    """Second moment of the TOP-D token gradient beside M²K(α) and the printed bound.

    M is the largest score length seen, a lower bound of the supremum that the theorem assumes.
    """
    reward = np.where(mask, rewards.topd(arrays["teacher"], arrays["student"], alpha), 0.0)
    weighted = reward[..., None] * arrays["scores"]
    norms2, tokens = arrays["score_norm2"], mask.sum(1)
    # per-token moments over all contexts visited: ratios of sums over sequences, jackknifed over sequences
    second = jackknife(_ratio((reward**2 * norms2).sum(1), tokens))
    mean = weighted[mask].mean(0)
    bound = float(norms2.max())
    result = {
        "alpha": alpha,
        "score_bound2": bound,
        "second_moment": _plain(second),
        "variance": second.value - float(mean @ mean),
        "reward_second_moment": _plain(jackknife(_ratio((reward**2).sum(1), tokens))),
    }
    if alpha < 1:
        exact = arrays[f"second_moment_{alpha}"]
        result |= {
            "reward_second_moment_exact_mean": float(exact[mask].mean()),
            "reward_second_moment_exact_max": float(exact[mask].max()),
            "sharp_constant": float(topd_second_moment(alpha)),
            "sharp_bound": bound * float(topd_second_moment(alpha)),
            "printed_bound": float(topd_variance(alpha, int(arrays["vocab"][0]), bound**0.5)),
        }
    return result


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    total, count = numerator.sum(), denominator.sum()
    return np.concatenate([[total / count], (total - numerator) / (count - denominator)])


def _plain(value: Interval | None) -> dict[str, Any] | None:
    return None if value is None else value.to_dict()


def _rank(space: str) -> int | None:
    if not space.startswith("lora:"):
        return None
    if not space[5:].isdigit() or int(space[5:]) < 1:
        raise ValueError(f"space {space!r}: expected lora:R with R at least 1")
    return int(space[5:])


def _widened(values: np.ndarray, width: int) -> np.ndarray:
    return np.pad(values, ((0, 0), (0, width - values.shape[1])))
