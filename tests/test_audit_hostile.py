"""Hostile and broken input: one line naming file and place, exit code 2, and what was readable is kept."""

import io
import json
import pickle
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from opdtheory.audit import audit_logs
from opdtheory.audit.readers import containers
from tests import audit_files as files
from tests.audit_files import APP as app

GOOD = {"rollout_log_probs": [-1.0, -2.0], "log_probs": [-1.0, -2.5], "tokens": [1, 2]}


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def record(**changes):
    return json.dumps({k: v for k, v in (GOOD | changes).items() if v is not ...})


def npz(arrays, **options):
    stream = io.BytesIO()
    np.savez(stream, **arrays, **options)
    return stream.getvalue()


def header(text, data=b""):
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw + data


def zip_with(name, data):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return stream.getvalue()


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


class Bomb:
    """Unpickling this would leave a file behind."""

    def __reduce__(self):
        return (open, ("/tmp/opdtheory-was-here", "w"))


TABLE = files.padded()
ONE_LINE = {
    "truncated json line": (record() + "\n" + record()[:-9], ["line 2"]),
    "ragged lengths": (record(log_probs=[-1.0]), ["line 1", "length 2", "expected 1 as in 'log_probs'"]),
    "nested list": (record(log_probs=[[-1.0], [-2.0, -3.0]]), ["line 1", "'log_probs'"]),
    "strings for numbers": (record(log_probs=["-1.0", "-2.0"]), ["line 1", "'log_probs'"]),
    "booleans for numbers": (record(log_probs=[True, False]), ["line 1", "'log_probs'"]),
    "number for a list": (record(log_probs={"a": 1}), ["'log_probs'", "dict"]),
    "fractional token ids": (record(tokens=[1.5, 2.0]), ["'tokens'"]),
    "negative token ids": (record(tokens=[-7, 2]), ["'tokens'", "-7"]),
    "huge token ids": (record(tokens=[1, 2**40]), ["'tokens'", str(2**40)]),
    "huge integers": (record(log_probs=[10**400, 1]), ["line 1", "'log_probs'"]),
    "mask of the wrong length": (record(response_mask=[1]), ["'response_mask'", "length 1"]),
    "mask of other numbers": (record(response_mask=[1, 0.5]), ["'response_mask'", "0.5"]),
    "duplicate keys": ('{"log_probs": [-1.0], "log_probs": [-2.0]}', ["line 1", "duplicate key 'log_probs'"]),
    "not utf-8": (b'{"log_probs": [-1.0], "x": "\xff\xfe"}', ["line 1", "UTF-8"]),
    "an array per line": (record() + "\n[1, 2, 3]", ["line 2", "list", "object"]),
    "no known key": ('{"prompt": "hi", "answer": "ho"}', ["line 1", "answer", "log_probs"]),
    "deeply nested": ('{"log_probs": ' + "[" * 100_000 + "]" * 100_000 + "}", ["line 1"]),
    "reward of text": (record(reward="good"), ["'rewards'", "good"]),
    "one top-k table without its ids": (
        record(rollout_topk_log_probs=[[-1.0], [-2.0]]),
        ["rollout_topk_ids"],
    ),
    "empty file": ("", ["empty file"]),
    "plain text": ("hello\n", ["hello", "jsonl"]),
    "a pickle": (pickle.dumps(GOOD), ["pickle"]),
    "truncated npz": (npz(TABLE)[:-200], ["zip"]),
    "npz of objects": (npz({"log_probs": np.array([[1], None], dtype=object)}), ["log_probs", "pickle"]),
    "npz with a bomb": (npz({"log_probs": np.array([Bomb()], dtype=object)}), ["log_probs", "pickle"]),
    "npz that is no npy": (zip_with("log_probs.npy", b"hello"), ["log_probs.npy", "npy"]),
    "npz with another file": (zip_with("readme.txt", b"hello"), ["readme.txt"]),
    "zip bomb": (zip_with("log_probs.npy", npy(np.zeros((1, 1 << 20), np.float32))), ["zip bomb"]),
    "npz of integers for log-probabilities": (
        npz(TABLE | {"old_log_probs": TABLE["tokens"]}),
        ["old_log_probs", "floating"],
    ),
    "npz of other shapes": (
        npz(TABLE | {"old_log_probs": np.zeros((2, 5))}),
        ["old_log_probs", "(2, 5)", "(2, 3)"],
    ),
    "npz of one dimension": (npz({"log_probs": np.zeros(3)}), ["log_probs", "(3,)", "(B, T)"]),
    "npz with a wrong mask": (npz(TABLE | {"response_mask": np.full((2, 3), 7)}), ["response_mask", "7"]),
    "npz in Fortran order": (
        npz({"log_probs": np.asfortranarray(np.zeros((2, 3)))}),
        ["log_probs", "C order"],
    ),
    "npz with text for rewards": (npz(TABLE | {"rewards": np.array(["a", "b"])}), ["'rewards'", "numbers"]),
    "npz with a table for groups": (
        npz(TABLE | {"prompt_id": np.zeros((2, 3))}),
        ["'group'", "(2, 3)", "(2,)"],
    ),
    "npz without a sequence": (npz({k: v[:0] for k, v in TABLE.items()}), ["no sequences"]),
    "safetensors of a fractional shape": (
        header('{"log_probs": {"dtype": "F32", "shape": [1.5, 4], "data_offsets": [0, 24]}}', b"\0" * 24),
        ["log_probs", "1.5", "integers"],
    ),
    "safetensors of an enormous empty shape": (
        header(f'{{"log_probs": {{"dtype": "F32", "shape": [0, {10**30}], "data_offsets": [0, 0]}}}}'),
        ["log_probs", "integers"],
    ),
    "huge safetensors header": (struct.pack("<Q", 2**60) + b"{" + b" " * 50, [str(2**60)]),
    "safetensors of bad json": (header('{"a": [}'), ["header"]),
    "safetensors beyond the file": (
        header('{"log_probs": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}', b"\0" * 8),
        ["log_probs", "24"],
    ),
    "safetensors of another size": (
        header('{"log_probs": {"dtype": "F32", "shape": [2, 30], "data_offsets": [0, 24]}}', b"\0" * 24),
        ["log_probs", "240 bytes"],
    ),
    "safetensors of a negative shape": (
        header('{"log_probs": {"dtype": "F32", "shape": [-2, -3], "data_offsets": [0, 24]}}', b"\0" * 24),
        ["log_probs"],
    ),
    "safetensors of an unknown dtype": (
        header('{"log_probs": {"dtype": "Q4", "shape": [2, 3], "data_offsets": [0, 24]}}', b"\0" * 24),
        ["log_probs", "Q4"],
    ),
    "safetensors with duplicate keys": (header('{"a": {}, "a": {}}'), ["duplicate key 'a'"]),
    "damaged parquet": (b"PAR1" + b"\0" * 100, ["parquet"]),
    "vllm without the drawn id": (
        json.dumps({"token_ids": [5], "logprobs": [{"6": {"logprob": -1.0}}]}),
        ["line 1", "vllm"],
    ),
    "vllm of other lengths": (
        json.dumps({"token_ids": [5, 6], "logprobs": [{"5": {"logprob": -1.0}}]}),
        ["vllm", "1 logprob"],
    ),
    "sglang of numbers": (json.dumps({"meta_info": {"output_token_logprobs": [1.0]}}), ["sglang"]),
    "openai without logprob": (
        json.dumps({"choices": [{"logprobs": {"content": [{"token": "a"}]}}]}),
        ["openai"],
    ),
}


