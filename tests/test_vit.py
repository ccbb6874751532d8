"""The vision transformer: attention as torch's, tokens that are pixels, branches that can be skipped or dropped."""

import json

import pytest
import torch
from torch import nn

from nas import ops
from nas.space import Genotype, Task
from nas.supernet import Network
from nas.supernet.inspection import inspect
from search_spaces.vit import ViT

TASK = Task(channels=1, height=8, width=8, classes=10)
MADE = [lambda: ops.SelfAttention(4, 2, affine=True), lambda: ops.perceptron(4, 2, affine=True)]


def image(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# The space


def test_each_block_chooses_heads_and_ratio_and_all_but_the_first_may_skip_either():
    cells = ViT(channels=16, blocks=3).cells
    assert [*cells] == [f"block{i}-{part}" for i in range(3) for part in ("attention", "perceptron")]
    heads, ratios = ("heads_2", "heads_4", "heads_8"), ("ratio_1", "ratio_2", "ratio_4")
    choices = [cell.edges[0].operations for cell in cells.values()]
    assert choices == [heads, ratios, ("skip", *heads), ("skip", *ratios), ("skip", *heads), ("skip", *ratios)]
    assert {cell.edges[1].operations for cell in cells.values()} == {("identity",)}


@pytest.mark.parametrize(("channels", "heads"), [(2, [2]), (6, [2]), (12, [2, 4]), (24, [2, 4, 8])])
def test_only_numbers_of_heads_that_divide_the_width_are_offered(channels, heads):
    assert ViT(channels=channels).cells["block0-attention"].edges[0].operations == tuple(f"heads_{h}" for h in heads)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"channels": 7}, "channels must be a multiple of 2, for two heads, got 7"),
        ({"channels": 0}, "channels must be a multiple of 2, for two heads, got 0"),
        ({"blocks": 0}, "blocks must be at least 1, got 0"),
        ({"patch": 0}, "patch must be at least 1, got 0"),
    ],
)
def test_impossible_sizes_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ViT(**given)


def fixed(space: ViT, *choices: str):
    pairs = zip(space.cells, choices, strict=True)
    return space.fix(Genotype({name: ((0, 1, choice), (0, 2, "identity")) for name, choice in pairs}))


def derived(space: ViT, *choices: str) -> Network:
    return Network(fixed(space, *choices), TASK, searching=False).double()


@pytest.mark.parametrize(("heads", "ratio", "side", "tokens"), [(2, 1, 2, 16), (8, 4, 2, 16), (4, 2, 3, 9)])
def test_its_size_is_the_closed_form(heads, ratio, side, tokens):
    c = 8
    space = fixed(ViT(channels=c, blocks=1, patch=side), f"heads_{heads}", f"ratio_{ratio}")
    size = inspect(space, TASK, searching=False)
    attention, perceptron = 4 * c * c, 2 * ratio * c * c
    assert size.multiply_adds == tokens * (c * side**2 + attention + 2 * tokens * c + perceptron) + 10 * c
    biases = c + 4 * c + ratio * c + c + 10
    norms, positions = 3 * 2 * c, tokens * c
    assert size.parameters == c * side**2 + attention + perceptron + 10 * c + biases + norms + positions


def test_a_block_that_skips_both_is_the_identity():
    network = derived(ViT(channels=4, blocks=2), "heads_2", "ratio_2", "skip", "skip")
    x = image(3, 4, 4, 4)
    for cell in network.mixed_cells[2:]:
        assert torch.equal(network.run(cell, [x], network.single[cell.name]), x)
    for cell in network.mixed_cells[:2]:
        assert not torch.equal(network.run(cell, [x], network.single[cell.name]), x)


def test_drop_path_drops_branches_and_never_the_stream():
    network, x = derived(ViT(channels=4, blocks=1), "heads_2", "ratio_2"), image(200, 4, 2, 2)
    cell = network.mixed_cells[1]
    whole = network.run(cell, [x], network.single[cell.name]) - x
    cell.drop_path = 0.75
    torch.manual_seed(0)
    branch = network.run(cell, [x], network.single[cell.name]) - x
    kept = (branch != 0).any(dim=(1, 2, 3))
    torch.testing.assert_close(branch[kept], 4 * whole[kept], rtol=1e-9, atol=1e-9)
    # Five standard deviations of a binomial count of 200 at 1/4.
    assert abs(int(kept.sum()) - 50) < 5 * (200 * 0.25 * 0.75) ** 0.5


