"""The backward of one cell's program: states in reverse, each with all the edges that leave it."""

from collections.abc import Sequence

import numpy as np
from torch import nn

import nas.supernet.native.nodes as nodes
import nas.supernet.native.stages as stages
from nas.supernet.native.coefficients import F_BETA_GRADIENT, F_GAMMA_GRADIENT, finish, unpack
from nas.supernet.native.forward import Forward
from nas.supernet.native.layout import (
    FIRST,
    GRADIENTS,
    OUTPUT_GRADIENT,
    PARAMETER_GRADIENTS,
    SHIFT,
    Region,
    Tables,
    images,
)
from nas.supernet.native.probes import Probes
from nas.supernet.native.records import Draw, Norm, Row, State, Step, last, modules_of, once, parts_of
from nas.supernet.plan import Stage, Unread


class Backward:
    """Builds the backward of a forward.

    Args:
        forward: The forward; its `saved` memory also gets the coefficients found here.
        parameters: The cell's parameters, as `Signature.wanted` lists them.
        probes: Of the cell; None if nothing is probed.
    """

    def __init__(self, forward: Forward, parameters: Sequence[nn.Parameter], probes: Probes | None) -> None:
        self.forward, self.signature, self.probes = forward, forward.signature, probes
        self.region, self.tables = Region(GRADIENTS, forward.room.size), Tables()
        self.steps: list[Step] = []
        self.draws: list[Draw] = []
        self.places: dict[int, int] = {}
        self.wanted = [p for p, wanted in zip(parameters, self.signature.wanted, strict=True) if wanted]
        used = 0
        for parameter in self.wanted:
            self.places[id(parameter)] = (PARAMETER_GRADIENTS << SHIFT) + used * forward.room.size
            used += parameter.numel()
        self.coefficients: dict[int, int] = {}
        self.kept: dict[int, tuple[int, int, int]] = {}
        self.touched: set[int] = set()
        self.started: set[int] = set()
        self._build()

    def _build(self) -> None:
        forward = self.forward
        probed: dict[int, list[Step]] = {}
        states = [*forward.states.values()]
        order = [*forward.raw, *(s for s in states if all(s is not raw for raw in forward.raw))]
        for i, raw in enumerate(forward.raw):
            raw.wanted = self.signature.inputs[i]
        for state in order:
            for use in state.uses:
                mine = self.signature.values and use.edge >= 0
                use.target.wanted |= mine or state.wanted or any(map(self.wants, modules_of(use)))
        reached = {id(forward.states[n]) for n in forward.cell.cell.outputs}
        for state in reversed(order):  # what no output depends on has no gradient, not a gradient of zero
            if any(id(use.target) in reached and not isinstance(use.operation, Unread) for use in state.uses):
                reached.add(id(state))
        for i, state in enumerate(order):
            state.wanted &= id(state) in reached
            if state.wanted:
                direct = i < len(forward.raw) and state.padded == state.channels
                numbers = forward.room.batch * state.pixels * state.padded
                base = (FIRST + len(forward.raw) + i) << SHIFT
                state.gradient = base if direct else self.region.take(numbers)
        if self.probes is not None:
            probed, first, self.draws = self.probes.take(forward, self.region)
            self.tables = Tables(first)
        self._import()
        self._find_again([rows for state in order for rows in state.levels])
        for state in reversed(order):
            mark = self.region.used
            self.steps += probed.get(id(state), [])
            self._through(state)
            for rows in reversed(state.levels):
                self._level(state, rows)
            self.region.reset(mark)
            if state.wanted and not self._written(state):  # read by `none` alone
                clear = self.tables.add([[state.gradient, forward.room.batch * state.pixels * state.padded]])
                self.steps.append(Step(nodes.zero_out, (clear,), once))
            if state.wanted and state.terms:
                self._sum_up(state)
        self._export()

    def _find_again(self, levels: Sequence[Sequence[Row]]) -> None:
        """Runs pools again: this takes a fiftieth of a step, and keeping their results a tenth of what is kept."""
        pools = [row for rows in levels for row in rows if row.stage is None]
        used = [row.fields | {"part": 0} for row in pools if any(term.target.wanted for term in row.terms)]
        if used:
            rows = [stages.in_order(fields | {"copy": i}) for i, fields in enumerate(used)]
            self.steps.append(Step(stages.forward, (self.tables.add(rows),)))

    def wants(self, module: nn.Module) -> bool:
        """Returns whether the gradient of any of a module's own parameters is wanted."""
        return bool(self.places) and any(id(parameter) in self.places for parameter in module._parameters.values())

    def _written(self, state: State) -> bool:
        """Returns whether a state's gradient has been written to, and takes note that it is from now on."""
        before = id(state) in self.started
        self.started.add(id(state))
        return before

    def place(self, parameter: object) -> int:
        """Returns where a parameter's gradient goes; 0 if it is not wanted."""
        found = self.places.get(id(parameter), 0)
        if found:
            self.touched.add(id(parameter))
        return found

    def _import(self) -> None:
        forward, graph, rows = self.forward, self.forward.cell.cell, []
        joined = graph.combine == "concatenate"
        for i, n in enumerate(graph.outputs):
            state = forward.states[n]
            if state.wanted:
                channels, first = forward.out_shape[1], i * state.channels * forward.room.size if joined else 0
                image = channels * state.pixels * forward.room.size
                source = images((OUTPUT_GRADIENT << SHIFT) + first, image, channels, state.width)
                target = images(state.gradient, state.image, state.padded, state.width)
                sizes = [state.height, state.width, state.channels, state.padded, int(self._written(state))]
                rows.append([*source, *target, *sizes])
        if rows:
            self.steps.append(Step(nodes.copy, (self.tables.add(rows),)))

    def _export(self) -> None:
        forward, rows = self.forward, []
        for i, raw in enumerate(forward.raw):
            if raw.wanted and raw.padded != raw.channels:
                base = (FIRST + len(forward.raw) + i) << SHIFT
                source = images(raw.gradient, raw.image, raw.padded, raw.width)
                target = images(base, raw.channels * raw.pixels * forward.room.size, raw.channels, raw.width)
                rows.append([*source, *target, raw.height, raw.width, raw.channels, raw.channels, 0])
        if rows:
            self.steps.append(Step(nodes.copy, (self.tables.add(rows),)))

    # Coefficients

    def _sum_up(self, target: State) -> None:
        """Finds what the terms of a node need of its gradient: sums, then coefficients and gradients of weights."""
        forward, sums, rows, weights = self.forward, [], [], []
        forward.room.temporary.reset()
        for term in target.terms:
            norm, part, value = term.norm, 0, -1
            if self.signature.values and term.edge >= 0:
                offset = len(forward.plan.sources) * forward.columns + term.edge
                value = offset if term.z is None else norm.weight
            if value >= 0 or norm.batch or (norm.module is not None and self.wants(norm.module)):
                part = forward.room.temporary.take(forward.room.batch * 2 * norm.padded)
                sums.append(forward.room.sums(term, part))
            out = forward.room.saved.take(3 * norm.padded)
            self.coefficients[id(term)] = out
            rows.append(self._finish_row(norm, part, term.factor, out, value, term.z is None))
            weights.append(norm.weight)
        if sums:
            self.steps.append(Step(nodes.sum_up, (self.tables.add(sums),)))
        self._finish(rows, weights)

    def _finish_row(self, norm: Norm, part: int, factor: int, out: int, value: int, constant: bool) -> list[int]:
        row, module = self.forward.room.finish(norm, part, factor, out, value, constant), norm.module
        if module is not None:
            row[F_GAMMA_GRADIENT], row[F_BETA_GRADIENT] = self.place(module.weight), self.place(module.bias)
        return row

    def _finish(self, rows: Sequence[Sequence[int]], weights: Sequence[int]) -> None:
        places = np.array(weights)
        arguments = lambda run: (run.weights[places], run.values, run.images)  # noqa: E731
        self.steps.append(Step(finish, (self.tables.add(rows),), arguments))

    # What leaves a state

    def _through(self, state: State) -> None:
        rows = []
        for term in state.passing:
            if state.wanted and term.target.wanted:
                g = [term.target.gradient, term.target.image, self.coefficients[id(term)], term.factor]
                rows.append([*g, state.gradient, state.pixels, state.padded, int(self._written(state))])
        if rows:
            self.steps.append(Step(nodes.add_through, (self.tables.add(rows),)))

    def _level(self, state: State, rows: Sequence[Row]) -> None:
        """The backward of the stages of one level."""
        chosen = [row for row in rows if self._upstream(state, row)]
        if not chosen:
            return
        self.forward.room.temporary.reset()
        tables: list[dict[str, int]] = []
        terms: list[list[int]] = []
        packs: list[list[int]] = []
        partial = Region(GRADIENTS, self.forward.room.size)  # of the weights, for one thread
        groups = [row.group for row in chosen]
        for i, row in enumerate(chosen):
            fields = row.fields | {
                "last": int(i == len(chosen) - 1 or groups[i] != groups[i + 1]),
                "term": len(terms),
                "want_input": int(state.wanted if row.previous is None else self._upstream(state, row.previous)),
            }
            terms += self._output_gradients(row)
            fields["term_end"] = len(terms)
            if row.stage is not None:
                packs += self._weight_gradients(row.stage, fields, partial)
            fields |= self._input_gradient(state, row, fields["last"]) if fields["want_input"] else {}
            tables.append(fields)
        if packs:
            packs = self._place_partial(tables, packs, partial.used)
        table = self.tables.add([stages.in_order(fields) for fields in tables])
        self.steps.append(Step(stages.backward, (table, self.tables.add(terms))))
        if packs:
            self.steps.append(Step(unpack, (self.tables.add(packs),), lambda run: (run.threads,)))
        self._finish_inputs([row for row in chosen if row.previous is not None], tables)

    def _upstream(self, state: State, row: Row) -> bool:
        """Returns whether a gradient is wanted of a row's weights, or of anything it depends on."""
        if not any(term.target.wanted for term in last(row).terms):
            return False
        if row.stage is not None and any(map(self.wants, parts_of(row.stage))):
            return True
        return state.wanted if row.previous is None else self._upstream(state, row.previous)

    def _output_gradients(self, row: Row) -> list[list[int]]:
        """Returns, for every use of a row's result, a gradient and its coefficients."""
        if row.following is not None:
            return [[*self.kept[id(row)], 0]]
        return [
            [term.target.gradient, term.target.image, self.coefficients[id(term)], term.factor]
            for term in row.terms
            if term.target.wanted
        ]

    def _weight_gradients(self, stage: Stage, fields: dict[str, int], partial: Region) -> list[list[int]]:
        """Makes room for a thread's gradients of a stage's weights and returns how they are unpacked."""
        packs = []
        for name, convs in (("depthwise", (stage.depthwise,) if stage.depthwise else ()), ("dense", stage.dense)):
            if any(self.wants(conv) for conv in convs):
                rows = self.forward.room.packing.of(convs[0])
                taps = sum(row[7] * row[8] for row in rows)
                fields[f"{name}_gradient"] = partial.take(taps * rows[0][9] * rows[0][10])
                for conv, row in zip(convs, rows, strict=True):
                    if target := self.place(conv.weight):
                        packs.append([target, *row[1:13], fields[f"{name}_gradient"], 0, row[15]])
        return packs

    def _place_partial(self, tables: list[dict[str, int]], packs: list[list[int]], size: int) -> list[list[int]]:
        """Gives every thread its room for the gradients of weights, and zeros it."""
        numbers = self.signature.threads * size // self.forward.room.size
        shift = self.region.take(numbers) - (GRADIENTS << SHIFT)
        for fields in tables:
            fields["gradient_thread"] = size
            for name in ("depthwise_gradient", "dense_gradient"):
                fields[name] += shift if fields[name] else 0
        self.steps.append(Step(nodes.zero_out, (self.tables.add([[(GRADIENTS << SHIFT) + shift, numbers]]),), once))
        return [[*row[:13], row[13] + shift, size, row[15]] for row in packs]

    def _input_gradient(self, state: State, row: Row, last: int) -> dict[str, int]:
        """Returns where the gradient of a row's input goes."""
        if row.previous is None:
            keep = int(bool(last) and not self._written(state))
            return {"out": state.gradient, "out_image": state.image, "keep": keep}
        source, norm, forward = row.source, row.previous.norm, self.forward
        assert norm is not None
        return {
            "out": self.region.take(forward.room.batch * source.padded * source.pixels),
            "out_image": source.image,
            "keep": 1,
            "out_part": forward.room.temporary.take(forward.room.batch * 2 * source.padded),
            "out_part_image": 2 * source.padded * forward.room.size,
            "mean": norm.mean,
        }

    def _finish_inputs(self, rows: Sequence[Row], tables: Sequence[dict[str, int]]) -> None:
        """Turns the sums over a level's input gradients into the coefficients of the level before."""
        finished = []
        for fields, row in zip(tables, rows, strict=False):
            if fields["want_input"]:
                assert row.previous is not None
                assert row.previous.norm is not None
                out = self.forward.room.saved.take(3 * row.source.padded)
                finished.append(self._finish_row(row.previous.norm, fields["out_part"], 0, out, -1, False))
                self.kept[id(row.previous)] = (fields["out"], fields["out_image"], out)
        if finished:
            self._finish(finished, [-1] * len(finished))
