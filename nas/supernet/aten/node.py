"""A node of a cell as one autograd function.

It adds up `a z + b` of every candidate, where z is the raw output of its last convolution or pool, and (a, b) hold
batch norm and the selection's weight. Its backward knows batch norm's gradient and the weights' in closed form,
computes again what is cheap, runs the probes, and skips what nobody asked for.
"""

from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from nas.supernet.aten.backward import Backward
from nas.supernet.aten.norms import Moments, affine, moments, statistics
from nas.supernet.aten.stages import activate, chain
from nas.supernet.aten.terms import Job, Term, Total, parameters_of, rows_of
from nas.supernet.layout import arranged


class Node(torch.autograd.Function):
    """The sum of a node's candidates."""

    @staticmethod
    def forward(ctx: Any, job: Job, weights: Tensor | None, offset: Tensor | None, *tensors: Tensor) -> Tensor:
        """Returns (B, C, H, W).

        Args:
            ctx: Autograd's.
            job: What to compute.
            weights: (E, K), or None: ones.
            offset: (E,), or None.
            tensors: What the terms read, and their parameters.
        """
        total, shift = Total(), Total()
        kept: list[Tensor] = []
        batches: list[bool] = []
        with without_autocast(tensors[0]):
            rows = rows_of(job, weights, tensors[0])
            for term in job.terms:
                x = tensors[term.read]
                given, gamma, beta = parameters_of(term, tensors)
                if term.stages:
                    activated = _activated(job.shared, term, x)
                    outputs, norms = chain(term.stages, activated, given, job.half, track=True)
                else:
                    outputs, norms = [x], [_of_pool(job.shared, term, x)]
                if job.record:
                    kept += outputs if term.stages else ()
                    kept += [value for found in norms if found for value in found[:2]]
                    batches += [found.batch for found in norms if found]
                weight = rows[term.edge][term.index] if rows else None
                plain = _product(weight, term.keep)
                z, found = outputs[-1], norms[-1]
                if found is None or term.norm is None:
                    total.add(z, plain)
                else:
                    a, b = affine(found, term.norm.eps, gamma, beta, weight)
                    if term.keep is not None:
                        a, b = a * term.keep, b * term.keep
                    if total.value is None:
                        total.add(torch.addcmul(b, z, a), owned=True)
                    else:
                        total.add(z, a)
                        shift.add(b)
                if term.residual:
                    total.add(x, plain)
            if offset is not None:
                for edge in job.edges:
                    shift.add(offset[edge].to(tensors[0].dtype))
            if shift.value is not None:
                total.add(shift.value)
        assert total.value is not None
        if job.record:
            ctx.save_for_backward(weights, *_needed(job, tensors, ctx.needs_input_grad[1]), *kept)
            ctx.job, ctx.batches, ctx.count = job, batches, len(tensors)
            ctx.offset = None if offset is None else offset.detach()  # for its shape
        return total.value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of weights, offset and tensors, those that are wanted."""
        job, (weights, *saved) = ctx.job, ctx.saved_tensors
        of_weights = torch.zeros_like(weights) if ctx.needs_input_grad[1] else None
        of_offset = None
        with without_autocast(g):
            g = arranged(g)
            run = Backward(job, saved, ctx.count, iter(ctx.batches), ctx.needs_input_grad[3:], of_weights)
            run.rows = rows_of(job, None if weights is None else weights.unsqueeze(-1).repeat(1, 1, g.shape[1]), g)
            for _, terms in groupby(job.terms, lambda term: term.edge):
                run.edge(g, terms)
            if of_weights is not None:
                for edge, read, shared, probes in job.probes:
                    for k, inner_of in probes:
                        of_weights[edge, k] = inner_of(g, saved[read], shared)
                    shared.used()
            if ctx.needs_input_grad[2]:
                of_offset, every = torch.zeros_like(ctx.offset), g.sum()
                for edge in job.edges:
                    of_offset[edge] = every
        return None, of_weights, of_offset, *run.found()


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Turns autocasting off: what may run in another type than the states' says so itself."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _product(weight: Tensor | None, keep: Tensor | None) -> Tensor | None:
    return keep if weight is None else weight if keep is None else weight * keep


def _activated(shared: dict[Hashable, Any], term: Term, x: Tensor) -> Tensor:
    key = (term.key, term.stages[0].activation)
    known: Tensor | None = shared.get(key)
    if known is None:
        known = shared[key] = activate(x, term.stages[0].activation)
    return known


def _of_pool(shared: dict[Hashable, Any], term: Term, z: Tensor) -> Moments | None:
    """Returns what a term without stages normalises by; edges with the same pool share its statistics."""
    if term.norm is None:
        return None
    key = ("statistics", term.key)
    if term.norm.training and key not in shared and z.numel() > z.shape[1]:
        shared[key] = statistics(z)
    return moments(z, term.norm, shared.get(key), track=True)


def _needed(job: Job, tensors: Sequence[Tensor], of_weights: bool) -> list[Tensor | None]:
    """Returns the tensors that the backward reads."""
    read = {term.read for term in job.terms}
    used = {term.read for term in job.terms if term.stages or term.norm is not None or of_weights}
    used |= {position for _, position, _, _ in job.probes if of_weights}
    return [tensor if i in used or i not in read else None for i, tensor in enumerate(tensors)]
