"""Loading, deriving and refusing models; chunked heads; prompts."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from tests.tolerance import EXACT, FLOAT32, FLOAT64, close

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from opdtheory.harness import llamacpp, models, settings, tasks  # noqa: E402
from opdtheory.harness.forward import hidden_states  # noqa: E402
from tests.harness_models import make_tiny  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    return make_tiny(tmp_path_factory.mktemp("tiny"), layers=4)


def logits(model, ids=(5, 6, 7, 8)):
    with torch.no_grad():
        return model.module(input_ids=torch.tensor([ids])).logits[0].double().numpy()


def test_prompts_are_encoded_with_the_privileged_context(folder):
    plain, told = models.load(folder), models.load(folder, system="S", hint="H")
    assert plain.decode(plain.encode("Hi")) == "Hi|>"
    assert told.decode(told.encode("Hi")) == "S|Hi\nH|>"
    assert plain.vocab == 259 and plain.context == 256 and plain.eos == 2


@pytest.mark.parametrize("dtype", sorted(models.DTYPES))
def test_every_dtype_loads_and_computes(folder, dtype):
    model = models.load(folder, dtype=dtype)
    assert model.dtype == models.DTYPES[dtype]
    assert np.isfinite(logits(model)).all()


def test_dropping_layers_equals_a_model_without_them(folder):
    short = models.load(folder, dtype="float64")
    models.drop_layers(short.module, [1, 2])
    whole = models.load(folder, dtype="float64")
    with torch.no_grad():
        for layer in (1, 2):
            attention, mlp = whole.trunk.layers[layer].self_attn, whole.trunk.layers[layer].mlp
            attention.o_proj.weight.zero_()
            mlp.down_proj.weight.zero_()
    assert close(logits(short), logits(whole), FLOAT64)
    assert short.module.config.num_hidden_layers == 2
    assert [layer.self_attn.layer_idx for layer in short.trunk.layers] == [0, 1]
    ids, settings = torch.tensor([[5, 6, 7]]), {"max_new_tokens": 4, "do_sample": False}
    cached, afresh = (short.module.generate(ids, use_cache=c, **settings) for c in (True, False))
    assert cached.tolist() == afresh.tolist()


def test_noise_has_the_size_asked_for_and_follows_the_seed(folder):
    clean, noisy = models.load(folder), models.build({"path": str(folder), "noise": 0.1, "noise_seed": 5})
    again = models.build({"path": str(folder), "noise": 0.1, "noise_seed": 5})
    a, b = (m.trunk.layers[0].mlp.up_proj.weight for m in (clean, noisy))
    assert 0.08 < float((a - b).std() / a.std()) < 0.12
    assert close(logits(noisy), logits(again), EXACT)
    assert models.fingerprint(noisy) == models.fingerprint(again) != models.fingerprint(clean)


def test_weight_rounding_is_idempotent_and_within_half_a_level(folder):
    model = models.load(folder)
    before = model.trunk.layers[0].mlp.up_proj.weight.clone()
    models.quantise_weights(model.module, 4, group=8)
    after = model.trunk.layers[0].mlp.up_proj.weight
    blocks = before.reshape(-1, 8)
    level = blocks.abs().amax(1, keepdim=True) / 7
    assert bool(((after.reshape(-1, 8) - blocks).abs() <= level / 2 * (1 + FLOAT32)).all())
    multiples = after.reshape(-1, 8) / level
    assert close(multiples.detach(), torch.round(multiples).detach(), FLOAT32)
    once = after.clone()
    models.quantise_weights(model.module, 4, group=8)
    assert close(model.trunk.layers[0].mlp.up_proj.weight.detach(), once.detach(), FLOAT32)
    assert float((after - before).abs().max()) > 0


def test_rounding_keeps_zero_blocks():
    assert models.round_to_bits(torch.zeros(2, 8), 4).abs().max() == 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"dtype": "float8"}, "dtype 'float8'"),
        ({"drop_layers": [4]}, r"drop_layers \[4\]: expected a proper subset of 0..3"),
        ({"drop_layers": [0, 1, 2, 3]}, "proper subset"),
        ({"weight_bits": 1}, "weight_bits 1"),
        ({"layers": 3}, "model: unknown key 'layers'"),
        ({"device": "gpu"}, "device 'gpu'"),
        ({"path": "/nowhere/model"}, "no such file or folder"),
        ({"device": "mps"}, "device 'mps': expected cpu, cuda"),
        ({"device_map": "nonsense"}, "device 'nonsense': expected cpu, cuda"),
        ({"device_map": 3}, "device_map 3: expected auto"),
    ],
)
def test_bad_model_descriptions_are_refused(folder, spec, message):
    with pytest.raises(ValueError, match=message):
        models.build({"path": str(folder), **spec})


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused_before_loading():
    with pytest.raises(ValueError, match="no CUDA GPU is available"):
        models.load("/nowhere/model", device="cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("device_map", ["cuda", {"": 0}, {"model": "cpu", "lm_head": "cuda:1"}])
def test_a_device_map_may_only_name_gpus_that_are_there(folder, device_map):
    spec = {**settings.SPEC, "path": str(folder), "device_map": device_map}
    with pytest.raises(ValueError, match=r"student: device 'cuda.* no CUDA GPU is available"):
        models.check_spec(spec, "student")


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}])
def test_placing_a_model_by_a_device_map_changes_nothing(folder, device_map):
    placed = models.load(folder, device_map=device_map)
    assert close(logits(placed), logits(models.load(folder)), EXACT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop_layers": "some"}, "drop_layers 'some'"),
        ({"drop_layers": [1.5]}, r"drop_layers \[1.5\]"),
        ({"noise": -1.0}, "noise -1.0"),
        ({"weight_bits": 40}, "weight_bits 40"),
        ({"hint": 3}, "hint 3: expected a text"),
        ({"dtype": "int8"}, "dtype 'int8'"),
    ],
)
def test_descriptions_are_checked_without_loading(folder, change, message):
    with pytest.raises(ValueError, match=f"teacher: {message}"):
        models.check_spec({**settings.SPEC, "path": str(folder), **change}, "teacher")


def test_damaged_models_are_refused_in_one_line(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    damaged = shutil.copytree(folder, tmp_path / "damaged")
    whole = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    partial = shutil.copytree(folder, tmp_path / "partial")
    weights = load_file(partial / "model.safetensors")
    removed = next(k for k in weights if "layers.1" in k and "up_proj" in k)
    save_file({k: v for k, v in weights.items() if k != removed}, partial / "model.safetensors", {"format": "pt"})
    junk = tmp_path / "junk.gguf"
    junk.write_bytes(b"junk")
    for path, message in ((damaged, "cannot be loaded"), (partial, f"1 weights are missing, .* {removed}"), (junk, "junk")):
        with pytest.raises(ValueError, match=message) as caught:
            models.load(path)
        assert len(str(caught.value).splitlines()) == 1


def test_ids_cannot_carry_a_privileged_context(folder):
    told = models.load(folder, hint="H")
    with pytest.raises(ValueError, match=r"prompt 1 is token ids, but .* a system text or hint"):
        tasks.encode_prompts(told, ["Hi", [5, 6]])
    assert tasks.encode_prompts(models.load(folder), [[5, 6]]) == [[5, 6]]


def test_files_that_are_no_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json and 0 GGUF files"):
        models.load(tmp_path)
    wrong = tmp_path / "model.bin"
    wrong.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"ending in \.gguf"):
        models.load(wrong)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="broken"):
        models.load(broken)


def test_pairs_that_cannot_be_compared_are_refused(folder, tmp_path):
    model = models.load(folder)
    bigger = models.load(make_tiny(tmp_path / "bigger", extra_tokens=3))
    with pytest.raises(ValueError, match=r"259 logits, .* has 262"):
        models.check_pair(model, bigger)
    swapped = shutil.copytree(folder, tmp_path / "swapped")
    text = (swapped / "tokenizer.json").read_text()
    a, b = '"A": 35', '"B": 36'
    assert a in text and b in text
    (swapped / "tokenizer.json").write_text(text.replace(a, '"A": 36').replace(b, '"B": 35'))
    with pytest.raises(ValueError, match=r"mismatch .* 2 tokens differ, for example 'A' is 35 and 36"):
        models.check_pair(model, models.load(swapped))
    models.check_pair(model, models.load(folder, dtype="bfloat16"))


def test_prompts_that_do_not_fit_are_refused(folder):
    model = models.load(folder)
    with pytest.raises(ValueError, match=r"prompt 1 has 250 tokens, with 7 new ones longer than .* 256"):
        models.check_context(model, [[1], [1] * 250], 7)
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        models.check_context(model, [[]], 1)
    with pytest.raises(ValueError, match=r"token ids 3..300; expected 0..258"):
        hidden_states(model, [[3, 300]], [[4]])


def test_a_model_with_scaled_logits_is_refused(folder, monkeypatch):
    model = models.load(folder)
    inner = model.module.forward

    def scaled(*args, **kwargs):
        result = inner(*args, **kwargs)
        result.logits = result.logits * 2
        return result

    monkeypatch.setattr(model.module, "forward", scaled)
    with pytest.raises(ValueError, match="its logits are not its linear head"):
        models._check_head(model)


def test_trainable_parts(folder):
    model = models.load(folder)
    assert not any(p.requires_grad for p in model.module.parameters())
    last = models.trainable(model, "last:1")
    assert {id(p) for p in last} == {id(p) for p in model.trunk.layers[3].parameters()}
    assert sum(p.requires_grad for p in model.module.parameters()) == len(last)
    for bad in ("first", "last:0", "last:5", "last:x"):
        with pytest.raises(ValueError, match="expected 'all' or 'last:N'"):
            models.trainable(model, bad)


def test_the_packaged_model_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="make models"):
        models.packaged_model()


def test_the_second_engine_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(llamacpp, "_LIBRARY", None)
    monkeypatch.setattr(llamacpp.importlib.util, "find_spec", lambda name: None)
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    assert not llamacpp.available()
    with pytest.raises(ValueError, match=r"opdtheory\[engines\]"):
        llamacpp.LlamaCppEngine(file)


def test_the_second_engine_refuses_other_files(tmp_path):
    with pytest.raises(ValueError, match="is not a GGUF file"):
        llamacpp.LlamaCppEngine(tmp_path)


def test_tasks_score_their_answers():
    sums = tasks.make_task("arithmetic", 5, 0)
    assert sums.score(f" It is {sums.answers[0]}.", sums.answers[0]) == 1
    assert sums.score("1000 or so", sums.answers[0]) == 0
    numbers = tasks.make_task("number", 5, 0)
    assert numbers.requests == sums.requests
    assert (numbers.score("about 3", ""), numbers.score("three", "")) == (1, 0)
    sentence = tasks.make_task("one_sentence", 20, 1)
    assert len(sentence.requests) == 20
    assert [sentence.score(t, "") for t in ("One.", "One. Two.", "none", "Why?")] == [1, 0, 0, 0]
    with pytest.raises(ValueError, match="task 'chess'"):
        tasks.make_task("chess", 1, 0)
    with pytest.raises(ValueError, match=r"expected 1\.\.16"):
        tasks.general(17)
