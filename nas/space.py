"""The vocabulary of search spaces: cells of edges with candidate operations, placed in a list of layers."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from nas.errors import ConfigError
from nas.genotype import Choice as Choice
from nas.genotype import Genotype as Genotype
from nas.genotype import least_renumbering
from nas.registry import did_you_mean

if TYPE_CHECKING:
    import networkx


@dataclass(frozen=True)
class Task:
    """What a network is for: images of (channels, height, width), sorted into classes."""

    channels: int
    height: int
    width: int
    classes: int


@dataclass(frozen=True)
class Site:
    """Where an operation stands: maps (B, in_channels, H, W) to (B, channels, ceil(H / stride), ceil(W / stride)).

    `searching` asks for the supernet's form: batch norm without scale and shift, and after every pool where the
    published supernet has one.
    """

    in_channels: int
    channels: int
    stride: int
    searching: bool


Operation = Callable[[Site], nn.Module]


@dataclass(frozen=True)
class Edge:
    """A directed edge between two nodes with its candidate operations, in the order of the logits' columns."""

    source: int
    target: int
    operations: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """A directed acyclic graph of nodes; every edge has candidate operations.

    Attributes:
        edges: E edges, in the order of the logits' rows.
        outputs: Nodes that form the cell's output.
        inputs: Nodes 0 to inputs - 1 are the outputs of the layers before; a later layer has a higher number.
        retain: How many in-edges each node keeps when a genotype is derived; None keeps all.
        combine: How the output nodes are joined.

    Raises:
        ConfigError: The graph has a cycle, parallel edges, an edge into an input, or an edge without candidates.
    """

    edges: tuple[Edge, ...]
    outputs: tuple[int, ...]
    inputs: int = 1
    retain: int | None = None
    combine: Literal["concatenate", "sum"] = "concatenate"

    def __post_init__(self) -> None:
        pairs = [(edge.source, edge.target) for edge in self.edges]
        if parallel := sorted({pair for pair in pairs if pairs.count(pair) > 1}):
            raise ConfigError(f"parallel edges {parallel}: give one edge all the candidates")
        for edge in self.edges:
            where = f"edge {edge.source}-{edge.target}"
            if edge.target < self.inputs or edge.source < 0:
                raise ConfigError(f"{where} leads into an input, or from no node; inputs are 0 to {self.inputs - 1}")
            if not edge.operations or len(set(edge.operations)) < len(edge.operations):
                raise ConfigError(f"{where} needs distinct candidates, got {edge.operations}")
        if not self.outputs or min(self.outputs) < self.inputs or self.inputs < 1:
            raise ConfigError(f"outputs must be nodes after the {self.inputs} inputs, got {self.outputs}")
        if self.combine not in ("concatenate", "sum") or (self.retain is not None and self.retain < 1):
            raise ConfigError(f"combine must be concatenate or sum, retain >= 1; got {self.combine!r}, {self.retain}")
        _ = self.order

    @cached_property
    def order(self) -> tuple[int, ...]:
        """The nodes after the inputs in topological order."""
        import networkx

        graph = self.graph()
        try:
            return tuple(node for node in networkx.lexicographical_topological_sort(graph) if node >= self.inputs)
        except networkx.NetworkXUnfeasible:
            loop = " -> ".join(str(source) for source, _ in networkx.find_cycle(graph))
            raise ConfigError(f"the graph has a cycle through nodes {loop}; edges must form an acyclic graph") from None

    def graph(self) -> "networkx.DiGraph[int]":
        """Returns the cell as a graph whose edges carry `operations`."""
        import networkx

        graph: networkx.DiGraph[int] = networkx.DiGraph()
        graph.add_nodes_from([*range(self.inputs), *self.outputs])
        graph.add_edges_from((edge.source, edge.target, {"operations": edge.operations}) for edge in self.edges)
        return graph

    @cached_property
    def candidates(self) -> int:
        """K, the largest number of candidates on an edge."""
        return max((len(edge.operations) for edge in self.edges), default=0)

    @cached_property
    def mask(self) -> Tensor:
        """(E, K), True where an edge has a candidate."""
        return torch.tensor([[k < len(edge.operations) for k in range(self.candidates)] for edge in self.edges])

    def in_edges(self, node: int) -> list[int]:
        """Returns the indices of the edges that lead into `node`."""
        return [e for e, edge in enumerate(self.edges) if edge.target == node]


@dataclass(frozen=True)
class CellSlot:
    """A layer that is a place for a cell. Slots that name one cell share its logits and its decisions.

    Attributes:
        cell: Name of the cell in `SearchSpace.cells`.
        channels: Channels of every node after the inputs.
        stride: Stride of the edges that leave an input.
        preprocess: One module per input, applied before the edges; empty for none.
        in_channels: Channels of the inputs after preprocessing; None if equal to `channels`.
        partial: Candidates run on the first 1/partial of the channels; the others bypass them (arXiv:1907.05737).
    """

    cell: str
    channels: int
    stride: int = 1
    preprocess: Sequence[nn.Module] = ()
    in_channels: int | None = None
    partial: int = 1


@dataclass(frozen=True)
class Auxiliary:
    """A classifier on the last layer's output, used only while retraining; no layer of the history."""

    head: nn.Module


Layer = nn.Module | CellSlot | Auxiliary


