"""The report: its JSON, its page, its conclusions and warnings, conditions and comparisons."""

import contextlib
import json
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from opdtheory import divergences, rewards
from opdtheory.audit import audit_logs, conditions
from tests.audit_files import APP
from tests.tolerance import FLOAT32, FLOAT64, SIGMAS, close

EXAMPLES = Path(__file__).parent.parent / "examples"
SCHEMA = json.loads((resources.files("opdtheory") / "data" / "audit.schema.json").read_text())


def codes(report):
    return [w["code"] for w in report.warnings]


def laws(rng, shape, scale=1.0):
    x = scale * rng.normal(size=shape)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.fixture(scope="module")
def tabular():
    """Full logits of three policies over a small vocabulary, tokens drawn from the rollout policy."""
    rng = np.random.default_rng(0)
    mu = laws(rng, (64, 20, 12))
    pi = mu + 0.2 * rng.normal(size=mu.shape)
    teacher = mu + 0.6 * rng.normal(size=mu.shape)
    uniform = rng.random((64, 20, 1))
    tokens = (np.exp(mu).cumsum(-1) < uniform).sum(-1).clip(0, 11)
    return {
        "tokens": tokens,
        "rollout_logits": mu,
        "logits": pi,
        "teacher_logits": teacher,
        "rewards": rng.integers(0, 2, 64).astype(float),
        "group": np.arange(64) // 4,
        "advantages": rng.normal(size=64),
    }


@pytest.fixture(scope="module")
def report(tabular):
    return audit_logs(tabular, reward_range=(0, 1), topk=3)


def probabilities(x):
    w = np.exp(x - x.max(-1, keepdims=True))
    return w / w.sum(-1, keepdims=True)


def test_exact_metrics_are_the_definitions(tabular, report):
    mu, pi, q = (probabilities(tabular[n]) for n in ("rollout_logits", "logits", "teacher_logits"))
    tokens = tabular["tokens"]
    expected = {
        "kl_rollout_train": divergences.kl(mu, pi),
        "kl_train_rollout": divergences.kl(pi, mu),
        "tv": divergences.tv(mu, pi),
        "chi2_train_rollout": divergences.chi2(pi, mu),
        "jsd": divergences.jsd(mu, pi),
        "hellinger2": divergences.hellinger2(mu, pi),
        "entropy_rollout": divergences.entropy(mu),
        "entropy_train": divergences.entropy(pi),
        "topk_kl": divergences.topk_kl(mu, pi, 3, tokens),
        "topk_tv": divergences.topk_tv(mu, pi, 3, tokens),
        "kl_student_teacher": divergences.kl(mu, q),
        "kl_teacher_student": divergences.kl(q, mu),
        "tv_student_teacher": divergences.tv(mu, q),
        "topd_second_moment": rewards.topd_second_moment(q, mu, 0.1),
        "tropd_accept_exact": 1 - divergences.tv(mu, q),
    }
    rows = np.take_along_axis
    p, r = (rows(x, tokens[..., None], -1)[..., 0] for x in (mu, pi))
    expected |= {"binary_tv": divergences.binary_tv(p, r), "binary_kl": divergences.binary_kl(p, r)}
    expected |= {"k1": divergences.k1(r / p), "k2": divergences.k2(r / p), "k3": divergences.k3(r / p)}
    for name, values in expected.items():
        assert close(report.metrics[f"{name}/mean"].value, values.mean(), FLOAT32), name
        assert close(report.metrics[f"{name}/max"].value, values.max(), FLOAT32), name
    for name in ("kl_rollout_train", "tv", "kl_student_teacher"):
        assert close(report.metrics[f"{name}/seq_sum_mean"].value, expected[name].sum(-1).mean(), FLOAT32)
    log_w = np.log(r / p).sum(-1)
    assert close(report.metrics["seq_w/mean"].value, np.exp(log_w).mean(), FLOAT64)
    assert close(report.metrics["seq_sum_k3/mean"].value, divergences.k3(r / p).sum(-1).mean(), FLOAT64)


