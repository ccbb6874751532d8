"""Subsets: the Plackett-Luce law of Gumbel top-k, its log-probability, and the k-hot relaxation."""

import itertools
import math

import pytest
import torch
from scipy import stats

from nas.estimators.gumbel import centred, gumbel_noise
from nas.estimators.subsets import gumbel_top_k, plackett_luce_log_prob, relaxed_top_k, straight_through_top_k
from nas.randomness import generator as keyed

LOGITS = torch.tensor([1.0, -0.5, 0.3, 0.0, -2.0], dtype=torch.float64)
MASKED = torch.tensor([0.5, -math.inf, 0.2, -math.inf, -1.0], dtype=torch.float64)


def orders(size, k):
    """All ordered subsets, (size! / (size - k)!, k)."""
    return torch.tensor(list(itertools.permutations(range(size), k)))


def enumerated(logits, indices):
    """P(indices) as a product of shares of what is left, in plain floats."""
    weights, probability = logits.exp().tolist(), 1.0
    for index in indices.tolist():
        probability *= weights[index] / sum(weights)
        weights[index] = 0.0
    return probability


def _draws_the_law(sample, logits, k):
    """A chi-square test of the ordered subsets against enumeration, at p = 1e-4 and a fixed seed."""
    count, size = 100_000, len(logits)
    found = sample(logits.expand(count, size), k, keyed(0))
    table = orders(size, k)
    radix = size ** torch.arange(k)
    counts = torch.bincount(found @ radix, minlength=size**k)[table @ radix]
    expected = count * torch.tensor([enumerated(logits, row) for row in table], dtype=torch.float64)
    live = expected > 0
    if counts.sum() != count or counts[~live].any():
        return False
    return stats.chisquare(counts[live].double(), expected[live]).pvalue > 1e-4


@pytest.mark.parametrize(("logits", "k"), [(LOGITS, 1), (LOGITS, 2), (LOGITS[:4], 3), (LOGITS[:4], 4), (MASKED, 2)])
def test_ordered_subsets_have_the_plackett_luce_law(logits, k):
    assert _draws_the_law(gumbel_top_k, logits, k)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda logits, k, generator: torch.multinomial(logits.softmax(-1), k, replacement=True, generator=generator),
        lambda logits, k, generator: gumbel_top_k(logits, k, generator).flip(-1),
        lambda logits, k, generator: gumbel_top_k(logits, k, generator).sort(-1).values,
        lambda logits, k, generator: (logits + torch.randn(logits.shape, generator=generator)).topk(k).indices,
    ],
    ids=["with replacement", "reversed", "unordered", "normal noise"],
)
def test_wrong_samples_do_not_have_that_law(wrong):
    assert not _draws_the_law(wrong, LOGITS, 2)


@pytest.mark.parametrize(("logits", "k"), [(LOGITS, 1), (LOGITS, 3), (LOGITS, 5), (MASKED, 2), (MASKED, 3)])
def test_probabilities_are_the_enumerated_ones_and_sum_to_one(logits, k):
    table = orders(5, k)
    probabilities = plackett_luce_log_prob(logits, table).exp()
    expected = torch.tensor([enumerated(logits, row) for row in table], dtype=torch.float64)
    torch.testing.assert_close(probabilities, expected, rtol=1e-13, atol=0)
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-13)


def test_the_gradient_of_a_log_probability_is_the_numerical_one():
    logits = torch.randn(6, 5, generator=keyed(0), dtype=torch.float64, requires_grad=True)
    indices = gumbel_top_k(logits.detach(), 3, keyed(1))
    assert torch.autograd.gradcheck(lambda x: plackett_luce_log_prob(x, indices), logits)


@pytest.mark.parametrize("logits", [LOGITS, MASKED], ids=["plain", "masked"])
def test_the_score_function_is_exact_over_all_subsets(logits):
    """sum p f grad log p = grad sum p f, with f any function of the unordered subset."""
    table = orders(5, 2)
    rewards = (table[:, 0] - table[:, 1]).abs() ** 2 + (table.sum(-1) == 4) + 0.5
    leaf = logits.clone().requires_grad_()
    log_prob = plackett_luce_log_prob(leaf, table)
    possible = log_prob.detach().isfinite()
    weight = (log_prob.detach().exp() * rewards)[possible]
    (score,) = torch.autograd.grad((weight * log_prob[possible]).sum(), leaf, retain_graph=True)
    (truth,) = torch.autograd.grad((log_prob.exp() * rewards).sum(), leaf)
    torch.testing.assert_close(score, truth, rtol=1e-12, atol=1e-14)
    assert not truth[logits.isinf()].any()
    plain = torch.tensor([enumerated(logits + 1e-6 * torch.eye(5)[0], row) for row in table], dtype=torch.float64)
    base = torch.tensor([enumerated(logits, row) for row in table], dtype=torch.float64)
    # A difference over 1e-6 of numbers near one keeps nine digits, less its own error of order 1e-6.
    assert truth[0].item() == pytest.approx((((plain - base) * rewards).sum() / 1e-6).item(), abs=1e-5)


