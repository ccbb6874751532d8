"""The VAE experiment: its ELBOs against exact values, its gradients against enumeration, its pitfalls one by one."""

import itertools
import math
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

from nas import estimators as es
from nas.files import read_json
from nas.schedules import Constant, Exponential

FOLDER = Path(__file__).parents[1] / "experiments" / "vae"

sys.path.insert(0, str(FOLDER.parent))
try:
    figures, gradients, model, pitfalls, run, train = (
        import_module(f"vae.{name}") for name in ("figures", "gradients", "model", "pitfalls", "run", "train")
    )
finally:
    sys.path.remove(str(FOLDER.parent))


class Table(nn.Module):
    """An encoder that gives every image the same parameters; a copy for each, to have each one's gradient."""

    def __init__(self, parameters, rows):
        super().__init__()
        self.rows = nn.Parameter(parameters.expand(rows, -1).clone())

    def forward(self, x):
        return self.rows


X = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)


def tiny_categorical(rows, steepness=4, smooth=False):
    """Two latents of three classes and four pixels: nine codes. The decoder is not linear, so estimators differ."""
    torch.manual_seed(0)
    vae = model.CategoricalVAE(4, 8, 2, 3).double()
    if smooth:
        vae.decoder[1] = nn.Tanh()
    for layer in (vae.decoder[0], vae.decoder[2]):
        layer.weight.data.mul_(steepness)
    vae.encoder = Table(torch.randn(6, dtype=torch.float64), rows)
    return vae


def codes_of(latents, classes):
    """All one-hot codes, (K^N, N, K)."""
    indices = torch.tensor([*itertools.product(range(classes), repeat=latents)])
    return nn.functional.one_hot(indices, classes).double()


def exact_objective(vae, logits):
    codes = codes_of(2, 3)
    posterior = es.log_probability(logits.expand_as(codes), codes).sum(-1).exp()
    return (posterior * model.distortion(vae.decode(codes), X)).sum() + model.categorical_kl(logits).sum()


def gradient_means(name, temperature, rows, **decoder):
    """Means and standard errors of the objective's gradient in the logits, and the exact gradient, (6,) each."""
    vae = tiny_categorical(rows, **decoder)
    torch.manual_seed(1)
    estimator = gradients.make(name, 4, 6, 2.0).double()
    generator = torch.Generator().manual_seed(0)
    loss = train.categorical_objective(vae, estimator, X.expand(rows, 4), temperature, 1.0, 0.0, generator)
    (each,) = torch.autograd.grad(loss, vae.encoder.rows)
    logits = vae.encoder.rows[0].detach().view(2, 3).requires_grad_()
    (exact,) = torch.autograd.grad(exact_objective(vae, logits), logits)
    each = each * rows
    return each.mean(0), each.std(0) / math.sqrt(rows), exact.flatten()


@pytest.mark.parametrize("name", gradients.UNBIASED)
def test_an_unbiased_estimator_has_the_enumerated_gradient_of_the_elbo(name):
    mean, error, exact = gradient_means(name, 0.5, 20_000)
    assert exact.abs().max() > 20 * error.max()  # the check can fail
    assert ((mean - exact).abs() < 4 * error).all()


def relative_bias(name, temperature, **decoder):
    """The distance of the mean gradient from the exact one, and 4 standard errors, relative to the exact one."""
    mean, error, exact = gradient_means(name, temperature, 20_000, **decoder)
    return float((mean - exact).norm() / exact.norm()), 4 * float(error.norm() / exact.norm())


def test_gumbel_softmax_is_biased_and_less_so_at_a_lower_temperature():
    (warm, _), (cold, cold_error) = (relative_bias("gumbel-softmax", tau) for tau in (1.0, 0.1))
    assert warm > 2 * cold + cold_error


def test_reinmax_has_less_bias_than_straight_through_with_a_smooth_decoder():
    names = ("straight-through", "reinmax")
    (first, first_error), (second, second_error) = (relative_bias(n, 1.0, steepness=2, smooth=True) for n in names)
    assert first > second + first_error + second_error


def test_reinmax_has_more_bias_than_straight_through_with_the_kinks_of_relus():
    names = ("straight-through", "reinmax")
    (first, first_error), (second, second_error) = (relative_bias(n, 1.0, steepness=2) for n in names)
    assert second > first + first_error + second_error


