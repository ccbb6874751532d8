"""Softmax, ST-GS and uniform sampling on NAS-Bench-201: gap, table regret and time (see README.md).

Run it again to go on after a stop: every run resumes, and what is done is only read. Needs CIFAR-10 at 16x16 and the
NAS-Bench-201 table as npz files; the paths are arguments.
"""

import argparse
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from nas.files import read_json
from nas.runs.folder import Run, default_folder
from nas.runs.pipeline import configure, execute
from nas.runs.statistics import kendall

HERE = Path(__file__).parent
SELECTORS = ("softmax", "st-gs", "uniform")
SEEDS = (0, 1, 2)


def configuration(selector: str, seed: int, data: str, table: str, threads: int) -> Any:
    return configure(
        space={"name": "nas-bench-201", "channels": 8, "cells_per_stage": 1},
        selector=selector,
        dataset={"name": "npz", "path": data, "limit": 4000},
        seed=seed,
        search={"epochs": 12, "batch_size": 64},
        retrain={"epochs": 5, "batch_size": 64, "seeds": 2, "optimizer": {"lr": {"start": 0.05}}},
        evaluation={"batch_size": 256, "calibration_batches": 4},
        gap={"decisions": 10, "random": 6},
        benchmark={"path": table},
        tracking={"wandb": "disabled"},
        threads=threads,
    )


def run_one(config: Any, runs: Path) -> Run:
    folder = runs / default_folder(config).name
    folder.mkdir(parents=True, exist_ok=True)
    # Retrained genotypes are filed by genotype and recipe, so the selectors can share the random ones.
    shared = runs / "retrained"
    shared.mkdir(exist_ok=True)
    if not (folder / "retrain").exists():
        (folder / "retrain").symlink_to(os.path.relpath(shared, folder))
    return execute(Run.begin(folder, config), ["search", "derive", "retrain", "gap"], command="run")


def rows(runs: list[tuple[str, int, Run]]) -> list[dict[str, Any]]:
    found = []
    for selector, seed, run in runs:
        report, status = run.gap(), read_json(run.folder / "status.json")
        assert report is not None
        entry: Any = report["benchmark"]
        found.append(
            {
                "selector": selector,
                "seed": seed,
                "genotype": report["genotype"],
                "supernet": report["supernet"],
                "inherited": report["inherited"],
                "retrained": report["retrained"]["mean"],  # type: ignore[index]
                "random": report["random"]["mean"],  # type: ignore[index]
                "retrained_test": report["test"]["retrained"]["mean"],  # type: ignore[index]
                "random_test": report["test"]["random"]["mean"],  # type: ignore[index]
                "gap": report["gap"],
                "discretisation_gap": report["discretisation_gap"],
                "sharing_gap": report["sharing_gap"],
                "kendall_tau": report["kendall_tau"],
                "table_test": entry["test"],
                "regret": entry["regret"],
                "rank": entry["rank"],
                "search_seconds": status["seconds"]["search"],
                "derive_seconds": status["seconds"]["derive"],
            }
        )
    return found


def ceiling(runs: Path, benchmark: Any) -> str:
    """Says how well brief retraining, the best that inherited weights could do, ranks cells as the table does."""
    accuracies: dict[str, list[float]] = {}
    for path in sorted((runs / "retrained").glob("*/seed-*/result.json")):
        result = read_json(path)
        accuracies.setdefault(result["genotype"], []).append(result["select"])
    rows = {text: row for row, text in enumerate(benchmark["arch"].astype(str).tolist())}
    published = [float(benchmark["cifar10_test"][rows[text]]) for text in accuracies]
    tau = kendall([float(np.mean(values)) for values in accuracies.values()], published)
    low, high = tau["interval"]
    return (
        f"Over the {tau['n']} cells that were retrained, Kendall's tau of their accuracy here with the table's is "
        f"{tau['tau']:+.2f} (95% interval {low:+.2f} to {high:+.2f})."
    )


def table(results: list[dict[str, Any]], expected: float, ranking: str) -> str:
    def cell(selector: str, key: str, digits: int = 1) -> str:
        values = [row[key] for row in results if row["selector"] == selector and row[key] is not None]
        return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else "-"

    names = ["supernet", "inherited", "retrained", "random", "gap", "discretisation_gap", "sharing_gap"]
    lines = [
        "| selector | supernet | inherited | retrained | random | gap | discretisation | sharing | Kendall tau "
        "| table test | regret | search s | derive s |",
        "|" + " --- |" * 13,
    ]
    for selector in SELECTORS:
        parts = [cell(selector, name) for name in names]
        parts += [cell(selector, "kendall_tau", 2), cell(selector, "table_test"), cell(selector, "regret")]
        parts += [cell(selector, "search_seconds", 0), cell(selector, "derive_seconds", 0)]
        lines.append(f"| {selector} | " + " | ".join(parts) + " |")
    lines.append("")
    lines.append(f"A random cell of the table has an expected regret of {expected:.1f} points. {ranking}")
    return "\n".join(lines)


def main() -> None:
    shared = HERE.parents[2] / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=os.path.relpath(shared / "cifar10-16x16.npz"))
    parser.add_argument("--table", default=os.path.relpath(shared / "nasbench201.npz"))
    parser.add_argument("--runs", type=Path, default=Path("runs") / "first-gap")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    done = []
    for seed in SEEDS:
        for selector in SELECTORS:
            config = configuration(selector, seed, options.data, options.table, options.threads)
            done.append((selector, seed, run_one(config, options.runs)))
            results = rows(done)
            with np.load(options.table) as benchmark:
                test = benchmark["cifar10_test"]
                ranking = ceiling(options.runs, benchmark)
            text = table(results, float(test.max() - test.mean()), ranking)
            commit = subprocess.run(
                ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
            ).stdout.strip()
            machine = {"processor": platform.machine(), "cpus": os.cpu_count(), "threads": options.threads}
            (HERE / "results.json").write_text(
                json.dumps({"commit": commit, "machine": machine, "rows": results}, indent=1) + "\n"
            )
            (HERE / "table.md").write_text(text + "\n")
            print(text, flush=True)


if __name__ == "__main__":
    main()
