"""The room a program works in: memory, addresses and steps, before there is any memory."""

from collections.abc import Sequence

from torch import nn

import nas.supernet.native.nodes as nodes
from nas.supernet.native.coefficients import pack
from nas.supernet.native.geometry import Geometry
from nas.supernet.native.kernels import unit
from nas.supernet.native.layout import FIRST, POOLS, SAVED, SHIFT, TEMPORARY, Region, Tables
from nas.supernet.native.packing import Packing
from nas.supernet.native.records import Norm, Signature, State, Step, once


class Room:
    """What the forward and the backward of a program share.

    Args:
        signature: The kind of decision.
        norms: The cell's batch norms, as `signature.training` lists them.
        geometry: Of the cell.

    Attributes:
        saved: Memory that is kept for the backward.
        temporary: Memory of one of them.
        pools: Memory of one of them, for the results of pools.
        steps, tables: Of the one that is built.
        tensors: Modules and names of the tensors whose addresses are needed.
    """

    def __init__(self, signature: Signature, norms: Sequence[nn.BatchNorm2d], geometry: Geometry) -> None:
        self.batch, self.size, self.inputs = signature.shapes[0][0], signature.size, len(signature.shapes)
        self.unit = unit(self.size)
        self.saved, self.temporary = Region(SAVED, self.size), Region(TEMPORARY, self.size)
        self.pools = Region(POOLS, self.size)
        self.geometry, self.tables = geometry, Tables()
        self.steps: list[Step] = []
        self.tensors: list[tuple[nn.Module, str]] = []
        self.modes = dict(zip(map(id, norms), signature.training, strict=True))
        self.packing = Packing(self.saved, self.base, self.pad, geometry.convolutions, transpose=signature.gradient)
        self._bases: dict[tuple[int, str], int] = {}

    def close(self) -> None:
        """Lets go of what refers to this object."""
        del self.packing

    def pad(self, channels: int) -> int:
        """Returns the channels of whole vectors, and of whole blocks of the kernels."""
        return -(-channels // self.unit) * self.unit

    def base(self, module: nn.Module, name: str) -> int:
        """Returns the address of a module's parameter or buffer; 0 if it has none of that name."""
        key = (id(module), name)
        found = self._bases.get(key)
        if found is None:
            found = 0
            if getattr(module, name) is not None:
                found = (FIRST + 2 * self.inputs + len(self.tensors)) << SHIFT
                self.tensors.append((module, name))  # the tensor itself may be replaced
            self._bases[key] = found
        return found

    def state(self, channels: int, height: int, width: int, region: Region) -> State:
        """Returns room for images."""
        padded = self.pad(channels)
        numbers = padded * height * width
        return State(region.take(self.batch * numbers), numbers * self.size, channels, padded, height, width)

    def norm(self, module: nn.BatchNorm2d | None, z: State, weight: int) -> Norm:
        """Returns the coefficients of a result, before they are known."""
        batch = module is not None and self.modes[id(module)][0]
        if batch and self.batch * z.pixels == 1:
            size = [self.batch, z.channels, z.height, z.width]
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {size}")
        if module is not None and module.num_features != z.channels:
            raise RuntimeError(f"a batch norm of {module.num_features} channels reads {z.channels}")
        mean, inverse = (self.saved.take(z.padded), self.saved.take(z.padded)) if module is not None else (0, 0)
        out = self.saved.take(2 * z.padded)
        return Norm(module, z.channels, z.padded, z.pixels, mean, inverse, out, batch, weight)

    def pack(self, position: int, known: set[int]) -> None:
        """Packs, as step number `position`, the weights that are not known yet."""
        rows, clear = self.packing.new(known)
        if rows:
            self.steps.insert(position, Step(pack, (self.tables.add(rows),), once))
        if clear:
            self.steps.insert(position, Step(nodes.zero_out, (self.tables.add(clear),), once))
