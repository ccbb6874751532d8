"""A chain of inverted residuals with choices of kernel, expansion and skip (as ProxylessNAS, arXiv:1812.00332)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from torch import nn

from nas import ops
from nas.space import Cell, CellSlot, Edge, Layer, SearchSpace, Site, Task


def _block(kernel: int, expansion: int, site: Site) -> nn.Module:
    """The supernet's blocks have no scale and shift, so that no candidate is larger than another."""
    return ops.InvertedResidual(
        site.in_channels, site.channels, kernel, site.stride, expansion, affine=not site.searching
    )


BLOCKS = {
    f"mb_k{kernel}_e{expansion}": partial(_block, kernel, expansion) for kernel in (3, 5, 7) for expansion in (3, 6)
}


@dataclass(frozen=True, kw_only=True)
class Chain(SearchSpace):
    """MobileNet-style chain: each block chooses kernel 3, 5 or 7 and expansion 3 or 6, or is skipped.

    Attributes:
        channels: Width of the first stage; doubled in each later one.
        stages: Number of stages; each but the first halves the resolution.
        blocks_per_stage: Blocks in each stage; the first of a stage cannot be skipped.
    """

    channels: int = 16
    stages: int = 3
    blocks_per_stage: int = 2

    operations = {"skip_connect": lambda s: nn.Identity(), **BLOCKS}

    def __post_init__(self) -> None:
        for name in ("channels", "stages", "blocks_per_stage"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def cells(self) -> Mapping[str, Cell]:
        """One cell of a single edge for each block."""
        return {
            f"stage{stage}-block{block}": Cell((Edge(0, 1, tuple(self.operations if block else BLOCKS)),), outputs=(1,))
            for stage in range(self.stages)
            for block in range(self.blocks_per_stage)
        }

    def layers(self, task: Task, searching: bool) -> list[Layer]:
        """Returns stem, blocks and classifier."""
        width = self.channels
        layers: list[Layer] = [
            nn.Sequential(nn.Conv2d(task.channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU6())
        ]
        for stage in range(self.stages):
            channels = self.channels * 2**stage
            for block in range(self.blocks_per_stage):
                stride = 2 if stage and not block else 1
                layers.append(CellSlot(f"stage{stage}-block{block}", channels, stride, in_channels=width))
                width = channels
        head = [nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width), nn.ReLU6()]
        return [
            *layers,
            nn.Sequential(*head, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, task.classes)),
        ]
