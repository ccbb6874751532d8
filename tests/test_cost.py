"""Costs of derived networks, and searches that keep them below a target."""

import itertools
import json
import logging
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import nas
from nas.architecture import Architecture
from nas.benchmarks import Benchmark, Table
from nas.checkpoint import latest
from nas.cost import Cost, Costs, Quantity, Target, bounds, candidate_costs, expected_cost, quantities
from nas.cost.candidates import chances
from nas.cost.hardware import additive_costs
from nas.cost.target import parse_targets
from nas.derivation import sample, uniform
from nas.errors import ConfigError, DataError
from nas.registry import load
from nas.runs.cost import Constraint, judge_cost, keeps_target, limited_by, within_target
from nas.runs.folder import Run
from nas.runs.pipeline import configure
from nas.runs.search import BilevelSearch
from nas.runs.session import session
from nas.runs.sweep.baselines import random_cell, random_search
from nas.selectors import Selector
from nas.selectors.softmax import Softmax
from nas.space import Cell, CellSlot, Edge, Genotype, SearchSpace, Task
from nas.supernet.inspection import inspect
from search_spaces.darts import DARTS
from search_spaces.nas_bench_201 import NASBench201

TASK = Task(3, 8, 8, 10)
TINY = {
    "chain": {"channels": 4, "stages": 1},
    "darts": {"channels": 4, "depth": 4, "nodes": 3},  # two cells reduce, two share the normal cell
    "darts-bench": {"channels": 4, "depth": 3},
    "darts-s1": {"channels": 4, "depth": 3},
    "nas-bench-201": {"channels": 4, "cells_per_stage": 2},
    "vit": {"channels": 8, "blocks": 2},
}
LONGER = ("darts-bench", "darts-s1")
SPACES = [pytest.param(name, marks=pytest.mark.slow) if name in LONGER else name for name in TINY]


def tiny(name: str) -> SearchSpace:
    return load("nas.search_spaces", name)(**TINY[name])


# Costs of candidates


@pytest.mark.parametrize("name", SPACES)
def test_the_sum_over_candidates_is_the_size_of_the_derived_network(name, generator):
    space = tiny(name)
    params, multiply_adds = (candidate_costs(space, TASK, kind) for kind in ("params", "multiply-adds"))
    genotype = sample(space, uniform(space), generator)
    size = inspect(space.fix(genotype), TASK, searching=False)
    assert params.of(space, genotype) == size.parameters
    assert multiply_adds.of(space, genotype) == size.multiply_adds


def test_a_convolution_is_counted_by_hand():
    space = NASBench201(channels=4, cells_per_stage=2)
    kernel = space.cells["cell"].edges[0].operations.index("nor_conv_3x3")
    stages = [(4, 64), (8, 16), (16, 4)]  # channels and pixels, two cells each
    params = candidate_costs(space, TASK, "params").cells["cell"][:, kernel]
    assert params.tolist() == [sum(2 * (9 * c * c + 2 * c) for c, _ in stages)] * 6
    multiply_adds = candidate_costs(space, TASK, "multiply-adds").cells["cell"][:, kernel]
    assert multiply_adds.tolist() == [sum(2 * 9 * c * c * pixels for c, pixels in stages)] * 6


def test_a_space_that_does_not_run_is_a_configuration_error():
    @dataclass(frozen=True, kw_only=True)
    class Broken(NASBench201):
        def layers(self, task, searching):
            return [*super().layers(task, searching)[:-1], nn.Linear(3, task.classes)]

    with pytest.raises(ConfigError, match="does not run on 3x8x8 images"):
        candidate_costs(Broken(channels=4, cells_per_stage=1), TASK, "multiply-adds")


# Expected costs

NODES = (("none", "a", "b"), ("a", "b"), ("none", "b"))
"""Candidates of three edges into one node."""


def fan(retain):
    return Cell(tuple(Edge(source, 3, NODES[source]) for source in range(3)), outputs=(3,), inputs=3, retain=retain)


@dataclass(frozen=True, kw_only=True)
class Fan(SearchSpace):
    """One node with three in-edges."""

    retain: int | None = None
    operations = {"none": nn.Identity, "a": nn.Identity, "b": nn.Identity}

    @property
    def cells(self):
        return {"cell": fan(self.retain)}

    def layers(self, task, searching):
        return [CellSlot("cell", 1)]