# Its operations


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_is_torchs(heads):
    attention = ops.SelfAttention(8, heads, affine=True).double()
    nn.init.uniform_(attention.norm.weight), nn.init.uniform_(attention.norm.bias)
    known = nn.MultiheadAttention(8, heads, batch_first=True, dtype=torch.float64)
    known.in_proj_weight.data = attention.read.weight.data[..., 0, 0]
    known.in_proj_bias.data = attention.read.bias.data
    known.out_proj.weight.data = attention.write.weight.data[..., 0, 0]
    known.out_proj.bias.data = attention.write.bias.data
    x = image(3, 8, 5, 4)
    tokens = attention.norm(x).flatten(2).transpose(1, 2)  # (B, H * W, C)
    expected, _ = known(tokens, tokens, tokens, need_weights=False)
    # A few hundred products and sums in float64.
    torch.testing.assert_close(attention(x).flatten(2).transpose(1, 2), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("affine", [True, False])
def test_the_norm_is_layer_norm_of_every_pixel(affine):
    norm, x = ops.ChannelNorm(6, elementwise_affine=affine).double(), image(2, 6, 3, 4)
    y = norm(x)
    torch.testing.assert_close(y.mean(1), torch.zeros(2, 3, 4, dtype=torch.float64), rtol=0, atol=1e-14)
    variance = x.var(1, correction=0)
    torch.testing.assert_close(y.var(1, correction=0), variance / (variance + norm.eps))


@pytest.mark.parametrize(
    "make", [lambda: ops.SelfAttention(4, 2, affine=True), lambda: ops.perceptron(4, 2, affine=True)]
)
def test_operations_can_be_differentiated_twice(make):
    torch.manual_seed(0)
    operation, x = make().double(), image(1, 4, 2, 2).requires_grad_()
    assert torch.autograd.gradgradcheck(operation, x)


@pytest.mark.parametrize(
    "make", [lambda: ops.SelfAttention(4, 2, affine=True), lambda: ops.perceptron(4, 2, affine=True)]
)
def test_operations_do_not_know_where_a_pixel_is(make):
    operation, x, order = make().double(), image(2, 4, 3, 5), torch.randperm(15)

    def shuffled(maps):
        return maps.flatten(2)[:, :, order].unflatten(2, (3, 5))

    torch.testing.assert_close(operation(shuffled(x)), shuffled(operation(x)), rtol=1e-12, atol=1e-12)


def test_patches_know_where_they_are():
    patches, x = ops.Patches(1, 4, 2, (4, 6)), torch.ones(1, 1, 4, 6)
    assert len({*map(tuple, patches(x)[0].flatten(1).T.tolist())}) == 6


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 1), (2, 13)])
@pytest.mark.parametrize("side", [1, 2, 3, 16])
def test_zeros_complete_the_patches_of_any_image(size, side):
    patches, x = ops.Patches(2, 4, side, size).double(), image(3, 2, *size)
    rows, columns = (-(-pixels // side) for pixels in size)
    whole = torch.zeros(3, 2, rows * side, columns * side, dtype=torch.float64)
    whole[:, :, : size[0], : size[1]] = x
    found = patches(x)
    assert found.shape == (3, 4, rows, columns)
    for row in range(rows):
        for column in range(columns):
            patch = whole[:, :, row * side : (row + 1) * side, column * side : (column + 1) * side]
            plain = torch.einsum("bchw,ochw->bo", patch, patches.embed.weight) + patches.embed.bias
            expected = plain + patches.position[:, row, column]
            torch.testing.assert_close(found[:, :, row, column], expected, rtol=1e-12, atol=1e-12)


# A search


@pytest.mark.slow
def test_a_short_search_learns_digits_and_what_it_finds_is_retrained(nas_command, tmp_path):
    settings = (
        "space.blocks=2",
        "search.weights={name: adam, lr: 0.01}",
        "retrain.optimizer={name: adam, lr: 0.01}",
        "retrain.seeds=1",
        "retrain.cutout=false",
        "dataset.augmentation.crop=0",  # a pixel's shift of 8x8 images is much for patches of two
    )
    given = [part for setting in settings for part in ("--set", setting)]
    found = nas_command("search", "--space", "vit", "--epochs", 10, "--json", "--out", tmp_path / "run", *given)
    assert found.code == 0, found.err
    assert json.loads(found.out)["select"] > 60  # of ten classes
    assert nas_command("derive", tmp_path / "run").code == 0
    retrained = nas_command("retrain", tmp_path / "run", "--epochs", 10, "--json")
    assert retrained.code == 0, retrained.err
    assert json.loads(retrained.out)[0]["select"] > 80
