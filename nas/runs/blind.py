"""Finds edges whose architecture gradient is zero by construction, before a search spends its time on them.

A batch norm that reads a node with one active input takes the scale and the shift of that input out of the loss: an
estimator that knows the sampled candidate only, by its scale, learns nothing there. It is found by trying: a few draws
of the selector's gradient beside those of straight-through, which evaluates every candidate.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor, nn

from nas import registry
from nas.architecture import Architecture
from nas.randomness import generator
from nas.selectors import Selector
from nas.selectors.base import LossOf
from nas.selectors.straight_through import StraightThrough

DRAWS = 8
"""At most: the search for blind edges ends with the first draw that leaves none."""

SHARE = 1e-3
"""Of straight-through's gradient, below which an edge counts as blind. Rounding and a batch norm's epsilon leave up to
6e-5 on the built-in spaces; the smallest share of an edge that learns was 8e-3."""


def blind_edges(
    selector: Selector, architecture: Architecture, loss_on: Callable[[int], LossOf], seed: int
) -> dict[str, list[tuple[int, int]]]:
    """Returns the edges, (source, target) by cell name, on which the selector has no gradient and others have one.

    Args:
        selector: At work on the architecture's cells.
        architecture: The logits.
        loss_on: The loss on the images of a step.
        seed: Key of the draws.
    """
    rivals = [(each, each.memory(architecture.cells)) for each in (selector, StraightThrough())]
    blind = {name: torch.ones(len(cell.edges), dtype=torch.bool) for name, cell in architecture.cells.items()}
    for draw in range(DRAWS):
        own, others = (
            _sizes(each, memory, architecture, loss_on(draw), generator(seed, "blind", draw)) for each, memory in rivals
        )
        for name in blind:
            blind[name] &= own[name] <= SHARE * others[name]
        if not any(mask.any() for mask in blind.values()):
            return {}
    found = {}
    for name, cell in architecture.cells.items():
        edges = zip(cell.edges, blind[name].tolist(), strict=True)
        found[name] = [(edge.source, edge.target) for edge, each in edges if each and len(edge.operations) > 1]
    return {name: edges for name, edges in found.items() if edges}


def _sizes(
    selector: Selector, memory: nn.Module | None, architecture: Architecture, loss_of: LossOf, draws: Generator
) -> dict[str, Tensor]:
    """Returns the norm of each edge's gradient, (E,) by cell name."""
    logits = architecture.logits()
    loss = selector.objective(loss_of, logits, 0.0, draws, memory)
    gradients = torch.autograd.grad(loss, [*logits.values()], allow_unused=True, materialize_grads=True)
    return {name: gradient.norm(dim=-1) for name, gradient in zip(logits, gradients, strict=True)}


def describe_blind(selector: Selector, found: Mapping[str, list[tuple[int, int]]]) -> str:
    """Returns what to tell the user about what `blind_edges` found."""
    name, count = registry.name_of(Selector.registry, type(selector)), sum(map(len, found.values()))
    edges = [f"{cell} {source}-{target}" for cell, pairs in found.items() for source, target in pairs]
    listed = ", ".join(edges[:6]) + (", ..." if count > 6 else "")
    return (
        f"selector {name} has an architecture gradient of zero on {count} edges ({listed}): it knows the sampled "
        "candidate by its scale only, which a batch norm takes out of the loss; use st-gs, pair-reinmax or score-cv"
    )
