"""Sparse softmaxes: sparsemax and 1.5-entmax give candidates far below the best a weight of exactly zero.

Both are projections, solved exactly by sorting. Written here and not taken from the `entmax` package, because the
estimators need torch alone and a masked candidate must have weight and gradient zero.

Source: Martins & Astudillo, 2016, arXiv:1602.02068; Peters et al., 2019, arXiv:1905.05702.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nas.estimators.gumbel import centred

OUTSIDE = -2.0
"""Where a score is left. With the best at zero a threshold is at least -1, and -inf would spread through the sums."""


def sparsemax(logits: Tensor) -> Tensor:
    """Returns the point of the simplex nearest to logits, max(logits - t, 0), (..., K), in float32 or more.

    The gradient is that of the candidates with positive weight, once differentiable; the others have none.

    Raises:
        ValueError: A row of logits is not valid (see `centred`).
    """
    weights: Tensor = _Sparsemax.apply(centred(logits))
    return weights


def entmax15(logits: Tensor) -> Tensor:
    """Returns max(logits / 2 - t, 0)^2, (..., K): p'logits plus the 1.5-Tsallis entropy of p at its largest.

    Between softmax and sparsemax: smooth, yet with exact zeros, whose candidates have no gradient.

    Raises:
        ValueError: A row of logits is not valid (see `centred`).
    """
    weights: Tensor = _Entmax15.apply(centred(logits))
    return weights


class _Sparsemax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        scores = scores.clamp_min(OUTSIDE)
        ordered = scores.sort(-1, descending=True).values
        thresholds = (ordered.cumsum(-1) - 1) / _ranks(ordered)
        weights = (scores - _last(thresholds, ordered)).clamp_min(0)
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (weights,) = ctx.saved_tensors
        return _projected(gradient, (weights > 0).to(weights.dtype))


class _Entmax15(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        scores = (scores / 2).clamp_min(OUTSIDE)
        ordered = scores.sort(-1, descending=True).values
        ranks = _ranks(ordered)
        mean = ordered.cumsum(-1) / ranks
        variance = (ordered.square().cumsum(-1) / ranks - mean.square()).clamp_min(0)
        thresholds = mean - (1 / ranks - variance).clamp_min(0).sqrt()
        roots = (scores - _last(thresholds, ordered)).clamp_min(0)
        ctx.save_for_backward(roots)
        return roots.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (roots,) = ctx.saved_tensors
        return _projected(gradient, roots)


def _ranks(ordered: Tensor) -> Tensor:
    return torch.arange(1, ordered.shape[-1] + 1, device=ordered.device, dtype=ordered.dtype)


def _last(thresholds: Tensor, ordered: Tensor) -> Tensor:
    """Returns, of the thresholds of the r best for every r, that of the largest r whose last member it lets in."""
    support = (thresholds <= ordered).sum(-1, keepdim=True)
    return thresholds.gather(-1, support - 1)


def _projected(gradient: Tensor, slopes: Tensor) -> Tensor:
    """Returns (diag(s) - s s' / sum(s)) gradient."""
    product = gradient * slopes
    return product - slopes * (product.sum(-1, keepdim=True) / slopes.sum(-1, keepdim=True))
