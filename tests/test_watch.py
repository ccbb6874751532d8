"""The collapse watch: each signal by hand, the rule on growth, what it does when it fires, and that it resumes."""

import json
import logging
import math
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import nas
from nas import registry
from nas.checkpoint import latest
from nas.derivation import discretise, strongest
from nas.errors import ConfigError
from nas.estimators import gumbel_softmax
from nas.randomness import generator
from nas.report.tables import show_search
from nas.runs.derive import default_rule
from nas.runs.folder import Run
from nas.runs.search import BilevelSearch
from nas.runs.session import session
from nas.runs.watch import Watch
from nas.runs.watch.curvature import Hessian, growth, is_smooth, largest_eigenvalue
from nas.runs.watch.messages import SIGNALS
from nas.runs.watch.signals import learned_genotype, parameter_free, relative_entropy, share_without_parameters
from nas.runs.watch.watching import Watching
from nas.selection import Selection
from nas.selectors import Selector
from nas.selectors.edges import EdgeGates, EdgeTopK
from nas.selectors.softmax import Softmax
from nas.space import Genotype, Task
from nas.subspace import Subspace
from nas.supernet.statistics import untouched_statistics
from search_spaces.chain import Chain
from search_spaces.darts import DARTS
from search_spaces.nas_bench_201 import NASBench201

TASK = Task(channels=1, height=8, width=8, classes=10)
CELL = NASBench201(channels=4, cells_per_stage=1)

# Three steps an epoch, four epochs.
SMALL = {
    "space": {"name": "nas-bench-201", "channels": 4, "cells_per_stage": 1},
    "selector": "softmax",
    "dataset": {"limit": 48},
    "search": {"epochs": 4, "batch_size": 16, "warmup": 0.0},
    "threads": 1,
    "tracking": {"wandb": "disabled"},
}
STEPS, PER_EPOCH = 12, 3


@pytest.fixture
def work(tmp_path):
    """A session with a fresh search: `work(selector="sigmoid", watch={"every": 2})`."""
    opened = []

    def open_session(watch=None, **sections):
        search = {**SMALL["search"], **sections.pop("search", {}), "watch": watch or {}}
        config = nas.configure(**{**SMALL, **sections, "search": search})
        manager = session(tmp_path / f"work-{len(opened)}", config, "search", quiet=True)
        opened.append(manager)
        return BilevelSearch(manager.__enter__())

    yield open_session
    for manager in reversed(opened):
        manager.__exit__(None, None, None)


def prefer(search, operation, cells=None):
    """Raises one operation's logits on all edges that offer it."""
    with torch.no_grad():
        for name, cell in search.architecture.cells.items():
            for e, edge in enumerate(cell.edges):
                if operation in edge.operations:
                    search.architecture.tables[name][e, edge.operations.index(operation)] = 5.0


