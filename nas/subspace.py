"""A search space with fewer candidates: the same cells, graphs and layers, small enough to try every architecture."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from nas.space import Cell, Edge, Layer, Operation, SearchSpace, Task

Counts = dict[str, list[int]]
"""How many candidates each edge keeps, by cell name."""


@dataclass(frozen=True, kw_only=True)
class Subspace(SearchSpace):
    """A space whose edges keep some of their candidates; its supernet's parameters are among those of the base's.

    Attributes:
        base: The whole space.
        kept: The candidates of each edge by cell name, in the base's order.
    """

    base: SearchSpace
    kept: Mapping[str, tuple[tuple[str, ...], ...]]
    operations: Mapping[str, Operation] = field(init=False)  # type: ignore[misc]

    def __post_init__(self) -> None:
        object.__setattr__(self, "operations", self.base.operations)

    @cached_property
    def cells(self) -> Mapping[str, Cell]:
        """The base space's cells with the candidates that are kept."""
        return {
            name: Cell(
                tuple(Edge(e.source, e.target, k) for e, k in zip(cell.edges, self.kept[name], strict=True)),
                cell.outputs,
                cell.inputs,
                cell.retain,
                cell.combine,
            )
            for name, cell in self.base.cells.items()
        }

    def layers(self, task: Task, searching: bool) -> list[Layer]:
        """Returns the base space's layers."""
        return self.base.layers(task, searching)


def architectures(space: SearchSpace) -> int:
    """Returns how many decisions there are: the product of the numbers of candidates over the edges of all cells."""
    return math.prod(len(edge.operations) for cell in space.cells.values() for edge in cell.edges)


def reduced(space: SearchSpace, limit: int) -> SearchSpace:
    """Returns a space of at most `limit` architectures with the same graph and layers; itself, if it is that small.

    Every edge keeps as many candidates as the limit allows to all, spread evenly over its list, `none` only if there
    are too few others. Where not even two each are possible, some edges, spread over all cells, keep three, and
    each of the others keeps one, in turn.

    Args:
        space: The search space.
        limit: At least 3.
    """
    assert limit >= 3
    if architectures(space) <= limit:
        return space
    counts = _counts(space.cells, limit)
    kept, turn = {}, 0
    for name, cell in space.cells.items():
        rows = []
        for edge, count in zip(cell.edges, counts[name], strict=True):
            rows.append(_some(edge.operations, count, turn))
            turn += count == 1
        kept[name] = tuple(rows)
    return Subspace(base=space, kept=kept)


def in_words(space: Subspace) -> str:
    """Returns what the reduced space keeps, e.g. `3 of 5 candidates on each of 6 edges: 729 of 15,625 ...`."""
    pairs = [
        (len(kept), len(edge.operations))
        for name, cell in space.base.cells.items()
        for edge, kept in zip(cell.edges, space.kept[name], strict=True)
    ]
    total, whole = architectures(space), architectures(space.base)
    size = f"{total:,} of {f'{whole:,}' if whole < 10**9 else f'10^{math.log10(whole):.0f}'} architectures"
    open_edges = [(kept, of) for kept, of in pairs if kept > 1]
    most = " or ".join(sorted({str(kept) for kept, _ in open_edges}))
    of = " or ".join(sorted({str(of) for _, of in open_edges}))
    if len(open_edges) == len(pairs):
        return f"{most} of {of} candidates on each of {len(pairs)} edges: {size}"
    return f"{most} of {of} candidates on {len(open_edges)} of {len(pairs)} edges, one on each other: {size}"


def _counts(cells: Mapping[str, Cell], limit: int) -> Counts:
    sizes = {name: [len(edge.operations) for edge in cell.edges] for name, cell in cells.items()}
    for most in range(max(map(max, sizes.values())), 1, -1):
        counts = {name: [min(size, most) for size in row] for name, row in sizes.items()}
        if math.prod(count for row in counts.values() for count in row) <= limit:
            return counts
    places = {name: [e for e, size in enumerate(row) if size > 1] for name, row in sizes.items()}
    counts = {name: [1] * len(row) for name, row in sizes.items()}
    most = max(count for count in range(limit) if 3**count <= limit)
    for name, quota in _quotas({name: len(row) for name, row in places.items()}, most).items():
        for place in spread(quota, len(places[name])):
            e = places[name][place]
            counts[name][e] = min(sizes[name][e], 3)
    return counts


def _quotas(room: Mapping[str, int], total: int) -> dict[str, int]:
    """Returns how many edges of each cell stay open: as even as there is room, in cells far apart if not in all."""
    names = [name for name, free in room.items() if free]
    names = [names[place] for place in spread(min(total, len(names)), len(names))]
    quotas = dict.fromkeys(names, 0)
    while total and (free := [name for name in names if quotas[name] < room[name]]):
        for name in free[:total]:
            quotas[name] += 1
        total -= min(total, len(free))
    return quotas


def _some(operations: Sequence[str], count: int, turn: int) -> tuple[str, ...]:
    """Returns `count` candidates in their order; a single one is number `turn`, so that not all edges keep the same."""
    others = [operation for operation in operations if operation != "none"] or [*operations]
    if count == 1:
        return (others[turn % len(others)],)
    if count > len(others):
        return tuple(operations)
    chosen = {others[place] for place in spread(count, len(others))}
    return tuple(operation for operation in operations if operation in chosen)


def spread(count: int, among: int) -> list[int]:
    """Returns `count` of the numbers below `among`, evenly spaced from the first to the last."""
    if count == 1:
        return [among // 2]
    return [round(place * (among - 1) / (count - 1)) for place in range(count)]
