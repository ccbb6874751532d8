"""Batches as a function of a step: any step can be asked for, in any order, and always gives the same batch.

A resumed run asks for the step after its checkpoint, so nothing of a loader needs to be saved.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from nas.data.augment import Augmentation, augment, cutout, normalise
from nas.data.images import Images
from nas.randomness import generator


class Batches:
    """Endless shuffled batches of a split; an epoch shows each sample at most once.

    Files are read one batch ahead, which assumes that steps are mostly asked for in order.

    Args:
        images: The split; one that fits is copied to the device.
        batch_size: Images per batch; a smaller split is one batch of everything.
        seed: Of the run.
        stream: Name of this sequence; streams of one seed are independent.
        mean: Per channel, for intensities in [0, 1].
        deviation: Per channel.
        device: Where batches are made.
        augmentation: None shows the images as they are.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        *,
        seed: int,
        stream: str,
        mean: tuple[float, ...],
        deviation: tuple[float, ...],
        device: torch.device | str,
        augmentation: Augmentation | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.device = torch.device(device)
        self.images = images.to(self.device)
        self.labels = images.labels.to(self.device)
        self.batch_size = min(batch_size, len(images))
        self.steps_per_epoch = len(images) // self.batch_size
        self.seed, self.stream, self.augmentation = seed, stream, augmentation or Augmentation()
        self._mean, self._deviation = torch.tensor([mean, deviation], device=self.device)
        self._order: tuple[int, Tensor] = (-1, images.indices)
        self._reader = None if images.in_memory else ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._ahead: dict[int, Future[Tensor]] = {}

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Returns the batch of a step: normalised float32 (B, C, H, W) and labels (B,), on the device."""
        draws = generator(self.seed, "augment", self.stream, step)
        images = self._take(step).to(self.device, non_blocking=True)
        images = normalise(augment(images, self.augmentation, draws), self._mean, self._deviation)
        labels = self.labels[self._indices(step).to(self.device)]
        return cutout(images, self.augmentation.cutout, draws), labels

    def _indices(self, step: int) -> Tensor:
        """Returns the places in the split, (B,), on the device of the split."""
        assert step >= 0
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            order = torch.randperm(len(self.images), generator=generator(self.seed, "order", self.stream, epoch))
            self._order = (epoch, order.to(self.images.indices.device))
        return self._order[1][position * self.batch_size :][: self.batch_size]

    def _take(self, step: int) -> Tensor:
        indices = self._indices(step)
        if self._reader is None:
            return self.images.take(indices)
        found = self._ahead.pop(step, None)
        images = self.images.take(indices) if found is None else found.result()
        self._ahead = {step + 1: self._reader.submit(self.images.take, self._indices(step + 1))}
        return images


def in_order(
    images: Images, batch_size: int, mean: tuple[float, ...], deviation: tuple[float, ...], device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields every sample once and unvaried, float32 (B, C, H, W) with labels (B,); the last batch may be smaller."""
    centre, scale = torch.tensor([mean, deviation], device=device)
    for places in torch.split(torch.arange(len(images)), batch_size):
        batch = images.take(places).to(device, non_blocking=True)
        yield normalise(batch, centre, scale), images.labels[places].to(device, non_blocking=True)