def test_the_score_function_has_the_true_mean_over_draws():
    """Within four standard errors of the enumerated gradient."""
    count, rewards = 100_000, torch.arange(5, dtype=torch.float64).square()
    logits = LOGITS.expand(count, 5).clone().requires_grad_()
    indices = gumbel_top_k(logits.detach(), 2, keyed(2))
    loss = rewards[indices].prod(-1)
    (gradient,) = torch.autograd.grad((loss * plackett_luce_log_prob(logits, indices)).sum(), logits)
    leaf, table = LOGITS.clone().requires_grad_(), orders(5, 2)
    (truth,) = torch.autograd.grad((plackett_luce_log_prob(leaf, table).exp() * rewards[table].prod(-1)).sum(), leaf)
    error = 4 * gradient.std(0) / math.sqrt(count)
    assert ((gradient.mean(0) - truth).abs() < error).all()


def test_log_probabilities_are_finite_for_extreme_logits():
    """The probability underflows, the logarithm does not; nor does a difference of cumulative sums cancel."""
    logits = torch.tensor([0.0, -1e4, -2e4]).requires_grad_()
    log_prob = plackett_luce_log_prob(logits, torch.tensor([2, 1, 0]))
    assert log_prob.item() == -3e4
    assert torch.autograd.grad(log_prob, logits)[0].tolist() == [-2.0, 1.0, 1.0]


def test_an_order_with_a_masked_candidate_is_impossible_and_has_no_gradient():
    logits = MASKED.clone().requires_grad_()
    log_prob = plackett_luce_log_prob(logits, torch.tensor([[0, 1], [1, 3], [0, 2]]))
    assert log_prob.isneginf().tolist() == [True, True, False]
    (gradient,) = torch.autograd.grad(log_prob[:2].sum(), logits)
    assert gradient.tolist() == [0.0] * 5


def test_logits_of_edges_need_no_batch(generator):
    assert gumbel_top_k(LOGITS, 2, generator).shape == (2,)
    assert plackett_luce_log_prob(LOGITS, torch.tensor([1, 0])).shape == ()
    assert plackett_luce_log_prob(LOGITS.expand(4, 5), torch.tensor([1, 0])).shape == (4,)
    assert relaxed_top_k(LOGITS, 2, 0.5, generator).shape == (5,)
    assert straight_through_top_k(LOGITS, 2, 0.5, generator).sum() == 2


