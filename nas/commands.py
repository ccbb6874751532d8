"""What the commands do once their options are parsed; imported late, since it loads torch."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from nas.config import Layer, build, from_mapping, from_setting, read_yaml, to_tree
from nas.errors import CheckpointError, ConfigError, ResourceError
from nas.files import read_json
from nas.report import results
from nas.report.bench import show_bench
from nas.report.catalogue import catalogue
from nas.report.diagnose import check_plot, plot_diagnosis, show_diagnosis
from nas.report.doctor import examine
from nas.report.tables import show
from nas.runs.bench import bench as measure
from nas.runs.configuration import Config
from nas.runs.diagnose.measure import Settings
from nas.runs.diagnose.measure import diagnose as judge
from nas.runs.diagnose.subjects import subjects
from nas.runs.folder import STAGES, Run, default_folder
from nas.runs.pipeline import execute
from nas.space import Genotype, Task
from nas.supernet.inspection import inspect

Options = Mapping[str, Any]


def start(command: str, options: Options) -> None:
    """Begins a search, or a run of all stages, or goes on with it if the folder has it already."""
    stages = STAGES if command == "run" else ("search",)
    config = configure(options, stages)
    folder = Path(options["out"]) if options["out"] else default_folder(config)
    if options["dry_run"]:
        _dry_run(config, folder, options["as_json"])
    else:
        _execute(Run.begin(folder, config), command, stages, options)


def go_on(command: str, run_folder: str, options: Options) -> None:
    """Runs one stage from what the stages before it left in a run folder."""
    found = Run.open(Path(run_folder))
    config = configure(options, (command,), base=found.config)
    if options["dry_run"]:
        _dry_run(config, found.folder, options["as_json"], None if command == "derive" else found.genotype())
        return
    if options["out"] and command == "retrain":
        found = Run.begin(Path(options["out"]), config, found.genotype())
    elif options["out"]:
        raise ConfigError(f"--out {options['out']}: nas {command} works in the run folder {run_folder}; leave it away")
    else:
        found = found.change(config)
    _execute(found, command, (command,), options)


def retrain(given: str, options: Options) -> None:
    """Retrains the genotype of a run, or one given as a file or as text."""
    if not _is_text(given) and (Path(given) / "config.yaml").is_file():
        go_on("retrain", given, options)
        return
    config = configure(options, ("retrain",))
    genotype = _genotype(config, given, "no run folder, no readable file")
    folder = Path(options["out"]) if options["out"] else default_folder(config, genotype)
    if options["dry_run"]:
        _dry_run(config, folder, options["as_json"], genotype)
        return
    _execute(Run.begin(folder, config, genotype), "retrain", ("retrain",), options)


def bench(options: Options) -> None:
    """Measures a backend and prints what it found."""
    size, threads, image = options["batch_size"], options["threads"], options["image"]
    flags: dict[str, Any] = {"backend": {"engine": {"backend": options["backend"]}}, "threads": {"threads": threads}}
    flags["batch-size"] = {"search": {"batch_size": size}, "retrain": {"batch_size": size}}
    given = {"backend": options["backend"], "threads": threads, "batch-size": size}
    layers = [from_mapping(tree, f"--{flag}") for flag, tree in flags.items() if given[flag] is not None]
    config = configure({**options, "benchmark": None, "epochs": None}, (), more=layers)
    if image is not None and image < 1:
        raise ConfigError(f"--image must be at least 1, got {image}")
    named = options["dataset"] or config.dataset != Config().dataset
    task = config.dataset.task() if named else Task(channels=3, height=32, width=32, classes=10)
    task = replace(task, height=image, width=image) if image else task
    genotype = _genotype(config, options["genotype"], "no readable file") if options["genotype"] else None
    measures = {"memory": not options["no_memory"], "quiet": options["quiet"]}
    found = measure(config, options["pairs"], task=task, genotype=genotype, **measures)
    if options["as_json"]:
        results.print_json(found)
    else:
        show_bench(found)


def diagnose(options: Options) -> None:
    """Judges the gradients of selectors and prints, and perhaps draws, what it found."""
    threads = options["threads"]
    layers = [] if threads is None else [from_mapping({"threads": threads}, "--threads")]
    config = configure({**options, "selector": None, "benchmark": None, "epochs": None}, (), more=layers)
    judged = subjects(config, options["selectors"], options["temperatures"])
    settings = Settings(**{field.name: options[field.name] for field in fields(Settings)})
    plot = Path(options["plot"]) if options["plot"] else None
    if plot is not None:
        check_plot(plot)
    found = judge(config, judged, settings, quiet=options["quiet"])
    if options["as_json"]:
        results.print_json(found)
    else:
        show_diagnosis(found)
    if plot is not None:
        plot_diagnosis(found, plot)


def resume(run_folder: str, options: Options) -> None:
    """Goes on with the command that last worked in a run folder."""
    found = Run.open(Path(run_folder))
    path = found.folder / "status.json"
    status = read_json(path) if path.is_file() else None
    command = status.get("command") if isinstance(status, dict) else None
    if command not in (*STAGES, "run"):
        raise CheckpointError(f"{path} names no command; give the command again instead")
    _execute(found, command, STAGES if command == "run" else (command,), options)


def catalogues(groups: Mapping[str, str], kind: str | None, as_json: bool) -> None:
    """Lists what is registered, of one kind or of all."""
    found = {each: catalogue(group) for each, group in groups.items() if kind in (None, each)}
    if as_json:
        results.print_json(found[kind] if kind else found)
        return
    for each, entries in found.items():
        rows = [(entry["name"], entry["summary"], ", ".join(entry["settings"])) for entry in entries]
        show(each, ("name", "what it is", "settings"), rows, left=True)


def doctor(as_json: bool) -> None:
    """Prints findings about installation and machine.

    Raises:
        ResourceError: Something is missing.
    """
    findings = examine()
    if as_json:
        results.print_json(findings)
    else:
        rows = [("ok" if each["ok"] else "problem", each["check"], each["finding"]) for each in findings]
        show("nas doctor", ("", "check", "finding"), rows, left=True)
    if not all(each["ok"] for each in findings):
        raise ResourceError("some checks failed; the findings say what to do")


def configure(
    options: Options, stages: Sequence[str], base: Config | None = None, more: Sequence[Layer] = ()
) -> Config:
    """Returns the configuration: defaults or a run's, then YAML file, then flags and `more` of them, then --set."""
    layers = [] if base is None else [from_mapping(dict(vars(base)), "the run's configuration")]
    if options["config"]:
        layers.append(read_yaml(Path(options["config"])))
    flags: dict[str, Any] = {flag: {flag: options[flag]} for flag in ("space", "selector", "dataset", "seed", "device")}
    if (options["dataset"] or "").endswith(".npz"):
        flags["dataset"] = {"dataset": {"name": "npz", "path": options["dataset"]}}
    if base is not None:  # a search that is done keeps its seed
        flags["seed"] = {"retrain": {"seed": options["seed"]}}
    flags["benchmark"] = {"benchmark": {"path": options["benchmark"]}}
    layers += [from_mapping(tree, f"--{flag}") for flag, tree in flags.items() if options[flag] is not None]
    if options["epochs"] is not None:
        trained = [stage for stage in ("search", "retrain") if stage in stages] or ["retrain"]
        layers.append(from_mapping({stage: {"epochs": options["epochs"]} for stage in trained}, "--epochs"))
    return build(Config, [*layers, *more, *map(from_setting, options["changes"])])


