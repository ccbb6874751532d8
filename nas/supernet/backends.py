"""Ways to run a cell: the same results from each, at different speeds."""

import logging
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from nas.selection import Selection
from nas.supernet import reference
from nas.supernet.cell import MixedCell
from nas.supernet.network import RunCell

logger = logging.getLogger(__name__)

Backend = Literal["auto", "reference", "aten", "native"]
Precision = Literal["float32", "bfloat16"]


def choose(backend: str, device: torch.device, precision: str = "float32") -> RunCell:
    """Returns the execution of cells called `backend`; each has `reference.run_cell`'s signature and parameters.

    Args:
        backend: `reference` is plain, `aten` is made of stock torch operations, `native` has kernels of its own for
            CPUs, `auto` is the fastest: `native` on a CPU, `reference` elsewhere. Where `native` cannot run, it is
            `aten`.
        device: Where the network is.
        precision: `bfloat16` rounds the factors of dense convolutions to 8 bits (a relative error of up to 2^-9 each),
            and needs `aten`; depthwise convolutions, statistics and sums stay in float32.
    """
    plain = backend == "auto" and device.type != "cpu" and precision == "float32"
    if backend == "reference" or plain:
        return reference.run_cell
    if backend == "aten" or device.type != "cpu" or precision == "bfloat16":
        from nas.supernet import aten

        return _in_bfloat16 if precision == "bfloat16" else aten.run_cell
    try:
        from nas.supernet import native
    except ImportError as error:  # numba has no build for every platform
        logger.warning("engine.backend=native is not available (%s); aten runs instead", error)
        return choose("aten", device)
    return native.run_cell


def _in_bfloat16(cell: MixedCell, inputs: Sequence[Tensor], selection: Selection) -> Tensor:
    from nas.supernet import aten

    with torch.autocast(inputs[0].device.type, torch.bfloat16):
        return aten.run_cell(cell, inputs, selection)
