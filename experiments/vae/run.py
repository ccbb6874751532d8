"""Two VAEs and the pitfalls of their gradients: every number, table and figure of the README.

Run it again to go on after a stop: each training is one file in `results/`; a file whose setting is the current one is
only read. MNIST is an npz file with `train_images` and `test_images`; without it the digits alone are run.
"""

import argparse
import math
import os
import platform
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vae import figures
from vae.gradients import ESTIMATORS
from vae.pitfalls import PITFALLS
from vae.symptoms import relaxed_gradients, share_without_gradient
from vae.train import Data, Setting, digits, images, mnist, train

from nas.files import read_json, write_json
from nas.schedules import Constant, Exponential

HERE = Path(__file__).resolve().parent
SEEDS = (0, 1, 2)
SHOWN = ("gaussian-warm-up", "gumbel-softmax", "leave-one-out")
"""Whose images the figure shows, of the first seed."""

GAUSSIAN = {
    "gaussian-plain": (0.0, 0.0),
    "gaussian-warm-up": (0.5, 0.0),
    "gaussian-free-bits": (0.0, 0.1),
    "gaussian-warm-up-free-bits": (0.5, 0.1),
}
"""Warm-up and free bits."""

TEMPERATURES = {
    "gumbel-softmax-tau-1": ("gumbel-softmax", Constant(value=1.0)),
    "gumbel-softmax-tau-0.5": ("gumbel-softmax", Constant(value=0.5)),
    "gumbel-softmax-to-0.1": ("gumbel-softmax", Exponential(start=1.0, end=0.1)),
    "st-gs-tau-1": ("st-gs", Constant(value=1.0)),
    "st-gs-tau-0.5": ("st-gs", Constant(value=0.5)),
}
"""Digits only: estimators whose temperature is not annealed from 1 to .5."""


def settings(dataset: str, quick: bool = False) -> dict[str, Setting]:
    """Returns all settings of a data set by name."""
    large = dataset == "mnist"
    steps = 2000 if large else 3000
    gaussian = Setting(model="gaussian", latents=32 if large else 16, steps=steps)
    categorical = Setting(latents=16 if large else 8, warm_up=0.3, steps=steps)
    found = {name: replace(gaussian, warm_up=w, free_bits=f) for name, (w, f) in GAUSSIAN.items()}
    found |= {name: replace(categorical, estimator=name) for name in ESTIMATORS}
    if not large:
        found |= {n: replace(categorical, estimator=e, temperature=t) for n, (e, t) in TEMPERATURES.items()}
    return {name: replace(each, steps=20, evaluations=2) for name, each in found.items()} if quick else found


def described(setting: Setting) -> dict[str, Any]:
    """Returns a setting as plain data."""
    schedule = setting.temperature
    return {**asdict(setting), "temperature": {"name": type(schedule).__name__.lower(), **asdict(schedule)}}


def machine() -> dict[str, Any]:
    """Returns where and with what code this runs."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE)
    return {
        "commit": commit.stdout.strip(),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__.partition("+")[0],
    }


def trained(results: Path, data: Data, name: str, setting: Setting, seed: int) -> dict[str, Any]:
    """Returns one training's result, from its file if that has the same setting."""
    path = results / f"{data.name}-{name}-seed-{seed}.json"
    drawn = results / f"{data.name}-{name}-images.npz"
    pictured = seed == SEEDS[0] and name in SHOWN
    if path.exists() and (drawn.exists() or not pictured):
        known: dict[str, Any] = read_json(path)
        if known["setting"] == described(setting):
            return known
    model, found = train(setting, data, seed)
    if pictured:
        np.savez_compressed(drawn, **images(model, data, torch.Generator().manual_seed(seed)))
    result = {
        "dataset": data.name,
        "name": name,
        "seed": seed,
        "setting": described(setting),
        "final": {key: round(value, 4) for key, value in found["final"].items()},
        "curve": {key: [round(point[key], 4) for point in found["curve"]] for key in found["curve"][0]},
        "ms_per_step": round(found["ms_per_step"], 3),
        "machine": machine(),
    }
    write_json(path, result)
    print(f"{data.name} {name} seed {seed}: {result['final']}", flush=True)
    return result


def measured_pitfalls(results: Path) -> list[dict[str, Any]]:
    """Returns the rows of the pitfalls' table."""
    path = results / "pitfalls.json"
    known = {row["name"]: row for row in read_json(path)["rows"]} if path.exists() else {}
    rows = []
    for pitfall in PITFALLS:
        words = {key: getattr(pitfall, key) for key in ("name", "number", "symptom", "cure", "says")}
        row = known.get(pitfall.name)
        if row is None or any(row[key] != value for key, value in words.items()):
            before, after = pitfall.measure()
            row = {**words, "with_symptom": before, "with_cure": after, "holds": bool(pitfall.claim(before, after))}
            print(f"pitfall {pitfall.name}: {before:.4g}, {after:.4g}", flush=True)
        rows.append(row)
    if [*known.values()] != rows:
        write_json(path, {"rows": rows, "machine": machine()})
    return rows


