"""`nas bench --latency-table`: how long each candidate takes in the derived network, and how well that adds up."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas.cost.candidates import Costs
from nas.cost.latency import FORMAT, named, setting_of
from nas.derivation import sample, uniform
from nas.errors import ConfigError
from nas.files import write_json
from nas.randomness import generator
from nas.runs.bench.clock import measure
from nas.runs.bench.measure import machine_of
from nas.runs.bench.rounds import clock_of
from nas.runs.configuration import Config
from nas.runs.session import Session, session
from nas.runs.statistics import spearman
from nas.selection import Selection
from nas.space import SearchSpace, Task
from nas.supernet import Network
from nas.supernet.inspection import inspect

NETWORKS = 10
"""Random derived networks that are measured whole: they give what every network needs besides its candidates."""

LONG_ENOUGH, MOST_CALLS = 0.005, 200
"""A measurement repeats short calls until it takes this many seconds, or so many calls."""


@dataclass(frozen=True)
class Place:
    """Where a candidate stands, as far as its latency goes: in_channels, height and width are the input's."""

    operation: str
    in_channels: int
    channels: int
    stride: int
    height: int
    width: int


def latency_table(
    config: Config, path: Path, *, task: Task | None = None, batch_size: int = 1, rounds: int = 5, quiet: bool = False
) -> dict[str, Any]:
    """Measures every candidate at the sizes of its slots, retrained form, evaluation mode, and writes the table.

    Networks are run as plain torch modules, whatever the backend of a search. Everything is measured once per round,
    the first of which warms up and does not count; a latency is the median over the others. The rest of a network is
    the median, over random derived networks, of what they take beyond their candidates.

    Args:
        config: Space, device and threads.
        path: Where the table is written, atomically.
        task: Shape of the images; None takes that of the configured dataset.
        batch_size: Images at once.
        rounds: How often everything is measured.
        quiet: Whether progress is hidden.

    Returns:
        The table.

    Raises:
        ConfigError: A setting is wrong, or the space does not fit the images.
        Interrupted: A signal asked for a stop; nothing is written.
    """
    for name, value in (("batch-size", batch_size), ("pairs", rounds)):
        if value < 1:
            raise ConfigError(f"--{name} must be at least 1, got {value}")
    if not path.parent.is_dir():
        raise ConfigError(f"--latency-table {path}: there is no folder {path.parent}; make it first")
    task = task or config.dataset.task()
    inspect(config.space, task, searching=False)
    config = replace(config, tracking=replace(config.tracking, wandb="disabled"))
    with TemporaryDirectory() as folder, session(Path(folder), config, "bench", quiet=quiet) as work:
        found = _measured(work, task, batch_size, rounds)
    write_json(path, found)
    return found


def _measured(work: Session, task: Task, batch_size: int, rounds: int) -> dict[str, Any]:
    space, clock = work.config.space, clock_of(work.device)
    images = torch.randn(batch_size, task.channels, task.height, task.width, device=work.device)
    slots, actions = _candidates(space, task, images)
    draws = generator(work.config.seed, "latency", "networks")
    genotypes = [*dict.fromkeys(sample(space, uniform(space), draws) for _ in range(NETWORKS))]
    networks = [_network(space.fix(genotype), task, work.device) for genotype in genotypes]
    whole = [_call(network, images) for network in networks]
    taken = _rounds([*actions.values(), *whole], work, rounds, clock)
    seconds = dict(zip(actions, map(median, taken), strict=False))
    tables = {
        name: torch.tensor([[sum(seconds[p] for p in places) for places in row] for row in rows], dtype=torch.float64)
        for name, rows in slots.items()
    }
    parts = Costs(tables, torch.zeros((), dtype=torch.float64))
    sums = [parts.of(space, genotype) for genotype in genotypes]
    measured = [median(each) for each in taken[len(actions) :]]
    fixed = max(0.0, median(one - other for one, other in zip(measured, sums, strict=True)))
    predicted = [fixed + each for each in sums]
    return {
        "format": FORMAT,
        **setting_of(space, task),
        "batch_size": batch_size,
        "clock": clock,
        "rounds": rounds,
        "machine": machine_of(work.device),
        "fixed": fixed,
        "cells": named(space, parts),
        "candidates": [
            {**asdict(place), "seconds": seconds[place], "range": [min(each), max(each)]}
            for place, each in zip(actions, taken, strict=False)
        ],
        "networks": [
            {"genotype": space.format(genotype), "measured": one, "predicted": other}
            for genotype, one, other in zip(genotypes, measured, predicted, strict=True)
        ],
        "r_squared": r_squared(measured, predicted),
        "spearman": spearman(measured, predicted),
    }


