"""What the commands do once their options are parsed; imported late, since it loads torch."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from nas.benchmarks import tables_of
from nas.config import Layer, build, from_mapping, from_setting, read_yaml, to_tree
from nas.errors import CheckpointError, ConfigError, ResourceError
from nas.files import read_json
from nas.report import results
from nas.report.bench import show_bench, show_latency
from nas.report.catalogue import catalogue
from nas.report.compare import show_comparison, show_plan
from nas.report.costs import range_rows
from nas.report.derivations import show_derivations
from nas.report.diagnose import check_plot, plot_diagnosis, show_diagnosis
from nas.report.doctor import examine
from nas.report.tables import show
from nas.runs.bench import bench as measure
from nas.runs.bench import latency_table
from nas.runs.compare.comparison import compare as comparison
from nas.runs.compare.rows import gather
from nas.runs.configuration import Config
from nas.runs.cost import limited_by
from nas.runs.derive import COMPARISON, compare_rules
from nas.runs.diagnose.measure import Settings
from nas.runs.diagnose.measure import diagnose as judge
from nas.runs.diagnose.subjects import subjects
from nas.runs.folder import STAGES, Run, default_folder
from nas.runs.pipeline import execute, precheck
from nas.runs.sweep import execution
from nas.runs.sweep.plan import plan
from nas.runs.sweep.pool import pool_of, threads_each
from nas.space import Genotype, Task
from nas.supernet.inspection import inspect

Options = Mapping[str, Any]


def start(command: str, options: Options) -> None:
    """Begins a search, or a run of all stages, or goes on with it if the folder has it already."""
    stages = STAGES if command == "run" else ("search",)
    config = configure(options, stages)
    folder = Path(options["out"]) if options["out"] else default_folder(config)
    if options["dry_run"]:
        _dry_run(config, folder, options["as_json"], stages)
    else:
        _execute(Run.begin(folder, config), command, stages, options)


def go_on(command: str, run_folder: str, options: Options) -> None:
    """Runs one stage from what the stages before it left in a run folder."""
    found = Run.open(Path(run_folder))
    config = configure(options, (command,), base=found.config)
    if options["dry_run"]:
        genotype = None if command == "derive" else found.genotype()
        _dry_run(config, found.folder, options["as_json"], (command,), genotype)
        return
    if options["out"] and command == "retrain":
        found = Run.begin(Path(options["out"]), config, found.genotype())
    elif options["out"]:
        raise ConfigError(f"--out {options['out']}: nas {command} works in the run folder {run_folder}; leave it away")
    else:
        found = found.change(config)
    _execute(found, command, (command,), options)


def derive(run_folder: str, options: Options) -> None:
    """Derives a genotype, or compares what every rule derives."""
    if not options["compare"] or options["dry_run"]:
        go_on("derive", run_folder, options)
        return
    if options["out"]:
        raise ConfigError(f"--out {options['out']}: nas derive works in the run folder {run_folder}; leave it away")
    found = Run.open(Path(run_folder))
    report = compare_rules(found, configure(options, ("derive",), base=found.config), quiet=options["quiet"])
    if options["as_json"]:
        results.print_json({**report, "folder": str(found.folder)})
    else:
        show_derivations(report, str(found.folder / COMPARISON))


def retrain(given: str, options: Options) -> None:
    """Retrains the genotype of a run, or one given as a file or as text."""
    if not _is_text(given) and (Path(given) / "config.yaml").is_file():
        go_on("retrain", given, options)
        return
    config = configure(options, ("retrain",))
    genotype = _genotype(config, given, "no run folder, no readable file")
    folder = Path(options["out"]) if options["out"] else default_folder(config, genotype)
    if options["dry_run"]:
        _dry_run(config, folder, options["as_json"], ("retrain",), genotype)
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
    named = options["dataset"] or config.dataset != Config().dataset or options["latency_table"]
    task = config.dataset.task() if named else Task(channels=3, height=32, width=32, classes=10)
    task = replace(task, height=image, width=image) if image else task
    if options["latency_table"]:
        _latency_table(config, task, options)
        return
    genotype = _genotype(config, options["genotype"], "no readable file") if options["genotype"] else None
    measures = {"memory": not options["no_memory"], "quiet": options["quiet"]}
    found = measure(config, options["pairs"], task=task, genotype=genotype, **measures)
    if options["as_json"]:
        results.print_json(found)
    else:
        show_bench(found)


def _latency_table(config: Config, task: Task, options: Options) -> None:
    """Measures a latency table and prints what is in it."""
    path, size = Path(options["latency_table"]), options["batch_size"] or 1
    flags = ("genotype", "selector", "backend", "no-memory")
    if unused := [f"--{flag}" for flag in flags if options[flag.replace("-", "_")]]:
        raise ConfigError(
            f"{', '.join(unused)}: does not go with --latency-table {path}, which measures every candidate as a plain "
            "torch module; leave it away"
        )
    rounds, quiet = options["pairs"], options["quiet"]
    found = latency_table(config, path, task=task, batch_size=size, rounds=rounds, quiet=quiet)
    if options["as_json"]:
        results.print_json(found)
    else:
        show_latency(found, path)


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


def sweep(options: Options) -> None:
    """Does the runs of a sweep and compares them; raises what the first that failed raised."""
    own = from_mapping({"gap": {"random": 0}}, "nas sweep")  # the sweep has random baselines of its own
    config = configure({**options, "selector": None, "seed": None}, ("search", "retrain"), first=[own])
    if options["workers"] > 1 and not config.threads:
        config = replace(config, threads=threads_each(options["workers"]))
    folder, retrain = Path(options["out"]), not options["no_retrain"]
    planned = plan(config, options["selectors"], options["seeds"], options["vary"], folder, retrain=retrain)
    if options["dry_run"]:
        execution.check(planned)
        show_plan(planned, options["as_json"])
        return
    failed = execution.sweep(planned, folder, pool_of(options["workers"]), quiet=options["quiet"])
    gathered = gather([folder])
    if gathered.rows:
        _show_comparison(comparison(gathered), options["as_json"])
    if failed:
        raise execution.error_of(failed)


def compare(folders: Sequence[str], options: Options) -> None:
    """Compares sweeps and runs."""
    _show_comparison(comparison(gather([*map(Path, folders)]), options["metric"]), options["as_json"])


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
    options: Options,
    stages: Sequence[str],
    base: Config | None = None,
    more: Sequence[Layer] = (),
    first: Sequence[Layer] = (),
) -> Config:
    """Returns the configuration: defaults or a run's, `first`, YAML file, flags and `more` of them, --set."""
    layers = [*first] if base is None else [from_mapping(dict(vars(base)), "the run's configuration")]
    if options["config"]:
        layers.append(read_yaml(Path(options["config"])))
    flags: dict[str, Any] = {flag: {flag: options[flag]} for flag in ("space", "selector", "dataset", "seed", "device")}
    if (options["dataset"] or "").endswith(".npz"):
        flags["dataset"] = {"dataset": {"name": "npz", "path": options["dataset"]}}
    if base is not None:  # a search that is done keeps its seed
        flags["seed"] = {"retrain": {"seed": options["seed"]}}
    flags["benchmark"] = {"benchmark": tables_of(options["benchmark"] or "")}
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


def _show_comparison(found: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        results.print_json(found)
    else:
        show_comparison(found)


def _dry_run(
    config: Config, folder: Path, as_json: bool, stages: Sequence[str], genotype: Genotype | None = None
) -> None:
    """Prints the size of the network that would be trained, once nothing is found that would stop the stages."""
    task = config.dataset.task()
    precheck(config, stages, genotype)
    space = config.space if genotype is None else config.space.fix(genotype)
    size = inspect(space, task, searching=genotype is None)
    limited = limited_by(config)
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
        *range_rows(limited),
    ]
    show("Dry run: nothing was trained", ("", ""), rows, notes, left=True)
