"""What rules learn about a trained supernet: how it is restricted, measured and tuned, and that it stays as it was."""

import signal

import pytest
import torch
from torch import nn

import nas
from nas import registry
from nas.data import Images, in_order
from nas.derivation import sample, uniform
from nas.errors import Interrupted, NumericsError
from nas.randomness import generator as keyed
from nas.runs.evaluation import Evaluator
from nas.runs.judge import Examination
from nas.runs.search import BilevelSearch
from nas.runs.session import session
from nas.selection import Selection
from nas.supernet.statistics import recalibrated

SMALL = {
    "space": {"name": "nas-bench-201", "channels": 4, "cells_per_stage": 1},
    "dataset": {"limit": 48},
    "search": {"epochs": 2, "batch_size": 16, "warmup": 0.0},
    "threads": 1,
}
CLOSED = 2
"""An edge from which every candidate is taken away."""


@pytest.fixture
def work(tmp_path):
    """A search after two steps: `work(selector="st-gs")`."""
    opened = []

    def open_session(**sections):
        merged = {k: {**SMALL.get(k, {}), **v} if isinstance(v, dict) else v for k, v in sections.items()}
        config = nas.configure(**{**SMALL, **merged})
        manager = session(tmp_path / f"work-{len(opened)}", config, "derive", quiet=True)
        opened.append(manager)
        search = BilevelSearch(manager.__enter__())
        for step in range(2):
            search.step(step, step / 5)
        search.network.zero_grad()
        return search

    yield open_session
    for manager in reversed(opened):
        manager.__exit__(None, None, None)


def state(*modules: nn.Module) -> list[torch.Tensor]:
    return [value.clone() for module in modules for value in module.state_dict().values()]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def examine(search: BilevelSearch) -> Examination:
    return Examination(search.session, search)


def of(search: BilevelSearch, genotype) -> dict[str, torch.Tensor]:
    """Returns the masks that leave just a genotype."""
    masks = {}
    for name, cell in search.session.config.space.cells.items():
        chosen = set(genotype.cells[name])
        masks[name] = torch.zeros_like(cell.mask)
        for e, edge in enumerate(cell.edges):
            for k, operation in enumerate(edge.operations):
                masks[name][e, k] = (edge.source, edge.target, operation) in chosen
    return masks


def some(search: BilevelSearch, key: int = 0) -> dict[str, torch.Tensor]:
    """Returns masks with an edge of no candidate, one of one, and others of two or more."""
    masks = {}
    for name, cell in search.session.config.space.cells.items():
        order = torch.rand(cell.mask.shape, generator=keyed(key, name)).masked_fill(~cell.mask, -1.0).argsort(-1)
        masks[name] = torch.zeros_like(cell.mask)
        for e, edge in enumerate(cell.edges):
            count = {CLOSED: 0, 1: 1}.get(e, 2 + e % max(len(edge.operations) - 2, 1))
            masks[name][e, order[e].flip(0)[:count]] = True
    return masks


# Restrictions

SELECTORS = registry.names("nas.selectors")


@pytest.mark.parametrize("selector", SELECTORS)
def test_a_supernet_restricted_to_a_genotype_is_that_genotype(selector, work):
    search = work(selector=selector)
    space, questions = search.session.config.space, examine(search)
    genotype = sample(space, uniform(space), keyed(1))
    found = questions.restricted(of(search, genotype), 5)
    assert questions.measurements == 1  # nothing is left to draw
    assert found.accuracy == questions.genotype(genotype)


@pytest.mark.parametrize("selector", SELECTORS)
def test_decisions_keep_to_what_is_left(selector, work):
    search = work(selector=selector)
    for key in range(5):
        masks = some(search, key)
        decision = examine(search).decide(masks, key)["cell"]
        for e, (path, row) in enumerate(zip(decision.paths, masks["cell"].tolist(), strict=True)):
            assert all(row[k] for k in path)
            if sum(row) == 1:
                assert path == (row.index(True),)
                assert decision.weights is None or decision.weights[e, path[0]] == 1
        assert decision.paths[CLOSED] == ()
        assert decision.weights is None or not decision.weights.requires_grad


