"""GDAS with the gradient of its published code (Dong and Yang, 2019, arXiv:1910.04465)."""

from dataclasses import dataclass

from torch import Generator, Tensor

from nas.estimators import straight_through_gumbel_softmax
from nas.schedules import Linear, Schedule
from nas.selection import Selection
from nas.selectors.base import Selector, require_positive


@dataclass(frozen=True, kw_only=True)
class GDAS(Selector):
    """GDAS: runs one sampled path; unsampled weights are added to the edge's output as scalars, as published.

    The gradient therefore treats an unsampled candidate as if its output were one everywhere.
    """

    temperature: Schedule = Linear(start=10.0, end=0.1)

    def __post_init__(self) -> None:
        require_positive("temperature", self.temperature)

    def select(self, logits: Tensor, progress: float, generator: Generator) -> Selection:
        """Samples one candidate per edge."""
        weights = straight_through_gumbel_softmax(logits, self.temperature(progress), generator)
        unsampled = (weights * (weights.detach() == 0)).sum(-1)  # (E,), zero in value
        return Selection.single_path(weights, offset=unsampled)
