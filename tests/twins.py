"""Slow, obvious versions of the tabular quantities, by enumeration of sequences with ``fractions.Fraction``.

Everything is written from the definition and nothing of ``opdtheory.tabular`` is used.  Logarithms and roots
are floats.
"""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction
from typing import Any

INF = math.inf


def log(x: Fraction) -> float:
    return -INF if x == 0 else math.log(x)


def times(weight: Any, value: Any) -> Any:
    return Fraction(0) if weight == 0 else weight * value


def kl(p: list[Fraction], q: list[Fraction]) -> float:
    return sum(INF if b == 0 else a * log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def tv(p: list[Fraction], q: list[Fraction]) -> Fraction:
    return sum((abs(a - b) for a, b in zip(p, q, strict=True)), Fraction(0)) / 2


def chi2(q: list[Fraction], p: list[Fraction]) -> Any:
    """χ²(q‖p)."""
    if any(a == 0 < b for a, b in zip(p, q, strict=True)):
        return INF
    return sum(((b - a) ** 2 / a for a, b in zip(p, q, strict=True) if a > 0), Fraction(0))


def hellinger2(p: list[Fraction], q: list[Fraction]) -> float:
    return sum((math.sqrt(a) - math.sqrt(b)) ** 2 for a, b in zip(p, q, strict=True)) / 2


def k3(r: Fraction) -> float:
    return r - 1 - log(r)


class SlowTree:
    """Contexts and sequences of a token tree, numbered by listing them."""

    def __init__(self, vocab: int, horizon: int, eos: int | None, prompt_probs: list[Fraction]) -> None:
        self.vocab, self.horizon, self.eos, self.weights = vocab, horizon, eos, prompt_probs
        going_on = [a for a in range(vocab) if a != eos]
        self.contexts = [
            [(x, y) for x in range(len(prompt_probs)) for y in itertools.product(going_on, repeat=t)]
            for t in range(horizon)
        ]
        self.sequences = [
            (x, (*y, a))
            for t, level in enumerate(self.contexts)
            for x, y in level
            for a in range(vocab)
            if a == eos or t == horizon - 1
        ]

    def shape(self, t: int) -> tuple[int, int]:
        return len(self.contexts[t]), self.vocab

    def rows(self, levels: list[list[list[Fraction]]]) -> dict[Any, list[Fraction]]:
        return {c: levels[t][i] for t, level in enumerate(self.contexts) for i, c in enumerate(level)}

    def steps(self, sequence: tuple[int, tuple[int, ...]]) -> list[tuple[Any, int]]:
        x, y = sequence
        return [((x, y[:t]), y[t]) for t in range(len(y))]


def product(values: Any) -> Any:
    out = Fraction(1)
    for v in values:
        out *= v
    return out


class SlowPolicy:
    """Laws of one policy."""

    def __init__(self, tree: SlowTree, levels: list[list[list[Fraction]]]) -> None:
        self.tree, self.row = tree, tree.rows(levels)

    def prefix(self, x: int, y: tuple[int, ...]) -> Fraction:
        return self.tree.weights[x] * product(self.row[x, y[:t]][y[t]] for t in range(len(y)))

    def law(self) -> list[Fraction]:
        return [self.prefix(*s) for s in self.tree.sequences]

    def occupancy(self) -> list[list[Fraction]]:
        return [[self.prefix(*c) for c in level] for level in self.tree.contexts]

    def expected_length(self) -> Fraction:
        return sum(w * len(s[1]) for w, s in zip(self.law(), self.tree.sequences, strict=True))

    def completion(self, x: int, y: tuple[int, ...]) -> list[tuple[Fraction, tuple[int, tuple[int, ...]]]]:
        """Probability of every sequence that extends a prefix, given the prefix."""
        out = []
        for s in self.tree.sequences:
            if s[0] == x and s[1][: len(y)] == y:
                out.append((product(self.row[c][a] for c, a in self.tree.steps(s)[len(y) :]), s))
        return out


def pair_quantities(tree: SlowTree, mu: Any, pi: Any, reward: Any) -> dict[str, Any]:
    """Every scalar quantity of a policy pair by its public name; ``(name, t)`` for those of one step."""
    m, p, r = SlowPolicy(tree, mu), SlowPolicy(tree, pi), tree.rows(reward)
    seqs = tree.sequences
    returns = [sum((r[c][a] for c, a in tree.steps(s)), Fraction(0)) for s in seqs]
    law_m, law_p = m.law(), p.law()
    contexts = [c for level in tree.contexts for c in level]
    d_m = {c: m.prefix(*c) for c in contexts}
    d_p = {c: p.prefix(*c) for c in contexts}
    out: dict[str, Any] = {"horizon": tree.horizon, "vocab": tree.vocab}
    out["J_behavior"] = j_m = sum(map(times, law_m, returns), Fraction(0))
    out["J_target"] = j_p = sum(map(times, law_p, returns), Fraction(0))
    out["improvement"] = j_p - j_m

    # values of a context: mean return of the completions, total return of the sequence counted
    ret = dict(zip(seqs, returns, strict=True))
    q = {
        (c, a): sum((w * ret[s] for w, s in m.completion(c[0], (*c[1], a))), Fraction(0))
        for c in contexts
        for a in range(tree.vocab)
    }
    v = {c: sum((m.row[c][a] * q[c, a] for a in range(tree.vocab)), Fraction(0)) for c in contexts}
    g = {c: sum((p.row[c][a] * (q[c, a] - v[c]) for a in range(tree.vocab)), Fraction(0)) for c in contexts}
    out["surrogate"] = sum((d_m[c] * g[c] for c in contexts), Fraction(0))
    out["error"] = out["improvement"] - out["surrogate"]

    ratios = [
        [p.row[c][a] / m.row[c][a] for c, a in tree.steps(s)] if w > 0 else []
        for s, w in zip(seqs, law_m, strict=True)
    ]
    visited = [(w, x, rho) for w, x, rho in zip(law_m, returns, ratios, strict=True) if w > 0]

    def mean(f: Any) -> Any:
        return sum((w * f(x, rho) for w, x, rho in visited), Fraction(0))

    out["surrogate_ratio"] = mean(lambda x, rho: (x - j_m) * sum(rho))
    out["surrogate_reward"] = mean(lambda x, rho: x * sum(z - 1 for z in rho))
    out["delta"] = mean(
        lambda x, rho: x * sum((rho[t] - 1) * (1 - product(rho[t + 1 :])) for t in range(len(rho)))
    )
    remainder = []
    for s, a, b in zip(seqs, law_m, law_p, strict=True):
        steps = tree.steps(s)
        first = sum(
            tree.weights[s[0]]
            * product(m.row[c][k] for c, k in steps[:t])
            * (p.row[steps[t][0]][steps[t][1]] - m.row[steps[t][0]][steps[t][1]])
            * product(m.row[c][k] for c, k in steps[t + 1 :])
            for t in range(len(steps))
        )
        remainder.append(b - a - first)
    out["error_sup"] = sum((abs(n) for n in remainder), Fraction(0)) / 2

    local = {
        "tv": {c: tv(m.row[c], p.row[c]) for c in contexts},
        "kl": {c: kl(m.row[c], p.row[c]) for c in contexts},
        "reverse_kl": {c: kl(p.row[c], m.row[c]) for c in contexts},
        "chi2": {c: chi2(p.row[c], m.row[c]) for c in contexts},
        "hellinger2": {c: hellinger2(m.row[c], p.row[c]) for c in contexts},
    }
    for name, table in local.items():
        out[f"{name}_max"] = max(table.values())
        if name != "hellinger2":
            out[f"reachable_{name}_max"] = max(table[c] for c in contexts if d_m[c] > 0)
    out["tv_sum"] = sum(times(d_m[c], local["tv"][c]) for c in contexts)
    out["reverse_kl_sum"] = sum(times(d_m[c], local["reverse_kl"][c]) for c in contexts)
    out["tv_seq"] = tv(law_m, law_p)
    out["kl_seq"] = kl(law_m, law_p)
    out["reverse_kl_seq"] = kl(law_p, law_m)
    out["chi2_seq"] = chi2(law_p, law_m)
    out["hellinger2_seq"] = hellinger2(law_m, law_p)
    out["reward_sd"] = math.sqrt(sum(w * (x - j_m) ** 2 for w, x in zip(law_m, returns, strict=True)))
    out["reward_min"], out["reward_max"] = min(returns), max(returns)
    out["adv_max"] = max(abs(q[c, a] - v[c]) for c, a in q)
    out["adv_target_max"] = max(abs(x) for x in g.values())
    out["q_span_max"] = max(
        max(q[c, a] for a in range(tree.vocab)) - min(q[c, a] for a in range(tree.vocab)) for c in contexts
    )
    out["k3_sum"] = mean(lambda x, rho: sum(map(k3, rho)))
    out["k3_seq"] = mean(lambda x, rho: k3(product(rho)))
    out["reward_k3_sum"] = mean(lambda x, rho: times(x, sum(map(k3, rho))))
    out["reward_log_w"] = mean(lambda x, rho: times(x, log(product(rho))))
    out["cost_log_w"] = mean(lambda x, rho: times(1 - x, log(product(rho))))
    out["reward_floor_log_w"] = mean(lambda x, rho: x * max(log(product(rho)), -1))
    out["w_second_moment"] = mean(lambda x, rho: product(rho) ** 2)
    out["ratio_martingale"] = sum(
        times(d_m[c] * (d_p[c] / d_m[c] - 1) ** 2, local["chi2"][c]) for c in contexts if d_m[c] > 0
    )
    out["expected_length_behavior"] = m.expected_length()
    out["expected_length_target"] = p.expected_length()
    out["support_ok"] = int(all(local["chi2"][c] < INF for c in contexts))
    for t, level in enumerate(tree.contexts):
        out["tv_step", t] = sum(times(d_m[c], local["tv"][c]) for c in level)
        out["kl_step", t] = sum(times(d_m[c], local["kl"][c]) for c in level)
        out["g_step", t] = sum((d_m[c] * g[c] for c in level), Fraction(0))
        out["marginal_tv", t] = sum(abs(d_p[c] - d_m[c]) for c in level) / Fraction(2)
    return out


# ---- random instances with every degenerate case


def random_row(rng: random.Random, size: int, kind: str) -> list[Fraction]:
    if kind == "deterministic":
        chosen = rng.randrange(size)
        return [Fraction(int(a == chosen)) for a in range(size)]
    low = 0 if kind == "sparse" else 1
    weights = [rng.randint(low, 4) for _ in range(size)]
    if sum(weights) == 0:
        weights[rng.randrange(size)] = 1
    return [Fraction(w, sum(weights)) for w in weights]


KINDS = ("sparse", "dense", "deterministic", "mixed")


def random_policy(rng: random.Random, tree: SlowTree, kind: str | None = None) -> list[list[list[Fraction]]]:
    kind = kind or rng.choice(KINDS)
    levels = []
    for t in range(tree.horizon):
        contexts, vocab = tree.shape(t)
        levels.append(
            [
                random_row(rng, vocab, rng.choice(KINDS[:3]) if kind == "mixed" else kind)
                for _ in range(contexts)
            ]
        )
    return levels


def disjoint_policy(rng: random.Random, tree: SlowTree, other: Any) -> list[list[list[Fraction]]]:
    """A policy whose rows avoid the support of ``other`` wherever that leaves an action."""
    out = []
    for level in other:
        rows = []
        for row in level:
            free = [a for a, p in enumerate(row) if p == 0] or list(range(tree.vocab))
            part = random_row(rng, len(free), "dense")
            rows.append([part[free.index(a)] if a in free else Fraction(0) for a in range(tree.vocab)])
        out.append(rows)
    return out


def random_terminal_reward(rng: random.Random, tree: SlowTree) -> list[list[list[Fraction]]]:
    levels = []
    for t in range(tree.horizon):
        contexts, vocab = tree.shape(t)
        last = t == tree.horizon - 1
        levels.append(
            [
                [
                    Fraction(rng.randint(0, 6), 6) if last or a == tree.eos else Fraction(0)
                    for a in range(vocab)
                ]
                for _ in range(contexts)
            ]
        )
    return levels


def random_tree(rng: random.Random, max_sequences: int = 40) -> SlowTree:
    while True:
        vocab, horizon, prompts = rng.randint(1, 3), rng.randint(1, 3), rng.randint(1, 2)
        eos = rng.choice([None, *range(vocab)])
        weights = random_row(rng, prompts, "sparse")
        tree = SlowTree(vocab, horizon, eos, weights)
        if len(tree.sequences) <= max_sequences:
            return tree


def random_target(rng: random.Random, tree: SlowTree, behavior: Any) -> Any:
    """Independent, identical, disjoint, or close to the behaviour policy."""
    which = rng.randrange(5)
    if which == 0:
        return behavior
    if which == 1:
        return disjoint_policy(rng, tree, behavior)
    other = random_policy(rng, tree)
    if which == 2:
        e = Fraction(1, 10 ** rng.randint(1, 6))
        return [
            [[(1 - e) * a + e * b for a, b in zip(x, y, strict=True)] for x, y in zip(l1, l2, strict=True)]
            for l1, l2 in zip(behavior, other, strict=True)
        ]
    return other
