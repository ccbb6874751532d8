"""Sweeps: what is planned, that everything resumes, and that the baselines are paid for."""

import importlib
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nas.errors import NumericsError, ResourceError
from nas.files import read_json
from nas.runs.folder import Run
from nas.runs.pipeline import configure
from nas.runs.retrain import Retraining
from nas.runs.search import BilevelSearch
from nas.runs.sweep import execution
from nas.runs.sweep.baselines import fitting, random_search
from nas.runs.sweep.plan import folder_name, plan
from nas.runs.sweep.pool import Processes, Serial, pool_of, threads_each
from nas.selectors.softmax import Softmax
from nas.status import lock

TINY = ("dataset.limit=40", "search.batch_size=20", "space.channels=4", "threads=1", "retrain.seeds=1")
SELECTOR = '''
from dataclasses import dataclass

from nas.selectors.softmax import Softmax


@dataclass(frozen=True, kw_only=True)
class Mine(Softmax):
    """As softmax."""
'''


def command(*more, seeds=2, selectors="softmax,st-gs"):
    settings = [part for setting in TINY for part in ("--set", setting)]
    return ["sweep", "--selectors", selectors, "--seeds", seeds, "--epochs", 1, *settings, *more]


def planned(*vary, selectors="softmax,st-gs", seeds=2, retrain=True, **sections):
    return plan(configure(**sections), selectors, seeds, vary, Path("out"), retrain=retrain)


# The plan


def test_a_plan_has_every_selector_with_every_seed_and_both_baselines():
    runs = planned(seed=5)
    assert [run.name for run in runs] == [
        *(f"{name}_seed5" for name in ("random-cell", "random-search", "softmax", "st-gs")),
        *(f"{name}_seed6" for name in ("random-cell", "random-search", "softmax", "st-gs")),
    ]
    assert [run.run().config.seed for run in runs] == [5] * 4 + [6] * 4
    selectors = [type(run.run().config.selector) for run in runs if run.kind == "search"]
    assert selectors[::2] == [Softmax] * 2


def test_varied_settings_make_a_product():
    runs = [run for run in planned("search.entropy=0,0.01", "search.warmup=0.1,0.5", seeds=1) if run.kind == "search"]
    assert len(runs) == 2 * 2 * 2
    found = {(run.run().config.search.entropy.value, run.run().config.search.warmup) for run in runs}
    assert found == {(0, 0.1), (0, 0.5), (0.01, 0.1), (0.01, 0.5)}
    assert runs[0].name == "softmax_search.entropy=0_search.warmup=0.1_seed0"
    assert runs[0].settings == {"selector": "softmax", "search.entropy": 0, "search.warmup": 0.1}


def test_baselines_are_planned_once_for_the_settings_on_which_they_depend():
    def baselines(*vary):
        return [run.name for run in planned(*vary, seeds=1) if run.kind == "random cell"]

    assert baselines("search.entropy=0,0.01", "gap.decisions=1,2") == ["random-cell_seed0"]
    assert baselines("space.channels=4,8", "search.entropy=0,0.01") == [
        "random-cell_space.channels=4_seed0",
        "random-cell_space.channels=8_seed0",
    ]


def test_values_may_be_names_sections_and_lists():
    runs = planned(
        "search.hypergradient=first-order,{name: unrolled}", "search.modifiers=[],[fair-paths]", selectors="softmax"
    )
    searches = [run.run().config.search for run in runs if run.kind == "search" and run.seed == 0]
    assert len({search.hypergradient for search in searches}) == 2
    assert {len(search.modifiers) for search in searches} == {0, 1}
    assert len({run.name for run in runs}) == len(runs)


def test_a_configured_selector_keeps_its_settings_and_others_have_their_defaults():
    runs = planned(selector={"name": "st-gs", "temperature": 0.25}, selectors="st-gs,gumbel-softmax", seeds=1)
    temperatures = [run.run().config.selector.temperature for run in runs if run.kind == "search"]
    assert temperatures[0].value == 0.25
    assert temperatures[1] == configure(selector="gumbel-softmax").selector.temperature
    assert [run.settings["selector"] for run in planned(selectors=None, selector="gdas") if run.kind == "search"] == [
        "gdas",
        "gdas",
    ]


