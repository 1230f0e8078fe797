"""Exact quantities of policy pairs: array code and compiled pass against dictionaries and enumeration.

    python benchmarks/bench_tabular.py [--rounds 3] [--skip-large] [--json OUT]

Every implementation computes the same 25 quantities (returns, surrogate, error and its supremum, divergences
of contexts and of sequences, lengths, advantages) and the gradient of J(π).  They take turns, each in a
process of its own, on one thread: quantities and gradient are compared with the dictionary programme, then
timed.  The smallest CPU time over many repetitions is shown, with its ratio to the dictionary programme and
the floor: the bytes of the three input tables and the gradient, moved once at the copy bandwidth measured
here.  What runs is what a user gets from ``PolicyPair``, with and without the extra ``fast``; a second row
shows what remains if the C library is told to keep freed memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from opdtheory.tabular import Policy, PolicyPair, TokenTree

NAMES = (
    "J_behavior", "J_target", "improvement", "surrogate", "error", "error_sup", "reward_sd", "tv_max",
    "tv_sum", "tv_seq", "kl_max", "kl_seq", "reverse_kl_max", "reverse_kl_sum", "reverse_kl_seq",
    "chi2_max", "chi2_seq", "hellinger2_max", "hellinger2_seq", "ratio_martingale", "adv_max",
    "adv_target_max", "k3_sum", "expected_length_behavior", "expected_length_target",
)  # fmt: skip

# glibc told to keep freed memory: what is left without page faults
TUNED = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
TUNED_LABEL = ", tuned malloc"
LANES = 1024  # instances of a batch

Tables = tuple[TokenTree, np.ndarray, np.ndarray, np.ndarray]


def make(vocab: int, horizon: int, batch: tuple[int, ...] = (), seed: int = 0) -> Tables:
    """A tree, two random policies and a random terminal reward, inner layout."""
    tree = TokenTree(vocab, horizon)
    mu, pi = (Policy.random(tree, seed=[seed, i], batch=batch).flat for i in (1, 2))
    reward = np.zeros_like(mu)
    last = tree.level_slice(horizon - 1)
    reward[:, last] = np.random.default_rng(seed).random(reward[:, last].shape)
    return tree, mu, pi, reward


# ---- implementations


def exact_world(tables: Tables) -> tuple[list[Any], Any]:
    """The package: everything at once where it can, the rest on demand."""
    tree, mu, pi, reward = tables
    pair = PolicyPair.from_flat(tree, mu, pi, reward).precompute(gradient=True)
    return [getattr(pair, name) for name in NAMES], pair.flat_target_gradient


def without_numba() -> None:
    """What an installation without the extra ``fast`` sees."""
    sys.modules["opdtheory.tabular.compiled"] = None  # type: ignore[assignment]


def as_dictionaries(tables: Tables, instance: int = 0) -> tuple[int, int, Any, Any, Any]:
    """(vocab, horizon, μ, π, R) with one entry a context: {tokens: [value of each action]}."""
    tree, *rest = tables  # as many tables as are given
    out = []
    for x in rest:
        levels = Policy(tree, x if x.ndim == 2 else np.ascontiguousarray(x[:, :, instance])).levels
        out.append(
            {
                tree.context_label(t, c)[1]: [float(v) for v in level[c]]
                for t, level in enumerate(levels)
                for c in range(len(level))
            }
        )
    return tree.vocab, tree.horizon, *out


def dictionary_programme(data: Any) -> tuple[list[float], dict[Any, list[float]]]:
    """Dynamic programming over prefixes kept in dictionaries, as one would write it first."""
    vocab, horizon, mu, pi, reward = data
    levels: list[list[tuple[int, ...]]] = [[()]]
    for _ in range(horizon - 1):
        levels.append([(*c, a) for c in levels[-1] for a in range(vocab)])
    value, value_pi, g, variance = {}, {}, {}, {}
    adv_max = 0.0
    for level in reversed(levels):
        for c in level:
            m, p = mu[c], pi[c]
            last = len(c) == horizon - 1
            q = reward[c] if last else [value[(*c, a)] for a in range(vocab)]
            q_pi = reward[c] if last else [value_pi[(*c, a)] for a in range(vocab)]
            v = value[c] = sum(m[a] * q[a] for a in range(vocab))
            value_pi[c] = sum(p[a] * q_pi[a] for a in range(vocab))
            g[c] = sum((p[a] - m[a]) * q[a] for a in range(vocab))
            variance[c] = sum(m[a] * (q[a] - v) ** 2 for a in range(vocab))
            adv_max = max(adv_max, max(abs(x - v) for x in q))
    tv, kl, reverse, chi2, hellinger = {}, {}, {}, {}, {}
    for c, m in mu.items():
        p = pi[c]
        tv[c] = sum(abs(p[a] - m[a]) for a in range(vocab)) / 2
        kl[c] = sum(m[a] * math.log(m[a] / p[a]) for a in range(vocab))
        reverse[c] = sum(p[a] * math.log(p[a] / m[a]) for a in range(vocab))
        chi2[c] = sum((p[a] - m[a]) ** 2 / m[a] for a in range(vocab))
        hellinger[c] = sum((math.sqrt(p[a]) - math.sqrt(m[a])) ** 2 for a in range(vocab)) / 2
    d, d_pi, shift, rest = {(): 1.0}, {(): 1.0}, {(): 0.0}, {(): 0.0}
    s = dict.fromkeys(
        ("surrogate", "tv", "kl", "reverse", "reverse_pi", "martingale", "variance", "length", "length_pi",
         "improvement", "error", "error_sup", "tv_seq", "chi2_seq", "hellinger_seq"), 0.0)  # fmt: skip
    gradient = {}
    for level in levels:
        for c in level:
            m, p, x, y, z, n = mu[c], pi[c], d[c], d_pi[c], shift[c], rest[c]
            last = len(c) == horizon - 1
            s["surrogate"] += x * g[c]
            s["improvement"] += y * g[c]
            s["tv"] += x * tv[c]
            s["kl"] += x * kl[c]
            s["reverse"] += x * reverse[c]
            s["reverse_pi"] += y * reverse[c]
            s["martingale"] += z * z / x * chi2[c]
            s["variance"] += x * variance[c]
            s["length"] += x
            s["length_pi"] += y
            slope = []
            for a in range(vocab):
                child = (*c, a)
                law, law_pi = x * m[a], y * p[a]
                moved = z * p[a] + x * (p[a] - m[a])
                second = n * m[a] + z * (p[a] - m[a])
                q = reward[c][a] if last else value_pi[child]
                slope.append(law_pi * (q - value_pi[c]))
                if last:
                    s["error"] += second * reward[c][a]
                    s["error_sup"] += abs(second) / 2
                    s["tv_seq"] += abs(moved) / 2
                    s["chi2_seq"] += moved * moved / law
                    s["hellinger_seq"] += (math.sqrt(law) - math.sqrt(law_pi)) ** 2 / 2
                else:
                    d[child], d_pi[child], shift[child], rest[child] = law, law_pi, moved, second
            gradient[c] = slope
    values = [
        value[()], value_pi[()], s["improvement"], s["surrogate"], s["error"], s["error_sup"],
        math.sqrt(s["variance"]), max(tv.values()), s["tv"], s["tv_seq"], max(kl.values()), s["kl"],
        max(reverse.values()), s["reverse"], s["reverse_pi"], max(chi2.values()), s["chi2_seq"],
        max(hellinger.values()), s["hellinger_seq"], s["martingale"], adv_max,
        max(abs(x) for x in g.values()), s["kl"], s["length"], s["length_pi"],
    ]  # fmt: skip
    return values, gradient


def enumeration(data: Any) -> tuple[list[float], dict[Any, list[float]]]:
    """The sequence-level quantities and the gradient by listing every sequence, contexts by dictionaries."""
    vocab, horizon, mu, pi, reward = data
    j = j_pi = second = error = error_sup = tv_seq = kl_seq = reverse_seq = chi2_seq = hellinger_seq = 0.0
    surrogate = tv_sum = chi2_mean = 0.0
    gradient = {c: [0.0] * vocab for c in mu}
    for y in itertools.product(range(vocab), repeat=horizon):
        law = law_pi = 1.0
        ratios = []
        for t, a in enumerate(y):
            m, p = mu[y[:t]][a], pi[y[:t]][a]
            law *= m
            law_pi *= p
            ratios.append(p / m)
        r = reward[y[:-1]][y[-1]]
        first = sum(x - 1 for x in ratios)
        w = law_pi / law
        j += law * r
        j_pi += law_pi * r
        second += law * r * r
        surrogate += law * r * first
        error += law * r * (w - 1 - first)
        error_sup += law * abs(w - 1 - first) / 2
        tv_seq += abs(law_pi - law) / 2
        kl_seq += law * math.log(law / law_pi)
        reverse_seq += law_pi * math.log(law_pi / law)
        chi2_seq += (law_pi - law) ** 2 / law
        hellinger_seq += (math.sqrt(law) - math.sqrt(law_pi)) ** 2 / 2
        for t, a in enumerate(y):
            row, p = gradient[y[:t]], pi[y[:t]]
            for b in range(vocab):
                row[b] += law_pi * r * ((a == b) - p[b])
            tv_sum += law * sum(abs(p[b] - mu[y[:t]][b]) for b in range(vocab)) / 2
            chi2_mean += law * sum((p[b] - mu[y[:t]][b]) ** 2 / mu[y[:t]][b] for b in range(vocab))
    divergences = [tv_seq, kl_seq, reverse_seq, chi2_seq, hellinger_seq, tv_sum, chi2_mean]
    return [j, j_pi, second, surrogate, error, error_sup, *divergences], gradient


# ---- timing


def bandwidth() -> float:
    """Bytes a second that a copy of 256 MiB moves, reads and writes counted."""
    x = np.zeros(1 << 25)
    y = np.empty_like(x)
    times = []
    for _ in range(4):
        start = time.process_time()
        np.copyto(y, x)
        times.append(time.process_time() - start)
    return 2 * x.nbytes / min(times)


def competitors(case: str) -> list[str]:
    names = ["dictionary programme", "numpy"]
    if case == "single":
        names.insert(0, "trajectory enumeration (13 of them)")
    return [*names, "numba"] if importlib.util.find_spec("numba") else names


def clock(case: str, name: str, at_least: float = 1.0) -> float:
    """Smallest CPU time of one entry, repeated for a while, after its results were checked."""
    tables = make(4, 8) if case == "single" else make(3, 4, (LANES,))
    data = as_dictionaries(tables, 5)
    if name == "numpy":
        without_numba()
    programmes: dict[str, Callable[[], Any]] = {
        "trajectory enumeration (13 of them)": lambda: enumeration(data),
        "dictionary programme": lambda: dictionary_programme(data),
    }
    fn = programmes.get(name, lambda: exact_world(tables))
    found = fn()
    if name not in programmes:
        check(name, tables, found, dictionary_programme(data))
    del found
    best, spent = math.inf, 0.0
    while spent < at_least:
        start = time.process_time()
        fn()
        elapsed = time.process_time() - start
        best, spent = min(best, elapsed), spent + elapsed
    return best


def compete(case: str, rounds: int) -> dict[str, float]:
    """Smallest time of each entry over ``rounds`` turns, each in a fresh process.

    The state that one leaves the memory allocator in would otherwise decide the page faults of the next.
    """
    best: dict[str, float] = {}
    for _ in range(rounds):
        for name in competitors(case):
            for label, extra in (("", {}), (TUNED_LABEL, TUNED)):
                if label and name not in ("numpy", "numba"):
                    continue  # small objects only: the allocator's thresholds do not matter
                command = [sys.executable, __file__, "--clock", case, name]
                environment = os.environ | extra
                result = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
                seconds = float(result.stdout.splitlines()[-1])
                best[name + label] = min(best.get(name + label, math.inf), seconds)
    return best


def check(name: str, tables: Tables, found: Any, expected: Any) -> None:
    """Refuse to time an implementation that computes something else (instance 5 of a batch is compared)."""
    (values, slope), (wanted, gradient) = found, expected
    batch = tables[1].ndim > 2
    for label, a, b in zip(NAMES, values, wanted, strict=True):
        a = a[5] if batch else a
        if not np.allclose(a, b, rtol=1e-8, atol=1e-12):
            raise SystemExit(f"{name}: {label} = {a}, expected {b}")
    rows = as_dictionaries((tables[0], slope), 5)[2]
    for context, row in gradient.items():
        if not np.allclose(rows[context], row, rtol=1e-8, atol=1e-12):
            raise SystemExit(f"{name}: gradient at {context} = {rows[context]}, expected {row}")


def show(
    title: str, times: dict[str, float], base: str, floor: float, unit: float, rate: int = 0
) -> dict[str, Any]:
    """Print one table; return it for the record."""
    print(f"\n{title}")
    rows = {}
    for name, seconds in [*times.items(), ("floor (bytes / bandwidth)", floor)]:
        ratio = times[base] / seconds
        text = f"  {name:36s} {seconds * unit:12.4f} ms   {ratio:12.1f} x"
        if rate:
            text += f"   {rate / seconds:14.0f} instances/s"
        print(text)
        rows[name] = {"seconds": seconds, "ratio_to_" + base.replace(" ", "_"): ratio}
    return rows


def large() -> None:
    """One tree of 10⁷ pairs in this process: seconds and peak memory, as JSON on stdout."""
    tables = make(10, 7)
    start = time.process_time()
    pair = PolicyPair.from_flat(*tables)
    _ = [getattr(pair, name) for name in NAMES], pair.flat_target_gradient
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    record: dict[str, Any] = {"pairs": tables[0].pairs_total, "seconds": seconds, "peak_bytes": peak}
    if importlib.util.find_spec("numba"):
        exact_world(make(2, 2))
        start = time.process_time()
        exact_world(tables)
        record["compiled_seconds"] = time.process_time() - start
    print(json.dumps(record))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--skip-large", action="store_true")
    parser.add_argument("--large-only", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json")
    parser.add_argument("--clock", nargs=2, metavar=("CASE", "NAME"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.clock:
        print(clock(*options.clock))
        return
    if options.large_only:
        large()
        return
    speed = bandwidth()
    print(f"copy bandwidth {speed / 1e9:.1f} GB/s, one thread")
    record: dict[str, Any] = {"bandwidth": speed}

    tree = TokenTree(4, 8)
    times = compete("single", options.rounds)
    title = f"V=4, T=8, one instance, {tree.pairs_total} pairs, 25 quantities and the gradient"
    record["single"] = show(title, times, "dictionary programme", 4 * tree.nbytes() / speed, 1e3)

    times = compete("batch", options.rounds)
    times["dictionary programme"] *= LANES
    title = f"V=3, T=4, a batch of {LANES} instances (dictionaries: one instance, times {LANES})"
    floor = 4 * TokenTree(3, 4).nbytes(LANES) / speed
    record["batch"] = show(title, times, "dictionary programme", floor, 1e3, LANES)

    if not options.skip_large:
        command = [sys.executable, __file__, "--large-only"]
        rows = [
            json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            )
            for _ in range(options.rounds)
        ]
        row = min(rows, key=lambda r: r["seconds"])
        floor = 4 * 8 * row["pairs"] / speed
        print(f"\nV=10, T=7, one instance, {row['pairs']} pairs, in a fresh process")
        print(f"  numpy {row['seconds']:.3f} s, peak {row['peak_bytes'] / 1e9:.2f} GB; floor {floor:.4f} s")
        if "compiled_seconds" in row:
            print(f"  numba {min(r['compiled_seconds'] for r in rows):.3f} s")
        record["large"] = row | {"floor_seconds": floor}
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)


if __name__ == "__main__":
    main()
