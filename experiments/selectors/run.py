"""Every selector on NAS-Bench-201, at equal candidate evaluations and at equal time (see README.md).

Run it again to go on after a stop: a row that is done is only read, one that is not begins afresh, so that its seconds
are those of a whole search. Needs CIFAR-10 at 16x16 and the NAS-Bench-201 table as npz files; the paths are arguments.
"""

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import torch

from nas import registry
from nas.benchmarks import Benchmark, Table
from nas.derivation import sample, uniform
from nas.files import read_json, write_json
from nas.randomness import generator
from nas.runs.folder import Run
from nas.runs.pipeline import configure, execute, retrain
from nas.runs.statistics import spread
from nas.selection import Selection
from nas.selectors import Selector

HERE = Path(__file__).parent
ROWS = HERE / "results"
FIRST = ("st-gs", "softmax", "gumbel-softmax", "st-gs-single-path", "gdas", "uniform")
"""Run first, since the time budget is the first one's."""

EVALUATIONS = 4800
"""Candidates run or probed per edge in a whole search, weight steps and architecture steps together."""

SEEDS = (0, 1, 2)
STEPS_PER_EPOCH = 80
BATCH = 64
RANDOM = 8
"""Random cells, as the baseline."""

BUDGETS = {"evaluations": "equal candidate evaluations", "time": "equal time"}


def selectors() -> list[str]:
    return [*FIRST, *(name for name in registry.names(Selector.registry) if name not in FIRST)]


def configuration(selector: str, seed: int, epochs: int, arguments: argparse.Namespace) -> Any:
    return configure(
        space={"name": "nas-bench-201", "channels": 8, "cells_per_stage": 1},
        selector=selector,
        dataset={"name": "npz", "path": arguments.data, "limit": STEPS_PER_EPOCH * BATCH},
        seed=seed,
        search={"epochs": epochs, "batch_size": BATCH, "evaluate_every": epochs},
        retrain={"epochs": 4, "batch_size": BATCH, "seeds": 1, "seed": 0, "optimizer": {"lr": {"start": 0.05}}},
        gap={"decisions": 10, "random": 0},
        benchmark={"path": arguments.table},
        tracking={"wandb": "disabled"},
        threads=1,
    )


def cost(selector: str) -> float:
    """Returns the candidates that a weight step and an architecture step together run or probe per edge, on average."""
    config = configure(selector=selector, space={"name": "nas-bench-201"})
    cells, draws = config.space.cells, generator(0, "cost")
    chosen, memory = config.selector.on(cells), config.selector.memory(cells)
    count = 0

    def loss_of(selections: dict[str, Selection]) -> torch.Tensor:
        nonlocal count
        for each in selections.values():
            count += sum(map(len, each.paths)) + sum(map(len, each.probes))
        return torch.zeros(()) + sum(s.weights.sum() * 0 for s in selections.values() if s.weights is not None)

    repeats = 200
    for _ in range(repeats):
        logits = {name: torch.zeros(cell.mask.shape, requires_grad=True) for name, cell in cells.items()}
        if chosen.learns:
            chosen.objective(loss_of, logits, 0.5, draws, memory)
        with torch.no_grad():
            count += sum(len(path) for s in chosen.decide(logits, 0.5, draws).values() for path in s.detach().paths)
    return count / repeats / sum(len(cell.edges) for cell in cells.values())


def search_row(selector: str, budget: str, seed: int, epochs: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Searches, derives, retrains and measures; the seconds are CPU time of this process."""
    config = configuration(selector, seed, epochs, arguments)
    runs = Path(arguments.runs)
    folder = runs / f"{budget}-{selector}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    run = Run.begin(folder, config)
    started = time.process_time()
    execute(run, ["search"], quiet=True)
    searched = time.process_time()
    execute(run, ["derive"], quiet=True)
    derived = time.process_time()
    # Retrained genotypes are filed by genotype and recipe, so all rows can share them.
    shared = runs / f"retrained-{os.getpid()}"
    shared.mkdir(exist_ok=True)
    (folder / "retrain").symlink_to(os.path.relpath(shared, folder))
    report = execute(run, ["retrain", "gap"], quiet=True).gap()
    assert report is not None
    entry = report["benchmark"]
    return {
        "selector": selector,
        "budget": budget,
        "seed": seed,
        "epochs": epochs,
        "evaluations": cost(selector) * epochs * STEPS_PER_EPOCH,
        "genotype": report["genotype"],
        "entropy": read_json(folder / "search.json")["entropy"],
        **{key: report[key] for key in ("supernet", "inherited", "gap", "discretisation_gap", "sharing_gap")},
        "retrained": report["retrained"]["mean"],
        "table_test": entry["test"],
        "regret": entry["regret"],
        "rank": entry["rank"],
        "search_seconds": round(searched - started, 2),
        "derive_seconds": round(derived - searched, 2),
    }


def random_row(number: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Retrains a random cell as the derived ones are."""
    config = configuration("uniform", 0, 1, arguments)
    genotype = sample(config.space, uniform(config.space), generator(0, "random cell", number))
    folder = Path(arguments.runs) / f"random-{number}"
    result = retrain(genotype, out=folder, quiet=True, config=config)[0]
    entry = Table(config.benchmark).entry(config.space, genotype)
    text = config.space.format(genotype)
    return {"genotype": text, "retrained": result.select, **asdict(entry)}


def rows_of(budget: str) -> list[dict[str, Any]]:
    return [read_json(path) for path in sorted(ROWS.glob(f"{budget}-*.json"))]


def epochs_for(selector: str, budget: str) -> int:
    """Returns the epochs that spend a budget; the time budget is what the first selector's search took."""
    if budget == "evaluations":
        return max(1, round(EVALUATIONS / cost(selector) / STEPS_PER_EPOCH))
    known = rows_of("evaluations")
    seconds = {
        name: median(row["search_seconds"] for row in known if row["selector"] == name) for name in (selector, FIRST[0])
    }
    mine = next(row["epochs"] for row in known if row["selector"] == selector)
    return max(1, round(mine * seconds[FIRST[0]] / seconds[selector]))


def work(task: tuple[str, str, int], arguments: argparse.Namespace) -> str:
    selector, budget, number = task
    path = ROWS / f"{budget}-{selector}-{number}.json"
    if not path.is_file():
        if budget == "random":
            row = random_row(number, arguments)
        else:
            row = search_row(selector, budget, number, epochs_for(selector, budget), arguments)
        write_json(path, row)
    return path.stem


def run_all(arguments: argparse.Namespace) -> None:
    stages = [
        [(name, "evaluations", seed) for seed in SEEDS for name in selectors()],
        [(name, "time", seed) for seed in SEEDS for name in selectors() if name != FIRST[0]]
        + [("cell", "random", number) for number in range(RANDOM)],
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.processes, mp_context=context) as pool:
        for tasks in stages:
            waiting = [pool.submit(work, task, arguments) for task in tasks]
            for number, done in enumerate(as_completed(waiting), start=1):
                print(f"{number}/{len(tasks)} {done.result()}", file=sys.stderr, flush=True)


COLUMNS = {
    "regret": "table regret",
    "gap": "gap",
    "supernet": "supernet",
    "inherited": "inherited",
    "retrained": "retrained",
    "entropy": "entropy",
    "evaluations": "evaluations",
    "search_seconds": "search s",
    "derive_seconds": "derive s",
}


def by_selector(budget: str) -> dict[str, list[dict[str, Any]]]:
    rows = rows_of(budget)
    if budget == "time":
        rows += [row for row in rows_of("evaluations") if row["selector"] == FIRST[0]]
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["selector"], []).append(row)
    return found


