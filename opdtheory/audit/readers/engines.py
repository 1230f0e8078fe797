"""Log-prob dumps of inference engines: vLLM (offline), OpenAI-style servers, SGLang → sequences.

All three give the sampled token's log-probability under the rollout policy and, when asked for, a top-k
table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from opdtheory.audit.batch import InputError, Sequence_, group_key
from opdtheory.audit.readers.records import sequence


def kind_of(record: Mapping[str, Any]) -> str | None:
    """Which engine wrote this record: "vllm", "openai", "sglang", or None."""
    choices, meta, outputs = record.get("choices"), record.get("meta_info"), record.get("outputs")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict) and "logprobs" in choices[0]:
        return "openai"
    if isinstance(meta, dict) and "output_token_logprobs" in meta:
        return "sglang"
    if isinstance(outputs, list) and outputs and isinstance(outputs[0], dict) and "token_ids" in outputs[0]:
        return "vllm"
    rows = record.get("logprobs")
    if isinstance(rows, list) and "token_ids" in record and any(isinstance(r, dict) for r in rows):
        return "vllm"
    return None


def sequences(
    record: Mapping[str, Any], kind: str, source: str, where: str, group: str | None
) -> Iterator[Sequence_]:
    """The sequences of one engine record; per-token lists under canonical names beside them are kept."""
    split = {"vllm": _vllm, "openai": _openai, "sglang": _sglang}[kind]
    try:
        for i, (flat, place) in enumerate(split(record)):
            spot = f"{where}{place}"
            flat.setdefault(
                "group", record.get("group", record.get("request_id", record.get("prompt", record.get("id"))))
            )
            if group:
                flat[group] = record.get(group)
            flat.setdefault("id", f"{record['id']}#{i}" if "id" in record else spot)
            yield sequence(flat, source, spot, group)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        text = f"malformed {kind} record ({type(error).__name__}: {str(error)[:60]})"
        raise InputError(source, where, text, _SHAPES[kind]) from None


_SHAPES = {
    "vllm": "token_ids and logprobs=[{token_id: {logprob, rank, decoded_token}}]",
    "openai": "choices[].logprobs.content[] with token and logprob, or tokens and token_logprobs",
    "sglang": "meta_info.output_token_logprobs as [logprob, id, text]",
}
_EXTRA = (
    "log_probs",
    "old_log_probs",
    "teacher_log_probs",
    "ref_log_probs",
    "advantages",
    "rewards",
    "reward",
    "response_mask",
)


def _beside(record: Mapping[str, Any]) -> dict[str, Any]:
    return {k: record[k] for k in _EXTRA if k in record}


def _table(rows: list[list[tuple[int, float]]]) -> dict[str, Any]:
    """Ragged top-k rows → padded ids and log-probabilities; a width of one is only the sampled token, no
    table.
    """
    width = max((len(r) for r in rows), default=0)
    if width < 2:
        return {}
    ids, logps = np.full((len(rows), width), -1), np.full((len(rows), width), -np.inf)
    for i, row in enumerate(rows):
        ordered = sorted(row, key=lambda e: (-e[1], e[0]))
        ids[i, : len(row)] = [e[0] for e in ordered]
        logps[i, : len(row)] = [e[1] for e in ordered]
    return {"rollout_topk_ids": ids, "rollout_topk_log_probs": logps}


def _vllm(record: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    outputs = record["outputs"] if isinstance(record.get("outputs"), list) else [record]
    for n, out in enumerate(outputs):
        tokens, rows = out["token_ids"], out["logprobs"]
        if len(rows) != len(tokens):
            raise ValueError(f"{len(rows)} logprob entries for {len(tokens)} tokens")
        # the sampled id is looked up by name: engines put it at different places of the dictionary
        entries = [
            {int(k): v if isinstance(v, dict) else {"logprob": v} for k, v in row.items()} for row in rows
        ]
        logps = [row[int(t)]["logprob"] for row, t in zip(entries, tokens, strict=True)]
        texts = [str(row[int(t)].get("decoded_token") or "") for row, t in zip(entries, tokens, strict=True)]
        table = _table([[(k, float(v["logprob"])) for k, v in row.items()] for row in entries])
        place = f", outputs[{n}]" if "outputs" in record else ""
        yield (
            {"tokens": tokens, "rollout_log_probs": logps, "token_texts": texts, **table, **_beside(out)},
            place,
        )


def _openai(record: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    for n, choice in enumerate(record["choices"]):
        content = choice["logprobs"].get("content")
        if content is None:
            content = _completions(choice["logprobs"])
        table = _table(
            [
                [(_text_id(e["token"]), float(e["logprob"])) for e in c.get("top_logprobs") or []]
                for c in content
            ]
        )
        flat = {
            "tokens": [_text_id(c["token"]) for c in content],
            "rollout_log_probs": [c["logprob"] for c in content],
            "token_texts": [str(c["token"]) for c in content],
        }
        yield flat | table | _beside(choice), f", choices[{n}]"


def _completions(logprobs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parallel lists of the older completions interface as the entries of the chat one."""
    tokens, values = logprobs["tokens"], logprobs["token_logprobs"]
    tables = logprobs.get("top_logprobs") or [None] * len(tokens)
    return [
        {
            "token": token,
            "logprob": value,
            "top_logprobs": [{"token": t, "logprob": v} for t, v in (table or {}).items()],
        }
        for token, value, table in zip(tokens, values, tables, strict=True)
    ]


def _text_id(token: str) -> int:
    """``token_id:17`` is 17; other texts get a stable key of their own, since the format carries no ids."""
    if not isinstance(token, str):
        raise TypeError(f"token {token!r} is not text")
    if token.startswith("token_id:"):
        return int(token.removeprefix("token_id:"))
    return group_key(token) >> 34


def _sglang(record: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    meta = record["meta_info"]
    rows = meta["output_token_logprobs"]
    top = meta.get("output_top_logprobs") or []
    table = (
        _table([[(int(e[1]), float(e[0])) for e in row or []] for row in top])
        if len(top) == len(rows)
        else {}
    )
    flat: dict[str, Any] = {
        "tokens": [int(r[1]) for r in rows],
        "rollout_log_probs": [r[0] for r in rows],
        "token_texts": [str(r[2]) if len(r) > 2 and r[2] is not None else "" for r in rows],
    }
    if "id" in meta:
        flat["id"] = str(meta["id"])
    yield flat | table | _beside(record), ""
