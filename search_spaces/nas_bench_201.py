"""The NAS-Bench-201 space: one cell of four nodes with five candidates (Dong and Yang, 2020, arXiv:2001.00326)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from nas import ops
from nas.errors import ConfigError
from nas.space import Cell, CellSlot, Choice, Edge, Genotype, Layer, SearchSpace, Task

OPERATIONS = {
    "none": lambda s: ops.Zero(s.channels, s.stride),
    "skip_connect": lambda s: ops.skip_connect(s.in_channels, s.channels, s.stride, affine=not s.searching),
    "nor_conv_1x1": lambda s: ops.relu_conv_norm(s.in_channels, s.channels, 1, s.stride, affine=not s.searching),
    "nor_conv_3x3": lambda s: ops.relu_conv_norm(s.in_channels, s.channels, 3, s.stride, affine=not s.searching),
    "avg_pool_3x3": lambda s: ops.average_pool(3, s.stride),
}


@dataclass(frozen=True, kw_only=True)
class NASBench201(SearchSpace):
    """NAS-Bench-201's cell: five candidates on six edges, 15,625 architectures with published accuracies.

    Attributes:
        channels: Width of the first stage; doubled in the second and third.
        cells_per_stage: Cells in each of the three stages (N in the paper).
    """

    channels: int = 16
    cells_per_stage: int = 5

    operations = OPERATIONS

    def __post_init__(self) -> None:
        for name in ("channels", "cells_per_stage"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def cells(self) -> Mapping[str, Cell]:
        """The one cell: four nodes, each reading all before it; the last is the output."""
        edges = tuple(Edge(source, target, tuple(OPERATIONS)) for target in (1, 2, 3) for source in range(target))
        return {"cell": Cell(edges, outputs=(3,))}

    def layers(self, task: Task, searching: bool) -> list[Layer]:
        """Returns stem, three stages of cells with reductions between them, and classifier."""
        channels = self.channels
        stem = nn.Sequential(nn.Conv2d(task.channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        layers: list[Layer] = [stem]
        for stage in range(3):
            if stage:
                layers.append(ops.ResidualReduction(channels, 2 * channels, affine=not searching))
                channels *= 2
            layers += [CellSlot("cell", channels) for _ in range(self.cells_per_stage)]
        last = [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return [*layers, nn.Sequential(*last, nn.Linear(channels, task.classes))]

    def parse(self, text: str) -> Genotype:
        """Reads the published form, `|nor_conv_3x3~0|+|none~0|skip_connect~1|+|...~0|...~1|...~2|`."""
        if not text.lstrip().startswith("|"):
            return super().parse(text)
        choices: list[Choice] = []
        nodes = text.strip().split("+")
        for target, node in enumerate(nodes, start=1):
            found = re.fullmatch(r"\|(?:[^|~]+~\d+\|)+", node)
            pairs = re.findall(r"([^|~]+)~(\d+)", node)
            if not found or len(nodes) != 3 or [int(source) for _, source in pairs] != list(range(target)):
                raise ConfigError(
                    f"{text[:90]!r} is no NAS-Bench-201 cell (node {target}); "
                    "it reads |op~0|+|op~0|op~1|+|op~0|op~1|op~2|"
                )
            choices += [(int(source), target, operation) for operation, source in pairs]
        return Genotype({"cell": tuple(choices)})

    def format(self, genotype: Genotype) -> str:
        """Writes the published form; an edge that is not listed is written as `none`."""
        chosen = {(source, target): operation for source, target, operation in genotype.cells["cell"]}
        nodes = ["".join(f"{chosen.get((s, t), 'none')}~{s}|" for s in range(t)) for t in (1, 2, 3)]
        return "+".join(f"|{node}" for node in nodes)

    def unique_string(self, genotype: Genotype) -> str:
        """Returns NATS-Bench's normal form, which folds `skip_connect` and `none` into the nodes they join.

        It has 6,466 values and is no isomorphism: cells that share one may differ in parameters.
        """
        chosen = {(source, target): operation for source, target, operation in genotype.cells["cell"]}
        nodes = ["0"]
        for target in (1, 2, 3):
            terms = []
            for source in range(target):
                operation = chosen.get((source, target), "none")
                if operation == "none" or nodes[source] == "#":
                    terms.append("#")
                elif operation == "skip_connect":
                    terms.append(nodes[source])
                else:
                    terms.append(f"({nodes[source]})@{operation}")
            nodes.append("+".join(sorted(terms)))
        return nodes[-1]
