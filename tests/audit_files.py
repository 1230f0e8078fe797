"""Small rollout dumps in every format, written by hand as the trainers and engines write them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import typer

from opdtheory import cli_audit

APP = typer.Typer()
APP.command("audit")(cli_audit.audit)
APP.command("audit-diff")(cli_audit.audit_diff)
ROLLOUT = [[-0.5, -1.0, -0.25], [-2.0, -0.125]]
TRAIN = [[-0.75, -1.0, -0.25], [-1.5, -0.25]]
TOKENS = [[5, 6, 7], [8, 9]]
MEAN_K1 = np.mean([a - b for r, t in zip(ROLLOUT, TRAIN, strict=True) for a, b in zip(r, t, strict=True)])


def lines(path: Path, records: list) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def prime_rl(folder: Path) -> Path:
    target = folder / "token_exports" / "step_3"
    target.mkdir(parents=True)
    records = [
        {
            "token_ids": [1, *t, 2],
            "loss_mask": [False, *[True] * len(t), False],
            "advantages": [0.5] * (len(t) + 2),
            "inference_logprobs": [None, *r, None],
            "trainer_logprobs": [0.0, *p, 0.0],
            "entropy": [1.0] * (len(t) + 2),
        }
        for t, r, p in zip(TOKENS, ROLLOUT, TRAIN, strict=True)
    ]
    return lines(target / "rank_0.jsonl", records)


def nemo_rl(folder: Path) -> Path:
    records = [
        {
            "token_ids": [1, *t],
            "token_loss_mask": [0, *[1] * len(t)],
            "sample_loss_mask": 1.0,
            "advantages": [0, *[1.0] * len(t)],
            "generation_logprobs": [0.0, *r],
            "prev_logprobs": [0.0, *p],
            "rewards": 1.0,
        }
        for t, r, p in zip(TOKENS, ROLLOUT, TRAIN, strict=True)
    ]
    dropped = records[0] | {"sample_loss_mask": 0.0, "prev_logprobs": [-9.0] * 4}
    return lines(folder / "train_data_step7.jsonl", [*records, dropped])


def slime(folder: Path, kind: str) -> Path:
    import torch

    (folder / "rollout_data").mkdir(exist_ok=True)
    path = folder / "rollout_data" / "4.pt"
    rows = zip(TOKENS, ROLLOUT, TRAIN, strict=True)
    samples = [
        {
            "tokens": [11, 12, *t],
            "response_length": len(t),
            "loss_mask": [1] * len(t),
            "rollout_log_probs": r,
            "log_probs": p,
            "reward": 1.0,
            "group_index": 0,
            "status": "completed",
            "prompt": "hi",
        }
        for t, r, p in rows
    ]
    if kind == "samples":
        torch.save({"rollout_id": 4, "samples": samples}, path)
    else:
        columns = {
            "tokens": [torch.tensor(s["tokens"]) for s in samples],
            "response_lengths": [s["response_length"] for s in samples],
            "loss_masks": [torch.tensor(s["loss_mask"]) for s in samples],
            "rollout_log_probs": [torch.tensor(s["rollout_log_probs"]) for s in samples],
            "log_probs": [torch.tensor(s["log_probs"]) for s in samples],
            "rewards": [1.0, 1.0],
        }
        torch.save(columns, path)
    return path


def padded() -> dict[str, np.ndarray]:
    def table(rows: list[list[float]], fill: float) -> np.ndarray:
        return np.array([r + [fill] * (3 - len(r)) for r in rows])

    return {
        "tokens": table(TOKENS, 0).astype(np.int64),
        "response_mask": table([[1] * len(t) for t in TOKENS], 0).astype(np.int64),
        "rollout_log_probs": table(ROLLOUT, 0.0),
        "old_log_probs": table(TRAIN, 0.0),
        "rewards": np.array([1.0, 0.0]),
        "prompt_id": np.array([0, 1]),
    }


def npz(folder: Path) -> Path:
    np.savez_compressed(folder / "rollouts.npz", **padded())
    return folder / "rollouts.npz"


def safetensors(folder: Path) -> Path:
    from safetensors.numpy import save_file

    save_file(padded(), folder / "rollouts.safetensors")
    return folder / "rollouts.safetensors"


def parquet(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({
        "tokens": TOKENS, "rollout_log_probs": ROLLOUT, "old_log_probs": TRAIN, "rewards": [1.0, 0.0],
        "response_mask": [[1] * len(t) for t in TOKENS],
    })  # fmt: skip
    pq.write_table(table, folder / "rollouts.parquet")
    return folder / "rollouts.parquet"


def pt_table(folder: Path) -> Path:
    import torch

    torch.save({k: torch.from_numpy(v) for k, v in padded().items()}, folder / "rollouts.pt")
    return folder / "rollouts.pt"


def vllm(folder: Path) -> Path:
    def entry(token: int, logp: float) -> dict:
        # the best alternative comes first: the drawn id has to be looked up
        return {
            str(token + 100): {"logprob": -0.01, "rank": 1, "decoded_token": "x"},
            str(token): {"logprob": logp, "rank": 2, "decoded_token": f"t{token}"},
        }

    outputs = [
        {
            "index": i,
            "token_ids": t,
            "logprobs": [entry(a, b) for a, b in zip(t, r, strict=True)],
            "log_probs": p,
        }
        for i, (t, r, p) in enumerate(zip(TOKENS, ROLLOUT, TRAIN, strict=True))
    ]
    record = {"request_id": "r0", "prompt_token_ids": [1], "prompt_logprobs": [None], "outputs": outputs}
    return lines(folder / "vllm.jsonl", [record])


def openai(folder: Path) -> Path:
    def content(tokens: list[int], logps: list[float]) -> list[dict]:
        return [
            {
                "token": f"token_id:{t}",
                "logprob": v,
                "bytes": None,
                "top_logprobs": [
                    {"token": f"token_id:{t}", "logprob": v},
                    {"token": "other", "logprob": -3.0},
                ],
            }
            for t, v in zip(tokens, logps, strict=True)
        ]

    choices = [
        {"index": i, "logprobs": {"content": content(t, r)}, "log_probs": p}
        for i, (t, r, p) in enumerate(zip(TOKENS, ROLLOUT, TRAIN, strict=True))
    ]
    path = folder / "openai.json"
    path.write_text(json.dumps({"id": "c1", "choices": choices}, indent=2))
    return path


def openai_completions(folder: Path) -> Path:
    choices = [
        {
            "index": i,
            "text": "…",
            "logprobs": {
                "text_offset": list(range(len(t))),
                "tokens": [f"token_id:{a}" for a in t],
                "token_logprobs": r,
                "top_logprobs": [
                    {f"token_id:{a}": v, "token_id:77": -3.0} for a, v in zip(t, r, strict=True)
                ],
            },
            "log_probs": p,
        }
        for i, (t, r, p) in enumerate(zip(TOKENS, ROLLOUT, TRAIN, strict=True))
    ]
    return lines(
        folder / "completions.jsonl", [{"id": "c1", "object": "text_completion", "choices": choices}]
    )


def sglang(folder: Path) -> Path:
    records = [
        {
            "text": "…",
            "log_probs": p,
            "meta_info": {
                "id": f"s{i}",
                "output_token_logprobs": [[v, a, None] for a, v in zip(t, r, strict=True)],
            },
        }
        for i, (t, r, p) in enumerate(zip(TOKENS, ROLLOUT, TRAIN, strict=True))
    ]
    return lines(folder / "sglang.jsonl", records)
