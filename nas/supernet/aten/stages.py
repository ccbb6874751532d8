"""The stages of a candidate, forward and backward, as functions of tensors that are `layout.arranged`.

A chain of stages keeps only its raw convolution outputs: what batch norm and activation make of them, and what a
depthwise convolution hands to the dense one behind it, is computed again in the backward.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nas.supernet.aten.convolutions import dense, dense_backward, depthwise, depthwise_backward
from nas.supernet.aten.norms import Moments, affine, moments, norm_backward
from nas.supernet.plan import Activation, Stage


@dataclass(slots=True)
class Parts:
    """One value for each parameter of a stage: the parameter, whether its gradient is wanted, or the gradient."""

    depthwise: Any
    dense: Sequence[Any]
    gamma: Any
    beta: Any


def parameters(stages: Sequence[Stage], norm: nn.BatchNorm2d | None) -> Iterator[Tensor]:
    """Yields the parameters of stages, or of a batch norm without stages, in the order of `split`."""
    for stage in stages:
        if stage.depthwise is not None:
            yield stage.depthwise.weight
        for conv in stage.dense:
            yield conv.weight
        if stage.norm is not None and stage.norm.affine:
            yield from (stage.norm.weight, stage.norm.bias)
    if not stages and norm is not None and norm.affine:
        yield from (norm.weight, norm.bias)


def split(stages: Sequence[Stage], values: Iterator[Any]) -> list[Parts]:
    """Groups one value per parameter by stage."""
    found = []
    for stage in stages:
        affine = stage.norm is not None and stage.norm.affine
        found.append(
            Parts(
                None if stage.depthwise is None else next(values),
                [next(values) for _ in stage.dense],
                next(values) if affine else None,
                next(values) if affine else None,
            )
        )
    return found


def join(stages: Sequence[Stage], parts: Sequence[Parts]) -> Iterator[Any]:
    """The inverse of `split`."""
    for stage, part in zip(stages, parts, strict=True):
        if stage.depthwise is not None:
            yield part.depthwise
        yield from part.dense
        if stage.norm is not None and stage.norm.affine:
            yield from (part.gamma, part.beta)


def activate(x: Tensor, activation: Activation, *, fresh: bool = False) -> Tensor:
    """Returns the activation of (B, C, H, W), in place if the tensor is `fresh`."""
    if activation == "none":
        return x
    if activation == "relu":
        return x.relu_() if fresh else x.relu()
    return x.clamp_(0, 6) if fresh else x.clamp(0, 6)


def activate_backward(g: Tensor, activated: Tensor, activation: Activation) -> Tensor:
    """Returns the gradient of an activation's input, given its output."""
    if activation == "relu":
        g = torch.ops.aten.threshold_backward(g, activated, 0)
    elif activation == "relu6":
        g = torch.ops.aten.hardtanh_backward(g, activated, 0, 6)
    return g


def chain(
    stages: Sequence[Stage],
    activated: Tensor,
    given: Sequence[Parts],
    half: torch.dtype | None,
    *,
    track: bool,
) -> tuple[list[Tensor], list[Moments | None]]:
    """Runs a chain of stages.

    Args:
        stages: The stages.
        activated: The first one's input, with its activation applied.
        given: Their parameters.
        half: The type dense convolutions compute in, if another than the input's.
        track: Whether running statistics may move.

    Returns:
        The stages' outputs before their batch norm, and what it normalises by.
    """
    outputs: list[Tensor] = []
    norms: list[Moments | None] = []
    for j, (stage, part) in enumerate(zip(stages, given, strict=True)):
        x = _between(stages, given, outputs, norms, j) if j else activated
        if part.depthwise is not None:
            assert stage.depthwise is not None
            x = depthwise(x, part.depthwise, stage.depthwise)
        if stage.dense:
            x = dense(x, part.dense, stage.dense, half)
        outputs.append(x)
        norms.append(None if stage.norm is None else moments(x, stage.norm, track=track))
    return outputs, norms


def _between(
    stages: Sequence[Stage],
    given: Sequence[Parts],
    outputs: Sequence[Tensor],
    norms: Sequence[Moments | None],
    j: int,
) -> Tensor:
    """Returns the activated input of stage j > 0."""
    before, found, norm = outputs[j - 1], norms[j - 1], stages[j - 1].norm
    if found is None or norm is None:
        return activate(before, stages[j].activation)
    scale, shift = affine(found, norm.eps, given[j - 1].gamma, given[j - 1].beta)
    return activate(torch.addcmul(shift, before, scale), stages[j].activation, fresh=True)


def chain_backward(
    g: Tensor,
    stages: Sequence[Stage],
    activated: Tensor,
    given: Sequence[Parts],
    outputs: Sequence[Tensor],
    norms: Sequence[Moments | None],
    half: torch.dtype | None,
    wanted: Sequence[Parts],
    need_input: bool,
) -> tuple[Tensor | None, list[Parts]]:
    """Returns the gradients of the activated input and of the parameters, but for the last batch norm's.

    Args:
        g: Gradient of the last output before its batch norm.
        stages: As `chain` was given them, and so on.
        activated: The first stage's activated input.
        given: The parameters.
        outputs: What `chain` returned.
        norms: What `chain` returned.
        half: As for `chain`.
        wanted: The parameters whose gradient is wanted.
        need_input: Whether the input's gradient is wanted.
    """
    found: list[Parts] = [Parts(None, [None] * len(stage.dense), None, None) for stage in stages]
    for j in reversed(range(len(stages))):
        stage, part, need = stages[j], given[j], wanted[j]
        further = need_input or any(join(stages[:j], wanted[:j]))
        x = _between(stages, given, outputs, norms, j) if j else activated
        of_x: Tensor | None = g
        if stage.dense:
            middle = x
            if part.depthwise is not None and any(need.dense):
                assert stage.depthwise is not None
                middle = depthwise(x, part.depthwise, stage.depthwise)
            through = further or bool(need.depthwise)
            of_x, found[j].dense = dense_backward(
                g,
                middle,
                part.dense,
                stage.dense,
                half,
                [through, *map(bool, need.dense)],
            )
        if part.depthwise is not None and of_x is not None:
            assert stage.depthwise is not None
            of_x, found[j].depthwise = depthwise_backward(
                of_x, x, part.depthwise, stage.depthwise, (further, bool(need.depthwise))
            )
        if not further or of_x is None:
            return None, found
        if not j:
            return of_x, found
        g, norm, moment = activate_backward(of_x, x, stage.activation), stages[j - 1].norm, norms[j - 1]
        if norm is not None and moment is not None:
            of_z, gamma, beta = norm_backward(g, outputs[j - 1], moment, norm.eps, given[j - 1].gamma, wanted=True)
            assert of_z is not None
            g = of_z
            if norm.affine:
                found[j - 1].gamma, found[j - 1].beta = gamma, beta
    return None, found
