"""Hypergradients: the gradient of an outer loss F(w, a) in logits a, through the weights w that an inner loss G trains.

The implicit ones stand at a minimum of G, where dw/da = -(d2G/dw2)^-1 d2G/dwda; the unrolled ones one step before it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

Vector = list[Tensor]
Gradient = Callable[[Sequence[Tensor]], Vector]
"""Returns the gradients of a loss in the given tensors, at their present values."""


@dataclass(frozen=True, kw_only=True)
class Bilevel:
    """A bilevel problem at a point.

    Attributes:
        weights: w; displaced in place by virtual steps, and restored to the bit.
        logits: a.
        outer: The gradient of F.
        inner: The gradient of G without its weight decay.
        step: What a weight step adds to w, given the gradient of G in w: -lr (momentum's past + gradient + decay).
        lr: Factor of the gradient in `step`.
        weight_decay: Of G: G + weight_decay / 2 |w|^2 is minimised.
        graph: Returns G with a graph that can be differentiated twice; only exact products need it.
    """

    weights: Sequence[Tensor]
    logits: Sequence[Tensor]
    outer: Gradient
    inner: Gradient
    step: Callable[[Vector], Vector]
    lr: float
    weight_decay: float = 0.0
    graph: Callable[[], Tensor] | None = None

    def mixed(self, v: Vector, radius: float) -> Vector:
        """Returns d/da <v, dG/dw>, by a central difference of dG/da over a distance of 2 radius along v."""
        return self._difference(self.logits, v, radius)

    def curvature(self, v: Vector, radius: float) -> Vector:
        """Returns (d2G/dw2 + weight decay) v, likewise."""
        return [
            h + self.weight_decay * each for h, each in zip(self._difference(self.weights, v, radius), v, strict=True)
        ]

    def exactly_mixed(self, v: Vector) -> Vector:
        """Returns d/da <v, dG/dw>, by differentiating twice."""
        assert self.graph is not None
        first = torch.autograd.grad(self.graph(), self.weights, create_graph=True, materialize_grads=True)
        inner = torch.stack([(g * each).sum() for g, each in zip(first, v, strict=True)]).sum()
        return [*torch.autograd.grad(inner, self.logits, allow_unused=True, materialize_grads=True)]

    def _difference(self, tensors: Sequence[Tensor], v: Vector, radius: float) -> Vector:
        length = norm(v)
        if length == 0:
            return [torch.zeros_like(each) for each in tensors]
        epsilon = radius / length
        sides = []
        for sign in (1.0, -1.0):
            with displaced(self.weights, [sign * epsilon * each for each in v]):
                sides.append(self.inner(tensors))
        return [(ahead - behind) / (2 * epsilon) for ahead, behind in zip(*sides, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Hypergradient(ABC):
    """How the gradient of the logits sees the weights' dependence on them.

    Attributes:
        needs_graph: Whether `Bilevel.graph` is used.
    """

    registry: ClassVar[str] = "nas.hypergradients"
    needs_graph: ClassVar[bool] = False

    @abstractmethod
    def estimate(self, problem: Bilevel) -> Vector:
        """Returns dF/da, one tensor per table of logits; the weights are afterwards what they were, bit for bit."""


@dataclass(frozen=True, kw_only=True)
class FirstOrder(Hypergradient):
    """First order: the weights count as constants (Liu et al., 2019, arXiv:1806.09055, xi = 0)."""

    def estimate(self, problem: Bilevel) -> Vector:
        """Returns the partial derivative of F."""
        return problem.outer(problem.logits)


@dataclass(frozen=True, kw_only=True)
class SingleLevel(Hypergradient):
    """Single level: logits and weights descend the same loss, on the same images."""

    def estimate(self, problem: Bilevel) -> Vector:
        """Returns the partial derivative of G."""
        return problem.inner(problem.logits)


@dataclass(frozen=True, kw_only=True)
class Unrolled(Hypergradient):
    """Unrolled: through one weight step, its mixed derivative by a finite difference (arXiv:1806.09055, equation 8).

    Attributes:
        radius: Length of the displacement of the weights on either side, 0.01 as published. Where ReLUs change sides
            within it the difference is wrong: on a supernet of 4 channels 1e-5 was exact, in float64, and 1e-4 was not.
    """

    radius: float = 0.01

    def __post_init__(self) -> None:
        _require(self.radius > 0, "radius must be positive", self.radius)

    def estimate(self, problem: Bilevel) -> Vector:
        """Returns dF/da at the stepped weights, less lr d/da <dF/dw, dG/dw>."""
        partial, v = _after_a_step(problem)
        return _minus(partial, problem.mixed(v, self.radius), problem.lr)


@dataclass(frozen=True, kw_only=True)
class UnrolledExact(Hypergradient):
    """Unrolled exactly: through one weight step by differentiating twice; runs every candidate, on `reference` only."""

    needs_graph: ClassVar[bool] = True

    def estimate(self, problem: Bilevel) -> Vector:
        """Returns dF/da at the stepped weights, less lr d/da <dF/dw, dG/dw>."""
        partial, v = _after_a_step(problem)
        return _minus(partial, problem.exactly_mixed(v), problem.lr)


@dataclass(frozen=True, kw_only=True)
class Neumann(Hypergradient):
    """Implicit, the inverse Hessian by a Neumann series (Lorraine et al., 2020, arXiv:1911.02590).

    Attributes:
        terms: Of the series, beside the first.
        rate: Factor alpha in alpha sum_k (1 - alpha H)^k, below 2 / the largest eigenvalue; 0 takes the weights' lr.
        radius: Of the finite differences.
    """

    terms: int = 5
    rate: float = 0.0
    radius: float = 0.01

    def __post_init__(self) -> None:
        _require(self.terms >= 0, "terms must be at least 0", self.terms)
        _require(self.rate >= 0, "rate must be at least 0", self.rate)
        _require(self.radius > 0, "radius must be positive", self.radius)

    def estimate(self, problem: Bilevel) -> Vector:
        """Returns dF/da less d/da <x, dG/dw>, x the series for H^-1 dF/dw."""
        v, rate = problem.outer(problem.weights), self.rate or problem.lr
        total, term = v, v
        for _ in range(self.terms):
            term = _minus(term, problem.curvature(term, self.radius), rate)
            total = [t + each for t, each in zip(total, term, strict=True)]
        x = [rate * t for t in total]
        return _minus(problem.outer(problem.logits), problem.mixed(x, self.radius), 1.0)


@dataclass(frozen=True, kw_only=True)
class ConjugateGradient(Hypergradient):
    """Implicit, the inverse Hessian by conjugate gradients (Pedregosa, 2016, arXiv:1602.02355).

    Attributes:
        iterations: At most.
        damping: Added to the Hessian's diagonal: off a minimum it is not positive definite.
        radius: Of the finite differences.
    """

    iterations: int = 5
    damping: float = 0.01
    radius: float = 0.01

    def __post_init__(self) -> None:
        _require(self.iterations >= 1, "iterations must be at least 1", self.iterations)
        _require(self.damping >= 0, "damping must be at least 0", self.damping)
        _require(self.radius > 0, "radius must be positive", self.radius)

    def estimate(self, problem: Bilevel) -> Vector:
        """Returns dF/da less d/da <x, dG/dw>, (H + damping) x = dF/dw; stops where the curvature is not positive."""
        v = problem.outer(problem.weights)
        x = [torch.zeros_like(each) for each in v]
        residual, direction, size = v, v, dot(v, v)
        for _ in range(self.iterations):
            if size == 0:
                break
            curved = _minus(problem.curvature(direction, self.radius), direction, -self.damping)
            along = dot(direction, curved)
            if along <= 0:
                break
            length = size / along
            x = _minus(x, direction, -length)
            residual = _minus(residual, curved, length)
            size, before = dot(residual, residual), size
            direction = _minus(residual, direction, -size / before)
        return _minus(problem.outer(problem.logits), problem.mixed(x, self.radius), 1.0)


@contextmanager
def displaced(weights: Sequence[Tensor], displacement: Vector) -> Iterator[None]:
    """Inside, the weights are displaced; afterwards they have the bits they had, whatever happens."""
    kept = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight, each in zip(weights, displacement, strict=True):
                weight.add_(each)
        yield
    finally:
        with torch.no_grad():
            for weight, before in zip(weights, kept, strict=True):
                weight.copy_(before)


def dot(left: Vector, right: Vector) -> float:
    """Returns the inner product of two vectors of tensors."""
    return float(torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)]).sum())


def norm(v: Vector) -> float:
    """Returns the length of a vector of tensors."""
    return float(dot(v, v) ** 0.5)


def _after_a_step(problem: Bilevel) -> tuple[Vector, Vector]:
    """Returns dF/da and dF/dw at the weights after a step of G."""
    with displaced(problem.weights, problem.step(problem.inner(problem.weights))):
        return problem.outer(problem.logits), problem.outer(problem.weights)


def _minus(left: Vector, right: Vector, factor: float) -> Vector:
    return [a - factor * b for a, b in zip(left, right, strict=True)]


def _require(holds: bool, condition: str, value: float) -> None:
    if not holds:
        raise ValueError(f"{condition}, got {value:g}")
