"""Bias, variance and what follows from them, of estimates of a gradient, each with its standard error."""

import numpy as np
from numpy.typing import NDArray

from nas.errors import ConfigError
from nas.runs.diagnose.estimates import Estimates
from nas.runs.diagnose.problem import Vector
from nas.runs.diagnose.reference import Reference

RESAMPLES = 400
CANDIDATES = 64
"""Candidate evaluations per edge at which the mean squared errors of selectors are compared."""

Figures = dict[str, NDArray[np.float64]]


def size(reference: Reference) -> tuple[float, float]:
    """Returns the norm of the reference gradient and its standard error, 0 if it is exact.

    Raises:
        ConfigError: The gradient is zero, or lost in the noise of the sampled decisions.
    """
    square = float(reference.gradient @ reference.gradient)
    if reference.terms is None:
        if not square > 0:
            raise ConfigError("the exact gradient is zero: every architecture of the space has the same loss")
        return square**0.5, 0.0
    noise = np.atleast_2d(np.cov(reference.terms.T)) / len(reference.terms)
    error = _error_of_square(reference.gradient, noise)
    square -= float(np.trace(noise))
    if not square > error:
        raise ConfigError(
            f"the gradient is lost in the noise of {len(reference.terms):,} decisions; raise --decisions, or "
            "use --reference enumerate or auto"
        )
    return float(square**0.5), error / (2 * square**0.5)


def compare(estimates: Estimates, reference: Reference, random: np.random.Generator) -> dict[str, float]:
    """Returns how estimates G (N, d) differ from a gradient g (d,), in units of its norm.

    `bias` is the norm of E[G] - g: the squared distance of the mean from g, less what the noise of N draws adds to it
    on average, tr(Cov)/N, never below 0. `variance` is tr(Cov). `cosine` and `sign_agreement` are of the mean; noise
    that is left in it lowers them. The mean squared errors, bias^2 + variance / n, are those of the mean of
    the n draws that 64 candidate evaluations per edge, or a second, pay for.

    A sampled reference adds a noise of its own, tr(Cov)/M, which is likewise taken off the squared distance and off the
    squared norm. Standard errors (`..._error`) are bootstrapped over the draws and the reference's decisions; that of
    the bias is derived (`_bias_error`).

    Args:
        estimates: Of one selector.
        reference: The gradient.
        random: For the bootstrap.
    """
    g, terms = reference.gradient, reference.terms
    count, mean = len(estimates.gradients), estimates.gradients.mean(0)
    rows = estimates.gradients - mean  # centred, so that equal draws have a variance of exactly 0
    shifts, traces = _resampled(rows, random)
    references, noises = g[None], np.zeros(1)
    if terms is not None:
        moves, spreads = _resampled(terms - g, random)
        references, noises = g + moves, spreads / len(terms)
    costs = (estimates.candidates / CANDIDATES, estimates.seconds)
    values = _figures(
        mean[None],
        _trace(rows) / count,
        g[None],
        np.zeros(1) if terms is None else _trace(terms - g) / len(terms),
        count,
        costs,
    )
    spread = _figures(mean + shifts, traces / count, references, noises, count, costs)
    found: dict[str, float] = {}
    for name, value in values.items():
        found[name] = float(value[0])
        found[f"{name}_error"] = float(np.std(spread[name])) if np.ptp(spread[name]) else 0.0
    return {**found, "bias_error": _bias_error(rows, mean - g, reference, found["bias"])}


def _figures(
    means: Vector, noises: Vector, references: Vector, reference_noises: Vector, count: int, costs: tuple[float, float]
) -> Figures:
    """Returns the figures of R resamples: means (R, d), the noise tr(Cov)/N in them (R,), and the reference's."""
    squares = np.maximum((references**2).sum(1) - reference_noises, np.finfo(float).tiny)
    distances = ((means - references) ** 2).sum(1) - noises - reference_noises
    bias = np.maximum(distances, 0) / squares
    variance = count * noises / squares
    lengths = np.sqrt((means**2).sum(1) * squares)
    inner = (means * references).sum(1)
    return {
        "bias": np.sqrt(bias),
        "variance": variance,
        "cosine": np.divide(inner, lengths, out=np.zeros_like(inner), where=lengths > 0),
        "sign_agreement": (np.sign(means) == np.sign(references)).mean(1),
        f"mse_per_{CANDIDATES}_candidates": bias + variance * costs[0],
        "mse_per_second": bias + variance * costs[1],
    }


def _resampled(rows: Vector, random: np.random.Generator) -> tuple[Vector, Vector]:
    """Returns means (R, d) and traces of the covariance (R,) of rows drawn again, with replacement."""
    count = len(rows)
    shares = random.multinomial(count, np.full(count, 1 / count), RESAMPLES) / count
    means = shares @ rows
    squares = shares @ (rows**2).sum(1) - (means**2).sum(1)
    return means, np.maximum(squares, 0) * count / max(count - 1, 1)


def _trace(rows: Vector) -> Vector:
    """Returns the trace of the covariance of centred rows, (1,)."""
    return np.array([(rows**2).sum() / max(len(rows) - 1, 1)])


def _error_of_square(difference: Vector, noise: Vector) -> float:
    """Returns the standard error of the debiased squared norm of a difference with covariance `noise`, if normal."""
    least = 2 * float((noise**2).sum())
    return float(np.sqrt(max(4 * float(difference @ noise @ difference) - least, least)))


def _bias_error(rows: Vector, difference: Vector, reference: Reference, bias: float) -> float:
    """Returns the standard error of the relative bias, on the safe side near 0.

    The square has a standard error s at a bias of 0 too, where the root has no derivative; s is carried through the
    root at the smallest bias whose square is within 2 s of the one that was found.
    """
    norm, norm_error = size(reference)
    noise = rows.T @ rows / max(len(rows) - 1, 1) / len(rows)
    if reference.terms is not None:
        noise = noise + np.cov(reference.terms.T) / len(reference.terms)
    s = _error_of_square(difference, noise) / norm**2
    if s == 0:
        return 0.0
    return float(np.hypot(s / (2 * np.sqrt(max(bias**2 - 2 * s, s / 4))), bias * norm_error / norm))
