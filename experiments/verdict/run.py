"""What a user can conclude: cures of collapse against random search at equal cost (see README.md).

Run it again to go on after a stop. Needs CIFAR-10 at 16x16 and the NAS-Bench-201 table as npz files; the paths are
arguments.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from selectors_table import selectors_table

from nas.files import read_json, write_json
from nas.runs.compare.comparison import compare, in_short
from nas.runs.compare.rows import ROW, Gathered, gather

HERE = Path(__file__).parent
RESULTS = HERE / "results"
NAS = Path(sys.executable).with_name("nas")

BATCH = 64

COMMON = {
    "dataset.limit": 5120,
    "dataset.select_fraction": 0.04,
    "search.batch_size": BATCH,
    "search.evaluate_every": 10,
    "evaluation.calibration_batches": 2,
    "retrain.epochs": 2,
    "retrain.seeds": 1,
    "retrain.optimizer.lr": "{name: cosine, start: 0.1, end: 0}",
    "retrain.drop_path": 0.0,
    "retrain.cutout": False,
    "tracking.wandb": "disabled",
    "threads": 1,
}
SMALL = {"space.channels": 8, "space.cells_per_stage": 1}
FAST = {"search.logits.lr": 0.03}
"""Logits fast enough that a search of minutes goes as far as one of a day."""

CURES = "search.modifiers=[],beta-decay,perturbed-weights"
MORE = f"{CURES},partial-channels,oles"
CELLS = {"space.channels": 8, "space.depth": 3, "space.nodes": 2, **FAST}


def few(images: int, steps: int) -> Mapping[str, object]:
    """Returns the settings of a search on so few images that the weights overfit."""
    epochs = steps * BATCH // images
    limits = {"dataset.limit": images, "search.epochs": epochs, "search.evaluate_every": epochs // 3}
    return {**CELLS, **limits, "retrain.epochs": 160 * BATCH // images}


def sweep(space: str, modifiers: str) -> Sequence[str]:
    return ["--space", space, "--selectors", "softmax", "--vary", modifiers, "--seeds", "3"]


SWEEPS: Mapping[str, tuple[str, Sequence[str], Mapping[str, object], str]] = {
    "cures": (
        "NAS-Bench-201, 5,120 steps on 5,120 images",
        [*sweep("nas-bench-201", CURES), "--no-retrain"],
        {**SMALL, **FAST, "search.epochs": 64},
        "regret",
    ),
    "s2-more": (
        "S2, 3,200 steps on 5,120 images",
        sweep("darts-s2", CURES),
        {**CELLS, "search.epochs": 40},
        "parameter_free",
    ),
    "s2-long": (
        "S2, 6,400 steps on 5,120 images",
        sweep("darts-s2", "search.modifiers=[],perturbed-weights,oles"),
        {**CELLS, "search.epochs": 80},
        "parameter_free",
    ),
    "s2": ("S2, 2,400 steps on 1,280 images", sweep("darts-s2", MORE), few(1280, 2400), "parameter_free"),
    "s4-more": (
        "S4, 1,600 steps on 5,120 images",
        sweep("darts-s4", CURES),
        {**CELLS, "search.epochs": 20},
        "parameter_free",
    ),
    "s4": ("S4, 1,600 steps on 320 images", sweep("darts-s4", MORE), few(320, 1600), "parameter_free"),
}
"""Title, arguments, settings, and by what the runs are compared; all of them share `COMMON`."""


def begin(name: str, arguments: argparse.Namespace) -> None:
    """Runs a sweep, or what is left of it."""
    _, asked, settings, metric = SWEEPS[name]
    command = [str(NAS), "sweep", *asked, "--dataset", arguments.data, "--out", str(folder(name, arguments))]
    command += ["--benchmark", arguments.table] if metric == "regret" else []
    command += ["--workers", str(arguments.workers)]
    for key, value in {**COMMON, **settings}.items():
        command += ["--set", f"{key}={json.dumps(value) if isinstance(value, bool) else value}"]
    if code := subprocess.run(command, check=False).returncode:
        sys.exit(code)


def folder(name: str, arguments: argparse.Namespace) -> Path:
    return Path(arguments.runs) / name


def collect(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns what a sweep showed: comparisons by each metric, signals of the watch, curves, and CPU hours."""
    gathered = gather([folder(name, arguments)])
    metrics = ["regret", "parameter_free", "parameter_free_mass", "supernet", "retrained"]
    known = [metric for metric in metrics if any(metric in row.metrics for row in gathered.rows)]
    return {
        "comparisons": {metric: compare(gathered, metric) for metric in known},
        "watch": _by_label(gathered, fired),
        "curves": _by_label(gathered, curve),
        "cpu_hours": sum(sum(read_json(row.folder / ROW)["seconds"].values()) for row in gathered.rows) / 3600,
    }


def _by_label(gathered: Gathered, read: Callable[[Path], Any]) -> dict[str, list[Any]]:
    """Returns what is read in the folders of each group of searches, by seed."""
    found: dict[str, list[Any]] = {}
    for row in sorted(gathered.rows, key=lambda row: row.seed):
        if row.kind == "search":
            label = f"{row.config['selector.name']} {in_short(row.config['search.modifiers'])}"
            found.setdefault(label, []).append(read(row.folder))
    return found


def fired(folder: Path) -> int | None:
    """Returns the epoch in which the watch first fired for edges without parameters."""
    signals = read_json(folder / "search.json")["watch"]["fired"]
    return min((each["epoch"] for each in signals if each["signal"] == "parameter_free"), default=None)


