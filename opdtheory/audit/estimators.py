"""Every named estimator of the field against what it says it estimates, in exact expectation on small
models.

Tokens are drawn from the rollout policy μ (``p``), r = π/μ; for distillation p is the student and q the
teacher.  An expectation is a sum over the alphabet (or over all two-token sequences), so the bias shown has
no sampling error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from opdtheory import divergences as d
from opdtheory import rewards

Law = np.ndarray
K3_CLAMP = 10.0


@dataclass(frozen=True)
class Estimator:
    """``expectation`` and ``target`` are functions of (p, q); ``truth`` says what the expectation really
    is.
    """

    name: str
    used_by: str
    stated: str
    truth: str
    expectation: Callable[[Law, Law], float]
    target: Callable[[Law, Law], float]
    heavy: bool = False
    """Shown on the model with one enormous ratio instead of the ordinary one."""


def _mean(f: Callable[[np.ndarray], np.ndarray]) -> Callable[[Law, Law], float]:
    """E_p f(q/p) over the tokens that p draws."""

    def value(p: Law, q: Law) -> float:
        drawn = p > 0
        return float((p[drawn] * f(q[drawn] / p[drawn])).sum())

    return value


def _js_surrogate(p: Law, q: Law) -> float:
    """k3-type terms towards the mixture, both averaged over p's tokens."""
    m = (p + q) / 2
    terms = (q / m - np.log(q / m) - 1 + p / m - np.log(p / m) - 1) / 2
    return float((p * terms).sum())


def _score_mean(weight: Callable[[Law, Law], np.ndarray]) -> Callable[[Law, Law], float]:
    """Norm of E_p[weight·∇log p] in logit coordinates: p·(weight − mean weight)."""

    def value(p: Law, q: Law) -> float:
        w = weight(p, q)
        return float(np.linalg.norm(p * (w - (p * w).sum())))

    return value


def _topk_mass(p: Law, q: Law) -> np.ndarray:
    """The same number for every token: a top-k divergence of the context, used as a penalty on whatever was
    drawn.
    """
    return np.full(len(p), float(d.topk_kl(q, p, 2, tail=False)))


