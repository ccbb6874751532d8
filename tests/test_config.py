"""Configurations: precedence, named classes, round trips, and what every message says."""

import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from nas import yaml_guard
from nas.config import ABSENT, Layer, build, differences, dump, from_mapping, from_setting, read_yaml, to_tree
from nas.errors import ConfigError
from nas.schedules import Constant, Cosine, Exponential, Linear, Schedule

SELF = __name__
Read = Callable[[str], Layer]
DECAY = Linear(start=10.0, end=0.1)


@dataclass(frozen=True, kw_only=True)
class Shape(ABC):
    registry: ClassVar[str] = "tests.shapes"

    @abstractmethod
    def area(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Square(Shape):
    side: float = 1.0
    decay: Schedule = DECAY

    def __post_init__(self) -> None:
        if self.side <= 0:
            raise ValueError(f"side must be positive, got {self.side}")
        self.decay.require("decay", lambda value: value > 0, "positive")

    def area(self) -> float:
        return self.side**2


@dataclass(frozen=True, kw_only=True)
class Circle(Shape):
    radius: float = 2.0
    inner: Shape | None = None

    def area(self) -> float:
        return 3 * self.radius**2


@dataclass(frozen=True, kw_only=True)
class Named(Shape):
    name: str = "x"

    def area(self) -> float:
        return 0.0


@dataclass(frozen=True, kw_only=True)
class Training:
    epochs: int = 50
    rate: float = 0.1
    steps: tuple[int, ...] = (1, 2)
    crop: tuple[int, int] | None = None
    tags: tuple[str, ...] = ()
    mode: Literal["first", "second"] = "first"
    fast: bool = False
    made: int = field(default=0, init=False)
    version: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if self.epochs == 13:
            raise ValueError("thirteen is unlucky")


@dataclass(frozen=True, kw_only=True)
class Run:
    path: str
    seed: int | None = None
    shape: Shape = field(default_factory=lambda: Square(side=3.0))
    spare: Shape | None = None
    search: Training = Training(epochs=7)


@dataclass(frozen=True, kw_only=True)
class Nest:
    shape: Shape
    training: Training


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    monkeypatch.chdir(tmp_path)

    def from_text(text: str) -> Layer:
        Path("run.yaml").write_text(text, encoding="utf-8")
        return read_yaml(Path("run.yaml"))

    return from_text


def made(*layers: Layer) -> Run:
    return build(Run, [from_mapping({"path": "data"}, "test"), *layers])


def refused(*layers: Layer) -> str:
    with pytest.raises(ConfigError) as caught:
        made(*layers)
    return str(caught.value)


# Precedence and named classes


def test_defaults_give_way_to_yaml_to_flags_to_settings(read):
    file = read("search: {epochs: 1, rate: 0.5, fast: true}")
    flag = from_mapping({"search": {"epochs": 2, "rate": 0.25}}, "--epochs")
    config = made(file, flag, from_setting("search.epochs=3"))
    assert config.search == Training(epochs=3, rate=0.25, fast=True)
    assert made().search == Training(epochs=7)


def test_a_section_without_name_changes_the_default_in_place():
    assert made(from_setting("shape.decay.end=1")).shape == Square(side=3.0, decay=Linear(start=10.0, end=1.0))


def test_a_section_with_name_starts_from_the_defaults_of_the_class():
    assert made(from_mapping({"shape": {"name": f"{SELF}:Square"}}, "x")).shape == Square(side=1.0)


def test_the_same_name_merges_and_another_name_discards(read):
    file = read(f"shape: {{name: '{SELF}:Circle', radius: 5}}")
    assert made(file, from_setting(f"shape={SELF}:Circle")).shape == Circle(radius=5.0)
    assert made(file, from_setting("shape.radius=6")).shape == Circle(radius=6.0)
    assert made(file, from_setting(f"shape={SELF}:Square")).shape == Square()


def test_a_name_that_is_the_default_s_keeps_the_settings_before_it(read):
    config = made(read("shape: {decay: 2}"), from_setting(f"shape={SELF}:Square"))
    assert config.shape == Square(side=1.0, decay=Constant(value=2.0))


def test_two_names_of_one_class_are_the_same_name(tmp_path, monkeypatch):
    Path(tmp_path, "mine.py").write_text(
        f"from dataclasses import dataclass\nfrom {SELF} import Shape\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Mine(Shape):\n    size: int = 1\n    def area(self): return 0.0\n"
    )
    monkeypatch.chdir(tmp_path)
    first = from_mapping({"shape": {"name": "mine.py:Mine", "size": 4}}, "a")
    config = made(first, from_setting(f"shape={tmp_path}/mine.py:Mine"))
    assert to_tree(config)["shape"] == {"name": f"{tmp_path.resolve()}/mine.py:Mine", "size": 4}
    monkeypatch.chdir("/")
    assert build(Run, [from_mapping(to_tree(config), "again")]) == config


def test_shorthands_name_a_class_or_give_a_constant():
    assert made(from_setting(f"shape={SELF}:Circle")).shape == Circle()
    assert made(from_setting("shape.decay=1e-3")).shape == Square(side=3.0, decay=Constant(value=0.001))


def test_null_is_accepted_where_the_type_has_none(read):
    file = read(f"seed: 4\nsearch: {{crop: [1, 2]}}\nspare: {SELF}:Circle")
    assert made(file).spare == Circle()
    config = made(file, from_setting("seed=null"), from_setting("spare=null"), from_setting("search.crop=null"))
    assert (config.seed, config.spare, config.search.crop) == (None, None, None)


def test_ready_instances_are_settings_that_later_layers_change():
    given = from_mapping({"shape": Circle(radius=7.0), "search": Training(epochs=9)}, "nas.search")
    assert made(given, from_setting("search.rate=1")).search == Training(epochs=9, rate=1.0)
    assert made(given, from_setting(f"shape.inner={SELF}:Square")).shape == Circle(radius=7.0, inner=Square())
    assert made(given, from_setting(f"shape={SELF}:Circle")).shape == Circle(radius=7.0)


def test_a_nested_section_without_default_is_made_from_its_own_defaults():
    config = build(Nest, [from_setting(f"shape={SELF}:Circle")])
    assert config == Nest(shape=Circle(), training=Training())


# Round trips


@pytest.mark.parametrize(
    "config",
    [
        Run(path="data"),
        Run(path="yes", seed=2**62, spare=Circle(radius=1e-5, inner=Circle(inner=Square(decay=Constant(value=1e22))))),
        Run(path="", search=Training(steps=(), crop=(3, 4), tags=("1e-3", "010", "null", "a: b", "é\n\t'\"", "<<"))),
        Run(path="~", shape=Square(decay=Exponential(start=1 / 3, end=5e-324)), search=Training(mode="second")),
        Run(path="2024-01-01", search=Training(rate=1, tags=("1:30", "0x1F", "1_000", ".inf", "=", "&a", "*a", "!t"))),
        Linear(start=-1.5, end=2.5e300),
        Cosine(start=0.0, end=-0.0),
    ],
)
def test_what_is_dumped_builds_an_equal_configuration(read, config):
    layer = read(dump(config))
    assert build(type(config), [layer]) == config
    assert layer.tree == to_tree(config)


def test_a_tree_is_complete_in_field_order_with_the_name_first():
    tree = to_tree(Run(path="data"))
    assert list(tree) == ["path", "seed", "shape", "spare", "search"]
    assert list(tree["shape"].items())[:2] == [("name", f"{SELF}:Square"), ("side", 3.0)]
    assert tree["shape"]["decay"] == {"name": "linear", "start": 10.0, "end": 0.1}
    assert tree["search"]["steps"] == [1, 2]
    assert "made" not in tree["search"]


def test_differences_name_every_changed_leaf():
    left, right = Run(path="a"), Run(path="b", shape=Circle())
    assert differences(left, left) == []
    found = {path: values for path, *values in differences(left, right)}
    assert found["path"] == ["a", "b"]
    assert found["shape.name"] == [f"{SELF}:Square", f"{SELF}:Circle"]
    assert found["shape.decay.end"] == [0.1, ABSENT]
    assert found["shape.radius"] == [ABSENT, 2.0]


# Messages


def test_an_unknown_key_gives_path_line_and_nearest_match(read):
    message = refused(read("seed: 1\n\nshape:\n  decay: 3\n  sidde: 2\n"))
    assert message == "unknown setting 'shape.sidde' (run.yaml:5): did you mean 'side'? accepted: decay, name, side"
    assert "'search.epoch' (--set search.epoch=3): did you mean 'epochs'?" in refused(from_setting("search.epoch=3"))


@pytest.mark.parametrize("key", ["made", "version", "name"])
def test_what_is_no_setting_is_unknown(key):
    assert f"unknown setting 'search.{key}'" in refused(from_setting(f"search.{key}=1"))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("search.epochs=ten", "search.epochs must be an integer, got 'ten'"),
        ("search.epochs=1.0", "search.epochs must be an integer, got 1.0"),
        ("search.epochs=true", "search.epochs must be an integer, got true"),
        ("search.epochs={a: 1}", "search.epochs must be an integer, got a section with a"),
        ("search.epochs.a=1", "search.epochs must be an integer, got a section with a"),
        ("search.rate='1'", "search.rate must be a number, got '1'"),
        ("search.rate=.nan", "search.rate must be a number, got '.nan'"),
        ("search.rate=1e999", "search.rate must be a number, got inf"),
        ("search.rate=", "search.rate must be a number, got null"),
        ("search.fast=yes", "search.fast must be true or false, got 'yes'"),
        ("search.fast=1", "search.fast must be true or false, got 1"),
        ("search.mode=third", "search.mode must be one of first, second, got 'third'"),
        ("search.steps=[1, a]", "search.steps must be a list of integers, got [1, 'a']"),
        ("search.crop=[1]", "search.crop must be a list of 2 integers or null, got [1]"),
        ("search.tags=a", "search.tags must be a list of strings, got 'a'"),
        ("seed=x", "seed must be an integer or null, got 'x'"),
        ("path=3", "path must be a string, got 3"),
        ("search=5", "search must be a section of settings, got 5"),
        ("search=null", "search must be a section of settings, got null"),
        ("shape=5", "shape must be a name or a section of settings, got 5"),
        ("spare=[]", "spare must be a name or a section of settings or null, got []"),
        ("shape.name=5", "shape.name must be a string, got 5"),
        ("shape.decay=true", "shape.decay must be a name or a section of settings, got true"),
    ],
)
def test_a_wrong_type_is_told_in_words(setting, words):
    assert refused(from_setting(setting)) == f"{words} (--set {setting})"


