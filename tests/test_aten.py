"""What is special to the backend `aten`: it keeps little, does no work that is thrown away, and knows its precision."""

import copy

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nas.randomness import generator as keyed
from nas.registry import load
from nas.selection import Selection
from nas.space import Cell, CellSlot, Edge
from nas.supernet import MixedCell, aten, reference

OPERATIONS = load("nas.search_spaces", "darts").operations
BATCH, CHANNELS, SIDE = 4, 6, 8
IMAGE = BATCH * CHANNELS * SIDE * SIDE
CHAIN = {"sep_conv_3x3": 2, "sep_conv_5x5": 2, "dil_conv_3x3": 1, "dil_conv_5x5": 1}
"""Dense convolutions of a candidate, with as many depthwise ones."""


def cell_of(*operations: str, targets=(1, 2, 3)) -> MixedCell:
    torch.manual_seed(0)
    edges = tuple(Edge(s, t, operations) for t in targets for s in range(t))
    cell = Cell(edges, (targets[-1],), combine="sum")
    return MixedCell(cell, CellSlot("cell", CHANNELS), OPERATIONS, searching=True)


def image() -> Tensor:
    return torch.randn(BATCH, CHANNELS, SIDE, SIDE, generator=keyed(0, "image"))


def mixture(cell: MixedCell, *, gradient: bool) -> Selection:
    weights = torch.rand(len(cell.cell.edges), cell.cell.candidates, generator=keyed(0, "weights"))
    return Selection.mixture(weights.requires_grad_(gradient), cell.cell.mask)


