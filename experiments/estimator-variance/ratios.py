"""How the ratio of two variances depends on the reward, over many rewards; and two smaller facts."""

from typing import Any

import torch
from problems import CLASSES, Problem, gradients, linear, quadratic
from samples import TAU
from torch import Tensor

from nas import estimators as e
from nas.randomness import generator as keyed

REWARDS = {
    "N(0, 1)": lambda g: torch.randn(CLASSES, generator=g).double(),
    "U(0, 1)": lambda g: torch.rand(CLASSES, generator=g).double(),
    "1 + .1 N": lambda g: 1 + 0.1 * torch.randn(CLASSES, generator=g).double(),
    "2.3 + .05 N": lambda g: 2.3 + 0.05 * torch.randn(CLASSES, generator=g).double(),
    "linspace(0, 1)": lambda g: torch.linspace(0, 1, CLASSES).double(),
}


def spread(values: list[float]) -> dict[str, float]:
    low, median, high = torch.tensor(values).double().quantile(torch.tensor([0.05, 0.5, 0.95]).double()).tolist()
    return {"low": low, "median": median, "high": high}


def score_variance(losses: Tensor, baseline: float) -> float:
    """Of REINFORCE's estimate for alpha_0 at equal logits, by enumeration."""
    estimate = (losses - baseline) * (torch.eye(CLASSES, dtype=torch.float64)[0] - 1 / CLASSES)
    return ((estimate**2).mean() - estimate.mean() ** 2).item()


def linear_ratios(draws: int = 1000, rows: int = 400_000) -> dict[str, Any]:
    """For f = r z Gumbel-Softmax's gradient is a row of a random Jacobian times r: one covariance serves every r."""
    leaf = torch.zeros(rows, CLASSES, dtype=torch.float64)
    y = e.gumbel_softmax(leaf, TAU, keyed(0, "jacobian"))
    jacobian = (torch.eye(CLASSES).double()[0] * y - y[:, :1] * y) / TAU
    covariance, mean = jacobian.T.cov(), jacobian.mean(0)
    result: dict[str, Any] = {}
    for name, draw in REWARDS.items():
        rewards = [draw(keyed(seed, name)) for seed in range(draws)]
        gumbel = [(r @ covariance @ r).item() for r in rewards]
        plain = [score_variance(r, 0.0) for r in rewards]
        centred = [score_variance(r, r.mean().item()) for r in rewards]
        exact = torch.stack([(r[0] - r.mean()) / CLASSES for r in rewards])
        bias = torch.stack(rewards) @ mean - exact
        result[name] = {
            "bias": spread(bias.abs().tolist()),
            "bias / exact": ((bias @ exact) / (exact @ exact)).item(),
            "REINFORCE": spread(plain),
            "leave-one-out": spread(centred),  # of many samples: the baseline is E[f]
            "Gumbel-Softmax": spread(gumbel),
            "REINFORCE / Gumbel-Softmax": spread([a / b for a, b in zip(plain, gumbel, strict=True)]),
            "leave-one-out / Gumbel-Softmax": spread([a / b for a, b in zip(centred, gumbel, strict=True)]),
        }
    return result


def distance(seed: int, low: float, high: float) -> Problem:
    target = low + (high - low) * torch.rand(CLASSES, generator=keyed(seed, "target")).double()
    return Problem("distance", lambda z: (z - target.to(z)).square().sum(-1))


def quadratic_ratios(draws: int = 40, rows: int = 50_000) -> dict[str, Any]:
    """Gumbel-Softmax's variance by that of leave-one-out (many samples), for several quadratics."""
    kinds = {
        "z'Az + b'z, A, b ~ N(0, 1)": quadratic,
        "|z - t|^2, t ~ U(0, 1)": lambda seed: distance(seed, 0.0, 1.0),
        "|z - t|^2, t ~ U(.3, .7)": lambda seed: distance(seed, 0.3, 0.7),
    }
    logits = torch.zeros(rows, CLASSES, dtype=torch.float64)
    result = {}
    for name, make in kinds.items():
        problems = [make(seed) for seed in range(draws)]
        found = gradients(lambda x: e.gumbel_softmax(x, TAU, keyed(0, "quadratic")), logits, problems)
        values = []
        for problem, each in zip(problems, found, strict=True):
            losses = problem.losses()
            values.append(each[:, 0].var().item() / score_variance(losses, losses.mean().item()))
        result[name] = spread(values)
    return result


def undetached(logits: Tensor, tau: float, draws: int, generator: torch.Generator) -> Tensor:
    """Gumbel-Rao differentiated through its conditional noise: the mistake."""
    hard = e.gumbel_max(logits.detach(), generator)
    again = e.conditional_gumbel(logits, hard.expand(draws, *hard.shape), generator)
    return e.straight_through(hard, (again / tau).softmax(-1).mean(0))


def detachment(draws: int = 20, rows: int = 40_000) -> dict[str, Any]:
    """Mean gradient of alpha_0, with and without the gradient of the conditional noise, by ST-GS's; f = r z."""
    rewards = [linear("", REWARDS["N(0, 1)"](keyed(seed, "rao"))) for seed in range(draws)]
    logits, result = torch.zeros(rows, CLASSES, dtype=torch.float64), {}
    samplers = {
        "right": lambda x: e.gumbel_rao(x, TAU, 10, keyed(0, "right")),
        "undetached": lambda x: undetached(x, TAU, 10, keyed(0, "wrong")),
    }
    exact = torch.stack([p.exact(logits[0]) for p in rewards])
    for name, sample in samplers.items():
        means = torch.stack([each.mean(0) for each in gradients(sample, logits, rewards)])
        result[name] = ((means * exact).sum(-1) / exact.square().sum(-1)).mean().item()
    return result


def pairs(draws: int = 300) -> dict[str, Any]:
    """Variance of pair-ReinMax by ReinMax's, by enumeration of samples and partners, N(0, 1) logits."""
    result: dict[str, Any] = {}
    for classes in (2, 3, 4, 6, 8, 12):
        eye = torch.eye(classes, dtype=torch.float64)
        values = []
        for seed in range(draws):
            shapes = ((classes,), (classes, classes))
            logits, matrix = (torch.randn(*s, generator=keyed(seed, classes, len(s))).double() for s in shapes)
            p, v = logits.softmax(-1), matrix + matrix.T
            moves = (v.diagonal()[:, None] - v)[..., None] * (eye[:, None] - eye) / 2
            full = torch.einsum("j,ijk->ik", p, moves)
            weights = p[:, None] * p * (1 - eye) / (1 - p)[:, None]
            mean = p @ full
            loud = torch.einsum("ij,ijk->", weights, ((1 - p)[:, None, None] * moves - mean) ** 2)
            values.append((loud / (p @ (full - mean).square().sum(-1))).item())
        result[str(classes)] = spread(values)
    return result


def measure() -> dict[str, Any]:
    return {
        "linear": linear_ratios(),
        "quadratic": quadratic_ratios(),
        "detachment": detachment(),
        "pair by ReinMax": pairs(),
    }
