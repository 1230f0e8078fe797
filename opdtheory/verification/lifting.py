"""Instances carried to larger trees: the best of a small size starts the search at the next one.

A larger vocabulary gets one more token that nobody draws; a longer horizon gets one more step, first or last, in
which all policies agree or do what they do in the step beside it.  Most quantities keep their value, so that a wide
sweep begins where the narrow one ended instead of at random among thousands of coordinates.
"""

from __future__ import annotations

import numpy as np

from opdtheory.spaces import Size, Space
from opdtheory.verification import blocks as bl

Array = np.ndarray
Layout = dict[str, bl.Block]
Parts = dict[str, Array]


def lifts(space: Space, theta: Array, size: Size, larger: Size) -> Array:
    """Coordinates (lanes, numbers) at ``size`` → starts at ``larger``, several a lane, or none.

    ``larger`` has one token or one step more and is otherwise the same tree; instances that are not tables on a tree
    are not carried over.
    """
    if not len(theta) or not {"vocab", "horizon", "eos", "prompts"} <= set(size):
        return np.empty((0, 0))
    layout, wanted = space.blocks(**size), space.blocks(**larger)
    parts = _split(layout, theta)
    if larger["horizon"] == size["horizon"]:
        candidates = [_wider(layout, parts, size)]
    else:
        candidates = [_longer(layout, parts, size, first, repeat) for first in (False, True) for repeat in (False, True)]
    shapes = {name: block.shape for name, block in wanted.items()}
    fitting = [c for c in candidates if {name: part.shape[1:] for name, part in c.items()} == shapes]
    rows = [np.concatenate([c[name].reshape(len(theta), -1) for name in wanted], axis=1) for c in fitting]
    return np.concatenate(rows) if rows else np.empty((0, 0))


def _split(layout: Layout, theta: Array) -> Parts:
    out, start = {}, 0
    for name, block in layout.items():
        stop = start + bl.size_of(block)
        out[name] = theta[:, start:stop].reshape(len(theta), *block.shape)
        start = stop
    return out


def _step(name: str) -> tuple[str, int | None]:
    """``pi.2`` → (``pi``, 2); a number that belongs to no step → (its name, None)."""
    stem, _, t = name.rpartition(".")
    return (stem, int(t)) if stem and t.isdigit() else (name, None)


def _branching(size: Size) -> int:
    return int(size["vocab"]) - (size["eos"] is not None)


def _wider(layout: Layout, parts: Parts, size: Size) -> Parts:
    """One more continuing token, never drawn; what would follow it is a copy of what follows token 0."""
    b, eos = _branching(size), size["eos"]
    columns = [*range(b), 0, *([] if eos is None else [eos])]
    contexts = [np.arange(size["prompts"])]
    for _ in range(int(size["horizon"]) - 1):
        contexts.append((contexts[-1][:, None] * b + np.array([*range(b), 0])).reshape(-1))
    out: Parts = {}
    for name, part in parts.items():
        _, t = _step(name)
        if t is None:
            out[name] = part
            continue
        rows, block = part[:, contexts[t]], layout[name]
        if rows.shape[-1] > 1:  # otherwise the reward of the end-of-sequence token alone
            rows = rows[..., columns]
        if isinstance(block, bl.Simplex):
            top = part[:, contexts[t]].max(axis=-1, keepdims=True)
            # the new token's coordinate counts as (nearly) nothing only in rows whose largest is well above it
            drawn = (rows > bl.ZERO_BELOW) | (rows == top) | (not block.zeros)
            rows = np.where(drawn, np.clip(rows + np.maximum(0.5 * bl.LIMIT - top, 0.0), -bl.LIMIT, bl.LIMIT), rows)
            rows[..., b] = -bl.LIMIT
        out[name] = rows
    return out


def _longer(layout: Layout, parts: Parts, size: Size, first: bool, repeat: bool) -> Parts:
    """One more step, ``first`` or last, in which policies agree or (``repeat``) do as in the step beside it."""
    b, eos, horizon, prompts = _branching(size), size["eos"], int(size["horizon"]), int(size["prompts"])
    out: Parts = {}
    for name, part in parts.items():
        stem, t = _step(name)
        if t is None:
            out[name] = part
            continue
        policy = isinstance(layout[name], bl.Simplex)
        lanes, _, width = part.shape
        if first:
            out[f"{stem}.{t + 1}"] = np.repeat(part.reshape(lanes, prompts, 1, -1, width), b, axis=2).reshape(lanes, -1, width)
            if t == 0 and policy:
                out[name] = part if repeat else _agreed(part, eos)
            elif t == 0 and eos is not None:
                out[name] = np.zeros((lanes, prompts, 1))
        elif policy:
            out[name] = part
            if t == horizon - 1:
                last = np.repeat(part, b, axis=1)
                out[f"{stem}.{horizon}"] = last if repeat else _agreed(last, None)
        elif t < horizon - 1:
            out[name] = part
        else:  # what the last token earned is earned one step later, whatever that step's token
            if eos is not None:
                out[name] = part[..., [eos]]
            continuing = [a for a in range(int(size["vocab"])) if a != eos]
            out[f"{stem}.{horizon}"] = np.repeat(part[..., continuing].reshape(lanes, -1, 1), width, axis=-1)
    return out


def _agreed(like: Array, never: int | None) -> Array:
    """Coordinates of the uniform distribution, over the tokens other than ``never``."""
    out = np.zeros_like(like)
    if never is not None:
        out[..., never] = -bl.LIMIT
    return out
