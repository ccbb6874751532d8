"""Probes: candidates that did not run, evaluated in the backward for their inner products with the gradient.

Nothing of them is saved by the forward, they update no statistics, and their results are given up state by state.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from nas.supernet.native.forward import Forward
from nas.supernet.native.layout import Region
from nas.supernet.native.records import State, Term, Use


def probe(
    forward: Forward, state: State, region: Region, sum_up: Callable[[State, Sequence[Term], bool], None]
) -> None:
    """Adds to a backward the probes that read a state, whose targets' gradients are known by then.

    Args:
        forward: The forward, whose room is the backward's by now.
        state: What they read.
        region: Where their results lie for a while.
        sum_up: Adds what finds the gradients of the weights.
    """
    shadows: dict[int, State] = {}
    reader = replace(state, uses=[], terms=[], passing=[], levels=[])
    for e, candidates in enumerate(forward.signature.probes):
        target = forward.states[forward.cell.cell.edges[e].target]
        if forward.signature.values and forward.states[forward.plan.sources[e]] is state and target.wanted:
            shadow = shadows.setdefault(id(target), replace(target, terms=[], uses=[], passing=[], levels=[]))
            reader.uses += [Use(e, k, forward.plan.candidates[e][k], shadow) for k in candidates]
    if not reader.uses:
        return
    forward.room.packing.transpose = False
    mark, position, known = region.used, len(forward.room.steps), set(forward.room.packing.rows)
    forward.run_uses(reader, probing=True, region=region)
    forward.room.pack(position, known)
    for shadow in shadows.values():
        if shadow.terms:
            sum_up(shadow, shadow.terms, True)
        shadow.terms = []
    reader.uses, reader.passing = [], []
    region.reset(mark)
