"""The quantities that a target limits: what candidates add to each, and what a whole cell really costs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nas.benchmarks import Benchmark, Table
from nas.cost.candidates import Costs, bounds, candidate_costs
from nas.cost.hardware import additive_costs
from nas.cost.latency import read_latency
from nas.cost.target import COUNTS, LATENCY, Cost, Target
from nas.errors import ConfigError
from nas.registry import did_you_mean
from nas.space import Genotype, SearchSpace, Task


@dataclass(frozen=True, eq=False)
class Quantity:
    """Something that a target limits.

    Attributes:
        target: The limit.
        costs: What candidates add; exact for params and multiply-adds.
        real: Cost of a genotype: exact, by the latency table, or as the hardware table has it, if it does.
        least: Of all genotypes.
        most: Likewise.
        fit: Share of the variance of a hardware table's column that `costs` explain; None for other quantities.
    """

    target: Target
    costs: Costs
    real: Callable[[Genotype], float | None]
    least: float
    most: float
    fit: float | None = None


def quantities(
    cost: Cost, space: SearchSpace, task: Task, benchmark: Benchmark, *, closing: bool = False
) -> list[Quantity]:
    """Returns what the target limits, in its order.

    Args:
        cost: The target, and where latencies are.
        space: The search space.
        task: What networks are for.
        benchmark: Where the hardware table is.
        closing: Whether a selector may leave any edge out.

    Raises:
        ConfigError: No genotype keeps a target, or it names no quantity.
        DataError: A table cannot be read.
    """
    found = []
    for target in cost.targets:
        quantity = _column(target, space, benchmark) if target.column else _sum(target, cost, space, task, closing)
        if target.limit < quantity.least:
            least, most = map(target.show, (quantity.least, quantity.most))
            raise ConfigError(
                f"cost.target {target.text}: no network of this space keeps it; they cost {least} to {most}"
            )
        found.append(quantity)
    return found


def _sum(target: Target, cost: Cost, space: SearchSpace, task: Task, closing: bool) -> Quantity:
    if target.quantity == LATENCY:
        assert cost.latency_table is not None
        costs = read_latency(Path(cost.latency_table), space, task)
    else:
        costs = candidate_costs(space, task, "params" if target.quantity == COUNTS[0] else "multiply-adds")
    least, most = bounds(costs, space.cells, closing=closing)
    return Quantity(target, costs, lambda genotype: costs.of(space, genotype), least, most)


def _column(target: Target, space: SearchSpace, benchmark: Benchmark) -> Quantity:
    table = Table(benchmark) if benchmark.named else None
    columns = [*table.hardware] if table else []
    if table is None or target.quantity not in columns:
        hint = did_you_mean(target.quantity, [*COUNTS, LATENCY, *columns])
        remedy = "" if columns else "; a hardware table's columns need it: --benchmark nasbench201-hw.npz"
        raise ConfigError(f"cost.target {target.text}: unknown quantity {target.quantity!r}: {hint}{remedy}")
    costs, fit = additive_costs(space, table, target.quantity)
    known = table.column(target.quantity)
    known = known[known == known]
    return Quantity(
        target,
        costs,
        lambda genotype: (table.entry(space, genotype).hardware or {}).get(target.quantity),
        float(known.min()),
        float(known.max()),
        fit,
    )
