"""Progress goes to stderr only, and a signal waits for the end of a step."""

import io
import signal
import sys
import threading

import pytest

from nas import progress as module
from nas.progress import Progress, StopRequest


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets: `clock[0] += 1`."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_progress_is_a_line_now_and_then_on_stderr(capsys, clock):
    with Progress(360, "search") as progress:
        for step in range(1, 131):
            progress.update(step, train_loss=0.41234, select=95.2, note="[x]")
            clock[0] += 0.125
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        f"search  {step}/360  train loss 0.4123  select 95.2  note [x]" for step in (1, 41, 81, 121, 130)
    ]


def test_the_last_step_is_shown_once(capsys, clock):
    with Progress(3, "search", start=1) as progress:
        progress.update(2)
        progress.update(3)
    assert capsys.readouterr().err.splitlines() == ["search  2/3", "search  3/3"]


def test_nothing_to_say_is_not_said(capsys):
    with Progress(3, "search", start=3):
        pass
    with Progress(3, "search", quiet=True) as progress:
        progress.update(3)
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_progress_is_a_bar_on_stderr(capsys, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    threads = threading.active_count()
    with Progress(10, "[search]") as progress:
        progress.update(10, loss=0.5)
        print("result")
        assert threading.active_count() == threads
    assert capsys.readouterr().out == "result\n"
    assert "[search]" in sys.stderr.getvalue()
    assert "10/10" in sys.stderr.getvalue()
    assert "loss 0.5" in sys.stderr.getvalue()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_nothing_else(number):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert stop.requested is None
        signal.raise_signal(number)
        assert stop.requested == number
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested == number  # the first one
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("first", [[signal.SIGINT], [signal.SIGTERM, signal.SIGINT]])
def test_a_second_sigint_interrupts_at_once(first):
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        for number in first:
            signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.requested == first[0]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_request_inside_another_is_made_to_both():
    with StopRequest() as outer:
        with StopRequest() as inner:
            signal.raise_signal(signal.SIGTERM)
            assert (inner.requested, outer.requested) == (signal.SIGTERM, signal.SIGTERM)
        with StopRequest() as later:
            assert later.requested == signal.SIGTERM  # what came before it began counts
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)


def test_another_thread_leaves_the_handlers_alone():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with StopRequest() as stop:
            seen.append((signal.getsignal(signal.SIGINT), stop.requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, None)]