def curve(folder: Path) -> list[float]:
    """Returns the share without parameters of the most probable genotype after each epoch."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [round(line["watch/parameter_free"], 3) for line in lines if "watch/parameter_free" in line]


def table(name: str) -> str:
    """Returns a sweep's rows, and what was shown, as Markdown."""
    title, _, _, metric = SWEEPS[name]
    found = read_json(RESULTS / f"{name}.json")
    by_metric = found["comparisons"]
    main, watch = by_metric[metric], found["watch"]
    more = [each for each in by_metric if each != metric]
    columns = ["", "N", _words(metric), "95% interval", "each seed", *map(_words, more), "watch fired", "CPU s"]
    lines = [f"### {title}", "", f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]
    for row in main["rows"]:
        others = [next((r for r in by_metric[each]["rows"] if r["label"] == row["label"]), None) for each in more]
        label = row["label"].replace("search.modifiers=", "")
        epochs = watch.get(label)
        cells = [
            label,
            str(row["n"]),
            _spread(row),
            _interval(row["interval"]),
            ", ".join(f"{value:.1f}" for value in row["values"]),
            *("" if other is None else _spread(other) for other in others),
            "" if epochs is None else f"{sum(each is not None for each in epochs)} of {len(epochs)}",
            f"{row['search_seconds']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    shown = [
        by_metric[each]
        for each in dict.fromkeys([metric, "parameter_free", "parameter_free_mass"])
        if each in by_metric
    ]
    lines += ["", *(line for each in shown for line in _statements(each))]
    lines += [f"CPU hours of the sweep: {found['cpu_hours']:.1f}."]
    return "\n".join(lines).replace("search.modifiers=", "")


def _words(metric: str) -> str:
    words = {
        "regret": "table regret, points",
        "parameter_free": "edges without parameters, %",
        "parameter_free_mass": "their probability, %",
    }
    return words.get(metric, f"{metric}, % on `select`")


def _spread(row: Mapping[str, Any]) -> str:
    if row["mean"] is None:
        return ""
    return f"{row['mean']:.1f}" + ("" if row["deviation"] is None else f" ± {row['deviation']:.1f}")


def _interval(ends: Sequence[float] | None) -> str:
    return "" if ends is None else f"{ends[0]:.1f} to {ends[1]:.1f}"


def _statements(found: Mapping[str, Any]) -> list[str]:
    """Returns the differences between searches, and the verdict on each search against the random baselines."""
    baselines = {row["label"] for row in found["rows"] if row["baseline"]}
    pairs = [
        pair for pair in found["pairs"] if pair["p"] is not None and not {pair["first"], pair["second"]} & baselines
    ]
    lines = [f"Differences of {_words(found['metric'])}; p, and p corrected for all {found['comparisons']} pairs:", ""]
    lines += [
        f"* {pair['first']} and {pair['second']}: {pair['difference']:+.1f}; {pair['p']:.3f}, "
        f"{pair['corrected_p']:.3f}: {pair['statement']}"
        for pair in sorted(pairs, key=lambda pair: float(pair["p"]))
    ]
    for verdict in found["verdicts"]:
        limit = "" if verdict["detectable"] is None else f" (from {verdict['detectable']:.1f} on it would be)"
        lines.append(f"* {verdict['label']} against {verdict['against']}: {verdict['verdict']}{limit}")
    return [*lines, ""]


def plot(names: Sequence[str]) -> None:
    """Draws how the share without parameters grows, one panel for each sweep."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows = -(-len(names) // 3)
    figure, axes = plt.subplots(rows, 3, figsize=(12, 3.2 * rows), sharex=True, sharey=True, squeeze=False)
    lines: dict[str, Any] = {}
    for axis, name in zip(axes.flat, names, strict=False):
        for label, runs in read_json(RESULTS / f"{name}.json")["curves"].items():
            colour = lines[label].get_color() if label in lines else f"C{len(lines)}"
            shares = [100 * value for value in map(mean, zip(*runs, strict=True))]
            progress = [(epoch + 1) / len(shares) for epoch in range(len(shares))]
            for run in runs:
                axis.plot(progress, [100 * value for value in run], color=colour, alpha=0.25, linewidth=0.8)
            lines[label] = axis.plot(progress, shares, color=colour, linewidth=2)[0]
        axis.set_title(SWEEPS[name][0], fontsize=10)
        axis.set_xlabel("share of the search")
        axis.grid(alpha=0.3)
        axis.tick_params(labelbottom=True)
    for row in axes:
        row[0].set_ylabel("edges without parameters, %")
    axes[0][0].set_ylim(0, 102)
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    labels = [label.removeprefix("softmax ") for label in lines]
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.legend([*lines.values()], labels, frameon=False, loc="lower center", ncols=len(lines))
    figure.savefig(RESULTS / "drift.png", dpi=110)


def main() -> None:
    beside = Path(__file__).parents[2].parent / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=str(beside / "cifar10-16x16.npz"))
    parser.add_argument("--table", default=str(beside / "nasbench201.npz"))
    parser.add_argument("--runs", default="runs/verdict")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default=",".join(SWEEPS), help="sweeps, with commas, in this order")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    for name in arguments.only.split(","):
        begin(name, arguments)
        write_json(RESULTS / f"{name}.json", collect(name, arguments))
    done = [name for name in SWEEPS if (RESULTS / f"{name}.json").is_file()]
    text = "\n\n".join([*map(table, done), selectors_table(arguments)])
    (HERE / "table.md").write_text(text + "\n")
    plot(done)
    machine = {"processor": platform.machine(), "cpus": os.cpu_count(), "torch": torch.__version__.partition("+")[0]}
    (HERE / "machine.json").write_text(json.dumps(machine, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
