"""A run that is stopped or killed anywhere, and resumed, leaves the bytes of one that was never disturbed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nas.runs.retrain import Retraining
from nas.runs.search import BilevelSearch

# Three steps an epoch, two epochs, a row of metrics within each epoch.
SETTINGS = {
    "dataset.limit": 48,
    "threads": 1,
    "search.batch_size": 16,
    "search.epochs": 2,
    "search.warmup": 0.2,
    "retrain.batch_size": 32,
    "retrain.epochs": 2,
    "retrain.seeds": 2,
    "gap.random": 1,
    "gap.decisions": 2,
    "tracking.log_every": 2,
}
STEPS = 6
NAS_BENCH = {"space": "nas-bench-201", "space.channels": 4, "space.cells_per_stage": 1}
DARTS = {"space": "darts", "space.channels": 4, "space.depth": 3, "space.nodes": 2}

# Kills itself after a number of steps, as a power cut would.
KILLED = """
import os, signal, sys
from nas.runs import retrain, search
left = int(sys.argv.pop(1))
def dying(step):
    def wrapped(self, *arguments):
        global left
        values = step(self, *arguments)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return values
    return wrapped
for training in (search.BilevelSearch, retrain.Retraining):
    training.step = dying(training.step)
from nas.cli import main
main()
"""


def flags(**settings) -> list[str]:
    return [part for key, value in {**SETTINGS, **settings}.items() for part in ("--set", f"{key}={value}")]


def products(folder: Path) -> dict[str, bytes]:
    """Everything a run leaves, but for what holds times and versions and for checkpoints before the last."""
    found = {}
    last = {path.parent: max(path.parent.iterdir()) for path in folder.rglob("step-*")}
    for path in sorted(folder.rglob("*")):
        earlier = any(path.is_relative_to(home) and not path.is_relative_to(last[home]) for home in last)
        if path.is_file() and not earlier and path.name not in ("status.json", "environment.json", ".lock"):
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def assert_same(folder: Path, expected: dict[str, bytes]) -> None:
    found = products(folder)
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def status(folder: Path) -> dict:
    return json.loads((folder / "status.json").read_text())


@pytest.fixture
def stop(monkeypatch):
    """Sends the process a signal in chosen steps: `stop(lambda count: count == 3)`, counted from 1 over all steps."""
    steps = {training: training.step for training in (BilevelSearch, Retraining)}

    def install(when, number=signal.SIGTERM):
        taken = 0

        def hooked(training):
            def step(self, *arguments):
                nonlocal taken
                taken += 1
                values = steps[training](self, *arguments)
                if when(taken):
                    signal.raise_signal(number)
                return values

            return step

        for training in steps:
            monkeypatch.setattr(training, "step", hooked(training))

    return install


def finish(nas_command, command, *, resume_with=None) -> int:
    """Runs a command again until it is done; returns how many times it was stopped."""
    for stops in range(100):
        outcome = nas_command(*(command if stops == 0 or resume_with is None else resume_with))
        if outcome.code == 0:
            return stops
        assert outcome.code == 143, outcome.err
    raise AssertionError("it does not end")


SEARCHES = {
    "st-gs": {"selector": "st-gs", **NAS_BENCH},
    "softmax": {"selector": "softmax", **NAS_BENCH},
    "darts": {"selector": "gdas", **DARTS},
    "score-cv": {"selector": "score-cv", **NAS_BENCH},  # a regression is remembered
    "relax": {"selector": "edge-gates", "selector.inner": "relax", **NAS_BENCH},  # a network and a mean are
}


@pytest.fixture(scope="module")
def undisturbed(nas_command, tmp_path_factory):
    """Searches that nobody disturbed, by name: the command without --out, and what it left."""
    found = {}

    def search(name):
        if name not in found:
            command = ["search", *flags(**SEARCHES[name])]
            folder = tmp_path_factory.mktemp("undisturbed") / "run"
            outcome = nas_command(*command, "--out", folder)
            assert outcome.code == 0, outcome.err
            assert rows(folder)[-1]["step"] == STEPS
            found[name] = command, products(folder)
        return found[name]

    return search


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_stopped_at_every_step_leaves_the_same_bytes(name, undisturbed, nas_command, stop, tmp_path):
    command, expected = undisturbed(name)
    stop(lambda count: True)
    # The last step ends the search, so a signal there stops nothing.
    assert finish(nas_command, [*command, "--out", tmp_path / "run"]) == STEPS - 1
    assert_same(tmp_path / "run", expected)


@pytest.mark.parametrize("step", [1, 2, 3, 6], ids=["first", "within an epoch", "end of an epoch", "last"])
@pytest.mark.parametrize("name", ["st-gs", *(pytest.param(name, marks=pytest.mark.slow) for name in [*SEARCHES][1:])])
def test_a_search_stopped_once_leaves_the_same_bytes(name, step, undisturbed, nas_command, stop, tmp_path):
    command, expected = undisturbed(name)
    stop(lambda count: count == step)
    stops = finish(nas_command, [*command, "--out", tmp_path / "run"], resume_with=["resume", tmp_path / "run"])
    assert stops == (step < STEPS)
    assert_same(tmp_path / "run", expected)


@pytest.mark.parametrize("name", SEARCHES)
def test_one_command_twice_leaves_the_same_bytes(name, undisturbed, nas_command, tmp_path):
    command, expected = undisturbed(name)
    assert nas_command(*command, "--out", tmp_path / "run").code == 0
    assert_same(tmp_path / "run", expected)


RETRAININGS = {
    "nas-bench-201": (NAS_BENCH, "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|none~1|nor_conv_1x1~2|"),
    "darts": (
        {**DARTS, "retrain.drop_path": 0.4, "retrain.auxiliary_weight": 0.4},
        "Genotype("
        "normal=[('sep_conv_3x3', 0), ('dil_conv_5x5', 1), ('skip_connect', 0), ('max_pool_3x3', 2)], "
        "normal_concat=[2, 3], "
        "reduce=[('sep_conv_5x5', 0), ('avg_pool_3x3', 1), ('skip_connect', 1), ('skip_connect', 2)], "
        "reduce_concat=[2, 3])",
    ),
}


@pytest.mark.parametrize("name", RETRAININGS)
def test_a_retraining_stopped_at_every_step_leaves_the_same_bytes(name, nas_command, stop, tmp_path):
    settings, genotype = RETRAININGS[name]
    command = ["retrain", genotype, *flags(**settings)]
    outcome = nas_command(*command, "--out", tmp_path / "undisturbed")
    assert outcome.code == 0, outcome.err
    expected = products(tmp_path / "undisturbed")
    stop(lambda count: True)
    # The last step of a seed stops the next seed after its first step; that of the last seed stops nothing.
    assert finish(nas_command, [*command, "--out", tmp_path / "run"]) == 2 * STEPS - 2
    assert_same(tmp_path / "run", expected)


@pytest.fixture(scope="module")
def whole(nas_command, tmp_path_factory):
    """All four stages, undisturbed: the command without --out, the folder, and what it printed."""
    command = ["run", "--json", *flags(**NAS_BENCH, checkpoint_seconds=0)]
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    outcome = nas_command(*command, "--out", folder)
    assert outcome.code == 0, outcome.err
    return command, folder, outcome.out


def test_all_stages_stopped_again_and_again_leave_the_same_bytes(whole, nas_command, stop, tmp_path):
    command, folder, _ = whole
    stop(lambda count: count % 5 == 0)
    again = tmp_path / "run"
    assert finish(nas_command, [*command, "--out", again], resume_with=["resume", again]) > 3
    assert_same(again, products(folder))
    seen = [(row["stage"], row["step"]) for row in rows(again)]
    assert len(seen) == len(set(seen))


def test_all_stages_killed_and_started_again_leave_the_same_bytes(whole, nas_command, tmp_path):
    command, folder, _ = whole
    again = tmp_path / "run"
    for steps in (4, 6):  # within the search, and within the first retraining
        killed = subprocess.run([sys.executable, "-c", KILLED, str(steps), *command, "--out", again], env=os.environ)
        assert killed.returncode == -signal.SIGKILL
        assert status(again)["state"] == "running"
    assert nas_command(*command, "--out", again).code == 0
    assert_same(again, products(folder))


@pytest.mark.parametrize("again", ["the same command", "nas resume"])
def test_a_finished_command_prints_its_result_again_and_trains_nothing(whole, again, nas_command, stop, monkeypatch):
    command, folder, printed = whole

    def refuse(*arguments):
        raise AssertionError("it trains")

    for training in (BilevelSearch, Retraining):
        monkeypatch.setattr(training, "step", refuse)
    kept = ("checkpoints", "retrain", "genotype.json", "gap.json", "metrics.jsonl", "search.json")
    paths = [path for name in kept for path in [folder / name, *(folder / name).rglob("*")]]
    before = {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in paths}
    outcome = nas_command(*(["resume", folder, "--json"] if again == "nas resume" else [*command, "--out", folder]))
    assert (outcome.code, outcome.out) == (0, printed)
    assert {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in paths} == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_after_the_step_and_says_how_to_go_on(number, code, nas_command, stop, tmp_path):
    folder = tmp_path / "run"
    stop(lambda count: count == 2, number)
    outcome = nas_command("search", *flags(**NAS_BENCH), "--out", folder)
    assert outcome.code == code
    assert outcome.out == ""
    assert f"nas resume {folder}" in outcome.err
    assert "Traceback" not in outcome.err
    found = status(folder)
    assert (found["state"], found["stage"], found["step"]) == ("interrupted", "search", 2)
    assert f"nas resume {folder}" in found["message"]
    assert (folder / "checkpoints" / "step-000002").is_dir()
    assert nas_command("resume", folder).code == 0
    assert status(folder)["state"] == "done"


def test_a_signal_between_the_step_and_the_end_of_the_loop_loses_nothing(nas_command, monkeypatch, tmp_path):
    """The signal comes when the loop has already decided not to save."""
    from nas.runs import training

    real, asked = training.time.monotonic, 0

    def monotonic():
        nonlocal asked
        asked += 1
        if asked == 3:  # the start of the loop, the first step, the second
            signal.raise_signal(signal.SIGTERM)
        return real()

    monkeypatch.setattr(training, "time", type("clock", (), {"monotonic": staticmethod(monotonic)}))
    outcome = nas_command("search", *flags(**NAS_BENCH), "--out", tmp_path / "run")
    assert outcome.code == 143
    reached = status(tmp_path / "run")["step"]
    assert (tmp_path / "run" / "checkpoints" / f"step-{reached:06d}").is_dir()


def test_a_damaged_last_checkpoint_costs_steps_and_no_bits(undisturbed, nas_command, stop, tmp_path):
    command, expected = undisturbed("st-gs")
    folder = tmp_path / "run"
    stop(lambda count: count in (2, 4))
    command = [*command, "--out", folder]
    assert [nas_command(*command).code for _ in range(2)] == [143, 143]
    state = folder / "checkpoints" / "step-000004" / "state.json"
    state.write_bytes(state.read_bytes()[:-20])
    assert nas_command(*command).code == 0
    assert_same(folder, expected)
