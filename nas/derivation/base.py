"""The interface of rules that decide a genotype, and what they may ask about the supernet."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Generator, Tensor

from nas.space import Genotype, SearchSpace

Masks = Mapping[str, Tensor]
"""The candidates that are left, boolean (E, K) by cell name; an edge with none left runs nothing."""


class Quality(NamedTuple):
    """How good a network is; the larger the better, by accuracy and, where that is equal, by likelihood.

    Attributes:
        accuracy: In %.
        log_likelihood: Mean log-probability of the right class, in nats.
    """

    accuracy: float
    log_likelihood: float


@dataclass(frozen=True, kw_only=True)
class Judge:
    """What a rule may ask about the supernet; every accuracy is on `select`, with recalibrated batch norms.

    Attributes:
        genotype: Accuracy in % of a genotype with inherited weights.
        restricted: Quality of the supernet under its selector when only some candidates are left, and an edge with one
            runs just that; averaged over as many decisions as are asked for, if the selector draws.
        tune: Trains the weights of a supernet with only those candidates left for so many steps; later answers are
            about the tuned weights.
    """

    genotype: Callable[[Genotype], float]
    restricted: Callable[[Masks, int], Quality]
    tune: Callable[[Masks, int], None]


@dataclass(frozen=True, kw_only=True)
class Derivation(ABC):
    """A rule that decides a genotype from the probabilities of the candidates and what it asks about the supernet.

    Attributes:
        follows_logits: Whether the probabilities alone decide, so that a selector must have learned them.
    """

    registry: ClassVar[str] = "nas.derivations"
    follows_logits: ClassVar[bool] = False

    @abstractmethod
    def derive(
        self, space: SearchSpace, probabilities: Mapping[str, Tensor], judge: Judge, generator: Generator
    ) -> Genotype:
        """Decides.

        Args:
            space: The search space.
            probabilities: (E, K) by cell name; an edge whose row is 0 is left out.
            judge: Answers about the supernet; each answer costs a measurement.
            generator: Source of randomness, for rules that draw.
        """
