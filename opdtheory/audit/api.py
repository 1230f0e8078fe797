"""``audit_logs``: the one function that turns logs into a report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from opdtheory.audit.batch import InputError
from opdtheory.audit.readers import batches, expand, in_memory, units
from opdtheory.audit.report import Report, build
from opdtheory.audit.settings import Settings
from opdtheory.audit.stream import Outcome, run, run_batches


def audit_logs(
    data: str | os.PathLike[str] | Mapping[str, Any] | Iterable[str | os.PathLike[str]], *, format: str | None = None,
    jobs: int = 1, engine: str = "local", store: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None, strict: bool = True, **options: Any,
) -> Report:  # fmt: skip
    """Audit rollout logs: files, folders, or a dictionary of arrays.

    Args:
        data: paths, or arrays by name: ``tokens``, ``response_mask`` (B, T), ``log_probs`` or
            ``old_log_probs``, ``rollout_log_probs``, ``teacher_log_probs`` (B, T) in nats, ``rewards``
            (B,), ``group`` (B,), full ``logits``, ``rollout_logits``, ``teacher_logits`` (B, T, V), top-k
            tables (B, T, k).
        format: one of the readers' formats; found out from the content if None.
        jobs, engine: processes, and "local" or "ray".
        store: folder for finished parts; a later call with the same settings goes on from there.
        strict: raise ValueError for the first faulty input; otherwise faults are collected in
            ``report.errors``.
        options: fields of ``Settings``: reward_range, temperature, top_p, group, confidence, compat,
            redact, alpha, topk, token_texts (a tokenizer folder).

    Returns:
        A report with ``to_dict()``, ``to_html()`` and ``table()``.  KL directions are in the names:
        ``kl_rollout_train`` is KL(rollout‖train).

    Raises:
        ValueError: bad options or, with ``strict``, bad input, naming place, value and what was expected.

    >>> import numpy as np
    >>> report = audit_logs({"rollout_log_probs": np.log([[0.5, 0.5]]), "log_probs": np.log([[0.4, 0.5]])})
    >>> round(report.metrics["ratio/mean"].value, 12), report.state.token_count
    (0.9, 2)
    """
    settings = Settings(**_options(options))
    if isinstance(data, Mapping):
        outcome = run_batches(batches(in_memory(data), "arrays", settings.group), settings)
        outcome.sources = ["arrays"]
        return build(outcome, settings)
    paths = [data] if isinstance(data, str | os.PathLike) else list(data)
    if not paths:
        raise ValueError("paths: got none, expected at least one file or folder")
    parts, faults = [], []
    for path in paths:
        try:
            for file in expand([path]):
                try:
                    parts += units(file, format)
                except InputError as error:
                    faults.append(str(error))
        except InputError as error:
            faults.append(str(error))
    folder = None if store is None else Path(store)
    outcome = (
        run(parts, settings, jobs=jobs, engine=engine, store=folder, progress=progress)
        if parts
        else Outcome()
    )
    outcome = replace(outcome, errors=faults + outcome.errors)
    if not outcome.errors and not outcome.total.sequence_count:
        outcome.errors.append(f"{', '.join(map(str, paths))}: no sequences; expected at least one")
    if strict and outcome.errors:
        raise ValueError(outcome.errors[0])
    return build(outcome, settings)


def _options(options: dict[str, Any]) -> dict[str, Any]:
    known = Settings.__dataclass_fields__
    for name in options:
        if name not in known:
            raise ValueError(f"option {name!r}: expected one of {', '.join(known)}")
    out = dict(options)
    if out.get("reward_range") is not None:
        low, high = out["reward_range"]
        out["reward_range"] = (float(low), float(high))
    if isinstance(out.get("compat"), str):
        out["compat"] = (out["compat"],)
    if out.get("token_texts") is not None:
        out["token_texts"] = str(out["token_texts"])
    if "compat" in out:
        out["compat"] = tuple(out["compat"])
    return out