class Calls(TorchDispatchMode):
    """Records the name, tensor arguments and other arguments of every operation."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.found.append((function.overloadpacket.__name__, args))
        return function(*args, **(kwargs or {}))

    def of(self, name: str) -> list[tuple]:
        return [args for found, args in self.found if found == name]


def kept(run, cell: MixedCell, x: Tensor, selection: Selection) -> int:
    """Returns the bytes a forward pass keeps for its backward, each storage once, without those that exist anyway."""
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = run(cell, [x], selection)
    given = [x, *cell.parameters(), *([] if selection.weights is None else [selection.weights])]
    for tensor in given:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    del y
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("gradient", [False, True], ids=["weight step", "architecture step"])
def test_a_mixture_keeps_one_image_for_every_state_and_dense_convolution(gradient):
    cell = cell_of(*CHAIN)
    x = image().contiguous(memory_format=torch.channels_last)
    if gradient:
        cell.requires_grad_(False)
    found = kept(aten.run_cell, cell, x, mixture(cell, gradient=gradient))
    images = 2 + len(cell.cell.edges) * sum(CHAIN.values())  # the input exists anyway, the last state is not read
    norms = len(cell.cell.edges) * sum(CHAIN.values()) * 2 * CHANNELS
    assert found <= 4 * (images * IMAGE + norms)
    assert found <= kept(reference.run_cell, cell, x, mixture(cell, gradient=gradient)) / 2


def test_edges_share_the_pools_of_a_state():
    cell = cell_of("max_pool_3x3", "avg_pool_3x3", "skip_connect")
    x = image().contiguous(memory_format=torch.channels_last).requires_grad_()
    with Calls() as calls:
        aten.run_cell(cell, [x], mixture(cell, gradient=False)).sum().backward()
    for pool in ("max_pool2d_with_indices", "avg_pool2d"):
        assert len(calls.of(pool)) == len(calls.of(f"{pool}_backward")) == 3  # states 0, 1 and 2 have out-edges


def test_one_path_runs_and_keeps_what_it_does_in_a_network_without_other_candidates():
    full, alone = cell_of("none", "max_pool_3x3", *CHAIN), cell_of("sep_conv_5x5")
    alone.load_state_dict({key: value for key, value in full.state_dict().items() if "sep_conv_5x5" in key})
    weights = torch.zeros(len(full.cell.edges), 6)
    weights[:, 3] = 1
    path = Selection.single_path(weights).detach()
    names = []
    for cell, selection in ((full, path), (alone, Selection.everything(alone.cell))):
        x = image().requires_grad_()
        with Calls() as calls:
            aten.run_cell(cell, [x], selection).square().sum().backward()
        names.append([name for name, _ in calls.found])
    assert names[0] == names[1]
    assert kept(aten.run_cell, full, x, path) == kept(aten.run_cell, alone, x, Selection.everything(alone.cell))


def test_an_architecture_step_computes_no_gradient_of_a_weight():
    cell = cell_of(*CHAIN).requires_grad_(False)
    with Calls() as calls:
        selection = mixture(cell, gradient=True)
        aten.run_cell(cell, [image().requires_grad_()], selection).square().sum().backward()
    assert selection.weights.grad.abs().min() > 0
    assert not any(args[-1][1] for args in calls.of("convolution_backward"))
    pixels = BATCH * SIDE * SIDE
    assert not any(a.shape[1] == pixels for a, _ in calls.of("mm"))  # such a product sums over pixels


def test_a_state_that_needs_no_gradient_gets_none():
    cell = cell_of(*CHAIN, targets=(1,))
    with Calls() as calls:
        aten.run_cell(cell, [image()], mixture(cell, gradient=False)).square().sum().backward()
    dense, depthwise = sum(CHAIN.values()), len(calls.of("convolution"))
    # Forward, once more in the backward, and back through the second depthwise convolution of two candidates.
    assert depthwise == 2 * dense + 2
    assert sum(a.shape[0] == BATCH * SIDE * SIDE for a, _ in calls.of("mm")) == 2 * dense


def test_gradients_are_not_differentiated_twice():
    cell, x = cell_of("sep_conv_3x3"), image().requires_grad_()
    y = aten.run_cell(cell, [x], Selection.everything(cell.cell))
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_graph_that_is_retained_gives_the_same_gradients_again():
    cell, x = cell_of("max_pool_3x3", "dil_conv_3x3"), image().requires_grad_()
    weights = torch.eye(2)[torch.tensor([0, 1, 1, 0, 1, 0])].requires_grad_()
    y = aten.run_cell(cell, [x], Selection.single_path(weights, cell.cell.mask)).square().sum()
    first, second = (
        torch.autograd.grad(y, [x, weights, *cell.parameters()], retain_graph=True, allow_unused=True) for _ in "ab"
    )
    for a, b in zip(first, second, strict=True):
        assert a is b is None or torch.equal(a, b)


def test_batch_statistics_are_as_robust_as_those_of_batch_norm():
    """Channels whose mean is a thousand times their deviation."""
    cell = cell_of("max_pool_3x3", targets=(1,))
    x = (1000 + image()).contiguous(memory_format=torch.channels_last)
    exact = reference.run_cell(copy.deepcopy(cell).double(), [x.double()], Selection.everything(cell.cell))
    errors = [
        (run(copy.deepcopy(cell), [x], Selection.everything(cell.cell)) - exact).abs().max()
        for run in (aten.run_cell, reference.run_cell)
    ]
    # Float32 holds such values to 6e-5; normalising as a z + b with b near 1000 rounds once more.
    assert errors[0] <= 2 * errors[1] + 1e-4


def test_under_autocast_only_dense_convolutions_are_rounded():
    cell, x = cell_of(*CHAIN), image().requires_grad_()
    plain = copy.deepcopy(cell)
    selection = mixture(cell, gradient=True)
    with Calls() as calls, torch.autocast("cpu", torch.bfloat16):
        y = aten.run_cell(cell, [x], selection)
    with calls:
        (found,) = torch.autograd.grad(y.square().sum(), selection.weights)
    assert y.dtype == torch.float32
    assert {args[0].dtype for args in calls.of("convolution")} == {torch.float32}
    assert {a.dtype for a, _ in calls.of("mm")} == {torch.bfloat16}
    exact = reference.run_cell(plain, [x], selection)
    (expected,) = torch.autograd.grad(exact.square().sum(), selection.weights)
    # Rounding of two factors and a result, 2**-9 each, in every convolution of the deepest path: six in a row.
    deepest = 6 * 3 * 2**-9
    assert (y - exact).norm() <= deepest * exact.norm()
    # The same on the way back.
    assert (found - expected).norm() <= 2 * deepest * expected.norm()
