"""What a node adds up."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nas.supernet.aten.probes import Inner, Shared
from nas.supernet.aten.stages import Parts, split
from nas.supernet.plan import Stage


@dataclass(slots=True)
class Term:
    """One candidate's part in a node.

    Attributes:
        stages: Its convolutions; none, if it is the tensor it reads, normalised or not.
        norm: The batch norm of its result.
        residual: Whether what it reads is added.
        edge: Its row in the weights.
        index: Its column in the weights.
        read: The position of the tensor it reads.
        first: The positions of its parameters begin here,
        end: and end before this one.
        key: Names the tensor it reads within the cell.
        keep: (B, 1, 1, 1). What drop-path leaves of every sample.
    """

    stages: tuple[Stage, ...]
    norm: nn.BatchNorm2d | None
    residual: bool
    edge: int
    index: int
    read: int
    first: int
    end: int
    key: Hashable
    keep: Tensor | None


@dataclass(slots=True)
class Job:
    """What a node computes, but for the tensors that it computes it from.

    Attributes:
        terms: What it adds up, by edge.
        probes: An edge, the position of the state it reads, what edges share there, and the candidates to run on it.
        edges: The edges that run anything, whose offsets count.
        shared: What the nodes of a cell compute once: activated states, statistics of pools.
        half: The type dense convolutions compute in, if another than the states'.
        record: Whether a backward may follow.
    """

    terms: list[Term]
    probes: list[tuple[int, int, Shared, list[tuple[int, Inner]]]]
    edges: list[int]
    shared: dict[Hashable, Any]
    half: torch.dtype | None
    record: bool


class Total:
    """A sum of tensors that copies none before it must."""

    __slots__ = ("owned", "value")

    def __init__(self) -> None:
        self.value: Tensor | None = None
        self.owned = False

    def add(self, z: Tensor, scale: Tensor | None = None, *, owned: bool = False) -> None:
        """Adds `scale * z`; a sum may grow in a tensor that is `owned`."""
        if self.value is None:
            self.value, self.owned = (z, owned) if scale is None else (z * scale, True)
        elif self.owned:
            self.value.add_(z) if scale is None else self.value.addcmul_(z, scale)
        else:
            self.value = self.value + z if scale is None else torch.addcmul(self.value, z, scale)
            self.owned = True


def rows_of(job: Job, weights: Tensor | None, like: Tensor) -> dict[int, Sequence[Tensor]] | None:
    """Returns the weights of the edges that run anything."""
    if weights is None:
        return None
    weights = weights.to(like.dtype)
    return {edge: weights[edge].unbind() for edge in job.edges}


def parameters_of(term: Term, values: Sequence[Any]) -> tuple[list[Parts], Any, Any]:
    """Returns the values at a term's parameters by stage, and those of its last batch norm."""
    parts = split(term.stages, iter(values[term.first : term.end]))
    if term.norm is None or not term.norm.affine:
        return parts, None, None
    return parts, values[term.end - 2], values[term.end - 1]
