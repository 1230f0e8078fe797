"""Responses with weights: all of them with their law, or a sample, in one layout that all updates run on.

A batch holds M responses of S seeds (independent copies of a training run).  Quantities of tokens have shape
(M, T), so that the functions of ``opdtheory.advantages`` and ``opdtheory.masks`` apply to them as they stand;
tables are in the inner layout ``(actions, contexts, seeds)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from opdtheory.gradients.moments import Paths
from opdtheory.tabular import Policy, TokenTree
from opdtheory.tabular.trajectories import sample_trajectories

__all__ = ["Batch", "enumerate_responses", "group_standardise", "sample_responses"]


@dataclass(frozen=True)
class Batch:
    """Responses ``pairs`` (M, T), action·contexts + context of each step, and where they are ``alive``.

    ``seed`` (M,) says to which run a response belongs, ``group`` (M,) numbers the responses to one prompt in
    one run, and ``weight`` (M,) sums to one over the responses of each run (unless divided ``per_token``).
    """

    tree: TokenTree
    seeds: int
    pairs: np.ndarray
    alive: np.ndarray
    seed: np.ndarray
    group: np.ndarray
    weight: np.ndarray

    @cached_property
    def index(self) -> np.ndarray:
        """Position of every token in a flattened table ``(actions, contexts, seeds)``, (M, T)."""
        return self.pairs * self.seeds + self.seed[:, None]

    @cached_property
    def context_index(self) -> np.ndarray:
        """Position of every token's context in a flattened ``(contexts, seeds)`` array, (M, T)."""
        return (self.pairs % self.tree.contexts_total) * self.seeds + self.seed[:, None]

    def along(self, table: np.ndarray) -> np.ndarray:
        """Entries of a table ``(actions, contexts, seeds)`` at every token, 0 after the end."""
        return np.where(self.alive, table.reshape(-1)[self.index], 0.0)

    def at_contexts(self, values: np.ndarray) -> np.ndarray:
        """Values of contexts ``(contexts, seeds)`` at every token, 0 after the end."""
        return np.where(self.alive, values.reshape(-1)[self.context_index], 0.0)

    def returns(self, table: np.ndarray) -> np.ndarray:
        """Sum of a table along every response, (M,)."""
        return self.along(table).sum(axis=1)

    def scatter(self, values: np.ndarray) -> np.ndarray:
        """Weighted sum of token values ``(M, T)`` onto their table entry, ``(actions, contexts, seeds)``."""
        shape = (self.tree.vocab, self.tree.contexts_total, self.seeds)
        return self._sum(self.index, values, shape)

    def scatter_contexts(self, values: np.ndarray) -> np.ndarray:
        """Weighted sum of token values onto their context, ``(contexts, seeds)``."""
        return self._sum(self.context_index, values, (self.tree.contexts_total, self.seeds))

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Weighted mean over responses of values (M,), one number per run."""
        return np.bincount(self.seed, weights=self.weight * values, minlength=self.seeds)

    def token_mean(self, values: np.ndarray) -> np.ndarray:
        """Weighted mean over tokens of values (M, T), one number per run."""
        total = self.mean(np.where(self.alive, values, 0.0).sum(axis=1))
        return total / self.mean(self.alive.sum(axis=1))

    def by_sign(self, values: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Token values (M, T) summed up by table entry and sign: for each sign that occurs the mass of its
        tokens and their mean value, tables ``(actions, contexts, seeds)``.
        """
        cells = []
        for sign in (1.0, 0.0, -1.0):
            mine = np.sign(values) == sign
            mass = self.scatter(mine)
            if mass.any():
                total = self.scatter(values * mine)
                cells.append((mass, np.divide(total, mass, out=np.zeros_like(mass), where=mass > 0)))
        return cells

    def part(self, number: int, count: int) -> Batch:
        """Every ``count``-th prompt of each run, from ``number`` on, weighted to stand for all of them."""
        per_run = (int(self.group.max()) + 1) // self.seeds
        mine = (self.group % per_run) % count == number
        pairs, alive, seed, group = (x[mine] for x in (self.pairs, self.alive, self.seed, self.group))
        weight = self.weight[mine] * (per_run / len(range(number, per_run, count)))
        return Batch(self.tree, self.seeds, pairs, alive, seed, group, weight)

    def per_token(self) -> Batch:
        """Weights divided by the mean length of the responses to the same prompt in the same run."""
        mass = np.bincount(self.group, weights=self.weight)
        length = np.bincount(self.group, weights=self.weight * self.alive.sum(axis=1))
        weight = self.weight * (mass / np.where(length > 0, length, 1.0))[self.group]
        return Batch(self.tree, self.seeds, self.pairs, self.alive, self.seed, self.group, weight)

    def _sum(self, index: np.ndarray, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        # masked tokens carry zero, so that their position (the first entry) receives nothing
        weighted = np.where(self.alive, values, 0.0) * self.weight[:, None]
        size = int(np.prod(shape))
        return np.bincount(index.reshape(-1), weights=weighted.reshape(-1), minlength=size).reshape(shape)


def enumerate_responses(policy: Policy) -> Batch:
    """Every response of every run with its probability under ``policy``, whose batch axis holds the runs."""
    tree, seeds = policy.tree, policy.flat.shape[2]
    pairs, alive = _all_paths(tree)
    law = policy.flat_sequence_law
    chosen = None if law.min() > 0 else law.reshape(-1) > 0
    seed = np.tile(np.arange(seeds), len(pairs))
    prompt = (pairs[:, 0] % tree.contexts_total).repeat(seeds)
    if seeds > 1:
        pairs, alive = pairs.repeat(seeds, axis=0), alive.repeat(seeds, axis=0)
    parts = [pairs, alive, seed, seed * tree.prompts + prompt, law.reshape(-1)]
    if chosen is not None:
        parts = [x[chosen] for x in parts]
    return Batch(tree, seeds, *parts)


@lru_cache(maxsize=8)
def _all_paths(tree: TokenTree) -> tuple[np.ndarray, np.ndarray]:
    paths = Paths(tree)
    return paths.pairs, paths.alive


def sample_responses(policy: Policy, prompts: int, responses: int, rng: np.random.Generator) -> Batch:
    """``responses`` draws from ``policy`` for each of ``prompts`` drawn prompts, in every run.

    Raises ``ValueError`` unless both are positive.
    """
    if prompts < 1 or responses < 1:
        raise ValueError(f"prompts = {prompts}, responses = {responses}: expected positive integers")
    tree, seeds, count = policy.tree, policy.flat.shape[2], prompts * responses
    drawn = sample_trajectories(policy, count, seed=rng, group=responses)
    return Batch(
        tree,
        seeds,
        drawn.pairs.reshape(-1, tree.horizon),
        drawn.alive.reshape(-1, tree.horizon),
        np.repeat(np.arange(seeds), count),
        np.arange(seeds * count) // responses,
        np.full(seeds * count, 1.0 / count),
    )


def group_standardise(values: np.ndarray, batch: Batch, *, scale: bool = True) -> np.ndarray:
    """Values (M,) or (M, T) minus their weighted group mean, divided by the group's standard deviation.

    Over responses for (M,), over tokens for (M, T).  Without ``scale`` only the mean is removed; a group
    without variance gets 0.  With equal weights this is ``advantages.group_normalize``; with the law of all
    responses as weights it is the limit of infinitely many responses to every prompt.
    """
    tokens = values.ndim == 2
    groups = int(batch.group.max()) + 1

    def total(x: np.ndarray) -> np.ndarray:
        per_response = np.where(batch.alive, x, 0.0).sum(axis=1) if tokens else x
        return np.bincount(batch.group, weights=batch.weight * per_response, minlength=groups)

    def spread(x: np.ndarray) -> np.ndarray:
        return x[batch.group][:, None] if tokens else x[batch.group]

    mass = np.maximum(total(np.ones_like(values)), np.finfo(float).tiny)
    centred = values - spread(total(values) / mass)
    if scale:
        deviation = np.sqrt(total(centred * centred) / mass)
        # rounding leaves a constant group a deviation of this order instead of zero
        floor = 1e-12 * np.sqrt(total(values * values) / mass)
        safe = np.where(deviation > floor, deviation, np.inf)
        centred = centred / spread(safe)
    return np.where(batch.alive, centred, 0.0) if tokens else centred
