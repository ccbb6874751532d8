"""Ways to run a cell: the same results from each, at different speeds."""

from typing import Literal, get_args

import torch

from nas.supernet import reference
from nas.supernet.network import RunCell

Backend = Literal["auto", "reference", "aten", "native"]
BACKENDS: tuple[str, ...] = get_args(Backend)


def choose(backend: str, device: torch.device) -> RunCell:
    """Returns the execution of cells called `backend`; each has `reference.run_cell`'s signature and parameters.

    Args:
        backend: `reference` is plain, `aten` is made of stock torch operations, `native` has kernels of its own for
            CPUs, `auto` is `native` on a CPU and `aten` elsewhere. Where `native` cannot run, it is `aten`.
        device: Where the network is.
    """
    if backend == "reference":
        return reference.run_cell
    if backend == "aten" or device.type != "cpu":
        from nas.supernet import aten

        return aten.run_cell
    from nas.supernet import native

    return native.run_cell
