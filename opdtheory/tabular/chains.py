"""Finite-context chains: policies that see a state (last tokens, a count, an automaton), at any horizon.

Contexts of the token tree are merged into ``states``; the number of states, not of contexts, sets the cost,
so that J, L, the error, D_seq and the χ² quantities are exact at horizons of many thousand tokens.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Self

import numpy as np
from scipy import sparse

from opdtheory.elementary import absolute, amax, asum, exact, maximum, sqrt
from opdtheory.tabular import local
from opdtheory.tabular.instance import check_distribution
from opdtheory.tabular.pair import PolicyPair
from opdtheory.tabular.table import as_numbers
from opdtheory.tabular.tree import TokenTree

__all__ = ["FiniteContextChain"]

_DENSE_STATES = 64  # up to here a dense scatter matrix is faster than a sparse one
_SEGMENT_NUMBERS = 1 << 20  # numbers kept of one table while passing over the steps


def _total(name: str, doc: str) -> Any:
    """A public attribute that is one of the sums of the pass over the steps."""
    return property(lambda self: self._sum(name), doc=doc)


class FiniteContextChain:
    """Behaviour μ and target π over states, with an additive reward; quantities as in ``PolicyPair``.

    ``next_state`` (states, actions) is the state after each action, -1 where the action ends the sequence.
    ``behavior``, ``target`` and ``reward`` have shape ``(batch..., states, actions)``, with ``time_varying``
    ``(batch..., horizon, states, actions)``; ``initial`` (states,) or ``(batch..., states)``, by default the
    first state.  ``reward`` (default zero) is paid on every action, ``final_reward`` in addition on whatever
    action ends the sequence.  Exact if a table is (small horizons, no batch).

    Raises ``ValueError`` for shapes that do not fit, rows that are no distribution and states out of range.

    >>> half, other = [["1/2", "1/2"]], [["1/4", "3/4"]]
    >>> chain = FiniteContextChain.last_token(half, other, horizon=3, final_reward=[[0, 1]])
    >>> chain.improvement, chain.tv_sum
    (1/4, 3/4)
    """

    def __init__(
        self,
        next_state: Any,
        behavior: Any,
        target: Any,
        *,
        horizon: int,
        initial: Any = None,
        reward: Any = None,
        final_reward: Any = None,
        time_varying: bool = False,
        validate: bool = True,
    ) -> None:
        successor = np.asarray(next_state)
        if successor.ndim != 2 or successor.dtype.kind not in "iu":
            raise ValueError(f"next_state has shape {successor.shape}: expected integers (states, actions)")
        states, actions = successor.shape
        if successor.size and not (successor.min() >= -1 and successor.max() < states):
            raise ValueError(f"next_state: expected entries in -1..{states - 1}")
        if isinstance(horizon, bool) or not isinstance(horizon, (int, np.integer)) or horizon < 1:
            raise ValueError(f"horizon = {horizon!r}: expected a positive integer")
        self.next_state, self.states, self.actions = successor, states, actions
        self.horizon, self.time_varying = int(horizon), time_varying
        start = np.eye(1, states)[0] if initial is None else initial
        zero = np.zeros((states, actions))
        given = {
            "behavior": behavior,
            "target": target,
            "reward": zero if reward is None else reward,
            "final_reward": zero if final_reward is None else final_reward,
            "initial": start,
        }
        tables = {name: as_numbers(x) for name, x in given.items()}
        if any(x.dtype == object for x in tables.values()):
            tables = {name: as_numbers(x.astype(object)) for name, x in tables.items()}
        step = (self.horizon, states, actions) if time_varying else (states, actions)
        batch = tables["behavior"].shape[: tables["behavior"].ndim - len(step)]
        self.batch_shape = tuple(batch)
        for name in ("behavior", "target"):
            if tables[name].shape != (*batch, *step):
                raise ValueError(f"{name} has shape {tables[name].shape}: expected {(*batch, *step)}")
        if validate:
            for name in ("behavior", "target", "initial"):
                check_distribution(name, tables[name])
        self._mu, self._pi = (self._inner(tables[name], step) for name in ("behavior", "target"))
        self._reward = self._reward_table(tables["reward"], "reward", step)
        self._final = self._reward_table(tables["final_reward"], "final_reward", step)
        want = (states,) if tables["initial"].ndim == 1 else (*batch, states)
        if tables["initial"].shape != want:
            raise ValueError(f"initial has shape {tables['initial'].shape}: expected {want}")
        spread = np.broadcast_to(tables["initial"], (*batch, states)).reshape(
            (-1, states) if batch else states
        )
        self._initial = np.moveaxis(spread, -1, 0)

    # ---- constructors

    @classmethod
    def last_token(
        cls, behavior: Any, target: Any, *, horizon: int, memory: int | None = None, **options: Any
    ) -> Self:
        """States are the last ``memory`` tokens: ``1 + V + ... + V**memory`` of them.

        Rows of the tables: shorter contexts (the beginning of a sequence) first, then longer ones, each
        length in lexicographic order.  ``memory`` is inferred from the number of rows.
        """
        shape = np.shape(behavior)
        states, vocab = shape[-2], shape[-1]
        sizes = [1]
        while sum(sizes) < states:
            sizes.append(sizes[-1] * vocab)
        if sum(sizes) != states or memory not in (None, len(sizes) - 1):
            raise ValueError(
                f"behavior has {states} states: expected 1 + V + ... + V**memory with V = {vocab}"
            )
        k = len(sizes) - 1
        successor = np.zeros((states, vocab), dtype=np.int64)
        offset = 0
        for level, size in enumerate(sizes):
            index, token = np.divmod(np.arange(size * vocab).reshape(size, vocab), vocab)
            if level < k:
                successor[offset : offset + size] = offset + size + index * vocab + token
            elif k:
                # full memory: drop the oldest token
                successor[offset : offset + size] = offset + (index % (size // vocab)) * vocab + token
            offset += size
        return cls(successor, behavior, target, horizon=horizon, **options)

    @classmethod
    def count(cls, behavior: Any, target: Any, *, horizon: int, **options: Any) -> Self:
        """Binary tokens, states = how many ones so far (0..horizon); rows of the tables are the counts.

        Every pair of a step and a count is visited, so that the cost grows with the square of the horizon;
        tokens that do not depend on the count are cheaper as ``IidBinary``.
        """
        states = np.shape(behavior)[-2]
        if states != horizon + 1:
            raise ValueError(f"behavior has {states} states: expected horizon + 1 = {horizon + 1}")
        here = np.arange(states)
        successor = np.column_stack([here, np.minimum(here + 1, horizon)])
        return cls(successor, behavior, target, horizon=horizon, **options)

    # ---- layout: (steps, states, actions[, batch]), steps = 1 if homogeneous

    @property
    def is_exact(self) -> bool:
        """True if the numbers are rationals."""
        return self._mu.dtype == object

    def _inner(self, table: np.ndarray, step: tuple[int, ...]) -> np.ndarray:
        batch = self.batch_shape
        x = table.reshape((-1, *step)) if batch else table
        x = np.moveaxis(x, 0, -1) if batch else x
        return np.ascontiguousarray(x if self.time_varying else x[None])

    def _reward_table(self, table: np.ndarray, name: str, step: tuple[int, ...]) -> np.ndarray:
        shared = (self.states, self.actions)
        batch = self.batch_shape
        if table.shape not in {shared, step, (*batch, *step)}:
            raise ValueError(f"{name} has shape {table.shape}: expected {(*batch, *step)} or {shared}")
        if table.shape == (*batch, *step):
            return self._inner(table, step)
        table = table if table.ndim == 3 else table[None]
        return table[..., None] if batch else table

    def _at(self, table: np.ndarray, t: int) -> np.ndarray:
        return table[t if len(table) > 1 else 0]

    @cached_property
    def _scatter(self) -> Any:
        """Matrix (states, states·actions) that sends a weight per state-action pair to the next state."""
        flat = self.next_state.ravel()
        keep = np.flatnonzero(flat >= 0)
        matrix = sparse.csr_matrix((np.ones(len(keep)), (flat[keep], keep)), shape=(self.states, len(flat)))
        return matrix.toarray() if self.states <= _DENSE_STATES else matrix

    def _move(self, weights: np.ndarray) -> np.ndarray:
        """Collect weights (states, actions[, batch]) at the next states."""
        flat = weights.reshape((-1, *weights.shape[2:]))
        if weights.dtype == object:
            out = np.full((self.states,), exact(0), dtype=object)
            for successor, w in zip(self.next_state.ravel(), flat, strict=True):
                if successor >= 0:
                    out[successor] += w
            return out
        return self._scatter @ flat

    def _look(self, values: np.ndarray) -> np.ndarray:
        """Value of the next state for every state-action pair, 0 after the end."""
        ended = self.next_state < 0
        out = values[self.next_state]
        if ended.any():
            out[ended] = 0
        return out

    def _out(self, x: Any) -> Any:
        return (
            x.reshape(self.batch_shape) if self.batch_shape else (x[()] if isinstance(x, np.ndarray) else x)
        )

    # ---- the one pass that everything is read off

    @cached_property
    def _steps(self) -> dict[str, np.ndarray]:
        """Coefficients of the recursions per state-action pair, zero where μ is (no mass passes there)."""
        mu, pi = self._mu, self._pi
        diff = pi - mu
        rho = local.ratio(mu, pi)
        drawn = mu > 0
        zero = mu * 0
        return {
            "mu": mu,
            "pi": pi,
            "diff": diff,
            "drawn_pi": np.where(drawn, pi, zero),
            "drawn_diff": np.where(drawn, diff, zero),
            "rho2": np.where(drawn, local.weigh(pi, rho), zero),
            "rho_diff": np.where(drawn, local.weigh(diff, rho), zero),
            "chi2": np.where(drawn, local.chi2_terms(mu, pi, diff), zero),
        }

    @cached_property
    def _kernel(self) -> np.ndarray | None:
        """The step of ``_advance`` as one matrix, for few states and homogeneous float tables."""
        if self.is_exact or len(self._mu) > 1 or self.batch_shape or self.states > _DENSE_STATES:
            return None
        k = {name: self._square(x[0]) for name, x in self._steps.items()}
        zero = np.zeros_like(k["mu"])
        return np.block(
            [
                [k["mu"], zero, zero, zero, zero],
                [k["diff"], k["pi"], zero, zero, zero],
                [k["drawn_diff"], zero, k["drawn_pi"], zero, zero],
                [zero, zero, zero, k["rho2"], zero],
                [k["chi2"], zero, 2 * k["rho_diff"], zero, k["rho2"]],
            ]
        )

    def _square(self, weights: np.ndarray) -> np.ndarray:
        """Matrix (states, states) that moves one step with the given weights."""
        columns = np.zeros((self.states, self.actions, self.states))
        here = np.arange(self.states)
        columns[here, :, here] = weights
        return self._move(columns)

    def _advance(self, t: int, z: np.ndarray) -> np.ndarray:
        """The five quantities of every state ``(5, states[, batch])`` one step later.

        Occupancy d under μ; shift, that under π minus d; and by state E_μ[W - 1], E_μ[W²], E_μ[(W - 1)²].
        None is computed as a difference of nearly equal numbers.
        """
        if self._kernel is not None:
            return (self._kernel @ z.reshape(-1)).reshape(z.shape)
        d, shift, excess, second, square = (x[:, None] for x in z)
        c = {name: self._at(x, t) for name, x in self._steps.items()}
        weights = (
            c["mu"] * d,
            c["pi"] * shift + c["diff"] * d,
            c["drawn_pi"] * excess + c["drawn_diff"] * d,
            c["rho2"] * second,
            c["chi2"] * d + 2 * c["rho_diff"] * excess + c["rho2"] * square,
        )
        return np.stack([self._move(w) for w in weights])

    def _q_segment(self, start: int, stop: int, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Q^μ of the steps start..stop-1 from the value after them, and the value before them."""
        out = []
        ends = np.asarray(self.next_state < 0)[(..., *(None,) * (self._mu.ndim - 3))]
        for t in range(stop - 1, start - 1, -1):
            final = self._at(self._final, t)
            last = t == self.horizon - 1
            q = self._at(self._reward, t) + (final if last else np.where(ends, final, final * 0))
            q = np.broadcast_to(q if last else q + self._look(value), self._mu.shape[1:])
            value = asum(self._at(self._mu, t) * q, 1)
            out.append(q)
        return np.stack(out[::-1]), value

    @cached_property
    def _sums(self) -> dict[str, Any]:
        """Every sum over steps and states: a backward and a forward pass, in segments to bound memory."""
        length = max(1, min(self.horizon, _SEGMENT_NUMBERS // max(1, self._mu[0].size)))
        starts = range(0, self.horizon, length)
        after, value = {}, self._initial * 0
        for start in reversed(starts):
            after[start] = value
            value = self._q_segment(start, min(start + length, self.horizon), value)[1]
        out: dict[str, Any] = {"J_behavior": asum(self._initial * value, 0)}
        zero = self._initial * 0
        z = np.stack([self._initial, zero, zero, self._initial, zero])
        # the contexts of the tree: states that exist at a step, whether a policy visits them or not
        alive = np.any(np.asarray(self._initial != 0, dtype=bool).reshape(self.states, -1), axis=1)
        settled = False
        with np.errstate(over="ignore", invalid="ignore"):
            for start in starts:
                stop = min(start + length, self.horizon)
                block, exists = [], []
                for t in range(start, stop):
                    block.append(z)
                    exists.append(alive)
                    if t < self.horizon - 1:
                        z = self._advance(t, z)
                    if not settled:
                        before, alive = alive, self._after(alive)
                        settled = np.array_equal(before, alive)
                part = self._segment_sums(
                    start, stop, after[start], np.stack(block, axis=1), np.stack(exists)
                )
                for name, x in part.items():
                    pick = maximum if name.endswith("_max") else np.add
                    out[name] = pick(out[name], x) if name in out else x
        return out

    def _segment_sums(
        self, start: int, stop: int, value: np.ndarray, block: np.ndarray, exists: np.ndarray
    ) -> dict[str, Any]:
        d, shift, _excess, second, square = block
        rows = slice(start, stop) if self.time_varying else slice(None)
        mu, pi = self._mu[rows], self._pi[rows]
        g = asum((pi - mu) * self._q_segment(start, stop, value)[0], 2)
        tv, kl, reverse, k3, chi2 = (np.broadcast_to(x[rows], d.shape) for x in self._divergences)
        exists = exists[(..., *(None,) * (d.ndim - 2))]

        def total(weights: np.ndarray, x: np.ndarray) -> Any:
            return asum(asum(local.weigh(weights, x), 1), 0)

        def largest(x: np.ndarray) -> Any:
            return amax(amax(np.where(exists, x, d[:1, :1] * 0), 0), 0)

        return {
            "surrogate": total(d, g),
            "error": total(shift, g),
            "length": asum(asum(d, 1), 0),
            "length_target": asum(asum(d + shift, 1), 0),
            "tv_sum": total(d, tv),
            "kl_seq": total(d, kl),
            "reverse_kl_sum": total(d, reverse),
            "reverse_kl_seq": total(d + shift, reverse),
            "k3_sum": total(d, k3),
            "ratio_martingale": total(square, chi2),
            "chi2_seq": total(second, chi2),
            "tv_max": largest(tv),
            "kl_max": largest(kl),
            "reverse_kl_max": largest(reverse),
            "chi2_max": largest(chi2),
            "g_max": largest(absolute(g)),
        }

    @cached_property
    def _divergences(self) -> tuple[np.ndarray, ...]:
        """(TV, KL(μ‖π), KL(π‖μ), k3, χ²(π‖μ)) of every state, (steps, states[, batch])."""
        mu, pi = np.moveaxis(self._mu, 2, 0), np.moveaxis(self._pi, 2, 0)
        return (local.tv(mu, pi), *local.kl_family(mu, pi), local.chi2(mu, pi))

    def _after(self, alive: np.ndarray) -> np.ndarray:
        """Which states some token, likely or not, leads to from the states ``alive``."""
        out = np.zeros_like(alive)
        reached = self.next_state[alive]
        out[reached[reached >= 0]] = True
        return out

    def _sum(self, name: str) -> Any:
        return self._out(self._sums[name])

    # ---- returns

    J_behavior = _total("J_behavior", "J(μ).")
    surrogate = _total("surrogate", "L = Σ_t E_{d_t^μ}[g_t].")
    error = _total("error", "J(π) - J(μ) - L.")

    @property
    def improvement(self) -> Any:
        """J(π) - J(μ) = Σ_t E_{d_t^π}[g_t]."""
        return self.surrogate + self.error

    @property
    def J_target(self) -> Any:
        """J(π)."""
        return self.J_behavior + self.improvement

    adv_target_max = _total("g_max", "max |g_t(s)| over steps and the states that exist there.")
    expected_length_behavior = _total("length", "Mean number of tokens under μ.")
    expected_length_target = _total("length_target", "Mean number of tokens under π.")
    # ---- divergences

    tv_max = _total("tv_max", "max TV(μ, π) over the states that exist within the horizon.")
    tv_sum = _total("tv_sum", "Σ_t E_{d_t^μ}[TV].")
    kl_max = _total("kl_max", "max KL(μ‖π).")
    kl_seq = _total("kl_seq", "D_seq = KL(μ‖π) of sequences.")
    reverse_kl_max = _total("reverse_kl_max", "max KL(π‖μ).")
    reverse_kl_sum = _total("reverse_kl_sum", "Σ_t E_{d_t^μ}[KL(π‖μ)].")
    reverse_kl_seq = _total("reverse_kl_seq", "KL(π‖μ) of sequences.")
    k3_sum = _total("k3_sum", "E_μ Σ_t k3(ρ_t).")
    chi2_max = _total("chi2_max", "max χ²(π‖μ).")
    ratio_martingale = _total(
        "ratio_martingale", "E_μ Σ_t (W_{t-1} - 1)² χ²(π‖μ)(c_t); inf beyond the range of float64."
    )
    chi2_seq = _total(
        "chi2_seq", "χ²(π‖μ) of sequences, Σ_t E_μ[W_{t-1}² χ²(c_t)]; inf beyond the range of float64."
    )

    @cached_property
    def hellinger2_seq(self) -> Any:
        """Squared Hellinger distance of the sequence laws, summed as what each step adds."""
        overlap, total = self._initial, self._zero
        for t in range(self.horizon):
            mu, pi = self._at(self._mu, t), self._at(self._pi, t)
            total = total + asum(overlap * asum(local.hellinger2_terms(mu, pi, pi - mu), 1) / 2, 0)
            if t < self.horizon - 1:
                overlap = self._move(overlap[:, None] * sqrt(mu * pi))
        return self._out(total)

    @property
    def _zero(self) -> Any:
        return self._initial[0] * 0

    # ---- the same model as a token tree

    def unrolled(self) -> PolicyPair:
        """The chain as a ``PolicyPair`` on the token tree (small horizons, one starting state, no batch).

        An action that ends the sequence in some state must end it in all and becomes EOS.
        """
        ends = np.asarray(self.next_state < 0)
        enders = [a for a in range(self.actions) if ends[:, a].any()]
        start = np.flatnonzero(np.asarray(self._initial != 0, dtype=bool))
        if (
            self.batch_shape
            or len(start) != 1
            or len(enders) > 1
            or not all(ends[:, a].all() for a in enders)
        ):
            raise ValueError("unrolled: expected no batch, one starting state and at most one ending action")
        tree = TokenTree(self.actions, self.horizon, enders[0] if enders else None)
        levels: dict[str, list[Any]] = {"behavior": [], "target": [], "reward": []}
        states = start
        going_on = [a for a in range(self.actions) if a not in enders]
        for t in range(self.horizon):
            levels["behavior"].append(self._at(self._mu, t)[states])
            levels["target"].append(self._at(self._pi, t)[states])
            final = self._at(self._final, t)
            paid = final if t == self.horizon - 1 else np.where(ends, final, final * 0)
            levels["reward"].append((self._at(self._reward, t) + paid)[states])
            states = self.next_state[states][:, going_on].reshape(-1)
        return PolicyPair.from_levels(tree, levels["behavior"], levels["target"], levels["reward"])
