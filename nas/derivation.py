"""From probabilities to a genotype, and from a genotype to the selection that discretises the supernet."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from nas.errors import ConfigError
from nas.estimators import gumbel_noise
from nas.selection import Selection
from nas.space import Choice, Genotype, SearchSpace

Score = Callable[[Genotype], float]
"""Quality of a genotype, larger is better, e.g. its accuracy with inherited weights on `select`."""


@dataclass(frozen=True, kw_only=True)
class Derivation(ABC):
    """A rule that decides a genotype from the probabilities of the candidates.

    Attributes:
        follows_logits: Whether the probabilities alone decide, so that a selector must have learned them.
    """

    registry: ClassVar[str] = "nas.derivations"
    follows_logits: ClassVar[bool] = False

    @abstractmethod
    def derive(
        self, space: SearchSpace, probabilities: Mapping[str, Tensor], score: Score, generator: Generator
    ) -> Genotype:
        """Decides.

        Args:
            space: The search space.
            probabilities: (E, K) by cell name; an edge whose row is 0 is left out.
            score: Measures a genotype; only rules that compare several call it.
            generator: Source of randomness, for rules that sample.
        """


@dataclass(frozen=True, kw_only=True)
class Argmax(Derivation):
    """Every edge takes its most probable candidate, `none` included; a node keeps its strongest in-edges."""

    follows_logits: ClassVar[bool] = True

    def derive(
        self, space: SearchSpace, probabilities: Mapping[str, Tensor], score: Score, generator: Generator
    ) -> Genotype:
        """Decides."""
        return strongest(space, probabilities)


@dataclass(frozen=True, kw_only=True)
class Darts(Derivation):
    """DARTS's rule: `none` is excluded; a node keeps the in-edges whose best candidates are the most probable."""

    follows_logits: ClassVar[bool] = True

    def derive(
        self, space: SearchSpace, probabilities: Mapping[str, Tensor], score: Score, generator: Generator
    ) -> Genotype:
        """Decides."""
        return strongest(space, probabilities, exclude="none")


@dataclass(frozen=True, kw_only=True)
class Sampled(Derivation):
    """The best by score of `samples` genotypes drawn from the probabilities.

    Attributes:
        samples: How many genotypes are drawn and scored.
    """

    samples: int = 50

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")

    def derive(
        self, space: SearchSpace, probabilities: Mapping[str, Tensor], score: Score, generator: Generator
    ) -> Genotype:
        """Decides; of equal scores the first drawn wins."""
        drawn = dict.fromkeys(sample(space, probabilities, generator) for _ in range(self.samples))
        return max(drawn, key=score)


def strongest(space: SearchSpace, scores: Mapping[str, Tensor], exclude: str | None = None) -> Genotype:
    """Returns the genotype of the largest scores (E, K) per edge; nodes keep `Cell.retain` in-edges.

    An edge whose scores are all 0 is left out.

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
        for edge, row in zip(cell.edges, table.tolist(), strict=True):
            allowed = [
                (value, k) for k, value in enumerate(row[: len(edge.operations)]) if edge.operations[k] != exclude
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
        perturbed = table + gumbel_noise(table, generator)
        if cell.retain is None:
            noisy[name] = perturbed
            continue
        for e, edge in enumerate(cell.edges):
            for k, operation in enumerate(edge.operations):
                if operation == "none" and len(edge.operations) > 1:
                    perturbed[e, k] = -torch.inf
        chosen = perturbed == perturbed.amax(-1, keepdim=True)
        noisy[name] = torch.where(chosen, torch.rand(len(cell.edges), 1, generator=generator), -1.0)
    left_out = {name: table.amax(-1, keepdim=True) == 0 for name, table in probabilities.items()}
    return strongest(space, {name: table.masked_fill(left_out[name], 0.0) for name, table in noisy.items()})


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
