"""Reads YAML as plain data and nothing else, and writes it so that it reads back equal.

Scalars follow the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/), without octal and hexadecimal integers and
without infinities: `1e-3` is a number, `yes` and `2024-01-01` are strings. Tags, merge keys, duplicate keys and keys
that are no strings are refused, and so is whatever grows beyond the limits below.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import yaml

from nas.errors import ConfigError

MAX_BYTES = 2**20
MAX_DEPTH = 32
MAX_NODES = 10_000  # after every alias is replaced by what it stands for

_TAG = "tag:yaml.org,2002:"
_SCALARS: dict[str, tuple[str, Callable[[str], object]]] = {
    "null": (r"~|null|Null|NULL|", lambda text: None),
    "bool": (r"true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    "int": (r"[-+]?[0-9]{1,1000}", int),
    "float": (r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", float),
    "str": (r".*", str),
}


def read(path: Path) -> str:
    """Returns the text of a file within the limit of size."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no UTF-8 text: {error.reason} at byte {error.start}") from error


def parse(text: str, source: str, *, numbered: bool = True) -> tuple[object, dict[tuple[str, ...], int]]:
    """Returns the plain data in `text`, and the line of every key by its path.

    Args:
        text: One YAML document; an empty one is None.
        source: What errors call the text, e.g. the file's name.
        numbered: Whether errors add line and column to `source`.

    Raises:
        ConfigError: The text is no YAML, or holds more than plain data within the limits.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, {}
        loader.nodes = 0  # the nodes as written are counted; now those after expansion
        return loader.plain(node, ()), loader.lines
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, error.position - before.rfind("\n")
        problem = f"the character {chr(int(error.character))!r} is not allowed"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        assert mark is not None
        line, column = mark.line + 1, mark.column + 1
        problem = ", ".join(part for part in (error.context, error.problem) if part)
    raise ConfigError(f"{source}:{line}:{column}: {problem}" if numbered else f"{source}: {problem}")


def checked(tree: Mapping[str, object], origin: str) -> dict[str, object]:
    """Returns a copy of nested mappings from Python, held to the same depth and to keys that are strings."""

    def copied(value: object, depth: int) -> Any:
        if not isinstance(value, Mapping | list | tuple):
            return value
        if depth >= MAX_DEPTH:
            raise ConfigError(f"settings are nested deeper than {MAX_DEPTH} levels ({shortened(origin)})")
        if not isinstance(value, Mapping):
            return [copied(item, depth + 1) for item in value]
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(f"keys must be strings, got {shortened(repr(key))} ({shortened(origin)})")
        return {key: copied(item, depth + 1) for key, item in value.items()}

    return cast(dict[str, object], copied(tree, 0))


def shortened(text: str) -> str:
    """Returns at most 100 characters for a message."""
    return text if len(text) <= 100 else text[:97] + "..."


def write(tree: object) -> str:
    """Returns the YAML text of plain data, in the given order; sections without sections take one line."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=110)


def _refusal(mark: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


class _Loader(yaml.SafeLoader):
    """Composes nodes within the limits; `plain` takes the place of PyYAML's constructor."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0
        self.nodes = 0
        self.lines: dict[tuple[str, ...], int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise _refusal(event.start_mark, f"tags are not allowed, got {tag}")
        self._count(event.start_mark, isinstance(event, yaml.CollectionStartEvent), self.depth)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def plain(self, node: yaml.Node, path: tuple[str, ...]) -> object:
        self._count(node.start_mark, isinstance(node, yaml.CollectionNode), len(path))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(item, (*path, str(index))) for index, item in enumerate(node.value)]
        return _SCALARS[node.tag.removeprefix(_TAG)][1](node.value)

    def _mapping(self, node: yaml.MappingNode, path: tuple[str, ...]) -> dict[str, object]:
        result: dict[str, object] = {}
        for key_node, value_node in node.value:
            key, mark = key_node.value, key_node.start_mark
            if key_node.tag != _TAG + "str":
                raise _refusal(mark, "keys must be strings; put quotes around anything else")
            if key == "<<":
                raise _refusal(mark, "merge keys (<<) are not supported; write the settings out")
            here = (*path, key)
            if key in result:
                raise _refusal(mark, f"duplicate key {key!r}, first given in line {self.lines[here]}")
            self.lines[here] = mark.line + 1
            result[key] = self.plain(value_node, here)
        return result

    def _count(self, mark: Any, nests: bool, depth: int) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise _refusal(mark, f"more than {MAX_NODES} values, with aliases expanded")
        if nests and depth >= MAX_DEPTH:
            raise _refusal(mark, f"nested deeper than {MAX_DEPTH} levels, or an alias that contains itself")


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 would misread and what `_Loader` would."""

    def ignore_aliases(self, data: object) -> bool:
        return True


_Loader.yaml_implicit_resolvers = {}
for _name, (_pattern, _) in _SCALARS.items():
    if _name != "str":
        for _class in (_Loader, _Dumper):
            _class.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), None)
