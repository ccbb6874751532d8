"""Bias and variance of the gradient estimators: figures and tables (see README.md).

Run it again to go on after a stop: one JSON file in results/ for each measurement; remove a file to measure it again.
"""

import argparse
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import figures
import ratios
import samples
import supernet
import tables
import temperature
import torch

HERE = Path(__file__).parent
SEEDS, NETWORKS = (0, 1, 2), (0, 1, 2, 3)


def measurements() -> dict[str, Callable[[], Any]]:
    """Every file of results, with what makes it."""
    jobs: dict[str, Callable[[], Any]] = {"ratios": ratios.measure}
    jobs |= {f"samples-{seed}": lambda seed=seed: samples.measure(seed) for seed in SEEDS}
    jobs |= {f"temperature-{seed}": lambda seed=seed: temperature.measure(seed) for seed in SEEDS}
    for name, spread in (("flat", 0.0), ("normal", 1.0)):
        jobs |= {f"supernet-{name}-{seed}": lambda s=seed, x=spread: supernet.measure(s, x) for seed in NETWORKS}
    jobs |= {f"variants-{seed}": lambda seed=seed: supernet.variants(seed) for seed in SEEDS}
    return jobs


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.results.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    found: dict[str, Any] = {}
    for name, measure in measurements().items():
        path = options.results / f"{name}.json"
        if not path.exists():
            start = time.perf_counter()
            values = measure()
            machine = {"processor": processor(), "cpus": os.cpu_count(), "threads": 1, "torch": torch.__version__}
            seconds = round(time.perf_counter() - start, 1)
            whole = {"commit": commit, "machine": machine, "seconds": seconds, "values": values}
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(whole, indent=1) + "\n")
            partial.replace(path)
            print(f"{name}: {seconds} s", flush=True)
        found[name] = json.loads(path.read_text())["values"]
    figures.draw(found, options.results)
    text = tables.write(found)
    (options.results / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
