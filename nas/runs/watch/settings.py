"""`search.watch`: which signals of a collapse end a search, or are only warned of."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Signals that the search collapses, measured after epochs; each has a threshold, null for off.

    Attributes:
        action: `warn` goes on; `stop` ends the search after the epoch; `roll-back` also gives the logits the values of
            the last epoch at which no signal had reached its threshold.
        every: Epochs between measurements.
        from_progress: Share of the search, at the beginning, in which only the entropy is judged: as long as the logits
            have hardly moved, their largest say little.
        parameter_free: Share of the edges of the most probable genotype that hold a candidate without parameters
            (skip, pool, none), among those that had the choice; fires from this share on.
        entropy: Mean entropy of an edge's candidates relative to its maximum, log K; fires below, until
            `entropy_until`: the decisions are closed too early.
        entropy_until: Share of the search after which decisions may be closed.
        discretisation: Accuracy of the supernet less that of the most probable genotype with inherited weights, both on
            `select` and recalibrated, in points; fires from here on. It costs two measurements.
        eigenvalue: Growth of the largest eigenvalue of the Hessian of the loss on `arch` images in the logits; fires
            above. Published: 1.333 (Zela et al., 2020, arXiv:1909.09656), with a roll back by `span`.
        span: Measurements over which eigenvalues are averaged, and over which they grow.
        tolerance: Of the eigenvalue, relative.
        iterations: Products with the Hessian at most, each about a step by the plain execution; twice, where the
            eigenvalue of largest magnitude is negative.
    """

    action: Literal["warn", "stop", "roll-back"] = "warn"
    every: int = 1
    from_progress: float = 0.5
    parameter_free: float | None = 0.9
    entropy: float | None = 0.1
    entropy_until: float = 0.5
    discretisation: float | None = None
    eigenvalue: float | None = None
    span: int = 5
    tolerance: float = 0.01
    iterations: int = 50

    def __post_init__(self) -> None:
        for name in ("every", "span", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("from_progress", "parameter_free", "entropy", "entropy_until"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {share:g}")
        if self.discretisation is not None and not self.discretisation > 0:
            raise ValueError(f"discretisation must be positive, got {self.discretisation:g}")
        if self.eigenvalue is not None and not self.eigenvalue > 1:
            raise ValueError(f"eigenvalue must be above 1, since it is a growth, got {self.eigenvalue:g}")
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance must be between 0 and 1, got {self.tolerance:g}")
