"""Straight-through Gumbel-Softmax: one sampled path forward, the relaxation's gradient backward.

Source: Jang et al., 2017, arXiv:1611.01144.
"""

from dataclasses import dataclass

from torch import Generator, Tensor, isfinite

from nas.estimators import straight_through_gumbel_softmax
from nas.schedules import Exponential, Schedule
from nas.selection import Selection
from nas.selectors.base import Selector, require_positive


@dataclass(frozen=True, kw_only=True)
class StraightThroughGumbelSoftmax(Selector):
    """ST-GS: runs one sampled path; every candidate's weight has the gradient of its own output, by probes."""

    temperature: Schedule = Exponential(start=1.0, end=0.3)

    def __post_init__(self) -> None:
        require_positive("temperature", self.temperature)

    def select(self, logits: Tensor, progress: float, generator: Generator) -> Selection:
        """Samples one candidate per edge and probes the others."""
        weights = straight_through_gumbel_softmax(logits, self.temperature(progress), generator)
        return Selection.single_path(weights, isfinite(logits))


@dataclass(frozen=True, kw_only=True)
class SinglePath(Selector):
    """ST-GS without probes: runs one sampled path; only its weight receives gradient."""

    temperature: Schedule = Exponential(start=1.0, end=0.3)

    def __post_init__(self) -> None:
        require_positive("temperature", self.temperature)

    def select(self, logits: Tensor, progress: float, generator: Generator) -> Selection:
        """Samples one candidate per edge."""
        return Selection.single_path(straight_through_gumbel_softmax(logits, self.temperature(progress), generator))