def test_gumbel_rao_has_the_mean_of_st_gs_and_less_variance():
    (rao, rao_error, _), (plain, error, _) = (gradient_means(name, 0.5, 20_000) for name in ("gumbel-rao", "st-gs"))
    assert ((rao - plain).abs() < 4 * (rao_error**2 + error**2).sqrt()).all()
    assert rao_error.norm() < error.norm()


@pytest.mark.parametrize("name", gradients.ESTIMATORS)
def test_the_decoder_has_the_gradient_of_the_objective_it_was_run_for(name):
    rows = 20_000
    vae = tiny_categorical(rows)
    estimator = gradients.make(name, 4, 6, 2.0).double()
    generator = torch.Generator().manual_seed(0)
    loss = train.categorical_objective(vae, estimator, X.expand(rows, 4), 0.1, 1.0, 0.0, generator)
    (found,) = torch.autograd.grad(loss, vae.decoder[2].bias)
    (exact,) = torch.autograd.grad(exact_objective(vae, vae.encoder.rows[0].view(2, 3)), vae.decoder[2].bias)
    # A derivative in a pixel's logit is at most 1: standard error below 1 / sqrt(rows). Relaxed codes have a bias.
    tolerance = 0.05 if name == "gumbel-softmax" else 4 / math.sqrt(rows)
    assert (found - exact).abs().max() < tolerance


def test_the_gaussian_kl_is_the_integral():
    z = torch.linspace(-30, 30, 200_001, dtype=torch.float64)
    prior = torch.distributions.Normal(*torch.tensor([0.0, 1.0], dtype=torch.float64))
    for parameters in torch.tensor([[0.0, 1.0], [1.5, 0.3], [-2.0, 2.0]], dtype=torch.float64):
        mean, deviation = parameters
        posterior = torch.distributions.Normal(mean, deviation)
        integrand = posterior.log_prob(z).exp() * (posterior.log_prob(z) - prior.log_prob(z))
        expected = torch.trapezoid(integrand, z).item()
        assert model.gaussian_kl(mean, deviation.log()).item() == pytest.approx(expected, abs=1e-9)


def test_the_categorical_kl_is_the_sum_also_with_masked_logits():
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.0], [0.5, -torch.inf, 0.1, -torch.inf], [0.0] * 4], dtype=torch.float64)
    leaf = logits.clone().requires_grad_()
    found = model.categorical_kl(leaf)
    for row, value in zip(logits.softmax(-1).tolist(), found.tolist(), strict=True):
        assert value == pytest.approx(sum(p * math.log(4 * p) for p in row if p > 0), abs=1e-12)
    (slope,) = torch.autograd.grad(found.sum(), leaf)
    assert slope.isfinite().all()
    assert (slope[1][logits[1] == -torch.inf] == 0).all()


def test_the_distortion_is_minus_the_bernoulli_log_likelihood():
    logits, x = torch.randn(5, 3, 7, dtype=torch.float64), torch.randint(2, (3, 7)).double()
    expected = -torch.distributions.Bernoulli(logits=logits).log_prob(x.expand_as(logits)).sum(-1)
    torch.testing.assert_close(model.distortion(logits, x), expected)


