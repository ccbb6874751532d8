"""DARTS-Bench-Suite: three networks by three sets of candidates (Jha et al., 2025, arXiv:2507.16533).

Sizes and sets are those of the authors' code (`benchsuite.py` of github.com/automl/ConfigurableOptimizer). The one cell
of `single-cell` stands at a third and at two thirds of its network, so it reduces; it concatenates the last four of its
eight nodes. `all-skip` adds a skip connection to every edge, derived or not. Here it is a part of every candidate: the
same where an edge's weights sum to 1, but with stride 2 each candidate's skip connection has weights of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from nas import ops
from nas.space import Cell, Edge, Layer, Operation, SearchSpace, Task
from search_spaces.darts import OPERATIONS, stack

Setting = Literal["wide", "deep", "single-cell"]
Candidates = Literal["regular", "no-skip", "all-skip"]
SIZES = {"wide": (18, 4, 4), "deep": (7, 18, 4), "single-cell": (26, 1, 8)}


def _beside_skip(operation: Operation) -> Operation:
    return lambda s: ops.BesideSkip(operation(s), OPERATIONS["skip_connect"](s))


ALL_SKIP = {name: _beside_skip(operation) for name, operation in OPERATIONS.items()}


@dataclass(frozen=True, kw_only=True)
class DARTSBenchSuite(SearchSpace):
    """DARTS's cells in a shallow and wide, a deep and narrow, or a one-cell network; with no, some or all skips.

    Attributes:
        setting: The network.
        candidates: DARTS's eight, seven without `skip_connect`, or eight with a skip connection beside each.
        channels: Width of the first cell; null for the setting's 18, 7 or 26.
        depth: Number of cells; null for the setting's 4, 18 or 1.
    """

    setting: Setting = "wide"
    candidates: Candidates = "regular"
    channels: int | None = None
    depth: int | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("setting", get_args(Setting)), ("candidates", get_args(Candidates))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        channels, depth, _ = self.sizes
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        if depth != 1 if self.setting == "single-cell" else depth < 3:
            raise ValueError(f"depth must be at least 3, but 1 where setting is single-cell, got {depth}")

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Channels of the first cell, cells, and nodes of a cell."""
        channels, depth, nodes = SIZES[self.setting]
        return channels if self.channels is None else self.channels, depth if self.depth is None else self.depth, nodes

    @property
    def operations(self) -> Mapping[str, Operation]:  # type: ignore[override]
        """DARTS's operations, alone or beside a skip connection."""
        return ALL_SKIP if self.candidates == "all-skip" else OPERATIONS

    @property
    def cells(self) -> Mapping[str, Cell]:
        """The cells that the network has: of a single one, only `reduce`."""
        last = 2 + self.sizes[2]
        names = tuple(name for name in OPERATIONS if name != "skip_connect" or self.candidates != "no-skip")
        edges = tuple(Edge(source, target, names) for target in range(2, last) for source in range(target))
        cell = Cell(edges, outputs=tuple(range(last - 4, last)), inputs=2, retain=2)
        return dict.fromkeys(("reduce",) if self.setting == "single-cell" else ("normal", "reduce"), cell)

    def layers(self, task: Task, searching: bool) -> list[Layer]:
        """Returns DARTS's layers."""
        channels, depth, _ = self.sizes
        return stack(task, searching, channels, depth, joined=4)
