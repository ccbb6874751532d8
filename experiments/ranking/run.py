"""How well supernets rank cells, and what makes them rank better (see README.md).

Run it again to go on after a stop. Needs CIFAR-10 at 16x16 and the NAS-Bench-201 table as npz files; the paths are
arguments.
"""

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from nas.benchmarks import Benchmark, Table
from nas.derivation import discretise, sample, uniform
from nas.files import read_json, write_json
from nas.randomness import generator
from nas.runs.compare.statistics import t_interval
from nas.runs.derive import load_search
from nas.runs.folder import Run
from nas.runs.pipeline import configure, execute, retrain
from nas.runs.ranking import rank_correlations
from nas.runs.search import BilevelSearch
from nas.runs.session import Session, session
from nas.runs.statistics import kendall
from nas.space import Genotype

HERE = Path(__file__).parent
ROWS = HERE / "results"
SEEDS = (0, 1, 2)
CELLS = 200
STEPS_PER_EPOCH, BATCH = 160, 64

PASSES = 4000
"""Forward and backward passes of weight steps in a setting that says nothing else."""

PUBLISHED = {"start": 0.025, "end": 0.001}
KEPT, HIGHER = ({"name": "constant", "value": rate} for rate in (0.1, 0.3))
ANNEALED = {"name": "cosine", "start": 0.1, "end": 0.001}


