"""Bias and variance against temperature, with flat and with peaked logits; what float32 leaves of a gradient."""

from typing import Any

import torch
from problems import CLASSES, gradients, linear, nonlinear
from torch import Tensor

from nas import estimators as e
from nas.randomness import generator as keyed

TEMPERATURES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.5, 2.0, 3.5, 5.0, 10.0)
DRAWS = {"Gumbel-Softmax": 100_000, "ST-GS": 100_000, "Gumbel-Rao(10)": 20_000}
GAP = 8.0


def logits(kind: str) -> Tensor:
    table = torch.zeros(CLASSES, dtype=torch.float64)
    table[0] = {"flat": 0.0, "peaked": GAP}[kind]
    return table


def sampler(name: str, tau: float, generator: torch.Generator) -> Any:
    return {
        "Gumbel-Softmax": lambda x: e.gumbel_softmax(x, tau, generator),
        "ST-GS": lambda x: e.straight_through_gumbel_softmax(x, tau, generator),
        "Gumbel-Rao(10)": lambda x: e.gumbel_rao(x, tau, 10, generator),
        "ReinMax": lambda x: e.reinmax(x, generator),
        "straight-through": lambda x: e.straight_through_softmax(x, generator),
    }[name]


def measure(seed: int) -> dict[str, Any]:
    reward = torch.randn(8, generator=keyed(seed, "r")).double()
    problems = [linear("linear", reward), *nonlinear(seed)]
    result: dict[str, Any] = {}
    for kind in ("flat", "peaked"):
        table = logits(kind)
        cases = [(name, tau) for name in DRAWS for tau in TEMPERATURES]
        for name, tau in [*cases, ("ReinMax", 0.0), ("straight-through", 0.0)]:
            count = DRAWS.get(name, 100_000)
            rows = table.expand(count, -1)
            found = gradients(sampler(name, tau, keyed(seed, name, str(tau), kind)), rows, problems)
            for problem, each in zip(problems, found, strict=True):
                entry = summary(each, problem.exact(table))
                result.setdefault(kind, {}).setdefault(problem.name, {}).setdefault(name, {})[str(tau)] = entry
    for kind, spread in (("flat", 0.0), ("N(0, 1)", 1.0)):
        shares = {str(tau): zero_share(tau, seed, spread, reward) for tau in (0.001, 0.003, *TEMPERATURES)}
        result.setdefault("zero rows", {})[kind] = shares
    result["inflation"] = {str(tau): inflation(tau, seed) for tau in TEMPERATURES}
    return result


def summary(found: Tensor, exact: Tensor) -> dict[str, float]:
    """Bias, its standard error, and variance of one draw, relative to the exact gradient's norm and its square."""
    size, mean, variance = exact.norm(), found.mean(0), found.var(0).sum()
    noise = variance / len(found)
    squared = (mean - exact).square().sum() - noise  # the square of a noisy mean is too large by its noise
    return {
        "bias": (squared.clamp_min(0).sqrt() / size).item(),
        "floor": (2 * noise.sqrt() / size).item(),
        "variance": (variance / size**2).item(),
    }


def zero_share(tau: float, seed: int, spread: float, reward: Tensor) -> float:
    """Share of rows of Gumbel-Softmax, each with its own logits, whose gradient is exactly zero in float32."""
    generator = keyed(seed, "zero", str(tau))
    rows = spread * torch.randn(100_000, CLASSES, generator=generator)
    found = gradients(sampler("Gumbel-Softmax", tau, generator), rows, [linear("", reward)])[0]
    return (found == 0).all(-1).double().mean().item()


def inflation(tau: float, seed: int) -> dict[str, float]:
    """Mean gradient of a winner's own logit by the exact one, for a reward of the winner and a gap of 8."""
    result = {}
    for classes in (2, CLASSES):
        table = torch.zeros(classes, dtype=torch.float64)
        table[0] = GAP
        reward = torch.eye(classes, dtype=torch.float64)[0]
        exact = (table.softmax(-1)[0] * (1 - table.softmax(-1)[0])).item()
        rows = table.expand(400_000, -1).clone().requires_grad_()
        generator = keyed(seed, "inflation", classes, str(tau))
        found = torch.autograd.grad((e.gumbel_softmax(rows, tau, generator) @ reward).sum(), rows)[0][:, 0]
        result[str(classes)] = found.mean().item() / exact
        result[f"{classes} error"] = found.std().item() / len(found) ** 0.5 / exact
    return result
