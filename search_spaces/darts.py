"""The DARTS space: normal and reduction cells of four nodes with eight candidates (arXiv:1806.09055)."""

import ast
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from nas import ops
from nas.errors import ConfigError
from nas.space import Auxiliary, Cell, CellSlot, Choice, Edge, Genotype, Layer, Operation, SearchSpace, Site, Task


def _pool(pool: nn.Module, site: Site) -> nn.Module:
    """The supernet normalises after a pool, so that no candidate is larger than another; a derived network does not."""
    return nn.Sequential(pool, nn.BatchNorm2d(site.channels, affine=False)) if site.searching else pool


OPERATIONS: dict[str, Operation] = {
    "none": lambda s: ops.Zero(s.channels, s.stride),
    "max_pool_3x3": lambda s: _pool(nn.MaxPool2d(3, s.stride, 1), s),
    "avg_pool_3x3": lambda s: _pool(ops.average_pool(3, s.stride), s),
    "skip_connect": lambda s: ops.skip_connect(s.in_channels, s.channels, s.stride, affine=not s.searching),
    "sep_conv_3x3": lambda s: ops.twice_separable_conv(s.in_channels, s.channels, 3, s.stride, affine=not s.searching),
    "sep_conv_5x5": lambda s: ops.twice_separable_conv(s.in_channels, s.channels, 5, s.stride, affine=not s.searching),
    "dil_conv_3x3": lambda s: ops.separable_conv(s.in_channels, s.channels, 3, s.stride, 2, affine=not s.searching),
    "dil_conv_5x5": lambda s: ops.separable_conv(s.in_channels, s.channels, 5, s.stride, 2, affine=not s.searching),
}


class AuxiliaryHead(nn.Module):
    """The published auxiliary classifier; other maps than 8x8 are pooled adaptively to the 2x2 it needs."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(768, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, channels, H, W) to class scores (B, classes)."""
        x = x.relu()
        if min(x.shape[2:]) >= 8:
            x = F.avg_pool2d(x, 5, stride=3, count_include_pad=False)
        scores: Tensor = self.body(F.adaptive_avg_pool2d(x, 2))
        return scores