@dataclass(frozen=True, kw_only=True)
class SearchSpace(ABC):
    """A search space is its own configuration: a frozen dataclass that lists cells and layers.

    Class attribute `operations` maps the names of candidates to functions of a `Site`.
    """

    registry: ClassVar[str] = "nas.search_spaces"
    operations: ClassVar[Mapping[str, Operation]]

    @property
    @abstractmethod
    def cells(self) -> Mapping[str, Cell]:
        """The cells by name."""

    @abstractmethod
    def layers(self, task: Task, searching: bool) -> list[Layer]:
        """Returns fresh layers of a network for `task`; the last layer's output is the class scores (B, classes)."""

    def parse(self, text: str) -> Genotype:
        """Reads a genotype from the space's own text; JSON unless a space overrides it."""
        return Genotype.from_json(text)

    def format(self, genotype: Genotype) -> str:
        """Writes a genotype as the space's own text."""
        return genotype.to_json()

    def fix(self, genotype: Genotype) -> "SearchSpace":
        """Returns the space whose cells hold only the genotype's edges, one candidate each.

        Raises:
            ConfigError: The genotype is not of this space.
        """
        self.require(genotype)
        return FixedSpace(base=self, genotype=genotype)

    def check(self) -> None:
        """Raises ConfigError, naming the cell, if a cell names unknown operations or has unreachable nodes."""
        for name, cell in self.cells.items():
            if not cell.edges or "." in name:
                raise ConfigError(f"cell {name!r} needs at least one edge, and a name without a dot")
            for edge in cell.edges:
                where = f"cell {name!r}, edge {edge.source}-{edge.target}"
                for operation in edge.operations:
                    if operation not in self.operations:
                        hint = did_you_mean(operation, self.operations)
                        raise ConfigError(f"{where}: unknown operation {operation!r}: {hint}")
            reached, wanted = _alive(cell, [(edge.source, edge.target) for edge in cell.edges])
            if dead := sorted(set(cell.order) - (reached & wanted)):
                raise ConfigError(
                    f"cell {name!r}: nodes {dead} lie on no path from an input to an output; connect or remove them"
                )

    def require(self, genotype: Genotype) -> None:
        """Raises ConfigError unless the genotype's cells, edges and operations are among this space's."""
        cells = self.cells
        if set(genotype.cells) != set(cells):
            raise ConfigError(
                f"the genotype has cells {sorted(genotype.cells)} but the space has {sorted(cells)}; "
                "is it of another space?"
            )
        for name, choices in genotype.cells.items():
            candidates = {(edge.source, edge.target): edge.operations for edge in cells[name].edges}
            seen: set[tuple[int, int]] = set()
            for source, target, operation in choices:
                where = f"the genotype's cell {name!r}, edge {source}-{target}"
                if (source, target) not in candidates:
                    raise ConfigError(f"{where}: no such edge in this space; is the genotype of another space?")
                offered = candidates[source, target]
                if operation not in offered:
                    raise ConfigError(f"{where}: unknown operation {operation!r}: {did_you_mean(operation, offered)}")
                if (source, target) in seen:
                    raise ConfigError(f"{where}: listed twice; give each edge one operation")
                seen.add((source, target))

    def prune(self, genotype: Genotype) -> Genotype:
        """Returns the genotype without edges on no path from an input to an output."""
        cells = {}
        for name, choices in genotype.cells.items():
            reached, wanted = _alive(self.cells[name], [(source, target) for source, target, _ in choices])
            cells[name] = tuple(c for c in choices if c[0] in reached and c[1] in wanted)
        return Genotype(cells)

    def isomorphic_hash(self, genotype: Genotype) -> str:
        """Returns a SHA-256 that is equal exactly for genotypes that differ by a renumbering of nodes.

        Inputs stay, outputs may swap among themselves (a layer that reads their concatenation learns any order), and so
        may inner nodes: the hash is of the least edge list over all renumberings.
        """
        least = {}
        for name, choices in genotype.cells.items():
            cell = self.cells[name]
            least[name] = least_renumbering(choices, sorted({*cell.order} - {*cell.outputs}), sorted({*cell.outputs}))
        return hashlib.sha256(json.dumps(least, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class FixedSpace(SearchSpace):
    """A space with one candidate per edge: its supernet is the derived network."""

    base: SearchSpace
    genotype: Genotype
    operations: Mapping[str, Operation] = field(init=False)  # type: ignore[misc]

    def __post_init__(self) -> None:
        object.__setattr__(self, "operations", self.base.operations)

    @cached_property
    def cells(self) -> Mapping[str, Cell]:
        """The base space's cells with only the decided edges, in the base's order."""
        cells = {}
        for name, cell in self.base.cells.items():
            chosen = {(source, target): operation for source, target, operation in self.genotype.cells[name]}
            edges = tuple(
                Edge(edge.source, edge.target, (chosen[edge.source, edge.target],))
                for edge in cell.edges
                if (edge.source, edge.target) in chosen
            )
            cells[name] = Cell(edges, cell.outputs, cell.inputs, cell.retain, cell.combine)
        return cells

    def layers(self, task: Task, searching: bool) -> list[Layer]:
        """Returns the base space's layers."""
        return self.base.layers(task, searching)

    def check(self) -> None:
        """Checks the base space; a genotype may leave nodes without in-edges or out-edges."""
        self.base.check()


def _alive(cell: Cell, edges: Sequence[tuple[int, int]]) -> tuple[set[int], set[int]]:
    """Returns the nodes reached from the inputs and the nodes that lead to an output."""
    reached, wanted = set(range(cell.inputs)), set(cell.outputs)
    for _ in edges:
        reached |= {target for source, target in edges if source in reached}
        wanted |= {source for source, target in edges if target in wanted}
    return reached, wanted
