"""Uniform single-path sampling: trains the supernet, learns no logits (SPOS; Guo et al., 2020, arXiv:1904.00420)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from nas.estimators import checked, gumbel_max
from nas.selection import Selection
from nas.selectors.base import Selector


@dataclass(frozen=True, kw_only=True)
class Uniform(Selector):
    """SPOS: runs one path drawn uniformly; the genotype is the best of many sampled by inherited accuracy."""

    learns: ClassVar[bool] = False

    def probabilities(self, logits: Tensor) -> Tensor:
        """Returns equal probabilities for the live candidates, whatever the logits."""
        live = torch.isfinite(checked(logits)).to(logits.dtype)
        return live / live.sum(-1, keepdim=True)

    def select(self, logits: Tensor, progress: float, generator: Generator) -> Selection:
        """Draws one live candidate per edge."""
        return Selection.single_path(gumbel_max(self.probabilities(logits).log(), generator))
