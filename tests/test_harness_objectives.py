"""Training objectives and gradient moments against exact sums over the vocabulary and naive twins."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tolerance import EXACT, FLOAT64, LOOSE64, SIGMAS, close

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from opdtheory.harness import gradients, models, moments  # noqa: E402
from opdtheory.harness import objectives as ob  # noqa: E402
from opdtheory.harness.gradients import Sketch, token_scores  # noqa: E402
from tests.harness_models import make_tiny  # noqa: E402


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A student with trainable weights and a nearby teacher."""
    torch.set_num_threads(1)
    folder = make_tiny(tmp_path_factory.mktemp("tiny"))
    student = models.load(folder, dtype="float64")
    teacher = models.build({"path": str(folder), "dtype": "float64", "noise": 0.05})
    models.trainable(student, "all")
    return student, teacher


def gradient(objective, student, teacher, scored, weight, settings=None, uniform=None):
    uniform = torch.zeros(scored.tokens.shape) if uniform is None else uniform
    value = ob.loss(objective, student, teacher, scored, weight, settings or ob.Settings(), uniform)
    parameters = [p for p in student.module.parameters() if p.requires_grad]
    found = torch.autograd.grad(value, parameters)
    return torch.cat([g.reshape(-1) for g in found])


@pytest.fixture(scope="module")
def every_token(pair):
    """One row for each possible next token of one context: sums weighted by p are exact expectations."""
    student, teacher = pair
    rows = [[5, 6, 7]] * student.vocab
    return ob.score(student, teacher, rows, [[v] for v in range(student.vocab)])


def expected_gradient(name, pair, scored, settings):
    """E_student of the sampled objective's gradient in one context."""
    student, teacher = pair
    objective = ob.METHODS[name]
    reward = ob.token_rewards(objective, scored, settings, torch.zeros(scored.tokens.shape))
    weight = ob.token_advantages(objective, reward, scored, settings) * scored.student.exp()
    return gradient(objective, student, teacher, scored, weight * len(scored.responses), settings)


def test_the_immediate_reward_descends_the_reverse_kl(pair, every_token):
    student, teacher = pair
    sampled = expected_gradient("immediate", pair, every_token, ob.Settings())
    one = ob.score(student, teacher, [[5, 6, 7]], [[9]])
    exact = gradient(ob.METHODS["full-rkl"], student, teacher, one, torch.zeros(1, 1))
    assert float(exact.abs().max()) > 0
    assert close(sampled, exact, LOOSE64)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_the_immediate_topd_reward_descends_the_jsd(pair, every_token, alpha):
    # Trust Region Policy Distillation, Eq 5: E[r̃∇log p] = −∇JSD_α/(1−α)
    student, teacher = pair
    settings = ob.Settings(alpha=alpha)
    sampled = expected_gradient("topd-immediate", pair, every_token, settings)
    one = ob.score(student, teacher, [[5, 6, 7]], [[9]])
    exact = gradient(ob.METHODS["full-jsd"], student, teacher, one, torch.zeros(1, 1), settings)
    assert close(sampled * (1 - alpha), exact, LOOSE64)
    assert not close(sampled, exact, LOOSE64)


def test_scores_agree_with_the_divergences_of_the_whole_distributions(pair, every_token):
    p = every_token.student[:, 0].exp()
    log_ratio = (every_token.student - every_token.teacher)[:, 0]
    assert close(p.sum(), 1.0, FLOAT64)
    assert close(every_token.kl_student_teacher[:, 0], (p * log_ratio).sum(), FLOAT64)
    assert close(every_token.tv[:, 0], 0.5 * (p * torch.expm1(-log_ratio).abs()).sum(), FLOAT64)
    assert close(every_token.entropy[0, 0], -(p * every_token.student[:, 0]).sum(), FLOAT64)


