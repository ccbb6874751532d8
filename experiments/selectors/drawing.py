"""What drawing one decision costs: 14 edges with 8 candidates, one thread, medians (see README.md)."""

import json
import time
from pathlib import Path
from statistics import median

import torch

from nas import registry
from nas.randomness import generator
from nas.selectors import Selector
from nas.space import Cell, Edge

REPEATS = 1000
OPERATIONS = tuple("abcdefgh")
CELL = Cell(
    tuple(Edge(source, node, OPERATIONS) for node in range(2, 6) for source in range(node)),
    outputs=(2, 3, 4, 5),
    inputs=2,
)


def microseconds(name: str, learning: bool) -> float:
    """Returns the median CPU time of a decision; with the graph of an architecture step if `learning`."""
    selector = registry.load(Selector.registry, name)().on({"cell": CELL})
    logits = torch.randn(14, 8, generator=generator(0), requires_grad=learning)
    draws, times = generator(0), []
    for _ in range(REPEATS):
        started = time.process_time()
        selector.decide({"cell": logits}, 0.5, draws)
        times.append(time.process_time() - started)
    return 1e6 * median(times[REPEATS // 10 :])


def main() -> None:
    torch.set_num_threads(1)
    found = {
        name: {
            step: round(microseconds(name, step == "architecture step"))
            for step in ("weight step", "architecture step")
        }
        for name in registry.names(Selector.registry)
    }
    (Path(__file__).parent / "drawing.json").write_text(json.dumps(found, indent=1) + "\n")
    print("| selector | weight step, us | architecture step, us |\n| --- | --- | --- |")
    for name, times in sorted(found.items(), key=lambda item: item[1]["architecture step"]):
        print(f"| {name} | {times['weight step']} | {times['architecture step']} |")


if __name__ == "__main__":
    main()
