"""Where the runs of a sweep are done: one after the other here, or in processes; another engine implements `Pool`."""

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import TypeVar

from nas.errors import ResourceError

T = TypeVar("T")
R = TypeVar("R")

INTERVAL = 0.2  # seconds between two looks at whether to stop
SIGNALS = {signal.SIGINT, signal.SIGTERM}


class Pool(ABC):
    """Applies a function to tasks, in whatever order and place."""

    @abstractmethod
    def map(self, function: Callable[[T], R], tasks: Sequence[T], stopped: Callable[[], bool]) -> Iterator[R]:
        """Yields the results as they come.

        Args:
            function: At the top of a module, so that it can be sent by its name.
            tasks: Plain values that can be pickled.
            stopped: Asked now and then. Once it is true no task is begun; those at work are sent SIGTERM, on which
                they return early, and their results are still yielded.

        Raises:
            ResourceError: A worker died.
        """


class Serial(Pool):
    """In this process, one after the other; signals reach the task directly."""

    def map(self, function: Callable[[T], R], tasks: Sequence[T], stopped: Callable[[], bool]) -> Iterator[R]:
        """Yields the results in order."""
        for task in tasks:
            if stopped():
                return
            yield function(task)


class Processes(Pool):
    """In worker processes of the standard library, fresh ones (spawn): torch's threads do not survive a fork.

    Workers leave SIGINT, which a terminal sends to all of them, to the task at work. They end after their task when
    this process is gone.

    Args:
        count: How many.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def map(self, function: Callable[[T], R], tasks: Sequence[T], stopped: Callable[[], bool]) -> Iterator[R]:
        """Yields the results in the order in which tasks end."""
        context = multiprocessing.get_context("spawn")
        # Workers wait for this end to close, on purpose or with this process. A shared Event would wait for the dead.
        reader, writer = context.Pipe(duplex=False)
        executor = ProcessPoolExecutor(min(self.count, len(tasks)) or 1, context, _begin, (reader,))
        try:
            with _blocked():  # a worker that starts has no handlers yet
                waiting = {executor.submit(_call, function, task) for task in tasks}
            while waiting:
                done, waiting = wait(waiting, INTERVAL, FIRST_COMPLETED)
                for future in done:
                    if (result := _result(future)) is not None:
                        yield result
                if stopped():
                    writer.close()  # tasks that no worker has yet come back as None
        except BaseException:
            writer.close()
            raise
        finally:
            executor.shutdown(cancel_futures=True)
            writer.close()
            reader.close()


def pool_of(workers: int) -> Pool:
    """Returns a pool of worker processes, or this process for one."""
    return Serial() if workers == 1 else Processes(workers)


def threads_each(workers: int) -> int:
    """Returns each worker's share of the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // workers)


def _result(future: "Future[R | None]") -> R | None:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise ResourceError(
            "a worker process died (killed, or out of memory?); what was saved is kept, repeat the command to go on, "
            "perhaps with fewer --workers"
        ) from error


@contextlib.contextmanager
def _blocked() -> Iterator[None]:
    """Holds signals back; what is started inside begins with them held back, too."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_stop = threading.Event()
_busy = False


def _begin(reader: Connection) -> None:
    """Readies a worker before its first task."""
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: None)  # a task has handlers of its own
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    logging.basicConfig(format="nas: %(message)s", stream=sys.stderr)
    logging.getLogger("nas").setLevel(logging.INFO)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()


def _watch(reader: Connection) -> None:
    """Sends this process SIGTERM once it is to stop, again and again: a task may be just about to begin."""
    reader.poll(None)
    _stop.set()
    parent = multiprocessing.parent_process()
    while _busy or (parent is not None and parent.is_alive()):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(INTERVAL)
    os._exit(1)  # nobody is left to send a task or to take a result


def _call(function: Callable[[T], R], task: T) -> R | None:
    """Does a task in a worker; None if it is not to begin any more."""
    global _busy
    _busy = True
    try:
        return None if _stop.is_set() else function(task)
    finally:
        _busy = False
