"""Settings for all tests: no wandb, one thread per worker, a generator."""

import os

os.environ.setdefault("WANDB_MODE", "disabled")  # a test that wants wandb says so
os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers share the cores

import pytest
import torch


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
