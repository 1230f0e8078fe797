"""How series look: colours told apart by colour-blind readers, and markers that tell them apart in grey."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import Any

__all__ = ["COLOURS", "Styles"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, without yellow, which is too light for a line."""

MARKERS = "osD^vPX*<>h"
"""As many as are told apart; a number without common factor with the colours', so that pairs repeat late."""


class Styles:
    """One colour and marker per label, the same in every panel."""

    def __init__(self) -> None:
        self._supply: Iterator[tuple[str, str]] = zip(cycle(COLOURS), cycle(MARKERS), strict=False)
        self._known: dict[str, tuple[str, str]] = {}

    def __call__(self, label: str, line: str = "-") -> dict[str, Any]:
        """Keywords of ``Axes.plot``; ``line`` is solid for exact values, dashed for estimates, dotted for bounds."""
        if label not in self._known:
            self._known[label] = next(self._supply)
        colour, marker = self._known[label]
        return {"color": colour, "marker": marker, "markersize": 4, "linestyle": line, "linewidth": 1.4}
