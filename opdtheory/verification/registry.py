"""The catalogue's registry: claims by id, in the order of their sources."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

from opdtheory.verification.claim import Claim, Sides, Source


class Registry:
    """Claims by id.  Registering an id twice is an error; looking up an unknown one suggests the nearest."""

    def __init__(self) -> None:
        self._claims: dict[str, Claim] = {}

    def add(self, claim: Claim) -> Claim:
        if claim.id in self._claims:
            raise ValueError(f"claim {claim.id} is registered twice")
        self._claims[claim.id] = claim
        return claim

    def get(self, claim_id: str) -> Claim:
        if claim_id not in self._claims:
            near = difflib.get_close_matches(claim_id, self._claims, n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise KeyError(f"no claim {claim_id!r}{hint}")
        return self._claims[claim_id]

    def arrange(self, sources: list[str], place: Callable[[str], Any]) -> None:
        """Order the claims by source, within each by ``place`` of their ids, and then as they were registered."""
        rank = {key: i for i, key in enumerate(sources)}

        def key(item: tuple[str, Claim]) -> tuple[int, Any]:
            source = item[1].source
            return (rank[source.key] if source else len(rank), place(item[0]))

        self._claims = dict(sorted(self._claims.items(), key=key))

    def __iter__(self) -> Iterator[Claim]:
        return iter(self._claims.values())

    def __len__(self) -> int:
        return len(self._claims)

    def __contains__(self, claim_id: object) -> bool:
        return claim_id in self._claims


CATALOGUE = Registry()


def entry(claim_id: str, source: Source, locator: str, title: str, **fields: Any) -> Claim:
    """Register an entry without sides (a definition, an empirical statement) or with ``sides=`` given."""
    return CATALOGUE.add(Claim(id=claim_id, source=source, locator=locator, title=title, **fields))


def claim(claim_id: str, source: Source, locator: str, title: str, **fields: Any) -> Callable[[Sides], Claim]:
    """Decorator: register a claim whose sides are the decorated function and whose statement is its docstring."""

    def register(sides: Sides) -> Claim:
        statement = fields.pop("statement", None) or " ".join((sides.__doc__ or "").split())
        return entry(claim_id, source, locator, title, sides=sides, statement=statement, **fields)

    return register


def load_catalogue() -> Registry:
    """Import every module of :mod:`opdtheory.claims`, which registers its entries, and return the registry."""
    package = importlib.import_module("opdtheory.claims")
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda m: m.name):
        importlib.import_module(f"opdtheory.claims.{module.name}")
    sources, order = (importlib.import_module(f"opdtheory.claims.{name}") for name in ("sources", "order"))
    CATALOGUE.arrange(list(sources.SOURCES), order.place)
    return CATALOGUE
