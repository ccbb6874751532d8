"""An edge's best candidate is the one with which the edge can be discretised at the least loss of accuracy."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Generator, Tensor

from nas.derivation.base import Derivation, Judge, Masks, Quality
from nas.derivation.restriction import Place, allowed, crowded, decided, left, only, thinned, undecided
from nas.errors import require_at_least
from nas.space import Genotype, SearchSpace


@dataclass(frozen=True, kw_only=True)
class DiscretisationLoss(Derivation):
    """Every edge takes the candidate with which, alone on it, the supernet is most accurate; least damage first.

    All edges are measured once, each discretised while the others stay as they are, which gives their order. Then they
    are fixed in turn, each measured anew beside those already fixed. Last, nodes that retain only some in-edges lose
    those whose removal costs least.

    This is the discretisation accuracy that Wang et al., 2021, arXiv:2108.04392, take as the true strength of a
    candidate, without the training to convergence that they give every candidate before it is measured.

    Attributes:
        decisions: Decisions averaged in a measurement, for selectors that draw.
    """

    decisions: int = 5

    def __post_init__(self) -> None:
        require_at_least(self, 1, "decisions")

    def derive(
        self, space: SearchSpace, probabilities: Mapping[str, Tensor], judge: Judge, generator: Generator
    ) -> Genotype:
        """Decides."""
        masks = allowed(space, probabilities)

        def measure(masks: Masks) -> Quality:
            return judge.restricted(masks, self.decisions)

        def alone(place: Place, masks: Masks) -> dict[int, Quality]:
            return {k: measure(only(masks, place, k)) for k in left(masks, place)}

        harmless = {place: max(alone(place, masks).values()) for place in undecided(masks)}
        for place in sorted(harmless, key=lambda place: harmless[place], reverse=True):
            found = alone(place, masks)
            masks = only(masks, place, max(found, key=lambda k: found[k]))
        for inputs in crowded(space, masks):
            masks = thinned(space, masks, inputs, measure)
        return decided(space, masks)
