"""The conformance kit passes what is registered, and names the promise that a broken plug-in breaks."""

import random
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import nn

from nas import ops, registry
from nas.estimators import gumbel_max, softmax, straight_through_gumbel_softmax
from nas.selection import Selection
from nas.selectors import Selector
from nas.space import Cell, CellSlot, Edge, Genotype, SearchSpace
from nas.testing import check_selector, check_space

SMALL = {
    "chain": {"channels": 4, "stages": 2},
    "darts": {"channels": 4, "depth": 3, "nodes": 2},
    "nas-bench-201": {"channels": 4, "cells_per_stage": 1},
    "darts-s1": {"channels": 4, "depth": 3},
    "darts-s2": {"channels": 4, "depth": 3},
    "darts-s3": {"channels": 4, "depth": 3},
    "darts-s4": {"channels": 4, "depth": 3},
    "darts-bench": {"channels": 4, "depth": 3},
    "vit": {"channels": 4, "blocks": 2},
}


@pytest.mark.parametrize("name", registry.names(SearchSpace.registry))
def test_every_registered_space_passes(name):
    check_space(registry.load(SearchSpace.registry, name)(**SMALL.get(name, {})))


@pytest.mark.parametrize("name", registry.names(Selector.registry))
def test_every_registered_selector_passes(name):
    check_selector(registry.load(Selector.registry, name)())


@pytest.mark.parametrize("name", ["st-gs", "uniform"])
def test_the_global_generator_is_left_as_it_was(name):
    before = torch.get_rng_state()
    check_selector(registry.load(Selector.registry, name)())
    check_space(Plain())
    assert torch.equal(before, torch.get_rng_state())


@dataclass(frozen=True, kw_only=True)
class Plain(SearchSpace):
    """Two nodes after the input; one edge has fewer candidates; the last node keeps one in-edge."""

    channels: int = 4

    operations = {
        "none": lambda s: ops.Zero(s.channels, s.stride),
        "skip": lambda s: ops.skip_connect(s.in_channels, s.channels, s.stride, affine=False),
        "conv": lambda s: ops.relu_conv_norm(s.in_channels, s.channels, 3, s.stride, affine=False),
    }

    @property
    def cells(self):
        edges = (Edge(0, 1, ("none", "skip", "conv")), Edge(0, 2, ("skip", "conv")), Edge(1, 2, ("conv",)))
        return {"cell": Cell(edges, outputs=(2,), retain=1)}

    def layers(self, task, searching):
        stem = nn.Conv2d(task.channels, self.channels, 1)
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(self.channels, task.classes))
        return [stem, CellSlot("cell", self.channels, 2), head]


def test_a_space_whose_genotypes_leave_nodes_unused_passes():
    """Node 2 keeps one of its in-edges, so node 1 often leads nowhere."""
    check_space(Plain())


class Undecorated(Plain):
    """Its own settings would be ignored."""

    depth: int = 3


@dataclass(frozen=True, kw_only=True)
class Forgetful(Plain):
    def __post_init__(self):
        object.__setattr__(self, "channels", self.channels + 1)  # grows each time it is built


@dataclass(frozen=True, kw_only=True)
class Unknown(Plain):
    operations = {name: Plain.operations[name] for name in ("none", "skip")}


@dataclass(frozen=True, kw_only=True)
class ShapeChanging(Plain):
    operations = {**Plain.operations, "conv": lambda s: nn.Conv2d(s.in_channels, s.channels, 3, s.stride)}


@dataclass(frozen=True, kw_only=True)
class RoundingDown(Plain):
    operations = {**Plain.operations, "skip": lambda s: nn.AvgPool2d(s.stride, s.stride)}


@dataclass(frozen=True, kw_only=True)
class TooFewScores(Plain):
    def layers(self, task, searching):
        return super().layers(replace(task, classes=task.classes - 1), searching)


SHARED = nn.Conv2d(4, 4, 1)


@dataclass(frozen=True, kw_only=True)
class Sharing(Plain):
    def layers(self, task, searching):
        stem, *rest = super().layers(task, searching)
        return [stem, SHARED, *rest]


@dataclass(frozen=True, kw_only=True)
class Unreadable(Plain):
    def format(self, genotype):
        return super().format(genotype.without("skip"))


class Renaming(nn.ModuleDict):
    """Names its parameters after how many candidates were built before."""

    count = 0

    def __init__(self, site):
        conv = ops.relu_conv_norm(site.in_channels, site.channels, 3, site.stride, affine=False)
        super().__init__({f"conv{Renaming.count}": conv})
        Renaming.count += 1

    def forward(self, x):
        (body,) = self.values()
        return body(x)


