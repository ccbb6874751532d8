"""Who works in a run folder, and how far: a lock that dies with its process, and `status.json`."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from nas.errors import CheckpointError, Interrupted, LockedError, ResourceError
from nas.files import read_json, write_json, writing

INTERVAL = 1.0  # seconds between two writes of the status

SPENT = ("seconds", "cpu_seconds")
"""What `status.json` says of each stage's time: on the wall, and of this process on all its threads."""


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a run folder, which is made where it is missing.

    Raises:
        LockedError: Somebody works in it.
    """
    path, sidecar = folder / ".lock", folder / ".lock.pid"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        held = FileLock(path, timeout=0)
        try:
            held.acquire()
        except Timeout as error:
            message = f"{folder} is in use{_holder(sidecar)}; wait for it, stop it, or choose another folder"
            raise LockedError(message) from error
    try:
        with writing(sidecar):
            sidecar.write_text(f"{os.getpid()}\n")
        yield
    finally:
        sidecar.unlink(missing_ok=True)
        held.release()


def _holder(sidecar: Path) -> str:
    try:
        return f" by process {int(sidecar.read_text())}"
    except (OSError, ValueError):
        return ""


class Status:
    """Keeps `status.json` current and writes the outcome on leaving its block.

    A process that was killed leaves the state `running` and its lock free. Seconds, and the process's CPU seconds, add
    up over resumed runs.
    """

    def __init__(self, folder: Path, command: str) -> None:
        self._path = folder / "status.json"
        self._fields: dict[str, object] = {"command": command, "stage": None, "step": 0, "steps": 0, "message": ""}
        self._clocks = (time.monotonic, time.process_time)
        self._spent = tuple(_past(self._path, name) for name in SPENT)
        self._counted = [clock() for clock in self._clocks]
        self._written = -INTERVAL

    def __enter__(self) -> Self:
        self._write("running")
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._count()
        if error is None:
            self._write("done")
            return
        self._fields["message"] = str(error) or type(error).__name__
        with suppress(ResourceError):  # what happened first says more
            self._write("interrupted" if isinstance(error, (Interrupted, KeyboardInterrupt)) else "failed")

    def update(self, stage: str, step: int, steps: int, message: str = "", force: bool = False) -> None:
        """Reports `step` of `steps`; written about once a second, at a new stage, and by `force`."""
        self._count()
        force = force or stage != self._fields["stage"]
        self._fields.update(stage=stage, step=step, steps=steps, message=message)
        if force or time.monotonic() - self._written >= INTERVAL:
            self._write("running")

    def spent(self, stage: str, cpu: bool) -> float:
        """Returns the seconds, or the process's CPU seconds, of a stage so far."""
        self._count()
        return self._spent[cpu].get(stage, 0.0)

    def _count(self) -> None:
        now = [clock() for clock in self._clocks]
        if isinstance(stage := self._fields["stage"], str):
            for seconds, here, before in zip(self._spent, now, self._counted, strict=True):
                seconds[stage] = seconds.get(stage, 0.0) + here - before
        self._counted = now

    def _write(self, state: str) -> None:
        self._written = time.monotonic()
        spent = {
            name: {stage: round(value, 3) for stage, value in seconds.items()}
            for name, seconds in zip(SPENT, self._spent, strict=True)
        }
        updated = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(self._path, {**self._fields, **spent, "state": state, "pid": os.getpid(), "updated": updated})


def _past(path: Path, name: str) -> dict[str, float]:
    try:
        past = read_json(path)[name]
        return {str(stage): float(value) for stage, value in past.items()}
    except (CheckpointError, KeyError, TypeError, ValueError, AttributeError):
        return {}  # a new run; a damaged status is no reason to stop one
