"""Convolutions of a stage and their gradients, in the form of stock operations that runs fastest in channels-last.

What torch's own backward would compute, exactly; only the order of summation differs.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.supernet.layout import arranged

_backward = torch.ops.aten.convolution_backward


def depthwise(x: Tensor, weight: Tensor, conv: nn.Conv2d) -> Tensor:
    """Convolves every channel by itself: (B, C, H, W) to (B, C, H', W')."""
    return F.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)


def depthwise_backward(
    g: Tensor, x: Tensor, weight: Tensor, conv: nn.Conv2d, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Returns the gradients of input and weight, each if wanted.

    Args:
        g: Gradient of the output, (B, C, H', W').
        x: Input, (B, C, H, W).
        weight: (C, 1, k, k).
        conv: The settings of the convolution.
        wanted: Whether the input's and the weight's gradient is wanted.
    """
    (stride, _), (dilation, _), (padding, _) = conv.stride, conv.dilation, _sides(conv)
    if stride == dilation > 1 and padding % dilation == 0:
        # It reads only pixels whose row and column are multiples of the dilation.
        read = arranged(x[:, :, ::dilation, ::dilation])
        of_read = _input_gradient(g, read, weight, 1, 1, padding // dilation) if wanted[0] else None
        of_weight = _weight_gradient(g, read, weight, 1, padding // dilation) if wanted[1] else None
        if of_read is None:
            return None, of_weight
        whole = torch.zeros_like(x)
        whole[:, :, ::dilation, ::dilation] = of_read
        return whole, of_weight
    of_x = _input_gradient(g, x, weight, stride, dilation, padding) if wanted[0] else None
    if not wanted[1]:
        return of_x, None
    if dilation > 1 and stride == 1 and 2 * padding == dilation * (weight.shape[2] - 1) and padding % dilation == 0:
        return of_x, _weight_gradient(_phases(g, dilation), _phases(x, dilation), weight, 1, padding // dilation)
    if dilation > 1:
        return of_x, _library(g, x, weight, stride, dilation, (padding, padding), 1)
    return of_x, _weight_gradient(g, x, weight, stride, padding)


def _input_gradient(g: Tensor, x: Tensor, weight: Tensor, stride: int, dilation: int, padding: int) -> Tensor:
    """Returns a forward convolution with flipped taps where the stride is one: faster than the library's gradient."""
    mirrored = dilation * (weight.shape[2] - 1) - padding
    if stride == 1 and mirrored >= 0:
        return F.conv2d(g, weight.flip(2, 3), None, 1, mirrored, dilation, x.shape[1])
    return _library(g, x, weight, stride, dilation, (padding, padding), 0)


def _weight_gradient(g: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Returns the gradient of undilated taps, on a CPU by blocks of three columns: the only width its library has fast
    kernels for."""
    kernel = weight.shape[3]
    if kernel <= 3 or x.device.type != "cpu":
        return _library(g, x, weight, stride, 1, (padding, padding), 1)
    taps = torch.empty_like(weight)
    firsts = (*range(0, kernel - 3, 3), kernel - 3)
    for first, block in zip(firsts, _columns(x, firsts, (g.shape[3] - 1) * stride + 3, padding), strict=True):
        taps[..., first : first + 3] = _library(g, block, weight[..., :3], stride, 1, (padding, 0), 1)
    return taps


def _columns(x: Tensor, firsts: Sequence[int], width: int, padding: int) -> Iterator[Tensor]:
    """Yields `width` columns of an image, from `first - padding` on for each of `firsts`; absent ones are zeros."""
    batch, channels, height, given = x.shape
    if given + padding <= width and firsts[-1] <= padding:
        # One copy serves all: with enough zeros between its rows, a shifted image is a later start in memory.
        flat = x.new_empty(batch * height * width + padding, channels)
        flat[:padding] = 0
        rows = flat[padding:].view(batch, height, width, channels)
        rows[:, :, :given] = x.permute(0, 2, 3, 1)
        rows[:, :, given:] = 0
        for first in firsts:
            block = flat[first : first + batch * height * width]
            yield block.view(batch, height, width, channels).permute(0, 3, 1, 2)
        return
    for first in firsts:
        left = padding - first
        yield arranged(F.pad(x, (left, width - left - given)))


def _library(
    g: Tensor, x: Tensor, weight: Tensor, stride: int, dilation: int, padding: tuple[int, int], which: int
) -> Tensor:
    """Returns the library's gradient of the input (0) or the weight (1) of a depthwise convolution."""
    mask = [which == 0, which == 1, False]
    sides = ([stride, stride], list(padding), [dilation, dilation])
    found: Tensor = _backward(g, x, weight, None, *sides, False, [0, 0], x.shape[1], mask)[which]
    return found


def _phases(x: Tensor, dilation: int) -> Tensor:
    """Turns (B, C, H, W) into (B d d, C, H/d, W/d), one image per phase, in which dilated taps are neighbours."""
    height, width = (-side % dilation for side in x.shape[2:])
    x = F.pad(x, (0, width, 0, height)) if height or width else x
    batch, channels, height, width = x.shape
    split = x.permute(0, 2, 3, 1).reshape(batch, height // dilation, dilation, width // dilation, dilation, channels)
    phases = split.permute(2, 4, 0, 1, 3, 5).reshape(-1, height // dilation, width // dilation, channels)
    return phases.permute(0, 3, 1, 2)


def dense(x: Tensor, weights: Sequence[Tensor], convs: Sequence[nn.Conv2d], half: torch.dtype | None) -> Tensor:
    """Runs convolutions over all channels and concatenates their outputs; number i reads from pixel (i, i) on.

    Args:
        x: (B, C, H, W).
        weights: One for each convolution.
        convs: Their settings.
        half: The type to compute in, if another than the input's.
    """
    parts = [
        _dense(_shift(x, i), weight, conv, half) for i, (weight, conv) in enumerate(zip(weights, convs, strict=True))
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def dense_backward(
    g: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    convs: Sequence[nn.Conv2d],
    half: torch.dtype | None,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Returns the gradients of the input and of every weight; `wanted` says for which, the input first."""
    if len(convs) == 1:
        of_x, of_weight = _dense_backward(g, x, weights[0], convs[0], half, (wanted[0], wanted[1]))
        return of_x, [of_weight]
    total: Tensor | None = None
    of_weights = []
    for i, part in enumerate(torch.split(g, [weight.shape[0] for weight in weights], 1)):
        need = (wanted[0], wanted[1 + i])
        of_x, of_weight = _dense_backward(arranged(part), _shift(x, i), weights[i], convs[i], half, need)
        of_weights.append(of_weight)
        if of_x is not None:
            total = of_x if total is None else total + _shift(of_x, -i)
    return total, of_weights


def _dense(x: Tensor, weight: Tensor, conv: nn.Conv2d, half: torch.dtype | None) -> Tensor:
    if half is not None:
        return _dense(x.to(half), weight.to(half), conv, None).to(x.dtype)
    if not _pointwise(conv):
        return F.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation)
    return arranged((_strided(x, conv.stride[0]).permute(0, 2, 3, 1) @ weight.flatten(1).t()).permute(0, 3, 1, 2))


def _dense_backward(
    g: Tensor, x: Tensor, weight: Tensor, conv: nn.Conv2d, half: torch.dtype | None, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    if half is not None:
        found = _dense_backward(g.to(half), x.to(half), weight.to(half), conv, None, wanted)
        return tuple(None if value is None else value.to(x.dtype) for value in found)  # type: ignore[return-value]
    if not _pointwise(conv):
        settings = (list(conv.stride), list(_sides(conv)), list(conv.dilation))
        return _backward(g, x, weight, None, *settings, False, [0, 0], 1, [*wanted, False])[:2]  # type: ignore[no-any-return]
    stride = conv.stride[0]
    last = g.permute(0, 2, 3, 1)
    of_weight = None
    if wanted[1]:
        read = _strided(x, stride).permute(0, 2, 3, 1)
        of_weight = (last.flatten(0, 2).t() @ read.flatten(0, 2)).view_as(weight)
    if not wanted[0]:
        return None, of_weight
    of_read = (last @ weight.flatten(1)).permute(0, 3, 1, 2)
    if stride == 1:
        return of_read, of_weight
    of_x = torch.zeros_like(x)
    of_x[:, :, ::stride, ::stride] = of_read
    return of_x, of_weight


def _pointwise(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == (1, 1) and conv.padding == (0, 0)


def _sides(conv: nn.Conv2d) -> tuple[int, int]:
    assert not isinstance(conv.padding, str)  # the plan leaves those alone
    return conv.padding[0], conv.padding[1]


def _shift(x: Tensor, by: int) -> Tensor:
    """Moves an image up and left, with zeros beyond the border."""
    return F.pad(x, (-by, by, -by, by)) if by else x


def _strided(x: Tensor, stride: int) -> Tensor:
    return x if stride == 1 else x[:, :, ::stride, ::stride]
