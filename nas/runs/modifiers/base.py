"""The interface of modifiers: what changes a search beside its selector, each in a list by name."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nas.architecture import Architecture
from nas.data import Batches
from nas.hypergradients import Hypergradient
from nas.selection import Selection
from nas.selectors import Selector
from nas.selectors.base import LossOf
from nas.space import SearchSpace, Task
from nas.supernet import Network

Decision = Mapping[str, Selection]
"""One selection per cell name."""


class Searching(Protocol):
    """What is read of a `nas.runs.search.BilevelSearch`.

    Attributes:
        space: The space as modified, from which `network` is built; the logits are those of the configured space.
        task: What networks are for.
        selector: At work on the cells.
        network: The supernet, in training mode.
        architecture: The logits.
        memory: What the selector remembers.
        weights: Optimizer of the network's parameters.
        hypergradient: How architecture steps see that the weights depend on the logits.
        norms: Batch norms that keep running statistics.
        train: Images of weight steps.
        arch: Images of architecture steps.
        steps: Number of steps.
        steps_per_epoch: Steps in an epoch.
        seed: Key of all randomness.
        stage: Likewise.
    """

    space: SearchSpace
    task: Task
    selector: Selector
    network: Network
    architecture: Architecture
    memory: nn.Module | None
    weights: torch.optim.Optimizer
    hypergradient: Hypergradient
    norms: list[_BatchNorm]
    train: Batches
    arch: Batches
    steps: int
    steps_per_epoch: int
    seed: int
    stage: str

    def decide(self, progress: float, *key: int | str) -> dict[str, Selection]:
        """Returns the decision drawn with `key`, without gradient."""

    def forward_logits(self, progress: float) -> dict[str, Tensor]:
        """Returns the logits from which decisions are drawn."""

    def probabilities(self) -> dict[str, Tensor]:
        """Returns how the logits rank the candidates, (E, K) by cell name."""

    def loss_on(self, step: int, batches: Batches | None = None) -> LossOf:
        """Returns the loss on a step's images of `arch`, or others."""

    def accuracy(self, decision: Decision) -> float:
        """Returns the accuracy in % on `select` under a decision, with recalibrated statistics."""


class Attached(nn.Module):
    """A modifier at work on a search. Its buffers and parameters are checkpointed; every hook may stay as it is.

    Args:
        search: At its beginning; a checkpoint is restored later.

    Attributes:
        ended: Number of steps after which it ended the search; -1 if it did not.
        binding: Whether `gradients` and `after` belong to every step on the weights, also to those of a derivation.
    """

    ended: int = -1
    binding: ClassVar[bool] = False

    def __init__(self, search: Searching) -> None:
        super().__init__()
        self.search = search

    def before(self, step: int, progress: float) -> None:
        """Prepares a step: before the architecture step, and once before a finished search is measured."""

    def penalty(self, logits: Mapping[str, Tensor], progress: float) -> Tensor | None:
        """Returns what an architecture step adds to its loss, a scalar; `logits` are (E, K) by cell name."""

    def decisions(self, decisions: list[Decision], step: int, progress: float) -> list[Decision]:
        """Returns the decisions under which a weight step trains; their losses are averaged."""
        return decisions

    def gradients(self, step: int, progress: float) -> None:
        """Changes the gradients of a weight step, before their norm is limited."""

    def after(self, step: int, progress: float) -> None:
        """Does what follows a step."""

    def end_epoch(self, epoch: int, progress: float) -> dict[str, float]:
        """Returns what to log; `epoch` counts from 1."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Modifier(ABC):
    """A change of a search; it is its own configuration.

    Attributes:
        apart: Names of modifiers that cannot be in the same search, and why.
    """

    registry: ClassVar[str] = "nas.modifiers"
    apart: ClassVar[Mapping[str, str]] = {}

    @property
    def since(self) -> float:
        """Share of the search at which it first goes by the logits; 1 for never."""
        return 1.0

    def require(self, space: SearchSpace, selector: Selector) -> None:  # noqa: B027 - most go with all
        """Raises ConfigError, with the reason, unless the modifier can go with space and selector."""

    def modify(self, space: SearchSpace) -> SearchSpace:
        """Returns the space from which the supernet is built."""
        return space

    @abstractmethod
    def attach(self, search: Searching) -> Attached:
        """Returns the modifier at work; `Attached` itself where `modify` is all."""
