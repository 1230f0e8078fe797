"""Hypothesis strategies: instances of every kind, as floats or as exact rationals, for executable theorems.

>>> from hypothesis import given
>>> @given(policy_pairs(exact=True))
... def never_negative(pair):
...     assert pair.tv_seq >= 0
>>> never_negative()

Needs the package ``hypothesis``, which is not a requirement of the core.
"""

from __future__ import annotations

from typing import Any

import flint
import numpy as np
from hypothesis import strategies as st

from opdtheory import spaces
from opdtheory.elementary import exact as exact_number
from opdtheory.spaces import Size, Space
from opdtheory.verification import blocks as bl

__all__ = ["distributions", "instances", "policy_pairs", "single_states", "teacher_students", "token_trees"]


@st.composite
def distributions(draw: st.DrawFn, size: int, zeros: bool = True, largest: int = 12) -> list[flint.fmpq]:
    """Exact probability vectors of length ``size``: whole weights up to ``largest``, normalised.

    Shrinks towards uniform weights; zeros (and so deterministic vectors) are drawn if allowed.
    """
    weights = draw(st.lists(st.integers(0 if zeros else 1, largest), min_size=size, max_size=size))
    if not any(weights):
        weights[draw(st.integers(0, size - 1))] = 1
    total = sum(weights)
    return [flint.fmpq(w, total) for w in weights]


@st.composite
def _values(draw: st.DrawFn, blocks: dict[str, bl.Block]) -> bl.Values:
    out: bl.Values = {}
    for name, block in blocks.items():
        array = np.empty(block.shape, dtype=object)
        if isinstance(block, bl.Simplex):
            for index in np.ndindex(block.shape[:-1]):
                array[index] = draw(distributions(block.shape[-1], zeros=block.zeros))
        else:
            steps = 12
            for index in np.ndindex(block.shape):
                k = draw(st.integers(0, steps))
                lo, hi = (exact_number(str(end)) for end in (block.lo, block.hi))
                array[index] = lo + (hi - lo) * k / steps
        out[name] = array
    return out


@st.composite
def instances(draw: st.DrawFn, space: Space, exact: bool = False) -> Any:
    """Instances of any :class:`~opdtheory.spaces.Space`: exact rationals, or the same numbers as float64.

    Float instances carry no batch axis; every quantity is a scalar.
    """
    size: Size = draw(st.sampled_from(space.sizes))
    values = draw(_values(space.blocks(**size)))
    return space.build(values if exact else bl.to_float(values), **size)


def policy_pairs(exact: bool = False, **options: Any) -> st.SearchStrategy[Any]:
    """Policy pairs with rewards; ``options`` as in :func:`opdtheory.spaces.policy_pairs`."""
    return instances(spaces.policy_pairs(**options), exact=exact)


def teacher_students(exact: bool = False, **options: Any) -> st.SearchStrategy[Any]:
    """Teacher–student pairs; ``options`` as in :func:`opdtheory.spaces.teacher_students`."""
    return instances(spaces.teacher_students(**options), exact=exact)


def single_states(exact: bool = False, **options: Any) -> st.SearchStrategy[Any]:
    """Pairs of distributions; ``options`` as in :func:`opdtheory.spaces.single_states`."""
    return instances(spaces.single_states(**options), exact=exact)


@st.composite
def token_trees(draw: st.DrawFn, largest_vocab: int = 3, largest_horizon: int = 3) -> Any:
    """Token trees with and without EOS, one or two prompts."""
    from opdtheory.tabular import TokenTree

    vocab = draw(st.integers(1, largest_vocab))
    horizon = draw(st.integers(1, largest_horizon))
    eos = draw(st.none() | st.integers(0, vocab - 1))
    return TokenTree(vocab=vocab, horizon=horizon, eos=eos, prompts=draw(st.integers(1, 2)))