def test_values_from_python_are_checked_the_same():
    assert made(from_mapping({"search": {"steps": (4, 5)}}, "call")).search.steps == (4, 5)
    assert "must be a number, got nan (call)" in refused(from_mapping({"search": {"rate": float("nan")}}, "call"))
    assert "path must be a string, got" in refused(from_mapping({"path": Path("x")}, "call"))
    assert "shape must be a name or" in refused(from_mapping({"shape": Training()}, "call"))
    assert "keys must be strings, got 1 (call)" in refused_mapping({"search": {1: 2}})


def refused_mapping(tree: dict[str, object]) -> str:
    with pytest.raises(ConfigError) as caught:
        from_mapping(tree, "call")
    return str(caught.value)


def test_a_range_error_gets_its_path_and_its_line(read):
    text = f"shape:\n  name: {SELF}:Square\n  decay:\n    start: 1\n    end: -1\n"
    assert refused(read(text)) == "shape.decay.end must be positive, got -1 (run.yaml:5)"
    assert refused(from_setting("shape.side=-2")) == "shape.side must be positive, got -2.0 (--set shape.side=-2)"
    assert refused(read("shape:\n  decay: 0\n")) == "shape.decay.value must be positive, got 0 (run.yaml:2)"
    message = refused(read("shape:\n  decay: {name: exponential, start: 1,\n    end: 0}"))
    assert message == "shape.decay.end must be positive for an exponential schedule, got 0 (run.yaml:3)"


