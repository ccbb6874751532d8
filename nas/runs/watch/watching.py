"""The collapse watch at work: measures its signals after an epoch, warns, and may end the search."""

import logging
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from nas.derivation import discretise
from nas.errors import ConfigError
from nas.runs.modifiers.base import Attached, Searching
from nas.runs.watch.curvature import Hessian, growth, is_smooth
from nas.runs.watch.messages import SIGNALS
from nas.runs.watch.settings import Watch
from nas.runs.watch.signals import learned_genotype, parameter_free, relative_entropy, share_without_parameters
from nas.space import SearchSpace

logger = logging.getLogger(__name__)


class Searched(Searching, Protocol):
    """What is read of a `nas.runs.search.BilevelSearch`."""

    def ranking(self) -> dict[str, Tensor]:
        """Returns the scores by which a derivation compares candidates, (E, K) by cell name."""

    def supernet_accuracy(self, epoch: int, progress: float) -> float:
        """Returns the mean accuracy in % on `select` over a few decisions."""


class Watching(Attached):
    """The watch at work. All that it remembers is in buffers, so that a resumed search goes on as it would have.

    Args:
        settings: Of the watch.
        search: At its beginning.
        space: The configured space, of which the logits are.

    Raises:
        ConfigError: The eigenvalue is asked for, and the selector's decisions have no Hessian.
    """

    end: Tensor
    restored: Tensor
    fired: Tensor
    found: Tensor
    eigenvalues: Tensor
    kept: Tensor
    kept_epochs: Tensor

    def __init__(self, settings: Watch, search: Searched, space: SearchSpace) -> None:
        super().__init__(search)
        if settings.eigenvalue is not None and not is_smooth(search.selector, space.cells, search.seed, 0.0):
            raise ConfigError(
                f"search.watch.eigenvalue={settings.eigenvalue:g} needs decisions that are twice differentiable in the "
                "logits (selector softmax, sigmoid or gumbel-softmax): a sampled path is not, whatever its surrogate "
                "gradient, nor are entmax and dirichlet; set search.watch.eigenvalue=null"
            )
        self.settings, self.watched, self.space = settings, search, space
        half = settings.span // 2
        reach = settings.span + half
        depth = 0 if settings.action != "roll-back" else 1 if settings.eigenvalue is None else reach
        self.register_buffer("end", torch.tensor(-1))
        self.register_buffer("restored", torch.tensor(-1))
        self.register_buffer("fired", torch.zeros(len(SIGNALS), dtype=torch.int64))
        self.register_buffer("found", torch.zeros(len(SIGNALS), dtype=torch.float64))
        self.register_buffer("eigenvalues", torch.full((reach + half + 1,), math.nan, dtype=torch.float64))
        self.register_buffer("kept", self._logits().repeat(depth, 1))
        self.register_buffer("kept_epochs", torch.zeros(depth, dtype=torch.int64))

    @property
    def ended(self) -> int:
        """Number of steps after which it ended the search; -1 if it did not."""
        return int(self.end)

    @ended.setter
    def ended(self, steps: int) -> None:
        self.end.fill_(steps)

    @cached_property
    def free(self) -> frozenset[str]:
        """The operations without parameters."""
        return parameter_free(self.space, self.search.task)

    def end_epoch(self, epoch: int, progress: float) -> dict[str, float]:
        """Measures, judges and acts; returns the measurements, NaN where there is nothing to measure."""
        if epoch % self.settings.every or not self.search.selector.learns:
            return {}
        share = epoch * self.search.steps_per_epoch / self.search.steps
        judged = share >= self.settings.from_progress
        values = self._measure(epoch, progress, judged)
        beyond = {name: value for name, value in values.items() if self._is_beyond(name, value, share)}
        reached = {name: value for name, value in beyond.items() if judged or name == "entropy"}
        if reached:
            self._act(epoch, reached)
        elif not beyond and len(self.kept):
            self.kept.copy_(torch.cat([self.kept[1:], self._logits()[None]]))
            self.kept_epochs.copy_(torch.cat([self.kept_epochs[1:], torch.tensor([epoch])]))
        return {f"watch/{name}": value for name, value in values.items()}

    def summary(self) -> dict[str, Any]:
        """Returns what fired and what was done, and the share of parameter-free candidates at the end."""
        epochs, values = self.fired.tolist(), self.found.tolist()
        fired = [
            {"signal": name, "epoch": epoch, "value": value, "threshold": getattr(self.settings, name)}
            for name, epoch, value in zip(SIGNALS, epochs, values, strict=True)
            if epoch
        ]
        return {
            "parameter_free": self._parameter_free() if self.search.selector.learns else None,
            "fired": sorted(fired, key=lambda each: each["epoch"]),
            "ended": self.ended // self.search.steps_per_epoch if self.ended >= 0 else None,
            "epochs": self.search.steps // self.search.steps_per_epoch,
            "rolled_back_to": int(self.restored) if self.restored >= 0 else None,
        }

    def _measure(self, epoch: int, progress: float, judged: bool) -> dict[str, float]:
        """Returns the values of the signals that are on, and what explains them."""
        on, values = self.settings, dict[str, float | None]()
        if on.parameter_free is not None:
            values["parameter_free"] = self._parameter_free()
        if on.entropy is not None:
            values["entropy"] = relative_entropy(self.search.architecture.live, self.search.probabilities())
        if on.discretisation is not None and (genotype := learned_genotype(self.space, self.watched.ranking())):
            inherited = self.search.accuracy(discretise(self.space, genotype))
            values["discretisation"] = self.watched.supernet_accuracy(epoch, progress) - inherited
        if on.eigenvalue is not None:
            largest, residual = Hessian(self.search, progress).largest(self.search.seed, on.tolerance, on.iterations)
            if judged:
                self.eigenvalues.copy_(torch.cat([self.eigenvalues[1:], self.eigenvalues.new_tensor([largest])]))
            known = [value for value in self.eigenvalues.tolist() if not math.isnan(value)]
            values |= {"eigenvalue": growth(known, on.span), "largest_eigenvalue": largest, "residual": residual}
        return {name: math.nan if value is None else value for name, value in values.items()}

    def _parameter_free(self) -> float | None:
        genotype = learned_genotype(self.space, self.watched.ranking())
        return None if genotype is None else share_without_parameters(genotype, self.space.cells, self.free)

    def _is_beyond(self, name: str, value: float, share: float) -> bool:
        if name not in SIGNALS:
            return False
        threshold = getattr(self.settings, name)
        if name == "entropy":
            return bool(value < threshold and share <= self.settings.entropy_until)
        return bool(value > threshold if name == "eigenvalue" else value >= threshold)

    def _act(self, epoch: int, reached: Mapping[str, float]) -> None:
        """Ends the search or not, and warns of the signals that are new."""
        then = "the search goes on (search.watch.action=stop or roll-back would end it)"
        if self.settings.action != "warn":
            self.ended, then = epoch * self.search.steps_per_epoch, "the search stops here"
        if self.settings.action == "roll-back":
            # Growth is of a smoothed eigenvalue since `span` measurements ago: what came after is not healthy.
            place = -len(self.kept) if "eigenvalue" in reached else -1
            self.restored.copy_(self.kept_epochs[place])
            self._restore(self.kept[place])
            then = f"the search ends with the logits of epoch {int(self.restored)}"
        for index, (name, signal) in enumerate(SIGNALS.items()):
            if name not in reached or self.fired[index]:
                continue
            self.fired[index], self.found[index] = epoch, reached[name]
            found = f"{signal.found.format(reached[name])} (search.watch.{name}={getattr(self.settings, name):g})"
            logger.warning("collapse watch, epoch %d: %s; %s. What helps: %s", epoch, found, then, signal.remedy)

    def _logits(self) -> Tensor:
        """Returns all logits in a row, -inf for candidates that are masked or dropped."""
        return torch.cat([table.flatten() for table in self.search.architecture.logits().values()]).detach()

    def _restore(self, logits: Tensor) -> None:
        architecture = self.search.architecture
        parts = torch.split(logits, [mask.numel() for mask in architecture.live.values()])
        with torch.no_grad():
            for (name, mask), part in zip(architecture.live.items(), parts, strict=True):
                mask.copy_(part.view_as(mask).isfinite())
                table = architecture.tables[name]
                table.copy_(torch.where(mask, part.view_as(mask), table))