# Candidates without parameters


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (CELL, {"none", "skip_connect", "avg_pool_3x3"}),
        (Chain(channels=4), {"skip_connect"}),
        # The skips of a reduction cell that leave an input are factorised reductions, with parameters.
        (DARTS(channels=4, depth=3, nodes=2), {"none", "skip_connect", "avg_pool_3x3", "max_pool_3x3"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_operations_without_parameters_are_found_from_the_space(space, expected):
    assert parameter_free(space, TASK) == expected


def test_the_share_counts_the_edges_of_the_genotype():
    free = parameter_free(CELL, TASK)
    choices = [(0, 1, "none"), (0, 2, "skip_connect"), (1, 2, "nor_conv_1x1"), (0, 3, "avg_pool_3x3")]
    genotype = Genotype({"cell": (*choices, (1, 3, "nor_conv_3x3"), (2, 3, "nor_conv_3x3"))})
    assert share_without_parameters(genotype, CELL.cells, free) == 3 / 6


def test_the_share_counts_only_edges_that_had_the_choice():
    """The first block of a stage of `chain` cannot be skipped."""
    space = Chain(channels=4, stages=2, blocks_per_stage=3)
    taken = {f"stage{stage}-block{block}": "mb_k3_e3" for stage in (0, 1) for block in range(3)}
    taken["stage1-block1"] = "skip_connect"
    genotype = Genotype({name: ((0, 1, operation),) for name, operation in taken.items()})
    assert share_without_parameters(genotype, space.cells, frozenset({"skip_connect"})) == 1 / 4
    assert share_without_parameters(genotype, space.cells, frozenset()) is None


def test_the_genotype_is_that_of_the_default_derivation(generator):
    """In the DARTS space `none`, though the most probable, is excluded, and nodes keep two in-edges."""
    for space in (DARTS(channels=4, depth=3, nodes=2), CELL):
        ranking = {
            name: torch.rand(cell.mask.shape, generator=generator) + 2 * torch.eye(cell.candidates)[0]
            for name, cell in space.cells.items()
        }
        config = nas.configure(**{**SMALL, "space": space})
        assert learned_genotype(space, ranking) == default_rule(config).derive(space, ranking, None, generator)


def test_no_genotype_follows_from_closed_edges_and_none_from_equal_candidates():
    assert learned_genotype(CELL, {"cell": torch.zeros(6, 5)}) is None
    assert learned_genotype(CELL, {"cell": torch.full((6, 5), 0.2)}) is None


# Entropy


def test_the_relative_entropy_is_the_mean_over_edges_with_a_choice():
    four = ("none", "skip_connect", "avg_pool_3x3", "nor_conv_1x1")
    space = Subspace(base=CELL, kept={"cell": (("none", "skip_connect"), ("none",), *[four] * 4)})
    rows = [[0.9, 0.1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0], [0, 1, 0, 0]]
    binary = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1)) / math.log(2)
    expected = (binary + 0 + 1 + 0.5 + 0) / 5
    live = {"cell": space.cells["cell"].mask}
    found = relative_entropy(live, {"cell": torch.tensor(rows, dtype=torch.float64)})
    assert found == pytest.approx(expected, rel=1e-12)


def test_without_a_choice_there_is_no_entropy():
    space = Subspace(base=CELL, kept={"cell": (("none",),) * 6})
    assert relative_entropy({"cell": space.cells["cell"].mask}, {"cell": torch.ones(6, 1)}) is None


def test_the_entropy_is_relative_to_the_candidates_that_are_left():
    left = torch.tensor([[True, False, True, False]])
    assert relative_entropy({"cell": left}, {"cell": torch.tensor([[0.5, 0, 0.5, 0]])}) == pytest.approx(1)


# Discretisation


def test_the_discretisation_is_supernet_less_discretised_accuracy_on_select(work):
    search = work(watch={"discretisation": 50.0})
    for step in range(PER_EPOCH):
        search.step(step, 0.1)
    prefer(search, "none")  # the discretised supernet knows nothing of its images
    found = search.end_epoch(1, 0.2)
    evaluator, space = search.session.evaluator, search.session.config.space
    table, mask = search.architecture.logits()["cell"].detach(), space.cells["cell"].mask
    genotype = strongest(space, search.probabilities())
    assert {operation for _, _, operation in genotype.cells["cell"]} == {"none"}
    supernet = evaluator.accuracy(search.network, {"cell": Selection.mixture(table.softmax(-1), mask)}, "select")[0]
    inherited = evaluator.accuracy(search.network, discretise(space, genotype), "select")[0]
    assert found["watch/discretisation"] == found["select"] - inherited == supernet - inherited


# The largest eigenvalue


def symmetric(spectrum, generator):
    n = len(spectrum)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return q @ torch.diag(torch.tensor(spectrum, dtype=torch.float64)) @ q.T


@pytest.mark.parametrize(
    "spectrum",
    [
        [5.0, 2.0, 1.0, 0.0],
        [2.0, 1.0, 0.5, -5.0],  # the largest magnitude is negative: the second iteration finds the largest
        [2.0, 1.0, 0.5, -2.0],  # a tie, which does not converge without it
        [-1.0, -2.0, -4.0, -8.0],
        [3.0, 3.0, 3.0, -1.0],
    ],
)
@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-6])
def test_power_iteration_finds_the_algebraically_largest_eigenvalue(spectrum, tolerance, generator):
    """A residual r leaves an eigenvalue within r; here the others are further away than the tolerance."""
    matrix = symmetric(spectrum, generator)
    start = torch.randn(len(spectrum), generator=generator, dtype=torch.float64)
    value, residual = largest_eigenvalue(lambda v: matrix @ v, start, tolerance, 2000)
    assert residual <= tolerance * abs(value)
    assert abs(value - max(spectrum)) <= residual + 1e-12


