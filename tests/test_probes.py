"""Probes and offsets: gradients for weights that are zero, at no cost to the forward pass."""

import pytest
import torch
from torch import nn

from nas.ops import Zero
from nas.randomness import generator as keyed
from nas.selection import Selection
from nas.space import Cell, CellSlot, Edge
from nas.supernet import MixedCell
from nas.supernet.reference import run_cell


def conv(kernel: int):
    return lambda site: nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(site.in_channels, site.channels, kernel, site.stride, kernel // 2),
        nn.BatchNorm2d(site.channels, affine=False),
    )


OPERATIONS = {
    "none": lambda site: Zero(site.channels, site.stride),
    "skip": lambda site: nn.Identity(),
    "conv1": conv(1),
    "conv3": conv(3),
}
ALL = tuple(OPERATIONS)

CELL = Cell(tuple(Edge(s, t, ALL[: 4 - (s + t == 3)]) for t in (1, 2, 3) for s in range(t)), outputs=(3,))
"""Six edges with four candidates, but 0-3 and 1-2 with three: `conv3` is missing."""

CHOSEN = (3, 2, 1, 2, 3, 2)
"""The candidate that each edge runs."""

SELECTED = torch.zeros(6, 4, dtype=torch.float64).scatter(1, torch.tensor(CHOSEN)[:, None], 1.0)


def mixed_cell(dtype: torch.dtype = torch.float64) -> MixedCell:
    torch.manual_seed(0)
    cell = MixedCell(CELL, CellSlot("cell", 3), OPERATIONS, searching=True).to(dtype)
    return cell.requires_grad_(False)


def image(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(4, 3, 5, 5, generator=keyed(0, "image"), dtype=torch.float64).to(dtype).requires_grad_()


def probing(weights: torch.Tensor) -> Selection:
    selection = Selection.single_path(weights, CELL.mask)
    assert [len(edge) for edge in selection.probes] == [len(edge.operations) - 1 for edge in CELL.edges]
    return selection


def loss(y: torch.Tensor) -> torch.Tensor:
    return (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)).sum() + y.square().sum()


def buffers(cell: MixedCell) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in cell.named_buffers()}


# Probes


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_probed_weights_get_the_gradient_of_running_everything_with_weight_zero(training):
    cell, x = mixed_cell().train(training), image()
    weights = SELECTED.clone().requires_grad_()
    gradients = []
    for selection in (probing(weights), Selection.mixture(weights, CELL.mask)):
        y = run_cell(cell, [x], selection)
        gradients.append(torch.autograd.grad(loss(y), weights)[0])
    # Inner products of 300 numbers of order one to ten: rounding below 300 * 10 * 2e-16.
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    skip_or_conv = CELL.mask & (torch.arange(4) > 0)
    assert (gradients[0][skip_or_conv].abs() > 1e-3).all()  # the comparison is not of zeros
    assert (gradients[0][~CELL.mask] == 0).all()


def test_a_probed_gradient_is_the_inner_product_of_the_edges_gradient_and_the_candidates_output():
    cell, x = mixed_cell(), image()
    weights = SELECTED.clone().requires_grad_()
    outputs = {}

    def keep(module, args, y):
        outputs["edge"], outputs["input"] = y, args[0]
        y.retain_grad()

    handle = cell.get_submodule("edges.1-3.conv3").register_forward_hook(keep)
    loss(run_cell(cell, [x], probing(weights))).backward()
    handle.remove()
    for k, operation in enumerate(ALL):
        expected = (outputs["edge"].grad * cell.get_submodule(f"edges.1-3.{operation}")(outputs["input"])).sum()
        torch.testing.assert_close(weights.grad[4, k], expected, rtol=1e-12, atol=1e-12)


def test_only_listed_candidates_are_probed():
    cell, x = mixed_cell(), image()
    weights = SELECTED.clone().requires_grad_()
    one = Selection(probing(weights).paths, weights, ((2,), (), (), (), (1,), ()))
    (found,) = torch.autograd.grad(loss(run_cell(cell, [x], one)), weights)
    (full,) = torch.autograd.grad(loss(run_cell(cell, [x], probing(weights))), weights)
    asked = SELECTED.bool()
    asked[0, 2] = asked[4, 1] = True
    assert torch.equal(found, full * asked)


def test_probes_change_neither_outputs_nor_the_gradients_of_inputs_and_parameters():
    cell, x = mixed_cell().requires_grad_(), image()
    weights = SELECTED.clone().requires_grad_()
    single = Selection.single_path(weights)
    results = []
    for selection in (single, probing(weights)):
        cell.zero_grad()
        x.grad = None
        y = run_cell(cell, [x], selection)
        loss(y).backward()
        results.append((y, x.grad, {name: p.grad for name, p in cell.named_parameters()}))
    (y, of_x, of_cell), (probed_y, probed_of_x, probed_of_cell) = results
    assert torch.equal(y, probed_y)
    assert torch.equal(of_x, probed_of_x)
    assert of_x.abs().sum() > 0
    for name, gradient in of_cell.items():
        same = probed_of_cell[name] is None if gradient is None else torch.equal(gradient, probed_of_cell[name])
        assert same, name
    assert any(gradient is None for gradient in of_cell.values())  # unsampled candidates train nothing


