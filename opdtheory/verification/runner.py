"""Run many claims: in parallel, with progress, resumable, and compare with the committed record."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed

import opdtheory
from opdtheory.verification.certificate import file_name, write_json
from opdtheory.verification.claim import Claim
from opdtheory.verification.engine import ROOT, Effort, Verdict, verify
from opdtheory.verification.searching import finite
from opdtheory.verification.status import resolve

SCHEMA_VERSION = 1
RECORD = Path(__file__).resolve().parents[1] / "data" / "record.json"
_COMPARED = ("id", "as_printed", "status")


def _work(claim_id: str, effort: Effort, seed: int) -> tuple[str, Verdict]:
    """Catalogue claims cross process boundaries by id: their sides are closures that need not be pickled."""
    from opdtheory.verification.registry import load_catalogue

    claim = load_catalogue().get(claim_id)
    verdict = verify(claim, effort=effort, seed=seed)
    return claim_id, verdict


def _portable(verdict: Verdict) -> Verdict:
    """Drop what cannot be pickled; the claim is put back by the parent process."""
    verdict.claim = None  # type: ignore[assignment]
    if verdict.found is not None:
        verdict.found.claim = None  # type: ignore[assignment]
    return verdict


def _remote(claim_id: str, effort: Effort, seed: int) -> tuple[str, Verdict]:
    claim_id, verdict = _work(claim_id, effort, seed)
    return claim_id, _portable(verdict)


def run(
    claims: Iterable[Claim],
    effort: Effort = "default",
    seed: int = 0,
    jobs: int = 1,
    on_done: Callable[[Verdict], None] | None = None,
    finished: Mapping[str, Verdict] | None = None,
) -> list[Verdict]:
    """Verify claims and resolve their dependencies; verdicts come back in the order of ``claims``.

    Catalogue claims may run in ``jobs`` processes; a user's own claims run in this one.

    Args:
        on_done: called with each verdict as it arrives, before dependencies are resolved, so that an interruption loses
            none that is finished.
        finished: verdicts by id that an earlier, interrupted run left; they are taken over as they are.
    """
    from opdtheory.verification.registry import load_catalogue

    catalogue = load_catalogue()
    wanted = list(claims)
    by_id = {c.id: c for c in wanted}
    done = {cid: v for cid, v in (finished or {}).items() if cid in by_id}
    todo = [c for c in wanted if c.id not in done]
    shared = [c for c in todo if c.id in catalogue and catalogue.get(c.id) is c]
    local = [c for c in todo if not (c.id in catalogue and catalogue.get(c.id) is c)]

    def finish(claim_id: str, verdict: Verdict) -> None:
        verdict.claim = by_id[claim_id]
        if verdict.found is not None:
            verdict.found.claim = by_id[claim_id]
        done[claim_id] = verdict
        if on_done is not None:
            on_done(verdict)

    if jobs == 1 or len(shared) <= 1:
        local = [*shared, *local]
    else:
        tasks = (delayed(_remote)(c.id, effort, seed) for c in shared)
        for claim_id, verdict in Parallel(n_jobs=jobs, return_as="generator_unordered")(tasks):
            finish(claim_id, verdict)
    for claim in local:
        finish(claim.id, verify(claim, effort=effort, seed=seed))
    return settle([done[c.id] for c in wanted])


def settle(verdicts: list[Verdict]) -> list[Verdict]:
    """Fix the final statuses of verdicts, dependencies among them included."""
    statuses = resolve({v.claim.id: v.claim for v in verdicts}, {v.claim.id: v.status for v in verdicts})
    for verdict in verdicts:
        verdict.settle(statuses[verdict.claim.id])
    return verdicts


def results(verdicts: list[Verdict], effort: str, seed: int, seconds: float, certificate_dir: str = "certificates") -> dict[str, Any]:
    """The ``results.json`` document."""
    rows = [v.to_dict(certificate_dir) for v in verdicts]
    counts: dict[str, int] = {}
    printed: dict[str, int] = {}
    for row in rows:
        counts[row["status"]] = counts.get(row["status"], 0) + 1
        printed[row["as_printed"]] = printed.get(row["as_printed"], 0) + 1
    mutants = [m for row in rows for m in row["mutants"]]
    summary = {
        "claims": len(rows),
        "by_status": dict(sorted(counts.items())),
        "by_as_printed": dict(sorted(printed.items())),
        "certificates": sum(len(row["certificates"]) for row in rows),
        "mutants": len(mutants),
        "mutants_as_expected": sum(m["expected"] == m["got"] for m in mutants),
        "disagreements": [f"{row['id']}: {p}" for row in rows for p in row["problems"]],
    }
    return {
        "schema_version": SCHEMA_VERSION, "package_version": opdtheory.__version__, "seed": seed, "effort": effort,
        "seconds": finite(round(seconds, 1)), "claims": rows, "summary": summary,
    }  # fmt: skip


def write_certificates(verdicts: list[Verdict], directory: Path) -> list[Path]:
    """Write every certificate of a run; returns the paths."""
    written = []
    for verdict in verdicts:
        for claim_id, certificate in verdict.certificates.items():
            path = directory / file_name(claim_id)
            write_json(path, certificate)
            written.append(path)
    return written


def load_record(path: Path = RECORD) -> dict[str, Any]:
    """The committed record of verdicts.

    Raises:
        FileNotFoundError: if there is none.
    """
    return json.loads(path.read_text(encoding="utf-8"))


def differences(fresh: dict[str, Any], record: dict[str, Any]) -> list[str]:
    """Where a run disagrees with the record: id, as_printed, status, and which certificates exist."""
    old = {row["id"]: row for row in record["claims"]}
    out = []
    for row in fresh["claims"]:
        known = old.get(row["id"])
        if known is None:
            out.append(f"{row['id']}: not in the record")
            continue
        out += [f"{row['id']}: {key} is {row[key]!r}, recorded {known[key]!r}" for key in _COMPARED if row[key] != known[key]]
        names = [sorted(Path(p).name for p in r["certificates"]) for r in (row, known)]
        if names[0] != names[1]:
            out.append(f"{row['id']}: certificates {names[0]}, recorded {names[1]}")
    return out


def write_record(verdicts: list[Verdict], document: dict[str, Any]) -> None:
    """Make a run the committed record: the document, and exactly its certificates."""
    directory = ROOT / "certificates"
    written = set(write_certificates(verdicts, directory))
    for stale in set(directory.glob("*.json")) - written:
        stale.unlink()
    write_json(RECORD, document)
