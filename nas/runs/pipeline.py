"""The four stages as functions: `nas.search`, `nas.derive`, `nas.retrain` and `nas.measure_gap`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nas.config import build, from_mapping, read_yaml
from nas.runs import gap as gap_stage
from nas.runs.configuration import Config
from nas.runs.cost import judge_cost
from nas.runs.derive import derive_genotype
from nas.runs.folder import PRODUCTS, Run, default_folder
from nas.runs.retrain import Retrained, load_network, read_retrained, retrain_genotype
from nas.runs.search import examine, run_search
from nas.runs.session import Session, session
from nas.space import Genotype
from nas.supernet import Network


def configure(config: str | Path | Config | None = None, *, epochs: int | None = None, **sections: Any) -> Config:
    """Returns a complete configuration.

    Args:
        config: A YAML file, or a configuration to change; None for the defaults.
        epochs: Short for `search={"epochs": ...}` and `retrain={"epochs": ...}`.
        sections: Fields of `Config`: a name (`selector="gdas"`), a mapping (`space={"name": "darts", "depth": 5}`),
            or an instance.

    Raises:
        ConfigError: A setting is wrong.
    """
    layers = [] if config is None or isinstance(config, Config) else [read_yaml(Path(config))]
    if isinstance(config, Config):
        layers.append(from_mapping({name: getattr(config, name) for name in vars(config)}, "the given configuration"))
    if epochs is not None:
        both = {"search": {"epochs": epochs}, "retrain": {"epochs": epochs}}
        layers.append(from_mapping(both, f"epochs={epochs}"))
    return build(Config, [*layers, from_mapping(sections, "the call")])


def search(
    config: str | Path | Config | None = None, *, out: str | Path | None = None, quiet: bool = False, **sections: Any
) -> Run:
    """Searches, or goes on with a search that was stopped, and returns its run.

    Args:
        config: See `configure`.
        out: The run folder; None for `runs/<space>_<dataset>_<selector>_...`.
        quiet: Whether progress is hidden.
        sections: See `configure`.

    Raises:
        NasError: See `nas.errors`; the message says what to do.
    """
    asked = configure(config, **sections)
    return execute(Run.begin(default_folder(asked) if out is None else Path(out), asked), ["search"], quiet=quiet)


def derive(run: Run | str | Path, *, quiet: bool = False, **sections: Any) -> Genotype:
    """Derives the genotype of a finished search and writes it to the run folder."""
    return execute(_reopen(run, sections), ["derive"], quiet=quiet).genotype()


def retrain(
    run: Run | str | Path | Genotype, *, out: str | Path | None = None, quiet: bool = False, **sections: Any
) -> list[Retrained]:
    """Retrains a run's derived genotype, or a given one, from scratch, once per seed; what is done is only read.

    Args:
        run: A run with a genotype, or a genotype; then `sections` say which space it is of.
        out: The run folder for a given genotype; None for one in `runs`.
        quiet: Whether progress is hidden.
        sections: See `configure`.
    """
    if isinstance(run, Genotype):
        config = configure(**sections)
        folder = default_folder(config, run) if out is None else Path(out)
        run = Run.begin(folder, config, run)
    else:
        run = _reopen(run, sections)
    with session(run.folder, run.config, "retrain", quiet=quiet) as work:
        return _retrain(work, run)


def measure_gap(run: Run | str | Path, *, quiet: bool = False, **sections: Any) -> dict[str, Any]:
    """Measures a run's search/eval gap, retraining what is missing, and returns the content of `gap.json`."""
    report = execute(_reopen(run, sections), ["gap"], quiet=quiet).gap()
    assert report is not None
    return report


def network(run: Run | str | Path, seed: int = 0) -> Network:
    """Returns the network that `retrain` trained with a seed, on the CPU, in evaluation mode."""
    run = run if isinstance(run, Run) else Run.open(Path(run))
    results = read_retrained(run.config, run.folder, run.genotype(), seed + 1)
    return load_network(run.config, run.genotype(), results[seed].folder)


def execute(run: Run, stages: Sequence[str], *, quiet: bool = False, command: str | None = None) -> Run:
    """Runs stages in order; a stage that is done is not repeated, except derive and gap when asked for alone."""
    stage_functions = {"search": _search, "derive": _derive, "retrain": _retrain, "gap": _gap}
    done = [stage for stage in ("derive", "gap") if len(stages) > 1 and (run.folder / PRODUCTS[stage]).is_file()]
    left = [stage for stage in stages if stage not in done]
    with session(run.folder, run.config, command or stages[-1], quiet=quiet) as work:
        if "gap" in left:
            # A wrong table is reported before the search, not after it.
            gap_stage.require_table(run.config, None if len(stages) > 1 else run.genotype())
        for stage in left:
            work.raise_if_stopped(f"before {stage}")
            work.status.update(stage, 0, 1)  # its seconds count from here
            stage_functions[stage](work, run)
    return run


def precheck(config: Config, stages: Sequence[str], genotype: Genotype | None = None) -> None:
    """Finds, within seconds, what would stop stages later.

    Args:
        config: Of the run.
        stages: What would be done.
        genotype: Derived, or given; None before that.

    Raises:
        ConfigError: The supernet does not run, or not with its modifiers, or a table is of another space or lacks
            accuracies.
        DataError: A table is missing.
    """
    if genotype is None:
        examine(config, config.dataset.task())
    if "gap" in stages:
        gap_stage.require_table(config, genotype)


def _search(work: Session, run: Run) -> None:
    run_search(work)


def _derive(work: Session, run: Run) -> None:
    genotype = derive_genotype(work)
    run.write_genotype(genotype, judge_cost(work.config, genotype))


def _retrain(work: Session, run: Run) -> list[Retrained]:
    return retrain_genotype(work, run.genotype(), run.config.retrain.seeds, "derived")


def _gap(work: Session, run: Run) -> None:
    gap_stage.measure(work, run.genotype())


def _reopen(run: Run | str | Path, sections: dict[str, Any]) -> Run:
    run = run if isinstance(run, Run) else Run.open(Path(run))
    if "epochs" in sections:  # the search is done
        sections["retrain"] = {"epochs": sections.pop("epochs"), **sections.get("retrain", {})}
    return run.change(configure(run.config, **sections)) if sections else run