PRICES = Costs(
    {"cell": torch.tensor([[0.0, 3.0, 5.0], [2.0, 7.0, 0.0], [0.0, 11.0, 0.0]], dtype=torch.float64)},
    torch.tensor(100.0, dtype=torch.float64),
)
TABLE = {"cell": torch.tensor([[0.5, 0.2, 0.3], [0.4, 0.6, 0.0], [0.9, 0.1, 0.0]], dtype=torch.float64)}


def law(retain) -> list[tuple[float, Genotype]]:
    """Every genotype of the fan with its probability under independent draws from TABLE."""
    found = []
    edges = list(itertools.combinations(range(3), retain or 3))
    for kept in edges:
        options = []
        for e in kept:
            row = [(p, name) for p, name in zip(TABLE["cell"][e].tolist(), NODES[e], strict=False)]
            row = [(p, name) for p, name in row if retain is None or name != "none"]
            options.append([(p / sum(each for each, _ in row), (e, 3, name)) for p, name in row])
        for chosen in itertools.product(*options):
            chance = float(np.prod([p for p, _ in chosen])) / len(edges)
            found.append((chance, Genotype({"cell": tuple(choice for _, choice in chosen)})))
    return found


@pytest.mark.parametrize("retain", [None, 1, 2, 3])
def test_the_expected_cost_is_the_mean_over_all_genotypes(retain):
    space, genotypes = Fan(retain=retain), law(retain)
    assert sum(chance for chance, _ in genotypes) == pytest.approx(1)
    mean = sum(chance * PRICES.of(space, genotype) for chance, genotype in genotypes)
    assert float(expected_cost(TABLE, PRICES, space.cells)) == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("retain", [None, 1, 2, 3])
def test_the_law_is_that_of_sampling(retain, generator):
    space, count = Fan(retain=retain), 800
    drawn = [sample(space, TABLE, generator) for _ in range(count)]
    expected = chances(space.cells["cell"], TABLE["cell"])
    for e, names_of_edge in enumerate(NODES):
        for k, name in enumerate(names_of_edge):
            share, found = float(expected[e, k]), sum((e, 3, name) in each.cells["cell"] for each in drawn) / count
            assert found == pytest.approx(share, abs=5 * (share * (1 - share) / count) ** 0.5 + 1e-9)


@pytest.mark.parametrize("retain", [None, 2])
def test_the_expected_cost_has_its_gradient_in_the_logits(retain, generator):
    space = Fan(retain=retain)
    logits = torch.randn(3, 3, generator=generator, dtype=torch.float64).requires_grad_()
    mask = space.cells["cell"].mask

    def cost(table):
        probabilities = table.masked_fill(~mask, -torch.inf).softmax(-1)
        return expected_cost({"cell": probabilities}, PRICES, space.cells)

    assert torch.autograd.gradcheck(cost, (logits,))


def test_certain_none_leaves_a_finite_gradient():
    space = Fan(retain=2)
    table = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [1.0, 0, 0]], dtype=torch.float64, requires_grad=True)
    cost = expected_cost({"cell": table}, PRICES, space.cells)
    (gradient,) = torch.autograd.grad(cost, table)
    assert cost.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("retain", [None, 1, 2, 3])
def test_bounds_are_the_least_and_the_largest_cost_of_a_genotype(retain):
    space = Fan(retain=retain)
    costs = [PRICES.of(space, genotype) for _, genotype in law(retain)]
    assert bounds(PRICES, space.cells) == (min(costs), max(costs))
    assert bounds(PRICES, space.cells, closing=True) == (100.0, max(costs))


# Targets


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("params<=3.5M", ("params", 3.5e6)),
        ("params <= 30k", ("params", 3e4)),
        ("params<=1e6", ("params", 1e6)),
        ("multiply-adds<=0.6G", ("multiply-adds", 6e8)),
        ("latency<=12ms", ("latency", 0.012)),
        ("latency<=800us", ("latency", 8e-4)),
        ("latency<=2s", ("latency", 2.0)),
        ("edgegpu_latency<=5", ("edgegpu_latency", 5.0)),
        ("edgegpu_latency<=5000us", ("edgegpu_latency", 5.0)),
        ("fpga_energy<=20mJ", ("fpga_energy", 20.0)),
        ("help_1080ti_1<=0.01s", ("help_1080ti_1", 10.0)),
    ],
)
def test_targets_are_read_with_their_units(text, expected):
    (target,) = parse_targets(text)
    assert target.quantity == expected[0]
    assert target.limit == pytest.approx(expected[1], rel=1e-12)
    assert target.text == text


