"""The studies behind the figures: what they claim about scaling, variance, contraction and coverage."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from opdtheory import bounds, confidence
from opdtheory.experiments import jsonable, run_experiment
from opdtheory.studies import __main__ as command
from opdtheory.studies import horizon, proximal, sampling
from opdtheory.studies.experiments import STUDIES
from tests.tolerance import EXPONENT, FLOAT64, LOOSE64, RARE, TIGHT, close

SHORT = (16, 32, 64, 128, 256, 512)
RECORDED = Path(__file__).parents[1] / "figures" / "data"


@pytest.mark.parametrize(("divergence", "level"), [("tv", 1e-2), ("kl", 1e-4), ("kl", 1e-8)])
def test_every_bound_holds_at_long_horizons(divergence: str, level: float) -> None:
    study = horizon.error_scaling(divergence, level, SHORT)
    assert len(study["rows"]) == len(SHORT) * len(horizon.FAMILIES)
    for row in study["rows"]:
        assert row[f"{divergence}_max"] == pytest.approx(level, rel=LOOSE64)
        for name, value in row["bounds"].items():
            assert row["error"] <= value * (1 + LOOSE64) + TIGHT, (row["family"], row["horizon"], name)


def test_the_one_slip_automaton_attains_the_tv_supremum() -> None:
    for row in horizon.error_scaling("tv", 0.05, SHORT)["rows"]:
        if row["family"].startswith("one slip"):
            assert close(row["error"], row["bounds"]["ours.s4"], FLOAT64)


def test_exponents_say_what_they_should() -> None:
    study = horizon.error_scaling("kl", 1e-8, SHORT)
    found = {(e["family"], e["series"]): e for e in study["exponents"]}
    family = "independent tokens, worst reward"
    for series, exponent in (("trm.2.5.4", 1.5), ("ours.s1", 1.0), ("trm.2.5.5", 1.5), ("ours.s6", 1.5)):
        fit = found[family, series]
        assert abs(fit["local"] - exponent) < EXPONENT and fit["lower"] <= fit["exponent"] <= fit["upper"]
    assert abs(found[family, "trm.2.5.1/kl"]["local"] - 2) < EXPONENT
    assert abs(found[family, "measured"]["local"] - 1) < EXPONENT
    nothing = horizon.fitted_exponent([1, 2, 4, 8, 16, 32], [0.0] * 6)
    assert nothing["exponent"] is None


def test_shifts_have_the_asked_divergence() -> None:
    assert horizon.token_shift(0.3, "tv") == 0.3
    for level in (1e-9, 1e-3, 0.5):
        q = 0.5 + horizon.token_shift(level, "kl")
        assert close(-0.5 * math.log(4 * q * (1 - q)) / level, 1.0, LOOSE64)
    with pytest.raises(ValueError, match="divergence"):
        horizon.token_shift(0.1, "hellinger")


def test_weight_variance_is_the_formula_and_modest_at_small_divergence() -> None:
    study = horizon.weight_variance()
    for row in study["rows"]:
        assert close(row["variance"], row["formula"], LOOSE64)
        # a sum of martingale differences never varies more than the product
        assert row["surrogate"] <= row["variance"] * (1 + TIGHT)
    at_1000 = {r["kl"]: r["effective"] for r in study["rows"] if r["horizon"] == 1000}
    assert at_1000[1e-4] > 0.8 and at_1000[1e-6] > 0.99 and at_1000[1e-3] < 0.2
    for row in study["summary"]:
        assert close(bounds.trajectory_weight_variance(row["unit_horizon"], row["chi2"]), 1.0, FLOAT64)


def test_thresholds_of_the_divergence_study() -> None:
    study = horizon.bounds_over_divergence(512, [1e-6, 1e-3])
    assert len(study["rows"]) == 2
    for row in study["rows"]:
        assert row["error"] <= min(row["bounds"].values()) * (1 + LOOSE64)
    edges = {t["id"]: t["informative_below"] for t in study["thresholds"]}
    assert close(edges["ours.s1/uniform"], 1 / 512, FLOAT64)
    assert close(edges["trm.2.5.4"], 3 / (4 * 512**1.5), FLOAT64)


def test_tolerated_divergences_over_the_horizon() -> None:
    rows = horizon.thresholds_over_horizon((16, 256))["rows"]
    found = {(r["id"], r["divergence"], r["horizon"]): r for r in rows}
    for n in (16, 256):
        assert close(found["ours.s1", "kl_max", n]["informative"], 1 / n, FLOAT64)
        edge = found["trm.2.5.1/tv", "tv_max", n]["informative"]
        assert close(2 * n * (n - 1) * edge**2, 1.0, FLOAT64)
        # a bound of at most ΣTV, where the surrogate may be ΣTV: 2T(T−1)ε² < Tε
        assert close(found["trm.2.5.1/tv", "tv_max", n]["certifies"], 1 / (2 * (n - 1)), FLOAT64)
        assert found["ours.s3", "tv_max", n]["certifies"] == 0


def test_variance_study_stays_below_the_sharp_bound_and_reaches_it() -> None:
    study = proximal.variance_over_alpha(alphas=(0.01, 0.1, 0.9), vocabularies=(2, 100, 151_936), seeds=1)
    for row in study["rows"]:
        limit = float(bounds.topd_second_moment(row["alpha"]))
        assert row["reward_moment"] <= limit * (1 + TIGHT)
        assert row["gradient_variance"] <= row["sharp"] <= row["printed"] * (1 + TIGHT)
        if row["family"] == "extremal":
            assert row["reward_moment"] >= limit * (1 - LOOSE64)
    worst = max(r["printed"] / r["sharp"] for r in study["rows"])
    assert worst > 1e5


def test_contraction_study_obeys_its_laws() -> None:
    study = proximal.contraction_curves(steps=8, horizon=4)
    for row in study["rows"]:
        assert close(row["sequence"], row["sequence_law"], FLOAT64)
        assert close(row["state"], row["state_law"], FLOAT64)
        assert row["token"] <= row["token_law"] + FLOAT64
        assert row["token_law"] <= row["token_rate_law"] + FLOAT64
        if row["start"] == "disjoint":
            assert close(row["token"], row["token_law"], FLOAT64)


def test_errors_are_forgotten() -> None:
    study = proximal.error_forgetting(steps=40)
    for row in study["rows"]:
        assert row["distance"] <= row["law"] + FLOAT64
    for part in study["summary"]:
        last = [r for r in study["rows"] if r["alpha"] == part["alpha"]][-1]
        if part["alpha"] >= 0.2:
            assert last["distance"] <= part["limit"] * (1 + EXPONENT)
    burst = max(r["error"] for r in study["rows"])
    assert burst > 10 * max(p["late_error"] for p in study["summary"])


def test_recorded_coverage_is_reproduced_and_nominal() -> None:
    """Every recorded cell has 2000 repetitions and covers; the smallest samples are drawn again, hit by hit."""
    recorded = json.loads((RECORDED / "certificate-coverage.json").read_text())
    config = recorded["config"]
    assert recorded["repetitions"] == config["repetitions"] >= 2000
    assert {r["side"] for r in recorded["rows"]} == {"lower", "upper", "two-sided"}
    assert {r["method"] for r in recorded["rows"]} == {*confidence.METHODS, sampling.ANY_TIME}
    assert len({(r["certificate"], r["grouped"]) for r in recorded["rows"]}) == 10
    for row in recorded["rows"]:
        hits = round(row["coverage"] * recorded["repetitions"])
        assert stats.binom.cdf(hits, recorded["repetitions"], recorded["level"]) > RARE, row
        assert row["slack"] >= -TIGHT and (row["certificate"] != "tv_seq" or row["slack"] <= TIGHT)
    smallest = min(config["samples"])
    fresh = sampling.certificate_coverage(config["distances"][:1], [smallest], config["repetitions"])
    name = ("distance", "certificate", "grouped", "samples", "method", "side")
    known = {tuple(r[k] for k in name): r for r in recorded["rows"]}
    compared = [r for r in fresh["rows"] if r["method"] != sampling.ANY_TIME]
    assert len(compared) == 5 * 2 * 3 * 3
    for row in compared:
        again = known[tuple(row[k] for k in name)]
        assert row["coverage"] == again["coverage"] and close(row["gap"], again["gap"], LOOSE64)


def test_coverage_of_a_false_certificate_is_seen() -> None:
    """A variable on the wrong side of the truth is not covered, and the study's row says so."""
    pair = sampling.model(0.3)
    v = sampling.certified_variables(pair)["return_truncated"]
    index = sampling._draw([0], pair.behavior.sequence_law[-1].ravel(), 2000, 300, 1)
    both = [v["values"][index].mean(axis=-1) + 0.1, v["mirror"][index].mean(axis=-1)]
    ends = sampling._ends([np.minimum(z, v["bounds"][1]) for z in both], v, "betting")
    assert sampling._row(ends["lower"], v["truth"])["p_value"] < RARE
    assert sampling._row(ends["upper"], v["truth"])["p_value"] > RARE


