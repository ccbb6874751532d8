"""The reference execution of a cell: the shortest true statement of the result. Faster ones are held to it."""

from collections.abc import Sequence
from functools import partial, reduce
from operator import add
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.ops import drop_path, zeros
from nas.selection import Selection
from nas.supernet.cell import MixedCell
from nas.supernet.statistics import untouched_statistics


def run_cell(cell: MixedCell, inputs: Sequence[Tensor], selection: Selection) -> Tensor:
    """Runs one cell under one decision.

    Args:
        cell: The parameters.
        inputs: Outputs of the layers before, each (B, C', H, W); the latest is last.
        selection: What every edge does.

    Returns:
        (B, channels * outputs, H, W) for concatenated outputs, (B, channels, H, W) for their sum.
    """
    modules = cell.preprocess or [nn.Identity()] * len(inputs)
    nodes = {i: module(x) for i, (module, x) in enumerate(zip(modules, inputs, strict=True))}
    blank = partial(zeros, nodes[0], cell.channels, cell.stride)
    for node in cell.cell.order:
        edges = [_run_edge(cell, e, nodes[cell.cell.edges[e].source], selection) for e in cell.cell.in_edges(node)]
        terms = [term for term in edges if term is not None]
        nodes[node] = reduce(add, terms) if terms else blank()
    outputs = [nodes[node] for node in cell.cell.outputs]
    return torch.cat(outputs, dim=1) if cell.cell.combine == "concatenate" else reduce(add, outputs)


def _run_edge(cell: MixedCell, e: int, x: Tensor, selection: Selection) -> Tensor | None:
    """Returns the output of edge e, or None if it runs no candidate."""
    if not selection.paths[e]:
        return None
    if cell.partial == 1:
        return _mixture(cell, e, x, selection)
    few = cell.channels // cell.partial
    return shuffled(_mixture(cell, e, x[:, :few], selection), passed_by(cell, e, x, selection), cell.partial)


def passed_by(cell: MixedCell, e: int, x: Tensor, selection: Selection) -> Tensor:
    """Returns what bypasses the candidates of an edge with partial channels: the others, pooled by its stride."""
    rest, stride = x[:, cell.channels // cell.partial :], cell.stride_of(e)
    rest = F.max_pool2d(rest, stride, ceil_mode=True) if stride > 1 else rest
    return rest if selection.gates is None else selection.gates[e].to(rest.dtype) * rest


def shuffled(mixture: Tensor, passed: Tensor, share: int) -> Tensor:
    """Joins the channels of an edge's or node's parts so that the first 1/share of them are of both."""
    return torch.channel_shuffle(torch.cat([mixture, passed], dim=1), share)


def _mixture(cell: MixedCell, e: int, x: Tensor, selection: Selection) -> Tensor:
    """Returns the weighted sum of the candidates that edge e runs."""
    terms = [_run(cell, cell.candidates[e][k], x) for k in selection.paths[e]]
    if selection.weights is not None:
        weights = selection.weights[e].to(terms[0].dtype)
        terms = [weights[k] * term for k, term in zip(selection.paths[e], terms, strict=True)]
        if selection.probes and selection.probes[e]:
            probed = [(k, cell.candidates[e][k]) for k in selection.probes[e]]
            terms.append(_Probe.apply(terms.pop(), x, weights, probed))
    total = reduce(add, terms)
    return total if selection.offset is None else total + selection.offset[e].to(total.dtype)


def _run(cell: MixedCell, candidate: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = candidate(x)
    if cell.training and cell.drop_path > 0 and not isinstance(candidate, nn.Identity):
        return drop_path(y, cell.drop_path)
    return y


class _Probe(torch.autograd.Function):
    """The identity of an edge's output, whose backward also gives the weights of the probed candidates a gradient."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, weights: Tensor, probes: list[tuple[int, nn.Module]]) -> Tensor:
        ctx.save_for_backward(x, weights)
        ctx.probes = probes
        device = x.device.type
        ctx.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        return output.view_as(output)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor | None, None]:
        if not ctx.needs_input_grad[2]:
            return gradient, None, None, None
        x, weights = ctx.saved_tensors
        inner = torch.zeros_like(weights)
        device, dtype, enabled = ctx.autocast
        with torch.no_grad(), torch.autocast(device, dtype, enabled):
            for k, candidate in ctx.probes:
                with untouched_statistics(candidate):
                    inner[k] = (gradient * candidate(x)).sum()
        return gradient, None, inner, None
