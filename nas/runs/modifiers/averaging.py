"""Stochastic weight averaging: what is measured and derived from is the mean of many steps (SWA; arXiv:1803.05407)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nas.errors import require_at_least
from nas.runs.modifiers.base import Attached, Modifier, Searching
from nas.runs.optimizers import parameters


class _Averaging(Attached):
    count: Tensor

    def __init__(self, search: Searching, settings: "WeightAveraging") -> None:
        super().__init__(search)
        self.settings, self.weights = settings, parameters(search.weights)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        for i, weight in enumerate(self.weights):
            self.register_buffer(f"mean_{i}", torch.zeros_like(weight, requires_grad=False))

    def _means(self) -> list[Tensor]:
        return [self.get_buffer(f"mean_{i}") for i in range(len(self.weights))]

    @torch.no_grad()
    def before(self, step: int, progress: float) -> None:
        if step == self.search.steps and self.count:
            for weight, mean in zip(self.weights, self._means(), strict=True):
                weight.copy_(mean)

    @torch.no_grad()
    def after(self, step: int, progress: float) -> None:
        if progress >= self.settings.begin and (step + 1) % self.settings.every == 0:
            self.count += 1
            for mean, weight in zip(self._means(), self.weights, strict=True):
                mean.lerp_(weight, 1 / int(self.count))


@dataclass(frozen=True, kw_only=True)
class WeightAveraging(Modifier):
    """Stochastic weight averaging: a finished search is measured with the mean of its last weights.

    It allows a learning rate that stays high: a single moment of such a training says little, the mean of many is as
    calm as after annealing. Steps, and measurements on the way, are taken with the weights as they are.

    Source: Izmailov et al., 2018, arXiv:1803.05407.

    Attributes:
        begin: Share of the search from which weights count.
        every: Steps between the weights that are averaged.
    """

    begin: float = 0.5
    every: int = 10

    def __post_init__(self) -> None:
        require_at_least(self, 1, "every")
        if not 0 <= self.begin < 1:
            raise ValueError(f"begin must be at least 0 and below 1, got {self.begin:g}")

    def attach(self, search: Searching) -> Attached:
        """Returns the modifier at work."""
        return _Averaging(search, self)
