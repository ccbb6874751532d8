"""Turns YAML files and command-line settings into nested frozen dataclasses, and back.

A layer holds the settings of one file, flag or call. `build` lays them over the defaults of a dataclass, the later
over the earlier. A section whose type has a class variable `registry` chooses its class by the key `name`: without it
the section changes the default in place, with it the section starts from that class's own defaults, and a name that
chooses another class drops what earlier layers said about the section.
"""

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter

from nas import registry, yaml_guard
from nas.errors import ConfigError

T = TypeVar("T")
Keys = tuple[str, ...]
ABSENT = "(absent)"


@dataclass(frozen=True)
class Layer:
    """Settings from one place.

    Attributes:
        tree: Nested sections; leaves are plain data or, from Python, ready dataclass instances.
        origins: Where the part of the tree below a path was written, e.g. `run.yaml:12`; the longest path counts.
    """

    tree: Mapping[str, object]
    origins: Mapping[Keys, str]


@dataclass(frozen=True)
class Setting:
    """What one layer says about the section or the leaf at `path`."""

    path: Keys
    value: Any
    layer: Layer

    @property
    def origin(self) -> str:
        """Where it was written."""
        ends = range(len(self.path), -1, -1)
        return next((self.layer.origins[self.path[:end]] for end in ends if self.path[:end] in self.layer.origins), "")

    def child(self, key: str) -> "Setting":
        """Returns what the layer says about one key of this section."""
        return Setting((*self.path, key), self.value[key], self.layer)

    def find(self, keys: Sequence[str]) -> "Setting | None":
        """Returns the setting that decides the value at `keys` below this section, if the layer has one."""
        if not keys or not isinstance(self.value, Mapping):
            return self
        return self.child(keys[0]).find(keys[1:]) if keys[0] in self.value else None


def read_yaml(path: Path) -> Layer:
    """Returns the settings of a YAML file; an empty file has none."""
    tree, lines = yaml_guard.parse(yaml_guard.read(path), str(path))
    if not isinstance(tree, dict | None):
        raise ConfigError(f"{path} must be a section of settings, got {_show(tree)}")
    return Layer(tree or {}, {keys: f"{path}:{line}" for keys, line in lines.items()})


def from_mapping(tree: Mapping[str, object], origin: str) -> Layer:
    """Returns the settings of a nested mapping; `origin` is where messages say they come from."""
    return Layer(yaml_guard.checked(tree, origin), {(): origin})


def from_setting(text: str) -> Layer:
    """Returns the one setting of `dotted.key=value`; the value is YAML."""
    key, equals, written = text.partition("=")
    keys = key.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set takes dotted.key=value, got {text!r}")
    value, _ = yaml_guard.parse(written, f"--set {text}", numbered=False)
    for part in reversed(keys):
        value = {part: value}
    return from_mapping(cast(dict[str, object], value), f"--set {text}")


def build(cls: type[T], layers: Sequence[Layer]) -> T:
    """Returns the configuration that `layers`, the later over the earlier, make of the defaults of `cls`.

    Raises:
        ConfigError: The message gives the dotted path, the value, its origin and what would be accepted.
    """
    return cast(T, _section(cls, cls, MISSING, [Setting((), layer.tree, layer) for layer in layers], ()))


def to_tree(config: object) -> dict[str, object]:
    """Returns a configuration as nested plain data, complete and in field order, the name of a chosen class first."""
    return cast(dict[str, object], _plain(config))


def dump(config: object) -> str:
    """Returns the YAML text from which `build` makes an equal configuration."""
    return yaml_guard.write(to_tree(config))


def differences(left: object, right: object) -> list[tuple[str, object, object]]:
    """Returns (dotted path, left, right) for every setting in which two configurations differ, `ABSENT` for none."""
    ours, theirs = dict(leaves(to_tree(left))), dict(leaves(to_tree(right)))
    pairs = ((key, ours.get(key, ABSENT), theirs.get(key, ABSENT)) for key in ours | theirs)
    return [pair for pair in pairs if pair[1] != pair[2]]


def leaves(tree: Mapping[str, object], above: str = "") -> Iterator[tuple[str, object]]:
    """Yields every setting of nested plain data by its dotted path, which begins with `above`."""
    for key, value in tree.items():
        yield from leaves(value, f"{above}{key}.") if isinstance(value, dict) else [(f"{above}{key}", value)]


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        group = _group(type(value))
        name = {"name": registry.name_of(group, type(value))} if group else {}
        return name | {field.name: _plain(getattr(value, field.name)) for field in fields(value) if field.init}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _group(cls: object) -> str | None:
    group = getattr(cls, "registry", None)
    return group if isinstance(group, str) else None


def _section_class(annotation: object) -> type | None:
    """Returns the dataclass or registered base that an annotation, perhaps a union, allows."""
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return next((one for one in members if isinstance(one, type) and (is_dataclass(one) or _group(one))), None)


def _value(annotation: object, default: object, given: Sequence[Setting], path: Keys) -> object:
    base = _section_class(annotation)
    if base is not None:
        return _section(annotation, base, default, given, path)
    if not given:
        raise _required(path)
    item = _section_class(get_args(annotation)[0]) if get_origin(annotation) is tuple else None
    return _leaf(annotation, given[-1]) if item is None else _sections(item, given[-1])


def _sections(base: type, setting: Setting) -> tuple[object, ...]:
    """Returns a list of sections, given whole by one layer; one section alone is a list of it."""
    if isinstance(setting.value, Mapping) and any(map(str.isdigit, setting.value)):
        raise _mismatch(setting, "a list, given whole, such as [{name: ..., ...}]")
    items = setting.value if isinstance(setting.value, list | tuple) else [setting.value]
    paths = [(*setting.path, str(place)) for place in range(len(items))]
    return tuple(
        _section(base, base, MISSING, [Setting(path, item, setting.layer)], path)
        for path, item in zip(paths, items, strict=True)
    )


