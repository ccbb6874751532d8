"""Selection among edges, around any selector of candidates: the k inputs a node keeps, and gates that close edges.

The softmax ignores a constant added to a row of logits; here it counts. An edge's level is log(mean(exp(row))), which
starts equal for all edges and grows with every one of its candidates. No further parameters are needed.
"""

import copy
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, isfinite, nn

from nas.estimators import checked, deterministic_gate, hard_concrete, l0_penalty, straight_through_top_k
from nas.schedules import Constant, Schedule
from nas.selection import Selection
from nas.selectors.base import LossOf, Selector, require_positive
from nas.selectors.straight_through import StraightThroughGumbelSoftmax
from nas.space import Cell

Groups = tuple[tuple[int, ...], ...]
"""Edges that compete with each other."""


@dataclass(frozen=True, kw_only=True)
class EdgeSelector(Selector):
    """Scales every edge by a gate, and leaves its candidates to another selector.

    Attributes:
        closed_edges_run: Whether an edge with gate zero runs in an architecture step, for the gate's gradient.
        inner: What decides among the candidates of an edge.
    """

    weighs_edges: ClassVar[bool] = True
    closed_edges_run: ClassVar[bool]
    groups: ClassVar[Mapping[str, Groups]] = {}

    inner: Selector = StraightThroughGumbelSoftmax()

    def __post_init__(self) -> None:
        if self.inner.weighs_edges:
            raise ValueError("inner must decide among candidates, got a selector that weighs edges too")
        if not self.inner.learns:
            raise ValueError("inner must learn logits, got one that does not, such as uniform")

    def on(self, cells: Mapping[str, Cell]) -> Selector:
        """Returns the selector that knows which edges lead into the same node, and so compete."""
        bound = copy.copy(self)
        groups = {name: tuple(tuple(cell.in_edges(node)) for node in cell.order) for name, cell in cells.items()}
        object.__setattr__(bound, "groups", groups)
        return bound

    def rivals(self, name: str, count: int) -> Groups:
        """Returns the edges of cell `name` that compete; all `count` where the cell's graph is not known."""
        return self.groups.get(name, (tuple(range(count)),))

    @abstractmethod
    def gates(self, name: str, logits: Tensor, progress: float, generator: Generator) -> Tensor:
        """Returns the gates of the edges of cell `name`, (E,)."""

    def select(self, logits: Tensor, progress: float, generator: Generator) -> Selection:
        """Draws the gates, then the candidates, of a cell that has no name."""
        gates = self.gates("", logits, progress, generator)
        return self._gated(self.inner.select(logits, progress, generator), gates, logits)

    def decide(self, logits: Mapping[str, Tensor], progress: float, generator: Generator) -> dict[str, Selection]:
        """Draws the gates, then the candidates, of all cells."""
        gates = {name: self.gates(name, table, progress, generator) for name, table in logits.items()}
        inner = self.inner.decide(logits, progress, generator)
        return {name: self._gated(each, gates[name], logits[name]) for name, each in inner.items()}

    def objective(
        self,
        loss_of: LossOf,
        logits: Mapping[str, Tensor],
        progress: float,
        generator: Generator,
        memory: nn.Module | None,
    ) -> Tensor:
        """Returns the inner selector's objective, with the same gates in all its decisions."""
        gates = {name: self.gates(name, table, progress, generator) for name, table in logits.items()}

        def gated_loss(inner: Mapping[str, Selection]) -> Tensor:
            return loss_of({name: self._gated(each, gates[name], logits[name]) for name, each in inner.items()})

        return self.inner.objective(gated_loss, logits, progress, generator, memory)

    def memory(self, cells: Mapping[str, Cell]) -> nn.Module | None:
        """Returns the inner selector's."""
        return self.inner.memory(cells)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Returns the inner selector's, (E, K)."""
        return self.inner.probabilities(logits)

    def settings(self, progress: float) -> dict[str, float]:
        """Returns the values of the schedules, the inner selector's as `inner.<name>`."""
        inner = {f"inner.{name}": value for name, value in self.inner.settings(progress).items()}
        return {**super().settings(progress), **inner}

    def _gated(self, selection: Selection, gates: Tensor, logits: Tensor) -> Selection:
        """Returns a decision whose edges are scaled; a closed edge probes nothing: its candidates have no gradient."""
        weights = selection.weights
        if weights is None:
            rows = [[float(k in path) for k in range(logits.shape[1])] for path in selection.paths]
            weights = torch.tensor(rows, dtype=logits.dtype)
        is_open = (gates.detach() != 0).tolist()
        runs = [gate or (self.closed_edges_run and gates.requires_grad) for gate in is_open]
        paths = tuple(path if run else () for path, run in zip(selection.paths, runs, strict=True))
        probes = tuple(each if gate else () for each, gate in zip(selection.probes, is_open, strict=False))
        offset = None if selection.offset is None else selection.offset * gates
        return Selection(paths, weights * gates[:, None], probes, selection.log_prob, offset, gates)


