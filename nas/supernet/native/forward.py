"""The forward of one cell under one kind of decision, as a list of passes over tables; made once and run many times."""

from collections.abc import Sequence

from torch import nn

import nas.supernet.native.nodes as nodes
from nas.supernet.cell import MixedCell
from nas.supernet.native.geometry import Geometry, channels_of
from nas.supernet.native.layout import FIRST, OUTPUT, SHIFT, Place, images
from nas.supernet.native.records import Draw, Norm, Signature, State, Step, Term, Use, once
from nas.supernet.native.room import Room
from nas.supernet.native.uses import Uses
from nas.supernet.plan import Candidate, Chain, Identity, Noise, plan


class Forward:
    """Builds the forward.

    Args:
        cell: The parameters.
        signature: The kind of decision.
        norms: The cell's batch norms, as `signature.training` lists them.
        geometry: Of the cell.
    """

    def __init__(
        self, cell: MixedCell, signature: Signature, norms: Sequence[nn.BatchNorm2d], geometry: Geometry
    ) -> None:
        self.cell, self.signature, self.plan = cell, signature, plan(cell)
        self.room = Room(signature, norms, geometry)
        self.offsets: list[tuple[int, Norm]] = []
        self.imports: list[tuple[Place, int]] = []
        self.columns = max((len(edge) for edge in self.plan.candidates), default=0)
        self.uses = Uses(cell.name, self.room, self.columns, self.room.saved, self.room.pools)
        self._build()

    def close(self) -> None:
        """Opens the circles of references, which would otherwise wait for Python's collector, a long stop."""
        for state in (*self.raw, *self.states.values()):
            state.terms, state.uses, state.passing, state.levels = [], [], [], []
        self.uses.close()

    def _build(self) -> None:
        signature, graph = self.signature, self.cell.cell
        raw = [self._input(i, shape) for i, shape in enumerate(signature.shapes)]
        self.raw, self.states = raw, {}
        order = [*range(graph.inputs), *graph.order]
        for i, before in enumerate(self.plan.preprocess):
            if isinstance(before, Identity):
                self.states[i] = raw[i]
            else:
                self.states[i] = self._node(before, raw[i])
                raw[i].uses.append(Use(-1, 0, before, self.states[i]))
                self.uses.run(raw[i])
                self._add_up(self.states[i])
        first = self.states[0]
        height, width = (-(-side // self.cell.stride) for side in (first.height, first.width))
        for n in graph.order:
            self.states[n] = self.room.state(self.cell.channels, height, width, self.room.saved)
        paths = signature.paths
        drawn = self._drawn()
        self.uses.factors = {place: i for i, place in enumerate(place for place, dropped in drawn if dropped)}
        for n in order:
            state = self.states[n]
            if n >= graph.inputs:
                if signature.offset:
                    state.terms += [self._offset(e, state) for e in self.plan.in_edges[n] if paths[e]]
                self._add_up(state)
            for e, source in enumerate(self.plan.sources):
                if source == n:
                    target = self.states[graph.edges[e].target]
                    operations = self.plan.candidates[e]
                    state.uses += [Use(e, k, operations[k], target) for k in paths[e]]
            self.uses.run(state)
        self.draws = [self.draw(place, self.uses.noises.get(place), dropped=dropped) for place, dropped in drawn]
        self._export()
        self.room.pack(0)

    def _node(self, candidate: Candidate, source: State) -> State:
        assert isinstance(candidate, Chain)
        height, width, channels = source.height, source.width, source.channels
        for stage in candidate.stages:
            taps, channels = self.room.geometry.taps(stage, height, width), channels_of(stage)
            height, width = taps.out_height, taps.out_width
        return self.room.state(channels, height, width, self.room.saved)

    def _input(self, i: int, shape: Sequence[int]) -> State:
        _, channels, height, width = shape
        base = (FIRST + i) << SHIFT
        if self.signature.direct[i]:
            return State(base, channels * height * width * self.room.size, channels, channels, height, width)
        state = self.room.state(channels, height, width, self.room.saved)
        row = [base, 0, 0, 0, 0, *images(state.address, state.image, state.padded, width)]
        place = self.room.tables.add([[*row, height, width, channels, state.padded, 0]])
        self.imports.append((place, i))
        self.room.steps.append(Step(nodes.copy, (place,)))
        return state

    def _drawn(self) -> list[tuple[tuple[int, int], bool]]:
        """Returns the candidates that draw, in the reference's order, and whether their samples are dropped."""
        found = []
        for e in (e for n in self.cell.cell.order for e in self.plan.in_edges[n]):
            for k in self.signature.paths[e]:
                candidate = self.plan.candidates[e][k]
                dropped = self.signature.factors and not isinstance(candidate, Identity)
                if dropped or isinstance(candidate, Noise):
                    found.append(((e, k), dropped))
        return found

    def draw(self, place: tuple[int, int], z: State | None, *, dropped: bool = False) -> Draw:
        """Returns what is drawn for a candidate, by its edge and number; its output, if it is noise, goes to z."""
        edge, candidate = place
        operation, source = self.plan.candidates[edge][candidate], self.states[self.plan.sources[edge]]
        return Draw(operation if isinstance(operation, Noise) else None, source.shape, z, dropped)

    def _offset(self, edge: int, state: State) -> Term:
        """Returns the term of an edge's offset; its b is written by the run itself."""
        norm = Norm(
            None, state.channels, state.padded, state.pixels, 0, 0, self.room.saved.take(2 * state.padded), False, -1
        )
        self.offsets.append((edge, norm))
        return Term(state, None, norm, edge, 0, None)

    # Nodes and the result

    def _add_up(self, state: State) -> None:
        terms = sorted(state.terms, key=lambda term: term.z is None)
        rows = [
            [term.z.address if term.z else 0, term.z.image if term.z else 0, term.norm.out, term.factor]
            for term in terms
        ]
        node = [state.address, state.image, state.pixels, state.padded, sum(term.z is not None for term in terms)]
        if rows:
            self.room.steps.append(Step(nodes.add_up, (self.room.tables.add([node]), self.room.tables.add(rows))))
        else:
            clear = self.room.tables.add([[state.address, self.room.batch * state.pixels * state.padded]])
            self.room.steps.append(Step(nodes.zero_out, (clear,), once))

    def _export(self) -> None:
        graph, rows = self.cell.cell, []
        outputs = [self.states[n] for n in graph.outputs]
        first, joined = outputs[0], graph.combine == "concatenate"
        self.out_shape = (self.room.batch, first.channels * (len(outputs) if joined else 1), first.height, first.width)
        channels = self.out_shape[1]
        for i, state in enumerate(outputs):
            source = images(state.address, state.image, state.padded, state.width)
            start = (OUTPUT << SHIFT) + (i * state.channels * self.room.size if joined else 0)
            target = images(start, channels * state.pixels * self.room.size, channels, state.width)
            sizes = [state.height, state.width, state.channels, state.channels]
            rows.append([*source, *target, *sizes, int(i > 0 and not joined)])
        self.room.steps.append(Step(nodes.copy, (self.room.tables.add(rows),)))
