"""Bias, variance and cost of the selectors' gradients on NAS-Bench-201 (see README.md).

Run it again to go on after a stop: every diagnosis is a file in `results`, and what is there is only read. The part on
CIFAR-10 at 16x16 needs it as an npz file, whose path is an argument; without the file that part is left out.
"""

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from nas.files import write_json
from nas.report.diagnose import plot_diagnosis
from nas.runs.diagnose.measure import Settings, diagnose
from nas.runs.diagnose.subjects import subjects
from nas.runs.pipeline import configure

HERE = Path(__file__).parent
RESULTS = HERE / "results"
SEEDS = (0, 1, 2)
SOME = "softmax,gumbel-softmax,st-gs,st-gs-single-path,gdas,reinmax,pair-reinmax,reinforce,score-cv"
FIGURES = (("bias", "bias"), ("variance", "variance"), ("cosine", "cosine"), ("mse_per_64_candidates", "mse at 64"))

PARTS: dict[str, dict[str, Any]] = {
    "digits-reduced-normal": {"selectors": "all", "temperatures": ".1,.5,1", "settings": {"weights": "trained"}},
    "cifar10-whole-normal": {
        "selectors": SOME,
        "temperatures": ".5,1",
        "settings": {"weights": "trained", "reference": "sampled", "logits": "normal"},
    },
    "cifar10-whole-flat": {  # half the draws: a deviation over seeds is larger than what they would add
        "selectors": SOME,
        "temperatures": ".5,1",
        "settings": {
            "weights": "trained",
            "reference": "sampled",
            "logits": "flat",
            "draws": 100,
            "burn_in": 100,
            "decisions": 2048,
        },
    },
}


def run_one(part: str, seed: int, data: Path, threads: int) -> dict[str, Any]:
    path = RESULTS / f"{part}-seed{seed}.json"
    if not path.is_file():
        dataset = {"name": "npz", "path": str(data), "limit": 4000} if part.startswith("cifar10") else "digits"
        config = configure(
            space={"name": "nas-bench-201", "channels": 8, "cells_per_stage": 1},
            dataset=dataset,
            seed=seed,
            search={"batch_size": 64 if part.startswith("cifar10") else 32},
            threads=threads,
        )
        given = PARTS[part]
        judged = subjects(config, given["selectors"], given["temperatures"])
        found = diagnose(config, judged, Settings(**given["settings"]))
        found["setting"]["dataset"].pop("path", None)
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        write_json(path, {**found, "commit": commit})
    found = json.loads(path.read_text())
    if part == "digits-reduced-normal" and seed == 0:
        plot_diagnosis(found, RESULTS / f"{part}-seed{seed}.png")
    return found


def table(found: list[dict[str, Any]], key: str) -> str:
    """Returns means and deviations over seeds, one line per selector and temperature."""
    lines = ["| selector | candidates | " + " | ".join(words for _, words in FIGURES) + " | ms |", "|" + " --- |" * 7]
    for rows in zip(*(each[key] for each in found), strict=True):
        name, tau = rows[0]["selector"], rows[0]["temperature"]
        cells = [f"{name} {tau:g}" if tau else name, f"{np.mean([row['candidates'] for row in rows]):.3g}"]
        for figure, _ in FIGURES:
            values = [row[figure] for row in rows]
            cells.append(f"{number(np.mean(values))} ± {number(np.std(values, ddof=1))}" if len(rows) > 1 else "-")
        cells.append(f"{1000 * np.mean([row['seconds_per_draw'] for row in rows]):.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    errors = [np.mean([row["bias_error"] for each in found for row in each[key] if row["variance"]])]
    norms = [each["gradient_norm"]["trained" if key == "rows" else "initial"] for each in found]
    lines += ["", f"Norm of the exact gradient {np.mean(norms):.3f} ± {np.std(norms, ddof=1):.3f}; the standard error"]
    lines[-1] += f" of a single bias is {errors[0]:.2f} on average."
    return "\n".join(lines)


def number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 9.995 else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10-16x16.npz"))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    texts = []
    for part in PARTS:
        if part.startswith("cifar10") and not options.data.is_file():
            print(f"no file {options.data}: {part} is left out")
            continue
        found = [run_one(part, seed, options.data, options.threads) for seed in SEEDS]
        keys = [("rows", "trained")] + ([("initial_rows", "initial")] if found[0]["initial_rows"] else [])
        for key, weights in keys:
            texts.append(f"### {part}, {weights} weights\n\n{table(found, key)}\n")
        (HERE / "table.md").write_text("\n".join(texts))
    print("\n".join(texts))


if __name__ == "__main__":
    main()
