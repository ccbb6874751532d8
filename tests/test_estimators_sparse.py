"""Sparse softmaxes: optimality, exact zeros, Jacobians on the support, masks."""

import math

import pytest
import torch

from nas.estimators.sparse import entmax15, sparsemax
from nas.randomness import generator as keyed

BOTH = pytest.mark.parametrize("function", [sparsemax, entmax15])
POWER = {sparsemax: 1, entmax15: 2}
"""Weights are max(t - threshold, 0) to this power, of t = logits and logits / 2."""


def bisected(function, logits):
    """Returns the weights whose threshold a hundred bisections find: their sum falls with the threshold."""
    power = POWER[function]
    scores = logits / power
    low, high = scores.amax(-1, keepdim=True) - 1, scores.amax(-1, keepdim=True)
    for _ in range(100):
        middle = (low + high) / 2
        above = (scores - middle).clamp_min(0).pow(power).sum(-1, keepdim=True) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (scores - low).clamp_min(0).pow(power)


def objective(function, weights, logits):
    """What the weights maximise over the simplex: -|p - logits|^2 / 2, or p'logits + (4 / 3) sum(p - p^1.5)."""
    if function is sparsemax:
        return -(weights - logits).square().sum(-1) / 2
    return (weights * logits).sum(-1) + 4 / 3 * (weights - weights**1.5).sum(-1)


def rows(scale, size=9, count=200):
    return scale * torch.randn(count, size, generator=keyed(0), dtype=torch.float64)


@BOTH
@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0, 1e4])
def test_weights_are_those_of_a_bisection(function, scale):
    logits = rows(scale)
    # The threshold is a difference of numbers of the logits' size.
    torch.testing.assert_close(function(logits), bisected(function, logits), rtol=1e-7, atol=1e-13 * max(1, scale))


@BOTH
def test_weights_maximise_their_objective(function):
    """No point of a thousand drawn on the simplex, nor on the segments to them, is better."""
    logits = rows(1.0, size=4, count=20)
    weights = function(logits)
    others = torch.distributions.Dirichlet(torch.full((4,), 0.5, dtype=torch.float64))
    torch.manual_seed(0)
    points = others.sample((1000, 20))
    for share in (1.0, 0.1, 1e-3):
        points = share * points + (1 - share) * weights
        assert (objective(function, points, logits) <= objective(function, weights, logits) + 1e-14).all()


@BOTH
def test_the_conditions_of_the_optimum_hold(function):
    """The objective's slope is the same for every candidate with weight, and not above it for one without."""
    logits = rows(2.0)
    weights = function(logits)
    slopes = logits - weights if function is sparsemax else logits - 2 * weights.sqrt()
    multiplier = slopes.masked_fill(weights == 0, -math.inf).amax(-1, keepdim=True)
    assert (slopes <= multiplier).all()
    # Square roots of weights near zero keep half the digits.
    torch.testing.assert_close(slopes[weights > 0], multiplier.expand_as(slopes)[weights > 0], rtol=0, atol=1e-7)
    assert (weights == 0).any()
    torch.testing.assert_close(weights.sum(-1), torch.ones(200, dtype=torch.float64), rtol=1e-14, atol=0)


@BOTH
def test_the_gradient_is_the_numerical_one(function):
    logits = rows(1.0, size=6, count=10).requires_grad_()
    assert torch.autograd.gradcheck(function, logits)


