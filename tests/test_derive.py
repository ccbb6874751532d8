"""`nas derive --compare`: every rule at work on one supernet, from the command line."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from nas import registry
from nas.derivation import Derivation
from nas.runs.folder import Run
from nas.runs.judge import Examination

TINY = '''
from dataclasses import dataclass
from torch import nn
from nas import ops
from nas.space import Cell, CellSlot, Edge, SearchSpace

@dataclass(frozen=True, kw_only=True)
class Tiny(SearchSpace):
    """Two edges with three candidates."""

    operations = {
        "none": lambda s: ops.Zero(s.channels, s.stride),
        "skip_connect": lambda s: nn.Identity(),
        "conv": lambda s: ops.relu_conv_norm(s.in_channels, s.channels, 3, s.stride, affine=not s.searching),
    }

    @property
    def cells(self):
        return {"cell": Cell((Edge(0, 1, (*self.operations,)), Edge(0, 2, (*self.operations,))), outputs=(1, 2))}

    def layers(self, task, searching):
        stem = nn.Sequential(nn.Conv2d(task.channels, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4))
        last = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, task.classes))
        return [stem, CellSlot("cell", 4), last]
'''
# Tuning goes by a tenth of this rate, and shall be seen.
SMALL = ("dataset.limit=60", "threads=1", "search.batch_size=20", "search.warmup=0", "search.weights.lr.start=1")
RULES = {"argmax", "beam", "darts", "discretisation-loss", "evolution", "perturbation", "sampled"}


def settings(*given):
    return [part for setting in given for part in ("--set", setting)]


@pytest.fixture(scope="module")
def space(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("space") / "tiny.py"
    file.write_text(TINY)
    return f"{file}:Tiny"


@pytest.fixture(scope="module")
def searched(nas_command, tmp_path_factory, space):
    """Finished searches by selector; tests leave them as they are."""
    folders = {}
    for selector in ("softmax", "uniform"):
        folders[selector] = tmp_path_factory.mktemp(selector) / "run"
        found = nas_command(
            "search", "--space", space, "--selector", selector, "--epochs", 2, *settings(*SMALL), "--quiet",
            "--out", folders[selector],
        )  # fmt: skip
        assert found.code == 0, found.err
    return folders


@pytest.fixture
def run(searched, tmp_path):
    """Copies a search: `run("softmax")`."""

    def copy(selector: str) -> Path:
        return Path(shutil.copytree(searched[selector], tmp_path / selector))

    return copy


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def compare(nas_command, folder, *arguments):
    found = nas_command("derive", folder, "--compare", "--json", "--quiet", *arguments)
    assert found.code == 0, found.err
    assert found.err == ""
    report = json.loads(found.out)
    return report, {row["rule"]: row for row in report["rules"]}


def test_every_rule_has_a_row_and_the_run_stays_as_it_is(run, nas_command):
    folder = run("softmax")
    assert nas_command("derive", folder, "--quiet").code == 0
    before = contents(folder)
    report, rows = compare(nas_command, folder)
    after = contents(folder)
    assert json.loads(after.pop("derivations.json")) == {key: report[key] for key in report if key != "folder"}
    assert after == before
    assert set(rows) == set(registry.names(Derivation.registry)) == RULES
    derived = Run.open(folder).genotype()
    text = Run.open(folder).config.space.format(derived)
    assert report["configured"] == "argmax"
    assert [name for name, row in rows.items() if row["configured"]] == ["argmax"]
    assert rows["argmax"]["genotype"] == text
    for name, row in rows.items():
        assert row["refused"] is None
        assert row["settings"]["name"] == name
        assert row["as_configured"] == (row["genotype"] == text)
        assert 0 <= row["inherited"] <= 100
        assert row["cpu_seconds"] >= 0
        assert row["benchmark"] is None
    # Two edges of three candidates, in either order: the first three and nine with a beam of three.
    spent = {name: (row["measurements"], row["tuning_steps"]) for name, row in rows.items()}
    assert spent == {
        "argmax": (0, 0),
        "darts": (0, 0),
        "beam": (3 + 9, 0),
        "discretisation-loss": (6 + 6, 0),
        "perturbation": (3 + 3, 20),
        "evolution": (9, 0),
        "sampled": (9, 0),
    }
    assert rows["evolution"]["inherited"] == max(row["inherited"] for row in rows.values())  # it tried them all


@pytest.mark.parametrize("selector", ["softmax", "uniform"])
def test_a_rule_among_others_derives_what_it_derives_alone(selector, run, nas_command):
    folder = run(selector)
    rows = {}
    for tune in (0, 40):
        rows[tune] = compare(nas_command, folder, *settings("derive.name=perturbation", f"derive.tune={tune}"))[1]
        assert rows[tune]["perturbation"]["tuning_steps"] == tune
    # `sampled` comes after `perturbation`, which leaves no trace of its tuning.
    found = [[rows[tune]["sampled"][key] for key in ("genotype", "inherited")] for tune in (0, 40)]
    assert found[0] == found[1]
    alone = nas_command("derive", folder, "--quiet", *settings("derive.name=perturbation", "derive.tune=40"))
    assert alone.out.strip() == rows[40]["perturbation"]["genotype"]


def test_a_rule_that_cannot_be_applied_says_why(run, nas_command):
    report, rows = compare(nas_command, run("uniform"))
    assert report["configured"] == "sampled"
    refused = {name: row["refused"] for name, row in rows.items() if row["refused"]}
    assert refused == dict.fromkeys(("argmax", "darts"), "the selector learns no logits to follow")
    for name in refused:
        assert {rows[name][key] for key in ("genotype", "inherited", "as_configured", "benchmark")} == {None}
    assert rows["beam"]["measurements"] == 3 * 5 + 9  # the last nine leave nothing to draw


def test_the_configured_rule_has_its_own_settings(run, nas_command):
    folder = run("softmax")
    report, rows = compare(nas_command, folder, *settings("derive.name=perturbation", "derive.tune=3"))
    assert report["configured"] == "perturbation"
    assert rows["perturbation"]["settings"] == {"name": "perturbation", "tune": 3, "decisions": 5}
    assert rows["perturbation"]["tuning_steps"] == 3
    assert Run.open(folder).config.derive is None


def test_a_rule_of_ones_own_is_compared_too(run, nas_command, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from nas.derivation import Derivation, sample, uniform\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Random(Derivation):\n"
        "    def derive(self, space, probabilities, judge, generator):\n"
        "        return sample(space, uniform(space), generator)\n"
    )
    report, rows = compare(nas_command, run("softmax"), *settings(f"derive={file}:Random"))
    assert report["configured"] == f"{file}:Random"
    assert set(rows) == RULES | {f"{file}:Random"}
    assert rows[f"{file}:Random"]["inherited"] >= 0


def test_the_table_for_readers(run, nas_command, tmp_path):
    folder = run("softmax")
    rows = compare(nas_command, folder)[1]
    texts = sorted({row["genotype"] for row in rows.values()})
    table = tmp_path / "table.npz"
    accuracy = np.linspace(50, 90, len(texts) + 1)
    np.savez(table, arch=np.array([*texts, "another"]), cifar10_valid=accuracy, cifar10_test=accuracy)
    found = nas_command("derive", folder, "--compare", "--benchmark", table)
    assert found.code == 0, found.err
    lines = found.out.splitlines()
    end = next(place for place, line in enumerate(lines) if line.startswith("letters:"))
    words = [line.split() for line in lines[:end]]
    printed = {name: values for name, *values in filter(None, words) if name in RULES}
    assert printed.keys() == RULES
    letters = {line[0]: line[3:] for line in lines if line[1:3] == ": "}
    assert sorted(letters.values()) == texts
    accuracies = [float(values[1]) for values in printed.values()]
    assert accuracies == sorted(accuracies, reverse=True)
    own = rows["argmax"]["genotype"]
    for name, (letter, select, *_, test, rank, regret) in printed.items():
        text = rows[name]["genotype"]
        assert letters[letter.rstrip("*")] == text
        assert letter.endswith("*") == (text == own)
        assert float(select) == pytest.approx(rows[name]["inherited"], abs=0.005)
        assert float(test) == pytest.approx(accuracy[texts.index(text)], abs=0.005)
        assert int(rank) == 1 + len(texts) - texts.index(text)
        assert float(regret) == pytest.approx(90 - accuracy[texts.index(text)], abs=0.01)
    assert "derive by every rule  7/7" in found.err
    assert max(map(len, lines[:end])) <= 80  # a terminal's width
    assert f"perturbation took {rows['perturbation']['tuning_steps']} weight steps, now undone" in lines
    unapplied = nas_command("derive", run("uniform"), "--compare", "--quiet").out
    assert "argmax was not applied: the selector learns no logits to follow" in unapplied


def test_a_table_of_another_space_is_an_error(run, nas_command, tmp_path):
    np.savez(tmp_path / "table.npz", arch=np.array(["x"]), cifar10_valid=np.ones(1), cifar10_test=np.ones(1))
    folder = run("softmax")
    before = contents(folder)
    found = nas_command("derive", folder, "--compare", "--benchmark", tmp_path / "table.npz")
    assert (found.code, found.out) == (2, "")
    assert "--benchmark needs the table of the space that is searched" in found.err
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--selector", "st-gs"], 2, "was searched with other selector"),
        (["--set", "search.epochs=3"], 2, "was searched with other search.epochs; leave them as they are"),
        (["--out", "elsewhere"], 2, "nas derive works in the run folder"),
        (["--benchmark", "no.npz"], 3, "no such file"),
    ],
)
def test_what_the_comparison_refuses(arguments, code, message, run, nas_command):
    folder = run("softmax")
    before = contents(folder)
    found = nas_command("derive", folder, "--compare", *arguments)
    assert (found.code, found.out) == (code, "")
    assert message in found.err
    assert contents(folder) == before


def test_an_unfinished_search_is_finished_first(run, nas_command):
    folder = run("softmax")
    shutil.rmtree(folder / "checkpoints")
    found = nas_command("derive", folder, "--compare")
    assert found.code == 4
    assert f"finish it with: nas resume {folder}" in found.err


def test_a_signal_stops_the_comparison_and_nothing_is_written(run, nas_command, monkeypatch):
    folder = run("softmax")
    before, measure = contents(folder), Examination._measure

    def interrupted(self, decision):
        if self.measurements == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return measure(self, decision)

    monkeypatch.setattr(Examination, "_measure", interrupted)
    found = nas_command("derive", folder, "--compare")
    assert (found.code, found.out) == (130, "")
    assert "stopped by SIGINT while comparing; nothing was written, the same command begins again" in found.err
    assert contents(folder) == before


def test_without_compare_derive_shows_how_far_it_is(run, nas_command):
    found = nas_command("derive", run("softmax"), "--set", "derive=beam")
    assert "derive by beam  1/1  measured 12" in found.err
    assert found.out.startswith('{"cells"')