def test_the_last_layer_is_blamed_for_a_range_error(read):
    message = refused(read("shape: {side: 2}"), from_setting("shape.side=0"))
    assert message.endswith("(--set shape.side=0)")


def test_a_message_about_no_field_is_prefixed_with_the_section():
    assert refused(from_setting("search.epochs=13")) == "search: thirteen is unlucky"


def test_a_missing_setting_says_how_to_give_it():
    with pytest.raises(ConfigError, match=r"^path is required; give it with --set path=\.\.\. or in the YAML file$"):
        build(Run, [])
    with pytest.raises(ConfigError, match=r"^shape is required"):
        build(Nest, [])
    with pytest.raises(ConfigError, match=r"^shape\.name is required"):
        build(Nest, [from_setting("shape.side=1")])
    assert "shape.decay.start is required" in refused(from_setting("shape.decay={name: cosine, end: 1}"))


def test_an_unknown_name_gives_path_line_and_nearest_match(read):
    message = refused(read("shape:\n  decay:\n    name: liner\n"))
    assert message.startswith("shape.decay (run.yaml:3): unknown schedule 'liner': did you mean 'linear'? accepted: ")


@pytest.mark.parametrize("name", ["Shape", "Training", "Path"])
def test_a_name_must_lead_to_a_class_of_the_right_kind(name):
    expected = f"shape (--set shape={SELF}:{name}): '{SELF}:{name}' must be a dataclass that implements Shape"
    assert refused(from_setting(f"shape={SELF}:{name}")) == expected


def test_a_field_called_name_is_refused():
    assert "has a field 'name'" in refused(from_setting(f"shape={SELF}:Named"))


@pytest.mark.parametrize("text", ["a", "=1", "a..b=1", ".a=1", "a.=1", ""])
def test_a_setting_needs_a_key_and_an_equals_sign(text):
    with pytest.raises(ConfigError, match=r"--set takes dotted\.key=value"):
        from_setting(text)


