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
from opdtheory.simulate.signals import Contribution, Signal, View, World, tree_prompts
from opdtheory.simulate.students import Student, policy_of
from opdtheory.simulate.weights import OnPolicy, Tokens, Weight, divergence_table
from opdtheory.tabular import Policy

__all__ = ["Algorithm", "History", "Snapshot", "gradient", "steps", "train"]


@dataclass(frozen=True)
class Algorithm:
    """One training algorithm.

    ``responses`` None makes exact expected updates; otherwise each step draws ``prompts`` prompts with
    ``responses`` responses each.  ``epochs`` passes reuse the responses of a step, each in ``minibatches``
    updates on disjoint sets of prompts.  ``per_token`` divides by the tokens of a prompt's responses, as the
    objective of TOP-D does, instead of by their number.  ``top_k`` is the size of top-k divergences.
    """

    signal: Signal
    weight: Weight = field(default_factory=OnPolicy)
    optimiser: Optimiser = field(default_factory=lambda: Gradient(1.0))
    rollout: Rollout = field(default_factory=Rollout)
    epochs: int = 1
    responses: int | None = None
    prompts: int = 1
    minibatches: int = 1
    per_token: bool = False
    top_k: int = 20

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs: got {self.epochs!r}, expected at least 1")
        most = 1 if self.responses is None else self.prompts
        if not 1 <= self.minibatches <= most:
            raise ValueError(
                f"minibatches: got {self.minibatches!r}, expected 1 to {most} (drawn prompts; 1 if exact)"
            )


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The end of a step: parameters, policies before and after it, rollout policy, share of tokens kept."""

    step: int
    world: World
    theta: np.ndarray
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
        batch = self.batch
        if batch is not None and not self._cells:
            coefficients, kept = self.coefficients(policy)
            return batch.scatter(coefficients), batch.token_mean(kept)
        tokens = self._tokens(policy, _unchanged, self.drawn.flat > 0)
        table = np.zeros_like(policy.flat)
        taken, total = np.zeros(table.shape[2:]), np.zeros(table.shape[2:])
        for mass, advantages in self._cells:
            coefficients, kept = self.algorithm.weight.coefficients(tokens, advantages)
            table += mass * coefficients
            taken, total = taken + (mass * kept).sum(axis=(0, 1)), total + mass.sum(axis=(0, 1))
        return table, taken / total

    def coefficients(self, policy: Policy) -> tuple[np.ndarray, np.ndarray]:
        """(coefficients of ∇log π, tokens kept) of the drawn tokens at ``policy``; ValueError without any."""
        if self.batch is None:
            raise ValueError("step: formed from tables, expected one with responses")
        tokens = self._tokens(policy, self.batch.along, self.batch.alive)
        return self.algorithm.weight.coefficients(tokens, self.contribution.advantages)

    @cached_property
    def _cells(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Tables of mass and advantage that stand for all tokens where a rule judges each by itself.

        Rules are linear in the advantages of one sign, so that one cell a sign is exact; none for a sample.
        """
        if self.batch is None:
            mass = self.drawn.flat_occupancy * self.drawn.flat
            if self.algorithm.per_token:
                mass = mass / length_by_prompt(self.drawn)
            return [(mass, self.contribution.advantages)]
        if self.algorithm.responses is None and self.algorithm.weight.by_token:
            return self.batch.by_sign(self.contribution.advantages)
        return []

    @cached_property
    def _logs(self) -> tuple[np.ndarray, np.ndarray]:
        return _log(self.drawn.flat), _log(self.view.student.flat)

    def _tokens(
        self, policy: Policy, place: Callable[[np.ndarray], np.ndarray], alive: np.ndarray
    ) -> Tokens:
        log_drawn, log_old = self._logs
        log_now = log_old if policy is self.view.student else _log(policy.flat)

        def divergence(name: str, old: bool) -> np.ndarray:
            other = self.view.student if old else self.drawn
            return place(divergence_table(name, other.flat, policy.flat, self.algorithm.top_k))

        return Tokens(place(log_now), place(log_drawn), place(log_old), alive, divergence)


def begin_step(algorithm: Algorithm, view: View) -> Step:
    """Responses and advantages of one step."""
    once = algorithm.epochs == algorithm.minibatches == 1
    if once and view.rollout is view.student and algorithm.weight.neutral:
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
    if algorithm.per_token:
        batch = batch.per_token()
    return Step(algorithm, view, drawn, batch, signal(view, batch))


def length_by_prompt(policy: Policy) -> np.ndarray:
    """Expected length of the responses to each context's prompt, (contexts, seeds)."""
    tree, d = policy.tree, policy.flat_occupancy
    prompt = tree_prompts(tree)
    total = np.stack([d[prompt == i].sum(axis=0) for i in range(tree.prompts)])
    return (total / d[: tree.prompts])[prompt]


def parts(step: Step) -> list[Step]:
    """The step's updates: itself, or one step for each minibatch of whole prompts."""
    count, batch = step.algorithm.minibatches, step.batch
    if count == 1 or batch is None:
        return [step]
    batches = [batch.part(i, count) for i in range(count)]
    signal = step.algorithm.signal
    return [Step(step.algorithm, step.view, step.drawn, b, signal(step.view, b)) for b in batches]


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
) -> Iterator[Snapshot]:
    """Yield a snapshot before the first step and after each of ``count``.

    ``theta`` has the seeds last; every seed is a run of its own with its own draws.  Raises ValueError if
    parameters stop being finite.
    """
    rng = np.random.default_rng(seed)
    history, state = [theta], None
    policy = policy_of(student, theta)
    yield Snapshot(0, world, theta, policy, policy, policy, np.ones(theta.shape[-1]))
    for k in range(count):
        rollout = algorithm.rollout.policy(student, history, policy, rng)
        view = View(world, rollout, policy, rng, k, count, algorithm.responses is None)
        updates = parts(begin_step(algorithm, view)) * algorithm.epochs
        before, kept = policy, np.zeros(view.seeds)
        for step in updates:
            # a run that diverges overflows here first; the check below says so
            with np.errstate(over="ignore", invalid="ignore"):
                g, share = step.gradient(student, policy)
                change, state = algorithm.optimiser.step(student, policy, g, state)
                theta = theta + change
            if not np.isfinite(theta).all():
                raise ValueError(f"step {k + 1}: a parameter is not finite; expected a smaller learning rate")
            policy = policy_of(student, theta)
            kept = kept + share / len(updates)
        history = [*history, theta][-algorithm.rollout.memory :]
        yield Snapshot(k + 1, world, theta, rollout, before, policy, kept)


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

    Raises ValueError if parameters stop being finite, and for counts that are not positive.
    """
    for name, value in (("count", count), ("every", every), ("seeds", theta.shape[-1])):
        if value < 1:
            raise ValueError(f"{name}: got {value!r}, expected at least 1")
    at: list[int] = []
    rows: dict[str, list[np.ndarray]] = {name: [] for name in measures}
    for snapshot in steps(world, student, theta, algorithm, count, seed=seed):
        theta = snapshot.theta
        if snapshot.step % every == 0 or snapshot.step == count:
            at.append(snapshot.step)
            for name, measure in measures.items():
                rows[name].append(np.broadcast_to(measure(snapshot), (snapshot.seeds,)))
    return History(np.array(at), {name: np.stack(values) for name, values in rows.items()}, theta)


def _log(x: np.ndarray) -> np.ndarray:
    if x.min() > 0:
        return np.log(x)
    with np.errstate(divide="ignore"):
        return np.log(x)


def _unchanged(x: np.ndarray) -> np.ndarray:
    return x
