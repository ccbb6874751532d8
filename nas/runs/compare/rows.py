"""What runs left, as rows to compare: from sweep folders, and from plain run folders."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from nas.config import leaves, to_tree
from nas.errors import CheckpointError, DataError
from nas.files import read_json
from nas.runs.configuration import Config
from nas.runs.folder import Run
from nas.runs.search import SUMMARY
from nas.runs.watch.signals import mass_without_parameters, parameter_free, share_without_parameters

ROW, PLAN = "row.json", "sweep.json"
"""What a sweep leaves: the result of a run in that run's folder, and the list of its runs in its own."""

Kind = Literal["search", "random cell", "random search"]

BASELINES: Mapping[Kind, str] = {"random cell": "random cells", "random search": "random search"}
"""What one has to beat, and what several of them are called."""

SEARCH_ONLY = ("selector", "search", "derive", "gap")
"""Sections on which a random baseline does not depend."""

NEUTRAL = (
    "seed",
    "retrain.seed",
    "benchmark.path",
    "benchmark.hardware",
    "gap.random",
    "gap.ranked",
    "tracking",
    "device",
    "threads",
    "checkpoint_seconds",
)
"""What does not make two runs different ones: seeds, paths, how it is executed and watched, and what no metric sees."""


@dataclass(frozen=True)
class Row:
    """What one run found.

    Attributes:
        folder: Where.
        kind: What was done.
        seed: With which seed.
        config: Its settings by dotted path, but for `NEUTRAL`, and for a baseline but for `SEARCH_ONLY`.
        metrics: See `nas.runs.compare.metrics`; what was not measured is missing.
        seconds: Of each stage; see `seconds_of`. A random search has those of its `choice`.
        cells: How many genotypes a random search chose among.
        table_mean: Means of some metrics over the whole table, where a random cell was looked up.
    """

    folder: Path
    kind: Kind
    seed: int
    config: Mapping[str, object]
    metrics: Mapping[str, float]
    seconds: Mapping[str, float]
    cells: int | None = None
    table_mean: Mapping[str, float] | None = None

    @property
    def search_seconds(self) -> float:
        """Seconds until the genotype was decided."""
        return sum(self.seconds.get(stage, 0.0) for stage in ("search", "derive", "choice"))


@dataclass(frozen=True)
class Gathered:
    """All rows of some folders.

    Attributes:
        rows: What is done.
        failed: Message by name of the run.
        missing: What a sweep was to do and has not done, by name.
    """

    rows: Sequence[Row]
    failed: Mapping[str, str]
    missing: Sequence[str]


def gather(folders: Sequence[Path]) -> Gathered:
    """Returns the rows of sweep folders and of run folders.

    Raises:
        CheckpointError: A folder is neither, or a run given by itself is not measured yet.
    """
    rows: list[Row] = []
    failed: dict[str, str] = {}
    missing: list[str] = []
    for folder in folders:
        if not (folder / PLAN).is_file():
            run = Run.open(folder)
            row = read_row(run)
            if row is None:
                raise CheckpointError(f"{folder} is not measured yet; do it with: nas gap {folder}")
            rows.append(row)
            continue
        planned = [each["name"] for each in read_json(folder / PLAN)["runs"]]
        others = sorted(path.parent.name for path in folder.glob(f"*/{ROW}"))
        for name in dict.fromkeys([*planned, *others]):
            begun = (folder / name / "config.yaml").is_file()
            if message := failure(folder / name):
                failed[name] = message
            elif begun and (row := read_row(Run.open(folder / name))):
                rows.append(row)
            else:
                missing.append(name)
    return Gathered(rows, failed, missing)


def read_row(run: Run) -> Row | None:
    """Returns what a run found; None if it has no result, or one of another genotype than it has now."""
    path = run.folder / ROW
    written = read_json(path) if path.is_file() and not failure(run.folder) else None
    report = run.gap()
    if report is None and written is None:
        return None
    genotype = run.genotype()
    same = written is not None and written["genotype"] == run.config.space.format(genotype)
    if report is None and not same:
        return None
    metrics: dict[str, float] = {}
    if written and same:
        metrics |= written["metrics"]
    else:
        with suppress(DataError):  # the images may be gone, and with them what is known of their size
            metrics |= without_parameters(run)
    if report:  # `nas gap` in the folder of a sweep's run measures again; what it found is newer than the row
        metrics |= metrics_of(report)
    kind = cast(Kind, written["kind"]) if written else "search"
    return Row(
        folder=run.folder,
        kind=kind,
        seed=run.config.seed,
        config=_meaning(run.config, kind),
        metrics=metrics,
        seconds=written["seconds"] if written else seconds_of(run),
        cells=written.get("cells") if written else None,
        table_mean=written.get("table_mean") if written else None,
    )


def failure(folder: Path) -> str | None:
    """Returns the message of a sweep's run that failed."""
    path = folder / ROW
    return cast("str | None", read_json(path).get("failed")) if path.is_file() else None


def metrics_of(report: Mapping[str, Any]) -> dict[str, float]:
    """Returns the metrics of a gap report."""
    return {
        **({key: report[key] for key in ("supernet", "inherited", "gap")}),
        "retrained": report["retrained"]["mean"],
        "test": report["test"]["retrained"]["mean"],
        **(table_metrics(report["benchmark"]) if report["benchmark"] else {}),
    }


def without_parameters(run: Run) -> dict[str, float]:
    """Returns `parameter_free` of a run's genotype, and `parameter_free_mass` where logits were learned.

    Either is missing if no edge had the choice.

    Raises:
        DataError: The dataset does not say how large its images are.
    """
    space = run.config.space
    free = parameter_free(space, run.config.dataset.task())
    found = {"parameter_free": share_without_parameters(run.genotype(), space.cells, free)}
    path = run.folder / SUMMARY
    if run.config.selector.learns and path.is_file():
        found["parameter_free_mass"] = mass_without_parameters(read_json(path)["edges"], free)
    return {name: 100 * share for name, share in found.items() if share is not None}


def table_metrics(entry: Mapping[str, Any]) -> dict[str, float]:
    """Returns the metrics of an entry of a table; none if it knows of costs only."""
    names = {"regret": "regret", "table_test": "test", "rank": "rank"}
    return {name: entry[key] for name, key in names.items() if entry.get(key) is not None}


def seconds_of(run: Run) -> dict[str, float]:
    """Returns the seconds of each stage: CPU time of the process, or time on the wall where a GPU computed."""
    path = run.folder / "status.json"
    status = read_json(path) if path.is_file() else {}
    return dict(status.get("cpu_seconds" if on_cpu(run) else "seconds", {}))


def on_cpu(run: Run) -> bool:
    """Whether a run that has begun computes on the CPU."""
    device = run.config.device
    return device == "cpu" or (device == "auto" and read_json(run.folder / "environment.json")["cuda"] is None)


def _meaning(config: Config, kind: Kind) -> dict[str, object]:
    left_out = NEUTRAL if kind == "search" else (*NEUTRAL, *SEARCH_ONLY)
    return {
        path: value
        for path, value in leaves(to_tree(config))
        if not any(path == part or path.startswith(f"{part}.") for part in left_out)
    }
