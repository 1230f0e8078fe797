"""What a reader hands on: a batch of sequences with its masked-out tokens removed, ready for statistics.

Tokens of all sequences lie one after the other (ragged layout): sequence i owns the entries
``offsets[i]:offsets[i+1]`` of every per-token array.  ``positions`` keeps each token's index in its response,
so that dropping masked tokens loses no place.  Log-probabilities are of the drawn token, in nats.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

TOKEN_COLUMNS = (
    "log_probs", "old_log_probs", "rollout_log_probs", "ref_log_probs", "teacher_log_probs", "advantages",
    "token_rewards", "entropy",
)  # fmt: skip
LOG_PROB_COLUMNS = TOKEN_COLUMNS[:5]

ALIASES: dict[str, str] = {
    "logprobs": "log_probs",
    "per_token_logps": "log_probs",
    "curr_logprobs": "log_probs",
    "trainer_logprobs": "log_probs",
    "policy_log_probs": "log_probs",
    "actor_log_probs": "log_probs",
    "old_logprobs": "old_log_probs",
    "old_per_token_logps": "old_log_probs",
    "prev_logprobs": "old_log_probs",
    "rollout_logprobs": "rollout_log_probs",
    "sampling_per_token_logps": "rollout_log_probs",
    "generation_logprobs": "rollout_log_probs",
    "inference_logprobs": "rollout_log_probs",
    "sampling_logprobs": "rollout_log_probs",
    "behavior_log_probs": "rollout_log_probs",
    "ref_log_prob": "ref_log_probs",
    "ref_logprobs": "ref_log_probs",
    "ref_per_token_logps": "ref_log_probs",
    "reference_policy_logprobs": "ref_log_probs",
    "teacher_logprobs": "teacher_log_probs",
    "teacher_per_token_logps": "teacher_log_probs",
    "completion_mask": "response_mask",
    "loss_mask": "response_mask",
    "token_mask": "response_mask",
    "token_loss_mask": "response_mask",
    "loss_masks": "response_mask",
    "token_ids": "tokens",
    "input_ids": "tokens",
    "completion_ids": "tokens",
    "responses": "tokens",
    "reward": "rewards",
    "scores": "rewards",
    "advantage": "advantages",
    "prompt_id": "group",
    "group_id": "group",
    "group_index": "group",
    "uid": "group",
    "prompt_ids_hash": "group",
    "entropies": "entropy",
    "train_logits": "logits",
    "student_logits": "logits",
    "sampler_logits": "rollout_logits",
    "sample_loss_mask": "sample_mask",
    "response_length": "response_lengths",
    "topk_ids": "train_topk_ids",
    "topk_log_probs": "train_topk_log_probs",
    "log_probs_topk_ids": "train_topk_ids",
    "log_probs_topk": "train_topk_log_probs",
}
"""Names other trainers use for the canonical columns."""

LOGIT_POLICIES = {"logits": "train", "rollout_logits": "rollout", "teacher_logits": "teacher"}


class InputError(ValueError):
    """Bad input: says which file, where in it, what was found and what was expected, in one line."""

    def __init__(self, source: str, where: str, found: str, expected: str) -> None:
        self.source, self.where = source, where
        text = f"{source}: {where + ': ' if where else ''}{found}; expected {expected}"
        super().__init__(" ".join(text.split()))


@dataclass(frozen=True)
class Rows:
    """Full-vocabulary logits of a batch, fetched a few rows at a time: ``fetch(start, stop)`` → float32 (n,
    V).
    """

    vocab: int
    fetch: Callable[[int, int], np.ndarray]

    @staticmethod
    def of(array: np.ndarray) -> Rows:
        return Rows(array.shape[-1], lambda start, stop: array[start:stop])


@dataclass(frozen=True)
class Batch:
    """B sequences, N kept tokens.

    ``tokens`` (N,) int64 (−1 unknown), ``offsets`` (B+1,), ``positions`` (N,) index inside the response,
    ``columns`` name → (N,) float64, ``rewards`` (B,) or None, ``group`` (B,) uint64 prompt keys, ``ids``
    (B,) names for messages, ``logits`` policy → ``Rows`` of N rows, ``topk`` policy → (ids (N,k), log-probs
    (N,k)), ``dropped`` masked-out tokens per sequence.
    """

    source: str
    tokens: np.ndarray
    offsets: np.ndarray
    positions: np.ndarray
    columns: Mapping[str, np.ndarray]
    group: np.ndarray
    ids: Sequence[str]
    rewards: np.ndarray | None = None
    logits: Mapping[str, Rows] = field(default_factory=dict)
    topk: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    texts: Sequence[str] | None = None
    dropped: np.ndarray | None = None
    grouped: bool = False
    step: int | None = None

    @property
    def size(self) -> int:
        """Number of sequences B."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Kept tokens of each sequence, (B,)."""
        return np.diff(self.offsets)

    @property
    def sequence_of(self) -> np.ndarray:
        """Index of the sequence each token belongs to, (N,)."""
        return np.repeat(np.arange(self.size), self.lengths)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Σ over the tokens of each sequence: (N,) → (B,), 0 for an empty sequence."""
        return np.bincount(self.sequence_of, weights=values, minlength=self.size)

    def maxima(self, values: np.ndarray, empty: float = -np.inf) -> np.ndarray:
        """Maximum over the tokens of each sequence, ``empty`` where there are none."""
        out = np.full(self.size, empty)
        full = self.lengths > 0
        if full.any():
            out[full] = np.maximum.reduceat(values, self.offsets[:-1][full])
        return out

    @property
    def response_mask(self) -> np.ndarray:
        """(B, T) booleans: which places of a padded table hold tokens, T the longest sequence."""
        return np.arange(max(1, int(self.lengths.max(initial=0)))) < self.lengths[:, None]

    def padded(self, values: np.ndarray, fill: float = 0.0) -> np.ndarray:
        """Per-token values (N,) → a padded table (B, T)."""
        mask = self.response_mask
        out = np.full(mask.shape, fill)
        out[mask] = values
        return out

    def token_keys(self, which: np.ndarray) -> np.ndarray:
        """64-bit keys of the token sequences of some answers, uint64."""
        parts = (self.tokens[self.offsets[i] : self.offsets[i + 1]].tobytes() for i in which)
        return np.array([_digest(part) for part in parts], dtype=np.uint64)

    def place(self, token: int) -> str:
        """Name of one token for a message."""
        i = int(np.searchsorted(self.offsets, token, side="right")) - 1
        return f"{self.ids[i]} position {int(self.positions[token])}"

    def at_step(self, step: int | None) -> Batch:
        return replace(self, step=step)


def group_key(value: Any) -> int:
    """64-bit key of a prompt or group name, the same in every process."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return _digest(str(value).encode())


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


