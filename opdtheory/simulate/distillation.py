"""Phenomena of distillation runs as data for figures: contraction, variance, end points, directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from opdtheory import bounds
from opdtheory.gradients import ESTIMATORS, Estimator, LinearLogits, mean_field, objective, tabular_moments
from opdtheory.simulate import measures as ms
from opdtheory.simulate.figure_data import lines, report
from opdtheory.simulate.minorizer import minorizer_run
from opdtheory.simulate.optimisers import Adam, Gradient, Natural
from opdtheory.simulate.signals import Distill, Signal, TrOPD, World
from opdtheory.simulate.students import LinearStudent, TabularStudent
from opdtheory.simulate.train import Algorithm, train
from opdtheory.tabular import Policy, TokenTree

__all__ = ["contraction", "end_points", "minorizer_cycle", "tropd_direction", "variance_blow_up"]


def l1_to_teacher(student: Policy, teacher: Policy) -> float:
    """‖π − π*‖₁ of the laws of responses."""
    return float(
        sum(np.abs(a - b).sum() for a, b in zip(student.sequence_law, teacher.sequence_law, strict=True))
    )


def contraction(
    alpha: float = 0.1, horizons: Sequence[int] = (1, 4, 8), count: int = 60, seed: int = 0
) -> dict[str, Any]:
    """Distance to the teacher along exact TOP-D runs, by tokens and by whole responses, over the horizon.

    A natural step of rate 1 on the immediate TOP-D reward moves a tabular student exactly onto the proximal
    teacher απ* + (1−α)π of every context.  ``half`` counts the steps until the distance has halved, on
    disjoint policies (closed forms, up to T = 16384).
    """
    series: dict[str, list[float]] = {}
    step = Distill(Estimator(lam=0, alpha=alpha))
    for horizon in horizons:
        tree = TokenTree(2, horizon)
        policy, teacher = (Policy.random(tree, seed=[seed, i], concentration=0.3) for i in range(2))
        student = TabularStudent(tree)
        run = train(
            World(tree, teacher),
            student,
            student.start(policy),
            Algorithm(step, optimiser=Natural(1.0)),
            count,
            measures={"tv": ms.TEACHER["tv_teacher_seq"]},
        )
        series[f"tokens, T={horizon}"] = (2 * run["tv"][:, 0] / (2 * run["tv"][0, 0])).tolist()
    series["whole responses, any T"] = [(1 - alpha) ** k for k in range(count + 1)]
    scale = [2**i for i in range(15)]
    half: dict[str, list[float]] = {
        "tokens, disjoint policies": [_steps_to_half(alpha, t) for t in scale],
        "whole responses": [_steps_to_half(alpha, 1) for _ in scale],
        "repeating the one-step rate 1 − α^T": [
            min(float(np.log(2) / -np.log1p(-(alpha**t))), 1e16) for t in (1, 2, 4, 8)
        ],
    }
    return {
        "series": series,
        "half": {"horizon": scale, **half},
        "report": report(
            lines(
                "TOP-D distance to the teacher over proximal steps",
                series,
                x="proximal step",
                y="L1 distance of response laws / initial distance",
                log_y=True,
                caption=f"""Exact: every point is computed from the laws of all responses, no sampling.
                Natural-gradient TOP-D with α={alpha} on random two-token teachers: mixing tokens contracts
                the
                law of responses ever more slowly at first as T grows, mixing whole responses at rate 1−α
                whatever T.""",
            ),
            lines(
                "TOP-D steps to halve the distance over the horizon",
                half,
                at=scale,
                x="horizon T (tokens)",
                y="proximal steps",
                log=True,
                caption="""Exact closed forms for policies that never agree on a token. The token-level
                plateau
                lasts about log(T)/α steps; repeating the one-step factor 1−α^T would predict exponentially
                many.""",
            ),
        ),
    }


def _steps_to_half(alpha: float, horizon: int) -> int:
    """First k with 1 − (1 − (1−α)^k)^T ≤ ½: what mixing tokens leaves of disjoint policies' distance."""
    k = 0
    while float(bounds.contraction_token_steps(alpha, horizon, k, 1.0)) > 0.5:
        k += 1
    return k


