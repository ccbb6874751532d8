"""Hard samples with surrogate gradients: exact means by enumeration, for polynomials of known degree; variances.

Given the sample (and the partner), the gradients of `straight_through_softmax`, `reinmax` and `pair_reinmax` are
constants, so a table of them, read off enough rows, gives means and variances without error.
"""

import itertools
import math

import pytest
import torch
from scipy import stats

from nas.estimators import (
    conditional_gumbel,
    gumbel_max,
    gumbel_noise,
    gumbel_rao,
    pair_reinmax,
    reinmax,
    straight_through_gumbel_softmax,
    straight_through_softmax,
)
from nas.randomness import generator as keyed

LOGITS = torch.tensor([0.4, -0.9, 1.0, 0.0], dtype=torch.float64)
PI = LOGITS.softmax(-1)
EYE = torch.eye(4, dtype=torch.float64)
MIX = torch.randn(4, 4, generator=keyed(9), dtype=torch.float64)
SIGNIFICANT = 1e-3  # of a test of distribution: right code fails it for one seed in a thousand
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def linear(d):
    return d @ MIX[0] + 3


def quadratic(d):
    return ((d @ MIX) * d).sum(-1) + 2 * (d @ MIX[1]) - 1


def cubic(d):
    return (d @ MIX[2]) ** 3 + quadratic(d)


FUNCTIONS = {1: linear, 2: quadratic, 3: cubic}


def exact_gradient(function, logits=LOGITS):
    p, losses = logits.softmax(-1), function(torch.eye(len(logits), dtype=logits.dtype))
    return p * (losses - p @ losses)


def slopes(function):
    """Gradient of f at every one-hot point, (K, K)."""
    points = EYE.clone().requires_grad_()
    return torch.autograd.grad(function(points).sum(), points)[0]


def gradients(estimator, function, count, logits=LOGITS, seed=0):
    """Samples, what comes with them, and gradients of `count` rows."""
    tables = logits.expand(count, -1).clone().requires_grad_()
    found = estimator(tables, generator=keyed(seed))
    sample, *others = found if isinstance(found, tuple) else (found,)
    return sample.detach(), others, torch.autograd.grad(function(sample).sum(), tables)[0]


def by_sample(estimator, function, logits=LOGITS):
    """The gradient for every sample, (K, K)."""
    samples, _, found = gradients(estimator, function, 500, logits)
    table = torch.stack([found[samples[:, k] == 1][0] for k in range(4)])
    assert torch.equal(samples @ table, found), "the gradient is a function of the sample"
    return table


def by_pair(function, logits=LOGITS):
    """Pair-ReinMax's gradient for every sample and partner, (K, K, K), with the pairs' probabilities, (K, K)."""
    samples, (partners,), found = gradients(pair_reinmax, function, 5000, logits)
    table = torch.zeros(4, 4, 4, dtype=torch.float64)
    for i, j in itertools.permutations(range(4), 2):
        table[i, j] = found[(samples[:, i] * partners[:, j]) == 1][0]
    assert torch.equal(torch.einsum("ni,nj,ijk->nk", samples, partners, table), found)
    p = logits.softmax(-1)
    return table, p[:, None] * (p * (1 - EYE)) / (1 - p)[:, None]


def agrees(found, expected, rtol=1e-12):
    """Sums of tens of terms of order ten at most in float64."""
    return torch.allclose(found, expected, rtol=rtol, atol=1e-13)


def mean_of(estimator, function):
    if estimator is pair_reinmax:
        table, weights = by_pair(function)
        return torch.einsum("ij,ijk->k", weights, table)
    return PI @ by_sample(estimator, function)


def heun(function):
    """The mean of ReinMax, from its formula: sum over i of pi_i/2 sum_j pi_j (v_i - v_j)(e_i - e_j) at z = e_i."""
    v = slopes(function)
    total = torch.zeros(4, dtype=torch.float64)
    for i, j in itertools.product(range(4), repeat=2):
        total += PI[i] * PI[j] / 2 * (v[i, i] - v[i, j]) * (EYE[i] - EYE[j])
    return total


