"""`nas bench`: what is measured is what runs, and the ratios are those of the raw pairs."""

import io
import itertools
import json
import os
import signal
import sys
import weakref
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nas.config import to_tree
from nas.errors import ConfigError, Interrupted
from nas.registry import load
from nas.runs.bench import bench, measure, memory
from nas.runs.bench.__main__ import main
from nas.runs.bench.clock import Pieces
from nas.runs.bench.rounds import FIXED, SearchRounds
from nas.runs.bench.steps import noise, path_of, search_subject
from nas.runs.pipeline import configure
from nas.runs.session import session
from nas.space import Cell, CellSlot, Edge, Genotype, SearchSpace, Task

NAMES = ("conv", "relu")
ONE_PATH = ("uniform", "st-gs", "st-gs-single-path", "gdas")
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Plain(SearchSpace):
    """One edge of two candidates whose saved tensors can be counted by hand."""

    channels: int = 5

    operations = {"conv": lambda s: nn.Conv2d(s.channels, s.channels, 1, bias=False), "relu": lambda s: nn.ReLU()}

    @property
    def cells(self):
        return {"cell": Cell((Edge(0, 1, NAMES),), outputs=(1,))}

    def layers(self, task, searching):
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(self.channels, task.classes))
        return [nn.Conv2d(task.channels, self.channels, 1), CellSlot("cell", self.channels), head]


def settings(selector="st-gs", space=None, batch_size=4, backend="reference"):
    return configure(
        space=space or {"name": "nas-bench-201", "channels": 2, "cells_per_stage": 1},
        selector=selector,
        search={"batch_size": batch_size},
        retrain={"batch_size": batch_size},
        engine={"backend": backend},
        tracking={"wandb": "disabled"},
        device="cpu",
        threads=1,
        dataset=noise(Task(channels=3, height=8, width=6, classes=4), batch_size),
    )


@pytest.fixture
def work(tmp_path):
    """Returns a session for a configuration."""
    with session(tmp_path, settings(), "bench", quiet=True) as opened:

        def of(**changes):
            return type(opened)(settings(**changes), tmp_path, opened.tracker, opened.status, opened.stop, True)

        yield of


@pytest.fixture(scope="module")
def measured():
    """Step memory, which takes seconds and is tested by itself, is given."""
    with pytest.MonkeyPatch.context() as patch:
        given = iter([{"weight_step": 300, "architecture_step": 900}, {"weight_step": 300, "architecture_step": 200}])
        patch.setattr(measure, "step_memory", lambda config, genotype: (next(given), ""))
        return bench(settings(), 3, quiet=True)


# The result


def test_the_result_has_ratios_pairs_memory_machine_and_setting(measured):
    assert set(measured) >= {"ratios", "ranges", "pairs", "memory", "overhead_share", "machine", "setting", "notes"}
    steps = {"weight_step", "architecture_step", "bilevel_step"}
    assert set(measured["ratios"]) == steps | {"evaluation", "fixed_weight_step", "step_memory", "saved_activations"}
    assert set(measured["overhead_share"]) == steps
    assert measured["machine"]["threads"] == 1
    assert measured["setting"]["space"]["channels"] == 2
    assert json.loads(json.dumps(measured)) == measured


def test_ratios_are_medians_of_the_raw_pairs(measured):
    for kind, by in measured["pairs"].items():
        ratios = [a / b for a, b in zip(by["reference"]["cpu"], by["backend"]["cpu"], strict=True)]
        assert len(ratios) == 3
        assert measured["ratios"][kind] == median(ratios)
        assert measured["ranges"][kind] == [min(ratios), max(ratios)]
    weight = measured["pairs"]["weight_step"]
    ratios = [a / b for a, b in zip(weight["fixed"]["cpu"], weight["backend"]["cpu"], strict=True)]
    assert measured["ratios"]["fixed_weight_step"] == median(ratios)


def test_a_bilevel_step_is_an_architecture_step_and_a_weight_step(measured):
    pairs = measured["pairs"]
    for name, clock in itertools.product(("reference", "backend"), ("cpu", "wall")):
        parts = zip(pairs["weight_step"][name][clock], pairs["architecture_step"][name][clock], strict=True)
        assert pairs["bilevel_step"][name][clock] == [a + b for a, b in parts]


