"""Reparameterised samples of continuous laws: a gradient follows the path of every draw.

`torch.normal(mean, deviation)` has no gradient and does not say so; these have. The identity needs a continuous
function of the sample: for a step the gradient is zero, whatever the truth. Nor is a path always quieter than a score
function: it multiplies by the slope, which a fast oscillation makes large.

Source: Kingma & Welling, 2014, arXiv:1312.6114; implicit gradients: Figurnov et al., 2018, arXiv:1805.08498.
"""

import math
from collections.abc import Callable
from functools import reduce

import torch
from torch import Generator, Tensor

from nas.estimators.gumbel import centred, gumbel_max, gumbel_noise

LOCATIONS = ("mean", "means", "location")
"""Parameters that may be any finite number; the others are positive."""


def normal(mean: Tensor, deviation: Tensor, generator: Generator | None = None) -> Tensor:
    """Returns mean + deviation * N(0, 1), in the broadcast shape of the parameters and float32 or more.

    Raises:
        ValueError: A mean is not finite, or a deviation not positive and finite; so for every law here.
    """
    mean, deviation = _broadcast(mean=mean, deviation=deviation)
    return mean + deviation * _standard_normal(mean, generator)


def logistic(location: Tensor, scale: Tensor, generator: Generator | None = None) -> Tensor:
    """Returns location + scale * log(u / (1 - u)), u uniform on (0, 1), in the broadcast shape."""
    location, scale = _broadcast(location=location, scale=scale)
    # Draws are multiples of eps / 2 (eps, in float64) below one; zero becomes a half or less of the first.
    return location + scale * _uniform(location, generator).clamp_min(torch.finfo(location.dtype).eps / 4).logit()


def laplace(location: Tensor, scale: Tensor, generator: Generator | None = None) -> Tensor:
    """Returns location - scale * sign(u) * log(1 - 2|u|), u uniform on (-1/2, 1/2), in the broadcast shape."""
    location, scale = _broadcast(location=location, scale=scale)
    u = _uniform(location, generator) - 0.5
    return location - scale * u.sign() * (1 - 2 * u.abs()).clamp_min(torch.finfo(u.dtype).eps / 2).log()


def exponential(rate: Tensor, generator: Generator | None = None) -> Tensor:
    """Returns -log(1 - u) / rate, u uniform on [0, 1), in the shape of `rate`."""
    (rate,) = _broadcast(rate=rate)
    return -torch.log1p(-_uniform(rate, generator)) / rate


def gumbel(location: Tensor, scale: Tensor, generator: Generator | None = None) -> Tensor:
    """Returns location - scale * log(-log u), u uniform on (0, 1), in the broadcast shape."""
    location, scale = _broadcast(location=location, scale=scale)
    return location + scale * gumbel_noise(location, generator)


def gamma(concentration: Tensor, rate: Tensor, generator: Generator | None = None) -> Tensor:
    """Returns Gamma(concentration) / rate, in the broadcast shape.

    The concentration's gradient is torch's implicit one, right to 1e-3. A draw below the dtype's range becomes its
    smallest normal number, in float32 most draws of a concentration under .008.
    """
    concentration, rate = _broadcast(concentration=concentration, rate=rate)
    return torch._standard_gamma(concentration, generator) / rate


def student_t(freedom: Tensor, location: Tensor, scale: Tensor, generator: Generator | None = None) -> Tensor:
    """Returns location + scale * N(0, 1) / sqrt(2 Gamma(freedom / 2) / freedom), in the broadcast shape."""
    freedom, location, scale = _broadcast(freedom=freedom, location=location, scale=scale)
    half = freedom / 2
    return location + scale * _standard_normal(location, generator) * gamma(half, half, generator).rsqrt()


def beta(concentration1: Tensor, concentration0: Tensor, generator: Generator | None = None) -> Tensor:
    """Returns Beta(concentration1, concentration0) samples, in the broadcast shape; see `dirichlet`."""
    concentrations = _broadcast(concentration1=concentration1, concentration0=concentration0)
    return dirichlet(torch.stack(concentrations, -1), generator)[..., 0]


