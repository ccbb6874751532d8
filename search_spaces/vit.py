"""A vision transformer with choices of heads, ratio and depth (as AutoFormer, Chen et al., 2021, arXiv:2107.00651).

Maps stay (B, C, H, W); their pixels are the tokens. A cell adds a branch to the residual stream: edge 0-1 decides what
the branch computes, edge 0-2 is the stream, so that drop-path drops the branch alone. AutoFormer's perceptrons share
weights; here they do if a search entangles them (`search.modifiers`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from torch import nn

from nas import ops
from nas.space import Cell, CellSlot, Edge, Layer, SearchSpace, Site, Task


def _attention(heads: int, site: Site) -> nn.Module:
    return ops.SelfAttention(site.channels, heads, affine=not site.searching)


def _perceptron(ratio: int, site: Site) -> nn.Module:
    return ops.perceptron(site.channels, ratio, affine=not site.searching)


HEADS = {f"heads_{heads}": partial(_attention, heads) for heads in (2, 4, 8)}
RATIOS = {f"ratio_{ratio}": partial(_perceptron, ratio) for ratio in (1, 2, 4)}


@dataclass(frozen=True, kw_only=True)
class ViT(SearchSpace):
    """Attention with 2, 4 or 8 heads and a perceptron 1, 2 or 4 times as wide in each block; or either is skipped.

    Attributes:
        channels: Width; only numbers of heads that divide it are candidates.
        blocks: Number of blocks; nothing of the first can be skipped.
        patch: Side of the patches that become tokens.
    """

    channels: int = 32
    blocks: int = 4
    patch: int = 2

    operations = {"skip": lambda s: ops.Zero(s.channels), "identity": lambda s: nn.Identity(), **HEADS, **RATIOS}

    def __post_init__(self) -> None:
        if self.channels < 2 or self.channels % 2:
            raise ValueError(f"channels must be a multiple of 2, for two heads, got {self.channels}")
        for name in ("blocks", "patch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def cells(self) -> Mapping[str, Cell]:
        """Two cells for each block: attention and perceptron."""
        heads = tuple(name for name, make in HEADS.items() if self.channels % make.args[0] == 0)
        parts = {"attention": heads, "perceptron": tuple(RATIOS)}
        stream = Edge(0, 2, ("identity",))
        return {
            f"block{block}-{part}": Cell((Edge(0, 1, ("skip",) * (block > 0) + choices), stream), (1, 2), combine="sum")
            for block in range(self.blocks)
            for part, choices in parts.items()
        }

    def layers(self, task: Task, searching: bool) -> list[Layer]:
        """Returns patches, blocks and classifier."""
        head = (ops.ChannelNorm(self.channels), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return [
            ops.Patches(task.channels, self.channels, self.patch, (task.height, task.width)),
            *(CellSlot(name, self.channels) for name in self.cells),
            nn.Sequential(*head, nn.Linear(self.channels, task.classes)),
        ]
