"""Gradient estimators: functions of tensors that know logits and temperature, not cells.

Continuous laws have short names and stay in their module: `nas.estimators.continuous.normal`.
"""

from nas.estimators.control_variates import AdditiveControlVariate, rebar, relax
from nas.estimators.gates import deterministic_gate, hard_concrete, l0_penalty, open_probability
from nas.estimators.gumbel import centred, checked, conditional_gumbel, gumbel_max, gumbel_noise, one_hot_argmax
from nas.estimators.permutations import (
    gumbel_matching,
    gumbel_sinkhorn,
    hungarian,
    sinkhorn,
    straight_through_matching,
)
from nas.estimators.relaxed import entropy, gumbel_softmax, softmax
from nas.estimators.score_function import (
    RunningMean,
    antithetic_gumbel_max,
    importance_weighted,
    leave_one_out,
    local_expectation,
    log_probability,
    rao_blackwellised,
    reinforce,
)
from nas.estimators.sparse import entmax15, sparsemax
from nas.estimators.straight_through import (
    gumbel_rao,
    pair_reinmax,
    reinmax,
    straight_through,
    straight_through_gumbel_softmax,
    straight_through_softmax,
)
from nas.estimators.subsets import gumbel_top_k, plackett_luce_log_prob, relaxed_top_k, straight_through_top_k

__all__ = [
    "AdditiveControlVariate",
    "RunningMean",
    "antithetic_gumbel_max",
    "centred",
    "checked",
    "conditional_gumbel",
    "deterministic_gate",
    "entmax15",
    "entropy",
    "gumbel_matching",
    "gumbel_max",
    "gumbel_noise",
    "gumbel_rao",
    "gumbel_sinkhorn",
    "gumbel_softmax",
    "gumbel_top_k",
    "hard_concrete",
    "hungarian",
    "importance_weighted",
    "l0_penalty",
    "leave_one_out",
    "local_expectation",
    "log_probability",
    "one_hot_argmax",
    "open_probability",
    "pair_reinmax",
    "plackett_luce_log_prob",
    "rao_blackwellised",
    "rebar",
    "reinforce",
    "reinmax",
    "relax",
    "relaxed_top_k",
    "sinkhorn",
    "softmax",
    "sparsemax",
    "straight_through",
    "straight_through_gumbel_softmax",
    "straight_through_matching",
    "straight_through_softmax",
    "straight_through_top_k",
]