def table(budget: str) -> list[str]:
    by_name = by_selector(budget)
    order = sorted(by_name, key=lambda name: mean(row["regret"] for row in by_name[name]))
    lines = [f"| selector | {' | '.join(COLUMNS.values())} |", "| --- " * (1 + len(COLUMNS)) + "|"]
    for name in order:
        cells = [_spread([row[column] for row in by_name[name]], column) for column in COLUMNS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _spread(values: list[float], column: str) -> str:
    digits = {"entropy": 2, "evaluations": 0, "search_seconds": 0, "derive_seconds": 0}.get(column, 1)
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 and column != "evaluations" else ""
    return f"{mean(values):.{digits}f}{deviation}"


def summary(published: Table) -> str:
    parts = []
    for budget, words in BUDGETS.items():
        parts += [f"### At {words}", "", *table(budget), ""]
    cells = rows_of("random")
    regrets, accuracy = [cell["regret"] for cell in cells], [cell["retrained"] for cell in cells]
    regret, retrained = spread(regrets, 0), spread(accuracy, 0)
    parts += [
        f"Random cells ({len(cells)}): table regret {regret['mean']:.1f} ± {regret['deviation']:.1f}, "
        f"retrained {retrained['mean']:.1f} ± {retrained['deviation']:.1f}.",
        "",
    ]
    return "\n".join([*parts, *comparisons(published)])


def comparisons(table: Table) -> list[str]:
    """Says which selectors' mean regrets are too low or too high for random cells of the table.

    Under the null, a selector's cells are drawn from the table at random; the probability of a mean at least as low (or
    high) is found from 200,000 draws, doubled for two sides, and Holm-corrected over the selectors.
    """
    regrets = table.test.max() - table.test
    draws = np.random.default_rng(0).choice(regrets, (200_000, len(SEEDS))).mean(1)
    lines = [
        f"The mean regret over the whole table is {regrets.mean():.1f} points, the median {np.median(regrets):.1f}."
    ]
    for budget, words in BUDGETS.items():
        means = {name: mean(row["regret"] for row in rows) for name, rows in by_selector(budget).items()}
        tails = {name: min(1.0, 2 * min((draws <= m).mean(), (draws >= m).mean())) for name, m in means.items()}
        apart, worst = [], 0.0
        for place, name in enumerate(sorted(tails, key=lambda each: tails[each])):
            worst = max(worst, tails[name] * (len(tails) - place))
            if worst >= 0.05:
                break
            apart.append(f"{name} ({'better' if means[name] < regrets.mean() else 'worse'}, corrected p {worst:.3f})")
        verdict = ", ".join(apart) or "no difference shown"
        lines.append(f"Against random cells, at {words} (N = {len(SEEDS)} each): {verdict}.")
    return lines


def main() -> None:
    beside = Path(__file__).parents[2].parent / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=str(beside / "cifar10-16x16.npz"))
    parser.add_argument("--table", default=str(beside / "nasbench201.npz"))
    parser.add_argument("--runs", default="runs/selectors")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    Path(arguments.runs).mkdir(parents=True, exist_ok=True)
    ROWS.mkdir(exist_ok=True)
    run_all(arguments)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    machine = {"processor": platform.machine(), "cpus": os.cpu_count(), "torch": torch.__version__.partition("+")[0]}
    text = summary(Table(Benchmark(path=arguments.table)))
    (HERE / "table.md").write_text(text + "\n")
    (HERE / "machine.json").write_text(json.dumps({"commit": commit.stdout.strip(), **machine}, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
