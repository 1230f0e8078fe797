"""Figures as data: what an experiment records for the drawing code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["lines", "report"]


def lines(
    title: str, series: Mapping[str, Sequence[Any]], *, x: str, y: str, caption: str, **options: Any
) -> dict[str, Any]:
    """A figure of lines: ``series`` over ``at`` (0, 1, … if omitted), axis labels with units, a caption that
    says what is exact.  Options: ``at``, ``log`` (both axes), ``log_y``, ``estimated`` (names drawn dashed).
    """
    at = options.pop("at", None)
    unknown = set(options) - {"log", "log_y", "estimated"}
    if unknown:
        raise ValueError(f"figure option {sorted(unknown)}: expected at, log, log_y or estimated")
    axis = {} if at is None else {"x": list(at)}
    labels = {"x_label": x, "y_label": y, "caption": " ".join(caption.split())}
    return {"kind": "lines", "title": title, "series": dict(series), **axis, **labels, **options}


def report(*figures: dict[str, Any], tables: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """The ``report`` part of an experiment's result."""
    return {"figures": list(figures), "tables": list(tables)}