@pytest.fixture(autouse=True)
def small_bombs(monkeypatch):
    """The limit above which a high compression ratio is refused, lowered so that the bomb can be small."""
    monkeypatch.setattr(containers, "BIG", 1 << 20)


@pytest.mark.parametrize("name", sorted(ONE_LINE))
def test_broken_input_gives_one_line_and_exit_2(name, tmp_path):
    data, words = ONE_LINE[name]
    path = write(tmp_path / "bad.data", data)
    result = CliRunner().invoke(app, ["audit", str(path)])
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and "Traceback" not in result.output
    assert "bad.data" in lines[0]
    for word in words:
        assert word in lines[0], lines[0]


def test_no_bomb_went_off(tmp_path):
    from pathlib import Path

    for data in (ONE_LINE["npz with a bomb"][0], pickle.dumps(Bomb())):
        with pytest.raises(ValueError, match="pickle"):
            audit_logs(write(tmp_path / "bomb", data))
    assert not Path("/tmp/opdtheory-was-here").exists()


def test_a_pt_file_with_code_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    from pathlib import Path

    torch.save({"rollout_log_probs": Bomb()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="plain tensors"):
        audit_logs(tmp_path / "a.pt")
    assert not Path("/tmp/opdtheory-was-here").exists()


def test_a_compressed_pt_file_is_refused_before_it_is_unpacked(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"log_probs": torch.zeros(1, 4)}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as whole,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for info in whole.infolist():
            bomb = info.filename.endswith("data/0")
            packed.writestr(info.filename, bytes(1 << 24) if bomb else whole.read(info))
    with pytest.raises(ValueError, match=r"compressed to .* expected members stored plainly"):
        audit_logs(tmp_path / "b.pt")


def test_structs_in_parquet_are_refused_with_their_row(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"log_probs": [[-1.0]], "rollout_log_probs": [{"a": 1}]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="row 0, key 'rollout_log_probs': dict"):
        audit_logs(tmp_path / "a.parquet")


def test_answers_without_a_token_in_a_table_are_empty_sequences():
    columns = {
        "tokens": np.zeros((3, 0), int),
        "rollout_log_probs": np.zeros((3, 0)),
        "log_probs": np.zeros((3, 0)),
    }
    report = audit_logs(columns)
    assert report.state.sequence_count == 3 and report.state.token_count == 0
    assert "empty_sequence" in [w["code"] for w in report.warnings]


def test_readable_records_and_files_are_kept(tmp_path):
    first = write(tmp_path / "a.jsonl", f"{record()}\n{record(log_probs=[-1.0])}\n\n{record()}\n")
    second = write(tmp_path / "b.npz", npz(TABLE)[:-200])
    third = write(tmp_path / "c.jsonl", record() + "\n")
    target = tmp_path / "out.json"
    result = CliRunner().invoke(app, ["audit", str(first), str(second), str(third), "--json", str(target)])
    assert result.exit_code == 2
    assert "line 2" in result.stderr and "b.npz" in result.stderr
    document = json.loads(target.read_text())
    assert document["sequences"] == 3
    assert len(document["errors"]) == 2


def test_many_faulty_lines_are_counted_not_all_printed(tmp_path):
    path = write(tmp_path / "a.jsonl", (record(log_probs=[-1.0]) + "\n") * 500)
    result = CliRunner().invoke(app, ["audit", str(path)])
    assert len(result.stderr.splitlines()) == 21
    assert "480 further faulty records" in result.stderr


def test_zero_length_sequences_are_counted_and_warned_about(tmp_path):
    path = write(
        tmp_path / "a.jsonl", record(log_probs=[], rollout_log_probs=[], tokens=[]) + "\n" + record()
    )
    report = audit_logs(path)
    assert report.state.sequence_count == 2 and report.state.token_count == 2
    (warning,) = [w for w in report.warnings if w["code"] == "empty_sequence"]
    assert "a.jsonl: line 1" in warning["where"][0]


def test_nan_and_infinite_log_probabilities_are_reported_with_their_positions():
    bad = np.array([[-1.0, np.nan, -1.0], [-1.0, -np.inf, 0.5]])
    report = audit_logs({"rollout_log_probs": np.full((2, 3), -1.0), "log_probs": bad})
    found = {w["code"]: w for w in report.warnings}
    assert "row 0 position 1" in found["nan"]["where"][0]
    assert "row 1 position 1" in found["neg_inf"]["where"][0]
    assert "row 1 position 2" in found["positive_log_prob"]["where"][0]
    # the NaN token is left out of every statistic
    assert report.state.tokens["k1"].count == 5


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--temperature", "0"], "temperature"),
        (["--top-p", "1.5"], "top-p"),
        (["--confidence", "1"], "confidence"),
        (["--reward-range", "1", "0"], "reward range"),
        (["--compat", "nobody"], "nobody"),
        (["--engine", "dask"], "dask"),
        (["--format", "xml"], "xml"),
        (["--group", "nothing"], "nothing"),
        (["--jobs", "0"], "jobs"),
        (["--fail-on", "kl >"], "condition"),
        (["--fail-on", "__import__('os')"], "condition"),
        (["--tokenizer", "/nowhere"], "/nowhere"),
        (["--json", "/nowhere/a.json"], "/nowhere"),
    ],
)
def test_bad_options_exit_2_with_one_line(options, word, tmp_path):
    path = write(tmp_path / "a.jsonl", record() + "\n")
    result = CliRunner().invoke(app, ["audit", str(path), *options])
    assert result.exit_code == 2
    assert word in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_missing_file_exits_2(tmp_path):
    result = CliRunner().invoke(app, ["audit", str(tmp_path / "none.jsonl")])
    assert result.exit_code == 2 and "none.jsonl: no such file" in result.stderr


