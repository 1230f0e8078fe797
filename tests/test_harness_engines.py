"""Engines and forward passes on a tiny random model: every way of computing gives the same numbers."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.tolerance import EXACT, FLOAT32, FLOAT64, LOOSE64, SIGMAS, close

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from opdtheory import divergences  # noqa: E402
from opdtheory.harness import forward, models, rollouts, vllm  # noqa: E402
from opdtheory.harness.compare import STATISTICS, compare, pair_statistics  # noqa: E402
from opdtheory.harness.engines import TorchEngine, paired  # noqa: E402
from opdtheory.harness.rollouts import Sampler  # noqa: E402
from tests.harness_models import make_tiny  # noqa: E402

PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder):
    torch.set_num_threads(1)
    return models.load(folder, dtype="float64")


@pytest.fixture(scope="module")
def drawn(model):
    return TorchEngine(model, batch=4).generate(PROMPTS, Sampler(max_tokens=9, seed=3), 2)


def log_probs(engine, r, chunk=4):
    """The engine's log-probabilities of the tokens, by replay."""
    out = np.zeros(r.tokens.shape)
    for rows, start, stop, logits, _, mask in paired(engine, engine, r.prompts, r.responses, chunk):
        tokens = torch.from_numpy(r.tokens[list(rows)][:, start:stop, None])
        values = torch.log_softmax(logits.double(), -1).gather(-1, tokens)[..., 0]
        out[np.ix_(list(rows), range(start, stop))] = (values * mask).numpy()
    return out


def test_replay_recovers_the_recorded_log_probabilities_exactly(model, drawn):
    assert close(log_probs(TorchEngine(model, batch=4), drawn), drawn.raw_log_probs, EXACT)


@pytest.mark.parametrize(
    "engine",
    [{"batch": 1}, {"batch": 3}, {"mode": "prefill", "batch": 1}, {"mode": "prefill", "batch": 6}],
    ids=str,
)
def test_decode_prefill_padded_and_single_agree_in_float64(model, drawn, engine):
    assert close(log_probs(TorchEngine(model, **engine), drawn), drawn.raw_log_probs, FLOAT64)


def test_chunked_and_whole_agree(model, drawn):
    engine = TorchEngine(model, mode="prefill", batch=6)
    whole = compare(
        engine, TorchEngine(model, kv_bits=8), drawn.prompts, drawn.responses, drawn.tokens, chunk=99
    )
    for chunk in (1, 4):
        part = compare(
            engine, TorchEngine(model, kv_bits=8), drawn.prompts, drawn.responses, drawn.tokens, chunk
        )
        assert set(part) == set(STATISTICS)
        for name in STATISTICS:
            assert close(part[name], whole[name], FLOAT64), name


def test_float32_is_close_to_float64(folder, model, drawn):
    single = models.load(folder, dtype="float32")
    found = log_probs(TorchEngine(single, mode="prefill"), drawn)
    assert close(found, drawn.raw_log_probs, FLOAT32)
    assert not close(found, drawn.raw_log_probs, FLOAT64)


def test_left_padding_does_not_change_the_hidden_states(model, drawn):
    a = forward.hidden_states(model, drawn.prompts, drawn.responses)
    b = forward.hidden_states(model, drawn.prompts, drawn.responses, left=True)
    mask = drawn.response_mask.astype(bool)
    assert close(a[mask].numpy(), b[mask].numpy(), FLOAT64)


def test_rollouts_do_not_depend_on_batching_and_repeat_with_the_seed(model, drawn):
    for batch in (1, 6):
        again = TorchEngine(model, batch=batch).generate(PROMPTS, Sampler(max_tokens=9, seed=3), 2)
        assert again.responses == drawn.responses
    other = TorchEngine(model).generate(PROMPTS, Sampler(max_tokens=9, seed=4), 2)
    assert other.responses != drawn.responses
    same_prompt = [drawn.responses[i] for i in range(2)]
    assert same_prompt[0] != same_prompt[1]


def test_responses_end_at_the_end_token_and_nowhere_else(folder, drawn):
    model = models.load(folder, dtype="float64")
    frequent = int(np.bincount(drawn.tokens[drawn.response_mask > 0]).argmax())
    model.module.config.eos_token_id = [frequent]
    r = TorchEngine(model, batch=4).generate(PROMPTS, Sampler(max_tokens=9, seed=3), 2)
    assert r.ended.any() and not r.ended.all()
    for response, whole, ended in zip(r.responses, drawn.responses, r.ended, strict=True):
        assert response == whole[: len(response)]
        assert frequent not in response[:-1]
        assert ended or len(response) == 9