def test_information_is_nothing_for_equal_posteriors_and_log_k_for_a_class_each():
    equal = torch.randn(1, 2, 4).expand(8, 2, 4)
    own = 1e4 * torch.eye(4).unsqueeze(1).expand(4, 2, 4)
    torch.testing.assert_close(model.information(equal), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(model.information(own), torch.full((2,), math.log(4)))


def test_free_bits_cost_the_floor_below_it_and_do_not_push_there():
    kl = torch.tensor([[0.01, 1.0], [0.05, 3.0]], requires_grad=True)
    costs = model.free_bits(kl, 0.1)
    torch.testing.assert_close(costs, torch.tensor([0.1, 2.0]))
    (slope,) = torch.autograd.grad(costs.sum(), kl)
    torch.testing.assert_close(slope, torch.tensor([[0.0, 0.5], [0.0, 0.5]]))
    torch.testing.assert_close(model.free_bits(kl, 0.0), kl.mean(0))


def test_warm_up_takes_the_weight_of_the_kl_from_0_to_1_over_its_share_and_no_further():
    setting = train.Setting(warm_up=0.5)
    assert [setting.kl_weight(p) for p in (0.0, 0.25, 0.5, 1.0)] == [0.0, 0.5, 1.0, 1.0]
    assert train.Setting(warm_up=0.0).kl_weight(0.0) == 1.0


def test_the_hard_elbo_is_the_exact_one_and_below_the_log_likelihood():
    vae, samples = tiny_categorical(1), 40_000
    codes = codes_of(2, 3)
    log_likelihood = torch.logsumexp(-model.distortion(vae.decode(codes), X), 0).item() - math.log(len(codes))
    exact = -exact_objective(vae, vae.encoder.rows.view(2, 3)).item()
    generator = torch.Generator().manual_seed(0)
    found = -train.evaluate(vae, X.expand(1, 4), 0.5, generator, samples)["hard"]
    worst = model.distortion(vae.decode(codes), X).std().item() * 3  # no standard deviation under q is above this
    assert found == pytest.approx(exact, abs=4 * worst / math.sqrt(samples))
    assert exact < log_likelihood - 0.1


def test_the_hard_elbo_with_the_exact_posterior_is_the_log_likelihood():
    vae, samples = model.CategoricalVAE(4, 8, 1, 3).double(), 40_000
    loss = model.distortion(vae.decode(codes_of(1, 3)), X)
    vae.encoder = Table(-loss.detach(), 1)
    found = -train.evaluate(vae, X.expand(1, 4), 0.5, torch.Generator().manual_seed(0), samples)["hard"]
    expected = torch.logsumexp(-loss, 0).item() - math.log(3)
    assert found == pytest.approx(expected, abs=4 * loss.std().item() * 3 / math.sqrt(samples))


def test_the_relaxed_objective_is_no_bound():
    vae = model.CategoricalVAE(2, 8, 1, 2).double()
    decoder = nn.Linear(2, 2, bias=False).double()
    decoder.weight.data = torch.tensor([[10.0, -10.0], [-10.0, 10.0]], dtype=torch.float64)
    vae.decoder, vae.encoder = decoder, Table(torch.zeros(2, dtype=torch.float64), 1)
    both = torch.ones(1, 2, dtype=torch.float64)
    log_likelihood = -10  # either code has one of the two pixels wrong, by 10 nats
    found = train.evaluate(vae, both, 5.0, torch.Generator().manual_seed(0), 1000)
    assert -found["hard"] == pytest.approx(log_likelihood, abs=1e-3)
    assert -found["relaxed"] > log_likelihood + 5


def test_the_gaussian_elbo_is_below_the_log_likelihood_and_as_integrated():
    torch.manual_seed(0)
    vae, samples = model.GaussianVAE(4, 8, 1).double(), 40_000
    vae.decoder[0].weight.data.mul_(4)
    parameters = torch.tensor([0.7, -0.5], dtype=torch.float64)
    vae.encoder = Table(parameters, 2)
    z = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    loss = model.distortion(vae.decode(z.unsqueeze(-1)), X)
    p, q = (
        torch.distributions.Normal(z.new_zeros(()), z.new_ones(())),
        torch.distributions.Normal(parameters[0], parameters[1].exp()),
    )
    log_likelihood = torch.trapezoid(p.log_prob(z).exp() * (-loss).exp(), z).log().item()
    density = q.log_prob(z).exp()
    exact = -torch.trapezoid(density * (loss + q.log_prob(z) - p.log_prob(z)), z).item()
    deviation = (torch.trapezoid(density * loss**2, z) - torch.trapezoid(density * loss, z) ** 2).sqrt().item()
    found = -train.evaluate(vae, X.expand(2, 4), 1.0, torch.Generator().manual_seed(0), samples)["hard"]
    assert found == pytest.approx(exact, abs=4 * deviation / math.sqrt(2 * samples))
    assert exact < log_likelihood


def test_the_gaussian_gradient_is_that_of_the_integral():
    torch.manual_seed(0)
    rows, vae = 40_000, model.GaussianVAE(4, 8, 1).double()
    parameters = torch.tensor([0.7, -0.5], dtype=torch.float64)
    vae.encoder = Table(parameters, rows)
    loss = train.gaussian_objective(vae, X.expand(rows, 4), 1.0, 0.0, torch.Generator().manual_seed(0))
    each = torch.autograd.grad(loss, vae.encoder.rows)[0] * rows
    leaf = parameters.clone().requires_grad_()
    z = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    density = torch.distributions.Normal(leaf[0], leaf[1].exp()).log_prob(z).exp()
    expected = torch.trapezoid(density * model.distortion(vae.decode(z.unsqueeze(-1)), X), z)
    (exact,) = torch.autograd.grad(expected + model.gaussian_kl(*leaf), leaf)
    assert ((each.mean(0) - exact).abs() < 4 * each.std(0) / math.sqrt(rows)).all()


@pytest.mark.parametrize("pitfall", pitfalls.PITFALLS, ids=lambda pitfall: pitfall.name)
def test_a_pitfall_shows_its_symptom_and_its_cure(pitfall):
    before, after = pitfall.measure()
    assert pitfall.claim(before, after), (before, after, pitfall.says)


@pytest.fixture
def brief():
    return train.Setting(steps=6, evaluations=2, hidden=8, latents=2, classes=3)


def test_a_training_follows_its_schedules_and_its_seed(brief):
    setting = train.Setting(**{**vars(brief), "warm_up": 0.5, "temperature": Exponential(start=1.0, end=0.5)})
    (_, first), (_, again), (_, other) = (train.train(setting, train.digits(), seed) for seed in (0, 0, 1))
    assert first["final"] == again["final"] != other["final"]
    assert [point["step"] for point in first["curve"]] == [1, 4, 6]
    assert [point["temperature"] for point in first["curve"]] == pytest.approx([1.0, 0.5**0.6, 0.5])
    assert [point["kl_weight"] for point in first["curve"]] == pytest.approx([0.0, 1.0, 1.0])


def test_a_training_that_is_done_is_read_and_one_with_another_setting_is_made_again(brief, tmp_path, monkeypatch):
    data = train.digits()
    first = run.trained(tmp_path, data, "gumbel-softmax", brief, 0)
    assert run.trained(tmp_path, data, "reinmax", brief, 1)["seed"] == 1
    changed = train.Setting(**{**vars(brief), "temperature": Constant(value=2.0)})
    assert run.trained(tmp_path, data, "gumbel-softmax", changed, 0)["curve"]["temperature"] == [2.0] * 3
    run.trained(tmp_path, data, "gumbel-softmax", brief, 0)
    monkeypatch.setattr(run, "train", None)  # would fail if it were called
    assert run.trained(tmp_path, data, "gumbel-softmax", brief, 0)["final"] == first["final"]


def test_without_mnist_the_digits_are_run_and_a_line_says_so(brief, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "settings", lambda dataset, quick=False: {"gumbel-softmax": brief})
    monkeypatch.setattr(run, "PITFALLS", pitfalls.PITFALLS[:1])
    monkeypatch.setattr(run, "measured_variance", lambda results: {})
    for name in ("variance", "learning_curves", "gaps", "collapse", "grids"):
        monkeypatch.setattr(figures, name, lambda *arguments: None)
    text = run.run(tmp_path, tmp_path / "absent.npz", quick=True)
    assert "absent.npz" in capsys.readouterr().out
    assert "| gumbel-softmax |" in text
    assert "mnist" not in text
    assert "NaN noise" in text


def test_the_table_in_the_repository_is_that_of_the_results_beside_it():
    results = FOLDER / "results"
    found = [read_json(path) for path in results.glob("*-seed-*.json")]
    found.sort(key=lambda row: (row["dataset"], [*run.settings(row["dataset"])].index(row["name"]), row["seed"]))
    for row in found:
        assert row["setting"] == run.described(run.settings(row["dataset"])[row["name"]])
    rows = read_json(results / "pitfalls.json")["rows"]
    assert [row["name"] for row in rows] == [pitfall.name for pitfall in pitfalls.PITFALLS]
    assert all(row["holds"] for row in rows)
    text = run.tables(found, rows)
    assert (results / "table.md").read_text() == text + "\n"
    shown = {line for line in (FOLDER / "README.md").read_text().splitlines() if line.startswith("|")}
    assert {line for line in text.splitlines() if "±" in line or line.endswith(" yes |")} <= shown
