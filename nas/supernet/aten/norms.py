"""Batch norm in parts: statistics, the affine map it amounts to, and its backward."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

FAST_STATISTICS = ("cpu", "cuda")
"""Devices with the statistics of batch norm as an operation; on CPUs it is many times faster than torch.var_mean."""


class Moments(NamedTuple):
    """What a batch norm normalises by.

    Attributes:
        mean: (C,).
        spread: (C,). One over the standard deviation of a batch; the variance, if `batch` is False.
        batch: Whether these are the batch's statistics, whose dependence on it the backward follows.
    """

    mean: Tensor
    spread: Tensor
    batch: bool


def statistics(z: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and biased variance of every channel, (C,) each."""
    if z.device.type in FAST_STATISTICS:
        found: tuple[Tensor, Tensor] = torch.batch_norm_update_stats(z, None, None, 0.0)
        return found
    variance, mean = torch.var_mean(z, (0, 2, 3), correction=0)
    return mean, variance


def moments(z: Tensor, norm: nn.BatchNorm2d, known: tuple[Tensor, Tensor] | None = None, *, track: bool) -> Moments:
    """Returns what `norm` normalises (B, C, H, W) by, and moves its running statistics as its own forward would.

    Args:
        z: The input.
        norm: The settings and buffers.
        known: `statistics` of the input, if at hand.
        track: Whether running statistics may move.

    Raises:
        ValueError: There is one value per channel in training, as from torch.
    """
    running, training = norm.running_mean, norm.training
    if not training and running is not None:
        assert norm.running_var is not None
        return Moments(running, norm.running_var, False)
    count = z.numel() // z.shape[1]
    if count == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {z.shape}")
    track = track and training and norm.track_running_stats
    if track and known is None and norm.momentum is not None and z.device.type in FAST_STATISTICS:
        norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        mean, variance = torch.batch_norm_update_stats(z, running, norm.running_var, norm.momentum)
    else:
        mean, variance = known or statistics(z)
        if track:
            _track(norm, mean, variance * (count / (count - 1)))
    return Moments(mean, (variance + norm.eps).rsqrt_(), True)


def _track(norm: nn.BatchNorm2d, mean: Tensor, unbiased: Tensor) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    momentum: float | Tensor | None = norm.momentum
    norm.num_batches_tracked.add_(1)
    if momentum is None:  # a cumulative average; the count stays on the device
        momentum = norm.num_batches_tracked.to(mean.dtype).reciprocal_()
    norm.running_mean.lerp_(mean, momentum)
    norm.running_var.lerp_(unbiased, momentum)


def affine(
    found: Moments, eps: float, gamma: Tensor | None, beta: Tensor | None, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Returns (a, b), (C, 1, 1) each, with `weight` times the normalised input = a z + b."""
    scale = found.spread if found.batch else (found.spread + eps).rsqrt_()
    if gamma is not None:
        scale = scale * gamma
    if weight is not None:
        scale = scale * weight
        beta = None if beta is None else beta * weight
    shift = (found.mean * scale).neg_() if beta is None else torch.addcmul(beta, found.mean, scale, value=-1)
    return scale.view(-1, 1, 1), shift.view(-1, 1, 1)


def norm_backward(
    g: Tensor, z: Tensor, found: Moments, eps: float, scale: Tensor | None, *, wanted: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Returns the gradients of a batch norm's input (if wanted), scale and shift.

    Args:
        g: Gradient of the output, (B, C, H, W).
        z: The input.
        found: What it was normalised by.
        eps: The batch norm's.
        scale: (C,); None: ones.
        wanted: Whether the input's gradient is wanted.
    """
    mean, spread, batch = found
    running, saved = ((None, None), (mean, spread)) if batch else ((mean, spread), (None, None))
    if z.device.type != "cpu":  # there the operation needs all of them, whatever it uses
        scale = torch.ones_like(mean) if scale is None else scale
        saved = saved if batch else (mean, (spread + eps).rsqrt_())
    of_z, of_scale, of_shift = torch.ops.aten.native_batch_norm_backward(
        g, z, scale, *running, *saved, batch, eps, [wanted, True, True]
    )
    return of_z if wanted else None, of_scale, of_shift
