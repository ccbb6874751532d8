"""The searches of `experiments/selectors` against what a random search finds in the same time; trains nothing."""

import argparse
from collections import defaultdict
from pathlib import Path
from statistics import mean, median, stdev

import numpy as np

from nas.benchmarks import Benchmark, Table
from nas.derivation import sample, uniform
from nas.files import read_json
from nas.randomness import generator
from nas.runs.compare.statistics import LEVEL, holm, paired
from nas.runs.pipeline import configure

EXPERIMENTS = Path(__file__).parents[1]
DRAWS = 20_000


def random_search(arguments: argparse.Namespace) -> tuple[list[float], float]:
    """Returns the mean regret of the best of 1, 2, ... retrained cells by accuracy on `select`, and seconds of each.

    The cells are those that `experiments/ranking` retrained for three epochs, drawn without replacement.
    """
    config = configure(space={"name": "nas-bench-201"})
    table = Table(Benchmark(path=arguments.table))
    rows = [read_json(path) for path in (EXPERIMENTS / "ranking" / "results").glob("ceiling-?.json")]
    rows.sort(key=lambda row: row["number"])
    accuracies = np.array([value for row in rows for value in row["accuracies"]])
    draws = generator(0, "ranked cells")
    cells = [sample(config.space, uniform(config.space), draws) for _ in accuracies]
    regrets = float(table.test.max()) - np.array([table.entry(config.space, cell).test for cell in cells])
    orders = np.random.default_rng(0).permuted(np.tile(np.arange(len(cells)), (DRAWS, 1)), axis=1)
    found = []
    for count in range(1, len(cells) + 1):
        tried = orders[:, :count]
        best = tried[np.arange(DRAWS), accuracies[tried].argmax(1)]
        found.append(float(regrets[best].mean()))
    return found, sum(row["train_seconds"] for row in rows) / len(accuracies)


def selectors_table(arguments: argparse.Namespace) -> str:
    """Returns, as Markdown, the curve of random search, and every selector's regret beside it."""
    by_count, each = random_search(arguments)
    groups: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted((EXPERIMENTS / "selectors" / "results").glob("*.json")):
        row = read_json(path)
        if "budget" in row:  # the others are random cells
            seconds = row["search_seconds"] + row["derive_seconds"]
            groups[row["selector"]][row["budget"]].append((row["regret"], seconds))
    lines = []
    for name, budgets in groups.items():
        for budget, runs in budgets.items():
            regrets, seconds = zip(*runs, strict=True)
            count = min(max(1, int(median(seconds) / each)), len(by_count))
            random = by_count[count - 1]
            test = paired(regrets, [random] * len(regrets))
            lines.append((mean(regrets), name, budget, regrets, median(seconds), count, random, test.p))
    lines.sort()
    corrected = holm([line[-1] for line in lines])
    text = [
        "### Selectors, half a minute to two minutes each",
        "",
        "Random search, mean regret of the best of N retrained cells: "
        + ", ".join(f"{n}: {by_count[n - 1]:.1f}" for n in (1, 2, 5, 10, 20)) + f" ({each:.0f} CPU s a cell).",
        "",
        "| selector | equal | table regret, points | CPU s | random search in that time | p | corrected p | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for (_, name, budget, regrets, seconds, count, random, p), whole in zip(lines, corrected, strict=True):
        verdict = "no difference shown" if whole >= LEVEL else "beats it" if mean(regrets) < random else "worse"
        text.append(
            f"| {name} | {budget} | {mean(regrets):.1f} ± {stdev(regrets):.1f} | {seconds:.0f} | "
            f"{random:.1f} ({count} cells) | {p:.3f} | {whole:.2f} | {verdict} |"
        )
    return "\n".join(text)
