"""Memory that is used again: fresh pages cost more than the arithmetic that fills them."""

import threading
from bisect import bisect_left
from weakref import ReferenceType, ref

import torch
from torch import Tensor

SPARE = 1.25
"""How many times too large memory that is kept for a backward may be."""

_free: list[Tensor] = []
_held: dict[int, ReferenceType[Tensor]] = {}
_lock = threading.Lock()


def take(size: int, *, kept: bool = False) -> Tensor:
    """Returns at least `size` bytes, aligned to a cache line, with whatever was there before.

    Args:
        size: In bytes.
        kept: Whether it is kept for a backward, and counted; otherwise it is given back at once, and may be any.
    """
    with _lock:
        place = bisect_left(_free, size, key=Tensor.numel)
        if place < len(_free) and (not kept or _free[place].numel() <= SPARE * size):
            buffer = _free.pop(place)
        else:
            if place:  # the new memory takes the place of what was too small, so that sampled paths do not pile up
                del _free[place - 1]
            buffer = torch.empty(max(size, 64), dtype=torch.uint8)
        if kept:
            _held[buffer.data_ptr()] = ref(buffer)  # a graph may be dropped without a backward
    return buffer


def give(buffer: Tensor) -> None:
    """Takes memory back."""
    with _lock:
        _held.pop(buffer.data_ptr(), None)
        _free.insert(bisect_left(_free, buffer.numel(), key=Tensor.numel), buffer)


def held() -> int:
    """Returns the bytes that are kept for backwards that have not run yet."""
    return sum(buffer.numel() for found in [*_held.values()] if (buffer := found()) is not None)
