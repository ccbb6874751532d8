"""Every selector searches every space, and what it finds is derived; the long rows are marked slow."""

import json
from pathlib import Path

import pytest

from nas import registry

# Each space as small as it runs.
SPACES = {
    "nas-bench-201": ("space.channels=4", "space.cells_per_stage=1"),
    "darts": ("space.channels=4", "space.depth=3", "space.nodes=2"),
    "chain": ("space.channels=4", "space.stages=2"),
    "darts-s1": ("space.channels=4", "space.depth=3"),
    "darts-s2": ("space.channels=4", "space.depth=3", "space.nodes=2"),
    "darts-s3": ("space.channels=4", "space.depth=3", "space.nodes=2"),
    "darts-s4": ("space.channels=4", "space.depth=3", "space.nodes=2"),
    "darts-bench": ("space.channels=4", "space.depth=3"),
    "vit": ("space.channels=8", "space.blocks=2"),
}
TINY = ("dataset.limit=40", "threads=1", "search.batch_size=20", "search.warmup=0")
DATA = Path(__file__).parents[2] / "shared" / "data"
ROWS = [
    (selector, space) for selector in registry.names("nas.selectors") for space in registry.names("nas.search_spaces")
]
QUICK = {("st-gs", "nas-bench-201"), ("softmax", "darts"), ("gdas", "chain"), ("uniform", "nas-bench-201")}


def settings(*given):
    return [part for setting in given for part in ("--set", setting)]


def check_search_and_derive(nas_command, folder, *arguments):
    found = nas_command("search", *arguments, "--epochs", 1, "--json", "--out", folder)
    assert found.code == 0, found.err
    result = json.loads(found.out)
    for edge in result["edges"]:
        assert sum(edge["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert 0 <= result["select"] <= 100
    rule = () if "uniform" not in arguments else settings("derive.name=sampled", "derive.samples=2")
    derived = nas_command("derive", folder, *rule)
    assert derived.code == 0, derived.err
    text = (folder / "genotype.json").read_text()
    assert json.loads(text)["text"] == derived.out.strip()
    dry = nas_command("retrain", folder, "--dry-run", "--json")
    assert json.loads(dry.out)["parameters"] > 0


def test_the_small_settings_cover_every_built_in_space():
    assert set(SPACES) <= set(registry.names("nas.search_spaces"))


@pytest.mark.parametrize(
    ("selector", "space"), [pytest.param(*row, marks=() if row in QUICK else pytest.mark.slow) for row in ROWS]
)
def test_every_selector_searches_every_space(selector, space, nas_command, tmp_path):
    small = settings(*TINY, *SPACES.get(space, ()))
    check_search_and_derive(nas_command, tmp_path / "run", "--selector", selector, "--space", space, *small)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["cifar10-16x16.npz", "mnist.npz"])
@pytest.mark.parametrize(("selector", "space"), sorted(QUICK))
def test_larger_images_are_searched_too(file, selector, space, nas_command, tmp_path):
    if not (DATA / file).is_file():
        pytest.skip(f"{file} is not beside the repository")
    small = settings(*TINY, *SPACES[space])
    arguments = ("--dataset", DATA / file, "--selector", selector, "--space", space, *small)
    check_search_and_derive(nas_command, tmp_path / "run", *arguments)
