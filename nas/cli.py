"""The command line. It loads torch only when a command needs it."""

import logging
import os
import signal
import sys
import traceback
from typing import Any

import click

from nas.errors import Interrupted, NasError, ResourceError
from nas.options import BENCH, COMPARE, DIAGNOSE, OUTPUT, SETTINGS, SWEEP, with_options

GROUPS = {
    "selectors": "nas.selectors",
    "spaces": "nas.search_spaces",
    "datasets": "nas.datasets",
    "derivations": "nas.derivations",
    "hypergradients": "nas.hypergradients",
    "modifiers": "nas.modifiers",
    "optimizers": "nas.optimizers",
    "schedules": "nas.schedules",
}

CODES = """\b
Exit codes: 0 done, 1 a bug of ours, 2 configuration, 3 data, 4 checkpoint or run folder,
5 resources (device, memory, disk), 6 numerics (NaN), 7 run folder in use,
130 stopped by SIGINT and 143 by SIGTERM (everything is saved)."""


@click.group(epilog=CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="diffnas", prog_name="nas")
def cli() -> None:
    """Differentiable neural architecture search: search, derive, retrain, and measure the gap.

    \b
    nas run --selector st-gs                  all four stages on scikit-learn's digits, in minutes
    nas search --space darts --dataset cifar10 --set dataset.root=~/data --set dataset.download=true
    nas run --space my_space.py:MySpace       a search space of your own
    nas list                                  what there is to choose from
    nas bench --space darts                   how fast a step is, and what memory it needs
    nas diagnose --selectors st-gs,reinforce  how far their gradients are from the exact one
    nas sweep --selectors softmax,st-gs --out runs/two    several seeds of each, beside random baselines
    nas compare runs/two                      which differences they show, and which not
    nas resume runs/NAME                      goes on after any stop; so does the same command again
    """


@cli.command(short_help="Train a supernet's weights and its architecture logits in turn.")
@with_options(SETTINGS)
def search(**options: Any) -> None:
    """Search: train a supernet's weights and its architecture logits in turn.

    \b
    nas search --selector st-gs
    nas search --space darts --selector gdas --dataset mnist --epochs 5 --set space.channels=8
    nas search --config configs/darts_cifar10.yaml --set selector.temperature.end=0.5
    """
    from nas import commands

    commands.start("search", options)


@cli.command(short_help="Search, derive, retrain and measure the gap, in one run folder.")
@with_options(SETTINGS)
def run(**options: Any) -> None:
    """Search, derive, retrain and measure the gap, in one run folder.

    \b
    nas run --selector st-gs
    nas run --space my_space.py:MySpace --dataset images.npz --out runs/mine
    nas run --dataset cifar10-16x16.npz --benchmark nasbench201.npz
    """
    from nas import commands

    commands.start("run", options)


@cli.command(short_help="Derive the genotype of a finished search.")
@click.argument("run_folder", metavar="RUN")
@click.option("--compare", is_flag=True, help="Derive by every rule and compare; the run keeps its genotype.")
@with_options(SETTINGS)
def derive(run_folder: str, **options: Any) -> None:
    """Derive the genotype of a finished search.

    \b
    nas derive runs/NAME
    nas derive runs/NAME --set derive=argmax
    nas derive runs/NAME --compare --benchmark nasbench201.npz
    """
    from nas import commands

    commands.derive(run_folder, options)


@cli.command(short_help="Train a genotype from scratch, with several seeds.")
@click.argument("genotype", metavar="RUN|GENOTYPE")
@with_options(SETTINGS)
def retrain(genotype: str, **options: Any) -> None:
    """Retrain a genotype from scratch, with several seeds.

    GENOTYPE is a run folder, a file, or text: JSON, DARTS's `Genotype(...)`, a NAS-Bench-201 string.

    \b
    nas retrain runs/NAME --set retrain.seeds=5 --out runs/five
    nas retrain genotype.json --space darts --dataset cifar10 --set space.channels=36 --set space.depth=20 --dry-run
    nas retrain '|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|nor_conv_1x1~2|'
    """
    from nas import commands

    commands.retrain(genotype, options)


@cli.command(short_help="Measure the search/eval gap of a run, retraining what is missing.")
@click.argument("run_folder", metavar="RUN")
@with_options(SETTINGS)
def gap(run_folder: str, **options: Any) -> None:
    """Measure the search/eval gap of a run, retraining what is missing.

    \b
    nas gap runs/NAME
    nas gap runs/NAME --set gap.random=20 --benchmark nasbench201.npz
    """
    from nas import commands

    commands.go_on("gap", run_folder, options)


@cli.command(short_help="Go on with a run where it stopped.")
@click.argument("run_folder", metavar="RUN")
@with_options(OUTPUT)
def resume(run_folder: str, **options: Any) -> None:
    """Go on with a run where it stopped; the same command again does the same.

    \b
    nas resume runs/NAME
    """
    from nas import commands

    commands.resume(run_folder, options)


