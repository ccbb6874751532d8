"""`run_cell` of the native engine: one autograd function per cell, over a program made for the decision at hand."""

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

import nas.supernet.native.memory as memory
from nas.ops import kept
from nas.selection import Selection
from nas.supernet import aten
from nas.supernet.cell import MixedCell
from nas.supernet.native.compilation import is_compiled
from nas.supernet.native.geometry import Geometry
from nas.supernet.native.kernels import unit
from nas.supernet.native.layout import (
    FACTORS,
    FIRST,
    GRADIENTS,
    OUTPUT,
    OUTPUT_GRADIENT,
    PARAMETER_GRADIENTS,
    SAVED,
    TEMPORARY,
    within,
)
from nas.supernet.native.probes import Probes
from nas.supernet.native.program import Program
from nas.supernet.native.records import Draw, Signature
from nas.supernet.parts import run_in_parts
from nas.supernet.plan import Candidate, Chain, Identity, Noise, Opaque, Plan, Sum, plan, reached

SHARED = 2**17
"""Numbers of an input from which on threads share the images; for less, waking them takes longer than they save."""

PROGRAMS = 32
"""Programs kept with a cell; a sampled path that comes again finds its own."""

logger = logging.getLogger(__name__)


def run_cell(cell: MixedCell, inputs: Sequence[Tensor], selection: Selection) -> Tensor:
    """Runs one cell under one decision, as `reference.run_cell` does; what it does not know it leaves to `aten`."""
    if cell.partial > 1:
        return run_in_parts(run_cell, cell, inputs, selection)
    known = _cells.get(cell)
    if known is None:
        known = _cells[cell] = _Known(cell)
    parameters = [owner[name] for owner, name in known.parameters]
    if reason := _obstacle(cell, known.plan, inputs, selection, parameters):
        _say_once(f"engine.backend=native leaves a cell to aten: {reason}")
        return aten.run_cell(cell, inputs, selection)
    signature = _signature(cell, known, inputs, selection, parameters)
    program = known.programs.get(signature)
    if program is None:
        if not known.programs and not is_compiled():
            _say_once("compiling kernels for this machine, once, for up to half a minute")
        geometry = known.geometry.setdefault(signature.size, Geometry(signature.size, cell.cell))
        program = Program(cell, signature, parameters, known.norms, geometry, known.probes)
        if len(known.programs) >= PROGRAMS:
            del known.programs[next(iter(known.programs))]
        known.programs[signature] = program
    noises, factors = _draw(program.draws, cell.drop_path, inputs[0])
    learned = [p for p, wanted in zip(parameters, signature.wanted, strict=True) if wanted]
    # What the decision cuts off has no gradient, not one of zeros, which would let momentum and weight decay act on it.
    read = [x if wanted else x.detach() for x, wanted in zip(inputs, signature.inputs, strict=True)]
    output: Tensor = _Cell.apply(program, selection.weights, selection.offset, noises, factors, *read, *learned)
    return output


class _Known:
    """What is found out once about a cell: plan, norms, where its parameters are, probes; and its newest programs."""

    def __init__(self, cell: MixedCell) -> None:
        self.plan = plan(cell)
        self.norms = [module for module in cell.modules() if isinstance(module, nn.BatchNorm2d)]
        self.parameters: list[tuple[dict[str, Any], str]] = [
            (module._parameters, name)
            for module in cell.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None
        ]
        self.owners = _owners(cell)
        self.programs: dict[Signature, Program] = {}
        self.geometry: dict[int, Geometry] = {}
        self.probes: dict[Signature, Probes] = {}


def _owners(cell: MixedCell) -> list[int]:
    """Returns, for every parameter, the state that it helps to compute."""
    states = {module: i for i, before in enumerate(cell.preprocess) for module in before.modules()}
    for edge, candidates in zip(cell.cell.edges, cell.candidates, strict=True):
        states |= {module: edge.target for candidate in candidates for module in candidate.modules()}
    return [states[m] for m in cell.modules() for parameter in m._parameters.values() if parameter is not None]


_cells: WeakKeyDictionary[MixedCell, _Known] = WeakKeyDictionary()


def _signature(
    cell: MixedCell,
    known: _Known,
    inputs: Sequence[Tensor],
    selection: Selection,
    parameters: Sequence[nn.Parameter],
) -> Signature:
    gradient, size = torch.is_grad_enabled(), inputs[0].element_size()
    needed = reached(cell.cell, known.plan, selection.paths) if gradient else frozenset()
    reads = tuple(x.requires_grad and i in needed for i, x in enumerate(inputs))
    wanted = tuple(p.requires_grad and owner in needed for p, owner in zip(parameters, known.owners, strict=True))
    return Signature(
        paths=selection.paths,
        probes=_probes(selection),
        shapes=tuple(tuple(x.shape) for x in inputs),
        direct=tuple(_is_direct(x, size) for x in inputs),
        size=size,
        training=tuple(
            (n.training or n.running_mean is None, n.training and n.track_running_stats and n.running_mean is not None)
            for n in known.norms
        ),
        wanted=wanted,
        inputs=reads,
        values=_values(selection),
        offset=selection.offset is not None,
        factors=cell.training and cell.drop_path > 0,
        threads=min(torch.get_num_threads(), inputs[0].shape[0]) if inputs[0].numel() >= SHARED else 1,
    )


def _is_direct(x: Tensor, size: int) -> bool:
    """Returns whether kernels can read a tensor where it is."""
    return x.shape[1] % unit(size) == 0 and x.is_contiguous(memory_format=torch.channels_last)


def _draw(draws: Sequence[Draw], probability: float, x: Tensor) -> tuple[list[Tensor], Tensor | None]:
    """Draws the noises, and what scales each sample of every candidate that may be dropped, as the reference does."""
    noises, factors = [], []
    for draw in draws:
        if draw.noise is not None:
            noises.append(draw.noise.module(x.new_empty(1).expand(len(x), *draw.reads)))
        if draw.dropped:
            factors.append(kept(x, probability))
    return noises, torch.stack(factors) / (1.0 - probability) if factors else None


def _obstacle(
    cell: MixedCell, known: Plan, inputs: Sequence[Tensor], selection: Selection, parameters: Sequence[nn.Parameter]
) -> str | None:
    """Returns why a cell cannot run here, if it cannot."""
    x = inputs[0]
    if x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return "it computes on the CPU, without autocast"
    if x.dtype not in (torch.float32, torch.float64) or any(t.dtype != x.dtype for t in (*inputs, *parameters)):
        return f"it computes in float32 or float64, everything in one of them, got {x.dtype}"
    if not x.numel() or not all(p.is_contiguous() for p in parameters):
        return "it needs images, and parameters that are contiguous"
    if not all(isinstance(before, Chain | Identity) for before in known.preprocess):
        return f"it preprocesses by convolutions only (cell {cell.name!r})"
    probes = _probes(selection)
    for e, candidates in enumerate(known.candidates):
        for k in (*selection.paths[e], *(probes[e] if probes else ())):
            if _is_unknown(candidates[k]):
                rows = zip(cell.cell.edges, known.candidates, strict=True)
                pairs = [pair for edge, row in rows for pair in zip(edge.operations, row, strict=True)]
                names = dict.fromkeys(name for name, candidate in pairs if _is_unknown(candidate))
                return f"it does not know operation {', '.join(map(repr, names))} (cell {cell.name!r})"
    return None


def _is_unknown(candidate: Candidate) -> bool:
    return isinstance(candidate, Opaque) and not isinstance(candidate, Sum | Noise)


def _values(selection: Selection) -> bool:
    """Returns whether the gradient of a decision is wanted."""
    learned = [t for t in (selection.weights, selection.offset) if t is not None and t.requires_grad]
    return torch.is_grad_enabled() and bool(learned)


def _probes(selection: Selection) -> tuple[tuple[int, ...], ...]:
    """Returns the candidates to probe, by edge; empty if none's gradient is wanted."""
    return selection.probes if selection.weights is not None and _values(selection) else ()


@cache
def _say_once(message: str) -> None:
    logger.warning(message)


