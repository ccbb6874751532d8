"""The largest eigenvalue of the Hessian of the architecture loss, by power iteration with exact products.

Source: Zela et al., 2020, arXiv:1909.09656, who build the whole Hessian; the rule on its growth is theirs too.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from nas.randomness import generator, seed_global
from nas.runs.modifiers.base import Searching
from nas.runs.optimizers import parameters
from nas.runs.plain import plain_loss, still
from nas.selectors import Selector
from nas.space import Cell

STEP = 1e-4
"""Of central differences in float64: they are wrong by about its square."""

Product = Callable[[Tensor], Tensor]
"""A symmetric matrix, known by its products with vectors, (n,) to (n,)."""


def largest_eigenvalue(product: Product, start: Tensor, tolerance: float, iterations: int) -> tuple[float, float]:
    """Returns the algebraically largest eigenvalue of a symmetric matrix, and the size of the residual.

    Some eigenvalue is no further from the returned one than the residual |Hv - value v|. Power iteration finds that of
    largest magnitude; where it is negative a second one, of the matrix shifted by it, finds the largest.

    Args:
        product: Multiplies a vector by the matrix.
        start: (n,), not 0; random, so that it is orthogonal to no eigenvector.
        tolerance: Of the residual, relative to the eigenvalue.
        iterations: Products at most, in each of the two.
    """
    value, residual, magnitude = _dominant(product, start, 0.0, tolerance, iterations)
    if residual <= tolerance * value:  # so it is not negative
        return value, residual
    value, residual, _ = _dominant(product, start, magnitude, tolerance, iterations)
    return value, residual


def _dominant(
    product: Product, start: Tensor, shift: float, tolerance: float, iterations: int
) -> tuple[float, float, float]:
    """Iterates v <- (H + shift) v; returns <v, Hv>, |Hv - <v, Hv> v|, and the largest |Hv| seen, all for unit v."""
    v, value, residual, magnitude = start / start.norm(), 0.0, math.inf, 0.0
    for _ in range(iterations):
        applied = product(v)
        value = float(v @ applied)
        residual, magnitude = float((applied - value * v).norm()), max(magnitude, float(applied.norm()))
        ahead = applied + shift * v
        length = float(ahead.norm())
        if residual <= tolerance * abs(value) or not length > 0:
            break
        v = ahead / length
    return value, residual, magnitude


class Hessian:
    """The Hessian in the logits, flat, of the loss on one batch of `arch` images: products by differentiating twice.

    The decision is drawn with one key, whatever the epoch; the plain execution runs every candidate. Bonus and
    penalties of the architecture step are no part of it.

    Args:
        search: Its weights, running statistics and global randomness stay as they are.
        progress: Position in the search.
    """

    def __init__(self, search: Searching, progress: float) -> None:
        self.tables = [*search.architecture.parameters()]
        logits = search.forward_logits(progress)
        decision = search.selector.decide(logits, progress, generator(search.seed, "watch", "decide"))
        gpus = range(torch.cuda.device_count())
        with torch.random.fork_rng([*gpus]), still(parameters(search.weights)):
            seed_global(search.seed, "watch", "loss")  # dropout, if any
            loss = plain_loss(search.network, search.norms, search.arch.batch(0), decision, logits)
            self.gradient = _flat(
                torch.autograd.grad(loss, self.tables, create_graph=True, allow_unused=True, materialize_grads=True)
            )

    def __call__(self, v: Tensor) -> Tensor:
        """Returns the product with v."""
        return _flat(
            torch.autograd.grad(
                self.gradient @ v, self.tables, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        )

    def largest(self, seed: int, tolerance: float, iterations: int) -> tuple[float, float]:
        """Returns the largest eigenvalue and its residual (see `largest_eigenvalue`)."""
        start = torch.randn(self.gradient.shape, generator=generator(seed, "watch", "start"), dtype=torch.float64)
        return largest_eigenvalue(self, start.to(self.gradient.dtype), tolerance, iterations)


def growth(values: Sequence[float], span: int) -> float | None:
    """Returns how much the smoothed values grew over `span` of them, to the last that can be smoothed.

    The value smoothed around i is the mean of i - span//2 to i + span//2, of those that exist before i. The growth is
    that around i over that around i - span; None without enough values, or from where it is not positive.

    Source: Zela et al., 2020, arXiv:1909.09656, section 4.3: with span 5, a search stops at a growth above 1 / 0.75,
    and the architecture of i - span is derived.
    """
    last = len(values) - 1 - span // 2
    if last < span:
        return None
    before, now = (_around(values, place, span // 2) for place in (last - span, last))
    return now / before if before > 0 else None


def _around(values: Sequence[float], place: int, half: int) -> float:
    near = values[max(place - half, 0) : place + half + 1]
    return sum(near) / len(near)


def is_smooth(selector: Selector, cells: Mapping[str, Cell], seed: int, progress: float) -> bool:
    """Returns whether decisions are functions of the logits that autograd differentiates twice, rightly.

    It is found by trying: gradient and Hessian of a weighted sum of a decision's weights, along a direction, against
    central differences. Sampled paths fail, whatever their surrogate gradient; so do implicit gradients.

    Args:
        selector: At work on the cells.
        cells: Give the logits their shapes.
        seed: Key of the logits and of the decision.
        progress: Position in the search.
    """
    sizes = [cell.mask.numel() for cell in cells.values()]
    draws = generator(seed, "watch", "is smooth")
    point, along, factors = torch.randn(3, sum(sizes), generator=draws, dtype=torch.float64)

    def value(flat: Tensor) -> Tensor:
        tables = zip(cells.items(), torch.split(flat, sizes), strict=True)
        logits = {name: part.view_as(cell.mask).masked_fill(~cell.mask, -torch.inf) for (name, cell), part in tables}
        decision = selector.decide(logits, progress, generator(seed, "watch", "decide"))
        total: Tensor = factors @ _flat([each.weights for each in decision.values() if each.weights is not None])
        return total

    def slope(flat: Tensor, graph: bool = False) -> tuple[Tensor, Tensor]:
        given = flat.clone().requires_grad_()
        return given, torch.autograd.grad(value(given), given, create_graph=graph)[0]

    try:
        given, gradient = slope(point, graph=True)
        (curved,) = torch.autograd.grad(gradient @ along, given)
        sides = [point + sign * STEP * along for sign in (1, -1)]
        values, slopes = [value(side) for side in sides], [slope(side)[1] for side in sides]
    except RuntimeError:  # it has no gradient, or is differentiable once
        return False
    pairs = ((gradient.detach() @ along, values), (curved, slopes))
    return all(
        torch.allclose((ahead - behind) / (2 * STEP), exact, rtol=1e-4, atol=1e-6) for exact, (ahead, behind) in pairs
    )


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([each.flatten() for each in tensors])
