"""Gradient estimators: functions of tensors that know logits and temperature, not cells."""

from nas.estimators.gumbel import centred, gumbel_max, gumbel_noise, one_hot_argmax
from nas.estimators.relaxed import entropy, gumbel_softmax, softmax
from nas.estimators.straight_through import straight_through, straight_through_gumbel_softmax

__all__ = [
    "centred",
    "entropy",
    "gumbel_max",
    "gumbel_noise",
    "gumbel_softmax",
    "one_hot_argmax",
    "softmax",
    "straight_through",
    "straight_through_gumbel_softmax",
]