def test_advantage_forms_are_those_of_the_advantages_module(tabular, report):
    from opdtheory import advantages

    mu, q = (np.log(probabilities(tabular[n])) for n in ("rollout_logits", "teacher_logits"))
    at = tabular["tokens"][..., None]
    reward = (np.take_along_axis(q, at, -1) - np.take_along_axis(mu, at, -1))[..., 0]
    kl = divergences.kl(np.exp(mu), np.exp(q))
    expected = {
        "opd_advantage_total": advantages.log_ratio_total(reward),
        "opd_advantage_to_go": advantages.log_ratio_to_go(reward),
        "opd_advantage_lambda": advantages.lambda_return(reward, 0.9),
        "opd_advantage_expected_to_go": advantages.expected_to_go(reward, kl),
        "topd_return": advantages.topd_return(np.log(0.1 * np.exp(reward) + 0.9)),
    }
    for name, values in expected.items():
        assert close(report.metrics[f"{name}/mean"].value, values.mean(), FLOAT32), name
        assert close(report.metrics[f"{name}/std"].value, values.std(ddof=1), FLOAT32), name


def test_the_martingale_form_is_its_definition(tabular, report):
    mu, pi = (probabilities(tabular[n]) for n in ("rollout_logits", "logits"))
    at = tabular["tokens"][..., None]
    ell = np.log(np.take_along_axis(pi, at, -1) / np.take_along_axis(mu, at, -1))[..., 0]
    before = np.exp(np.cumsum(ell, -1) - ell)
    expected = ((before - 1) ** 2 * divergences.chi2(pi, mu)).sum(-1).mean()
    metric = report.metrics["seq_ratio_martingale/mean"]
    assert close(metric.value, expected, FLOAT32) and metric.interval[0] < metric.value < metric.interval[1]
    assert {"ours.s5/martingale", "ours.s9/tokens"} <= {b["id"] for b in report.bounds["bounds"]}


def test_labels_say_what_each_number_is(report):
    kinds = {name: (m.kind, m.over) for name, m in report.metrics.items()}
    assert kinds["kl_rollout_train/mean"] == ("exact", "visited contexts")
    assert kinds["topk_kl/mean"] == ("lower", "visited contexts")
    assert kinds["k3/mean"] == ("estimate", "sampled tokens")
    assert kinds["seq_w/mean"] == ("estimate", "sequences")


def test_without_full_logits_the_divergences_are_estimates(tabular):
    drawn = {"tokens": tabular["tokens"], "group": tabular["group"]}
    for name, column in (("rollout_logits", "rollout_log_probs"), ("logits", "log_probs")):
        law = np.log(probabilities(tabular[name]))
        drawn[column] = np.take_along_axis(law, tabular["tokens"][..., None], -1)[..., 0]
    sampled = audit_logs(drawn)
    m = sampled.metrics["kl_rollout_train/mean"]
    truth = divergences.kl(probabilities(tabular["rollout_logits"]), probabilities(tabular["logits"])).mean()
    assert m.kind == "estimate" and m.interval[0] < truth < m.interval[1]
    assert "kl_rollout_train/max" not in sampled.metrics


def test_intervals_cover_about_as_often_as_they_say():
    """Prompts with their own mean, several sequences each: the interval of the token mean covers in most of
    200 repeats.
    """
    from opdtheory.audit.metrics import ratio_interval

    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        counts = rng.integers(5, 50, 40).astype(float)
        sums = counts * (1.0 + rng.normal(size=40)) + rng.normal(size=40) * np.sqrt(counts)
        low, high = ratio_interval(sums, counts, 0.9)
        covered += low < 1.0 < high
    assert abs(covered / 400 - 0.9) < SIGMAS * np.sqrt(0.09 / 400)


