"""A cell's forward and backward under one kind of decision, ready to run."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import nas.supernet.native.memory as memory
from nas.supernet.cell import MixedCell
from nas.supernet.native.forward import Forward
from nas.supernet.native.geometry import Geometry
from nas.supernet.native.gradients import Backward
from nas.supernet.native.layout import CONSTANTS, FIRST, POOLS, TEMPORARY, WORK, Table, Tables, within
from nas.supernet.native.probes import Probes, probes_of
from nas.supernet.native.records import Run, Signature, Step


class Program:
    """A forward and its backward, with the lists of pixels and the memory of threads that they need.

    Args:
        cell: The parameters.
        signature: The kind of decision.
        parameters: The cell's parameters, in the order of `signature.wanted`.
        norms: Its batch norms, in the order of `signature.training`.
        geometry: Its geometry.
        probes: What is known of its probes.
    """

    def __init__(
        self,
        cell: MixedCell,
        signature: Signature,
        parameters: Sequence[nn.Parameter],
        norms: Sequence[nn.BatchNorm2d],
        geometry: Geometry,
        probes: dict[Signature, Probes],
    ) -> None:
        forward = Forward(cell, signature, norms, geometry)
        self.signature, self.geometry, self.tables, self.steps = (
            signature,
            geometry,
            forward.room.tables,
            forward.room.steps,
        )
        self.tables.close()
        self.backward: Tables | None = None
        if signature.gradient:
            back = Backward(forward, parameters, probes_of(forward, norms, probes) if signature.probes else None)
            self.backward, self.backward_steps, self.back_size = back.tables, back.steps, back.region.most
            self.backward.close()
            self.learned = [(p.shape, id(p) in back.touched) for p in back.wanted]
            self.probe_draws = back.draws
            self.reads = [state.wanted for state in forward.raw]
        self.out_shape, self.imports = forward.out_shape, forward.imports
        self.saved_size, self.pools_start = forward.room.saved.most, forward.room.temporary.most
        self.temporary_size = self.pools_start + forward.room.pools.most
        self.draws = forward.draws
        self.offsets = [(e, within(norm.out), norm.padded, norm.channels) for e, norm in forward.offsets]
        self.edges, self.columns = len(forward.plan.sources), forward.columns
        forward.close()
        self.work = geometry.work()
        self.thread_size = sum(self.work.values())
        self.norms = [module for module, _ in forward.uses.scalars]
        self.weights = np.array([index for _, index in forward.uses.scalars], np.int64)
        self.eps = np.array([0.0 if norm is None else norm.eps for norm in self.norms])
        single = signature.size == 4
        self.dtype = torch.float32 if single else torch.float64
        self.zero: Any = np.float32(0) if single else np.float64(0)

    def run(self, inputs: Sequence[Tensor], given: dict[int, Tensor], weights: NDArray[np.float64]) -> None:
        """Runs the forward.

        Args:
            inputs: Of the cell.
            given: Memory, by number of base.
            weights: One number for every candidate of every edge, and a one.
        """
        work = memory.take(self.signature.threads * self.thread_size)
        tables = self.tables.resolve(self._bases(self.tables, inputs, given, work))
        for (start, _, _), i in self.imports:
            x = inputs[i]
            tables[start + 1 : start + 5] = [x.stride(0) * x.element_size(), x.stride(1), x.stride(2), x.stride(3)]
        self._execute(self.steps, tables, self._run(weights))
        memory.give(work)

    def run_backward(
        self, inputs: Sequence[Tensor], given: dict[int, Tensor], weights: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Runs the backward and returns the gradients of `weights` (without the one), then those of the offsets."""
        assert self.backward is not None
        work = memory.take(self.signature.threads * self.thread_size)
        tables = self.backward.resolve(self._bases(self.backward, inputs, given, work))
        run = self._run(weights)
        self._execute(self.backward_steps, tables, run)
        memory.give(work)
        return run.values

    def _run(self, weights: NDArray[np.float64]) -> Run:
        momenta = [-1.0 if norm is None or norm.momentum is None else norm.momentum for norm in self.norms]
        scalars = np.stack([self.eps, np.array(momenta), weights[self.weights]], 1)
        values = np.zeros(self.edges * self.columns + self.edges)
        return Run(self.signature.shapes[0][0], self.signature.threads, scalars, weights, values)

    def _bases(self, tables: Tables, inputs: Sequence[Tensor], given: dict[int, Tensor], work: Tensor) -> Table:
        """Returns the addresses of everything that tables name, by number of base."""
        tensors = self.geometry.tensors
        bases = np.zeros(self.geometry.first + len(tensors), np.int64)
        for base, tensor in given.items():
            bases[base] = tensor.data_ptr()
        bases[POOLS] = given[TEMPORARY].data_ptr() + self.pools_start
        start = work.data_ptr()
        for name, size in self.work.items():
            bases[WORK[name]] = start
            start += size
        bases[CONSTANTS] = self.geometry.memory().data_ptr()
        bases[FIRST : FIRST + len(inputs)] = [x.data_ptr() for x in inputs]
        used = [base for base in tables.used if base in tensors]
        bases[used] = [owner[name].data_ptr() for owner, name in map(tensors.__getitem__, used)]
        return bases

    def _execute(self, steps: Sequence[Step], tables: Table, run: Run) -> None:
        for step in steps:
            views = [tables[start : start + rows * width].reshape(rows, width) for start, rows, width in step.tables]
            if step.arguments is not None:
                step.kernel(*views, *step.arguments(run), self.zero)
            elif run.threads == 1:
                step.kernel(*views, 0, run.images, 0, 0, self.zero)
            else:
                self._share(step, views, run)

    def _share(self, step: Step, views: Sequence[Table], run: Run) -> None:
        """Runs a kernel on all threads, each with its own images; this thread takes the first."""
        bounds = [run.images * i // run.threads for i in range(run.threads + 1)]
        parts = [(bounds[i], bounds[i + 1], i, i * self.thread_size, self.zero) for i in range(run.threads)]
        pool = _pool(run.threads - 1)
        waiting = [pool.submit(step.kernel, *views, *part) for part in parts[1:]]
        step.kernel(*views, *parts[0])
        for future in waiting:
            future.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="nas-native")
