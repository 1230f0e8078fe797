"""Engines: things that sample rollouts and can say, position by position, what distribution they sampled
from.

Every engine has ``generate(prompts, sampler)`` and ``stream(prompts, responses)``; the latter replays given
token ids and yields full logits chunk by chunk, in the engine's own way of computing (token by token with a
KV cache, or all positions at once). Replaying what was generated therefore recovers the exact sampling
distribution without storing it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from .forward import Block, Ids, hidden_states, logit_blocks, pad
from .models import LanguageModel, check_context, round_to_bits
from .rollouts import Rollouts, Sampler, assemble, uniforms


class Engine(Protocol):
    """What the experiments ask of an engine. ``rows`` is how many sequences one replay may hold at a time."""

    @property
    def name(self) -> str: ...
    @property
    def vocab(self) -> int: ...
    @property
    def rows(self) -> int: ...
    def generate(self, prompts: Ids, sampler: Sampler, samples: int = 1) -> Rollouts: ...
    def stream(self, prompts: Ids, responses: Ids, chunk: int = 64) -> Iterator[Block]: ...


@dataclass(frozen=True)
class TorchEngine:
    """A transformers model run in torch.

    ``mode`` is how ``stream`` computes: ``"decode"`` token by token with a KV cache, ``"prefill"`` all
    positions in one pass. ``batch`` sequences are computed together, padded to one length; ``kv_bits`` rounds
    every cached key and value (decode only). Rollouts are always decoded.
    """

    model: LanguageModel
    mode: str = "decode"
    batch: int = 8
    kv_bits: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("decode", "prefill"):
            raise ValueError(f"mode {self.mode!r}: expected 'decode' or 'prefill'")
        if self.batch < 1:
            raise ValueError(f"batch {self.batch}: expected at least 1")
        if self.kv_bits is not None and (self.mode == "prefill" or not 2 <= self.kv_bits <= 16):
            raise ValueError(f"kv_bits {self.kv_bits} in mode {self.mode}: expected 2..16 in mode 'decode'")

    @property
    def name(self) -> str:
        """The engine and how it computes."""
        kind = str(self.model.dtype).removeprefix("torch.")
        cache = f", {self.kv_bits}-bit cache" if self.kv_bits is not None else ""
        return f"torch {kind} {self.mode} ×{self.batch}{cache}"

    @property
    def vocab(self) -> int:
        """Number of logits."""
        return self.model.vocab

    @property
    def rows(self) -> int:
        """Sequences one replay may hold: any number, computed ``batch`` at a time."""
        return max(self.batch, 8)

    @torch.no_grad()
    def generate(self, prompts: Ids, sampler: Sampler, samples: int = 1) -> Rollouts:
        """``samples`` responses to each prompt (rows of one prompt are adjacent)."""
        check_context(self.model, prompts, sampler.max_tokens)
        rows = [list(p) for p in prompts for _ in range(samples)]
        tokens: list[list[int]] = [[] for _ in rows]
        sampled: list[list[float]] = [[] for _ in rows]
        raw: list[list[float]] = [[] for _ in rows]
        for start in range(0, len(rows), self.batch):
            part = range(start, min(start + self.batch, len(rows)))
            decoder = _Decoder(self.model, [rows[i] for i in part], self.kv_bits)
            random = torch.tensor([uniforms(sampler.seed, i, sampler.max_tokens).tolist() for i in part])
            alive = [True] * len(part)
            for t in range(sampler.max_tokens):
                drawn, log_p, log_raw = sampler.draw(decoder.logits, random[:, t].to(decoder.logits.device))
                for j, i in enumerate(part):
                    if alive[j]:
                        tokens[i].append(int(drawn[j]))
                        sampled[i].append(float(log_p[j]))
                        raw[i].append(float(log_raw[j]))
                        alive[j] = int(drawn[j]) != self.model.eos
                if t + 1 == sampler.max_tokens or not any(alive):
                    break
                decoder.step(drawn)
        return assemble(
            rows, tokens, sampled, raw, prompt_id=[i for i in range(len(prompts)) for _ in range(samples)],
            sampler=sampler, engine=self.name, model=self.model.name, eos=self.model.eos,
        )  # fmt: skip

    @torch.no_grad()
    def stream(self, prompts: Ids, responses: Ids, chunk: int = 64) -> Iterator[Block]:
        """Full logits of the responses' positions, ``chunk`` positions at a time."""
        groups = [slice(s, s + self.batch) for s in range(0, len(prompts), self.batch)]
        if self.mode == "prefill":
            width = max(len(r) for r in responses)
            states = [_widened(hidden_states(self.model, prompts[g], responses[g]), width) for g in groups]
            yield from logit_blocks(self.model, torch.cat(states), responses, chunk)
            return
        check_context(self.model, prompts, max(len(r) for r in responses))
        ids, mask = pad(responses)
        decoders = [_Decoder(self.model, prompts[g], self.kv_bits) for g in groups]
        for start in range(0, ids.shape[1], chunk):
            stop = min(start + chunk, ids.shape[1])
            columns = []
            for t in range(start, stop):
                columns.append(torch.cat([d.logits for d in decoders]))
                if t + 1 < ids.shape[1]:
                    for group, decoder in zip(groups, decoders, strict=True):
                        decoder.step(ids[group, t])
            yield Block(start, stop, torch.stack(columns, 1), mask[:, start:stop])


