"""Hard Concrete gates: frequencies of zeros and ones, gradients, the published gate of test time."""

import math

import pytest
import torch
from scipy import integrate, special, stats

from nas.estimators.gates import deterministic_gate, hard_concrete, l0_penalty, open_probability
from nas.randomness import generator as keyed

SETTINGS = [(-1.5, 2 / 3, -0.1, 1.1), (0.0, 2 / 3, -0.1, 1.1), (2.0, 0.3, -0.5, 1.2)]


def _above(t, log_alpha, temperature, gamma, zeta):
    """P(stretched gate > t): the noise is above temperature * logit((t - gamma) / (zeta - gamma)) - log_alpha."""
    return special.expit(log_alpha - temperature * special.logit((t - gamma) / (zeta - gamma)))


def _mean(*setting):
    """E z = integral of P(z > t) over [0, 1]."""
    return integrate.quad(_above, 0, 1, args=setting, epsabs=1e-12)[0]


@pytest.mark.parametrize("setting", SETTINGS)
def test_zeros_and_ones_are_literal_and_as_frequent_as_the_law_says(setting):
    log_alpha, *rest = setting
    count = 200_000
    z = hard_concrete(torch.full((count,), log_alpha, dtype=torch.float64), *rest, keyed(0))
    assert z.min() == 0
    assert z.max() == 1
    closed, opened = 1 - _above(0.0, *setting), _above(1.0, *setting)
    found = [(z == 0).sum().item(), (z == 1).sum().item()]
    found.append(count - sum(found))
    expected = [count * p for p in (closed, opened, 1 - closed - opened)]
    assert stats.chisquare(found, expected).pvalue > 1e-4
    assert open_probability(torch.tensor(log_alpha, dtype=torch.float64), *rest).item() == pytest.approx(1 - closed)


@pytest.mark.parametrize("setting", SETTINGS)
def test_gates_between_zero_and_one_have_their_law(setting):
    log_alpha, *rest = setting
    z = hard_concrete(torch.full((100_000,), log_alpha, dtype=torch.float64), *rest, keyed(1))
    inside = z[(z > 0) & (z < 1)].numpy()
    low, high = _above(0.0, *setting), _above(1.0, *setting)
    assert stats.kstest(inside, lambda t: (low - _above(t, *setting)) / (low - high)).pvalue > 1e-4


