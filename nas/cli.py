"""The command line. It loads torch only when a command needs it."""

import json
import logging
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nas.errors import ConfigError, Interrupted, NasError, ResourceError

if TYPE_CHECKING:
    from nas.runs.configuration import Config
    from nas.runs.folder import Run

GROUPS = {
    "selectors": "nas.selectors",
    "spaces": "nas.search_spaces",
    "datasets": "nas.datasets",
    "derivations": "nas.derivations",
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
    nas resume runs/NAME                      goes on after any stop; so does the same command again
    """


def _settings(function: Callable[..., None]) -> Callable[..., None]:
    """Adds the options with which a run is configured."""
    options = [
        click.option(
            "--config", type=click.Path(dir_okay=False), help="YAML file with what differs from the defaults."
        ),
        click.option("--space", help="Search space: a name from `nas list spaces`, or file.py:Class."),
        click.option("--selector", help="Edge selector: a name from `nas list selectors`, or file.py:Class."),
        click.option("--dataset", help="Dataset: a name from `nas list datasets`, a path.npz, or file.py:Class."),
        click.option("--seed", type=int, help="Key of all randomness but the splits'."),
        click.option("--epochs", type=int, help="Epochs of every stage of this command that trains."),
        click.option("--device", help="auto, cpu, cuda, cuda:1, mps."),
        click.option("--out", type=click.Path(file_okay=False), help="The run folder itself; default: one in runs/."),
        click.option("--benchmark", help="NAS-Bench-201 table (npz), for accuracy, rank and regret."),
        click.option(
            "--set", "changes", multiple=True, metavar="KEY=VALUE", help="Any setting, e.g. search.epochs=50."
        ),
        click.option("--dry-run", is_flag=True, help="Check everything, print the network's size, train nothing."),
        *OUTPUT,
    ]
    for option in reversed(options):
        function = option(function)
    return function


OUTPUT = [
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
    click.option("--quiet", is_flag=True, help="Show no progress."),
]


def _output(function: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(OUTPUT):
        function = option(function)
    return function


@cli.command()
@_settings
def search(**options: Any) -> None:
    """Search: train a supernet's weights and its architecture logits in turn.

    \b
    nas search --selector st-gs
    nas search --space darts --selector gdas --dataset mnist --epochs 5 --set space.channels=8
    nas search --config configs/darts_cifar10.yaml --set selector.temperature.end=0.5
    """
    _start("search", ["search"], options)


@cli.command()
@_settings
def run(**options: Any) -> None:
    """Search, derive, retrain and measure the gap, in one run folder.

    \b
    nas run --selector st-gs
    nas run --space my_space.py:MySpace --dataset images.npz --out runs/mine
    nas run --dataset cifar10-16x16.npz --benchmark nasbench201.npz
    """
    _start("run", ["search", "derive", "retrain", "gap"], options)


@cli.command()
@click.argument("run_folder", metavar="RUN")
@_settings
def derive(run_folder: str, **options: Any) -> None:
    """Derive the genotype of a finished search.

    \b
    nas derive runs/NAME
    nas derive runs/NAME --set derive.name=argmax
    """
    _continue("derive", run_folder, options)


@cli.command()
@click.argument("genotype", metavar="RUN|GENOTYPE")
@_settings
def retrain(genotype: str, **options: Any) -> None:
    """Retrain a genotype from scratch, with several seeds.

    GENOTYPE is a run folder, a file, or text: JSON, DARTS's `Genotype(...)`, a NAS-Bench-201 string.

    \b
    nas retrain runs/NAME --set retrain.seeds=5
    nas retrain genotype.json --space darts --dataset cifar10 --set space.channels=36 --set space.depth=20 --dry-run
    nas retrain '|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|nor_conv_1x1~2|' --space nas-bench-201
    """
    if (Path(genotype) / "config.yaml").is_file():
        _continue("retrain", genotype, options)
    else:
        _retrain_text(genotype, options)


@cli.command()
@click.argument("run_folder", metavar="RUN")
@_settings
def gap(run_folder: str, **options: Any) -> None:
    """Measure the search/eval gap of a run, retraining what is missing.

    \b
    nas gap runs/NAME
    nas gap runs/NAME --set gap.random=20 --benchmark nasbench201.npz
    """
    _continue("gap", run_folder, options)


@cli.command()
@click.argument("run_folder", metavar="RUN")
@_output
def resume(run_folder: str, as_json: bool, quiet: bool) -> None:
    """Go on with a run where it stopped; the same command again does the same.

    \b
    nas resume runs/NAME
    """
    from nas.files import read_json
    from nas.runs.folder import STAGES, Run

    found = Run.open(Path(run_folder))
    command = read_json(found.folder / "status.json").get("command")
    _execute(found, str(command), [*STAGES] if command == "run" else [str(command)], as_json, quiet)


@cli.command(name="list")
@click.argument("kind", type=click.Choice([*GROUPS]), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def list_(kind: str | None, as_json: bool) -> None:
    """List what there is to choose from, with the settings of each.

    \b
    nas list
    nas list selectors --json
    """
    from nas.report.catalogue import catalogue
    from nas.report.tables import show

    kinds = [kind] if kind else [*GROUPS]
    found = {each: catalogue(GROUPS[each]) for each in kinds}
    if as_json:
        _print(found[kind] if kind else found)
        return
    for each, entries in found.items():
        rows = [(entry["name"], entry["summary"], ", ".join(entry["settings"])) for entry in entries]
        show(each, ("name", "what it is", "settings"), rows, left=True)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def doctor(as_json: bool) -> None:
    """Check the installation and the machine, and say what is missing."""
    from nas.report.doctor import examine
    from nas.report.tables import show

    findings = examine()
    if as_json:
        _print(findings)
    else:
        rows = [("ok" if each["ok"] else "problem", each["check"], each["finding"]) for each in findings]
        show("nas doctor", ("", "check", "finding"), rows, left=True)
    if not all(each["ok"] for each in findings):
        raise ResourceError("some checks failed; the findings say what to do")


def _configure(options: dict[str, Any], stages: list[str], base: "Config | None" = None) -> "Config":
    """Returns the configuration: defaults or a run's, then YAML file, then flags, then --set."""
    from nas.config import build, from_mapping, from_setting, read_yaml
    from nas.runs.configuration import Config

    layers = [] if base is None else [from_mapping(dict(vars(base)), "the run's configuration")]
    if options["config"]:
        layers.append(read_yaml(Path(options["config"])))
    flags: dict[str, Any] = {flag: options[flag] for flag in ("space", "selector", "dataset", "seed", "device")}
    if (options["dataset"] or "").endswith(".npz"):
        flags["dataset"] = {"name": "npz", "path": options["dataset"]}
    if options["benchmark"] is not None:
        flags["benchmark"] = {"path": options["benchmark"]}
    layers += [from_mapping({flag: value}, f"--{flag}") for flag, value in flags.items() if value is not None]
    if options["epochs"] is not None:
        trained = [stage for stage in ("search", "retrain") if stage in stages] or ["retrain"]
        layers.append(from_mapping({stage: {"epochs": options["epochs"]} for stage in trained}, "--epochs"))
    return build(Config, [*layers, *map(from_setting, options["changes"])])


def _start(command: str, stages: list[str], options: dict[str, Any]) -> None:
    """Begins a run, or goes on with it if the folder has it already."""
    from nas.runs.folder import Run, default_folder

    config = _configure(options, stages)
    folder = Path(options["out"]) if options["out"] else default_folder(config)
    if options["dry_run"]:
        _dry_run(config, folder, options["as_json"])
        return
    _execute(Run.begin(folder, config), command, stages, options["as_json"], options["quiet"])


def _continue(command: str, run_folder: str, options: dict[str, Any]) -> None:
    """Runs one stage from what the stages before it left in a run folder."""
    from nas.runs.folder import Run

    found = Run.open(Path(run_folder))
    config = _configure(options, [command], base=found.config)
    if options["dry_run"]:
        _dry_run(config, found.folder, options["as_json"], None if command == "derive" else found.genotype())
        return
    if options["out"] and command == "retrain":
        genotype = found.genotype()
        found = Run.begin(Path(options["out"]), config)
        found.write_genotype(genotype)
    elif options["out"]:
        raise ConfigError(
            f"--out {options['out']}: nas {command} works in the run folder {run_folder}; leave --out away"
        )
    else:
        found = found.change(config)
    _execute(found, command, [command], options["as_json"], options["quiet"])


def _retrain_text(text: str, options: dict[str, Any]) -> None:
    """Retrains a genotype that is given as a file or as text."""
    from nas.runs.folder import Run, default_folder

    config = _configure(options, ["retrain"])
    genotype = config.space.parse(_genotype_text(text))
    config.space.require(genotype)
    folder = Path(options["out"]) if options["out"] else default_folder(config, genotype)
    if options["dry_run"]:
        _dry_run(config, folder, options["as_json"], genotype)
        return
    found = Run.begin(folder, config)
    found.write_genotype(genotype)
    _execute(found, "retrain", ["retrain"], options["as_json"], options["quiet"])


def _genotype_text(given: str) -> str:
    """Returns the genotype's text, which is given itself or as a file."""
    if any(sign in given for sign in "{(|"):
        return given
    try:
        return Path(given).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{given!r} is no run folder, no readable file and no genotype ({error})") from error


def _execute(run: "Run", command: str, stages: list[str], as_json: bool, quiet: bool) -> None:
    """Runs stages and prints the result of the last."""
    from nas.report import results
    from nas.runs.pipeline import execute

    results.show(execute(run, stages, quiet=quiet, command=command), stages[-1], as_json)


def _dry_run(config: "Config", folder: Path, as_json: bool, genotype: Any = None) -> None:
    """Prints the size of the network that would be trained."""
    from dataclasses import asdict

    from nas.config import to_tree
    from nas.report.tables import show
    from nas.supernet.inspection import inspect

    task = config.dataset.task()
    space = config.space if genotype is None else config.space.fix(genotype)
    size = inspect(space, task, searching=genotype is None)
    found = {"network": "supernet" if genotype is None else "derived", **asdict(size), "task": asdict(task)}
    if genotype is not None:
        found["genotype"] = config.space.format(genotype)
    if as_json:
        _print({**found, "folder": str(folder), "config": to_tree(config)})
        return
    rows = [
        (key.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value)) for key, value in found.items()
    ]
    show("Dry run: nothing was trained", ("", ""), rows, [f"the run folder would be {folder}"], left=True)


def _print(data: object) -> None:
    click.echo(json.dumps(data, indent=2))


def main() -> None:
    """Runs the command line; every error of a user's is one message and its exit code."""
    logging.basicConfig(format="nas: %(message)s", stream=sys.stderr)
    logging.getLogger("nas").setLevel(logging.INFO)
    try:
        code = cli.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except Interrupted as error:
        _fail(str(error), 128 + error.signal_number)
    except NasError as error:
        _fail(f"error: {error}", error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("stopped; what was saved before is kept", 128 + signal.SIGINT)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except MemoryError:
        _fail("error: out of memory; lower search.batch_size, space.channels or depth", ResourceError.exit_code)
    except Exception:
        traceback.print_exc()
        _fail("error: this is a bug in nas; please report it with the lines above", 1)


def _fail(message: str, code: int) -> None:
    click.echo(f"nas: {message}", err=True)
    sys.exit(code)
