"""The published algorithms by name, with the thresholds of their sources, as ready compositions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from opdtheory import masks
from opdtheory.gradients import ESTIMATORS, Estimator
from opdtheory.simulate.optimisers import Adam, Gradient, Natural, Optimiser
from opdtheory.simulate.rollouts import Rollout
from opdtheory.simulate.signals import Distill, Terminal, TrOPD
from opdtheory.simulate.train import Algorithm
from opdtheory.simulate.weights import MaskedSequences, Unified

__all__ = ["ALGORITHMS", "exact", "optimiser", "preset", "rollout_law"]

_CLIP = Unified(masks.Method("topd", "ppo", parameters={"eps_low": 0.2, "eps_high": 0.2}))

ALGORITHMS: Mapping[str, Algorithm] = {
    "opd-immediate": Algorithm(Distill(ESTIMATORS["immediate"])),
    "opd-to-go": Algorithm(Distill(ESTIMATORS["ii"])),
    "opd-iv": Algorithm(Distill(ESTIMATORS["iv"])),
    "opd-lambda": Algorithm(Distill(Estimator(lam=0.9))),
    "topd-immediate": Algorithm(Distill(Estimator(lam=0, alpha=0.1))),
    "topd": Algorithm(
        Distill(Estimator("topd_return", alpha=0.1), normalise=True),
        _CLIP,
        responses=8,
        prompts=16,
        minibatches=16,
        per_token=True,
    ),
    "tropd": Algorithm(TrOPD(guidance=0.001)),
    "trm": Algorithm(Terminal(), MaskedSequences(delta_max=0.05)),
    **{name: Algorithm(Terminal(normalise=True), Unified(name)) for name in masks.METHODS},
}
"""OPD by each reward; TOP-D by its immediate reward alone and as its Algorithm 1 (α = 0.1, clip 0.2, 8
responses, 16 minibatches a step: *Trust Region Policy Distillation*, Table 5); TrOPD with k = 64; trust
region masking with a KL threshold of 0.05, which is ours; every method of ``masks.METHODS`` on a
group-normalised terminal reward.
"""


def preset(name: str, **changes: Any) -> Algorithm:
    """An algorithm by name, with fields of ``Algorithm`` replaced.

    Raises ValueError for an unknown name or field.

    >>> preset("topd", optimiser=Gradient(0.5)).minibatches
    16
    """
    if name not in ALGORITHMS:
        raise ValueError(f"algorithm: got {name!r}, expected one of {', '.join(ALGORITHMS)}")
    unknown = set(changes) - {f.name for f in fields(Algorithm)}
    if unknown:
        raise ValueError(f"algorithm field {sorted(unknown)}: expected a field of Algorithm")
    return replace(ALGORITHMS[name], **changes)


def exact(algorithm: Algorithm) -> Algorithm:
    """The same algorithm with exact expected updates; its minibatches become passes over all responses."""
    updates = algorithm.epochs * algorithm.minibatches
    return replace(algorithm, responses=None, prompts=1, minibatches=1, epochs=updates)


_OPTIMISERS = {"gradient": Gradient, "natural": Natural, "adam": Adam}


def optimiser(kind: str, **settings: Any) -> Optimiser:
    """``gradient``, ``natural`` or ``adam`` with its settings; ValueError for others."""
    if kind not in _OPTIMISERS:
        raise ValueError(f"optimiser: got {kind!r}, expected one of {', '.join(_OPTIMISERS)}")
    return _made(_OPTIMISERS[kind], "optimiser", settings)


def rollout_law(**settings: Any) -> Rollout:
    """A ``Rollout`` of the given settings; ValueError for an unknown one."""
    return _made(Rollout, "rollout", settings)


def _made(kind: Any, what: str, settings: Mapping[str, Any]) -> Any:
    known = [f.name for f in fields(kind)]
    for name in settings:
        if name not in known:
            raise ValueError(f"{what}.{name}: unknown setting; expected one of {', '.join(known)}")
        value = settings[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{what}.{name}: got {value!r}, expected a number")
    return kind(**settings)
