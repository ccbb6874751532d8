"""What programs are made of: states, the stages that run on them, and the terms that nodes add up."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from nas.supernet.native.geometry import Taps
from nas.supernet.native.layout import Place
from nas.supernet.plan import Candidate, Chain, Noise, Pool, Stage, Sum


@dataclass(frozen=True)
class Signature:
    """What a program depends on, beside its cell.

    Attributes:
        paths: Candidates that run, by edge.
        probes: Candidates that are probed in the backward, by edge; empty for none anywhere.
        shapes: Of the inputs, (B, C, H, W).
        direct: For each input, whether it lies in memory as the kernels want it.
        size: Bytes of a number.
        training: Of every batch norm, whether it uses batch statistics, and whether it updates its running ones.
        wanted: Of every parameter, whether its gradient is wanted.
        inputs: Of every input, whether its gradient is wanted.
        values: Whether the weights' gradient is wanted.
        offset: Whether the edges have an offset.
        factors: Whether outputs are dropped.
        threads: How many compute.
    """

    paths: tuple[tuple[int, ...], ...]
    probes: tuple[tuple[int, ...], ...]
    shapes: tuple[tuple[int, ...], ...]
    direct: tuple[bool, ...]
    size: int
    training: tuple[tuple[bool, bool], ...]
    wanted: tuple[bool, ...]
    inputs: tuple[bool, ...]
    values: bool
    offset: bool
    factors: bool
    threads: int

    @property
    def gradient(self) -> bool:
        """Whether any gradient is wanted."""
        return self.values or any(self.inputs) or any(self.wanted)


@dataclass(eq=False)
class State:
    """An image batch of the cell: address, bytes of an image, shape, and where its gradient is (0: not wanted)."""

    address: int
    image: int
    channels: int
    padded: int
    height: int
    width: int
    gradient: int = 0
    terms: list["Term"] = field(default_factory=list)
    uses: list["Use"] = field(default_factory=list)
    passing: list["Term"] = field(default_factory=list)
    levels: list[list["Row"]] = field(default_factory=list)
    wanted: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.channels, self.height, self.width

    @property
    def pixels(self) -> int:
        """Pixels of an image."""
        return self.height * self.width


@dataclass(eq=False)
class Norm:
    """A batch norm as it is used: module or none, place of mean, inverse deviation and of a and b, weight's index."""

    module: nn.BatchNorm2d | None
    channels: int
    padded: int
    pixels: int
    mean: int
    inverse: int
    out: int
    batch: bool
    weight: int


@dataclass(eq=False)
class Row:
    """A stage at work: the fields of `stages.STAGE`, what the backward needs to know, and the candidates it serves."""

    fields: dict[str, int]
    stage: Stage | None
    source: State
    result: State
    norm: Norm | None
    taps: Taps
    previous: "Row | None" = None
    following: "Row | None" = None
    candidates: list[int] = field(default_factory=list)
    terms: list["Term"] = field(default_factory=list)

    @property
    def group(self) -> tuple[int, ...]:
        """What rows have in common that share a padded copy of their input."""
        return self.source.address, self.fields["maximum"], self.fields["act"], self.fields["coefficients"]


@dataclass(eq=False)
class Use:
    """A candidate that reads a state for a node; edge -1 stands for the preprocessing."""

    edge: int
    candidate: int
    operation: Candidate
    target: State


@dataclass(eq=False)
class Term:
    """What a node adds: factor * (a z + b)."""

    target: State
    z: State | None
    norm: Norm
    edge: int
    factor: int
    row: Row | None


@dataclass(frozen=True, eq=False)
class Draw:
    """What a run draws for a candidate: its output if that is noise, then what scales its samples if it is dropped.

    Attributes:
        noise: The candidate; None if it is not noise.
        reads: Shape (C, H, W) of the state that it reads.
        z: Where its output goes.
        dropped: Whether its samples are dropped.
    """

    noise: Noise | None
    reads: tuple[int, int, int]
    z: State | None
    dropped: bool


@dataclass(frozen=True)
class Run:
    """What kernels are given beside tables.

    Attributes:
        images: Images of the batch.
        threads: How many compute.
        scalars: (norms, 3): eps, momentum, weight.
        weights: One number for every candidate of every edge, and a one.
        values: Their gradients, and those of offsets, added to.
    """

    images: int
    threads: int
    scalars: NDArray[np.float64]
    weights: NDArray[np.float64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Step:
    """A kernel at work.

    Attributes:
        kernel: A compiled function of tables, further arguments, and zero.
        tables: Places of its tables.
        arguments: Of a kernel that runs once, its further arguments; None for one that shares the images out, which
            gets the first and the last image, the thread, and the bytes to its memory.
    """

    kernel: Callable[..., Any]
    tables: tuple[Place, ...]
    arguments: Callable[[Run], tuple[Any, ...]] | None = None


def once(run: Run) -> tuple[Any, ...]:
    """Returns the further arguments of a kernel that runs once and needs none."""
    return ()


def last(row: Row) -> Row:
    """Returns the last stage of a row's chain."""
    return row if row.following is None else last(row.following)


def parts_of(stage: Stage) -> list[nn.Module]:
    """Returns a stage's modules."""
    return [part for part in (stage.depthwise, *stage.dense, stage.norm) if part is not None]


def modules_of(use: Use) -> Iterator[nn.Module]:
    """Returns the modules of a candidate."""
    if isinstance(use.operation, Chain):
        for stage in use.operation.stages:
            yield from parts_of(stage)
    elif isinstance(use.operation, Pool) and use.operation.norm is not None:
        yield use.operation.norm


def parts_of_use(use: Use) -> Sequence[Use]:
    """Returns the uses that a sum of chains stands for, or the use itself."""
    if isinstance(use.operation, Sum):
        return [Use(use.edge, use.candidate, part, use.target) for part in use.operation.parts]
    return [use]
