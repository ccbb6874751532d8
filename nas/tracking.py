"""Metrics of a run: one JSON line per row in `metrics.jsonl`, copied to wandb where that works.

Rows hold no time stamps, so an interrupted and resumed run leaves the bytes of an uninterrupted one.
"""

import hashlib
import json
import logging
import math
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

from nas.errors import CheckpointError
from nas.files import write_atomic, writing

Value: TypeAlias = float | int | str | None
Mode: TypeAlias = Literal["disabled", "offline", "online"]
MODES: tuple[Mode, ...] = ("disabled", "offline", "online")
PATIENCE = 30.0  # seconds that wandb may take to start, to log in, or to upload the rest


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """How a run is recorded."""

    wandb: Mode = "offline"
    project: str = "nas"
    log_every: int = 10  # steps between rows of metrics

    def __post_init__(self) -> None:
        if self.log_every < 1:
            raise ValueError(f"log_every must be at least 1, got {self.log_every}")


class Tracker:
    """Appends rows to a run folder's `metrics.jsonl`; a context manager, since wandb has an end."""

    def __init__(self, folder: Path, settings: Tracking, config: Mapping[str, object], name: str) -> None:
        self._path = folder / "metrics.jsonl"
        self._keep(lambda row: True)  # a killed process may have left half a line
        self._wandb = _Wandb(folder, settings, config, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._wandb.finish(failed=error is not None)

    def log(self, stage: str, step: int, **values: Value) -> None:
        """Appends one row; a number that is not finite becomes null."""
        finite = {name: _finite(value) for name, value in values.items()}
        line = json.dumps({"stage": stage, "step": step, **finite}, allow_nan=False)
        with writing(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        self._wandb.log(stage, step, finite)

    def rewind(self, stage: str, step: int) -> None:
        """Drops the stage's rows after `step`: the resumed run writes them again."""
        self._keep(lambda row: row["stage"] != stage or row["step"] <= step)

    def _keep(self, wanted: Callable[[Mapping[str, Any]], bool]) -> None:
        if not self._path.exists():
            return
        old = self._path.read_bytes()
        lines = [line for line in old.splitlines(keepends=True) if line.endswith(b"\n")]
        try:
            new = b"".join(line for line in lines if wanted(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{self._path} has a line that is no row of metrics ({error}); remove it") from error
        if new != old:
            write_atomic(self._path, new)


class _Wandb:
    """A sink that can neither stop nor alter a run: after the first failure there is none."""

    def __init__(self, folder: Path, settings: Tracking, config: Mapping[str, object], name: str) -> None:
        self._run: Any = None
        self._stages: set[str] = set()
        with self._harmless():
            wanted = (settings.wandb, os.environ.get("WANDB_MODE") or settings.wandb)
            mode = MODES[min(MODES.index(mode) for mode in wanted)]  # the quieter of the two
            if mode != "disabled":
                self._run = _start(folder.resolve(), mode, settings.project, config, name)

    def log(self, stage: str, step: int, values: Mapping[str, Value]) -> None:
        if self._run is None:
            return
        with self._harmless():
            if stage not in self._stages:
                self._stages.add(stage)
                self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            row = {f"{stage}/{name}": value for name, value in values.items() if value is not None}
            self._run.log({f"{stage}/step": step, **row})

    def finish(self, failed: bool) -> None:
        if self._run is None:
            return
        with self._harmless():
            self._run.finish(exit_code=int(failed))
        self._run = None

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            with _undisturbed():
                yield
        except (Exception, SystemExit) as error:
            self._run = None
            reason = f"{type(error).__name__}: {error}"
            logging.getLogger("nas").warning("wandb failed, the run goes on without it (%s)", reason)


def _start(folder: Path, mode: Mode, project: str, config: Mapping[str, object], name: str) -> Any:
    import wandb

    return wandb.init(
        project=project,
        name=name,
        id=hashlib.sha256(str(folder).encode()).hexdigest()[:16],  # so that a resumed run goes on
        resume="allow",
        reinit="create_new",  # a run that the caller has open is another run
        dir=str(folder),
        mode=mode,
        config=dict(config),
        settings=wandb.Settings(
            silent=True,
            console="off",
            init_timeout=PATIENCE,
            login_timeout=PATIENCE,
            finish_timeout=PATIENCE,
            stop_fn=lambda: None,  # else a button on a web page sends SIGINT
        ),
    )


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Leaves the global random states and stdout alone."""
    import numpy as np
    import torch

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _finite(value: Value) -> Value:
    return None if isinstance(value, float) and not math.isfinite(value) else value
