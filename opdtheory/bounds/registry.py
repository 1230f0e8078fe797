"""What each bound is: its source, what it needs, when it says nothing, and where that ends."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy import optimize

from opdtheory.elementary import is_exact, where

TRM = "Trust Region Masking for Long-Horizon LLM Reinforcement Learning"
DPPO = "Rethinking the Trust Region in LLM Reinforcement Learning"
TOPD = "Trust Region Policy Distillation"
OURS = "this package"

TARGETS = {
    "surrogate_error": "|J(π) − J(μ) − L|",
    "improvement": "|J(π) − J(μ)|",
    "surrogate": "L, from above",
    "improvement_lower": "J(π) − J(μ), from below",
    "improvement_upper": "J(π) − J(μ), from above",
    "sequence_tv": "TV between the two laws of whole responses",
    "token_reward_error": "|η(π̃) − ζ(π̃)| for token rewards",
    "discounted_error": "|η(π) − η(μ) − L| in a discounted MDP",
    "variance": "variance, second moment or norm of an estimator",
    "distance": "expected L1 distance between student and teacher",
    "distance_lower": "expected L1 distance between student and teacher, from below",
    "step": "a quantity used inside other bounds",
}
"""What a bound can bound."""
LOWER = frozenset({"improvement_lower", "distance_lower"})
"""Targets bounded from below: the larger the value, the better."""
SHARPNESS = ("identity", "tight", "asymptotic", "loose", "unknown")
UNIT_INTERVAL = frozenset({"tv_max", "tv_seq", "hellinger2_max", "hellinger2_seq", "alpha"})
"""Arguments that cannot exceed one."""


@dataclass(frozen=True)
class Bound:
    """One bound as a function together with what a reader must know to use it.

    ``needs`` are the quantities the function takes; ``optional`` those with a default other than ``span``;
    ``claim`` is the catalogue entry it states (``id`` is unique even where one entry has two forms);
    ``limit`` overrides the trivial value of the target; the bound is false where a quantity in ``without``
    is not zero.
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
    limit: Callable[[Mapping[str, Any]], Any] | None = None
    without: tuple[str, ...] = ()

    def summary(self) -> str:
        """Source, scaling, sharpness and assumptions in words.

        >>> print(REGISTRY["trm.2.2.2-bound"].summary())
        Bounds: variance, second moment or norm of an estimator.  Source: this package.  Scaling: (1+x)^T − 1.
        Sharpness: tight.  Assumes: supp π ⊆ supp μ at every context.
        """
        assumed = "; ".join(self.assumptions) if self.assumptions else "nothing further"
        return (
            f"Bounds: {TARGETS[self.target]}.  Source: {self.source}.  Scaling: {self.scaling}.\n"
            f"Sharpness: {self.sharpness}.  Assumes: {assumed}."
        )

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self.function(*args, **named)

    def evaluate(self, quantities: Mapping[str, Any], span: Any = 1) -> Any:
        """The bound's value, taking what it needs by name; ValueError if something is missing."""
        missing = [n for n in self.needs if n not in quantities]
        if missing:
            given = ", ".join(quantities) or "nothing"
            raise ValueError(f"{self.id}: {', '.join(missing)} missing; got {given}, expected {self.needs}")
        chosen = {n: quantities[n] for n in (*self.needs, *self.optional) if n in quantities}
        return self.function(**chosen, **({"span": span} if self.scales_with_span else {}))

    def trivial(self, quantities: Mapping[str, Any] | None = None, span: Any = 1.0) -> Any:
        """The value from which on the bound says nothing that is not known without it (inf: no such value).

        An error or improvement is compared with the reward span: J(π) − J(μ) never leaves [−span, span], so
        a penalty of a whole span cannot be told from ignorance.
        """
        given = quantities or {}
        if self.limit is not None:
            return self.limit(given)
        return {
            "surrogate_error": span,
            "improvement": span,
            "improvement_lower": -span,
            "improvement_upper": span,
            "distance_lower": 0.0,
            "sequence_tv": 1.0,
            "distance": given.get("initial", 2.0),
        }.get(self.target, math.inf)

    def is_vacuous(self, value: Any, quantities: Mapping[str, Any] | None = None, span: Any = 1.0) -> Any:
        """Whether ``value`` is at or beyond the trivial bound (elementwise; boolean)."""
        value, limit = np.asarray(value, dtype=float), self.trivial(quantities, span)
        return value <= limit if self.target in LOWER else value >= limit

    def threshold(
        self, argument: str, quantities: Mapping[str, Any], span: float = 1.0, level: float | None = None
    ) -> float:
        """The largest value of one divergence for which this bound stays below ``level``.

        Without ``level``: below the trivial bound, so that the result is where the bound stops being vacuous.
        The other arguments come from ``quantities``.  0 if no value will do, inf if every value does.

        >>> round(REGISTRY["trm.2.5.4"].threshold("kl_max", {"horizon": 4096}) * 1e6, 3)
        2.861
        """
        if argument not in self.needs:
            raise ValueError(f"{self.id}: got {argument!r}, expected one of {', '.join(self.needs)}")

        def value(x: float) -> tuple[float, float]:
            given = {**quantities, argument: x}
            limit = self.trivial(given, span) if level is None else level
            return float(self.evaluate(given, span)), float(limit)

        return largest_below(value, 1.0 if argument in UNIT_INTERVAL else 1e12)


