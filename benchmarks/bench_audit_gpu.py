"""Throughput of the GPU kernels as a share of measured copy bandwidth; needs a CUDA device, torch and Triton.

    python benchmarks/bench_audit_gpu.py [--tokens 4096] [--vocab 151936] [--width 3584] [--json OUT]

The one-pass set reads each logit once, the full set twice; both are compared with copying the same bytes.
The variant from hidden states is compared with its two matrix products alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch


def milliseconds(run: Callable[[], Any], repeats: int = 20) -> float:
    """Median time of a call on the device, after warming up."""
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop))
    return sorted(times)[len(times) // 2]


def measure(dtype: torch.dtype, tokens: int, vocab: int, width: int) -> dict[str, float]:
    """Times in milliseconds and shares of the copy bandwidth for one dtype."""
    from opdtheory.audit.kernels import triton_rows
    from opdtheory.audit.kernels.hidden import pair_statistics_from_hidden

    p = torch.randn(tokens, vocab, device="cuda").mul_(3).to(dtype)
    q = (p.float() + 0.05 * torch.randn(tokens, vocab, device="cuda")).to(dtype)
    drawn = torch.randint(0, vocab, (tokens,), device="cuda")
    target = torch.empty_like(p)
    read = 2 * p.numel() * p.element_size()
    copy = milliseconds(lambda: target.copy_(p))
    bandwidth = 2 * p.numel() * p.element_size() / copy  # bytes a millisecond, read and written
    one = milliseconds(lambda: triton_rows.one_pass(p, q, drawn))
    full = milliseconds(lambda: triton_rows.pair_statistics(p, q, drawn), repeats=5)
    rows = 512
    states = [torch.randn(rows, width, device="cuda", dtype=dtype) for _ in range(2)]
    heads = [torch.randn(vocab, width, device="cuda", dtype=dtype) / width**0.5 for _ in range(2)]
    products = milliseconds(lambda: [h @ w.T for h, w in zip(states, heads, strict=True)])
    variant = milliseconds(
        lambda: pair_statistics_from_hidden(states[0], heads[0], states[1], heads[1], drawn[:rows]), repeats=5
    )
    return {
        "copy_ms": copy,
        "one_pass_ms": one,
        "one_pass_share_of_copy_bandwidth": read / one / bandwidth,
        "full_ms": full,
        "full_share_of_copy_bandwidth": read / full / bandwidth,
        "hidden_ms": variant,
        "hidden_over_products": variant / products,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument("--width", type=int, default=3584)
    parser.add_argument("--json")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device; expected one (the kernels' logic is tested on the CPU)")
    out = {str(t): measure(t, args.tokens, args.vocab, args.width) for t in (torch.bfloat16, torch.float32)}
    out["device"] = {"name": torch.cuda.get_device_name()}  # type: ignore[dict-item]
    print(json.dumps(out, indent=1))
    if args.json:
        with open(args.json, "w") as stream:
            json.dump(out, stream, indent=1)


if __name__ == "__main__":
    main()
