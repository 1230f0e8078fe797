"""Files that record different things, taken together: every number keeps to the data it came from."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opdtheory import advantages, divergences
from opdtheory.audit import audit_logs
from opdtheory.audit.readers import arrays, batches, files, in_memory, read, units
from tests.test_audit_report import codes, laws, probabilities
from tests.tolerance import FLOAT32, FLOAT64, TIGHT, close

VOCAB = 6


def table(seed, rows=6, width=5, first_group=0, groups=3):
    """Everything that can be recorded of some sequences."""
    rng = np.random.default_rng(seed)
    logits = {n: laws(rng, (rows, width, VOCAB)) for n in ("rollout_logits", "teacher_logits")}
    logits["logits"] = logits["rollout_logits"] + 0.3 * rng.normal(size=(rows, width, VOCAB))
    tokens = rng.integers(0, VOCAB, (rows, width))
    drawn = {
        name: np.take_along_axis(np.log(probabilities(logits[of])), tokens[..., None], -1)[..., 0]
        for name, of in (
            ("rollout_log_probs", "rollout_logits"),
            ("log_probs", "logits"),
            ("teacher_log_probs", "teacher_logits"),
        )
    }
    top = {
        f"{policy}_topk_{what}": values
        for policy, of in (("rollout", "rollout_logits"), ("train", "logits"), ("teacher", "teacher_logits"))
        for what, values in zip(("ids", "log_probs"), top_two(logits[of]), strict=True)
    }
    return (
        logits
        | drawn
        | top
        | {
            "tokens": tokens,
            "response_mask": (np.arange(width) < rng.integers(0, width + 1, rows)[:, None]).astype(int),
            "rewards": rng.random(rows),
            "group": first_group + rng.integers(0, groups, rows),
            "advantages": rng.normal(size=rows),
        }
    )


def top_two(logits):
    law = np.log(probabilities(logits))
    ids = np.argsort(-law, axis=-1)[..., :2]
    return ids, np.take_along_axis(law, ids, -1)


PARTS = st.tuples(
    st.integers(0, 1000),
    st.sets(st.sampled_from(sorted(table(0).keys() - {"tokens"})), min_size=1),
    st.sampled_from([0, 2, 50]),
    st.sampled_from(["", "nan", "-inf"]),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PARTS, min_size=1, max_size=3))
def test_every_interval_contains_its_value_whatever_the_files_record(tmp_path, parts):
    """Sums and counts of an interval come from the same sequences as the value."""
    paths = []
    for i, (seed, names, first_group, spoiled) in enumerate(parts):
        whole = table(seed, first_group=first_group)
        chosen = {n: whole[n] for n in names | {"tokens", "rollout_log_probs"}}
        for policy in ("rollout", "train", "teacher"):
            pair = [f"{policy}_topk_{s}" for s in ("ids", "log_probs")]
            if any(n in chosen for n in pair):
                chosen |= {n: whole[n] for n in pair}
        if spoiled and "log_probs" in chosen:
            chosen["log_probs"] = chosen["log_probs"].copy()
            chosen["log_probs"][0, 0] = float(spoiled)
        np.savez(tmp_path / f"{i}.npz", **chosen)
        paths.append(tmp_path / f"{i}.npz")
    report = audit_logs(paths, reward_range=(0, 1))
    checked = 0
    for name, metric in report.metrics.items():
        assert metric.count is None or 0 < metric.count <= report.state.token_count or "length" in name
        if metric.interval is not None:
            low, high = metric.interval
            slack = TIGHT * max(1.0, abs(metric.value))  # the two sums are rounded apart
            assert low - slack <= metric.value <= high + slack, (name, metric)
            checked += 1
    assert checked or len(report.state.groups.column("tokens")) < 2
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_file_without_logits_does_not_dilute_the_sums_of_one_that_has_them(tmp_path):
    whole = table(1, rows=8)
    np.savez(tmp_path / "a.npz", **whole)
    alone = audit_logs(tmp_path / "a.npz").metrics
    drawn = {k: table(2, rows=40, first_group=50)[k] for k in ("tokens", "rollout_log_probs", "log_probs")}
    np.savez(tmp_path / "b.npz", **drawn)
    report = audit_logs([tmp_path / "a.npz", tmp_path / "b.npz"])
    for name in ("kl_rollout_train/seq_sum_mean", "tv/seq_sum_mean", "topk_kl_student_teacher/mean"):
        both = report.metrics[name]
        assert close(both.value, alone[name].value, FLOAT64)
        assert close(both.interval, alone[name].interval, FLOAT64) and both.count == alone[name].count
    # masks that need what the second file lacks count its prompts neither as tried nor as emptied
    exact = report.state.masks["trm_exact_max"]
    assert exact.tokens == int(whole["response_mask"].sum())
    messages = [w["message"] for w in report.warnings if w["code"] == "mask_empties_prompt"]
    assert all("of 3 prompts" in m for m in messages if "exact" in m)
    covered = [w["message"] for w in report.warnings if w["code"] == "partly_covered"]
    assert any(f"known for {exact.tokens} of {report.state.token_count} tokens" in m for m in covered)
    assert "partly_covered" not in codes(audit_logs(tmp_path / "a.npz"))


def test_files_given_twice_are_noticed(tmp_path):
    rng = np.random.default_rng(0)
    logp = -rng.exponential(size=(12, 20))
    data = {
        "tokens": rng.integers(0, 900, (12, 20)),
        "rollout_log_probs": logp,
        "log_probs": logp - 0.01,
        "group": np.arange(12),
    }
    np.savez(tmp_path / "a.npz", **data)
    np.savez(tmp_path / "b.npz", **data)
    assert "repeated_answers" not in codes(audit_logs(tmp_path / "a.npz"))
    twice = audit_logs(tmp_path)
    (warning,) = [w for w in twice.warnings if w["code"] == "repeated_answers"]
    assert "12 of 24" in warning["message"]
    # answers of a few tokens repeat by themselves
    short = {k: v[:, :10] if v.ndim == 2 else v for k, v in data.items()}
    assert "repeated_answers" not in codes(audit_logs({k: np.concatenate([v, v]) for k, v in short.items()}))


@pytest.fixture
def distilled():
    whole = table(3, rows=9, width=7, groups=3)
    whole["group"] = np.array([0, 0, 0, 1, 1, 1, 1, 2, 5])
    del whole["advantages"], whole["response_mask"]
    return whole


def test_baselined_forms_subtract_what_they_say(distilled):
    report = audit_logs(distilled)
    mu, q = (np.log(probabilities(distilled[n])) for n in ("rollout_logits", "teacher_logits"))
    at = distilled["tokens"][..., None]
    reward = (np.take_along_axis(q, at, -1) - np.take_along_axis(mu, at, -1))[..., 0]
    kl = divergences.kl(np.exp(mu), np.exp(q))
    to_go = advantages.log_ratio_to_go(reward)
    group = distilled["group"]
    third = []
    for i in range(7):  # the last two prompts have one answer, so nothing to compare with
        others = [j for j in range(9) if group[j] == group[i] and j != i]
        third.append(to_go[i] - to_go[others].mean(axis=0))
    fifth = reward - (np.cumsum(kl[:, ::-1], axis=1)[:, ::-1] - kl) + kl
    for name, values in (
        ("opd_advantage_to_go_baseline", np.array(third)),
        ("opd_advantage_expected_to_go_baseline", fifth),
    ):
        assert close(report.metrics[f"{name}/mean"].value, values.mean(), FLOAT32), name
        assert close(report.metrics[f"{name}/std"].value, values.std(ddof=1), FLOAT32), name
        assert report.metrics[f"{name}/mean"].count == values.size
    rows = {f["form"]: f for f in report.to_dict()["advantage_forms"]}
    assert all(rows[form]["available"] for form in ("(i)", "(ii)", "(iii)", "(iv)", "(v)"))
    assert "Advantages for distillation" in report.to_html()


def test_forms_that_cannot_be_computed_say_what_they_need(distilled):
    names = ("tokens", "rollout_log_probs", "teacher_log_probs")
    rows = {f["form"]: f for f in audit_logs({n: distilled[n] for n in names}).to_dict()["advantage_forms"]}
    assert {form for form, row in rows.items() if not row["available"]} == {"(iii)", "(iv)", "(v)"}
    assert "group" in rows["(iii)"]["needs"] and "full logits" in rows["(v)"]["needs"]


def test_masks_take_advantages_from_rewards_where_none_were_logged(distilled):
    made = audit_logs(distilled)
    recorded = distilled | {
        "advantages": advantages.group_normalize(distilled["rewards"], distilled["group"])
    }
    given_ = audit_logs(recorded)
    assert made.state.sources["advantages"].startswith("rewards")
    assert given_.state.sources["advantages"] == "advantages"
    rows = {m["name"]: m for m in given_.to_dict()["masks"]}
    assert rows["truncation_cap_2"]["what"].startswith("TIS and CISPO") and all(
        m["what"] for m in rows.values()
    )
    for name in ("dppo_binary_tv", "dppo_exact_tv", "negative_drop", "opsm_0.5", "opsm_0.0001"):
        assert made.state.masks[name] == given_.state.masks[name]
    assert any(
        m.tokens_kept < m.tokens for n, m in made.state.masks.items() if n.startswith(("dppo", "opsm"))
    )
    alone = {k: v for k, v in distilled.items() if k != "group"}
    assert "opsm_0.5" not in audit_logs(alone).state.masks and "trm_max" in audit_logs(alone).state.masks


def test_masks_name_the_removed_tokens_with_the_largest_ratios(tmp_path):
    mu = np.full((3, 4), -2.0)
    pi = mu + np.array([[0.0, 1.0, 0, 0], [0, 0, 2.0, 0], [-3.0, 0, 0, 0]])
    data = {"rollout_log_probs": mu, "log_probs": np.minimum(pi, 0.0), "tokens": np.arange(12).reshape(3, 4)}
    for i in range(3):
        np.savez(tmp_path / f"{i}.npz", **{k: v[i : i + 1] for k, v in data.items()})
    for report in (audit_logs(data), audit_logs(tmp_path)):
        masks = {m["name"]: m for m in report.to_dict()["masks"]}
        # IcePop keeps ratios from a half to five: e is inside, e² and e^−3 are not
        removed = masks["icepop"]["removed"]
        assert [(t["token"], t["position"]) for t in removed] == [(8, 0), (6, 2)]
        assert close([t["log_ratio"] for t in removed], [-3.0, 2.0])
        assert masks["icepop"]["tokens_kept"] == 10
        # a sequence mask removes whole answers; the largest of their ratios are shown
        assert [t["token"] for t in masks["trm_max"]["removed"][:3]] == [8, 6, 1]
        assert len(masks["trm_max"]["removed"]) == 5 and masks["trm_max"]["tokens_kept"] == 0


def test_batches_end_between_prompts(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BATCH_TOKENS", 8)
    monkeypatch.setattr(arrays, "MAX_BATCH_TOKENS", 8)
    group = [0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2]
    record = {"rollout_log_probs": [-1.0, -2.0], "log_probs": [-1.0, -2.0]}
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(record | {"group": g}) + "\n" for g in group))
    (unit,) = units(path)
    # at 8 tokens a batch waits for the end of its prompt, at 16 no longer
    assert [b.size for b in read(unit, None, print)] == [5, 8]
    columns = {k: np.array([v] * len(group)) for k, v in record.items()} | {"group": np.array(group)}
    assert [b.size for b in batches(in_memory(columns), "x")] == [3, 2, 4, 4]


def test_a_large_safetensors_file_is_cut_by_sequences(tmp_path, monkeypatch):
    from safetensors.numpy import save_file

    whole = {k: np.ascontiguousarray(v) for k, v in table(4, rows=11).items()}
    path = tmp_path / "a.safetensors"
    save_file(whole, path)
    one = audit_logs(path)
    monkeypatch.setattr(files, "UNIT_BYTES", path.stat().st_size // 4)
    parts = units(path)
    assert [(u.start, u.stop) for u in parts] == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10), (10, 11)]
    cut = audit_logs(path)
    assert cut.state.sequence_count == 11 and cut.state.token_count == one.state.token_count
    for name in ("kl_rollout_train/mean", "k3/mean", "reward/mean", "seq_w/mean"):
        assert close(cut.metrics[name].value, one.metrics[name].value, FLOAT64)
    places = {entry[1] for entry in cut.state.worst.entries}
    assert places == {entry[1] for entry in one.state.worst.entries}
