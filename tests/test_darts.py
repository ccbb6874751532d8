"""The DARTS space: published sizes, published genotype texts, and the auxiliary classifier."""

import random
from pathlib import Path

import pytest
import torch
from torch import nn

from nas.errors import ConfigError
from nas.space import Auxiliary, Genotype, Task
from nas.supernet.inspection import inspect
from search_spaces.darts import DARTS, OPERATIONS, AuxiliaryHead

TASK = Task(channels=3, height=32, width=32, classes=10)

V1 = """Genotype(normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 0), ('sep_conv_3x3', 1),
('skip_connect', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 2)], normal_concat=[2, 3, 4, 5],
reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 0), ('max_pool_3x3', 0),
('skip_connect', 2), ('skip_connect', 2), ('avg_pool_3x3', 0)], reduce_concat=[2, 3, 4, 5])"""

V2 = """Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1),
('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5],
reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0),
('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"""


# Sizes


def test_the_supernet_has_the_published_number_of_parameters():
    assert inspect(DARTS(), TASK, searching=True).parameters == 1_930_618


@pytest.mark.parametrize(("text", "parameters"), [(V1, 3_169_414), (V2, 3_349_342)], ids=["V1", "V2"])
def test_the_published_cells_have_the_published_number_of_parameters(text, parameters):
    space = DARTS(channels=36, depth=20)
    size = inspect(space.fix(space.parse(text)), TASK, searching=False)
    assert size.parameters == parameters
    assert size.auxiliary_parameters == 476_426


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_fewer_than_three_cells_are_refused(depth):
    with pytest.raises(ValueError, match=f"depth must be at least 3, so that two cells can reduce, got {depth}"):
        DARTS(depth=depth)


@pytest.mark.parametrize("setting", ["channels", "nodes"])
def test_widths_must_be_positive(setting):
    with pytest.raises(ValueError, match=f"{setting} must be at least 1, got 0"):
        DARTS(**{setting: 0})


@pytest.mark.parametrize("depth", [3, 4, 8, 20])
def test_two_cells_reduce_at_one_and_two_thirds_and_the_auxiliary_classifier_follows_the_second(depth):
    layers = DARTS(channels=2, depth=depth).layers(TASK, searching=True)
    places = [layer for layer in layers if not isinstance(layer, nn.Module)]
    kinds = ["head" if isinstance(place, Auxiliary) else place.cell for place in places]
    assert kinds.index("head") == 2 * depth // 3 + 1
    kinds.remove("head")
    assert len(kinds) == depth
    assert [i for i, kind in enumerate(kinds) if kind == "reduce"] == [depth // 3, 2 * depth // 3]


# Genotype texts


def test_the_published_text_is_two_edges_for_each_node_in_turn():
    normal = DARTS().parse(V2).cells["normal"]
    assert normal == (
        (0, 2, "sep_conv_3x3"),
        (1, 2, "sep_conv_3x3"),
        (0, 3, "sep_conv_3x3"),
        (1, 3, "sep_conv_3x3"),
        (0, 4, "skip_connect"),
        (1, 4, "sep_conv_3x3"),
        (0, 5, "skip_connect"),
        (2, 5, "dil_conv_3x3"),
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text,
        lambda text: f"\n  {text}  \n",
        lambda text: text.replace("[2, 3, 4, 5]", "range(2, 6)"),
        lambda text: text.replace("[2, 3, 4, 5]", "(2, 3, 4, 5)"),
        lambda text: text.replace("'", '"'),
        lambda text: text.replace(", normal_concat=[2, 3, 4, 5]", ""),
        lambda text: DARTS().parse(text).to_json(),
        lambda text: DARTS().format(DARTS().parse(text)),
    ],
    ids=["as published", "spaces", "range", "tuple", "double quotes", "no concat", "JSON", "as we write it"],
)
def test_every_published_form_reads_as_the_same_genotype(change):
    assert DARTS().parse(change(V1)) == DARTS().parse(V1) != DARTS().parse(V2)


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_every_genotype_with_two_edges_per_node_is_written_in_the_published_form_and_reads_back(nodes):
    space, draw = DARTS(nodes=nodes), random.Random(nodes)
    for _ in range(20):
        genotype = Genotype(
            {
                name: tuple(
                    (source, target, draw.choice([*OPERATIONS]))
                    for target in range(2, 2 + nodes)
                    for source in draw.sample(range(target), 2)
                )
                for name in ("normal", "reduce")
            }
        )
        text = space.format(genotype)
        assert text.startswith("Genotype(normal=[(")
        assert f"normal_concat={[*range(2, 2 + nodes)]}" in text
        assert space.parse(text) == genotype