def largest_below(
    value: Callable[[float], tuple[float, float]], high: float, low: float = 1e-200, scan: bool = False
) -> float:
    """The largest x with f < limit on all of (0, x), ``value(x)`` giving f(x) and limit(x).

    Root finding in log scale between ``low`` and ``high``; 0 if f(low) ≥ limit already, inf if f stays below.
    f/limit is taken to be non-decreasing; with ``scan`` it need not be, and the first crossing is sought on a
    grid of half decades.
    """

    def excess(log_x: float) -> float:
        with np.errstate(over="ignore"):
            f, limit = value(math.exp(log_x))
        if f <= 0 or math.isinf(limit):
            return -1e3
        if math.isnan(f):
            return 1e3
        # far from the root only the sign matters, and f may be infinite there
        return min(max(math.log(f) - math.log(limit), -1e3), 1e3) if limit > 0 else 1e3

    a, b = math.log(low), math.log(high)
    if excess(a) >= 0:
        return 0.0
    if scan:
        for x in np.arange(math.log(1e-25), b, math.log(10) / 2):
            if excess(x) >= 0:
                b = x
                break
            a = x
    top = excess(b)
    if top <= 0:
        # equality at the top is a bound that only saturates there, or that rounds to its limit
        return math.inf if top < 0 or high > 1 else high
    return math.exp(optimize.brentq(excess, a, b, xtol=1e-13, rtol=8.9e-16, maxiter=500))


REGISTRY: dict[str, Bound] = {}
"""Bounds by id, in the order of definition."""


def bound(
    id: str,
    name: str,
    scaling: str,
    *,
    target: str,
    source: str = OURS,
    sharpness: str = "loose",
    claim: str | None = None,
    assumptions: tuple[str, ...] = (),
    limit: Callable[[Mapping[str, Any]], Any] | None = None,
    without: tuple[str, ...] = (),
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as a bound.

    The function comes back with a ``bound`` attribute and with source, scaling, sharpness and assumptions at the
    end of its docstring.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        if target not in TARGETS or sharpness not in SHARPNESS:
            raise ValueError(f"{id}: target {target!r} or sharpness {sharpness!r} is not a known value")
        if id in REGISTRY:
            raise ValueError(f"bound id {id!r} is used twice")
        parameters = inspect.signature(function).parameters
        entry = Bound(
            id=id,
            claim=claim or id,
            name=name,
            function=function,
            target=target,
            source=source,
            scaling=scaling,
            sharpness=sharpness,
            assumptions=assumptions,
            needs=tuple(n for n, p in parameters.items() if p.default is p.empty),
            optional=tuple(n for n, p in parameters.items() if p.default is not p.empty and n != "span"),
            scales_with_span="span" in parameters,
            limit=limit,
            without=without,
        )
        REGISTRY[id] = entry
        function.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\n{entry.summary()}\n"
        function.bound = entry  # type: ignore[attr-defined]
        return function

    return register


error_bound = partial(bound, target="surrogate_error")
"""``bound`` for the many bounds on |J(π) − J(μ) − L|."""


def scaled(value: Any, span: Any) -> Any:
    """``value`` for rewards of the given span, without a spurious factor 1 in recorded formulas."""
    return value if isinstance(span, int) and span == 1 else product(value, span)


def product(a: Any, b: Any) -> Any:
    """a·b with 0·∞ = 0: what is not there costs nothing, however far apart the policies are elsewhere."""
    if any(is_exact(x) or hasattr(x, "__elementary__") for x in (a, b)):
        return a * b
    if all(isinstance(x, (int, float)) for x in (a, b)):
        return 0.0 if a == 0 or b == 0 else a * b
    with np.errstate(invalid="ignore"):
        nothing = (a == 0) | (b == 0)
        return where(nothing, 0.0, a * b)


__all__ = [
    "DPPO",
    "LOWER",
    "OURS",
    "REGISTRY",
    "SHARPNESS",
    "TARGETS",
    "TOPD",
    "TRM",
    "UNIT_INTERVAL",
    "Bound",
    "bound",
    "error_bound",
    "largest_below",
    "product",
    "scaled",
]