def _has_the_means_gradient(sample, setting, function, expectation):
    """Within four standard errors; the truth is a central difference of a quadrature, right to 1e-8."""
    log_alpha, *rest = setting
    logits = torch.full((200_000,), log_alpha, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(function(sample(logits, *rest, keyed(2))).sum(), logits)
    truth = (expectation(log_alpha + 1e-4, *rest) - expectation(log_alpha - 1e-4, *rest)) / 2e-4
    return abs(gradient.mean().item() - truth) < 4 * gradient.std().item() / math.sqrt(len(logits)) + 1e-8


def _mean_square(*setting):
    """E z^2 = integral of 2 t P(z > t)."""
    return integrate.quad(lambda t: 2 * t * _above(t, *setting), 0, 1, epsabs=1e-12)[0]


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_mean_gradient_is_that_of_the_mean(setting):
    assert _has_the_means_gradient(hard_concrete, setting, lambda z: z, _mean)
    assert _has_the_means_gradient(hard_concrete, setting, torch.square, _mean_square)


def _unclipped(logits, temperature, gamma, zeta, generator):
    u = torch.rand(logits.shape, generator=generator, dtype=logits.dtype)
    return ((u.logit(1e-12) + logits) / temperature).sigmoid() * (zeta - gamma) + gamma


def _clipped_straight_through(logits, temperature, gamma, zeta, generator):
    z = _unclipped(logits, temperature, gamma, zeta, generator)
    return z.clamp(0, 1).detach() + z - z.detach()


def _without_temperature(logits, temperature, gamma, zeta, generator):
    return hard_concrete(logits, 1.0, gamma, zeta, generator)


@pytest.mark.parametrize("wrong", [_unclipped, _clipped_straight_through, _without_temperature])
@pytest.mark.parametrize("setting", SETTINGS)
def test_wrong_gates_do_not_have_that_gradient(wrong, setting):
    assert not _has_the_means_gradient(wrong, setting, torch.square, _mean_square)


def test_the_gradient_for_given_noise_is_the_numerical_one():
    logits = torch.linspace(-3, 3, 20, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: hard_concrete(x, 0.5, generator=keyed(3)), logits)
    assert torch.autograd.gradcheck(open_probability, logits)
    assert torch.autograd.gradcheck(l0_penalty, logits)
    assert torch.autograd.gradcheck(deterministic_gate, logits)


def test_a_closed_and_an_open_gate_have_no_gradient(generator):
    logits = torch.zeros(10_000, requires_grad=True)
    z = hard_concrete(logits, generator=generator)
    (gradient,) = torch.autograd.grad(z.sum(), logits)
    clipped = (z == 0) | (z == 1)
    assert clipped.any()
    assert not gradient[clipped].any()
    assert gradient[~clipped].all()


def test_the_gate_of_test_time_is_the_published_one_and_not_the_mean():
    logits = torch.tensor([-5.0, 0.0, 1.0, 5.0], dtype=torch.float64)
    s = 1 / (1 + (-logits).exp())
    torch.testing.assert_close(deterministic_gate(logits), (1.2 * s - 0.1).clamp(0, 1))
    assert deterministic_gate(logits)[[0, 3]].tolist() == [0.0, 1.0]
    means = torch.tensor([_mean(x, 2 / 3, -0.1, 1.1) for x in logits.tolist()])
    assert ((means > 0) & (means < 1)).all()
    assert (means - deterministic_gate(logits)).abs().max() > 0.01


def test_the_penalty_is_the_expected_number_of_open_gates(generator):
    logits = torch.linspace(-2, 2, 6, dtype=torch.float64)
    count = 50_000
    opened = (hard_concrete(logits.expand(count, 6), generator=generator) > 0).double().sum(-1)
    error = 4 * opened.std().item() / math.sqrt(count)
    assert l0_penalty(logits).item() == pytest.approx(opened.mean().item(), abs=error)
    assert l0_penalty(logits).shape == ()


def test_a_masked_gate_is_closed_without_gradient_and_an_infinite_one_open(generator):
    logits = torch.tensor([-math.inf, math.inf, 0.3], requires_grad=True)
    for z in (hard_concrete(logits, generator=generator), deterministic_gate(logits), open_probability(logits)):
        assert z[:2].tolist() == [0.0, 1.0]
        (gradient,) = torch.autograd.grad(z.sum(), logits)
        assert gradient[:2].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("temperature", [1e-3, 1e-10, 1e-30])
def test_small_temperatures_are_finite(temperature, generator):
    logits = torch.randn(10_000, generator=generator).requires_grad_()
    z = hard_concrete(logits, temperature, generator=generator)
    (gradient,) = torch.autograd.grad(z.sum(), logits)
    assert z.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_logits_give_single_precision(dtype, generator):
    logits = torch.zeros(100_000, dtype=dtype)
    z = hard_concrete(logits, generator=generator)
    assert z.dtype == open_probability(logits).dtype == deterministic_gate(logits).dtype == torch.float32
    assert z.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
        ({"temperature": math.nan}, "temperature must be positive and finite, got nan"),
        ({"gamma": 0.0}, "gamma must be negative and finite, got 0.0"),
        ({"zeta": 1.0}, "zeta must be above 1 and finite, got 1.0"),
        ({"zeta": math.nan}, "zeta must be above 1 and finite, got nan"),
    ],
)
def test_a_setting_out_of_its_range_is_refused(settings, message):
    for function in (hard_concrete, open_probability, l0_penalty):
        with pytest.raises(ValueError, match=message):
            function(torch.zeros(3), **settings)


def test_a_logit_that_is_no_number_is_refused():
    for function in (hard_concrete, open_probability, l0_penalty, deterministic_gate):
        with pytest.raises(ValueError, match="log_alpha must be numbers"):
            function(torch.tensor([0.0, math.nan]))
