"""TOP-D: the objective, the proximal reward of Eq 5, its geometric relative of Eq 6, and the support they
need.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import sympy as sp

from opdtheory import gradients, spaces
from opdtheory.claims.sources import TOPD
from opdtheory.elementary import absolute, asum, exact, exp, log
from opdtheory.tabular import Policy, PolicyContrast, TokenTree
from opdtheory.verification.blocks import LogBox
from opdtheory.verification.claim import Mutant
from opdtheory.verification.evidence import Evidence
from opdtheory.verification.registry import claim, entry

ALPHA = {"alpha": (0.02, 0.98)}
STATES = spaces.single_states(full_support=True, extra=ALPHA)
STUDENTS = spaces.teacher_students(sizes=spaces.SMALL + spaces.WITH_EOS)
PROOFS = "docs/proofs/topd.md"
_SEED = 5


@cache
def _models(count: int = 6) -> tuple[tuple[Policy, Policy], ...]:
    """Random student–teacher pairs, half of them with an end-of-sequence token."""
    rng = np.random.default_rng(_SEED)
    out = []
    for i in range(count):
        tree = TokenTree(vocab=3, horizon=3, eos=2 if i % 2 else None)
        levels = [[rng.dirichlet(np.ones(3), size=tree.contexts(t)) for t in range(3)] for _ in range(2)]
        out.append((Policy.from_probs(tree, levels[0]), Policy.from_probs(tree, levels[1])))
    return tuple(out)


# ------------------------------------------------------------------------------------------- objective


def _length_is_occupancy() -> Evidence:
    """Σ_s d(s) = E|y| with the end token counted as generated; not counting it, the sum is too large by P(EOS
    emitted).
    """
    worst = uncounted = 0.0
    for student, _ in _models():
        tree, levels = student.tree, [np.asarray(level) for level in student.levels]
        mass, reach, emitted = 0.0, np.ones(1), 0.0
        for level in levels:
            mass += reach.sum()
            if tree.eos is not None:
                emitted += float((reach * level[:, tree.eos]).sum())
                level = np.delete(level, tree.eos, axis=1)
            reach = (reach[:, None] * level).ravel()
        worst = max(worst, abs(mass - float(student.expected_length)))
        if tree.eos is not None:
            uncounted = max(uncounted, abs((mass - (float(student.expected_length) - emitted)) - emitted))
    detail = (
        f"Σd − E|y| at most {worst:.0e} with EOS counted; without it the gap is P(EOS emitted) within "
        f"{uncounted:.0e}"
    )
    return Evidence("check", max(worst, uncounted) < 1e-12, detail)


def _gradient_of_the_objective() -> Evidence:
    """Eq 3: the log-ratio-to-go estimator has mean ∇J, here against central differences in every logit."""
    worst, h = 0.0, 1e-6
    for student, teacher in _models(4):
        mean = gradients.estimator_mean(student, teacher, "ii")
        for t, level in enumerate(mean):
            for index in np.ndindex(np.asarray(level).shape):
                value = []
                for sign in (h, -h):
                    logits = [np.log(np.asarray(x)) for x in student.levels]
                    logits[t][index] += sign
                    moved = [np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in logits]
                    value.append(
                        -float(PolicyContrast(Policy.from_probs(student.tree, moved), teacher).kl_seq)
                    )
                worst = max(worst, abs((value[0] - value[1]) / (2 * h) - float(np.asarray(level)[index])))
    return Evidence(
        "check", worst < 1e-7, f"mean of the Eq 3 estimator − finite differences of J: at most {worst:.0e}"
    )


@claim(
    "topd.obj",
    TOPD,
    "Eqs 1–4, section 2.2",
    "The objective as an expected sum of token rewards",
    space=STUDENTS,
    relation="==",
    sharpness="identity",
    checks=(_length_is_occupancy, _gradient_of_the_objective),
    hypotheses=(
        "EOS counts as a generated token",
        "supp student ⊆ supp teacher",
        "|y| ≤ T_max, which finite-logit softmax policies meet only by truncation",
    ),
    proof=f"{PROOFS}#obj",
    sketch="Chain rule of KL: the log ratio of a response is the sum of its token log ratios, and its mean "
    "collects the occupancy of each "
    "context times KL(π‖π*) there; normalising the occupancy by its mass E|y| changes nothing.",
    latex=(
        r"\eta(\pi)=-\mathrm{KL}(\pi\|\pi^*)"
        r"=\ell_\pi\,\mathbb{E}_{s\sim d^\pi_{\mathrm{norm}},a\sim\pi}[r(s,a)]"
    ),
    mutants=(
        Mutant(
            "teacher-responses",
            "dies",
            "KL(q‖p) is another divergence",
            {"sides": lambda x: (x.kl_teacher_student_seq, -x.eta)},
        ),
        Mutant(
            "mean-over-tokens",
            "dies",
            "the objective sums over the response",
            {"sides": lambda x: (x.kl_student_teacher_seq, -x.eta / x.expected_length_student)},
        ),
    ),
)
def objective(x: Any) -> tuple[Any, Any]:
    """The expected log ratio of whole responses under the student equals the occupancy-weighted sum of token
    rewards, η(π) = ℓ_π·E_{d_norm}E_π[log(π*/π)], and both are minus the reverse KL of responses.
    """
    law_p, law_q = (_sequence_law(policy) for policy in (x.student, x.teacher))
    return asum(law_p * log(law_p / law_q)), -x.eta


def _sequence_law(policy: Policy) -> Any:
    law = np.asarray(policy.flat_sequence_law)
    return np.moveaxis(law, 0, -1) if law.ndim > 1 else law


# ------------------------------------------------------------------------------------------------ Eq 5


@claim(
    "topd.eq5",
    TOPD,
    "Eq 5, footnote 4",
    "The proximal reward is bounded below",
    hypotheses=("the token has positive probability under the student", "0 < α < 1",),
    space=STATES,
    relation="<=",
    sharpness="tight",
    corrected_by=("topd.eq5/above",),
    proof=f"{PROOFS}#eq5",
    sketch="αρ ≥ 0. Attained in the limit ρ → 0. There is no upper bound of this kind: see topd.eq5/above.",
    latex=r"\tilde r=\log(\alpha\rho+1-\alpha)\ge\log(1-\alpha)",
    mutants=(
        Mutant(
            "a-hundredth-higher",
            "dies",
            "approached as ρ → 0",
            {"factor": exact("99/100")},
        ),
        Mutant(
            "α for 1 − α",
            "dies",
            "the floor is the student's own weight",
            {"sides": lambda x: (-x.topd_min(x.alpha), -log(x.alpha))},
        ),
    ),
)
def floor(x: Any) -> tuple[Any, Any]:
    """On tokens of the student, −r̃ = −log(αρ + 1 − α) is at most −log(1 − α)."""
    return -x.topd_min(x.alpha), -log(1 - x.alpha)


@claim(
    "topd.eq5/above",
    TOPD,
    "Eq 5",
    "The proximal reward is unbounded above",
    hypotheses=("full supports, 0 < α < 1",),
    space=STATES,
    relation="<=",
    nature="ours",
    sharpness="tight",
    proof=f"{PROOFS}#eq5",
    sketch="q(y) ≤ 1 gives ρ ≤ 1/p(y); equality when the teacher puts everything on the token. As p(y) → 0 "
    "this grows without limit, so "
    "r̃ is bounded on one side only.",
    latex=r"\tilde r(y)\le\log\big(1+\alpha(1/p_y-1)\big)",
    mutants=(
        Mutant(
            "without-one-minus-alpha",
            "dies",
            "the mixture keeps 1 − α of the student",
            {"sides": lambda x: (x.topd_max(x.alpha), log(x.alpha / x.min_p))},
        ),
        Mutant(
            "a constant",
            "dies",
            "no bound without the token's probability",
            {"sides": lambda x: (x.topd_max(x.alpha), -log(1 - x.alpha))},
        ),
    ),
)
def ceiling(x: Any) -> tuple[Any, Any]:
    """The largest proximal reward is at most log(1 + α(1/p − 1)), p the student's smallest probability."""
    return x.topd_max(x.alpha), log(1 + x.alpha * (1 / x.min_p - 1))


