"""Checkpoints: tensors as safetensors, everything else as JSON, and a manifest of SHA-256 sums; no pickle.

    checkpoints/step-000123/{manifest.json, state.json, <group>.safetensors ...}

A checkpoint appears by one rename, so a killed process leaves whole ones only. Its bytes are a function of its content.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as tensor_bytes
from torch import Tensor, contiguous_format

from nas.errors import CheckpointError
from nas.files import json_bytes, read_json, sync_folder, write_synced, writing
from nas.optimizer_state import optimizer_tensors, restore_optimizer

__all__ = ["Checkpoint", "latest", "load", "optimizer_tensors", "restore_optimizer", "save"]

FORMAT = 1
MANIFEST, STATE, SUFFIX = "manifest.json", "state.json", ".safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """What was saved at `step`: groups of named tensors, on the CPU, and JSON."""

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, object]
    path: Path


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, object],
    keep: int = 2,
) -> Path:
    """Saves a checkpoint, then removes all but the newest `keep`; returns its folder.

    Saving an earlier step than the newest one rewinds the run: the later checkpoints go.

    Raises:
        ResourceError: The folder cannot be written; the checkpoints that were there still are.
        ValueError: `state` holds a number that is not finite.
    """
    assert keep >= 1
    assert step >= 0
    files = {f"{group}{SUFFIX}": _tensor_bytes(named) for group, named in sorted(tensors.items())}
    files[STATE] = json_bytes(state)
    manifest = json_bytes(_manifest(step, files))
    path = folder / f"step-{step:06d}"
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".step-*.tmp"):
            shutil.rmtree(leftover)
        if not _is_same(path, manifest):
            _write(path, {**files, MANIFEST: manifest})
        others = [other for other in _checkpoints(folder) if other != path]
        older = [other for other in others if _order(other) < _order(path) and not _is_aside(other)]
        for other in others:
            if other not in older[: keep - 1]:
                _discard(other)
    return path


def load(path: Path) -> Checkpoint:
    """Returns the checkpoint in a folder, every byte of it verified.

    Raises:
        CheckpointError: A file is missing, damaged, or of another version.
    """
    manifest = read_json(path / MANIFEST)
    match manifest:
        case {"format": int(), "step": int(step), "files": dict(sums), "sha256": str()}:
            rest = {key: value for key, value in manifest.items() if key != "sha256"}
        case _:
            raise _damaged(path / MANIFEST, "it is no manifest of a checkpoint")
    if manifest["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {manifest['format']}, not {FORMAT}; read it with the nas that wrote it"
        )
    if manifest["sha256"] != _sum(json_bytes(rest)):
        raise _damaged(path / MANIFEST, "its checksum differs")
    files = {name: _verified(path / name, expected) for name, expected in sums.items()}
    try:
        state = json.loads(files.pop(STATE))
        groups = {name.removesuffix(SUFFIX): read_tensors(data) for name, data in files.items()}
    except (KeyError, ValueError, SafetensorError) as error:
        raise _damaged(path, f"its content does not load: {error}") from error
    return Checkpoint(step, groups, state, path)


def latest(folder: Path) -> Checkpoint | None:
    """Returns the newest valid checkpoint, or None where there is none at all.

    Raises:
        CheckpointError: There are checkpoints, and all are damaged.
    """
    first: CheckpointError | None = None
    for path in _checkpoints(folder):
        try:
            found = load(path)
        except CheckpointError as error:
            first = first or error
            continue
        if first:
            logging.getLogger("nas").warning("resuming from the older %s: %s", path, first)
        return found
    if first:
        raise CheckpointError(f"no valid checkpoint in {folder}; start in a new run folder. Newest: {first}") from first
    return None


def _tensor_bytes(named: Mapping[str, Tensor]) -> bytes:
    # Copies: safetensors takes neither views of one storage nor other memory formats.
    plain = {name: named[name].detach().cpu().clone(memory_format=contiguous_format) for name in sorted(named)}
    return tensor_bytes(plain)


def _sum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _manifest(step: int, files: Mapping[str, bytes]) -> dict[str, object]:
    sums = {name: {"sha256": _sum(data), "size": len(data)} for name, data in files.items()}
    rest: dict[str, object] = {"files": sums, "format": FORMAT, "step": step}
    return {**rest, "sha256": _sum(json_bytes(rest))}


def _verified(path: Path, expected: object) -> bytes:
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if expected != {"sha256": _sum(data), "size": len(data)}:
        raise _damaged(path, "its size or checksum differs")
    return data


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged: {reason}; restore it, or resume from an older checkpoint")


def _write(path: Path, files: Mapping[str, bytes]) -> None:
    temporary, aside = path.with_name(f".{path.name}.tmp"), path.with_name(f"{path.name}.old")
    try:
        temporary.mkdir()
        for name, data in files.items():
            write_synced(temporary / name, data)
        sync_folder(temporary)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if path.exists():
        # A folder does not replace another in one step; between the two renames the old one loads from aside.
        if aside.exists():
            _discard(aside)
        os.rename(path, aside)
    os.rename(temporary, path)
    sync_folder(path.parent)


def _is_same(path: Path, manifest: bytes) -> bool:
    try:
        return (path / MANIFEST).read_bytes() == manifest and load(path).path == path
    except (OSError, CheckpointError):
        return False


def _order(path: Path) -> int:
    return int(path.name.removesuffix(".old").removeprefix("step-"))


def _is_aside(path: Path) -> bool:
    return path.suffix == ".old"


def _checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints, newest first, and one put aside after the one that replaced it."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+(\.old)?", path.name)]
    return sorted(found, key=lambda path: (-_order(path), _is_aside(path)))


def _discard(path: Path) -> None:
    """Removes a checkpoint; renamed first, so that no half of one is ever taken for a damaged one."""
    gone = path.with_name(f".{path.name}.tmp")
    os.rename(path, gone)
    shutil.rmtree(gone)
