"""Score functions: exact means by enumeration of decisions, variances, masks, limits; wrong variants are caught."""

import itertools
import math

import pytest
import torch
from scipy import stats

from nas.estimators import (
    RunningMean,
    antithetic_gumbel_max,
    importance_weighted,
    leave_one_out,
    local_expectation,
    log_probability,
    rao_blackwellised,
    reinforce,
)
from nas.randomness import generator as keyed

LOGITS = torch.tensor([0.3, -1.0, 0.7, 0.0], dtype=torch.float64)
MIX = torch.randn(4, 6, generator=keyed(9), dtype=torch.float64)
EYE = torch.eye(4, dtype=torch.float64)
SIGNIFICANT = 1e-3  # of a chi-square test: right code fails it for one seed in a thousand


def loss_of(decisions):
    """A loss far from zero and far from linear, (...,) for decisions (..., K)."""
    return 3 + torch.tanh(decisions @ MIX[: decisions.shape[-1]].to(decisions)).square().sum(-1)


def exact_gradient(logits, losses):
    """Jacobian of the softmax times the losses of the candidates."""
    p = logits.detach().softmax(-1)
    return p * (losses - p @ losses)


def gradient(surrogate, logits):
    return torch.autograd.grad(surrogate.sum(), logits)[0]


def agrees(found, expected, rtol=1e-12):
    """Sums of tens of terms of order ten at most in float64."""
    return torch.allclose(found, expected, rtol=rtol, atol=1e-13)


def within_four_errors(draws, expected):
    error = draws.std(0) / math.sqrt(len(draws))
    return bool(((draws.mean(0) - expected).abs() <= 4 * error + 1e-13).all())


def enumerated(baseline, seen=False):
    """Mean of REINFORCE over all first and second decisions; the second has the baseline that the first has set."""
    logits = LOGITS.clone().requires_grad_()
    p, losses = LOGITS.softmax(-1), loss_of(EYE)
    total = torch.zeros(4, dtype=torch.float64)
    for i, j in itertools.product(range(4), repeat=2):
        mean = RunningMean(0.5) if baseline == "running mean" else None
        if mean is not None:
            mean.update(losses[i])
            if seen:
                mean.update(losses[j])
        value = mean() if mean is not None else baseline
        total += p[i] * p[j] * gradient(reinforce(losses[j], log_probability(logits, EYE[j]), value), logits)
    return total


@pytest.mark.parametrize("baseline", [0.0, 5.0, -2.0, torch.tensor(3.3), "running mean"])
def test_reinforce_has_the_exact_mean_with_any_baseline(baseline):
    assert agrees(enumerated(baseline), exact_gradient(LOGITS, loss_of(EYE)))


def test_a_baseline_that_has_seen_its_own_loss_has_not():
    assert not agrees(enumerated("running mean", seen=True), exact_gradient(LOGITS, loss_of(EYE)), rtol=0.05)


