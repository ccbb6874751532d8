"""A supernet small enough to enumerate: 3 edges x 4 candidates, 64 architectures, trained weights.

Bias, variance and cost of every estimator of the gradient of the expected loss in the logits of the edges.
"""

import itertools
import math
from collections.abc import Callable
from copy import deepcopy
from functools import lru_cache
from typing import Any

import torch
from torch import Generator, Tensor, nn

from nas import estimators as e
from nas.randomness import generator as keyed

EDGES, CANDIDATES, WIDTH, CLASSES, IMAGES = 3, 4, 8, 10, 32
ALL = torch.eye(CANDIDATES, dtype=torch.float64)[
    torch.tensor(list(itertools.product(range(CANDIDATES), repeat=EDGES)))
]  # (64, E, K)
DRAWS, CHUNK = 20_000, 1000
PATHS: dict[str, tuple[int, Callable[[Tensor, Generator], Any]]] = {
    "Gumbel-Softmax 1": (4, lambda x, g: e.gumbel_softmax(x, 1.0, g)),
    "Gumbel-Softmax .5": (4, lambda x, g: e.gumbel_softmax(x, 0.5, g)),
    "Gumbel-Softmax .1": (4, lambda x, g: e.gumbel_softmax(x, 0.1, g)),
    "ST-GS 1": (4, lambda x, g: e.straight_through_gumbel_softmax(x, 1.0, g)),
    "ST-GS .5": (4, lambda x, g: e.straight_through_gumbel_softmax(x, 0.5, g)),
    "Gumbel-Rao(10) .5": (4, lambda x, g: e.gumbel_rao(x, 0.5, 10, g)),
    "straight-through": (4, e.straight_through_softmax),
    "ReinMax": (4, e.reinmax),
    "pair-ReinMax": (2, e.pair_reinmax),
    "GDAS 1": (1, lambda x, g: e.straight_through_gumbel_softmax(x, 1.0, g)),
    "single path 1": (1, lambda x, g: e.straight_through_gumbel_softmax(x, 1.0, g)),
}


