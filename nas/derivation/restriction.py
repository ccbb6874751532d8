"""Which candidates of a supernet are left, and how rules take them away until a genotype is left."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from nas.derivation.base import Masks, Quality
from nas.errors import ConfigError
from nas.space import Genotype, SearchSpace

Place = tuple[str, int]
"""An edge: cell and number."""


def allowed(space: SearchSpace, probabilities: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the candidates that a genotype may have, boolean (E, K) by cell name.

    Not those of probability 0, nor `none` where nodes retain some of their in-edges, as DARTS decides; of an edge
    whose row is 0, none at all.

    Raises:
        ConfigError: A cell has none left.
    """
    masks = {}
    for name, cell in space.cells.items():
        table, live = probabilities[name].detach(), cell.mask.clone()
        if cell.retain is not None:
            for e, edge in enumerate(cell.edges):
                live[e, : len(edge.operations)] &= torch.tensor([each != "none" for each in edge.operations])
        probable = live & (table > 0)
        # A sparse selector may have left an edge nothing but `none`; then the others are worth the same.
        left = torch.where(probable.any(-1, keepdim=True), probable, live)
        masks[name] = left & (table != 0).any(-1, keepdim=True)
        if not masks[name].any():
            raise ConfigError(f"cell {name!r}: every edge is left out; lower selector.penalty, which closes them")
    return masks


def left(masks: Masks, place: Place) -> list[int]:
    """Returns the candidates an edge still has."""
    name, e = place
    return [k for k, take in enumerate(masks[name][e].tolist()) if take]


def undecided(masks: Masks) -> list[Place]:
    """Returns the edges with more than one candidate."""
    return [(name, e) for name, mask in masks.items() for e, count in enumerate(mask.sum(-1).tolist()) if count > 1]


def without(masks: Masks, place: Place, candidate: int | None = None) -> dict[str, Tensor]:
    """Returns the masks with one candidate of an edge taken away, or all of them."""
    return _changed(masks, place, [k for k in left(masks, place) if candidate not in (None, k)])


def only(masks: Masks, place: Place, candidate: int) -> dict[str, Tensor]:
    """Returns the masks with one candidate of an edge left."""
    return _changed(masks, place, [candidate])


def crowded(space: SearchSpace, masks: Masks) -> list[list[Place]]:
    """Returns, for every node that must lose in-edges, those that have candidates."""
    return [
        inputs
        for name, cell in space.cells.items()
        for node in cell.order
        if cell.retain is not None
        and len(inputs := [(name, e) for e in cell.in_edges(node) if left(masks, (name, e))]) > cell.retain
    ]


def thinned(
    space: SearchSpace, masks: Masks, inputs: list[Place], measure: Callable[[Masks], Quality]
) -> dict[str, Tensor]:
    """Returns the masks after a node's in-edges were taken away, the least missed first, until it retains its number.

    Every removal is measured anew: what an edge is worth depends on which others are left.
    """
    masks, inputs = dict(masks), list(inputs)
    retain = space.cells[inputs[0][0]].retain
    assert retain is not None
    while len(inputs) > retain:
        least = max(inputs, key=lambda place: measure(without(masks, place)))
        inputs.remove(least)
        masks = without(masks, least)
    return masks


def decided(space: SearchSpace, masks: Masks) -> Genotype:
    """Returns the genotype of masks with at most one candidate on every edge."""
    cells = {}
    for name, cell in space.cells.items():
        chosen = [(edge, left(masks, (name, e))) for e, edge in enumerate(cell.edges)]
        assert all(len(candidates) <= 1 for _, candidates in chosen)
        cells[name] = tuple((edge.source, edge.target, edge.operations[k]) for edge, found in chosen for k in found)
    return Genotype(cells)


def _changed(masks: Masks, place: Place, candidates: list[int]) -> dict[str, Tensor]:
    name, e = place
    mask = masks[name].clone()
    mask[e] = False
    mask[e, candidates] = True
    return {**masks, name: mask}
