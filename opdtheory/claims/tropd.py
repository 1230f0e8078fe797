"""Trust Region On-Policy Distillation (TrOPD): gate, clip and mask, at one state.

A state is a pair of distributions: p the student's, q the teacher's, ρ = q/p.  Thresholds are written as
``floor`` = e^τ, so that τ < 0 means floor < 1.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from opdtheory import rewards, spaces
from opdtheory.claims.sources import TROPD
from opdtheory.elementary import asum, exact, exp, minimum, where
from opdtheory.tabular import SingleState
from opdtheory.verification import balls
from opdtheory.verification.claim import Mutant
from opdtheory.verification.evidence import Evidence
from opdtheory.verification.registry import claim, entry

STATES = spaces.single_states()
INTERIOR = spaces.single_states(full_support=True)
THRESHOLDED = spaces.single_states(full_support=True, vocab=(2, 3, 4), extra={"floor": (0.05, 0.95)})
ANY_THRESHOLD = spaces.single_states(full_support=True, vocab=(2, 3, 4), extra={"floor": (0.05, 3.0)})
THREE = spaces.single_states(full_support=True, vocab=(2, 3, 4))
PROOFS = "docs/proofs/tropd.md"
INTERIOR_PAIR = "student and teacher have full support"
_SEED = 20260


def random_states(count: int = 400, vocab: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(_SEED)
    p, q = (rng.dirichlet(np.full(vocab, c), size=count) for c in (0.7, 0.4))
    return p, q


def agree(name: str, difference: Any) -> Evidence:
    """A definition computed two ways, in float64."""
    worst = float(np.max(np.abs(difference)))
    return Evidence("check", worst < 1e-9, f"{name}: largest difference {worst:.1e}")


# ------------------------------------------------------------------------------------------------ gate


@claim(
    "tropd.gate", TROPD, "trust region by decoding agreement", "The gate accepts with probability 1 − TV",
    space=STATES, relation="==", sharpness="identity",
    hypotheses=("the token is drawn from the full student: no top-p, no top-k",),
    proof=f"{PROOFS}#gate",
    sketch="The sampled token is accepted with probability min(ρ, 1), so P(M = 1) = Σ min(p, q) = 1 − TV(p, q).",
    latex=r"\mathbb{P}(M=1)=\sum_y \min(p_y,q_y)=1-\mathrm{TV}(p,q)",
    mutants=(Mutant("half the distance", "dies", "TV already carries the factor ½",
                    {"sides": lambda x: (_acceptance(x), 1 - x.tv / 2)}),
             Mutant("gate drawn from the teacher", "dies", "the sampled token is the student's",
                    {"sides": lambda x: (asum(x.q * minimum(x.p / x.q, 1) ** 2), 1 - x.tv), "space": INTERIOR}),),
)  # fmt: skip
def gate(x: Any) -> tuple[Any, Any]:
    """The token gate M ~ Bernoulli(min(q/p, 1)) on a token drawn from the student is open with probability 1 − TV(p, q)."""
    return _acceptance(x), 1 - x.tv


def _acceptance(x: Any) -> Any:
    """E_p[min(ρ, 1)], token by token with its probability of being drawn and then of being accepted."""
    return x.expect_p(minimum(x.ratio, 1))


# -------------------------------------------------------------------------------------------------- k1


def _k1_loss_has_no_gradient() -> Evidence:
    """E_p[∇(log p(y) − log q(y))] = E_p[∇log p] = 0: no signal, whatever the teacher."""
    p, _ = random_states()
    vocab = p.shape[-1]
    score = np.eye(vocab) - p[:, None, :]  # score[i, y] = ∇ log p(y) in the logits
    return agree("expected gradient of the k1 loss", np.einsum("ny,nyz->nz", p, score))


def _k1_as_reward() -> Evidence:
    """E_p[log ρ ∇log p] against central differences of −KL(p‖q) in the logits."""
    p, q = random_states(100)
    logits, h = np.log(p), 1e-5
    numeric = np.empty_like(p)
    for a in range(p.shape[-1]):
        values = []
        for sign in (1, -1):
            moved = logits.copy()
            moved[:, a] += sign * h
            m = np.exp(moved) / np.exp(moved).sum(-1, keepdims=True)
            values.append(-(m * np.log(m / q)).sum(-1))
        numeric[:, a] = (values[0] - values[1]) / (2 * h)
    log_ratio = np.log(q / p)
    field = p * (log_ratio - (p * log_ratio).sum(-1, keepdims=True))
    gap = float(np.abs(field - numeric).max() / np.abs(numeric).max())
    return Evidence("check", gap < 1e-6, f"k1 as a reward: field = −∇KL(p‖q) within {gap:.0e} of finite differences")


@claim(
    "tropd.k1", TROPD, "K1 estimator", "k1 is the reverse KL as a value and as a REINFORCE reward",
    space=STATES, relation="==", sharpness="identity", checks=(_k1_loss_has_no_gradient, _k1_as_reward),
    hypotheses=("supp student ⊆ supp teacher, else both sides are infinite",),
    proof=f"{PROOFS}#k1",
    sketch="E_p[log(p/q)] is KL(p‖q), and −log ρ as the reward of REINFORCE gives its gradient since E_p[∇log p] = 0. "
    "For the same reason k1 as a differentiable loss has expected gradient zero.",
    latex=r"\mathbb{E}_{y\sim p}\Big[\log\frac{p_y}{q_y}\Big]=\mathrm{KL}(p\,\|\,q)",
    mutants=(
        Mutant("other direction", "dies", "the tokens are the student's", {"sides": lambda x: (-x.opd_mean, x.kl_qp)}),
        Mutant("gated", "dies", "see tropd.gated-k1-is-rkl", {"sides": lambda x: (x.gated_k1, x.kl_pq)}),
    ),
)  # fmt: skip
def k1(x: Any) -> tuple[Any, Any]:
    """The mean of log(p/q) over tokens of the student is KL(p‖q)."""
    return -x.opd_mean, x.kl_pq


# ------------------------------------------------------------------------------- the gated k1 objective


def _f(ratio: Any) -> Any:
    """f(ρ) = ρ − 1 − log ρ for ρ ≥ 1 and ½ρ log²ρ below: f(ρ) − ρ f′(ρ) = −min(ρ, 1) log ρ."""
    return np.where(ratio >= 1, ratio - 1 - np.log(ratio), ratio * np.log(ratio) ** 2 / 2)


def _gated_field_is_an_f_divergence() -> Evidence:
    """The gated field against central differences of −Σ p f(q/p) in the logits."""
    p, q = random_states(100)
    logits, h = np.log(p), 1e-5
    numeric = np.empty_like(p)
    for a in range(p.shape[-1]):
        values = []
        for sign in (1, -1):
            moved = logits.copy()
            moved[:, a] += sign * h
            m = np.exp(moved) / np.exp(moved).sum(-1, keepdims=True)
            values.append(-(m * _f(q / m)).sum(-1))
        numeric[:, a] = (values[0] - values[1]) / (2 * h)
    reward = rewards.expected_tropd_gate(q, p)
    state = SingleState(p, q)
    exact_field = state.p * (np.minimum(q / p, 1) * np.log(q / p) - np.asarray(reward)[:, None])
    gap = float(np.abs(exact_field - numeric).max() / np.abs(numeric).max())
    second = _f(np.array([0.2 - 1e-3, 0.2, 0.2 + 1e-3]))
    concave = second[0] + second[2] - 2 * second[1] < 0
    detail = f"field = −∇Σp f(ρ) within {gap:.0e} of finite differences; f'' < 0 at ρ = 0.2: {bool(concave)}"
    return Evidence("check", gap < 1e-6 and bool(concave), detail)


@claim(
    "tropd.gated-k1-is-rkl", TROPD, "objective in the trust region", "The gated k1 term estimates a divergence",
    space=INTERIOR, signed=True, relation="<=", checks=(_gated_field_is_an_f_divergence,), corrected_by=("tropd.bounded", "tropd.k1"),
    hypotheses=(INTERIOR_PAIR,),
    sketch="E_p[−M log ρ] = −Σ min(p, q) log(q/p) drops the part of the sum that keeps KL(p‖q) non-negative. As a REINFORCE "
    "signal the gate descends another divergence, Σ p f(ρ) with f(ρ) = ρ − 1 − log ρ for ρ ≥ 1 and ½ρ log²ρ below, which is not "
    "convex; its raw estimate can be negative.",
    latex=r"0\le \mathbb{E}_{y\sim p}\big[-M\log\rho\big]",
    note="Read as: inside the trust region the gated term is a reverse KL, hence non-negative.",
)  # fmt: skip
def gated_k1(x: Any) -> tuple[Any, Any]:
    """The expected gated term E_p[−M log ρ] is a reverse KL and therefore never negative."""
    return 0, x.gated_k1


# ---------------------------------------------------------------------------------------------- bounded


@lru_cache(maxsize=1)
def gate_supremum() -> tuple[float, float, float]:
    """sup over (p, q) of E_p[M log²ρ] = sup of the concave envelope at 1 of h(ρ) = min(ρ, 1) log²ρ.

    Below 1, h(ρ) = ρ log²ρ; above, log²ρ.  The envelope at mean 1 is a chord from a tangent point a < 1 to a tangent
    point b > 1 (both found by root search on the common-tangent equations).
    Returns the supremum, a and b.
    """
    from scipy.optimize import fsolve

    def equations(z: np.ndarray) -> list[float]:
        a, b = np.exp(z[0]), np.exp(z[1])
        la, lb = z
        slope_a, slope_b = la * la + 2 * la, 2 * lb / b
        return [slope_a - slope_b, a * la * la + slope_a * (b - a) - lb * lb]

    la, lb = fsolve(equations, [-2.2, 1.4], xtol=1e-12)
    a, b = np.exp(la), np.exp(lb)
    return float(a * la**2 + (la * la + 2 * la) * (1 - a)), float(a), float(b)


def _bounded_supremum() -> Evidence:
    value, a, b = gate_supremum()
    weight = (b - 1) / (b - a)
    p = np.array([weight, 1 - weight])
    attained = SingleState(p, p * np.array([a, b])).gated_second_moment
    detail = f"common tangent at ρ = {a:.6f} and {b:.6f}; supremum {value:.10f}, attained at V = 2: {float(attained):.10f}"
    return Evidence("check", abs(float(attained) - value) < 1e-9, detail)


_MICRO = 10**6


def _chord() -> tuple[int, int]:
    """A chord (c0 + c1 (ρ − 1))/10⁶ with whole c0, c1, at ρ = 1 two millionths above the common tangent."""
    value, a, _ = gate_supremum()
    return round(value * _MICRO) + 2, round((np.log(a) ** 2 + 2 * np.log(a)) * _MICRO)


def _majorant(below_one: bool) -> Any:
    """The chord minus h in the variable s = log ρ; non-negative everywhere means E_p h ≤ c0 for every p, q."""

    def margin(s: Any) -> Any:
        c0, c1 = _chord()
        return c0 + c1 * (exp(s) - 1) - _MICRO * (exp(s) * s * s if below_one else s * s)

    return margin


@claim(
    "tropd.bounded", TROPD, "stability of the gated signal", "The gated signal has bounded second moment, whatever the vocabulary",
    space=STATES, relation="<=", sharpness="tight",
    proofs=(
        balls.lemma("chord majorises ρ log²ρ on [e⁻⁴⁰, 1]", _majorant(True), [(-40, 0)], grade="balls"),
        balls.lemma("chord majorises log²ρ on [1, e⁴⁰]", _majorant(False), [(0, 40)], grade="balls"),
    ),
    checks=(_bounded_supremum,),
    proof=f"{PROOFS}#bounded",
    sketch="E_p[M log²ρ] = E_p[h(ρ)] with h(ρ) = min(ρ, 1) log²ρ and E_p ρ ≤ 1. The common tangent of h on both sides of 1 "
    "majorises h, so its value at 1 bounds the mean for every vocabulary; two tokens with ρ at the tangent points attain it. The balls "
    "cover e^±40; beyond, h is under the line because ρ log²ρ → 0 and log²ρ grows slower than ρ.",
    latex=r"\sup_{p,q}\ \mathbb{E}_p\big[M\log^2\rho\big]=0.9656\ldots",
    mutants=(
        Mutant("no gate", "dies", "E_p log²ρ is unbounded", {"sides": lambda x: (_MICRO * x.opd_second_moment, _chord()[0])}),
        Mutant("one percent less", "dies", "the constant is best possible", {"factor": exact("99/100")}),
    ),
    hypotheses=("q ≪ p or not: mass of q outside supp p only lowers E_p ρ",),
)  # fmt: skip
def bounded(x: Any) -> tuple[Any, Any]:
    """E_p[M log²ρ] stays under one constant, the value at 1 of the common tangent of min(ρ, 1) log²ρ, for every vocabulary."""
    return _MICRO * x.gated_second_moment, _chord()[0]


# ------------------------------------------------------------------------------------------- stationary


def _clear(x: Any) -> list[tuple[Any, str, Any]]:
    """Students and teachers well apart and well inside the simplex, so that "not stationary" has a margin."""
    return [(5 * x.tv, ">", 1), (10 * x.min_p, ">", 1), (10 * x.min_q, ">", 1)]


def _stationary(x: Any) -> tuple[Any, Any]:
    """Clip, mask and gate push the logits of p unless p = q (thresholds τ < 0, interior distributions).

    As a checkable statement: where TV > 1/5 and all probabilities exceed 1/10, every squared push exceeds 10⁻⁶.
    """
    return 1, _MICRO * _least_push(x)


def _least_push(x: Any) -> Any:
    """Smallest squared length of the three expected directions."""
    pushes = [x.direction_dot(s, s, x.floor) for s in ("clip", "mask", "gate")]
    return minimum(minimum(pushes[0], pushes[1]), pushes[2])


entry(
    "tropd.stationary", TROPD, "clip and mask outliers", "Clip, mask and gate are stationary only at the teacher",
    statement=" ".join((_stationary.__doc__ or "").split()),
    space=THRESHOLDED, sides=_stationary, given=_clear, signed=True, relation="<=",
    assumption="a negative threshold τ < 0 (floor < 1)",
    unassumed={"space": ANY_THRESHOLD},
    hypotheses=(INTERIOR_PAIR,),
    proof=f"{PROOFS}#stationary",
    latex=r"\mathbb{E}_p[f\,\nabla\log p]=0\implies p=q,\quad f\in\{\max(\log\rho,\tau),\,1[\log\rho>\tau]\log\rho,\,\min(\rho,1)\log\rho\},\ \tau<0",
    mutants=(
        Mutant("any threshold", "dies", "clipping above 1 flattens every reward", {"space": ANY_THRESHOLD}),
        Mutant("push of ordinary size", "dies", "1/100 is more than states of this kind give",
               {"sides": lambda x: (1, 100 * _least_push(x))}),
    ),
    sketch="An expected direction vanishes iff the signal is constant on the support. Clip: a constant τ would mean ρ ≤ e^τ < 1 everywhere, "
    "against Σpρ = 1; so all log ρ are equal, hence 0. Mask: if the constant is 0, masked tokens have ρ < 1 and the others ρ = 1, so none is masked. "
    "Gate: min(ρ, 1) log ρ = c with c > 0 puts every ρ above 1, c < 0 every ρ below; c = 0 gives ρ = 1. With τ ≥ 0 clipping "
    "flattens every ρ ≤ e^τ to the same reward and p ≠ q can be stationary.",
)  # fmt: skip


# -------------------------------------------------------------------------------------------- direction


def _gate_opposition(x: Any) -> tuple[Any, Any]:
    return 0, x.direction_dot("gate", "rkl")


def _fkl_often_restores() -> Evidence:
    """Of random states where the gate opposes reverse KL, in how many does the forward-KL term turn the update round?"""
    p, q = random_states(20000)
    x = SingleState(p, q, validate=False)
    opposed = x.direction_dot("gate", "rkl") < 0
    worst = SingleState(p[opposed], q[opposed], validate=False)
    mended = {k: float(np.mean(worst.direction_dot("tropd", "rkl", 1, k) > 0)) for k in (1, 2)}
    shares = ", ".join(f"{share:.0%} with top-{k}" for k, share in mended.items())
    detail = f"the gate opposes reverse KL in {int(opposed.sum())} of {opposed.size} random states; the forward-KL term mends {shares}, not all"
    return Evidence("check", all(0.5 < share < 1 for share in mended.values()), detail)


@claim(
    "tropd.direction", TROPD, "outlier handling keeps the direction", "The gated update never opposes reverse KL",
    space=THREE, signed=True, checks=(_fkl_often_restores,), corrected_by=("tropd.stationary",),
    hypotheses=(INTERIOR_PAIR, "directions in free logits"),
    sketch="Removing or damping the tokens with ρ < 1 changes the mean that REINFORCE subtracts; with three or more tokens the remaining "
    "field can point uphill for KL(p‖q). The forward-KL term of the full objective mends most such states, but not all: on the counterexample it does not.",
    latex=r"\Big\langle \mathbb{E}_p[M\log\rho\,\nabla\log p],\ -\nabla \mathrm{KL}(p\|q)\Big\rangle\ge 0",
)  # fmt: skip
def direction(x: Any) -> tuple[Any, Any]:
    """The expected gated update has a non-negative inner product with the descent direction of KL(p‖q)."""
    return _gate_opposition(x)


@claim(
    "tropd.direction/mask", TROPD, "mask outlier", "The masked update never opposes reverse KL",
    space=THRESHOLDED, signed=True, corrected_by=("tropd.stationary",),
    hypotheses=(INTERIOR_PAIR, "directions in free logits", "τ < 0"),
    sketch="As for the gate: masking tokens below the threshold changes the baseline as well as the signal.",
    latex=r"\Big\langle \mathbb{E}_p[1[\log\rho>\tau]\log\rho\,\nabla\log p],\ -\nabla \mathrm{KL}(p\|q)\Big\rangle\ge 0",
)  # fmt: skip
def direction_mask(x: Any) -> tuple[Any, Any]:
    """The expected update with outliers masked has a non-negative inner product with the descent direction of KL(p‖q)."""
    return 0, x.direction_dot("mask", "rkl", x.floor)


# -------------------------------------------------------------------------------------------- mask-norm


def _per_token_norm() -> Evidence:
    """Masking multiplies each token's gradient by 0 or 1 and clipping (τ < 0) shrinks its reward: no token's norm grows."""
    p, q = random_states()
    log_ratio = np.log(q / p)
    worst = max(
        float(np.max(np.abs(f(log_ratio, tau)) - np.abs(log_ratio)))
        for f in (rewards.tropd_mask, rewards.tropd_clip) for tau in (-3.0, -1.0, -0.1)
    )  # fmt: skip
    return Evidence("check", worst <= 0.0, f"per token |masked or clipped reward| ≤ |reward|: largest excess {worst:.1e}")


@claim(
    "tropd.mask-norm", TROPD, "reduced gradient norms", "Masking outliers shrinks the mean gradient",
    space=THRESHOLDED, relation="<=", checks=(_per_token_norm,), corrected_by=("tropd.mask-norm/second-moment",),
    hypotheses=(INTERIOR_PAIR, "τ < 0"),
    sketch="Per token the norm can only fall. The mean gradient is a sum of vectors that partly cancel; removing some can lengthen it.",
    latex=r"\|\mathbb{E}_p[1[\log\rho>\tau]\log\rho\,\nabla\log p]\|\le\|\mathbb{E}_p[\log\rho\,\nabla\log p]\|",
)  # fmt: skip
def mask_norm(x: Any) -> tuple[Any, Any]:
    """The squared norm of the expected masked update is at most that of the unmasked one."""
    return x.direction_dot("mask", "mask", x.floor), x.direction_dot("rkl", "rkl", x.floor)


def _token_second_moment(x: Any, signal: Any) -> Any:
    """E_p[f²‖∇log p‖²] over free logits, ‖∇log p(a)‖² = 1 − 2p_a + Σp²."""
    return asum(x.p * signal * signal * (1 - 2 * x.p + asum(x.p * x.p)[..., None] if x.p.ndim > 1 else 1 - 2 * x.p + asum(x.p * x.p)))


def _masked_signal(x: Any) -> Any:
    floor = x.floor if x.is_exact else np.asarray(x.floor)[..., None]
    return where(x.q > floor * x.p, x.log_ratio, 0 * x.log_ratio)


@claim(
    "tropd.mask-norm/second-moment", TROPD, "reduced gradient norms, per token", "Masking outliers shrinks the second moment of the gradient",
    space=THRESHOLDED, nature="ours", relation="<=", sharpness="tight",
    hypotheses=(INTERIOR_PAIR,),
    proof=f"{PROOFS}#mask-norm",
    sketch="The mask multiplies each token's gradient by 0 or 1, so every term of the second moment falls or stays.",
    latex=r"\mathbb{E}_p\|1[\log\rho>\tau]\log\rho\,\nabla\log p\|^2\le\mathbb{E}_p\|\log\rho\,\nabla\log p\|^2",
    mutants=(
        Mutant("mean gradient", "dies", "see tropd.mask-norm",
               {"sides": lambda x: (x.direction_dot("mask", "mask", x.floor), x.direction_dot("rkl", "rkl", x.floor))}),
        Mutant("a hundredth to spare", "dies", "nothing may be masked", {"factor": exact("99/100")}),
    ),
)  # fmt: skip
def mask_second_moment(x: Any) -> tuple[Any, Any]:
    """The second moment of one token's masked gradient is at most that of the unmasked one, over free logits."""
    return _token_second_moment(x, _masked_signal(x)), _token_second_moment(x, x.log_ratio)