def test_several_targets_are_read_in_order():
    assert [target.quantity for target in parse_targets("params<=3k, multiply-adds<=2M")] == ["params", "multiply-adds"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("params", "must read like params<=3.5M"),
        ("params<3k", "must read like"),
        ("params<=many", "must read like"),
        ("params<=-3k", "must read like"),
        ("params<=3k,", "must read like"),
        ("params<=0", "must be above 0"),
        ("params<=3ms", "fits params (none, k, M, G)"),
        ("latency<=3", "fits latency (us, ms, s)"),
        ("latency<=3k", "fits latency"),
        ("fpga_energy<=3ms", "fits fpga_energy (none, mJ)"),
        ("parms<=3k", "did you mean 'params'"),
        ("params<=3k,params<=4k", "params more than once"),
    ],
)
def test_nonsense_is_refused_with_the_accepted_form(text, parts):
    with pytest.raises(ConfigError) as caught:
        configure(cost={"target": text})
    assert "cost.target" in str(caught.value)
    assert parts in str(caught.value)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"cost": {"rate": 0}}, r"cost.rate must be positive, got 0"),
        ({"cost": {"damping": -1}}, r"cost.damping must be at least 0, got -1"),
        ({"cost": {"target": "latency<=1ms"}}, r"cost.latency_table must name a file .* nas bench --latency-table"),
        ({"cost": {"target": "params<=1M"}, "selector": "uniform"}, r"cost.target needs .*uniform learns none.*st-gs"),
    ],
)
def test_settings_that_cannot_work_are_refused(sections, message):
    with pytest.raises(ConfigError, match=message):
        configure(**sections)


def test_a_target_that_no_network_keeps_is_refused_with_what_they_cost():
    space = NASBench201(channels=4, cells_per_stage=1)
    with pytest.raises(ConfigError, match=r"params<=4k: no network .* keeps it; they cost 4,\d+ to \d+,\d+"):
        quantities(Cost(target="params<=4k"), space, TASK, Benchmark())


def test_an_unknown_quantity_is_refused_with_the_nearest_and_the_remedy():
    with pytest.raises(ConfigError, match=r"unknown quantity 'param': did you mean 'params'\? .*--benchmark"):
        quantities(Cost(target="param<=4"), DARTS(), TASK, Benchmark())


# The price


def problem(losses, costs, target, rate, steps, damping=1.0, tau=0.3):
    """Returns price and expected cost after descending sum(p * losses) - tau * entropy(p) on logits, one edge."""
    cell = Cell((Edge(0, 1, tuple("abcd")),), outputs=(1,))
    space = SimpleNamespace(cells={"cell": cell})
    search = SimpleNamespace(selector=Softmax(), architecture=Architecture(space, 0), steps=steps)
    table = Costs({"cell": torch.tensor([costs], dtype=torch.float64)}, torch.zeros((), dtype=torch.float64))
    quantity = Quantity(Target("params", target, ""), table, lambda genotype: None, 0.0, 1.0)
    constraint = Constraint(search, Cost(target="params<=1", rate=rate, damping=damping), [quantity])
    (logits,) = search.architecture.parameters()
    optimizer = torch.optim.SGD([logits], lr=2.0)
    for step in range(steps):
        p = logits.softmax(-1)
        loss = (p * torch.tensor([losses])).sum() + tau * (p * p.log()).sum()
        penalty = constraint.penalty(search.architecture.logits(), step / steps)
        optimizer.zero_grad()
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        constraint.after(step, step / steps)
    return float(constraint.dual), float(constraint.expected().detach())


def multiplier(losses, costs, target, tau=0.3):
    """Returns the price at which p ~ exp(-(losses + price * costs / target) / tau) just keeps the target."""
    losses, costs = np.array(losses), np.array(costs)
    low, high = 0.0, 100.0
    for _ in range(100):
        price = (low + high) / 2
        p = np.exp(-(losses + price * costs / target) / tau)
        low, high = (price, high) if (p / p.sum()) @ costs > target else (low, price)
    return low


LOSSES, COSTS = [1.0, 0.6, 0.3, 0.0], [0.0, 1.0, 2.0, 4.0]


