"""Statistics from hidden states and vocabulary heads: logits exist only for a few rows at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from opdtheory.audit.kernels.dispatch import STATISTICS, pair_statistics

CHUNK_BYTES = 256 << 20


def pair_statistics_from_hidden(
    p_hidden: Any,
    p_head: Any,
    q_hidden: Any,
    q_head: Any,
    tokens: Any,
    *,
    temperature: float = 1.0,
    topk: int = 20,
    alpha: float = 0.1,
    rows: int | None = None,
) -> dict[str, np.ndarray]:
    """``pair_statistics`` of softmax(hidden · headᵀ / temperature), computed ``rows`` tokens at a time.

    ``p_hidden`` (N, d), ``p_head`` (V, d), likewise q with its own width; numpy or torch on one device.
    Never more than two (rows, V) tables exist; by default each takes at most a quarter of a gigabyte.
    """
    n, vocab = len(p_hidden), p_head.shape[0]
    if (
        q_head.shape[0] != vocab
        or len(q_hidden) != n
        or p_hidden.shape[1] != p_head.shape[1]
        or q_hidden.shape[1] != q_head.shape[1]
    ):
        shapes = [tuple(a.shape) for a in (p_hidden, p_head, q_hidden, q_head)]
        raise ValueError(f"hidden states and heads: got {shapes}, expected (N, d), (V, d), (N, e), (V, e)")
    if not temperature > 0:
        raise ValueError(f"temperature: got {temperature!r}, expected a positive number")
    step = rows or max(1, CHUNK_BYTES // (4 * vocab))
    out = {name: np.empty(n) for name in STATISTICS}
    for a in range(0, n, step):
        b = min(a + step, n)
        p, q = p_hidden[a:b] @ p_head.T, q_hidden[a:b] @ q_head.T
        if temperature != 1.0:
            p, q = p / temperature, q / temperature
        for name, values in pair_statistics(p, q, tokens[a:b], topk=topk, alpha=alpha).items():
            out[name][a:b] = values
    return out
