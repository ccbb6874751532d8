"""Latency tables: what `nas bench --latency-table` measured, read as costs of candidates."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from nas.config import to_tree
from nas.cost.candidates import Costs
from nas.errors import CheckpointError, DataError
from nas.files import read_json
from nas.space import SearchSpace, Task

FORMAT = "nas latency table, version 1"


def setting_of(space: SearchSpace, task: Task) -> dict[str, Any]:
    """Returns what a table must agree in with a search: the space and the shape of the images."""
    return {"space": to_tree(space), "task": asdict(task)}


def named(space: SearchSpace, costs: Costs) -> dict[str, dict[str, dict[str, float]]]:
    """Returns costs by cell, edge (`source-target`) and operation."""
    return {
        name: {
            f"{edge.source}-{edge.target}": dict(zip(edge.operations, row, strict=False))
            for edge, row in zip(cell.edges, costs.cells[name].tolist(), strict=True)
        }
        for name, cell in space.cells.items()
    }


def read_latency(path: Path, space: SearchSpace, task: Task) -> Costs:
    """Returns the seconds of a latency table.

    Raises:
        DataError: The file is missing or no latency table, or of another space or task.
    """
    where = f"cost.latency_table = {path}"
    again = f"measure one with: nas bench --latency-table {path}, and the search's --space, --dataset and --set"
    try:
        found = read_json(path)
        if not isinstance(found, Mapping) or found.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        _require_same(where, found, setting_of(space, task), again)
        tables = {}
        for name, cell in space.cells.items():
            rows = [
                [float(found["cells"][name][f"{edge.source}-{edge.target}"][each]) for each in edge.operations]
                for edge in cell.edges
            ]
            padded = [row + [0.0] * (cell.candidates - len(row)) for row in rows]
            tables[name] = torch.tensor(padded, dtype=torch.float64)
        return Costs(tables, torch.tensor(float(found["fixed"]), dtype=torch.float64))
    except (CheckpointError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{where} is missing or no latency table ({error}); {again}") from error


def _require_same(where: str, found: Mapping[str, Any], expected: Mapping[str, Any], again: str) -> None:
    for part, ours in expected.items():
        theirs = found[part]
        if theirs != ours:
            keys = [key for key in sorted({*theirs, *ours}) if theirs.get(key) != ours.get(key)]
            rows = [f"{key} {theirs.get(key)} there, {ours.get(key)} here" for key in keys]
            raise DataError(f"{where} is of another {part} ({'; '.join(rows)}); {again}")