def _between_one_and_ratio() -> Evidence:
    a, rho = sp.symbols("alpha rho", positive=True)
    m = a * rho + 1 - a
    ok = sp.expand(m - 1 - a * (rho - 1)) == 0 and sp.expand(rho - m - (1 - a) * (rho - 1)) == 0
    return Evidence(
        "symbolic", ok, "αρ+1−α − 1 = α(ρ−1) and ρ − (αρ+1−α) = (1−α)(ρ−1): the mixture lies between 1 and ρ"
    )


@claim(
    "topd.eq5/pointwise",
    TOPD,
    "Eq 5",
    "Mixing shrinks every reward",
    hypotheses=("ρ > 0", "0 < α < 1",),
    space=spaces.scalars(rho=LogBox((), 1e-6, 1e6), alpha=(0.02, 0.98)),
    relation="<=",
    nature="ours",
    sharpness="tight",
    proofs=(_between_one_and_ratio,),
    sketch="αρ + 1 − α lies between 1 and ρ, so its logarithm lies between 0 and log ρ.",
    latex=r"|\log(\alpha\rho+1-\alpha)|\le|\log\rho|",
    mutants=(
        Mutant(
            "share-of-the-log",
            "dies",
            "log is not linear: α·|log ρ| is less for small ρ",
            {"sides": lambda s: (absolute(log(s.alpha * s.rho + 1 - s.alpha)), s.alpha * absolute(log(s.rho)))},
        ),
        Mutant(
            "a-hundredth-to-spare",
            "dies",
            "equality as α → 1",
            {"factor": exact("9/10")},
        ),
    ),
)
def shrinks(s: Any) -> tuple[Any, Any]:
    """|log(αρ + 1 − α)| ≤ |log ρ| for every ratio."""
    return absolute(log(s.alpha * s.rho + 1 - s.alpha)), absolute(log(s.rho))


