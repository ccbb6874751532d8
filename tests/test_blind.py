"""Edges without architecture gradient are found before a search begins, and named; others are not."""

import pytest

from nas import registry
from nas.runs.blind import blind_edges, describe_blind
from nas.runs.pipeline import configure
from nas.runs.search import BilevelSearch
from nas.runs.session import session
from nas.selectors import Selector

LEARNING = [name for name in registry.names(Selector.registry) if registry.load(Selector.registry, name).learns]
BLIND = {"gdas", "st-gs-single-path"}
SPACES = {
    "chain": {"channels": 4, "stages": 2, "blocks_per_stage": 2},
    "nas-bench-201": {"channels": 4, "cells_per_stage": 1},
}


def found(space, selector, folder):
    config = configure(
        space={"name": space, **SPACES[space]},
        selector=selector,
        dataset={"limit": 64},
        search={"batch_size": 32},
        tracking={"wandb": "disabled"},
        threads=1,
    )
    with session(folder, config, "search", quiet=True) as work:
        search = BilevelSearch(work)
        before = {name: value.clone() for name, value in search.network.state_dict().items()}
        edges = blind_edges(search.selector, search.architecture, search.loss_on, search.seed)
        assert all(bool((before[name] == value).all()) for name, value in search.network.state_dict().items())
        assert all(parameter.grad is None for parameter in search.architecture.parameters())
        return edges


@pytest.mark.parametrize("selector", LEARNING)
def test_only_what_knows_one_candidate_by_its_scale_is_blind_before_a_batch_norm(selector, tmp_path):
    """The last block of a stage of `chain` leads into a batch norm; a block before it is read by skips too."""
    expected = {f"stage{stage}-block1": [(0, 1)] for stage in (0, 1)} if selector in BLIND else {}
    assert found("chain", selector, tmp_path) == expected


@pytest.mark.parametrize("selector", ["gdas", "st-gs-single-path", "st-gs", "score-cv"])
def test_no_edge_of_nas_bench_201_is_blind(selector, tmp_path):
    assert found("nas-bench-201", selector, tmp_path) == {}


def test_many_edges_are_counted_and_some_are_named():
    cls = registry.load(Selector.registry, "gdas")
    text = describe_blind(cls(), {"cell": [(0, node) for node in range(1, 9)]})
    assert "selector gdas has an architecture gradient of zero on 8 edges (cell 0-1, " in text
    assert ", cell 0-6, ...)" in text
    assert "use st-gs" in text


def test_a_search_warns(nas_command, tmp_path, caplog):
    small = [
        part for key in ("space.channels=4", "dataset.limit=64", "search.batch_size=32") for part in ("--set", key)
    ]
    outcome = nas_command(
        "search", "--space", "chain", "--selector", "gdas", "--epochs", 1, "--quiet", "--out", tmp_path / "a", *small
    )
    assert outcome.code == 0
    assert "selector gdas has an architecture gradient of zero" in caplog.text
