"""The interface of edge selectors."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor, nn

from nas.estimators import softmax
from nas.schedules import Schedule
from nas.selection import Selection
from nas.space import Cell

LossOf = Callable[[Mapping[str, Selection]], Tensor]
"""Loss of the supernet under one selection per cell; differentiable in the selections' weights."""


def require_positive(name: str, schedule: Schedule) -> None:
    """Raises ValueError unless the schedule stays positive, as a temperature must."""
    schedule.require(name, lambda value: value > 0, "positive")


@dataclass(frozen=True, kw_only=True)
class Selector(ABC):
    """Turns logits into decisions. A selector is its own configuration and keeps no state.

    Attributes:
        stochastic: Whether `select` draws; a deterministic selector is evaluated once.
        learns: Whether `objective` has a gradient in the logits; without one, architecture steps are skipped and
            the genotype is found by sampling.
        weighs_edges: Whether whole edges are weighted too, so that an edge may run nothing, and one path's weight may
            be other than 1.
    """

    registry: ClassVar[str] = "nas.selectors"
    stochastic: ClassVar[bool] = True
    learns: ClassVar[bool] = True
    weighs_edges: ClassVar[bool] = False

    def on(self, cells: Mapping[str, Cell]) -> "Selector":
        """Returns the selector at work on these cells: itself, unless it must know their graphs."""
        return self

    @abstractmethod
    def select(self, logits: Tensor, progress: float, generator: Generator) -> Selection:
        """Decides for one cell.

        Args:
            logits: (E, K), -inf where a candidate is masked.
            progress: Position in the search, 0 to 1, for schedules.
            generator: Source of randomness.
        """

    def decide(self, logits: Mapping[str, Tensor], progress: float, generator: Generator) -> dict[str, Selection]:
        """Returns one decision per cell; `logits` are (E, K) by cell name."""
        return {name: self.select(table, progress, generator) for name, table in logits.items()}

    def probabilities(self, logits: Tensor) -> Tensor:
        """Returns how the logits rank an edge's candidates, (E, K), rows summing to 1; read by entropies and logs."""
        return softmax(logits)

    def ranking(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns scores of at least 0 by which a derivation compares candidates, also those of different edges.

        (E, K) by cell name, as the logits; an edge whose scores are all 0 is left out. The probabilities, unless a
        selector knows more.
        """
        return {name: self.probabilities(table) for name, table in logits.items()}

    def objective(
        self,
        loss_of: LossOf,
        logits: Mapping[str, Tensor],
        progress: float,
        generator: Generator,
        memory: nn.Module | None,
    ) -> Tensor:
        """Returns a scalar whose gradient in the logits is this selector's estimate.

        Args:
            loss_of: May be called several times.
            logits: (E, K) by cell name.
            progress: Position in the search, 0 to 1.
            generator: Source of randomness.
            memory: What `memory` returned, trained and checkpointed with the search.
        """
        return loss_of(self.decide(logits, progress, generator))

    def memory(self, cells: Mapping[str, Cell]) -> nn.Module | None:
        """Returns a fresh module for what must be remembered between steps (a baseline), or None."""
        return None

    def settings(self, progress: float) -> dict[str, float]:
        """Returns the values of the schedules at `progress`, for logs."""
        return {name: value(progress) for name, value in vars(self).items() if isinstance(value, Schedule)}
