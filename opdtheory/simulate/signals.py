"""What a token is told: advantages from a teacher or from a terminal reward.

A signal looks at a ``View`` (the policies and the responses of one step) and gives a ``Contribution``:
advantages of the drawn tokens, (M, T), and optionally a part of the gradient that is taken directly, without
drawing, as weights ``(actions, contexts, seeds)`` of ∇log π.  Where the mean of the advantage given context
and action is all that matters, ``table`` gives it without responses.  Advantages are computed once for a
batch of responses and stay fixed while it is reused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from opdtheory import advantages, rewards
from opdtheory.divergences import topk_members
from opdtheory.gradients.estimators import ESTIMATORS, Estimator, conditional_moments, token_rewards
from opdtheory.simulate.batch import Batch, group_standardise
from opdtheory.tabular import Policy, Reward, TokenTree, flow

__all__ = ["Contribution", "Distill", "Signal", "Terminal", "TrOPD", "View", "World"]


@dataclass(frozen=True)
class World:
    """What a run is about: a token tree, a teacher (distillation) and/or a terminal reward."""

    tree: TokenTree
    teacher: Policy | None = None
    reward: Reward | None = None

    def __post_init__(self) -> None:
        for name in ("teacher", "reward"):
            table = getattr(self, name)
            if table is not None and (table.tree != self.tree or table.batch_axes):
                raise ValueError(
                    f"{name}: lives on {table.tree} with batch shape {table.batch_shape}, expected a single "
                    f"instance on {self.tree}"
                )

    def teacher_of(self, seeds: int) -> Policy:
        """The teacher repeated for every run; ValueError without one."""
        if self.teacher is None:
            raise ValueError("world.teacher: got None, expected a teacher for a distillation signal")
        return self.teacher.as_float().broadcast((seeds,))

    def reward_of(self, seeds: int) -> Reward:
        """The terminal reward repeated for every run; ValueError without one."""
        if self.reward is None:
            raise ValueError("world.reward: got None, expected a reward for a reward signal")
        return self.reward.as_terminal().as_float().broadcast((seeds,))


@dataclass(frozen=True)
class View:
    """One step as a signal sees it: ``rollout`` draws the responses, ``student`` is the policy by then."""

    world: World
    rollout: Policy
    student: Policy
    rng: np.random.Generator
    step: int = 0
    steps: int = 1
    exact: bool = True

    @property
    def seeds(self) -> int:
        """Number of runs."""
        return self.rollout.flat.shape[2]


@dataclass(frozen=True)
class Contribution:
    """Advantages of tokens (M, T) and weights of ∇log π that are added without drawing."""

    advantages: np.ndarray
    direct: np.ndarray | None = None


class Signal(Protocol):
    """Anything that gives advantages."""

    def __call__(self, view: View, batch: Batch) -> Contribution:
        """Advantages of the responses of ``batch``."""

    def table(self, view: View, linear: bool) -> np.ndarray | None:
        """Mean advantage of every action in every context, or None if responses are needed.

        ``linear`` says that only this mean enters the update; otherwise it must also be the advantage itself.
        """

    def drawn_from(self, view: View) -> Policy:
        """The policy that writes the responses, usually the rollout policy."""


def tree_prompts(tree: TokenTree) -> np.ndarray:
    """The prompt of every context in the inner layout, (contexts,)."""
    return np.concatenate([np.arange(tree.contexts(t)) % tree.prompts for t in range(tree.horizon)])


class _OwnResponses:
    """Signals whose responses come from the rollout policy alone."""

    def drawn_from(self, view: View) -> Policy:
        """The rollout policy."""
        return view.rollout


@dataclass(frozen=True)
class Distill(_OwnResponses):
    """Distillation by any ``gradients.Estimator``: OPD forms (i)–(v), immediate, λ-family, TOP-D (``alpha``).

    ``normalise`` standardises within the responses to a prompt, over their tokens (TOP-D, Alg. 1 line 8).
    ``outlier`` is the clip or mask rule of *Trust Region On-Policy Distillation* at ``tau`` < 0;
    ``entropy_floor`` keeps tokens of contexts with more entropy.  Rewards compare the teacher with the
    student being trained, whoever drew the tokens.
    """

    estimator: Estimator = ESTIMATORS["immediate"]
    normalise: bool = False
    outlier: str | None = None
    tau: float | None = None
    entropy_floor: float | None = None

    def __post_init__(self) -> None:
        if self.outlier not in (None, "clip", "mask"):
            raise ValueError(f"outlier: got {self.outlier!r}, expected None, 'clip' or 'mask'")
        if (self.outlier is None) != (self.tau is None):
            raise ValueError(f"tau: got {self.tau!r} with outlier {self.outlier!r}, expected both or neither")

    @property
    def _plain(self) -> bool:
        return self.outlier is None and self.entropy_floor is None

    def rewards(self, view: View) -> np.ndarray:
        """Reward of every action in every context."""
        teacher = view.world.teacher_of(view.seeds).flat
        r = token_rewards(view.student.flat, teacher, self.estimator.alpha)
        if self.outlier is not None:
            r = (rewards.tropd_clip if self.outlier == "clip" else rewards.tropd_mask)(r, self.tau)
        if self.entropy_floor is not None:
            p = view.student.flat
            with np.errstate(divide="ignore", invalid="ignore"):
                entropy = -np.where(p > 0, p * np.log(p), 0.0).sum(axis=0)
            r = rewards.entropy_filter(r, np.broadcast_to(entropy, r.shape), self.entropy_floor)
        return r

    def __call__(self, view: View, batch: Batch) -> Contribution:
        e = self.estimator
        table = self.rewards(view)
        r = batch.along(table)
        if e.form == "total":
            a = advantages.log_ratio_total(r, batch.alive)
        elif e.form == "topd_return":
            a = advantages.topd_return(r, batch.alive)
        elif e.form == "value":
            a = batch.along(_to_go(view, table, e.lam))
        else:
            minus_mean = -flow.contract(view.rollout.flat, table) if e.form == "expected" else None
            kl = None if minus_mean is None else batch.at_contexts(minus_mean)
            a = advantages.lambda_return(r, e.lam, batch.alive, kl=kl)
        if e.baseline != "none":
            a = np.where(batch.alive, a - batch.at_contexts(self._baseline(view, table)), 0.0)
        return Contribution(group_standardise(a, batch) if self.normalise else a)

    def table(self, view: View, linear: bool) -> np.ndarray | None:
        e = self.estimator
        immediate = e.form == "to_go" and e.lam == 0
        if not (linear or (immediate and not self.normalise)):
            return None
        if immediate and not self.normalise:
            table = self.rewards(view)
            return table if e.baseline == "none" else table - self._baseline(view, table)
        if view.rollout is not view.student or not self._plain:
            return None
        first, second = conditional_moments(view.student, view.world.teacher_of(view.seeds), e)
        return _standardise_table(view, first, second) if self.normalise else first

    def _baseline(self, view: View, table: np.ndarray) -> np.ndarray:
        """E[Â|s] under the rollout policy, for forms whose future does not depend on the past."""
        e = self.estimator
        if e.baseline == "optimal" or e.form in ("total", "topd_return"):
            raise ValueError(
                f"estimator: got form {e.form!r} with baseline {e.baseline!r}, expected the 'value' baseline "
                "of a return-to-go"
            )
        return flow.contract(view.rollout.flat, _to_go(view, table, e.lam))


def _to_go(view: View, reward: np.ndarray, lam: float) -> np.ndarray:
    """E[Σ_{k≥t} λ^{k−t} r_k | s_t, a_t] with later actions from the rollout policy."""
    tree, mu, q = view.world.tree, view.rollout.flat, reward.copy()
    b = tree.branching
    for t in range(tree.horizon - 2, -1, -1):
        here, below = tree.level_slice(t), tree.level_slice(t + 1)
        later = flow.contract(mu[:, below], q[:, below])
        q[:b, here] += lam * later.reshape((b, *q[0, here].shape))
    return q


def _standardise_table(view: View, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Means of advantages standardised over the tokens of all responses to a prompt."""
    tree = view.world.tree
    mass = view.rollout.flat_occupancy * view.rollout.flat
    prompt = tree_prompts(tree)

    def total(x: np.ndarray) -> np.ndarray:
        of_context = (mass * x).sum(axis=0)
        return np.stack([of_context[prompt == i].sum(axis=0) for i in range(tree.prompts)])

    tokens = total(np.ones_like(first))
    safe_tokens = np.where(tokens > 0, tokens, 1.0)
    mean = total(first) / safe_tokens
    variance = total(second) / safe_tokens - mean**2
    noise = 1e-12 * total(second) / safe_tokens
    inverse = np.where(variance > noise, 1 / np.sqrt(np.where(variance > noise, variance, 1.0)), 0.0)
    return (first - mean[prompt]) * inverse[prompt]


