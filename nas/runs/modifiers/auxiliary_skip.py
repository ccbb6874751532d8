"""An auxiliary skip beside every mixture, which fades away, so that candidates compete as equals (DARTS-)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from nas.errors import ConfigError
from nas.runs.modifiers.base import Attached, Modifier, Searching
from nas.runs.modifiers.spaces import ModifiedSpace
from nas.schedules import Linear, Schedule
from nas.selectors import Selector
from nas.space import Cell, Edge, Operation, SearchSpace

SKIP, AUXILIARY = "skip_connect", "auxiliary_skip"


def _offers(edge: Edge) -> bool:
    return SKIP in edge.operations


@dataclass(frozen=True, kw_only=True)
class _Accompanied(ModifiedSpace):
    """A space in which every edge that offers a skip has another, its last candidate."""

    def changed(self) -> Mapping[str, Operation]:
        """Returns the further skip, which is the base's."""
        return {AUXILIARY: self.base.operations[SKIP]}

    @property
    def cells(self) -> Mapping[str, Cell]:
        """The base space's, each skip with its companion."""
        return {
            name: replace(cell, edges=tuple(_accompanied(edge) for edge in cell.edges))
            for name, cell in self.base.cells.items()
        }


def _accompanied(edge: Edge) -> Edge:
    return replace(edge, operations=(*edge.operations, AUXILIARY)) if _offers(edge) else edge


class _Fading(Attached):
    """Sets the skips' weight, which depends on progress alone: a search that is resumed goes on where it was."""

    def __init__(self, search: Searching, beta: Schedule) -> None:
        super().__init__(search)
        self.beta = beta
        self.before(0, 0.0)

    def before(self, step: int, progress: float) -> None:
        self.search.network.companions[AUXILIARY] = self.beta(progress)

    def end_epoch(self, epoch: int, progress: float) -> dict[str, float]:
        return {AUXILIARY: self.beta(progress)}


@dataclass(frozen=True, kw_only=True)
class AuxiliarySkip(Modifier):
    """DARTS-: beside every mixture runs another skip connection, at weight beta, so that `skip_connect` need not help.

    A skip is chosen too often because it lets gradients through, whatever it is worth as an operation; this one does
    so in its place. It stands outside the softmax and has no logit, and is the space's own `skip_connect`: with
    parameters where shapes change. Edges that do not offer a skip, or run nothing, have none; on weighed edges it is
    scaled by the edge. If beta does not end at 0, the measured supernet still has what derived networks lack.

    Source: Chu et al., 2021, arXiv:2009.01027.

    Attributes:
        beta: The weight.
    """

    beta: Schedule = Linear(start=1.0, end=0.0)

    def __post_init__(self) -> None:
        self.beta.require("beta", lambda value: value >= 0, "at least 0")

    def require(self, space: SearchSpace, selector: Selector) -> None:
        """Raises ConfigError unless the space has a candidate `skip_connect`."""
        if not any(_offers(edge) for cell in space.cells.values() for edge in cell.edges):
            raise ConfigError("search.modifiers: auxiliary-skip needs a space with a candidate skip_connect")

    def modify(self, space: SearchSpace) -> SearchSpace:
        """Returns the space with the further skips."""
        return _Accompanied(base=space)

    def attach(self, search: Searching) -> Attached:
        """Returns the modifier at work."""
        return _Fading(search, self.beta)
