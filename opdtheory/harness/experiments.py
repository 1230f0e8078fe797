"""The real-model experiments of ``opdtheory run``; torch is imported only when one runs."""

from __future__ import annotations

from typing import Any

from ..experiments import Run, experiment
from . import settings

NEEDS = ("torch", "transformers")


@experiment(
    "mismatch",
    summary="rollout engine against training forward: divergences, estimators, masks, bounds, certificates",
    needs=NEEDS,
    defaults=settings.MISMATCH,
)
def mismatch(run: Run) -> dict[str, Any]:
    """See :mod:`opdtheory.harness.mismatch`."""
    from .mismatch import mismatch

    return mismatch(run)


@experiment(
    "distill",
    summary="on-policy distillation of a real student: advantage forms, TOP-D, TrOPD, full divergences",
    needs=NEEDS,
    defaults=settings.DISTILL,
)
def distill(run: Run) -> dict[str, Any]:
    """See :mod:`opdtheory.harness.distill`."""
    from .distill import distill

    return distill(run)


@experiment(
    "gradients",
    summary="bias, variance, cosine, MSE of distillation gradients on a real student; TOP-D and its bounds",
    needs=NEEDS,
    defaults=settings.GRADIENTS,
)
def gradients(run: Run) -> dict[str, Any]:
    """See :mod:`opdtheory.harness.gradients`."""
    from .gradients import gradients

    return gradients(run)


@experiment(
    "improve",
    summary="one trust-region step from a mismatched engine: every bound and certificate, and the outcome",
    needs=NEEDS,
    defaults=settings.IMPROVE,
)
def improve(run: Run) -> dict[str, Any]:
    """See :mod:`opdtheory.harness.improve`."""
    from .improve import improve

    return improve(run)
