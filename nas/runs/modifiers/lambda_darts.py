"""Lambda-DARTS: cells that share logits are trained to agree on them (Movahedi et al., 2023, arXiv:2210.07998)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.errors import ConfigError
from nas.randomness import generator, seed_global
from nas.runs.modifiers.base import Attached, Modifier, Searching
from nas.runs.modifiers.perturbed import first_decisions
from nas.runs.optimizers import parameters
from nas.runs.plain import still
from nas.schedules import Linear, Schedule
from nas.selection import Selection
from nas.selectors import Selector
from nas.space import SearchSpace
from nas.supernet import Network
from nas.supernet.cell import MixedCell
from nas.supernet.statistics import untouched


class _Aligning(Attached):
    total: Tensor
    measured: Tensor

    def __init__(self, search: Searching, settings: "LambdaDARTS") -> None:
        super().__init__(search)
        self.settings = settings
        names = [cell.name for cell in search.network.mixed_cells]
        self.slots = [cell for cell in search.network.mixed_cells if names.count(cell.name) > 1]
        if not self.slots:
            raise ConfigError(
                "search.modifiers: lambda-darts aligns the places of cells that share logits, but every cell has one "
                "place only; choose a space that repeats cells, or raise its depth"
            )
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("measured", torch.zeros(()))

    def gradients(self, step: int, progress: float) -> None:
        weight = self.settings.weight(progress)
        if not weight:
            return
        work = Slots(self.search, self.slots, step, progress)
        slopes = work.slopes()
        found, directions = aligned(self.slots, slopes)
        self.total += found
        self.measured += 1
        trained = [p for p in parameters(self.search.weights) if p.grad is not None]
        for parameter, slope in zip(trained, work.ascent(trained, directions, self.settings.radius), strict=True):
            assert parameter.grad is not None
            parameter.grad -= weight * slope  # the loss falls, the alignment grows

    def end_epoch(self, epoch: int, progress: float) -> dict[str, float]:
        if not self.measured:
            return {}
        mean = float(self.total / self.measured)
        self.total.zero_()
        self.measured.zero_()
        return {"alignment": mean}


@dataclass(frozen=True, kw_only=True)
class LambdaDARTS(Modifier):
    """Lambda-DARTS: weight steps also raise the alignment of a cell's places, so that all have a say in its logits.

    The alignment is the mean cosine, over all pairs of slots of one cell, between the gradients of the training loss in
    each slot's own mixture weights. Its gradient in the supernet's weights is a central difference of theirs along the
    alignment's slope in those gradients, subtracted before the norm is limited. The reduction cells, which the authors'
    code leaves out, count too. It costs three further passes, in which also runs what a selector only probes.

    Source: Movahedi et al., 2023, arXiv:2210.07998.

    Attributes:
        weight: Of the alignment, in units of the loss; 0 to 0.125 as in the authors' code.
        radius: Length of the displacement of all slots' mixture weights on either side of the difference. The authors'
            0.001 is dominated by single ReLUs that change sides in a small supernet: on digits a step of the weights
            along its difference hardly raised the alignment, one along that of 0.1 as much as the exact gradient.
    """

    apart: ClassVar[Mapping[str, str]] = {"entanglement": "its gradient knows no parameters that candidates share"}

    weight: Schedule = Linear(start=0.0, end=0.125)
    radius: float = 0.1

    def __post_init__(self) -> None:
        self.weight.require("weight", lambda value: value >= 0, "at least 0")
        if not self.radius > 0:
            raise ValueError(f"radius must be positive, got {self.radius:g}")

    def require(self, space: SearchSpace, selector: Selector) -> None:
        """Raises ConfigError unless the loss has a gradient in the weights of the selector's decisions."""
        decisions = [each for decision in first_decisions(space, selector) for each in decision.values()]
        if not all(each.weights is not None and each.weights.requires_grad for each in decisions):
            raise ConfigError(
                "search.modifiers: lambda-darts aligns gradients in the weights of decisions; this selector learns by "
                "the loss alone, or not at all, and its weights have none; choose softmax or another with a gradient"
            )

    def attach(self, search: Searching) -> Attached:
        """Returns the modifier at work."""
        return _Aligning(search, self)