def _has_the_jacobian_on_the_support(function, candidate):
    """Compares with diag(s) - s s' / sum(s), s = p^(2 - power) on the support, written out."""
    logits = rows(2.0, size=5, count=50).requires_grad_()
    v = torch.randn(50, 5, generator=keyed(1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((candidate(logits) * v).sum(), logits)
    weights = function(logits.detach())
    s = (weights > 0).double() if function is sparsemax else weights.sqrt()
    jacobian = torch.diag_embed(s) - s[:, :, None] * s[:, None, :] / s.sum(-1)[:, None, None]
    return torch.allclose(gradient, (jacobian @ v[:, :, None]).squeeze(-1), rtol=1e-12, atol=1e-14)


@BOTH
def test_the_gradient_is_the_jacobian_on_the_support(function):
    assert _has_the_jacobian_on_the_support(function, function)


@BOTH
@pytest.mark.parametrize(
    "wrong",
    [
        lambda weights, logits: weights.detach() + logits.softmax(-1) - logits.softmax(-1).detach(),
        lambda weights, logits: weights.detach() + (weights.detach() - weights),
        lambda weights, logits: weights.detach() + (weights > 0) * (logits - logits.detach()),
        lambda weights, logits: 2 * weights - weights.detach(),
    ],
    ids=["softmax", "flipped", "no projection", "doubled"],
)
def test_wrong_gradients_are_not_that_jacobian(function, wrong):
    assert not _has_the_jacobian_on_the_support(function, lambda logits: wrong(function(logits), logits))


@BOTH
def test_a_gradient_cannot_be_differentiated_again(function):
    logits = rows(1.0, size=3, count=2).requires_grad_()
    (gradient,) = torch.autograd.grad(function(logits).square().sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@BOTH
def test_a_masked_candidate_has_no_weight_no_gradient_and_no_influence(function):
    live = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    inf = torch.tensor([-math.inf], dtype=torch.float64)
    logits = torch.cat([live[:1], inf, live[1:], inf]).requires_grad_()
    weights = function(logits)
    (gradient,) = torch.autograd.grad(weights[0], logits)
    assert weights[[1, 4]].tolist() == gradient[[1, 4]].tolist() == [0.0, 0.0]
    reference = live.clone().requires_grad_()
    expected = function(reference)
    torch.testing.assert_close(weights[[0, 2, 3]], expected)
    torch.testing.assert_close(gradient[[0, 2, 3]], torch.autograd.grad(expected[0], reference)[0])


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_support_of_one_candidate_has_weight_exactly_one(function, dtype):
    gap = POWER[function]  # from which the others are left out
    for size in (1, 2, 8, 10_000):
        for others in (-1.01 * gap, -1.5 * gap, -7, -1e30, -math.inf):
            logits = torch.full((size,), others, dtype=dtype)
            logits[0] = 0
            logits.requires_grad_()
            weights = function(logits)
            assert weights[0] == 1
            assert not weights[1:].any()
            assert not torch.autograd.grad(weights[0], logits)[0].any()


@BOTH
def test_equal_logits_share_equally(function):
    for size in (2, 7, 1000):
        # Sums of a thousand float32 numbers near 1/K keep their relative error within K roundings.
        weights = function(torch.full((size,), 3.0))
        torch.testing.assert_close(weights, torch.full((size,), 1 / size), rtol=1e-4, atol=0)
        assert weights.sum().item() == pytest.approx(1, abs=1e-5)


@BOTH
def test_weights_do_not_change_when_logits_are_shifted(function):
    logits = torch.tensor([0.0, 0.5, 0.25, -3.0]).expand(10, -1)  # exact in float32 also after the shift
    assert torch.equal(function(logits), function(logits + 2**20))


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_logits_give_single_precision_and_get_a_half_gradient(function, dtype):
    logits = rows(1.0).to(dtype).requires_grad_()
    weights = function(logits)
    assert weights.dtype == torch.float32
    assert torch.autograd.grad(weights[:, 0].sum(), logits)[0].dtype == dtype


@BOTH
@pytest.mark.parametrize("row", [[-math.inf] * 3, [0.0, math.nan, 1.0], [0.0, math.inf, 1.0]])
def test_a_row_without_a_finite_largest_logit_is_refused(function, row):
    with pytest.raises(ValueError, match="at least one left per row"):
        function(torch.tensor([[0.0, 1.0, 2.0], row]))


def test_zeros_start_at_a_gap_of_one_and_of_two():
    """For two candidates sparsemax leaves the second out from a gap of 1, entmax from 2: twice as far."""
    gaps = torch.tensor([0.999, 1.001, 1.999, 2.001])
    logits = torch.stack([gaps, torch.zeros(4)], -1)
    assert (sparsemax(logits)[:, 1] == 0).tolist() == [False, True, True, True]
    assert (entmax15(logits)[:, 1] == 0).tolist() == [False, False, False, True]
