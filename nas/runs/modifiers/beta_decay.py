"""Beta-decay: keeps the logits small and alike while they learn (beta-DARTS; arXiv:2203.01665)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nas.errors import ConfigError
from nas.runs.modifiers.base import Attached, Modifier, Searching
from nas.schedules import Linear, Schedule
from nas.selectors import Selector
from nas.space import SearchSpace


class _Decay(Attached):
    def __init__(self, search: Searching, weight: Schedule) -> None:
        super().__init__(search)
        self.weight = weight

    def penalty(self, logits: Mapping[str, Tensor], progress: float) -> Tensor | None:
        weight = self.weight(progress)
        # Of the logits, not of their softmax, whose logsumexp grows as an edge decides but hardly moves.
        return weight * torch.cat([table.logsumexp(-1) for table in logits.values()]).mean() if weight else None

    def end_epoch(self, epoch: int, progress: float) -> dict[str, float]:
        return {"beta_decay": self.weight(progress)}


@dataclass(frozen=True, kw_only=True)
class BetaDecay(Modifier):
    """Beta-DARTS: an architecture step also descends the edges' mean logsumexp(logits), times a growing weight.

    Its gradient is softmax(logits), the strongest candidate's logit falls most: values and differences of the logits
    stay small. Candidates that are masked or dropped do not count. For entropy there is `search.entropy`. Where a
    growing weight outweighs the loss, Adam can come to prefer what the loss likes least: see `experiments/verdict`.

    Source: Ye et al., 2022, arXiv:2203.01665.

    Attributes:
        weight: Of the mean, in units of the loss; as published from 0 to 50, on NAS-Bench-201.
    """

    weight: Schedule = Linear(start=0.0, end=50.0)

    def __post_init__(self) -> None:
        self.weight.require("weight", lambda value: value >= 0, "at least 0")

    def require(self, space: SearchSpace, selector: Selector) -> None:
        """Raises ConfigError unless logits are learned."""
        if not selector.learns:
            raise ConfigError("search.modifiers: beta-decay penalises logits; the selector learns none, choose another")

    def attach(self, search: Searching) -> Attached:
        """Returns the modifier at work."""
        return _Decay(search, self.weight)