def test_the_document_follows_its_schema(report):
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    jsonschema.validate(document, SCHEMA)
    assert {b["id"] for b in document["bounds"]} >= {"ours.s1", "ours.s3"}
    broken = document | {
        "metrics": {"x": {"value": "nan", "kind": "exact", "interval": None, "over": "sequences"}}
    }
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA)


def test_bounds_say_what_they_rest_on(report):
    rows = {b["id"]: b for b in report.bounds["bounds"]}
    assert close(rows["ours.s1"]["value"], report.metrics["kl_rollout_train/seq_sum_mean"].value)
    assert rows["ours.s1"]["kind"] == "estimate" and "exact divergences" in rows["ours.s1"]["basis"]
    assert rows["trm.2.5.4"]["kind"] == "lower" and "visited maximum" in rows["trm.2.5.4"]["basis"]
    assert rows["ours.s1"]["at_upper_end"] > rows["ours.s1"]["value"]


def test_certificates_are_those_of_the_confidence_module(tabular, report):
    from opdtheory import confidence

    mu, pi = (np.log(probabilities(tabular[n])) for n in ("rollout_logits", "logits"))
    at = tabular["tokens"][..., None]
    log_w = (np.take_along_axis(pi, at, -1) - np.take_along_axis(mu, at, -1))[..., 0].sum(-1)
    ell = (np.take_along_axis(pi, at, -1) - np.take_along_axis(mu, at, -1))[..., 0]
    mask = (divergences.k3_from_log_ratio(ell).sum(-1) <= 0.05).astype(float)
    for method in ("hoeffding", "empirical_bernstein"):  # betting depends on the order of prompts
        expected = {
            c.name: c
            for c in confidence.certify(
                log_w, tabular["rewards"], groups=tabular["group"], method=method, mask=mask
            )
        }
        found = {c["name"]: c for c in report.certificates if c["method"] == method}
        assert set(expected) <= set(found)
        for name, c in expected.items():
            assert close(found[name]["lower"], c.lower, FLOAT32) and close(
                found[name]["upper"], c.upper, FLOAT32
            ), name


