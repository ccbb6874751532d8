"""Training a genotype from scratch with the recipe of DARTS (arXiv:1806.09055), on `train` and `arch` together."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from nas.checkpoint import latest
from nas.config import to_tree
from nas.errors import CheckpointError
from nas.files import read_json, write_json
from nas.randomness import seed_global
from nas.runs.configuration import MEANING, Config
from nas.runs.session import Session
from nas.runs.training import Loop, Training, descend, restore
from nas.space import Genotype
from nas.supernet import Network
from nas.supernet.inspection import inspect

RESULT = "result.json"


@dataclass(frozen=True)
class Retrained:
    """A network that was trained from scratch.

    Attributes:
        genotype: Its architecture, as the space's text.
        seed: Which of the retrainings.
        select: Accuracy on `select` in %.
        test: Accuracy on `test` in %.
        parameters: Trained numbers, without auxiliary classifiers.
        multiply_adds: For one image.
        folder: Where its checkpoint is.
    """

    genotype: str
    seed: int
    select: float
    test: float
    parameters: int
    multiply_adds: int
    folder: Path


class Retraining(Training):
    """One genotype, one seed.

    Args:
        session: Configuration, data and device.
        genotype: What to train.
        index: Number of the retraining; each has randomness of its own.
        folder: Its name is part of the metrics' stage.
    """

    def __init__(self, session: Session, genotype: Genotype, index: int, folder: Path) -> None:
        config, settings = session.config, session.config.retrain
        self.session, self.settings = session, settings
        self.seed = config.seed if settings.seed is None else settings.seed
        self.stage = f"retrain/{folder.parent.name}/{folder.name}"
        # Networks of different genotypes see the same draws, so that they differ in nothing else.
        self.key = ("retrain", index)
        seed_global(self.seed, "initialise", *self.key)
        space = config.space.fix(genotype)
        auxiliary = settings.auxiliary_weight > 0
        network = Network(space, session.task, searching=False, auxiliary=auxiliary, **session.execution)
        self.network = network.to(session.device).train()
        self.weights = settings.optimizer.build(self.network.parameters())
        self.modules, self.optimizers = {"network": self.network}, {"weights": self.weights}
        splits = session.splits
        self.batches = session.batches(
            splits.train + splits.arch,
            settings.batch_size,
            seed=self.seed,
            stream=f"retrain-{index}",
            cutout=settings.cutout,
        )
        self.steps_per_epoch = self.batches.steps_per_epoch
        self.steps = settings.epochs * self.steps_per_epoch

    def step(self, step: int, progress: float) -> dict[str, Tensor]:
        """Takes a step on the weights."""
        settings = self.settings
        seed_global(self.seed, *self.key, step)
        settings.optimizer.schedule(self.weights, progress)
        for cell in self.network.mixed_cells:
            cell.drop_path = settings.drop_path(progress)
        images, labels = self.batches.batch(step)
        scores, auxiliary = self.network(images)
        loss = F.cross_entropy(scores, labels, label_smoothing=settings.label_smoothing)
        for head in auxiliary:
            smoothed = F.cross_entropy(head, labels, label_smoothing=settings.label_smoothing)
            loss = loss + settings.auxiliary_weight * smoothed
        descend(loss, self.weights, settings.clip)
        accuracy = (scores.detach().argmax(1) == labels).float().mean()
        return {"train_loss": loss.detach(), "train_accuracy": 100 * accuracy}

    def end_epoch(self, epoch: int, progress: float) -> dict[str, float]:
        """Returns the learning rate; accuracy is measured once, at the end."""
        return {"lr": self.settings.optimizer.lr(progress)}


def retrain_genotype(session: Session, genotype: Genotype, count: int, what: str) -> list[Retrained]:
    """Retrains a genotype `count` times, or reads what was retrained before with the same settings.

    Args:
        session: Where to work.
        genotype: What to train.
        count: Retrainings, numbered from 0.
        what: What the user sees.
    """
    home = session.folder / "retrain" / recipe_key(session.config, genotype)
    for index in range(count):
        folder = home / f"seed-{index}"
        if not (folder / RESULT).is_file():
            size = inspect(session.config.space.fix(genotype), session.task, searching=False)
            title = f"retrain {what}, {index + 1} of {count}" if count > 1 else f"retrain {what}"
            training = Retraining(session, genotype, index, folder)
            Loop(training, folder, session, title).run()
            select, test = session.evaluator.accuracy(training.network, None, "select", "test")
            text = session.config.space.format(genotype)
            result = Retrained(text, index, select, test, size.parameters, size.multiply_adds, folder)
            write_json(folder / RESULT, {k: v for k, v in asdict(result).items() if k != "folder"})
    return read_retrained(session.config, session.folder, genotype, count)


def read_retrained(config: Config, folder: Path, genotype: Genotype, count: int) -> list[Retrained]:
    """Returns what `retrain_genotype` left in a run folder.

    Raises:
        CheckpointError: Some of it is missing or damaged.
    """
    home = folder / "retrain" / recipe_key(config, genotype)
    results = []
    for path in (home / f"seed-{index}" / RESULT for index in range(count)):
        try:
            results.append(Retrained(**read_json(path), folder=path.parent))
        except TypeError as error:
            raise CheckpointError(f"{path} is damaged ({error}); remove it to measure again") from error
    return results


def recipe_key(config: Config, genotype: Genotype) -> str:
    """Returns the name of the folder for a genotype under the settings on which its retraining depends."""
    whole = to_tree(config)
    tree: dict[str, Any] = {section: whole[section] for section in MEANING["retrain"]}
    del tree["retrain"]["seeds"]
    text = json.dumps([genotype.to_json(), tree], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def load_network(config: Config, genotype: Genotype, folder: Path) -> Network:
    """Returns a retrained network, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: There is no checkpoint, or it is of another network.
    """
    found = latest(folder / "checkpoints")
    if found is None:
        raise CheckpointError(f"{folder} has no checkpoint; retrain the genotype first")
    auxiliary = config.retrain.auxiliary_weight > 0
    network = Network(config.space.fix(genotype), config.dataset.task(), searching=False, auxiliary=auxiliary)
    restore({"network": network}, found)
    return network.eval()
