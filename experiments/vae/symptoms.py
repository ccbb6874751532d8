"""What the pitfalls of gradient estimators measure: each function returns a number with the symptom and with the cure.

The wrong ways are written out here in plain torch; the cures are what `nas.estimators` does.
"""

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Generator, Tensor
from torch.nn.functional import gumbel_softmax as torch_gumbel_softmax
from vae.train import Setting, digits, train

from nas import estimators as es
from nas.estimators import continuous
from nas.schedules import Constant, Exponential

Numbers = tuple[float, float]
"""A number with the symptom, and with the cure."""


def _generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Returns the gradient of the sum of what `function` returns."""
    leaf = at.detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(function(leaf).sum(), leaf)
    return found


# Noise.


def nan_noise(rows: int = 200_000) -> Numbers:
    logits = torch.zeros(rows, 8, dtype=torch.bfloat16)
    u = torch.rand(rows, 8, generator=_generator()).to(torch.bfloat16).clamp(1e-9, 1 - 1e-9)  # 1 - 1e-9 is 1
    wrong = ((logits - (-u.log()).log()) / 0.5).softmax(-1)
    right = es.gumbel_softmax(logits, 0.5, _generator())
    first, second = (float(each.isnan().any(-1).float().mean()) for each in (wrong, right))
    return first, second


def uncentred_logits(rows: int = 100_000) -> Numbers:
    table = torch.tensor([0.0, 1.0, 2.0]).expand(rows, 3)
    shifted = table + 1e7  # exact; but float32 has only whole numbers here, so the noise is rounded to them
    wrong = es.one_hot_argmax(shifted + es.gumbel_noise(table, _generator()))
    right = es.gumbel_max(shifted, _generator())
    first, second = (float((each.mean(0) - table[0].softmax(-1)).abs().sum() / 2) for each in (wrong, right))
    return first, second


def laplace_from_uniform(draws: int = 100_000) -> Numbers:
    u = torch.rand(draws, generator=_generator())
    wrong = -u.sign() * torch.log1p(-2 * u.abs())
    right = continuous.laplace(torch.zeros(draws), torch.ones(draws), _generator())
    return float(wrong.isnan().float().mean()), float(right.isnan().float().mean())


# Variance and temperature.

REWARDS = torch.randn(8, generator=_generator(1), dtype=torch.float64)


def relaxed_gradients(temperature: float, trials: int, samples: int, seed: int = 0) -> Tensor:
    """Returns Gumbel-Softmax's gradients of the quadratic E (r z)^2 at flat logits, means over samples, (n, 8)."""
    logits = torch.zeros(trials, samples, 8, dtype=torch.float64)
    generator = _generator(seed)
    each = gradient(lambda table: (es.gumbel_softmax(table, temperature, generator) @ REWARDS) ** 2, logits)
    return each.mean(1)


def exploding_variance(temperature: float = 0.1, samples: int = 16, trials: int = 5000) -> Numbers:
    one, many = (relaxed_gradients(temperature, trials, count, count) for count in (1, samples))
    return float(one.var(0).sum()), float(many.var(0).sum())


def share_without_gradient(temperature: float, rows: int = 20_000) -> float:
    """Returns the share of Gumbel-Softmax's gradients, in float32, that are exactly zero."""
    generator, table = _generator(), torch.zeros(rows, 8)
    found = gradient(lambda t: es.gumbel_softmax(t, temperature, generator) @ REWARDS.float(), table)
    return float((found == 0).all(-1).float().mean())


def vanished_gradients() -> Numbers:
    return share_without_gradient(0.001), share_without_gradient(0.5)


def inflated_mean(draws: int = 400_000) -> Numbers:
    table = torch.tensor([8.0, 0.0], dtype=torch.float64).expand(draws, 2)

    def mean(estimate: Callable[[Tensor, Generator], Tensor]) -> float:
        generator = _generator()
        return float(gradient(lambda t: estimate(t, generator)[..., 0], table)[:, 0].mean())

    exact = float(table[0].softmax(-1).prod())
    relaxed = mean(lambda t, generator: es.gumbel_softmax(t, 2.0, generator))
    return relaxed / exact, mean(es.straight_through_softmax) / exact


