"""One diagnosis: supernet, exact gradient, and every selector's estimates of it, at initial and at trained weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch

from nas.architecture import Architecture
from nas.config import to_tree
from nas.errors import ConfigError
from nas.randomness import generator, seed_global, seed_of
from nas.runs.bench.measure import machine_of
from nas.runs.bench.rounds import clock_of
from nas.runs.configuration import Config
from nas.runs.diagnose.estimates import estimate, lengths
from nas.runs.diagnose.problem import Problem, Tables
from nas.runs.diagnose.reference import Reference, Tick, enumerated, sampled
from nas.runs.diagnose.statistics import compare, size
from nas.runs.diagnose.subjects import Subject
from nas.runs.optimizers import parameters
from nas.runs.plain import still
from nas.runs.search import BilevelSearch
from nas.runs.session import Session, session
from nas.runs.training import require_finite
from nas.selectors.uniform import Uniform
from nas.subspace import Subspace, architectures, in_words, reduced
from nas.supernet.inspection import inspect

LIMIT = 1024
"""Architectures up to which a space is enumerated without being asked to."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How estimates are judged.

    Attributes:
        draws: Estimates of each selector.
        burn_in: Draws before, in which what a selector remembers learns.
        epochs: Of training the supernet by uniform sampling, before the trained weights are diagnosed.
        batch_size: Images in the one batch on which the loss is taken.
        weights: At which weights.
        logits: `flat` as a search starts, or `normal`, N(0, 1): as inside a search, unequal probabilities.
        reference: `enumerate` the whole space, `sampled` decisions, or `auto`: enumerate what is small or made so.
        decisions: Of a sampled reference.
    """

    draws: int = 200
    burn_in: int = 200
    epochs: int = 3
    batch_size: int = 64
    weights: Literal["trained", "initial", "both"] = "both"
    logits: Literal["flat", "normal"] = "normal"
    reference: Literal["auto", "enumerate", "sampled"] = "auto"
    decisions: int = 4096

    def __post_init__(self) -> None:
        for name, least in (("draws", 2), ("burn_in", 1), ("epochs", 1), ("batch_size", 1), ("decisions", 2)):
            if getattr(self, name) < least:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} must be at least {least}, got {getattr(self, name)}")


def diagnose(config: Config, subjects: Sequence[Subject], settings: Settings, *, quiet: bool = False) -> dict[str, Any]:
    """Compares the estimates of selectors with the exact gradient of the expected loss.

    Args:
        config: Space, dataset, seed, engine; `search` says how weights and what selectors remember are trained.
        subjects: The selectors.
        settings: How.
        quiet: Whether progress is hidden.

    Returns:
        `rows` at trained and `initial_rows` at initial weights, and with what they were found, ready for JSON.

    Raises:
        ConfigError: A setting is wrong, or the space offers no choice.
        Interrupted: A signal asked for a stop.
    """
    if config.search.modifiers:
        raise ConfigError("diagnose judges selectors on a supernet as it is; leave search.modifiers away")
    inspect(config.space, config.dataset.task(), searching=True)
    whole = architectures(config.space)
    space = reduced(config.space, LIMIT) if settings.reference == "auto" else config.space
    if whole < 2:
        raise ConfigError("the space has one architecture only: no edge has two candidates to choose between")
    config = replace(config, tracking=replace(config.tracking, wandb="disabled"), derive=None)
    with TemporaryDirectory() as folder, session(Path(folder), config, "diagnose", quiet=quiet) as opened:
        search = replace(config.search, epochs=settings.epochs)
        work = replace(opened, config=replace(config, space=space, selector=Uniform(), search=search))
        found = _diagnose(work, subjects, settings)
        machine = machine_of(work.device)
        clock = clock_of(work.device)
    sample = settings.reference == "sampled"
    small = space if isinstance(space, Subspace) and space is not config.space else None
    batch_size = found.pop("batch_size")  # a split may be smaller than what was asked for
    return {
        **found,
        "space": to_tree(config.space),
        "architectures": None if sample else architectures(space),
        "architectures_of_space": whole,
        "reference": "sampled" if sample else "enumerated",
        "reduced": in_words(small) if small else None,
        "kept": dict(small.kept) if small else None,
        "machine": machine,
        "setting": {
            **asdict(settings),
            "batch_size": batch_size,
            "temperatures": sorted({each.temperature for each in subjects if each.temperature is not None}),
            "decisions": settings.decisions if sample else None,
            "seed": config.seed,
            "dataset": to_tree(config.dataset),
            "search_batch_size": config.search.batch_size,
            "backend": config.engine.backend,
            "clock": clock,
        },
    }


def _diagnose(work: Session, subjects: Sequence[Subject], settings: Settings) -> dict[str, Any]:
    """Returns rows, and the size of gradient and loss, by weights."""
    seed = work.config.seed
    search = BilevelSearch(work)
    images, labels = work.batches(work.splits.arch, settings.batch_size, seed=seed, stream="diagnose").batch(0)
    problem = Problem(search.network, images, labels, _logits(work, settings.logits))
    found: dict[str, Any] = {"rows": [], "initial_rows": [], "gradient_norm": {}, "gradient_norm_error": {}}
    found |= {"expected_loss": {}, "loss_deviation": {}, "batch_size": len(labels)}
    for weights, key in (("initial", "initial_rows"), ("trained", "rows")):
        if settings.weights not in (weights, "both"):
            continue
        if weights == "trained":
            _train(search, work)
        with still(parameters(search.weights)):
            reference = _reference(problem, work, settings, weights)
            norm, error = size(reference)
            found[key] = _rows(problem, reference, work, subjects, settings, weights)
        for name, value in (("gradient_norm", norm), ("gradient_norm_error", error)):
            found[name][weights] = value
        found["expected_loss"][weights], found["loss_deviation"][weights] = reference.loss, reference.deviation
    return found


def _logits(work: Session, kind: str) -> Tables:
    space, seed = work.config.space, work.config.seed
    with torch.no_grad():
        flat = Architecture(space, seed).logits()
    if kind == "flat":
        return flat
    drawn = {name: torch.randn(table.shape, generator=generator(seed, "normal", name)) for name, table in flat.items()}
    return {name: drawn[name].masked_fill(table.isinf(), -torch.inf) for name, table in flat.items()}


def _train(search: BilevelSearch, work: Session) -> None:
    """Takes the weight steps of a search that samples uniformly."""
    with _counted(work, search.steps, "train the supernet") as tick:
        for step in range(search.steps):
            seed_global(search.seed, search.stage, step)
            values = search.step(step, search.progress(step))
            if (step + 1) % search.steps_per_epoch == 0:
                require_finite(bool(values["train_loss"].isfinite()), "the loss of the supernet's training", step + 1)
            tick()


def _reference(problem: Problem, work: Session, settings: Settings, weights: str) -> Reference:
    if settings.reference == "sampled":
        with _counted(work, settings.decisions, f"gradient by sampling, {weights} weights") as tick:
            draws = generator(work.config.seed, "reference")
            return sampled(problem, settings.decisions, draws, tick)
    with _counted(work, architectures(work.config.space), f"exact gradient, {weights} weights") as tick:
        return enumerated(problem, tick)


def _rows(
    problem: Problem,
    reference: Reference,
    work: Session,
    subjects: Sequence[Subject],
    settings: Settings,
    weights: str,
) -> list[dict[str, Any]]:
    rows, seed, logits = [], work.config.seed, work.config.search.logits
    total = sum(sum(lengths(subject, settings.draws, settings.burn_in, problem)) for subject in subjects)
    with _counted(work, total, f"estimates, {weights} weights") as tick:
        for subject in subjects:
            estimates = estimate(problem, subject, logits, settings.draws, settings.burn_in, seed, tick)
            random = np.random.default_rng(seed_of(seed, "bootstrap"))
            named = {"selector": subject.name, "temperature": subject.temperature, "draws": len(estimates.gradients)}
            costs = {"candidates": estimates.candidates, "seconds_per_draw": estimates.seconds}
            rows.append({**named, **costs, **compare(estimates, reference, random)})
    return rows


@contextmanager
def _counted(work: Session, total: int, title: str) -> Iterator[Tick]:
    """Shows progress by one at every call of what it gives, which raises Interrupted once a signal asked for a stop."""
    done = 0
    with work.progress(total, title) as bar:

        def tick() -> None:
            nonlocal done
            done += 1
            bar.update(done)
            work.raise_if_stopped(f"during: {title}", "nothing is kept")

        yield tick