def test_shortcuts_compare_with_the_truth(report):
    rows = {s["shortcut"]: s for s in report.shortcuts}
    assert (
        rows["topk_kl/mean"]["ratio"] < 1 and rows["binary_kl/mean"]["ratio"] < rows["topk_kl/mean"]["ratio"]
    )
    assert rows["k3/mean"]["interval_covers"] is True


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.external, self.tags = [], [], set()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.external += [v for k, v in attributes if k in ("src", "href") and v and not v.startswith("#")]
        if tag not in ("meta", "br", "rect", "line", "circle", "path", "img", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in ("rect", "line", "circle", "path"):
            return
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_no_network(report):
    page = Page()
    page.feed(report.to_html())
    assert not page.open and not page.external
    assert {"svg", "table"} <= page.tags and "script" not in page.tags


def test_the_page_of_a_run_draws_its_steps(tmp_path):
    for step in (1, 2, 5):
        line = json.dumps(
            {"rollout_log_probs": [-1.0, -2.0], "log_probs": [-1.0, -2.0 - step / 10], "rewards": 1.0}
        )
        (tmp_path / f"train_data_step{step}.jsonl").write_text(line + "\n")
    page = audit_logs(tmp_path).to_html()
    assert "Over the training steps" in page and "step 5: 0.25" in page


def test_the_random_gate_is_the_same_in_every_run(tabular):
    from opdtheory.audit.mask_effects import uniforms
    from opdtheory.audit.readers import batches, in_memory

    (batch,) = batches(
        in_memory({k: tabular[k] for k in ("tokens", "rollout_logits", "teacher_logits")}), "x"
    )
    draws = uniforms(batch)
    np.testing.assert_array_equal(draws, uniforms(batch))
    assert draws.min() >= 0 and draws.max() < 1 and len(set(draws.tolist())) == len(draws)
    assert abs(draws.mean() - 0.5) < SIGMAS * np.sqrt(1 / 12 / len(draws))
    found = audit_logs(tabular)
    accepted = found.state.masks["tropd"]
    rate, spread = found.metrics["tropd_accept_rate"].value, 0.5 / np.sqrt(accepted.tokens)
    assert abs(accepted.tokens_kept / accepted.tokens - rate) < SIGMAS * spread


def test_texts_from_the_logs_are_escaped():
    hostile = "<script>alert(1)</script>"
    from opdtheory.audit.batch import Sequence_, assemble
    from opdtheory.audit.report import build
    from opdtheory.audit.settings import Settings
    from opdtheory.audit.stream import run_batches

    columns = {"rollout_log_probs": np.array([-1.0, -2.0]), "log_probs": np.array([-1.5, -2.0])}
    one = Sequence_(hostile, 2, np.array([1, 2]), None, columns, texts=[hostile, "b"])
    page = build(run_batches(iter([assemble("x", [one])]), Settings()), Settings()).to_html()
    assert hostile not in page and "&lt;script&gt;" in page


def test_redaction_leaves_no_text_token_or_name():
    path = EXAMPLES / "rollouts.jsonl"
    texts = {
        t for line in path.read_text().splitlines() for t in json.loads(line)["token_texts"] if len(t) > 6
    }
    open_, hidden = audit_logs(path), audit_logs(path, redact=True)
    without = audit_logs(EXAMPLES / "topk.npz")
    words = json.dumps(without.to_dict()) + without.to_html()
    shown = [t for t in texts if json.dumps(t)[1:-1] in json.dumps(open_.to_dict()) and t not in words]
    assert shown
    for document in (json.dumps(hidden.to_dict()), hidden.to_html()):
        assert not [t for t in shown if json.dumps(t)[1:-1] in document]
        assert "rollouts.jsonl" not in document and "arithmetic-0" not in document
    assert "tokens" not in hidden.to_dict()["heat"][0]
    # nor is anything of it remembered, so that the parts on disk hold none
    state = hidden.state
    assert state.texts == {} and not len(state.vocabulary.ids)
    assert {t for *_, row in state.heat.entries for t in row["tokens"]} == {-1}
    tops = [state.worst, *(m.removed for m in state.masks.values())]
    assert {entry["token"] for top in tops for *_, entry in top.entries} == {-1}


def warned(**columns):
    return codes(audit_logs({k: np.asarray(v, dtype=float) for k, v in columns.items()}))


def drawn_pair(rng, shape=(64, 50)):
    law = laws(rng, (8,), 1.5)
    tokens = rng.choice(8, size=shape, p=np.exp(law))
    return law, tokens


def test_top_p_processed_log_probabilities_are_noticed():
    rng = np.random.default_rng(2)
    law = laws(rng, (8,), 1.5)
    kept = np.argsort(-law)[:5]
    nucleus = np.log(np.exp(law[kept]) / np.exp(law[kept]).sum())
    index = rng.choice(5, size=(64, 50), p=np.exp(nucleus))
    assert "ratio_below_one" in warned(rollout_log_probs=nucleus[index], log_probs=law[kept][index])


def test_a_shift_by_one_is_noticed_and_alignment_is_not():
    rng = np.random.default_rng(3)
    mu = -rng.exponential(size=(20, 60))
    assert "misaligned" in warned(rollout_log_probs=mu, log_probs=np.roll(mu, 1, axis=1))
    assert "misaligned" in warned(rollout_log_probs=mu, log_probs=np.roll(mu, -1, axis=1))
    assert "misaligned" not in warned(rollout_log_probs=mu, log_probs=mu - 0.01)


def test_a_wrong_temperature_is_noticed():
    rng = np.random.default_rng(4)
    mu = laws(rng, (40, 30, 20), 2.0)
    hot = 1.6 * mu - np.log(np.exp(1.6 * mu).sum(-1, keepdims=True))
    uniform = rng.random((40, 30, 1))
    tokens = (np.exp(mu).cumsum(-1) < uniform).sum(-1).clip(0, 19)[..., None]
    a, b = (np.take_along_axis(x, tokens, -1)[..., 0] for x in (mu, hot))
    assert "temperature" in warned(rollout_log_probs=a, log_probs=b)
    assert "temperature" not in warned(
        rollout_log_probs=a, log_probs=a + 0.05 * rng.normal(size=a.shape) - 0.5
    )


def test_tokens_that_the_logits_did_not_draw_are_noticed():
    rng = np.random.default_rng(5)
    logits = 2 * rng.normal(size=(40, 20, 15))
    cold = probabilities(2 * logits)
    tokens = (cold.cumsum(-1) < rng.random((40, 20, 1))).sum(-1).clip(0, 14)
    arrays = {"tokens": tokens, "rollout_logits": logits, "logits": logits + 0.01}
    assert "wrong_temperature" in codes(audit_logs(arrays))
    assert "wrong_temperature" not in codes(audit_logs(arrays, temperature=0.5))


def test_top_p_cuts_the_rollout_policy_as_the_sampler_did():
    rng = np.random.default_rng(6)
    logits = rng.normal(size=(2, 3, 10))
    report = audit_logs({"tokens": logits.argmax(-1), "rollout_logits": logits, "logits": logits}, top_p=0.5)
    assert report.metrics["kl_train_rollout/mean"].value == np.inf
    assert np.isfinite(report.metrics["kl_rollout_train/mean"].value)
    # KL of a renormalised nucleus from the whole is −log of its mass
    p = np.sort(probabilities(logits), axis=-1)[..., ::-1]
    cut = (p.cumsum(-1) < 0.5).sum(-1)
    mass = np.take_along_axis(p.cumsum(-1), cut[..., None], -1)
    assert close(report.metrics["kl_rollout_train/mean"].value, -np.log(mass).mean(), FLOAT32)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda mu, pi: (np.where(np.arange(50) < 5, 0.0, mu), pi), "placeholder_zero"),
        (lambda mu, pi: (mu, mu), "identical"),
        (lambda mu, pi: (mu, np.where(np.arange(50) == 7, mu - 30, pi)), "clamp"),
        (lambda mu, pi: (mu, np.where(np.arange(50) == 7, np.nan, pi)), "nan"),
        (lambda mu, pi: (mu, np.where(np.arange(50) == 7, -np.inf, pi)), "neg_inf"),
        (lambda mu, pi: (mu, np.where(np.arange(50) == 7, 0.5, pi)), "positive_log_prob"),
        (
            lambda mu, pi: ((mu.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32), pi),
            "low_precision",
        ),
    ],
)
def test_each_trap_has_its_warning(change, code):
    rng = np.random.default_rng(7)
    law, tokens = drawn_pair(rng)
    mu = law[tokens]
    pi = mu + 0.01 * rng.normal(size=mu.shape)
    clean = warned(rollout_log_probs=mu, log_probs=np.minimum(pi, 0))
    assert code not in clean
    a, b = change(mu, np.minimum(pi, -1e-3))
    assert code in warned(rollout_log_probs=a, log_probs=b)


