"""One record of a dump (a JSON object, a parquet row, an entry of a ``.pt`` list) → one sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from opdtheory.audit.batch import ALIASES, LOGIT_POLICIES, TOKEN_COLUMNS, InputError, Sequence_

MAX_TOKEN_ID = 2**31
TOPK_POLICIES = ("train", "rollout", "teacher")


def canonical(record: Mapping[str, Any], source: str, where: str) -> dict[str, Any]:
    """Rename a trainer's names to the canonical ones; two names for one column are refused unless one is
    null.
    """
    out: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for key, value in record.items():
        name = ALIASES.get(key, key)
        if value is None and name in out:
            continue
        if out.get(name) is not None:
            raise InputError(
                source, where, f"keys {origin[name]!r} and {key!r} both give {name}", "one of them"
            )
        out[name], origin[name] = value, key
    return out


def sequence(record: Mapping[str, Any], source: str, where: str, group: str | None = None) -> Sequence_:
    """A checked sequence from a record with per-token lists; NeMo-RL's full-sequence rows lose their first
    token.

    Every per-token list must have the same length; ``tokens`` may be longer when ``response_lengths`` says
    how many of its last entries are the response.
    """
    shifted = "token_loss_mask" in record and ("generation_logprobs" in record or "prev_logprobs" in record)
    columns_in = canonical(record, source, where)
    columns = {
        name: _floats(columns_in[name], source, f"{where}, key {name!r}")
        for name in TOKEN_COLUMNS
        if columns_in.get(name) is not None and not _is_number(columns_in[name])
    }
    reward, token_rewards = _reward(columns_in.get("rewards"), source, where)
    if token_rewards is not None and "token_rewards" not in columns:
        columns["token_rewards"] = token_rewards
    topk = {p: t for p in TOPK_POLICIES if (t := _topk(columns_in, p, source, where)) is not None}
    tokens = (
        _ints(columns_in["tokens"], source, f"{where}, key 'tokens'")
        if columns_in.get("tokens") is not None
        else None
    )
    mask = _mask(columns_in.get("response_mask"), source, f"{where}, key 'response_mask'")
    lengths = {name: len(c) for name, c in columns.items()} | {
        f"{p}_topk_ids": len(t[0]) for p, t in topk.items()
    }
    if mask is not None:
        lengths["response_mask"] = len(mask)
    declared = columns_in.get("response_lengths")
    if declared is not None and not (
        isinstance(declared, int | np.integer) and not isinstance(declared, bool) and declared >= 0
    ):
        raise InputError(source, f"{where}, key 'response_length'", f"{declared!r}", "a non-negative integer")
    if not lengths and tokens is None:
        known = ", ".join(list(TOKEN_COLUMNS[:5]) + list(LOGIT_POLICIES))
        raise InputError(source, where, f"keys {sorted(map(str, record))[:8]}", f"at least one of {known}")
    length = (
        int(declared)
        if declared is not None
        else next(iter(lengths.values()), 0 if tokens is None else len(tokens))
    )
    for name, n in lengths.items():
        if n != length:
            first = "response_length" if declared is not None else next(iter(lengths))
            raise InputError(source, f"{where}, key {name!r}", f"length {n}", f"{length} as in {first!r}")
    if tokens is not None and len(tokens) != length:
        if declared is None or len(tokens) < length:
            raise InputError(
                source,
                f"{where}, key 'tokens'",
                f"length {len(tokens)}",
                f"{length} as in the log-probabilities",
            )
        tokens = tokens[len(tokens) - length :]
    sample = columns_in.get("sample_mask")
    if sample is not None:
        if not _is_number(sample) and not isinstance(sample, bool):
            raise InputError(
                source, f"{where}, key 'sample_mask'", f"{str(sample)[:40]!r}", "a number or boolean"
            )
        if not sample:
            mask = np.zeros(length, dtype=bool)
    advantage = columns_in.get("advantages")
    if advantage is not None and _is_number(advantage):
        columns["advantages"] = np.full(length, float(advantage))
    group_value = columns_in.get(group) if group else columns_in.get("group")
    if group and group_value is None:
        raise InputError(source, where, f"no key {group!r}", "the grouping column in every record")
    result = Sequence_(
        name=str(columns_in.get("id", where)),
        length=length,
        tokens=tokens,
        mask=mask,
        columns=columns,
        reward=reward,
        group=group_value if not isinstance(group_value, list | dict) else str(group_value),
        topk=topk,
        texts=_texts(columns_in.get("token_texts"), length),
    )
    return drop_first(result) if shifted else result


def drop_first(s: Sequence_) -> Sequence_:
    """The sequence without its first token, whose log-probability a next-token model cannot give."""
    if s.length == 0:
        return s
    return Sequence_(
        s.name,
        s.length - 1,
        None if s.tokens is None else s.tokens[1:],
        None if s.mask is None else s.mask[1:],
        {n: c[1:] for n, c in s.columns.items()},
        s.reward,
        s.group,
        {p: (i[1:], v[1:]) for p, (i, v) in s.topk.items()},
        None if s.texts is None else s.texts[1:],
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.floating | np.integer) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """Tensors become numpy arrays; a (1, T) array becomes (T,)."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float().numpy() if value.is_floating_point() else value.numpy()
    if isinstance(value, np.ndarray) and value.ndim == 2 and value.shape[0] == 1:
        value = value[0]
    return value


