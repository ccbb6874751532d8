"""Does a supernet rank architectures as training them from scratch does? Asked of a table that knows the answer."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from nas.benchmarks import Table
from nas.derivation import discretise, sample, uniform
from nas.randomness import generator
from nas.runs.modifiers.base import Decision
from nas.runs.search import BilevelSearch
from nas.runs.session import Session
from nas.runs.statistics import kendall, spearman
from nas.space import Edge, Genotype

TRIES = 10_000
"""Random genotypes that are drawn at least before none is found to keep a target."""

ENOUGH = 2000
"""Steps for each candidate below which sampled paths were seen to rank cells no better than chance, or upside down.

In `experiments/ranking`, 320 and 800 were too few and 2,400 enough.
"""


def rank_supernet(session: Session, search: BilevelSearch, table: Table, count: int) -> dict[str, Any]:
    """Compares inherited accuracies with published ones over random genotypes.

    Args:
        session: Where to measure; inherited accuracies are on `select`, with recalibrated batch norms.
        search: At its end.
        table: With test accuracies of the space's architectures.
        count: How many genotypes; as many as the space has, if it has fewer.

    Returns:
        `tau` (Kendall's), its `n` and 95% `interval`, `spearman`, and `top_half`: the same `tau`, `n` and `interval`
        among the genotypes whose published accuracy is at least the median. What is not defined is None.

    Raises:
        ConfigError: The table lacks accuracies, or a genotype of the space.
        Interrupted: A signal asked for a stop.
    """
    genotypes = random_genotypes(session, count, "ranked genotypes")
    _ = table.test
    published = np.array([entry.test for entry in table.entries(session.config.space, genotypes)], dtype=np.float64)
    inherited = np.zeros(len(genotypes))
    with session.progress(len(genotypes), "rank with inherited weights") as bar:
        for place, genotype in enumerate(genotypes):
            session.raise_if_stopped("while ranking")
            decision = discretise(session.config.space, genotype)
            (inherited[place],) = session.evaluator.accuracy(search.network, decision, "select")
            session.status.update("gap", place + 1, len(genotypes))
            bar.update(place + 1)
    return rank_correlations(inherited.tolist(), published.tolist())


def rank_correlations(inherited: list[float], published: list[float]) -> dict[str, Any]:
    """Returns what `rank_supernet` returns, of these accuracies."""
    middle = np.median(published) if published else 0.0
    better = [pair for pair in zip(inherited, published, strict=True) if pair[1] >= middle]
    top = kendall([own for own, _ in better], [known for _, known in better])
    return {**kendall(inherited, published), "spearman": spearman(inherited, published), "top_half": top}


def describe_training(search: BilevelSearch) -> str | None:
    """Returns what a reader should know if inherited accuracies tell little; None where nothing speaks against them.

    Known of sampled paths only: mixtures train every candidate in every step, but not as a path of its own.
    """
    decisions: list[Decision] = [search.decide(0.0, "train", 0)]
    rows = [(len(paths), len(edge.operations)) for paths, edge in _edges(search, decisions[0])]
    if not search.selector.stochastic or all(count == offered for count, offered in rows):
        return None
    for each in search.attached:
        decisions = each.decisions(decisions, 0, 0.0)
    share = sum(count / offered for count, offered in rows) / len(rows)
    steps = round(search.steps * len(decisions) * share)
    if steps >= ENOUGH:
        return None
    return (
        f"each candidate was trained for about {steps} steps; with less than {ENOUGH} a supernet was seen to order "
        "networks by chance or upside down: raise search.epochs (README: What the numbers say)"
    )


def _edges(search: BilevelSearch, decision: Decision) -> Iterator[tuple[tuple[int, ...], Edge]]:
    """Yields what runs on each edge that has a choice, and the edge."""
    for name, cell in search.architecture.cells.items():
        for paths, edge in zip(decision[name].paths, cell.edges, strict=True):
            if len(edge.operations) > 1:
                yield paths, edge


def random_genotypes(
    session: Session,
    count: int,
    key: str = "random genotypes",
    *,
    keeps: Callable[[Genotype], bool] | None = None,
) -> list[Genotype]:
    """Returns distinct random genotypes, drawn with the run's seed and `key`; fewer where no more are found.

    Args:
        session: Space and seed.
        count: How many.
        key: Of the draws; more genotypes of the same key begin with the same ones.
        keeps: Which genotypes count; None for all.
    """
    space, draws = session.config.space, generator(session.config.seed, key)
    found: dict[Genotype, None] = {}
    for _ in range(100 * count if keeps is None else 100 * count + TRIES):
        if len(found) == count:
            break
        genotype = sample(space, uniform(space), draws)
        if keeps is None or keeps(genotype):
            found[genotype] = None
    return list(found)