@dataclass(frozen=True)
class Terminal(_OwnResponses):
    """A terminal reward: R, minus its group mean (``baseline="group"``) or the exact value of the context
    (``"value"``); ``normalise`` divides by the group's standard deviation, as GRPO does.

    Exact batches use the mean and deviation of all responses to the prompt; a group of G responses scales the
    expected advantage by 1 − 1/G.
    """

    baseline: str = "group"
    normalise: bool = False
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.baseline not in ("group", "value", "none"):
            raise ValueError(f"baseline: got {self.baseline!r}, expected 'group', 'value' or 'none'")
        if self.normalise and self.baseline != "group":
            raise ValueError(f"normalise: got True with baseline {self.baseline!r}, expected 'group'")

    def __call__(self, view: View, batch: Batch) -> Contribution:
        reward = view.world.reward_of(view.seeds).flat
        returns = batch.returns(reward)
        if self.noise:
            if view.exact:
                raise ValueError("noise: a noisy reward needs sampled responses")
            returns = returns + view.rng.normal(scale=self.noise, size=returns.shape)
        if self.baseline == "group":
            returns = group_standardise(returns, batch, scale=self.normalise)
        a = np.where(batch.alive, returns[:, None], 0.0)
        if self.baseline == "value":
            _, value = flow.backward(view.world.tree, view.rollout.flat, reward)
            a = np.where(batch.alive, a - batch.at_contexts(value), 0.0)
        return Contribution(a)

    def table(self, view: View, linear: bool) -> np.ndarray | None:
        if not linear or self.noise:
            return None
        tree, mu = view.world.tree, view.rollout.flat
        reward = view.world.reward_of(view.seeds).flat
        q, v = flow.backward(tree, mu, reward)
        if self.baseline == "none":
            return q
        if self.baseline == "value":
            return q - v
        prompt = tree_prompts(tree)
        a = q - v[: tree.prompts][prompt]
        if self.normalise:
            square = flow.values(tree, mu, reward * reward)[: tree.prompts]
            variance = square - v[: tree.prompts] ** 2
            noisy = variance <= 1e-12 * square
            a = a * np.where(noisy, 0.0, 1 / np.sqrt(np.where(noisy, 1.0, variance)))[prompt]
        return a