class Supernet(nn.Module):
    """Nodes a and b: a = edge 0 of x, b = edge 1 of x + edge 2 of a; a linear classifier reads both.

    Candidates of an edge: none, skip, tanh(W x + c), relu(W x + c). A "chain" has a = edge 0 of x, b = edge 2 of edge 1
    of a, and a classifier of b; "normed" has b over its deviation in the batch, a batch norm that `none` can starve.
    """

    def __init__(self, seed: int, kind: str = "dag") -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.kind = kind
        self.curved = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(EDGES))
        self.bent = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(EDGES))
        self.classifier = nn.Linear(2 * WIDTH, CLASSES)
        self.double()

    def edge(self, place: int, x: Tensor, weights: Tensor, ones: Tensor | None) -> Tensor:
        """Mixes candidates: x (R or 1, B, D), weights (R, E, K); the candidates that `ones` marks give ones."""
        constant = torch.zeros((), dtype=x.dtype)
        if ones is not None:
            constant = (weights * ones)[:, place].sum(-1)[:, None, None]
            weights = weights * (1 - ones)
        w = weights[:, place, 1:]  # none gives zero
        outputs = torch.stack([x, torch.tanh(self.curved[place](x)), torch.relu(self.bent[place](x))])
        pattern = "rk,kbd->rbd" if len(x) == 1 else "rk,krbd->rbd"
        return torch.einsum(pattern, w, outputs.squeeze(1) if len(x) == 1 else outputs) + constant

    def forward(self, weights: Tensor, x: Tensor, y: Tensor, ones: Tensor | None = None) -> Tensor:
        """Returns the loss under every row of weights, (R,): (R, E, K), x (B, D), y (B,)."""
        a = self.edge(0, x[None], weights, ones)
        if self.kind == "chain":
            b, a = self.edge(2, self.edge(1, a, weights, ones), weights, ones), torch.zeros_like(a)
        else:
            b = self.edge(1, x[None], weights, ones) + self.edge(2, a, weights, ones)
        if self.kind == "normed":
            b = (b - b.mean(1, keepdim=True)) / (b.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        scores = self.classifier(torch.cat([a, b], -1)).log_softmax(-1)
        return -scores.gather(-1, y.expand(len(weights), -1)[..., None]).squeeze(-1).mean(-1)


def data(seed: int, stream: str, count: int) -> tuple[Tensor, Tensor]:
    """Inputs N(0, 1) with the labels of a random two-layer network."""
    x = torch.randn(count, WIDTH, generator=keyed(seed, "data", stream)).double()
    first, last = (
        torch.randn(*s, generator=keyed(seed, "teacher", s[0])).double() for s in ((WIDTH, 32), (32, CLASSES))
    )
    return x, (torch.tanh(x @ first) @ last).argmax(-1)


@lru_cache
def trained(seed: int, steps: int, kind: str) -> Supernet:
    """Weights trained on uniformly drawn paths, four to a step."""
    network = Supernet(seed, kind)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    x, y = data(seed, "train", 4000)
    for step in range(steps):
        generator = keyed(seed, "step", step)
        batch = torch.randint(len(x), (64,), generator=generator)
        paths = e.gumbel_max(torch.zeros(4, EDGES, CANDIDATES).double(), generator)
        optimizer.zero_grad()
        network(paths, x[batch], y[batch]).mean().backward()
        optimizer.step()
    return network.requires_grad_(False)


class Critic(nn.Module):
    """12 inputs, 32 tanh units, one output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(EDGES * CANDIDATES, 32), nn.Tanh(), nn.Linear(32, 1)).double()

    def forward(self, tables: list[Tensor]) -> Tensor:
        return self.layers(tables[0].flatten(-2)).squeeze(-1)


class Setting:
    """One trained network, one batch, one table of logits: the losses of all architectures and the exact gradient."""

    def __init__(self, seed: int, spread: float, steps: int = 1500, kind: str = "dag") -> None:
        self.seed, self.network = seed, trained(seed, steps, kind)
        self.x, self.y = data(seed, "batch", IMAGES)
        self.logits = spread * torch.randn(EDGES, CANDIDATES, generator=keyed(seed, "logits")).double()
        self.table = self.loss(ALL)
        leaf = self.logits.clone().requires_grad_()
        self.weights = (leaf.softmax(-1) * ALL).sum(-1).prod(-1)
        self.exact = torch.autograd.grad(self.weights @ self.table, leaf)[0]
        self.weights = self.weights.detach()

    def loss(self, weights: Tensor, ones: Tensor | None = None) -> Tensor:
        return self.network(weights, self.x, self.y, ones)

    def hard_loss(self, decisions: Tensor) -> Tensor:
        """Looks the losses of one-hot decisions up, (..., E, K) to (...)."""
        place = decisions.argmax(-1) @ torch.tensor([CANDIDATES**2, CANDIDATES, 1])
        return self.table[place]

    def figures(self, cost: float, mean: Tensor, variance: float, count: float) -> dict[str, float]:
        """Relative to the norm of the exact gradient, or its square; `count` draws gave the mean (infinity: exact)."""
        size = self.exact.norm()
        squared = ((mean - self.exact).square().sum() - variance / count).clamp_min(0) / size**2
        relative = variance / size.item() ** 2
        return {
            "cost": cost,
            "bias": squared.sqrt().item(),
            "floor": 2 * math.sqrt(relative / count),
            "variance": relative,
            "mse@64": squared.item() + relative * cost / 64,
            "cosine": (torch.sum(mean * self.exact) / mean.norm() / size).item(),
        }

    def of_draws(self, cost: float, draws: Tensor) -> dict[str, float]:
        return self.figures(cost, draws.mean(0), draws.var(0).sum().item(), len(draws))


def measure(seed: int, spread: float) -> dict[str, Any]:
    setting = Setting(seed, spread)
    leaf = setting.logits.clone().requires_grad_()
    soft = torch.autograd.grad(setting.loss(leaf.softmax(-1)[None]).sum(), leaf)[0]
    result = {"softmax": setting.figures(4, soft, 0.0, math.inf)}
    for name, (cost, sample) in PATHS.items():
        result[name] = setting.of_draws(cost, pathwise(setting, name, sample))
    result |= score_functions(setting)
    result["score + additive"] = additive(setting)
    result["REBAR"], result["RELAX"] = learned(setting, "rebar"), learned(setting, "relax")
    losses = setting.table
    return {
        "rows": result,
        "losses": {"min": losses.min().item(), "mean": losses.mean().item(), "max": losses.max().item()},
        "gradient": setting.exact.norm().item(),
    }


def variants(seed: int) -> dict[str, Any]:
    """Biases in other networks, by training steps; those of straight-through and ReinMax without sampling error."""
    names = ("Gumbel-Softmax 1", "ST-GS 1", "ST-GS .5")
    result: dict[str, Any] = {}
    for kind, steps in (("dag", 300), ("dag", 1500), ("chain", 300), ("chain", 1500), ("normed", 300)):
        setting = Setting(seed, 1.0, steps, kind)
        leaf = setting.logits.clone().requires_grad_()
        means = {"softmax": torch.autograd.grad(setting.loss(leaf.softmax(-1)[None]).sum(), leaf)[0]}
        means |= {name: pathwise(setting, name, PATHS[name][1]).mean(0) for name in names}
        points = ALL.clone().requires_grad_()
        v, p = torch.autograd.grad(setting.loss(points).sum(), points)[0], setting.logits.softmax(-1)
        average, chosen = (p * v).sum(-1, keepdim=True), (v * ALL).sum(-1, keepdim=True)
        rows = {"straight-through": p * (v - average), "ReinMax": (ALL * (chosen - average) + p * (v - chosen)) / 2}
        means |= {name: torch.einsum("n,nek->ek", setting.weights, each) for name, each in rows.items()}
        size = setting.exact.norm()
        result[f"{kind}, {steps} steps"] = {
            name: ((mean - setting.exact).norm() / size).item() for name, mean in means.items()
        }
    return result


def pathwise(setting: Setting, name: str, sample: Callable[[Tensor, Generator], Any]) -> Tensor:
    found = []
    for start in range(0, DRAWS, CHUNK):
        rows = setting.logits.expand(CHUNK, -1, -1).clone().requires_grad_()
        drawn = sample(rows, keyed(setting.seed, name, start))
        weights = drawn[0] if isinstance(drawn, tuple) else drawn
        hard, ones = weights.detach(), None
        if name.startswith("GDAS"):
            ones = 1 - hard  # unsampled candidates enter as their weight alone
        elif name.startswith("single"):
            weights = weights * hard
        found.append(torch.autograd.grad(setting.loss(weights, ones).sum(), rows)[0])
    return torch.cat(found)


def score_functions(setting: Setting) -> dict[str, dict[str, float]]:
    count, generator = 80_000, keyed(setting.seed, "score")
    rows = setting.logits.expand(count, -1, -1).clone().requires_grad_()
    samples = e.gumbel_max(rows.detach(), generator)
    losses, log_probs = setting.hard_loss(samples), e.log_probability(rows, samples).sum(-1)
    mean, baselines = e.RunningMean(), []
    for loss in losses:
        baselines.append(mean())
        mean.update(loss)
    surrogates = {
        "REINFORCE": (1, e.reinforce(losses, log_probs)),
        "REINFORCE, running mean": (1, e.reinforce(losses, log_probs, torch.stack(baselines))),
        "leave-one-out(4)": (4, e.leave_one_out(losses.view(4, -1), log_probs.view(4, -1))),
    }
    result = {}
    for name, (cost, surrogate) in surrogates.items():
        found = torch.autograd.grad(surrogate.sum(), rows, retain_graph=True)[0]
        if cost == 4:
            found = found.view(4, -1, EDGES, CANDIDATES).sum(0)
        result[name] = setting.of_draws(cost, found[1000 // cost :])
    return result


def additive(setting: Setting) -> dict[str, float]:
    """By enumeration of all decisions, at 20 states of the variate after 1,000 decisions and more."""
    variate, generator = e.AdditiveControlVariate([(EDGES, CANDIDATES)]), keyed(setting.seed, "additive")
    means, variances = [], []
    for step in range(2000):
        if step >= 1000 and step % 50 == 0:
            rows = []
            for decision, loss in zip(ALL, setting.table, strict=True):
                leaf = setting.logits.clone().requires_grad_()
                surrogate = deepcopy(variate).estimate(loss, [leaf], [decision])
                rows.append(torch.autograd.grad(surrogate, leaf)[0])
            found = torch.stack(rows)
            means.append(torch.einsum("n,nek->ek", setting.weights, found))
            variances.append(setting.weights @ (found - means[-1]).square().sum((-1, -2)))
        sample = e.gumbel_max(setting.logits, generator)
        variate.update(setting.hard_loss(sample), [sample])
    return setting.figures(1, torch.stack(means).mean(0), torch.stack(variances).mean().item(), math.inf)


def learned(setting: Setting, kind: str) -> dict[str, float]:
    """REBAR's scale and temperature, or RELAX's critic and temperature, learned on 64 rows a step, then held."""
    steps, batch = (300, 64) if kind == "rebar" else (1500, 64)
    critic, scale = Critic(), torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    log_tau = torch.tensor(math.log(0.5), dtype=torch.float64, requires_grad=True)

    def loss(tables: list[Tensor]) -> Tensor:
        relaxed = tables[0].requires_grad or bool(((tables[0] != 0) & (tables[0] != 1)).any())
        return setting.loss(tables[0]) if relaxed else setting.hard_loss(tables[0])

    def estimate(rows: Tensor, generator: Generator) -> Tensor:
        if kind == "rebar":
            return e.rebar(loss, [rows], log_tau.exp(), scale, generator)
        return e.relax(loss, critic, [rows], log_tau.exp(), generator)

    parameters = [log_tau, scale] if kind == "rebar" else [log_tau, *critic.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.02 if kind == "rebar" else 0.01)
    for step in range(steps):
        optimizer.zero_grad()
        rows = setting.logits.expand(batch, -1, -1).clone().requires_grad_()
        estimate(rows, keyed(setting.seed, kind, step)).backward()
        optimizer.step()
    found = []
    for start in range(0, DRAWS, CHUNK):
        rows = setting.logits.expand(CHUNK, -1, -1).clone().requires_grad_()
        value = estimate(rows, keyed(setting.seed, kind, "held", start))
        found.append(torch.autograd.grad(value, rows)[0] * CHUNK)
    figures = setting.of_draws(9 if kind == "rebar" else 1, torch.cat(found))
    return figures | {"temperature": log_tau.exp().item(), "scale": scale.item()}
