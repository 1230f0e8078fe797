"""The dashboard metrics equal verl's own, recorded in data/verl_rollout_corr.json by
data/make_verl_reference.py.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from opdtheory.audit import audit_logs, rollout_corr, sampled
from opdtheory.audit.readers import batches, in_memory
from tests.tolerance import LOOSE64, close

REFERENCE = json.loads((Path(__file__).parent / "data" / "verl_rollout_corr.json").read_text())
ARRAYS = {k: np.array(REFERENCE[k]) for k in ("rollout_log_probs", "old_log_probs", "response_mask")}


@pytest.mark.parametrize(("mode", "compat"), [("token", ()), ("sequence", ("verl-sequence-is",))])
def test_metrics_equal_verls(mode, compat):
    # verl adds 1e-8 to every denominator; that is far below the tolerance used here
    metrics = audit_logs(ARRAYS, compat=compat).metrics
    names = [n for n in REFERENCE[mode] if n in metrics]
    assert set(names) == set(REFERENCE[mode])
    for name, expected in REFERENCE[mode].items():
        assert close(metrics[name].value, expected, LOOSE64), name


@pytest.mark.parametrize("option", sorted(REFERENCE["rejection"]))
def test_rejection_masks_equal_verls(option):
    (batch,) = batches(in_memory(ARRAYS), "arrays")
    drawn = sampled.pair(batch, "rollout_log_probs", "old_log_probs")
    entry = REFERENCE["rejection"][option]
    ends = [float(x) for x in entry["threshold"].split("_")]
    kept = rollout_corr.rejection(batch, drawn, option, ends[0] if len(ends) == 2 else 0.0, ends[-1])
    expected = np.array(entry["kept"])[ARRAYS["response_mask"].astype(bool)]
    np.testing.assert_array_equal(kept.astype(int), expected)
    assert 0 < kept.sum() < len(kept)


def test_unknown_rejection_option_is_refused():
    (batch,) = batches(in_memory(ARRAYS), "arrays")
    drawn = sampled.pair(batch, "rollout_log_probs", "old_log_probs")
    with pytest.raises(ValueError, match="token_k9"):
        rollout_corr.rejection(batch, drawn, "token_k9", 0.0, 1.0)


def test_nemo_rl_policy_kl_error_is_chi2_minus_kl_in_expectation():
    """Documented as KL(train‖generation); the mean over generated tokens is χ²(rollout‖train) −
    KL(rollout‖train).
    """
    rng = np.random.default_rng(3)
    mu, pi = rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(4))
    counts = np.rint(mu * 2000).astype(int)
    mu = counts / counts.sum()
    tokens = np.repeat(np.arange(4), counts)[None]
    arrays = {"tokens": tokens, "rollout_log_probs": np.log(mu)[tokens], "log_probs": np.log(pi)[tokens]}
    metrics = audit_logs(arrays, compat="nemo-rl").metrics
    from opdtheory import divergences

    expected = divergences.chi2(mu, pi) - divergences.kl(mu, pi)
    assert close(metrics["compat/nemo-rl/policy_kl_error"].value, expected)
    assert close(metrics["compat/nemo-rl/gen_kl_error"].value, divergences.kl(mu, pi))
    assert not close(metrics["compat/nemo-rl/policy_kl_error"].value, divergences.kl(pi, mu))
    assert not close(metrics["compat/nemo-rl/js_divergence_error"].value, divergences.jsd(mu, pi))
    assert close(metrics["kl_rollout_train/mean"].value, divergences.kl(mu, pi))
    assert close(metrics["chi2_train_rollout/mean"].value, divergences.chi2(pi, mu))
    assert close(metrics["tv/mean"].value, divergences.tv(pi, mu))
