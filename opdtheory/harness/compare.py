"""Exact full-vocabulary comparison of two policies on given sequences, one chunk of positions at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from .. import divergences
from .engines import Engine, paired
from .forward import Ids
from .rollouts import Sampler

STATISTICS = (
    "log_p", "log_q", "entropy_p", "entropy_q", "tv", "kl_pq", "kl_qp", "chi2_qp", "jsd", "hellinger2",
    "max_log_ratio", "mean_ratio",
)  # fmt: skip
"""Per-token results, all (B, T): log-probabilities of the given tokens, entropies, KL(p‖q), KL(q‖p), χ²(q‖p),
…, and E_p[q/p], which is q's mass on the support of p.
"""


def pair_statistics(
    p_logits: torch.Tensor,
    q_logits: torch.Tensor,
    tokens: torch.Tensor,
    sampler: Sampler = Sampler(),  # noqa: B008  frozen
) -> dict[str, torch.Tensor]:
    """Every entry of ``STATISTICS`` for logits (…, V) and tokens (…), computed in float64.

    p is what ``sampler`` makes of its logits, q is read at the sampler's temperature and never truncated;
    where p has no mass but q has, the divergences of q from p are inf. ``max_log_ratio`` is max over the
    vocabulary of |log q − log p|.
    """
    log_p = sampler.log_probs(p_logits)
    log_q = torch.log_softmax(q_logits.double() / sampler.temperature, -1)
    p, q = log_p.exp(), log_q.exp()
    chosen = tokens.to(log_p.device)[..., None]
    return {
        "log_p": log_p.gather(-1, chosen)[..., 0],
        "log_q": log_q.gather(-1, chosen)[..., 0],
        "entropy_p": divergences.entropy(p),
        "entropy_q": divergences.entropy(q),
        "tv": divergences.tv(p, q),
        "kl_pq": divergences.kl(p, q),
        "kl_qp": divergences.kl(q, p),
        "chi2_qp": divergences.chi2(q, p),
        "jsd": divergences.jsd(p, q),
        "hellinger2": divergences.hellinger2(p, q),
        "max_log_ratio": (log_q - log_p).abs().amax(-1),
        "mean_ratio": torch.where(p > 0, q, torch.zeros_like(q)).sum(-1),
    }


def gather_blocks(
    blocks: Iterable[tuple[Sequence[int], int, int, torch.Tensor, torch.Tensor, torch.Tensor]],
    tokens: np.ndarray,
    extra: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], dict[str, torch.Tensor]] = pair_statistics,
) -> dict[str, np.ndarray]:
    """Fold a stream of paired logits into arrays (B, T), zero outside the response mask."""
    results: dict[str, np.ndarray] = {}
    for rows, start, stop, p_logits, q_logits, mask in blocks:
        part = torch.from_numpy(tokens[list(rows)][:, start:stop])
        for name, values in extra(p_logits, q_logits, part).items():
            out = results.setdefault(name, np.zeros(tokens.shape))
            found = torch.where(mask, values.cpu(), torch.zeros((), dtype=values.dtype))
            out[np.ix_(list(rows), range(start, stop))] = found.numpy()
    return results


def compare(
    rollout: Engine,
    train: Engine,
    prompts: Ids,
    responses: Ids,
    tokens: np.ndarray,
    chunk: int,
    sampler: Sampler = Sampler(),  # noqa: B008  frozen
) -> dict[str, Any]:
    """Per-token statistics (B, T) with p what ``sampler`` draws from the rollout engine and q the trainer's
    policy at the same temperature.
    """
    measure = partial(pair_statistics, sampler=sampler)
    return gather_blocks(paired(rollout, train, prompts, responses, chunk), tokens, measure)
