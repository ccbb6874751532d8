"""The gradient that estimates are compared with: that of the expected loss over decisions, dE[L(D)]/dlogits."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator

from nas.runs.diagnose.problem import Problem, Vector
from nas.selection import Candidates

Tick = Callable[[], None]
"""Called after every evaluation; may raise to stop the work."""


@dataclass(frozen=True, eq=False)
class Reference:
    """A gradient, exact or sampled.

    Attributes:
        gradient: (d,).
        terms: (M, d), whose mean is the gradient, from independent decisions; None if it is exact.
        loss: The expected loss.
        deviation: Standard deviation of the loss over decisions.
    """

    gradient: Vector
    terms: Vector | None
    loss: float
    deviation: float


def enumerated(problem: Problem, tick: Tick) -> Reference:
    """Returns sum over all architectures a of p(a) L(a) d log p(a), in float64, by one forward pass for each."""
    log_shares = {name: table.double().log_softmax(-1).tolist() for name, table in problem.logits.items()}
    sums = {name: torch.zeros(table.shape, dtype=torch.float64) for name, table in problem.logits.items()}
    first, total, square, centre = True, 0.0, 0.0, 0.0
    for paths in every_path(problem):
        loss = problem.loss(paths)
        centre = loss if first else centre  # a constant has no part in the gradient, and costs digits
        first = False
        chosen = {name: [path[0] for path in rows] for name, rows in paths.items()}
        p = math.exp(sum(log_shares[name][e][k] for name, row in chosen.items() for e, k in enumerate(row)))
        for name, row in chosen.items():
            sums[name][torch.arange(len(row)), row] += p * (loss - centre)
        total += p * (loss - centre)
        square += p * (loss - centre) ** 2
        tick()
    tables = {name: table - problem.logits[name].double().softmax(-1) * total for name, table in sums.items()}
    return Reference(problem.flat(tables), None, centre + total, math.sqrt(max(square - total**2, 0.0)))


def sampled(problem: Problem, decisions: int, generator: Generator, tick: Tick) -> Reference:
    """Returns the score function's estimate over many decisions, each with the mean loss of the others as baseline.

    Args:
        problem: Loss and logits.
        decisions: M, at least 2.
        generator: Source of randomness.
        tick: See `Tick`.

    Source: Kool et al., 2019, "Buy 4 REINFORCE samples, get a baseline for free!".
    """
    shares = {name: table.double().softmax(-1) for name, table in problem.logits.items()}
    drawn = {name: torch.multinomial(p, decisions, replacement=True, generator=generator) for name, p in shares.items()}
    losses, scores = [], []
    for number in range(decisions):
        chosen = {name: table[:, number].tolist() for name, table in drawn.items()}
        losses.append(problem.loss({name: tuple((k,) for k in row) for name, row in chosen.items()}))
        hot = {name: torch.zeros_like(p) for name, p in shares.items()}
        for name, row in chosen.items():
            hot[name][torch.arange(len(row)), row] = 1
        scores.append(problem.flat({name: hot[name] - p for name, p in shares.items()}))
        tick()
    found = np.array(losses)
    # L - mean of the others = M / (M - 1) (L - mean of all)
    terms = (decisions / (decisions - 1)) * (found - found.mean())[:, None] * np.array(scores)
    return Reference(terms.mean(0), terms, float(found.mean()), float(found.std(ddof=1)))


def every_path(problem: Problem) -> Iterator[dict[str, Candidates]]:
    """Yields all architectures: one candidate per edge, by cell name."""
    rows: list[tuple[str, Sequence[int]]] = [
        (name, range(len(edge.operations))) for name, cell in problem.cells.items() for edge in cell.edges
    ]
    for chosen in itertools.product(*(candidates for _, candidates in rows)):
        paths: dict[str, list[tuple[int, ...]]] = {name: [] for name in problem.cells}
        for (name, _), k in zip(rows, chosen, strict=True):
            paths[name].append((k,))
        yield {name: tuple(each) for name, each in paths.items()}
