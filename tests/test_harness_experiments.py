"""Every real-model experiment on a tiny random model, in seconds: results, resuming, refusals."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from tests.tolerance import EXACT, FLOAT32, FLOAT64, LOOSE64, SIGMAS, close

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from opdtheory import masks  # noqa: E402
from opdtheory.experiments import run_experiment  # noqa: E402
from opdtheory.harness import (  # noqa: E402
    counterparts,
    distill,
    evidence,
    improve,
    mismatch,
    models,
    objectives,
    reports,
    settings,
    statistics,
    twins,
)
from opdtheory.tabular import PolicyPair, terminal_reward  # noqa: E402
from tests.harness_models import make_tiny  # noqa: E402


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    torch.set_num_threads(1)
    return str(make_tiny(tmp_path_factory.mktemp("tiny"), layers=4))


@pytest.fixture(scope="module")
def mismatched(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("mismatch")
    config = {"student": {"path": tiny}, "max_tokens": 10, "prompts": 6, "samples": 2}
    return config, out, run_experiment("mismatch", config, out)


def test_mismatch_measures_every_engine_it_can_run(mismatched):
    _, _, record = mismatched
    assert set(record["skipped"]) == {"llama.cpp vs fp32", "llama.cpp vs bf16"}
    assert (
        "GGUF" in record["skipped"]["llama.cpp vs fp32"]
        or "xllamacpp" in record["skipped"]["llama.cpp vs fp32"]
    )
    kl = {n: r["metrics"]["kl_rollout_train/mean"] for n, r in record["results"].items()}
    assert kl["fp32 decode vs fp32 prefill"] < 1e-3 * kl["bf16 decode vs bf16 prefill"]
    assert kl["bf16 decode vs bf16 prefill"] < kl["6-bit weights vs fp32"]
    for name, r in record["results"].items():
        m = r["metrics"]
        assert r["replay_drift"] == 0, name
        assert 0 <= m["tv/mean"] <= m["tv/max"] <= 1
        assert close(m["kl_rollout_train/seq_sum_mean"], kl[name] * r["tokens"] / r["sequences"], FLOAT64)
        assert m["tv/max"] ** 2 <= 2 * m["kl_rollout_train/max"]


def test_mismatch_estimators_agree_with_the_exact_divergence(mismatched):
    _, _, record = mismatched
    for r in record["results"].values():
        for name in ("k1", "k3", "mean ratio"):
            e = r["estimators"][name]
            assert abs(e["mean"] - e["exact"]) <= SIGMAS * e["standard_error"], name


def test_mismatch_masks_keep_everything_where_nothing_differs(mismatched):
    _, _, record = mismatched
    kept = record["results"]["fp32 decode vs fp32 prefill"]["masks"]
    assert {n for n, k in kept.items() if k["sequences_kept"] < 1} == set()
    coarse = record["results"]["6-bit weights vs fp32"]["masks"]
    assert coarse["trm sampled k3 0.002"]["sequences_kept"] < 1
    assert coarse["dppo exact TV 0.15"]["tokens_kept_positive"] <= 1


def test_mismatch_bounds_and_certificates_accompany_each_engine(mismatched):
    _, _, record = mismatched
    for name, r in record["results"].items():
        bounds = {b["id"]: b for b in r["evidence"]["bounds"]}
        d_seq = r["evidence"]["quantities"]["kl_seq"]["value"]
        assert close(bounds["ours.s1"]["value"], d_seq, FLOAT64)
        assert bounds["ours.s1"]["kind"] == "estimate" and bounds["trm.2.5.1/kl"]["kind"] == "lower"
        assert bounds["ours.s1"]["value"] <= bounds["trm.2.5.1/kl"]["value"]
        assert len(r["evidence"]["certificates"]) == 15
        for c in r["evidence"]["certificates"]:
            assert c["lower"] <= c["estimate"] + LOOSE64 and c["estimate"] <= c["upper"] + LOOSE64, (name, c)


def test_mismatch_resumes_from_its_arrays(mismatched):
    config, out, record = mismatched
    times = {p: p.stat().st_mtime_ns for p in out.glob("rollouts/*.npz")}
    again = run_experiment("mismatch", config, out, resume=True)
    assert again["results"] == record["results"]
    assert times == {p: p.stat().st_mtime_ns for p in out.glob("rollouts/*.npz")} and len(times) == 5


def test_evidence_estimates_the_exact_quantities():
    # responses drawn from a tabular pair must reproduce its exact quantities within sampling error
    tree, mu, pi = counterparts.policies(0.05, seed=3)
    pair = PolicyPair(tree, mu, pi, terminal_reward(tree, lambda _, tokens: float(0 in tokens)))
    random = np.random.default_rng(0)
    horizon, vocab, n = counterparts.HORIZON, counterparts.VOCAB, 20000
    levels = {k: [np.asarray(x) for x in getattr(pair, k)] for k in ("tv", "kl", "reverse_kl", "chi2")}
    p, q = [np.asarray(x) for x in mu.levels], [np.asarray(x) for x in pi.levels]
    context = np.zeros(n, dtype=int)
    arrays = {k: np.zeros((n, horizon)) for k in ("log_mu", "log_pi", "tv", "kl", "reverse_kl", "chi2")}
    seen = np.zeros((n, horizon), dtype=int)
    for t in range(horizon):
        cumulative = np.cumsum(p[t][context], -1)
        token = (random.random((n, 1)) * cumulative[:, -1:] > cumulative).sum(-1)
        arrays["log_mu"][:, t], arrays["log_pi"][:, t] = (
            np.log(p[t][context, token]),
            np.log(q[t][context, token]),
        )
        for k, values in levels.items():
            arrays[k][:, t] = values[t][context]
        seen[:, t] = token
        context = context * vocab + token
    rewards = (seen == 0).any(-1).astype(float)
    arrays["mask"] = np.ones((n, horizon))
    found = evidence.evidence(arrays, rewards, np.arange(n), horizon)["quantities"]
    names = ("kl_seq", "tv_sum", "reverse_kl_sum", "surrogate", "ratio_martingale", "tv_seq",
             "reward_log_w", "cost_log_w", "reward_floor_log_w")  # fmt: skip
    exact = {name: getattr(pair, name) for name in names}
    exact |= {"improvement_weighted": pair.improvement, "reward": pair.J_behavior}
    for name, value in exact.items():
        assert abs(found[name]["value"] - float(value)) <= SIGMAS * found[name]["standard_error"], name
    assert found["kl_max"]["value"] <= float(pair.kl_max) * (1 + FLOAT64)


def test_clustering_counts_prompts_not_responses():
    values, group = np.array([0.0, 0.0, 1.0, 1.0]), np.array([0, 0, 1, 1])
    mean, error = evidence.clustered(values, group)
    assert (mean, error) == (0.5, 0.5)
    assert evidence.clustered(values, np.arange(4))[1] < error
    assert evidence.others_mean(np.array([1.0, 1.0, 0.0, 4.0]), group).tolist() == [2.0, 2.0, 1.0, 1.0]


DISTILL = {"steps": 3, "max_tokens": 6, "evaluation_tokens": 6, "learning_rate": 1e-3, "checkpoint_every": 1}


def test_distillation_runs_every_method_and_resumes_exactly(tiny, tmp_path, monkeypatch):
    spec = {"student": {"path": tiny, "drop_layers": [1]}, "teacher": {"path": tiny}}
    config = {**DISTILL, **spec, "methods": list(objectives.METHODS)}
    whole = run_experiment("distill", config, tmp_path / "a")
    assert set(whole["curves"]) == set(objectives.METHODS)
    starts = {c[0]["kl_student_teacher"] for c in whole["curves"].values()}
    assert len(starts) == 1 and all(len(c) == 4 for c in whole["curves"].values())
    assert whole["summary"]["full-fkl"]["kl_last"] < whole["summary"]["full-fkl"]["kl_first"]
    assert not list((tmp_path / "a" / "checkpoints").iterdir())

    # interrupted after two steps of the second method, a resumed run ends with the same numbers
    few = {**config, "methods": ["full-rkl", "topd"]}
    inner, calls = distill._step, []

    def failing(step, *args, **kwargs):
        calls.append(step)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return inner(step, *args, **kwargs)

    monkeypatch.setattr(distill, "_step", failing)
    with pytest.raises(KeyboardInterrupt):
        run_experiment("distill", few, tmp_path / "b")
    assert [p.name for p in (tmp_path / "b" / "checkpoints").iterdir()] == ["topd.pt"]
    monkeypatch.setattr(distill, "_step", inner)
    resumed = run_experiment("distill", few, tmp_path / "b", resume=True)
    assert resumed["reused_parts"] == ["full-rkl"]
    for name in few["methods"]:
        for a, b in zip(whole["curves"][name], resumed["curves"][name], strict=True):
            assert {k: v for k, v in a.items() if k != "seconds"} == {
                k: v for k, v in b.items() if k != "seconds"
            }


def test_a_privileged_teacher_reads_what_the_student_does_not(tiny, tmp_path):
    config = {
        **DISTILL,
        "student": {"path": tiny},
        "teacher": {"path": tiny},
        "methods": ["full-rkl"],
        "steps": 1,
    }
    same = run_experiment("distill", config, tmp_path / "same")
    told = run_experiment(
        "distill", {**config, "teacher": {"path": tiny, "system": "Be brief."}}, tmp_path / "told"
    )
    assert same["curves"]["full-rkl"][0]["kl_student_teacher"] < LOOSE64
    assert told["curves"]["full-rkl"][0]["kl_student_teacher"] > 1e-3


def test_gradients_have_the_known_relations(tiny, tmp_path):
    config = {
        "student": {"path": tiny, "drop_layers": [1]},
        "teacher": {"path": tiny},
        **{"sequences": 64, "block": 16, "max_tokens": 6, "sketch": 64, "prompts": 2},
    }
    record = run_experiment("gradients", config, tmp_path)
    assert record["sequences"] == 64 and record["blocks"] == 4 and record["tokens"] <= 64 * 6
    e = record["estimators"]
    assert (
        e["togo"]["bias2"]["value"] == 0
        and e["immediate"]["variance"]["value"] < e["togo"]["variance"]["value"]
    )
    for name, form in e.items():
        low, high = form["bias2_plain"]["interval"]
        half = (high - low) / 2 / 1.96
        assert abs(form["bias2_plain"]["value"] - form["bias2"]["value"]) <= SIGMAS * half, name
        assert form["unbiased"] == (form["bias2"] == {"value": 0.0, "interval": [0.0, 0.0]}), name
    # the quiet samples tell the bias far better than differences of the forms do
    widths = [np.ptp(e["immediate"][k]["interval"]) for k in ("bias2", "bias2_plain")]
    assert 0 < 5 * widths[0] < widths[1]
    for t in record["topd"]:
        if t["alpha"] < 1:
            assert t["reward_second_moment_exact_max"] <= t["sharp_constant"]
            assert t["variance"] <= t["second_moment"]["value"] <= t["sharp_bound"] <= t["printed_bound"]
    files = sorted((tmp_path / "blocks").iterdir())
    assert len(files) == 4
    files[2].unlink()
    again = run_experiment("gradients", config, tmp_path, resume=True)
    assert again["estimators"] == record["estimators"]
    forms = {x["form"]: x for x in record["tabular"]["forms"]}
    assert set(forms) == set(e) and len(record["tabular"]["topd"]) == len(record["topd"])
    assert forms["immediate"]["variance"] < forms["togo"]["variance"] and forms["expected"]["bias2"] == 0


IMPROVE = {
    "rollout": {"kind": "torch", "kv_bits": 4},
    "prompts": 4,
    "evaluation_prompts": 5,
    "group": 6,
    "train": "all",
}


def test_improve_covers_every_method(tiny, tmp_path):
    methods = [m for m in improve.METHODS if "scaling" not in m]
    config = {
        **IMPROVE,
        "student": {"path": tiny},
        "learning_rate": 1e-3,
        "methods": methods,
        "max_tokens": 6,
    }
    record = run_experiment("improve", config, tmp_path)
    assert set(record["results"]) == set(methods) and record["results"]["none"]["steps"] == []
    none = record["results"]["none"]["evidence"]["quantities"]["kl_seq"]["value"]
    for name, r in record["results"].items():
        low, high = r["improvement"]["interval"]
        assert low <= r["reward_after"] - r["reward_before"] <= high
        assert 0 <= r["reward_before"] == record["results"]["none"]["reward_before"] <= 1
        if name != "none":
            assert len(r["steps"]) == 8 and any(s["gradient_norm"] > 0 for s in r["steps"])
            assert r["evidence"]["quantities"]["kl_seq"]["value"] != none
    again = run_experiment("improve", config, tmp_path, resume=True)
    assert again["reused_parts"] == methods and again["results"] == record["results"]


def test_topk_divergences_of_an_update_are_those_of_the_partition(tiny):
    from opdtheory import divergences
    from opdtheory.harness.engines import TorchEngine
    from opdtheory.harness.forward import hidden_states
    from opdtheory.harness.rollouts import Sampler

    model = models.load(tiny, dtype="float64")
    other = models.build({"path": tiny, "dtype": "float64", "noise": 0.1})
    engine = TorchEngine(other, batch=2)
    batch = engine.generate([[5, 6], [7, 8, 9]], Sampler(max_tokens=5, seed=1), 2)
    config = {"topk": 4, "chunk": 2}
    top = improve._top_probabilities(engine, batch, config)
    states = hidden_states(model, batch.prompts, batch.responses)
    logits = [
        TorchEngine(m, mode="prefill").stream(batch.prompts, batch.responses, 99) for m in (other, model)
    ]
    mu, pi = (torch.softmax(next(iter(x)).logits, -1).detach().numpy() for x in logits)
    mask = batch.response_mask > 0
    for name, measure in (("dppo_topk_tv", divergences.topk_tv), ("dppo_topk_kl", divergences.topk_kl)):
        found = improve._topk(name, model, states, batch, top, np.arange(4), config)
        assert close(found[mask], measure(mu, pi, 4, batch.tokens)[mask], LOOSE64), name


def test_the_update_uses_the_unified_weights(tiny):
    pi, mu = np.log([[0.5, 0.2]]), np.log([[0.4, 0.4]])
    mask, advantage = np.ones((1, 2), bool), np.array([1.0])
    weight = improve._weight("pg_is", pi, mu, advantage, mask, mu, None)
    assert close(weight, [[1.25, 0.5]])
    far = np.log([[0.01, 0.4]])
    assert close(improve._weight("trm", far, mu, advantage, mask, mu, None), [[0.0, 0.0]], EXACT)
    assert close(improve._weight("trm", mu + 0.01, mu, advantage, mask, mu, None), np.exp([[0.01, 0.01]]))
    assert set(improve.METHODS) >= set(masks.METHODS)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("mismatch", {"scenarios": ["vllm vs fp64"]}, r"scenarios: unknown \['vllm vs fp64'\]"),
        ("distill", {"methods": ["magic"]}, r"methods: unknown \['magic'\]"),
        ("distill", {"steps": 0}, "steps 0: expected a whole number, at least 1"),
        ("distill", {"steps": 1.5}, "steps 1.5"),
        ("distill", {"alpha": 1.5}, "alpha 1.5: expected a number from 0 to 1"),
        ("gradients", {"sequences": 20, "block": 8}, "expected at least 3 whole blocks"),
        ("gradients", {"alphas": [0.1, 2]}, r"alphas \[2\]"),
        ("mismatch", {"prompts": "hello"}, "config.prompts: got 'hello', expected a number or a list"),
        ("mismatch", {"prompts": ["hello", 3]}, r"prompts\[1\] 3: expected a text or a list of token ids"),
        ("mismatch", {"prompts": 17}, r"17 prompts: expected 1\.\.16"),
        ("mismatch", {"chunk": 0}, "chunk 0"),
        ("mismatch", {"seed": -1}, "seed -1"),
        ("mismatch", {"max_tokens": 300}, "longer than the context"),
        ("improve", {"max_tokens": 250, "rollout": {"kind": "torch"}}, "longer than the context"),
        ("distill", {"evaluation_prompts": 16}, "evaluation_prompts 16"),
        ("distill", {"train": "head", "methods": ["immediate"]}, "train 'head'"),
        ("improve", {"methods": ["magic"]}, "methods: unknown"),
        ("improve", {"rollout": {"kind": "sglang"}}, "engine kind 'sglang'"),
        ("improve", {"rollout": {"kind": "torch"}, "task": "chess"}, "task 'chess'"),
        ("gradients", {"space": "lora:0"}, "lora:R"),
        ("gradients", {"max_tokens": 300}, "longer than the context"),
    ],
)
def test_bad_settings_are_refused(tiny, tmp_path, name, config, message):
    model = {"student": {"path": tiny}}
    if name in ("distill", "gradients"):
        model["teacher"] = {"path": tiny}
    with pytest.raises(ValueError, match=message):
        run_experiment(name, {**model, **config}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_teacher_and_student_must_share_their_vocabulary(tiny, tmp_path):
    bigger = str(make_tiny(tmp_path / "bigger", extra_tokens=2))
    for name in ("distill", "gradients"):
        with pytest.raises(ValueError, match="vocabularies of different size"):
            run_experiment(name, {"student": {"path": tiny}, "teacher": {"path": bigger}}, tmp_path / name)


def test_llama_cpp_is_refused_for_models_it_cannot_run(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"GGUF|xllamacpp"):
        run_experiment("improve", {"student": {"path": tiny}}, tmp_path)
    engines = mismatch.Engines({"path": None, "drop_layers": [1]})
    assert "drop_layers" in (engines.unavailable({"kind": "llamacpp"}) or "drop_layers (engine missing)")


def test_records_are_plain_json_with_report_sections(mismatched):
    _, out, record = mismatched
    stored = json.loads((out / "record.json").read_text())
    assert {**stored, "seconds": 0, "date": ""} == {**record, "seconds": 0, "date": ""}
    for data in record["report"]["tables"]:
        assert data["rows"] and all(len(row) == len(data["columns"]) for row in data["rows"])
    assert record["report"]["figures"][0]["values"]


def test_truncated_sampling_is_judged_by_what_was_really_sampled(tiny, tmp_path):
    config = {"student": {"path": tiny}, "max_tokens": 8, "prompts": 4, "samples": 2, "temperature": 0.8, "top_p": 0.7,
              "scenarios": ["fp32 decode vs fp32 prefill"]}  # fmt: skip
    record = run_experiment("mismatch", config, tmp_path)
    r = record["results"]["fp32 decode vs fp32 prefill"]
    m, e = r["metrics"], r["estimators"]
    # the trainer keeps the mass that the sampler cut away: one minus TV is what they share
    assert r["replay_drift"] == 0 and m["kl_train_rollout/mean"] == "inf"
    assert 0.7 <= e["mean ratio"]["expected"] < 0.95 and close(m["tv/mean"], 1 - e["mean ratio"]["expected"], FLOAT32)
    assert abs(e["k3"]["mean"] - e["k3"]["expected"]) <= SIGMAS * e["k3"]["standard_error"] + FLOAT32
    assert e["k3"]["expected"] < e["k3"]["exact"]
    assert r["settings"]["top_p"] == 0.7 and r["settings"]["temperature"] == 0.8
    certificate = next(c for c in r["evidence"]["certificates"] if c["name"] == "tv_seq")
    assert certificate["estimate"] > 0.3


def test_statistics_of_every_response_are_the_exact_quantities():
    tree, mu, pi = counterparts.policies(0.05, seed=3)
    pair = PolicyPair(tree, mu, pi, counterparts.reward_of(tree))
    arrays = counterparts.responses(mu, pi)
    found, horizon = statistics.metrics(arrays), counterparts.HORIZON
    assert close(arrays["weight"].sum(), 1) and close(arrays["weight"] @ arrays["rewards"], pair.J_behavior)
    assert close(found["tv/seq_sum_mean"], pair.tv_sum) and close(found["tv/max"], pair.tv_max)
    assert close(found["kl_rollout_train/seq_sum_mean"], pair.kl_seq)
    assert close(found["kl_rollout_train/mean"] * horizon, pair.kl_seq)
    e = statistics.estimators(arrays)
    assert close(e["k1"]["mean"] * horizon, pair.kl_seq) and close(e["k3"]["mean"] * horizon, pair.k3_sum)
    assert close(e["mean ratio"]["mean"], 1)
    certified = counterparts.certified(arrays)
    assert close(certified["tv_seq"], pair.tv_seq)
    assert certified["return_truncated"] <= float(pair.J_target)
    for name in ("improvement_truncated", "improvement_log", "improvement_masked"):
        assert certified[name] <= float(pair.improvement)


def test_a_weight_counts_as_repetition():
    _, mu, pi = counterparts.policies(0.05, seed=1)
    arrays = {k: v[:40] for k, v in counterparts.responses(mu, pi).items()}
    weight = np.arange(40) % 3 + 1
    repeated = {k: np.repeat(v, weight, axis=0) for k, v in arrays.items() if k != "weight"}
    weighted = {**arrays, "weight": weight.astype(float)}
    for f in (statistics.metrics, statistics.mask_rates):
        found, expected = json.dumps(f(weighted)), json.dumps(f(repeated))
        assert close(*(re.findall(r"[\d.e-]+(?=[,}])", x) for x in (found, expected))), f
    means = [{n: e["mean"] for n, e in statistics.estimators(x).items()} for x in (weighted, repeated)]
    assert close(list(means[0].values()), list(means[1].values()))


def test_tabular_twins_meet_the_measured_number_and_keep_their_promises():
    config = {**settings.DISTILL, "steps": 6}
    found = twins.distillation(["immediate", "topd", "tropd", "full-fkl"], config, 1.4, 0.7)
    curve = found["curves"]["immediate"]["kl_on_policy"]
    assert close(curve[0], 1.4) and close(curve[-1] / curve[0], 0.7, LOOSE64) and len(curve) == 7
    assert set(found["curves"]) == {"immediate", "topd", "tropd"}
    step = twins.improvement("ppo", 8, 0.4, 0)
    assert close(step["quantities"]["kl_seq"], 0.4, LOOSE64)
    assert step["improvement"] < step["surrogate"] and step["improvement"] > 0
    assert all(step["certified"][n] <= step["improvement"] for n in step["certified"] if n.startswith("improvement"))
    none = twins.improvement("none", 8, 0.4, 0)
    assert close(none["quantities"]["kl_seq"], 0.4, LOOSE64)


def test_promises_are_kept_broken_open_or_vacuous():
    assert reports.verdict(0.1, 0.2, 0.3, 0.5) == "kept"
    assert reports.verdict(0.1, -0.2, 0.05, 0.5) == "broken"
    assert reports.verdict(0.1, 0.0, 0.3, 0.5) == "open"
    assert reports.verdict(-0.5, 0.0, 0.3, 0.5) == "vacuous"


def test_counterparts_keep_the_theory():
    found = counterparts.step(0.01)
    bounds = {b["id"]: b["value"] for b in found["bounds"] if b["target"] == "surrogate_error"}
    assert abs(found["error"]) <= found["error_sup"] <= min(bounds.values())
    assert close(found["improvement"] - found["surrogate"], found["error"])
    for row in counterparts.topd(0.5, [0.1, 0.5]):
        assert 0 < row["variance"] <= row["second_moment"] <= row["sharp_bound"] <= row["printed_bound"]
    steps = counterparts.contraction(0.5, 0.2, 5)
    assert all(s["token_mixed_factor"] <= s["token_law_factor"] for s in steps)
    assert all(close(s["state_mixed"], 0.8 ** s["step"]) for s in steps)
