"""Evolutionary search over genotypes by accuracy with inherited weights (Guo et al., 2020, arXiv:1904.00420)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Generator, Tensor

from nas.derivation.base import Derivation, Judge
from nas.derivation.genotypes import sample
from nas.derivation.restriction import allowed, left
from nas.errors import require_at_least
from nas.space import Cell, Choice, Genotype, SearchSpace

T = TypeVar("T")

Options = Mapping[tuple[int, int], Sequence[str]]
"""The operations that an edge (source, target) may have."""

TRIES = 20
"""Draws for one new genotype, before the space counts as exhausted."""


@dataclass(frozen=True, kw_only=True)
class Evolution(Derivation):
    """SPOS's evolution: mutation and crossover of the genotypes most accurate with inherited weights.

    The first generation is drawn from the probabilities. Half of each later one are mutants, half crosses of the best
    found so far; no genotype is measured twice.

    Source: Guo et al., 2020, arXiv:1904.00420, with 1,000 evaluations in generations of 50.

    Attributes:
        evaluations: Genotypes that are measured, in all generations.
        population: Genotypes in a generation.
        parents: How many of the best have offspring.
        mutation: Probability with which a mutant's edge changes its operation, and, where a node retains only some
            in-edges, with which one gives way to another.
    """

    evaluations: int = 100
    population: int = 20
    parents: int = 5
    mutation: float = 0.1

    def __post_init__(self) -> None:
        require_at_least(self, 1, "evaluations", "population", "parents")
        if not 0 < self.mutation <= 1:
            raise ValueError(f"mutation must be above 0 and at most 1, got {self.mutation:g}")

    def derive(
        self, space: SearchSpace, probabilities: Mapping[str, Tensor], judge: Judge, generator: Generator
    ) -> Genotype:
        """Decides; of equal accuracies the first found wins."""
        options = _options(space, probabilities)
        scores: dict[Genotype, float] = {}
        best: list[Genotype] = []

        def draw() -> Genotype:
            return sample(space, probabilities, generator)

        def mutate() -> Genotype:
            return _mutant(space, _pick(best, generator), options, self.mutation, generator)

        def cross() -> Genotype:
            return _cross(space, _pick(best, generator), _pick(best, generator), generator)

        while count := min(self.population, self.evaluations - len(scores)):
            ways = [(mutate, count // 2), (cross, count), (draw, count)] if best else [(draw, count)]
            generation: dict[Genotype, None] = {}
            for way, until in ways:
                _fill(generation, way, until, scores)
            if not generation:
                break
            scores.update((genotype, judge.genotype(genotype)) for genotype in generation)
            best = sorted(scores, key=lambda genotype: -scores[genotype])[: self.parents]
        return best[0]


def _fill(
    generation: dict[Genotype, None], way: Callable[[], Genotype], until: int, known: Mapping[Genotype, float]
) -> None:
    """Adds new genotypes made in one way until the generation has so many, or no more are found."""
    for _ in range(TRIES * until):
        if len(generation) >= until:
            return
        made = way()
        if made not in known:
            generation[made] = None


def _options(space: SearchSpace, probabilities: Mapping[str, Tensor]) -> dict[str, Options]:
    masks = allowed(space, probabilities)
    return {
        name: {
            (edge.source, edge.target): [edge.operations[k] for k in found]
            for e, edge in enumerate(cell.edges)
            if (found := left(masks, (name, e)))
        }
        for name, cell in space.cells.items()
    }


def _mutant(
    space: SearchSpace, parent: Genotype, options: Mapping[str, Options], rate: float, generator: Generator
) -> Genotype:
    return Genotype(
        {
            name: _mutated(space.cells[name], choices, options[name], rate, generator)
            for name, choices in parent.cells.items()
        }
    )


def _mutated(
    cell: Cell, choices: Sequence[Choice], options: Options, rate: float, generator: Generator
) -> tuple[Choice, ...]:
    """Returns a cell with some operations drawn anew and, where nodes retain some in-edges, some in-edges too."""
    kept = {(source, target): operation for source, target, operation in choices}
    for edge in [*kept]:
        if edge in options and _chance(rate, generator):
            kept[edge] = _pick(options[edge], generator)
        unused = [other for other in options if other[1] == edge[1] and other not in kept]
        if cell.retain is not None and unused and _chance(rate, generator):
            del kept[edge]
            other = _pick(unused, generator)
            kept[other] = _pick(options[other], generator)
    return tuple((*edge, operation) for edge, operation in kept.items())


def _cross(space: SearchSpace, mother: Genotype, father: Genotype, generator: Generator) -> Genotype:
    """Returns a genotype whose every edge has an operation of a parent; a node's in-edges are drawn from both's."""
    cells = {}
    for name, choices in mother.cells.items():
        pool = {choice[:2]: choice for choice in father.cells[name]}
        for choice in choices:
            if choice[:2] not in pool or _chance(0.5, generator):
                pool[choice[:2]] = choice
        found: list[Choice] = []
        for node in space.cells[name].order:
            inputs = [choice for choice in pool.values() if choice[1] == node]
            count = sum(target == node for _, target, _ in choices)
            order = torch.randperm(len(inputs), generator=generator).tolist()
            found += [inputs[place] for place in order[:count]]
        cells[name] = tuple(found)
    return Genotype(cells)


def _pick(items: Sequence[T], generator: Generator) -> T:
    return items[int(torch.randint(len(items), (1,), generator=generator))]


def _chance(rate: float, generator: Generator) -> bool:
    return float(torch.rand((), generator=generator)) < rate