def _is_text(given: str) -> bool:
    return any(sign in given for sign in "{(|") and not os.path.exists(given)


def _genotype(config: Config, given: str, otherwise: str) -> Genotype:
    """Reads a genotype of the configured space from a file or from text; `otherwise` is what else it is not."""
    try:
        text = given if _is_text(given) else Path(given).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{given!r} is {otherwise} and no genotype ({error})") from error
    genotype = config.space.parse(text)
    config.space.require(genotype)
    return genotype


def _execute(run: Run, command: str, stages: Sequence[str], options: Options) -> None:
    """Runs stages and prints the result of the last."""
    run = execute(run, stages, quiet=options["quiet"], command=command)
    results.show_result(run, stages[-1], options["as_json"])


def _dry_run(config: Config, folder: Path, as_json: bool, genotype: Genotype | None = None) -> None:
    """Prints the size of the network that would be trained."""
    task = config.dataset.task()
    space = config.space if genotype is None else config.space.fix(genotype)
    size = inspect(space, task, searching=genotype is None)
    text = {} if genotype is None else {"genotype": config.space.format(genotype)}
    notes = [*(f"genotype {written}" for written in text.values()), f"the run folder would be {folder}"]
    network = "supernet" if genotype is None else "derived"
    if as_json:
        more = {"task": asdict(task), **text, "folder": str(folder), "config": to_tree(config)}
        results.print_json({"network": network, **asdict(size), **more})
        return
    rows = [
        ("network", network),
        ("for", f"{task.channels}x{task.height}x{task.width} images in {task.classes} classes"),
        *((key.replace("_", " "), f"{value:,}") for key, value in asdict(size).items()),
    ]
    show("Dry run: nothing was trained", ("", ""), rows, notes, left=True)
