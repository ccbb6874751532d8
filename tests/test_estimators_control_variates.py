"""Control variates: unbiased whatever is fitted or learned, quieter for it, and with the gradients they learn by."""

import itertools
import math
from copy import deepcopy

import pytest
import torch
from torch import nn

from nas.estimators import (
    AdditiveControlVariate,
    conditional_gumbel,
    gumbel_max,
    gumbel_noise,
    log_probability,
    rebar,
    reinforce,
    relax,
)
from nas.randomness import generator as keyed

TABLES = [torch.tensor([[0.3, -1.0, 0.7], [0.0, 0.4, -0.2]]).double(), torch.tensor([[1.0, -0.5]]).double()]
SHAPES = [tuple(table.shape) for table in TABLES]
COSTS = [torch.randn(shape, generator=keyed(3, place), dtype=torch.float64) for place, shape in enumerate(SHAPES)]
MIX = torch.randn(8, 5, generator=keyed(9), dtype=torch.float64)


def one_hot(places, count):
    return torch.nn.functional.one_hot(torch.tensor(places), count).double()


DECISIONS = [[one_hot([a, b], 3), one_hot([c], 2)] for a, b, c in itertools.product(range(3), range(3), range(2))]


def additive(samples):
    return 5 + sum((cost * sample).sum() for cost, sample in zip(COSTS, samples, strict=True))


def joint(samples):
    """A loss with an additive part and another."""
    return additive(samples) + torch.tanh(torch.cat([s.flatten() for s in samples]) @ MIX).prod() * 5


def probability(samples, tables=TABLES):
    return torch.stack([(t.softmax(-1) * s).sum(-1).prod() for t, s in zip(tables, samples, strict=True)]).prod()


def leaves(tables=TABLES):
    return [table.clone().requires_grad_() for table in tables]


def flat(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients])


def exact_gradient(function):
    logits = leaves()
    value = sum(probability(decision, logits) * function(decision) for decision in DECISIONS)
    return flat(torch.autograd.grad(value, logits))


def agrees(found, expected, rtol=1e-11):
    """Sums of a hundred terms of order ten at most in float64."""
    return torch.allclose(found, expected, rtol=rtol, atol=1e-12)


def estimates(variate, function):
    """The estimate for every decision from the same state, (18, 8), with the decisions' probabilities."""
    rows = []
    for decision in DECISIONS:
        logits = leaves()
        surrogate = deepcopy(variate).estimate(function(decision), logits, decision)
        rows.append(flat(torch.autograd.grad(surrogate, logits)))
    return torch.stack(rows), torch.stack([probability(decision) for decision in DECISIONS])


def variance(rows, weights):
    return (weights @ (rows - weights @ rows).square().sum(-1)).item()


def fitted(function, steps, seed=0, **options):
    """A variate after `steps` decisions, with the decisions and losses that it saw."""
    variate, generator, seen = AdditiveControlVariate(SHAPES, **options), keyed(seed), []
    for _ in range(steps):
        decision = [gumbel_max(table, generator) for table in TABLES]
        seen.append((decision, function(decision)))
        variate.update(seen[-1][1], decision)
    return variate, seen


@pytest.mark.parametrize("steps", [0, 1, 7, 300])
def test_an_additive_variate_leaves_the_mean_exact_however_well_it_is_fitted(steps):
    rows, weights = estimates(fitted(joint, steps)[0], joint)
    assert agrees(weights @ rows, exact_gradient(joint))


def test_an_additive_variate_that_has_seen_its_own_loss_does_not():
    variate, total = fitted(joint, 7)[0], 0
    for decision in DECISIONS:
        logits, seen = leaves(), deepcopy(variate)
        seen.update(joint(decision), decision)
        surrogate = seen.estimate(joint(decision), logits, decision)
        total = total + probability(decision) * flat(torch.autograd.grad(surrogate, logits))
    assert not agrees(total, exact_gradient(joint), rtol=0.05)


