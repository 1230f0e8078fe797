"""The same numbers on small tabular models, where they are exact: each real-model section gets one of these
beside it.

The tabular policies are random, with the per-token KL that was measured on the real models, so that only size
and horizon differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import calculator, divergences
from ..bounds import topd_second_moment, topd_variance
from ..confidence import certificates
from ..gradients import tabular_moments
from ..gradients.estimators import Estimator, score_norm2, token_rewards
from ..gradients.frontier import teacher_at_distance
from ..quantities import QUANTITIES
from ..simulate.batch import enumerate_responses
from ..tabular import Policy, PolicyPair, Reward, TeacherStudent, TokenTree, terminal_reward
from .evidence import MAXIMA, TARGETS, accepted
from .statistics import NAMES, estimators, mask_rates, metrics

VOCAB, HORIZON, CONCENTRATION = 4, 6, 0.5
MEASURED = ("kl_seq", "tv_sum", "tv_seq", "tv_max", "kl_max")


def policies(kl_per_token: float, seed: int = 0) -> tuple[TokenTree, Policy, Policy]:
    """A tree and two policies with KL(first‖second) of sequences = ``kl_per_token`` · horizon."""
    tree = TokenTree(vocab=VOCAB, horizon=HORIZON)
    first = Policy.random(tree, seed=seed, concentration=CONCENTRATION)
    return tree, first, teacher_at_distance(first, kl_per_token, seed=seed + 1)


def responses(behavior: Policy, target: Policy) -> dict[str, np.ndarray]:
    """Every response of ``behavior`` with its probability as ``weight``, and the arrays that the real-model
    statistics read.
    """
    p, q = behavior.flat, target.flat
    batch = enumerate_responses(Policy(behavior.tree, p[..., None], (1,)))
    first, second = p.T, q.T
    tables = {
        **{name: getattr(divergences, name)(first, second) for name in ("tv", "jsd", "hellinger2")},
        "kl_pq": divergences.kl(first, second),
        "kl_qp": divergences.kl(second, first),
        "chi2_qp": divergences.chi2(second, first),
    }
    contexts = {
        **{new: tables[old] for old, new in NAMES.items()},
        "max_log_ratio": np.abs(np.log(q / p)).max(0),
        "mean_ratio": np.where(p > 0, q, 0.0).sum(0),
    }
    reward = reward_of(behavior.tree).flat[..., None]
    return {
        **{name: batch.at_contexts(values[:, None]) for name, values in contexts.items()},
        "rollout_log_probs": np.log(batch.along(p[..., None])),
        "log_probs": np.log(batch.along(q[..., None])),
        "response_mask": batch.alive.astype(np.int64),
        "weight": batch.weight,
        "rewards": batch.returns(reward),
    }


def certified(arrays: Mapping[str, np.ndarray], kl_threshold: float = 0.05) -> dict[str, float]:
    """The exact expectation that each certificate's estimate has on the responses of a tabular policy."""
    log_w = (arrays["log_probs"] - arrays["rollout_log_probs"]).sum(1)
    reward, weight = arrays["rewards"], arrays["weight"]
    kept = accepted({"kl": arrays["kl_rollout_train"], "mask": arrays["response_mask"]}, kl_threshold)
    cap, floor = 2.0, 1.0
    values = {
        "tv_seq": certificates.tv_values(log_w),
        "return_truncated": certificates.truncated_values(log_w, reward, cap),
        "improvement_truncated": certificates.truncated_change_values(log_w, reward, cap),
        "improvement_log": certificates.log_change_values(log_w, reward, cap),
        "improvement_masked": certificates.masked_change_values(log_w, reward, kept, cap, floor),
    }
    return {name: float(x @ weight) for name, x in values.items()}


def mismatch(kl_per_token: float, seed: int = 0) -> dict[str, Any]:
    """Everything the engine comparison says, on the law of all responses of a tabular pair."""
    _, behavior, target = policies(kl_per_token, seed)
    arrays = responses(behavior, target)
    return {
        **step(kl_per_token, seed),
        "metrics": metrics(arrays),
        "estimators": {name: e["mean"] for name, e in estimators(arrays).items()},
        "masks": mask_rates(arrays),
    }


def step(kl_per_token: float, seed: int = 0) -> dict[str, Any]:
    """A policy step of the measured size in a random direction."""
    _, behavior, target = policies(kl_per_token, seed)
    return promises(behavior, target)


def reward_of(tree: TokenTree) -> Reward:
    """1 if the response contains token 0, else 0."""
    return terminal_reward(tree, lambda _, tokens: float(0 in tokens))


def promises(behavior: Policy, target: Policy) -> dict[str, Any]:
    """Exact outcome of a policy step, every bound on it and what each certificate estimates, the maxima being
    true maxima here; ``error_sup`` is the largest error over all rewards in [0, 1].
    """
    tree = behavior.tree
    pair = PolicyPair(tree, behavior, target, reward_of(tree))
    found = {n: getattr(pair, n, None) for n in QUANTITIES if n not in ("horizon", "vocab")}
    given: dict[str, Any] = {n: float(v) for n, v in found.items() if isinstance(v, float | np.ndarray)}
    report = calculator.calculate(horizon=tree.horizon, reward_range=(0.0, 1.0), **given)
    return {
        "vocab": tree.vocab,
        "horizon": tree.horizon,
        "kl_per_token": float(pair.kl_seq) / tree.horizon,
        "improvement": float(pair.improvement),
        "surrogate": float(pair.surrogate),
        "error": float(pair.error),
        "error_sup": float(pair.error_sup),
        "return_before": float(pair.J_behavior),
        "return_after": float(pair.J_target),
        "quantities": {name: float(getattr(pair, name)) for name in MEASURED},
        "certified": certified(responses(behavior, target)),
        "bounds": [
            {
                **{k: b[k] for k in ("id", "name", "target", "value", "vacuous")},
                "kind": "exact maximum" if set(b["needs"]) & set(MAXIMA) else "exact expectation",
            }
            for b in report["bounds"]
            if b["target"] in TARGETS
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
        "togo-baseline": Estimator("to_go", baseline="value"),
        "expected-baseline": Estimator("expected", baseline="value"),
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


def topd(kl_per_token: float, alphas: Sequence[float], seed: int = 0) -> list[dict[str, float]]:
    """Exact second moment and variance of TOP-D token gradients in the logits, over the student's contexts,
    beside M²K(α) and the printed bound, M² being the largest squared score.
    """
    _, student, teacher = policies(kl_per_token, seed)
    p, q = student.flat, teacher.flat
    visits = student.flat_occupancy / student.flat_occupancy.sum()
    norms2 = score_norm2(p)
    bound = float(norms2.max())
    rows = []
    for alpha in alphas:
        reward = token_rewards(p, q, alpha)
        second = float((visits * p * reward**2 * norms2).sum())
        mean = visits * p * (reward - (p * reward).sum(0))
        row = {"alpha": alpha, "second_moment": second, "variance": second - float((mean**2).sum())}
        row["reward_second_moment_max"] = float((p * reward**2).sum(0).max())
        if alpha < 1:
            row["sharp_bound"] = bound * float(topd_second_moment(alpha))
            row["printed_bound"] = float(topd_variance(alpha, VOCAB, bound**0.5))
        rows.append(row)
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
