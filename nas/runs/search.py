"""Bilevel search: architecture steps on `arch`, weight steps on `train`, in turn (arXiv:1806.09055)."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas import registry
from nas.architecture import Architecture, describe
from nas.data import Batches
from nas.errors import ConfigError
from nas.estimators import entropy
from nas.files import write_json
from nas.randomness import generator, seed_global
from nas.runs.bilevel import ArchitectureStep
from nas.runs.blind import blind_edges, describe_blind
from nas.runs.configuration import Config
from nas.runs.cost import constraints
from nas.runs.modifiers.base import Decision, Modifier
from nas.runs.optimizers import parameters
from nas.runs.plain import still
from nas.runs.session import Session
from nas.runs.training import Loop, Training, descend_along, require_finite, update
from nas.runs.watch.messages import describe_watch
from nas.runs.watch.watching import Watching
from nas.selection import Selection
from nas.selectors.base import LossOf
from nas.space import SearchSpace, Task
from nas.supernet import Network
from nas.supernet.inspection import inspect
from nas.supernet.statistics import norms, untouched

logger = logging.getLogger(__name__)

SUMMARY = "search.json"


class BilevelSearch(Training):
    """Trains a supernet's weights and its architecture logits.

    Args:
        session: Configuration, data and device.
    """

    stage = "search"

    def __init__(self, session: Session) -> None:
        config, settings = session.config, session.config.search
        self.session, self.settings, self.seed = session, settings, config.seed
        self.hypergradient = settings.hypergradient
        self.task, self.selector = session.task, config.selector.on(config.space.cells)
        self.space = modified(config)
        self.network, self.architecture, memory = build(session, self.space)
        self.norms = norms(self.network)
        self.memory = memory
        self.modules = {"network": self.network, "architecture": self.architecture}
        learned = [*self.architecture.parameters()]
        if memory is not None:
            self.modules = {**self.modules, "memory": memory}
            learned += memory.parameters()
        self.weights = settings.weights.build(self.network.parameters())
        self.logits = settings.logits.build(learned)
        self.optimizers = {"weights": self.weights, "logits": self.logits}
        splits, size = session.splits, settings.batch_size
        self.train = session.batches(splits.train, size, seed=self.seed, stream="train")
        self.arch = session.batches(splits.arch, size, seed=self.seed, stream="arch")
        self.steps_per_epoch = self.train.steps_per_epoch
        self.steps = settings.epochs * self.steps_per_epoch
        self.constraints = constraints(self, config)
        self.attached = [*(modifier.attach(self) for modifier in settings.modifiers), *self.constraints]
        self.modules |= {f"modifier-{i}": each for i, each in enumerate(self.attached) if each.state_dict()}
        self.watch = Watching(settings.watch, self, config.space)
        self.attached.append(self.watch)  # the last, since it may end an epoch with other logits
        self.modules |= {"watch": self.watch}

    def finished(self, done: int) -> bool:
        """Returns whether all steps are taken, or a modifier ended the search before."""
        return super().finished(done) or any(0 <= each.ended <= done for each in self.attached)

    def settle(self) -> None:
        """Brings a finished search into the state in which it is measured."""
        for each in self.attached:
            each.before(self.steps, 1.0)

    def step(self, step: int, progress: float) -> dict[str, Tensor]:
        """Takes an architecture step, unless the logits rest, and a weight step."""
        self.settings.weights.schedule(self.weights, progress)
        self.settings.logits.schedule(self.logits, progress)
        values = {}
        for each in self.attached:
            each.before(step, progress)
        if self.selector.learns and progress >= self.settings.warmup:
            values["arch_loss"] = self._architecture_step(step, progress)
        loss, accuracy = self._weight_step(step, progress)
        for each in self.attached:
            each.after(step, progress)
        return {**values, "train_loss": loss, "train_accuracy": 100 * accuracy}

    def end_epoch(self, epoch: int, progress: float) -> dict[str, float]:
        """Returns accuracy on `select` and what the logits look like."""
        values = {**describe(self.architecture.cells, self.probabilities()), **self.selector.settings(progress)}
        values["lr"] = self.settings.weights.lr(progress)
        if epoch % self.settings.evaluate_every == 0 or epoch == self.settings.epochs:
            values["select"] = self.supernet_accuracy(epoch, progress)
        for each in self.attached:
            values |= each.end_epoch(epoch, progress)
        return values

    def accuracy(self, decision: Decision) -> float:
        """Returns the accuracy in % on `select` under a decision, with recalibrated statistics."""
        return self.session.evaluator.accuracy(self.network, decision, "select")[0]

    def probabilities(self) -> dict[str, Tensor]:
        """Returns how the logits rank the candidates, (E, K) by cell name."""
        with torch.no_grad():
            return {name: self.selector.probabilities(table) for name, table in self.architecture.logits().items()}

    def ranking(self) -> dict[str, Tensor]:
        """Returns the scores by which a derivation compares candidates, (E, K) by cell name."""
        with torch.no_grad():
            return self.selector.ranking(self.architecture.logits())

    def supernet_accuracy(self, epoch: int, progress: float) -> float:
        """Returns the mean accuracy on `select` over a few decisions."""
        count = self.settings.decisions if self.selector.stochastic else 1
        decisions = [self.decide(progress, "evaluate", epoch, index) for index in range(count)]
        return sum(map(self.accuracy, decisions)) / count

    def summary(self) -> dict[str, Any]:
        """Returns accuracy, entropy, and the probability of every candidate of every edge."""
        tables = self.probabilities()
        edges = [
            {
                "cell": name,
                "source": edge.source,
                "target": edge.target,
                "probabilities": dict(zip(edge.operations, row, strict=False)),
            }
            for name, cell in self.architecture.cells.items()
            for edge, row in zip(cell.edges, tables[name].tolist(), strict=True)
        ]
        select = self.supernet_accuracy(self.settings.epochs, 1.0)
        cost = [row for each in self.constraints for row in each.summary()]
        seen = describe(self.architecture.cells, tables)
        return {"select": select, **seen, "edges": edges, "cost": cost, "watch": self.watch.summary()}

    def decide(self, progress: float, *key: int | str) -> dict[str, Selection]:
        """Returns the decision drawn with `key`, without gradient."""
        draws = generator(self.seed, "decide", *key)
        with torch.no_grad():
            decision = self.selector.decide(self.forward_logits(progress), progress, draws)
        return {name: selection.detach() for name, selection in decision.items()}

    def loss_on(self, step: int, batches: Batches | None = None) -> LossOf:
        """Returns the loss on a step's images of `arch`, or others; weights and running statistics stay as they are."""
        images, labels = (batches or self.arch).batch(step)

        def loss_of(selections: Mapping[str, Selection]) -> Tensor:
            with still(parameters(self.weights)), untouched(self.norms):
                return loss_at_border(self.network, images, labels, selections)

        return loss_of

    def forward_logits(self, progress: float) -> dict[str, Tensor]:
        """Returns the logits from which decisions are drawn."""
        temperature = self.settings.forward_temperature(progress)
        logits = self.architecture.logits()
        return logits if temperature == 1 else {name: table / temperature for name, table in logits.items()}

    def objective(self, loss_of: LossOf, step: int, progress: float, memory: nn.Module | None) -> Tensor:
        """Returns the scalar whose gradient in the logits an architecture step follows."""
        draws = generator(self.seed, "decide", "arch", step)
        logits = self.forward_logits(progress)
        loss = self.selector.objective(loss_of, logits, progress, draws, memory)
        if bonus := self.settings.entropy(progress):
            loss = loss - bonus * sum(entropy(self.selector.probabilities(table)).sum() for table in logits.values())
        for each in self.attached:
            penalty = each.penalty(logits, progress)
            loss = loss if penalty is None else loss + penalty
        return loss

    def _architecture_step(self, step: int, progress: float) -> Tensor:
        work = ArchitectureStep(self, step, progress)
        gradients = self.settings.hypergradient.estimate(work.problem())
        loss, remembered = work.first
        require_finite(bool(loss.isfinite()), f"the architecture loss of {self.stage}", step + 1)
        descend_along([*gradients, *remembered], self.logits)
        return loss

    def _weight_step(self, step: int, progress: float) -> tuple[Tensor, Tensor]:
        seed_global(self.seed, self.stage, step, "weights")
        images, labels = self.train.batch(step)
        decisions: list[Decision] = [self.decide(progress, "train", step)]
        for each in self.attached:
            decisions = each.decisions(decisions, step, progress)
        self.weights.zero_grad()
        parts = [self._backward(images, labels, decision, len(decisions)) for decision in decisions]
        for each in self.attached:
            each.gradients(step, progress)
        update(self.weights, self.settings.clip)
        loss, accuracy = (torch.stack(values).mean() for values in zip(*parts, strict=True))
        return loss, accuracy

    def _backward(self, images: Tensor, labels: Tensor, decision: Decision, share: int) -> tuple[Tensor, Tensor]:
        """Adds a decision's gradient, divided by `share`, to the weights'; returns its loss and its accuracy."""
        selections = {name: selection.to(images.device) for name, selection in decision.items()}
        scores = self.network(images, selections).scores
        loss = F.cross_entropy(scores, labels)
        (loss / share).backward()  # type: ignore[no-untyped-call]
        return loss.detach(), (scores.detach().argmax(1) == labels).float().mean()


