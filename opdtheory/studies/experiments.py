"""The studies by name, for ``opdtheory run`` and for the figure data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from opdtheory.experiments import Run, experiment
from opdtheory.studies import horizon, proximal, sampling


def _error_scaling(levels: Mapping[str, Any], horizons: Any) -> dict[str, Any]:
    return {
        "studies": [horizon.error_scaling(d, level, horizons) for d, ls in levels.items() for level in ls]
    }


STUDIES: dict[str, tuple[str, Callable[..., dict[str, Any]], dict[str, Any]]] = {
    "error-scaling": (
        "surrogate error and every bound at T = 16 … 16384, fixed token TV or KL, fitted exponents",
        _error_scaling,
        {"levels": {k: list(v) for k, v in horizon.LEVELS.items()}, "horizons": list(horizon.HORIZONS)},
    ),
    "weight-variance": (
        "variance of the trajectory importance weight over the horizon against (1+χ²)^T − 1",
        horizon.weight_variance,
        {"levels": [1e-3, 1e-4, 1e-5, 1e-6], "horizons": list(horizon.HORIZONS)},
    ),
    "bounds-over-divergence": (
        "every error bound over the token KL at one horizon, and where each stops being vacuous",
        horizon.bounds_over_divergence,
        {"horizon": 4096, "levels": None},
    ),
    "thresholds-over-horizon": (
        "the token divergence each error bound tolerates before it is vacuous, over the horizon",
        horizon.thresholds_over_horizon,
        {"horizons": list(horizon.HORIZONS)},
    ),
    "topd-variance": (
        "variance of the proximal estimator over α for vocabularies from 2 to 151936, against both bounds",
        proximal.variance_over_alpha,
        {"alphas": list(proximal.ALPHAS), "vocabularies": list(proximal.VOCABULARIES), "seeds": 3},
    ),
    "contraction": (
        "distance to the teacher over the steps: whole responses, tokens, states, and their laws",
        proximal.contraction_curves,
        {"alphas": [0.1, 0.3, 0.5], "steps": 30, "vocab": 2, "horizon": 6, "seed": 0},
    ),
    "error-forgetting": (
        "contraction with injected errors: an early burst is forgotten, a constant error leaves a gap",
        proximal.error_forgetting,
        {"alphas": [0.05, 0.2, 0.5], "steps": 60, "horizon": 4, "seed": 1},
    ),
    "certificate-coverage": (
        "coverage and gap of the finite-sample certificates: sides, methods, at any time, grouped samples",
        sampling.certificate_coverage,
        {
            "distances": [0.05, 0.3],
            "samples": [30, 100, 300, 1000],
            "repetitions": 2000,
            "group": 4,
            "seed": 0,
        },
    ),
    "certificate-width": (
        "width of each confidence method over the number of samples",
        sampling.width_over_samples,
        {"distance": 0.1, "samples": [10, 30, 100, 300, 1000, 3000], "repetitions": 200},
    ),
}
"""Name → (summary, function, default settings)."""


def _register(name: str) -> None:
    summary, function, defaults = STUDIES[name]

    def study(run: Run) -> dict[str, Any]:
        return run.part("study", lambda: function(**run.config))

    study.__qualname__ = f"study.{name}"
    experiment(name, summary=summary, defaults=defaults)(study)


for _name in STUDIES:
    _register(_name)
