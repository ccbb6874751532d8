"""Weight entanglement: candidates that are parts of larger ones share their parameters."""

from dataclasses import dataclass

import torch

from nas.errors import ConfigError
from nas.hypergradients import FirstOrder, SingleLevel
from nas.runs.modifiers.base import Attached, Modifier, Searching
from nas.supernet.nesting import shares


class _Entangled(Attached):
    """Keeps every small parameter a copy of its part of the large one, which alone is trained.

    The gradient of a shared parameter is the sum of its uses', so a step of any optimizer is that of true sharing.
    """

    binding = True

    def __init__(self, search: Searching) -> None:
        super().__init__(search)
        if not isinstance(search.hypergradient, FirstOrder | SingleLevel):
            raise ConfigError(
                "search.modifiers: entanglement cannot go with a search.hypergradient that moves weights for a trial, "
                "since it moves each candidate's own; use first-order or single-level"
            )
        cells = search.network.mixed_cells
        self.shares = [each for cell in cells for candidates in cell.candidates for each in shares(candidates)]
        if not self.shares:
            raise ConfigError(
                "search.modifiers: entanglement has nothing to share: in this space no candidate nests in another of "
                "its edge (the same modules, with smaller kernels or fewer channels); leave it away"
            )
        self._copy()

    def gradients(self, step: int, progress: float) -> None:
        for each in self.shares:
            if each.small.grad is not None:
                if each.large.grad is None:
                    each.large.grad = torch.zeros_like(each.large)
                each.of(each.large.grad).add_(each.small.grad)
                each.small.grad = None  # so that the optimizer passes over it

    def after(self, step: int, progress: float) -> None:
        self._copy()

    @torch.no_grad()
    def _copy(self) -> None:
        for each in self.shares:
            each.small.copy_(each.of(each.large))


@dataclass(frozen=True, kw_only=True)
class Entanglement(Modifier):
    """Weight entanglement: candidates of an edge that nest share the parameters of the largest, trained by all uses.

    Candidates nest if they are built of the same modules, strides and dilations and differ in kernels, of which the
    smaller is the centre of the larger, and channels, of which fewer are the first: in `darts` the separable and the
    dilated convolutions, in `nas-bench-201` the convolutions, in `chain` all blocks. Batch norms stay their own. Names
    and shapes of parameters stay too, so a derived network inherits as usual, and memory is not saved.

    Source: Chen et al., 2021, arXiv:2107.00651; with logits, Sukthanker et al., 2024, arXiv:2312.10440.
    """

    def attach(self, search: Searching) -> Attached:
        """Returns the modifier at work.

        Raises:
            ConfigError: Nothing nests, or the hypergradient displaces weights.
        """
        return _Entangled(search)