def modified(config: Config) -> SearchSpace:
    """Returns the space from which the supernet is built.

    Raises:
        ConfigError: A modifier cannot go with the space or the selector.
    """
    config.space.check()
    space = config.space
    for modifier in config.search.modifiers:
        modifier.require(config.space, config.selector)
        space = modifier.modify(space)
    return space


def examine(config: Config, task: Task) -> None:
    """Raises ConfigError, within seconds, if the supernet of a space, or as modifiers change it, does not run."""
    inspect(config.space, task, searching=True)
    if config.search.modifiers:
        space = modified(config)
        try:
            inspect(space, task, searching=True)
        except ConfigError as error:
            names = ", ".join(registry.name_of(Modifier.registry, type(each)) for each in config.search.modifiers)
            raise ConfigError(f"{error}; so it is with search.modifiers ({names}), the space alone runs") from error


def build(session: Session, space: SearchSpace) -> tuple[Network, Architecture, nn.Module | None]:
    """Returns supernet, of the space as modified, logits and memory as they are before the first step."""
    config = session.config
    seed_global(config.seed, "initialise", "search")
    network = Network(space, session.task, searching=True, **session.execution).to(session.device).train()
    return network, Architecture(config.space, config.seed), config.selector.memory(config.space.cells)


def loss_at_border(network: Network, images: Tensor, labels: Tensor, selections: Mapping[str, Selection]) -> Tensor:
    """Returns the loss as a scalar on the CPU whose gradient flows on into the selections.

    The selections enter the network as leaves; the backward through the network has run when this returns, so no graph
    of it is kept, and one small copy brings the leaves' gradients back to where the logits live.
    """
    leaves = {name: selection.at_leaves(images.device) for name, selection in selections.items()}
    loss = F.cross_entropy(network(images, leaves).scores, labels)
    pairs = [
        (inside, outside)
        for name in selections
        for inside, outside in (
            (leaves[name].weights, selections[name].weights),
            (leaves[name].offset, selections[name].offset),
            (leaves[name].gates, selections[name].gates),
        )
        if inside is not None and outside is not None and inside.requires_grad
    ]
    gradients: tuple[Tensor, ...] = ()
    if pairs:
        insides = [inside for inside, _ in pairs]
        gradients = torch.autograd.grad(loss, insides, allow_unused=True, materialize_grads=True)
    # One copy, after the whole backward is in the device's queue.
    parts = torch.cat([loss.detach().reshape(1), *(gradient.flatten() for gradient in gradients)]).cpu()
    first, *returned = torch.split(parts, [1, *(gradient.numel() for gradient in gradients)])
    value = first[0]
    for gradient, (_, outside) in zip(returned, pairs, strict=True):
        value = value + (gradient.to(outside).view_as(outside) * (outside - outside.detach())).sum()
    return value


def run_search(session: Session) -> None:
    """Searches, from the newest checkpoint on; leaves the final checkpoint in `checkpoints`, and a summary."""
    new = not (session.folder / "checkpoints").exists()
    if new:
        examine(session.config, session.task)
    search = BilevelSearch(session)
    if new and search.selector.learns:
        found = blind_edges(search.selector, search.architecture, search.loss_on, search.seed)
        if found:
            logger.warning(describe_blind(session.config.selector, found))
    Loop(search, session.folder, session, "search").run()
    if search.watch.ended >= 0:
        why = "; ".join(describe_watch(search.watch.summary()))
        session.status.update("search", search.watch.ended, search.steps, why, force=True)
    search.settle()
    if not (session.folder / SUMMARY).is_file():
        write_json(session.folder / SUMMARY, search.summary())
