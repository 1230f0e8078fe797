"""The phenomena that simulations show, each with a number, and the committed data of their figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opdtheory import bounds
from opdtheory.experiments import jsonable
from opdtheory.gradients import Estimator
from opdtheory.report.recorded import draw_record
from opdtheory.simulate import (
    Algorithm,
    Distill,
    Natural,
    TabularStudent,
    World,
    distillation,
    masking,
    steps,
)
from opdtheory.simulate import collapse as collapse_study
from opdtheory.simulate.experiments import STUDIES
from opdtheory.simulate.minorizer import candidates, minorizer_run, minorizer_values
from opdtheory.tabular import Policy, TeacherStudent, TokenTree
from tests.tolerance import FLOAT64, LOOSE64, TIGHT, close

DATA = Path(__file__).parent.parent / "figures" / "data"


def recorded(name: str) -> dict[str, Any]:
    return json.loads((DATA / f"{name.replace('-', '_')}.json").read_text())


def test_a_natural_step_on_the_proximal_reward_is_the_proximal_teacher() -> None:
    tree = TokenTree(3, 3, eos=0)
    policy, teacher = (Policy.random(tree, seed=i) for i in range(2))
    student = TabularStudent(tree)
    algorithm = Algorithm(Distill(Estimator(lam=0, alpha=0.3)), optimiser=Natural(1.0))
    expected = policy
    for snapshot in list(steps(World(tree, teacher), student, student.start(policy), algorithm, 5))[1:]:
        expected = Policy.mixture(teacher, expected, 0.3)
        assert close(snapshot.after.flat[..., 0], expected.flat, FLOAT64)


def test_contraction_slows_down_with_the_horizon_but_only_logarithmically() -> None:
    alpha, count = 0.1, 60
    result = distillation.contraction(alpha=alpha, count=count)
    one, four, eight = (np.array(result["series"][f"tokens, T={t}"]) for t in (1, 4, 8))
    law = (1 - alpha) ** np.arange(count + 1)
    assert close(one, law, FLOAT64)
    # no point below the law of whole responses, none above the law of disjoint policies
    for horizon, curve in ((4, four), (8, eight)):
        above = [float(bounds.contraction_token_steps(alpha, horizon, k, 1.0)) for k in range(count + 1)]
        assert np.all(curve <= np.array(above) + FLOAT64)
    assert eight[10] > four[10] > one[10]
    # disjoint policies: halving takes about log(T)/alpha steps more, and 1 − α^T would say e^(2.3 T)
    half = result["half"]["tokens, disjoint policies"]
    assert half[0] == 7 and half[-1] == 96
    increments = np.diff(half[3:])
    expected = np.log(2) / -np.log1p(-alpha)
    assert np.all(np.abs(increments - expected) <= 1)
    assert result["half"]["repeating the one-step rate 1 − α^T"][3] > 1e7


def test_the_frozen_minorizer_has_a_two_cycle_and_the_corrected_one_descends() -> None:
    tree = TokenTree(2, 1)
    q, p = (Policy.from_probs(tree, [[[x, 1 - x]]]) for x in (0.5, 0.3))
    frozen = minorizer_run(p, q, "frozen", 20, reach=256.0)
    first = np.array(frozen["first_probability"])
    # every maximisation moves by exactly a quarter, so that it comes back after two
    assert close(np.abs(np.diff(first)), 0.25, LOOSE64)
    assert close(first[:-2], first[2:], LOOSE64)
    assert min(frozen["claimed_gain"]) > 0
    assert max(np.diff(frozen["kl"])) > 0.03
    tried = candidates(Policy.from_probs(tree, [[[0.55, 0.45]]]), q, np.linspace(0, 8, 101))
    gain = float(frozen["kl"][1]) + TeacherStudent(tree, q, tried).eta
    broken = minorizer_values(Policy.from_probs(tree, [[[0.55, 0.45]]]), q, tried, "frozen")
    assert np.any((broken > 0) & (gain < 0))
    for horizon in (0, 1):
        corrected = minorizer_run(p, q, "corrected", 20, penalty_horizon=horizon)
        assert np.all(np.diff(corrected["kl"]) <= TIGHT) and corrected["kl"][-1] <= TIGHT
        # each gain of the bound is a gain of the objective
        assert np.all(-np.diff(corrected["kl"]) >= np.array(corrected["claimed_gain"]) - LOOSE64)


def test_longer_responses_cycle_too_and_the_corrected_bound_holds_for_every_candidate() -> None:
    tree = TokenTree(2, 3)
    q, p = (Policy.random(tree, seed=i) for i in (1, 0))
    frozen = minorizer_run(p, q, "frozen", 60)
    assert min(frozen["claimed_gain"]) > 0 and max(np.diff(frozen["kl"][30:])) > 1e-3
    corrected = minorizer_run(p, q, "corrected", 40)
    assert np.all(np.diff(corrected["kl"]) <= TIGHT) and corrected["kl"][-1] <= LOOSE64
    tried = candidates(p, q, np.linspace(0, 4, 101))
    values = minorizer_values(p, q, tried, "corrected")
    gains = TeacherStudent(tree, q, tried).eta - TeacherStudent(tree, q, p).eta
    assert close(values[0], 0.0, TIGHT) and np.all(values <= gains + TIGHT)
    with pytest.raises(ValueError, match="form: got 'printed'"):
        minorizer_values(p, q, tried, "printed")


def test_opd_variance_grows_without_limit_and_the_proximal_one_does_not() -> None:
    result = distillation.variance_blow_up(exponents=(2, 8, 32), seeds=64, rates=(1.0, 8.0))
    opd, topd = result["variance"]["OPD"], result["variance"]["TOP-D α=0.1"]
    # (log 1e-32 / log 1e-8)² = 16, up to lower-order terms
    assert 10 < opd[2] / opd[1] < 20
    assert topd[2] / topd[1] - 1 < LOOSE64 and max(topd) < result["bound"]["0.1"]
    assert max(result["variance"]["TOP-D α=0.5"]) < result["bound"]["0.5"]
    # relative to the squared mean the gain is small: the signal shrinks as well
    noise = result["noise_to_signal"]
    assert 1 < noise["OPD"][2] / noise["TOP-D α=0.1"][2] < 1.5
    final = result["final"]
    assert final["OPD, worst 5% of seeds"][1] > 0.9 > 0.2 > final["TOP-D α=0.1, worst 5% of seeds"][1]
    assert final["OPD, exact expected updates"][1] < 1e-2
    # and at a rate that suits it, plain OPD is ahead
    assert final["OPD, worst 5% of seeds"][0] < 0.05 < final["TOP-D α=0.1, worst 5% of seeds"][0]


def test_immediate_and_to_go_end_in_different_places_when_parameters_are_shared() -> None:
    result = distillation.end_points(instances=2, count=600)
    for row in result["instances"]:
        immediate, to_go = row["immediate"], row["ii"]
        assert immediate["immediate_field"] < LOOSE64 and to_go["gradient"] < 1e-5
        assert immediate["gradient"] > 0.03 and to_go["immediate_field"] > 0.03
        assert immediate["kl"] > to_go["kl"]
    assert result["instances"][1]["immediate"]["kl"] > 1.5 * result["instances"][1]["ii"]["kl"]


def test_gate_and_mask_climb_in_kl_and_forward_kl_restores_the_descent() -> None:
    result = distillation.tropd_direction(count=400)
    assert result["cosine"] < -0.7
    assert min(*result["student"], *result["teacher"]) > 0.01
    rise = result["rise"]
    assert rise["gate alone"] > 0.5 and rise["mask at −1"] > 0.7
    for name in ("OPD", "clip at −1", "gate and forward KL, all tokens", "gate and forward KL, top 1"):
        assert rise[name] <= TIGHT and np.all(np.diff(result["kl"][name]) <= TIGHT)
    assert result["kl"]["gate alone"][-1] < 1e-3


def test_ratio_clips_over_and_under_constrain() -> None:
    eps, delta = 0.2, 0.15
    result = masking.constraint_by_probability(vocab=64, rare_rank=60, count=80, epochs=32)
    p = np.array(result["probability"])
    room, moved = result["room"], result["moved"]
    assert close(room["PPO, rewarded"], np.minimum(eps * p, 1 - p), LOOSE64)
    assert close(room["PPO, penalised"], eps * p, LOOSE64)
    assert close(room["DPPO binary TV, rewarded"], np.minimum(delta, 1 - p), LOOSE64)
    assert close(room["DPPO binary TV, penalised"], np.minimum(delta, p), LOOSE64)
    # training itself uses that room, and overshoots it by at most one small update
    for name, allowed in room.items():
        drift = np.array(moved[name]) - np.minimum(allowed, moved[name])
        assert np.all(drift <= 0.02 * np.array(allowed) + 0.02 * p), name
    assert moved["PPO, rewarded"][0] < 3e-5 < 0.15 <= moved["DPPO binary TV, rewarded"][0]
    assert moved["PPO, penalised"][-1] > 0.18 > 0.153 > moved["DPPO binary TV, penalised"][-1]
    half = result["steps_to_half"]
    assert half["PPO"] > 2 * half["DPPO binary TV"] and half["no mask"] <= half["DPPO binary TV"]
    mismatch = result["mismatch"]
    # relative errors of probabilities are alike on rare and common tokens, absolute ones are not
    assert mismatch["largest |log ratio|"][0] >= mismatch["largest |log ratio|"][-1] / 2
    assert mismatch["largest |π − μ|"][-1] > 10 * mismatch["largest |π − μ|"][0]


def test_a_token_mask_does_not_keep_contexts_inside() -> None:
    runs = masking.masks_against_truth(count=3)["runs"]
    dppo = runs["DPPO binary TV"]
    assert max(dppo["masked"]) < 0.08 and min(dppo["violation"][:2]) > 0.3
    assert max(dppo["tv_rollout_max"]) > 0.2
    for run in runs.values():
        for bound in ("bound_kl", "bound_tv", "bound_sharp", "bound_mixed"):
            assert np.all(np.array(run["error"]) <= np.array(run[bound]) + FLOAT64)
    # the published bound says nothing about the first steps, the KL of responses does
    assert dppo["bound_mixed"][0] > 1 > dppo["bound_kl"][0]


def test_maximum_masks_reject_long_responses_and_slow_their_learning() -> None:
    flip = 0.2
    result = masking.rejected_lengths(horizon=7, flip=flip, count=20, seeds=4, draws=200)
    accepted = np.array(result["acceptance"]["max KL ≤ 0.02"])
    assert np.all(np.diff(accepted) < 0)
    slope = np.log(accepted[-1] / accepted[2]) / 4
    assert abs(slope - np.log(1 - flip)) < 0.05
    length = {name: curve[-1] for name, curve in result["length"].items()}
    assert length["no mask"] - length["max KL ≤ 0.02"] > 0.3
    assert abs(length["DPPO binary TV"] - length["no mask"]) < 0.2


def test_without_a_mask_or_a_cap_runs_end_early_under_mismatch() -> None:
    base = {
        "epochs": 8,
        "seeds": 24,
        "steps": 50,
        "seed": 0,
        "prompts": 8,
        "vocab": 4,
        "horizon": 3,
        "features": 24,
        "mismatch": "flips",
        "rate": 0.2,
    }
    rows = {
        name: collapse_study.collapse_cell({**base, "method": name})
        for name in ("PG-IS", "CISPO", "DPPO binary KL")
    }
    assert rows["PG-IS"]["final_mean"] < rows["DPPO binary KL"]["final_mean"] - 0.05
    assert rows["PG-IS"]["final_mean"] < rows["CISPO"]["final_mean"] - 0.1
    assert rows["PG-IS"]["entropy"] < rows["DPPO binary KL"]["entropy"]
    assert rows["PG-IS"]["kept"] == 1 > rows["DPPO binary KL"]["kept"]
    assert all(row["mismatch_tv"] > 0.01 for row in rows.values())


@pytest.mark.parametrize("name", [*STUDIES, "sim-collapse"])
def test_recorded_figures_have_captions_labels_and_can_be_drawn(name: str, tmp_path: Path) -> None:
    record = recorded(name)
    figures = record["report"]["figures"]
    assert record["experiment"] == name and figures
    for figure in figures:
        words = ("exact" in figure["caption"].lower(), figure["x_label"], figure["y_label"])
        assert all(words), figure["title"]
        assert set(figure.get("estimated", ())) <= set(figure["series"])
    assert len(draw_record(record, tmp_path)) == len(figures)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("sim-contraction", distillation.contraction),
        ("sim-minorizer", distillation.minorizer_cycle),
        ("sim-masks-against-truth", masking.masks_against_truth),
        ("sim-tropd-direction", distillation.tropd_direction),
    ],
)
def test_recorded_data_are_what_the_code_computes(name: str, function) -> None:
    record = recorded(name)
    again = jsonable(function(**record["config"]))
    for old, new in zip(record["report"]["figures"], again["report"]["figures"], strict=True):
        assert old["caption"] == new["caption"]
        for label, values in new["series"].items():
            assert close(old["series"][label], values, LOOSE64), label


def test_the_recorded_collapse_study_says_what_its_report_says() -> None:
    rows = {(r["mismatch"], r["method"], r["rate"]): r for r in recorded("sim-collapse")["rows"]}
    # without a mask or a cap a rate that others stand ends badly
    for mismatch in ("none", "flips", "stale"):
        bad = rows[mismatch, "PG-IS", 0.2]
        assert bad["final_worst"] < rows[mismatch, "CISPO", 0.2]["final_worst"]
        assert bad["collapsed"] > rows[mismatch, "DPPO binary KL", 0.2]["collapsed"]
        assert max(rows[mismatch, "CISPO", rate]["collapsed"] for rate in (0.05, 0.2, 0.8)) == 0
        # masking whole responses is safe and slow
        masked = [rows[mismatch, "TRM, max KL 0.05", rate] for rate in (0.05, 0.2, 0.8)]
        assert max(row["collapsed"] for row in masked) < 0.05
        assert masked[0]["final_mean"] < rows[mismatch, "CISPO", 0.05]["final_mean"]
        # the smallest mask does not do
        assert rows[mismatch, "negative drop 0.5", 0.8]["collapsed"] > 0.1
    assert rows["none", "MiniRL", 0.2]["final_mean"] == rows["none", "GRPO clip-higher", 0.2]["final_mean"]
