"""Metrics that survive a crash byte for byte, and a wandb that cannot touch a run."""

import json
import logging
import os
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from nas.errors import CheckpointError, ResourceError
from nas.tracking import Tracker, Tracking

OFF = Tracking(wandb="disabled")


def tracker(folder: Path, settings: Tracking = OFF) -> Tracker:
    return Tracker(folder, settings, {"seed": 1}, "name")


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_rows_are_json_lines_without_time(tmp_path):
    with tracker(tmp_path) as metrics:
        metrics.log("search", 10, loss=0.5, accuracy=95, note="ä", nothing=None)
        metrics.log("search", 20, loss=float("nan"), rate=float("inf"))
        assert (tmp_path / "metrics.jsonl").read_text().splitlines() == [
            r'{"stage": "search", "step": 10, "loss": 0.5, "accuracy": 95, "note": "\u00e4", "nothing": null}',
            '{"stage": "search", "step": 20, "loss": null, "rate": null}',
        ]


def test_a_resumed_run_leaves_the_bytes_of_an_uninterrupted_one(tmp_path):
    straight, resumed = tmp_path / "a", tmp_path / "b"
    for folder in (straight, resumed):
        folder.mkdir()

    def search(metrics: Tracker, start: int, stop: int) -> None:
        for step in range(start + 1, stop + 1):
            metrics.log("search", step, loss=1 / step)

    with tracker(straight) as metrics:
        metrics.log("prepare", 90, images=3)
        search(metrics, 0, 30)
    with tracker(resumed) as metrics:
        metrics.log("prepare", 90, images=3)
        search(metrics, 0, 17)
    with (resumed / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "search", "st')  # killed while it wrote
    with tracker(resumed) as metrics:
        metrics.rewind("search", 12)
        search(metrics, 12, 30)
    assert (resumed / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()
    assert [path.name for path in resumed.iterdir()] == ["metrics.jsonl"]


def test_a_torn_last_line_goes_even_without_rewind(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"stage": "search", "step": 1}\n{"stage"')
    with tracker(tmp_path) as metrics:
        metrics.log("search", 2)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]


@pytest.mark.parametrize("line", ["\0\0\0", "[]", '"text"'])
def test_a_line_that_is_no_row_is_reported(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{line}\n{{"stage": "search", "step": 1}}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl"):
        tracker(tmp_path).rewind("search", 0)


def test_a_folder_that_cannot_be_written_is_reported(tmp_path):
    with pytest.raises(ResourceError, match=r"metrics\.jsonl"):
        tracker(tmp_path / "missing").log("search", 1)


def test_log_every_must_be_positive():
    with pytest.raises(ValueError, match=r"^log_every must be at least 1, got 0"):
        Tracking(log_every=0)


# --- wandb


class FakeWandb(ModuleType):
    """Records its calls, reseeds everything, prints, and fails with `error` at `point`."""

    def __init__(self, point: str = "", error: BaseException | None = None) -> None:
        super().__init__("wandb")
        self.point, self.error = point, error
        self.calls: list[tuple[str, object]] = []
        self.Settings = SimpleNamespace

    def _call(self, name: str, value: object = None) -> None:
        print("noise")
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        self.calls.append((name, value))
        if name == self.point and self.error:
            raise self.error

    def init(self, **arguments: object) -> "FakeWandb":
        self._call("init", arguments)
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        self._call("define_metric", (name, step_metric))

    def log(self, row: dict[str, object]) -> None:
        self._call("log", row)

    def finish(self, exit_code: int) -> None:
        self._call("finish", exit_code)


@pytest.fixture
def install(monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)

    def put(module: ModuleType | None) -> None:
        monkeypatch.setitem(sys.modules, "wandb", module)

    return put


def test_rows_reach_wandb_with_their_steps(tmp_path, install):
    install(fake := FakeWandb())
    with tracker(tmp_path, Tracking(project="mine")) as metrics:
        metrics.log("search", 10, loss=0.5, nothing=None)
        metrics.log("retrain", 1, loss=float("nan"))
    (_, arguments), *calls = fake.calls
    assert arguments["mode"] == "offline"
    assert (arguments["project"], arguments["name"], arguments["config"]) == ("mine", "name", {"seed": 1})
    assert (arguments["dir"], arguments["resume"]) == (str(tmp_path), "allow")
    assert calls == [
        ("define_metric", ("search/*", "search/step")),
        ("log", {"search/step": 10, "search/loss": 0.5}),
        ("define_metric", ("retrain/*", "retrain/step")),
        ("log", {"retrain/step": 1}),
        ("finish", 0),
    ]


def test_a_resumed_run_has_the_same_wandb_id_and_another_folder_another(tmp_path, install, monkeypatch):
    install(fake := FakeWandb())
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, Path("."), tmp_path / "other"):
        tracker(folder, Tracking())
    first, second, third = (arguments["id"] for _, arguments in fake.calls)
    assert first == second != third


@pytest.mark.parametrize("error", [RuntimeError("broken"), SystemExit(3), OSError("disk full")])
@pytest.mark.parametrize("point", ["init", "define_metric", "log", "finish"])
def test_a_failing_wandb_is_dropped_after_one_line(tmp_path, install, caplog, point, error):
    install(fake := FakeWandb(point, error))
    with caplog.at_level(logging.WARNING, logger="nas"), tracker(tmp_path, Tracking()) as metrics:
        metrics.log("search", 1)
        metrics.log("search", 2)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]
    assert fake.calls[-1][0] == point
    assert len(caplog.records) == 1
    assert type(error).__name__ in caplog.text


def test_a_missing_wandb_is_dropped_after_one_line(tmp_path, install, caplog):
    install(None)
    with caplog.at_level(logging.WARNING, logger="nas"), tracker(tmp_path, Tracking()) as metrics:
        metrics.log("search", 1)
    assert len(rows(tmp_path)) == len(caplog.records) == 1


def test_a_second_control_c_gets_through_wandb(tmp_path, install):
    install(FakeWandb("log", KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt), tracker(tmp_path, Tracking()) as metrics:
        metrics.log("search", 1)


@pytest.mark.parametrize("point", ["", "init", "log", "finish"])
def test_wandb_disturbs_neither_random_numbers_nor_stdout(tmp_path, install, capsys, point):
    def draws() -> list[float]:
        return [random.random(), np.random.rand(), torch.rand(()).item()]

    def run(folder: Path, settings: Tracking) -> list[float]:
        random.seed(5), np.random.seed(5), torch.manual_seed(5)
        folder.mkdir()
        seen = draws()
        with tracker(folder, settings) as metrics:
            for step in range(3):
                metrics.log("search", step)
                seen += draws()
        return seen + draws()

    install(FakeWandb(point, RuntimeError()))
    assert run(tmp_path / "with", Tracking()) == run(tmp_path / "without", OFF)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("configured", "variable", "expected"),
    [
        ("offline", "disabled", None),
        ("online", "disabled", None),
        ("online", "offline", "offline"),
        ("offline", "online", "offline"),
        ("online", "", "online"),
        ("disabled", "online", None),
    ],
)
def test_the_quieter_of_configuration_and_environment_counts(
    tmp_path, install, monkeypatch, configured, variable, expected
):
    install(fake := FakeWandb())
    monkeypatch.setenv("WANDB_MODE", variable)
    tracker(tmp_path, Tracking(wandb=configured))
    assert [arguments["mode"] for _, arguments in fake.calls] == ([expected] if expected else [])


REAL = """
import random, signal, sys
from pathlib import Path
import numpy as np, torch
from nas.progress import StopRequest
from nas.tracking import Tracker, Tracking

def states():
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), handlers

with StopRequest() as stop:
    before = states()
    with Tracker(Path(sys.argv[1]), Tracking(), {"seed": 1}, "name") as tracker:
        for step in range(5):
            tracker.log("search", step, loss=0.5)
        assert states() == before
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested == signal.SIGTERM
    assert states() == before
"""


@pytest.mark.slow
def test_the_real_wandb_keeps_quiet_and_writes_into_the_run_folder(tmp_path):
    pytest.importorskip("wandb")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    for _ in range(2):  # the second time is a resumed run
        done = subprocess.run(
            [sys.executable, "-c", REAL, str(tmp_path)], capture_output=True, text=True, timeout=120, env=environment
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    files = list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert files
    assert len({file.name for file in files}) == 1