def euler(function):
    """The mean of straight-through: J_pi times the mean slope at the samples."""
    return (torch.diag(PI) - torch.outer(PI, PI)) @ (PI @ slopes(function))


@pytest.mark.parametrize(
    ("estimator", "degree", "formula"),
    [(straight_through_softmax, 1, euler), (reinmax, 2, heun), (pair_reinmax, 2, heun)],
    ids=["straight-through", "reinmax", "pair-reinmax"],
)
@pytest.mark.parametrize("function_degree", [1, 2, 3])
def test_estimators_are_exact_up_to_their_degree_and_not_beyond(estimator, degree, formula, function_degree):
    function = FUNCTIONS[function_degree]
    found = mean_of(estimator, function)
    assert agrees(found, formula(function))
    if function_degree <= degree:
        assert agrees(found, exact_gradient(function))
    else:
        assert not agrees(found, exact_gradient(function), rtol=0.05)


def test_a_flipped_straight_through_is_not_exact_for_linear_functions():
    def flipped(logits, generator):
        soft = logits.softmax(-1)
        return gumbel_max(logits.detach(), generator) + (soft.detach() - soft)

    assert not agrees(mean_of(flipped, linear), exact_gradient(linear), rtol=0.5)


def test_reinmax_is_exact_for_a_function_that_is_quadratic_in_several_decisions():
    """Two tables, with products between them: given one decision, the other's function is quadratic."""
    cross = torch.randn(4, 4, generator=keyed(5), dtype=torch.float64)
    other = torch.tensor([-0.5, 0.2, 1.1, 0.3], dtype=torch.float64)

    def function(a, b):
        return quadratic(a) * 1.5 + (a @ cross * b).sum(-1) + quadratic(b)

    first, second = (x.expand(4000, -1).clone().requires_grad_() for x in (LOGITS, other))
    generator = keyed(6)
    a, b = reinmax(first, generator), reinmax(second, generator)
    found = torch.autograd.grad(function(a, b).sum(), [first, second])
    p, q = PI, other.softmax(-1)
    values = function(EYE[:, None], EYE[None])
    exact = [p * (values @ q - p @ values @ q), q * (p @ values - p @ values @ q)]
    for gradient, expected in zip(found, exact, strict=True):
        mean = torch.zeros(4, dtype=torch.float64)
        for i, j in itertools.product(range(4), repeat=2):
            mean += p[i] * q[j] * gradient[(a[:, i] * b[:, j]) == 1][0]
        assert agrees(mean, expected)


def test_pair_reinmax_has_reinmaxs_mean_given_the_sample():
    for function in FUNCTIONS.values():
        table, weights = by_pair(function)
        given = torch.einsum("ij,ijk->ik", weights / PI[:, None], table)
        assert agrees(given, by_sample(reinmax, function))


def test_pair_reinmaxs_partner_is_drawn_without_the_sample(generator):
    tables = LOGITS.expand(200_000, -1)
    samples, partners = pair_reinmax(tables, generator)
    counts = samples.T @ partners
    off = ~torch.eye(4, dtype=torch.bool)
    assert not counts[~off].any()
    weights = PI[:, None] * PI / (1 - PI)[:, None]
    assert stats.chisquare(counts[off], (200_000 * weights)[off]).pvalue > SIGNIFICANT


def variances(function, logits=LOGITS):
    """Variances of ReinMax and pair-ReinMax, summed over candidates."""
    full, (pair, weights) = by_sample(reinmax, function, logits), by_pair(function, logits)
    p = logits.softmax(-1)
    mean = p @ full
    return p @ (full - mean).square().sum(-1), torch.einsum("ij,ijk->", weights, (pair - mean).square())