@dataclass(frozen=True, kw_only=True)
class DifferentlyNamed(Plain):
    operations = {**Plain.operations, "conv": Renaming}


@dataclass(frozen=True, kw_only=True)
class Confused(Plain):
    """Its derived network runs other candidates than the genotype says."""

    def fix(self, genotype):
        other = {"skip": "conv", "conv": "skip"}
        swapped = {n: tuple((s, t, o if s else other[o]) for s, t, o in edges) for n, edges in genotype.cells.items()}
        return super().fix(Genotype(swapped))


@dataclass(frozen=True, kw_only=True)
class Unused(Plain):
    @property
    def cells(self):
        return {**super().cells, "spare": Cell((Edge(0, 1, ("skip", "conv")),), outputs=(1,))}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (Undecorated(), "frozen dataclass.*decorate the class itself"),
        (Forgetful(), "YAML gives it back.*channels=5.* became .*channels=6"),
        (Unknown(), "layers fit together.*unknown operation 'conv'"),
        (ShapeChanging(), "same shape.*cell 'cell', edge 0-1, candidate 'conv': gives shape"),
        (RoundingDown(), "same shape.*cell 'cell', edge 0-1, candidate 'skip': gives shape"),
        (TooFewScores(), "layers fit together.*gives \\(6,\\) scores"),
        (Sharing(), "no two networks share a parameter.*layers.1.weight"),
        (Unreadable(), "genotypes survive their text"),
        (DifferentlyNamed(), "part of the supernet.*the supernet has no .*conv[1-9]"),
        (Confused(), "computes what the discretised supernet does.* apart with training=True"),
        (Unused(), "gradient in the logits of every cell.*spare"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, SearchSpace) else "",
)
def test_a_broken_space_is_named_with_its_promise(space, message):
    with pytest.raises(AssertionError, match=rf"(?s)^{type(space).__name__} breaks a promise: .*{message}"):
        check_space(space)


@dataclass(frozen=True, kw_only=True)
class Honest(Selector):
    """Straight-through at temperature 1; the broken selectors below differ from it in one thing."""

    def select(self, logits, progress, generator):
        return Selection.single_path(straight_through_gumbel_softmax(logits, 1.0, generator), logits.isfinite())


def test_a_selector_in_a_test_passes():
    check_selector(Honest())


@dataclass(frozen=True, kw_only=True)
class Sparse(Selector):
    """A mixture in which every candidate runs, but all except the likeliest two weigh exactly zero."""

    stochastic: ClassVar[bool] = False

    def select(self, logits, progress, generator):
        weights = softmax(logits)
        second = weights.topk(min(2, logits.shape[1])).values[:, -1:]
        weights = weights * (weights >= second)
        return Selection.mixture(weights / weights.sum(-1, keepdim=True), logits.isfinite())


def test_a_selector_whose_weights_may_be_zero_drops_them_in_a_weight_step():
    check_selector(Sparse())
    chosen = Sparse().select(torch.tensor([[0.5, 0.0, 0.2]]), 0.0, torch.Generator())
    assert chosen.paths == ((0, 1, 2),)
    assert chosen.detach().paths == ((0, 2),)


class Inherited(Honest):
    pass


@dataclass(frozen=True, kw_only=True)
class Unscaled(Honest):
    def probabilities(self, logits):
        return logits.exp()


@dataclass(frozen=True, kw_only=True)
class UniformOverAll(Honest):
    def probabilities(self, logits):
        return torch.full_like(logits, 1 / logits.shape[1])


@dataclass(frozen=True, kw_only=True)
class Masked(Selector):
    """Runs masked candidates at zero weight."""

    stochastic: ClassVar[bool] = False

    def select(self, logits, progress, generator):
        return Selection.mixture(softmax(logits), torch.ones_like(logits, dtype=torch.bool))


@dataclass(frozen=True, kw_only=True)
class MaskedProbes(Honest):
    def select(self, logits, progress, generator):
        weights = straight_through_gumbel_softmax(logits, 1.0, generator)
        return Selection.single_path(weights, torch.ones_like(logits, dtype=torch.bool))


@dataclass(frozen=True, kw_only=True)
class Twice(Honest):
    """Probes what runs."""

    def select(self, logits, progress, generator):
        chosen = super().select(logits, progress, generator)
        return replace(chosen, probes=tuple(p + q for p, q in zip(chosen.probes, chosen.paths, strict=True)))


@dataclass(frozen=True, kw_only=True)
class Shapeless(Honest):
    def select(self, logits, progress, generator):
        return replace(super().select(logits, progress, generator), offset=logits.new_zeros(len(logits), 1))