def test_all_selectors_can_be_asked_for():
    names = {run.settings["selector"] for run in planned(selectors="all", seeds=1) if run.kind == "search"}
    assert {"softmax", "st-gs", "uniform", "edge-top-k"} <= names


def test_a_planned_run_is_plain_data_that_another_process_understands(tmp_path):
    (tmp_path / "mine.py").write_text(SELECTOR)
    runs = planned(selectors=f"{tmp_path / 'mine.py'}:Mine", seeds=1)
    assert json.loads(json.dumps(runs[-1].config)) == runs[-1].config
    again = pickle.loads(pickle.dumps(runs[-1]))
    assert again == runs[-1]
    assert again.run().config == runs[-1].run().config
    assert b"nas_plugin" not in pickle.dumps(runs[-1])  # such a module is not there in a worker
    assert runs[-1].name.startswith("mine.py-Mine_")


def test_folder_names_hold_plain_signs_and_tell_runs_apart():
    assert folder_name(["st-gs", "search.entropy=0.01"], 3) == "st-gs_search.entropy=0.01_seed3"
    names = [folder_name([text], 0) for text in ("a/x.py:A", "b/x.py:A", "x.py A", "x" * 300, "x" * 301)]
    assert len(set(names)) == 5
    assert all(len(name) < 130 and "/" not in name and " " not in name and ":" not in name for name in names)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--selectors", "softmax,,st-gs"), "--selectors must be names"),
        (("--selectors", "softmx"), "did you mean 'softmax'"),
        (("--vary", "search.entropy"), "--vary takes dotted.key=value,value, got 'search.entropy'"),
        (("--vary", "search.entropy="), "--vary takes"),
        (("--vary", "search.entropie=1"), "unknown setting 'search.entropie' (--vary search.entropie=1)"),
        (("--vary", "search.warmup=0.5,2"), "search.warmup must be at least 0 and below 1, got 2"),
        (("--vary", "selector=a,b"), "use --selectors"),
        (("--vary", "seed=1,2"), "use --seeds"),
        (("--vary", "threads=1,2"), "--vary threads changes no result"),
        (("--vary", "search.warmup=0.1", "--vary", "search.warmup=0.2"), "names a setting twice"),
        (("--no-retrain",), "--no-retrain needs --benchmark"),
        (
            ("--no-retrain", "--benchmark", "table.npz", "--set", "gap.ranked=200"),
            "gap.ranked is measured by the gap report, which --no-retrain leaves out; drop one",
        ),
        (("--selectors", "st-gs", "--set", "cost.target=params<=10", "--dry-run"), "cost.target"),
        (("--vary", "search.modifiers=[],[{name: partial-channels, share: 100}]", "--dry-run"), "partial-channels"),
        (("--set", "derive=argmax", "--selectors", "uniform"), "derive must measure"),
        (("--dataset", "cifar10", "--space", "nas-bench-201", "--set", "space.channels=0"), "space.channels"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_anything_is_written(arguments, part, nas_command, tmp_path):
    outcome = nas_command("sweep", *arguments, "--out", tmp_path / "out")
    assert (outcome.code, outcome.out) == (2, "")
    assert part in outcome.err
    assert not (tmp_path / "out").exists()


def test_a_missing_table_is_reported_before_anything_is_written(nas_command, tmp_path):
    outcome = nas_command(*command("--benchmark", tmp_path / "absent.npz", "--out", tmp_path / "out"))
    assert outcome.code == 3
    assert not (tmp_path / "out").exists()


# The budget of random search


@pytest.mark.parametrize(
    ("seconds", "budget", "count"),
    [
        ([], 0.0, None),
        ([9.0], 1.0, 1),  # the first counts whatever it takes
        ([1.0], 2.0, None),  # 1 + 1 fit
        ([1.0], 1.9, 1),
        ([1.0, 1.0], 2.0, 2),
        ([1.0, 3.0], 5.9, 2),  # 4 spent, the mean of 2 does not fit
        ([1.0, 3.0], 6.0, None),
        ([1.0, 1.0, 1.0, 1.0], 2.0, 2),  # as many as an earlier, larger budget has paid for
    ],
)
def test_as_many_cells_fit_as_the_mean_of_those_before_lets_expect(seconds, budget, count):
    assert fitting(seconds, budget) == count


def test_a_fitting_number_never_spends_more_than_the_budget_if_cells_cost_the_same():
    for budget in np.linspace(1, 20, 60):
        seconds: list[float] = []
        while (count := fitting(seconds, budget)) is None:
            seconds.append(1.0)
        assert count == max(1, math.floor(budget))


def test_a_larger_budget_goes_on_from_the_cells_of_a_smaller_one(tmp_path):
    config = configure(
        dataset={"limit": 40}, threads=1, epochs=1, space={"channels": 4}, retrain={"seeds": 2}, gap={"random": 0}
    )
    run = Run.begin(tmp_path / "run", config)
    results, first = random_search(run, 0.0, retrain=True)
    assert len(first) == 1
    assert len(results) == 2
    assert all(result.seed > 0 for result in results)  # the retraining that chose does not score
    _, more = random_search(run, 2.5 * first[0], retrain=False)
    assert len(more) >= 2
    assert more[0] == first[0]
    trained = {path.parent.parent for path in (run.folder / "retrain").glob("*/seed-0/result.json")}
    assert len(trained) == len(more)
    best = max(read_json(home / "seed-0" / "result.json")["select"] for home in trained)
    chosen = [home for home in trained if read_json(home / "seed-0" / "result.json")["genotype"] == text_of(run)]
    assert read_json(chosen[0] / "seed-0" / "result.json")["select"] == best
    _, fewer = random_search(run, 0.0, retrain=False)
    assert fewer == first


def text_of(run):
    return run.config.space.format(run.genotype())


def test_the_budget_is_that_of_the_slowest_group_of_searches_that_differ_by_their_seed_only(monkeypatch):
    # Medians 2 and 9; over all searches it is 4.
    spent = {"softmax": [1.0, 2.0, 4.0], "st-gs": [4.0, 9.0, 30.0]}
    runs = planned(seeds=3)

    def row_of(run):
        name, _, seed = run.folder.name.partition("_seed")
        return SimpleNamespace(search_seconds=spent[name][int(seed)])

    monkeypatch.setattr(execution, "finished", lambda each: True)
    monkeypatch.setattr(execution, "read_row", row_of)
    baseline = next(run for run in runs if run.kind == "random search")
    assert execution._priced(baseline, runs).budget == 9.0


# Whole sweeps


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table of all cells in which skip connections are best and nothing else counts."""
    names = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
    digits = np.stack(np.unravel_index(np.arange(5**6), (5,) * 6), 1)
    places = (((0, 0),), ((1, 0), (2, 1)), ((3, 0), (4, 1), (5, 2)))
    texts = [
        "+".join("|" + "".join(f"{names[row[e]]}~{source}|" for e, source in node) for node in places)
        for row in digits.tolist()
    ]
    path = tmp_path_factory.mktemp("table") / "table.npz"
    accuracies = 40 + 10.0 * (digits == 1).sum(1)
    np.savez(path, arch=np.array(texts), cifar10_valid=accuracies, cifar10_test=accuracies)
    return path


@pytest.fixture(scope="module")
def finished(nas_command, table, tmp_path_factory):
    """A sweep with a table: the command without --out, the folder, and what it printed."""
    folder = tmp_path_factory.mktemp("finished") / "sweep"
    asked = command("--benchmark", table)
    outcome = nas_command(*asked, "--out", folder, "--json")
    assert outcome.code == 0, outcome.err
    return asked, folder, outcome


def rows(folder):
    return {path.parent.name: read_json(path) for path in sorted(folder.glob("*/row.json"))}


def test_a_sweep_leaves_a_row_for_every_run_and_prints_their_comparison(finished):
    _, folder, outcome = finished
    kinds = {name: row["kind"] for name, row in rows(folder).items()}
    assert kinds == {
        **{f"random-cell_seed{seed}": "random cell" for seed in (0, 1)},
        **{f"random-search_seed{seed}": "random search" for seed in (0, 1)},
        **{f"{name}_seed{seed}": "search" for name in ("softmax", "st-gs") for seed in (0, 1)},
    }
    found = json.loads(outcome.out)
    assert found["metric"] == "regret"
    assert [row["label"] for row in found["rows"][:2]] == ["random cells", "random search"]
    assert {row["n"] for row in found["rows"]} == {2}
    assert len(found["pairs"]) == 6
    assert {pair["statement"] for pair in found["pairs"]} <= {"difference", "no difference shown"}
    lines = [line for line in outcome.err.splitlines() if line[0].isdigit()]
    assert [line.split()[0] for line in lines] == [f"{count}/8" for count in range(1, 9)]
    assert "left" in lines[0]
    assert "left" not in lines[-1]


def test_regrets_are_those_of_the_table_and_the_metrics_those_of_the_gap_report(finished):
    for name, row in rows(finished[1]).items():
        skips = row["genotype"].count("skip_connect")
        assert row["metrics"]["regret"] == pytest.approx(10 * (6 - skips))
        assert row["metrics"]["table_test"] == pytest.approx(40 + 10 * skips)
        free = sum(row["genotype"].count(name) for name in ("none", "skip_connect", "avg_pool_3x3"))
        assert row["metrics"]["parameter_free"] == pytest.approx(100 * free / 6)
        assert row["table_mean"]["table_test"] == pytest.approx(40 + 10 * 6 / 5)
        report = finished[1] / name / "gap.json"
        assert report.is_file() == (row["kind"] == "search")
        if report.is_file():
            gap = read_json(report)
            assert row["metrics"]["retrained"] == gap["retrained"]["mean"]
            assert row["metrics"]["test"] == gap["test"]["retrained"]["mean"]
            assert row["metrics"]["supernet"] == gap["supernet"]
            assert gap["random"]["values"] == []  # the sweep has baselines of its own


def test_the_seconds_of_every_stage_are_kept_and_random_search_has_those_of_the_slowest_median(finished):
    found = rows(finished[1])
    searches = [row for row in found.values() if row["kind"] == "search"]
    assert all({"search", "derive", "retrain", "gap"} <= {*row["seconds"]} for row in searches)
    spent: dict[str, list[float]] = {}
    for row in searches:
        seconds = row["seconds"]["search"] + row["seconds"]["derive"]
        spent.setdefault(row["settings"]["selector"], []).append(seconds)
    budget = max(float(np.median(seconds)) for seconds in spent.values())
    for seed in (0, 1):
        row = found[f"random-search_seed{seed}"]
        assert row["budget"] == pytest.approx(budget)
        seconds = read_json(finished[1] / f"random-search_seed{seed}" / "choice.json")["seconds"]
        assert fitting(seconds, row["budget"]) == row["cells"] == len(seconds)
        assert row["seconds"]["choice"] == pytest.approx(sum(seconds), abs=1e-3)


def test_random_search_chooses_by_retraining_and_never_by_the_table(finished):
    for seed in (0, 1):
        folder = finished[1] / f"random-search_seed{seed}"
        results = [read_json(path) for path in folder.glob("retrain/*/seed-0/result.json")]
        best = max(result["select"] for result in results)
        assert rows(finished[1])[folder.name]["genotype"] in {r["genotype"] for r in results if r["select"] == best}
        scored = [read_json(path)["select"] for path in folder.glob("retrain/*/seed-1/result.json")]
        assert rows(finished[1])[folder.name]["metrics"]["retrained"] == scored[0]


def test_the_seeds_of_a_baseline_are_different_cells(finished):
    cells = [Run.open(finished[1] / f"random-cell_seed{seed}").genotype() for seed in (0, 1)]
    searched = [
        read_json(path)["genotype"] for path in sorted(finished[1].glob("random-search*/retrain/*/seed-0/result.json"))
    ]
    assert cells[0] != cells[1]
    assert len(set(searched)) == len(searched)


def test_the_same_command_again_trains_nothing_and_prints_the_same(finished, nas_command, monkeypatch):
    asked, folder, outcome = finished
    before = rows(folder)

    def step(self, *arguments):
        raise AssertionError("it trains")

    monkeypatch.setattr(BilevelSearch, "step", step)
    monkeypatch.setattr(Retraining, "step", step)
    again = nas_command(*asked, "--out", folder, "--json")
    assert (again.code, again.out, rows(folder)) == (0, outcome.out, before)
    assert "8 of 8 runs have a result already" in again.err
    assert nas_command("compare", folder, "--json").out == outcome.out
    assert nas_command("compare", folder).out == nas_command(*asked, "--out", folder).out


def test_other_settings_for_the_same_folders_are_refused_with_the_difference(finished, nas_command):
    asked, folder, _ = finished
    before = rows(folder), read_json(folder / "sweep.json")
    outcome = nas_command(*asked, "--set", "search.batch_size=10", "--out", folder)
    assert (outcome.code, outcome.out) == (2, "")
    assert "search.batch_size: 20 there, 10 asked for" in outcome.err
    assert (rows(folder), read_json(folder / "sweep.json")) == before


def test_a_dry_run_lists_the_runs_and_writes_nothing(finished, nas_command, tmp_path):
    asked, folder, _ = finished
    outcome = nas_command(*asked, "--dry-run", "--out", tmp_path / "out")
    assert "8 runs, 0 of them done" in outcome.out
    assert "random-search_seed1" in outcome.out
    assert not (tmp_path / "out").exists()
    listed = json.loads(nas_command(*asked, "--dry-run", "--json", "--out", folder).out)
    assert [each["done"] for each in listed if each["kind"] != "random search"] == [True] * 6


@pytest.mark.slow
def test_a_sweep_grows_and_stays_comparable(finished, nas_command, tmp_path):
    _, folder, _ = finished
    copied = tmp_path / "sweep"
    subprocess.run(["cp", "-r", folder, copied], check=True)
    table = rows(folder)["softmax_seed0"]["benchmark"]["path"]
    done = {name: row for name, row in rows(copied).items() if row["kind"] != "random search"}
    outcome = nas_command(*command("--benchmark", table, seeds=3), "--out", copied, "--json")
    assert outcome.code == 0, outcome.err
    assert {row["n"] for row in json.loads(outcome.out)["rows"]} == {3}
    assert {name: rows(copied)[name] for name in done} == done
    # The slowest median may be longer or shorter now, and all random searches follow.
    assert len({row["budget"] for row in rows(copied).values() if row["kind"] == "random search"}) == 1


def test_a_gap_that_was_measured_otherwise_is_measured_again_as_the_sweep_asks(finished, nas_command, tmp_path):
    asked, folder, _ = finished
    copied = tmp_path / "sweep"
    subprocess.run(["cp", "-r", folder, copied], check=True)
    report = copied / "softmax_seed0" / "gap.json"
    before = read_json(report)
    assert nas_command("gap", copied / "softmax_seed0", "--set", "gap.random=1").code == 0
    assert len(read_json(report)["random"]["values"]) == 1
    outcome = nas_command(*asked, "--out", copied)
    assert outcome.code == 0, outcome.err
    assert read_json(report) == before


def test_a_finished_sweep_can_get_a_table_and_trains_no_search_again(nas_command, table, monkeypatch, tmp_path):
    asked = command("--out", tmp_path, seeds=1, selectors="softmax")
    assert nas_command(*asked).code == 0
    assert not any("regret" in row["metrics"] for row in rows(tmp_path).values())

    def step(self, *arguments):
        raise AssertionError("it searches")

    monkeypatch.setattr(BilevelSearch, "step", step)
    outcome = nas_command(*asked, "--benchmark", table, "--json")
    assert outcome.code == 0, outcome.err
    found = rows(tmp_path)
    assert {"regret", "retrained"} <= {*found["softmax_seed0"]["metrics"]}
    assert read_json(tmp_path / "softmax_seed0" / "gap.json")["benchmark"] is not None
    assert json.loads(outcome.out)["metric"] == "regret"


def test_gap_and_derive_work_in_a_run_of_a_sweep(finished, nas_command, tmp_path):
    copied = tmp_path / "sweep"
    subprocess.run(["cp", "-r", finished[1], copied], check=True)
    outcome = nas_command("gap", copied / "softmax_seed0", "--set", "gap.random=1")
    assert outcome.code == 0, outcome.err
    assert nas_command("derive", copied / "softmax_seed0").code == 0
    assert nas_command("compare", copied / "softmax_seed0", copied / "softmax_seed1").code == 0


def test_without_retraining_the_table_scores_and_random_search_still_pays(nas_command, table, tmp_path):
    asked = command("--benchmark", table, "--out", tmp_path, seeds=1, selectors="softmax")
    outcome = nas_command(*asked, "--no-retrain", "--json")
    assert outcome.code == 0, outcome.err
    found = rows(tmp_path)
    known = {"regret", "table_test", "rank", "parameter_free"}
    assert {*found["softmax_seed0"]["metrics"]} == {"supernet", "inherited", "parameter_free_mass", *known}
    assert {*found["random-search_seed0"]["metrics"]} == known
    assert not (tmp_path / "random-cell_seed0" / "retrain").exists()
    assert found["random-search_seed0"]["seconds"]["choice"] > 0
    assert len(json.loads(outcome.out)["pairs"]) == 3


@pytest.mark.slow
def test_retraining_can_be_added_later(nas_command, table, tmp_path):
    asked = command("--benchmark", table, "--out", tmp_path, seeds=1, selectors="softmax")
    assert nas_command(*asked, "--no-retrain").code == 0
    found = rows(tmp_path)
    again = nas_command(*asked)
    assert again.code == 0, again.err
    assert all("retrained" in row["metrics"] for row in rows(tmp_path).values())
    for name in ("supernet", "inherited"):
        both = [each["softmax_seed0"]["metrics"][name] for each in (found, rows(tmp_path))]
        assert both[0] == pytest.approx(both[1])


# What goes wrong


@pytest.fixture
def failing(monkeypatch):
    """Searches by st-gs fail as long as the list has something in it."""
    step, trouble = BilevelSearch.step, [NumericsError("a loss is NaN")]

    def stepping(self, *arguments):
        if trouble and type(self.session.config.selector) is not Softmax:
            raise trouble[0]
        return step(self, *arguments)

    monkeypatch.setattr(BilevelSearch, "step", stepping)
    return trouble


def test_a_run_that_fails_stops_no_other_and_is_tried_again(failing, nas_command, tmp_path):
    asked = command("--out", tmp_path, seeds=1)
    outcome = nas_command(*asked)
    assert outcome.code == 6
    assert "1 run failed (st-gs_seed0: a loss is NaN); the same command tries again" in outcome.err
    assert "random cells" in outcome.out
    assert "failed: st-gs_seed0: a loss is NaN" in outcome.out
    assert sum("metrics" in row for row in rows(tmp_path).values()) == 3
    failing.clear()
    again = nas_command(*asked, "--json")
    assert again.code == 0, again.err
    assert len(json.loads(again.out)["rows"]) == 4


def test_a_mistake_in_a_plug_in_is_shown_and_without_any_search_there_is_no_budget(failing, nas_command, tmp_path):
    failing[0] = TypeError("of the user's own selector")
    outcome = nas_command(*command("--out", tmp_path, seeds=1, selectors="st-gs"))
    assert outcome.code == 1
    assert "Traceback" in outcome.err
    assert "1 run failed (st-gs_seed0: TypeError: of the user's own selector)" in outcome.err
    assert "not done yet: random-search_seed0" in outcome.out
    assert not (tmp_path / "random-search_seed0").exists()


def test_a_run_in_use_by_somebody_else_is_left_alone(nas_command, tmp_path):
    with lock(tmp_path / "softmax_seed0"):
        outcome = nas_command(*command("--out", tmp_path, seeds=1, selectors="softmax"))
    assert outcome.code == 7
    assert f"softmax_seed0 is in use by process {os.getpid()}" in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "softmax_seed0" / "row.json").exists()
    assert (tmp_path / "random-cell_seed0" / "row.json").is_file()


def test_a_sweep_is_done_by_one_process_at_a_time(nas_command, tmp_path):
    with lock(tmp_path):
        outcome = nas_command(*command("--out", tmp_path))
    assert (outcome.code, outcome.out) == (7, "")
    assert "in use" in outcome.err


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_a_signal_stops_the_sweep_and_the_same_command_ends_as_if_there_was_none(
    number, code, finished, nas_command, monkeypatch, tmp_path
):
    folder = finished[1]
    table = rows(folder)["softmax_seed0"]["benchmark"]["path"]
    asked = command("--benchmark", table, seeds=1, selectors="softmax")
    for training, at in ((Retraining, 1), (BilevelSearch, 2), (Retraining, 3)):
        step, taken = training.step, []

        def stepping(self, *arguments, step=step, taken=taken, at=at):
            taken.append(1)
            values = step(self, *arguments)
            if len(taken) == at:
                signal.raise_signal(number)
            return values

        monkeypatch.setattr(training, "step", stepping)
        outcome = nas_command(*asked, "--out", tmp_path)
        monkeypatch.setattr(training, "step", step)
        assert (outcome.code, outcome.out) == (code, "")
        message = outcome.err.splitlines()[-1]
        assert f"stopped by {signal.Signals(number).name}" in message
        assert "of 3 runs are done" in message
        assert "the same command goes on" in message
    outcome = nas_command(*asked, "--out", tmp_path)
    assert outcome.code == 0, outcome.err
    assert len(rows(tmp_path)) == 3
    for name in ("random-cell_seed0", "softmax_seed0"):  # how many cells a random search has is a matter of time
        for key in ("metrics", "genotype", "settings"):
            assert rows(tmp_path)[name][key] == rows(folder)[name][key]


# Pools


def never():
    return False


def test_a_pool_in_this_process_gives_results_in_order_until_it_is_stopped():
    assert [*Serial().map(abs, [-1, -2, -3], never)] == [1, 2, 3]
    seen = []
    assert [*Serial().map(seen.append, [1, 2, 3], lambda: len(seen) == 2)] == [None, None]
    assert isinstance(pool_of(1), Serial)
    assert isinstance(pool_of(2), Processes)


def test_workers_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8), raising=False)
    assert [threads_each(workers) for workers in (1, 2, 3, 16)] == [8, 4, 2, 1]


def test_an_error_in_a_worker_is_raised_here():
    with pytest.raises(ValueError, match="math domain error"):
        list(Processes(1).map(math.sqrt, [-1.0], never))


def test_a_worker_that_dies_is_reported_with_the_remedy():
    with pytest.raises(ResourceError, match="a worker process died"):
        list(Processes(1).map(os._exit, [3], never))


TASKS = """
import os, signal, time
def patient(path):
    came = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    while not came and not path.endswith("quick"):
        time.sleep(0.01)
    if came:
        time.sleep(1)
    open(path + ".saved", "w").close()
    signal.signal(signal.SIGTERM, before)
    return path
def where(task):
    return os.getpid()
"""
MASTER = """
import sys
from nas.runs.sweep.pool import Processes
from pool_tasks import patient
if __name__ == "__main__":
    list(Processes(2).map(patient, sys.argv[1:], lambda: False))
"""


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A module that workers import fast, and files for three tasks that wait for SIGTERM."""
    (tmp_path / "pool_tasks.py").write_text(TASKS)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module("pool_tasks"), [str(tmp_path / name) for name in "abc"]


def test_processes_give_every_result_from_other_processes(tasks):
    assert sorted(Processes(2).map(abs, [-1, -2, -3, -4, -5], never)) == [1, 2, 3, 4, 5]
    places = {*Processes(2).map(tasks[0].where, range(20), never)}
    assert os.getpid() not in places
    assert 1 <= len(places) <= 2
    assert [*Processes(2).map(abs, [], never)] == []


def test_a_stop_reaches_the_tasks_at_work_and_begins_no_other(tasks, tmp_path):
    module, paths = tasks
    found = Processes(2).map(module.patient, paths, lambda: all(Path(path).is_file() for path in paths[:2]))
    assert sorted(found) == paths[:2]
    assert not (tmp_path / "c").exists()


def test_a_worker_without_a_task_survives_the_stop_of_the_others(tasks, tmp_path):
    module, (path, *_) = tasks
    quick = str(tmp_path / "quick")
    found = Processes(2).map(module.patient, [path, quick], lambda: Path(path).is_file() and Path(quick).is_file())
    assert sorted(found) == [path, quick]


def test_workers_whose_master_is_killed_save_and_end(tasks, tmp_path):
    (tmp_path / "master.py").write_text(MASTER)
    master = subprocess.Popen([sys.executable, "master.py", *tasks[1]], cwd=tmp_path, stderr=subprocess.DEVNULL)
    pids = [until(lambda name=name: (tmp_path / name).is_file() and (tmp_path / name).read_text()) for name in "ab"]
    master.kill()
    master.wait()
    for name, pid in zip("ab", pids, strict=True):
        assert until(lambda name=name: (tmp_path / f"{name}.saved").is_file())
        assert until(lambda pid=pid: not running(int(pid)))
    assert not (tmp_path / "c").exists()


def until(found, seconds=60.0):
    """Waits until something is true, and returns it."""
    end = time.monotonic() + seconds
    while not (value := found()) and time.monotonic() < end:
        time.sleep(0.05)
    return value


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# Processes and signals together


def launch(folder, *more):
    """Begins a sweep with two workers in a process group of its own."""
    words = [*map(str, command(*more, "--workers", 2, "--set", "search.epochs=60", "--out", folder, seeds=1))]
    command_line = [sys.executable, "-c", "from nas.cli import main; main()", *words]
    return subprocess.Popen(
        command_line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def searching(folder):
    """Whether two searches are at work."""
    found = [read_json(path) for path in folder.glob("*/status.json")]
    return sum(each["state"] == "running" and each["stage"] == "search" for each in found) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("send", "code"),
    [
        (lambda process: os.killpg(process.pid, signal.SIGINT), 130),  # what a terminal does
        (lambda process: os.killpg(process.pid, signal.SIGTERM), 143),
        (lambda process: process.terminate(), 143),
        (lambda process: process.kill(), -9),
    ],
    ids=["SIGINT to all", "SIGTERM to all", "SIGTERM", "SIGKILL"],
)
def test_workers_save_on_every_way_to_stop_a_sweep_and_the_same_command_goes_on(send, code, tmp_path):
    process = launch(tmp_path)
    assert until(lambda: searching(tmp_path), 120)
    send(process)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, ""), err
    if code > 0:
        assert "the same command goes on" in err.splitlines()[-1]
        assert "Traceback" not in err
    states = {path.parent.name: path for path in tmp_path.glob("*/status.json")}
    stopped = [name for name in ("softmax_seed0", "st-gs_seed0") if name in states]
    for name in stopped:
        assert until(lambda name=name: read_json(states[name])["state"] == "interrupted"), read_json(states[name])
        assert [*(tmp_path / name / "checkpoints").glob("step-*")]
    again = launch(tmp_path, "--json")
    out, err = again.communicate(timeout=600)
    assert again.returncode == 0, err
    assert "goes on from step" in err
    assert len(json.loads(out)["rows"]) == 4
