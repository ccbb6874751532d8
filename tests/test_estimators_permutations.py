"""Permutations: Sinkhorn's normalisation, Hungarian rounding, and what Gumbel-matching does not sample."""

import itertools
import math

import pytest
import torch

from nas.estimators.gumbel import gumbel_noise
from nas.estimators.permutations import (
    gumbel_matching,
    gumbel_sinkhorn,
    hungarian,
    sinkhorn,
    straight_through_matching,
)
from nas.randomness import generator as keyed


def matrices(count, size):
    return torch.randn(count, size, size, generator=keyed(0), dtype=torch.float64)


def permutations(size):
    """All permutation matrices, (size!, size, size)."""
    return torch.eye(size, dtype=torch.float64)[torch.tensor(list(itertools.permutations(range(size))))]


def row_errors(weights):
    return (weights.sum(-1) - 1).abs().amax(-1)


def test_normalised_scores_are_doubly_stochastic():
    weights = sinkhorn(matrices(50, 6))
    assert (weights > 0).all()
    ones = torch.ones(50, 6, dtype=torch.float64)
    torch.testing.assert_close(weights.sum(-2), ones, rtol=1e-13, atol=0)
    # N(0, 1) scores contract by a factor below 0.7 at each iteration; .7^100 is 3e-16.
    torch.testing.assert_close(weights.sum(-1), ones, rtol=1e-12, atol=0)


def test_an_iteration_normalises_rows_and_then_columns():
    scores = matrices(3, 4)
    expected = scores.exp()
    for _ in range(3):
        expected = expected / expected.sum(-1, keepdim=True)
        expected = expected / expected.sum(-2, keepdim=True)
    torch.testing.assert_close(sinkhorn(scores, 3), expected, rtol=1e-12, atol=0)


def _keeps_cross_ratios(normalise):
    """A scaling of rows and columns keeps w_ij w_kl / (w_il w_kj); with the sums it makes the limit unique."""
    scores = matrices(20, 5)
    found = normalise(scores).log()
    kept = [x - x[:, :1] - x[:, :, :1] + x[:, :1, :1] for x in (scores, found)]
    errors = [row_errors(weights) for weights in (found.exp(), found.exp().mT)]
    return torch.allclose(*kept, rtol=0, atol=1e-10) and bool((torch.cat(errors) < 1e-10).all())


def test_the_limit_is_a_scaling_of_rows_and_columns():
    assert _keeps_cross_ratios(sinkhorn)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x.softmax(-1),
        lambda x: (x.softmax(-1) + x.softmax(-2)) / 2,
        lambda x: sinkhorn(x, 1),
        lambda x: sinkhorn(2 * x),
    ],
    ids=["rows only", "averaged", "one iteration", "sharpened"],
)
def test_wrong_normalisations_are_no_such_scaling(wrong):
    assert not _keeps_cross_ratios(wrong)


def test_the_gradient_for_given_noise_is_the_numerical_one():
    scores = matrices(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sinkhorn(x, 20), scores)
    assert torch.autograd.gradcheck(lambda x: gumbel_sinkhorn(x, 0.7, 20, keyed(1)), scores)


def test_a_cold_normalisation_takes_a_hundred_iterations():
    """Of 400 4 x 4 matrices of N(0, 1) scores at temperature .1, after 20 iterations the worst lacks most of a row.

    A figure of .81 is the worst of such a batch: it depends on the batch, where the median is .03.
    """
    scores = matrices(400, 4)
    errors = {n: row_errors(gumbel_sinkhorn(scores, 0.1, n, keyed(1))) for n in (20, 100, 1000)}
    assert errors[20].max() > 0.5
    assert errors[20].median() < 0.1
    # Near a tie of two permutations the error falls as 1/n only: .0025 at n = 100 from there, and a few times that.
    assert errors[100].max() < 0.05
    assert errors[1000].max() < 0.005