class _Cell(torch.autograd.Function):
    """A cell as one node of the graph. Its memory is its own, so a second backward through it is refused."""

    @staticmethod
    def forward(
        ctx: Any,
        program: Program,
        weights: Tensor | None,
        offset: Tensor | None,
        noises: Sequence[Tensor],
        factors: Tensor | None,
        *tensors: Tensor,
    ) -> Tensor:
        inputs = tensors[: len(program.signature.shapes)]
        numbers = np.ones(program.edges * program.columns + 1)
        if weights is not None:
            numbers[:-1] = weights.detach().numpy().ravel()
        output = torch.empty(program.out_shape, dtype=program.dtype, memory_format=torch.channels_last)
        saved = memory.take(program.saved_size, kept=program.backward is not None)
        temporary = memory.take(program.temporary_size)
        given = {SAVED: saved, TEMPORARY: temporary, OUTPUT: output}
        if factors is not None:
            given[FACTORS] = factors
        if offset is not None:
            _write_offsets(program, saved, offset.detach())
        _write_noises(program, program.draws, saved, noises)
        program.run(inputs, given, numbers)
        memory.give(temporary)
        if program.backward is None:
            memory.give(saved)
        else:
            ctx.program, ctx.saved, ctx.factors, ctx.numbers = program, saved, factors, numbers
            ctx.kinds = [None if t is None else (t.shape, t.dtype) for t in (weights, offset)]
            ctx.save_for_backward(*inputs)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.saved is None:
            raise RuntimeError(
                "engine.backend=native keeps nothing for a second backward; use engine.backend=reference"
            )
        program, saved, inputs = ctx.program, ctx.saved, ctx.saved_tensors
        ctx.saved = None
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        sizes = [shape.numel() for shape, _ in program.learned]
        flat = torch.empty(sum(sizes), dtype=program.dtype)
        back, temporary = memory.take(program.back_size), memory.take(program.temporary_size)
        given = {SAVED: saved, TEMPORARY: temporary, GRADIENTS: back, OUTPUT_GRADIENT: gradient}
        given[PARAMETER_GRADIENTS] = flat
        if ctx.factors is not None:
            given[FACTORS] = ctx.factors
        _write_noises(program, program.probe_draws, back, _draw(program.probe_draws, 0.0, gradient)[0])
        outward: list[Tensor | None] = []
        for i, (x, wanted) in enumerate(zip(inputs, program.reads, strict=True)):
            made = torch.empty(x.shape, dtype=x.dtype, memory_format=torch.channels_last) if wanted else None
            outward.append(made)
            if made is not None:
                given[FIRST + len(inputs) + i] = made
        values = torch.from_numpy(program.run_backward(inputs, given, ctx.numbers))
        for buffer in (saved, back, temporary):
            memory.give(buffer)
        parts = values.split([program.edges * program.columns, program.edges])  # type: ignore[no-untyped-call]
        decided = [None if k is None else p.to(k[1]).view(k[0]) for k, p in zip(ctx.kinds, parts, strict=True)]
        pieces = flat.split(sizes)  # type: ignore[no-untyped-call]
        learned = [
            piece.view(shape) if used else None for piece, (shape, used) in zip(pieces, program.learned, strict=False)
        ]
        return None, *decided, None, None, *outward, *learned


def _write_offsets(program: Program, saved: Tensor, offset: Tensor) -> None:
    """Writes the edges' offsets as the constants of terms that have nothing else."""
    numbers, size = _numbers(program, saved), program.signature.size
    for edge, place, padded, channels in program.offsets:
        start = place // size + padded
        numbers[start : start + padded] = 0
        numbers[start : start + channels] = offset[edge]


def _write_noises(program: Program, draws: Sequence[Draw], buffer: Tensor, noises: Sequence[Tensor]) -> None:
    """Writes what was drawn as the outputs of candidates."""
    places = [draw.z for draw in draws if draw.z is not None]
    for noise, z in zip(noises, places, strict=True):
        start, batch = within(z.address) // program.signature.size, len(noise)
        count = batch * z.pixels * z.padded
        images = _numbers(program, buffer)[start : start + count].view(batch, z.height, z.width, z.padded)
        images[..., z.channels :] = 0
        images[..., : z.channels] = noise.permute(0, 2, 3, 1)


def _numbers(program: Program, buffer: Tensor) -> Tensor:
    size = program.signature.size
    return buffer[: buffer.numel() // size * size].view(program.dtype)
