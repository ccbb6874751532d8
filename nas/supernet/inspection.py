"""What a network costs, and whether its candidates keep their shapes: found on torch's meta device, without data."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas.errors import ConfigError
from nas.selection import Selection
from nas.space import SearchSpace, Task
from nas.supernet.cell import MixedCell
from nas.supernet.network import Network


@dataclass(frozen=True)
class Size:
    """What a network costs.

    Attributes:
        parameters: Trained numbers, without auxiliary classifiers.
        auxiliary_parameters: Those of the auxiliary classifiers.
        multiply_adds: Of convolutions and matrix products, for one image; of all candidates in a supernet.
    """

    parameters: int
    auxiliary_parameters: int
    multiply_adds: int


def inspect(space: SearchSpace, task: Task, *, searching: bool) -> Size:
    """Builds the network without memory, runs every candidate on shapes alone, and returns its size.

    Raises:
        ConfigError: The space does not fit together: the message names cell, edge and candidate.
    """
    place = ["its cells"]
    try:
        space.check()
        place[0] = "building the layers"
        with torch.device("meta"):
            network = Network(space, task, searching=searching, auxiliary=not searching)
            images = torch.empty(1, task.channels, task.height, task.width)
            everything = {name: Selection.everything(cell) for name, cell in space.cells.items()}
            for key, layer in network.layers.items():
                layer.register_forward_pre_hook(lambda *_, key=key: place.__setitem__(0, f"layer {key}"))
            for cell in network.mixed_cells:
                _watch(cell, place)
            network.eval()
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                scores = network(images, everything).scores
    except ConfigError:
        raise
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"space {type(space).__name__} does not run on {task.channels}x{task.height}x{task.width} images: "
            f"{place[0]}: {type(error).__name__}: {first}"
        ) from error
    if scores.shape != (1, task.classes):
        raise ConfigError(
            f"the last layer of space {type(space).__name__} gives {tuple(scores.shape[1:])} scores; "
            f"it must give one per class, ({task.classes},)"
        )
    return Size(_count(network.layers), _count(network.auxiliary), counter.get_total_flops() // 2)


def _watch(cell: MixedCell, place: list[str]) -> None:
    """Notes which module runs, and refuses a candidate's output of another shape than the cell's nodes have."""
    for index, module in enumerate(cell.preprocess):
        where = f"cell {cell.name!r}, preprocessing of input {index}"
        module.register_forward_pre_hook(lambda *_, where=where: place.__setitem__(0, where))
    channels = cell.channels // cell.partial
    for e, (edge, candidates) in enumerate(zip(cell.cell.edges, cell.candidates, strict=True)):
        stride = cell.stride_of(e)
        for operation, candidate in zip(edge.operations, candidates, strict=True):
            where = f"cell {cell.name!r}, edge {edge.source}-{edge.target}, candidate {operation!r}"

            def before(module: nn.Module, inputs: tuple[Tensor], where: str = where) -> None:
                place[0] = where

            def after(
                module: nn.Module, inputs: tuple[Tensor], y: Tensor, where: str = where, stride: int = stride
            ) -> None:
                batch, _, height, width = inputs[0].shape
                expected = (batch, channels, -(-height // stride), -(-width // stride))
                if tuple(y.shape) != expected:
                    raise ConfigError(
                        f"{where}: gives shape {tuple(y.shape[1:])} from {tuple(inputs[0].shape[1:])}, "
                        f"but stride {stride} and {channels} channels ask for {expected[1:]}; "
                        "every candidate must give the same shape"
                    )

            candidate.register_forward_pre_hook(before)
            candidate.register_forward_hook(after)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