@pytest.mark.parametrize("damping", [0.0, 1.0])
@pytest.mark.parametrize("target", [0.8, 1.5, 2.5])
def test_the_price_converges_to_the_known_multiplier(target, damping):
    price, cost = problem(LOSSES, COSTS, target, rate=60.0, steps=300, damping=damping)
    assert price == pytest.approx(multiplier(LOSSES, COSTS, target), rel=3e-4)
    assert cost == pytest.approx(target, rel=3e-5)


def test_a_slack_target_has_no_price_and_no_penalty():
    free, cost = problem(LOSSES, COSTS, 1e6, rate=60.0, steps=200)
    assert (free, multiplier(LOSSES, COSTS, 1e6)) == (0.0, 0.0)
    assert problem(LOSSES, COSTS, 3.9, rate=60.0, steps=200) == (0.0, cost)


# In a search

SMALL = {
    "space": {"name": "nas-bench-201", "channels": 4, "cells_per_stage": 1},
    "dataset": {"limit": 48},
    "search": {"epochs": 2, "batch_size": 16, "warmup": 0.2},
    "retrain": {"epochs": 1, "batch_size": 32, "seeds": 1},
    "gap": {"random": 0, "decisions": 1},
    "threads": 1,
}


def tensors(run):
    found = latest(run.folder / "checkpoints").tensors
    return {part: {name: tensor.numpy().tobytes() for name, tensor in found[part].items()} for part in found}


def test_a_search_under_a_slack_target_is_bit_for_bit_the_one_without(tmp_path, caplog):
    plain = nas.search(out=tmp_path / "plain", quiet=True, **SMALL)
    with caplog.at_level(logging.WARNING):
        slack = nas.search(out=tmp_path / "slack", quiet=True, **SMALL, cost={"target": "params<=1G"})
    assert "params<=1G changes nothing: networks of this space cost at most" in caplog.text
    without, beside = tensors(plain), tensors(slack)
    priced = beside.pop("modifier-0")
    assert priced["dual"] == bytes(8)
    assert beside == without


ALIKE = [pytest.param(name, marks=pytest.mark.slow) for name in ("softmax", "dirichlet", "entmax")]


@pytest.mark.parametrize("selector", ["st-gs", "edge-top-k", *ALIKE])
def test_a_tight_target_changes_the_logits_and_is_logged(selector, tmp_path):
    run = nas.search(out=tmp_path / "run", quiet=True, **SMALL, selector=selector, cost={"target": "params<=5k"})
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    prices = [row["cost_price/params"] for row in rows if "epoch" in row]
    costs = [row["expected_cost/params"] for row in rows if "epoch" in row]
    assert 0 < prices[0] < prices[1]
    assert costs[1] < costs[0]
    (row,) = json.loads((run.folder / "search.json").read_text())["cost"]
    assert (row["expected_cost"], row["cost_price"]) == (costs[1], prices[1])


def test_a_search_that_is_stopped_keeps_its_price(nas_command, tmp_path, monkeypatch):
    flags = ("--set", "cost.target=params<=5k,multiply-adds<=40k", "--set", "threads=1", "--set", "dataset.limit=48")
    space = ("--space", "nas-bench-201", "--set", "space.channels=4", "--set", "space.cells_per_stage=1")
    command = ("search", *space, *flags, "--epochs", 2, "--set", "search.batch_size=16", "--quiet")
    assert nas_command(*command, "--out", tmp_path / "whole").code == 0
    step, taken = BilevelSearch.step, []

    def stopping(self, *arguments):
        taken.append(arguments)
        if len(taken) == 4:
            signal.raise_signal(signal.SIGTERM)
        return step(self, *arguments)

    monkeypatch.setattr(BilevelSearch, "step", stopping)
    assert nas_command(*command, "--out", tmp_path / "parts").code == 143
    assert (latest(tmp_path / "parts" / "checkpoints").tensors["modifier-0"]["dual"] > 0).all()
    assert nas_command("resume", tmp_path / "parts", "--quiet").code == 0
    for file in ("metrics.jsonl", "search.json", *(f"checkpoints/step-000006/{name}" for name in ("manifest.json",))):
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_search_goes_on_with_the_costs_with_which_it_began(tmp_path):
    config = configure(**SMALL, cost={"target": "params<=5k"})
    with session(tmp_path / "work", config, "search", quiet=True) as work:
        (before,), (after,) = BilevelSearch(work).constraints, BilevelSearch(work).constraints
        for table in after.limited[0].costs.cells.values():
            table.zero_()
        after.load_state_dict(before.state_dict())
    assert torch.equal(after.expected(), before.expected())


