"""Rounds of steps, each taken by everyone who is compared, one after the other."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch

from nas.runs.bench.clock import Pieces, Seconds, alternate, logging_seconds
from nas.runs.bench.memory import saved_activations
from nas.runs.bench.steps import (
    PROGRESS,
    Subject,
    fixed_genotype,
    fixed_subject,
    retraining_subject,
    search_subject,
    with_backend,
)
from nas.runs.session import Session
from nas.space import Genotype

REFERENCE, BACKEND, FIXED = "reference", "backend", "fixed"
"""Who is compared: the reference execution, the configured backend, the plain fixed network."""


def clock_of(device: torch.device) -> Literal["cpu", "wall"]:
    """Returns which time counts: the process's CPU time with one thread, which other processes hardly disturb."""
    return "cpu" if device.type == "cpu" and torch.get_num_threads() == 1 else "wall"


class Rounds(ABC):
    """Takes steps and keeps what they took.

    Args:
        work: With the configuration of the backend.

    Attributes:
        subjects: Who is compared, by name.
        times: What each took, one entry per pair, by kind of step and by name.
        pieces: Likewise the pieces of the backend's steps, in seconds, with the `whole`, by kind of step.
        logging: Seconds that the loop around the steps takes, by step; 0 if that was not measured.
    """

    subjects: dict[str, Subject]

    def __init__(self, work: Session) -> None:
        self.work, self.clock = work, clock_of(work.device)
        self.times: dict[str, dict[str, list[Seconds]]] = {}
        self.pieces: dict[str, list[Mapping[str, float]]] = {}
        self.logging = 0.0

    @abstractmethod
    def run(self, pair: int) -> None:
        """Takes every kind of step once; the one before the first pair is number 0, and warms up."""

    def saved(self) -> dict[str, dict[str, int]]:
        """Returns the bytes that each keeps for the backward, by name and by kind of step."""
        return {name: saved_activations(subject) for name, subject in self.subjects.items()}

    def _take(self, kind: str, names: list[str], pair: int) -> None:
        """Lets each of `names` take a step of one kind."""
        pieces: dict[str, float] = {}
        steps = {name: self._action(name, kind, pair, pieces) for name in names}
        self._train(names, kind != "evaluation")
        taken = alternate(steps, pair, self.work.device)
        self._train(names, True)
        if pair == 0:
            return
        for name, seconds in taken.items():
            self.times.setdefault(kind, {}).setdefault(name, []).append(seconds)
        if pieces:
            whole = getattr(taken[BACKEND], self.clock)
            self.pieces.setdefault(kind, []).append({**pieces, "whole": whole})

    def _train(self, names: list[str], mode: bool) -> None:
        for name in names:
            self.subjects[name].network.train(mode)

    def _action(self, name: str, kind: str, pair: int, pieces: dict[str, float]) -> Callable[[], None]:
        subject = self.subjects[name]

        def action() -> None:
            with self._watched(name, kind, pieces):
                subject.steps[kind](pair)

        return action

    @contextmanager
    def _watched(self, name: str, kind: str, pieces: dict[str, float]) -> Iterator[None]:
        yield


class SearchRounds(Rounds):
    """The steps of a search. Reference and backend have equal logits, so that they take equal decisions."""

    def __init__(self, work: Session) -> None:
        super().__init__(work)
        self.reference, self.backend = search_subject(with_backend(work, "reference")), search_subject(work)
        self.subjects = {REFERENCE: self.reference, BACKEND: self.backend}
        self._fixed: Genotype | None = None

    def run(self, pair: int) -> None:
        """Takes every kind of step once."""
        both = [REFERENCE, BACKEND]
        for kind in self.backend.steps:
            self._equalise()
            if kind == "weight_step":
                self._fix(pair)
                self._take(kind, [*both, FIXED], pair)
            else:
                self._take(kind, both, pair)
        if pair == 0 and self.work.device.type == "cpu":
            values = self.backend.search.step(0, PROGRESS)
            self.logging = logging_seconds(self.work, values, self._now)

    def saved(self) -> dict[str, dict[str, int]]:
        """Returns the bytes that each keeps for the backward, by name and by kind of step, for one decision."""
        self._equalise()
        self._fix(0)
        return super().saved()

    def _equalise(self) -> None:
        self.reference.search.architecture.load_state_dict(self.backend.search.architecture.state_dict())

    def _fix(self, pair: int) -> None:
        """Builds the plain network of this pair's decision and lets it warm up, unless it is there."""
        genotype = fixed_genotype(self.work.config, self.backend.search.decide(PROGRESS, "train", pair))
        if genotype != self._fixed:
            self._fixed, self.subjects[FIXED] = genotype, fixed_subject(self.work, genotype)
            self.subjects[FIXED].steps["weight_step"](pair)

    def _now(self) -> float:
        return time.process_time() if self.clock == "cpu" else time.perf_counter()

    @contextmanager
    def _watched(self, name: str, kind: str, pieces: dict[str, float]) -> Iterator[None]:
        # Without waiting for a GPU its pieces cannot be told apart, and waiting would change them.
        if name != BACKEND or kind == "evaluation" or self.work.device.type != "cpu":
            yield
            return
        watch = Pieces(self.backend.search, self._now)
        with watch.watched():
            yield
        pieces |= watch.seconds


class RetrainingRounds(Rounds):
    """The steps of a retraining."""

    def __init__(self, work: Session, genotype: Genotype) -> None:
        super().__init__(work)
        sessions = {REFERENCE: with_backend(work, "reference"), BACKEND: work}
        self.subjects = {name: retraining_subject(each, genotype) for name, each in sessions.items()}

    def run(self, pair: int) -> None:
        """Takes every kind of step once."""
        for kind in self.subjects[BACKEND].steps:
            self._take(kind, [REFERENCE, BACKEND], pair)