def test_masks_that_empty_a_prompt_are_named():
    mu = np.full((4, 5), -1.0)
    pi = mu.copy()
    pi[:2] += 3.0
    report = audit_logs(
        {"rollout_log_probs": mu, "log_probs": np.minimum(pi, 0), "group": np.array([0, 0, 1, 1])}
    )
    assert any(w["code"] == "mask_empties_prompt" and "trm_max" in w["message"] for w in report.warnings)


def test_long_sequences_with_growing_weights_are_noticed():
    rng = np.random.default_rng(8)
    lengths = rng.integers(1, 400, 80)
    mask = np.arange(400) < lengths[:, None]
    mu = -rng.exponential(size=mask.shape) - 1
    arrays = {"rollout_log_probs": mu, "log_probs": mu - 0.02, "response_mask": mask}
    assert "length_dependent" in codes(audit_logs(arrays))


def test_a_group_column_silences_the_independence_warning():
    mu = np.full((4, 2), -1.0)
    assert "groups_as_independent" in warned(rollout_log_probs=mu, log_probs=mu - 0.1)
    assert "groups_as_independent" not in warned(rollout_log_probs=mu, log_probs=mu - 0.1, group=[0, 0, 1, 1])


def test_rewards_outside_the_stated_range_give_no_certificate():
    arrays = {
        "rollout_log_probs": np.full((4, 2), -1.0),
        "log_probs": np.full((4, 2), -1.1),
        "rewards": np.array([0.0, 1, 2, 0]),
    }
    found = audit_logs(arrays, reward_range=(0, 1))
    assert "reward_outside_range" in codes(found)
    assert {c["name"] for c in found.certificates} == {"tv_seq"}


