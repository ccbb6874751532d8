"""DARTS-PT: an edge's best candidate is the one that the supernet misses most (Wang et al., 2021, arXiv:2108.04392)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Generator, Tensor

from nas.derivation.base import Derivation, Judge, Masks, Quality
from nas.derivation.restriction import Place, allowed, crowded, decided, left, only, thinned, undecided, without
from nas.errors import require_at_least
from nas.space import Genotype, SearchSpace

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Perturbation(Derivation):
    """DARTS-PT: on each edge, in random order, stays the candidate whose removal costs the supernet most accuracy.

    The weights are trained on between two edges. Then nodes that retain only some in-edges lose, one at a time, the one
    whose removal costs least. Of equal accuracies the lower likelihood tells. The weights of the candidates left are
    normalised again, which the published code does not do; the logits rest.

    Source: Wang et al., 2021, arXiv:2108.04392.

    Attributes:
        tune: Weight steps between two decisions; 0 for none. Published are five epochs.
        decisions: Decisions averaged in a measurement, for selectors that draw.
    """

    tune: int = 20
    decisions: int = 5

    def __post_init__(self) -> None:
        require_at_least(self, 0, "tune")
        require_at_least(self, 1, "decisions")

    def derive(
        self, space: SearchSpace, probabilities: Mapping[str, Tensor], judge: Judge, generator: Generator
    ) -> Genotype:
        """Decides."""
        masks: Masks = allowed(space, probabilities)

        def measure(masks: Masks) -> Quality:
            return judge.restricted(masks, self.decisions)

        def decide(place: Place, masks: Masks) -> Masks:
            missed = {k: measure(without(masks, place, k)) for k in left(masks, place)}
            return only(masks, place, min(missed, key=lambda k: missed[k]))

        def thin(inputs: list[Place], masks: Masks) -> Masks:
            return thinned(space, masks, inputs, measure)

        edges, nodes = undecided(masks), crowded(space, masks)
        steps: list[Callable[[Masks], Masks]] = [partial(decide, place) for place in _shuffled(edges, generator)]
        steps += [partial(thin, inputs) for inputs in _shuffled(nodes, generator)]
        for number, step in enumerate(steps):
            if number and self.tune:
                judge.tune(masks, self.tune)
            masks = step(masks)
        return decided(space, masks)


def _shuffled(items: list[T], generator: Generator) -> list[T]:
    return [items[place] for place in torch.randperm(len(items), generator=generator).tolist()]
