"""Draws of a selector's estimate: the gradient of its objective, as an architecture step would take it."""

import time
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

from nas.errors import NumericsError
from nas.randomness import generator, seed_global
from nas.runs.bench.rounds import clock_of
from nas.runs.bench.steps import PROGRESS
from nas.runs.diagnose.problem import Problem, Vector
from nas.runs.diagnose.reference import Tick
from nas.runs.diagnose.subjects import Subject
from nas.runs.optimizers import Optimizer

DETERMINISTIC = 8
"""Draws of a selector that does not draw: they are equal, and only timed."""


@dataclass(frozen=True, eq=False)
class Estimates:
    """What a selector estimated.

    Attributes:
        gradients: (N, d), one row per draw.
        candidates: Evaluated (run or probed) per edge and draw, over edges that have more than one.
        seconds: Median per draw, `nas.runs.bench.rounds.clock_of`'s time.
    """

    gradients: Vector
    candidates: float
    seconds: float


def lengths(subject: Subject, draws: int, burn_in: int, problem: Problem) -> tuple[int, int]:
    """Returns how many draws of a subject are taken before measuring, and how many are measured."""
    remembers = subject.selector.memory(problem.cells) is not None
    return burn_in if remembers else 1, draws if subject.selector.stochastic or remembers else min(draws, DETERMINISTIC)


def estimate(
    problem: Problem, subject: Subject, optimizer: Optimizer, draws: int, burn_in: int, seed: int, tick: Tick
) -> Estimates:
    """Draws estimates at fixed logits and weights.

    What a selector remembers (a baseline, a control variate) learns in every draw as in a search, from `burn_in` draws
    before the first that counts on; without memory one draw, which warms the machine up, goes before. Draw number n
    has the same key for all selectors, which may so be compared on equal noise.

    Args:
        problem: Loss and logits.
        subject: The selector.
        optimizer: Of the logits in a search, which also trains the parameters that are remembered.
        draws: How many count.
        burn_in: How many go before.
        seed: Key of the draws.
        tick: Called after every draw.

    Raises:
        NumericsError: An estimate is not finite.
    """
    selector = subject.selector.on(problem.cells)
    seed_global(seed, "initialise", "memory")
    memory = selector.memory(problem.cells)
    learned = [] if memory is None else [*memory.parameters()]
    trainer = optimizer.build(learned) if learned else None
    if trainer is not None:
        optimizer.schedule(trainer, PROGRESS)
    before, counted = lengths(subject, draws, burn_in, problem)
    cpu = clock_of(problem.images.device) == "cpu"
    gradients, seconds = [], []
    for number in range(burn_in - before, burn_in + counted):
        problem.evaluated = problem.evaluated if number > burn_in else 0
        start = time.process_time() if cpu else time.perf_counter()
        leaves = {name: table.clone().requires_grad_() for name, table in problem.logits.items()}
        noise = generator(seed, "diagnose", number)
        objective = selector.objective(problem.loss_of, leaves, PROGRESS, noise, memory)
        wanted = [*leaves.values(), *learned]
        found = torch.autograd.grad(objective, wanted, allow_unused=True, materialize_grads=True)
        if trainer is not None:
            for parameter, gradient in zip(learned, found[len(leaves) :], strict=True):
                parameter.grad = gradient
            trainer.step()
        taken = (time.process_time() if cpu else time.perf_counter()) - start
        if number >= burn_in:
            gradients.append(problem.flat(dict(zip(leaves, found, strict=False))))
            seconds.append(taken)
        tick()
    table = np.array(gradients)
    if not np.isfinite(table).all():
        raise NumericsError(f"the estimates of selector {subject.title} are not finite; leave it out of --selectors")
    return Estimates(table, problem.evaluated / (counted * problem.edges), median(seconds))
