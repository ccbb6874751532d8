"""The engine: networks whose cells run what a `Selection` says."""

from nas.supernet.cell import MixedCell
from nas.supernet.network import Network, Output, Selections

__all__ = ["MixedCell", "Network", "Output", "Selections"]
