"""Reparameterised samples: laws, gradients of moments, limits of floating point, and what a path cannot see."""

import math

import pytest
import torch
from scipy import optimize, special, stats

from nas.estimators.continuous import (
    beta,
    dirichlet,
    exponential,
    gamma,
    gumbel,
    implicit,
    laplace,
    logistic,
    normal,
    normal_mixture,
    student_t,
)
from nas.randomness import generator as keyed

EULER = 0.5772156649015329
MIXTURE = ([0.3, -0.5, 0.0], [-1.0, 0.5, 3.0], [0.5, 1.0, 0.3])


def double(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _square(z):
    return z**2


def _dirichlet_moment(a):
    """The expectation of `_entries`: E x_i^2 = a_i (a_i + 1) / (s (s + 1)) and E x_i x_j = a_i a_j / (s (s + 1))."""
    return (a[0] * (a[0] + 1) + 2 * a[1] * (a[1] + 1) + 3 * a[0] * a[2]) / (a.sum() * (a.sum() + 1))


def _entries(x):
    return x[..., 0] ** 2 + 2 * x[..., 1] ** 2 + 3 * x[..., 0] * x[..., 2]


MOMENTS = {
    "normal": (normal, [0.7, 1.3], _square, lambda m, s: m**2 + s**2),
    "logistic": (logistic, [0.7, 1.3], _square, lambda m, s: m**2 + s**2 * math.pi**2 / 3),
    "laplace": (laplace, [0.7, 1.3], _square, lambda m, b: m**2 + 2 * b**2),
    "exponential": (exponential, [1.7], lambda z: z, lambda rate: 1 / rate),
    "exponential square": (exponential, [1.7], _square, lambda rate: 2 / rate**2),
    "gumbel": (gumbel, [0.7, 1.3], _square, lambda m, b: (m + EULER * b) ** 2 + math.pi**2 * b**2 / 6),
    "gamma": (gamma, [2.5, 1.5], _square, lambda a, rate: a * (a + 1) / rate**2),
    "gamma small": (gamma, [0.05, 1.5], _square, lambda a, rate: a * (a + 1) / rate**2),
    "gamma log": (gamma, [0.7, 1.5], torch.log, lambda a, rate: torch.digamma(a) - rate.log()),
    "gamma large": (gamma, [300.0, 1.5], _square, lambda a, rate: a * (a + 1) / rate**2),
    "beta": (beta, [2.0, 0.6], _square, lambda a, b: a * (a + 1) / ((a + b) * (a + b + 1))),
    "beta small": (beta, [0.02, 0.05], _square, lambda a, b: a * (a + 1) / ((a + b) * (a + b + 1))),
    "beta tiny": (beta, [1e-3, 1e-3], _square, lambda a, b: a * (a + 1) / ((a + b) * (a + b + 1))),
    "dirichlet": (dirichlet, [[1.5, 0.3, 4.0]], _entries, _dirichlet_moment),
    "dirichlet small": (dirichlet, [[0.02, 0.01, 0.03]], _entries, _dirichlet_moment),
    "student": (student_t, [12.0, 0.7, 1.3], _square, lambda nu, m, s: m**2 + s**2 * nu / (nu - 2)),
    "mixture": (normal_mixture, MIXTURE, _square, lambda x, m, s: (x.softmax(-1) * (m**2 + s**2)).sum()),
}


def _has_the_moments_gradient(sample, values, function, moment, draws=200_000):
    """Compares the mean gradient of f(z) with that of its closed form, parameter by parameter.

    Within four standard errors (of a right gradient one component in 16,000 is not), and the two parts in a thousand
    to which torch computes the gradients of Gamma and Dirichlet samples.
    """
    parameters = [double(value).requires_grad_() for value in values]
    copies = [parameter.detach().expand(draws, *parameter.shape).clone().requires_grad_() for parameter in parameters]
    z = sample(*copies, keyed(0))
    gradients = torch.autograd.grad(function(z).sum(), copies)
    expected = torch.autograd.grad(moment(*parameters), parameters)
    return all(
        bool(((gradient.mean(0) - truth).abs() < 4 * gradient.std(0) / math.sqrt(draws) + 2e-3 * truth.abs()).all())
        for gradient, truth in zip(gradients, expected, strict=True)
    )


@pytest.mark.parametrize("law", MOMENTS)
def test_the_mean_gradient_is_that_of_the_moment(law):
    assert _has_the_moments_gradient(*MOMENTS[law])


@pytest.mark.parametrize("law", ["normal", "logistic", "laplace"])
def test_the_gradient_of_the_second_moment_is_the_known_table(law):
    sample, values, _, moment = MOMENTS[law]
    location, scale = (double(value).requires_grad_() for value in values)
    factor = {"normal": 2, "logistic": 2 * math.pi**2 / 3, "laplace": 4}[law]
    expected = [2 * location.item(), factor * scale.item()]
    gradients = torch.autograd.grad(moment(location, scale), (location, scale))
    assert [gradient.item() for gradient in gradients] == pytest.approx(expected)
    assert sample(location, scale, keyed(0)).requires_grad


def _wrong_laplace(location, scale, generator):
    u = torch.rand(location.shape, generator=generator, dtype=location.dtype)  # on (0, 1), not (-1/2, 1/2)
    return location - scale * u.sign() * (1 - 2 * u).abs().log()


def _flipped_mixture(logits, means, deviations, generator):
    z = normal_mixture(logits, means, deviations, generator)
    return z.detach() + (z.detach() - z)


def _chosen_path(logits, means, deviations, generator):
    """Follows the path of the chosen component: the logits get nothing."""
    chosen = torch.distributions.Categorical(logits=logits).sample()[:, None]
    return normal(means.gather(-1, chosen)[:, 0], deviations.gather(-1, chosen)[:, 0], generator) + 0 * logits.sum()


def _undetached_mixture(logits, means, deviations, generator):
    """Counts the path of the chosen component and the implicit gradient, both."""
    z = normal_mixture(logits, means, deviations, generator)
    return z + (means - means.detach()).mean(-1)


def _undetached_gamma(concentration, rate, generator):
    z = gamma(concentration, rate, generator)
    return z + z * (concentration - concentration.detach()) / concentration.detach()


@pytest.mark.parametrize(
    ("law", "wrong"),
    [
        ("laplace", _wrong_laplace),
        ("mixture", _flipped_mixture),
        ("mixture", _chosen_path),
        ("mixture", _undetached_mixture),
        ("gamma", _undetached_gamma),
        ("gamma", lambda a, rate, generator: gamma(a.detach(), rate, generator) + 0 * a),
        ("student", lambda nu, m, s, generator: student_t(nu.detach(), m, s, generator) + 0 * nu),
        ("beta tiny", lambda a, b, generator: torch.distributions.Beta(a, b).rsample()),
    ],
    ids=["u in (0, 1)", "flipped", "chosen path", "twice", "twice", "no shape", "no freedom", "underflow"],
)
def test_wrong_samples_do_not_have_that_gradient(law, wrong):
    torch.manual_seed(0)
    assert not _has_the_moments_gradient(wrong, *MOMENTS[law][1:])


def _mixture_cdf(z):
    weights, means, deviations = double(MIXTURE[0]).softmax(-1).numpy(), *map(double, MIXTURE[1:])
    standard = (z[:, None] - means.numpy()) / deviations.numpy()
    return (weights * stats.norm.cdf(standard)).sum(-1)


LAWS = {
    "normal": (normal, [0.7, 1.3], stats.norm(0.7, 1.3).cdf),
    "logistic": (logistic, [0.7, 1.3], stats.logistic(0.7, 1.3).cdf),
    "laplace": (laplace, [0.7, 1.3], stats.laplace(0.7, 1.3).cdf),
    "exponential": (exponential, [1.7], stats.expon(scale=1 / 1.7).cdf),
    "gumbel": (gumbel, [0.7, 1.3], stats.gumbel_r(0.7, 1.3).cdf),
    "gamma": (gamma, [2.5, 1.5], stats.gamma(2.5, scale=1 / 1.5).cdf),
    "gamma small": (gamma, [0.1, 1.5], stats.gamma(0.1, scale=1 / 1.5).cdf),
    "student": (student_t, [3.0, 0.7, 1.3], stats.t(3.0, 0.7, 1.3).cdf),
    "student heavy": (student_t, [0.5, 0.7, 1.3], stats.t(0.5, 0.7, 1.3).cdf),
    "beta": (beta, [2.0, 0.6], stats.beta(2.0, 0.6).cdf),
    "beta small": (beta, [0.1, 0.2], stats.beta(0.1, 0.2).cdf),
    "mixture": (normal_mixture, MIXTURE, _mixture_cdf),
}


@pytest.mark.parametrize("law", LAWS)
def test_samples_have_their_law(law):
    """At this seed the p-value is above 1e-4, which one right sample in ten thousand would miss."""
    sample, values, cdf = LAWS[law]
    z = sample(*(double(value).expand(50_000, *double(value).shape) for value in values), keyed(1))
    assert stats.kstest(z.numpy(), cdf).pvalue > 1e-4


def test_dirichlet_samples_have_beta_marginals_and_sum_to_one():
    a = [1.5, 0.3, 0.1]
    x = dirichlet(double(a).expand(50_000, 3), keyed(1))
    torch.testing.assert_close(x.sum(-1), torch.ones(50_000, dtype=torch.float64))
    for i in range(3):
        assert stats.kstest(x[:, i].numpy(), stats.beta(a[i], sum(a) - a[i]).cdf).pvalue > 1e-4


def test_tiny_concentrations_give_vertices_in_proportion(generator):
    a = torch.tensor([1e-5, 2e-5, 3e-5])
    x = dirichlet(a.expand(60_000, 3), generator)
    counts = x.round().sum(0).double()
    assert stats.chisquare(counts, 60_000 * a.double() / a.double().sum()).pvalue > 1e-4
    # Two entries are above .01 only if their logarithms, of scale 1 / a, are within 5: probability of order 5 * 6e-5.
    assert (x.amax(-1) > 0.99).float().mean() > 0.998


@pytest.mark.parametrize("law", ["normal", "logistic", "laplace", "exponential", "gumbel"])
def test_the_gradient_for_given_noise_is_the_numerical_one(law):
    sample, values, *_ = LAWS[law]
    parameters = [double(value).expand(20).clone().requires_grad_() for value in values]
    assert torch.autograd.gradcheck(lambda *p: sample(*p, keyed(2)), parameters)


def test_the_gradient_of_a_rate_a_location_and_a_scale_is_the_numerical_one():
    """A concentration moves the rejections of its sampler, so its draws are not a function of it for a given seed."""
    a, one = double([0.3, 2.0, 30.0]), double([1.0, 0.5, 2.0])
    positive = one.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda rate: gamma(a, rate, keyed(2)), positive)
    location = double([0.3, -1.0, 2.0]).requires_grad_()
    assert torch.autograd.gradcheck(lambda m, s: student_t(a, m, s, keyed(2)), (location, positive))


