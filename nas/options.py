"""The options of the commands, in the order in which `--help` lists them; no torch is loaded for them."""

from collections.abc import Callable, Sequence
from typing import Any

import click

from nas.runs.compare.metrics import METRICS
from nas.runs.diagnose import options as diagnose
from nas.runs.sweep import options as sweep

Command = Callable[..., None]

OUTPUT = [
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
    click.option("--quiet", is_flag=True, help="Show no progress."),
]

WHAT = [
    click.option("--config", type=click.Path(dir_okay=False), help="YAML file with what differs from the defaults."),
    click.option("--space", help="Search space: a name from `nas list spaces`, or file.py:Class."),
    click.option("--selector", help="Edge selector: a name from `nas list selectors`, or file.py:Class."),
    click.option("--dataset", help="Dataset: a name from `nas list datasets`, a path.npz, or file.py:Class."),
    click.option("--seed", type=int, help="Key of all randomness but the splits'."),
]

DEVICE = click.option("--device", help="auto, cpu, cuda, cuda:1, mps.")
SET = click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Any setting, e.g. search.epochs=50.")

EPOCHS = click.option("--epochs", type=int, help="Epochs of every stage of this command that trains.")
BENCHMARK = click.option(
    "--benchmark",
    metavar="TABLE",
    help="NAS-Bench-201 table (npz, or NATS-tss) for accuracy, rank and regret; A.npz,HARDWARE.npz for devices too.",
)
DRY_RUN = click.option("--dry-run", is_flag=True, help="Check everything, print what would be done, train nothing.")

SETTINGS = [
    *WHAT,
    EPOCHS,
    DEVICE,
    click.option("--out", type=click.Path(), help="The run folder itself; default: one in runs/."),
    BENCHMARK,
    SET,
    DRY_RUN,
    *OUTPUT,
]

BENCH = [
    *WHAT,
    click.option("--backend", help="What to measure: auto, reference, aten, native."),
    click.option("--batch-size", type=int, help="Images per step."),
    click.option("--image", type=int, help="Side of the images; default: as in a dataset that is named, or 32."),
    click.option("--genotype", help="Measure its retraining, not a search: a file, or text as for `nas retrain`."),
    click.option("--threads", type=int, help="CPU threads; with one, the process's CPU time is measured."),
    click.option("--pairs", type=int, default=5, show_default=True, help="How often each step is measured."),
    click.option("--no-memory", is_flag=True, help="Measure times only."),
    click.option(
        "--latency-table",
        metavar="FILE.json",
        help="Measure instead how long each candidate takes in derived networks, for a search by latency.",
    ),
    DEVICE,
    SET,
    *OUTPUT,
]

DIAGNOSE = [*WHAT[:2], *WHAT[3:], *diagnose.OPTIONS, DEVICE, SET, *OUTPUT]  # --selectors instead of --selector

SWEEP = [*WHAT[:2], WHAT[3], *sweep.OPTIONS, EPOCHS, BENCHMARK, DEVICE, SET, DRY_RUN, *OUTPUT]

COMPARE = [
    click.option("--metric", type=click.Choice([*METRICS]), help="Default: regret if all have one, else retrained."),
    OUTPUT[0],
]


def with_options(options: Sequence[Callable[[Any], Any]]) -> Callable[[Command], Command]:
    """Returns a decorator that adds options to a command, in this order."""

    def decorate(function: Command) -> Command:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate
