"""Masks by ratio, by divergence and by response: what they constrain, what they miss, what they reject."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from opdtheory import masks
from opdtheory.simulate import measures as ms
from opdtheory.simulate.batch import enumerate_responses
from opdtheory.simulate.collapse import METHODS
from opdtheory.simulate.figure_data import lines, report
from opdtheory.simulate.optimisers import Gradient, Natural
from opdtheory.simulate.rollouts import Rollout, round_significand
from opdtheory.simulate.signals import Terminal, World
from opdtheory.simulate.students import TabularStudent, policy_of
from opdtheory.simulate.train import Algorithm, train
from opdtheory.simulate.weights import MaskedSequences, Unified, Weight
from opdtheory.tabular import Policy, PolicyContrast, Reward, TokenTree

__all__ = ["constraint_by_probability", "masks_against_truth", "rejected_lengths"]


def _zipf(vocab: int, exponent: float) -> np.ndarray:
    weights = np.arange(1, vocab + 1) ** -exponent
    return weights / weights.sum()


def largest_move(rule: str, probability: float, sign: int, **parameters: float) -> float:
    """Largest |π − μ| of a token of probability ``probability`` before the mask stops its push, by bisection.

    ``sign`` +1 pushes the probability up (positive advantage), −1 down; ``rule`` is ``ppo`` or ``dppo``.
    """

    def kept(move: float) -> bool:
        ratio = np.array([(probability + sign * move) / probability])
        a = np.array([float(sign)])
        if rule == "ppo":
            return bool(masks.ppo_from_ratio(ratio, a, **parameters)[0])
        return bool(masks.dppo_from_ratio(ratio, a, np.array([move]), **parameters)[0])

    low, high = 0.0, (1 - probability) if sign > 0 else probability
    if kept(high):
        return high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if kept(middle) else (low, middle)
    return low


def constraint_by_probability(
    vocab: int = 512,
    exponent: float = 1.5,
    bits: int = 8,
    eps: float = 0.2,
    delta: float = 0.15,
    rare_rank: int = 400,
    count: int = 60,
    epochs: int = 64,
    rate: float = 0.05,
) -> dict[str, Any]:
    """Ratio and divergence constraints on a long-tailed vocabulary, at one context and exactly.

    The room that each mask leaves a token of probability p, and how far one step of many small natural
    updates really moves it; what logits of ``bits`` digits alone do to ratios; a run that rewards one rare
    token.
    """
    grid = np.logspace(-4, -0.03, 25)
    rules: dict[str, Weight] = {
        "PPO": Unified(masks.Method("ppo", "ppo", parameters={"eps_low": eps, "eps_high": eps})),
        "DPPO binary TV": Unified("dppo_binary_tv", delta=delta),
    }
    parameters: dict[str, dict[str, float]] = {"PPO": {"eps_low": eps, "eps_high": eps}}
    parameters["DPPO binary TV"] = {"delta": delta}
    room, moved = {}, {}
    for name, rule in rules.items():
        kind = "ppo" if name == "PPO" else "dppo"
        for sign, word in ((1, "rewarded"), (-1, "penalised")):
            room[f"{name}, {word}"] = [largest_move(kind, p, sign, **parameters[name]) for p in grid]
            moved[f"{name}, {word}"] = _one_step_move(grid, rule, sign)
    p = _zipf(vocab, exponent)
    rounded = np.exp(round_significand(np.log(p), bits))
    rounded /= rounded.sum()
    bins = np.array_split(np.argsort(p), 8)
    mismatch = {
        "largest |log ratio|": [float(np.abs(np.log(p / rounded))[b].max()) for b in bins],
        "largest |π − μ|": [float(np.abs(p - rounded)[b].max()) for b in bins],
    }
    centre = [float(np.exp(np.log(p[b]).mean())) for b in bins]
    rare, half = _rare_reward(p, rare_rank, count, epochs, rate, {**rules, "no mask": Unified("pg_is")})
    return {
        "probability": grid.tolist(),
        "room": room,
        "moved": moved,
        "mismatch": {"probability": centre, **mismatch},
        "rare": rare,
        "steps_to_half": half,
        "report": report(
            lines(
                "How far masks let one step move a token",
                moved,
                at=grid.tolist(),
                x="probability of the token under the rollout policy",
                y="|π − μ| after one step of many small updates",
                log=True,
                caption=f"""Exact expected updates at one context with two tokens, one of them rewarded or
                penalised; PPO ε={eps}, DPPO δ={delta}. The ratio clip lets a token move in proportion to its
                probability: rare ones hardly at all, common ones by more than the divergence mask does.""",
            ),
            lines(
                f"Mismatch of logits rounded to {bits} digits",
                mismatch,
                at=centre,
                x="probability of the token (geometric mean of the bin)",
                y="largest value in the bin",
                log=True,
                caption=f"""Exact: a Zipf vocabulary of {vocab} tokens against itself with log-probabilities
                rounded to {bits} significant binary digits. Ratios err as much on rare tokens as on
                others, or
                more; differences of probabilities shrink with the probability.""",
            ),
            lines(
                "A rare token that alone is rewarded",
                rare,
                x=f"step ({epochs} updates each)",
                y="probability of the rewarded token",
                log_y=True,
                caption=f"""Exact expected updates, V={vocab}, rewarded token of rank {rare_rank}: under
                the ratio
                clip its probability grows by a bounded factor a step, under the TV mask by a bounded
                amount.""",
            ),
        ),
    }


def _one_step_move(
    grid: np.ndarray, rule: Weight, sign: int, rate: float = 0.02, updates: int = 900
) -> list[float]:
    """TV of one step of small natural updates on a token of every probability in ``grid``, (runs,)."""
    tree = TokenTree(2, 1)
    student = TabularStudent(tree)
    rows = np.stack([grid, 1 - grid], axis=-1)[:, None]
    start = student.start(Policy.from_probs(tree, [rows]))
    world = World(tree, reward=Reward.from_levels(tree, [[[float(sign), 0.0]]]))
    algorithm = Algorithm(Terminal("none"), rule, Natural(rate), epochs=updates)
    run = train(world, student, start, algorithm, 1, measures={"tv": ms.ROLLOUT["tv_rollout_max"]})
    return run["tv"][-1].tolist()


def _rare_reward(
    p: np.ndarray, rank: int, count: int, epochs: int, rate: float, rules: Mapping[str, Weight]
) -> tuple[dict[str, list[float]], dict[str, int | None]]:
    """Probability of the rewarded token along runs, and the first step at which it reaches one half."""
    tree = TokenTree(len(p), 1)
    student = TabularStudent(tree)
    world = World(tree, reward=Reward.from_levels(tree, [(np.arange(len(p)) == rank)[None] * 1.0]))
    start = student.start(Policy.from_probs(tree, [p[None]]))
    curves: dict[str, list[float]] = {}
    half: dict[str, int | None] = {}
    for name, rule in rules.items():
        algorithm = Algorithm(Terminal("none"), rule, Natural(rate), epochs=epochs)
        run = train(world, student, start, algorithm, count, measures=dict(ms.REWARD))["J"][:, 0]
        curves[name] = run.tolist()
        above = np.flatnonzero(run >= 0.5)
        half[name] = int(above[0]) if len(above) else None
    return curves, half


def rejected_lengths(
    horizon: int = 9,
    flip: float = 0.2,
    delta_max: float = 0.02,
    delta_avg: float = 0.02,
    count: int = 60,
    rate: float = 4.0,
    seeds: int = 16,
    draws: int = 256,
    seed: int = 0,
) -> dict[str, Any]:
    """Trust region masking by length: the responses accepted, and what training on them does to length.

    Two tokens and EOS; in each context the rollout engine takes another expert with probability ``flip``.
    The reward is 1 for responses of at least two thirds of the horizon.
    """
    tree = TokenTree(3, horizon, eos=2)
    policy = Policy.from_probs(
        tree, [np.tile([0.4, 0.4, 0.2], (tree.contexts(t), 1)) for t in range(horizon)]
    )
    student = TabularStudent(tree)
    wanted = -(-2 * horizon // 3)
    levels = [
        (np.arange(3) == 2)[None] * 1.0 * (t + 1 >= wanted) + np.zeros((tree.contexts(t), 1))
        for t in range(horizon)
    ]
    levels[-1] = np.ones(tree.level_shape(horizon - 1))
    world = World(tree, reward=Reward.from_levels(tree, levels))
    rollout = Rollout(flip=flip)
    rules: dict[str, Weight] = {
        "no mask": Unified("pg_is"),
        f"max KL ≤ {delta_max}": MaskedSequences(delta_max=delta_max),
        f"mean KL ≤ {delta_avg}": MaskedSequences(delta_avg=delta_avg),
        "DPPO binary TV": Unified("dppo_binary_tv"),
    }
    acceptance = _acceptance(student, policy, rollout, rules, draws, seed)
    lengths, j = {}, {}
    for name, rule in rules.items():
        algorithm = Algorithm(Terminal(), rule, Gradient(rate), rollout)
        run = train(
            world,
            student,
            student.start(policy, seeds),
            algorithm,
            count,
            measures={**ms.REWARD, **ms.BASIC},
            seed=seed,
        )
        lengths[name], j[name] = run["length"].mean(axis=1).tolist(), run["J"].mean(axis=1).tolist()
    law = {"(1 − flip)^length": [(1 - flip) ** n for n in range(1, horizon + 1)]}
    return {
        "acceptance": acceptance,
        "law": law,
        "length": lengths,
        "J": j,
        "report": report(
            lines(
                "Responses that trust region masking accepts, by length",
                acceptance | law,
                at=range(1, horizon + 1),
                x="tokens of the response",
                y="share accepted",
                log_y=True,
                estimated=list(acceptance),
                caption=f"""Dashed: mean over {draws} draws of which contexts flip (each draw's acceptance is
                exact); solid: the product law, as if flips did not change which responses are drawn. A
                maximum over contexts accepts exponentially fewer long responses.""",
            ),
            lines(
                "Expected length when long responses are rewarded",
                lengths,
                x="step",
                y="expected length (tokens)",
                estimated=list(lengths),
                caption=f"""Exact expected updates given the flips, mean over {seeds} runs with different
                flips;
                the reward is 1 for at least {wanted} of {horizon} tokens.""",
            ),
        ),
    }


def _acceptance(
    student: TabularStudent,
    policy: Policy,
    rollout: Rollout,
    rules: Mapping[str, Weight],
    draws: int,
    seed: int,
) -> dict[str, list[float]]:
    """P(accepted | length) of every rule that judges whole responses."""
    theta = student.start(policy, draws)
    now = policy_of(student, theta)
    mu = rollout.policy(student, [theta], now, np.random.default_rng(seed))
    batch = enumerate_responses(mu)
    kl = np.where(batch.alive, batch.at_contexts(PolicyContrast(mu, now)._kls[0]), 0.0)
    length = batch.alive.sum(axis=1)
    out = {}
    for name, rule in rules.items():
        if not isinstance(rule, MaskedSequences):
            continue
        accepted = masks.trm_from_divergence(
            kl, batch.alive, delta_max=rule.delta_max, delta_avg=rule.delta_avg
        )
        mass = np.bincount(length, weights=batch.weight)
        out[name] = (np.bincount(length, weights=batch.weight * accepted) / np.where(mass > 0, mass, 1.0))[
            1:
        ].tolist()
    return out


def masks_against_truth(
    vocab: int = 4, horizon: int = 4, count: int = 12, epochs: int = 8, rate: float = 6.0, seed: int = 0
) -> dict[str, Any]:
    """What a token mask takes out of exact updates, and where the policy really stands after the step.

    Random tabular student and reward, logits of the rollout policy rounded to 4 digits; thresholds of the
    sources.
    """
    tree = TokenTree(vocab, horizon)
    rng = np.random.default_rng(seed)
    levels: list[np.ndarray] = [np.zeros(tree.level_shape(t)) for t in range(horizon)]
    levels[-1] = (rng.random(tree.level_shape(horizon - 1)) < 0.3) * 1.0
    world = World(tree, reward=Reward.from_levels(tree, levels))
    student = TabularStudent(tree)
    start = student.start(Policy.random(tree, seed=rng, concentration=2.0))
    rules = {
        name: METHODS[name] for name in ("PG-IS", "GRPO clip-higher", "DPPO binary TV", "DPPO binary KL")
    }
    rules["TRM, max KL ≤ 0.05"] = MaskedSequences(delta_max=0.05)
    measures = {**ms.REWARD, **ms.ROLLOUT, **ms.pair_measures(0.15)}
    runs = {}
    for name, rule in rules.items():
        algorithm = Algorithm(Terminal(), rule, Gradient(rate), Rollout(bits=4), epochs=epochs)
        history = train(world, student, start, algorithm, count, measures=measures, seed=seed)
        runs[name] = {key: values[1:, 0].tolist() for key, values in history.values.items()}
    shown = {name: runs[name] for name in ("GRPO clip-higher", "DPPO binary TV", "TRM, max KL ≤ 0.05")}
    believed = {f"{name}: masked": run["masked"] for name, run in shown.items()}
    true = {f"{name}: beyond 0.15": run["violation"] for name, run in shown.items()}
    dppo = runs["DPPO binary TV"]
    names = {
        "error": "|J(π) − J(μ) − L|",
        "bound_kl": "KL of responses",
        "bound_tv": "Σ E TV",
        "bound_sharp": "sharp uniform TV bound",
        "bound_mixed": "published 2T√(δD)",
    }
    return {
        "runs": runs,
        "report": report(
            lines(
                "Tokens masked and tokens beyond the threshold after the step",
                believed | true,
                at=range(1, count + 1),
                x="step",
                y="share of rollout tokens",
                caption=f"""Exact expected updates, {epochs} a step (V={vocab}, T={horizon}). Beyond 0.15: the
                share of rollout tokens in contexts whose TV between rollout policy and new student exceeds
                0.15. Masks stop tokens, not contexts: the policy leaves the region all the same.""",
            ),
            lines(
                "Surrogate error of DPPO steps and its bounds",
                {label: [max(v, 1e-17) for v in dppo[key]] for key, label in names.items()},
                at=range(1, count + 1),
                x="step",
                y="reward (range 0 to 1)",
                log_y=True,
                caption="""All exact, rewards in [0, 1]: a bound above 1 says nothing. Steps of the DPPO
                binary TV run from the rollout policy to the student after the step.""",
            ),
        ),
    }