def test_a_matrix_of_zeros_has_eigenvalue_zero():
    assert largest_eigenvalue(torch.zeros_like, torch.ones(3), 0.01, 10) == (0.0, 0.0)


def test_the_number_of_products_is_limited_and_the_residual_says_what_is_left(generator):
    matrix, calls = symmetric([1.0, 0.999, 0.998], generator), []
    start = torch.randn(3, generator=generator, dtype=torch.float64)
    value, residual = largest_eigenvalue(lambda v: calls.append(1) or matrix @ v, start, 1e-9, 7)
    assert len(calls) == 2 * 7
    assert residual > 1e-9 * value
    assert min(abs(value - each) for each in (1.0, 0.999, 0.998)) <= residual


def doubled(search):
    """A search in float64, after two steps."""
    for step in range(2):
        search.step(step, 0.1)
    search.network.double()
    search.architecture.double()
    for batches in (search.arch, search.train):
        plain = batches.batch
        batches.batch = lambda step, plain=plain: (plain(step)[0].double(), plain(step)[1])
    return search


def plain_weights(search, table):
    """The weights of a decision, written again; the one draw of Gumbel noise is keyed as the watch's."""
    if isinstance(search.selector, Softmax):
        return table.softmax(-1)
    if search.selector.stochastic:
        return gumbel_softmax(table, search.selector.temperature(0.3), generator(search.seed, "watch", "decide"))
    return table.sigmoid()


def true_hessian(search, batches):
    """The whole Hessian, (n, n), by torch, of the loss on the first batch."""
    ((name, table),) = search.architecture.tables.items()
    mask = search.architecture.cells[name].mask
    images, labels = batches.batch(0)

    def loss(flat):
        logits = flat.view_as(table).masked_fill(~mask, -torch.inf)
        decision = {name: Selection.mixture(plain_weights(search, logits), mask)}
        with untouched_statistics(search.network):
            return F.cross_entropy(search.network(images, decision).scores, labels)

    return torch.autograd.functional.hessian(loss, table.detach().flatten())


MASKED = Subspace(
    base=CELL,
    kept={"cell": (*[("skip_connect", "nor_conv_3x3", "avg_pool_3x3")] * 3, *[("skip_connect", "nor_conv_1x1")] * 3)},
)


@pytest.mark.parametrize("selector", ["softmax", "sigmoid", "gumbel-softmax"])
def test_products_and_largest_eigenvalue_are_those_of_the_whole_hessian(selector, work, generator):
    """Products are exact in float64 but for rounding; the eigenvalue is within its tolerance."""
    search = doubled(work(selector=selector, space=MASKED, engine={"backend": "reference"}))
    expected = true_hessian(search, search.arch)
    hessian = Hessian(search, 0.3)
    v = torch.randn(len(expected), generator=generator, dtype=torch.float64)
    scale = torch.linalg.matrix_norm(expected, 2).item()
    torch.testing.assert_close(hessian(v), expected @ v, rtol=0, atol=1e-10 * scale * v.norm().item())
    largest = torch.linalg.eigvalsh(expected)[-1].item()
    value, residual = hessian.largest(0, 0.01, 100)
    assert residual <= 0.01 * value
    assert value == pytest.approx(largest, rel=0.01)


def test_the_hessian_is_of_the_loss_on_arch_images_and_not_on_training_images(work, generator):
    search = doubled(work(space=MASKED, engine={"backend": "reference"}))
    arch, train = (true_hessian(search, batches) for batches in (search.arch, search.train))
    assert (arch - train).norm() > 0.1 * arch.norm()
    v = torch.randn(len(arch), generator=generator, dtype=torch.float64)
    found = Hessian(search, 0.3)(v)
    assert (found - arch @ v).norm() < 1e-9 * (found - train @ v).norm()


