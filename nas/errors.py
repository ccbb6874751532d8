"""Errors that a user can mend, each with the exit code of the command line.

A message names the setting, the value and the remedy. Whatever is no `NasError` is a bug of ours (exit code 1).
"""

from typing import ClassVar


class NasError(Exception):
    """Base of every error that is reported without a traceback."""

    exit_code: ClassVar[int] = 1


class ConfigError(NasError, ValueError):
    """A setting, name, type, genotype or search space is wrong."""

    exit_code = 2


class DataError(NasError):
    """A dataset is missing, damaged or inconsistent."""

    exit_code = 3


class CheckpointError(NasError):
    """A checkpoint or run folder is missing, damaged or belongs to other work."""

    exit_code = 4


class ResourceError(NasError):
    """A device, memory, or a place to write is missing."""

    exit_code = 5


class NumericsError(NasError):
    """A loss or a parameter is no longer finite."""

    exit_code = 6


class LockedError(NasError):
    """Another process works in the run folder."""

    exit_code = 7


class Interrupted(NasError):
    """Stopped by a signal after the state was saved."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


def require_at_least(config: object, least: float, *names: str) -> None:
    """Raises ValueError unless these settings of a configuration are at least `least`."""
    for name in names:
        if getattr(config, name) < least:
            raise ValueError(f"{name} must be at least {least:g}, got {getattr(config, name):g}")