@cli.command(name="list", short_help="List selectors, spaces, datasets and other parts.")
@click.argument("kind", type=click.Choice([*GROUPS]), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def list_(kind: str | None, as_json: bool) -> None:
    """List what there is to choose from, with the settings of each.

    \b
    nas list
    nas list selectors --json
    """
    from nas import commands

    commands.catalogues(GROUPS, kind, as_json)


@cli.command(short_help="Check the installation and the machine.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def doctor(as_json: bool) -> None:
    """Check the installation and the machine, and say what is missing.

    \b
    nas doctor
    """
    from nas import commands

    commands.doctor(as_json)


@cli.command(short_help="Measure how fast a backend takes the steps of a search, and its memory.")
@with_options(BENCH)
def bench(**options: Any) -> None:
    """Measure how fast a backend takes the steps of a search, and what memory they need.

    Steps of the backend, of the reference execution and of a plain fixed network take turns in one process. Images are
    random, so no data is needed. Ratios above 1 are in the backend's favour.

    \b
    nas bench --space darts --selector softmax --batch-size 16 --threads 1
    nas bench --space nas-bench-201 --set space.channels=8 --backend aten --pairs 9 --json
    nas bench --space darts --genotype genotype.json --set space.channels=36 --batch-size 16 --no-memory
    nas bench --latency-table laptop.json --space darts --dataset cifar10 --threads 1
    """
    from nas import commands

    commands.bench(options)


@cli.command(short_help="Compare selectors' architecture gradients with the exact one.")
@with_options(DIAGNOSE)
def diagnose(**options: Any) -> None:
    """Compare selectors' architecture gradients with the exact one: bias, variance, and what they cost.

    Exact is the gradient of the expected loss over sampled architectures, by trying them all on one batch; a space of
    more than 1,024 is reduced first. A selector named by --set or --config has its settings from there.

    \b
    nas diagnose --selectors st-gs,pair-reinmax,my.py:Mine --temperatures .3,1 --draws 1000 --plot gradients.png
    nas diagnose --selectors reinforce --set selector.name=reinforce --set selector.decisions=4 --json
    nas diagnose --space darts --set space.channels=4 --selectors softmax,score-cv --reference sampled
    """
    from nas import commands

    commands.diagnose(options)


@cli.command(short_help="Run selectors x seeds x settings, beside random baselines.")
@with_options(SWEEP)
def sweep(**options: Any) -> None:
    """Run selectors x seeds x settings, beside random cells and a random search that takes as long as a search.

    Each run has a run folder in --out. The same command again goes on where it stopped, and tries again what failed.
    A selector named by --set or --config has its settings from there.

    \b
    nas sweep --selectors softmax,st-gs,gdas --seeds 5 --epochs 10 --out runs/three
    nas sweep --selectors softmax --vary search.entropy=0,0.01 --vary search.warmup=0.1,0.5 --workers 2 --out runs/grid
    nas sweep --space nas-bench-201 --selectors all --benchmark nasbench201.npz --no-retrain --dry-run --out runs/all
    """
    from nas import commands

    commands.sweep(options)


@cli.command(short_help="Compare sweeps and runs: means, intervals, corrected tests.")
@click.argument("folders", metavar="RUNS...", nargs=-1, required=True)
@with_options(COMPARE)
def compare(folders: tuple[str, ...], **options: Any) -> None:
    """Compare runs that differ by more than their seed: means, intervals, corrected tests, random baselines.

    RUNS are folders of sweeps and run folders. "No difference shown" is not "equal": the table says what would show.

    \b
    nas compare runs/three
    nas compare runs/three runs/grid --metric retrained --json
    """
    from nas import commands

    commands.compare(folders, options)


def main() -> None:
    """Runs the command line; every error of a user's is one message and its exit code."""
    # OpenMP's workers spin while they wait. Where another process holds a core, that made a step of 60 ms last 1.8 s;
    # with a short spin it lasts 100 ms, and no longer than before on a free machine. Read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    logging.basicConfig(format="nas: %(message)s", stream=sys.stderr)
    logging.getLogger("nas").setLevel(logging.INFO)
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except Interrupted as error:
        _fail(str(error), 128 + error.signal_number)
    except NasError as error:
        _fail(f"error: {error}", error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("stopped; what was saved before is kept", 128 + signal.SIGINT)
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except MemoryError:
        _fail("error: out of memory; lower search.batch_size, space.channels or depth", ResourceError.exit_code)
    except Exception:
        traceback.print_exc()
        _fail("error: this is a bug in nas; please report it with the lines above", 1)


def _fail(message: str, code: int) -> None:
    click.echo(f"nas: {message}", err=True)
    sys.exit(code)
