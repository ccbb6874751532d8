"""Images and labels of one split, as uint8 in memory or as files that are decoded on demand."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

DEVICE_BYTES = 4 * 2**30
"""A split that needs more than this stays in host memory."""


class Pixels(ABC):
    """A numbered store of images of equal size."""

    @abstractmethod
    def take(self, indices: Tensor) -> Tensor:
        """Returns the images at `indices` (B,) as uint8 (B, C, H, W)."""

    @abstractmethod
    def only(self, indices: Tensor) -> "Pixels":
        """Returns a store of the images at `indices` (N,), numbered in that order."""


@dataclass(frozen=True, eq=False)
class Memory(Pixels):
    """Images in one tensor, uint8 (N, C, H, W)."""

    tensor: Tensor

    def take(self, indices: Tensor) -> Tensor:
        """Returns the images at `indices`, on the device of the store."""
        return self.tensor[indices.to(self.tensor.device)]

    def only(self, indices: Tensor) -> "Memory":
        """Returns a copy of the images at `indices`, so that the others can be freed."""
        return Memory(self.take(indices))


@dataclass(frozen=True, eq=False)
class Images:
    """One split: places in a store that splits share, and the labels of the images there.

    Attributes:
        pixels: The store.
        indices: Places in the store, (N,) int64.
        labels: Class of each image, (N,) int64.
    """

    pixels: Pixels
    indices: Tensor
    labels: Tensor

    @classmethod
    def of(cls, images: Tensor, labels: Tensor) -> "Images":
        """Returns a split made of a uint8 tensor (N, C, H, W) and its labels (N,)."""
        return cls(Memory(images), torch.arange(len(images), device=images.device), labels)

    def __len__(self) -> int:
        return len(self.indices)

    def __add__(self, other: "Images") -> "Images":
        """Returns both splits as one, e.g. `train + arch` for retraining."""
        assert self.pixels is other.pixels, "splits can be joined if one dataset made them"
        return Images(self.pixels, torch.cat([self.indices, other.indices]), torch.cat([self.labels, other.labels]))

    @property
    def in_memory(self) -> bool:
        """Whether `take` is fast; if not, fetch ahead."""
        return isinstance(self.pixels, Memory)

    def take(self, indices: Tensor) -> Tensor:
        """Returns the images at `indices` (B,) of this split as uint8 (B, C, H, W)."""
        return self.pixels.take(self.indices[indices])

    def first(self, count: int) -> "Images":
        """Returns the first `count` samples, or all; the splits of a dataset begin with a balanced sample."""
        return Images(self.pixels, self.indices[:count], self.labels[:count])

    def to(self, device: torch.device) -> "Images":
        """Returns the split with its images copied to `device`, or as it is if they are files or too many."""
        if not isinstance(self.pixels, Memory) or self.pixels.tensor.device == device:
            return self
        if len(self) * self.pixels.tensor[0].nbytes > DEVICE_BYTES:
            return self
        return Images.of(self.pixels.take(self.indices).to(device), self.labels.to(device))
