"""What runs are compared by; the command line reads the names and loads no torch for them."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """A number that a run has.

    Attributes:
        title: What it is, with its unit.
        better: Which is better; None where neither is.
    """

    title: str
    better: Literal["lower", "higher"] | None


METRICS = {
    "regret": Metric("regret: the table's best test accuracy minus the derived cell's, in points", "lower"),
    "table_test": Metric("the table's test accuracy of the derived cell, in %", "higher"),
    "rank": Metric("rank of the derived cell in the table, 1 for the best test accuracy", "lower"),
    "retrained": Metric("accuracy on select of the derived network, retrained, in %", "higher"),
    "test": Metric("accuracy on test of the derived network, retrained, in %", "higher"),
    "inherited": Metric("accuracy on select of the derived network with inherited weights, in %", "higher"),
    "supernet": Metric("accuracy on select of the supernet, in %", "higher"),
    "parameter_free": Metric("edges of the derived cells that hold a candidate without parameters, in %", None),
    "parameter_free_mass": Metric(
        "probability that a finished search gives to candidates without parameters, mean of its edges, in %", None
    ),
    "gap": Metric("search/eval gap: supernet minus retrained accuracy on select, in points", None),
}
