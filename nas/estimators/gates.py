"""Hard Concrete gates: a stretched and clipped Concrete variable, with literal zeros and ones.

Source: Louizos et al., 2018, arXiv:1712.01312.
"""

import math

import torch
from torch import Generator, Tensor

from nas.estimators.continuous import logistic

TEMPERATURE, GAMMA, ZETA = 2 / 3, -0.1, 1.1
"""As published: the temperature, and the ends of the interval that is clipped to [0, 1]."""


def hard_concrete(
    log_alpha: Tensor,
    temperature: float = TEMPERATURE,
    gamma: float = GAMMA,
    zeta: float = ZETA,
    generator: Generator | None = None,
) -> Tensor:
    """Returns gates clamp(s (zeta - gamma) + gamma, 0, 1), s = sigmoid((log_alpha + logistic noise) / temperature).

    Args:
        log_alpha: Logits of the gates, (...); -inf is closed and inf open for certain.
        temperature: Positive.
        gamma: The lower end of the stretched interval, negative.
        zeta: The upper end, above 1.
        generator: Source of the noise.

    Raises:
        ValueError: A setting is out of its range, or a logit NaN.
    """
    log_alpha = _checked(log_alpha, temperature, gamma, zeta)
    noise = logistic(torch.zeros_like(log_alpha), torch.ones_like(log_alpha), generator)
    return _stretched((log_alpha + noise) / temperature, gamma, zeta)


def open_probability(
    log_alpha: Tensor, temperature: float = TEMPERATURE, gamma: float = GAMMA, zeta: float = ZETA
) -> Tensor:
    """Returns P(gate > 0) = sigmoid(log_alpha - temperature * log(-gamma / zeta)), (...)."""
    return (_checked(log_alpha, temperature, gamma, zeta) - temperature * math.log(-gamma / zeta)).sigmoid()


def l0_penalty(log_alpha: Tensor, temperature: float = TEMPERATURE, gamma: float = GAMMA, zeta: float = ZETA) -> Tensor:
    """Returns the expected number of gates that are not zero, ()."""
    return open_probability(log_alpha, temperature, gamma, zeta).sum()


def deterministic_gate(log_alpha: Tensor, gamma: float = GAMMA, zeta: float = ZETA) -> Tensor:
    """Returns the published gate of test time, clamp(sigmoid(log_alpha) (zeta - gamma) + gamma, 0, 1), (...).

    Neither the mean of `hard_concrete`, which is never exactly 0 or 1, nor its median, which knows the temperature.
    """
    return _stretched(_checked(log_alpha, 1.0, gamma, zeta), gamma, zeta)


def _stretched(logits: Tensor, gamma: float, zeta: float) -> Tensor:
    return (logits.sigmoid() * (zeta - gamma) + gamma).clamp(0, 1)


def _checked(log_alpha: Tensor, temperature: float, gamma: float, zeta: float) -> Tensor:
    """Returns log_alpha in float32 or more, or raises for a setting out of its range."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    if not -math.inf < gamma < 0:
        raise ValueError(f"gamma must be negative and finite, got {gamma}")
    if not 1 < zeta < math.inf:
        raise ValueError(f"zeta must be above 1 and finite, got {zeta}")
    if log_alpha.isnan().any():
        raise ValueError("log_alpha must be numbers, or -inf and inf for a gate that is closed and open, got nan")
    return log_alpha.to(torch.promote_types(log_alpha.dtype, torch.float32))
