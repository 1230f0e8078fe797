"""What the interpolation α does: variance of the estimator, contraction towards the teacher, forgetting
of errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from opdtheory import bounds
from opdtheory.tabular.policy import Policy
from opdtheory.tabular.single import SingleState
from opdtheory.tabular.tree import TokenTree

ALPHAS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99)
VOCABULARIES = (2, 10, 100, 1000, 10_000, 50_257, 151_936)


def zipf_pair(vocab: int, seed: int, disagreement: float = 1.0) -> SingleState:
    """A language-model-like state: Zipf student, teacher with independent Gaussian noise on the logits."""
    rng = np.random.default_rng([vocab, seed])
    logits = -np.log(np.arange(1, vocab + 1.0))
    student = np.exp(logits - np.logaddexp.reduce(logits))
    moved = logits + disagreement * rng.normal(size=vocab)
    return SingleState(student, np.exp(moved - np.logaddexp.reduce(moved)))


def opposed_pair(vocab: int) -> SingleState:
    """Teacher and student with reversed Zipf rankings: nearly disjoint mass."""
    p = 1 / np.arange(1, vocab + 1.0)
    p /= p.sum()
    return SingleState(p, p[::-1].copy())


def extremal_pair(vocab: int, alpha: float) -> SingleState:
    """Student mass 1/b on one token that the teacher is sure of: attains K(α) in the limit of one other
    token.

    The rest of the student's mass is spread evenly, where the teacher has a vanishing share (full support).
    """
    share, faint = 1 / float(bounds.tangent_ratio(alpha)), 1e-12
    p = np.full(vocab, (1 - share) / (vocab - 1))
    q = np.full(vocab, faint / (vocab - 1))
    p[0], q[0] = share, 1 - faint
    return SingleState(p, q)


def variance_over_alpha(
    alphas: Sequence[float] = ALPHAS, vocabularies: Sequence[int] = VOCABULARIES, seeds: int = 3
) -> dict[str, Any]:
    """Measured second moments and gradient variances of one state against the printed and the sharp bound.

    The gradient is with respect to free logits, where ‖∇ log p‖² ≤ 2; ``reward_moment`` is E_p[r̃²] ≤ K(α),
    ``gradient_variance`` the exact variance of r̃∇log p, ``noise_to_signal`` its ratio to ‖E[r̃∇log p]‖².
    """
    rows = []
    for vocab in vocabularies:
        families = {"zipf": [zipf_pair(vocab, s) for s in range(seeds)], "opposed": [opposed_pair(vocab)]}
        for alpha in alphas:
            members = {**families, "extremal": [extremal_pair(vocab, alpha)]}
            for family, states in members.items():
                for member, state in enumerate(states):
                    signal = float(state.topd_gradient_norm2(alpha))
                    variance = float(state.topd_gradient_variance(alpha))
                    rows.append(
                        {
                            "vocab": vocab,
                            "alpha": alpha,
                            "family": family,
                            "member": member,
                            "reward_moment": float(state.topd_second_moment(alpha)),
                            "reward_variance": float(state.topd_variance(alpha)),
                            "gradient_variance": variance,
                            "signal": signal,
                            "noise_to_signal": variance / signal if signal > 0 else None,
                            "opd_gradient_variance": float(state.opd_gradient_variance),
                            "sharp": float(bounds.topd_variance_softmax(alpha)),
                            "printed": float(bounds.topd_variance(alpha, vocab, 2**0.5)),
                        }
                    )
    curve = [
        {
            "alpha": a,
            "second_moment": float(bounds.topd_second_moment(a)),
            "simple": float(bounds.topd_second_moment_simple(a)),
            "ratio": float(bounds.tangent_ratio(a)),
        }
        for a in alphas
    ]
    return {"rows": rows, "curve": curve}


def _distance(a: Policy, b: Policy) -> float:
    return float(sum(np.abs(x - y).sum() for x, y in zip(a.sequence_law, b.sequence_law, strict=True)))


def _state_distance(a: Policy, b: Policy) -> float:
    return float(max(np.abs(x - y).sum(axis=-1).max() for x, y in zip(a.levels, b.levels, strict=True)))


def contraction_curves(
    alphas: Sequence[float] = (0.1, 0.3, 0.5),
    steps: int = 30,
    vocab: int = 2,
    horizon: int = 6,
    seed: int = 0,
) -> dict[str, Any]:
    """Distance to the teacher over the steps: whole responses mixed, tokens mixed, and each law that
    bounds them.

    ``token_law`` composes the steps into one mixture, ``token_rate_law`` only repeats the one-step rate
    1 − α^T. Two starts: ``random`` policies, and ``disjoint`` ones that never agree on a token, where
    one token-level step contracts by exactly 1 − α^T.
    """
    tree = TokenTree(vocab=vocab, horizon=horizon)
    rng = np.random.default_rng(seed)
    starts = {
        "random": tuple(Policy.random(tree, seed=rng, concentration=0.3) for _ in range(2)),
        "disjoint": tuple(
            Policy.deterministic(tree, [np.full(tree.level_shape(t)[0], token) for t in range(horizon)])
            for token in (0, vocab - 1)
        ),
    }
    rows = []
    for start, (student, teacher) in starts.items():
        for alpha in alphas:
            sequence = token = student
            initial, initial_state = _distance(student, teacher), _state_distance(student, teacher)
            for step in range(steps + 1):
                rows.append(
                    {
                        "start": start,
                        "alpha": alpha,
                        "step": step,
                        "sequence": _distance(sequence, teacher),
                        "token": _distance(token, teacher),
                        "state": _state_distance(token, teacher),
                        "sequence_law": float(bounds.contraction_sequence(alpha, step, initial)),
                        "token_law": float(bounds.contraction_token_steps(alpha, horizon, step, initial)),
                        "token_rate_law": float(bounds.contraction_token(alpha, horizon, step, initial)),
                        "state_law": float(bounds.contraction_state(alpha, step, initial_state)),
                    }
                )
                sequence = Policy.sequence_mixture(teacher, sequence, alpha)
                token = Policy.mixture(teacher, token, alpha)
    return {"vocab": vocab, "horizon": horizon, "rows": rows}


def error_forgetting(
    alphas: Sequence[float] = (0.05, 0.2, 0.5), steps: int = 60, horizon: int = 4, seed: int = 1
) -> dict[str, Any]:
    """Sequence-level steps with injected errors: a burst early on, then a small constant error.

    Each error moves the policy towards a random one by a sequence mixture; ``error`` is its measured size
    d(π_{k+1}, T π_k), ``law`` the bound from the errors so far, ``limit`` e∞/α with e∞ the largest late
    error.
    """
    tree = TokenTree(vocab=2, horizon=horizon)
    rows, summary = [], []
    for alpha in alphas:
        rng = np.random.default_rng(seed)
        student, teacher = (Policy.random(tree, seed=rng, concentration=0.5) for _ in range(2))
        law = _distance(student, teacher)
        late = 0.0
        for step in range(steps):
            rows.append({"alpha": alpha, "step": step, "distance": _distance(student, teacher), "law": law})
            target = Policy.sequence_mixture(teacher, student, alpha)
            strength = 0.5 if 5 <= step < 8 else 0.01
            student = Policy.sequence_mixture(
                Policy.random(tree, seed=rng, concentration=0.5), target, strength
            )
            error = _distance(student, target)
            rows[-1]["error"] = error
            law = (1 - alpha) * law + error
            late = max(late, error) if step >= 8 else late
        summary.append(
            {"alpha": alpha, "late_error": late, "limit": float(bounds.contraction_limit(alpha, late))}
        )
    return {"horizon": horizon, "rows": rows, "summary": summary}