def test_pair_reinmax_has_usually_once_and_a_half_to_twice_the_variance_of_reinmax():
    """For four candidates and random quadratics; never less, since ReinMax is its mean over the partners."""
    ratios = []
    for seed in range(60):
        matrix = torch.randn(4, 4, generator=keyed(seed, "variance"), dtype=torch.float64)
        quiet, loud = variances(lambda d, m=matrix: ((d @ m) * d).sum(-1))
        ratios.append(loud / quiet)
    assert min(ratios) >= 1
    assert 1.5 < torch.stack(ratios).median() < 2


def test_pair_reinmax_has_four_times_the_variance_for_a_linear_loss_and_equal_logits():
    """Found by enumeration for any linear loss and any K above 2: the two are not always as close as 1.5 to 2."""
    quiet, loud = variances(linear, torch.zeros(4, dtype=torch.float64))
    assert agrees(loud, 4 * quiet)


def test_pair_reinmax_is_reinmax_for_two_candidates():
    logits, v = torch.tensor([0.3, -0.8], dtype=torch.float64), torch.tensor([2.0, -1.0], dtype=torch.float64)
    for estimator in (reinmax, pair_reinmax):
        samples, _, found = gradients(estimator, lambda d: d @ v, 100, logits)
        other = 1 - samples @ logits.softmax(-1)
        assert agrees(found, other[:, None] / 2 * (v[0] - v[1]) * torch.tensor([1.0, -1.0]).double())


def stgs_of(logits, slope, tau, noise):
    """ST-GS's gradients, written out: J_y v / tau, v the slope at the hard sample. Also returns the samples, (N,)."""
    perturbed = logits + noise
    winner = perturbed.argmax(-1)
    y = (perturbed / tau).softmax(-1)
    v = slope[winner]
    return y * (v - (y * v).sum(-1, keepdim=True)) / tau, winner


def alike(first, second):
    """Whether the means of two sets of draws are within four standard errors."""
    error = (first.var(0) / len(first) + second.var(0) / len(second)).sqrt()
    return bool(((first.mean(0) - second.mean(0)).abs() <= 4 * error).all())


def plain_noise(count, seed=50):
    return -(-torch.rand(count, 4, generator=keyed(seed), dtype=torch.float64).log()).log()


@pytest.mark.parametrize("tau", [0.5, 1.0])
@pytest.mark.parametrize("degree", [2, 3])
def test_st_gs_and_gumbel_rao_have_the_mean_of_an_independent_st_gs(tau, degree):
    function = FUNCTIONS[degree]
    plain, _ = stgs_of(LOGITS, slopes(function), tau, plain_noise(400_000))
    _, _, stgs = gradients(lambda x, generator: straight_through_gumbel_softmax(x, tau, generator), function, 200_000)
    _, _, rao = gradients(lambda x, generator: gumbel_rao(x, tau, 3, generator), function, 100_000)
    assert alike(stgs, plain)
    assert alike(rao, plain)
    assert rao.var(0).sum() < stgs.var(0).sum()


def test_gumbel_rao_given_the_sample_has_st_gss_mean_given_the_sample():
    tau, slope = 0.5, slopes(quadratic)
    plain, winners = stgs_of(LOGITS, slope, tau, plain_noise(400_000))
    samples, _, rao = gradients(lambda x, generator: gumbel_rao(x, tau, 4, generator), quadratic, 100_000)
    for k in range(4):
        assert alike(rao[samples[:, k] == 1], plain[winners == k])


def undetached(logits, tau, draws, generator):
    """Gumbel-Rao, differentiated through its conditional noise: the mistake."""
    hard = gumbel_max(logits.detach(), generator)
    soft = (conditional_gumbel(logits, hard.expand(draws, *hard.shape), generator) / tau).softmax(-1).mean(0)
    return hard + (soft - soft.detach())


def test_gumbel_rao_differentiated_through_its_noise_has_another_mean():
    tau = 0.5
    plain, _ = stgs_of(LOGITS, slopes(quadratic), tau, plain_noise(400_000))
    _, _, wrong = gradients(lambda x, generator: undetached(x, tau, 3, generator), quadratic, 100_000)
    assert not alike(wrong, plain)
    assert (wrong.mean(0) - plain.mean(0)).norm() > 0.3 * plain.mean(0).norm()