def test_a_surrogate_is_the_loss_in_value_and_keeps_the_losss_own_gradient():
    weight = torch.tensor(1.5, requires_grad=True, dtype=torch.float64)
    logits = LOGITS.clone().requires_grad_()
    losses = weight * loss_of(EYE)
    log_probs = log_probability(logits, EYE)
    single = reinforce(losses, log_probs, 2.0)
    several = leave_one_out(losses, log_probs)
    local = local_expectation(lambda d: weight * loss_of(d).sum(), logits[None], EYE[2:3])
    assert torch.equal(single, losses)
    assert torch.equal(several, losses.mean())
    assert torch.equal(local, losses[2])
    for surrogate, loss in ((single.sum(), losses.sum()), (several, losses.mean()), (local, losses[2])):
        assert agrees(*(torch.autograd.grad(each, weight, retain_graph=True)[0] for each in (surrogate, loss)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_surrogate_has_the_losss_dtype(dtype):
    """A running mean is kept in float64 and log-probabilities never in half precision."""
    mean = RunningMean()
    mean.update(torch.tensor(2.0))
    logits = LOGITS.to(dtype).requires_grad_()
    loss = loss_of(EYE)[1].to(dtype)
    surrogate = reinforce(loss, log_probability(logits, EYE[1].to(dtype)), mean())
    assert surrogate.dtype == dtype
    assert torch.equal(surrogate, loss)
    expected = (loss.double() - 2) * (EYE[1] - logits.detach().double().softmax(-1))
    # Rounded once, from float32 or better.
    torch.testing.assert_close(
        gradient(surrogate, logits).double(), expected, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps / 10
    )


def test_a_loss_may_be_a_count_of_errors():
    logits = LOGITS.clone().requires_grad_()
    found = gradient(reinforce(torch.tensor(7), log_probability(logits, EYE[0]), 3), logits)
    assert agrees(found, 4 * (EYE[0] - LOGITS.softmax(-1)))


def test_log_probabilities_are_those_of_the_softmax():
    logits = torch.tensor([[0.3, -math.inf, 1.7], [1e7, 1e7 - 1, -math.inf]]).requires_grad_()
    samples = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    found = log_probability(logits, samples)
    # Rounding of float32; the offset of 1e7 is taken off exactly.
    torch.testing.assert_close(found, torch.tensor([-math.log1p(math.exp(-1.4)), -1 - math.log1p(math.exp(-1))]))
    slope = gradient(found, logits)
    torch.testing.assert_close(slope, samples - logits.detach().softmax(-1))
    assert slope[logits.isinf()].tolist() == [0, 0]


def loo(logits, losses, count=3):
    """All estimates from `count` decisions, (K**count, K), with their probabilities."""
    places = torch.tensor(list(itertools.product(range(len(logits)), repeat=count))).T
    tables = logits.expand(count, places.shape[1], -1).clone().requires_grad_()
    decisions = torch.nn.functional.one_hot(places, len(logits)).to(logits)
    weights = logits.softmax(-1)[places].prod(0)
    surrogate = leave_one_out(losses[places], log_probability(tables, decisions))
    assert torch.equal(surrogate, losses[places].mean(0))
    return gradient(surrogate, tables).sum(0), weights


def test_leave_one_out_has_the_exact_mean():
    estimates, weights = loo(LOGITS, loss_of(EYE))
    assert agrees(weights @ estimates, exact_gradient(LOGITS, loss_of(EYE)))


def test_leave_one_out_does_not_see_an_offset_and_is_quieter_than_none_for_it():
    losses = loss_of(EYE)
    (near, weights), (far, _) = loo(LOGITS, losses), loo(LOGITS, losses + 64)
    assert agrees(near, far, rtol=1e-10)
    exact, p = exact_gradient(LOGITS, losses), LOGITS.softmax(-1)
    quiet = weights @ (near - exact).square().sum(-1)
    plain = p @ (losses[:, None] * (EYE - p) - exact).square().sum(-1) / 3
    assert quiet < plain / 10


def test_leave_one_out_asks_for_two_decisions():
    with pytest.raises(ValueError, match="at least 2 decisions, got 1"):
        leave_one_out(torch.ones(1), torch.zeros(1))


def test_a_running_mean_is_the_exponentially_weighted_mean_from_its_first_loss_on():
    mean = RunningMean(0.8)
    assert mean().item() == 0
    losses = [4.0, -1.0, 2.5, 8.0]
    for count, loss in enumerate(losses, 1):
        mean.update(torch.tensor(loss))
        weights = [0.8 ** (count - 1 - place) for place in range(count)]
        expected = sum(w * x for w, x in zip(weights, losses, strict=False)) / sum(weights)
        assert mean().item() == pytest.approx(expected, rel=1e-14)


def test_a_running_mean_takes_the_mean_of_a_batch_and_survives_saving():
    first, second = RunningMean(0.7), RunningMean(0.7)
    first.update(torch.tensor([1.0, 3.0], requires_grad=True))
    assert first().item() == 2
    assert not first().requires_grad
    second.load_state_dict(first.state_dict())
    for mean in (first, second):
        mean.update(torch.tensor(5.0))
    assert torch.equal(first(), second())


def test_a_running_mean_without_memory_is_the_last_loss():
    mean = RunningMean(0.0)
    for loss in (1.0, 7.0):
        mean.update(torch.tensor(loss))
        assert mean().item() == loss


@pytest.mark.parametrize("momentum", [1.0, -0.1, math.nan])
def test_a_momentum_outside_its_range_is_refused(momentum):
    with pytest.raises(ValueError, match="momentum must be at least 0 and below 1"):
        RunningMean(momentum)


@pytest.mark.parametrize("logits", [[0.0] * 4, [1.0, -2.0, 0.5, -math.inf]])
def test_each_antithetic_sample_is_exact(logits, generator):
    logits, count = torch.tensor(logits), 200_000
    live = logits.isfinite()
    for sample in antithetic_gumbel_max(logits.expand(count, -1), generator):
        assert (sample.sum(-1) == 1).all()
        assert not sample[:, ~live].any()
        expected = count * logits.double().softmax(-1)[live]
        assert stats.chisquare(sample.sum(0).double()[live], expected).pvalue > SIGNIFICANT


def test_antithetic_samples_come_from_u_and_one_minus_u():
    logits = LOGITS.expand(10_000, -1)
    first, second = antithetic_gumbel_max(logits, keyed(1))
    u = (-torch.empty_like(logits).exponential_(generator=keyed(1))).exp()
    for sample, uniform in ((first, u), (second, 1 - u)):
        assert torch.equal(sample.argmax(-1), (logits - (-uniform.log()).log()).argmax(-1))


def test_antithetic_samples_have_finite_scores_for_the_extreme_exponentials(monkeypatch):
    for value in (0.0, 1e-30, 200.0, 3e38):
        monkeypatch.setattr(torch.Tensor, "exponential_", lambda self, generator, value=value: self.fill_(value))
        for sample in antithetic_gumbel_max(torch.tensor([0.0, 2.0, 1.0])):
            assert sample.tolist() == [0, 1, 0]


def test_the_mean_of_an_antithetic_pair_is_unbiased_and_quieter_for_a_monotone_loss(generator):
    """The loss is monotone in the first candidate's noise: it is lowest when that candidate is drawn."""
    logits, losses = torch.zeros(100_000, 2, dtype=torch.float64, requires_grad=True), torch.tensor([0.0, 1.0]).double()
    parts = [
        gradient(reinforce(sample @ losses, log_probability(logits, sample), 0.5), logits)
        for sample in antithetic_gumbel_max(logits.detach(), generator)
    ]
    average = (parts[0] + parts[1]) / 2
    assert within_four_errors(average, exact_gradient(logits[0], losses))
    skewed = torch.tensor([1.2, 0.0], dtype=torch.float64).expand(100_000, 2).clone().requires_grad_()
    parts = [
        gradient(reinforce(sample @ losses, log_probability(skewed, sample)), skewed)
        for sample in antithetic_gumbel_max(skewed.detach(), generator)
    ]
    average = (parts[0] + parts[1]) / 2
    assert within_four_errors(average, exact_gradient(skewed[0], losses))
    # Two independent samples would halve the variance; opposed decisions cannot both be the second candidate.
    assert average.var(0).sum() < 0.45 * parts[0].var(0).sum()


def rao(logits, exact, generator, count=100_000):
    tables = logits.expand(count, -1).clone().requires_grad_()
    surrogate = rao_blackwellised(loss_of, tables, exact, generator)
    return surrogate.detach(), gradient(surrogate, tables)


@pytest.mark.parametrize("exact", range(5))
def test_rao_blackwellised_has_the_exact_mean_for_every_number_of_exact_candidates(exact, generator):
    values, estimates = rao(LOGITS, exact, generator)
    losses = loss_of(EYE)
    assert within_four_errors(estimates, exact_gradient(LOGITS, losses))
    assert within_four_errors(values[:, None], (LOGITS.softmax(-1) @ losses)[None])


def test_rao_blackwellised_is_quieter_the_more_is_exact_and_silent_at_all(generator):
    variances, p = [], LOGITS.softmax(-1).sort(descending=True).values
    for exact in range(5):
        variances.append(rao(LOGITS, exact, generator)[1].var(0).sum().item())
        # Var = R^2 Var(rest), and Var(REINFORCE) >= R Var(rest); a variance of 100,000 draws is known to 2% (5 errors).
        assert variances[-1] <= variances[0] * p[exact:].sum().item() * 1.02 + 1e-13
    assert all(more < less for less, more in itertools.pairwise(variances[:4]))
    assert variances[3] < 1e-13, "one candidate is left for the sample"
    assert variances[4] < 1e-13


@pytest.mark.parametrize("exact", range(5))
def test_rao_blackwellised_never_asks_for_a_masked_candidate(exact, generator):
    logits = torch.tensor([[0.5, -math.inf, 0.2, 0.0], [-math.inf, -math.inf, 3.0, -math.inf]]).double()
    masked = logits.isinf()

    def loss(decisions):
        forbidden = (decisions * masked.repeat(len(decisions) // 2, 1)).sum(-1)
        return torch.where(forbidden > 0, torch.nan, loss_of(decisions))

    tables = logits.repeat(20_000, 1).requires_grad_()
    surrogate = rao_blackwellised(loss, tables, exact, generator)
    assert surrogate.isfinite().all()
    estimates = gradient(surrogate, tables).view(-1, 2, 4)
    assert not estimates[:, masked].any()
    for row in range(2):
        assert within_four_errors(estimates[:, row], exact_gradient(logits[row], loss_of(EYE)))


def test_rao_blackwellised_keeps_the_losss_own_gradient(generator):
    weight = torch.tensor(1.5, requires_grad=True, dtype=torch.float64)
    surrogate = rao_blackwellised(lambda d: weight * loss_of(d), LOGITS.clone(), 4, generator)
    torch.testing.assert_close(torch.autograd.grad(surrogate, weight)[0], LOGITS.softmax(-1) @ loss_of(EYE))


@pytest.mark.parametrize("exact", [-1, 5])
def test_an_impossible_number_of_exact_candidates_is_refused(exact):
    with pytest.raises(ValueError, match=f"between 0 and the 4 candidates, got {exact}"):
        rao_blackwellised(loss_of, LOGITS, exact)


@pytest.mark.parametrize("baseline", [0.0, 4.0])
def test_importance_weights_give_the_exact_mean_from_another_distribution(baseline):
    q, losses = torch.tensor([0.4, 0.3, 0.2, 0.1]).double(), loss_of(EYE)
    logits = LOGITS.expand(4, -1).clone().requires_grad_()
    surrogate = importance_weighted(losses, log_probability(logits, EYE), q.log(), baseline)
    assert agrees(q @ gradient(surrogate, logits), exact_gradient(LOGITS, losses))
    assert agrees(q @ surrogate.detach(), LOGITS.softmax(-1) @ losses)


def test_a_proposal_may_draw_what_is_masked():
    logits = torch.tensor([0.3, -math.inf, 0.7, 0.0], dtype=torch.float64).expand(4, -1).clone().requires_grad_()
    q, losses = torch.full((4,), 0.25, dtype=torch.float64), loss_of(EYE)
    surrogate = importance_weighted(losses, log_probability(logits, EYE), q.log(), 1.0)
    assert surrogate[1] == 0
    assert agrees(q @ gradient(surrogate, logits), exact_gradient(logits[0], losses))


TABLES = torch.tensor([[0.3, -1.0, 0.7], [0.0, 0.4, -math.inf], [1.0, 0.0, -0.5]], dtype=torch.float64)
ALL = [torch.eye(3, dtype=torch.float64)[list(places)] for places in itertools.product(range(3), repeat=3)]
"""Every decision of three rows, (3, 3) each."""


def joint(decision):
    """A loss that does not fall into one part for each row; NaN for the masked candidate."""
    forbidden = decision[1, 2] > 0
    mixed = torch.tanh(
        (decision.flatten() @ torch.linspace(-2, 3, 9, dtype=torch.float64)).sin() * decision.sum(0) @ MIX[:3]
    )
    return torch.where(forbidden, torch.nan, 2 + mixed.sum())


def exact_tables(function, tables):
    tables = tables.clone().requires_grad_()
    p = tables.softmax(-1)
    live = [d for d in ALL if not d[1, 2]]
    return gradient(torch.stack([(p * d).sum(-1).prod() * function(d) for d in live]), tables)


def expected_local(tables, estimate):
    p = tables.softmax(-1)
    return sum((p * d).sum(-1).prod() * estimate(d) for d in ALL if not d[1, 2])


def test_local_expectation_has_the_exact_mean():
    logits = TABLES.clone().requires_grad_()
    found = expected_local(TABLES, lambda d: gradient(local_expectation(joint, logits, d), logits))
    assert agrees(found, exact_tables(joint, TABLES))


def test_local_expectation_with_a_skipped_mask_has_not():
    unmasked = TABLES.nan_to_num(neginf=0.0).requires_grad_()

    def function(decision):
        return joint(decision).nan_to_num()

    found = expected_local(TABLES, lambda d: gradient(local_expectation(function, unmasked, d), unmasked))
    assert not agrees(found, exact_tables(function, TABLES), rtol=0.05)


def test_local_expectation_is_silent_for_an_additive_loss():
    logits, costs = TABLES.clone().requires_grad_(), torch.randn(3, 3, generator=keyed(4), dtype=torch.float64)

    def additive(decision):
        return (costs * decision).sum()

    found = [gradient(local_expectation(additive, logits, d), logits) for d in ALL if not d[1, 2]]
    assert all(agrees(each, exact_tables(additive, TABLES)) for each in found)


def test_local_expectation_runs_each_live_candidate_of_each_row_once():
    calls = []

    def function(decision):
        calls.append(decision)
        return joint(decision)

    local_expectation(function, TABLES.clone().requires_grad_(), ALL[0])
    assert len(calls) == 1 + 8
    assert all((decision.sum(-1) == 1).all() for decision in calls)


def test_one_candidate_has_no_gradient(generator):
    logits, one = torch.randn(3, 1, generator=generator, requires_grad=True), torch.ones(3, 1)
    for surrogate in (
        reinforce(torch.ones(3), log_probability(logits, one)),
        rao_blackwellised(lambda d: d.sum(-1), logits, 0, generator),
        rao_blackwellised(lambda d: d.sum(-1), logits, 1, generator),
        local_expectation(torch.sum, logits, one),
    ):
        assert not gradient(surrogate, logits).any()
    assert [sample.tolist() for sample in antithetic_gumbel_max(logits, generator)] == [[[1.0]] * 3] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_logits_give_half_samples_and_gradients(dtype, generator):
    logits = torch.zeros(200_000, 8, dtype=dtype, requires_grad=True)
    for sample in antithetic_gumbel_max(logits, generator):
        assert sample.dtype == dtype
        assert stats.chisquare(sample.double().sum(0)).pvalue > SIGNIFICANT
    few = logits[:50].detach().requires_grad_()
    surrogate = rao_blackwellised(lambda d: d[..., 0], few, 3, generator)
    found = gradient(surrogate, few)
    assert found.dtype == dtype
    assert found.isfinite().all()


@pytest.mark.parametrize("row", [[-math.inf] * 3, [0.0, math.nan, 1.0], [0.0, math.inf, 1.0]])
def test_a_row_without_a_finite_largest_logit_is_refused(row, generator):
    logits, sample = torch.tensor([[0.0, 1.0, 2.0], row]), torch.eye(3)[:2]
    for call in (
        lambda: log_probability(logits, sample),
        lambda: antithetic_gumbel_max(logits, generator),
        lambda: rao_blackwellised(lambda d: d.sum(-1), logits, 1, generator),
        lambda: local_expectation(torch.sum, logits, sample),
    ):
        with pytest.raises(ValueError, match="finite, or -inf for a masked candidate with at least one left"):
            call()
