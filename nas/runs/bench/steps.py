"""What `nas bench` measures: the steps of a search or of a retraining, as those stages take them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from nas.data import Dataset
from nas.data.dataset import Samples
from nas.data.images import Memory
from nas.derivation import sample, uniform
from nas.randomness import generator
from nas.runs.configuration import Config, Engine
from nas.runs.retrain import Retraining
from nas.runs.search import BilevelSearch
from nas.runs.session import Session
from nas.selection import Selection
from nas.space import Genotype, SearchSpace, Task
from nas.supernet import Network, Selections
from nas.supernet.backends import Backend

PROGRESS = 0.5
"""Position in the search at which schedules are read."""

Steps = dict[str, Callable[[int], object]]


@dataclass(frozen=True, kw_only=True)
class Noise(Dataset):
    """Random images in random classes: what a step costs does not depend on what it sees.

    Attributes:
        channels: Of the images.
        height: Of the images.
        width: Of the images.
        classes: Number of classes.
        count: Images in all splits together.
    """

    channels: int = 3
    height: int = 32
    width: int = 32
    classes: int = 10
    count: int = 256

    def task(self) -> Task:
        """Returns the configured size."""
        return Task(self.channels, self.height, self.width, self.classes)

    def read(self) -> Samples:
        """Draws images and labels."""
        draws = generator(self.split_seed, "noise")
        shape = (self.count, self.channels, self.height, self.width)
        images = torch.randint(256, shape, generator=draws, dtype=torch.uint8)
        return Samples(Memory(images), torch.randint(self.classes, (self.count,), generator=draws))


def noise(task: Task, batch_size: int) -> Noise:
    """Returns random images for a task, enough for a full batch from every split that trains."""
    return Noise(
        channels=task.channels, height=task.height, width=task.width, classes=task.classes, count=4 * batch_size + 64
    )


@dataclass(frozen=True)
class Subject:
    """Something whose steps are measured.

    Attributes:
        network: What is trained.
        steps: The steps by kind; each takes the step's number, the key of its batch and its decision.
    """

    network: Network
    steps: Steps

    @property
    def trained(self) -> Steps:
        """The steps that train: all but the evaluation."""
        return {kind: step for kind, step in self.steps.items() if kind != "evaluation"}


@dataclass(frozen=True)
class SearchSubject(Subject):
    """A search whose steps are measured.

    Attributes:
        search: Whose steps they are.
    """

    search: BilevelSearch


def with_backend(work: Session, backend: Backend) -> Session:
    """Returns a session that differs in nothing but its backend."""
    engine = replace(work.config.engine, backend=backend)
    return replace(work, config=replace(work.config, engine=engine))


def search_subject(work: Session) -> SearchSubject:
    """Returns the steps of a search; `architecture_step` only where the selector learns."""
    search = BilevelSearch(work)
    images = search.train.batch(0)[0]

    def evaluation(step: int) -> None:
        decision = search.decide(PROGRESS, "evaluate", step)
        _evaluate(search.network, images, {name: each.to(images.device) for name, each in decision.items()})

    steps = _weight_step(search)
    if search.selector.learns:
        steps["architecture_step"] = lambda step: search._architecture_step(step, PROGRESS)
    return SearchSubject(search.network, {**steps, "evaluation": evaluation}, search)


def retraining_subject(work: Session, genotype: Genotype) -> Subject:
    """Returns the steps of a retraining."""
    training = Retraining(work, genotype, 0, Path("retrain") / "genotype" / "seed-0")
    images = training.batches.batch(0)[0]
    steps: Steps = {
        "retraining_step": lambda step: training.step(step, PROGRESS),
        "evaluation": lambda step: _evaluate(training.network, images, None),
    }
    return Subject(training.network, steps)


def _weight_step(search: BilevelSearch) -> Steps:
    return {"weight_step": lambda step: search._weight_step(step, PROGRESS)}


class _FixedSearch(BilevelSearch):
    """A search without a decision: its weight step trains a plain network."""

    def decide(self, progress: float, *key: int | str) -> dict[str, Selection]:
        return self.network.single


def fixed_subject(work: Session, genotype: Genotype) -> Subject:
    """Returns the weight step of a genotype's network in the supernet's form, run by stock torch: the plain network."""
    space, bare = work.config.space.fix(genotype), replace(work.config.search, modifiers=())
    config = replace(work.config, space=space, search=bare, engine=Engine(backend="reference"))
    search = _FixedSearch(replace(work, config=config))
    return Subject(search.network, _weight_step(search))


def fixed_genotype(config: Config, decision: Selections) -> Genotype:
    """Returns the path of a decision that runs one candidate per edge, otherwise a genotype drawn with the seed."""
    path = path_of(config.space, decision)
    return path or sample(config.space, uniform(config.space), generator(config.seed, "bench", "genotype"))


def path_of(space: SearchSpace, decision: Selections) -> Genotype | None:
    """Returns the candidates that a decision runs as a genotype; None if an edge runs more than one."""
    if any(len(path) > 1 for selection in decision.values() for path in selection.paths):
        return None
    return Genotype(
        {
            name: tuple(
                (edge.source, edge.target, edge.operations[path[0]])
                for edge, path in zip(cell.edges, decision[name].paths, strict=True)
                if path
            )
            for name, cell in space.cells.items()
        }
    )


def _evaluate(network: Network, images: torch.Tensor, selections: Selections | None) -> None:
    assert not network.training
    with torch.no_grad():
        network(images, selections)