@pytest.mark.parametrize("a", [0.05, 0.7, 3.0, 40.0])
def test_a_concentrations_gradient_is_the_implicit_one(a):
    """dz/da = -(dF/da) / p, with dF/da as a central difference of scipy's F."""
    concentration = torch.full((200,), a, dtype=torch.float64, requires_grad=True)
    step = 1e-4 * a
    z = gamma(concentration, torch.ones_like(concentration), keyed(3))
    (found,) = torch.autograd.grad(z.sum(), concentration)
    at = z.detach().numpy()
    slope = (special.gammainc(a + step, at) - special.gammainc(a - step, at)) / (2 * step)
    # torch approximates to 1e-3; where z underflows there is nothing to compare.
    live = at > 1e-200
    torch.testing.assert_close(found[live], torch.tensor(-slope / stats.gamma.pdf(at, a))[live], rtol=2e-3, atol=1e-9)

    b = 0.8
    x = beta(concentration, torch.full_like(concentration, b), keyed(3))
    (found,) = torch.autograd.grad(x.sum(), concentration)
    at = x.detach().numpy()
    slope = (special.betainc(a + step, b, at) - special.betainc(a - step, b, at)) / (2 * step)
    live = (at > 1e-200) & (at < 1 - 1e-6)
    torch.testing.assert_close(found[live], torch.tensor(-slope / stats.beta.pdf(at, a, b))[live], rtol=3e-3, atol=1e-9)