def _array(value: Any, source: str, where: str, expected: str, ndim: int = 1) -> np.ndarray:
    value = _plain(value)
    if not isinstance(value, list | tuple | np.ndarray):
        raise InputError(source, where, f"{type(value).__name__} {str(value)[:40]!r}", expected)
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError, RecursionError) as error:
        raise InputError(source, where, f"ragged or nested list ({str(error)[:60]})", expected) from None
    if array.dtype.kind == "O" and array.ndim == ndim:
        bad = next((i for i, v in enumerate(array.ravel()) if v is not None and not _is_number(v)), None)
        if bad is not None:
            raise InputError(source, f"{where}[{bad}]", f"{str(array.ravel()[bad])[:40]!r}", expected)
        try:
            array = array.astype(np.float64)
        except OverflowError:
            raise InputError(source, where, "an integer too large for a float", expected) from None
    if array.size == 0:
        array = np.zeros((0,) * ndim if array.ndim != ndim else array.shape)
    if array.ndim != ndim or array.dtype.kind not in "fiub":
        raise InputError(source, where, f"{array.ndim}-d array of {array.dtype}", expected)
    return array


def _floats(value: Any, source: str, where: str, ndim: int = 1) -> np.ndarray:
    array = _array(value, source, where, f"a {'flat ' if ndim == 1 else ''}list of numbers or nulls", ndim)
    if array.dtype.kind == "b":
        raise InputError(source, where, "a list of booleans", "a list of numbers or nulls")
    return array.astype(np.float64)


def _ints(value: Any, source: str, where: str, ndim: int = 1) -> np.ndarray:
    expected = f"{'lists' if ndim > 1 else 'a flat list'} of integers in [-1, {MAX_TOKEN_ID})"
    array = _array(value, source, where, expected, ndim)
    if array.dtype.kind == "b":
        raise InputError(source, where, "booleans", expected)
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and (array == np.floor(array)).all()):
        raise InputError(source, where, "fractional or missing token ids", expected)
    if array.size and (array.min() < -1 or array.max() >= MAX_TOKEN_ID):
        raise InputError(
            source, where, f"token id {int(array.min()) if array.min() < -1 else int(array.max())}", expected
        )
    return array.astype(np.int64)


def _mask(value: Any, source: str, where: str) -> np.ndarray | None:
    if value is None:
        return None
    array = _array(value, source, where, "a list of 0/1 or booleans")
    if not np.isin(array, (0, 1)).all():
        raise InputError(source, where, f"value {array[~np.isin(array, (0, 1))][0]}", "0/1 or booleans")
    return array.astype(bool)


def _reward(value: Any, source: str, where: str) -> tuple[float | None, np.ndarray | None]:
    value = _plain(value)
    if value is None:
        return None, None
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, list | tuple | np.ndarray) and len(value) > 1:
        rewards = _floats(value, source, f"{where}, key 'rewards'")
        return float(rewards.sum()), rewards
    if isinstance(value, list | tuple | np.ndarray) and len(value) == 1:
        value = value[0]
    if not _is_number(value):
        raise InputError(
            source, f"{where}, key 'rewards'", f"{str(value)[:40]!r}", "a number or a list of numbers"
        )
    return float(value), None


def _topk(
    columns: Mapping[str, Any], policy: str, source: str, where: str
) -> tuple[np.ndarray, np.ndarray] | None:
    ids, logps = columns.get(f"{policy}_topk_ids"), columns.get(f"{policy}_topk_log_probs")
    if ids is None and logps is None:
        return None
    if ids is None or logps is None:
        raise InputError(source, where, f"only one of {policy}_topk_ids and {policy}_topk_log_probs", "both")
    a = _ints(ids, source, f"{where}, key '{policy}_topk_ids'", 2)
    b = _floats(logps, source, f"{where}, key '{policy}_topk_log_probs'", 2)
    if a.shape != b.shape:
        raise InputError(
            source,
            f"{where}, key '{policy}_topk_ids'",
            f"shape {a.shape}",
            f"{b.shape} as in its log-probabilities",
        )
    return a, b


def _texts(value: Any, length: int) -> list[str] | None:
    if isinstance(value, list) and len(value) == length and all(isinstance(v, str) for v in value):
        return list(value)
    return None
