"""Metrics as certain trainers compute them, where name or documentation and formula disagree.

Each stands as ``compat/<trainer>/<name>`` and has a note saying what the number really is and which metric
is the right one.  Nothing here feeds a conclusion.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from opdtheory.audit.sampled import Drawn
from opdtheory.audit.settings import Settings

if TYPE_CHECKING:
    from opdtheory.audit.metrics import Metric
    from opdtheory.audit.state import State

K3_CLAMP = 10.0
_SERIES = {
    "nemo-rl": (
        "gen_kl_error",
        "policy_kl_error",
        "js_divergence_error",
        "token_mult_prob_error",
        "sampling_importance_ratio",
    ),
    "slime": ("low_var_kl",),
    "verl": ("low_var_kl",),
}
NOTES = {
    "nemo-rl": "policy_kl_error is documented as KL(train‖generation) but averages over generated "
    "tokens and equals χ²(rollout‖train) − KL(rollout‖train) in expectation; "
    "js_divergence_error is not the Jensen–Shannon divergence; see kl_train_rollout and jsd",
    "slime": "low_var_kl clamps k3 at 10, which hides the tail and biases the mean downwards; see k3/mean",
    "verl": "low_var_kl clamps k3 at 10; *_k1 rejection bounds act on 1/ρ, because k1 = −log ρ is "
    "compared with log bounds; chi2_seq is the product form",
    "verl-sequence-is": "rollout_is_* use one weight per sequence, so their token means are weighted "
    "by length",
    "ms-swift": "chi2_seq uses the geometric mean of the ratios of a sequence, so it is no χ² "
    "divergence of sequence laws; rollout_corr/chi2_seq is the product form",
}


def token_series(drawn: Drawn, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The per-token values of the requested trainers' metrics, over usable finite tokens."""
    ok = drawn.usable & np.isfinite(drawn.ell)
    ell, mu, pi = drawn.ell[ok], drawn.behaviour[ok], drawn.policy[ok]
    out: dict[str, np.ndarray] = {}
    with np.errstate(over="ignore"):
        if "nemo-rl" in names:
            mix = np.logaddexp(mu, pi) - math.log(2)
            out |= {
                "rc/nemo-rl/gen_kl_error": np.expm1(ell) - ell,
                "rc/nemo-rl/policy_kl_error": np.expm1(-ell) + ell,
                "rc/nemo-rl/js_divergence_error": (
                    np.expm1(pi - mix) - (pi - mix) + np.expm1(mu - mix) - (mu - mix)
                )
                / 2,
                "rc/nemo-rl/token_mult_prob_error": np.exp(np.abs(ell)),
                "rc/nemo-rl/sampling_importance_ratio": np.exp(ell),
            }
        clamped = np.clip(np.expm1(np.clip(ell, -20, 20)) - np.clip(ell, -20, 20), -K3_CLAMP, K3_CLAMP)
        out |= {f"rc/{name}/low_var_kl": clamped for name in ("slime", "verl") if name in names}
    return out


def metrics(state: State, settings: Settings, known: dict[str, Metric]) -> dict[str, Metric]:
    """The requested trainers' metrics under ``compat/``."""
    from opdtheory.audit.metrics import SAMPLED, SEQUENCES, Metric

    out = {}
    for trainer in settings.compat:
        for name in _SERIES.get(trainer, ()):
            series = state.tokens.get(f"rc/{trainer}/{name}")
            if series is not None and series.count:
                out[f"compat/{trainer}/{name}"] = Metric(series.mean, "estimate", SAMPLED)
    if "ms-swift" in settings.compat and "seq_geometric_ratio" in state.sequences:
        series = state.sequences["seq_geometric_ratio"]
        if series.count:
            out["compat/ms-swift/chi2_seq"] = Metric(
                series.squares.value / series.count - 1, "estimate", SEQUENCES
            )
    return out


def notes(state: State, settings: Settings) -> list[dict[str, Any]]:
    """One remark per requested trainer."""
    return [
        {"code": "compat", "message": f"{name}: {NOTES[name]}", "where": []}
        for name in settings.compat
        if name in NOTES
    ]
