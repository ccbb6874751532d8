"""What a search has to beat: a random cell, and a random search that costs as much as a search.

Where there is a target of cost, both are random among the cells that keep it.

Random search (Li and Talwalkar, 2019, arXiv:1902.07638) retrains random cells, one after the other, for as many seconds
as the median search of the sweep's slowest group took, and keeps the one with the best accuracy on `select`. Its choice
is always paid for like this, and never read from a table, however a table may score it afterwards.
"""

from collections.abc import Callable, Sequence
from typing import Any

from nas.derivation import sample, uniform
from nas.errors import ConfigError
from nas.files import read_json, write_json
from nas.randomness import generator
from nas.runs.compare.rows import on_cpu
from nas.runs.configuration import Config
from nas.runs.cost import keeps_target, limited_by
from nas.runs.folder import Run
from nas.runs.ranking import TRIES, random_genotypes
from nas.runs.retrain import Retrained, retrain_genotype
from nas.runs.session import Session, session
from nas.space import Genotype

CHOICE = "choice.json"
"""Of a random search: the seconds of each retraining, and up to when the stage's clock is accounted for."""


def random_cell(config: Config) -> Genotype:
    """Returns the one genotype of a seed, drawn apart from those of the random search.

    Raises:
        ConfigError: None that was drawn keeps the target of cost.
    """
    space, draws, keeps = config.space, generator(config.seed, "random cell"), _kept(config)
    for _ in range(TRIES):
        genotype = sample(space, uniform(space), draws)
        if keeps is None or keeps(genotype):
            return genotype
    raise _none_keeps(config)


def fitting(seconds: Sequence[float], budget: float) -> int | None:
    """Returns how many of the cells retrained so far fit into a budget; None if another one may.

    Another one is expected to take the mean of those before it. The first counts whatever it takes.
    """
    spent = 0.0
    for count, each in enumerate(seconds, start=1):
        spent += each
        if spent + spent / count > budget:
            return count
    return None


def random_search(run: Run, budget: float, *, retrain: bool) -> tuple[list[Retrained], list[float]]:
    """Searches at random, and leaves what it chose as the run's genotype.

    The choice is made by first retrainings and scored by others: the best of many looks better than it is.

    Args:
        run: The run; what it has retrained before is only read.
        budget: Seconds that the choice may take.
        retrain: Whether the chosen genotype is retrained for its score.

    Returns:
        Results of the chosen genotype, none without `retrain`, and the seconds of each cell among which it was chosen.

    Raises:
        ConfigError: No random genotype was found that keeps the target of cost.
    """
    with session(run.folder, run.config, "retrain", quiet=True) as work:
        cpu = on_cpu(run)
        seconds = _spend(work, budget, cpu)
        cells = random_genotypes(work, len(seconds), keeps=_kept(run.config))
        best = max(cells, key=lambda genotype: retrain_genotype(work, genotype, 1, "random")[0].select)
        run.write_genotype(best)
        results = retrain_genotype(work, best, run.config.retrain.seeds + 1, "best of random")[1:] if retrain else []
        _account(work, cpu, cell=False)
    return results, seconds


def _spend(work: Session, budget: float, cpu: bool) -> list[float]:
    """Retrains random genotypes as long as another one fits; returns the seconds of those that do."""
    work.status.update("retrain", 0, 1)
    keeps = _kept(work.config)
    while True:
        seconds: list[float] = _known(work)["seconds"]
        if (count := fitting(seconds, budget)) is not None:
            return seconds[:count]
        genotypes: list[Genotype] = random_genotypes(work, len(seconds) + 1, keeps=keeps)
        if not genotypes:
            raise _none_keeps(work.config)
        if len(genotypes) == len(seconds):
            return seconds  # the space has no more
        retrain_genotype(work, genotypes[-1], 1, f"random {len(genotypes)}")
        _account(work, cpu, cell=True)


def _kept(config: Config) -> Callable[[Genotype], bool] | None:
    """Returns which genotypes keep the target of cost; None without a target."""
    limited = limited_by(config)
    return keeps_target(limited) if limited else None


def _none_keeps(config: Config) -> ConfigError:
    target = config.cost.target
    return ConfigError(f"cost.target {target}: none of {TRIES:,} random genotypes keeps it; use a higher target")


def _account(work: Session, cpu: bool, *, cell: bool) -> None:
    """Adds what the stage took since it was last called, to a cell or to nobody; an interruption loses nothing."""
    known, now = _known(work), work.status.spent("retrain", cpu)
    more = [now - known["counted"]] if cell else []
    write_json(work.folder / CHOICE, {"seconds": [*known["seconds"], *more], "counted": now})


def _known(work: Session) -> dict[str, Any]:
    path = work.folder / CHOICE
    found: dict[str, Any] = read_json(path) if path.is_file() else {"seconds": [], "counted": 0.0}
    return found
