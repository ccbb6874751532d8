"""The command line: what each command prints, and how it refuses what it cannot do."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nas import commands
from nas.errors import ResourceError
from nas.runs.folder import Run
from nas.runs.pipeline import configure
from nas.runs.session import session
from nas.status import lock

SPACE = '''
from dataclasses import dataclass

from torch import nn

from nas import ops
from nas.space import Cell, CellSlot, Edge, SearchSpace


@dataclass(frozen=True, kw_only=True)
class Mine(SearchSpace):
    """Two nodes, three candidates."""

    channels: int = 4

    operations = {
        "skip": lambda s: nn.Identity(),
        "conv": lambda s: ops.relu_conv_norm(s.in_channels, s.channels, 3, s.stride, affine=not s.searching),
        "pool": lambda s: ops.average_pool(3, s.stride),
    }

    @property
    def cells(self):
        names = tuple(self.operations)
        return {"cell": Cell((Edge(0, 1, names), Edge(0, 2, names), Edge(1, 2, names)), outputs=(2,))}

    def layers(self, task, searching):
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(self.channels, task.classes))
        return [nn.Conv2d(task.channels, self.channels, 3, padding=1), CellSlot("cell", self.channels), head]
'''

TINY = (
    *("--set", "dataset.limit=32", "--set", "threads=1", "--set", "search.batch_size=16"),
    *(
        "--set",
        "retrain.batch_size=32",
        "--set",
        "retrain.seeds=1",
        "--set",
        "gap.random=0",
        "--set",
        "gap.decisions=1",
    ),
)
NAS_BENCH = ("--set", "space.channels=4", *TINY)
CELL = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|nor_conv_1x1~2|"
DARTS_V2 = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5], "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"
)
COMMANDS = (
    *("search", "derive", "retrain", "gap", "run", "resume", "list", "doctor", "bench", "diagnose"),
    *("sweep", "compare"),
)


def names(rows):
    return [row["name"] for row in rows]


def refused(outcome, code, *parts):
    """Checks that a command ended with one clear message."""
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    message = [line for line in outcome.err.splitlines() if line.startswith("nas: ")]
    assert len(message) == 1, outcome.err
    for part in parts:
        assert str(part) in message[0]


@pytest.fixture(scope="module")
def finished(nas_command, tmp_path_factory):
    """A finished search on NAS-Bench-201 with a derived genotype; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    outcome = nas_command("search", *NAS_BENCH, "--epochs", 1, "--out", folder)
    assert outcome.code == 0, outcome.err
    assert nas_command("derive", folder).code == 0
    return folder


@pytest.fixture
def space_file(tmp_path):
    """Writes a space, perhaps with a part replaced, and returns the reference to it."""

    def write(text=SPACE, old="", new=""):
        assert old in text
        path = tmp_path / "my_space.py"
        path.write_text(text.replace(old, new) if old else text)
        return f"{path}:Mine"

    return write


