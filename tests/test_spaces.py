"""What holds for every registered search space."""

import pytest
import torch

from nas.derivation import sample, uniform
from nas.randomness import generator as keyed
from nas.registry import load, names
from nas.selection import Selection
from nas.space import Task
from nas.supernet import Network
from nas.supernet.inspection import inspect

SMALL = {
    "darts": {"channels": 2, "depth": 3, "nodes": 2},
    "nas-bench-201": {"channels": 2, "cells_per_stage": 1},
    "chain": {"channels": 2, "stages": 2, "blocks_per_stage": 2},
    "darts-s1": {"channels": 2, "depth": 3},
    "darts-s2": {"channels": 2, "depth": 3, "nodes": 2},
    "darts-s3": {"channels": 2, "depth": 3, "nodes": 2},
    "darts-s4": {"channels": 2, "depth": 3, "nodes": 2},
    "darts-bench": {"channels": 2, "depth": 3},
    "vit": {"channels": 4, "blocks": 2},
}
"""Quick configurations; a space that is not listed here runs with its defaults."""

SPACES = [
    pytest.param(load("nas.search_spaces", name)(**SMALL.get(name, {})), id=name) for name in names("nas.search_spaces")
]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(("height", "width"), [(15, 13), (5, 7), (1, 1), (9, 2)])
@pytest.mark.parametrize("searching", [True, False])
def test_images_of_odd_sizes_run_through_every_candidate(space, height, width, searching):
    task = Task(channels=1, height=height, width=width, classes=3)
    inspect(space, task, searching=searching)  # every candidate gives its cell's shape
    network = Network(space, task, searching=searching).eval()
    scores = network(torch.randn(2, 1, height, width), {n: Selection.everything(c) for n, c in space.cells.items()})
    assert scores.scores.shape == (2, 3)
    assert scores.scores.isfinite().all()


@pytest.mark.parametrize("space", SPACES)
def test_genotypes_read_back_from_the_spaces_own_text(space):
    for key in range(20):
        genotype = sample(space, uniform(space), keyed(0, "genotype", key))
        assert space.parse(space.format(genotype)) == genotype


@pytest.mark.parametrize("space", SPACES)
def test_layers_are_fresh_each_time(space):
    task = Task(channels=1, height=8, width=8, classes=3)
    one, two = (Network(space, task, searching=True) for _ in range(2))
    assert not {id(p) for p in one.parameters()} & {id(p) for p in two.parameters()}
    assert one.state_dict().keys() == two.state_dict().keys()


@pytest.mark.parametrize("space", SPACES)
def test_supernets_have_no_scale_or_shift_in_their_candidates_and_derived_networks_have(space):
    def affine(searching):
        cells = Network(space, Task(1, 8, 8, 3), searching=searching).mixed_cells
        modules = [module for cell in cells for module in cell.edges.modules()]
        found = {module.affine for module in modules if isinstance(module, torch.nn.BatchNorm2d)}
        found |= {module.elementwise_affine for module in modules if isinstance(module, torch.nn.LayerNorm)}
        assert found
        return found

    assert affine(searching=True) == {False}
    assert affine(searching=False) == {True}
