"""A decided architecture, independent of the space it came from."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING

from nas.errors import ConfigError

if TYPE_CHECKING:
    import networkx

Choice = tuple[int, int, str]
"""An edge with its decided operation: (source, target, operation)."""


@dataclass(frozen=True, eq=False)
class Genotype:
    """A decided architecture: for each cell, its edges with one operation each.

    Equal when the sorted edge lists are equal. An edge that is not listed does not exist.
    """

    cells: Mapping[str, tuple[Choice, ...]]

    def __post_init__(self) -> None:
        ordered = {
            name: tuple(sorted(((index(s), index(t), str(o)) for s, t, o in edges), key=lambda c: (c[1], c[0], c[2])))
            for name, edges in sorted(self.cells.items())
        }
        object.__setattr__(self, "cells", ordered)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Genotype) and self.cells == other.cells

    def __hash__(self) -> int:
        return hash(tuple(self.cells.items()))

    def to_json(self) -> str:
        """Returns one line of JSON: {"cells": {name: [[source, target, operation], ...]}}."""
        return json.dumps({"cells": self.cells})

    @classmethod
    def from_json(cls, text: str) -> "Genotype":
        """Parses `to_json`'s text.

        Raises:
            ConfigError: The text is no genotype.
        """
        try:
            cells = json.loads(text)["cells"]
            return cls({name: tuple((s, t, o) for s, t, o in edges) for name, edges in cells.items()})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            example = '{"cells": {"normal": [[0, 2, "skip_connect"], ...]}}'
            raise ConfigError(f"{text[:60]!r} is no genotype ({error}); JSON genotypes read {example}") from None

    def graph(self, cell: str) -> "networkx.DiGraph[int]":
        """Returns one cell as a graph whose edges carry `operation`."""
        import networkx

        graph: networkx.DiGraph[int] = networkx.DiGraph()
        graph.add_edges_from(
            (source, target, {"operation": operation}) for source, target, operation in self.cells[cell]
        )
        return graph

    def without(self, operation: str) -> "Genotype":
        """Returns the genotype without the edges that hold `operation`, e.g. `none`."""
        return Genotype({n: tuple(c for c in edges if c[2] != operation) for n, edges in self.cells.items()})


def least_renumbering(choices: Sequence[Choice], *groups: Sequence[int]) -> list[Choice]:
    """Returns the least sorted edge list over all renumberings that permute nodes within each group."""
    best: list[Choice] | None = None
    for orders in itertools.product(*(itertools.permutations(group) for group in groups)):
        new = dict(zip(itertools.chain(*groups), itertools.chain(*orders), strict=True))
        edges = sorted((new.get(source, source), new.get(target, target), op) for source, target, op in choices)
        best = edges if best is None else min(best, edges)
    assert best is not None
    return best
