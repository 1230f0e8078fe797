"""Attack: structured random instances, then batched ascent from the best of them.

The ascent is a (1+1) evolution strategy on thousands of lanes at once: each lane proposes one move a round and
keeps it if the score did not fall; step sizes adapt per lane; half of the moves touch few coordinates and some jump
to the boundary, where extreme instances live; now and then the worse half restarts from the better half.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from opdtheory.spaces import Size, Space
from opdtheory.verification import blocks as bl
from opdtheory.verification.claim import Claim

FLOOR = 1e-9
"""Added to the denominator of a ratio: two sides that are both rounding noise must not look like a violation."""
EXCESS = 1e-7
"""A float score this far above its threshold is worth an attempt at exact confirmation, nothing more."""
_INFEASIBLE = -1e6
_SIGN = {"<=": 1, "<": 1, ">=": -1, ">": -1}


class SidesError(Exception):
    """A claim's ``sides`` or ``given`` raised, returned NaN or the wrong shape.

    ``values`` are the blocks of the instances on which it happened, a lane each, or of the one exact instance;
    ``instance`` is the one to blame, ready for JSON, once :func:`opdtheory.verification.failures.blame` has found it.
    """

    def __init__(self, claim_id: str, problem: str, size: Size | None = None, values: bl.Values | None = None):
        super().__init__(f"{claim_id}: {problem}")
        self.claim_id, self.problem, self.size, self.values = claim_id, problem, size, values
        self.instance: dict[str, Any] | None = None

    def __reduce__(self) -> Any:
        return SidesError, (self.claim_id, self.problem)


def threshold(claim: Claim) -> float:
    """The score above which an instance looks like a violation."""
    return 1.0 if claim.has_ratio else 0.0


def scores(claim: Claim, instance: Any, lanes: int) -> tuple[np.ndarray, np.ndarray]:
    """Score of each lane, larger is worse for the claim, and the ratio lhs/(scale·rhs) where that means anything.

    Ratio claims score lhs/(scale·rhs); signed inequalities the margin by which they fail; equalities the relative
    discrepancy.  Lanes that miss a ``given`` condition score below every lane that meets it.
    """
    try:
        with np.errstate(all="ignore"):
            assert claim.sides is not None
            lhs, rhs = (np.asarray(side, dtype=float) for side in claim.sides(instance))
            given = [] if claim.given is None else claim.given(instance)
    except SidesError:
        raise
    except Exception as problem:
        raise SidesError(claim.id, f"sides raised {type(problem).__name__}: {problem}") from problem
    for name, side in (("lhs", lhs), ("rhs", rhs)):
        if side.shape not in {(), (lanes,)}:
            raise SidesError(claim.id, f"{name} has shape {side.shape}, expected ({lanes},)")
    lhs, rhs = np.broadcast_to(lhs, (lanes,)), np.broadcast_to(rhs, (lanes,)) * float(claim.scale)
    if claim.relation in {">=", ">"}:
        lhs, rhs = rhs, lhs
    with np.errstate(all="ignore"):
        if claim.has_ratio:
            score = lhs / (rhs + FLOOR)
        elif claim.relation in {"==", "identity"}:
            score = np.abs(lhs - rhs) / (1.0 + np.abs(lhs) + np.abs(rhs)) - EXCESS
            score = np.where(np.isinf(lhs) != np.isinf(rhs), 1.0, score)
        else:
            score = lhs - rhs
        if claim.has_ratio:
            score = np.where(lhs == rhs, np.minimum(score, threshold(claim)), score)
        # two infinities of one sign satisfy every relation but say nothing about tightness
        score = np.where((lhs == rhs) & np.isinf(lhs), -1.0, score)
        if claim.relation not in {"==", "identity"}:
            score = np.where(np.isposinf(rhs) & np.isfinite(lhs), -1.0 if not claim.has_ratio else 0.0, score)
    ratio = score
    feasible_by = np.full(lanes, np.inf)
    for a, relation, b in given:
        if relation not in _SIGN:
            raise SidesError(claim.id, f"a given condition has relation {relation!r}, expected one of {', '.join(_SIGN)}")
        sign = _SIGN[relation]
        with np.errstate(all="ignore"):
            margin = sign * (np.asarray(b, dtype=float) - np.asarray(a, dtype=float))
        # +inf − +inf says nothing about feasibility: such lanes do not meet the condition
        feasible_by = np.minimum(feasible_by, np.where(np.isnan(margin), -np.inf, margin))
    if given:
        # a violation counts only with room to spare in every condition
        score = np.where(feasible_by > 0, np.minimum(score, feasible_by), _INFEASIBLE + np.maximum(feasible_by, _INFEASIBLE / 2))
    if np.isnan(score).any():
        lane = int(np.flatnonzero(np.isnan(score))[0])
        raise SidesError(claim.id, f"sides gave lhs={lhs[lane]}, rhs={rhs[lane]} (NaN)")
    return np.clip(score, -1e12, 1e12), ratio


@dataclass
class Findings:
    """What an attack on one size found: the best lanes, best first."""

    size: Size
    theta: np.ndarray
    score: np.ndarray
    instances: int = 0
    ascents: int = 0

    @property
    def best(self) -> float:
        return float(self.score[0]) if len(self.score) else -np.inf

    def settled(self, limit: float, lanes: int) -> Findings:
        """The best ``lanes`` after a confirmation that failed: scores above ``limit`` were rounding noise, not evidence.

        Lanes at or below the limit come first; only where every lane is above it does one stand, cut to the limit.
        """
        kept = np.flatnonzero(self.score <= limit)
        kept = kept[:lanes] if len(kept) else np.arange(min(1, len(self.score)))
        return replace(self, theta=self.theta[kept], score=np.minimum(self.score[kept], limit))


@dataclass
class Budget:
    """How hard to search: lanes, random instances, ascent rounds, per size."""

    lanes: int = 256
    samples: int = 4096
    rounds: int = 300
    sizes: tuple[Size, ...] | None = field(default=None)

    def within(self, numbers: int, work: float) -> Budget:
        """This budget, cut so that a search over instances of ``numbers`` free numbers touches at most about ``work`` of them."""
        share = work / ((self.samples + self.lanes * self.rounds) * numbers)
        if share >= 1:
            return self
        lanes = max(16, int(self.lanes * share**0.5))
        rounds = max(20, int(0.8 * work / numbers / lanes))
        return replace(self, lanes=lanes, rounds=rounds, samples=max(2 * lanes, int(0.2 * work / numbers)))


def evaluate(claim: Claim, size: Size, values: bl.Values, lanes: int) -> np.ndarray:
    """Scores of the instances with these float blocks, a lane each."""
    assert claim.space is not None
    try:
        try:
            instance = claim.space.build(values, **size)
        except Exception as problem:
            raise SidesError(claim.id, f"its space could not build an instance: {type(problem).__name__}: {problem}") from problem
        return scores(claim, instance, lanes)[0]
    except SidesError as problem:
        problem.size, problem.values = size, values
        raise


def starts(claim: Claim, space: Space, size: Size, rng: np.random.Generator, count: int) -> np.ndarray:
    """Random structured instances, with the claim's own extremal candidates (if it offers any) among them."""
    layout = space.blocks(**size)
    theta = bl.sample(layout, rng, count, space.pairs)
    if claim.structured is not None:
        offered = [bl.encode(layout, bl.to_float(values)) for values in claim.structured(**size)]
        for row, candidate in zip(theta, offered, strict=False):
            row[:] = candidate
    return theta


