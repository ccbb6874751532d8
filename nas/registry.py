"""Finds selectors, search spaces, datasets and other named parts through entry points, or in a user's own file.

A reference is a registered name (`st-gs`), a class in a file (`my_space.py:MySpace`) or one in an importable module
(`package.module:MySpace`).
"""

import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from nas.errors import ConfigError


@cache
def entries(group: str) -> Sequence[EntryPoint]:
    """Returns the entry points of a group; read once, for it takes as long as a small training step."""
    return tuple(entry_points(group=group))


def names(group: str) -> list[str]:
    """Returns the registered names of a group, e.g. `nas.selectors`, in alphabetical order."""
    return sorted({entry.name for entry in entries(group)})


def did_you_mean(name: str, accepted: Iterable[str]) -> str:
    """Returns a sentence with the nearest match, if one is near, and the accepted names."""
    accepted = sorted(accepted)
    near = difflib.get_close_matches(name, accepted, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}accepted: {', '.join(accepted) or 'none'}"


def load(group: str, reference: str) -> type:
    """Returns the class that `reference` names.

    Raises:
        ConfigError: No such name, file, module or class; the message gives the nearest match.
    """
    if ":" in reference:
        return _from_reference(reference)
    found = [entry for entry in entries(group) if entry.name == reference]
    if not found:
        kind = group.removeprefix("nas.").replace("_", " ").removesuffix("s")
        raise ConfigError(f"unknown {kind} {reference!r}: {did_you_mean(reference, names(group))}")
    return _load_entry(found[0])


def name_of(group: str, cls: type) -> str:
    """Returns the reference under which `load` finds `cls` again."""
    here = f"{cls.__module__}:{cls.__qualname__}"
    for entry in entries(group):
        if entry.value == here:
            return entry.name
    file = getattr(sys.modules.get(cls.__module__), "__nas_plugin__", None)
    return f"{file}:{cls.__qualname__}" if file else here


def _load_entry(entry: EntryPoint) -> type:
    try:
        loaded = entry.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"the plug-in {entry.name!r} ({entry.value}) does not load: {error}") from error
    if not isinstance(loaded, type):
        raise ConfigError(f"the plug-in {entry.name!r} ({entry.value}) is no class")
    return loaded


def _from_reference(reference: str) -> type:
    place, _, name = reference.rpartition(":")
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    found = getattr(module, name, None)
    if not isinstance(found, type):
        classes = [key for key, value in vars(module).items() if isinstance(value, type)]
        raise ConfigError(f"{place} has no class {name!r}: {did_you_mean(name, classes)}")
    return found


def _import_module(place: str) -> object:
    try:
        return importlib.import_module(place)
    except Exception as error:  # whatever the user's module raises
        remedy = "give a registered name, file.py:Class or module:Class"
        raise ConfigError(f"cannot import {place!r}: {type(error).__name__}: {error}; {remedy}") from error


def _import_file(path: Path) -> object:
    path = path.expanduser().resolve()
    name = f"nas_plugin_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise ConfigError(f"no file {path}; give the path of a Python file and the class in it, file.py:Class")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    module.__dict__["__nas_plugin__"] = str(path)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"{path} does not import: {type(error).__name__}: {error}") from error
    return module
