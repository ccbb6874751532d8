"""The loss by the plain execution, every candidate running: what is differentiated twice."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nas.selection import indices
from nas.supernet import Network, Selections, reference
from nas.supernet.statistics import untouched


def plain_loss(
    network: Network,
    norms: Iterable[_BatchNorm],
    batch: tuple[Tensor, Tensor],
    decision: Selections,
    logits: Mapping[str, Tensor],
) -> Tensor:
    """Returns the loss under a decision, twice differentiable in its weights and in the network's; statistics stay.

    Args:
        network: The supernet, in training mode.
        norms: Its batch norms that keep running statistics.
        batch: Images (B, C, H, W) and labels (B,), on the network's device.
        decision: Its weights carry the graph.
        logits: (E, K) by cell name; candidates at -inf do not run.
    """
    images, labels = batch
    everything = {
        name: replace(each, paths=indices(torch.isfinite(logits[name])), probes=(), log_prob=None)
        for name, each in decision.items()
    }
    with _plainly(network), untouched(norms):
        return F.cross_entropy(network(images, everything).scores, labels)


@contextmanager
def still(weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Inside, the weights do not require gradients."""
    trained = [weight for weight in weights if weight.requires_grad]
    for weight in trained:
        weight.requires_grad = False
    try:
        yield
    finally:
        for weight in trained:
            weight.requires_grad = True


@contextmanager
def _plainly(network: Network) -> Iterator[None]:
    run, fast = network.run, network.fast
    network.run, network.fast = reference.run_cell, False
    try:
        yield
    finally:
        network.run, network.fast = run, fast