def attack(
    claim: Claim,
    size: Size,
    budget: Budget,
    rng: np.random.Generator,
    stop_early: bool = True,
    offered: np.ndarray | None = None,
) -> Findings:
    """Sample, then climb from the best lanes; returns lanes sorted by score.

    ``stop_early`` ends the climb once some lane is a clear violation (the caller then tries to confirm it);
    ``offered`` holds further starts (lanes × coordinates), such as the best instances of smaller sizes.
    """
    space = claim.space
    assert space is not None
    layout = space.blocks(**size)
    found = Findings(size, np.empty((0, 0)), np.empty(0))
    pool_theta: list[np.ndarray] = []
    pool_score: list[np.ndarray] = []
    block = max(budget.lanes, 1024)
    for start in range(0, budget.samples, block):
        theta = starts(claim, space, size, rng, min(block, budget.samples - start))
        score = evaluate(claim, size, bl.decode(layout, theta), len(theta))
        best = np.argsort(-score, kind="stable")[: budget.lanes]
        pool_theta.append(theta[best])
        pool_score.append(score[best])
        found.instances += len(theta)
    if offered is not None and len(offered):
        pool_theta.append(offered)
        pool_score.append(evaluate(claim, size, bl.decode(layout, offered), len(offered)))
        found.instances += len(offered)
    theta, score = np.concatenate(pool_theta), np.concatenate(pool_score)
    # half of the lanes from the very best, half at random, so that one basin does not take all
    order = np.argsort(-score, kind="stable")
    half = budget.lanes // 2
    rest = rng.permutation(order[half:])[: budget.lanes - half]
    keep = np.concatenate([order[:half], rest])
    theta, score = theta[keep], score[keep]
    lanes, dims = theta.shape
    step = np.full((lanes, 1), 1.0)
    target = threshold(claim) + EXCESS
    clear = threshold(claim) + 0.02
    for round_ in range(budget.rounds):
        move = rng.normal(size=(lanes, dims)) * step
        sparse = rng.random((lanes, 1)) < 0.5
        chosen = rng.random((lanes, dims)) < np.maximum(1.5 / dims, 0.02)
        move = np.where(sparse & ~chosen, 0.0, move)
        proposal = np.clip(theta + move, -bl.LIMIT, bl.LIMIT)
        jump = (rng.random((lanes, 1)) < 0.1) & chosen
        proposal = np.where(jump, rng.choice([-bl.LIMIT, 0.0, bl.LIMIT], size=(lanes, dims)), proposal)
        new = evaluate(claim, size, bl.decode(layout, proposal), lanes)
        found.instances += lanes
        better = (new >= score)[:, None]
        improved = (new > score)[:, None]
        theta, score = np.where(better, proposal, theta), np.where(better[:, 0], new, score)
        # on a plateau the step keeps its length, so that a lane wanders until it meets a slope
        step = np.clip(np.where(improved, step * 1.5, np.where(better, step, step * 0.95)), 1e-4, 8.0)
        if round_ % 100 == 99 and lanes > 1:
            order = np.argsort(-score, kind="stable")
            top, bottom = order[: lanes // 2], order[lanes - lanes // 2 :]
            theta[bottom], score[bottom], step[bottom] = theta[top], score[top], 1.0
        if stop_early and round_ % 20 == 19 and (score > clear).sum() >= min(8, lanes) and score.max() > target:
            break
    found.ascents = lanes
    order = np.argsort(-score, kind="stable")
    found.theta, found.score = theta[order], score[order]
    return found