def test_teacher_guidance_has_the_gradient_of_supervised_training(pair):
    student, teacher = pair
    prompts, responses = [[5, 6], [7, 8]], [[9, 10, 11], [12, 13]]
    scored = ob.score(student, teacher, prompts, responses, guided=[3, 2])
    assert not bool(scored.own.any())
    settings = ob.Settings(beta_guidance=0.25)
    found = gradient(ob.METHODS["tropd"], student, teacher, scored, torch.zeros(2, 3), settings)
    states = ob.hidden_states(student, prompts, responses)
    log_p = torch.log_softmax(student.head(states), -1).gather(-1, scored.tokens[..., None])[..., 0]
    parameters = [p for p in student.module.parameters() if p.requires_grad]
    nll = -(log_p * scored.mask).sum() / 5
    direct = torch.cat([g.reshape(-1) for g in torch.autograd.grad(nll, parameters)])
    assert close(found, 0.25 * direct, LOOSE64)


def test_guided_tokens_carry_no_reward(pair):
    student, teacher = pair
    scored = ob.score(student, teacher, [[5, 6]], [[9, 10, 11, 12]], guided=[2])
    for name in ("immediate", "togo", "topd"):
        objective = ob.METHODS[name]
        reward = ob.token_rewards(objective, scored, ob.Settings(), torch.zeros(1, 4))
        weight = ob.token_advantages(objective, reward, scored, ob.Settings())
        assert reward[0, :2].tolist() == weight[0, :2].tolist() == [0.0, 0.0]
        assert float(weight[0, 2:].abs().min()) > 0


def test_the_gate_rejects_to_the_topk_forward_kl(pair):
    student, teacher = pair
    scored = ob.score(student, teacher, [[5, 6]], [[9, 10]])
    objective, settings = ob.METHODS["tropd-gate-fkl"], ob.Settings(topk=5)
    accept = torch.exp((scored.teacher - scored.student).clamp_max(0))
    rejected, accepted = torch.ones(1, 2), accept * 0.5
    nothing = ob.token_rewards(objective, scored, settings, rejected)
    assert float(nothing.abs().max()) == 0
    pulled = gradient(objective, student, teacher, scored, nothing, settings, rejected)
    kept = gradient(objective, student, teacher, scored, nothing, settings, accepted)
    assert float(pulled.abs().max()) > 0
    assert close(kept, torch.zeros_like(kept), EXACT)


def test_clipping_stops_the_gradient_outside_the_interval(pair):
    student, teacher = pair
    scored = ob.score(student, teacher, [[5, 6]], [[9, 10]])
    objective = ob.METHODS["topd"]
    plain = gradient(ob.METHODS["immediate"], student, teacher, scored, torch.ones(1, 2))
    fresh = gradient(objective, student, teacher, scored, torch.ones(1, 2))
    assert close(fresh, plain, LOOSE64)
    moved = {**vars(scored), "student": scored.student - 1.0}
    stale = ob.Scored(**moved)
    pushed = gradient(objective, student, teacher, stale, torch.ones(1, 2))
    assert close(pushed, torch.zeros_like(pushed), EXACT)
    pulled = gradient(objective, student, teacher, stale, -torch.ones(1, 2))
    assert close(pulled, -np.e * plain, LOOSE64)


def test_the_loss_does_not_depend_on_chunks_or_padding(pair):
    student, teacher = pair
    prompts, responses = [[5, 6], [7, 8, 9]], [[9, 10, 11, 12], [13]]
    for name in ("togo", "full-rkl", "tropd-gate-fkl"):
        together = []
        for chunk in (1, 3, 64):
            settings = ob.Settings(chunk=chunk)
            scored = ob.score(student, teacher, prompts, responses, chunk=chunk)
            uniform = torch.full(scored.tokens.shape, 0.9)
            reward = ob.token_rewards(ob.METHODS[name], scored, settings, uniform)
            weight = ob.token_advantages(ob.METHODS[name], reward, scored, settings)
            together.append(gradient(ob.METHODS[name], student, teacher, scored, weight, settings, uniform))
        assert close(together[0], together[1], LOOSE64) and close(together[0], together[2], LOOSE64)
        alone = []
        for i in range(2):
            one = ob.score(student, teacher, prompts[i : i + 1], responses[i : i + 1])
            weighted = weight[i : i + 1, : len(responses[i])]
            drawn = uniform[:1, : len(responses[i])]
            found = gradient(ob.METHODS[name], student, teacher, one, weighted, ob.Settings(), drawn)
            alone.append(found * len(responses[i]))
        assert close(together[0], sum(alone) / 5, LOOSE64)


