"""Searching under a target of cost: the price of being above it is learned beside the logits.

The outer problem is: least loss, subject to E[cost] / target - 1 <= 0, the mean over the genotypes that the selector's
probabilities give. Each architecture step descends the augmented Lagrangian in the logits; then the price, the dual
variable, ascends along the excess and stays at least 0.

Source: Platt and Barr, 1987, Constrained differential optimization, NIPS; for inequalities Bertsekas, 1982, Constrained
optimization and Lagrange multiplier methods. That costs add up over candidates: Cai et al., 2019, arXiv:1812.00332.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nas import registry
from nas.cost import Cost, Quantity, expected_cost, quantities
from nas.errors import ConfigError
from nas.runs.configuration import Config
from nas.runs.modifiers.base import Attached, Searching
from nas.selectors import Selector
from nas.space import Genotype

logger = logging.getLogger(__name__)


class Constraint(Attached):
    """A target at work on a search.

    An edge that a selector may close counts as open, so that what is expected is then an upper bound.

    Args:
        search: At its beginning.
        cost: Rate and damping.
        limited: What the target limits.

    Attributes:
        dual: (targets,) float64: the price of each target's relative excess, in units of the loss.

    Raises:
        ConfigError: The selector's probabilities have no gradient in the logits.
    """

    dual: Tensor

    def __init__(self, search: Searching, cost: Cost, limited: Sequence[Quantity]) -> None:
        super().__init__(search)
        self.cost, self.limited = cost, limited
        self.register_buffer("dual", torch.zeros(len(limited), dtype=torch.float64))
        # In the checkpoint, so that a search goes on with the costs with which it began, whatever became of a file.
        for place, quantity in enumerate(limited):
            for name, table in {**quantity.costs.cells, "fixed costs": quantity.costs.fixed}.items():
                self.register_buffer(f"{place}-{name}", table)
        self._stepped = False
        if not self.excess().requires_grad:
            name = registry.name_of(Selector.registry, type(search.selector))
            raise ConfigError(
                f"cost.target needs probabilities with a gradient in the logits, which selector {name} has not; "
                "use st-gs, or leave cost.target away"
            )

    def expected(self) -> Tensor:
        """Returns the expected costs, (targets,), in the targets' units."""
        logits = self.search.architecture.logits()
        probabilities = {name: self.search.selector.probabilities(table) for name, table in logits.items()}
        cells = self.search.architecture.cells
        return torch.stack([expected_cost(probabilities, quantity.costs, cells) for quantity in self.limited])

    def excess(self) -> Tensor:
        """Returns E[cost] / target - 1, (targets,)."""
        return self.expected() / torch.tensor([each.target.limit for each in self.limited], dtype=torch.float64) - 1

    def penalty(self, logits: Mapping[str, Tensor], progress: float) -> Tensor | None:
        """Returns price times excess and the damping, without targets that are slack; None if all are.

        The costs are those of genotypes, so the temperature from which decisions are drawn does not count.
        """
        self._stepped = True
        excess, damping = self.excess(), self.cost.damping
        priced = self.dual + damping * excess.detach() > 0
        if not priced.any():
            return None
        terms = self.dual * excess + damping / 2 * excess**2
        return terms[priced].sum().to(torch.get_default_dtype())

    def after(self, step: int, progress: float) -> None:
        """Lets the price ascend after an architecture step."""
        if self._stepped:
            self._stepped = False
            with torch.no_grad():
                self.dual.add_(self.cost.rate / self.search.steps * self.excess()).clamp_(min=0.0)

    def end_epoch(self, epoch: int, progress: float) -> dict[str, float]:
        """Returns expected cost and price of each target."""
        return {
            f"{kind}/{row['quantity']}": row[kind] for row in self.summary() for kind in ("expected_cost", "cost_price")
        }

    def summary(self) -> list[dict[str, Any]]:
        """Returns a row for each target: expected cost, price, and the fit of a hardware table's column."""
        with torch.no_grad():
            values = zip(self.limited, self.expected().tolist(), self.dual.tolist(), strict=True)
        return [{**_row(each), "expected_cost": expected, "cost_price": price} for each, expected, price in values]


