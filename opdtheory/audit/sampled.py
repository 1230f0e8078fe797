"""Statistics that need only the drawn tokens' log-probabilities.

With ℓ = log π − log μ on tokens drawn from the rollout policy μ: k1 = −ℓ, k2 = ½ℓ² and k3 = e^ℓ − 1 − ℓ
estimate KL(μ‖π), W = e^{Σℓ} is the weight of a sequence.  Tokens whose log-probabilities are missing, NaN,
+inf, or −inf under the policy that drew them carry no information: they are left out, counted and reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from opdtheory import divergences, rewards
from opdtheory.audit.batch import Batch
from opdtheory.audit.settings import Settings


@dataclass(frozen=True)
class Drawn:
    """The pair of policies (behaviour, policy) on the drawn tokens of a batch.

    ``behaviour`` and ``policy`` (N,) log-probabilities, ``ell`` their difference (0 where unusable),
    ``usable`` (N,), ``complete`` (B,) sequences without an unusable token and with at least one token,
    ``names`` where both came from.
    """

    behaviour: np.ndarray
    policy: np.ndarray
    ell: np.ndarray
    usable: np.ndarray
    complete: np.ndarray
    names: tuple[str, str]


def choose(columns: Mapping[str, np.ndarray]) -> tuple[str | None, str | None]:
    """Which columns are the behaviour and the trained policy.

    The trained policy is ``log_probs``, or ``old_log_probs`` if only that was recorded; the behaviour
    policy is ``rollout_log_probs``, or ``old_log_probs`` beside ``log_probs``.
    """
    train = "log_probs" if "log_probs" in columns else "old_log_probs" if "old_log_probs" in columns else None
    rollout = "rollout_log_probs" if "rollout_log_probs" in columns else None
    if rollout is None and train == "log_probs" and "old_log_probs" in columns:
        rollout = "old_log_probs"
    return rollout, train


def pair(batch: Batch, behaviour: str | None, policy: str | None) -> Drawn | None:
    """The named pair on the drawn tokens, or None where one of them is not recorded."""
    if behaviour is None or policy is None or behaviour not in batch.columns or policy not in batch.columns:
        return None
    mu, pi = batch.columns[behaviour], batch.columns[policy]
    usable = np.isfinite(mu) & ~np.isnan(pi) & (pi < np.inf)
    ell = np.where(usable, np.where(usable, pi, 0.0) - np.where(usable, mu, 0.0), 0.0)
    complete = (batch.sums((~usable).astype(float)) == 0) & (batch.lengths > 0)
    return Drawn(mu, pi, ell, usable, complete, (behaviour, policy))


def token_statistics(drawn: Drawn) -> dict[str, np.ndarray]:
    """Per-token statistics (N,), NaN where the token is unusable."""
    with np.errstate(over="ignore"):
        ratio = np.exp(drawn.ell)
        out = {
            "log_ratio": drawn.ell,
            "abs_log_ratio": np.abs(drawn.ell),
            "ratio": ratio,
            "k1": -drawn.ell,
            "k2": drawn.ell**2 / 2,
            "k3": divergences.k3_from_log_ratio(drawn.ell),
            "chi2_sampled": np.expm1(drawn.ell) ** 2,
            "tv_sampled": np.abs(np.expm1(drawn.ell)) / 2,
        }
        mu, pi = (np.exp(np.where(drawn.usable, x, 0.0)) for x in (drawn.behaviour, drawn.policy))
        # a log-probability above 0 is reported apart and has no partition divergence
        valid = (mu <= 1.0) & (pi <= 1.0)
        mu, pi = np.where(valid, mu, 1.0), np.where(valid, pi, 1.0)
        out["binary_tv"] = np.where(valid, divergences.binary_tv(mu, pi), np.nan)
        out["binary_kl"] = np.where(valid, divergences.binary_kl(mu, pi), np.nan)
    return {name: np.where(drawn.usable, values, np.nan) for name, values in out.items()}


def _martingale(batch: Batch, drawn: Drawn, chi2: np.ndarray | None) -> np.ndarray:
    """(W_{t−1} − 1)²·χ²(c_t) per token; (ρ_t − 1)² stands for χ² where that is unknown: the same mean."""
    table = batch.padded(drawn.ell)
    before = np.hstack([np.zeros((len(table), 1)), np.cumsum(table, axis=1)[:, :-1]])[batch.response_mask]
    weight = np.expm1(before) ** 2
    spread = np.expm1(drawn.ell) ** 2 if chi2 is None else np.nan_to_num(chi2, nan=0.0, posinf=np.inf)
    return np.where(weight > 0, weight * spread, 0.0)


def sequence_statistics(
    batch: Batch, drawn: Drawn, settings: Settings, chi2: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Per-sequence statistics (B,), NaN for sequences that are empty or incomplete.

    ``chi2`` (N,) is the full-vocabulary χ²(train‖rollout) of each context where known.
    """
    with np.errstate(over="ignore"):
        k3 = divergences.k3_from_log_ratio(drawn.ell)
        log_w = batch.sums(drawn.ell)
        weight = np.exp(log_w)
        length = np.maximum(batch.lengths, 1)
        out = {
            "seq_log_w": log_w,
            "seq_w": weight,
            "seq_w_clipped": np.minimum(weight, settings.ratio_cap),
            "seq_sum_k1": -log_w,
            "seq_sum_k2": batch.sums(drawn.ell**2 / 2),
            "seq_sum_k3": batch.sums(k3),
            "seq_mean_k3": batch.sums(k3) / length,
            "seq_max_k3": batch.maxima(k3, 0.0),
            "seq_max_abs_log_ratio": batch.maxima(np.abs(drawn.ell), 0.0),
            "seq_geometric_ratio": np.exp(log_w / length),
            "seq_sum_ratio_minus_1": batch.sums(np.expm1(drawn.ell)),
            "seq_tv_sampled": np.maximum(0.0, -np.expm1(log_w)),
            "seq_hellinger2_sampled": -np.expm1(log_w / 2),
            "seq_ratio_martingale": batch.sums(_martingale(batch, drawn, chi2)),
        }
    return {name: np.where(drawn.complete, values, np.nan) for name, values in out.items()}


def teacher_statistics(drawn: Drawn, alpha: float) -> dict[str, np.ndarray]:
    """OPD, TOP-D and TrOPD quantities of the drawn tokens, for the pair (student, teacher)."""
    teacher = np.where(drawn.usable, drawn.policy, 0.0)
    student = np.where(drawn.usable, drawn.behaviour, 0.0)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        base = token_statistics(drawn)
        accept = rewards.tropd_accept_probability(teacher, student)
        reward = rewards.topd(teacher, student, alpha)
        gated = np.where(accept > 0, accept * drawn.ell, 0.0)
        # −inf log ratios stay −inf for OPD; TOP-D's floor keeps its own finite
        out = {
            "opd_reward": drawn.ell,
            "topd_reward": reward,
            "topd_reward_squared": reward**2,
            "tropd_accept": accept,
            "tropd_gated_reward": gated,
        }
    named = {n: np.where(drawn.usable, v, np.nan) for n, v in out.items()}
    return named | {
        f"{n}_student_teacher": base[n] for n in ("k1", "k2", "k3", "log_ratio", "chi2_sampled", "tv_sampled")
    }
