"""Progressive shrinking: every edge loses its weakest candidates on the way (P-DARTS; arXiv:1904.12760)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nas.errors import ConfigError
from nas.runs.modifiers.base import Attached, Modifier, Searching
from nas.selectors import Selector
from nas.space import SearchSpace

LEAST = 2
"""The last choice is the derivation's; an edge left `none` alone would have nothing to derive where it is excluded."""


class _Shrinking(Attached):
    """Keeps no state: what is left is the architecture's, and what should be is a function of progress."""

    def __init__(self, search: Searching, at: tuple[float, ...], keep: tuple[float, ...]) -> None:
        super().__init__(search)
        self.stages = [*zip(at, keep, strict=True)]

    def before(self, step: int, progress: float) -> None:
        shares = [keep for at, keep in self.stages if progress >= at]
        if not shares or step >= self.search.steps:  # a search that was ended early is measured as it is
            return
        architecture = self.search.architecture
        left = {name: mask.sum(-1).tolist() for name, mask in architecture.live.items()}
        goals = {
            name: [max(LEAST, round(shares[-1] * len(edge.operations))) for edge in cell.edges]
            for name, cell in architecture.cells.items()
        }
        if any(count > goal for name in left for count, goal in zip(left[name], goals[name], strict=True)):
            with torch.no_grad():
                ranks, logits = self.search.probabilities(), architecture.logits()
            architecture.drop({name: _weakest(ranks[name], logits[name], goals[name]) for name in left})

    def end_epoch(self, epoch: int, progress: float) -> dict[str, float]:
        counts = torch.cat([mask.sum(-1) for mask in self.search.architecture.live.values()])
        return {"candidates": counts.double().mean().item()}


@dataclass(frozen=True, kw_only=True)
class Shrinking(Modifier):
    """P-DARTS: at given shares of the search every edge drops the candidates that its selector ranks lowest, for good.

    What is dropped is neither run nor trained any more, and not derived. P-DARTS also grows the depth between stages
    and begins each with new weights and logits. Here the supernet stays as deep as it is, and weights and logits go
    on, so that nothing of the schedules starts again; its dropout on skips is `skip-dropout`.

    Source: Chen et al., 2019, arXiv:1904.12760.

    Attributes:
        at: Shares of the search's steps at which candidates are dropped, rising; after `search.warmup`, before which
            the logits have learned nothing.
        keep: Share of an edge's candidates that is left after each, rounded, at least 2; as published 5 and 3 of 8.
    """

    at: tuple[float, ...] = (1 / 3, 2 / 3)
    keep: tuple[float, ...] = (5 / 8, 3 / 8)

    def __post_init__(self) -> None:
        if not self.at or list(self.at) != sorted({*self.at}) or not 0 < self.at[0] <= self.at[-1] < 1:
            raise ValueError(f"at must rise between 0 and 1, got {self.at}")
        if len(self.keep) != len(self.at):
            raise ValueError(f"keep must have a share for each of the {len(self.at)} in at, got {self.keep}")
        if list(self.keep) != sorted({*self.keep}, reverse=True) or not 0 < self.keep[-1] <= self.keep[0] < 1:
            raise ValueError(f"keep must fall between 1 and 0, got {self.keep}")

    @property
    def since(self) -> float:
        """Share of the search at which candidates are first dropped."""
        return self.at[0]

    def require(self, space: SearchSpace, selector: Selector) -> None:
        """Raises ConfigError unless the selector ranks candidates and an edge has some to lose."""
        if not selector.learns:
            raise ConfigError(
                "search.modifiers: shrinking drops what the selector ranks lowest; this one learns no ranks"
            )
        most = max(len(edge.operations) for cell in space.cells.values() for edge in cell.edges)
        if max(LEAST, round(self.keep[-1] * most)) >= most:
            raise ConfigError(
                f"search.modifiers: shrinking drops nothing of {most} candidates; lower its keep, or choose a space "
                f"with more than {LEAST} candidates on an edge"
            )

    def attach(self, search: Searching) -> Attached:
        """Returns the modifier at work."""
        return _Shrinking(search, self.at, self.keep)


def _weakest(ranks: Tensor, logits: Tensor, goals: list[int]) -> Tensor:
    """Returns which candidates go, (E, K); the logits decide where a sparse selector ranks several the same."""
    dropped = torch.zeros_like(logits, dtype=torch.bool)
    for e, (rank, row, goal) in enumerate(zip(ranks.tolist(), logits.tolist(), goals, strict=True)):
        live = [k for k, value in enumerate(row) if value > -torch.inf]
        order = sorted(live, key=lambda k: (rank[k], row[k]), reverse=True)
        dropped[e, order[goal:]] = True
    return dropped