def learned(optimizer: type[torch.optim.Optimizer], rate: float, temperature: float, steps: int = 300) -> float:
    """Returns the best of four candidates' probability after Gumbel-Softmax has learned from a linear reward."""
    generator = _generator()
    logits = torch.zeros(4, requires_grad=True)
    reward = torch.tensor([1.0, 0.5, 0.25, 0.0])
    following = optimizer([logits], lr=rate)  # type: ignore[call-arg]
    for _ in range(steps):
        following.zero_grad()
        (-(es.gumbel_softmax(logits.expand(16, 4), temperature, generator) @ reward).mean()).backward()
        following.step()
    return float(logits.detach().softmax(-1)[0])


def flat_logits() -> Numbers:
    return learned(torch.optim.SGD, 0.2, 50.0), learned(torch.optim.SGD, 0.2, 1.0)


def hidden_flatness() -> Numbers:
    return learned(torch.optim.SGD, 0.2, 50.0), learned(torch.optim.Adam, 0.02, 50.0)


def fixed_rate(steps: int = 3000) -> Numbers:
    return max(0.5, math.exp(-1e-5 * steps)), Exponential(start=1.0, end=0.5)(1.0)


# Straight-through and conditional noise.


def _hard_and_soft(logits: Tensor) -> tuple[Tensor, Tensor]:
    return es.gumbel_max(logits.detach(), _generator()), logits.softmax(-1)


