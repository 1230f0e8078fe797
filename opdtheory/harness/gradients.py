"""Bias and variance of on-policy distillation gradients on a real student.

The score ∇log π(y_t) of every sampled token is computed once, in a chosen part of the parameters and sketched
to a few hundred numbers; every advantage form is then a weighted sum of the same scores, compared on the same
rollouts. The *means* of the forms are told from quieter samples with the same means: the token's own reward
is replaced by its exact expectation at the visited context, −∇KL(π‖teacher), and what comes later by the KL
at the later contexts less its mean over the other rollouts of the block. The blocks, each of one prompt
drawn at random, are the independent samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .. import advantages, divergences, rewards
from ..bounds import topd_second_moment, topd_variance
from ..experiments import Run, atomic
from . import counterparts, models, reports, tasks
from .engines import TorchEngine
from .forward import hidden_states
from .models import LanguageModel
from .moments import Interval, block_means, compare_estimators, cross, crossover, jackknife
from .objectives import Scored, others_mean, score
from .rollouts import Sampler, stream


class Sketch:
    """A fixed random linear map from a parameter space to ``size`` numbers that keeps inner products on
    average: entries get independent random signs, and entry i is added to number i mod ``size``.

    ``space``: ``last:N`` blocks or ``all`` parameters; ``lora:R`` first maps each weight gradient of the last
    block to that of a rank-R adapter's B, with A random and fixed (B starts at 0).
    """

    def __init__(self, model: LanguageModel, space: str, size: int, seed: int) -> None:
        self.size = size
        generator = torch.Generator().manual_seed(seed)
        rank = check_space(space)
        parameters = models.trainable(model, space if rank is None else "last:1")
        self.parameters = [p for p in parameters if rank is None or p.dim() == 2]
        self.adapters: list[torch.Tensor] | None = None
        if rank is not None:
            self.adapters = [
                torch.randn(p.shape[1], rank, generator=generator) / p.shape[1] ** 0.5
                for p in self.parameters
            ]
        counts = [p.numel() if rank is None else p.shape[0] * rank for p in self.parameters]
        self.signs = [torch.randint(2, (n,), generator=generator, dtype=torch.int8) * 2 - 1 for n in counts]

    def __call__(self, gradients: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, float]:
        """The sketch (size,) of a gradient, and the gradient's exact squared length in the chosen space."""
        result, length2 = torch.zeros(self.size), 0.0
        for i, gradient in enumerate(gradients):
            g = gradient.detach().float().cpu()
            g = (g if self.adapters is None else g @ self.adapters[i]).reshape(-1)
            length2 += float(g @ g)
            signed = g * self.signs[i]
            whole = len(signed) - len(signed) % self.size
            result += signed[:whole].reshape(-1, self.size).sum(0)
            result[: len(signed) - whole] += signed[whole:]
        return result, length2


def gradients(run: Run) -> dict[str, Any]:
    """Sample, score, differentiate, and compare the estimators."""
    config = run.config
    blocks = _collect(run)
    arrays = {name: np.concatenate([b[name] for b in blocks]) for name in blocks[0]}
    result = analyse(arrays, config)
    exact = {
        "forms": counterparts.frontier(result["kl_per_token"], config["lambdas"], config["seed"]),
        "topd": counterparts.topd(result["kl_per_token"], config["alphas"], config["seed"]),
    }
    return {**result, "tabular": exact, "report": reports.gradients(result, exact, config)}


def _collect(run: Run) -> list[dict[str, np.ndarray]]:
    """Rollouts with token scores, in blocks that are stored as they are finished."""
    config = run.config
    count = config["sequences"] // config["block"]
    paths = [run.out / "blocks" / f"{number:06d}.npz" for number in range(count)]
    loaded: tuple[LanguageModel, LanguageModel, Sketch] | None = None
    if not (run.resume and all(path.exists() for path in paths)):
        loaded = _load(config)
    run.folder("blocks")
    found: list[dict[str, np.ndarray]] = []
    for number, path in run.track(list(enumerate(paths)), "gradients"):
        if loaded is not None and not (run.resume and path.exists()):
            arrays = _block(config, *loaded, number)
            with atomic(path) as partial:
                np.savez_compressed(partial, **arrays)  # type: ignore[arg-type]
        with np.load(path) as file:
            found.append({name: file[name] for name in file.files})
    return found


