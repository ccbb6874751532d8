"""Accuracy, always with batch-norm statistics recalibrated on the same images for whatever is measured."""

from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.data import Batches, Splits, in_order
from nas.derivation import Quality
from nas.randomness import seed_global
from nas.runs.configuration import Evaluation
from nas.supernet import Network, Selections
from nas.supernet.statistics import recalibrated

Split = Literal["select", "test"]


class Evaluator:
    """Measures networks and decisions on clean images.

    Args:
        splits: The data.
        settings: Batch size and number of calibration batches.
        seed: Of the run; chooses the calibration images among `train` and `arch`.
        device: Of the networks.
    """

    def __init__(self, splits: Splits, settings: Evaluation, seed: int, device: torch.device) -> None:
        self.splits, self.settings, self.seed, self.device = splits, settings, seed, device

    @cached_property
    def calibration(self) -> list[Tensor]:
        """The images from which statistics are recomputed."""
        batches = Batches(
            self.splits.train + self.splits.arch,
            self.settings.batch_size,
            seed=self.seed,
            stream="calibrate",
            mean=self.splits.mean,
            deviation=self.splits.deviation,
            device=self.device,
        )
        count = min(self.settings.calibration_batches, batches.steps_per_epoch)
        return [batches.batch(step)[0] for step in range(count)]

    def accuracy(self, network: Network, selections: Selections | None, *splits: Split) -> list[float]:
        """Returns the accuracy in % on each split, under one decision."""
        return [quality.accuracy for quality in self.quality(network, selections, *splits)]

    def quality(self, network: Network, selections: Selections | None, *splits: Split) -> list[Quality]:
        """Returns accuracy and likelihood on each split, under one decision."""
        if selections is not None:
            selections = {name: selection.to(self.device) for name, selection in selections.items()}
        seed_global(self.seed, "evaluate")  # for modules that draw even then, such as ops.Noise
        with recalibrated(network, self.calibration, lambda images: network(images, selections)):
            return [self._quality(network, selections, split) for split in splits]

    def _quality(self, network: Network, selections: Selections | None, split: Split) -> Quality:
        images = getattr(self.splits, split)
        right = torch.zeros((), dtype=torch.int64, device=self.device)
        likelihood = torch.zeros((), device=self.device)
        batches = in_order(images, self.settings.batch_size, self.splits.mean, self.splits.deviation, self.device)
        for batch, labels in batches:
            scores = network(batch, selections).scores
            right += (scores.argmax(1) == labels).sum()
            likelihood -= F.cross_entropy(scores, labels, reduction="sum")
        # A network that tells nothing apart, or overflows, is less likely than any other.
        mean = float(likelihood.nan_to_num(-torch.inf)) / len(images)
        return Quality(100 * int(right) / len(images), mean)
