"""Schedules: a value as a function of progress in [0, 1]."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """A value that changes with progress: 0 at the first step of a run, 1 at the last."""

    registry: ClassVar[str] = "nas.schedules"
    shorthand: ClassVar[tuple[str, str]] = ("constant", "value")  # what a bare number in a configuration means

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """Returns the value at `progress`."""

    def require(self, name: str, holds: Callable[[float], bool], condition: str) -> None:
        """Raises ValueError unless both ends satisfy `holds`; `name` is the setting, `condition` says what it must be.

        Every schedule here is monotone, so what holds at both ends holds between them.
        """
        for end, progress in (("start", 0.0), ("end", 1.0)):
            if not holds(self(progress)):
                setting = f"{name}.value" if isinstance(self, Constant) else f"{name}.{end}"
                raise ValueError(f"{setting} must be {condition}, got {self(progress):g}")


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The same value throughout."""

    value: float

    def __call__(self, progress: float) -> float:
        """Returns the value at `progress`."""
        return self.value


@dataclass(frozen=True, kw_only=True)
class Linear(Schedule):
    """A straight line from `start` to `end`."""

    start: float
    end: float

    def __call__(self, progress: float) -> float:
        """Returns the value at `progress`."""
        return self.start + (self.end - self.start) * progress


@dataclass(frozen=True, kw_only=True)
class Exponential(Schedule):
    """A constant factor per step from `start` to `end`; both must be positive."""

    start: float
    end: float

    def __post_init__(self) -> None:
        for name, value in (("start", self.start), ("end", self.end)):
            if not value > 0:
                raise ValueError(f"{name} must be positive for an exponential schedule, got {value:g}")

    def __call__(self, progress: float) -> float:
        """Returns the value at `progress`."""
        return float(self.start * (self.end / self.start) ** progress)


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Half a period of a cosine from `start` to `end` (Loshchilov and Hutter, 2017, arXiv:1608.03983)."""

    start: float
    end: float

    def __call__(self, progress: float) -> float:
        """Returns the value at `progress`."""
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * progress)) / 2