def setting(
    selector: str = "uniform", lr: Any = KEPT, modifiers: Any = (), passes: int = PASSES, each: int = 1, **more: Any
) -> dict[str, Any]:
    """Returns further settings of a run; `each` is the number of passes of one weight step."""
    search = {"weights": {"lr": lr}, "modifiers": list(modifiers), "epochs": passes // each // STEPS_PER_EPOCH}
    return {"selector": selector, "search": {**search, **more.pop("search", {})}, **more}


DEEP = {"space": {"cells_per_stage": 3}}
FAIR = {"modifiers": ["fair-paths"], "each": 5}
SETTINGS = {
    "short": ("uniform, 1,600 passes, rate 0.025 annealed (DARTS's)", setting(lr=PUBLISHED, passes=1600)),
    "length": ("uniform, rate 0.025 annealed", setting(lr=PUBLISHED)),
    "annealed": ("uniform, rate 0.1 annealed", setting(lr=ANNEALED)),
    "kept": ("uniform, rate 0.1 kept", setting()),
    "higher": ("uniform, rate 0.3 kept", setting(lr=HIGHER)),
    "averaged": (
        "uniform, rate 0.1 kept, weights of the second half averaged",
        setting(modifiers=["weight-averaging"]),
    ),
    "annealed-long": ("uniform, rate 0.1 annealed, 12,000 passes", setting(lr=ANNEALED, passes=12000)),
    "length-long": ("uniform, rate 0.025 annealed, 12,000 passes", setting(lr=PUBLISHED, passes=12000)),
    "fair": ("fair paths, rate 0.1 kept", setting(**FAIR)),
    "fair-annealed": ("fair paths, rate 0.1 annealed", setting(lr=ANNEALED, **FAIR)),
    "fair-long": (
        "fair paths, rate 0.1 annealed, 12,000 passes",
        setting(lr=ANNEALED, passes=12000, **FAIR),
    ),
    "sandwich": (
        "sandwich of 2 + 3 paths, rate 0.1 annealed",
        setting(lr=ANNEALED, modifiers=[{"name": "sandwich", "paths": 3}], each=5),
    ),
    "skip-dropout": (
        "uniform with dropout on skips, rate 0.1 annealed",
        setting(lr=ANNEALED, modifiers=["skip-dropout"]),
    ),
    "deep": ("uniform, 3 cells per stage, rate 0.1 annealed", setting(lr=ANNEALED, **DEEP)),
    "wide": ("uniform, 16 channels, rate 0.1 annealed", setting(lr=ANNEALED, space={"channels": 16})),
    "softmax": ("softmax, 2,000 passes of all candidates, rate 0.1 kept", setting("softmax", passes=2000)),
    "st-gs": ("st-gs, 2,400 passes, rate 0.1 kept", setting("st-gs", passes=2400)),
    "score-cv": ("score-cv, 2,400 passes, rate 0.1 kept", setting("score-cv", passes=2400)),
    "score-cv-warm": (
        "score-cv, 2,400 passes, rate 0.1 kept, logits rest for half of the search",
        setting("score-cv", passes=2400, search={"warmup": 0.5}),
    ),
}
PUBLISHED_SIZE = {"space": {"channels": 16, "cells_per_stage": 5}, "data": "large"}
SETTINGS |= {
    "published": ("published size, uniform, rate 0.1 annealed", setting(lr=ANNEALED, **PUBLISHED_SIZE)),
    "published-long": (
        "published size, uniform, rate 0.1 annealed, 12,000 passes",
        setting(lr=ANNEALED, passes=12000, **PUBLISHED_SIZE),
    ),
}
RETRAINED = {
    "ceiling": ("3 epochs, accuracy on `select`", 40, 10, "select", {}),
    "ceiling-published": ("published size, 3 epochs", 40, 2, "test", PUBLISHED_SIZE),
}
"""What it is; how many of the cells, the first ones; how many in one task; accuracy on what; further settings."""


def configuration(further: Mapping[str, Any], seed: int, arguments: argparse.Namespace) -> Any:
    more = dict(further)
    space = {"name": "nas-bench-201", "channels": 8, "cells_per_stage": 1, **more.pop("space", {})}
    search = {"batch_size": BATCH, "evaluate_every": 1000, **more.pop("search", {})}
    data = arguments.large if more.pop("data", "small") == "large" else arguments.data
    return configure(
        space=space,
        search=search,
        dataset={
            "name": "npz",
            "path": data,
            "limit": STEPS_PER_EPOCH * BATCH,
            "select_fraction": 0.04,
        },
        seed=seed,
        retrain={
            "epochs": 3,
            "batch_size": BATCH,
            "seeds": 1,
            "optimizer": {"lr": {"start": 0.1}},
            "drop_path": 0.0,  # networks this small learn nothing more that must be held back
            "cutout": False,
            **more.pop("retrain", {}),
        },
        evaluation={"calibration_batches": 2},
        benchmark={"path": arguments.table},
        tracking={"wandb": "disabled"},
        threads=1,
        device=arguments.device,
        **more,
    )


def cells_of(config: Any) -> list[Genotype]:
    draws = generator(0, "ranked cells")
    return [sample(config.space, uniform(config.space), draws) for _ in range(CELLS)]


def stale(search: BilevelSearch, work: Session, genotype: Genotype) -> float:
    """Returns accuracy on `select` with the running statistics that the search left."""
    from nas.data import in_order

    splits, right = work.splits, 0
    search.network.eval()
    with torch.no_grad():
        for images, labels in in_order(splits.select, 256, splits.mean, splits.deviation, work.device):
            scores = search.network(images, discretise(work.config.space, genotype)).scores
            right += int((scores.argmax(1) == labels).sum())
    search.network.train()
    return 100 * right / len(splits.select)


def supernet_row(name: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains a supernet and measures every cell with its weights; the seconds are CPU time."""
    config = configuration(SETTINGS[name][1], seed, arguments)
    run = Run.begin(Path(arguments.runs) / f"{name}-{seed}", config)
    execute(run, ["search"], quiet=True)
    searched = time.process_time()
    cells = cells_of(config)
    with session(run.folder, config, "search", quiet=True) as work:
        search = load_search(work)
        row = {
            "accuracies": [
                work.evaluator.accuracy(search.network, discretise(config.space, cell), "select")[0] for cell in cells
            ],
            "train_seconds": round(read_json(run.folder / "status.json")["cpu_seconds"]["search"], 1),  # of all parts
            "measure_seconds": round(time.process_time() - searched, 1),
        }
        if name in ("annealed", "kept", "fair"):
            row["stale"] = [stale(search, work, cell) for cell in cells]
    return row


def ceiling_row(name: str, part: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Retrains a share of the cells from scratch."""
    _, _, share, split, further = RETRAINED[name]
    config = configuration(further, 0, arguments)
    folder, found, started = Path(arguments.runs), [], time.process_time()
    for place in range(share * part, share * (part + 1)):
        result = retrain(cells_of(config)[place], out=folder / f"{name}-{place}", quiet=True, config=config)[0]
        found.append(getattr(result, split))
    return {"accuracies": found, "train_seconds": round(time.process_time() - started, 1)}


def work_on(task: tuple[str, int], arguments: argparse.Namespace) -> str:
    name, number = task
    path = ROWS / f"{name}-{number}.json"
    if not path.is_file():
        make = ceiling_row if name in RETRAINED else supernet_row
        write_json(path, {"setting": name, "number": number, **make(name, number, arguments)})
    return path.stem


def run_all(arguments: argparse.Namespace) -> None:
    tasks = [(name, part) for name, (_, cells, share, *_) in RETRAINED.items() for part in range(cells // share)]
    tasks += [(name, seed) for seed in SEEDS for name in SETTINGS]
    large = {name for name, (_, further) in SETTINGS.items() if "data" in further}
    large |= {name for name, (*_, further) in RETRAINED.items() if "data" in further}
    tasks = [task for task in tasks if arguments.large or task[0] not in large]
    if arguments.only:
        tasks = [task for name in arguments.only.split(",") for task in tasks if task[0] == name]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.processes, mp_context=context) as pool:
        waiting = [pool.submit(work_on, task, arguments) for task in tasks]
        for number, done in enumerate(as_completed(waiting), start=1):
            print(f"{number}/{len(tasks)} {done.result()}", file=sys.stderr, flush=True)


def truth_of(arguments: argparse.Namespace) -> list[float]:
    config = configuration({}, 0, arguments)
    table = Table(Benchmark(path=arguments.table))
    return [table.entry(config.space, cell).test for cell in cells_of(config)]


def ranks(accuracies: list[float], truth: list[float], best: float) -> dict[str, float]:
    """Returns Kendall's and Spearman's correlation, Kendall's among the better half, and the first cell's regret."""
    found = rank_correlations(accuracies, truth)
    first = max(range(len(truth)), key=lambda place: accuracies[place])
    regret = best - truth[first]
    return {"tau": found["tau"], "rho": found["spearman"], "better": found["top_half"]["tau"], "regret": regret}


def summary(arguments: argparse.Namespace) -> str:
    truth, rows = truth_of(arguments), [read_json(path) for path in sorted(ROWS.glob("*.json"))]
    best = float(Table(Benchmark(path=arguments.table)).test.max())
    lines = [
        "| supernet | Kendall's tau | 95% interval | Spearman | tau, better half | regret of the first | CPU s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    kinds: Mapping[str, tuple[str, str]] = {
        **{name: (text, "accuracies") for name, (text, _) in SETTINGS.items()},
        "annealed/stale": ("uniform, rate 0.1 annealed, statistics not recalibrated", "stale"),
        "kept/stale": ("uniform, rate 0.1 kept, statistics not recalibrated", "stale"),
        "fair/stale": ("fair paths, rate 0.1 kept, statistics not recalibrated", "stale"),
    }
    for name, (text, column) in kinds.items():
        found = [row for row in rows if row["setting"] == name.partition("/")[0] and column in row]
        if found:
            lines.append(_line(text, [ranks(row[column], truth, best) for row in found], found))
    for name, (text, *_) in RETRAINED.items():
        parts = sorted((row for row in rows if row["setting"] == name), key=lambda row: row["number"])
        if parts:
            lines.append(_ceiling_line(text, parts, truth, best))
    return "\n".join(lines)


def _ceiling_line(text: str, parts: list[dict[str, Any]], truth: list[float], best: float) -> str:
    accuracies = [value for row in parts for value in row["accuracies"]]
    known = [truth[len(row["accuracies"]) * row["number"] + i] for row in parts for i in range(len(row["accuracies"]))]
    found = ranks(accuracies, known, best)
    low, high = kendall(accuracies, known)["interval"]
    return (
        f"| every cell retrained from scratch, {text} ({len(accuracies)} cells, once) | {found['tau']:.2f} | "
        f"{low:.2f} to {high:.2f} | {found['rho']:.2f} | {found['better']:.2f} | {found['regret']:.1f} | "
        f"{sum(row['train_seconds'] for row in parts):.0f} |"
    )


def _line(text: str, found: list[dict[str, float]], rows: list[dict[str, Any]]) -> str:
    def both(key: str, digits: int = 2) -> str:
        values = [each[key] for each in found]
        deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{mean(values):.{digits}f}{deviation}"

    known = t_interval([each["tau"] for each in found])
    interval = f"{known[0]:.2f} to {known[1]:.2f}" if known else "one seed"
    seconds = f"{mean(row['train_seconds'] for row in rows):.0f}"
    cells = [text, both("tau"), interval, both("rho"), both("better"), both("regret", 1), seconds]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    beside = Path(__file__).parents[2].parent / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=str(beside / "cifar10-16x16.npz"))
    parser.add_argument("--table", default=str(beside / "nasbench201.npz"))
    parser.add_argument("--large", help="the same images at 32x32, for the published size; wants a GPU")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help="settings, with commas, in this order; all others wait")
    parser.add_argument("--runs", default="runs/ranking")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    Path(arguments.runs).mkdir(parents=True, exist_ok=True)
    ROWS.mkdir(exist_ok=True)
    run_all(arguments)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    machine = {"processor": platform.machine(), "cpus": os.cpu_count(), "torch": torch.__version__.partition("+")[0]}
    text = summary(arguments)
    (HERE / "table.md").write_text(text + "\n")
    (HERE / "machine.json").write_text(json.dumps({"commit": commit.stdout.strip(), **machine}, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
