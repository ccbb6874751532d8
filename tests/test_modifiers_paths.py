"""Modifiers that choose what weight steps train, and dropout on skips."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nas.config import build, differences, dump, from_setting
from nas.errors import ConfigError
from nas.runs.configuration import Config
from nas.runs.modifiers.paths import FairPaths
from nas.runs.modifiers.skip_dropout import DroppedIdentity, SkipDropout
from nas.runs.pipeline import configure


def trained(search, step=0):
    decisions = [search.decide(0.0, "train", step)]
    for each in search.attached:
        decisions = each.decisions(decisions, step, 0.0)
    return decisions


@pytest.mark.parametrize("space", ["nas-bench-201", "darts"])
def test_fair_paths_train_every_candidate_of_every_edge_once_in_a_step(space, searching):
    search = searching(space, "fair-paths")
    for step in range(5):
        decisions = trained(search, step)
        for name, cell in search.architecture.cells.items():
            for e, edge in enumerate(cell.edges):
                assert sorted(d[name].paths[e][0] for d in decisions) == list(range(len(edge.operations)))


def test_fair_paths_repeat_the_candidates_of_a_smaller_edge_evenly(searching):
    search = searching("chain", "fair-paths")
    decisions = trained(search)
    assert len(decisions) == 7
    counts = [[d["stage0-block0"].paths[0][0] for d in decisions].count(k) for k in range(6)]
    assert sorted(counts) == [1, 1, 1, 1, 1, 2]


def test_the_orders_of_different_edges_and_steps_are_drawn_apart(searching):
    search = searching("nas-bench-201", "fair-paths")
    orders = {
        (step, e): tuple(d["cell"].paths[e][0] for d in trained(search, step)) for step in range(20) for e in range(6)
    }
    # 120 of 120 equally likely orders: chance leaves about 1 - 1/e of them, 76, seen; 10 would be 15 deviations off.
    assert 60 < len(set(orders.values())) < 95


def test_a_fair_step_follows_the_mean_of_its_paths_gradients(searching):
    search = searching("nas-bench-201", "fair-paths", clip=0)
    images, labels = search.train.batch(0)
    before = {name: value.clone() for name, value in search.network.named_parameters()}
    decisions = trained(search)
    total = {name: torch.zeros_like(value) for name, value in before.items()}
    for decision in decisions:
        search.network.zero_grad()
        F.cross_entropy(search.network(images, decision).scores, labels).backward()
        for name, parameter in search.network.named_parameters():
            if parameter.grad is not None:
                total[name] += parameter.grad / 5
    search.network.zero_grad()
    search._weight_step(0, 0.0)
    rate, decay = search.settings.weights.lr(0.0), search.settings.weights.weight_decay
    for name, parameter in search.network.named_parameters():
        expected = before[name] - rate * (total[name] + decay * before[name])
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-6)


def test_a_sandwich_trains_the_largest_path_the_smallest_and_some_between(searching):
    search = searching("nas-bench-201", {"name": "sandwich", "paths": 3})
    decisions = trained(search)
    operations = search.architecture.cells["cell"].edges[0].operations
    assert len(decisions) == 5
    assert decisions[0]["cell"].paths == ((operations.index("nor_conv_3x3"),),) * 6
    assert decisions[1]["cell"].paths == ((operations.index("skip_connect"),),) * 6
    assert len({d["cell"].paths for d in decisions[2:]} | {d["cell"].paths for d in trained(search, 1)[2:]}) == 6


def test_logits_learn_under_the_selectors_own_decisions(searching):
    plain, fair = searching("nas-bench-201"), searching("nas-bench-201", "fair-paths")
    first = [search._architecture_step(0, 0.0) for search in (plain, fair)]
    assert torch.equal(*first)
    for name, table in plain.architecture.tables.items():
        assert torch.equal(table, fair.architecture.tables[name])


def test_skips_drop_numbers_while_training_and_at_the_scheduled_rate(searching):
    search = searching("nas-bench-201", {"name": "skip-dropout", "rate": {"name": "linear", "start": 0.5, "end": 0}})
    skips = [module for module in search.network.modules() if isinstance(module, DroppedIdentity)]
    assert len(skips) == 18
    candidates = [each for cell in search.network.mixed_cells for edge in cell.candidates for each in edge]
    assert not any(isinstance(each, nn.Identity) for each in candidates)
    search.attached[0].before(0, 0.0)
    ones = torch.ones(64, 64)
    found = skips[0].train()(ones)
    assert set(found.unique().tolist()) == {0.0, 2.0}
    # A binomial of 4,096 numbers with p = 1/2 has a deviation of 32.
    assert abs(int((found == 0).sum()) - 2048) < 5 * 32
    assert torch.equal(skips[0].eval()(ones), ones)
    search.settle()
    assert torch.equal(skips[0].train()(ones), ones)


def test_skip_dropout_keeps_the_supernets_parameter_names(searching):
    plain, dropped = searching("darts"), searching("darts", "skip-dropout")
    assert plain.network.state_dict().keys() == dropped.network.state_dict().keys()


def test_a_space_without_skips_refuses_their_dropout():
    class Bare:
        cells = {}

    with pytest.raises(ConfigError, match="skip-dropout needs a space with a candidate skip_connect"):
        SkipDropout().require(Bare(), None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("search.modifiers=fair-path", "unknown modifier 'fair-path': did you mean 'fair-paths'"),
        ("search.modifiers=[fair-paths, fair-paths]", "search.modifiers must differ, got fair-paths more than once"),
        ("search.modifiers=[{name: sandwich, paths: -1}]", "search.modifiers.0.paths must be at least 0, got -1"),
        ("search.modifiers=[{name: sandwich, way: 1}]", "unknown setting 'search.modifiers.0.way'"),
        ("search.modifiers.0.rate=0.1", "search.modifiers must be a list, given whole, such as [{name: ..., ...}]"),
        ("search.modifiers=[fair-paths, sandwich]", "search.modifiers cannot hold fair-paths beside sandwich"),
        ("search.modifiers=[sandwich, oles]", "search.modifiers cannot hold oles beside sandwich"),
        ("search={modifiers: shrinking, warmup: 0.4}", "search.warmup must end before shrinking goes by the logits"),
        ("search.modifiers=3", "search.modifiers.0 must be a name or a section of settings, got 3"),
        ("search.modifiers=[{paths: 1}]", "search.modifiers.0.name is required"),
    ],
)
def test_a_wrong_list_of_modifiers_is_an_error_that_says_where(text, message):
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        build(Config, [from_setting(text)])


def test_a_list_of_modifiers_survives_its_yaml(tmp_path):
    one = build(Config, [from_setting("search.modifiers=fair-paths")])
    assert one.search.modifiers == (FairPaths(),)
    config = build(Config, [from_setting("search.modifiers=[{name: sandwich, paths: 1}, skip-dropout]")])
    (tmp_path / "c.yaml").write_text(dump(config))
    assert configure(tmp_path / "c.yaml") == config
    assert [row[0] for row in differences(one, config)] == ["search.modifiers"]
    assert build(Config, [from_setting("search.modifiers=fair-paths"), from_setting("search.modifiers=[]")]) == Config()


def test_a_space_whose_skips_are_no_identities_refuses_their_dropout(nas_command, tmp_path):
    space = ("--space", "darts-bench", "--set", "space.candidates=all-skip", "--set", "space.channels=4")
    more = ("--set", "search.modifiers=skip-dropout", "--set", "dataset.limit=20", "--out", tmp_path / "run")
    found = nas_command("search", *space, "--set", "space.depth=3", *more)
    assert found.code == 2
    assert "no skip_connect of this space is one" in found.err


def test_modifiers_are_listed_with_their_settings(nas_command):
    listed = json.loads(nas_command("list", "modifiers", "--json").out)
    assert {"fair-paths", "sandwich", "skip-dropout"} <= {entry["name"] for entry in listed}
