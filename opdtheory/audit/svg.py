"""Small drawings as SVG text: no library, no script, colours from the page's variables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from opdtheory.audit.states import Series

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 460, 170, 52, 30, 12


def _frame(body: str, label: str, height: int = HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label, quote=True)}" '
        'class="chart">'
        f"{body}</svg>"
    )


def _number(value: float) -> str:
    return f"{value:.3g}"


def histogram(series: Series, label: str, bins: int = 40) -> str:
    """Distribution of a statistic; the axis is logarithmic where a positive one spans more than two
    decades.
    """
    low, high = series.quantile(0.001), series.quantile(0.999)
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return ""
    floor = max(low, high * 1e-8)
    logarithmic = series.quantile(0.05) > 0 and high / max(floor, 1e-300) > 100
    edges = np.geomspace(floor, high, bins + 1) if logarithmic else np.linspace(low, high, bins + 1)
    counts = series.histogram(edges)
    top, room = max(1, int(counts.max())), HEIGHT - BOTTOM - TOP
    step = (WIDTH - LEFT - 8) / bins
    bars = "".join(
        f'<rect x="{LEFT + i * step:.1f}" y="{HEIGHT - BOTTOM - room * n / top:.1f}" '
        f'width="{max(step - 1, 0.5):.1f}" '
        f'height="{room * n / top:.1f}"><title>{_number(edges[i])} to {_number(edges[i + 1])}: '
        f"{n}</title></rect>"
        for i, n in enumerate(counts)
    )
    ticks = "".join(
        f'<text x="{LEFT + i * step:.1f}" y="{HEIGHT - 12}" text-anchor="middle">{_number(edges[i])}</text>'
        for i in range(0, bins + 1, bins // 4)
    )
    axis = f'<text x="{LEFT - 4}" y="{TOP + 8}" text-anchor="end">{top}</text>'
    return _frame(f'<g class="bars">{bars}</g>{ticks}{axis}{_baseline()}', f"Histogram of {label}")


def _baseline() -> str:
    y = HEIGHT - BOTTOM
    return f'<line x1="{LEFT}" x2="{WIDTH - 8}" y1="{y}" y2="{y}" class="axis"/>'


def line(x: Sequence[float], y: Sequence[float], label: str, over: str = "position") -> str:
    """A curve over position or training step."""
    points = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(b)]
    if len(points) < 2:
        return ""
    low, high = min(0.0, *(b for _, b in points)), max(0.0, *(b for _, b in points))
    high = high if high > low else low + 1
    last, room = max(a for a, _ in points) or 1, HEIGHT - BOTTOM - TOP

    def place(a: float, b: float) -> tuple[float, float]:
        return LEFT + (WIDTH - LEFT - 12) * a / last, TOP + room * (high - b) / (high - low)

    path = "M" + " L".join(f"{u:.1f},{v:.1f}" for u, v in (place(*p) for p in points))
    marks = "".join(
        f'<circle cx="{place(a, b)[0]:.1f}" cy="{place(a, b)[1]:.1f}" r="2.5"><title>{over} '
        f"{a:g}: {_number(b)}</title></circle>"
        for a, b in points
    )
    ticks = "".join(
        f'<text x="{place(last * f, low)[0]:.1f}" y="{HEIGHT - 12}" '
        f'text-anchor="middle">{last * f:.0f}</text>'
        for f in (0, 0.5, 1)
    )
    sides = "".join(
        f'<text x="{LEFT - 4}" y="{place(0, v)[1] + 4:.1f}" text-anchor="end">{_number(v)}</text>'
        for v in (low, high)
    )
    return _frame(
        f'<path d="{path}" class="curve"/><g class="bars">{marks}</g>{ticks}{sides}{_baseline()}',
        f"{label} by {over}",
    )


def heat(rows: Sequence[Sequence[float]], names: Sequence[str], label: str, width: int = 128) -> str:
    """Sequences (rows) by tokens (columns), darker where the value is larger, on a logarithmic scale."""
    values = [list(r)[:width] for r in rows]
    positive = sorted(v for r in values for v in r if v > 0 and math.isfinite(v))
    if not positive:
        return ""
    high = positive[-1]
    low = max(positive[len(positive) // 10], high * 1e-4)
    span = math.log(high / low) or 1.0
    size = (WIDTH - 12) / max(len(r) for r in values)
    cells = "".join(
        f'<rect x="{6 + j * size:.2f}" y="{6 + 9 * i}" width="{size:.2f}" height="8" '
        f'opacity="{shade(v, low, span):.2f}">'
        f"<title>{escape(names[i])}, token {j}: {_number(v)}</title></rect>"
        for i, row in enumerate(values)
        for j, v in enumerate(row)
        if shade(v, low, span) > 0.02
    )
    return _frame(f'<g class="heat">{cells}</g>', label, 12 + 9 * len(values))


def shade(value: float, low: float, span: float) -> float:
    """Opacity from 0 to 1, logarithmic."""
    if not value > low:
        return 0.0
    return min(1.0, 0.08 + 0.92 * math.log(value / low) / span) if math.isfinite(value) else 1.0