def _load(config: Mapping[str, Any]) -> tuple[LanguageModel, LanguageModel, Sketch]:
    student, teacher = models.build(config["student"]), models.build(config["teacher"])
    models.check_pair(student, teacher)
    for model in (student, teacher):
        models.check_context(model, _prompts(model, config), config["max_tokens"])
    return student, teacher, Sketch(student, config["space"], config["sketch"], config["seed"])


def _prompts(model: LanguageModel, config: Mapping[str, Any]) -> list[list[int]]:
    return tasks.encode_prompts(model, config["prompts"])


def _block(
    config: Mapping[str, Any], student: LanguageModel, teacher: LanguageModel, sketch: Sketch, number: int
) -> dict[str, np.ndarray]:
    """One block of rollouts of one prompt drawn at random, padded to ``max_tokens``."""
    count, seed = config["block"], stream(config["seed"], "block", number)
    ours, theirs = _prompts(student, config), _prompts(teacher, config)
    chosen = int(np.random.default_rng(seed).integers(len(ours)))
    sampler = Sampler(max_tokens=config["max_tokens"], seed=seed)
    drawn = TorchEngine(student, batch=count).generate([ours[chosen]], sampler, count)
    alphas = [a for a in config["alphas"] if a < 1]

    def moments(p: torch.Tensor, q: torch.Tensor) -> dict[str, torch.Tensor]:
        return {f"second_moment_{a}": rewards.topd_second_moment(q, p, a) for a in alphas}

    scored = score(
        student, teacher, drawn.prompts, drawn.responses,
        teacher_prompts=[theirs[chosen]] * count, extra=moments, chunk=config["chunk"],
    )  # fmt: skip
    scores, lengths, exact = token_scores(student, teacher, scored, sketch, config)
    wide = {
        "mask": scored.mask,
        "student": scored.student,
        "teacher": scored.teacher,
        "kl": scored.kl_student_teacher,
        **scored.extra,
    }
    padded = {k: _widened(v.numpy(), config["max_tokens"]) for k, v in wide.items()}
    return {
        **padded,
        "scores": scores,
        "score_norm2": lengths,
        "immediate_mean": exact,
        "block": np.full(count, number),
        "vocab": np.full(count, student.vocab),
    }


