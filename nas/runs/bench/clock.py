"""How `nas bench` takes time: alternating executions in one process, and the pieces of a step."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from nas.runs.search import BilevelSearch
from nas.runs.session import Session
from nas.runs.training import Loop, Training

IDLE_STEPS = 200


@dataclass(frozen=True)
class Seconds:
    """What something took: CPU time of the process, all threads together, and time on the wall."""

    cpu: float
    wall: float


def measure(action: Callable[[], object], device: torch.device) -> Seconds:
    """Returns what a call took; on a GPU, until the device has done it."""
    _wait(device)
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    _wait(device)
    return Seconds(time.process_time() - cpu, time.perf_counter() - wall)


def alternate(actions: Mapping[str, Callable[[], object]], pair: int, device: torch.device) -> dict[str, Seconds]:
    """Measures each action once, in order, or in reverse order if `pair` is odd, so that drift favours none."""
    names = sorted(actions, key=[*actions].index, reverse=pair % 2 == 1)
    return {name: measure(actions[name], device) for name in names}


class Pieces:
    """Seconds of a search's step by piece: `arithmetic` (forward, loss and backward of the network) and the others.

    Only the outermost piece counts where one calls another; what is in none is the caller's to subtract.

    Args:
        search: Whose steps.
        clock: Returns seconds.
    """

    def __init__(self, search: BilevelSearch, clock: Callable[[], float]) -> None:
        self.search, self.clock = search, clock
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside = self._forward_done = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, the pieces of every step are added up in `seconds`."""
        search = self.search
        functions: list[tuple[Any, str, str]] = [
            (search.network, "forward", "arithmetic"),
            (torch.autograd, "backward", "arithmetic"),
            (torch.autograd, "grad", "arithmetic"),
            (search.train, "batch", "data"),
            (search.arch, "batch", "data"),
            (search, "decide", "decision"),
            (type(search.selector), "select", "decision"),
            (nn.utils, "clip_grad_norm_", "clipping"),
            (search.weights, "step", "optimizer"),
            (search.logits, "step", "optimizer"),
        ]
        with ExitStack() as stack:
            for owner, name, piece in functions:
                stack.enter_context(_replaced(owner, name, self._timed(getattr(owner, name), name, piece)))
            yield

    def _timed(self, function: Callable[..., Any], name: str, piece: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return function(*args, **kwargs)
            self._inside, start = True, self.clock()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[self._piece(name, piece)] += self.clock() - start
                self._inside = False

        return timed

    def _piece(self, name: str, piece: str) -> str:
        """Returns where a call counts: a backward without a forward before it runs through the selector alone."""
        if name in ("backward", "grad") and not self._forward_done:
            return "decision"
        if piece == "arithmetic":
            self._forward_done = name == "forward"
        return piece


@contextmanager
def _replaced(owner: Any, name: str, value: object) -> Iterator[None]:
    """Inside, an attribute has another value."""
    own, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


class _Idle(Training):
    """Does nothing, and returns what a step returned."""

    stage, seed, steps, steps_per_epoch = "bench", 0, IDLE_STEPS, IDLE_STEPS + 1
    modules: Mapping[str, nn.Module] = {}
    optimizers: Mapping[str, torch.optim.Optimizer] = {}

    def __init__(self, values: dict[str, Tensor]) -> None:
        self.values = values

    def step(self, step: int, progress: float) -> dict[str, Tensor]:
        return self.values

    def end_epoch(self, epoch: int, progress: float) -> dict[str, float]:
        return {}


def logging_seconds(work: Session, values: dict[str, Tensor], clock: Callable[[], float]) -> float:
    """Returns what the loop around the steps takes per step, measured on a loop whose steps do nothing.

    Args:
        work: Its tracker and status are written to.
        values: What a step returns.
        clock: Returns seconds.
    """
    with TemporaryDirectory() as folder:
        loop = Loop(_Idle(values), Path(folder), replace(work, quiet=True), "bench")
        start = clock()
        loop.run()
        return (clock() - start) / IDLE_STEPS


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
