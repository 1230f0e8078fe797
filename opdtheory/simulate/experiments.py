"""The simulations by name, for ``opdtheory run`` and for the figures."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from opdtheory.experiments import Run, experiment

STUDIES: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "sim-contraction": (
        "TOP-D towards its teacher, exactly: by tokens and by whole responses, over the horizon",
        "distillation:contraction",
        {"alpha": 0.1, "horizons": [1, 4, 8], "count": 60, "seed": 0},
    ),
    "sim-minorizer": (
        "maximising TOP-D's improvement bound: the frozen reward cycles, the corrected bound descends",
        "distillation:minorizer_cycle",
        {"count": 24, "teacher": 0.5, "start": 0.3},
    ),
    "sim-rare-tokens": (
        "gradient variance of OPD and TOP-D under rare teacher tokens, and runs over the learning rate",
        "distillation:variance_blow_up",
        {"alphas": [0.1, 0.5], "rare": 1e-12, "seeds": 256, "responses": 4, "count": 60, "seed": 0},
    ),
    "sim-end-points": (
        "where immediate and to-go rewards end when parameters are shared",
        "distillation:end_points",
        {"instances": 8, "features": 3, "horizon": 3, "count": 1500, "rate": 0.05, "seed": 0},
    ),
    "sim-tropd-direction": (
        "TrOPD's gate and mask against the reverse-KL direction, with and without forward KL",
        "distillation:tropd_direction",
        {"count": 400, "rate": 0.5, "seed": 0},
    ),
    "sim-long-tail": (
        "ratio and divergence masks on rare and common tokens of a long-tailed vocabulary",
        "masking:constraint_by_probability",
        {"vocab": 512, "exponent": 1.5, "bits": 8, "eps": 0.2, "delta": 0.15, "count": 60, "epochs": 64},
    ),
    "sim-masks-against-truth": (
        "what token masks take out of exact updates, where the policy really stands after, and the bounds",
        "masking:masks_against_truth",
        {"vocab": 4, "horizon": 4, "count": 12, "epochs": 8, "rate": 6.0, "seed": 0},
    ),
    "sim-rejected-lengths": (
        "trust region masking by length under expert flips: acceptance, and what training does to length",
        "masking:rejected_lengths",
        {
            "horizon": 9,
            "flip": 0.2,
            "delta_max": 0.02,
            "delta_avg": 0.02,
            "count": 60,
            "seeds": 16,
            "seed": 0,
        },
    ),
}
"""Name → (summary, module:function of this package, default settings); heavy modules load when run."""


CUSTOM: dict[str, Any] = {
    "algorithm": "topd",
    "exact": False,
    "epochs": None,
    "responses": None,
    "prompts": None,
    "optimiser": {"kind": "gradient", "settings": {}},
    "rollout": {},
    "world": {
        "vocab": 4,
        "horizon": 4,
        "eos": None,
        "prompts": 4,
        "teacher_concentration": 1.0,
        "student_concentration": 1.0,
        "reward_share": 0.3,
        "features": None,
        "seed": 0,
    },
    "steps": 100,
    "every": 5,
    "seeds": 16,
    "seed": 0,
    "delta": 0.15,
    "gradient_moments": False,
}
"""``world.features`` None is a tabular student, a number one with that many shared parameters; ``responses``,
``prompts`` and ``epochs`` None keep the preset's (8 responses if it has none); ``delta`` is the TV
threshold whose violations are counted.
"""


def _register(name: str) -> None:
    summary, place, defaults = STUDIES[name]

    def study(run: Run) -> dict[str, Any]:
        module, _, attribute = place.partition(":")
        function = getattr(importlib.import_module(f"opdtheory.simulate.{module}"), attribute)
        return run.part("study", lambda: function(**run.config))

    study.__qualname__ = f"study.{name}"
    experiment(name, summary=summary, defaults=defaults)(study)


for _name in STUDIES:
    _register(_name)


@experiment(
    "simulate",
    summary="any algorithm on a random exact world: every measurement along the run",
    defaults=CUSTOM,
)
def simulate(run: Run) -> dict[str, Any]:
    """One configured run."""
    from opdtheory.simulate import custom

    return run.part("run", lambda: custom.run(**run.config))


@experiment(
    "sim-collapse",
    summary="off-policy reward training under rollout mismatch: which masks prevent collapse, over rates",
    defaults={
        "methods": [
            "PG-IS",
            "CISPO",
            "GRPO clip-higher",
            "MiniRL",
            "DPPO binary TV",
            "DPPO binary KL",
            "DPPO binary KL, decoupled",
            "negative drop 0.5",
            "TRM, max KL 0.05",
        ],
        "mismatches": ["none", "flips", "stale"],
        "rates": [0.05, 0.2, 0.8],
        "epochs": 8,
        "seeds": 16,
        "steps": 80,
        "worlds": [0, 1, 2],
        "prompts": 8,
        "vocab": 4,
        "horizon": 3,
        "features": 24,
        "jobs": 1,
        "engine": "local",
    },
    folders=("sweep",),
)
def collapse(run: Run) -> dict[str, Any]:
    """Sweep methods, mismatches and learning rates; every cell is a batch of sampled runs."""
    from opdtheory.simulate.collapse import collapse_cell, collapse_report, pooled
    from opdtheory.simulate.sweep import grid, sweep

    c = run.config
    fixed = ("epochs", "seeds", "steps", "prompts", "vocab", "horizon", "features")
    cells = grid(
        mismatch=c["mismatches"],
        method=c["methods"],
        rate=c["rates"],
        seed=c["worlds"],
        **{name: [c[name]] for name in fixed},
    )
    rows = sweep(
        collapse_cell, cells, run.folder("sweep"), jobs=c["jobs"], engine=c["engine"], resume=run.resume
    )
    together = pooled(rows)
    return {"rows": together, **collapse_report(together)}