@claim(
    "topd.eq5/second-moment",
    TOPD,
    "Eq 5",
    "The second moment of the token gradient falls",
    hypotheses=("full supports, 0 < α < 1", "any parametrisation; computed for free logits",),
    space=STATES,
    relation="<=",
    nature="ours",
    sharpness="tight",
    depends_on=("topd.eq5/pointwise",),
    proof=f"{PROOFS}#eq5",
    sketch="Pointwise |r̃| ≤ |r|; multiply the square by ‖∇log π‖² and average. Any parametrisation.",
    latex=r"\mathbb{E}\|\tilde g\|^2\le\mathbb{E}\|g\|^2",
    mutants=(
        Mutant(
            "variance",
            "dies",
            "see topd.eq5/var",
            {"sides": lambda x: (x.topd_gradient_variance(x.alpha), x.opd_gradient_variance)},
        ),
        Mutant(
            "share",
            "dies",
            "α times the original is not enough",
            {"sides": lambda x: (x.topd_gradient_second_moment(x.alpha), x.alpha * x.opd_gradient_second_moment)},
        ),
    ),
)
def second_moment(x: Any) -> tuple[Any, Any]:
    """At every context E‖r̃ ∇log π‖² ≤ E‖r ∇log π‖², gradient in the student's logits."""
    return x.topd_gradient_second_moment(x.alpha), x.opd_gradient_second_moment


@claim(
    "topd.eq5/reward-variance",
    TOPD,
    "Eq 5",
    "The variance of the token reward falls",
    hypotheses=("full supports, 0 < α < 1",),
    space=STATES,
    relation="<=",
    nature="ours",
    sharpness="tight",
    proof=f"{PROOFS}#eq5",
    sketch="r̃ = log(αeʳ + 1 − α) has slope αeʳ/(αeʳ + 1 − α) in (0, 1) as a function of r, and Var φ(r) = "
    "½E(φ(r) − φ(r′))² ≤ Var r for a "
    "1-Lipschitz φ.",
    latex=r"\mathrm{Var}\,\tilde r\le\mathrm{Var}\,r",
    mutants=(
        Mutant(
            "share",
            "dies",
            "the slope is not bounded by α",
            {"sides": lambda x: (x.topd_variance(x.alpha), x.alpha * x.opd_variance)},
        ),
        Mutant(
            "second-moment-for-variance",
            "dies",
            "the mean falls as well",
            {"sides": lambda x: (x.topd_second_moment(x.alpha), x.opd_variance)},
        ),
    ),
)
def reward_variance(x: Any) -> tuple[Any, Any]:
    """At every context Var r̃ ≤ Var r under the student."""
    return x.topd_variance(x.alpha), x.opd_variance


