"""The cell in stock torch operations: the reference's results, on any device, with less work and memory.

Everything is channels-last. A node is one autograd function of the states it reads; activations and pools are shared by
all edges that leave a state. Under autocast only dense convolutions run in the lower precision.
"""

from collections.abc import Hashable, Sequence
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from nas.ops import kept, zeros
from nas.selection import Selection
from nas.supernet.aten.node import Node
from nas.supernet.aten.probes import Shared, pool_key, pool_of, probe
from nas.supernet.aten.stages import parameters
from nas.supernet.aten.terms import Job, Term
from nas.supernet.cell import MixedCell
from nas.supernet.layout import arranged
from nas.supernet.parts import run_in_parts
from nas.supernet.plan import Candidate, Chain, Identity, Nothing, Opaque, Pool, plan


def run_cell(cell: MixedCell, inputs: Sequence[Tensor], selection: Selection) -> Tensor:
    """Runs one cell under one decision, as `reference.run_cell` does; channels-last, in float32 under autocast."""
    if cell.partial > 1:
        return run_in_parts(run_cell, cell, inputs, selection)
    run = _Run(cell, selection, inputs[0].device.type)
    for i, x in enumerate(inputs):
        run.read_input(i, x)
    for node in cell.cell.order:
        run.add_node(node)
    run.shared.clear()  # the graph needs none of it
    outputs = [run.states[node] for node in cell.cell.outputs]
    return torch.cat(outputs, dim=1) if cell.cell.combine == "concatenate" else reduce(add, outputs)


class _Sum:
    """A node in the making: its terms, and the tensors they read."""

    def __init__(self) -> None:
        self.terms: list[Term] = []
        self.tensors: list[Tensor] = []
        self.positions: dict[Hashable, int] = {}

    def read(self, key: Hashable, x: Tensor) -> int:
        """Returns the position of the tensor called `key`."""
        if key not in self.positions:
            self.positions[key] = len(self.tensors)
            self.tensors.append(x)
        return self.positions[key]

    def add(
        self,
        place: tuple[int, int],
        key: Hashable,
        x: Tensor,
        norm: nn.BatchNorm2d | None = None,
        of: Chain | None = None,
    ) -> Term:
        """Adds a candidate: a tensor, perhaps normalised, or a chain that reads it."""
        read, first = self.read(key, x), len(self.tensors)
        stages = of.stages if of else ()
        self.tensors += parameters(stages, norm)
        term = Term(stages, norm, bool(of and of.residual), *place, read, first, len(self.tensors), key, None)
        self.terms.append(term)
        return term


class _Run:
    """The states of one cell while it runs."""

    def __init__(self, cell: MixedCell, selection: Selection, device: str) -> None:
        self.cell, self.selection, self.plan = cell, selection, plan(cell)
        self.half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        self.dropping = cell.training and cell.drop_path > 0
        self.states: dict[int, Tensor] = {}
        self.shared: dict[Hashable, Any] = {}
        self.probed: dict[int, Shared] = {}

    def read_input(self, i: int, x: Tensor) -> None:
        """Makes input i a state."""
        x = arranged(x.to(torch.float32 if self.half else x.dtype))
        total = _Sum()
        candidate = self.plan.preprocess[i]
        known = Opaque(self.cell.preprocess[i]) if isinstance(candidate, Nothing) else candidate
        self._add(total, known, ("input", i), x, (0, 0))
        self.states[i] = self._run(total, None, None)

    def add_node(self, node: int) -> None:
        """Computes a state from those before it."""
        total, selection = _Sum(), self.selection
        edges = [e for e in self.plan.in_edges[node] if selection.paths[e]]
        for e in edges:
            source = self.plan.sources[e]
            for k in selection.paths[e]:
                term = self._add(total, self.plan.candidates[e][k], source, self.states[source], (e, k))
                if self.dropping and not isinstance(self.cell.candidates[e][k], nn.Identity):
                    mask = kept(self.states[0], self.cell.drop_path)
                    if term is not None:
                        term.keep = mask.div_(1.0 - self.cell.drop_path)
        if not total.terms:
            blank = arranged(zeros(self.states[0], self.cell.channels, self.cell.stride))
            if not edges or (selection.weights is None and selection.offset is None):
                self.states[node] = blank
                return
            total.add((edges[0], selection.paths[edges[0]][0]), "blank", blank)
        self.states[node] = self._run(total, selection.weights, selection.offset, edges)

    def _add(
        self, total: _Sum, candidate: Candidate, source: Hashable, x: Tensor, place: tuple[int, int]
    ) -> Term | None:
        """Adds a candidate that reads state `source` to a node."""
        if isinstance(candidate, Nothing):
            return None
        if isinstance(candidate, Identity):
            return total.add(place, source, x)
        if isinstance(candidate, Chain):
            return total.add(place, source, x, candidate.stages[-1].norm, candidate)
        if isinstance(candidate, Pool):
            key = (source, pool_key(candidate))
            if key not in self.shared:
                self.shared[key] = pool_of(candidate, x)
            return total.add(place, key, self.shared[key], candidate.norm)
        y = arranged(candidate.module(arranged(x)).to(x.dtype))
        return total.add(place, (source, *place), y)

    def _run(self, total: _Sum, weights: Tensor | None, offset: Tensor | None, edges: Sequence[int] = ()) -> Tensor:
        """Returns the sum of a node's terms."""
        terms = total.terms
        record = torch.is_grad_enabled()
        probes = []
        if record and weights is not None and weights.requires_grad and self.selection.probes:
            for e in edges:
                found = [(k, probe(self.plan.candidates[e][k], self.half)) for k in self.selection.probes[e]]
                source, run = self.plan.sources[e], [(k, inner_of) for k, inner_of in found if inner_of]
                if run:
                    shared = self.probed.setdefault(source, Shared())
                    shared.uses = shared.left = shared.uses + 1
                    probes.append((e, total.read(source, self.states[source]), shared, run))
        given = (weights, offset, *total.tensors)
        first = terms[0]
        alone = len(given) == 3 and weights is None and offset is None and len(terms) == 1
        if alone and first.keep is None and not first.stages and first.norm is None:
            return total.tensors[0]
        record = record and any(value is not None and value.requires_grad for value in given)
        job = Job(terms, probes, list(edges), self.shared, self.half, record)
        y: Tensor = Node.apply(job, *given)
        return y
