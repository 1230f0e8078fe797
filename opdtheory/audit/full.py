"""Per-token statistics that need more than the drawn token: full logits, or top-k tables with a tail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from opdtheory.audit import kernels
from opdtheory.audit.batch import Batch
from opdtheory.audit.settings import Settings
from opdtheory.audit.topk import topk_statistics

CHUNK_BYTES = 32 << 20
_TRAIN_NAMES = {
    "kl_pq": "kl_rollout_train",
    "kl_qp": "kl_train_rollout",
    "tv": "tv",
    "chi2_qp": "chi2_train_rollout",
    "jsd": "jsd",
    "hellinger2": "hellinger2",
    "max_abs_log_ratio": "max_abs_log_ratio",
    "topk_kl": "topk_kl",
    "topk_tv": "topk_tv",
    "entropy_p": "entropy_rollout",
    "entropy_q": "entropy_train",
}
_TEACHER_NAMES = {
    "kl_pq": "kl_student_teacher",
    "kl_qp": "kl_teacher_student",
    "tv": "tv_student_teacher",
    "chi2_qp": "chi2_teacher_student",
    "jsd": "jsd_student_teacher",
    "hellinger2": "hellinger2_student_teacher",
    "max_abs_log_ratio": "max_abs_log_ratio_student_teacher",
    "topk_kl": "topk_kl_student_teacher",
    "topk_tv": "topk_tv_student_teacher",
    "entropy_p": "entropy_student",
    "entropy_q": "entropy_teacher",
    "topd_second_moment": "topd_second_moment",
}
_LOG_PROB_OF = {"train": "log_probs", "rollout": "rollout_log_probs", "teacher": "teacher_log_probs"}


def measure(batch: Batch, settings: Settings) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(statistics (N,), columns): the columns gain the log-probabilities that the logits imply.

    Recorded log-probabilities of a policy whose logits are there too are replaced by the implied ones;
    ``recorded_gap:POLICY`` among the statistics is how far they were apart.
    """
    columns = dict(batch.columns)
    stats: dict[str, np.ndarray] = {}
    drew = "rollout" if "rollout" in batch.logits else "train"
    pairs = _pairs(batch, drew)
    for (first, second, names), out in zip(pairs, _sweep(batch, pairs, settings), strict=True):
        _take(columns, stats, first, out["logp_p"])
        _take(columns, stats, second, out["logp_q"])
        stats |= {label: out[name] for name, label in names.items()}
    if "tv_student_teacher" in stats:
        stats["tropd_accept_exact"] = 1 - stats["tv_student_teacher"]
    stats |= topk_statistics(batch, stats)
    for policy, owner in (
        ("rollout", "rollout"),
        ("train", "train"),
        ("student", drew),
        ("teacher", "teacher"),
    ):
        name = _LOG_PROB_OF[owner]
        if f"entropy_{policy}" in stats and name in columns:
            # E[−log p(a) − H] = 0 for a token drawn from p: a wrong temperature shows here
            stats[f"surprise_{policy}"] = -columns[name] - stats[f"entropy_{policy}"]
    return stats, columns


def _pairs(batch: Batch, drew: str) -> list[tuple[str, str, Mapping[str, str]]]:
    """Which policies are compared: rollout with train, and the one that drew the tokens with the teacher."""
    logits = batch.logits
    out: list[tuple[str, str, Mapping[str, str]]] = []
    if "rollout" in logits and "train" in logits:
        out.append(("rollout", "train", _TRAIN_NAMES))
    if "teacher" in logits and drew in logits:
        out.append((drew, "teacher", _TEACHER_NAMES))
    if len(logits) == 1:
        (policy,) = logits
        out.append((policy, policy, {"entropy_p": f"entropy_{policy}"}))
    return out


def _sweep(
    batch: Batch, pairs: Sequence[tuple[str, str, Mapping[str, str]]], settings: Settings
) -> list[dict[str, np.ndarray]]:
    """Statistics of every pair; each policy's logits are fetched once."""
    n = len(batch.tokens)
    out = [{name: np.empty(n) for name in kernels.STATISTICS} for _ in pairs]
    wanted = sorted({policy for first, second, _ in pairs for policy in (first, second)})
    for a, b in _chunks(n, max((batch.logits[p].vocab for p in wanted), default=1)) if pairs else ():
        rows = {policy: prepare(batch.logits[policy].fetch(a, b), settings, policy) for policy in wanted}
        for (first, second, _), values in zip(pairs, out, strict=True):
            found = kernels.pair_statistics(
                rows[first], rows[second], batch.tokens[a:b], topk=settings.topk, alpha=settings.alpha
            )
            for name in values:
                values[name][a:b] = found[name]
    return out


def _take(
    columns: dict[str, np.ndarray], stats: dict[str, np.ndarray], policy: str, implied: np.ndarray
) -> None:
    """Use the log-probabilities that the logits imply; note how far recorded ones are from them."""
    name = _LOG_PROB_OF[policy]
    if policy == "train" and name not in columns and "old_log_probs" in columns:
        name = "old_log_probs"
    if name in columns and f"recorded_gap:{policy}" not in stats:
        gap = columns[name] - implied
        stats[f"recorded_gap:{policy}"] = np.where(np.isfinite(gap), gap, np.nan)
    columns[name] = implied


def _chunks(n: int, vocab: int) -> list[tuple[int, int]]:
    step = max(1, CHUNK_BYTES // (4 * vocab))
    return [(a, min(a + step, n)) for a in range(0, n, step)]


def prepare(rows: np.ndarray, settings: Settings, policy: str) -> np.ndarray:
    """Logits at the sampler's settings: divided by the temperature; the rollout policy's also cut to its
    top-p nucleus.
    """
    rows = np.ascontiguousarray(rows, dtype=np.float64 if rows.dtype == np.float64 else np.float32)
    if settings.temperature != 1.0:
        rows = rows / rows.dtype.type(settings.temperature)
    if settings.top_p < 1.0 and policy == "rollout":
        rows = nucleus(rows, settings.top_p)
    return rows


def nucleus(rows: np.ndarray, top_p: float) -> np.ndarray:
    """Keep the smallest set of most probable tokens whose mass reaches ``top_p``; the others get −inf."""
    out = np.full_like(rows, -np.inf)
    for i, row in enumerate(rows):
        order = np.argsort(-row, kind="stable")
        mass = np.exp(row[order].astype(np.float64) - row.max())
        mass /= mass.sum()
        kept = order[: int(np.searchsorted(np.cumsum(mass), top_p)) + 1]
        out[i, kept] = row[kept]
    return out