def test_the_baseline_is_the_mean_of_the_other_rows_only():
    values = torch.tensor([[1.0, 2.0], [3.0, 5.0], [8.0, 0.0]])
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    assert ob.others_mean(values, mask).tolist() == [[5.5, 5.0], [4.5, 2.0], [2.0, 3.5]]


def test_unknown_rewards_and_forms_are_refused(pair):
    scored = ob.score(*pair, [[5]], [[6]])
    with pytest.raises(ValueError, match="reward 'best'"):
        ob.token_rewards(ob.Objective(reward="best"), scored, ob.Settings(), torch.zeros(1, 1))
    with pytest.raises(ValueError, match="form 'vi'"):
        ob.token_advantages(ob.Objective(form="vi"), torch.zeros(1, 1), scored, ob.Settings())


def naive_cross(a, b):
    n = len(a)
    return sum(a[i] @ b[j] for i in range(n) for j in range(n) if i != j) / (n * (n - 1))


def test_moments_equal_their_naive_twins():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(7, 3)), random.normal(size=(7, 3)) + 1
    found = moments.cross(a, b)
    assert close(found[0], naive_cross(a, b))
    for i in range(7):
        assert close(found[i + 1], naive_cross(np.delete(a, i, 0), np.delete(b, i, 0)))
    block = np.array([3, 3, 1, 1, 1, 8, 8])
    means = moments.block_means(a, block)
    assert close(means, [a[2:5].mean(0), a[:2].mean(0), a[5:].mean(0)])
    second = moments.second_moment(a, block)
    assert close(second[0], (a**2).sum(1).mean())
    assert close(second[1], (np.delete(a, [2, 3, 4], 0) ** 2).sum(1).mean())


def test_bias_variance_and_mse_of_known_estimators():
    random = np.random.default_rng(1)
    n, k = 4000, 5
    block, noise = np.arange(n) // 4, random.normal(size=(n, k))
    quiet_reference = 0.1 * noise + np.array([1.0, 0, 0, 0, 0])
    quiet = 0.1 * noise + 0.05 * random.normal(size=(n, k)) + np.array([1.0, 0.3, 0, 0, 0])
    samples = quiet + 0.5 * random.normal(size=(n, k))
    reference = quiet_reference + random.normal(size=(n, k))
    found = moments.compare_estimators(samples, quiet, quiet_reference, block, [1, 100])
    variance = k * (0.1**2 + 0.05**2 + 0.5**2)
    truth = {"bias2": 0.09, "variance": variance, "mean2": 1.09, "cosine": 1 / np.sqrt(1.09)}
    for name, value in truth.items():
        estimate = getattr(found, name)
        assert abs(estimate.value - value) < SIGMAS * estimate.error, name
        assert estimate.error < 0.2 * abs(value)
    mse = found.mse[100]
    assert abs(mse.value - (0.09 + variance / 100)) < SIGMAS * mse.error
    difference = quiet - quiet_reference
    upto = moments.crossover(samples, reference, difference, block)
    assert abs(upto.value - (k * 1.01 - variance) / 0.09) < SIGMAS * upto.error
    assert moments.crossover(reference, samples, difference, block).value == 0
    assert moments.crossover(samples, reference, difference, block, unbiased=True).value == np.inf
    centred = difference - np.array([0, 0.3, 0, 0, 0])
    assert moments.crossover(samples, reference, centred - centred.mean(0), block) is None


def test_the_bias_of_an_unbiased_estimator_is_centred_on_zero():
    random = np.random.default_rng(2)
    estimates = []
    for _ in range(200):
        noise = random.normal(size=(8, 4))
        estimates.append(moments.cross(noise, noise)[0])
    assert abs(np.mean(estimates)) < SIGMAS * np.std(estimates) / np.sqrt(200)
    assert min(estimates) < 0 < max(estimates)


def test_moments_need_three_samples():
    with pytest.raises(ValueError, match="2 samples: expected at least 3"):
        moments.cross(np.ones((2, 3)), np.ones((2, 3)))