def state(search):
    modules = (search.network, search.architecture)
    return [value.clone() for module in modules for value in module.state_dict().values()]


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("backend", ["native", "aten"])
def test_measuring_leaves_everything_as_it_was(backend, work):
    on = {"parameter_free": 1.0, "entropy": 0.0, "discretisation": 99.0, "eigenvalue": 1e9, "iterations": 2}
    search = work(watch=on, engine={"backend": backend})
    search.step(0, 0.1)
    run, fast = search.network.run, search.network.fast
    before = state(search)
    gradients = [None if each.grad is None else each.grad.clone() for each in search.network.parameters()]
    torch.manual_seed(3)
    random = torch.get_rng_state()
    Hessian(search, 0.3).largest(0, 0.1, 2)
    assert torch.equal(torch.get_rng_state(), random)
    names = ("parameter_free", "entropy", "discretisation", "eigenvalue", "largest_eigenvalue", "residual")
    assert search.watch.end_epoch(1, 0.2).keys() == {f"watch/{name}" for name in names}
    assert same(state(search), before)
    assert (search.network.run, search.network.fast, search.network.training) == (run, fast, True)
    assert all(each.requires_grad for each in search.network.parameters())
    for each, gradient in zip(search.network.parameters(), gradients, strict=True):
        assert each.grad is gradient is None or torch.equal(each.grad, gradient)


def test_one_batch_and_one_draw_serve_all_epochs(work):
    """So that what grows is the curvature: nothing changed, and the eigenvalue is the same to the bit."""
    search = work(selector="gumbel-softmax", watch={"eigenvalue": 2.0, "iterations": 3})
    values = [search.watch.end_epoch(epoch, 0.2)["watch/largest_eigenvalue"] for epoch in (1, 2)]
    assert values[0] == values[1]


SMOOTH = {"softmax", "sigmoid", "gumbel-softmax"}
NAMED = {name: registry.load(Selector.registry, name) for name in registry.names(Selector.registry)}


@pytest.mark.parametrize("space", [CELL, DARTS(channels=4, nodes=2)], ids=["nas-bench-201", "darts"])
@pytest.mark.parametrize("name", [name for name, selector in NAMED.items() if not hasattr(selector, "inner")])
def test_decisions_that_have_a_hessian_are_told_from_those_that_have_none(name, space):
    selector = NAMED[name]().on(space.cells)
    assert is_smooth(selector, space.cells, 0, 0.0) == (name in SMOOTH)


def test_a_selector_around_another_is_as_smooth_as_both():
    assert is_smooth(EdgeGates(inner=Softmax()), CELL.cells, 0, 0.0)
    assert not is_smooth(EdgeTopK(inner=Softmax()).on(CELL.cells), CELL.cells, 0, 0.0)


@pytest.mark.parametrize("selector", ["st-gs", "entmax", "uniform"])
def test_the_eigenvalue_is_refused_where_there_is_none(selector, nas_command, tmp_path):
    small = ("space.channels=4", "dataset.limit=48", "search.batch_size=16", "search.watch.eigenvalue=1.333")
    settings = [part for each in small for part in ("--set", each)]
    outcome = nas_command("search", "--selector", selector, "--out", tmp_path / "run", *settings)
    assert outcome.code == 2
    assert "search.watch.eigenvalue=1.333 needs decisions that are twice differentiable" in outcome.err
    assert not (tmp_path / "run" / "checkpoints").exists()


# The rule on its growth


def test_the_growth_is_that_of_the_published_rule():
    """Five values are averaged, fewer at the beginning, and averages five apart are compared."""
    values = [3.0, 1.0, 2.0, 6.0, 4.0, 5.0, 7.0, 8.0, 9.0, 20.0, 11.0]
    assert [growth(values[:n], 5) for n in range(8)] == [None] * 8
    assert growth(values[:8], 5) == pytest.approx((30 / 5) / (6 / 3))  # around 5, from around 0
    assert growth(values[:9], 5) == pytest.approx((33 / 5) / (12 / 4))
    assert growth(values[:10], 5) == pytest.approx((49 / 5) / (16 / 5))
    assert growth(values[:11], 5) == pytest.approx((55 / 5) / (18 / 5))


def test_there_is_no_growth_from_a_curvature_that_is_not_positive():
    assert growth([-1.0, 2.0], 1) is None
    assert growth([0.0, 2.0], 1) is None
    assert growth([1.0, 2.0], 1) == 2.0


# When it fires


class Heard(logging.Handler):
    def __init__(self):
        super().__init__()
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


@pytest.fixture
def heard():
    handler = Heard()
    logger = logging.getLogger("nas.runs.watch")
    logger.addHandler(handler)
    yield handler.messages
    logger.removeHandler(handler)


def at_epochs(search, monkeypatch, rows):
    """Lets the watch of an unstarted search measure given values, epoch by epoch; returns its summary."""
    for epoch, row in enumerate(rows, start=1):
        monkeypatch.setattr(Watching, "_measure", lambda *_, row=row: dict(row))
        search.watch.end_epoch(epoch, 0.0)
    return search.watch.summary()


