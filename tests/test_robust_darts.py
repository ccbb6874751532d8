"""S1 to S4: the published candidates, DARTS's layers and texts, and noise that is noise."""

import pytest
import torch
from torch import nn

from nas import ops
from nas.derivation import sample, uniform
from nas.errors import ConfigError
from nas.randomness import generator as keyed
from nas.runs.pipeline import configure
from nas.runs.search import BilevelSearch
from nas.runs.session import session
from nas.selection import Selection
from nas.space import Task
from nas.supernet import Network
from nas.supernet.backends import choose
from search_spaces.darts import DARTS
from search_spaces.robust_darts import S1, S2, S3, S4

TASK = Task(channels=1, height=9, width=7, classes=4)
SPACES = [S1, S2, S3, S4]

# As the authors' code lists them, by the numbers of DARTS's operations below, edge after edge.
NAMES = ("max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_3x3", "dil_conv_5x5")
PUBLISHED = {
    "normal": "24 25 25 23 24 02 23 23 24 23 02 24 45 45",
    "reduce": "01 04 01 01 25 01 03 24 25 01 01 25 25 25",
}


@pytest.mark.parametrize("cell", ["normal", "reduce"])
def test_s1_offers_the_published_pairs(cell):
    expected = [tuple(NAMES[int(number)] for number in pair) for pair in PUBLISHED[cell].split()]
    assert [edge.operations for edge in S1().cells[cell].edges] == expected


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (S2(), ("skip_connect", "sep_conv_3x3")),
        (S3(), ("none", "skip_connect", "sep_conv_3x3")),
        (S4(), ("noise", "sep_conv_3x3")),
    ],
    ids=["s2", "s3", "s4"],
)
def test_the_others_offer_the_same_on_all_edges_of_both_cells(space, expected):
    assert [edge.operations for cell in space.cells.values() for edge in cell.edges] == [expected] * 28


@pytest.mark.parametrize("make", SPACES)
def test_graph_and_other_layers_are_those_of_darts(make):
    def rest(space):
        network = Network(space, TASK, searching=True, auxiliary=True)
        return {name: value.shape for name, value in network.state_dict().items() if ".edges." not in name}

    space, darts = make(channels=2, depth=3), DARTS(channels=2, depth=3)
    for name, cell in space.cells.items():
        other = darts.cells[name]
        assert [(e.source, e.target) for e in cell.edges] == [(e.source, e.target) for e in other.edges]
        assert (cell.outputs, cell.inputs, cell.retain) == (other.outputs, other.inputs, other.retain)
    assert rest(space) == rest(darts)


def test_a_supernets_pools_are_normalised_without_scale_and_a_derived_networks_are_not():
    def pools(searching):
        cells = Network(S1(channels=2, depth=3), TASK, searching=searching).mixed_cells
        candidates = [cell.edges["-".join(map(str, e))] for cell in cells for e in ((0, 2), (1, 2)) if cell.stride == 2]
        return [edge["max_pool_3x3"] for edge in candidates]

    assert len(pools(True)) == 4
    for pool in pools(True):
        assert [type(part) for part in pool] == [nn.MaxPool2d, nn.BatchNorm2d]
        assert not pool[1].affine
    assert {type(pool) for pool in pools(False)} == {nn.MaxPool2d}


@pytest.mark.parametrize("make", SPACES)
def test_genotypes_are_written_as_darts_writes_them_and_stay_in_their_space(make):
    space = make()
    genotype = sample(space, uniform(space), keyed(0, "genotype"))
    text = space.format(genotype)
    assert text.startswith("Genotype(normal=[(")
    assert space.parse(text) == DARTS().parse(text) == genotype
    space.fix(genotype)
    with pytest.raises(ConfigError, match="unknown operation 'sep_conv_5x5'"):
        space.fix(space.parse(text.replace(genotype.cells["normal"][0][2], "sep_conv_5x5", 1)))


def test_s1_has_four_nodes_and_the_others_any_number():
    for make in (S2, S3, S4):
        assert len(make(nodes=2).cells["normal"].edges) == 5
    with pytest.raises(ValueError, match="nodes must be 4, for which S1 has pairs of candidates, got 3"):
        S1(nodes=3)


@pytest.mark.parametrize("make", SPACES)
@pytest.mark.parametrize("wrong", [{"channels": 0}, {"depth": 2}, {"nodes": 0}])
def test_darts_limits_hold(make, wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be at least"):
        make(**wrong)


# Noise


@pytest.mark.parametrize(("stride", "size"), [(1, (7, 4)), (2, (4, 2))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_standard_normal_of_the_outputs_shape_and_type(stride, size, dtype):
    torch.manual_seed(0)
    noise = ops.Noise(50, stride)(torch.full((100, 3, 7, 4), 9.0, dtype=dtype))
    assert noise.shape == (100, 50, *size)
    assert noise.dtype == dtype
    count = noise.numel()
    # Five standard errors of the moments: 1, 2 and 96 over the count are the variances of x, x^2 and x^4.
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (4, 3, 96)):
        assert abs(float((noise**power).mean()) - moment) < 5 * (variance / count) ** 0.5


@pytest.mark.parametrize("training", [True, False])
def test_noise_is_fresh_from_the_global_generator_and_carries_nothing_of_the_input(training):
    noise, x = ops.Noise(3).train(training), torch.ones(2, 3, 5, 5, requires_grad=True)
    torch.manual_seed(7)
    first, second = noise(x), noise(-x)
    torch.manual_seed(7)
    assert torch.equal(noise(100 * x), first)
    assert not torch.equal(first, second)
    assert not first.requires_grad


@pytest.mark.parametrize("backend", ["aten", "native"])
def test_every_backend_draws_the_same_noise(backend):
    space = S4(channels=2, depth=3)
    torch.manual_seed(1)
    network, images = Network(space, TASK, searching=True).double(), torch.randn(4, 1, 9, 7, dtype=torch.float64)
    selections = {name: Selection.everything(cell) for name, cell in space.cells.items()}
    scores = []
    for run in ("reference", backend):
        network.run, network.fast = choose(run, torch.device("cpu")), run != "reference"
        torch.manual_seed(0)
        scores.append(network(images, selections).scores)
    torch.testing.assert_close(*scores, rtol=1e-9, atol=1e-9)  # other noise moves them by about 1


def test_a_network_with_noise_is_measured_the_same_again(tmp_path):
    config = configure(
        space={"name": "darts-s4", "channels": 2, "depth": 3, "nodes": 2},
        selector="softmax",
        dataset={"limit": 200},
        tracking={"wandb": "disabled"},
        threads=1,
    )
    selections = {name: Selection.everything(cell) for name, cell in config.space.cells.items()}
    with session(tmp_path / "run", config, "search", quiet=True) as work:
        network, found = BilevelSearch(work).network, []
        for seed in (1, 2):
            torch.manual_seed(seed)
            found.append(work.evaluator.quality(network, selections, "select", "test"))
    assert found[0] == found[1]
