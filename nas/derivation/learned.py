"""Rules that read the probabilities alone: the most probable candidates, perhaps with a limit on skip connections."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor

from nas.derivation.base import Derivation, Judge
from nas.derivation.genotypes import strongest
from nas.errors import ConfigError
from nas.space import Genotype, SearchSpace

SKIP = "skip_connect"


@dataclass(frozen=True, kw_only=True)
class Argmax(Derivation):
    """Every edge takes its most probable candidate, `none` included; a node keeps its strongest in-edges.

    Attributes:
        skips: The most skip connections in a cell (see `limited`); None for no limit.
    """

    follows_logits: ClassVar[bool] = True

    skips: int | None = None

    def __post_init__(self) -> None:
        _require_count(self.skips)

    def derive(
        self, space: SearchSpace, probabilities: Mapping[str, Tensor], judge: Judge, generator: Generator
    ) -> Genotype:
        """Decides."""
        return limited(space, probabilities, self.skips)


@dataclass(frozen=True, kw_only=True)
class Darts(Derivation):
    """DARTS's rule: `none` is excluded; a node keeps the in-edges whose best candidates are the most probable.

    Source: Liu et al., 2019, arXiv:1806.09055.

    Attributes:
        skips: The most skip connections in a cell (see `limited`); None for no limit.
    """

    follows_logits: ClassVar[bool] = True

    skips: int | None = None

    def __post_init__(self) -> None:
        _require_count(self.skips)

    def derive(
        self, space: SearchSpace, probabilities: Mapping[str, Tensor], judge: Judge, generator: Generator
    ) -> Genotype:
        """Decides."""
        return limited(space, probabilities, self.skips, exclude="none")


def limited(
    space: SearchSpace, scores: Mapping[str, Tensor], skips: int | None, exclude: str | None = None
) -> Genotype:
    """Returns the strongest genotype with at most so many skip connections in each cell.

    While a cell has more, the weakest of them is ruled out on its edge and the genotype is decided again: the edge
    takes its next best candidate, with that one's score it competes for its node, and another edge may win.

    Source: Chen et al., 2019, arXiv:1904.12760 (P-DARTS).

    Raises:
        ConfigError: Skip connections beyond the limit are on edges that have no other candidate.
    """
    banned: set[tuple[str, int, int]] = set()
    while True:
        genotype = strongest(space, scores, exclude, banned)
        surplus = [] if skips is None else [*_surplus(space, scores, genotype, skips, exclude)]
        if not surplus:
            return genotype
        banned.update(surplus)


def _surplus(
    space: SearchSpace, scores: Mapping[str, Tensor], genotype: Genotype, skips: int, exclude: str | None
) -> list[tuple[str, int, int]]:
    """Returns the weakest skip connection, as (cell, edge, candidate), of every cell that has too many."""
    found = []
    for name, cell in space.cells.items():
        taken = {(source, target) for source, target, operation in genotype.cells[name] if operation == SKIP}
        if len(taken) <= skips:
            continue
        weakest = []
        for e, edge in enumerate(cell.edges):
            if (edge.source, edge.target) in taken and set(edge.operations) - {SKIP, exclude}:
                k = edge.operations.index(SKIP)
                weakest.append((float(scores[name][e, k]), -e, k))
        if not weakest:
            raise ConfigError(
                f"derive.skips = {skips}: cell {name!r} has {len(taken)} skip connections on edges without another "
                "candidate; raise it"
            )
        _, e, k = min(weakest)
        found.append((name, -e, k))
    return found


def _require_count(skips: int | None) -> None:
    if skips is not None and skips < 0:
        raise ValueError(f"skips must be at least 0, or null for no limit, got {skips}")
