"""Finished verdicts on disk: an interrupted run loses nothing, and ``--resume`` goes on where it stopped."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opdtheory.elementary import exact
from opdtheory.verification.certificate import file_name, write_json
from opdtheory.verification.claim import Claim
from opdtheory.verification.engine import ROOT, Verdict
from opdtheory.verification.evidence import Evidence
from opdtheory.verification.searching import SearchResult, finite

PACKAGE = Path(__file__).resolve().parents[1]
_LIBRARIES = ("numpy", "scipy", "sympy", "python-flint")


def code_digest(files: Sequence[Path] = ()) -> str:
    """SHA-256 of whatever a verdict may depend on beside effort and seed: the package's sources and data, committed
    certificates, written proofs, the user's own ``files`` and the versions of the libraries that compute."""
    digest = hashlib.sha256(sys.version.encode())
    for library in _LIBRARIES:
        digest.update(importlib.metadata.version(library).encode())
    folders = ((PACKAGE, "*.py"), (PACKAGE / "data", "*.json"), (ROOT / "certificates", "*.json"), (ROOT / "docs", "*.md"))
    for folder, pattern in folders:
        for path in sorted(folder.rglob(pattern)):
            digest.update(f"\n{path.relative_to(folder)}\n".encode() + path.read_bytes())
    for path in files:
        digest.update(b"\n" + path.read_bytes())
    return digest.hexdigest()


class FinishedVerdicts:
    """The verdicts of one run that are done, a JSON file each, in a folder named after effort, seed and code.

    Args:
        folder: where all such folders lie.
        files: the user's own claims, whose content counts as code.
    """

    def __init__(self, folder: Path, effort: str, seed: int, files: Sequence[Path] = ()):
        self.folder = folder / f"{effort}-{seed}-{code_digest(files)[:16]}"

    def _path(self, claim: Claim) -> Path:
        return self.folder / file_name(claim.id)

    def store(self, verdict: Verdict) -> None:
        """Keep a verdict as :func:`opdtheory.verification.engine.verify` gave it."""
        write_json(self._path(verdict.claim), verdict_to_data(verdict))

    def load(self, claim: Claim) -> Verdict | None:
        """The stored verdict of a claim, or None if it was not finished."""
        path = self._path(claim)
        return verdict_from_data(claim, json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None

    def discard(self, claims: Iterable[Claim]) -> None:
        """Forget the verdicts of these claims, and the folder once it is empty."""
        for claim in claims:
            self._path(claim).unlink(missing_ok=True)
        if self.folder.exists() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def verdict_to_data(verdict: Verdict) -> dict[str, Any]:
    """Everything a verdict says beyond its claim, as JSON."""
    found = verdict.found
    return {
        "evidence": [e.to_dict() for e in verdict.evidence],
        "found": None if found is None else _found_to_data(found),
        "unassumed_refuted": verdict.unassumed_refuted,
        "certificates": verdict.certificates,
        "mutants": verdict.mutants,
        "problems": verdict.problems,
        "status": verdict.status,
        "seconds": verdict.seconds,
    }


def verdict_from_data(claim: Claim, data: Mapping[str, Any]) -> Verdict:
    """The inverse of :func:`verdict_to_data`."""
    rest = {key: value for key, value in data.items() if key not in {"evidence", "found"}}
    found = None if data["found"] is None else _found_from_data(claim, data["found"])
    return Verdict(claim, evidence=[Evidence(**e) for e in data["evidence"]], found=found, **rest)


def _found_to_data(found: SearchResult) -> dict[str, Any]:
    values = found.values
    return {
        "refuted": found.refuted,
        "best_score": finite(found.best_score),
        "size": None if found.size is None else dict(found.size),
        "values": None if values is None else {name: np.vectorize(str, otypes=[object])(v).tolist() for name, v in values.items()},
        "certificate": found.certificate,
        "instances": found.instances,
        "ascents": found.ascents,
        "seconds": found.seconds,
        "seed": found.seed,
        "note": found.note,
        "reached": [[size, finite(score)] for size, score in found.reached],
        "witness_size": None if found.witness_size is None else dict(found.witness_size),
    }


def _found_from_data(claim: Claim, data: Mapping[str, Any]) -> SearchResult:
    values = data["values"]
    if values is not None:
        values = {name: _exact_array(nested) for name, nested in values.items()}
    reached = [(size, float(score)) for size, score in data["reached"]]
    return SearchResult(claim, **(dict(data) | {"best_score": float(data["best_score"]), "values": values, "reached": reached}))


def _exact_array(nested: Any) -> np.ndarray:
    text = np.array(nested, dtype=object)
    out = np.empty(text.shape, dtype=object)
    for index in np.ndindex(text.shape):
        out[index] = exact(text[index])
    return out
