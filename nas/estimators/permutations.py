"""Random permutations: Gumbel noise, rounded by the Hungarian algorithm or relaxed by Sinkhorn's normalisation.

Source: Mena et al., 2018, arXiv:1802.08665; Sinkhorn, 1964.
"""

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from nas.estimators.gumbel import centred, gumbel_noise
from nas.estimators.relaxed import require_temperature
from nas.estimators.straight_through import straight_through


def sinkhorn(log_scores: Tensor, iterations: int = 100) -> Tensor:
    """Returns exp(log_scores), (..., N, N), after `iterations` normalisations of the rows and then the columns.

    Columns sum to 1; rows approach it, the slower the more peaked the scores.

    Args:
        log_scores: (..., N, N); -inf forbids an assignment.
        iterations: At least 1.

    Raises:
        ValueError: No iterations, a matrix that is not square, or a row or column with a NaN, +inf or only -inf.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    log_scores = _checked(log_scores)
    for _ in range(iterations):
        log_scores = log_scores.log_softmax(-1).log_softmax(-2)
    return log_scores.exp()


def gumbel_sinkhorn(
    scores: Tensor, temperature: float, iterations: int = 100, generator: Generator | None = None
) -> Tensor:
    """Returns relaxed permutations sinkhorn((scores + G) / temperature), (..., N, N).

    As temperature -> 0 and iterations grow, the permutation of `gumbel_matching` on the same noise. At temperature .1
    100 iterations leave row errors of a few per cent; 20 leave some rows without most of their mass.

    Raises:
        ValueError: The temperature is not positive, or as `sinkhorn`.
    """
    return _relaxed(_perturbed(scores, generator), temperature, iterations)


def hungarian(scores: Tensor) -> Tensor:
    """Returns the permutation matrix P that maximises sum(P * scores), (..., N, N), without gradient.

    Raises:
        ValueError: As `sinkhorn`, or no permutation avoids the forbidden assignments.
    """
    from scipy.optimize import linear_sum_assignment

    matrices = _checked(scores).detach().reshape(-1, *scores.shape[-2:]).cpu().numpy()
    columns = [linear_sum_assignment(matrix, maximize=True)[1].tolist() for matrix in matrices]
    return one_hot(torch.tensor(columns), scores.shape[-1]).to(scores).reshape(scores.shape)


def gumbel_matching(scores: Tensor, generator: Generator | None = None) -> Tensor:
    """Returns the permutation matrix of perturbed scores, (..., N, N), without gradient.

    No exact sampler of the Gibbs law exp(sum(P * scores)) / Z: the noise of N! permutations is built from only N^2
    draws, which is flatter. With N = 3 and scores 1.617 on the diagonal the identity has .737 in place of .882.
    """
    return hungarian(_perturbed(scores, generator))


def straight_through_matching(
    scores: Tensor, temperature: float, iterations: int = 100, generator: Generator | None = None
) -> Tensor:
    """Returns permutation matrices, (..., N, N), with the gradient of `gumbel_sinkhorn` on the same noise.

    Raises:
        ValueError: As `gumbel_sinkhorn` and `hungarian`.
    """
    perturbed = _perturbed(scores, generator)
    return straight_through(hungarian(perturbed), _relaxed(perturbed, temperature, iterations))


def _perturbed(scores: Tensor, generator: Generator | None) -> Tensor:
    return _checked(scores) + gumbel_noise(scores, generator)


def _relaxed(perturbed: Tensor, temperature: float, iterations: int) -> Tensor:
    require_temperature(temperature)
    return sinkhorn(centred(perturbed) / temperature, iterations)


def _checked(scores: Tensor) -> Tensor:
    """Returns scores with every row's largest at zero, the same assignment problem, in float32 or more."""
    if scores.dim() < 2 or scores.shape[-1] != scores.shape[-2]:
        raise ValueError(f"scores must be square matrices, (..., N, N), got {tuple(scores.shape)}")
    centred(scores.mT)
    return centred(scores)
