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
