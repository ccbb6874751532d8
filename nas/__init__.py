"""Differentiable neural architecture search: search, derive, retrain, and measure the gap.

run = nas.search(space="nas-bench-201", selector="st-gs", dataset="digits", epochs=10)
genotype = nas.derive(run)
networks = nas.retrain(run)
report = nas.measure_gap(run)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas.runs.pipeline import configure, derive, measure_gap, network, retrain, search

__all__ = ["configure", "derive", "measure_gap", "network", "retrain", "search"]


def __getattr__(name: str) -> Any:
    """Loads the public functions, and torch with them, when they are first used."""
    if name not in __all__:
        raise AttributeError(f"module 'nas' has no attribute {name!r}")
    from nas.runs import pipeline

    return getattr(pipeline, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