def measured_variance(results: Path) -> dict[str, Any]:
    """Returns the variance of Gumbel-Softmax's gradient by temperature and samples, and the share of zero gradients."""
    path = results / "variance.json"
    if path.exists():
        known: dict[str, Any] = read_json(path)
        return known
    temperatures = [10 ** (k / 4) for k in range(-12, 5)]
    found: dict[str, Any] = {"temperatures": temperatures, "machine": machine()}
    for samples in (1, 16):
        found[f"variance_{samples}"] = [
            float(relaxed_gradients(tau, 40_000 // samples, samples).var(0).sum()) for tau in temperatures
        ]
    found["zero"] = [share_without_gradient(tau) for tau in temperatures]
    write_json(path, found)
    return found


def spread(values: list[float], digits: int = 1) -> str:
    """Returns mean ± deviation."""
    deviation = np.std(values, ddof=1) if len(values) > 1 else math.nan
    return f"{np.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def grouped(results: list[dict[str, Any]], dataset: str) -> dict[str, list[dict[str, Any]]]:
    """Returns the results of a data set by name."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in results:
        if row["dataset"] == dataset:
            found.setdefault(row["name"], []).append(row)
    return found


def tables(results: list[dict[str, Any]], pitfalls: list[dict[str, Any]]) -> str:
    """Returns all tables as Markdown."""
    lines = []
    for dataset in dict.fromkeys(row["dataset"] for row in results):
        lines += [
            f"## {dataset}: negative ELBO on test images, nats",
            "",
            "| | hard | relaxed | hard - relaxed | KL | active | ms per step |",
            "|" + " --- |" * 7,
        ]
        for name, rows in grouped(results, dataset).items():
            final = [row["final"] for row in rows]
            soft = "relaxed" in final[0]
            cells = [
                name,
                spread([f["hard"] for f in final], 2),
                spread([f["relaxed"] for f in final], 2) if soft else "-",
                spread([f["hard"] - f["relaxed"] for f in final], 2) if soft else "-",
                spread([f["kl"] for f in final]),
                f"{np.mean([f['active'] for f in final]):.1f} of {rows[0]['setting']['latents']}",
                f"{np.median([row['ms_per_step'] for row in rows]):.1f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    lines += [
        "## Pitfalls",
        "",
        "| pitfall | number | symptom | | cure | | claim | holds |",
        "|" + " --- |" * 8,
    ]
    for row in pitfalls:
        numbers = [f"{row[key]:.3g}" for key in ("with_symptom", "with_cure")]
        cells = [row["name"], row["number"], row["symptom"], numbers[0], row["cure"], numbers[1], row["says"]]
        lines.append("| " + " | ".join([*cells, "yes" if row["holds"] else "no"]) + " |")
    return "\n".join(lines)


def run(results: Path, mnist_path: Path, quick: bool = False) -> str:
    """Makes what is missing, and the tables and figures from all; returns the tables."""
    results.mkdir(parents=True, exist_ok=True)
    sets = [digits()]
    if mnist_path.exists():
        sets.append(mnist(mnist_path))
    else:
        print(f"no MNIST at {mnist_path}: its rows and figures are left out; --mnist says where it is")
    found = [
        trained(results, data, name, setting, seed)
        for data in sets
        for seed in SEEDS[: 1 if quick else None]
        for name, setting in settings(data.name, quick).items()
    ]
    found.sort(key=lambda row: (row["dataset"], [*settings(row["dataset"])].index(row["name"]), row["seed"]))
    text = tables(found, measured_pitfalls(results))
    (results / "table.md").write_text(text + "\n")
    figures.variance(measured_variance(results), results / "variance.png")
    for data in sets:
        groups = grouped(found, data.name)
        figures.learning_curves(groups, ESTIMATORS, results / f"{data.name}-curves.png")
        figures.gaps(groups, results / f"{data.name}-gaps.png")
        figures.collapse(groups, tuple(GAUSSIAN), results / f"{data.name}-collapse.png")
        figures.grids(results, data, SHOWN, results / f"{data.name}-images.png")
    return text


def main() -> None:
    shared = HERE.parents[2] / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", type=Path, default=Path(os.path.relpath(shared / "mnist.npz")))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--quick", action="store_true", help="20 steps, one seed; --results elsewhere: no figure counts"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = Path("runs") / "vae-quick" if options.quick and options.results == HERE / "results" else options.results
    print(run(results, options.mnist, options.quick))


if __name__ == "__main__":
    main()
