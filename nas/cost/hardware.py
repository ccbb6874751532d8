"""A column of a hardware table as costs of candidates: the least-squares sum over edges and operations."""

import numpy as np
import torch

from nas.benchmarks import Table
from nas.cost.candidates import Costs
from nas.errors import ConfigError
from nas.space import SearchSpace

LEAST = 0.5
"""Share of a column's variance below which a sum over candidates says too little about it."""


def additive_costs(space: SearchSpace, table: Table, column: str) -> tuple[Costs, float]:
    """Fits a column by a sum over the candidates of a cell.

    Returns:
        The costs, of which each edge's cheapest candidate has 0, and the share of the column's variance that they
        explain (R squared).

    Raises:
        ConfigError: The table is of another space or has no value, or the fit is too poor to search by.
    """
    values = table.column(column)
    cells = space.cells
    start, places = 1, {}
    for name, cell in cells.items():
        for e, edge in enumerate(cell.edges):
            for k, operation in enumerate(edge.operations):
                places[name, edge.source, edge.target, operation] = start, (name, e, k)
                start += 1
    design = np.zeros((len(values), start))
    design[:, 0] = 1.0
    try:
        for row, text in enumerate(table.architectures.tolist()):
            for name, choices in space.parse(text).cells.items():
                for source, target, operation in choices:
                    design[row, places[name, source, target, operation][0]] = 1.0
    except (ConfigError, KeyError) as error:
        raise ConfigError(
            f"cost.target {column}: the hardware table is of another space ({error}); search the space it is of"
        ) from error
    known = np.isfinite(values)
    if not known.any():
        raise ConfigError(f"cost.target {column}: the hardware table has no value of it; choose another column")
    fitted, *_ = np.linalg.lstsq(design[known], values[known], rcond=None)
    variance = float(np.var(values[known]))
    share = 1 - float(np.var(values[known] - design[known] @ fitted)) / variance if variance else 0.0
    if not share >= LEAST:  # no number is too poor, too
        raise ConfigError(
            f"cost.target {column}: a sum over candidates explains {share:.2f} of its variance, below {LEAST}; "
            "choose another column, params or multiply-adds"
        )
    tables = {name: torch.zeros(cell.mask.shape, dtype=torch.float64) for name, cell in cells.items()}
    for place, (name, e, k) in places.values():
        tables[name][e, k] = float(fitted[place])
    fixed = float(fitted[0])
    for name, cell in cells.items():
        least = torch.where(cell.mask, tables[name], torch.inf).amin(-1, keepdim=True)
        tables[name] = torch.where(cell.mask, tables[name] - least, 0.0)
        fixed += float(least.sum())
    return Costs(tables, torch.tensor(fixed, dtype=torch.float64)), share
