"""The order in memory in which the fast engines keep images."""

import torch
from torch import Tensor

CHANNELS_LAST = ("cpu",)
"""Devices whose convolutions are faster with the channels last.

Not on GPUs: a padded `avg_pool2d` has a wrong gradient there for that order (pytorch#188344; seen with torch 2.11).
"""


def arranged(x: Tensor) -> Tensor:
    """Returns the images (B, C, H, W) in the order of their device: itself if they are, otherwise a copy."""
    last = x.device.type in CHANNELS_LAST
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
