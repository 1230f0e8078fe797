"""The same numbers on small tabular models, where they are exact: each real-model section gets one of these
beside it.

The tabular policies are random, with the per-token KL that was measured on the real models, so that only size
and horizon differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import calculator
from ..gradients import tabular_moments
from ..gradients.estimators import Estimator
from ..gradients.frontier import teacher_at_distance
from ..quantities import QUANTITIES
from ..tabular import Policy, PolicyPair, TeacherStudent, TokenTree, terminal_reward
from .evidence import MAXIMA

VOCAB, HORIZON, CONCENTRATION = 4, 6, 0.5


def policies(kl_per_token: float, seed: int = 0) -> tuple[TokenTree, Policy, Policy]:
    """A tree and two policies with KL(first‖second) of sequences = ``kl_per_token`` · horizon."""
    tree = TokenTree(vocab=VOCAB, horizon=HORIZON)
    first = Policy.random(tree, seed=seed, concentration=CONCENTRATION)
    return tree, first, teacher_at_distance(first, kl_per_token, seed=seed + 1)


def step(kl_per_token: float, seed: int = 0) -> dict[str, Any]:
    """A policy step of the measured size: exact error and every bound on it, the maxima being true maxima
    here.

    The reward is 1 if the response contains token 0; ``error_sup`` is the largest error over all rewards in
    [0, 1].
    """
    tree, behavior, target = policies(kl_per_token, seed)
    pair = PolicyPair(tree, behavior, target, terminal_reward(tree, lambda _, tokens: float(0 in tokens)))
    found = {n: getattr(pair, n, None) for n in QUANTITIES if n not in ("horizon", "vocab")}
    given: dict[str, Any] = {n: float(v) for n, v in found.items() if isinstance(v, float | np.ndarray)}
    report = calculator.calculate(horizon=HORIZON, reward_range=(0.0, 1.0), **given)
    return {
        "vocab": VOCAB,
        "horizon": HORIZON,
        "kl_per_token": kl_per_token,
        "improvement": float(pair.improvement),
        "surrogate": float(pair.surrogate),
        "error": float(pair.error),
        "error_sup": float(pair.error_sup),
        "k1_mean": float(pair.kl_seq) / HORIZON,
        "k3_mean": float(pair.k3_sum) / HORIZON,
        "bounds": [
            {
                **{k: b[k] for k in ("id", "name", "target", "value", "vacuous")},
                "kind": "exact maximum" if set(b["needs"]) & set(MAXIMA) else "exact expectation",
            }
            for b in report["bounds"]
            if b["target"] in ("surrogate_error", "improvement", "improvement_lower", "improvement_upper")
        ],
    }


def frontier(kl_per_token: float, lambdas: Sequence[float], seed: int = 0) -> list[dict[str, Any]]:
    """Exact bias², variance, cosine and crossover of the gradient forms, tabular softmax, student against
    teacher.
    """
    _, student, teacher = policies(kl_per_token, seed)
    forms = {
        "togo": Estimator("to_go"),
        "total": Estimator("total"),
        "expected": Estimator("expected"),
        "immediate": Estimator("to_go", lam=0),
        **{f"lambda {lam:g}": Estimator("to_go", lam=lam) for lam in lambdas},
        **{f"expected lambda {lam:g}": Estimator("expected", lam=lam) for lam in lambdas},
    }
    reference = tabular_moments(student, teacher, "ii")
    rows = []
    for name, form in forms.items():
        found = tabular_moments(student, teacher, form)
        norms = np.linalg.norm(found.mean) * np.linalg.norm(found.target)
        gain = float(reference.variance - found.variance)
        bias2 = float(found.bias2)
        rows.append(
            {
                "form": name,
                "bias2": bias2,
                "variance": float(found.variance),
                "cosine": float(found.mean @ found.target / norms),
                "better_than_togo_up_to": 0.0 if gain <= 0 else gain / bias2 if bias2 > 0 else float("inf"),
            }
        )
    return rows


def contraction(kl_per_token: float, alpha: float, steps: int, seed: int = 0) -> list[dict[str, float]]:
    """Distance to the teacher after exact proximal steps, mixed per sequence and per token, as factors per
    step.
    """
    tree, student, teacher = policies(kl_per_token, seed)
    current, first = student, TeacherStudent(tree, teacher, student)
    rows = []
    for k in range(1, steps + 1):
        before = TeacherStudent(tree, teacher, current)
        current = before.token_mixed(alpha)
        after = TeacherStudent(tree, teacher, current)
        rows.append(
            {
                "step": k,
                "token_mixed": float(after.l1_seq / first.l1_seq),
                "token_mixed_factor": float(after.l1_seq / before.l1_seq),
                "sequence_mixed": (1 - alpha) ** k,
                "state_mixed": float(after.tv_state_max / first.tv_state_max),
                "token_law_factor": 1 - alpha**HORIZON,
            }
        )
    return rows
