"""One run of a sweep, wherever a pool does it: its stages, and `row.json` with what it found."""

import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any, Literal

from nas.derivation import discretise
from nas.errors import Interrupted, LockedError, NasError
from nas.files import read_json, write_json
from nas.runs.compare.rows import ROW, failure, metrics_of, read_row, seconds_of, table_metrics, without_parameters
from nas.runs.derive import load_search
from nas.runs.folder import STAGES, Run
from nas.runs.gap import read_table, supernet_accuracies
from nas.runs.pipeline import execute
from nas.runs.retrain import Retrained, read_retrained
from nas.runs.session import session
from nas.runs.sweep.baselines import random_cell, random_search
from nas.runs.sweep.plan import Planned


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        name: Of the run folder.
        state: Stopped is by a signal, with everything saved.
        message: What it found, or what went wrong.
        error: Class of `nas.errors`, where it failed.
        signal: What stopped it.
    """

    name: str
    state: Literal["done", "failed", "stopped"]
    message: str
    error: str = "NasError"
    signal: int = 0


def work(planned: Planned) -> Outcome:
    """Does a run, or goes on with it; whatever happens to it is its outcome, so that the others go on."""
    try:
        row = _row(planned)
        write_json(planned.folder / ROW, row)
    except Interrupted as error:
        return Outcome(planned.name, "stopped", str(error), signal=error.signal_number)
    except LockedError as error:  # the folder is somebody else's: nothing is written
        return Outcome(planned.name, "failed", str(error), "LockedError")
    except Exception as error:
        if not isinstance(error, NasError):
            traceback.print_exc()
        message = str(error) if isinstance(error, NasError) else f"{type(error).__name__}: {error}"
        with suppress(NasError):
            planned.folder.mkdir(parents=True, exist_ok=True)
            write_json(planned.folder / ROW, {"failed": message})
        kind = type(error).__name__ if isinstance(error, NasError) else "NasError"
        return Outcome(planned.name, "failed", message, kind)
    return Outcome(planned.name, "done", _in_words(row["metrics"]))


def finished(planned: Planned) -> bool:
    """Whether a run has a row with all that is asked for."""
    path = planned.folder / ROW
    asked = planned.run()
    if not path.is_file() or failure(planned.folder) or not (row := read_row(asked)):
        return False
    if planned.kind == "search" and planned.retrain and Run.open(planned.folder).config.gap != asked.config.gap:
        return False
    written = read_json(path)
    same = written.get("benchmark") == planned.config["benchmark"] and written.get("budget") == planned.budget
    return same and ("retrained" in row.metrics or not planned.retrain)


def _row(planned: Planned) -> dict[str, Any]:
    asked = planned.run()
    cell = random_cell(asked.config) if planned.kind == "random cell" else None
    run = Run.begin(asked.folder, asked.config, cell, remeasure=True)
    stages = {"search": _search, "random cell": _random_cell, "random search": _random_search}[planned.kind]
    found, genotype = stages(run, planned), run.genotype()
    space = run.config.space
    found["metrics"] |= without_parameters(run)
    if table := read_table(run.config):
        found["metrics"] |= (known := table_metrics(asdict(table.entry(space, genotype))))
        if known:
            average = float(table.test.mean())
            found["table_mean"] = {"regret": float(table.test.max()) - average, "table_test": average}
    found["seconds"] = {stage: round(value, 3) for stage, value in found["seconds"].items()}
    about = {**planned.listed(), "benchmark": planned.config["benchmark"]}
    return {**about, "genotype": space.format(genotype), **found}


def _search(run: Run, planned: Planned) -> dict[str, Any]:
    if planned.retrain:
        report = execute(run, STAGES, quiet=True, command="run").gap()
        assert report is not None
        return {"metrics": metrics_of(report), "seconds": seconds_of(run)}
    execute(run, STAGES[:2], quiet=True, command="search")
    seconds = seconds_of(run)
    with session(run.folder, run.config, "search", quiet=True) as opened:
        search, decided = load_search(opened), discretise(run.config.space, run.genotype())
        supernet = mean(select for select, _ in supernet_accuracies(opened, search))
        inherited = opened.evaluator.accuracy(search.network, decided, "select")[0]
    return {"metrics": {"supernet": supernet, "inherited": inherited}, "seconds": seconds}


def _random_cell(run: Run, planned: Planned) -> dict[str, Any]:
    if not planned.retrain:
        return {"metrics": {}, "seconds": {}}
    execute(run, ["retrain"], quiet=True)
    results = read_retrained(run.config, run.folder, run.genotype(), run.config.retrain.seeds)
    return {"metrics": _scores(results), "seconds": seconds_of(run)}


def _random_search(run: Run, planned: Planned) -> dict[str, Any]:
    assert planned.budget is not None
    results, spent = random_search(run, planned.budget, retrain=planned.retrain)
    seconds = seconds_of(run)
    seconds |= {"choice": sum(spent), "retrain": seconds["retrain"] - sum(spent)}
    return {"metrics": _scores(results), "seconds": seconds, "cells": len(spent), "budget": planned.budget}


def _scores(results: Sequence[Retrained]) -> dict[str, float]:
    if not results:
        return {}
    return {"retrained": mean(each.select for each in results), "test": mean(each.test for each in results)}


def _in_words(metrics: Mapping[str, float]) -> str:
    shown = [name for name in ("regret", "retrained", "inherited") if name in metrics]
    return ", ".join(f"{name} {metrics[name]:.2f}" for name in shown)