@dataclass
class Sequence_:
    """One sequence as a reader sees it, before masks are applied: every per-token field has ``length``
    entries.
    """

    name: str
    length: int
    tokens: np.ndarray | None = None
    mask: np.ndarray | None = None
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    reward: float | None = None
    group: Any = None
    topk: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    texts: list[str] | None = None


def assemble(source: str, sequences: Sequence[Sequence_], step: int | None = None) -> Batch:
    """Join checked sequences into a batch, dropping masked-out tokens; columns missing in some become NaN
    there.
    """
    names = sorted({name for s in sequences for name in s.columns})
    keep = [np.ones(s.length, dtype=bool) if s.mask is None else s.mask for s in sequences]
    lengths = np.array([int(k.sum()) for k in keep], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

    def join(pick: Callable[[Sequence_], np.ndarray], dtype: Any) -> np.ndarray:
        parts = [pick(s)[k] for s, k in zip(sequences, keep, strict=True)]
        return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)

    # offsets of positions: index within the response, the response starting at the first kept token
    first = [int(np.argmax(k)) if k.any() else 0 for k in keep]
    positions = [np.flatnonzero(k) - f for k, f in zip(keep, first, strict=True)]
    policies = sorted({p for s in sequences for p in s.topk})
    rewards = np.array([np.nan if s.reward is None else s.reward for s in sequences])
    grouped = any(s.group is not None for s in sequences)
    return Batch(
        source=source,
        tokens=join(lambda s: np.full(s.length, -1) if s.tokens is None else s.tokens, np.int64),
        offsets=offsets,
        positions=np.concatenate(positions).astype(np.int64) if positions else np.zeros(0, np.int64),
        columns={n: join(partial(_column, n), np.float64) for n in names},
        group=np.array(
            [group_key(f"{source}: {s.name}" if s.group is None else s.group) for s in sequences],
            dtype=np.uint64,
        ),
        ids=[s.name for s in sequences],
        rewards=None if np.isnan(rewards).all() else rewards,
        topk={p: _join_topk([s.topk.get(p) for s in sequences], keep) for p in policies},
        texts=_join_texts(sequences, keep),
        dropped=np.array([int(len(k) - k.sum()) for k in keep], dtype=np.int64),
        grouped=grouped,
        step=step,
    )


def _column(name: str, s: Sequence_) -> np.ndarray:
    return s.columns.get(name, np.full(s.length, np.nan))


def _join_topk(
    parts: list[tuple[np.ndarray, np.ndarray] | None], keep: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Stack top-k tables of different widths; unused places get id −1 and log-probability −inf."""
    k = max(p[0].shape[1] for p in parts if p is not None)
    ids, logps = [], []
    for part, kept in zip(parts, keep, strict=True):
        row_ids, row_logps = np.full((len(kept), k), -1, np.int64), np.full((len(kept), k), -np.inf)
        if part is not None:
            row_ids[:, : part[0].shape[1]], row_logps[:, : part[1].shape[1]] = part
        ids.append(row_ids[kept])
        logps.append(row_logps[kept])
    return np.concatenate(ids), np.concatenate(logps)


def _join_texts(sequences: Sequence[Sequence_], keep: list[np.ndarray]) -> list[str] | None:
    if all(s.texts is None for s in sequences):
        return None
    out: list[str] = []
    for s, kept in zip(sequences, keep, strict=True):
        texts = s.texts if s.texts is not None else [""] * s.length
        out += [t for t, k in zip(texts, kept, strict=True) if k]
    return out
