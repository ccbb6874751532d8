"""Probes: candidates that did not run, evaluated in the backward for their inner products with the gradient.

Nothing of them is saved by the forward, they update no statistics, and their results are given up state by state. What
there is to do for them is written down once, for all candidates; a decision takes the rows of those that it probes.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from torch import nn

import nas.supernet.native.nodes as nodes
from nas.supernet.native.coefficients import finish, normalise
from nas.supernet.native.forward import Forward
from nas.supernet.native.layout import GRADIENTS, SAVED, SHIFT, Place, Region, Table, within
from nas.supernet.native.records import Draw, Signature, State, Step, Term, Use
from nas.supernet.native.room import Room
from nas.supernet.native.uses import Uses

KEPT = 4
"""Kinds of decision whose probes are kept with a cell."""


class Probes:
    """What there is to do for the probes of every decision of one kind.

    Its tables name states and their gradients by bases of their own, since every decision has them in other places. It
    keeps no module, so that the cell can go.

    Args:
        forward: Of one such decision.
        signature: What such decisions have in common.
        norms: The cell's batch norms, as `signature.training` lists them.
        candidates: What may be probed, by edge.
    """

    def __init__(
        self,
        forward: Forward,
        signature: Signature,
        norms: Sequence[nn.BatchNorm2d],
        candidates: Sequence[Sequence[int]],
    ) -> None:
        room = Room(signature, norms, forward.room.geometry)
        self.candidates, self.results = candidates, Region(GRADIENTS, room.size)
        uses = Uses(forward.cell.name, room, forward.columns, self.results, self.results, probing=True)
        ends = self._build(forward, uses)
        self.noises = uses.noises
        before = len(room.steps)
        room.pack(0, _readers(uses))
        self.kept, self.temporary = room.saved.most // room.size, room.temporary.most // room.size
        self._record(uses, [0, *(end + len(room.steps) - before for end in ends)])
        uses.close()

    def _build(self, forward: Forward, uses: Uses) -> list[int]:
        """Builds the steps, state by state from the last on, and returns their number up to each state's end."""
        room, graph, plan, ends = uses.room, forward.cell.cell, forward.plan, []
        states = {n: _stand_in(s, room.geometry.states + 2 * i) for i, (n, s) in enumerate(forward.states.items())}
        for n, state in reversed(states.items()):
            targets = {e: states[graph.edges[e].target] for e, source in enumerate(plan.sources) if source == n}
            state.uses = [Use(e, k, plan.candidates[e][k], to) for e, to in targets.items() for k in self.candidates[e]]
            self.results.reset()
            uses.run(state)
            _sum_up(room, [term for target in targets.values() for term in target.terms])
            for each in (state, *targets.values()):
                each.terms, each.uses, each.passing, each.levels = [], [], [], []
            ends.append(len(room.steps))
        return ends

    def _record(self, uses: Uses, bounds: Sequence[int]) -> None:
        """Turns what was built into arrays, of numbers, of rows and of tables, and into steps by state."""
        self.tables, steps = uses.room.tables, uses.room.steps
        candidates, places = self.tables.candidates, sorted(step.tables[0] for step in steps)
        self.tables.close()
        self.needed = np.array([k for row in candidates for k in row], np.int64)
        self.starts = np.cumsum([0, *map(len, candidates)])[:-1]
        rows = [rows for _, rows, _ in places]
        self.first_rows = np.cumsum([0, *rows])[:-1]
        self.columns = np.array([columns for _, _, columns in places], np.int64)
        self.widths = np.repeat(self.columns, rows)
        eps = iter([(0.0 if norm is None else norm.eps, 0.0, 1.0) for norm, _ in uses.scalars])
        passes: list[tuple[Step, int, NDArray[np.float64]]] = []
        for step in steps:
            number = places.index(step.tables[0])
            scalars = [next(eps) for _ in range(rows[number])] if step.kernel is normalise else []
            passes.append((step, number, np.array(scalars)))
        self.passes = [passes[start:end] for start, end in pairwise(bounds)]

    def take(self, forward: Forward, region: Region) -> tuple[dict[int, list[Step]], Table, list[Draw]]:
        """Returns a decision's steps by the state that they read, the numbers that come before all tables', and draws.

        Args:
            forward: Of the decision; its states know where their gradients are.
            region: Where there is room; what holds results may be used again after a state's steps.
        """
        chosen = np.zeros(len(forward.plan.sources) * forward.columns, bool)
        for e, candidates in enumerate(forward.signature.probes):
            if forward.states[forward.cell.cell.edges[e].target].wanted:
                chosen[[e * forward.columns + k for k in candidates]] = True
        rows = np.logical_or.reduceat(chosen[self.needed], self.starts)
        numbers = np.repeat(rows, self.widths)
        addresses = self._addresses(forward, region)
        whole: Table = addresses[self.tables.bases[numbers]] + self.tables.offsets[numbers]
        draws = [
            forward.draw((e, k), replace(z, address=int(addresses[SAVED]) + within(z.address)))
            for (e, k), z in self.noises.items()
            if chosen[e * forward.columns + k]
        ]
        counts = np.add.reduceat(rows, self.first_rows, dtype=np.int64)
        starts = np.cumsum([0, *(counts * self.columns)])
        places = [*zip(starts.tolist(), counts.tolist(), self.columns.tolist(), strict=False)]
        found: dict[int, list[Step]] = {}
        for state, passes in zip(reversed(forward.states.values()), self.passes, strict=True):
            found[id(state)] = steps = []
            for step, i, scalars in passes:
                if counts[i]:
                    first = self.first_rows[i]
                    steps.append(_step(step, places[i], scalars[rows[first : first + len(scalars)]]))
        return found, whole, draws

    def _addresses(self, forward: Forward, region: Region) -> Table:
        """Returns where a decision has everything, by number of base."""
        geometry = forward.room.geometry
        forward.room.temporary.reset()
        forward.room.temporary.take(self.temporary)
        found = np.arange(geometry.first + len(geometry.tensors)) << SHIFT
        found[SAVED] = region.take(self.kept)
        mark = region.used
        found[GRADIENTS] = region.take(self.results.most // region.size)
        region.reset(mark)
        for base, state in zip(range(geometry.states, geometry.first, 2), forward.states.values(), strict=True):
            found[base : base + 2] = state.address, state.gradient
        return found


def probes_of(forward: Forward, norms: Sequence[nn.BatchNorm2d], known: dict[Signature, Probes]) -> Probes:
    """Returns the probes for decisions like a forward's, made anew for candidates not seen before.

    Args:
        forward: Of the decision.
        norms: The cell's batch norms.
        known: What was made before.
    """
    decision = forward.signature
    training = tuple((batch, False) for batch, _ in decision.training)
    nothing = replace(decision, paths=(), probes=(), wanted=(), inputs=(), direct=(), training=training, threads=1)
    kind = replace(nothing, values=False, offset=False, factors=False)
    old = known.get(kind)
    asked = [{*path, *probes} for path, probes in zip(decision.paths, decision.probes, strict=True)]
    if old is None or not all(a.issubset(b) for a, b in zip(asked, old.candidates, strict=True)):
        before = old.candidates if old else [()] * len(asked)
        known.pop(kind if old or len(known) < KEPT else next(iter(known)), None)
        known[kind] = Probes(forward, kind, norms, [sorted(a.union(b)) for a, b in zip(asked, before, strict=True)])
    return known[kind]


def _stand_in(state: State, base: int) -> State:
    """Returns a state that is at a base, and its gradient at the next."""
    address, gradient = base << SHIFT, (base + 1) << SHIFT
    return replace(state, address=address, gradient=gradient, terms=[], uses=[], passing=[], levels=[])


def _sum_up(room: Room, terms: Sequence[Term]) -> None:
    """Finds the gradients of the weights of terms."""
    if not terms:
        return
    room.temporary.reset()
    sums, rows = [], []
    for term in terms:
        norm, part, means = term.norm, 0, 0
        if term.row is not None and term.row.stage is not None:
            part, means = term.row.fields["sums"], term.row.fields["part"]
        else:
            part = room.temporary.take(room.batch * 2 * norm.padded)
            sums.append((room.sums(term, part), [norm.weight]))
        rows.append(room.finish(norm, part, 0, 0, norm.weight, False, means))
    if sums:
        room.steps.append(Step(nodes.sum_up, (room.tables.add(*zip(*sums, strict=True)),)))
    room.steps.append(Step(finish, (room.tables.add(rows, [[term.norm.weight] for term in terms]),)))


def _readers(uses: Uses) -> dict[int, list[int]]:
    """Returns, by identity of a stage's first convolutions, the candidates that read their weights."""
    found: dict[int, list[int]] = defaultdict(list)
    for row in uses.rows:
        if row.stage is not None:
            for conv in (row.stage.depthwise, *row.stage.dense[:1]):
                found[id(conv)] += row.candidates
    return found


def _step(step: Step, place: Place, scalars: NDArray[np.float64]) -> Step:
    """Returns a step with fewer rows.

    Args:
        step: With all rows.
        place: Of the others.
        scalars: Of the others, if it needs any.
    """
    if step.kernel is normalise:
        return Step(normalise, (place,), lambda run: (scalars, run.images))
    if step.kernel is finish:
        weights = np.zeros(place[1])  # they scale only what is not wanted
        return Step(finish, (place,), lambda run: (weights, run.values, run.images))
    return Step(step.kernel, (place,), step.arguments)
