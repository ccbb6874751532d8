"""Augmentation of whole batches on the device: random crop, flip and cutout as PyTorch gathers.

Crop and flip work on uint8 images and cutout on normalised ones, as in DARTS (Liu et al., 2019, arXiv:1806.09055).
Random numbers are drawn on the CPU, so every device sees the same images.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nas.space import Task


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training images are varied.

    Attributes:
        crop: Pixels of black border around the image before a crop of its own size.
        flip: Whether half of the images are mirrored left to right.
        cutout: Side in pixels of the erased square; 0 erases nothing. Used in retraining only.
    """

    crop: int = 0
    flip: bool = False
    cutout: int = 0

    def __post_init__(self) -> None:
        for name, value in (("crop", self.crop), ("cutout", self.cutout)):
            if value < 0:
                raise ValueError(f"{name} must be at least 0, got {value}")


def customary(task: Task) -> Augmentation:
    """Returns the usual augmentation for images of this size: at 32x32 in colour, that of CIFAR in DARTS.

    Grey images are mostly digits and symbols, which change their meaning when mirrored and vanish under a large square.
    """
    side = min(task.height, task.width)
    colour = task.channels >= 3
    return Augmentation(crop=side // 8, flip=colour, cutout=side // 2 if colour else side // 4)


def augment(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Returns a random crop of each zero-padded image, mirrored with probability 1/2.

    Args:
        images: (B, C, H, W), any dtype.
        augmentation: `crop` and `flip` apply; `cutout` does not, see `cutout`.
        generator: On the CPU.
    """
    if not (augmentation.crop or augmentation.flip):
        return images
    size, channels, height, width = images.shape
    device, pad = images.device, augmentation.crop
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
    rows = torch.arange(height, device=device)  # (H,), with a crop (B, H)
    columns = torch.arange(width, device=device)  # (W,), with a flip or crop (B, W)
    if augmentation.flip:
        columns = torch.where(_draw(2, size, generator, device).bool(), columns.flip(0), columns)
    if pad:
        rows = rows + _draw(2 * pad + 1, size, generator, device)
        columns = columns + _draw(2 * pad + 1, size, generator, device)
    places = rows[..., None] * padded.shape[3] + columns[:, None, :]  # (B, H, W), into the padded image
    planes = places.view(size, 1, -1).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, planes).view(images.shape)


def cutout(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Returns the images with a square set to 0, its centre anywhere in the image, its overhang cut off.

    Args:
        images: (B, C, H, W), normalised, so that 0 is the mean.
        size: Side of the square in pixels.
        generator: On the CPU.

    Source: DeVries and Taylor, 2017, arXiv:1708.04552.
    """
    if size == 0:
        return images
    count, _, height, width = images.shape
    rows = _inside(height, size, _draw(height, count, generator, images.device))  # (B, H)
    columns = _inside(width, size, _draw(width, count, generator, images.device))  # (B, W)
    return images.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], 0.0)


def normalise(images: Tensor, mean: Tensor, deviation: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns uint8 images (B, C, H, W) with each channel shifted and scaled; `mean`, `deviation` (C,) for [0, 1]."""
    return (images.to(dtype) / 255).sub_(mean[:, None, None].to(dtype)).div_(deviation[:, None, None].to(dtype))


def _draw(below: int, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Returns integers in [0, below), one per image, (B, 1)."""
    return torch.randint(below, (count, 1), generator=generator).to(device, non_blocking=True)


def _inside(length: int, size: int, centre: Tensor) -> Tensor:
    """Returns which of `length` pixels lie in a span of `size` around each centre, (B, length)."""
    pixel = torch.arange(length, device=centre.device)
    start = centre - size // 2
    return (pixel >= start) & (pixel < start + size)
