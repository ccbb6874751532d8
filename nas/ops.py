"""Candidate operations that spaces share. Each maps (B, in_channels, H, W) to (B, channels, ceil(H/s), ceil(W/s)).

The convolutional blocks are those of DARTS (Liu et al., 2019, arXiv:1806.09055) and MobileNetV2 (Sandler et al., 2018,
arXiv:1801.04381); attention and perceptron are a transformer's (Dosovitskiy et al., 2021, arXiv:2010.11929).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Zero(nn.Module):
    """The operation `none`: zeros of the output's shape."""

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """Returns zeros."""
        return zeros(x, self.channels, self.stride)


class Noise(nn.Module):
    """Standard normal noise of the output's shape, whatever the input, from torch's global generator.

    Source: Zela et al., 2020, arXiv:1909.09656, as a candidate that no search should choose.
    """

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """Returns fresh noise."""
        return zeros(x, self.channels, self.stride).normal_()


class BesideSkip(nn.Module):
    """An operation and a skip connection that read the same input, added up."""

    def __init__(self, operation: nn.Module, skip: nn.Module) -> None:
        super().__init__()
        self.operation, self.skip = operation, skip

    def forward(self, x: Tensor) -> Tensor:
        """Returns the sum."""
        y: Tensor = self.operation(x) + self.skip(x)
        return y


class FactorizedReduce(nn.Module):
    """Halves the resolution with two 1x1 convolutions of stride 2, the second shifted by one pixel.

    An odd side is padded by one zero for the shifted half, so both halves have ceil(side / 2).
    """

    def __init__(self, in_channels: int, channels: int, *, affine: bool) -> None:
        super().__init__()
        half = channels // 2
        self.first = nn.Conv2d(in_channels, half, 1, stride=2, bias=False)
        self.second = nn.Conv2d(in_channels, channels - half, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in_channels, H, W) to (B, channels, ceil(H/2), ceil(W/2))."""
        x = x.relu()
        shifted = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))[:, :, 1:, 1:]
        y: Tensor = self.norm(torch.cat([self.first(x), self.second(shifted)], dim=1))
        return y


def relu_conv_norm(in_channels: int, channels: int, kernel: int, stride: int = 1, *, affine: bool) -> nn.Sequential:
    """Returns ReLU, convolution, batch norm."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(channels, affine=affine),
    )


def separable_conv(
    in_channels: int, channels: int, kernel: int, stride: int, dilation: int = 1, *, affine: bool
) -> nn.Sequential:
    """Returns ReLU, depthwise convolution, pointwise convolution, batch norm."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(in_channels, in_channels, kernel, stride, padding, dilation, groups=in_channels, bias=False),
        nn.Conv2d(in_channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels, affine=affine),
    )


def twice_separable_conv(in_channels: int, channels: int, kernel: int, stride: int, *, affine: bool) -> nn.Sequential:
    """Returns two separable convolutions in a row, the first with the stride and the input's width."""
    return nn.Sequential(
        *separable_conv(in_channels, in_channels, kernel, stride, affine=affine),
        *separable_conv(in_channels, channels, kernel, 1, affine=affine),
    )


