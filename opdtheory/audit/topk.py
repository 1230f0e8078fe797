"""Divergences from top-k log-prob tables: everything outside the common tokens is one bucket.

A partition divergence never exceeds the full one, so these are lower bounds.  Where a token of one table is
missing in the other its probability there is unknown, and the token joins the bucket.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from opdtheory.audit.batch import Batch


def topk_statistics(batch: Batch, known: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Partition KL and TV per token (N,) for the pairs whose tables are recorded and not known from full
    logits.
    """
    out: dict[str, np.ndarray] = {}
    tables = batch.topk
    if "rollout" in tables and "train" in tables and "topk_kl" not in known:
        pair = partition_pair(*tables["rollout"], *tables["train"])
        out |= {
            "topk_kl": pair[0],
            "topk_tv": pair[1],
            "topk_tail_rollout": pair[2],
            "topk_kl_reverse": pair[3],
        }
    student = "rollout" if "rollout" in tables else "train"
    if "teacher" in tables and student in tables and "topk_kl_student_teacher" not in known:
        pair = partition_pair(*tables[student], *tables["teacher"])
        out |= {
            "topk_kl_student_teacher": pair[0],
            "topk_tv_student_teacher": pair[1],
            "topk_kl_teacher_student": pair[3],
        }
    for policy, (_, logps) in tables.items():
        out[f"topk_mass_{policy}"] = np.minimum(1.0, np.exp(logps).sum(axis=1))
    return out


def partition_pair(
    p_ids: np.ndarray, p_logps: np.ndarray, q_ids: np.ndarray, q_logps: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """KL(p‖q), TV, p's bucket mass and KL(q‖p) of the partition {common tokens} ∪ {rest}; ids (N,k), −1
    unused.
    """
    match = (p_ids[:, :, None] == q_ids[:, None, :]) & (p_ids[:, :, None] >= 0)
    common = match.any(axis=2)
    column = match.argmax(axis=2)
    q_of = np.take_along_axis(q_logps, column, axis=1)
    p = np.where(common, np.exp(p_logps), 0.0)
    q = np.where(common, np.exp(q_of), 0.0)
    p = np.concatenate([p, np.maximum(0.0, 1 - p.sum(axis=1, keepdims=True))], axis=1)
    q = np.concatenate([q, np.maximum(0.0, 1 - q.sum(axis=1, keepdims=True))], axis=1)
    forward, backward = _kl(p, q), _kl(q, p)
    return forward, np.abs(p - q).sum(axis=1) / 2, p[:, -1], backward


def _kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Row sums of q − p + p log(p/q), each term non-negative; inf where p has mass and q none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        log_ratio = np.where(p > 0, np.log(p) - np.log(q), 0.0)
        terms = np.where(p > 0, p * log_ratio + (q - p), q)
    return np.maximum(0.0, terms.sum(axis=1))
