"""Files that are either the old or the new version, never half of one: temporary file, fsync, rename.

One process writes a file at a time; `nas.status.lock` sees to that within a run folder.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from nas.errors import CheckpointError, ResourceError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an `OSError` (disk full, no permission) into a `ResourceError` that names `path`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise ResourceError(f"cannot write {path}: {reason}; free some space or choose another folder") from error


def json_bytes(data: object) -> bytes:
    """Returns `data` as JSON with sorted keys, so equal data give equal bytes.

    Raises:
        ValueError: A number is not finite; JSON has no word for it.
    """
    return (json.dumps(data, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def write_synced(path: Path, data: bytes) -> None:
    """Writes `data` and waits until it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Waits until the names in a folder are on the disk: a rename survives a power cut only after this."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes) -> None:
    """Replaces the file at `path`; a reader, or a crash, finds the old or the new bytes."""
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        try:
            write_synced(temporary, data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def write_json(path: Path, data: object) -> None:
    """Writes `data` atomically, with sorted keys and no number that is not finite."""
    write_atomic(path, json_bytes(data))


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file.

    Raises:
        CheckpointError: The file is missing, cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_bytes(), parse_constant=_refuse)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; restore the file or start in a new run folder") from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
