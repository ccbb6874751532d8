"""Score functions: one sampled path, no candidate gradients; the loss alone says whether its decision was good."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from nas.estimators import (
    AdditiveControlVariate,
    RunningMean,
    antithetic_gumbel_max,
    gumbel_max,
    leave_one_out,
    log_probability,
    reinforce,
)
from nas.selection import Selection
from nas.selectors.base import LossOf, Selector
from nas.space import Cell


@dataclass(frozen=True, kw_only=True)
class Reinforce(Selector):
    """REINFORCE: unbiased at one candidate per edge; the loss minus a baseline weighs the decision's log-probability.

    Source: Williams, 1992, doi:10.1007/BF00992696; leave-one-out: Kool et al., 2019.

    Attributes:
        baseline: `running-mean` of past losses, `leave-one-out` (the mean of the step's other decisions), or `none`.
        momentum: Of the running mean.
        decisions: Decisions per architecture step, each on the same images.
        antithetic: Whether decisions come in pairs, from noise u and 1 - u.
    """

    baseline: Literal["running-mean", "leave-one-out", "none"] = "running-mean"
    momentum: float = 0.9
    decisions: int = 1
    antithetic: bool = False

    def __post_init__(self) -> None:
        RunningMean(self.momentum)  # refuses what is out of range
        if self.decisions < 1 or (self.decisions < 2 and self.baseline == "leave-one-out"):
            least = 2 if self.baseline == "leave-one-out" else 1
            raise ValueError(f"decisions must be at least {least} for baseline {self.baseline}, got {self.decisions}")
        if self.antithetic and (self.decisions % 2 or self.baseline == "leave-one-out"):
            raise ValueError(
                f"antithetic needs an even number of decisions and no leave-one-out, got {self.decisions} and "
                f"{self.baseline}; its pairs are not independent"
            )

    def select(self, logits: Tensor, progress: float, generator: Generator) -> Selection:
        """Samples one candidate per edge."""
        return _scored(logits, gumbel_max(logits, generator))

    def memory(self, cells: Mapping[str, Cell]) -> nn.Module | None:
        """Returns the running mean, if that is the baseline."""
        return RunningMean(self.momentum) if self.baseline == "running-mean" else None

    def objective(
        self,
        loss_of: LossOf,
        logits: Mapping[str, Tensor],
        progress: float,
        generator: Generator,
        memory: nn.Module | None,
    ) -> Tensor:
        """Returns the mean loss of the decisions; its gradient is the score-function estimate."""
        drawn: list[dict[str, Selection]] = []
        while len(drawn) < self.decisions:
            drawn += _pair(logits, generator) if self.antithetic else [self.decide(logits, progress, generator)]
        losses = torch.stack([loss_of(_plain(each)) for each in drawn])
        scores = torch.stack([_log_prob(each) for each in drawn])
        if self.baseline == "leave-one-out":
            return leave_one_out(losses, scores)
        if memory is None:
            return reinforce(losses, scores).mean()
        assert isinstance(memory, RunningMean)
        objective = reinforce(losses, scores, memory()).mean()
        memory.update(losses)
        return objective


@dataclass(frozen=True, kw_only=True)
class ScoreControlVariate(Selector):
    """score-cv: REINFORCE with a control variate that is additive over edges, fitted on past losses; unbiased.

    Attributes:
        forgetting: Weight of the past in each update of the regression.
        ridge: Penalty on the regression's coefficients, in units of one observation of a candidate.
        momentum: Of the running mean that centres the losses.
    """

    forgetting: float = 0.99
    ridge: float = 1.0
    momentum: float = 0.9

    def __post_init__(self) -> None:
        self.memory({})  # refuses what is out of range

    def select(self, logits: Tensor, progress: float, generator: Generator) -> Selection:
        """Samples one candidate per edge."""
        return _scored(logits, gumbel_max(logits, generator))

    def memory(self, cells: Mapping[str, Cell]) -> nn.Module:
        """Returns the regression."""
        shapes = [(len(cell.edges), cell.candidates) for cell in cells.values()]
        return AdditiveControlVariate(shapes, self.forgetting, self.ridge, self.momentum)

    def objective(
        self,
        loss_of: LossOf,
        logits: Mapping[str, Tensor],
        progress: float,
        generator: Generator,
        memory: nn.Module | None,
    ) -> Tensor:
        """Returns the loss of one decision; its gradient is (L - Q(D))(D - pi) + J_pi b."""
        assert isinstance(memory, AdditiveControlVariate)
        drawn = self.decide(logits, progress, generator)
        samples = [each.weights for each in drawn.values() if each.weights is not None]
        return memory.estimate(loss_of(_plain(drawn)), list(logits.values()), samples)


def _scored(logits: Tensor, sample: Tensor) -> Selection:
    return Selection.single_path(sample, log_prob=log_probability(logits, sample).sum())


def _pair(logits: Mapping[str, Tensor], generator: Generator) -> list[dict[str, Selection]]:
    pairs = {name: antithetic_gumbel_max(table, generator) for name, table in logits.items()}
    return [{name: _scored(logits[name], pair[side]) for name, pair in pairs.items()} for side in (0, 1)]


def _plain(decision: Mapping[str, Selection]) -> dict[str, Selection]:
    """Returns the decision as the network runs it: the loss needs no gradient in it."""
    return {name: selection.detach() for name, selection in decision.items()}


def _log_prob(decision: Mapping[str, Selection]) -> Tensor:
    scores = [selection.log_prob for selection in decision.values() if selection.log_prob is not None]
    return torch.stack(scores).sum()