def _section(annotation: object, base: type, default: object, given: Sequence[Setting], path: Keys) -> object:
    start: object = default  # an instance to change, or a class with its own defaults
    chosen = False  # whether a layer decided on `start`
    changes: list[Setting] = []
    for setting in (_spelled_out(base, setting) for setting in given):
        value = setting.value
        if isinstance(value, base) or (value is None and NoneType in get_args(annotation)):
            start, chosen, changes = value, True, []
        elif not isinstance(value, Mapping):
            words = "a name or a section of settings" if _group(base) else "a section of settings"
            raise _mismatch(setting, words + " or null" * (NoneType in get_args(annotation)))
        else:
            if _group(base) and "name" in value:
                named = _named(base, setting)
                if named is not _class_of(start):
                    changes = []
                if named is not _class_of(start) or not chosen:
                    start, chosen = named, True
            changes.append(setting)
    if start is None and not changes:
        return None
    if start is None or start is MISSING:
        if inspect.isabstract(base) or not is_dataclass(base):
            raise _required((*path, "name") if changes else path)
        start = base
    return _construct(start, changes, path)


def _spelled_out(base: type, setting: Setting) -> Setting:
    """Turns a bare name, or a bare number where the base says what it means, into a section."""
    group, value = _group(base), setting.value
    if group and isinstance(value, str):
        return replace(setting, value={"name": value})
    if group and hasattr(base, "shorthand") and isinstance(value, int | float) and not isinstance(value, bool):
        name, key = base.shorthand
        return replace(setting, value={"name": name, key: value})
    return setting


def _named(base: type, setting: Setting) -> type:
    name, group = setting.child("name"), _group(base)
    assert group is not None
    if not isinstance(name.value, str):
        raise _mismatch(name, "a string")
    place = f"{'.'.join(setting.path) or 'name'} ({name.origin})"
    try:
        found = registry.load(group, name.value)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error
    if not issubclass(found, base) or not is_dataclass(found) or inspect.isabstract(found):
        raise ConfigError(f"{place}: {name.value!r} must be a dataclass that implements {base.__name__}")
    if "name" in {field.name for field in fields(found)}:
        raise ConfigError(f"{place}: {name.value!r} has a field 'name', which chooses the class; rename it")
    return found


def _class_of(start: object) -> type:
    return start if isinstance(start, type) else type(start)


def _construct(start: Any, changes: Sequence[Setting], path: Keys) -> object:
    cls = _class_of(start)
    hints = get_type_hints(cls)
    known = {field.name: field for field in fields(cls) if field.init}
    accepted = [*(["name"] if _group(cls) else []), *known]
    for setting in changes:
        for key in setting.value:
            if key not in accepted:
                child = setting.child(key)
                hint = registry.did_you_mean(key, accepted)
                raise ConfigError(f"unknown setting {'.'.join(child.path)!r} ({child.origin}): {hint}")
    values = {}
    for key, field in known.items():
        given = [setting.child(key) for setting in changes if key in setting.value]
        default = _default(field) if start is cls else getattr(start, key)
        if given or default is MISSING:
            values[key] = _value(hints[key], default, given, (*path, key))
    try:
        return cls(**values) if start is cls else replace(start, **values)
    except ValueError as error:
        raise ConfigError(_located(str(error), known, changes, path)) from error


def _default(field: Field[object]) -> object:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _located(message: str, known: Mapping[str, object], changes: Sequence[Setting], path: Keys) -> str:
    """Completes a message of `__post_init__`, which starts with the name of a field, by its path and its origin."""
    keys = message.partition(" ")[0].rstrip(":,").split(".")
    if keys[0] not in known:
        return f"{'.'.join(path)}: {message}" if path else message
    found = [setting for change in changes if (setting := change.find(keys))]
    return ".".join((*path, message)) + (f" ({found[-1].origin})" if found else "")


def _leaf(annotation: object, setting: Setting) -> object:
    try:
        return _adapter(annotation).validate_json(json.dumps(setting.value, allow_nan=False))
    except (ValueError, TypeError):
        raise _mismatch(setting, _words(annotation)) from None


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation, config=ConfigDict(strict=True, allow_inf_nan=False))


def _required(path: Keys) -> ConfigError:
    key = ".".join(path)
    return ConfigError(f"{key} is required; give it with --set {key}=... or in the YAML file")


def _mismatch(setting: Setting, words: str) -> ConfigError:
    return ConfigError(f"{'.'.join(setting.path)} must be {words}, got {_show(setting.value)} ({setting.origin})")


def _words(annotation: object, many: bool = False) -> str:
    arguments = get_args(annotation)
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(_words(one, many) for one in arguments)
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if get_origin(annotation) is tuple:
        count = "" if ... in arguments else f"{len(arguments)} "
        return f"{'lists' if many else 'a list'} of {count}{_words(arguments[0], many=True)}"
    words = {int: ("an integer", "integers"), float: ("a number", "numbers"), str: ("a string", "strings")}
    words |= {bool: ("true or false", "true or false"), NoneType: ("null", "null")}
    return words[annotation][many] if annotation in words else str(annotation)


def _show(value: object) -> str:
    if isinstance(value, Mapping):
        return f"a section with {yaml_guard.shortened(', '.join(value) or 'no settings')}"
    return yaml_guard.shortened(json.dumps(value) if value is None or isinstance(value, bool) else repr(value))
