"""Bias against variance: which gradient estimator of distillation deserves how many samples.

For random tabular students and teachers at a prescribed distance, the exact bias², variance, mean
squared error and efficiency of every estimator, the λ-family between immediate and log-ratio-to-go
included, and the sample size from which an unbiased estimator wins.  Squared errors are relative to
‖∇η‖², η = −KL(student‖teacher) of sequences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from opdtheory.gradients.estimators import ESTIMATORS, Estimator
from opdtheory.gradients.moments import Moments, crossover, enumerated_moments, tabular_moments
from opdtheory.gradients.parameters import LinearLogits, policy_at
from opdtheory.tabular import Policy, TokenTree, flow
from opdtheory.tabular.policy import softmax

__all__ = ["best_lambda", "contestants", "frontier", "teacher_at_distance"]

_BISECTIONS = 60
QUARTILES = (0.25, 0.5, 0.75)


def teacher_at_distance(student: Policy, kl_per_token: float, seed: Any = 0) -> Policy:
    """A teacher with KL(student‖teacher) of sequences = ``kl_per_token`` · expected length, for every
    instance.

    The teacher is the student tilted in a random direction, q ∝ p·exp(s·n) with Gaussian n.  In every context
    KL(p‖q) = log E_p[e^{sn}] − s E_p[n] grows with s from 0 without bound (unless p is deterministic),
    so that s is found by bisection.

    Raises ``ValueError`` if the distance is not positive or the student is deterministic on all it visits.
    """
    if not 0 < kl_per_token < np.inf:
        raise ValueError(f"kl_per_token: got {kl_per_token!r}, expected a positive number of nats")
    noise = np.random.default_rng(seed).normal(size=student.flat.shape)
    p, d = student.flat, student.flat_occupancy
    length = d.sum(axis=0)
    with np.errstate(divide="ignore"):
        log_p = np.log(p)

    def distance(scale: Any) -> Any:
        shift = scale * noise
        tilted = log_p + shift
        top = tilted.max(axis=0)
        kl = top + np.log(np.exp(tilted - top).sum(axis=0)) - flow.contract(p, shift)
        return (d * kl).sum(axis=0) / length

    high = np.ones_like(length)
    for _ in range(_BISECTIONS):
        short = distance(high) < kl_per_token
        if not np.any(short):
            break
        high = np.where(short, 2 * high, high)
    else:
        raise ValueError(
            "student: deterministic wherever it goes, expected one that a teacher can differ from"
        )
    low = np.zeros_like(high)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        short = distance(middle) < kl_per_token
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    return Policy(student.tree, softmax(log_p + high * noise), student.batch_shape)


def contestants(lambdas: Sequence[float] = (0.25, 0.5, 0.75, 0.9)) -> dict[str, Estimator]:
    """The estimators to compare, by name: forms (ii)–(v), immediate, λ-family, each without and with
    baselines.

    ``to_go`` sums sampled rewards, ``expected`` conditional means of the later ones, ``value`` replaces
    the whole future by its mean (what a perfect critic would give); λ=0 is immediate and λ=1 unbiased.
    """
    table = {}
    for lam in (0.0, *lambdas, 1.0):
        for baseline in ("none", "value", "optimal"):
            for form in ("to_go", "expected", "value") if lam > 0 else ("to_go",):
                table[f"{form}/lambda={lam:g}/{baseline}"] = Estimator(form, lam=lam, baseline=baseline)
    return table


def frontier(
    tree: TokenTree,
    kl_per_token: float,
    *,
    instances: int = 100,
    seed: int = 0,
    concentration: float = 1.0,
    samples: Sequence[int] = (1, 16, 256, 4096),
    estimators: Mapping[str, Estimator] | None = None,
    features: int | None = None,
) -> dict[str, Any]:
    """Exact comparison of estimators over random instances at one distance; quartiles over the instances.

    Students have symmetric Dirichlet rows of the given ``concentration``, one parameter per logit; or, with
    ``features``, logits linear in that many parameters shared by all contexts (Gaussian features; every
    sequence is then enumerated).  Of every estimator: ``bias2`` and ``variance`` of one sample and
    ``mse`` for each number of samples, all divided by ‖∇η‖²; ``efficiency`` for each; ``crossover``
    with (ii) and (iv), the sample size from which that unbiased form has the smaller error (0: always,
    inf: never). ``wins`` counts, for each number of samples, how often an estimator is the best of
    those that need no critic and no optimal baseline.
    """
    table = dict(contestants() if estimators is None else estimators)
    wanted = {**table, "ii": ESTIMATORS["ii"], "iv": ESTIMATORS["iv"]}
    if features is None:
        student = Policy.random(tree, seed=[seed, 0], batch=(instances,), concentration=concentration)
        teacher = teacher_at_distance(student, kl_per_token, seed=[seed, 1])
        moments = {name: tabular_moments(student, teacher, estimator) for name, estimator in wanted.items()}
    else:
        moments = _shared_moments(tree, kl_per_token, instances, seed, features, wanted)
    norm2 = (moments["ii"].target ** 2).sum(axis=-1)
    rows = {}
    for name in table:
        m = moments[name]
        rows[name] = {
            "bias2": _quartiles(m.bias2 / norm2),
            "variance": _quartiles(m.variance / norm2),
            "mse": {str(n): _quartiles(m.mse(n) / norm2) for n in samples},
            "efficiency": {str(n): _quartiles(m.efficiency(n)) for n in samples},
            "crossover": {other: _quartiles(crossover(m, moments[other])) for other in ("ii", "iv")},
        }
    plain = [name for name, e in table.items() if e.form != "value" and e.baseline == "none"]
    wins = {}
    for n in samples if plain else ():
        best = np.argmin([moments[name].mse(n) for name in plain], axis=0)
        wins[str(n)] = {name: int((best == i).sum()) for i, name in enumerate(plain)}
    return {
        "vocab": tree.vocab,
        "horizon": tree.horizon,
        "kl_per_token": kl_per_token,
        "features": features,
        "instances": instances,
        "estimators": rows,
        "wins": wins,
    }


def _shared_moments(
    tree: TokenTree,
    kl_per_token: float,
    instances: int,
    seed: int,
    features: int,
    table: Mapping[str, Estimator],
) -> dict[str, Moments]:
    collected: dict[str, list[Moments]] = {name: [] for name in table}
    for instance in range(instances):
        rng = np.random.default_rng([seed, instance])
        shapes = [(tree.contexts(t), tree.vocab, features) for t in range(tree.horizon)]
        parameters = LinearLogits(tree, [rng.normal(size=shape) for shape in shapes])
        # logits of unit scale whatever the number of features
        theta = rng.normal(size=features) / np.sqrt(features)
        teacher = teacher_at_distance(policy_at(parameters, theta), kl_per_token, seed=rng)
        for name, estimator in table.items():
            collected[name].append(enumerated_moments(parameters, theta, teacher, estimator))
    return {
        name: Moments(
            np.stack([m.mean for m in every]),
            np.array([m.second_moment for m in every]),
            np.stack([m.target for m in every]),
            table[name].unbiased,
        )
        for name, every in collected.items()
    }


def best_lambda(
    student: Policy, teacher: Policy, samples: Sequence[int], lambdas: Sequence[float], form: str = "to_go"
) -> np.ndarray:
    """λ with the least mean squared error for each number of samples and instance, shape (len(samples),
    batch...).
    """
    family: list[Moments] = [tabular_moments(student, teacher, Estimator(form, lam=lam)) for lam in lambdas]
    return np.stack([np.asarray(lambdas)[np.argmin([m.mse(n) for m in family], axis=0)] for n in samples])


def _quartiles(values: np.ndarray) -> list[float]:
    # an order statistic, not an interpolation: infinite values stay meaningful
    return [float(v) for v in np.quantile(values, QUARTILES, method="inverted_cdf")]