def test_the_freedom_of_a_heavy_tailed_student_has_the_gradient_of_its_characteristic_function():
    """E cos(w t) = K_h(sqrt(nu) w) (sqrt(nu) w)^h / (Gamma(h) 2^(h - 1)), h = nu / 2; no moment exists at nu = 1.5."""

    def expectation(nu, w=0.8):
        return special.kv(nu / 2, nu**0.5 * w) * (nu**0.5 * w) ** (nu / 2) / special.gamma(nu / 2) / 2 ** (nu / 2 - 1)

    count, truth = 400_000, (expectation(1.5 + 1e-5) - expectation(1.5 - 1e-5)) / 2e-5
    nu = torch.full((count,), 1.5, dtype=torch.float64, requires_grad=True)
    z = student_t(nu, torch.zeros_like(nu), torch.ones_like(nu), keyed(0))
    (gradient,) = torch.autograd.grad(torch.cos(0.8 * z).sum(), nu)
    error = 4 * gradient.std().item() / math.sqrt(count) + 1e-3 * abs(truth)
    assert gradient.mean().item() == pytest.approx(truth, abs=error)


def test_the_implicit_gradient_of_a_normal_is_its_pathwise_one():
    mean, deviation = double([0.3, -1.0, 2.0]).requires_grad_(), double([0.5, 1.0, 3.0]).requires_grad_()
    draws = normal(mean, deviation, keyed(0))
    z = implicit(draws, lambda z: torch.special.ndtr((z - mean) / deviation))
    assert torch.equal(z, draws)
    v = double([1.0, -2.0, 0.5])
    expected = torch.autograd.grad((draws * v).sum(), (mean, deviation))
    torch.testing.assert_close(torch.autograd.grad((z * v).sum(), (mean, deviation)), expected, rtol=1e-12, atol=0)


