"""Time of training steps on the exact world: exact TOP-D runs, and 256 sampled runs as one batch.

    python benchmarks/bench_simulate.py [--steps 1000] [--rounds 3] [--json OUT]

One process, one thread (set OMP_NUM_THREADS=1).  Exact steps are those of a tabular student with vocabulary 4
and horizon 6 (1365 contexts, 4096 responses); the sampled batch is compared with the same runs one by one.
The smallest time over rounds is shown.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

from opdtheory.gradients import Estimator
from opdtheory.simulate import Algorithm, Distill, Gradient, TabularStudent, Unified, World, train
from opdtheory.tabular import Policy, TokenTree


def seconds(run: Callable[[], Any], rounds: int) -> float:
    """Smallest wall time of ``rounds`` calls."""
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    """Print the table, and write it if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", default=None)
    options = parser.parse_args()
    tree = TokenTree(4, 6)
    policy, teacher = (Policy.random(tree, seed=i) for i in range(2))
    world, student = World(tree, teacher), TabularStudent(tree)
    immediate = Distill(Estimator(lam=0, alpha=0.1))
    full = Distill(Estimator("topd_return", alpha=0.1), normalise=True)
    clip = Unified("grpo_clip_higher")
    exact = {
        "TOP-D, immediate reward": Algorithm(immediate),
        "TOP-D, mean of later rewards, normalised": Algorithm(full, clip, Gradient(0.5)),
        "TOP-D Algorithm 1, 4 clipped epochs": Algorithm(full, clip, Gradient(0.5), epochs=4),
    }
    rows: list[dict[str, Any]] = []
    for name, algorithm in exact.items():

        def run(algorithm: Algorithm = algorithm) -> Any:
            start = student.start(policy)
            return train(world, student, start, algorithm, options.steps, measures={})

        rows.append({"what": f"{options.steps} exact steps: {name}", "seconds": seconds(run, options.rounds)})
    small = TokenTree(4, 4)
    p, q = (Policy.random(small, seed=i) for i in range(2))
    tabular, there = TabularStudent(small), World(small, q)
    algorithm = Algorithm(immediate, optimiser=Gradient(0.5), responses=8)

    def batch() -> Any:
        return train(there, tabular, tabular.start(p, 256), algorithm, 50, measures={})

    def single() -> Any:
        return [
            train(there, tabular, tabular.start(p), algorithm, 50, measures={}, seed=i) for i in range(16)
        ]

    together, apart = seconds(batch, options.rounds), 16 * seconds(single, options.rounds)
    rows += [
        {"what": "50 sampled steps of 256 seeds, one batch", "seconds": together},
        {"what": "the same one by one (16 seeds, times 16)", "seconds": apart},
    ]
    for row in rows:
        print(f"{row['seconds']:8.3f} s  {row['what']}")
    print(f"{apart / together:8.1f} x  batch over single runs")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as stream:
            json.dump({"steps": options.steps, "rows": rows}, stream, indent=1)


if __name__ == "__main__":
    main()
