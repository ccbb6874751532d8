"""How fast the backends are, and what memory they need, in the settings of the README.

Each measurement is one JSON file; run the command again to make those that are missing, and the table from all.
`--quick` tries everything out on tiny networks in another folder: its figures mean nothing.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from nas.errors import NasError
from nas.files import write_json
from nas.runs.bench import bench
from nas.runs.bench.clock import alternate
from nas.runs.bench.memory import saved_activations
from nas.runs.bench.steps import noise, search_subject
from nas.runs.configuration import Config
from nas.runs.pipeline import configure
from nas.runs.session import Session, session
from nas.space import Task

HERE = Path(__file__).parent
DARTS_V2 = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5], "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"
)
PROBES, ONE_PATH, MIXTURE = "st-gs", "st-gs-single-path", "softmax"
FULL = {
    "darts": {"name": "darts", "channels": 16, "depth": 8},
    "derived": {"name": "darts", "channels": 36, "depth": 8},
    "nas-bench-201": {"name": "nas-bench-201", "channels": 16, "cells_per_stage": 5},
    "chain": {"name": "chain"},
}
SMALL = {
    "darts": {"name": "darts", "channels": 4, "depth": 3},
    "derived": {"name": "darts", "channels": 4, "depth": 3},
    "nas-bench-201": {"name": "nas-bench-201", "channels": 4, "cells_per_stage": 1},
    "chain": {"name": "chain", "channels": 4, "stages": 2},
}


class Measurements:
    """The measurements by name; each returns what goes into its file.

    Args:
        quick: Whether networks are tiny and pairs few.
    """

    def __init__(self, quick: bool) -> None:
        self.quick, self.spaces = quick, SMALL if quick else FULL
        self.task = Task(3, 8, 8, 10) if quick else Task(3, 32, 32, 10)

    def all(self) -> dict[str, Callable[[], dict[str, Any]]]:
        found: dict[str, Callable[[], dict[str, Any]]] = {}
        for backend in ("native", "aten"):
            found[f"darts-{backend}"] = partial(self.search, "darts", backend, 7)
            found[f"nas-bench-201-{backend}"] = partial(self.search, "nas-bench-201", backend, 9)
            found[f"chain-{backend}"] = partial(self.search, "chain", backend, 9)
            found[f"one-path-{backend}"] = partial(self.search, "darts", backend, 15, selector="uniform")
            found[f"probes-{backend}"] = partial(self.probes, backend, 9)
            found[f"retraining-{backend}"] = partial(self.retraining, backend, 9)
        found["one-path-reference"] = partial(self.search, "darts", "reference", 15, selector="uniform")
        found["probes-reference"] = partial(self.probes, "reference", 5)
        found["darts-native-batch-64-2-threads"] = partial(
            self.search, "darts", "native", 5, batch_size=64, threads=2, memory=False
        )
        return found

    def search(self, space: str, backend: str, pairs: int, *, memory: bool = True, **settings: Any) -> dict[str, Any]:
        """Measures the steps of a search against the reference."""
        config = self._config(space, backend, **settings)
        return bench(config, self._pairs(pairs), task=self.task, memory=memory)

    def retraining(self, backend: str, pairs: int) -> dict[str, Any]:
        """Measures the retraining of a published cell."""
        config = self._config("derived", backend)
        return bench(config, self._pairs(pairs), task=self.task, genotype=config.space.parse(DARTS_V2))

    def probes(self, backend: str, pairs: int) -> dict[str, Any]:
        """Measures architecture steps of three selectors by one backend, in turn; ratios are to `softmax`."""
        with TemporaryDirectory() as folder:
            config = self._config("darts", backend)
            with session(Path(folder), config, "bench", quiet=True) as work:
                return self._probes(work, self._pairs(pairs))

    def _probes(self, work: Session, pairs: int) -> dict[str, Any]:
        subjects = {}
        for selector in (PROBES, ONE_PATH, MIXTURE):
            config = self._config("darts", work.config.engine.backend, selector=selector)
            subjects[selector] = search_subject(Session(config, work.folder, work.tracker, work.status, work.stop))
        saved = {name: saved_activations(subject) for name, subject in subjects.items()}
        seconds: dict[str, list[float]] = {name: [] for name in subjects}
        for pair in range(pairs + 1):
            steps = {name: partial(each.steps["architecture_step"], pair) for name, each in subjects.items()}
            taken = alternate(steps, pair, work.device)
            for name, each in taken.items() if pair else ():
                seconds[name].append(each.cpu)
            work.raise_if_stopped("in experiments/speed")
        shares = {
            name: [a / b for a, b in zip(taken, seconds[MIXTURE], strict=True)] for name, taken in seconds.items()
        }
        return {
            "architecture_step": {name: median(values) for name, values in shares.items()},
            "ranges": {name: [min(values), max(values)] for name, values in shares.items()},
            "seconds": seconds,
            "saved_activations": saved,
            "setting": {"backend": work.config.engine.backend, "pairs": pairs},
        }

    def _config(
        self, space: str, backend: str, *, selector: str = MIXTURE, batch_size: int = 16, threads: int = 1
    ) -> Config:
        size = 4 if self.quick else batch_size
        return configure(
            space=self.spaces[space],
            selector=selector,
            dataset=noise(self.task, size),
            search={"batch_size": size},
            retrain={"batch_size": size},
            engine={"backend": backend},
            tracking={"wandb": "disabled"},
            device="cpu",
            threads=threads,
        )

    def _pairs(self, pairs: int) -> int:
        return 1 if self.quick else pairs


def table(found: dict[str, Any]) -> str:
    """Returns targets and outcomes, then what was measured for each search space, as Markdown."""
    lines = ["| work | target | outcome | range | met |", "|" + " --- |" * 5]
    for work, target, outcome, values, met in targets(found):
        between = f"{values[0]:.2f} to {values[1]:.2f}" if values else ""
        lines.append(f"| {work} | {target} | {outcome} | {between} | {'yes' if met else 'no'} |")
    lines += ["", "| measurement | step | reference | backend | ratio | range |", "|" + " --- |" * 6]
    for name, each in found.items():
        if "ratios" not in each:
            continue
        clock = each["setting"]["clock"]
        for kind, by in each["pairs"].items():
            low, high = each["ranges"][kind]
            pair = " | ".join(f"{1000 * median(by[who][clock]):.1f} ms" for who in ("reference", "backend"))
            ratio = f"{each['ratios'][kind]:.2f} | {low:.2f} to {high:.2f}"
            lines.append(f"| {name} | {kind.replace('_', ' ')} | {pair} | {ratio} |")
        for measure, by in each["memory"].items():
            for kind, size in (by["backend"] or {}).items():
                text = f"{measure}, {kind}".replace("_", " ")
                other = by["reference"][kind]
                lines.append(f"| {name} | {text} | {other / 1e6:.1f} MB | {size / 1e6:.1f} MB | {other / size:.2f} | |")
    machines = sorted({json.dumps(each["machine"], sort_keys=True) for each in found.values() if "machine" in each})
    commits = sorted({each["commit"] for each in found.values()})
    return "\n".join([*lines, "", *(f"Machine: {each}" for each in machines), f"Commit: {', '.join(commits)}"])


def targets(found: dict[str, Any]) -> list[tuple[str, str, str, list[float] | None, bool]]:
    """Returns work, target, outcome, range and whether it is met, for everything that was measured."""
    rows: list[tuple[str, str, str, list[float] | None, bool]] = []

    def faster(name: str, work: str, key: str, least: float) -> None:
        if name in found and found[name]["ratios"].get(key) is not None:
            value = found[name]["ratios"][key]
            between = found[name]["ranges"].get(key)
            rows.append((f"{work}, {name}", f">= {least:g}x", f"{value:.2f}x", between, value >= least))

    def at_most(work: str, value: float, most: float, between: list[float] | None = None) -> None:
        rows.append((work, f"<= {most:g}", f"{value:.3f}", between, value <= most))

    faster("darts-aten", "bilevel step", "bilevel_step", 2.5)
    faster("darts-native", "bilevel step", "bilevel_step", 6)
    faster("darts-native", "step memory, reference by backend", "step_memory", 4)
    faster("darts-native-batch-64-2-threads", "bilevel step", "bilevel_step", 5)
    faster("nas-bench-201-aten", "bilevel step", "bilevel_step", 2)
    faster("nas-bench-201-native", "bilevel step", "bilevel_step", 3)
    faster("nas-bench-201-native", "step memory, reference by backend", "step_memory", 2)
    for backend in ("reference", "aten", "native"):
        name, most = f"one-path-{backend}", 1.0 if backend == "native" else 1.05
        if name in found:
            low, high = found[name]["ranges"]["fixed_weight_step"]
            value = 1 / found[name]["ratios"]["fixed_weight_step"]
            at_most(f"weight step by that of the plain fixed network, {name}", value, most, [1 / high, 1 / low])
        if (probes := found.get(f"probes-{backend}")) is not None:
            share, saved = probes["architecture_step"][PROBES], probes["saved_activations"]
            at_most(f"architecture step, st-gs by softmax, {backend}", share, 0.6, probes["ranges"][PROBES])
            held = saved[PROBES]["architecture_step"]
            at_most(
                f"saved by st-gs's architecture step, by one path's, {backend}",
                held / saved[ONE_PATH]["architecture_step"],
                1.1,
            )
            at_most(
                f"saved by st-gs's architecture step, by one path's weight step, {backend}",
                held / saved[PROBES]["weight_step"],
                1.1,
            )
    for backend in ("aten", "native"):
        for name, kind, most in (
            (f"darts-{backend}", "bilevel_step", 0.05),
            (f"one-path-{backend}", "weight_step", 0.15),
        ):
            if name in found:
                text = f"share of the {kind.replace('_', ' ')} that is not model arithmetic, {name}"
                at_most(text, found[name]["overhead_share"][kind], most)
        faster(f"retraining-{backend}", "retraining step", "retraining_step", 1.5)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", help="measurements to make; default: all")
    parser.add_argument("--quick", action="store_true", help="tiny networks, one pair")
    parser.add_argument("--out", type=Path, help="folder of the results")
    options = parser.parse_args()
    measurements = Measurements(options.quick).all()
    if unknown := set(options.only) - set(measurements):
        parser.error(f"unknown {', '.join(sorted(unknown))}; there are {', '.join(measurements)}")
    out = options.out or (Path("runs") / "speed-quick" if options.quick else HERE / "results")
    out.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    for name, measure in measurements.items():
        path = out / f"{name}.json"
        if (not options.only or name in options.only) and not path.exists():
            print(name, file=sys.stderr, flush=True)
            write_json(path, {**measure(), "commit": commit})
    found = {name: json.loads(path.read_text()) for name in measurements if (path := out / f"{name}.json").exists()}
    text = table(found)
    (out / "table.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    try:
        main()
    except NasError as error:
        sys.exit(f"{error}")