def test_genotypes_the_published_form_cannot_tell_are_written_as_json_and_read_back():
    # Eight edges, but one for node 2 and three for node 3: as pairs they would name other edges.
    eight = [(0, 2), (0, 3), (1, 3), (2, 3), (0, 4), (1, 4), (0, 5), (1, 5)]
    crooked = Genotype({"normal": tuple((s, t, "skip_connect") for s, t in eight), "reduce": ()})
    assert DARTS().parse(DARTS().format(crooked)) == crooked


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("reduce_concat=[2, 3, 4, 5])", "reduce_concat=[2, 3, 4, 5]"),
        ("reduce=", "other="),
        ("('sep_conv_3x3', 1), ", ""),
        ("('sep_conv_3x3', 1)", "('sep_conv_3x3', 'x')"),
        ("('sep_conv_3x3', 1)", "('sep_conv_3x3', 1.5)"),
        ("('sep_conv_3x3', 1)", "('sep_conv_3x3', None)"),
        ("('sep_conv_3x3', 1)", "'sep_conv_3x3'"),
        ("('sep_conv_3x3', 1)", "sep_conv_3x3"),
        ("normal_concat=[2, 3, 4, 5]", "normal_concat=[4, 5]"),
        ("normal_concat=[2, 3, 4, 5]", "normal_concat=range(3, 6)"),
        ("normal_concat=[2, 3, 4, 5]", "normal_concat=range(10**15)"),
        ("normal_concat=[2, 3, 4, 5]", "normal_concat=5"),
        ("Genotype(", "GenotypeOfAnotherProgram("),
        ("Genotype(", "Genotype[0]("),
        ("Genotype(", "Genotype" + "(" * 500),
        (V1, "Genotype"),
        (V1, "Genotype()"),
        (V1, "Genotype(**{})"),
    ],
)
def test_garbled_texts_are_refused_with_the_expected_form(old, new):
    assert old in V1
    with pytest.raises(ConfigError, match=r"is no DARTS genotype .*; it reads Genotype\(normal=\[\('sep_") as caught:
        DARTS().parse(V1.replace(old, new, 1))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("old", ["[2, 3, 4, 5]", "('sep_conv_3x3', 1)", "'sep_conv_3x3'", "Genotype", V1])
def test_a_text_is_never_evaluated(old, tmp_path: Path):
    trap = tmp_path / "evaluated"
    code = f"__import__('pathlib').Path({str(trap)!r}).touch()"
    with pytest.raises(ConfigError):
        DARTS().parse(V1.replace(old, code, 1))
    assert not trap.exists()
    eval(code)
    assert trap.exists()  # the trap works


# The auxiliary classifier


def published_head(head: AuxiliaryHead, pool: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Returns what the published classifier gives: ReLU, a pool to 2x2, and the head's own layers."""
    return head.body(pool(x.relu()))


@pytest.mark.parametrize("training", [True, False])
def test_on_8x8_maps_the_auxiliary_head_is_the_published_one(training, generator):
    head = AuxiliaryHead(6, 10).train(training)
    x = torch.randn(4, 6, 8, 8, generator=generator)
    pool = nn.AvgPool2d(5, stride=3, padding=0, count_include_pad=False)
    assert torch.equal(head(x), published_head(head, pool, x))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 3), (4, 4), (7, 7), (7, 12), (8, 9), (14, 14), (17, 8), (25, 31)])
def test_the_auxiliary_head_works_on_maps_of_any_size(size, generator):
    head = AuxiliaryHead(6, 10)
    x = torch.randn(4, 6, *size, generator=generator, requires_grad=True)
    scores = head(x)
    assert scores.shape == (4, 10)
    (gradient,) = torch.autograd.grad(scores.square().sum(), x)
    assert gradient.abs().sum() > 0
