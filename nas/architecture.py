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

    A search may drop candidates on its way; which are left is checkpointed with the logits.

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
        for name, cell in self.cells.items():
            self.register_buffer(f"live-{name}", cell.mask.clone())

    @property
    def live(self) -> dict[str, Tensor]:
        """The candidates that are left, boolean (E, K) by cell name."""
        return {name: self.get_buffer(f"live-{name}") for name in self.cells}

    def drop(self, dropped: Mapping[str, Tensor]) -> None:
        """Takes candidates away for good.

        Args:
            dropped: Boolean (E, K) by cell name; every edge must be left one.
        """
        for name, mask in self.live.items():
            mask &= ~dropped[name]
            assert mask.any(-1).all(), f"an edge of cell {name!r} would be left no candidate"

    def logits(self) -> dict[str, Tensor]:
        """Returns the logits by cell name, -inf where an edge has no candidate.

        Raises:
            NumericsError: One is no longer finite.
        """
        if not all(torch.isfinite(table).all() for table in self.tables.values()):
            raise NumericsError("the architecture logits are no longer finite; lower search.logits.lr")
        return {name: self.tables[name].masked_fill(~mask, -torch.inf) for name, mask in self.live.items()}


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
