"""What weight steps train instead of the selector's decisions: fair sets of single paths, and sandwiches of them.

A supernet that ranks architectures well has trained them alike. The logits still learn under the selector's decisions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator

from nas.ops import Zero
from nas.randomness import generator
from nas.runs.modifiers.base import Attached, Decision, Modifier, Searching
from nas.selection import Selection, indices


class _Fair(Attached):
    """Draws, for every edge, an order of its candidates; the n-th path takes the n-th of each."""

    def decisions(self, decisions: list[Decision], step: int, progress: float) -> list[Decision]:
        draws = generator(self.search.seed, "fair paths", step)
        live = _live(self.search)
        count = max(len(row) for rows in live.values() for row in rows)
        orders = {name: [_order(row, count, draws) for row in rows] for name, rows in live.items()}
        return [
            {name: Selection(tuple((order[place],) for order in rows)) for name, rows in orders.items()}
            for place in range(count)
        ]


@dataclass(frozen=True, kw_only=True)
class FairPaths(Modifier):
    """FairNAS: every weight step trains each candidate of every edge once, by one single path per candidate.

    Their gradients are added up, averaged, before one step on the weights, so no candidate is trained more or later
    than another. An edge with fewer candidates than the largest repeats them in turn. A step costs as many passes as
    the largest edge has candidates.

    Source: Chu et al., 2021, arXiv:1907.01845 (strict fairness).
    """

    apart: ClassVar[Mapping[str, str]] = {"sandwich": "each replaces all that a weight step trains"}

    def attach(self, search: Searching) -> Attached:
        """Returns the modifier at work."""
        return _Fair(search)


class _Sandwich(Attached):
    def __init__(self, search: Searching, paths: int) -> None:
        super().__init__(search)
        self.paths, self.sizes = paths, _sizes(search)

    def decisions(self, decisions: list[Decision], step: int, progress: float) -> list[Decision]:
        draws = generator(self.search.seed, "sandwich", step)
        live = _live(self.search)
        drawn: list[Decision] = [
            {name: Selection(tuple((_order(row, 1, draws)[0],) for row in rows)) for name, rows in live.items()}
            for _ in range(self.paths)
        ]
        return [*_extremes(self.sizes, live), *drawn]


@dataclass(frozen=True, kw_only=True)
class Sandwich(Modifier):
    """The sandwich rule: every weight step trains the largest path, the smallest, and some drawn uniformly.

    Largest and smallest by parameters of each candidate (of equals the first), without operations that give zeros.

    Source: Yu and Huang, 2019, arXiv:1903.05134; without their distillation from the largest.

    Attributes:
        paths: How many paths are drawn besides.
    """

    paths: int = 2

    def __post_init__(self) -> None:
        if self.paths < 0:
            raise ValueError(f"paths must be at least 0, got {self.paths}")

    def attach(self, search: Searching) -> Attached:
        """Returns the modifier at work."""
        return _Sandwich(search, self.paths)


def _live(search: Searching) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Returns the candidates of each edge that are not masked, by cell name."""
    return {name: indices(torch.isfinite(table)) for name, table in search.architecture.logits().items()}


def _order(row: tuple[int, ...], count: int, draws: Generator) -> list[int]:
    """Returns `count` of the candidates in random order, each as often as any other, give or take one."""
    order = [row[k] for k in torch.randperm(len(row), generator=draws).tolist()]
    return [order[place % len(order)] for place in range(count)]


def _sizes(search: Searching) -> dict[str, list[list[int]]]:
    """Returns the number of parameters of every candidate of each edge, -1 for zeros, by cell name."""
    sizes: dict[str, list[list[int]]] = {}
    for cell in search.network.mixed_cells:
        rows = [  # candidates of the cell's first place; later ones differ in width only
            [-1 if isinstance(each, Zero) else sum(p.numel() for p in each.parameters()) for each in candidates]
            for candidates in cell.candidates
        ]
        sizes.setdefault(cell.name, rows)
    return sizes


def _extremes(
    sizes: dict[str, list[list[int]]], live: dict[str, tuple[tuple[int, ...], ...]]
) -> tuple[Decision, Decision]:
    """Returns the paths of the candidates with most and with fewest parameters among those that are left."""
    largest, smallest = {}, {}
    for name, rows in sizes.items():
        pairs = [*zip(rows, live[name], strict=True)]
        largest[name] = Selection(tuple((max(left, key=row.__getitem__),) for row, left in pairs))
        whole = [(row, [k for k in left if row[k] >= 0] or left) for row, left in pairs]
        smallest[name] = Selection(tuple((min(left, key=row.__getitem__),) for row, left in whole))
    return largest, smallest
