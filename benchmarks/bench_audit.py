"""Time of the per-token statistics of two policies' full logits, against torch and against reading the data
once.

    python benchmarks/bench_audit.py [--tokens 64] [--vocab 151936] [--threads 1] [--rounds 3] [--json OUT]

Every implementation computes the same set (log-probabilities, entropies, KL both ways, TV, χ², JSD,
Hellinger, largest log ratio, TOP-D moment; the package's own also the top-k partition).  Each runs in a
process of its own, because "tuned" is torch eager with glibc told to keep its memory: most of eager's time
is page faults.  The smallest time over rounds is shown; ratios of times taken in one round of a busy
machine are more trustworthy than the times.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

TUNED = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "1073741824",
}
ALPHA = 0.1
NAMES = ("floor", "numba", "numpy", "torch eager", "torch eager tuned", "rows", "rows tuned", "compile")
TARGETS = {
    "torch eager tuned / numba": ("torch eager tuned", "numba", ">=", 8.0),
    "torch eager / numba": ("torch eager", "numba", ">=", 30.0),
    "torch.compile / numba": ("compile", "numba", ">=", 2.5),
    "numba / reading once": ("numba", "floor", "<=", 7.0),
    "numpy / torch row by row": ("numpy", "rows", "<=", 1.0),
    "numpy / torch row by row, tuned": ("numpy", "rows tuned", "<=", 1.0),
}
"""What the package promises: numerator, denominator, direction, bound."""


def torch_statistics(torch: Any, x: Any, y: Any, tokens: Any) -> Any:
    """The set of statistics as one would write it."""
    lp, lq = torch.log_softmax(x, -1), torch.log_softmax(y, -1)
    p, q = lp.exp(), lq.exp()
    ell = lq - lp
    m = (p + q) / 2
    log_m = m.log()
    return torch.stack(
        [
            lp.gather(-1, tokens[:, None])[:, 0],
            lq.gather(-1, tokens[:, None])[:, 0],
            -(p * lp).sum(-1),
            -(q * lq).sum(-1),
            -(p * ell).sum(-1),
            (q * ell).sum(-1),
            (p - q).abs().sum(-1) / 2,
            ((q - p) ** 2 / p).sum(-1),
            ((p * (lp - log_m)).sum(-1) + (q * (lq - log_m)).sum(-1)) / 2,
            ((p.sqrt() - q.sqrt()) ** 2).sum(-1) / 2,
            ell.abs().amax(-1),
            (p * torch.log1p(ALPHA * torch.expm1(ell)) ** 2).sum(-1),
        ]
    )


def implementation(name: str, n: int, vocab: int, threads: int) -> Callable[[], Any]:
    """The function to time, with its data made."""
    import numpy as np

    rng = np.random.default_rng(0)
    p = (3 * rng.standard_normal((n, vocab), dtype=np.float32)).astype(np.float32)
    q = p + np.float32(0.05) * rng.standard_normal((n, vocab), dtype=np.float32)
    tokens = rng.integers(0, vocab, n)
    if name in ("numba", "numpy"):
        from opdtheory.audit import kernels

        if name == "numba":
            from opdtheory.audit.kernels import numba_rows

            return lambda: numba_rows.pair_statistics(p, q, tokens, 20, ALPHA, threads=threads)
        return lambda: kernels.pair_statistics(p, q, tokens, topk=20, alpha=ALPHA, backend="numpy")
    if name == "floor":
        return _reader(p, q, threads)
    import torch

    torch.set_num_threads(threads)
    x, y, t = torch.from_numpy(p), torch.from_numpy(q), torch.from_numpy(tokens)
    with_torch = torch.no_grad()
    if name == "compile":
        compiled = torch.compile(lambda a, b, c: torch_statistics(torch, a, b, c))
        return lambda: with_torch(compiled)(x, y, t)
    if name == "rows":
        return lambda: [torch_statistics(torch, x[i : i + 1], y[i : i + 1], t[i : i + 1]) for i in range(n)]
    return lambda: torch_statistics(torch, x, y, t)


def _reader(p: Any, q: Any, threads: int) -> Callable[[], Any]:
    """Summing both arrays once: the time of reading them."""
    import numba
    import numpy as np

    @numba.njit(fastmath=True, nogil=True)
    def total(a: Any) -> Any:
        s = np.float32(0)
        for i in range(a.shape[0]):
            s += a[i]
        return s

    from concurrent.futures import ThreadPoolExecutor

    parts = [part for array in (p, q) for part in np.array_split(array.ravel(), threads)]
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(total, parts))


def child(name: str, n: int, vocab: int, threads: int) -> float:
    """Smallest of at least five times, in seconds."""
    run = implementation(name.removesuffix(" tuned").replace("torch eager", "eager"), n, vocab, threads)
    run()
    best, spent, count = math.inf, 0.0, 0
    while count < 5 or (spent < 1.0 and count < 50):
        start = time.perf_counter()
        run()
        elapsed = time.perf_counter() - start
        best, spent, count = min(best, elapsed), spent + elapsed, count + 1
    return best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    parser.add_argument("--child")
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.child, args.tokens, args.vocab, args.threads)))
        return
    best = dict.fromkeys(NAMES, math.inf)
    for _ in range(args.rounds):
        for name in NAMES:
            best[name] = min(best[name], _measure(name, args))
    ratios = {name: _ratio(best, target) for name, target in TARGETS.items()}
    print(f"{args.tokens} tokens × {args.vocab}, float32, {args.threads} thread(s)")
    for name in NAMES:
        print(
            f"{name:20s} {best[name] * 1e3:9.2f} ms  {best[name] / best['floor']:7.1f} × floor  "
            f"{best[name] / best['numba']:6.2f} × numba"
        )
    for name, (_, _, sign, bound) in TARGETS.items():
        met = ratios[name] >= bound if sign == ">=" else ratios[name] <= bound
        print(f"{name:36s} {ratios[name]:7.2f}   target {sign} {bound:g}   {'met' if met else 'missed'}")
    if args.json:
        result = {"tokens": args.tokens, "vocab": args.vocab, "threads": args.threads, "seconds": best}
        with open(args.json, "w") as stream:
            json.dump(result | {"ratios": ratios}, stream, indent=1)


def _ratio(seconds: dict[str, float], target: tuple[str, str, str, float]) -> float:
    """The two implementations' times over one another; NaN where either failed."""
    above, below = seconds[target[0]], seconds[target[1]]
    return above / below if math.isfinite(above) and math.isfinite(below) else math.nan


def _measure(name: str, args: argparse.Namespace) -> float:
    threads = str(args.threads)
    environment = os.environ | {
        "OMP_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "NUMBA_NUM_THREADS": threads,
    }
    if name.endswith("tuned"):
        environment |= TUNED
    command = [
        sys.executable,
        __file__,
        "--child",
        name,
        "--tokens",
        str(args.tokens),
        "--vocab",
        str(args.vocab),
    ]
    done = subprocess.run([*command, "--threads", threads], env=environment, capture_output=True, text=True)
    if done.returncode:
        print(f"{name}: failed ({done.stderr.strip().splitlines()[-1][:100]})", file=sys.stderr)
        return math.inf
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


if __name__ == "__main__":
    main()
