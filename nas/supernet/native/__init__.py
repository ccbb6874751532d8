"""Kernels of our own for CPUs, written in Python and compiled by numba on their first use."""

from nas.supernet.native.execution import run_cell as run_cell
from nas.supernet.native.memory import held as held