def test_an_additive_variate_that_knows_an_additive_loss_leaves_no_noise():
    variate = AdditiveControlVariate(SHAPES)
    variate.coefficients.copy_(flat(COSTS))
    variate.mean.update(torch.tensor(5.0))
    rows, weights = estimates(variate, additive)
    assert agrees(rows, exact_gradient(additive).expand_as(rows))
    assert variance(rows, weights) < 1e-24


def test_an_additive_variate_learns_an_additive_loss():
    """What stays is the fluctuation of the running mean, (1 - m) / (1 + m) of the loss's variance, and the ridge."""
    variate, _ = fitted(additive, 600, forgetting=1.0, ridge=1e-3, momentum=0.99)
    rows, weights = estimates(variate, additive)
    logits = leaves()
    plain = torch.stack(
        [
            flat(
                torch.autograd.grad(
                    sum(
                        reinforce(additive(d) - 5, log_probability(t, s).sum()) for t, s in zip(logits, d, strict=True)
                    ),
                    logits,
                )
            )
            for d in DECISIONS
        ]
    )
    # (1 - m)/(1 + m) = .005; twice that for luck, and again for rows that are loud in both.
    assert variance(rows, weights) < 0.02 * variance(plain, weights)


def test_an_additive_variate_makes_a_loss_with_an_additive_part_quieter():
    rows, weights = estimates(fitted(joint, 300)[0], joint)
    constant = AdditiveControlVariate(SHAPES)
    constant.mean.update(sum(w * joint(d) for w, d in zip(weights, DECISIONS, strict=True)))
    plain, _ = estimates(constant, joint)
    assert variance(rows, weights) < 0.5 * variance(plain, weights)


def test_coefficients_are_those_of_ridge_regression_with_forgetting():
    variate, seen = fitted(joint, 40, forgetting=0.95, ridge=0.5, momentum=0.8)
    features = torch.stack([flat(decision) for decision, _ in seen])
    losses = torch.stack([loss for _, loss in seen])
    centres = [losses[0]]
    for count in range(1, len(losses)):
        past = torch.tensor([0.8**age for age in range(count)], dtype=torch.float64).flip(0)
        centres.append(past @ losses[:count] / past.sum())
    weights = torch.tensor([0.95**age for age in range(len(losses))], dtype=torch.float64).flip(0)
    normal = features.T @ (weights[:, None] * features) + 0.5 * torch.eye(8, dtype=torch.float64)
    expected = torch.linalg.solve(normal, features.T @ (weights * (losses - torch.stack(centres))))
    # The condition number of the normal matrix is below a hundred.
    torch.testing.assert_close(variate.coefficients, expected, rtol=1e-10, atol=1e-12)


def test_estimate_is_the_loss_in_value_learns_from_it_and_keeps_its_own_gradient():
    first, second = fitted(joint, 5)[0], fitted(joint, 5)[0]
    weight = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    loss = weight * joint(DECISIONS[4])
    surrogate = first.estimate(loss, leaves(), DECISIONS[4])
    second.update(loss.detach(), DECISIONS[4])
    assert torch.equal(surrogate, loss)
    assert torch.equal(torch.autograd.grad(surrogate, weight)[0], joint(DECISIONS[4]))
    assert torch.equal(first.coefficients, second.coefficients)
    assert torch.equal(first.mean(), second.mean())
    assert not first.coefficients.requires_grad


def test_an_additive_variate_survives_saving():
    first, _ = fitted(joint, 30)
    second = AdditiveControlVariate(SHAPES)
    second.load_state_dict(first.state_dict())
    for variate in (first, second):
        variate.update(joint(DECISIONS[3]), DECISIONS[3])
    assert torch.equal(first(DECISIONS[1]), second(DECISIONS[1]))
    assert [*map(tuple, map(torch.Tensor.size, first.tables()))] == SHAPES


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_an_additive_variate_takes_any_precision_and_masked_candidates(dtype):
    variate = AdditiveControlVariate([(2, 3)])
    logits = torch.tensor([[0.5, -math.inf, 0.2], [-math.inf, -math.inf, 3.0]], dtype=dtype).requires_grad_()
    for step in range(20):
        sample = gumbel_max(logits.detach(), keyed(step))
        loss = (sample * torch.arange(6).view(2, 3)).sum()
        surrogate = variate.estimate(loss, [logits], [sample])
        assert surrogate.dtype == dtype
        assert torch.equal(surrogate, loss)
        found = torch.autograd.grad(surrogate, logits)[0]
        assert found.isfinite().all()
        assert not found[logits.isinf()].any()
        assert not found[1].any()
    assert variate.coefficients.isfinite().all()