def test_the_cold_limit_is_the_hungarian_permutation():
    """For given noise, wherever the best permutation leads the second by 50 temperatures."""
    tau, scores = 0.01, matrices(200, 4)
    perturbed = scores + gumbel_noise(scores, keyed(1))
    totals = (perturbed[:, None] * permutations(4)).sum((-1, -2)).topk(2).values
    clear = totals[:, 0] - totals[:, 1] > 50 * tau
    assert clear.sum() > 50
    soft = gumbel_sinkhorn(scores, tau, 2000, keyed(1))[clear]
    hard = gumbel_matching(scores, keyed(1))[clear]
    # After n iterations rows are within a few 1/n of one.
    torch.testing.assert_close(soft, hard, rtol=0, atol=10 / 2000)


@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_rounding_finds_the_best_of_all_permutations(size):
    scores = matrices(30, size)
    every = permutations(size)
    best = (scores[:, None] * every).sum((-1, -2)).argmax(-1)
    assert torch.equal(hungarian(scores), every[best])


def test_a_greedy_rounding_is_not_the_best():
    scores = torch.tensor([[1.0, 0.9], [0.9, 0.0]])
    assert hungarian(scores).tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_rounding_keeps_shape_and_dtype_and_has_no_gradient():
    scores = torch.randn(2, 3, 4, 4, generator=keyed(0), dtype=torch.float32, requires_grad=True)
    found = hungarian(scores)
    assert found.shape == scores.shape
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert hungarian(scores[0, 0]).tolist() == found[0, 0].tolist()


def test_gumbel_matching_is_no_exact_sampler_of_the_gibbs_law():
    """N = 3, scores 1.617 on the diagonal: the identity has probability .882, and .737 by matching.

    For N = 2 it is known in closed form: with gap d, F(d) = e^d (e^d - 1 - d) / (e^d - 1)^2, the law of a sum of two
    logistic variables, in place of sigmoid(d).
    """
    scores = 1.617 * torch.eye(3, dtype=torch.float64)
    gibbs = (scores * permutations(3)).sum((-1, -2)).softmax(0)
    assert gibbs[0].item() == pytest.approx(0.882, abs=1e-3)
    count = 10_000
    found = (gumbel_matching(scores.expand(count, 3, 3), keyed(1)) == torch.eye(3)).all(-1).all(-1).double().mean()
    error = 4 * math.sqrt(0.737 * 0.263 / count)
    assert found.item() == pytest.approx(0.737, abs=error + 1e-3)

    pair, d = torch.eye(2, dtype=torch.float64), 2.0  # a gap of two
    found = (gumbel_matching(pair.expand(count, 2, 2), keyed(2)) == pair).all(-1).all(-1).double().mean()
    e = math.exp(d)
    expected = e * (e - 1 - d) / (e - 1) ** 2
    assert found.item() == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / count))
    assert expected < 1 / (1 + math.exp(-d)) - 0.08


def test_a_permutation_drawn_by_one_gumbel_each_is_exact():
    """Noise for every permutation, which matching saves, has the Gibbs law."""
    scores = 1.617 * torch.eye(3, dtype=torch.float64)
    totals = (scores * permutations(3)).sum((-1, -2)).expand(10_000, 6)
    drawn = (totals + gumbel_noise(totals, keyed(1))).argmax(-1)
    assert (drawn == 0).double().mean().item() == pytest.approx(0.882, abs=4 * math.sqrt(0.882 * 0.118 / 10_000) + 1e-3)


def test_straight_through_is_a_permutation_with_the_relaxations_gradient():
    scores = matrices(30, 4).requires_grad_()
    v = torch.randn(30, 4, 4, generator=keyed(2), dtype=torch.float64)
    hard = straight_through_matching(scores, 0.5, 50, keyed(1))
    soft = gumbel_sinkhorn(scores, 0.5, 50, keyed(1))
    assert torch.equal(hard, gumbel_matching(scores, keyed(1)))
    gradients = [torch.autograd.grad((sample * v).sum(), scores)[0] for sample in (hard, soft)]
    assert torch.equal(*gradients)
    assert gradients[0].any()


