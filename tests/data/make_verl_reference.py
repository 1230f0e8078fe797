"""Recomputes verl_rollout_corr.json with verl's own functions.

In an environment of its own:  pip install torch==2.13.0 && pip install --no-deps verl==0.9.1 tensordict
omegaconf antlr4-python3-runtime==4.9.3 hydra-core pyvers codetiming dill torchdata, then  python
make_verl_reference.py OUT.json
"""

import json
import sys

import torch
import verl.trainer.ppo.rollout_corr_helper as helper

OPTIONS = {
    "token_k1": "0.7_1.4",
    "token_k2": "0.05",
    "token_k3": "0.05",
    "seq_sum_k1": "0.5_2.0",
    "seq_sum_k3": "0.3",
    "seq_mean_k1": "0.9_1.1",
    "seq_mean_k2": "0.04",
    "seq_mean_k3": "0.04",
    "seq_max_k2": "0.2",
    "seq_max_k3": "0.2",
}


def main(path: str) -> None:
    generator = torch.Generator().manual_seed(7)
    rollout = -torch.empty(6, 9).exponential_(generator=generator).double()
    train = rollout + 0.3 * torch.randn(6, 9, generator=generator).double()
    train = torch.minimum(train, torch.zeros_like(train))
    mask = torch.ones(6, 9).double()
    mask[1, 5:], mask[4, 2:], mask[2, 3:5] = 0, 0, 0
    train[0, 0] = rollout[0, 0] - 25
    rollout, train = (x.mul(1e6).round().div(1e6) for x in (rollout, train))
    out = {
        "rollout_log_probs": rollout.tolist(),
        "old_log_probs": train.tolist(),
        "response_mask": mask.tolist(),
    }
    for mode in ("token", "sequence"):
        correct = helper.compute_rollout_correction_and_rejection_mask
        out[mode] = correct(train, rollout, mask, rollout_is=mode, rollout_is_threshold=2.0)[2]
    out["rejection"] = {}
    for option, threshold in OPTIONS.items():
        kept, _ = helper.compute_rollout_rejection_mask(train - rollout, mask, option, threshold)
        out["rejection"][option] = {"threshold": threshold, "kept": kept.int().tolist()}
    with open(path, "w") as stream:
        json.dump(out, stream)


if __name__ == "__main__":
    main(sys.argv[1])
