"""Gumbel noise and the Gumbel-Max trick.

Source: Gumbel, 1954; Maddison et al., 2014, arXiv:1411.0030.
"""

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot

MASKED = -1e30
"""Stands for -inf where infinity times zero would arise; float32 holds it, divided by any sensible temperature too."""


def centred(logits: Tensor) -> Tensor:
    """Returns logits minus their largest, (..., K), in float32 or more; a masked candidate stays -inf.

    Raises:
        ValueError: A row has a NaN or +inf, or no candidate that is not masked.
    """
    table, largest = _with_largest(logits)
    return table - largest


def checked(logits: Tensor) -> Tensor:
    """Returns logits, (..., K), in float32 or more, once they are what `centred` takes."""
    return _with_largest(logits)[0]


def _with_largest(logits: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    largest = logits.detach().amax(-1, keepdim=True)
    if not torch.isfinite(largest).all():
        raise ValueError("logits must be finite, or -inf for a masked candidate with at least one left per row")
    return logits, largest


def one_hot_argmax(scores: Tensor) -> Tensor:
    """Returns the one-hot argmax over the last dimension, (..., K), in the dtype of `scores`."""
    return one_hot(scores.argmax(-1), scores.shape[-1]).to(scores.dtype)


def gumbel_noise(like: Tensor, generator: Generator | None = None) -> Tensor:
    """Returns standard Gumbel noise of the shape, device and dtype of `like`, but never in half precision.

    Drawn as -log(Exp(1)); the exponential is clamped at the dtype's smallest normal number, so the noise is finite.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    exponential = torch.empty(like.shape, device=like.device, dtype=dtype).exponential_(generator=generator)
    return exponential.clamp_min_(torch.finfo(dtype).tiny).log_().neg_()


def gumbel_max(logits: Tensor, generator: Generator | None = None) -> Tensor:
    """Returns exact one-hot samples of softmax(logits), (..., K); a logit of -inf is never drawn."""
    return one_hot_argmax(centred(logits) + gumbel_noise(logits, generator)).to(logits.dtype)


def conditional_gumbel(logits: Tensor, winner: Tensor, generator: Generator | None = None) -> Tensor:
    """Returns centred(logits) + G drawn from its law given which candidate is the largest.

    Differentiable in the logits as logits + G is: what `centred` takes off counts as a constant.

    Args:
        logits: (..., K); a masked candidate's value is -inf.
        winner: (..., K), one-hot; its shape may have more leading dimensions, for several draws.

    Source: Maddison et al., 2014, arXiv:1411.0030; Tucker et al., 2017, arXiv:1703.07370, appendix.
    """
    drawn = given_winner(finite(centred(logits)), winner, generator)
    return drawn.masked_fill(~torch.isfinite(logits), -torch.inf)


def given_winner(table: Tensor, winner: Tensor, generator: Generator | None = None) -> Tensor:
    """Returns what `conditional_gumbel` does for a table that is `finite` and centred; it stays finite."""
    noise = -gumbel_noise(table.expand(winner.shape), generator)  # log of Exp(1)
    of_winner = (noise * winner).sum(-1, keepdim=True)
    top = table.logsumexp(-1, keepdim=True) - of_winner
    others = -torch.logaddexp(noise - table, -top)
    return torch.where(winner != 0, top, others)


def displacement(logits: Tensor) -> Tensor:
    """Returns zeros, (..., K), with the gradient of the logits; with none where masked."""
    table = logits.masked_fill(logits == -torch.inf, 0.0)  # -inf minus itself would be NaN
    return table - table.detach()


def finite(logits: Tensor) -> Tensor:
    """Returns logits with a large negative number for -inf: the same softmax, and products with 0 that are 0."""
    return logits.masked_fill(logits == -torch.inf, MASKED)
