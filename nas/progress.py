"""What a user at a terminal sees and does: progress on stderr, and a signal that asks for a stop after this step."""

import signal
import sys
import threading
import time
from types import FrameType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

BAR_INTERVAL, LINE_INTERVAL = 0.1, 5.0  # seconds


class Progress:
    """Shows a bar on a terminal and a line now and then elsewhere, on stderr only."""

    def __init__(self, total: int, description: str, start: int = 0, quiet: bool = False) -> None:
        self._total, self._description, self._quiet = total, description, quiet
        self._step, self._text = start, ""
        self._shown_step, self._shown_at = start, -LINE_INTERVAL
        self._bar = None if quiet or not sys.stderr.isatty() else _bar()

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.add_task(self._description, total=self._total, completed=self._step, text="")
            self._bar.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._step != self._shown_step:
            self._show()
        if self._bar:
            self._bar.stop()

    def update(self, step: int, **fields: float | int | str) -> None:
        """Reports that `step` steps are done, with numbers worth seeing, e.g. `train_loss=0.41`."""
        self._step, self._text = step, "  ".join(f"{_words(name)} {_short(value)}" for name, value in fields.items())
        interval = BAR_INTERVAL if self._bar else LINE_INTERVAL
        if step >= self._total or time.monotonic() - self._shown_at >= interval:
            self._show()

    def _show(self) -> None:
        self._shown_step, self._shown_at = self._step, time.monotonic()
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self._step, text=self._text, refresh=True)
        elif not self._quiet:
            line = f"{self._description}  {self._step}/{self._total}  {self._text}"
            print(line.rstrip(), file=sys.stderr, flush=True)


def _bar() -> RichProgress:
    text = TextColumn("{task.fields[text]}", markup=False)
    # No thread that refreshes (data loaders fork), and stdout stays where it is.
    return RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        text,
        console=Console(stderr=True),
        auto_refresh=False,
        redirect_stdout=False,
    )


def _words(name: str) -> str:
    return name.replace("_", " ")


def _short(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class StopRequest:
    """Notes SIGINT and SIGTERM in `requested` instead of dying; a second SIGINT raises `KeyboardInterrupt` at once.

    Inside the block of another, what the other has noted counts, and it is told what comes. Only the main thread gets
    signals; elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._interrupted = False
        self._previous: dict[int, Any] = {}
        self._outer: StopRequest | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
            outer = getattr(self._previous[signal.SIGINT], "__self__", None)
            if isinstance(outer, StopRequest):
                self._outer, self.requested = outer, outer.requested
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for number, handler in self._previous.items():
            # None: a handler that was not installed from Python, and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._outer:
            self._outer._note(number, frame)
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = self._interrupted or number == signal.SIGINT
        self.requested = self.requested or number
