"""Every backend computes what the reference computes: values, every gradient, batch-norm statistics, in float64."""

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas import ops
from nas.derivation import sample, uniform
from nas.randomness import generator as keyed
from nas.registry import load, names
from nas.selection import Selection
from nas.space import Cell, CellSlot, Edge, Task
from nas.supernet import MixedCell, Network, layout, reference
from nas.supernet.backends import choose

CPU = torch.device("cpu")
SMALL = {
    "darts": {"channels": 3, "depth": 3, "nodes": 3},
    "nas-bench-201": {"channels": 3, "cells_per_stage": 2},
    "chain": {"channels": 3, "stages": 2, "blocks_per_stage": 2},
    "darts-s1": {"channels": 3, "depth": 3},
    "darts-s2": {"channels": 3, "depth": 3, "nodes": 2},
    "darts-s3": {"channels": 3, "depth": 3, "nodes": 2},
    "darts-s4": {"channels": 3, "depth": 3, "nodes": 2},
    "darts-bench": {"channels": 3, "depth": 3, "candidates": "all-skip"},
    "vit": {"channels": 4, "blocks": 2},
}
TASK = Task(channels=3, height=9, width=7, classes=4)
BACKENDS = ["aten", "native"]
SELECTORS = names("nas.selectors")
EVERY = ("chain", "darts", "nas-bench-201")
"""Spaces that run under every selector; others, whose candidates are new but not their graphs, under two."""
ROWS = [
    (space, selector)
    for space in names("nas.search_spaces")
    for selector in (SELECTORS if space in EVERY else ("softmax", "st-gs"))
]

TOLERANCE = 1e-9
"""Relative to the largest entry. Another order of summation moves float64 by about 1e-15 an addition."""


def space_of(name: str):
    return load("nas.search_spaces", name)(**SMALL.get(name, {}))


