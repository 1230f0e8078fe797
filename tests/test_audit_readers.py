"""Every format is recognised by content and gives the same statistics."""

import json
import math

import numpy as np
import pytest

from opdtheory.audit import audit_logs, readers
from tests import audit_files as files
from tests.tolerance import EXACT, FLOAT32, close

pytest.importorskip("pyarrow")
pytest.importorskip("torch")
WRITERS = {
    "prime-rl": files.prime_rl,
    "nemo-rl": files.nemo_rl,
    "slime samples": lambda f: files.slime(f, "samples"),
    "slime lists": lambda f: files.slime(f, "lists"),
    "npz": files.npz,
    "safetensors": files.safetensors,
    "parquet": files.parquet,
    "pt": files.pt_table,
    "vllm": files.vllm,
    "openai": files.openai,
    "openai completions": files.openai_completions,
    "sglang": files.sglang,
}


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_every_format_gives_the_same_numbers(name, tmp_path):
    report = audit_logs(WRITERS[name](tmp_path))
    assert report.state.token_count == sum(map(len, files.TOKENS))
    assert close(
        report.metrics["k1/mean"].value, files.MEAN_K1, FLOAT32 if name.startswith("slime") else EXACT
    )
    assert close(report.metrics["rollout_corr/kl"].value, files.MEAN_K1, FLOAT32)
    assert {int(i) for i in report.state.vocabulary.ids} == {t for row in files.TOKENS for t in row}
    assert not report.errors