def test_gumbel_rao_is_quieter_the_more_draws_it_averages():
    variances = [
        gradients(lambda x, generator, m=m: gumbel_rao(x, 0.5, m, generator), quadratic, 50_000)[2].var(0).sum().item()
        for m in (1, 4, 16)
    ]
    between, within = 4 / 3 * variances[1] - variances[0] / 3, 4 / 3 * (variances[0] - variances[1])
    # Var = between + within / M. Variances of 50,000 draws with a kurtosis of about 10 are known to 7% (five errors).
    assert variances[2] == pytest.approx(between + within / 16, rel=0.1)
    assert variances[0] > 1.5 * variances[2]


@pytest.mark.parametrize("winner", range(4))
def test_the_conditional_winner_stays_the_winner(winner, generator):
    for dtype in (torch.float32, torch.float64):
        logits = torch.tensor([0.4, -20.0, 3.0, 0.0], dtype=dtype)
        draws = conditional_gumbel(logits, torch.eye(4, dtype=dtype)[winner].expand(100_000, -1), generator)
        assert draws.isfinite().all()
        # Two of 100,000 rows of float32 may be ties, to the eye of a rounding.
        assert (draws.amax(-1) == draws[:, winner]).all()


def test_conditional_noise_for_a_random_winner_has_the_unconditional_law(generator):
    """Each margin by Kolmogorov-Smirnov; each pair by chi-square on a grid whose cells are equal if independent."""
    count = 100_000
    hard = gumbel_max(LOGITS.expand(count, -1), generator)
    noise = conditional_gumbel(LOGITS, hard, generator) - (LOGITS - LOGITS.max())
    for k in range(4):
        assert stats.kstest(noise[:, k].numpy(), "gumbel_r").pvalue > SIGNIFICANT
    cells = ((-(-noise).exp()).exp() * 5).long().clamp_max(4)
    for i, j in itertools.combinations(range(4), 2):
        counts = torch.bincount(cells[:, i] * 5 + cells[:, j], minlength=25)
        assert stats.chisquare(counts).pvalue > SIGNIFICANT


@pytest.mark.parametrize("winner", range(4))
def test_conditional_noise_for_a_given_winner_is_what_is_left_after_rejection(winner, generator):
    free = LOGITS - LOGITS.max() + plain_noise(200_000)
    kept = free[free.argmax(-1) == winner]
    drawn = conditional_gumbel(LOGITS, EYE[winner].expand(len(kept), -1), generator)
    for k in range(4):
        assert stats.ks_2samp(drawn[:, k], kept[:, k]).pvalue > SIGNIFICANT
    gaps = [each[:, winner] - each.sort(-1).values[:, 2] for each in (drawn, kept)]
    assert stats.ks_2samp(*gaps).pvalue > SIGNIFICANT


@pytest.mark.parametrize("winner", range(4))
def test_conditional_noise_has_its_numerical_gradient(winner):
    """The second one too: control variates tune their parameters through it."""

    def function(logits):
        # The centre is a constant to the gradient, so it is put back.
        return conditional_gumbel(logits, EYE[winner].expand(3, 4), keyed(7)) + logits.detach().amax()

    logits = LOGITS.clone().requires_grad_()
    assert torch.autograd.gradcheck(function, logits)
    assert torch.autograd.gradgradcheck(function, logits)


def test_conditional_noise_of_a_masked_candidate_is_minus_infinity(generator):
    logits = torch.tensor([[0.5, -math.inf, 0.2], [-math.inf, -math.inf, 3.0]], requires_grad=True)
    hard = gumbel_max(logits.detach().expand(1000, -1, -1), generator)
    draws = conditional_gumbel(logits, hard, generator)
    masked = logits.isinf()
    assert (draws[:, masked] == -math.inf).all()
    assert draws[:, ~masked].isfinite().all()
    found = torch.autograd.grad(draws[:, ~masked].sum(), logits)[0]
    assert found.isfinite().all()
    assert not found[masked].any()