def assert_agree(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(float(value.abs().max()) if value.numel() else 0.0, 1e-3)
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=TOLERANCE * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


def buffers(network: nn.Module) -> dict[str, Tensor]:
    return {f"buffer {name}": value.clone() for name, value in network.named_buffers()}


def run(network: Network, images: Tensor, selections, *, weights: bool, logits: bool) -> dict[str, Tensor]:
    """Returns scores and every gradient of a random function of them, and the statistics afterwards."""
    device = next(network.parameters()).device
    images = images.to(device, copy=True).requires_grad_()
    network.requires_grad_(weights)
    leaves = {name: s.at_leaves(device) if logits else s.to(device) for name, s in selections.items()}
    torch.manual_seed(0)
    output = network(images, leaves)
    scores = torch.stack([output.scores, *output.auxiliary])
    factor = torch.randn(scores.shape, generator=keyed(0, "factor"), dtype=scores.dtype)
    (scores * factor.to(device)).sum().backward()
    values = {"scores": scores.detach(), **buffers(network)}
    if images.grad is not None:  # a decision may cut them off
        values["images"] = images.grad
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            values[f"gradient {name}"] = parameter.grad
            parameter.grad = None
    for name, leaf in leaves.items():
        for part in ("weights", "offset"):
            value = getattr(leaf, part)
            if value is not None and value.grad is not None:
                values[f"{part} {name}"] = value.grad
    return {name: value.cpu() for name, value in values.items()}


def select(space, selector, seed: int, *, gradient: bool):
    logits = {
        name: torch.randn(len(cell.edges), cell.candidates, generator=keyed(seed, name), dtype=torch.float64)
        .masked_fill(~cell.mask, -torch.inf)
        .requires_grad_(gradient)
        for name, cell in space.cells.items()
    }
    draws = keyed(seed, "draw")
    found = selector.on(space.cells).decide(logits, 0.5, draws)
    return found if gradient else {name: s.detach() for name, s in found.items()}


def same_noise(noise: ops.Noise, x: Tensor) -> Tensor:
    """Noise whenever it is drawn: probes draw theirs in the backward, where each backend has an order of its own."""
    shape = ops.zeros(x, noise.channels, noise.stride).shape
    return torch.randn(shape, generator=keyed(0, "noise"), dtype=x.dtype).to(x.device)


@pytest.mark.parametrize(("space", "selector"), ROWS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_agrees_with_the_reference_in_both_steps(backend, space, selector, monkeypatch):
    assert_both_steps_agree(backend, space, selector, CPU, monkeypatch)


@pytest.mark.parametrize("selector", ["softmax", "st-gs", "uniform"])
@pytest.mark.parametrize("space", names("nas.search_spaces"))
def test_aten_agrees_with_the_channels_first_as_on_gpus(space, selector, monkeypatch):
    def pool(x: Tensor, *more, **settings) -> Tensor:
        assert x.is_contiguous()
        return average(x, *more, **settings)

    average = F.avg_pool2d
    monkeypatch.setattr(F, "avg_pool2d", pool)
    monkeypatch.setattr(layout, "CHANNELS_LAST", ())
    assert_both_steps_agree("aten", space, selector, CPU, monkeypatch)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("space", "selector"), ROWS)
@pytest.mark.parametrize("backend", ["reference", "aten", "auto"])
def test_on_a_gpu_a_backend_agrees_with_the_reference_on_a_cpu(backend, space, selector, monkeypatch):
    assert_both_steps_agree(backend, space, selector, torch.device("cuda"), monkeypatch)


def assert_both_steps_agree(backend, space, selector, device, monkeypatch):
    monkeypatch.setattr(ops.Noise, "forward", same_noise)
    described, chosen = space_of(space), load("nas.selectors", selector)()
    torch.manual_seed(1)
    plain = Network(described, TASK, searching=True).double()
    fast = copy.deepcopy(plain)
    fast = fast.to(device)
    fast.run = choose(backend, device)
    fast.fast = fast.run is not reference.run_cell
    images = torch.randn(3, 3, TASK.height, TASK.width, generator=keyed(0, "images"), dtype=torch.float64)
    for seed, logits in ((0, False), (1, chosen.learns), (2, False)):
        selections = select(described, chosen, seed, gradient=logits)
        expected = run(plain, images, selections, weights=not logits, logits=logits)
        found = run(fast, images, selections, weights=not logits, logits=logits)
        assert_agree(found, expected)
        if logits:
            carried = any(s.weights is not None and s.weights.requires_grad for s in selections.values())
            assert any(name.startswith("weights ") for name in expected) == carried
        else:
            # Selected edges may cut off all but the last layer.
            assert sum(name.startswith("gradient ") for name in expected) > (1 if chosen.weighs_edges else 10)


@pytest.mark.parametrize("space", names("nas.search_spaces"))
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_agrees_on_a_derived_network_with_drop_path(backend, space):
    described = space_of(space)
    genotype = sample(described, uniform(described), keyed(3, "genotype"))
    torch.manual_seed(1)
    plain = Network(described.fix(genotype), TASK, searching=False, auxiliary=True).double()
    for norm in (m for m in plain.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5), nn.init.uniform_(norm.bias, -0.5, 0.5)
    for cell in plain.mixed_cells:
        cell.drop_path = 0.3
    fast = copy.deepcopy(plain)
    fast.run, fast.fast = choose(backend, CPU), True
    images = torch.randn(5, 3, TASK.height, TASK.width, generator=keyed(0, "images"), dtype=torch.float64)
    for training in (True, False):
        both = [
            run(network.train(training), images, network.single, weights=True, logits=False)
            for network in (fast, plain)
        ]
        assert_agree(*both)


@pytest.mark.parametrize("backend", BACKENDS)
def test_state_dicts_are_interchangeable(backend):
    described = space_of("darts")
    plain = Network(described, TASK, searching=True)
    fast = Network(described, TASK, searching=True, run=choose(backend, CPU), fast=True)
    assert fast.load_state_dict(plain.state_dict()) == plain.load_state_dict(fast.state_dict())


# One cell, odd shapes


def block(*parts):
    return lambda site: nn.Sequential(*(part(site) for part in parts))


def conv(kernel: int, *, dilation: int = 1, stride=None, bias: bool = False):
    return lambda s: nn.Conv2d(
        s.in_channels, s.channels, kernel, stride or s.stride, dilation * (kernel // 2), dilation, bias=bias
    )


class Square(nn.Module):
    """A module no engine knows."""

    def __init__(self, site):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.stride = site.stride

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x[:, :, :: self.stride, :: self.stride] ** 2


def norm(affine: bool):
    return lambda s: nn.BatchNorm2d(s.channels, affine=affine, momentum=None if affine else 0.2)


ODD = {
    "none": lambda s: ops.Zero(s.channels, s.stride),
    "skip": lambda s: ops.skip_connect(s.in_channels, s.channels, s.stride, affine=False),
    "sep_3": lambda s: ops.twice_separable_conv(s.in_channels, s.channels, 3, s.stride, affine=True),
    "dil_5": lambda s: ops.separable_conv(s.in_channels, s.channels, 5, s.stride, 2, affine=False),
    "inverted": lambda s: ops.InvertedResidual(s.in_channels, s.channels, 5, s.stride, 3, affine=True),
    "conv_3": block(lambda s: nn.ReLU6(), conv(3), norm(True)),
    "conv_2": block(conv(1), norm(False), lambda s: nn.ReLU(), lambda s: conv(3, dilation=2, stride=1)(s)),
    "max": lambda s: nn.Sequential(nn.MaxPool2d(3, s.stride, 1), nn.BatchNorm2d(s.channels)),
    "average": lambda s: ops.average_pool(3, s.stride),
    "biased": block(conv(1, bias=True), norm(True)),
    "square": Square,
}
KNOWN = 9
"""Candidates that every engine understands; the others are run as they are."""

EDGES = tuple(Edge(s, t, tuple(ODD)[: 11 - (s + t) % 3]) for t in (2, 3, 4) for s in range(t))


def odd_cell(channels: int, stride: int, combine: str, preprocess: bool) -> MixedCell:
    torch.manual_seed(0)
    before = [ops.relu_conv_norm(2 * channels, channels, 1, affine=True) for _ in range(2)] if preprocess else []
    slot = CellSlot("cell", channels, stride, before)
    return MixedCell(Cell(EDGES, (3, 4), inputs=2, combine=combine), slot, ODD, searching=True).double()


def run_cell(run, cell: MixedCell, inputs: list[Tensor], selection: Selection) -> dict[str, Tensor]:
    inputs = [x.detach().requires_grad_() for x in inputs]
    y = run(cell, inputs, selection)
    factor = torch.randn(y.shape, generator=keyed(0, "factor"), dtype=y.dtype)
    wanted = {f"parameter {n}": p for n, p in cell.named_parameters()}
    wanted |= {f"input {i}": x for i, x in enumerate(inputs)}
    wanted |= {n: v for n in ("weights", "offset") if (v := getattr(selection, n)) is not None and v.requires_grad}
    gradients = torch.autograd.grad((y * factor).sum(), [*wanted.values()], allow_unused=True)
    values = {n: torch.zeros_like(v) if g is None else g for (n, v), g in zip(wanted.items(), gradients, strict=True)}
    return {"output": y.detach(), **values, **buffers(cell)}


def everything(weights: Tensor, cell: MixedCell) -> Selection:
    return Selection.mixture(weights, cell.cell.mask)


def known(weights: Tensor, cell: MixedCell) -> Selection:
    """Every candidate that engines understand, with an offset."""
    return Selection(((*range(KNOWN),),) * len(EDGES), weights, offset=weights.sum(1))


def sampled(weights: Tensor, cell: MixedCell) -> Selection:
    """One path, with probes of all others, and an offset."""
    return path(weights, cell.cell.mask)


def sampled_known(weights: Tensor, cell: MixedCell) -> Selection:
    return path(weights, cell.cell.mask & (torch.arange(len(ODD)) < KNOWN))


def path(weights: Tensor, live: Tensor) -> Selection:
    chosen = torch.randint(0, KNOWN, (len(EDGES),), generator=keyed(0, "path"))
    hard = nn.functional.one_hot(chosen, weights.shape[1]).double()
    return Selection.single_path(hard + weights - weights.detach(), live, (weights - weights.detach()).sum(1))


def some(weights: Tensor, cell: MixedCell) -> Selection:
    """Two edges without any candidate, one node of nothing but `none`."""
    paths = [(1, 4), (), (0,), (0,), (0,), (3, 7, 6), (), (8, 5), (2,)]
    return Selection(tuple(tuple(paths[e]) for e in range(len(EDGES))), weights)


@pytest.mark.parametrize("make", [everything, known, sampled, sampled_known, some])
@pytest.mark.parametrize(
    ("shape", "channels", "stride", "combine", "preprocess"),
    [
        ((1, 5, 7), 3, 1, "concatenate", True),
        ((2, 5, 7), 17, 2, "sum", True),
        ((3, 6, 6), 1, 1, "concatenate", False),
        ((2, 8, 9), 16, 1, "sum", False),
        ((2, 3, 2), 5, 1, "concatenate", True),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_odd_shapes_and_unknown_modules_agree(backend, shape, channels, stride, combine, preprocess, make):
    cell = odd_cell(channels, stride, combine, preprocess)
    width = 2 * channels if preprocess else channels
    inputs = [
        torch.randn(shape[0], width, *shape[1:], generator=keyed(0, "input", i), dtype=torch.float64) for i in (0, 1)
    ]
    inputs[1] = inputs[1].contiguous(memory_format=torch.channels_last)
    wide = torch.zeros(shape[0], width, shape[1], 2 * shape[2], dtype=torch.float64)
    wide[..., ::2] = inputs[0]
    inputs[0] = wide[..., ::2]  # not contiguous in any format
    weights = torch.rand(len(EDGES), len(ODD), generator=keyed(0, "weights"), dtype=torch.float64, requires_grad=True)
    selection = make(weights, cell)
    plain = copy.deepcopy(cell)
    found = run_cell(choose(backend, CPU), cell, inputs, selection)
    assert_agree(found, run_cell(reference.run_cell, plain, inputs, selection))


def noisy_cell() -> MixedCell:
    """Input 0 is read by noise and `none` alone; a derived cell that drops paths."""
    operations = {"noise": lambda s: ops.Noise(s.channels, s.stride)} | {k: ODD[k] for k in ("none", "skip", "conv_3")}
    every = tuple(operations)
    edges = (Edge(0, 2, every[:2]), Edge(1, 2, every), Edge(0, 3, every[:1]), Edge(1, 3, every[1:]), Edge(2, 3, every))
    cell = MixedCell(Cell(edges, (3,), inputs=2), CellSlot("noisy", 5, 2), operations, searching=False).double()
    cell.drop_path = 0.4
    return cell


def noisy_path(weights: Tensor) -> Selection:
    """One path through `noisy_cell`, with probes of all others."""
    hard = torch.eye(4, dtype=torch.float64)[torch.tensor([0, 2, 0, 2, 0])]
    return Selection.single_path(hard + weights - weights.detach(), noisy_cell().cell.mask)


@pytest.mark.parametrize("backend", BACKENDS)
def test_noise_is_drawn_in_the_order_of_the_reference_and_gives_its_input_no_gradient(backend, caplog):
    cell = noisy_cell()
    x, y = (torch.randn(3, 5, 5, 6, generator=keyed(0, "x", i), dtype=torch.float64).requires_grad_() for i in (0, 1))
    for selection in (
        Selection.mixture(
            torch.rand(5, 4, generator=keyed(1, "w"), dtype=torch.float64, requires_grad=True), cell.cell.mask
        ),
        Selection(((0,), (0, 2), (0,), (2,), (0,))),
    ):
        found = []
        for run in (choose(backend, CPU), reference.run_cell):
            own = copy.deepcopy(cell)
            torch.manual_seed(0)
            output = run(own, [x, y], selection)
            after = torch.rand(3)
            wanted = [x, y, *own.parameters(), *([] if selection.weights is None else [selection.weights])]
            gradients = torch.autograd.grad(output.square().sum(), wanted, allow_unused=True)
            values = {"output": output.detach(), "after": after} | dict(enumerate(gradients[1:]))
            found.append({str(name): value for name, value in values.items() if value is not None})
            assert gradients[0] is None or not gradients[0].any()
        assert_agree(*found)
    assert "leaves a cell" not in caplog.text


def test_native_probes_noise(caplog, monkeypatch):
    monkeypatch.setattr(ops.Noise, "forward", same_noise)
    cell = noisy_cell()
    cell.drop_path = 0.0
    inputs = [torch.randn(3, 5, 5, 6, generator=keyed(0, "x", i), dtype=torch.float64) for i in (0, 1)]
    selection = noisy_path(torch.rand(5, 4, dtype=torch.float64, requires_grad=True))
    for part in (selection.detach(), selection):
        plain = copy.deepcopy(cell)
        found = run_cell(choose("native", CPU), cell, inputs, part)
        assert_agree(found, run_cell(reference.run_cell, plain, inputs, part))
    assert "leaves a cell" not in caplog.text


@pytest.mark.parametrize("backend", BACKENDS)
def test_evaluation_and_untouched_statistics_agree(backend):
    from nas.supernet.statistics import untouched_statistics

    cell = odd_cell(3, 1, "sum", True)
    inputs = [torch.randn(2, 6, 5, 5, generator=keyed(0, "input", i), dtype=torch.float64) for i in (0, 1)]
    weights = torch.rand(len(EDGES), len(ODD), generator=keyed(0, "weights"), dtype=torch.float64, requires_grad=True)
    for training in (True, False):
        for make in (everything, known, sampled, sampled_known):
            copies = [copy.deepcopy(cell).train(training) for _ in range(2)]
            with untouched_statistics(copies[0]), untouched_statistics(copies[1]):
                found = run_cell(choose(backend, CPU), copies[0], inputs, make(weights, cell))
                assert_agree(found, run_cell(reference.run_cell, copies[1], inputs, make(weights, cell)))
    with torch.no_grad():
        for make in (everything, known):
            selection = make(weights, cell.eval())
            y = [run(cell, inputs, selection) for run in (choose(backend, CPU), reference.run_cell)]
            assert_agree({"y": y[0]}, {"y": y[1]})


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_value_per_channel_is_refused(backend):
    cell = odd_cell(3, 2, "sum", True)
    inputs = [torch.randn(1, 6, 2, 2, dtype=torch.float64) for _ in range(2)]
    weights = torch.rand(len(EDGES), len(ODD), dtype=torch.float64)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        choose(backend, CPU)(cell, inputs, known(weights, cell))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_follows_parameters_that_move(backend):
    cell = odd_cell(4, 1, "sum", True)
    inputs = [torch.randn(2, 8, 5, 5, dtype=torch.float64) for _ in range(2)]
    weights = torch.rand(len(EDGES), len(ODD), dtype=torch.float64, requires_grad=True)
    selection = known(weights, cell)
    run_cell(choose(backend, CPU), cell, inputs, selection)
    cell.float().double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(0.1)
    plain = copy.deepcopy(cell)
    found = run_cell(choose(backend, CPU), cell, inputs, selection)
    assert_agree(found, run_cell(reference.run_cell, plain, inputs, selection))


# What is special to a backend


def test_what_native_does_not_know_it_leaves_to_aten_and_says_so_once(caplog):
    cell = odd_cell(3, 1, "sum", True)
    inputs = [torch.randn(2, 6, 5, 5, dtype=torch.float64) for _ in range(2)]
    weights = torch.rand(len(EDGES), len(ODD), dtype=torch.float64)
    cell.name = "left to aten"
    for _ in range(3):
        choose("native", CPU)(cell, inputs, everything(weights, cell))
    said = [record.message for record in caplog.records if "left to aten" in record.message]
    assert len(said) == 1
    assert "biased" in said[0]


def test_without_numba_aten_runs_and_it_is_said(monkeypatch, caplog):
    import sys

    from nas.supernet import aten

    monkeypatch.setitem(sys.modules, "nas.supernet.native", None)
    monkeypatch.delattr("nas.supernet.native", raising=False)
    assert choose("native", CPU) is aten.run_cell
    assert "not available" in caplog.text


def test_a_second_backward_through_native_is_refused():
    cell = odd_cell(3, 1, "sum", True)
    inputs = [torch.randn(2, 6, 5, 5, dtype=torch.float64) for _ in range(2)]
    weights = torch.rand(len(EDGES), len(ODD), dtype=torch.float64, requires_grad=True)
    y = choose("native", CPU)(cell, inputs, known(weights, cell)).sum()
    y.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="reference"):
        y.backward()


def test_native_counts_what_it_holds_until_the_backward_or_until_the_graph_is_dropped():
    from nas.supernet import native

    cell = odd_cell(3, 1, "sum", True)
    inputs = [torch.randn(2, 6, 5, 5, dtype=torch.float64) for _ in range(2)]
    weights = torch.rand(len(EDGES), len(ODD), dtype=torch.float64, requires_grad=True)
    before = native.held()
    y = choose("native", CPU)(cell, inputs, known(weights, cell))
    assert native.held() > before + y.numel() * 8
    y.sum().backward()
    assert native.held() == before
    z = choose("native", CPU)(cell, inputs, known(weights, cell))
    assert native.held() > before
    del z
    assert native.held() == before
    with torch.no_grad():
        choose("native", CPU)(cell, inputs, known(weights, cell))
    assert native.held() == before


def test_native_keeps_no_results_of_pools():
    from nas.supernet import native

    held, cell, before = {}, odd_cell(16, 1, "sum", False), native.held()
    inputs = [torch.randn(2, 16, 16, 16, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    for name in ("skip", "max", "average"):
        y = choose("native", CPU)(cell, inputs, Selection(((list(ODD).index(name),),) * len(EDGES)))
        held[name] = native.held() - before
        y.sum().backward()
    node = y.numel() * 8
    assert max(held["max"], held["average"]) < held["skip"] + node


@pytest.mark.parametrize(
    "wrong",
    [
        lambda s: nn.Sequential(nn.Conv2d(s.channels + 1, s.channels, 1, bias=False)),
        lambda s: nn.Sequential(nn.Conv2d(s.channels, s.channels + 1, 1, bias=False)),
        lambda s: nn.Sequential(nn.Conv2d(s.channels, s.channels, 3, bias=False)),
        lambda s: nn.Sequential(nn.Conv2d(s.channels, s.channels, 1, bias=False), nn.BatchNorm2d(s.channels + 1)),
    ],
    ids=["reads too many channels", "gives too many channels", "gives too few pixels", "normalises too many channels"],
)
def test_a_candidate_of_the_wrong_shape_is_refused_and_not_read_beyond_its_end(wrong):
    cell = MixedCell(Cell((Edge(0, 1, ("wrong",)),), (1,)), CellSlot("cell", 3), {"wrong": wrong}, searching=True)
    with pytest.raises(RuntimeError, match=r"channels reads|a candidate gives"):
        choose("native", CPU)(cell, [torch.randn(2, 3, 5, 5)], Selection(((0,),)))


def test_native_reads_no_memory_that_it_has_not_written(monkeypatch):
    from nas.supernet.native import memory

    cell = odd_cell(5, 2, "concatenate", True)
    inputs = [torch.randn(2, 10, 6, 7, generator=keyed(0, "input", i), dtype=torch.float64) for i in (0, 1)]
    weights = torch.rand(len(EDGES), len(ODD), generator=keyed(0, "weights"), dtype=torch.float64, requires_grad=True)

    def poisoned(size: int, *, kept: bool = False) -> Tensor:
        return torch.full((size,), 255, dtype=torch.uint8)  # all bits set: no number

    monkeypatch.setattr(ops.Noise, "forward", same_noise)
    noisy, cases = noisy_cell(), [(cell, inputs, make(weights, cell)) for make in (known, sampled_known)]
    noisy.drop_path = 0.0
    narrow = [x[:, :5] for x in inputs]
    cases += [
        (noisy, narrow, Selection.mixture(weights[:5, :4], noisy.cell.mask)),
        (noisy, narrow, noisy_path(weights[:5, :4])),
    ]
    for cell, inputs, selection in cases:
        plain = run_cell(choose("native", CPU), copy.deepcopy(cell), inputs, selection)
        with monkeypatch.context() as patch:
            patch.setattr(memory, "take", poisoned)
            found = run_cell(choose("native", CPU), copy.deepcopy(cell), inputs, selection)
        assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_native_probes_what_a_decision_asks_for_whatever_was_probed_before():
    cell = odd_cell(5, 2, "concatenate", True)
    inputs = [torch.randn(2, 10, 6, 7, generator=keyed(0, "input", i), dtype=torch.float64) for i in (0, 1)]
    weights = torch.rand(len(EDGES), len(ODD), generator=keyed(0, "weights"), dtype=torch.float64, requires_grad=True)
    for seed in range(8):
        draws = keyed(seed, "decision")
        chosen = torch.randint(0, KNOWN, (len(EDGES),), generator=draws)
        live = torch.rand(len(EDGES), len(ODD), generator=draws) < (0.1, 0.9, 0.0)[seed % 3]
        live &= torch.arange(len(ODD)) < KNOWN
        hard = nn.functional.one_hot(chosen, len(ODD)).double()
        selection = Selection.single_path(hard + weights - weights.detach(), live)
        cell.train(seed != 4)
        plain = copy.deepcopy(cell)
        found = run_cell(choose("native", CPU), cell, inputs, selection)
        assert_agree(found, run_cell(reference.run_cell, plain, inputs, selection))


def test_what_native_knows_of_a_cell_goes_with_the_cell():
    cell = odd_cell(3, 1, "sum", True)
    inputs = [torch.randn(2, 6, 5, 5, dtype=torch.float64) for _ in range(2)]
    weights = torch.rand(len(EDGES), len(ODD), dtype=torch.float64, requires_grad=True)
    run_cell(choose("native", CPU), cell, inputs, sampled_known(weights, cell))
    left = weakref.ref(cell)
    del cell
    gc.collect()
    assert left() is None


@pytest.mark.parametrize("make", [known, sampled_known])
def test_native_gives_the_same_bits_on_any_number_of_threads(make):
    cell = odd_cell(16, 1, "sum", False)
    inputs = [torch.randn(4, 16, 48, 48, generator=keyed(0, "input", i), dtype=torch.float64) for i in (0, 1)]
    weights = torch.rand(len(EDGES), len(ODD), generator=keyed(0, "weights"), dtype=torch.float64, requires_grad=True)
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            found.append(run_cell(choose("native", CPU), copy.deepcopy(cell), inputs, make(weights, cell)))
        finally:
            torch.set_num_threads(1)
    # Sums over images are kept per image and added in order; only the gradients of weights are added by thread.
    equal = [name for name in found[0] if not name.startswith("parameter")]
    assert all(torch.equal(found[0][name], found[1][name]) for name in equal)
    assert_agree(*found)


def test_a_search_by_native_follows_the_loss_of_the_reference(tmp_path):
    from nas.runs.pipeline import configure
    from nas.runs.search import BilevelSearch
    from nas.runs.session import session

    losses = {}
    for backend in ("reference", "native", "aten"):
        space = {"name": "darts", "channels": 4, "depth": 3, "nodes": 2}
        config = configure(
            space=space,
            selector="softmax",
            engine={"backend": backend},
            search={"batch_size": 8, "warmup": 0.0},
            tracking={"wandb": "disabled"},
        )
        with session(tmp_path / backend, config, "search", quiet=True) as work:
            search = BilevelSearch(work)
            search.network.double()
            search.architecture.double()
            for batches in (search.train, search.arch):
                make = batches.batch
                batches.batch = lambda step, make=make: (make(step)[0].double(), make(step)[1])
            steps = [search.step(step, 0.5) for step in range(6)]
            losses[backend] = torch.stack([s[k] for s in steps for k in ("arch_loss", "train_loss")])
    for backend in ("native", "aten"):
        # Twelve steps of float64, each amplifying rounding by less than ten.
        torch.testing.assert_close(losses[backend], losses["reference"], rtol=1e-8, atol=0)


def test_bfloat16_is_refused_where_it_would_do_nothing():
    from nas.runs.configuration import Engine

    for backend in ("reference", "native"):
        with pytest.raises(ValueError, match="backend aten or auto"):
            Engine(backend=backend, precision="bfloat16")


def test_bfloat16_rounds_the_scores_and_keeps_statistics_in_float32():
    described = space_of("nas-bench-201")
    torch.manual_seed(1)
    network = Network(described, TASK, searching=True)
    images = torch.randn(4, 3, 8, 8, generator=keyed(0, "images"))
    selections = select(described, load("nas.selectors", "softmax")(), 0, gradient=False)
    selections = {n: Selection(s.paths, s.weights.float()) for n, s in selections.items()}
    scores = []
    for precision in ("float32", "bfloat16"):
        network.run, network.fast = choose("auto", CPU, precision), True
        scores.append(network(images, selections).scores)
    assert scores[1].dtype == torch.float32
    # Relative errors of 2^-9 in each factor, through eight cells' batch norms, which keep them relative.
    torch.testing.assert_close(scores[1], scores[0], rtol=0.1, atol=0.1 * float(scores[0].detach().abs().max()))
    assert not torch.equal(scores[1], scores[0])
