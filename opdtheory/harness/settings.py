"""What the experiments can be told, with the values used otherwise; nothing heavy is imported here."""

from __future__ import annotations

from typing import Any

SPEC: dict[str, Any] = {
    "path": None,
    "dtype": "float32",
    "device": "cpu",
    "device_map": None,
    "drop_layers": [],
    "noise": 0.0,
    "noise_seed": 0,
    "weight_bits": None,
    "system": None,
    "hint": None,
}
"""A model: where it is, how it computes, how it is derived, and what only it gets to read."""

AUTO_DROP = (12, 15, 18, 21)
"""What ``drop_layers: auto`` takes from the packaged model; other models keep all their layers."""

SCENARIOS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama.cpp vs fp32": ({"kind": "llamacpp"}, {"mode": "prefill", "batch": 1}),
    "llama.cpp vs bf16": ({"kind": "llamacpp"}, {"dtype": "bfloat16", "mode": "prefill", "batch": 1}),
    "bf16 decode vs bf16 prefill": (
        {"dtype": "bfloat16", "mode": "decode", "batch": 8},
        {"dtype": "bfloat16", "mode": "prefill", "batch": 1},
    ),
    "fp32 decode vs fp32 prefill": ({"mode": "decode", "batch": 8}, {"mode": "prefill", "batch": 1}),
    "bf16 padded vs bf16 single": (
        {"dtype": "bfloat16", "mode": "decode", "batch": 8},
        {"dtype": "bfloat16", "mode": "decode", "batch": 1},
    ),
    "8-bit KV cache vs fp32": ({"mode": "decode", "batch": 8, "kv_bits": 8}, {"mode": "prefill", "batch": 1}),
    "6-bit weights vs fp32": (
        {"mode": "decode", "batch": 8, "weight_bits": 6},
        {"mode": "prefill", "batch": 1},
    ),
}
"""Rollout engine and training forward of each named comparison."""

MISMATCH: dict[str, Any] = {
    "seed": 0,
    "student": dict(SPEC),
    "prompts": 8,
    "samples": 1,
    "max_tokens": 128,
    "temperature": 1.0,
    "top_p": 1.0,
    "chunk": 8,
    "scenarios": list(SCENARIOS),
}

DISTILL: dict[str, Any] = {
    "seed": 0,
    "student": {**SPEC, "drop_layers": "auto"},
    "teacher": dict(SPEC),
    "methods": [
        "immediate", "togo", "togo-baseline", "expected", "topd-immediate", "topd", "tropd-gate",
        "tropd-clip", "tropd-mask", "tropd", "full-rkl", "full-jsd",
    ],
    "steps": 12,
    "prompts_per_step": 2,
    "group": 2,
    "max_tokens": 32,
    "learning_rate": 5e-5,
    "weight_decay": 0.0,
    "train": "all",
    "alpha": 0.1,
    "tau": -2.0,
    "entropy_tau": 0.5,
    "topk": 64,
    "beta_guidance": 0.001,
    "lambda": 0.9,
    "guided_tokens": 16,
    "evaluation_prompts": 4,
    "evaluation_tokens": 32,
    "checkpoint_every": 6,
    "chunk": 32,
}  # fmt: skip
"""On-policy distillation: 12 steps of the packaged model without four of its middle layers, towards the whole
model.
"""

GRADIENTS: dict[str, Any] = {
    "seed": 0,
    "student": {**SPEC, "drop_layers": "auto"},
    "teacher": dict(SPEC),
    "prompts": 4,
    "sequences": 560,
    "block": 8,
    "max_tokens": 8,
    "space": "last:1",
    "sketch": 512,
    "alphas": [0.1, 0.2, 0.5, 0.9, 1.0],
    "lambdas": [0.5, 0.9],
    "sample_sizes": [1, 4, 16, 64, 256, 1024, 4096],
    "chunk": 16,
}
"""Gradient estimators: where the gradients live, how they are sketched, and what is compared."""

IMPROVE: dict[str, Any] = {
    "seed": 0,
    "student": dict(SPEC),
    "rollout": {
        "kind": "llamacpp",
        "dtype": None,
        "mode": "decode",
        "batch": 8,
        "kv_bits": None,
        "weight_bits": None,
    },
    "task": "number",
    "methods": ["none", "ppo", "dppo_binary_tv", "trm"],
    "prompts": 16,
    "evaluation_prompts": 40,
    "group": 4,
    "max_tokens": 8,
    "epochs": 2,
    "minibatches": 4,
    "learning_rate": 1e-4,
    "max_norm": 1.0,
    "train": "last:4",
    "topk": 20,
    "batch": 8,
    "chunk": 8,
}
"""One round of policy optimisation with rollouts of another engine."""
