"""How good is the attack?  Every planted statement is attacked with many seeds; the record is part of the report.

The goal: each false statement refuted in at least 19 of 20 seeds, within ten seconds of one core, and no true one ever.
A seed's trials are finished together and stored at once, so that an interrupted measurement goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed

import opdtheory
from opdtheory.verification.ascent import Budget
from opdtheory.verification.certificate import statement, write_json
from opdtheory.verification.claim import Claim
from opdtheory.verification.planted import FALSE, SLIPS, TRUE
from opdtheory.verification.searching import BUDGETS, search

SCHEMA_VERSION = 1
RECORD = Path(__file__).resolve().parents[1] / "data" / "power.json"
REQUIRED_SHARE = 0.95
"""19 of 20 seeds."""
SECONDS_ALLOWED = 10.0
"""For one refutation, in CPU seconds of one core."""


@dataclass(frozen=True)
class Trial:
    """One attack on one planted statement; ``seconds`` is CPU time, ``best_ratio`` the largest lhs/rhs seen."""

    id: str
    false: bool
    seed: int
    refuted: bool
    seconds: float
    best_ratio: float | None
    note: str


def trial(claim: Claim, false: bool, seed: int, budget: Budget = BUDGETS["default"]) -> Trial:
    """Attack one statement, at default effort unless told otherwise."""
    begin = time.process_time()
    result = search(claim, seed=seed, budget=budget)
    seconds = time.process_time() - begin
    return Trial(claim.id, false, seed, result.refuted, round(seconds, 3), result.best_ratio, result.note)


def trials(seed: int) -> list[Trial]:
    """Attack every planted statement once with this seed."""
    return [trial(claim, false, seed) for false, group in ((True, FALSE), (False, TRUE)) for claim in group]


def fingerprint() -> str:
    """SHA-256 of what is planted and how hard it is attacked: formulas, conditions, relations, sizes, budget."""
    content: list[Any] = [asdict(BUDGETS["default"])]
    for claim in (*FALSE, *TRUE):
        assert claim.space is not None
        names = set(claim.space.blocks(**claim.space.sizes[0]))
        stated = [statement(claim, size, dict.fromkeys(names)) for size in claim.space.sizes]
        content.append([claim.id, claim.relation, str(claim.scale), [dict(size) for size in claim.space.sizes], stated])
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def measure(
    seeds: int,
    path: Path,
    jobs: int = 1,
    resume: bool = False,
    on_done: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Attack the planted statements with seeds 0 … ``seeds`` − 1 and keep ``path`` up to date after each seed.

    Args:
        path: the record, replaced atomically; with ``resume`` its finished seeds are taken over, if it was measured on the
            same statements with the same budget.
        on_done: called with each seed that is done.

    Returns: the record, as in ``data/power.schema.json``.
    """
    content = fingerprint()
    done = finished(path, content, seeds) if resume else {}
    for seed in done:
        if on_done is not None:
            on_done(seed)
    missing = [seed for seed in range(seeds) if seed not in done]
    for results in Parallel(n_jobs=jobs, return_as="generator_unordered")(delayed(trials)(seed) for seed in missing):
        done[results[0].seed] = results
        write_json(path, document(done, content))
        if on_done is not None:
            on_done(results[0].seed)
    return document(done, content)


def document(done: Mapping[int, list[Trial]], content: str) -> dict[str, Any]:
    """The record of finished seeds."""
    results = [t for seed in sorted(done) for t in done[seed]]
    return {
        "schema_version": SCHEMA_VERSION, "package_version": opdtheory.__version__, "fingerprint": content,
        "seeds": sorted(done), "summary": summary(results), "statements": [_row(group) for group in _by_claim(results)],
    }  # fmt: skip


def _by_claim(results: Iterable[Trial]) -> list[list[Trial]]:
    groups: dict[str, list[Trial]] = {}
    for t in results:
        groups.setdefault(t.id, []).append(t)
    return list(groups.values())


def _row(group: list[Trial]) -> dict[str, Any]:
    first = group[0]
    return {
        "id": first.id, "false": first.false, "slip": SLIPS.get(first.id),
        "refuted": [t.seed for t in group if t.refuted], "not_refuted": [t.seed for t in group if not t.refuted],
        "seconds": [t.seconds for t in group], "best_ratio": [t.best_ratio for t in group], "notes": [t.note for t in group],
    }  # fmt: skip


def finished(path: Path, content: str, seeds: int) -> dict[int, list[Trial]]:
    """The trials of the first ``seeds`` seeds in an earlier record, by seed; none if it is about other statements.

    Raises:
        ValueError: if the file is no such record.
    """
    if not path.exists():
        return {}
    earlier = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(earlier, dict) or "fingerprint" not in earlier:
        raise ValueError("expected a measurement written by opdtheory power")
    if earlier["fingerprint"] != content:
        return {}
    done: dict[int, list[Trial]] = {seed: [] for seed in earlier["seeds"] if seed < seeds}
    for row in earlier["statements"]:
        columns = zip(earlier["seeds"], row["seconds"], row["best_ratio"], row["notes"], strict=True)
        for seed, seconds, ratio, note in columns:
            if seed in done:
                done[seed].append(Trial(row["id"], row["false"], seed, seed in row["refuted"], seconds, ratio, note))
    return done


def load_record(path: Path = RECORD) -> dict[str, Any] | None:
    """The committed measurement, or None if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def summary(results: list[Trial]) -> dict[str, Any]:
    """Power: the refuted share of the false statements, the lowest rate of any one, the slowest refutation, false alarms."""
    false, true = ([t for t in results if t.false is wanted] for wanted in (True, False))
    rates = [sum(t.refuted for t in group) / len(group) for group in _by_claim(false)]
    slowest = max((t.seconds for t in false if t.refuted), default=0.0)
    alarms = [f"{t.id} (seed {t.seed})" for t in true if t.refuted]
    return {
        "false_statements": len(rates),
        "true_statements": len({t.id for t in true}),
        "seeds": len({t.seed for t in results}),
        "power": sum(t.refuted for t in false) / len(false),
        "lowest_rate": min(rates),
        "missed": [f"{t.id} (seed {t.seed})" for t in false if not t.refuted],
        "false_alarms": alarms,
        "slowest_refutation_seconds": slowest,
        "goal_met": min(rates) >= REQUIRED_SHARE and slowest <= SECONDS_ALLOWED and not alarms,
    }