def test_a_mixture_is_shared_by_the_candidates_that_are_left(work):
    search = work(selector="softmax")
    masks = some(search)
    decision = examine(search).decide(masks)["cell"]
    logits = search.architecture.logits()["cell"].detach()
    for e in (0, 3, 4, 5):
        expected = logits[e].exp() * masks["cell"][e]
        torch.testing.assert_close(decision.weights[e], expected / expected.sum())


@pytest.mark.parametrize("selector", ["st-gs", "gumbel-softmax", "uniform"])
def test_all_restrictions_see_the_same_noise(selector, work):
    """So two of them differ by what they leave out, and not by luck."""
    search = work(selector=selector)
    questions, everything = examine(search), {"cell": search.session.config.space.cells["cell"].mask.clone()}
    fewer = {"cell": everything["cell"].clone()}
    fewer["cell"][0, 1:] = False
    fewer["cell"][4] = False
    drawn = set()
    for place in range(8):
        one, two = questions.decide(everything, place)["cell"], questions.decide(fewer, place)["cell"]
        for e in (1, 2, 3, 5):
            assert one.paths[e] == two.paths[e]
            assert one.weights is None or torch.equal(one.weights[e], two.weights[e])
        assert (two.paths[0], two.paths[4]) == ((0,), ())
        drawn.add(one.paths if one.weights is None else tuple(one.weights.flatten().tolist()))
    assert len(drawn) > 1


def test_an_edge_that_runs_nothing_takes_no_place_among_the_edges_that_are_drawn(work):
    search = work(selector={"name": "edge-top-k", "keep": 1})
    edges = search.session.config.space.cells["cell"].edges
    masks = {"cell": search.session.config.space.cells["cell"].mask.clone()}
    masks["cell"][CLOSED] = False
    for place in range(20):
        paths = examine(search).decide(masks, place)["cell"].paths
        for node in (1, 2, 3):
            assert sum(bool(path) for path, edge in zip(paths, edges, strict=True) if edge.target == node) == 1


def test_a_bypass_of_partial_channels_is_whole_where_the_edge_is_decided(work):
    search = work(selector="edge-normalised", search={"modifiers": [{"name": "partial-channels", "share": 2}]})
    space, questions = search.session.config.space, examine(search)
    masks = some(search)
    gates = questions.decide(masks)["cell"].gates
    assert gates[[1, CLOSED]].tolist() == [1, 1]
    assert (gates[3:] < 1).all()
    genotype = sample(space, uniform(space), keyed(2))
    assert questions.restricted(of(search, genotype), 1).accuracy == questions.genotype(genotype)


def test_what_a_selector_draws_is_averaged_and_counted(work):
    search = work(selector="st-gs")
    questions, masks = examine(search), some(search)
    found = questions.restricted(masks, 4)
    assert questions.measurements == 4
    each = [questions._measure(questions.decide(masks, place)) for place in range(4)]
    assert found.accuracy == pytest.approx(sum(quality.accuracy for quality in each) / 4)
    assert found.log_likelihood == pytest.approx(sum(quality.log_likelihood for quality in each) / 4)
    mixture = examine(work(selector="softmax"))
    mixture.restricted(masks, 4)
    assert mixture.measurements == 1


# Measurements


