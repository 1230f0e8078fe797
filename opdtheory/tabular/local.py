"""Divergences between the action distributions of two policies, at every context.

Arguments ``p``, ``q`` have shape ``(actions, contexts[, batch])``; sums run over the first axis.  ``diff`` is
q - p where the caller has it.
Floating-point code forms KL from the non-negative terms p·k3(q/p) with log(q/p) taken from the difference q -
p, so that the KL of nearly equal distributions keeps its relative accuracy.  Support rules: 0·log 0 = 0, and
a divergence is inf where the first argument's mass is not covered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import flint
import numpy as np

from opdtheory.elementary import absolute, asum, exact, is_exact, log, rel_entr, sqrt, to_ball

__all__ = [
    "CHUNK",
    "at_most",
    "chi2",
    "chi2_terms",
    "hellinger2",
    "hellinger2_terms",
    "in_chunks",
    "kl_family",
    "log_ratio",
    "ratio",
    "tv",
    "weigh",
]

CHUNK = 1 << 15  # numbers a temporary array should hold: a few of them stay in the second-level cache


def in_chunks(fn: Callable[..., Any], outputs: int, *tables: np.ndarray) -> tuple[np.ndarray, ...]:
    """Apply ``fn`` to slices of contexts; collect its ``outputs`` results ``(contexts[, batch])``."""
    first = tables[0]
    contexts = first.shape[1]
    per_context = max(1, first.size // max(1, contexts))
    size = max(1, CHUNK // per_context)
    if contexts <= size or first.dtype == object:
        result = fn(*tables)
        return result if outputs > 1 else (result,)
    out = tuple(np.empty(first.shape[1:]) for _ in range(outputs))
    for start in range(0, contexts, size):
        part = fn(*(x[:, start : start + size] for x in tables))
        for whole, piece in zip(out, part if outputs > 1 else (part,), strict=True):
            whole[start : start + size] = piece
    return out


def spans(contexts: slice, table: np.ndarray) -> Iterator[slice]:
    """Cut a range of contexts so that a part of ``table`` over each stays in cache."""
    size = max(1, CHUNK // max(1, table.size // max(1, table.shape[1])))
    for start in range(contexts.start, contexts.stop, size):
        yield slice(start, min(start + size, contexts.stop))


def ratio(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """q/p with 0/0 = 0 and inf where p = 0 < q."""
    if p.dtype == object:
        return np.frompyfunc(_ratio_exact, 2, 1)(p, q)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where((p == 0) & (q == 0), 0.0, q / p)


def _ratio_exact(p: Any, q: Any) -> Any:
    if p == 0:
        return exact(0) if q == 0 else flint.arb("inf")
    return q / p


def log_ratio(p: np.ndarray, q: np.ndarray, diff: np.ndarray | None = None) -> np.ndarray:
    """log(q/p) where p > 0 (-inf where q = 0), 0 where p = 0; ``diff`` is q - p if known more accurately."""
    if p.dtype == object:
        return np.frompyfunc(lambda a, b: exact(0) if a == 0 else log(b / a), 2, 1)(p, q)
    step = q - p
    if diff is not None:
        # far from p the given difference may have lost its digits, and the plain one is accurate
        step = np.where(np.abs(step) < 0.5 * p, diff, step)
    out = np.minimum(p, q)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # ±log(larger/smaller), through their difference: accurate for every ratio
        np.divide(np.abs(step), out, out=out)
        np.log1p(out, out=out)
    np.copysign(out, step, out=out)
    if _touches_zero(p):
        out[p == 0] = 0.0
    return out


def _touches_zero(x: np.ndarray) -> bool:
    return bool(x.size) and not x.min() > 0


def tv(p: np.ndarray, q: np.ndarray, diff: np.ndarray | None = None) -> np.ndarray:
    """Total variation ½ Σ|p - q|."""
    return asum(absolute(q - p if diff is None else diff), 0) / 2


def chi2(p: np.ndarray, q: np.ndarray, diff: np.ndarray | None = None) -> np.ndarray:
    """χ²(q‖p) = Σ (q - p)²/p."""
    return chi2_terms(p, q, q - p if diff is None else diff).sum(axis=0)


def chi2_terms(p: np.ndarray, q: np.ndarray, diff: np.ndarray) -> np.ndarray:
    """(q - p)²/p elementwise, given ``diff`` = q - p: 0 where both are 0, inf where p = 0 < q."""
    if p.dtype == object:
        return np.frompyfunc(_ratio_exact, 2, 1)(p, diff * diff)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = diff / p
        terms *= diff
    if _touches_zero(p):
        terms = np.where(p > 0, terms, np.where(q > 0, np.inf, 0.0))
    return terms


def hellinger2(p: np.ndarray, q: np.ndarray, diff: np.ndarray | None = None) -> np.ndarray:
    """Squared Hellinger distance ½ Σ(√p - √q)² = 1 - Σ√(pq)."""
    return hellinger2_terms(p, q, q - p if diff is None else diff).sum(axis=0) / 2


def hellinger2_terms(p: np.ndarray, q: np.ndarray, diff: np.ndarray) -> np.ndarray:
    """(√p - √q)² elementwise, given ``diff`` = q - p; accurate where p ≈ q."""
    if p.dtype == object:
        return p + q - 2 * sqrt(p * q)
    # (√p - √q)² = (q - p)²/(√p + √q)², the square written out: one root instead of two
    total = p * q
    np.sqrt(total, out=total)
    total += total
    total += p
    total += q
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = diff / total
        terms *= diff
    if _touches_zero(total):
        terms[total == 0] = 0.0
    return terms


def kl_family(
    p: np.ndarray, q: np.ndarray, diff: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(KL(p‖q), KL(q‖p), E_p k3(q/p)); the last, over supp p, is the first unless q has mass outside."""
    if p.dtype == object:
        k3 = np.frompyfunc(lambda a, b: exact(0) if a == 0 else b - a + rel_entr(a, b), 2, 1)(p, q)
        return asum(rel_entr(p, q), 0), asum(rel_entr(q, p), 0), asum(k3, 0)
    # the terms p·k3(q/p) = |q - p| ∓ p log(q/p) and their mirror image are non-negative; with the absolute
    # logarithm, from the difference, nothing is lost where p ≈ q
    gap, smaller = np.abs(q - p if diff is None else diff), np.minimum(p, q)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        logs = gap / smaller
        np.log1p(logs, out=logs)
        forward = p * logs
        np.subtract(gap, forward, out=forward)
        np.abs(forward, out=forward)
        reverse = np.multiply(q, logs, out=logs)
        reverse -= gap
        np.abs(reverse, out=reverse)
    outside: Any = 0.0
    if _touches_zero(smaller):
        p_zero, q_zero = p == 0, q == 0
        np.copyto(forward, 0.0, where=p_zero)
        np.copyto(reverse, p, where=q_zero)
        np.copyto(reverse, np.inf, where=p_zero & ~q_zero)
        outside = np.where(p_zero, q, 0.0).sum(axis=0)
    k3 = forward.sum(axis=0)
    return k3 + outside, reverse.sum(axis=0), k3


def weigh(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """weights · values with 0·inf = 0."""
    if is_exact(values) or is_exact(weights):
        return np.frompyfunc(lambda w, x: exact(0) if w == 0 else w * x, 2, 1)(weights, values)
    with np.errstate(invalid="ignore"):
        out = weights * values
    bad = np.isnan(out)
    if bad.any():
        out[bad & (weights == 0)] = 0.0
    return out


def at_most(value: Any, bound: Any) -> Any:
    """1 if value ≤ bound for certain, 0 if value > bound for certain, else a ball around both."""
    a, b = to_ball(value), to_ball(bound)
    if a <= b:
        return exact(1)
    return exact(0) if a > b else flint.arb(0.5, 0.5)
