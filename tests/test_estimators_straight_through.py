"""Straight-through: exactly hard forward, exactly the relaxation's gradient backward."""

import math

import pytest
import torch
from scipy import stats

from nas.estimators import gumbel_max, gumbel_softmax, straight_through, straight_through_gumbel_softmax
from nas.estimators.gumbel import one_hot_argmax
from nas.randomness import generator as keyed

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_value_is_exactly_one_hot(dtype, generator):
    soft = torch.rand(10_000, 8, generator=generator).to(dtype).requires_grad_()
    hard = one_hot_argmax(soft.detach())
    assert torch.equal(straight_through(hard, soft), hard)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tau", [10.0, 0.3, 1e-3])
def test_samples_are_exactly_one_hot(dtype, tau, generator):
    logits = torch.randn(10_000, 8, generator=generator).to(dtype).requires_grad_()
    sample = straight_through_gumbel_softmax(logits, tau, generator)
    assert set(sample.unique().tolist()) == {0.0, 1.0}
    assert (sample.sum(-1) == 1).all()


def _has_the_softs_gradient(combine):
    """Compares with the Jacobian product (diag(y) - y y') v / tau, written out."""
    tau, logits = 0.6, torch.randn(5, 4, generator=keyed(0), dtype=torch.float64, requires_grad=True)
    v = torch.randn(5, 4, generator=keyed(1), dtype=torch.float64)
    soft = gumbel_softmax(logits, tau, keyed(2))
    (combine(one_hot_argmax(soft.detach()), soft) * v).sum().backward()
    y = soft.detach()
    jacobian = torch.diag_embed(y) - y[:, :, None] * y[:, None, :]
    expected = (jacobian @ v[:, :, None]).squeeze(-1) / tau
    # Sums of four products of order one.
    return torch.allclose(logits.grad, expected, rtol=1e-13, atol=1e-15)


def test_the_gradient_is_the_jacobian_product_of_the_relaxation():
    assert _has_the_softs_gradient(straight_through)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda hard, soft: hard + (soft.detach() - soft),
        lambda hard, soft: hard + (soft - soft),
        lambda hard, soft: hard - soft.detach() + 2 * soft - soft.detach(),
        lambda hard, soft: (hard - soft) + soft.detach(),
    ],
    ids=["flipped", "undetached", "doubled", "reversed"],
)
def test_wrong_lines_do_not_have_that_gradient(wrong):
    assert not _has_the_softs_gradient(wrong)


def test_a_sample_and_its_relaxation_share_their_noise():
    logits = torch.randn(100, 5, generator=keyed(0), dtype=torch.float64, requires_grad=True)
    hard = straight_through_gumbel_softmax(logits, 0.5, keyed(1))
    soft = gumbel_softmax(logits, 0.5, keyed(1))
    assert torch.equal(hard.argmax(-1), soft.argmax(-1))
    v = torch.randn(100, 5, generator=keyed(2), dtype=torch.float64)
    gradients = [torch.autograd.grad((sample * v).sum(), logits)[0] for sample in (hard, soft)]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("tau", [10.0, 0.1])
def test_which_candidate_is_drawn_does_not_depend_on_temperature(tau):
    logits = torch.tensor([1.0, -2.0, 0.5, 0.0]).expand(100_000, -1)
    samples = straight_through_gumbel_softmax(logits, tau, keyed(5))
    assert torch.equal(samples, gumbel_max(logits, keyed(5)))
    assert stats.chisquare(samples.sum(0).double(), 100_000 * logits[0].double().softmax(-1)).pvalue > 1e-3


@pytest.mark.parametrize("tau", [0.0, -0.5, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(tau):
    with pytest.raises(ValueError, match="temperature must be positive"):
        straight_through_gumbel_softmax(torch.zeros(2, 3), tau)


def test_a_masked_candidate_is_never_drawn_and_has_no_gradient(generator):
    logits = torch.tensor([[0.5, -math.inf, 0.2], [-math.inf, -math.inf, 3.0]]).repeat(1000, 1).requires_grad_()
    masked = logits.isinf()
    sample = straight_through_gumbel_softmax(logits, 0.1, generator)
    (sample * torch.randn(2000, 3, generator=generator)).sum().backward()
    assert not sample[masked].any()
    assert (sample.sum(-1) == 1).all()
    assert logits.grad.isfinite().all()
    assert not logits.grad[masked].any()


def test_a_row_without_live_candidates_is_refused():
    with pytest.raises(ValueError, match="at least one left per row"):
        straight_through_gumbel_softmax(torch.full((2, 3), -math.inf), 1.0)


def test_one_candidate_is_drawn_without_gradient(generator):
    logits = torch.zeros(10, 1, requires_grad=True)
    sample = straight_through_gumbel_softmax(logits, 0.5, generator)
    sample.sum().backward()
    assert sample.tolist() == [[1.0]] * 10
    assert not logits.grad.any()