def test_methods_and_sides_compare_as_they_should() -> None:
    recorded = json.loads((RECORDED / "certificate-coverage.json").read_text())["rows"]
    plain = {
        (r["distance"], r["certificate"], r["samples"], r["method"], r["side"]): r["gap"]
        for r in recorded
        if not r["grouped"]
    }
    for (distance, certificate, n, method, side), gap in plain.items():
        if side == "lower" and method != sampling.ANY_TIME:
            assert gap <= plain[distance, certificate, n, method, "two-sided"] * (1 + LOOSE64)
            if n >= 300:
                assert plain[distance, certificate, n, "betting", side] <= gap * (1 + LOOSE64)
        if method == sampling.ANY_TIME and side != "two-sided":
            # holding at all sizes at once costs something against the planned size
            assert gap > plain[distance, certificate, n, "betting", side]
    widths = {
        (r["certificate"], r["method"], r["samples"]): r["width"]
        for r in json.loads((RECORDED / "certificate-width.json").read_text())["rows"]
    }
    for (certificate, method, n), width in widths.items():
        assert (certificate, method, 10 * n) not in widths or widths[certificate, method, 10 * n] < width


def test_studies_run_as_experiments_and_as_a_command(tmp_path: Path) -> None:
    record = run_experiment("weight-variance", {"levels": [1e-4], "horizons": [16]}, tmp_path / "run")
    assert {r["horizon"] for r in record["rows"]} == {16, 1000}
    assert command.main(str(tmp_path), "weight-variance", "contraction") == 0
    written = json.loads((tmp_path / "weight-variance.json").read_text())
    assert written["study"] == "weight-variance" and len(written["rows"]) == 4 * 12
    assert command.main(str(tmp_path), "nothing") == 2


