"""Edge normalisation: the edges into a node share a softmax, as the candidates of an edge do (PC-DARTS)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, isfinite

from nas.estimators import checked
from nas.selectors.base import Selector
from nas.selectors.edges import EdgeSelector
from nas.selectors.softmax import Softmax


@dataclass(frozen=True, kw_only=True)
class EdgeNormalised(EdgeSelector):
    """Edge normalisation of PC-DARTS: every edge is scaled by a softmax over the edges into its node.

    The published form learns a number beside the logits of each edge. Here it is the mean of the edge's row, which a
    softmax over the row ignores: row minus mean and mean are the published pair, and the gradient of the mean is the
    same in every logit of the row, so that it leaves `inner`'s probabilities alone. (log(mean(exp(row))), the level of
    the other edge selectors, would sharpen them.) With it come no further parameters. Without a cell's graph (`on`),
    all edges share one softmax. A derivation ranks by the product of the two.

    Source: Xu et al., 2020, arXiv:1907.05737.
    """

    closed_edges_run: ClassVar[bool] = False

    inner: Selector = Softmax()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "stochastic", self.inner.stochastic)

    def gates(self, name: str, logits: Tensor, progress: float, generator: Generator) -> Tensor:
        """Returns the shares, which sum to 1 over the edges into a node; nothing is drawn."""
        return self._shares(name, logits)

    def ranking(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the inner selector's, times each edge's share."""
        ranks = self.inner.ranking(logits)
        return {name: table * self._shares(name, logits[name])[:, None] for name, table in ranks.items()}

    def _shares(self, name: str, logits: Tensor) -> Tensor:
        table = checked(logits)
        live = isfinite(table)
        levels = table.masked_fill(~live, 0.0).sum(-1) / live.sum(-1)
        shares = torch.ones_like(levels)
        for group in self.rivals(name, len(levels)):
            among = torch.tensor(group, dtype=torch.long)
            shares = shares.index_put((among,), levels[among].softmax(0))
        return shares
