"""The catalogue of claims, one object a claim.

>>> get("trm.2.5.4").relation
'<='
"""

from __future__ import annotations

from opdtheory.verification.claim import Claim
from opdtheory.verification.registry import load_catalogue

__all__ = ["all_claims", "get"]


def get(claim_id: str) -> Claim:
    """The catalogue entry with this id.

    Raises:
        KeyError: naming the nearest ids, if there is none.
    """
    return load_catalogue().get(claim_id)


def all_claims() -> list[Claim]:
    """Every entry, in the order of the sources."""
    return list(load_catalogue())
