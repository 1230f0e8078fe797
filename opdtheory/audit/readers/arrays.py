"""Padded (B, T) tables of named arrays → batches; the tables may live in memory, in an npz or in a
safetensors file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from opdtheory.audit.batch import ALIASES, LOGIT_POLICIES, TOKEN_COLUMNS, Batch, InputError, Rows, group_key

TOPK_NAMES = tuple(f"{p}_topk_{s}" for p in ("train", "rollout", "teacher") for s in ("ids", "log_probs"))
MAX_BATCH_TOKENS = 1 << 18
LONG_GAP = 8
"""Masked-out stretches longer than this are skipped when logits are read."""


@dataclass(frozen=True)
class Column:
    """One named array: its shape, and ``fetch(start, stop)`` giving the rows of the first axis as numpy.

    ``tokens(start, stop)`` gives rows of the first two axes taken together, for arrays of three axes.
    """

    shape: tuple[int, ...]
    kind: str
    fetch: Callable[[int, int], np.ndarray]
    tokens: Callable[[int, int], np.ndarray] | None = None


def in_memory(arrays: Mapping[str, Any]) -> dict[str, Column]:
    """Columns of numpy arrays, torch tensors or nested lists."""
    out = {}
    for name, value in arrays.items():
        if hasattr(value, "detach"):
            value = value.detach().cpu()
            value = (value.float() if value.is_floating_point() else value).numpy()
        try:
            array = np.asarray(value)
        except ValueError:
            raise InputError("arrays", f"key {name!r}", "a ragged list", "an array of shape (B, T)") from None
        out[name] = Column(array.shape, array.dtype.kind, partial(_stretch, array), _by_token(array))
    return out


def _stretch(array: np.ndarray, start: int, stop: int) -> np.ndarray:
    return array[start:stop]


def _by_token(array: np.ndarray) -> Callable[[int, int], np.ndarray] | None:
    return partial(_stretch, array.reshape(-1, array.shape[2])) if array.ndim == 3 else None


def canonical_columns(columns: Mapping[str, Column], source: str) -> dict[str, Column]:
    """Columns under their canonical names."""
    out: dict[str, Column] = {}
    for name, column in columns.items():
        key = ALIASES.get(name, name)
        if key in out:
            raise InputError(source, f"key {name!r}", f"a second array for {key}", "one of them")
        out[key] = column
    return out


def batches(
    columns: Mapping[str, Column], source: str, group: str | None = None, step: int | None = None,
    first: int = 0, last: int = -1,
) -> Iterator[Batch]:  # fmt: skip
    """Batches of a few sequences each; memory is bounded by the batch, not by the table.

    Shapes: ``tokens``, masks and log-probabilities (B, T); ``rewards`` and ``group`` (B,); logits (B, T, V);
    top-k tables (B, T, k).  Rows ``first`` to ``last`` (the end if −1) are read; batches end between prompts
    where the prompts' rows are neighbours and few enough.
    """
    table = canonical_columns(columns, source)
    shape = _check_shapes(table, source)
    if group is not None and group not in table:
        raise InputError(source, "", f"no array {group!r}", "the grouping column")
    key = group or ("group" if "group" in table else None)
    if key is not None and table[key].shape not in ((shape[0],), (shape[0], 1)):
        raise InputError(source, f"key {key!r}", f"shape {table[key].shape}", f"({shape[0]},)")
    per = max(1, MAX_BATCH_TOKENS // max(1, shape[1]))
    end = shape[0] if last < 0 else last
    while first < end:
        stop = min(first + per, end)
        if key is not None and stop < end:
            stop = _between_groups(_labels(table[key], first, stop + 1), first)
        yield _batch(table, source, group, step, first, stop, shape[1])
        first = stop


def _labels(column: Column, start: int, stop: int) -> list[Any]:
    """The group names of some sequences."""
    return np.asarray(column.fetch(start, stop)).reshape(-1).tolist()


def _between_groups(names: list[Any], first: int) -> int:
    """The last row of a stretch at which a new group begins, or its last row if all are one group."""
    starts = np.flatnonzero([a != b for a, b in pairwise(names)])
    return first + (int(starts[-1]) + 1 if len(starts) else len(names) - 1)


def row_count(columns: Mapping[str, Column], source: str) -> int:
    """Number of sequences in a table."""
    return _check_shapes(canonical_columns(columns, source), source)[0]


def _check_shapes(table: Mapping[str, Column], source: str) -> tuple[int, int]:
    shape: tuple[int, int] | None = None
    first = ""
    useful = [n for n in (*TOKEN_COLUMNS, *LOGIT_POLICIES, *TOPK_NAMES) if n in table]
    if not useful:
        expected = f"at least one of {', '.join(TOKEN_COLUMNS[:5])}, {', '.join(LOGIT_POLICIES)}"
        raise InputError(source, "", f"arrays {sorted(table)[:8]}", expected)
    for name in (*useful, "tokens", "response_mask"):
        if name not in table or (name == "advantages" and len(table[name].shape) == 1):
            continue
        got = table[name].shape
        dims = 3 if name in LOGIT_POLICIES or name in TOPK_NAMES else 2
        if len(got) != dims:
            raise InputError(
                source, f"key {name!r}", f"shape {got}", "(B, T)" if dims == 2 else "(B, T, V or k)"
            )
        kinds = (
            "biu"
            if name in ("tokens",) or name.endswith("_ids")
            else "fiub"
            if name == "response_mask"
            else "f"
        )
        if table[name].kind not in kinds:
            wanted = {"biu": "integers", "f": "floating-point numbers"}.get(kinds, "0/1 or booleans")
            raise InputError(source, f"key {name!r}", f"dtype kind {table[name].kind!r}", wanted)
        if shape is None:
            shape, first = (got[0], got[1]), name
        elif got[:2] != shape:
            raise InputError(source, f"key {name!r}", f"shape {got}", f"leading axes {shape} as in {first!r}")
    assert shape is not None
    vocab = {table[n].shape[2] for n in LOGIT_POLICIES if n in table}
    if len(vocab) > 1:
        raise InputError(source, "logits", f"vocabularies {sorted(vocab)}", "one vocabulary for every policy")
    for name in ("rewards", "sample_mask", "advantages"):
        if name not in table:
            continue
        got, allowed = table[name].shape, [(shape[0],), (shape[0], 1)]
        if name in ("rewards", "advantages"):
            allowed.append(shape)
            if table[name].kind not in "fiub":
                raise InputError(source, f"key {name!r}", f"dtype kind {table[name].kind!r}", "numbers")
        if got not in allowed:
            expected = " or ".join(map(str, dict.fromkeys((allowed[0], allowed[-1]))))
            raise InputError(source, f"key {name!r}", f"shape {got}", expected)
    for policy in ("train", "rollout", "teacher"):
        pair = [table.get(f"{policy}_topk_{s}") for s in ("ids", "log_probs")]
        if (pair[0] is None) != (pair[1] is None) or (pair[0] and pair[1] and pair[0].shape != pair[1].shape):
            raise InputError(
                source,
                f"{policy}_topk",
                "ids and log-probabilities that differ in shape or presence",
                "both, alike",
            )
    if vocab and "tokens" not in table:
        raise InputError(source, "tokens", "no tokens beside full logits", "the drawn token ids (B, T)")
    return shape


def _batch(
    table: Mapping[str, Column], source: str, group: str | None, step: int | None, a: int, b: int, T: int
) -> Batch:
    n = b - a
    mask = np.ones((n, T), dtype=bool)
    if "response_mask" in table:
        raw = table["response_mask"].fetch(a, b)
        if not np.isin(raw, (0, 1)).all():
            raise InputError(
                source,
                f"key 'response_mask' rows {a}..{b - 1}",
                f"value {raw[~np.isin(raw, (0, 1))][0]}",
                "0/1",
            )
        mask = raw.astype(bool)
    if "sample_mask" in table:
        mask = mask & (np.asarray(table["sample_mask"].fetch(a, b)).reshape(n, -1)[:, :1] != 0)
    kept = np.flatnonzero(mask)
    lengths = mask.sum(axis=1)
    first = np.where(lengths > 0, mask.argmax(axis=1), 0) if T else lengths

    def flat(name: str) -> np.ndarray:
        values = np.asarray(table[name].fetch(a, b))
        if values.ndim == 1:  # one advantage per sequence
            values = np.broadcast_to(values[:, None], (n, T))
        return values.reshape((n * T, *values.shape[2:]))[kept]

    columns = {name: flat(name).astype(np.float64) for name in TOKEN_COLUMNS if name in table}
    rewards = None
    if "rewards" in table:
        raw = np.asarray(table["rewards"].fetch(a, b), dtype=np.float64)
        rewards = raw if raw.ndim == 1 else np.where(mask, raw, 0.0).sum(axis=1)
        if raw.ndim == 2:
            columns.setdefault("token_rewards", raw.reshape(-1)[kept])
    tokens = flat("tokens").astype(np.int64) if "tokens" in table else np.full(len(kept), -1)
    if tokens.size and "tokens" in table and tokens.min() < 0:
        raise InputError(
            source, "key 'tokens'", f"token id {tokens.min()}", "ids >= 0 wherever the mask is 1"
        )
    logits = {}
    for name, policy in LOGIT_POLICIES.items():
        if name in table:
            vocab = table[name].shape[2]
            if tokens.size and tokens.max() >= vocab:
                raise InputError(
                    source, "key 'tokens'", f"token id {tokens.max()}", f"ids below the vocabulary {vocab}"
                )
            logits[policy] = Rows(vocab, _row_fetcher(table[name], kept, a, T))
    ids = [f"row {i}" for i in range(a, b)]
    key = group or ("group" if "group" in table else None)
    names = [f"{source}:{i}" for i in ids] if key is None else _labels(table[key], a, b)
    topk = {
        p: (flat(f"{p}_topk_ids").astype(np.int64), flat(f"{p}_topk_log_probs").astype(np.float64))
        for p in ("train", "rollout", "teacher")
        if f"{p}_topk_ids" in table
    }
    return Batch(
        source=source,
        tokens=tokens,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        positions=kept % T - np.repeat(first, lengths) if T else kept,
        columns=columns,
        group=np.array([group_key(v) for v in names], dtype=np.uint64),
        ids=ids,
        rewards=rewards,
        logits=logits,
        topk=topk,
        dropped=T - lengths,
        grouped=key is not None,
        step=step,
    )


def _row_fetcher(
    column: Column, kept: np.ndarray, first_row: int, T: int
) -> Callable[[int, int], np.ndarray]:
    """Rows start..stop of the kept tokens; only stretches without long masked gaps are read."""
    assert column.tokens is not None
    read, offset = column.tokens, first_row * T

    def fetch(start: int, stop: int) -> np.ndarray:
        index = kept[start:stop]
        if not len(index):
            return np.zeros((0, column.shape[2]), np.float32)
        cuts = np.flatnonzero(np.diff(index) > LONG_GAP) + 1
        parts = [
            read(offset + int(run[0]), offset + int(run[-1]) + 1)[run - run[0]]
            for run in np.split(index, cuts)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    return fetch
