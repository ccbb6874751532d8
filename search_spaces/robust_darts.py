"""S1 to S4: DARTS's cells with few candidates, with which DARTS fails (Zela et al., 2020, arXiv:1909.09656)."""

from dataclasses import dataclass

from nas import ops
from search_spaces.darts import OPERATIONS, DARTSCells

# The table of the authors' code (github.com/automl/RobustDARTS, src/spaces.py): a row for each node, a pair for each
# node that it reads.
PAIRS = {
    "normal": (
        "skip|dil3 skip|dil5",
        "skip|dil5 skip|sep3 skip|dil3",
        "max|skip skip|sep3 skip|sep3 skip|dil3",
        "skip|sep3 max|skip skip|dil3 dil3|dil5 dil3|dil5",
    ),
    "reduce": (
        "max|avg max|dil3",
        "max|avg max|avg skip|dil5",
        "max|avg max|sep3 skip|dil3 skip|dil5",
        "max|avg max|avg skip|dil5 skip|dil5 skip|dil5",
    ),
}
WHOLE = {
    "max": "max_pool_3x3",
    "avg": "avg_pool_3x3",
    "skip": "skip_connect",
    "sep3": "sep_conv_3x3",
    "dil3": "dil_conv_3x3",
    "dil5": "dil_conv_5x5",
}


@dataclass(frozen=True, kw_only=True)
class S1(DARTSCells):
    """Two candidates on each edge, others on others: what was left when the least important of eight were dropped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nodes != 4:
            raise ValueError(f"nodes must be 4, for which S1 has pairs of candidates, got {self.nodes}")

    def candidates(self, cell: str, source: int, target: int) -> tuple[str, ...]:
        """Returns the published pair."""
        return tuple(WHOLE[short] for short in PAIRS[cell][target - 2].split()[source].split("|"))


@dataclass(frozen=True, kw_only=True)
class S2(DARTSCells):
    """A skip connection or a separable convolution on every edge."""

    def candidates(self, cell: str, source: int, target: int) -> tuple[str, ...]:
        """Returns these two."""
        return ("skip_connect", "sep_conv_3x3")


@dataclass(frozen=True, kw_only=True)
class S3(DARTSCells):
    """Nothing, a skip connection or a separable convolution on every edge."""

    def candidates(self, cell: str, source: int, target: int) -> tuple[str, ...]:
        """Returns these three."""
        return ("none", "skip_connect", "sep_conv_3x3")


@dataclass(frozen=True, kw_only=True)
class S4(DARTSCells):
    """Noise or a separable convolution on every edge; noise carries nothing of the image."""

    operations = {**OPERATIONS, "noise": lambda s: ops.Noise(s.channels, s.stride)}

    def candidates(self, cell: str, source: int, target: int) -> tuple[str, ...]:
        """Returns these two."""
        return ("noise", "sep_conv_3x3")
