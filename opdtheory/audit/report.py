"""The report object: named numbers, conclusions, warnings; as a dictionary, a terminal table or one HTML
page.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from opdtheory.audit import (
    advantage_forms,
    certify,
    compat,
    conclusions,
    estimators,
    findings,
    mask_effects,
    texts,
)
from opdtheory.audit.metrics import Metric, metrics
from opdtheory.audit.settings import Settings
from opdtheory.audit.state import State
from opdtheory.audit.states import bin_start
from opdtheory.audit.stream import Outcome
from opdtheory.calculator import jsonable

SCHEMA_VERSION = "1.0"
HEADLINES = (
    "kl_rollout_train/mean",
    "kl_rollout_train/max",
    "kl_rollout_train/seq_sum_mean",
    "kl_train_rollout/mean",
    "tv/mean",
    "tv/max",
    "chi2_train_rollout/mean",
    "jsd/mean",
    "topk_kl/mean",
    "binary_tv/mean",
    "binary_kl/mean",
    "abs_log_ratio/mean",
    "abs_log_ratio/max",
    "ratio/mean",
    "k1/mean",
    "k3/mean",
    "seq_log_w/mean",
    "seq_w/mean",
    "seq_effective_fraction",
    "kl_student_teacher/mean",
    "kl_student_teacher/seq_sum_mean",
    "tv_student_teacher/mean",
    "opd_reward/mean",
    "topd_reward/mean",
    "tropd_accept_rate",
    "reward/mean",
    "length/mean",
)


@dataclass(frozen=True)
class Report:
    """What an audit found; build it with ``audit_logs``."""

    settings: Settings
    outcome: Outcome
    metrics: dict[str, Metric]
    bounds: dict[str, Any]
    certificates: list[dict[str, Any]]
    warnings: list[dict[str, Any]]
    shortcuts: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    texts: dict[int, str] = field(default_factory=dict)

    @property
    def state(self) -> State:
        return self.outcome.total

    @property
    def errors(self) -> list[str]:
        """Faults of the input, one line each."""
        return self.outcome.errors

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values; infinities are the strings "inf" and "-inf", NaN never occurs."""
        state = self.state
        document = {
            "schema_version": SCHEMA_VERSION,
            "source": self.outcome.sources,
            "sequences": state.sequence_count,
            "tokens": state.token_count,
            "prompts": len(state.groups.column("tokens")),
            "settings": self.settings.to_dict(),
            "policies": state.sources,
            "metrics": {name: metric.to_dict() for name, metric in sorted(self.metrics.items())},
            "masks": [
                {
                    "name": name,
                    "what": mask_effects.what(name),
                    "parameters": count.parameters,
                    "tokens_kept": count.tokens_kept,
                    "tokens": count.tokens,
                    "sequences_kept": count.sequences_kept,
                    "sequences": count.sequences,
                    "token_fraction": _fraction(count.tokens_kept, count.tokens),
                    "sequence_fraction": _fraction(count.sequences_kept, count.sequences),
                    "k3_fraction": _fraction(count.k3_kept, count.k3),
                    "removed": [
                        {"place": place, **entry, "text": self._text(entry["token"])}
                        for _, place, entry in count.removed.entries
                    ],
                }
                for name, count in sorted(state.masks.items())
            ],
            "advantage_forms": [
                {
                    "metric": name,
                    "form": form,
                    "computed": what,
                    "needs": needs,
                    "available": f"{name}/mean" in self.metrics,
                }
                for name, form, what, needs in advantage_forms.FORMS
            ],
            "bounds": self.bounds["bounds"],
            "bound_inputs": self.bounds["inputs"],
            "not_computable": self.bounds["not_computable"],
            "certificates": self.certificates,
            "shortcuts": self.shortcuts,
            "estimators": estimators.estimator_audit(),
            "carriers": self.carriers(),
            "profile": self.profile(),
            "heat": self.heat(),
            "steps": self.steps,
            "warnings": self.warnings,
            "errors": self.errors,
        }
        return _strict(jsonable(_hide(document) if self.settings.redact else document))

    def carriers(self) -> dict[str, Any]:
        """Which tokens carry the divergence: the worst single tokens, and the vocabulary items by their
        share.
        """
        state = self.state
        vocabulary = state.vocabulary
        total = float(vocabulary.sums.sum())
        order = sorted(range(len(vocabulary.ids)), key=lambda i: (-vocabulary.sums[i], vocabulary.ids[i]))[
            :25
        ]
        items = [
            {
                "token": int(vocabulary.ids[i]),
                "text": self._text(int(vocabulary.ids[i])),
                "count": int(vocabulary.counts[i]),
                "share": _fraction(float(vocabulary.sums[i]), total),
                "mean": float(vocabulary.sums[i] / vocabulary.counts[i]),
            }
            for i in order
        ]
        worst = [
            {"value": v, "place": place, **entry, "text": self._text(entry["token"])}
            for v, place, entry in state.worst.entries
        ]
        return {
            "metric": state.heat.entries[0][2]["metric"] if state.heat.entries else None,
            "tokens": worst,
            "vocabulary": items,
        }

    def _text(self, token: int) -> str | None:
        return None if self.settings.redact else self.texts.get(token, self.state.texts.get(token))

    def profile(self) -> list[dict[str, float]]:
        """Means by position in the response."""
        sums = self.state.profile.sums
        counts = sums.get("count", np.zeros(0))
        out = []
        for i, n in enumerate(counts):
            if n:
                row = {"position": bin_start(i), "count": int(n)}
                out.append(row | {k: float(v[i] / n) for k, v in sums.items() if k != "count" and i < len(v)})
        return out

    def heat(self) -> list[dict[str, Any]]:
        """The sequences with the largest mean divergence, token by token."""
        return [{"mean": value, "sequence": name, **row} for value, name, row in self.state.heat.entries]

    def to_html(self) -> str:
        """One self-contained page: no network, no scripts from elsewhere."""
        from opdtheory.audit import html

        return html.render(self)

    def table(self) -> Group:
        """The headline numbers, masks, best bounds and warnings for a terminal."""
        state = self.state
        head = Text(
            f"{state.sequence_count} sequences, {state.token_count} tokens, "
            f"{len(state.groups.column('tokens'))} prompts",
            style="bold",
        )
        numbers = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        for name in ("metric", "value", "interval", "is", "over"):
            numbers.add_column(
                name, justify="right" if name in ("value", "interval") else "left", no_wrap=True
            )
        for name in HEADLINES:
            if name in self.metrics:
                m = self.metrics[name]
                interval = "" if m.interval is None else f"{m.interval[0]:.3g} … {m.interval[1]:.3g}"
                numbers.add_row(name, f"{m.value:.4g}", interval, m.kind, m.over.split()[-1])
        parts: list[Any] = [head, numbers]
        if state.masks:
            parts += [Text(), self._mask_table()]
        if self.bounds["bounds"]:
            parts += [Text(), self._bound_table()]
        if self.certificates:
            parts += [Text(), self._certificate_table()]
        for warning in self.warnings:
            where = f" ({'; '.join(warning['where'][:2])})" if warning["where"] else ""
            parts.append(Text(f"warning [{warning['code']}] {warning['message']}{where}", style="yellow"))
        return Group(*parts)

    def _mask_table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for name in ("mask", "tokens kept", "sequences kept"):
            table.add_column(name)
        for name, count in sorted(self.state.masks.items()):
            table.add_row(
                name,
                f"{_fraction(count.tokens_kept, count.tokens) or 0:.2%}",
                f"{_fraction(count.sequences_kept, count.sequences) or 0:.2%}",
            )
        return table

    def _bound_table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for name in ("bound on |J(π)−J(μ)−L| and others", "value", "says", "rests on"):
            table.add_column(name)
        for entry in self.bounds["bounds"][:12]:
            table.add_row(
                f"{entry['name']} ({entry['id']})", f"{entry['value']:.4g}", entry["says"], entry["basis"]
            )
        return table

    def _certificate_table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for name in ("certificate", "method", "confidence", "lower", "upper"):
            table.add_column(name, no_wrap=True)
        for c in self.certificates:
            ends = [("–" if c[k] is None else f"{c[k]:.4g}") for k in ("lower", "upper")]
            table.add_row(c["name"], c["method"], f"{c['confidence']:g}", *ends)
        return table