@pytest.mark.parametrize("tuned", [0, 3])
def test_the_quality_is_that_of_a_plain_evaluation_on_select_with_statistics_of_its_own(tuned, work):
    """Stale batch-norm statistics, or those of another decision, or images of another split, give other numbers."""
    search = work(selector="softmax", dataset={"limit": 120})
    masks, questions, splits = some(search), examine(search), search.session.splits
    questions.tune(masks, tuned)
    found = questions.restricted(masks, 1)
    decision, network = questions.decide(masks, 0), search.network
    look = {"mean": splits.mean, "deviation": splits.deviation, "device": "cpu"}

    def plain(split: Images) -> tuple[float, float]:
        scores, labels = zip(
            *((network(images, decision).scores, labels) for images, labels in in_order(split, 9, **look)), strict=True
        )
        likelihoods = torch.cat(scores).log_softmax(1)[range(len(split)), torch.cat(labels)]
        return 100 * (
            torch.cat(scores).argmax(1) == torch.cat(labels)
        ).double().mean().item(), likelihoods.mean().item()

    batches = search.session.evaluator.calibration
    with recalibrated(network, batches, lambda images: network(images, decision)):
        accuracy, likelihood = plain(splits.select)
        others = [plain(split)[1] for split in (splits.train, splits.arch, splits.test)]
    assert found.accuracy == pytest.approx(accuracy)
    assert found.log_likelihood == pytest.approx(likelihood, rel=1e-5)  # float32 in batches of other sizes
    network.eval()
    with torch.no_grad():
        others.append(plain(splits.select)[1])  # with the running averages
    network.train()
    everything = {"cell": Selection.everything(search.session.config.space.cells["cell"])}
    with recalibrated(network, batches, lambda images: network(images, everything)):
        others.append(plain(splits.select)[1])
    assert all(abs(other - likelihood) > 1e-3 for other in others)


def test_an_accuracy_is_as_it_was_and_the_likelihood_of_a_network_that_overflows_is_the_least(work):
    search = work(selector="softmax")
    evaluator, decision = search.session.evaluator, search.decide(1.0, "test")
    (quality,) = evaluator.quality(search.network, decision, "select")
    assert evaluator.accuracy(search.network, decision, "select") == [quality.accuracy]
    assert -10 < quality.log_likelihood < 0
    with torch.no_grad():
        next(reversed([*search.network.parameters()])).fill_(torch.nan)
    assert evaluator.quality(search.network, decision, "select")[0].log_likelihood == -torch.inf


def test_measurements_see_images_without_the_augmentation_of_training(work):
    plain, varied = (
        work(selector="st-gs", dataset={"limit": 200, "augmentation": each}) for each in ({}, {"crop": 4, "flip": True})
    )
    varied.network.load_state_dict(plain.network.state_dict())
    decision = plain.decide(1.0, "test")
    qualities = [each.session.evaluator.quality(each.network, decision, "select", "test") for each in (plain, varied)]
    assert qualities[0] == qualities[1]
    assert not torch.equal(plain.train.batch(0)[0], varied.train.batch(0)[0])


def test_each_split_serves_its_purpose_only(work, monkeypatch):
    search = work(selector="st-gs", dataset={"limit": 200})
    splits = search.session.splits
    names = {
        place: name for name in ("train", "arch", "select", "test") for place in getattr(splits, name).indices.tolist()
    }
    seen: dict[str, set[str]] = {}
    trained: list[int] = []
    doing = ["nothing"]
    take = Images.take

    def watched(self, indices):
        places = self.indices[indices].tolist()
        seen.setdefault(doing[-1], set()).update(names[place] for place in places)
        trained.extend(places if doing[-1] == "tune" else ())
        return take(self, indices)

    def during(owner, method, what):
        real = getattr(owner, method)

        def wrapped(*arguments):
            doing.append(what)
            try:
                return real(*arguments)
            finally:
                doing.pop()

        monkeypatch.setattr(owner, method, wrapped)

    monkeypatch.setattr(Images, "take", watched)
    during(Examination, "tune", "tune")
    during(Evaluator, "quality", "measure")
    during(Evaluator, "_quality", "count")
    questions = examine(search)
    with questions as judge:
        judge.tune(some(search), 1)
        judge.tune(some(search), questions._batches.steps_per_epoch - 1)
        judge.restricted(some(search), 2)
    assert seen == {"tune": {"train"}, "measure": {"train", "arch"}, "count": {"select"}}  # train and arch calibrate
    assert len(trained) == len(set(trained)) >= 32  # an epoch, in several calls, shows every image once


