"""Divides samples into disjoint splits in which every class has its share."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nas.data.images import Images

STATISTICS_SAMPLES = 50_000
"""Mean and deviation come from at most this many images: all of CIFAR, a balanced sample of larger sets."""


def stratified_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Returns a random order of the samples in which any stretch holds each class in proportion.

    Systematic sampling: a class with n samples stands at the places (r + u) / n, r = 0 .. n - 1, with one random u per
    class. A stretch of the order, as long as a share s of it, then holds s * n samples of every class, give or take
    less than one, for some s that is the same for all classes.

    Args:
        labels: Class of each sample, (N,).
        generator: On the CPU.
    """
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    counts = labels.bincount()  # (classes,)
    starts = counts.cumsum(0) - counts
    offsets = torch.rand(len(counts), generator=generator, dtype=torch.float64)
    ordered = labels[by_class]
    rank = torch.arange(len(labels)) - starts[ordered]
    place = (rank + offsets[ordered]) / counts[ordered]
    return by_class[place.argsort(stable=True)]


def share(count: int, fraction: float) -> int:
    """Returns how many of `count` samples a split with this fraction gets: at least one."""
    return max(1, round(count * fraction))


def statistics(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and deviation per channel for intensities in [0, 1].

    They follow from exact histograms, so they depend neither on threads nor on the order of samples. A deviation is at
    least one grey level: a constant channel becomes 0 instead of infinite.
    """
    images = images.first(STATISTICS_SAMPLES)
    parts = torch.split(torch.arange(len(images)), 1024)
    histograms = torch.stack([_histograms(images.take(part)) for part in parts]).sum(0).double()  # (C, 256)
    levels = torch.arange(256, dtype=torch.float64) / 255
    weights = histograms / histograms.sum(1, keepdim=True)  # (C, 256)
    mean = weights @ levels
    variance = (weights * (levels - mean[:, None]).square()).sum(1)
    return _floats(mean), _floats(variance.sqrt().clamp(min=1 / 255))


def _histograms(images: Tensor) -> Tensor:
    """Returns how often each of the 256 levels occurs in each channel of (B, C, H, W), int64 (C, 256)."""
    return torch.stack([channel.reshape(-1).bincount(minlength=256) for channel in images.unbind(1)])


def _floats(values: Tensor) -> tuple[float, ...]:
    numbers: Sequence[float] = values.tolist()
    return tuple(numbers)
