"""What every mask of the field would remove from this batch.

Masks come from ``opdtheory.masks``; those that need advantages, a teacher or full-vocabulary divergences
appear only where these were recorded.  A sequence counts as kept when at least one of its tokens is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from opdtheory import masks
from opdtheory.audit.batch import Batch, group_key
from opdtheory.audit.sampled import Drawn
from opdtheory.audit.states import Top

DEFAULT_SUM_K3 = 0.05
OPSM_DELTAS = (0.5, 1e-4)
WHAT = {
    "ppo": "PPO clipping, ratio to the rollout policy",
    "grpo_clip_higher": "PPO clipping with a higher upper end",
    "minirl": "PPO clipping, ratio to the old policy",
    "dppo_binary": "DPPO on the drawn token against the rest",
    "dppo_topk": "DPPO on the top-k partition with tail",
    "dppo_exact": "DPPO on the full divergence",
    "icepop": "IcePop: ratios inside the range",
    "truncation_cap": "TIS and CISPO: tokens whose weight the cap leaves as it is",
    "trm_max": "TRM, largest token of the sequence",
    "trm_avg": "TRM, mean over the sequence",
    "trm_both": "TRM, largest token and mean",
    "trm_exact": "TRM on the full divergence",
    "sum_k3": "Σk3 of the sequence",
    "negative_drop": "tokens of A < 0 whose probability fell by δ dropped",
    "opsm": "OPSM: stale sequences of A < 0 dropped",
    "tropd": "TrOPD: tokens its random gate accepts",
    "tropd_outlier": "TrOPD: tokens with log(teacher/student) above τ",
    "verl": "rejection option of that name",
}
"""What the masks are whose names begin so; the longest beginning counts."""
SHOWN = 5
"""Removed tokens that are remembered of each mask."""
TRM_MAX = 0.69
"""The source of trust region masking gives no number; here a ratio may not leave [½, 2]."""


@dataclass
class MaskCount:
    """Tokens and sequences a mask keeps, how much of Σk3 it keeps, and the removed tokens with the largest
    |log ratio|.
    """

    parameters: dict[str, float]
    tokens_kept: int = 0
    sequences_kept: int = 0
    tokens: int = 0
    sequences: int = 0
    k3_kept: float = 0.0
    k3: float = 0.0
    removed: Top = field(default_factory=lambda: Top(SHOWN))

    def merge(self, other: MaskCount) -> None:
        for name in ("tokens_kept", "sequences_kept", "tokens", "sequences", "k3_kept", "k3"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.removed.merge(other.removed)


def keep_masks(
    batch: Batch,
    drawn: Drawn | None,
    teacher: Drawn | None,
    exact: Mapping[str, np.ndarray],
    sum_k3: float = DEFAULT_SUM_K3,
) -> dict[str, tuple[dict[str, float], np.ndarray]]:
    """Name → (parameters, kept tokens (N,)).

    ``exact`` holds full-vocabulary (N,) divergences ``tv``, ``kl_rollout_train``, ``topk_tv``, ``topk_kl``
    where known. Unusable tokens have ratio 1 and divergence 0 here and are kept.
    """
    exact = {name: np.nan_to_num(values, nan=0.0, posinf=np.inf) for name, values in exact.items()}
    out: dict[str, tuple[dict[str, float], np.ndarray]] = {}
    response = batch.response_mask
    if drawn is not None:
        mu = batch.padded(np.where(drawn.usable, drawn.behaviour, 0.0))
        pi = batch.padded(np.where(drawn.usable, drawn.policy, 0.0))

        def tokens(name: str, table: np.ndarray, **parameters: float) -> None:
            out[name] = (parameters, table[response])

        def sequences(name: str, accepted: np.ndarray, **parameters: float) -> None:
            out[name] = (parameters, np.repeat(accepted, batch.lengths))

        tokens("icepop", masks.icepop(pi, mu, response), low=0.5, high=5.0)
        for cap in (2.0, 3.0, 5.0):
            kept = masks.truncated_ratio(pi, mu, response, cap=cap) < cap
            tokens(f"truncation_cap_{cap:g}", kept & response, cap=cap)
        sequences("trm_max", masks.trm(pi, mu, response, delta_max=TRM_MAX), delta_max=TRM_MAX)
        sequences("trm_avg", masks.trm(pi, mu, response, delta_avg=1e-3), delta_avg=1e-3)
        both = masks.trm(pi, mu, response, delta_max=TRM_MAX, delta_avg=1e-3)
        sequences("trm_both", both, delta_max=TRM_MAX, delta_avg=1e-3)
        sequences("sum_k3", masks.sum_k3(pi, mu, response, delta=sum_k3), delta=sum_k3)
        if "kl_rollout_train" in exact:
            kl = batch.padded(exact["kl_rollout_train"])
            sequences(
                "trm_exact_max", masks.trm_from_divergence(kl, response, delta_max=0.05), delta_max=0.05
            )
            sequences(
                "trm_exact_avg", masks.trm_from_divergence(kl, response, delta_avg=1e-3), delta_avg=1e-3
            )
        if "advantages" in batch.columns:
            _with_advantages(batch, drawn, exact, mu, pi, response, tokens)
    if teacher is not None:
        student = batch.padded(np.where(teacher.usable, teacher.behaviour, 0.0))
        other = batch.padded(np.where(teacher.usable, teacher.policy, 0.0))
        kept = masks.tropd_outlier(student, other, response, tau=-1.0)
        out["tropd_outlier"] = ({"tau": -1.0}, kept[response])
        out["tropd"] = ({}, masks.tropd(student, other, batch.padded(uniforms(batch)), response)[response])
    return out


def uniforms(batch: Batch) -> np.ndarray:
    """A number in [0, 1) per token (N,) that depends on the sequence's name and the position alone.

    TrOPD's gate is random; these draws are the same in every run and every process (a splitmix64 hash).
    """
    names = np.array([group_key(f"{batch.source}|{name}") for name in batch.ids], dtype=np.uint64)
    with np.errstate(over="ignore"):
        x = names[batch.sequence_of] + np.uint64(0x9E3779B97F4A7C15) * (
            batch.positions.astype(np.uint64) + np.uint64(1)
        )
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)).astype(np.float64) / 2.0**53


def _with_advantages(
    batch: Batch, drawn: Drawn, exact: Mapping[str, np.ndarray], mu: np.ndarray, pi: np.ndarray,
    response: np.ndarray, tokens: Callable[..., None],
) -> None:  # fmt: skip
    advantages = batch.padded(np.nan_to_num(batch.columns["advantages"]))
    old = batch.columns.get("old_log_probs")
    for name, method in masks.METHODS.items():
        if method.mask == "none" or (name.endswith("_scaling") and method.divergence is None):
            continue
        anchor = None
        if method.anchor == "old":
            if old is None or not np.isfinite(old).all() or drawn.names[1] != "log_probs":
                continue
            anchor = batch.padded(old)
        divergence = None
        if method.divergence not in (None, "binary_tv", "binary_kl"):
            if method.divergence not in exact:
                continue
            divergence = batch.padded(exact[method.divergence])
        kept = masks.method_mask(
            method, pi, mu, advantages, response, old_log_probs=anchor, divergence=divergence
        )
        tokens(name, kept, **method.parameters)
    for name, delta in (("tv", 0.15), ("kl_rollout_train", 0.05)):
        if name in exact:
            table = masks.dppo(pi, mu, advantages, batch.padded(exact[name]), response, delta=delta)
            tokens(f"dppo_exact_{name.split('_')[0]}", table, delta=delta)
    tokens("negative_drop", masks.negative_drop(pi, mu, advantages, response), delta=0.5)
    for delta in OPSM_DELTAS:
        tokens(f"opsm_{delta:g}", masks.opsm(pi, mu, advantages, response, delta=delta), delta=delta)


def what(name: str) -> str:
    """One line on the mask of that name.

    >>> what("dppo_exact_tv")
    'DPPO on the full divergence'
    """
    return WHAT[max((w for w in WHAT if name.startswith(w)), key=len)]


def count(
    batch: Batch, kept: np.ndarray, parameters: dict[str, float], k3: np.ndarray | None, ell: np.ndarray
) -> MaskCount:
    """The counts of one mask on one batch, and the removed tokens whose log ratio ``ell`` is largest."""
    any_kept = batch.sums(kept.astype(float)) > 0
    k3 = np.zeros(len(kept)) if k3 is None else np.where(np.isfinite(k3), k3, 0.0)
    out = MaskCount(
        dict(parameters), int(kept.sum()), int(any_kept.sum()), len(kept), int((batch.lengths > 0).sum()),
        float(k3[kept].sum()), float(k3.sum()),
    )  # fmt: skip
    removed = np.flatnonzero(~kept)
    largest = removed[np.argsort(-np.abs(ell[removed]), kind="stable")[:SHOWN]]
    out.removed.add(
        (
            float(abs(ell[i])),
            f"{batch.source}: {batch.place(int(i))}",
            {
                "token": int(batch.tokens[i]),
                "position": int(batch.positions[i]),
                "log_ratio": float(ell[i]),
            },
        )
        for i in largest
    )
    return out
