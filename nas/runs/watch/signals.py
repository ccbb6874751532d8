"""What logits say of a collapse: candidates without parameters, and decisions that are closed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nas.derivation import strongest
from nas.errors import ConfigError
from nas.estimators import entropy
from nas.space import Cell, Genotype, SearchSpace, Task
from nas.supernet import Network


def parameter_free(space: SearchSpace, task: Task) -> frozenset[str]:
    """Returns the operations (skips, pools, `none`) that have no parameters somewhere in a network to be retrained.

    The network is built without memory. A skip that is a factorised reduction where it halves the resolution counts
    as parameter-free everywhere, since it is the identity elsewhere: what is chosen is the skip.
    """
    with torch.device("meta"):
        network = Network(space, task, searching=False)
    return frozenset(
        operation
        for cell in network.mixed_cells
        for edge, candidates in zip(cell.cell.edges, cell.candidates, strict=True)
        for operation, candidate in zip(edge.operations, candidates, strict=True)
        if not [*candidate.parameters()]
    )


def learned_genotype(space: SearchSpace, ranking: Mapping[str, Tensor]) -> Genotype | None:
    """Returns the genotype of the largest scores (E, K), by DARTS's rule where nodes retain some in-edges.

    None where no genotype follows: all edges are left out, or all candidates are equal.
    """
    retains = any(cell.retain is not None for cell in space.cells.values())
    try:
        return strongest(space, ranking, exclude="none" if retains else None)
    except ConfigError:
        return None


def share_without_parameters(genotype: Genotype, cells: Mapping[str, Cell], free: frozenset[str]) -> float | None:
    """Returns the share of the genotype's edges with a candidate of `free`, among those that had the choice.

    None if no edge offers candidates of both kinds.
    """
    chosen = []
    for name, choices in genotype.cells.items():
        offered = {(edge.source, edge.target): {*edge.operations} for edge in cells[name].edges}
        for source, target, operation in choices:
            if offered[source, target] & free and offered[source, target] - free:
                chosen.append(operation in free)
    return sum(chosen) / len(chosen) if chosen else None


def mass_without_parameters(edges: Sequence[Mapping[str, Any]], free: frozenset[str]) -> float | None:
    """Returns the mean probability of candidates of `free` over the edges that have the choice; None without any.

    Args:
        edges: Of a finished search, as `search.json` lists them.
        free: See `parameter_free`.
    """
    masses = []
    for edge in edges:
        weights = edge["probabilities"]
        if {*weights} & free and {*weights} - free:
            masses.append(sum(value for name, value in weights.items() if name in free) / sum(weights.values()))
    return sum(masses) / len(masses) if masses else None


def relative_entropy(live: Mapping[str, Tensor], probabilities: Mapping[str, Tensor]) -> float | None:
    """Returns the mean over edges with a choice of the entropy divided by its maximum, log K; None without any.

    Args:
        live: Boolean (E, K) by cell name, the candidates among which edges choose.
        probabilities: (E, K) by cell name.
    """
    shares = [
        value / math.log(count)
        for name, mask in live.items()
        for count, value in zip(mask.sum(-1).tolist(), entropy(probabilities[name]).tolist(), strict=True)
        if count > 1
    ]
    return sum(shares) / len(shares) if shares else None