def dirichlet(concentration: Tensor, generator: Generator | None = None) -> Tensor:
    """Returns Dirichlet samples, (..., K), with torch's implicit gradient, right to 2e-3 (K = 2: the Beta law's).

    The law holds for any concentration, though below .001 the gradient lives on rare draws. `torch.distributions` fails
    there, where Gamma samples leave the range: at (.001, .001) its mean gradient of the mean is 120 times too large.
    """
    (concentration,) = _broadcast(concentration=concentration)
    with torch.no_grad():
        # Gamma(a) is Gamma(a + 1) u^(1/a) in law, whose logarithm does not underflow (Marsaglia & Tsang, 2000).
        log_u = -torch.empty_like(concentration).exponential_(generator=generator)
        sample = (torch._standard_gamma(concentration + 1, generator).log() + log_u / concentration).softmax(-1)
        total = concentration.sum(-1, keepdim=True).expand_as(concentration)
        slope = torch._dirichlet_grad(sample, concentration, total)
    # dx_j/da_i = slope_i (1[i = j] - x_j): one entry grows, the others keep their proportions.
    change = slope * (concentration - concentration.detach())
    return sample + change - sample * change.sum(-1, keepdim=True)


def implicit(sample: Tensor, cdf: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns `sample`, with the gradient dz/dtheta = -(dF/dtheta) / p(z) to the parameters in `cdf`.

    Args:
        sample: Draws z of a univariate law, (...); their own graph is left out.
        cdf: The distribution function F, or F plus a constant: elementwise, differentiable in z and the parameters.

    Raises:
        ValueError: The density p = dF/dz is not positive at a sample.
    """
    z = sample.detach()
    with torch.enable_grad():
        point = z.clone().requires_grad_()
        (density,) = torch.autograd.grad(cdf(point).sum(), point)
    if not (density > 0).all():
        raise ValueError(f"cdf must increase at every sample, got a slope of {density[~(density > 0)][0].item()}")
    probability = cdf(z)
    return z - (probability - probability.detach()) / density


def normal_mixture(logits: Tensor, means: Tensor, deviations: Tensor, generator: Generator | None = None) -> Tensor:
    """Returns samples of sum_k softmax(logits)_k N(means_k, deviations_k^2), (...), with `implicit` gradients.

    Args:
        logits: Component logits, (..., K); -inf for one that is never drawn.
        means: (..., K), or any shape that broadcasts with the others.
        deviations: The same.
    """
    means, deviations = _broadcast(means=means, deviations=deviations)
    parameters = torch.broadcast_tensors(centred(logits), means, deviations)  # type: ignore[no-untyped-call]
    logits, means, deviations = parameters
    chosen = gumbel_max(logits.detach(), generator)
    mean, deviation = ((chosen * values.detach()).sum(-1) for values in (means, deviations))
    weights = logits.softmax(-1)

    def cdf(z: Tensor) -> Tensor:
        # F or F - 1, whichever keeps its digits in the tail; torch's ndtr, 1 + erf, would lose them below.
        scaled = (z.unsqueeze(-1) - means) / (deviations * math.sqrt(2))
        below, above = ((weights * torch.erfc(side)).sum(-1) / 2 for side in (-scaled, scaled))
        return torch.where(below < above, below, -above)

    return implicit(mean + deviation * _standard_normal(mean, generator), cdf)


def _broadcast(**parameters: Tensor) -> tuple[Tensor, ...]:
    """Returns the parameters in one shape and dtype, float32 or more, or raises for a value outside the range."""
    for name, value in parameters.items():
        valid = value.isfinite() if name in LOCATIONS else value.isfinite() & (value > 0)
        if not valid.all():
            condition = "finite" if name in LOCATIONS else "positive and finite"
            raise ValueError(f"{name} must be {condition}, got {value[~valid][0].item()}")
    dtype = reduce(torch.promote_types, (value.dtype for value in parameters.values()), torch.float32)
    values = (value.to(dtype) for value in parameters.values())
    return tuple(torch.broadcast_tensors(*values))  # type: ignore[no-untyped-call]


def _standard_normal(like: Tensor, generator: Generator | None) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def _uniform(like: Tensor, generator: Generator | None) -> Tensor:
    return torch.rand(like.shape, generator=generator, device=like.device, dtype=like.dtype)
