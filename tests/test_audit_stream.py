"""States merge associatively; processes, Ray, interruption and resuming change nothing."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from opdtheory.audit import Settings, audit_logs, states, stream
from opdtheory.audit.persist import Store, decode, encode
from opdtheory.audit.readers import units
from opdtheory.audit.state import State
from opdtheory.audit.states import Groups, Series, Sum, Top, Vocabulary, bin_start, position_bin
from tests.tolerance import EXACT, TIGHT, close

FLOATS = st.floats(-1e6, 1e6)
ARRAYS = hnp.arrays(np.float64, st.integers(0, 40), elements=FLOATS)


def series(values):
    out = Series()
    out.add(values)
    return out


def merged(*parts):
    out = type(parts[0])() if not isinstance(parts[0], Top) else Top(parts[0].limit)
    for part in parts:
        out.merge(part)
    return out


@settings(max_examples=50, deadline=None)
@given(ARRAYS, ARRAYS, ARRAYS)
def test_series_merge_associatively_and_equal_the_whole(a, b, c):
    left = merged(merged(series(a), series(b)), series(c))
    right = merged(series(a), merged(series(b), series(c)))
    whole = series(np.concatenate([a, b, c]))
    for other in (right, whole):
        assert (left.count, left.least, left.largest) == (other.count, other.least, other.largest)
        np.testing.assert_array_equal(left.places, other.places)
        np.testing.assert_array_equal(left.counts, other.counts)
        assert close(left.total.value, other.total.value, TIGHT)
        assert close(left.squares.value, other.squares.value, TIGHT)


def test_sums_lose_nothing_to_order():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=5000) * 10.0 ** rng.integers(-8, 8, 5000), [1e16, 1.0, -1e16]])
    forward, backward = Sum(), Sum()
    for part in np.array_split(values, 97):
        forward.add(part)
    for part in np.array_split(values[::-1], 13):
        backward.add(part)
    import math

    assert close(forward.value, math.fsum(values), TIGHT)
    assert close(forward.value, backward.value, TIGHT)


def test_infinities_show_in_sums_and_cancel_to_nan():
    s = Sum()
    s.add(np.array([1.0, np.inf]))
    assert s.value == np.inf
    s.add(np.array([-np.inf]))
    assert np.isnan(s.value)


def test_quantiles_are_within_two_percent_and_extremes_exact():
    values = np.random.default_rng(1).lognormal(0, 3, 20_000)
    s = series(values)
    for q in (0.01, 0.5, 0.9, 0.999):
        # the answer is the centre of the bin that holds the order statistic
        assert abs(np.log(s.quantile(q) / np.quantile(values, q, method="lower"))) <= states._GAMMA
    assert (s.quantile(0.0), s.quantile(1.0)) == (values.min(), values.max())


def test_nan_is_refused_by_a_series():
    with pytest.raises(ValueError, match="NaN"):
        series(np.array([1.0, np.nan]))


def test_groups_join_prompts_split_over_files():
    a, b = Groups(), Groups()
    a.add(np.array([3, 1], np.uint64), {"x": np.array([1.0, 2.0])})
    b.add(np.array([1, 7], np.uint64), {"y": np.array([5.0, 6.0]), "x": np.array([10.0, 20.0])})
    a.merge(b)
    np.testing.assert_array_equal(a.column("x"), [12.0, 1.0, 20.0])
    np.testing.assert_array_equal(a.column("y"), [5.0, 0.0, 6.0])


def test_top_entries_do_not_depend_on_the_order_of_merging():
    entries = [(float(v % 5), f"n{v}", {}) for v in range(20)]
    one, two = Top(6), Top(6)
    one.add(entries)
    for entry in reversed(entries):
        two.merge(Top(6, [entry]))
    assert one.entries == two.entries


def test_vocabulary_sums():
    v = Vocabulary()
    v.add(np.array([5, 2, 5]), np.array([1.0, 2.0, 3.0]))
    v.merge(Vocabulary(np.array([2, 9]), np.array([1, 1]), np.array([4.0, 8.0])))
    assert (
        v.ids.tolist() == [2, 5, 9] and v.counts.tolist() == [2, 2, 1] and v.sums.tolist() == [6.0, 4.0, 8.0]
    )


def test_position_bins_are_ordered_and_contain_their_start():
    positions = np.arange(20_000)
    bins = position_bin(positions)
    assert set(np.diff(bins).tolist()) == {0, 1}
    assert all(bin_start(int(b)) <= p for p, b in zip(positions, bins, strict=True))
    assert (position_bin(np.array([bin_start(int(b)) for b in bins])) == bins).all()


@pytest.fixture
def logs(tmp_path):
    """Six files of one run with prompts that span files, and a fault in one of them."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "run"
    folder.mkdir()
    for step in range(6):
        lines = []
        for _ in range(15):
            n = int(rng.integers(1, 60))
            mu = -rng.exponential(size=n)
            lines.append(
                json.dumps(
                    {
                        "tokens": rng.integers(0, 50, n).tolist(),
                        "rollout_log_probs": mu.tolist(),
                        "rewards": float(rng.integers(0, 2)),
                        "log_probs": np.minimum(mu + 0.1 * rng.normal(size=n), 0).tolist(),
                        "group": int(rng.integers(0, 9)),
                        "advantages": rng.normal(size=n).tolist(),
                    }
                )
            )
        if step == 3:
            lines[4] = "{broken"
        (folder / f"train_data_step{step}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def audit(folder, **options):
    return audit_logs(folder, strict=False, reward_range=(0, 1), **options)


def same(a, b):
    """Identical counts; sums equal to 1e-12."""
    x, y = a.to_dict(), b.to_dict()
    assert x["sequences"] == y["sequences"] == 89 and x["tokens"] == y["tokens"]
    assert x["masks"] == y["masks"] and x["errors"] == y["errors"] and len(x["errors"]) == 1
    assert set(x["metrics"]) == set(y["metrics"]) and len(x["metrics"]) > 50
    for name, metric in x["metrics"].items():
        assert close(float(metric["value"]), float(y["metrics"][name]["value"]), TIGHT), name
    assert x["warnings"] == y["warnings"] and x["carriers"] == y["carriers"] and x["heat"] == y["heat"]


def test_processes_give_the_same_result(logs):
    same(audit(logs), audit(logs, jobs=2))


@pytest.mark.ray
def test_ray_gives_the_same_result(logs):
    ray = pytest.importorskip("ray")
    try:
        same(audit(logs), audit(logs, jobs=2, engine="ray"))
    finally:
        ray.shutdown()


def test_an_interrupted_audit_goes_on_where_it_stopped(logs, tmp_path, monkeypatch):
    store = tmp_path / "parts"
    process, calls = stream.process, []

    def stopping(unit, settings, keep):
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append(unit)
        return process(unit, settings, keep)

    monkeypatch.setattr(stream, "process", stopping)
    with pytest.raises(KeyboardInterrupt):
        audit(logs, store=store)
    assert len(list(store.glob("*.json"))) == 4
    updates = []
    monkeypatch.setattr(stream, "process", process)
    update = State.update
    monkeypatch.setattr(
        State, "update", lambda self, batch, options: updates.append(1) or update(self, batch, options)
    )
    resumed = audit(logs, store=store)
    assert len(updates) == 2  # only the two files that were not finished are read again
    monkeypatch.setattr(State, "update", update)
    same(resumed, audit(logs))


def test_finished_parts_of_other_settings_or_changed_files_are_not_used(logs, tmp_path):
    store = tmp_path / "parts"
    audit(logs, store=store)
    unit = units(logs / "train_data_step0.jsonl")[0]
    settings_used = Settings(reward_range=(0.0, 1.0))
    assert Store(store, settings_used).load(unit) is not None
    assert Store(store, Settings(reward_range=(0.0, 2.0))).load(unit) is None
    path = logs / "train_data_step0.jsonl"
    path.write_text(path.read_text() + "\n")
    assert Store(store, settings_used).load(units(path)[0]) is None


def test_damaged_parts_are_discarded(logs, tmp_path):
    store = tmp_path / "parts"
    whole = audit(logs, store=store)
    for part in list(store.glob("*.json"))[:3]:
        part.write_text(part.read_text()[:100])
    same(audit(logs, store=store), whole)


def test_states_survive_the_disk_exactly(logs):
    state = audit(logs).state
    again = decode(State, json.loads(json.dumps(encode(state))))
    for name, value in state.tokens.items():
        assert close(again.tokens[name].total.value, value.total.value, EXACT)
        np.testing.assert_array_equal(again.tokens[name].counts, value.counts)
    np.testing.assert_array_equal(again.groups.keys, state.groups.keys)
    np.testing.assert_array_equal(again.groups.values, state.groups.values)
    assert again.worst == state.worst and again.checks.findings == state.checks.findings


def test_memory_does_not_grow_with_the_number_of_sequences(tmp_path):
    """What is kept per sequence is one row of sums, less than 2000 bytes, however long the sequence is."""
    import tracemalloc

    def peak(rows):
        rng = np.random.default_rng(0)
        mu = -rng.exponential(size=(rows, 200)).astype(np.float32)
        path = tmp_path / f"{rows}.npz"
        np.savez(path, rollout_log_probs=mu, log_probs=mu - np.float32(0.01))
        del mu
        tracemalloc.start()
        audit_logs(path)
        out = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return out

    few, many = peak(2000), peak(8000)
    assert many < few + 6000 * 2000


@pytest.mark.parametrize(
    ("options", "word"), [({"engine": "dask"}, "engine"), ({"jobs": 0}, "jobs"), ({"jobs": -3}, "jobs")]
)
def test_bad_engines_are_refused(logs, options, word):
    with pytest.raises(ValueError, match=word):
        audit(logs, **options)
