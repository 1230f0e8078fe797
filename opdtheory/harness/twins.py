"""The training runs of real students repeated with exact updates on a small tabular world.

Each method is the same composition of reward, advantage form, mask and divergence, but its update is the
expectation over every response, so that what remains of a difference between methods is no sampling noise. One
step size is chosen to match a measured number; everything else is then exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .. import masks
from ..gradients import ESTIMATORS, Estimator
from ..simulate import measures
from ..simulate.optimisers import Adam
from ..simulate.presets import exact, preset
from ..simulate.signals import Distill, Terminal, TrOPD, World
from ..simulate.students import TabularStudent
from ..simulate.train import Algorithm, Snapshot, train
from ..simulate.weights import MaskedSequences, Unified
from ..tabular import Policy, PolicyContrast
from ..tabular.policy import softmax
from .counterparts import policies, promises, reward_of, step

ROUNDS = 30
"""Bisection steps for a step size."""


def distillation(
    methods: Sequence[str], config: Mapping[str, Any], kl_per_token: float, share_left: float
) -> dict[str, Any]:
    """Exact curves of each method from the measured KL(student‖teacher) per token on, as many steps as the
    real run took. The common step size of Adam is the one that leaves ``share_left`` of the KL under full
    reverse KL; a method without an exact update here is left out.
    """
    tree, student, teacher = policies(kl_per_token, config["seed"])
    world, table = World(tree, teacher), TabularStudent(tree)
    start = table.start(student)
    watched: dict[str, Callable[[Snapshot], np.ndarray]] = {
        "kl_on_policy": lambda s: measures.TEACHER["kl_student_teacher"](s) / tree.horizon,
        "tv": lambda s: measures.TEACHER["tv_teacher_seq"](s),
        "entropy": lambda s: measures.BASIC["entropy"](s),
        "length": lambda s: measures.BASIC["length"](s),
    }

    def curve(algorithm: Algorithm, rate: float) -> dict[str, list[float]]:
        chosen = replace(exact(algorithm), optimiser=Adam(rate))
        found = train(world, table, start, chosen, config["steps"], measures=watched, seed=config["seed"])
        return {name: found[name][:, 0].tolist() for name in watched}

    def left(rate: float) -> float:
        kl = curve(Algorithm(Distill(ESTIMATORS["immediate"])), rate)["kl_on_policy"]
        return kl[-1] / kl[0]

    rate = bisect(left, share_left, 1e-4, 0.3, decreasing=True)
    known = {name: distiller(name, config) for name in methods}
    return {
        "step_size": rate,
        "curves": {name: curve(a, rate) for name, a in known.items() if a is not None},
    }


def distiller(name: str, config: Mapping[str, Any]) -> Algorithm | None:
    """The tabular algorithm of a distillation method; baselines and the sampling of a token do not change an
    expected update.
    """
    alpha, tau = config["alpha"], config["tau"]
    immediate = ESTIMATORS["immediate"]
    generalised_jsd = Distill(Estimator(lam=0, alpha=alpha))
    signals: dict[str, Any] = {
        "immediate": Distill(immediate),
        "full-rkl": Distill(immediate),
        "total": Distill(ESTIMATORS["i"]),
        "togo": Distill(ESTIMATORS["ii"]),
        "togo-baseline": Distill(ESTIMATORS["ii"]),
        "expected": Distill(ESTIMATORS["iv"]),
        "expected-baseline": Distill(ESTIMATORS["iv"]),
        "lambda": Distill(Estimator(lam=config["lambda"])),
        "topd-immediate": generalised_jsd,
        "full-jsd": generalised_jsd,
        "tropd-clip": Distill(immediate, outlier="clip", tau=tau),
        "tropd-mask": Distill(immediate, outlier="mask", tau=tau),
        "tropd-gate": TrOPD(forward=False),
        "tropd-gate-fkl": TrOPD(top_k=config["topk"]),
        "tropd": TrOPD(top_k=config["topk"], guidance=config["beta_guidance"]),
        "entropy-filter": Distill(immediate, entropy_floor=config["entropy_tau"]),
    }
    if name == "topd":
        estimator = Estimator("topd_return", alpha=alpha)
        return preset("topd", signal=Distill(estimator, normalise=True), minibatches=2)
    return Algorithm(signals[name]) if name in signals else None


def improvement(name: str, updates: int, kl_seq: float, seed: int) -> dict[str, Any]:
    """One round of a policy-optimisation method with exact updates from its own rollouts, the step size
    chosen for the measured sequence KL: outcome, bounds and what the certificates estimate. ``none`` is a
    random pair at that distance.
    """
    per_token = kl_seq / policies(1.0, seed)[0].horizon
    if name == "none":
        return step(per_token, seed)
    tree, behavior, _ = policies(1.0, seed)
    world, table = World(tree, reward=reward_of(tree)), TabularStudent(tree)
    weight = (
        MaskedSequences(delta_max=0.5, delta_avg=0.05, statistic="abs_log_ratio")
        if name == "trm"
        else Unified(masks.METHODS[name])
    )
    algorithm = Algorithm(Terminal(), weight, epochs=updates)

    def after(rate: float) -> Policy:
        chosen = replace(algorithm, optimiser=Adam(rate))
        theta = train(world, table, table.start(behavior), chosen, 1, measures={}, seed=seed).theta
        return Policy(tree, softmax(theta[..., 0]))

    def distance(rate: float) -> float:
        return float(PolicyContrast(behavior, after(rate)).kl_seq)

    rate = bisect(distance, kl_seq, 1e-4, 3.0, decreasing=False)
    return {**promises(behavior, after(rate)), "step_size": rate}


def bisect(f: Callable[[float], float], target: float, low: float, high: float, *, decreasing: bool) -> float:
    """The argument, on a logarithmic scale, at which a monotone ``f`` meets ``target``, or the nearest end."""
    for _ in range(ROUNDS):
        middle = float(np.sqrt(low * high))
        if (f(middle) > target) == decreasing:
            low = middle
        else:
            high = middle
    return float(np.sqrt(low * high))

