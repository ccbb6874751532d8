"""A folder of image files, one subfolder per class, as in torchvision's ImageFolder."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nas.data.dataset import Dataset, Samples
from nas.data.images import Memory, Pixels
from nas.errors import DataError
from nas.space import Task

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})


class Files(Pixels):
    """Image files, decoded in threads when they are taken.

    Args:
        paths: The files, N of them.
        side: Height and width after resizing.
        workers: Threads that decode; the images do not depend on their number.
        memory: Bytes up to which a selection is decoded once and kept.
    """

    def __init__(self, paths: Sequence[Path], side: int, workers: int, memory: int) -> None:
        self.paths, self.side, self.workers, self.memory = paths, side, workers, memory
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def take(self, indices: Tensor) -> Tensor:
        """Returns the images at `indices` (B,) as uint8 (B, 3, side, side)."""
        return torch.stack(list(self._pool.map(self._decode, indices.tolist())))

    def only(self, indices: Tensor) -> Pixels:
        """Returns the images at `indices` (N,), in memory if they fit."""
        if len(indices) * 3 * self.side**2 <= self.memory:
            return Memory(self.take(indices))
        return Files([self.paths[index] for index in indices.tolist()], self.side, self.workers, self.memory)

    def _decode(self, index: int) -> Tensor:
        from torchvision.datasets.folder import default_loader
        from torchvision.transforms import functional

        path = self.paths[index]
        try:
            image = functional.resize(default_loader(path), [self.side])
        except Exception as error:  # of many kinds: each image format fails in its own way
            raise DataError(f"{path} is no readable image ({error}); mend or remove the file") from error
        pixels: Tensor = functional.pil_to_tensor(functional.center_crop(image, [self.side]))
        return pixels


@dataclass(frozen=True, kw_only=True)
class Folder(Dataset):
    """Colour images in `root/<class>/`, or in `root/train/<class>/` and `root/test/<class>/` (or `root/val/<class>/`).

    Attributes:
        root: The folder.
        image_size: The shorter side is resized to this many pixels, then the centre is cut out.
        memory_mb: Images are decoded once and kept if they need no more than this; else whenever they are used.
        workers: Threads that decode.
    """

    root: str
    image_size: int = 32
    memory_mb: int = 2048
    workers: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("image_size", 1), ("memory_mb", 0), ("workers", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")

    def task(self) -> Task:
        """Returns the size that images are brought to, and the number of class folders."""
        return Task(3, self.image_size, self.image_size, len(self._classes(self._parts()[0])))

    def read(self) -> Samples:
        """Returns the files in alphabetical order, still to be decoded."""
        train, test = self._parts()
        classes = self._classes(train)
        files = _labelled(train, classes)
        if len(present := {label for _, label in files}) < len(classes):
            absent = [name for label, name in enumerate(classes) if label not in present]
            raise self._error(f"{train} has no images for {absent}; accepted: {', '.join(sorted(SUFFIXES))}")
        tested = [] if test is None else self._tested(test, classes)
        paths, labels = zip(*files, *tested, strict=True)
        pixels = Files(paths, self.image_size, self.workers, self.memory_mb * 2**20)
        return Samples(pixels, torch.tensor(labels), len(tested))

    def _parts(self) -> tuple[Path, Path | None]:
        """Returns the folder with the train classes and the one with the test classes, if there is one."""
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise self._error("no such folder; name one with --set dataset.root=...")
        if not (root / "train").is_dir():
            return root, None
        return root / "train", next((part for part in (root / "test", root / "val") if part.is_dir()), None)

    def _classes(self, train: Path) -> list[str]:
        classes = _subfolders(train)
        if len(classes) < 2:
            raise self._error(f"{train} has the class folders {classes}; make one for each of two or more classes")
        return classes

    def _tested(self, test: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
        if unknown := sorted(set(_subfolders(test)) - set(classes)):
            raise self._error(f"{test} has classes that the train part lacks: {unknown}; add them there")
        files = _labelled(test, classes)
        if not files:
            raise self._error(f"{test} has no images; accepted: {', '.join(sorted(SUFFIXES))}")
        return files

    def _error(self, message: str) -> DataError:
        return DataError(f"dataset.root = {self.root}: {message}")


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _labelled(folder: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """Returns the image files below `folder/<class>/`, with the number of the class."""
    return [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
