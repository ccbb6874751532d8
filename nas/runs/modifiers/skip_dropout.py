"""Dropout on skip connections, so that a search cannot lean on them early (P-DARTS; arXiv:1904.12760)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from nas.errors import ConfigError
from nas.runs.modifiers.base import Attached, Modifier, Searching
from nas.runs.modifiers.spaces import ModifiedSpace
from nas.schedules import Linear, Schedule
from nas.selectors import Selector
from nas.space import Operation, SearchSpace, Site

SKIP = "skip_connect"


class DroppedIdentity(nn.Module):
    """The identity with dropout; no `nn.Identity`, which engines pass over."""

    rate = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, C, H, W) with each number zeroed with probability `rate` in training, the others scaled up."""
        return F.dropout(x, self.rate, self.training)


def _dropped(operation: Operation, site: Site) -> nn.Module:
    built = operation(site)
    return DroppedIdentity() if isinstance(built, nn.Identity) else built


@dataclass(frozen=True, kw_only=True)
class _Dropping(ModifiedSpace):
    """A space whose identities among `skip_connect` have dropout."""

    def changed(self) -> Mapping[str, Operation]:
        """Returns the skip with dropout."""
        return {SKIP: partial(_dropped, self.base.operations[SKIP])}


class _Rate(Attached):
    def __init__(self, search: Searching, rate: Schedule) -> None:
        super().__init__(search)
        self.rate = rate
        self.skips = [module for module in search.network.modules() if isinstance(module, DroppedIdentity)]
        if not self.skips:
            raise ConfigError(
                "search.modifiers: skip-dropout drops numbers of identities, but no skip_connect of this space is one; "
                "leave it away"
            )

    def before(self, step: int, progress: float) -> None:
        for skip in self.skips:
            skip.rate = self.rate(progress)

    def end_epoch(self, epoch: int, progress: float) -> dict[str, float]:
        return {"skip_dropout": self.rate(progress)}


@dataclass(frozen=True, kw_only=True)
class SkipDropout(Modifier):
    """P-DARTS's regularised skip: dropout after every identity among the candidates `skip_connect`, while training.

    Source: Chen et al., 2019, arXiv:1904.12760.

    Attributes:
        rate: Probability of dropping a number.
    """

    rate: Schedule = Linear(start=0.3, end=0.0)

    def __post_init__(self) -> None:
        self.rate.require("rate", lambda value: 0 <= value < 1, "at least 0 and below 1")

    def require(self, space: SearchSpace, selector: Selector) -> None:
        """Raises ConfigError unless the space has a candidate `skip_connect`."""
        if not any(SKIP in edge.operations for cell in space.cells.values() for edge in cell.edges):
            raise ConfigError("search.modifiers: skip-dropout needs a space with a candidate skip_connect")

    def modify(self, space: SearchSpace) -> SearchSpace:
        """Returns the space with dropout after its identities."""
        return _Dropping(base=space)

    def attach(self, search: Searching) -> Attached:
        """Returns the modifier at work."""
        return _Rate(search, self.rate)