def average_pool(kernel: int, stride: int) -> nn.AvgPool2d:
    """Returns an average pool that does not count its padding."""
    return nn.AvgPool2d(kernel, stride, kernel // 2, count_include_pad=False)


def skip_connect(in_channels: int, channels: int, stride: int, *, affine: bool) -> nn.Module:
    """Returns the identity where shapes allow it, otherwise a factorised reduction."""
    if stride == 1 and in_channels == channels:
        return nn.Identity()
    if stride == 2:
        return FactorizedReduce(in_channels, channels, affine=affine)
    return relu_conv_norm(in_channels, channels, 1, stride, affine=affine)


class InvertedResidual(nn.Module):
    """MobileNetV2's block: 1x1 expansion, depthwise convolution, linear 1x1 projection; residual where shapes allow."""

    def __init__(
        self, in_channels: int, channels: int, kernel: int, stride: int, expansion: int, *, affine: bool
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.residual = stride == 1 and in_channels == channels
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden, affine=affine),
            nn.ReLU6(),
            nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden, affine=affine),
            nn.ReLU6(),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.BatchNorm2d(channels, affine=affine),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in_channels, H, W) to (B, channels, ceil(H/stride), ceil(W/stride))."""
        y: Tensor = self.body(x)
        return x + y if self.residual else y


class ResidualReduction(nn.Module):
    """Halves the resolution with two 3x3 convolutions, beside a 2x2 average and a 1x1 convolution.

    Source: Dong and Yang, 2020, arXiv:2001.00326, between the stages of their networks.
    """

    def __init__(self, in_channels: int, channels: int, *, affine: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *relu_conv_norm(in_channels, channels, 3, 2, affine=affine),
            *relu_conv_norm(channels, channels, 3, affine=affine),
        )
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False),
            nn.Conv2d(in_channels, channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in_channels, H, W) to (B, channels, ceil(H/2), ceil(W/2))."""
        y: Tensor = self.shortcut(x) + self.body(x)
        return y


class Patches(nn.Module):
    """Maps images of one size (B, in_channels, H, W) to (B, channels, ceil(H / side), ceil(W / side)), with positions.

    Zeros complete the patches at the right and lower border. Positions are learned.
    """

    def __init__(self, in_channels: int, channels: int, side: int, image: tuple[int, int]) -> None:
        super().__init__()
        height, width = image
        self.missing = (0, -width % side, 0, -height % side)
        self.embed = nn.Conv2d(in_channels, channels, side, side)
        # About as large as embedded patches: a small network that hardly sees positions at first loses epochs.
        self.position = nn.Parameter(0.5 * torch.randn(channels, -(-height // side), -(-width // side)))

    def forward(self, x: Tensor) -> Tensor:
        """Embeds."""
        y: Tensor = self.embed(F.pad(x, self.missing)) + self.position
        return y


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of every pixel of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalises."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class SelfAttention(nn.Module):
    """Layer norm, and attention among the pixels of a map, without position and residual.

    Source: Vaswani et al., 2017, arXiv:1706.03762. In plain products, which can be differentiated twice.
    """

    def __init__(self, channels: int, heads: int, *, affine: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norm = ChannelNorm(channels, elementwise_affine=affine)
        self.read = nn.Conv2d(channels, 3 * channels, 1)
        self.write = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to the same shape."""
        tokens = self.read(self.norm(x)).flatten(2).unflatten(1, (3, self.heads, -1))
        queries, keys, values = tokens.unbind(1)  # (B, heads, C / heads, H * W)
        scores = keys.transpose(2, 3) @ queries / queries.shape[2] ** 0.5
        found = values @ scores.softmax(2)  # each query's column of scores sums to 1
        y: Tensor = self.write(found.flatten(1, 2).unflatten(2, x.shape[2:]))
        return y


def perceptron(channels: int, ratio: int, *, affine: bool) -> nn.Sequential:
    """Returns layer norm and a perceptron with a hidden layer of `ratio` times the channels, for every pixel."""
    return nn.Sequential(
        ChannelNorm(channels, elementwise_affine=affine),
        nn.Conv2d(channels, ratio * channels, 1),
        nn.GELU(),
        nn.Conv2d(ratio * channels, channels, 1),
    )


def zeros(x: Tensor, channels: int, stride: int) -> Tensor:
    """Returns zeros of the shape an operation with `channels` and `stride` gives for `x`."""
    return x.new_zeros(x.shape[0], channels, -(-x.shape[2] // stride), -(-x.shape[3] // stride))


def drop_path(x: Tensor, probability: float) -> Tensor:
    """Zeroes whole samples with `probability` and scales the others up, from torch's global generator.

    Source: Larsson et al., 2017, arXiv:1605.07648.
    """
    return x / (1.0 - probability) * kept(x, probability)


def kept(x: Tensor, probability: float) -> Tensor:
    """Draws which samples `drop_path` keeps, ones and zeros (B, 1, 1, 1), from torch's global generator."""
    return torch.empty(x.shape[0], 1, 1, 1, device=x.device, dtype=x.dtype).bernoulli_(1.0 - probability)
