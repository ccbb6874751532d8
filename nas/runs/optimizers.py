"""Optimizers as configuration; the learning rate is a schedule."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from nas.schedules import Constant, Cosine, Schedule


@dataclass(frozen=True, kw_only=True)
class Optimizer(ABC):
    """How parameters are updated.

    Attributes:
        lr: Learning rate.
        weight_decay: L2 penalty.
    """

    registry: ClassVar[str] = "nas.optimizers"

    lr: Schedule
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        self.lr.require("lr", lambda value: value >= 0, "at least 0")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must be at least 0, got {self.weight_decay:g}")

    @abstractmethod
    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Returns torch's optimizer, at the learning rate of progress 0."""

    def schedule(self, optimizer: torch.optim.Optimizer, progress: float) -> float:
        """Sets the learning rate for `progress` and returns it."""
        rate = self.lr(progress)
        for group in optimizer.param_groups:
            group["lr"] = rate
        return rate


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum; defaults as DARTS trains a supernet's weights."""

    lr: Schedule = Cosine(start=0.025, end=0.001)
    momentum: float = 0.9
    weight_decay: float = 3e-4
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, got {self.momentum:g}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0, got 0; raise momentum or leave nesterov false")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Returns `torch.optim.SGD`."""
        optimizer = torch.optim.SGD(
            parameters,
            lr=self.lr(0.0),
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
            fused=True,
        )
        if self.momentum:
            optimizer.register_step_pre_hook(_start)
        return optimizer


@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam; defaults as DARTS trains the logits."""

    lr: Schedule = Constant(value=3e-4)
    betas: tuple[float, float] = (0.5, 0.999)
    weight_decay: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_betas(self.betas)

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Returns `torch.optim.Adam`."""
        return torch.optim.Adam(
            parameters, lr=self.lr(0.0), betas=self.betas, weight_decay=self.weight_decay, fused=True
        )


@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019, arXiv:1711.05101)."""

    lr: Schedule = Cosine(start=1e-3, end=0.0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_betas(self.betas)

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Returns `torch.optim.AdamW`."""
        return torch.optim.AdamW(
            parameters, lr=self.lr(0.0), betas=self.betas, weight_decay=self.weight_decay, fused=True
        )


def parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Returns what an optimizer updates; a network would be walked for it, which takes long in every step."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _start(optimizer: torch.optim.Optimizer, arguments: object, named: object) -> None:
    """Gives parameters that have their first gradient a momentum of zero: torch's fused step cannot do it for some."""
    for parameter in parameters(optimizer):
        if parameter.grad is not None and parameter not in optimizer.state:
            optimizer.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}


def _require_betas(betas: tuple[float, float]) -> None:
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must be at least 0 and below 1, got {betas}")