def test_the_implicit_gradient_of_a_mixture_is_that_of_its_quantiles():
    """A draw's rank F(z) is held, so z moves as the quantile of that rank, found here by bisection."""
    parameters = [double(value).requires_grad_() for value in MIXTURE]
    z = normal_mixture(*(p.expand(1, 3) for p in parameters), keyed(4)).squeeze(0)
    found = torch.autograd.grad(z, parameters)

    def cdf(x, values):
        weights, means, deviations = double(values).reshape(3, 3).numpy()
        return (special.softmax(weights) * stats.norm.cdf((x - means) / deviations)).sum()

    start = [value for row in MIXTURE for value in row]
    rank, step = cdf(z.item(), start), 1e-4
    for i, gradient in enumerate(torch.cat(found).tolist()):
        ends = []
        for sign in (1, -1):
            moved = [value + sign * step * (i == j) for j, value in enumerate(start)]
            ends.append(optimize.brentq(lambda x, m=moved: cdf(x, m) - rank, -10, 10, xtol=1e-13))
        assert gradient == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("sigmas", [-8.0, 8.0])
def test_a_mixture_keeps_the_digits_of_its_tails(sigmas, monkeypatch):
    """At 8 deviations F is 1 within float32, but the gradients agree with float64's to a few roundings of z^2 / 2."""
    monkeypatch.setattr(torch, "randn", lambda shape, dtype, **_: torch.full(shape, sigmas, dtype=dtype))
    found = []
    for dtype in (torch.float32, torch.float64):
        parameters = [
            torch.tensor(value, dtype=dtype).requires_grad_() for value in ([0.0, -20.0], [0.0, 1.0], [1.0, 1.5])
        ]
        found.append(torch.autograd.grad(normal_mixture(*parameters, keyed(0)), parameters))
    for single, exact in zip(*found, strict=True):
        torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-5)