# Tuning


def test_tuning_trains_what_is_left_and_leaving_brings_every_bit_back(work):
    search = work(selector="softmax")
    network, masks = search.network, some(search)
    before, logits = state(network), state(search.architecture)
    names = [name for name, _ in network.named_parameters()]
    weights = [parameter.detach().clone() for parameter in network.parameters()]
    modes = [module.training for module in network.modules()]
    modes[0] = network.training = False  # a state of its own
    with examine(search) as judge:
        judge.tune(masks, 3)
        moved = {
            name
            for name, old, new in zip(names, weights, network.parameters(), strict=True)
            if not torch.equal(old, new)
        }
        edges = search.session.config.space.cells["cell"].edges
        gone = [
            f".edges.{edge.source}-{edge.target}.{o}."
            for edge, row in zip(edges, masks["cell"].tolist(), strict=True)
            for o, take in zip(edge.operations, row, strict=True)
            if not take
        ]
        stays = {name for name in names if any(part in name for part in gone)}
        assert stays
        assert moved == set(names) - stays
    assert same(state(network), before)
    assert [module.training for module in network.modules()] == modes
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    assert same(state(search.architecture), logits)


@pytest.mark.parametrize("selector", ["softmax", "st-gs", "uniform"])
def test_tuning_twice_gives_the_same_answers_and_tuning_changes_them(selector, work):
    search = work(selector=selector)
    masks, answers = some(search), []
    for steps in ((), (2, 3), (2, 3), (5,), (4,)):
        with examine(search) as judge:
            for count in steps:
                judge.tune(masks, count)
            answers.append(judge.restricted(masks, 2).log_likelihood)
    assert answers[1] == answers[2] == answers[3]  # the steps go on where the last call ended
    assert len(set(answers)) == 3


def test_tuning_keeps_entangled_weights_together(work):
    search = work(search={"modifiers": ["entanglement"]}, selector="softmax")
    (entangled,) = (each for each in search.attached if each.binding)
    before = [share.large.clone() for share in entangled.shares]
    with examine(search) as judge:
        judge.tune({name: cell.mask for name, cell in search.session.config.space.cells.items()}, 2)
        assert not any(torch.equal(share.large, old) for share, old in zip(entangled.shares, before, strict=True))
        for share in entangled.shares:
            assert torch.equal(share.small, share.of(share.large))


def test_tuning_goes_by_a_tenth_of_the_first_learning_rate(work):
    lr = {"name": "cosine", "start": 0.5, "end": 0.0}  # at its end a search would tune nothing
    search = work(selector="softmax", search={"weights": {"name": "sgd", "lr": lr}})
    with examine(search) as judge:
        judge.tune(some(search), 1)
        (group,) = judge.tune.__self__._optimizer.param_groups
    assert group["lr"] == pytest.approx(0.05)


def test_a_loss_that_is_not_finite_stops_the_tuning(work):
    search = work(selector="softmax")
    with torch.no_grad():
        next(search.network.parameters()).fill_(torch.nan)
    with pytest.raises(NumericsError, match="the loss of tuning a supernet is no longer finite at step 1"):
        examine(search).tune(some(search), 2)


@pytest.mark.parametrize("what", ["measure", "tune"])
def test_a_signal_stops_the_work_and_the_weights_are_those_from_before(what, work):
    search = work(selector="st-gs")
    before, masks = state(search.network), some(search)
    questions = Examination(search.session, search, lambda: setattr(search.session.stop, "requested", signal.SIGINT))
    with pytest.raises(Interrupted, match="stopped by SIGINT while deriving"), questions as judge:
        judge.tune(masks, 5) if what == "tune" else judge.restricted(masks, 5)
    assert (questions.tuned, questions.measurements) == ((1, 0) if what == "tune" else (0, 1))
    assert same(state(search.network), before)