@pytest.mark.parametrize("tau", [5.0, 1.0, 0.3])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_a_relaxation_is_the_published_recursion(tau, k):
    """Written out, in float64 and away from weights that round to one."""
    scores = centred(LOGITS) + gumbel_noise(LOGITS, keyed(3))
    expected, alpha = torch.zeros(5, dtype=torch.float64), scores
    for _ in range(k):
        weights = (alpha / tau).softmax(-1)
        expected, alpha = expected + weights, alpha + (1 - weights).log()
    torch.testing.assert_close(relaxed_top_k(LOGITS, k, tau, keyed(3)), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tau", [5.0, 1.0, 0.1, 1e-3])
def test_a_relaxation_is_not_negative_and_sums_to_k(tau, generator):
    logits = torch.randn(10_000, 6, generator=generator)
    for k in range(1, 7):
        soft = relaxed_top_k(logits, k, tau, generator)
        assert (soft >= 0).all()
        torch.testing.assert_close(soft.sum(-1), torch.full((10_000,), float(k)), rtol=1e-6, atol=0)


def test_an_entry_of_the_relaxation_may_exceed_one(monkeypatch):
    """The published recursion does not bound one: (.9, .1) leaves the two candidates equal, and adds (.5, .5)."""
    monkeypatch.setattr("nas.estimators.subsets.gumbel_noise", lambda logits, generator: torch.zeros_like(logits))
    logits = torch.tensor([math.log(9), 0.0], dtype=torch.float64)
    torch.testing.assert_close(relaxed_top_k(logits, 2, 1.0), torch.tensor([1.4, 0.6], dtype=torch.float64))


def test_a_cold_relaxation_is_the_top_k_of_the_same_noise():
    logits = LOGITS.expand(1000, 5)
    indices = gumbel_top_k(logits, 3, keyed(4))
    hard = torch.zeros(1000, 5, dtype=torch.float64).scatter(-1, indices, 1.0)
    # Scores 1e-3 apart have weights a factor e^100 apart here; few rows have a nearer pair at the border.
    close = (relaxed_top_k(logits, 3, 1e-5, keyed(4)) - hard).abs().amax(-1) < 1e-6
    assert close.double().mean() > 0.99
    assert torch.equal(straight_through_top_k(logits, 3, 1e-5, keyed(4)), hard)


@pytest.mark.parametrize("tau", [5.0, 1.0, 0.3])
def test_the_gradient_of_a_relaxation_is_the_numerical_one(tau):
    logits = torch.randn(4, 5, generator=keyed(5), dtype=torch.float64, requires_grad=True)
    for k in (1, 3, 5):
        assert torch.autograd.gradcheck(lambda x, k=k: relaxed_top_k(x, k, tau, keyed(6)), logits)


@pytest.mark.parametrize("tau", [1.0, 1e-3, 1e-10, 1e-30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_finite_with_masks_and_at_small_temperatures(tau, dtype, generator):
    logits = MASKED.to(dtype).repeat(3000, 1).requires_grad_()
    v = torch.randn(3000, 5, generator=generator, dtype=dtype)
    for k in (1, 2, 3):
        soft = relaxed_top_k(logits, k, tau, generator)
        (gradient,) = torch.autograd.grad((soft * v).sum(), logits)
        assert soft.isfinite().all()
        assert gradient.isfinite().all()
        assert not soft[logits.isinf()].any()
        assert not gradient[logits.isinf()].any()


def test_a_gap_of_thirty_keeps_its_gradient_in_single_precision(monkeypatch):
    """1 - softmax rounds to zero in float32 from a gap of 17; the float64 recursion has the expected gradient."""
    monkeypatch.setattr("nas.estimators.subsets.gumbel_noise", lambda logits, generator: torch.zeros_like(logits))
    found = []
    for dtype in (torch.float32, torch.float64):
        logits = torch.tensor([30.0, 0.0, -1.0], dtype=dtype, requires_grad=True)
        soft = relaxed_top_k(logits, 2, 5.0)
        steep = relaxed_top_k(logits, 2, 1.0)
        found.append([*torch.autograd.grad(soft[0], logits), *torch.autograd.grad(steep[1], logits)])
    for single, exact in zip(*found, strict=True):
        torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("tau", [10.0, 0.3, 1e-3])
def test_straight_through_values_are_exactly_k_hot(dtype, tau, generator):
    logits = torch.randn(10_000, 6, generator=generator).to(dtype).requires_grad_()
    sample = straight_through_top_k(logits, 3, tau, generator)
    assert set(sample.unique().tolist()) == {0.0, 1.0}
    assert (sample.sum(-1) == 3).all()
    assert sample.dtype == torch.promote_types(dtype, torch.float32)


def test_straight_through_has_the_relaxations_gradient_and_the_samplers_draw():
    logits = torch.randn(100, 5, generator=keyed(0), dtype=torch.float64, requires_grad=True)
    v = torch.randn(100, 5, generator=keyed(2), dtype=torch.float64)
    samples = [function(logits, 2, 0.5, keyed(1)) for function in (straight_through_top_k, relaxed_top_k)]
    gradients = [torch.autograd.grad((sample * v).sum(), logits)[0] for sample in samples]
    assert torch.equal(*gradients)
    assert torch.equal(samples[0].topk(2).indices.sort(-1).values, gumbel_top_k(logits, 2, keyed(1)).sort(-1).values)


def test_all_candidates_are_drawn_when_k_is_their_number(generator):
    assert gumbel_top_k(LOGITS, 5, generator).sort().values.tolist() == [0, 1, 2, 3, 4]
    assert gumbel_top_k(MASKED, 3, generator).sort().values.tolist() == [0, 2, 4]
    one = torch.zeros(4, 1, requires_grad=True)
    assert relaxed_top_k(one, 1, 0.5, generator).tolist() == [[1.0]] * 4
    assert not torch.autograd.grad(straight_through_top_k(one, 1, 0.5, generator).sum(), one)[0].any()


def test_half_logits_give_single_precision_and_no_ties(generator):
    """Noise in bfloat16 would tie, and one index would win every tie."""
    for dtype in (torch.float16, torch.bfloat16):
        indices = gumbel_top_k(torch.zeros(100_000, 8, dtype=dtype), 2, generator)
        assert stats.chisquare(torch.bincount(indices[:, 0], minlength=8)).pvalue > 1e-4
        assert relaxed_top_k(torch.zeros(8, dtype=dtype), 2, 0.5, generator).dtype == torch.float32


@pytest.mark.parametrize(
    "sample", [gumbel_top_k, lambda x, k: relaxed_top_k(x, k, 1.0), lambda x, k: straight_through_top_k(x, k, 1.0)]
)
def test_a_subset_that_cannot_be_drawn_is_refused(sample):
    rows = torch.stack([LOGITS, MASKED])
    for k in (0, -1, 4):
        with pytest.raises(ValueError, match=f"k must be between 1 and the 3 candidates that are not masked, got {k}"):
            sample(rows, k)
    for value in (-math.inf, math.nan):
        with pytest.raises(ValueError, match="at least one left per row"):
            sample(torch.full((2, 3), value), 1)


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(tau):
    for sample in (relaxed_top_k, straight_through_top_k):
        with pytest.raises(ValueError, match=f"temperature must be positive, got {tau}"):
            sample(LOGITS, 2, tau)


def test_repeated_indices_are_refused():
    with pytest.raises(ValueError, match="indices must be distinct"):
        plackett_luce_log_prob(LOGITS, torch.tensor([[0, 1], [2, 2]]))