def test_a_setting_with_broken_yaml_is_named():
    with pytest.raises(ConfigError, match=r"^--set a=\[1: while parsing a flow sequence"):
        from_setting("a=[1")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.yaml: No such file"):
        read_yaml(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="Is a directory"):
        read_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match=r"latin\.yaml is no UTF-8 text"):
        read_yaml(tmp_path / "latin.yaml")


# The guard


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1.5e3", 1500.0),
        ("-2E5", -200000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-7", -7),
        ("010", 10),
        ("1_000", "1_000"),
        ("0x1F", "0x1F"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        (".inf", ".inf"),
        ("yes", "yes"),
        ("off", "off"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("", None),
        ("'1'", "1"),
        ("[1, [a]]", [1, ["a"]]),
        ("my_space.py:MySpace", "my_space.py:MySpace"),
    ],
)
def test_scalars_mean_the_same_in_a_file_and_in_a_setting(read, text, value):
    for tree in (read(f"a: {text}").tree, from_setting(f"a={text}").tree):
        assert tree == {"a": value}
        assert type(tree["a"]) is type(value)


def test_an_empty_file_has_no_settings(read):
    assert read("").tree == {}
    assert read("# nothing\n").tree == {}


def test_aliases_repeat_a_value(read):
    assert read("a: &x {b: [1, 2]}\nc: *x").tree == {"a": {"b": [1, 2]}, "c": {"b": [1, 2]}}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: [1, 2", "run.yaml:2:9: while parsing a flow sequence"),
        ("a: 1\n\tb: 2", "run.yaml:2:1: "),
        ("a: \x07", "run.yaml:1:4: the character '\\x07' is not allowed"),
        ("a: !!python/object:os.system {}", "run.yaml:1:4: tags are not allowed"),
        ("a: 1\nb: !x 3", "run.yaml:2:4: tags are not allowed, got !x"),
        ("a: !!int 3", "tags are not allowed"),
        ("a: ! 3", "tags are not allowed"),
        ("a: 1\nb:\n  c: 1\n  c: 2", "run.yaml:4:3: duplicate key 'c', first given in line 3"),
        ("a: &x {b: 1}\nc:\n  <<: *x", "run.yaml:3:3: merge keys"),
        ("1: a", "run.yaml:1:1: keys must be strings"),
        ("{[a]: 1}", "keys must be strings"),
        ("true: a", "keys must be strings"),
        ("a: 1\n---\nb: 2", "run.yaml:2:1: expected a single document"),
        ("- a", "run.yaml must be a section of settings, got ['a']"),
        ("a", "run.yaml must be a section of settings, got 'a'"),
        ("a: *x", "run.yaml:1:4: found undefined alias"),
        ("a: &x [*x, *x]", "an alias that contains itself"),
        ("a: &x\n  b: *x", "an alias that contains itself"),
        ("a: " + "[" * 500 + "]" * 500, "nested deeper than 32 levels"),
        ("a: " + "[" * 500_000, "nested deeper than 32 levels"),
        ("\n".join(f"{' ' * depth}a:" for depth in range(1000)), "run.yaml:33:33: nested deeper than 32 levels"),
        ("a: [" + "1," * 20_000 + "]", "more than 10000 values"),
        ("a: " + "x" * 2**20, "run.yaml is larger than 1048576 bytes"),
    ],
)
def test_the_guard_refuses(read, text, problem):
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert problem in str(caught.value)
    assert "run.yaml" in str(caught.value)


def test_billions_of_laughs_are_refused_at_once(read):
    lines = ["a0: &a0 [lol, lol]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 20)]
    start = time.perf_counter()
    with pytest.raises(ConfigError, match="more than 10000 values, with aliases expanded"):
        read("\n".join(lines))
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("scalar", ["9" * 10**6 + "x", "9." + "9" * 10**6 + "x", ".9e" + "9" * 10**6 + "x"])
def test_a_scalar_that_is_almost_a_number_is_read_in_linear_time(scalar):
    start = time.perf_counter()
    assert from_setting(f"a={scalar}").tree == {"a": scalar}
    assert time.perf_counter() - start < 10  # a pattern that backtracks over pairs of digits takes hours


def test_the_deepest_file_allowed_is_read(read):
    depth = yaml_guard.MAX_DEPTH - 1
    assert str(read("a: " + "[" * depth + "]" * depth).tree).count("[") == depth


def test_deep_nesting_from_anywhere_is_an_error_without_a_traceback():
    deep: object = 1
    for _ in range(10_000):
        deep = {"inner": deep}
    assert "nested deeper than 32" in refused_mapping({"shape": deep})
    for text in ("shape" + ".inner" * 10_000 + "=1", "search.steps=" + "[" * 10_000):
        with pytest.raises(ConfigError, match="nested deeper than 32"):
            from_setting(text)


def test_configurations_load_without_torch():
    code = "import sys, nas.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0
