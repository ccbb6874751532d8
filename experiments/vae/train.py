"""Training and evaluation of the two VAEs."""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Generator, Tensor, nn
from vae.gradients import make
from vae.model import CategoricalVAE, GaussianVAE, categorical_kl, distortion, free_bits, gaussian_kl, information

from nas.estimators import gumbel_max, gumbel_softmax
from nas.estimators.continuous import normal
from nas.schedules import Exponential, Linear, Schedule

ACTIVE = 0.01
"""A Gaussian latent is active if its mean varies over images by at least this (Burda et al., 2016, arXiv:1509.00519), a
categorical one if it tells this many nats about the image. A KL alone would not do: free bits give it for nothing."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Binary images, (n, P) each."""

    name: str
    side: int
    train: Tensor
    test: Tensor


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How one VAE is trained."""

    model: str = "categorical"
    estimator: str = "gumbel-softmax"  # of a categorical one
    temperature: Schedule = Exponential(start=1.0, end=0.5)
    warm_up: float = 0.0  # the share of the steps over which the KL's weight grows from 0 to 1
    free_bits: float = 0.0  # nats per latent
    hidden: int = 128
    latents: int = 8
    classes: int = 8
    steps: int = 3000
    batch_size: int = 64
    learning_rate: float = 2e-3
    control_learning_rate: float = 1e-2  # of REBAR's and RELAX's control variates
    evaluations: int = 15

    def kl_weight(self, progress: float) -> float:
        """Returns the weight of the KL at a progress in [0, 1]."""
        return Linear(start=0.0, end=1.0)(min(1.0, progress / self.warm_up)) if self.warm_up else 1.0


def digits() -> Data:
    """Returns scikit-learn's 1,797 digits, 8x8, a pixel being 1 above half of its range; 1,400 for training."""
    images = torch.tensor(load_digits().data > 8, dtype=torch.float32)
    images = images[torch.randperm(len(images), generator=Generator().manual_seed(0))]
    return Data(name="digits", side=8, train=images[:1400], test=images[1400:])


def mnist(path: Path, train: int = 10_000, test: int = 1_000) -> Data:
    """Returns the first images of MNIST, 28x28, a pixel being 1 above half of its range."""
    with np.load(path, allow_pickle=False) as file:
        parts = [torch.from_numpy(file[f"{k}_images"][:n]).flatten(1) for k, n in (("train", train), ("test", test))]
    first, second = ((part > 127).float() for part in parts)
    return Data(name="mnist", side=28, train=first, test=second)


def build(setting: Setting, data: Data) -> GaussianVAE | CategoricalVAE:
    """Returns a VAE whose pixels have the data's frequencies at first."""
    pixels = data.train.shape[1]
    model = (
        GaussianVAE(pixels, setting.hidden, setting.latents)
        if setting.model == "gaussian"
        else CategoricalVAE(pixels, setting.hidden, setting.latents, setting.classes)
    )
    frequency = (data.train.sum(0) + 1) / (len(data.train) + 2)
    with torch.no_grad():
        model.decoder[-1].bias.copy_(frequency.logit())
    return model


def gaussian_objective(model: GaussianVAE, x: Tensor, weight: float, floor: float, generator: Generator) -> Tensor:
    """Returns the weighted negative ELBO of a batch, ()."""
    mean, log_deviation = model.encode(x)
    z = normal(mean, log_deviation.exp(), generator)
    return distortion(model.decode(z), x).mean() + weight * free_bits(gaussian_kl(mean, log_deviation), floor).sum()


def categorical_objective(
    model: CategoricalVAE,
    estimator: nn.Module,
    x: Tensor,
    temperature: float,
    weight: float,
    floor: float,
    generator: Generator,
) -> Tensor:
    """Returns the weighted negative ELBO of a batch, (), with the estimator's gradient."""
    logits = model.encode(x)
    reconstruction: Tensor = estimator(lambda z: distortion(model.decode(z), x), logits, x, temperature, generator)
    return reconstruction + weight * free_bits(categorical_kl(logits), floor).sum()


