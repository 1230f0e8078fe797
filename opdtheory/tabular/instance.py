"""What every kind of instance shares: named scalars as attributes, and the check of a distribution."""

from __future__ import annotations

from typing import Any

import numpy as np

from opdtheory.elementary import exact
from opdtheory.tabular.tree import SUM_TOLERANCE

__all__ = ["attach_scalars", "check_distribution", "scalars_data"]


def attach_scalars(instance: Any, scalars: dict[str, Any]) -> None:
    """Make named scalars attributes; ``ValueError`` for a name that the class uses itself."""
    for name, value in scalars.items():
        if hasattr(type(instance), name) or name in vars(instance):
            raise ValueError(f"scalar {name!r}: expected a name that is not an attribute already")
        setattr(instance, name, value)


def scalars_data(scalars: dict[str, Any]) -> dict[str, Any]:
    """Entry ``scalars`` of a certificate's instance, nothing if there are none."""
    return {"scalars": {name: str(exact(v)) for name, v in scalars.items()}} if scalars else {}


def check_distribution(name: str, x: np.ndarray) -> None:
    """Raise ``ValueError`` unless every row of ``x`` (last axis) is a distribution."""
    slack: Any = 0 if x.dtype == object else SUM_TOLERANCE
    if x.dtype != object and not np.isfinite(x).all():
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(x))[0])
        raise ValueError(f"{name}[{', '.join(map(str, at))}] = {x[at]}: expected a finite number")
    if (x < 0).any():
        at = tuple(int(i) for i in np.argwhere(x < 0)[0])
        raise ValueError(f"{name}[{', '.join(map(str, at))}] = {x[at]}: expected a probability in [0, 1]")
    sums = x.sum(axis=-1)
    wrong = np.asarray(np.abs(sums - 1) > slack, dtype=bool)
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        row = f"{name}[{', '.join(map(str, at))}]" if at else name
        raise ValueError(f"{row} sums to {np.asarray(sums)[at]}: expected 1")