def test_a_cdf_that_does_not_increase_is_refused():
    with pytest.raises(ValueError, match="cdf must increase at every sample, got a slope of -1"):
        implicit(torch.tensor([0.5]), lambda z: 1 - z)
    with pytest.raises(ValueError, match="got a slope of 0"):
        implicit(torch.tensor([0.5, 2.0]), lambda z: z.clamp(0, 1))
    with pytest.raises(ValueError, match="got a slope of nan"):
        implicit(torch.tensor([0.5]), lambda z: z * math.nan)


def test_a_masked_component_is_never_drawn_and_has_no_gradient(generator):
    logits = torch.tensor([0.0, -math.inf, 1.0]).requires_grad_()
    means, deviations = torch.tensor([0.0, 50.0, 1.0]).requires_grad_(), torch.ones(3).requires_grad_()
    z = normal_mixture(logits.expand(10_000, 3), means, deviations, generator)
    gradients = torch.autograd.grad(z.sum(), (logits, means, deviations))
    assert z.max() < 10
    assert all(gradient.isfinite().all() and gradient[1] == 0 for gradient in gradients)


def test_one_component_is_a_normal_without_gradient_to_its_logit(generator):
    logits, means = torch.zeros(100, 1, requires_grad=True), torch.zeros(100, 1, requires_grad=True)
    z = normal_mixture(logits, means, torch.ones(1), generator)
    gradients = torch.autograd.grad(z.sum(), (logits, means))
    assert not gradients[0].any()
    # One number over itself, computed twice: in the gradient and as the density.
    torch.testing.assert_close(gradients[1], torch.ones(100, 1))


def test_torch_normal_has_no_gradient_and_does_not_say_so(generator):
    mean, deviation = torch.zeros(5, requires_grad=True), torch.ones(5, requires_grad=True)
    for sample, expected in (
        (torch.normal(mean, deviation, generator=generator), False),
        (normal(mean, deviation), True),
    ):
        loss = (sample**2).sum() + (mean + deviation).sum()  # any other path to the parameters hides the missing one
        gradients = torch.autograd.grad(loss, (mean, deviation))
        assert all((gradient != 1).any().item() is expected for gradient in gradients)


def _pathwise_and_score(function, mean, draws=10**6):
    mean = torch.full((draws,), mean, dtype=torch.float64, requires_grad=True)
    z = normal(mean, torch.ones_like(mean), keyed(0))
    values = function(z)
    (pathwise,) = torch.autograd.grad(values.sum(), mean)
    return pathwise, (values * (z - mean)).detach()


def test_the_path_of_a_step_function_has_no_gradient_where_the_score_has_the_truth():
    """d/dm P(z > 0) is the normal density at m; on the path the step is flat wherever it is differentiable."""
    pathwise, score = _pathwise_and_score(lambda z: (z.sign() + 1) / 2, 0.4)
    assert not pathwise.any()
    error = 4 * score.std().item() / 1e3
    assert score.mean().item() == pytest.approx(stats.norm.pdf(0.4), abs=error)