@dataclass(frozen=True, kw_only=True)
class Deaf(Selector):
    """Learns by its objective, but its probabilities know nothing of the logits."""

    def select(self, logits, progress, generator):
        return Softmax().select(logits, progress, generator)

    def probabilities(self, logits):
        return super().probabilities(logits).detach()


def test_a_selector_whose_probabilities_have_no_gradient_is_refused(tmp_path):
    config = configure(**SMALL, selector=Deaf(), cost={"target": "params<=5k"})
    with (
        session(tmp_path / "work", config, "search", quiet=True) as work,
        pytest.raises(ConfigError, match=r"cost.target needs probabilities with a gradient"),
    ):
        BilevelSearch(work)


# Deriving


def quantity(limit: float, cost: dict[str, float]) -> Quantity:
    return Quantity(Target("params", limit, f"params<={limit:g}"), PRICES, lambda each: cost[each], 0.0, 1.0)


def test_genotypes_that_break_the_target_lose_to_all_that_keep_it_and_are_not_measured():
    limited = [quantity(10, {"a": 9, "b": 11, "c": 30, "d": 10}), quantity(1, {"a": 1, "b": 1, "c": 0, "d": 1})]
    measured = []

    def score(genotype):
        measured.append(genotype)
        return {"a": 0.0, "d": 50.0}[genotype]

    constrained = within_target([SimpleNamespace(limited=limited)], score)
    assert max("abcd", key=constrained) == "d"
    assert max("abc", key=constrained) == "a"
    assert max("bc", key=constrained) == "b"  # none keeps it: the least excess
    assert set(measured) == {"a", "d"}
    assert within_target([], score) is score


def test_a_network_that_the_device_cannot_run_breaks_the_target_more_than_any_other():
    limited = [quantity(10, {"a": 9, "b": 1000, "c": None})]
    constrained = within_target([SimpleNamespace(limited=limited)], lambda genotype: 0.0)
    assert sorted("cba", key=constrained) == ["c", "b", "a"]
    assert [*map(keeps_target(limited), "abc")] == [True, False, False]


def test_a_derived_network_that_misses_is_said_on_stderr_and_in_the_result(caplog):
    config = configure(**SMALL, cost={"target": "params<=10k"})
    cell = "|{0}~0|+|{0}~0|{0}~1|+|{0}~0|{0}~1|{0}~2|"
    big, small = (config.space.parse(cell.format(name)) for name in ("nor_conv_3x3", "skip_connect"))
    with caplog.at_level(logging.WARNING):
        (row,) = judge_cost(config, big)
    size = inspect(config.space.fix(big), config.dataset.task(), searching=False).parameters
    assert row == {"quantity": "params", "target": "params<=10k", "limit": 1e4, "cost": size, "kept": False}
    assert f"misses cost.target params<=10k: it costs {size:,}, {size / 100 - 100:.1f}% more" in caplog.text
    caplog.clear()
    (row,) = judge_cost(config, small)
    assert row["kept"]
    assert caplog.text == ""


def test_random_baselines_keep_the_target(tmp_path):
    config = configure(**{**SMALL, "gap": {"random": 3, "decisions": 1}}, cost={"target": "params<=5600"})
    space, limited = config.space, limited_by(config)
    keeps = keeps_target(limited)
    draws = torch.Generator().manual_seed(0)
    share = sum(keeps(sample(space, uniform(space), draws)) for _ in range(300)) / 300
    assert share < 0.25  # so 10 cells that ignore the target keep it by chance less than once in 10^6
    assert all(keeps(random_cell(replace(config, seed=seed))) for seed in range(10))
    run = Run.begin(tmp_path / "run", config)
    random_search(run, 0.0, retrain=False)
    assert keeps(run.genotype())
    nas.search(config, out=tmp_path / "search", quiet=True)
    nas.derive(tmp_path / "search", quiet=True)
    nas.measure_gap(tmp_path / "search", quiet=True)
    results = [json.loads(path.read_text()) for path in (tmp_path / "search" / "retrain").glob("*/seed-0/result.json")]
    rivals = {space.parse(each["genotype"]) for each in results} - {Run.open(tmp_path / "search").genotype()}
    assert len(rivals) >= 2
    assert all(map(keeps, rivals))


