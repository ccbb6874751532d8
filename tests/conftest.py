"""Settings for all tests: no wandb, one thread per worker, a generator, the command line."""

import os

os.environ.setdefault("WANDB_MODE", "disabled")  # a test that wants wandb says so
os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers share the cores

import io
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest.mock import patch

import pytest
import torch

from nas.cli import main


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@dataclass(frozen=True)
class Outcome:
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def nas_command() -> Callable[..., Outcome]:
    """Runs the command line in this process: `nas_command("search", "--epochs", 1)`."""

    def run(*arguments: object) -> Outcome:
        out, err = io.StringIO(), io.StringIO()
        code = 0
        with patch.object(sys, "argv", ["nas", *map(str, arguments)]), redirect_stdout(out), redirect_stderr(err):
            try:
                main()
            except SystemExit as ended:
                code = ended.code
        return Outcome(code, out.getvalue(), err.getvalue())

    return run


SMALL_SPACES = {
    "nas-bench-201": {"channels": 4, "cells_per_stage": 1},
    "darts": {"channels": 4, "depth": 3, "nodes": 2},
    "chain": {"channels": 4, "stages": 2},
}


@pytest.fixture
def searching(tmp_path):
    """Begins searches, each as it is before the first of its three steps: `searching("darts", "oles")`."""
    from nas.runs.pipeline import configure
    from nas.runs.search import BilevelSearch
    from nas.runs.session import session

    opened = []

    def begin(space, *modifiers, selector="softmax", backend="auto", **search):
        config = configure(
            space={"name": space, **SMALL_SPACES[space]} if isinstance(space, str) else space,
            selector=selector,
            dataset={"limit": 32},
            search={"epochs": 3, "batch_size": 32, "warmup": 0, "modifiers": list(modifiers), **search},
            tracking={"wandb": "disabled"},
            engine={"backend": backend},
            threads=1,
        )
        opened.append(session(tmp_path / f"run-{len(opened)}", config, "search", quiet=True))
        return BilevelSearch(opened[-1].__enter__())

    yield begin
    for each in reversed(opened):  # each gives back the signal handlers it found
        each.__exit__(None, None, None)
