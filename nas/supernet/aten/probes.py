"""Probes: inner products of a gradient with what candidates make of a state, without graph or trace in the buffers."""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.supernet.aten.norms import Moments, moments, norm_backward, statistics
from nas.supernet.aten.stages import activate, chain, parameters, split
from nas.supernet.layout import arranged
from nas.supernet.plan import Candidate, Chain, Identity, Nothing, Pool, Stage
from nas.supernet.statistics import untouched_statistics


class Shared(dict[Hashable, Any]):
    """What the probes of all edges that leave a state compute once: activations and pools. Empty after the last."""

    def __init__(self) -> None:
        self.uses = self.left = 0

    def used(self) -> None:
        """Notes that one of the edges is done."""
        self.left -= 1
        if self.left == 0:
            self.clear()
            self.left = self.uses


Inner = Callable[[Tensor, Tensor, Shared], Tensor]
"""A function of (gradient, state, shared): the inner product of gradient and what a candidate makes of the state."""


def probe(candidate: Candidate, half: torch.dtype | None) -> Inner | None:
    """Returns what gives a probed candidate's weight its gradient; None: zero."""
    if isinstance(candidate, Nothing):
        return None
    if isinstance(candidate, Identity):
        return lambda g, x, shared: inner(g, x)
    if isinstance(candidate, Chain):
        return partial(inner_of_chain, candidate.stages, candidate.residual, half)
    if isinstance(candidate, Pool):
        return partial(_inner_of_pool, candidate)
    return partial(_inner_of_module, candidate.module, half)


def pool_key(pool: Pool) -> Hashable:
    """Returns what pools of the same result on one state have in common."""
    return (pool.kind, pool.kernel, pool.stride, pool.padding)


def pool_of(pool: Pool, x: Tensor) -> Tensor:
    """Returns the pool of (B, C, H, W), without batch norm."""
    if pool.kind == "max":
        y: Tensor = _MaxPool.apply(x, pool.kernel, pool.stride, pool.padding)
        return y
    return F.avg_pool2d(arranged(x), pool.kernel, pool.stride, pool.padding, count_include_pad=False)


class _MaxPool(torch.autograd.Function):
    """Max pooling that keeps the places of the maxima in two bytes each where torch keeps eight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
        ctx.settings = ([kernel, kernel], [stride, stride], [padding, padding], [1, 1], False)
        y, places = torch.ops.aten.max_pool2d_with_indices(x, *ctx.settings)
        if ctx.needs_input_grad[0]:
            small = x.shape[2] * x.shape[3] <= torch.iinfo(torch.int16).max
            ctx.save_for_backward(x, places.to(torch.int16 if small else torch.int32))
        return y  # type: ignore[no-any-return]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        x, places = ctx.saved_tensors
        g = arranged(g)
        of_x = torch.ops.aten.max_pool2d_with_indices_backward(g, x, *ctx.settings, places.long())
        return of_x, None, None, None


def _inner_of_pool(pool: Pool, g: Tensor, x: Tensor, shared: Shared) -> Tensor:
    key, norm = pool_key(pool), pool.norm
    if key not in shared:
        z = pool_of(pool, x)
        shared[key] = (z, statistics(z) if norm is not None and norm.training else None)
    z, known = shared[key]
    return inner_of_norm(g, z, norm, None if norm is None else moments(z, norm, known, track=False))


def _inner_of_module(module: nn.Module, half: torch.dtype | None, g: Tensor, x: Tensor, shared: Shared) -> Tensor:
    with torch.autocast(x.device.type, half, half is not None), untouched_statistics(module):
        return inner(g, module(x))


def inner(g: Tensor, z: Tensor) -> Tensor:
    """Returns <g, z>."""
    return (g * z).sum()


def inner_of_chain(
    stages: Sequence[Stage], residual: bool, half: torch.dtype | None, g: Tensor, x: Tensor, shared: Shared
) -> Tensor:
    """Returns <g, chain(x)>, and leaves running statistics alone."""
    given, activation = split(stages, parameters(stages, None)), stages[0].activation
    if activation not in shared:
        shared[activation] = activate(x, activation)
    outputs, norms = chain(stages, shared[activation], given, half, track=False)
    value = inner_of_norm(g, outputs[-1], stages[-1].norm, norms[-1])
    return value + inner(g, x) if residual else value


def inner_of_norm(g: Tensor, z: Tensor, norm: nn.BatchNorm2d | None, found: Moments | None) -> Tensor:
    """Returns <g, norm(z)>."""
    if norm is None or found is None:
        return inner(g, z)
    _, of_scale, of_shift = norm_backward(g, z, found, norm.eps, None, wanted=False)
    return of_scale @ norm.weight + of_shift @ norm.bias if norm.affine else of_scale.sum()