def test_random_baselines_say_so_if_they_find_no_cell_that_keeps_the_target(tmp_path, monkeypatch):
    monkeypatch.setattr("nas.runs.sweep.baselines.keeps_target", lambda limited: lambda genotype: False)
    for module in ("ranking", "sweep.baselines"):
        monkeypatch.setattr(f"nas.runs.{module}.TRIES", 50)
    config = configure(**SMALL, cost={"target": "params<=5k"})
    message = "cost.target params<=5k: none of 50 random genotypes keeps it"
    with pytest.raises(ConfigError, match=message):
        random_cell(config)
    with pytest.raises(ConfigError, match=message):
        random_search(Run.begin(tmp_path / "run", config), 0.0, retrain=False)


def test_every_result_says_what_the_network_costs(nas_command, tmp_path):
    run = nas.search(out=tmp_path / "run", quiet=True, **SMALL, cost={"target": "params<=1M"})
    derived = nas_command("derive", run.folder, "--json", "--quiet")
    size = inspect(run.config.space.fix(run.genotype()), run.config.dataset.task(), searching=False).parameters
    expected = [{"quantity": "params", "target": "params<=1M", "limit": 1e6, "cost": size, "kept": True}]
    assert json.loads(derived.out)["cost"] == expected
    text = nas_command("derive", run.folder, "--quiet").out
    assert f"cost.target params<=1M: kept, the network costs {size:,}" in text
    report = nas_command("gap", run.folder, "--quiet")
    assert "cost.target params<=1M: kept" in report.out
    assert json.loads((run.folder / "gap.json").read_text())["cost"] == expected
    assert run.config == type(run).open(run.folder).config


@pytest.mark.parametrize("rule", ["sampled", "evolution"])
def test_rules_that_compare_genotypes_keep_the_target(rule, nas_command, tmp_path):
    run = nas.search(out=tmp_path / "run", quiet=True, **SMALL, cost={"target": "params<=6k"})  # 1 of 4 random cells
    found = nas_command("derive", run.folder, "--json", "--quiet", "--set", f"derive.name={rule}")
    assert json.loads(found.out)["cost"][0]["kept"], found.err


def test_a_dry_run_says_what_networks_cost(nas_command):
    flags = ("--set", "space.channels=4", "--dry-run", "--set", "cost.target=params<=5k")
    outcome = nas_command("search", *flags)
    assert outcome.code == 0, outcome.err
    assert "cost.target params<=5k" in outcome.out
    refused = nas_command("search", *flags[:3], "--set", "cost.target=params<=4k")
    assert refused.code == 2
    assert "no network of this space keeps it" in refused.err


# Hardware tables

SPACE = NASBench201(channels=4, cells_per_stage=1)
SHARED = Path(__file__).parents[1].parent / "shared" / "data"


def hardware(path: Path, count: int, column, **more) -> Table:
    """Writes a table of random cells whose column is a function of the genotype."""
    draws = torch.Generator().manual_seed(1)
    genotypes = [*dict.fromkeys(sample(SPACE, uniform(SPACE), draws) for _ in range(count))]
    values = np.array([[column(genotype)] for genotype in genotypes])
    arch = np.array([SPACE.format(genotype) for genotype in genotypes])
    np.savez(path, arch=arch, hwnas_cifar10=values, hwnas_names=np.array(["edgegpu_latency"]), **more)
    return Table(Benchmark(hardware=str(path)))


def test_an_additive_column_is_found_exactly(tmp_path):
    costs = candidate_costs(SPACE, TASK, "params")
    table = hardware(tmp_path / "hw.npz", 300, lambda genotype: costs.of(SPACE, genotype) / 1000)
    fitted, share = additive_costs(SPACE, table, "edgegpu_latency")
    assert share == pytest.approx(1, abs=1e-9)
    assert (fitted.cells["cell"].amin(-1) == 0).all()
    for text in table.architectures[:20]:
        genotype = SPACE.parse(text)
        assert fitted.of(SPACE, genotype) == pytest.approx(costs.of(SPACE, genotype) / 1000, rel=1e-9)


def test_a_column_that_is_no_sum_is_refused_with_the_share_it_explains(tmp_path):
    draws = np.random.default_rng(0)
    table = hardware(tmp_path / "hw.npz", 600, lambda genotype: draws.random())
    with pytest.raises(ConfigError, match=r"edgegpu_latency: a sum over candidates explains 0\.\d\d of its variance"):
        additive_costs(SPACE, table, "edgegpu_latency")


