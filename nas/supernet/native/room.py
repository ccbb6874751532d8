"""The room a program works in: memory, addresses and steps, before there is any memory."""

from collections.abc import Mapping, Sequence

from torch import nn

import nas.supernet.native.nodes as nodes
from nas.supernet.native.coefficients import pack
from nas.supernet.native.geometry import Geometry
from nas.supernet.native.kernels import unit
from nas.supernet.native.layout import POOLS, SAVED, TEMPORARY, Region, Tables
from nas.supernet.native.packing import Packing
from nas.supernet.native.records import Norm, Signature, State, Step, Term, once


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
    """

    def __init__(self, signature: Signature, norms: Sequence[nn.BatchNorm2d], geometry: Geometry) -> None:
        self.batch, self.size = signature.shapes[0][0], signature.size
        self.unit = unit(self.size)
        self.saved, self.temporary = Region(SAVED, self.size), Region(TEMPORARY, self.size)
        self.pools = Region(POOLS, self.size)
        self.geometry, self.tables = geometry, Tables()
        self.steps: list[Step] = []
        self.modes = dict(zip(map(id, norms), signature.training, strict=True))
        self.base = geometry.tensor
        self.packing = Packing(self.saved, self.base, self.pad, geometry.convolutions, transpose=signature.gradient)

    def close(self) -> None:
        """Lets go of what refers to this object."""
        del self.packing

    def pad(self, channels: int) -> int:
        """Returns the channels of whole vectors, and of whole blocks of the kernels."""
        return -(-channels // self.unit) * self.unit

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

    def sums(self, term: Term, part: int) -> list[int]:
        """Returns a row of `nodes.sum_up`, whose sums go to `part`."""
        target, z, norm = term.target, term.z, term.norm
        source = [z.address, z.image] if z else [target.gradient, target.image]
        image = 2 * norm.padded * self.size
        return [target.gradient, target.image, *source, norm.mean, norm.pixels, norm.padded, part, image]

    def finish(
        self, norm: Norm, part: int, factor: int, out: int, value: int, constant: bool, means: int = 0
    ) -> list[int]:
        """Returns a row of `coefficients.finish` without the gradients of the norm's parameters."""
        scale, shift = (self.base(norm.module, name) if norm.module else 0 for name in ("weight", "bias"))
        return [
            part, 2 * norm.padded * self.size, norm.padded, norm.channels, norm.mean, norm.inverse, scale, shift,
            norm.pixels, factor, int(norm.batch), out, 0, 0, value, int(constant), means,
        ]  # fmt: skip

    def pack(self, position: int, candidates: Mapping[int, Sequence[int]] | None = None) -> None:
        """Packs, as step number `position`, all weights.

        Args:
            position: Of the step.
            candidates: By identity of a convolution, the candidates that need it.
        """
        rows, clear = self.packing.all()
        for kernel, parts in ((pack, rows), (nodes.zero_out, clear)):
            if parts:
                of = [candidates[key] for key, _ in parts] if candidates else []
                self.steps.insert(position, Step(kernel, (self.tables.add([row for _, row in parts], of),), once))