@claim(
    "topd.eq5/var",
    TOPD,
    "section 4.1, as suggested",
    "The variance of the token gradient falls",
    hypotheses=("full supports, 0 < α < 1", "free logits",),
    space=spaces.single_states(full_support=True, vocab=(2, 3), extra=ALPHA),
    relation="<=",
    corrected_by=("topd.eq5/second-moment", "topd.eq5/reward-variance"),
    sketch="Var = E‖g‖² − ‖Eg‖². Mixing shrinks the second moment but may shrink the mean's part faster: "
    "where OPD's gradient hardly varies (all "
    "tokens give the same vector), TOP-D's can.",
    latex=r"\mathrm{Var}(\tilde g)\le\mathrm{Var}(g)",
    note="The paper bounds Var(g̃) by its second moment and concludes that the proximal teacher controls "
    "the variance; this is the comparison "
    "which that suggests.",
)
def gradient_variance(x: Any) -> tuple[Any, Any]:
    """At every context the proximal gradient r̃ ∇log π varies no more than r ∇log π."""
    return x.topd_gradient_variance(x.alpha), x.opd_gradient_variance


@claim(
    "topd.eq5/var-togo",
    TOPD,
    "Eq 3 with the rewards of Eq 5",
    "The second moment of the return-to-go gradient falls",
    hypotheses=("T ≥ 2, full supports", "tabular softmax student",),
    space=spaces.teacher_students(sizes=tuple(s for s in spaces.SMALL if s["horizon"] >= 2), extra=ALPHA),
    relation="<=",
    corrected_by=("topd.togo-var",),
    sketch="Log ratios of one response may cancel along it: their sum can be small on every likely response "
    "while the mixed rewards, shrunk "
    "by different amounts, no longer cancel. Asked here with a factor 100 to spare.",
    latex=r"\mathbb{E}\|\tilde G\|^2\le 100\,\mathbb{E}\|G\|^2",
)
def togo_moment(x: Any) -> tuple[Any, Any]:
    """With the whole return-to-go, the proximal rewards give a second moment at most a hundred times that of
    the log ratios.
    """
    return x.gradient_second_moment("ii", x.alpha), 100 * x.gradient_second_moment("ii")


# ------------------------------------------------------------------------------------------------ Eq 6

RATIOS = spaces.scalars(p=(0.01, 0.99), q=(0.01, 0.99), alpha=(0.05, 0.95))


def _geometric(s: Any, p: Any, q: Any) -> Any:
    return s.alpha * log(q) + (1 - s.alpha) * log(p)


def _normalised(s: Any) -> tuple[Any, Any]:
    """The reward of the normalised geometric mixture over two tokens."""
    z = exp(_geometric(s, s.p, s.q)) + exp(_geometric(s, 1 - s.p, 1 - s.q))
    return _geometric(s, s.p, s.q) - log(z) - log(s.p), s.alpha * (log(s.q) - log(s.p))


@claim(
    "topd.eq6",
    TOPD,
    "Eq 6",
    "Mixing log-probabilities only scales the reward",
    space=RATIOS,
    relation="==",
    sharpness="identity",
    corrected_by=("topd.eq6/normalised",),
    assumption="the geometric mixture is left unnormalised, so that it is no policy",
    unassumed={"sides": _normalised},
    proof=f"{PROOFS}#eq6",
    sketch="α log q + (1−α) log p − log p = α log ρ. The mixture sums to Z = E_p[ρ^α] ≤ 1; normalised, its "
    "reward is α log ρ − log Z(s), which depends "
    "on the state and so matters for returns, though not for the immediate gradient (E∇log p = 0).",
    latex=r"\alpha\log q+(1-\alpha)\log p-\log p=\alpha\log\rho",
    mutants=(
        Mutant(
            "arithmetic",
            "dies",
            "log of the arithmetic mixture is another reward",
            {"sides": lambda s: (log(s.alpha * s.q + (1 - s.alpha) * s.p) - log(s.p), s.alpha * (log(s.q) - log(s.p)))},
        ),
        Mutant(
            "weights-swapped",
            "dies",
            "α weighs the teacher",
            {"sides": lambda s: (s.alpha * log(s.p) + (1 - s.alpha) * log(s.q) - log(s.p), s.alpha * (log(s.q) - log(s.p)))},
        ),
    ),
)
def geometric(s: Any) -> tuple[Any, Any]:
    """Interpolating log-probabilities gives the reward α·r."""
    return _geometric(s, s.p, s.q) - log(s.p), s.alpha * (log(s.q) - log(s.p))