def test_scores_may_be_shifted_by_rows_and_columns():
    """Integers are exact in float32, also after the shift."""
    scores = torch.tensor([[0.0, 1.0, 2.0], [3.0, 1.0, 0.0], [1.0, 1.0, 3.0]])
    shifted = scores + torch.tensor([[1e6], [0.0], [-1e6]])
    assert torch.equal(sinkhorn(scores, 5), sinkhorn(shifted, 5))
    assert torch.equal(hungarian(scores + torch.tensor([64.0, 0.0, -8.0])), hungarian(scores))


def test_a_forbidden_assignment_has_no_weight_and_no_gradient():
    scores = matrices(100, 4)
    forbidden = torch.zeros(4, 4, dtype=torch.bool)
    forbidden[0, 1] = forbidden[2, 3] = forbidden[0, 0] = True
    scores = scores.masked_fill(forbidden, -math.inf).requires_grad_()
    for sample in (lambda x: gumbel_sinkhorn(x, 0.5), lambda x: straight_through_matching(x, 0.5)):
        weights = sample(scores)
        (gradient,) = torch.autograd.grad((weights * torch.arange(16.0).reshape(4, 4)).sum(), scores)
        assert not weights[:, forbidden].any()
        assert gradient.isfinite().all()
        assert not gradient[:, forbidden].any()
    assert not gumbel_matching(scores)[:, forbidden].any()


def test_an_assignment_that_forbids_every_permutation_is_refused():
    """Two rows that allow one column: every row and column has a candidate, no permutation has all of them."""
    inf = math.inf
    scores = torch.tensor([[0.0, -inf, -inf], [0.0, -inf, -inf], [0.0, 0.0, 0.0]])
    with pytest.raises(ValueError, match="infeasible"):
        hungarian(scores)


@pytest.mark.parametrize("tau", [1e-3, 1e-10, 1e-30])
def test_small_temperatures_are_finite_in_single_precision(tau, generator):
    scores = torch.randn(200, 5, 5, generator=generator).requires_grad_()
    weights = gumbel_sinkhorn(scores, tau, generator=generator)
    (gradient,) = torch.autograd.grad((weights * torch.arange(25.0).reshape(5, 5)).sum(), scores)
    assert weights.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_scores_give_single_precision(dtype, generator):
    scores = torch.zeros(100, 4, 4, dtype=dtype)
    for weights in (gumbel_sinkhorn(scores, 0.1, generator=generator), sinkhorn(scores)):
        assert weights.dtype == torch.float32
        assert weights.isfinite().all()
    matched = gumbel_matching(scores, generator)
    assert (matched.sum(-1) == 1).all()
    assert (matched.sum(-2) == 1).all()


def test_one_candidate_is_its_own_permutation(generator):
    scores = torch.randn(10, 1, 1, generator=generator, requires_grad=True)
    soft = gumbel_sinkhorn(scores, 0.1, generator=generator)
    assert soft.flatten().tolist() == hungarian(scores).flatten().tolist() == [1.0] * 10
    assert not torch.autograd.grad(soft.sum(), scores)[0].any()


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(tau):
    for sample in (gumbel_sinkhorn, straight_through_matching):
        with pytest.raises(ValueError, match=f"temperature must be positive, got {tau}"):
            sample(torch.zeros(2, 2), tau)


def test_a_matrix_that_cannot_be_assigned_is_refused():
    for function in (sinkhorn, hungarian, gumbel_matching):
        for shape in ((2, 3), (3,)):
            with pytest.raises(ValueError, match="scores must be square matrices"):
                function(torch.zeros(shape))
        for value in (math.nan, math.inf, -math.inf):
            for row in (True, False):
                scores = torch.zeros(3, 3)
                scores[(1,) if row else (slice(None), 1)] = value
                with pytest.raises(ValueError, match="at least one left per row"):
                    function(scores)
    with pytest.raises(ValueError, match="iterations must be at least 1, got 0"):
        sinkhorn(torch.zeros(2, 2), 0)
