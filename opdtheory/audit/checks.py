"""Signs of broken logs, collected while streaming: counts with places, and a few cross moments."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from opdtheory.audit.batch import LOG_PROB_COLUMNS, Batch
from opdtheory.audit.sampled import Drawn

PLACES = 5
CLAMP = 20.0


@dataclass
class Finding:
    """How often something was seen, and its first places in reading order."""

    count: int = 0
    places: list[str] = field(default_factory=list)

    def merge(self, other: Finding) -> None:
        self.count += other.count
        self.places = (self.places + other.places)[:PLACES]


@dataclass
class Moments2:
    """Sums for a regression and a correlation of two variables."""

    sums: np.ndarray = field(default_factory=lambda: np.zeros(6))

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        self.sums = self.sums + np.array(
            [len(x), x.sum(), y.sum(), (x * x).sum(), (x * y).sum(), (y * y).sum()]
        )

    def merge(self, other: Moments2) -> None:
        self.sums = self.sums + other.sums

    @property
    def count(self) -> int:
        return int(self.sums[0])

    def covariances(self) -> tuple[float, float, float]:
        """Var x, Cov, Var y."""
        n, x, y, xx, xy, yy = self.sums
        n = max(n, 1.0)
        return xx / n - (x / n) ** 2, xy / n - x * y / n**2, yy / n - (y / n) ** 2

    @property
    def correlation(self) -> float:
        vx, c, vy = self.covariances()
        return float(c / np.sqrt(vx * vy)) if vx > 0 and vy > 0 else 0.0


@dataclass
class Checks:
    """All findings of a stretch of data."""

    findings: dict[str, Finding] = field(default_factory=dict)
    moments: dict[str, Moments2] = field(default_factory=dict)
    lags: np.ndarray = field(default_factory=lambda: np.zeros(4))

    def note(self, code: str, places: Iterable[str], count: int) -> None:
        if count:
            self.findings.setdefault(code, Finding()).merge(
                Finding(count, [p for _, p in zip(range(PLACES), places, strict=False)])
            )

    def pair(self, name: str, x: np.ndarray, y: np.ndarray) -> None:
        if len(x):
            self.moments.setdefault(name, Moments2()).add(x, y)

    def merge(self, other: Checks) -> None:
        for code, finding in other.findings.items():
            self.findings.setdefault(code, Finding()).merge(finding)
        for name, moments in other.moments.items():
            self.moments.setdefault(name, Moments2()).merge(moments)
        self.lags = self.lags + other.lags

    def inspect(self, batch: Batch, drawn: Drawn | None) -> None:
        """Look at one batch."""
        for name in LOG_PROB_COLUMNS:
            if name in batch.columns:
                values = batch.columns[name]
                self._mark(batch, f"nan:{name}", np.isnan(values))
                self._mark(batch, f"neg_inf:{name}", values == -np.inf)
                self._mark(batch, f"positive:{name}", values > 1e-5)
        empty = np.flatnonzero(batch.lengths == 0)
        self.note("empty", (f"{batch.source}: {batch.ids[int(i)]}" for i in empty), len(empty))
        if not batch.grouped:
            self.note("ungrouped", (), batch.size)
        if drawn is not None:
            self._inspect_pair(batch, drawn)

    def _mark(self, batch: Batch, code: str, where: np.ndarray) -> None:
        found = np.flatnonzero(where)
        self.note(code, (f"{batch.source}: {batch.place(int(i))}" for i in found), len(found))

    def _inspect_pair(self, batch: Batch, drawn: Drawn) -> None:
        mu, pi, ok = drawn.behaviour, drawn.policy, drawn.usable & np.isfinite(drawn.ell)
        self._mark(batch, "zero:rollout", ok & (mu == 0.0) & (pi < -0.01))
        self._mark(batch, "zero:train", ok & (pi == 0.0) & (mu < -0.01))
        self._mark(batch, "clamped_token", np.abs(drawn.ell) > CLAMP)
        self.note("compared", (), int(ok.sum()))
        self.note("identical", (), int((ok & (mu == pi)).sum()))
        single = mu[ok].astype(np.float32)
        coarse = (single.view(np.uint32) & 0xFFFF) == 0
        self.note("bf16_values", (), int(((single == mu[ok]) & coarse & (single != 0)).sum()))
        self.pair("rollout_train", mu[ok], pi[ok])
        log_w = batch.sums(drawn.ell)[drawn.complete]
        finite = np.isfinite(log_w)
        self.pair(
            "length_abs_log_w", batch.lengths[drawn.complete][finite].astype(float), np.abs(log_w[finite])
        )
        saturated = np.flatnonzero(np.abs(log_w) > CLAMP)
        names = np.asarray(batch.ids, dtype=object)[drawn.complete]
        self.note("clamped_sequence", (f"{batch.source}: {names[i]}" for i in saturated), len(saturated))
        self._lags(batch, mu, pi, ok)

    def _lags(self, batch: Batch, mu: np.ndarray, pi: np.ndarray, ok: np.ndarray) -> None:
        """Mean |π at t+s − μ at t| for shifts s = −1, 0, 1 over interior tokens: an off-by-one makes s≠0
        the smallest.
        """
        n = len(mu)
        if n < 3:
            return
        seq = batch.sequence_of
        inner = np.arange(1, n - 1)
        inside = (seq[inner - 1] == seq[inner + 1]) & ok[inner - 1] & ok[inner] & ok[inner + 1]
        at = inner[inside]
        self.lags = self.lags + np.array([len(at), *(np.abs(pi[at + s] - mu[at]).sum() for s in (-1, 0, 1))])
