"""Beam search over partly discretised supernets."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Generator, Tensor

from nas.derivation.base import Derivation, Judge, Masks
from nas.derivation.restriction import Place, allowed, crowded, decided, left, only, undecided, without
from nas.errors import require_at_least
from nas.space import Genotype, SearchSpace


@dataclass(frozen=True, kw_only=True)
class Beam(Derivation):
    """Beam search: edges are fixed in turn, the most decided first; the most accurate partly fixed supernets are kept.

    Then nodes that retain only some in-edges lose the others one at a time, in the same way. With a width of 1 it is a
    greedy search; more of them find choices that are good only together.

    Attributes:
        width: How many partly fixed supernets are kept.
        decisions: Decisions averaged in a measurement, for selectors that draw.
    """

    width: int = 3
    decisions: int = 5

    def __post_init__(self) -> None:
        require_at_least(self, 1, "width", "decisions")

    def derive(
        self, space: SearchSpace, probabilities: Mapping[str, Tensor], judge: Judge, generator: Generator
    ) -> Genotype:
        """Decides; of equal ones the first stays."""
        start = allowed(space, probabilities)
        beam: list[Masks] = [start]
        for place in sorted(undecided(start), key=lambda place: -_confidence(probabilities, start, place)):
            beam = self._best(judge, [only(masks, place, k) for masks in beam for k in left(masks, place)])
        for inputs in crowded(space, start):
            for _ in range(len(inputs) - (space.cells[inputs[0][0]].retain or 0)):
                grown = [without(masks, place) for masks in beam for place in inputs if left(masks, place)]
                beam = self._best(judge, _distinct(grown))
        return decided(space, beam[0])

    def _best(self, judge: Judge, grown: list[dict[str, Tensor]]) -> list[Masks]:
        measured = [(judge.restricted(masks, self.decisions), masks) for masks in grown]
        measured.sort(key=lambda pair: pair[0], reverse=True)
        return [masks for _, masks in measured[: self.width]]


def _confidence(probabilities: Mapping[str, Tensor], masks: Masks, place: Place) -> float:
    """Returns the probability of an edge's likeliest candidate among those it has."""
    name, e = place
    row = probabilities[name][e].detach() * masks[name][e]
    return float(row.max() / row.sum()) if row.any() else 0.0


def _distinct(grown: Iterable[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Returns the masks once each: in-edges may have gone in another order."""
    return [*{str([mask.tolist() for mask in masks.values()]): masks for masks in grown}.values()]