@claim(
    "topd.eq6/normalised",
    TOPD,
    "Eq 6",
    "The geometric mixture has mass at most one",
    hypotheses=("full supports, 0 < α < 1",),
    space=STATES,
    relation="<=",
    nature="ours",
    sharpness="tight",
    proof=f"{PROOFS}#eq6",
    sketch="Hölder with exponents 1/α and 1/(1−α), or concavity of x^α: E_p[ρ^α] ≤ (E_p ρ)^α ≤ 1.",
    latex=r"Z(s)=\mathbb{E}_p[\rho^\alpha]\le1",
    mutants=(
        Mutant(
            "a-hundredth-to-spare",
            "dies",
            "Z = 1 at p = q",
            {"factor": exact("99/100")},
        ),
        Mutant(
            "inverse-power",
            "dies",
            "E_p[ρ^{−α}] is at least one",
            {"sides": lambda x: (_mass(x, -1), 1)},
        ),
    ),
)
def geometric_mass(x: Any) -> tuple[Any, Any]:
    """Z = Σ q^α p^{1−α} ≤ 1: the normalised mixture's reward α·r − log Z is at least α·r."""
    return _mass(x, 1), 1


def _mass(x: Any, sign: int) -> Any:
    """E_p[ρ^{±α}]."""
    alpha = sign * (x.alpha if x.is_exact else np.asarray(x.alpha)[..., None])
    return asum(exp(alpha * log(x.q) + (1 - alpha) * log(x.p)))


# --------------------------------------------------------------------------------------------- support


def _mean_ratio(x: Any) -> tuple[Any, Any]:
    return x.expect_p(x.ratio), 1


def _total_ratio(x: Any) -> tuple[Any, Any]:
    """Under the student the ratio to the teacher has mean one, so that the proximal teacher is a policy seen
    from samples.
    """
    return x.covered_mass, 1


entry(
    "topd.support",
    TOPD,
    "Eqs 2–5",
    "Sampling covers the teacher",
    statement=" ".join((_total_ratio.__doc__ or "").split()),
    space=spaces.single_states(full_support=True),
    sides=_mean_ratio,
    hypotheses=("tokens are drawn from the student itself",),
    relation="==",
    sharpness="identity",
    assumption="tokens are drawn from the full student: no top-p, no top-k",
    unassumed={"space": spaces.single_states(), "sides": _total_ratio},
    mutants=(
        Mutant("truncated sampler", "dies", "what it leaves out is missing", {"space": spaces.single_states(), "sides": _total_ratio}),
        Mutant("inverse ratio", "dies", "E_p[p/q] is at least one, not one", {"sides": lambda x: (x.expect_p(1 / x.ratio), 1)}),
    ),
    proof=f"{PROOFS}#eq5",
    sketch="E_p[ρ] = q(supp p). A truncated sampler leaves out tokens of the teacher: the mean ratio falls "
    "below one by the mass left out, and every "
    "reward computed from untruncated probabilities belongs to another sampler.",
    latex=r"\mathbb{E}_{y\sim p}[\rho]=q(\mathrm{supp}\,p)",
)


def _mean_reward(x: Any) -> tuple[Any, Any]:
    return x.topd_mean(x.alpha), 0


entry(
    "topd.support/mean",
    TOPD,
    "Eq 5",
    "The mean proximal reward is never positive",
    statement="E_p[r̃] ≤ 0, whatever the support: mixing cannot make the "
    "student look better than the teacher "
    "on average.",
    space=spaces.single_states(extra=ALPHA),
    sides=_mean_reward,
    signed=True,
    nature="ours",
    hypotheses=("tokens are drawn from the student", "0 < α < 1"),
    mutants=(
        Mutant("under the teacher", "dies", "E_q[r̃] is positive unless p = q",
               {"sides": lambda x: (x.expect_q(x.topd_reward(x.alpha)), 0), "space": STATES}),
        Mutant("largest reward", "dies", "only the mean is never positive", {"sides": lambda x: (x.topd_max(x.alpha), 0)}),
    ),
    proof=f"{PROOFS}#eq5",
    sketch="Jensen: E_p log(αρ + 1 − α) ≤ log(α E_pρ + 1 − α) ≤ 0, since E_p ρ = q(supp p) ≤ 1. It is "
    "−KL(p‖αq + (1−α)p).",
    latex=r"\mathbb{E}_p[\tilde r]\le0",
)
