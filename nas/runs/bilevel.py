"""A search's architecture step as a bilevel problem, for hypergradients beyond first order."""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.data import Batches
from nas.errors import ConfigError
from nas.hypergradients import Bilevel, Vector
from nas.randomness import generator, seed_global
from nas.runs.configuration import Search
from nas.runs.modifiers import Searching
from nas.runs.optimizers import SGD, parameters
from nas.runs.plain import plain_loss
from nas.selectors.base import LossOf
from nas.supernet.statistics import untouched


class Bilevelled(Searching, Protocol):
    """What is read of a `nas.runs.search.BilevelSearch`."""

    settings: Search

    def objective(self, loss_of: LossOf, step: int, progress: float, memory: nn.Module | None) -> Tensor:
        """Returns the scalar whose gradient in the logits is followed."""


class ArchitectureStep:
    """One architecture step: outer loss on `arch` images, inner loss on the `train` images of the same step.

    Every evaluation draws the same decision, from the step's key. What a selector remembers learns from the first only.

    Args:
        search: At the step.
        step: Its number.
        progress: Its position.

    Attributes:
        first: Loss of the first evaluation in the logits, and its gradients in what the selector remembers.
    """

    first: tuple[Tensor, Vector]

    def __init__(self, search: Bilevelled, step: int, progress: float) -> None:
        self.search, self.step, self.progress = search, step, progress
        self.weights = [weight for weight in parameters(search.weights) if weight.requires_grad]  # some may be frozen
        self.tables = [*search.architecture.parameters()]
        self.moved: list[bool] = []

    def problem(self) -> Bilevel:
        """Returns the problem that hypergradients are of."""
        settings = self.search.settings.weights
        ahead = settings.momentum if isinstance(settings, SGD) and settings.nesterov else 0.0
        return Bilevel(
            weights=self.weights,
            logits=self.tables,
            outer=partial(self._gradient, self.search.arch),
            inner=partial(self._gradient, self.search.train),
            step=self._displacement,
            lr=settings.lr(self.progress) * (1 + ahead),
            weight_decay=settings.weight_decay,
            graph=self._graph,
        )

    def _gradient(self, batches: Batches, tensors: Sequence[Tensor]) -> Vector:
        return self._in_logits(batches) if tensors is self.tables else self._in_weights(batches)

    def _in_logits(self, batches: Batches) -> Vector:
        again = hasattr(self, "first")
        if again:  # dropout, if any, as in the other evaluations that are compared
            seed_global(self.search.seed, self.search.stage, self.step, "virtual")
        memory = copy.deepcopy(self.search.memory) if again else self.search.memory
        loss = self.search.objective(self.search.loss_on(self.step, batches), self.step, self.progress, memory)
        remembered = [] if again or memory is None else [*memory.parameters()]
        wanted = [*self.tables, *remembered]
        found = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
        if not again:
            self.first = loss.detach(), [*found[len(self.tables) :]]
        return [*found[: len(self.tables)]]

    def _in_weights(self, batches: Batches) -> Vector:
        images, labels = batches.batch(self.step)
        decision = self.search.decide(self.progress, "arch", self.step)
        selections = {name: selection.to(images.device) for name, selection in decision.items()}
        seed_global(self.search.seed, self.search.stage, self.step, "virtual")
        with untouched(self.search.norms):
            loss = F.cross_entropy(self.search.network(images, selections).scores, labels)
        found = torch.autograd.grad(loss, self.weights, allow_unused=True)
        self.moved = [each is not None for each in found]
        return [torch.zeros_like(w) if each is None else each for w, each in zip(self.weights, found, strict=True)]

    def _displacement(self, gradients: Vector) -> Vector:
        """Returns the step of SGD with momentum; a weight that the decision does not use stays where it is."""
        settings, rate = self.search.settings.weights, self.search.settings.weights.lr(self.progress)
        if not isinstance(settings, SGD):
            raise ConfigError("an unrolled search.hypergradient needs the steps of search.weights.name=sgd")
        found = []
        for weight, gradient, moves in zip(self.weights, gradients, self.moved, strict=True):
            if not moves:
                found.append(torch.zeros_like(weight))
                continue
            slope = gradient + settings.weight_decay * weight.detach()
            past = self.search.weights.state.get(weight, {}).get("momentum_buffer")
            speed = slope if past is None else settings.momentum * past + slope
            found.append(-rate * (slope + settings.momentum * speed if settings.nesterov else speed))
        return found

    def _graph(self) -> Tensor:
        """Returns the inner loss by the plain execution, every candidate running, twice differentiable."""
        draws = generator(self.search.seed, "decide", "arch", self.step)
        logits = self.search.forward_logits(self.progress)
        decision = self.search.selector.decide(logits, self.progress, draws)
        if not all(each.weights is not None and each.weights.requires_grad for each in decision.values()):
            raise ConfigError(
                "search.hypergradient=unrolled-exact differentiates the weights of decisions, but this selector's "
                "carry no gradient; use unrolled, neumann or conjugate-gradient"
            )
        return plain_loss(self.search.network, self.search.norms, self.search.train.batch(self.step), decision, logits)
