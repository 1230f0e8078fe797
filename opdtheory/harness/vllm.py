"""Reading what vLLM wrote: offline outputs and OpenAI-style responses, as rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .rollouts import Rollouts, Sampler, assemble


def read_vllm(
    outputs: Sequence[Any], sampler: Sampler, *, model: str = "vllm", eos: int | None = None
) -> Rollouts:
    """Rollouts from vLLM request outputs, objects or the equal dictionaries.

    Each has ``prompt_token_ids`` and ``outputs``, each of those ``token_ids`` and ``logprobs``: per position
    a mapping from token id to a log-probability (a number, or an object or mapping with ``logprob``). The
    sampled token's entry is taken, which need not be the first. ``sampler`` states the settings they were
    made with: temperature 1 without truncation, because sampled log-probabilities alone cannot be turned into
    those of another sampler. Raises ValueError naming the request, completion and position at fault.
    """
    if (sampler.temperature, sampler.top_p, sampler.top_k) != (1.0, 1.0, 0):
        raise ValueError(
            f"sampler {sampler}: a dump without full logits cannot tell the true log-probabilities of a "
            "tempered or truncated sampler; expected temperature 1, top_p 1, top_k 0"
        )
    prompts, responses, log_probs, prompt_id = [], [], [], []
    for i, request in enumerate(outputs):
        for j, completion in enumerate(_get(request, "outputs", f"request {i}")):
            where = f"request {i}, completion {j}"
            ids = [int(t) for t in _get(completion, "token_ids", where)]
            entries = _get(completion, "logprobs", where)
            if entries is None or len(entries) != len(ids):
                raise ValueError(
                    f"{where}: {0 if entries is None else len(entries)} logprobs for {len(ids)} tokens"
                )
            if not ids:
                raise ValueError(f"{where}: no tokens")
            prompts.append([int(t) for t in _get(request, "prompt_token_ids", where)])
            responses.append(ids)
            log_probs.append(
                [
                    _sampled(e, t, f"{where}, position {k}")
                    for k, (e, t) in enumerate(zip(entries, ids, strict=True))
                ]
            )
            prompt_id.append(i)
    if not responses:
        raise ValueError("no completions in the vLLM output")
    return assemble(
        prompts, responses, log_probs, log_probs,
        prompt_id=prompt_id, sampler=sampler, engine="vllm", model=model, eos=eos,
    )  # fmt: skip


def _get(holder: Any, key: str, where: str) -> Any:
    value = holder.get(key, _get) if isinstance(holder, Mapping) else getattr(holder, key, _get)
    if value is _get:
        raise ValueError(f"{where}: no {key!r}; expected a vLLM request output")
    return value


def _sampled(entry: Mapping[Any, Any] | None, token: int, where: str) -> float:
    found = None if entry is None else entry.get(token, entry.get(str(token)))
    if found is None:
        raise ValueError(f"{where}: no log-probability for the sampled token {token}")
    if isinstance(found, Mapping):
        found = found.get("logprob")
    number: Any = getattr(found, "logprob", found)
    value = float("nan") if number is None else float(number)
    if not value <= 0:
        raise ValueError(f"{where}: log-probability {value} of token {token}, expected at most 0")
    return value