@dataclass(frozen=True, kw_only=True)
class EdgeTopK(EdgeSelector):
    """Gumbel top-k over edges: every node keeps `keep` inputs, drawn without replacement; `inner` decides on them.

    The gradient of an edge's level is that of a relaxed k-hot sample, by straight-through; in an architecture step the
    edges that are left out run too, with weight zero. Without a cell's graph (`on`), all edges compete.

    Source: Kool et al., 2019, arXiv:1903.06059; Xie and Ermon, 2019, arXiv:1901.10517.

    Attributes:
        keep: Inputs per node; a node with no more than that keeps all.
        temperature: Of the relaxed sample.
    """

    closed_edges_run: ClassVar[bool] = True

    keep: int = 2
    temperature: Schedule = Constant(value=1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("temperature", self.temperature)
        if self.keep < 1:
            raise ValueError(f"keep must be at least 1, got {self.keep}")

    def gates(self, name: str, logits: Tensor, progress: float, generator: Generator) -> Tensor:
        """Returns 1 for edges that are kept and 0 for others, with the relaxation's gradient."""
        levels, temperature = _levels(logits), self.temperature(progress)
        gates = torch.ones_like(levels)
        for group in self.rivals(name, len(levels)):
            if len(group) > self.keep:
                among = torch.tensor(group)
                drawn = straight_through_top_k(levels[among], self.keep, temperature, generator)
                gates = gates.index_put((among,), drawn.to(gates))
        return gates

    def ranking(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the inner selector's, times each edge's probability to be drawn first; 0 beyond the first k."""
        ranks = self.inner.ranking(logits)
        return {name: table * self._shares(name, logits[name])[:, None] for name, table in ranks.items()}

    def _shares(self, name: str, logits: Tensor) -> Tensor:
        levels = _levels(logits)
        shares = torch.zeros_like(levels)
        for group in map(list, self.rivals(name, len(levels))):
            among = levels[group].softmax(0)
            kept = among.topk(min(self.keep, len(group))).indices
            shares[group] = torch.zeros_like(among).scatter(0, kept, among[kept])
        return shares


@dataclass(frozen=True, kw_only=True)
class EdgeGates(EdgeSelector):
    """Hard Concrete gates on edges: a gate scales its edge's output and may be exactly 0; a closed edge runs nothing.

    Derivation leaves out the edges whose gate is closed at test time.

    Source: Louizos et al., 2018, arXiv:1712.01312.

    Attributes:
        temperature: Of the gates.
        penalty: Price of an open edge, in units of the loss: the L0 penalty's weight.
    """

    closed_edges_run: ClassVar[bool] = False

    temperature: Schedule = Constant(value=2 / 3)
    penalty: Schedule = Constant(value=0.01)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("temperature", self.temperature)
        self.penalty.require("penalty", lambda value: value >= 0, "at least 0")

    def gates(self, name: str, logits: Tensor, progress: float, generator: Generator) -> Tensor:
        """Draws the gates, in [0, 1]."""
        return hard_concrete(_levels(logits), self.temperature(progress), generator=generator).to(logits.dtype)

    def objective(
        self,
        loss_of: LossOf,
        logits: Mapping[str, Tensor],
        progress: float,
        generator: Generator,
        memory: nn.Module | None,
    ) -> Tensor:
        """Returns the inner selector's objective under the gates, and the price of the edges expected to be open."""
        loss = super().objective(loss_of, logits, progress, generator, memory)
        open_edges = torch.stack([l0_penalty(_levels(table), self.temperature(progress)) for table in logits.values()])
        return loss + self.penalty(progress) * open_edges.sum()

    def ranking(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the inner selector's, times each edge's gate at test time."""
        ranks = self.inner.ranking(logits)
        return {name: table * deterministic_gate(_levels(logits[name]))[:, None] for name, table in ranks.items()}


def _levels(logits: Tensor) -> Tensor:
    """Returns log(mean(exp(row))) over the live candidates of each edge, (E,)."""
    table = checked(logits)
    return table.logsumexp(-1) - isfinite(table).sum(-1).to(table.dtype).log()