def stack(task: Task, searching: bool, channels: int, depth: int, joined: int) -> list[Layer]:
    """Returns stem, cells with an auxiliary classifier after two thirds, and classifier.

    Args:
        task: What the network is for.
        searching: Whether the layers take the supernet's form.
        channels: Width of the first cells; doubled at each reduction.
        depth: Number of cells; those at one and two thirds are slots of `reduce`, the others of `normal`.
        joined: How many nodes a cell concatenates.
    """
    affine = not searching
    width = 3 * channels
    stem = nn.Sequential(nn.Conv2d(task.channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
    layers: list[Layer] = [stem, nn.Identity()]
    widths, reduced = (width, width), False
    for index in range(depth):
        reduce = index in (depth // 3, 2 * depth // 3)
        channels *= 2 if reduce else 1
        before = (
            ops.FactorizedReduce(widths[0], channels, affine=affine)
            if reduced
            else ops.relu_conv_norm(widths[0], channels, 1, affine=affine)
        )
        preprocess = (before, ops.relu_conv_norm(widths[1], channels, 1, affine=affine))
        layers.append(CellSlot("reduce" if reduce else "normal", channels, 2 if reduce else 1, preprocess))
        widths, reduced = (widths[1], joined * channels), reduce
        if index == 2 * depth // 3:
            layers.append(Auxiliary(AuxiliaryHead(widths[1], task.classes)))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[1], task.classes))
    return [*layers, head]


@dataclass(frozen=True, kw_only=True)
class DARTSCells(SearchSpace):
    """Normal and reduction cells in which every node reads both inputs and all nodes before it, and keeps two.

    Attributes:
        channels: Width of the first cells; doubled at each reduction.
        depth: Number of cells, at least 3; those at one and two thirds reduce.
        nodes: Intermediate nodes per cell.
    """

    channels: int = 16
    depth: int = 8
    nodes: int = 4

    operations = OPERATIONS

    def __post_init__(self) -> None:
        if self.depth < 3:
            raise ValueError(f"depth must be at least 3, so that two cells can reduce, got {self.depth}")
        for name in ("channels", "nodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @abstractmethod
    def candidates(self, cell: str, source: int, target: int) -> tuple[str, ...]:
        """Returns what an edge of the cell `normal` or `reduce` chooses from."""

    @property
    def cells(self) -> Mapping[str, Cell]:
        """The normal and the reduction cell, with edges by target, then by source."""
        outputs = tuple(range(2, 2 + self.nodes))
        pairs = [(source, target) for target in outputs for source in range(target)]
        return {
            name: Cell(tuple(Edge(*pair, self.candidates(name, *pair)) for pair in pairs), outputs, inputs=2, retain=2)
            for name in ("normal", "reduce")
        }

    def layers(self, task: Task, searching: bool) -> list[Layer]:
        """Returns stem, cells with an auxiliary classifier after two thirds, and classifier."""
        return stack(task, searching, self.channels, self.depth, joined=self.nodes)

    def parse(self, text: str) -> Genotype:
        """Reads the published form, `Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=..., reduce=...)`.

        The list holds two edges for each node in turn.
        """
        if not text.lstrip().startswith("Genotype"):
            return super().parse(text)
        try:
            call = ast.parse(text.strip(), mode="eval").body
            assert isinstance(call, ast.Call)
            assert ast.unparse(call.func) == "Genotype"
            given = {keyword.arg: keyword.value for keyword in call.keywords}
            for name in ("normal_concat", "reduce_concat"):
                if name in given:
                    self._require_all_nodes(given[name])
            return Genotype({name: self._edges(ast.literal_eval(given[name])) for name in ("normal", "reduce")})
        except (SyntaxError, ValueError, KeyError, TypeError, AssertionError, RecursionError) as error:
            example = "Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=[2, 3, 4, 5], reduce=[...], ...)"
            raise ConfigError(f"{text[:60]!r} is no DARTS genotype ({error}); it reads {example}") from None

    def format(self, genotype: Genotype) -> str:
        """Writes the published form, or JSON if a node has other than the two in-edges that form can tell."""
        targets = [i for i in range(2, 2 + self.nodes) for _ in range(2)]
        if any([target for _, target, _ in edges] != targets for edges in genotype.cells.values()):
            return super().format(genotype)
        concat = list(range(2, 2 + self.nodes))
        parts = [
            f"{name}={[(operation, source) for source, _, operation in genotype.cells[name]]}, {name}_concat={concat}"
            for name in ("normal", "reduce")
        ]
        return f"Genotype({', '.join(parts)})"

    def _require_all_nodes(self, concat: ast.expr) -> None:
        """Raises ValueError unless `concat`, a list or a `range`, names every intermediate node in turn."""
        if isinstance(concat, ast.Call):
            assert ast.unparse(concat.func) == "range"
            same = range(*map(ast.literal_eval, concat.args)) == range(2, 2 + self.nodes)
        else:
            same = [*ast.literal_eval(concat)] == [*range(2, 2 + self.nodes)]
        if not same:
            raise ValueError(f"{ast.unparse(concat)} is joined, expected nodes 2 to {1 + self.nodes}")

    def _edges(self, pairs: list[tuple[str, int]]) -> tuple[Choice, ...]:
        if len(pairs) != 2 * self.nodes:
            raise ValueError(f"{len(pairs)} edges, expected two for each of {self.nodes} nodes")
        return tuple((source, 2 + i // 2, operation) for i, (operation, source) in enumerate(pairs))


@dataclass(frozen=True, kw_only=True)
class DARTS(DARTSCells):
    """DARTS's space: all eight candidates on every edge, fourteen edges in a cell of four nodes."""

    def candidates(self, cell: str, source: int, target: int) -> tuple[str, ...]:
        """Returns all of them."""
        return tuple(OPERATIONS)
