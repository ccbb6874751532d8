"""The registry: names, files and modules lead to classes, and classes back to names."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from nas import registry, schedules
from nas.errors import ConfigError

GROUP = "nas.schedules"


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        EntryPoint("linear", "nas.schedules:Linear", GROUP),
        EntryPoint("cosine", "nas.schedules:Cosine", GROUP),
        EntryPoint("absent", "nas.schedules:Absent", GROUP),
        EntryPoint("broken", "nas.no_such_module:Absent", GROUP),
        EntryPoint("function", "math:cos", GROUP),
    ]
    monkeypatch.setattr(registry, "entries", lambda group: [entry for entry in found if entry.group == group])


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "my plug-in.py"
    path.write_text("from __future__ import annotations\nclass Mine: ...\nclass Other: ...\nvalue = 3\n")
    return path


def test_names_are_sorted():
    assert registry.names(GROUP) == ["absent", "broken", "cosine", "function", "linear"]
    assert registry.names("nas.nothing") == []


def test_a_name_a_module_and_a_file_lead_to_classes(plugin):
    assert registry.load(GROUP, "linear") is schedules.Linear
    assert registry.load(GROUP, "nas.schedules:Cosine") is schedules.Cosine
    assert registry.load(GROUP, f"{plugin}:Mine").__name__ == "Mine"


def test_an_unknown_name_gives_kind_and_nearest_match():
    with pytest.raises(ConfigError) as caught:
        registry.load(GROUP, "liner")
    expected = "unknown schedule 'liner': did you mean 'linear'? accepted: absent, broken, cosine, function, linear"
    assert str(caught.value) == expected


def test_nothing_near_gives_the_accepted_names_only():
    assert registry.did_you_mean("zzz", ["b", "a"]) == "accepted: a, b"
    assert registry.did_you_mean("zzz", []) == "accepted: none"


@pytest.mark.parametrize(
    ("name", "problem"), [("absent", "Absent"), ("broken", "no_such_module"), ("function", "no class")]
)
def test_a_plugin_that_does_not_load_is_named(name, problem):
    with pytest.raises(ConfigError, match=rf"plug-in '{name}' .*{problem}"):
        registry.load(GROUP, name)


def test_a_missing_class_gives_the_nearest_match(plugin):
    with pytest.raises(ConfigError, match="has no class 'Mina': did you mean 'Mine'\\? accepted: Mine, Other"):
        registry.load(GROUP, f"{plugin}:Mina")
    with pytest.raises(ConfigError, match="has no class 'value'"):
        registry.load(GROUP, f"{plugin}:value")


def test_a_missing_file_or_module_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no file .*absent\.py"):
        registry.load(GROUP, f"{tmp_path}/absent.py:Mine")
    with pytest.raises(ConfigError, match=r"cannot import 'no_such_package\.module'"):
        registry.load(GROUP, "no_such_package.module:Mine")


def test_a_file_that_fails_to_import_gives_its_error_each_time(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("class Mine: ...\n1 / 0\n")
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"bad\.py does not import: ZeroDivisionError: division by zero"):
            registry.load(GROUP, f"{path}:Mine")
    assert not any(name.endswith("_bad_py") for name in sys.modules)
    path.write_text("class Mine: ...\n")
    assert registry.load(GROUP, f"{path}:Mine").__name__ == "Mine"


def test_a_file_imported_twice_gives_the_same_class(plugin, monkeypatch):
    monkeypatch.chdir(plugin.parent)
    assert registry.load(GROUP, f"{plugin}:Mine") is registry.load(GROUP, f"./{plugin.name}:Mine")


def test_the_name_of_a_class_leads_back_to_it(plugin, monkeypatch):
    monkeypatch.chdir(plugin.parent)
    mine = registry.load(GROUP, f"{plugin.name}:Mine")
    assert registry.name_of(GROUP, schedules.Linear) == "linear"
    assert registry.name_of(GROUP, schedules.Constant) == "nas.schedules:Constant"
    assert registry.name_of(GROUP, mine) == f"{plugin.resolve()}:Mine"
    monkeypatch.chdir("/")
    for cls in (schedules.Linear, schedules.Constant, mine):
        assert registry.load(GROUP, registry.name_of(GROUP, cls)) is cls
