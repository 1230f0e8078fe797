"""TOP-D: the objective of Eq 7, the returns of Eq 8 and their normalisation, Algorithm 1, and the printed
tables.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from opdtheory import advantages, masks, spaces
from opdtheory.claims.sources import TOPD
from opdtheory.simulate import Adam, TabularStudent, World, train
from opdtheory.simulate.presets import preset
from opdtheory.tabular import Policy, PolicyContrast, TokenTree
from opdtheory.verification.evidence import Evidence
from opdtheory.verification.registry import claim, entry

LONG = tuple(s for s in spaces.SMALL if s["horizon"] == 3)
_LENGTH = 16384

# ------------------------------------------------------------------------------------------------ Eq 7


def _clipped_objective(ratio: Any, advantage: Any, epsilon: float = 0.2) -> Any:
    """min[pÂ, clip(p, 1−ε, 1+ε)Â]."""
    return np.minimum(ratio * advantage, np.clip(ratio, 1 - epsilon, 1 + epsilon) * advantage)


def _gradient_weight() -> Evidence:
    """∂/∂p of min[pÂ, clip(p)Â] is Â times the clip mask of the package, on both sides of both thresholds."""
    rng = np.random.default_rng(2)
    ratio, advantage = rng.uniform(0.5, 1.5, (1, 4000)), rng.normal(size=(1, 4000))
    away = np.minimum(abs(ratio - 0.8), abs(ratio - 1.2)) > 1e-4
    slope = (_clipped_objective(ratio + 1e-6, advantage) - _clipped_objective(ratio - 1e-6, advantage)) / 2e-6
    kept = np.asarray(masks.ppo_from_ratio(ratio, advantage, eps_low=0.2, eps_high=0.2))
    gap = float(np.abs(np.where(away, slope - kept * advantage, 0.0)).max())
    return Evidence(
        "check", gap < 1e-6, f"slope of the clipped objective − masked advantage: at most {gap:.0e}"
    )


def _no_penalty() -> Evidence:
    """One shift at every state: the clipped objective rises all the way to the clip, M_π falls below η(π)
    long before.
    """
    steps, half = 16, np.array([0.5, 0.5])
    shifts = np.linspace(0.0, 0.09, 10)
    objective, bound = [], []
    for u in shifts:
        moved = np.array([0.5 - u, 0.5 + u])
        advantage = np.array([-1.0, 1.0])
        gain = float((half * _clipped_objective(moved / half, advantage)).sum())
        objective.append(gain)
        bound.append(steps * gain - 2 * (2 * u) * steps * steps * u)  # ξ = 2u, Σ TV = T·u
    rises = bool(np.all(np.diff(objective) > 0))
    detail = (
        f"T = {steps}, TV per token up to 0.09: Eq 7 rises to {objective[-1]:.2f}, M − η is "
        f"{bound[1]:.2f} at TV 0.01 and {bound[-1]:.1f} at the end"
    )
    return Evidence("check", rises and bound[1] > 0 > bound[-1], detail)


entry(
    "topd.eq7",
    TOPD,
    "Eq 7, Algorithm 1 line 11",
    "Clipped objective",
    nature="definition",
    checks=(_gradient_weight, _no_penalty),
    hypotheses=("clip range 1 ± ε, ε = 0.2", "advantages held fixed"),
    sketch="The slope of the clipped term is the advantage times the clip mask; no divergence enters, so M_π is not what it raises.",
    statement="The student maximises the token-averaged min[p Â, clip(p, "
    "1−ε, 1+ε) Â], p the ratio of the new "
    "to the sampling policy, over the tokens "
    "of the group's responses to a prompt.",
    latex=(
        r"J(\theta)=\mathbb{E}\Big[\frac{1}{\sum_i|y^i|}\sum_{i,t}\min\{"
        r"p_t^i\hat A_t^i,\mathrm{clip}(p_t^i,1-\epsilon,1+\epsilon)\hat A_t^i\}\Big]"
    ),
    note="There is no total-variation penalty in it: it does not maximise the bound M_π of Theorem 4.9, "
    "and clipping a sampled ratio bounds no divergence.",
)

# ------------------------------------------------------------------------------------------------ Eq 8


def _weights() -> Evidence:
    """The coefficient of r̃_j in Σ_k R̃_k is 1 + H_{n−1} − H_{n−j}, exactly for n ≤ 40, about 11 for the last
    of 16384 tokens.
    """

    def harmonic(n: int) -> Fraction:
        return sum((Fraction(1, i) for i in range(1, n + 1)), Fraction(0))

    for n in range(1, 41):
        columns = np.asarray(advantages.topd_return(np.eye(n)))  # row j: the returns when only r̃_j is 1
        expected = [float(1 + harmonic(n - 1) - harmonic(n - j)) for j in range(1, n + 1)]
        if not np.allclose(columns.sum(axis=1), expected, rtol=1e-12, atol=0):
            return Evidence("check", False, f"weights differ at n = {n}")
    last = 1 + float(np.sum(1.0 / np.arange(1, _LENGTH)))
    return Evidence(
        "check",
        True,
        f"weight of r̃_j over all returns is 1 + H_(n−1) − H_(n−j), n ≤ 40; the last of {_LENGTH} "
        f"tokens weighs {last:.2f}, the first 1",
    )


def _undefined_at_the_end() -> Evidence:
    """At k = |y| the printed average is an empty sum over zero; the convention here is R̃ = r̃."""
    returns = np.asarray(advantages.topd_return([[0.5, -1.0, 2.0]]))[0]
    ok = returns.tolist() == [1.0, 1.0, 2.0]
    return Evidence(
        "check",
        ok,
        f"rewards (0.5, −1, 2) → returns {tuple(returns.tolist())}: the last one has no later rewards "
        f"and 1/(|y| − k) = 1/0",
    )


def _average(x: Any) -> Any:
    return x.gradient_dot("topd_return", "ii")


@claim(
    "topd.eq8",
    TOPD,
    "Eq 8, Algorithm 1 line 7",
    "The length-normalised return as a future return",
    hypotheses=("α = 1, no normalisation", "tabular softmax student",),
    space=spaces.teacher_students(sizes=tuple(s for s in spaces.SMALL if s["horizon"] >= 2)),
    signed=True,
    checks=(_weights, _undefined_at_the_end),
    corrected_by=("opd.thm1.ii",),
    sketch="Dividing the later rewards by their number weighs a reward by when it is looked at: r̃_j counts "
    "1/(n−k) at step k. Later rewards are in effect "
    "weighted up along the response (last token: 1 + H_{n−1}), the later part of the gradient is "
    "shrunk where it matters, and the sum is no gradient of "
    "the KL. At length two the two returns are the same.",
    latex=r"\Big\langle\mathbb{E}\sum_k\nabla\log\pi\,\Big(r_k+\tfrac1{|y|-k}\sum_{j>k}r_j\Big),\ "
    r"-\nabla\mathrm{KL}(\pi\|\pi^*)\Big\rangle\ge0",
    note="Read with α = 1 and no normalisation, so that only Eq 8 is at issue. The last token's return is "
    "undefined as printed (0/0).",
)
def length_normalised(x: Any) -> tuple[Any, Any]:
    """The expected update with the return r_k + mean of the later rewards never points against the gradient
    of −KL(π‖π*).
    """
    return 0, _average(x)


def _squared_cosine(x: Any) -> tuple[Any, Any]:
    dot = x.gradient_dot("topd_return", "ii", x.alpha)
    norms = x.gradient_norm2("topd_return", x.alpha) * x.gradient_norm2("ii")
    return 100 * dot * dot, 81 * norms


@claim(
    "topd.eq8/opposed",
    TOPD,
    "Eq 8 with the rewards of Eq 5",
    "The update is never opposite to the gradient",
    hypotheses=("no normalisation", "tabular softmax student",),
    space=spaces.teacher_students(sizes=LONG[:1], extra={"alpha": (0.05, 0.95)}),
    signed=True,
    given=lambda x: [(x.gradient_dot("topd_return", "ii", x.alpha), "<", 0)],
    corrected_by=("opd.thm1.ii",),
    sketch="Two tokens and three steps are enough for a cosine below −9/10: the first token's return is "
    "dominated by how much worse a third step "
    "looks after averaging, while the KL gradient follows the undivided sum.",
    latex=r"\cos\angle\big(\mathbb{E}\sum_k\nabla\log\pi\,\tilde R_k,\ "
    r"-\nabla\mathrm{KL}(\pi\|\pi^*)\big)\ge-\tfrac9{10}",
)
def opposed(x: Any) -> tuple[Any, Any]:
    """Where the expected TOP-D update has a negative inner product with the gradient of −KL(π‖π*), its cosine
    is at least −9/10 (squared).
    """
    return _squared_cosine(x)


# ------------------------------------------------------------------------------------------ normalisation


def _vanishing_returns() -> Evidence:
    """σ = 0 when student and teacher agree: the normalised advantage is 0 by convention, not 0/0."""
    flat = np.asarray(advantages.group_normalize(np.zeros((8, 5))))
    return Evidence(
        "check", bool((flat == 0).all()), "all rewards 0 (π = π*): every normalised advantage is 0"
    )


def _scale_disappears() -> Evidence:
    """After normalisation α → 0 does not shrink the advantages: they tend to the z-scores of the (ρ − 1)
    returns.
    """
    rng = np.random.default_rng(4)
    ratio = rng.gamma(0.5, 2.0, size=(8, 12))
    limit = np.asarray(advantages.group_normalize(advantages.topd_return(ratio - 1)))
    gaps, spread = [], []
    for alpha in (1e-1, 1e-3, 1e-6):
        returns = advantages.topd_return(np.log(alpha * ratio + 1 - alpha))
        normalised = np.asarray(advantages.group_normalize(returns))
        gaps.append(float(np.abs(normalised - limit).max()))
        spread.append(float(np.std(normalised)))
    ok = gaps[0] > gaps[1] > gaps[2] and gaps[2] < 1e-4 and np.allclose(spread, 1.0, rtol=1e-9, atol=0)
    detail = "spread 1 for every α; distance to the z-scores of the (ρ−1) returns " + ", ".join(
        f"{g:.1e}" for g in gaps
    )
    return Evidence("check", bool(ok), detail + " at α = 1e-1, 1e-3, 1e-6")


entry(
    "topd.norm",
    TOPD,
    "Algorithm 1 line 8, Figure 4",
    "Token-level normalisation",
    nature="definition",
    checks=(_vanishing_returns, _scale_disappears),
    hypotheses=("the tokens of one prompt's group together", "advantage 0 where σ = 0"),
    sketch="A z-score does not see the scale of what it normalises: r̃ = α(ρ−1) + O(α²) has the z-scores of ρ − 1 as α → 0.",
    statement="Returns of all tokens of a prompt's group are centred by their mean and divided by their "
    "standard deviation.",
    latex=r"\hat A_k^i=(\tilde R_k^i-\mu)/\sigma",
    note="σ = 0 when student and teacher agree; define the advantage as 0 there. After division by σ the "
    "scale of the reward is gone, so that in Algorithm 1 α is "
    "no variance controller: it only decides how strongly large ratios are compressed.",
)

# --------------------------------------------------------------------------------------------- Algorithm 1


def _settings_of_the_table() -> Evidence:
    """The preset carries Table 5: 8 responses, 16 mini-batches, one pass, clip 0.2, α = 0.1 on the Eq 8
    return, z-scored.
    """
    algorithm = preset("topd")
    signal: Any = algorithm.signal
    weight: Any = algorithm.weight
    ok = (algorithm.responses, algorithm.minibatches, algorithm.epochs, algorithm.per_token) == (
        8,
        16,
        1,
        True,
    )
    ok = ok and signal.estimator.form == "topd_return" and signal.estimator.alpha == 0.1 and signal.normalise
    parameters = weight.method.parameters
    ok = ok and parameters["eps_low"] == parameters["eps_high"] == 0.2
    return Evidence(
        "check",
        ok,
        "responses 8, mini-batches 16, epochs 1, ε = 0.2, α = 0.1, token average, Eq 8 returns, z-scored",
    )


def _runs() -> Evidence:
    """Algorithm 1 on a small tree, sampled: the KL to the teacher falls, and stays above zero under sampling
    noise.
    """
    tree = TokenTree(vocab=3, horizon=3, eos=2)
    teacher = Policy.random(tree, seed=[1, 1])
    student = TabularStudent(tree)
    start = student.start(Policy.random(tree, seed=[1, 2]), seeds=4)
    history = train(
        World(tree, teacher),
        student,
        start,
        preset("topd", optimiser=Adam(0.05)),
        count=30,
        measures={"kl": _kl},
        seed=0,
    )
    first, last = float(history["kl"][0].mean()), float(history["kl"][-1].mean())
    return Evidence(
        "check",
        0.0 < last < first / 2,
        f"30 steps, 4 runs: reverse KL of responses {first:.3f} → {last:.3f} nats",
    )


def _kl(snapshot: Any) -> Any:
    return PolicyContrast(snapshot.after, snapshot.world.teacher).kl_seq


entry(
    "topd.alg1",
    TOPD,
    "Algorithm 1, Table 5",
    "The algorithm, runnable",
    nature="definition",
    checks=(_settings_of_the_table, _runs),
    hypotheses=("tabular softmax student; settings of Table 5",),
    latex=r"\tilde r_k=\log(\alpha\rho_k+1-\alpha),\quad\tilde R_k=\tilde r_k+\tfrac1{|y|-k}\sum_{j>k}\tilde r_j,\quad\hat A=(\tilde R-\mu)/\sigma",
    sketch="The preset of the package carries the printed settings, and on a small tree it lowers the KL to the teacher.",
    statement="Sample a group of responses to each prompt, reward each "
    "token by log(αρ + 1 − α), add the mean "
    "of the later rewards, normalise over the group's tokens, and "
    "take clipped policy-gradient steps on mini-batches.",
    note="As a preset for exact models (`opdtheory.simulate`) and for language models (`opdtheory run`). "
    "The rewards are those of the sampling policy for all 16 "
    "updates of a batch.",
)

# ------------------------------------------------------------------------------------------------- tables

_EIGHT = {  # Table 2: GRPO, DAPO, OPD, TOP-D, printed difference TOP-D − OPD, in percent
    "AIME24": ("30.10", "32.92", "24.58", "50.42", "25.84"),
    "AIME25": ("22.08", "27.81", "23.33", "34.06", "10.73"),
    "AIME26": ("21.67", "32.29", "25.42", "44.06", "18.64"),
    "AMC23": ("56.33", "65.39", "76.88", "88.13", "11.25"),
    "MATH-500": ("76.83", "81.65", "87.98", "91.23", "3.25"),
    "Olympiad": ("44.92", "44.23", "59.29", "64.67", "5.38"),
}
_SMALL_STUDENT = {  # Tables 3 and 4, teacher 30B then 14B
    "AIME24": ("10.52", "12.29", "8.96", "20.31", "11.35"),
    "AIME25": ("7.19", "11.56", "7.50", "17.71", "10.21"),
    "AIME26": ("4.69", "8.54", "5.94", "13.75", "7.81"),
    "AMC23": ("35.55", "37.50", "45.70", "54.38", "8.68"),
    "MATH-500": ("54.73", "61.88", "71.13", "77.33", "6.20"),
    "Olympiad": ("18.47", "26.63", "35.83", "43.06", "7.23"),
    "AIME24 (14B)": ("10.52", "12.29", "7.81", "12.81", "5.00"),
    "AIME25 (14B)": ("7.19", "11.56", "8.33", "14.69", "6.36"),
    "AIME26 (14B)": ("4.69", "8.54", "5.63", "9.69", "4.06"),
}


def _differences() -> Evidence:
    wrong = [
        name
        for table in (_EIGHT, _SMALL_STUDENT)
        for name, (_, _, opd, topd, printed) in table.items()
        if Fraction(topd) - Fraction(opd) != Fraction(printed)
    ]
    over_dapo = Fraction(_EIGHT["AIME24"][3]) - Fraction(_EIGHT["AIME24"][1])
    ok = not wrong and over_dapo == Fraction("17.5")
    return Evidence(
        "check",
        ok,
        f"all {len(_EIGHT) + len(_SMALL_STUDENT)} printed differences TOP-D − OPD are exact; over "
        f"DAPO on AIME24: {float(over_dapo)} points",
    )


def _behind_rlvr() -> Evidence:
    """“Noticeably behind the RLVR baselines” for the 1.7B student: where OPD is in fact ahead of GRPO."""
    columns = {name: row for name, row in _SMALL_STUDENT.items() if name.startswith("AIME")}
    ahead = [name for name, row in columns.items() if Fraction(row[2]) > Fraction(row[0])]
    behind_dapo = all(Fraction(row[2]) < Fraction(row[1]) for row in columns.values())
    expected = ["AIME25", "AIME26", "AIME25 (14B)", "AIME26 (14B)"]
    detail = f"OPD beats GRPO on {', '.join(ahead)}, is behind DAPO in all {len(columns)} AIME columns"
    return Evidence("check", ahead == expected and behind_dapo, detail)


def _updates() -> Evidence:
    """Table 5: updates a batch = global batch / mini-batch."""
    topd, opd = 512 // 32, 512 // 512
    return Evidence(
        "check",
        (topd, opd) == (16, 1),
        f"TOP-D and RLVR make {topd} updates a batch, OPD {opd}: the comparison also varies the "
        f"number of updates",
    )


entry(
    "topd.tables",
    TOPD,
    "Tables 2–5, sections 5.2 and 5.3",
    "Reported accuracies",
    nature="empirical",
    checks=(_differences, _behind_rlvr, _updates),
    hypotheses=("accuracies as printed, in percent",),
    latex=r"\Delta=\text{TOP-D}-\text{OPD}",
    sketch="Differences are recomputed from the printed accuracies, and the sentence about RLVR is compared with the columns.",
    statement="TOP-D beats OPD and RLVR on every benchmark reported; with the 1.7B student OPD falls "
    "noticeably behind the RLVR baselines.",
    note="The differences are arithmetically right. “Noticeably behind RLVR” holds against DAPO on the "
    "AIME columns, not against GRPO on AIME25 and AIME26. OPD made one "
    "update a batch, TOP-D sixteen, so that the table compares reward and number of updates together.",
)
