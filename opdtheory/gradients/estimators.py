"""The sampled policy-gradient estimators of on-policy distillation, and the conditional moments of their
advantages.

A student p draws a sequence y; an estimator is ĝ(y) = Σ_t Â_t ∇log p(a_t|s_t).  What distinguishes the
estimators is the advantage Â_t, built from token rewards r(s, a): the log ratio log(q/p) to the teacher q, or
its TOP-D form log(αq/p + 1 − α).  The tree structure makes a context determine its whole past, so that
everything about Â_t given (s_t, a_t) follows from backward recursions of the first two moments of what is
collected *after* a context.

Arrays are in the inner layout of the tabular package, ``(actions, contexts[, batch])``, and may be float64,
complex (for complex-step derivatives) or objects (rationals in, balls out).  Units are nats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from opdtheory._arrays import parameter
from opdtheory.elementary import exact, is_exact, log
from opdtheory.tabular import Policy, TokenTree, flow

__all__ = ["ESTIMATORS", "Estimator", "conditional_moments", "token_rewards"]

FORMS = ("total", "to_go", "expected", "value", "topd_return")
BASELINES = ("none", "value", "optimal")


@dataclass(frozen=True)
class Estimator:
    """One sampled estimator of the distillation gradient.

    ``form`` says what is added to the immediate reward: ``to_go`` the later rewards discounted by λ (λ=0
    immediate, λ=1 the log-ratio-to-go), ``expected`` their conditional means given the later contexts,
    ``value`` their mean given (s_t, a_t), ``total`` all rewards of the sequence, ``topd_return`` the mean of
    the later rewards (TOP-D Eq. 8). ``alpha`` replaces the log ratio by the TOP-D reward.  ``baseline``
    subtracts E[Â|s_t] (``value``) or the norm-weighted E[Â‖∇log p‖²|s_t]/E[‖∇log p‖²|s_t] (``optimal``,
    minimal variance per token).

    Sources: *Theory of On-Policy Distillation*, Thm 1 and 1.3; *Trust Region Policy Distillation*, Eqs. 5 and
    8.
    """

    form: str = "to_go"
    lam: Any = 1
    alpha: Any = None
    baseline: str = "none"

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"form: got {self.form!r}, expected one of {', '.join(FORMS)}")
        if self.baseline not in BASELINES:
            names = ", ".join(BASELINES)
            raise ValueError(f"baseline: got {self.baseline!r}, expected one of {names}")
        if not 0 <= self.lam <= 1:
            raise ValueError(f"lam: got {self.lam!r}, expected a number from 0 to 1")
        if self.lam != 1 and self.form in ("total", "topd_return"):
            raise ValueError(f"lam: got {self.lam!r} with form {self.form!r}, expected 1")
        if self.alpha is not None and not np.all((self.alpha > 0) & (self.alpha <= 1)):
            raise ValueError(f"alpha: got {self.alpha!r}, expected a number in (0, 1]")

    @property
    def unbiased(self) -> bool:
        """True if its mean is ∇η for every student and teacher (*Theory of On-Policy Distillation*, Thm
        1).
        """
        return (
            self.lam == 1
            and (self.alpha is None or bool(np.all(self.alpha == 1)))
            and self.form != "topd_return"
        )


ESTIMATORS: Mapping[str, Estimator] = {
    "i": Estimator("total"),
    "ii": Estimator("to_go"),
    "iii": Estimator("to_go", baseline="value"),
    "iv": Estimator("expected"),
    "v": Estimator("expected", baseline="value"),
    "immediate": Estimator("to_go", lam=0),
    "immediate_baseline": Estimator("to_go", lam=0, baseline="value"),
    "value": Estimator("value"),
}


def token_rewards(student: np.ndarray, teacher: np.ndarray, alpha: Any = None) -> np.ndarray:
    """log(q/p), or log(αq/p + 1 − α), of every context-action pair; 0 where the student has no mass (never
    drawn).

    Raises ``ValueError`` if the plain log ratio is infinite on a token that the student draws.
    """
    drawn = student != 0
    one: Any = exact(1) if is_exact(student) else 1.0
    ratio = np.where(drawn, teacher / np.where(drawn, student, one), one)
    if alpha is not None:
        # an array is one weight per instance of the batch, the last axis of the inner layout
        a = alpha if isinstance(alpha, np.ndarray) else parameter("alpha", alpha, student)
        return log(a * ratio + (1 - a))
    uncovered = ratio == 0
    if np.any(uncovered):
        count = int(np.sum(uncovered))
        raise ValueError(
            f"teacher: has probability 0 on {count} actions that the student draws, so that the reward is "
            "-inf; expected full support there (or a TOP-D reward with alpha < 1)"
        )
    return log(ratio)


def conditional_moments(
    student: Policy, teacher: Policy, estimator: Estimator
) -> tuple[np.ndarray, np.ndarray]:
    """(E[Â|s,a], E[Â²|s,a]) of every context-action pair, inner layout, baseline subtracted."""
    tree, p = student.tree, student.flat
    r = token_rewards(p, teacher.flat, estimator.alpha)
    lam = parameter("lam", estimator.lam, p)
    if estimator.form == "topd_return":
        first, second = _mean_of_later(tree, p, r)
    elif estimator.form == "total":
        past = flow.accumulate(tree, r)
        first, second = _discounted(tree, p, r, lam, expected=False)
        first, second = first + past, second + 2 * past * first + past * past
    else:
        first, second = _discounted(tree, p, r, lam, expected=estimator.form == "expected")
        if estimator.form == "value":
            second = first * first
    if estimator.baseline == "none":
        return first, second
    weights = p if estimator.baseline == "value" else p * score_norm2(p)
    mass = flow.contract(weights, weights * 0 + 1)
    # a deterministic context has no score and needs no baseline
    one: Any = exact(1) if is_exact(p) else 1.0
    b = flow.contract(weights, first) / np.where(mass != 0, mass, one)
    return first - b, second - 2 * b * first + b * b


def score_norm2(p: np.ndarray) -> np.ndarray:
    """‖∂log p(a|s)/∂logits of s‖² = 1 − 2p(a) + Σ_b p(b)² of every action."""
    return 1 - 2 * p + flow.contract(p, p)


def _discounted(
    tree: TokenTree, p: np.ndarray, r: np.ndarray, lam: Any, *, expected: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Moments of Â = r + λF(next), where F(s) is collected from s on: F(s) = r(s,a) + λF(next), or with
    ``expected`` F(s) = E_p[r(s,·)] + λF(next), which is random only through the later contexts.
    """
    first, second = r.copy(), r * r
    f1, f2 = np.empty_like(r[0]), np.empty_like(r[0])
    b = tree.branching
    for t in reversed(range(tree.horizon)):
        here = tree.level_slice(t)
        reward, policy = r[:, here], p[:, here]
        later1, later2 = np.zeros_like(reward), np.zeros_like(reward)
        if t < tree.horizon - 1:
            below = tree.level_slice(t + 1)
            later1[:b] = f1[below].reshape((b, *f1[here].shape))
            later2[:b] = f2[below].reshape((b, *f2[here].shape))
        first[:, here] = reward + lam * later1
        second[:, here] = reward * reward + 2 * lam * reward * later1 + lam * lam * later2
        if expected:
            mean = flow.contract(policy, reward)
            after = lam * flow.contract(policy, later1)
            f1[here] = mean + after
            f2[here] = mean * mean + 2 * mean * after + lam * lam * flow.contract(policy, later2)
        else:
            f1[here] = flow.contract(policy, first[:, here])
            f2[here] = flow.contract(policy, second[:, here])
    return first, second


