"""Which pixels a convolution reads, as lists that the kernels follow."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nas.space import Cell
from nas.supernet.native.kernels import BLOCK
from nas.supernet.native.layout import CONSTANTS, FIRST, SHIFT, WORK
from nas.supernet.plan import Pool, Stage

Numbers = NDArray[np.int64] | NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Taps:
    """A convolution's geometry: a result at (y, x) reads the input at (y * stride + dy, x * stride + dx).

    Attributes:
        offsets: (dy, dx) of every tap.
        stride: In pixels.
        height, width: Of the input.
        out_height, out_width: Of the result.
    """

    offsets: tuple[tuple[int, int], ...]
    stride: int
    height: int
    width: int
    out_height: int
    out_width: int

    @cached_property
    def margin(self) -> int:
        """How far the taps reach beyond the input."""
        low = min(min(offset) for offset in self.offsets)
        high = max(
            (self.out_height - 1) * self.stride + max(dy for dy, _ in self.offsets) - (self.height - 1),
            (self.out_width - 1) * self.stride + max(dx for _, dx in self.offsets) - (self.width - 1),
        )
        return max(-low, high, 0)

    @cached_property
    def back(self) -> tuple[int, int, int]:
        """Margin, height and width of the padded gradient from which every input's gradient is gathered."""
        reach = max(abs(side) for offset in self.offsets for side in offset)
        height = max(self.height, (self.out_height - 1) * self.stride + 1)
        return reach, height, max(self.width, (self.out_width - 1) * self.stride + 1)


