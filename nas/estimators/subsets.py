"""Subsets of k of K candidates: Gumbel top-k sampling, its Plackett-Luce law, and a k-hot relaxation.

Source: Kool et al., 2019, arXiv:1903.06059; the relaxation: Xie & Ermon, 2019, arXiv:1901.10517.
"""

import math

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from nas.estimators.gumbel import centred, gumbel_noise, one_hot_argmax
from nas.estimators.relaxed import require_temperature
from nas.estimators.straight_through import straight_through


def gumbel_top_k(logits: Tensor, k: int, generator: Generator | None = None) -> Tensor:
    """Returns k indices drawn in order, without replacement, in proportion to exp(logits), (..., k).

    Args:
        logits: (..., K), or (E,) for edges; -inf is never drawn.
        k: Size of the subset.
        generator: Source of the noise.

    Raises:
        ValueError: k is not between 1 and the number of live candidates of every row, or a row is not valid.
    """
    return _perturbed(logits, k, generator).topk(k).indices


def plackett_luce_log_prob(logits: Tensor, indices: Tensor) -> Tensor:
    """Returns the log-probability that `gumbel_top_k` draws `indices` in this order, (...).

    Args:
        logits: (..., K); broadcasts against the leading shape of `indices`.
        indices: Distinct candidates, (..., k). With a masked one the result is -inf and has no gradient.

    Raises:
        ValueError: A row of logits is not valid, or a row of indices repeats one.
    """
    logits = centred(logits)
    draws = one_hot(indices, logits.shape[-1])  # (..., k, K)
    if (draws.sum(-2) > 1).any():
        raise ValueError("indices must be distinct within a row")
    drawn = draws.bool()
    before = (draws.cumsum(-2) - draws).bool()
    logits = logits.unsqueeze(-2)
    impossible = (drawn & logits.isneginf()).any(-1).any(-1)
    logits = logits.masked_fill(impossible[..., None, None], 0.0)  # (..., 1, K)
    chosen = logits.masked_fill(~drawn, 0.0).sum(-1)  # (..., k)
    log_prob = (chosen - logits.masked_fill(before, -math.inf).logsumexp(-1)).sum(-1)
    return log_prob.masked_fill(impossible, -math.inf)


def relaxed_top_k(logits: Tensor, k: int, temperature: float, generator: Generator | None = None) -> Tensor:
    """Returns relaxed k-hot samples, (..., K): not negative, and with sum k.

    The sum of k softmaxes, each of scores from which the one before has been removed: x <- x + log(1 - softmax(x /
    temperature)). As temperature -> 0 it tends to the k-hot vector of `gumbel_top_k` on the same noise. Elsewhere an
    entry may exceed 1: for k = 2 of two candidates with scores (log 9, 0) at temperature 1 it is (1.4, .6).

    Raises:
        ValueError: The temperature is not positive, or as `gumbel_top_k`.
    """
    return _relaxed(_perturbed(logits, k, generator), k, temperature)


def straight_through_top_k(logits: Tensor, k: int, temperature: float, generator: Generator | None = None) -> Tensor:
    """Returns k-hot samples, (..., K), exactly, with the gradient of `relaxed_top_k` on the same noise.

    Raises:
        ValueError: As `relaxed_top_k`.
    """
    scores = _perturbed(logits, k, generator)
    hard = torch.zeros_like(scores).scatter(-1, scores.detach().topk(k).indices, 1.0)
    return straight_through(hard, _relaxed(scores, k, temperature))


def _perturbed(logits: Tensor, k: int, generator: Generator | None) -> Tensor:
    """Returns centred logits plus Gumbel noise, (..., K), once there are k candidates to draw."""
    scores = centred(logits)
    live = int(scores.isfinite().sum(-1).min())
    if not 1 <= k <= live:
        raise ValueError(f"k must be between 1 and the {live} candidates that are not masked, got {k}")
    return scores + gumbel_noise(logits, generator)


def _relaxed(scores: Tensor, k: int, temperature: float) -> Tensor:
    require_temperature(temperature)
    scores = centred(scores) / temperature
    weights = scores.softmax(-1)
    total = weights
    for _ in range(k - 1):
        scores = scores + _log_complement(scores, weights) / temperature
        weights = scores.softmax(-1)
        total = total + weights
    return total


def _log_complement(scores: Tensor, weights: Tensor) -> Tensor:
    """Returns log(1 - weights), (..., K), for weights = softmax(scores).

    The largest weight may round to 1, so its complement is taken from the other scores. At least one of them is
    finite, since fewer than k <= live candidates have been removed.
    """
    largest = one_hot_argmax(scores.detach()).bool()
    others = scores.masked_fill(largest, -math.inf).logsumexp(-1, keepdim=True) - scores.logsumexp(-1, keepdim=True)
    return torch.where(largest, others, torch.log1p(-weights.masked_fill(largest, 0.0)))
