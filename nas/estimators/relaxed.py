"""Relaxations of a categorical choice: the softmax and the Gumbel-Softmax (Concrete) distribution.

Source: Jang et al., 2017, arXiv:1611.01144; Maddison et al., 2017, arXiv:1611.00712.
"""

import torch
from torch import Generator, Tensor

from nas.estimators.gumbel import centred, finite, gumbel_noise


def softmax(logits: Tensor) -> Tensor:
    """Returns softmax(logits), (..., K), validated and centred."""
    return centred(logits).softmax(-1)


def gumbel_softmax(logits: Tensor, temperature: float | Tensor, generator: Generator | None = None) -> Tensor:
    """Returns relaxed samples y = softmax((logits + G) / temperature), (..., K).

    Raises:
        ValueError: The temperature is not positive, or a row of logits is not valid (see `centred`).
    """
    require_temperature(temperature)
    return (finite(centred(logits) + gumbel_noise(logits, generator)) / temperature).softmax(-1)


def require_temperature(temperature: float | Tensor) -> None:
    """Raises ValueError unless a temperature is positive."""
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")


def entropy(probabilities: Tensor) -> Tensor:
    """Returns the entropy in nats over the last dimension; a probability of zero adds zero, to a gradient too."""
    tiny = torch.finfo(probabilities.dtype).tiny
    return -(probabilities * probabilities.clamp_min(tiny).log()).sum(-1)