NUMBERS = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=3))
VALUES = st.recursive(
    NUMBERS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=8,
)
NAMES = (
    "tokens log_probs rollout_log_probs teacher_log_probs response_mask rewards advantages group id "
    "response_length rollout_topk_ids rollout_topk_log_probs token_ids logprobs choices meta_info "
    "outputs sample_loss_mask token_loss_mask generation_logprobs token_texts entropy"
)
KEYS = st.sampled_from(NAMES.split())


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(KEYS, VALUES, max_size=5), min_size=1, max_size=4))
def test_no_record_crashes_the_audit(tmp_path, records):
    """Whatever stands under the known keys, alone or in a good record, gives a report and one-line errors."""
    good = GOOD | {"group": 1, "rewards": 0.5, "advantages": [1.0, -1.0]}
    text = "".join(
        json.dumps(r) + "\n" + json.dumps(good | r) + "\n" + json.dumps(good) + "\n" for r in records
    )
    path = write(tmp_path / "a.jsonl", text)
    report = audit_logs(path, strict=False, reward_range=(0, 1))
    assert report.state.sequence_count >= len(records)  # the good ones
    assert all("\n" not in e and "a.jsonl" in e for e in report.errors)
    json.dumps(report.to_dict(), allow_nan=False)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([b"", b"PAR1", b"PK\x03\x04", b'{"a": ', b"[", b"\x80\x04", b"\x10\0\0\0\0\0\0\0{"]),
    st.binary(max_size=60),
)
def test_no_bytes_crash_the_audit(tmp_path, head, tail):
    report = audit_logs(write(tmp_path / "a.bin", head + tail), strict=False)
    assert all("\n" not in e for e in report.errors)
    assert report.errors or report.state.sequence_count == 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2000), st.binary(min_size=1, max_size=8), st.sampled_from(["npz", "safetensors"]))
def test_damaged_archives_do_not_crash_the_audit(tmp_path, at, patch, kind):
    path = (files.npz if kind == "npz" else files.safetensors)(tmp_path)
    data = bytearray(path.read_bytes())
    at %= len(data)
    data[at : at + len(patch)] = patch
    report = audit_logs(write(path, bytes(data)), strict=False)
    assert all("\n" not in e for e in report.errors)