def r_squared(measured: Sequence[float], predicted: Sequence[float]) -> float | None:
    """Returns the share of the variance of `measured` that `predicted` explains; None if there is none."""
    total = float(np.var(measured))
    errors = np.subtract(measured, predicted)
    return 1 - float((errors**2).mean()) / total if total else None


def _network(space: SearchSpace, task: Task, device: torch.device) -> Network:
    return Network(space, task, searching=False).to(device).eval()


def _call(module: nn.Module, x: Tensor) -> Callable[[], object]:
    return lambda: module(x)


def _candidates(
    space: SearchSpace, task: Task, images: Tensor
) -> tuple[dict[str, list[list[list[Place]]]], dict[Place, Callable[[], object]]]:
    """Returns the places of each candidate, one per slot, by cell name, and a call for each different place."""
    network = _network(space, task, images.device)
    slots: dict[str, list[list[list[Place]]]] = {
        name: [[[] for _ in range(cell.candidates)] for _ in cell.edges] for name, cell in space.cells.items()
    }
    actions: dict[Place, Callable[[], object]] = {}
    handles = []
    for mixed in network.mixed_cells:
        for e, (edge, candidates) in enumerate(zip(mixed.cell.edges, mixed.candidates, strict=True)):
            stride = mixed.stride_of(e)
            for k, (operation, candidate) in enumerate(zip(edge.operations, candidates, strict=True)):

                def watch(
                    module: nn.Module,
                    inputs: tuple[Tensor],
                    y: Tensor,
                    name: str = operation,
                    stride: int = stride,
                    places: list[Place] = slots[mixed.name][e][k],
                ) -> None:
                    x = inputs[0]
                    place = Place(name, x.shape[1], y.shape[1], stride, x.shape[2], x.shape[3])
                    places.append(place)
                    actions.setdefault(place, _call(module, x.clone()))

                handles.append(candidate.register_forward_hook(watch))
    with torch.no_grad():
        network(images, {name: Selection.everything(cell) for name, cell in space.cells.items()})
    for handle in handles:
        handle.remove()
    return slots, actions


@torch.no_grad()
def _rounds(actions: Sequence[Callable[[], object]], work: Session, rounds: int, clock: str) -> list[list[float]]:
    """Returns the seconds of each action in each round."""
    calls = [1] * len(actions)
    taken: list[list[float]] = [[] for _ in actions]
    with work.progress(rounds + 1, "measure latencies") as bar:
        for turn in range(rounds + 1):
            for place, action in enumerate(actions):
                if turn == 0:
                    action()  # what is set up by a first call does not count
                seconds = getattr(measure(_repeated(action, calls[place]), work.device), clock) / calls[place]
                if turn:
                    taken[place].append(seconds)
                else:
                    calls[place] = min(MOST_CALLS, max(1, math.ceil(LONG_ENOUGH / max(seconds, 1e-9))))
                work.raise_if_stopped("while measuring", "no table was written")
            bar.update(turn + 1)
    return taken


def _repeated(action: Callable[[], object], calls: int) -> Callable[[], None]:
    def repeated() -> None:
        for _ in range(calls):
            action()

    return repeated
