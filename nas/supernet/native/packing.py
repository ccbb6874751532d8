"""Weights as the kernels read them: laid out anew in every forward, since parameters move and change."""

from collections.abc import Callable, Sequence

from torch import nn

from nas.supernet.native.layout import Region


class Packing:
    """Places of the packed weights of a program.

    Args:
        region: Where they lie.
        address: Returns the address of a module's parameter.
        pad: Returns the channels of whole vectors.
        shapes: What `shape_of` found for the cell's convolutions, kept from program to program.

    Attributes:
        transpose: Whether the transposes that a backward needs are packed too.
    """

    def __init__(
        self,
        region: Region,
        address: Callable[[nn.Module, str], int],
        pad: Callable[[int], int],
        shapes: dict[int, tuple[list[list[int]], int]],
        *,
        transpose: bool,
    ) -> None:
        self.region, self.address, self.pad, self.shapes, self.transpose = region, address, pad, shapes, transpose
        self.rows: dict[int, list[list[int]]] = {}
        self.places: dict[int, tuple[int, int, int]] = {}

    def place(self, convs: Sequence[nn.Conv2d], *, depthwise: bool) -> tuple[int, int]:
        """Returns the addresses of a weight as the kernels read it, and of its transpose (0: there is none).

        Args:
            convs: Whose outputs lie side by side.
            depthwise: Whether every channel is convolved by itself.
        """
        key = id(convs[0])
        if key not in self.rows:
            if key not in self.shapes:
                self.shapes[key] = shape_of(convs, self.pad, depthwise)
            shapes, numbers = self.shapes[key]
            address = self.region.take(numbers)
            transposed = self.region.take(numbers) if self.transpose and not depthwise else 0
            self.places[key] = (address, transposed, numbers)
            self.rows[key] = [
                [self.address(conv, "weight"), *shape, address, transposed, int(depthwise)]
                for conv, shape in zip(convs, shapes, strict=True)
            ]
        return self.places[key][:2]

    def of(self, conv: nn.Conv2d) -> list[list[int]]:
        """Returns the rows, as `coefficients.pack` reads them, of a convolution and of those at its side."""
        return self.rows[id(conv)]

    def all(self) -> tuple[list[tuple[int, list[int]]], list[tuple[int, list[int]]]]:
        """Returns all rows, and the stretches of memory to set to zero before, each with the first convolution's id."""
        clear = [
            (key, [place, numbers])
            for key, (*places, numbers) in self.places.items()
            for place in places
            if place and self._gaps(key)
        ]
        return [(key, row) for key, rows in self.rows.items() for row in rows], clear

    def _gaps(self, key: int) -> bool:
        """Returns whether padding leaves numbers that no weight fills."""
        rows = self.rows[key]
        _, inputs, _, _, inner, outer = rows[0][5:11]
        return len(rows) > 1 or inputs != inner or rows[0][5] != outer


def shape_of(convs: Sequence[nn.Conv2d], pad: Callable[[int], int], depthwise: bool) -> tuple[list[list[int]], int]:
    """Returns entries 1 to 12 of the rows of `coefficients.pack`, and the numbers of a packed weight."""
    inner = 1 if depthwise else pad(convs[0].in_channels)
    outer = pad(sum(conv.out_channels for conv in convs))
    rows, output, tap = [], 0, 0
    for conv in convs:
        o, i, h, w = conv.weight.shape
        rows.append([i * h * w, h * w, w, 1, o, i, h, w, inner, outer, output, tap])
        output, tap = output + o, tap + h * w
    return rows, tap * inner * outer