def test_recorded_data_is_reproduced() -> None:
    """The committed figure data comes from this code: the quick studies again, number by number."""
    for name in (
        "weight-variance",
        "bounds-over-divergence",
        "thresholds-over-horizon",
        "contraction",
        "error-forgetting",
    ):
        _, function, settings = STUDIES[name]
        fresh = jsonable(function(**settings))
        recorded = json.loads((RECORDED / f"{name}.json").read_text())
        _same(fresh, {k: recorded[k] for k in fresh}, name)
    assert {p.stem for p in RECORDED.glob("*.json")} >= set(STUDIES)


def test_recorded_scaling_and_variance_are_reproduced() -> None:
    """The slower studies in part: the short horizons of every level, the small vocabularies at every α."""
    recorded = json.loads((RECORDED / "error-scaling.json").read_text())
    assert {(s["divergence"], s["level"]) for s in recorded["studies"]} == {
        (d, level) for d, levels in horizon.LEVELS.items() for level in levels
    }
    for known in recorded["studies"]:
        assert {r["horizon"] for r in known["rows"]} == set(horizon.HORIZONS)
        fresh = jsonable(horizon.error_scaling(known["divergence"], known["level"], (16, 256)))
        for part in ("rows", "supremum"):
            again = [r for r in known[part] if r["horizon"] in (16, 256)]
            _same(fresh[part], again, f"{known['divergence']} {known['level']} {part}")
        # the exponents are those of the recorded rows
        for fit in known["exponents"]:
            if fit["series"] == "measured":
                rows = [r for r in known["rows"] if r["family"] == fit["family"]]
                line = horizon.fitted_exponent([r["horizon"] for r in rows], [r["error"] for r in rows])
                _same(line, {k: fit[k] for k in line}, fit["family"])
    recorded = json.loads((RECORDED / "topd-variance.json").read_text())
    assert {r["vocab"] for r in recorded["rows"]} == set(proximal.VOCABULARIES)
    fresh = jsonable(proximal.variance_over_alpha(vocabularies=(2, 100), seeds=recorded["config"]["seeds"]))
    _same(fresh["rows"], [r for r in recorded["rows"] if r["vocab"] in (2, 100)], "topd-variance")
    _same(fresh["curve"], recorded["curve"], "curve")


def _same(a, b, where: str) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            _same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            _same(x, y, f"{where}[{i}]")
    elif isinstance(a, float) and isinstance(b, (int, float)):
        assert np.isclose(a, b, rtol=LOOSE64, atol=TIGHT), where
    else:
        assert a == b, where
