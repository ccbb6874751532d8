"""The run folder: what a run was asked to do and what it has reached."""

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from nas import registry
from nas.config import build, differences, dump, read_yaml
from nas.errors import CheckpointError, ConfigError
from nas.files import read_json, write_atomic, write_json, writing
from nas.runs.configuration import MEANING, Config
from nas.space import Genotype
from nas.status import lock

PRODUCTS = {"search": "checkpoints", "derive": "genotype.json", "retrain": "retrain", "gap": "gap.json"}
"""What each stage leaves in the run folder, in order."""

STAGES = tuple(PRODUCTS)


@dataclass(frozen=True)
class Run:
    """A run folder with its configuration.

    Attributes:
        folder: Where it is.
        config: What was asked.
    """

    folder: Path
    config: Config

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """Returns the run in a folder.

        Raises:
            CheckpointError: The folder holds no run.
        """
        if not (folder / "config.yaml").is_file():
            raise CheckpointError(f"{folder} is no run folder (it has no config.yaml); see `nas search --help`")
        return cls(folder, build(Config, [read_yaml(folder / "config.yaml")]))

    @classmethod
    def begin(cls, folder: Path, config: Config, genotype: Genotype | None = None, *, remeasure: bool = False) -> "Run":
        """Returns the run in a folder, new or to be resumed.

        Args:
            folder: Where.
            config: What is asked.
            genotype: What to retrain, where it does not come from a search in this folder.
            remeasure: Whether a gap that was measured otherwise goes, to be measured again, and is no reason to refuse.

        Raises:
            ConfigError: The folder holds results of other settings; the message lists the difference.
            ResourceError: The folder cannot be written.
            LockedError: Another process works in it.
        """
        run = cls(folder, config)
        if genotype:
            config.space.require(genotype)
        with lock(folder):
            run.check(genotype, remeasure=remeasure)
            if remeasure and (folder / PRODUCTS["gap"]).is_file():
                before = Run.open(folder).config
                if any(getattr(before, section) != getattr(config, section) for section in MEANING["gap"]):
                    (folder / PRODUCTS["gap"]).unlink()
            run.write()
            if genotype:
                run.write_genotype(genotype)
        return run

    def check(self, genotype: Genotype | None = None, *, remeasure: bool = False) -> None:
        """Raises ConfigError if the folder holds results of other settings, or of another genotype than this.

        With `remeasure` the gap may have been measured with any.
        """
        if (self.folder / "config.yaml").is_file():
            before = Run.open(self.folder)
            done = {stage for stage, product in PRODUCTS.items() if (self.folder / product).exists()}
            bound = done - {"gap"} if remeasure else done
            _refuse(self.folder, before.config, self.config, {part for stage in bound for part in MEANING[stage]})
            if genotype and "derive" in done and before.genotype() != genotype:
                raise ConfigError(f"{self.folder} holds another genotype; choose another --out")

    def change(self, config: Config) -> "Run":
        """Returns the run with other settings for the stages after the search, which must not change.

        Raises:
            ConfigError: The search was done with other settings, or the genotype is not of the space asked for.
            LockedError: Another process works in the folder.
        """
        changed = replace(self, config=config)
        if config == self.config:
            return changed
        with lock(self.folder):
            if (self.folder / PRODUCTS["search"]).exists():
                _refuse(self.folder, self.config, config, set(MEANING["search"]))
            if (self.folder / PRODUCTS["derive"]).is_file():
                changed.genotype()
            changed.write()
            sections = {section for stage in MEANING.values() for section in stage}
            if any(getattr(config, section) != getattr(self.config, section) for section in sections):
                (self.folder / PRODUCTS["gap"]).unlink(missing_ok=True)  # it was measured under other settings
        return changed

    def write(self) -> None:
        """Writes `config.yaml` and `environment.json`."""
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.folder / "config.yaml", dump(self.config).encode())
        write_json(self.folder / "environment.json", environment())

    def genotype(self) -> Genotype:
        """Returns the derived genotype.

        Raises:
            CheckpointError: None was derived.
        """
        path = self.folder / PRODUCTS["derive"]
        if not path.is_file():
            raise CheckpointError(f"{self.folder} has no genotype; derive one with: nas derive {self.folder}")
        genotype = Genotype.from_json(path.read_text())
        self.config.space.require(genotype)
        return genotype

    def write_genotype(self, genotype: Genotype, cost: Sequence[Mapping[str, Any]] = ()) -> None:
        """Writes `genotype.json`: the cells, the space's own text, and what the genotype costs against a target.

        A gap measured for another genotype goes.
        """
        path = self.folder / PRODUCTS["derive"]
        if path.is_file() and Genotype.from_json(path.read_text()) != genotype:
            (self.folder / PRODUCTS["gap"]).unlink(missing_ok=True)
        against = {"cost": cost} if cost else {}
        write_json(path, {"cells": genotype.cells, "text": self.config.space.format(genotype), **against})

    def gap(self) -> dict[str, object] | None:
        """Returns the gap report, if there is one."""
        path = self.folder / PRODUCTS["gap"]
        return read_json(path) if path.is_file() else None


def default_folder(config: Config, genotype: Genotype | None = None) -> Path:
    """Returns `runs/<space>_<dataset>_<selector>_seed<n>_<hash>`; the hash is of the settings of the search.

    For retraining a given genotype, `runs/<space>_<dataset>_retrain_seed<n>_<hash>` with a hash of genotype and recipe.
    """
    parts = [
        registry.name_of(part.registry, type(part)).rpartition(":")[2]
        for part in (config.space, config.dataset, config.selector)
    ]
    meaning = [repr(getattr(config, section)) for section in MEANING["retrain" if genotype else "search"]]
    if genotype:
        parts[2] = "retrain"
        meaning.append(genotype.to_json())
    mark = sha256("\n".join(meaning).encode()).hexdigest()[:6]
    return Path("runs") / "_".join([*parts, f"seed{config.seed}", mark])


def environment() -> dict[str, object]:
    """Returns the versions and the machine on which results depend."""
    packages = ("diffnas", "torch", "torchvision", "numpy", "wandb")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {name: _version(name) for name in packages},
        "command": sys.argv,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _refuse(folder: Path, before: Config, after: Config, sections: set[str]) -> None:
    changed = [row for row in differences(before, after) if row[0].partition(".")[0] in sections]
    if changed:
        rows = "; ".join(f"{path}: {old!r} there, {new!r} asked for" for path, old, new in changed)
        raise ConfigError(
            f"{folder} holds results of other settings ({rows}); choose another --out, or the same settings"
        )