@pytest.mark.parametrize("options", [{"forgetting": 0.0}, {"forgetting": 1.1}, {"ridge": 0.0}, {"momentum": 1.0}])
def test_impossible_options_of_an_additive_variate_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        AdditiveControlVariate(SHAPES, **options)


# REBAR and RELAX. Rows are independent draws, so that one call gives as many estimates as there are rows.

ONE = torch.tensor([0.3, -1.0, 0.7, 0.0], dtype=torch.float64)
TWO = torch.tensor([[0.5, 0.0, -0.4], [-1.0, 0.3, 0.2]], dtype=torch.float64)


def single(tables):
    """Losses of decisions (..., 4)."""
    return 3 + torch.tanh(tables[0] @ MIX[:4].to(tables[0])).square().sum(-1)


def double(tables):
    """Losses of decisions (..., 4) and (..., 2, 3), with products between them."""
    both = torch.cat([tables[0], tables[1].flatten(-2)[..., :4] * tables[1].flatten(-2)[..., 2:]], -1)
    return single(tables[:1]) * (1 + torch.sin(both @ MIX)[..., 0])


SETTINGS = {"one": (single, [ONE]), "two": (double, [ONE, TWO])}
settings = pytest.mark.parametrize(("function", "tables"), SETTINGS.values(), ids=SETTINGS)


class Critic(nn.Module):
    def __init__(self, size):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(size, 6), nn.Tanh(), nn.Linear(6, 1)).double()

    def forward(self, tables):
        leading = tables[0].shape[:-1]
        return 4 * self.layers(torch.cat([t.reshape(*leading, -1) for t in tables], -1)).squeeze(-1)


def scalar(value):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def draws(estimate, tables, count):
    """Gradients of `count` rows, (N, sum of sizes)."""
    rows = [table.expand(count, *table.shape).clone().requires_grad_() for table in tables]
    value = estimate(rows)
    return torch.cat([g.flatten(1) for g in torch.autograd.grad(value, rows)], 1) * count


def exact_mean(function, tables):
    rows = [table.clone().requires_grad_() for table in tables]
    expected = 0
    flats = [row.view(-1, row.shape[-1]) for row in rows]
    for places in itertools.product(*(range(each.shape[-1]) for each in flats for _ in each)):
        remaining, share, decision = iter(places), 1.0, []
        for row, each in zip(rows, flats, strict=True):
            chosen = one_hot([next(remaining) for _ in each], each.shape[-1])
            share = share * (each.softmax(-1) * chosen).sum(-1).prod()
            decision.append(chosen.view(row.shape))
        expected = expected + share * function(decision)
    return torch.cat([g.flatten() for g in torch.autograd.grad(expected, rows)])


def within_four_errors(found, expected):
    error = found.std(0) / math.sqrt(len(found))
    return bool(((found.mean(0) - expected).abs() <= 4 * error + 1e-12).all())


@settings
@pytest.mark.parametrize(("tau", "scale"), [(0.3, 1.0), (1.5, 0.5), (0.7, -2.0)])
def test_rebar_has_the_exact_mean_at_any_temperature_and_scale(function, tables, tau, scale, generator):
    found = draws(lambda rows: rebar(function, rows, scalar(tau), scalar(scale), generator), tables, 60_000)
    assert within_four_errors(found, exact_mean(function, tables))


@settings
@pytest.mark.parametrize("tau", [0.3, 1.5])
def test_relax_has_the_exact_mean_with_any_critic(function, tables, tau, generator):
    critic = Critic(sum(table.numel() for table in tables))
    found = draws(lambda rows: relax(function, critic, rows, scalar(tau), generator), tables, 60_000)
    assert within_four_errors(found, exact_mean(function, tables))


