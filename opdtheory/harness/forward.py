"""Forward passes in which full logits exist for one chunk of positions at a time.

``prompts`` and ``responses`` are lists of token-id lists; position ``t`` of a response is predicted from the
prompt and the tokens before ``t``. Blocks of logits have shape (rows, positions, vocab).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.checkpoint import checkpoint

from .models import LanguageModel, check_context

Ids = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Block:
    """Logits (rows, stop − start, vocab) of response positions start..stop−1, valid where ``mask`` is
    True.
    """

    start: int
    stop: int
    logits: torch.Tensor
    mask: torch.Tensor


def pad(rows: Ids, value: int = 0, *, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (B, T) and a bool mask (B, T) of rows of unequal length.

    >>> pad([[5], [6, 7]], left=True)[0].tolist()
    [[0, 5], [6, 7]]
    """
    width = max((len(r) for r in rows), default=0)
    ids = torch.full((len(rows), width), value, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, where] = torch.tensor(list(row), dtype=torch.long)
        mask[i, where] = True
    return ids, mask


def hidden_states(model: LanguageModel, prompts: Ids, responses: Ids, *, left: bool = False) -> torch.Tensor:
    """The hidden states (B, T, d) that predict each response token, by one padded forward pass; autograd
    flows.
    """
    check_context(model, prompts, max((len(r) for r in responses), default=0))
    ids, mask = pad([[*p, *r] for p, r in zip(prompts, responses, strict=True)], left=left)
    positions = (mask.long().cumsum(-1) - 1).clamp_min(0)
    device = model.device
    states = model.trunk(
        input_ids=ids.to(device),
        attention_mask=mask.to(device) if not bool(mask.all()) else None,
        position_ids=positions.to(device),
        use_cache=False,
    ).last_hidden_state
    width = max((len(r) for r in responses), default=0)
    offset = torch.tensor(
        [ids.shape[1] - len(p) - len(r) if left else 0 for p, r in zip(prompts, responses, strict=True)]
    )
    first = offset + torch.tensor([len(p) - 1 for p in prompts])
    index = (first[:, None] + torch.arange(width)).clamp_max(ids.shape[1] - 1).to(states.device)
    return torch.take_along_dim(states, index[..., None], dim=1)


def logit_blocks(model: LanguageModel, states: torch.Tensor, responses: Ids, chunk: int) -> Iterator[Block]:
    """Apply the head to hidden states (B, T, d), ``chunk`` positions at a time."""
    _, mask = pad(responses)
    for start in range(0, states.shape[1], chunk):
        stop = min(start + chunk, states.shape[1])
        yield Block(
            start, stop, model.head(states[:, start:stop].to(model.head.weight.device)), mask[:, start:stop]
        )


def token_log_probs(
    model: LanguageModel, states: torch.Tensor, tokens: torch.Tensor, *, chunk: int = 64
) -> tuple[torch.Tensor, torch.Tensor]:
    """log π of ``tokens`` (B, T) and the entropy (B, T) of each distribution, in nats; differentiable in the
    states.

    Each chunk is recomputed in the backward pass, so the logits of one chunk are all that ever exists.
    """

    def piece(part: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_p = torch.log_softmax(model.head(part).to(_accumulate(part.dtype)), dim=-1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        return log_p.gather(-1, ids[..., None])[..., 0], entropy

    results = []
    for start in range(0, states.shape[1], chunk):
        part = states[:, start : start + chunk].to(model.head.weight.device)
        ids = tokens[:, start : start + chunk].to(part.device)
        grad = torch.is_grad_enabled() and (part.requires_grad or model.head.weight.requires_grad)
        results.append(checkpoint(piece, part, ids, use_reentrant=False) if grad else piece(part, ids))
    return torch.cat([r[0] for r in results], 1), torch.cat([r[1] for r in results], 1)


def _accumulate(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
