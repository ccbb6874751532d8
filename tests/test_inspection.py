"""What a network costs, and which spaces do not fit together."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from nas.errors import ConfigError
from nas.space import Auxiliary, Cell, CellSlot, Edge, Layer, Operation, SearchSpace, Task
from nas.supernet.inspection import Size, inspect

TASK = Task(channels=3, height=9, width=6, classes=5)


def conv(site):
    return nn.Conv2d(site.in_channels, site.channels, 3, site.stride, 1, bias=False)


@dataclass(frozen=True, kw_only=True)
class Small(SearchSpace):
    """Stem, a cell of three edges with stride 2, classifier; `extra` is a candidate of edge 1-2."""

    extra: Operation = conv
    head: Layer | None = None
    preprocess: tuple[nn.Module, ...] = ()
    operations: Mapping[str, Operation] = field(init=False)

    def __post_init__(self):
        pool = {"pool": lambda site: nn.AvgPool2d(3, site.stride, 1)}
        object.__setattr__(self, "operations", {"conv": conv, "extra": self.extra, **pool})

    @property
    def cells(self):
        two, three = ("conv", "pool"), ("conv", "extra", "pool")
        return {"cell": Cell((Edge(0, 1, two), Edge(0, 2, two), Edge(1, 2, three)), outputs=(1, 2))}

    def layers(self, task, searching):
        head = self.head or nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, task.classes))
        slot = CellSlot("cell", 4, 2, self.preprocess)
        return [nn.Conv2d(task.channels, 4, 1), slot, head]


@dataclass(frozen=True, kw_only=True)
class WithHead(Small):
    """The same with a classifier on the side."""

    def layers(self, task, searching):
        stem, slot, head = super().layers(task, searching)
        return [stem, slot, Auxiliary(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))), head]


def refused(space: SearchSpace, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        inspect(space, TASK, searching=True)
    assert caught.value.exit_code == 2


class Reshaped(nn.Module):
    """Runs a convolution and then `change`."""

    def __init__(self, site, change):
        super().__init__()
        self.conv, self.change = conv(site), change

    def forward(self, x):
        return self.change(self.conv(x))


def test_sizes_of_a_small_supernet_by_hand():
    # Images 9x6; stem 3 -> 4, 1x1 with bias; edges 0-1 and 0-2 halve to 5x3, edge 1-2 keeps it; 4x4 kernels of 3x3.
    kernel = 4 * 4 * 9
    parameters = (3 * 4 + 4) + 4 * kernel + (8 * 5 + 5)
    multiply_adds = 9 * 6 * 3 * 4 + 4 * kernel * (5 * 3) + 8 * 5
    assert inspect(Small(), TASK, searching=True) == Size(parameters, 0, multiply_adds)


def test_sizes_of_a_derived_network_count_only_its_candidates():
    space = Small()
    genotype = space.parse('{"cells": {"cell": [[0, 1, "pool"], [1, 2, "conv"]]}}')
    kernel = 4 * 4 * 9
    expected = Size(16 + kernel + 45, 0, 9 * 6 * 12 + kernel * 15 + 40)
    assert inspect(space.fix(genotype), TASK, searching=False) == expected


def test_auxiliary_classifiers_are_counted_apart_and_only_for_retraining():
    plain = inspect(Small(), TASK, searching=False)
    assert inspect(WithHead(), TASK, searching=False) == Size(plain.parameters, 8 * 5 + 5, plain.multiply_adds)
    assert inspect(WithHead(), TASK, searching=True).auxiliary_parameters == 0


def test_inspecting_takes_no_memory_and_no_randomness():
    before = torch.get_rng_state()
    huge = Small(extra=lambda site: nn.Sequential(nn.Conv2d(4, 10**6, 3), nn.Conv2d(10**6, 4, 3, padding=2)))
    assert inspect(huge, TASK, searching=True).parameters > 7 * 10**7
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("change", "shapes"),
    [
        (lambda y: y[:, :3], r"gives shape \(3, 5, 3\) from \(4, 5, 3\)"),
        (lambda y: y[:, :, ::2], r"gives shape \(4, 3, 3\) from \(4, 5, 3\)"),
        (lambda y: y[..., :1], r"gives shape \(4, 5, 1\) from \(4, 5, 3\)"),  # would broadcast without a word
        (lambda y: y.flatten(1), r"gives shape \(60,\) from \(4, 5, 3\)"),
    ],
    ids=["channels", "height", "width", "dimensions"],
)
def test_a_candidate_that_changes_the_shape_is_named(change, shapes):
    where = r"cell 'cell', edge 1-2, candidate 'extra': "
    wanted = r", but stride 1 and 4 channels ask for \(4, 5, 3\); every candidate must give the same shape"
    refused(Small(extra=lambda site: Reshaped(site, change)), where + shapes + wanted)


def test_a_candidate_that_ignores_its_stride_is_named():
    space = Small()
    space.operations["conv"] = lambda site: nn.Conv2d(site.in_channels, site.channels, 3, 1, 1)
    wanted = r"gives shape \(4, 9, 6\) from \(4, 9, 6\), but stride 2 and 4 channels ask for \(4, 5, 3\)"
    refused(space, "cell 'cell', edge 0-1, candidate 'conv': " + wanted)


def test_a_candidate_that_raises_is_named_with_its_error():
    def fail(y):
        raise RuntimeError("of no use\nsecond line")

    where = r"space Small does not run on 3x9x6 images: cell 'cell', edge 1-2, candidate 'extra': "
    refused(Small(extra=lambda site: Reshaped(site, fail)), where + r"RuntimeError: of no use$")
    refused(Small(extra=lambda site: nn.Conv2d(5, 4, 1)), where + "RuntimeError: ")


def test_an_operation_that_cannot_be_built_is_a_configuration_error():
    refused(Small(extra=lambda site: nn.Conv2d(site.width, 4, 1)), r"building the layers: AttributeError: .*'width'")


def test_preprocessing_that_raises_is_named():
    refused(Small(preprocess=(nn.Conv2d(7, 4, 1),)), "images: cell 'cell', preprocessing of input 0: RuntimeError: ")


@pytest.mark.parametrize(
    ("head", "scores"),
    [
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6)), r"\(6,\)"),
        (nn.Flatten(), r"\(120,\)"),
        (nn.AdaptiveAvgPool2d(1), r"\(8, 1, 1\)"),
    ],
)
def test_a_wrong_number_of_scores_is_refused(head, scores):
    head = head.to("meta")
    refused(Small(head=head), rf"last layer of space Small gives {scores} scores; it must give one per class, \(5,\)")


def test_a_layer_that_raises_is_named():
    head = nn.Sequential(nn.Flatten(), nn.Linear(7, 5)).to("meta")
    refused(Small(head=head), r"space Small does not run on 3x9x6 images: layer 2: RuntimeError")