AT = {"parameter_free": 0.5, "entropy": 0.25, "discretisation": 8.0, "eigenvalue": 1.5}


@pytest.mark.parametrize(
    ("name", "value", "fires"),
    [
        ("parameter_free", 0.5, True),
        ("parameter_free", 0.49, False),
        ("entropy", 0.24, True),
        ("entropy", 0.25, False),
        ("discretisation", 8.0, True),
        ("discretisation", 7.9, False),
        ("eigenvalue", 1.51, True),
        ("eigenvalue", 1.5, False),
        ("eigenvalue", math.nan, False),
        ("parameter_free", math.nan, False),
    ],
)
def test_a_signal_fires_from_its_threshold_on(name, value, fires, work, monkeypatch, heard):
    search = work(watch={**AT, "from_progress": 0.0})
    found = at_epochs(search, monkeypatch, [{name: value}])
    expected = [{"signal": name, "epoch": 1, "value": value, "threshold": AT[name]}]
    assert found["fired"] == (expected if fires else [])
    assert len(heard) == fires
    if fires:
        for part in ("epoch 1", f"search.watch.{name}={AT[name]:g}", "What helps: search."):
            assert part in heard[0]


def test_most_signals_are_judged_late_and_the_entropy_early(work, monkeypatch):
    """Half of four epochs is over when the second ends."""
    bad = {"parameter_free": 1.0, "discretisation": 50.0, "eigenvalue": 9.0}
    found = at_epochs(work(watch=AT), monkeypatch, [{**bad, "entropy": 1.0}] * 4)
    assert {each["signal"]: each["epoch"] for each in found["fired"]} == dict.fromkeys(bad, 2)
    for first, epochs in ((1, [1]), (2, [2]), (3, [])):
        rows = [{"entropy": 1.0}] * (first - 1) + [{"entropy": 0.0}] * (5 - first)
        found = at_epochs(work(watch=AT), monkeypatch, rows)
        assert [each["epoch"] for each in found["fired"]] == epochs


def test_it_warns_once_of_each_signal(work, monkeypatch, heard):
    search = work(watch={**AT, "from_progress": 0.0})
    rows = [{"parameter_free": 1.0}, {"parameter_free": 1.0, "discretisation": 9.0}, {"discretisation": 9.0}]
    found = at_epochs(search, monkeypatch, rows)
    assert [(each["signal"], each["epoch"]) for each in found["fired"]] == [
        ("parameter_free", 1),
        ("discretisation", 2),
    ]
    assert len(heard) == 2
    assert search.watch.ended == -1


def test_it_measures_every_few_epochs(work):
    search = work(watch={"every": 2})
    assert [bool(search.watch.end_epoch(epoch, 0.0)) for epoch in range(1, 5)] == [False, True, False, True]


def test_signals_that_are_off_are_not_measured(work):
    assert work(watch={"parameter_free": None}).watch.end_epoch(1, 0.0).keys() == {"watch/entropy"}
    assert work(watch={"parameter_free": None, "entropy": None}).watch.end_epoch(4, 1.0) == {}