def _pairs(f: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[[Law, Law], float]:
    """E over two independent tokens of p of f(r₁, r₂)."""

    def value(p: Law, q: Law) -> float:
        r = q / p
        return float((p[:, None] * p[None, :] * f(r[:, None], r[None, :])).sum())

    return value


GAMMA, OPSM_DELTA = 0.9, 0.1
_FORWARD, _REVERSE = (lambda p, q: float(d.kl(p, q))), (lambda p, q: float(d.kl(q, p)))
ESTIMATORS: tuple[Estimator, ...] = (
    Estimator(
        "k1 (rollout_corr/kl)", "verl, TRL, most", "KL(rollout‖train)", "the same", _mean(d.k1), _FORWARD
    ),
    Estimator("k2", "verl, TRL", "KL(rollout‖train)", "½E[log² r], biased", _mean(d.k2), _FORWARD),
    Estimator(
        "k3 (rollout_corr/k3_kl, gen_kl_error)",
        "verl, NeMo-RL, prime-rl",
        "KL(rollout‖train)",
        "the same where supp π ⊆ supp μ",
        _mean(d.k3),
        _FORWARD,
    ),
    Estimator(
        "k3 clamped at 10 (low_var_kl)",
        "verl, slime",
        "KL(rollout‖train)",
        "too small where ratios exceed about 13",
        _mean(lambda r: np.minimum(d.k3(r), K3_CLAMP)),
        _FORWARD,
        True,
    ),
    Estimator(
        "policy_kl_error",
        "NeMo-RL",
        "KL(train‖rollout)",
        "χ²(rollout‖train) − KL(rollout‖train)",
        _mean(lambda r: 1 / r - 1 + np.log(r)),
        _REVERSE,
    ),
    Estimator(
        "js_divergence_error",
        "NeMo-RL",
        "JSD",
        "k3-type terms averaged over rollout tokens only",
        _js_surrogate,
        lambda p, q: float(d.jsd(p, q)),
    ),
    Estimator(
        "chi2_token",
        "verl",
        "χ²(train‖rollout)",
        "the same",
        _mean(lambda r: r**2 - 1),
        lambda p, q: float(d.chi2(q, p)),
    ),
    Estimator(
        "½E|r − 1|",
        "DPPO, Eq. 10",
        "TV",
        "the same where supp π ⊆ supp μ",
        _mean(lambda r: np.abs(r - 1) / 2),
        lambda p, q: float(d.tv(p, q)),
    ),
    Estimator(
        "rollout_is_mean at cap 2",
        "verl",
        "E[r] = 1",
        "1 − E[(r − 2)₊]: what is measured after clipping hides the tail",
        _mean(lambda r: np.minimum(r, 2.0)),
        lambda p, q: 1.0,
        True,
    ),
    Estimator(
        "chi2_seq (product of ratios)",
        "verl",
        "χ² of sequence laws",
        "the same",
        _pairs(lambda a, b: (a * b) ** 2 - 1),
        lambda p, q: (1 + float(d.chi2(q, p))) ** 2 - 1,
    ),
    Estimator(
        "chi2_seq (geometric mean)",
        "ms-swift",
        "χ² of sequence laws",
        "E[∏ r^{2/T}] − 1, no divergence",
        _pairs(lambda a, b: a * b - 1),
        lambda p, q: (1 + float(d.chi2(q, p))) ** 2 - 1,
    ),
    Estimator(
        "training_ppl (mean of exponentials)",
        "verl",
        "exp of the mean loss",
        "larger, by Jensen",
        _pairs(lambda a, b: np.sqrt(1 / (a * b))),
        lambda p, q: float(np.exp(d.kl(p, q))),
    ),
    Estimator(
        "−r̃ of TOP-D, α = 0.1",
        "TOP-D, Eq. 5",
        "KL(student‖teacher)",
        "KL(student‖0.1·teacher + 0.9·student)",
        lambda p, q: -float(rewards.expected_topd(q, p, 0.1)),
        _FORWARD,
    ),
    Estimator(
        "−M·log ratio (gated k1)",
        "TrOPD",
        "KL(student‖teacher)",
        "−Σ min(p, q) log(q/p), can be negative",
        lambda p, q: -float(rewards.expected_tropd_gate(q, p)),
        _FORWARD,
    ),
    Estimator(
        "top-k forward KL without a tail bucket",
        "TrOPD",
        "KL(teacher‖student)",
        "neither a bound nor non-negative",
        lambda p, q: float(d.topk_kl(q, p, 2, tail=False)),
        _REVERSE,
    ),
    Estimator(
        "top-k forward KL with a tail bucket",
        "this package",
        "at most KL(teacher‖student)",
        "a lower bound",
        lambda p, q: float(d.topk_kl(q, p, 2)),
        _REVERSE,
    ),
    Estimator(
        "generalised JSD at β = 0",
        "TRL, Liger (code path)",
        "the limit β → 0, which is 0",
        "the code switches to KL(teacher‖student) there",
        _REVERSE,
        lambda p, q: float(d.jsd(p, q, 0.0)),
    ),
    Estimator(
        "generalised JSD at β = 1",
        "TRL, Liger (code path)",
        "the limit β → 1, which is 0",
        "the code switches to KL(student‖teacher) there",
        _FORWARD,
        lambda p, q: float(d.jsd(p, q, 1.0)),
    ),
    Estimator(
        "tokens kept by *_k1 bounds 0.8 to 2",
        "verl",
        "P(0.8 ≤ r ≤ 2)",
        "P(0.8 ≤ 1/r ≤ 2): k1 = −log r is compared with log bounds",
        _mean(lambda r: ((r <= 1 / 0.8) & (r >= 1 / 2)).astype(float)),
        _mean(lambda r: ((r >= 0.8) & (r <= 2)).astype(float)),
        True,
    ),
    Estimator(
        "tokens of A < 0 kept by OPSM, δ = 0.1",
        "slime",
        "P(mean of −log r over the answer ≤ 0.1), two tokens",
        "P(−log r ≤ 0.1): each token is judged alone",
        _mean(lambda r: (-np.log(r) <= OPSM_DELTA).astype(float)),
        _pairs(lambda a, b: (-np.log(a * b) / 2 <= OPSM_DELTA).astype(float)),
        True,
    ),
    Estimator(
        "binary TV of the drawn token",
        "DPPO, Eq. 13",
        "TV",
        "a lower bound",
        lambda p, q: float((p * np.abs(p - q)).sum()),
        lambda p, q: float(d.tv(p, q)),
    ),
    Estimator(
        "return of the second token, length_normalization=False",
        "TRL MiniLLM",
        "r₂, discounted from its own position",
        "γ·r₂: the discount counts from the start (γ = 0.9)",
        lambda p, q: -GAMMA * float(d.kl(p, q)),
        lambda p, q: -float(d.kl(p, q)),
    ),
    Estimator(
        "gradient of k1 used as a loss",
        "several",
        "∇KL(policy‖reference), its norm",
        "0: E[∇ log p] vanishes",
        _score_mean(lambda p, q: np.ones(len(p))),
        _score_mean(lambda p, q: np.log(p / q)),
    ),
    Estimator(
        "gradient of a top-k penalty that ignores the action",
        "several",
        "∇KL(policy‖reference), its norm",
        "0: a constant is a baseline",
        _score_mean(_topk_mass),
        _score_mean(lambda p, q: np.log(p / q)),
    ),
)


def models(seed: int = 0) -> dict[str, tuple[Law, Law]]:
    """The two models: an ordinary pair of four-token laws, and one where a token of the second is 25 times
    likelier.
    """
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.full(4, 2.0)), rng.dirichlet(np.full(4, 2.0))
    return {
        "ordinary": (p, q),
        "one enormous ratio": (np.array([0.01, 0.33, 0.33, 0.33]), np.array([0.25, 0.25, 0.25, 0.25])),
    }


def estimator_audit(seed: int = 0) -> list[dict[str, Any]]:
    """One row per estimator: what it is said to estimate, that value, its exact expectation, and the bias.

    >>> rows = {r["name"]: r for r in estimator_audit()}
    >>> rows["k1 (rollout_corr/kl)"]["unbiased"], rows["policy_kl_error"]["unbiased"]
    (True, False)
    """
    rows = []
    for e in ESTIMATORS:
        name = "one enormous ratio" if e.heavy else "ordinary"
        p, q = models(seed)[name]
        target, value = e.target(p, q), e.expectation(p, q)
        rows.append(
            {
                "name": e.name,
                "used_by": e.used_by,
                "stated": e.stated,
                "truth": e.truth,
                "model": name,
                "target": target,
                "expectation": value,
                "bias": value - target,
                "unbiased": abs(value - target) <= 1e-12 * max(1.0, abs(target)),
            }
        )
    return rows
