"""The softmax and the Gumbel-Softmax: moments, gradients, limits of temperature, masks; entropy."""

import math

import pytest
import torch

from nas.estimators import entropy, gumbel_noise, gumbel_softmax, softmax
from nas.randomness import generator as keyed

LOGITS = torch.tensor([[0.3, -1.0, 0.7, 0.0], [2.0, 0.5, 0.5, -4.0]], dtype=torch.float64)


FLAT = [(0.001, 0.9994), (0.1, 0.9389), (0.5, 0.7039), (1, 0.4942), (5, 0.1869)]
NORMAL = [(0.001, 0.9995), (0.1, 0.9465), (0.5, 0.7393), (1, 0.5399), (5, 0.1996)]


@pytest.mark.parametrize(
    ("spread", "tau", "expected"), [*((0.0, *case) for case in FLAT), *((1.0, *case) for case in NORMAL)]
)
def test_the_largest_weight_of_eight_has_its_known_mean(spread, tau, expected, generator):
    """For equal logits and for N(0, 1) ones; the expected means are of 15 million rows drawn with NumPy."""
    logits = spread * torch.randn(200_000, 8, generator=generator)
    largest = gumbel_softmax(logits, tau, generator).amax(-1).double()
    # Five standard errors here, and five of the expected mean (6e-5 at most), which is rounded to four digits.
    tolerance = 5 * largest.std().item() / math.sqrt(len(largest)) + 3.5e-4
    assert largest.mean().item() == pytest.approx(expected, abs=tolerance)


def test_a_sample_is_the_softmax_of_perturbed_logits():
    noise = gumbel_noise(LOGITS, keyed(1))
    scores = ((LOGITS + noise) / 0.7).exp()
    expected = scores / scores.sum(-1, keepdim=True)
    torch.testing.assert_close(gumbel_softmax(LOGITS, 0.7, keyed(1)), expected, rtol=1e-14, atol=0)


def test_samples_do_not_change_when_logits_are_shifted():
    logits = torch.tensor([0.0, 1.0, 2.0, -3.0]).expand(1000, -1)  # exact in float32 also after the shift
    assert torch.equal(gumbel_softmax(logits, 0.5, keyed(3)), gumbel_softmax(logits + 1e7, 0.5, keyed(3)))
    assert torch.equal(softmax(logits), softmax(logits + 1e7))


@pytest.mark.parametrize("tau", [5.0, 1.0, 0.3])
def test_the_gradient_for_given_noise_is_the_numerical_one(tau):
    logits = LOGITS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: gumbel_softmax(x, tau, keyed(2)), logits)
    assert torch.autograd.gradcheck(softmax, logits)


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(tau):
    with pytest.raises(ValueError, match=f"temperature must be positive, got {tau}"):
        gumbel_softmax(LOGITS, tau)


@pytest.mark.parametrize("tau", [1e-3, 1e-10, 1e-30])
def test_small_temperatures_are_finite_in_single_precision(tau, generator):
    logits = torch.randn(10_000, 8, generator=generator, requires_grad=True)
    sample = gumbel_softmax(logits, tau, generator)
    sample[:, 0].sum().backward()
    assert sample.isfinite().all()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("tau", [1.0, 1e-3])
def test_a_masked_candidate_has_no_value_and_no_gradient(tau, generator):
    logits = torch.tensor([[0.5, -math.inf, 0.2], [-math.inf, -math.inf, 3.0]], requires_grad=True)
    sample = gumbel_softmax(logits, tau, generator)
    (sample * torch.randn(2, 3, generator=generator)).sum().backward()
    assert sample[~logits.isfinite()].tolist() == [0.0] * 3
    assert sample[1, 2] == 1
    assert logits.grad.isfinite().all()
    assert logits.grad[~logits.isfinite()].tolist() == [0.0] * 3


def test_a_row_without_live_candidates_is_refused():
    logits = torch.tensor([[0.0, 1.0], [-math.inf, -math.inf]])
    for sample in (softmax, lambda x: gumbel_softmax(x, 1.0)):
        with pytest.raises(ValueError, match="at least one left per row"):
            sample(logits)


def test_one_candidate_has_weight_one_and_no_gradient(generator):
    logits = torch.randn(100, 1, generator=generator, requires_grad=True)
    sample = gumbel_softmax(logits, 0.3, generator)
    sample.sum().backward()
    assert sample.tolist() == [[1.0]] * 100
    assert not logits.grad.any()


def test_half_logits_give_single_precision(generator):
    for dtype in (torch.float16, torch.bfloat16):
        sample = gumbel_softmax(torch.zeros(10_000, 8, dtype=dtype), 0.1, generator)
        assert sample.dtype == torch.float32
        assert sample.isfinite().all()


def test_the_variance_of_the_gradient_grows_as_one_over_a_small_temperature(generator):
    """The gradient of r @ y lives on near ties, which have probability of order tau, and is of order 1 / tau there."""
    temperatures = [0.1, 0.05, 0.025]
    reward = torch.linspace(-1, 1, 8)
    variances = []
    for tau in temperatures:
        logits = torch.zeros(400_000, 8, requires_grad=True)
        (gumbel_softmax(logits, tau, generator) @ reward).sum().backward()
        variances.append(logits.grad[:, 0].double().var().log())
    slope = (variances[-1] - variances[0]) / math.log(temperatures[-1] / temperatures[0])
    # A share tau of 400,000 rows decides the variance: 1% at tau .025, 1% / ln 4 of the slope, times five; the
    # correction to the power law is of relative order tau, up to .1 / ln 4.
    assert slope.item() == pytest.approx(-1, abs=0.036 + 0.072)


def test_entropies_have_their_closed_forms():
    p = torch.tensor(0.3, dtype=torch.float64)
    tables = torch.stack([torch.full((4,), 0.25), torch.eye(4)[2], torch.tensor([0.5, 0.5, 0, 0])]).double()
    assert entropy(tables).tolist() == pytest.approx([math.log(4), 0, math.log(2)], abs=1e-15)
    assert entropy(torch.stack([p, 1 - p])).item() == pytest.approx(-0.3 * math.log(0.3) - 0.7 * math.log(0.7))


def test_the_gradient_of_the_entropy_is_right_and_zero_where_masked():
    """dH/dlogits = -p (log p + H); a masked candidate leaves the others theirs."""
    live = torch.tensor([0.3, -1.0, 0.7], dtype=torch.float64)
    logits = torch.cat([live, torch.tensor([-math.inf])]).requires_grad_()
    entropy(softmax(logits)).backward()
    p = live.softmax(-1)
    expected = -p * (p.log() - (p * p.log()).sum())
    # A few roundings of numbers of order one.
    torch.testing.assert_close(logits.grad, torch.cat([expected, torch.zeros(1)]), rtol=1e-14, atol=1e-15)


def test_the_entropy_of_a_certain_decision_has_a_finite_gradient():
    logits = torch.tensor([0.0, -200.0, -math.inf], requires_grad=True)  # exp(-200) is 0 in float32
    entropy(softmax(logits)).backward()
    assert logits.grad.tolist() == [0.0] * 3


def test_a_learned_temperature_has_a_finite_gradient_beside_a_masked_candidate(generator):
    logits = torch.tensor([[0.5, -math.inf, 0.2]], dtype=torch.float64, requires_grad=True)
    temperature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    (gumbel_softmax(logits, temperature, generator) @ torch.tensor([1.0, 2.0, 3.0]).double()).sum().backward()
    assert logits.grad.isfinite().all()
    assert temperature.grad.isfinite()
    assert temperature.grad != 0