SAMPLERS = {
    "straight-through": straight_through_softmax,
    "gumbel-rao": lambda logits, generator: gumbel_rao(logits, 0.3, 4, generator),
    "reinmax": reinmax,
    "pair-reinmax": lambda logits, generator: pair_reinmax(logits, generator)[0],
}
samplers = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)


@samplers
@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_are_exactly_one_hot_and_of_the_softmax(sampler, dtype, generator):
    logits = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=dtype)
    count = 50_000
    samples = sampler(logits.expand(count, -1).clone().requires_grad_(), generator)
    assert samples.dtype == dtype
    assert set(samples.unique().tolist()) == {0.0, 1.0}
    assert (samples.sum(-1) == 1).all()
    counts = samples.detach().double().sum(0)
    assert stats.chisquare(counts, count * logits.double().softmax(-1)).pvalue > SIGNIFICANT


@samplers
def test_half_gradients_are_rounded_single_ones(sampler):
    v = torch.randn(100, 5, generator=keyed(1)).half()
    logits = torch.randn(100, 5, generator=keyed(0)).half()
    found = []
    for dtype in (torch.float16, torch.float32):
        table = logits.to(dtype).requires_grad_()
        found.append(torch.autograd.grad((sampler(table, keyed(2)) * v.to(dtype)).sum(), table)[0])
    assert found[0].dtype == torch.float16
    # A handful of roundings to half of numbers up to ten.
    torch.testing.assert_close(found[0].float(), found[1], rtol=5e-3, atol=2e-2)


@samplers
def test_a_masked_candidate_is_never_drawn_and_has_no_gradient(sampler, generator):
    logits = torch.tensor([[0.5, -math.inf, 0.2, 0.0], [-math.inf, -math.inf, 3.0, -math.inf]])
    tables = logits.repeat(2000, 1).requires_grad_()
    masked = tables.isinf()
    samples = sampler(tables, generator)
    v = torch.randn(4, 4, generator=keyed(3))[torch.arange(4000) % 4]
    found = torch.autograd.grad((samples * v).sum(), tables)[0]
    assert not samples[masked].any()
    assert (samples.sum(-1) == 1).all()
    assert found.isfinite().all()
    assert not found[masked].any()
    assert not found[1::2].any(), "one live candidate leaves nothing to choose"
    # What is left is the estimate of the smaller table (sums of a few float32 numbers of order ten).
    torch.testing.assert_close(found.sum(-1), torch.zeros(4000), rtol=0, atol=2e-5)


def test_a_masked_candidate_changes_no_mean():
    """As by leaving it out; a mask that is skipped gives another mean."""
    logits = torch.tensor([0.4, -math.inf, 1.0, 0.0], dtype=torch.float64)
    live = logits.isfinite()
    p, v = logits.softmax(-1), MIX[0]
    for estimator in (straight_through_softmax, reinmax):
        samples, _, found = gradients(estimator, linear, 500, logits)
        mean = sum(p[k] * found[samples[:, k] == 1][0] for k in (0, 2, 3))
        assert agrees(mean, p * (v - p @ v))
        assert not agrees(mean[live], exact_gradient(linear, logits.nan_to_num(neginf=0.0))[live], rtol=0.05)


def test_pair_reinmax_has_no_partner_where_one_candidate_is_live(generator):
    logits = torch.tensor([[0.5, -math.inf, 0.2], [-math.inf, -math.inf, 3.0]])
    samples, partners = pair_reinmax(logits.repeat(1000, 1), generator)
    assert (partners[::2].sum(-1) == 1).all()
    assert not (partners * samples).any()
    assert not partners[::2, 1].any()
    assert not partners[1::2].any()
    alone, nobody = pair_reinmax(torch.zeros(5, 1), generator)
    assert alone.tolist() == [[1.0]] * 5
    assert nobody.tolist() == [[0.0]] * 5


