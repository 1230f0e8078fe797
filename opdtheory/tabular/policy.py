"""Policies over a token tree: a distribution over the actions of every context."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

import flint
import numpy as np

from opdtheory.elementary import exact as exact_number
from opdtheory.tabular import flow
from opdtheory.tabular.table import Table, flat_to_context_levels, flat_to_levels
from opdtheory.tabular.tree import SUM_TOLERANCE, TokenTree

__all__ = ["Policy"]


class Policy(Table):
    """A policy, batched float64 or exact.

    >>> tree = TokenTree(vocab=2, horizon=2)
    >>> mu = Policy.from_probs(tree, [[["1/2", "1/2"]], [["1/3", "2/3"], ["1", "0"]]])
    >>> [str(p) for p in mu.occupancy[1]]
    ['1/2', '1/2']
    """

    # ---- constructors

    @classmethod
    def from_probs(cls, tree: TokenTree, levels: Sequence[Any], *, validate: bool = True) -> Self:
        """Policy with ``levels[t][..., c, a]`` the probability of action ``a`` in context ``c`` of level t.

        Raises ``ValueError`` (level, entry and expectation named) unless every row is a distribution: exactly
        for exact numbers, to 1e-9 for floats.
        """
        return cls.from_levels(tree, levels, validate=validate)

    @classmethod
    def from_logits(cls, tree: TokenTree, levels: Sequence[Any]) -> Self:
        """Softmax policy of logits of the same shapes; -inf switches an action off.

        Raises ``ValueError`` for NaN, +inf, or a context whose logits are all -inf.
        """
        logits = Table.from_levels(tree, levels, validate=False).as_float()
        logits._refuse(np.isnan(logits.flat) | (logits.flat == np.inf), "a logit < inf")
        dead = np.isneginf(logits.flat).all(axis=0)
        logits._refuse(np.broadcast_to(dead, logits.flat.shape), "one logit > -inf in each context")
        return cls(tree, softmax(logits.flat), logits.batch_shape)

    @classmethod
    def uniform(cls, tree: TokenTree, *, exact: bool = False) -> Self:
        """The uniform policy, a single instance."""
        tree.check_memory()
        shape = (tree.vocab, tree.contexts_total)
        if exact:
            flat = np.empty(shape, dtype=object)
            flat[...] = flint.fmpq(1, tree.vocab)
            return cls(tree, flat)
        return cls(tree, np.full(shape, 1.0 / tree.vocab))

    @classmethod
    def random(
        cls,
        tree: TokenTree,
        *,
        seed: Any = 0,
        batch: tuple[int, ...] = (),
        concentration: Any = 1.0,
        zeros: float = 0.0,
    ) -> Self:
        """Independent symmetric Dirichlet rows; small ``concentration`` gives nearly deterministic ones.

        ``concentration`` may be an array of the batch shape.  Each action is switched off with probability
        ``zeros`` (one, drawn at random, always stays).  ``seed`` is what ``numpy.random.default_rng`` takes.
        """
        rng = np.random.default_rng(seed)
        inner_batch = () if batch == () else (int(np.prod(batch)),)
        tree.check_memory(int(np.prod(batch)), tables=2)
        shape = (tree.vocab, tree.contexts_total, *inner_batch)
        alpha = np.broadcast_to(np.asarray(concentration, dtype=np.float64), batch).reshape(inner_batch)
        if not np.all(alpha > 0):
            raise ValueError(f"concentration = {concentration}: expected numbers > 0")
        # log of a gamma variate through its shape + 1 form: no underflow at small concentrations
        logs = np.log(rng.standard_gamma(np.broadcast_to(alpha + 1, shape)))
        logs -= rng.standard_exponential(shape) / alpha
        if not 0 <= zeros <= 1:
            raise ValueError(f"zeros = {zeros!r}: expected a probability in [0, 1]")
        if zeros > 0:
            off = rng.random(shape) < zeros
            keep = rng.integers(tree.vocab, size=shape[1:])
            np.put_along_axis(off, keep[None], False, axis=0)
            logs[off] = -np.inf
        return cls(tree, softmax(logs), batch)

    @classmethod
    def deterministic(cls, tree: TokenTree, actions: Sequence[Any], *, exact: bool = False) -> Self:
        """Policy that takes action ``actions[t][..., c]`` in context ``c`` of level ``t``.

        Raises ``ValueError`` if an action is out of range.
        """
        levels = []
        for t, choice in enumerate(actions):
            chosen = np.asarray(choice)
            whole = chosen.size == 0 or np.issubdtype(chosen.dtype, np.integer)
            if not (whole and np.all((chosen >= 0) & (chosen < tree.vocab))):
                raise ValueError(f"actions[{t}] = {choice}: expected integers in 0..{tree.vocab - 1}")
            levels.append((chosen[..., None] == np.arange(tree.vocab)).astype(np.float64))
        policy = cls.from_probs(tree, levels)
        return policy.as_exact() if exact else policy

    # ---- policies made from policies

    @classmethod
    def mixture(cls, first: Policy, second: Policy, alpha: Any) -> Policy:
        """Token-level mixture ``alpha * first + (1 - alpha) * second``, context by context; 0 ≤ alpha ≤ 1."""
        first, second, a = _mixable(first, second, alpha)
        return cls(first.tree, a * first.flat + (1 - a) * second.flat, first.batch_shape)

    @classmethod
    def sequence_mixture(cls, first: Policy, second: Policy, alpha: Any) -> Policy:
        """The policy whose sequence laws are ``alpha * first + (1 - alpha) * second``, prompt by prompt.

        Its conditionals weigh the two policies by the posterior probability of each having produced the
        prefix; where neither reaches a context the token-level mixture stands.
        """
        first, second, a = _mixable(first, second, alpha)
        tree, one = first.tree, np.ones_like(first.flat[0, 0])
        produced = [flow.forward(tree, x.flat, one) for x in (first, second)]
        w1, w2 = a * produced[0], (1 - a) * produced[1]
        total = w1 + w2
        nowhere = total == 0
        posterior = np.where(nowhere, a + 0 * total, w1 / np.where(nowhere, one, total))
        return cls(tree, posterior * first.flat + (1 - posterior) * second.flat, first.batch_shape)

    def truncated(self, *, top_k: int | None = None, top_p: Any = None) -> Policy:
        """Keep the ``top_k`` likeliest actions, then the fewest of mass ≥ ``top_p``; renormalise.

        Ties go to the lower action index; each cut acts on a distribution.
        Raises ``ValueError`` for ``top_k`` outside 1..vocab and ``top_p`` outside (0, 1].
        """
        x, kept = self.flat, self
        if top_k is not None:
            whole = isinstance(top_k, (int, np.integer)) and not isinstance(top_k, bool)
            if not (whole and 1 <= top_k <= self.tree.vocab):
                raise ValueError(f"top_k = {top_k!r}: expected an integer in 1..{self.tree.vocab}")
            kept = self._renormalised(self._rank(x) < top_k)
        if top_p is not None:
            level = exact_number(top_p) if self.is_exact else float(top_p)
            if not 0 < level <= 1:
                raise ValueError(f"top_p = {top_p!r}: expected a mass in (0, 1]")
            x = kept.flat
            rank = self._rank(x)
            likelier = rank[None] < rank[:, None]  # (action, other action, contexts[, batch])
            before = np.where(likelier, x[None], x[None] * 0).sum(axis=1)
            kept = kept._renormalised(before < level)
        return kept

    def _rank(self, x: np.ndarray) -> np.ndarray:
        """Position of each action in its context by falling probability, ties by action index."""
        public = list(np.argsort(self.tree.action_order))
        order = np.argsort(-x[public], axis=0, kind="stable")
        return np.argsort(order, axis=0, kind="stable")[list(self.tree.action_order)]

    def _renormalised(self, keep: np.ndarray) -> Policy:
        x = np.where(keep, self.flat, self.flat * 0)
        return self._like(x / x.sum(axis=0))

    def tempered(self, temperature: float) -> Policy:
        """Probabilities to the power 1/temperature, renormalised (float policies)."""
        if not temperature > 0:
            raise ValueError(f"temperature = {temperature!r}: expected a number > 0")
        with np.errstate(divide="ignore"):
            return self._like(softmax(np.log(self.as_float().flat) / temperature))

    def perturbed(self, scale: Any, *, seed: Any = 0) -> Policy:
        """Logits plus independent normal noise of standard deviation ``scale`` (a number or the batch shape).

        Zeros stay zero.  A single instance with an array of scales gives a batch.
        """
        width = np.asarray(scale, dtype=np.float64)
        if not np.all(width >= 0):
            raise ValueError(f"scale = {scale}: expected numbers >= 0")
        base = self.as_float().broadcast(np.broadcast_shapes(self.batch_shape, width.shape))
        noise = np.random.default_rng(seed).standard_normal(base.flat.shape)
        width = np.broadcast_to(width, base.batch_shape).reshape(base.flat.shape[2:])
        with np.errstate(divide="ignore"):
            return base._like(softmax(np.log(base.flat) + width * noise))

    # ---- checks

    def validate(self) -> None:
        """Raise ``ValueError`` at the first entry that is no probability or row that does not sum to one."""
        sums = self.flat.sum(axis=0)
        if self.is_exact and any(isinstance(v, flint.arb) for v in self.flat.ravel()):
            negative = np.frompyfunc(lambda v: bool(v < 0), 1, 1)(self.flat).astype(bool)
            self._refuse(negative, "a probability in [0, 1]")
            wrong = ~np.frompyfunc(lambda v: flint.arb(v).contains(1), 1, 1)(sums).astype(bool)
        else:
            super().validate()
            self._refuse(self.flat < 0, "a probability in [0, 1]")
            slack: Any = 0 if self.is_exact else SUM_TOLERANCE
            wrong = np.asarray(np.abs(sums - 1) > slack, dtype=bool)
        if wrong.any():
            totals = flat_to_context_levels(self.tree, sums, self.batch_shape)
            for t, bad in enumerate(flat_to_context_levels(self.tree, wrong, self.batch_shape)):
                where = np.argwhere(bad)
                if len(where):
                    at = tuple(int(i) for i in where[0])
                    prompt, tokens = self.tree.context_label(t, at[-1])
                    raise ValueError(
                        f"levels[{t}][{', '.join(map(str, at))}] (prompt {prompt}, context {tokens}) sums to "
                        f"{totals[t][at]}: expected 1"
                    )

    # ---- occupancy and sequence laws

    @cached_property
    def flat_occupancy(self) -> np.ndarray:
        """Probability of being at each context, inner layout ``(contexts_total[, batch])``."""
        return flow.forward(self.tree, self.flat, self.tree.weights(self.is_exact, self.batch_axes))

    @cached_property
    def occupancy(self) -> list[np.ndarray]:
        """Probability of being at each context; ``occupancy[t]`` has shape ``(batch..., contexts(t))``.

        Level ``t`` sums to the probability that the sequence has more than ``t`` tokens.
        """
        return flat_to_context_levels(self.tree, self.flat_occupancy, self.batch_shape)

    def _out(self, x: Any) -> Any:
        """Per-instance result in the public batch shape."""
        return x.reshape(self.batch_shape) if isinstance(x, np.ndarray) and self.batch_axes else x

    @cached_property
    def expected_length(self) -> Any:
        """Mean number of generated tokens, EOS counted; shape = batch axes."""
        return self._out(self.flat_occupancy.sum(axis=0))

    @cached_property
    def normalised_occupancy(self) -> list[np.ndarray]:
        """Occupancy divided by the expected length, a distribution over all contexts (TOP-D, Def. 4.7)."""
        d = self.flat_occupancy
        return flat_to_context_levels(self.tree, d / d.sum(axis=0), self.batch_shape)

    @cached_property
    def flat_sequence_law(self) -> np.ndarray:
        """Probabilities of complete sequences in the order of ``flow.sequence_entries``."""
        return flow.ending(self.tree, self.flat_occupancy, self.flat)

    @cached_property
    def sequence_law(self) -> list[np.ndarray]:
        """Probabilities of complete sequences on their ending actions, zero elsewhere; level shapes."""
        flat = flow.place_on_endings(self.tree, self.flat_sequence_law)
        return flat_to_levels(self.tree, flat, self.batch_shape)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the first axis; -inf gives 0, as do results below the normal range of float64."""
    z = logits - logits.max(axis=0)
    np.exp(z, out=z)
    z /= z.sum(axis=0)
    # subnormal probabilities would make ratios overflow
    z[z < np.finfo(np.float64).tiny] = 0.0
    return z


def _mixable(first: Policy, second: Policy, alpha: Any) -> tuple[Policy, Policy, Any]:
    """Both policies in one kind of number and shape, and the weight in that kind."""
    if first.tree != second.tree:
        raise ValueError(f"policies on {first.tree} and {second.tree}: expected one tree")
    exact_numbers = first.is_exact or second.is_exact
    first, second = (x.as_exact() if exact_numbers else x for x in (first, second))
    shape = np.broadcast_shapes(first.batch_shape, second.batch_shape)
    first, second = first.broadcast(shape), second.broadcast(shape)
    if exact_numbers:
        weight: Any = exact_number(alpha)
        inside = 0 <= weight <= 1
    else:
        weight = np.asarray(alpha, dtype=np.float64)
        if weight.ndim:
            weight = np.broadcast_to(weight, shape).reshape(-1)
        inside = bool(np.all((weight >= 0) & (weight <= 1)))
    if not inside:
        raise ValueError(f"alpha = {alpha}: expected a weight in [0, 1]")
    return first, second, weight
