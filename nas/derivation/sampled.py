"""The best of many genotypes drawn from the probabilities, by accuracy with inherited weights."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Generator, Tensor

from nas.derivation.base import Derivation, Judge
from nas.derivation.genotypes import sample
from nas.errors import require_at_least
from nas.space import Genotype, SearchSpace


@dataclass(frozen=True, kw_only=True)
class Sampled(Derivation):
    """Sampling and ranking: the most accurate, with inherited weights, of genotypes drawn from the probabilities.

    Attributes:
        samples: How many genotypes are drawn and measured.
    """

    samples: int = 50

    def __post_init__(self) -> None:
        require_at_least(self, 1, "samples")

    def derive(
        self, space: SearchSpace, probabilities: Mapping[str, Tensor], judge: Judge, generator: Generator
    ) -> Genotype:
        """Decides; of equal accuracies the first drawn wins."""
        drawn = dict.fromkeys(sample(space, probabilities, generator) for _ in range(self.samples))
        return max(drawn, key=judge.genotype)
