"""The one place where tests find their tolerances: relative and absolute, named after why they are what they are."""

from __future__ import annotations

from typing import Any

import numpy as np

EXACT = 0.0
TIGHT = 1e-13
"""A handful of float64 operations."""
FLOAT64 = 1e-10
"""Sums over many float64 terms of mixed size."""
LOOSE64 = 1e-7
"""float64 results that lost digits to cancellation, differences or iteration."""
FLOAT32 = 2e-5
"""float32 arithmetic on O(1) quantities."""
KL32 = 1e-3
"""Relative accuracy asked of small divergences computed in float32."""
SIGMAS = 5.0
"""Monte Carlo estimates must lie within this many standard errors."""
EXPONENT = 1e-2
"""Scaling exponents between two finite horizons, whose lower-order terms have not died out."""
RARE = 1e-6
"""Probability below which chance no longer explains a failed simulation."""


def close(actual: Any, expected: Any, tol: float = FLOAT64) -> bool:
    """Equal within ``tol`` relative to the larger magnitude (absolute below 1); infinities must match, NaN never."""
    a, b = np.broadcast_arrays(np.asarray(actual, dtype=float), np.asarray(expected, dtype=float))
    if np.isnan(a).any() or np.isnan(b).any():
        return False
    finite = np.isfinite(a) & np.isfinite(b)
    scale = np.maximum(1.0, np.maximum(np.abs(a[finite]), np.abs(b[finite])))
    return bool(np.all(a[~finite] == b[~finite]) and np.all(np.abs(a[finite] - b[finite]) <= tol * scale))
