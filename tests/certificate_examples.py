"""The documented certificates, and what the tests of the checker share."""

from __future__ import annotations

import copy
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import flint

from opdtheory import checker

ROOT = Path(__file__).parents[1]
_DOCUMENT = (ROOT / "docs/certificates.md").read_text("utf-8")
EXAMPLES = {c["kind"]: c for c in map(checker.parse, re.findall(r"```json\n(.*?)```", _DOCUMENT, re.DOTALL))}
KINDS = tuple(checker.PRIMITIVES)


def resealed(certificate: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A changed copy with the digest made right again, so that only the reading and the mathematics can
    object.
    """
    out = copy.deepcopy(certificate) | changes
    out["sha256"] = checker.digest(out)
    return out


def ball_ends(x: flint.arb) -> tuple[Fraction, Fraction]:
    mid, rad = x.mid().man_exp(), x.rad().man_exp()
    centre = Fraction(int(mid[0])) * Fraction(2) ** int(mid[1])
    radius = Fraction(int(rad[0])) * Fraction(2) ** int(rad[1])
    return centre - radius, centre + radius
