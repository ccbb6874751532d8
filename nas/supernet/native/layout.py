"""Places in memory before there is any: addresses of a program are offsets from bases that every run fills in anew."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SHIFT = 44
"""An address before a run: the base's number above this bit, the offset in bytes below."""

SAVED, TEMPORARY, GRADIENTS, CONSTANTS, OUTPUT, OUTPUT_GRADIENT, PARAMETER_GRADIENTS, FACTORS = range(1, 9)
"""Numbers of bases: kept for the backward; of the forward; of the backward; lists of pixels; and tensors of a run."""

WORK = {"work_x": 9, "work_y": 10, "work_z": 11, "work_dy": 12, "work_dx": 13}
"""Memory of the first thread: padded input, result of the depthwise, gradients of result, of it, and of the input."""

POOLS = 14
"""Results of pools, which are found again in the backward."""

FIRST = 15
"""The inputs' bases, then their gradients', then (see `probes`) two for each state, then the cell's tensors'."""

Table = NDArray[np.int64]
Place = tuple[int, int, int]
"""Where a table is in all tables of a run: start, rows, columns."""


def within(address: int) -> int:
    """Returns an address's offset from its base, in bytes."""
    return address & ((1 << SHIFT) - 1)


def images(address: int, image: int, channels: int, width: int) -> list[int]:
    """Returns what a row of `nodes.copy` says of channels-last images: address, and strides."""
    return [address, image, 1, channels * width, channels]


class Region:
    """A stretch of memory that is handed out piece by piece.

    Attributes:
        base: Number of its base.
        size: Bytes of a number.
        used: Bytes handed out.
        most: Largest `used` so far.
    """

    def __init__(self, base: int, size: int) -> None:
        self.base, self.size, self.used, self.most = base, size, 0, 0

    def take(self, numbers: int) -> int:
        """Returns the address of so many numbers, aligned to a cache line."""
        start = self.used
        self.used += -(-numbers * self.size // 64) * 64
        if self.used > self.most:
            self.most = self.used
        return (self.base << SHIFT) + start

    def reset(self, used: int = 0) -> None:
        """Gives back everything after the first `used` bytes."""
        self.used = used


class Tables:
    """Rows of addresses and sizes, made into tables for one run.

    Args:
        first: Numbers that come before all that are added.

    Attributes:
        candidates: For every row that was added with them, until the end, the candidates that need it.
        bases, offsets: Of all numbers, after the end.
        used: The bases that occur.
    """

    def __init__(self, first: Table | None = None) -> None:
        self._first = np.empty(0, np.int64) if first is None else first
        self._numbers: list[int] = []
        self.candidates: list[Sequence[int]] = []

    def add(self, rows: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]] = ()) -> Place:
        """Adds a table and returns where it will be."""
        start = len(self._first) + len(self._numbers)
        for row in rows:
            self._numbers += row
        self.candidates += candidates
        return start, len(rows), len(rows[0]) if rows else 1

    def close(self) -> None:
        """Ends the adding."""
        whole = np.concatenate([self._first, np.array(self._numbers, np.int64)])
        self._first, self._numbers, self.candidates = whole[:0], [], []
        self.bases = np.maximum(whole >> SHIFT, 0)
        self.offsets = whole - (self.bases << SHIFT)
        self.used: list[int] = np.bincount(self.bases).nonzero()[0].tolist()

    def resolve(self, bases: Table) -> Table:
        """Returns all tables, flat, with addresses in the place of offsets."""
        resolved: Table = bases[self.bases] + self.offsets
        return resolved