def _straight_through_cosine(line: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Returns the cosine of a line's gradient with J_pi v, 0 if it has none."""
    logits, v = torch.randn(64, 8, generator=_generator(2)), torch.randn(64, 8, generator=_generator(3))
    pi = logits.softmax(-1)
    true = pi * (v - (pi * v).sum(-1, keepdim=True))
    found = gradient(lambda table: line(*_hard_and_soft(table)) * v + 0 * table, logits)
    return float((found * true).sum() / (found.norm() * true.norm()).clamp_min(1e-30))


def straight_through_sign() -> Numbers:
    return tuple(map(_straight_through_cosine, (lambda d, y: d + y.detach() - y, es.straight_through)))  # type: ignore[return-value]


def straight_through_zero() -> Numbers:
    return tuple(map(_straight_through_cosine, (lambda d, y: y + (d - y), es.straight_through)))  # type: ignore[return-value]


def rao_through_noise(rows: int = 20_000, draws: int = 10) -> Numbers:
    """Returns how far Gumbel-Rao's mean gradient is from ST-GS's, which it must equal, relative to that."""
    logits = torch.randn(8, generator=_generator(4), dtype=torch.float64).expand(rows, 8)
    tau = 0.5

    def mean(sample: Callable[[Tensor, Generator], Tensor]) -> Tensor:
        generator = _generator(5)
        return gradient(lambda table: (sample(table, generator) @ REWARDS) ** 2, logits).mean(0)

    def through(table: Tensor, generator: Generator) -> Tensor:
        hard = es.gumbel_max(table.detach(), generator)
        perturbed = es.conditional_gumbel(table, hard.expand(draws, *hard.shape), generator)
        return es.straight_through(hard, (perturbed / tau).softmax(-1).mean(0))

    target = mean(lambda table, generator: es.straight_through_gumbel_softmax(table, tau, generator))
    right = mean(lambda table, generator: es.gumbel_rao(table, tau, draws, generator))
    first, second = (float((each - target).norm() / target.norm()) for each in (mean(through), right))
    return first, second


def sampled_inference(rows: int = 10_000) -> Numbers:
    """Returns how often the same logits give another decision the second time."""
    logits = torch.randn(rows, 8, generator=_generator())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = (torch_gumbel_softmax(logits, 0.5, hard=True).argmax(-1) for _ in range(2))
    third, fourth = (es.one_hot_argmax(logits).argmax(-1) for _ in range(2))
    return float((first != second).float().mean()), float((third != fourth).float().mean())


# Score functions.


def loud_score(rows: int = 50_000, samples: int = 4) -> Numbers:
    """Returns variances, traces, of the mean of 4 REINFORCE samples for rewards like losses: 2.3 + .05 N(0, 1)."""
    reward = 2.3 + 0.05 * REWARDS
    table = torch.zeros(samples, rows, 8, dtype=torch.float64)
    codes = es.gumbel_max(table, _generator())

    def plain(losses: Tensor, log_probs: Tensor) -> Tensor:
        return es.reinforce(losses, log_probs).mean(0)

    def variance(combine: Callable[[Tensor, Tensor], Tensor]) -> float:
        found = gradient(
            lambda leaf: combine(codes @ reward, es.log_probability(leaf.expand_as(table), codes)), table[0]
        )
        return float(found.var(0).sum())

    return variance(plain), variance(es.leave_one_out)


# Continuous laws.


def _normal_gradients(
    function: Callable[[Tensor], Tensor], pathwise: bool, mean: float = 0.0, draws: int = 400_000
) -> Tensor:
    """Returns single-sample gradients in the mean of E f(z), z ~ N(mean, 1), (draws,)."""
    start = torch.full((draws,), mean, dtype=torch.float64)
    one = torch.ones_like(start)
    if pathwise:
        return gradient(lambda mu: function(continuous.normal(mu, one, _generator())) + 0 * mu, start)
    z = continuous.normal(start, one, _generator())
    return function(z) * (z - mean)


def silent_normal(draws: int = 400_000) -> Numbers:
    def mean(sample: Callable[[Tensor, Tensor, Generator], Tensor]) -> float:
        start = torch.full((draws,), 1.5)
        return float(gradient(lambda mu: sample(mu, torch.ones(draws), _generator()) ** 2 + 0 * mu, start).mean())

    def silent(mu: Tensor, sigma: Tensor, generator: Generator) -> Tensor:
        return torch.normal(mu, sigma, generator=generator)

    return mean(silent), mean(continuous.normal)


def step_function() -> Numbers:
    def step(z: Tensor) -> Tensor:
        return (z > 0).to(z)

    return tuple(float(_normal_gradients(step, way).mean()) for way in (True, False))  # type: ignore[return-value]


def cosine_variance(frequency: float, pathwise_first: bool) -> Numbers:
    def wave(z: Tensor) -> Tensor:
        return (frequency * z).cos()

    ways = (pathwise_first, not pathwise_first)
    return tuple(float(_normal_gradients(wave, way).var()) for way in ways)  # type: ignore[return-value]


# VAEs.


def masked_value() -> Numbers:
    logits = torch.tensor([0.5, 0.0, -torch.inf])
    pi = logits.softmax(-1)
    return _bad((pi * pi.log()).sum() + math.log(3)), _bad(_entropy_kl(logits))


def masked_gradient() -> Numbers:
    logits = torch.tensor([0.5, 0.0, -torch.inf])

    def naive(table: Tensor) -> Tensor:
        pi = table.softmax(-1)
        return math.log(3) + torch.xlogy(pi, pi).sum(-1)

    assert not _bad(naive(logits)), "xlogy repairs the value"
    return _bad(gradient(naive, logits)), _bad(gradient(_entropy_kl, logits))


def _entropy_kl(logits: Tensor) -> Tensor:
    return math.log(logits.shape[-1]) - es.entropy(es.softmax(logits))


def _bad(values: Tensor) -> float:
    return float((~values.isfinite()).sum())


@cache
def _final(estimator: str, temperature: float) -> dict[str, float]:
    constant = Constant(value=temperature)
    setting = Setting(estimator=estimator, temperature=constant, warm_up=0.3, steps=600, evaluations=1)
    found: dict[str, float] = train(setting, digits(), 0)[1]["final"]
    return found


def soft_evaluation() -> Numbers:
    found = _final("gumbel-softmax", 1.0)
    return found["relaxed"], found["hard"]


def soft_training() -> Numbers:
    first, second = (_final(*which) for which in (("gumbel-softmax", 1.0), ("st-gs", 0.5)))
    return first["hard"] - first["relaxed"], second["hard"] - second["relaxed"]


@cache
def active(warm_up: float, floor: float) -> float:
    """Returns the active units of a Gaussian VAE with 16 latents after a training with large steps."""
    setting = Setting(
        model="gaussian", latents=16, warm_up=warm_up, free_bits=floor, steps=400, learning_rate=3e-2, evaluations=1
    )
    return float(train(setting, digits(), 0)[1]["final"]["active"])


def collapse(warm_up: float, floor: float) -> Numbers:
    return active(0.0, 0.0), active(warm_up, floor)
