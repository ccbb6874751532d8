"""A process at work in a run folder: its lock, status, metrics, data and signals."""

import gc
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from nas.config import to_tree
from nas.data import Batches, Images, Splits
from nas.errors import ConfigError, Interrupted, ResourceError
from nas.progress import Progress, StopRequest
from nas.runs.configuration import Config
from nas.runs.evaluation import Evaluator
from nas.space import Task
from nas.status import Status, lock
from nas.supernet import reference
from nas.supernet.backends import choose
from nas.tracking import Tracker


@dataclass
class Session:
    """What every stage needs.

    Attributes:
        config: The run's configuration.
        folder: The run folder.
        tracker: For metrics.
        status: For `status.json`.
        stop: Whether a signal asked for a stop.
        quiet: Whether progress is hidden.
    """

    config: Config
    folder: Path
    tracker: Tracker
    status: Status
    stop: StopRequest
    quiet: bool = False

    @cached_property
    def device(self) -> torch.device:
        """The device that the configuration asks for."""
        return choose_device(self.config.device)

    @cached_property
    def execution(self) -> dict[str, Any]:
        """How the configuration asks for networks to be run: further arguments of `Network`."""
        engine = self.config.engine
        run = choose(engine.backend, self.device, engine.precision)
        return {"run": run, "fast": run is not reference.run_cell}

    @cached_property
    def task(self) -> Task:
        """What networks are for."""
        return self.config.dataset.task()

    @cached_property
    def splits(self) -> Splits:
        """The data, read once."""
        return self.config.dataset.load()

    @cached_property
    def evaluator(self) -> Evaluator:
        """Measures accuracies."""
        return Evaluator(self.splits, self.config.evaluation, self.config.seed, self.device)

    def batches(self, images: Images, batch_size: int, *, seed: int, stream: str, cutout: bool = False) -> Batches:
        """Returns endless shuffled batches of some of the images, augmented as the dataset asks."""
        splits = self.splits
        return Batches(
            images,
            batch_size,
            seed=seed,
            stream=stream,
            mean=splits.mean,
            deviation=splits.deviation,
            device=self.device,
            augmentation=splits.augmentation if cutout else replace(splits.augmentation, cutout=0),
        )

    def progress(self, total: int, title: str, start: int = 0) -> Progress:
        """Returns a progress bar."""
        return Progress(total, title, start, self.quiet)

    def raise_if_stopped(self, where: str, then: str | None = None) -> None:
        """Raises Interrupted if a signal asked for a stop; `then` is what became of the work, None if all is saved."""
        if self.stop.requested is not None:
            name = signal.Signals(self.stop.requested).name
            then = then or f"everything is saved, go on with: nas resume {self.folder}"
            raise Interrupted(f"stopped by {name} {where}; {then}", self.stop.requested)


@contextmanager
def session(folder: Path, config: Config, command: str, *, quiet: bool = False) -> Iterator[Session]:
    """Works in a run folder: locks it, keeps its status and metrics, turns signals into a stop after the step.

    Raises:
        LockedError: Another process works in it.
        ResourceError: The device is not there, or memory ran out.
    """
    with ExitStack() as stack:
        stack.enter_context(lock(folder))
        stack.enter_context(threads(config.threads))
        gc.freeze()  # else what torch has loaded is searched for circles again and again, 0.1 s each time
        stack.callback(gc.unfreeze)
        status = stack.enter_context(Status(folder, command))
        stop = stack.enter_context(StopRequest())
        tracker = stack.enter_context(Tracker(folder, config.tracking, to_tree(config), folder.name))
        work = Session(config, folder, tracker, status, stop, quiet)
        _ = work.device
        try:
            yield work
        except (MemoryError, RuntimeError) as error:
            # On the CPU torch has no type of its own for it.
            if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
                raise
            first = str(error).partition("\n")[0]
            raise ResourceError(f"out of memory ({first}); lower the batch sizes, space.channels or depth") from error
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ConfigError(
                "a batch norm saw one value per channel; use a larger batch_size, more data (dataset.limit), "
                "or larger images"
            ) from error


def choose_device(name: str) -> torch.device:
    """Returns the device called `name`; `auto` is a GPU if there is one.

    Raises:
        ResourceError: There is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ResourceError(f"device {name!r} is not available ({reason}); use --device cpu or auto") from error
    return device


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Inside, torch computes with `count` threads; 0 changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(count, 4 * (os.cpu_count() or 1)) or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