@dataclass(frozen=True)
class TrOPD:
    """*Trust Region On-Policy Distillation*: gated log ratio, forward KL where the gate rejects, guidance.

    A drawn token is accepted with probability min(teacher/student, 1) and then earns its log ratio; a
    rejected one adds −Σ_{v ∈ top-k of the teacher} q log(q/π), whose gradient is Σ q(v) ∇log π(v), if
    ``forward``.  ``gate=False`` accepts everything.  With ``guidance`` β the teacher writes the first tokens,
    their number cosine-annealed from all to none over the run, and each of them adds β∇log π.  Exact batches
    average over the gate.
    """

    gate: bool = True
    forward: bool = True
    top_k: int = 64
    guidance: float = 0.0

    def __call__(self, view: View, batch: Batch) -> Contribution:
        teacher, student = view.world.teacher_of(view.seeds).flat, view.student.flat
        log_q, log_p = (_log_at(batch, x) for x in (teacher, student))
        accept = np.where(batch.alive, rewards.tropd_accept_probability(log_q, log_p), 0.0)
        if not view.exact:
            accept = np.where(batch.alive, view.rng.random(accept.shape) < accept, 0.0)
        if not self.gate:
            accept = np.where(batch.alive, 1.0, 0.0)
        # an accepted token has a positive teacher probability: no infinite log ratio survives the gate
        ell = np.where(accept > 0, rewards.opd(log_q, log_p), 0.0)
        prefix = np.arange(batch.tree.horizon) < self.prefix(view)
        own = batch.alive & ~prefix
        a = np.where(own, accept * ell, np.where(batch.alive & prefix, self.guidance, 0.0))
        direct = None
        if self.forward:
            rejected = batch.scatter_contexts(np.where(own, 1 - accept, 0.0))
            direct = rejected * self._top(teacher)
        return Contribution(a, direct)

    def table(self, view: View, linear: bool) -> np.ndarray | None:
        return None

    def prefix(self, view: View) -> int:
        """Number of tokens that the teacher writes at this step."""
        if not self.guidance:
            return 0
        done = view.step / max(view.steps - 1, 1)
        return round(view.world.tree.horizon * (1 + np.cos(np.pi * done)) / 2)

    def drawn_from(self, view: View) -> Policy:
        """The rollout policy with the teacher writing the prefix."""
        length = self.prefix(view)
        if length == 0:
            return view.rollout
        flat, tree = view.rollout.flat.copy(), view.world.tree
        written = slice(0, tree.offsets[length])
        flat[:, written] = view.world.teacher_of(view.seeds).flat[:, written]
        return Policy(tree, flat, view.rollout.batch_shape)

    def _top(self, teacher: np.ndarray) -> np.ndarray:
        """The teacher's probabilities of its top-k actions, 0 elsewhere."""
        members = topk_members(np.moveaxis(teacher, 0, -1), min(self.top_k, len(teacher)))
        return np.where(np.moveaxis(members, -1, 0), teacher, 0.0)


def _log_at(batch: Batch, table: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.where(batch.alive, np.log(np.where(batch.alive, batch.along(table), 1.0)), 0.0)
