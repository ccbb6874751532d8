"""Functions of a categorical decision with known gradients of their expectation, and draws of estimates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nas.randomness import generator as keyed

CLASSES = 8
Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Problem:
    """A function of decisions (..., K), one-hot or relaxed, with values (...)."""

    name: str
    function: Function

    def losses(self) -> Tensor:
        return self.function(torch.eye(CLASSES, dtype=torch.float64))

    def exact(self, logits: Tensor) -> Tensor:
        """Gradient of the expectation, (K,)."""
        p = logits.softmax(-1)
        return p * (self.losses() - p @ self.losses())


def linear(name: str, reward: Tensor) -> Problem:
    return Problem(name, lambda z: z @ reward.to(z))


def rewards(seed: int) -> list[Problem]:
    """The five rewards of the linear panels."""
    normal, uniform = torch.randn(8, generator=keyed(seed, "r")).double(), torch.rand(8, generator=keyed(seed, "u"))
    return [
        linear("N(0, 1)", normal),
        linear("U(0, 1)", uniform.double()),
        linear("1 + .1 N", 1 + 0.1 * normal),
        linear("2.3 + .05 N", 2.3 + 0.05 * normal),
        linear("linspace(0, 1)", torch.linspace(0, 1, 8, dtype=torch.float64)),
    ]


def quadratic(seed: int) -> Problem:
    matrix, vector = (torch.randn(*s, generator=keyed(seed, "q", len(s))).double() for s in ((8, 8), (8,)))
    return Problem("quadratic", lambda z: ((z @ matrix.to(z)) * z).sum(-1) + z @ vector.to(z))


def network(seed: int) -> Problem:
    """8 inputs, 16 tanh units, one output."""
    first, shift, last = (
        torch.randn(*s, generator=keyed(seed, "m", len(s))).double() for s in ((8, 16), (16,), (16, 1, 1))
    )
    last = last.view(16)
    return Problem("MLP", lambda z: torch.tanh(2 * z @ first.to(z) + shift.to(z)) @ last.to(z) / 2)


def nonlinear(seed: int) -> list[Problem]:
    return [quadratic(seed), network(seed)]


def gradients(sample: Callable[[Tensor], Any], logits: Tensor, problems: Sequence[Problem]) -> list[Tensor]:
    """Pathwise estimates for every problem from the same draws, of the shape of `logits`."""
    rows = logits.clone().requires_grad_()
    drawn = sample(rows)
    weights = drawn[0] if isinstance(drawn, tuple) else drawn
    return [torch.autograd.grad(problem.function(weights).sum(), rows, retain_graph=True)[0] for problem in problems]
