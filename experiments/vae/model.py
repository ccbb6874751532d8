"""Two variational autoencoders with Bernoulli pixels: one with a Gaussian code, one with a categorical code.

Source: Kingma and Welling, 2014, arXiv:1312.6114; Jang et al., 2017, arXiv:1611.01144.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from nas.estimators import entropy, softmax


def mlp(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inside, outside in pairwise(sizes):
        layers += [nn.Linear(inside, outside), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def distortion(pixels: Tensor, x: Tensor) -> Tensor:
    """Returns -log p(x | z) in nats, (...), for logits of the pixels and binary pixels, (..., P) broadcast."""
    return binary_cross_entropy_with_logits(*torch.broadcast_tensors(pixels, x), reduction="none").sum(-1)


def gaussian_kl(mean: Tensor, log_deviation: Tensor) -> Tensor:
    """Returns KL(N(mu, sigma^2) || N(0, 1)) = 1/2 (mu^2 + sigma^2 - 1 - log sigma^2) by latent, in nats."""
    return 0.5 * (mean**2 + torch.expm1(2 * log_deviation)) - log_deviation


def categorical_kl(logits: Tensor) -> Tensor:
    """Returns KL(softmax(logits) || uniform) = log K - H by latent, (..., N) for (..., N, K); a logit may be -inf."""
    return math.log(logits.shape[-1]) - entropy(softmax(logits))


def free_bits(kl: Tensor, floor: float) -> Tensor:
    """Returns the KL by latent (N,), at least `floor` each: below it, a latent costs nothing more and is not pushed.

    Args:
        kl: (B, N); the mean over the batch is compared.
        floor: In nats; 0 leaves the KL as it is.

    Source: Kingma et al., 2016, arXiv:1606.04934.
    """
    return kl.mean(0).clamp_min(floor)


def information(logits: Tensor) -> Tensor:
    """Returns I(x; z) by latent in nats, (N,) for (B, N, K): entropy of the mean posterior minus mean entropy."""
    posterior = softmax(logits)
    return entropy(posterior.mean(0)) - entropy(posterior).mean(0)


class GaussianVAE(nn.Module):
    """Latents z ~ N(0, 1), (B, N)."""

    def __init__(self, pixels: int, hidden: int, latents: int) -> None:
        super().__init__()
        self.encoder = mlp(pixels, hidden, 2 * latents)
        self.decoder = mlp(latents, hidden, pixels)
        self.latents = latents

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and log-deviation, (B, N) each."""
        mean, log_deviation = self.encoder(x - 0.5).chunk(2, -1)
        return mean, log_deviation

    def decode(self, z: Tensor) -> Tensor:
        """Returns logits of the pixels, (..., P) for (..., N)."""
        pixels: Tensor = self.decoder(z)
        return pixels


class CategoricalVAE(nn.Module):
    """N latents of K classes each, uniform a priori; the decoder takes one-hot or relaxed tables, (..., N, K)."""

    def __init__(self, pixels: int, hidden: int, latents: int, classes: int) -> None:
        super().__init__()
        self.encoder = mlp(pixels, hidden, latents * classes)
        self.decoder = mlp(latents * classes, hidden, pixels)
        self.latents, self.classes = latents, classes

    def encode(self, x: Tensor) -> Tensor:
        """Returns logits of the posterior, (B, N, K)."""
        logits: Tensor = self.encoder(x - 0.5).unflatten(-1, (self.latents, self.classes))
        return logits

    def decode(self, z: Tensor) -> Tensor:
        """Returns logits of the pixels, (..., P) for (..., N, K)."""
        pixels: Tensor = self.decoder(z.flatten(-2))
        return pixels