def minorizer_cycle(count: int = 24, teacher: float = 0.5, start: float = 0.3) -> dict[str, Any]:
    """The printed minorizer with refreshed reward cycles, the corrected one descends; T = 1 and T = 3."""
    one = TokenTree(2, 1)
    q, p = (Policy.from_probs(one, [[[x, 1 - x]]]) for x in (teacher, start))
    longer = TokenTree(2, 3)
    q3, p3 = (Policy.random(longer, seed=i) for i in (1, 0))
    runs = {
        "frozen reward, T=1": minorizer_run(p, q, "frozen", count, reach=256.0),
        "corrected, T=1": minorizer_run(p, q, "corrected", count, penalty_horizon=1),
        "frozen reward, T=3": minorizer_run(p3, q3, "frozen", 3 * count),
        "corrected, T=3": minorizer_run(p3, q3, "corrected", 3 * count),
    }
    kl = {name: [max(v, 1e-17) for v in run["kl"]] for name, run in runs.items()}
    return {
        "runs": runs,
        "report": report(
            lines(
                "KL to the teacher while maximising the improvement bound",
                kl,
                x="maximisation (reward refreshed after each)",
                y="KL(student‖teacher) of responses (nats)",
                log_y=True,
                caption="""Exact KL; each step maximises the lower bound over a line of candidates through
                student and teacher, by grid refinement (V=2). With the reward frozen as printed every step
                raises the bound, yet the KL never settles: at T=1 it alternates between two values for ever.
                With the term −KL(π̃‖π) restored it falls monotonically. Values below 1e-17 are drawn
                there.""",
            )
        ),
    }


def variance_blow_up(
    exponents: Sequence[int] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32),
    alphas: Sequence[float] = (0.1, 0.5),
    rare: float = 1e-12,
    seeds: int = 256,
    responses: int = 4,
    count: int = 60,
    rates: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0),
    seed: int = 0,
) -> dict[str, Any]:
    """Variance of one sampled gradient as the teacher's rarest tokens vanish, and what it does to runs.

    The student is uniform over 4 tokens for 3 steps; the teacher gives one token of every context the
    probability 10^−exponent.
    """
    tree = TokenTree(4, 3)
    policy = Policy.uniform(tree)
    signals = {"OPD": Estimator(lam=0)} | {f"TOP-D α={a}": Estimator(lam=0, alpha=a) for a in alphas}
    variance: dict[str, list[float]] = {name: [] for name in signals}
    relative: dict[str, list[float]] = {name: [] for name in signals}
    for exponent in exponents:
        teacher = _rare_teacher(tree, 10.0**-exponent)
        for name, estimator in signals.items():
            m = tabular_moments(policy, teacher, estimator)
            variance[name].append(float(m.variance))
            relative[name].append(float(m.variance / (m.mean**2).sum()))
    student = TabularStudent(tree)
    world = World(tree, _rare_teacher(tree, rare))
    final: dict[str, list[float]] = {}
    for name, estimator in signals.items():
        for label, runs, drawn in (
            ("worst 5% of seeds", seeds, responses),
            ("exact expected updates", 1, None),
        ):
            ends = final.setdefault(f"{name}, {label}", [])
            for rate in rates:
                algorithm = Algorithm(Distill(estimator), optimiser=Gradient(rate), responses=drawn)
                start = student.start(policy, runs)
                measures = {"tv": ms.TEACHER["tv_teacher_seq"]}
                run = train(
                    world, student, start, algorithm, count, measures=measures, every=count, seed=seed
                )
                ends.append(float(np.quantile(run["tv"][-1], 0.95)))
    limit = {f"bound, α={a}": [3 * 2 * float(bounds.topd_second_moment(a))] * len(exponents) for a in alphas}
    return {
        "variance": {"exponents": list(exponents), **variance},
        "noise_to_signal": relative,
        "bound": {str(a): 3 * 2 * float(bounds.topd_second_moment(a)) for a in alphas},
        "final": final,
        "report": report(
            lines(
                "Gradient variance under rare teacher tokens",
                variance | limit,
                at=exponents,
                x="−log10 of the teacher's rarest probability",
                y="variance of one response's gradient (trace)",
                log_y=True,
                caption="""Exact variances from the recursion over all contexts (V=4, T=3, uniform
                student). The
                log-ratio reward grows without limit as a teacher token vanishes; the proximal reward stays
                below T·2·K(α), drawn as bound.""",
            ),
            lines(
                "Training under a rare teacher token",
                final,
                at=rates,
                x="learning rate",
                y=f"TV of student and teacher responses after {count} steps",
                log=True,
                estimated=[name for name in final if "seeds" in name],
                caption=f"""Teacher probability {rare:g} on one token of every context; {responses}
                responses a
                step. Dashed: 95th percentile over {seeds} sampled runs (each run's TV exact); solid: the
                exact
                expected update. Small α widens the range of rates that do not wreck a run, while its own
                progress per unit of rate is smaller.""",
            ),
        ),
    }


