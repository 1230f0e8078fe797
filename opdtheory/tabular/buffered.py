"""The usual quantities of a batch of policy pairs with numpy alone, in buffers that stay in cache.

The array code of ``pair.py`` computes one quantity at a time and keeps what others may need; here everything
is computed at once for a block of instances, and every result goes to memory that the block before used.
Probabilities must be positive.
"""

from __future__ import annotations

import threading

import numpy as np

from opdtheory.tabular.tree import TokenTree

__all__ = ["summarise"]

_BLOCK_NUMBERS = 1 << 15  # of one table: the block's dozen tables stay in the second-level cache, or near it


def summarise(
    tree: TokenTree, mu: np.ndarray, pi: np.ndarray, reward: np.ndarray, *, gradient: bool = False
) -> tuple[dict[str, np.ndarray], np.ndarray | None] | None:
    """Quantities of every instance by name, and ∇J(π) with respect to the logits of π if asked for.

    Arguments are float64 in the inner layout, ``(vocab, contexts_total, batch)``.  ``None`` if a probability
    is zero or the tree alone fills a block.
    """
    lanes, most = mu.shape[2], _BLOCK_NUMBERS // tree.pairs_total
    if not (lanes and most):
        return None
    size = -(-lanes // -(-lanes // most))  # equal parts, but for the last
    found: dict[str, np.ndarray] = {}
    slope = np.empty_like(mu) if gradient else None
    block = _block(tree, size)
    for start in range(0, lanes, size):
        if lanes - start < size:
            block = _block(tree, lanes - start)
        here = slice(start, start + size)
        values = block.run(mu[:, :, here], pi[:, :, here], reward[:, :, here])
        if values is None:
            return None
        for name, value in values.items():
            found.setdefault(name, np.empty(lanes))[here] = value
        if slope is not None:
            slope[:, :, here] = block.slope()
    return found, slope


_kept = threading.local()


def _block(tree: TokenTree, size: int) -> _Block:
    """Buffers, those of the last use if they fit: fresh memory costs as much as the arithmetic."""
    block: _Block | None = getattr(_kept, "block", None)
    if block is None or (block.tree, block.size) != (tree, size):
        block = _kept.block = _Block(tree, size)
    return block


class _Block:
    """Buffers for ``size`` instances: tables (vocab, contexts, size) and quantities of contexts."""

    def __init__(self, tree: TokenTree, size: int) -> None:
        self.tree, self.size = tree, size
        self.m, self.p, self.r, self.diff, self.q, self.q_pi, self.x, self.y, self.z = np.empty(
            (9, tree.vocab, tree.contexts_total, size)
        )
        (
            self.d, self.shift, self.rest, self.v, self.v_pi, self.g, self.tv, self.kl, self.reverse, self.chi2,
            self.hellinger2, self.after, self.apart, self.c,
        ) = np.empty((14, tree.contexts_total, size))  # fmt: skip
        self.weights = tree.weights(False, 1)

    def run(self, mu: np.ndarray, pi: np.ndarray, reward: np.ndarray) -> dict[str, np.ndarray] | None:
        """Quantities of the block by name; ``None`` if a probability is zero."""
        for buffer, table in ((self.m, mu), (self.p, pi), (self.r, reward)):
            np.copyto(buffer, table)
        np.subtract(self.p, self.m, out=self.diff)
        if not self._divergences():
            return None
        self._upwards()
        self._downwards()
        return self._collect()

    def _divergences(self) -> bool:
        """Divergences of every context, as in ``local``; leaves √(pm) in ``x``.  False at a zero."""
        m, p, diff, x, y, z = self.m, self.p, self.diff, self.x, self.y, self.z
        np.minimum(m, p, out=y)
        if not y.min() > 0:
            return False
        np.abs(diff, out=x)
        np.sum(x, axis=0, out=self.tv)
        self.tv *= 0.5
        np.log1p(np.divide(x, y, out=y), out=y)
        np.abs(np.subtract(x, np.multiply(m, y, out=z), out=z), out=z)
        np.sum(z, axis=0, out=self.kl)
        np.abs(np.subtract(np.multiply(p, y, out=z), x, out=z), out=z)
        np.sum(z, axis=0, out=self.reverse)
        np.multiply(diff, diff, out=y)
        np.sum(np.divide(y, m, out=z), axis=0, out=self.chi2)
        np.sqrt(np.multiply(m, p, out=x), out=x)
        np.add(x, x, out=z)
        z += m
        z += p
        y /= z
        np.sum(y, axis=0, out=self.hellinger2)
        self.hellinger2 *= 0.5
        return True

    def _upwards(self) -> None:
        """Values of both policies, and what the divergences of sequences add up to after every context."""
        tree, b = self.tree, self.tree.branching
        for t in range(tree.horizon - 1, -1, -1):
            here = tree.level_slice(t)
            m, p = self.m[:, here], self.p[:, here]
            q, q_pi = self.q[:, here], self.q_pi[:, here]
            self.after[here], self.apart[here] = self.chi2[here], self.hellinger2[here]
            inner = b if t < tree.horizon - 1 else 0
            q[inner:] = q_pi[inner:] = self.r[inner:, here]
            if inner:
                below, children = tree.level_slice(t + 1), (b, *self.v[here].shape)
                q[:b], q_pi[:b] = self.v[below].reshape(children), self.v_pi[below].reshape(children)
                second = self.y[:b, here]
                np.multiply(p[:b], p[:b], out=second)
                second /= m[:b]
                second *= self.after[below].reshape(children)
                root = np.multiply(
                    self.x[:b, here], self.apart[below].reshape(children), out=self.x[:b, here]
                )
                for a in range(b):
                    self.after[here] += second[a]
                    self.apart[here] += root[a]
            _contract(m, q, out=self.v[here])
            _contract(p, q_pi, out=self.v_pi[here])
        _contract(self.diff, self.q, out=self.g)

    def _downwards(self) -> None:
        """Occupancy under μ, what π adds to it, and the second-order part of that."""
        tree, b = self.tree, self.tree.branching
        roots = tree.level_slice(0)
        self.d[roots], self.shift[roots], self.rest[roots] = self.weights, 0.0, 0.0
        for t in range(tree.horizon - 1):
            here, below = tree.level_slice(t), tree.level_slice(t + 1)
            d, shift, rest = (x[below].reshape((b, *x[here].shape)) for x in (self.d, self.shift, self.rest))
            np.multiply(self.m[:b, here], self.d[here], out=d)
            self._step(slice(b), here, shift, rest)

    def _step(self, actions: slice, here: slice, shift: np.ndarray, rest: np.ndarray) -> None:
        """Shift and its second-order part after ``actions`` of the contexts ``here``."""
        m, p, diff, z = (x[actions, here] for x in (self.m, self.p, self.diff, self.z))
        np.multiply(p, self.shift[here], out=shift)
        shift += np.multiply(diff, self.d[here], out=z)
        np.multiply(m, self.rest[here], out=rest)
        rest += np.multiply(diff, self.shift[here], out=z)

    def _collect(self) -> dict[str, np.ndarray]:
        tree, d, c = self.tree, self.d, self.c
        d_pi = np.add(d, self.shift, out=c)
        found = {
            "improvement": _expect(d_pi, self.g),
            "reverse_kl_seq": _expect(d_pi, self.reverse),
            "expected_length_target": d_pi.sum(axis=0),
            "expected_length_behavior": d.sum(axis=0),
            "surrogate": _expect(d, self.g),
            "tv_sum": _expect(d, self.tv),
            "kl_seq": _expect(d, self.kl),
            "reverse_kl_sum": _expect(d, self.reverse),
        }
        roots = slice(tree.prompts)
        for name, values in (
            ("J_behavior", self.v), ("J_target", self.v_pi), ("chi2_seq", self.after),
            ("hellinger2_seq", self.apart),
        ):  # fmt: skip
            found[name] = (self.weights * values[roots]).sum(axis=0)
        for name, values in (
            ("tv_max", self.tv), ("kl_max", self.kl), ("reverse_kl_max", self.reverse), ("chi2_max", self.chi2),
            ("hellinger2_max", self.hellinger2), ("adv_target_max", np.abs(self.g, out=self.g)),
        ):  # fmt: skip
            found[name] = values.max(axis=0)
        # (W - 1)² d = shift²/d, zero where a prompt has no weight
        with np.errstate(invalid="ignore"):
            np.divide(self.shift, d, out=c)
        if not self.weights.all():
            c[d == 0] = 0.0
        c *= self.shift
        found["ratio_martingale"] = _expect(c, self.chi2)
        gap = np.subtract(self.q, self.v, out=self.x)
        found["adv_max"] = np.maximum(gap.max(axis=(0, 1)), -gap.min(axis=(0, 1)))
        gap *= gap
        between = self.weights * (self.v[roots] - found["J_behavior"]) ** 2
        found["reward_sd"] = np.sqrt(between.sum(axis=0) + _expect(d, _contract(self.m, gap, out=c)))
        return found | self._endings()

    def _endings(self) -> dict[str, np.ndarray]:
        """What is summed over complete sequences."""
        tree = self.tree
        parts = [(slice(None), tree.level_slice(tree.horizon - 1))]
        if tree.eos is not None:
            parts.append((slice(tree.branching, None), slice(0, tree.offsets[-2])))
        error, size, tv = np.zeros((3, self.c.shape[1]))
        for actions, here in parts:
            shift, rest = self.x[actions, here], self.y[actions, here]
            self._step(actions, here, shift, rest)
            tv += np.abs(shift, out=shift).sum(axis=(0, 1))
            error += np.einsum("acl,acl->l", rest, self.r[actions, here])
            size += np.abs(rest, out=rest).sum(axis=(0, 1))
        return {"error": error, "error_sup": size / 2, "tv_seq": tv / 2}

    def slope(self) -> np.ndarray:
        """The gradient d^π π (Q^π - V^π) of the last run."""
        out = np.subtract(self.q_pi, self.v_pi, out=self.x)
        out *= self.p
        out *= np.add(self.d, self.shift, out=self.c)
        return out


def _contract(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Sum over actions of ``a * b``."""
    return np.einsum("acl,acl->cl", a, b, out=out)


def _expect(weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.einsum("cl,cl->l", weights, x)
