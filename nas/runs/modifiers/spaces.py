"""A space that is another one but for something: from it a modifier has the supernet built."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from nas.space import Cell, Layer, Operation, SearchSpace, Task


@dataclass(frozen=True, kw_only=True)
class ModifiedSpace(SearchSpace):
    """The base space; subclasses change some of it."""

    base: SearchSpace
    operations: Mapping[str, Operation] = field(init=False)  # type: ignore[misc]

    def __post_init__(self) -> None:
        object.__setattr__(self, "operations", {**self.base.operations, **self.changed()})

    def changed(self) -> Mapping[str, Operation]:
        """Returns the operations that differ from the base's, or are new."""
        return {}

    @property
    def cells(self) -> Mapping[str, Cell]:
        """The base space's."""
        return self.base.cells

    def layers(self, task: Task, searching: bool) -> list[Layer]:
        """Returns the base space's."""
        return self.base.layers(task, searching)