def build(outcome: Outcome, settings: Settings) -> Report:
    """The report of a finished stream."""
    with np.errstate(over="ignore", invalid="ignore"):
        return _build(outcome, settings)


def _build(outcome: Outcome, settings: Settings) -> Report:
    known = {} if settings.token_texts is None or settings.redact else texts.load(settings.token_texts)
    numbers = metrics(outcome.total, settings)
    numbers |= compat.metrics(outcome.total, settings, numbers)
    steps = [
        {
            "step": step,
            "sequences": state.sequence_count,
            "tokens": state.token_count,
            "metrics": {
                n: m.to_dict()
                for n, m in metrics(state, settings).items()
                if n in HEADLINES or n.startswith("rollout_corr/")
            },
        }
        for step, state in sorted(outcome.steps.items())
    ]
    return Report(
        settings=settings,
        outcome=outcome,
        metrics=numbers,
        bounds=conclusions.bounds(outcome.total, numbers, settings),
        certificates=certify.certificates(outcome.total, settings),
        warnings=findings.warnings(outcome.total, settings) + compat.notes(outcome.total, settings),
        shortcuts=conclusions.shortcuts(numbers),
        steps=steps,
        texts=known,
    )


def _fraction(part: float, whole: float) -> float | None:
    return float(part / whole) if whole and math.isfinite(whole) else None


def _strict(value: Any) -> Any:
    """NaN becomes null, tuples lists, numpy numbers plain ones."""
    if isinstance(value, dict):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(v) for v in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    return value.item() if hasattr(value, "item") else value


def _ids(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, int) for v in value)


def _hide(value: Any, key: str = "") -> Any:
    """Texts and token ids removed, names of files and sequences replaced by short hashes of them."""
    if isinstance(value, dict):
        shown = {
            k: v for k, v in value.items() if k not in ("text", "token") and not (k == "tokens" and _ids(v))
        }
        return {k: _hide(v, k) for k, v in shown.items()}
    if isinstance(value, list):
        return [_hide(v, key) for v in value]
    if isinstance(value, str) and key in ("source", "place", "sequence", "where", "errors"):
        return hashlib.blake2b(value.encode(), digest_size=4).hexdigest()
    return value
