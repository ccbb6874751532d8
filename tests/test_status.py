"""One process per run folder, and a status that can be read at any moment."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from nas import status as module
from nas.errors import Interrupted, LockedError, NumericsError, ResourceError
from nas.status import Status, lock

HOLD = """
import sys, time
from pathlib import Path
from nas.status import lock
with lock(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_told_who_holds_the_folder_and_kill_9_frees_it(tmp_path):
    folder = tmp_path / "runs" / "mine"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(LockedError, match=f"mine is in use by process {holder.pid}") as caught, lock(folder):
            pass
        assert caught.value.exit_code == 7
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()
    with lock(folder):
        pass


def test_a_folder_cannot_be_locked_twice_in_one_process(tmp_path):
    with lock(tmp_path):
        with pytest.raises(LockedError, match=f"by process {os.getpid()}"), lock(tmp_path):
            pass
        with lock(tmp_path / "another"):
            pass
    with lock(tmp_path):
        pass


def test_an_error_frees_the_folder(tmp_path):
    with pytest.raises(RuntimeError), lock(tmp_path):
        raise RuntimeError
    with lock(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="cannot write"), lock(tmp_path / "file" / "run"):
        pass


def read(folder):
    return json.loads((folder / "status.json").read_text())


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets: `clock[0] += 1`; the process works half of the time."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.time, "process_time", lambda: now[0] / 2)
    return now


def test_the_status_says_how_far_the_run_is(tmp_path, clock):
    with Status(tmp_path, "run") as status:
        assert read(tmp_path)["state"] == "running"
        status.update("search", 0, 10)
        clock[0] += 0.5
        status.update("search", 1, 10)
        assert read(tmp_path)["step"] == 0  # at most once a second
        status.update("search", 1, 10, force=True)
        assert read(tmp_path)["step"] == 1
        clock[0] += 1.5
        status.update("search", 2, 10, message="fine")
        found = read(tmp_path)
        assert found.pop("updated")
        assert found == {
            "command": "run",
            "state": "running",
            "stage": "search",
            "step": 2,
            "steps": 10,
            "message": "fine",
            "pid": os.getpid(),
            "seconds": {"search": 2.0},
            "cpu_seconds": {"search": 1.0},
        }
        status.update("retrain", 0, 5)
        clock[0] += 0.25
    assert read(tmp_path)["state"] == "done"
    assert read(tmp_path)["seconds"] == {"search": 2.0, "retrain": 0.25}
    assert read(tmp_path)["cpu_seconds"] == {"search": 1.0, "retrain": 0.125}


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (Interrupted("stopped at step 3", signal.SIGINT), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
        (NumericsError("the loss is NaN"), "failed"),
        (SystemExit(1), "failed"),
    ],
)
def test_the_status_says_how_the_run_ended(tmp_path, error, state):
    with pytest.raises(type(error)), Status(tmp_path, "search"):
        raise error
    assert read(tmp_path)["state"] == state
    assert read(tmp_path)["message"] == (str(error) or "KeyboardInterrupt")


def test_seconds_add_up_over_resumed_runs(tmp_path, clock):
    for expected in (2.0, 4.0):
        with Status(tmp_path, "search") as status:
            clock[0] += 7  # before the first stage: nobody's
            status.update("search", 0, 10)
            clock[0] += 2
            assert status.spent("search", cpu=False) == expected
            assert status.spent("search", cpu=True) == expected / 2
            assert status.spent("retrain", cpu=True) == 0
        assert read(tmp_path)["seconds"] == {"search": expected}
        assert read(tmp_path)["cpu_seconds"] == {"search": expected / 2}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"seconds": 3}'])
def test_a_damaged_status_does_not_stop_a_run(tmp_path, content):
    (tmp_path / "status.json").write_text(content)
    with Status(tmp_path, "search"):
        pass
    assert read(tmp_path)["state"] == "done"


def test_a_full_disk_does_not_hide_what_happened_first(tmp_path):
    status = Status(tmp_path, "search")
    (tmp_path / "status.json").mkdir()  # a name that no file can take
    with pytest.raises(ResourceError):
        status.update("search", 0, 1)
    status.__exit__(NumericsError, NumericsError("the loss is NaN"), None)


def test_a_reader_never_sees_half_a_status(tmp_path):
    def write():
        with Status(tmp_path, "search") as status:
            for step in range(300):
                status.update("search", step, 300, message="x" * (step * 37 % 5000), force=True)

    with Status(tmp_path, "search"):
        pass
    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        assert read(tmp_path)["command"] == "search"
    writer.join()
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]
