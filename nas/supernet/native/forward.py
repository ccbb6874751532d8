"""The forward of one cell under one kind of decision, as a list of passes over tables; made once and run many times."""

from collections.abc import Sequence

from torch import nn

import nas.supernet.native.nodes as nodes
import nas.supernet.native.stages as stages
from nas.supernet.cell import MixedCell
from nas.supernet.native.coefficients import normalise
from nas.supernet.native.geometry import Geometry, channels_of
from nas.supernet.native.layout import FACTORS, FIRST, OUTPUT, SHIFT, Place, Region, images
from nas.supernet.native.records import Norm, Row, Signature, State, Step, Term, Use, once, parts_of_use
from nas.supernet.native.room import Room
from nas.supernet.plan import Candidate, Chain, Identity, Nothing, Pool, Stage, plan


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
        self.scalars: list[tuple[nn.BatchNorm2d | None, int]] = []
        self.offsets: list[tuple[int, Norm]] = []
        self.imports: list[tuple[Place, int]] = []
        self.rows: list[Row] = []
        self.factor_count = 0
        self.columns = max((len(edge) for edge in self.plan.candidates), default=0)
        self._build()

    def close(self) -> None:
        """Opens the circles of references, which would otherwise wait for Python's collector, a long stop."""
        for state in (*self.raw, *self.states.values()):
            state.terms, state.uses, state.passing, state.levels = [], [], [], []
        for row in self.rows:
            row.previous = row.following = None
            row.terms = []
        self.room.close()

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
                self.run_uses(raw[i])
                self._add_up(self.states[i])
        first = self.states[0]
        height, width = (-(-side // self.cell.stride) for side in (first.height, first.width))
        for n in graph.order:
            self.states[n] = self.room.state(self.cell.channels, height, width, self.room.saved)
        paths = signature.paths
        self.factors = self._factors()
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
            self.run_uses(state)
        self._export()
        self.room.pack(0, set())

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

    def _factors(self) -> dict[tuple[int, int], int]:
        """Returns the number of every candidate whose output is dropped at times, in the reference's order of draws."""
        if not self.signature.factors:
            return {}
        found: dict[tuple[int, int], int] = {}
        for n in self.cell.cell.order:
            for e in self.plan.in_edges[n]:
                for k in self.signature.paths[e]:
                    if not isinstance(self.plan.candidates[e][k], Identity):
                        found[e, k] = len(found)
        self.factor_count = len(found)
        return found

    # What reads a state

    def run_uses(self, state: State, *, probing: bool = False, region: Region | None = None) -> None:
        """Runs everything that reads a state, level by level, and gives each target its terms."""
        region, pools = region or self.room.saved, region or self.room.pools
        shared: dict[tuple[object, ...], Row] = {}
        pending: list[tuple[Use, int, State, Row | None]] = []
        free: list[Term] = []
        state.uses = [part for use in state.uses for part in parts_of_use(use)]
        for use in state.uses:
            operation = use.operation
            if isinstance(operation, Identity):
                free.append(self._pass(use, state))
            elif isinstance(operation, Chain):
                pending.append((use, 0, state, None))
                if operation.residual:
                    free.append(self._pass(use, state))
            elif isinstance(operation, Pool):
                key = (operation.kind, operation.kernel, operation.stride, operation.padding)
                if key not in shared:
                    shared[key] = self._pool(operation, state, pools)
                row = shared[key]
                free.append(self._term(use, row.result, operation.norm, row))
            else:
                assert isinstance(operation, Nothing)
        while pending or free or shared:
            rows = list(shared.values())
            waiting: list[tuple[Use, int, State, Row | None]] = []
            for use, depth, source, previous in pending:
                assert isinstance(use.operation, Chain)
                stage = use.operation.stages[depth]
                row = self._stage(stage, source, previous, region)
                rows.append(row)
                if depth + 1 < len(use.operation.stages):
                    row.norm = self.room.norm(stage.norm, row.result, -1)
                    waiting.append((use, depth + 1, row.result, row))
                else:
                    free.append(self._term(use, row.result, stage.norm, row))
            rows.sort(key=lambda row: (row.source.address, row.fields["maximum"], row.fields["act"]))
            self.room.temporary.reset()
            self._run_level(rows, free, probing)
            if not probing:
                state.levels.append(rows)
            for term in free:
                term.target.terms.append(term)
            pending, free, shared = waiting, [], {}

    def _run_level(self, rows: list[Row], terms: list[Term], probing: bool) -> None:
        groups: dict[tuple[int, ...], list[Row]] = {}
        for made in rows:
            groups.setdefault(made.group, []).append(made)
        for group in groups.values():
            self._place(group)
        norms = [(row.norm, row) for row in rows if row.norm is not None] + [(term.norm, term.row) for term in terms]
        for norm, row in norms:
            if row is not None and norm.batch and not row.fields["part"]:
                row.fields["part"] = self.room.temporary.take(self.room.batch * 2 * row.result.padded)
                row.fields["part_image"] = 2 * row.result.padded * self.room.size
        if rows:
            table = self.room.tables.add([stages.in_order(row.fields) for row in rows])
            self.room.steps.append(Step(stages.forward, (table,)))
        if not norms:
            return
        table = self.room.tables.add([self._norm_row(norm, row, probing) for norm, row in norms])
        start = len(self.scalars)
        self.scalars += [(norm.module, norm.weight) for norm, _ in norms]
        part = slice(start, len(self.scalars))
        self.room.steps.append(Step(normalise, (table,), lambda run: (run.scalars[part], run.images)))

    def _place(self, group: Sequence[Row]) -> None:
        """Fills in shapes and addresses of rows that share a padded copy of their input."""
        margin = max(row.taps.margin for row in group)
        for row in group:
            source, result, fields = row.source, row.result, row.fields
            fields |= self.room.geometry.fields(row.taps, source.padded, result.padded, margin, fields["maximum"])
            fields["source"], fields["source_image"] = source.address, source.image
            fields["z"], fields["z_image"] = result.address, result.image
        group[0].fields["new"] = group[-1].fields["last"] = 1

    def _norm_row(self, norm: Norm, row: Row | None, probing: bool) -> list[int]:
        part, part_image = (row.fields["part"], row.fields["part_image"]) if row and norm.batch else (0, 0)
        module = norm.module
        if module is None:
            return [0, 0, norm.pixels, norm.channels, norm.padded, 0, 0, 0, 0, 0, 0, 0, norm.out]
        update = self.room.modes[id(module)][1] and not probing
        kept = update or not norm.batch
        running = [self.room.base(module, name) if kept else 0 for name in ("running_mean", "running_var")]
        return [
            part, part_image, norm.pixels, norm.channels, norm.padded, self.room.base(module, "weight"),
            self.room.base(module, "bias"), *running, self.room.base(module, "num_batches_tracked") if update else 0,
            norm.mean, norm.inverse, norm.out,
        ]  # fmt: skip

    def _term(self, use: Use, z: State, module: nn.BatchNorm2d | None, row: Row | None) -> Term:
        weight = use.edge * self.columns + use.candidate if use.edge >= 0 else -1
        number = self.factors.get((use.edge, use.candidate)) if use.edge >= 0 else None
        factor = 0 if number is None else (FACTORS << SHIFT) + number * self.room.batch * self.room.size
        if z.shape != use.target.shape:
            raise RuntimeError(f"cell {self.cell.name!r}: a candidate gives {z.shape}, its node has {use.target.shape}")
        term = Term(use.target, z, self.room.norm(module, z, weight), use.edge, factor, row)
        if row is not None:
            row.terms.append(term)
        return term

    def _pass(self, use: Use, state: State) -> Term:
        """Returns the term of an input that is added as it is."""
        term = self._term(use, state, None, None)
        state.passing.append(term)
        return term

    def _offset(self, edge: int, state: State) -> Term:
        """Returns the term of an edge's offset; its b is written by the run itself."""
        norm = Norm(
            None, state.channels, state.padded, state.pixels, 0, 0, self.room.saved.take(2 * state.padded), False, -1
        )
        self.offsets.append((edge, norm))
        return Term(state, None, norm, edge, 0, None)

    def _stage(self, stage: Stage, source: State, previous: Row | None, region: Region) -> Row:
        reads = (stage.depthwise or stage.dense[0]).in_channels
        if reads != source.channels:
            raise RuntimeError(f"cell {self.cell.name!r}: a convolution of {reads} channels reads {source.channels}")
        taps = self.room.geometry.taps(stage, source.height, source.width)
        result = self.room.state(channels_of(stage), taps.out_height, taps.out_width, region)
        fields = dict.fromkeys(stages.STAGE, 0)
        fields["act"] = ("none", "relu", "relu6").index(stage.activation)
        if previous is not None and previous.norm is not None:
            fields["coefficients"] = previous.norm.out
        if stage.depthwise is not None:
            fields["depthwise"], _ = self.room.packing.place((stage.depthwise,), depthwise=True)
        if stage.average is not None:
            fields["depthwise"] = self.room.geometry.ones(len(taps.offsets) * source.padded)
            fields["scale"] = self.room.geometry.shares(taps)
        if stage.dense:
            fields["dense"], fields["dense_t"] = self.room.packing.place(stage.dense, depthwise=False)
        row = Row(fields, stage, source, result, None, taps, previous)
        self.rows.append(row)
        if previous is not None:
            previous.following = row
        return row

    def _pool(self, pool: Pool, source: State, region: Region) -> Row:
        taps = self.room.geometry.taps(pool, source.height, source.width)
        fields = dict.fromkeys(stages.STAGE, 0)
        if pool.kind == "max":
            fields["maximum"] = 1
        else:  # a depthwise convolution with ones
            fields["depthwise"] = self.room.geometry.ones(len(taps.offsets) * source.padded)
            fields["scale"] = self.room.geometry.shares(taps)
        return Row(
            fields, None, source, self.room.state(source.channels, taps.out_height, taps.out_width, region), None, taps
        )

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
