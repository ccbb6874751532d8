"""What is registered under the entry points, for `nas list`."""

import inspect
from dataclasses import MISSING, fields
from typing import Any

from nas import registry
from nas.config import to_tree
from nas.errors import ConfigError


def catalogue(group: str) -> list[dict[str, Any]]:
    """Returns name, first line of the docstring and settings with their defaults of everything in a group.

    A plug-in that does not load is listed with the reason.
    """
    entries = []
    for name in registry.names(group):
        try:
            cls = registry.load(group, name)
        except ConfigError as error:
            entries.append({"name": name, "summary": str(error), "settings": {}})
            continue
        summary = (inspect.getdoc(cls) or "").partition("\n")[0]
        entries.append({"name": name, "summary": summary, "settings": _settings(cls)})
    return entries


def _settings(cls: type) -> dict[str, Any]:
    """Returns the fields by name with their defaults as plain data; a required one is "required"."""
    found: dict[str, Any] = {}
    for field in fields(cls):
        if field.default is not MISSING:
            found[field.name] = to_tree(field.default)
        elif field.default_factory is not MISSING:
            found[field.name] = to_tree(field.default_factory())
        else:
            found[field.name] = "required"
    return found