def limited_by(config: Config) -> list[Quantity]:
    """Returns what the configuration's target limits; nothing without a target.

    Raises:
        ConfigError: No genotype keeps it, or it names no quantity.
        DataError: A table cannot be read.
    """
    if config.cost.target is None:
        return []
    closing = config.selector.weighs_edges
    return quantities(config.cost, config.space, config.dataset.task(), config.benchmark, closing=closing)


def constraints(search: Searching, config: Config) -> list[Constraint]:
    """Returns the configuration's target at work on a search, if it has one; says what will not bind, or fits badly."""
    limited = limited_by(config)
    for each in limited:
        if each.target.limit >= each.most:
            most = each.target.show(each.most)
            logger.warning(
                "cost.target %s changes nothing: networks of this space cost at most %s", each.target.text, most
            )
    return [Constraint(search, config.cost, limited)] if limited else []


def cost_rows(limited: Sequence[Quantity], genotype: Genotype) -> list[dict[str, Any]]:
    """Returns what a genotype costs against each target, a row each; None where a table does not know it."""
    rows = []
    for each in limited:
        cost = each.real(genotype)
        rows.append({**_row(each), "cost": cost, "kept": None if cost is None else cost <= each.target.limit})
    return rows


def judge_cost(config: Config, genotype: Genotype) -> list[dict[str, Any]]:
    """Returns what a derived genotype costs against each target, and says on stderr which it misses."""
    limited = limited_by(config)
    for each in limited:
        cost = each.real(genotype)
        if cost is None:
            logger.warning(
                "the table has no %s of the derived network, as of a device that cannot run it, so cost.target %s is "
                "not kept; derive with a rule that compares genotypes, which passes over such networks "
                "(--set derive.name=sampled, and more derive.samples)",
                each.target.quantity,
                each.target.text,
            )
        elif cost > each.target.limit:
            logger.warning(
                "the derived network misses cost.target %s: it costs %s, %.1f%% more; derive with a rule that compares "
                "genotypes, which passes over those that miss it (--set derive.name=sampled, and more derive.samples), "
                "or search with a lower target",
                each.target.text,
                each.target.show(cost),
                100 * (cost / each.target.limit - 1),
            )
    return cost_rows(limited, genotype)


def keeps_target(limited: Sequence[Quantity]) -> Callable[[Genotype], bool]:
    """Returns whether a genotype keeps every target; one of which a table does not know the cost does not."""
    return lambda genotype: all(_excess(each, genotype) == 0 for each in limited)


def within_target(constraints: Sequence[Constraint], score: Callable[[Genotype], float]) -> Callable[[Genotype], float]:
    """Returns a score by which a genotype that breaks the target loses to every one that keeps it, unmeasured.

    Among those that break it, the one with the least excess wins. One whose cost a table does not know, as of a device
    that cannot run it, breaks it most.

    Args:
        constraints: Of the search.
        score: At least 0, as an accuracy is.
    """
    limited = [quantity for each in constraints for quantity in each.limited]

    def constrained(genotype: Genotype) -> float:
        excess = sum(_excess(each, genotype) for each in limited)
        return -excess if excess > 0 else score(genotype)

    return constrained if limited else score


def _excess(each: Quantity, genotype: Genotype) -> float:
    cost = each.real(genotype)
    return math.inf if cost is None else max(0.0, cost / each.target.limit - 1)


def _row(each: Quantity) -> dict[str, Any]:
    fit = {} if each.fit is None else {"fit": each.fit}
    return {"quantity": each.target.quantity, "target": each.target.text, "limit": each.target.limit, **fit}
