"""Edge selectors: each turns the architecture logits of a cell into a `Selection`."""

from nas.selectors.base import Selector

__all__ = ["Selector"]