class Slots:
    """The training loss of one step as a function of the own mixture weights of each of some slots.

    Args:
        search: At the step.
        slots: Which.
        step: Its number.
        progress: Its position.
    """

    def __init__(self, search: Searching, slots: Sequence[MixedCell], step: int, progress: float) -> None:
        self.search, self.slots, self.step = search, slots, step
        self.images, self.labels = search.train.batch(step)
        draws = generator(search.seed, "decide", "train", step)  # the weight step's
        drawn = search.selector.decide(search.forward_logits(progress), progress, draws)
        self.decision = {name: _running(each).to(self.images.device) for name, each in drawn.items()}

    def loss(self, moves: Sequence[Tensor]) -> Tensor:
        """Returns the loss with these (E, K) added to the slots' weights; running statistics stay as they are."""
        seed_global(self.search.seed, self.search.stage, self.step, "slots")  # dropout, if any, as in other evaluations
        with _moved(self.search.network, dict(zip(self.slots, moves, strict=True))), untouched(self.search.norms):
            return F.cross_entropy(self.search.network(self.images, self.decision).scores, self.labels)

    def leaves(self) -> list[Tensor]:
        """Returns zeros (E, K) for each slot, in which the loss has its gradient in the slot's weights."""
        weights = [self.decision[slot.name].weights for slot in self.slots]
        return [torch.zeros_like(each, requires_grad=True) for each in weights if each is not None]

    def slopes(self) -> list[Tensor]:
        """Returns the loss's gradient in each slot's weights, (E, K)."""
        leaves = self.leaves()
        with still(parameters(self.search.weights)):
            loss = self.loss(leaves)
            if not loss.requires_grad:  # every edge is closed
                return [torch.zeros_like(each) for each in leaves]
            return [*torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)]

    def ascent(self, trained: Sequence[nn.Parameter], directions: Sequence[Tensor], radius: float) -> list[Tensor]:
        """Returns d/dw <directions, slopes> by a central difference of the loss's gradient in the parameters w.

        Args:
            trained: The parameters w.
            directions: (E, K) by slot.
            radius: Length of the displacement on either side.
        """
        length = torch.cat([each.flatten() for each in directions]).norm().item()
        if not length:
            return [torch.zeros_like(each) for each in trained]
        epsilon = radius / length
        sides = [
            torch.autograd.grad(
                self.loss([sign * epsilon * each for each in directions]),
                trained,
                allow_unused=True,
                materialize_grads=True,
            )
            for sign in (1.0, -1.0)
        ]
        return [(ahead - behind) / (2 * epsilon) for ahead, behind in zip(*sides, strict=True)]


def alignment(slots: Sequence[MixedCell], slopes: Sequence[Tensor]) -> Tensor | None:
    """Returns the mean cosine over pairs of slots of one cell, (); None if no pair has slopes other than zero."""
    pairs = [
        F.cosine_similarity(one.flatten(), other.flatten(), dim=0)
        for (first, one), (second, other) in combinations(zip(slots, slopes, strict=True), 2)
        if first.name == second.name and one.any() and other.any()
    ]
    return torch.stack(pairs).mean() if pairs else None


def aligned(slots: Sequence[MixedCell], slopes: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
    """Returns the alignment and its gradient in each slot's slopes, (E, K)."""
    leaves = [each.detach().requires_grad_() for each in slopes]
    found = alignment(slots, leaves)
    if found is None:
        return 0.0, [torch.zeros_like(each) for each in slopes]
    return found.item(), [*torch.autograd.grad(found, leaves, allow_unused=True, materialize_grads=True)]


@contextmanager
def _moved(network: Network, moves: Mapping[MixedCell, Tensor]) -> Iterator[None]:
    """Inside, slots run with (E, K) added to their weights."""
    run = network.run

    def run_cell(cell: MixedCell, inputs: Sequence[Tensor], selection: Selection) -> Tensor:
        move = moves.get(cell)
        if move is not None:
            assert selection.weights is not None
            more = selection.weights.shape[1] - move.shape[1]  # candidates that run beside every decision
            selection = replace(selection, weights=selection.weights + F.pad(move, (0, more)))
        return run(cell, inputs, selection)

    network.run = run_cell
    try:
        yield
    finally:
        network.run = run


def _running(selection: Selection) -> Selection:
    """Returns a decision without gradient, with every candidate running whose weight has one."""
    probes = selection.probes or ((),) * len(selection.paths)
    paths = tuple((*path, *more) for path, more in zip(selection.paths, probes, strict=True))
    weights, gates = (None if each is None else each.detach() for each in (selection.weights, selection.gates))
    assert weights is not None
    return Selection(paths, weights, gates=gates)
