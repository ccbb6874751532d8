"""What a candidate operation computes, read from its modules, so that an engine may run it in its own way.

A chain of stages covers the convolutional blocks of all spaces, built-in or not: whatever is a `Sequential` of ReLU,
ReLU6, convolutions and batch norms is understood, and anything else is run as it is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal
from weakref import WeakKeyDictionary

from torch import nn

from nas import ops
from nas.ops import FactorizedReduce, InvertedResidual, ResidualReduction, Zero
from nas.space import Cell, CellSlot, Edge
from nas.supernet.cell import MixedCell

Activation = Literal["none", "relu", "relu6"]


@dataclass(frozen=True, eq=False)
class Stage:
    """Activation, depthwise convolution, dense convolutions, batch norm; each may be absent, but not all convolutions.

    Attributes:
        activation: Applied to the stage's input.
        depthwise: A convolution of every channel by itself.
        dense: Convolutions whose outputs are concatenated; number i reads its input from pixel (i, i) on, with zeros
            beyond the border. After a depthwise convolution: at most one, 1x1 of stride 1.
        norm: Applied to the result.
        average: A pool in the place of the depthwise convolution.
    """

    activation: Activation
    depthwise: nn.Conv2d | None
    dense: tuple[nn.Conv2d, ...]
    norm: nn.BatchNorm2d | None
    average: "Pool | None" = None


@dataclass(frozen=True, eq=False)
class Chain:
    """Stages in a row; `residual` adds the input to the result."""

    stages: tuple[Stage, ...]
    residual: bool = False


@dataclass(frozen=True, eq=False)
class Pool:
    """A pooling without parameters, and perhaps a batch norm. An average does not count its padding.

    `ceil` keeps a last window that is not whole.
    """

    kind: Literal["max", "average"]
    kernel: int
    stride: int
    padding: int
    norm: nn.BatchNorm2d | None
    ceil: bool = False


@dataclass(frozen=True, eq=False)
class Identity:
    """The input."""


@dataclass(frozen=True, eq=False)
class Nothing:
    """Zeros."""


@dataclass(frozen=True, eq=False)
class Opaque:
    """A module that is not understood; it is run as it is."""

    module: nn.Module


@dataclass(frozen=True, eq=False)
class Noise(Opaque):
    """A module that reads the shape of its input and nothing else of it."""


@dataclass(frozen=True, eq=False)
class Sum(Opaque):
    """A module that is the sum of chains; it may also be run as it is."""

    parts: tuple[Chain, ...]


Unread = Nothing | Noise
"""What gives its input no gradient."""

Candidate = Chain | Pool | Identity | Nothing | Opaque


@dataclass(frozen=True, eq=False)
class Plan:
    """A cell as an engine sees it.

    Attributes:
        preprocess: One candidate per input, which turns it into a state.
        candidates: candidates[e][k] is what candidate k of edge e computes.
        sources: sources[e] is the state edge e reads.
        in_edges: in_edges[n] lists the edges into state n, in the reference's order of addition.
    """

    preprocess: tuple[Candidate, ...]
    candidates: tuple[tuple[Candidate, ...], ...]
    sources: tuple[int, ...]
    in_edges: dict[int, tuple[int, ...]]


_plans: WeakKeyDictionary[MixedCell, Plan] = WeakKeyDictionary()


def plan(cell: MixedCell) -> Plan:
    """Returns what the modules of a cell compute, read once and kept as long as the cell."""
    known = _plans.get(cell)
    if known is None:
        graph = cell.cell
        known = Plan(
            tuple(read(module) for module in cell.preprocess) or (Identity(),) * graph.inputs,
            tuple(tuple(read(module) for module in edge) for edge in cell.candidates),
            tuple(edge.source for edge in graph.edges),
            {node: tuple(graph.in_edges(node)) for node in graph.order},
        )
        _plans[cell] = known
    return known


def reached(cell: Cell, plan: Plan, paths: Sequence[Sequence[int]]) -> frozenset[int]:
    """Returns the states on which the outputs depend if these candidates run."""
    found = set(cell.outputs)
    for node in reversed(cell.order):
        if node in found:
            for e in plan.in_edges[node]:
                if any(not isinstance(plan.candidates[e][k], Unread) for k in paths[e]):
                    found.add(plan.sources[e])
    return frozenset(found)


def read(module: nn.Module) -> Candidate:
    """Returns what a module computes; `Opaque` if it is of an unknown type, has hooks, or unusual settings."""
    if any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in module.modules()):
        return Opaque(module)
    kind = type(module)
    if kind is nn.Identity:
        return Identity()
    if kind is Zero:
        return Nothing()
    if kind is ops.Noise:
        return Noise(module)
    if isinstance(module, FactorizedReduce):
        return Chain((Stage("relu", None, (module.first, module.second), module.norm),))
    if isinstance(module, ResidualReduction):
        body, conv = read(module.body), module.shortcut[1]
        assert isinstance(conv, nn.Conv2d)
        shortcut = Stage("none", None, (conv,), None, Pool("average", 2, 2, 0, None, ceil=True))
        return Sum(module, (body, Chain((shortcut,)))) if isinstance(body, Chain) else Opaque(module)
    if isinstance(module, InvertedResidual):
        body = read(module.body)
        return Chain(body.stages, module.residual) if isinstance(body, Chain) else Opaque(module)
    parts = list(_flatten(module))
    if pool := _pool(parts):
        return pool
    stages = _stages(parts)
    return Chain(stages) if stages else Opaque(module)


def _flatten(module: nn.Module) -> Iterator[nn.Module]:
    if type(module) is nn.Sequential:
        for part in module:
            yield from _flatten(part)
    else:
        yield module


def _pool(parts: Sequence[nn.Module]) -> Pool | None:
    first, norm = parts[0] if parts else None, parts[1] if len(parts) == 2 else None
    if len(parts) > 2 or (norm is not None and not _plain_norm(norm)):
        return None
    assert norm is None or isinstance(norm, nn.BatchNorm2d)
    if type(first) is nn.MaxPool2d:
        plain = first.dilation == 1 and not first.ceil_mode and not first.return_indices
        return _square("max", first, norm) if plain else None
    if type(first) is nn.AvgPool2d:
        # Padding that is counted is the same only where there is none.
        plain = not first.ceil_mode and first.divisor_override is None
        plain = plain and (not first.count_include_pad or first.padding in (0, (0, 0)))
        return _square("average", first, norm) if plain else None
    return None


def _square(
    kind: Literal["max", "average"], pool: nn.MaxPool2d | nn.AvgPool2d, norm: nn.BatchNorm2d | None
) -> Pool | None:
    sizes = (pool.kernel_size, pool.stride, pool.padding)
    sides = [(value, value) if isinstance(value, int) else tuple(value) for value in sizes]
    if any(height != width for height, width in sides):
        return None
    return Pool(kind, sides[0][0], sides[1][0], sides[2][0], norm)


def _stages(parts: Sequence[nn.Module]) -> tuple[Stage, ...]:
    """Returns the stages of a sequence; none if it holds anything else."""
    stages: list[Stage] = []
    left = list(parts)
    while left:
        activation: Activation = "none"
        if type(left[0]) in (nn.ReLU, nn.ReLU6):
            activation = "relu" if type(left.pop(0)) is nn.ReLU else "relu6"
        depthwise = _take(left, depthwise=True)
        dense = _take(left, depthwise=False)
        if depthwise and dense and not (dense.kernel_size == dense.stride == (1, 1) and dense.padding == (0, 0)):
            return ()
        if not (depthwise or dense) or (depthwise and dense and dense.in_channels != depthwise.out_channels):
            return ()
        norm = left.pop(0) if left and _plain_norm(left[0]) else None
        assert norm is None or isinstance(norm, nn.BatchNorm2d)
        stages.append(Stage(activation, depthwise, (dense,) if dense else (), norm))
    return tuple(stages)


def _take(left: list[nn.Module], *, depthwise: bool) -> nn.Conv2d | None:
    """Removes and returns the next part if it is a plain square convolution of that kind."""
    conv = left[0] if left else None
    if type(conv) is not nn.Conv2d or conv.bias is not None or conv.padding_mode != "zeros":
        return None
    sides = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    if any(isinstance(side, str) or side[0] != side[1] for side in sides):
        return None
    alone = conv.groups == conv.in_channels == conv.out_channels and (conv.groups > 1 or depthwise)
    if alone != depthwise or (not depthwise and conv.groups != 1):
        return None
    left.pop(0)
    return conv


def _plain_norm(module: nn.Module) -> bool:
    return type(module) is nn.BatchNorm2d


def block(layer: nn.Module) -> MixedCell | None:
    """Returns a layer as a cell of one edge with one candidate, which shares its modules; None if it is not understood.

    So the layers between cells run as fast as the cells.
    """
    found = read(layer)
    chains = found.parts if isinstance(found, Sum) else (found,) if isinstance(found, Chain) else ()
    sizes = {_reach(chain) for chain in chains}
    if len(sizes) != 1 or None in sizes:
        return None
    channels, stride = next(size for size in sizes if size)
    graph = Cell((Edge(0, 1, ("layer",)),), outputs=(1,))
    return MixedCell(graph, CellSlot("layer", channels, stride), {"layer": lambda site: layer}, searching=False)


def _reach(chain: Chain) -> tuple[int, int] | None:
    """Returns channels and stride of a chain's result; None unless every stage keeps ceil(side / stride) pixels."""
    channels, total = 0, 1
    for stage in chain.stages:
        conv = stage.depthwise or stage.dense[0]
        whole = len(stage.dense) < 2 and stage.average is None
        if whole and 2 * int(conv.padding[0]) != conv.dilation[0] * (conv.kernel_size[0] - 1):
            return None
        channels = sum(dense.out_channels for dense in stage.dense) or conv.out_channels
        total *= stage.average.stride if stage.average else conv.stride[0]
    return channels, total
