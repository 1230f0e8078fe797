"""The advantage forms of distillation on the drawn tokens, and advantages made from rewards where none were
recorded.

Forms (iii) and (v) leave their baseline b(s_t) open.  Two baselines can be computed from logs: the mean of the
other answers to the same prompt, which does not depend on the token drawn here, and the exact mean of the
immediate reward, −KL(student‖teacher)(s_t).  The value function itself would need several continuations of
every prefix, or a learned critic.
"""

from __future__ import annotations

import numpy as np

from opdtheory import advantages, rewards
from opdtheory.audit.batch import Batch
from opdtheory.audit.sampled import Drawn

FORMS: tuple[tuple[str, str, str, str], ...] = (
    (
        "opd_advantage_total",
        "(i)",
        "sum of the log ratios of the whole answer",
        "log-probabilities of student and teacher",
    ),
    (
        "opd_advantage_to_go",
        "(ii)",
        "sum of the log ratios from here on",
        "log-probabilities of student and teacher",
    ),
    (
        "opd_advantage_to_go_baseline",
        "(iii)",
        "(ii) less its mean at this position over the other answers to the prompt in the same batch, 0 for "
        "answers that have ended; the value function as baseline would need continuations of every prefix",
        "two answers to a prompt, and a group column",
    ),
    (
        "opd_advantage_expected_to_go",
        "(iv)",
        "log ratio here, less the exact KL(student‖teacher) of the later contexts",
        "full logits of student and teacher",
    ),
    (
        "opd_advantage_expected_to_go_baseline",
        "(v)",
        "(iv) less the exact mean −KL(student‖teacher) of the log ratio in this context; the value function as "
        "baseline would need continuations of every prefix",
        "full logits of student and teacher",
    ),
    ("opd_reward", "immediate", "log ratio here; biased", "log-probabilities of student and teacher"),
    (
        "opd_advantage_lambda",
        "λ = 0.9",
        "later log ratios discounted by λ; biased",
        "log-probabilities of student and teacher",
    ),
    (
        "topd_return",
        "TOP-D",
        "mixed log ratio here and the mean of the later ones",
        "log-probabilities of student and teacher",
    ),
)
"""Metric, name of the form, what is computed, what it needs."""


def forms(batch: Batch, drawn: Drawn, alpha: float, kl: np.ndarray | None) -> dict[str, np.ndarray]:
    """The forms of ``FORMS`` that are no plain reward, for the drawn tokens (N,), NaN where one is unknown.

    ``kl`` (N,) is the full KL(student‖teacher) of each context, for (iv) and (v).  Tokens without a finite log
    ratio are left out of the sums.
    """
    finite = drawn.usable & np.isfinite(drawn.ell)
    response = batch.padded(finite.astype(float)) > 0
    reward = batch.padded(np.where(finite, drawn.ell, 0.0))
    mixed = rewards.topd(np.where(finite, drawn.policy, 0.0), np.where(finite, drawn.behaviour, 0.0), alpha)
    to_go = advantages.log_ratio_to_go(reward, response)
    tables = {
        "opd_advantage_total": advantages.log_ratio_total(reward, response),
        "opd_advantage_to_go": to_go,
        "opd_advantage_lambda": advantages.lambda_return(reward, 0.9, response),
        "topd_return": advantages.topd_return(batch.padded(np.where(finite, mixed, 0.0)), response),
    }
    if batch.grouped:
        others = others_mean(to_go, batch.group)
        tables["opd_advantage_to_go_baseline"] = advantages.log_ratio_to_go(reward, response, others)
    if kl is not None and np.isfinite(kl).all():
        context = batch.padded(kl)
        tables["opd_advantage_expected_to_go"] = advantages.expected_to_go(reward, context, response)
        tables["opd_advantage_expected_to_go_baseline"] = advantages.expected_to_go(
            reward, context, response, -context
        )
    return {name: np.where(finite, table[batch.response_mask], np.nan) for name, table in tables.items()}


def others_mean(table: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Mean of each row's fellows, (B, T) by position, NaN in a group of one.

    >>> others_mean(np.array([[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]), np.array([0, 0, 1])).tolist()
    [[3.0, 4.0], [1.0, 2.0], [nan, nan]]
    """
    _, label, size = np.unique(group, return_inverse=True, return_counts=True)
    sums = np.zeros((len(size), table.shape[1]))
    np.add.at(sums, label, table)
    fellows = size[label][:, None] - 1
    return np.where(fellows > 0, (sums[label] - table) / np.maximum(fellows, 1), np.nan)


def from_rewards(batch: Batch) -> np.ndarray | None:
    """Advantages (N,) as group-relative methods make them: rewards standardised within each prompt.

    None without rewards or groups; NaN for a sequence without a reward.
    """
    if batch.rewards is None or not batch.grouped:
        return None
    seen = np.isfinite(batch.rewards)
    per_sequence = np.full(batch.size, np.nan)
    if seen.any():
        per_sequence[seen] = advantages.group_normalize(batch.rewards[seen], batch.group[seen])
    return per_sequence[batch.sequence_of]
