"""Straight-through estimators: a hard decision forward, a surrogate's gradient backward.

Source: Bengio et al., 2013, arXiv:1308.3432; ST Gumbel-Softmax: Jang et al., 2017, arXiv:1611.01144.
"""

from torch import Generator, Tensor

from nas.estimators.gumbel import (
    MASKED,
    centred,
    displacement,
    finite,
    given_winner,
    gumbel_max,
    gumbel_noise,
    one_hot_argmax,
)
from nas.estimators.relaxed import gumbel_softmax, require_temperature, softmax


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """Returns `hard` exactly, with the gradient of `soft`.

    Args:
        hard: One-hot samples, (..., K).
        soft: Relaxation of the samples, (..., K).
    """
    return hard + (soft - soft.detach())


def straight_through_gumbel_softmax(
    logits: Tensor, temperature: float | Tensor, generator: Generator | None = None
) -> Tensor:
    """Returns one-hot samples of softmax(logits), (..., K), with the gradient of `gumbel_softmax` on the same noise.

    Raises:
        ValueError: The temperature is not positive, or a row of logits is not valid.
    """
    soft = gumbel_softmax(logits, temperature, generator)
    return straight_through(one_hot_argmax(soft.detach()), soft)


def straight_through_softmax(logits: Tensor, generator: Generator | None = None) -> Tensor:
    """Returns one-hot samples of softmax(logits), (..., K), with the gradient of softmax(logits): J_pi v.

    Exact for a loss that is linear in the sample. SIMPLE (Ahmed et al., 2023, arXiv:2210.01941) with k = 1.
    """
    return straight_through(gumbel_max(logits, generator), softmax(logits).to(logits.dtype))


def gumbel_rao(
    logits: Tensor, temperature: float | Tensor, draws: int = 10, generator: Generator | None = None
) -> Tensor:
    """Returns one-hot samples of softmax(logits), (..., K), with ST-GS's gradient averaged over noise given the sample.

    The conditional noise is a constant: differentiating through it gives another, wrong mean.

    Args:
        logits: (..., K).
        temperature: Of the relaxation.
        draws: Conditional draws that are averaged.

    Source: Paulus et al., 2021, arXiv:2010.04838.

    Raises:
        ValueError: The temperature or the number of draws is not positive, or a row of logits is not valid.
    """
    require_temperature(temperature)
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    table = finite(centred(logits))
    fixed = table.detach()
    hard = one_hot_argmax(fixed + gumbel_noise(fixed, generator))
    perturbed = given_winner(fixed, hard.expand(draws, *hard.shape), generator)
    soft = ((perturbed + (table - fixed)) / temperature).softmax(-1).mean(0)
    return straight_through(hard, soft).to(logits.dtype)


def reinmax(logits: Tensor, generator: Generator | None = None) -> Tensor:
    """Returns one-hot samples e_i of softmax(logits), (..., K), with gradient 1/2 sum_j pi_j (v_i - v_j)(e_i - e_j).

    Exact for a loss that is quadratic in the sample.

    Source: Liu et al., 2023, arXiv:2304.08612; Heun's method, where straight-through is Euler's.
    """
    hard, probabilities, moved = gumbel_max(logits, generator), softmax(logits).detach(), displacement(logits)
    of_sample = (hard * moved).sum(-1, keepdim=True)
    average = (probabilities * moved).sum(-1, keepdim=True)
    return hard + (0.5 * (hard * (of_sample - average) + probabilities * (moved - of_sample))).to(hard.dtype)


def pair_reinmax(logits: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
    """Returns one-hot samples e_i with gradient (1 - pi_i)/2 (v_i - v_j)(e_i - e_j), and their partners e_j, (..., K).

    The partner is drawn from softmax(logits) without the sample: the two are the top of one Gumbel draw. The mean is
    `reinmax`'s, from two candidates instead of all. A row with one live candidate has no partner and no gradient.
    """
    perturbed = finite(centred(logits) + gumbel_noise(logits, generator)).detach()
    hard = one_hot_argmax(perturbed)
    rest = perturbed.masked_fill(hard != 0, MASKED)
    partner = one_hot_argmax(rest) * (rest.amax(-1, keepdim=True) > MASKED / 2)
    share = (softmax(logits).detach() * (1 - hard)).sum(-1, keepdim=True)  # 1 - pi_i, exact where pi_i is nearly 1
    signs = hard - partner
    moved = (signs * displacement(logits)).sum(-1, keepdim=True)
    weights = hard + 0.5 * share * moved * signs * partner.sum(-1, keepdim=True)
    return weights.to(logits.dtype), partner.to(logits.dtype)
