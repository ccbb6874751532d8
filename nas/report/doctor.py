"""Examines the installation and the machine, for `nas doctor`."""

import os
import platform
import tempfile
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import Any

from nas import registry

PACKAGES = (
    "numpy",
    "torchvision",
    "safetensors",
    "networkx",
    "numba",
    "sklearn",
    "scipy",
    "wandb",
    "rich",
    "pydantic",
    "yaml",
)
GROUPS = ("nas.selectors", "nas.search_spaces", "nas.datasets")


def examine() -> list[dict[str, Any]]:
    """Returns one finding per check: what was checked, what was found, and whether it is in order."""
    checks: dict[str, Callable[[], str]] = {
        "python": platform.python_version,
        "nas": lambda: version("diffnas"),
        "torch": _torch,
        "device": _device,
        "processor": _processor,
        **{package: partial(_package, package) for package in PACKAGES},
        **{group: partial(_plugins, group) for group in GROUPS},
        "folder for runs": _writable,
        "wandb mode": lambda: os.environ.get(
            "WANDB_MODE", "as configured (offline unless tracking.wandb says otherwise)"
        ),
    }
    findings = []
    for check, find in checks.items():
        try:
            findings.append({"check": check, "finding": find(), "ok": True})
        except Exception as error:
            findings.append({"check": check, "finding": f"{type(error).__name__}: {error}", "ok": False})
    return findings


def _torch() -> str:
    import torch

    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    if (major, minor) < (2, 11):
        raise RuntimeError(f"torch {torch.__version__} is too old; install torch >= 2.11")
    return str(torch.__version__)


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return f"cuda: {torch.cuda.get_device_name()}"
    return "mps" if torch.backends.mps.is_available() else "cpu (no GPU found)"


def _processor() -> str:
    import torch

    return f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"


def _package(name: str) -> str:
    return str(getattr(import_module(name), "__version__", "installed"))


def _plugins(group: str) -> str:
    names = registry.names(group)
    for name in names:
        registry.load(group, name)
    if not names:
        raise RuntimeError("no entry points; install the package: pip install -e .")
    return ", ".join(names)


def _writable() -> str:
    folder = "runs" if os.path.isdir("runs") else "."
    with tempfile.TemporaryFile(dir=folder):
        return f"{os.path.abspath('runs')} can be written"
