"""The gradients of a node."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from nas.supernet.aten.norms import Moments, norm_backward
from nas.supernet.aten.probes import inner
from nas.supernet.aten.stages import activate, activate_backward, chain_backward, join
from nas.supernet.aten.terms import Job, Term, Total, parameters_of


class Backward:
    """The gradients of one node, edge by edge.

    Args:
        job: What the node computed.
        saved: Its tensors, then what its terms kept.
        count: The number of its tensors.
        batches: Whether each kept norm is of a batch.
        wanted: Which of its tensors want a gradient.
        of_weights: Where the weights' gradient goes, if wanted.
    """

    def __init__(
        self,
        job: Job,
        saved: Sequence[Tensor],
        count: int,
        batches: Iterator[bool],
        wanted: Sequence[bool],
        of_weights: Tensor | None,
    ) -> None:
        self.job, self.tensors, self.kept = job, saved[:count], iter(saved[count:])
        self.batches, self.wanted, self.of_weights = batches, wanted, of_weights
        self.rows: dict[int, Sequence[Tensor]] | None = None
        self.of_tensors: list[Tensor | None] = [None] * count
        self.totals: dict[int, Total] = {}

    def found(self) -> list[Tensor | None]:
        """Returns the gradients of the node's tensors."""
        for position, total in self.totals.items():
            self.of_tensors[position] = total.value
        return self.of_tensors

    def edge(self, g: Tensor, terms: Iterator[Term]) -> None:
        """Adds the gradients of one edge's terms; g is the gradient of the node, (B, C, H, W)."""
        activated: dict[Any, Tensor] = {}  # of the one state the edge reads
        pending: dict[Any, tuple[int, Total]] = {}
        for term in terms:
            if not term.stages:
                self._last(g, term, [self.tensors[term.read]], self._norms(term), want=self.wanted[term.read])
                continue
            activation = term.stages[0].activation
            if activation not in activated:
                activated[activation] = activate(self.tensors[term.read], activation)
            outputs = [next(self.kept) for _ in term.stages]
            norms = self._norms(term)
            wanted, *_ = parameters_of(term, self.wanted)
            want = self.wanted[term.read] or any(self.wanted[term.first : term.end])
            of_z = self._last(g, term, outputs, norms, want=want)
            if of_z is None:
                continue
            given, *_ = parameters_of(term, self.tensors)
            of_input, of_parts = chain_backward(
                of_z, term.stages, activated[activation], given, outputs, norms, self.job.half, wanted,
                self.wanted[term.read],
            )  # fmt: skip
            for position, value in zip(range(term.first, term.end), join(term.stages, of_parts), strict=True):
                if value is not None:
                    self.of_tensors[position] = value
            if of_input is not None:
                pending.setdefault(activation, (term.read, Total()))[1].add(of_input, owned=True)
        for activation, (read, total) in pending.items():
            assert total.value is not None
            self._into(read).add(activate_backward(total.value, activated[activation], activation), owned=True)

    def _norms(self, term: Term) -> list[Moments | None]:
        norms = [stage.norm for stage in term.stages] or [term.norm]
        return [
            None if norm is None else Moments(next(self.kept), next(self.kept), next(self.batches)) for norm in norms
        ]

    def _into(self, position: int) -> Total:
        return self.totals.setdefault(position, Total())

    def _last(
        self, g: Tensor, term: Term, outputs: Sequence[Tensor], norms: Sequence[Moments | None], *, want: bool
    ) -> Tensor | None:
        """Goes back through weight and last batch norm of a term.

        Returns:
            The gradient of the last output of its stages, if wanted; of a term without any, it goes to what it reads.
        """
        of_weight: Tensor | None = None
        weight = self.rows[term.edge][term.index] if self.rows else None
        g = g if term.keep is None else g * term.keep
        z, found = outputs[-1], norms[-1]
        if found is not None and term.norm is not None:
            _, gamma, beta = parameters_of(term, self.tensors)
            scale = gamma if weight is None else weight if gamma is None else weight * gamma
            of_z, of_scale, of_shift = norm_backward(g, z, found, term.norm.eps, scale, wanted=want)
            if self.of_weights is not None:
                of_weight = of_scale.sum() if gamma is None or beta is None else of_scale @ gamma + of_shift @ beta
            if gamma is not None:
                for position, value in ((term.end - 2, of_scale), (term.end - 1, of_shift)):
                    if self.wanted[position]:
                        self.of_tensors[position] = value if weight is None else value * weight
        else:
            of_z = (g if weight is None else g * weight[0]) if want else None
            if self.of_weights is not None:
                of_weight = inner(g, z)
        if term.residual:
            x = self.tensors[term.read]
            if of_weight is not None:
                of_weight = of_weight + inner(g, x)
            if self.wanted[term.read]:
                self._into(term.read).add(g, None if weight is None else weight[0])
        if of_weight is not None and self.of_weights is not None:
            self.of_weights[term.edge, term.index] = of_weight
        if term.stages or of_z is None:
            return of_z
        self._into(term.read).add(of_z, owned=found is not None or weight is not None)
        return None
