"""Which selectors are diagnosed, and at which temperatures."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nas.config import build, from_mapping
from nas.errors import ConfigError
from nas.registry import load, names
from nas.runs.configuration import Config
from nas.schedules import Constant, Schedule
from nas.selectors import Selector


@dataclass(frozen=True)
class Subject:
    """A selector with its temperature held fixed.

    Attributes:
        name: As the user calls it.
        temperature: None for a selector without a temperature schedule.
        selector: What is diagnosed.
    """

    name: str
    temperature: float | None
    selector: Selector

    @property
    def title(self) -> str:
        """Name and temperature."""
        return self.name if self.temperature is None else f"{self.name} at {self.temperature:g}"


def subjects(config: Config, references: str, temperatures: str) -> list[Subject]:
    """Returns one subject per selector, or per selector and temperature where it has a schedule of that name.

    Args:
        config: Its selector keeps its settings if it is among the references; every other has its defaults.
        references: Names or file.py:Class, separated by commas; `all` is every registered selector that can be judged.
        temperatures: Positive numbers, separated by commas.

    Raises:
        ConfigError: A selector is unknown, learns nothing or weighs edges; a temperature is no positive number.
    """
    values = _temperatures(temperatures)
    found: list[Subject] = []
    for name in dict.fromkeys(_expanded(references)):
        selector = _selector(config, name)
        if isinstance(getattr(selector, "temperature", None), Schedule):
            found += [Subject(name, value, _at(selector, value)) for value in values]
        else:
            found.append(Subject(name, None, selector))
    return found


def _at(selector: Any, value: float) -> Selector:
    changed: Selector = replace(selector, temperature=Constant(value=value))
    return changed


def _expanded(references: str) -> Iterator[str]:
    for reference in _parts("--selectors", references, "names from `nas list selectors`, file.py:Class or all"):
        if reference == "all":
            classes: dict[str, Any] = {name: load(Selector.registry, name) for name in names(Selector.registry)}
            yield from (name for name, cls in classes.items() if cls.learns and not cls.weighs_edges)
        else:
            yield reference


def _selector(config: Config, reference: str) -> Selector:
    selector = build(Config, [from_mapping({"selector": reference}, "--selectors")]).selector
    if not selector.learns:
        raise ConfigError(f"--selectors: {reference} learns no logits, so it has no gradient to judge; leave it away")
    if selector.weighs_edges:
        raise ConfigError(
            f"--selectors: {reference} weighs whole edges too, so it minimises another loss than that of one candidate "
            "per edge, and its gradient cannot be compared; leave it away, or name its inner selector"
        )
    return config.selector if type(config.selector) is type(selector) else selector


def _temperatures(text: str) -> Sequence[float]:
    found = []
    for part in _parts("--temperatures", text, "positive numbers"):
        try:
            value = float(part)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise ConfigError(f"--temperatures must be positive numbers, separated by commas, got {part!r}")
        found.append(value)
    return [*dict.fromkeys(found)]


def _parts(flag: str, text: str, wanted: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise ConfigError(f"{flag} must be {wanted}, separated by commas, got {text!r}")
    return parts