def test_a_selector_that_learns_no_logits_is_not_watched(work):
    search = work(selector="uniform", watch={"parameter_free": 0.0, "discretisation": 0.1})
    assert search.watch.end_epoch(4, 1.0) == {}
    assert search.watch.summary()["parameter_free"] is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"span": 0}, "span must be at least 1, got 0"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"from_progress": 1.5}, "from_progress must be from 0 to 1, got 1.5"),
        ({"parameter_free": -0.5}, "parameter_free must be from 0 to 1, got -0.5"),
        ({"entropy": math.nan}, "entropy must be from 0 to 1, got nan"),
        ({"discretisation": 0.0}, "discretisation must be positive, got 0"),
        ({"eigenvalue": 0.75}, "eigenvalue must be above 1, since it is a growth, got 0.75"),
        ({"tolerance": 1.0}, "tolerance must be between 0 and 1, got 1"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Watch(**settings)


def test_the_remedies_name_modifiers_that_exist():
    listed = registry.names("nas.modifiers")
    words = {word.strip(",") for signal in SIGNALS.values() for word in signal.remedy.split()}
    assert {word for word in words if "-" in word and "." not in word} <= {*listed, "st-gs"}
    assert "perturbed-weights" in words


# Rolling back


def test_it_rolls_back_to_the_last_epoch_at_which_all_was_well(work, monkeypatch):
    """The second epoch is bad, though not yet judged."""
    search = work(watch={**AT, "action": "roll-back", "from_progress": 0.75})
    logits = []
    for epoch, share in enumerate((0.0, 1.0, 1.0), start=1):
        prefer(search, "nor_conv_3x3" if epoch == 1 else "skip_connect")
        logits.append({name: table.detach().clone() for name, table in search.architecture.tables.items()})
        monkeypatch.setattr(Watching, "_measure", lambda *_, share=share: {"parameter_free": share})
        search.watch.end_epoch(epoch, 0.0)
    assert search.watch.summary()["rolled_back_to"] == 1
    assert search.watch.ended == 3 * PER_EPOCH
    assert torch.equal(search.architecture.tables["cell"], logits[0]["cell"])


def test_it_rolls_back_to_the_candidates_that_were_left_then(work, monkeypatch):
    search = work(watch={**AT, "action": "roll-back", "from_progress": 0.0})
    mask = search.architecture.live["cell"]
    before = search.architecture.logits()["cell"].detach().clone()
    search.architecture.drop({"cell": torch.arange(mask.shape[1]).expand_as(mask) == 2})
    assert at_epochs(search, monkeypatch, [{"parameter_free": 1.0}])["rolled_back_to"] == 0
    assert torch.equal(search.architecture.logits()["cell"], before)


def test_without_any_good_epoch_it_rolls_back_to_the_beginning(work, monkeypatch):
    search = work(watch={**AT, "action": "roll-back", "from_progress": 0.0})
    before = search.architecture.tables["cell"].detach().clone()
    prefer(search, "skip_connect")
    assert at_epochs(search, monkeypatch, [{"parameter_free": 1.0}])["rolled_back_to"] == 0
    assert torch.equal(search.architecture.tables["cell"], before)


def test_the_published_rule_ends_a_search_and_returns_to_where_the_growth_began(work, monkeypatch):
    """Averages of five, five apart: with the tenth value the average around 8 is compared with that around 3."""
    values = [1.0, 1.1, 1.0, 0.9, 1.0, 1.0, 1.2, 1.3, 1.4, 2.6, 9.0, 9.0]
    smoothed = [np.mean(values[max(i - 2, 0) : i + 3]) for i in range(8)]
    assert [bool(now / before > 1 / 0.75) for before, now in zip(smoothed, smoothed[5:], strict=False)] == [
        False,
        False,
        True,
    ]
    settings = {
        "action": "roll-back",
        "eigenvalue": 1 / 0.75,
        "from_progress": 0.0,
        "parameter_free": None,
        "entropy": None,
    }
    search = work(search={"epochs": 12}, watch=settings)
    remaining = iter(values)
    monkeypatch.setattr(Hessian, "largest", lambda *_: (next(remaining), 0.0))
    logits = [search.architecture.tables["cell"].detach().clone()]
    for epoch in range(1, 11):
        with torch.no_grad():
            search.architecture.tables["cell"].add_(1.0)
        logits.append(search.architecture.tables["cell"].detach().clone())
        assert search.watch.ended == -1
        search.watch.end_epoch(epoch, 0.0)
    found = search.watch.summary()
    assert (found["ended"], found["rolled_back_to"]) == (10, 3)  # counted from 1: around 8 and around 3
    assert found["fired"][0]["value"] == pytest.approx(smoothed[7] / smoothed[2])
    assert torch.equal(search.architecture.tables["cell"], logits[3])


# The whole search


def flags(**watch):
    tree = {"space": "nas-bench-201", "space.channels": 4, "space.cells_per_stage": 1, "selector": "softmax"}
    tree |= {"dataset.limit": 48, "threads": 1, "search.epochs": 4, "search.batch_size": 16, "search.warmup": 0.0}
    tree |= {f"search.watch.{key}": value for key, value in watch.items()}
    return [part for key, value in tree.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture
def collapsing(monkeypatch):
    """Searches whose logits prefer skips from the seventh step on; logs the logits after each step."""
    logits = {}
    step = BilevelSearch.step

    def collapse(self, number, progress):
        values = step(self, number, progress)
        if number >= 2 * PER_EPOCH:
            prefer(self, "skip_connect")
        logits[number + 1] = self.architecture.tables["cell"].detach().clone()
        return values

    monkeypatch.setattr(BilevelSearch, "step", collapse)
    return logits


def read(folder, name):
    return json.loads((folder / name).read_text())


@pytest.mark.parametrize(("action", "epochs"), [("warn", 4), ("stop", 3), ("roll-back", 3)])
def test_a_collapsing_search_is_warned_of_stopped_or_rolled_back(
    action, epochs, collapsing, nas_command, tmp_path, caplog
):
    folder = tmp_path / "run"
    outcome = nas_command("search", *flags(action=action), "--out", folder)
    assert outcome.code == 0, outcome.err
    found = read(folder, "search.json")["watch"]
    assert found == {
        "parameter_free": found["parameter_free"],
        "fired": [{"signal": "parameter_free", "epoch": 3, "value": 1.0, "threshold": 0.9}],
        "ended": None if action == "warn" else 3,
        "epochs": 4,
        "rolled_back_to": 2 if action == "roll-back" else None,
    }
    warnings = [record.getMessage() for record in caplog.records if "collapse watch" in record.getMessage()]
    assert len(warnings) == 1
    assert "collapse watch, epoch 3: 100% of the edges" in warnings[0]
    assert "perturbed-weights" in warnings[0]
    saved = latest(folder / "checkpoints")
    assert saved.step == epochs * PER_EPOCH
    source = 2 * PER_EPOCH if action == "roll-back" else saved.step
    assert torch.equal(saved.tensors["architecture"]["tables.cell"], collapsing[source])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    shares = [row["watch/parameter_free"] for row in rows if "epoch" in row]
    assert len(shares) == epochs
    assert shares[2] == 1.0 > max(shares[:2])
    assert found["parameter_free"] == (shares[1] if action == "roll-back" else 1.0)
    # What is told: the table, JSON, the status.
    assert "100% of the edges of the most probable genotype" in outcome.out
    again = nas_command("resume", folder, "--json")
    assert json.loads(again.out)["watch"] == found
    status = read(folder, "status.json")
    assert (status["state"], status["stage"]) == ("done", "search")
    for text in (outcome.out, status["message"]) if action != "warn" else ():
        assert "the watch ended the search after epoch 3 of 4" in text
        assert ("the logits are those of epoch 2" in text) == (action == "roll-back")


def test_the_genotype_comes_from_the_logits_of_the_epoch_rolled_back_to(collapsing, nas_command, tmp_path):
    folder = tmp_path / "run"
    nas_command("search", *flags(action="roll-back"), "--out", folder)
    genotype = nas.derive(folder, quiet=True)
    assert genotype == strongest(CELL, {"cell": collapsing[2 * PER_EPOCH].softmax(-1)})
    assert {operation for _, _, operation in genotype.cells["cell"]} != {"skip_connect"}


def test_a_healthy_search_is_told_to_be_one(nas_command, tmp_path):
    outcome = nas_command("search", *flags(parameter_free=1.0), "--out", tmp_path / "run")
    assert "without parameters; collapse watch: nothing fired" in " ".join(outcome.out.split())


def test_resuming_a_search_that_the_watch_ended_does_nothing(collapsing, nas_command, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    printed = nas_command("search", *flags(action="roll-back"), "--out", folder).out

    def refuse(*arguments):
        raise AssertionError("it trains")

    monkeypatch.setattr(BilevelSearch, "step", refuse)
    before = products(folder)
    (folder / "search.json").unlink()  # as if killed before it was written
    for command in (["resume", folder], ["search", *flags(action="roll-back"), "--out", folder]):
        outcome = nas_command(*command)
        assert (outcome.code, outcome.out) == (0, printed)
        assert products(folder) == before


def products(folder: Path) -> dict[str, bytes]:
    """What is compared for bytes: not what holds times, nor checkpoints before the last."""
    last = max((folder / "checkpoints").iterdir())
    files = [
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("status.json", "environment.json", ".lock")
    ]
    kept = [path for path in files if not path.is_relative_to(folder / "checkpoints") or path.is_relative_to(last)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


ALL = {
    "parameter_free": 1.0,
    "discretisation": 99.0,
    "eigenvalue": 1e6,
    "span": 1,
    "from_progress": 0.0,
    "iterations": 3,
}


@pytest.mark.parametrize(
    ("action", "stops"),
    [
        ("warn", (2, 8, 9)),  # in the first epoch, before it fires, and where it fires
        ("roll-back", (2, 8, 9)),
        pytest.param("roll-back", tuple(range(1, STEPS)), marks=pytest.mark.slow),
    ],
)
def test_a_search_stopped_again_and_again_fires_and_ends_with_the_same_bits(
    action, stops, collapsing, nas_command, tmp_path, monkeypatch
):
    """The growth of the eigenvalue needs what was measured in an earlier process; the end needs no step."""
    command = ["search", *flags(**ALL, action=action)]
    assert nas_command(*command, "--out", tmp_path / "undisturbed").code == 0
    expected = products(tmp_path / "undisturbed")
    growths = [json.loads(line).get("watch/eigenvalue") for line in expected["metrics.jsonl"].splitlines()]
    assert sum(isinstance(each, float) for each in growths) >= 2
    step, folder, found = BilevelSearch.step, tmp_path / "run", []

    def interrupted(self, number, progress):
        values = step(self, number, progress)
        if number + 1 in stops:
            signal.raise_signal(signal.SIGTERM)
        return values

    monkeypatch.setattr(BilevelSearch, "step", interrupted)
    while (outcome := nas_command(*command, "--out", folder)).code == 143:
        found.append(read(folder, "status.json")["step"])
    assert outcome.code == 0, outcome.err
    last = STEPS if action == "warn" else 3 * PER_EPOCH
    assert found == [stop for stop in stops if stop < last]
    assert products(folder).keys() == expected.keys()
    assert [name for name, data in products(folder).items() if data != expected[name]] == []


@pytest.mark.parametrize("selector", ["softmax", "st-gs"])
def test_a_watch_that_does_not_fire_changes_no_bit(selector, nas_command, tmp_path):
    on = {"parameter_free": 1.0, "entropy": 0.0, "discretisation": 99.0, "action": "roll-back", "from_progress": 1.0}
    if selector == "softmax":
        on |= {"eigenvalue": 1e6, "iterations": 3}
    off = {"parameter_free": "null", "entropy": "null"}
    found = []
    for name, watch in (("on", on), ("off", off)):
        command = ["search", *flags(**watch), "--selector", selector, "--out", tmp_path / name]
        assert nas_command(*command).code == 0
        files = products(tmp_path / name)
        rows = [json.loads(line) for line in files["metrics.jsonl"].splitlines()]
        measured = [key for row in rows for key in row if key.startswith("watch/")]
        assert bool(measured) == (name == "on")
        tensors = {path: data for path, data in files.items() if path.endswith(".safetensors") and "watch" not in path}
        assert len(tensors) == 5
        plain = [{key: value for key, value in row.items() if not key.startswith("watch/")} for row in rows]
        found.append((tensors, plain))
    assert found[0] == found[1]


def test_all_stages_follow_a_search_that_the_watch_ended(collapsing, tmp_path):
    search = {**SMALL["search"], "watch": {"action": "stop"}}
    run = nas.search(out=tmp_path / "run", quiet=True, **{**SMALL, "search": search})
    nas.derive(run, quiet=True)
    report = nas.measure_gap(Run.open(run.folder), quiet=True, retrain={"epochs": 1, "seeds": 1}, gap={"random": 0})
    assert (
        report["genotype"]
        == "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|skip_connect~2|"
    )


def test_the_refusal_names_what_would_do(work):
    with pytest.raises(ConfigError, match="selector softmax, sigmoid or gumbel-softmax"):
        work(selector="gdas", watch={"eigenvalue": 2.0})


def test_a_reader_is_told_if_the_logits_prefer_next_to_nothing(capsys):
    def told(*probabilities: float, learned: bool = True) -> bool:
        edge = {"cell": "a", "source": 0, "target": 1, "probabilities": dict(zip("xyz", probabilities, strict=False))}
        alone = {**edge, "probabilities": {"x": 1.0}}  # without a choice
        found = {"edges": [edge, alone], "entropy": 1.0, "select": 50.0, "watch": {"parameter_free": None}}
        show_search(found, "folder", learned=learned)
        return "next to nothing" in " ".join(capsys.readouterr().out.split())

    assert told(0.34, 0.33, 0.33)
    assert not told(0.4, 0.3, 0.3)
    assert not told(0.34, 0.33, 0.33, learned=False)
    assert not told(1.0)
