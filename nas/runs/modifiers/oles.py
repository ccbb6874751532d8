"""Operation-level early stopping: a candidate that begins to overfit is trained no further (OLES; NeurIPS 2023)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.errors import ConfigError
from nas.randomness import seed_global
from nas.runs.modifiers.base import Attached, Modifier, Searching
from nas.supernet import Network
from nas.supernet.statistics import untouched


class Trained(NamedTuple):
    """A candidate of one edge of one slot that has parameters."""

    operation: str
    parameters: list[nn.Parameter]


class _EarlyStopping(Attached):
    frozen: Tensor
    total: Tensor
    compared: Tensor

    def __init__(self, search: Searching, settings: "OperationEarlyStopping") -> None:
        super().__init__(search)
        self.settings = settings
        self.candidates = [*_trained(search.network)]
        if not self.candidates:
            raise ConfigError("search.modifiers: oles stops the training of candidates, but none has parameters")
        count = len(self.candidates)
        self.register_buffer("frozen", torch.zeros(count, dtype=torch.bool))
        self.register_buffer("total", torch.zeros(count))
        self.register_buffer("compared", torch.zeros(count, dtype=torch.int64))

    def before(self, step: int, progress: float) -> None:
        for i in self.frozen.nonzero().flatten().tolist():  # also those of a checkpoint
            for parameter in self.candidates[i].parameters:
                parameter.requires_grad = False

    def gradients(self, step: int, progress: float) -> None:
        if (step + 1) % self.settings.every:
            return
        self._compare(step, progress)
        full = self.compared == self.settings.window
        means = self.total / self.compared.clamp_min(1)
        self.frozen |= full & (means < self.settings.threshold)
        self.total.masked_fill_(full, 0.0)
        self.compared.masked_fill_(full, 0)
        for i in self.frozen.nonzero().flatten().tolist():
            for parameter in self.candidates[i].parameters:
                parameter.grad = None  # neither momentum nor weight decay moves it

    def _compare(self, step: int, progress: float) -> None:
        """Adds the cosine of every candidate that has a gradient on `train` and one on `arch`."""
        learned = [(i, [p for p in each.parameters if p.grad is not None]) for i, each in enumerate(self.candidates)]
        learned = [(i, parameters) for i, parameters in learned if parameters]
        others = iter(self._on_arch([p for _, parameters in learned for p in parameters], step, progress))
        places, cosines = [], []
        for i, parameters in learned:
            pairs = [(p.grad, next(others)) for p in parameters]
            both = [(a.flatten(), b.flatten()) for a, b in pairs if a is not None and b is not None]
            if both:
                places.append(i)
                one, other = (torch.cat(side) for side in zip(*both, strict=True))
                cosines.append(F.cosine_similarity(one, other, dim=0))
        if places:
            self.total[places] += torch.stack(cosines).to(self.total)
            self.compared[places] += 1

    def _on_arch(self, parameters: list[nn.Parameter], step: int, progress: float) -> list[Tensor | None]:
        """Returns gradients of the loss on `arch`, under the weight step's decision."""
        search = self.search
        if not parameters:
            return []
        images, labels = search.arch.batch(step)
        decision = search.decide(progress, "train", step)
        selections = {name: selection.to(images.device) for name, selection in decision.items()}
        seed_global(search.seed, search.stage, step, "oles")
        with untouched(search.norms):
            loss = F.cross_entropy(search.network(images, selections).scores, labels)
        return [*torch.autograd.grad(loss, parameters, allow_unused=True)]

    def end_epoch(self, epoch: int, progress: float) -> dict[str, float]:
        shares: dict[str, list[bool]] = {}
        for candidate, frozen in zip(self.candidates, self.frozen.tolist(), strict=True):
            shares.setdefault(candidate.operation, []).append(frozen)
        return {f"frozen/{operation}": sum(found) / len(found) for operation, found in sorted(shares.items())}


@dataclass(frozen=True, kw_only=True)
class OperationEarlyStopping(Modifier):
    """OLES: freezes a candidate's weights once their gradients on `train` and on `arch` point apart, for good.

    The cosine between both gradients of all weights of a candidate is averaged over a window of steps; below the
    threshold the candidate counts as overfitting. It still runs, and its logits still learn. A step in which it did not
    run does not count. Every slot's candidates are judged on their own; those without parameters never freeze.

    The authors' code compares weights filter by filter, and takes the gradient on `arch` from the architecture step.
    Here that step has none, so a comparison costs a further pass.

    Source: Jiang et al., 2023, "Operation-Level Early Stopping for Robustifying Differentiable NAS" (NeurIPS).

    Attributes:
        threshold: Mean cosine below which a candidate freezes; 0.4 in the authors' code. Small batches have small
            cosines: on digits, 32 at a time, they began at 0.17, and fell to 0 as the training loss did.
        window: Comparisons that are averaged, then forgotten; 20 as in the authors' code.
        every: Steps between comparisons; 1 in the authors' code.
    """

    apart: ClassVar[Mapping[str, str]] = {
        "entanglement": "candidates that share parameters cannot be frozen one by one",
        **dict.fromkeys(("fair-paths", "sandwich"), "on `arch` it goes by the selector's decision, not by such paths"),
    }

    threshold: float = 0.05
    window: int = 20
    every: int = 5

    def __post_init__(self) -> None:
        if not -1 <= self.threshold <= 1:
            raise ValueError(f"threshold must be between -1 and 1, as a cosine is, got {self.threshold:g}")
        for name in ("window", "every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def attach(self, search: Searching) -> Attached:
        """Returns the modifier at work."""
        return _EarlyStopping(search, self)


def _trained(network: Network) -> Iterator[Trained]:
    for cell in network.mixed_cells:
        for edge, candidates in zip(cell.cell.edges, cell.candidates, strict=True):
            for operation, candidate in zip(edge.operations, candidates, strict=True):
                if parameters := [*candidate.parameters()]:
                    yield Trained(operation, parameters)