@pytest.mark.parametrize("w", [0.3, 10.0])
def test_a_path_is_quieter_for_a_slow_function_and_louder_for_a_fast_one(w):
    """For cos(w z), z ~ N(0, 1): w^2 (1 - e^(-2 w^2)) / 2 against 1/2 + (1 - 4 w^2) e^(-2 w^2) / 2.

    That is .0074 and .767 at w = .3, and 50 and .50 at w = 10.
    """
    variances = [gradient.var().item() for gradient in _pathwise_and_score(lambda z: torch.cos(w * z), 0.0)]
    decay = math.exp(-2 * w**2)
    expected = [w**2 * (1 - decay) / 2, (1 + (1 - 4 * w**2) * decay) / 2]
    # The kurtosis of these is below 4, so a variance's relative error is below sqrt(3 / 10^6); five of those.
    assert variances == pytest.approx(expected, rel=0.009)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_draws_are_finite_and_single_precision_at_least(law, dtype, generator):
    sample, values, _ = LAWS[law]
    parameters = [torch.tensor(value, dtype=dtype) for value in values]
    z = sample(*(p.expand(100_000, *p.shape) for p in parameters), generator)
    assert z.dtype == torch.float32
    assert z.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("a", [1e-8, 1e-3, 1.0, 1e4])
def test_gradients_of_a_dirichlet_are_finite_at_vertices_and_for_any_concentration(a, dtype, generator):
    concentration = torch.full((10_000, 4), a, dtype=dtype, requires_grad=True)
    x = dirichlet(concentration, generator)
    (gradient,) = torch.autograd.grad((x * torch.arange(4)).sum(), concentration)
    assert x.isfinite().all()
    assert gradient.isfinite().all()
    assert a > 1e-3 or (x == 0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ends", [0.0, 1.0])
def test_location_scale_noise_is_finite_at_the_ends_of_a_uniform(ends, dtype, monkeypatch):
    def end(shape, dtype, **_):
        return torch.full(shape, ends * (1 - torch.finfo(dtype).eps / 2), dtype=dtype)

    monkeypatch.setattr(torch, "rand", end)
    zero, one = torch.zeros(3, dtype=dtype), torch.ones(3, dtype=dtype)
    for z in (logistic(zero, one), laplace(zero, one), exponential(one)):
        assert z.isfinite().all()


def test_the_noise_has_the_broadcast_shape_of_the_parameters(generator):
    column, row = torch.zeros(4, 1), torch.ones(3)
    for sample in (normal, logistic, laplace, gumbel):
        assert len(sample(column, row, generator).unique()) == 12
    assert gamma(column + 1, row, generator).shape == (4, 3)
    assert beta(column + 1, row, generator).shape == (4, 3)
    assert student_t(column + 1, torch.zeros(()), row, generator).shape == (4, 3)
    assert normal_mixture(torch.zeros(3), torch.zeros(4, 1), torch.ones(()), generator).shape == (4,)


def test_draws_are_a_function_of_their_generator():
    for sample, values, _ in LAWS.values():
        draws = [sample(*map(double, values), keyed(seed)) for seed in (1, 1, 2)]
        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(
    ("sample", "values", "message"),
    [
        (normal, [0.0, 0.0], "deviation must be positive and finite, got 0.0"),
        (normal, [math.nan, 1.0], "mean must be finite, got nan"),
        (logistic, [0.0, -1.0], "scale must be positive and finite, got -1.0"),
        (laplace, [math.inf, 1.0], "location must be finite, got inf"),
        (exponential, [math.inf], "rate must be positive and finite, got inf"),
        (gumbel, [0.0, math.nan], "scale must be positive and finite, got nan"),
        (gamma, [-0.5, 1.0], "concentration must be positive and finite, got -0.5"),
        (gamma, [0.5, 0.0], "rate must be positive"),
        (student_t, [0.0, 0.0, 1.0], "freedom must be positive"),
        (beta, [0.0, 1.0], "concentration1 must be positive"),
        (beta, [1.0, 0.0], "concentration0 must be positive"),
        (dirichlet, [[1.0, 0.0]], "concentration must be positive and finite, got 0.0"),
        (normal_mixture, [[0.0], [0.0], [0.0]], "deviations must be positive"),
        (normal_mixture, [[0.0], [math.nan], [1.0]], "means must be finite"),
        (normal_mixture, [[-math.inf], [0.0], [1.0]], "at least one left per row"),
    ],
)
def test_a_parameter_out_of_its_range_is_refused(sample, values, message):
    with pytest.raises(ValueError, match=message):
        sample(*map(torch.tensor, values))
