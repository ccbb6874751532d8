"""One sampled path forward, a surrogate's gradient backward: straight-through estimators and their relatives."""

from dataclasses import dataclass

from torch import Generator, Tensor, isfinite

from nas.estimators import (
    gumbel_rao,
    pair_reinmax,
    reinmax,
    straight_through_gumbel_softmax,
    straight_through_softmax,
)
from nas.schedules import Exponential, Schedule
from nas.selection import Selection
from nas.selectors.base import Selector, require_positive


@dataclass(frozen=True, kw_only=True)
class StraightThroughGumbelSoftmax(Selector):
    """ST-GS: runs one sampled path; every candidate's weight has the gradient of its own output, by probes.

    Source: Jang et al., 2017, arXiv:1611.01144.
    """

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


@dataclass(frozen=True, kw_only=True)
class StraightThrough(Selector):
    """Straight-through: runs one sampled path with the gradient of the softmax, J_pi v, by probes.

    Source: Bengio et al., 2013, arXiv:1308.3432.
    """

    def select(self, logits: Tensor, progress: float, generator: Generator) -> Selection:
        """Samples one candidate per edge and probes the others."""
        return Selection.single_path(straight_through_softmax(logits, generator), isfinite(logits))


@dataclass(frozen=True, kw_only=True)
class GumbelRao(Selector):
    """Gumbel-Rao: ST-GS with its gradient averaged over noise given the sampled path, so with less variance.

    Source: Paulus et al., 2021, arXiv:2010.04838.

    Attributes:
        temperature: Of the relaxation.
        draws: Conditional draws that are averaged; they cost no candidate evaluations.
    """

    temperature: Schedule = Exponential(start=1.0, end=0.3)
    draws: int = 10

    def __post_init__(self) -> None:
        require_positive("temperature", self.temperature)
        if self.draws < 1:
            raise ValueError(f"draws must be at least 1, got {self.draws}")

    def select(self, logits: Tensor, progress: float, generator: Generator) -> Selection:
        """Samples one candidate per edge and probes the others."""
        weights = gumbel_rao(logits, self.temperature(progress), self.draws, generator)
        return Selection.single_path(weights, isfinite(logits))


@dataclass(frozen=True, kw_only=True)
class ReinMax(Selector):
    """ReinMax: runs one sampled path with a second-order surrogate gradient, by probes; no temperature.

    Source: Liu et al., 2023, arXiv:2304.08612.
    """

    def select(self, logits: Tensor, progress: float, generator: Generator) -> Selection:
        """Samples one candidate per edge and probes the others."""
        return Selection.single_path(reinmax(logits, generator), isfinite(logits))


@dataclass(frozen=True, kw_only=True)
class PairReinMax(Selector):
    """Pair-ReinMax: runs one sampled path and probes one partner per edge; ReinMax's mean from two candidates."""

    def select(self, logits: Tensor, progress: float, generator: Generator) -> Selection:
        """Samples a candidate and its partner on every edge."""
        weights, partner = pair_reinmax(logits, generator)
        return Selection.single_path(weights, partner != 0)
