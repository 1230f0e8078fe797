"""Rollouts: sampled token ids with the true log-probabilities of the sampler that drew them, and their
export.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..experiments import atomic


@dataclass(frozen=True)
class Sampler:
    """How tokens are drawn: softmax of logits/temperature, cut to the top k and then to the nucleus of mass
    top_p.

    ``top_k`` 0 and ``top_p`` 1 mean no truncation. ``max_tokens`` counts the end token.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature {self.temperature}: expected a positive number")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p}: expected 0 < top_p <= 1")
        if self.top_k < 0 or self.max_tokens < 1:
            raise ValueError(
                f"top_k {self.top_k}, max_tokens {self.max_tokens}: expected top_k >= 0, max_tokens >= 1"
            )

    def log_probs(self, logits: torch.Tensor) -> torch.Tensor:
        """The sampler's log-distribution (..., V) in float64, −inf where truncated away."""
        log_p = torch.log_softmax(logits.double() / self.temperature, dim=-1)
        if self.top_k and self.top_k < log_p.shape[-1]:
            kept = torch.zeros_like(log_p, dtype=torch.bool).scatter_(
                -1, log_p.topk(self.top_k, -1).indices, True
            )
            log_p = torch.log_softmax(log_p.masked_fill(~kept, -torch.inf), dim=-1)
        if self.top_p < 1:
            ordered, order = log_p.sort(dim=-1, descending=True)
            mass = ordered.exp()
            kept = mass.cumsum(-1) - mass < self.top_p
            log_p = log_p.masked_fill(~torch.zeros_like(kept).scatter_(-1, order, kept), -torch.inf)
            log_p = torch.log_softmax(log_p, dim=-1)
        return log_p

    def draw(
        self, logits: torch.Tensor, uniform: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens (B,) by inverse distribution function from one uniform each; their sampler and raw
        log-probs.
        """
        log_p = self.log_probs(logits)
        cumulative = log_p.exp().cumsum(-1)
        target = uniform.to(cumulative)[:, None] * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, target, right=True).clamp_max(logits.shape[-1] - 1)
        raw = torch.log_softmax(logits.double(), dim=-1)
        return tokens[:, 0], log_p.gather(-1, tokens)[:, 0], raw.gather(-1, tokens)[:, 0]


def stream(seed: int, *labels: int | str) -> int:
    """A seed of its own for each purpose, so that no two draws of one experiment share random numbers.

    >>> stream(0, "rollouts", 1) == stream(0, "rollouts", 1) != stream(0, "rollouts", 2)
    True
    """
    digest = hashlib.sha256(json.dumps([seed, *labels]).encode()).digest()
    return int.from_bytes(digest[:7])


def uniforms(seed: int, row: int, count: int) -> np.ndarray:
    """The random numbers of one row: they depend on the seed and the row only, never on how rows are
    batched.
    """
    return np.random.Generator(np.random.Philox(key=[seed, row])).random(count)


@dataclass(frozen=True)
class Rollouts:
    """Sampled responses, one a row; arrays are (B, T), padded on the right where ``response_mask`` is 0.

    ``rollout_log_probs`` are those of the true sampler (temperature and truncation included),
    ``raw_log_probs`` those of the untouched model. ``extra`` holds further arrays under their field names:
    ``log_probs``, ``teacher_log_probs``, ….
    """

    prompts: tuple[tuple[int, ...], ...]
    tokens: np.ndarray
    response_mask: np.ndarray
    rollout_log_probs: np.ndarray
    raw_log_probs: np.ndarray
    prompt_id: np.ndarray
    sampler: Sampler
    engine: str
    model: str
    eos: int | None = None
    rewards: np.ndarray | None = None
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def reward(self) -> np.ndarray:
        """``rewards`` (B,); ValueError where none were recorded."""
        if self.rewards is None:
            raise ValueError(f"rollouts of {self.model} by {self.engine} carry no rewards")
        return self.rewards

    @property
    def lengths(self) -> np.ndarray:
        """Response tokens per row, the end token counted."""
        return self.response_mask.sum(-1)

    @property
    def responses(self) -> list[list[int]]:
        """The response ids of each row, without padding."""
        return [row[: int(n)].tolist() for row, n in zip(self.tokens, self.lengths, strict=True)]

    @property
    def ended(self) -> np.ndarray:
        """True where a row ended with the end token instead of being cut off."""
        return np.array([self.eos is not None and r[-1:] == [self.eos] for r in self.responses])

    def with_(self, **arrays: np.ndarray) -> Rollouts:
        """A copy with further arrays under ``extra``, or with ``rewards`` set."""
        rewards = arrays.pop("rewards", self.rewards)
        return replace(self, rewards=rewards, extra={**self.extra, **arrays})

    def take(self, rows: Sequence[int] | np.ndarray) -> Rollouts:
        """The given rows."""
        rows = np.asarray(rows)
        pick = {k: np.asarray(v)[rows] for k, v in self.arrays().items()}
        known = {
            f: pick.pop(f)
            for f in ("tokens", "response_mask", "rollout_log_probs", "raw_log_probs", "prompt_id")
        }
        rewards = pick.pop("rewards", None)
        return replace(
            self, prompts=tuple(self.prompts[i] for i in rows), rewards=rewards, extra=pick, **known
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Every array by field name."""
        named = {
            "tokens": self.tokens,
            "response_mask": self.response_mask,
            "rollout_log_probs": self.rollout_log_probs,
            "raw_log_probs": self.raw_log_probs,
            "prompt_id": self.prompt_id,
        }
        if self.rewards is not None:
            named["rewards"] = self.rewards
        return {**named, **self.extra}


def assemble(
    prompts: Iterable[Sequence[int]],
    responses: Sequence[Sequence[int]],
    sampled: Sequence[Sequence[float]],
    raw: Sequence[Sequence[float]],
    *,
    prompt_id: Sequence[int],
    sampler: Sampler,
    engine: str,
    model: str,
    eos: int | None,
) -> Rollouts:
    """Rollouts from ragged lists."""
    width = max(len(r) for r in responses)
    mask = np.arange(width) < np.array([[len(r)] for r in responses])

    def fill(rows: Sequence[Sequence[Any]], dtype: Any) -> np.ndarray:
        out = np.zeros(mask.shape, dtype=dtype)
        for line, row in zip(out, rows, strict=True):
            line[: len(row)] = row
        return out

    return Rollouts(
        prompts=tuple(tuple(int(i) for i in p) for p in prompts),
        tokens=fill(responses, np.int64),
        response_mask=mask.astype(np.int64),
        rollout_log_probs=fill(sampled, float),
        raw_log_probs=fill(raw, float),
        prompt_id=np.asarray(prompt_id, dtype=np.int64),
        sampler=sampler,
        engine=engine,
        model=model,
        eos=eos,
    )


def export(rollouts: Rollouts, path: str | Path) -> Path:
    """Write rollouts to ``path``: ``.npz`` or ``.safetensors`` of padded arrays, or ``.jsonl`` with one
    sequence a line.

    Array files hold ``arrays()`` (tokens, response_mask, rollout_log_probs, rewards, …) with prompts as
    ``prompt_tokens`` and ``prompt_mask``, and the sampler's settings as JSON text. JSONL lines use the names
    of the token exports of trainers: ``token_ids``, ``loss_mask``, ``inference_logprobs``,
    ``trainer_logprobs``, ``reward``.
    """
    path = Path(path)
    settings = {**asdict(rollouts.sampler), "engine": rollouts.engine, "model": rollouts.model}
    if path.suffix == ".jsonl":
        with atomic(path) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in _lines(rollouts, settings)))
        return path
    width = max(len(p) for p in rollouts.prompts)
    prompt_mask = np.arange(width) < np.array([[len(p)] for p in rollouts.prompts])
    prompt_tokens = np.zeros(prompt_mask.shape, dtype=np.int64)
    for line, prompt in zip(prompt_tokens, rollouts.prompts, strict=True):
        line[: len(prompt)] = prompt
    arrays = {
        **rollouts.arrays(),
        "prompt_tokens": prompt_tokens,
        "prompt_mask": prompt_mask.astype(np.int64),
    }
    if path.suffix == ".npz":
        with atomic(path) as partial:
            np.savez_compressed(partial, **arrays, settings=np.array(json.dumps(settings)))  # type: ignore[arg-type]
    elif path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        with atomic(path) as partial:
            save_file(
                {k: np.ascontiguousarray(v) for k, v in arrays.items()},
                partial,
                {"settings": json.dumps(settings)},
            )
    else:
        raise ValueError(f"{path}: unknown suffix {path.suffix!r}; expected .npz, .safetensors or .jsonl")
    return path


def _lines(rollouts: Rollouts, settings: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    trainer = rollouts.extra.get("log_probs", rollouts.extra.get("old_log_probs"))
    columns = {"inference_logprobs": rollouts.rollout_log_probs, "trainer_logprobs": trainer}
    columns |= {k: rollouts.extra.get(k) for k in ("teacher_log_probs", "advantages", "entropy")}
    for i, (prompt, response) in enumerate(zip(rollouts.prompts, rollouts.responses, strict=True)):
        line: dict[str, Any] = {
            "token_ids": [*prompt, *response],
            "loss_mask": [False] * len(prompt) + [True] * len(response),
            "prompt_id": int(rollouts.prompt_id[i]),
            "sampler": dict(settings),
        }
        if rollouts.rewards is not None:
            line["reward"] = float(rollouts.rewards[i])
        for name, values in columns.items():
            if values is not None:
                line[name] = [0.0] * len(prompt) + [float(x) for x in values[i, : len(response)]]
        yield line
