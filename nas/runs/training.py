"""What search and retraining share: a loop of steps that can stop anywhere and go on with the same bits."""

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from nas import checkpoint
from nas.checkpoint import Checkpoint
from nas.errors import CheckpointError, NumericsError
from nas.randomness import seed_global
from nas.runs.optimizers import parameters
from nas.runs.session import Session


class Training(ABC):
    """Something that is trained in steps. Subclasses hold modules and optimizers; the loop holds the rest.

    Attributes:
        stage: Key of its randomness and name of its rows of metrics.
        seed: Of its randomness.
        steps: Number of steps.
        steps_per_epoch: Steps after which `end_epoch` is called.
        modules: What a checkpoint holds, by name.
        optimizers: Likewise.
    """

    stage: str
    seed: int
    steps: int
    steps_per_epoch: int
    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]

    @abstractmethod
    def step(self, step: int, progress: float) -> dict[str, Tensor]:
        """Takes a step and returns scalars, on the device, to average over the epoch."""

    @abstractmethod
    def end_epoch(self, epoch: int, progress: float) -> dict[str, float]:
        """Returns what to log beside the averages; `epoch` counts from 1."""

    def finished(self, done: int) -> bool:
        """Returns whether `done` steps are all; a training may end before its last step."""
        return done >= self.steps

    def progress(self, step: int) -> float:
        """Returns 0 for the first step and 1 for the last."""
        return step / max(self.steps - 1, 1)


class Loop:
    """Runs a `Training` to its end, from its newest checkpoint if it has one.

    Args:
        training: What to train.
        folder: Where `checkpoints` is.
        session: Where to report, and who asks for a stop.
        title: What the user sees.
    """

    keep: ClassVar[int] = 2

    def __init__(self, training: Training, folder: Path, session: Session, title: str) -> None:
        self.training, self.session, self.title = training, session, title
        self.folder = folder / "checkpoints"
        self.done = 0
        self.totals: dict[str, Tensor] = {}

    def run(self) -> None:
        """Trains to the last step.

        Raises:
            Interrupted: A signal asked for a stop; the state is saved.
            NumericsError: A loss is not finite; the last checkpoint is from before.
        """
        self._restore()
        training, session = self.training, self.session
        saved_at, saved_step = time.monotonic(), self.done
        with session.progress(training.steps, self.title, self.done) as bar:
            while not training.finished(self.done):
                step, progress = self.done, training.progress(self.done)
                seed_global(training.seed, training.stage, step)
                for name, value in training.step(step, progress).items():
                    counted = torch.stack([value, torch.ones_like(value)])
                    before = self.totals.get(name, torch.zeros_like(counted))
                    self.totals[name] = before.to(counted.device) + counted  # a checkpoint's are on the CPU
                self.done = step + 1
                shown: dict[str, float] = {}
                if self.done % training.steps_per_epoch == 0 or training.finished(self.done):
                    shown = self._end_epoch(progress)
                elif self.done % session.config.tracking.log_every == 0:
                    session.tracker.log(training.stage, self.done, **self._averages())
                bar.update(self.done, **shown)
                session.status.update(training.stage.partition("/")[0], self.done, training.steps, self.title)
                stop = session.stop.requested is not None
                due = time.monotonic() - saved_at >= session.config.checkpoint_seconds
                if saved_step < self.done and (stop or due or training.finished(self.done)):
                    self._save()
                    saved_at, saved_step = time.monotonic(), self.done
                if stop and not training.finished(self.done):
                    session.raise_if_stopped(f"after step {self.done} of {training.steps} of {training.stage}")

    def _end_epoch(self, progress: float) -> dict[str, float]:
        epoch = -(-self.done // self.training.steps_per_epoch)
        values = {**self._averages(), **self.training.end_epoch(epoch, progress)}
        self.session.tracker.log(self.training.stage, self.done, epoch=epoch, **values)
        self.totals = {}
        return {name: value for name, value in values.items() if name in ("train_loss", "select")}

    def _averages(self) -> dict[str, float]:
        """Returns the averages over the epoch so far; the one place where the loop waits for the device."""
        # Sorted: a checkpoint gives the totals back in another order, and rows are compared for bytes.
        averages = {name: float(total[0] / total[1]) for name, total in sorted(self.totals.items())}
        self._require_finite(all(math.isfinite(value) for value in averages.values()), "loss")
        return averages

    def _require_finite(self, finite: bool, what: str) -> None:
        require_finite(finite, f"a {what} of {self.training.stage}", self.done)

    def _save(self) -> None:
        self._averages()  # never save what is not finite
        learned = [parameter for module in self.training.modules.values() for parameter in module.parameters()]
        self._require_finite(all(bool(parameter.isfinite().all()) for parameter in learned), "parameter")
        tensors = {name: dict(module.state_dict()) for name, module in self.training.modules.items()}
        state: dict[str, object] = {}
        for name, optimizer in self.training.optimizers.items():
            tensors[f"{name}-optimizer"], state[name] = checkpoint.optimizer_tensors(optimizer)
        tensors["totals"] = self.totals
        checkpoint.save(self.folder, self.done, tensors, state, keep=self.keep)

    def _restore(self) -> None:
        found = checkpoint.latest(self.folder)
        self.session.tracker.rewind(self.training.stage, found.step if found else 0)
        if found is None:
            return
        restore(self.training.modules, found)
        for name, optimizer in self.training.optimizers.items():
            state = found.state.get(name)
            if not isinstance(state, dict):
                raise CheckpointError(f"{found.path} holds no optimizer {name!r}; use a new run folder")
            checkpoint.restore_optimizer(optimizer, found.tensors[f"{name}-optimizer"], state)
        self.done, self.totals = found.step, dict(found.tensors["totals"])
        if not self.training.finished(self.done):
            logging.getLogger("nas").info("%s goes on from step %d", self.title, self.done)


def descend(loss: Tensor, optimizer: torch.optim.Optimizer, clip: float = 0.0) -> None:
    """Takes one step down the gradient of `loss`, its norm limited to `clip`; 0 is no limit."""
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    update(optimizer, clip)


def update(optimizer: torch.optim.Optimizer, clip: float = 0.0) -> None:
    """Takes one step along the gradients that are there, their norm limited to `clip`; 0 is no limit."""
    if clip:
        nn.utils.clip_grad_norm_(parameters(optimizer), clip)
    optimizer.step()


def descend_along(gradients: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Takes one step down given gradients, one for each parameter of the optimizer."""
    for parameter, gradient in zip(parameters(optimizer), gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()


def require_finite(finite: bool, what: str, step: int) -> None:
    """Raises NumericsError unless `finite`."""
    if not finite:
        raise NumericsError(
            f"{what} is no longer finite at step {step}; lower the learning rate or the clipping norm and use a new "
            "run folder. Checkpoints from before are kept"
        )


def restore(modules: Mapping[str, nn.Module], found: Checkpoint) -> None:
    """Loads modules from a checkpoint.

    Raises:
        CheckpointError: They have other parameters than the checkpoint.
    """
    for name, module in modules.items():
        try:
            module.load_state_dict(dict(found.tensors[name]))
        except (KeyError, RuntimeError) as error:
            first = str(error).partition("\n")[0]
            raise CheckpointError(f"{found.path} is of another network ({first}); use a new run folder") from error
