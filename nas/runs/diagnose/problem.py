"""The loss of an architecture step on one batch, as a function of the decision; and gradients as flat vectors."""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nas.randomness import seed_global
from nas.runs.search import loss_at_border
from nas.selection import Candidates, Selection
from nas.space import Cell
from nas.supernet import Network
from nas.supernet.statistics import norms, untouched

Vector = NDArray[np.float64]

Tables = dict[str, Tensor]
"""(E, K) by cell name."""


class Problem:
    """One supernet, one batch, one table of logits for each cell.

    The loss is that of an architecture step: cross-entropy with batch statistics, running statistics untouched. Each
    evaluation starts from the same global seed, so that it is a function of the decision even if the network draws.

    Args:
        network: In training mode.
        images: (B, C, H, W).
        labels: (B,).
        logits: (E, K) by cell name, -inf where an edge has no candidate.

    Attributes:
        choices: (E, K) by cell name, True for the candidates of edges that have more than one. Only their logits count.
        evaluated: Candidates run or probed so far on such edges.
    """

    def __init__(self, network: Network, images: Tensor, labels: Tensor, logits: Mapping[str, Tensor]) -> None:
        self.network, self.images, self.labels = network, images, labels
        self.cells: dict[str, Cell] = {cell.name: cell.cell for cell in network.mixed_cells}
        self.logits = {name: logits[name].detach() for name in logits if name in self.cells}
        live = {name: table.isfinite() for name, table in self.logits.items()}
        self.choices = {name: mask & (mask.sum(-1, keepdim=True) > 1) for name, mask in live.items()}
        self.evaluated = 0
        self._open = {name: mask.any(-1).tolist() for name, mask in self.choices.items()}
        self._norms = norms(network)

    @property
    def edges(self) -> int:
        """Number of edges that have more than one candidate, in all cells."""
        return sum(map(sum, self._open.values()))

    def loss_of(self, selections: Mapping[str, Selection]) -> Tensor:
        """Returns the loss, (), differentiable in the selections, and counts the candidates."""
        for name, selection in selections.items():
            rows = selection.probes or ((),) * len(selection.paths)
            pairs = zip(selection.paths, rows, self._open[name], strict=True)
            self.evaluated += sum(len(path) + len(probed) for path, probed, counts in pairs if counts)
        seed_global(0, "diagnose")
        with untouched(self._norms):
            return loss_at_border(self.network, self.images, self.labels, selections)

    @torch.no_grad()
    def loss(self, paths: Mapping[str, Candidates]) -> float:
        """Returns the loss of an architecture: the candidates that each edge runs, by cell name."""
        selections = {name: Selection(rows) for name, rows in paths.items()}
        seed_global(0, "diagnose")
        with untouched(self._norms):
            return float(F.cross_entropy(self.network(self.images, selections).scores, self.labels))

    def flat(self, tables: Mapping[str, Tensor]) -> Vector:
        """Returns the entries of (E, K) tables that belong to a choice, (d,)."""
        parts = [tables[name][mask] for name, mask in self.choices.items()]
        return torch.cat(parts).detach().double().numpy()
