"""The gap between what a search believed and what its result is worth, in points of accuracy.

discretisation_gap = supernet - inherited, sharing_gap = inherited - retrained, gap = their sum; all three accuracies on
`select`, each with batch-norm statistics recalibrated on the same images. Beside them: random genotypes retrained at
equal budget, and the rank correlation of inherited with retrained accuracy over them.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from nas.benchmarks import Table
from nas.derivation import discretise, sample, uniform
from nas.files import write_json
from nas.randomness import generator, seed_of
from nas.runs.configuration import Config
from nas.runs.derive import load_search
from nas.runs.folder import PRODUCTS
from nas.runs.retrain import retrain_genotype
from nas.runs.session import Session
from nas.space import Genotype

CONFIDENCE = 0.95
RESAMPLES = 2000


def measure(session: Session, genotype: Genotype) -> dict[str, Any]:
    """Measures the gap, retraining whatever is not retrained yet, and writes `gap.json`."""
    config = session.config
    table = read_table(config)
    looked_up = asdict(table.entry(config.space, genotype)) if table else None
    search = load_search(session)
    rivals = random_genotypes(session, config.gap.random)
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
        count = config.gap.decisions if config.selector.stochastic else 1
        supernet = []
        for index in range(count):
            session.raise_if_stopped("while measuring")
            supernet.append(
                session.evaluator.accuracy(search.network, search.decide(1.0, "gap", index), "select", "test")
            )
    seed = seed_of(config.seed, "bootstrap")
    values: dict[str, dict[str, Any]] = {
        split: {
            "supernet": _mean([pair[place] for pair in supernet]),
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
    }
    write_json(session.folder / PRODUCTS["gap"], report)
    return report


def read_table(config: Config) -> Table | None:
    """Returns the table of published accuracies that the configuration names, if it names one."""
    return Table(config.benchmark) if config.benchmark.path else None


def random_genotypes(session: Session, count: int) -> list[Genotype]:
    """Returns distinct random genotypes; fewer where the space has no more."""
    space, draws = session.config.space, generator(session.config.seed, "random genotypes")
    found: dict[Genotype, None] = {}
    for _ in range(100 * count):
        if len(found) < count:
            found[sample(space, uniform(space), draws)] = None
    return list(found)


def spread(values: Sequence[float], seed: int) -> dict[str, Any]:
    """Returns mean, sample deviation, values, and a bootstrap interval of the mean (percentile, 95%)."""
    if not values:
        return {"mean": None, "deviation": None, "interval": None, "values": []}
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    interval = None
    if len(values) > 1:
        draws = np.random.default_rng(seed).choice(values, (RESAMPLES, len(values)))
        interval = _percentiles(draws.mean(1))
    return {"mean": _mean(values), "deviation": deviation, "interval": interval, "values": list(values)}


def kendall(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Returns Kendall's tau-b with its N and a 95% interval; None where one is not defined.

    The interval is that of Fieller, Hartley and Pearson (1957): artanh(tau) is normal with variance .437 / (N - 4).
    It needs N > 4; a perfect order counts as one pair short of it, since no sample shows more. A bootstrap over so few
    pairs repeats some and is far too narrow.
    """
    from scipy.stats import kendalltau

    count = len(first)
    if count < 2 or len(set(first)) < 2 or len(set(second)) < 2:
        return {"tau": None, "n": count, "interval": None}
    tau = float(kendalltau(first, second).statistic)
    interval = None
    if count > 4:
        most = 1 - 2 / (count * (count - 1))
        centre, half = math.atanh(min(max(tau, -most), most)), 1.96 * math.sqrt(0.437 / (count - 4))
        interval = [math.tanh(centre - half), math.tanh(centre + half)]
    return {"tau": tau, "n": count, "interval": interval}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _percentiles(draws: Any) -> list[float]:
    tail = 50 * (1 - CONFIDENCE)
    return [float(value) for value in np.percentile(draws, [tail, 100 - tail])]