def _rare_teacher(tree: TokenTree, probability: float) -> Policy:
    rest = (1 - probability) / (tree.vocab - 1)
    row = [probability, *[rest] * (tree.vocab - 1)]
    return Policy.from_probs(tree, [np.tile(row, (tree.contexts(t), 1)) for t in range(tree.horizon)])


def end_points(
    instances: int = 8,
    features: int = 3,
    horizon: int = 3,
    count: int = 1500,
    rate: float = 0.05,
    seed: int = 0,
) -> dict[str, Any]:
    """Where immediate and log-ratio-to-go rewards end with shared parameters: η, ∇η and g₁ at the end points.

    Random two-token teachers, students with logits linear in a few Gaussian features, exact updates (Adam).
    """
    tree = TokenTree(2, horizon)
    rows = []
    curves: dict[str, list[float]] = {}
    for instance in range(instances):
        rng = np.random.default_rng([seed, instance])
        shapes = [(tree.contexts(t), tree.vocab, features) for t in range(horizon)]
        linear = LinearLogits(tree, [rng.normal(size=shape) for shape in shapes])
        teacher = Policy.random(tree, seed=rng)
        world, student = World(tree, teacher), LinearStudent(linear)
        row: dict[str, Any] = {"instance": instance}
        for name in ("immediate", "ii"):
            algorithm = Algorithm(Distill(ESTIMATORS[name]), optimiser=Adam(rate))
            run = train(
                world,
                student,
                student.start(np.zeros(features)),
                algorithm,
                count,
                measures={"kl": ms.TEACHER["kl_student_teacher"]},
            )
            theta = run.theta[:, 0]
            row[name] = {
                "kl": -objective(linear, theta, teacher),
                "gradient": float(np.linalg.norm(mean_field(linear, theta, teacher, "ii"))),
                "immediate_field": float(np.linalg.norm(mean_field(linear, theta, teacher, "immediate"))),
            }
            if instance < 3:
                label = "immediate" if name == "immediate" else "to-go"
                curves[f"{label}, instance {instance}"] = run["kl"][:, 0].tolist()
        rows.append(row)
    stride = max(count // 60, 1)
    return {
        "instances": rows,
        "report": report(
            lines(
                "End points of immediate and to-go rewards with shared parameters",
                {name: values[::stride] for name, values in curves.items()},
                at=range(0, count + 1, stride),
                x="step",
                y="KL(student‖teacher) of responses (nats)",
                log_y=True,
                caption=f"""Exact expected updates (Adam, no sampling), tabular teachers, students with
                {features}
                shared parameters. The immediate reward comes to rest where its own mean field vanishes, which
                with shared parameters is not a stationary point of the objective.""",
            ),
            tables=[
                {
                    "caption": "End points: KL, ‖∇η‖ and ‖g₁‖",
                    "columns": ["instance", "KL immediate", "‖∇η‖", "‖g₁‖", "KL to-go", "‖∇η‖", "‖g₁‖"],
                    "rows": [[r["instance"], *r["immediate"].values(), *r["ii"].values()] for r in rows],
                }
            ],
        ),
    }


def opposed_instance(vocab: int = 3, tries: int = 200_000, seed: int = 0) -> tuple[Policy, Policy, float]:
    """A student and a teacher at one context where the gate's mean update opposes the reverse-KL direction.

    Returns (student, teacher, cosine), the smallest cosine of ``tries`` random pairs of probabilities ≥ 0.01.
    """
    tree = TokenTree(vocab, 1)
    p = Policy.random(tree, seed=[seed, 0], batch=(tries,), concentration=0.5).flat[:, 0]
    q = Policy.random(tree, seed=[seed, 1], batch=(tries,), concentration=0.5).flat[:, 0]
    inside = (np.minimum(p.min(axis=0), q.min(axis=0)) > 0.01).nonzero()[0]
    p, q = p[:, inside], q[:, inside]

    def field(weight: np.ndarray) -> np.ndarray:
        return weight - p * weight.sum(axis=0)

    gate, kl = (field(w * np.log(q / p)) for w in (np.minimum(p, q), p))
    norms = np.sqrt((gate**2).sum(axis=0) * (kl**2).sum(axis=0))
    cosine = (gate * kl).sum(axis=0) / np.where(norms > 0, norms, np.inf)
    i = int(np.argmin(cosine))
    student, teacher = (Policy(tree, x[:, i : i + 1]) for x in (p, q))
    return student, teacher, float(cosine[i])


def tropd_direction(count: int = 400, rate: float = 0.5, seed: int = 0) -> dict[str, Any]:
    """KL(student‖teacher) along exact runs of the gate alone, gate plus forward KL, and plain OPD."""
    policy, teacher, cosine = opposed_instance(seed=seed)
    tree = policy.tree
    student = TabularStudent(tree)
    signals: dict[str, Signal] = {
        "OPD": Distill(),
        "gate alone": TrOPD(forward=False),
        "gate and forward KL, all tokens": TrOPD(top_k=tree.vocab),
        "gate and forward KL, top 1": TrOPD(top_k=1),
        "clip at −1": Distill(outlier="clip", tau=-1.0),
        "mask at −1": Distill(outlier="mask", tau=-1.0),
    }
    curves = {
        name: train(
            World(tree, teacher),
            student,
            student.start(policy),
            Algorithm(signal, optimiser=Gradient(rate)),
            count,
            measures={"kl": ms.TEACHER["kl_student_teacher"]},
        )["kl"][:, 0].tolist()
        for name, signal in signals.items()
    }
    return {
        "student": policy.flat[:, 0].tolist(),
        "teacher": teacher.flat[:, 0].tolist(),
        "cosine": cosine,
        "kl": curves,
        "rise": {name: max(v) - v[0] for name, v in curves.items()},
        "report": report(
            lines(
                "TrOPD rules against the reverse-KL direction",
                {name: v[::5] for name, v in curves.items()},
                at=range(0, count + 1, 5),
                x="step",
                y="KL(student‖teacher) (nats)",
                log_y=True,
                caption=f"""Exact expected updates at one context with three tokens, the pair with the most
                opposed directions of a random search (cosine {cosine:.2f}). The gate alone, and the mask,
                first
                climb in KL; the forward-KL term on rejected tokens restores the descent.""",
            )
        ),
    }