def test_a_column_without_any_value_is_refused(tmp_path):
    hardware(tmp_path / "hw.npz", 10, lambda genotype: -1.0)
    benchmark = Benchmark(hardware=str(tmp_path / "hw.npz"))
    with pytest.raises(ConfigError, match="edgegpu_latency: the hardware table has no value of it"):
        quantities(Cost(target="edgegpu_latency<=5"), SPACE, TASK, benchmark)


def test_a_share_of_the_variance_that_is_no_number_is_refused(tmp_path, monkeypatch):
    table = hardware(tmp_path / "hw.npz", 10, lambda genotype: 1.0)
    monkeypatch.setattr(np, "var", lambda values: np.nan)
    with pytest.raises(ConfigError, match="explains nan of its variance"):
        additive_costs(SPACE, table, "edgegpu_latency")


def test_a_derived_network_that_the_device_cannot_run_is_said_on_stderr(tmp_path, caplog):
    costs = candidate_costs(SPACE, TASK, "params")
    draws = torch.Generator().manual_seed(1)
    first = sample(SPACE, uniform(SPACE), draws)
    hardware(tmp_path / "hw.npz", 300, lambda each: -1.0 if each == first else costs.of(SPACE, each))
    benchmark = {"hardware": str(tmp_path / "hw.npz")}
    config = configure(**SMALL, cost={"target": "edgegpu_latency<=8000"}, benchmark=benchmark)
    with caplog.at_level(logging.WARNING):
        (row,) = judge_cost(config, first)
    assert (row["cost"], row["kept"]) == (None, None)
    assert "the table has no edgegpu_latency of the derived network" in caplog.text


def test_a_hardware_table_of_another_space_is_refused(tmp_path):
    table = hardware(tmp_path / "hw.npz", 10, lambda genotype: 1.0)
    with pytest.raises(ConfigError, match="the hardware table is of another space"):
        additive_costs(DARTS(), table, "edgegpu_latency")


def test_a_search_by_a_column_costs_what_the_table_says_of_the_cell(tmp_path):
    costs = candidate_costs(SPACE, TASK, "params")
    draws = torch.Generator().manual_seed(1)
    first = sample(SPACE, uniform(SPACE), draws)
    # The cell's own entry is far from the sum, as measurements may be.
    hardware(tmp_path / "hw.npz", 300, lambda each: 1.0 if each == first else costs.of(SPACE, each))
    benchmark = Benchmark(hardware=str(tmp_path / "hw.npz"))
    (found,) = quantities(Cost(target="edgegpu_latency<=8000"), SPACE, TASK, benchmark)
    assert found.real(first) == 1.0
    assert found.costs.of(SPACE, first) > 4000
    assert 0.9 < found.fit < 1
    with pytest.raises(ConfigError, match=r"unknown quantity 'edgegpu_latenzy': did you mean 'edgegpu_latency'"):
        quantities(Cost(target="edgegpu_latenzy<=8000"), SPACE, TASK, benchmark)


@pytest.mark.skipif(not (SHARED / "nasbench201-hw.npz").is_file(), reason="the published hardware table is not here")
@pytest.mark.parametrize(("column", "share"), [("eyeriss_latency", 1.0), ("edgegpu_latency", 0.87)])
def test_published_columns_are_as_additive_as_they_were_found(column, share):
    table = Table(Benchmark(hardware=str(SHARED / "nasbench201-hw.npz")))
    _, found = additive_costs(NASBench201(), table, column)
    assert found == pytest.approx(share, abs=0.01)


# Latency tables


def measured(nas_command, path, *more):
    flags = ("--space", "nas-bench-201", "--set", "space.channels=4", "--set", "space.cells_per_stage=2")
    outcome = nas_command("bench", *flags, "--latency-table", path, "--pairs", 1, "--threads", 1, "--quiet", *more)
    assert outcome.code == 0, outcome.err
    return outcome


@pytest.fixture(scope="module")
def latency(nas_command, tmp_path_factory):
    path = tmp_path_factory.mktemp("latency") / "table.json"
    shown = measured(nas_command, path)
    return path, json.loads(path.read_text()), shown.out


