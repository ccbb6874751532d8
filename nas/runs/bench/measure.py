"""One measurement: what is configured, in as many pairs as asked for, summed up."""

import os
import platform
import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from nas.config import to_tree
from nas.errors import ConfigError, Interrupted
from nas.runs.bench.clock import Seconds
from nas.runs.bench.memory import step_memory
from nas.runs.bench.rounds import BACKEND, FIXED, REFERENCE, RetrainingRounds, Rounds, SearchRounds
from nas.runs.bench.steps import noise, with_backend
from nas.runs.configuration import Config
from nas.runs.session import Session, session
from nas.space import Genotype, Task
from nas.supernet.inspection import inspect


def bench(
    config: Config,
    pairs: int,
    *,
    task: Task | None = None,
    genotype: Genotype | None = None,
    memory: bool = True,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measures the configured backend against the reference, in turn, in this process.

    Images are random. A time is the process's CPU time with one thread, otherwise time on the wall. Every ratio is the
    median over the pairs of the reference's by the backend's, so that above 1 is better. `fixed_weight_step` compares
    with the weight step of a plain fixed network, run by the reference execution: the same path where a decision is
    one path, otherwise a genotype drawn with the seed.

    Args:
        config: Backend, space, selector, batch size, threads and device.
        pairs: How often each step is measured, after one time that does not count.
        task: Shape of the images; None takes that of the configured dataset.
        genotype: Measures its retraining instead of a search.
        memory: Whether to measure memory; the resident set takes a process of its own for each backend.
        quiet: Whether progress is hidden.

    Returns:
        `ratios` and their `ranges`, the `pairs` in seconds, `memory` in bytes, `overhead_share` with its
        `overhead_seconds`, `machine`, `setting` and `notes`, ready for JSON.

    Raises:
        ConfigError: A setting is wrong, or does not fit the images.
        Interrupted: A signal asked for a stop.
    """
    if pairs < 1:
        raise ConfigError(f"--pairs must be at least 1, got {pairs}")
    batch_size = config.search.batch_size if genotype is None else config.retrain.batch_size
    silent = replace(config.tracking, wandb="disabled")
    config = replace(config, dataset=noise(task or config.dataset.task(), batch_size), tracking=silent)
    space = config.space if genotype is None else config.space.fix(genotype)
    size = inspect(space, config.dataset.task(), searching=genotype is None)
    with TemporaryDirectory() as folder, session(Path(folder), config, "bench", quiet=quiet) as work:
        rounds = SearchRounds(work) if genotype is None else RetrainingRounds(work, genotype)
        _run(rounds, work, pairs)
        found, clock = _times(rounds), rounds.clock
        execution = work.execution["run"].__module__
        saved = rounds.saved() if memory else {}
        del rounds  # the next processes may need the memory
        resident, notes = _resident(work, genotype) if memory else ({}, [])
        found["memory"] = {"saved_activations": saved, "step_memory": resident} if memory else {}
        found["ratios"] |= {measure: _worst_ratio(by) for measure, by in found["memory"].items()}
        found["machine"] = machine_of(work.device)
    found["setting"] = {
        "space": to_tree(config.space),
        "selector": None if genotype else to_tree(config.selector),
        "genotype": config.space.format(genotype) if genotype else None,
        "backend": config.engine.backend,
        "execution": execution,
        "batch_size": batch_size,
        "image": list(asdict(config.dataset.task()).values())[:3],
        "pairs": pairs,
        "clock": clock,
        "seed": config.seed,
        **asdict(size),
    }
    if genotype is None and not config.selector.learns:
        notes = ["the selector learns no logits, so there is no architecture step and no bilevel step", *notes]
    found["notes"] = notes
    return found


def _run(rounds: Rounds, work: Session, pairs: int) -> None:
    with work.progress(pairs + 1, "bench") as bar:
        for pair in range(pairs + 1):
            rounds.run(pair)
            bar.update(pair + 1)
            if work.stop.requested is not None:
                name = signal.Signals(work.stop.requested).name
                raise Interrupted(f"stopped by {name} after {pair} of {pairs} pairs", work.stop.requested)


def _times(rounds: Rounds) -> dict[str, Any]:
    """Returns ratios, ranges, pairs and overhead."""
    times = dict(rounds.times)
    steps = [times[kind] for kind in ("weight_step", "architecture_step") if kind in times]
    if len(steps) == 2:
        weight, architecture = steps
        times["bilevel_step"] = {name: _sums(weight[name], architecture[name]) for name in architecture}
    ratios = {kind: _ratios(by[REFERENCE], by[BACKEND], rounds.clock) for kind, by in times.items()}
    if FIXED in times.get("weight_step", {}):
        weight = times["weight_step"]
        ratios["fixed_weight_step"] = _ratios(weight[FIXED], weight[BACKEND], rounds.clock)
    overhead = _overhead(rounds)
    return {
        "ratios": {kind: median(values) for kind, values in ratios.items()},
        "ranges": {kind: [min(values), max(values)] for kind, values in ratios.items()},
        "pairs": {
            kind: {
                name: {"cpu": [each.cpu for each in taken], "wall": [each.wall for each in taken]}
                for name, taken in by.items()
            }
            for kind, by in times.items()
        },
        "overhead_share": {kind: 1 - pieces["arithmetic"] / sum(pieces.values()) for kind, pieces in overhead.items()},
        "overhead_seconds": overhead,
    }


def _sums(one: Sequence[Seconds], two: Sequence[Seconds]) -> list[Seconds]:
    return [Seconds(a.cpu + b.cpu, a.wall + b.wall) for a, b in zip(one, two, strict=True)]


def _ratios(over: Sequence[Seconds], under: Sequence[Seconds], clock: str) -> list[float]:
    return [getattr(a, clock) / getattr(b, clock) for a, b in zip(over, under, strict=True)]


def _overhead(rounds: Rounds) -> dict[str, dict[str, float]]:
    """Returns the median seconds of the pieces of the backend's steps: `arithmetic`, named others, and the `rest`.

    The loop around the steps (`logging`) is counted once per step of the search, with the weight step.
    """
    found: dict[str, dict[str, float]] = {}
    for kind, taken in rounds.pieces.items():
        names = sorted({name for pieces in taken for name in pieces} - {"whole"})
        rest = [pieces["whole"] - sum(pieces.get(name, 0.0) for name in names) for pieces in taken]
        found[kind] = {name: median(pieces.get(name, 0.0) for pieces in taken) for name in names}
        found[kind] |= {"rest": median(rest)}
    if found:
        found["weight_step"]["logging"] = rounds.logging
    if "architecture_step" in found:
        weight, architecture = found["weight_step"], found["architecture_step"]
        names = [*weight, *(name for name in architecture if name not in weight)]
        found["bilevel_step"] = {name: weight.get(name, 0.0) + architecture.get(name, 0.0) for name in names}
    return found


def _resident(work: Session, genotype: Genotype | None) -> tuple[dict[str, dict[str, int] | None], list[str]]:
    """Returns step memory in bytes by name and kind of step, and what could not be measured."""
    found, notes = {}, []
    for name, each in ((REFERENCE, with_backend(work, "reference")), (BACKEND, work)):
        found[name], reason = step_memory(each.config, genotype)
        notes += [f"step memory of {each.config.engine.backend} was not measured: {reason}"] if reason else []
    return found, notes


def _worst_ratio(by: Mapping[str, Mapping[str, int] | None]) -> float | None:
    """Returns the ratio of the largest kinds of step."""
    over, under = by[REFERENCE], by[BACKEND]
    return max(over.values()) / max(under.values()) if over and under else None


def machine_of(device: torch.device) -> dict[str, Any]:
    """Returns what is worth knowing of the machine: processor, cores, threads, versions, device."""
    found = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
    try:
        return {**found, "numba": version("numba")}
    except PackageNotFoundError:
        return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