def token_scores(
    student: LanguageModel, teacher: LanguageModel, scored: Scored, sketch: Sketch, config: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sketched scores (B, T, k) of the sampled tokens, their exact squared lengths (B, T), and the sketched
    −∇Σ_t KL(student‖teacher)(c_t) of each row (B, k) with the contexts held fixed: the conditional mean of
    the immediate form given the contexts.
    """
    size = len(scored.responses)
    scores = np.zeros((size, config["max_tokens"], sketch.size), dtype=np.float32)
    lengths, exact = np.zeros(scores.shape[:2]), np.zeros((size, sketch.size))
    for i, (prompt, response) in enumerate(zip(scored.prompts, scored.responses, strict=True)):
        states = hidden_states(student, [prompt], [response])
        for t, token in enumerate(response):
            log_p = torch.log_softmax(head_logits(student, states[0, t]).float(), -1)[token]
            gradient = torch.autograd.grad(log_p, sketch.parameters, retain_graph=True)
            values, lengths[i, t] = sketch(gradient)
            scores[i, t] = values.numpy()
        for start in range(0, len(response), config["chunk"]):
            where = slice(start, min(start + config["chunk"], len(response)))
            with torch.no_grad():
                q = torch.softmax(head_logits(teacher, scored.teacher_states[i, where]).double(), -1)
            p = torch.softmax(head_logits(student, states[0, where]).double(), -1)
            kl = divergences.kl(p, q.to(p.device)).sum()
            gradient = torch.autograd.grad(kl, sketch.parameters, retain_graph=where.stop < len(response))
            exact[i] -= sketch(gradient)[0].numpy()
    return scores, lengths, exact


def head_logits(model: LanguageModel, states: torch.Tensor) -> torch.Tensor:
    """The head applied on its own device."""
    return torch.as_tensor(model.head(states.to(model.head.weight.device)))


def advantage_forms(
    arrays: Mapping[str, np.ndarray], lambdas: Sequence[float]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """The advantages (N, T) of every form, and the λ of its mean: 1 where the form is unbiased, 0 for the
    immediate one. Baselines are the mean of the block's other rollouts at the same position.
    """
    mask, kl = arrays["mask"].astype(bool), arrays["kl"]
    reward = np.where(mask, rewards.opd(arrays["teacher"], arrays["student"]), 0.0)
    togo, expected = advantages.log_ratio_to_go(reward, mask), advantages.expected_to_go(reward, kl, mask)
    forms = {
        "togo": (togo, 1.0),
        "total": (advantages.log_ratio_total(reward, mask), 1.0),
        "expected": (expected, 1.0),
        "togo-baseline": (togo - baseline(arrays, togo), 1.0),
        "expected-baseline": (expected - baseline(arrays, expected), 1.0),
        "immediate": (advantages.immediate(reward, mask), 0.0),
        **{f"lambda {lam:g}": (advantages.lambda_return(reward, lam, mask), float(lam)) for lam in lambdas},
        **{
            f"expected lambda {lam:g}": (advantages.lambda_return(reward, lam, mask, kl=kl), float(lam))
            for lam in lambdas
        },
    }
    return {name: a for name, (a, _) in forms.items()}, {name: lam for name, (_, lam) in forms.items()}


def baseline(arrays: Mapping[str, np.ndarray], values: np.ndarray) -> np.ndarray:
    """The mean (N, T) of the same position over the other rollouts of the block: independent of the row."""
    result = np.zeros(values.shape)
    for number in np.unique(arrays["block"]):
        rows = arrays["block"] == number
        mask = torch.from_numpy(arrays["mask"][rows].astype(bool))
        result[rows] = others_mean(torch.from_numpy(values[rows]), mask).numpy()
    return result


def quiet(arrays: Mapping[str, np.ndarray], lam: float) -> np.ndarray:
    """Samples (N, k) with the mean of the λ-return's gradient and far less noise: the exact mean of the
    immediate part plus the later KLs, less a baseline.
    """
    mask = arrays["mask"].astype(bool)
    later = advantages.lambda_return(np.zeros(mask.shape), lam, mask, kl=arrays["kl"])
    weight = np.where(mask, later - baseline(arrays, later), 0.0)
    return np.asarray(arrays["immediate_mean"] + np.einsum("nt,ntk->nk", weight, arrays["scores"]))


def analyse(arrays: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    """Every number of the experiment from the stored arrays alone."""
    mask, block = arrays["mask"].astype(bool), arrays["block"]
    forms, lambdas = advantage_forms(arrays, config["lambdas"])
    samples = {name: np.einsum("nt,ntk->nk", a, arrays["scores"]) for name, a in forms.items()}
    means = {lam: quiet(arrays, lam) for lam in {0.0, 1.0, *lambdas.values()}}
    estimators = {}
    for name, lam in lambdas.items():
        found = compare_estimators(
            samples[name], means[lam], means[1.0], block, config["sample_sizes"], unbiased=lam == 1
        )
        plain = block_means(samples[name] - samples["togo"], block)
        estimators[name] = {
            "unbiased": lam == 1,
            "bias2_plain": _plain(jackknife(cross(plain, plain))),
            **{k: _plain(getattr(found, k)) for k in ("bias2", "variance", "mean2", "cosine")},
            "mse": {str(n): _plain(v) for n, v in found.mse.items()},
            "better_than_togo_up_to": _plain(
                crossover(samples[name], samples["togo"], means[lam] - means[1.0], block, unbiased=lam == 1)
            ),
        }
    return {
        "sequences": int(mask.shape[0]),
        "blocks": len(np.unique(block)),
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


def check_space(space: str) -> int | None:
    """The rank of ``lora:R``, None for ``all`` and ``last:N``; ValueError for anything else."""
    kind, _, number = space.partition(":")
    if space == "all" or (kind == "last" and number.isdigit() and int(number) >= 1):
        return None
    if kind == "lora" and number.isdigit() and int(number) >= 1:
        return int(number)
    raise ValueError(f"space {space!r}: expected all, last:N or lora:R with N and R at least 1")


def _widened(values: np.ndarray, width: int) -> np.ndarray:
    return np.pad(values, ((0, 0), (0, width - values.shape[1])))
