"""The fused statistics against the reference definitions in float64, down to tiny divergences, and at every
edge.
"""

import numpy as np
import pytest

from opdtheory import divergences as d
from opdtheory import rewards
from opdtheory.audit import kernels
from opdtheory.audit.kernels import numpy_rows
from tests.tolerance import FLOAT32, FLOAT64, KL32, LOOSE64, close

BACKENDS = kernels.available()
SMALL = ("kl_pq", "kl_qp", "chi2_qp", "jsd", "tv", "hellinger2")
TOPK, ALPHA = 5, 0.1


def reference(p_logits, q_logits, tokens, topk=TOPK, alpha=ALPHA):
    """All statistics from the definitions, in float64 probabilities."""

    def law(x):
        x = np.asarray(x, dtype=np.float64)
        w = np.exp(x - x.max(-1, keepdims=True))
        return w / w.sum(-1, keepdims=True)

    p, q = law(p_logits), law(q_logits)
    rows = np.arange(len(tokens))
    with np.errstate(divide="ignore"):
        ell = np.where((p > 0) | (q > 0), np.log(q) - np.log(np.where(p > 0, p, np.nan)), 0.0)
    ell = np.where((p == 0) & (q > 0), np.inf, np.nan_to_num(ell, nan=0.0, neginf=-np.inf, posinf=np.inf))
    with np.errstate(divide="ignore"):
        logp, logq = np.log(p[rows, tokens]), np.log(q[rows, tokens])
    return {
        "logp_p": logp,
        "logp_q": logq,
        "entropy_p": d.entropy(p),
        "entropy_q": d.entropy(q),
        "kl_pq": d.kl(p, q),
        "kl_qp": d.kl(q, p),
        "tv": d.tv(p, q),
        "chi2_qp": d.chi2(q, p),
        "jsd": d.jsd(p, q),
        "hellinger2": d.hellinger2(p, q),
        "max_abs_log_ratio": np.abs(ell).max(-1),
        "topd_second_moment": rewards.topd_second_moment(q, p, alpha),
        "topk_kl": d.topk_kl(p, q, topk, tokens),
        "topk_tv": d.topk_tv(p, q, topk, tokens),
    }


def pair(rng, n, vocab, scale, sharpness=3.0):
    p = (sharpness * rng.normal(size=(n, vocab))).astype(np.float32)
    return p, (p + scale * rng.normal(size=p.shape)).astype(np.float32), rng.integers(0, vocab, n)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("vocab", [1, 2, 3, 17, 63, 64, 65, 1023, 1024, 1025, 5000])
def test_every_statistic_at_every_vocabulary_size(backend, vocab):
    p, q, tokens = pair(np.random.default_rng(vocab), 6, vocab, 0.7)
    found = kernels.pair_statistics(p, q, tokens, topk=min(TOPK, vocab), alpha=ALPHA, backend=backend)
    for name, expected in reference(p, q, tokens, min(TOPK, vocab)).items():
        assert close(found[name], expected, FLOAT32), name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sharpness", [0.5, 3.0, 8.0])
@pytest.mark.parametrize("scale", [1e-4, 1e-3, 1e-2, 0.1, 1.0, 5.0])
def test_small_divergences_keep_their_digits_in_float32(backend, scale, sharpness):
    """Relative accuracy down to KL = 1e-8, and nothing negative."""
    p, q, tokens = pair(np.random.default_rng(5), 8, 30_000, scale, sharpness)
    # references from the float32 logits in float64, by formulas that do not cancel
    exact = [numpy_rows.careful_row(p[i], q[i], int(tokens[i]), TOPK, ALPHA) for i in range(len(p))]
    expected = dict(zip(kernels.STATISTICS, np.array(exact).T, strict=True))
    found = kernels.pair_statistics(p, q, tokens, topk=TOPK, alpha=ALPHA, backend=backend)
    for name in SMALL:
        assert (found[name] >= 0).all()
        assert np.all(np.abs(found[name] / expected[name] - 1) <= KL32), (name, expected[name].min())
    if scale == 1e-4:
        assert expected["kl_pq"].min() < 1e-8


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ties", [1, 2])
def test_small_terms_beside_a_dominant_one_keep_their_digits(backend, ties):
    """A token with nearly all the mass: log p is as small as the mass of the others, which float32 sums lose."""
    p, q, _ = pair(np.random.default_rng(3), 4, 30_000, 1e-3)
    p[:, 700 : 700 + ties] = q[:, 700 : 700 + ties] = 29.0
    tokens = np.full(4, 700)
    found = kernels.pair_statistics(p, q, tokens, topk=TOPK, alpha=ALPHA, backend=backend)
    for name in ("logp_p", "logp_q"):
        expected = reference(p, q, tokens)[name]
        assert close(found[name], expected, FLOAT64) and (ties > 1 or expected.max() > -1e-5)


