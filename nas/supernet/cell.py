"""A cell's parameters, and nothing else; `reference.run_cell` says what they do."""

from collections.abc import Mapping

from torch import nn

from nas.errors import ConfigError
from nas.space import Cell, CellSlot, Operation, Site


class MixedCell(nn.Module):
    """Every candidate operation of every edge of one cell, named `edges.<source>-<target>.<operation>`.

    Attributes:
        name: The cell's name in `SearchSpace.cells`.
        cell: The graph.
        channels: Channels of every node after the inputs.
        stride: Stride of the edges that leave an input.
        partial: Candidates run on the first 1/partial of the channels.
        drop_path: Probability with which a sample loses a candidate's output in training (the identity's never).
        candidates: candidates[e][k] is candidate k of edge e.
    """

    def __init__(self, cell: Cell, slot: CellSlot, operations: Mapping[str, Operation], *, searching: bool) -> None:
        super().__init__()
        if slot.preprocess and len(slot.preprocess) != cell.inputs:
            raise ConfigError(
                f"the slot of cell {slot.cell!r} preprocesses {len(slot.preprocess)} of {cell.inputs} inputs"
            )
        inputs = slot.in_channels or slot.channels
        if slot.partial > 1 and (slot.channels % slot.partial or inputs != slot.channels):
            raise ConfigError(
                f"cell {slot.cell!r} maps {inputs} to {slot.channels} channels; to run on 1/{slot.partial} of them "
                f"(partial-channels in search.modifiers) both must be the same multiple of {slot.partial}, so that the "
                "others can bypass the operations; change its share or the space's channels, or leave it away"
            )
        self.name, self.cell, self.channels, self.stride = slot.cell, cell, slot.channels, slot.stride
        self.partial, self.drop_path = slot.partial, 0.0
        self.preprocess = nn.ModuleList(slot.preprocess)
        self.edges = nn.ModuleDict()
        for edge in cell.edges:
            outer = edge.source < cell.inputs
            width = (inputs if outer else slot.channels) // slot.partial
            site = Site(width, slot.channels // slot.partial, slot.stride if outer else 1, searching)
            built = {operation: operations[operation](site) for operation in edge.operations}
            self.edges[f"{edge.source}-{edge.target}"] = nn.ModuleDict(built)
        self.candidates = [list(edge.children()) for edge in self.edges.children()]

    def stride_of(self, e: int) -> int:
        """Returns the stride of edge e."""
        return self.stride if self.cell.edges[e].source < self.cell.inputs else 1