def test_a_latency_table_holds_every_candidate_at_the_size_of_every_slot(latency):
    _, found, shown = latency
    assert {(each["channels"], each["height"]) for each in found["candidates"]} == {(4, 8), (8, 4), (16, 2)}
    assert len(found["candidates"]) == 5 * 3  # the six edges of two cells are one place
    seconds = {(each["operation"], each["channels"]): each["seconds"] for each in found["candidates"]}
    for row in found["cells"]["cell"].values():
        for operation, total in row.items():
            assert total == pytest.approx(2 * sum(seconds[operation, channels] for channels in (4, 8, 16)))
    assert seconds["skip_connect", 4] < seconds["nor_conv_3x3", 4]  # an identity and a convolution
    assert found["machine"]["threads"] == 1
    assert found["batch_size"] == 1
    assert "nor_conv_3x3" in shown
    assert "cost.latency_table=" in shown


def test_whole_networks_are_predicted_by_the_sum(latency):
    path, found, _ = latency
    space = NASBench201(channels=4, cells_per_stage=2)
    config = configure(space=space)
    (quantity,) = quantities(
        Cost(target="latency<=1s", latency_table=str(path)), space, config.dataset.task(), Benchmark()
    )
    for network in found["networks"]:
        assert quantity.real(space.parse(network["genotype"])) == pytest.approx(network["predicted"])
    # The rest is the median of what whole networks take beside their candidates.
    rest = [network["measured"] - network["predicted"] for network in found["networks"]]
    assert np.median(rest) == pytest.approx(0, abs=1e-9)


def test_a_search_by_latency_runs(latency, tmp_path):
    path, found, _ = latency
    limit = found["fixed"] + 1e-6 + sum(min(row.values()) for row in found["cells"]["cell"].values())
    cost = {"target": f"latency<={1e6 * limit:.3f}us", "latency_table": str(path)}
    settings = {**SMALL, "space": {"name": "nas-bench-201", "channels": 4, "cells_per_stage": 2}}
    run = nas.search(out=tmp_path / "run", quiet=True, **settings, cost=cost)
    (row,) = json.loads((run.folder / "search.json").read_text())["cost"]
    assert row["cost_price"] > 0
    assert row["quantity"] == "latency"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"space": NASBench201(channels=8, cells_per_stage=2)}, r"of another space \(channels 4 there, 8 here\)"),
        ({"task": Task(1, 9, 8, 10)}, r"of another task \(height 8 there, 9 here\)"),
    ],
)
def test_a_latency_table_of_another_space_or_task_is_refused(latency, change, message):
    path, found, _ = latency
    asked = {"space": NASBench201(channels=4, cells_per_stage=2), "task": Task(**found["task"]), **change}
    with pytest.raises(DataError, match=message):
        quantities(Cost(target="latency<=1s", latency_table=str(path)), benchmark=Benchmark(), **asked)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "nas latency table, version 1"}'])
def test_a_file_that_is_no_latency_table_is_a_data_error(content, tmp_path):
    path = tmp_path / "table.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"is missing or no latency table .*measure one with: nas bench"):
        quantities(Cost(target="latency<=1s", latency_table=str(path)), SPACE, TASK, Benchmark())


def test_a_damaged_cell_of_a_latency_table_is_a_data_error(latency, tmp_path):
    _, found, _ = latency
    del found["cells"]["cell"]["0-1"]
    (tmp_path / "table.json").write_text(json.dumps(found))
    space, task = NASBench201(channels=4, cells_per_stage=2), Task(**found["task"])
    cost = Cost(target="latency<=1s", latency_table=str(tmp_path / "table.json"))
    with pytest.raises(DataError, match="no latency table"):
        quantities(cost, space, task, Benchmark())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--latency-table", "absent/table.json"), "there is no folder absent"),
        (("--latency-table", "table.json", "--batch-size", 0), "batch"),
        (("--latency-table", "table.json", "--pairs", 0), "--pairs must be at least 1"),
        (("--latency-table", "table.json", "--genotype", "x"), "--genotype: does not go with --latency-table"),
        (("--latency-table", "table.json", "--selector", "gdas"), "--selector: does not go with"),
        (("--latency-table", "table.json", "--backend", "aten"), "--backend: does not go with"),
        (("--latency-table", "table.json", "--no-memory"), "--no-memory: does not go with"),
    ],
)
def test_a_latency_table_that_cannot_be_made_is_refused(flags, message, nas_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = nas_command("bench", *flags)
    assert outcome.code == 2, outcome.err
    assert message in outcome.err
