"""What a dataset is: a task that is known before loading, and four disjoint splits of labelled images."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nas.data.augment import Augmentation, customary
from nas.data.images import Images, Pixels
from nas.data.splits import share, statistics, stratified_order
from nas.errors import DataError
from nas.randomness import generator
from nas.space import Task


@dataclass(frozen=True, eq=False)
class Samples:
    """All images of a dataset before they are split.

    Attributes:
        pixels: The images, the official test part last.
        labels: Their classes, (N,) int64.
        tested: Size of the official test part; 0 where the data has none.
    """

    pixels: Pixels
    labels: Tensor
    tested: int = 0


@dataclass(frozen=True, eq=False)
class Splits:
    """Four disjoint splits, and how their images are normalised and varied.

    Attributes:
        train: For the weights.
        arch: For the architecture logits.
        select: For comparing what was found.
        test: Touched once, at the end.
        mean: Mean per channel of `train` and `arch`, for intensities in [0, 1].
        deviation: Their standard deviation per channel.
        augmentation: The configured one, or the customary one for this size of image.
    """

    train: Images
    arch: Images
    select: Images
    test: Images
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    augmentation: Augmentation


@dataclass(frozen=True, kw_only=True)
class Dataset(ABC):
    """A source of labelled images.

    Attributes:
        limit: First samples of each split to keep, a balanced choice; None keeps all.
        split_seed: Key of the splits. They do not depend on the seed of a run, so that runs can be paired.
        select_fraction: Share of the samples outside the test part that scores architectures.
        arch_fraction: Share of what then remains that trains the logits.
        test_fraction: Share held out for testing, where the data has no test part of its own.
        augmentation: None chooses the customary one for the size of the images.
    """

    registry: ClassVar[str] = "nas.datasets"

    limit: int | None = None
    split_seed: int = 0
    select_fraction: float = 0.1
    arch_fraction: float = 0.5
    test_fraction: float = 0.2
    augmentation: Augmentation | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1, got {self.limit}")
        for name in ("select_fraction", "arch_fraction", "test_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name):g}")

    @abstractmethod
    def task(self) -> Task:
        """Returns size and number of classes without reading or downloading images."""

    @abstractmethod
    def read(self) -> Samples:
        """Returns all images and labels.

        Raises:
            DataError: The data is missing or damaged.
        """

    def load(self) -> Splits:
        """Returns the splits; the same ones for the same data and settings.

        Raises:
            DataError: The data is missing, damaged, or too small for four splits.
        """
        samples = self.read()
        parts = [part[: self.limit] for part in self._divide(samples)]
        order = torch.cat(parts)
        pixels, labels = samples.pixels.only(order), samples.labels[order]
        places = torch.split(torch.arange(len(order)), [len(part) for part in parts])
        test, select, arch, train = (Images(pixels, place, labels[place]) for place in places)
        mean, deviation = statistics(train + arch)
        augmentation = self.augmentation or customary(self.task())
        return Splits(train, arch, select, test, mean, deviation, augmentation)

    def _divide(self, samples: Samples) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the places of the test, select, arch and train samples.

        All are cut from one order, test first and train last: a change of `arch_fraction` keeps test and select.
        """
        count = len(samples.labels) - samples.tested
        order = stratified_order(samples.labels[:count], generator(self.split_seed, "split", "train"))
        held_out = 0 if samples.tested else share(count, self.test_fraction)
        select = share(count - held_out, self.select_fraction)
        arch = share(count - held_out - select, self.arch_fraction)
        train = count - held_out - select - arch
        if train < 1:
            wanted = "train, arch and select" if samples.tested else "train, arch, select and test"
            raise DataError(
                f"{count} samples are too few for the splits {wanted} "
                f"(select_fraction={self.select_fraction:g}, arch_fraction={self.arch_fraction:g}); "
                "add samples or lower the fractions"
            )
        test, select_part, arch_part, train_part = torch.split(order, [held_out, select, arch, train])
        if samples.tested:
            test = count + stratified_order(samples.labels[count:], generator(self.split_seed, "split", "test"))
        return test, select_part, arch_part, train_part
