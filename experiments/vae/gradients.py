"""The ways to a gradient through the categorical code: one class for each estimator of `nas.estimators` shown here.

Each maps losses, logits and a temperature to the mean loss of a batch, (), whose backward is the estimate.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Generator, Tensor, nn

from nas import estimators as es

LossOf = Callable[[Tensor], Tensor]
"""Maps codes (..., B, N, K), one-hot or relaxed, to losses (..., B)."""

RAO_DRAWS = 10
SCORE_SAMPLES = 4


class Pathwise(nn.Module):
    """One code per image; the gradient passes through it, or through its stand-in.

    Args:
        sample: Maps logits, temperature and generator to codes.
    """

    def __init__(self, sample: Callable[[Tensor, float, Generator], Tensor]) -> None:
        super().__init__()
        self.sample = sample

    def forward(self, loss_of: LossOf, logits: Tensor, x: Tensor, temperature: float, generator: Generator) -> Tensor:
        return loss_of(self.sample(logits, temperature, generator)).mean()


class LeaveOneOut(nn.Module):
    """REINFORCE with several codes per image, each with the others' mean loss as its baseline."""

    def forward(self, loss_of: LossOf, logits: Tensor, x: Tensor, temperature: float, generator: Generator) -> Tensor:
        several = logits.expand(SCORE_SAMPLES, *logits.shape)
        codes = es.gumbel_max(several, generator)  # (M, B, N, K)
        log_probs = es.log_probability(several, codes).sum(-1)
        return es.leave_one_out(loss_of(codes), log_probs).mean()


class Rebar(nn.Module):
    """REBAR, with its temperature and scale learned."""

    def __init__(self) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(-0.7))
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, loss_of: LossOf, logits: Tensor, x: Tensor, temperature: float, generator: Generator) -> Tensor:
        return es.rebar(lambda codes: loss_of(codes[0]), [logits], self.log_temperature.exp(), self.scale, generator)


class Critic(nn.Module):
    """Guesses the losses of codes of the images `x`, (B,).

    Args:
        typical: A loss to begin with: the guess is also the baseline, and one of 0 is none.
    """

    x: Tensor

    def __init__(self, pixels: int, codes: int, typical: float, hidden: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(pixels + codes, hidden), nn.Tanh(), nn.Linear(hidden, 1))
        self.typical = typical

    def forward(self, codes: list[Tensor]) -> Tensor:
        guess: Tensor = self.layers(torch.cat([self.x, codes[0].flatten(-2)], -1)).squeeze(-1)
        return self.typical * (1 + guess)


class Relax(nn.Module):
    """RELAX: a critic of image and code is the control variate; the decoder runs once."""

    def __init__(self, pixels: int, codes: int, typical: float) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(-0.7))
        self.critic = Critic(pixels, codes, typical)

    def forward(self, loss_of: LossOf, logits: Tensor, x: Tensor, temperature: float, generator: Generator) -> Tensor:
        self.critic.x = x
        tau = self.log_temperature.exp()
        return es.relax(lambda codes: loss_of(codes[0]), self.critic, [logits], tau, generator)


def _rao(logits: Tensor, temperature: float, generator: Generator) -> Tensor:
    return es.gumbel_rao(logits, temperature, RAO_DRAWS, generator)


def _without_temperature(
    sample: Callable[[Tensor, Generator], Tensor], logits: Tensor, temperature: float, generator: Generator
) -> Tensor:
    return sample(logits, generator)


PATHWISE: dict[str, Callable[[Tensor, float, Generator], Tensor]] = {
    "gumbel-softmax": es.gumbel_softmax,
    "st-gs": es.straight_through_gumbel_softmax,
    "gumbel-rao": _rao,
    "straight-through": partial(_without_temperature, es.straight_through_softmax),
    "reinmax": partial(_without_temperature, es.reinmax),
}
ESTIMATORS = (*PATHWISE, "leave-one-out", "rebar", "relax")
UNBIASED = ("leave-one-out", "rebar", "relax")


def make(name: str, pixels: int, codes: int, typical: float) -> nn.Module:
    """Returns an estimator by name, for images of P pixels, codes of N times K numbers and losses near `typical`."""
    if name in PATHWISE:
        return Pathwise(PATHWISE[name])
    return {"leave-one-out": LeaveOneOut, "rebar": Rebar, "relax": partial(Relax, pixels, codes, typical)}[name]()