def test_the_careful_row_is_right_in_float64():
    p, q, tokens = pair(np.random.default_rng(1), 5, 200, 0.4)
    exact = [numpy_rows.careful_row(p[i], q[i], int(tokens[i]), TOPK, ALPHA) for i in range(len(p))]
    for name, values in zip(kernels.STATISTICS, np.array(exact).T, strict=True):
        assert close(values, reference(p, q, tokens)[name], FLOAT64), name


def test_the_careful_row_keeps_small_divergences_exactly():
    """KL of two nearly equal coins, against its series in extended precision."""
    eps = 2.0**-20
    p, q = np.array([0.0, 0.0]), np.array([0.0, eps])
    row = dict(zip(kernels.STATISTICS, numpy_rows.careful_row(p, q, 0, 1, ALPHA), strict=True))
    # KL of Bernoulli(1/2) from Bernoulli(1/(1+e^{-ε})) is ε²/8 − ε⁴/192 + …
    assert abs(row["kl_pq"] / (eps**2 / 8) - 1) < LOOSE64
    assert abs(row["jsd"] / (eps**2 / 32) - 1) < LOOSE64
    assert abs(row["tv"] / (eps / 4) - 1) < LOOSE64


@pytest.mark.parametrize("backend", BACKENDS)
def test_identical_rows_have_no_divergence(backend):
    p, _, tokens = pair(np.random.default_rng(2), 4, 3000, 1.0)
    found = kernels.pair_statistics(p, p, tokens, backend=backend)
    for name in (*SMALL, "topk_kl", "topk_tv", "topd_second_moment", "max_abs_log_ratio"):
        assert (found[name] == 0).all(), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_missing_support_is_infinite_and_nothing_is_clamped(backend):
    rng = np.random.default_rng(3)
    p, q, _ = pair(rng, 4, 300, 0.5)
    p[0, 7] = -np.inf  # μ lacks a token of π: reverse KL and χ² infinite
    q[1, 9] = -np.inf  # π lacks a token of μ: KL infinite
    p[2, 11] = q[2, 11] = -np.inf  # both lack it: nothing happens
    tokens = np.array([0, 0, 0, 0])
    found = kernels.pair_statistics(p, q, tokens, topk=TOPK, alpha=ALPHA, backend=backend)
    expected = reference(p, q, tokens)
    for name in kernels.STATISTICS:
        assert close(found[name], expected[name], FLOAT32), name
    assert found["kl_qp"][0] == np.inf and found["chi2_qp"][0] == np.inf and np.isfinite(found["kl_pq"][0])
    assert found["kl_pq"][1] == np.inf and np.isfinite(found["kl_qp"][1])
    assert np.isfinite(found["kl_pq"][2]) and np.isfinite(found["kl_qp"][2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_very_spread_logits_fall_back_to_float64(backend):
    rng = np.random.default_rng(4)
    p, q, tokens = pair(rng, 3, 500, 0.3)
    p[0, :400] -= 300
    q[1, :100] -= 200
    p[2, :100] -= 150
    q[2, :100] -= 150
    found = kernels.pair_statistics(p, q, tokens, topk=TOPK, alpha=ALPHA, backend=backend)
    expected = reference(p, q, tokens)
    for name in ("kl_pq", "kl_qp", "tv", "jsd", "hellinger2", "topk_kl"):
        assert close(found[name], expected[name], FLOAT32), name
    # the reverse KL sees the mass that μ put at e^−300
    assert found["kl_qp"][0] > 200


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [np.nan, -np.float32(np.nan), np.inf])
def test_rows_with_nan_or_inf_give_nan_and_leave_the_others_alone(backend, bad):
    p, q, tokens = pair(np.random.default_rng(6), 5, 2500, 0.3)
    clean = kernels.pair_statistics(p, q, tokens, backend=backend)
    p[1, 2400] = bad
    q[3, 0] = bad
    found = kernels.pair_statistics(p, q, tokens, backend=backend)
    for name in kernels.STATISTICS:
        assert np.isnan(found[name][[1, 3]]).all()
        np.testing.assert_array_equal(found[name][[0, 2, 4]], clean[name][[0, 2, 4]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_of_minus_inf_only_gives_nan(backend):
    p = np.full((1, 70), -np.inf, np.float32)
    found = kernels.pair_statistics(p, np.zeros_like(p), np.array([0]), backend=backend)
    assert all(np.isnan(v).all() for v in found.values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_topk_ties_go_to_the_lower_index(backend):
    p = np.zeros((1, 200), np.float32)
    p[0, 150] = 1.0
    q = np.linspace(-1, 1, 200, dtype=np.float32)[None]
    found = kernels.pair_statistics(p, q, np.array([180]), topk=4, backend=backend)
    expected = reference(p, q, np.array([180]), 4)
    assert close(found["topk_kl"], expected["topk_kl"], FLOAT32)
    assert close(found["topk_tv"], expected["topk_tv"], FLOAT32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_partition_shortcuts_never_exceed_the_full_divergence(backend):
    p, q, tokens = pair(np.random.default_rng(8), 50, 400, 1.0, 2.0)
    found = kernels.pair_statistics(p, q, tokens, topk=3, backend=backend)
    assert (found["topk_kl"] <= found["kl_pq"] * (1 + FLOAT32)).all()
    assert (found["topk_tv"] <= found["tv"] * (1 + FLOAT32)).all()
    assert (found["topk_kl"] < 0.9 * found["kl_pq"]).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_alpha_one_is_the_log_ratio(backend):
    p, q, tokens = pair(np.random.default_rng(9), 3, 100, 0.5)
    found = kernels.pair_statistics(p, q, tokens, alpha=1.0, backend=backend)
    expected = reference(p, q, tokens, 20, 1.0)
    assert close(found["topd_second_moment"], expected["topd_second_moment"], FLOAT32)


def test_float64_logits_are_computed_in_float64():
    p, q, tokens = pair(np.random.default_rng(10), 4, 300, 0.5)
    found = kernels.pair_statistics(
        p.astype(np.float64), q.astype(np.float64), tokens, topk=TOPK, alpha=ALPHA
    )
    expected = reference(p, q, tokens)
    for name in ("kl_pq", "tv", "chi2_qp", "hellinger2", "topk_kl"):
        assert close(found[name], expected[name], FLOAT32), name


def test_threads_change_nothing():
    numba_rows = pytest.importorskip("opdtheory.audit.kernels.numba_rows")
    p, q, tokens = pair(np.random.default_rng(11), 33, 2000, 0.5)
    one = numba_rows.pair_statistics(p, q, tokens, 20, ALPHA, threads=1)
    three = numba_rows.pair_statistics(p, q, tokens, 20, ALPHA, threads=3)
    for name in kernels.STATISTICS:
        np.testing.assert_array_equal(one[name], three[name])


@pytest.mark.parametrize(
    ("p", "q", "tokens", "words"),
    [
        (np.zeros((2, 3)), np.zeros((2, 4)), [0, 0], "logits"),
        (np.zeros(3), np.zeros(3), [0], "logits"),
        (np.zeros((2, 3)), np.zeros((2, 3)), [0, 3], "tokens"),
        (np.zeros((2, 3)), np.zeros((2, 3)), [0], "tokens"),
        (np.zeros((2, 3)), np.zeros((2, 3)), [0, -1], "tokens"),
    ],
)
def test_bad_shapes_are_refused(p, q, tokens, words):
    with pytest.raises(ValueError, match=words):
        kernels.pair_statistics(p, q, np.array(tokens))


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="fortran"):
        kernels.pair_statistics(np.zeros((1, 2)), np.zeros((1, 2)), np.array([0]), backend="fortran")
