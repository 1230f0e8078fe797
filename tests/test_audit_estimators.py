"""The estimator audit: expectations are exact, and agree with sampling and with the known identities."""

import numpy as np
import pytest

from opdtheory import divergences as d
from opdtheory.audit import estimators
from opdtheory.audit.estimators import estimator_audit
from tests.tolerance import FLOAT64, SIGMAS, close

ROWS = {r["name"]: r for r in estimator_audit()}
P, Q = estimators.models()["ordinary"]
UNBIASED = {
    "k1 (rollout_corr/kl)",
    "k3 (rollout_corr/k3_kl, gen_kl_error)",
    "chi2_token",
    "½E|r − 1|",
    "chi2_seq (product of ratios)",
}


def test_which_estimators_are_unbiased():
    assert {n for n, r in ROWS.items() if r["unbiased"]} == UNBIASED


@pytest.mark.parametrize("seed", range(5))
def test_unbiased_ones_are_so_on_every_model(seed):
    assert {r["name"] for r in estimator_audit(seed) if r["unbiased"]} >= UNBIASED


def test_policy_kl_error_is_chi2_minus_kl():
    assert close(ROWS["policy_kl_error"]["expectation"], d.chi2(P, Q) - d.kl(P, Q), FLOAT64)


def test_clamping_lowers_k3():
    assert ROWS["k3 clamped at 10 (low_var_kl)"]["bias"] < 0


def test_truncated_weights_have_a_mean_below_one():
    row = ROWS["rollout_is_mean at cap 2"]
    assert row["bias"] < 0 and row["expectation"] < 1


def test_the_tail_bucket_makes_a_lower_bound_of_top_k():
    for seed in range(50):
        rows = {r["name"]: r for r in estimator_audit(seed)}
        assert rows["top-k forward KL with a tail bucket"]["bias"] <= 0
    signs = {
        np.sign(r["bias"])
        for s in range(50)
        for r in estimator_audit(s)
        if r["name"].endswith("without a tail bucket")
    }
    assert signs == {1.0, -1.0}


def test_losses_without_gradient():
    assert close(ROWS["gradient of k1 used as a loss"]["expectation"], 0.0)
    assert close(ROWS["gradient of a top-k penalty that ignores the action"]["expectation"], 0.0)
    assert ROWS["gradient of k1 used as a loss"]["target"] > 0.1


def test_generalised_jsd_jumps_to_kl_at_both_ends():
    for beta, kl in ((0, d.kl(Q, P)), (1, d.kl(P, Q))):
        row = ROWS[f"generalised JSD at β = {beta}"]
        assert close(row["expectation"], kl, FLOAT64) and close(row["target"], 0.0)
        # approaching the end the divergence does tend to 0
        near = [d.jsd(P, Q, abs(beta - eps)) for eps in (1e-2, 1e-4, 1e-6)]
        assert near[0] > 50 * near[1] > 2500 * near[2] > 0


def test_masks_that_judge_something_else_keep_something_else():
    p, q = estimators.models()["one enormous ratio"]
    r = q / p  # one token in a hundred at 25, the others at 25/33
    bounds = ROWS["tokens kept by *_k1 bounds 0.8 to 2"]
    assert close(bounds["target"], 0.0) and close(bounds["expectation"], 0.99)
    opsm = ROWS["tokens of A < 0 kept by OPSM, δ = 0.1"]
    assert close(opsm["expectation"], p[r > 1].sum()) and opsm["target"] > opsm["expectation"]


def test_expectations_agree_with_sampling():
    rng = np.random.default_rng(0)
    tokens = rng.choice(4, size=200_000, p=P)
    r = (Q / P)[tokens]
    for name, values in (("policy_kl_error", 1 / r - 1 + np.log(r)), ("k2", d.k2(r))):
        assert abs(values.mean() - ROWS[name]["expectation"]) < SIGMAS * values.std() / np.sqrt(len(values))