class _Decoder:
    """A batch of sequences being decoded: ``logits`` (B, V) of the next token, ``step`` appends one token a
    row.
    """

    def __init__(self, model: LanguageModel, prompts: Ids, kv_bits: int | None) -> None:
        from transformers import DynamicCache

        self.model, self.kv_bits = model, kv_bits
        ids, mask = pad(prompts, left=True)
        self.padded = not bool(mask.all())
        self.mask = mask.to(model.device)
        self.positions = (self.mask.long().cumsum(-1) - 1).clamp_min(0)
        self.cache = DynamicCache(config=model.module.config)
        self.logits = self._forward(ids.to(model.device), self.positions)

    def step(self, tokens: torch.Tensor) -> None:
        """Append ``tokens`` (B,) and compute the next logits."""
        one = torch.ones_like(self.mask[:, :1])
        self.mask = torch.cat([self.mask, one], 1)
        self.positions = self.positions[:, -1:] + 1
        self.logits = self._forward(tokens.to(self.model.device)[:, None], self.positions)

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        states = self.model.trunk(
            input_ids=ids,
            attention_mask=self.mask if self.padded else None,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        if self.kv_bits is not None:
            layers: Any = self.cache.layers
            fresh = slice(-ids.shape[1], None)
            for kept in (x for layer in layers for x in (layer.keys, layer.values)):
                kept[..., fresh, :] = round_to_bits(kept[..., fresh, :], self.kv_bits)
        return self.model.head(states[:, -1].to(self.model.head.weight.device))


def paired(
    first: Engine, second: Engine, prompts: Ids, responses: Ids, chunk: int = 32
) -> Iterator[tuple[Sequence[int], int, int, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Both engines' logits side by side: (row indices, start, stop, logits, logits, mask), never more than a
    chunk.
    """
    if first.vocab != second.vocab:
        raise ValueError(
            f"vocabularies of different size: {first.name} {first.vocab}, {second.name} {second.vocab}"
        )
    size = min(first.rows, second.rows)
    for begin in range(0, len(prompts), size):
        rows = range(begin, min(begin + size, len(prompts)))
        p, r = [prompts[i] for i in rows], [responses[i] for i in rows]
        for a, b in zip(first.stream(p, r, chunk), second.stream(p, r, chunk), strict=True):
            yield rows, a.start, a.stop, a.logits, b.logits.to(a.logits.device), a.mask


def _widened(states: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(states, (0, 0, 0, width - states.shape[1]))
