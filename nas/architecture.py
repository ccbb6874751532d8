"""The architecture parameters: one table of logits per cell, on the CPU."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nas.errors import NumericsError
from nas.estimators import entropy
from nas.randomness import generator
from nas.space import Cell, SearchSpace


class Architecture(nn.Module):
    """Logits (E, K) for each cell, initialised as in DARTS: normal with deviation 1e-3.

    Args:
        space: The search space.
        seed: Seed of the initial values.
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        super().__init__()
        self.cells = dict(space.cells)
        draws = {
            name: 1e-3 * torch.randn(cell.mask.shape, generator=generator(seed, "logits", name))
            for name, cell in self.cells.items()
        }
        self.tables = nn.ParameterDict({name: nn.Parameter(value) for name, value in draws.items()})

    def logits(self) -> dict[str, Tensor]:
        """Returns the logits by cell name, -inf where an edge has no candidate.

        Raises:
            NumericsError: One is no longer finite.
        """
        if not all(torch.isfinite(table).all() for table in self.tables.values()):
            raise NumericsError("the architecture logits are no longer finite; lower search.logits.lr")
        return {name: self.tables[name].masked_fill(~cell.mask, -torch.inf) for name, cell in self.cells.items()}


def describe(cells: Mapping[str, Cell], probabilities: Mapping[str, Tensor]) -> dict[str, float]:
    """Returns the mean entropy per edge (nats) and the mean share of every candidate, over all edges that offer it."""
    rows: dict[str, list[float]] = {}
    entropies: list[float] = []
    for name, cell in cells.items():
        table = probabilities[name].detach()
        entropies += entropy(table).tolist()
        for edge, row in zip(cell.edges, table.tolist(), strict=True):
            for operation, share in zip(edge.operations, row, strict=False):
                rows.setdefault(operation, []).append(share)
    shares = {f"share/{operation}": sum(values) / len(values) for operation, values in sorted(rows.items())}
    return {"entropy": sum(entropies) / len(entropies), **shares}
