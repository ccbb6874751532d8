"""The engine for CPUs: kernels of our own, written in Python and compiled by numba on their first use.

A decision on a cell becomes a `program` once: memory is laid out, and what there is to do is written as tables of
addresses and sizes (`forward`, `gradients`, `probes`, in a `room`). Running it fills in the addresses of the day and
hands the tables, pass by pass, to compiled functions (`stages`, `nodes`, `coefficients`), which work image by image, so
that an image stays in the cache, on `kernels` and `images`, whose inner loops keep results in registers (`vectors`).

What is gained, and where: one ReLU and one padded copy for all edges that leave a state; pools once per state; batch
norm folded into the sum that makes a node, with an analytic backward; results of depthwise convolutions and of pools
computed again, not kept; memory that is used again (`memory`); tables of probes that fit every decision (`probes`);
nothing computed that a step throws away. The autograd graph has one node per cell.
"""

from nas.supernet.native.execution import run_cell as run_cell
from nas.supernet.native.memory import held as held
