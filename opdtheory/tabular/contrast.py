"""Two policies on one token tree: occupancies, sequence laws, divergences of contexts and of sequences."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from opdtheory.elementary import absolute, amax, amin, exact, sqrt
from opdtheory.tabular import flow, local
from opdtheory.tabular.endings import AllEndings, Endings, blocks
from opdtheory.tabular.policy import Policy
from opdtheory.tabular.table import flat_to_context_levels, flat_to_levels
from opdtheory.tabular.tree import TokenTree

__all__ = ["PolicyContrast"]

_LARGE = 1 << 16  # numbers in a table from which sums over sequences are taken block by block
_HUGE = 1 << 20  # numbers in a table from which blocks are made again for every sum instead of kept


class PolicyContrast:
    """Behaviour policy μ and target policy π; all quantities are lazy and cached.

    Every attribute without other remark has the batch shape.  Divergences are in nats and written with their
    direction; maxima run over every context of the tree, the ``reachable_*`` ones over those that μ visits.
    Under missing support (μ = 0 < π) expectations under μ are sums over the support of μ and divergences that
    see the missing mass are inf.
    """

    tree: TokenTree
    behavior: Policy
    target: Policy
    batch_shape: tuple[int, ...]

    def __init__(self, behavior: Policy, target: Policy) -> None:
        self.tree = behavior.tree
        self.behavior, self.target = aligned(self.tree, behavior, target)
        self.batch_shape = self.behavior.batch_shape

    @property
    def horizon(self) -> int:
        """T."""
        return self.tree.horizon

    @property
    def vocab(self) -> int:
        """Number of actions."""
        return self.tree.vocab

    def _out(self, x: Any) -> Any:
        return x.reshape(self.batch_shape) if isinstance(x, np.ndarray) and self._mu.ndim > 2 else x

    def _sum(self, x: np.ndarray) -> Any:
        return self._out(x.sum(axis=0)) if len(x) else self._out(self._zero)

    def _expect(self, weights: np.ndarray, x: np.ndarray) -> Any:
        """Σ weights · x over contexts, with 0·inf = 0."""
        return self._sum(weights * x if self._finite else local.weigh(weights, x))

    @cached_property
    def _finite(self) -> bool:
        """True if all probabilities are positive floats, so that no divergence of a context is infinite."""
        return self._positive and bool(self._pi.min() > 0)

    def _sequence_sum(self, terms: Callable[[Any], np.ndarray]) -> Any:
        """Sum over complete sequences of ``terms(e)``, ``e`` an ``Endings`` of all of them or of a block."""
        if not self.is_large:
            return self._sum(terms(AllEndings(self)))
        found = self._blocks if self._mu.size <= _HUGE else blocks(self)
        return self._out(sum(terms(block).sum(axis=0) for block in found))

    @property
    def is_large(self) -> bool:
        """True if arrays over all actions or sequences would leave the cache and are avoided."""
        return not self.is_exact and self._mu.size > _LARGE

    @cached_property
    def _blocks(self) -> list[Endings]:
        return list(blocks(self))

    def _max(self, x: np.ndarray) -> Any:
        return self._out(amax(x, 0) if x.dtype == object else x.max(axis=0))

    def _min(self, x: np.ndarray) -> Any:
        return self._out(amin(x, 0) if x.dtype == object else x.min(axis=0))

    @property
    def _zero(self) -> Any:
        return self._mu[0, 0] * 0

    @property
    def is_exact(self) -> bool:
        """True if the numbers are rationals or balls."""
        return self.behavior.is_exact

    @property
    def _mu(self) -> np.ndarray:
        return self.behavior.flat

    @property
    def _pi(self) -> np.ndarray:
        return self.target.flat

    @cached_property
    def _diff(self) -> np.ndarray:
        return self._pi - self._mu

    @cached_property
    def _supported_diff(self) -> np.ndarray:
        """π - μ on the support of μ, 0 elsewhere."""
        return self._diff if self._covered else self._diff * (self._mu > 0)

    @cached_property
    def _positive(self) -> bool:
        """True if every probability of μ is positive."""
        return not self.is_exact and bool(self._mu.min() > 0)

    @property
    def _weights(self) -> np.ndarray:
        return self.tree.weights(self.is_exact, self.behavior.batch_axes)

    @cached_property
    def _covered(self) -> bool:
        """True if supp π ⊆ supp μ at every context of every instance."""
        if self._positive:
            return True
        return not bool(np.any((self._mu == 0) & (self._pi > 0)))

    @cached_property
    def _context_shift(self) -> np.ndarray:
        """Occupancy under π minus that under μ, by its own recursion: no cancellation for close policies."""
        tree, mu, d, pi = self.tree, self._mu, self._d, self._pi
        out = np.empty(mu.shape[1:], dtype=mu.dtype)
        out[: tree.prompts] = self._zero
        b = tree.branching
        for t in range(tree.horizon - 1):
            here = tree.level_slice(t)
            step = out[here] * pi[:b, here]
            step += d[here] * (pi[:b, here] - mu[:b, here])
            out[tree.level_slice(t + 1)] = step.reshape((-1, *mu.shape[2:]))
        return out

    @cached_property
    def _context_remainder(self) -> np.ndarray:
        """Second-order part of the occupancy shift: n(c) = d^π(c) - d^μ(c) - Σ_j μ_{<j}(π_j - μ_j)μ_{>j}."""
        tree, mu, pi, shift = self.tree, self._mu, self._pi, self._context_shift
        out = np.empty(mu.shape[1:], dtype=mu.dtype)
        out[: tree.prompts] = self._zero
        b = tree.branching
        for t in range(tree.horizon - 1):
            here = tree.level_slice(t)
            step = out[here] * mu[:b, here]
            step += shift[here] * (pi[:b, here] - mu[:b, here])
            out[tree.level_slice(t + 1)] = step.reshape((-1, *mu.shape[2:]))
        return out

    @cached_property
    def _d(self) -> np.ndarray:
        return self.behavior.flat_occupancy

    # ---- sequence measures, in the order of flow.sequence_entries

    @cached_property
    def _law_mu(self) -> np.ndarray:
        return self.behavior.flat_sequence_law

    @cached_property
    def _law_pi(self) -> np.ndarray:
        return self.target.flat_sequence_law

    @cached_property
    def _law_shift(self) -> np.ndarray:
        """π(y) - μ(y)."""
        return flow.ending(self.tree, self._context_shift, self._pi) + flow.ending(
            self.tree, self._d, self._diff
        )

    @cached_property
    def _flat_remainder(self) -> np.ndarray:
        """n(y) = π(y) - μ(y) - Σ_t μ_{<t}(π_t - μ_t)μ_{>t}."""
        first = flow.ending(self.tree, self._context_remainder, self._mu)
        return first + flow.ending(self.tree, self._context_shift, self._diff)

    @cached_property
    def _sequence_log_ratio(self) -> np.ndarray:
        """log W(y) on the support of μ, 0 outside."""
        return local.log_ratio(self._law_mu, self._law_pi, None if self.is_exact else self._law_shift)

    def _levels_of_sequences(self, values: np.ndarray) -> list[np.ndarray]:
        return flat_to_levels(self.tree, flow.place_on_endings(self.tree, values), self.batch_shape)

    # ---- divergences at contexts

    @property
    def _tables(self) -> tuple[np.ndarray, ...]:
        """μ and π, and π - μ unless it would be a large array."""
        return (self._mu, self._pi) if self.is_large else (self._mu, self._pi, self._diff)

    @cached_property
    def _tv(self) -> np.ndarray:
        return local.in_chunks(local.tv, 1, *self._tables)[0]

    @cached_property
    def _kls(self) -> tuple[np.ndarray, ...]:
        return local.in_chunks(local.kl_family, 3, *self._tables)

    @cached_property
    def _chi2(self) -> np.ndarray:
        return local.in_chunks(local.chi2, 1, *self._tables)[0]

    @cached_property
    def _hellinger2(self) -> np.ndarray:
        return local.in_chunks(local.hellinger2, 1, *self._tables)[0]

    def _contexts_public(self, x: np.ndarray) -> list[np.ndarray]:
        return flat_to_context_levels(self.tree, x, self.batch_shape)

    @cached_property
    def tv(self) -> list[np.ndarray]:
        """TV(μ, π) of every context; ``tv[t]`` has shape ``(batch..., contexts(t))``."""
        return self._contexts_public(self._tv)

    @cached_property
    def kl(self) -> list[np.ndarray]:
        """KL(μ‖π) of every context."""
        return self._contexts_public(self._kls[0])

    @cached_property
    def reverse_kl(self) -> list[np.ndarray]:
        """KL(π‖μ) of every context."""
        return self._contexts_public(self._kls[1])

    @cached_property
    def chi2(self) -> list[np.ndarray]:
        """χ²(π‖μ) of every context."""
        return self._contexts_public(self._chi2)

    @cached_property
    def hellinger2(self) -> list[np.ndarray]:
        """Squared Hellinger distance of every context."""
        return self._contexts_public(self._hellinger2)

    def _reachable_max(self, x: np.ndarray) -> Any:
        return self._max(np.where(self._d > 0, x, self._zero))

    @cached_property
    def tv_max(self) -> Any:
        """max_c TV."""
        return self._max(self._tv)

    @cached_property
    def tv_sum(self) -> Any:
        """Σ_t E_{d_t^μ}[TV(c_t)]."""
        return self._sum(self._d * self._tv)

    @cached_property
    def kl_max(self) -> Any:
        """max_c KL(μ‖π)."""
        return self._max(self._kls[0])

    @cached_property
    def reverse_kl_max(self) -> Any:
        """max_c KL(π‖μ)."""
        return self._max(self._kls[1])

    @cached_property
    def chi2_max(self) -> Any:
        """max_c χ²(π‖μ)."""
        return self._max(self._chi2)

    @cached_property
    def hellinger2_max(self) -> Any:
        """max_c of the squared Hellinger distance."""
        return self._max(self._hellinger2)

    @cached_property
    def reachable_tv_max(self) -> Any:
        """Maximum of TV over contexts that μ visits."""
        return self._reachable_max(self._tv)

    @cached_property
    def reachable_kl_max(self) -> Any:
        """Maximum of KL(μ‖π) over contexts that μ visits."""
        return self._reachable_max(self._kls[0])

    @cached_property
    def reachable_reverse_kl_max(self) -> Any:
        """Maximum of KL(π‖μ) over contexts that μ visits."""
        return self._reachable_max(self._kls[1])

    @cached_property
    def reachable_chi2_max(self) -> Any:
        """Maximum of χ²(π‖μ) over contexts that μ visits."""
        return self._reachable_max(self._chi2)

    # ---- divergences of sequences

    @cached_property
    def tv_seq(self) -> Any:
        """TV of the sequence laws."""
        return self._sequence_sum(lambda e: absolute(e.shift)) / 2

    @cached_property
    def kl_seq(self) -> Any:
        """KL(μ‖π) of the sequence laws, D_seq = E_μ Σ_t KL(μ‖π)(c_t)."""
        return self._expect(self._d, self._kls[0])

    @cached_property
    def reverse_kl_seq(self) -> Any:
        """KL(π‖μ) of the sequence laws, E_π Σ_t KL(π‖μ)(c_t)."""
        return self._expect(self.target.flat_occupancy, self._kls[1])

    @cached_property
    def reverse_kl_sum(self) -> Any:
        """Σ_t E_{d_t^μ}[KL(π‖μ)(c_t)]: the reverse divergence at contexts that μ visits."""
        return self._expect(self._d, self._kls[1])

    @cached_property
    def hellinger2_sum(self) -> Any:
        """Σ_t E_{d_t^μ}[squared Hellinger distance of the context]."""
        return self._sum(self._d * self._hellinger2)

    @cached_property
    def midpoint_kl_sum(self) -> Any:
        """Σ_t E_{d_t^μ}[KL(μ‖(μ + π)/2)(c_t)], the midpoint taken at every context."""
        return self._sum(self._d * local.kl_family(self._mu, (self._mu + self._pi) / 2)[0])

    @cached_property
    def chi2_seq(self) -> Any:
        """χ²(π‖μ) of the sequence laws, Σ_t E_μ[W_{t-1}² χ²(c_t)]: E_μ W² - 1 if π is covered, else inf."""
        mu, pi, b = self._mu, self._pi, self.tree.branching

        def squared(here: slice) -> np.ndarray:
            """π²/μ; actions that μ never takes carry nothing: their context's χ² is inf already."""
            m, p = mu[:b, here], pi[:b, here]
            if self._positive:
                return p * p / m
            # not `m > 0`: formal symbols have no order
            return np.where(m != 0, local.weigh(p, local.ratio(m, p)), self._zero)

        seconds = flow.products(self.tree, squared, self._weights, mu)
        return self._expect(seconds, self._chi2)

    @cached_property
    def hellinger2_seq(self) -> Any:
        """Squared Hellinger distance of the sequence laws: what a context adds, times the overlap before."""
        mu, pi, b = self._mu, self._pi, self.tree.branching
        overlap = flow.products(self.tree, lambda c: sqrt(mu[:b, c] * pi[:b, c]), self._weights, mu)
        return self._sum(overlap * self._hellinger2)

    @cached_property
    def k3_sum(self) -> Any:
        """E_μ Σ_t k3(ρ_t), k3(r) = r - 1 - log r."""
        return self._expect(self._d, self._kls[2])

    @cached_property
    def k3_seq(self) -> Any:
        """E_μ k3(W), W = ∏_t ρ_t."""

        def terms(e: Any) -> np.ndarray:
            k3 = e.shift - local.weigh(e.law_mu, e.log_ratio)
            return k3 if self._covered else np.where(e.law_mu > 0, k3, self._zero)

        return self._sequence_sum(terms)

    @cached_property
    def w_second_moment(self) -> Any:
        """E_μ W² = 1 + χ²(π‖μ) of the sequences if π is covered, else the sum over the support of μ."""
        if self._covered:
            return 1 + self.chi2_seq

        def terms(e: Any) -> np.ndarray:
            squares = local.weigh(e.law_pi, local.ratio(e.law_mu, e.law_pi))
            return np.where(e.law_mu > 0, squares, self._zero)

        return self._sequence_sum(terms)

    @cached_property
    def ratio_martingale(self) -> Any:
        """E_μ Σ_t (W_{t-1} - 1)² χ²(π‖μ)(c_t): the variance of W - 1 - Σ_t (ρ_t - 1)."""
        d, shift = self._d, self._context_shift
        squares = local.chi2_terms(d, d + shift, shift)
        return self._expect(squares if self._covered else np.where(d > 0, squares, self._zero), self._chi2)

    # ---- lengths, support, single steps

    @cached_property
    def expected_length_behavior(self) -> Any:
        """Mean number of tokens under μ, EOS counted."""
        return self.behavior.expected_length

    @cached_property
    def expected_length_target(self) -> Any:
        """Mean number of tokens under π, EOS counted."""
        return self.target.expected_length

    @cached_property
    def support_ok(self) -> Any:
        """1 if supp π ⊆ supp μ at every context of the tree, else 0."""
        uncovered = ((self._mu == 0) & (self._pi > 0)).any(axis=(0, 1))
        if self.is_exact:
            return exact(int(not uncovered)) if self._mu.ndim == 2 else self._out(indicator(~uncovered, True))
        return self._out(1.0 - uncovered)

    @cached_property
    def min_behavior(self) -> Any:
        """Smallest μ(a|c) of the tree."""
        return self._min(amin(self._mu, 0))

    @cached_property
    def min_target(self) -> Any:
        """Smallest π(a|c) of the tree."""
        return self._min(amin(self._pi, 0))

    def _step(self, t: int, x: np.ndarray) -> Any:
        if not 0 <= t < self.tree.horizon:
            raise ValueError(f"step t = {t}: expected 0..{self.tree.horizon - 1}")
        here = self.tree.level_slice(t)
        return self._sum(local.weigh(self._d[here], x[here]))

    def tv_step(self, t: int) -> Any:
        """E_{d_t^μ}[TV(c_t)] at step ``t`` (0-based)."""
        return self._step(t, self._tv)

    def kl_step(self, t: int) -> Any:
        """E_{d_t^μ}[KL(μ‖π)(c_t)] at step ``t`` (0-based)."""
        return self._step(t, self._kls[0])

    def marginal_tv(self, t: int) -> Any:
        """½ Σ_c |d_t^π(c) - d_t^μ(c)| over the contexts of level ``t``; ended sequences are not a context."""
        if not 0 <= t < self.tree.horizon:
            raise ValueError(f"step t = {t}: expected 0..{self.tree.horizon - 1}")
        return self._sum(absolute(self._context_shift[self.tree.level_slice(t)])) / 2