def _mean_of_later(tree: TokenTree, p: np.ndarray, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moments of Â = r + (mean of the later rewards), just r at the last token.

    The divisor is the number of later tokens, so the recursion keeps, for every n, the probability that
    exactly n tokens come from a context on, and the first two moments of their reward on that event.
    """
    first, second = r.copy(), r * r
    b = tree.branching
    below: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for t in reversed(range(tree.horizon)):
        here = tree.level_slice(t)
        reward, policy = r[:, here], p[:, here]
        continuing = slice(0, b) if t < tree.horizon - 1 else slice(0, 0)
        ending = slice(continuing.stop, None)
        ends, r_ends = policy[ending], reward[ending]
        table = [(ends.sum(axis=0), (ends * r_ends).sum(axis=0), (ends * r_ends * r_ends).sum(axis=0))]
        for n, (mass, sum1, sum2) in enumerate(below, start=1):
            m, s1, s2 = (x.reshape((b, *reward.shape[1:])) for x in (mass, sum1, sum2))
            rc, pc = reward[continuing], policy[continuing]
            mean1, mean2 = s1 / n, s2 / (n * n)
            first[continuing, here] += mean1
            second[continuing, here] += 2 * rc * mean1 + mean2
            table.append(
                (
                    (pc * m).sum(axis=0),
                    (pc * (rc * m + s1)).sum(axis=0),
                    (pc * (rc * rc * m + 2 * rc * s1 + s2)).sum(axis=0),
                )
            )
        below = table
    return first, second