def test_token_texts_come_from_a_tokenizer_file(tmp_path):
    data = {"model": {"vocab": {"Ġhi": 5, "é": 6}}, "added_tokens": [{"id": 7, "content": "<|end|>"}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    arrays = {
        "tokens": np.array([[5, 7]]),
        "rollout_log_probs": np.full((1, 2), -1.0),
        "log_probs": np.array([[-1.5, -2.0]]),
    }
    found = audit_logs(arrays, token_texts=str(tmp_path))
    assert {t["text"] for t in found.carriers()["tokens"]} == {" hi", "<|end|>"}
    with pytest.raises(ValueError, match=r"model\.vocab"):
        (tmp_path / "tokenizer.json").write_text("[]")
        audit_logs(arrays, token_texts=str(tmp_path))


VALUES = {
    "kl_rollout_train/mean": 0.02,
    "ratio/mean": 0.8,
    "rollout_corr/k3_kl": 1e-3,
    "warnings": 2,
    "warning:nan": 1,
    "mask:ppo": 0.9,
    "ratio/mean.low": 0.7,
}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("kl_rollout_train/mean > 0.01", True),
        ("kl_rollout_train/mean > 1e-1", False),
        ("ratio/mean.low < 0.75", True),
        ("0.5 < ratio/mean <= 0.8", True),
        ("not ratio/mean > 1", True),
        ("warnings == 2 and mask:ppo >= 0.9", True),
        ("warning:nan > 0", True),
        ("rollout_corr/k3_kl * 2 > 0.001 + 0.0005", True),
        ("-ratio/mean < 0", True),
        ("kl_rollout_train/mean / ratio/mean > 0.024", True),
        ("ratio/mean < inf", True),
        ("1 / (warnings - 2) > 0", False),
        ("kl_rollout_train/mean > 1 or ratio/mean != 0.8", False),
    ],
)
def test_conditions(expression, expected):
    assert conditions.fails(expression, VALUES) is expected


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "ratio/mean",
        "ratio/mean >",
        "open('x')",
        "__import__('os').system('true')",
        "ratio/mean if 1 else 2",
        "[1][0] > 0",
        "(lambda: 1)() > 0",
        "'a' < 'b'",
        "ratio/mean > 0; 1",
        "x := 3",
        "ratio/mean ** 2 > 0",
        "1 .__class__ > 0",
        "(" * 999,
        "a" * 5000,
        "True > 0",
        "ratio/mean.__class__ > 0",
        "1 if 2 else 3",
        "f'{1}' > 0",
    ],
)
def test_conditions_are_never_code(expression):
    with pytest.raises((ValueError, conditions.Undecided)):
        conditions.fails(expression, VALUES)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_no_text_breaks_the_condition_parser(text):
    with contextlib.suppress(ValueError, conditions.Undecided):
        assert conditions.fails(text, VALUES) in (True, False)