def test_pair_reinmaxs_gradient_lives_on_the_pair():
    samples, (partners,), found = gradients(pair_reinmax, cubic, 1000)
    assert not found[(samples + partners) == 0].any()
    assert agrees((found * samples).sum(-1), -(found * partners).sum(-1))


@pytest.mark.parametrize("estimator", [reinmax, lambda x, generator: pair_reinmax(x, generator)[0]])
def test_a_nearly_certain_decision_keeps_a_gradient_in_single_precision(estimator):
    """1 - pi_i is summed over the others: subtracting pi_i from 1 would give 0 in float32."""
    logits = torch.tensor([0.0, -25.0, -26.0], requires_grad=True)
    v = torch.tensor([1.0, 3.0, -2.0])
    found = torch.autograd.grad((estimator(logits, keyed(0)) * v).sum(), logits)[0]
    assert 1e-13 < found[1:].abs().max() < 1e-10


@samplers
def test_one_candidate_is_drawn_without_gradient(sampler, generator):
    logits = torch.randn(20, 1, generator=generator, requires_grad=True)
    samples = sampler(logits, generator)
    assert samples.tolist() == [[1.0]] * 20
    assert not torch.autograd.grad((samples * 3).sum(), logits)[0].any()


@samplers
@pytest.mark.parametrize("row", [[-math.inf] * 3, [0.0, math.nan, 1.0], [0.0, math.inf, 1.0]])
def test_a_row_without_a_finite_largest_logit_is_refused(sampler, row, generator):
    with pytest.raises(ValueError, match="finite, or -inf for a masked candidate with at least one left"):
        sampler(torch.tensor([[0.0, 1.0, 2.0], row]), generator)


@samplers
def test_samples_do_not_change_when_logits_are_shifted(sampler):
    logits = torch.tensor([0.0, 1.0, 2.0, -3.0]).expand(1000, -1)  # exact in float32 also after the shift
    assert torch.equal(sampler(logits, keyed(3)), sampler(logits + 1e7, keyed(3)))


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(tau):
    with pytest.raises(ValueError, match=f"temperature must be positive, got {tau}"):
        gumbel_rao(LOGITS, tau)


def test_a_number_of_draws_below_one_is_refused():
    with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
        gumbel_rao(LOGITS, 1.0, 0)


def test_gumbel_rao_gives_a_learned_temperature_its_numerical_gradient():
    """The value is a constant, so the relaxation's own slope in tau is compared, masked candidates included."""
    logits, v = torch.tensor([0.4, -math.inf, 1.0, 0.0], dtype=torch.float64), MIX[3]
    tau = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    found = torch.autograd.grad(gumbel_rao(logits, tau, 5, keyed(8)) @ v, tau)[0]
    generator = keyed(8)
    hard = gumbel_max(logits, generator)
    perturbed = conditional_gumbel(logits, hard.expand(5, 4), generator)

    def soft(temperature):
        return ((perturbed / temperature).softmax(-1).mean(0) @ v).item()

    # Central differences: error h^2 f''' / 6, about 1e-8 here.
    assert found.item() == pytest.approx((soft(0.7 + 1e-4) - soft(0.7 - 1e-4)) / 2e-4, rel=1e-5)


def test_conditional_noise_is_drawn_in_single_precision_for_half_logits(generator):
    logits = torch.tensor([1.0, -2.0, 0.5], dtype=torch.bfloat16)
    hard = gumbel_max(logits.expand(50_000, -1), generator)
    draws = conditional_gumbel(logits, hard, generator)
    assert draws.dtype == torch.float32
    assert (draws.argmax(-1) == hard.argmax(-1)).all()
    noise = draws - (logits.float() - 1)
    for k in range(3):
        assert stats.kstest(noise[:, k].numpy(), "gumbel_r").pvalue > SIGNIFICANT
    assert gumbel_noise(logits, generator).dtype == torch.float32