def test_the_sampler_draws_what_its_log_probabilities_say():
    logits = torch.tensor([[1.0, 0.0, -1.0, 2.0, -3.0]])
    sampler = Sampler(temperature=0.7, top_p=0.9, top_k=4)
    log_p = sampler.log_probs(logits)[0]
    n = 20000
    uniform = torch.from_numpy(rollouts.uniforms(0, 1, n))
    tokens, sampled, raw = sampler.draw(logits.expand(n, -1), uniform)
    share = torch.bincount(tokens, minlength=5).double() / n
    error = (log_p.exp() * (1 - log_p.exp()) / n).sqrt()
    assert bool(((share - log_p.exp()).abs() <= SIGMAS * error).all())
    assert close(sampled, log_p[tokens])
    assert close(raw, torch.log_softmax(logits[0].double(), -1)[tokens])


def test_truncation_keeps_the_nucleus_and_renormalises():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64).log()
    kept = Sampler(top_p=0.79).log_probs(logits)[0].exp()
    assert close(kept, [0.625, 0.375, 0.0, 0.0])
    assert close(Sampler(top_k=3).log_probs(logits)[0].exp(), np.array([0.5, 0.3, 0.15, 0.0]) / 0.95)
    assert close(Sampler(top_p=0.1).log_probs(logits)[0].exp(), [1.0, 0.0, 0.0, 0.0])
    squared = np.array([0.25, 0.09, 0.0225, 0.0025])
    assert close(Sampler(temperature=0.5).log_probs(logits)[0].exp(), squared / squared.sum())


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", 0.0), ("top_p", 0.0), ("top_p", 1.5), ("top_k", -1), ("max_tokens", 0)],
)
def test_sampler_refuses_bad_settings(field, value):
    with pytest.raises(ValueError, match=field):
        Sampler(**{field: value})


def test_a_token_of_probability_zero_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    uniform = torch.tensor([0.0, 0.5, 0.4999999, 1 - 2**-53], dtype=torch.float64)
    tokens, log_p, _ = Sampler().draw(logits.expand(4, -1), uniform)
    assert set(tokens.tolist()) <= {1, 3}
    assert bool(torch.isfinite(log_p).all())


def test_pair_statistics_are_the_divergences_of_the_softmaxes():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 3, 7, generator=generator) for _ in range(2))
    tokens = torch.tensor([[0, 1, 2], [3, 4, 6]])
    found = pair_statistics(a, b, tokens)
    p, q = (np.asarray(torch.softmax(x.double(), -1)) for x in (a, b))
    assert close(found["kl_pq"], (p * np.log(p / q)).sum(-1))
    assert close(found["kl_qp"], (q * np.log(q / p)).sum(-1))
    assert close(found["chi2_qp"], ((q - p) ** 2 / p).sum(-1))
    assert close(found["tv"], divergences.tv(p, q))
    assert close(found["log_p"], np.log(np.take_along_axis(p, tokens.numpy()[..., None], -1)[..., 0]))
    assert close(found["max_log_ratio"], np.abs(np.log(p / q)).max(-1))


def test_kv_rounding_grows_with_fewer_bits(model, drawn):
    exact = TorchEngine(model, mode="prefill")
    tv = [
        compare(TorchEngine(model, kv_bits=b), exact, drawn.prompts, drawn.responses, drawn.tokens, 8)[
            "tv"
        ].mean()
        for b in (3, 6, 12)
    ]
    assert tv[0] > tv[1] > tv[2] > 0


