"""Replaying certificates: the stand-alone checker decides, and the catalogue confirms what they are about."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

from opdtheory import checker
from opdtheory.verification.certificate import load, states
from opdtheory.verification.claim import Claim
from opdtheory.verification.registry import Registry, load_catalogue

__all__ = ["replay", "stated_claim"]


def stated_claim(certificate: dict[str, Any], catalogue: Registry) -> Claim | None:
    """The catalogue's claim, variant or scaled claim that a certificate names, or None if there is no such one."""
    base, _, name = certificate["claim"].partition("~")
    if base not in catalogue:
        return None
    claim = catalogue.get(base)
    if name:
        changes = {mutant.name: mutant.changes for mutant in claim.mutants} | {"unassumed": claim.unassumed or {}}
        if name not in changes:
            return None
        claim = claim.variant(name, changes[name])
    if str(claim.scale) == certificate["scale"]:
        return claim
    try:
        return claim.scaled(Fraction(certificate["scale"]) / Fraction(claim.scale))
    except ValueError:
        return claim


def replay(paths: Iterable[Path | str]) -> int:
    """Check certificates, print a line each, and return the exit status of ``opdtheory check``.

    Beyond the checker, a certificate that names a claim of the catalogue must carry that claim's formulas and
    conditions.  0: every one confirmed; 1: one refused; 2: one unreadable.
    """
    status = 0
    catalogue = load_catalogue()
    for path in paths:
        try:
            verdict = checker.check(str(path))
        except checker.BadInput as error:
            print(f"{path}: {error}", file=sys.stderr)
            status = 2
            continue
        reason, remark, confirmed = verdict.reason, "", verdict.confirmed
        if confirmed:
            certificate = load(Path(path))
            claim = stated_claim(certificate, catalogue)
            if claim is None:
                remark = " (not in the catalogue: formulas not compared)"
            elif not states(claim, certificate):
                confirmed, reason = False, f"its formulas or conditions are not those of {certificate['claim']}"
        word = f"confirmed: {verdict.claim}{remark}" if confirmed else "refused"
        print(f"{path}: {word}: {reason}")
        if not confirmed:
            status = status or 1
    return status