class Geometry:
    """Everything about a cell's stages that depends on shapes alone; kept with the cell, each list once.

    Args:
        size: Bytes of a number.
        graph: Of the cell.

    Attributes:
        states: Base that stands for the first state in tables of probes.
        first: Base of the cell's first tensor.
        tensors: By number of base, where the cell's tensors are found, since a tensor itself may be replaced.
    """

    def __init__(self, size: int, graph: Cell) -> None:
        self.size, self.kind = size, np.float32 if size == 4 else np.float64
        self.states = FIRST + 2 * graph.inputs
        self.first = self.states + 2 * (graph.inputs + len(graph.order))
        self.tensors: dict[int, tuple[dict[str, Any], str]] = {}
        self._tensors: dict[tuple[int, str], int] = {}
        self.convolutions: dict[int, tuple[list[list[int]], int]] = {}
        self._taps: dict[tuple[int, int, int], Taps] = {}
        self._fields: dict[tuple[int, ...], dict[str, int]] = {}
        self._work: dict[tuple[int, ...], dict[str, int]] = {}
        self._places: dict[object, int] = {}
        self._lists: list[NDArray[np.uint8]] = []
        self._memory, self._used = torch.empty(0, dtype=torch.uint8), 0

    def tensor(self, module: nn.Module, name: str) -> int:
        """Returns the address of a module's parameter or buffer; 0 if it has none of that name."""
        key = (id(module), name)
        found = self._tensors.get(key)
        if found is None:
            owner: dict[str, Any] = module._parameters if name in module._parameters else module._buffers
            base = 0 if owner[name] is None else self.first + len(self.tensors)
            if base:
                self.tensors[base] = owner, name
            found = self._tensors[key] = base << SHIFT
        return found

    def taps(self, part: Stage | Pool, height: int, width: int) -> Taps:
        """Returns how a stage or a pool reads an input of this size."""
        key = (id(part), height, width)
        if key not in self._taps:
            make = taps_of_pool(part, height, width) if isinstance(part, Pool) else taps_of(part, height, width)
            self._taps[key] = make
        return self._taps[key]

    def fields(self, taps: Taps, inner: int, outer: int, margin: int, maximum: int) -> dict[str, int]:
        """Returns the fields of `stages.STAGE` that do not depend on addresses.

        Args:
            taps: Of the convolution that reads the input.
            inner: Padded channels of the input.
            outer: Padded channels of the result.
            margin: Of the padded input, at least the taps' own.
            maximum: Whether it is a max pool.
        """
        key = (id(taps), inner, outer, margin, maximum)
        if key not in self._fields:
            width, results, inputs = (
                taps.width + 2 * margin,
                (taps.out_height, taps.out_width),
                taps.height * taps.width,
            )
            reach, back_height, back_width = (margin, taps.height, taps.width) if maximum else taps.back
            row, size = back_width + 2 * reach, (back_height + 2 * reach) * (back_width + 2 * reach)
            pixels = results[0] * results[1]
            self._fields[key] = {
                "height": taps.height, "width": taps.width, "channels": inner, "margin": margin, "outer": outer,
                "taps": self._offsets(taps, width, 1), "count": len(taps.offsets), "maximum": maximum,
                "at": self._pixels(*results, width, margin, taps.stride),
                "inside": self._pixels(taps.height, taps.width, width, margin, 1),
                "plain_out": self._pixels(*results, results[1], 0, 1),
                "plain_in": self._pixels(taps.height, taps.width, taps.width, 0, 1),
                "pixels": pixels, "blocks": -(-pixels // BLOCK), "inputs": inputs, "input_blocks": -(-inputs // BLOCK),
                "to": self._pixels(*results, row, reach, taps.stride),
                "back": self._pixels(taps.height, taps.width, row, reach, 1),
                "back_taps": self._offsets(taps, row, -1), "back_size": size,
                **{name: base << SHIFT for name, base in WORK.items()},
            }  # fmt: skip
            numbers = {
                "work_x": (taps.height + 2 * margin) * width * inner,
                "work_y": pixels * inner,
                "work_z": pixels * outer,
                "work_dy": size * max(inner, outer),
                "work_dx": max(inputs, size) * inner,
            }
            self._work[key] = {name: -(-count * self.size // 64) * 64 for name, count in numbers.items()}
        return self._fields[key]

    def work(self) -> dict[str, int]:
        """Returns the bytes of memory that a thread needs for the largest stage so far, by name."""
        return {name: max((sizes[name] for sizes in self._work.values()), default=0) for name in WORK}

    def ones(self, count: int) -> int:
        """Returns the address of so many ones: the weights of an average."""
        return self._add(("ones", count), np.ones(count), self.kind)

    def shares(self, taps: Taps) -> int:
        """Returns the address of one over the number of taps inside the image, for every result."""
        if ("shares", id(taps)) in self._places:
            return self._places["shares", id(taps)]
        y, x = (np.array([offset[i] for offset in taps.offsets]) for i in (0, 1))
        rows = np.arange(taps.out_height)[:, None] * taps.stride + y
        columns = np.arange(taps.out_width)[:, None] * taps.stride + x
        high, wide = (rows >= 0) & (rows < taps.height), (columns >= 0) & (columns < taps.width)
        return self._add(("shares", id(taps)), 1 / (high[:, None] & wide[None]).sum(2).ravel(), self.kind)

    def memory(self) -> Tensor:
        """Returns all lists, as bytes."""
        if self._memory.numel() < self._used:
            self._memory = torch.from_numpy(np.concatenate(self._lists))
        return self._memory

    def _add(self, key: object, values: Sequence[int] | Numbers, kind: type = np.int64) -> int:
        """Returns the address of a list."""
        if key not in self._places:
            raw = np.asarray(values, dtype=kind).view(np.uint8)
            padded = np.zeros(-(-raw.size // 64) * 64, np.uint8)
            padded[: raw.size] = raw
            self._lists.append(padded)
            self._places[key] = (CONSTANTS << SHIFT) + self._used
            self._used += padded.size
        return self._places[key]

    def _pixels(self, height: int, width: int, row: int, margin: int, step: int) -> int:
        """Returns the list of pixels (y * step, x * step) of an image with rows of `row` pixels, inside its margin."""
        key = ("pixels", height, width, row, margin, step)
        if key in self._places:
            return self._places[key]
        y, x = np.arange(height)[:, None] * step + margin, np.arange(width)[None] * step + margin
        flat = (y * row + x).ravel()
        return self._add(key, np.concatenate([flat, np.repeat(flat[-1:], -len(flat) % BLOCK)]))

    def _offsets(self, taps: Taps, row: int, sign: int) -> int:
        """Returns the list of taps in an image with rows of `row` pixels."""
        return self._add(("taps", taps.offsets, row, sign), [sign * (dy * row + dx) for dy, dx in taps.offsets])


def taps_of(stage: Stage, height: int, width: int) -> Taps:
    """Returns the geometry of what reads the stage's input."""
    if stage.average is not None:
        return taps_of_pool(stage.average, height, width)
    if len(stage.dense) > 1:  # each reads from one pixel further on
        stride = stage.dense[0].stride[0]
        sides = (-(-height // stride), -(-width // stride))
        return Taps(tuple((i, i) for i in range(len(stage.dense))), stride, height, width, *sides)
    conv = stage.depthwise or stage.dense[0]
    kernel, stride, padding, dilation = conv.kernel_size[0], conv.stride[0], conv.padding[0], conv.dilation[0]
    assert isinstance(padding, int)
    offsets = tuple((y * dilation - padding, x * dilation - padding) for y in range(kernel) for x in range(kernel))
    reach = dilation * (kernel - 1) + 1
    sides = ((height + 2 * padding - reach) // stride + 1, (width + 2 * padding - reach) // stride + 1)
    return Taps(offsets, stride, height, width, *sides)


def taps_of_pool(pool: Pool, height: int, width: int) -> Taps:
    """Returns the geometry of a pool."""
    offsets = tuple((y - pool.padding, x - pool.padding) for y in range(pool.kernel) for x in range(pool.kernel))
    spans = [side + 2 * pool.padding - pool.kernel for side in (height, width)]
    sides = [(-(-span // pool.stride) if pool.ceil else span // pool.stride) + 1 for span in spans]
    return Taps(offsets, pool.stride, height, width, sides[0], sides[1])


def channels_of(stage: Stage) -> int:
    """Returns the channels of a stage's result."""
    if stage.dense:
        return sum(conv.out_channels for conv in stage.dense)
    assert stage.depthwise is not None
    return stage.depthwise.out_channels
