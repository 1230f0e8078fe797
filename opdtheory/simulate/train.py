"""Training runs on the exact world: rollout law, signal, weight and optimiser composed into steps.

One step draws responses from the rollout policy (or takes all of them with their law), computes advantages
once, and makes ``epochs`` updates on them.  The same lines run on sampled and on exact responses; where the
signal and the weight depend on context and action alone, exact updates are formed from tables directly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from opdtheory.simulate.batch import Batch, enumerate_responses, sample_responses
from opdtheory.simulate.optimisers import Gradient, Optimiser
from opdtheory.simulate.rollouts import Rollout
from opdtheory.simulate.signals import Contribution, Signal, View, World
from opdtheory.simulate.students import Student, policy_of
from opdtheory.simulate.weights import OnPolicy, Tokens, Weight, divergence_table
from opdtheory.tabular import Policy

__all__ = ["Algorithm", "History", "Snapshot", "gradient", "steps", "train"]


@dataclass(frozen=True)
class Algorithm:
    """One training algorithm.

    ``responses`` None makes exact expected updates; otherwise each step draws ``prompts`` prompts with
    ``responses`` responses each.  ``epochs`` updates reuse the responses of a step.  ``top_k`` is the size of
    top-k divergences.
    """

    signal: Signal
    weight: Weight = field(default_factory=OnPolicy)
    optimiser: Optimiser = field(default_factory=lambda: Gradient(1.0))
    rollout: Rollout = field(default_factory=Rollout)
    epochs: int = 1
    responses: int | None = None
    prompts: int = 1
    top_k: int = 20

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs: got {self.epochs!r}, expected at least 1")


@dataclass(frozen=True)
class Snapshot:
    """The end of a step: policies before and after it, the rollout policy, and the share of tokens kept."""

    step: int
    world: World
    rollout: Policy
    before: Policy
    after: Policy
    kept: np.ndarray

    @property
    def seeds(self) -> int:
        """Number of runs."""
        return self.after.flat.shape[2]


@dataclass(frozen=True)
class Step:
    """Everything that stays fixed while the responses of one step are reused."""

    algorithm: Algorithm
    view: View
    drawn: Policy
    batch: Batch | None
    contribution: Contribution

    def gradient(self, student: Student, policy: Policy) -> tuple[np.ndarray, np.ndarray]:
        """(gradient over the parameters, share of tokens kept) at ``policy``."""
        table, kept = self.weights(policy)
        if self.contribution.direct is not None:
            table = table + self.contribution.direct
        return student.pull(table - policy.flat * table.sum(axis=0)), kept

    def weights(self, policy: Policy) -> tuple[np.ndarray, np.ndarray]:
        """Expected coefficient of ∇log π of every action, a table, and the share of tokens kept."""
        coefficients, kept = self.coefficients(policy)
        if self.batch is not None:
            return self.batch.scatter(coefficients), self.batch.token_mean(kept)
        mass = self.drawn.flat_occupancy * self.drawn.flat
        return mass * coefficients, (mass * kept).sum(axis=(0, 1)) / mass.sum(axis=(0, 1))

    def coefficients(self, policy: Policy) -> tuple[np.ndarray, np.ndarray]:
        """(coefficients of ∇log π, tokens kept) at ``policy``, of drawn tokens or of whole tables."""
        return self.algorithm.weight.coefficients(self._tokens(policy), self.contribution.advantages)

    @cached_property
    def _logs(self) -> tuple[np.ndarray, np.ndarray]:
        return _log(self.drawn.flat), _log(self.view.student.flat)

    def _tokens(self, policy: Policy) -> Tokens:
        batch, (log_drawn, log_old) = self.batch, self._logs
        log_now = log_old if policy is self.view.student else _log(policy.flat)
        place = batch.along if batch is not None else _unchanged

        def divergence(name: str, old: bool) -> np.ndarray:
            other = self.view.student if old else self.drawn
            return place(divergence_table(name, other.flat, policy.flat, self.algorithm.top_k))

        alive = batch.alive if batch is not None else self.drawn.flat > 0
        return Tokens(place(log_now), place(log_drawn), place(log_old), alive, divergence)


def begin_step(algorithm: Algorithm, view: View) -> Step:
    """Responses and advantages of one step."""
    if algorithm.epochs == 1 and view.rollout is view.student and algorithm.weight.neutral:
        # the only update happens where no ratio has moved and no mask can bind
        algorithm = replace(algorithm, weight=OnPolicy())
    signal, weight = algorithm.signal, algorithm.weight
    if algorithm.responses is None and weight.by_token:
        table = signal.table(view, weight.linear)
        if table is not None:
            return Step(algorithm, view, view.rollout, None, Contribution(table))
    drawn = signal.drawn_from(view)
    if algorithm.responses is None:
        batch = enumerate_responses(drawn)
    else:
        batch = sample_responses(drawn, algorithm.prompts, algorithm.responses, view.rng)
    return Step(algorithm, view, drawn, batch, signal(view, batch))


def gradient(
    world: World, student: Student, theta: np.ndarray, algorithm: Algorithm, *, seed: Any = 0
) -> np.ndarray:
    """The gradient of the first update at ``theta``: exact mean, or one sample for every run."""
    rng, policy = np.random.default_rng(seed), policy_of(student, theta)
    rollout = algorithm.rollout.policy(student, [theta], policy, rng)
    view = View(world, rollout, policy, rng, exact=algorithm.responses is None)
    return begin_step(algorithm, view).gradient(student, policy)[0]


def steps(
    world: World,
    student: Student,
    theta: np.ndarray,
    algorithm: Algorithm,
    count: int,
    *,
    seed: Any = 0,
) -> Iterator[tuple[Snapshot, np.ndarray]]:
    """Yield (snapshot, parameters) before the first step and after each of ``count``.

    ``theta`` has the seeds last; every seed is a run of its own with its own draws.
    """
    rng = np.random.default_rng(seed)
    history, state = [theta], None
    policy = policy_of(student, theta)
    yield Snapshot(0, world, policy, policy, policy, np.ones(theta.shape[-1])), theta
    for k in range(count):
        rollout = algorithm.rollout.policy(student, history, policy, rng)
        view = View(world, rollout, policy, rng, k, count, algorithm.responses is None)
        step, before, kept = begin_step(algorithm, view), policy, np.zeros(view.seeds)
        for _ in range(algorithm.epochs):
            g, share = step.gradient(student, policy)
            change, state = algorithm.optimiser.step(student, policy, g, state)
            theta = theta + change
            policy = policy_of(student, theta)
            kept = kept + share / algorithm.epochs
        history = [*history, theta][-algorithm.rollout.memory :]
        yield Snapshot(k + 1, world, rollout, before, policy, kept), theta


@dataclass(frozen=True)
class History:
    """What was measured: ``values[name]`` has shape (records, seeds), ``at`` the step of every record."""

    at: np.ndarray
    values: Mapping[str, np.ndarray]
    theta: np.ndarray

    def __getitem__(self, name: str) -> np.ndarray:
        """The measured values of one quantity, (records, seeds)."""
        return self.values[name]


def train(
    world: World,
    student: Student,
    theta: np.ndarray,
    algorithm: Algorithm,
    count: int,
    *,
    measures: Mapping[str, Callable[[Snapshot], np.ndarray]],
    every: int = 1,
    seed: Any = 0,
) -> History:
    """Run ``count`` steps and measure at the start, every ``every`` steps and at the end.

    Raises FloatingPointError if parameters stop being finite.
    """
    at: list[int] = []
    rows: dict[str, list[np.ndarray]] = {name: [] for name in measures}
    for snapshot, parameters in steps(world, student, theta, algorithm, count, seed=seed):
        if not np.isfinite(parameters).all():
            raise FloatingPointError(f"step {snapshot.step}: a parameter is no longer finite")
        if snapshot.step % every == 0 or snapshot.step == count:
            at.append(snapshot.step)
            for name, measure in measures.items():
                rows[name].append(np.broadcast_to(measure(snapshot), (snapshot.seeds,)))
    return History(np.array(at), {name: np.stack(values) for name, values in rows.items()}, parameters)


def _log(x: np.ndarray) -> np.ndarray:
    if x.min() > 0:
        return np.log(x)
    with np.errstate(divide="ignore"):
        return np.log(x)


def _unchanged(x: np.ndarray) -> np.ndarray:
    return x