def indicator(chosen: np.ndarray, exact_numbers: bool) -> np.ndarray:
    """Boolean array as 0/1 numbers."""
    if not exact_numbers:
        return chosen.astype(np.float64)
    out = np.empty(chosen.shape, dtype=object)
    out[...] = exact(0)
    out[chosen.astype(bool)] = exact(1)
    return out


def aligned(tree: TokenTree, *tables: Any) -> tuple[Any, ...]:
    """The tables with one kind of number (exact if the first is) and one batch shape.

    Raises ``ValueError`` if one belongs to another tree or the batch shapes do not broadcast.
    """
    for table in tables:
        if table.tree != tree:
            raise ValueError(f"{type(table).__name__} belongs to {table.tree}: expected {tree}")
    policies = [table for table in tables if isinstance(table, Policy)]
    exact_numbers = any(policy.is_exact for policy in policies)
    tables = tuple(table.as_exact() if exact_numbers else table.as_float() for table in tables)
    shapes = [table.batch_shape for table in tables]
    try:
        shape = np.broadcast_shapes(*shapes)
    except ValueError:
        names = ", ".join(f"{type(table).__name__} {table.batch_shape}" for table in tables)
        raise ValueError(f"batch shapes of {names}: expected shapes that broadcast to one") from None
    return tuple(table.broadcast(shape) for table in tables)
