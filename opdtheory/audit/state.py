"""Everything the audit remembers of the data it has streamed: one mergeable object per unit, step or run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from opdtheory import confidence
from opdtheory.audit import advantage_forms, compat, full, mask_effects, rollout_corr, sampled
from opdtheory.audit.batch import Batch
from opdtheory.audit.checks import Checks
from opdtheory.audit.mask_effects import MaskCount
from opdtheory.audit.sampled import Drawn
from opdtheory.audit.settings import Settings
from opdtheory.audit.states import Groups, Profile, Series, Top, Vocabulary

HEAT_SEQUENCES = 24
HEAT_TOKENS = 512
TOP_TOKENS = 40
LONG_ANSWER = 16
"""Two answers of so many tokens are hardly ever the same by chance."""


@dataclass
class State:
    """Series per token and per sequence, sums per prompt, profile by position, the worst tokens, masks,
    findings.
    """

    sequence_count: int = 0
    token_count: int = 0
    dropped: int = 0
    longest: int = 0
    tokens: dict[str, Series] = field(default_factory=dict)
    sequences: dict[str, Series] = field(default_factory=dict)
    groups: Groups = field(default_factory=Groups)
    answers: Groups = field(default_factory=Groups)
    profile: Profile = field(default_factory=Profile)
    worst: Top = field(default_factory=lambda: Top(TOP_TOKENS))
    heat: Top = field(default_factory=lambda: Top(HEAT_SEQUENCES))
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    masks: dict[str, MaskCount] = field(default_factory=dict)
    checks: Checks = field(default_factory=Checks)
    sources: dict[str, str] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)

    def add_tokens(self, columns: Mapping[str, np.ndarray]) -> None:
        _add(self.tokens, columns)

    def add_sequences(self, columns: Mapping[str, np.ndarray]) -> None:
        _add(self.sequences, columns)

    def merge(self, other: State) -> State:
        """Add another state to this one, in place; returns self."""
        self.sequence_count += other.sequence_count
        self.token_count += other.token_count
        self.dropped += other.dropped
        self.longest = max(self.longest, other.longest)
        for mine, theirs in ((self.tokens, other.tokens), (self.sequences, other.sequences)):
            for name, series in theirs.items():
                mine.setdefault(name, Series()).merge(series)
        for part in ("groups", "answers", "profile", "worst", "heat", "vocabulary", "checks"):
            getattr(self, part).merge(getattr(other, part))
        for name, count in other.masks.items():
            self.masks.setdefault(name, MaskCount(count.parameters)).merge(count)
        for name, source in other.sources.items():
            self.sources[name] = _joined(self.sources.get(name, str(None)), source)
        self.texts |= {k: v for k, v in other.texts.items() if k not in self.texts}
        return self

    def update(self, batch: Batch, settings: Settings) -> State:
        """Add a batch, in place; returns self."""
        # absurd values overflow to infinity, which is what they are worth
        with np.errstate(over="ignore", invalid="ignore"):
            return self._update(batch, settings)

    def _update(self, batch: Batch, settings: Settings) -> State:
        self.sequence_count += batch.size
        self.token_count += len(batch.tokens)
        self.longest = max(self.longest, int(batch.lengths.max(initial=0)))
        self.dropped += 0 if batch.dropped is None else int(batch.dropped.sum())
        exact, columns = full.measure(batch, settings)
        rollout_name, train_name = sampled.choose(columns)
        batch = replace(batch, columns=columns)
        drawn = sampled.pair(batch, rollout_name, train_name)
        student_name = rollout_name or train_name
        teacher = sampled.pair(batch, student_name, "teacher_log_probs")
        per_group: dict[str, np.ndarray] = {
            "sequences": np.ones(batch.size),
            "tokens": batch.lengths.astype(float),
        }
        roles = {"rollout": rollout_name, "train": train_name, "student": student_name}
        for role, name in roles.items():
            self.sources[role] = _joined(self.sources.get(role, str(None)), str(name))

        tokens = dict(exact)
        for name, values in (
            ("entropy_recorded", batch.columns.get("entropy")),
            ("advantages", batch.columns.get("advantages")),
        ):
            if values is not None:
                tokens[name] = values
        for name in ("log_probs", "old_log_probs", "rollout_log_probs", "teacher_log_probs", "ref_log_probs"):
            if name in columns:
                tokens[name] = np.where(np.isfinite(columns[name]), columns[name], np.nan)
        if drawn is not None:
            tokens |= sampled.token_statistics(drawn)
            sequences = sampled.sequence_statistics(batch, drawn, settings, exact.get("chi2_train_rollout"))
            self.add_sequences({n: v[drawn.complete] for n, v in sequences.items()})
            per_group |= _sequence_sums(batch, drawn, sequences, settings)
            per_group |= {f"s:{n}": np.where(drawn.complete, sequences[n], 0.0) for n in WITH_INTERVAL}
            rollout_corr.accumulate(
                self, batch, drawn, settings.is_threshold, "verl-sequence-is" in settings.compat
            )
            self.add_tokens(compat.token_series(drawn, settings.compat))
        if teacher is not None:
            tokens |= sampled.teacher_statistics(teacher, settings.alpha)
            tokens |= advantage_forms.forms(batch, teacher, settings.alpha, exact.get("kl_student_teacher"))
        if batch.rewards is not None:
            seen = ~np.isnan(batch.rewards)
            self.add_sequences({"reward": batch.rewards[seen]})
            per_group |= {"reward": np.where(seen, batch.rewards, 0.0), "rewarded": seen.astype(float)}
        self.add_sequences({"length": batch.lengths.astype(float)})
        long = np.flatnonzero(batch.lengths >= LONG_ANSWER)
        self.answers.add(batch.token_keys(long), {"count": np.ones(len(long))})
        # what is not remembered cannot be shown, nor lie in the parts of an interrupted run
        if settings.redact:
            batch = replace(batch, tokens=np.full(len(batch.tokens), -1), texts=None)
        self._add_token_columns(batch, tokens, per_group)
        self._add_masks(self._with_advantages(batch), drawn, teacher, tokens, per_group, settings)
        self.groups.add(batch.group, per_group)
        self.checks.inspect(batch, drawn)
        self._remember(batch, drawn, tokens)
        return self

    def _add_token_columns(
        self, batch: Batch, tokens: Mapping[str, np.ndarray], per_group: dict[str, np.ndarray]
    ) -> None:
        profile = {}
        for name, values in tokens.items():
            seen = ~np.isnan(values)
            self.add_tokens({name: values[seen]})
            filled = np.where(seen, values, 0.0)
            per_group[f"t:{name}"] = batch.sums(filled)
            per_group[f"n:{name}"] = batch.sums(seen.astype(float))
            if name in PROFILED:
                profile[name] = np.where(np.isfinite(filled), filled, 0.0)
        self.profile.add(batch.positions, profile)
        for name in SUMMED:
            if name in tokens:
                whole = (batch.lengths > 0) & (batch.sums(np.isnan(tokens[name]).astype(float)) == 0)
                sums = batch.sums(np.nan_to_num(tokens[name], nan=0.0, posinf=np.inf, neginf=-np.inf))
                self.add_sequences({f"sum:{name}": sums[whole]})
                # per prompt, over the same sequences: files without this column must not count here
                per_group[f"w:{name}"] = np.where(whole, sums, 0.0)
                per_group[f"c:{name}"] = whole.astype(float)

    def _with_advantages(self, batch: Batch) -> Batch:
        """The batch with advantages made from its rewards where none were recorded, for the masks."""
        made = None if "advantages" in batch.columns else advantage_forms.from_rewards(batch)
        if made is None and "advantages" not in batch.columns:
            return batch
        source = "advantages" if made is None else "rewards, standardised within each prompt"
        self.sources["advantages"] = _joined(self.sources.get("advantages", str(None)), source)
        return batch if made is None else replace(batch, columns={**batch.columns, "advantages": made})

    def _add_masks(self, batch, drawn, teacher, tokens, per_group, settings) -> None:  # type: ignore[no-untyped-def]
        found = mask_effects.keep_masks(batch, drawn, teacher, tokens, settings.k3_mask)
        if drawn is not None and "verl" in settings.compat:
            for option, (low, high) in rollout_corr.REJECTION_THRESHOLDS.items():
                ends = {"lower": low, "upper": high} if option.endswith("k1") else {"upper": high}
                found[f"verl_{option}"] = (ends, rollout_corr.rejection(batch, drawn, option, low, high))
        for name, (parameters, kept) in found.items():
            ell = (teacher if name.startswith("tropd") else drawn).ell
            count = mask_effects.count(batch, kept, parameters, tokens.get("k3"), ell)
            self.masks.setdefault(name, MaskCount(dict(parameters))).merge(count)
            per_group[f"kept:{name}"] = batch.sums(kept.astype(float))
            per_group[f"tried:{name}"] = batch.lengths.astype(float)

    def _remember(self, batch: Batch, drawn: Drawn | None, tokens: Mapping[str, np.ndarray]) -> None:
        """Keep the worst tokens, the rows of the heat map, and the divergence per vocabulary item."""
        name = next((n for n in CARRIERS if n in tokens), None)
        if name is None or not len(batch.tokens):
            return
        values = np.nan_to_num(tokens[name], nan=0.0, posinf=np.inf)
        known = batch.tokens >= 0
        finite = np.where(np.isfinite(values), values, 0.0)
        self.vocabulary.add(batch.tokens[known], finite[known])
        floor = self.worst.floor()
        best = np.argsort(-values, kind="stable")[: self.worst.limit]
        self.worst.add(
            (float(values[i]), f"{batch.source}: {batch.place(int(i))}", _token_entry(batch, drawn, int(i)))
            for i in best if values[i] > max(floor, 0.0)
        )  # fmt: skip
        if batch.texts is not None:
            for token, text in zip(batch.tokens.tolist(), batch.texts, strict=True):
                if text and len(self.texts) < 200_000:
                    self.texts.setdefault(token, text)
        means = batch.sums(finite) / np.maximum(batch.lengths, 1)
        order = np.argsort(-means, kind="stable")[: self.heat.limit]
        rows = []
        for i in order:
            a, b = int(batch.offsets[i]), int(min(batch.offsets[i + 1], batch.offsets[i] + HEAT_TOKENS))
            if means[i] > self.heat.floor() and b > a:
                row = {
                    "values": np.round(finite[a:b], 9).tolist(),
                    "tokens": batch.tokens[a:b].tolist(),
                    "metric": name,
                }
                if drawn is not None:
                    row["log_ratio"] = np.round(np.clip(drawn.ell[a:b], -1e3, 1e3), 6).tolist()
                rows.append((float(means[i]), f"{batch.source}: {batch.ids[i]}", row))
        self.heat.add(rows)


PROFILED = (
    "abs_log_ratio",
    "log_ratio",
    "k3",
    "kl_rollout_train",
    "tv",
    "kl_student_teacher",
    "k3_student_teacher",
    "ratio",
)
SUMMED = (
    "kl_rollout_train",
    "kl_train_rollout",
    "tv",
    "chi2_train_rollout",
    "jsd",
    "hellinger2",
    "kl_student_teacher",
    "kl_teacher_student",
    "tv_student_teacher",
    "opd_reward",
    "topd_reward",
    "k1_student_teacher",
    "k3_student_teacher",
    "topk_kl",
    "topk_tv",
    "topk_kl_student_teacher",
)
WITH_INTERVAL = (
    "seq_log_w",
    "seq_w",
    "seq_w_clipped",
    "seq_sum_k3",
    "seq_tv_sampled",
    "seq_hellinger2_sampled",
    "seq_ratio_martingale",
)
"""Sequence statistics whose sums per prompt are kept, for intervals of their means."""
CARRIERS = (
    "kl_rollout_train",
    "topk_kl",
    "k3",
    "kl_student_teacher",
    "topk_kl_student_teacher",
    "k3_student_teacher",
)


def _joined(a: str, b: str) -> str:
    """The names in either, without repetition and without None beside others."""
    names = dict.fromkeys(n for n in (*a.split(" / "), *b.split(" / ")) if n != str(None))
    return " / ".join(names) or str(None)


def _add(target: dict[str, Series], columns: Mapping[str, np.ndarray]) -> None:
    for name, values in columns.items():
        target.setdefault(name, Series()).add(np.asarray(values, dtype=np.float64))


def _token_entry(batch: Batch, drawn: Drawn | None, i: int) -> dict[str, Any]:
    entry: dict[str, Any] = {"token": int(batch.tokens[i]), "position": int(batch.positions[i])}
    if drawn is not None:
        entry |= {"rollout_log_prob": float(drawn.behaviour[i]), "train_log_prob": float(drawn.policy[i])}
    if batch.texts is not None:
        entry["text"] = batch.texts[i]
    return entry


def _sequence_sums(
    batch: Batch, drawn: Drawn, sequences: Mapping[str, np.ndarray], settings: Settings
) -> dict[str, np.ndarray]:
    """Bounded per-sequence quantities of the certificates, with rewards scaled to [0, 1]; 0 where
    incomplete.
    """
    ok = drawn.complete
    log_w = np.where(ok, sequences["seq_log_w"], 0.0)
    out = {"complete": ok.astype(float), "cert:tv_seq": np.where(ok, confidence.tv_values(log_w), 0.0)}
    if settings.reward_range is None or batch.rewards is None:
        return out
    low, high = settings.reward_range
    ok = ok & ~np.isnan(batch.rewards)
    gain = np.where(ok, (np.nan_to_num(batch.rewards) - low) / (high - low), 0.0)
    log_w, sum_k3 = np.where(ok, log_w, 0.0), np.where(ok, sequences["seq_sum_k3"], 0.0)
    mask = (sum_k3 <= settings.k3_mask).astype(float)
    cap = settings.ratio_cap
    out |= {
        "certified": ok.astype(float),
        "cert:outside": (ok & ((gain < 0) | (gain > 1))).astype(float),
        "cert:reward": gain,
    }
    for side, amount in (("gain", gain), ("cost", np.where(ok, 1 - gain, 0.0))):
        out |= {
            f"cert:return_truncated/{side}": confidence.truncated_values(log_w, amount, cap),
            f"cert:improvement_truncated/{side}": confidence.truncated_change_values(log_w, amount, cap),
            f"cert:improvement_log/{side}": confidence.log_change_values(log_w, amount, cap),
            f"cert:improvement_masked/{side}": confidence.masked_change_values(log_w, amount, mask, cap, 1.0),
        }
    return out | {
        "est:reward_log_w": np.where(gain > 0, gain * log_w, 0.0),
        "est:cost_log_w": np.where(ok & (gain < 1), (1 - gain) * log_w, 0.0),
        "est:reward_floor_log_w": gain * np.maximum(log_w, -1.0),
        "est:surrogate": gain * np.where(ok, np.nan_to_num(sequences["seq_sum_ratio_minus_1"]), 0.0),
        "est:masked_surrogate": mask
        * gain
        * np.where(ok, np.nan_to_num(sequences["seq_sum_ratio_minus_1"]), 0.0),
        "est:masked_k3": mask * gain * np.where(np.isfinite(sum_k3), sum_k3, 0.0),
        "est:masked_reward_lost": (1 - mask) * gain,
    }
