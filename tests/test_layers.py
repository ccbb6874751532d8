"""Imports point down: every file is parsed, and imports inside functions and `if TYPE_CHECKING` count."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx
import pytest

ROOT = Path(__file__).parents[1]

LAYERS = (
    "errors estimators hypergradients schedules randomness registry config yaml_guard",
    "selection genotype space subspace ops",
    "selectors supernet architecture derivation",
    "data files checkpoint optimizer_state tracking status progress benchmarks cost",
    "runs report",
    "cli commands options testing",
)
LAYER = {part: layer for layer, parts in enumerate(LAYERS) for part in parts.split()}

SELECTORS, ENGINE = {"selectors"}, {"supernet", "architecture", "derivation"}
"""Two halves of layer 2 that share only `Selection`."""

OWNERS = {
    "yaml": {"config", "yaml_guard"},
    "pydantic": {"config", "yaml_guard"},
    "networkx": {"space", "genotype"},
    "torchvision": {"data"},
    "sklearn": {"data"},
    "scipy": {"estimators", "runs"},
    "wandb": {"tracking"},
}
"""Third-party packages that only some parts of `nas` may import."""

NATIVE, KERNELS = "nas.supernet.native", {"numba", "llvmlite", "numpy"}
"""The one part of the engine that is compiled, and with what."""

LAZY = {"wandb", "torchvision", "matplotlib", "networkx", "sklearn"}
"""Slow to load, so never at the top of a module."""

FOR_SPACES = {"nas.space", "nas.ops", "nas.errors"}
"""What a search space may import of `nas`."""

FILES = sorted(path for folder in ("nas", "search_spaces") for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, module: str, package: bool = False) -> Iterator[str]:
    """Yields the absolute names a file imports, `nas.part` for `from nas import part`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = module.split(".")[: len(module.split(".")) + package - node.level] if node.level else []
            origin = ".".join([*start, *([node.module] if node.module else [])])
            yield from ([f"nas.{alias.name}" for alias in node.names] if origin == "nas" else [origin])
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield str(node.args[0].value)


def violations(module: str, source: str, package: bool = False) -> list[str]:
    """Returns one sentence for every import that the order of layers forbids."""
    found = []
    if module.startswith("nas.") and module.split(".")[1] not in LAYER:
        found.append(f"{module} has no layer; place it in LAYERS on purpose")
    for name in imports(ast.parse(source), module, package):
        if complaint := _complaint(module, name):
            found.append(f"{module} imports {name}: {complaint}")
    return found


def _complaint(module: str, name: str) -> str | None:
    top, _, rest = name.partition(".")
    if top in ("experiments", "tests"):
        return f"nothing imports {top}"
    if module.startswith("search_spaces"):
        allowed = top in {"torch", "search_spaces", *sys.stdlib_module_names} or name in FOR_SPACES
        return None if allowed else f"a search space imports {', '.join(sorted(FOR_SPACES))} and torch"
    if module == "nas":
        return None if name.startswith("nas.runs") or top in sys.stdlib_module_names else "nas/__init__.py is lazy"
    here = module.split(".")[1]
    if top == "search_spaces":
        return "search spaces are reached by name, through entry points"
    if top == "nas":
        return _upward(here, rest.partition(".")[0])
    if top in OWNERS:
        return None if here in OWNERS[top] else f"only {', '.join(sorted(OWNERS[top]))} may"
    if module.startswith(NATIVE) and top in KERNELS:
        return None
    if LAYER.get(here, 0) <= 2 and top != "torch" and top not in sys.stdlib_module_names:
        return "layers 0 to 2 need torch and the standard library"
    return None


def _upward(here: str, there: str) -> str | None:
    if there not in LAYER:
        return f"{there or 'the public functions'!r} has no layer here; import the module that defines it"
    if LAYER[there] > LAYER.get(here, -1):
        return f"layer {LAYER[there]} is above"
    if {here, there} & SELECTORS and {here, there} & ENGINE and LAYER[here] == 2:
        return "selectors and the engine share only Selection"
    return None


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    assert violations(name_of(path), path.read_text(), path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("nas.space", "from nas.runs.search import search"),
        ("nas.space", "from nas import runs"),
        ("nas.space", "import nas.cli as c"),
        ("nas.space", "import nas"),
        ("nas.space", "from nas import search"),
        ("nas.data.images", "def f():\n    from nas.runs import search"),
        ("nas.schedules", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from nas.space import Cell"),
        ("nas.supernet.cell", "from ..runs import search"),
        ("nas.supernet.cell", "from .. import cli"),
        ("nas.supernet.cell", "import importlib\nimportlib.import_module('nas.runs.search')"),
        ("nas.selectors.softmax", "from nas.supernet.cell import MixedCell"),
        ("nas.selectors.softmax", "from nas.derivation import strongest"),
        ("nas.supernet.network", "from nas.selectors.base import Selector"),
        ("nas.architecture", "from nas import selectors"),
        ("nas.runs.search", "def f():\n    import search_spaces.darts"),
        ("nas.runs.search", "from search_spaces import darts"),
        ("nas.cli", "from experiments.first_gap import run"),
        ("search_spaces.darts", "from nas.supernet import Network"),
        ("search_spaces.darts", "from nas import selectors"),
        ("search_spaces.darts", "import numpy"),
        ("nas.schedules", "import yaml"),
        ("nas.runs.search", "def f():\n    import wandb"),
        ("nas.supernet.cell", "def f():\n    import networkx"),
        ("nas.report.doctor", "from sklearn.datasets import load_digits"),
        ("nas.tracking", "from torchvision.transforms import functional"),
        ("nas.derivation", "import numpy"),
        ("nas.supernet.reference", "import numba"),
        ("nas.brand_new", "import json"),
        ("nas.cli", "from nas.brand_new import thing"),
        ("nas", "from nas.space import Cell"),
    ],
)
def test_a_planted_import_is_caught(module, source):
    assert len(violations(module, source)) == 1


def test_relative_imports_in_a_package_are_resolved_against_the_package():
    assert violations("nas.supernet", "from .cell import MixedCell\nfrom .. import space", package=True) == []
    assert len(violations("nas.supernet", "from ..runs import search", package=True)) == 1


def test_modules_do_not_import_each_other_in_a_circle():
    names = {name_of(path): path for path in FILES}
    graph = networkx.DiGraph()
    for module, path in names.items():
        for name in set(imports(ast.parse(path.read_text()), module, path.name == "__init__.py")):
            target = name if name in names else name.rpartition(".")[0]
            if module != "nas" and target in names and target != "nas":
                graph.add_edge(module, target)
    assert graph.number_of_edges() > len(FILES)
    assert list(networkx.simple_cycles(graph)) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_packages_that_load_slowly_are_imported_when_they_are_needed(path):
    eager = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    module = ast.Module(eager, [])
    assert {name.partition(".")[0] for name in imports(module, name_of(path))} & LAZY == set()


def test_nothing_imports_an_experiment():
    files = [*FILES, *(ROOT / "tests").rglob("*.py")]
    found = {path: list(imports(ast.parse(path.read_text()), name_of(path))) for path in files}
    assert [path for path, names in found.items() if {name.partition(".")[0] for name in names} & {"experiments"}] == []


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path.name == "__init__.py" or not path.name.startswith("_")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_no_module_has_more_than_300_lines(path):
    assert len(path.read_text().splitlines()) <= 300
