"""The instance spaces that claims quantify over.

A :class:`Space` names a kind of instance, the sizes to try (smallest first, so that the first refuted size is the
smallest), the free numbers as blocks, and how to build an instance from them.  ``build`` gets either float arrays
with a leading lane axis or object arrays of exact rationals without one, and must work on both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

import flint
import numpy as np

from opdtheory.elementary import exact
from opdtheory.tabular import DiscountedMDP, PolicyPair, SingleState, TeacherStudent, TokenTree
from opdtheory.verification.blocks import Block, Box, LogBox, Simplex, Values

__all__ = ["Box", "LogBox", "Scalars", "Simplex", "Size", "Space", "discounted_mdps", "policy_pairs", "scalars", "single_states",
           "teacher_students"]  # fmt: skip

Size = Mapping[str, Any]
Condition = tuple[Any, str, Any]


def _between(low: Any, high: Any, ends: tuple[float, float]) -> list[Condition]:
    """ends[0] ≤ low and high ≤ ends[1], the ends read as the decimals they were written as."""
    return [(low, ">=", Fraction(str(ends[0]))), (high, "<=", Fraction(str(ends[1])))]


@dataclass(frozen=True)
class Space:
    """A family of instances.

    Attributes:
        kind: certificate kind; also selects the primitives a recorded claim may use.
        sizes: keyword arguments of ``blocks`` and ``build``, smallest first.
        blocks: size → ordered blocks of free numbers.
        build: (values, **size) → instance.
        serialise: exact instance → JSON-ready dict of the certificate's ``instance``.
        structure: size → plain integers a claim may read while being recorded.
        pairs: block-name prefixes that are sampled near or opposite each other.
        conditions: recorded instance → (lhs, relation, rhs) triples that every instance of the space satisfies beside the
            ranges of its named scalars, which :meth:`scope` adds; a certificate states them all, so that its reader sees
            the whole scope of the claim.
        description: one line for reports.
        reach: largest vocabulary and horizon of a wide sweep; less than (4, 6) only where the statement ends earlier.
    """

    kind: str
    sizes: tuple[Size, ...]
    blocks: Callable[..., dict[str, Block]]
    build: Callable[..., Any]
    serialise: Callable[[Any], dict[str, Any]]
    structure: Callable[..., dict[str, Any]] = field(default=lambda **size: {})
    pairs: tuple[tuple[str, str], ...] = ()
    conditions: Callable[[Any], list[Condition]] = field(default=lambda x: [])
    description: str = ""
    reach: tuple[int, int] = (4, 6)

    def wide(self) -> tuple[Size, ...]:
        """Every size of the wide sweep that is not among ``sizes``: vocabularies and horizons from the smallest declared to
        ``reach``, on trees (end-of-sequence token, prompts) like the smallest."""
        if not self.sizes or "vocab" not in self.sizes[0]:
            return ()
        first = self.sizes[0]
        vocabs = range(min(s["vocab"] for s in self.sizes), self.reach[0] + 1)
        if "horizon" not in first:
            swept: list[Size] = [{**first, "vocab": v} for v in vocabs]
        else:
            ends = first["eos"] is not None
            horizons = range(min(s["horizon"] for s in self.sizes), self.reach[1] + 1)
            swept = [{**first, "vocab": v, "horizon": t, "eos": v - 1 if ends else None} for v in vocabs for t in horizons]
        return tuple(size for size in swept if size not in self.sizes)

    def scope(self, x: Any, size: Size, names: Iterable[str]) -> list[Condition]:
        """What every instance of this size satisfies: named scalars lie in their boxes, and ``conditions``.

        ``x`` is an instance or a recorder; ``names`` are the scalars it carries by name.
        """
        out: list[Condition] = []
        for name, block in self.blocks(**size).items():
            if name in names and isinstance(block, Box):
                value, ends = getattr(x, name), (block.lo, block.hi)
                out += [(value, "==", Fraction(str(block.lo)))] if block.lo == block.hi else _between(value, value, ends)
        return out + self.conditions(x)

    def admits(self, size: Size) -> bool:
        """Whether instances of this size belong to the space, tried or not: end-of-sequence token, prompts and whatever else
        is the same at every declared size must be so, and no number may be below the smallest declared one."""
        for name in set(size) | {key for declared in self.sizes for key in declared}:
            value: Any = size.get(name)
            declared: set[Any] = {s.get(name) for s in self.sizes}
            if name == "eos":
                if (value is None) not in {d is None for d in declared}:
                    return False
            elif value not in declared and (value is None or None in declared or len(declared) == 1 or value < min(declared)):
                return False
        return True

    def with_sizes(self, *sizes: Size) -> Space:
        """The same space restricted to (or extended by) the given sizes, smallest first."""
        return replace(self, sizes=tuple(sizes))


# ---------------------------------------------------------------------------------------------- scalars


class Scalars:
    """Named scalars as attributes; each a float array (lanes,) or an exact number."""

    def __init__(self, values: Mapping[str, Any]):
        self.__dict__.update(values)

    def __repr__(self) -> str:
        return f"Scalars({', '.join(f'{k}={v}' for k, v in self.__dict__.items())})"


def scalars(**domains: tuple[float, float] | Box) -> Space:
    """Scalar parameters, each in [lo, hi] (a pair) or in a given :class:`Box` / :class:`LogBox` of shape ()."""
    blocks: dict[str, Block] = {
        name: d if isinstance(d, Box) else Box((), float(d[0]), float(d[1])) for name, d in domains.items()
    }
    return Space(
        kind="scalar",
        sizes=({},),
        blocks=lambda: blocks,
        build=lambda values: Scalars({k: v if v.shape else v.item() for k, v in values.items()}),
        serialise=lambda x: {name: str(exact(getattr(x, name))) for name in domains},
        description="scalars " + ", ".join(f"{k} ∈ [{b.lo:g}, {b.hi:g}]" for k, b in blocks.items()),  # type: ignore[union-attr]
    )


# ------------------------------------------------------------------------------------------ single states


def _restrict(p: Any, support: Any) -> Any:
    """Zero ``p`` outside ``support`` and renormalise rows; a row left empty falls back to ``support`` itself."""
    kept = np.where(support > 0, p, 0 * p)
    total = kept.sum(axis=-1, keepdims=True)
    kept = np.where(total == 0, support, kept)
    return kept / kept.sum(axis=-1, keepdims=True)


def single_states(
    vocab: tuple[int, ...] = (2, 3, 4, 6),
    full_support: bool = False,
    absolutely_continuous: bool = False,
    values: tuple[float, float] | None = None,
    extra: Mapping[str, tuple[float, float] | Box] | None = None,
) -> Space:
    """Pairs (p, q) of distributions over V actions: p generates (student, behaviour), q is the target or teacher.

    ``full_support`` forbids zeros; ``absolutely_continuous`` makes supp p ⊆ supp q (finite log ratios under p);
    ``values`` adds a vector of V numbers in that range; ``extra`` adds named scalars (for instance alpha) to the instance.
    """
    scalar_blocks = {k: d if isinstance(d, Box) else Box((), float(d[0]), float(d[1])) for k, d in (extra or {}).items()}

    def blocks(vocab: int) -> dict[str, Block]:
        out: dict[str, Block] = {"p": Simplex((vocab,), not full_support), "q": Simplex((vocab,), not full_support)}
        if values is not None:
            out["values"] = Box((vocab,), *values)
        return out | scalar_blocks

    def build(b: Values, vocab: int) -> Any:
        p = _restrict(b["p"], b["q"]) if absolutely_continuous else b["p"]
        named = {k: b[k] if b[k].shape else b[k].item() for k in scalar_blocks}
        return SingleState(p, b["q"], values=b.get("values"), validate=False, **named)

    def conditions(x: Any) -> list[Condition]:
        out: list[Condition] = []
        if values is not None:
            out += _between(x.values_min, x.values_max, values)
        if full_support:
            out += [(x.min_p, ">", 0), (x.min_q, ">", 0)]
        elif absolutely_continuous:
            out.append((x.p_covered, "==", 1))
        return out

    return Space(
        kind="single_state",
        sizes=tuple({"vocab": v} for v in vocab),
        blocks=blocks,
        build=build,
        serialise=lambda x: x.to_data(),
        structure=lambda vocab: {"V": vocab},
        pairs=(("p", "q"),),
        conditions=conditions,
        description=f"pairs of distributions over V ∈ {vocab}" + (", full support" if full_support else ""),
    )


# -------------------------------------------------------------------------------------------- policy pairs


def _size(vocab: int, horizon: int, eos: int | None = None, prompts: int = 1) -> Size:
    return {"vocab": vocab, "horizon": horizon, "eos": eos, "prompts": prompts}


SMALL = (_size(2, 1), _size(2, 2), _size(3, 2), _size(2, 3), _size(3, 3))
"""Default sizes of fixed-length trees."""
WITH_EOS = (_size(2, 2, eos=1), _size(3, 2, eos=2), _size(2, 3, eos=1), _size(3, 3, eos=2))
"""Default sizes of trees with an end-of-sequence token."""


def _levels(tree: Any) -> list[tuple[int, int]]:
    return [(tree.contexts(t), tree.vocab) for t in range(tree.horizon)]


@lru_cache(maxsize=256)
def _tree(vocab: int, horizon: int, eos: int | None, prompts: int) -> TokenTree:
    return TokenTree(vocab=vocab, horizon=horizon, eos=eos, prompts=prompts)


def _policy_blocks(name: str, tree: Any, zeros: bool) -> dict[str, Block]:
    return {f"{name}.{t}": Simplex(shape, zeros) for t, shape in enumerate(_levels(tree))}


def _reward_blocks(tree: Any, lo: float, hi: float) -> dict[str, Block]:
    """Rewards sit on ending actions: EOS at any level, every action of the last."""
    out: dict[str, Block] = {}
    for t, (contexts, vocab) in enumerate(_levels(tree)):
        if t == tree.horizon - 1:
            out[f"reward.{t}"] = Box((contexts, vocab), lo, hi)
        elif tree.eos is not None:
            out[f"reward.{t}"] = Box((contexts, 1), lo, hi)
    return out


def _reward_levels(tree: Any, b: Values) -> list[Any]:
    levels = []
    for t, (contexts, vocab) in enumerate(_levels(tree)):
        free = b.get(f"reward.{t}")
        if t == tree.horizon - 1 and free is not None:
            levels.append(free)
            continue
        like = b["mu.0"]
        lead = like.shape[: like.ndim - 2]
        level = np.zeros((*lead, contexts, vocab), dtype=like.dtype)
        if like.dtype == object:
            level[...] = flint.fmpq(0)
        if free is not None:
            level[..., tree.eos] = free[..., 0]
        levels.append(level)
    return levels


def policy_pairs(
    reward: tuple[float, float] | str | None = (0.0, 1.0),
    sizes: tuple[Size, ...] = SMALL,
    absolutely_continuous: bool = False,
    full_support: bool = False,
) -> Space:
    """Behaviour μ, target π and a terminal reward on token trees.

    Args:
        reward: range of a free terminal reward; ``"extremal"`` puts R = 1 where n(y) > 0, which attains
            sup over R in [0, 1] of |Error| for the given policies; None leaves the reward zero.
        absolutely_continuous: restrict supp π to supp μ at every context.
        full_support: no zero probabilities at all.
    """

    def blocks(vocab: int, horizon: int, eos: int | None, prompts: int) -> dict[str, Block]:
        tree = _tree(vocab, horizon, eos, prompts)
        out = _policy_blocks("mu", tree, not full_support) | _policy_blocks("pi", tree, not full_support)
        if isinstance(reward, tuple):
            out |= _reward_blocks(tree, *reward)
        return out

    def build(b: Values, vocab: int, horizon: int, eos: int | None, prompts: int) -> Any:
        tree = _tree(vocab, horizon, eos, prompts)
        mu = [b[f"mu.{t}"] for t in range(horizon)]
        pi = [b[f"pi.{t}"] for t in range(horizon)]
        if absolutely_continuous:
            pi = [_restrict(p, m) for p, m in zip(pi, mu, strict=True)]
        levels = _reward_levels(tree, b)
        pair = PolicyPair.from_levels(tree, mu, pi, levels, validate=False)
        if reward == "extremal":
            pair = pair.with_reward(pair.extremal_reward())
        return pair

    def conditions(x: Any) -> list[Condition]:
        ends = (0, 1) if isinstance(reward, str) else reward
        out = [] if ends is None else _between(x.reward_min, x.reward_max, ends)
        if full_support:
            out += [(x.min_behavior, ">", 0), (x.min_target, ">", 0)]
        elif absolutely_continuous:
            out.append((x.support_ok, "==", 1))
        return out

    return Space(
        kind="policy_pair",
        sizes=sizes,
        blocks=blocks,
        build=build,
        serialise=lambda x: x.to_data(),
        structure=lambda vocab, horizon, eos, prompts: {"V": vocab, "T": horizon, "horizon": horizon},
        pairs=(("mu", "pi"),),
        conditions=conditions,
        description="policy pairs"
        + (" with supp π ⊆ supp μ" if absolutely_continuous else "")
        + (f", rewards in [{reward[0]:g}, {reward[1]:g}]" if isinstance(reward, tuple) else "")
        + (", worst-case reward in [0, 1]" if reward == "extremal" else ""),
    )


def teacher_students(
    sizes: tuple[Size, ...] = SMALL,
    full_support: bool = True,
    candidate: bool = False,
    extra: Mapping[str, tuple[float, float] | Box] | None = None,
) -> Space:
    """Teacher and student policies (and a third ``candidate`` policy if asked for); ``extra`` adds named scalars."""
    scalar_blocks = {k: d if isinstance(d, Box) else Box((), float(d[0]), float(d[1])) for k, d in (extra or {}).items()}
    names = ("teacher", "student", *(("candidate",) if candidate else ()))

    def blocks(vocab: int, horizon: int, eos: int | None, prompts: int) -> dict[str, Block]:
        tree = _tree(vocab, horizon, eos, prompts)
        out: dict[str, Block] = {}
        for name in names:
            out |= _policy_blocks(name, tree, not full_support)
        return out | scalar_blocks

    def build(b: Values, vocab: int, horizon: int, eos: int | None, prompts: int) -> Any:
        tree = _tree(vocab, horizon, eos, prompts)
        levels = {name: [b[f"{name}.{t}"] for t in range(horizon)] for name in names}
        named: dict[str, Any] = {k: b[k] if b[k].shape else b[k].item() for k in scalar_blocks}
        return TeacherStudent.from_levels(tree, **levels, validate=False, **named)

    def conditions(x: Any) -> list[Condition]:
        return [(getattr(x, f"min_{name}"), ">", 0) for name in names] if full_support else []

    pairs = (("teacher", "student"), *((("student", "candidate"),) if candidate else ()))
    return Space(
        kind="teacher_student",
        sizes=sizes,
        blocks=blocks,
        build=build,
        serialise=lambda x: x.to_data(),
        structure=lambda vocab, horizon, eos, prompts: {"V": vocab, "T": horizon, "horizon": horizon},
        pairs=pairs,
        conditions=conditions,
        description="teacher and student" + (" and candidate" if candidate else "") + (", full support" if full_support else ""),
    )


def discounted_mdps(
    sizes: tuple[tuple[int, int], ...] = ((1, 2), (2, 2), (3, 2)),
    gamma: tuple[float, float] = (0.0, 0.95),
    reward: tuple[float, float] = (-1.0, 1.0),
) -> Space:
    """Discounted decision processes with (states, actions) from ``sizes``, a behaviour and a target policy."""

    def blocks(states: int, actions: int) -> dict[str, Block]:
        return {
            "behavior": Simplex((states, actions)),
            "target": Simplex((states, actions)),
            "transition": Simplex((states, actions, states)),
            "initial": Simplex((states,)),
            "reward": Box((states, actions), *reward),
            "gamma": Box((), *gamma),
        }

    def build(b: Values, states: int, actions: int) -> DiscountedMDP:
        return DiscountedMDP(**b, validate=False)

    return Space(
        kind="discounted_mdp",
        sizes=tuple({"states": s, "actions": a} for s, a in sizes),
        blocks=blocks,
        build=build,
        serialise=lambda x: x.to_data(),
        structure=lambda states, actions: {"states": states, "actions": actions},
        pairs=(("behavior", "target"),),
        conditions=lambda x: _between(x.gamma, x.gamma, gamma) + _between(x.reward_min, x.reward_max, reward),
        description=f"discounted decision processes, γ in [{gamma[0]:g}, {gamma[1]:g}]",
    )
