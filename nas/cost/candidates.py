"""What each candidate costs in the derived network, and what a cell costs on average over the logits."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas.derivation import derivable, discretise
from nas.selection import Selection
from nas.space import Cell, Genotype, SearchSpace, Task
from nas.supernet import Network
from nas.supernet.inspection import inspect

Counted = Literal["params", "multiply-adds"]


@dataclass(frozen=True, eq=False)
class Costs:
    """The cost of a derived network as a sum over its candidates.

    Attributes:
        cells: (E, K) float64 by cell name: a candidate's cost, over all slots that share the cell; 0 where there is
            none.
        fixed: () float64: what every derived network has besides.
    """

    cells: Mapping[str, Tensor]
    fixed: Tensor

    def of(self, space: SearchSpace, genotype: Genotype) -> float:
        """Returns the cost of a genotype.

        Raises:
            ConfigError: The genotype is not of this space.
        """
        chosen = discretise(space, genotype)
        picked = [self.cells[name][e, k] for name, s in chosen.items() for e, path in enumerate(s.paths) for k in path]
        return float(sum(picked, self.fixed))


def candidate_costs(space: SearchSpace, task: Task, kind: Counted) -> Costs:
    """Returns what candidates cost in the form in which they are retrained, counted on torch's meta device.

    Exact: for every genotype the sum is what `nas.supernet.inspection.inspect` says of its network.

    Args:
        space: The search space.
        task: What networks are for.
        kind: `params`, or `multiply-adds` for one image.

    Raises:
        ConfigError: The space does not fit together.
    """
    try:
        with torch.device("meta"):
            network = Network(space, task, searching=False).eval()
        tables = {name: torch.zeros(cell.mask.shape, dtype=torch.float64) for name, cell in space.cells.items()}
        total = (_parameters if kind == "params" else _multiply_adds)(network, task, tables)
    except Exception:
        inspect(space, task, searching=False)  # says what is wrong with the space
        raise
    return Costs(tables, total - sum(table.sum() for table in tables.values()))


def _parameters(network: Network, task: Task, tables: Mapping[str, Tensor]) -> Tensor:
    for cell in network.mixed_cells:
        for e, candidates in enumerate(cell.candidates):
            for k, candidate in enumerate(candidates):
                tables[cell.name][e, k] += sum(parameter.numel() for parameter in candidate.parameters())
    return torch.tensor(sum(p.numel() for p in network.layers.parameters()), dtype=torch.float64)


def _multiply_adds(network: Network, task: Task, tables: Mapping[str, Tensor]) -> Tensor:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for cell in network.mixed_cells:
            for e, candidates in enumerate(cell.candidates):
                for k, candidate in enumerate(candidates):
                    _watch(candidate, counter, tables[cell.name], (e, k))
        images = torch.empty(1, task.channels, task.height, task.width, device="meta")
        network(images, {cell.name: Selection.everything(cell.cell) for cell in network.mixed_cells})
    return torch.tensor(counter.get_total_flops() // 2, dtype=torch.float64)


def _watch(candidate: nn.Module, counter: FlopCounterMode, table: Tensor, place: tuple[int, int]) -> None:
    """Adds a candidate's multiply-adds to its place in the table, each time that it runs."""

    def before(*_: object) -> None:
        table[place] -= counter.get_total_flops() // 2  # an addition and a multiplication count as two

    def after(*_: object) -> None:
        table[place] += counter.get_total_flops() // 2

    candidate.register_forward_pre_hook(before)
    candidate.register_forward_hook(after)


def expected_cost(probabilities: Mapping[str, Tensor], costs: Costs, cells: Mapping[str, Cell]) -> Tensor:
    """Returns the mean cost of the genotypes that `nas.derivation.sample` draws, () float64, differentiable.

    Where nodes retain only some of their in-edges, `none` is left out and each in-edge is kept with probability retain
    / in-degree. That is exact for `sample`; the rules that keep the strongest in-edges may cost more or less.

    Args:
        probabilities: (E, K) by cell name.
        costs: Of the same space.
        cells: Of the space.
    """
    total = costs.fixed
    for name, cell in cells.items():
        total = total + (chances(cell, probabilities[name]) * costs.cells[name]).sum()
    return total


def chances(cell: Cell, probabilities: Tensor) -> Tensor:
    """Returns how often each candidate is in a sampled genotype, (E, K)."""
    if cell.retain is None:
        return probabilities
    allowed = derivable(cell)
    kept = torch.where(allowed, probabilities, 0.0)
    total = kept.sum(-1, keepdim=True)
    # An edge that is all `none` is drawn from nothing.
    even = allowed / allowed.sum(-1, keepdim=True)
    return _retained(cell) * torch.where(total > 0, kept / total.clamp_min(torch.finfo(kept.dtype).tiny), even)


@lru_cache(maxsize=64)
def _retained(cell: Cell) -> Tensor:
    """Returns how often each edge is kept, (E, 1)."""
    degrees = torch.tensor([len(cell.in_edges(edge.target)) for edge in cell.edges], dtype=torch.float64)
    return (torch.tensor(cell.retain) / degrees).clamp_max(1.0)[:, None]


def bounds(costs: Costs, cells: Mapping[str, Cell], *, closing: bool = False) -> tuple[float, float]:
    """Returns the least and the largest cost of a genotype; `closing`: any edge may be left out."""
    least = most = float(costs.fixed)
    for name, cell in cells.items():
        allowed, table = derivable(cell), costs.cells[name]
        low = torch.where(allowed, table, torch.inf).amin(-1)
        high = torch.where(allowed, table, -torch.inf).amax(-1)
        for node in cell.order:
            edges = cell.in_edges(node)
            keep = len(edges) if cell.retain is None else min(cell.retain, len(edges))
            most += float(high[edges].topk(keep).values.clamp_min(0).sum())
            least += 0.0 if closing else float(low[edges].topk(keep, largest=False).values.sum())
    return least, most