def written_out(function, control, logits, tau, generator, score=True, detached=False):
    """The estimate for one table, term by term; wrong without the critic's score, or with fixed conditional noise."""
    logits = logits.clone().requires_grad_()
    perturbed = (logits - logits.detach().amax(-1, keepdim=True)) + gumbel_noise(logits, generator)
    hard = torch.nn.functional.one_hot(perturbed.argmax(-1), logits.shape[-1]).double()
    again = conditional_gumbel(logits, hard, generator)
    if detached:
        again = again.detach() + (logits - logits.detach())
    free, bound = (control([(z / tau).softmax(-1)]) for z in (perturbed, again))
    path = torch.autograd.grad((free - bound).sum(), logits)[0]
    residual = function([hard]) - (bound.detach() if score else 0)
    return residual[:, None] * (hard - logits.detach().softmax(-1)) + path


def test_rebar_is_its_formula_term_by_term():
    rows = ONE.expand(500, -1)
    found = draws(lambda x: rebar(single, x, scalar(0.6), scalar(0.8), keyed(4)), [ONE], 500)
    expected = written_out(single, lambda y: 0.8 * single(y), rows, 0.6, keyed(4))
    torch.testing.assert_close(found, expected.detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("wrong", [{"score": False}, {"detached": True}], ids=["no score", "detached noise"])
def test_wrong_variants_of_relax_have_another_mean(wrong, generator):
    critic, rows = Critic(4), ONE.expand(60_000, -1)
    right = written_out(single, critic, rows, 0.5, generator).detach()
    assert within_four_errors(right, exact_mean(single, [ONE]))
    biased = written_out(single, critic, rows, 0.5, generator, **wrong).detach()
    assert not within_four_errors(biased, exact_mean(single, [ONE]))


def test_rebar_without_scale_is_reinforce():
    found = draws(lambda rows: rebar(single, rows, scalar(0.5), scalar(0.0), keyed(6)), [ONE], 100)
    sample = gumbel_max(ONE.expand(100, -1), keyed(6))
    torch.testing.assert_close(found, single([sample])[:, None] * (sample - ONE.softmax(-1)), rtol=1e-11, atol=1e-12)


def squared_norm(estimate, tables, count):
    """Mean over rows of the estimate's squared norm, for given noise."""
    return draws(estimate, tables, count).square().sum() / count


@settings
@pytest.mark.parametrize("rows", [1, 4])
def test_rebars_temperature_and_scale_have_the_numerical_gradient_of_the_squared_norm(function, tables, rows):
    tau, scale = scalar(0.6), scalar(0.8)
    given = [table.expand(rows, *table.shape).clone().requires_grad_() for table in tables]
    found = torch.autograd.grad(rebar(function, given, tau, scale, keyed(11)), [tau, scale])

    def norm(t, s):
        return squared_norm(lambda x: rebar(function, x, scalar(t), scalar(s), keyed(11)), tables, rows).item()

    h = 1e-5  # central differences: h^2 f'''/6 and 1e-16 f/h, both below 1e-8 of values of order one to a hundred
    numerical = [
        (norm(0.6 + h, 0.8) - norm(0.6 - h, 0.8)) / (2 * h),
        (norm(0.6, 0.8 + h) - norm(0.6, 0.8 - h)) / (2 * h),
    ]
    assert [each.item() for each in found] == pytest.approx(numerical, rel=1e-5, abs=1e-7)


def test_relaxs_critic_has_the_numerical_gradient_of_the_squared_norm():
    critic, tau = Critic(4), scalar(0.6)
    given = [ONE.expand(3, -1).clone().requires_grad_()]
    parameters = [*critic.parameters(), tau]
    found = torch.autograd.grad(relax(single, critic, given, tau, keyed(12)), parameters)
    for parameter, gradient in zip(parameters, found, strict=True):
        for place in range(parameter.numel()):
            values = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    parameter.view(-1)[place] += step
                values.append(squared_norm(lambda x: relax(single, critic, x, tau, keyed(12)), [ONE], 3).item())
                with torch.no_grad():
                    parameter.view(-1)[place] -= step
            numerical = (values[0] - values[1]) / 2e-5
            assert gradient.view(-1)[place].item() == pytest.approx(numerical, rel=1e-5, abs=1e-6)


def test_the_squared_norms_gradient_averages_to_the_variances():
    """The mean is the same for every temperature, so descending the one descends the other: REBAR gets quieter."""
    log_tau, scale = scalar(math.log(3.0)), scalar(0.1)
    optimizer = torch.optim.Adam([log_tau, scale], lr=0.05)

    def spread():
        found = draws(lambda rows: rebar(single, rows, log_tau.exp(), scale, keyed(13)), [ONE], 20_000)
        assert within_four_errors(found, exact_mean(single, [ONE]))
        return found.var(0).sum().item()

    before = spread()
    for step in range(100):
        optimizer.zero_grad()
        rebar(single, [ONE.expand(64, -1)], log_tau.exp(), scale, keyed(14, step)).backward()
        optimizer.step()
    assert spread() < 0.3 * before
    assert 0.5 < scale.item() < 1.5


def test_a_critic_that_learns_makes_relax_quieter():
    critic, tau = Critic(4), scalar(0.5)
    optimizer = torch.optim.Adam([*critic.parameters()], lr=0.03)

    def spread():
        found = draws(lambda rows: relax(single, critic, rows, tau, keyed(13)), [ONE], 20_000)
        assert within_four_errors(found, exact_mean(single, [ONE]))
        return found.var(0).sum().item()

    before = spread()
    for step in range(150):
        optimizer.zero_grad()
        relax(single, critic, [ONE.expand(64, -1)], tau, keyed(15, step)).backward()
        optimizer.step()
    assert spread() < 0.3 * before


def test_values_are_mean_losses_and_the_losss_own_gradient_stays():
    weight, calls = scalar(1.5), []

    def function(tables):
        calls.append(tables[0])
        return weight * single(tables)

    rows, critic = [ONE.expand(7, -1).clone().requires_grad_()], Critic(4)
    sample = gumbel_max(rows[0].detach(), keyed(2))
    expected = single([sample]).mean()
    for estimate, count in (
        (lambda: rebar(function, rows, scalar(0.5), scalar(1.0), keyed(2)), 3),
        (lambda: relax(function, critic, rows, scalar(0.5), keyed(2)), 1),
    ):
        value = estimate()
        assert torch.allclose(value, 1.5 * expected, rtol=1e-14)
        assert torch.allclose(torch.autograd.grad(value, weight)[0], expected, rtol=1e-14)
        assert torch.equal(calls[0], sample)
        assert len(calls) == count
        calls.clear()


def test_without_gradients_only_the_hard_decision_is_run():
    rows, calls = [ONE.expand(7, -1)], []

    def function(tables):
        calls.append(tables[0])
        return single(tables)

    with torch.no_grad():
        value = rebar(function, rows, scalar(0.5), scalar(1.0), keyed(2))
    assert len(calls) == 1
    assert torch.equal(value, single([gumbel_max(rows[0], keyed(2))]).mean())


def test_logits_of_a_network_and_constant_settings_are_taken():
    """Gradients reach what made the logits; a temperature that is not learned gets none."""
    weight = torch.randn(5, 4, generator=keyed(1), dtype=torch.float64, requires_grad=True)
    inputs = torch.randn(6, 5, generator=keyed(2), dtype=torch.float64)
    logits = inputs @ weight
    constant = torch.tensor(0.5, dtype=torch.float64)
    rebar(single, [logits], constant, torch.tensor(1.0).double(), keyed(3)).backward()
    rows = (inputs @ weight).detach().requires_grad_()
    rebar(single, [rows], constant, torch.tensor(1.0).double(), keyed(3)).backward()
    torch.testing.assert_close(weight.grad, inputs.T @ rows.grad, rtol=1e-12, atol=1e-13)
    assert constant.grad is None


def test_a_loss_that_is_differentiable_once_is_enough(generator):
    """A once differentiable loss takes df/dy as a constant in the temperature's gradient; the mean stays exact."""

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(context, y):
            context.save_for_backward(y)
            return (y**2 @ MIX[:4, :1].abs()).squeeze(-1)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(context, gradient):
            (y,) = context.saved_tensors
            return 2 * y * MIX[:4, 0].abs() * gradient[..., None]

    def function(tables):
        return Once.apply(tables[0])

    found = draws(lambda rows: rebar(function, rows, torch.tensor(0.5), torch.tensor(1.0), generator), [ONE], 30_000)
    assert within_four_errors(found, exact_mean(function, [ONE]))


def test_a_table_that_the_loss_does_not_read_has_no_mean_gradient(generator):
    found = draws(lambda rows: rebar(single, rows, scalar(0.5), scalar(1.0), generator), [ONE, TWO], 20_000)
    assert within_four_errors(found, torch.cat([exact_mean(single, [ONE]), torch.zeros(6).double()]))


@pytest.mark.parametrize("tau", [1.0, 0.1, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_masked_candidate_has_no_gradient_and_leaves_the_others_exact(tau, dtype, generator):
    logits = torch.tensor([[0.5, -math.inf, 0.2, 0.0], [-math.inf, -math.inf, 3.0, -math.inf]], dtype=dtype)
    masked, count, critic = logits.isinf(), 20_000, Critic(4).to(dtype)

    def function(tables):
        assert not tables[0][:, masked].any()
        return single(tables).sum(-1)

    def critical(tables):
        return critic([tables[0].flatten(0, 1)]).view(-1, 2).sum(-1)

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.critic = critic

        def forward(self, tables):
            return critical(tables)

    settings = [torch.tensor(x, dtype=dtype, requires_grad=True) for x in (tau, 0.7)]
    rows = logits.expand(count, -1, -1).clone().requires_grad_()
    expected = torch.zeros(2, 4, dtype=torch.float64)
    p, losses = logits[0].double().softmax(-1), single([torch.eye(4).double()])
    expected[0] = p * (losses - p @ losses)
    for value, learned in (
        (rebar(function, [rows], *settings, generator), settings),
        (relax(function, Both(), [rows], settings[0], generator), [settings[0], *critic.parameters()]),
    ):
        found, *others = torch.autograd.grad(value, [rows, *learned])
        found = found * count
        assert found.isfinite().all()
        assert not found[:, masked].any()
        # A certain decision: its score is zero and its relaxation constant.
        assert not found[:, 1].any()
        assert within_four_errors(found.double().flatten(1), expected.flatten())
        assert all(each.isfinite().all() for each in others)


def test_one_candidate_has_no_gradient(generator):
    logits, tau, scale = torch.zeros(5, 1, requires_grad=True), scalar(0.5), scalar(1.0)
    value = rebar(lambda tables: tables[0].sum(-1) ** 2, [logits], tau, scale, generator)
    assert value.item() == 1
    assert [each.abs().sum().item() for each in torch.autograd.grad(value, [logits, tau, scale])] == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_logits_have_half_gradients(dtype, generator):
    logits = torch.zeros(1000, 4, dtype=dtype, requires_grad=True)
    value = rebar(single, [logits], torch.tensor(0.5), torch.tensor(1.0), generator)
    found = torch.autograd.grad(value, logits)[0]
    assert found.dtype == dtype
    assert found.isfinite().all()


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(tau):
    for call in (
        lambda: rebar(single, [ONE], torch.tensor(tau), torch.tensor(1.0)),
        lambda: relax(single, Critic(4), [ONE], torch.tensor(tau)),
    ):
        with pytest.raises(ValueError, match=f"temperature must be positive, got {tau}"):
            call()


@pytest.mark.parametrize("row", [[-math.inf] * 3, [0.0, math.nan, 1.0], [0.0, math.inf, 1.0]])
def test_a_row_without_a_finite_largest_logit_is_refused(row):
    logits = torch.tensor([[0.0, 1.0, 2.0], row])
    for call in (
        lambda: rebar(lambda tables: tables[0].sum(), [logits], torch.tensor(1.0), torch.tensor(1.0)),
        lambda: AdditiveControlVariate([(2, 3)]).estimate(torch.tensor(1.0), [logits], [torch.eye(3)[:2]]),
    ):
        with pytest.raises(ValueError, match="finite, or -inf for a masked candidate with at least one left"):
            call()