# Help and lists


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command, nas_command):
    outcome = nas_command(command, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert f"\n  nas {command}" in outcome.out


def test_help_lists_the_commands_and_the_exit_codes(nas_command):
    for arguments in (("--help",), ("-h",)):
        outcome = nas_command(*arguments)
        assert outcome.code == 0
        assert all(f"\n  {command} " in outcome.out for command in COMMANDS)
        assert "Exit codes" in outcome.out
        assert "nas run --selector st-gs" in outcome.out


def test_help_loads_nothing_heavy():
    heavy = ("torch", "torchvision", "wandb", "matplotlib", "networkx", "sklearn", "scipy", "pydantic")
    code = (
        "import sys; sys.argv = ['nas', '--help']\n"
        "from nas.cli import main\n"
        "main()\n"
        f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: nas")
    assert done.stderr == "[]\n"


def test_the_installed_command_knows_its_version():
    command = Path(sys.executable).with_name("nas")
    done = subprocess.run([command, "--version"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("nas, version ")


@pytest.mark.parametrize(
    ("kind", "some"),
    [
        ("selectors", {"st-gs", "softmax", "gdas", "uniform"}),
        ("spaces", {"darts", "nas-bench-201", "chain"}),
        ("datasets", {"digits", "mnist", "cifar10", "npz", "folder"}),
        ("derivations", {"argmax", "darts", "sampled"}),
        ("hypergradients", {"first-order", "unrolled", "neumann", "conjugate-gradient"}),
    ],
)
def test_lists_are_json_objects_with_name_summary_and_settings(kind, some, nas_command):
    outcome = nas_command("list", kind, "--json")
    rows = json.loads(outcome.out)
    assert some <= set(names(rows))
    assert names(rows) == sorted(names(rows))
    for row in rows:
        assert row["summary"].endswith((".", ":", ")"))
        assert isinstance(row["settings"], dict)


def test_the_list_without_a_kind_has_them_all(nas_command):
    everything = json.loads(nas_command("list", "--json").out)
    assert {"selectors", "spaces", "datasets", "optimizers", "schedules"} <= set(everything)
    printed = nas_command("list").out
    assert all(name in printed for rows in everything.values() for name in names(rows))


def test_doctor_finds_everything_in_order(nas_command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    findings = json.loads(nas_command("doctor", "--json").out)
    assert {"python", "torch", "device", "nas.selectors"} <= {row["check"] for row in findings}
    assert all(row["ok"] for row in findings)
    assert "torch" in nas_command("doctor").out


def test_doctor_reports_what_is_missing(nas_command, monkeypatch):
    monkeypatch.setattr("nas.report.doctor.PACKAGES", ("no_such_package",))
    outcome = nas_command("doctor", "--json")
    assert outcome.code == 5
    (bad,) = [row for row in json.loads(outcome.out) if not row["ok"]]
    assert bad["check"] == "no_such_package"
    assert "some checks failed" in outcome.err


# Dry runs


def test_a_dry_run_of_a_search_needs_no_data_and_writes_nothing(nas_command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    outcome = nas_command("search", "--space", "darts", "--dataset", "cifar10", "--dry-run", "--json")
    found = json.loads(outcome.out)
    assert found["network"] == "supernet"
    assert found["parameters"] == 1_930_618  # as the published search logs
    assert found["task"] == {"channels": 3, "height": 32, "width": 32, "classes": 10}
    assert found["config"]["space"]["name"] == "darts"
    assert found["folder"].startswith("runs/darts_cifar10_softmax_seed0_")
    assert [*tmp_path.iterdir()] == []


def test_a_dry_run_of_a_retraining_gives_the_published_size(nas_command, tmp_path):
    large = ("--space", "darts", "--dataset", "cifar10", "--set", "dataset.root=/nonexistent", "--dry-run", "--json")
    large = (*large, "--set", "space.channels=36", "--set", "space.depth=20")
    (tmp_path / "text.txt").write_text(DARTS_V2 + "\n")
    space = configure(space="darts").space
    genotype = space.parse(DARTS_V2)
    (tmp_path / "genotype.json").write_text(genotype.to_json())
    for given in (DARTS_V2, tmp_path / "text.txt", tmp_path / "genotype.json", genotype.to_json()):
        found = json.loads(nas_command("retrain", given, *large).out)
        assert found["parameters"] == 3_349_342  # as published for DARTS_V2
        assert found["network"] == "derived"
        assert space.parse(found["genotype"]) == genotype


def test_a_dry_run_takes_a_nas_bench_201_string_and_prints_a_table(nas_command):
    outcome = nas_command("retrain", CELL, "--space", "nas-bench-201", "--dry-run")
    assert outcome.code == 0
    assert "nothing was trained" in outcome.out
    assert CELL in outcome.out
    assert "the run folder would be runs/nas-bench-201_digits_retrain_seed0_" in outcome.out


def test_a_dry_run_of_a_run_folder(finished, nas_command):
    for command in ("retrain", "gap"):
        found = json.loads(nas_command(command, finished, "--dry-run", "--json").out)
        assert found["folder"] == str(finished)
        assert found["network"] == "derived"
    assert json.loads(nas_command("derive", finished, "--dry-run", "--json").out)["network"] == "supernet"


def test_a_dry_run_refuses_modifiers_with_which_the_search_cannot_begin(nas_command, tmp_path):
    modifiers = ("--set", "search.modifiers=[{name: partial-channels, share: 100}]")
    for more in ((), ("--dry-run",)):
        refused(nas_command("search", *NAS_BENCH, *modifiers, "--out", tmp_path / "run", *more), 2, "partial-channels")


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_table_of_another_space_is_refused_before_the_search(more, nas_command, tmp_path, monkeypatch):
    monkeypatch.setattr("nas.runs.pipeline.run_search", None)
    np.savez(tmp_path / "t.npz", arch=np.array(["a"]), cifar10_valid=np.array([1.0]), cifar10_test=np.array([1.0]))
    outcome = nas_command("run", *NAS_BENCH, "--benchmark", tmp_path / "t.npz", "--out", tmp_path / "run", *more)
    refused(outcome, 2, "the table does not know", "the table of the space that is searched")


# Settings


def test_stdout_is_the_result_and_stderr_the_progress(nas_command, tmp_path):
    outcome = nas_command("run", *NAS_BENCH, "--epochs", 1, "--seed", 3, "--out", tmp_path / "run", "--json")
    report = json.loads(outcome.out)
    assert report["folder"] == str(tmp_path / "run")
    assert "search  2/2" in outcome.err
    assert "retrain derived  2/2" in outcome.err
    quiet = nas_command("run", *NAS_BENCH, "--epochs", 1, "--seed", 3, "--out", tmp_path / "run", "--quiet")
    assert quiet.err == ""
    assert "Search/eval gap" in quiet.out
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "seed: 3" in config
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {row["stage"].partition("/")[0]: row["epoch"] for row in steps} == {"search": 1, "retrain": 1}


@pytest.mark.parametrize(
    ("command", "trained"),
    [("search", {"search"}), ("run", {"search", "retrain"}), ("retrain", {"retrain"}), ("gap", {"retrain"})],
)
def test_epochs_are_those_of_the_stages_that_the_command_trains(command, trained):
    options = dict.fromkeys(["config", "space", "selector", "dataset", "seed", "device", "benchmark"])
    stages = commands.STAGES if command == "run" else (command,)
    config, default = commands.configure({**options, "epochs": 7, "changes": ()}, stages), configure()
    for stage in ("search", "retrain"):
        expected = 7 if stage in trained else getattr(default, stage).epochs
        assert getattr(config, stage).epochs == expected


def test_defaults_give_way_to_the_file_the_file_to_flags_and_flags_to_set(nas_command, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("selector: gdas\nseed: 1\nsearch: {epochs: 3, batch_size: 8}\n")
    flags = ("--config", file, "--seed", 2, "--epochs", 4, "--set", "search.epochs=5", "--dry-run", "--json")
    config = json.loads(nas_command("search", *flags).out)["config"]
    assert config["selector"]["name"] == "gdas"
    assert (config["seed"], config["search"]["epochs"], config["search"]["batch_size"]) == (2, 5, 8)


def npz(path, classes=3, size=8, count=60, **arrays):
    draws = np.random.default_rng(0)
    images = draws.integers(0, 256, (count, size, size), dtype=np.uint8)
    np.savez(path, **{"train_images": images, "train_labels": np.arange(count) % classes, **arrays})
    return path


def test_a_dataset_may_be_an_npz_file(nas_command, tmp_path):
    path = npz(tmp_path / "images.npz")
    task = json.loads(nas_command("search", "--dataset", path, "--dry-run", "--json").out)["task"]
    assert task == {"channels": 1, "height": 8, "width": 8, "classes": 3}
    outcome = nas_command("search", "--dataset", path, *NAS_BENCH, "--epochs", 1, "--out", tmp_path / "run", "--json")
    assert json.loads(outcome.out)["folder"] == str(tmp_path / "run")


def test_a_table_for_a_reader_comes_after_each_stage(finished, nas_command, tmp_path):
    assert "most probable candidates" in nas_command("search", *NAS_BENCH, "--epochs", 1, "--out", finished).out
    derived = nas_command("derive", finished)
    assert derived.out.startswith("|")
    assert derived.out.count("\n") == 1
    written = json.loads(nas_command("derive", finished, "--json").out)
    assert written["text"] == derived.out.strip()
    assert set(written) == {"cells", "text", "folder"}
    retrained = nas_command("retrain", finished, "--epochs", 1, "--out", tmp_path / "alone")
    assert "Retrained from scratch" in retrained.out
    (row,) = json.loads(nas_command("retrain", finished, "--epochs", 1, "--out", tmp_path / "alone", "--json").out)
    assert {"genotype", "seed", "select", "test", "parameters", "multiply_adds", "folder"} == set(row)
    assert json.loads((tmp_path / "alone" / "genotype.json").read_text())["text"] == derived.out.strip()


def test_a_space_of_the_users_own_runs_to_the_gap_and_from_its_configuration_anywhere(
    space_file, nas_command, tmp_path, monkeypatch
):
    assert len(SPACE.splitlines()) < 60
    reference = space_file()
    monkeypatch.chdir(tmp_path)
    outcome = nas_command("run", "--space", "my_space.py:Mine", *TINY, "--epochs", 1, "--out", "first", "--json")
    report = json.loads(outcome.out)
    assert reference in (tmp_path / "first" / "config.yaml").read_text()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    replayed = nas_command("run", "--config", tmp_path / "first" / "config.yaml", "--out", "second", "--json")
    assert {**json.loads(replayed.out), "folder": "first"} == report
    files = ("gap.json", "genotype.json", "search.json", "metrics.jsonl", "config.yaml")
    for name in files:
        assert (elsewhere / "second" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()


def test_the_default_folder_names_space_dataset_selector_and_seed(space_file, nas_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space = space_file()
    found = json.loads(nas_command("search", "--space", space, "--seed", 4, "--dry-run", "--json").out)
    assert found["folder"].startswith("runs/Mine_digits_softmax_seed4_")
    other = json.loads(nas_command("search", "--space", space, "--seed", 4, "--epochs", 3, "--dry-run", "--json").out)
    assert other["folder"] != found["folder"]


# Bad input: configuration


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--selector", "st-gz"], ["selector", "'st-gz'", "did you mean 'st-gs'?", "softmax", "--selector"]),
        (["--space", "dart"], ["space", "'dart'", "did you mean 'darts'?"]),
        (["--dataset", "digit"], ["dataset", "'digit'", "did you mean 'digits'?", "mnist"]),
        (["--set", "search.epoch=3"], ["search.epoch", "did you mean 'epochs'?", "--set search.epoch=3"]),
        (["--set", "serach.epochs=3"], ["serach", "did you mean 'search'?"]),
        (["--set", "search.epochs=many"], ["search.epochs must be an integer, got 'many'"]),
        (["--set", "search.epochs=2.5"], ["search.epochs must be an integer, got 2.5"]),
        (["--set", "search.epochs=0"], ["search.epochs must be at least 1, got 0"]),
        (["--epochs", "0"], ["search.epochs must be at least 1, got 0", "--epochs"]),
        (["--set", "search.epochs"], ["--set takes dotted.key=value", "'search.epochs'"]),
        (["--set", "=3"], ["--set takes dotted.key=value"]),
        (["--selector", "st-gs", "--set", "selector.temperature.end=-1"], ["selector.temperature", "positive"]),
        (["--space", "darts", "--set", "space.depth=2"], ["space.depth must be at least 3", "got 2"]),
        (["--space", "absent.py:Mine"], ["no file", "absent.py", "file.py:Class"]),
        (["--space", "math:cos"], ["math", "'cos'"]),
        (["--config", "absent.yaml"], ["absent.yaml", "No such file"]),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_what_is_accepted(
    arguments, parts, nas_command, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    refused(nas_command("search", *arguments), 2, *parts)
    assert [*tmp_path.iterdir()] == []


def test_a_wrong_option_is_a_usage_error(nas_command):
    for arguments in (("search", "--epochs", "many"), ("search", "--slector", "x"), ("serach",), ("derive",)):
        outcome = nas_command(*arguments)
        assert (outcome.code, outcome.out) == (2, "")
        assert "Error: " in outcome.err
        assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("selector: st-gs\nsearch:\n  epochs: [1\n", [":4"]),
        ("selector: st-gs\nsearch:\n  epochs: many\n", [":3", "search.epochs must be an integer, got 'many'"]),
        ("selector: st-gs\nserach: {epochs: 2}\n", [":2", "did you mean 'search'?"]),
        ("selector: !!python/object:os.system x\n", [":1", "tags are not allowed"]),
        ("- selector\n", ["must be a section of settings"]),
    ],
)
def test_an_error_in_a_file_is_given_with_its_line(text, parts, nas_command, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    parts = [f"{file}{part}" if part.startswith(":") else part for part in parts]
    refused(nas_command("search", "--config", file, "--out", tmp_path / "run"), 2, *parts)


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("Edge(1, 2, names)", "Edge(1, 2, names), Edge(2, 1, names)", ["cycle", "1 -> 2"]),
        ("Edge(1, 2, names)", 'Edge(1, 2, ("conf",))', ["'cell'", "edge 1-2", "'conf'", "did you mean 'conv'?"]),
        ("ops.average_pool(3, s.stride)", "nn.AvgPool2d(2)", ["edge 0-1", "'pool'", "(4, 4, 4)", "the same shape"]),
        ("task.classes)", "7)", ["Mine", "(7,)", "one per class, (10,)"]),
        (
            "        head =",
            "        raise KeyError('no such thing')\n        head =",
            ["Mine", "layers", "no such thing"],
        ),
        (
            "        names =",
            "        raise KeyError('no such thing')\n        names =",
            ["Mine", "cells", "no such thing"],
        ),
    ],
    ids=["cycle", "unknown operation", "shape", "head", "layers raise", "cells raise"],
)
def test_a_space_that_does_not_fit_together_is_refused_with_the_place(
    old, new, parts, space_file, nas_command, tmp_path
):
    space = space_file(old=old, new=new)
    for more in ((), ("--dry-run",)):
        refused(nas_command("search", "--space", space, *TINY, "--out", tmp_path / "run", *more), 2, *parts)


def test_a_file_that_does_not_import_is_refused(space_file, nas_command):
    refused(nas_command("search", "--space", space_file("import no_such_module\n")), 2, "my_space.py", "no_such_module")


def test_a_file_without_the_class_is_refused(space_file, nas_command):
    refused(nas_command("search", "--space", space_file(old="Mine", new="Yours")), 2, "no class 'Mine'", "Yours")


@pytest.mark.parametrize(
    ("genotype", "parts"),
    [
        (DARTS_V2, ["is no genotype", "JSON"]),
        ("{}", ["is no genotype"]),
        ("|nor_conv_3x3~0|+|none~0|", ["no NAS-Bench-201 cell"]),
        (CELL.replace("3x3", "5x5"), ["edge 0-1", "'nor_conv_5x5'", "did you mean"]),
        ('{"cells": {"normal": [[0, 1, "none"]]}}', ["normal", "cell", "another space"]),
        ("absent.json", ["'absent.json'", "no run folder, no readable file"]),
    ],
)
def test_a_genotype_that_is_none_of_the_space_is_refused(genotype, parts, nas_command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for more in ((), ("--dry-run",)):
        refused(nas_command("retrain", genotype, *more), 2, *parts)
    assert [*tmp_path.iterdir()] == []


def test_a_genotype_in_a_file_with_brackets_in_its_name_is_read(nas_command, tmp_path):
    (tmp_path / "best (1).txt").write_text(CELL)
    assert nas_command("retrain", tmp_path / "best (1).txt", "--dry-run").code == 0


def test_a_run_is_not_retrained_in_another_space(finished, nas_command, tmp_path):
    before = (finished / "config.yaml").read_bytes()
    for more in ((), ("--out", tmp_path / "other")):
        refused(nas_command("retrain", finished, "--space", "darts", *more), 2, "space")
    assert (finished / "config.yaml").read_bytes() == before
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("command", ["derive", "gap"])
def test_stages_that_need_the_search_take_no_other_folder(command, finished, nas_command, tmp_path):
    outcome = nas_command(command, finished, "--out", tmp_path / "run")
    refused(outcome, 2, f"--out {tmp_path / 'run'}", "leave it away")


def test_another_configuration_for_a_folder_is_refused_with_the_difference(finished, nas_command):
    refused(
        nas_command("search", *NAS_BENCH, "--epochs", 2, "--out", finished),
        2,
        "search.epochs: 1 there, 2 asked for",
        "choose another --out",
    )


# Bad input: data, checkpoints, resources


def test_bad_data_is_refused_with_the_file(nas_command, tmp_path):
    good = npz(tmp_path / "good.npz").read_bytes()
    (tmp_path / "truncated.npz").write_bytes(good[: len(good) // 2])
    (tmp_path / "garbage.npz").write_bytes(b"no images here")
    npz(tmp_path / "labels.npz", test_images=np.zeros((3, 8, 8), np.uint8), test_labels=np.array([0, 1, 9]))
    npz(tmp_path / "negative.npz", train_labels=-np.ones(60, int))
    wrong = {
        "absent": "no such file",
        "truncated": "damaged",
        "garbage": "damaged",
        "labels": "label 9",
        "negative": "-1",
    }
    for name, reason in wrong.items():
        path = tmp_path / f"{name}.npz"
        refused(
            nas_command("search", "--dataset", path, "--out", tmp_path / "run"), 3, f"dataset.path = {path}", reason
        )


def test_data_that_was_not_downloaded_is_refused(nas_command, tmp_path):
    flags = ("--dataset", "mnist", "--set", f"dataset.root={tmp_path}", "--out", tmp_path / "run")
    refused(nas_command("search", *flags), 3, "dataset.root", "dataset.download=true")


def test_a_run_that_is_not_there_or_not_finished_is_refused(nas_command, tmp_path):
    for command in ("derive", "gap", "resume"):
        refused(nas_command(command, tmp_path / "absent"), 4, tmp_path / "absent", "no run folder")
    run = Run.begin(tmp_path / "run", configure())
    refused(nas_command("derive", run.folder), 4, "has not begun", f"nas resume {run.folder}")
    refused(nas_command("gap", run.folder), 4, f"nas derive {run.folder}")
    refused(nas_command("retrain", run.folder), 4, f"nas derive {run.folder}")


def test_a_run_without_a_command_is_not_resumed(nas_command, tmp_path):
    run = Run.begin(tmp_path / "run", configure())
    for text in (None, "[]", '{"command": "fly"}'):
        if text:
            (run.folder / "status.json").write_text(text)
        refused(nas_command("resume", run.folder), 4, "names no command; give the command again")


def test_checkpoints_that_are_all_damaged_are_refused(nas_command, tmp_path):
    command = ("search", *NAS_BENCH, "--epochs", 1, "--out", tmp_path / "run")
    assert nas_command(*command).code == 0
    for path in (tmp_path / "run" / "checkpoints").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    for again in (command, ("derive", tmp_path / "run"), ("resume", tmp_path / "run")):
        refused(nas_command(*again), 4, "no valid checkpoint", "start in a new run folder", "damaged")


def test_a_folder_that_cannot_be_written_is_refused(nas_command, tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        refused(nas_command("search", *NAS_BENCH, "--out", out), 5, "cannot write", out, "another folder")


@pytest.mark.parametrize("device", ["cuda:99", "tpu9"])
def test_a_device_that_is_not_there_is_refused(device, nas_command, tmp_path):
    outcome = nas_command("search", *NAS_BENCH, "--device", device, "--out", tmp_path / "run")
    refused(outcome, 5, f"device '{device}' is not available", "--device cpu")


def test_a_folder_in_use_is_refused(finished, nas_command):
    with lock(finished):
        refused(nas_command("derive", finished), 7, finished, "in use by process", "choose another folder")
        refused(nas_command("search", *NAS_BENCH, "--epochs", 1, "--out", finished), 7, "in use by process")


def test_numbers_that_are_not_finite_end_with_their_own_code(nas_command, tmp_path):
    lr = ("--set", "search.weights.lr=1e30", "--set", "search.clip=0")
    refused(nas_command("search", *NAS_BENCH, *lr, "--epochs", 2, "--out", tmp_path / "run"), 6, "learning rate")


def test_an_error_of_ours_is_called_a_bug(nas_command, monkeypatch, tmp_path):
    def broken(*arguments):
        raise RuntimeError("the roof is on fire")

    monkeypatch.setattr(commands, "start", broken)
    outcome = nas_command("search", "--out", tmp_path / "run")
    assert outcome.code == 1
    assert "RuntimeError: the roof is on fire" in outcome.err
    assert "this is a bug in nas; please report it" in outcome.err


def test_memory_that_runs_out_on_the_cpu_is_no_bug_of_ours(tmp_path):
    with (
        pytest.raises(ResourceError, match=r"out of memory.*lower the batch sizes") as caught,
        session(tmp_path, configure(), "search", quiet=True),
    ):
        torch.empty(10**15)
    assert caught.value.exit_code == 5
    with pytest.raises(RuntimeError, match="on fire"), session(tmp_path, configure(), "search", quiet=True):
        raise RuntimeError("on fire")


def test_memory_that_runs_out_names_what_to_lower(nas_command, monkeypatch):
    def hungry(*arguments):
        raise MemoryError

    monkeypatch.setattr(commands, "start", hungry)
    refused(nas_command("search"), 5, "out of memory", "search.batch_size")
