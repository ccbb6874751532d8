"""The gap between what a search believed and what its result is worth, in points of accuracy.

discretisation_gap = supernet - inherited, sharing_gap = inherited - retrained, gap = their sum; all three accuracies on
`select`, each with batch-norm statistics recalibrated on the same images. Beside them: random genotypes, of those that
keep the target of cost, retrained at equal budget, and the rank correlation of inherited with retrained accuracy over
them. With tables of a benchmark: what they know of the derived cell, and, if asked for, the rank correlation of
inherited with published accuracy.
"""

from statistics import mean
from typing import Any

from nas.benchmarks import Table
from nas.derivation import discretise, sample, uniform
from nas.files import write_json
from nas.randomness import generator, seed_of
from nas.runs.configuration import Config
from nas.runs.cost import cost_rows, keeps_target
from nas.runs.derive import load_search
from nas.runs.folder import PRODUCTS
from nas.runs.ranking import random_genotypes, rank_supernet
from nas.runs.retrain import retrain_genotype
from nas.runs.search import BilevelSearch
from nas.runs.session import Session
from nas.runs.statistics import kendall, spread
from nas.space import Genotype


def measure(session: Session, genotype: Genotype) -> dict[str, Any]:
    """Measures the gap, retraining whatever is not retrained yet, and writes `gap.json`."""
    config = session.config
    table = read_table(config)
    looked_up = table.entry(config.space, genotype).known() if table else None
    search = load_search(session)
    limited = [quantity for each in search.constraints for quantity in each.limited]
    keeps = keeps_target(limited) if limited else None
    rivals = random_genotypes(session, config.gap.random, keeps=keeps)
    retrained = retrain_genotype(session, genotype, config.retrain.seeds, "derived")
    baseline = [
        retrain_genotype(session, rival, 1, f"random {number} of {len(rivals)}")[0]
        for number, rival in enumerate(rivals, start=1)
    ]
    total = 1 + len(rivals)
    with session.progress(total, "measure with inherited weights") as bar:

        def inherited(place: int, rival: Genotype) -> list[float]:
            session.raise_if_stopped("while measuring")
            values = session.evaluator.accuracy(search.network, discretise(config.space, rival), "select", "test")
            session.status.update("gap", place, total)
            bar.update(place)
            return values

        own = inherited(1, genotype)
        others = [inherited(place, rival) for place, rival in enumerate(rivals, start=2)]
        supernet = supernet_accuracies(session, search)
    ranked = rank_supernet(session, search, table, config.gap.ranked) if table and config.gap.ranked else None
    seed = seed_of(config.seed, "bootstrap")
    values: dict[str, dict[str, Any]] = {
        split: {
            "supernet": mean(pair[place] for pair in supernet),
            "inherited": own[place],
            "retrained": spread([getattr(result, split) for result in retrained], seed),
            "random": spread([getattr(result, split) for result in baseline], seed),
        }
        for place, split in enumerate(("select", "test"))
    }
    chosen = values["select"]
    discretisation = chosen["supernet"] - chosen["inherited"]
    sharing = chosen["inherited"] - chosen["retrained"]["mean"]
    tau = kendall([pair[0] for pair in others], [result.select for result in baseline])
    report = {
        "split": "select",
        "genotype": config.space.format(genotype),
        "parameters": retrained[0].parameters,
        "multiply_adds": retrained[0].multiply_adds,
        **chosen,
        "supernet_decisions": spread([pair[0] for pair in supernet], seed),
        "random_inherited": spread([pair[0] for pair in others], seed),
        "gap": discretisation + sharing,
        "discretisation_gap": discretisation,
        "sharing_gap": sharing,
        "kendall_tau": tau["tau"],
        "kendall_tau_n": tau["n"],
        "kendall_tau_interval": tau["interval"],
        "test": values["test"],
        "benchmark": looked_up,
        "supernet_ranking": ranked,
        "cost": cost_rows(limited, genotype),
    }
    write_json(session.folder / PRODUCTS["gap"], report)
    return report


def supernet_accuracies(session: Session, search: BilevelSearch) -> list[list[float]]:
    """Returns the supernet's accuracy on `select` and on `test` under each of `gap.decisions` decisions."""
    accuracies = []
    for index in range(session.config.gap.decisions if session.config.selector.stochastic else 1):
        session.raise_if_stopped("while measuring")
        accuracies.append(
            session.evaluator.accuracy(search.network, search.decide(1.0, "gap", index), "select", "test")
        )
    return accuracies


def read_table(config: Config) -> Table | None:
    """Returns the tables that the configuration names, if it names any."""
    return Table(config.benchmark) if config.benchmark.named else None


def require_table(config: Config, genotype: Genotype | None) -> None:
    """Finds, before anything is trained, what the gap report would miss in the tables that the configuration names.

    Args:
        config: Of the run.
        genotype: What was derived; before that a random one is looked up.

    Raises:
        ConfigError: The tables are of another space, or lack the accuracies that `gap.ranked` needs.
        DataError: There are no such tables.
    """
    if (table := read_table(config)) is None:
        return
    space = config.space
    drawn = generator(config.seed, "ranked genotypes")
    table.entry(space, genotype or sample(space, uniform(space), drawn))
    if config.gap.ranked:
        _ = table.test
