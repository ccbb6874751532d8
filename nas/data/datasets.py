"""The named datasets: scikit-learn's digits, those of torchvision, and images in an npz file."""

import contextlib
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from nas.data.dataset import Dataset, Samples
from nas.data.images import Memory
from nas.data.npz import Layout, read_images, read_parts
from nas.errors import DataError
from nas.space import Task


@dataclass(frozen=True, kw_only=True)
class Digits(Dataset):
    """Handwritten digits of 8x8 pixels that come with scikit-learn: 1,797 images, no download."""

    def task(self) -> Task:
        """Returns 8x8 grey images in 10 classes."""
        return Task(channels=1, height=8, width=8, classes=10)

    def read(self) -> Samples:
        """Returns the images with their 17 grey levels spread over 0 to 255."""
        table = _digits()
        images = torch.from_numpy(np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8)).reshape(-1, 1, 8, 8)
        return Samples(Memory(images), torch.from_numpy(table[:, -1]).long())


def _digits() -> Any:
    """Returns scikit-learn's table, (1797, 65) floats: 64 grey levels from 0 to 16, and the class."""
    # Importing scikit-learn takes longer than an epoch on its digits, so the file is read without it.
    package = find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    try:
        return np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    except OSError:  # it has moved
        from sklearn.datasets import load_digits

        digits = load_digits()
        return np.column_stack([digits.data, digits.target])


@dataclass(frozen=True, kw_only=True)
class TorchvisionDataset(Dataset):
    """A dataset that torchvision reads, kept in memory.

    Attributes:
        root: Folder with the files.
        download: Whether to fetch them if they are missing.
    """

    source: ClassVar[str]
    size: ClassVar[Task]

    root: str = "data"
    download: bool = False

    def task(self) -> Task:
        """Returns the size, which is known without the files."""
        return self.size

    def read(self) -> Samples:
        """Returns the official train and test part."""
        (images, labels), (test_images, test_labels) = self._part(train=True), self._part(train=False)
        return Samples(Memory(torch.cat([images, test_images])), torch.cat([labels, test_labels]), len(test_labels))

    def _part(self, train: bool) -> tuple[Tensor, Tensor]:
        import torchvision.datasets

        build = getattr(torchvision.datasets, self.source)
        try:
            with contextlib.redirect_stdout(sys.stderr):  # torchvision prints; stdout is for results
                part = build(Path(self.root).expanduser(), train=train, download=self.download)
        except Exception as error:  # of many kinds: each reader fails in its own way
            remedy = (
                "could not be downloaded; put its files there"
                if self.download
                else "is not there or damaged; add --set dataset.download=true"
            )
            raise DataError(
                f"dataset.root = {self.root}: {self.source} {remedy} or name another folder with "
                f"--set dataset.root=... ({error})"
            ) from error
        return self._tensors(part.data, part.targets)

    def _tensors(self, data: Any, targets: Any) -> tuple[Tensor, Tensor]:
        """Returns (N, C, H, W) and (N,) of torchvision's arrays, (N, H, W) or (N, H, W, C)."""
        images, labels = torch.as_tensor(data), torch.as_tensor(targets)
        images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
        if images.shape[1:] != (self.size.channels, self.size.height, self.size.width) or len(images) != len(labels):
            raise DataError(
                f"dataset.root = {self.root} holds images {tuple(images.shape)} with {len(labels)} labels, "
                f"not {self.source}; remove the files and add --set dataset.download=true"
            )
        return images.contiguous(), labels.long()


@dataclass(frozen=True, kw_only=True)
class MNIST(TorchvisionDataset):
    """Handwritten digits, 28x28 grey, 60,000 + 10,000 (LeCun et al., 1998)."""

    source = "MNIST"
    size = Task(channels=1, height=28, width=28, classes=10)


@dataclass(frozen=True, kw_only=True)
class FashionMNIST(TorchvisionDataset):
    """Clothes, 28x28 grey, 60,000 + 10,000 (Xiao et al., 2017, arXiv:1708.07747)."""

    source = "FashionMNIST"
    size = Task(channels=1, height=28, width=28, classes=10)


@dataclass(frozen=True, kw_only=True)
class CIFAR10(TorchvisionDataset):
    """Objects, 32x32 in colour, 50,000 + 10,000 in 10 classes (Krizhevsky, 2009)."""

    source = "CIFAR10"
    size = Task(channels=3, height=32, width=32, classes=10)


@dataclass(frozen=True, kw_only=True)
class CIFAR100(TorchvisionDataset):
    """Objects, 32x32 in colour, 50,000 + 10,000 in 100 classes (Krizhevsky, 2009)."""

    source = "CIFAR100"
    size = Task(channels=3, height=32, width=32, classes=100)


@dataclass(frozen=True, kw_only=True)
class Npz(Dataset):
    """Images in one file that `numpy.savez` wrote.

    The keys are `train_images`, `train_labels` and, if there is a test part, `test_images`, `test_labels`; or
    `x_train`, `y_train`, `x_test`, `y_test`. Images are uint8, [n, H, W], [n, H, W, C] or [n, C, H, W].

    Attributes:
        path: The file.
        layout: Order of four axes; "auto" takes the axis with up to 4 entries for the channels.
        classes: None takes the largest training label and one.
    """

    path: str
    layout: Layout = "auto"
    classes: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes is not None and self.classes < 2:
            raise ValueError(f"classes must be at least 2, got {self.classes}")

    def task(self) -> Task:
        """Returns what the headers and labels say."""
        train, _, classes = read_parts(self._file, self.layout, self.classes)
        return Task(*train.shape, classes)

    def read(self) -> Samples:
        """Returns the train part, and the test part if the file has one."""
        train, test, _ = read_parts(self._file, self.layout, self.classes)
        parts = [train] if test is None else [train, test]
        images = torch.cat([read_images(self._file, part) for part in parts])
        labels = torch.cat([part.labels for part in parts])
        return Samples(Memory(images), labels, 0 if test is None else len(test.labels))

    @property
    def _file(self) -> Path:
        return Path(self.path).expanduser()
