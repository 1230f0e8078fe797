"""What each bound is: where it comes from, what it needs, when it says nothing, and where it starts to say
something.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize

TARGETS = {
    "surrogate_error": "|J(π) − J(μ) − L|",
    "improvement": "|J(π) − J(μ)|",
    "surrogate": "L",
    "improvement_lower": "a lower bound on J(π) − J(μ)",
    "improvement_upper": "an upper bound on J(π) − J(μ)",
    "sequence_tv": "TV between the two laws of whole responses",
    "step": "a per-step quantity used inside other bounds",
    "variance": "variance or second moment of an estimator",
    "distance": "expected L1 distance between student and teacher",
}
"""What a bound can bound."""
SHARPNESS = ("identity", "tight", "asymptotic", "loose", "unknown")


@dataclass(frozen=True)
class Bound:
    """One bound as a function together with what a reader must know to use it.

    ``needs`` are the quantities the function takes; ``optional`` those with a default other than ``span``;
    ``claim`` is the catalogue entry it states (``id`` is unique even where one entry has two forms).
    """

    id: str
    claim: str
    name: str
    function: Callable[..., Any]
    target: str
    source: str
    scaling: str
    sharpness: str
    assumptions: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    scales_with_span: bool = False

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self.function(*args, **named)

    def evaluate(self, quantities: dict[str, Any], span: Any = 1) -> Any:
        """The bound's value, taking what it needs from a dictionary by name."""
        missing = [n for n in self.needs if n not in quantities]
        if missing:
            raise ValueError(
                f"{self.id}: missing {', '.join(missing)}; got {', '.join(quantities) or 'nothing'}"
            )
        chosen = {n: quantities[n] for n in (*self.needs, *self.optional) if n in quantities}
        return self.function(**chosen, **({"span": span} if self.scales_with_span else {}))

    def trivial(self, span: float = 1.0, initial: float = 2.0) -> float:
        """The value at and beyond which the bound says nothing that is not known without it (inf: no such
        value).

        An error or improvement is compared with the reward span: J(π) − J(μ) never leaves [−span, span], so
        a
        penalty of a whole span cannot be told from ignorance.
        """
        return {"surrogate_error": span, "improvement": span, "sequence_tv": 1.0, "distance": initial}.get(
            self.target, math.inf
        )

    def is_vacuous(self, value: Any, span: float = 1.0, initial: float = 2.0) -> Any:
        """Whether ``value`` is at or beyond the trivial bound (elementwise; boolean)."""
        return np.asarray(value, dtype=float) >= self.trivial(span, initial)

    def threshold(
        self, argument: str, quantities: dict[str, Any], span: float = 1.0, level: float | None = None
    ) -> float:
        """The largest value of one divergence for which this bound stays below ``level`` (default: the
        trivial bound).

        The other arguments are taken from ``quantities``.  Returns 0 if no value will do, inf if every
        value does.
        Found by root finding in log scale: every bound here is non-decreasing in each of its divergences.
        """
        if argument not in self.needs:
            raise ValueError(f"{self.id} does not depend on {argument!r}; it needs {', '.join(self.needs)}")
        limit = self.trivial(span) if level is None else float(level)
        rest = {k: v for k, v in quantities.items() if k != argument}

        def excess(log_x: float) -> float:
            with np.errstate(over="ignore"):
                value = float(self.evaluate({**rest, argument: math.exp(log_x)}, span))
            return (math.log(value) if value > 0 else -math.inf) - math.log(limit)

        if limit <= 0 or math.isinf(limit):
            return 0.0 if limit <= 0 else math.inf
        high = 0.0 if argument in UNIT_INTERVAL else math.log(1e12)
        low = math.log(1e-250)
        if excess(high) < 0:
            return math.inf
        if excess(low) >= 0:
            return 0.0
        # an -inf at the lower end is as good as any negative number
        return math.exp(
            optimize.brentq(lambda s: max(excess(s), -1e3), low, high, xtol=1e-13, rtol=8.9e-16, maxiter=400)
        )


UNIT_INTERVAL = frozenset({"tv_max", "tv_seq", "hellinger2_max", "alpha"})
"""Arguments that cannot exceed one."""

REGISTRY: dict[str, Bound] = {}
"""Bounds by id, in the order of definition."""


def bound(
    id: str,
    *,
    name: str,
    target: str,
    source: str,
    scaling: str,
    sharpness: str,
    assumptions: tuple[str, ...] = (),
    claim: str | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as a bound; the function itself is returned unchanged but for a ``bound``
    attribute.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        if target not in TARGETS or sharpness not in SHARPNESS:
            raise ValueError(f"{id}: target {target!r} or sharpness {sharpness!r} is not a known value")
        if id in REGISTRY:
            raise ValueError(f"bound id {id!r} is used twice")
        parameters = inspect.signature(function).parameters
        needs = tuple(n for n, p in parameters.items() if p.default is p.empty)
        optional = tuple(n for n, p in parameters.items() if p.default is not p.empty and n != "span")
        entry = Bound(
            id,
            claim or id,
            name,
            function,
            target,
            source,
            scaling,
            sharpness,
            assumptions,
            needs,
            optional,
            "span" in parameters,
        )
        REGISTRY[id] = entry
        function.bound = entry  # type: ignore[attr-defined]
        return function

    return register


def scaled(value: Any, span: Any) -> Any:
    """``value`` for rewards of the given span; leaves the unit case without a spurious factor in recorded
    formulas.
    """
    return value if isinstance(span, int) and span == 1 else value * span


TRM = "Trust Region Masking for Long-Horizon LLM Reinforcement Learning"
DPPO = "Rethinking the Trust Region in LLM Reinforcement Learning"
TOPD = "Trust Region Policy Distillation"
OURS = "this package"
__all__ = ["DPPO", "OURS", "REGISTRY", "SHARPNESS", "TARGETS", "TOPD", "TRM", "Bound", "bound", "scaled"]