def test_the_memory_ratio_is_of_the_steps_that_need_the_most(measured):
    assert measured["ratios"]["step_memory"] == 900 / 300
    assert measured["ratios"]["saved_activations"] == 1  # of the reference with itself
    assert measured["memory"]["saved_activations"].keys() == {"reference", "backend", "fixed"}


def test_the_pieces_of_a_step_add_up_to_it(measured):
    for kind, pieces in measured["overhead_seconds"].items():
        assert all(seconds >= 0 for seconds in pieces.values())
        share = 1 - pieces["arithmetic"] / sum(pieces.values())
        assert measured["overhead_share"][kind] == pytest.approx(share)
        assert 0 < share < 1


def test_a_selector_that_learns_nothing_has_weight_steps_only():
    found = bench(settings("uniform"), 1, memory=False, quiet=True)
    assert set(found["ratios"]) == {"weight_step", "evaluation", "fixed_weight_step"}
    assert "no architecture step" in found["notes"][0]


def test_a_retraining_is_measured_alike():
    genotype = load("nas.search_spaces", "nas-bench-201")().parse(
        "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|nor_conv_1x1~2|"
    )
    found = bench(settings(), 1, genotype=genotype, memory=False, quiet=True)
    assert set(found["ratios"]) == {"retraining_step", "evaluation"}
    assert found["setting"]["genotype"].startswith("|nor_conv_3x3~0|")


# What is measured


