"""Reads labelled images from an npz file, and says what is wrong with it."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas.errors import DataError

Layout = Literal["auto", "nhwc", "nchw"]

KEYS = {
    "train": (("train_images", "train_labels"), ("x_train", "y_train")),
    "test": (("test_images", "test_labels"), ("x_test", "y_test")),
}


@dataclass(frozen=True, eq=False)
class Part:
    """The train or the test part: what the headers say, and the labels.

    Attributes:
        images: Key of the images.
        labels: (N,) int64.
        shape: (C, H, W).
        channels_last: Whether the file keeps C behind H and W.
    """

    images: str
    labels: Tensor
    shape: tuple[int, int, int]
    channels_last: bool


def read_parts(path: Path, layout: Layout, classes: int | None) -> tuple[Part, Part | None, int]:
    """Returns the train part, the test part if there is one, and the number of classes; reads no images.

    Args:
        path: The file.
        layout: Order of the axes of images with four of them.
        classes: None counts them: the largest label of the train part and one.
    """
    with _opened(path) as archive:
        train = _part(archive, path, "train", layout)
        test = _part(archive, path, "test", layout)
    if train is None:
        accepted = " or ".join(", ".join(keys) for keys in KEYS["train"])
        raise _error(path, f"has no training images; keys found: {_keys(archive)}; accepted: {accepted}")
    classes = int(train.labels.max()) + 1 if classes is None else classes
    if classes < 2:
        raise _error(path, "has one class; give images of at least two, or set dataset.classes")
    for part in (train, test):
        if part is not None and int(part.labels.max()) >= classes:
            raise _error(
                path,
                f"has label {int(part.labels.max())} beside {part.images}, but {classes} classes (0 to {classes - 1}); "
                "mend the labels or set dataset.classes",
            )
    if test is not None and test.shape != train.shape:
        raise _error(path, f"has train images of {train.shape} and test images of {test.shape}; make them equal")
    return train, test, classes


def read_images(path: Path, part: Part) -> Tensor:
    """Returns the images of a part as uint8 (N, C, H, W)."""
    with _opened(path) as archive:
        images = torch.from_numpy(_array(archive, part.images))
    if images.ndim == 3:
        images = images[:, None]
    return (images.permute(0, 3, 1, 2) if part.channels_last else images).contiguous()


def _part(archive: zipfile.ZipFile, path: Path, name: str, layout: Layout) -> Part | None:
    for images, labels in KEYS[name]:
        missing = [key for key in (images, labels) if key not in _keys(archive)]
        if not missing:
            dtype, shape = _header(archive, images)
            channels_last, size = _layout(path, images, dtype, shape, layout)
            return Part(images, _labels(archive, path, labels, images, shape[0]), size, channels_last)
        if len(missing) == 1:
            raise _error(path, f"lacks the key {missing[0]}; keys found: {_keys(archive)}")
    return None


def _layout(
    path: Path, key: str, dtype: np.dtype[Any], shape: tuple[int, ...], layout: Layout
) -> tuple[bool, tuple[int, int, int]]:
    """Returns whether channels come last, and (C, H, W)."""
    if dtype != np.uint8:
        raise _error(path, f"has {key} of type {dtype}; save them as uint8, 0 to 255")
    if len(shape) not in (3, 4):
        raise _error(path, f"has {key} of shape {shape}; save them as [n, H, W], [n, H, W, C] or [n, C, H, W]")
    if 0 in shape:
        raise _error(path, f"has {key} of shape {shape}, which is empty; save at least one image")
    if len(shape) == 3:
        return False, (1, shape[1], shape[2])
    if layout == "auto":
        last, first = shape[3] <= 4, shape[1] <= 4
        if last == first:
            raise _error(path, f"has {key} of shape {shape}: which axis is C? set dataset.layout to nhwc or nchw")
        layout = "nhwc" if last else "nchw"
    if layout == "nhwc":
        return True, (shape[3], shape[1], shape[2])
    return False, (shape[1], shape[2], shape[3])


def _labels(archive: zipfile.ZipFile, path: Path, key: str, images: str, count: int) -> Tensor:
    dtype, shape = _header(archive, key)
    if dtype.kind not in "iu":
        raise _error(path, f"has {key} of type {dtype}; save them as integers, 0 to classes - 1")
    if shape not in ((count,), (count, 1)):
        raise _error(path, f"has {key} of shape {shape} for {count} images in {images}; save one label per image")
    labels = torch.from_numpy(_array(archive, key).astype(np.int64)).reshape(-1)
    if int(labels.min()) < 0:
        raise _error(path, f"has the label {int(labels.min())} in {key}; save them as integers, 0 to classes - 1")
    return labels


def _keys(archive: zipfile.ZipFile) -> list[str]:
    return sorted(name.removesuffix(".npy") for name in archive.namelist())


def _header(archive: zipfile.ZipFile, key: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
    with archive.open(f"{key}.npy") as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    return dtype, shape


def _array(archive: zipfile.ZipFile, key: str) -> NDArray[Any]:
    with archive.open(f"{key}.npy") as stream:
        array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    return array


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    if not path.is_file():
        raise DataError(f"dataset.path = {path}: no such file; give an npz file with --set dataset.path=...")
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise _error(path, f"is damaged or no npz file ({error}); write it again with numpy.savez") from error


def _error(path: Path, message: str) -> DataError:
    return DataError(f"dataset.path = {path} {message}")
