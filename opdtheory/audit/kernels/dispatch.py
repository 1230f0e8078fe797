"""Choosing the implementation of ``pair_statistics``."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from opdtheory.audit.kernels import numpy_rows

STATISTICS = numpy_rows.STATISTICS
SMALL = 1 << 21
"""Fewer logits than this are left to numpy."""


def available() -> tuple[str, ...]:
    """Implementations that can run here, fastest first."""
    names = ["numpy"]
    if importlib.util.find_spec("numba") is not None:
        names.insert(0, "numba")
    return tuple(names)


def pair_statistics(
    p_logits: Any,
    q_logits: Any,
    tokens: Any,
    *,
    topk: int = 20,
    alpha: float = 0.1,
    backend: str | None = None,
) -> dict[str, np.ndarray]:
    """Statistics of softmax rows p (who drew ``tokens``) and q, each of shape (N,), float64, nats.

    ``p_logits``, ``q_logits`` (N, V) float32 or float64; ``tokens`` (N,).  ``kl_pq`` is KL(p‖q),
    ``chi2_qp`` is χ²(q‖p) = E_p[(q/p)²] − 1, ``jsd`` has α = ½, ``topk_kl`` and ``topk_tv`` merge all but
    the ``topk`` most probable tokens of p and the drawn one into one bucket, ``topd_second_moment`` is
    E_p[log²(α q/p + 1 − α)]. Torch tensors are accepted too; on a GPU the Triton kernel takes them where
    Triton is installed.  −inf logits are exact zeros; a row with NaN, +inf or nothing but −inf gives NaN
    throughout.
    """
    if backend in (None, "triton") and _on_gpu(p_logits, backend):
        return _triton(p_logits, q_logits, tokens, topk, alpha)
    p, q, tokens = _host(p_logits), _host(q_logits), _host(tokens)
    if p.ndim != 2 or p.shape != q.shape:
        raise ValueError(f"logits: got shapes {p.shape} and {q.shape}, expected two equal (N, V)")
    drawn = np.asarray(tokens, dtype=np.int64)
    if drawn.shape != p.shape[:1] or (drawn.size and (drawn.min() < 0 or drawn.max() >= p.shape[1])):
        raise ValueError(
            f"tokens: got shape {drawn.shape}, expected ({p.shape[0]},) with ids in [0, {p.shape[1]})"
        )
    if p.dtype != q.dtype or p.dtype not in (np.float32, np.float64):
        wide = np.float64 if np.float64 in (p.dtype, q.dtype) else np.float32
        p, q = p.astype(wide), q.astype(wide)
    # compiling takes seconds; the choice depends on the size alone, so that every process makes the same one
    choice = backend or (available()[0] if p.size >= SMALL else "numpy")
    if choice == "numba":
        from opdtheory.audit.kernels import numba_rows

        return numba_rows.pair_statistics(p, q, drawn, min(topk, p.shape[1]), alpha)
    if choice != "numpy":
        raise ValueError(f"backend: got {choice!r}, expected one of {', '.join(available())}")
    return numpy_rows.pair_statistics(p, q, drawn, min(topk, p.shape[1]), alpha)


def _host(x: Any) -> np.ndarray:
    """A numpy array of anything; bfloat16 tensors become float32, exactly."""
    if hasattr(x, "detach"):
        x = x.detach()
        x = (x.float() if x.is_floating_point() and x.element_size() < 4 else x).cpu().numpy()
    return np.asarray(x)


def _on_gpu(logits: Any, backend: str | None) -> bool:
    installed = importlib.util.find_spec("triton") is not None
    if backend == "triton" and not installed:
        raise ValueError("backend: got 'triton', but Triton is not installed")
    return backend == "triton" or (installed and hasattr(logits, "detach") and logits.device.type == "cuda")


def _triton(p_logits: Any, q_logits: Any, tokens: Any, topk: int, alpha: float) -> dict[str, np.ndarray]:
    import torch

    from opdtheory.audit.kernels import triton_rows

    p, q = torch.as_tensor(p_logits), torch.as_tensor(q_logits)
    drawn = torch.as_tensor(tokens, device=p.device)
    if p.ndim != 2 or p.shape != q.shape or drawn.shape != p.shape[:1]:
        raise ValueError(
            f"logits: got shapes {tuple(p.shape)}, {tuple(q.shape)} and tokens {tuple(drawn.shape)}"
        )
    found = triton_rows.pair_statistics(p.contiguous(), q.contiguous(), drawn, topk, alpha)
    return {name: found[name].cpu().numpy() for name in STATISTICS}
