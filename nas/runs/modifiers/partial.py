"""Partial channels: an edge's operations see some of the channels, and the others bypass them (PC-DARTS)."""

from dataclasses import dataclass, replace

from nas.runs.modifiers.base import Attached, Modifier, Searching
from nas.runs.modifiers.spaces import ModifiedSpace
from nas.space import CellSlot, Layer, SearchSpace, Task


@dataclass(frozen=True, kw_only=True)
class _Partial(ModifiedSpace):
    """A space whose operations run on a share of the channels."""

    share: int

    def layers(self, task: Task, searching: bool) -> list[Layer]:
        """Returns the base space's, with the share in every slot."""
        layers = self.base.layers(task, searching)
        return [replace(layer, partial=self.share) if isinstance(layer, CellSlot) else layer for layer in layers]


@dataclass(frozen=True, kw_only=True)
class PartialChannels(Modifier):
    """PC-DARTS's partial channels: operations run on the first 1/share of an edge's channels, the others bypass them.

    The channels are then shuffled, so that the next edge's operations see some of both. Where an edge halves the
    resolution the bypass is a max pool. An edge that runs nothing passes nothing. A wide supernet needs less memory and
    time, for larger batches; on CPUs, below 32 channels, padding and the bypass eat up what is saved. The derived
    network is retrained with all channels.

    PC-DARTS as published is this with the selector `edge-normalised`, which scales the bypass too, and a warm-up of 15
    of 50 epochs (search.warmup=0.3).

    Source: Xu et al., 2020, arXiv:1907.05737.

    Attributes:
        share: One of how many channels the operations see; 1 is all.
    """

    share: int = 4

    def __post_init__(self) -> None:
        if self.share < 2:
            raise ValueError(f"share must be at least 2, since 1/share of the channels are taken, got {self.share}")

    def modify(self, space: SearchSpace) -> SearchSpace:
        """Returns the space with partial channels; building a network of it refuses channels that do not divide."""
        return _Partial(base=space, share=self.share)

    def attach(self, search: Searching) -> Attached:
        """Returns a modifier that does nothing more."""
        return Attached(search)
