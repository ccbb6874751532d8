"""Smooth DARTS: weight steps train under perturbed mixture weights (SDARTS; arXiv:2002.05283)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nas.errors import ConfigError
from nas.randomness import generator, seed_global
from nas.runs.modifiers.base import Attached, Decision, Modifier, Searching
from nas.schedules import Linear, Schedule
from nas.selection import Selection
from nas.selectors import Selector
from nas.selectors.base import LossOf
from nas.space import SearchSpace

Weights = dict[str, Tensor]
"""(E, K) by cell name."""

DRAWS = 8
"""Decisions that show how a selector decides; a gate may close an edge in some."""


class _Perturbing(Attached):
    def __init__(self, search: Searching, settings: "PerturbedWeights") -> None:
        super().__init__(search)
        self.settings = settings
        self.device = next(search.network.parameters()).device

    def decisions(self, decisions: list[Decision], step: int, progress: float) -> list[Decision]:
        radius = self.settings.radius(progress)
        if not radius:
            return decisions
        loss_of = self.search.loss_on(step, self.search.train)
        return [self._perturbed(each, radius, loss_of, step, place) for place, each in enumerate(decisions)]

    def _perturbed(self, decision: Decision, radius: float, loss_of: LossOf, *key: int) -> Decision:
        """Returns a decision with the weights of its mixtures moved."""
        mixed = {name: each for name, each in decision.items() if each.weights is not None}
        balls = {name: Ball(each, radius) for name, each in mixed.items()}
        draws = generator(self.search.seed, "perturb", *key)
        moved = {name: ball.draw(draws) for name, ball in balls.items()}
        if mixed and self.settings.kind == "adversarial":
            moved = self._ascended(decision, balls, moved, loss_of, *key)
        return {**decision, **{name: replace(mixed[name], weights=weights) for name, weights in moved.items()}}

    def _ascended(
        self, decision: Decision, balls: Mapping[str, "Ball"], start: Weights, loss_of: LossOf, *key: int
    ) -> Weights:
        """Returns weights of a larger loss than the decision's own, by projected gradient ascent from `start`."""
        length = self.settings.step_size / self.settings.steps

        def loss(weights: Weights) -> Tensor:
            seed_global(self.search.seed, "perturb", *key)  # dropout, if any, as in the other evaluations
            return loss_of({**decision, **{name: replace(decision[name], weights=w) for name, w in weights.items()}})

        # What is drawn here must not change what the weight step draws.
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            point = start
            for _ in range(self.settings.steps):
                leaves = {name: w.clone().requires_grad_() for name, w in point.items()}
                slopes = torch.autograd.grad(loss(leaves), [*leaves.values()])
                point = {
                    name: ball.project(point[name] + length * ball.radius * slope.sign())
                    for (name, ball), slope in zip(balls.items(), slopes, strict=True)
                }
            own = {name: ball.centre for name, ball in balls.items()}
            with torch.no_grad():
                return point if loss(point) >= loss(own) else own


@dataclass(frozen=True, kw_only=True)
class PerturbedWeights(Modifier):
    """SDARTS: weight steps train under mixture weights moved by up to a radius, at random or to the loss's worst.

    Only that weight step sees them: logits, and decisions of architecture steps and measurements, stay as they are.
    Weights are moved in the L-infinity ball, cut to [0, 1] and brought back to the sum they had on their edge, which
    may leave the ball a little; candidates that do not run stay out. The ascent starts at a random point and goes by
    the gradient's signs, on the weight step's images and normalised by them (the authors' code by running statistics);
    it is given up if the loss did not grow. It costs `steps` + 2 further passes; random moves cost none.

    Source: Chen and Hsieh, 2020, arXiv:2002.05283.

    Attributes:
        kind: `random`: uniform (SDARTS-RS); `adversarial`: ascends the training loss (SDARTS-ADV).
        radius: Largest change of a weight; 0.03 to 0.3 as in the authors' code.
        steps: Of the ascent.
        step_size: What all its steps together could move a weight, in radii.
    """

    apart: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("fair-paths", "sandwich"), "weight steps on single paths have no mixture weights to move"
    )

    kind: Literal["random", "adversarial"] = "random"
    radius: Schedule = Linear(start=0.03, end=0.3)
    steps: int = 7
    step_size: float = 2.0

    def __post_init__(self) -> None:
        self.radius.require("radius", lambda value: 0 <= value <= 1, "between 0 and 1")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not self.step_size > 0:
            raise ValueError(f"step_size must be positive, got {self.step_size:g}")

    def require(self, space: SearchSpace, selector: Selector) -> None:
        """Raises ConfigError unless the selector's decisions are mixtures."""
        decisions = [each for decision in first_decisions(space, selector) for each in decision.values()]
        if not any(len(path) > 1 for each in decisions for path in each.detach().paths):
            raise ConfigError(
                "search.modifiers: perturbed-weights moves the weights of mixtures; this selector runs one candidate "
                "on an edge, which has no other weight than 1; choose softmax, gumbel-softmax or another mixture"
            )

    def attach(self, search: Searching) -> Attached:
        """Returns the modifier at work."""
        return _Perturbing(search, self)


class Ball:
    """The weights around those of a mixture.

    Args:
        selection: The mixture; only candidates that run, beside others on their edge, move.
        radius: Largest change of a weight.

    Attributes:
        centre: The mixture's weights, (E, K).
    """

    def __init__(self, selection: Selection, radius: float) -> None:
        assert selection.weights is not None
        runs = torch.zeros_like(selection.weights, dtype=torch.bool)
        for e, path in enumerate(selection.paths):
            runs[e, [*path]] = True
        self.runs, self.radius, self.centre = runs, radius, selection.weights
        self.total = self.centre.sum(-1, keepdim=True)

    def draw(self, draws: torch.Generator) -> Tensor:
        """Returns uniformly drawn weights, (E, K)."""
        noise = torch.rand(self.centre.shape, generator=draws, dtype=self.centre.dtype)
        return self.project(self.centre + self.radius * (2 * noise - 1))

    def project(self, weights: Tensor) -> Tensor:
        """Returns weights, (E, K), within the radius and [0, 1], scaled to their edge's sum."""
        near = self.centre + (weights - self.centre).clamp(-self.radius, self.radius)
        cut = near.clamp(0, 1).masked_fill(~self.runs, 0.0)
        # Where nothing is left of an edge, its largest weight takes all.
        largest = torch.zeros_like(cut).scatter(-1, self.centre.argmax(-1, keepdim=True), 1.0)
        cut = torch.where(cut.sum(-1, keepdim=True) > 0, cut, largest)
        scaled = cut * (self.total / cut.sum(-1, keepdim=True))
        return torch.where(self.runs.sum(-1, keepdim=True) > 1, scaled, self.centre)


def first_decisions(space: SearchSpace, selector: Selector) -> list[dict[str, Selection]]:
    """Returns decisions as an architecture step begins with, at equal logits."""
    cells = space.cells
    flat = {name: torch.zeros(cell.mask.shape).masked_fill(~cell.mask, -torch.inf) for name, cell in cells.items()}
    logits = {name: table.requires_grad_() for name, table in flat.items()}
    return [selector.on(cells).decide(logits, 0.0, generator(0, "first decisions", draw)) for draw in range(DRAWS)]