@torch.no_grad()
def evaluate(
    model: GaussianVAE | CategoricalVAE, x: Tensor, temperature: float, generator: Generator, samples: int = 1
) -> dict[str, float]:
    """Returns negative ELBOs in nats per image (KL with weight 1, no free bits), and what of them is KL.

    `hard` is the ELBO: one-hot codes, as the generative model draws them. `relaxed` puts the relaxation of the same
    temperature in their place; it bounds nothing. A Gaussian code has no relaxation.
    """
    if isinstance(model, GaussianVAE):
        mean, log_deviation = model.encode(x)
        kl, spread = gaussian_kl(mean, log_deviation), mean.var(0)
        shape = (samples, *mean.shape)
        codes = {"hard": normal(mean.expand(shape), log_deviation.exp().expand(shape), generator)}
    else:
        logits = model.encode(x)
        kl, spread = categorical_kl(logits), information(logits)
        several = logits.expand(samples, *logits.shape)
        codes = {
            "hard": gumbel_max(several, generator),
            "relaxed": gumbel_softmax(several, temperature, generator),
        }
    by_latent = kl.mean(0)
    found = {name: float(distortion(model.decode(z), x).mean() + by_latent.sum()) for name, z in codes.items()}
    return {**found, "kl": float(by_latent.sum()), "active": int((spread > ACTIVE).sum())}


@torch.no_grad()
def images(model: GaussianVAE | CategoricalVAE, data: Data, generator: Generator, count: int = 10) -> dict[str, Any]:
    """Returns test images, their reconstructions and samples of the prior as bytes, (count, P) each."""
    x = data.test[:count]
    if isinstance(model, GaussianVAE):
        mean, log_deviation = model.encode(x)
        code = normal(mean, log_deviation.exp(), generator)
        drawn = torch.randn(code.shape, generator=generator)
    else:
        logits = model.encode(x)
        code = gumbel_max(logits, generator)
        drawn = gumbel_max(torch.zeros_like(logits), generator)
    shown = {"original": x, "reconstruction": model.decode(code).sigmoid(), "sample": model.decode(drawn).sigmoid()}
    return {name: (255 * each).round().to(torch.uint8).numpy() for name, each in shown.items()}


def train(setting: Setting, data: Data, seed: int) -> tuple[GaussianVAE | CategoricalVAE, dict[str, Any]]:
    """Returns the trained VAE, and its learning curve on test images with the last, more careful evaluation."""
    torch.manual_seed(seed)  # initial weights only
    generator, judge = Generator().manual_seed(seed), Generator().manual_seed(1000 + seed)
    model = build(setting, data)
    groups: list[dict[str, Any]] = [{"params": [*model.parameters()], "lr": setting.learning_rate}]
    if isinstance(model, GaussianVAE):
        objective = partial(gaussian_objective, model)
    else:
        with torch.no_grad():
            typical = float(distortion(model.decoder[-1].bias, data.train).mean())
        estimator = make(setting.estimator, data.train.shape[1], setting.latents * setting.classes, typical)
        groups.append({"params": [*estimator.parameters()], "lr": setting.control_learning_rate})
        objective = partial(categorical_objective, model, estimator)
    optimizer = torch.optim.Adam([group for group in groups if group["params"]])
    curve: list[dict[str, float]] = []
    seconds = 0.0
    for step in range(setting.steps):
        progress = step / (setting.steps - 1)
        temperature, weight = setting.temperature(progress), setting.kl_weight(progress)
        started = time.process_time()
        x = data.train[torch.randint(len(data.train), (setting.batch_size,), generator=generator)]
        settings = (weight, setting.free_bits, generator)
        loss = objective(x, *(settings if isinstance(model, GaussianVAE) else (temperature, *settings)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds += time.process_time() - started
        if step % (setting.steps // setting.evaluations) == 0 or step == setting.steps - 1:
            found = evaluate(model, data.test, temperature, judge)
            curve.append({"step": step + 1, "temperature": temperature, "kl_weight": weight, **found})
    final = evaluate(model, data.test, setting.temperature(1.0), judge, samples=10)
    return model, {"curve": curve, "final": final, "ms_per_step": 1000 * seconds / setting.steps}