def run(*arguments):
    return CliRunner().invoke(APP, [str(a) for a in arguments])


def test_the_command_writes_both_reports_and_decides(tmp_path):
    example = EXAMPLES / "rollouts.jsonl"
    a, page = tmp_path / "a.json", tmp_path / "a.html"
    result = run("audit", example, "--reward-range", 0, 1, "--json", a, "--html", page)
    assert result.exit_code == 0, result.output
    document = json.loads(a.read_text())
    jsonschema.validate(document, SCHEMA)
    # one 4-bit engine against float32: the known order of magnitude
    assert 1e-3 < document["metrics"]["kl_rollout_train/mean"]["value"] < 2e-2
    assert 0.01 < document["metrics"]["tv/mean"]["value"] < 0.1
    assert "heat" in page.read_text() and not (tmp_path / "a.json.parts").exists()
    assert run("audit", example, "--fail-on", "kl_rollout_train/mean > 0.001").exit_code == 1
    assert run("audit", example, "--fail-on", "kl_rollout_train/mean > 10").exit_code == 0
    undecided = run("audit", example, "--fail-on", "chi2_student_teacher/mean > 0")
    assert undecided.exit_code == 3 and "undecided" in undecided.stderr


def test_all_example_files_can_be_audited():
    files = [p for p in EXAMPLES.iterdir() if p.suffix in (".jsonl", ".npz", ".safetensors")]
    assert len(files) == 3 and sum(p.stat().st_size for p in files) < 2 << 20
    reports = {p.suffix: audit_logs(p) for p in files}
    assert reports[".npz"].metrics["topk_kl/mean"].kind == "lower"
    assert (
        reports[".npz"].metrics["topk_kl/mean"].value
        < reports[".npz"].metrics["kl_rollout_train/mean"].interval[1]
    )
    assert reports[".safetensors"].metrics["kl_rollout_train/mean"].kind == "exact"
    assert close(
        reports[".npz"].metrics["k3/mean"].value, reports[".jsonl"].metrics["k3/mean"].value, FLOAT32
    )


def test_comparing_two_audits(tmp_path, tabular):
    for name, shift in (("a", 0.0), ("b", 0.0), ("c", 0.5)):
        arrays = {k: v for k, v in tabular.items() if k != "teacher_logits"}
        arrays["logits"] = arrays["logits"] + shift * np.random.default_rng(1).normal(
            size=arrays["logits"].shape
        )
        (tmp_path / f"{name}.json").write_text(json.dumps(audit_logs(arrays).to_dict()))
    same = run("audit-diff", tmp_path / "a.json", tmp_path / "b.json")
    assert same.exit_code == 0 and "0 of" in same.output
    # infinities that agree are no difference
    infinite = tmp_path / "a.json", tmp_path / "e.json"
    for path in infinite:
        document = json.loads((tmp_path / "a.json").read_text())
        document["metrics"]["k3/max"]["value"] = "inf"
        path.write_text(json.dumps(document))
    again = run("audit-diff", *infinite)
    assert again.exit_code == 0 and "0 of" in again.output
    moved = run("audit-diff", tmp_path / "a.json", tmp_path / "c.json", "--json", tmp_path / "d.json")
    assert moved.exit_code == 1
    rows = {r["metric"]: r for r in json.loads((tmp_path / "d.json").read_text())["differences"]}
    order = [r["separated"] is True for r in json.loads((tmp_path / "d.json").read_text())["differences"]]
    assert order == sorted(order, reverse=True) and any(order)  # what moved for certain comes first
    assert rows["kl_rollout_train/mean"]["separated"] is True and rows["kl_rollout_train/mean"]["change"] > 0


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"metrics": {}, "metrics": {}}', "\x00"])
def test_comparing_something_else_exits_2(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    result = run("audit-diff", tmp_path / "a.json", tmp_path / "a.json")
    assert result.exit_code == 2 and "a.json" in result.stderr and len(result.stderr.splitlines()) == 1
