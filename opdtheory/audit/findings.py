"""Warnings that save a run: what the checks found, in words, with places."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from opdtheory.audit.conclusions import COVERED
from opdtheory.audit.metrics import mean_interval
from opdtheory.audit.settings import Settings
from opdtheory.audit.state import LONG_ANSWER, State

Warning_ = dict[str, Any]
RATIO_DEFICIT = 1e-3
LENGTH_CORRELATION = 0.3
REPEATED = 0.02


def warnings(state: State, settings: Settings) -> list[Warning_]:
    """All warnings, the gravest kinds first."""
    out: list[Warning_] = []
    found = state.checks.findings

    def warn(code: str, message: str, where: list[str] | None = None) -> None:
        out.append({"code": code, "message": message, "where": where or []})

    for code, finding in found.items():
        kind, _, column = code.partition(":")
        if kind == "nan":
            warn(
                "nan",
                f"{finding.count} tokens have a missing or NaN value in {column}; they are left out",
                finding.places,
            )
        elif kind == "neg_inf":
            meaning = (
                "it drew tokens it says are impossible"
                if column == "rollout_log_probs"
                else "the weight of such a token is 0 and KL infinite"
            )
            warn(
                "neg_inf",
                f"{finding.count} tokens have log-probability −inf in {column}: {meaning}",
                finding.places,
            )
        elif kind == "positive":
            warn(
                "positive_log_prob",
                f"{finding.count} tokens have a log-probability above 0 in {column}",
                finding.places,
            )
        elif kind == "zero":
            text = (
                f"{finding.count} tokens have log-probability exactly 0 for the {column} policy but "
                "not for the other: placeholders, unmasked tool or prompt tokens?"
            )
            warn("placeholder_zero", text, finding.places)
        elif code == "clamped_token":
            warn(
                "clamp",
                f"{finding.count} log ratios exceed 20 in size, where trainers clamp silently",
                finding.places,
            )
        elif code == "clamped_sequence":
            warn(
                "clamp",
                f"{finding.count} sequence log weights exceed 20 in size: clamped weights and chi2_seq "
                "mean nothing",
                finding.places,
            )
        elif code == "empty":
            warn(
                "empty_sequence",
                f"{finding.count} sequences have no token left under their mask",
                finding.places,
            )
    _pair_warnings(state, settings, warn)
    _mask_warnings(state, warn)
    if "ungrouped" in found and state.sequence_count > 1:
        text = (
            f"{found['ungrouped'].count} of {state.sequence_count} sequences name no prompt or group and are treated "
            "as independent; if several answer one prompt, every interval and certificate is too narrow (give group "
            "or prompt_id, or --group)"
        )
        warn("groups_as_independent", text)
    _coverage_warnings(state, warn)
    if settings.reward_range is not None and state.groups.column("cert:outside").any():
        reward = state.sequences["reward"]
        text = (
            f"rewards from {reward.least:g} to {reward.largest:g} leave the stated range "
            f"{settings.reward_range[0]:g} to {settings.reward_range[1]:g}: no reward certificate is given"
        )
        warn("reward_outside_range", text)
    if settings.top_p < 1.0 or settings.temperature != 1.0:
        text = (
            f"sampler at temperature {settings.temperature:g}, top-p {settings.top_p:g}: weights are "
            "right only if the rollout log-probabilities are those of that sampler, not the raw model's"
        )
        if "kl_rollout_train" not in state.tokens:
            warn("processed_sampler", text)
    for policy in ("rollout", "train", "student", "teacher"):
        _surprise_warning(state, settings, policy, warn)
    return out


def _pair_warnings(state: State, settings: Settings, warn) -> None:  # type: ignore[no-untyped-def]
    checks = state.checks
    compared = checks.findings["compared"].count if "compared" in checks.findings else 0
    if not compared:
        if not any(
            n in state.tokens for n in ("kl_student_teacher", "k3_student_teacher", "topk_kl_student_teacher")
        ):
            warn(
                "nothing_to_compare",
                "only one policy's log-probabilities are recorded; add the other's (see the hook in "
                "the documentation)",
            )
        return
    same = checks.findings["identical"].count if "identical" in checks.findings else 0
    if same == compared:
        warn(
            "identical",
            "both policies' log-probabilities are bitwise equal: one was copied from the other, so no "
            "mismatch can show",
        )
        return
    interval = mean_interval(state, "ratio", max(settings.confidence, 0.9999))
    mean = state.tokens["ratio"].mean
    if interval is not None and interval[1] < 1 - RATIO_DEFICIT:
        text = (
            f"the mean token ratio is {mean:.4f}, certainly below 1: the rollout log-probabilities "
            f"look processed (top-p, top-k or temperature), or train misses about {1 - mean:.2%} of the mass"
        )
        warn("ratio_below_one", text)
    elif interval is not None and interval[0] > 1 + RATIO_DEFICIT:
        warn(
            "ratio_above_one",
            f"the mean token ratio is {mean:.4f}, certainly above 1, which no pair of full "
            "distributions allows: shifted, truncated or differently scaled log-probabilities",
        )
    moments = checks.moments.get("rollout_train")
    if moments is not None and moments.count >= 50:
        vx, cov, vy = moments.covariances()
        if vx > 1e-6 and vy > 1e-6:
            low, high = sorted((cov / vx, vy / cov if cov > 0 else math.inf))
            if low > 1.1 or high < 1 / 1.1:
                text = (
                    f"train log-probabilities are {math.sqrt(low * min(high, 1e3)):.2f} times the "
                    "rollout's on average: one of them was scored at another temperature"
                )
                warn("temperature", text)
    lags = checks.lags
    if lags[0] >= 20 and lags[2] > 0:
        back, here, ahead = lags[1:] / lags[0]
        if min(back, ahead) < 0.5 * here:
            side = "one position later" if ahead < back else "one position earlier"
            warn(
                "misaligned",
                f"rollout log-probabilities match train's {side} ({min(back, ahead):.3g} against "
                f"{here:.3g} nats apart): tokens are shifted by one",
            )
    bf16 = checks.findings["bf16_values"].count if "bf16_values" in checks.findings else 0
    if bf16 > 0.95 * compared:
        warn(
            "low_precision",
            "rollout log-probabilities were stored in bfloat16: their rounding (up to 0.4 %) is part "
            "of every ratio",
        )
    spread = checks.moments.get("length_abs_log_w")
    if spread is not None and spread.count >= 30 and spread.correlation > LENGTH_CORRELATION:
        text = (
            f"|log W| grows with length (correlation {spread.correlation:.2f}): sequence weights and "
            "sequence masks discriminate against long answers"
        )
        warn("length_dependent", text)


def _coverage_warnings(state: State, warn) -> None:  # type: ignore[no-untyped-def]
    """Answers that occur twice, and exact divergences known for a part of the data only."""
    counts = state.answers.column("count")
    again = int(counts.sum()) - len(counts)
    if again > REPEATED * counts.sum():
        warn(
            "repeated_answers",
            f"{again} of {int(counts.sum())} answers of {LONG_ANSWER} or more tokens repeat an earlier one token by "
            "token: files given twice, or a sampler that hardly varies; intervals and certificates take them for "
            "fresh samples",
        )
    for name in ("kl_rollout_train", "kl_student_teacher", "topk_kl", "topk_kl_student_teacher"):
        known = state.tokens[name].count if name in state.tokens else 0
        if 0 < known < COVERED * state.token_count:
            warn(
                "partly_covered",
                f"{name} is known for {known} of {state.token_count} tokens: it, its maximum and what rests on them "
                "speak of those only",
            )


def _mask_warnings(state: State, warn) -> None:  # type: ignore[no-untyped-def]
    for name in state.masks:
        kept, tried = state.groups.column(f"kept:{name}"), state.groups.column(f"tried:{name}")
        emptied, prompts = int(((kept == 0) & (tried > 0)).sum()), int((tried > 0).sum())
        if emptied and prompts > 1:
            warn("mask_empties_prompt", f"mask {name} removes every token of {emptied} of {prompts} prompts")


def _surprise_warning(state: State, settings: Settings, policy: str, warn) -> None:  # type: ignore[no-untyped-def]
    """Tokens drawn from p have mean −log p equal to p's entropy; a colder or hotter sampler shows at once."""
    name = f"surprise_{policy}"
    drew = (
        "rollout"
        if "surprise_rollout" in state.tokens
        else "student"
        if "surprise_student" in state.tokens
        else "train"
    )
    if policy != drew or name not in state.tokens:
        return
    sums, counts = state.groups.column(f"t:{name}"), state.groups.column(f"n:{name}")
    used = counts > 0
    if used.sum() < 2 or not np.isfinite(sums).all():
        return
    mean = state.tokens[name].mean
    interval = mean_interval(state, name, max(settings.confidence, 0.9999))
    if interval is not None and (interval[1] < -0.01 or interval[0] > 0.01):
        side = (
            "more probable: sampled colder or with truncation"
            if mean < 0
            else "less probable: sampled hotter, or logits of another model"
        )
        text = (
            f"tokens are {side} than the {policy} logits say (−log p exceeds the entropy by "
            f"{mean:+.3f} nats a token); check --temperature and --top-p"
        )
        warn("wrong_temperature", text)
    gap = state.tokens.get(f"recorded_gap:{policy}")
    if gap is not None and gap.count and max(abs(gap.least), abs(gap.largest)) > 0.05:
        warn(
            "recorded_gap",
            f"recorded {policy} log-probabilities differ from its logits by up to "
            f"{max(abs(gap.least), abs(gap.largest)):.3g} nats",
        )
