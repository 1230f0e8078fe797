"""The GPU kernels, run by Triton's interpreter where there is no GPU; and the variant from hidden states."""

import numpy as np
import pytest

from opdtheory.audit import kernels
from opdtheory.audit.kernels.hidden import pair_statistics_from_hidden
from tests.test_audit_kernels import SMALL, reference
from tests.tolerance import FLOAT32, KL32, LOOSE64, close

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def triton_rows():
    pytest.importorskip("triton")
    from opdtheory.audit.kernels import triton_rows

    return triton_rows


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def pair(seed, n, vocab, scale):
    generator = torch.Generator().manual_seed(seed)
    p = 3 * torch.randn(n, vocab, generator=generator)
    q = p + scale * torch.randn(n, vocab, generator=generator)
    return p.to(DEVICE), q.to(DEVICE), torch.randint(0, vocab, (n,), generator=generator).to(DEVICE)


def host(x):
    return x.cpu().numpy()


@pytest.mark.parametrize("vocab", [5, 64, 300, 1000])
def test_the_full_kernel_follows_the_definitions(triton_rows, vocab):
    p, q, tokens = pair(vocab, 4, vocab, 0.7)
    found = triton_rows.pair_statistics(p, q, tokens, topk=5, alpha=0.1, block=256)
    for name, expected in reference(host(p), host(q), host(tokens), min(5, vocab)).items():
        assert close(host(found[name]), expected, FLOAT32), name


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0])
def test_small_divergences_keep_their_digits(triton_rows, scale):
    p, q, tokens = pair(1, 3, 2000, scale)
    found = triton_rows.pair_statistics(p, q, tokens, block=512)
    truth = kernels.pair_statistics(host(p.double()), host(q.double()), host(tokens))
    for name in SMALL:
        assert (found[name] >= 0).all()
        assert np.all(np.abs(host(found[name]) / truth[name] - 1) <= KL32), name


def test_the_one_pass_kernel_gives_the_same_numbers(triton_rows):
    p, q, tokens = pair(2, 4, 700, 0.5)
    found = triton_rows.one_pass(p, q, tokens, block=128)
    truth = reference(host(p), host(q), host(tokens))
    for name in ("logp_p", "logp_q", "entropy_p", "entropy_q", "kl_pq", "kl_qp", "chi2_qp"):
        assert close(host(found[name]), truth[name], FLOAT32), name
    log_p, log_q = torch.log_softmax(p.double(), -1), torch.log_softmax(q.double(), -1)
    second = (log_p.exp() * (log_q - log_p) ** 2).sum(-1)
    assert close(host(found["log_ratio_second_moment"]), host(second), FLOAT32)


def test_missing_support_and_spread_rows(triton_rows):
    p, q, tokens = pair(3, 5, 300, 0.5)
    tokens[:] = 0
    p[0, 7], q[1, 9] = -torch.inf, -torch.inf
    p[2, 11] = q[2, 11] = -torch.inf
    p[3, 100:] -= 300
    found = triton_rows.pair_statistics(p, q, tokens, topk=5, block=128)
    truth = reference(host(p), host(q), host(tokens))
    for name in ("kl_pq", "kl_qp", "tv", "jsd", "topk_kl", "topk_tv"):
        assert close(host(found[name]), truth[name], FLOAT32), name
    one = triton_rows.one_pass(p[2:3], q[2:3], tokens[2:3], block=128)
    assert close(host(one["kl_pq"]), truth["kl_pq"][2:3], FLOAT32)


def test_low_precision_logits_are_read_as_they_are(triton_rows):
    p, q, tokens = pair(4, 3, 500, 0.5)
    p, q = p.bfloat16(), q.bfloat16()
    found = kernels.pair_statistics(p, q, tokens, backend="triton")
    truth = kernels.pair_statistics(host(p.double()), host(q.double()), host(tokens))
    for name in SMALL:
        assert close(found[name], truth[name], FLOAT32), name


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor])
def test_from_hidden_states(convert):
    rng = np.random.default_rng(0)
    h, g = rng.normal(size=(13, 6)).astype(np.float32), rng.normal(size=(13, 4)).astype(np.float32)
    a, b = rng.normal(size=(50, 6)).astype(np.float32), rng.normal(size=(50, 4)).astype(np.float32)
    tokens = rng.integers(0, 50, 13)
    found = pair_statistics_from_hidden(
        *(convert(x) for x in (h, a, g, b)), convert(tokens), temperature=0.7, rows=5
    )
    whole = kernels.pair_statistics(h @ a.T / np.float32(0.7), g @ b.T / np.float32(0.7), tokens)
    for name in kernels.STATISTICS:
        assert close(found[name], whole[name], FLOAT32), name


def test_torch_logits_of_any_type_are_accepted():
    p, q, tokens = pair(5, 3, 100, 0.5)
    truth = kernels.pair_statistics(host(p), host(q), host(tokens))
    assert close(kernels.pair_statistics(p, q, tokens)["kl_pq"], truth["kl_pq"], LOOSE64)
    low = kernels.pair_statistics(p.bfloat16(), q.bfloat16(), tokens)
    assert close(
        low["kl_pq"],
        kernels.pair_statistics(p.bfloat16().double(), q.bfloat16().double(), tokens)["kl_pq"],
        FLOAT32,
    )


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="hidden states"):
        pair_statistics_from_hidden(
            np.ones((2, 3)), np.ones((5, 3)), np.ones((2, 3)), np.ones((6, 3)), np.zeros(2, int)
        )
    with pytest.raises(ValueError, match="temperature"):
        pair_statistics_from_hidden(
            np.ones((2, 3)),
            np.ones((5, 3)),
            np.ones((2, 3)),
            np.ones((5, 3)),
            np.zeros(2, int),
            temperature=0,
        )
