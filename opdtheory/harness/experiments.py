"""The real-model experiments of ``opdtheory run``; torch is imported only when one runs."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from ..experiments import Run, experiment
from . import settings

NEEDS = ("torch", "transformers")
EXPERIMENTS: dict[str, tuple[str, Mapping[str, Any], tuple[str, ...]]] = {
    "mismatch": (
        "rollout engine against training forward: divergences, estimators, masks, bounds, certificates",
        settings.MISMATCH,
        ("rollouts",),
    ),
    "gradients": (
        "bias, variance, cosine, MSE of distillation gradients on a real student; TOP-D and its bounds",
        settings.GRADIENTS,
        ("blocks",),
    ),
    "distill": (
        "on-policy distillation of a real student: advantage forms, TOP-D, TrOPD, full divergences",
        settings.DISTILL,
        ("checkpoints",),
    ),
    "improve": (
        "one trust-region step from a mismatched engine: every bound and certificate, and the outcome",
        settings.IMPROVE,
        (),
    ),
}
"""Name, which is also the module and its function → (summary, default settings, folders)."""


def _register(name: str) -> None:
    summary, defaults, folders = EXPERIMENTS[name]

    def start(run: Run) -> dict[str, Any]:
        module = importlib.import_module(f"{__package__}.{name}")
        return dict(getattr(module, name)(run))

    def check(config: Mapping[str, Any]) -> None:
        importlib.import_module(f"{__package__}.checks").check(name, config)

    start.__qualname__ = f"harness.{name}"
    experiment(name, summary=summary, needs=NEEDS, defaults=defaults, folders=folders, check=check)(start)


for _name in EXPERIMENTS:
    _register(_name)
