"""A network of a search space: the supernet, and, for a space with one candidate per edge, the derived network."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from nas.errors import ConfigError
from nas.selection import Selection
from nas.space import Auxiliary, CellSlot, SearchSpace, Task
from nas.supernet.cell import MixedCell
from nas.supernet.layout import arranged
from nas.supernet.plan import block
from nas.supernet.reference import run_cell

Selections = Mapping[str, Selection]
"""One decision per cell name."""

RunCell = Callable[[MixedCell, Sequence[Tensor], Selection], Tensor]


class Output(NamedTuple):
    """Class scores (B, classes), and those of the auxiliary classifiers while training."""

    scores: Tensor
    auxiliary: list[Tensor]


class Network(nn.Module):
    """The layers of a space, with its cells in their slots.

    A network of `space.fix(genotype)` is the derived network. With searching=True its state_dict is a subset of the
    supernet's and it computes what the discretised supernet computes, bit for bit; with searching=False it is the
    network to train from scratch.

    Args:
        space: The search space.
        task: What the network is for.
        searching: Whether operations take the supernet's form.
        auxiliary: Whether to build the space's auxiliary classifiers.
        run: The execution of a cell.
        fast: Whether images are made channels-last, and `run` also runs the layers between cells that are understood.

    Attributes:
        companions: Candidates that run beside every decision, and their weights; decisions need not know them.

    Raises:
        ConfigError: The space names unknown operations or cells, or its cells are no acyclic graphs.
    """

    def __init__(
        self,
        space: SearchSpace,
        task: Task,
        *,
        searching: bool,
        auxiliary: bool = False,
        run: RunCell = run_cell,
        fast: bool = False,
    ) -> None:
        super().__init__()
        self.run, self.fast = run, fast
        self.layers = nn.ModuleDict()
        self.auxiliary = nn.ModuleDict()
        cells = space.cells
        self.cells, self.companions = dict(cells), dict[str, float]()
        self.single = {name: Selection.everything(cell) for name, cell in cells.items() if cell.candidates <= 1}
        self.reach = max(cell.inputs for cell in cells.values())
        for index, layer in enumerate(space.layers(task, searching)):
            if isinstance(layer, Auxiliary):
                if auxiliary:
                    self.auxiliary[str(index)] = layer.head
            elif isinstance(layer, CellSlot):
                if layer.cell not in cells:
                    raise ConfigError(f"layer {index} is a slot of cell {layer.cell!r}; the space has {sorted(cells)}")
                self.layers[str(index)] = MixedCell(cells[layer.cell], layer, space.operations, searching=searching)
            else:
                self.layers[str(index)] = layer
        plain = {index: layer for index, layer in self.layers.items() if not isinstance(layer, MixedCell)}
        # In a plain mapping, since the modules in them are this network's already.
        self.blocks = {index: cell for index, layer in plain.items() if (cell := block(layer))}

    def forward(self, images: Tensor, selections: Selections | None = None) -> Output:
        """Runs the network.

        Args:
            images: (B, C, H, W).
            selections: One decision per cell; None for a network with one candidate per edge.
        """
        selections = self.single if selections is None else selections
        for operation, weight in self.companions.items():
            selections = {
                name: selection.beside(self.cells[name], operation, weight).to(images.device)
                for name, selection in selections.items()
            }
        if self.fast:
            images = arranged(images)
        history: list[Tensor] = [images]
        heads: list[Tensor] = []
        for index in sorted([*self.layers, *(self.auxiliary if self.training else [])], key=int):
            if index in self.auxiliary:
                heads.append(self.auxiliary[index](history[-1]))
                continue
            layer = self.layers[index]
            if isinstance(layer, MixedCell):
                history.append(self.run(layer, history[-layer.cell.inputs :], selections[layer.name]))
            elif self.fast and index in self.blocks:
                whole = self.blocks[index]
                history.append(self.run(whole, history[-1:], Selection.everything(whole.cell)))
            else:
                history.append(layer(history[-1]))
            del history[: -self.reach]
        return Output(history[-1], heads)

    @property
    def mixed_cells(self) -> list[MixedCell]:
        """The cells, in the order of the layers."""
        return [layer for layer in self.layers.values() if isinstance(layer, MixedCell)]
