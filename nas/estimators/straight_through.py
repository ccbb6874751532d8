"""Straight-through estimators: a hard decision forward, a relaxation's gradient backward.

Source: Bengio et al., 2013, arXiv:1308.3432; ST Gumbel-Softmax: Jang et al., 2017, arXiv:1611.01144.
"""

from torch import Generator, Tensor

from nas.estimators.gumbel import one_hot_argmax
from nas.estimators.relaxed import gumbel_softmax


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """Returns `hard` exactly, with the gradient of `soft`.

    Args:
        hard: One-hot samples, (..., K).
        soft: Relaxation of the samples, (..., K).
    """
    return hard + (soft - soft.detach())


def straight_through_gumbel_softmax(logits: Tensor, temperature: float, generator: Generator | None = None) -> Tensor:
    """Returns one-hot samples of softmax(logits), (..., K), with the gradient of `gumbel_softmax` on the same noise.

    Raises:
        ValueError: The temperature is not positive, or a row of logits is not valid.
    """
    soft = gumbel_softmax(logits, temperature, generator)
    return straight_through(one_hot_argmax(soft.detach()), soft)
