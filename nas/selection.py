"""`Selection`: the one value in which selectors and the engine meet."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

if TYPE_CHECKING:
    from nas.space import Cell

Candidates = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """What every edge of one cell does in one forward pass.

    Attributes:
        paths: paths[e] lists the candidates edge e runs; the others add nothing.
        weights: (E, K). Scales each candidate's output and carries the gradient to the logits. None: all ones.
        probes: probes[e] lists candidates whose weight is zero in value but whose weight's gradient is wanted: they
            are evaluated without a graph, only to give <dL/d(edge output), candidate output>. Empty: none anywhere.
        log_prob: (). Log-probability of the decision, for score-function selectors.
        offset: (E,). Added to every element of an edge's output; zero in value (only the published GDAS gradient
            needs it).
        gates: (E,). Scale of everything that an edge passes, where edges are weighed; `weights` contain it. None: ones.
    """

    paths: Candidates
    weights: Tensor | None = None
    probes: Candidates = ()
    log_prob: Tensor | None = None
    offset: Tensor | None = None
    gates: Tensor | None = None

    @classmethod
    def everything(cls, cell: "Cell") -> "Selection":
        """Runs every candidate of every edge, unscaled: what a network with one candidate per edge does."""
        return cls(tuple(tuple(range(len(edge.operations))) for edge in cell.edges))

    @classmethod
    def mixture(cls, weights: Tensor, live: Tensor) -> "Selection":
        """Runs every live candidate.

        Args:
            weights: (E, K).
            live: (E, K), False where a candidate is masked.
        """
        return cls(indices(live), weights)

    @classmethod
    def single_path(
        cls,
        weights: Tensor,
        probed: Tensor | None = None,
        offset: Tensor | None = None,
        log_prob: Tensor | None = None,
    ) -> "Selection":
        """Runs one candidate per edge.

        Args:
            weights: (E, K), one-hot in value.
            probed: (E, K), True for candidates that are probed unless they run.
            offset: (E,), zero in value.
            log_prob: ().
        """
        hard = weights.detach() != 0
        return cls(indices(hard), weights, () if probed is None else indices(probed & ~hard), log_prob, offset)

    def detach(self) -> "Selection":
        """Returns the same decision for a weight step: no gradient, no probes, zero-weight candidates dropped."""
        gates = None if self.gates is None else self.gates.detach()
        if self.weights is None:
            return Selection(self.paths, gates=gates)
        weights = self.weights.detach()
        values = weights.tolist()
        paths = tuple(tuple(k for k in path if row[k] != 0) for path, row in zip(self.paths, values, strict=True))
        ones = all(row[k] == 1 for path, row in zip(paths, values, strict=True) for k in path)
        return Selection(paths, None if ones else weights, gates=gates)

    def beside(self, cell: "Cell", operation: str, weight: float) -> "Selection":
        """Returns the decision with one more candidate running on every edge that offers it and is not closed.

        Args:
            cell: The graph, whose edges may have more candidates than the decision knows.
            operation: Name of the candidate.
            weight: Of the candidate, times the edge's gate; with 0 it does not run.
        """
        if not weight and self.weights is None:
            return self
        columns = range(cell.candidates)
        places = [
            edge.operations.index(operation) if weight and path and operation in edge.operations else None
            for edge, path in zip(cell.edges, self.paths, strict=True)
        ]
        paths = tuple(path if k is None else (*path, k) for path, k in zip(self.paths, places, strict=True))
        if self.weights is None:
            rows = [[float(k in path) for k in columns] for path in self.paths]
            weights = torch.tensor(rows, device=None if self.gates is None else self.gates.device)
        else:
            weights = pad(self.weights, (0, cell.candidates - self.weights.shape[1]))
        there = torch.tensor([[k == place for k in columns] for place in places], device=weights.device)
        own = weights.new_tensor(weight) if self.gates is None else weight * self.gates.to(weights.dtype)[:, None]
        return replace(self, paths=paths, weights=torch.where(there, own, weights))

    def at_leaves(self, device: torch.device) -> "Selection":
        """Returns the selection with its tensors as leaves on `device`: the border of the network's graph."""
        weights, offset, gates = (_leaf(value, device) for value in (self.weights, self.offset, self.gates))
        return Selection(self.paths, weights, self.probes, None, offset, gates)

    def to(self, device: torch.device) -> "Selection":
        """Returns the selection with its tensors on `device`."""
        tensors = (self.weights, self.offset, self.gates)
        weights, offset, gates = (None if value is None else value.to(device) for value in tensors)
        return Selection(self.paths, weights, self.probes, self.log_prob, offset, gates)


def indices(chosen: Tensor) -> Candidates:
    """Returns, for each row of a boolean (E, K), the columns that are True."""
    rows: Sequence[Sequence[bool]] = chosen.tolist()
    return tuple(tuple(k for k, take in enumerate(row) if take) for row in rows)


def _leaf(value: Tensor | None, device: torch.device) -> Tensor | None:
    if value is None or not value.requires_grad:
        return None if value is None else value.to(device)
    return value.detach().to(device).requires_grad_()