def test_the_documented_hook_writes_what_the_reader_reads(tmp_path):
    """The ten lines of the documentation, run as they stand on a trainer's tensors."""
    import re
    from pathlib import Path

    import torch

    text = (Path(__file__).parent.parent / "docs" / "audit.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code.strip().splitlines()) <= 10
    names: dict = {}
    exec(code, names)
    table = files.padded()
    batch = {
        "responses": torch.tensor(table["tokens"]),
        "response_mask": torch.tensor(table["response_mask"]),
        "old_log_probs": torch.tensor(table["old_log_probs"]),
        "rollout_log_probs": torch.tensor(table["rollout_log_probs"]),
        "rewards": torch.tensor(table["rewards"]),
        "prompt_id": ["a", "b"],
    }
    names["dump"](tmp_path / "dump.jsonl", batch)
    report = audit_logs(tmp_path / "dump.jsonl")
    assert close(report.metrics["k1/mean"].value, files.MEAN_K1) and report.state.sequence_count == 2
    assert "groups_as_independent" not in [w["code"] for w in report.warnings]


def test_steps_come_from_paths_and_give_a_run_view(tmp_path):
    report = audit_logs([files.prime_rl(tmp_path), files.nemo_rl(tmp_path), files.slime(tmp_path, "samples")])
    assert [s["step"] for s in report.to_dict()["steps"]] == [3, 4, 7]
    assert report.to_dict()["steps"][0]["metrics"]["k1/mean"]["value"] == files.MEAN_K1


def test_a_brace_in_the_ninth_byte_makes_no_safetensors_file(tmp_path):
    path = tmp_path / "a.data"
    path.write_text('{"id": [{}], "log_probs": [-1.0]}\n')
    assert readers.files.detect(path) == "jsonl"
    path.write_bytes(b"\x40" + bytes(7) + b'{"a": 1}' + bytes(60))
    assert readers.files.detect(path) == "safetensors"


def test_a_folder_is_read_in_natural_order(tmp_path):
    for step in (10, 9):
        (tmp_path / f"train_data_step{step}.jsonl").write_text(
            json.dumps({"rollout_log_probs": [-1.0], "log_probs": [-1.0]}) + "\n"
        )
    assert [p.name for p in readers.expand([tmp_path])] == [
        "train_data_step9.jsonl",
        "train_data_step10.jsonl",
    ]


def test_vllm_takes_the_drawn_id_and_groups_by_request(tmp_path):
    report = audit_logs(files.vllm(tmp_path))
    assert report.metrics["rollout_log_probs/mean"].value == np.mean([v for r in files.ROLLOUT for v in r])
    assert len(report.state.groups.column("tokens")) == 1
    assert report.carriers()["vocabulary"][0]["text"] == "t8"
    # the top-2 table of the dump gives the mass it covers
    assert report.metrics["topk_mass_rollout/max"].value == 1.0


def test_a_masked_nemo_rl_sample_counts_as_an_empty_sequence(tmp_path):
    report = audit_logs(files.nemo_rl(tmp_path))
    assert report.state.sequence_count == 3
    assert [w["code"] for w in report.warnings].count("empty_sequence") == 1


def test_bfloat16_safetensors_are_read_exactly(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    values = torch.tensor([[-0.1, -0.7]], dtype=torch.bfloat16)
    save_file({"rollout_log_probs": values, "log_probs": values.clone()}, tmp_path / "a.safetensors")
    report = audit_logs(tmp_path / "a.safetensors")
    assert report.metrics["log_probs/min"].value == values.float()[0, 1].item()
    assert "identical" in [w["code"] for w in report.warnings]


def test_a_long_jsonl_file_is_cut_into_units_without_losing_lines(tmp_path, monkeypatch):
    from opdtheory.audit.readers import files as module

    path = tmp_path / "long.jsonl"
    path.write_text(
        "".join(json.dumps({"rollout_log_probs": [-1.0 * i], "log_probs": [-1.0]}) + "\n" for i in range(500))
    )
    whole = audit_logs(path)
    monkeypatch.setattr(module, "UNIT_BYTES", 1000)
    assert len(readers.units(path)) > 10
    parts = audit_logs(path)
    assert parts.state.sequence_count == whole.state.sequence_count == 500
    assert parts.metrics["k1/mean"].value == whole.metrics["k1/mean"].value


def test_rewards_per_token_are_summed_over_the_response():
    arrays = files.padded() | {"rewards": np.array([[0.0, 0.0, 1.0], [0.5, 0.25, 9.0]])}
    assert audit_logs(arrays).metrics["reward/mean"].value == (1.0 + 0.75) / 2


def test_columns_are_chosen_by_role():
    a, b, c = ([[-1.0]], [[-2.0]], [[-4.0]])
    only_old = audit_logs({"log_probs": a, "old_log_probs": b})
    assert only_old.metrics["log_ratio/mean"].value == 1.0
    all_three = audit_logs({"log_probs": a, "old_log_probs": b, "rollout_log_probs": c})
    assert all_three.metrics["log_ratio/mean"].value == 3.0
    assert all_three.to_dict()["policies"]["rollout"] == "rollout_log_probs"


def test_aliases_of_one_column_together_are_refused(tmp_path):
    record = {"log_probs": [-1.0], "trainer_logprobs": [-1.0], "rollout_log_probs": [-1.0]}
    with pytest.raises(ValueError, match=r"line 1: keys 'log_probs' and 'trainer_logprobs'"):
        audit_logs(files.lines(tmp_path / "a.jsonl", [record]))


def test_group_option_names_the_prompt_column(tmp_path):
    records = [{"rollout_log_probs": [-1.0], "log_probs": [-1.1], "problem": i // 2} for i in range(6)]
    report = audit_logs(files.lines(tmp_path / "a.jsonl", records), group="problem")
    assert len(report.state.groups.column("tokens")) == 3
    assert "groups_as_independent" not in [w["code"] for w in report.warnings]


def test_minus_infinite_train_log_probability_is_kept_as_infinite_kl():
    report = audit_logs({"rollout_log_probs": [[-1.0, -1.0]], "log_probs": [[-math.inf, -1.0]]})
    assert report.metrics["k1/mean"].value == math.inf
    assert report.metrics["ratio/mean"].value == 0.5
    assert report.to_dict()["metrics"]["k1/mean"]["value"] == "inf"


def test_full_logits_are_read_token_by_token_with_gaps_in_the_mask(tmp_path):
    """A sparse mask, both containers and memory give the same, and no more rows are read than needed."""
    pytest.importorskip("safetensors")
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    mu = rng.normal(size=(3, 60, 7)).astype(np.float32)
    mask = np.zeros((3, 60), np.int64)
    mask[:, :4], mask[1, 40:55], mask[2, 59] = 1, 1, 1
    arrays = {
        "tokens": rng.integers(0, 7, (3, 60)),
        "response_mask": mask,
        "rollout_logits": mu,
        "logits": mu + np.float32(0.1) * rng.normal(size=mu.shape).astype(np.float32),
        "teacher_logits": rng.normal(size=mu.shape).astype(np.float32),
    }
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    save_file(arrays, tmp_path / "a.safetensors")
    reports = [audit_logs(arrays), audit_logs(tmp_path / "a.npz"), audit_logs(tmp_path / "a.safetensors")]
    for report in reports:
        assert report.state.token_count == mask.sum()
        for name in ("kl_rollout_train/mean", "kl_student_teacher/mean", "k3/mean"):
            assert report.metrics[name].value == reports[0].metrics[name].value
    whole = audit_logs({k: v for k, v in arrays.items() if k != "response_mask"})
    assert whole.metrics["kl_rollout_train/mean"].value != reports[0].metrics["kl_rollout_train/mean"].value


def test_unnamed_sequences_of_different_files_are_different_prompts(tmp_path):
    for name in "ab":
        files.lines(tmp_path / f"{name}.jsonl", [{"rollout_log_probs": [-1.0], "log_probs": [-1.1]}])
    assert len(audit_logs(tmp_path).state.groups.column("tokens")) == 2


def test_nan_logits_are_left_out_and_reported():
    rng = np.random.default_rng(1)
    mu = rng.normal(size=(4, 5, 6))
    pi = mu + 0.1
    pi[1, 2, 3] = np.nan
    report = audit_logs(
        {"tokens": np.zeros((4, 5), int), "rollout_logits": mu, "logits": pi, "advantages": np.ones(4)}
    )
    assert report.state.tokens["kl_rollout_train"].count == 19
    found = [w for w in report.warnings if w["code"] == "nan"]
    assert found and all(["row 1 position 2" in place for place in w["where"]] == [True] for w in found)
