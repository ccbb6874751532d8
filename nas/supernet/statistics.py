"""Batch-norm statistics: leave them alone in architecture steps and probes, recalibrate them before measuring."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def norms(module: nn.Module) -> list[_BatchNorm]:
    """Returns the batch norms in `module` that keep running statistics."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


def untouched_statistics(module: nn.Module) -> AbstractContextManager[None]:
    """Inside, training mode normalises by batch statistics and leaves the running ones untouched."""
    return untouched(norms(module))


@contextmanager
def untouched(found: Iterable[_BatchNorm]) -> Iterator[None]:
    """Does what `untouched_statistics` does, for some batch norms."""
    # Set past nn.Module.__setattr__, which takes microseconds, and a supernet has a thousand batch norms.
    settings = [vars(norm) for norm in found if norm.track_running_stats]
    for setting in settings:
        setting["track_running_stats"] = False
    try:
        yield
    finally:
        for setting in settings:
            setting["track_running_stats"] = True


@contextmanager
def recalibrated(network: nn.Module, batches: Iterable[Tensor], run: Callable[[Tensor], object]) -> Iterator[None]:
    """Inside, running statistics are the averages over `batches`, the network is in evaluation mode, no graph is kept.

    Statistics and modes are restored on exit. Cells that were trained by sampling share one set of running averages
    among many decisions, so a decision must be measured with statistics of its own.

    Args:
        network: The network to measure.
        batches: Images, each (B, C, H, W).
        run: Runs the network on one batch.
    """
    found = norms(network)
    kept = [(m.momentum, {key: value.clone() for key, value in m.named_buffers()}) for m in found]
    modes = [(m, m.training) for m in network.modules()]
    try:
        network.eval()
        for norm in found:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
            norm.train()
        with torch.no_grad():
            for images in batches:
                run(images)
            network.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training
        for norm, (momentum, buffers) in zip(found, kept, strict=True):
            norm.momentum = momentum
            for key, value in norm.named_buffers():
                value.copy_(buffers[key])
