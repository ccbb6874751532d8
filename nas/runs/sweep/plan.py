"""What a sweep is to do, as plain values that can be sent to another process or machine."""

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

from nas import registry, yaml_guard
from nas.config import Layer, build, from_mapping, to_tree
from nas.errors import ConfigError
from nas.runs.compare.rows import BASELINES, NEUTRAL, SEARCH_ONLY, Kind
from nas.runs.configuration import MEANING, Config
from nas.runs.folder import Run
from nas.selectors import Selector

Settings = Mapping[str, Any]
"""Values by dotted path."""

VARIED = {"engine", *itertools.chain(*MEANING.values())} - {"seed"}
"""Sections whose settings change results."""


@dataclass(frozen=True)
class Planned:
    """A run of a sweep; plain data, and so is the configuration.

    Attributes:
        folder: The run folder.
        kind: A search, or a random baseline.
        seed: Key of its randomness.
        settings: What was varied, and the selector of a search.
        config: The complete configuration, as `nas.config.to_tree` gives it.
        retrain: Whether what it decides is retrained.
        budget: Seconds that a random search may spend on its choice; known once the searches are done.
    """

    folder: Path
    kind: Kind
    seed: int
    settings: Settings
    config: Mapping[str, object] = field(repr=False)
    retrain: bool
    budget: float | None = None

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return self.folder.name

    def listed(self) -> dict[str, Any]:
        """Returns what `sweep.json` says of the run."""
        return {"name": self.name, "kind": self.kind, "seed": self.seed, "settings": dict(self.settings)}

    def run(self) -> Run:
        """Returns the run as it is asked for, whatever is in its folder."""
        return Run(self.folder, build(Config, [from_mapping(self.config, self.name)]))


def plan(
    config: Config, selectors: str | None, seeds: int, vary: Sequence[str], folder: Path, *, retrain: bool
) -> list[Planned]:
    """Returns the runs of a sweep in the order in which they are begun: seed by seed, the baselines first.

    Each random baseline is planned once per seed, and once for each variation of settings on which it depends.

    Args:
        config: What all runs share; its seed is the first, and its selector keeps its settings if it is among them.
        selectors: References, separated by commas; `all`; None for that of the configuration.
        seeds: How many.
        vary: `key=a,b`; every combination is tried with every selector.
        folder: Where the run folders are made.
        retrain: Whether derived and random cells are retrained.

    Raises:
        ConfigError: A selector or a setting is unknown or wrong, nothing could score the random cells, or nothing would
            rank what `gap.ranked` asks for.
    """
    if not retrain and config.benchmark.path is None:
        raise ConfigError("--no-retrain needs --benchmark: without it nothing scores the random cells")
    if not retrain and config.gap.ranked:
        raise ConfigError("gap.ranked is measured by the gap report, which --no-retrain leaves out; drop one")
    axes = dict(map(_axis, vary))
    if len(axes) < len(vary):
        raise ConfigError(f"--vary names a setting twice: {', '.join(text.partition('=')[0] for text in vary)}")
    grid = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    chosen = _selectors(config, selectors)
    found: dict[str, Planned] = {}
    for seed in range(config.seed, config.seed + seeds):
        asked: list[tuple[Kind, str, Settings, Selector]] = []
        for kind in BASELINES:
            for settings in grid:
                own = {key: value for key, value in settings.items() if key.partition(".")[0] not in SEARCH_ONLY}
                asked.append((kind, kind, own, config.selector))
        for settings in grid:
            asked += [("search", name, settings, each) for name, each in chosen.items()]
        for kind, name, varied, selector in asked:
            layers = [from_mapping(dict(vars(config)), "the configuration"), from_mapping({"seed": seed}, "--seeds")]
            layers += [from_mapping({"selector": selector}, "--selectors"), *map(_layer, varied.items())]
            home = folder / folder_name([name, *(f"{key}={value}" for key, value in varied.items())], seed)
            shown = {"selector": name, **varied} if kind == "search" else varied
            planned = Planned(home, kind, seed, shown, to_tree(build(Config, layers)), retrain)
            found.setdefault(home.name, planned)
    return [*found.values()]


def folder_name(parts: Sequence[str], seed: int) -> str:
    """Returns the name of a run folder; if something in it has to be replaced, a hash tells such names apart."""
    text = "_".join(parts)
    short = re.sub(r"[^\w.=+-]+", "-", "_".join([parts[0].rpartition("/")[2], *parts[1:]])).strip("-.")[:100]
    mark = "" if short == text.replace(" ", "-") else f"_{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    return f"{short}{mark}_seed{seed}"


def _axis(text: str) -> tuple[str, list[Any]]:
    """Returns the setting and the values of `key=a,b`."""
    key, equals, written = text.partition("=")
    key = key.strip()
    values = yaml_guard.parse(f"[{written}]", f"--vary {text}", numbered=False)[0]
    if not equals or not all(key.split(".")) or not isinstance(values, list) or not values:
        raise ConfigError(f"--vary takes dotted.key=value,value, got {text!r}")
    if key in ("selector", "seed", "retrain.seed"):
        raise ConfigError(f"--vary {key}: use {'--selectors' if key == 'selector' else '--seeds'}")
    if key.partition(".")[0] not in VARIED or key in NEUTRAL:
        raise ConfigError(f"--vary {key} changes no result; vary a setting of {', '.join(sorted(VARIED))}")
    return key, values


def _layer(setting: tuple[str, Any]) -> Layer:
    key, value = setting
    tree = reduce(lambda below, part: {part: below}, reversed(key.split(".")), value)
    return from_mapping(tree, f"--vary {key}={value}")


def _selectors(config: Config, references: str | None) -> dict[str, Selector]:
    """Returns the selectors by reference; that of the configuration keeps its settings."""
    own = registry.name_of(Selector.registry, type(config.selector))
    parts = [own] if references is None else [part.strip() for part in references.split(",")]
    if not all(parts):
        raise ConfigError(f"--selectors must be names or file.py:Class, separated by commas, got {references!r}")
    found: dict[str, Selector] = {}
    for part in parts:
        for name in registry.names(Selector.registry) if part == "all" else [part]:
            selector = build(Config, [from_mapping({"selector": name}, "--selectors")]).selector
            found[name] = config.selector if type(selector) is type(config.selector) else selector
    return found
