"""`cost.target`: which quantity of the derived network must stay below what."""

import re
from dataclasses import dataclass

from nas.registry import did_you_mean

COUNTS = ("params", "multiply-adds")
LATENCY = "latency"
ENERGY = "_energy"

FACTORS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
MILLISECONDS = {"": 1.0, "us": 1e-3, "ms": 1.0, "s": 1e3}
MILLIJOULES = {"": 1.0, "mJ": 1.0}

FORM = "params<=3.5M, multiply-adds<=600M, latency<=12ms, or a hardware table's column as in edgegpu_latency<=5"
NUMBER = r"\d+(?:\.\d*)?(?:[eE][+-]?\d+)?"
PATTERN = re.compile(rf"\s*(?P<quantity>[A-Za-z][\w-]*)\s*<=\s*(?P<number>{NUMBER})\s*(?P<unit>[A-Za-z]*)\s*")


@dataclass(frozen=True)
class Target:
    """The largest cost that is asked for.

    Attributes:
        quantity: `params`, `multiply-adds`, `latency`, or a column of the hardware table.
        limit: As a plain number, in seconds, or in the table's unit.
        text: As it was written.
    """

    quantity: str
    limit: float
    text: str

    @property
    def column(self) -> bool:
        """Whether the quantity is a column of the hardware table."""
        return self.quantity not in (*COUNTS, LATENCY)

    def show(self, value: float) -> str:
        """Returns a cost in words."""
        if self.quantity in COUNTS:
            return f"{value:,.0f}"
        if self.quantity == LATENCY:
            return f"{1000 * value:.4g} ms"
        return f"{value:.4g} {'mJ' if self.quantity.endswith(ENERGY) else 'ms'}"


def parse_targets(text: str) -> tuple[Target, ...]:
    """Reads one target, or several with commas between them.

    Raises:
        ValueError: The text is none, or names a quantity twice.
    """
    targets = tuple(_parse(part) for part in text.split(","))
    names = [target.quantity for target in targets]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"target limits {', '.join(twice)} more than once, got {text!r}")
    return targets


def _parse(text: str) -> Target:
    found = PATTERN.fullmatch(text)
    if found is None:
        raise ValueError(f"target must read like {FORM}; got {text!r}")
    quantity, number, unit = found["quantity"], float(found["number"]), found["unit"]
    units = _units(quantity)
    if unit not in units:
        accepted = ", ".join(each or "none" for each in units)
        known = (*COUNTS, LATENCY)
        hint = "" if quantity in known else f"; {quantity!r} is a hardware table's, or {did_you_mean(quantity, known)}"
        raise ValueError(f"target must have a unit that fits {quantity} ({accepted}), got {text.strip()!r}{hint}")
    if not number > 0:
        raise ValueError(f"target must be above 0, got {text.strip()!r}")
    return Target(quantity, number * units[unit], text.strip())


def _units(quantity: str) -> dict[str, float]:
    if quantity in COUNTS:
        return FACTORS
    if quantity == LATENCY:
        return SECONDS
    return MILLIJOULES if quantity.endswith(ENERGY) else MILLISECONDS


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the derived network may cost; the search learns the price that keeps it there.

    Attributes:
        target: The largest cost, e.g. `params<=3.5M`, `multiply-adds<=600M`, `latency<=12ms`, or a column of the
            benchmark's hardware table, e.g. `edgegpu_latency<=5`; several with commas between them; null for none.
        rate: How fast the price of being above the target rises: by how much, in units of the loss, over a whole search
            that costs twice the target.
        damping: Weight of the squared excess, which keeps price and cost from swinging around each other.
        latency_table: File of `nas bench --latency-table`, which a target on `latency` needs.
    """

    target: str | None = None
    rate: float = 10.0
    damping: float = 1.0
    latency_table: str | None = None

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ValueError(f"rate must be positive, got {self.rate:g}")
        if not self.damping >= 0:
            raise ValueError(f"damping must be at least 0, got {self.damping:g}")
        if self.latency_table is None and any(target.quantity == LATENCY for target in self.targets):
            raise ValueError(
                f"latency_table must name a file for target {self.target!r}; "
                "measure one with: nas bench --latency-table FILE.json"
            )

    @property
    def targets(self) -> tuple[Target, ...]:
        """The target's parts; none without a target."""
        return () if self.target is None else parse_targets(self.target)
