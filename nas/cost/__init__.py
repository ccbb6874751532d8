"""What derived networks cost: parameters, multiply-adds, latency, and what a hardware table says."""

from nas.cost.candidates import Costs, bounds, candidate_costs, expected_cost
from nas.cost.quantities import Quantity, quantities
from nas.cost.target import Cost, Target

__all__ = ["Cost", "Costs", "Quantity", "Target", "bounds", "candidate_costs", "expected_cost", "quantities"]
