"""Gumbel-Softmax: every edge is a random mixture of its candidates (SNAS; Xie et al., 2019, arXiv:1812.09926)."""

from dataclasses import dataclass

from torch import Generator, Tensor, isfinite

from nas.estimators import gumbel_softmax
from nas.schedules import Exponential, Schedule
from nas.selection import Selection
from nas.selectors.base import Selector, require_positive


@dataclass(frozen=True, kw_only=True)
class GumbelSoftmax(Selector):
    """SNAS: a relaxed sample weighs all candidates; K candidates run."""

    temperature: Schedule = Exponential(start=1.0, end=0.3)

    def __post_init__(self) -> None:
        require_positive("temperature", self.temperature)

    def select(self, logits: Tensor, progress: float, generator: Generator) -> Selection:
        """Weighs every candidate by one Gumbel-Softmax sample per edge."""
        weights = gumbel_softmax(logits, self.temperature(progress), generator)
        return Selection.mixture(weights, isfinite(logits))
