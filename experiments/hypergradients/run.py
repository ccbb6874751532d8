"""What each hypergradient costs beside first order, and how far finite differences are off (see README.md)."""

import json
import os
import platform
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from nas import registry
from nas.hypergradients import Bilevel, Hypergradient, Unrolled, UnrolledExact
from nas.runs.bilevel import ArchitectureStep
from nas.runs.pipeline import configure
from nas.runs.search import BilevelSearch
from nas.runs.session import session

HERE = Path(__file__).parent
SPACES = {
    "nas-bench-201": {"name": "nas-bench-201", "channels": 8, "cells_per_stage": 1},
    "darts": {"name": "darts", "channels": 4, "depth": 3},
}
SELECTORS = ("softmax", "st-gs")
SEEDS = (0, 1, 2)
TRAINED = 40
"""Steps of the search before anything is measured."""

ROUNDS = 7
RADII = (1e-1, 1e-2, 1e-3, 1e-4)


def measure(space: str, selector: str, seed: int) -> dict[str, Any]:
    """Returns CPU seconds of an architecture step by hypergradient, and errors of the unrolled one by radius."""
    config = configure(
        space=SPACES[space],
        selector=selector,
        seed=seed,
        search={"epochs": 10, "batch_size": 64, "warmup": 0},
        tracking={"wandb": "disabled"},
        threads=1,
    )
    with tempfile.TemporaryDirectory() as folder, session(Path(folder), config, "search", quiet=True) as work:
        search = BilevelSearch(work)
        for step in range(TRAINED):
            search.step(step, search.progress(step))
        seconds: dict[str, list[float]] = {name: [] for name in registry.names(Hypergradient.registry)}
        for step in range(TRAINED, TRAINED + ROUNDS):
            for name, found in seconds.items():
                method: Hypergradient = registry.load(Hypergradient.registry, name)()
                started = time.process_time()
                method.estimate(problem(search, step))
                found.append(time.process_time() - started)
        terms = [second_order(search, step) for step in range(TRAINED, TRAINED + 3)]
    first = seconds["first-order"]
    ratios = {name: median(a / b for a, b in zip(each, first, strict=True)) for name, each in seconds.items()}
    means = {f"{radius:g}": median(errors[radius] for _, errors in terms) for radius in RADII}
    return {
        "ratios": ratios,
        "first_order_ms": 1000 * median(first),
        "errors": means,
        "share": median(share for share, _ in terms),
    }


def problem(search: BilevelSearch, step: int) -> Bilevel:
    return ArchitectureStep(search, step, search.progress(step)).problem()


def second_order(search: BilevelSearch, step: int) -> tuple[float, dict[float, float]]:
    """Returns the second-order term's length beside the first-order gradient's, and errors by radius beside its own."""
    exact = flat(UnrolledExact().estimate(problem(search, step)))
    without = flat(UnrolledExact().estimate(replace(problem(search, step), lr=0.0)))
    term = (exact - without).norm()
    found = {radius: flat(Unrolled(radius=radius).estimate(problem(search, step))) for radius in RADII}
    errors = {radius: float((each - exact).norm() / term) for radius, each in found.items()}
    return float(term / without.norm()), errors


def flat(tables: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([table.flatten() for table in tables]).double()


def main() -> None:
    rows = [
        {"space": space, "selector": selector, "seed": seed, **measure(space, selector, seed)}
        for space in SPACES
        for selector in SELECTORS
        for seed in SEEDS
    ]
    names = [name for name in registry.names(Hypergradient.registry) if name != "first-order"]
    lines = [
        f"| space, selector | first order, ms | {' | '.join(f'{name}, x' for name in names)} |",
        "|" + " --- |" * (2 + len(names)),
    ]
    wrong = [
        f"| space, selector | size of the term | {' | '.join(f'error, radius {radius:g}' for radius in RADII)} |",
        "|" + " --- |" * (2 + len(RADII)),
    ]
    for space in SPACES:
        for selector in SELECTORS:
            own = [row for row in rows if (row["space"], row["selector"]) == (space, selector)]
            first = median(row["first_order_ms"] for row in own)
            cost = [f"{median(row['ratios'][name] for row in own):.1f}" for name in names]
            lines.append(f"| `{space}`, `{selector}` | {first:.0f} | {' | '.join(cost)} |")
            off = [f"{median(row['errors'][f'{radius:g}'] for row in own):.2g}" for radius in RADII]
            size = median(row["share"] for row in own)
            wrong.append(f"| `{space}`, `{selector}` | {size:.2g} | {' | '.join(off)} |")
    text = "\n".join([*lines, "", *wrong])
    machine = {"processor": platform.machine(), "cpus": os.cpu_count(), "torch": torch.__version__.partition("+")[0]}
    (HERE / "results.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    (HERE / "table.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
