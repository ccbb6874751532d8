"""Doing what a plan says, beginning where it was left."""

import json
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from nas import errors
from nas.errors import Interrupted, NasError
from nas.files import write_json
from nas.progress import StopRequest
from nas.runs.compare.rows import PLAN, ROW, SEARCH_ONLY, failure, read_row
from nas.runs.configuration import Config
from nas.runs.cost import limited_by
from nas.runs.gap import read_table
from nas.runs.search import examine, modified
from nas.runs.sweep.baselines import random_cell
from nas.runs.sweep.plan import Planned
from nas.runs.sweep.pool import Pool
from nas.runs.sweep.work import Outcome, finished, work
from nas.status import lock


def check(planned: Sequence[Planned]) -> None:
    """Finds what would stop runs later, and trains nothing.

    Raises:
        ConfigError: A run folder holds results of other settings, a space does not fit together, the images or the
            modifiers, no network keeps the target of cost, or the table is of another space.
        DataError: There is no such table.
    """
    seen: set[str] = set()

    def new(config: Config, *parts: object) -> bool:
        key = repr((config.space, config.dataset, *parts))
        known = key in seen
        seen.add(key)
        return not known

    for each in planned:
        run = each.run()
        config = run.config
        run.check(remeasure=True)
        if each.kind == "search":
            modified(config)  # a modifier may not go with one of the selectors
            limited_by(config)
            if new(config, config.search.modifiers):
                examine(config, config.dataset.task())
        elif new(config, config.benchmark) and (table := read_table(config)):
            table.entry(config.space, random_cell(config))
            _ = each.retrain or table.test


def sweep(planned: Sequence[Planned], folder: Path, pool: Pool, *, quiet: bool = False) -> list[Outcome]:
    """Does the runs of a plan that are not done: searches and random cells, then random searches at equal budget.

    Args:
        planned: See `plan`.
        folder: Of the sweep; `sweep.json` in it lists the runs.
        pool: Where runs are done.
        quiet: Whether progress is hidden.

    Returns:
        The runs that failed.

    Raises:
        Interrupted: A signal asked for a stop; everything is saved.
        LockedError: Another process works on this sweep.
        NasError: See `check`.
    """
    check(planned)
    with lock(folder), StopRequest() as stop:
        write_json(folder / PLAN, {"runs": [each.listed() for each in planned]})
        first = [each for each in planned if each.kind != "random search"]
        counter = Counter(len(planned), quiet)
        if (known := sum((each.folder / ROW).is_file() and not failure(each.folder) for each in planned)) and not quiet:
            print(f"{known} of {len(planned)} runs have a result already", file=sys.stderr, flush=True)
        failed = _do(first, pool, stop, counter)
        last = [priced for each in planned if each.kind == "random search" and (priced := _priced(each, planned))]
        return [*failed, *_do(last, pool, stop, counter)]


def _do(planned: Sequence[Planned], pool: Pool, stop: StopRequest, counter: "Counter") -> list[Outcome]:
    left = [each for each in planned if not finished(each)]
    counter.done += len(planned) - len(left)
    outcomes: list[Outcome] = []

    def stopped() -> bool:
        return stop.requested is not None or any(outcome.state == "stopped" for outcome in outcomes)

    for outcome in pool.map(work, left, stopped):
        outcomes.append(outcome)
        counter.show(outcome)
    if stopped():
        number = stop.requested or next(outcome.signal for outcome in outcomes if outcome.signal)
        raise Interrupted(
            f"stopped by {signal.Signals(number).name}, {counter.done} of {counter.total} runs are done and everything "
            "is saved; the same command goes on",
            number,
        )
    return [outcome for outcome in outcomes if outcome.state == "failed"]


def _priced(asked: Planned, planned: Sequence[Planned]) -> Planned | None:
    """Returns a random search with the seconds of the searches of its settings; None if none is done.

    Of searches that differ by their seed only the median counts, and of such groups the slowest: a baseline with less
    time than a search it is held against would prove nothing.
    """
    seconds: dict[str, list[float]] = defaultdict(list)
    for each in planned:
        if each.kind == "search" and _alike(each, asked) and finished(each) and (row := read_row(each.run())):
            seconds[json.dumps(each.settings, sort_keys=True)].append(row.search_seconds)
    return replace(asked, budget=max(map(median, seconds.values()))) if seconds else None


def _alike(search: Planned, baseline: Planned) -> bool:
    """Whether a search has the settings on which a baseline depends."""
    left_out = {*SEARCH_ONLY, "seed"}
    return all(search.config[key] == value for key, value in baseline.config.items() if key not in left_out)


def error_of(failed: Sequence[Outcome]) -> NasError:
    """Returns the error with which a sweep ends whose runs failed: of the first one's kind, with all their messages."""
    kind: type[NasError] = getattr(errors, failed[0].error, NasError)
    messages = "; ".join(f"{each.name}: {each.message}" for each in failed)
    count = f"{len(failed)} run{'s' * (len(failed) > 1)} failed"
    return kind(f"{count} ({messages}); the same command tries again")


@dataclass
class Counter:
    """Tells how many runs are done, a line for each, and about how long the rest takes."""

    total: int
    quiet: bool
    done: int = 0
    failed: int = 0
    taken: int = 0
    began: float = field(default_factory=time.monotonic)

    def show(self, outcome: Outcome) -> None:
        """Counts a run that ended."""
        self.taken += 1
        self.done += outcome.state == "done"
        self.failed += outcome.state == "failed"
        left = self.total - self.done - self.failed
        seconds = (time.monotonic() - self.began) / self.taken * left
        more = f"; about {_duration(seconds)} left" if left and outcome.state != "stopped" else ""
        state = "" if outcome.state == "done" else f"{outcome.state}: "
        if not self.quiet:
            line = f"{self.done}/{self.total}  {outcome.name}  {state}{outcome.message}{more}"
            print(line, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