def test_probes_leave_batch_norm_buffers_untouched():
    cell, x = mixed_cell(), image()
    weights = SELECTED.clone().requires_grad_()
    start = buffers(cell)
    y = run_cell(cell, [x], probing(weights))
    after_forward = buffers(cell)
    moved = {name.split(".num_")[0] for name in start if not torch.equal(start[name], after_forward[name])}
    ran = {f"edges.{e.source}-{e.target}.{e.operations[k]}." for e, k in zip(CELL.edges, CHOSEN, strict=True)}
    assert all(name.startswith(tuple(ran)) for name in moved)
    assert moved
    torch.autograd.grad(loss(y), weights)
    after_backward = buffers(cell)
    assert all(torch.equal(after_forward[name], after_backward[name]) for name in start)
    assert all(m.track_running_stats for m in cell.modules() if isinstance(m, nn.BatchNorm2d))


def test_probed_candidates_do_not_run_in_the_forward_pass_and_keep_no_graph():
    cell, x = mixed_cell(), image()
    weights = SELECTED.clone().requires_grad_()
    graphs: list[bool] = []  # of each run of an unsampled candidate: whether it built a graph

    def note(module, args, y):
        graphs.append(torch.is_grad_enabled())

    for (edge, row), k in zip(zip(CELL.edges, cell.candidates, strict=True), CHOSEN, strict=True):
        for operation, candidate in zip(edge.operations, row, strict=True):
            if operation not in (edge.operations[k], "none"):
                candidate.register_forward_hook(note)
    y = run_cell(cell, [x], probing(weights))
    assert graphs == []
    torch.autograd.grad(loss(y), weights)
    assert graphs == [False] * sum(len(edge.operations) - 2 for edge in CELL.edges)


def test_probes_keep_no_more_than_the_nodes_that_edges_read():
    def kept(selection: Selection) -> int:
        """Returns the bytes that the graph of a forward pass keeps, each storage once."""
        storages: dict[int, torch.UntypedStorage] = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage  # kept alive, so that no address is given twice
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            run_cell(cell, [x], selection)
        return sum(storage.nbytes() for storage in storages.values())

    cell, x = mixed_cell(), image()
    weights = SELECTED.clone().requires_grad_()
    node, everything = x.untyped_storage().nbytes(), kept(Selection.mixture(weights, CELL.mask))
    single, probed = kept(Selection.single_path(weights)), kept(probing(weights))
    # Nodes 0, 1 and 2 have out-edges. Seventeen more candidates keep at least their output each, for their weight.
    assert single < probed <= single + 3 * node
    assert everything >= single + 17 * node


def test_probes_are_not_differentiated_twice():
    cell, x = mixed_cell(), image()
    weights = SELECTED.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(run_cell(cell, [x], probing(weights))), weights, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("forward", [True, False], ids=["autocast forward", "plain forward"])
def test_a_probe_runs_under_the_autocast_state_of_the_forward_pass(forward):
    cell, x = mixed_cell(torch.float32), image(torch.float32)
    weights = SELECTED.float().requires_grad_()
    kinds = set()
    with torch.autocast("cpu", torch.bfloat16, enabled=forward):
        y = run_cell(cell, [x], probing(weights))
    for m in cell.modules():
        if isinstance(m, nn.Conv2d):
            m.register_forward_hook(lambda m, args, y: kinds.add(y.dtype))
    with torch.autocast("cpu", torch.bfloat16, enabled=not forward):
        torch.autograd.grad(loss(y.float()), weights)
    assert kinds == {torch.bfloat16 if forward else torch.float32}


# Offsets


def test_an_offset_of_zero_changes_no_value_and_its_gradient_is_the_sum_of_the_edges_gradient():
    cell, x = mixed_cell(), image()
    weights, offset = SELECTED.clone(), torch.zeros(6, dtype=torch.float64, requires_grad=True)
    single = Selection.single_path(weights)
    y = run_cell(cell, [x], Selection.single_path(weights, offset=offset))
    assert torch.equal(y, run_cell(cell, [x], single))
    (found,) = torch.autograd.grad(loss(y), offset)

    outputs = {}

    def keep(e):
        def hook(module, args, y):
            outputs[e] = y.clone()  # the identity's output is the node itself, with the gradients of all its edges
            outputs[e].retain_grad()
            return outputs[e]

        return hook

    for e, k in enumerate(CHOSEN):
        cell.candidates[e][k].register_forward_hook(keep(e))
    loss(run_cell(cell, [x], single)).backward()
    expected = torch.stack([outputs[e].grad.sum() for e in range(6)])
    # Sums of 300 numbers of order ten: rounding below 300 * 10 * 2e-16. Before a batch norm the sum is zero.
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert found.abs().max() > 1e-3


def test_the_offset_of_an_edge_that_runs_nothing_has_no_effect():
    cell, x = mixed_cell(), image()
    offset = torch.ones(6, dtype=torch.float64, requires_grad=True)
    y = run_cell(cell, [x], Selection(((), (), (), (1,), (), ()), SELECTED * 0 + 1, offset=offset))
    assert torch.equal(y, x + 1)
    (gradient,) = torch.autograd.grad(y.sum(), offset)
    assert gradient.tolist() == [0, 0, 0, y.numel(), 0, 0]