@pytest.mark.parametrize("space", ["last:1", "all", "lora:2"])
def test_sketched_scores_sum_to_the_gradient_and_keep_lengths(pair, space):
    folder_student, teacher = pair
    student = models.LanguageModel(folder_student.module, folder_student.tokenizer, "s")
    student.module.requires_grad_(False)
    sketch = Sketch(student, space, 4096, 0)
    scored = ob.score(student, teacher, [[5, 6]], [[9, 10, 11]])
    config = {"max_tokens": 5, "chunk": 2}
    scores, lengths, exact = token_scores(student, teacher, scored, sketch, config)
    assert scores.shape == (1, 5, 4096) and not scores[0, 3:].any()
    states = ob.hidden_states(student, [[5, 6]], [[9, 10, 11]])
    log_p = torch.log_softmax(student.head(states), -1).gather(-1, scored.tokens[..., None]).sum()
    parts = torch.autograd.grad(log_p, sketch.parameters)
    whole, length2 = sketch(parts)
    assert close(scores[0].sum(0), whole, 1e3 * LOOSE64) and (lengths[0, :3] > 0).all()
    # independent signs: the squared length is unbiased, and its variance is known from what shares a bucket
    entries = [g if a is None else g @ a.to(g) for g, a in zip(parts, sketch.adapters or [None] * 99, strict=False)]
    energy, fourth = np.zeros(4096), 0.0
    for g in entries:
        g2 = (g.reshape(-1) ** 2).numpy()
        np.add.at(energy, np.arange(len(g2)) % 4096, g2)
        fourth += (g2**2).sum()
    assert close(length2, energy.sum(), 1e3 * LOOSE64)
    error = np.sqrt(2 * ((energy**2).sum() - fourth))
    assert abs(float(whole @ whole) - length2) < SIGMAS * error
    p, q = (torch.softmax(m.head(ob.hidden_states(m, [[5, 6]], [[9, 10, 11]])), -1) for m in (student, teacher))
    kl = (p * (p / q.detach()).log()).sum()
    assert close(exact[0], -sketch(torch.autograd.grad(kl, sketch.parameters))[0], 1e3 * LOOSE64)
    models.trainable(folder_student, "all")


def test_the_mean_of_the_immediate_form_is_its_sum_over_every_token(pair):
    student, teacher = pair
    student.module.requires_grad_(False)
    sketch = Sketch(student, "last:1", 64, 0)
    every = [[t] for t in range(student.vocab)]
    scored = ob.score(student, teacher, [[5, 6]] * len(every), every)
    config = {"max_tokens": 1, "chunk": 1}
    scores, _, exact = token_scores(student, teacher, scored, sketch, config)
    weight = scored.student.exp() * (scored.teacher - scored.student)
    assert close(exact[0], np.einsum("nt,ntk->k", weight.numpy(), scores), 1e3 * LOOSE64)
    assert np.abs(exact[0]).max() > LOOSE64
    models.trainable(student, "all")


def test_quiet_samples_have_the_mean_of_their_form():
    # one position after a coin whose score is ±1; later KL depends on the coin, so λ shows in the mean
    random = np.random.default_rng(0)
    n, coin = 40000, random.integers(2, size=40000)
    arrays = {
        "mask": np.ones((n, 2)), "kl": np.stack([np.ones(n), 1.0 + coin + random.normal(size=n)], 1),
        "scores": np.stack([2.0 * coin - 1, np.zeros(n)], 1)[..., None], "immediate_mean": np.full((n, 1), 0.25),
        "block": np.arange(n) // 8,
    }  # fmt: skip
    for lam in (0.0, 0.5, 1.0):
        found = gradients.quiet(arrays, lam)[:, 0]
        error = found.std() / np.sqrt(n)
        assert abs(found.mean() - (0.25 - lam / 2)) <= SIGMAS * error + EXACT
        assert error < 0.01


def test_a_bad_subspace_is_refused(pair):
    with pytest.raises(ValueError, match="lora:R"):
        Sketch(pair[0], "lora:x", 8, 0)
