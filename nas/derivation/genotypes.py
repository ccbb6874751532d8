"""Genotypes from tables of scores or probabilities, and the selections that discretise a supernet to a genotype."""

from collections.abc import Collection, Mapping
from functools import lru_cache

import torch
from torch import Generator, Tensor

from nas.errors import ConfigError
from nas.estimators import gumbel_noise
from nas.selection import Selection
from nas.space import Cell, Choice, Genotype, SearchSpace


def strongest(
    space: SearchSpace,
    scores: Mapping[str, Tensor],
    exclude: str | None = None,
    banned: Collection[tuple[str, int, int]] = (),
) -> Genotype:
    """Returns the genotype of the largest scores (E, K) per edge; nodes keep `Cell.retain` in-edges.

    An edge whose scores are all 0 is left out.

    Args:
        space: The search space.
        scores: (E, K) by cell name.
        exclude: An operation that is never taken.
        banned: Candidates that are not taken: (cell, edge, candidate).

    Raises:
        ConfigError: All candidates of a cell score the same, so nothing was learned that could decide, or 0.
    """
    cells: dict[str, tuple[Choice, ...]] = {}
    for name, cell in space.cells.items():
        table = scores[name].detach()
        if not table.any():
            raise ConfigError(f"cell {name!r}: every edge is left out; lower selector.penalty, which closes them")
        if (
            all(len({*row[: len(edge.operations)]}) == 1 for edge, row in zip(cell.edges, table.tolist(), strict=True))
            and cell.candidates > 1
        ):
            raise ConfigError(
                f"cell {name!r}: all candidates are equally probable, so an argmax would be arbitrary; "
                "search with a selector that learns, or derive by sampling (--set derive.name=sampled)"
            )
        best: dict[int, list[tuple[float, Choice]]] = {}
        for e, (edge, row) in enumerate(zip(cell.edges, table.tolist(), strict=True)):
            allowed = [
                (value, k)
                for k, value in enumerate(row[: len(edge.operations)])
                if edge.operations[k] != exclude and (name, e, k) not in banned
            ]
            if allowed and any(row):
                value, k = max(allowed, key=lambda item: (item[0], -item[1]))
                best.setdefault(edge.target, []).append((value, (edge.source, edge.target, edge.operations[k])))
        kept = [sorted(edges, key=lambda item: -item[0])[: cell.retain] for edges in best.values()]
        cells[name] = tuple(choice for edges in kept for _, choice in edges)
    return Genotype(cells)


def sample(space: SearchSpace, probabilities: Mapping[str, Tensor], generator: Generator) -> Genotype:
    """Draws a genotype: one candidate per edge by Gumbel-Max, then random in-edges where nodes retain only some.

    Where only some in-edges are retained `none` is excluded, as it is when such a space is derived.
    """
    noisy: dict[str, Tensor] = {}
    for name, cell in space.cells.items():
        table = probabilities[name].detach().log()
        noise = gumbel_noise(table, generator)
        if cell.retain is None:
            noisy[name] = table + noise
            continue
        excluded = ~derivable(cell)
        # Of an edge that is left nothing but `none`, as by a sparse selector, the others are worth the same.
        hopeless = (table.masked_fill(excluded, -torch.inf) == -torch.inf).all(-1, keepdim=True)
        perturbed = torch.where(hopeless, noise, table + noise).masked_fill(excluded, -torch.inf)
        chosen = perturbed == perturbed.amax(-1, keepdim=True)
        noisy[name] = torch.where(chosen, torch.rand(len(cell.edges), 1, generator=generator), -1.0)
    left_out = {name: table.amax(-1, keepdim=True) == 0 for name, table in probabilities.items()}
    return strongest(space, {name: table.masked_fill(left_out[name], 0.0) for name, table in noisy.items()})


@lru_cache(maxsize=64)
def derivable(cell: Cell) -> Tensor:
    """Returns which candidates `sample` may draw, (E, K) boolean: no `none` where nodes retain some in-edges.

    An edge that offers nothing else keeps it.
    """
    found = cell.mask.clone()
    for e, edge in enumerate(cell.edges):
        if cell.retain is not None and "none" in edge.operations and len(edge.operations) > 1:
            found[e, edge.operations.index("none")] = False
    return found


def uniform(space: SearchSpace) -> dict[str, Tensor]:
    """Returns equal probabilities for the candidates of every edge, (E, K) by cell name."""
    return {name: cell.mask / cell.mask.sum(-1, keepdim=True) for name, cell in space.cells.items()}


def discretise(space: SearchSpace, genotype: Genotype) -> dict[str, Selection]:
    """Returns the selections under which the supernet computes what the derived network computes.

    Raises:
        ConfigError: The genotype is not of this space.
    """
    space.require(genotype)
    selections = {}
    for name, cell in space.cells.items():
        chosen = {(source, target): operation for source, target, operation in genotype.cells[name]}
        paths = tuple(
            (edge.operations.index(chosen[edge.source, edge.target]),) if (edge.source, edge.target) in chosen else ()
            for edge in cell.edges
        )
        selections[name] = Selection(paths)
    return selections
