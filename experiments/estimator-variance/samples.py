"""Variance against the number of samples: eight equal logits, 200 trials, temperature .5."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from problems import CLASSES, Problem, gradients, nonlinear, rewards
from torch import Generator, Tensor

from nas import estimators as e
from nas.randomness import generator as keyed

TRIALS, COUNTS, TAU, MOMENTUM = 200, (1, 3, 10, 30, 100, 300, 1000), 0.5, 0.9

PATHWISE: dict[str, Callable[[Tensor, Generator], Any]] = {
    "Gumbel-Softmax": lambda x, g: e.gumbel_softmax(x, TAU, g),
    "ST-GS": lambda x, g: e.straight_through_gumbel_softmax(x, TAU, g),
    "Gumbel-Rao(10)": lambda x, g: e.gumbel_rao(x, TAU, 10, g),
    "straight-through": e.straight_through_softmax,
    "ReinMax": e.reinmax,
    "pair-ReinMax": e.pair_reinmax,
}
SCORE = ("REINFORCE", "running mean", "baseline E[f]", "leave-one-out", "antithetic", "REBAR")
NAMES = (*SCORE, *PATHWISE)


def running_means(losses: Tensor, momentum: float) -> Tensor:
    """What `RunningMean` says before each loss of (n, trials), for all trials at once."""
    count = len(losses)
    age = torch.arange(count)[:, None] - 1 - torch.arange(count)
    weights = torch.where(age >= 0, momentum ** age.clamp_min(0).double(), 0.0)
    return weights @ losses / weights.sum(-1, keepdim=True).clamp_min(1e-300)


def means(name: str, problems: Sequence[Problem], count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """For every problem: estimates of `count` samples each, (trials,), and their single terms, (count, trials)."""
    parts = [[] for _ in problems]
    size = max(1, min(TRIALS, 40_000 // count))
    for start in range(0, TRIALS, size):
        generator = keyed(seed, name, count, start)
        rows = torch.zeros(count, min(size, TRIALS - start), CLASSES, dtype=torch.float64)
        for place, found in enumerate(_estimates(name, problems, rows, generator)):
            parts[place].append(found[..., 0])
    singles = [torch.cat(part, 1) for part in parts]
    return [(single.mean(0), single) for single in singles]


def _estimates(name: str, problems: Sequence[Problem], rows: Tensor, generator: Generator) -> list[Tensor]:
    """Terms whose mean over the first dimension is the estimate, (count, trials, K)."""
    if name in PATHWISE:
        return gradients(lambda x: PATHWISE[name](x, generator), rows, problems)
    leaf = rows.clone().requires_grad_()
    count = len(rows)

    def gradient(surrogate: Tensor) -> Tensor:
        return torch.autograd.grad(surrogate.sum(), leaf)[0]

    if name == "REBAR":
        tau, one = torch.tensor(TAU, dtype=torch.float64), torch.ones((), dtype=torch.float64)
        total = rows.shape[0] * rows.shape[1]
        return [
            gradient(e.rebar(lambda t, p=p: p.function(t[0]), [leaf], tau, one, generator)) * total for p in problems
        ]
    if name == "antithetic":
        half = leaf[: (count + 1) // 2]
        samples = torch.cat(e.antithetic_gumbel_max(half.detach(), generator))[:count]
    else:
        samples = e.gumbel_max(rows, generator)
    found = []
    for problem in problems:
        losses, log_probs = problem.function(samples), e.log_probability(leaf, samples)
        if name == "leave-one-out":
            found.append(gradient(e.leave_one_out(losses, log_probs)) * count)
            continue
        baseline: Any = 0.0
        if name == "running mean":
            baseline = running_means(losses, MOMENTUM)
        elif name == "baseline E[f]":
            baseline = problem.losses().mean()
        found.append(gradient(e.reinforce(losses, log_probs, baseline)))
    return found


def measure(seed: int) -> dict[str, Any]:
    problems = [*rewards(seed), *nonlinear(seed)]
    flat = torch.zeros(CLASSES, dtype=torch.float64)
    check = torch.randn(20, 1, generator=keyed(0)).double()
    mean = e.RunningMean(MOMENTUM)
    for loss, expected in zip(check[:, 0], running_means(check, MOMENTUM)[:, 0], strict=True):
        assert abs(mean() - expected) < 1e-12
        mean.update(loss)
    result: dict[str, Any] = {problem.name: {} for problem in problems}
    for name in NAMES:
        for problem in problems:
            result[problem.name][name] = {"variance": {}}
        for count in COUNTS:
            if name in ("leave-one-out", "antithetic") and count == 1:
                continue
            for problem, (estimate, single) in zip(problems, means(name, problems, count, seed), strict=True):
                entry = result[problem.name][name]
                entry["variance"][str(count)] = estimate.var().item()
                if count == COUNTS[-1]:
                    exact = problem.exact(flat)[0].item()
                    # Draws are independent, except those that share a baseline or a pair: their means are.
                    entry["bias"] = estimate.mean().item() - exact
                    entry["error"] = (estimate.std() / TRIALS**0.5).item()
                    independent = name not in ("leave-one-out", "antithetic")
                    entry["of_one"] = single.var().item() if independent else estimate.var().item() * count
    for problem in problems:
        point = flat.clone().requires_grad_()
        found = torch.autograd.grad(problem.function(point.softmax(-1)), point)[0]
        exact = problem.exact(flat)[0].item()
        result[problem.name]["softmax"] = {"variance": {}, "bias": found[0].item() - exact, "error": 0.0, "of_one": 0.0}
        result[problem.name]["exact"] = exact
    return result