@dataclass(frozen=True, kw_only=True)
class Infinite(Honest):
    def select(self, logits, progress, generator):
        return replace(super().select(logits, progress, generator), log_prob=softmax(logits).log().sum())


@dataclass(frozen=True, kw_only=True)
class NearlyOne(Honest):
    """The straight-through line in an order that rounds."""

    def select(self, logits, progress, generator):
        chosen = super().select(logits, progress, generator)
        soft = softmax(logits)
        return replace(chosen, weights=(chosen.weights + (chosen.weights != 0) * (3 * soft - soft - soft - soft)))


@dataclass(frozen=True, kw_only=True)
class GlobalGenerator(Honest):
    def select(self, logits, progress, generator):
        return super().select(logits, progress, None)


@dataclass(frozen=True, kw_only=True)
class PythonsGenerator(Honest):
    def select(self, logits, progress, generator):
        return super().select(logits, progress, generator.manual_seed(random.getrandbits(30)))


@dataclass(frozen=True, kw_only=True)
class InPlace(Honest):
    def select(self, logits, progress, generator):
        chosen = super().select(logits, progress, generator)
        with torch.no_grad():
            logits.mul_(1.1)
        return chosen


@dataclass(frozen=True, kw_only=True)
class SilentlyStochastic(Honest):
    stochastic: ClassVar[bool] = False


class Clinging(Selection):
    """Keeps its probes in a weight step."""

    __slots__ = ()

    def detach(self):
        return replace(super().detach(), probes=self.probes)


@dataclass(frozen=True, kw_only=True)
class DetachesProbes(Honest):
    def select(self, logits, progress, generator):
        chosen = super().select(logits, progress, generator)
        return Clinging(chosen.paths, chosen.weights, chosen.probes)


@dataclass(frozen=True, kw_only=True)
class GradDependent(Honest):
    """Draws once more when gradients are on."""

    def select(self, logits, progress, generator):
        if logits.requires_grad and torch.is_grad_enabled():
            torch.rand(1, generator=generator)
        return super().select(logits, progress, generator)


@dataclass(frozen=True, kw_only=True)
class PoisonsMasked(Honest):
    """0 * -inf where a candidate is masked."""

    def objective(self, loss_of, logits, progress, generator, memory):
        loss = super().objective(loss_of, logits, progress, generator, memory)
        entropy = sum(
            -torch.special.xlogy(p, p).sum() for p in (self.probabilities(table) for table in logits.values())
        )
        return loss + 0.1 * entropy


@dataclass(frozen=True, kw_only=True)
class ClaimsToLearn(Honest):
    def select(self, logits, progress, generator):
        return Selection.single_path(gumbel_max(logits.detach(), generator))


@dataclass(frozen=True, kw_only=True)
class LearnsSecretly(Honest):
    learns: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class VectorObjective(Honest):
    def objective(self, loss_of, logits, progress, generator, memory):
        return super().objective(loss_of, logits, progress, generator, memory)[None]


@dataclass(frozen=True, kw_only=True)
class Tempered(Honest):
    """Draws from softmax(logits / 2) but says softmax(logits)."""

    def select(self, logits, progress, generator):
        return super().select(logits / 2, progress, generator)


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        (Inherited(), "frozen dataclass.*decorate the class itself"),
        (Unscaled(), "rows that sum to 1"),
        (UniformOverAll(), "0 where masked"),
        (Masked(), "live candidates.*edge 0: \\[1\\] run or probed, but live candidates are \\[0, 2, 3\\]"),
        (MaskedProbes(), "live candidates.*edge 0: \\[1\\] run or probed"),
        (Twice(), "edge 0: twice in paths"),
        (Shapeless(), "shape of the logits.*offset"),
        (Infinite(), "shape of the logits.*log_prob"),
        (NearlyOne(), "weight of one path must be exactly 1"),
        (GlobalGenerator(), "function of logits, progress and generator.*global generator"),
        (PythonsGenerator(), "equal generators give different decisions"),
        (InPlace(), "changes the logits"),
        (SilentlyStochastic(), "stochastic is False"),
        (DetachesProbes(), "detach\\(\\) keeps the decision.* became "),
        (GradDependent(), "differs when gradients are off"),
        (PoisonsMasked(), "finite and 0 where masked.*gradient .*nan"),
        (ClaimsToLearn(), "learns is True"),
        (LearnsSecretly(), "learns is False"),
        (VectorObjective(), "no finite scalar"),
        (Tempered(), "follow the probabilities.*frequencies"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Selector) else "",
)
def test_a_broken_selector_is_named_with_its_promise(selector, message):
    with pytest.raises(AssertionError, match=rf"(?s)^{type(selector).__name__} breaks a promise: .*{message}"):
        check_selector(selector)