def test_chunked_log_probs_have_the_gradient_of_the_whole(folder):
    trained = models.load(folder, dtype="float64")
    parameters = models.trainable(trained, "all")
    prompts, responses = [[5, 6, 7], [8]], [[9, 10, 11, 12], [13, 14]]
    tokens, mask = forward.pad(responses)
    gradients = []
    for chunk in (1, 3, 50):
        states = forward.hidden_states(trained, prompts, responses)
        log_p, entropy = forward.token_log_probs(trained, states, tokens, chunk=chunk)
        total = (log_p * mask).sum() + (entropy * mask).sum()
        gradients.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(total, parameters)]))
    whole = trained.module(input_ids=torch.tensor([prompts[0] + responses[0]])).logits[0, 2:6]
    direct = torch.log_softmax(whole, -1).gather(-1, tokens[0, :, None])[:, 0]
    states = forward.hidden_states(trained, prompts, responses)
    assert close(forward.token_log_probs(trained, states, tokens)[0][0].detach(), direct.detach(), FLOAT64)
    assert float(gradients[0].abs().max()) > 0
    for other in gradients[1:]:
        assert close(gradients[0], other, LOOSE64)


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "jsonl"])
def test_export_round_trip(tmp_path, drawn, suffix):
    r = drawn.with_(rewards=np.arange(6) / 6, log_probs=drawn.raw_log_probs - 0.25)
    path = rollouts.export(r, tmp_path / f"r.{suffix}")
    if suffix == "jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(lines) == 6
        for i, line in enumerate(lines):
            n = len(r.prompts[i])
            assert line["token_ids"] == [*r.prompts[i], *r.responses[i]]
            assert sum(line["loss_mask"]) == r.lengths[i] and not any(line["loss_mask"][:n])
            assert close(line["trainer_logprobs"][n:], r.extra["log_probs"][i, : r.lengths[i]], EXACT)
            assert close(line["inference_logprobs"][n:], r.rollout_log_probs[i, : r.lengths[i]], EXACT)
            assert line["reward"] == i / 6 and line["sampler"]["seed"] == 3
        return
    if suffix == "npz":
        with np.load(path) as file:
            found = {k: file[k] for k in file.files}
    else:
        from safetensors.numpy import load_file

        found = load_file(path)
    for name, values in r.arrays().items():
        assert close(found[name], values, EXACT), name
    assert found["prompt_mask"].sum(1).tolist() == [len(p) for p in r.prompts]
    assert not list(tmp_path.glob(".*"))


def test_export_refuses_an_unknown_suffix(tmp_path, drawn):
    with pytest.raises(ValueError, match=r"\.npz, \.safetensors or \.jsonl"):
        rollouts.export(drawn, tmp_path / "r.csv")


def test_taking_rows_keeps_every_array_aligned(drawn):
    r = drawn.with_(rewards=np.arange(6.0), log_probs=drawn.raw_log_probs)
    part = r.take([4, 1])
    assert part.responses == [r.responses[4], r.responses[1]]
    assert part.rewards.tolist() == [4.0, 1.0]
    assert close(part.extra["log_probs"], r.extra["log_probs"][[4, 1]], EXACT)


def _vllm_output():
    position = {7: {"logprob": -0.5, "rank": 2}, 3: {"logprob": -0.1, "rank": 1}}
    return [
        {
            "prompt_token_ids": [1, 2],
            "outputs": [
                {"token_ids": [7, 3], "logprobs": [position, {"3": -1.5}]},
                {"token_ids": [3], "logprobs": [position]},
            ],
        },
        {"prompt_token_ids": [4], "outputs": [{"token_ids": [7], "logprobs": [position]}]},
    ]


def test_vllm_reader_takes_the_sampled_token():
    r = vllm.read_vllm(_vllm_output(), Sampler(), eos=3)
    assert r.prompts == ((1, 2), (1, 2), (4,))
    assert r.responses == [[7, 3], [3], [7]]
    assert close(r.rollout_log_probs, [[-0.5, -1.5], [-0.1, 0.0], [-0.5, 0.0]], EXACT)
    assert r.prompt_id.tolist() == [0, 0, 1] and r.ended.tolist() == [True, True, False]


def test_vllm_reader_names_what_is_wrong():
    missing = _vllm_output()
    missing[1]["outputs"][0]["logprobs"] = [{3: -0.1}]
    with pytest.raises(
        ValueError, match="request 1, completion 0, position 0: no log-probability for the sampled token 7"
    ):
        vllm.read_vllm(missing, Sampler())
    short = _vllm_output()
    short[0]["outputs"][0]["logprobs"].pop()
    with pytest.raises(ValueError, match="request 0, completion 0: 1 logprobs for 2 tokens"):
        vllm.read_vllm(short, Sampler())
    with pytest.raises(ValueError, match="no 'outputs'"):
        vllm.read_vllm([{"prompt_token_ids": [1]}], Sampler())
    with pytest.raises(ValueError, match="truncated"):
        vllm.read_vllm(_vllm_output(), replace(Sampler(), top_p=0.9))


def test_engines_refuse_bad_settings(model):
    with pytest.raises(ValueError, match="mode 'both'"):
        TorchEngine(model, mode="both")
    with pytest.raises(ValueError, match="batch 0"):
        TorchEngine(model, batch=0)
    with pytest.raises(ValueError, match="kv_bits"):
        TorchEngine(model, mode="prefill", kv_bits=8)
