"""Partial channels for any engine: what a node adds up is a cell of its own, on slices; the bypass is done here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from nas.ops import zeros
from nas.selection import Selection
from nas.space import Cell, CellSlot, Edge
from nas.supernet.cell import MixedCell
from nas.supernet.layout import arranged
from nas.supernet.plan import block
from nas.supernet.reference import passed_by, shuffled

RunCell = Callable[[MixedCell, Sequence[Tensor], Selection], Tensor]


@dataclass(frozen=True, eq=False)
class Part:
    """The in-edges of one node that read maps of one size, as a cell that shares the whole cell's candidates.

    Attributes:
        cell: Of one node, all of whose sources are inputs.
        edges: Its edges in the whole cell.
        sources: The states it reads.
    """

    cell: MixedCell
    edges: list[int]
    sources: list[int]

    def of(self, selection: Selection) -> Selection:
        """Returns what the part does under the whole cell's decision."""
        weights, offset = (None if t is None else t[self.edges] for t in (selection.weights, selection.offset))
        paths, probes = (
            tuple(rows[e] for e in self.edges) if rows else () for rows in (selection.paths, selection.probes)
        )
        return Selection(paths, weights, probes, offset=offset)


def run_in_parts(run: RunCell, cell: MixedCell, inputs: Sequence[Tensor], selection: Selection) -> Tensor:
    """Runs a cell with partial channels, as `reference.run_cell` does, by an engine that knows whole ones only."""
    known = _known.get(cell)
    if known is None:
        known = _known[cell] = [block(before) for before in cell.preprocess], _parts(cell)
    blocks, parts = known
    nodes = {i: arranged(x) for i, x in enumerate(inputs)}
    for i, (before, module) in enumerate(zip(blocks, cell.preprocess, strict=True)):
        whole = None if before is None else run(before, [nodes[i]], Selection.everything(before.cell))
        nodes[i] = module(nodes[i]) if whole is None else whole
    blank = zeros(nodes[0], cell.channels, cell.stride)
    few = cell.channels // cell.partial
    seen: dict[int, Tensor] = {}
    for node in cell.cell.order:
        sums: list[Tensor] = []
        for part in parts[node]:
            own = part.of(selection)
            if any(own.paths):
                for i in part.sources:
                    if i not in seen:
                        seen[i] = arranged(nodes[i][:, :few])
                vars(part.cell).update(training=cell.training, drop_path=cell.drop_path)
                sums.append(run(part.cell, [seen[i] for i in part.sources], own))
        running = [e for part in parts[node] for e in part.edges if selection.paths[e]]
        passed = [passed_by(cell, e, nodes[cell.cell.edges[e].source], selection) for e in running]
        nodes[node] = shuffled(reduce(add, sums), reduce(add, passed), cell.partial) if running else blank
    outputs = [nodes[node] for node in cell.cell.outputs]
    return torch.cat(outputs, dim=1) if cell.cell.combine == "concatenate" else reduce(add, outputs)


_known: WeakKeyDictionary[MixedCell, tuple[list[MixedCell | None], dict[int, list[Part]]]] = WeakKeyDictionary()


def _parts(cell: MixedCell) -> dict[int, list[Part]]:
    """Returns the parts of every node: the edges from inputs, which may have a stride, and the others."""
    found = {}
    for node in cell.cell.order:
        edges = cell.cell.in_edges(node)
        outer = [e for e in edges if cell.cell.edges[e].source < cell.cell.inputs]
        groups = [outer, [e for e in edges if e not in outer]]
        found[node] = [_part(cell, group) for group in groups if group]
    return found


def _part(cell: MixedCell, edges: list[int]) -> Part:
    rows = [cell.cell.edges[e] for e in edges]
    sources = [edge.source for edge in rows]
    graph = Cell(
        tuple(Edge(i, len(rows), edge.operations) for i, edge in enumerate(rows)), (len(rows),), inputs=len(rows)
    )
    modules = iter([candidate for e in edges for candidate in cell.candidates[e]])
    # A cell builds its candidates in this order.
    operations = {name: lambda site: next(modules) for edge in rows for name in edge.operations}
    slot = CellSlot(cell.name, cell.channels // cell.partial, cell.stride_of(edges[0]))
    return Part(MixedCell(graph, slot, operations, searching=True), edges, sources)
