"""Mixtures other than the softmax: Dirichlet samples, sparse weights, independent sigmoids; every edge runs many."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, isfinite, nn

from nas.estimators import checked, entmax15, sparsemax
from nas.estimators.continuous import dirichlet
from nas.selection import Selection
from nas.selectors.base import LossOf, Selector


@dataclass(frozen=True, kw_only=True)
class Dirichlet(Selector):
    """DrNAS: every edge is a mixture with weights from a Dirichlet law, with its implicit gradient; K candidates run.

    Concentrations are elu(logits) + 1.

    Source: Chen et al., 2021, arXiv:2006.10355.

    Attributes:
        anchor: Weight of the divergence from the flat Dirichlet law, which keeps early training even.
    """

    anchor: float = 1e-3

    def __post_init__(self) -> None:
        if not self.anchor >= 0:
            raise ValueError(f"anchor must be at least 0, got {self.anchor:g}")

    def probabilities(self, logits: Tensor) -> Tensor:
        """Returns the mean weights, (E, K)."""
        concentration = _concentration(logits)
        return concentration / concentration.sum(-1, keepdim=True)

    def select(self, logits: Tensor, progress: float, generator: Generator) -> Selection:
        """Draws the weights of each edge."""
        live, concentration = isfinite(logits), _concentration(checked(logits))
        # Any padding will do, since parts of a Dirichlet sample, renormalised, are one; this leaves them their digits.
        least = concentration.detach().masked_fill(~live, torch.inf).amin(-1, keepdim=True)
        drawn = torch.where(live, dirichlet(torch.where(live, concentration, least), generator), 0.0)
        return Selection.mixture(drawn / drawn.sum(-1, keepdim=True), live)

    def objective(
        self,
        loss_of: LossOf,
        logits: Mapping[str, Tensor],
        progress: float,
        generator: Generator,
        memory: nn.Module | None,
    ) -> Tensor:
        """Returns the loss of one mixture and the anchor's divergence."""
        loss = super().objective(loss_of, logits, progress, generator, memory)
        return loss + self.anchor * sum(_divergence(table) for table in logits.values()) if self.anchor else loss


@dataclass(frozen=True, kw_only=True)
class Entmax(Selector):
    """Entmax: a deterministic mixture that gives weak candidates a weight of exactly zero; only the support runs.

    A candidate outside the support has no gradient of its own until the others fall.

    Source: Peters et al., 2019, arXiv:1905.05702; sparsemax: Martins and Astudillo, 2016, arXiv:1602.02068.

    Attributes:
        alpha: 1.5 for entmax, 2 for sparsemax, which is sparser.
    """

    stochastic: ClassVar[bool] = False

    alpha: float = 1.5

    def __post_init__(self) -> None:
        if self.alpha not in (1.5, 2.0):
            raise ValueError(f"alpha must be 1.5 (entmax) or 2 (sparsemax), got {self.alpha:g}")

    def probabilities(self, logits: Tensor) -> Tensor:
        """Returns the weights, (E, K)."""
        return entmax15(logits) if self.alpha == 1.5 else sparsemax(logits)

    def select(self, logits: Tensor, progress: float, generator: Generator) -> Selection:
        """Weighs the candidates of the support."""
        weights = self.probabilities(logits)
        return Selection.mixture(weights, weights > 0)


@dataclass(frozen=True, kw_only=True)
class Sigmoid(Selector):
    """FairDARTS: every candidate has a weight of its own, sigmoid(logit), so that none gains from another's loss.

    Source: Chu et al., 2020, arXiv:1911.12126.

    Attributes:
        zero_one: Weight of the mean of -(weight - 1/2)^2, which drives weights to zero or one.
    """

    stochastic: ClassVar[bool] = False

    zero_one: float = 1.0

    def __post_init__(self) -> None:
        if not self.zero_one >= 0:
            raise ValueError(f"zero_one must be at least 0, got {self.zero_one:g}")

    def probabilities(self, logits: Tensor) -> Tensor:
        """Returns the weights, normalised on each edge."""
        weights = logits.sigmoid()
        return weights / weights.sum(-1, keepdim=True)

    def ranking(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the weights, which compare candidates of different edges too."""
        return {name: table.sigmoid() for name, table in logits.items()}

    def select(self, logits: Tensor, progress: float, generator: Generator) -> Selection:
        """Weighs every candidate by its sigmoid."""
        return Selection.mixture(checked(logits).sigmoid(), isfinite(logits))

    def objective(
        self,
        loss_of: LossOf,
        logits: Mapping[str, Tensor],
        progress: float,
        generator: Generator,
        memory: nn.Module | None,
    ) -> Tensor:
        """Returns the loss and the zero-one penalty."""
        loss = super().objective(loss_of, logits, progress, generator, memory)
        weights = torch.cat([table[isfinite(table)].sigmoid() for table in logits.values()])
        return loss - self.zero_one * ((weights - 0.5) ** 2).mean() if self.zero_one else loss


def _concentration(logits: Tensor) -> Tensor:
    """Returns elu(logits) + 1, (E, K): exp(logits) below zero; 0 where masked."""
    return torch.where(logits > 0, logits + 1, logits.clamp_max(0).exp())


def _divergence(logits: Tensor) -> Tensor:
    """Returns KL(Dirichlet(concentration) || Dirichlet(1)), summed over edges."""
    live = isfinite(logits)
    concentration = torch.where(live, _concentration(logits), 1.0)
    total = torch.where(live, concentration, 0.0).sum(-1)
    count = live.sum(-1).to(total)
    terms = -torch.lgamma(concentration) + (concentration - 1) * (
        torch.digamma(concentration) - torch.digamma(total)[..., None]
    )
    return (torch.lgamma(total) - torch.lgamma(count) + torch.where(live, terms, 0.0).sum(-1)).sum()