class Operations(TorchDispatchMode):
    """Notes the operations that run inside, with the shapes of their tensors."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        shapes = tuple(tuple(each.shape) for each in args if isinstance(each, torch.Tensor))
        self.found.append((str(function), shapes))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("selector", ONE_PATH)
def test_the_fixed_network_runs_what_the_sampled_path_runs(selector, work):
    rounds = SearchRounds(work(selector=selector))
    for pair in (1, 2):
        rounds._fix(pair)
        decision = rounds.backend.search.decide(0.5, "train", pair)
        supernet, fixed = rounds.backend.network, rounds.subjects[FIXED].network
        fixed.load_state_dict({name: supernet.state_dict()[name] for name in fixed.state_dict()})
        images, found = rounds.backend.search.train.batch(pair)[0], []
        for network, selections in ((supernet, decision), (fixed, None)):
            network.zero_grad()
            with Operations() as operations:
                scores = network(images, selections).scores
                scores.sum().backward()
            found.append((operations.found, scores))
        assert found[0][0] == found[1][0]
        assert torch.equal(found[0][1], found[1][1])


def test_a_decision_of_several_candidates_is_no_path(work):
    search = search_subject(work(selector="softmax")).search
    assert path_of(search.session.config.space, search.decide(0.5, "train", 0)) is None


def test_reference_and_backend_take_equal_decisions(work):
    rounds = SearchRounds(work(selector="st-gs"))
    for pair in range(2):
        rounds.run(pair)
    rounds._equalise()
    paths = [
        {name: each.paths for name, each in subject.search.decide(0.5, "train", 5).items()}
        for subject in (rounds.reference, rounds.backend)
    ]
    assert paths[0] == paths[1]


def test_every_pair_reverses_the_order(work, monkeypatch):
    rounds, order = SearchRounds(work(selector="uniform")), []
    for name, subject in rounds.subjects.items():
        step = subject.steps["weight_step"]
        monkeypatch.setitem(
            subject.steps, "weight_step", lambda s, step=step, name=name: (order.append((s, name)), step(s))
        )
    for pair in range(1, 4):
        rounds._take("weight_step", ["reference", "backend"], pair)
    names = [name for _, name in order]
    assert names == ["backend", "reference", "reference", "backend", "backend", "reference"]
    assert [step for step, _ in order] == [1, 1, 2, 2, 3, 3]


# The pieces of a step


@pytest.mark.parametrize("selector", ["softmax", "st-gs"])
def test_every_piece_of_a_step_is_counted_once(selector, work):
    """With a clock that ticks when it is read, a piece takes as long as it is called from outside other pieces."""
    subject = search_subject(work(selector=selector))
    cells = len(subject.search.architecture.cells)
    ticks = itertools.count()
    counts = []
    for kind in ("weight_step", "architecture_step"):
        pieces = Pieces(subject.search, ticks.__next__)
        with pieces.watched():
            subject.steps[kind](1)
        counts.append(dict(pieces.seconds))
    assert counts[0] == {"data": 1, "decision": 1, "arithmetic": 2, "clipping": 1, "optimizer": 1}
    # A decision is drawn for each cell; its backward, through the selector, is no arithmetic of the network.
    assert counts[1] == {"data": 1, "decision": cells + 1, "arithmetic": 2, "optimizer": 1}


def test_watching_leaves_no_trace(work):
    search = search_subject(work()).search
    before = torch.autograd.backward, torch.autograd.grad, nn.utils.clip_grad_norm_, type(search.selector).select
    own = [Counter(vars(each).keys()) for each in (search, search.network, search.train, search.weights)]
    with pytest.raises(KeyError), Pieces(search, lambda: 0.0).watched():
        raise KeyError
    after = torch.autograd.backward, torch.autograd.grad, nn.utils.clip_grad_norm_, type(search.selector).select
    assert before == after
    assert own == [Counter(vars(each).keys()) for each in (search, search.network, search.train, search.weights)]


# Memory


@pytest.mark.parametrize("batch_size", [2, 6])
def test_saved_activations_of_the_reference_are_those_counted_by_hand(work, batch_size):
    found = memory.saved_activations(search_subject(work(selector="softmax", space=Plain(), batch_size=batch_size)))
    pixels, channels = batch_size * 8 * 6, 5
    # The stem keeps the images, conv its input, relu its output, the classifier its input, and the products with the
    # decision's weights those two weights.
    weight = 3 * pixels + 2 * channels * pixels + channels * batch_size + 2
    # In the network only the products with the decision's weights keep anything, the outputs of conv and relu; the
    # selector keeps two probabilities and a mask of two booleans.
    architecture = 2 * channels * pixels + 2
    assert found == {"weight_step": 4 * weight, "architecture_step": 4 * architecture + 2}


@pytest.mark.parametrize("selector", ["softmax", "st-gs", "uniform"])
def test_saved_activations_grow_in_proportion_to_the_batch(work, selector):
    small, middle, large = (
        memory.saved_activations(search_subject(work(selector=selector, batch_size=size))) for size in (2, 4, 6)
    )
    for kind in small:
        assert small[kind] < middle[kind]
        assert large[kind] - middle[kind] == middle[kind] - small[kind]


class Storages(TorchDispatchMode):
    """Follows every storage that an operation inside makes."""

    def __init__(self):
        super().__init__()
        self.found = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.found[id(storage)] = weakref.ref(storage)
        return result

    def alive(self):
        return {storage for reference in self.found.values() if (storage := reference()) is not None}


@pytest.mark.parametrize("selector", ["softmax", "st-gs"])
@pytest.mark.parametrize("backend", ["reference", "aten"])
def test_saved_activations_are_what_stays_alive_after_the_forward(work, backend, selector):
    subject = search_subject(work(selector=selector, backend=backend, batch_size=64))
    saved = memory.saved_activations(subject)
    weights = {tensor.untyped_storage().data_ptr() for tensor in subject.network.state_dict(keep_vars=True).values()}
    for kind, step in subject.trained.items():
        alive = []
        with Storages() as storages:
            hook = subject.network.register_forward_hook(lambda *_, s=storages, a=alive: a.extend(s.alive()))
            step(0)
            hook.remove()
        sizes = {each.data_ptr(): each.nbytes() for each in alive}
        size = sum(size for place, size in sizes.items() if place not in weights)
        # Beside what is saved there are the batch, its labels and decisions, and the scores: 64 images of 3x8x6.
        assert saved[kind] <= size <= saved[kind] + 2 * 4 * 64 * 3 * 8 * 6


def test_a_backend_that_holds_buffers_of_its_own_is_counted(work, monkeypatch):
    from nas.supernet import native

    subject = search_subject(work())
    monkeypatch.setattr(native, "held", lambda: 0)
    without = memory.saved_activations(subject)
    monkeypatch.setattr(native, "held", lambda: 1000)
    assert memory.saved_activations(subject)["weight_step"] == without["weight_step"] + 1000


@pytest.mark.slow
def test_step_memory_is_measured_in_a_process_of_its_own():
    small, large = (memory.step_memory(settings("softmax", batch_size=size), None) for size in (8, 512))
    assert small[1] == large[1] == ""
    for kind in ("weight_step", "architecture_step"):
        # What is saved is a part of what a step needs.
        assert large[0][kind] - small[0][kind] > memory_of(512)[kind] - memory_of(8)[kind] > 0


def memory_of(batch_size):
    with (
        TemporaryDirectory() as folder,
        session(Path(folder), settings("softmax", batch_size=batch_size), "bench") as w,
    ):
        return memory.saved_activations(search_subject(w))


def test_the_process_that_measures_memory_reads_and_prints_json(monkeypatch, capsys):
    given = {"config": to_tree(settings("softmax")), "genotype": None}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(given)))
    main()
    found = json.loads(capsys.readouterr().out)
    assert found["reason"] == ""
    assert found["peaks"].keys() == {"weight_step", "architecture_step"}
    assert all(isinstance(peak, int) for peak in found["peaks"].values())


def test_a_process_that_fails_is_reported(monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    assert memory.step_memory(settings(), None) == (None, "the process that measures it failed: exit code 1")


def test_what_cannot_be_measured_is_said(work, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "RESET", tmp_path / "absent" / "clear_refs")
    found, reason = memory.peaks(work(selector="uniform"), None)
    assert found is None
    assert "Linux only" in reason


# The command


def test_the_command_prints_json_or_a_table(nas_command):
    arguments = ("--set", "space.channels=2", "--batch-size", 2, "--threads", 1, "--pairs", 1, "--image", 8)
    arguments = ("bench", *arguments, "--backend", "reference", "--no-memory", "--device", "cpu")
    outcome = nas_command(*arguments, "--selector", "softmax", "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["setting"]["image"] == [3, 8, 8]
    assert (found["setting"]["batch_size"], found["setting"]["backend"]) == (2, "reference")
    assert "bench  2/2" in outcome.err
    outcome = nas_command(*arguments, "--dataset", "digits", "--quiet")
    assert (outcome.code, outcome.err) == (0, "")
    for part in ("weight step", "plain fixed network", "bilevel step", "ratio", "not model arithmetic", "1x8x8"):
        assert part in outcome.out


def test_help_has_examples(nas_command):
    outcome = nas_command("bench", "--help")
    assert outcome.code == 0
    assert "\n  nas bench --space" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--pairs", 0), ("--pairs", "at least 1", "0")),
        (("--image", 0), ("--image", "at least 1")),
        (("--backend", "fast"), ("engine.backend", "reference", "'fast'")),
        (("--batch-size", 0), ("batch_size", "at least 1", "--batch-size")),
        (("--batch-size", 1, "--image", 4, "--set", "space.channels=2"), ("one value per channel", "batch_size")),
        (("--genotype", "none.json"), ("none.json", "no readable file")),
        (("--genotype", "|none~0|"), ("|none~0|",)),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, parts, nas_command):
    outcome = nas_command("bench", "--threads", 1, "--no-memory", "--device", "cpu", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert "Traceback" not in outcome.err
    for part in parts:
        assert part in outcome.err


def test_pairs_are_checked_from_python_too():
    with pytest.raises(ConfigError, match="at least 1"):
        bench(settings(), 0)


def test_a_signal_stops_after_the_pair(monkeypatch):
    run = SearchRounds.run

    def stopped(self, pair):
        run(self, pair)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(SearchRounds, "run", stopped)
    with pytest.raises(Interrupted, match="SIGINT after 0 of 3 pairs"):
        bench(settings("uniform"), 3, memory=False, quiet=True)


def test_a_genotype_of_an_unknown_space_is_refused():
    with pytest.raises(ConfigError, match="another space"):
        bench(settings(), 1, genotype=Genotype({"other": ()}), memory=False)
