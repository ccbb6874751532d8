"""Compiles kernels once per machine and version: numba's own cache would not notice a change in a file it inlines."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba import config

_SOURCES = sorted(Path(__file__).parent.glob("*.py"))
_VERSION = hashlib.sha256(b"".join(path.read_bytes() for path in _SOURCES)).hexdigest()[:16]
_HOME = config.CACHE_DIR or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "nas")

FOLDER = os.path.join(_HOME, f"kernels-{_VERSION}")
"""Where compiled kernels are kept; where it cannot be written, numba looks for another place."""


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function compiled on its first call, without Python's lock, from the cache if it is there."""
    before, config.CACHE_DIR = config.CACHE_DIR, FOLDER
    try:
        kernel: Callable[..., Any] = numba.njit(nogil=True, cache=True)(function)
    finally:
        config.CACHE_DIR = before
    return kernel


def is_compiled() -> bool:
    """Returns whether the cache holds compiled kernels of this version."""
    return next(Path(FOLDER).rglob("*.nbc"), None) is not None
