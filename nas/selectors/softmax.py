"""DARTS: every edge is the softmax-weighted sum of its candidates (Liu et al., 2019, arXiv:1806.09055)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor, isfinite

from nas.estimators import softmax
from nas.selection import Selection
from nas.selectors.base import Selector


@dataclass(frozen=True, kw_only=True)
class Softmax(Selector):
    """DARTS: the softmax-weighted sum of all candidates; exact gradient of the mixture, K candidates run."""

    stochastic: ClassVar[bool] = False

    def select(self, logits: Tensor, progress: float, generator: Generator) -> Selection:
        """Weighs every candidate by softmax(logits)."""
        return Selection.mixture(softmax(logits), isfinite(logits))
