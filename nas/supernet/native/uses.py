"""What reads the states of a cell: stages, pools and identities, level by level, with the terms they give to nodes."""

from collections.abc import Mapping, Sequence

from torch import nn

import nas.supernet.native.stages as stages
from nas.supernet.native.coefficients import normalise
from nas.supernet.native.geometry import channels_of
from nas.supernet.native.layout import FACTORS, SHIFT, Region
from nas.supernet.native.records import Norm, Row, State, Step, Term, Use, parts_of_use
from nas.supernet.native.room import Room
from nas.supernet.plan import Chain, Identity, Noise, Nothing, Pool, Stage


class Uses:
    """Builds what reads states.

    Args:
        name: Of the cell.
        room: Where it works.
        columns: Candidates of an edge, the most there are.
        results: Memory for the results of stages.
        pools: Memory for the results of pools.
        probing: Whether of chains only the sums with the nodes' gradients are wanted.

    Attributes:
        factors: Of every candidate whose output is dropped at times, the number.
        noises: Where the output of every candidate goes that is noise.
        scalars: Of every batch norm in order, the module (None: there is none) and the index of the weight.
        rows: All stages and pools.
    """

    def __init__(
        self, name: str, room: Room, columns: int, results: Region, pools: Region, *, probing: bool = False
    ) -> None:
        self.name, self.room, self.columns, self.probing = name, room, columns, probing
        self.results, self.pools = results, pools
        self.factors: Mapping[tuple[int, int], int] = {}
        self.noises: dict[tuple[int, int], State] = {}
        self.scalars: list[tuple[nn.BatchNorm2d | None, int]] = []
        self.rows: list[Row] = []

    def close(self) -> None:
        """Opens the circles of references, which would otherwise wait for Python's collector, a long stop."""
        for row in self.rows:
            row.previous = row.following = None
            row.terms = []
        self.room.close()

    def run(self, state: State) -> None:
        """Runs everything that reads a state, level by level, and gives each target its terms."""
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
                    shared[key] = self._pool(operation, state)
                row = shared[key]
                row.candidates.append(self.number(use))
                free.append(self._term(use, row.result, operation.norm, row))
            elif isinstance(operation, Noise):
                z = self.room.state(*use.target.shape, self.room.saved)
                self.noises[use.edge, use.candidate] = z
                free.append(self._term(use, z, None, None))
            else:
                assert isinstance(operation, Nothing)
        while pending or free or shared:
            rows = list(shared.values())
            waiting: list[tuple[Use, int, State, Row | None]] = []
            for use, depth, source, previous in pending:
                assert isinstance(use.operation, Chain)
                stage = use.operation.stages[depth]
                final = depth + 1 == len(use.operation.stages)
                row = self._stage(stage, source, previous, kept=not (self.probing and final))
                row.candidates.append(self.number(use))
                rows.append(row)
                if final:
                    free.append(self._term(use, row.result, stage.norm, row))
                else:
                    row.norm = self.room.norm(stage.norm, row.result, -1)
                    waiting.append((use, depth + 1, row.result, row))
            rows.sort(key=lambda row: (row.source.address, row.fields["maximum"], row.fields["act"]))
            self.room.temporary.reset()
            self._run_level(rows, free)
            state.levels.append(rows)
            for term in free:
                term.target.terms.append(term)
            pending, free, shared = waiting, [], {}

    def number(self, use: Use) -> int:
        """Returns the index of a candidate's weight; -1 for the preprocessing."""
        return use.edge * self.columns + use.candidate if use.edge >= 0 else -1

    def _run_level(self, rows: list[Row], terms: list[Term]) -> None:
        groups: dict[tuple[int, ...], list[Row]] = {}
        for made in rows:
            groups.setdefault(made.group, []).append(made)
        for number, group in enumerate(groups.values()):
            self._place(number, group)
        norms = [(row.norm, row) for row in rows if row.norm is not None] + [(term.norm, term.row) for term in terms]
        for term in terms if self.probing else ():
            self._sum_at_once(term)
        for norm, row in norms:
            if row is not None and norm.batch and not row.fields["part"]:
                row.fields["part"] = self.room.temporary.take(self.room.batch * 2 * row.result.padded)
                row.fields["part_image"] = 2 * row.result.padded * self.room.size
        if rows:
            table = self.room.tables.add(
                [stages.in_order(row.fields) for row in rows], [row.candidates for row in rows]
            )
            self.room.steps.append(Step(stages.forward, (table,)))
        if not norms:
            return
        candidates = [row.candidates if norm.weight < 0 and row else [norm.weight] for norm, row in norms]
        table = self.room.tables.add([self._norm_row(norm, row) for norm, row in norms], candidates)
        start = len(self.scalars)
        self.scalars += [(norm.module, norm.weight) for norm, _ in norms]
        part = slice(start, len(self.scalars))
        self.room.steps.append(Step(normalise, (table,), lambda run: (run.scalars[part], run.images)))

    def _sum_at_once(self, term: Term) -> None:
        """Makes a chain's stage take the sums of a probe while an image's result is in the cache."""
        if term.row is not None and term.row.stage is not None:
            numbers = 2 * term.norm.padded
            part, sums = (self.results.take(self.room.batch * numbers) for _ in range(2))
            fields = {"part": part, "part_image": numbers * self.room.size, "sums": sums}
            term.row.fields |= fields | {"g": term.target.gradient, "g_image": term.target.image}

    def _place(self, number: int, group: Sequence[Row]) -> None:
        """Fills in shapes and addresses of rows that share a padded copy of their input."""
        margin = max(row.taps.margin for row in group)
        for row in group:
            source, result, fields = row.source, row.result, row.fields
            fields |= self.room.geometry.fields(row.taps, source.padded, result.padded, margin, fields["maximum"])
            fields["source"], fields["source_image"] = source.address, source.image
            fields["z"], fields["z_image"] = result.address, result.image
            fields["copy"] = number
        group[-1].fields["last"] = 1

    def _norm_row(self, norm: Norm, row: Row | None) -> list[int]:
        part, part_image = (row.fields["part"], row.fields["part_image"]) if row and norm.batch else (0, 0)
        module = norm.module
        if module is None:
            return [0, 0, norm.pixels, norm.channels, norm.padded, 0, 0, 0, 0, 0, 0, 0, norm.out]
        update = self.room.modes[id(module)][1]
        kept = update or not norm.batch
        running = [self.room.base(module, name) if kept else 0 for name in ("running_mean", "running_var")]
        return [
            part, part_image, norm.pixels, norm.channels, norm.padded, self.room.base(module, "weight"),
            self.room.base(module, "bias"), *running, self.room.base(module, "num_batches_tracked") if update else 0,
            norm.mean, norm.inverse, norm.out,
        ]  # fmt: skip

    def _term(self, use: Use, z: State, module: nn.BatchNorm2d | None, row: Row | None) -> Term:
        weight = self.number(use)
        number = self.factors.get((use.edge, use.candidate))
        factor = 0 if number is None else (FACTORS << SHIFT) + number * self.room.batch * self.room.size
        if z.shape != use.target.shape:
            raise RuntimeError(f"cell {self.name!r}: a candidate gives {z.shape}, its node has {use.target.shape}")
        term = Term(use.target, z, self.room.norm(module, z, weight), use.edge, factor, row)
        if row is not None:
            row.terms.append(term)
        return term

    def _pass(self, use: Use, state: State) -> Term:
        """Returns the term of an input that is added as it is."""
        term = self._term(use, state, None, None)
        state.passing.append(term)
        return term

    def _stage(self, stage: Stage, source: State, previous: Row | None, *, kept: bool) -> Row:
        reads = (stage.depthwise or stage.dense[0]).in_channels
        if reads != source.channels:
            raise RuntimeError(f"cell {self.name!r}: a convolution of {reads} channels reads {source.channels}")
        taps = self.room.geometry.taps(stage, source.height, source.width)
        region = self.results if kept else Region(self.results.base, self.room.size)
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

    def _pool(self, pool: Pool, source: State) -> Row:
        taps = self.room.geometry.taps(pool, source.height, source.width)
        fields = dict.fromkeys(stages.STAGE, 0)
        if pool.kind == "max":
            fields["maximum"] = 1
        else:  # a depthwise convolution with ones
            fields["depthwise"] = self.room.geometry.ones(len(taps.offsets) * source.padded)
            fields["scale"] = self.room.geometry.shares(taps)
        result = self.room.state(source.channels, taps.out_height, taps.out_width, self.pools)
        row = Row(fields, None, source, result, None, taps)
        self.rows.append(row)
        return row
